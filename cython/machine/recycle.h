/* Reuse of Python objects: the bytes of keys and values, and pairs of them.
 *
 * A lookup gives its caller a bytes object, and most callers have dropped it by the time of the
 * next lookup or the one after. So each handle keeps the last two objects that it returned, and
 * fills one again once the handle has the only reference to it, as zip() does with its tuples: this
 * saves an allocation and a deallocation, a quarter of the instructions of m[key]. Iterators do the
 * same with keys, values and pairs. A reference count of one is the keeper's own reference, so no
 * other code sees the contents change; the hash that the object caches is reset. The GIL keeps
 * other threads from taking a reference in between: builds without a GIL always allocate, and so do
 * versions of Python whose objects this file does not know.
 *
 * Since Python 3.14 the stack of a frame may hold references that are not counted. Each is borrowed
 * from a local variable, which holds a counted one until the stack has used it: the compiler
 * borrows only where the variable is not assigned before, and a store into f_locals keeps what it
 * replaced. The keeper gives out counted references only, and nothing borrows from its own. So what
 * a program can reach has a count of two or more here. (A C function that finds a count of one for
 * an argument may not conclude that it is the only holder: there the variable's reference is the
 * one. This file never asks about an argument.) tests/api/test_recycled_objects.py tries. */
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

/* kept: SPARE_KEPT references, at first to Py_None. made: how many objects were allocated. */
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

/* Allocates an object and keeps it in kept[1]. */
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

/* Returns a new reference to a bytes object; NULL with an exception. All objects of one keeper have
 * the same size. (Python shares bytes objects of size 1, so a keeper never has the only reference
 * to such an object.) */
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
        if (size == 8)                         /* one load and one store, without a call */
            memcpy(((PyBytesObject *)bytes)->ob_sval, content, 8);
        else
            memcpy(((PyBytesObject *)bytes)->ob_sval, content, (size_t)size);
        return bytes;
    }
#endif
    return spare_bytes_new(recycler, content, size);
}

/* Returns a new reference to (key, value); NULL with an exception. Neither is part of a cycle; the
 * caller's references to them are taken, and a NULL is an exception that the caller of this passes
 * on. *kept is the last pair that was returned, at first Py_None. (If the garbage collector has
 * untracked that pair, it may stay untracked.) */
static inline PyObject *recycled_pair(PyObject **kept, PyObject *key, PyObject *value)
{
    PyObject *pair = *kept;
    if (__builtin_expect(key == NULL || value == NULL, 0)) {
        Py_XDECREF(key);
        Py_XDECREF(value);
        return NULL;
    }
#if SPARE_USED_AGAIN
    if (__builtin_expect(Py_REFCNT(pair) == 1, 1)) {
        PyObject *old_key = PyTuple_GET_ITEM(pair, 0);
        PyObject *old_value = PyTuple_GET_ITEM(pair, 1);
        Py_INCREF(pair);
        PyTuple_SET_ITEM(pair, 0, key);
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
    Py_DECREF(key);
    Py_DECREF(value);
    if (pair != NULL) {
        PyObject *before = *kept;
        Py_INCREF(pair);
        *kept = pair;
        Py_DECREF(before);
    }
    return pair;
}

#endif
