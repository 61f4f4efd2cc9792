# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Emptying a map, with insertions locked out so that it ends.
#
# header.clearing is held all the while; whoever wants to insert a key finds it BUSY. Updates and
# deletes go on. The buckets are emptied from the last to the first: a merge moves entries down. A
# split that was under way moves some up, perhaps into a bucket that was looked at before. But it is
# counted before its parent is let go, so whoever has found the parent empty, under its lock, knows
# of it: this ends with a pass that finds every bucket empty and before and after which the number
# of splits was the same. A cleaner that dies is recovered by whoever meets the word, or the
# process's other locks; its work is finished then (recovery.pxd).
from libc.stdint cimport uint64_t
from atomics cimport load_acquire_u64
from status cimport Status, OK, ABSENT
from lock cimport Op
from table cimport table_count
from remove cimport map_clear_bucket, map_shrink_if_empty

# How far a cleaner has come. Begin with zeros.
cdef struct Clearing:
    uint64_t index             # buckets below it are to be looked at
    uint64_t splits            # that there had been when this pass began
    bint empty                 # nothing was found in this pass

cdef inline Status clear_step(Op *op, Clearing *clearing) noexcept nogil:
    """Delete one entry, or begin another pass: OK. ABSENT: none is left. BUSY, RETRY: call again.
    """
    # Acquire: pairs with the fence in bucket_set_level. A bucket that was split off before this is
    # below the number that is read after it.
    cdef uint64_t splits = load_acquire_u64(&op.map.header.statistics.grows)
    cdef uint64_t count = table_count(op.map)
    cdef Status status = ABSENT
    if count > op.map.bucket_max:              # only in a damaged segment
        count = op.map.bucket_max
    if clearing.index == 0:
        if clearing.empty and clearing.splits == splits:
            return ABSENT
        clearing.splits = splits
        clearing.index = count
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
    cdef Clearing pass_ = Clearing(0, 0, False)
    cdef Status status = OK
    while status == OK:                        # each turn deletes an entry; none are inserted
        status = clear_step(op, &pass_)
    return OK if status == ABSENT else status
