# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The bucket array: finding a key's bucket, splitting and merging buckets in place (G1).
#
# Linear hashing. There is one array, and a level in each bucket: bucket b at level L holds the
# hashes whose low L bits are b. The table word says how many buckets there are; it is only a hint
# for readers, who follow levels: a bucket without level has not been split off yet, so its parent
# (b without its highest bit) has the entries; a bucket whose level says that the hash belongs
# deeper names the child to go to.
#
# With N buckets the next to come is C = N; its parent is P = C minus its highest bit 2^L. One
# operation at a time splits or merges, under the table word's lock, and takes buckets only if they
# are free at once: if not, it is left to the next one who comes by. A split is
#
#   1 take table, P, C   2 copy P's references with bit L set into C, whose level is 0: nobody looks
#   3 C: level L+1                   <- commit: readers find the entries in both
#   4 P: level L+1                   readers of P now go to C for those hashes
#   5 clear the references in P   6 unlock C, then P   7 table: N+1, unlocked
#
# and a merge mirrors it: take table, P, C; append C's references to P; P: level L (commit); C:
# level 0; clear C; unlock. Killed before the commit it is undone, after it finished (recovery.pxd),
# and at every moment each reader finds each entry in P or in C. References are moved; elements
# never are.
#
# Pace: an insert splits one bucket while the mean load is above 3.5 of 7, two above 4.5; a delete
# merges one while it is below 1.75, two below 1. The load, and with it the memory and the time of
# each operation, stays flat while the map grows, and the gap between the two marks keeps a map that
# breathes from doing either.
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_release_u64, cas_acquire_u64, fence_release,
    compiler_fence, count_trailing_zeros, count_leading_zeros, likely, unlikely, store_relaxed_u64,
    store_relaxed_u32,
)
from status cimport Status, OK, BUSY, FULL, CORRUPT, NEED_BUCKETS
from layout cimport (
    Bucket, BUCKET_COUNT_MIN, PAYLOAD_SHIFT, SLOT_COUNT, LINK_BASE, BUCKET_VERSION_ONE,
    OPERATION_SPLIT, OPERATION_MERGE, word_locked, word_taken, bucket_level_plus1,
    bucket_with_level, LINK_SLOT,
)
from geometry cimport Map, bucket_at, buckets_usable
from lock cimport Op, lock_busy, lock_try, lock_release
from chain cimport Found, chain_append, chain_clear, chain_last, chain_next, chain_remove

cdef enum:
    FOLLOW_MAX = 128           # each step goes one level deeper or higher; resizes may add some
    NOWHERE = 0xFFFFFFFFFFFFFFFFULL

cdef inline uint64_t table_count(Map *map) noexcept nogil:
    """The number of buckets."""
    # Acquire: pairs with the release in table_grow, after which the last bucket exists.
    return load_acquire_u64(&map.header.table) >> PAYLOAD_SHIFT

cdef inline uint64_t entries_taken(Map *map) noexcept nogil:
    """Entries, and the rights to add one that are parked in depots."""
    return map.max_entries - (load_relaxed_u64(&map.header.credits) >> PAYLOAD_SHIFT)

cdef inline bint level_covers(uint32_t level_plus1, uint64_t bucket, uint32_t hash) noexcept nogil:
    """Whether a bucket of this level holds this hash; no bucket does whose level is 0."""
    return level_plus1 != 0 and ((hash ^ bucket) & ((1ULL << (level_plus1 - 1)) - 1)) == 0

cdef inline uint64_t table_guess(Map *map, uint32_t hash) noexcept nogil:
    """Where the table word says that a hash belongs."""
    cdef uint64_t count = table_count(map)
    cdef uint64_t mask = <uint64_t> -1 >> count_leading_zeros((count - 1) | 1)
    cdef uint64_t guess = hash & mask
    if guess >= count:
        guess &= mask >> 1
    if unlikely(guess >= map.bucket_max):              # only in a damaged segment
        guess &= BUCKET_COUNT_MIN - 1
    return guess

cdef inline uint64_t bucket_parent(uint64_t child) noexcept nogil:
    """The bucket that a bucket from BUCKET_COUNT_MIN on was split off."""
    return child ^ (1ULL << (63 - count_leading_zeros(child)))

cdef inline uint64_t table_follow(
        Map *map, uint32_t hash, uint64_t at, uint32_t level_plus1) noexcept nogil:
    """Where to look after bucket at, of a level that does not cover hash; NOWHERE if damaged."""
    cdef uint64_t difference
    if level_plus1 == 0:
        if at < BUCKET_COUNT_MIN:
            return NOWHERE
        return bucket_parent(at)
    difference = (hash ^ at) & ((1ULL << (level_plus1 - 1)) - 1)
    at = hash & ((2ULL << count_trailing_zeros(difference)) - 1)
    return at if at < map.bucket_max else NOWHERE

cdef inline Bucket *table_find(Map *map, uint32_t hash, uint64_t *index) noexcept nogil:
    """The bucket of a hash and its index. NULL if the levels lead nowhere, or in circles: so many
    resizes do not meet one search."""
    cdef uint64_t at = table_guess(map, hash)
    cdef uint32_t level_plus1
    cdef int _
    for _ in range(FOLLOW_MAX):
        # Acquire: pairs with the release stores of levels; the bucket's slots are as new.
        level_plus1 = bucket_level_plus1(load_acquire_u64(&bucket_at(map, at).header))
        if likely(level_covers(level_plus1, at, hash)):
            index[0] = at
            return bucket_at(map, at)
        at = table_follow(map, hash, at, level_plus1)
        if at == NOWHERE:
            break
    return NULL

cdef inline Status table_hold(
        Op *op, uint64_t seen, uint64_t child, uint32_t operation) noexcept nogil:
    """Take the table word, seen unlocked, for a split or merge of child and its parent."""
    op.context.operation = operation
    op.context.child = child
    op.context.bucket = bucket_parent(child)
    compiler_fence()
    # Acquire: the last resize; pairs with the release of the table word.
    if cas_acquire_u64(&op.map.header.table, seen, word_taken(seen, op.self_index)):
        return OK
    return BUSY

cdef inline void table_release(Op *op, uint64_t count) noexcept nogil:
    lock_release(&op.map.header.table, count << PAYLOAD_SHIFT)

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
    # Release: the references now in it; pairs with the acquire in table_find. The fence keeps the
    # clearing of moved references behind it; pairs with the acquire fence before a miss is
    # believed.
    store_release_u64(&bucket.header, bucket_with_level(
        load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE, level_plus1))
    fence_release()

cdef inline void bucket_release(Bucket *bucket) noexcept nogil:
    """Unlock a changed bucket."""
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)

cdef inline void split_finish(Op *op, Bucket *parent, Bucket *child, uint32_t level) noexcept nogil:
    """Steps 4 to 7 of a split. Every step may have been done already."""
    if bucket_level_plus1(load_relaxed_u64(&parent.header)) == level + 1:
        bucket_set_level(parent, level + 2)
    chain_drop_bit(op, parent, <uint32_t> 1 << level)

cdef inline Status table_grow(Op *op) noexcept nogil:
    """Split the next bucket. BUSY if somebody holds what it takes; NEED_* if memory is wanted."""
    cdef Map *map = op.map
    cdef uint64_t seen = load_relaxed_u64(&map.header.table)
    cdef uint64_t count = seen >> PAYLOAD_SHIFT
    cdef uint64_t parent_held = 0
    cdef uint64_t child_held = 0
    cdef uint32_t level
    cdef Bucket *parent
    cdef Bucket *child
    cdef Status status
    if word_locked(seen) or count < BUCKET_COUNT_MIN:
        return lock_busy(op, &map.header.table, seen)
    if count >= map.bucket_max:
        return FULL
    status = table_hold(op, seen, count, OPERATION_SPLIT)
    if status != OK:
        return status
    if count >= buckets_usable(map):
        table_release(op, count)
        return NEED_BUCKETS
    parent = bucket_at(map, bucket_parent(count))
    child = bucket_at(map, count)
    level = 63 - count_leading_zeros(count)
    status = lock_try(op, &parent.header, &parent_held)
    if status == OK:
        # Somebody who found the child before it was merged away may have its lock for a moment.
        status = lock_try(op, &child.header, &child_held)
        if status != OK:
            lock_release(&parent.header, parent_held)
    if status != OK:
        table_release(op, count)
        return status
    if bucket_level_plus1(parent_held) != level + 1 or bucket_level_plus1(child_held) != 0:
        status = CORRUPT
    if status == OK:
        status = chain_copy(op, parent, child, <uint32_t> 1 << level)
    if status != OK:
        if status != CORRUPT:
            chain_clear(op, child)
        lock_release(&child.header, load_relaxed_u64(&child.header))
        lock_release(&parent.header, parent_held)
        table_release(op, count)
        return status
    bucket_set_level(child, level + 2)
    split_finish(op, parent, child, level)
    bucket_release(child)
    bucket_release(parent)
    store_relaxed_u64(
        &map.header.statistics.grows, load_relaxed_u64(&map.header.statistics.grows) + 1)
    table_release(op, count + 1)
    return OK

cdef inline void merge_finish(Op *op, Bucket *child) noexcept nogil:
    """The part of a merge after the commit. Every step may have been done already."""
    if bucket_level_plus1(load_relaxed_u64(&child.header)) != 0:
        bucket_set_level(child, 0)
    chain_clear(op, child)

cdef inline Status table_shrink(Op *op) noexcept nogil:
    """Merge the last bucket into its parent. BUSY if somebody holds what it takes."""
    cdef Map *map = op.map
    cdef uint64_t seen = load_relaxed_u64(&map.header.table)
    cdef uint64_t last = (seen >> PAYLOAD_SHIFT) - 1
    cdef uint64_t parent_held = 0
    cdef uint64_t child_held = 0
    cdef uint32_t level
    cdef Bucket *parent
    cdef Bucket *child
    cdef Status status
    if word_locked(seen) or last + 1 > map.bucket_max:
        return BUSY
    if last < BUCKET_COUNT_MIN:
        return FULL
    status = table_hold(op, seen, last, OPERATION_MERGE)
    if status != OK:
        return status
    parent = bucket_at(map, bucket_parent(last))
    child = bucket_at(map, last)
    level = 63 - count_leading_zeros(last)
    status = lock_try(op, &parent.header, &parent_held)
    if status == OK:
        status = lock_try(op, &child.header, &child_held)
        if status != OK:
            lock_release(&parent.header, parent_held)
    if status != OK:
        table_release(op, last + 1)
        return status
    if bucket_level_plus1(parent_held) != level + 2 or bucket_level_plus1(child_held) != level + 2:
        status = CORRUPT
    if status == OK:
        status = chain_copy(op, child, parent, <uint32_t> 1 << level)
    if status == OK:
        bucket_set_level(parent, level + 1)
        merge_finish(op, child)
    elif status != CORRUPT:
        chain_drop_bit(op, parent, <uint32_t> 1 << level)
    bucket_release(child)
    bucket_release(parent)
    store_relaxed_u64(
        &map.header.statistics.shrinks,
        load_relaxed_u64(&map.header.statistics.shrinks) + (status == OK))
    table_release(op, last if status == OK else last + 1)
    return status
