# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A lock for many readers or one writer, in a counted cell (shares.pxd).
#
#   word    readers : 24   writer : 1   unused : 23   owner context : 15   L : 1
#
# Each process's part of the word, its readers and its writer, is in HELD_SHARES of a context of its
# own, and the two change together by the four steps of shares.pxd. So recovery subtracts a dead
# process's part, whether it read or wrote. If it wrote, recovery first stores ORPHAN in Cell.state,
# which the next writer's release clears.
#
# HELD_THREAD of that context names, for circles (circle.pxd), the thread of the process that reads
# or writes; 0: there are several.
#
# A thread that finds the lock taken sleeps on the cell's bell, and a release that leaves the lock
# free, or only a waiting writer in the way, rings for all.
#
# Fairness, by three hints, each a time of CLOCK_MONOTONIC until which it counts; 0: it does not.
# They decide which thread takes the lock, never whether it is free, so nothing has to be undone
# after a death.
#
#   reserved_until    a writer waits: readers do not come in any more
#   readers wait      a reader waits. A writer's release then gives
#   readers' turn     to the readers: no writer takes the lock before one of them has come in
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport (
    load_acquire_u64, load_relaxed_u64, store_relaxed_u32, store_relaxed_u64, cas_acq_rel_u64,
    compiler_fence, likely, unlikely,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns, futex_sleep
from segment.status cimport Status, OK, ABSENT, BUSY
from segment.layout cimport ProcessSlot
from segment.words cimport word_locked
from segment.geometry cimport Map
from memory.operation cimport Op, lock_busy, op_holds
from map.bell cimport lock_bell_arm
from cells.cell cimport (
    HELD_SHARES, HELD_SHARES_NEXT, HELD_THREAD, Cell, cell_orphan, cell_ring, held_set, held_word,
)
from cells.mutex cimport ORPHAN
from cells.shares cimport (
    SHARES_ARE_COUNTED, shares_change, shares_lock, shares_recover, word_count,
)

cdef enum:
    READER = 1ULL
    WRITER = 0x1000000ULL
    READERS_MASK = 0xFFFFFFULL
    HINT_NS = 20000000                 # twice as long as a slice of a waiter that renews its hint

cdef inline uint64_t *readers_wait(Cell *cell) noexcept nogil:
    return &cell._reserved_b[0]

cdef inline uint64_t *readers_turn(Cell *cell) noexcept nogil:
    return &cell._reserved_b[1]

cdef inline bint hint_counts(uint64_t *hint) noexcept nogil:
    """Whether a hint counts at this moment. If not, it is cleared: its time is over, or further
    ahead than any that is stored."""
    cdef uint64_t until = load_relaxed_u64(hint)
    cdef uint64_t now
    if likely(until == 0):
        return False
    now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    if now < until <= now + HINT_NS:
        return True
    cas_acq_rel_u64(hint, until, 0)
    return False

cdef inline void hint_give(uint64_t *hint) noexcept nogil:
    store_relaxed_u64(hint, <uint64_t> clock_ns(CLOCK_MONOTONIC) + HINT_NS)

cdef inline void hint_end(uint64_t *hint) noexcept nogil:
    if unlikely(load_relaxed_u64(hint) != 0):
        store_relaxed_u64(hint, 0)

cdef inline bint rwlock_admits(Cell *cell, uint64_t count, bint writes) noexcept nogil:
    """Whether a reader, or a writer, may come in when the lock is taken like that."""
    if writes:
        return count == 0 and not hint_counts(readers_turn(cell))
    return count < READERS_MASK and not hint_counts(&cell.reserved_until)

cdef inline Status rwlock_take(
        Op *op, Cell *cell, bint writes, uint64_t thread) noexcept nogil:
    """Come in for a thread of the context's process. ABSENT: not now."""
    # Acquire: pairs with lock_release.
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    cdef uint64_t unit = WRITER if writes else READER
    cdef Status status
    if not word_locked(seen) and not rwlock_admits(cell, word_count(seen), writes):
        return ABSENT
    status = shares_lock(op, cell, seen)
    if status == OK:
        if held_word(op.context, HELD_SHARES) == 0:
            held_set(op.context, HELD_THREAD, thread)
        elif held_word(op.context, HELD_THREAD) != thread:
            held_set(op.context, HELD_THREAD, 0)
        shares_change(
            op, cell, word_count(seen) + unit, held_word(op.context, HELD_SHARES) + unit)
        hint_end(&cell.reserved_until if writes else readers_turn(cell))
    return status

cdef inline bint rwlock_has(Op *op, bint writes) noexcept nogil:
    """Whether the context's process reads, or writes."""
    cdef uint64_t shares = held_word(op.context, HELD_SHARES)
    return shares & WRITER != 0 if writes else shares & READERS_MASK != 0

cdef inline Status rwlock_give(Op *op, Cell *cell, bint writes) noexcept nogil:
    """Go out again. The context's process must have come in."""
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    cdef uint64_t unit = WRITER if writes else READER
    cdef Status status = shares_lock(op, cell, seen)
    if status != OK:
        return status
    if writes:
        store_relaxed_u32(&cell.state, 0)      # what a dead writer left is mended
        if hint_counts(readers_wait(cell)):
            hint_give(readers_turn(cell))
            store_relaxed_u64(readers_wait(cell), 0)
        compiler_fence()
    shares_change(op, cell, word_count(seen) - unit, held_word(op.context, HELD_SHARES) - unit)
    if word_count(seen) == unit:
        cell_ring(op.map, cell)
    return OK

cdef inline uint32_t rwlock_arm(Cell *cell, bint writes) noexcept nogil:
    """Before each look: say that a reader, or a writer, waits. Returns the bell's value."""
    hint_give(&cell.reserved_until if writes else readers_wait(cell))
    return lock_bell_arm(&cell.bell)

cdef inline int rwlock_sleep(Op *op, Cell *cell, bint writes, int64_t until) noexcept nogil:
    """Sleep until the lock may be free, or until the clock reads until. Returns what futex_sleep
    does; -1 if there is no reason to sleep."""
    cdef uint32_t bell = rwlock_arm(cell, writes)
    cdef uint64_t seen
    # Behind lock_bell_arm, whose fence orders this load; pairs with shares_lock.
    seen = load_acquire_u64(&cell.word)
    if word_locked(seen):
        lock_busy(op, &cell.word, seen)
        return -1
    if rwlock_admits(cell, word_count(seen), writes):
        return -1
    return futex_sleep(&cell.bell, bell, until)

cdef inline void rwlock_give_up(Map *map, Cell *cell, bint writes) noexcept nogil:
    """The end of a wait that did not get the lock: a waiting writer no longer keeps readers out."""
    if writes:
        hint_end(&cell.reserved_until)
        cell_ring(map, cell)

cdef inline Status rwlock_recover(Op *op, Cell *cell, const ProcessSlot *owner) noexcept nogil:
    """Take off what a dead process had of the lock; if it wrote, say so before."""
    cdef uint64_t next_one = held_word(op.context, HELD_SHARES_NEXT)
    cdef uint64_t shares = held_word(op.context, HELD_SHARES)
    if next_one != 0 and not op_holds(op, &cell.word):
        shares = next_one - 1                  # the change was committed (shares_recover)
    if shares & WRITER:
        cell_orphan(cell, owner, 0)
        store_relaxed_u32(&cell.state, ORPHAN)
        compiler_fence()
    return shares_recover(op, cell, SHARES_ARE_COUNTED)
