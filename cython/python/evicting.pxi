# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: evicting from a cache before an operation is refused for lack of room.
# evict.pxd decides which entries are evicted. A store into a cache that has no credit left does not
# come here: it evicts as it begins (room_reserve).
from map.evict cimport (
    EVICT_LOOKS_MAX, cost_ns, cost_of, counts_of, element_mark, entry_used, evict_one, room_reserve,
)
from map.evict_block cimport blocks_evict, holes_gather
from memory.budget cimport bytes_can_be_free

cdef enum:
    EVICTIONS_AT_ONCE = 4      # before an operation yields the processor
    EVICTIONS_SHIFT_MAX = 12   # entries evicted at once: 1, 2, 4, ... 4,096
    RECLAIM_FROM = 3           # evictions before empty blocks are looked for, which takes longer
    EMPTY_TRIES_MAX = 10000    # others have all credits on their way: each try yields to them;
    EMPTY_TRIES_BYTES = 1000   # or all memory, in which an operation of theirs is under way


cdef enum:                     # the places of the counts in CacheCounts, in words
    COUNT_HITS = 0
    COUNT_MISSES = 1
    COUNT_UNREADABLE = 5
    COUNT_COMPUTED = 6
    COUNT_WAITED = 7
    COUNT_SETS = 8
    COUNT_REJECTED = 9
    COUNT_TAKEN_OVER = 10
    COUNT_STOLEN = 11
    COUNT_NOT_STORED = 12
    COUNT_COMPUTING_NS = 13
    COUNT_STALE_HITS = 14
    COUNT_EVICTED_BLOCK = 15
    COUNT_ALL = 16


cdef inline void count_more(MapHandle handle, int what, uint64_t more) noexcept:
    """Add to a count of this process."""
    cdef uint64_t *word
    if not is_closed(handle) and not handle.map.read_only and handle.map.local.registered:
        word = <uint64_t *> counts_of(&handle.map) + what
        if FREE_THREADED:
            add_relaxed_u64(word, more)
        else:                                  # the GIL is held, so the count has one writer
            store_relaxed_u64(word, load_relaxed_u64(word) + more)


cdef inline void count_one(MapHandle handle, int what) noexcept:
    count_more(handle, what, 1)


cdef inline void count_hit(MapHandle handle) noexcept:
    """count_one inside an operation that may write, which the process has a slot for."""
    cdef uint64_t *word = <uint64_t *> counts_of(&handle.map) + COUNT_HITS
    if FREE_THREADED:
        add_relaxed_u64(word, 1)
    else:                                      # the GIL is held, so the count has one writer
        store_relaxed_u64(word, load_relaxed_u64(word) + 1)


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
    if status == OUT_OF_BYTES and not bytes_can_be_free(map, op.bytes_wanted):
        return False                           # an empty cache would not have so many
    op.element_filled = False
    with nogil:
        op_give_back(op)
        if status != FULL and map.objects != NULL:
            evicted = blocks_evict(
                op, (op.bytes_wanted + PAGE_BYTES - 1) // PAGE_BYTES)
        if evicted == 0:
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
    if status == OUT_OF_BYTES:
        searches += EMPTY_TRIES_BYTES
    return waiting.found_none < (EMPTY_TRIES_MAX if status == FULL else searches)
