# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The beginning and the end of a write: locking the bucket of a hash, and giving back what an
# attempt kept (write.pxd says what an attempt is).
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, cas_acquire_u64, compiler_fence, pause, likely, unlikely,
)
from segment.status cimport Status, OK, CORRUPT, RETRY
from segment.layout cimport Bucket
from segment.words cimport word_locked, word_taken, word_held_by, bucket_level_plus1
from segment.geometry cimport bucket_at, line_at, element_at, pool_object, checked_index
from memory.operation cimport SPIN_PAUSES_MAX, Op, lock_busy
from memory.pool cimport pool_give
from memory.depot cimport element_give
from memory.object cimport owned_refs_free
from map.chain cimport Found, line_stash
from map.element cimport starving_end
from map.reference cimport refs_drop
from map.table cimport level_covers, table_find_seen

cdef inline bint line_is_held(Op *op, uint64_t index) noexcept nogil:
    """Whether this context owns the line that it names."""
    return index != 0 and index < op.map.line_max and word_held_by(
        line_at(op.map, index).header, op.self_index)

cdef inline void op_give_back(Op *op) noexcept nogil:
    """Give back what an operation kept for its next attempt, and its word in header.starving. What
    cannot be given back now stays named in the context."""
    cdef uint64_t line
    op.made = 0                # what stays named is not for a store any more
    if unlikely(op.starving != 0):
        starving_end(op)
    if unlikely(op.context.element != 0):
        if op.map.ref_count == 0 or refs_drop(op, element_at(op.map, checked_index(
                &op.map.element_pool, load_relaxed_u64(&op.context.element)))) == OK:
            element_give(op)
    if unlikely(op.context.debt != 0):
        owned_refs_free(op)
    while unlikely(op.context.line_stash != 0):        # each turn gives one back
        line = load_relaxed_u64(&op.context.line_stash)
        if not line_is_held(op, line):
            op.context.line_stash = 0                  # only in a damaged segment
            break
        op.context.line = line
        compiler_fence()
        op.context.line_stash = pool_object(&op.map.line_pool, line).words[0]
        compiler_fence()
        if pool_give(op, &op.map.line_pool, line, &op.context.line) != OK:
            line_stash(op)
            break

cdef inline Status bucket_hold(
        Op *op, uint32_t operation, Bucket **bucket, uint64_t *held) noexcept nogil:
    """Lock the bucket that the operation's hash belongs to, by a CAS on a header whose level covers
    the hash: so a late writer that is stopped never holds a bucket that is yet to be split off."""
    cdef uint64_t index = 0
    cdef uint64_t seen = 0
    cdef int _
    bucket[0] = table_find_seen(op.map, op.hash, &index, &seen)
    if bucket[0] == NULL:
        return CORRUPT
    op.context.operation = operation
    op.context.bucket = index
    compiler_fence()
    for _ in range(SPIN_PAUSES_MAX):
        if likely(not word_locked(seen)):
            held[0] = word_taken(seen, op.self_index)
            # Acquire: as in lock_try.
            if likely(cas_acquire_u64(&bucket[0].header, seen, held[0])):
                return OK
        pause()
        seen = load_relaxed_u64(&bucket[0].header)
        if not level_covers(bucket_level_plus1(seen), index, op.hash):
            return RETRY                               # split or merged since table_find_seen
    return lock_busy(op, &bucket[0].header, seen)

cdef inline bint bucket_hold_if_unchanged(
        Op *op, uint32_t operation, const Found *miss) noexcept nogil:
    """Lock the bucket of a validated miss if it is unchanged since its header was first loaded.
    True: the miss still holds."""
    if unlikely(word_locked(miss.header)):
        return False
    op.context.operation = operation
    op.context.bucket = miss.bucket
    compiler_fence()
    # Acquire: as in bucket_hold. Any change of the chain has raised the version.
    return cas_acquire_u64(
        &bucket_at(op.map, miss.bucket).header, miss.header,
        word_taken(miss.header, op.self_index))
