"""A process is killed at every change it makes in an operation on a map with objects (C1, C2, R2).

As test_kill_every_instruction.py, and in addition: every object is named once and the budget is
exact (check() finds both), there are as many objects as the entries refer to, no pin is left, and
clear() leaves no object.
"""

import dataclasses
import os
import time
from collections.abc import Callable

import pytest
from support import stepping
from support.killing import Tally, explained
from support.object_maps import LONG, PAGE, RUN, SHORT, SMALL, core, create, five, value

from shmrhash import BPF_NOEXIST, MapFull, OutOfMemory, RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

READ_SECONDS_MAX = 0.5


def nothing(entries):
    """fill: leave the map untouched, so that it never had an object."""


def of_size(size):
    def fill(entries):
        five(entries)
        entries[SHORT] = value(3, size)

    return fill


def nearly_full_depot(entries):
    """fill: the next deletion drains the depots of two small classes."""
    for number in range(50):
        entries[b"k%d" % number] = value(number, 400)
    for number in range(4, 49):
        del entries[b"k%d" % number]


def expiring(entries):
    five(entries)
    entries._put(SHORT, value(3), 0, 1)


def others_expired(entries):
    """fill: let entries expire that the child does not look up before it is stepped."""
    five(entries)
    for key in (b"k1", LONG):
        assert entries._touch_until(key, 1)


def full_of_expired(entries):
    """fill: leave no room except that of entries that have expired."""
    five(entries)
    old = []
    try:
        while True:
            old.append(b"old %d" % len(old))
            entries[old[-1]] = value(1, RUN)
    except (MapFull, OutOfMemory):
        old.pop()
    assert len(old) > 3
    for key in old:
        assert entries._touch_until(key, 1)


def stored(key, number, size=SMALL):
    return lambda model: model.__setitem__(key, value(number, size))


def removed(*keys):
    def change(model):
        for key in keys:
            del model[key]

    return change


def in_a_section(entries):
    with entries._section(SHORT, None) as section:
        section.value = value(80, PAGE)


def left_section(entries):
    with entries._section(SHORT, None) as section:
        section.value = value(80)
        section.roll_back()


def looked_at(entries):
    view = entries.view(SHORT)
    assert bytes(view)[:8] == value(3)[:8]
    del view


def replaced_under_a_view(entries):
    view = entries.view(SHORT)
    entries[SHORT] = value(81)
    assert bytes(view)[:8] == value(3)[:8]
    del view


KEPT = []  # in the child: views that must not be collected before it is killed


def kept_a_view(entries):
    KEPT.append(entries.view(SHORT))
    entries[SHORT] = value(82)


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one dict."""

    name: str
    operate: Callable  # in the child, with its DictCore
    change: Callable  # does the same to a dict of the visible entries
    fill: Callable = five
    atomic: bool = True
    geometry: dict = dataclasses.field(default_factory=dict)
    changes_min: int = 8

    def __str__(self):
        return self.name.replace(" ", "-")


def storing(name, key, number, size=SMALL, fill=five, **more):
    return Case(
        name, lambda d: d._put(key, value(number, size)), stored(key, number, size), fill, **more
    )


def unchanged(model):
    pass


CASES = {
    case.name: case
    for case in [
        storing("insert", b"new", 70),
        storing("insert a long key", LONG + b"!", 70),
        storing("insert the first", LONG, 70, fill=nothing),
        storing("insert a run", b"new", 70, RUN),
        storing("insert the first run", b"new", 70, RUN, fill=nothing),
        storing("replace", SHORT, 71),
        storing("replace of a long key", LONG, 71),
        storing("replace small by run", SHORT, 71, PAGE),
        storing("replace run by small", SHORT, 71, fill=of_size(PAGE)),
        storing("replace run by larger", SHORT, 71, RUN, fill=of_size(PAGE)),
        storing("replace an expired", SHORT, 71, fill=expiring),
        Case(
            "insert refused",
            lambda d: d._put(SHORT, value(1), BPF_NOEXIST),
            unchanged,
        ),
        Case("delete", lambda d: d.__delitem__(SHORT), removed(SHORT)),
        Case("delete a long key", lambda d: d.__delitem__(LONG), removed(LONG)),
        Case("delete a run", lambda d: d.__delitem__(SHORT), removed(SHORT), of_size(RUN)),
        Case(
            "delete, and drain", lambda d: d.__delitem__(b"k49"), removed(b"k49"), nearly_full_depot
        ),
        Case("pop", lambda d: d.pop(SHORT), removed(SHORT)),
        Case("pop a long key", lambda d: d.pop(LONG), removed(LONG)),
        Case("expire", lambda d: d.expire(), unchanged, others_expired),
        storing(
            "insert where all is full",
            b"new",
            72,
            fill=full_of_expired,
            geometry={"max_entries": 16},
        ),
        Case("exchange", lambda d: d.exchange(SHORT, value(72)), stored(SHORT, 72)),
        Case("setdefault", lambda d: d.setdefault(b"new", value(73)), stored(b"new", 73)),
        Case("touch", lambda d: d._touch_until(LONG, 1 << 62), unchanged, changes_min=4),
        Case("section", in_a_section, stored(SHORT, 80, PAGE)),
        Case("section rolled back", left_section, unchanged, changes_min=4),
        Case("view", looked_at, unchanged),
        Case("replace under a view", replaced_under_a_view, stored(SHORT, 81)),
        Case("replace and keep the view", kept_a_view, stored(SHORT, 82)),
        Case("clear", lambda d: d.clear(), lambda model: model.clear(), atomic=False),
    ]
}
# It has many steps: each round looks for memory in every depot of every class.
BYTES_ARE_FULL = storing(
    "insert where bytes are full",
    b"new",
    73,
    RUN,
    full_of_expired,
    geometry={"max_bytes": 300_000},
)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)
LEARNED = set()


# ---- how the survivor meets the dead ----


def replace_same_key(entries, model):
    entries[SHORT] = model[SHORT] = value(90, PAGE)


def insert_another(entries, model):
    key = LONG + b"another"
    entries[key] = model[key] = value(91, 300)


def somebody_attaches(entries, model):
    with RHashMap.open(entries.handle.name):
        pass


def lock_same_key(entries, model):
    with entries._section(SHORT, None, value(92)) as section:
        assert section.value == model.get(SHORT, value(92))
        section.value = model[SHORT] = value(93)


def clear_all(entries, model):
    entries.clear()
    model.clear()


def only_check(entries, model):
    """No process does anything more."""


WAYS = [replace_same_key, insert_another, somebody_attaches, lock_same_key, clear_all, only_check]


def seen_by(entries):
    """What a reader sees; it must not wait for any process (R1)."""
    began = time.monotonic()
    seen = dict(entries._entries(2))
    assert time.monotonic() - began < READ_SECONDS_MAX
    return seen


def objects_of(model):
    return len(model) + sum(len(key) > 15 for key in model)


def survive(case, entries, way, seen):
    handle = entries.handle
    model = dict(seen)
    way(entries, model)
    handle._recover()
    if case.atomic:
        assert seen_by(entries) == model
    else:  # recovery of a killed clear() finishes it
        left = seen_by(entries)
        assert left.items() <= model.items()
        assert len(left) <= 1 or left == model
        model = left
    expired = entries.expire()
    handle.check()
    facts = handle.info()["objects"]
    assert facts["count"] == objects_of(model), (facts, expired)
    assert facts["pinned"] == 0
    for number in range(3):  # free memory can be used
        entries[b"after%d" % number] = value(number, RUN)
    handle.check()
    entries.clear()
    handle.check()
    assert handle.info()["objects"]["count"] == handle.info()["objects"]["bytes_in_use"] == 0


def expect_one_of(case, seen, before, after):
    if case.atomic:
        assert seen in (before, after)
    else:
        assert all(seen.get(key) in (before.get(key), after.get(key)) for key in before | seen)


def kill_and_survive(case, name, record_property, *, sample, ways_at_once):
    tally = Tally()
    handle = create(name, **case.geometry)
    try:
        entries = core(handle)
        case.fill(entries)
        before = seen_by(entries)
        after = dict(before)
        case.change(after)
        segment = stepping.Segment(stepping.segment_path(name))

        def prepare():
            child = core(RHashMap.open(name))
            child.get(SHORT)
            return child

        def whole(trace):
            assert len(trace.changes) >= case.changes_min
            assert seen_by(entries) == after

        crashed = None
        for crash in stepping.crash_states(
            prepare, case.operate, segment, traced=whole, pcs=LEARNED, sample=sample
        ):
            crashed = crash
            tally.add(crash)
            for way in WAYS if ways_at_once else [WAYS[crash.n % len(WAYS)]]:
                segment.restore(crash.image)
                with explained(crash, way):
                    seen = seen_by(entries)
                    expect_one_of(case, seen, before, after)
                    survive(case, entries, way, seen)
        tally.report(record_property, case.name, crashed.total)
    finally:
        handle.close()
        os.unlink(stepping.segment_path(name))


@every_case
@pytest.mark.thorough
def test_killed_operation_with_objects_leaves_a_sound_map(case, map_name, record_property):
    """C1, C2, R2: a kill after a sample of the changes; the ways to meet take turns."""
    kill_and_survive(case, map_name, record_property, sample=60, ways_at_once=False)


@pytest.mark.long
@pytest.mark.parametrize("case", [*CASES.values(), BYTES_ARE_FULL], ids=str)
def test_killed_operation_with_objects_leaves_a_sound_map_to_all(case, map_name, record_property):
    """C1, C2, R2: a kill after each change, and every way to meet the dead on every state."""
    kill_and_survive(case, map_name, record_property, sample=None, ways_at_once=True)


def one_split_behind(entries):
    """fill: end with an insertion that took more credits than it may split buckets for."""
    five(entries)
    for number in range(100, 106):  # until there are buckets for the first credits
        entries[b"k%d" % number] = value(number)
    settled = entries.handle.info()["grows"]
    while entries.handle.info()["grows"] == settled:  # ends: 64 entries need more
        number += 1
        entries[b"k%d" % number] = value(number)


def test_clear_finds_entries_in_an_uncounted_bucket_of_a_dead_split(
    map_name, record_property, monkeypatch
):
    """C1: a process dies in the last changes of an insertion that splits: entries are in a bucket
    that the table word, still held, does not count, and no other lock leads to the dead process."""
    case = storing("insert and split", b"new", 70, fill=one_split_behind)
    monkeypatch.setattr(stepping, "choose", lambda total, *_: range(total - 12, total + 1))
    monkeypatch.setattr("test_kill_with_objects.WAYS", [clear_all])

    kill_and_survive(case, map_name, record_property, sample=None, ways_at_once=True)
