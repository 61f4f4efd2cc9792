/* Bytes objects of values, used again.
 *
 * A lookup gives its caller a bytes object, and most callers have dropped it when they make the next
 * lookup or the one after. So each handle keeps the last two it gave, and one that nobody else has
 * any more is filled anew, as zip() does with its tuples: this saves an allocation and its end, a
 * quarter of the instructions of m[key]. A count of one is the handle's own reference, so nobody
 * sees the bytes change; the hash that the object remembers is forgotten. The GIL keeps others away
 * meanwhile: builds without it allocate, and so do Pythons whose bytes objects we do not know. */
#ifndef SHMRHASH_VALUE_BYTES_H
#define SHMRHASH_VALUE_BYTES_H

#include <Python.h>
#include <string.h>

#include "shm_atomics.h"

#define VALUE_BYTES_KEPT 2

#if !defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030F0000
#define VALUE_BYTES_AGAIN 1
#else
#define VALUE_BYTES_AGAIN 0
#endif

/* kept: VALUE_BYTES_KEPT references, Py_None where there is none yet. */
typedef struct {
    PyObject *kept[VALUE_BYTES_KEPT];
} ValueBytes;

static inline void value_bytes_begin(ValueBytes *some)
{
    for (int i = 0; i < VALUE_BYTES_KEPT; i++) {
        Py_INCREF(Py_None);
        some->kept[i] = Py_None;
    }
}

static inline void value_bytes_end(ValueBytes *some)
{
    for (int i = 0; i < VALUE_BYTES_KEPT; i++)
        Py_CLEAR(some->kept[i]);
}

/* A new object, in the place of kept[1]. */
SHM_APART PyObject *value_object_new(ValueBytes *some, const void *value, Py_ssize_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)value, size);
#if VALUE_BYTES_AGAIN
    if (bytes != NULL) {
        PyObject *before = some->kept[1];
        Py_INCREF(bytes);
        some->kept[1] = bytes;
        Py_DECREF(before);
    }
#endif
    return bytes;
}

/* A value as a bytes object, a new reference; NULL with an exception. Those of a handle have one
 * size. (Python shares bytes objects of size 1, so they are never the handle's alone.) */
static inline PyObject *value_object(ValueBytes *some, const void *value, Py_ssize_t size)
{
#if VALUE_BYTES_AGAIN
    PyObject *bytes = some->kept[0];
    some->kept[0] = some->kept[1];
    some->kept[1] = bytes;
    if (__builtin_expect(Py_REFCNT(bytes) == 1, 1)) {
        Py_INCREF(bytes);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        ((PyBytesObject *)bytes)->ob_shash = -1;
#pragma GCC diagnostic pop
        memcpy(((PyBytesObject *)bytes)->ob_sval, value, (size_t)size);
        return bytes;
    }
#endif
    return value_object_new(some, value, size);
}

#endif
