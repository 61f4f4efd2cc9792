"""Waiting for a change of a key, without a lock, a list of waiters or a fence.

There is one class of keys here, with one bell: a futex word, which is a number and a bit SLEEPING
that says that a waiter sleeps on it, or is about to; and in the other half of the same word a tag
for each key that is waited for, which count only while SLEEPING is set. The word ``waited`` says
that a process may be waiting, and the word ``waits`` of each process is the truth behind it. A
waiter sets all three and then looks at the key; a writer takes its lock word, commits, and then
looks at ``waited`` and at the bell, and rings if it finds SLEEPING and its key's tag. If the writer
misses the waiter's bits, its lock word was taken before the waiter looked: so the waiter finds the
word held, or the change, and does not sleep.

Changing the bell's number and waking its sleepers is one system call (FUTEX_WAKE_OP): a writer that
is killed has done both, or nothing. A writer killed between its commit and that call leaves
SLEEPING behind, and the process that recovers it rings.
"""

from support.protocol.automaton import (
    FUTEX_MASK,
    awaits,
    begin,
    cas,
    end,
    fetch_and,
    fetch_or,
    futex_ring,
    futex_sleep,
    futex_wake,
    load,
    own,
    put,
    wait,
)
from support.protocol.oracle import ABSENT, RETRY
from support.protocol.reading import element_read, find_once
from support.protocol.segment_model import LOCKED, owner_of, state_of
from support.protocol.writing import delete, update

SLEEPING = 1
CLASS = 1  # the bit of the only class


def tag_of(key):
    """The tag of a key, in the half of the bell that the kernel does not look at: two bits, of
    which the next key has one, too."""
    return 3 * (FUTEX_MASK + 1) << key


# ---- the waiter ----


def wait_for(m, me, key, value):
    """Wait until key has this value (0: until it is absent)."""
    yield begin("lookup", key)
    while True:
        yield fetch_or(m.waits[me], CLASS)
        waited = yield load(m.waited)
        if not waited:
            yield fetch_or(m.waited, CLASS)
        del waited
        early = m.keeps("a waiter sets SLEEPING before it reads the key")
        seen = 0
        if early:
            seen = yield from bell_arm(m, key)
        found = yield from settled(m, key)
        if found == value:
            break
        del found
        if not early:
            seen = yield from bell_arm(m, key)
        sleeps = yield futex_sleep(m.bell, seen, m.asleep[me])
        if sleeps:
            yield awaits("it is awake", me)
        del early, seen, sleeps
    yield from leave(m, me)
    yield end(value)


def bell_arm(m, key):
    """Say that a thread is about to sleep for this key; return the value that its sleep expects.
    The tags of present sleepers stay; tags without SLEEPING are of sleepers that have been
    woken."""
    if not m.keeps("a waiter sets its tag together with SLEEPING"):
        seen = yield fetch_or(m.bell, SLEEPING)
        return seen & FUTEX_MASK | SLEEPING
    while True:
        bell = yield load(m.bell)
        tags = bell & ~FUTEX_MASK if bell & SLEEPING else 0
        if not m.keeps("a waiter keeps the tags of the sleepers"):
            tags = 0
        armed = tags | tag_of(key) | bell & FUTEX_MASK | SLEEPING
        done = yield cas(m.bell, bell, armed)
        del tags, bell
        if done:
            return armed & FUTEX_MASK
        del armed, done


def settled(m, key):
    """The value of key at a moment when no word on the way to it is held by a writer that may be
    changing it."""
    while True:
        found, at, header = yield from find_once(m, key)
        held, word = m.bucket[0], 0
        value = RETRY
        if found == ABSENT:
            held, word = m.bucket[at], header
            value = ABSENT
        elif found != RETRY:
            held, word = m.element[found[0]], found[1]
            value = yield from element_read(m, found)
        busy = owner_of(word) != 0 and (found == ABSENT or state_of(word) != LOCKED)
        if busy and m.keeps("a waiter does not sleep while the word is held"):
            yield wait(held, word)
            value = RETRY
        if value != RETRY:
            return value
        del found, at, header, held, word, value, busy


def leave(m, me):
    """Stop waiting; the last waiter clears the class, and then looks for new waiters."""
    yield fetch_and(m.waits[me], 0)
    others = yield from others_wait(m, me)
    if others:
        return
    yield fetch_and(m.waited, 0)
    if not m.keeps("the last waiter looks again after it has cleared the class"):
        return
    others = yield from others_wait(m, me)
    if others:
        yield fetch_or(m.waited, CLASS)
        if m.keeps("the last waiter rings if another waiter has come"):
            yield from bells_ring_all(m)


def others_wait(m, me):
    """Whether any other process says that it waits."""
    found = 0
    for other in range(len(m.waits)):
        if other != me:
            bits = yield load(m.waits[other])
            found |= bits
            del bits
    return found


# ---- the writer ----


def ring_if_waited(m, key):
    """After an operation on key has committed: ring, if a process may be waiting."""
    waited = yield load(m.waited)
    if waited:
        bell = yield load(m.bell)
        yield from ring_if_sleeping(m, bell, key)


def ring_if_sleeping(m, bell, key):
    """If the bell's value says that a thread sleeps for this key, ring, and then ring the any bell,
    on which the thread sleeps that listens for a loop (listening.py)."""
    if not bell & SLEEPING or bell & tag_of(key) != tag_of(key):
        return
    if not m.listens:
        yield from bell_ring(m, m.bell, bell)
    elif m.keeps("the key's bell is rung before the any bell"):
        yield from bell_ring(m, m.bell, bell)
        yield from bell_ring_for_all(m, m.any)
    else:
        yield from bell_ring_for_all(m, m.any)
        yield from bell_ring(m, m.bell, bell)


def bells_ring_all(m):
    """Wake all sleepers, whichever keys they wait for."""
    yield from bell_ring_for_all(m, m.bell)
    if m.listens:
        yield from bell_ring_for_all(m, m.any)


def bell_ring_for_all(m, at):
    bell = yield load(at)
    if bell & SLEEPING:
        yield from bell_ring(m, at, bell)


def bell_ring(m, at, bell):
    """Change the bell's number, which clears SLEEPING, and wake its sleepers."""
    if not m.keeps("a ring changes the bell's number"):
        yield futex_wake(at)
    elif m.keeps("the number and the wake are one call"):
        yield futex_ring(at)
    else:
        yield fetch_and(at, ~SLEEPING)
        yield fetch_or(at, bell + 1 & FUTEX_MASK & ~SLEEPING)
        yield futex_wake(at)


def change(m, me, kind, key, value=0):
    """An update or a deletion, and the ring after it."""
    seen = None
    if not m.keeps("a writer looks for waiters after it has its lock word"):
        seen = 0
        waited = yield load(m.waited)
        if waited:
            seen = yield load(m.bell)
        del waited
    if kind == "delete":
        yield from delete(m, me, key)
    else:
        yield from update(m, me, key, value, kind)
    if m.looks_early:
        seen = yield own(m.saw[me])
        yield put(m.saw[me], 0)
    if seen is None:
        yield from ring_if_waited(m, key)
    else:
        yield from ring_if_sleeping(m, seen, key)
