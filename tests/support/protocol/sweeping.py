"""Removing expired entries, and refusing an insertion for lack of room (X1).

Models sweep.pxd and rest.pxd. In a timed segment the value of an entry is its deadline, and one
word is the clock. A sweep collects the expired entries of a bucket without its lock, and removes
them one by one, each if its header is unchanged. An insertion that finds no room sweeps the whole
map once, in the map's order (a turn), and is refused if the turn removed nothing. Such a turn has
seen when the next entry expires; until then no context needs another turn. The word rest holds that
time:

    the end of the rest, and the context that is still making its turn; if that is 0, the rest holds

A context claims the word before its turn, and stores the end after it by a compare-and-swap. A
context that stores a deadline holds the entry, or its bucket, and then loads the word: if its
deadline is earlier, it lowers the end in the word to the deadline, and leaves the context in it. So
one of the two sees the other's store. Recovery ends the claim of a dead context.
"""

from support.protocol.automaton import begin, cas, end, load, store
from support.protocol.chains import chain_names
from support.protocol.reading import chain_next, find_once, table_find
from support.protocol.segment_model import (
    DELETE,
    LINK_BASE,
    LIVE,
    PAYLOAD_SHIFT,
    covers,
    level_plus1,
    owner_of,
    released,
    state_of,
)
from support.protocol.supply import FULL, op_give_back
from support.protocol.walking import ORDER_END, reverse_bits
from support.protocol.writing import RETRY, bucket_hold_hash, delete_found, insert_try

FAR = 9  # the latest deadline, and the latest end of a rest


def tick(m, _, time):
    """Set the clock."""
    yield begin("tick", 0, time)
    yield store(m.clock, time)
    yield end("OK")


def element_look(m, index, now):
    """(the header of an element if it is LIVE and has expired, else None; its deadline, or 0 if
    that is not known)."""
    header = yield load(m.element[index])
    if state_of(header) != LIVE:
        return None, 0
    deadline = yield load(m.value(index, 0))
    again = yield load(m.element[index])
    if again != header:
        return None, 0
    return (header if deadline <= now else None), deadline


def bucket_expired(m, order, now):
    """The expired entries of the bucket that order is in, as (index, header, tag, slot); the level
    of the bucket; and when the next of its entries expires, or 0 if that is not known."""
    while True:
        at = yield from table_find(m, reverse_bits(order))
        if at is None:
            continue
        header = yield load(m.bucket[at])
        if not covers(level_plus1(header), at, reverse_bits(order)):
            continue
        gone, earliest = yield from chain_expired(m, m.bucket[at], now)
        if owner_of(header) and m.keeps("a held bucket may get any entry"):
            earliest = 0
        again = yield load(m.bucket[at])
        if released(again) == released(header) or not m.keeps(
            "a bucket that changed is read again"
        ):
            return gone, level_plus1(header), earliest


def chain_expired(m, bucket, now):
    """The expired entries of a chain, and when the next expires, or 0 if that is not known."""
    line, gone, earliest = bucket, (), FAR
    while line is not None:
        for slot in range(m.slots):
            index = yield load(m.index(line, slot))
            if 0 < index < LINK_BASE:
                expired, deadline = yield from element_look(m, index, now)
                if deadline or m.keeps("an entry that is changing may expire at any time"):
                    earliest = min(earliest, deadline)
                if expired is not None:
                    tag = yield load(m.tag(line, slot))
                    gone = (*gone, (index, expired, tag, (line, slot)))
        line = yield from chain_next(m, line, load)
    return gone, earliest


def expired_remove(m, me, gone):
    """Delete a collected entry if its header is unchanged: whether it was deleted."""
    index, header, tag, place = gone
    yield from op_give_back(m, me)
    bucket = None
    while bucket is None:
        bucket, held = yield from bucket_hold_hash(m, me, DELETE, tag)
    if m.keeps("a sweeper searches for the slot when it has the lock"):
        place = yield from chain_names(m, bucket, index)
    if place is None:
        yield store(bucket, released(held))
        return False
    if not m.keeps("a sweeper removes only the entry that it saw expired"):
        header = yield load(m.element[index])
    removed = yield from delete_found(m, me, bucket, (index, header, *place))
    yield from op_give_back(m, me)
    return removed != RETRY


def sweep_turn(m, me):
    """Remove expired entries: how many, and when the next entry expires, or 0 if not known."""
    now = yield load(m.clock)
    order, removed, earliest = 0, 0, FAR
    while order < ORDER_END:
        gone, level, when = yield from bucket_expired(m, order, now)
        earliest = min(earliest, when)
        for turn in range(len(gone)):
            done = yield from expired_remove(m, me, gone[turn])
            removed += done
            del done
        if not m.keeps("a sweep continues after the bucket as it was read"):
            count = yield load(m.table)
            level = (count >> PAYLOAD_SHIFT).bit_length()
        order = (order | ORDER_END - 1 >> max(level, 1) - 1) + 1
    return removed, earliest


def expire(m, me):
    """Remove all entries that have expired."""
    yield begin("expire")
    yield from sweep_turn(m, me)
    yield end("DONE")


# ---- the rest ----


def rests(m):
    """Whether a rest holds: no entry has expired since a turn that removed nothing."""
    word = yield load(m.rest)
    now = yield load(m.clock)
    return owner_of(word) == 0 and now < word >> PAYLOAD_SHIFT


def rest_claim(m, me):
    """Claim the word before a turn that may end in a rest, unless another context has it."""
    word = yield load(m.rest)
    if owner_of(word) == 0 and m.keeps("a rest is claimed before the turn"):
        yield store(m.rest, FAR << PAYLOAD_SHIFT | me)


def rest_begin(m, me, until):
    """After a turn: rest until this time, but not longer than the word was claimed for."""
    if not m.keeps("a rest is claimed before the turn"):
        yield store(m.rest, until << PAYLOAD_SHIFT)
        return
    done = False
    while not done:
        word = yield load(m.rest)
        if owner_of(word) != me:
            return
        end = until
        if m.keeps("a rest ends when its claim does"):
            end = min(until, word >> PAYLOAD_SHIFT)
        done = yield cas(m.rest, word, end << PAYLOAD_SHIFT)
        if not m.keeps("a turn ends its claim although that was shortened"):
            return


# ---- an insertion that needs room ----


def insert_once(m, me, key, value):
    """Try to insert until the key is inserted or there is no room."""
    outcome = RETRY
    while outcome == RETRY:
        _, at, header = yield from find_once(m, key)
        outcome = yield from insert_try(m, me, key, value, at, header)
    yield from op_give_back(m, me)
    return outcome


def room(m, me, key, value):
    """Insert a key that no other program inserts; removing expired entries makes room."""
    yield begin("room", key, value)
    swept = not m.keeps("a sweep comes before a refusal")
    while True:
        outcome = yield from insert_once(m, me, key, value)
        if outcome != FULL or swept:
            break
        resting = yield from rests(m)
        if resting:
            break
        yield from rest_claim(m, me)
        removed, earliest = yield from sweep_turn(m, me)
        yield from rest_begin(m, me, 0 if removed else earliest)
        swept = removed == 0
        del removed, earliest, resting
    yield end(outcome)
