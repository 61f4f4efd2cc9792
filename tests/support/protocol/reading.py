"""A lookup: finding the bucket, searching its chain, copying the value (R1, R2, W1).

Models read.pxd, and what it uses of table.pxd, chain.pxd and element.pxd. A reader never stores: it
only loads, in any state of the map. It believes a hit if the slot still names the element, a value
if the element's header is unchanged, and a miss if the bucket's header is unchanged.
"""

from support.protocol.automaton import begin, end, load
from support.protocol.oracle import ABSENT, RETRY
from support.protocol.segment_model import (
    LINK_BASE,
    PAYLOAD_SHIFT,
    READABLE,
    UPD,
    covers,
    level_plus1,
    owner_of,
    released,
    state_of,
)


def lookup(m, key):
    """Play map_lookup: return the value of key, or ABSENT."""
    yield begin("lookup", key)
    while True:
        found = yield from map_find(m, key)
        value = found
        if found not in (ABSENT, RETRY):
            value = yield from element_read(m, found)
        if value != RETRY:
            break
    yield end(value)


def contains(m, key):
    """Play map_contains: return whether the key is there."""
    yield begin("contains", key)
    while True:
        found = yield from map_find(m, key)
        still = found
        if found not in (ABSENT, RETRY) and m.keeps("contains loads the header a second time"):
            still = yield from element_still(m, found)
        if still != RETRY:
            break
    yield end(int(found != ABSENT))


def map_find(m, key):
    """Return what was found; ABSENT is validated, and RETRY means that the levels lead nowhere."""
    found, _, _ = yield from find_once(m, key)
    return found


def find_once(m, key):
    """Return what map_find returns, and for a miss the bucket and its header as first loaded."""
    count = yield load(m.table)
    at = table_guess(count >> PAYLOAD_SHIFT, m.hashes[key])
    while True:
        found, at, header = yield from bucket_find(m, at, key)
        if found != RETRY or at is None:
            return found, at, header


def bucket_find(m, at, key):
    """(what was found, the bucket to search next if that is RETRY, header). A hit counts in any
    bucket; a miss counts only in the bucket that has the key's hash."""
    header = yield load(m.bucket[at])
    found = yield from chain_find(m, m.bucket[at], key, load)
    if found != ABSENT:
        return found, at, 0
    level = level_plus1(header)
    if not covers(level, at, m.hashes[key]) and m.keeps(
        "a miss counts only in the bucket to which the levels lead"
    ):
        return RETRY, table_follow(m, at, level, m.hashes[key]), 0
    if m.keeps("a miss is validated by the bucket's version"):
        again = yield load(m.bucket[at])
        if released(again) != released(header):
            return RETRY, at, 0
    return ABSENT, at, header


def table_guess(count, key_hash):
    """Return the bucket to which a hash belongs according to the number in the table word."""
    mask = (1 << (count - 1).bit_length()) - 1
    return key_hash & mask if key_hash & mask < count else key_hash & mask >> 1


def table_follow(m, at, level, key_hash):
    """Return the bucket to search after one of this level (plus one) that does not have the
    hash."""
    if level == 0:
        return parent_of(at) if at else None
    difference = (key_hash ^ at) & ((1 << (level - 1)) - 1)
    child = key_hash & ((difference & -difference) * 2 - 1)
    return child if child < m.buckets else None


def parent_of(at):
    """Return the bucket that this one was split from, whose number lacks the highest bit."""
    return at ^ 1 << at.bit_length() - 1


def table_find(m, key_hash):
    """Return the index of the bucket that has a hash, or None if the levels lead nowhere."""
    count = yield load(m.table)
    at = table_guess(count >> PAYLOAD_SHIFT, key_hash)
    while at is not None:
        header = yield load(m.bucket[at])
        if covers(level_plus1(header), at, key_hash):
            break
        at = table_follow(m, at, level_plus1(header), key_hash)
    return at


def chain_next(m, line, look):
    """Return the line behind this one, or None."""
    link = yield look(m.index(line, m.link_slot))
    return m.line[link - LINK_BASE] if link >= LINK_BASE else None


def chain_moved(m, line, link, look):
    """Return whether the last slot of a line was this link before the search, and has changed
    since."""
    if link < LINK_BASE or not m.keeps("a reader loads a link a second time"):
        return False
    again = yield look(m.index(line, m.link_slot))
    return again != link


def chain_find(m, bucket, key, look):
    """Return (element, header, line, slot), ABSENT, or RETRY if a slot changed during the
    search.

    look is load, or own for a caller that holds the bucket, so that no other can change its
    slots.
    """
    line = bucket
    while line is not None:
        link = yield look(m.index(line, m.link_slot))
        slots = yield from matching_slots(m, line, key, look)
        for slot in range(m.slots):
            if slots >> slot & 1:
                found = yield from slot_find(m, line, slot, key, look)
                if found != ABSENT:
                    return found
        following = yield from chain_next(m, line, look)
        moved = False
        if following is None:
            moved = yield from chain_moved(m, line, link, look)
        if moved:
            return RETRY
        line = following
        del following, link, moved
    return ABSENT


def matching_slots(m, line, key, look):
    """Play match7: return a bit for each slot whose tag is the key's hash; tags are loaded one by
    one."""
    slots = 0
    for slot in range(m.slots):
        tag = yield look(m.tag(line, slot))
        slots |= (tag == m.hashes[key]) << slot
        del tag
    return slots


def slot_find(m, line, slot, key, look):
    """Return the entry that a slot names, if it is key's."""
    index = yield look(m.index(line, slot))
    if index == 0 or index >= LINK_BASE:
        return ABSENT
    header = yield load(m.element[index])
    if state_of(header) not in READABLE:
        return ABSENT
    their_key = yield look(m.key(index))
    if their_key != key:
        return ABSENT
    # The header counts only while a slot names the element.
    if look is load and m.keeps("a reader loads the slot a second time"):
        again = yield load(m.index(line, slot))
        if again != index:
            return RETRY
    return index, header, line, slot


def element_read(m, found):
    """Return the value of what was found, or RETRY if the element changed since."""
    index, header, _, _ = found
    redo = state_of(header) == UPD and m.keeps("readers of UPD copy the redo buffer")
    words = ()
    for word in range(m.value_words):
        source = m.redo(owner_of(header), word) if redo else m.value(index, word)
        value = yield load(source)
        words = (*words, value)
        del value
    if m.keeps("the value is validated by the element's header"):
        still = yield from element_still(m, found)
        if still == RETRY:
            return RETRY
    return words[0] if len(set(words)) == 1 else words


def element_still(m, found):
    """Return what was found, or RETRY if its header has changed."""
    index, header, _, _ = found
    again = yield load(m.element[index])
    return found if again == header else RETRY
