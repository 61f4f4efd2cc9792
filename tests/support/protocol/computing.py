"""Claims: one process computes a value for all processes that ask for it (claiming.pxi).

The memory is a tuple of small words. Each key has one place for an element. Each program is a
process with one context, and the program's number is the context's. A claim is a section on the
key's element. The model of an element is its header, its value, and its deadline, of which it only
says whether it has passed. A blank is LIVE, and its deadline has passed. The header never has the
same value twice.

The value that a program computes is the number of changes of a source. A program that changes the
source deletes the key afterwards: from then on no program may find an earlier result. A waiter here
looks at the owner only when the wait begins and when the owner dies, while a waiter of the core
also looks at the end of each slice. So the model finds a lost wake-up, which the core would repair.
"""

from support.protocol.automaton import awaits, cas, futex_sleep, futex_wake, load, store
from support.protocol.oracle import Violation
from support.protocol.words import Words

NONE, LIVE, LOCKED, UPD = range(4)
PASSED, AHEAD = range(2)  # the deadline's two states
STEPS_MAX = 4
STALE = "a result from before the key was deleted was found"


class Entries(Words):
    """The words of the keys, and of the contexts. without: the steps that a mutant leaves out."""

    keys = 2

    def __init__(self, programs, without=()):
        super().__init__(without)
        keys, contexts = range(self.keys), range(programs)
        self.header = [self._word(f"header of {key}") for key in keys]
        self.deadline = [self._word(f"deadline of {key}") for key in keys]
        self.value = [self._word(f"value of {key}") for key in keys]
        self.source = [self._word(f"source of {key}") for key in keys]
        self.deleted = [self._word(f"changes until the last deletion of {key}") for key in keys]
        self.computed = [
            [self._word(f"computations of {key} by {me}") for me in contexts] for key in keys
        ]
        self.reasons = [self._word(f"reasons that {me} gave to compute again") for me in contexts]
        self.redo = [self._word(f"redo buffer of {me}") for me in contexts]
        self.waits = [self._word(f"what {me} waits for") for me in contexts]
        self.owns = [self._word(f"claims of {me}") for me in contexts]
        self.asleep = [self._word(f"sleep of {me}") for me in contexts]
        self.ended = [self._word(f"end of {me}") for me in contexts]
        self.recovered = [self._word(f"recovery of {me}") for me in contexts]


def state_of(header):
    return header % 4


def owner_of(header):
    return header // 4 % 8


def header_after(header, state, owner=0):
    """Return the header with the next version, in this state."""
    return (header // 32 + 1) * 32 + owner * 4 + state


# ---- a process that asks for a value ----


def ask(m, me, key, needs=None, fails=False, timeouts=0):
    """Play get_or_compute(key), whose computation may need another key, or may fail. timeouts: how
    many waits may end by their timeout, which happens at any moment."""
    yield store(m.waits[me], 1)  # what an earlier use of the context has left there
    yield from get_or_compute(m, me, key, needs, fails, timeouts)
    yield store(m.ended[me], 1)


def get_or_compute(m, me, key, needs, fails, timeouts):
    asked = yield load(m.deleted[key])
    while True:
        held = yield from claim(m, me, key, timeouts)
        if held != 0:
            break
        found = yield from look(m, key)
        if found:
            expect_fresh(found - 1, asked)
            return
        del held, found
    result = yield from compute(m, me, key, needs)
    expect_fresh(result, asked)
    if held is None:
        return
    if not fails:
        yield from claim_store(m, me, key, held, result + 1)
        return
    yield from count(m.reasons[me])
    yield from claim_end(m, me, key)
    freed = yield cas(m.header[key], held, header_after(held, LIVE))
    if freed and m.does("a process that gives up its claim wakes the waiters"):
        yield futex_wake(m.header[key])


def expect_fresh(result, asked):
    if result < asked:
        raise Violation(STALE)


def compute(m, me, key, needs):
    """Count the computation, read the source, and ask for the key that the result needs."""
    yield from count(m.computed[key][me])
    result = yield load(m.source[key])
    if needs is not None:
        yield from get_or_compute(m, me, needs, None, False, 0)
    return result


def look(m, key):
    """Look the key up; return the value plus one, or 0 if the key is absent."""
    while True:
        header = yield load(m.header[key])
        if state_of(header) == NONE:
            return 0
        deadline, value = PASSED, 0
        if state_of(header) == UPD:
            value = yield load(m.redo[owner_of(header)])
            deadline = AHEAD
        else:
            deadline = yield load(m.deadline[key])
            value = yield load(m.value[key])
        again = yield load(m.header[key])
        if again == header:
            if deadline == PASSED:
                return 0
            if not value:
                raise Violation("a value was found that nobody computed")
            return value
        del header, deadline, value, again


def count(word):
    number = yield load(word)
    yield store(word, number + 1)


def claim(m, me, key, timeouts):
    """Claim the key, and return the header of the claim; 0 if the key has a value, None if the
    value is to be computed without a claim."""
    while True:
        header = yield load(m.header[key])
        if header % 32 == NONE:
            yield from blank_insert(m, me, key, header)
        elif state_of(header) in (NONE, UPD):
            yield awaits("changed", (m.header[key], header))
        else:
            deadline = yield load(m.deadline[key])
            again = yield load(m.header[key])
            if again == header and deadline == AHEAD:
                return 0
            if again == header and state_of(header) == LIVE:
                held = yield from claim_take(m, me, key, header)
                if held:
                    return held
                del held
            elif again == header:
                circular = yield from leads_here(m, me, key, header)
                if circular:
                    return None
                yield from claim_wait(m, me, key, header, timeouts)
                timeouts = 0
                del circular
            del deadline, again
        del header


def blank_insert(m, me, key, header):
    """Insert an entry whose deadline has passed. What is NONE and has an owner is a locked bucket
    that has no such key."""
    locked = header_after(header, NONE, me)
    done = yield cas(m.header[key], header, locked)
    if done:
        yield store(m.deadline[key], PASSED)
        yield store(m.value[key], 0)
        yield store(m.header[key], header_after(locked, LIVE))


def claim_take(m, me, key, header):
    """Change LIVE to LOCKED; return the header, or 0."""
    held = header_after(header, LOCKED, me)
    early = m.does("a context clears what it waited for before it claims")
    if early:
        yield store(m.waits[me], 0)
    if m.does("a key is claimed by a compare-and-swap"):
        done = yield cas(m.header[key], header, held)
    else:
        yield store(m.header[key], held)
        done = True
    if not done:
        return 0
    if not early:
        yield store(m.waits[me], 0)
    owned = yield load(m.owns[me])
    yield store(m.owns[me], owned + 1)
    return held


def leads_here(m, me, key, header):
    """Say what this program waits for; return whether the owner of that waits for this program."""
    owned = yield load(m.owns[me])
    if not owned:
        return False
    early = m.does("a waiter says what it waits for before it checks the owner")
    if early:
        yield store(m.waits[me], key + 1)
    circular = False
    for _ in range(
        STEPS_MAX if m.does("a waiter checks whether the claim's owner waits for it") else 0
    ):
        if state_of(header) != LOCKED:
            break
        if owner_of(header) == me:
            circular = True
            break
        at = yield load(m.waits[owner_of(header)])
        if not 0 < at <= m.keys:
            break
        header = yield load(m.header[at - 1])
        del at
    if not early:
        yield store(m.waits[me], key + 1)
    return circular


def claim_wait(m, me, key, header, timeouts):
    """Sleep until the claim ends; or cut the claim off, if a timeout may end the wait."""
    if timeouts:
        if m.does("a waiter cuts off only the claim that it waited for"):
            done = yield cas(m.header[key], header, header_after(header, NONE))
        else:
            now = yield load(m.header[key])
            done = yield cas(m.header[key], now, header_after(now, NONE))
        if done:
            yield futex_wake(m.header[key])
            yield from count(m.reasons[me])
        return
    sleeps = yield futex_sleep(m.header[key], header, m.asleep[me])
    if sleeps:
        yield awaits("awake", me)


def claim_end(m, me, key):
    owned = yield load(m.owns[me])
    yield store(m.owns[me], owned - 1)
    yield store(m.waits[me], 0)


def claim_store(m, me, key, held, value):
    """Store the result and its deadline, unless the claim was cut off."""
    yield store(m.redo[me], value)
    if not m.does("a separate word says what a claim waits for"):
        yield store(m.waits[me], value)
    committed = header_after(held, UPD, me)
    if m.does("a result is stored by a compare-and-swap"):
        done = yield cas(m.header[key], held, committed)
    else:
        yield store(m.header[key], committed)
        done = True
    if done:
        yield from redo_apply(m, key, value)
        yield store(m.header[key], header_after(committed, LIVE))
        if m.does("a process that stores its result wakes the waiters"):
            yield futex_wake(m.header[key])
    yield from claim_end(m, me, key)


def redo_apply(m, key, value):
    yield store(m.deadline[key], AHEAD)
    yield store(m.value[key], value)


# ---- other programs ----


def change_source(m, me, key):
    """Change the source; then delete the key, even if another program has claimed it."""
    yield from count(m.source[key])
    changes = yield load(m.source[key])
    while True:
        header = yield load(m.header[key])
        claimed = state_of(header) == LOCKED
        if state_of(header) == NONE:
            break
        if claimed and not m.does("a deletion takes a claimed entry away"):
            break
        if state_of(header) == LIVE or claimed:
            done = yield cas(m.header[key], header, header_after(header, NONE))
            if done:
                yield from count(m.reasons[me])
                if m.does("a deletion wakes the waiters for a claim"):
                    yield futex_wake(m.header[key])
                break
            del done
        else:
            yield awaits("changed", (m.header[key], header))
        del header, claimed
    yield store(m.deleted[key], changes)
    yield store(m.ended[me], 1)


def evict(m, me, key):
    """An insertion that needs room: it evicts the entry if no program holds it."""
    header = yield load(m.header[key])
    if state_of(header) == LIVE or (
        state_of(header) == LOCKED and not m.does("a claimed entry is not evicted")
    ):
        done = yield cas(m.header[key], header, header_after(header, NONE))
        if done and state_of(header) == LIVE:
            yield from count(m.reasons[me])
        if done:
            yield futex_wake(m.header[key])
    yield store(m.ended[me], 1)


def recover(m, me, dead, key, after=None):
    """Recover a dead program, which may hold this key's element. after: an earlier recoverer, which
    has to be dead, too."""
    yield awaits("dead", dead)
    if after is not None:
        yield awaits("dead", after)
    header = yield load(m.header[key])
    if owner_of(header) == dead and state_of(header) == LOCKED:
        if m.does("recovery frees the claim of a dead process"):
            yield cas(m.header[key], header, header_after(header, LIVE))
    elif owner_of(header) == dead and state_of(header) == UPD:
        if m.does("recovery completes a result that was stored"):
            value = yield load(m.redo[dead])
            yield from redo_apply(m, key, value)
        yield store(m.header[key], header_after(header, LIVE))
    elif owner_of(header) == dead:
        yield store(m.header[key], header_after(header, NONE))
    if m.does("recovery wakes the waiters"):
        yield futex_wake(m.header[key])
    yield store(m.recovered[dead], 1)
