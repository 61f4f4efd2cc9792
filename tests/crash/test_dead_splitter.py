"""A splitter dies while it holds buckets, and the table grows on (C2, G1).

The splitter is killed after each change of the segment while it holds the parent, in every state
that a SIGKILL can leave. The survivor inserts new keys in batches: within INSERTIONS_MAX of them
the table grows, because the dead process was recovered or its bucket was passed over. An operation
that needs the bucket recovers the dead process.
"""

import os
import struct

import numpy as np
import pytest
from support import stepping
from support.killing import FRESH, fill_up_to_a_split, opened, word

from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

PUT_OFF = 8  # splits put off before a process asks whether the owner lives
INSERTIONS_MAX = PUT_OFF + 8  # the load asks for a split already: a few insertions more
BATCH = 4
REGION_OFFSET = 384 + 4 * 64  # of the region of the buckets: its lock word, and how much is usable
HELD_BY_FIRST = 1  # a lock word: held by context 0, which is the survivor's


def parent_is_held(m):
    """Whether the parent of the last bucket, or of the next one, is held."""
    buckets = list(m.walk())
    count = len(buckets)
    parents = {last ^ 1 << last.bit_length() - 1 for last in (count - 1, count)}
    return any(buckets[parent].locked for parent in parents)


def insertions_until_it_grows(m):
    """How many new keys are inserted, in batches, until a bucket is split off."""
    grows = m.info()["grows"]
    for first in range(0, 20 * INSERTIONS_MAX, BATCH):
        if m.info()["grows"] > grows:
            return first
        keys = np.arange(FRESH + first, FRESH + first + BATCH, dtype="<u8")
        m.update_many(keys, keys)
    return first


@pytest.mark.thorough
def test_dead_splitter_stops_no_growth_by_batches(map_name):
    """C2, G1: the table grows within INSERTIONS_MAX insertions, wherever they insert."""
    with stepping.on_cpu(stepping.default_cpu()):  # the survivor uses the killed child's depot
        m, key, segment = fill_up_to_a_split(map_name)
    image = segment.image()
    met = []
    try:
        for crash in stepping.crash_states(
            opened(m.name), lambda handle: handle.update(word(key), word(key)), segment
        ):
            if not parent_is_held(m):
                continue
            met.append(insertions_until_it_grows(m))
            assert met[-1] <= INSERTIONS_MAX, (str(crash), met)
            assert m.check()["exact"]
            assert all(m[word(old)] == word(old) for old in range(1, key))
            buckets = m.info()["buckets"]
            keys = np.arange(2 * FRESH, 2 * FRESH + 100, dtype="<u8")
            m.update_many(keys, keys)
            assert m.info()["buckets"] > buckets, str(crash)
            assert m.info()["recoveries"] == 1
        assert len(met) > 5, "no state had the parent"
        segment.restore(image)
    finally:
        m.unlink()
        m.close()


@pytest.mark.thorough
def test_dead_splitter_is_recovered_while_the_watermark_is_lowered(map_name):
    """C1, M1: while a process has lowered the watermark, to see whether the end of the array can be
    released, recovery still finds the bucket there that the dead process holds."""
    with stepping.on_cpu(stepping.default_cpu()):
        m, key, segment = fill_up_to_a_split(map_name)
    held = 0
    for _ in stepping.crash_states(
        opened(m.name), lambda handle: handle.update(word(key), word(key)), segment
    ):
        if not parent_is_held(m):
            continue
        held += 1
        file = os.open(segment.path, os.O_RDWR)
        before = os.pread(file, 16, REGION_OFFSET)
        os.pwrite(file, struct.pack("<QQ", HELD_BY_FIRST, 4096), REGION_OFFSET)
        RHashMap.open(m.name).close()  # attaching recovers the dead
        os.pwrite(file, before, REGION_OFFSET)
        os.close(file)

        assert m.check()["exact"]
        assert all(m[word(old)] == word(old) for old in range(1, key))
    assert held > 5, "no state had the parent"
    m.unlink()
    m.close()
