"""A waiter is stopped at each change that it makes, and the element is deleted there (L1, M1).

The waiter has the address of the word that it waits for. Between its attempts it is inside no
operation, so the memory at that address may be released; reading it afterwards would bring a page
back, or be SIGBUS on a file system without room. Only a few instructions lie between a failed
attempt and the read of the word: the waiter is stepped there.
"""

import asyncio
import contextlib
import os
import time

import pytest
from support import stepping
from support.killing import FRESH, word

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_LOCK, RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

MANY = 300
WIDE = 4096
KEY = 150  # its element is not in the first block, which is kept
# Changes of the waiter's context: two for each attempt, and from the fifth on two for each look.
CHANGES = range(9, 17)
GONE_MIN = 3


def wait_for_key(flags):
    def operate(handle):
        with contextlib.suppress(shmrhash.KeyNotFound):
            handle.update(word(KEY), bytes(WIDE), BPF_EXIST | flags)
            raise AssertionError("the key was there")

    return operate


def wait_in_vain(flags):
    def operate(handle):
        with contextlib.suppress(shmrhash.LockTimeout):
            handle.update(word(KEY), bytes(WIDE), BPF_EXIST | flags)
            raise AssertionError("the key was not locked")

    return operate


def having_opened(name, timeout):
    """prepare: a handle of the child's own, on which everything lazy is done."""

    def prepare():
        handle = RHashMap.open(name, timeout=timeout)
        handle.lookup(word(FRESH))
        return handle

    return prepare


def memory_of(path):
    """How many bytes of the segment have memory."""
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("flags", [BPF_ANY, BPF_F_LOCK], ids=["plain", "f-lock"])
@pytest.mark.thorough
def test_stopped_waiter_does_not_touch_an_element_without_memory(make_map, flags):
    """L1, M1: wherever the waiter is stopped, it brings no page back and raises KeyNotFound."""
    m = make_map(value_size=WIDE, max_entries=2 * MANY, timeout=30)
    for number in range(1, MANY + 1):
        m[word(number)] = word(number) * (WIDE // 8)
    RHashMap.open(m.name).close()  # commits what a second process needs
    section = m.locked(word(KEY))
    section.__enter__()
    m.add(word(1), 0)  # with another context than the section's
    segment = stepping.Segment(stepping.segment_path(m.name))
    image = segment.image()
    pcs = stepping.trace(having_opened(m.name, 0.02), wait_in_vain(flags), segment).pcs
    gone = 0
    for n in CHANGES:
        segment.restore(image)
        with stepping.stop_at_change(
            having_opened(m.name, 30),
            wait_for_key(flags),
            segment,
            n,
            pcs=pcs,
            again=lambda: segment.restore(image),
        ) as waiter:
            full = memory_of(segment.path)
            m.clear()
            before = memory_of(segment.path)
            gone += before < full // 2
            waiter.wait()

        assert memory_of(segment.path) == before, f"stopped after change {n}"
        assert m.check()["exact"]
    assert gone >= GONE_MIN, "its being inside an operation kept the memory each time"
    segment.restore(image)
    section.__exit__(None, None, None)
    print(f"the memory went in {gone} of {len(CHANGES)} places")


def test_stopped_writer_does_not_block_an_event_loop(make_map):
    """A writer is stopped inside its change of a key that a coroutine waits for: the loop goes on,
    and the wait ends when the writer does."""
    m = make_map(timeout=30)
    m[word(KEY)] = word(1)
    RHashMap.open(m.name).close()
    segment = stepping.Segment(stepping.segment_path(m.name))

    def store(handle):
        handle.update(word(KEY), word(9))

    async def main(writer, settled):
        task = asyncio.ensure_future(m.wait_for(word(KEY), lambda value: value == word(9)))
        spent = []
        for _ in range(20):
            began = time.thread_time()
            await asyncio.sleep(0.001)
            spent.append(time.thread_time() - began)
        assert settled or not task.done()
        assert min(spent) < 0.01, "processor time of a turn of the loop"
        writer.wait()
        return await task

    changes = len(stepping.trace(having_opened(m.name, 30), store, segment).changes)
    m[word(KEY)] = word(1)
    image = segment.image()
    unsettled = 0
    for n in range(1, changes + 1):
        segment.restore(image)
        with stepping.stop_at_change(having_opened(m.name, 30), store, segment, n) as writer:
            waiter = m._waiter([word(KEY)])
            settled = waiter.arm(0)
            waiter.end()
            unsettled += not settled
            assert asyncio.run(main(writer, settled)) == word(9)
    assert unsettled, "the writer was inside its change"
