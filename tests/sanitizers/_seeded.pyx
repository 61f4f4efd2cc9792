# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Functions of the core, called with arguments that make them go wrong, for AddressSanitizer and
# UndefinedBehaviorSanitizer. Not part of the package.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from machine.atomics cimport copy_out
from machine.hashing cimport hash_key
from map.walk cimport bucket_range_last


def hash_of(uint64_t size):
    """The hash of a key of 8 bytes in memory of size bytes."""
    cdef uint64_t[4] seeds
    cdef uint8_t *key = <uint8_t *> calloc(size, 1)
    seeds[0] = seeds[1] = seeds[2] = seeds[3] = 5
    try:
        return hash_key(seeds, key, 8)
    finally:
        free(key)


def copy_of(uint64_t size, bint freed):
    """Copy a value of 24 bytes out of memory of size bytes; if freed, 8 bytes of freed memory."""
    cdef uint64_t *words = <uint64_t *> malloc(size)
    cdef uint64_t[3] value
    words[0] = 7
    if freed:
        free(words)
    copy_out(value, words, 24 if not freed else 8)
    if not freed:
        free(words)
    return value[0]


def range_last(uint32_t level):
    """The last place of a bucket's range at a level."""
    return bucket_range_last(0, level)
