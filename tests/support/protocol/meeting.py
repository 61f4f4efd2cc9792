"""Conditions and barriers: threads that meet in a cell (cells/condition.pxd, cells/barrier.pxd).

The memory is a tuple of small words. There is one cell. Each program is a process with one context,
and the program's number is the context's.
"""

from support.protocol.automaton import awaits, cas, futex_sleep, futex_wake, load, lock, store
from support.protocol.words import Words

NOTHING, WAITING, TOLD, BREAK = range(4)
RETURNED, TIMED_OUT, PASSED, BROKE = range(1, 5)


class Cell(Words):
    """The words of the cell and of the contexts. without: the steps that a mutant leaves out."""

    def __init__(self, programs, without=()):
        super().__init__(without)
        self.lock = self._word("lock")  # the lock of a condition; the lock bit of a barrier's word
        self.tickets = self._word("tickets")
        self.notified = self._word("notifications")
        self.state = self._word("generation, broken, come")
        self.bell = self._word("bell")
        self.word = [self._word(f"word of {me}") for me in range(programs)]
        self.asleep = [self._word(f"sleep of {me}") for me in range(programs)]
        self.result = [self._word(f"result of {me}") for me in range(programs)]
        self.recovered = [self._word(f"recovery of {me}") for me in range(programs)]


# ---- conditions ----


def condition_wait(m, me, gives_up=False):
    """Wait under the lock until told. gives_up: the wait may also end at any moment."""
    yield lock(m.lock, me + 1)
    tickets = yield load(m.tickets)
    yield store(m.tickets, tickets + 1)
    del tickets
    if m.does("a waiter stores its word before it releases the lock"):
        yield store(m.word[me], WAITING)
        yield store(m.lock, 0)
    else:
        yield store(m.lock, 0)
        yield store(m.word[me], WAITING)
    if gives_up:
        told = yield from condition_leave(m, me)
        yield store(m.result[me], RETURNED if told else TIMED_OUT)
        return
    while True:
        seen = yield load(m.word[me])
        if seen == TOLD:
            break
        sleeps = yield futex_sleep(m.word[me], seen, m.asleep[me])
        if sleeps:
            yield awaits("awake", me)
        del seen, sleeps
    yield lock(m.lock, me + 1)
    yield store(m.result[me], RETURNED)
    yield store(m.word[me], NOTHING)
    yield store(m.lock, 0)


def condition_leave(m, me):
    """Return whether this waiter had been told."""
    seen = yield load(m.word[me])
    if seen == TOLD:
        yield store(m.word[me], NOTHING)
        return True
    if not m.does("a waiter leaves by a CAS"):
        yield store(m.word[me], NOTHING)
        return False
    left = yield cas(m.word[me], WAITING, NOTHING)
    if not left:
        yield store(m.word[me], NOTHING)
    return not left


def condition_notify(m, me, tickets):
    """Take the lock when this many tickets have been given, and tell a waiter."""
    yield awaits("tickets", tickets)
    yield lock(m.lock, me + 1)
    yield from condition_tell_one(m)
    count = yield load(m.notified)
    yield store(m.notified, count + 1)
    yield store(m.lock, 0)


def condition_tell_one(m):
    """Tell the first context that is WAITING; return whether there is one."""
    for at in range(len(m.word)):
        seen = yield load(m.word[at])
        if seen != WAITING:
            continue
        if not m.does("a waiter is told before it is woken"):
            yield futex_wake(m.word[at])
        if m.does("a waiter is told by a CAS"):
            told = yield cas(m.word[at], WAITING, TOLD)
        else:
            yield store(m.word[at], TOLD)
            told = True
        if told:
            if m.does("a waiter is told before it is woken"):
                yield futex_wake(m.word[at])
            return True
        del told
    return False


def condition_recover(m, me, dead, after=None):
    """Recover a dead program: free its lock, and pass on a notification that it had. after: an
    earlier recoverer, which has to be dead, too."""
    yield awaits("dead", dead)
    if after is not None:
        yield awaits("dead", after)
    left = False
    seen = yield load(m.word[dead])
    if seen == WAITING:
        if m.does("recovery ends a wait by a CAS"):
            left = yield cas(m.word[dead], WAITING, NOTHING)
        else:
            yield store(m.word[dead], NOTHING)
            left = True
    if not left:
        seen = yield load(m.word[dead])
        if seen == TOLD:
            if m.does("recovery tells the next waiter"):
                yield from condition_tell_one(m)
            yield store(m.word[dead], NOTHING)
    yield cas(m.lock, dead + 1, 0)
    yield store(m.recovered[dead], 1)


# ---- barriers: m.state is generation * 100 + broken * 10 + come ----


def barrier_wait(m, me, parties, gives_up=False):
    """Come, and wait for the others. gives_up: the party may break the barrier at any moment."""
    yield lock(m.lock, me + 1)
    state = yield load(m.state)
    if state // 10 % 10:
        yield store(m.lock, 0)
        yield store(m.result[me], BROKE)
        return
    mine = 10 * (state // 100) + WAITING
    if m.does("a party stores its word before it has come"):
        yield store(m.word[me], mine)
        yield from commit(m, state + 1)
    else:
        yield from commit(m, state + 1)
        yield store(m.word[me], mine)
    if state % 10 + 1 == parties:
        outcome = yield from barrier_pass(m, me)
    elif gives_up:
        outcome = yield from barrier_give_up(m, me)
    else:
        outcome = yield from barrier_sleep(m, me)
    yield store(m.word[me], NOTHING)
    yield store(m.result[me], 10 * (state // 100) + outcome)


def commit(m, state):
    """Store the next word of the cell, and unlock it: in the core, one step."""
    yield store(m.state, state)
    yield store(m.lock, 0)


def ring(m):
    """Change the bell's number and wake its sleepers."""
    number = yield load(m.bell)
    yield store(m.bell, number + 1)
    yield futex_wake(m.bell)


def barrier_pass(m, me):
    """The last party has come: let all parties go on."""
    yield lock(m.lock, me + 1)
    word = yield load(m.word[me])
    if word % 10 == BREAK:
        yield store(m.lock, 0)
        return BROKE
    yield from commit(m, 100 * (word // 10 + 1))
    yield from ring(m)
    return PASSED


def barrier_mark(m, generation):
    """Under the lock bit, tell the waiters of this generation that the barrier breaks."""
    for at in range(len(m.word)):
        word = yield load(m.word[at])
        if word % 10 == WAITING and (
            word // 10 == generation or not m.does("a party breaks only its own generation")
        ):
            yield cas(m.word[at], word, word - WAITING + BREAK)
        del word


def barrier_give_up(m, me):
    """Break the barrier, unless all parties have come."""
    yield lock(m.lock, me + 1)
    word = yield load(m.word[me])
    state = yield load(m.state)
    if word % 10 == BREAK:
        yield store(m.lock, 0)
        return BROKE
    if word // 10 != state // 100 and m.does("a party that gives up checks whether all have come"):
        yield store(m.lock, 0)
        return PASSED
    yield from barrier_mark(m, state // 100)
    yield from commit(m, 100 * (state // 100) + 10)
    yield from ring(m)
    return BROKE


def barrier_reset(m, me):
    """Break the barrier for the parties that wait, and begin the next generation."""
    yield lock(m.lock, me + 1)
    state = yield load(m.state)
    if m.does("waiters are marked before the generation changes"):
        yield from barrier_mark(m, state // 100)
        yield from commit(m, 100 * (state // 100 + 1))
    else:
        yield store(m.state, 100 * (state // 100 + 1))
        yield from barrier_mark(m, state // 100)
        yield store(m.lock, 0)
    yield from ring(m)
    yield store(m.result[me], RETURNED)


def barrier_sleep(m, me):
    """Wait until all parties have come, or the barrier breaks."""
    while True:
        armed = m.does("a waiter reads the bell before it looks")
        bell = 0
        if armed:
            bell = yield load(m.bell)
        if m.does("a waiter looks at its own word last"):
            state = yield load(m.state)
            word = yield load(m.word[me])
        else:
            word = yield load(m.word[me])
            state = yield load(m.state)
        if word % 10 == BREAK:
            return BROKE
        if word // 10 != state // 100:
            return PASSED
        if not armed:
            bell = yield load(m.bell)
        sleeps = yield futex_sleep(m.bell, bell, m.asleep[me])
        if sleeps:
            yield awaits("awake", me)
        del armed, bell, state, word, sleeps


def barrier_recover(m, me, dead, after=None):
    """Recover a dead party, under its number. after: as for condition_recover."""
    yield awaits("dead", dead)
    if after is not None:
        yield awaits("dead", after)
    held = yield load(m.lock)
    word = yield load(m.word[dead])
    state = yield load(m.state)
    breaks = m.does("the recovery of a waiting party breaks the barrier")
    if held == dead + 1:
        if word % 10 == WAITING and word // 10 != state // 100:
            yield store(m.lock, 0)
        else:
            yield from barrier_mark(m, state // 100)
            yield from commit(m, 100 * (state // 100) + 10)
    elif word % 10 == WAITING and word // 10 == state // 100 and breaks:
        yield from barrier_give_up(m, dead)
    yield from ring(m)
    yield store(m.word[dead], NOTHING)
    yield store(m.recovered[dead], 1)
