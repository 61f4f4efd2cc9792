"""An event loop that waits for a change of a key, through a thread that listens for it.

A loop sleeps in the kernel on its descriptors, not on a futex. So a thread of its process sleeps on
the any bell, and makes a descriptor of the loop readable when the bell of a key has moved that the
loop waits for. The loop arms the bell of its key and looks at the key, as any waiter does
(waiting.py), and then waits until it is told. It arms the bell and notes the bell's number in one
section of a mutex, and the thread looks under the same mutex. Otherwise the thread could look
between the two steps, after the bell was rung for the last time.

A writer rings the bell of the key first and, if that had a sleeper, the any bell. The writer wakes
no thread if the thread is awake and has not armed the any bell again; but then the thread looks at
the key's bell after it has armed the any bell, and tells the loop.
"""

from support.protocol.automaton import (
    FUTEX_MASK,
    awaits,
    begin,
    end,
    fetch_and,
    fetch_or,
    futex_sleep,
    load,
    lock,
    store,
)
from support.protocol.waiting import CLASS, SLEEPING, bell_arm, leave, settled

LOOP, THREAD = 1, 2  # who holds the mutex of their process


def await_for(m, me, key, value):
    """Wait in an event loop until key has this value (0: until it is absent)."""
    yield begin("lookup", key)
    yield fetch_or(m.waits[me], CLASS)
    yield fetch_or(m.waited, CLASS)
    while True:
        locks = m.keeps("a loop arms the bell and notes its number in one section")
        if locks:
            yield lock(m.loop_mutex, LOOP)
        seen = yield from bell_arm(m, key)
        yield store(m.seen, seen)
        if locks:
            yield store(m.loop_mutex, 0)
        del locks, seen
        found = yield from settled(m, key)
        if found == value:
            break
        del found
        yield from until_it_has_moved(m)
    yield store(m.seen, 0)
    yield from leave(m, me)
    yield end(value)


def until_it_has_moved(m):
    """Return when the loop has been told, and the bell has moved since it was armed."""
    while True:
        yield awaits("the loop is told", 0)
        early = m.keeps("a loop empties its descriptor before it looks at the bell")
        if early:
            yield fetch_and(m.loop_told, 0)
        seen = yield load(m.seen)
        bell = yield load(m.bell)
        if not early:
            yield fetch_and(m.loop_told, 0)
        if bell & FUTEX_MASK != seen:
            return
        del early, seen, bell


def listen(m):
    """The thread. It never ends here; the scene ends when it sleeps."""
    while True:
        early = m.keeps("the thread arms the any bell before it looks at the key's bell")
        armed = 0
        if early:
            armed = yield fetch_or(m.any, SLEEPING)
        yield lock(m.loop_mutex, THREAD)
        seen = yield load(m.seen)
        bell = yield load(m.bell)
        if seen not in (0, bell & FUTEX_MASK):
            yield store(m.loop_told, 1)
        yield store(m.loop_mutex, 0)
        if not early:
            armed = yield fetch_or(m.any, SLEEPING)
        del seen, bell
        sleeps = yield futex_sleep(m.any, armed & FUTEX_MASK | SLEEPING, m.thread_asleep)
        if sleeps:
            yield awaits("the thread is awake", 0)
        del early, armed, sleeps
