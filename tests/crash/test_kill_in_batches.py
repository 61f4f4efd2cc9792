"""A process is killed at every change that a batch makes (C1, C2): a prefix of the batch is done.

As test_kill_every_instruction.py, with this oracle: the batch, applied to a dict key by key, gives
one model for each number of keys done. The survivor finds exactly one of these models, never a
state between two, and a later kill never shows fewer keys. So only the next key was in doubt. Then
the survivor meets the dead by writing one of the two keys that the batch can have been changing, or
in another way, and finds the map sound and nothing lost.

The batches call the core's functions with prepared arrays: only the core is stepped through.
"""

import dataclasses
from collections.abc import Callable

import pytest
from support import stepping
from support.killing import (
    COLLISIONS,
    MEETINGS,
    Scenario,
    Tally,
    added,
    contents,
    entries,
    explained,
    facts,
    filled,
    opened,
    rose,
    survive,
    untouched,
    word,
)

from shmrhash import BPF_NOEXIST, _core

pytestmark = pytest.mark.usefixtures("stepper")

FIVE = entries(5)


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on one map."""

    name: str
    operate: Callable  # (scenario): returns what the child does with its handle
    steps: Callable  # (scenario, keys in the map's order): functions that do it to a dict
    keys: tuple  # the number of each step's key; () if the map's order decides
    fill: Callable = FIVE
    geometry: dict = dataclasses.field(default_factory=dict)
    result: object = None  # of operate, if it is not killed
    proof: Callable = lambda before, after: True  # of facts()

    def __str__(self):
        return self.name.replace(" ", "-")

    @property
    def scenario(self):
        return Scenario(self.name, None, None, self.fill, geometry=self.geometry)


def words(numbers):
    return b"".join(map(word, numbers))


def updating(name, keys, flag=0, **more):
    """update_many of these keys; each value is the key's number plus 100."""

    def operate(scenario):
        rows, stored = words(keys), bytearray(len(keys))
        values = b"".join(scenario.value(key + 100) for key in keys)

        def update_many(m):
            _core.update_many(m, rows, values, flag, stored)
            return stored

        return update_many

    def step(scenario, key):
        def update(model):
            if not (flag == BPF_NOEXIST and word(key) in model):
                model[word(key)] = scenario.value(key + 100)

        return update

    return Batch(name, operate, lambda scenario, _: [step(scenario, k) for k in keys], keys, **more)


def deleting(name, keys, **more):
    """delete_many of these keys."""
    rows, deleted = words(keys), bytearray(len(keys))

    def delete_many(m):
        _core.delete_many(m, rows, deleted, False)
        return deleted

    return Batch(
        name,
        lambda _: delete_many,
        lambda *_: [lambda model, k=k: model.pop(word(k), None) for k in keys],
        keys,
        **more,
    )


def adding(name, keys, default=None, offset=0, **more):
    """add_many of 7; a key that occurs twice gets 7 twice."""
    rows, deltas, sums = words(keys), words([7] * len(keys)), bytearray(8 * len(keys))

    def add_many(m):
        _core.add_many(m, rows, deltas, sums, default, offset)
        return sums

    return Batch(
        name,
        lambda _: add_many,
        lambda *_: [added(k, 7, offset, default) for k in keys],
        keys,
        **more,
    )


def taking(name, count, **more):
    """lookup_and_delete_batch of `count` entries, in the map's order."""
    keys, values = bytearray(8 * count), bytearray(8 * count)

    def take(m):
        taken, _ = _core.take_entries(m, None, keys, values, count)
        return keys[: 8 * taken], values[: 8 * taken]

    def steps(_, in_order):
        return [lambda model, key=key: model.pop(key) for key in in_order[:count]]

    return Batch(name, lambda _: take, steps, (), **more)


BATCHES = {
    batch.name: batch
    for batch in [
        updating("first inserts of a map", (1, 2), fill=untouched, result=b"\1\1"),
        updating("inserts", (6, 7), result=b"\1\1"),
        updating("inserts into a line", (7, 8, 9), fill=entries(6), geometry=COLLISIONS),
        updating("updates", (3, 1, 5), result=b"\1\1\1"),
        updating("updates of 64 bytes", (3, 1), geometry={"value_size": 64}),
        updating("an update between inserts", (6, 3, 7), result=b"\1\1\1"),
        updating("an insert between refusals", (3, 6, 4), BPF_NOEXIST, result=b"\0\1\0"),
        updating("one key again and again", (6, 6, 6), BPF_NOEXIST, result=b"\1\0\0"),
        updating(
            "inserts that split",
            tuple(range(33, 49)),
            fill=entries(32),
            proof=rose("grows"),
            result=b"\1" * 16,
        ),
        updating("the last inserts of a map", (63, 64), fill=entries(62), result=b"\1\1"),
        deleting("deletes", (4, 2), result=b"\1\1"),
        deleting("a delete between absent keys", (9, 2, 8), result=b"\0\1\0"),
        deleting("deletes that dissolve a line", (1, 8, 4), fill=entries(9), geometry=COLLISIONS),
        taking("takes", 3),
        taking("takes from a chain", 3, fill=entries(9), geometry=COLLISIONS),
        taking("takes of all there is", 10, fill=entries(3)),
        adding("additions", (3, 1, 3)),
        adding("additions to absent keys", (6, 3, 6), default=100),
        adding("additions across words", (3, 1), offset=5, geometry={"value_size": 24}),
    ]
}

# Batches with many changes: only a seeded sample of the states, unless the test is `long`.
SAMPLED = {"first inserts of a map": 30, "inserts that split": 30}

# Instructions that changed the segment in earlier batches: knowing them spares long traces.
LEARNED = set()

every_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=str)


def models_of(batch, scenario, before, in_order):
    """The models that the map may show: after no key, after one key, and so on."""
    models = [dict(before)]
    for step in batch.steps(scenario, in_order):
        following = dict(models[-1])
        step(following)
        models.append(following)
    return models


def prefix_of(models, seen, least):
    """How many keys are done: the lowest number, not below `least`, that gives what was seen."""
    fitting = [done for done, model in enumerate(models) if model == seen and done >= least]
    assert fitting, f"seen is no beginning of the batch behind its first {least} keys"
    return fitting[0]


def expect_result(batch, scenario, trace, models, in_order, before):
    """Assert what the uninterrupted batch returned."""
    if batch.keys:
        assert batch.result is None or batch.result == trace.result
        return
    taken = [key for key in in_order if key in before and key not in models[-1]]
    expected = b"".join(taken), b"".join(before[key] for key in taken)
    assert expected == trace.result


def kill_and_survive(batch, name, record_property, *, sample, seed, meetings_at_once):
    """Kill a child in every state of a batch, or a sample of them, in the order of time."""
    scenario = batch.scenario
    tally = Tally()
    with filled(scenario, name) as (survivor, before):
        in_order = [key for key, _ in survivor.items()]
        models = models_of(batch, scenario, before, in_order)
        numbers = batch.keys or [int.from_bytes(k, "little") for k in in_order[: len(models) - 1]]
        keys = {key for model in models for key in model}
        segment = stepping.Segment(stepping.segment_path(name))
        at_start = facts(survivor)

        def whole(trace):
            assert len(trace.changes) >= 2 * len(numbers)
            assert batch.proof(at_start, facts(survivor))
            assert contents(survivor, keys) == models[-1]
            expect_result(batch, scenario, trace, models, in_order, before)

        done = 0
        reached = set()
        for crash in stepping.crash_states(
            opened(name),
            batch.operate(scenario),
            segment,
            sample=sample,
            seed=seed,
            traced=whole,
            pcs=LEARNED,
        ):
            tally.add(crash)
            meetings = MEETINGS if meetings_at_once else [MEETINGS[crash.n % len(MEETINGS)]]
            for meet in meetings:
                segment.restore(crash.image)
                with explained(crash, meet):
                    seen = contents(survivor, keys)
                    done = prefix_of(models, seen, done)
                    # The next key, or the last one done, whose operation may not be finished.
                    at = min(max(done - crash.n // len(MEETINGS) % 2, 0), len(numbers) - 1)
                    meant = dataclasses.replace(scenario, key=numbers[at])
                    survive(meant, survivor, meet, seen, seen)
            reached.add(done)
        assert crash.n == crash.total
        assert models[done] == models[-1]
        assert sample is not None or all(model in [models[n] for n in reached] for model in models)
    tally.report(record_property, f"{scenario}, seed {seed}", crash.total)


@every_batch
@pytest.mark.thorough
def test_killed_batch_is_done_up_to_one_key(batch, map_name, seed, record_property):
    """C1, C2, R1, W2: a kill after each change of the segment; the ways to meet take turns."""
    kill_and_survive(
        batch,
        map_name,
        record_property,
        sample=SAMPLED.get(batch.name),
        seed=seed,
        meetings_at_once=False,
    )


@pytest.mark.long
@every_batch
def test_killed_batch_is_done_up_to_one_key_for_every_survivor(
    batch, map_name, seed, record_property
):
    """C1, C2, R1, W2: a kill after every change, and every way to meet the dead on every state."""
    kill_and_survive(
        batch, map_name, record_property, sample=None, seed=seed, meetings_at_once=True
    )
