# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the operations on a map as a whole: freezing it, and deleting all its entries.


cdef Status attempt_quiet(Op *op, void *_unused) noexcept:
    """OK if no operation that began before the map was frozen is under way."""
    cdef Status status
    with nogil:
        # Its membarrier orders the store before later operations' loads of it.
        status = OK if contexts_are_quiet(op) else BUSY
        if status == BUSY:
            recover_all(op.map)
    return status


cdef int freeze_map(MapHandle handle) except -1:
    """RHashMap.freeze()."""
    cdef Op op
    cdef Waiting waiting = new_waiting(handle)
    cdef uint64_t generation
    enter_to_write(handle, &op)
    generation = op.generation
    try:
        expect_membarrier(handle)
        if not cas_acq_rel_u64(&handle.map.header.frozen, 0, 1):
            raise _errors.FrozenMap(f"map {handle.name!r} is frozen already")
        try:
            repeat(handle, &op, attempt_quiet, NULL, &waiting)
        except BaseException:
            if generation == process_generation:       # else it is the parent that freezes the map
                store_release_u64(&handle.map.header.frozen, 0)
            raise
        bells_ring_all(&handle.map)            # what is waited for cannot happen any more
    finally:
        leave(handle, &op)
    return 0


cdef Status attempt_clearing(Op *op, void *_unused) noexcept:
    """Take the lock that keeps new keys out."""
    cdef uint64_t held = 0
    return lock_try(op, &op.map.header.clearing, &held)


cdef int clear_map(MapHandle handle) except -1:
    """RHashMap.clear(). Its loop goes on after each deletion, so it does not use repeat(). A child
    that a signal handler forks leaves the rest to its parent, and raises MapBusy."""
    cdef Op op
    cdef Status status
    cdef uint64_t done = 0
    cdef Clearing clearing = Clearing(0, 0, False)
    cdef Waiting waiting = new_waiting(handle)
    enter_to_write(handle, &op)
    try:
        repeat(handle, &op, attempt_clearing, NULL, &waiting)
        try:
            while True:                        # deletes an entry each turn; none are inserted
                status = clear_step(&op, &clearing)
                if status == ABSENT:
                    break
                if status == BUSY or status == RETRY:
                    wait_turn(handle, &op, status, &waiting)
                elif status != OK:
                    raise_status(handle, status, &op)
                else:
                    waiting.turn = waiting.retries = 0
                done += 1
                if done & 0xFFF == 0:
                    op_end(&op)
                    with nogil:
                        sched_yield()
                    resume(handle, &op)
                if not op_holds(&op, &handle.map.header.clearing):
                    raise _errors.MapBusy(
                        f"map {handle.name!r} is being cleared by the parent of this process")
        finally:
            if op_holds(&op, &handle.map.header.clearing):      # a child of fork does not
                lock_release(&handle.map.header.clearing, 0)
    finally:
        leave(handle, &op)
    return 0
