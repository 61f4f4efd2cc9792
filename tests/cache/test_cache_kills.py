"""Processes are killed while they store values of all sizes in a cache that is full of bytes (C1).

A run that cannot grow is given back; if that has to wait, it stays named in the context, and the
next attempt gives it back before it takes another one. Once it took the other one at once, and the
first was lost: in one of ten storms of 120 kills.
"""

import random
import time

import pytest
from support.children import Child, kill

from shmrhash import Cache

STUCK_S = 20
SIZES = [5, 60, 200, 900, 4_000, 30_000, 90_000]


def value_of(key, size):
    return bytes([key % 251]) * size


def storm(name, seed):
    """Store values of all sizes, look up, delete, clear; what is found is whole."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes, timeout=STUCK_S) as cache:
        while True:
            size = rng.choice(SIZES)
            for _ in range(60_000 // (size + 100) + 3):
                key = rng.randrange(20_000)
                cache.set(key, value_of(key, size), ttl=rng.choice([None, None, 0.001, 5]))
                other = rng.randrange(20_000)
                found = cache.get(other)
                assert found is None or found == value_of(other, len(found))
            if rng.random() < 0.1:
                for key in range(rng.randrange(20_000)):
                    cache.delete(key)
            elif rng.random() < 0.03:
                cache.clear()


@pytest.mark.parametrize("kills", [20, pytest.param(1_000, marks=pytest.mark.long)])
def test_killed_storers_lose_no_object(make_cache, seed, kills):
    cache = make_cache(
        key=int, value=bytes, max_entries=1 << 14, max_bytes=1 << 20, timeout=STUCK_S
    )
    rng = random.Random(seed)
    crew = [Child(storm, cache.name, rng.random()) for _ in range(4)]
    try:
        for number in range(kills):
            time.sleep(rng.uniform(0, 0.03))
            assert crew[number % 4].kill() < 0, crew[number % 4].result()
            crew[number % 4] = Child(storm, cache.name, rng.random())
            if number % 100 == 99:
                cache.check()
    finally:
        kill(*crew)

    cache.handle._recover()
    cache.check()
    for key in range(20_000):
        found = cache.get(key)
        assert found is None or found == value_of(key, len(found))
