"""Cells: a lock, a semaphore and an event that survive a process that dies while it uses them.

Models mutex.pxd, shares.pxd and flag.pxd. A CAS releases a lock, and then a sleeper is woken; if
the process is killed between the two, its recovery wakes the sleeper. The lock may be taken away
from its owner at any time (takeaway.pxd). A waiter that was woken takes the lock with CONTENDED; a
waiter that gives up passes the wake-up on, and so does the recovery of a waiter that died. The
permits of a process are counted in its context; a change of the two numbers begins with an intent,
and one store commits it.

The lock protects the word protected, which its owners load and store as their own: the explorer
notices two owners at once. In the core a waiter also looks by itself now and then; here it does
not, so the model finds a lost wake-up, which the core would repair.
"""

from support.protocol.automaton import (
    awaits,
    cas,
    fetch_or,
    futex_ring,
    futex_sleep,
    futex_wake_one,
    load,
    own,
    put,
    store,
)
from support.protocol.oracle import Violation
from support.protocol.segment_model import OWNER_MASK, PAYLOAD_SHIFT, owner_of

CONTENDED = 16
ORPHAN = 32
SLEEPING = 1
FLAG_SET = 1
PERMIT = 1 << PAYLOAD_SHIFT
READER, WRITER = 1, 8


# ---- a lock ----


def hold(m, me, patient=True):
    """Take the lock, use what it protects, release it. If not patient, give up at the alarm."""
    yield put(m.names_cell[me], 1)
    taken = yield from mutex_take(m, me, patient)
    if taken:
        value = yield own(m.protected)
        yield put(m.protected, value + 1)
        word = yield load(m.mutex)
        if word & ORPHAN:
            told = yield own(m.told)
            yield put(m.told, told + 1)
            del told
        yield from mutex_release(m, me)


def mutex_take(m, me, patient):
    slept = 0
    while True:
        word = yield load(m.mutex)
        late = 0
        if not patient:
            late = yield load(m.alarm)
        if not word & OWNER_MASK:
            kept = word & (CONTENDED | ORPHAN)
            if slept and m.keeps("a waiter that has slept takes the lock with CONTENDED"):
                kept |= CONTENDED
            done = yield cas(m.mutex, word, me | kept)
            if done:
                return True
            del kept, done
        elif late:
            if slept and m.keeps("a waiter that gives up passes the wake-up on"):
                yield from pass_on(m)
            return False
        else:
            marked = word & CONTENDED
            if not marked:
                marked = yield cas(m.mutex, word, word | CONTENDED)
            if marked:
                slept = 1
                sleeps = yield futex_sleep(m.mutex, word | CONTENDED, m.asleep[me - 1])
                if sleeps:
                    yield awaits("it is awake", me - 1)
                del sleeps
            del marked
        del word, late


def pass_on(m):
    """The waiter may have been woken: leave no sleeper behind."""
    while True:
        word = yield load(m.mutex)
        if not word & OWNER_MASK:
            yield futex_wake_one(m.mutex)
            return
        marked = word & CONTENDED
        if not marked:
            marked = yield cas(m.mutex, word, word | CONTENDED)
        if marked:
            return
        del word, marked


def mutex_release(m, me):
    word = yield load(m.mutex)
    left = 0 if m.keeps("a release clears ORPHAN") else word & ORPHAN
    if owner_of(word) == me:
        yield from mutex_free(m, me, word, left)


def mutex_free(m, me, word, left):
    """Free the lock, which this context holds, and whose word was just loaded."""
    while True:
        done = yield cas(m.mutex, word, left)
        if done:
            break
        word = yield load(m.mutex)
        if owner_of(word) != me and m.keeps("an owner frees no lock but its own"):
            return
        del done
    if word & CONTENDED and m.keeps("a thread that frees a lock wakes a sleeper"):
        yield futex_wake_one(m.mutex)


def let_lock_go(m, me):
    """Release a lock that this context had from the beginning."""
    yield from mutex_release(m, me)


def depose(m, _me):
    """Take the lock away from context 1, living or dead, and leave it free."""
    word = yield load(m.mutex)
    if owner_of(word) == 1:
        done = yield cas(m.mutex, word, ORPHAN)
        if done:
            yield store(m.orphaned, 1)
            yield futex_wake_one(m.mutex)


def ring_alarm(m, _me, sleeper):
    """End a waiter's timeout; if the waiter sleeps, it wakes up."""
    yield store(m.alarm, 1)
    yield store(m.asleep[sleeper - 1], 0)


def mutex_recover(m, me):
    """Free a lock that a dead context holds, and say in its word that the owner died."""
    word = yield load(m.mutex)
    if owner_of(word) != me and m.keeps("recovery frees only a lock that the context holds"):
        if m.keeps("recovery passes on the wake-up of a dead waiter"):
            yield from pass_on(m)
        return
    yield store(m.orphaned, 1)
    left = ORPHAN if m.keeps("recovery says that the owner died") else 0
    yield from mutex_free(m, me, word, left)


# ---- permits ----


def take_permit(m, me):
    """Take a permit, waiting for it."""
    early = m.keeps("a context names the cell before it changes it")
    if early:
        yield put(m.names_cell[me], 1)
    while True:
        bell = yield fetch_or(m.bell, SLEEPING)
        word = yield load(m.permits)
        done = False
        if word >= PERMIT and not owner_of(word):
            done = yield from shares_change(m, me, word, -1, 1)
        elif word < PERMIT and not owner_of(word):
            sleeps = yield futex_sleep(m.bell, bell | SLEEPING, m.asleep[me - 1])
            if sleeps:
                yield awaits("it is awake", me - 1)
            del sleeps
        else:
            yield awaits("the permits are not locked")
        if done:
            break
        del bell, word, done
    if not early:
        yield put(m.names_cell[me], 1)


def give_permit(m, me):
    """Give back a permit that this context has."""
    done = False
    while not done:
        word = yield load(m.permits)
        if owner_of(word):
            yield awaits("the permits are not locked")
        else:
            done = yield from shares_change(m, me, word, 1, -1)
        del word
    yield from permit_ring(m)


def shares_change(m, me, word, by, mine):
    """Add to the number in the word, and to this context's shares."""
    done = yield cas(m.permits, word, word | me)
    if not done:
        return False
    shares = yield own(m.shares[me])
    if m.keeps("a change of permits begins with its intent"):
        yield put(m.shares_next[me], shares + mine + 1)
    yield store(m.permits, word + by * PERMIT)
    yield put(m.shares[me], shares + mine)
    yield put(m.shares_next[me], 0)
    return True


def permit_ring(m):
    bell = yield load(m.bell)
    if bell & SLEEPING:
        yield futex_ring(m.bell)


def shares_recover(m, me):
    """Undo or finish the change that a dead context had begun, and give its shares back."""
    word = yield load(m.permits)
    intent = yield own(m.shares_next[me])
    if m.cell == "rwlock":
        shares = yield own(m.shares[me])
        if intent and owner_of(word) != me:
            shares = intent - 1
        if shares & WRITER and m.keeps("recovery reports a dead writer before it frees its lock"):
            yield store(m.mutex, ORPHAN)
        del shares
    if owner_of(word) == me:
        yield put(m.shares_next[me], 0)
        yield store(m.permits, word & ~OWNER_MASK)
    elif intent:
        if m.keeps("recovery finishes a change that was committed"):
            yield put(m.shares[me], intent - 1)
        yield put(m.shares_next[me], 0)
    del word, intent
    shares = yield own(m.shares[me])
    if shares and m.keeps("recovery gives back the permits of a dead context"):
        done = False
        while not done:
            word = yield load(m.permits)
            if owner_of(word):
                yield awaits("the permits are not locked")
            else:
                by = -shares if m.cell == "rwlock" else shares
                done = yield from shares_change(m, me, word, by, -shares)
                del by
            del word
    if m.keeps("recovery rings the bell of the permits"):
        yield from permit_ring(m)


# ---- readers and a writer ----


def read(m, me):
    """Take the lock as a reader, check that no writer is at work, and release the lock."""
    yield from come_in(m, me, READER)
    half_done = yield load(m.protected)
    if half_done:
        word = yield load(m.mutex)
        if not word & ORPHAN:
            yield store(m.told, 1)
        del word
    yield from go_out(m, me, READER)


def write(m, me):
    """Take the lock as the writer, work, and release the lock."""
    yield from come_in(m, me, WRITER)
    yield store(m.protected, 1)
    yield store(m.protected, 0)
    yield from go_out(m, me, WRITER)


def come_in(m, me, unit):
    yield put(m.names_cell[me], 1)
    while True:
        bell = yield fetch_or(m.bell, SLEEPING)
        word = yield load(m.permits)
        done = False
        if owner_of(word):
            yield awaits("the permits are not locked")
        elif word < PERMIT or (unit == READER and not word & WRITER * PERMIT):
            done = yield from shares_change(m, me, word, unit, unit)
        else:
            sleeps = yield futex_sleep(m.bell, bell | SLEEPING, m.asleep[me - 1])
            if sleeps:
                yield awaits("it is awake", me - 1)
            del sleeps
        if done:
            return
        del bell, word, done


def go_out(m, me, unit):
    done = False
    while not done:
        word = yield load(m.permits)
        if owner_of(word):
            yield awaits("the permits are not locked")
        else:
            done = yield from shares_change(m, me, word, -unit, -unit)
        last = word // PERMIT == unit
        del word
    if last and m.keeps("a thread that leaves the lock free rings"):
        yield from permit_ring(m)


# ---- an event ----


def set_flag(m, _me, clears=False):
    """Set the flag, and clear it at once if clears is true."""
    waits = yield load(m.shares[1])
    yield store(m.told, waits)  # context 1 has waited since before, and must learn of this
    word = yield load(m.flag)
    raised = 2 if m.keeps("setting an event raises its generation") else 0
    yield cas(m.flag, word, word + raised | FLAG_SET)
    if clears:
        word = yield load(m.flag)
        yield cas(m.flag, word, word & ~FLAG_SET)
    yield from permit_ring(m)


def wait_for_flag(m, me):
    """Wait until the flag is set, or has been set since the wait began."""
    first = yield load(m.flag)
    yield store(m.shares[me], 1)
    while True:
        early = m.keeps("a waiter for an event arms the bell before it looks")
        bell = 0
        if early:
            bell = yield fetch_or(m.bell, SLEEPING)
        word = yield load(m.flag)
        if word & FLAG_SET or word >> 1 != first >> 1:
            return
        if not early:
            bell = yield fetch_or(m.bell, SLEEPING)
        sleeps = yield futex_sleep(m.bell, bell | SLEEPING, m.asleep[me - 1])
        if sleeps:
            yield awaits("it is awake", me - 1)
        del early, bell, word, sleeps


# ---- recovery, and the law ----


def recover_cell(m, me):
    """Release what a dead context holds of the cell that it names."""
    named = yield own(m.names_cell[me])
    if not named:
        return
    if m.cell == "lock":
        yield from mutex_recover(m, me)
    elif m.cell in ("permits", "rwlock"):
        yield from shares_recover(m, me)


def permits_are_free(m, memory, _subjects):
    return not owner_of(memory[m.permits])


def check_cell(m, memory, sleeps, dead):
    """When no program can move: no waiter sleeps although it could go on, the number of permits is
    exact, and each death has been reported once.

    sleeps: whether any program sleeps. dead: whether a dead program is not recovered.
    """
    if dead:
        return
    if m.cell == "lock":
        if sleeps and not owner_of(memory[m.mutex]):
            raise Violation("a waiter sleeps although the lock is free")
        if owner_of(memory[m.mutex]):
            raise Violation("the lock is never released (C1)")
        untold = memory[m.mutex] & ORPHAN != 0
        if memory[m.told] + untold != memory[m.orphaned]:
            raise Violation(f"a death was told {memory[m.told]} times")
    if m.cell == "permits":
        free = memory[m.permits] >> PAYLOAD_SHIFT
        if owner_of(memory[m.permits]):
            raise Violation("the permits are never unlocked (C1)")
        held = sum(
            memory[m.shares[me]]
            for me in range(1, m.contexts + 1)
            if memory[m.of(me, "owner")]  # otherwise it is recovered
        )
        if free + held != m.permits_at_first:
            raise Violation("permits are lost or made (C1)")
        if sleeps and free:
            raise Violation("a waiter sleeps although a permit is free")
    if m.cell == "rwlock":
        if memory[m.permits]:
            raise Violation("a dead owner keeps the lock (C1)")
        if sleeps:
            raise Violation("a waiter sleeps although the lock is free")
        if memory[m.told]:
            raise Violation("a reader found a writer at work")
    if m.cell == "event" and sleeps and (memory[m.flag] & FLAG_SET or memory[m.told]):
        raise Violation("a waiter sleeps although the event has come")
