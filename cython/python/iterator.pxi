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
    cdef bint pairs_of_words       # items() of a map of words only, whose objects are recycled

    def __cinit__(self, MapHandle handle not None, str kind not None, bint expired=False):
        cdef uint64_t count
        recycler_begin(&self.spare_keys)
        recycler_begin(&self.spare_values)
        Py_INCREF(None)
        self.last_pair = <PyObject *> None
        expect_open(handle)                    # first: one that was never open has no sizes
        count = CHUNK_BYTES // (handle.map.key_size + handle.map.value_size)
        count = 1 if count < 1 else CHUNK_ENTRIES if count > CHUNK_ENTRIES else count
        self.handle = handle
        self.with_key = kind != "values"
        self.with_value = kind != "keys"
        self.pairs_of_words = self.with_key and self.with_value and handle.map.words_only
        self.keys = bytearray(count * handle.map.key_size)
        self.sink.keys = <uint8_t *> PyByteArray_AS_STRING(self.keys)
        if self.with_value:
            self.values = bytearray(count * handle.map.value_size)
            self.sink.values = <uint8_t *> PyByteArray_AS_STRING(self.values)
        self.sink.capacity = count
        # Room for a whole bucket behind what is wanted: then the walk never stops inside one.
        self.sink.wanted = count - SLOT_COUNT + 1 if count > SLOT_COUNT else count
        self.sink.expired = self.expired = expired
        self.place = Cursor.__new__(Cursor)
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
                self.pairs_of_words = False
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

    def __next__(self):
        if FREE_THREADED:
            with cython.critical_section(self):
                return entry_next(self)
        return entry_next(self)


cdef inline object entry_next(EntryIterator walk):
    while entry_is_ahead(walk):
        # From here to the copies no other thread runs: the GIL is held, or the critical section.
        if likely(not entry_is_stale(walk) or walk.expired):
            return entry_taken(walk)
        found = entry_taken_again(walk)
        if found is not None:
            return found
    raise StopIteration


cdef bint entry_is_ahead_filled(EntryIterator walk) except -1:
    """entry_is_ahead, after reading the next entries if there are none left."""
    while True:                                # ends at the end of the map
        if walk.handle.reads == READS_NONE:
            refuse_reading(walk.handle)
        if walk.filler == 0:
            if walk.at != walk.sink.count:
                return True
            if walk.place.position.order >= ORDER_END:
                return False
        walk._fill()


cdef inline bint entry_is_ahead(EntryIterator walk) except -1:
    """Whether there is another entry. If so, place at of the chunk has it, until other Python code
    runs."""
    if likely(walk.at != walk.sink.count and walk.filler == 0
              and walk.handle.reads != READS_NONE):
        return True
    return entry_is_ahead_filled(walk)


cdef inline bint entry_is_stale(EntryIterator walk) noexcept:
    """Whether this handle may have changed the chunk's entries since they were read."""
    return walk.writes != walk.handle.writes


cdef inline const uint8_t *entry_key(EntryIterator walk, uint64_t at) noexcept:
    return walk.sink.keys + at * walk.handle.map.key_size


cdef inline const uint8_t *entry_value(EntryIterator walk, uint64_t at) noexcept:
    return walk.sink.values + at * walk.handle.map.value_size


cdef object entry_half(EntryIterator walk, uint64_t at):
    """The key or the value at a place of the chunk, whichever is wanted."""
    cdef Recycler *recycler = &walk.spare_values if walk.with_value else &walk.spare_keys
    cdef const uint8_t *content = entry_key(walk, at)
    cdef Py_ssize_t size = <Py_ssize_t> walk.handle.map.key_size
    if walk.with_value:
        content = entry_value(walk, at)
        size = <Py_ssize_t> walk.handle.map.value_size
    if walk.collected:
        return PyBytes_FromStringAndSize(<const char *> content, size)
    return recycled_bytes(recycler, content, size)


cdef inline object entry_taken(EntryIterator walk):
    """The next entry, as it stands in the chunk."""
    cdef uint64_t at = walk.at
    cdef Py_ssize_t key_size = <Py_ssize_t> walk.handle.map.key_size
    cdef Py_ssize_t value_size = <Py_ssize_t> walk.handle.map.value_size
    walk.at = at + 1
    if likely(walk.pairs_of_words):
        return recycled_pair(
            &walk.last_pair, new_recycled_bytes(&walk.spare_keys, walk.sink.keys + at * 8, 8),
            new_recycled_bytes(&walk.spare_values, walk.sink.values + at * 8, 8))
    if not walk.with_value or not walk.with_key:
        return entry_half(walk, at)
    # The bytes are copied before the pair is made: that may collect garbage, and so run Python.
    if unlikely(walk.collected):
        return recycled_pair(
            &walk.last_pair, new_bytes(entry_key(walk, at), key_size),
            new_bytes(entry_value(walk, at), value_size))
    return recycled_pair(
        &walk.last_pair, new_recycled_bytes(&walk.spare_keys, entry_key(walk, at), key_size),
        new_recycled_bytes(&walk.spare_values, entry_value(walk, at), value_size))


cdef object entry_taken_again(EntryIterator walk):
    """The next entry as it is now; None if its key is absent."""
    cdef MapHandle handle = walk.handle
    cdef bytes value
    cdef bytes key = PyBytes_FromStringAndSize(
        <const char *> entry_key(walk, walk.at), <Py_ssize_t> handle.map.key_size)
    walk.at += 1
    value = PyBytes_FromStringAndSize(
        NULL, <Py_ssize_t> handle.map.value_size if walk.with_value else 0)
    if read_value(handle, <const uint8_t *> PyBytes_AS_STRING(key),
                  PyBytes_AS_STRING(value) if walk.with_value else NULL) != OK:
        return None
    if not walk.with_value:
        return key
    return (key, value) if walk.with_key else value
