# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A lock in a cell that survives its holder.
#
#      31                 18  17       16          15            1   0
#     +---------------------+--------+-----------+---------------+---+
#     | unused              | ORPHAN | CONTENDED | owner context | L |    Cell.state, a futex word
#     +---------------------+--------+-----------+---------------+---+
#
#   L          the lock is held, by the context that the owner bits name. Clear: it is free.
#   CONTENDED  a thread sleeps on the word, or is about to.
#   ORPHAN     an owner died while it held the lock, and no later owner has released it since.
#
# Taking is one CAS, from free to held. Releasing is one CAS from held to 0; if CONTENDED was set, a
# sleeper is woken after it, and the event loops are told. So the word alone says whether the lock
# is held and by which context, and the context says by which process: nothing has to be undone but
# the hold of a dead owner. A process that is killed between the CAS and the wake-up leaves sleepers
# and loops to its recovery, which passes the wake-up on, and to their slices: as if it had been
# killed just before the CAS.
#
# A release is a CAS, not a store, because the lock may be taken away from its owner at any time
# (takeaway.pxd): an owner that was stopped in its release must not free the next owner's lock. The
# context that the word named stays the old owner's, so the CAS fails, whichever process has the
# lock by then.
#
# A waiter sets CONTENDED in the word that it found held, and sleeps if the word still has the value
# that it set. A waiter that has slept takes the lock with CONTENDED, because others may sleep
# behind it. A waiter that was woken and then gives up sets CONTENDED again or, if the lock is free,
# wakes the next: no wake-up is swallowed. If a woken waiter is killed, its recovery passes the
# wake-up on. All waiters look by themselves at the end of a slice: every 2 ms, and after 0.1 s
# every 50 ms.
#
# An owner that dies is found dead by a waiter at the end of a slice, or before its first sleep, or
# by any process that recovers. Recovery records which process died, changes the word by a CAS to
# ORPHAN alone, and wakes a sleeper (mutex_recover). The next owner finds ORPHAN in the word, and is
# told of the death. Its release clears ORPHAN; if it dies first, ORPHAN stays, and the owner after
# it is told of that second death.
#
# Fairness. A thread that finds the lock free takes it, even if others sleep: that is fast, and
# unfair. So a waiter that has waited for 1 ms writes a time into reserved_until, some ms ahead, and
# until then all others leave the lock to it. The word is a hint: it decides which thread takes a
# free lock, never whether the lock is free. If that waiter dies or is stopped, the lock stays free
# until the time is over, 20 ms at most; the next thread that looks clears the word. A release while
# the word is set wakes all sleepers, since only one of them may take the lock.
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u32, store_relaxed_u64, add_relaxed_u64, cas_acq_rel_u64,
    cas_seq_cst_u32, pause, likely, unlikely,
)
from machine.system cimport (
    CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, clock_ns, futex_sleep, futex_wake,
)
from segment.status cimport Status, OK, ABSENT, PRESENT
from segment.layout cimport LOCK_BIT, LOCK_MASK, ProcessSlot
from segment.words cimport lock_bits, word_locked
from segment.geometry cimport Map
from memory.operation cimport Op
from map.bell cimport listeners_ring, owner_slice_ns, sooner_ns
from cells.cell cimport (
    HELD_DEPTH, HELD_SINCE, HELD_THREAD, Cell, cell_orphan, held_name, held_set, held_word,
)

cdef enum:
    CONTENDED = 0x10000
    ORPHAN = 0x20000

    MUTEX_PAUSES_MAX = 30              # about 1 us: shorter than a sleep and its wake-up
    MUTEX_FREE_TURNS = 3               # of freeing: a waiter sets CONTENDED once, more is damage
    MUTEX_TURNS_MAX = 1000             # of one slice; each is a pause, a sleep or a lost race
    MUTEX_PATIENCE_NS = 1000000        # after which a waiter reserves the lock
    MUTEX_RESERVE_NS = 20000000        # for how long: two of the slices in which it renews that
    MUTEX_SLICE_RESERVED_NS = 10000000
    RESERVER_MASK = 0xFFF              # low bits of reserved_until: the waiter's context

# One thread's wait for a lock.
cdef struct MutexWait:
    int64_t began
    int64_t until              # the end of the wait; negative: none
    uint64_t reservation       # what this thread stored in reserved_until; 0: nothing
    bint slept                 # it has slept: others may sleep behind it


cdef inline void mutex_intend(Op *op, uint64_t index, uint64_t thread) noexcept nogil:
    """Before a CAS that takes the lock: say what the context will hold, and for which thread."""
    held_set(op.context, HELD_THREAD, thread)
    held_set(op.context, HELD_DEPTH, 1)
    held_name(op.context, index)

cdef inline void mutex_taken(Op *op, Cell *cell) noexcept nogil:
    """After the CAS: the owner counts its grant."""
    store_relaxed_u64(&cell.grants, load_relaxed_u64(&cell.grants) + 1)
    held_set(op.context, HELD_SINCE, <uint64_t> clock_ns(CLOCK_MONOTONIC_COARSE))

cdef inline bint mutex_take_free(Op *op, Cell *cell) noexcept nogil:
    """Take a lock that has no holder, no waiter and no orphan. False: mutex_take may take it."""
    # Acquire: what the last owner wrote under the lock; pairs with mutex_release.
    if likely(load_relaxed_u64(&cell.reserved_until) == 0) and likely(
            cas_seq_cst_u32(&cell.state, 0, <uint32_t> lock_bits(op.self_index))):
        mutex_taken(op, cell)
        return True
    return False

cdef inline bint mutex_is_reserved(Cell *cell, MutexWait *wait, uint64_t *until) noexcept nogil:
    """Whether another waiter is to take the lock first; until then, by CLOCK_MONOTONIC."""
    cdef uint64_t reserved = load_relaxed_u64(&cell.reserved_until)
    cdef uint64_t now
    until[0] = 0
    if likely(reserved == 0) or reserved == wait.reservation:
        return False
    now = <uint64_t> clock_ns(CLOCK_MONOTONIC)
    if now < reserved <= now + MUTEX_RESERVE_NS + RESERVER_MASK:
        until[0] = reserved
        return True
    # The time is over, as its waiter has died or been stopped; or it is further ahead than any
    # waiter stores: damage. If the word stayed, no thread would take the lock by mutex_take_free.
    cas_acq_rel_u64(&cell.reserved_until, reserved, 0)
    return False

cdef inline void mutex_reserve(Op *op, Cell *cell, MutexWait *wait, int64_t now) noexcept nogil:
    """Reserve the lock for this waiter, or renew that, unless it is reserved for another."""
    cdef uint64_t seen = load_relaxed_u64(&cell.reserved_until)
    cdef uint64_t mine = (<uint64_t> (now + MUTEX_RESERVE_NS) & ~<uint64_t> RESERVER_MASK) | (
        op.self_index & RESERVER_MASK)
    if (seen == 0 or seen == wait.reservation or seen <= <uint64_t> now) and cas_acq_rel_u64(
            &cell.reserved_until, seen, mine):
        wait.reservation = mine

cdef inline void mutex_unreserve(Cell *cell, MutexWait *wait) noexcept nogil:
    if wait.reservation != 0:
        cas_acq_rel_u64(&cell.reserved_until, wait.reservation, 0)
        wait.reservation = 0

cdef inline bint mutex_take(Op *op, Cell *cell, uint32_t seen, MutexWait *wait) noexcept nogil:
    """Take the lock, whose word was seen free. False: the word has changed."""
    cdef uint32_t more = seen & (CONTENDED | ORPHAN)
    if wait.slept:
        more |= CONTENDED
    # As in mutex_take_free.
    if not cas_seq_cst_u32(&cell.state, seen, <uint32_t> lock_bits(op.self_index) | more):
        return False
    mutex_taken(op, cell)
    mutex_unreserve(cell, wait)
    return True

cdef inline int64_t mutex_slice_end(
        MutexWait *wait, int64_t now, uint64_t reserved_until) noexcept nogil:
    """Until when a waiter sleeps at most before it looks by itself."""
    cdef int64_t until = now + owner_slice_ns(now - wait.began)
    if wait.reservation != 0 and until > now + MUTEX_SLICE_RESERVED_NS:
        until = now + MUTEX_SLICE_RESERVED_NS
    if reserved_until != 0 and until > <int64_t> reserved_until:
        until = <int64_t> reserved_until
    return sooner_ns(until, wait.until)

cdef inline bint mutex_wait(Op *op, Cell *cell, MutexWait *wait) noexcept nogil:
    """Wait for the lock for one slice. True: it is taken. False: the caller handles signals, looks
    whether the wait is over, and calls again. mutex_intend was called."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t until = now
    cdef uint64_t reserved_until = 0
    cdef uint32_t seen
    cdef int turn
    cdef int pauses = MUTEX_PAUSES_MAX if wait.slept else 0
    if now - wait.began >= MUTEX_PATIENCE_NS:
        mutex_reserve(op, cell, wait, now)
    for turn in range(MUTEX_TURNS_MAX):
        # Acquire: pairs with mutex_release; the CAS in mutex_take orders more.
        seen = load_acquire_u32(&cell.state)
        if not word_locked(seen) and not mutex_is_reserved(cell, wait, &reserved_until):
            if mutex_take(op, cell, seen, wait):
                return True
            continue
        if pauses < MUTEX_PAUSES_MAX:
            pauses += 1
            pause()
            continue
        op.wait_seen = seen
        if until == now and word_locked(seen) and op.map.owner_recover(op):
            continue                           # the owner was dead: look again
        if turn > 0 and clock_ns(CLOCK_MONOTONIC) >= until > now:
            return False                       # the slice is over, after a last look
        until = mutex_slice_end(wait, now, reserved_until)
        if until <= now:
            return False
        if not seen & CONTENDED and not cas_seq_cst_u32(&cell.state, seen, seen | CONTENDED):
            continue
        wait.slept = True
        if futex_sleep(&cell.state, seen | CONTENDED, until) > 0 and (
                clock_ns(CLOCK_MONOTONIC) < until and load_acquire_u32(&cell.state) == (
                    seen | CONTENDED)):
            return False                       # a signal
    return False

cdef inline bint mutex_look(
        Op *op, Cell *cell, MutexWait *wait, uint32_t *left, int64_t *until) noexcept nogil:
    """One look of a waiter that does not sleep on the word but is told when it changes. True: the
    lock is taken. False: the word says that there is a waiter; left: its value; until: the end of
    the slice. mutex_intend was called."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t reserved_until = 0
    cdef uint32_t seen
    cdef int _turn
    cdef bint looked = False
    left[0] = 0
    until[0] = now                             # then the caller looks again
    wait.slept = True                          # it takes the lock with CONTENDED, as a sleeper does
    if now - wait.began >= MUTEX_PATIENCE_NS:
        mutex_reserve(op, cell, wait, now)
    for _turn in range(MUTEX_TURNS_MAX):       # each turn, another thread has changed the word
        # Acquire: as in mutex_wait.
        seen = load_acquire_u32(&cell.state)
        if not word_locked(seen) and not mutex_is_reserved(cell, wait, &reserved_until):
            if mutex_take(op, cell, seen, wait):
                return True
            continue
        op.wait_seen = seen
        if not looked and word_locked(seen):
            looked = True
            if op.map.owner_recover(op):
                continue                       # the owner was dead
        if seen & CONTENDED or cas_seq_cst_u32(&cell.state, seen, seen | CONTENDED):
            left[0] = seen | CONTENDED
            until[0] = mutex_slice_end(wait, now, reserved_until)
            return False
    return False

cdef inline void mutex_pass_on(Map *map, Cell *cell) noexcept nogil:
    """For a waiter that may have been woken and will not take the lock: leave no sleeper behind."""
    cdef uint32_t seen
    cdef int _
    for _ in range(MUTEX_TURNS_MAX):           # each turn, another thread has changed the word
        seen = load_acquire_u32(&cell.state)
        if not word_locked(seen):
            futex_wake(&cell.state, 1)
            listeners_ring(map)
            return
        if seen & CONTENDED or cas_seq_cst_u32(&cell.state, seen, seen | CONTENDED):
            return

cdef inline void mutex_give_up(Map *map, Cell *cell, MutexWait *wait) noexcept nogil:
    """The end of a wait that did not get the lock."""
    mutex_unreserve(cell, wait)
    if wait.slept:
        mutex_pass_on(map, cell)

cdef inline void mutex_wake(Map *map, Cell *cell) noexcept nogil:
    """After the lock has become free: wake a sleeper, or all if only one of them may take it; and
    the event loops that wait."""
    futex_wake(&cell.state, INT_MAX if load_relaxed_u64(&cell.reserved_until) != 0 else 1)
    listeners_ring(map)

cdef inline Status mutex_free(Map *map, Cell *cell, uint32_t seen, uint32_t left) noexcept nogil:
    """Free a lock whose word was seen held; left: what stays in the word. PRESENT: it is free, and
    a waiter was woken; ABSENT: its owner has not got it any more."""
    cdef uint32_t owner = seen & LOCK_MASK
    cdef int _
    for _ in range(MUTEX_FREE_TURNS):
        # Release: what was written under the lock; pairs with the CAS of the next owner.
        if likely(cas_seq_cst_u32(&cell.state, seen, left)):
            if likely(not seen & CONTENDED):
                return OK
            mutex_wake(map, cell)
            return PRESENT
        seen = load_acquire_u32(&cell.state)
        if seen & LOCK_MASK != owner:
            return ABSENT
    return ABSENT

cdef inline Status mutex_release(Map *map, Cell *cell, uint32_t seen) noexcept nogil:
    """Release the lock, whose word was seen held by the caller's process. PRESENT: it is free, and
    a waiter was woken; ABSENT: it has been taken away from the process."""
    return mutex_free(map, cell, seen, 0)

cdef inline void mutex_recover(Op *op, Cell *cell, const ProcessSlot *owner) noexcept nogil:
    """Free a lock whose owner died, if the context holds it; repeatable until the last store. Else
    it may have been a waiter that was woken, or an owner that died before it had woken one."""
    cdef uint32_t seen = load_acquire_u32(&cell.state)
    if seen & LOCK_MASK != lock_bits(op.self_index):
        mutex_pass_on(op.map, cell)
        return
    cell_orphan(cell, owner, held_word(op.context, HELD_SINCE))
    add_relaxed_u64(&cell.deaths, 1)
    mutex_free(op.map, cell, seen, ORPHAN)
