"""A sweep is stopped at each change, and the expired entry is renewed there (X1).

Between reading a deadline and removing the entry lie a few instructions, which a stress test hardly
ever hits.
"""

import os

import pytest
from support import stepping
from support.object_maps import core, create, five, value

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

KEY = b"k1"
CHANGES_MIN = 8


def test_entry_renewed_during_a_sweep_is_kept(map_name):
    """X1, W1: the new value is stored, or the sweep holds the entry; no new value is removed."""
    handle = create(map_name)
    segment = stepping.Segment(stepping.segment_path(map_name))
    try:
        entries = core(handle)
        five(entries)
        assert entries._touch_until(KEY, 1)
        image = segment.image()
        trace = stepping.trace(prepared(map_name), sweep, segment)
        assert len(trace.changes) >= CHANGES_MIN
        renewed = 0
        for number in range(1, len(trace.changes)):
            segment.restore(image)
            with (
                RHashMap.open(map_name, timeout=0.02) as other,
                stepping.stop_at_change(prepared(map_name), sweep, segment, number) as sweeper,
            ):
                stored = True
                try:
                    core(other)._put(KEY, value(99))
                except shmrhash.LockTimeout:  # the sweeper holds the entry already
                    stored = False
                sweeper.resume()
                sweeper.wait()
            assert stored == (KEY in dict(entries._entries(2))), number
            if stored:
                assert entries[KEY] == value(99), number
            handle.check()
            renewed += stored
        assert renewed >= CHANGES_MIN // 2
    finally:
        handle.close()
        os.unlink(stepping.segment_path(map_name))


def prepared(name):
    """prepare: a handle of the child's own, on which everything lazy is done."""

    def prepare():
        child = core(RHashMap.open(name))
        child.get(b"k2")
        return child

    return prepare


def sweep(entries):
    entries.expire()
