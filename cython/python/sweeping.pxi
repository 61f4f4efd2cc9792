# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: sweeping before an operation is refused for want of room (X1). The sweep is in
# sweep.pxd.
from map.rest cimport rest_begin, rest_claim, rest_holds
from map.sweep cimport (
    NEXT_HELD, NEXT_UNKNOWN, SWEEP_FOUND, SWEEP_STEP, SWEEP_TURN, SWEEP_WANTED, sweep_begin,
    sweep_count, sweep_on, sweep_rest_max,
)


cdef enum:
    COUNT_PLACES = 4096        # buckets that count_expired looks at: about 0.2 ms
    TURNS_MAX = 3              # that find nothing while others hold buckets with expired entries
    SWEPT = 0x1000000000ULL    # in Waiting.swept: no more turns


cdef inline bint is_final(Status status) noexcept nogil:
    return status != RETRY and status != BUSY


cdef bint sweep_for_room(MapHandle handle, Op *op, Waiting *patience) noexcept:
    """After FULL, NO_MEMORY or OUT_OF_BYTES: remove some expired entries. True: try the operation
    again. False: a whole turn found nothing, and the try after it found no room either; or nothing
    has expired since such a turn.

    Each call looks at SWEEP_STEP buckets at most. It gives back what the operation had taken, since
    removals need the context."""
    cdef Map *map = &handle.map
    cdef uint64_t removed, before
    if map.timer_word == 0 or patience.swept == SWEPT:
        return False
    if patience.swept == 0:                    # a turn begins
        if rest_holds(map, sweep_rest_max(map)):
            return False
        patience.sweep_at = sweep_begin(map)
        patience.sweep_next = rest_claim(map, op.self_index, sweep_rest_max(map))
    op.element_filled = False
    before = patience.sweep_at
    with nogil:
        op_give_back(op)
        removed = sweep_on(
            op, &patience.sweep_at, SWEEP_STEP, SWEEP_WANTED, &patience.sweep_next)
    store_relaxed_u64(&map.header.sweep, (patience.sweep_at & (SWEEP_TURN - 1)) | (
        SWEEP_FOUND if removed != 0 else 0))
    patience.swept += patience.sweep_at - before
    if removed != 0:                           # the next turn begins here
        rest_begin(map, op.self_index, NEXT_UNKNOWN)
        patience.swept = patience.retries = 0
    elif patience.swept % SWEEP_TURN < patience.sweep_at - before:
        rest_begin(map, op.self_index, patience.sweep_next)
        if patience.sweep_next != NEXT_HELD or patience.swept >= TURNS_MAX * SWEEP_TURN:
            patience.swept = SWEPT             # one more try: others may have removed entries
        patience.sweep_next = NEXT_UNKNOWN
    return True


cdef uint64_t sweep_all(MapHandle handle) except? 0xFFFFFFFFFFFFFFFF:
    """Remove all expired entries; return how many. Costs a walk over the map."""
    cdef Op op
    cdef uint64_t next = NEXT_UNKNOWN
    cdef uint64_t order = 0
    cdef uint64_t removed = 0
    while order < SWEEP_TURN:                  # each turn passes a bucket, or removes an entry
        handle._enter_to_write(&op)
        op.options = OP_RAW_FIELDS
        op.hash = 0
        with nogil:
            op_give_back(&op)
            removed += sweep_on(&op, &order, SWEEP_STEP, SWEEP_WANTED, &next)
        handle._leave(&op)
        PyErr_CheckSignals()
    return removed


def count_expired(MapHandle handle not None):
    """Return about how many expired entries still take room: exact in a map of up to 4,096 buckets
    at rest, else extrapolated from as many buckets. 0 in a map without deadlines.

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
