"""A storm in a cache: processes store values of all sizes, look up, delete and clear.

crew = [Child(store_all_sizes, cache.name, seed + number) for number in range(4)]
...
assert found == value_of(key, len(found))     # what any process finds is whole
"""

import random

from shmrhash import Cache

STUCK_S = 20  # the timeout of a storm's operations: far more than any recovery takes
KEYS = 20_000
SIZES = [5, 60, 200, 900, 4_000, 30_000, 90_000]


def value_of(key, size):
    """The value of this key: size bytes, all of them alike."""
    return bytes([key % 251]) * size


def check_values(cache):
    """Look up all keys of the storm; what is found is whole."""
    for key in range(KEYS):
        found = cache.get(key)
        assert found is None or found == value_of(key, len(found))


def store_all_sizes(name, seed, rounds=1 << 40):
    """In each round, store many values of one size; look up, and now and then delete or clear."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes, timeout=STUCK_S) as cache:
        for _ in range(rounds):
            size = rng.choice(SIZES)
            for _ in range(60_000 // (size + 100) + 3):
                key = rng.randrange(KEYS)
                cache.set(key, value_of(key, size), ttl=rng.choice([None, None, 0.001, 5]))
                other = rng.randrange(KEYS)
                found = cache.get(other)
                assert found is None or found == value_of(other, len(found))
            if rng.random() < 0.1:
                for key in range(rng.randrange(KEYS)):
                    cache.delete(key)
            elif rng.random() < 0.03:
                cache.clear()
