# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: changing a value in one step that depends on the value before: arithmetic on a
# number in it, compare-and-swap, exchange.

cdef str FORMAT_INT64 = "q"
cdef dict FORMATS = {                          # of the struct module: (bytes, kind)
    "b": (1, FIELD_SIGNED), "B": (1, FIELD_UNSIGNED), "h": (2, FIELD_SIGNED),
    "H": (2, FIELD_UNSIGNED), "i": (4, FIELD_SIGNED), "I": (4, FIELD_UNSIGNED),
    "q": (8, FIELD_SIGNED), "Q": (8, FIELD_UNSIGNED), "f": (4, FIELD_FLOAT), "d": (8, FIELD_FLOAT),
}


cdef struct Apply:
    NumberField field
    const uint8_t *initial
    uint64_t after


cdef struct Swap:
    const uint8_t *expected
    const uint8_t *value
    uint8_t *old
    bint swapped


cdef Status attempt_apply(Op *op, void *arguments) noexcept nogil:
    cdef Apply *apply = <Apply *> arguments
    return map_apply(op, &apply.field, apply.initial, &apply.after)


cdef Status attempt_swap(Op *op, void *arguments) noexcept nogil:
    cdef Swap *swap = <Swap *> arguments
    return map_swap(op, swap.expected, swap.value, swap.old, &swap.swapped)


cdef int field_fill(MapHandle handle, NumberField *field, Py_ssize_t offset, fmt) except -1:
    """Fill in the size, kind and offset of a number field; check that it fits into a value."""
    if fmt is FORMAT_INT64:
        field.size, field.kind = 8, FIELD_SIGNED
    elif fmt in FORMATS:
        field.size, field.kind = FORMATS[fmt]
    else:
        raise _errors.InvalidArgument(
            f"fmt must be one of {', '.join(FORMATS)}, not {fmt!r}")
    if offset < 0 or offset > <Py_ssize_t> handle.map.value_size - <Py_ssize_t> field.size:
        raise _errors.InvalidArgument(
            f"a field of {field.size} bytes at offset {offset} does not fit into values of "
            f"{handle.map.value_size} bytes")
    field.offset = <uint64_t> offset
    return 0


cdef uint64_t field_bits(const NumberField *field, number) except? 0xFFFFFFFFFFFFFFFF:
    """The bits that store a Python number in the field; integers wrap around."""
    if field.kind == FIELD_FLOAT:
        return bits_of(float(number), field.size)
    return PyLong_AsUnsignedLongLongMask(number) & field_mask(field)


cdef object field_number(const NumberField *field, uint64_t bits):
    if field.kind == FIELD_FLOAT:
        return float_of(bits, field.size)
    if field.kind == FIELD_SIGNED:
        return sign_extended(bits, field.size)
    return bits


cdef int expect_plain(MapHandle handle) except -1:
    """Raise if values have special fields: they cannot be compared or exchanged whole."""
    if handle.map.field_count != 0:
        raise _errors.InvalidArgument(
            f"map {handle.name!r} has values with special fields; change them in a section")
    return 0


cdef bint change_word(
        MapHandle handle, object key, uint64_t number, const NumberField *field,
        uint64_t *after) noexcept:
    """The usual case of apply_number: keys and values are words, the key is there, and the number
    is its value, which changes as update_word_fast says. False: nothing was done. As store_word."""
    cdef Op op
    cdef uint64_t idle = context_lent(handle)
    cdef uint64_t word = read_u64(<const uint8_t *> PyBytes_AS_STRING(key))
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
    if unlikely(load_relaxed_u64(&op.map.header.frozen) != 0) or unlikely(
            not update_word_fast(&op, word, number, field, after)):
        context_cancel(op.context)
        context_returned(handle, idle)
        return False
    context_end(op.context)
    note_write(handle, &op, idle)
    return True


cdef object add_number(
        MapHandle handle, object key, object delta, object default, Py_ssize_t offset, object fmt):
    """apply_number for FIELD_ADD; in its usual case, an int and default arguments, in few steps."""
    cdef uint64_t number = 0
    cdef uint64_t after = 0
    if likely(handle.reads == READS_WORDS and fmt is FORMAT_INT64 and offset == 0
              and PyLong_CheckExact(delta) and is_word(key) and (
                  default is None or PyLong_CheckExact(default)) and int_word(delta, &number)
              and change_word(handle, key, number, NULL, &after)):
        return recycled_int(&handle.numbers, <int64_t> after)
    return apply_number(handle, key, delta, FIELD_ADD, default, offset, fmt)


cdef object apply_number(
        MapHandle handle, object key, object operand, uint32_t operation, object default,
        Py_ssize_t offset, object fmt):
    """Change the number of format fmt at this offset of a value; return the result."""
    cdef Apply apply
    cdef Op op
    cdef Status status
    cdef bytearray fresh
    cdef uint64_t first
    field_fill(handle, &apply.field, offset, fmt)
    apply.field.operation = operation
    if field_meets(&handle.map, apply.field.offset, apply.field.size):
        raise _errors.InvalidArgument(
            f"the field at offset {offset} overlaps a special field of map {handle.name!r}")
    if operation >= FIELD_OR and apply.field.kind == FIELD_FLOAT:
        raise _errors.InvalidArgument("or_ and and_ are for integers, not floats")
    apply.field.operand = field_bits(&apply.field, operand)
    if operation != FIELD_ADD and apply.field.kind != FIELD_FLOAT and (
            field_number(&apply.field, apply.field.operand) != operand):
        raise _errors.InvalidArgument(
            f"{operand} does not fit into a field of format {fmt!r}")
    if handle.reads == READS_WORDS and apply.field.size == 8 and is_word(key) and (
            default is None or (type(default) is int and apply.field.kind != FIELD_FLOAT)
            ) and likely(
                change_word(handle, key, 0, &apply.field, &apply.after)):
        return field_number(&apply.field, apply.after)
    apply.initial = NULL
    if default is not None:
        fresh = bytearray(handle.map.value_size)
        first = field_compute(&apply.field, field_bits(&apply.field, default))
        memcpy(PyByteArray_AS_STRING(fresh) + offset, &first, apply.field.size)
        apply.initial = <uint8_t *> PyByteArray_AS_STRING(fresh)
    status = attempt_on_key(handle, key, attempt_apply, &apply, &op, TO_CHANGE)
    if unlikely(status == ABSENT):
        raise _errors.KeyNotFound(key)
    if unlikely(status != OK):
        raise_status(handle, status, &op)
    return field_number(&apply.field, apply.after)


cdef bint swap_value(
        MapHandle handle, object key, object expected, object value, uint8_t *old) except -1:
    """Store a value if the one before equals expected, or whatever it is if expected is None; copy
    the one before to old, if that is not NULL. False: it differs, or the key is absent."""
    cdef Py_buffer expected_view, value_view
    cdef Swap swap
    cdef Op op
    cdef Status status
    expected_view.buf = value_view.buf = NULL
    swap.expected = NULL
    swap.old = old
    swap.swapped = False
    expect_plain(handle)
    try:
        if expected is not None:
            swap.expected = buffer_bytes(
                handle, "expected", expected, handle.map.value_size, &expected_view)
        swap.value = buffer_bytes(handle, "value", value, handle.map.value_size, &value_view)
        status = attempt_on_key(handle, key, attempt_swap, &swap, &op, TO_CHANGE)
    finally:
        if expected_view.buf != NULL:
            PyBuffer_Release(&expected_view)
        if value_view.buf != NULL:
            PyBuffer_Release(&value_view)
    if status != OK and status != ABSENT:
        raise_status(handle, status, &op)
    return status == OK and (swap.swapped or expected is None)
