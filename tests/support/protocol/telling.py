"""A task of an event loop that waits for a lock in a cell, and the thread that tells its loop.

listening.py has the same for a key of a map: there the loop arms a bell and notes its number in one
section. Here the word is the lock's own (cells/mutex.pxd), any waiter may change it, and the loop
looks at the word once more after it has made its note. A thread that frees the lock, and sees in
the word that a task waits, rings the any bell after that. No thread sleeps on the word here:
holding.py models those.
"""

from support.protocol.automaton import (
    OR,
    RING,
    awaits,
    cas,
    fetch_or,
    futex_ring,
    futex_sleep,
    load,
    lock,
    store,
)
from support.protocol.meeting import Cell
from support.protocol.meeting_scenes import GONE, Explorer, Scene
from support.protocol.oracle import Violation

HELD, CONTENDED = 1, 2
SLEEPING = 1
TAKEN = 1
LOOP, THREAD = 1, 2  # who holds the mutex of their process


class Words(Cell):
    """A lock, the any bell, and what the loop and the thread of a process have in common."""

    def __init__(self, programs, without=()):
        super().__init__(programs, without)
        self.held = self._word("the lock")
        self.any = self._word("any bell")
        self.mutex = self._word("mutex")
        self.noted = self._word("note")
        self.told = self._word("descriptor")


def hold(m, _me):
    """Take the lock if it is free, and release it."""
    taken = yield cas(m.held, 0, HELD)
    if taken:
        yield from let_go(m)


def let_go(m):
    freed = yield cas(m.held, HELD, 0)
    if freed:
        return
    late = m.does("the lock is free before the any bell is rung")
    if not late:
        yield from ring(m)
    yield cas(m.held, HELD | CONTENDED, 0)
    if late:
        yield from ring(m)


def ring(m):
    if m.does("a thread that frees a lock with waiters rings the any bell"):
        seen = yield load(m.any)
        if seen & SLEEPING:
            yield futex_ring(m.any)


def take_in_loop(m, me):
    """Take the lock as a task, and release it."""
    taken = yield from look(m)
    while not taken:
        yield awaits("the loop is told", 0)
        early = m.does("a loop empties its descriptor before it looks at the word")
        if early:
            yield store(m.told, 0)
        taken = yield from look(m)
        if not early:
            yield store(m.told, 0)
        del early
    yield store(m.noted, 0)
    yield store(m.result[me], TAKEN)
    yield from let_go(m)


def look(m):
    """Take the lock, or say in its word that a task waits and note the new value of the word."""
    while True:
        seen = yield load(m.held)
        if seen == 0:
            taken = yield cas(m.held, 0, HELD | CONTENDED)
            if taken:
                return True
            del seen, taken
            continue
        if m.does("a task says in the word that it waits"):
            said = yield cas(m.held, seen, HELD | CONTENDED)
            if not said:
                del seen, said
                continue
            seen = HELD | CONTENDED
            del said
        yield lock(m.mutex, LOOP)
        yield store(m.noted, seen)
        yield store(m.mutex, 0)
        if not m.does("a task looks at the word after its note"):
            return False
        now = yield load(m.held)
        if now == seen:
            return False
        del seen, now


def listen(m, me):
    """The thread. It never ends here; the scene ends when it sleeps."""
    while True:
        early = m.does("the thread arms the any bell before it looks at the word")
        armed = 0
        if early:
            armed = yield fetch_or(m.any, SLEEPING)
        yield lock(m.mutex, THREAD)
        noted = yield load(m.noted)
        held = yield load(m.held)
        if noted not in (0, held):
            yield store(m.told, 1)
        yield store(m.mutex, 0)
        if not early:
            armed = yield fetch_or(m.any, SLEEPING)
        del noted, held
        sleeps = yield futex_sleep(m.any, armed | SLEEPING, m.asleep[me])
        if sleeps:
            yield awaits("awake", me)
        del early, armed, sleeps


class Telling(Explorer):
    """An explorer that knows these words."""

    def may_go(self, action, memory, places):
        if action[2] == "the loop is told":
            return memory[self.cell.told] != 0
        return super().may_go(action, memory, places)

    def access(self, action, memory):
        kind, address, value, _ = action
        if kind not in (OR, RING):
            return super().access(action, memory)
        after = list(memory)
        if kind == OR:
            after[address] |= value
            return tuple(after), memory[address]
        after[address] += 1
        for asleep in self.cell.asleep:
            if memory[asleep] == address + 1:
                after[asleep] = 0
        return tuple(after), None


def taken_by_all(cell, memory, places):
    """No task waits for a free lock, unless the lock's owner died before it rang the bell: in the
    core the task then looks by itself at the end of its slice."""
    waits = memory[cell.result[0]] != TAKEN
    if waits and memory[cell.held] == 0 and GONE not in places:
        raise Violation("a task waits for a lock that is free")
    if memory[cell.held] != 0 and GONE not in places:
        raise Violation("a lock is held by nobody")


TASK, THREAD_OF_LOOP, HOLDER = (take_in_loop,), (listen,), (hold,)
SCENES = {
    "a task waits for a lock that another process has": Scene(
        (TASK, THREAD_OF_LOOP, HOLDER), taken_by_all, cell=Words
    ),
    "a task waits for a lock that two other processes take": Scene(
        (TASK, THREAD_OF_LOOP, HOLDER, HOLDER), taken_by_all, cell=Words
    ),
    "a task waits, and the lock's owner dies": Scene(
        (TASK, THREAD_OF_LOOP, HOLDER, HOLDER), taken_by_all, frozenset([2]), 1, Words
    ),
}
FREE = "a task waits for a lock that is free"
ONE, TWO = list(SCENES)[:2]
MUTANTS = {
    "a task says in the word that it waits": (ONE, FREE),
    "a task looks at the word after its note": (ONE, FREE),
    "a loop empties its descriptor before it looks at the word": (TWO, FREE),
    "a thread that frees a lock with waiters rings the any bell": (ONE, FREE),
    "the lock is free before the any bell is rung": (ONE, FREE),
    "the thread arms the any bell before it looks at the word": (ONE, FREE),
}
