# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Two hashes of a key: 32 bits for every map, and a digest of 16 bytes for keys of any length.
#
# The 32-bit hash is seeded for each map from getrandom. A key of 8 bytes takes two multiply-folds
# (64 x 64 -> 128, halves xor-ed), and so does one of 4; other keys take a chain of them, 16 bytes
# in each step. The low bits choose the bucket and all 32 are kept as the tag, so splits and merges
# never read an element. An attacker who does not know the seeds cannot choose collisions; a process
# that may attach can read the seeds, and is trusted with the map anyway. Tests force collisions
# through the seeds: with seeds[1] == 0 every key hashes to 0.
#
# The digest: a key of up to 15 bytes is stored in it, padded with zeros, with its length in the
# last byte. A longer key is stored as 120 bits of SipHash-2-4 (128-bit output, keyed with the map's
# seeds) and 255 in the last byte; the whole key is an object of the entry. Two keys with the same
# 120 bits would count as one key: among 2^32 random keys the chance is 2^-57, and an attacker who
# does not know the seeds cannot search for such a pair. (J.-P. Aumasson, D. J. Bernstein: SipHash,
# 2012; the 128-bit variant is that of their reference code.)
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport likely, unlikely, multiply_fold, read_u64, read_u32, read_tail

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

cdef enum:
    KEY_INLINE_MAX = 15
    KEY_IS_LONG = 255

cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3

cdef inline uint64_t rotated(uint64_t word, int bits) noexcept nogil:
    return word << bits | word >> (64 - bits)

cdef inline void sip_rounds(Sip *s, int count) noexcept nogil:
    cdef int _
    for _ in range(count):
        s.v0 += s.v1
        s.v1 = rotated(s.v1, 13) ^ s.v0
        s.v0 = rotated(s.v0, 32)
        s.v2 += s.v3
        s.v3 = rotated(s.v3, 16) ^ s.v2
        s.v0 += s.v3
        s.v3 = rotated(s.v3, 21) ^ s.v0
        s.v2 += s.v1
        s.v1 = rotated(s.v1, 17) ^ s.v2
        s.v2 = rotated(s.v2, 32)

cdef inline void siphash128(
        const uint64_t *seeds, const uint8_t *at, uint64_t size, uint64_t *out) noexcept nogil:
    """SipHash-2-4 with 128 bits of output, keyed with the first two seeds."""
    cdef Sip s
    cdef uint64_t word
    cdef uint64_t left = size
    s.v0 = seeds[0] ^ 0x736F6D6570736575ULL
    s.v1 = seeds[1] ^ 0x646F72616E646F6DULL ^ 0xEE
    s.v2 = seeds[0] ^ 0x6C7967656E657261ULL
    s.v3 = seeds[1] ^ 0x7465646279746573ULL
    while left >= 8:               # size / 8 turns
        word = read_u64(at)
        s.v3 ^= word
        sip_rounds(&s, 2)
        s.v0 ^= word
        at += 8
        left -= 8
    word = (size & 0xFF) << 56
    if left > 0:
        word |= read_tail(at, left)
    s.v3 ^= word
    sip_rounds(&s, 2)
    s.v0 ^= word
    s.v2 ^= 0xEE
    sip_rounds(&s, 4)
    out[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xDD
    sip_rounds(&s, 4)
    out[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3

cdef inline bint key_digest(
        const uint64_t *seeds, const uint8_t *key, uint64_t size, uint64_t *out) noexcept nogil:
    """Store the 16-byte digest of a key in out. True if the key is a long one."""
    if unlikely(size > KEY_INLINE_MAX):
        siphash128(seeds, key, size, out)
        out[1] |= <uint64_t> KEY_IS_LONG << 56
        return True
    if size > 8:
        out[0] = read_u64(key)
        out[1] = read_tail(key + 8, size - 8) | size << 56
    else:
        out[0] = read_tail(key, size) if size > 0 else 0
        out[1] = size << 56
    return False
