# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Until when no entry expires: what spares a full map a turn of sweeping for each refusal (X1).
#
# A turn that finds nothing expired has seen when the next entry expires. header.sweep_rest says so:
#
#     0                     nothing is known
#     until, a context      that context is looking: its turn will not end in a rest beyond until
#     until                 nothing expires before; nobody needs to look
#
# It is claimed before the turn and stored after it, by a CAS: if the word has changed, nothing is
# known. Whoever stores a deadline takes the entry (UPD), or its bucket for an insertion, and then
# looks at the word: a deadline before its time makes it 0. A turn that finds an entry or a bucket
# held does not know. So either the turn meets the writer's lock, or the writer meets the turn's
# claim: each side stores, then a full fence, then looks. Whoever is killed between the two has not
# inserted the entry, or still holds it, and its recovery looks at the word.
#
# Times are of CLOCK_MONOTONIC, rounded down to 2^16 ns. A claim whose time has passed is replaced;
# a time further ahead than any turn claims is not believed.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, cas_acq_rel_u64, fence_seq_cst, fence_after_cas, unlikely,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.layout cimport LOCK_MASK
from segment.words cimport word_locked, word_held_by, lock_bits
from segment.geometry cimport Map

cdef inline void rest_shorten(Map *map, uint64_t deadline) noexcept nogil:
    """A deadline is being stored, by whoever has just taken the entry or its bucket by a CAS."""
    fence_after_cas()                          # pairs with the fence in rest_claim
    if unlikely(deadline < load_relaxed_u64(&map.header.sweep_rest)) and deadline != 0:
        # Before the entry counts for others: the release that lets go of it comes later.
        store_relaxed_u64(&map.header.sweep_rest, 0)

cdef inline bint rest_holds(Map *map, uint64_t ahead_ns) noexcept nogil:
    """Whether nothing can have expired since a turn in vain. ahead_ns: the longest rest."""
    cdef uint64_t until = load_relaxed_u64(&map.header.sweep_rest)
    cdef uint64_t now
    if until == 0 or word_locked(until):
        return False
    now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    return now < until <= now + ahead_ns

cdef inline uint64_t rest_claim(Map *map, uint32_t context, uint64_t ahead_ns) noexcept nogil:
    """Before a turn: how long a rest can be; 0: none, somebody else is looking."""
    cdef uint64_t now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t seen = load_relaxed_u64(&map.header.sweep_rest)
    cdef uint64_t claim = ((now + ahead_ns) & ~LOCK_MASK) | lock_bits(context)
    if word_locked(seen) and now < seen <= now + ahead_ns + LOCK_MASK:
        return 0
    store_relaxed_u64(&map.header.sweep_rest, claim)
    fence_seq_cst()                            # the claim before the first look at an entry
    return claim

cdef inline void rest_begin(Map *map, uint32_t context, uint64_t next) noexcept nogil:
    """After a turn: rest until next, when the next entry expires, unless somebody has stored an
    earlier deadline meanwhile. 0 or 1: it is not known."""
    cdef uint64_t claim = load_relaxed_u64(&map.header.sweep_rest)
    if word_held_by(claim, context):           # else it was not claimed, or is no more
        cas_acq_rel_u64(&map.header.sweep_rest, claim, (
            next if next < claim else claim) & ~LOCK_MASK)
