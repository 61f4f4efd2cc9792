# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: Lock as Python sees it, and what RLock (rlocks.pxi) has in common with it.
# mutex.pxd describes the protocol.
#
# The objects have no state of their own: the cell names the context that holds the lock, and the
# context names process and thread. So two objects of one cell in one process are the same lock, a
# child of fork does not hold its parent's locks, and what is unpickled is the same lock.


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class MutexCore(CellCore):
    """What Lock and RLock have in common."""

    cdef bint _checks              # a wait for itself, or in a circle, ends with DeadlockError
    cdef public object on_orphan

    def _set_check(self, bint check):
        self._checks = check

    cdef inline Context *_mine(self) noexcept:
        """The context by which this process holds the lock; NULL if it does not. The mapping must
        be there."""
        return self._mine_in(load_acquire_u32(&self.cell.state))

    cdef inline Context *_mine_in(self, uint32_t seen) noexcept:
        """The same for a word of the lock that was seen."""
        cdef Map *map = &self.handle.map
        cdef uint64_t owner = word_owner(seen)
        cdef Context *context
        if not word_locked(seen) or (owner + 1) * map.context_stride > region_usable(
                map, REGION_CONTEXTS) or not map.local.registered:
            return NULL
        context = context_at(map, owner)
        if load_relaxed_u64(&context.owner) != map.local.process_index + 1:
            return NULL
        return context

    cdef inline bint _take_free(self, uint64_t thread) noexcept:
        """Take the lock if it has no holder, no waiter and no orphan. thread: its number, or that
        of a task."""
        cdef Op op
        cdef uint64_t taken
        cdef bint free = False
        if not FREE_THREADED:
            if unlikely(is_closed(self.handle)):
                return False
            taken = local_take_u64(&self.handle.map.local.idle_context)
            return likely(taken != 0) and self._take_free_in(&op, taken, thread)
        begin_use(self.handle, &op)
        if not is_closed(self.handle):         # asked after the count, which close() sees
            taken = local_take_u64(&self.handle.map.local.idle_context)
            free = taken != 0 and self._take_free_in(&op, taken, thread)
        end_waiting(self.handle, &op)
        return free

    cdef inline bint _take_free_in(self, Op *op, uint64_t taken, uint64_t thread) noexcept:
        """_take_free, in a context that was idle."""
        op.self_index = <uint32_t> (taken - 1)
        op.context = context_at(&self.handle.map, taken - 1)
        mutex_intend(op, self._index, thread)
        if likely(mutex_take_free(op, self.cell)):
            count_add(&self.handle.map.local.held, 1)
            return True
        put_context(self.handle, op.self_index)
        return False

    def _take_now(self, uint64_t number, int64_t deadline_ns, bint free):
        """Take the lock for a task, if it has no holder, no waiter and no orphan; free: whether
        that may be done. Raises what _expect_no_deadlock raises."""
        if free and self._take_free(number):
            return True
        expect_open(self.handle)
        self._expect_no_deadlock(deadline_ns, number)
        return False

    def _wait_to_take(self, uint64_t number, int64_t deadline_ns, bint told):
        return LockWait(self, number, deadline_ns, told)

    cdef bint _take(self, int64_t limit, uint64_t told=WAIT_ENDLESS) except -1:
        """Take the lock, waiting for it if need be. False: the time is over. told: 0 if the caller
        could not do without the lock, so that another one must be told of a circle."""
        cdef Op op
        cdef MutexWait wait
        cdef uint64_t how = 0
        cdef int64_t look_at
        cdef bint taken = False
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        self._expect_no_deadlock(limit, caller_number())
        if others_can_run():
            wait.until = until_ns(limit)
            return self._taken(LockWait(
                self, caller_number(), wait.until, told != 0).look_in_turns(wait.until))
        if self._checks:
            how = WAIT_LINK | told if limit < 0 else WAIT_LINK
        wait.began = clock_ns(CLOCK_MONOTONIC)
        look_at = wait.began + circle_patience_ns
        wait.until = until_ns(limit)
        wait.reservation = 0
        wait.slept = False
        begin_use(self.handle, &op)
        try:
            while not taken:                   # ends with the timeout
                if op.generation != process_generation:
                    leave_to_parent(self.handle)       # a signal handler forked: in the child
                    begin_use(self.handle, &op)
                taken = self._wait_once(&op, &wait, how)
                if not taken:
                    expect_no_circle(self, how, caller_number(), wait.began, &look_at)
                    if not between_slices(self.handle, wait.until):
                        break
        finally:
            if not taken:
                mutex_give_up(&self.handle.map, self.cell, &wait)
            end_waiting(self.handle, &op)
        return self._taken(taken)

    cdef bint _taken(self, bint taken) except -1:
        """After a wait: if the lock is taken from an owner that died, tell."""
        if taken and self.on_orphan is not None and self._is_orphan():
            self.on_orphan(self, self.orphan)
        return taken

    cdef bint _wait_once(self, Op *op, MutexWait *wait, uint64_t how) except -1:
        """One slice of a wait, with a context that is taken for it."""
        cdef bint taken
        begin_with_context(self.handle, op)
        mutex_intend(op, self._index, caller_number())
        held_set(op.context, HELD_SINCE, <uint64_t> wait.began)
        link_say(op.context, self._index, how)
        with nogil:
            taken = mutex_wait(op, self.cell, wait)
        wait_say(op.context, 0)
        if taken:
            count_add(&self.handle.map.local.held, 1)
        else:
            put_context(self.handle, op.self_index)
        return taken

    cdef int _expect_no_deadlock(self, int64_t limit, uint64_t thread) except -1:
        """thread: the number of the one that would wait, or that of a task."""
        cdef Context *mine
        cdef uint64_t holder
        if limit >= 0 or not self._checks:
            return 0
        mine = self._mine()
        if mine == NULL:
            return 0
        holder = held_word(mine, HELD_THREAD)
        if holder & TASK and not thread & TASK and task_runs_here(holder):
            raise _errors.DeadlockError(
                f"a task of this thread's event loop holds {self!r}, and the loop would stand "
                f"still: use 'async with', or await acquire_async()")
        if holder == thread:
            raise _errors.DeadlockError(
                f"this {'task' if thread & TASK else 'thread or greenlet'} holds {self!r} already "
                f"and would wait for itself for ever (a coroutine without 'async with' is not a "
                f"thread of its own); check=False waits")
        return 0

    # For a Condition, without the way through Python: what __enter__, __exit__ and _is_owned do.

    cdef bint _enter(self) except -1:
        raise NotImplementedError

    cdef int _leave(self) except -1:
        raise NotImplementedError

    cdef bint _owned(self) except -1:
        """Whether this thread has the lock; for a plain Lock, whether this process has it."""
        raise NotImplementedError

    cdef int _expect_mine(self, Context *mine, str what) except -1:
        if likely(mine != NULL):
            return 0
        if not word_locked(load_acquire_u32(&self.cell.state)):
            raise RuntimeError(f"{what} {self!r}: nobody holds it")
        if self._mine() != NULL:
            raise RuntimeError(
                f"{what} {self!r}: another thread or task of this process holds it, and only that "
                f"one can release it")
        raise RuntimeError(
            f"{what} {self!r}: another process holds it, and only that one can release it (a "
            f"child of fork holds nothing of its parent's)")

    cdef inline int _let_go(self, uint32_t seen) except -1:
        """Release the lock, whose word was seen held by this process."""
        cdef Op op
        cdef Status status
        if FREE_THREADED:                      # else the slot may go before the context is back
            begin_use(self.handle, &op)
        status = mutex_release(&self.handle.map, self.cell, seen)
        if likely(status != ABSENT):
            count_add(&self.handle.map.local.held, ONE_LESS)
            put_context(self.handle, word_owner(seen))
        if FREE_THREADED:
            end_waiting(self.handle, &op)
        if unlikely(status == ABSENT):
            self._expect_mine(NULL, "cannot release")  # it has been taken away
        if unlikely(status == PRESENT):
            tell_own_loop(self)
        return 0

    cdef bint _is_orphan(self) noexcept:
        return load_acquire_u32(&self.cell.state) & ORPHAN and self._mine() != NULL

    @property
    def _orphaned(self):
        """Whether this process holds the lock, and an earlier owner died holding it."""
        expect_open(self.handle)
        return self._is_orphan()

    def locked(self):
        """Whether any thread of any process holds the lock. A dead one does not.

        Raises MapClosed.
        """
        cdef Op op
        expect_open(self.handle)
        op.map = &self.handle.map
        op.wait_seen = load_acquire_u32(&self.cell.state)
        if not word_locked(op.wait_seen):
            return False
        begin_use_of_space(self.handle, &op)   # a recoverer keeps its slot
        if op.map.owner_recover(&op):
            op.wait_seen = load_acquire_u32(&self.cell.state)
        end_use(self.handle)
        return word_locked(op.wait_seen)

    @property
    def token(self):
        """How often the lock has been taken: it grows with each owner, so a service that is told
        the tokens can refuse a late one (a fencing token).

        Raises MapClosed.
        """
        expect_open(self.handle)
        return load_relaxed_u64(&self.cell.grants)


cdef uint64_t task_links(MutexCore lock, int64_t deadline_ns, bint told) noexcept:
    """How a task's or a greenlet's wait for a lock is a link of a circle (circle.pxd)."""
    if deadline_ns >= 0 or not lock._checks:
        return 0
    return WAIT_LINK | WAIT_ENDLESS if told else WAIT_LINK


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class LockWait(CellWait):
    """A task's or a greenlet's wait for a lock. number: the task's (TASK), or the greenlet's. told:
    whether it can do without the lock, and so be told of a circle."""

    cdef MutexCore lock
    cdef MutexWait wait
    cdef uint64_t number
    cdef uint64_t how
    cdef int64_t look_at

    def __cinit__(
            self, MutexCore lock not None, uint64_t number, int64_t deadline_ns, bint told=True):
        self.lock = lock
        self.number = number
        self.how = task_links(lock, deadline_ns, told)
        if unlikely(is_closed(lock.handle)):
            refuse_closed(lock.handle)
        lock._expect_no_deadlock(deadline_ns, number)
        self.wait.began = clock_ns(CLOCK_MONOTONIC)
        self.wait.until = deadline_ns
        begin_waiter(lock.handle, &self.op)
        mutex_intend(&self.op, lock._index, number)
        held_set(self.op.context, HELD_SINCE, <uint64_t> self.wait.began)
        link_say(self.op.context, lock._index, self.how)
        self.look_at = self.wait.began + circle_patience_ns
        self.waits = True

    def __dealloc__(self):
        self.end()

    def look(self):
        """Take the lock, if that is possible; return whether it is done. Raises DeadlockError (the
        wait is in a circle)."""
        cdef MutexCore lock = self.lock
        cdef uint32_t left = 0
        cdef bint taken = False
        cdef int _turn
        self._expect_parent()
        for _turn in range(STEP_PAUSES):       # each turn, another thread has changed the word
            with nogil:
                taken = mutex_look(&self.op, lock.cell, &self.wait, &left, &self.until_ns)
            if taken:
                self._end(True)
                break
            self._note(&lock.cell.state, left)
            # Acquire: after the note, and read by this thread only; pairs with mutex_release.
            if load_acquire_u32(&lock.cell.state) == left:
                break
        if not taken:
            expect_no_circle(lock, self.how, self.number, self.wait.began, &self.look_at)
        return taken

    cdef void _end(self, bint taken) noexcept:
        if not self.waits:
            return
        self.waits = False
        self._detach()
        if taken:                              # the context is the holder's from now on
            wait_say(self.op.context, 0)
            end_waiting(self.lock.handle, &self.op)
            return
        if self.op.generation == process_generation:
            mutex_give_up(&self.lock.handle.map, self.lock.cell, &self.wait)
            tell_own_loop(self.lock)
        end_waiter(self.lock.handle, &self.op)

    def end(self):
        """Wait no more."""
        self._end(False)


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class LockCore(MutexCore):
    """The part of Lock that is in the core."""

    cdef inline bint _enter(self) except -1:
        if unlikely(not self._take_free(caller_number())):
            self._take(-1)
        return True

    cdef inline int _leave(self) except -1:
        cdef uint32_t seen
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        seen = load_acquire_u32(&self.cell.state)
        if unlikely(self._mine_in(seen) == NULL):
            self._expect_mine(NULL, "cannot release")
        return self._let_go(seen)

    cdef bint _owned(self) except -1:
        expect_open(self.handle)
        return self._mine() != NULL

    def acquire(self, blocking=True, timeout=-1):
        """Take the lock; return whether it is taken. Arguments and errors as threading.Lock's.

        timeout: seconds; -1 or None waits without limit. If the last owner died, the lock is taken
        from it, and `orphan` tells. Costs about 40 ns if the lock is free; waiting sleeps in the
        kernel without the GIL.

        Raises DeadlockError (this thread, or a task of its event loop, holds it, or it waits in a
        circle, without limit), ValueError, TooManyProcesses (4,096 locks and permits of the space
        are held), MapClosed.
        """
        if likely(blocking is True and timeout is FOR_EVER):
            return (True if likely(self._take_free(caller_number()))
                    else self._take(-1))
        limit = acquire_limit(blocking, timeout)
        return self._take_free(caller_number()) or self._take(limit)

    def release(self):
        """Let go of the lock. Any thread of the process that took it may do so.

        Raises RuntimeError (this process does not hold it), MapClosed.
        """
        LockCore._leave(self)

    def _acquire_restore(self, saved):
        """What Condition.wait() does at its end."""
        if not self._take_free(caller_number()):
            self._take(-1, 0)

    def __enter__(self):
        return LockCore._enter(self)

    def __exit__(self, kind, error, traceback):
        LockCore._leave(self)
