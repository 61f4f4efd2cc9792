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
    REMOVAL_TURNS = 5          # the last of them looks whether the lock's owner is dead


def forget_sections():
    """In a child of fork: forget the open sections, which are the parent's."""
    sections_open.clear()
    claims_open.clear()


cdef refuse_section(MapHandle handle):
    raise _errors.Error(
        f"map {handle.name!r}: the section is the parent process's, and only the parent can end "
        f"it; a child of fork has to open its own")


@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class LockedSection:
    """What the two kinds of sections have in common: LockedValue, of a map; LockedEntry, of a
    dict."""

    cdef MapHandle handle
    cdef Op op
    cdef Section section           # section.held is 0 if the section has been ended or never begun
    cdef int state
    cdef tuple name                # in sections_open, once the key is locked
    cdef object timeout
    cdef object kept               # op.key points into this object, or into the section itself
    cdef bint removing             # the key is deleted at the end
    cdef object task               # of asyncio, that enters it; None: a thread does
    cdef int64_t began             # when the task first asked
    cdef object refused            # why the task's last attempt failed

    cdef int _prepare(self, Waiting *waiting) except -1:
        """Begin __enter__: how long it may wait."""
        waiting[0] = new_waiting(self.handle)
        if self.state != SECTION_NEW:
            raise _errors.InvalidArgument("a locked section can be entered only once")
        if self.timeout is not None:
            waiting.limit_ns = timeout_ns(self.timeout)
        if self.task is not None:              # it waits between attempts: see attempt()
            waiting.began = self.began
            waiting.limit_ns = 0
        return 0

    cdef int _locked(self) except -1:
        """The key is locked now, by this thread."""
        self.name = self.handle.map.device, self.handle.map.inode, self.op.self_index
        sections_open[self.name] = PyThread_get_thread_ident(), self.task
        return 0

    # For an event loop (shmrhash/_turns.py): a section is entered, and ended with a deletion, in
    # attempts that do not wait.

    def _attempt(self, task):
        """Try to enter. False: a lock is in the way; _refused says which.

        Raises what __enter__ raises but LockTimeout.
        """
        if self.task is None:
            self.task = task
        if self.began == 0:
            self.began = clock_ns(CLOCK_MONOTONIC)
        self.refused = None
        try:
            self.__enter__()
        except _errors.LockTimeout as error:
            self.state = SECTION_NEW
            self.refused = error
        return self.refused is None

    @property
    def _refused(self):
        return self.refused

    @property
    def _owner(self):
        return self.handle

    @property
    def _place(self):
        """Equal for sections on the same key of the same map."""
        return self.handle.map.device, self.handle.map.inode, self.kept

    @property
    def _deadline_ns(self):
        """When its time to wait is over, CLOCK_MONOTONIC in ns; -1: never."""
        if self.began == 0:
            self.began = clock_ns(CLOCK_MONOTONIC)
        limit = self.handle.map.timeout_ns if self.timeout is None else timeout_ns(self.timeout)
        return -1 if limit < 0 else self.began + limit

    @property
    def _element(self):
        """The element of the section in the way of the last attempt; -1: something else was."""
        if not is_element_word(&self.handle.map, self.op.wait_word):
            return -1
        return element_of_word(&self.handle.map, self.op.wait_word)

    def _attempt_removal(self, int64_t waited_ns):
        """Before __exit__: try to delete the key if the block asked for that. False: its bucket is
        held by another process, perhaps a stopped one.

        Raises LockTimeout if it has been tried for longer than the handle's timeout; the section is
        then ended.
        """
        cdef Status status = RETRY
        cdef uint64_t turn
        if (self.state != SECTION_OPEN or not self.removing or not self._mine()
                or load_relaxed_u64(&self.handle.map.header.frozen) != 0):
            return True
        op_begin(&self.op)
        for turn in range(REMOVAL_TURNS):
            status = attempt_end(&self.op, <void *> self)
            if is_final(status):
                break
            with nogil:
                wait_step(&self.op, turn, waited_ns)
        if is_final(status):
            op_end(&self.op)
            return True
        if 0 <= self.handle.map.timeout_ns < waited_ns:
            try:
                raise_timeout(self.handle, &self.op, waited_ns)
            finally:
                self._finish()
        op_end(&self.op)
        return False

    def __aenter__(self):
        from shmrhash import _turns  # it imports asyncio, which takes long
        return _turns.enter(self)

    def __aexit__(self, kind, error, traceback):
        from shmrhash import _turns
        return _turns.leave(self, kind, error, traceback)

    cdef int _not_locked(self) except -1:
        if self.name is not None:
            sections_open.pop(self.name, None)
        return 0

    cdef bint _mine(self) noexcept:
        """Whether this process opened the section: a child of fork did not."""
        return self.op.generation == process_generation

    cdef int _expect_open(self) except -1:
        if self.state != SECTION_OPEN:
            raise _errors.InvalidArgument("the value can be used only inside its with block")
        return 0

    cdef bint _changes(self) except -1:
        """Whether the end of the block changes anything."""
        return True

    cdef int _encode(self) except -1:
        """Prepare the value that is to be stored. This may run the program's code."""
        return 0

    cdef int _expect_alive(self) except -1:
        """Raise KeyGone if the entry has expired."""
        return 0

    cdef Status _attempt_objects(self) noexcept:
        """Make the objects of the value."""
        return OK

    cdef const uint8_t *_bytes(self) noexcept:
        """The value as the entry gets it."""
        return NULL

    cdef Status _attempt_store(self) noexcept:
        """Store the value and end the section."""
        return CORRUPT

    cdef int _forget_value(self) except -1:
        """The encoded value is not needed any more."""
        return 0

    cdef void _finish(self) noexcept:
        """End this object, and the section, unless it has ended. Stores nothing, never waits. In a
        child of fork only the object ends; the parent's section goes on."""
        cdef uint64_t _rounds
        self.state = SECTION_ENDED
        if not self._mine():
            leave_to_parent(self.handle)
            return
        if self.section.held != 0:
            for _rounds in range(READ_ROUNDS_MAX):         # no writers interfere this often
                if section_abandon(&self.op, &self.section) != RETRY:
                    break
        self.section.held = 0
        self._not_locked()
        leave(self.handle, &self.op)

    cdef void _abandon(self) noexcept:
        """End the section outside any operation of it, and store nothing."""
        if self._mine():
            op_begin(&self.op)
        self._finish()

    cdef int _commit(self) except -1:
        """Store the value or delete the key, and end the section. If this fails or a wait is
        interrupted, the key keeps the value from before."""
        cdef MapHandle handle = self.handle
        cdef Status status = RETRY
        cdef Waiting waiting = new_waiting(handle)
        try:
            if not self.removing:
                self._encode()
            if not self._mine():               # the encoder forked: this is the child
                refuse_section(handle)
        except BaseException:
            self._abandon()
            raise
        op_begin(&self.op)
        try:
            if load_relaxed_u64(&handle.map.header.frozen) != 0:
                raise _errors.FrozenMap(
                    f"map {handle.name!r} was frozen while the key was locked; the section "
                    f"changed nothing")
            if not self.removing:
                self._expect_alive()
            while status == RETRY:             # again after close(): the handle stays attached
                try:
                    # What the beginning of the section could not give back is not the new value's.
                    repeat(handle, &self.op, attempt_settle, NULL, &waiting)
                    status = repeat(handle, &self.op, attempt_end, <void *> self, &waiting)
                except _errors.MapClosed:
                    pass
        finally:
            self._finish()
        if status == ABSENT:
            raise _errors.KeyGone(
                f"map {handle.name!r}: the key was deleted while it was locked; the new value "
                f"was not stored")
        if status != OK:
            raise_status(handle, status, &self.op)
        return 0

    def __exit__(self, kind, error, traceback):
        if self.state != SECTION_OPEN:
            return False
        if not self._mine():
            self._finish()
            refuse_section(self.handle)
        if kind is None and self._changes():
            self._commit()
        else:
            self._abandon()
        return False

    def __dealloc__(self):
        if self.state == SECTION_OPEN:
            self._abandon()


cdef Status attempt_end(Op *op, void *arguments) noexcept:
    """End a section: OK, or ABSENT if the key was deleted while it was locked."""
    cdef LockedSection ended = <LockedSection> arguments
    cdef Status status
    if ended.removing and ended.section.held == 0:
        return OK                              # _attempt_removal has done it
    if ended.removing:
        status = section_remove(op, &ended.section)
    else:
        status = ended._attempt_store()
    if status == OK:
        ended.section.held = 0
    return status


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

    def __enter__(self):
        cdef Status status = RETRY
        cdef Waiting waiting
        self._prepare(&waiting)
        self.value = bytearray(self.handle.map.value_size)
        self.op.key = <const uint8_t *> PyBytes_AS_STRING(self.kept)
        self.op.hash = hash_key(self.handle.map.seeds, self.op.key, self.handle.map.key_size)
        enter_to_modify(self.handle, &self.op)
        try:
            status = repeat(self.handle, &self.op, attempt_open, <void *> self, &waiting)
        finally:
            if status == OK:
                op_give_back(&self.op)         # its element, if another inserted the key first
                op_end(&self.op)
                self.state = SECTION_OPEN
            else:
                leave(self.handle, &self.op)
        if status == ABSENT:
            raise _errors.KeyNotFound(self.kept)
        if status != OK:
            raise_status(self.handle, status, &self.op)
        self._locked()
        return self

    cdef bint _changes(self) except -1:
        return not self.rolling_back

    cdef const uint8_t *_bytes(self) noexcept:
        return <const uint8_t *> PyByteArray_AS_STRING(self.value)

    cdef Status _attempt_store(self) noexcept:
        return section_commit(
            &self.op, &self.section, <const uint8_t *> PyByteArray_AS_STRING(self.value))

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
        state = ("not entered", "open", "ended")[self.state]
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

        Raises InvalidArgument outside the with block.
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
