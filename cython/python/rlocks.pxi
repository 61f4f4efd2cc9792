# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: RLock as Python sees it. The context that holds the lock counts how often its
# thread has taken it; other threads see a Lock.


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class RLockCore(MutexCore):
    """The part of RLock that is in the core."""

    cdef inline Context *_of_this_thread(self) noexcept:
        """_mine(), if this thread, or the task that runs in it, has taken the lock."""
        return self._of_this_thread_in(load_acquire_u32(&self.cell.state))

    cdef inline Context *_of_this_thread_in(self, uint32_t seen) noexcept:
        cdef Context *mine = self._mine_in(seen)
        if mine == NULL or not is_own_number(held_word(mine, HELD_THREAD)):
            return NULL
        return mine

    def _take_again(self, uint64_t number):
        """If the task of this number has the lock, take it once more; return whether that is so."""
        cdef Context *mine
        expect_open(self.handle)
        mine = self._mine()
        if mine == NULL or held_word(mine, HELD_THREAD) != number:
            return False
        held_set(mine, HELD_DEPTH, held_word(mine, HELD_DEPTH) + 1)
        return True

    cdef bint _acquire(self, int64_t limit, uint64_t told=WAIT_ENDLESS) except -1:
        cdef Context *mine
        if likely(self._take_free(caller_number())):
            return True
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        mine = self._of_this_thread()
        if mine != NULL:
            held_set(mine, HELD_DEPTH, held_word(mine, HELD_DEPTH) + 1)
            return True
        return self._take(limit, told)

    cdef int _release(self) except -1:
        cdef Context *mine
        cdef uint32_t seen
        cdef uint64_t depth
        if unlikely(is_closed(self.handle)):
            refuse_closed(self.handle)
        seen = load_acquire_u32(&self.cell.state)
        mine = self._of_this_thread_in(seen)
        if unlikely(mine == NULL):
            self._expect_mine(NULL, "cannot release")
        depth = held_word(mine, HELD_DEPTH)
        if depth > 1:
            held_set(mine, HELD_DEPTH, depth - 1)
            return 0
        return self._let_go(seen)

    cdef bint _enter(self) except -1:
        return self._acquire(-1)

    cdef int _leave(self) except -1:
        return self._release()

    cdef bint _owned(self) except -1:
        expect_open(self.handle)
        return self._of_this_thread() != NULL

    def acquire(self, blocking=True, timeout=-1):
        """Take the lock, or take it once more if this thread has it; return whether it is taken.
        Arguments and errors as threading.RLock's. Otherwise as Lock.acquire().

        Raises DeadlockError (a task of this thread's event loop holds it, or this thread waits in
        a circle, without limit), ValueError, TooManyProcesses (4,096 locks and permits of the space
        are held), MapClosed.
        """
        return self._acquire(acquire_limit(blocking, timeout))

    def release(self):
        """Let go of the lock once.

        Raises RuntimeError (this thread does not hold it), MapClosed.
        """
        self._release()

    def __enter__(self):
        return self._acquire(-1)

    def __exit__(self, kind, error, traceback):
        self._release()

    # What threading.Condition needs of an RLock.

    def _is_owned(self):
        return self._owned()

    def _recursion_count(self):
        cdef Context *mine
        expect_open(self.handle)
        mine = self._of_this_thread()
        return 0 if mine == NULL else held_word(mine, HELD_DEPTH)

    def _release_save(self):
        cdef Context *mine
        cdef uint32_t seen
        expect_open(self.handle)
        seen = load_acquire_u32(&self.cell.state)
        mine = self._of_this_thread_in(seen)
        if mine == NULL:
            self._expect_mine(NULL, "cannot release")
        depth = held_word(mine, HELD_DEPTH)
        self._let_go(seen)
        return depth

    def _acquire_restore(self, uint64_t depth):
        self._acquire(-1, 0)
        self._restore_depth(depth)

    def _restore_depth(self, uint64_t depth):
        cdef Context *mine = self._of_this_thread()
        if mine != NULL:                       # else the segment has been damaged since
            held_set(mine, HELD_DEPTH, depth)
