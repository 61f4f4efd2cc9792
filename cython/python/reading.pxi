# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: reading the value of one key. Nearly every lookup ends in read_value.

cdef enum:
    STACK_VALUE_MAX = 512      # larger values are copied straight into the bytes object


cdef Status read_slowly(
        MapHandle handle, const uint8_t *key, uint32_t hash, void *value) except? RETRY:
    """read_value when no idle context is at hand, by a handle without contexts, or when writers
    keep changing the key: it yields to them between its rounds."""
    cdef Op op
    cdef Status status = RETRY
    cdef uint64_t _rounds
    enter_to_read(handle, &op)
    for _rounds in range(READ_ROUNDS_MAX):
        if value == NULL:
            status = map_contains(&handle.map, hash, key)
        else:
            status = map_lookup(&handle.map, hash, key, value)
        if status != RETRY:
            break
        with nogil:
            sched_yield()
    leave_reading(handle, &op)
    if status != OK and status != ABSENT:
        raise_status(handle, CORRUPT, NULL)
    return status


cdef Status read_on(
        MapHandle handle, Context *context, uint64_t idle, const uint8_t *key, uint32_t hash,
        void *value) except? RETRY:
    """read_value, in a context in which the operation has begun. idle: as context_lent gave it."""
    cdef Status status = read_fast(&handle.map, hash, key, value)
    context_end(context)
    context_returned(handle, idle)
    if unlikely(status != OK and status != ABSENT):
        return read_slowly(handle, key, hash, value)
    return status


cdef Status read_any(MapHandle handle, const uint8_t *key, void *value) except? RETRY:
    cdef uint32_t hash = hash_key(handle.map.seeds, key, handle.map.key_size)
    cdef uint64_t idle
    if unlikely(handle.reads == READS_NONE):
        refuse_reading(handle)
    idle = context_lent(handle)
    if unlikely(idle == 0):
        return read_slowly(handle, key, hash, value)
    context_begin(context_at(&handle.map, idle - 1))
    return read_on(handle, context_at(&handle.map, idle - 1), idle, key, hash, value)


cdef inline Status read_value(MapHandle handle, const uint8_t *key, void *value) except? RETRY:
    """Copy the value of key to value; if value is NULL, only find out whether key is there."""
    cdef Context *context
    cdef uint32_t hash
    cdef uint64_t word
    cdef uint64_t idle
    if unlikely(handle.reads != READS_WORDS) or unlikely(handle.map.local.idle_context == 0):
        return read_any(handle, key, value)
    idle = context_lent(handle)              # local is mapped while reads is not READS_NONE
    if FREE_THREADED and idle == 0:
        return read_any(handle, key, value)
    context = context_at(&handle.map, idle - 1)
    context_begin(context)
    word = read_u64(key)
    hash = hash_word(handle.map.seeds, word)
    if unlikely(not read_word_fast(
            &handle.map, table_guess(&handle.map, hash), hash, word, <uint64_t *> value)):
        return read_on(handle, context, idle, key, hash, value)
    context_end(context)
    context_returned(handle, idle)
    return OK


cdef object lookup_any(MapHandle handle, object key):
    """lookup_value with any buffer as key, and values of any size."""
    cdef Py_buffer view
    cdef uint8_t small[STACK_VALUE_MAX]
    cdef Py_ssize_t size = <Py_ssize_t> handle.map.value_size
    cdef const uint8_t *key_bytes = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    cdef bytes value = None
    try:
        if size <= STACK_VALUE_MAX:
            if read_value(handle, key_bytes, small) == OK:
                value = recycled_bytes(&handle.recycler, small, size)
        else:
            value = PyBytes_FromStringAndSize(NULL, size)
            if read_value(handle, key_bytes, PyBytes_AS_STRING(value)) != OK:
                value = None
    finally:
        if view.buf != NULL:
            PyBuffer_Release(&view)
    return value


cdef inline object lookup_value(MapHandle handle, object key):
    """The value, or None."""
    cdef uint64_t word
    if unlikely(not PyBytes_CheckExact(key) or handle.map.value_size != 8
                or <uint64_t> PyBytes_GET_SIZE(key) != handle.map.key_size):
        return lookup_any(handle, key)
    if read_value(handle, <const uint8_t *> PyBytes_AS_STRING(key), &word) != OK:
        return None
    return recycled_bytes(&handle.recycler, &word, 8)


cdef object lookup_unlocked(MapHandle handle, object key):
    """lookup_value that waits for a moment when no context holds the element (BPF_F_LOCK)."""
    cdef Op op
    cdef bytes value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> handle.map.value_size)
    cdef Status status = attempt_on_key(
        handle, key, map_lookup_unlocked, PyBytes_AS_STRING(value), &op, TO_READ)
    if status != OK and status != ABSENT:
        raise_status(handle, status, &op)
    return value if status == OK else None


cdef bint contains_key(MapHandle handle, object key) except -1:
    cdef Py_buffer view
    cdef const uint8_t *key_bytes = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    try:
        return read_value(handle, key_bytes, NULL) == OK
    finally:
        if view.buf != NULL:
            PyBuffer_Release(&view)
