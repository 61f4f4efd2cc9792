# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A condition in a cell: threads that sleep until another thread notifies them.
#
#   Cell.grants   tickets given. Stored only under the condition's lock.
#   Cell.limit    a hint: no waiter has a ticket up to this one. Stored only under the lock.
#
# A waiter has a context of its own for its wait. context.target names the cell, and one word names
# it again, with the ticket; so a late CAS on the word never hits a wait for another cell:
#
#      63           32  31                2  1   0
#     +---------------+--------------------+-------+
#     | cell          | ticket : 30        | state |     context.owned_refs[WAIT_WORD]
#     +---------------+--------------------+-------+     its low half is a futex word
#
#   WAITING   it sleeps, or is about to.                       -> TOLD by a CAS of any process;
#                                                                 0 by a CAS of its own
#   TOLD      it has been notified, and has not returned yet.  -> 0 by its own store
#
# wait(): the waiter stores the word and releases the lock; from then on the next owner of the lock
# finds it. notify() looks at all contexts, at most CONTEXT_MAX, for the oldest ticket that is
# WAITING, and makes it TOLD. If no ticket was given since a look that found no waiter (Cell.limit),
# there is nothing to look at. A waiter whose time is over leaves by a CAS: if the CAS fails, the
# waiter has been told, and returns that. So each notification is taken by one waiter.
#
# A thread that waits for a lock says so in the same word, for people (wait_say): a lock has no
# tickets.
#
# Deaths. notify() passes over a waiter whose process is dead. A waiter that dies after it has been
# told is found TOLD by its recovery, which tells the next one. If the recovering process dies
# between the two, the next recovery tells one more: after a death one waiter too many may be woken,
# never one too few. A notifier that dies between the CAS and the wake-up leaves a sleeper that has
# been told: it looks by itself at the end of its slice. At the end of a slice a waiter also looks
# for waiters of this condition that have been told and are dead, and recovers them.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport (
    cas_acq_rel_u64, load_acquire_u64, load_relaxed_u64, store_relaxed_u64,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns, futex_sleep, futex_wake
from segment.layout cimport CONTEXT_MAX, Context
from segment.words cimport lock_bits
from segment.geometry cimport Map, context_at, contexts_usable
from memory.operation cimport Op
from map.bell cimport OWNER_SLICE_LATE_NS, listeners_ring, sooner_ns
from cells.cell cimport Cell, held_name, held_set

cdef enum:
    WAIT_WORD = 5              # of context.owned_refs; no other cell uses it
    WAIT_CELL_SHIFT = 32
    WAIT_TURN_SHIFT = 2        # of the ticket, or the generation of a barrier
    WAIT_TURN_LIMIT = 0x3FFFFFFFULL
    WAIT_STATE = 3ULL
    WAITING = 1
    TOLD = 2


cdef inline uint64_t wait_word(Context *context) noexcept nogil:
    # Acquire: pairs with the CAS that stored the state, or the release of the lock under which it
    # was stored.
    return load_acquire_u64(&context.owned_refs[WAIT_WORD])

cdef inline uint64_t wait_word_of(uint64_t index, uint64_t turn, uint64_t state) noexcept nogil:
    return index << WAIT_CELL_SHIFT | (turn & WAIT_TURN_LIMIT) << WAIT_TURN_SHIFT | state

cdef inline uint64_t wait_turn_of(uint64_t word) noexcept nogil:
    return (word >> WAIT_TURN_SHIFT) & WAIT_TURN_LIMIT

cdef inline bint waits_for(uint64_t word, uint64_t index, uint64_t state) noexcept nogil:
    """Whether a context's word is that of a waiter of this cell, in this state."""
    return word >> WAIT_CELL_SHIFT == index and word & WAIT_STATE == state

cdef inline void wait_say(Context *context, uint64_t index) noexcept nogil:
    """Say, for people, that the context waits for a lock; index 0: that it waits no more."""
    held_set(context, WAIT_WORD, wait_word_of(index, 0, WAITING if index != 0 else 0))

cdef inline void wait_end(Op *op) noexcept nogil:
    held_set(op.context, WAIT_WORD, 0)
    held_name(op.context, 0)

cdef inline void condition_enter(Op *op, Cell *cell, uint64_t index) noexcept nogil:
    """Take a ticket. The caller has the condition's lock, and the context holds nothing."""
    cdef uint64_t ticket = load_relaxed_u64(&cell.grants) + 1
    store_relaxed_u64(&cell.grants, ticket)
    held_name(op.context, index)               # recovery looks at the word only if it is named
    # Release, of the lock: the next owner finds the ticket and the word.
    held_set(op.context, WAIT_WORD, wait_word_of(index, ticket, WAITING))

cdef inline bint condition_leave(Op *op) noexcept nogil:
    """Wait no more. Returns whether this waiter has been told."""
    cdef uint64_t seen = wait_word(op.context)
    cdef bint told = seen & WAIT_STATE == TOLD or not cas_acq_rel_u64(
        &op.context.owned_refs[WAIT_WORD], seen, 0)
    wait_end(op)
    return told

cdef inline bint condition_first(
        Map *map, Cell *cell, uint64_t index, uint64_t *first, uint64_t *word) noexcept nogil:
    """Find the waiter with the oldest ticket that has not been told: its context, and its word."""
    cdef bint found = False
    cdef uint64_t tickets = load_relaxed_u64(&cell.grants)
    cdef uint64_t oldest = 0
    cdef uint64_t at, seen, age
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        seen = wait_word(context_at(map, at))
        if not waits_for(seen, index, WAITING):
            continue
        age = (tickets - wait_turn_of(seen)) & WAIT_TURN_LIMIT
        if not found or age > oldest:
            found = True
            oldest = age
            first[0] = at
            word[0] = seen
    return found

cdef inline bint condition_tell(Map *map, uint64_t at, uint64_t seen) noexcept nogil:
    """Tell the waiter of this context, and wake it. False: it has left, or has been told."""
    cdef uint64_t *word = &context_at(map, at).owned_refs[WAIT_WORD]
    # The word carries only itself: what was changed under the lock is ordered by the lock.
    if not cas_acq_rel_u64(word, seen, seen + TOLD - WAITING):
        return False
    futex_wake(<uint32_t *> word, 1)
    listeners_ring(map)                        # the waiter may be a task of an event loop
    return True

cdef inline bint owner_of_context_recover(Op *op, uint64_t at) noexcept nogil:
    """Recover the process of a context, if it is dead. Returns whether any process was."""
    op.wait_seen = lock_bits(<uint32_t> at)
    return op.map.owner_recover(op)

cdef inline uint64_t condition_notify(
        Op *op, Cell *cell, uint64_t index, uint64_t count) noexcept nogil:
    """Tell up to count waiters, in the order in which they came. Returns how many. The caller has
    the condition's lock."""
    cdef uint64_t told = 0
    cdef uint64_t tickets = load_relaxed_u64(&cell.grants)
    cdef uint64_t seen = 0
    cdef uint64_t at = 0
    if load_relaxed_u64(&cell.limit) == tickets:
        return 0
    while told < count:                        # each turn, one waiter less is WAITING
        if not condition_first(op.map, cell, index, &at, &seen):
            store_relaxed_u64(&cell.limit, tickets)
            break
        if not owner_of_context_recover(op, at) and condition_tell(op.map, at, seen):
            told += 1
    return told

cdef inline bint condition_sleep(Op *op, int64_t until) noexcept nogil:
    """Sleep for one slice, or until CLOCK_MONOTONIC reads until (negative: without limit). Returns
    whether this waiter has been told; if not, the caller handles signals and calls again."""
    cdef uint64_t seen = wait_word(op.context)
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t slice_end = sooner_ns(now + OWNER_SLICE_LATE_NS, until)
    if seen & WAIT_STATE == WAITING and now < slice_end:
        futex_sleep(<uint32_t *> &op.context.owned_refs[WAIT_WORD], <uint32_t> seen, slice_end)
        seen = wait_word(op.context)
    return seen & WAIT_STATE == TOLD

cdef inline void dead_waiters_recover(Op *op, uint64_t index, uint64_t state) noexcept nogil:
    """Recover the processes that died as waiters of this cell, in this state."""
    cdef uint64_t at
    for at in range(contexts_usable(op.map)):  # at most CONTEXT_MAX
        if waits_for(wait_word(context_at(op.map, at)), index, state):
            owner_of_context_recover(op, at)

cdef inline void condition_pass_on(Map *map, Cell *cell, uint64_t index) noexcept nogil:
    """Tell the next waiter, in the place of one that has been told."""
    cdef uint64_t seen = 0
    cdef uint64_t at = 0
    cdef uint64_t _
    for _ in range(CONTEXT_MAX):               # each turn, another process told the first
        if not condition_first(map, cell, index, &at, &seen) or condition_tell(map, at, seen):
            break

cdef inline void condition_recover(Op *op, Cell *cell, uint64_t index) noexcept nogil:
    """A waiter is dead: if it has been told, tell the next one. Repeatable."""
    cdef uint64_t seen = wait_word(op.context)
    if waits_for(seen, index, WAITING) and cas_acq_rel_u64(
            &op.context.owned_refs[WAIT_WORD], seen, 0):
        return
    if waits_for(wait_word(op.context), index, TOLD):
        condition_pass_on(op.map, cell, index)
    held_set(op.context, WAIT_WORD, 0)
