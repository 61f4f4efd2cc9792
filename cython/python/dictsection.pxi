# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: LockedEntry, a locked key of a dict. sections.pxi has what is common to it and
# LockedValue.

cdef object NO_DEFAULT = object()


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class RawKey:
    """A key in the bytes that the map stores, for a section without a default."""

    cdef bytes raw


cdef refuse_assignment(MapHandle handle):
    raise _errors.InvalidArgument(
        f"map {handle.name!r}: code that encodes a value cannot assign one")


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class LockedEntry(LockedSection):
    """A key that one thread has locked. Made by locked(), for a with statement.

    value is a private copy. What is assigned to it is stored in one step when the block ends; if
    the block raises or the process dies, nothing is stored (L1).
    """

    cdef DictHandle owner
    cdef object key
    cdef object default
    cdef KeyBytes key_bytes
    cdef object current
    cdef object room
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *words
    cdef bint changed
    cdef object fresh              # keeps the bytes of the encoded value alive,
    cdef Py_buffer view            # or has to be released; span says where they are
    cdef Span span

    def __cinit__(self, DictHandle owner not None, key, timeout, default):
        self.owner = owner
        self.handle = owner.handle
        self.key = key
        self.timeout = timeout
        self.default = default
        if type(key) is RawKey:
            self.kept = (<RawKey> key).raw
            self.key_bytes.bytes = <const uint8_t *> PyBytes_AS_STRING(self.kept)
            self.key_bytes.is_long = False
        else:
            self.kept = key_encode(owner.handle, owner.key, key, &self.key_bytes)
        self.room = owner._value_room(self.small, &self.words)

    cdef int _insert_default(self) except -1:
        op_end(&self.op)
        try:
            self.owner._store(self.key, self.default, UPDATE_NOEXIST, 0)
        finally:
            if not renew(self.handle, &self.op):
                op_begin(&self.op)
        return 0

    cdef bint _take_locked(self) except -1:
        """Decode the value of the key, which is locked now; False if it was deleted since."""
        cdef Found found
        found.element = element_at(&self.handle.map, self.section.index)
        found.header = self.section.held
        # Before decoding, which may run the program's code; that may use the key as well.
        self._locked()
        self.current = self.owner._decode(&found, self.words, &self.op)
        if not self._mine():
            refuse_section(self.handle)
        if self.current is not MISSING:
            return True
        self._not_locked()
        self.section.held = 0
        return False

    cdef int _lock(self, Waiting *waiting) except -1:
        """Find and lock the key. If it is absent and there is a default, insert that first."""
        cdef Status status
        while True:            # ends with the timeout, or unless others delete the key each time
            status = repeat(self.handle, &self.op, attempt_lock, <void *> self, waiting)
            if status == OK and self._take_locked():
                return 0
            if status == ABSENT and self.default is not NO_DEFAULT:
                self._insert_default()
            elif status != OK:
                break
            wait_turn(self.handle, &self.op, RETRY, waiting)
        if status == ABSENT:
            raise _errors.KeyNotFound(self.key)
        raise_status(self.handle, status, &self.op)

    cdef int _open(self, Waiting *waiting) except -1:
        self.owner._begin(&self.op, &self.key_bytes, waiting)
        try:
            self._lock(waiting)
        except BaseException:
            self._finish()
            raise
        op_end(&self.op)
        return 0

    cdef bint _changes(self) except -1:
        return self.changed or self.removing

    cdef int _encode(self) except -1:
        self.fresh = self.owner._value_of(self.words, self.current, &self.view, &self.span)
        return 0

    cdef int _expect_alive(self) except -1:
        if entry_expired(&self.handle.map, self.words):
            raise _errors.KeyGone(
                f"map {self.handle.name!r}: the entry expired while it was locked; the new value "
                f"was not stored")
        return 0

    cdef Status _attempt_objects(self) noexcept:
        return self.owner._make_new_value(&self.op, &self.span)

    cdef const uint8_t *_bytes(self) noexcept:
        return <const uint8_t *> self.words

    cdef Status _attempt_store(self) noexcept:
        cdef Status status = self._attempt_objects()
        if status != OK:
            return status
        return section_commit(&self.op, &self.section, <const uint8_t *> self.words)

    cdef int _forget_value(self) except -1:
        if self.view.buf != NULL:
            PyBuffer_Release(&self.view)
        return 0

    cdef int _commit(self) except -1:
        try:
            return LockedSection._commit(self)
        finally:
            self._forget_value()

    @property
    def value(self):
        """The value. What is assigned to it is stored when the block ends. A value that was only
        read is stored too, as it is then: a mutable one may have been changed."""
        with cython.critical_section(self):
            self._expect_open()
            self.changed = True
            return self.current

    @value.setter
    def value(self, new):
        with cython.critical_section(self):
            self._expect_open()
            if self.state == SECTION_ENCODING:
                refuse_assignment(self.handle)
            self.current = new
            self.changed = True
            self.removing = False

    @cython.critical_section
    def delete(self):
        """Delete the key when the block ends."""
        self._expect_open()
        self.removing = True

    @cython.critical_section
    def roll_back(self):
        """End the section now, and store nothing. In code that encodes the value at the end of the
        block: stop that end, which then raises InvalidArgument.

        Raises InvalidArgument (outside the with block, or when its end has encoded the value),
        Error (in a child of fork: the section is the parent's).
        """
        self._expect_open()
        self._abandon()
        if not self._mine():
            refuse_section(self.handle)


cdef Status attempt_lock(Op *op, void *arguments) noexcept:
    """Lock the key of a LockedEntry, after deleting an expired entry of it."""
    cdef LockedEntry locked = <LockedEntry> arguments
    if op.map.timer_word != 0 and attempt_expire(op) == BUSY:
        return BUSY
    return section_open(op, &locked.section, NULL, <uint8_t *> locked.words)
