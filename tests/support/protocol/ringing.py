"""The ring: the keys of the last changes, for watchers of everything (map/ring.pxd).

The memory is a tuple of small words, as in meeting.py. Each program is a process with one context,
and the program's number is the context's. There are few keys, one bell, one class, and a ring of
one entry or two.
"""

from support.protocol.automaton import awaits, cas, futex_sleep, futex_wake, load, lock, store
from support.protocol.words import Words

LAP = 100  # a stamp is LAP * (number + 1) + holder + 1, or + 0


class RingCell(Words):
    """The words of the map and of the contexts. without: the steps that a mutant leaves out."""

    def __init__(self, programs, without=(), keys=2, entries=1):
        super().__init__(without)
        self.entries = entries
        self.lock = [self._word(f"lock of key {key}") for key in range(keys)]
        self.value = [self._word(f"value of key {key}") for key in range(keys)]
        self.view = [self._word(f"value of key {key}, as told") for key in range(keys)]
        self.waited = self._word("waited")
        self.waiting = [self._word(f"waiting of {me}") for me in range(programs)]
        self.next = self._word("next")
        self.losses = self._word("losses")
        self.stamp = [self._word(f"stamp {at}") for at in range(entries)]
        self.key = [
            [self._word(f"key {at}, {half} half") for half in (1, 2)] for at in range(entries)
        ]
        self.bell = self._word("bell")
        self.activity = [self._word(f"activity of {me}") for me in range(programs)]
        self.asleep = [self._word(f"sleep of {me}") for me in range(programs)]
        self.torn = self._word("a torn key was read")
        self.place = self._word("place of the watcher")
        self.told = self._word("losses that the watcher knows")


def add(word, number):
    """Add to a word in one step, and return the value before."""
    while True:
        seen = yield load(word)
        added = yield cas(word, seen, seen + number)
        if added:
            return seen
        del seen, added


# ---- writers ----


def writer(m, me, *keys):
    """Change each of these keys once."""
    for at in range(len(keys)):
        yield from change(m, me, keys[at])


def change(m, me, key):
    waited = 0
    if not m.does("a writer loads the word waited inside its operation"):
        waited = yield load(m.waited)
    yield store(m.activity[me], 1)
    yield lock(m.lock[key], me + 1)
    # The code looks after the commit, but on x86 the store of the commit may come later than the
    # look. Nothing comes before the CAS that takes the lock.
    if m.does("a writer loads the word waited inside its operation"):
        waited = yield load(m.waited)
    before = yield load(m.value[key])
    if not m.does("a writer notes its key after its commit"):
        yield from note(m, me, key)
    yield store(m.value[key], before + 1)
    yield store(m.lock[key], 0)
    del before
    if waited:
        if not m.does("a writer rings the bell after the note"):
            yield from ring(m)
        if m.does("a writer notes its key after its commit"):
            yield from note(m, me, key)
        if m.does("a writer rings the bell after the note"):
            yield from ring(m)
    yield store(m.activity[me], 0)


def note(m, me, key):
    number = yield from add(m.next, 1)
    at = number % m.entries
    seen = yield load(m.stamp[at])
    if seen > LAP * (number + 1):
        return
    if seen % LAP and m.does("a writer does not touch an entry that another holds"):
        return
    if m.does("an entry is held before its key is stored"):
        taken = yield cas(m.stamp[at], seen, LAP * (number + 1) + me + 1)
        if not taken:
            return
        del taken
    yield store(m.key[at][0], key + 1)
    yield store(m.key[at][1], key + 1)
    yield store(m.stamp[at], LAP * (number + 1))


def ring(m):
    yield from add(m.bell, 1)
    yield futex_wake(m.bell)


# ---- watchers ----


def watcher(m, me):
    """Keep a copy of the map."""
    yield store(m.waiting[me], 1)
    losses = 0
    if m.does("the losses are read before the bit is set"):
        losses = yield load(m.losses)
    seen = yield load(m.waited)
    if not seen:
        yield store(m.waited, 1)
    if not m.does("the losses are read before the bit is set"):
        losses = yield load(m.losses)
    place = yield load(m.next)
    del seen
    yield store(m.place, place)
    yield store(m.told, losses)
    if m.does("a watcher waits for the operations under way"):
        yield from wait_for_others(m, me)
    yield from look_at_all(m)
    while True:
        if m.does("a watcher sees that the bit is set"):
            yield store(m.waited, 1)
        armed = m.does("a watcher reads the bell before it looks")
        bell = 0
        if armed:
            bell = yield load(m.bell)
        told = yield load(m.losses)
        last = yield load(m.next)
        if told != losses:
            if m.does("a watcher sees that the bit is set"):
                yield store(m.waited, 1)
            if m.does("a watcher begins again at a loss"):
                yield from wait_for_others(m, me)
            place = yield from look_again(m, last)
            losses = told
            yield store(m.place, place)
            yield store(m.told, losses)
            del armed, bell, told, last
            continue
        if place != last:
            place = yield from read(m, place, last)
            yield store(m.place, place)
            del armed, bell, told, last
            continue
        if not armed:
            bell = yield load(m.bell)
        sleeps = yield futex_sleep(m.bell, bell, m.asleep[me])
        if sleeps:
            yield awaits("awake", me)
        del armed, bell, told, last, sleeps


def wait_for_others(m, me):
    for other in range(len(m.activity)):
        if other != me:
            yield awaits("outside", other)


def look_again(m, last):
    """Begin again after a loss, and return the next place."""
    yield from look_at_all(m)
    if not m.does("a watcher takes its place in the ring before it reads the map"):
        last = yield load(m.next)
    return last


def look_at_all(m):
    for key in range(len(m.value)):
        yield from look_at(m, key)


def look_at(m, key):
    value = yield load(m.value[key])
    yield store(m.view[key], value)


def read(m, place, last):
    """Read an entry, without waiting for its writer, and return the next place."""
    at = place % m.entries
    seen = yield load(m.stamp[at])
    fits = seen == LAP * (place + 1)
    if not m.does("a watcher compares the number in the stamp"):
        fits = seen % LAP == 0
    if fits:
        first = yield load(m.key[at][0])
        second = yield load(m.key[at][1])
        if m.does("a watcher loads the stamp again"):
            again = yield load(m.stamp[at])
            fits = again == seen
            del again
        if fits:
            if first != second or not first:
                yield store(m.torn, 1)
                return place + 1
            yield from look_at(m, first - 1)
            return place + 1
        del first, second
    if m.does("an entry that is not whole is a loss"):
        place = yield from look_again(m, last)
        return place
    return place + 1


def leaver(m, me, others):
    """A watcher ends: it clears the bit, and sets it again if another of the programs watches."""
    yield store(m.waiting[me], 1)
    yield store(m.waited, 1)
    yield store(m.activity[me], 1)
    yield store(m.waiting[me], 0)
    for at in range(len(others)):
        waits = yield load(m.waiting[others[at]])
        if waits:
            yield store(m.activity[me], 0)
            return
        del waits
    yield store(m.waited, 0)
    for at in range(len(others)):
        waits = yield load(m.waiting[others[at]])
        if waits and m.does("a process that clears the bit looks again"):
            yield store(m.waited, 1)
            if m.does("a process that sets the bit again counts a loss"):
                yield from add(m.losses, 1)
            yield from ring(m)
        del waits
    yield store(m.activity[me], 0)


# ---- recovery ----


def recover(m, me, dead, after=None):
    """Recover a dead program, if it died inside an operation. after: an earlier recoverer, which
    has to be dead, too."""
    yield awaits("dead", dead)
    if after is not None:
        yield awaits("dead", after)
    for key in range(len(m.lock)):
        yield cas(m.lock[key], dead + 1, 0)
    inside = yield load(m.activity[dead])
    if not inside:
        return
    if not m.does("a loss is counted before the context is free"):
        yield store(m.activity[dead], 0)
    for at in range(m.entries):
        seen = yield load(m.stamp[at])
        if seen % LAP == dead + 1:
            yield store(m.stamp[at], 0)
        del seen
    if m.does("recovery counts a loss"):
        yield from add(m.losses, 1)
    yield store(m.activity[dead], 0)
    yield from ring(m)
