# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: Semaphore, BoundedSemaphore and Event as Python sees them. shares.pxd describes
# the protocol of permits, flag.pxd that of events.
#
# A thread takes and gives permits while it has the GIL or, on a Python without one, while it is in
# a critical section of the space. So only one thread at a time uses the context that has its
# process's permits of a cell. Only waiting releases the GIL, or leaves the critical section.


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class SharesCore(CellCore):
    """What Semaphore and RWLock have in common: the context that has this process's shares."""

    cdef readonly bint undo        # there is such a context
    cdef bint is_rwlock
    cdef bint _checks              # a thread that would wait in a circle gets DeadlockError
    cdef int64_t slice_ns          # a waiter looks by itself this often

    cdef int _begin(self, Op *op) except -1:
        """Find or take the context that has this process's shares of the cell."""
        cdef uint32_t *share
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        op.map = &self.handle.map
        op.context = NULL
        if not self.undo:
            return 0
        share = self._cells._share(self._index)
        if likely(share[0] != 0):
            op.self_index = share[0] - 1
            op.context = context_at(op.map, op.self_index)
            return 0
        begin_with_context(self.handle, op)
        held_set(op.context, HELD_SHARES, 0)
        held_set(op.context, HELD_SHARES_NEXT, 0)
        held_name(op.context, self._index)
        share[0] = op.self_index + 1
        count_add(&self.handle.map.local.held, 1)
        return 0

    cdef void _end(self, Op *op) noexcept:
        """Put the context back if it has no shares any more."""
        if op.context == NULL or held_word(op.context, HELD_SHARES) != 0:
            return
        op.context.target = 0
        self._cells.shares[self._index] = 0
        count_add(&self.handle.map.local.held, ONE_LESS)
        put_context(self.handle, op.self_index)

    cdef uint32_t _arm(self, uint64_t what) noexcept nogil:
        """Before each look of a task: say that it waits. Returns the bell's value."""
        return lock_bell_arm(&self.cell.bell)

    cdef int _sleep(self, Op *op, uint64_t what, int64_t until) noexcept nogil:
        """Sleep until that may be taken. Returns what futex_sleep does; -1 if there is no reason to
        sleep."""
        return -1

    cdef void _give_up(self, uint64_t what) noexcept:
        """The end of a wait that got no permit."""

    cdef Status _step(self, bint give, uint64_t what) except? RETRY:
        """Take or give, if that needs no wait for another to give: OK, ABSENT or FULL."""
        if FREE_THREADED:
            return self._step_alone(give, what)
        return self._step_held(give, what)

    cdef Status _step_alone(self, bint give, uint64_t what) except? RETRY:
        """_step without a GIL."""
        cdef Op use
        begin_use_of_space(self.handle, &use)
        try:
            with cython.critical_section(self._cells):
                return self._step_held(give, what)
        finally:
            end_waiting(self.handle, &use)

    cdef inline Status _step_held(self, bint give, uint64_t what) except? RETRY:
        cdef Op op
        cdef Status status = RETRY
        cdef int turn
        self._begin(&op)
        for turn in range(STEP_TURNS_MAX):     # each turn, another context has changed the word
            status = attempt_shares(self, &op, give, what)
            if likely(status != RETRY and status != BUSY):
                break
            if status == BUSY and turn > STEP_PAUSES:
                with nogil:                    # this thread's context rests, even if others use it
                    if not op.map.owner_recover(&op):
                        sched_yield()
                self._begin(&op)
        self._end(&op)
        if status == RETRY or status == BUSY:
            stopped_in_a_step(self)
        if give:
            tell_own_loop(self)
        return status

    def _take_now(self, uint64_t what, int64_t _deadline_ns, bint free):
        """Take for a task, if that needs no wait; free: whether that may be done."""
        expect_open(self.handle)
        return free and self._step(False, what) == OK

    def _wait_to_take(self, uint64_t what, int64_t _deadline_ns, bint _told):
        return SharesWait(self, what)

    cdef bint _take(self, uint64_t what, int64_t limit) except -1:
        """Take, waiting for it. False: the time is over."""
        cdef Op op
        cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t until = until_ns(limit)
        cdef int64_t look_at = began + circle_patience_ns
        cdef int64_t slice_end
        cdef uint64_t how = 0
        cdef uint64_t shown
        cdef bint slept = False
        cdef Status status = self._step(False, what)
        if status == OK or limit == 0:
            return status == OK
        if others_can_run():
            return SharesWait(self, what).look_in_turns(until)
        if self._checks:
            how = WAIT_LINK | (WAIT_ENDLESS if limit < 0 else 0) | (WAIT_WRITES if what else 0)
        begin_use_of_space(self.handle, &op)
        try:
            while status != OK and between_slices(self.handle, until):
                slice_end = sooner_ns(clock_ns(CLOCK_MONOTONIC) + self.slice_ns, until)
                op.map = &self.handle.map
                slept = True
                shown = show_wait(self.handle, self._index, how, caller_number(), began)
                with nogil:
                    if self._sleep(&op, what, slice_end) > 0 and self.undo:
                        recover_all(op.map)
                hide_wait(self.handle, shown)
                status = self._step(False, what)
                if status != OK:
                    expect_no_circle(self, how, caller_number(), began, &look_at)
        finally:
            if status != OK and slept:
                self._give_up(what)
            end_waiting(self.handle, &op)
        return status == OK


cdef inline Status attempt_shares(
        SharesCore core, Op *op, bint give, uint64_t what) noexcept:
    """Take or give: permits, how many; or of an RWLock, whether the writer. ABSENT: none is free,
    or this process has none; FULL; RETRY: another context has changed the word; BUSY. It is not a
    method of the subclasses, so that a step needs no call that the compiler cannot put in line."""
    if unlikely(core.is_rwlock):
        if not give:
            return rwlock_take(op, core.cell, what, caller_number())
        return rwlock_give(op, core.cell, what) if rwlock_has(op, what) else ABSENT
    if not core.undo:
        return count_give(op.map, core.cell, what) if give else count_take(core.cell)
    return shares_give(op, core.cell, what) if give else shares_take(op, core.cell)


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class SharesWait(CellWait):
    """A task's wait for a permit; or to come in as a reader (what: 0) or the writer (1)."""

    cdef SharesCore shares
    cdef uint64_t what
    cdef int64_t began

    def __cinit__(self, SharesCore shares not None, uint64_t what):
        self.shares = shares
        self.what = what
        self.began = clock_ns(CLOCK_MONOTONIC)
        begin_use_of_space(shares.handle, &self.op)
        self.waits = True

    def __dealloc__(self):
        self.end()

    def look(self):
        """Take, if that is possible; return whether it is done. Recovers the dead if the task has
        slept for a whole slice."""
        cdef SharesCore shares = self.shares
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        self._expect_parent()
        if shares.undo and 0 <= self.until_ns <= now:
            self.recover()
        self.until_ns = now + shares.slice_ns
        self._note(&shares.cell.bell, shares._arm(self.what))
        if shares._step(False, self.what) != OK:
            show_here(shares, &self.shown, 0, self.began)
            return False
        self.end(True)
        return True

    def end(self, bint taken=False):
        """Wait no more."""
        if not self.waits:
            return
        self.waits = False
        self._detach()
        hide_here(self.shares, &self.shown, self.op.generation)
        if not taken and self.op.generation == process_generation:
            self.shares._give_up(self.what)
            tell_own_loop(self.shares)
        end_waiting(self.shares.handle, &self.op)


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class SemaphoreCore(SharesCore):
    """The part of Semaphore that is in the core."""

    def __cinit__(self, *_ignored, **_named):
        self.slice_ns = OWNER_SLICE_LATE_NS

    def _set_undo(self, bint undo):
        self.undo = undo

    cdef int _sleep(self, Op *op, uint64_t what, int64_t until) noexcept nogil:
        return count_sleep(op, self.cell, until)

    cdef void _give_up(self, uint64_t what) noexcept:
        count_give_up(&self.handle.map, self.cell)

    def acquire(self, blocking=True, timeout=None):
        """Take a permit; return whether one is taken. Arguments and errors as
        threading.Semaphore's; timeout None or -1 waits without limit. Waiting sleeps in the kernel
        without the GIL.

        Raises ValueError, TooManyProcesses (4,096 locks and permits of the space are held),
        MapClosed.
        """
        if likely(blocking is True and timeout is None):
            return True if likely(self._step(False, 1) == OK) else self._take(1, -1)
        return self._take(1, acquire_limit(blocking, timeout))

    def release(self, n=1):
        """Give n permits: those that this process has, then new ones.

        Raises ValueError (n is below 1; a BoundedSemaphore would have more than its limit),
        MapClosed.
        """
        self._give(n)

    cdef inline int _give(self, int64_t count) except -1:
        if count < 1:
            raise ValueError("n must be one or more")
        if unlikely(self._step(True, <uint64_t> count) == FULL):
            raise ValueError(
                f"Semaphore released too many times: {self!r} would have {count} more permits than "
                f"it may")
        return 0

    def __enter__(self):
        return True if likely(self._step(False, 1) == OK) else self._take(1, -1)

    def __exit__(self, kind, error, traceback):
        self._give(1)

    def get_value(self):
        """How many permits are free at the moment. Those of a process that died come back when it
        is recovered.

        Raises MapClosed.
        """
        expect_open(self.handle)
        return word_count(load_acquire_u64(&self.cell.word))

    def locked(self):
        """Whether no permit is free at the moment.

        Raises MapClosed.
        """
        return self.get_value() == 0


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class EventCore(CellCore):
    """The part of Event that is in the core. flag.pxd is the protocol."""

    def is_set(self):
        """Whether the event is set.

        Raises MapClosed.
        """
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        return flag_is_set(self.cell)

    def set(self):
        """Set the event, and wake all its waiters.

        Raises MapClosed.
        """
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        flag_set(&self.handle.map, self.cell)
        tell_own_loop(self)

    def clear(self):
        """Clear the event.

        Raises MapClosed.
        """
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        flag_clear(self.cell)

    def wait(self, timeout=None):
        """Wait until the event is set; return True, or False if the time is over. An event that is
        set and cleared while a thread waits counts as set for that thread. Waiting sleeps in the
        kernel without the GIL.

        Raises ValueError (timeout is NaN), MapClosed.
        """
        cdef Op op
        cdef uint64_t generation, shown
        cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t until
        cdef int64_t slice_end
        cdef bint came
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        if flag_is_set(self.cell):
            return True
        generation = flag_generation(self.cell)
        until = wait_end_ns(timeout)
        if others_can_run():
            return EventWait(self).look_in_turns(until)
        begin_use_of_space(self.handle, &op)
        try:
            came = flag_came(self.cell, generation)
            while not came and between_slices(self.handle, until):
                slice_end = sooner_ns(clock_ns(CLOCK_MONOTONIC) + OWNER_SLICE_LATE_NS, until)
                shown = show_wait(self.handle, self._index, 0, caller_number(), began)
                with nogil:
                    flag_sleep(self.cell, generation, slice_end)
                hide_wait(self.handle, shown)
                came = flag_came(self.cell, generation)
        finally:
            end_waiting(self.handle, &op)
        return came


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class EventWait(CellWait):
    """A task's or a greenlet's wait for an event."""

    cdef EventCore event
    cdef uint64_t generation
    cdef int64_t began

    def __cinit__(self, EventCore event not None):
        self.event = event
        begin_use_of_space(event.handle, &self.op)
        self.generation = flag_generation(event.cell)
        self.began = clock_ns(CLOCK_MONOTONIC)
        self.waits = True

    def __dealloc__(self):
        self.end()

    def look(self):
        """Whether the event is set, or has been since this object was made."""
        self._expect_parent()
        self._note(&self.event.cell.bell, lock_bell_arm(&self.event.cell.bell))
        if self._is_due():
            return True
        show_here(self.event, &self.shown, 0, self.began)
        return False

    cdef bint _is_due(self) noexcept:
        return flag_came(self.event.cell, self.generation)

    def end(self):
        """Wait no more."""
        if self.waits:
            self.waits = False
            self._detach()
            hide_here(self.event, &self.shown, self.op.generation)
            end_waiting(self.event.handle, &self.op)
