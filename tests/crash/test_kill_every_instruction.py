"""A process is killed at every instruction of every operation, and of recovery (C1, C2).

Each scenario fills a map, then a child does one operation and is killed after its n-th change of
the segment, for every n. A survivor, which was attached all the time, then

  1 reads everything: it gets the map from before or after the operation, at once (R1, R2);
  2 meets the dead: it writes the same key or a neighbour, a process attaches, or it checks (C2);
  3 finds that check() passes, that what it read in 1 is still true and all else as it was (C1);
  4 fills the map up to exactly max_entries (W2), and check() finds nothing lost.

The ways to meet the dead take turns from state to state; the long tests try each on every state.
"""

import contextlib

import pytest
from support import stepping
from support.killing import (
    COLLISIONS,
    FRESH,
    MEETINGS,
    AtMoment,
    Same,
    Scenario,
    Tally,
    add_to,
    all_keys,
    attach,
    contents,
    expect_whole,
    explained,
    only_check,
    opened,
    remove,
    word,
)

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")


# ---- the scenarios ----


class Lookup(Scenario):
    changes_min = 1

    def operate(self, state):
        state.lookup(word(3))

    def change(self, model):
        pass


class Insert(Same):
    def act(self, target):
        self.insert(target, [self.key])


class Update(Same):
    key = 3

    def act(self, target):
        target.update({word(self.key): self.value(99)})

    def operate(self, state):
        state.update(word(self.key), self.value(99))


class Delete(Same):
    def act(self, target):
        remove(target, [self.key])


class LookupAndDelete(Delete):
    key = 3

    def operate(self, state):
        state.lookup_and_delete(word(self.key))


class Add(Scenario):
    offset = 0
    default = None

    def operate(self, state):
        state.add(word(self.key), 7, offset=self.offset, default=self.default)

    def change(self, model):
        add_to(model, self.key, 7, self.offset, self.default)


class Clear(Same):
    entry_count = 20
    atomic = False
    goes_on = True
    changes_min = 100
    sample = 40

    def act(self, target):
        target.clear()


class InsertThirty(Same):
    entry_count = None
    atomic = False
    changes_min = 400
    sample = 24

    def act(self, target):
        self.insert(target, range(1, 31))


class DeleteThirty(Same):
    entry_count = 40
    atomic = False
    changes_min = 300
    sample = 24

    def act(self, target):
        remove(target, range(1, 31))


class InsertNext(AtMoment):
    """Insert the lowest absent key."""

    def act(self, target):
        self.insert(target, [len(target) + 1])


class DeleteLast(AtMoment):
    """Remove the highest key."""

    def act(self, target):
        remove(target, [len(target)])


# Operations of some thousand states have a `sample`: only the `long` tests visit all of them.
SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Lookup("lookup"),
        Insert("first insert of a map", entry_count=None, changes_min=20),
        Insert("insert into an empty bucket", entry_count=0),
        Insert("insert beside others", key=6),
        Insert("insert into a full bucket", COLLISIONS, key=8, entry_count=7),
        Insert("insert into an overflowing bucket", COLLISIONS, key=11, entry_count=10),
        Insert("insert into a full line", COLLISIONS, key=14, entry_count=13),
        Insert("insert the last entry", key=64, entry_count=63),
        Update("update 8 bytes"),
        Update("update 64 bytes", {"value_size": 64}, changes_min=10),
        Update("update 256 bytes", {"value_size": 256}, changes_min=10, sample=24),
        Update("update 4096 bytes", {"value_size": 4096}, changes_min=100, sample=24),
        Update("update in an overflow line", COLLISIONS, key=9, entry_count=10),
        Delete("delete", key=3),
        Delete("delete the only entry", entry_count=1),
        Delete("delete from a bucket with a line", COLLISIONS, key=2, entry_count=10),
        Delete("delete from a line", COLLISIONS, key=8, entry_count=10),
        Delete("delete the last of a chain", COLLISIONS, key=10, entry_count=10),
        Delete("delete that dissolves a line", COLLISIONS, key=4, entry_count=8),
        Delete("delete that dissolves a second line", COLLISIONS, key=9, entry_count=14),
        Delete("delete from a full map", key=3, entry_count=64),
        LookupAndDelete("lookup and delete"),
        Add("add", key=3),
        Add("add across words", {"value_size": 24}, key=3, offset=5),
        Add("add to an absent key", key=6, default=100),
        Clear("clear"),
        Clear("clear a long chain", COLLISIONS),
        InsertNext("insert that splits", rising=("grows",), entry_count=30, changes_min=50),
        InsertNext(
            "insert that splits a long chain",
            COLLISIONS,
            rising=("grows",),
            entry_count=30,
            changes_min=40,
        ),
        InsertNext(
            "insert that commits buckets",
            {"max_entries": 2048},
            rising=("grows", "bytes_committed"),
            stride=32,
            sample=30,
        ),
        InsertNext("insert that refills a depot", rising=("elements_parked",), changes_min=60),
        InsertNext(
            "insert that splits and dissolves a line",
            {"max_entries": 512},
            rising=("grows",),
            falling=("lines",),
            entry_count=30,
        ),
        DeleteLast(
            "delete that merges",
            {"max_entries": 2048},
            rising=("shrinks",),
            entry_count=800,
            stride=50,
            sample=25,
        ),
        DeleteLast(
            "delete that merges into a line",
            {"max_entries": 2048},
            rising=("shrinks", "lines"),
            entry_count=1600,
            stride=50,
            coarse=("shrinks",),
            sample=25,
        ),
        DeleteLast(
            "delete that flushes a depot",
            {"max_entries": 512},
            falling=("elements_parked",),
            entry_count=400,
            changes_min=50,
            sample=30,
        ),
        DeleteLast(
            "delete that gives back a block",
            {"max_entries": 512, "value_size": 1024},
            rising=("blocks_released",),
            entry_count=500,
            stride=40,
            sample=30,
        ),
        DeleteLast(
            "delete that gives back buckets",
            {"max_entries": 8192, "map_extra": 8000},
            falling=("bytes_committed",),
            not_rising=("blocks_released",),
            entry_count=700,
            sample=16,
        ),
        InsertThirty("thirty inserts"),
        DeleteThirty("thirty deletes"),
    ]
}
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=str)

# One for each thing an operation can leave undone; the others are tried by `tox -e thorough`.
BRIEF = {
    "insert into a full bucket",
    "update 64 bytes",
    "add across words",
    "delete that dissolves a line",
    "insert that splits",
    "delete that merges",
    "delete that gives back a block",
    "clear",
}
brief_scenarios = pytest.mark.parametrize(
    "scenario",
    [
        scenario if name in BRIEF else pytest.param(scenario, marks=pytest.mark.thorough)
        for name, scenario in SCENARIOS.items()
    ],
    ids=str,
)


# ---- the tests ----


@brief_scenarios
def test_killed_operation_leaves_a_sound_map(scenario, map_name, seed, record_property):
    """C1, C2, R1, W2: a kill after each change of the segment; the ways to meet take turns."""
    scenario.kill_and_survive(map_name, record_property, seed=seed, sample=scenario.sample)


@pytest.mark.long
@every_scenario
def test_killed_operation_leaves_a_sound_map_to_every_survivor(
    scenario, map_name, seed, record_property
):
    """C1, C2, R1, W2: a kill after every change, and every way to meet the dead on every state."""
    scenario.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)


# ---- attaching, creating, leaving ----


@pytest.fixture
def survivor(map_name):
    """The survivor's handle of a map of five entries."""
    with SCENARIOS["update 8 bytes"].filled(map_name) as (shared_map, _):
        yield shared_map


def crashes_of(prepare, operate, survivor, record_property, what, changes_min):
    """Kill operate at each state; the map must be as it was, and usable."""
    scenario = SCENARIOS["update 8 bytes"]
    before = contents(survivor, [word(key) for key in range(10)])
    segment = stepping.Segment(stepping.segment_path(survivor.name))
    tally = Tally()
    for crash in stepping.crash_states(prepare, operate, segment):
        tally.add(crash)
        meet = MEETINGS[crash.n % len(MEETINGS)]
        with explained(crash, meet):
            assert scenario.look(survivor, before.keys()) == before
            scenario.survive(survivor, meet, before, before.keys())
    assert crash.total >= changes_min
    tally.report(record_property, what, crash.total)


def test_killed_open_leaves_a_sound_map(survivor, record_property):
    """C1: a process is killed while it attaches, registers, and claims a context."""
    kept = []

    def attach_and_read(_):
        kept.append(RHashMap.open(survivor.name))
        kept[0].lookup(word(1))

    crashes_of(lambda: None, attach_and_read, survivor, record_property, "open", 5)


def test_killed_close_leaves_a_sound_map(survivor, record_property):
    """C1: a process is killed while it closes its handle."""
    prepare = opened(survivor.name)

    crashes_of(prepare, lambda m: m.close(), survivor, record_property, "close", 2)


def test_killed_first_operation_after_fork_leaves_a_sound_map(survivor, record_property):
    """C1: a forked child registers itself at its first operation, and is killed inside it."""

    def look(_):
        survivor.lookup(word(1))

    crashes_of(lambda: None, look, survivor, record_property, "first operation after fork", 5)


@pytest.mark.parametrize("sample", [40, pytest.param(None, marks=pytest.mark.thorough)])
def test_killed_creator_leaves_no_half_made_map(map_name, seed, record_property, sample):
    """C1, H1: the name has a complete map, or is absent; open_or_create succeeds either way."""
    scenario = SCENARIOS["update 8 bytes"]
    kept = []
    tally = Tally()

    def create(_):
        kept.append(scenario.create(map_name))

    segment = stepping.Segment(stepping.segment_path(map_name))
    states = stepping.crash_states(lambda: None, create, segment, sample=sample, seed=seed)
    for crash in states:
        tally.add(crash)
        with explained(crash, attach):
            survivor = RHashMap.open_or_create(map_name, key_size=8, value_size=8, max_entries=64)
            with survivor:
                scenario.survive(survivor, attach, {}, set())
                survivor.unlink()
    tally.report(record_property, "create", crash.total)


@pytest.mark.thorough
def test_creator_killed_at_any_step_leaves_no_half_made_map(map_name, seed):
    """C1, H1: kills at a sample of raw steps, which includes those before there is a name."""
    scenario = SCENARIOS["update 8 bytes"]
    kept = []

    def create(_):
        kept.append(scenario.create(map_name))

    states = stepping.crash_states(
        lambda: None,
        create,
        stepping.Segment(stepping.segment_path(map_name)),
        every=True,
        sample=5,
        seed=seed,
    )
    for _ in states:
        survivor = RHashMap.open_or_create(map_name, key_size=8, value_size=8, max_entries=64)
        with survivor:
            scenario.survive(survivor, attach, {}, set())
            survivor.unlink()


# ---- recovery is killed, too ----

INTERRUPTED = [
    "first insert of a map",
    "insert into a full bucket",
    "update 64 bytes",
    "add across words",
    "delete that dissolves a line",
    "insert that splits",
    "insert that splits and dissolves a line",
    "insert that refills a depot",
    "delete that merges into a line",
    "delete that flushes a depot",
    "delete that gives back a block",
]


def recover_by_writing(scenario, survivor):
    """A child of the survivor registers itself, writes the same key and so recovers the dead."""

    def operate(_):
        with contextlib.suppress(shmrhash.MapFull):
            survivor.update(word(scenario.key), scenario.value(55))

    return operate


def recover_by_attaching(scenario, survivor):
    kept = []

    def operate(_):
        kept.append(RHashMap.open(survivor.name))

    return operate


# The storing instructions of each way to recover, from earlier scenarios: spares long traces.
LEARNED = {}


def kill_twice_and_survive(scenario, name, record_property, *, recover, samples, seed):
    """Kill an operation, then the process that recovers it; then the survivor must go on."""
    tally = Tally()
    with scenario.filled(name) as (survivor, before):
        written = {word(scenario.key): scenario.value(55)}
        possible = [model | extra for model in scenario.models(before) for extra in ({}, written)]
        segment = stepping.Segment(stepping.segment_path(name))
        stages = [
            (lambda: scenario.prepare(name), scenario.operate),
            (lambda: None, recover(scenario, survivor)),
        ]
        learned = [set(), LEARNED.setdefault(recover, set())]
        for crash in stepping.crash_chain(
            stages, segment, samples=samples, seed=seed, learned=learned
        ):
            tally.add(crash)
            meet = MEETINGS[(crash.n + crash.previous.n) % len(MEETINGS)]
            with explained(crash, meet):
                seen = contents(survivor, all_keys(possible))
                assert seen in possible
                scenario.survive(survivor, meet, seen, all_keys(possible))
    tally.report(record_property, f"{scenario.name}, then {recover.__name__}", tally.crashes)


interrupted = pytest.mark.parametrize("name", INTERRUPTED)
recoveries = pytest.mark.parametrize(
    "recover",
    [recover_by_writing, pytest.param(recover_by_attaching, marks=pytest.mark.thorough)],
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "insert that splits" else pytest.mark.thorough)
        for name in INTERRUPTED
    ],
)
@recoveries
def test_killed_recovery_leaves_a_sound_map(name, recover, map_name, seed, record_property):
    """C1, C2: one child is killed in an operation, and another in the recovery of the first."""
    kill_twice_and_survive(
        SCENARIOS[name], map_name, record_property, recover=recover, samples=[4, 4], seed=seed
    )


@pytest.mark.long
@interrupted
@recoveries
def test_recovery_killed_anywhere_leaves_a_sound_map(
    name, recover, map_name, seed, record_property
):
    """C1, C2: the test above with many more states of both."""
    kill_twice_and_survive(
        SCENARIOS[name], map_name, record_property, recover=recover, samples=[60, 60], seed=seed
    )


@pytest.mark.long
def test_killed_recovery_of_a_recovery_leaves_a_sound_map(map_name, seed, record_property):
    """C1, C2: a process dies in an insert that splits, and two more while they recover."""
    scenario = SCENARIOS["insert that splits"]
    tally = Tally()
    with scenario.filled(map_name) as (survivor, before):
        models = scenario.models(before)
        segment = stepping.Segment(stepping.segment_path(map_name))
        recovery = (lambda: None, recover_by_attaching(scenario, survivor))
        stages = [(opened(map_name), scenario.operate), recovery, recovery]
        for crash in stepping.crash_chain(stages, segment, samples=[20, 12, 12], seed=seed):
            tally.add(crash)
            with explained(crash, only_check):
                seen = contents(survivor, all_keys(models))
                assert seen in models
                scenario.survive(survivor, only_check, seen, all_keys(models))
    tally.report(record_property, "three deaths", tally.crashes)


# ---- an owner that is stopped, not dead ----

HELD_UP = [
    "insert into a full bucket",
    "update 64 bytes",
    "add",
    "delete that dissolves a line",
    "insert that splits",
    "delete that merges",
    "clear",
]


@pytest.mark.parametrize("name", HELD_UP)
def test_stopped_writer_never_holds_up_a_reader(name, map_name, seed):
    """R1, R2: a writer stopped at a sample of states delays no reader; resumed, it finishes."""
    scenario = SCENARIOS[name]
    with scenario.filled(map_name) as (survivor, before):
        models = scenario.models(before)
        keys = all_keys(models) | {word(FRESH)}
        segment = stepping.Segment(stepping.segment_path(map_name))
        image = segment.image()
        whole = stepping.trace(opened(map_name), scenario.operate, segment)
        for n in stepping.choose(len(whole.changes), 12, seed):
            segment.restore(image)
            with stepping.stop_at_change(
                opened(map_name),
                scenario.operate,
                segment,
                n,
                pcs=whole.pcs,
                again=lambda: segment.restore(image),
            ) as child:
                scenario.judge(contents(survivor, keys), models, 0)
                child.wait()
            assert contents(survivor, keys) == models[-1]
            expect_whole(survivor)
