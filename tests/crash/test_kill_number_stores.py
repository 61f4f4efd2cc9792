"""A process is killed at every change it makes when it stores a number under a present key of a
dict (C1, C2, R2, W1): by the short way, which makes no preparations for an insertion."""

import contextlib

import pytest
from support.killing import Scenario, not_waiting, only_check

from shmrhash import SharedDict

pytestmark = pytest.mark.usefixtures("stepper")

CHANGES_MAX = 6  # activity, target, header, the number, header, activity


# ---- how the survivor meets the dead ----


def store_same_key(scenario, survivor, model):
    survivor[scenario.stored_key] = model[scenario.stored_key] = 77


def add_to_same_key(scenario, survivor, model):
    model[scenario.stored_key] += 1000
    assert survivor.add(scenario.stored_key, 1000) == model[scenario.stored_key]


def delete_same_key(scenario, survivor, model):
    assert survivor.pop(scenario.stored_key) == model.pop(scenario.stored_key)


def somebody_attaches(scenario, survivor, model):
    SharedDict.open(survivor.name).close()


# ---- the operations ----


class OnNumbers(Scenario):
    """One change of a number in a dict of five."""

    changes_min = 5  # the target may be the same as before
    meetings = (
        store_same_key,
        somebody_attaches,
        add_to_same_key,
        only_check,
        delete_same_key,
    )
    keys_are = str

    @property
    def stored_key(self):
        return self.keys_are(3)

    @contextlib.contextmanager
    def made(self, name):
        with SharedDict.create(name, key=self.keys_are, value=int, max_entries=64) as survivor:
            try:
                survivor.update({self.keys_are(key): key for key in range(5)})
                yield survivor, dict(survivor)
            finally:
                survivor.unlink()

    def prepare(self, name):
        child = SharedDict.open(name)
        child[self.stored_key] = 3  # the next store tries the short way first
        return child

    def look(self, survivor, keys):
        with not_waiting(len(keys)):
            return dict(survivor.items())

    def facts(self, survivor):
        return survivor.info()

    def expect_whole_operation(self, trace, survivor, models, at_start):
        super().expect_whole_operation(trace, survivor, models, at_start)
        assert len(trace.changes) <= CHANGES_MAX

    def survive(self, survivor, meet, seen, keys):
        model = dict(seen)
        meet(self, survivor, model)
        assert survivor.check()["exact"]
        assert dict(survivor) == model
        for key in model:
            survivor[key] = model[key] = model[key] * 2
        assert dict(survivor) == model
        somebody_attaches(self, survivor, model)
        assert survivor.info()["contexts"] == 1


class Store(OnNumbers):
    def operate(self, state):
        state[self.stored_key] = 71

    def change(self, model):
        model[self.stored_key] = 71


class Add(OnNumbers):
    def operate(self, state):
        assert state.add(self.stored_key, 40) == 43

    def change(self, model):
        model[self.stored_key] += 40


class Max(OnNumbers):
    def operate(self, state):
        assert state.max(self.stored_key, 1 << 40) == 1 << 40

    def change(self, model):
        model[self.stored_key] = 1 << 40


SCENARIOS = [
    Store("store under a str"),
    Store("store under an int", keys_are=int),
    Add("add under a str"),
    Add("add under an int", keys_are=int),
    Max("max under a str"),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_killed_store_of_a_number_happened_or_did_not(scenario, map_name, seed, record_property):
    """C1, C2, R2, W1: a kill after each change, and every way to meet the dead on every state."""
    scenario.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)
