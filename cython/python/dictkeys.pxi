# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the operations of a dict on one key that are more than a step of DictHandle.

cdef struct Adding:            # for attempt_add
    Apply apply
    KeyBytes *key
    uint32_t key_slot


cdef bint touch_until(DictHandle owner, object key, int64_t deadline_ns) except -1:
    cdef KeyBytes key_bytes
    cdef uint64_t small[SPOT_WORDS]
    cdef Op op
    cdef Status status
    cdef Deadline fresh
    cdef Waiting waiting = new_waiting(owner.handle)
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    room = owner._value_room(small, &fresh.value)
    fresh.deadline_ns = <uint64_t> deadline_ns
    owner._begin(&op, &key_bytes, &waiting)
    try:
        status = repeat(owner.handle, &op, attempt_touch, &fresh, &waiting)
    finally:
        leave(owner.handle, &op)
    if status != OK and status != ABSENT:
        raise_status(owner.handle, status, &op)
    return status == OK


cdef uint64_t deadline_of(DictHandle owner, object key) except? 1:
    """When an entry expires; 0: never. Raises KeyNotFound."""
    cdef KeyBytes key_bytes
    cdef uint64_t when = 0
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    if owner._find_deadline(&key_bytes, &when) != OK or deadline_passed(when):
        raise _errors.KeyNotFound(key)
    return when


cdef object seconds_left(uint64_t deadline_ns):
    """The seconds until a deadline; None: there is none."""
    cdef int64_t left
    if deadline_ns == 0 or deadline_ns == <uint64_t> _arguments.NEVER_NS:
        return None
    left = <int64_t> deadline_ns - clock_ns(CLOCK_MONOTONIC)
    return left / 1e9 if left > 0 else 0.0


cdef int fill_addition(
        DictHandle owner, Adding *adding, object delta, uint32_t operation) except -1:
    """Describe the step: the field of the value that holds the number, and the operand."""
    adding.apply.field.offset = owner.value_word * 8
    adding.apply.field.size = 8
    adding.apply.field.operation = operation
    adding.apply.field.kind = FIELD_SIGNED if owner.value.kind == VALUE_INT else FIELD_FLOAT
    if owner.value.kind == VALUE_INT:
        owner.value._integer(delta)         # raises if it has more than 64 signed bits
    adding.apply.field.operand = field_bits(&adding.apply.field, delta)
    adding.apply.initial = NULL
    adding.key_slot = owner.key_slot
    return 0


cdef Status attempt_add(Op *op, void *arguments) noexcept:
    cdef Adding *adding = <Adding *> arguments
    cdef Status status
    if op.map.timer_word != 0:
        status = attempt_expire(op)
        if status == BUSY or status == RETRY or status == CORRUPT:
            return status
    status = leftovers_free(op)
    if status != OK:
        return status
    if adding.key.is_long and adding.apply.initial != NULL:
        status = object_make(op, adding.key_slot, adding.key.whole, adding.key.length)
        if status != OK:
            return status
    return attempt_apply(op, &adding.apply)


cdef object add_to(
        DictHandle owner, object key, object delta, object default,
        uint32_t operation=FIELD_ADD):
    """Add delta to a number; or keep the less, or the greater, of the two. The number stored."""
    cdef KeyBytes key_bytes
    cdef Op op
    cdef Adding adding
    cdef Status status
    cdef uint64_t after = 0
    cdef Waiting waiting = new_waiting(owner.handle)
    cdef bytearray fresh = None
    if owner.value.kind != VALUE_INT and owner.value.kind != VALUE_FLOAT:
        raise TypeError("add, min and max are for values that are int or float")
    fill_addition(owner, &adding, delta, operation)
    if owner.changes_quickly and likely(
            change_quickly(owner, key, 0, &adding.apply.field, &adding.apply.after)):
        return owner._number(adding.apply.after)
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    adding.key = &key_bytes
    if default is not None:
        fresh = bytearray(owner.handle.map.value_words * 8)
        after = field_compute(&adding.apply.field, field_bits(&adding.apply.field, default))
        memcpy(PyByteArray_AS_STRING(fresh) + adding.apply.field.offset, &after, 8)
        adding.apply.initial = <uint8_t *> PyByteArray_AS_STRING(fresh)
        if owner.handle.map.timer_word != 0:
            (<uint64_t *> adding.apply.initial)[owner.handle.map.timer_word - 1] = <uint64_t> (
                deadline_in(owner.default_ttl_ns))
        if owner.handle.map.cache != NULL:
            value_bear(&owner.handle.map, <uint64_t *> adding.apply.initial,
                       birth_now(&owner.handle.map), 0)
    owner._begin(&op, &key_bytes, &waiting)
    try:
        status = repeat(owner.handle, &op, attempt_add, &adding, &waiting)
    finally:
        leave(owner.handle, &op)
    if status == ABSENT:
        raise _errors.KeyNotFound(key)
    if status != OK:
        raise_status(owner.handle, status, &op)
    return field_number(&adding.apply.field, adding.apply.after)


cdef object view_of(DictHandle owner, object key):
    cdef KeyBytes key_bytes
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *value = NULL
    cdef Found found
    cdef Op op
    cdef Status status = OK
    cdef uint64_t rounds = 0
    cdef object pinned = None
    if owner.value_slot == NO_SLOT:
        raise _errors.InvalidArgument(
            "views are for values stored as objects (bytes, str, ...), not in the entry")
    expect_writable(owner.handle)
    kept = key_encode(owner.handle, owner.key, key, &key_bytes)
    room = owner._value_room(small, &value)
    owner._set_key(&op, &key_bytes)
    enter_to_read(owner.handle, &op)
    try:
        op_give_back(&op)
        while status == OK and pinned is None:     # again if the entry changed during the turn
            status = owner._find(&op, &found, value)
            if status == OK and entry_expired(&owner.handle.map, value):
                status = ABSENT
            if status == OK:
                pinned = pinned_object(
                    owner.handle, &op, &found,
                    value[owner.handle.map.ref_words[owner.value_slot]])
            renew(owner.handle, &op)
            rounds += 1
            if rounds > READ_ROUNDS_MAX:       # no writers interfere this often
                status = CORRUPT
    finally:
        leave_reading(owner.handle, &op)
    if status == ABSENT:
        raise _errors.KeyNotFound(key)
    if status != OK:
        raise_status(owner.handle, status, NULL)
    return memoryview(pinned)
