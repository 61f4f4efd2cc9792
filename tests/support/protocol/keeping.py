"""Values that a handle keeps decoded (keeping.pxi), while the memory of their element goes back.

There is one key, and one element, which is alone in its block. A handle keeps a value with the
header under which it found the value, and with the count of releases. A header has a version. The
version begins at 0 again when the system gives the memory anew, as zeros; so the header of a later
value may equal the header of a kept one. Values are increasing numbers. A program that has stored a
number acknowledges it, and from then on no program may find an older one.
"""

from support.protocol.automaton import awaits, cas, load, store
from support.protocol.oracle import Violation
from support.protocol.outdating import raised
from support.protocol.words import Words

FREE, LIVE, DEAD = range(3)  # an element
HOLE, EMPTY, USED, HELD, RELEASING = range(5)  # a block
STALE = "a value was found that is older than one that was stored"


class Memory(Words):
    """The words of the element, its block and the contexts. without: the steps that a mutant leaves
    out."""

    def __init__(self, programs, without=()):
        super().__init__(without)
        contexts = range(programs)
        self.slot = self._word("slot")
        self.header = self._word("header")
        self.value = self._word("value")
        self.block = self._word("block")
        self.releases = self._word("count of releases")
        self.acknowledged = self._word("the last value whose store has ended")
        self.activity = [self._word(f"activity of {me}") for me in contexts]
        self.asleep = [self._word(f"sleep of {me}") for me in contexts]
        self.ended = [self._word(f"end of {me}") for me in contexts]


def state_of(header):
    return header % 4


def get_often(m, me, times):
    """Play get() of a handle that keeps the values that it finds."""
    kept_header = kept_value = kept_count = 0
    for _ in range(times):
        asked = yield load(m.acknowledged)
        yield store(m.activity[me], 1)
        while True:
            count = yield load(m.releases)
            value = yield load(m.slot)
            if not value:
                break
            header = yield load(m.header)
            named = yield load(m.slot)
            if state_of(header) != LIVE or not named:
                continue
            now = yield load(m.releases)
            if header == kept_header and (
                kept_count == now or not m.does("a hit looks at the count")
            ):
                value = kept_value
                break
            value = yield load(m.value)
            again = yield load(m.header)
            if again == header:
                if m.does("a value is kept with the count from before it was found"):
                    kept_count = count
                kept_header, kept_value = header, value
                break
        yield store(m.activity[me], 0)
        if kept_value == value and not m.does(
            "a value is kept with the count from before it was found"
        ):
            kept_count = yield load(m.releases)
        if value and value < asked:
            raise Violation(STALE)
        asked = count = value = header = named = now = again = 0
    yield store(m.ended[me], 1)


def insert(m, me, value):
    """Take the element when it is free, and store a value."""
    while True:
        block = yield load(m.block)
        if block in (HOLE, EMPTY):
            done = yield cas(m.block, block, USED)
            if done:
                break
            del done
        else:
            yield awaits("changed", (m.block, block))
        del block
    header = yield load(m.header)
    yield store(m.value, value)
    version = header // 4
    if m.does("each store of a value raises the version"):
        version += 1
    elif not version:
        version = 1
    yield store(m.header, version * 4 + LIVE)
    yield store(m.slot, 1)
    yield store(m.acknowledged, value)
    yield store(m.ended[me], 1)


def remove(m, me):
    header = yield load(m.header)
    yield store(m.header, header // 4 * 4 + DEAD)
    yield store(m.slot, 0)
    yield store(m.block, EMPTY)
    yield store(m.ended[me], 1)


def release(m, me, reader):
    """Give the block's memory back, if it is empty."""
    held = yield cas(m.block, EMPTY, HELD)
    if held:
        yield awaits("outside", reader)
        early = m.does("a releaser counts before the block's word says that the memory goes")
        late = not m.does("a releaser counts before the memory can be used again")
        if early and not late:
            yield from raised(m.releases)
        yield store(m.block, RELEASING)
        if not early:
            yield from raised(m.releases)
        yield from vacate(m)
        if late:
            yield from raised(m.releases)
    yield store(m.ended[me], 1)


def vacate(m):
    yield store(m.header, 0)
    yield store(m.value, 0)
    yield store(m.block, HOLE)


def recover(m, me, dead):
    """Recover a process that died while it gave memory back."""
    yield awaits("dead", dead)
    block = yield load(m.block)
    if block == HELD:
        yield store(m.block, EMPTY)
    elif block == RELEASING:
        yield from vacate(m)
    yield store(m.ended[me], 1)
