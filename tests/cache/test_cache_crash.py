"""Processes die while they store in a full cache (C1). The stepped kills are in
tests/crash/test_kill_with_objects.py."""

import random
import struct
import time

import pytest
from support.children import Child, kill

from shmrhash import Cache

KEYS = 300
MOST = 100
MOST_BYTES = 1 << 18
STUCK_S = 20  # processor time of a child that goes on after a death is some milliseconds


def value_of(key):
    """A value that shows which key it belongs to, and whether it is complete."""
    return struct.pack("<Q", key) * (1 + key * 7919 % 700)


def work(name, seed):
    """Look up, store, delete and clear until killed; what is found is right."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes, timeout=STUCK_S) as cache:
        while True:
            step(cache, rng, rng.randrange(KEYS))


def step(cache, rng, key):
    assert cache.get(key) in (None, value_of(key))
    choice = rng.randrange(100)
    if choice < 80:
        cache.set(key, value_of(key), ttl=rng.choice([None, 0.001, 10]))
    elif choice < 90:
        cache.add(key, value_of(key))
    elif choice < 99:
        cache.delete(key)
    else:
        cache.clear()


def kill_again_and_again(cache, seed, kills):
    """Keep two processes at work, and kill one or the other at any moment."""
    rng = random.Random(seed)
    crew = [Child(work, cache.name, rng.random()) for _ in range(2)]
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0, 0.02))
            which = rng.randrange(2)
            assert crew[which].kill() < 0, crew[which].result()
            crew[which] = Child(work, cache.name, rng.random())
            for _ in range(20):
                step(cache, rng, rng.randrange(KEYS))
            assert len(cache) <= MOST
    finally:
        kill(*crew)


def expect_whole(cache):
    """The dead left nothing locked, lost or wrong, and the limit is exact."""
    cache.handle._recover()
    cache.check()
    for key in range(KEYS):
        assert cache.get(key) in (None, value_of(key))
    cache.clear()
    assert cache.handle.info()["objects"]["count"] == 0
    for key in range(3 * MOST):
        cache.set(key, b"small")
    assert len(cache) == MOST
    cache.check()


@pytest.mark.parametrize(
    "kills",
    [40, pytest.param(400, marks=pytest.mark.thorough), pytest.param(5000, marks=pytest.mark.long)],
)
def test_killed_processes_leave_a_whole_cache(make_cache, seed, kills):
    cache = make_cache(
        key=int, value=bytes, max_entries=MOST, max_bytes=MOST_BYTES, timeout=STUCK_S
    )

    kill_again_and_again(cache, seed, kills)

    expect_whole(cache)
    assert sum(cache.stats()[2:5]) > 0
