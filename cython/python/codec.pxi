# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: Python objects as the bytes of keys and values, for DictCore.
#
# Keys and values of kinds with a fixed size are stored in the entry. Values of the other kinds are
# objects (classes.pxd). Keys of the other kinds are stored as the 16 bytes that hashing.pxd makes
# of them, and long keys also as objects.

cpdef enum:                    # the kinds of keys and values, for the Python side as well
    KEY_INT = 0
    KEY_FLOAT = 1
    KEY_BOOL = 2
    KEY_BYTES = 3
    KEY_STR = 4
    KEY_FIXED = 5
    KEY_ENCODED = 6
    VALUE_INT = 0
    VALUE_FLOAT = 1
    VALUE_BOOL = 2
    VALUE_FIXED = 3
    VALUE_BYTES = 4
    VALUE_STR = 5
    VALUE_ENCODED = 6
    VALUE_VIEW = 7

cdef enum:
    NO_SLOT = 3                # as REF_MAX: the value has no such reference
    SPOT_WORDS = 64            # values up to 512 bytes are handled on the stack
    LONG_KEY_MAX = 65535


def clock_monotonic_ns():
    """CLOCK_MONOTONIC in ns, the clock of deadlines, even where Python's clocks are replaced."""
    return clock_ns(CLOCK_MONOTONIC)


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PyUnicode_AsEncodedString(object text, const char *encoding, const char *errors)
    object PyUnicode_DecodeUTF8(const char *bytes, Py_ssize_t size, const char *errors)
    double PyFloat_AsDouble(object number) except? -1.0
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    bint PyUnicode_Check(object thing)
    bint PyLong_Check(object thing)
    object PyMemoryView_FromObject(object thing)

# The bytes of a key or value. The object that has them must live as long as they are used.
cdef struct Span:
    const uint8_t *bytes
    Py_ssize_t size

cdef struct KeyBytes:
    uint64_t words[2]          # the bytes of kinds whose bytes are made here
    const uint8_t *bytes       # key_size bytes: the key as the map stores it
    const uint8_t *whole       # of a long key: all its bytes
    uint64_t length
    bint is_long


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Codec:
    """How a dict's keys or values become bytes: a kind, and the functions that some kinds need."""

    cdef int kind
    cdef bint is_key
    cdef object encode
    cdef object decode
    cdef bint plain            # keys that plain_key() may encode
    cdef uint64_t size         # bytes of a FIXED key or value

    cdef str _what(self):
        return "key" if self.is_key else "value"

    cdef _wrong(self, str wanted, object thing):
        raise TypeError(f"{self._what()} must be {wanted}, not {type(thing).__name__}")

    cdef object _text(self, object thing, Span *span):
        """Set span to the UTF-8 of a str, lone surrogates (of file names, say) as three bytes each.
        The returned object must live as long as the span is used."""
        if not PyUnicode_Check(thing):
            self._wrong("str", thing)
        try:
            span.bytes = <const uint8_t *> PyUnicode_AsUTF8AndSize(thing, &span.size)
        except UnicodeEncodeError:
            thing = PyUnicode_AsEncodedString(thing, "utf-8", "surrogatepass")
            span.bytes = <const uint8_t *> PyBytes_AS_STRING(thing)
            span.size = PyBytes_GET_SIZE(thing)
        return thing

    cdef int64_t _integer(self, object thing) except? -1:
        cdef int overflow = 0
        cdef int64_t number
        if not PyLong_Check(thing):
            if not hasattr(thing, "__index__"):
                self._wrong("int", thing)
            thing = as_index(thing)
        number = PyLong_AsLongLongAndOverflow(thing, &overflow)
        if unlikely(overflow != 0):
            raise OverflowError(
                f"{self._what()} must be from -2**63 to 2**63 - 1, not a number of "
                f"{thing.bit_length()} bits")
        return number

    cdef bint _truth(self, object thing) except? -1:
        if not PyBool_Check(thing):
            if type(thing).__module__ != "numpy" or type(thing).__name__ not in ("bool", "bool_"):
                self._wrong("bool", thing)
            thing = bool(thing)
        return thing is True

    cdef double _number(self, object thing) except? -1.0:
        if not PyFloat_CheckExact(thing) and isinstance(thing, (str, bytes, bytearray)):
            self._wrong("float", thing)
        try:
            return PyFloat_AsDouble(thing)
        except TypeError:
            self._wrong("float", thing)

    cdef object _bytes_of(self, object thing):
        """The bytes that the program's encode function makes of thing; checks their size."""
        encoded = self.encode(thing)
        if self.size and len(encoded) != <Py_ssize_t> self.size:
            raise _errors.InvalidArgument(
                f"{self._what()} was encoded as {len(encoded)} bytes, not {self.size}")
        return encoded


cdef Codec codec_of(triple, bint is_key, uint64_t size):
    cdef Codec codec = Codec.__new__(Codec)
    codec.kind, codec.encode, codec.decode = triple
    codec.is_key = is_key
    codec.plain = is_key and codec.encode is encode_key
    codec.size = size
    return codec


cdef object span_view(object thing, str what, Py_buffer *view, Span *span):
    """Set span to the bytes of any contiguous buffer. They are valid until view is released."""
    if not PyObject_CheckBuffer(thing):
        raise TypeError(f"{what} must be bytes or another buffer, not {type(thing).__name__}")
    try:
        PyObject_GetBuffer(thing, view, PyBUF_SIMPLE)
    except BufferError:
        raise _errors.InvalidArgument(f"{what} must be contiguous in memory") from None
    span.bytes = <const uint8_t *> view.buf
    span.size = view.len


cdef int key_digested(MapHandle handle, KeyBytes *key, Span span) except -1:
    if span.size > LONG_KEY_MAX:
        raise _errors.TooLarge(f"keys have at most {LONG_KEY_MAX} bytes, not {span.size}")
    key.is_long = key_digest(
        handle.map.seeds, span.bytes, <uint64_t> span.size, key.words)
    key.whole = span.bytes
    key.length = <uint64_t> span.size
    key.bytes = <const uint8_t *> key.words
    return 0


cdef object key_encode(MapHandle handle, Codec codec, object key, KeyBytes *out):
    """Fill in out. The returned object must live as long as out is used."""
    cdef uint8_t room[PLAIN_ROOM]
    cdef Span span
    cdef double number
    out.is_long = False
    out.bytes = <const uint8_t *> out.words
    if codec.kind == KEY_STR:
        kept = codec._text(key, &span)
        key_digested(handle, out, span)
        return kept
    if codec.kind == KEY_INT:
        out.words[0] = <uint64_t> codec._integer(key)
        return key
    if codec.kind == KEY_BYTES:
        if not PyBytes_CheckExact(key):
            if not PyObject_CheckBuffer(key):
                codec._wrong("bytes", key)
            key = bytes(key)
        span.bytes = <const uint8_t *> PyBytes_AS_STRING(key)
        span.size = PyBytes_GET_SIZE(key)
        key_digested(handle, out, span)
        return key
    if codec.kind == KEY_FLOAT:
        number = codec._number(key) + 0.0      # -0.0 and 0.0 are one key
        memcpy(out.words, &number, 8)
        return key
    if codec.kind == KEY_BOOL:
        out.words[0] = codec._truth(key)
        return key
    span.size = plain_key(key, room, PLAIN_ROOM, PLAIN_DEPTH) if codec.plain else -1
    if span.size >= 0:
        encoded = PyBytes_FromStringAndSize(<const char *> room, span.size)
    else:
        encoded = bytes(codec._bytes_of(key))
    span.bytes = <const uint8_t *> PyBytes_AS_STRING(encoded)
    span.size = PyBytes_GET_SIZE(encoded)
    if codec.kind == KEY_ENCODED:
        key_digested(handle, out, span)
    else:
        out.bytes = span.bytes
    return encoded


cdef object text_decode(const uint8_t *bytes, Py_ssize_t size):
    try:
        return PyUnicode_DecodeUTF8(<const char *> bytes, size, "surrogatepass")
    except UnicodeDecodeError as error:
        raise _errors.SegmentCorrupt(f"{size} bytes of a str are not UTF-8: {error}") from None


cdef object key_decode(Codec codec, const uint8_t *bytes, Py_ssize_t size):
    """The key that has these bytes: for kinds of any length, all bytes of the key."""
    cdef double number
    if codec.kind == KEY_STR:
        return text_decode(bytes, size)
    if codec.kind == KEY_INT:
        return <int64_t> read_u64(bytes)
    if codec.kind == KEY_FLOAT:
        memcpy(&number, bytes, 8)
        return number
    if codec.kind == KEY_BOOL:
        return bytes[0] != 0
    found = PyBytes_FromStringAndSize(<const char *> bytes, size)
    return found if codec.kind == KEY_BYTES else codec.decode(found)


cdef object value_inline(Codec codec, const uint8_t *bytes):
    """The value of a kind that is stored in the entry."""
    cdef double number
    if codec.kind == VALUE_INT:
        return <int64_t> read_u64(bytes)
    if codec.kind == VALUE_FLOAT:
        memcpy(&number, bytes, 8)
        return number
    if codec.kind == VALUE_BOOL:
        return read_u64(bytes) != 0
    return codec.decode(PyBytes_FromStringAndSize(<const char *> bytes, <Py_ssize_t> codec.size))


cdef object value_decode(Codec codec, bytes found):
    """The value of a kind that is stored as an object, from a copy of its bytes."""
    if codec.kind == VALUE_BYTES:
        return found
    if codec.kind == VALUE_STR:
        return text_decode(<const uint8_t *> PyBytes_AS_STRING(found), PyBytes_GET_SIZE(found))
    if codec.kind == VALUE_VIEW:
        return codec.decode(memoryview(found))
    return codec.decode(found)
