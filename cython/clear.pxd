# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Emptying a map, with insertions locked out so that it ends.
#
# header.clearing is held all the while; whoever wants to insert a key finds it BUSY. Updates and
# deletes go on. The buckets are emptied from the last to the first: a merge moves entries down. A
# split that was under way moves some up, into a bucket that the table word does not count before it
# is released. So this ends with a pass that finds every bucket empty, after which that word is not
# held, and nothing was split or merged meanwhile. A cleaner that dies is recovered by whoever meets
# the word, or the process's other locks; its work is finished then (recovery.pxd).
from libc.stdint cimport uint64_t
from atomics cimport load_acquire_u64, load_relaxed_u64
from status cimport Status, OK, ABSENT
from layout cimport PAYLOAD_SHIFT, word_locked
from geometry cimport Map
from lock cimport Op, lock_busy
from table cimport table_count
from remove cimport map_clear_bucket, map_shrink_if_empty

# How far a cleaner has come. Begin with zeros.
cdef struct Clearing:
    uint64_t index             # buckets below it are to be looked at
    uint64_t count             # buckets when this pass began,
    uint64_t resizes           # and splits and merges that there had been
    bint empty                 # nothing was found in this pass

cdef inline uint64_t table_resizes(Map *map) noexcept nogil:
    """Splits and merges so far; of one under way it counts before the table word is released."""
    return load_relaxed_u64(&map.header.statistics.grows) + load_relaxed_u64(
        &map.header.statistics.shrinks)

cdef inline Status clear_step(Op *op, Clearing *clearing) noexcept nogil:
    """Delete one entry, or begin another pass: OK. ABSENT: none is left. BUSY, RETRY: call again.
    """
    # Acquire: pairs with the release of the table word; then what it counts, and what was resized.
    cdef uint64_t table = load_acquire_u64(&op.map.header.table)
    cdef uint64_t count = table >> PAYLOAD_SHIFT
    cdef Status status = ABSENT
    if count > op.map.bucket_max:              # only in a damaged segment
        count = op.map.bucket_max
    if clearing.index == 0:
        if clearing.empty and word_locked(table):
            return lock_busy(op, &op.map.header.table, table)
        if clearing.empty and count == clearing.count and (
                clearing.resizes == table_resizes(op.map)):
            return ABSENT
        clearing.resizes = table_resizes(op.map)
        clearing.index = clearing.count = count
        clearing.empty = True
    while clearing.index > 0 and status == ABSENT:         # each turn leaves a bucket behind
        status = map_clear_bucket(op, clearing.index - 1)
        if status == ABSENT:
            clearing.index -= 1
    if status == ABSENT:
        return OK
    clearing.empty = False
    if status == OK:
        map_shrink_if_empty(op)
        count = table_count(op.map)
        clearing.index = clearing.index if clearing.index < count else count
    return status

cdef inline Status map_clear(Op *op) noexcept nogil:
    """Delete everything. OK; or what stood in the way, and more is left."""
    cdef Clearing pass_ = Clearing(0, 0, 0, False)
    cdef Status status = OK
    while status == OK:                        # each turn deletes an entry; none are inserted
        status = clear_step(op, &pass_)
    return OK if status == ABSENT else status
