# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: evicting from a cache before an operation is refused for want of room. Which
# entries go is decided in evict.pxd. A store into a cache that has no credit left does not come
# here: it evicts as it begins (room_reserve).
from map.evict cimport EVICT_LOOKS_MAX, counts_of, entry_used, evict_one, room_reserve

cdef enum:
    EVICTIONS_AT_ONCE = 4      # before an operation yields the processor
    EVICTIONS_SHIFT_MAX = 12   # entries evicted at once: 1, 2, 4, ... 4,096
    RECLAIM_FROM = 3           # evictions before empty blocks are looked for, which takes longer
    EMPTY_TRIES_MAX = 10000    # others have all credits on their way: each try yields to them;
    EMPTY_TRIES_BYTES = 1000   # or all memory, in which an operation of theirs is under way


cdef bint evict_for_room(MapHandle handle, Op *op, Status status, Waiting *waiting) noexcept:
    """After FULL, NO_MEMORY or OUT_OF_BYTES: evict some entries, each time twice as many. True: try
    the operation again. False: it has been tried since a search that found nothing to evict.

    It gives back what the operation had taken, since deletions need the context."""
    cdef Map *map = &handle.map
    cdef uint64_t wanted = 1ULL << (
        waiting.evictions if waiting.evictions < EVICTIONS_SHIFT_MAX else EVICTIONS_SHIFT_MAX)
    cdef uint64_t evicted = 0
    # How many searches in vain look at every element.
    cdef uint64_t searches = 4 + load_relaxed_u64(
        &map.element_pool.shared.frontier) * map.element_pool.capacity // EVICT_LOOKS_MAX
    op.element_filled = False
    with nogil:
        op_give_back(op)
        while evicted < wanted and evict_one(op) == OK:    # at most 4,096 turns
            evicted += 1
        if waiting.evictions >= RECLAIM_FROM and map.objects != NULL:
            objects_reclaim(op)
    waiting.evictions += 1
    if evicted != 0:
        waiting.found_none = waiting.retries = 0
        return True
    waiting.found_none += 1
    recover_those_inside(map)
    if status == OUT_OF_BYTES and op.bytes_wanted <= map.max_bytes:
        searches += EMPTY_TRIES_BYTES
    return waiting.found_none < (EMPTY_TRIES_MAX if status == FULL else searches)
