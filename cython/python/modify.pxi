# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: operations that read and write a value in one step.

cdef str FORMAT_INT64 = "q"
cdef dict FORMATS = {                          # of the struct module: (bytes, kind)
    "b": (1, FIELD_SIGNED), "B": (1, FIELD_UNSIGNED), "h": (2, FIELD_SIGNED),
    "H": (2, FIELD_UNSIGNED), "i": (4, FIELD_SIGNED), "I": (4, FIELD_UNSIGNED),
    "q": (8, FIELD_SIGNED), "Q": (8, FIELD_UNSIGNED), "f": (4, FIELD_FLOAT), "d": (8, FIELD_FLOAT),
}

cdef inline bint is_word(object thing) noexcept:
    return PyBytes_CheckExact(thing) and PyBytes_GET_SIZE(thing) == 8

cdef inline bint store_word(MapHandle handle, object key, object value) noexcept:
    """_update of a present key, in a map whose keys and values are words. False: nothing was done,
    and the caller has to take the general path.

    The GIL is kept, so the idle context need not be taken, only marked."""
    cdef Op op
    cdef uint64_t idle = handle.map.local.idle_context
    cdef uint64_t word = read_u64(<const uint8_t *> PyBytes_AS_STRING(key))
    cdef bint stored
    if unlikely(idle == 0 or handle.map.read_only):
        return False
    op.map = &handle.map
    op.self_index = <uint32_t> (idle - 1)
    op.context = context_at(op.map, idle - 1)
    op.hash = hash_word(op.map.seeds, word)
    op.starving = 0
    context_begin(op.context)
    # freeze() waits for every operation that began before it.
    stored = likely(load_relaxed_u64(&op.map.header.frozen) == 0) and update_word_fast(
        &op, word, read_u64(<const uint8_t *> PyBytes_AS_STRING(value)))
    if unlikely(not stored):
        context_cancel(op.context)
        return False
    context_end(op.context)
    handle.writes += 1
    if unlikely(op.context.activity & NOTICE_MASK == 0):
        handle._begin_use(&op)
        handle._notice(op.context)
        handle._end_use()
    return True

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


@cython.auto_pickle(False)
cdef class ModifyHandle(ObservedHandle):
    """The handle with the operations whose effect depends on the value before."""

    cdef int _expect_plain(self) except -1:
        """Raise if values have special fields: they cannot be compared or exchanged whole."""
        if self.map.field_count != 0:
            raise _errors.InvalidArgument(
                f"map {self.name!r} has values with special fields; change them in a section")
        return 0

    cdef object _apply(
            self, object key, object operand, uint32_t operation, object default,
            Py_ssize_t offset, object fmt):
        cdef Apply apply
        cdef Op op
        cdef Status status
        cdef bytearray fresh
        cdef uint64_t first
        field_fill(self, &apply.field, offset, fmt)
        apply.field.operation = operation
        if field_meets(&self.map, apply.field.offset, apply.field.size):
            raise _errors.InvalidArgument(
                f"the field at offset {offset} overlaps a special field of map {self.name!r}")
        if operation >= FIELD_OR and apply.field.kind == FIELD_FLOAT:
            raise _errors.InvalidArgument("or_ and and_ are for integers, not floats")
        apply.field.operand = field_bits(&apply.field, operand)
        if operation != FIELD_ADD and apply.field.kind != FIELD_FLOAT and (
                field_number(&apply.field, apply.field.operand) != operand):
            raise _errors.InvalidArgument(
                f"{operand} does not fit into a field of format {fmt!r}")
        apply.initial = NULL
        if default is not None:
            fresh = bytearray(self.map.value_size)
            first = field_compute(&apply.field, field_bits(&apply.field, default))
            memcpy(PyByteArray_AS_STRING(fresh) + offset, &first, apply.field.size)
            apply.initial = <uint8_t *> PyByteArray_AS_STRING(fresh)
        status = self._attempt(key, attempt_apply, &apply, &op, False)
        if unlikely(status == ABSENT):
            raise _errors.KeyNotFound(key)
        if unlikely(status != OK):
            raise_status(self, status, &op)
        return field_number(&apply.field, apply.after)

    def add(self, key, delta, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Add delta to a number in key's value; return the sum.

        The number is stored at byte offset of the value, little-endian. fmt is its format, as in
        the struct module: b B h H i I q Q (integers of 1, 2, 4, 8 bytes, which wrap around), f d.
        If key is absent and default is given, a value of zeros with default + delta in the field
        is inserted. Atomic (W1): no other change comes between reading and writing the number.
        Expected O(1). While another process changes the entry, or has it locked, this call waits
        with the GIL released.

        Raises KeyNotFound (ENOENT: absent, and default is None), MapFull, SegmentFull, LockTimeout,
        DeadlockError, InvalidArgument (key size, no such field in the value), TypeError,
        ReadOnlyMap, MapClosed.
        """
        return self._apply(key, delta, FIELD_ADD, default, offset, fmt)

    def min(self, key, number, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Replace a number in key's value by number if number is less; return the number stored.

        Arguments and errors are those of add(); number has to fit into the field. A NaN stays.

        Raises what add() raises.
        """
        return self._apply(key, number, FIELD_MIN, default, offset, fmt)

    def max(self, key, number, *, default=None, Py_ssize_t offset=0, fmt="q"):
        """Replace a number in key's value by number if number is greater; return the number stored.

        Arguments and errors are those of add(); number has to fit into the field. A NaN stays.

        Raises what add() raises.
        """
        return self._apply(key, number, FIELD_MAX, default, offset, fmt)

    def or_(self, key, bits, *, default=None, Py_ssize_t offset=0, fmt="Q"):
        """Set bits of an integer in key's value; return the integer stored.

        Arguments and errors are those of add(); bits has to fit into the field, and fmt has to be
        that of an integer.

        Raises what add() raises.
        """
        return self._apply(key, bits, FIELD_OR, default, offset, fmt)

    def and_(self, key, bits, *, default=None, Py_ssize_t offset=0, fmt="Q"):
        """Clear all bits but these of an integer in key's value; return the integer stored.

        Arguments and errors are those of add(); bits has to fit into the field, and fmt has to be
        that of an integer.

        Raises what add() raises.
        """
        return self._apply(key, bits, FIELD_AND, default, offset, fmt)

    cdef bint _swap(self, object key, object expected, object value, uint8_t *old) except -1:
        cdef Py_buffer expected_view, value_view
        cdef Swap swap
        cdef Op op
        cdef Status status
        expected_view.buf = value_view.buf = NULL
        swap.expected = NULL
        swap.old = old
        swap.swapped = False
        self._expect_plain()
        try:
            if expected is not None:
                swap.expected = self._buffer(
                    "expected", expected, self.map.value_size, &expected_view)
            swap.value = self._buffer("value", value, self.map.value_size, &value_view)
            status = self._attempt(key, attempt_swap, &swap, &op, False)
        finally:
            if expected_view.buf != NULL:
                PyBuffer_Release(&expected_view)
            if value_view.buf != NULL:
                PyBuffer_Release(&value_view)
        if status != OK and status != ABSENT:
            raise_status(self, status, &op)
        return status == OK and (swap.swapped or expected is None)

    def compare_and_swap(self, key, expected, new):
        """Store new under key if its value equals expected; return whether new was stored.

        If expected is None, new is stored only if key is absent; otherwise an absent key gives
        False. Atomic (W1), for values of any size. Expected O(1). Waits as add() does.

        Raises MapFull, SegmentFull (expected is None), LockTimeout, DeadlockError, InvalidArgument
        (sizes), TypeError, ReadOnlyMap, MapClosed.
        """
        if expected is not None:
            return bool(self._swap(key, expected, new, NULL))
        try:
            self._update(key, new, 1)
        except _errors.KeyExists:
            return False
        return True

    def exchange(self, key, new):
        """Store new under key and return the value it replaced, as bytes.

        Atomic (W1): each stored value is returned to one caller at most. Expected O(1). Waits as
        add() does.

        Raises KeyNotFound (ENOENT), LockTimeout, DeadlockError, InvalidArgument, TypeError,
        ReadOnlyMap, MapClosed.
        """
        cdef bytes old = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if not self._swap(key, None, new, <uint8_t *> PyBytes_AS_STRING(old)):
            raise _errors.KeyNotFound(key)
        return old

    def setdefault(self, key, default):
        """Return the value of key; if key is absent, insert default and return it.

        Atomic (W1): of several concurrent callers one inserts its default, and all return that
        value. Only the insertion waits, as add() does.

        Raises MapFull, SegmentFull, LockTimeout, InvalidArgument, TypeError, ReadOnlyMap,
        MapClosed.
        """
        while True:                            # again if another caller inserted the key
            value = self._lookup(key)
            if value is not None:
                return value
            try:
                self._update(key, default, 1)
            except _errors.KeyExists:
                continue
            return bytes(default)

    def pop(self, key, *default):
        """Remove key and return its value; if key is absent, return default.

        Atomic (W1): no other caller gets the same value. Otherwise as lookup_and_delete().

        Raises KeyNotFound (ENOENT: absent, and no default), LockTimeout, InvalidArgument,
        TypeError, ReadOnlyMap, MapClosed.
        """
        if len(default) > 1:
            raise TypeError(f"pop takes a key and one default, not {len(default)}")
        cdef bytes value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if self._delete(key, PyBytes_AS_STRING(value)) == OK:
            return value
        if not default:
            raise _errors.KeyNotFound(key)
        return default[0]

    def freeze(self):
        """Forbid every change of the map, by any process and handle, permanently.

        Returns when all operations that began before it have ended. Locked sections that are open
        store nothing and end with FrozenMap. Costs a system call.

        Raises FrozenMap (EPERM: frozen already), ReadOnlyMap, LockTimeout (EBUSY: an operation that
        began before does not end; the map is not frozen), Unsupported (no membarrier), MapClosed.
        """
        cdef Op op
        cdef Status status = BUSY
        cdef Waiting patience = self._patience()
        self._enter_to_write(&op)
        try:
            expect_membarrier(self)
            if not cas_acq_rel_u64(&self.map.header.frozen, 0, 1):
                raise _errors.FrozenMap(f"map {self.name!r} is frozen already")
            try:
                while status == BUSY:          # ends with the timeout
                    with nogil:
                        # Its membarrier orders the store before later operations' loads of it.
                        status = OK if contexts_are_quiet(&op) else BUSY
                        if status == BUSY:
                            recover_all(&self.map)
                    if status == BUSY:
                        self._wait(&op, status, &patience)
            except BaseException:
                store_release_u64(&self.map.header.frozen, 0)
                raise
        finally:
            self._leave(&op)

    @property
    def frozen(self):
        """Whether a process has frozen the map. Raises MapClosed."""
        self._expect_open()
        return load_relaxed_u64(&self.map.header.frozen) != 0
