/* Objects used again: bytes of keys and values, and pairs of them.
 *
 * A lookup gives its caller a bytes object, and most callers have dropped it when they make the next
 * lookup or the one after. So each handle keeps the last two it gave, and one that nobody else has
 * any more is filled anew, as zip() does with its tuples: this saves an allocation and its end, a
 * quarter of the instructions of m[key]. Iterators do so with keys, values and pairs. A count of one
 * is the keeper's own reference, so nobody sees the contents change; the hash that the object
 * remembers is forgotten. The GIL keeps others away meanwhile: builds without it allocate, and so do
 * Pythons whose objects we do not know. */
#ifndef SHMRHASH_SPARE_H
#define SHMRHASH_SPARE_H

#include <Python.h>
#include <string.h>

#include "machine/atomics.h"

#define SPARE_KEPT 2

#if !defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030F0000
#define SPARE_USED_AGAIN 1
#else
#define SPARE_USED_AGAIN 0
#endif

/* kept: SPARE_KEPT references, Py_None where there is none yet. made: how many objects had to be. */
typedef struct {
    PyObject *kept[SPARE_KEPT];
    uint64_t made;
} Recycler;

static inline void recycler_begin(Recycler *recycler)
{
    for (int i = 0; i < SPARE_KEPT; i++) {
        Py_INCREF(Py_None);
        recycler->kept[i] = Py_None;
    }
    recycler->made = 0;
}

static inline void recycler_end(Recycler *recycler)
{
    for (int i = 0; i < SPARE_KEPT; i++)
        Py_CLEAR(recycler->kept[i]);
}

/* A new object, in the place of kept[1]. */
SHM_APART PyObject *spare_bytes_new(Recycler *recycler, const void *content, Py_ssize_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)content, size);
    recycler->made++;
#if SPARE_USED_AGAIN
    if (bytes != NULL) {
        PyObject *before = recycler->kept[1];
        Py_INCREF(bytes);
        recycler->kept[1] = bytes;
        Py_DECREF(before);
    }
#endif
    return bytes;
}

/* A bytes object, a new reference; NULL with an exception. Those of a keeper have one size. (Python
 * shares bytes objects of size 1, so they are never the keeper's alone.) */
static inline PyObject *recycled_bytes(Recycler *recycler, const void *content, Py_ssize_t size)
{
#if SPARE_USED_AGAIN
    PyObject *bytes = recycler->kept[0];
    recycler->kept[0] = recycler->kept[1];
    recycler->kept[1] = bytes;
    if (__builtin_expect(Py_REFCNT(bytes) == 1, 1)) {
        Py_INCREF(bytes);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        ((PyBytesObject *)bytes)->ob_shash = -1;
#pragma GCC diagnostic pop
        memcpy(((PyBytesObject *)bytes)->ob_sval, content, (size_t)size);
        return bytes;
    }
#endif
    return spare_bytes_new(recycler, content, size);
}

/* (key, value), two bytes objects, as a new reference; NULL with an exception. The keeper has the
 * last one it gave in *kept, Py_None at first. (If the collector has left it aside, it may stay
 * there: bytes are in no cycle.) */
static inline PyObject *recycled_pair(PyObject **kept, PyObject *key, PyObject *value)
{
    PyObject *pair = *kept;
#if SPARE_USED_AGAIN
    if (__builtin_expect(Py_REFCNT(pair) == 1, 1)) {
        PyObject *old_key = PyTuple_GET_ITEM(pair, 0);
        PyObject *old_value = PyTuple_GET_ITEM(pair, 1);
        Py_INCREF(pair);
        Py_INCREF(key);
        PyTuple_SET_ITEM(pair, 0, key);
        Py_INCREF(value);
        PyTuple_SET_ITEM(pair, 1, value);
#if PY_VERSION_HEX >= 0x030E0000
        ((PyTupleObject *)pair)->ob_hash = -1;
#endif
        Py_DECREF(old_key);
        Py_DECREF(old_value);
        return pair;
    }
#endif
    pair = PyTuple_Pack(2, key, value);
    if (pair != NULL) {
        PyObject *before = *kept;
        Py_INCREF(pair);
        *kept = pair;
        Py_DECREF(before);
    }
    return pair;
}

#endif
