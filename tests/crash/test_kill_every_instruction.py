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
    Scenario,
    Tally,
    added,
    attach,
    before_moment,
    contents,
    entries,
    expect_before_or_after,
    expect_whole,
    explained,
    facts,
    fell,
    filled,
    insert,
    only_check,
    opened,
    remove,
    rose,
    survive,
    untouched,
    word,
)

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")


# ---- the scenarios ----


def insert_next(scenario, target, _=None):
    """Insert the lowest absent key."""
    insert(scenario, target, [len(target) + 1])


def remove_next(scenario, target, _=None):
    """Remove the highest key."""
    remove(target, [len(target)])


def next_insert(name, happened, entry_count=0, stride=1, **more):
    """The insert of the next key, on a map in which this insert makes something happen."""
    return Scenario(
        name,
        lambda m: insert_next(SCENARIOS[name], m),
        lambda model: insert_next(SCENARIOS[name], model),
        before_moment(insert_next, happened, entries(entry_count), stride),
        proof=happened,
        **more,
    )


def next_remove(name, happened, entry_count, stride=1, coarse=None, **more):
    """The removal of the last key, on a map in which this removal makes something happen."""
    return Scenario(
        name,
        lambda m: remove_next(None, m),
        lambda model: remove_next(None, model),
        before_moment(remove_next, happened, entries(entry_count), stride, coarse),
        proof=happened,
        **more,
    )


def inserting(name, key, fill, **more):
    return Scenario(
        name,
        lambda m: insert(SCENARIOS[name], m, [key]),
        lambda model: insert(SCENARIOS[name], model, [key]),
        fill,
        key=key,
        **more,
    )


def updating(size, **more):
    name = f"update {size} bytes"
    return Scenario(
        name,
        lambda m: m.update(word(3), SCENARIOS[name].value(99)),
        lambda model: model.update({word(3): SCENARIOS[name].value(99)}),
        entries(5),
        key=3,
        geometry={"value_size": size},
        **more,
    )


def deleting(name, key, fill, **more):
    return Scenario(
        name,
        lambda m: m.delete(word(key)),
        lambda model: remove(model, [key]),
        fill,
        key=key,
        **more,
    )


def adding(name, key, fill, offset=0, default=None, **more):
    return Scenario(
        name,
        lambda m: m.add(word(key), 7, offset=offset, default=default),
        added(key, 7, offset, default),
        fill,
        key=key,
        **more,
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario(
            "lookup", lambda m: m.lookup(word(3)), lambda model: None, entries(5), changes_min=1
        ),
        inserting("first insert of a map", 1, untouched, changes_min=20),
        inserting("insert into an empty bucket", 1, entries(0)),
        inserting("insert beside others", 6, entries(5)),
        inserting("insert into a full bucket", 8, entries(7), geometry=COLLISIONS),
        inserting("insert into an overflowing bucket", 11, entries(10), geometry=COLLISIONS),
        inserting("insert into a full line", 14, entries(13), geometry=COLLISIONS),
        inserting("insert the last entry", 64, entries(63)),
        updating(8),
        updating(64, changes_min=10),
        updating(256, changes_min=10),
        updating(4096, changes_min=100),
        Scenario(
            "update in an overflow line",
            lambda m: m.update(word(9), word(99)),
            lambda model: model.update({word(9): word(99)}),
            entries(10),
            key=9,
            geometry=COLLISIONS,
        ),
        deleting("delete", 3, entries(5)),
        deleting("delete the only entry", 1, entries(1)),
        deleting("delete from a bucket with a line", 2, entries(10), geometry=COLLISIONS),
        deleting("delete from a line", 8, entries(10), geometry=COLLISIONS),
        deleting("delete the last of a chain", 10, entries(10), geometry=COLLISIONS),
        deleting("delete that dissolves a line", 4, entries(8), geometry=COLLISIONS),
        deleting("delete that dissolves a second line", 9, entries(14), geometry=COLLISIONS),
        deleting("delete from a full map", 3, entries(64)),
        Scenario(
            "lookup and delete",
            lambda m: m.lookup_and_delete(word(3)),
            lambda model: model.pop(word(3)),
            entries(5),
            key=3,
        ),
        adding("add", 3, entries(5)),
        adding("add across words", 3, entries(5), offset=5, geometry={"value_size": 24}),
        adding("add to an absent key", 6, entries(5), default=100),
        Scenario(
            "clear",
            lambda m: m.clear(),
            lambda model: model.clear(),
            entries(20),
            atomic=False,
            goes_on=True,
            changes_min=100,
        ),
        Scenario(
            "clear a long chain",
            lambda m: m.clear(),
            lambda model: model.clear(),
            entries(20),
            atomic=False,
            goes_on=True,
            changes_min=100,
            geometry=COLLISIONS,
        ),
        next_insert("insert that splits", rose("grows"), 30, changes_min=50),
        next_insert(
            "insert that splits a long chain",
            rose("grows"),
            30,
            changes_min=40,
            geometry=COLLISIONS,
        ),
        next_insert(
            "insert that commits buckets",
            rose("grows", "bytes_committed"),
            stride=32,
            geometry={"max_entries": 2048},
        ),
        next_insert("insert that refills a depot", rose("elements_parked"), changes_min=60),
        next_insert(
            "insert that splits and dissolves a line",
            lambda before, after: rose("grows")(before, after) and fell("lines")(before, after),
            30,
            geometry={"max_entries": 512},
        ),
        next_remove(
            "delete that merges", rose("shrinks"), 800, stride=50, geometry={"max_entries": 2048}
        ),
        next_remove(
            "delete that merges into a line",
            rose("shrinks", "lines"),
            1600,
            stride=50,
            coarse=rose("shrinks"),
            geometry={"max_entries": 2048},
        ),
        next_remove(
            "delete that flushes a depot",
            fell("elements_parked"),
            400,
            geometry={"max_entries": 512},
            changes_min=100,
        ),
        next_remove(
            "delete that gives back a block",
            rose("blocks_released"),
            500,
            stride=40,
            geometry={"max_entries": 512, "value_size": 1024},
        ),
        next_remove(
            "delete that gives back buckets",
            lambda before, after: (
                fell("bytes_committed")(before, after)
                and not rose("blocks_released")(before, after)
            ),
            700,
            geometry={"max_entries": 8192, "map_extra": 8000},
        ),
        Scenario(
            "thirty inserts",
            lambda m: insert(SCENARIOS["thirty inserts"], m, range(1, 31)),
            lambda model: insert(SCENARIOS["thirty inserts"], model, range(1, 31)),
            untouched,
            atomic=False,
            changes_min=400,
        ),
        Scenario(
            "thirty deletes",
            lambda m: remove(m, range(1, 31)),
            lambda model: remove(model, range(1, 31)),
            entries(40),
            atomic=False,
            changes_min=300,
        ),
    ]
}

# Operations of some thousand states: only a seeded sample of them, unless the test is `long`.
SAMPLED = {
    "update 256 bytes": 40,
    "update 4096 bytes": 40,
    "clear": 80,
    "clear a long chain": 80,
    "insert that commits buckets": 60,
    "delete that merges": 50,
    "delete that merges into a line": 50,
    "delete that flushes a depot": 60,
    "delete that gives back a block": 60,
    "delete that gives back buckets": 16,
    "thirty inserts": 40,
    "thirty deletes": 40,
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


def kill_and_survive(scenario, name, record_property, *, sample, seed, meetings_at_once):
    """Kill a child in every state of a scenario, as the head of this file says."""
    tally = Tally()
    path = stepping.segment_path(name)
    with filled(scenario, name) as (survivor, before):
        after = dict(before)
        scenario.outcome(after)
        segment = stepping.Segment(path)
        at_start = facts(survivor)

        def whole(trace):
            assert len(trace.changes) >= scenario.changes_min
            assert scenario.proof(at_start, facts(survivor))
            assert contents(survivor, before.keys() | after.keys()) == after

        for crash in stepping.crash_states(
            opened(name), scenario.operate, segment, sample=sample, seed=seed, traced=whole
        ):
            tally.add(crash)
            meetings = MEETINGS if meetings_at_once else [MEETINGS[crash.n % len(MEETINGS)]]
            for meet in meetings:
                segment.restore(crash.image)
                with explained(crash, meet):
                    survive(scenario, survivor, meet, before, after)
    tally.report(record_property, scenario.name, crash.total)


@brief_scenarios
def test_killed_operation_leaves_a_sound_map(scenario, map_name, seed, record_property):
    """C1, C2, R1, W2: a kill after each change of the segment; the ways to meet take turns."""
    kill_and_survive(
        scenario,
        map_name,
        record_property,
        sample=SAMPLED.get(scenario.name),
        seed=seed,
        meetings_at_once=False,
    )


@pytest.mark.long
@every_scenario
def test_killed_operation_leaves_a_sound_map_to_every_survivor(
    scenario, map_name, seed, record_property
):
    """C1, C2, R1, W2: a kill after every change, and every way to meet the dead on every state."""
    kill_and_survive(
        scenario, map_name, record_property, sample=None, seed=seed, meetings_at_once=True
    )


# ---- attaching, creating, leaving ----


@pytest.fixture
def survivor(map_name):
    """The survivor's handle of a map of five entries."""
    with filled(SCENARIOS["update 8 bytes"], map_name) as (shared_map, _):
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
            survive(scenario, survivor, meet, before, before)
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


def test_killed_creator_leaves_no_half_made_map(map_name, record_property):
    """C1, H1: the name has a complete map, or is absent; open_or_create succeeds either way."""
    scenario = SCENARIOS["update 8 bytes"]
    kept = []
    tally = Tally()

    def create(_):
        kept.append(scenario.create(map_name))

    segment = stepping.Segment(stepping.segment_path(map_name))
    for crash in stepping.crash_states(lambda: None, create, segment):
        tally.add(crash)
        with explained(crash, attach):
            survivor = RHashMap.open_or_create(map_name, key_size=8, value_size=8, max_entries=64)
            with survivor:
                survive(scenario, survivor, attach, {}, {})
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
            survive(scenario, survivor, attach, {}, {})
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
    with filled(scenario, name) as (survivor, before):
        after = dict(before)
        scenario.outcome(after)
        written = {word(scenario.key): scenario.value(55)}
        possible = [model | extra for model in (before, after) for extra in ({}, written)]
        segment = stepping.Segment(stepping.segment_path(name))
        stages = [
            (opened(name), scenario.operate),
            (lambda: None, recover(scenario, survivor)),
        ]
        learned = [set(), LEARNED.setdefault(recover, set())]
        for crash in stepping.crash_chain(
            stages, segment, samples=samples, seed=seed, learned=learned
        ):
            tally.add(crash)
            meet = MEETINGS[(crash.n + crash.previous.n) % len(MEETINGS)]
            with explained(crash, meet):
                seen = contents(survivor, before.keys() | after.keys() | written.keys())
                assert seen in possible
                survive(scenario, survivor, meet, seen, seen)
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
        SCENARIOS[name], map_name, record_property, recover=recover, samples=[5, 6], seed=seed
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
    with filled(scenario, map_name) as (survivor, before):
        after = dict(before)
        scenario.outcome(after)
        segment = stepping.Segment(stepping.segment_path(map_name))
        recovery = (lambda: None, recover_by_attaching(scenario, survivor))
        stages = [(opened(map_name), scenario.operate), recovery, recovery]
        for crash in stepping.crash_chain(stages, segment, samples=[20, 12, 12], seed=seed):
            tally.add(crash)
            with explained(crash, only_check):
                survive(scenario, survivor, only_check, before, after)
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
    with filled(scenario, map_name) as (survivor, before):
        after = dict(before)
        scenario.outcome(after)
        keys = before.keys() | after.keys() | {word(FRESH)}
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
                expect_before_or_after(scenario, contents(survivor, keys), before, after)
                child.wait()
            assert contents(survivor, keys) == after
            expect_whole(survivor)
