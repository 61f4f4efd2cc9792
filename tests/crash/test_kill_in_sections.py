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
import dataclasses
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import stepping
from support.killing import (
    COLLISIONS,
    MEETINGS,
    Scenario,
    Tally,
    contents,
    entries,
    expect_whole,
    explained,
    filled,
    only_check,
    opened,
    survive,
    word,
)

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_LOCK, RHashMap

FIVE = entries(5)
LONG = {"value_size": 64}
ODD = {"value_size": 24}
NEW, OTHER = 90, 91  # the numbers in the values that are stored
DEADLINE_SECONDS = 20

stepped = pytest.mark.usefixtures("stepper")


def handle_itself(handle, _):
    return handle


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on one map."""

    name: str
    operate: Callable  # (result of prepare, scenario): what the child does
    outcomes: Callable  # (model, scenario): functions that do it to a dict, step by step
    prepare: Callable = handle_itself  # (handle, scenario): what it does before it is traced
    key: int = 3
    fill: Callable = FIVE
    geometry: dict = dataclasses.field(default_factory=dict)
    changes_min: int = 3

    def __str__(self):
        return self.name.replace(" ", "-")

    @property
    def scenario(self):
        geometry = {"max_entries": 16} | self.geometry
        return Scenario(self.name, None, None, self.fill, key=self.key, geometry=geometry)


def nothing(model, scenario):
    """The map stays as it was."""
    return []


def stores(*numbers, key=3):
    """The key has each of these values in turn."""

    def outcomes(model, scenario):
        return [
            lambda model, number=number: model.update({word(key): scenario.value(number)})
            for number in numbers
        ]

    return outcomes


def sets_field(fmt, offset, change, key=3, fresh=None):
    """A field of the value becomes change(its old number)."""

    def outcomes(model, scenario):
        def step(model):
            value = bytearray(model.get(word(key), bytes(scenario.value_size)))
            (old,) = struct.unpack_from(f"<{fmt}", value, offset)
            old = old if word(key) in model else fresh
            struct.pack_into(f"<{fmt}", value, offset, change(old))
            model[word(key)] = bytes(value)

        return [step]

    return outcomes


def deletes(key=3):
    return lambda model, scenario: [lambda model: model.pop(word(key))]


KEPT = []  # in the child: sections that must not be collected before it is killed


def enter(handle, key, default=None):
    section = handle.locked(word(key), default=default)
    KEPT.append(section)
    section.__enter__()
    return section


def entered(key):
    """prepare: open a section and change the value in it."""

    def prepare(handle, scenario):
        section = enter(handle, key)
        section[:] = scenario.value(NEW)
        return section

    return prepare


def leave(section, _):
    section.__exit__(None, None, None)


def leave_by_an_error(section, _):
    section.__exit__(ValueError, ValueError(), None)


def leave_rolled_back(section, _):
    section.roll_back()
    section.__exit__(None, None, None)


def leave_deleted(section, _):
    section.delete()
    section.__exit__(None, None, None)


def two_locked(first, second):
    """prepare: enter locked_many with the keys in descending order."""

    def prepare(handle, scenario):
        both = handle.locked_many([word(second), word(first)])
        KEPT.append(both)
        for value, number in zip(both.__enter__(), (OTHER, NEW), strict=True):
            value[:] = scenario.value(number)
        return both

    return prepare


def stores_two(first, second):
    """The key that is first in the order of bytes is stored first."""
    return lambda model, scenario: [
        *stores(NEW, key=first)(model, scenario),
        *stores(OTHER, key=second)(model, scenario),
    ]


def store_both(handle, scenario):
    with handle.locked_many([word(4), word(2)]) as (four, two):
        two[:], four[:] = scenario.value(NEW), scenario.value(OTHER)


def store_in_a_section(handle, scenario):
    with handle.locked(word(6), default=scenario.value(OTHER)) as value:
        value[:] = scenario.value(NEW)


def swapping(name, expected, outcomes, key=3, **more):
    return Step(
        name,
        lambda m, s: m.compare_and_swap(
            word(key), None if expected is None else s.value(expected), s.value(NEW)
        ),
        outcomes,
        key=key,
        **more,
    )


def exchanging(name, **more):
    return Step(name, lambda m, s: m.exchange(word(3), s.value(NEW)), stores(NEW), **more)


def fielding(name, method, number, change, fmt="q", offset=0, key=3, default=None, **more):
    """One of add, min, max, or_, and_."""
    return Step(
        name,
        lambda m, _: getattr(m, method)(word(key), number, offset=offset, fmt=fmt, default=default),
        sets_field(fmt, offset, change, key, default),
        key=key,
        **more,
    )


def to_new(scenario):
    return lambda _: scenario.value(NEW)


STEPS = {
    step.name: step
    for step in [
        Step("open", lambda m, _: enter(m, 3) and None, nothing, changes_min=2),
        Step(
            "open with create",
            lambda m, s: enter(m, 6, s.value(OTHER)) and None,
            stores(OTHER, key=6),
            key=6,
        ),
        Step(
            "open with create into a full bucket",
            lambda m, s: enter(m, 8, s.value(OTHER)) and None,
            stores(OTHER, key=8),
            key=8,
            fill=entries(7),
            geometry=COLLISIONS,
        ),
        Step("commit", leave, stores(NEW), entered(3)),
        Step("commit 64 bytes", leave, stores(NEW), entered(3), geometry=LONG, changes_min=9),
        Step(
            "commit in an overflow line",
            leave,
            stores(NEW, key=9),
            entered(9),
            key=9,
            fill=entries(10),
            geometry=COLLISIONS,
        ),
        Step("raise", leave_by_an_error, nothing, entered(3), changes_min=2),
        Step("roll back", leave_rolled_back, nothing, entered(3), changes_min=2),
        Step("remove", leave_deleted, deletes(), entered(3), changes_min=8),
        Step(
            "remove the last of a chain",
            leave_deleted,
            deletes(8),
            entered(8),
            key=8,
            fill=entries(8),
            geometry=COLLISIONS,
            changes_min=8,
        ),
        Step(
            "a section that creates",
            store_in_a_section,
            stores(OTHER, NEW, key=6),
            key=6,
            geometry=LONG,
        ),
        Step("commit two", leave, stores_two(2, 4), two_locked(2, 4), key=4, geometry=LONG),
        Step("raise with two", leave_by_an_error, nothing, two_locked(2, 4), key=2),
        Step("lock and store two", store_both, stores_two(2, 4), key=2),
        Step(
            "update with",
            lambda m, s: m.update_with(word(3), to_new(s)),
            stores(NEW),
            geometry=LONG,
        ),
        Step(
            "update with a default",
            lambda m, s: m.update_with(word(6), to_new(s), s.value(OTHER)),
            stores(OTHER, NEW, key=6),
            key=6,
        ),
        swapping("swap", 3, stores(NEW)),
        swapping("swap 64 bytes", 3, stores(NEW), geometry=LONG, changes_min=9),
        swapping("swap that finds another value", 4, nothing),
        swapping("swap that finds other 64 bytes", 4, nothing, geometry=LONG),
        swapping("swap with an absent key", None, stores(NEW, key=6), key=6),
        exchanging("exchange"),
        exchanging("exchange 64 bytes", geometry=LONG, changes_min=9),
        fielding(
            "add of a float across words", "add", 0.5, lambda x: x + 0.5, "d", 4, geometry=ODD
        ),
        fielding("add of two bytes across words", "add", 9, lambda x: x + 9, "H", 7, geometry=ODD),
        fielding("min", "min", 1, lambda x: 1),
        fielding("min that changes nothing", "min", 7, lambda x: x),
        fielding("min across words", "min", -1, lambda x: -1, "i", 6, geometry=ODD),
        fielding("max", "max", 70, lambda x: 70),
        fielding("max of an absent key", "max", 70, lambda x: 70, key=6, default=60),
        fielding("max across words", "max", 1 << 60, lambda x: 1 << 60, "Q", 11, geometry=ODD),
        fielding("or", "or_", 12, lambda x: x | 12, "B"),
        fielding("or across words", "or_", 1 << 31, lambda x: x | 1 << 31, "I", 13, geometry=ODD),
        fielding("and", "and_", 1, lambda x: x & 1, "Q"),
        fielding("and across words", "and_", 255, lambda x: x & 255, "Q", 15, geometry=ODD),
    ]
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=str)

# The steps with the most states: only a seeded sample of the states, unless the test is `long`.
SAMPLED = {
    "open with create": 10,
    "open with create into a full bucket": 12,
    "commit 64 bytes": 10,
    "remove the last of a chain": 12,
    "a section that creates": 16,
    "commit two": 14,
    "lock and store two": 12,
    "update with": 10,
    "update with a default": 10,
    "swap 64 bytes": 10,
    "swap with an absent key": 10,
    "exchange 64 bytes": 10,
    "max of an absent key": 10,
}
SAMPLED_BESIDE = {"clear": 24}

# Instructions that changed the segment in earlier steps: knowing them spares long traces.
LEARNED = set()
LEARNED_DELETING = [set(), set()]


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


# ---- the steps ----


def models_of(step, before):
    models = [dict(before)]
    for outcome in step.outcomes(before, step.scenario):
        following = dict(models[-1])
        outcome(following)
        if following != models[-1]:
            models.append(following)
    return models


def reached(models, seen, least):
    """The number of the model that was seen; not below `least`, as time does not run backwards."""
    fitting = [n for n, model in enumerate(models) if model == seen and n >= least]
    assert fitting, f"what was seen is none of the models from {least} on"
    return fitting[0]


def kill_and_survive(step, name, record_property, *, sample, seed, ways_at_once):
    """Kill a child in the states of a step, in the order of time; a survivor checks each."""
    tally = Tally()
    scenario = step.scenario
    with filled(scenario, name) as (survivor, before):
        models = models_of(step, before)
        keys = {key for model in models for key in model} | {word(scenario.key)}
        segment = stepping.Segment(stepping.segment_path(name))

        def prepare():
            return step.prepare(opened(name)(), scenario)

        def whole(trace):
            assert len(trace.changes) >= step.changes_min
            assert contents(survivor, keys) == models[-1]

        done = 0
        visited = set()
        for crash in stepping.crash_states(
            prepare,
            lambda state: step.operate(state, scenario),
            segment,
            traced=whole,
            pcs=LEARNED,
            sample=sample,
            seed=seed,
        ):
            tally.add(crash)
            for way in WAYS if ways_at_once else [WAYS[crash.n % len(WAYS)]]:
                segment.restore(crash.image)
                with explained(crash, way):
                    seen = contents(survivor, keys)
                    done = reached(models, seen, done)
                    survive(scenario, survivor, way, seen, seen)
            visited.add(done)
        assert [models[n] for n in sorted(visited)][-1] == models[-1]
        # A sample has the first and the last state, and may miss a model between them.
        assert len(visited) == len(models) or (sample is not None and 0 in visited)
    tally.report(record_property, scenario.name, crash.total)


@stepped
@every_step
def test_kill_in_a_section_or_value_operation_leaves_a_sound_map(
    step, map_name, seed, record_property
):
    """C1, C2, L1, W1: a kill after each change, or a sample; the ways to meet take turns."""
    kill_and_survive(
        step,
        map_name,
        record_property,
        sample=SAMPLED.get(step.name),
        seed=seed,
        ways_at_once=False,
    )


@pytest.mark.long
@stepped
@every_step
def test_kill_in_a_section_or_value_operation_leaves_all_a_sound_map(
    step, map_name, seed, record_property
):
    """C1, C2, L1, W1: a kill after each change, and every way to meet the dead on every state."""
    kill_and_survive(step, map_name, record_property, sample=None, seed=seed, ways_at_once=True)


# ---- an element that a section holds is deleted ----

DELETIONS = {
    "delete": lambda m: m.delete(word(3)),
    "take": lambda m: m.lookup_and_delete(word(3)),
    "clear": lambda m: m.clear(),
}
every_deletion = pytest.mark.parametrize("how", DELETIONS)


def after_deletion(how, before):
    return {} if how == "clear" else {k: v for k, v in before.items() if k != word(3)}


def deletion_beside_a_section(how, geometry, sample, name, seed, record_property):
    tally = Tally()
    scenario = Scenario(
        how, None, None, entries(4), key=3, geometry=geometry, goes_on=how == "clear"
    )
    with filled(scenario, name) as (survivor, before):
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
            opened(name),
            DELETIONS[how],
            segment,
            setup=setup,
            pcs=LEARNED,
            sample=sample,
            seed=seed,
        ):
            tally.add(crash)
            way = WAYS_OF_OWNERS[crash.n % len(WAYS)]
            with explained(crash, way):
                if how == "clear":
                    survivor._recover()  # finishes the clear
                model = contents(survivor, before)
                if how != "clear":
                    assert model in (before, after_deletion(how, before))
                gone = word(3) not in model
                with pytest.raises(shmrhash.KeyGone) if gone else contextlib.nullcontext():
                    sections[0].__exit__(None, None, None)
                if not gone:
                    model[word(3)] = scenario.value(NEW)
                assert contents(survivor, before) == model
                survive(scenario, survivor, way, model, model)
            told.add(gone)
        assert told == {False, True}
    tally.report(record_property, f"{how} beside a section", crash.total)


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
    sample = SAMPLED_BESIDE.get(how)
    deletion_beside_a_section(how, geometry, sample, map_name, seed, record_property)


@pytest.mark.long
@stepped
@both_geometries
def test_section_raises_key_gone_if_a_killed_clear_counts(
    geometry, map_name, seed, record_property
):
    """L1, C1: a kill at every change of the clear, where the test above takes a sample."""
    deletion_beside_a_section("clear", geometry, None, map_name, seed, record_property)


def deletion_of_a_dead_owners(how, samples, name, seed, record_property):
    tally = Tally()
    step = STEPS["commit 64 bytes"]
    scenario = step.scenario
    with filled(scenario, name) as (survivor, before):
        stored = before | {word(3): scenario.value(NEW)}
        gone = after_deletion(how, before)
        segment = stepping.Segment(stepping.segment_path(name))

        def prepare_owner():
            return step.prepare(opened(name)(), scenario)

        def inherit():
            """The inherited handle: opening one would recover the owner at once."""
            survivor.lookup(word(1))
            return survivor

        stages = [
            (prepare_owner, lambda section: leave(section, scenario)),
            (inherit, DELETIONS[how]),
        ]
        for crash in stepping.crash_chain(
            stages, segment, samples=samples, seed=seed, learned=LEARNED_DELETING
        ):
            tally.add(crash)
            way = WAYS[(crash.n + crash.previous.n) % len(WAYS)]
            with explained(crash, way):
                seen = contents(survivor, before)
                if how == "clear":
                    survivor._recover()  # finishes the clear
                    seen = contents(survivor, before)
                    assert all(value in (stored[k], before[k]) for k, value in seen.items())
                else:
                    assert seen in (before, stored, gone)
                survive(scenario, survivor, way, seen, seen)
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
    step = STEPS[name]
    scenario = step.scenario
    told = set()
    with filled(scenario, map_name) as (survivor, before):
        key = word(scenario.key)
        ending = {"remove the last of a chain": "delete", "roll back": "roll_back"}.get(name)
        segment = stepping.Segment(stepping.segment_path(map_name))
        image = segment.image()

        def prepare():
            section = step.prepare(opened(map_name)(), scenario)
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


def child_that(act):
    """Fork a child that calls act(tell). Return when act has called tell(); the child goes on."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act(lambda: os.write(told, b"x"))
            os._exit(0)
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(1)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(told)
    return pid


def give_back_all(shared_map):
    """Delete all entries and assert that most of the memory goes back."""
    before, released = memory_of(shared_map), shared_map.info()["blocks_released"]
    shared_map.clear()
    assert memory_of(shared_map) < before // 2
    assert shared_map.info()["blocks_released"] > released


def test_recovery_does_not_touch_an_element_without_memory(wide):
    """C1, M1: a process dies in sections whose elements' memory is gone: no page is brought back.

    On a file system without room, touching such a page would be SIGBUS.
    """

    def hold(tell):
        for number in HELD:
            enter(wide, number)[:] = bytes(WIDE)
        tell()
        signal.pause()

    pid = child_that(hold)
    try:
        give_back_all(wide)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
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
    """Stop a waiter between two tries: memory goes back only if nobody is inside an operation."""
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
        def act(tell):
            wide.lookup(word(number))
            tell()
            with contextlib.suppress(shmrhash.KeyNotFound):
                wide.update(word(number), bytes(WIDE), BPF_EXIST | flags)
                raise AssertionError("the key was there")

        return act

    wanted = list(HELD)[::10]
    sections = [wide.locked(word(number)) for number in wanted]
    for section in sections:
        section.__enter__()
    waiters = [child_that(wait_for(number)) for number in wanted]
    for pid in waiters:
        stop_asleep(wide, pid)
    try:
        give_back_all(wide)
        before = memory_of(wide)
    finally:
        for pid in waiters:
            os.kill(pid, signal.SIGCONT)

    assert [0] * len(waiters) == [os.waitpid(pid, 0)[1] for pid in waiters]
    for section in sections:
        with pytest.raises(shmrhash.KeyGone):
            section.__exit__(None, None, None)
    assert before == memory_of(wide)
    assert wide.check()["exact"]
