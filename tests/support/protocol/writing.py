"""Writing: update in place, add, insert, delete (W1, R2, C1).

Models element.pxd and the operations of write.pxd. Where the code releases everything, waits for a
lock and begins again, a program here waits for the lock; both go on when the lock is free.
"""

from support.protocol.automaton import begin, cas, end, load, lock, own, put, store, wait
from support.protocol.chains import chain_append, chain_remove
from support.protocol.oracle import ABSENT, RETRY
from support.protocol.reading import chain_find, element_still, find_once, map_find, table_find
from support.protocol.segment_model import (
    DEAD,
    DELETE,
    INSERT,
    LIVE,
    LOCKED,
    PAYLOAD_SHIFT,
    ULOCK,
    UPD,
    VERSION_ONE,
    covers,
    level_plus1,
    owner_of,
    released,
    state_of,
    taken,
)
from support.protocol.supply import FULL, OK, element_take, op_give_back

# ---- elements ----


def element_hold(m, me, found, state):
    """LIVE -> UPD or ULOCK, if the element's header is as found: the new header, or RETRY."""
    index, header, _, _ = found
    if owner_of(header):
        yield wait(m.element[index], header)
        return RETRY
    held = m.header_after(header, state, me)
    named = m.keeps("an element is named before it is owned")
    if named:
        yield put(m.of(me, "target"), index)
    if not m.keeps("an element is owned before it is changed"):
        return held
    done = yield cas(m.element[index], header, held)
    if done and not named:
        yield put(m.of(me, "target"), index)
    if done and m.waiters:
        yield from waiters_seen(m, me)
    return held if done else RETRY


def waiters_seen(m, me):
    """Look for waiters as early as the machine may execute that load, which follows the commit in
    the code: after the last compare-and-swap before the commit, and before later stores are seen
    (waiting.py). For a deletion this moment is its commit, because a waiter that finds the key does
    not look at the bucket's lock."""
    if not m.looks_early:
        return
    bell = 0
    waited = yield load(m.waited)
    if waited:
        bell = yield load(m.bell)
    yield put(m.saw[me], bell)


def element_update(m, me, found, value):
    """Replace the value of what was found: OK or RETRY."""
    index = found[0]
    if m.value_words == 1:
        held = yield from element_hold(m, me, found, ULOCK)
        if held == RETRY:
            return RETRY
        yield store(m.value(index, 0), value)
    else:
        early = m.keeps("the redo buffer is written before UPD")
        if early:
            yield from redo_fill(m, me, value)
        yield from deadline_stored(m, value, False)
        held = yield from element_hold(m, me, found, UPD)
        if held == RETRY:
            return RETRY
        if not early:
            yield from redo_fill(m, me, value)
        yield from deadline_stored(m, value, True)
        yield from redo_apply(m, me, index)
    yield store(m.element[index], m.header_after(held, LIVE))
    return OK


def element_add(m, me, found, delta):
    """Add to every word: by one store if the value is one word, else through the redo buffer."""
    index = found[0]
    held = yield from element_hold(m, me, found, ULOCK)
    if held == RETRY:
        return RETRY
    before = yield own(m.value(index, 0))
    if m.value_words == 1:
        yield store(m.value(index, 0), before + delta)
    else:
        yield from redo_fill(m, me, before + delta)
        held = m.header_after(held, UPD, me)
        yield store(m.element[index], held)
        yield from redo_apply(m, me, index)
    yield store(m.element[index], m.header_after(held, LIVE))
    return OK


def deadline_stored(m, value, held):
    """Shorten a rest, or the claim of one, that goes beyond the deadline that the caller stores
    (sweeping.py). held: the caller holds the entry, or its bucket."""
    if not m.timed or held != m.keeps(
        "a writer of a deadline checks the rest when it holds the entry"
    ):
        return
    done = not m.keeps("an earlier deadline shortens the rest")
    while not done:
        word = yield load(m.rest)
        if value >= word >> PAYLOAD_SHIFT:
            return
        owner = owner_of(word) if m.keeps("a claim whose end is shortened stays a claim") else 0
        if m.keeps("a rest is shortened by a compare-and-swap"):
            done = yield cas(m.rest, word, value << PAYLOAD_SHIFT | owner)
        else:
            yield store(m.rest, value << PAYLOAD_SHIFT | owner)
            return


def redo_fill(m, me, value):
    for word in range(m.value_words):
        yield store(m.redo(me, word), value)


def redo_apply(m, me, index):
    """Copy the redo buffer into the element."""
    for word in range(m.value_words):
        value = yield own(m.redo(me, word))
        yield store(m.value(index, word), value)


# ---- operations ----


def bucket_hold(m, me, operation, key):
    """Lock the key's bucket: (bucket, held), or (None, RETRY) if the key now belongs elsewhere."""
    outcome = yield from bucket_hold_hash(m, me, operation, m.hashes[key])
    return outcome


def bucket_hold_hash(m, me, operation, key_hash):
    """As bucket_hold, for a hash."""
    at = yield from table_find(m, key_hash)
    if at is None:
        return None, RETRY
    bucket = m.bucket[at]
    yield put(m.of(me, "operation"), operation)
    yield put(m.of(me, "bucket"), at)
    while True:
        seen = yield load(bucket)
        moved = not covers(level_plus1(seen), at, key_hash)
        if moved and m.keeps("a writer locks a bucket only while the key belongs there"):
            return None, RETRY
        if owner_of(seen):
            yield wait(bucket, seen)
        else:
            done = yield cas(bucket, seen, taken(seen, me))
            if done and m.waiters and operation == INSERT:
                yield from waiters_seen(m, me)
            if done:
                return bucket, taken(seen, me)


def bucket_release(m, bucket):
    """Unlock a changed bucket."""
    header = yield own(bucket)
    raised = VERSION_ONE if m.keeps("a changed bucket is unlocked with another version") else 0
    yield store(bucket, released(header) + raised)


def update(m, me, key, value, kind="update"):
    """map_update. kind: update (any), insert (the key must be absent), replace (present)."""
    yield begin(kind, key, value)
    while True:
        found, at, header = yield from find_once(m, key)
        outcome = found
        if found == ABSENT:
            outcome = "ABSENT"
            if kind != "replace":
                outcome = yield from insert_try(m, me, key, value, at, header)
        elif found != RETRY and kind == "insert":
            outcome = "PRESENT"
            still = yield from element_still(m, found)
            if still == RETRY and m.keeps(
                "an insert reports PRESENT after a second load of the header"
            ):
                outcome = RETRY
        elif found != RETRY:
            outcome = yield from element_update(m, me, found, value)
        if outcome != RETRY:
            break
    yield from op_give_back(m, me)
    yield end(outcome)


def add(m, me, key, delta):
    """map_apply for a key that is there."""
    yield begin("add", key, delta)
    while True:
        found = yield from map_find(m, key)
        outcome = found
        if found == ABSENT:
            outcome = "ABSENT"
        elif found != RETRY:
            outcome = yield from element_add(m, me, found, delta)
        if outcome != RETRY:
            break
    yield end(outcome)


def insert_hold(m, me, key, at, header):
    """Lock the key's bucket: the bucket, which does not have the key; or None. A miss in bucket at
    still counts if the bucket's header is what it was then."""
    if not owner_of(header):
        yield put(m.of(me, "operation"), INSERT)
        yield put(m.of(me, "bucket"), at)
        if m.keeps("after a miss the bucket is locked only if it is unchanged"):
            unchanged = yield cas(m.bucket[at], header, taken(header, me))
            if unchanged and m.waiters:
                yield from waiters_seen(m, me)
        else:
            yield lock(m.bucket[at], me)
            unchanged = True
        if unchanged:
            return m.bucket[at]
    bucket, held = yield from bucket_hold(m, me, INSERT, key)
    if bucket is None:
        return None
    found = yield from chain_find(m, bucket, key, own)
    if found != ABSENT and m.keeps("an insert searches again when it has the lock"):
        yield store(bucket, released(held))
        return None
    return bucket


def insert_try(m, me, key, value, at, header):
    """Insert a key that a search in bucket at has missed: OK, FULL or RETRY."""
    element = yield own(m.of(me, "element"))
    if element == 0:
        status = yield from element_take(m, me)
        if status != OK:
            return status
        element = yield own(m.of(me, "element"))
        yield store(m.key(element), key)
        for word in range(m.value_words):
            yield store(m.value(element, word), value)
    yield from deadline_stored(m, value, False)
    bucket = yield from insert_hold(m, me, key, at, header)
    if bucket is None:
        return RETRY
    yield from deadline_stored(m, value, True)
    appended = yield from chain_append(m, me, bucket, element, m.hashes[key], True)
    if not appended:
        held = yield own(bucket)
        yield store(bucket, released(held))
        return FULL
    yield from bucket_release(m, bucket)
    yield put(m.of(me, "element"), 0)
    return OK


def delete(m, me, key):
    """map_delete: the value popped, or ABSENT."""
    yield begin("delete", key)
    outcome = yield from delete_held(m, me, key, None)
    yield end(outcome)


def delete_held(m, me, key, expected):
    """map_delete_held: delete key if expected is None or is the header of its element."""
    yield from op_give_back(m, me)
    while True:
        bucket, held = yield from bucket_hold(m, me, DELETE, key)
        outcome = held
        if bucket is not None:
            found = yield from chain_find(m, bucket, key, own)
            if found != ABSENT and expected in (None, found[1]):
                outcome = yield from delete_found(m, me, bucket, found, expected)
            else:
                yield store(bucket, released(held))
                outcome = "ABSENT"
        if outcome != RETRY:
            break
    yield from op_give_back(m, me)
    return outcome


def delete_found(m, me, bucket, found, expected=None):
    """Delete an element of a held bucket, and unlock it: the value, or RETRY. expected: the header
    of the element that this context holds, or None."""
    index, header, line, slot = found
    held = yield own(bucket)
    if owner_of(header) and state_of(header) != LOCKED and header != expected:
        yield store(bucket, released(held))
        yield wait(m.element[index], header)
        return RETRY
    named = m.keeps("an element is named before it is DEAD")
    if named:
        yield put(m.of(me, "element"), index)
    late = not m.keeps("an element is DEAD before its slot is cleared")
    if late:
        yield from chain_remove(m, me, bucket, line, slot)
    done = yield cas(m.element[index], header, m.header_after(header, DEAD, me))
    if done and m.waiters:
        yield from waiters_seen(m, me)
    if not done:
        yield put(m.of(me, "element"), 0)
        yield store(bucket, released(held))
        return RETRY
    if not named:
        yield put(m.of(me, "element"), index)
    for word in range(m.value_words):
        value = yield own(m.value(index, word))
    if not late:
        yield from chain_remove(m, me, bucket, line, slot)
    yield from bucket_release(m, bucket)
    return value
