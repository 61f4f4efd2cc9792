# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Keys of any length as 16 bytes.
#
# A key of up to 15 bytes stands there itself, padded with zeros, with its length in the last byte.
# Of a longer one 120 bits of SipHash-2-4 (128-bit output, keyed with the map's seeds) stand there,
# and 255 in the last byte; the whole key is an object of the entry. Two keys with the same 120 bits
# would be one key: among 2^32 random keys the chance is 2^-57, and nobody who does not know the
# seeds can look for such a pair. (J.-P. Aumasson, D. J. Bernstein: SipHash, 2012; the 128-bit
# variant is their reference code's.)
from libc.stdint cimport uint8_t, uint64_t
from atomics cimport read_tail, read_u64, unlikely

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
    """The 16 bytes of a key; whether it is a long one."""
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
