/* What is inside a str and an int, of exactly these types, without a call.
 *
 * A dict reads the characters of every key, because a str's own hash differs from process to process
 * and cannot be used. */
#ifndef SHM_EXACT_H
#define SHM_EXACT_H

#include <Python.h>
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#include "machine/atomics.h"

#define SHM_TEXT_MAX 15 /* KEY_INLINE_MAX of hashing.pxd */

/* Store what key_digest (hashing.pxd) makes of a short ASCII str. 0: the str is another one.
 *
 * The characters lie behind the object's head and in front of a zero. So the last 16 bytes of the
 * object, zero included, are inside it at any length; they are loaded, and a shift drops those of
 * the head. There is no branch that a change of the length could mislead. */
static inline int shm_text_digest(PyObject *text, uint64_t *out)
{
    const unsigned char *characters = (const unsigned char *)((PyASCIIObject *)text + 1);
    uint64_t size;
    if (__builtin_expect(!PyUnicode_IS_COMPACT_ASCII(text), 0))
        return 0;
    size = (uint64_t)PyUnicode_GET_LENGTH(text);
    if (__builtin_expect(size > SHM_TEXT_MAX, 0))
        return 0;
#if defined(__SANITIZE_THREAD__)
    out[0] = out[1] = 0; /* another thread may be storing the hash, which is in the head */
    memcpy(out, characters, size);
#else
    __extension__ typedef unsigned __int128 shm_u128;
    const unsigned char *last = characters + size + 1 - 16;
    shm_u128 both = (shm_u128)shm_read_u64(last + 8) << 64 | shm_read_u64(last);
    both >>= 8 * (SHM_TEXT_MAX - size);
    out[0] = (uint64_t)both;
    out[1] = (uint64_t)(both >> 64);
#endif
    out[1] |= size << 56;
    return 1;
}

SHM_STATIC_ASSERT(sizeof(PyASCIIObject) >= 16);

/* Store an int as a word. 0: it has more than 64 signed bits. */
static inline int shm_int_word(PyObject *number, uint64_t *out)
{
    int overflow = 0;
#if PY_VERSION_HEX >= 0x030C0000
    if (__builtin_expect(PyUnstable_Long_IsCompact((PyLongObject *)number), 1)) {
        *out = (uint64_t)(int64_t)PyUnstable_Long_CompactValue((PyLongObject *)number);
        return 1;
    }
#else
    Py_ssize_t digits = Py_SIZE(number); /* negative: so is the number */
    if (__builtin_expect((size_t)digits + 1 <= 2, 1)) {
        *out = (uint64_t)((int64_t)digits * (int64_t)((PyLongObject *)number)->ob_digit[0]);
        return 1;
    }
#endif
    *out = (uint64_t)PyLong_AsLongLongAndOverflow(number, &overflow); /* of an int, it cannot fail */
    return overflow == 0;
}

#endif
