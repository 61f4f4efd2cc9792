"""Sections: an element held LOCKED for as long as its owner likes (R1, R2, W1, C1).

Models section.pxd. While a section is open, readers read the value and other writers wait; a delete
of the element cuts the section off, and the owner's compare-and-swap then finds another header. The
end of a section searches for the key again, because the element may be in use for another key.
"""

from support.protocol.automaton import begin, cas, end, store
from support.protocol.oracle import ABSENT, RETRY
from support.protocol.reading import map_find
from support.protocol.segment_model import LIVE, LOCKED, UPD
from support.protocol.writing import delete_held, element_hold, redo_apply, redo_fill


def section(m, me, key, value):
    """Open a section, and commit this value."""
    yield begin("replace", key, value)
    index, held = yield from section_open(m, me, key)
    outcome = "ABSENT"
    if index:
        outcome = yield from section_commit(m, me, key, index, held, value)
    yield end(outcome)


def section_abandoned(m, me, key):
    """Open a section, and leave the value as it was."""
    yield begin("settle")
    index, held = yield from section_open(m, me, key)
    found = ABSENT
    if index:
        found = yield from section_find(m, key, index, held)
    if found != ABSENT:
        yield cas(m.element[index], held, m.header_after(held, LIVE))
    yield end()


def section_removed(m, me, key):
    """Open a section, and delete the key."""
    yield begin("delete", key)
    index, held = yield from section_open(m, me, key)
    outcome = "ABSENT"
    if index:
        outcome = yield from delete_held(m, me, key, held)
    yield end(outcome)


def section_open(m, me, key):
    """Lock the element of a key: its index, and its header as LOCKED; or (0, 0)."""
    while True:
        found = yield from map_find(m, key)
        if found == ABSENT:
            return 0, 0
        if found != RETRY:
            held = yield from element_hold(m, me, found, LOCKED)
            if held != RETRY:
                return found[0], held


def section_find(m, key, index, held):
    """Search for the key again: what is found if that is the section's element, else ABSENT."""
    found = RETRY
    while found == RETRY:
        found = yield from map_find(m, key)
    return found if found != ABSENT and found[:2] == (index, held) else ABSENT


def section_commit(m, me, key, index, held, value):
    """Store value and end the section; ABSENT if the key was deleted since the section opened."""
    found = yield from section_find(m, key, index, held)
    if found == ABSENT:
        return "ABSENT"
    yield from redo_fill(m, me, value)
    committed = m.header_after(held, UPD, me)
    if m.keeps("a section is committed by a compare-and-swap"):
        done = yield cas(m.element[index], held, committed)
        if not done:
            return "ABSENT"
    else:
        yield store(m.element[index], committed)
    yield from redo_apply(m, me, index)
    yield store(m.element[index], m.header_after(committed, LIVE))
    return "OK"
