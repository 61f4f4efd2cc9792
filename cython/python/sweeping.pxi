# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: sweeping before an operation is refused for want of room (X1). The sweep is in
# sweep.pxd.
from map.rest cimport rest_begin, rest_claim, rest_forget, rest_holds
from map.sweep cimport (
    NEXT_HELD, NEXT_UNKNOWN, SWEEP_FOUND, SWEEP_STEP, SWEEP_TURN, SWEEP_WANTED, sweep_begin,
    sweep_count, sweep_on, sweep_rest_max,
)


cdef enum:
    COUNT_PLACES = 4096        # buckets that count_expired looks at: about 0.2 ms
    TURNS_MAX = 3              # that find nothing while others hold buckets with expired entries
    SWEPT = 0x1000000000ULL    # in Waiting.swept: no more turns


cdef bint sweep_for_room(MapHandle handle, Op *op, Waiting *waiting) noexcept:
    """After FULL, NO_MEMORY or OUT_OF_BYTES: remove some expired entries. True: try the operation
    again. False: a whole turn found nothing, and the try after it found no room either; or nothing
    has expired since such a turn.

    Each call looks at SWEEP_STEP buckets at most. It gives back what the operation had taken, since
    removals need the context."""
    cdef Map *map = &handle.map
    cdef uint64_t removed, before
    if map.timer_word == 0 or waiting.swept == SWEPT:
        return False
    if waiting.swept == 0:                    # a turn begins
        if rest_holds(map, sweep_rest_max(map)):
            return False
        waiting.sweep_at = sweep_begin(map)
        waiting.sweep_next = rest_claim(map, op.self_index, sweep_rest_max(map))
    op.element_filled = False
    before = waiting.sweep_at
    with nogil:
        op_give_back(op)
        removed = sweep_on(
            op, &waiting.sweep_at, SWEEP_STEP, SWEEP_WANTED, &waiting.sweep_next)
    store_relaxed_u64(&map.header.sweep, (waiting.sweep_at & (SWEEP_TURN - 1)) | (
        SWEEP_FOUND if removed != 0 else 0))
    waiting.swept += waiting.sweep_at - before
    if removed != 0:                           # the next turn begins here
        rest_begin(map, op.self_index, NEXT_UNKNOWN)
        waiting.swept = waiting.retries = 0
    elif waiting.swept % SWEEP_TURN < waiting.sweep_at - before:
        rest_begin(map, op.self_index, waiting.sweep_next)
        if waiting.sweep_next != NEXT_HELD or waiting.swept >= TURNS_MAX * SWEEP_TURN:
            waiting.swept = SWEPT             # one more try: others may have removed entries
        waiting.sweep_next = NEXT_UNKNOWN
    return True


cdef void sweep_give_up(MapHandle handle, Op *op, Waiting *waiting) noexcept:
    """The operation ends, perhaps within a turn because others have made room."""
    if waiting.swept != 0 and waiting.swept != SWEPT:
        rest_forget(&handle.map, op.self_index)
    waiting.swept = 0


cdef uint64_t expire_all(MapHandle handle) except? 0xFFFFFFFFFFFFFFFF:
    """Remove all expired entries; return how many. Costs a walk over the map."""
    cdef Op op
    cdef uint64_t next = NEXT_UNKNOWN
    cdef uint64_t order = 0
    cdef uint64_t removed = 0
    expect_open(handle)
    if handle.map.timer_word == 0:
        return 0
    while order < SWEEP_TURN:                  # each turn passes a bucket, or removes an entry
        enter_to_write(handle, &op)
        op.options = OP_RAW_FIELDS
        op.hash = 0
        with nogil:
            op_give_back(&op)
            removed += sweep_on(&op, &order, SWEEP_STEP, SWEEP_WANTED, &next)
        leave(handle, &op)
        PyErr_CheckSignals()
    return removed
