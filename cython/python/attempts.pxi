# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: an operation is attempted until the result is final. repeat() is the loop; the
# two operations that have one of their own say why (writing.pxi), and so do those that go through
# many entries, which count what they have done.

# One attempt of an operation. It holds nothing when it returns RETRY or BUSY.
ctypedef Status (*Attempt)(Op *op, void *arguments) except? RETRY


cdef inline bint is_final(Status status) noexcept nogil:
    return status != RETRY and status != BUSY


cdef inline bint recovered_room(MapHandle handle, Status status, Op *op, Waiting *waiting) noexcept:
    """After FULL, NO_MEMORY or OUT_OF_BYTES: recover the dead, or sweep some expired entries; in a
    cache, evict some. Returns whether to try again."""
    if likely(status != FULL and status != NO_MEMORY and status != OUT_OF_BYTES):
        return False
    if handle.map.cache != NULL:
        return evict_for_room(handle, op, status, waiting)
    return recover_those_inside(&handle.map) != 0 or sweep_for_room(handle, op, waiting)


cdef inline Status repeat(
        MapHandle handle, Op *op, Attempt attempt, void *arguments, Waiting *waiting
        ) except? RETRY:
    """Repeat an attempt until its status is final, and return that; the caller raises."""
    cdef Status status
    while True:                                # ends with the timeout
        status = attempt(op, arguments)
        if likely(is_final(status)) and not recovered_room(handle, status, op, waiting):
            if unlikely(waiting.turn != 0):
                sweep_give_up(handle, op, waiting)
            return status
        wait_turn(handle, op, status, waiting)


cdef const uint8_t *buffer_bytes_any(
        MapHandle handle, str what, object thing, uint64_t wanted, Py_buffer *view) except NULL:
    if not PyObject_CheckBuffer(thing):
        refuse_buffer(handle, what, thing, -1, wanted)
    try:
        PyObject_GetBuffer(thing, view, PyBUF_SIMPLE)
    except BufferError:
        raise _errors.InvalidArgument(f"{what} must be contiguous in memory") from None
    if <uint64_t> view.len != wanted:
        size = view.len
        PyBuffer_Release(view)
        view.buf = NULL
        refuse_buffer(handle, what, thing, size, wanted)
    return <const uint8_t *> view.buf


cdef inline const uint8_t *buffer_bytes(
        MapHandle handle, str what, object thing, uint64_t wanted, Py_buffer *view) except NULL:
    """The bytes of a key or value. view.buf is not NULL if the caller has to release it."""
    view.buf = NULL
    if likely(PyBytes_CheckExact(thing) and <uint64_t> PyBytes_GET_SIZE(thing) == wanted):
        return <const uint8_t *> PyBytes_AS_STRING(thing)
    return buffer_bytes_any(handle, what, thing, wanted, view)


cdef Status attempt_settle(Op *op, void *_unused) noexcept:
    """Give back what an earlier operation in this context could not."""
    op_give_back(op)
    return BUSY if op.context.element != 0 or op.context.debt != 0 else OK


cdef int begin_raw(MapHandle handle, Op *op, Waiting *waiting) except -1:
    """Begin an operation that takes objects and stores references and deadlines itself. The key is
    in op."""
    enter_to_modify(handle, op)
    op.options = OP_RAW_FIELDS
    try:
        repeat(handle, op, attempt_settle, NULL, waiting)
    except BaseException:
        leave(handle, op)
        raise
    return 0


# How an operation on one key begins.
cdef enum Beginning:
    TO_READ
    TO_CHANGE
    TO_CHANGE_RAW              # begin_raw


cdef Status attempt_on_key(
        MapHandle handle, object key, Attempt attempt, void *arguments, Op *op,
        Beginning beginning) except? RETRY:
    """Begin an operation on one key, repeat an attempt of it, and end it; the caller raises."""
    cdef Py_buffer view
    cdef Status status = RETRY
    cdef Waiting waiting = new_waiting(handle)
    op.key = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    try:
        op.hash = hash_key(handle.map.seeds, op.key, handle.map.key_size)
        if beginning == TO_READ:
            enter_to_read(handle, op)
        elif beginning == TO_CHANGE:
            enter_to_modify(handle, op)
        else:
            begin_raw(handle, op, &waiting)
        try:
            status = repeat(handle, op, attempt, arguments, &waiting)
        finally:
            leave_reading(handle, op)
    finally:
        if view.buf != NULL:
            PyBuffer_Release(&view)
    return status


cdef Status claim_cut_off(Op *op, bint only_if_present) noexcept nogil:
    """After BUSY: RETRY if the key was claimed to compute its value (claiming.pxi), and the claim
    is now cut off; ABSENT if the store is only for a present key: the claim stays. Else BUSY."""
    cdef Found found
    cdef uint64_t deadline
    if map_find(op.map, op.hash, op.key, &found) != OK or (
            element_state(found.header) != ELEMENT_LOCKED):
        return BUSY
    deadline = load_relaxed_u64(
        element_value(op.map, found.element) + op.map.timer_word - 1)
    if not element_unchanged(&found) or not deadline_passed(deadline):
        return BUSY
    if only_if_present:
        return ABSENT
    op.element_filled = False
    return RETRY if map_delete_held(op, found.header, NULL) == OK else BUSY
