# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Deletions of one key, and of all of them.
#
# A deletion is committed by its element's DEAD, under the lock of the bucket that its hash belongs
# to; then the slot is cleared, the bucket unlocked, and the objects that the element refers to and
# the element itself are freed. If the process is killed in between, recovery performs the remaining
# steps.
#
# Emptying a map ends because insertions are locked out: header.clearing is held from the beginning
# to the end, and the insertion of a new key finds it BUSY. Updates and deletions go on. The buckets
# are emptied from the last to the first, because a merge moves entries down. A split that is under
# way moves some up, perhaps into a bucket that the pass has left behind. So the last pass is one
# that finds every bucket empty, and during which no split was counted (statistics.grows, which is
# raised before the parent is unlocked). A process that dies while it empties the map is recovered
# by the next process that meets header.clearing, or another lock of the dead one; recovery finishes
# the work (recover.pxd).
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, load_relaxed_u32, cas_acq_rel_u64,
    fence_release, compiler_fence, likely, unlikely, copy_out,
)
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY
from segment.layout cimport (
    LINE_BYTES, SLOT_COUNT, BUCKET_VERSION_ONE, ELEMENT_LOCKED, ELEMENT_DEAD, REGION_BUCKETS,
    OPERATION_DELETE, Bucket,
)
from segment.words cimport word_locked, element_state, element_header, lock_bits
from segment.geometry cimport (
    Map, bucket_at, element_at, element_value, region_usable, buckets_usable,
)
from segment.fields cimport fields_blank
from memory.operation cimport (
    OP_RAW_FIELDS, OP_KEEP_ELEMENT, Op, lock_acquire, lock_release, WRITE_TRIES_MAX,
    REGION_SLACK_BYTES, RELEASE_MASK,
)
from memory.region cimport region_release
from map.bell cimport element_changed
from map.chain cimport Found, chain_find, chain_remove
from map.element cimport element_expired, element_spin
from map.table cimport table_count, entries_taken
from map.resize cimport table_shrink
from map.read cimport entry_find, entry_expired
from map.hold cimport op_give_back, bucket_hold

cdef inline void map_shrink_if_empty(Op *op) noexcept nogil:
    """After a delete: at most two merges, if the load is low, and give unused memory back."""
    cdef Map *map = op.map
    cdef uint64_t taken = entries_taken(map)
    cdef uint64_t count = table_count(map)
    cdef uint64_t usable
    cdef int turn
    if likely(taken * 4 >= count * 7 and op.hash & RELEASE_MASK):
        return
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
        Op *op, Bucket *bucket, const Found *found, uint64_t held, void *value) noexcept nogil:
    """Delete an element of a held bucket, and unlock the bucket. A section that is open on the
    element is cut off, unless this operation waits for sections. held: the header, if this context
    holds the element, or 0. op.hash is the key's hash."""
    if word_locked(found.header) and found.header != held and (
            op.f_lock or element_state(found.header) != ELEMENT_LOCKED):
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
        return element_spin(op, found)
    store_relaxed_u64(&op.context.element, found.index)
    compiler_fence()
    # Acquire: the value as the last writer left it. DEAD commits.
    if not cas_acq_rel_u64(
            &found.element.header, found.header,
            element_header(found.header, ELEMENT_DEAD, lock_bits(op.self_index))):
        store_relaxed_u64(&op.context.element, 0)
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
        return RETRY
    fence_release()                        # DEAD before any later use of the element
    if value != NULL:
        copy_out(value, element_value(op.map, found.element), op.map.value_size)
        if op.map.field_count != 0 and not op.options & OP_RAW_FIELDS:
            fields_blank(op.map, <uint64_t *> value)
    chain_remove(op, bucket, found.line, found.slot)
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)
    # The element is DEAD and this context's, so its key stands.
    element_changed(op, <const uint8_t *> &found.element.words[0], found.index)
    if not op.options & OP_KEEP_ELEMENT:
        op_give_back(op)
    return OK

cdef inline Status map_delete_held(Op *op, uint64_t held, void *value) noexcept nogil:
    """Delete key, and copy its last value out if value is not NULL; if held is not 0, only if the
    header of its element is held. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Bucket *bucket = NULL
    cdef uint64_t bucket_held = 0
    cdef Found found
    cdef Status status = RETRY
    cdef bint over = False
    cdef int _
    if unlikely(op.context.element != 0 or op.context.debt != 0 or op.context.line_stash != 0):
        op_give_back(op)
    if op.context.element != 0 or op.context.debt != 0:
        return BUSY
    for _ in range(WRITE_TRIES_MAX):
        status = bucket_hold(op, OPERATION_DELETE, &bucket, &bucket_held)
        if status == OK:
            status = chain_find(op.map, bucket, op.hash, op.key, op.map.key_size, &found)
            if status == OK and held != 0 and found.header != held:
                status = ABSENT
            if status == OK:
                over = held == 0 and not op.options & OP_RAW_FIELDS and element_expired(
                    op.map, &found)
                status = delete_found(op, bucket, &found, held, value)
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
    """Find any element of a held bucket."""
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
    op_give_back(op)
    if op.context.element != 0 or op.context.debt != 0:
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
    op.hash = load_relaxed_u32(&found.line.tags[found.slot])
    return delete_found(op, bucket, &found, 0, NULL)

# How far emptying a map has come. It begins with zeros.
cdef struct Clearing:
    uint64_t index             # this pass has yet to search the buckets below
    uint64_t splits            # statistics.grows when this pass began
    bint empty                 # this pass has found no entry, and no held lock

cdef inline Status clear_step(Op *op, Clearing *clearing) noexcept nogil:
    """Delete one entry, or begin another pass: OK. ABSENT: none is left. BUSY, RETRY: call again.
    """
    # Acquire: pairs with the fence in bucket_set_level. A bucket whose split is counted here lies
    # below the number of buckets that is loaded next.
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
    """Delete every entry. OK; or the status of the step that failed, and entries may be left."""
    cdef Clearing pass_ = Clearing(0, 0, False)
    cdef Status status = OK
    while status == OK:                        # each turn deletes an entry; none are inserted
        status = clear_step(op, &pass_)
    return OK if status == ABSENT else status

cdef inline Status entry_expire(Op *op, uint64_t *value) noexcept nogil:
    """Delete the entry of op's key if it has expired. OK: it is deleted. ABSENT: there is none, or
    it has not expired, or a section holds it. BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = entry_find(op.map, op.hash, op.key, &found, value)
    if status != OK:
        return status
    if not entry_expired(op.map, value) or element_state(found.header) == ELEMENT_LOCKED:
        return ABSENT
    return map_delete_held(op, found.header, NULL)
