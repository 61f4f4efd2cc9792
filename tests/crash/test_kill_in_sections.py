"""A process is killed at every change it makes in a section, or in a step on a value (C1, C2, L1).

As test_kill_every_instruction.py, with this oracle: the operation, applied to a dict step by step,
gives the models that the map may show, in the order of time. The survivor finds exactly one of
these models, never a state between two, and a later kill never shows an earlier model. Then the
survivor meets what the dead process left, by locking the same key or in another way, and finds the
map sound, no lock left and nothing lost.

The second half of the file: another process deletes the element that a section holds, and contexts
name elements whose memory was given back.
"""

import contextlib
import operator
import os
import signal
import struct
import time
from pathlib import Path

import pytest
from support import stepping
from support.children import Partner, stays
from support.killing import (
    COLLISIONS,
    MEETINGS,
    Scenario,
    Tally,
    contents,
    expect_whole,
    explained,
    only_check,
    word,
)

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_LOCK, RHashMap

LONG = {"value_size": 64}
ODD = {"value_size": 24}
NEW, OTHER = 90, 91  # the numbers in the values that are stored
DEADLINE_SECONDS = 20

stepped = pytest.mark.usefixtures("stepper")


# ---- how the survivor meets the dead ----


def lock_same_key(scenario, survivor, model):
    """L1: the lock of the dead is free, and the value is whole."""
    key = word(scenario.key)
    with survivor.locked(key, default=scenario.value(70)) as value:
        assert bytes(value) == model.get(key, scenario.value(70))
        value[:] = scenario.value(71)
    model[key] = scenario.value(71)


def update_with_f_lock(scenario, survivor, model):
    """L1: an operation with BPF_F_LOCK, which waits for sections, completes."""
    key = word(scenario.key)
    assert survivor.lookup(key, BPF_F_LOCK) == model.get(key)
    survivor.update(key, scenario.value(72), BPF_F_LOCK)
    model[key] = scenario.value(72)


def swap_same_key(scenario, survivor, model):
    """W1: a swap that expects the seen value succeeds: the dead hold and store nothing."""
    key = word(scenario.key)
    assert survivor.compare_and_swap(key, model.get(key), scenario.value(73))
    model[key] = scenario.value(73)


def look_only(scenario, survivor, model):
    """Replaces only_check for a survivor whose own sections hold contexts."""


WAYS = [lock_same_key, *MEETINGS, update_with_f_lock, swap_same_key]
WAYS_OF_OWNERS = [way if way is not only_check else look_only for way in WAYS]


def expect_free(survivor, keys):
    """L1: no process holds any of these keys."""
    with survivor.locked_many(sorted(keys), timeout=1):
        pass


# ---- the operations ----

KEPT = []  # in the child: sections that must not be collected before it is killed


def enter(handle, key, default=None):
    section = handle.locked(word(key), default=default)
    KEPT.append(section)
    section.__enter__()
    return section


class OnValue(Scenario):
    """An operation that stores the values with these numbers under its key, one after the other."""

    key = 3
    max_entries = 16
    stored = ()
    meetings = WAYS
    learned = set()  # noqa: RUF012 - shared by all operations of the file

    def steps(self):
        """The changes in the order of time: each is a dict of what is stored."""
        return [{word(self.key): self.value(number)} for number in self.stored]

    def models(self, before):
        models = [before]
        for step in self.steps():
            following = models[-1] | step
            if following != models[-1]:
                models.append(following)
        return models


class Open(OnValue):
    """Enter a section, which inserts the value with the number `default` if the key is absent."""

    default = None
    changes_min = 2

    def operate(self, state):
        enter(state, self.key, None if self.default is None else self.value(self.default))

    def steps(self):
        return [{word(self.key): self.value(self.default)}] if self.default else []


class Commit(OnValue):
    """Leave a section in which the value was changed."""

    stored = (NEW,)

    def prepare(self, name):
        section = enter(super().prepare(name), self.key)
        section[:] = self.value(NEW)
        return section

    def operate(self, state):
        state.__exit__(None, None, None)


class Raise(Commit):
    stored = ()
    changes_min = 2

    def operate(self, state):
        state.__exit__(ValueError, ValueError(), None)


class RollBack(Commit):
    stored = ()
    changes_min = 2

    def operate(self, state):
        state.roll_back()
        state.__exit__(None, None, None)


class Remove(Commit):
    changes_min = 8

    def operate(self, state):
        state.delete()
        state.__exit__(None, None, None)

    def models(self, before):
        return [before, {key: value for key, value in before.items() if key != word(self.key)}]


class SectionThatCreates(OnValue):
    stored = (OTHER, NEW)

    def operate(self, state):
        with state.locked(word(self.key), default=self.value(OTHER)) as value:
            value[:] = self.value(NEW)


class UpdateWith(OnValue):
    stored = (NEW,)
    default = None

    def operate(self, state):
        default = None if self.default is None else self.value(self.default)
        state.update_with(word(self.key), lambda _: self.value(NEW), default)


class Swap(OnValue):
    """compare_and_swap that expects the value with the number `expected`, or an absent key."""

    expected = None
    stored = (NEW,)

    def operate(self, state):
        expected = None if self.expected is None else self.value(self.expected)
        state.compare_and_swap(word(self.key), expected, self.value(NEW))


class Exchange(OnValue):
    stored = (NEW,)

    def operate(self, state):
        state.exchange(word(self.key), self.value(NEW))


METHODS = {
    "add": operator.add,
    "min": min,
    "max": max,
    "or_": operator.or_,
    "and_": operator.and_,
}


class Field(OnValue):
    """One of the methods above, on a field of the value."""

    method = "add"
    number = 0
    fmt = "q"
    offset = 0
    default = None

    def operate(self, state):
        act = getattr(state, self.method)
        where = {"offset": self.offset, "fmt": self.fmt}
        act(word(self.key), self.number, default=self.default, **where)

    def models(self, before):
        value = bytearray(before.get(word(self.key), bytes(self.value_size)))
        (old,) = struct.unpack_from(f"<{self.fmt}", value, self.offset)
        old = old if word(self.key) in before else self.default
        struct.pack_into(f"<{self.fmt}", value, self.offset, METHODS[self.method](old, self.number))
        after = before | {word(self.key): bytes(value)}
        return [before] if after == before else [before, after]


# Those with the most states have a `sample`: only the `long` test visits all of their states.
STEPS = {
    step.name: step
    for step in [
        Open("open"),
        Open("open with create", key=6, default=OTHER, sample=10, changes_min=3),
        Open(
            "open with create into a full bucket",
            COLLISIONS,
            key=8,
            default=OTHER,
            entry_count=7,
            sample=12,
            changes_min=3,
        ),
        Commit("commit"),
        Commit("commit 64 bytes", LONG, changes_min=9, sample=10),
        Commit("commit in an overflow line", COLLISIONS, key=9, entry_count=10),
        Raise("raise"),
        RollBack("roll back"),
        Remove("remove"),
        Remove("remove the last of a chain", COLLISIONS, key=8, entry_count=8, sample=12),
        SectionThatCreates("a section that creates", LONG, key=6, sample=16),
        UpdateWith("update with", LONG, sample=10),
        UpdateWith("update with a default", key=6, default=OTHER, stored=(OTHER, NEW), sample=10),
        Swap("swap", expected=3),
        Swap("swap 64 bytes", LONG, expected=3, changes_min=9, sample=10),
        Swap("swap that finds another value", expected=4, stored=()),
        Swap("swap that finds other 64 bytes", LONG, expected=4, stored=()),
        Swap("swap with an absent key", key=6, sample=10),
        Exchange("exchange"),
        Exchange("exchange 64 bytes", LONG, changes_min=9, sample=10),
        Field("add of a float across words", ODD, number=0.5, fmt="d", offset=4),
        Field("add of two bytes across words", ODD, number=9, fmt="H", offset=7),
        Field("min", method="min", number=1),
        Field("min that changes nothing", method="min", number=7),
        Field("min across words", ODD, method="min", number=-1, fmt="i", offset=6),
        Field("max", method="max", number=70),
        Field("max of an absent key", method="max", number=70, key=6, default=60, sample=10),
        Field("max across words", ODD, method="max", number=1 << 60, fmt="Q", offset=11),
        Field("or", method="or_", number=12, fmt="B"),
        Field("or across words", ODD, method="or_", number=1 << 31, fmt="I", offset=13),
        Field("and", method="and_", number=1, fmt="Q"),
        Field("and across words", ODD, method="and_", number=255, fmt="Q", offset=15),
    ]
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=str)
# Each of these takes a way through the core that a step of the quick run takes too.
THOROUGH = {
    "swap 64 bytes",
    "swap that finds other 64 bytes",
    "exchange 64 bytes",
    "add of two bytes across words",
    "min across words",
    "max across words",
    "or across words",
    "and across words",
}
assert set(STEPS) >= THOROUGH
brief_steps = pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.thorough) if name in THOROUGH else step
        for name, step in STEPS.items()
    ],
    ids=str,
)


# The quick tests leave out what goes through the same stores as another step.
SAME_STORES = {
    "open with create", "a section that creates", "update with a default",
    "swap that finds other 64 bytes", "swap with an absent key", "exchange",
    "add of two bytes across words", "min across words", "max", "max across words", "or",
    "or across words", "and", "and across words",
}  # fmt: skip
brief_steps = pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.thorough if name in SAME_STORES else ())
        for name, step in STEPS.items()
    ],
    ids=str,
)


@stepped
@brief_steps
def test_kill_in_a_section_or_value_operation_leaves_a_sound_map(
    step, map_name, seed, record_property
):
    """C1, C2, L1, W1: a kill after each change, or a sample; the ways to meet take turns."""
    step.kill_and_survive(map_name, record_property, seed=seed, sample=step.sample)


@pytest.mark.long
@stepped
@every_step
def test_kill_in_a_section_or_value_operation_leaves_all_a_sound_map(
    step, map_name, seed, record_property
):
    """C1, C2, L1, W1: a kill after each change, and every way to meet the dead on every state."""
    step.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)


# ---- an element that a section holds is deleted ----


class DeleteHeld(Scenario):
    """A deletion of key 3, which a section holds."""

    key = 3
    entry_count = 4

    def operate(self, state):
        state.delete(word(3))

    def change(self, model):
        del model[word(3)]


class TakeHeld(DeleteHeld):
    def operate(self, state):
        state.lookup_and_delete(word(3))


class ClearHeld(DeleteHeld):
    goes_on = True
    sample = 24

    def operate(self, state):
        state.clear()

    def change(self, model):
        model.clear()


DELETIONS = {"delete": DeleteHeld, "take": TakeHeld, "clear": ClearHeld}
LEARNED_DELETING = [set(), set()]
every_deletion = pytest.mark.parametrize("how", DELETIONS)


def deletion_beside_a_section(scenario, sample, name, seed, record_property):
    tally = Tally()
    with scenario.filled(name) as (survivor, before):
        expect_free(survivor, [word(1), word(2), word(3)])  # the image has the survivor's contexts
        segment = stepping.Segment(stepping.segment_path(name))
        image = segment.image()
        sections = []

        def setup():
            for section in sections:
                section.__exit__(ValueError, None, None)
            segment.restore(image)
            sections[:] = [survivor.locked(word(3))]
            sections[0].__enter__()[:] = scenario.value(NEW)

        told = set()
        for crash in stepping.crash_states(
            lambda: scenario.prepare(name),
            scenario.operate,
            segment,
            setup=setup,
            pcs=OnValue.learned,
            sample=sample,
            seed=seed,
        ):
            tally.add(crash)
            way = WAYS_OF_OWNERS[crash.n % len(WAYS)]
            with explained(crash, way):
                if scenario.goes_on:
                    survivor._recover()  # finishes the clear
                model = contents(survivor, before)
                if not scenario.goes_on:
                    assert model in scenario.models(before)
                gone = word(3) not in model
                with pytest.raises(shmrhash.KeyGone) if gone else contextlib.nullcontext():
                    sections[0].__exit__(None, None, None)
                if not gone:
                    model[word(3)] = scenario.value(NEW)
                assert contents(survivor, before) == model
                scenario.survive(survivor, way, model, model.keys())
            told.add(gone)
        assert told == {False, True}
    tally.report(record_property, f"{scenario} beside a section", crash.total)


both_geometries = pytest.mark.parametrize(
    "geometry", [LONG, COLLISIONS], ids=["scattered", "colliding"]
)


@stepped
@every_deletion
@both_geometries
@pytest.mark.thorough
def test_section_raises_key_gone_if_a_killed_deletion_counts(
    how, geometry, map_name, seed, record_property
):
    """L1, C1: the section's end raises KeyGone if, and only if, others see that its key is gone."""
    scenario = DELETIONS[how](how, geometry)
    deletion_beside_a_section(scenario, scenario.sample, map_name, seed, record_property)


@pytest.mark.long
@stepped
@both_geometries
def test_section_raises_key_gone_if_a_killed_clear_counts(
    geometry, map_name, seed, record_property
):
    """L1, C1: a kill at every change of the clear, where the test above takes a sample."""
    deletion_beside_a_section(ClearHeld("clear", geometry), None, map_name, seed, record_property)


def deletion_of_a_dead_owners(how, samples, name, seed, record_property):
    tally = Tally()
    scenario = STEPS["commit 64 bytes"]
    deletion = DELETIONS[how](how)
    with scenario.filled(name) as (survivor, before):
        stored = before | {word(3): scenario.value(NEW)}
        gone = deletion.models(before)[-1]
        for crash in scenario.killed_twice(
            name, survivor, deletion.operate, samples=samples, seed=seed, learned=LEARNED_DELETING
        ):
            tally.add(crash)
            way = WAYS[(crash.n + crash.previous.n) % len(WAYS)]
            with explained(crash, way):
                seen = contents(survivor, before)
                if deletion.goes_on:
                    survivor._recover()  # finishes the clear
                    seen = contents(survivor, before)
                    assert all(value in (stored[k], before[k]) for k, value in seen.items())
                else:
                    assert seen in (before, stored, gone)
                scenario.survive(survivor, way, seen, before.keys())
    tally.report(record_property, f"{how} of a dead owner's element", tally.crashes)


@stepped
@pytest.mark.parametrize("how", ["delete", "take"])
@pytest.mark.thorough
def test_killed_deletion_of_a_dead_owners_element_is_recovered(
    how, map_name, seed, record_property
):
    """C1, C2, L1: an owner dies at a sample of its commit, a deletion at a sample of its own."""
    deletion_of_a_dead_owners(how, [7, 7], map_name, seed, record_property)


@pytest.mark.long
@stepped
@every_deletion
def test_deletion_of_a_dead_owners_element_may_be_killed_anywhere(
    how, map_name, seed, record_property
):
    """C1, C2, L1: an owner dies at every change of its commit, a deletion at its own changes."""
    deletion_of_a_dead_owners(
        how, [None, 60 if how == "clear" else None], map_name, seed, record_property
    )


def leave_and_tell(section):
    try:
        section.__exit__(None, None, None)
    except shmrhash.KeyGone:
        return "gone"
    return "stored"


@stepped
@pytest.mark.parametrize("name", ["commit 64 bytes", "remove the last of a chain", "roll back"])
def test_stopped_owner_of_a_lock_stores_nothing_under_a_deleted_key(name, map_name):
    """L1: an owner that is stopped anywhere in the end of its section stores nothing under the key.

    A deletion waits only for an end that counts already; then the owner has stored the value.
    """
    scenario = STEPS[name]
    told = set()
    with scenario.filled(map_name) as (survivor, before):
        key = word(scenario.key)
        ending = {"remove the last of a chain": "delete", "roll back": "roll_back"}.get(name)
        segment = stepping.Segment(stepping.segment_path(map_name))
        image = segment.image()

        def prepare():
            section = scenario.prepare(map_name)
            if ending is not None:
                getattr(section, ending)()
            return section

        whole = stepping.trace(prepare, leave_and_tell, segment)
        for n in range(len(whole.changes) + 1):
            segment.restore(image)
            with stepping.stop_at_change(
                prepare,
                leave_and_tell,
                segment,
                n,
                pcs=whole.pcs,
                again=lambda: segment.restore(image),
            ) as child:
                with RHashMap.open(map_name, timeout=0.02) as other:
                    try:
                        other.delete(key)
                        deleted = "deleted"
                    except shmrhash.LockTimeout:
                        deleted = "waited"
                    except shmrhash.KeyNotFound:
                        deleted = "absent"
                answer = child.wait()
            told.add((deleted, answer))
            found = contents(survivor, before)
            assert (key in found) == (deleted == "waited" and ending != "delete"), f"state {n}"
            assert found.get(key) in (None, scenario.value(NEW)), f"state {n}"
            expect_whole(survivor, found)
            expect_free(survivor, found)
    told_when_deleted_in_time = ("deleted", "stored" if ending == "roll_back" else "gone")
    assert told_when_deleted_in_time in told
    assert ("waited", "gone") not in told
    print(f"{name}: {sorted(told)}")


# ---- contexts that name elements whose memory was given back ----

MANY = 500
WIDE = 4096
HELD = range(1, MANY + 1, 10)


@pytest.fixture
def wide(make_map):
    """A map of many blocks of elements; most are released when their entries are deleted."""
    shared_map = make_map(value_size=WIDE, max_entries=2 * MANY, timeout=30)
    for number in range(1, MANY + 1):
        shared_map[word(number)] = word(number) * (WIDE // 8)
    RHashMap.open(shared_map.name).close()  # commits what a second process needs
    return shared_map


def memory_of(shared_map):
    """How many bytes of the segment have memory."""
    return os.stat(stepping.segment_path(shared_map.name)).st_blocks * 512


def give_back_all(shared_map):
    """Delete all entries and assert that most of the memory is given back."""
    before, released = memory_of(shared_map), shared_map.info()["blocks_released"]
    shared_map.clear()
    assert memory_of(shared_map) < before // 2
    assert shared_map.info()["blocks_released"] > released


def test_recovery_does_not_touch_an_element_without_memory(wide):
    """C1, M1: a process dies in sections whose elements' memory is gone: no page is brought back.

    On a file system without room, touching such a page would be SIGBUS.
    """

    def hold():
        for number in HELD:
            enter(wide, number)[:] = bytes(WIDE)

    with stays(hold):
        give_back_all(wide)
    before, recoveries = memory_of(wide), wide.info()["recoveries"]

    RHashMap.open(wide.name).close()

    assert recoveries + 1 == wide.info()["recoveries"]
    assert before == memory_of(wide)
    assert wide.check()["exact"]
    assert wide.info()["contexts"] == 1


def switches_of(pid):
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("voluntary"))
    return int(line.split()[1])


def wait_till_asleep(pid):
    """Wait until the process has slept twenty times more, as only a waiter does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    first = switches_of(pid)
    while switches_of(pid) < first + 20:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def stop_asleep(shared_map, pid):
    """Stop a waiter between two tries: memory is given back only if no process is inside an
    operation."""
    for _ in range(100):
        wait_till_asleep(pid)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        if shared_map.check()["exact"]:
            return
        os.kill(pid, signal.SIGCONT)
    pytest.fail("stopped inside an operation each time")


@pytest.mark.parametrize("flags", [BPF_ANY, BPF_F_LOCK], ids=["plain", "f-lock"])
def test_waiter_does_not_touch_an_element_without_memory(wide, flags):
    """L1, M1: the element's memory goes while the waiter is stopped: the waiter brings no page
    back and raises KeyNotFound."""

    def wait_for(number):
        def act(parent):
            wide.lookup(word(number))
            parent.say()
            with contextlib.suppress(shmrhash.KeyNotFound):
                wide.update(word(number), bytes(WIDE), BPF_EXIST | flags)
                raise AssertionError("the key was there")

        child = Partner(act)
        child.hear()
        return child

    wanted = list(HELD)[::10]
    sections = [wide.locked(word(number)) for number in wanted]
    for section in sections:
        section.__enter__()
    waiters = [wait_for(number) for number in wanted]
    for waiter in waiters:
        stop_asleep(wide, waiter.pid)
    try:
        give_back_all(wide)
        before = memory_of(wide)
    finally:
        for waiter in waiters:
            os.kill(waiter.pid, signal.SIGCONT)

    for waiter in waiters:
        waiter.result()
    for section in sections:
        with pytest.raises(shmrhash.KeyGone):
            section.__exit__(None, None, None)
    assert before == memory_of(wide)
    assert wide.check()["exact"]
