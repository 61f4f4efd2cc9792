# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the parts of Condition and Barrier that are in the core. condition.pxd and
# barrier.pxd describe the protocols; the methods of threading are in shmrhash/_sync.

CONDITION, BARRIER = CELL_CONDITION, CELL_BARRIER
PARTIES_MAX = COME_LIMIT


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class ConditionWait(CellWait):
    """One wait for a notification: made under the condition's lock, ended after it."""

    cdef ConditionCore condition

    def __cinit__(self, ConditionCore condition not None):
        self.condition = condition
        begin_waiter(condition.handle, &self.op)
        condition_enter(&self.op, condition.cell, condition._index)
        self.waits = True

    def __dealloc__(self):
        self.end()

    def sleep(self, timeout):
        """Sleep until this thread has been told, or timeout seconds are over (None: never); return
        whether it has been told. The caller has released the condition's lock.

        Raises MapClosed, what a signal handler raises.
        """
        cdef MapHandle handle = self.condition.handle
        cdef int64_t until = wait_end_ns(timeout)
        cdef uint64_t turn = 0
        cdef bint told = False
        while not told and self.op.generation == process_generation:   # a handler may fork
            if others_ran(&turn, until):
                told = self.look()
                if not told and turn % GREENLET_DEAD_TURNS == 0:
                    self.recover()
            else:
                with nogil:
                    told = condition_sleep(&self.op, until)
                    if not told:
                        dead_waiters_recover(&self.op, self.condition._index, TOLD)
            if not told and not between_slices(handle, until):
                break
        return told

    def look(self):
        """For a task: whether it has been told."""
        cdef uint64_t seen
        self._expect_parent()
        seen = wait_word(self.op.context)
        if seen & WAIT_STATE == WAITING:
            self._note(<uint32_t *> &self.op.context.owned_refs[WAIT_WORD], <uint32_t> seen)
            seen = wait_word(self.op.context)
        return seen & WAIT_STATE == TOLD

    def end(self, bint pass_on=False):
        """Wait no more; return whether this thread has been told. pass_on: if it has, tell the next
        waiter in its place."""
        cdef bint told = False
        if not self.waits:
            return False
        self.waits = False
        self._detach()
        if self.op.generation == process_generation:
            told = condition_leave(&self.op)
            if told and pass_on:
                condition_pass_on(self.op.map, self.condition.cell, self.condition._index)
                tell_own_loop(self.condition)
        end_waiter(self.condition.handle, &self.op)
        return told


cdef object ONE = 1


cdef bint has_core_methods(kind) except -1:
    """Whether a class of locks has the core's methods for the with statement, and no others."""
    return (kind.__enter__ is LockCore.__enter__ or kind.__enter__ is RLockCore.__enter__) and (
        kind.__exit__ is LockCore.__exit__ or kind.__exit__ is RLockCore.__exit__)


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class ConditionCore(CellCore):
    """The part of Condition that is in the core."""

    cdef readonly object _lock
    cdef MutexCore _mutex          # the lock, if it is one of ours; else None
    cdef bint _enters_mutex        # whether `with` does with it what the core's methods do

    def _set_lock(self, lock):
        self._lock = lock
        if isinstance(lock, MutexCore):
            self._mutex = lock
            self._enters_mutex = has_core_methods(type(lock))

    cdef bint _owned(self) except -1:
        """Whether this thread has the lock; for a plain Lock, whether this process has it."""
        cdef bint taken
        if likely(self._mutex is not None):
            return self._mutex._owned()
        taken = self._lock.acquire(False)      # as threading.Condition finds out
        if taken:
            self._lock.release()
        return not taken

    def _is_owned(self):
        return self._owned()

    def __enter__(self):
        return self._mutex._enter() if likely(self._enters_mutex) else self._lock.__enter__()

    def __exit__(self, kind, error, traceback):
        if unlikely(not self._enters_mutex):
            return self._lock.__exit__(kind, error, traceback)     # true: it swallows the error
        self._mutex._leave()

    def notify(self, n=1):
        """Wake the n threads that have waited longest, or all if there are fewer.

        A thread whose process has died is passed over. If a thread dies after it has been notified
        and before its wait() has returned, the next waiter is notified. Costs nothing more if no
        thread waits, else a look at each thread of the space that holds or waits for something.

        Raises RuntimeError (this thread does not have the lock), MapClosed.
        """
        if unlikely(not self._owned()):
            raise RuntimeError("cannot notify on un-acquired lock")
        self._notify(1 if n is ONE else max(n, 0))

    def notify_all(self):
        """Wake all threads that wait.

        Raises RuntimeError (this thread does not have the lock), MapClosed.
        """
        self.notify(CONTEXT_MAX)

    cdef uint64_t _notify(self, uint64_t n) except? 0:
        """Tell up to n waiters. The caller has the condition's lock."""
        cdef Op op
        cdef uint64_t told
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        if load_relaxed_u64(&self.cell.limit) == load_relaxed_u64(&self.cell.grants):
            return 0
        begin_use_of_space(self.handle, &op)
        op.map = &self.handle.map
        with nogil:
            told = condition_notify(&op, self.cell, self._index, n)
        end_waiting(self.handle, &op)
        tell_own_loop(self)
        return told

    def _waiting(self):
        """How many threads wait that have not been told: living ones, and dead ones that have not
        been recovered."""
        cdef uint64_t at
        cdef uint64_t count = 0
        expect_open(self.handle)
        for at in range(contexts_usable(&self.handle.map)):    # at most CONTEXT_MAX
            count += waits_for(
                wait_word(context_at(&self.handle.map, at)), self._index, WAITING)
        return count


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class BarrierCore(CellCore):
    """The part of Barrier that is in the core."""

    cdef uint64_t _word(self) except? 0:
        expect_open(self.handle)
        return load_acquire_u64(&self.cell.word)

    @property
    def parties(self):
        """How many parties have to come."""
        expect_open(self.handle)
        return load_relaxed_u64(&self.cell.limit)

    @property
    def n_waiting(self):
        """How many parties have come and wait."""
        cdef uint64_t word = self._word()
        return 0 if barrier_come(word) >= self.cell.limit else barrier_come(word)

    @property
    def broken(self):
        """Whether the barrier is broken."""
        return self._word() & BROKEN != 0

    cdef int _busy(self, Op *op, int turn) except -1:
        """After BUSY: another process is in the middle of a change."""
        if turn >= STEP_TURNS_MAX:
            stopped_in_a_step(self)
        with nogil:
            if not op.map.owner_recover(op):
                sched_yield()
        return 0

    def _end_generation(self, bint broken):
        """Make all that wait return with BrokenBarrierError; then the barrier stays broken, or
        begins anew."""
        cdef Op op
        cdef int turn = 0
        expect_open(self.handle)
        begin_waiter(self.handle, &op)
        try:
            while barrier_end_generation(&op, self.cell, self._index, broken) != OK:
                self._busy(&op, turn)          # ends it
                turn += 1
        finally:
            end_waiter(self.handle, &op)
        tell_own_loop(self)


# How a wait at a barrier ended.
BARRIER_PASSED, BARRIER_BROKE, BARRIER_LATE, BARRIER_LAST, BARRIER_FULL = range(5)


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class BarrierWait(CellWait):
    """One party's wait. come(); then the last to come calls open(), and the others wait(). A task
    calls look() instead of come() and of wait(), until it is true; `how` is then what they return.
    """

    cdef BarrierCore barrier
    cdef readonly int64_t deadline_ns
    cdef uint32_t place
    cdef bint has_come
    cdef readonly int how

    def __cinit__(self, BarrierCore barrier not None, timeout):
        self.barrier = barrier
        self.deadline_ns = wait_end_ns(timeout)
        begin_waiter(barrier.handle, &self.op)
        self.waits = True

    def __dealloc__(self):
        self.end()

    @property
    def place(self):
        """How many parties had come before this one."""
        return self.place

    def come(self):
        """Come as a party, once an earlier generation has ended. Returns BARRIER_LAST,
        BARRIER_PASSED (not the last), or BARRIER_BROKE."""
        cdef BarrierCore barrier = self.barrier
        cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t seen
        cdef uint64_t turn = 0
        cdef int how
        # Ends with the action of the last party before; a signal handler may fork.
        while self.op.generation == process_generation:
            seen = load_acquire_u64(&barrier.cell.word)
            how = self._come_once()
            if how != BARRIER_FULL:
                return how
            if not others_ran(&turn, -1):
                with nogil:
                    barrier_sleep(barrier.cell, barrier_generation(seen), began, -1)
            with nogil:
                dead_waiters_recover(&self.op, barrier._index, WAITING)
            between_slices(barrier.handle, -1)
        return BARRIER_BROKE

    cdef int _come_once(self) except -1:
        """come(), or BARRIER_FULL: an earlier generation has not ended."""
        cdef BarrierCore barrier = self.barrier
        cdef Status status
        cdef int turn = 0
        while True:                            # _busy ends it
            status = barrier_enter(&self.op, barrier.cell, barrier._index, &self.place)
            if status == OK:
                return (BARRIER_LAST if self.place + 1 == barrier.cell.limit
                        else BARRIER_PASSED)
            if status == ABSENT or status == RETRY:
                return BARRIER_BROKE if status == ABSENT else BARRIER_FULL
            barrier._busy(&self.op, turn)
            turn += 1

    def look(self):
        """For a task: whether it has come; and after that, whether it may go on."""
        cdef Status status
        self._expect_parent()
        self._note(&self.barrier.cell.bell, lock_bell_arm(&self.barrier.cell.bell))
        if not self.has_come:
            self.how = self._come_once()
            self.has_come = self.how != BARRIER_FULL
            return self.has_come
        status = barrier_look(&self.op, self.barrier.cell)
        self.how = BARRIER_PASSED if status == OK else BARRIER_BROKE
        return status != RETRY

    cdef bint _is_due(self) noexcept:
        return self.has_come and barrier_look(&self.op, self.barrier.cell) != RETRY

    def open(self):
        """The last party has come: let all go on. Returns BARRIER_PASSED or BARRIER_BROKE."""
        cdef Status status
        cdef int turn = 0
        while self.op.generation == process_generation:        # _busy ends it; the action may fork
            status = barrier_pass(&self.op, self.barrier.cell)
            if status == OK or status == ABSENT:
                tell_own_loop(self.barrier)
                return BARRIER_PASSED if status == OK else BARRIER_BROKE
            self.barrier._busy(&self.op, turn)
            turn += 1
        return BARRIER_BROKE

    def wait(self):
        """Sleep until all have come. Returns BARRIER_PASSED, BARRIER_BROKE, or BARRIER_LATE (the
        time is over)."""
        cdef BarrierCore barrier = self.barrier
        cdef Status status
        cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
        cdef uint64_t generation = wait_turn_of(wait_word(self.op.context))
        cdef uint64_t turn = 0
        while self.op.generation == process_generation:        # a signal handler may fork
            status = barrier_look(&self.op, barrier.cell)
            if status != RETRY:
                return BARRIER_PASSED if status == OK else BARRIER_BROKE
            if not others_ran(&turn, self.deadline_ns):
                with nogil:
                    barrier_sleep(barrier.cell, generation, began, self.deadline_ns)
            with nogil:
                if barrier_look(&self.op, barrier.cell) == RETRY:
                    dead_waiters_recover(&self.op, barrier._index, WAITING)
            if not between_slices(barrier.handle, self.deadline_ns):
                status = barrier_look(&self.op, barrier.cell)
                if status == RETRY:
                    return BARRIER_LATE
        return BARRIER_BROKE

    def give_up(self):
        """Break the barrier, unless all have come. Returns BARRIER_PASSED or BARRIER_BROKE."""
        cdef Status status
        cdef int turn = 0
        while self.op.generation == process_generation:        # _busy ends it
            status = barrier_give_up(&self.op, self.barrier.cell, self.barrier._index)
            if status == OK or status == ABSENT or status == PRESENT:
                tell_own_loop(self.barrier)
                return BARRIER_PASSED if status == PRESENT else BARRIER_BROKE
            self.barrier._busy(&self.op, turn)
            turn += 1
        return BARRIER_BROKE

    def end(self):
        """Wait no more."""
        if self.waits:
            self.waits = False
            self._detach()
            end_waiter(self.barrier.handle, &self.op)
