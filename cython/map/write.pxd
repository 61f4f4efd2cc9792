# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Inserting an entry, updating one, and changing a value in one step; the methods of RHashMap call
# these. Deletions are in remove.pxd.
#
# Each operation is a loop of attempts. An attempt searches for the key, takes at most what the lock
# order allows (operation.pxd), and either commits with one store or gives everything up and returns
# the reason:
#   RETRY    another operation changed the map    -> next attempt at once
#   NEED_*   memory has to be committed           -> commit it, next attempt
#   BUSY     a lock is held                       -> the caller waits (wait.pxd) and calls again
# No lock is held when an operation returns, but an element that it has taken and filled may stay in
# context.element for the next attempt, and objects in context.owned_refs; op_give_back gives them
# back.
#
# A value is changed in one step (a number added, a value swapped) while its element is held
# (ULOCK), for the time of a few instructions; nothing else can change it, and a reader sees the old
# value or the new one.
#
# To store an entry with objects, the caller makes and fills the objects in its context
# (object_make), then calls map_update: the objects are the context's until the element has them.
#
# Linearization points (W1): insert: the slot's store; update: the header's UPD, or the word's
# store; a number in one word: the word's store; other changes in one step: the header's UPD; a swap
# that does not find what it expects: between taking the element and releasing it; a lookup of an
# absent key before a write: the second reading of the bucket's header; delete: the header's DEAD.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, load_relaxed_u32, add_relaxed_u64, compiler_fence, likely,
    unlikely, read_tail, copy_in, copy_words,
)
from machine.hashing cimport hash_key
from machine.number cimport NumberField, field_compute
from segment.status cimport (
    Status, OK, ABSENT, PRESENT, FULL, NO_MEMORY, OUT_OF_BYTES, BUSY, RETRY, NEED_BUCKETS,
    NEED_ELEMENTS,
    NEED_LINES,
)
from segment.layout cimport (
    LINE_BYTES, LINK_SLOT, BUCKET_VERSION_ONE, LINK_BASE, ELEMENT_LIVE, ELEMENT_ULOCK,
    REGION_BUCKETS, OPERATION_INSERT, Bucket, Element, Header,
)
from segment.words cimport element_state
from segment.geometry cimport Map, bucket_at, element_at, element_value, context_redo, checked_index
from segment.fields cimport fields_begin
from memory.operation cimport (
    OP_RAW_FIELDS, OP_NO_SWEEP, OP_PLAIN, OP_KEEP_SHIFT, Op, lock_busy, lock_release,
    WRITE_TRIES_MAX,
)
from memory.region cimport region_commit
from memory.pool cimport block_commit
from memory.depot cimport element_take
from map.rest cimport rest_shorten
from map.bell cimport key_changed, key_changed_in, word_changed
from map.chain cimport Found, chain_find, chain_append
from map.element cimport (
    element_read, element_expired, element_unchanged, element_spin, element_hold, element_release,
    element_update, element_apply, element_swap,
)
from map.reference cimport refs_attach, refs_detach, refs_blank, owned_refs_forget, element_replace
from map.table cimport table_count, entries_taken, table_guess, bucket_missed
from map.resize cimport table_pass, table_split
from map.read cimport (
    map_find, bucket_find, find_once, slot_holds_key, first_slot, entry_find, entry_expired,
    entry_first,
)
from map.hold cimport bucket_hold, bucket_hold_if_unchanged
from map.remove cimport map_delete_held
from map.sweep cimport sweep_some
from map.evict cimport entry_begin

cdef enum:
    UPDATE_ANY = 0
    UPDATE_NOEXIST = 1
    UPDATE_EXIST = 2

cdef enum:
    SPLITS_PUT_OFF_MASK = 7    # asking costs 0.3 us; an owner that runs unlocks long before


cdef inline Status map_memory(Op *op, Status need) noexcept nogil:
    """Commit the memory that an attempt asked for. OK: there is more now."""
    if need == NEED_ELEMENTS:
        return block_commit(op, &op.map.element_pool)
    if need == NEED_LINES:
        return block_commit(op, &op.map.line_pool)
    return region_commit(op, REGION_BUCKETS, (table_count(op.map) + 1) * LINE_BYTES)

cdef inline void element_fill(Op *op, Element *element, const uint8_t *value) noexcept nogil:
    """Store a value with special fields, by way of the redo buffer: a reference in the caller's
    bytes never stands in the element, nor, without OP_RAW_FIELDS, any other special field."""
    cdef uint64_t *redo = context_redo(op.context)
    copy_in(redo, value, op.map.value_size)
    if not op.options & OP_RAW_FIELDS:
        fields_begin(op.map, redo)
    refs_blank(op.map, redo)
    copy_words(element_value(op.map, element), redo, op.map.value_words)
    compiler_fence()
    refs_attach(op, element)
    if unlikely(op.map.cache != NULL):
        entry_begin(op, element)

cdef inline Status element_prepare(
        Op *op, Element *element, const uint8_t *value) noexcept nogil:
    """Store key and value in an element that this context has taken. RETRY if the key in the
    caller's memory has changed."""
    cdef Map *map = op.map
    cdef uint32_t key_hash
    copy_in(&element.words[0], op.key, map.key_size)
    op.element_filled = True
    if likely(op.options & OP_PLAIN):
        copy_in(element_value(map, element), value, map.value_size)
        return OK
    if map.field_count != 0:
        element_fill(op, element, value)
    else:
        copy_in(element_value(map, element), value, map.value_size)
    # From here on the element's copy of the key counts: another thread may change the caller's
    # memory while this one inserts.
    key_hash = hash_key(map.seeds, <const uint8_t *> &element.words[0], map.key_size)
    if unlikely(key_hash != op.hash):
        op.element_filled = False
        op.hash = key_hash
        return RETRY
    return OK

cdef inline Status insert_hold(
        Op *op, Element *element, const Found *miss, Bucket **bucket) noexcept nogil:
    """Lock the bucket for a filled element. ABSENT: the bucket is locked and does not have the key.
    RETRY (it has the key), BUSY, CORRUPT: it is not locked."""
    cdef uint64_t held = 0
    cdef Found found
    cdef Status status
    # index 0: no used slot has this hash's tag, so every key with this hash is absent.
    if likely(miss.index == 0 and bucket_hold_if_unchanged(op, OPERATION_INSERT, miss)):
        bucket[0] = bucket_at(op.map, miss.bucket)
        return ABSENT
    status = bucket_hold(op, OPERATION_INSERT, bucket, &held)
    if status != OK:
        return status
    status = chain_find(
        op.map, bucket[0], op.hash, <const uint8_t *> &element.words[0], op.map.key_size, &found)
    if status == ABSENT:
        return ABSENT
    lock_release(&bucket[0].header, held)
    return RETRY if status == OK else status           # inserted by another: it is updated instead

cdef inline void split_put_off(Op *op, uint64_t child) noexcept nogil:
    """A lock that a split takes is held. The split is left to the next insertion; every 8th call
    recovers the lock's owner if that is dead, and otherwise passes the bucket (table_pass)."""
    op.map.splits_put_off += 1
    if op.map.splits_put_off & SPLITS_PUT_OFF_MASK != 0:
        return
    if op.map.owner_recover == NULL or not op.map.owner_recover(op):
        table_pass(op, child)

cdef inline Status map_split(Op *op, uint64_t child) noexcept nogil:
    """Split a bucket off, and commit the memory that this takes."""
    cdef Status status = table_split(op, child)
    if status == NEED_BUCKETS or status == NEED_LINES:
        status = map_memory(op, status)
        if status == NO_MEMORY or status == OUT_OF_BYTES:      # chains get longer instead
            add_relaxed_u64(&op.map.header.statistics.growth_stopped, 1)
        if status == OK:
            status = table_split(op, child)
    if status == BUSY:
        split_put_off(op, child)
    return status

cdef inline void map_catch_up(Op *op, Bucket *bucket) noexcept nogil:
    """After an insertion into a bucket that has lines: if the bucket has missed a split, because
    its child was passed (table_pass), split it now."""
    cdef uint64_t child = bucket_missed(
        op.map, <uint64_t> (<uint8_t *> bucket - op.map.buckets) // LINE_BYTES)
    if unlikely(child != 0):
        map_split(op, child)

cdef inline Status insert_try(
        Op *op, const uint8_t *value, const Found *miss, bint any_depot) noexcept nogil:
    """Insert a key that was absent when miss was validated. RETRY if it has been inserted since, or
    if the key in the caller's memory has changed."""
    cdef Map *map = op.map
    cdef Bucket *bucket = NULL
    cdef Element *element
    cdef Status status
    if unlikely(load_relaxed_u64(&map.header.clearing) != 0):
        return lock_busy(op, &map.header.clearing, load_relaxed_u64(&map.header.clearing))
    if op.context.element == 0:
        status = element_take(op, any_depot)
        if status != OK:
            return status
    element = element_at(
        map, checked_index(&map.element_pool, load_relaxed_u64(&op.context.element)))
    if not op.element_filled:
        status = element_prepare(op, element, value)
        if unlikely(status != OK):
            return status
    status = insert_hold(op, element, miss, &bucket)
    if status != ABSENT:
        return status
    if unlikely(map.timer_word != 0):
        rest_shorten(map, load_relaxed_u64(element_value(map, element) + map.timer_word - 1))
    status = chain_append(op, bucket, <uint32_t> op.context.element, op.hash, element)
    if unlikely(status != OK):
        lock_release(&bucket.header, load_relaxed_u64(&bucket.header))
        return status
    lock_release(&bucket.header, load_relaxed_u64(&bucket.header) + BUCKET_VERSION_ONE)
    compiler_fence()
    store_relaxed_u64(&op.context.element, 0)
    key_changed(op)
    if map.ref_count != 0:
        owned_refs_forget(op)
    if unlikely(load_relaxed_u32(&bucket.indices[LINK_SLOT]) >= LINK_BASE):
        map_catch_up(op, bucket)
    return OK

cdef inline void map_grow_if_loaded(Op *op) noexcept nogil:
    """After an insert: at most two splits, if the load is high."""
    cdef uint64_t taken = entries_taken(op.map)
    cdef uint64_t count = table_count(op.map)
    cdef int turn
    for turn in range(2):
        if taken * 2 <= count * 7 or (turn == 1 and taken * 2 <= count * 9):
            return
        if map_split(op, table_count(op.map)) != OK:
            return

cdef inline Status map_insert(
        Op *op, const uint8_t *value, const Found *miss, bint *any_depot) noexcept nogil:
    """insert_try, then the splits, the sweep or the memory that its result calls for."""
    cdef Status status = insert_try(op, value, miss, any_depot[0])
    cdef Status memory
    cdef Found found
    if status == OK:
        map_grow_if_loaded(op)
        if unlikely(op.map.timer_word != 0) and not op.options & OP_NO_SWEEP:
            sweep_some(op)
    elif status >= NEED_BUCKETS:
        memory = map_memory(op, status)
        if memory == OK:
            return RETRY
        if (memory == NO_MEMORY or memory == OUT_OF_BYTES) and (
                status == NEED_ELEMENTS and not any_depot[0]):
            any_depot[0] = True                         # other depots may have free elements
            return RETRY
        status = memory
    # The loser of a race for the last room updates the key if the winner inserted it (W2).
    if (status == FULL or status == NO_MEMORY or status == OUT_OF_BYTES) and (
            map_find(op.map, op.hash, op.key, &found) != ABSENT):
        return RETRY
    return status

cdef inline Status delete_if_expired(Op *op, const Found *found) noexcept nogil:
    """Delete the entry that map_find found if it has expired. OK: it stays; RETRY, BUSY. With typed
    values (OP_RAW_FIELDS) the caller checks the deadline itself (read.pxd), so the entry stays, as
    does one that is held, by a section for example."""
    cdef Status status
    if not element_expired(op.map, found) or op.options & OP_RAW_FIELDS or (
            element_state(found.header) != ELEMENT_LIVE):
        return OK
    op.element_filled = False
    status = map_delete_held(op, found.header, NULL)
    return RETRY if status == OK or status == ABSENT else status

cdef inline Status map_replace(Op *op, const Found *found, const uint8_t *value) noexcept nogil:
    """element_update for a value with special fields. If an attempt to insert came before, its
    element has the new objects: take them back first."""
    if op.element_filled and op.context.element != 0:
        refs_detach(op, element_at(op.map, checked_index(
            &op.map.element_pool, load_relaxed_u64(&op.context.element))))
        op.element_filled = False
    return element_replace(op, found, value, 0)

cdef inline Status update_with_fields(
        Op *op, const Found *found, const uint8_t *value, uint32_t flag) noexcept nogil:
    """map_update of a present key, if its value has special fields or flag forbids an update."""
    cdef Status status = OK
    if op.map.timer_word != 0:
        status = delete_if_expired(op, found)
    if status == OK and flag == UPDATE_NOEXIST:
        return PRESENT if element_unchanged(found) else RETRY
    if status == OK:
        status = map_replace(op, found, value)
    return status

cdef inline bint update_word_fast(
        Op *op, uint64_t key, uint64_t value, const NumberField *field, uint64_t *after
        ) noexcept nogil:
    """The usual case of map_update for a present key in a map of words only (as read_word_fast in
    read.pxd); or, if after is not NULL, of map_apply to a number that is the whole value: by
    field's operation or, if field is NULL, by adding value. False: nothing was done."""
    cdef Found found
    cdef uint32_t index = 0
    cdef uint32_t *slot = first_slot(
        bucket_at(op.map, table_guess(op.map, op.hash)), op.hash, &index)
    cdef uint64_t held = 0
    cdef Header *header = op.map.header
    if unlikely(slot == NULL) or unlikely(
            not slot_holds_key(op.map, slot, index, <const uint8_t *> &key, 8, &found)):
        return False
    if unlikely(element_hold(op, &found, ELEMENT_ULOCK, &held) != OK):
        return False
    if field != NULL:
        value = after[0] = field_compute(field, load_relaxed_u64(&found.element.words[1]))
    elif after != NULL:
        value = after[0] = load_relaxed_u64(&found.element.words[1]) + value
    store_relaxed_u64(&found.element.words[1], value)
    element_release(op, found.element, held)
    word_changed(op, header, key)
    return True

cdef inline bint word_change(
        Op *op, const Found *found, uint64_t word, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept nogil:
    """Store one word of the value of a found element, whose other words stay; or, if after is not
    NULL, change the word and store the result in after, too: by field's operation, or by adding
    number. As element_apply, one store commits. False: another operation holds the element, or it
    has changed; nothing was done."""
    cdef uint64_t held = 0
    cdef uint64_t *place = element_value(op.map, found.element) + word
    cdef Header *header = op.map.header
    if unlikely(element_hold(op, found, ELEMENT_ULOCK, &held) != OK):
        return False
    if field != NULL:
        number = after[0] = field_compute(field, load_relaxed_u64(place))
    elif after != NULL:
        number = after[0] = load_relaxed_u64(place) + number
    store_relaxed_u64(place, number)
    element_release(op, found.element, held)
    key_changed_in(op, header)
    return True

cdef inline bint word_change_first(
        Op *op, uint64_t key_size, uint64_t word, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept nogil:
    """word_change of op's key, if the first slot with the hash's tag leads to it, as straight code.
    False: nothing was done."""
    cdef Found found
    return likely(entry_first(op.map, op.hash, op.key, key_size, &found)) and likely(
        word_change(op, &found, word, number, field, after))

cdef inline bint word_change_fast(
        Op *op, uint64_t key_size, uint64_t word, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept nogil:
    """word_change of op's key, if its bucket has it, and nobody holds its element. False: nothing
    was done."""
    cdef uint64_t at = table_guess(op.map, op.hash)
    cdef Found found
    return bucket_find(op.map, &at, op.hash, op.key, key_size, &found) == OK and (
        element_state(found.header) == ELEMENT_LIVE
        and word_change(op, &found, word, number, field, after))

cdef inline Status map_update(Op *op, const uint8_t *value, uint32_t flag) noexcept nogil:
    """Store value under key. OK, PRESENT, ABSENT, FULL, NO_MEMORY; BUSY or RETRY: call again."""
    cdef Found found
    cdef bint any_depot = False
    cdef Status status = find_once(op.map, op.hash, op.key, &found)
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        if status == OK and likely(flag != UPDATE_NOEXIST and op.map.field_count == 0):
            status = element_update(op, &found, value)
        elif status == OK:
            status = update_with_fields(op, &found, value, flag)
        elif status == ABSENT and flag != UPDATE_EXIST:
            status = map_insert(op, value, &found, &any_depot)
        if status != RETRY:
            return status
        status = map_find(op.map, op.hash, op.key, &found)
    return RETRY                               # OK of the last search says that nothing was done


cdef inline Status map_apply(
        Op *op, const NumberField *field, const uint8_t *initial, uint64_t *after) noexcept nogil:
    """Change a field of the value; after receives the field's new bits. If initial is not NULL, an
    absent key is inserted with that value, in which the field has the result already. OK, ABSENT,
    FULL, NO_MEMORY; BUSY or RETRY: call again."""
    cdef Found found
    cdef bint any_depot = False
    cdef Status status = find_once(op.map, op.hash, op.key, &found)
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        if unlikely(op.map.timer_word != 0) and status == OK:
            status = delete_if_expired(op, &found)
        if status == OK:
            status = element_apply(op, &found, field, after)
        elif status == ABSENT and initial != NULL:
            status = map_insert(op, initial, &found, &any_depot)
            if status == OK:
                after[0] = read_tail(initial + field.offset, field.size)
        if status != RETRY:
            return status
        status = map_find(op.map, op.hash, op.key, &found)
    return RETRY                               # OK of the last search says that nothing was done

cdef inline Status map_swap(
        Op *op, const uint8_t *expected, const uint8_t *value, uint8_t *old,
        bint *swapped) noexcept nogil:
    """Replace a value if it equals expected, or if expected is NULL; the value from before is
    copied to old if that is not NULL. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = RETRY
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        if status == OK:
            status = element_swap(op, &found, expected, value, old, swapped)
        if status != RETRY:
            break
    return status

cdef inline Status map_lookup_unlocked(Op *op, void *value) noexcept nogil:
    """Copy a value at a moment when its element is not held (BPF_F_LOCK). OK, ABSENT; BUSY or
    RETRY: call again. An expired entry is not deleted: the handle may be read-only."""
    cdef Found found
    cdef Status status = RETRY
    cdef bint over
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        over = status == OK and element_expired(op.map, &found)
        if status == OK:
            if element_state(found.header) != ELEMENT_LIVE:
                status = element_spin(op, &found)
            elif not likely(element_read(
                    op.map, &found, op.map.key_size, value, op.map.value_size)):
                status = RETRY
            elif unlikely(over):
                status = ABSENT
        if status != RETRY:
            break
    return status

cdef inline Status entry_touch(Op *op, uint64_t deadline, uint64_t *value) noexcept nogil:
    """Set the deadline of an entry that has not expired. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = entry_find(op.map, op.hash, op.key, &found, value)
    if status != OK:
        return status
    if entry_expired(op.map, value):
        return ABSENT
    value[op.map.timer_word - 1] = deadline
    op.options |= 7 << OP_KEEP_SHIFT           # its references stay
    return element_replace(op, &found, <const uint8_t *> value, 0)
