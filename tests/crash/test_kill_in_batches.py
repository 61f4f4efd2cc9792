"""A process is killed at every change that a batch makes (C1, C2): a prefix of the batch is done.

As test_kill_every_instruction.py, with this oracle: the batch, applied to a dict key by key, gives
one model for each number of keys done. The survivor finds exactly one of these models, never a
state between two, and a later kill never shows fewer keys. So only the next key was in doubt. Then
the survivor meets the dead by writing one of the two keys that the batch can have been changing, or
in another way, and finds the map sound and nothing lost.

The batches call the core's functions with prepared arrays: only the core is stepped through.
"""

import contextlib

import pytest
from support.killing import COLLISIONS, MEETINGS, Scenario, add_to, all_keys, word

from shmrhash import BPF_NOEXIST, _core

pytestmark = pytest.mark.usefixtures("stepper")


def words(numbers):
    return b"".join(map(word, numbers))


class Batch(Scenario):
    """One batch on one map: `keys` has the number of each step's key."""

    keys = ()
    result = None  # of operate(), if it is not killed; None: not looked at
    learned = set()  # noqa: RUF012 - shared by all batches
    looks = 0

    def step(self, model, key):
        """Do to a dict what the batch does for one key."""
        raise NotImplementedError

    def models(self, before):
        """What the map may show: after no key, after one key, and so on."""
        models = [dict(before)]
        for key in self.keys:
            models.append(dict(models[-1]))
            self.step(models[-1], key)
        return models

    def judge(self, seen, models, done):
        done = super().judge(seen, models, done)
        # The next key, or the last one done, whose operation may not be finished.
        self.looks += 1
        at = min(max(done - self.looks // len(MEETINGS) % 2, 0), len(self.keys) - 1)
        self.key = self.keys[at]
        return done

    def expect_whole_operation(self, trace, survivor, models, at_start):
        assert len(trace.changes) >= 2 * len(self.keys)
        assert self.happened(at_start, self.facts(survivor))
        assert self.look(survivor, all_keys(models)) == models[-1]
        assert self.result is None or self.result == trace.result


class UpdateMany(Batch):
    """Each value is the key's number plus 100."""

    flag = 0

    def prepare(self, name):
        values = b"".join(self.value(key + 100) for key in self.keys)
        return super().prepare(name), words(self.keys), values, bytearray(len(self.keys))

    def operate(self, state):
        handle, rows, values, stored = state
        _core.update_many(handle, rows, values, self.flag, stored)
        return stored

    def step(self, model, key):
        if not (self.flag == BPF_NOEXIST and word(key) in model):
            model[word(key)] = self.value(key + 100)


class DeleteMany(Batch):
    def prepare(self, name):
        return super().prepare(name), words(self.keys), bytearray(len(self.keys))

    def operate(self, state):
        handle, rows, deleted = state
        _core.delete_many(handle, rows, deleted, False)
        return deleted

    def step(self, model, key):
        model.pop(word(key), None)


class AddMany(Batch):
    """Add 7 to each key; a key that occurs twice gets 7 twice."""

    default = None
    offset = 0

    def prepare(self, name):
        count = len(self.keys)
        return super().prepare(name), words(self.keys), words([7] * count), bytearray(8 * count)

    def operate(self, state):
        handle, rows, deltas, sums = state
        _core.add_many(handle, rows, deltas, sums, self.default, self.offset)
        return sums

    def step(self, model, key):
        add_to(model, key, 7, self.offset, self.default)


class Take(Batch):
    """lookup_and_delete_batch of `count` entries, in the map's order."""

    count = 3

    def prepare(self, name):
        return super().prepare(name), bytearray(8 * self.count), bytearray(8 * self.count)

    def operate(self, state):
        handle, keys, values = state
        taken, _ = _core.take_entries(handle, None, keys, values, self.count)
        return keys[: 8 * taken], values[: 8 * taken]

    @contextlib.contextmanager
    def made(self, name):
        with super().made(name) as (survivor, before):
            in_order = [key for key, _ in survivor.items()][: self.count]
            self.keys = [int.from_bytes(key, "little") for key in in_order]
            self.result = b"".join(in_order), b"".join(before[key] for key in in_order)
            yield survivor, before

    def step(self, model, key):
        model.pop(word(key))


# Batches with many changes have a `sample`: only the `long` test visits all of their states.
BATCHES = {
    batch.name: batch
    for batch in [
        UpdateMany(
            "first inserts of a map", keys=(1, 2), entry_count=None, sample=30, result=b"\1\1"
        ),
        UpdateMany("inserts", keys=(6, 7), result=b"\1\1"),
        UpdateMany("inserts into a line", COLLISIONS, keys=(7, 8, 9), entry_count=6),
        UpdateMany("updates", keys=(3, 1, 5), result=b"\1\1\1"),
        UpdateMany("updates of 64 bytes", {"value_size": 64}, keys=(3, 1)),
        UpdateMany("an update between inserts", keys=(6, 3, 7), result=b"\1\1\1"),
        UpdateMany(
            "an insert between refusals", keys=(3, 6, 4), flag=BPF_NOEXIST, result=b"\0\1\0"
        ),
        UpdateMany("one key again and again", keys=(6, 6, 6), flag=BPF_NOEXIST, result=b"\1\0\0"),
        UpdateMany(
            "inserts that split",
            keys=tuple(range(33, 49)),
            entry_count=32,
            rising=("grows",),
            sample=30,
            result=b"\1" * 16,
        ),
        UpdateMany("the last inserts of a map", keys=(63, 64), entry_count=62, result=b"\1\1"),
        DeleteMany("deletes", keys=(4, 2), result=b"\1\1"),
        DeleteMany("a delete between absent keys", keys=(9, 2, 8), result=b"\0\1\0"),
        DeleteMany("deletes that dissolve a line", COLLISIONS, keys=(1, 8, 4), entry_count=9),
        Take("takes"),
        Take("takes from a chain", COLLISIONS, entry_count=9),
        Take("takes of all there is", count=10, entry_count=3),
        AddMany("additions", keys=(3, 1, 3)),
        AddMany("additions to absent keys", keys=(6, 3, 6), default=100),
        AddMany("additions across words", {"value_size": 24}, keys=(3, 1), offset=5),
    ]
}
every_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=str)


@every_batch
@pytest.mark.thorough
def test_killed_batch_is_done_up_to_one_key(batch, map_name, seed, record_property):
    """C1, C2, R1, W2: a kill after each change of the segment; the ways to meet take turns."""
    batch.kill_and_survive(map_name, record_property, seed=seed, sample=batch.sample)


@pytest.mark.long
@every_batch
def test_killed_batch_is_done_up_to_one_key_for_every_survivor(
    batch, map_name, seed, record_property
):
    """C1, C2, R1, W2: a kill after every change, and every way to meet the dead on every state."""
    batch.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)
