# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: a locked key of a dict. section.pxd is the protocol; as in sections.pxi, a
# section has a context of its own.

cdef object NO_DEFAULT = object()


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class RawKey:
    """A key in the bytes that the map stores, for a section without a default."""

    cdef bytes raw


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the dict
cdef class DictSection:
    """A key that one thread has locked. Made by locked(), for a with statement.

    value is a private copy. What is assigned to it is stored in one step when the block ends; if
    the block raises or the process dies, nothing is stored (L1).
    """

    cdef DictBase owner
    cdef object key
    cdef object kept
    cdef object timeout
    cdef object default
    cdef KeyBytes key_bytes
    cdef Op op
    cdef Section section
    cdef int state
    cdef object current
    cdef object room
    cdef object fresh              # keeps the bytes of the encoded value alive
    cdef uint64_t small[SPOT_WORDS]
    cdef uint64_t *words
    cdef bint changed
    cdef bint removing

    def __cinit__(self, DictBase owner not None, key, timeout, default):
        self.owner = owner
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

    cdef int _open(self, Waiting *patience) except -1:
        """Find and lock the key. If it is absent and there is a default, insert that first."""
        cdef DictBase owner = self.owner
        cdef Status status = RETRY
        cdef Found found
        while True:                            # ends with the timeout
            status = RETRY
            if owner.handle.map.timer_word != 0:
                status = owner._attempt_expire(&self.op)
            if status != BUSY:
                status = section_open(&self.op, &self.section, NULL, <uint8_t *> self.words)
            if status == ABSENT and self.default is not NO_DEFAULT:
                op_end(&self.op)
                try:
                    owner._store(self.key, self.default, UPDATE_NOEXIST, 0)
                finally:
                    if not owner.handle._renew(&self.op):
                        op_begin(&self.op)
                status = RETRY
            if status == OK:
                found.element = element_at(&owner.handle.map, self.section.index)
                found.header = self.section.held
                # Before decoding, which may run the program's code; that may use the key as well.
                sections_open[self._name()] = PyThread_get_thread_ident()
                self.current = owner._take(&found, self.words, &self.op)
                if not self._mine():
                    refuse_section(owner.handle)
                if self.current is not MISSING:
                    return 0
                sections_open.pop(self._name(), None)
                status = RETRY                 # it was deleted after it was locked
            if status != RETRY and status != BUSY:
                break
            owner.handle._wait(&self.op, status, patience)
        if status == ABSENT:
            raise _errors.KeyNotFound(self.key)
        raise_status(owner.handle, status, &self.op)

    def __enter__(self):
        cdef DictBase owner = self.owner
        cdef Waiting patience = owner.handle._patience()
        if self.state != SECTION_NEW:
            raise _errors.InvalidArgument("a locked section can be entered only once")
        if self.timeout is not None:
            patience.limit_ns = timeout_ns(self.timeout)
        owner._begin(&self.op, &self.key_bytes, &patience)
        try:
            self._open(&patience)
        except BaseException:
            if self._mine():
                self._roll_back()
            else:
                self._leave_to_parent()
            raise
        op_end(&self.op)
        self.state = SECTION_OPEN
        return self

    cdef tuple _name(self):
        return self.owner.handle.map.device, self.owner.handle.map.inode, self.op.self_index

    cdef bint _mine(self) noexcept:
        """Whether this process opened the section: a child of fork did not."""
        return self.op.generation == process_generation

    cdef void _leave_to_parent(self) noexcept:
        """In a child of fork: end this object; the parent's section goes on."""
        self.state = SECTION_ENDED
        self.owner.handle._leave_to_parent()

    cdef void _abandon(self) noexcept:
        """End the object, and the section if it is this process's, and store nothing."""
        if self._mine():
            op_begin(&self.op)
            self._roll_back()
        else:
            self._leave_to_parent()

    cdef void _roll_back(self) noexcept:
        """End the section and store nothing. Never waits."""
        cdef uint64_t _rounds
        if self.section.held != 0:
            for _rounds in range(READ_ROUNDS_MAX):         # no writers interfere this often
                if section_abandon(&self.op, &self.section) != RETRY:
                    break
        self._rest()

    cdef void _rest(self) noexcept:
        sections_open.pop(self._name(), None)
        self.state = SECTION_ENDED
        self.section.held = 0
        self.owner.handle._leave(&self.op)

    cdef Status _attempt_end(self, Span *span) noexcept:
        cdef DictBase owner = self.owner
        cdef Status status
        if self.removing:
            return section_remove(&self.op, &self.section)
        if owner.value_slot != NO_SLOT:
            status = object_make(&self.op, owner.value_slot, span.bytes, <uint64_t> span.size)
            if status != OK:
                return status
        self.op.options = OP_RAW_FIELDS
        if owner.key_slot != NO_SLOT:
            self.op.options |= 1 << (OP_KEEP_SHIFT + owner.key_slot)
        return section_commit(&self.op, &self.section, <const uint8_t *> self.words)

    cdef int _commit(self) except -1:
        """Store the current value, or delete the key."""
        cdef DictBase owner = self.owner
        cdef Py_buffer view
        cdef Span span
        cdef Status status = RETRY
        cdef Waiting patience = owner.handle._patience()
        view.buf = NULL
        span.bytes = NULL
        try:
            if not self.removing:
                self.fresh = owner._value_of(self.words, self.current, &view, &span)
            if not self._mine():               # the encoder forked: this is the child
                refuse_section(owner.handle)
        except BaseException:
            if view.buf != NULL:
                PyBuffer_Release(&view)
            self._abandon()
            raise
        op_begin(&self.op)
        try:
            if load_relaxed_u64(&owner.handle.map.header.frozen) != 0:
                raise _errors.FrozenMap(
                    f"map {owner.handle.name!r} was frozen while the key was locked; the section "
                    f"changed nothing")
            if not self.removing and entry_expired(&owner.handle.map, self.words):
                raise _errors.KeyGone(
                    f"map {owner.handle.name!r}: the entry expired while it was locked; the new "
                    f"value was not stored")
            while status == RETRY or status == BUSY:       # ends with the timeout
                status = self._attempt_end(&span)
                if status == OK:
                    self.section.held = 0
                elif owner.handle._recovered_room(status, &self.op, &patience):
                    status = RETRY
                if status == RETRY or status == BUSY:
                    owner.handle._wait(&self.op, status, &patience)
            if status == ABSENT:
                raise _errors.KeyGone(
                    f"map {owner.handle.name!r}: the key was deleted while it was locked; the new "
                    f"value was not stored")
            if status != OK:
                raise_status(owner.handle, status, &self.op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
            if self._mine():
                self._roll_back()
            else:
                self._leave_to_parent()
        return 0

    def __exit__(self, kind, error, traceback):
        if self.state != SECTION_OPEN:
            return False
        if not self._mine():
            self._leave_to_parent()
            refuse_section(self.owner.handle)
        if kind is None and (self.changed or self.removing):
            self._commit()
        else:
            self._abandon()
        return False

    def __dealloc__(self):
        if self.state == SECTION_OPEN:
            self._abandon()

    cdef int _expect_open(self) except -1:
        if self.state != SECTION_OPEN:
            raise _errors.InvalidArgument("the value can be used only inside its with block")
        return 0

    @property
    def value(self):
        """The value. What is assigned to it is stored when the block ends. A value that was only
        read is stored too, as it is then: a mutable one may have been changed."""
        self._expect_open()
        self.changed = True
        return self.current

    @value.setter
    def value(self, new):
        self._expect_open()
        self.current = new
        self.changed = True
        self.removing = False

    def delete(self):
        """Delete the key when the block ends."""
        self._expect_open()
        self.removing = True

    def roll_back(self):
        """End the section now, and store nothing.

        Raises InvalidArgument (outside the with block), Error (in a child of fork: the section is
        the parent's).
        """
        self._expect_open()
        self._abandon()
        if not self._mine():
            refuse_section(self.owner.handle)
