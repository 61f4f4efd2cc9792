# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: LockedValue, a locked value of a map. sections.pxi has what is common to it and
# LockedEntry.


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class LockedValue(LockedSection):
    """A value that one thread has locked: a writable buffer on a private copy.

    Made by RHashMap.locked(), for a with statement. When the block ends, the content of the buffer
    is stored in one atomic step; if the block raises or the process dies, nothing is stored (L1).
    """

    cdef object default
    cdef bytearray value
    cdef Py_buffer hold            # of value: while it is held, no code can resize it
    cdef object view
    cdef bint rolling_back

    def __cinit__(self, MapHandle handle not None, key, timeout, default):
        cdef Py_buffer view
        cdef const uint8_t *key_bytes = buffer_bytes(
            handle, "key", key, handle.map.key_size, &view)
        self.kept = PyBytes_FromStringAndSize(
            <const char *> key_bytes, <Py_ssize_t> handle.map.key_size)
        if view.buf != NULL:
            PyBuffer_Release(&view)
        if default is not None:
            if not PyObject_CheckBuffer(default):
                refuse_buffer(handle, "default", default, -1, handle.map.value_size)
            default = memoryview(default).tobytes()
            if len(default) != handle.map.value_size:
                refuse_buffer(handle, "value", default, len(default), handle.map.value_size)
        self.handle = handle
        self.default = default
        self.timeout = timeout
        self.value = bytearray(handle.map.value_size)
        PyObject_GetBuffer(self.value, &self.hold, PyBUF_SIMPLE)

    def __dealloc__(self):
        PyBuffer_Release(&self.hold)

    cdef int _open(self, Waiting *waiting) except -1:
        cdef Status status = RETRY
        self.op.key = <const uint8_t *> PyBytes_AS_STRING(self.kept)
        self.op.hash = hash_key(self.handle.map.seeds, self.op.key, self.handle.map.key_size)
        enter_to_modify(self.handle, &self.op)
        try:
            status = repeat(self.handle, &self.op, attempt_open, <void *> self, waiting)
            if status == OK:
                self._locked()
        except BaseException:
            self._finish()
            raise
        if status == OK:
            op_give_back(&self.op)             # its element, if another inserted the key first
            op_end(&self.op)
            return 0
        leave(self.handle, &self.op)
        if status == ABSENT:
            raise _errors.KeyNotFound(self.kept)
        raise_status(self.handle, status, &self.op)

    cdef bint _changes(self) except -1:
        return not self.rolling_back

    cdef const uint8_t *_bytes(self) noexcept:
        return <const uint8_t *> PyByteArray_AS_STRING(self.value)

    cdef Status _attempt_store(self) noexcept:
        return section_commit(
            &self.op, &self.section, <const uint8_t *> PyByteArray_AS_STRING(self.value))

    @cython.critical_section
    cdef object _view(self):
        self._expect_open()
        if self.view is None:
            self.view = memoryview(self.value)
        return self.view

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.state != SECTION_OPEN:
            raise BufferError("the value can be used only inside its with block")
        PyObject_GetBuffer(self.value, buffer, flags)

    def __len__(self):
        return self.handle.map.value_size

    def __getitem__(self, where):
        found = self._view()[where]
        return found if isinstance(found, int) else bytes(found)

    def __setitem__(self, where, new):
        try:
            self._view()[where] = new
        except ValueError as error:
            raise _errors.InvalidArgument(
                f"a value of {len(self)} bytes cannot be changed like this: {error}") from None

    def __bytes__(self):
        return bytes(self._view())

    def __repr__(self):
        state = ("not entered", "being entered", "open", "being ended", "being ended", "ended")[
            self.state]
        return f"<LockedValue of {self.kept!r} in {self.handle.name!r}: {state}>"

    def as_array(self, dtype):
        """Return the value as a writable NumPy array of this dtype. What is written into the array
        is stored when the block ends.

        Raises InvalidArgument (outside the with block, or a dtype that does not divide the value),
        ModuleNotFoundError (NumPy is missing).
        """
        import numpy
        try:
            return numpy.frombuffer(self._view(), dtype)
        except ValueError as error:
            raise _errors.InvalidArgument(f"values of {len(self)} bytes: {error}") from None

    def unpack(self, fmt, offset=0):
        """Return the result of struct.unpack_from() on the value.

        Raises InvalidArgument outside the with block, struct.error.
        """
        return struct.unpack_from(fmt, self._view(), offset)

    def pack(self, fmt, *values, offset=0):
        """Write values into the value with struct.pack_into().

        Raises InvalidArgument outside the with block, struct.error.
        """
        struct.pack_into(fmt, self._view(), offset, *values)

    def delete(self):
        """Delete the key when the block ends, instead of storing a value.

        Raises InvalidArgument outside the with block.
        """
        self._view()
        self.removing = True

    def roll_back(self):
        """Store nothing when the block ends.

        Raises InvalidArgument outside the with block, or once its end has begun.
        """
        self._view()
        self.rolling_back = True


cdef Status attempt_open(Op *op, void *arguments) noexcept:
    """Lock the key of a LockedValue; insert its default first, if it has one."""
    cdef LockedValue opened = <LockedValue> arguments
    cdef const uint8_t *fresh = NULL
    if opened.default is not None:
        fresh = <const uint8_t *> PyBytes_AS_STRING(opened.default)
    return section_open(
        op, &opened.section, fresh, <uint8_t *> PyByteArray_AS_STRING(opened.value))
