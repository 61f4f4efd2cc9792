# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: locked sections as Python sees them. section.pxd is the protocol.
#
# A section has a context of its own from its beginning to its end, so that its thread can do other
# operations while the section is open. A child of fork inherits the Python object and nothing else:
# the context, and with it the section, stays its parent's.

cdef enum:
    SECTION_NEW = 0
    SECTION_OPEN = 1
    SECTION_ENDED = 2


def forget_sections():
    """In a child of fork: forget the open sections, which are the parent's."""
    sections_open.clear()


cdef refuse_section(MapHandle handle):
    raise _errors.Error(
        f"map {handle.name!r}: the section is the parent process's, and only the parent can end "
        f"it; a child of fork has to open its own")


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class LockedValue:
    """A value that one thread has locked: a writable buffer on a private copy.

    Made by RHashMap.locked(), for a with statement. When the block ends, the content of the buffer
    is stored in one atomic step; if the block raises or the process dies, nothing is stored (L1).
    """

    cdef ModifyHandle handle
    cdef Op op
    cdef Section section
    cdef int state
    cdef object key                # private bytes: op.key points into it
    cdef object default
    cdef object timeout
    cdef bytearray value
    cdef object view
    cdef bint removing
    cdef bint rolling_back

    def __cinit__(self, ModifyHandle handle not None, key, timeout, default):
        cdef Py_buffer view
        cdef const uint8_t *key_bytes = handle._buffer("key", key, handle.map.key_size, &view)
        self.key = PyBytes_FromStringAndSize(
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

    def __enter__(self):
        cdef Status status = RETRY
        cdef Waiting patience = self.handle._patience()
        cdef const uint8_t *fresh = NULL
        cdef uint8_t *value
        if self.state != SECTION_NEW:
            raise _errors.InvalidArgument("a locked section can be entered only once")
        if self.timeout is not None:
            patience.limit_ns = timeout_ns(self.timeout)
        if self.default is not None:
            fresh = <const uint8_t *> PyBytes_AS_STRING(self.default)
        self.value = bytearray(self.handle.map.value_size)
        value = <uint8_t *> PyByteArray_AS_STRING(self.value)
        self.op.key = <const uint8_t *> PyBytes_AS_STRING(self.key)
        self.op.hash = hash_key(self.handle.map.seeds, self.op.key, self.handle.map.key_size)
        self.handle._enter_to_modify(&self.op)
        try:
            while True:                        # ends with the timeout
                status = section_open(&self.op, &self.section, fresh, value)
                if likely(is_final(status)) and not self.handle._recovered_room(
                        status, &self.op, &patience):
                    break
                self.handle._wait(&self.op, status, &patience)
        finally:
            if status == OK:
                op_give_back(&self.op)            # its element, if another inserted the key first
                op_end(&self.op)
                self.state = SECTION_OPEN
            else:
                self.handle._leave(&self.op)
        if status == ABSENT:
            raise _errors.KeyNotFound(self.key)
        if status != OK:
            raise_status(self.handle, status, &self.op)
        sections_open[self._name()] = PyThread_get_thread_ident()
        return self

    cdef tuple _name(self):
        return self.handle.map.device, self.handle.map.inode, self.op.self_index

    cdef bint _mine(self) noexcept:
        """Whether this process opened the section: a child of fork did not."""
        return self.op.generation == process_generation

    cdef void _leave_to_parent(self) noexcept:
        """In a child of fork: end this object; the parent's section goes on."""
        self.state = SECTION_ENDED
        self.handle._leave_to_parent()

    cdef Status _attempt_end(self, bint commit) noexcept:
        if not commit:
            return section_abandon(&self.op, &self.section)
        if self.removing:
            return section_remove(&self.op, &self.section)
        return section_commit(
            &self.op, &self.section, <const uint8_t *> PyByteArray_AS_STRING(self.value))

    cdef Status _end(self, bint commit) except? RETRY:
        """End the section: OK, or ABSENT if the key was deleted while it was locked. Only an end
        that deletes the key waits; if that wait is interrupted, the section is rolled back."""
        cdef Status status = RETRY
        cdef Waiting patience
        cdef bint frozen
        if not self._mine():
            self._leave_to_parent()
            refuse_section(self.handle)
        patience = self.handle._patience()
        op_begin(&self.op)
        frozen = load_relaxed_u64(&self.handle.map.header.frozen) != 0
        while status == RETRY or status == BUSY:
            status = self._attempt_end(commit and not frozen)
            if status == RETRY or status == BUSY:
                try:
                    self.handle._wait(&self.op, status, &patience)
                except _errors.MapClosed:
                    pass                       # the handle stays attached until this ends
                except BaseException:
                    self._roll_back()
                    raise
        self._rest()
        if status != OK and status != ABSENT:
            raise_status(self.handle, status, &self.op)
        if commit and frozen:
            raise _errors.FrozenMap(
                f"map {self.handle.name!r} was frozen while the key was locked; the section "
                f"changed nothing")
        return status

    cdef void _roll_back(self) noexcept:
        """End the section and store nothing. Never waits."""
        cdef uint64_t _rounds
        for _rounds in range(READ_ROUNDS_MAX):             # no writers interfere this often
            if section_abandon(&self.op, &self.section) != RETRY:
                break
        self._rest()

    cdef void _rest(self) noexcept:
        """The section has ended: give its context back."""
        self.state = SECTION_ENDED
        sections_open.pop(self._name(), None)
        self.handle._leave(&self.op)

    def __exit__(self, kind, error, traceback):
        if self.state == SECTION_OPEN:
            status = self._end(kind is None and not self.rolling_back)
            if status == ABSENT and kind is None and not self.rolling_back:
                raise _errors.KeyGone(
                    f"map {self.handle.name!r}: the key was deleted while it was locked; the new "
                    f"value was not stored")
        return False

    def __dealloc__(self):
        if self.state == SECTION_OPEN and not self._mine():
            self._leave_to_parent()
        elif self.state == SECTION_OPEN:
            op_begin(&self.op)
            self._roll_back()

    cdef object _view(self):
        if self.state != SECTION_OPEN:
            raise _errors.InvalidArgument("the value can be used only inside its with block")
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
        state = ("not entered", "open", "ended")[self.state]
        return f"<LockedValue of {self.key!r} in {self.handle.name!r}: {state}>"

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

        Raises InvalidArgument outside the with block.
        """
        self._view()
        self.rolling_back = True
