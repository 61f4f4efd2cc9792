# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the handle of maps with objects and special fields, as Python sees it.

cdef enum:
    KEYS_AHEAD = 128           # keys that raw_keys reads at a time


def raw_keys(MapHandle handle not None):
    """Yield every key of a map once, those of expired entries included."""
    size = handle.key_size
    room = bytearray(size * KEYS_AHEAD)
    cursor = None
    while True:
        count, cursor = read_entries(handle, cursor, room, None, 0, KEYS_AHEAD, False, True)
        for at in range(count):
            yield bytes(room[at * size:(at + 1) * size])
        if cursor is None:
            return


@cython.auto_pickle(False)
cdef class ObjectHandle(ModifyHandle):
    """The handle with the operations on special fields and objects."""

    cdef uint64_t pins_held        # by living views of this handle
    cdef uint64_t views_copied     # values that are copies for want of a pin

    @property
    def max_bytes(self):
        """Bytes of memory that the map's objects may take; 0: the map has no objects."""
        return self.map.max_bytes

    @property
    def schema(self):
        """The description of the entries, as bytes, that the creator of the map stored in it."""
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
        """The figures of info() about objects; None if the map has none. Exact at rest."""
        cdef ObjectFacts facts
        cdef Op op
        self._expect_open()
        if self.map.objects == NULL:
            return None
        self._enter_to_look(&op)
        with nogil:
            objects_count(&op, &facts)
        self._leave_reading(&op)
        return {
            "count": facts.count, "bytes_in_use": facts.bytes_in_use,
            "bytes_committed": budget_word(&self.map.objects.budget) * PAGE_BYTES,
            "bytes_waiting": facts.pages_waiting * PAGE_BYTES,
            "waiting_for": waiting_pids(self) if facts.pages_waiting else [],
            "pinned": facts.pinned, "views_copied": self.views_copied,
            "max_bytes": self.map.max_bytes,
        }

    cdef int _begin_raw(self, Op *op, object key, Py_buffer *view, Waiting *patience) except -1:
        """Begin an operation on one key that handles special fields itself."""
        op.key = self._buffer("key", key, self.map.key_size, view)
        op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
        self._enter_to_modify(op)
        op.options = OP_RAW_FIELDS
        try:
            self._settled(op, patience)
        except BaseException:
            self._leave(op)
            raise
        return 0

    cdef uint32_t _ref_at(self, Py_ssize_t offset) except? 0xFFFFFFFF:
        """The number of the reference that is at this offset of the value."""
        cdef uint32_t slot
        for slot in range(self.map.ref_count):
            if <Py_ssize_t> self.map.ref_words[slot] * 8 == offset:
                return slot
        raise _errors.InvalidArgument(f"map {self.name!r} has no Kptr at offset {offset}")

    cdef object _exchange_ref(
            self, Op *op, uint32_t slot, uint64_t *value, const Py_buffer *data, bint only_read):
        """One attempt of kptr_xchg: the bytes of the object before, or None if there was none; if
        the attempt failed, its status, an int."""
        cdef Found found
        cdef uint64_t ref
        cdef object before = None
        cdef Status status = entry_find(&self.map, op.hash, op.key, &found, value)
        if status == OK and entry_expired(&self.map, value):
            status = ABSENT
        if status != OK:
            return <int> status
        ref = value[self.map.ref_words[slot]]
        if ref != 0:
            before = object_copy(self, op, &found, ref)
            if before is None:
                return <int> RETRY
        if only_read:
            return before if element_unchanged(&found) else <int> RETRY
        if data.buf != NULL:
            status = object_make(op, slot, <const uint8_t *> data.buf, <uint64_t> data.len)
            if status != OK:
                return <int> status
        op.options = OP_RAW_FIELDS | (7 ^ (1 << slot)) << OP_KEEP_SHIFT
        # This fails unless the element is as it was found: the object copied is the one replaced.
        status = element_replace(op, &found, <const uint8_t *> value, 0)
        return before if status == OK else <int> status

    cdef object _kptr(self, object key, object data, Py_ssize_t offset, bint only_read):
        cdef Op op
        cdef Py_buffer key_view
        cdef Py_buffer data_view
        cdef Waiting patience = self._patience()
        cdef uint32_t slot = self._ref_at(offset)
        cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_words * 8)
        data_view.buf = NULL
        if data is not None:
            PyObject_GetBuffer(data, &data_view, PyBUF_SIMPLE)
            if data_view.len > <Py_ssize_t> LENGTH_MAX:
                PyBuffer_Release(&data_view)
                raise _errors.TooLarge(f"an object has at most {LENGTH_MAX} bytes")
        try:
            self._begin_raw(&op, key, &key_view, &patience)
            try:
                while True:                    # ends with the timeout
                    found = self._exchange_ref(
                        &op, slot, <uint64_t *> PyBytes_AS_STRING(room), &data_view, only_read)
                    if not isinstance(found, int) or (
                            found != RETRY and found != BUSY and not self._recovered_room(
                                found, &op, &patience)):
                        break
                    self._wait(&op, RETRY if found == RETRY else BUSY, &patience)
            finally:
                self._leave(&op)
        finally:
            if data is not None:
                PyBuffer_Release(&data_view)
            if key_view.buf != NULL:
                PyBuffer_Release(&key_view)
        if isinstance(found, int):
            if found == ABSENT:
                raise _errors.KeyNotFound(key)
            raise_status(self, found, &op)
        return found

    def _parts(self, bytes key):
        """All that is stored under a key, read in one step: (value as lookup() returns it,
        deadline, bytes or None of each Kptr, whether a section holds the entry); None if the key is
        absent. An expired entry is returned like any other."""
        cdef Op op
        cdef Py_buffer view
        cdef Found found
        cdef Status status = RETRY
        cdef int64_t deadline = 0
        cdef uint64_t _rounds
        cdef uint32_t slot
        cdef tuple objects = ()
        cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_words * 8)
        cdef uint64_t *value = <uint64_t *> PyBytes_AS_STRING(room)
        op.key = self._buffer("key", key, self.map.key_size, &view)
        op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
        self._enter_to_read(&op)
        try:
            for _rounds in range(READ_ROUNDS_MAX):
                status = entry_find(&self.map, op.hash, op.key, &found, value)
                if status == OK:
                    objects = tuple([
                        object_copy(self, &op, &found, value[self.map.ref_words[slot]])
                        if value[self.map.ref_words[slot]] != 0 else None
                        for slot in range(self.map.ref_count)])
                    if element_unchanged(&found):
                        break
                    self._renew(&op)
                elif status != RETRY:
                    break
                status = RETRY
                with nogil:
                    sched_yield()
        finally:
            self._leave_reading(&op)
        if status == ABSENT:
            return None
        if status != OK:
            raise_status(self, CORRUPT, NULL)
        deadline = <int64_t> entry_deadline(&self.map, value)
        fields_blank(&self.map, value)
        held = element_state(found.header) == ELEMENT_LOCKED
        return room[:self.map.value_size], deadline, objects, held

    def kptr_xchg(self, key, data, Py_ssize_t offset):
        """Store an object in the Kptr field at byte offset of key's value, or empty the field;
        return the bytes of the object that was there, or None.

        data: the object's bytes, a contiguous buffer of up to 256 MiB - 64 bytes; None empties the
        field.

        Atomic (W1): each object is returned to one caller at most. Expected O(1), and O(bytes) of
        both objects.

        Raises KeyNotFound (ENOENT), InvalidArgument (no such field), TooLarge, OutOfMemory and
        SegmentFull (nothing changed), LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        return self._kptr(key, data, offset, False)

    def kptr_get(self, key, Py_ssize_t offset):
        """Return the bytes of the object in the Kptr field at byte offset of key's value, or None.

        Raises KeyNotFound (ENOENT), InvalidArgument (no such field), ReadOnlyMap, MapClosed.
        """
        return self._kptr(key, None, offset, True)

    def timer_set(self, key, int64_t deadline_ns):
        """Set the time at which key's entry expires; return False if key is absent.

        deadline_ns: a CLOCK_MONOTONIC time in ns; 0 for never.

        From that time on the entry is absent for every operation, and writers that find it delete
        it. Atomic. Expected O(1).

        Raises InvalidArgument (no Timer field), LockTimeout, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef Op op
        cdef Py_buffer view
        cdef Status status
        cdef Waiting patience = self._patience()
        cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_words * 8)
        if self.map.timer_word == 0:
            raise _errors.InvalidArgument(f"map {self.name!r} has no Timer field")
        self._begin_raw(&op, key, &view, &patience)
        try:
            while True:                        # ends with the timeout
                status = entry_touch(
                    &op, <uint64_t> deadline_ns, <uint64_t *> PyBytes_AS_STRING(room))
                if status != RETRY and status != BUSY:
                    break
                self._wait(&op, status, &patience)
        finally:
            self._leave(&op)
            if view.buf != NULL:
                PyBuffer_Release(&view)
        if status != OK and status != ABSENT:
            raise_status(self, status, &op)
        return status == OK

    def expire(self):
        """Delete every expired entry; return how many were deleted. Costs a walk over the map.

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        self._expect_open()
        return sweep_all(self) if self.map.timer_word != 0 else 0

    cdef int _settled(self, Op *op, Waiting *patience) except -1:
        """Give back what an earlier operation could not, before this one takes objects."""
        op_give_back(op)
        while op.context.element != 0 or op.context.debt != 0:    # ends with the timeout
            self._wait(op, BUSY, patience)
            op_give_back(op)
        return 0

    def clear(self):
        """Delete all entries, one after another: each deletion is atomic, the whole is not.

        Until it ends, inserting a new key raises MapBusy; updates and deletions go on. If the
        process dies before the end, the process that recovers it deletes the remaining entries.
        Costs about as much as a delete() of each entry; memory goes back as blocks run empty.

        Raises MapBusy (another caller is clearing the map), LockTimeout, ReadOnlyMap, MapClosed.
        """
        cdef Op op
        cdef Status status
        cdef uint64_t held = 0
        cdef uint64_t done = 0
        cdef Clearing clearing = Clearing(0, 0, False)
        cdef Waiting patience = self._patience()
        self._enter_to_write(&op)
        try:
            while lock_try(&op, &self.map.header.clearing, &held) != OK:   # ends with the timeout
                self._wait(&op, BUSY, &patience)
            try:
                while True:                    # deletes an entry each turn; none are inserted
                    status = clear_step(&op, &clearing)
                    if status == ABSENT:
                        break
                    if status == BUSY or status == RETRY:
                        self._wait(&op, status, &patience)
                    elif status != OK:
                        raise_status(self, status, &op)
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
                if op_holds(&op, &self.map.header.clearing):      # a child of fork does not
                    lock_release(&self.map.header.clearing, 0)
        finally:
            self._leave(&op)
