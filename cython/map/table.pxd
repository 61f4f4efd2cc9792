# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The bucket array: finding a key's bucket, levels, moving references between buckets (G1).
#
# Linear hashing. There is one array, and a level in each bucket: bucket b at level L holds the
# hashes whose low L bits are b. The table word holds the number of buckets. For readers it is only
# a hint, because they follow levels: a bucket without a level has not been split off yet, so its
# parent (b without its highest bit) has the entries; the level of a bucket that has been split
# further leads to the child for the hash. Splits and merges are in resize.pxd.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u32, load_relaxed_u64, load_acquire_u64, store_release_u64, store_relaxed_u32,
    fence_release, likely, unlikely, count_trailing_zeros, count_leading_zeros,
)
from segment.status cimport Status, OK, CORRUPT
from segment.layout cimport (
    LINE_BYTES, SLOT_COUNT, LINK_SLOT, BUCKET_COUNT_MIN, PAYLOAD_SHIFT, BUCKET_VERSION_ONE,
    LINK_BASE, LOCK_BIT, Bucket,
)
from segment.words cimport bucket_level_plus1, bucket_with_level
from segment.geometry cimport Map, bucket_at, buckets_usable
from memory.operation cimport Op, lock_release
from map.chain cimport Found, chain_next, chain_last, chain_append, chain_remove

cdef enum:
    FOLLOW_MAX = 128           # a step goes at least a level up or down; resizes may add steps
    CACHED_BYTES = 262144      # a map this small is taken to be in a cache: nothing is prefetched
    NOWHERE = 0xFFFFFFFFFFFFFFFFULL

cdef inline uint64_t table_count(Map *map) noexcept nogil:
    """The number of buckets, gaps included."""
    # Acquire: pairs with the release in table_move: what was merged before the number was lowered.
    return load_acquire_u64(&map.header.table) >> PAYLOAD_SHIFT

cdef inline uint64_t entries_taken(Map *map) noexcept nogil:
    """The number of entries, and of credits in depots."""
    return map.max_entries - (load_relaxed_u64(&map.header.credits) >> PAYLOAD_SHIFT)

cdef inline bint table_is_cached(Map *map) noexcept nogil:
    """Whether the map is so small that prefetching its buckets and elements would gain nothing."""
    return table_count(map) * LINE_BYTES + entries_taken(map) * map.stride <= CACHED_BYTES

cdef inline bint level_covers(uint32_t level_plus1, uint64_t bucket, uint32_t hash) noexcept nogil:
    """Whether a bucket of this level holds this hash; a bucket without a level (0) holds none."""
    return level_plus1 != 0 and ((hash ^ bucket) & ((1ULL << (level_plus1 - 1)) - 1)) == 0

cdef inline uint64_t table_guess(Map *map, uint32_t hash) noexcept nogil:
    """The bucket that a hash belongs to, as far as the table word says."""
    cdef uint64_t count = table_count(map)
    cdef uint64_t mask = <uint64_t> -1 >> count_leading_zeros((count - 1) | 1)
    cdef uint64_t guess = hash & mask
    if guess >= count:
        guess &= mask >> 1
    if unlikely(guess >= map.bucket_max):              # only in a damaged segment
        guess &= BUCKET_COUNT_MIN - 1
    return guess

cdef inline uint64_t bucket_parent(uint64_t child) noexcept nogil:
    """The bucket that child, at least BUCKET_COUNT_MIN, is split off from."""
    return child ^ (1ULL << (63 - count_leading_zeros(child)))

cdef inline uint64_t table_follow(
        Map *map, uint32_t hash, uint64_t at, uint32_t level_plus1) noexcept nogil:
    """The bucket to search after bucket at, whose level does not cover hash; NOWHERE in a damaged
    segment."""
    cdef uint64_t difference
    if level_plus1 == 0:
        if at < BUCKET_COUNT_MIN:
            return NOWHERE
        return bucket_parent(at)
    difference = (hash ^ at) & ((1ULL << (level_plus1 - 1)) - 1)
    at = hash & ((2ULL << count_trailing_zeros(difference)) - 1)
    return at if at < map.bucket_max else NOWHERE

cdef inline Bucket *table_find_seen(
        Map *map, uint32_t hash, uint64_t *index, uint64_t *header) noexcept nogil:
    """The bucket of a hash, its index, and its header, whose level covers the hash. NULL if the
    levels lead nowhere, or in circles: one search does not meet so many resizes that it needs
    FOLLOW_MAX steps."""
    cdef uint64_t at = table_guess(map, hash)
    cdef uint32_t level_plus1
    cdef int _
    for _ in range(FOLLOW_MAX):
        # Acquire: pairs with the release stores of levels; the slots read next are at least as new.
        header[0] = load_acquire_u64(&bucket_at(map, at).header)
        level_plus1 = bucket_level_plus1(header[0])
        if likely(level_covers(level_plus1, at, hash)):
            index[0] = at
            return bucket_at(map, at)
        at = table_follow(map, hash, at, level_plus1)
        if at == NOWHERE:
            break
    return NULL

cdef inline Bucket *table_find(Map *map, uint32_t hash, uint64_t *index) noexcept nogil:
    cdef uint64_t header = 0
    return table_find_seen(map, hash, index, &header)

cdef inline bint chain_find_bit(
        Map *map, Bucket *bucket, uint32_t bit, Found *found) noexcept nogil:
    """A reference in a held chain whose tag has bit set."""
    cdef Bucket *line = bucket
    cdef uint64_t _
    cdef uint32_t slot
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            if line.indices[slot] != 0 and line.indices[slot] < LINK_BASE and line.tags[slot] & bit:
                found.line = line
                found.slot = slot
                found.index = line.indices[slot]
                return True
        line = chain_next(map, line)
        if line == NULL:
            return False
    return False

cdef inline void chain_drop_bit(Op *op, Bucket *bucket, uint32_t bit) noexcept nogil:
    """Remove every reference whose tag has bit set."""
    cdef Found found
    cdef uint64_t _
    cdef uint32_t slot
    if likely(bucket.indices[LINK_SLOT] < LINK_BASE):      # the usual case: no gap has to be filled
        for slot in range(SLOT_COUNT):
            if bucket.tags[slot] & bit:
                store_relaxed_u32(&bucket.indices[slot], 0)
        return
    for _ in range((op.map.line_max + 1) * SLOT_COUNT):    # each turn removes one
        if not chain_find_bit(op.map, bucket, bit, &found):
            break
        chain_remove(op, bucket, found.line, found.slot)

cdef inline Status chain_copy(
        Op *op, Bucket *source, Bucket *target, uint32_t bit) noexcept nogil:
    """Append source's references whose tag has bit set to target."""
    cdef Bucket *line = source
    cdef Bucket *before = NULL
    cdef uint64_t _
    cdef uint32_t slot
    cdef Status status
    if chain_next(op.map, chain_last(op.map, source, &before)) != NULL:
        return CORRUPT                                     # in circles: nothing is copied
    for _ in range(op.map.line_max + 1):
        for slot in range(SLOT_COUNT):
            if line.indices[slot] != 0 and line.indices[slot] < LINK_BASE and line.tags[slot] & bit:
                status = chain_append(op, target, line.indices[slot], line.tags[slot], NULL)
                if status != OK:
                    return status
        line = chain_next(op.map, line)
        if line == NULL:
            return OK
    return CORRUPT

cdef inline void bucket_set_level(Bucket *bucket, uint32_t level_plus1) noexcept nogil:
    """Give a held bucket a level, and the next version."""
    # Release: the references that the bucket has now; pairs with the acquire in table_find. The
    # fence keeps the clearing of moved references after this store; pairs with the acquire fence by
    # which bucket_find validates a miss.
    store_release_u64(&bucket.header, bucket_with_level(
        load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE, level_plus1))
    fence_release()

cdef inline void bucket_release(Bucket *bucket) noexcept nogil:
    """Unlock a changed bucket."""
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)

cdef inline uint64_t bucket_missed(Map *map, uint64_t index) noexcept nogil:
    """The next child of bucket index, if it lies below the number of buckets and so ought to exist
    already; 0: there is none."""
    cdef uint32_t level_plus1 = bucket_level_plus1(load_relaxed_u64(&bucket_at(map, index).header))
    cdef uint64_t child = index + (1ULL << level_plus1 >> 1)
    return child if level_plus1 != 0 and child < table_count(map) else 0

cdef inline bint bucket_fits(Map *map, uint64_t count, uint64_t index) noexcept nogil:
    """Whether the level of a bucket at rest, one of count, agrees with its parent and its children:
    it exists exactly if its parent has been split as far, and all its children are below count."""
    cdef uint32_t level_plus1 = bucket_level_plus1(load_relaxed_u64(&bucket_at(map, index).header))
    cdef uint32_t first = 2                    # the level that it had at first
    if index >= BUCKET_COUNT_MIN:
        first = 64 - count_leading_zeros(index)
        if (level_plus1 != 0) != (bucket_level_plus1(load_relaxed_u64(
                &bucket_at(map, bucket_parent(index)).header)) > first):
            return False
        if level_plus1 == 0:
            return True
    return level_plus1 == first + 1 or (
        level_plus1 > first and index + (1ULL << (level_plus1 - 2)) < count)

# What an operator is shown of one bucket.
cdef struct BucketFacts:
    uint32_t level
    uint32_t entries
    uint32_t lines
    bint locked


cdef inline bint bucket_figures(Map *map, uint64_t index, BucketFacts *facts) noexcept nogil:
    """The figures of bucket index; False if there is no such bucket. No lock is taken: the figures
    fit together only if no operation changed the bucket while they were read."""
    cdef Bucket *bucket = bucket_at(map, index)
    cdef Bucket *line = bucket
    cdef uint64_t _, header
    cdef uint32_t slot, found
    if index >= table_count(map) or index >= buckets_usable(map):
        return False
    header = load_acquire_u64(&bucket.header)
    facts.level = bucket_level_plus1(header) - 1 if bucket_level_plus1(header) else 0
    facts.locked = header & LOCK_BIT
    facts.entries = facts.lines = 0
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            found = load_relaxed_u32(&line.indices[slot])
            facts.entries += found != 0 and found < LINK_BASE
        line = chain_next(map, line)
        if line == NULL:
            break
        facts.lines += 1
    return True
