# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Counting the objects of a map, and checking that every one of them is in its place.
#
# Counting reads the words of blocks and depots, and the lengths of runs. Checking, part of
# check.pxd, reads each object: it is FREE and in one list; LIVE, and one entry refers to it;
# RETIRED; or ALLOC, and its context names it. An object in use that is none of these is lost.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from machine.atomics cimport load_relaxed_u64, load_acquire_u64
from segment.layout cimport (
    PAGE_BYTES, ELEMENT_FREE, ELEMENT_ALLOC, ELEMENT_LIVE, ELEMENT_RETIRED,
    BLOCK_READY, NAME_MAX, Context, Element,
)
from segment.words cimport (
    word_locked, word_owner, element_state, depot_count, depot_head, block_state, block_fresh,
    block_free, block_head,
)
from segment.classes cimport (
    CLASS_SMALL, CLASS_COUNT, RUN_HEADER, POOL_KINDS, ref_make, ref_index, ref_class, PoolView,
)
from segment.geometry cimport (
    Map, depot_at, element_value, context_at, pool_object, region_usable, contexts_usable,
)
from memory.operation cimport Op
from memory.budget cimport budget_allows, budget_word, regions_pages
from memory.region cimport context_relies
from memory.hazard cimport hazard_set, context_names
from memory.pool cimport block_is_empty
from memory.pins cimport pins_usable
from memory.object cimport ref_valid
from memory.peek cimport object_word

cdef struct ObjectFacts:
    uint64_t count             # objects in use
    uint64_t bytes_in_use      # what they take: one in a block its stride, a run its pages
    uint64_t pages             # committed
    uint64_t pages_waiting     # of these, in empty blocks that operations under way keep
    uint64_t pinned            # pins in use

cdef inline uint64_t pool_limit(Map *map, PoolView *pool) noexcept nogil:
    """How many blocks lie below the frontier and have words that may be read."""
    cdef uint64_t limit = load_relaxed_u64(&pool.shared.frontier)
    cdef uint64_t usable = region_usable(map, pool.words_region) // 8
    limit = limit if limit < usable else usable
    return limit if limit < pool.block_count else pool.block_count

cdef inline uint64_t pages_seen(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Pages of a block that was READY. A run is named by the hazard before it is read. A run whose
    block is held may be losing its memory, and counts as one page."""
    cdef uint64_t pages
    if pool.capacity > 1:
        return pool.first_bytes // PAGE_BYTES
    if op.context != NULL:
        hazard_set(op, ref_make(block, pool.stride - RUN_HEADER))
    if word_locked(load_acquire_u64(pool.words + block)):
        return 1
    pages = object_word(op.map, &pool_object(pool, block).words[1])
    return pages if pages != 0 else 1

cdef inline bint context_keeps(
        Map *map, const Context *own, uint64_t index, PoolView *pool,
        uint64_t block) noexcept nogil:
    """Whether a context other than own would keep this process from giving an empty block back."""
    cdef Context *context = context_at(map, index)
    return context != own and (context_names(context, pool, block) or (
        not map.use_membarrier and not map.read_only and context_relies(context)))

cdef inline bint block_is_kept(
        Map *map, const Context *own, PoolView *pool, uint64_t block) noexcept nogil:
    cdef uint64_t index
    for index in range(contexts_usable(map)):  # at most CONTEXT_MAX
        if context_keeps(map, own, index, pool, block):
            return True
    return False

cdef inline bint context_keeps_any(Map *map, const Context *own, uint64_t index) noexcept nogil:
    """Whether a context keeps any empty block of objects."""
    cdef uint64_t block
    cdef uint32_t which
    cdef PoolView *pool
    for which in range(CLASS_COUNT):
        pool = &map.classes[which]
        for block in range(pool_limit(map, pool)):
            if block_is_empty(pool, block, load_acquire_u64(pool.words + block)) and (
                    context_keeps(map, own, index, pool, block)):
                return True
    return False

cdef inline void class_count(Op *op, uint32_t which, ObjectFacts *facts) noexcept nogil:
    cdef Map *map = op.map
    cdef PoolView *pool = &map.classes[which]
    cdef uint64_t used = 0
    cdef uint64_t block, index, word, pages
    for block in range(pool_limit(map, pool)):
        word = load_acquire_u64(pool.words + block)
        if block_state(word) != BLOCK_READY:
            continue
        pages = pages_seen(op, pool, block)
        facts.pages += pages
        if block_is_empty(pool, block, word) and block_is_kept(map, op.context, pool, block):
            facts.pages_waiting += pages
        used += block_fresh(word) - block_free(word) - (pool.reserved if block == 0 else 0)
        if pool.capacity == 1 and block_fresh(word) != block_free(word):
            facts.bytes_in_use += pages * PAGE_BYTES
    if which < CLASS_SMALL:
        for index in range(map.depot_count):
            used -= depot_count(load_acquire_u64(
                &depot_at(map, (which + 1) * map.depot_count + index).word))
    if pool.capacity > 1:
        facts.bytes_in_use += used * pool.stride
    facts.count += used

cdef inline void objects_count(Op *op, ObjectFacts *facts) noexcept nogil:
    """Count all objects. Reads the word of every block. Exact when no process writes. The
    operation's hazard names one run after another."""
    cdef Map *map = op.map
    cdef uint32_t which
    cdef uint64_t index
    facts.count = facts.bytes_in_use = facts.pages = facts.pages_waiting = facts.pinned = 0
    for which in range(CLASS_COUNT):
        class_count(op, which, facts)
    for index in range(pins_usable(map)):
        facts.pinned += load_acquire_u64(&map.pins[index].ref) != 0

cdef inline uint64_t pool_pages(Map *map, PoolView *pool) noexcept nogil:
    """Pages of the blocks of elements, or of lines, that are READY."""
    cdef uint64_t pages = 0
    cdef uint64_t block
    for block in range(pool_limit(map, pool)):
        if block_state(load_acquire_u64(pool.words + block)) == BLOCK_READY:
            pages += pool.block_bytes // PAGE_BYTES
    return pages

# The check of one class: seen has a byte for each of its objects below limit.
cdef struct ClassCheck:
    PoolView *pool
    uint32_t which
    uint64_t limit
    uint8_t *seen
    uint64_t lost              # index + 1 of an object that is not in its place, or 0

cdef inline void class_name(ClassCheck *check, uint64_t index, bint right) noexcept nogil:
    """Note that something names an object. right: whether it is in the state that this requires."""
    if index >= check.limit or check.seen[index] or not right:
        check.lost = index + 1
    else:
        check.seen[index] = 1

cdef inline void class_lists(Map *map, ClassCheck *check) noexcept nogil:
    """Note the free objects, in blocks and in depots."""
    cdef PoolView *pool = check.pool
    cdef uint64_t block, word, at, index
    cdef uint32_t _
    for block in range(pool_limit(map, pool)):
        word = load_acquire_u64(pool.words + block)
        if word_locked(word):                  # its memory may be going; at rest none is held
            check.lost = block * pool.capacity + 1
            return
        at = block * pool.capacity + block_head(word)
        for _ in range(block_free(word)):
            if at >= check.limit:
                check.lost = at + 1
                return
            class_name(check, at, element_state(
                object_word(map, &pool_object(pool, at).header)) == ELEMENT_FREE)
            at = object_word(map, &pool_object(pool, at).words[0])
    if check.which >= CLASS_SMALL:
        return
    for index in range(map.depot_count):
        word = load_acquire_u64(&depot_at(map, (check.which + 1) * map.depot_count + index).word)
        at = depot_head(word)
        for _ in range(depot_count(word)):
            if at >= check.limit:
                check.lost = at + 1
                return
            class_name(check, at, element_state(
                object_word(map, &pool_object(pool, at).header)) == ELEMENT_FREE)
            at = object_word(map, &pool_object(pool, at).words[0])

cdef inline void class_entries(
        Map *map, ClassCheck *check, const uint8_t *element_seen,
        uint64_t element_limit) noexcept nogil:
    """Note the objects that entries refer to. element_seen is 2 for elements in chains."""
    cdef uint64_t index, ref
    cdef uint32_t slot
    cdef Element *element
    for index in range(element_limit):
        if element_seen[index] != 2:
            continue
        element = pool_object(&map.element_pool, index)
        for slot in range(map.ref_count):
            ref = element_value(map, element)[map.ref_words[slot]]
            if ref != 0 and ref_class(ref) == check.which:
                class_name(
                    check, ref_index(ref), ref_valid(map, ref) and ref_index(ref) < check.limit
                    and element_state(object_word(
                        map, &pool_object(check.pool, ref_index(ref)).header)) == ELEMENT_LIVE)

cdef inline void class_unnamed(Map *map, ClassCheck *check) noexcept nogil:
    """Look at the objects in use that nothing has named so far. One that is neither retired nor
    owned by a context is lost."""
    cdef PoolView *pool = check.pool
    cdef uint64_t block, word, index, header, owner
    cdef bint found
    cdef uint32_t slot
    for block in range(pool_limit(map, pool)):
        word = load_acquire_u64(pool.words + block)
        if block_state(word) != BLOCK_READY or word_locked(word):
            continue
        for index in range(block * pool.capacity + (pool.reserved if block == 0 else 0),
                           block * pool.capacity + block_fresh(word)):
            if index >= check.limit or check.seen[index]:
                continue
            header = object_word(map, &pool_object(pool, index).header)
            owner = word_owner(header)
            found = element_state(header) == ELEMENT_RETIRED
            if element_state(header) == ELEMENT_ALLOC and word_locked(header) and (
                    owner < contexts_usable(map)):
                for slot in range(NAME_MAX):
                    if context_at(map, owner).owned_refs[slot] != 0 and (
                            ref_class(context_at(map, owner).owned_refs[slot]) == check.which
                            and ref_index(context_at(map, owner).owned_refs[slot]) == index):
                        found = True
            if not found:
                check.lost = index + 1

cdef inline uint64_t class_check(
        Map *map, uint32_t which, const uint8_t *element_seen,
        uint64_t element_limit) noexcept nogil:
    """0 if every object of a class is in its place; else the index of one that is not, plus 1."""
    cdef ClassCheck check
    check.pool = &map.classes[which]
    check.which = which
    check.limit = pool_limit(map, check.pool) * check.pool.capacity
    check.lost = 0
    check.seen = <uint8_t *> calloc(check.limit + 1, 1)
    if check.seen == NULL:
        return 0                               # no private memory: nothing is found
    class_lists(map, &check)
    class_entries(map, &check, element_seen, element_limit)
    class_unnamed(map, &check)
    free(check.seen)
    return check.lost

cdef inline uint64_t objects_lost(
        Map *map, const uint8_t *element_seen, uint64_t element_limit) noexcept nogil:
    """0 if every object is in its place; else one that is not, as index * POOL_KINDS + class, plus
    1."""
    cdef uint64_t lost
    cdef uint32_t which
    for which in range(CLASS_COUNT):
        lost = class_check(map, which, element_seen, element_limit)
        if lost != 0:
            return (lost - 1) * POOL_KINDS + which + 1
    return 0

cdef inline uint64_t budget_error(Map *map, const Context *own) noexcept nogil:
    """How many pages the budget counts beyond those that are committed, or beyond those that
    max_bytes allows; 1 while the budget is held."""
    cdef ObjectFacts facts
    cdef uint64_t counted
    cdef Op op
    op.map = map
    op.context = <Context *> own
    objects_count(&op, &facts)
    if word_locked(map.objects.budget):
        return 1
    counted = budget_word(&map.objects.budget)
    if map.counts_all:
        facts.pages += pool_pages(map, &map.element_pool) + pool_pages(map, &map.line_pool)
    if not budget_allows(map, counted, 0, 0):
        return counted + regions_pages(map) - map.pages_most
    return counted - facts.pages
