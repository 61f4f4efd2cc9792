# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Deletions, and what every operation that writes begins and ends with: locking the bucket of a
# hash, giving back what an attempt kept (map.pxd says what an attempt is).
#
# A deletion is committed by its element's DEAD, under the lock of the bucket that its hash belongs
# to; then the slot goes, the lock, the objects it refers to, the element. Killed in between, all
# that follows.
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport (
    compiler_fence, cas_acq_rel_u64, copy_out, fence_release, load_acquire_u64, load_relaxed_u32,
    load_relaxed_u64, store_relaxed_u64, unlikely, cas_acquire_u64, pause,
)
from status cimport ABSENT, BUSY, CORRUPT, OK, RETRY, Status
from layout cimport (
    BUCKET_VERSION_ONE, Bucket, ELEMENT_DEAD, ELEMENT_LOCKED, LINE_BYTES, OPERATION_DELETE,
    REGION_BUCKETS, SLOT_COUNT, bucket_level_plus1, element_header, element_state, lock_bits,
    word_held_by, word_locked, word_taken,
)
from geometry cimport (
    Map, bucket_at, buckets_usable, element_at, element_value, line_at, name_of, pool_object,
    region_usable,
)
from special cimport fields_blank
from lock cimport (
    Op, OP_HOLD, OP_TYPED, SPIN_PAUSES_MAX, lock_acquire, lock_busy, lock_release,
)
from commit cimport region_release
from pool cimport pool_give
from depot cimport element_give
from heap cimport names_settle
from chain cimport Found, chain_find, chain_remove, line_stash
from starving cimport starving_end
from element cimport element_await, element_is_over
from reference cimport refs_drop
from table cimport entries_taken, level_covers, table_count, table_find
from resize cimport table_shrink

cdef enum:
    WRITE_TRIES_MAX = 64
    REGION_SLACK_BYTES = 65536     # unused end of the bucket array that is worth keeping
    RELEASE_MASK = 15              # one deletion in 16 looks whether a release was missed


cdef inline bint line_is_held(Op *op, uint64_t index) noexcept nogil:
    """Whether this context owns a line, as it thinks it does."""
    return index != 0 and index < op.map.line_max and word_held_by(
        line_at(op.map, index).header, op.self_index)

cdef inline void op_settle_all(Op *op) noexcept nogil:
    cdef uint64_t line
    if unlikely(op.map.read_only):
        return                                 # it kept nothing, whatever a damaged context says
    if unlikely(op.starving != 0):
        starving_end(op)
    if unlikely(op.context.element != 0):
        if op.map.ref_count == 0 or refs_drop(op, element_at(op.map, name_of(
                &op.map.element_pool, load_relaxed_u64(&op.context.element)))) == OK:
            element_give(op)
    if unlikely(op.context.owing != 0):
        names_settle(op)
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

cdef inline void op_settle(Op *op) noexcept nogil:
    """Give back what an operation kept for a next attempt, its claim to be let in first too. What
    cannot be had now stays named."""
    if unlikely(op.starving != 0 or op.context.element != 0 or op.context.owing != 0
                or op.context.line_stash != 0):
        op_settle_all(op)

cdef inline Status bucket_hold(
        Op *op, uint32_t operation, Bucket **bucket, uint64_t *held) noexcept nogil:
    """Lock the bucket that the operation's hash belongs to, as long as it does: who comes late, and
    is stopped, holds nothing that a split needs."""
    cdef uint64_t index = 0
    cdef uint64_t seen = 0
    cdef int _
    bucket[0] = table_find(op.map, op.hash, &index)
    if bucket[0] == NULL:
        return CORRUPT
    op.context.operation = operation
    op.context.bucket = index
    compiler_fence()
    for _ in range(SPIN_PAUSES_MAX):
        seen = load_relaxed_u64(&bucket[0].header)
        if not level_covers(bucket_level_plus1(seen), index, op.hash):
            return RETRY                               # it was split or merged meanwhile
        if not word_locked(seen):
            held[0] = word_taken(seen, op.self_index)
            # Acquire: as in lock_try.
            if cas_acquire_u64(&bucket[0].header, seen, held[0]):
                return OK
        pause()
    return lock_busy(op, &bucket[0].header, seen)

cdef inline bint bucket_hold_unchanged(
        Op *op, uint32_t operation, const Found *miss) noexcept nogil:
    """Lock the bucket of a validated miss if nothing has happened to it since its header was looked
    at first. True: the miss still holds."""
    if unlikely(word_locked(miss.header)):
        return False
    op.context.operation = operation
    op.context.bucket = miss.bucket
    compiler_fence()
    # Acquire: as in bucket_hold. Whoever changed the chain since has raised the version.
    return cas_acquire_u64(
        &bucket_at(op.map, miss.bucket).header, miss.header,
        word_taken(miss.header, op.self_index))

cdef inline void map_shrink_if_empty(Op *op) noexcept nogil:
    """After a delete: at most two merges, if the load is low, and memory back."""
    cdef Map *map = op.map
    cdef uint64_t taken = entries_taken(map)
    cdef uint64_t count = table_count(map)
    cdef uint64_t usable
    cdef int turn
    for turn in range(2):
        if taken * 4 >= count * 7 or (turn == 1 and taken >= count):
            break
        if table_shrink(op) != OK:
            break
    if table_count(map) == count and op.hash & RELEASE_MASK:
        return
    count = table_count(map)
    usable = region_usable(map, REGION_BUCKETS)
    if usable > count * LINE_BYTES + REGION_SLACK_BYTES + count * LINE_BYTES // 8:
        region_release(op, REGION_BUCKETS, count * LINE_BYTES + REGION_SLACK_BYTES // 4)

cdef inline Status delete_found(
        Op *op, Bucket *bucket, const Found *found, void *value) noexcept nogil:
    """Delete an element of a held bucket, and unlock it. A section open on it is cut off, unless
    this operation waits for sections."""
    if word_locked(found.header) and (
            op.f_lock or element_state(found.header) != ELEMENT_LOCKED):
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
        return element_await(op, found)
    store_relaxed_u64(&op.context.element, found.index)
    compiler_fence()
    # Acquire: the value as the last writer left it. DEAD commits.
    if not cas_acq_rel_u64(
            &found.element.header, found.header,
            element_header(found.header, ELEMENT_DEAD, lock_bits(op.self_index))):
        store_relaxed_u64(&op.context.element, 0)
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
        return RETRY
    fence_release()                        # DEAD before whatever becomes of the element
    if value != NULL:
        copy_out(value, element_value(op.map, found.element), op.map.value_size)
        if op.map.field_count != 0 and not op.options & OP_TYPED:
            fields_blank(op.map, <uint64_t *> value)
    chain_remove(op, bucket, found.line, found.slot)
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)
    if not op.options & OP_HOLD:
        op_settle(op)
    return OK

cdef inline Status map_delete_held(Op *op, uint64_t held, void *value) noexcept nogil:
    """Delete key, copying its last value out if value is not NULL; if held is not 0, only if that
    is the header of its element. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Bucket *bucket = NULL
    cdef uint64_t bucket_held = 0
    cdef Found found
    cdef Status status = RETRY
    cdef bint over = False
    cdef int _
    if unlikely(op.context.element != 0 or op.context.owing != 0 or op.context.line_stash != 0):
        op_settle(op)
    if op.context.element != 0 or op.context.owing != 0:
        return BUSY
    for _ in range(WRITE_TRIES_MAX):
        status = bucket_hold(op, OPERATION_DELETE, &bucket, &bucket_held)
        if status == OK:
            status = chain_find(op.map, bucket, op.hash, op.key, op.map.key_size, &found)
            if status == OK and held != 0 and found.header != held:
                status = ABSENT
            if status == OK:
                over = held == 0 and not op.options & OP_TYPED and element_is_over(op.map, &found)
                status = delete_found(op, bucket, &found, value)
            else:
                lock_release(&bucket.header, bucket_held)
        if status != RETRY:
            break
    if status == OK:
        map_shrink_if_empty(op)
    return ABSENT if status == OK and over else status     # it had expired: it was absent

cdef inline Status map_delete(Op *op, void *value) noexcept nogil:
    return map_delete_held(op, 0, value)

cdef inline bint bucket_first(Map *map, Bucket *bucket, Found *found) noexcept nogil:
    """Any element of a held bucket."""
    cdef uint32_t slot, index
    for slot in range(SLOT_COUNT):
        index = load_relaxed_u32(&bucket.indices[slot])
        if index != 0 and index < map.element_max:
            found.line = bucket
            found.slot = slot
            found.index = index
            found.element = element_at(map, found.index)
            found.header = load_acquire_u64(&found.element.header)
            return True
    return False

cdef inline Status map_clear_bucket(Op *op, uint64_t index) noexcept nogil:
    """Delete one element of bucket index. ABSENT if it has none. BUSY, RETRY: call again."""
    cdef Bucket *bucket = bucket_at(op.map, index)
    cdef uint64_t held = 0
    cdef Found found
    cdef Status status
    op_settle(op)
    if op.context.element != 0 or op.context.owing != 0:
        return BUSY
    if index >= buckets_usable(op.map):
        return ABSENT
    op.context.operation = OPERATION_DELETE
    op.context.bucket = index
    compiler_fence()
    status = lock_acquire(op, &bucket.header, &held)
    if status != OK:
        return status
    if not bucket_first(op.map, bucket, &found):
        lock_release(&bucket.header, held)
        return ABSENT
    return delete_found(op, bucket, &found, NULL)
