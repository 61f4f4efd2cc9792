"""Processes die while they store in a full cache and compute (C1). The stepped kills are in
tests/crash/test_kill_with_objects.py and test_kill_in_claims.py."""

import random
import struct
import time

import pytest
from support.children import Child, kill
from support.killing import starved_s

from shmrhash import Cache

KEYS = 300
MOST = 100
MOST_BYTES = 1 << 18
STUCK_S = 20  # processor time of a child that goes on after a death is some milliseconds


def value_of(key):
    """A value that shows which key it belongs to, and whether it is complete."""
    return struct.pack("<Q", key) * (1 + key * 7919 % 700)


def work(name, seed):
    """Look up, compute, store, delete and clear until killed; what is found is right."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes, timeout=STUCK_S) as cache:
        while True:
            step(cache, rng, rng.randrange(KEYS))


def step(cache, rng, key):
    assert cache.get(key) in (None, value_of(key))
    choice = rng.randrange(100)
    if choice < 30:
        found = cache.get_or_compute(key, lambda: value_of(key), wait=STUCK_S)
        assert found == value_of(key)
    elif choice < 80:
        cache.set(key, value_of(key), ttl=rng.choice([None, 0.001, 10]))
    elif choice < 90:
        cache.add(key, value_of(key))
    elif choice < 99:
        cache.delete(key)
    else:
        cache.clear()


def kill_again_and_again(cache, seed, kills):
    """Keep two processes at work, and kill one or the other at any moment. Return the longest time
    that an operation here took, less that for which this thread was ready to run, and did not."""
    rng = random.Random(seed)
    longest = 0.0
    crew = [Child(work, cache.name, rng.random()) for _ in range(2)]
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0, 0.02))
            which = rng.randrange(2)
            assert crew[which].kill() < 0, crew[which].result()
            crew[which] = Child(work, cache.name, rng.random())
            for _ in range(20):
                began, starved = time.monotonic(), starved_s()
                step(cache, rng, rng.randrange(KEYS))
                longest = max(longest, time.monotonic() - began - (starved_s() - starved))
            assert len(cache) <= MOST
    finally:
        kill(*crew)
    return longest


def expect_whole(cache):
    """The dead left nothing locked, lost or wrong, and the limit is exact."""
    cache.handle._recover()
    cache.check()
    for key in range(KEYS):
        assert cache.get(key) in (None, value_of(key))
    cache.clear()
    cache.expire()
    assert cache.handle.info()["objects"]["count"] == 0
    for key in range(3 * MOST):
        cache.set(key, b"small")
    assert len(cache) == MOST
    cache.check()


@pytest.mark.parametrize(
    "kills",
    [
        20,
        pytest.param(150, marks=pytest.mark.thorough),
        pytest.param(10_000, marks=pytest.mark.long),
    ],
)
def test_killed_processes_leave_a_whole_cache(make_cache, seed, kills):
    cache = make_cache(
        key=int, value=bytes, max_entries=MOST, max_bytes=MOST_BYTES, timeout=STUCK_S
    )

    longest = kill_again_and_again(cache, seed, kills)

    print(f"{kills} kills; the longest step took {longest * 1000:.1f} ms")
    assert longest < STUCK_S / 10
    expect_whole(cache)
    assert sum(cache.stats()[2:5]) > 0
    assert cache.stats().evicted_block > 0
