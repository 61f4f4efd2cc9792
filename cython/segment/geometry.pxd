# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# One process's view of a segment: where everything is, computed and never read from the segment.
#
# The header stores the seven numbers that decide the geometry (key_size, value_size, max_entries,
# depot_count, max_bytes, features, layout version). A process that attaches checks them, computes
# everything else itself and keeps it in private memory, so that nothing in the segment is ever
# trusted as a length or a pointer (H1).
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from machine.atomics cimport load_acquire_u64, multiply_high
from segment.status cimport Status, OK, FULL
from segment.layout cimport (
    PAGE_BYTES, LINE_BYTES, HEADER_BYTES, PROCESS_MAX, CONTEXT_MAX, CONTEXT_BYTES, LINK_BASE,
    REGION_PROCESSES, REGION_CONTEXTS, REGION_ELEMENT_WORDS, REGION_LINE_WORDS, REGION_BUCKETS,
    REGION_RING, REGION_COUNT, REGION_PINS, REGION_OBJECT_WORDS, REGION_MAX, FEATURE_CACHE,
    CACHE_HEAD_BYTES, GHOST_PRINTS, GHOST_LINE_BYTES, FEATURE_TAGS, FEATURE_WHOLE, TAG_SLOTS,
    Region, Header, ProcessSlot, Context, Bucket, Element, Depot, Ring, CacheHead, CacheCounts,
)
from segment.classes cimport (
    CLASS_SMALL, CLASS_BLOCKS, CLASS_COUNT, POOL_OBJECTS, PIN_MAX, OBJECTS_HEADER_BYTES, Objects,
    Pin, class_bytes, PARKED_MAX, LINE_SPARE_COUNT, DEPOT_HIGH_MAX, DEPOT_BYTES_MAX, PoolView,
    round_up, power_of_two_at_least, element_stride, pool_view_init, class_view_init, run_view_init,
)

cdef enum:
    CACHE_RING_PLACES_MIN = 32     # a ring is full of what was deleted if few entries come and go
    SEGMENT_BYTES_MAX = 0x400000000000ULL     # 64 TiB: half of what 47-bit addresses can map
    RING_ENTRIES_MAX = 4096    # a watcher that is 10 ms behind 400,000 changes a second loses none
    RING_ENTRIES_MIN = 16      # where keys are long: halved until the ring has this many,
    RING_BYTES_MAX = 1048576   # or is no larger

# Where max_bytes limits the whole segment.
cdef enum:
    CONTEXTS_LEAST = 128       # contexts that the smallest cache has:
    CONTEXTS_SHARE = 64        # a larger one has a 64th of max_bytes for them, up to CONTEXT_MAX
    SPARE_SHARE = 512          # of max_bytes, blocks leave this part to the table,
    SPARE_PAGES_MIN = 4        # at least as many pages as it grows by for one block of elements
    SPARE_PAGES_MAX = 64
    ROOM_PAGES_LEAST = 32      # pages of objects in the smallest: two blocks of any class, or a run

# What this process holds in the segment. It stands in a page that fork wipes: a child finds zeros,
# so it has no slot and no context, and registers itself at its first operation.
cdef struct Local:
    uint64_t idle_context      # index + 1 of an idle context; an operation takes and returns it
    uint64_t registered        # 1 once the process slot is held
    uint64_t process_index
    uint64_t generation        # of this registration: another one after every fork
    uint64_t more_count        # further idle contexts: several threads can be inside operations
    uint32_t more[446]
    uint32_t waiting[64]       # for each class of keys: how many threads wait (bell.pxd)
    uint64_t held              # contexts that hold something of a cell (cell.pxd)

cdef struct Map:
    uint8_t *base
    Header *header
    uint8_t *buckets
    uint8_t *lines
    uint8_t *elements
    uint8_t *contexts
    ProcessSlot *processes
    Depot *depots
    Objects *objects           # NULL: a map without objects
    Depot *object_depots
    Pin *pins
    Ring *ring
    CacheHead *cache           # NULL: a map that evicts nothing
    CacheCounts *cache_counts
    uint32_t *cache_ring
    uint16_t *ghosts
    uint64_t *tag_words        # NULL: its entries have no tags
    Local *local
    uint64_t stride
    uint64_t bucket_max
    uint64_t line_max
    uint64_t element_max
    uint64_t seeds[4]
    uint64_t key_size
    uint64_t value_size
    uint64_t key_words
    uint64_t value_words
    uint64_t context_stride
    uint64_t depot_count
    uint64_t depot_high        # a depot with more free elements than this gives some back
    uint64_t depot_batch
    uint64_t max_entries
    PoolView element_pool
    PoolView line_pool
    PoolView classes[85]
    uint64_t ring_entries
    uint64_t ring_stride
    uint64_t max_bytes         # of objects, or of the whole segment
    bint counts_all            # the latter: FEATURE_WHOLE
    uint64_t pages_most        # that what the budget and the regions count may take
    uint64_t pages_spare       # of these, those that blocks of elements and objects leave
    uint64_t context_max
    uint64_t objects_offset
    uint64_t cache_offset      # 0: a map that evicts nothing
    uint64_t cache_bytes
    uint64_t mark_offset       # of the mark in an element
    uint64_t cache_ring_places  # a power of two
    uint64_t ghost_lines
    bint has_tags
    uint64_t timer_word        # which word of the value is its deadline, plus 1; 0: none is
    uint64_t birth_word        # likewise, in a cache: see births.pxd
    uint64_t tags_word
    uint32_t field_count       # special fields of the value, and which of its words they are
    uint32_t field_words[8]
    uint32_t field_kinds[8]
    uint32_t ref_count         # references among the special fields
    uint32_t ref_words[3]
    bint is_space              # its values are cells (cell.pxd)
    bint words_only            # keys and values are one word each, without special fields
    uint32_t region_count
    uint64_t region_offset[92]
    uint64_t region_bytes[92]
    uint64_t depots_offset
    uint64_t buckets_offset
    uint64_t lines_offset
    uint64_t elements_offset
    uint64_t segment_bytes
    uint64_t device            # of the segment's file, to recognise it again
    uint64_t inode
    uint64_t splits_put_off    # splits that this handle put off because a lock was held
    bint (*owner_recover)(void *op) noexcept nogil     # set by a layer above (attach.pxd); or NULL
    void (*ring_note)(void *op, const uint8_t *key) noexcept nogil     # likewise; see bell.pxd
    int64_t timeout_ns         # how long to wait for a live owner; negative: without limit
    char *path                 # of the segment, to open it again; NULL if it has none
    int fd
    bint read_only             # the handle must not change entries
    bint file_read_only        # the process may not write the file: its operations have no contexts
    bint peeks                 # objects are read through the file (peek.pxd)
    bint use_membarrier

cdef inline uint64_t geometry_place(
        Map *map, uint32_t region, uint64_t offset, uint64_t size) noexcept nogil:
    """Put a region at offset; returns the offset behind it."""
    map.region_offset[region] = offset
    map.region_bytes[region] = round_up(size, PAGE_BYTES)
    return offset + map.region_bytes[region]

cdef inline uint64_t geometry_place_ring(Map *map, uint64_t offset) noexcept nogil:
    """As geometry_place, for the ring."""
    map.ring_stride = 8 + map.key_words * 8
    map.ring_entries = RING_ENTRIES_MAX
    while map.ring_entries > RING_ENTRIES_MIN and (     # at most 8 turns
            map.ring_entries * map.ring_stride > RING_BYTES_MAX):
        map.ring_entries //= 2
    return geometry_place(
        map, REGION_RING, offset, sizeof(Ring) + map.ring_entries * map.ring_stride)

cdef inline Status geometry_compute(Map *map, uint64_t key_size, uint64_t value_size,
                                    uint64_t max_entries, uint64_t depot_count) noexcept nogil:
    """Compute the geometry from these four numbers. FULL if no address space can hold it."""
    return geometry_compute_for(map, 0, key_size, value_size, max_entries, depot_count)

cdef inline Status geometry_compute_for(
        Map *map, uint64_t features, uint64_t key_size, uint64_t value_size, uint64_t max_entries,
        uint64_t depot_count) noexcept nogil:
    """geometry_compute for a map with these features. geometry_add_objects, if the map has objects,
    and geometry_add_cache, if it is a cache, have to follow in this order."""
    cdef uint64_t offset = HEADER_BYTES
    map.key_size = key_size
    map.value_size = value_size
    map.words_only = key_size == 8 and value_size == 8
    map.key_words = (key_size + 7) // 8
    map.value_words = (value_size + 7) // 8
    map.max_entries = max_entries
    map.depot_count = depot_count
    map.mark_offset = 8 + (map.key_words + map.value_words) * 8
    map.stride = element_stride(key_size, value_size + (8 if features & FEATURE_CACHE else 0))
    map.depot_high = DEPOT_HIGH_MAX
    if map.stride > 256:           # like bpf_mem_alloc: at most about 24 KiB are parked
        map.depot_high = DEPOT_BYTES_MAX // map.stride if DEPOT_BYTES_MAX // map.stride > 3 else 3
    map.depot_batch = map.depot_high // 2 if map.depot_high > 3 else 1
    if map.stride * (max_entries + depot_count * PARKED_MAX) > SEGMENT_BYTES_MAX:
        return FULL
    pool_view_init(&map.element_pool, map.stride, 1 + max_entries + depot_count * PARKED_MAX, 0,
                   features & FEATURE_WHOLE)
    map.element_max = map.element_pool.object_count
    map.line_max = max_entries // 6 + LINE_SPARE_COUNT
    if map.line_max > 0xFFFFFFFFULL - LINK_BASE:
        map.line_max = 0xFFFFFFFFULL - LINK_BASE
    pool_view_init(&map.line_pool, LINE_BYTES, map.line_max, 1, False)
    map.line_max = map.line_pool.object_count
    # Growth stops at a mean load of 3.5, where every credit in a depot counts as an entry.
    map.bucket_max = round_up((max_entries + depot_count * PARKED_MAX) * 2 // 7 + 64, 64)
    map.context_stride = round_up(CONTEXT_BYTES + map.value_words * 8, LINE_BYTES)

    offset = geometry_place(map, REGION_PROCESSES, offset, PROCESS_MAX * sizeof(ProcessSlot))
    offset = geometry_place(map, REGION_CONTEXTS, offset, CONTEXT_MAX * map.context_stride)
    map.depots_offset = offset
    offset += round_up(depot_count * sizeof(Depot), PAGE_BYTES)
    offset = geometry_place(map, REGION_ELEMENT_WORDS, offset, map.element_pool.block_count * 8)
    offset = geometry_place(map, REGION_LINE_WORDS, offset, map.line_pool.block_count * 8)
    map.buckets_offset = offset
    offset = geometry_place(map, REGION_BUCKETS, offset, map.bucket_max * LINE_BYTES)
    map.lines_offset = offset
    offset += map.line_pool.block_count * map.line_pool.block_bytes
    map.elements_offset = offset
    offset += map.element_pool.block_count * map.element_pool.block_bytes
    offset = geometry_place_ring(map, offset)
    map.segment_bytes = offset
    map.max_bytes = map.objects_offset = map.cache_offset = 0
    map.counts_all = False
    map.pages_most = map.pages_spare = 0
    map.context_max = CONTEXT_MAX
    map.is_space = False
    map.region_count = REGION_COUNT
    return OK if offset <= SEGMENT_BYTES_MAX else FULL

cdef inline Status geometry_add_objects(Map *map, uint64_t max_bytes) noexcept nogil:
    """Called after geometry_compute, for a map that holds up to max_bytes of objects."""
    cdef uint64_t offset = map.segment_bytes
    cdef uint64_t bytes
    cdef uint32_t which
    cdef PoolView *pool
    if max_bytes > SEGMENT_BYTES_MAX:
        return FULL
    map.max_bytes = max_bytes
    map.pages_most = max_bytes // PAGE_BYTES
    map.objects_offset = offset
    map.region_count = REGION_OBJECT_WORDS + CLASS_COUNT
    offset += OBJECTS_HEADER_BYTES
    offset += round_up(map.depot_count * CLASS_SMALL * sizeof(Depot), PAGE_BYTES)
    offset = geometry_place(map, REGION_PINS, offset, PIN_MAX * sizeof(Pin))
    for which in range(CLASS_COUNT):
        pool = &map.classes[which]
        bytes = class_bytes(which)
        if which < CLASS_BLOCKS:
            class_view_init(pool, which, max_bytes, map.depot_count)
        else:                                  # an object fills more than half of its run
            run_view_init(pool, bytes, 2 * max_bytes // bytes + 2, POOL_OBJECTS + which)
        offset = geometry_place(map, pool.words_region, offset, pool.block_count * 8)
        offset += pool.block_count * pool.block_bytes
    map.segment_bytes = offset
    return OK if offset <= SEGMENT_BYTES_MAX else FULL

cdef inline uint64_t geometry_bytes_most(Map *map) noexcept nogil:
    """The most memory that the whole segment can take: max_bytes, or every part but the blocks of
    objects, and for these max_bytes."""
    cdef uint64_t most = map.segment_bytes + map.max_bytes // PAGE_BYTES * PAGE_BYTES
    cdef uint32_t which
    if map.counts_all:
        return map.max_bytes
    if map.max_bytes != 0:
        for which in range(CLASS_COUNT):
            most -= map.classes[which].block_count * map.classes[which].block_bytes
    return most

cdef inline Status geometry_add_cache(Map *map, uint64_t features) noexcept nogil:
    """Called last, for a cache."""
    map.cache_offset = map.segment_bytes
    map.cache_ring_places = power_of_two_at_least(map.max_entries // 2 + CACHE_RING_PLACES_MIN)
    map.ghost_lines = map.max_entries * 9 // 10 // GHOST_PRINTS + 1
    map.cache_bytes = round_up(
        CACHE_HEAD_BYTES + PROCESS_MAX * sizeof(CacheCounts) + map.cache_ring_places * 4
        + map.ghost_lines * GHOST_LINE_BYTES, PAGE_BYTES)
    map.has_tags = features & FEATURE_TAGS
    if map.has_tags:
        map.cache_bytes += TAG_SLOTS * sizeof(uint64_t)
    map.segment_bytes += map.cache_bytes
    return OK if map.segment_bytes <= SEGMENT_BYTES_MAX else FULL

cdef inline uint64_t pages_fixed(Map *map) noexcept nogil:
    """Pages of a cache that are committed at creation, or can be without a look at the budget: the
    header, depots, slots and contexts, and what geometry_add_cache places."""
    return (HEADER_BYTES + map.region_bytes[REGION_PROCESSES] + map.region_bytes[REGION_CONTEXTS]
            + map.region_offset[REGION_ELEMENT_WORDS] - map.depots_offset
            + map.region_offset[REGION_PINS] - map.objects_offset + map.cache_bytes) // PAGE_BYTES

cdef inline uint64_t geometry_bytes_least(Map *map) noexcept nogil:
    """The least max_bytes of a cache: its fixed part, a page of each region, since values may be of
    all sizes, one more of the table, a block of elements, and room for some objects."""
    return (pages_fixed(map) + REGION_MAX + 1 + SPARE_PAGES_MIN + ROOM_PAGES_LEAST) * PAGE_BYTES + (
        map.element_pool.block_bytes)

cdef inline bint geometry_limit_all(Map *map, uint64_t features) noexcept nogil:
    """Called after all others, if the map has objects: with FEATURE_WHOLE, max_bytes limits the
    memory of the whole segment. False: it is too small for that."""
    cdef uint64_t contexts = map.max_bytes // CONTEXTS_SHARE // map.context_stride
    if not features & FEATURE_WHOLE:
        return True
    contexts = CONTEXTS_LEAST if contexts < CONTEXTS_LEAST else contexts
    map.counts_all = True
    map.context_max = CONTEXT_MAX if contexts > CONTEXT_MAX else contexts
    map.region_bytes[REGION_CONTEXTS] = round_up(map.context_max * map.context_stride, PAGE_BYTES)
    map.pages_spare = map.max_bytes // PAGE_BYTES // SPARE_SHARE
    if map.pages_spare < SPARE_PAGES_MIN:
        map.pages_spare = SPARE_PAGES_MIN
    elif map.pages_spare > SPARE_PAGES_MAX:
        map.pages_spare = SPARE_PAGES_MAX
    if map.max_bytes < geometry_bytes_least(map):
        return False
    map.pages_most = map.max_bytes // PAGE_BYTES - pages_fixed(map)
    return True

cdef inline void geometry_bind_cache(Map *map) noexcept nogil:
    cdef uint8_t *at = map.base + map.cache_offset
    map.cache = NULL
    if map.cache_offset != 0:
        map.cache = <CacheHead *> at
        map.cache_counts = <CacheCounts *> (at + CACHE_HEAD_BYTES)
        map.cache_ring = <uint32_t *> (map.cache_counts + PROCESS_MAX)
        map.ghosts = <uint16_t *> (map.cache_ring + map.cache_ring_places)
        map.tag_words = NULL
        if map.has_tags:
            map.tag_words = <uint64_t *> (at + map.cache_bytes) - TAG_SLOTS

cdef inline void geometry_bind_objects(Map *map) noexcept nogil:
    cdef uint32_t which
    cdef PoolView *pool
    if map.max_bytes == 0:
        map.objects = NULL
        return
    map.objects = <Objects *> (map.base + map.objects_offset)
    map.object_depots = <Depot *> (map.base + map.objects_offset + OBJECTS_HEADER_BYTES)
    map.pins = <Pin *> (map.base + map.region_offset[REGION_PINS])
    for which in range(CLASS_COUNT):
        pool = &map.classes[which]
        pool.shared = &map.objects.classes[which].pool
        pool.words = <uint64_t *> (map.base + map.region_offset[pool.words_region])
        pool.base = map.base + map.region_offset[pool.words_region] + map.region_bytes[
            pool.words_region]

cdef inline void geometry_bind(Map *map, uint8_t *base) noexcept nogil:
    """Turn the offsets into addresses of this process."""
    map.base = base
    map.header = <Header *> base
    map.processes = <ProcessSlot *> (base + map.region_offset[REGION_PROCESSES])
    map.contexts = base + map.region_offset[REGION_CONTEXTS]
    map.ring = <Ring *> (base + map.region_offset[REGION_RING])
    map.depots = <Depot *> (base + map.depots_offset)
    map.buckets = base + map.buckets_offset
    map.lines = base + map.lines_offset
    map.elements = base + map.elements_offset
    map.element_pool.shared = &map.header.element_pool
    map.element_pool.words = <uint64_t *> (base + map.region_offset[REGION_ELEMENT_WORDS])
    map.element_pool.base = map.elements
    map.line_pool.shared = &map.header.line_pool
    map.line_pool.words = <uint64_t *> (base + map.region_offset[REGION_LINE_WORDS])
    map.line_pool.base = map.lines
    geometry_bind_objects(map)
    geometry_bind_cache(map)

cdef inline Region *region_at(Map *map, uint32_t which) noexcept nogil:
    """The words of a region; which must be below region_count."""
    if which < REGION_COUNT:
        return &map.header.regions[which]
    if which == REGION_PINS:
        return &map.objects.pins
    return &map.objects.classes[which - REGION_OBJECT_WORDS].words

cdef inline PoolView *pool_of_kind(Map *map, uint32_t kind) noexcept nogil:
    """A pool by its kind; NULL if the map has none of that kind."""
    if kind < POOL_OBJECTS:
        return &map.line_pool if kind else &map.element_pool
    if map.objects == NULL or kind - POOL_OBJECTS >= CLASS_COUNT:
        return NULL
    return &map.classes[kind - POOL_OBJECTS]

cdef inline Depot *depot_at(Map *map, uint64_t index) noexcept nogil:
    """A depot: those of elements come first, then those of each small class."""
    if index < map.depot_count:
        return map.depots + index
    return map.object_depots + (index - map.depot_count)

cdef inline PoolView *depot_pool(Map *map, uint64_t index) noexcept nogil:
    """The pool whose free objects a depot holds."""
    if index < map.depot_count:
        return &map.element_pool
    return &map.classes[index // map.depot_count - 1]

cdef inline uint64_t depots_of_all(Map *map) noexcept nogil:
    """How many depots the map has, of elements and of objects."""
    return map.depot_count * (1 if map.objects == NULL else 1 + CLASS_SMALL)

cdef inline Bucket *bucket_at(Map *map, uint64_t index) noexcept nogil:
    return <Bucket *> (map.buckets + index * LINE_BYTES)

cdef inline Bucket *line_at(Map *map, uint64_t index) noexcept nogil:
    return <Bucket *> (map.lines + index * LINE_BYTES)

cdef inline Element *element_at(Map *map, uint64_t index) noexcept nogil:
    return <Element *> (map.elements + index * map.stride)

cdef inline uint64_t *element_value(Map *map, Element *element) noexcept nogil:
    return &element.words[0] + map.key_words

cdef inline Context *context_at(Map *map, uint64_t index) noexcept nogil:
    return <Context *> (map.contexts + index * map.context_stride)

cdef inline uint64_t *context_redo(Context *context) noexcept nogil:
    return <uint64_t *> (<uint8_t *> context + CONTEXT_BYTES)

cdef inline Element *pool_object(PoolView *pool, uint64_t index) noexcept nogil:
    # The second product is of index // capacity, which is exact for every index below 2 ** 52.
    return <Element *> (
        pool.base + index * pool.stride + multiply_high(index, pool.inverse) * pool.rest)

# The functions below check what they read from the segment at every call, because another process
# may damage the segment at any time.
cdef inline uint64_t region_usable(Map *map, uint32_t which) noexcept nogil:
    """Bytes of a region that may be touched."""
    # Acquire: pairs with the releases of usable; the memory below it is committed.
    cdef uint64_t usable = load_acquire_u64(&region_at(map, which).usable)
    return usable if usable <= map.region_bytes[which] else map.region_bytes[which]

cdef inline uint64_t contexts_usable(Map *map) noexcept nogil:
    """How many contexts may be touched: at most CONTEXT_MAX."""
    return region_usable(map, REGION_CONTEXTS) // map.context_stride

cdef inline uint64_t buckets_usable(Map *map) noexcept nogil:
    """How many buckets may be touched."""
    return region_usable(map, REGION_BUCKETS) // LINE_BYTES

cdef inline uint64_t processes_usable(Map *map) noexcept nogil:
    """How many process slots may be touched: at most PROCESS_MAX."""
    return region_usable(map, REGION_PROCESSES) // sizeof(ProcessSlot)

cdef inline uint64_t checked_index(PoolView *pool, uint64_t index) noexcept nogil:
    """index, as a context names it; 0, which is never in use, if the pool has no such object."""
    return index if index < pool.object_count else 0
