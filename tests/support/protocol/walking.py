"""A walk over all entries, bucket after bucket in the order of reversed hashes (R1, W1).

Models bucket_read and walk_steps of walk.pxd. A position in the order survives every resize, since
a bucket at any level owns an unbroken range of it. Hashes have three bits here. A bucket is read as
a whole or not at all. If it is unlocked and has no lines, the walk reads its slots by their tags
and then compares its header; else it goes by the keys in the elements and then compares the
bucket's version.
"""

from support.protocol.automaton import begin, end, load
from support.protocol.oracle import RETRY
from support.protocol.reading import chain_moved, chain_next, element_read, table_find
from support.protocol.segment_model import (
    LINK_BASE,
    READABLE,
    covers,
    level_plus1,
    owner_of,
    released,
    state_of,
)

ORDER_BITS = 3
ORDER_END = 1 << ORDER_BITS


def reverse_bits(number):
    return int(f"{number:0{ORDER_BITS}b}"[::-1], 2)


def walk(m):
    """All entries, as a tuple of (key, value)."""
    yield begin("walk")
    entries, order = (), 0
    while order < ORDER_END:
        at = yield from table_find(m, reverse_bits(order))
        if at is not None:
            found, last = yield from bucket_read(m, at, order)
            if found != RETRY:
                entries, order = (*entries, *found), last + 1
    yield end(entries)


def bucket_read(m, at, order):
    """The entries of a bucket from order on, or RETRY; and the end of the bucket's range."""
    header = yield load(m.bucket[at])
    level = level_plus1(header)
    if not covers(level, at, reverse_bits(order)) and m.keeps("a walk checks the level again"):
        return RETRY, order
    last = order | ORDER_END - 1 >> max(level, 1) - 1
    found = yield from span_read(m, m.bucket[at], header, at, (order, last))
    return found, last


def span_read(m, bucket, header, at, span):
    """The entries of a bucket in this span of the order, or RETRY."""
    whole = ORDER_END - 1 >> max(level_plus1(header), 1) - 1
    if owner_of(header) == 0 and span[0] & whole == 0:
        link = yield load(m.index(bucket, m.link_slot))
        if link < LINK_BASE:
            return (yield from bucket_read_at_rest(m, bucket, header, at))
    return (yield from bucket_read_in_order(m, bucket, header, span))


def bucket_read_at_rest(m, bucket, header, at):
    """All entries of an unlocked bucket without lines, or RETRY."""
    entries = ()
    for slot in range(m.slots):
        index = yield load(m.index(bucket, slot))
        if 0 < index < LINK_BASE:
            tag = yield load(m.tag(bucket, slot))
            if covers(level_plus1(header), at, tag):
                entry = yield from entry_read(m, index)
                entries = (*entries, entry) if entry else entries
    again = yield load(bucket)
    if again != header and m.keeps("a bucket read at rest has the same header afterwards"):
        return RETRY
    return entries


def bucket_read_in_order(m, bucket, header, span):
    """The entries of a chain in this span, or RETRY."""
    indices, keys, entries, line = (), (), (), bucket
    while line is not None:
        link = yield load(m.index(line, m.link_slot))
        for slot in range(m.slots):
            index = yield load(m.index(line, slot))
            if 0 < index < LINK_BASE:
                key = yield load(m.key(index))
                order = reverse_bits(m.hashes.get(key, 0))
                if key not in keys and span[0] <= order <= span[1]:
                    indices, keys = (*indices, index), (*keys, key)
        following = yield from chain_next(m, line, load)
        moved = False
        if following is None:
            moved = yield from chain_moved(m, line, link, load)
        if moved:
            return RETRY
        line = following
        del following, link, moved
    for turn in range(len(indices)):
        entry = yield from entry_read(m, indices[turn])
        entries = (*entries, entry) if entry else entries
    again = yield load(bucket)
    changed = released(again) != released(header)
    if changed and m.keeps("a bucket read in order has the same version afterwards"):
        return RETRY
    return entries


def entry_read(m, index):
    """(key, value) of an element, or None if it is not a live entry."""
    while True:
        header = yield load(m.element[index])
        if state_of(header) not in READABLE:
            return None
        key = yield load(m.key(index))
        value = yield from element_read(m, (index, header, 0, 0))
        if value != RETRY:
            return key, value
