# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Checking every structural invariant by walking the whole map.
#
# This is meant for a map at rest. If another context is inside an operation at the beginning or the
# end of the walk, or was inside one between them, the report says so (exact is False), and the
# caller tries again or takes that into account: a problem that is found while others write may be
# an operation under way.
#
#   table     of the buckets below N exactly those exist into which their parents have been split,
#             each at the level that its last split or its creation gave it; no bucket from N on
#             exists; a bucket that does not exist is empty
#   chains    gaps only in a bucket without link; a line has two elements or more; tags are hashes;
#             every entry is in the right bucket; no key twice; elements LIVE, each named once
#   depots    as many elements as the depot counts, FREE, each in one place
#   blocks    holes are empty; a free list has free elements; fresh elements were never used
#   leaks     every element that is not fresh is named by a chain, a depot, a block or a context
#   lines     likewise: each is linked, in a block, or stashed by a context
#   credits   header + depots + entries + those in contexts == max_entries
#   objects   each named once, in the state that fits (check_objects.pxd); the budget adds up
#   locks     none is held, except by a section, the end of several sections, or a clear() whose
#             context is at rest
#   journal   a context that names a lead holds its element, and the lead is committed
#   births    of a cache: no number of births.pxd is greater than that of the invalidations
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from machine.atomics cimport load_relaxed_u64, load_acquire_u64, load_relaxed_u32, words_equal
from machine.hashing cimport hash_key
from segment.layout cimport (
    LINE_BYTES, SLOT_COUNT, LINK_SLOT, PAYLOAD_SHIFT, LOCK_MASK, ELEMENT_FREE, ELEMENT_LIVE,
    ELEMENT_ULOCK, ELEMENT_LOCKED, BLOCK_HOLE, BLOCK_READY, TAG_SLOTS, Context, Bucket, Element,
)
from segment.words cimport (
    word_locked, word_owner, word_held_by, bucket_level_plus1, element_state, depot_count,
    depot_credit, depot_head, block_state, block_fresh, block_free, block_head, target_index,
    target_lead,
)
from segment.classes cimport PoolView
from segment.geometry cimport (
    Map, region_at, bucket_at, element_at, element_value, context_at, pool_object, contexts_usable,
    buckets_usable, checked_index,
)
from map.chain cimport chain_next, line_used
from map.table cimport level_covers, bucket_fits
from map.journal cimport journal_is_committed
from processes.check_objects cimport pool_limit, objects_lost, budget_error

cdef enum Problem:
    SOUND = 0
    BAD_LEVEL = 1
    BAD_EMPTY_BUCKET = 2
    BAD_CHAIN_SHAPE = 3
    BAD_INDEX = 4
    BAD_ELEMENT_STATE = 5
    BAD_TAG = 6
    BAD_PLACE = 7
    DUPLICATE_KEY = 8
    NAMED_TWICE = 9
    BAD_DEPOT = 10
    BAD_BLOCK = 11
    LEAKED = 12
    BAD_CREDITS = 13
    LOCK_HELD = 14
    BAD_TABLE = 15
    NO_PRIVATE_MEMORY = 16
    LOST_OBJECT = 17
    BAD_BUDGET = 18
    BAD_JOURNAL = 19
    BAD_BIRTH = 20

cdef struct Report:
    Problem problem
    uint64_t where             # index of the bucket, element, depot, block, line or context
    bint exact
    uint64_t entries
    uint64_t buckets
    uint64_t lines
    uint64_t chain_longest
    uint64_t parked            # in depots
    uint64_t free_in_blocks
    uint64_t owned_by_contexts
    uint64_t credits           # header and depots
    uint8_t *element_seen
    uint8_t *line_seen
    uint64_t element_limit     # elements from here on were never used
    uint64_t line_limit


cdef inline bint report_add(Report *report, Problem problem, uint64_t where) noexcept nogil:
    """Note the first problem. Always False, for the caller to return."""
    if report.problem == SOUND:
        report.problem = problem
        report.where = where
    return False

cdef inline bint see_element(Map *map, Report *report, uint64_t index) noexcept nogil:
    if index == 0 or index >= report.element_limit:
        return report_add(report, BAD_INDEX, index)
    if report.element_seen[index]:
        return report_add(report, NAMED_TWICE, index)
    report.element_seen[index] = 1
    return True

cdef inline bint see_line(Report *report, uint64_t index) noexcept nogil:
    if index == 0 or index >= report.line_limit:
        return report_add(report, BAD_INDEX, index)
    if report.line_seen[index]:
        return report_add(report, NAMED_TWICE, index)
    report.line_seen[index] = 1
    return True

cdef inline bint context_is_used(Map *map, uint64_t context) noexcept nogil:
    return context < contexts_usable(map) and context_at(map, context).owner != 0

cdef inline bint context_has_target(Map *map, uint64_t context, uint64_t index) noexcept nogil:
    """Whether a context is in use and names this element: a section may be open on it."""
    return context_is_used(map, context) and (
        target_index(context_at(map, context).target) == index)

cdef inline bint context_in_journal(
        Map *map, uint64_t context, uint64_t index) noexcept nogil:
    """Whether a context that names this element is a member of a journal."""
    return context_has_target(map, context, index) and (
        target_lead(context_at(map, context).target) != 0)

cdef inline bint member_is_sound(Map *map, uint64_t index) noexcept nogil:
    """Whether a context that rests and names a lead waits in a committed journal: for the bucket of
    a key that is to be deleted."""
    cdef Context *context = context_at(map, index)
    cdef uint64_t element = checked_index(&map.element_pool, target_index(context.target))
    return journal_is_committed(map, context) and element != 0 and (
        word_held_by(element_at(map, element).header, <uint32_t> index))

cdef inline bint check_entry(
        Map *map, Report *report, uint64_t bucket, uint32_t level_plus1, uint32_t tag,
        uint64_t index) noexcept nogil:
    cdef Element *element
    if not see_element(map, report, index):
        return False
    element = element_at(map, index)
    if element_state(element.header) != ELEMENT_LIVE and not (
            element_state(element.header) == ELEMENT_LOCKED
            and context_has_target(map, word_owner(element.header), index)) and not (
            element_state(element.header) == ELEMENT_ULOCK
            and context_in_journal(map, word_owner(element.header), index)):
        return report_add(report, BAD_ELEMENT_STATE, index)
    if hash_key(map.seeds, <uint8_t *> &element.words[0], map.key_size) != tag:
        return report_add(report, BAD_TAG, index)
    if not level_covers(level_plus1, bucket, tag):
        return report_add(report, BAD_PLACE, index)
    report.element_seen[index] = 2             # so class_entries follows its references
    report.entries += 1
    return True

cdef inline bint check_no_twin(
        Map *map, Report *report, Bucket *bucket, Bucket *line, uint32_t slot) noexcept nogil:
    """No earlier slot of the chain has the same key."""
    cdef uint32_t index = load_relaxed_u32(&line.indices[slot])
    cdef Element *element = element_at(map, checked_index(&map.element_pool, index))
    cdef Bucket *other = bucket
    cdef uint64_t _
    cdef uint32_t at, twin
    for _ in range(map.line_max + 1):
        for at in range(SLOT_COUNT):
            if other == line and at == slot:
                return True
            twin = load_relaxed_u32(&other.indices[at])
            if (other.tags[at] == line.tags[slot] and twin != 0 and twin < map.element_max
                    and words_equal(&element_at(map, twin).words[0],
                                    &element.words[0], map.key_words * 8)):
                return report_add(report, DUPLICATE_KEY, index)
        other = chain_next(map, other)
        if other == NULL:
            return True
    return True

cdef inline bint line_is_dense(Bucket *line) noexcept nogil:
    cdef uint32_t slot
    for slot in range(line_used(line)):
        if line.indices[slot] == 0:
            return False
    return True

cdef inline bint check_chain(Map *map, Report *report, uint64_t index) noexcept nogil:
    cdef Bucket *bucket = bucket_at(map, index)
    cdef Bucket *line = bucket
    cdef Bucket *following
    cdef uint32_t level_plus1 = bucket_level_plus1(bucket.header)
    cdef uint32_t slot
    cdef uint64_t _, length = 0
    for _ in range(map.line_max + 1):
        following = chain_next(map, line)
        if following != NULL and line_used(line) != SLOT_COUNT:
            return report_add(report, BAD_CHAIN_SHAPE, index)
        if line != bucket and (line_used(line) < 2 or not line_is_dense(line)):
            return report_add(report, BAD_CHAIN_SHAPE, index)
        for slot in range(SLOT_COUNT):
            if line.indices[slot] == 0 or (slot == LINK_SLOT and following != NULL):
                continue
            length += 1
            if not check_entry(map, report, index, level_plus1, line.tags[slot],
                               line.indices[slot]):
                return False
            if not check_no_twin(map, report, bucket, line, slot):
                return False
        if following == NULL:
            break
        if not see_line(report, <uint64_t> (<uint8_t *> following - map.lines) // LINE_BYTES):
            return False
        if element_state(following.header) != ELEMENT_LIVE or word_locked(following.header):
            return report_add(report, BAD_CHAIN_SHAPE, index)
        report.lines += 1
        line = following
    if length > report.chain_longest:
        report.chain_longest = length
    return True

cdef inline bint check_table(Map *map, Report *report) noexcept nogil:
    cdef uint64_t word = load_acquire_u64(&map.header.table)
    cdef uint64_t limit = buckets_usable(map)
    cdef uint64_t index
    cdef Bucket *bucket
    report.buckets = word >> PAYLOAD_SHIFT
    if report.buckets > limit or report.buckets > map.bucket_max or report.buckets < 4 or (
            word & LOCK_MASK):
        return report_add(report, BAD_TABLE, report.buckets)
    for index in range(limit if limit < map.bucket_max else map.bucket_max):
        bucket = bucket_at(map, index)
        if word_locked(bucket.header):
            return report_add(report, LOCK_HELD, index)
        if index < report.buckets and not bucket_fits(map, report.buckets, index):
            return report_add(report, BAD_LEVEL, index)
        if index >= report.buckets or bucket_level_plus1(bucket.header) == 0:
            if bucket_level_plus1(bucket.header) != 0 or line_used(bucket) != 0:
                return report_add(report, BAD_EMPTY_BUCKET, index)
        elif not check_chain(map, report, index):
            return False
    return True

cdef inline bint check_depots(Map *map, Report *report) noexcept nogil:
    cdef uint64_t index, word, at
    cdef uint32_t _
    report.credits = load_relaxed_u64(&map.header.credits) >> PAYLOAD_SHIFT
    word = load_relaxed_u64(&map.header.clearing)
    if word_locked(map.header.credits) or (
            word_locked(word) and not context_is_used(map, word_owner(word))):
        return report_add(report, LOCK_HELD, 0)
    for index in range(map.depot_count):
        word = load_acquire_u64(&map.depots[index].word)
        if word_locked(word):
            return report_add(report, LOCK_HELD, index)
        report.credits += depot_credit(word)
        at = depot_head(word)
        for _ in range(depot_count(word)):
            if not see_element(map, report, at):
                return False
            if element_state(element_at(map, at).header) != ELEMENT_FREE:
                return report_add(report, BAD_DEPOT, index)
            at = element_at(map, at).words[0]
            report.parked += 1
    return True

cdef inline bint check_block(
        Map *map, Report *report, PoolView *pool, uint64_t block) noexcept nogil:
    cdef uint64_t word = load_acquire_u64(pool.words + block)
    cdef uint64_t at = block * pool.capacity + block_head(word)
    cdef uint64_t index
    cdef uint32_t _
    if word_locked(word):
        return report_add(report, LOCK_HELD, block)
    if block_state(word) == BLOCK_HOLE:
        return word == 0 or report_add(report, BAD_BLOCK, block)
    if block_state(word) != BLOCK_READY or block_fresh(word) > pool.capacity:
        return report_add(report, BAD_BLOCK, block)
    for _ in range(block_free(word)):
        if at // pool.capacity != block:
            return report_add(report, BAD_BLOCK, block)
        if not (see_line(report, at) if pool.kind else see_element(map, report, at)):
            return False
        if element_state(pool_object(pool, at).header) != ELEMENT_FREE:
            return report_add(report, BAD_BLOCK, block)
        at = pool_object(pool, at).words[0]
        report.free_in_blocks += pool.kind == 0
    if (block + 1) * pool.capacity > (report.line_limit if pool.kind else report.element_limit):
        return report_add(report, BAD_BLOCK, block)        # check_map saw fewer blocks
    for index in range(block * pool.capacity, (block + 1) * pool.capacity):
        if (index >= block * pool.capacity + block_fresh(word)) == (
                (report.line_seen if pool.kind else report.element_seen)[index] != 0):
            if index != 0:                     # fresh and named, or used and not named
                return report_add(report, LEAKED, index)
    return True

cdef inline bint check_contexts(Map *map, Report *report) noexcept nogil:
    """Note the elements and lines that contexts own. Comes before check_block, which reports those
    that nothing names."""
    cdef uint64_t count = contexts_usable(map)
    cdef uint64_t index, line, element
    cdef Context *context
    for index in range(count):
        context = context_at(map, index)
        if context.owner == 0:
            continue
        if target_lead(context.target) != 0 and not member_is_sound(map, index):
            return report_add(report, BAD_JOURNAL, index)
        element = checked_index(&map.element_pool, load_relaxed_u64(&context.element))
        if element != 0 and word_held_by(
                element_at(map, element).header, <uint32_t> index):
            report.owned_by_contexts += 1
            if not see_element(map, report, element):
                return False
        line = context.line_stash
        while line != 0:                       # ends: each turn sees a new line
            if not see_line(report, line):
                return False
            line = pool_object(&map.line_pool, line).words[0]
    return True

cdef inline bint check_objects(Map *map, const Context *own, Report *report) noexcept nogil:
    cdef uint64_t lost = objects_lost(map, report.element_seen, report.element_limit)
    if lost != 0:
        return report_add(report, LOST_OBJECT, lost - 1)
    return budget_error(map, own) == 0 or report_add(report, BAD_BUDGET, budget_error(map, own))

cdef inline bint check_births(Map *map, Report *report) noexcept nogil:
    """Look for a birth, or the number of an invalidation, that no invalidation has had yet."""
    cdef uint64_t most = load_relaxed_u64(&map.cache.invalidations)
    cdef uint64_t index
    if load_relaxed_u64(&map.cache.cleared) > most:
        return report_add(report, BAD_BIRTH, 0)
    for index in range(TAG_SLOTS if map.tags_word != 0 else 0):
        if load_relaxed_u64(map.tag_words + index) > (most if index != 0 else 0):
            return report_add(report, BAD_BIRTH, 0)
    for index in range(report.element_limit):
        if report.element_seen[index] == 2 and load_relaxed_u64(element_value(
                map, element_at(map, index)) + map.birth_word - 1) > most:
            return report_add(report, BAD_BIRTH, index)
    return True

cdef inline void check_walk(Map *map, const Context *own, Report *report) noexcept nogil:
    cdef uint64_t block
    cdef uint32_t region
    for region in range(map.region_count):
        if word_locked(region_at(map, region).lock):
            report_add(report, LOCK_HELD, region)
    if not (check_table(map, report) and check_depots(map, report)
            and check_contexts(map, report)):
        return
    for block in range(pool_limit(map, &map.element_pool)):
        if not check_block(map, report, &map.element_pool, block):
            return
    for block in range(pool_limit(map, &map.line_pool)):
        if not check_block(map, report, &map.line_pool, block):
            return
    if map.objects != NULL and not check_objects(map, own, report):
        return
    if map.birth_word != 0 and not check_births(map, report):
        return
    if report.credits + report.entries + report.owned_by_contexts != map.max_entries:
        report_add(report, BAD_CREDITS, report.credits)

cdef inline uint64_t activity_of_others(Map *map, const Context *own, bint *quiet) noexcept nogil:
    """A sum that changes if any other context begins or ends an operation."""
    cdef uint64_t count = contexts_usable(map)
    cdef uint64_t index, activity
    cdef uint64_t total = count
    for index in range(count):
        if context_at(map, index) != own:
            activity = load_acquire_u64(&context_at(map, index).activity)
            total += activity
            if activity & 1:
                quiet[0] = False
    return total

cdef inline void check_map(Map *map, const Context *own, Report *report) noexcept nogil:
    """Check the map and fill in report, which must be zeroed."""
    cdef uint64_t before
    report.exact = True
    report.element_limit = pool_limit(map, &map.element_pool) * map.element_pool.capacity
    report.line_limit = pool_limit(map, &map.line_pool) * map.line_pool.capacity
    report.element_seen = <uint8_t *> calloc(report.element_limit + 1, 1)
    report.line_seen = <uint8_t *> calloc(report.line_limit + 1, 1)
    if report.element_seen == NULL or report.line_seen == NULL:
        report_add(report, NO_PRIVATE_MEMORY, 0)
    else:
        before = activity_of_others(map, own, &report.exact)
        check_walk(map, own, report)
        if activity_of_others(map, own, &report.exact) != before:
            report.exact = False
    free(report.element_seen)
    free(report.line_seen)
    report.element_seen = NULL
    report.line_seen = NULL
