"""A sweep is stopped at each change, and the expired entry is renewed there (X1).

Between reading a deadline and removing the entry lie a few instructions, which a stress test hardly
ever hits.
"""

import os

import pytest
from support import stepping
from support.object_maps import core, create, five, value

import shmrhash
from shmrhash import RHashMap, SharedDict

pytestmark = pytest.mark.usefixtures("stepper")

KEY = b"k1"
CHANGES_MIN = 8


@pytest.mark.thorough
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


SWEEP_REST_OFFSET = 240
LOCK_BIT = 1


def test_killed_turn_prevents_no_later_rest(map_name):
    """X1, C2: a process that is killed in a turn through a full map leaves its claim of the rest.
    Recovery ends the claim, and the turn before the next refusal is followed by a rest."""
    with SharedDict(map_name, key=int, value=int, ttl=3600.0, max_entries=8) as d:
        d.update({number: number for number in range(8)})
        segment = stepping.Segment(stepping.segment_path(map_name))
        image = segment.image()
        for number in range(1, 100):
            segment.restore(image)
            with stepping.stop_at_change(full_dict(map_name), refuse, segment, number) as child:
                claimed = rest_of(map_name) & LOCK_BIT
                if claimed:
                    child.kill()
            if claimed:
                break
        assert claimed

        SharedDict.open(map_name, key=int, value=int).close()

        assert rest_of(map_name) == 0
        refuse(d)
        assert rest_of(map_name) != 0
        assert not rest_of(map_name) & LOCK_BIT
        d.unlink()


def rest_of(name):
    """The word sweep_rest of the header (rest.pxd)."""
    with open(stepping.segment_path(name), "rb") as file:
        file.seek(SWEEP_REST_OFFSET)
        return int.from_bytes(file.read(8), "little")


def full_dict(name):
    """prepare: a handle of the child's own, on which everything lazy is done."""

    def prepare():
        child = SharedDict.open(name, key=int, value=int)
        child.get(1)
        return child

    return prepare


def refuse(d):
    with pytest.raises(shmrhash.MapFull):
        d[99] = 1
