# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Splitting and merging buckets in place, one at a time, as a part of inserts and deletes (G1).
#
# With N buckets the next one is C = N; its parent is P = C minus its highest bit 2^L. A split or
# merge holds P and C and nothing else, and takes their locks only if they are free at once: as many
# may be under way as there are pairs. A split is
#
#   1 take P, C   2 copy P's references with bit L set into C (no level: no search relies on it)
#   3 table: above C   4 C: level L+1    <- commit: readers find the entries in both
#   5 P: level L+1                       readers of P now go to C for those hashes
#   6 clear the references in P   7 unlock C, then P
#
# and a merge mirrors it: take P, C; append C's references to P; P: level L (commit); C: no level;
# clear C; table: down to C; unlock. If the process is killed before the commit, recovery undoes the
# split or merge; after the commit, recovery finishes it (recover.pxd). At every moment each reader
# finds each entry in P or in C. References are moved; elements never are.
#
# The table word is never held. Every bucket that exists lies below N, but not every bucket below N
# exists. A process that repeatedly finds P or C held moves N beyond C and leaves a gap
# (table_pass), so a stopped splitter does not keep other processes from growing the rest of the
# table. The entries of a gap stay in P, or in the nearest ancestor that exists. If there are many
# of them, an insertion finds that bucket with overflow lines, and makes up for the split
# (bucket_missed). A process that lowers N to C, and one that is about to create bucket C below N,
# both hold the bucket that has the entries of C; so no bucket ever exists at N or above.
#
# Pace: an insert splits one bucket while the mean load is above 3.5 of 7, two above 4.5; a delete
# merges one while it is below 1.75, two below 1. The load, and with it the memory and the time of
# each operation, stays flat while the map grows, and the gap between the two marks keeps a map
# whose size goes up and down a little from doing either.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, add_relaxed_u64, cas_acq_rel_u64, compiler_fence, count_leading_zeros,
)
from segment.status cimport Status, OK, ABSENT, FULL, CORRUPT, BUSY, NEED_BUCKETS
from segment.layout cimport (
    BUCKET_COUNT_MIN, PAYLOAD_SHIFT, OPERATION_NONE, OPERATION_SPLIT, OPERATION_MERGE, Bucket,
)
from segment.words cimport bucket_level_plus1
from segment.geometry cimport Map, bucket_at, buckets_usable
from memory.operation cimport Op, lock_try, lock_release
from map.chain cimport chain_bump, chain_clear
from map.table cimport (
    table_count, level_covers, bucket_parent, table_find, chain_drop_bit, chain_copy,
    bucket_set_level, bucket_release,
)

cdef enum:
    REACH_TRIES_MAX = 4        # other processes change the number; then the split is put off


cdef inline bint table_move(Map *map, uint64_t count, uint64_t to) noexcept nogil:
    """If the number of buckets is count, replace it by to. False: it is not count."""
    # Release: what was merged does not exist any more; pairs with the acquire in table_count.
    return cas_acq_rel_u64(&map.header.table, count << PAYLOAD_SHIFT, to << PAYLOAD_SHIFT)

cdef inline bint table_reach(Map *map, uint64_t child) noexcept nogil:
    """Raise the number of buckets above child, if it is not; False: this failed. The number stays
    above child as long as the caller holds the bucket that has child's entries."""
    cdef uint64_t count
    cdef int _
    for _ in range(REACH_TRIES_MAX):
        count = table_count(map)
        if count != child:
            return count > child
        if table_move(map, child, child + 1):
            return True
    return False

cdef inline void table_pass(Op *op, uint64_t child) noexcept nogil:
    """If child is the next bucket, raise the number of buckets beyond it, and so leave a gap."""
    if child < op.map.bucket_max and child < buckets_usable(op.map):
        table_move(op.map, child, child + 1)

cdef inline Status table_lower(Op *op, uint64_t last) noexcept nogil:
    """Lower the number of buckets to last, a gap. BUSY if last exists or is not the last any more,
    or if the bucket that has its entries is held."""
    cdef uint64_t index = 0
    cdef uint64_t held = 0
    cdef Bucket *bucket = table_find(op.map, <uint32_t> last, &index)
    cdef Status status
    if bucket == NULL:
        return CORRUPT
    if index == last:
        return BUSY
    op.context.operation = OPERATION_NONE
    op.context.bucket = index
    compiler_fence()
    status = lock_try(op, &bucket.header, &held)
    if status != OK:
        return status
    if not level_covers(bucket_level_plus1(held), index, <uint32_t> last) or (
            not table_move(op.map, last + 1, last)):
        status = BUSY
    lock_release(&bucket.header, held)
    return status

cdef inline Status pair_hold(
        Op *op, uint64_t child, uint32_t operation, uint64_t *parent_held,
        uint64_t *child_held) noexcept nogil:
    """Lock a bucket and its parent for a split or merge."""
    cdef uint64_t parent = bucket_parent(child)
    cdef Status status
    op.context.operation = operation
    op.context.child = child
    op.context.bucket = parent
    compiler_fence()
    status = lock_try(op, &bucket_at(op.map, parent).header, parent_held)
    if status != OK:
        return status
    # clear() may hold the lock of a bucket that does not exist.
    status = lock_try(op, &bucket_at(op.map, child).header, child_held)
    if status != OK:
        lock_release(&bucket_at(op.map, parent).header, parent_held[0])
    return status

cdef inline void bucket_restore(Bucket *bucket) noexcept nogil:
    """Unlock a bucket in which nothing has changed that a reader relies on."""
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header))

cdef inline void split_finish(Op *op, Bucket *parent, Bucket *child, uint32_t level) noexcept nogil:
    """Steps 5 and 6 of a split. Every step may have been done already."""
    if bucket_level_plus1(load_relaxed_u64(&parent.header)) == level + 1:
        bucket_set_level(parent, level + 2)
    chain_drop_bit(op, parent, <uint32_t> 1 << level)
    # Before the parent is unlocked: clear() relies on this order (remove.pxd).
    add_relaxed_u64(&op.map.header.statistics.grows, 1)

cdef inline Status split_fill(Op *op, uint64_t index, uint32_t level) noexcept nogil:
    """Steps 2 to 4 of a split of held buckets. If one fails, those before it are undone, unless the
    status is CORRUPT."""
    cdef Bucket *child = bucket_at(op.map, index)
    cdef Status status = chain_copy(
        op, bucket_at(op.map, bucket_parent(index)), child, <uint32_t> 1 << level)
    if status == OK and not table_reach(op.map, index):
        status = BUSY
    if status == OK:
        bucket_set_level(child, level + 2)
    elif status != CORRUPT:
        chain_clear(op, child)
    return status

cdef inline Status bucket_split(Op *op, uint64_t index) noexcept nogil:
    """Split bucket index off its parent. ABSENT: the parent's level is still too low, or already
    higher. BUSY if a lock is held that the split takes; NEED_* if memory has to be committed."""
    cdef Bucket *parent = bucket_at(op.map, bucket_parent(index))
    cdef Bucket *child = bucket_at(op.map, index)
    cdef uint32_t level = 63 - count_leading_zeros(index)
    cdef uint64_t parent_held = 0
    cdef uint64_t child_held = 0
    cdef Status status
    if index >= buckets_usable(op.map):
        return NEED_BUCKETS
    if bucket_level_plus1(load_relaxed_u64(&parent.header)) <= level:
        return ABSENT
    status = pair_hold(op, index, OPERATION_SPLIT, &parent_held, &child_held)
    if status != OK:
        return status
    if (bucket_level_plus1(child_held) != 0) != (bucket_level_plus1(parent_held) > level + 1):
        status = CORRUPT
    elif bucket_level_plus1(parent_held) != level + 1:
        status = ABSENT
    else:
        status = split_fill(op, index, level)
    if status != OK:
        bucket_restore(child)
        bucket_restore(parent)
        return status
    split_finish(op, parent, child, level)
    bucket_release(child)
    bucket_release(parent)
    return OK

cdef inline Status table_split(Op *op, uint64_t index) noexcept nogil:
    """bucket_split; if that returns ABSENT, pass the bucket. FULL at the array's end."""
    cdef Status status
    if index < BUCKET_COUNT_MIN:               # only in a damaged segment
        return CORRUPT
    if index >= op.map.bucket_max:
        return FULL
    status = bucket_split(op, index)
    if status == ABSENT:
        table_pass(op, index)
        return OK
    return status

cdef inline Status table_grow(Op *op) noexcept nogil:
    """Split the next bucket, or pass it."""
    return table_split(op, table_count(op.map))

cdef inline void merge_finish(Op *op, Bucket *child) noexcept nogil:
    """The part of a merge after the commit. Every step may have been done already."""
    if bucket_level_plus1(load_relaxed_u64(&child.header)) != 0:
        bucket_set_level(child, 0)
    chain_clear(op, child)

cdef inline void merge_undo(Op *op, Bucket *parent, uint32_t level) noexcept nogil:
    """Remove the references that were copied. The chain may have got a line, and may lose it again:
    a reader that saw it come and go sees that the version changed in between."""
    chain_bump(parent)
    chain_drop_bit(op, parent, <uint32_t> 1 << level)

cdef inline Status merge_held(Op *op, uint64_t index) noexcept nogil:
    """Merge the last bucket into its parent, both held. BUSY if it is not the last any more."""
    cdef Bucket *parent = bucket_at(op.map, bucket_parent(index))
    cdef Bucket *child = bucket_at(op.map, index)
    cdef uint32_t level = 63 - count_leading_zeros(index)
    cdef Status status
    if table_count(op.map) != index + 1:       # a later bucket may be split off one of the two
        return BUSY
    if bucket_level_plus1(load_relaxed_u64(&parent.header)) != level + 2 or (
            bucket_level_plus1(load_relaxed_u64(&child.header)) != level + 2):
        return CORRUPT
    status = chain_copy(op, child, parent, <uint32_t> 1 << level)
    if status == OK:
        bucket_set_level(parent, level + 1)
        merge_finish(op, child)
        add_relaxed_u64(&op.map.header.statistics.shrinks, 1)
        table_move(op.map, index + 1, index)   # if the number has changed, a gap is left
    elif status != CORRUPT:
        merge_undo(op, parent, level)
    return status

cdef inline Status table_shrink(Op *op) noexcept nogil:
    """Merge the last bucket into its parent, or lower the number of buckets if the last is a gap.
    BUSY if a lock is held that this takes; FULL if only the first BUCKET_COUNT_MIN are left."""
    cdef uint64_t last = table_count(op.map) - 1
    cdef uint64_t parent_held = 0
    cdef uint64_t child_held = 0
    cdef Status status
    if last + 1 > op.map.bucket_max:
        return BUSY
    if last < BUCKET_COUNT_MIN:
        return FULL
    if bucket_level_plus1(load_relaxed_u64(&bucket_at(op.map, last).header)) == 0:
        return table_lower(op, last)
    status = pair_hold(op, last, OPERATION_MERGE, &parent_held, &child_held)
    if status != OK:
        return status
    status = merge_held(op, last)
    bucket_release(bucket_at(op.map, last))
    bucket_release(bucket_at(op.map, bucket_parent(last)))
    return status
