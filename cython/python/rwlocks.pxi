# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: RWLock as Python sees it. rwlock.pxd describes the protocol.

cdef enum:
    RWLOCK_SLICE_NS = 10000000     # of a waiter: half as long as its hint counts


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class RWLockCore(SharesCore):
    """The part of RWLock that is in the core."""

    def __cinit__(self, *_ignored, **_named):
        self.undo = self.is_rwlock = self._checks = True
        self.slice_ns = RWLOCK_SLICE_NS

    def _set_check(self, bint check):
        self._checks = check

    cdef uint32_t _arm(self, uint64_t writes) noexcept nogil:
        return rwlock_arm(self.cell, writes)

    cdef int _sleep(self, Op *op, uint64_t writes, int64_t until) noexcept nogil:
        return rwlock_sleep(op, self.cell, writes, until)

    cdef void _give_up(self, uint64_t writes) noexcept:
        rwlock_give_up(&self.handle.map, self.cell, writes)

    cdef bint _come_in(self, bint writes, int64_t limit) except -1:
        """False: the time is over."""
        cdef Op op
        cdef uint64_t recovered
        if self._take(writes, limit):
            return True
        if limit != 0:
            return False
        begin_use_of_space(self.handle, &op)   # a recoverer keeps its slot
        recovered = recover_all(&self.handle.map)      # a caller that does not wait has not looked
        end_use(self.handle)
        return recovered != 0 and self._step(False, writes) == OK

    def acquire_read(self, blocking=True, timeout=-1):
        """Come in as a reader; return whether that is done. Arguments as threading.Lock's acquire.
        A writer that waits keeps new readers out, so a thread that reads must not come in again.

        Raises DeadlockError (this thread waits in a circle, without limit), ValueError,
        TooManyProcesses, MapClosed.
        """
        return self._come_in(False, acquire_limit(blocking, timeout))

    def acquire_write(self, blocking=True, timeout=-1):
        """Come in as the only one; return whether that is done. Arguments as threading.Lock's
        acquire.

        Raises DeadlockError (this thread waits in a circle, without limit), ValueError,
        TooManyProcesses, MapClosed.
        """
        return self._come_in(True, acquire_limit(blocking, timeout))

    def release_read(self):
        """Go out as a reader. Any thread of the process may do so for another.

        Raises RuntimeError (this process does not read), MapClosed.
        """
        if unlikely(self._step(True, False) != OK):
            raise RuntimeError(f"cannot release {self!r}: this process does not read")

    def release_write(self):
        """Go out as the writer. Any thread of the process may do so for another.

        Raises RuntimeError (this process does not write), MapClosed.
        """
        if unlikely(self._step(True, True) != OK):
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
