# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: storing and deleting the value of one key.
#
# update_once makes one attempt with exact bytes objects: there is no buffer to release and no loop,
# and nothing raises while the context is inside the operation. The same would save 2 % of the
# instructions of a deletion, and no time that can be measured.
#
# update_any and delete_key, behind the most frequent writes, have loops of their own: with the
# attempt behind a pointer, as in repeat(), add() executes 34 instructions more, 4 %.


cdef inline bint is_word(object thing) noexcept:
    return PyBytes_CheckExact(thing) and PyBytes_GET_SIZE(thing) == 8


cdef inline bint store_word(MapHandle handle, object key, object value) noexcept:
    """update_value of a present key, in a map whose keys and values are words. False: nothing was
    done, and the caller has to take the general path.

    It runs no Python and does not wait: see context_lent."""
    cdef Op op
    cdef uint64_t idle = context_lent(handle)
    cdef uint64_t word = read_u64(<const uint8_t *> PyBytes_AS_STRING(key))
    cdef bint stored
    if unlikely(idle == 0 or handle.map.read_only):
        if idle != 0:
            context_returned(handle, idle)
        return False
    op.map = &handle.map
    op.self_index = <uint32_t> (idle - 1)
    op.context = context_at(op.map, idle - 1)
    op.hash = hash_word(op.map.seeds, word)
    op.starving = 0
    context_begin(op.context)
    # freeze() waits for every operation that began before it.
    stored = likely(load_relaxed_u64(&op.map.header.frozen) == 0) and update_word_fast(
        &op, word, read_u64(<const uint8_t *> PyBytes_AS_STRING(value)), NULL, NULL)
    if unlikely(not stored):
        context_cancel(op.context)
        context_returned(handle, idle)
        return False
    context_end(op.context)
    note_write(handle, &op, idle)
    return True


cdef inline bint has_size(object thing, uint64_t size) noexcept:
    """Whether thing is a bytes object, exactly, of this size."""
    return PyBytes_CheckExact(thing) and <uint64_t> PyBytes_GET_SIZE(thing) == size


cdef inline Status update_once(
        MapHandle handle, object key, object value, uint32_t flag) except? RETRY:
    """update_any in one attempt. OK; another status: it failed, and nothing was stored."""
    cdef Op op
    cdef Status status
    op.key = <const uint8_t *> PyBytes_AS_STRING(key)
    op.hash = hash_key(handle.map.seeds, op.key, handle.map.key_size)
    enter_to_write(handle, &op)
    if likely(handle.map.field_count == 0):
        op.options = OP_PLAIN                  # bytes objects do not change
    status = map_update(&op, <const uint8_t *> PyBytes_AS_STRING(value), flag)
    leave(handle, &op)
    note_overwriting(handle, not op.element_filled)
    return status


cdef Status update_any(MapHandle handle, object key, object value, uint32_t flag) except? RETRY:
    cdef Py_buffer key_view
    cdef Py_buffer value_view
    cdef const uint8_t *value_bytes
    cdef Op op
    cdef Status status = RETRY
    value_view.buf = NULL
    op.key = buffer_bytes(handle, "key", key, handle.map.key_size, &key_view)
    try:
        value_bytes = buffer_bytes(handle, "value", value, handle.map.value_size, &value_view)
        op.hash = hash_key(handle.map.seeds, op.key, handle.map.key_size)
        enter_to_write(handle, &op)
        status = update_entered(handle, &op, value_bytes, flag)
    finally:
        if key_view.buf != NULL:
            PyBuffer_Release(&key_view)
        if value_view.buf != NULL:
            PyBuffer_Release(&value_view)
    return status


cdef inline Status update_entered(
        MapHandle handle, Op *op, const uint8_t *value, uint32_t flag) except? RETRY:
    """The rest of update_any, for a key in op, after enter()."""
    cdef Status status = RETRY
    cdef Waiting waiting = new_waiting(handle)
    try:
        while True:                            # ends with the timeout
            status = map_update(op, value, flag)
            if likely(is_final(status)) and not recovered_room(handle, status, op, &waiting):
                break
            wait_turn(handle, op, status, &waiting)
        if unlikely(waiting.turn != 0):
            sweep_give_up(handle, op, &waiting)
    finally:
        leave(handle, op)
    note_overwriting(handle, not op.element_filled)
    if unlikely(status != OK):
        raise_status(handle, status, op)
    return status


cdef inline Status update_value(
        MapHandle handle, object key, object value, uint32_t flag) except? RETRY:
    if overwrites(handle) and handle.reads == READS_WORDS and likely(
            flag != UPDATE_NOEXIST and is_word(key) and is_word(value)
            ) and likely(store_word(handle, key, value)):
        return OK
    if has_size(key, handle.map.key_size) and likely(
            has_size(value, handle.map.value_size)
            ) and likely(update_once(handle, key, value, flag) == OK):
        return OK
    return update_any(handle, key, value, flag)


cdef Status delete_key(MapHandle handle, object key, void *value, bint f_lock=False) except? RETRY:
    """OK or ABSENT."""
    cdef Py_buffer view
    cdef Op op
    cdef Status status = RETRY
    cdef Waiting waiting = new_waiting(handle)
    op.key = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    try:
        op.hash = hash_key(handle.map.seeds, op.key, handle.map.key_size)
        if value != NULL and handle.reads == READS_NONE:
            refuse_reading(handle)
        enter_to_write(handle, &op)
        op.f_lock = f_lock
        try:
            while True:                        # ends with the timeout
                status = map_delete(&op, value)
                if likely(status != RETRY and status != BUSY):
                    break
                wait_turn(handle, &op, status, &waiting)
        finally:
            leave(handle, &op)
    finally:
        if view.buf != NULL:
            PyBuffer_Release(&view)
    if unlikely(status != OK and status != ABSENT):
        raise_status(handle, status, &op)
    return status
