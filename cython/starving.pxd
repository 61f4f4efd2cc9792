# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Fairness among those who want the same element.
#
# A lock that is free belongs to whoever comes first, and a sleeper comes late. Who has waited
# STARVING_NS for an element says so in header.starving: which element, and a time, some
# milliseconds ahead, until which others do not begin to take it. One at a time: the next who
# starves waits for that one. It is a hint and no lock: nothing depends on it. Who ends the
# operation, with the element or without, takes the word away; the word of somebody who died runs
# out, and whoever meets it then takes it away. The time has 31 bits, so a word that nobody met
# would count again after 26 days, and for 9 ms.
#
#     starving   until, in 2^20 ns : 31   element : 32   zero : 1       no lock word: bit 0 is 0
from libc.stdint cimport int64_t, uint32_t, uint64_t
from atomics cimport cas_acq_rel_u64, load_relaxed_u64
from system cimport clock_ns, CLOCK_MONOTONIC
from lock cimport Op

cdef enum:
    STARVING_NS = 4000000          # of waiting for one element
    STARVING_AHEAD_NS = 8388608    # a waiter that lives says it again much sooner
    STARVING_UNITS_MAX = 9         # units of 2^20 ns that a word can lie ahead
    STARVING_TIME_BITS = 31

cdef inline uint64_t starving_word(uint64_t index, int64_t until_ns) noexcept nogil:
    return ((<uint64_t> until_ns >> 20) << (64 - STARVING_TIME_BITS)) | index << 1

cdef inline bint starving_is_over(uint64_t word, int64_t now_ns) noexcept nogil:
    cdef uint64_t ahead = (word >> (64 - STARVING_TIME_BITS)) - (<uint64_t> now_ns >> 20)
    return ahead & ((1ULL << STARVING_TIME_BITS) - 1) > STARVING_UNITS_MAX

cdef inline bint starving_is_another(Op *op, uint32_t index) noexcept nogil:
    """Whether somebody else starves for this element."""
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    if word == 0 or word == op.starving or <uint32_t> (word >> 1) != index:
        return False
    if not starving_is_over(word, clock_ns(CLOCK_MONOTONIC)):
        return True
    # Its owner died: gone for good, before the time that it says comes round again.
    cas_acq_rel_u64(&op.map.header.starving, word, 0)
    return False

cdef inline void starving_say(Op *op, uint64_t index) noexcept nogil:
    """Claim the word, or keep it, unless somebody else has it."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    cdef uint64_t mine = starving_word(index, now + STARVING_AHEAD_NS)
    if word == 0 or word == op.starving or starving_is_over(word, now):
        op.starving = mine if cas_acq_rel_u64(&op.map.header.starving, word, mine) else 0

cdef inline void starving_end(Op *op) noexcept nogil:
    """The operation has what it wanted, or gave it up: nothing changes if another has the word."""
    cas_acq_rel_u64(&op.map.header.starving, op.starving, 0)
    op.starving = 0
