# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The hash of a key: 32 bits, seeded per map from getrandom.
#
# One multiply-fold (64 x 64 -> 128, halves xor-ed) for keys of 8 bytes; a chain of them, 16 bytes a
# step, for others. The low bits choose the bucket and all 32 are kept as the tag, so that splits
# and merges never look at an element. An attacker who does not know the seeds cannot choose
# collisions; whoever may attach can read them and is trusted with the map anyway.
#
# Seeds are also the lever of the collision tests: with seeds[1] == 0 every key hashes to 0.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport multiply_fold, read_u64, read_u32, read_tail, likely

cdef enum:
    MULTIPLIER = 0x9E3779B97F4A7C15ULL

cdef inline uint32_t hash_fold(uint64_t hash64) noexcept nogil:
    return <uint32_t> (hash64 ^ (hash64 >> 32))

cdef inline uint32_t hash_long_key(
        const uint64_t *seeds, const uint8_t *key, uint64_t size) noexcept nogil:
    cdef uint64_t state = seeds[2] ^ size
    cdef const uint8_t *at = key
    cdef uint64_t left = size
    while left > 16:               # size / 16 turns
        state = multiply_fold(read_u64(at) ^ seeds[0], read_u64(at + 8) ^ state)
        at += 16
        left -= 16
    cdef uint64_t low
    cdef uint64_t high = 0
    if left > 8:
        low = read_u64(at)
        high = read_tail(at + 8, left - 8)
    else:
        low = read_tail(at, left)
    state = multiply_fold(low ^ seeds[0] ^ seeds[3], high ^ state)
    return hash_fold(multiply_fold(state ^ seeds[0], seeds[1]))

cdef inline uint32_t hash_word(const uint64_t *seeds, uint64_t word) noexcept nogil:
    return hash_fold(multiply_fold(
        multiply_fold(word ^ seeds[0], MULTIPLIER) ^ seeds[2], seeds[1]))

cdef inline uint32_t hash_key(
        const uint64_t *seeds, const uint8_t *key, uint64_t size) noexcept nogil:
    if likely(size == 8):
        return hash_word(seeds, read_u64(key))
    if size == 4:
        return hash_word(seeds, read_u32(key))
    return hash_long_key(seeds, key, size)
