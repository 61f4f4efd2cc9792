"""A splitter dies with the table's word, which nobody waits for: insertions meet it (C2, G1).

Killed after each change of the segment while it has that word, in every state that a SIGKILL can
leave. The survivor inserts new keys in batches, and is counted: within INSERTIONS_MAX of them the
dead is recovered and the table grows again.
"""

import numpy as np
import pytest
import stepping
from test_kill_every_instruction import SCATTERED, opened, shm_path, word

from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

TABLE_OFFSET = 256
PUT_OFF = 64  # so many splits are put off before somebody asks whether the dead lives
INSERTIONS_MAX = PUT_OFF + 8  # the load is there: a few bring it back to where it was
BATCH = 4
FRESH = 1 << 32


def word_is_held(segment):
    with open(segment.path, "rb") as file:
        file.seek(TABLE_OFFSET)
        return bool(file.read(8)[0] & 1)


def fill_up_to_a_split(name):
    """A map that splits a bucket at its next insertion, the key of that, and its file."""
    m = RHashMap.create(name, key_size=8, value_size=8, max_entries=4096, _seeds=SCATTERED)
    segment = stepping.Segment(shm_path(name))
    for key in range(1, 300):
        m[word(key)] = word(key)
    while True:
        image = segment.image()
        buckets = m.info()["buckets"]
        key += 1
        m[word(key)] = word(key)
        if m.info()["buckets"] > buckets:
            segment.restore(image)
            return m, key, segment


def insertions_until_recovered(m):
    """How many new keys, in batches, until the dead one is recovered."""
    for first in range(0, 20 * INSERTIONS_MAX, BATCH):
        if m.info()["recoveries"]:
            return first
        keys = np.arange(FRESH + first, FRESH + first + BATCH, dtype="<u8")
        m.update_many(keys, keys)
    return first


def test_a_dead_splitter_is_met_by_who_inserts_in_batches(map_name):
    """C2: by counted insertions, and not only where somebody meets one of its buckets."""
    with stepping.on_cpu(stepping.default_cpu()):  # the depot of the child that is killed
        m, key, segment = fill_up_to_a_split(map_name)
    image = segment.image()
    met = []
    try:
        for crash in stepping.crash_states(
            opened(m.name), lambda handle: handle.update(word(key), word(key)), segment
        ):
            if not word_is_held(segment):
                continue
            met.append(insertions_until_recovered(m))
            assert met[-1] <= INSERTIONS_MAX, (str(crash), met)
            assert m.check()["exact"]
            assert all(m[word(old)] == word(old) for old in range(1, key))
            buckets = m.info()["buckets"]
            keys = np.arange(2 * FRESH, 2 * FRESH + 100, dtype="<u8")
            m.update_many(keys, keys)
            assert m.info()["buckets"] > buckets, str(crash)
        assert len(met) > 5, "no state had the table's word"
        segment.restore(image)
    finally:
        m.unlink()
        m.close()
