"""Growing and shrinking by one bucket, while readers and writers go on (G1, W1, C1).

Models resize.pxd. A split or merge holds the parent and the child, and nothing else. Readers find
each entry in the parent or in the child at every instant, because references are copied before the
level changes and cleared after. The table word is a number without a lock: every bucket that is
there lies below it, but not every bucket below it is there. A context that cannot get the locks of
a split may pass the bucket, and leaves a gap.
"""

from support.protocol.automaton import begin, cas, end, load, lock, lock_try, own, put, store
from support.protocol.chains import chain_append, chain_bump, chain_clear, chain_remove
from support.protocol.oracle import RETRY
from support.protocol.reading import parent_of, table_find
from support.protocol.segment_model import (
    DELETE,
    LINK_BASE,
    MERGE,
    PAYLOAD_SHIFT,
    SPLIT,
    VERSION_ONE,
    covers,
    level_plus1,
    released,
    taken,
    with_level,
)
from support.protocol.supply import lines_give, op_give_back
from support.protocol.writing import bucket_release, delete_found

REACH_TRIES_MAX = 4


def grow(m, me, patient=False):
    """table_grow, after an insert: split the next bucket if both locks are free at once. If not, a
    patient caller leaves the split to the next insert; another passes the bucket (table_pass)."""
    yield begin("resize")
    seen = yield load(m.table)
    child = seen >> PAYLOAD_SHIFT
    if child < m.buckets:
        done = yield from split(m, me, child)
        if not done and not patient:
            yield cas(m.table, seen, seen + (1 << PAYLOAD_SHIFT))
    yield from lines_give(m, me)
    yield end()


def catch_up(m, me, at):
    """map_catch_up, after an insert into bucket at: make the split that the bucket has missed."""
    yield begin("resize")
    header = yield load(m.bucket[at])
    seen = yield load(m.table)
    child = at + (1 << level_plus1(header) >> 1)
    if level_plus1(header) and child < seen >> PAYLOAD_SHIFT:
        yield from split(m, me, child)
    yield from lines_give(m, me)
    yield end()


def shrink(m, me):
    """table_shrink, after a delete: merge the last bucket into its parent; if that bucket is a gap,
    only lower the number."""
    yield begin("resize")
    seen = yield load(m.table)
    last = (seen >> PAYLOAD_SHIFT) - 1
    if last >= 1:
        header = yield load(m.bucket[last])
        if level_plus1(header):
            yield from merge(m, me, last)
        else:
            yield from table_lower(m, me, last)
    yield from lines_give(m, me)
    yield end()


def table_reach(m, child):
    """Raise the number above child if it equals child; whether it is above child then. It stays
    above while the caller holds the bucket that has the entries of child."""
    reached = False
    for _ in range(REACH_TRIES_MAX):
        seen = yield load(m.table)
        reached = seen >> PAYLOAD_SHIFT > child
        if seen >> PAYLOAD_SHIFT == child:
            reached = yield cas(m.table, seen, (child + 1) << PAYLOAD_SHIFT)
        if reached or seen >> PAYLOAD_SHIFT < child:
            break
    return reached


def table_lower(m, me, last):
    """Lower the number to a gap, under the lock of the bucket that has the gap's entries."""
    at = yield from table_find(m, last)
    if at in (None, last):
        return
    yield put(m.of(me, "operation"), 0)
    yield put(m.of(me, "bucket"), at)
    held = None
    if m.keeps("the number is lowered under the lock of the bucket with the entries"):
        held = yield lock_try(m.bucket[at], me)
        if held is None:
            return
    if held is None or covers(level_plus1(held), at, last):
        yield cas(m.table, (last + 1) << PAYLOAD_SHIFT, last << PAYLOAD_SHIFT)
    if held is not None:
        yield store(m.bucket[at], released(held))


def pair_hold(m, me, child, operation):
    """Lock the parent and the child of a split or merge: both headers as taken, or None."""
    yield put(m.of(me, "operation"), operation)
    yield put(m.of(me, "child"), child)
    yield put(m.of(me, "bucket"), parent_of(child))
    parent = m.bucket[parent_of(child)]
    held = yield lock_try(parent, me)
    if held is None:
        return None
    if m.keeps("a split only tries the child's lock"):
        child_held = yield lock_try(m.bucket[child], me)
    else:
        header = yield load(m.bucket[child])
        child_held = taken(header, me)
        yield store(m.bucket[child], child_held)
    if child_held is None:
        yield store(parent, released(held))
        return None
    return held, child_held


def pair_release(m, child, held):
    """Unlock both, unchanged."""
    yield store(m.bucket[child], released(held[1]))
    yield store(m.bucket[parent_of(child)], released(held[0]))


def split(m, me, at):
    """Split bucket at off its parent: whether this call did."""
    parent, child = m.bucket[parent_of(at)], m.bucket[at]
    level = at.bit_length() - 1
    header = yield load(parent)
    if level_plus1(header) != level + 1:  # the parent missed a split, or this one is done
        return False
    held = yield from pair_hold(m, me, at, SPLIT)
    if held is None:
        return False
    fits = level_plus1(held[0]) == level + 1
    if not fits and m.keeps("a split checks the parent's level when it has the lock"):
        yield from pair_release(m, at, held)
        return False
    first = m.keeps("a split fills the child before it gives it a level")
    if not first:
        yield from table_reach(m, at)
        yield from bucket_set_level(m, child, level + 2)
    copied = yield from chain_copy(m, me, parent, child, 1 << level)
    if copied and m.keeps("no split makes a bucket at or above the number of buckets"):
        copied = yield from table_reach(m, at)
    if not copied:
        yield from chain_clear(m, me, child)
        yield from bucket_release(m, child)
        yield store(parent, released(held[0]))
        return False
    if first:
        yield from bucket_set_level(m, child, level + 2)
    yield from split_finish(m, me, parent, level)
    yield from bucket_release(m, child)
    yield from bucket_release(m, parent)
    if not m.keeps("a split is counted before its parent is unlocked"):
        yield from split_count(m)
    return True


def split_count(m):
    """Count one more split, by an atomic addition."""
    while True:
        splits = yield load(m.splits)
        done = yield cas(m.splits, splits, splits + 1)
        if done:
            return


def split_finish(m, me, parent, level):
    """The steps of a split after its commit; each may have been performed already."""
    header = yield own(parent)
    raised = m.keeps("a split raises the parent's level before it clears slots")
    if raised and level_plus1(header) == level + 1:
        yield from bucket_set_level(m, parent, level + 2)
    yield from chain_drop_bit(m, me, parent, 1 << level)
    if not raised and level_plus1(header) == level + 1:
        yield from bucket_set_level(m, parent, level + 2)
    if m.keeps("a split is counted before its parent is unlocked"):
        yield from split_count(m)


def merge(m, me, at):
    """Merge the last bucket into its parent, and lower the number."""
    parent, child = m.bucket[parent_of(at)], m.bucket[at]
    level, bit = at.bit_length() - 1, 1 << at.bit_length() - 1
    held = yield from pair_hold(m, me, at, MERGE)
    if held is None:
        return
    fits = level_plus1(held[0]) == level_plus1(held[1]) == level + 2
    if not fits and m.keeps("a merge checks both levels when it has the locks"):
        yield from pair_release(m, at, held)
        return
    first = m.keeps("a merge fills the parent before it lowers the level")
    if not first:
        yield from bucket_set_level(m, parent, level + 1)
    copied = yield from chain_copy(m, me, child, parent, bit)
    if copied and first:
        yield from bucket_set_level(m, parent, level + 1)
    if copied:
        yield from merge_finish(m, me, child)
        yield cas(m.table, (at + 1) << PAYLOAD_SHIFT, at << PAYLOAD_SHIFT)
    else:
        yield from merge_undo(m, me, parent, bit)
    yield from bucket_release(m, child)
    yield from bucket_release(m, parent)


def merge_undo(m, me, parent, bit):
    """Remove the copied references. The copy may have linked a line that the removal unlinks again;
    the version is raised in between, so that a reader that saw both states begins again."""
    if m.keeps("an undone merge raises the version before it clears slots"):
        yield from chain_bump(m, parent)
    yield from chain_drop_bit(m, me, parent, bit)


def merge_finish(m, me, child):
    """The steps of a merge after its commit; each may have been performed already."""
    header = yield own(child)
    lowered = m.keeps("a merge lowers the child's level before it clears slots")
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
    """Append source's references whose tag has bit set to target. False: there was no free line."""
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


# ---- clear ----


def clear(m, me):
    """map_clear: delete every entry, while no key is inserted.

    Goes from the last bucket to the first, because a merge moves entries to a lower bucket. A split
    moves them to a higher one, but is counted before its parent is unlocked, so a split that ended
    before bucket_clear locked its parent is seen in the count.
    """
    yield begin("clear")
    while True:
        early = m.keeps("a clear reads the count of splits before that of buckets")
        splits = 0
        if early:
            splits = yield load(m.splits)
        count = yield load(m.table)
        if not early:
            splits = yield load(m.splits)
        empty = True
        for turn in range(count >> PAYLOAD_SHIFT):
            found = yield from bucket_clear(m, me, (count >> PAYLOAD_SHIFT) - 1 - turn)
            empty = empty and not found
        again = yield load(m.splits)
        if empty and (again == splits or not m.keeps("a clear begins anew after a split")):
            break
    yield end()


def bucket_clear(m, me, at):
    """Delete every entry of a bucket; whether there was any."""
    found = False
    while True:
        yield from op_give_back(m, me)
        yield put(m.of(me, "operation"), DELETE)
        yield put(m.of(me, "bucket"), at)
        held = yield lock(m.bucket[at], me)
        slot = yield from first_slot(m, m.bucket[at])
        if slot is None:
            yield store(m.bucket[at], released(held))
            return found
        index = yield own(m.index(m.bucket[at], slot))
        header = yield load(m.element[index])
        outcome = yield from delete_found(m, me, m.bucket[at], (index, header, m.bucket[at], slot))
        found = found or outcome != RETRY


def first_slot(m, bucket):
    """The first slot of a held bucket that names an element, or None."""
    for slot in range(m.slots):
        index = yield own(m.index(bucket, slot))
        if 0 < index < LINK_BASE:
            return slot
    return None
