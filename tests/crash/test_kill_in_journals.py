"""A process is killed at every change it makes at the end of several sections (C1, C2, L1, L2).

As test_kill_every_instruction.py, with one difference: plain lookups may find some keys changed and
some not, because they take no lock. So the survivor first looks at each key, and then settles the
keys in one of several ways, each of which meets what the dead process left: after that it sees all
of the change or none of it, and a later kill never shows less than an earlier one.
"""

import contextlib
import itertools

import pytest
from support import stepping
from support.killing import (
    COLLISIONS,
    MEETINGS,
    Scenario,
    Tally,
    contents,
    expect_whole,
    explained,
    not_waiting,
    only_check,
    word,
)
from support.object_maps import LONG, MIDDLE, RUN, SHORT, core, create, five, value

import shmrhash
from shmrhash import RHashMap
from shmrhash._locks import LockedKeys

NEW = 90  # and the numbers above: those of the stored values
KEPT = []  # in the child: sections that must not be collected before it is killed

stepped = pytest.mark.usefixtures("stepper")


# ---- how the survivor settles the keys ----


def lock_together(scenario, survivor):
    """L2: a process that locks all keys finds the values that stay from then on."""
    present = [key for key in scenario.locks if key in survivor]
    try:
        with survivor.locked_many(present, timeout=5) as values:
            seen = dict(zip(present, map(bytes, values), strict=True))
    except KeyError:  # recovery has deleted a key
        lock_each(scenario, survivor)
    else:
        assert seen == {key: survivor[key] for key in present}


def lock_each(scenario, survivor):
    for key in reversed(scenario.locks):
        with contextlib.suppress(KeyError), survivor.locked(key, timeout=5):
            pass


def recover(scenario, survivor):
    survivor._recover()


def attach(scenario, survivor):
    RHashMap.open(survivor.name).close()


WAYS = (lock_together, recover, lock_each, attach)


class Together(Scenario):
    """Leave locked_many; changes has the number of each key's new value, or None: it is deleted."""

    key = 2
    max_entries = 16
    entry_count = 8
    changes = {2: NEW, 4: NEW + 1}  # noqa: RUF012 - never changed
    whole_block = False  # the child takes the locks, too, before it is killed
    failing = False
    changes_min = 12
    meetings = tuple(meet for meet in MEETINGS if meet is not only_check)
    learned = set()  # noqa: RUF012 - shared by all operations of the file

    def __init__(self, *arguments, **attributes):
        super().__init__(*arguments, **attributes)
        self.locks = [word(key) for key in self.changes]
        self.ways = itertools.cycle(WAYS)
        self.halves = 0

    @contextlib.contextmanager
    def made(self, name):
        with super().made(name) as (survivor, before):
            with survivor.locked_many(self.locks):  # the image has the survivor's contexts
                pass
            yield survivor, before

    def enter(self, handle):
        several = handle.locked_many(reversed(self.locks))
        KEPT.append(several)
        sections = several.__enter__()
        for section, number in zip(sections, reversed(self.changes.values()), strict=True):
            if number is None:
                section.delete()
            else:
                section[:] = self.value(number)
        return several

    def prepare(self, name):
        handle = super().prepare(name)
        return handle if self.whole_block else self.enter(handle)

    def operate(self, state):
        several = self.enter(state) if self.whole_block else state
        several.__exit__(*((ValueError, ValueError(), None) if self.failing else (None,) * 3))

    def models(self, before):
        after = dict(before)
        for key, number in self.changes.items():
            if number is None:
                del after[word(key)]
            else:
                after[word(key)] = self.value(number)
        self.both = [before] if self.failing else [before, after]
        return self.both

    def look(self, survivor, keys):
        """R1, R2: each key has its old or its new value at once. Then settle them."""
        seen = contents(survivor, keys)
        for key in keys:
            assert seen.get(key) in [model.get(key) for model in self.both]
        self.halves += seen not in self.both
        next(self.ways)(self, survivor)
        return contents(survivor, keys)

    def expect_all_seen(self, visited, models, sample):
        super().expect_all_seen(visited, models, sample)
        if sample is None and not self.failing:
            assert self.halves > 0, "no kill fell between the commit and the last change"


VALUES = {"value_size": 64}
STORE_AND_DELETE = {2: NEW, 4: None, 6: NEW + 1}
MANY = {key: NEW + key if key % 3 else None for key in range(1, 9)}
STEPS = [
    Together("two", VALUES, sample=14),
    Together("two of one word"),
    Together("a store and a deletion", VALUES, changes={2: None, 4: NEW}, sample=14),
    Together("three", VALUES, changes=STORE_AND_DELETE, sample=16),
    Together("three in one bucket", COLLISIONS, changes=STORE_AND_DELETE),
    Together("two deletions in one bucket", COLLISIONS, changes={2: None, 4: None}),
    Together("eight", VALUES, changes=MANY, sample=20),
    Together("eight in one bucket", COLLISIONS, changes=MANY, sample=20),
    Together("lock and store", VALUES, whole_block=True),
    Together("raise", VALUES, failing=True, changes_min=2),
]
QUICK = ("two", "three in one bucket")
every_step = pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=str(step), marks=() if step.name in QUICK else pytest.mark.thorough)
        for step in STEPS
    ],
)


@stepped
@every_step
def test_kill_at_the_end_of_several_sections_leaves_all_or_nothing(
    step, map_name, seed, record_property
):
    """C1, C2, L1, L2: a kill after a sample of the changes; the ways to settle take turns."""
    step.kill_and_survive(map_name, record_property, seed=seed, sample=step.sample or 16)


@pytest.mark.long
@pytest.mark.timeout(7200)
@stepped
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_kill_anywhere_at_the_end_of_several_sections_leaves_all_or_nothing(
    step, map_name, seed, record_property
):
    """C1, C2, L1, L2: a kill after each change, and every way to meet the dead on every state."""
    step.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)


# ---- recovery is killed, too ----

LEARNED = [set(), set()]
RECOVERIES = {"recover": recover, "lock together": lock_together, "lock each": lock_each}


def recovery_killed(step, how, samples, name, seed, record_property):
    tally = Tally()
    with step.filled(name) as (survivor, before):
        models = step.models(before)
        shown, committed, first = [], False, None
        for crash in step.killed_twice(
            name,
            survivor,
            lambda handle: RECOVERIES[how](step, handle),
            samples=samples,
            seed=seed,
            learned=LEARNED,
        ):
            tally.add(crash)
            with explained(crash, RECOVERIES[how]):
                seen = step.look(survivor, before.keys() | models[-1].keys())
                assert seen in models
                if crash.previous.n != first:
                    first, committed = crash.previous.n, committed or seen == models[-1]
                assert not committed or seen == models[-1], "recovery undid what had counted"
                step.survive(
                    survivor, step.meetings[crash.n % len(step.meetings)], seen, before.keys()
                )
            shown.append(seen == models[-1])
        assert True in shown
        assert False in shown
    tally.report(record_property, f"{step.name}: {how}", tally.crashes)


@stepped
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["recover", "lock together"])
def test_killed_recovery_of_several_sections_leaves_all_or_nothing(
    how, map_name, seed, record_property
):
    """C1, C2, L2: a process dies at the end of three sections, its recoverer at a sample."""
    step = Together("three", VALUES, changes=STORE_AND_DELETE)
    recovery_killed(step, how, [12, 8], map_name, seed, record_property)


@stepped
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", RECOVERIES)
@pytest.mark.parametrize("geometry", [VALUES, COLLISIONS], ids=["scattered", "colliding"])
def test_recovery_of_several_sections_may_be_killed_anywhere(
    geometry, how, map_name, seed, record_property
):
    """C1, C2, L2: a process dies at the end of three sections, its recoverer at each change."""
    step = Together("three", geometry, changes=STORE_AND_DELETE)
    recovery_killed(step, how, [None, None], map_name, seed, record_property)


# ---- the owner is stopped, and another process deletes one of the keys ----


def leave_and_tell(several):
    try:
        several.__exit__(None, None, None)
    except shmrhash.KeyGone:
        return "gone"
    return "stored"


def delete_beside(step, key, name):
    """R1: read all keys, then delete one; return the result of the deletion."""
    with RHashMap.open(name, timeout=0.02) as other:
        seen = contents(other, step.both[0])
        for each in step.both[0]:
            assert seen.get(each) in [model.get(each) for model in step.both]
        try:
            other.delete(key)
        except shmrhash.LockTimeout:
            return "waited"
    return "deleted"


@stepped
@pytest.mark.thorough
@pytest.mark.parametrize("geometry", [VALUES, COLLISIONS], ids=["scattered", "colliding"])
def test_stopped_end_of_several_sections_is_whole_beside_a_deletion(geometry, map_name):
    """L2, R1: an end that is stopped after any change delays no reader. A deletion of one of its
    keys happens either before the end, which then stores nothing, or after it."""
    step = Together("three", geometry, changes=STORE_AND_DELETE)
    told = set()
    with step.filled(map_name) as (survivor, before):
        key = word(6)
        after = step.models(before)[-1]
        segment = stepping.Segment(stepping.segment_path(map_name))
        image = segment.image()
        whole = stepping.trace(lambda: step.prepare(map_name), leave_and_tell, segment)
        for n in range(len(whole.changes) + 1):
            segment.restore(image)
            with stepping.stop_at_change(
                lambda: step.prepare(map_name),
                leave_and_tell,
                segment,
                n,
                pcs=whole.pcs,
                again=lambda: segment.restore(image),
            ) as child:
                deleted = delete_beside(step, key, map_name)
                answer = child.wait()
            told.add((deleted, answer))
            model = dict(after if answer == "stored" else before)
            if deleted == "deleted":
                del model[key]
            assert contents(survivor, before) == model, f"state {n}: {deleted}, {answer}"
            expect_whole(survivor, model)
            with survivor.locked_many(sorted(model), timeout=1):
                pass
    assert told == {("deleted", "gone"), ("waited", "stored"), ("deleted", "stored")}


# ---- values that are objects ----


class TogetherWithObjects(Scenario):
    """Leave locked sections on entries of a dict, whose values get another length."""

    changes = {SHORT: (MIDDLE, 80), LONG: (RUN, 81), b"k1": None}  # noqa: RUF012 - never changed
    changes_min = 20
    learned = set()  # noqa: RUF012 - shared by all operations of the file

    def prepare(self, name):
        child = core(RHashMap.open(name))
        child.get(SHORT)
        several = lock_entries(child, self.changes)
        KEPT.append(several)
        for entry, change in zip(several.__enter__(), self.changes.values(), strict=True):
            if change is None:
                entry.delete()
            else:
                entry.value = value(change[1], change[0])
        return several

    def operate(self, state):
        state.__exit__(None, None, None)

    def models(self, before):
        after = dict(before)
        for key, change in self.changes.items():
            after.pop(key) if change is None else after.update({key: value(change[1], change[0])})
        self.both = [before, after]
        return self.both

    def look(self, entries, keys):
        with not_waiting(len(keys)):
            seen = dict(entries._entries(2))
        for key in seen.keys() | keys:
            assert seen.get(key) in [model.get(key) for model in self.both]
        with lock_entries(entries, [SHORT, LONG]):
            pass
        entries.handle._recover()  # if the third key is held for its deletion
        return dict(entries._entries(2))

    def facts(self, entries):
        return entries.handle.info()

    @contextlib.contextmanager
    def made(self, name):
        with create(name, **self.geometry) as handle:
            try:
                entries = core(handle)
                five(entries)
                with lock_entries(entries, self.changes):  # the image has the survivor's contexts
                    pass
                yield entries, dict(entries._entries(2))
            finally:
                handle.unlink()

    def survive(self, entries, meet, seen, keys):
        handle = entries.handle
        handle.check()
        objects = handle.info()["objects"]
        assert objects["count"] == len(seen) + sum(len(key) > 15 for key in seen)
        entries[SHORT] = value(90, RUN)
        entries.clear()
        handle.check()
        assert handle.info()["objects"]["count"] == handle.info()["objects"]["bytes_in_use"] == 0


def lock_entries(entries, keys):
    given = list(keys)
    return LockedKeys(
        map(entries._raw_key, given), lambda number: entries._section(given[number], None)
    )


@stepped
@pytest.mark.thorough
def test_kill_at_the_end_of_sections_with_objects_leaves_all_or_nothing(
    map_name, seed, record_property
):
    """C1, C2, L2: a kill after a sample of the changes; no object is lost, none is named twice."""
    TogetherWithObjects("three with objects").kill_and_survive(
        map_name, record_property, seed=seed, sample=40
    )


@stepped
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_kill_anywhere_at_the_end_of_sections_with_objects_leaves_all_or_nothing(
    map_name, seed, record_property
):
    """C1, C2, L2: the test above with a kill after each change."""
    TogetherWithObjects("three with objects").kill_and_survive(map_name, record_property, seed=seed)
