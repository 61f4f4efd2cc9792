# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Fairness among those who want the same element.
#
# A lock that is free belongs to whoever comes first, and a sleeper comes late. Who has waited
# STARVING_NS for an element says so in header.starving: which element, and a time, some
# milliseconds ahead, until which others do not begin to take it. One at a time: the next who
# starves waits for that one. It is a hint and no lock: nothing depends on it, and the word of
# somebody who died, or gave up, runs out.
#
#     starving   until, in 2^20 ns : 16   element : 32   zero : 16      no lock word: bit 0 is 0
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from atomics cimport cas_acq_rel_u64, load_relaxed_u64
from system cimport clock_ns, CLOCK_MONOTONIC
from lock cimport Op

cdef enum:
    STARVING_NS = 4000000          # of waiting for one element
    STARVING_AHEAD_NS = 8388608    # a waiter that lives says it again much sooner
    STARVING_UNITS_MAX = 9         # units of 2^20 ns that a word can lie ahead

cdef inline uint64_t starving_word(uint64_t index, int64_t until_ns) noexcept nogil:
    return ((<uint64_t> until_ns >> 20) << 48) | index << 16

cdef inline bint starving_is_over(uint64_t word, int64_t now_ns) noexcept nogil:
    return <uint16_t> ((word >> 48) - (<uint64_t> now_ns >> 20)) > STARVING_UNITS_MAX

cdef inline bint starving_is_another(Op *op, uint32_t index) noexcept nogil:
    """Whether somebody else starves for this element."""
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    if word == 0 or word == op.starving or <uint32_t> (word >> 16) != index:
        return False
    return not starving_is_over(word, clock_ns(CLOCK_MONOTONIC))

cdef inline void starving_say(Op *op, uint64_t index) noexcept nogil:
    """Claim the word, or keep it, unless somebody else has it."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    cdef uint64_t mine = starving_word(index, now + STARVING_AHEAD_NS)
    if word == 0 or word == op.starving or starving_is_over(word, now):
        op.starving = mine if cas_acq_rel_u64(&op.map.header.starving, word, mine) else 0

cdef inline void starving_end(Op *op) noexcept nogil:
    """The operation has what it wanted."""
    cas_acq_rel_u64(&op.map.header.starving, op.starving, 0)
    op.starving = 0
