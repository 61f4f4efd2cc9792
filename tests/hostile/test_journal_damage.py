"""Journals in damaged segments: recovery trusts no word of a journal (H1).

A process is killed inside locked_many(). Then the words by which its contexts would name their
journal are overwritten, and the headers of its elements say that it had begun the end.
"""

import contextlib
import random
import signal
import struct

import pytest
from support.children import Child
from support.hostile.segment import Segment, ending_of

import shmrhash

CONTEXTS_AT = 4096 + 1024 * 64  # after the header and the process slots
CONTEXT_BYTES, CONTEXT_STRIDE = 272, 320
TARGET = 5 * 8
REMOVES, COMMITTED = 1 << 62, 1 << 63
STATE_MASK, ULOCK = 7 << 16, 4 << 16
KEYS = [struct.pack("<Q", number) for number in range(6)]
WORDS = {
    "a lead beyond all contexts": lambda rng, index: index | 0xFFFF << 32 | COMMITTED,
    "a context is its own lead": lambda rng, index: index | COMMITTED,
    "no lead is committed": lambda rng, index: index | rng.randrange(1, 9) << 32,
    "all lead": lambda rng, index: index | rng.randrange(1, 9) << 32 | COMMITTED,
    "all are deleted": lambda rng, index: index | rng.randrange(1, 9) << 32 | COMMITTED | REMOVES,
    "an element beyond all": lambda rng, index: 0xFFFFFFF0 | rng.randrange(9) << 32 | COMMITTED,
    "another's element": lambda rng, index: rng.randrange(9) | rng.randrange(9) << 32 | COMMITTED,
    "anything": lambda rng, index: rng.getrandbits(64),
}


@pytest.fixture
def killed(map_name):
    """A map, its Segment, and the offsets of the `target` words of a killed locked_many()."""
    with contextlib.ExitStack() as stack:
        m = shmrhash.RHashMap.create(
            map_name, key_size=8, value_size=16, max_entries=64, timeout=0.05
        )
        stack.callback(m.close)
        stack.callback(m.unlink)
        for key in KEYS:
            m[key] = bytes(16)

        def work():
            with shmrhash.RHashMap.open(map_name) as mine:
                kept = mine.locked_many(KEYS).__enter__()
                assert kept
                signal.raise_signal(signal.SIGKILL)

        Child(work).join()
        segment = Segment(m)
        contexts = range(CONTEXTS_AT, CONTEXTS_AT + 16 * CONTEXT_STRIDE, CONTEXT_STRIDE)
        yield m, segment, [at + TARGET for at in contexts if segment.get(at + TARGET)]


def elements_of(segment, contexts):
    """Return the offset of the header of each element that one of these contexts holds."""
    wanted = {context << 1 | 1 for context in contexts}
    return [
        start + at
        for start, content in segment.pages()
        for at in range(0, 4096, 8)
        if start > CONTEXTS_AT + (1 << 16)
        for word in [int.from_bytes(content[at : at + 8], "little")]
        if word & 0xFFFF in wanted and word & STATE_MASK == 5 << 16
    ]


def use(m):
    m._recover()
    for key in KEYS:
        m.get(key)
        m[key] = bytes(16)
    with m.locked_many(KEYS[:3], default=bytes(16)) as values:
        values[0].delete()
    with contextlib.suppress(shmrhash.SegmentCorrupt):
        m.check()


@pytest.mark.parametrize("damage", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("held", [False, True], ids=["locked", "held"])
def test_damaged_journal_ends_in_an_exception_at_worst(killed, seed, damage, held):
    """H1: whatever the words hold, survivors neither crash nor hang, and touch no other memory."""
    m, segment, targets = killed
    rng = random.Random(seed)
    contexts = [(at - CONTEXTS_AT) // CONTEXT_STRIDE for at in targets]
    elements = elements_of(segment, contexts)
    assert len(elements) == len(KEYS)
    for at in targets:
        segment.set(at, damage(rng, segment.get(at)) & (1 << 64) - 1)
    for at in elements if held else ():
        segment.set(at, segment.get(at) & ~STATE_MASK | ULOCK)

    ending = ending_of(lambda: use(m))

    assert ending in ("done", "SegmentCorrupt", "LockTimeout", "MapFull", "KeyGone")
