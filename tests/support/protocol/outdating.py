"""Births: one store makes the values of a cache outdated (births.pxd), while other programs look
values up, compute and store them.

The memory is as in computing.py: a cache with one key, whose element has a header, a value and a
birth, and for each context a redo buffer for both. A value of 0 is a blank, and a reader that finds
it takes the key for absent. The value that a program computes is the number of changes of a source,
plus one. An invalidation changes the source first, and acknowledges the change when the
invalidation has ended: from then on no program may find an earlier result, and what is stored
afterwards has to be found.
"""

from support.protocol.automaton import awaits, cas, load, store
from support.protocol.computing import (
    LIVE,
    LOCKED,
    NONE,
    UPD,
    Entries,
    header_after,
    owner_of,
    state_of,
)
from support.protocol.oracle import Violation

OUTDATED = "a result from before an invalidation was found"
LOST = "a value that was stored after the last invalidation is not found"


class Births(Entries):
    """The words of one key, and of the invalidations. without: as for Entries."""

    keys = 1

    def __init__(self, programs, without=()):
        super().__init__(programs, without)
        self.birth = self._word("birth of the value")
        self.invalidations = self._word("number of invalidations")
        self.cleared = self._word("number of the last invalidation of everything")
        self.acknowledged = self._word("changes that an invalidation followed")
        self.redo_birth = [
            self._word(f"birth in the redo buffer of {me}") for me in range(programs)
        ]


def ask(m, me, hangs=False):
    """Play get_or_compute(). hangs: the computation never ends, but the program says that it
    began."""
    asked = yield load(m.acknowledged)
    while True:
        found = yield from look(m)
        if found:
            expect_fresh(found - 1, asked)
            break
        birth = yield load(m.invalidations)
        held = yield from claim(m, me, birth)
        if held:
            if hangs:
                yield store(m.ended[me], 1)
                yield awaits("dead", me)
            result = yield from compute(m, me)
            expect_fresh(result, asked)
            if not m.does("the birth is loaded before the computation begins"):
                birth = yield load(m.invalidations)
            yield from claim_store(m, me, held, result + 1, birth)
            break
        del birth, held, found
    yield store(m.ended[me], 1)


def read(m, me):
    """Play get()."""
    asked = yield load(m.acknowledged)
    found = yield from look(m)
    if found:
        expect_fresh(found - 1, asked)
    yield store(m.ended[me], 1)


def expect_fresh(result, asked):
    if result < asked:
        raise Violation(OUTDATED)


def compute(m, me):
    number = yield load(m.computed[0][me])
    yield store(m.computed[0][me], number + 1)
    result = yield load(m.source[0])
    return result


def look(m):
    """Look the key up; return the value, or 0 if the key is absent or outdated."""
    while True:
        header = yield load(m.header[0])
        if state_of(header) == NONE:
            return 0
        if state_of(header) == UPD:
            value = yield load(m.redo[owner_of(header)])
            birth = yield load(m.redo_birth[owner_of(header)])
        else:
            value = yield load(m.value[0])
            birth = yield load(m.birth)
        cleared = yield load(m.cleared)
        again = yield load(m.header[0])
        if again == header:
            if birth < cleared and m.does("a reader compares the birth"):
                return 0
            return value
        del header, value, birth, cleared, again


def claim(m, me, birth):
    """Claim the key, and return the header of the claim, or 0 to look again."""
    header = yield load(m.header[0])
    if state_of(header) == UPD or (state_of(header) == NONE and owner_of(header)):
        yield awaits("changed", (m.header[0], header))
        return 0
    if state_of(header) == NONE:
        yield from blank_insert(m, me, header, birth)
        return 0
    value = yield load(m.value[0])
    born = yield load(m.birth)
    cleared = yield load(m.cleared)
    again = yield load(m.header[0])
    if again != header:
        return 0
    if born < cleared and (
        m.does("a claim from before an invalidation is cut off")
        if state_of(header) == LOCKED
        else m.does("an outdated value is deleted before its key is claimed")
    ):
        yield cas(m.header[0], header, header_after(header, NONE))
        return 0
    if state_of(header) == LOCKED:
        yield awaits("changed", (m.header[0], header))
        return 0
    if value and born >= cleared:
        return 0
    held = header_after(header, LOCKED, me)
    done = yield cas(m.header[0], header, held)
    return held if done else 0


def blank_insert(m, me, header, birth):
    locked = header_after(header, NONE, me)
    done = yield cas(m.header[0], header, locked)
    if done:
        yield store(m.value[0], 0)
        yield store(m.birth, birth)
        yield store(m.header[0], header_after(locked, LIVE))


def claim_store(m, me, held, value, birth):
    """Store the result and its birth, unless the claim was cut off."""
    yield store(m.redo[me], value)
    yield store(m.redo_birth[me], birth)
    committed = header_after(held, UPD, me)
    done = yield cas(m.header[0], held, committed)
    if done:
        yield store(m.value[0], value)
        yield store(m.birth, birth)
        yield store(m.header[0], header_after(committed, LIVE))


def put(m, me):
    """set() to the number of the source, which is read after the call begins: LIVE -> UPD -> LIVE
    if the key has an element, else an insertion."""
    birth = yield load(m.invalidations)
    value = yield load(m.source[0])
    while True:
        header = yield load(m.header[0])
        if state_of(header) == LIVE:
            yield store(m.redo[me], value + 1)
            yield store(m.redo_birth[me], birth)
            if not m.does("the birth changes by the commit of its value"):
                yield store(m.birth, birth)
            held = header_after(header, UPD, me)
            done = yield cas(m.header[0], header, held)
            if done:
                yield store(m.value[0], value + 1)
                yield store(m.birth, birth)
                yield store(m.header[0], header_after(held, LIVE))
                break
            del held, done
        elif header % 32 == NONE:
            locked = header_after(header, NONE, me)
            done = yield cas(m.header[0], header, locked)
            if done:
                yield store(m.value[0], value + 1)
                yield store(m.birth, birth)
                yield store(m.header[0], header_after(locked, LIVE))
                break
            del locked, done
        elif state_of(header) == LOCKED:
            yield cas(m.header[0], header, header_after(header, NONE))
        else:
            yield awaits("changed", (m.header[0], header))
        del header
    yield store(m.ended[me], 1)


def invalidate(m, me):
    """Change the source, invalidate everything, and acknowledge the change."""
    changes = yield from raised(m.source[0])
    number = 1
    if m.does("an invalidation takes a number"):
        number = yield from raised(m.invalidations)
    while True:
        seen = yield load(m.cleared)
        if seen >= number and m.does("the number of the last invalidation never falls"):
            break
        done = yield cas(m.cleared, seen, number)
        if done:
            break
        del seen, done
    while True:
        seen = yield load(m.acknowledged)
        if seen >= changes:
            break
        done = yield cas(m.acknowledged, seen, changes)
        if done:
            break
        del seen, done
    yield store(m.ended[me], 1)


def raised(word):
    """Add one, in one step, and return the sum."""
    while True:
        seen = yield load(word)
        done = yield cas(word, seen, seen + 1)
        if done:
            return seen + 1
        del seen, done


def then(m, me, before, program, *arguments):
    """Play a program that begins when another one has ended."""
    yield awaits("ended", before)
    yield from program(m, me, *arguments)


def recover(m, me, dead):
    """Recover a dead context."""
    yield awaits("dead", dead)
    header = yield load(m.header[0])
    if owner_of(header) == dead and state_of(header) == LOCKED:
        yield cas(m.header[0], header, header_after(header, LIVE))
    elif owner_of(header) == dead and state_of(header) == UPD:
        value = yield load(m.redo[dead])
        yield store(m.value[0], value)
        if m.does("recovery completes the birth with the value"):
            birth = yield load(m.redo_birth[dead])
            yield store(m.birth, birth)
        yield store(m.header[0], header_after(header, LIVE))
    elif owner_of(header) == dead:
        yield store(m.header[0], header_after(header, NONE))
    yield store(m.recovered[dead], 1)
