"""Who removes what has expired is stopped at each change, and the entry is renewed there (X1).

Between the look at a deadline and the removal lie a few instructions, which chance hardly meets.
"""

import os

import pytest
from support import stepping
from support.killing import shm_path
from support.object_maps import core, create, five, value

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

KEY = b"k1"
CHANGES_MIN = 8


def test_an_entry_renewed_under_a_sweep_is_kept(map_name):
    """X1, W1: it is stored anew in place, or the removal has it: never is a new value removed."""
    handle = create(map_name)
    segment = stepping.Segment(shm_path(map_name))
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
                except shmrhash.LockTimeout:  # the sweeper has it already
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
        os.unlink(shm_path(map_name))


def prepared(name):
    """prepare: a dict of the child's own, with everything lazy done."""

    def prepare():
        child = core(RHashMap.open(name))
        child.get(b"k2")
        return child

    return prepare


def sweep(entries):
    entries.expire()
