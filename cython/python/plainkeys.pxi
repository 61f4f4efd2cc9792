# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the bytes of object keys that are plain, without Python. They are those that
# encode_key() in shmrhash/_types/keys.py makes, which has the format and knows all other keys.

from shmrhash._types.keys import encode_key

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object thing)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    void *PyUnicode_DATA(object text)
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    bint PyBool_Check(object thing)
    bint PyFloat_CheckExact(object thing)
    double PyFloat_AS_DOUBLE(object thing)
    bint PyTuple_CheckExact(object thing)
    Py_ssize_t PyTuple_GET_SIZE(object thing)
    PyObject *PyTuple_GET_ITEM(object thing, Py_ssize_t at)

cdef enum:
    PLAIN_ROOM = 254           # bytes of a key at most: so the length of an item is one byte
    PLAIN_DEPTH = 6            # tuples in tuples

cdef double PLAIN_INTEGERS = 9223372036854775808.0     # 2**63: what C can convert is less


cdef inline Py_ssize_t tagged_key(
        uint8_t tag, const void *content, Py_ssize_t size, uint8_t *out, Py_ssize_t room) noexcept:
    if size >= room:
        return -1
    out[0] = tag
    memcpy(out + 1, content, <size_t> size)
    return size + 1


cdef inline Py_ssize_t integer_key(int64_t number, uint8_t *out, Py_ssize_t room) noexcept:
    cdef uint64_t size = <uint64_t> (-number if number < 0 else number)
    cdef int bits = 0
    if number == INT64_MIN:                    # needs nine bytes
        return -1
    while bits < 64 and size >> bits != 0:     # at most eight turns
        bits += 8
    # bit_length() // 8 + 1 bytes: one more if the highest bit of the last one is taken.
    if bits == 0 or size >> (bits - 1) != 0:
        bits += 8
    return tagged_key(c'i', &number, bits // 8, out, room) if bits <= 64 else -1


cdef Py_ssize_t plain_key(object key, uint8_t *out, Py_ssize_t room, int depth) noexcept:
    """Write the bytes of a key that is None, a bool, an int of 64 bits, a float, short ASCII or
    bytes, or a tuple of these; return how many. -1: another one, or one that has not enough room.
    """
    cdef int64_t number
    cdef double wide
    cdef int overflow = 0
    cdef Py_ssize_t size = 1
    cdef Py_ssize_t at
    cdef Py_ssize_t item
    if PyUnicode_CheckExact(key):
        if not PyUnicode_IS_COMPACT_ASCII(key):
            return -1
        return tagged_key(c's', PyUnicode_DATA(key), PyUnicode_GET_LENGTH(key), out, room)
    if PyLong_CheckExact(key):
        number = PyLong_AsLongLongAndOverflow(key, &overflow)
        return integer_key(number, out, room) if overflow == 0 else -1
    if PyTuple_CheckExact(key):
        if depth == 0 or room < 1:
            return -1
        out[0] = c't'
        for at in range(PyTuple_GET_SIZE(key)):
            item = plain_key(
                <object> PyTuple_GET_ITEM(key, at), out + size + 1, room - size - 1, depth - 1)
            if item < 0:
                return -1
            out[size] = <uint8_t> item
            size += 1 + item
        return size
    if key is None:
        return tagged_key(c'n', out, 0, out, room)
    if PyBool_Check(key):
        return integer_key(key is True, out, room)
    if PyFloat_CheckExact(key):
        wide = PyFloat_AS_DOUBLE(key)
        if -PLAIN_INTEGERS < wide < PLAIN_INTEGERS and <double> <int64_t> wide == wide:
            return integer_key(<int64_t> wide, out, room)
        if wide - wide == 0 and not -PLAIN_INTEGERS < wide < PLAIN_INTEGERS:
            return -1                          # an integer, and a long one
        return tagged_key(c'f', &wide, 8, out, room)
    if PyBytes_CheckExact(key):
        return tagged_key(c'b', PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), out, room)
    return -1


def plain_bytes(key):
    """What plain_key() makes of a key; None: it leaves the key to encode_key()."""
    cdef uint8_t room[PLAIN_ROOM]
    cdef Py_ssize_t size = plain_key(key, room, PLAIN_ROOM, PLAIN_DEPTH)
    return None if size < 0 else PyBytes_FromStringAndSize(<const char *> room, size)
