# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: waiting between two attempts of an operation.

cdef enum:
    READ_ROUNDS_MAX = 100000   # of READ_TRIES_MAX tries each: more only in a damaged segment

# Sections that threads of this process have open: (device, inode, context) -> thread.
cdef dict sections_open = {}


cdef inline Waiting new_waiting(MapHandle handle) noexcept:
    cdef Waiting waiting
    waiting.turn = waiting.retries = waiting.swept = waiting.began = 0
    waiting.sweep_at = waiting.sweep_next = 0
    waiting.limit_ns = handle.map.timeout_ns
    return waiting


cdef int expect_no_deadlock(MapHandle handle, Op *op) except -1:
    """Raise DeadlockError if this thread waits for a section that it has open itself."""
    if word_locked(op.wait_seen) and sections_open.get(
            (handle.map.device, handle.map.inode, word_owner(op.wait_seen))
            ) == PyThread_get_thread_ident():
        raise _errors.DeadlockError(
            f"map {handle.name!r}: this thread has already locked the key (a coroutine or "
            f"greenlet is not a thread of its own); use the section that is open")
    return 0


cdef int resume(MapHandle handle, Op *op) except -1:
    """Handle signals, then begin again the operation that the caller ended for that."""
    try:
        PyErr_CheckSignals()
    finally:
        if not renew(handle, op) and op.context != NULL:
            op_begin(op)
    if handle.is_closed:
        raise _errors.MapClosed(f"map {handle.name!r} was closed while an operation waited")
    return 0


cdef int wait_turn(MapHandle handle, Op *op, Status status, Waiting *waiting) except -1:
    """Wait between two attempts of an operation. It holds nothing, and its context is outside
    any operation until the next attempt."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if waiting.turn == 0:
        waiting.began = now
        if op.context != NULL and status == BUSY:
            op.context.waits += 1
    if status == BUSY:
        expect_no_deadlock(handle, op)
        if op.wait_word == &handle.map.header.clearing and waiting.turn > 8 and not (
                op.options & OP_RAW_FIELDS):
            raise _errors.MapBusy(
                f"map {handle.name!r} is being cleared: no key can be inserted until that ends")
    if status == BUSY and waiting.limit_ns >= 0 and (
            now - waiting.began >= waiting.limit_ns) and waiting.turn > 4:
        raise_timeout(handle, op, now - waiting.began)
    waiting.retries = 0 if status == BUSY else waiting.retries + 1
    if waiting.retries > READ_ROUNDS_MAX:         # only if the segment is being damaged
        raise_status(handle, CORRUPT, op)
    if op.context != NULL:
        op_end(op)
    with nogil:
        if status == BUSY:
            wait_step(op, waiting.turn, now - waiting.began)
        else:
            sched_yield()
    waiting.turn += 1
    resume(handle, op)
    return 0
