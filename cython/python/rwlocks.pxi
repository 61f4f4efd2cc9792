# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: RWLock as Python sees it. rwlock.pxd is the protocol.

cdef enum:
    RWLOCK_SLICE_NS = 10000000     # of a waiter: half as long as its hint counts


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class RWLockCore(SharesCore):
    """The part of RWLock that is in the core."""

    def __cinit__(self, *_ignored, **_named):
        self.undo = True

    cdef Status _step_rw(self, bint give, bint writes) except? RETRY:
        """Come in or go out, if that needs no wait for others: OK; ABSENT, also if this process has
        nothing to give."""
        cdef Op op
        cdef Status status = RETRY
        cdef int turn
        self._begin(&op)
        for turn in range(STEP_TURNS_MAX):     # each turn, another context has changed the word
            if not give:
                status = rwlock_take(&op, self.cell, writes)
            elif rwlock_has(&op, writes):
                status = rwlock_give(&op, self.cell, writes)
            else:
                status = ABSENT
            if likely(status != RETRY and status != BUSY):
                break
            if status == BUSY and turn > STEP_PAUSES:
                with nogil:                    # as in SemaphoreCore
                    if not op.map.owner_recover(&op):
                        sched_yield()
                self._begin(&op)
        self._end(&op)
        if status == RETRY or status == BUSY:
            raise _errors.LockTimeout(
                f"{self!r}: another process was stopped in the middle of a step")
        return status

    cdef bint _take_rw(self, bint writes, int64_t limit) except -1:
        """Come in, waiting for it. False: the time is over."""
        cdef Op op
        cdef int64_t began = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t until = -1 if limit < 0 or limit > MAX_NS - began else began + limit
        cdef int64_t slice_end
        cdef bint slept = False
        cdef Status status = self._step_rw(False, writes)
        if status == OK:
            return True
        if limit == 0:                         # a dead process may be in the way
            return recover_all(&self.handle.map) != 0 and self._step_rw(False, writes) == OK
        begin_use(self.handle, &op)
        try:
            while status != OK and between_slices(self.handle, until):
                slice_end = clock_ns(CLOCK_MONOTONIC) + RWLOCK_SLICE_NS
                if 0 <= until < slice_end:
                    slice_end = until
                op.map = &self.handle.map
                slept = True
                with nogil:
                    if rwlock_sleep(&op, self.cell, writes, slice_end) > 0:
                        recover_all(op.map)
                status = self._step_rw(False, writes)
        finally:
            if status != OK and slept:
                rwlock_give_up(self.cell, writes)
            end_waiting(self.handle, &op)
        return status == OK

    def acquire_read(self, blocking=True, timeout=-1):
        """Come in as a reader; return whether that is done. Arguments as threading.Lock's acquire.
        A writer that waits keeps new readers out, so a thread that reads must not come in again.

        Raises ValueError, TooManyProcesses, MapClosed.
        """
        return self._take_rw(False, acquire_limit(blocking, timeout))

    def acquire_write(self, blocking=True, timeout=-1):
        """Come in as the only one; return whether that is done. Arguments as threading.Lock's
        acquire.

        Raises ValueError, TooManyProcesses, MapClosed.
        """
        return self._take_rw(True, acquire_limit(blocking, timeout))

    def release_read(self):
        """Go out as a reader. Any thread of the process may do so for another.

        Raises RuntimeError (this process does not read), MapClosed.
        """
        if unlikely(self._step_rw(True, False) != OK):
            raise RuntimeError(f"cannot release {self!r}: this process does not read")

    def release_write(self):
        """Go out as the writer. Any thread of the process may do so for another.

        Raises RuntimeError (this process does not write), MapClosed.
        """
        if unlikely(self._step_rw(True, True) != OK):
            raise RuntimeError(f"cannot release {self!r}: this process does not write")

    @property
    def readers(self):
        """How many readers are in at the moment.

        Raises MapClosed.
        """
        expect_open(self.handle)
        return word_count(load_acquire_u64(&self.cell.word)) & READERS_MASK

    @property
    def has_writer(self):
        """Whether a writer is in at the moment.

        Raises MapClosed.
        """
        expect_open(self.handle)
        return word_count(load_acquire_u64(&self.cell.word)) & WRITER != 0

    @property
    def _orphaned(self):
        expect_open(self.handle)
        return load_acquire_u32(&self.cell.state) & ORPHAN != 0
