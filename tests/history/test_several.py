"""Histories of locked_many() are linearizable, all keys together (L2, W1)."""

import contextlib
import time

import pytest
from support.history.checker import is_linearizable, rendered
from support.history.several import Round, Values, of_all_keys, of_one_key

KEYS, SIZE = 3, 24
ROUNDS_MIN, ROUNDS_MAX = 20, 5_000


def judge(recorded):
    """L2: one order of the locking operations explains what they found of all keys. W1: for each
    key one order explains the results of lookups as well."""
    history = recorded.history()
    together = of_all_keys(history)
    assert is_linearizable(together, recorded.initial), rendered(together, recorded.initial)
    for key in range(KEYS):
        single = of_one_key(history, key)
        assert is_linearizable(single, recorded.initial[key]), rendered(single)


def record(m, seed, seconds):
    began, rounds, killed = time.monotonic(), 0, 0
    while rounds < ROUNDS_MIN or killed < ROUNDS_MIN or time.monotonic() < began + seconds:
        recorded = Round(Values(m, KEYS, SIZE), (seed, rounds))
        judge(recorded)
        killed += recorded.killed
        rounds += 1
        assert rounds < ROUNDS_MAX, f"only {killed} kills in {rounds} rounds"
    print(f"{rounds} rounds, {killed} processes killed, seed {seed}")


@pytest.mark.thorough
def test_several_keys_change_in_one_step(make_map, seed, duration):
    """L2, W1, C1: processes lock several keys and are killed; no operation sees half of a
    change."""
    record(make_map(value_size=SIZE, timeout=60), seed, duration)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_several_keys_change_in_one_step_in_a_long_run(make_map, seed, duration):
    """L2, W1, C1: no operation sees half of a change for ten times --duration seconds."""
    record(make_map(value_size=SIZE, timeout=60), seed, 10 * duration)


class OneAfterTheOther(Values):
    """Values that are changed one key after the other, each under its key's own lock."""

    def perform(self, step):
        if step.name != "exchange_all":
            return super().perform(step)
        found = []
        for at, key in enumerate(self.keys):
            with self.handle.locked(key) as value:
                found.append(self.decode(bytes(value)))
                value[:] = self.encode(step.new + at)
            time.sleep(0)
        return found


@pytest.mark.thorough
def test_change_of_one_key_after_the_other_is_noticed(make_map, seed):
    """L2: if keys are changed one after the other, some history has no order."""
    m = make_map(value_size=SIZE, timeout=60)
    noticed = False
    for number in range(ROUNDS_MAX):
        with contextlib.suppress(AssertionError):
            judge(Round(OneAfterTheOther(m, KEYS, SIZE), (seed, number), kills=False))
            continue
        noticed = True
        break

    assert noticed
