# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the special fields of a value: its objects (Kptr) and its deadline (Timer).


cdef uint32_t ref_at(MapHandle handle, Py_ssize_t offset) except? 0xFFFFFFFF:
    """The number of the reference that is at this offset of the value."""
    cdef uint32_t slot
    for slot in range(handle.map.ref_count):
        if <Py_ssize_t> handle.map.ref_words[slot] * 8 == offset:
            return slot
    raise _errors.InvalidArgument(f"map {handle.name!r} has no Kptr at offset {offset}")


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class ObjectExchange:
    """What kptr_xchg is about, for attempt_exchange."""

    cdef MapHandle handle
    cdef uint32_t slot
    cdef const Py_buffer *fresh    # the bytes of the new object; fresh.buf is NULL for none
    cdef bint only_read
    cdef bytes room                # for a copy of the value
    cdef bytes before              # the bytes of the object that was there; None if there was none


cdef Status attempt_exchange(Op *op, void *arguments) except? RETRY:
    cdef ObjectExchange exchange = <ObjectExchange> arguments
    cdef MapHandle handle = exchange.handle
    cdef uint64_t *value = <uint64_t *> PyBytes_AS_STRING(exchange.room)
    cdef const Py_buffer *fresh = exchange.fresh
    cdef Found found
    cdef uint64_t ref
    cdef Status status = entry_find(&handle.map, op.hash, op.key, &found, value)
    op.options = OP_RAW_FIELDS
    if status == OK and entry_expired(&handle.map, value):
        status = ABSENT
    if status != OK:
        return status
    ref = value[handle.map.ref_words[exchange.slot]]
    exchange.before = None
    if ref != 0:
        exchange.before = object_copy(handle, op, &found, ref)
        if exchange.before is None:
            return RETRY
    if exchange.only_read:
        return OK if element_unchanged(&found) else RETRY
    if fresh.buf != NULL:
        status = object_make(op, exchange.slot, <const uint8_t *> fresh.buf, <uint64_t> fresh.len)
        if status != OK:
            return status
    op.options = OP_RAW_FIELDS | (7 ^ (1 << exchange.slot)) << OP_KEEP_SHIFT
    # This fails unless the element is as it was found: the object copied is the one replaced.
    return element_replace(op, &found, <const uint8_t *> value, 0)


cdef object exchange_object(
        MapHandle handle, object key, object data, Py_ssize_t offset, bint only_read):
    """Store the bytes of data as the object at this offset, or none if data is None, unless
    only_read; return the bytes of the object that was there, or None."""
    cdef ObjectExchange exchange = ObjectExchange.__new__(ObjectExchange)
    cdef Op op
    cdef Py_buffer fresh
    cdef Status status
    exchange.handle = handle
    exchange.slot = ref_at(handle, offset)
    exchange.fresh = &fresh
    exchange.only_read = only_read
    exchange.room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> handle.map.value_words * 8)
    fresh.buf = NULL
    if data is not None:
        PyObject_GetBuffer(data, &fresh, PyBUF_SIMPLE)
    try:
        if data is not None and fresh.len > <Py_ssize_t> LENGTH_MAX:
            raise _errors.TooLarge(f"an object has at most {LENGTH_MAX} bytes")
        status = attempt_on_key(
            handle, key, attempt_exchange, <void *> exchange, &op, TO_CHANGE_RAW)
    finally:
        if data is not None:
            PyBuffer_Release(&fresh)
    if status == ABSENT:
        raise _errors.KeyNotFound(key)
    if status != OK:
        raise_status(handle, status, &op)
    return exchange.before


cdef struct Deadline:          # a new deadline, for attempt_touch
    uint64_t deadline_ns
    uint64_t *value            # room for a copy


cdef Status attempt_touch(Op *op, void *arguments) noexcept:
    cdef Deadline *fresh = <Deadline *> arguments
    return entry_touch(op, fresh.deadline_ns, fresh.value)


cdef bint set_deadline(MapHandle handle, object key, int64_t deadline_ns) except -1:
    """Set the deadline of a key's entry; 0: none. False: key is absent."""
    cdef Op op
    cdef Status status
    cdef Deadline fresh
    cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> handle.map.value_words * 8)
    if handle.map.timer_word == 0:
        raise _errors.InvalidArgument(f"map {handle.name!r} has no Timer field")
    fresh.deadline_ns = <uint64_t> deadline_ns
    fresh.value = <uint64_t *> PyBytes_AS_STRING(room)
    status = attempt_on_key(handle, key, attempt_touch, &fresh, &op, TO_CHANGE_RAW)
    if status != OK and status != ABSENT:
        raise_status(handle, status, &op)
    return status == OK


cdef object parts_of(MapHandle handle, bytes key):
    """All that is stored under a key, read in one step: (value as lookup() returns it,
    deadline, bytes or None of each Kptr, whether a section holds the entry); None if the key is
    absent. An expired entry is returned like any other."""
    cdef Op op
    cdef Py_buffer view
    cdef Found found
    cdef Status status = RETRY
    cdef int64_t deadline = 0
    cdef uint64_t _rounds
    cdef uint32_t slot
    cdef tuple objects = ()
    cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> handle.map.value_words * 8)
    cdef uint64_t *value = <uint64_t *> PyBytes_AS_STRING(room)
    op.key = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    op.hash = hash_key(handle.map.seeds, op.key, handle.map.key_size)
    enter_to_read(handle, &op)
    try:
        for _rounds in range(READ_ROUNDS_MAX):
            status = entry_find(&handle.map, op.hash, op.key, &found, value)
            if status == OK:
                objects = tuple([
                    object_copy(handle, &op, &found, value[handle.map.ref_words[slot]])
                    if value[handle.map.ref_words[slot]] != 0 else None
                    for slot in range(handle.map.ref_count)])
                if not renew(handle, &op) and element_unchanged(&found):
                    break
            elif status != RETRY:
                break
            status = RETRY
            with nogil:
                sched_yield()
    finally:
        leave_reading(handle, &op)
    if status == ABSENT:
        return None
    if status != OK:
        raise_status(handle, CORRUPT, NULL)
    deadline = <int64_t> entry_deadline(&handle.map, value)
    fields_blank(&handle.map, value)
    held = element_state(found.header) == ELEMENT_LOCKED
    return room[:handle.map.value_size], deadline, objects, held
