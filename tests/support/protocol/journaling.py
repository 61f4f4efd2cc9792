"""Several sections that end in one step: the journal (R2, W1, C1, L1).

Models journal.pxd. Each section is a member of the journal and has a context of its own; the
context's word target names the member's element and the lead, the context of the last member.
Every member holds its element ULOCK, so that not even a deletion can cut it off; then one store,
of COMMITTED into the lead's word, commits all members. Recovery takes the lead last, so its word
stands until every member is done.
"""

from support.protocol.automaton import begin, cas, end, load, own, put, store
from support.protocol.oracle import ABSENT, RETRY
from support.protocol.sections import section_find, section_open
from support.protocol.segment_model import (
    JOURNAL_COMMITTED,
    LIVE,
    ULOCK,
    UPD,
    journal_note,
)
from support.protocol.writing import delete_held, redo_apply, redo_fill


def several(m, me, *changes):
    """Lock these keys, and end with their new values (0: the key is deleted) in one step. The
    sections run as the contexts me, me + 1, and so on."""
    yield begin("several", 0, changes)
    members, missed = yield from sections_open(m, me, changes)
    outcome = "ABSENT"
    if not missed:
        outcome = yield from journal_end(m, me, changes, members)
    if outcome != "OK":
        yield from sections_abandon(m, changes, members)
    yield end(outcome)


def several_seen(m, me, *keys):
    """Lock these keys, and look at their values."""
    changes = tuple((key, 0) for key in keys)
    yield begin("seen together", 0, keys)
    members, missed = yield from sections_open(m, me, changes)
    values = ()
    for at in range(len(members)):
        value = yield load(m.value(members[at][1], 0))
        found = yield from section_find(m, keys[at], members[at][1], members[at][2])
        missed = missed or found == ABSENT
        values += (value,)
    yield from sections_abandon(m, changes, members)
    yield end(None if missed else values)


def sections_open(m, me, changes):
    """Lock the keys in order: (context, element, header) of each, and whether one was absent."""
    members = ()
    for at in range(len(changes)):
        index, held = yield from section_open(m, me + at, changes[at][0])
        if not index:
            return members, True
        members += ((me + at, index, held),)
    return members, False


def sections_abandon(m, changes, members):
    for at in range(len(members)):
        found = yield from section_find(m, changes[at][0], members[at][1], members[at][2])
        if found != ABSENT:
            yield cas(m.element[members[at][1]], members[at][2], m.header_after(found[1], LIVE))


def journal_end(m, me, changes, members):
    """Commit all members and end their sections; return OK. Return ABSENT if a key was deleted
    since it was locked: then nothing is stored, and the other sections are as before."""
    order = in_order(changes)
    lead = me + order[-1]
    late = not m.keeps("a journal is committed after its redo buffers are filled")
    for at in range(len(changes)):
        found = RETRY
        while found == RETRY:
            found = yield from section_find(m, changes[at][0], members[at][1], members[at][2])
        if found == ABSENT:
            return "ABSENT"
        if not late:
            yield from redo_fill(m, me + at, changes[at][1])
    held = yield from journal_hold(m, me, changes, members, lead)
    if held is None:
        return "ABSENT"
    if m.keeps("a journal is committed after its elements are held"):
        yield from journal_commit(m, lead)
    if late:
        for at in range(len(changes)):
            yield from redo_fill(m, me + at, changes[at][1])
    for at in range(len(order)):
        yield from member_apply(m, me + order[at], *changes[order[at]], held[order[at]], lead)
    yield put(m.of(lead, "target"), 0)
    return "OK"


def in_order(changes):
    """The members in the order in which they are applied: the last one is the lead. Those that
    delete come last, because they wait for buckets."""
    stores = tuple(at for at in range(len(changes)) if changes[at][1])
    return stores + tuple(at for at in range(len(changes)) if not changes[at][1])


def journal_hold(m, me, changes, members, lead):
    """LOCKED -> ULOCK of every member: (element, header) of each; or None, and all are LOCKED."""
    held = ()
    for at in range(len(members)):
        context, index, header = members[at]
        note = journal_note(index, lead, not changes[at][1])
        named = m.keeps("a member is noted before the commit")
        if named:
            yield put(m.of(context, "target"), note)
        if context == lead and not m.keeps("a journal is committed after its elements are held"):
            yield from journal_commit(m, lead)
        after = m.header_after(header, ULOCK, context)
        if m.keeps("a journal holds its elements, so that no deletion cuts them off"):
            done = yield cas(m.element[index], header, after)
        else:
            after, done = header, True
        if not done:
            for before in range(len(held)):
                yield put(m.of(me + before, "target"), held[before][0])
                # In the code the section goes on with the new header; here it is over.
                yield store(m.element[held[before][0]], m.header_after(held[before][1], LIVE))
            return None
        held += ((index, after),)
    return held


def journal_commit(m, lead):
    word = yield own(m.of(lead, "target"))
    yield store(m.of(lead, "target"), word | JOURNAL_COMMITTED)


def member_apply(m, me, key, value, held, lead):
    """Copy the value of one member of a committed journal into its element."""
    index, header = held
    if not m.keeps("the lead's word stands until every member is applied"):
        yield put(m.of(lead, "target"), 0)
    if value:
        committed = m.header_after(header, UPD, me)
        if m.keeps("a journal holds its elements, so that no deletion cuts them off"):
            yield store(m.element[index], committed)
        else:
            yield cas(m.element[index], header, committed)
        yield from redo_apply(m, me, index)
        yield store(m.element[index], m.header_after(committed, LIVE))
    else:
        yield from delete_held(m, me, key, header)
    if me != lead:
        yield put(m.of(me, "target"), index)


def member_committed(m, me):
    """Return whether the context is a member of a committed journal, which the word of its lead
    says."""
    word = yield own(m.of(me, "target"))
    lead = word >> 4 & 15
    if not lead:
        return False
    if not m.keeps("recovery asks the lead whether the journal is committed"):
        return True
    leading = yield own(m.of(lead, "target"))
    return bool(leading & JOURNAL_COMMITTED) and leading >> 4 & 15 == lead
