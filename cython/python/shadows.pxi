# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: keys that are claimed in the place of another key: its shadow, and its mutex.
#
# Shadows. A value that is still served while it is computed again cannot be claimed like this: its
# entry stays as it is for readers and writers. So the claim is a blank under another key, the
# shadow of the key. After it is claimed, the entry is read again: another caller may have computed
# it just before. The result is stored only if the entry still has the header of that read, so a
# value that was stored, deleted or touched since then stays. If the process dies, its shadow is
# free.
#
# The mutex of a key, of Cache.mutex(), is claimed likewise, and never stored.

cdef enum:
    SHADOW_BITS = 0xA5         # of each byte of a key that stands in the entry
    MUTEX_BITS = 0x5A
    MUTEX_KEY_SIZE_MIN = 8

cpdef enum:                    # other keys that can be claimed in the place of a key
    ITS_SHADOW = 1
    ITS_MUTEX = 2              # of Cache.mutex()

cdef bytes SHADOW_PREFIX = b"\xffshadow of \xff"          # not UTF-8
cdef bytes MUTEX_PREFIX = b"\xffmutex of \xff"


cdef object instead_of_key(DictHandle owner, KeyBytes *key, int instead):
    """Replace a key by its shadow or mutex, which no str has, and hardly any other key of eight
    bytes or more. Returns what keeps its bytes alive. A shadow that is another key's has a value:
    then no caller computes before the old value ends."""
    cdef MapHandle handle = owner.handle
    cdef Span span
    cdef int bits = MUTEX_BITS if instead == ITS_MUTEX else SHADOW_BITS
    raw = PyBytes_FromStringAndSize(<const char *> key.bytes, <Py_ssize_t> handle.map.key_size)
    if owner.key_slot != NO_SLOT:
        kept = (MUTEX_PREFIX if instead == ITS_MUTEX else SHADOW_PREFIX) + raw
        span.bytes = <const uint8_t *> PyBytes_AS_STRING(kept)
        span.size = PyBytes_GET_SIZE(kept)
        key_digested(handle, key, span)
        return kept
    if instead == ITS_MUTEX and handle.map.key_size < MUTEX_KEY_SIZE_MIN:
        raise _errors.InvalidArgument(
            f"cache {handle.name!r} has keys of {handle.map.key_size} bytes, so few that another "
            f"key may stand where the mutex would: use a cache whose keys have "
            f"{MUTEX_KEY_SIZE_MIN} bytes or more")
    kept = bytes([byte ^ bits for byte in raw])
    key.bytes = <const uint8_t *> PyBytes_AS_STRING(kept)
    return kept
