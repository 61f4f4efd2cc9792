# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The rest: a time before which no entry expires. It spares a full map a turn of sweeping for each
# refusal (X1).
#
# A turn is a sweep through the whole map. One that finds nothing expired has seen when the next
# entry expires, and stores that time in header.sweep_rest:
#
#     0                     nothing is known
#     until, a context      that context is in a turn, which will not end in a rest beyond until
#     until                 nothing expires before; no turn is needed
#
# A turn claims the word before it begins, and stores the time after it by a CAS, unless another
# claim stands there. A writer that stores a deadline takes the entry (UPD), or for an insertion its
# bucket, and then reads the word: if the deadline is earlier than its time, the writer lowers the
# time by a CAS, and the context stays in the word. A turn that finds an entry or a bucket held does
# not know the next deadline. So either the turn meets the writer's lock, or the writer meets the
# turn's claim: each side stores, then makes a full fence, then loads. A writer that is killed in
# between has not inserted the entry, or still holds it, and its recovery reads the word.
#
# Times are of CLOCK_MONOTONIC, rounded down to 2^16 ns. A claim lies much further ahead than a turn
# takes, so that on a busy machine, too, the turn ends before the claim does: otherwise it would end
# in no rest. An operation that ends within a turn gives the claim up, as recovery does for the
# dead. One that is left behind (by an exception) is replaced by the same context's next claim, or
# by any when its time has passed. A time further ahead than any turn claims is ignored.
#
# 0 may be stored at any time: it says nothing.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, cas_acq_rel_u64, fence_seq_cst, fence_after_cas, unlikely,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.layout cimport LOCK_MASK
from segment.words cimport word_locked, word_held_by, lock_bits
from segment.geometry cimport Map

cdef enum:
    REST_TRIES_MAX = 16        # another writer changes the word between each of them

cdef inline void rest_lower(Map *map, uint64_t deadline) noexcept nogil:
    """End the rest, or the one that is claimed, at this deadline."""
    cdef uint64_t seen
    cdef int _
    for _ in range(REST_TRIES_MAX):
        seen = load_relaxed_u64(&map.header.sweep_rest)
        if deadline >= seen & ~LOCK_MASK or cas_acq_rel_u64(
                &map.header.sweep_rest, seen, (deadline & ~LOCK_MASK) | (seen & LOCK_MASK)):
            return
    store_relaxed_u64(&map.header.sweep_rest, 0)

cdef inline void rest_shorten(Map *map, uint64_t deadline) noexcept nogil:
    """The caller stores a deadline, and has just taken the entry or its bucket by a CAS."""
    fence_after_cas()                          # pairs with the fence in rest_claim
    if unlikely(deadline < load_relaxed_u64(&map.header.sweep_rest)) and deadline != 0:
        # Before the entry or bucket is unlocked: the release store that unlocks it is later.
        rest_lower(map, deadline)

cdef inline bint rest_holds(Map *map, uint64_t ahead_ns) noexcept nogil:
    """Whether nothing can have expired since a turn that removed nothing. ahead_ns: the longest
    rest."""
    cdef uint64_t until = load_relaxed_u64(&map.header.sweep_rest)
    cdef uint64_t now
    if until == 0 or word_locked(until):
        return False
    now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    return now < until <= now + ahead_ns

cdef inline uint64_t rest_claim(Map *map, uint32_t context, uint64_t ahead_ns) noexcept nogil:
    """Before a turn: claim the word. Returns the latest end of the rest that may follow, or 0 if
    another context has a turn under way."""
    cdef uint64_t now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t seen = load_relaxed_u64(&map.header.sweep_rest)
    cdef uint64_t claim = ((now + ahead_ns) & ~LOCK_MASK) | lock_bits(context)
    if word_locked(seen) and not word_held_by(seen, context) and (
            now < seen <= now + ahead_ns + LOCK_MASK):
        return 0
    store_relaxed_u64(&map.header.sweep_rest, claim)
    fence_seq_cst()                            # the claim before the first load of an entry
    return claim

cdef inline void rest_begin(Map *map, uint32_t context, uint64_t next) noexcept nogil:
    """After a turn: rest until next, when the next entry expires, unless an earlier deadline was
    stored during the turn. If next is 0 or 1, the time is not known."""
    cdef uint64_t claim
    cdef int _
    for _ in range(REST_TRIES_MAX):
        claim = load_relaxed_u64(&map.header.sweep_rest)
        if not word_held_by(claim, context):   # the claim was refused, or is lost
            return
        if cas_acq_rel_u64(&map.header.sweep_rest, claim, (
                next if next < claim else claim) & ~LOCK_MASK):
            return
    store_relaxed_u64(&map.header.sweep_rest, 0)

cdef inline void rest_forget(Map *map, uint32_t context) noexcept nogil:
    """The turn of a context will not be finished: another context may begin one."""
    rest_begin(map, context, 0)
