# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A barrier in a cell: a number of parties wait until all of them have come.
#
#      63            34  33  32      31     16  15            1   0
#     +-----------------+---+--------+---------+---------------+---+
#     | generation : 30 | - | BROKEN | come    | owner context | L |     Cell.word, a lock word
#     +-----------------+---+--------+---------+---------------+---+
#
#   Cell.limit   how many parties there are: from the insertion on
#   Cell.bell    rung when the generation changes or the barrier breaks (bell.pxd)
#
# A party has a context of its own while it waits. context.target names the cell, and the context's
# word says for which generation the party waits, in the state WAITING (condition.pxd), or BREAK:
# the barrier broke in that generation.
#
# Each change of the cell's word is made under its lock bit, and committed by the store that
# releases it:
#
#   come     the context's word, then come + 1
#   pass     by the last to come, after its action: generation + 1, come = 0; then ring
#   break    BREAK in the contexts of the generation's waiters, then BROKEN, come = 0; then ring
#   reset    BREAK likewise, then generation + 1, not BROKEN, come = 0; then ring
#
# A waiter looks at the generation first, and then at its own word: BREAK says that the barrier
# broke, another generation that all have come. So a waiter that looks late, when the barrier has
# been reset and used again, still learns what became of its own generation.
#
# Deaths. A party that dies while it waits, or while it holds the lock bit, breaks the barrier: its
# recovery does, under the dead context's name, and may be repeated. The others look for dead
# parties at the end of their slices. If a process dies between a commit and its ring, the other
# parties sleep until the end of their slices.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport cas_acq_rel_u64, load_acquire_u64, load_relaxed_u64
from machine.system cimport CLOCK_MONOTONIC, clock_ns, futex_sleep
from segment.status cimport Status, OK, ABSENT, PRESENT, RETRY
from segment.geometry cimport Map, context_at, contexts_usable
from memory.operation cimport Op, lock_acquire, lock_release, op_holds
from map.bell cimport lock_bell_arm, owner_slice_ns, sooner_ns
from cells.cell cimport Cell, cell_ring, held_name, held_set
from cells.condition cimport (
    WAITING, WAIT_STATE, WAIT_WORD, wait_turn_of, wait_word, wait_word_of, waits_for,
)

cdef enum:
    BREAK = 3                  # a state of a context's word
    COME_SHIFT = 16
    COME_LIMIT = 0xFFFF
    COME_ONE = 0x10000ULL
    BROKEN = 0x100000000ULL
    GENERATION_SHIFT = 34


cdef inline uint64_t barrier_generation(uint64_t word) noexcept nogil:
    return word >> GENERATION_SHIFT

cdef inline uint32_t barrier_come(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> COME_SHIFT) & COME_LIMIT

cdef inline uint64_t barrier_next(uint64_t word) noexcept nogil:
    """The payload of the next generation: no party has come, and it is not broken."""
    return (barrier_generation(word) + 1) << GENERATION_SHIFT

cdef inline uint64_t barrier_broken(uint64_t word) noexcept nogil:
    return barrier_generation(word) << GENERATION_SHIFT | BROKEN

cdef inline void barrier_mark(Map *map, uint64_t index, uint64_t word) noexcept nogil:
    """Under the lock bit of this word: tell the waiters of its generation that the barrier breaks.
    """
    cdef uint64_t mine = wait_word_of(index, barrier_generation(word), WAITING)
    cdef uint64_t at
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        if wait_word(context_at(map, at)) == mine:
            # Release: by lock_release, which follows. A CAS, because recovery may clear the word.
            cas_acq_rel_u64(
                &context_at(map, at).owned_refs[WAIT_WORD], mine, mine + BREAK - WAITING)

cdef inline Status barrier_enter(
        Op *op, Cell *cell, uint64_t index, uint32_t *place) noexcept nogil:
    """Come as a party; place: how many had come before. RETRY: all parties of this generation have
    come, and it has not ended yet. ABSENT: the barrier is broken. BUSY: see lock_busy."""
    cdef uint64_t held = 0
    cdef Status status
    held_name(op.context, index)               # from here on, recovery finds the lock bit
    status = lock_acquire(op, &cell.word, &held)
    if status != OK:
        return status
    if held & BROKEN or barrier_come(held) >= load_relaxed_u64(&cell.limit):
        lock_release(&cell.word, held)
        return ABSENT if held & BROKEN else RETRY
    place[0] = barrier_come(held)
    held_set(op.context, WAIT_WORD, wait_word_of(index, barrier_generation(held), WAITING))
    lock_release(&cell.word, held + COME_ONE)
    return OK

cdef inline Status barrier_pass(Op *op, Cell *cell) noexcept nogil:
    """The last party has come, and its action is done: the generation ends. ABSENT: the barrier has
    broken before that. BUSY: see lock_busy."""
    cdef uint64_t held = 0
    cdef Status status = lock_acquire(op, &cell.word, &held)
    if status != OK:
        return status
    if wait_word(op.context) & WAIT_STATE == BREAK:
        lock_release(&cell.word, held)
        return ABSENT
    lock_release(&cell.word, barrier_next(held))
    cell_ring(op.map, cell)
    return OK

cdef inline Status barrier_give_up(
        Op *op, Cell *cell, uint64_t index) noexcept nogil:
    """A waiter waits no longer: break the barrier. ABSENT: it has broken before. PRESENT: all have
    come, or this context does not wait. BUSY: see lock_busy."""
    cdef uint64_t held = 0
    cdef uint64_t mine
    cdef Status status = lock_acquire(op, &cell.word, &held)
    if status != OK:
        return status
    mine = wait_word(op.context)
    if mine != wait_word_of(index, barrier_generation(held), WAITING):
        lock_release(&cell.word, held)
        return ABSENT if mine & WAIT_STATE == BREAK else PRESENT
    barrier_mark(op.map, index, held)
    lock_release(&cell.word, barrier_broken(held))
    cell_ring(op.map, cell)
    return OK

cdef inline Status barrier_end_generation(
        Op *op, Cell *cell, uint64_t index, bint broken) noexcept nogil:
    """Break the barrier for those that wait; then it stays broken, or begins anew. BUSY: see
    lock_busy."""
    cdef uint64_t held = 0
    cdef Status status
    held_name(op.context, index)
    status = lock_acquire(op, &cell.word, &held)
    if status != OK:
        return status
    barrier_mark(op.map, index, held)
    lock_release(&cell.word, barrier_broken(held) if broken else barrier_next(held))
    cell_ring(op.map, cell)
    return OK

cdef inline Status barrier_look(Op *op, Cell *cell) noexcept nogil:
    """OK: all have come. ABSENT: the barrier has broken. RETRY: neither."""
    # Acquire: what the others did before they came, and BREAK in the context's word; pairs with
    # lock_release.
    cdef uint64_t word = load_acquire_u64(&cell.word)
    cdef uint64_t mine = wait_word(op.context)
    if mine & WAIT_STATE == BREAK:
        return ABSENT
    return RETRY if wait_turn_of(mine) == barrier_generation(word) else OK

cdef inline void barrier_sleep(
        Cell *cell, uint64_t generation, int64_t began, int64_t until) noexcept nogil:
    """Sleep for one slice while the generation lasts and the barrier is not broken; until: as for
    condition_sleep."""
    cdef uint32_t seen = lock_bell_arm(&cell.bell)
    cdef uint64_t word = load_acquire_u64(&cell.word)
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t slice_end = sooner_ns(now + owner_slice_ns(now - began), until)
    if now < slice_end and barrier_generation(word) == generation and not word & BROKEN:
        futex_sleep(&cell.bell, seen, slice_end)

cdef inline Status barrier_recover(Op *op, Cell *cell, uint64_t index) noexcept nogil:
    """A party is dead: break the barrier, unless its generation has ended. BUSY: the lock bit is
    held. Repeatable."""
    cdef Status status = OK
    cdef uint64_t held = load_acquire_u64(&cell.word)
    cdef uint64_t mine = wait_word(op.context)
    cdef bint waits = waits_for(mine, index, WAITING)
    if op_holds(op, &cell.word):
        if waits and wait_turn_of(mine) != barrier_generation(held):
            lock_release(&cell.word, held)     # a recovery died between taking and looking
        else:
            barrier_mark(op.map, index, held)
            lock_release(&cell.word, barrier_broken(held))
    elif waits and wait_turn_of(mine) == barrier_generation(held):
        status = barrier_give_up(op, cell, index)
    if status != OK and status != ABSENT and status != PRESENT:
        return status
    cell_ring(op.map, cell)                    # also for a change after which it did not ring
    held_set(op.context, WAIT_WORD, 0)
    return OK
