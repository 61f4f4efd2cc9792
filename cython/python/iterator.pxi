# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the iterator behind iter(), keys(), values() and items().

cdef enum:
    CHUNK_ENTRIES = 128        # entries that an iterator reads at a time,
    CHUNK_BYTES = 65536        # fewer if they have more bytes than this
    COLLECTED_MIN = 64         # a chunk that makes more new objects ends recycling


@cython.final
@cython.auto_pickle(False)
cdef class EntryIterator:
    """Iterator over a map: "keys", "values" or "items". Reads up to 128 entries ahead; looks each
    of them up again if its own handle has written since. Threads may share an iterator.

    expired: expired entries are delivered too, and no entry is looked up again."""

    cdef MapHandle handle
    cdef Cursor place
    cdef bytearray keys
    cdef bytearray values
    cdef bint with_key
    cdef bint with_value
    cdef bint expired
    cdef EntryBuffer sink
    cdef uint64_t at
    cdef uint64_t writes
    cdef unsigned long filler      # the thread that is reading the next entries, or 0,
    cdef uint64_t generation       # in this generation: a child of fork does not have it
    cdef Recycler spare_keys
    cdef Recycler spare_values
    cdef PyObject *last_pair
    cdef bint collected            # the caller keeps the objects it gets: none can be recycled

    def __cinit__(self, MapHandle handle not None, str kind not None, bint expired=False):
        cdef uint64_t entry = handle.map.key_size + handle.map.value_size
        cdef uint64_t count = CHUNK_BYTES // entry
        recycler_begin(&self.spare_keys)
        recycler_begin(&self.spare_values)
        Py_INCREF(None)
        self.last_pair = <PyObject *> None
        count = 1 if count < 1 else CHUNK_ENTRIES if count > CHUNK_ENTRIES else count
        self.handle = handle
        self.with_key = kind != "values"
        self.with_value = kind != "keys"
        self.keys = bytearray(count * handle.map.key_size)
        self.sink.keys = <uint8_t *> PyByteArray_AS_STRING(self.keys)
        if self.with_value:
            self.values = bytearray(count * handle.map.value_size)
            self.sink.values = <uint8_t *> PyByteArray_AS_STRING(self.values)
        self.sink.capacity = count
        self.sink.expired = self.expired = expired
        self.place = Cursor.__new__(Cursor)
        expect_open(handle)
        self.place.start(handle, None)

    def __dealloc__(self):
        recycler_end(&self.spare_keys)
        recycler_end(&self.spare_values)
        Py_XDECREF(self.last_pair)

    def __iter__(self):
        return self

    cdef int _fill(self) except -1:
        """Read the next entries. Of several threads one reads, and the others wait for it."""
        cdef Op op
        if self.generation != process_generation:
            self.generation = process_generation
            self.filler = 0
        if self.filler == PyThread_get_thread_ident():
            raise ValueError("iterator is already executing")
        if self.filler != 0:
            with nogil:
                sched_yield()
            return 0
        self.filler = PyThread_get_thread_ident()
        try:
            if self.spare_keys.made + self.spare_values.made > COLLECTED_MIN:
                self.collected = True
            self.spare_keys.made = self.spare_values.made = 0
            self.at = self.sink.count = 0
            enter_to_read(self.handle, &op)
            try:
                walk_fill(self.handle, &op, &self.place.position, &self.sink)
            finally:
                leave_reading(self.handle, &op)
            self.writes = self.handle.writes
        finally:
            self.filler = 0
        return 0

    cdef bytes _again(self, bytes key):
        """The value that key has now, or b"" if only keys are wanted; None if key is absent."""
        cdef bytes value = PyBytes_FromStringAndSize(
            NULL, <Py_ssize_t> self.handle.map.value_size if self.with_value else 0)
        cdef Status status = read_value(
            self.handle, <const uint8_t *> PyBytes_AS_STRING(key),
            PyBytes_AS_STRING(value) if self.with_value else NULL)
        return value if status == OK else None

    cdef inline bytes _bytes(self, Recycler *recycler, const uint8_t *content, Py_ssize_t size):
        if self.collected:
            return PyBytes_FromStringAndSize(<const char *> content, size)
        return recycled_bytes(recycler, content, size)

    def __next__(self):
        cdef uint64_t value_size = self.handle.map.value_size
        cdef bytes key = None
        cdef bytes value = None
        cdef bint stale
        while value is None:                   # ends at the end of the map
            if self.handle.reads == READS_NONE:
                refuse_reading(self.handle)
            if self.filler != 0 or self.at == self.sink.count:
                if self.filler == 0 and self.place.position.order >= ORDER_END:
                    raise StopIteration
                self._fill()
                continue
            # From here to the copies no other thread runs: the GIL is held.
            stale = self.writes != self.handle.writes and not self.expired
            if self.with_key or stale:
                key = self._bytes(
                    &self.spare_keys, self.sink.keys + self.at * self.handle.map.key_size,
                    <Py_ssize_t> self.handle.map.key_size)
            self.at += 1
            if unlikely(stale):
                value = self._again(key)
            elif not self.with_value:
                return key
            else:
                value = self._bytes(
                    &self.spare_values, self.sink.values + (self.at - 1) * value_size,
                    <Py_ssize_t> value_size)
        if not self.with_value:
            return key
        return recycled_pair(&self.last_pair, key, value) if self.with_key else value
