"""Chains: appending and removing references in a bucket that the program holds (W1, C1).

Models chain.pxd. Only the holder of a bucket changes its slots, so its loads are OWN; but readers
load the slots at any time, so each store to a slot is a step of its own. Readers rely on this:

- the store of the index fills a slot; the tag is stored and the element is LIVE before that store;
- a moved reference stands in its new slot, and the version is raised, before the old slot is
  cleared;
- a line is complete when it is linked; the store that unlinks it puts its last element where the
  link was, and a search that saw the link before that store, but not after it, begins again;
- an unlinked line names no element, because a reader may still be searching it.
"""

from support.protocol.automaton import own, put, store
from support.protocol.segment_model import (
    ALLOC,
    LINK_BASE,
    LIVE,
    VERSION_ONE,
)
from support.protocol.supply import line_take


def chain_bump(m, bucket):
    """Raise the version of a held bucket."""
    header = yield own(bucket)
    yield store(bucket, header + VERSION_ONE)


def chain_last(m, bucket):
    """Return the last line of a held chain, and the one before it (None for the bucket itself)."""
    before, line = None, bucket
    while True:
        link = yield own(m.index(line, m.link_slot))
        if link < LINK_BASE:
            return line, before
        before, line = line, m.line[link - LINK_BASE]


def slots_used(m, line):
    """Return how many slots of a line are taken, the link included, and the first free slot, or
    None."""
    used, gap = 0, None
    for slot in range(m.slots):
        index = yield own(m.index(line, slot))
        used += index != 0
        if index == 0 and gap is None:
            gap = slot
        del index
    return used, gap


def chain_links(m, bucket, line):
    """Return whether a held chain contains a line."""
    at = bucket
    while True:
        link = yield own(m.index(at, m.link_slot))
        if link < LINK_BASE:
            return False
        at = m.line[link - LINK_BASE]
        if at == line:
            return True


def chain_names(m, bucket, index, but=None):
    """Return the (line, slot) of a held chain that names an element, other than but; or None."""
    line = bucket
    while line is not None:
        following = None
        for slot in range(m.slots):
            there = yield own(m.index(line, slot))
            if there == index and (line, slot) != but:
                return line, slot
            if there >= LINK_BASE:
                following = m.line[there - LINK_BASE]
            del there
        line = following
    return None


# ---- appending ----


def chain_append(m, me, bucket, index, tag, publish):
    """Name an element in a held chain; with publish, make it LIVE just before. Return False if no
    line is free."""
    last, _ = yield from chain_last(m, bucket)
    _, slot = yield from slots_used(m, last)
    if slot is None:
        line = yield from line_take(m, me)
        if line == 0:
            return False
        yield from line_prepare(m, last, line)
        if not m.keeps("a line is linked before it gets the new element"):
            yield from slot_fill(m, m.line[line], 1, tag, index, publish)
        yield from line_link(m, me, last, line)
        last, slot = m.line[line], 1
    yield from slot_fill(m, last, slot, tag, index, publish)
    return True


def slot_fill(m, line, slot, tag, index, publish):
    """Name an element in an empty slot: LIVE first, then the tag; storing the index commits."""
    early = m.keeps("an element is LIVE before a slot names it")
    if publish and early:
        yield from element_publish(m, index)
    if m.keeps("the tag is stored before the index"):
        yield store(m.tag(line, slot), tag)
        yield store(m.index(line, slot), index)
    else:
        yield store(m.index(line, slot), index)
        yield store(m.tag(line, slot), tag)
    if publish and not early:
        yield from element_publish(m, index)


def line_prepare(m, last, line):
    """Copy into a new line the reference whose slot the link to the line will take."""
    tag = yield own(m.tag(last, m.link_slot))
    index = yield own(m.index(last, m.link_slot))
    yield store(m.tag(m.line[line], 0), tag)
    if m.keeps("a line is filled before it is linked"):
        yield store(m.index(m.line[line], 0), index)


def line_link(m, me, last, line):
    """Link a line behind a full one; from the store of the link on it belongs to the chain."""
    index = yield own(m.index(last, m.link_slot))
    yield store(m.index(last, m.link_slot), LINK_BASE + line)
    if not m.keeps("a line is filled before it is linked"):
        yield store(m.index(m.line[line], 0), index)
    header = yield own(m.line[line])
    yield store(m.line[line], m.header_after(header, LIVE))
    yield put(m.of(me, "line"), 0)


def element_publish(m, index):
    header = yield own(m.element[index])
    yield store(m.element[index], m.header_after(header, LIVE))


# ---- removing ----


def chain_remove(m, me, bucket, line, slot):
    """Clear a slot of a held chain. If there are lines, the chain's last element fills it."""
    last, before = yield from chain_last(m, bucket)
    used, _ = yield from slots_used(m, last)
    if before is None or used == 0:
        yield store(m.index(line, slot), 0)
        return
    if (line, slot) != (last, used - 1):
        yield from slot_move(m, bucket, (last, used - 1), (line, slot))
    yield from slot_drop(m, me, bucket, before, last, used - 1)


def slot_move(m, bucket, source, target):
    """Name the last element of a chain in another slot too.

    The index is stored first: if the process dies before it stores the tag, chain_repair finds the
    element in two slots and repairs the tag.
    """
    index = yield own(m.index(*source))
    tag = yield own(m.tag(*source))
    if not m.keeps("the new place is stored before the old one is cleared"):
        yield store(m.index(*source), 0)
    yield store(m.index(*target), index)
    yield store(m.tag(*target), tag)
    if m.keeps("the version is raised before the old place is cleared"):
        yield from chain_bump(m, bucket)


def slot_drop(m, me, bucket, before, last, top):
    """Clear the last slot of a chain's last line; dissolve a line with one element left."""
    yield store(m.index(last, top), 0)
    if top == 1:
        yield from chain_dissolve(m, me, bucket, before, last)


def chain_dissolve(m, me, bucket, before, last):
    """Put the only element of the last line where the line's link is, and stash the line."""
    tag = yield own(m.tag(last, 0))
    index = yield own(m.index(last, 0))
    yield from line_own(m, me, last)
    yield store(m.tag(before, m.link_slot), tag)
    yield store(m.index(before, m.link_slot), index)
    yield from chain_bump(m, bucket)
    yield from line_stash(m, me)


def line_own(m, me, line):
    """Name a line that is about to be unlinked in the context, and name its owner in its header."""
    yield put(m.of(me, "line"), m.line.index(line))
    header = yield own(line)
    yield store(line, m.header_after(header, ALLOC, me))


def line_stash(m, me):
    """Empty context.line, which is unlinked and ALLOC, and move it to the context's stash."""
    line = yield own(m.of(me, "line"))
    if m.keeps("an unlinked line is emptied"):
        for slot in range(m.slots):
            yield store(m.index(m.line[line], slot), 0)
    stash = yield own(m.of(me, "line_stash"))
    yield store(m.line_next(line), stash)
    yield put(m.of(me, "line_stash"), line)
    yield put(m.of(me, "line"), 0)


def chain_repair(m, me, bucket):
    """Finish a removal that a dead context began in a held chain; a sound chain stays as it is."""
    last, before = yield from chain_last(m, bucket)
    used, _ = yield from slots_used(m, last)
    if before is None or used == 0:
        return
    index = yield own(m.index(last, used - 1))
    twin = yield from chain_names(m, bucket, index, (last, used - 1))
    if twin is not None:
        tag = yield own(m.tag(last, used - 1))
        yield store(m.tag(*twin), tag)
        yield from chain_bump(m, bucket)
        yield from slot_drop(m, me, bucket, before, last, used - 1)
    elif used == 1:
        yield from chain_dissolve(m, me, bucket, before, last)


def chain_clear(m, me, bucket):
    """Empty a held chain without a level, in which no miss counts, and stash its lines."""
    while True:
        link = yield own(m.index(bucket, m.link_slot))
        if link < LINK_BASE:
            break
        line = m.line[link - LINK_BASE]
        following = yield own(m.index(line, m.link_slot))
        yield from line_own(m, me, line)
        yield store(m.index(bucket, m.link_slot), following if following >= LINK_BASE else 0)
        yield from chain_bump(m, bucket)
        yield from line_stash(m, me)
    for slot in range(m.slots):
        yield store(m.index(bucket, slot), 0)
