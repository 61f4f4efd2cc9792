# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Whole operations: what RHashMap's methods call.
#
# Each is a loop of attempts. An attempt looks, takes at most what lock.pxd's order allows, and
# either commits with one store or gives everything up and says why:
#   RETRY    the map changed meanwhile            -> at once again
#   NEED_*   memory has to be committed           -> commit, again
#   BUSY     a lock is held                       -> to the caller, who waits (wait.pxd), then again
# Nothing is held when an operation returns, but an element it has taken and filled may stay in
# context.element for the next attempt, and objects in context.names; op_settle gives them back.
#
# Linearization points (W1): lookup hit: between its two looks at the element's header; lookup miss:
# the second look at the bucket's header; insert: the slot's store; update: the header's UPD, or the
# word's store; delete: the header's DEAD.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport (
    load_relaxed_u32, load_relaxed_u64, load_acquire_u64, cas_acq_rel_u64, add_relaxed_u64,
    fence_release, compiler_fence, copy_in, copy_out, copy_words, unlikely, store_relaxed_u64,
)
from status cimport (
    Status, OK, ABSENT, PRESENT, NO_MEMORY, CORRUPT, BUSY, FULL, RETRY, NEED_BUCKETS, NEED_ELEMENTS,
    NEED_LINES,
)
from layout cimport (
    Bucket, Element, SLOT_COUNT, LINE_BYTES, BUCKET_VERSION_ONE, REGION_BUCKETS, ELEMENT_DEAD,
    ELEMENT_LOCKED, OPERATION_INSERT, OPERATION_DELETE, element_header, element_state, lock_bits,
    word_locked, word_held_by, bucket_level_plus1,
)
from hashing cimport hash_key
from geometry cimport (
    Map, bucket_at, line_at, context_redo, element_at, element_value, pool_object, region_usable,
    name_of, buckets_usable,
)
from special cimport fields_begin, fields_blank
from lock cimport Op, OP_HOLD, OP_TYPED, lock_acquire, lock_busy, lock_release
from commit cimport region_commit, region_release
from supply cimport block_commit
from pool cimport pool_give
from depot cimport element_take, element_give
from heap cimport names_settle
from chain cimport Found, chain_find, chain_append, chain_remove, line_stash
from element cimport element_await, element_stands, element_update
from reference cimport (
    element_replace, names_forget, refs_attach, refs_blank, refs_detach, refs_drop,
)
from table cimport table_find, table_count, table_grow, table_shrink, entries_taken, level_covers
from lookup cimport map_find

cdef enum:
    WRITE_TRIES_MAX = 64
    REGION_SLACK_BYTES = 65536     # unused end of the bucket array that is worth keeping

cdef enum:
    UPDATE_ANY = 0
    UPDATE_NOEXIST = 1
    UPDATE_EXIST = 2


cdef inline bint line_is_held(Op *op, uint64_t index) noexcept nogil:
    """Whether this context owns a line, as it thinks it does."""
    return index != 0 and index < op.map.line_max and word_held_by(
        line_at(op.map, index).header, op.self_index)

cdef inline void op_settle(Op *op) noexcept nogil:
    """Give back what an operation kept for a next attempt. What cannot be had now stays named."""
    cdef uint64_t line
    if unlikely(op.context.element != 0):
        if op.map.ref_count == 0 or refs_drop(op, element_at(op.map, name_of(
                &op.map.element_pool, load_relaxed_u64(&op.context.element)))) == OK:
            element_give(op)
    if unlikely(op.context.owing != 0) and op.map.objects != NULL:
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

cdef inline Status bucket_hold(
        Op *op, uint32_t operation, Bucket **bucket, uint64_t *held) noexcept nogil:
    """Lock the bucket that the operation's hash belongs to."""
    cdef uint64_t index = 0
    cdef Status status
    bucket[0] = table_find(op.map, op.hash, &index)
    if bucket[0] == NULL:
        return CORRUPT
    op.context.operation = operation
    op.context.bucket = index
    compiler_fence()
    status = lock_acquire(op, &bucket[0].header, held)
    if status != OK:
        return status
    if not level_covers(bucket_level_plus1(held[0]), index, op.hash):
        lock_release(&bucket[0].header, held[0])       # it was split or merged meanwhile
        return RETRY
    return OK

cdef inline Status map_memory(Op *op, Status need) noexcept nogil:
    """Commit what an attempt asked for. OK if there is more now."""
    if need == NEED_ELEMENTS:
        return block_commit(op, &op.map.element_pool)
    if need == NEED_LINES:
        return block_commit(op, &op.map.line_pool)
    return region_commit(op, REGION_BUCKETS, (table_count(op.map) + 1) * LINE_BYTES)

cdef inline void element_fill(Op *op, Element *element, const uint8_t *value) noexcept nogil:
    """A value with special fields: what it says there never stands in the element."""
    cdef uint64_t *redo = context_redo(op.context)
    copy_in(redo, value, op.map.value_size)
    if not op.options & OP_TYPED:
        fields_begin(op.map, redo)
    refs_blank(op.map, redo)
    copy_words(element_value(op.map, element), redo, op.map.value_words)
    compiler_fence()
    refs_attach(op, element)

cdef inline Status insert_try(Op *op, const uint8_t *value, bint scavenge) noexcept nogil:
    """Insert a key that was absent a moment ago. RETRY if it is not any more."""
    cdef Map *map = op.map
    cdef Bucket *bucket = NULL
    cdef Element *element
    cdef uint64_t held = 0
    cdef uint32_t key_hash
    cdef Found found
    cdef Status status
    if unlikely(load_relaxed_u64(&map.header.clearing) != 0):
        return lock_busy(op, &map.header.clearing, load_relaxed_u64(&map.header.clearing))
    if op.context.element == 0:
        status = element_take(op, scavenge)
        if status != OK:
            return status
    element = element_at(map, name_of(&map.element_pool, load_relaxed_u64(&op.context.element)))
    if not op.element_filled:
        copy_in(&element.words[0], op.key, map.key_size)
        if unlikely(map.field_count != 0):
            element_fill(op, element, value)
        else:
            copy_in(element_value(map, element), value, map.value_size)
        op.element_filled = True
        # From here on the element's key counts: the caller's memory may change under our eyes.
        key_hash = hash_key(map.seeds, <const uint8_t *> &element.words[0], map.key_size)
        if unlikely(key_hash != op.hash):
            op.element_filled = False
            op.hash = key_hash
            return RETRY
    status = bucket_hold(op, OPERATION_INSERT, &bucket, &held)
    if status != OK:
        return status
    status = chain_find(
        map, bucket, op.hash, <const uint8_t *> &element.words[0], map.key_size, &found)
    if status == ABSENT:
        status = chain_append(op, bucket, <uint32_t> op.context.element, op.hash, element)
        if status == OK:
            lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)
            compiler_fence()
            store_relaxed_u64(&op.context.element, 0)
            if map.ref_count != 0:
                names_forget(op)
            return OK
    elif status == OK:
        status = RETRY                                 # somebody inserted it: update that one
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
    return status

cdef inline void map_grow_if_loaded(Op *op) noexcept nogil:
    """After an insert: at most two splits, if the load is high."""
    cdef uint64_t taken = entries_taken(op.map)
    cdef uint64_t count = table_count(op.map)
    cdef Status status
    cdef int turn
    for turn in range(2):
        if taken * 2 <= count * 7 or (turn == 1 and taken * 2 <= count * 9):
            return
        status = table_grow(op)
        if status == NEED_BUCKETS or status == NEED_LINES:
            status = map_memory(op, status)
            if status == NO_MEMORY:                    # chains grow longer instead
                add_relaxed_u64(&op.map.header.statistics.growth_stopped, 1)
            if status == OK:
                status = table_grow(op)
        if status != OK:
            return

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
    count = table_count(map)
    usable = region_usable(map, REGION_BUCKETS)
    if usable > count * LINE_BYTES + REGION_SLACK_BYTES + count * LINE_BYTES // 8:
        region_release(op, REGION_BUCKETS, count * LINE_BYTES + REGION_SLACK_BYTES // 4)

cdef inline Status map_insert(Op *op, const uint8_t *value, bint *scavenge) noexcept nogil:
    """insert_try, and what it asks for."""
    cdef Status status = insert_try(op, value, scavenge[0])
    cdef Status memory
    cdef Found found
    if status == OK:
        map_grow_if_loaded(op)
    elif status >= NEED_BUCKETS:
        memory = map_memory(op, status)
        if memory == OK:
            return RETRY
        if memory == NO_MEMORY and status == NEED_ELEMENTS and not scavenge[0]:
            scavenge[0] = True                         # other depots may have parked some
            return RETRY
        status = memory
    # Others may have inserted the key, and taken the last room: then it is an update (W2).
    if (status == FULL or status == NO_MEMORY) and (
            map_find(op.map, op.hash, op.key, &found) != ABSENT):
        return RETRY
    return status

cdef inline Status map_replace(Op *op, const Found *found, const uint8_t *value) noexcept nogil:
    """element_update of a value with special fields. The new objects may belong to an element that
    was to be inserted."""
    if op.element_filled and op.context.element != 0:
        refs_detach(op, element_at(op.map, name_of(
            &op.map.element_pool, load_relaxed_u64(&op.context.element))))
        op.element_filled = False
    return element_replace(op, found, value, 0)

cdef inline Status map_update(Op *op, const uint8_t *value, uint32_t flag) noexcept nogil:
    """Store value under key. OK, PRESENT, ABSENT, FULL, NO_MEMORY; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = RETRY
    cdef bint scavenge = False
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        if status == OK and flag == UPDATE_NOEXIST:
            status = PRESENT if element_stands(&found) else RETRY
        elif status == OK and unlikely(op.map.field_count != 0):
            status = map_replace(op, &found, value)
        elif status == OK:
            status = element_update(op, &found, value)
        elif status == ABSENT and flag != UPDATE_EXIST:
            status = map_insert(op, value, &scavenge)
        if status != RETRY:
            break
    return status

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
    cdef int _
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
                status = delete_found(op, bucket, &found, value)
            else:
                lock_release(&bucket.header, bucket_held)
        if status != RETRY:
            break
    if status == OK:
        map_shrink_if_empty(op)
    return status

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
