# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: sweeping before an operation is refused for want of room (X1). sweep.pxd.
from sweep cimport (
    SWEEP_FOUND, SWEEP_STEP, SWEEP_TURN, SWEEP_WANTED, sweep_begin, sweep_count, sweep_on,
    sweep_rest, sweep_rests,
)


cdef enum:
    COUNT_PLACES = 4096        # buckets that count_expired looks at: about 0.2 ms


cdef inline bint is_final(Status status) noexcept nogil:
    return status != RETRY and status != BUSY


cdef bint sweep_for_room(MapHandle handle, Op *op, Patience *patience) noexcept:
    """After FULL, NO_MEMORY or OUT_OF_BYTES: remove some of what has expired. True: try again;
    False: a whole turn found nothing, and after that there was still no room; or the map rests.

    Each call looks at SWEEP_STEP buckets at most. What the operation had taken is given back, so
    that removals have the context for themselves."""
    cdef uint64_t removed, before
    if handle.map.timer_word == 0 or patience.swept > SWEEP_TURN:
        return False
    if patience.swept == 0:
        if sweep_rests(&handle.map):
            return False
        patience.sweep_at = sweep_begin(&handle.map)
    op.element_filled = False
    before = patience.sweep_at
    with nogil:
        op_settle(op)
        removed = sweep_on(op, &patience.sweep_at, SWEEP_STEP, SWEEP_WANTED)
    store_relaxed_u64(&handle.map.header.sweep, (patience.sweep_at & (SWEEP_TURN - 1)) | (
        SWEEP_FOUND if removed != 0 else 0))
    patience.swept += patience.sweep_at - before
    if removed != 0:                           # the turn begins anew, from here
        patience.swept = patience.retries = 0
    elif patience.swept >= SWEEP_TURN:
        sweep_rest(&handle.map)
        patience.swept = SWEEP_TURN + 1        # one more try: others may have removed the last
    return True


cdef uint64_t sweep_all(MapHandle handle) except? 0xFFFFFFFFFFFFFFFF:
    """Remove all that has expired; how many. Costs a walk."""
    cdef Op op
    cdef uint64_t order = 0
    cdef uint64_t removed = 0
    while order < SWEEP_TURN:                  # each turn leaves a bucket behind, or removes
        handle._enter_to_write(&op)
        op.options = OP_TYPED
        op.hash = 0
        with nogil:
            op_settle(&op)
            removed += sweep_on(&op, &order, SWEEP_STEP, SWEEP_WANTED)
        handle._leave(&op)
        PyErr_CheckSignals()
    return removed


def count_expired(MapHandle handle not None):
    """About how many entries have expired and still take room: exact in a map of up to 4,096
    buckets at rest, else what that many say of all. 0 in a map without deadlines.

    Raises MapClosed."""
    cdef Op op
    cdef uint64_t seen = SWEEP_TURN
    cdef uint64_t expired
    handle._expect_open()
    if handle.map.timer_word == 0:
        return 0
    handle._enter_to_look(&op)
    with nogil:
        expired = sweep_count(&handle.map, COUNT_PLACES, &seen)
    handle._leave_reading(&op)
    return expired if seen >= SWEEP_TURN or seen == 0 else expired * SWEEP_TURN // seen
