# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: waiting between two attempts of an operation.

cdef enum:
    READ_ROUNDS_MAX = 100000   # of READ_TRIES_MAX tries each: more only in a damaged segment

# Sections that this process has open: (device, inode, context) -> (caller's number, task or None),
# the task being one of asyncio that entered it with async with.
cdef dict sections_open = {}
# Claims that this process has: number of a thread or greenlet -> list of Claim (claiming.pxi).
cdef dict claims_open = {}


cdef inline Waiting new_waiting(MapHandle handle) noexcept:
    cdef Waiting waiting
    waiting.turn = waiting.retries = waiting.swept = waiting.began = 0
    waiting.sweep_at = waiting.sweep_next = waiting.passed_on = 0
    waiting.evictions = waiting.found_none = 0
    waiting.limit_ns = handle.map.timeout_ns
    return waiting


cdef object current_task():
    """The task of asyncio that runs in this thread, or None."""
    import asyncio
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


cdef int expect_no_deadlock(MapHandle handle, Op *op, Waiting *waiting) except -1:
    """Raise DeadlockError if this thread, or greenlet, waits for a section that it has open itself.
    A task of asyncio tries, and lets the loop go on between two tries: so it may meet another
    task's."""
    if not word_locked(op.wait_seen):
        return 0
    owner = sections_open.get((handle.map.device, handle.map.inode, word_owner(op.wait_seen)))
    if owner is None or owner[0] != caller_number():
        return 0
    if waiting.limit_ns == 0 and owner[1] is not None and owner[1] is not current_task():
        return 0
    raise _errors.DeadlockError(
        f"map {handle.name!r}: this thread or greenlet has already locked the key (a coroutine is "
        f"not a thread of its own, unless all of them use async with); use the section that is "
        f"open")


cdef int resume(MapHandle handle, Op *op) except -1:
    """Handle signals, then begin again the operation that the caller ended for that."""
    try:
        PyErr_CheckSignals()
    finally:
        if not renew(handle, op) and op.context != NULL:
            op_begin(op)
    if is_closed(handle):
        raise _errors.MapClosed(f"map {handle.name!r} was closed while an operation waited")
    return 0


def section_slice_ns(int64_t waited_ns):
    """How long a waiter for a section that has waited this long sleeps at most, before it looks by
    itself."""
    return owner_slice_ns(waited_ns)


cdef bint section_in_the_way(Op *op) noexcept:
    """After BUSY: whether to sleep on the section's bell. A waiter that starves is let in next, so
    it looks by itself, often (wait.pxd)."""
    return (op.context != NULL and not op.map.read_only and op.starving == 0
            and is_element_word(op.map, op.wait_word)
            and element_state(op.wait_seen) == ELEMENT_LOCKED)


cdef void sleep_for_section(Op *op, Waiting *waiting, int64_t now) noexcept:
    """Sleep until the section ends whose element is in the way, or for some milliseconds; recover
    its owner if that is dead."""
    cdef Map *map = op.map
    cdef uint32_t element = <uint32_t> element_of_word(map, op.wait_word)
    cdef int64_t waited = now - waiting.began
    cdef int64_t until = now + owner_slice_ns(waited)
    cdef uint32_t *bell = bell_word(map.header, bell_of_section(element))
    cdef uint32_t seen
    if waiting.limit_ns >= 0:
        until = sooner_ns(until, waiting.began + waiting.limit_ns)
    waiting_begin(map, element)
    with nogil:
        waiting_say(map, element)
        seen = lock_bell_arm(bell)
        if word_stands(op) and not owner_recover(op):
            if waited >= STARVING_NS:
                starving_say(op, element)
            # Woken, though this section has not ended: it was for another one of the same bell.
            # The waiter behind this one may be the right one. Once for each section is enough.
            if (op.starving == 0 and futex_sleep(bell, seen, until) == 0
                    and waiting.passed_on != op.wait_seen and word_stands(op)):
                waiting.passed_on = op.wait_seen
                bells_section_ring(map.header.key_bells, map.header.lock_bells, element)
    op_begin(op)                               # see waiting_end
    waiting_end(map, element)
    op_end(op)


cdef int wait_turn(MapHandle handle, Op *op, Status status, Waiting *waiting) except -1:
    """Wait between two attempts of an operation. It holds nothing, and its context is outside
    any operation until the next attempt."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if waiting.turn == 0:
        if waiting.began == 0:
            waiting.began = now
        if op.context != NULL and status == BUSY:
            op.context.waits += 1
    if status == BUSY:
        expect_no_deadlock(handle, op, waiting)
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
    if status == BUSY and waiting.turn >= 4 and others_ran_for(
            op, waiting.turn - 4, now - waiting.began, waiting.limit_ns):
        pass
    elif status == BUSY and waiting.turn >= 4 and section_in_the_way(op):
        sleep_for_section(op, waiting, now)
    else:
        with nogil:
            if status == BUSY:
                wait_step(op, waiting.turn, now - waiting.began)
            else:
                sched_yield()
    waiting.turn += 1
    resume(handle, op)
    return 0
