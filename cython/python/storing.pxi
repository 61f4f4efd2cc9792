# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: one attempt to store an entry of a dict or a cache: expire, make the objects,
# update. dicthandle.pxi encodes the key and the value before, and repeats the attempt.

cdef enum:
    BLANK_DEADLINE = 1         # in the first ns after the system's start: it has passed

# A value to store, for attempt_store.
cdef struct Storing:
    const KeyBytes *key
    const uint64_t *words
    const Span *span
    uint32_t flag
    uint32_t key_slot
    uint32_t value_slot


cdef Status attempt_expire(Op *op) noexcept nogil:
    """entry_expire without a copy of the value: it reads the deadline alone. BUSY if a section
    holds an expired entry: that is absent, but no other can be stored in its place yet."""
    cdef Found found
    cdef Status status = map_find(op.map, op.hash, op.key, &found)
    cdef bint over
    if status != OK:
        return status
    over = element_expired(op.map, &found)
    if not element_unchanged(&found) or not over:
        return ABSENT
    if element_state(found.header) == ELEMENT_LOCKED:
        return lock_busy(op, &found.element.header, found.header)
    if element_state(found.header) != ELEMENT_LIVE:
        return ABSENT
    return map_delete_held(op, found.header, NULL)


cdef Status attempt_store(Op *op, void *arguments) noexcept:
    """Make the objects that the value and a long key need, then update the entry."""
    cdef Storing *storing = <Storing *> arguments
    cdef Status status
    op.options = OP_RAW_FIELDS
    if op.map.timer_word != 0 and storing.flag != UPDATE_ANY:
        status = attempt_expire(op)
        if status == BUSY or status == RETRY or status == CORRUPT:
            return status
    status = leftovers_free(op)
    if status != OK:
        return status
    if storing.value_slot != NO_SLOT:
        status = object_make(
            op, storing.value_slot, storing.span.bytes, <uint64_t> storing.span.size)
        if status != OK:
            return status
    if storing.key_slot != NO_SLOT:
        op.options |= 1 << (OP_KEEP_SHIFT + storing.key_slot)
        if storing.key.is_long and storing.flag != UPDATE_EXIST:
            status = object_make(op, storing.key_slot, storing.key.whole, storing.key.length)
            if status != OK:
                return status
    return map_update(op, <const uint8_t *> storing.words, storing.flag)


cdef Status claim_cut_off(Op *op, bint only_if_present) noexcept nogil:
    """After BUSY: RETRY if the key was claimed to compute its value (claiming.pxi), and the claim
    is now cut off; ABSENT if the store is only for a present key: the claim stays. Else BUSY."""
    cdef Found found
    cdef bint over
    if map_find(op.map, op.hash, op.key, &found) != OK or (
            element_state(found.header) != ELEMENT_LOCKED):
        return BUSY
    over = element_expired(op.map, &found)
    if not element_unchanged(&found) or not over:
        return BUSY
    if only_if_present:
        return ABSENT
    op.element_filled = False
    return RETRY if map_delete_held(op, found.header, NULL) == OK else BUSY


cdef Status attempt_cache_store(Op *op, void *arguments) noexcept:
    """attempt_store, after making room for a new entry. One for which there is no memory is tried
    again a few times, after an eviction each; evict_for_room goes on with that."""
    cdef bint only_if_present = (<Storing *> arguments).flag == UPDATE_EXIST
    cdef Status status = OK
    cdef int tries
    for tries in range(EVICTIONS_AT_ONCE):
        status = OK if only_if_present else room_reserve(op)
        if status == OK:
            status = attempt_store(op, arguments)
        if status == BUSY:
            status = claim_cut_off(op, only_if_present)
            if status == RETRY:
                continue
        if status != FULL and status != NO_MEMORY and status != OUT_OF_BYTES:
            break
        if status == OUT_OF_BYTES and not bytes_can_be_free(op.map, op.bytes_wanted):
            break
        if tries > 0 and status != FULL and op.map.objects != NULL and holes_gather(op):
            continue
        if evict_one(op) != OK:
            break
    return status
