"""Circles: threads that wait for each other's locks (cells/circle.pxd).

There are some locks. Each program is a process with one thread, and the program's number is the
thread's. A waiter says in a word which lock it waits for; the same word numbers the waits in the
order in which they begin. Here that is one step, because in the core a waiter looks for circles a
fifth of a second after it has stored the word. A look consists of single loads, between which the
other threads go on.
"""

from support.protocol.automaton import cas, load, lock, store
from support.protocol.words import Words

LOCKS = 3
WAIT, ENDLESS = 20, 10  # word of a wait: its number * WAIT + ENDLESS, or 0 + the lock + 1


class Locks(Words):
    """The words of the locks and of the contexts. without: the steps that a mutant leaves out."""

    def __init__(self, programs, without=()):
        super().__init__(without)
        self.owner = [self._word(f"owner of {at}") for at in range(LOCKS)]
        self.number = self._word("number of the last wait")
        self.numbering = self._word("lock of the number")
        self.waits = [self._word(f"wait of {me}") for me in range(programs)]
        self.told = [self._word(f"alarm of {me}") for me in range(programs)]
        self.ended = [self._word(f"end of {me}") for me in range(programs)]
        self.asleep = []  # empty, because no thread sleeps here


def hold_and_want(m, me, held, wanted):
    """Take a lock, and wait for another one without limit; give both up if this is a circle."""
    yield lock(m.owner[held], me + 1)
    early = m.does("a waiter says what it waits for before it looks")
    if early:
        yield from say(m, me, wanted, ENDLESS)
    taken = yield cas(m.owner[wanted], 0, me + 1)
    if not taken:
        circle = yield from circle_find(m, me, wanted)
        if circle:
            yield store(m.told[me], 1)
        else:
            if not early:
                yield from say(m, me, wanted, ENDLESS)
            yield lock(m.owner[wanted], me + 1)
            taken = True
    yield store(m.waits[me], 0)
    if taken:
        yield store(m.owner[wanted], 0)
    yield store(m.owner[held], 0)
    yield store(m.ended[me], 1)


def hold_then_want(m, me, held, wanted, times):
    """Take and release a lock, then wait for another lock with a timeout; do this several times."""
    for _ in range(times):
        yield lock(m.owner[held], me + 1)
        yield store(m.owner[held], 0)
        yield from try_for_a_moment(m, me, wanted)
    yield store(m.ended[me], 1)


def hold_and_try(m, me, held, wanted):
    """Take a lock, and wait for another one with a timeout."""
    yield lock(m.owner[held], me + 1)
    yield from try_for_a_moment(m, me, wanted)
    yield store(m.owner[held], 0)
    yield store(m.ended[me], 1)


def hold(m, me, held):
    """Take a lock, and release it."""
    yield lock(m.owner[held], me + 1)
    yield store(m.owner[held], 0)
    yield store(m.ended[me], 1)


def try_for_a_moment(m, me, wanted):
    yield from say(m, me, wanted, 0)
    taken = yield cas(m.owner[wanted], 0, me + 1)
    yield store(m.waits[me], 0)
    if taken:
        yield store(m.owner[wanted], 0)


def say(m, me, wanted, endless):
    """Say which lock this thread waits for, with the next number."""
    yield lock(m.numbering, me + 1)
    number = yield load(m.number)
    yield store(m.number, number + 1)
    yield store(m.waits[me], (number + 1) * WAIT + endless + wanted + 1)
    yield store(m.numbering, 0)


def circle_find(m, me, wanted):
    """Return whether this wait is one of a circle, and is the one to be given up."""
    first = yield from circle_look(m, me, wanted)
    if not first:
        return False
    if m.does("a thread looks twice before it reports a circle"):
        second = yield from circle_look(m, me, wanted)
        if not same(m, first, second):
            return False
        del second
    if m.does("the thread whose wait began last is told"):
        mine = yield load(m.waits[me])
        return all(mine > wait for _, wait in first if wait % WAIT > ENDLESS)
    return True


def circle_look(m, me, wanted):
    """Go from the lock to its owner, from there to the lock for which the owner waits, and so on,
    until this thread is reached. Return the other threads on the way and their waits, or nothing if
    the way does not lead to this thread."""
    found = ()
    at = wanted
    for _ in range(len(m.waits)):
        owner = yield load(m.owner[at])
        if owner == me + 1:
            return found
        if owner == 0:
            return ()
        word = yield load(m.waits[owner - 1])
        if word == 0:
            return ()
        found = (*found, (owner, word))
        at = word % ENDLESS - 1
        del owner, word
    return ()


def same(m, first, second):
    """Return whether two looks found the same waits."""
    if m.does("a wait is recognized by its number"):
        return first == second
    return [(owner, word % WAIT) for owner, word in first] == [
        (owner, word % WAIT) for owner, word in second
    ]
