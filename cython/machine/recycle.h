/* Reuse of Python objects: keys, values, and pairs of them.
 *
 * A lookup gives its caller a bytes object, and most callers have dropped it by the time of the
 * next lookup or the one after. So each handle keeps the last two objects that it returned, and
 * fills one again once the handle has the only reference to it, as zip() does with its tuples: this
 * saves an allocation and a deallocation, a quarter of the instructions of m[key]. A dict does the
 * same with ints, iterators with keys, values and pairs. A reference count of one is the keeper's
 * own reference, so no other code sees the contents change; the hash that the object caches is
 * reset. (A str that was interned is left alone: that reference is not counted.) The GIL keeps
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
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif
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

/* Keeps a new object in kept[1], and returns it. */
static inline PyObject *spare_kept(Recycler *recycler, PyObject *made)
{
    recycler->made++;
#if SPARE_USED_AGAIN
    if (made != NULL) {
        PyObject *before = recycler->kept[1];
        Py_INCREF(made);
        recycler->kept[1] = made;
        Py_DECREF(before);
    }
#endif
    return made;
}

#if SPARE_USED_AGAIN
/* The object that was returned before the last one; the next call returns the other. */
static inline PyObject *spare_next(Recycler *recycler)
{
    PyObject *next = recycler->kept[0];
    recycler->kept[0] = recycler->kept[1];
    recycler->kept[1] = next;
    return next;
}
#endif

SHM_APART PyObject *spare_bytes_new(Recycler *recycler, const void *content, Py_ssize_t size)
{
    return spare_kept(recycler, PyBytes_FromStringAndSize((const char *)content, size));
}

/* Returns a new reference to a bytes object; NULL with an exception. All objects of one keeper have
 * the same size. (Python shares bytes objects of size 1, so a keeper never has the only reference
 * to such an object.) */
static inline PyObject *recycled_bytes(Recycler *recycler, const void *content, Py_ssize_t size)
{
#if SPARE_USED_AGAIN
    PyObject *bytes = spare_next(recycler);
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

SHM_APART PyObject *spare_int_new(Recycler *recycler, int64_t number)
{
    return spare_kept(recycler, PyLong_FromLongLong(number));
}

/* Returns a new reference to an int; NULL with an exception. The ints that are kept have one digit
 * and no sign, and Python has no object of its own for their number, as it has up to 256. */
static inline PyObject *recycled_int(Recycler *recycler, int64_t number)
{
#if SPARE_USED_AGAIN
    if ((uint64_t)number - 257 < ((uint64_t)1 << PyLong_SHIFT) - 257) {
        PyObject *kept = spare_next(recycler);
        if (__builtin_expect(Py_REFCNT(kept) != 1, 0))
            return spare_int_new(recycler, number);
        Py_INCREF(kept);
#if PY_VERSION_HEX >= 0x030C0000
        ((PyLongObject *)kept)->long_value.ob_digit[0] = (digit)number;
#else
        ((PyLongObject *)kept)->ob_digit[0] = (digit)number;
#endif
        return kept;
    }
#endif
    return PyLong_FromLongLong(number);
}

/* A new str of size ASCII characters, two to 15: Python has an object for each single one. */
static inline PyObject *text_new(const void *content, Py_ssize_t size)
{
    PyObject *text = PyUnicode_New(size, 127);
    if (text != NULL)
        memcpy(PyUnicode_DATA(text), content, (size_t)size);
    return text;
}

SHM_APART PyObject *spare_text_new(Recycler *recycler, const void *content, Py_ssize_t size)
{
    return spare_kept(recycler, text_new(content, size));
}

#if SPARE_USED_AGAIN
/* Whether a str that text_new() made has this size and may be filled again. */
static inline int spare_text_fits(PyObject *text, Py_ssize_t size)
{
    if (Py_REFCNT(text) != 1 || PyUnicode_GET_LENGTH(text) != size || PyUnicode_CHECK_INTERNED(text))
        return 0;
#if PY_VERSION_HEX < 0x030C0000
    return ((PyASCIIObject *)text)->wstr == NULL; /* else it caches another form of the text */
#else
    return 1;
#endif
}
#endif

/* text_new(), with a keeper. */
static inline PyObject *recycled_text(Recycler *recycler, const void *content, Py_ssize_t size)
{
#if SPARE_USED_AGAIN
    PyObject *text = spare_next(recycler);
    if (__builtin_expect(spare_text_fits(text, size), 1)) {
        const char *in = (const char *)content;
        char *out = (char *)((PyASCIIObject *)text + 1);
        Py_INCREF(text);
        ((PyASCIIObject *)text)->hash = -1;
        if (size >= 8) {                       /* two stores that overlap, without a call */
            memcpy(out, in, 8);
            memcpy(out + size - 8, in + size - 8, 8);
        } else if (size >= 4) {
            memcpy(out, in, 4);
            memcpy(out + size - 4, in + size - 4, 4);
        } else {
            memcpy(out, in, 2);
            memcpy(out + size - 2, in + size - 2, 2);
        }
        return text;
    }
#endif
    return spare_text_new(recycler, content, size);
}

/* For Cython: the object that a new reference is to. */
static inline PyObject *object_taken(PyObject *reference)
{
    return reference;
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
