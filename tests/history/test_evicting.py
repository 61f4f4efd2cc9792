"""Histories of a cache that evicts are linearizable, also under kills: a key may be gone at any
time, but no value is wrong, and none comes back (W1, C1).

As test_expiring.py; instead of the clock's operations each history has one eviction for each store,
which happens at any time after it, or never. What get_or_compute() computes itself is the store of
a new key; what it finds is a get.
"""

import time

import pytest
from support.history.checker import ABSENT, MISSING, OK, Operation, is_linearizable, rendered
from support.history.expiring import STORES, Entries, Round, timed
from support.history.expiring import Step as Call

from shmrhash import Cache

MAX_ENTRIES = 4
ROUNDS_MAX = 2_000  # enough to notice a mistake, which takes some dozen rounds
OFTEN = 3
ROUNDS_MIN = 10
ATTEMPTS_MAX = 10_000
NEVER_S = 600


@pytest.fixture
def small_cache(map_name):
    with Cache(map_name, key=int, value=int, max_entries=MAX_ENTRIES) as cache:
        yield cache
        cache.check()
        cache.unlink()


class Wrong(AssertionError):
    """No order explains the operations on some key of the history."""


class Cached(Entries):
    """The correct operations on a cache; the classes with a mistake inherit from this class."""

    def store_new(self, key, number, ttl_s):
        found = self.d.get_or_compute(key, lambda: number, wait=NEVER_S)
        return OK if found == number else found

    def remove(self, key):
        return OK if self.d.delete(key) else MISSING


def with_evictions(calls):
    """Return the operations, with an eviction added for each that stores."""
    found = []
    for at, call in enumerate(calls):
        operation = call.operation
        if operation.name == "store_new" and isinstance(operation.result, int):
            operation = operation._replace(name="get", arguments=())
        found.append(operation)
        if operation.name in STORES:
            found.append(
                Operation(
                    f"eviction {at}", "expire", operation.arguments, OK, operation.start, None
                )
            )
    return found


def judge(calls, seed):
    for key in sorted({call.key for call in calls}):
        history = with_evictions([call for call in calls if call.key == key])
        if not is_linearizable(history):
            raise Wrong(f"key {key}, seed {seed}\n{rendered(history)}")


def play(entries, seed, number, **facts):
    """Play a round on an empty cache, judge it, and return how many workers were killed."""
    entries.d.clear()
    played = Round(entries, (seed, number), **facts)
    judge(played.history(), (seed, number))
    if played.killed:
        entries.d.check()
    return played.killed


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(False, id="no kills", marks=pytest.mark.thorough),
        pytest.param(True, id="kills"),
    ],
)
def test_histories_of_a_cache_are_linearizable(small_cache, seed, duration, kills):
    """W1, C1: a lookup may miss a key, but never finds a wrong value or an older one."""
    end = time.monotonic() + 0.5 * duration
    number = killed = 0
    while time.monotonic() < end or number < ROUNDS_MIN or (kills and killed < OFTEN):
        number += 1
        killed += play(Cached(small_cache), seed, number, kills=kills)
        assert number < ATTEMPTS_MAX
    print(f"{number} rounds, {killed} kills, {sum(small_cache.stats()[2:5])} evictions")


# ---- mistakes must be noticed ----


class Remembers(Cached):
    """A cache whose get() returns for a millisecond what it has read before."""

    def __init__(self, shared_cache):
        super().__init__(shared_cache)
        self.read = {}

    def get(self, key):
        found, read_ns = self.read.get(key, (ABSENT, 0))
        if time.monotonic_ns() - read_ns > 1_000_000:
            found = super().get(key)
            self.read[key] = found, time.monotonic_ns()
        return found


class StoresLate(Cached):
    """A cache that stores a value only at the next lookup."""

    waiting = None

    def get(self, key):
        if self.waiting is not None:
            super().store(*self.waiting)
            self.waiting = None
        return super().get(key)

    def store(self, key, number, ttl_s):
        self.waiting = key, number, ttl_s
        return OK


class ComputesBesides(Cached):
    """A cache that returns the value that it has computed although it holds another one."""

    def store_new(self, key, number, ttl_s):
        super().store_new(key, number, ttl_s)
        return OK


@pytest.mark.parametrize("kind", [Remembers, StoresLate, ComputesBesides])
@pytest.mark.thorough
def test_wrong_cache_is_noticed(small_cache, seed, kind):
    """W1: among some rounds of a cache with a mistake one has a history without an order."""

    def play_often():
        for number in range(ROUNDS_MAX):
            play(kind(small_cache), seed, number, keys=3)

    with pytest.raises(Wrong):
        play_often()


# ---- the judge itself ----


def call(process, start, end, name, number=0, gives=OK):
    return timed(process, Call(name, 0, number, 0), gives, start, end, end or 1_000)


STORED = call(0, 0, 10, "store", number=7)
HISTORIES = {
    "gone": (True, [STORED, call(1, 20, 30, "get", gives=ABSENT)]),
    "gone, and there again": (
        False,
        [STORED, call(1, 20, 30, "get", gives=ABSENT), call(1, 40, 50, "get", gives=7)],
    ),
    "an older value": (
        False,
        [STORED, call(0, 20, 30, "store", number=8), call(1, 40, 50, "get", gives=7)],
    ),
    "computed because it was gone": (
        True,
        [STORED, call(1, 20, 30, "store_new", number=8), call(0, 40, 50, "get", gives=8)],
    ),
    "found by one that would compute": (
        True,
        [STORED, call(1, 20, 30, "store_new", number=8, gives=7)],
    ),
    "computed, and not stored": (
        True,
        [
            call(1, 20, 50, "store_new", number=8),
            call(0, 30, 40, "store", number=7),
            call(0, 60, 70, "get", gives=7),
        ],
    ),
    "a value that nobody stored": (False, [STORED, call(1, 20, 30, "get", gives=9)]),
}


@pytest.mark.parametrize(("right", "calls"), HISTORIES.values(), ids=HISTORIES)
def test_history_of_a_cache_is_judged_by_its_values(right, calls):
    """W1: the judge accepts and refuses histories of a cache that are written by hand."""
    assert is_linearizable(with_evictions(calls)) == right
