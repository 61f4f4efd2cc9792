# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A counted cell: a semaphore whose permits come back if the process that has them dies.
#
#   word                   permits : 48   owner context : 15   L : 1      free permits
#   context.HELD_SHARES    the permits that one process has; one context for each process and cell
#
# The two change together, under the word's lock bit, which names that context:
#
#   1  CAS: the word is locked
#   2  HELD_SHARES_NEXT = what HELD_SHARES will be, plus 1         the intent
#   3  word = the new number, unlocked                             the commit
#   4  HELD_SHARES = that; HELD_SHARES_NEXT = 0
#
# Recovery of the context: if it holds the word, 3 has not happened, so the change is forgotten and
# the word unlocked. Else, if HELD_SHARES_NEXT is set, 3 has happened, and 4 is done. Then the
# permits of the dead process are given back by the same four steps. A death at any of these steps
# leaves a state that the next recoverer treats in the same way.
#
# A plain counter (CELL_COUNTER) has no owners: each change is one CAS of the word.
#
# A thread that finds no permit sleeps on the cell's bell, as bell.pxd describes: the CAS of 1 (or
# of the counter) comes before the look at the bell, and a waiter does not sleep while the word is
# locked. A release wakes as many waiters as it gives permits. A woken waiter that gives up wakes
# another one if there is a permit; if it is killed, the others look at the end of their slices.
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport (
    load_acquire_u64, store_release_u64, cas_acq_rel_u64, compiler_fence, unlikely,
)
from machine.system cimport futex_sleep
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY, FULL
from segment.layout cimport PAYLOAD_SHIFT
from segment.words cimport word_locked, word_taken
from segment.geometry cimport Map
from memory.operation cimport Op, lock_acquire, lock_busy, lock_release, op_holds
from map.bell cimport lock_bell_arm
from cells.cell cimport HELD_SHARES, HELD_SHARES_NEXT, Cell, cell_wake, held_set, held_word

cdef enum:
    COUNT_MAX = 0x7FFFFFFFFFFFULL

# What the shares of processes are to the number in the word.
cdef enum:
    SHARES_ARE_TAKEN = 0       # taken off it: permits
    SHARES_ARE_COUNTED = 1     # counted in it: readers and writers (rwlock.pxd)

cdef inline uint64_t word_count(uint64_t word) noexcept nogil:
    return word >> PAYLOAD_SHIFT

cdef inline void shares_change(
        Op *op, Cell *cell, uint64_t count, uint64_t shares) noexcept nogil:
    """The steps 2 to 4. The context holds the word."""
    held_set(op.context, HELD_SHARES_NEXT, shares + 1)
    compiler_fence()
    lock_release(&cell.word, count << PAYLOAD_SHIFT)
    compiler_fence()
    # Release: of an RWLock, which thread has them; pairs with context_in_the_way.
    store_release_u64(&op.context.owned_refs[HELD_SHARES], shares)
    compiler_fence()
    held_set(op.context, HELD_SHARES_NEXT, 0)

cdef inline Status shares_lock(Op *op, Cell *cell, uint64_t seen) noexcept nogil:
    """Step 1, from the word that was seen."""
    if unlikely(word_locked(seen)):
        return lock_busy(op, &cell.word, seen)
    # Acquire: as in lock_try.
    return OK if cas_acq_rel_u64(&cell.word, seen, word_taken(seen, op.self_index)) else RETRY

cdef inline Status shares_take(Op *op, Cell *cell) noexcept nogil:
    """Take a permit for the context's process. ABSENT: there is none."""
    # Acquire: pairs with lock_release.
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    cdef Status status
    if word_count(seen) == 0 and not word_locked(seen):
        return ABSENT
    status = shares_lock(op, cell, seen)
    if status == OK:
        shares_change(op, cell, word_count(seen) - 1, held_word(op.context, HELD_SHARES) + 1)
    return status

cdef inline Status shares_give(Op *op, Cell *cell, uint64_t count) noexcept nogil:
    """Give permits: those of the context's process first, then new ones. FULL: the cell's limit
    does not allow that many."""
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    cdef uint64_t shares = held_word(op.context, HELD_SHARES)
    cdef Status status
    if not word_locked(seen) and word_count(seen) + count > cell.limit:
        return FULL
    status = shares_lock(op, cell, seen)
    if status == OK:
        shares_change(op, cell, word_count(seen) + count, shares - count if shares > count else 0)
        cell_wake(op.map, cell, <int> (count if count < INT_MAX else INT_MAX))
    return status

cdef inline Status count_take(Cell *cell) noexcept nogil:
    """shares_take for a plain counter."""
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    if word_count(seen) == 0:
        return ABSENT
    # Acquire: what was done before the permit was given; pairs with count_give.
    return OK if cas_acq_rel_u64(&cell.word, seen, seen - (1ULL << PAYLOAD_SHIFT)) else RETRY

cdef inline Status count_give(Map *map, Cell *cell, uint64_t count) noexcept nogil:
    """shares_give for a plain counter."""
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    if word_count(seen) + count > cell.limit:
        return FULL
    # Release: pairs with count_take.
    if not cas_acq_rel_u64(&cell.word, seen, seen + (count << PAYLOAD_SHIFT)):
        return RETRY
    cell_wake(map, cell, <int> (count if count < INT_MAX else INT_MAX))
    return OK

cdef inline int count_sleep(Op *op, Cell *cell, int64_t until) noexcept nogil:
    """Sleep until a permit is given, or until the clock reads until. Returns what futex_sleep does;
    -1 if there is no reason to sleep."""
    cdef uint32_t bell = lock_bell_arm(&cell.bell)
    # Behind lock_bell_arm, whose fence orders this load; pairs with shares_lock.
    cdef uint64_t seen = load_acquire_u64(&cell.word)
    if word_locked(seen):
        lock_busy(op, &cell.word, seen)
        return -1
    if word_count(seen) != 0:
        return -1
    return futex_sleep(&cell.bell, bell, until)

cdef inline void count_give_up(Map *map, Cell *cell) noexcept nogil:
    """The end of a wait that got no permit: pass on the wake-up that this waiter may have got."""
    if word_count(load_acquire_u64(&cell.word)) != 0:
        cell_wake(map, cell, 1)

cdef inline Status shares_recover(Op *op, Cell *cell, int shares_are) noexcept nogil:
    """Settle the change that a dead process had begun, and give back what it has."""
    cdef uint64_t next_one = held_word(op.context, HELD_SHARES_NEXT)
    cdef uint64_t held = 0
    cdef uint64_t shares
    if op_holds(op, &cell.word):
        held_set(op.context, HELD_SHARES_NEXT, 0)
        compiler_fence()
        lock_release(&cell.word, load_acquire_u64(&cell.word))
    elif next_one != 0:
        held_set(op.context, HELD_SHARES, next_one - 1)
        compiler_fence()
        held_set(op.context, HELD_SHARES_NEXT, 0)
    compiler_fence()
    shares = held_word(op.context, HELD_SHARES)
    if shares != 0:
        if lock_acquire(op, &cell.word, &held) != OK:
            return BUSY
        shares_change(op, cell, word_count(held) + (
            shares if shares_are == SHARES_ARE_TAKEN else 0 - shares), 0)
    # Also for permits that the dead process gave and did not live to ring for.
    cell_wake(op.map, cell, INT_MAX)
    return OK
