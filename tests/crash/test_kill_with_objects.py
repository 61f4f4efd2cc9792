"""A process is killed at every change it makes in an operation on a map with objects (C1, C2, R2).

As test_kill_every_instruction.py, and in addition: every object is named once and the budget is
exact (check() finds both), there are as many objects as the entries refer to, no pin is left, and
clear() leaves no object.
"""

import contextlib

import pytest
from support import stepping
from support.children import Child
from support.killing import Scenario, not_waiting, only_check
from support.object_maps import (
    LONG,
    MIDDLE,
    RUN,
    SHORT,
    SMALL,
    budget_word,
    core,
    create,
    five,
    value,
)
from support.refusing import MADV_REMOVE, PUNCH_HOLE, refuse

from shmrhash import BPF_NOEXIST, KeyGone, MapFull, OutOfMemory, RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

KEPT = []  # in the child: views that must not be collected before it is killed


# ---- how the survivor meets the dead ----


def replace_same_key(scenario, entries, model):
    entries[SHORT] = model[SHORT] = value(90, MIDDLE)


def insert_another(scenario, entries, model):
    key = LONG + b"another"
    entries[key] = model[key] = value(91, 300)


def somebody_attaches(scenario, entries, model):
    with RHashMap.open(entries.handle.name):
        pass


def lock_same_key(scenario, entries, model):
    try:
        with entries._section(SHORT, None, value(92)) as section:
            assert section.value == model.get(SHORT, value(92))
            section.value = model[SHORT] = value(93)
    except KeyGone:
        if not scenario.goes_on:
            raise
        # The section's end met a lock of the dead, and so finished the clear() that it had begun.
        del model[SHORT]


def clear_all(scenario, entries, model):
    entries.clear()
    model.clear()


# ---- the operations ----


class OnObjects(Scenario):
    """One operation on the DictCore of a map with objects, which begins with five entries."""

    changes_min = 8
    sample = 30
    meetings = (
        replace_same_key,
        insert_another,
        somebody_attaches,
        lock_same_key,
        clear_all,
        only_check,
    )
    learned = set()  # noqa: RUF012 - shared by all operations of the file

    def fill(self, entries):
        five(entries)

    def prepare(self, name):
        child = core(RHashMap.open(name))
        child.get(SHORT)
        return child

    def look(self, entries, keys):
        with not_waiting(len(keys)):
            return dict(entries._entries(2))

    def facts(self, entries):
        return entries.handle.info()

    @contextlib.contextmanager
    def made(self, name):
        with create(name, **self.geometry) as handle:
            try:
                entries = core(handle)
                self.fill(entries)
                yield entries, self.look(entries, ())
            finally:
                handle.unlink()

    def survive(self, entries, meet, seen, keys):
        handle = entries.handle
        model = dict(seen)
        meet(self, entries, model)
        handle._recover()
        if self.goes_on:
            left = self.look(entries, keys)
            assert left.items() <= model.items()
            assert len(left) <= 1 or left == model
            model = left
        else:
            assert self.look(entries, keys) == model
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


def objects_of(model):
    return len(model) + sum(len(key) > 15 for key in model)


class Store(OnObjects):
    stored_key = SHORT
    number = 71
    size = SMALL

    def operate(self, state):
        state._put(self.stored_key, value(self.number, self.size))

    def change(self, model):
        model[self.stored_key] = value(self.number, self.size)


class StoreFirst(Store):
    """The first object that the map ever had."""

    def fill(self, entries):
        pass


class Replace(Store):
    """The key has a value of `old_size` bytes before."""

    old_size = RUN

    def fill(self, entries):
        five(entries)
        entries[SHORT] = value(3, self.old_size)


class ReplaceMiddle(Replace):
    old_size = MIDDLE


class ReplaceExpired(Store):
    def fill(self, entries):
        five(entries)
        entries._put(SHORT, value(3), 0, 1)


class StoreWhereAllIsFull(Store):
    """The only room left is that of expired entries."""

    stored_key = b"new"
    number = 72

    def fill(self, entries):
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


class StoreInFullCache(Store):
    """The oldest entry is evicted for the new one, since no entry was read."""

    stored_key = b"new"
    number = 74
    evicted = b"k0"
    meetings = (replace_same_key, somebody_attaches, lock_same_key, clear_all, only_check)

    def fill(self, entries):
        five(entries)
        entries[b"k9"] = value(9)
        assert len(entries) == entries.handle.max_entries

    def models(self, before):
        between = {key: value for key, value in before.items() if key != self.evicted}
        return [before, between, between | {self.stored_key: value(self.number, self.size)}]


class StoreAndSplit(Store):
    """The insertion before took more credits than the number of buckets that it may split."""

    stored_key = b"new"
    number = 70
    meetings = (clear_all,)

    def fill(self, entries):
        five(entries)
        for number in range(100, 106):  # until there are buckets for the first credits
            entries[b"k%d" % number] = value(number)
        settled = entries.handle.info()["grows"]
        while entries.handle.info()["grows"] == settled:  # ends: 64 entries need more
            number += 1
            entries[b"k%d" % number] = value(number)


class RefusedInsert(OnObjects):
    def operate(self, state):
        state._put(SHORT, value(1), BPF_NOEXIST)

    def change(self, model):
        pass


class Delete(OnObjects):
    deleted_key = SHORT

    def operate(self, state):
        del state[self.deleted_key]

    def change(self, model):
        del model[self.deleted_key]


class DeleteRun(Delete):
    def fill(self, entries):
        five(entries)
        entries[SHORT] = value(3, RUN)


class DeleteRunThatStays(DeleteRun):
    """The kernel gives no memory back: neither to the child nor to a process that recovers it."""

    meetings = (replace_same_key, insert_another, only_check)

    def prepare(self, name):
        child = super().prepare(name)
        give_nothing_back()
        return child

    def survive(self, entries, meet, seen, keys):
        assert Child(recover_and_give_nothing_back, entries.handle).join() == 0
        super().survive(entries, meet, seen, keys)


def give_nothing_back():
    refuse("madvise", MADV_REMOVE)
    refuse("fallocate", PUNCH_HOLE)


def recover_and_give_nothing_back(handle):
    give_nothing_back()
    handle._recover()


class DeleteMiddle(Delete):
    def fill(self, entries):
        five(entries)
        entries[SHORT] = value(3, MIDDLE)
        entries[b"k1"] = value(4, MIDDLE)


class DeleteBesideACharge(Delete):
    """Key and value are runs. The survivor holds the budget all the time, as if it were charging
    pages: what the child owes for the first run, it still owes while it gives up the second."""

    deleted_key = LONG * (RUN // len(LONG))
    meetings = (replace_same_key, insert_another, somebody_attaches, only_check)

    def fill(self, entries):
        five(entries)
        entries[self.deleted_key] = value(3, RUN)

    def prepare(self, name):
        child = super().prepare(name)
        with budget_word(child.handle) as word:
            assert not word[0] & 1
            word[0] |= 1  # locked by context 0: the survivor's, which was the first
        return child

    def survive(self, entries, meet, seen, keys):
        with budget_word(entries.handle) as word:
            assert word[0] & 1
            word[0] -= 1
        super().survive(entries, meet, seen, keys)


class DeleteAndDrain(Delete):
    """The deletion drains the nearly full depots of two small classes."""

    deleted_key = b"k49"

    def fill(self, entries):
        for number in range(50):
            entries[b"k%d" % number] = value(number, 400)
        for number in range(4, 49):
            del entries[b"k%d" % number]


class Pop(Delete):
    def operate(self, state):
        state.pop(self.deleted_key)


class Expire(OnObjects):
    """Remove expired entries; the child has not looked them up before it is stepped."""

    def fill(self, entries):
        five(entries)
        for key in (b"k1", LONG):
            assert entries._touch_until(key, 1)

    def operate(self, state):
        state.expire()

    def change(self, model):
        pass


class Exchange(Store):
    number = 72

    def operate(self, state):
        state.exchange(SHORT, value(self.number))


class SetDefault(Store):
    stored_key = b"new"
    number = 73

    def operate(self, state):
        state.setdefault(self.stored_key, value(self.number))


class Touch(OnObjects):
    changes_min = 4

    def operate(self, state):
        state._touch_until(LONG, 1 << 62)

    def change(self, model):
        pass


class Section(Store):
    number = 80
    size = MIDDLE

    def operate(self, state):
        with state._section(SHORT, None) as section:
            section.value = value(self.number, self.size)


class SectionRolledBack(OnObjects):
    changes_min = 4

    def operate(self, state):
        with state._section(SHORT, None) as section:
            section.value = value(80)
            section.roll_back()

    def change(self, model):
        pass


class View(OnObjects):
    def operate(self, state):
        view = state.view(SHORT)
        assert bytes(view)[:8] == value(3)[:8]
        del view

    def change(self, model):
        pass


class ReplaceUnderAView(Store):
    number = 81

    def operate(self, state):
        view = state.view(SHORT)
        state[SHORT] = value(self.number)
        assert bytes(view)[:8] == value(3)[:8]
        del view


class ReplaceAndKeepTheView(Store):
    number = 82

    def operate(self, state):
        KEPT.append(state.view(SHORT))
        state[SHORT] = value(self.number)


class Clear(OnObjects):
    atomic = False
    goes_on = True  # recovery of a killed clear() finishes it

    def operate(self, state):
        state.clear()

    def change(self, model):
        model.clear()


CASES = {
    case.name: case
    for case in [
        Store("insert", stored_key=b"new", number=70),
        Store("insert a long key", stored_key=LONG + b"!", number=70),
        StoreFirst("insert the first", stored_key=LONG, number=70),
        StoreFirst("insert the first of a middle size", stored_key=b"new", number=70, size=MIDDLE),
        Store("insert a run", stored_key=b"new", number=70, size=RUN),
        StoreFirst("insert the first run", stored_key=b"new", number=70, size=RUN),
        Store("replace"),
        Store("replace of a long key", stored_key=LONG),
        Store("replace small by middle", size=MIDDLE),
        ReplaceMiddle("replace middle by middle", size=MIDDLE),
        ReplaceMiddle("replace middle by small"),
        Replace("replace run by small"),
        Replace("replace run by larger", size=2 * RUN),
        ReplaceExpired("replace an expired"),
        RefusedInsert("insert refused"),
        Delete("delete"),
        Delete("delete a long key", deleted_key=LONG),
        DeleteMiddle("delete of a middle size"),
        DeleteRun("delete a run"),
        DeleteRunThatStays("delete a run that the kernel keeps"),
        DeleteBesideACharge("delete runs beside a charge"),
        DeleteAndDrain("delete, and drain"),
        Pop("pop"),
        Pop("pop a long key", deleted_key=LONG),
        Expire("expire"),
        StoreWhereAllIsFull("insert where all is full", {"max_entries": 16}),
        StoreInFullCache("insert and evict", {"max_entries": 7, "_is_cache": True}),
        Exchange("exchange"),
        SetDefault("setdefault"),
        Touch("touch"),
        Section("section"),
        SectionRolledBack("section rolled back"),
        View("view"),
        ReplaceUnderAView("replace under a view"),
        ReplaceAndKeepTheView("replace and keep the view"),
        Clear("clear"),
    ]
}
# It has many steps: each round looks for memory in every depot of every class.
BYTES_ARE_FULL = StoreWhereAllIsFull(
    "insert where bytes are full", {"max_bytes": 300_000}, number=73, size=RUN
)
# A run has 64 KiB or more, which the child steps through as it copies them.
RUNS_ARE_WRITTEN = {"insert a run", "insert the first run", "replace run by larger"}
SHORT_CASES = [case for case in CASES.values() if case.name not in RUNS_ARE_WRITTEN]


@pytest.mark.parametrize("case", SHORT_CASES, ids=str)
@pytest.mark.thorough
def test_killed_operation_with_objects_leaves_a_sound_map(case, map_name, seed, record_property):
    """C1, C2, R2: a kill after a sample of the changes; the ways to meet take turns."""
    case.kill_and_survive(map_name, record_property, seed=seed, sample=case.sample)


@pytest.mark.long
@pytest.mark.parametrize("case", [*CASES.values(), BYTES_ARE_FULL], ids=str)
def test_killed_operation_with_objects_leaves_a_sound_map_to_all(
    case, map_name, seed, record_property
):
    """C1, C2, R2: a kill after each change, and every way to meet the dead on every state."""
    case.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)


def test_clear_finds_entries_in_an_uncounted_bucket_of_a_dead_split(
    map_name, seed, record_property, monkeypatch
):
    """C1: a process dies in the last changes of an insertion that splits. Entries are in a bucket
    that the table word does not count; no lock but that of the table word leads to the dead
    process."""
    case = StoreAndSplit("insert and split")
    monkeypatch.setattr(stepping, "choose", lambda total, *_: range(total - 12, total + 1))

    case.kill_and_survive(map_name, record_property, seed=seed, sample=13)
