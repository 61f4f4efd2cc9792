"""Growing and shrinking by one bucket, while readers and writers go on (G1, W1, C1).

Stands for table.pxd. A split or merge holds the table word, the parent and the child; readers find
each entry in the parent or in the child at every instant, because references are copied before the
level says so and cleared after.
"""

from automaton import begin, end, load, lock_try, own, put, store
from chains import chain_append, chain_clear, chain_remove
from reading import parent_of
from segment_model import (
    LINK_BASE,
    MERGE,
    PAYLOAD_SHIFT,
    SPLIT,
    VERSION_ONE,
    level_plus1,
    owner_of,
    released,
    taken,
    with_level,
)
from supply import lines_give
from writing import bucket_release


def grow(m, me):
    """table_grow, after an insert: split the next bucket, if everything is free at once."""
    yield begin("resize")
    seen = yield load(m.table)
    count = seen >> PAYLOAD_SHIFT
    if owner_of(seen) == 0 and count < m.buckets:
        held = yield from table_hold(m, me, count, SPLIT)
        if held is not None:
            done = yield from split(m, me, count)
            yield store(m.table, (count + done) << PAYLOAD_SHIFT)
    yield from lines_give(m, me)
    yield end()


def shrink(m, me):
    """table_shrink, after a delete: merge the last bucket into its parent."""
    yield begin("resize")
    seen = yield load(m.table)
    last = (seen >> PAYLOAD_SHIFT) - 1
    if owner_of(seen) == 0 and last >= 1:
        held = yield from table_hold(m, me, last, MERGE)
        if held is not None:
            done = yield from merge(m, me, last)
            yield store(m.table, (last + 1 - done) << PAYLOAD_SHIFT)
    yield from lines_give(m, me)
    yield end()


def table_hold(m, me, child, operation):
    """Take the table word for a split or merge of child and its parent, if it is free."""
    yield put(m.of(me, "operation"), operation)
    yield put(m.of(me, "child"), child)
    yield put(m.of(me, "bucket"), parent_of(child))
    held = yield lock_try(m.table, me)
    if held is not None and held >> PAYLOAD_SHIFT != child + (operation == MERGE):
        yield store(m.table, released(held))
        held = None
    return held


def split(m, me, count):
    """Split bucket count off its parent, with the table held: whether it was done."""
    parent, child = m.bucket[parent_of(count)], m.bucket[count]
    level, bit = count.bit_length() - 1, 1 << count.bit_length() - 1
    held = yield lock_try(parent, me)
    if held is None:
        return False
    by_trying = m.keeps("a split takes the child's lock by trying")
    if by_trying:
        child_held = yield lock_try(child, me)
        if child_held is None:
            yield store(parent, released(held))
            return False
    first = m.keeps("a split fills the child before it gives it a level")
    if not first:
        yield from bucket_set_level(m, child, level + 2)
    copied = yield from chain_copy(m, me, parent, child, bit)
    if not copied:
        yield from chain_clear(m, me, child)
        yield from bucket_release(m, child)
        yield store(parent, released(held))
        return False
    if not by_trying:
        header = yield own(child)
        yield store(child, taken(header, me))
    if first:
        yield from bucket_set_level(m, child, level + 2)
    yield from split_finish(m, me, parent, level)
    yield from bucket_release(m, child)
    yield from bucket_release(m, parent)
    return True


def split_finish(m, me, parent, level):
    """The steps after the commit; each may have been done already."""
    header = yield own(parent)
    raised = m.keeps("a split raises the parent's level before it clears")
    if raised and level_plus1(header) == level + 1:
        yield from bucket_set_level(m, parent, level + 2)
    yield from chain_drop_bit(m, me, parent, 1 << level)
    if not raised and level_plus1(header) == level + 1:
        yield from bucket_set_level(m, parent, level + 2)


def merge(m, me, last):
    """Merge the last bucket into its parent, with the table held: whether it was done."""
    parent, child = m.bucket[parent_of(last)], m.bucket[last]
    level, bit = last.bit_length() - 1, 1 << last.bit_length() - 1
    held = yield lock_try(parent, me)
    if held is None:
        return False
    child_held = yield lock_try(child, me)
    if child_held is None:
        yield store(parent, released(held))
        return False
    first = m.keeps("a merge fills the parent before it lowers the level")
    if not first:
        yield from bucket_set_level(m, parent, level + 1)
    copied = yield from chain_copy(m, me, child, parent, bit)
    if copied and first:
        yield from bucket_set_level(m, parent, level + 1)
    if copied:
        yield from merge_finish(m, me, child)
    else:
        yield from chain_drop_bit(m, me, parent, bit)
    yield from bucket_release(m, child)
    yield from bucket_release(m, parent)
    return copied


def merge_finish(m, me, child):
    """The part of a merge after the commit; each step may have been done already."""
    header = yield own(child)
    lowered = m.keeps("a merge lowers the child's level before it clears")
    if lowered and level_plus1(header):
        yield from bucket_set_level(m, child, 0)
    yield from chain_clear(m, me, child)
    if not lowered and level_plus1(header):
        yield from bucket_set_level(m, child, 0)


def bucket_set_level(m, bucket, level):
    """Give a held bucket a level, and the next version."""
    header = yield own(bucket)
    yield store(bucket, with_level(header + VERSION_ONE, level))


def chain_copy(m, me, source, target, bit):
    """Append source's references whose tag has bit set to target. False: there was no line."""
    line = source
    while line is not None:
        following = None
        for slot in range(m.slots):
            index = yield own(m.index(line, slot))
            tag = yield own(m.tag(line, slot))
            if index >= LINK_BASE:
                following = m.line[index - LINK_BASE]
            elif index and tag & bit:
                appended = yield from chain_append(m, me, target, index, tag, False)
                if not appended:
                    return False
        line = following
    return True


def chain_drop_bit(m, me, bucket, bit):
    """Remove every reference whose tag has bit set, one by one."""
    while True:
        found = yield from chain_find_bit(m, bucket, bit)
        if found is None:
            return
        line, slot = found
        yield from chain_remove(m, me, bucket, line, slot)


def chain_find_bit(m, bucket, bit):
    """(line, slot) of a reference whose tag has bit set, or None."""
    line = bucket
    while line is not None:
        following = None
        for slot in range(m.slots):
            index = yield own(m.index(line, slot))
            tag = yield own(m.tag(line, slot))
            if index >= LINK_BASE:
                following = m.line[index - LINK_BASE]
            elif index and tag & bit:
                return line, slot
        line = following
    return None
