# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: maps with objects and special fields as Python sees them, and views of objects
# that nobody copies.


@cython.auto_pickle(False)
cdef class ObjectHandle(ModifyHandle):
    """The handle with what maps with special fields and objects have besides."""

    @property
    def max_bytes(self):
        """Bytes that objects may take; 0: the map has none."""
        return self.map.max_bytes

    @property
    def schema(self):
        """What the program that created the map says its entries are: bytes."""
        cdef uint32_t size
        self._expect_open()
        size = self.map.header.schema_bytes
        return PyBytes_FromStringAndSize(
            <const char *> self.map.base + SCHEMA_OFFSET,
            size if size < SCHEMA_MAX else SCHEMA_MAX)

    def _fields(self):
        """(kind, offset) of each special field."""
        self._expect_open()
        return tuple(
            (self.map.field_kinds[index], self.map.field_words[index] * 8)
            for index in range(self.map.field_count))

    def _objects(self):
        """What info() says of objects; None if the map has none. Exact when nobody writes."""
        cdef ObjectFacts facts
        self._expect_open()
        if self.map.objects == NULL:
            return None
        objects_count(&self.map, &facts)
        return {
            "count": facts.count, "bytes_in_use": facts.bytes_in_use,
            "bytes_committed": budget_word(&self.map.objects.budget) * PAGE_BYTES,
            "pinned": facts.pinned, "max_bytes": self.map.max_bytes,
        }

    cdef int _settled(self, Op *op, Patience *patience) except -1:
        """Before an operation takes objects: give back what an earlier one had to keep."""
        op_settle(op)
        while op.context.element != 0 or op.context.owing != 0:    # ends with the timeout
            self._wait(op, BUSY, patience)
            op_settle(op)
        return 0

    def clear(self):
        """Delete all entries, one after another: each deletion is atomic, the whole is not.

        Meanwhile nobody can insert a key (MapBusy); updates and deletes go on. If the process dies,
        whoever recovers it finishes this. Costs about a delete() for each entry; memory goes back
        as blocks run empty.

        Raises MapBusy (somebody else clears it), LockTimeout, ReadOnlyMap, MapClosed.
        """
        cdef Op op
        cdef Status status
        cdef uint64_t held = 0
        cdef uint64_t done = 0
        cdef Clearing clearing = Clearing(0, 0, False)
        cdef Patience patience = self._patience()
        self._enter_to_write(&op)
        try:
            while lock_try(&op, &self.map.header.clearing, &held) != OK:   # ends with the timeout
                self._wait(&op, BUSY, &patience)
            try:
                while True:                    # an entry each turn; none come
                    status = clear_step(&op, &clearing)
                    if status == ABSENT:
                        break
                    if status == BUSY or status == RETRY:
                        self._wait(&op, status, &patience)
                    elif status != OK:
                        self._raise(status, &op)
                    else:
                        patience.turn = patience.retries = 0
                    done += 1
                    if done & 0xFFF == 0:
                        op_end(&op)
                        with nogil:
                            sched_yield()
                        op_begin(&op)
                        PyErr_CheckSignals()
            finally:
                lock_release(&self.map.header.clearing, 0)
        finally:
            self._leave(&op)


@cython.final
@cython.internal
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class PinnedObject:
    """The bytes of one object, where they are, for reading. Nobody reuses them while this lives."""

    cdef ObjectHandle handle
    cdef uint64_t pin
    cdef uint64_t generation
    cdef const uint8_t *bytes
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *> self.bytes, self.size, True, flags)

    def __dealloc__(self):
        cdef Op op
        cdef bint closed
        if self.handle is None:
            return
        if self.handle.map.local.generation == self.generation:    # a child of fork has no pins
            closed = self.handle.is_closed     # closing waits for us
            self.handle.is_closed = False
            try:
                self.handle._enter(&op)
                op_settle(&op)
                if op.context.names[0] == 0:   # else the pin stays: rather too long than not
                    pin_clear(&op, self.pin)
                self.handle.is_closed = closed
                self.handle._leave(&op)
            except _errors.Error:
                self.handle.is_closed = closed  # no context: this process's death ends the pin
        self.handle._end_use()


cdef object pinned_object(ObjectHandle handle, Op *op, const Found *found, uint64_t ref):
    """A PinnedObject of what a found element refers to; None if the element changed meanwhile."""
    cdef PinnedObject pinned
    cdef uint64_t pin = 0
    cdef uint64_t length = 0
    cdef const uint8_t *bytes = item_bytes(&handle.map, ref, &length)
    cdef Status status
    if bytes == NULL:
        return None
    status = pin_claim(op, handle.map.local.process_index + 1, &pin)
    if status == FULL:
        raise _errors.TooManyProcesses(
            f"map {handle.name!r}: all {PIN_MAX} pins are in use; let go of some views")
    if status != OK:
        handle._raise(status, op)
    pin_set(op, pin, ref)
    if not ref_stands(found):
        pin_clear(op, pin)
        op_settle(op)
        return None
    pinned = PinnedObject.__new__(PinnedObject)
    pinned.handle = handle
    pinned.pin = pin
    pinned.generation = handle.map.local.generation
    pinned.bytes = bytes
    pinned.size = <Py_ssize_t> length
    handle.in_flight += 1                      # the mapping stays for as long as the view
    return pinned
