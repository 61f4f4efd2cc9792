# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: what all waits for cells have in common: the context of a waiter, and how a
# task of an event loop waits. listener.pxd describes the protocol; shmrhash/_sync/tasks.py lets
# tasks take turns.

cdef int begin_waiter(MapHandle handle, Op *op) except -1:
    """Keep the space mapped, and take a context for one wait."""
    begin_use(handle, op)
    try:
        begin_with_context(handle, op)
    except BaseException:
        end_waiting(handle, op)
        raise
    held_set(op.context, HELD_THREAD, waiter_number())
    held_set(op.context, HELD_SINCE, <uint64_t> clock_ns(CLOCK_MONOTONIC))
    count_add(&handle.map.local.held, 1)
    return 0


cdef void end_waiter(MapHandle handle, Op *op) noexcept:
    """The end of begin_waiter; in a child that was forked since, the context is the parent's."""
    if op.generation == process_generation:
        wait_end(op)
        count_add(&handle.map.local.held, ONE_LESS)
        put_context(handle, op.self_index)
    end_waiting(handle, op)


@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ of subclasses needs the cell
cdef class CellWait:
    """One wait at a cell. A task of an event loop calls look() until that is true, and sleeps in
    between until changed() is true or the clock CLOCK_MONOTONIC reads until_ns (negative: without
    limit); from attach() on, the loop is told of changes. end() at last, in any case.
    """

    cdef CellCore core
    cdef Op op
    cdef bint waits                # the space is kept mapped
    cdef Shown shown               # if it has no context of its own
    cdef Notifier notifier
    cdef EarWord ear_word
    cdef readonly int64_t until_ns

    def __cinit__(self, CellCore core not None, *_ignored):
        self.core = core
        self.until_ns = -1

    @property
    def _index(self):
        return self.core._index

    def _notifier(self):
        return Notifier(self.core.handle)

    def _notifier_key(self):
        return attachment_key(self.core.handle)

    def attach(self, Notifier notifier not None):
        """From now on, this notifier tells of changes.

        Raises SystemFailure (the process may make no more threads).
        """
        state_lock()
        if notifier._alive():
            self.notifier = notifier
            ear_word_add(&notifier.ear, &self.ear_word)
        state_unlock()
        notifier._go_on()

    cdef void _detach(self) noexcept:
        if self.notifier is not None and self.notifier.generation == process_generation:
            state_lock()
            ear_word_drop(&self.notifier.ear, &self.ear_word)
            state_unlock()
        self.notifier = None

    cdef void _note(self, const uint32_t *word, uint32_t seen) noexcept:
        """Before a look: the loop is to be told when this word has another value."""
        if self.notifier is not None:
            state_lock()
            if self.notifier._alive():
                ear_word_note(&self.notifier.ear, &self.ear_word, word, seen)
            state_unlock()

    cdef int _expect_parent(self) except -1:
        """Refuse to wait in a child of fork, whose loop is its parent's."""
        if unlikely(is_closed(self.core.handle)):
            refuse_closed(self.core.handle)
        if self.op.generation != process_generation:
            raise RuntimeError("a child of fork cannot go on with its parent's event loop")
        return 0

    cdef bint _is_due(self) noexcept:
        """Whether the wait is over without a ring, because the process that would have rung is
        dead."""
        return False

    def look(self):
        """Take what is waited for, if that is possible; return whether it is over."""
        raise NotImplementedError

    def changed(self):
        """Whether the task has to look again."""
        return bool(is_closed(self.core.handle) or ear_word_moved(&self.ear_word) or self._is_due())

    cdef bint look_in_turns(self, int64_t until) except -1:
        """For a greenlet: look until that is true, or CLOCK_MONOTONIC reads until (negative:
        without limit), and end the wait. Returns what the last look said."""
        cdef MapHandle handle = self.core.handle
        cdef uint64_t turn = 0
        cdef bint done = False
        try:
            done = self.look()
            while not done:                    # ends with the time
                if not between_slices(handle, until):
                    self.recover()
                    return self.look()
                if turn % GREENLET_DEAD_TURNS == GREENLET_DEAD_TURNS - 1:
                    self.recover()
                if not others_ran(&turn, until):
                    turn += 1                  # the hub has gone: it is the thread's end
                done = self.look()
        finally:
            self.end()
        return done

    def recover(self):
        """Recover the processes of the space that have died."""
        with nogil:
            recover_all(&self.core.handle.map)
