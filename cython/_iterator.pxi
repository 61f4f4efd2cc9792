# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the iterator behind iter(), keys(), values() and items().

cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(PyObject *tuple, Py_ssize_t position)
    void PyTuple_SET_ITEM(PyObject *tuple, Py_ssize_t position, PyObject *item)

cdef enum:
    CHUNK_ENTRIES = 128        # that an iterator reads at a time,
    CHUNK_BYTES = 65536        # unless they are large


@cython.final
@cython.auto_pickle(False)
cdef class EntryIterator:
    """Iterator over a map: "keys", "values" or "items". Reads up to 128 entries ahead; what its own
    handle deleted or changed meanwhile it looks up again. Threads may share one."""

    cdef MapHandle handle
    cdef Place place
    cdef bytearray keys
    cdef bytearray values
    cdef bint with_key
    cdef bint with_value
    cdef Sink sink
    cdef uint64_t at
    cdef uint64_t writes
    cdef unsigned long filler      # the thread that reads the next entries, or 0
    cdef tuple pair

    def __cinit__(self, MapHandle handle not None, str kind not None):
        cdef uint64_t entry = handle.map.key_size + handle.map.value_size
        cdef uint64_t count = CHUNK_BYTES // entry
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
        self.place = Place.__new__(Place)
        handle._expect_open()
        self.place.start(handle, None)

    def __iter__(self):
        return self

    cdef int _fill(self) except -1:
        """Read the next entries. Of several threads one does it, and the others wait for it."""
        cdef Op op
        if self.filler == PyThread_get_thread_ident():
            raise ValueError("iterator is already executing")
        if self.filler != 0:
            with nogil:
                sched_yield()
            return 0
        self.filler = PyThread_get_thread_ident()
        try:
            self.at = self.sink.count = 0
            self.handle._enter_to_read(&op)
            try:
                walk_fill(self.handle, &op, &self.place.position, &self.sink)
            finally:
                self.handle._leave_reading(&op)
            self.writes = self.handle.writes
        finally:
            self.filler = 0
        return 0

    cdef bytes _again(self, bytes key):
        """The value that key has now, or b"" for keys alone; None if it is not there."""
        cdef bytes value = PyBytes_FromStringAndSize(
            NULL, <Py_ssize_t> self.handle.map.value_size if self.with_value else 0)
        cdef Status status = self.handle._read(
            <const uint8_t *> PyBytes_AS_STRING(key),
            PyBytes_AS_STRING(value) if self.with_value else NULL)
        return value if status == OK else None

    def __next__(self):
        cdef uint64_t value_size = self.handle.map.value_size
        cdef bytes key = None
        cdef bytes value = None
        while value is None:                   # ends at the map's end
            if self.handle.reads == READS_NONE:
                self.handle._refuse_reading()
            if self.filler != 0 or self.at == self.sink.count:
                if self.filler == 0 and self.place.position.order >= ORDER_END:
                    raise StopIteration
                self._fill()
                continue
            # From here to the copies nobody else runs: the GIL is held.
            if self.with_key or self.writes != self.handle.writes:
                key = PyBytes_FromStringAndSize(
                    <char *> self.sink.keys + self.at * self.handle.map.key_size,
                    <Py_ssize_t> self.handle.map.key_size)
            self.at += 1
            if unlikely(self.writes != self.handle.writes):
                value = self._again(key)
            elif not self.with_value:
                return key
            else:
                value = PyBytes_FromStringAndSize(
                    <char *> self.sink.values + (self.at - 1) * value_size,
                    <Py_ssize_t> value_size)
        if not self.with_value:
            return key
        return self._pair(key, value) if self.with_key else value

    cdef inline tuple _pair(self, bytes key, bytes value):
        """(key, value). As the dict's own iterator: the last pair again, if nobody else has it."""
        cdef PyObject *pair = <PyObject *> self.pair
        if pair == <PyObject *> None or Py_REFCNT(self.pair) != 1:
            self.pair = (key, value)
            return self.pair
        cdef PyObject *old_key = PyTuple_GET_ITEM(pair, 0)
        cdef PyObject *old_value = PyTuple_GET_ITEM(pair, 1)
        Py_INCREF(key)
        PyTuple_SET_ITEM(pair, 0, <PyObject *> key)
        Py_INCREF(value)
        PyTuple_SET_ITEM(pair, 1, <PyObject *> value)
        Py_DECREF(<object> old_key)
        Py_DECREF(<object> old_value)
        return self.pair
