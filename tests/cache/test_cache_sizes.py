"""Memory moves from one size of values to another: eviction by block (evict_block.pxd)."""

import bisect
import random

import pytest
from support.caches import cache_options
from support.workers import run_together

from shmrhash import Array, Cache

ROOM_BYTES = 1_200_000  # beyond the least
MOST_BYTES = 1_600_000  # what entries, the table and values have of it
ENTRY_BYTES = 90  # what an entry takes beside its value


def fill(cache, size, turns, base):
    """Store new values of this size, so many times as many as fit; return how many values were
    stored."""
    count = int(turns * MOST_BYTES / (size + ENTRY_BYTES))
    for number in range(count):
        cache.set(base + number, bytes(size))
    return count


def full_of(size):
    """About how many values of a size fill a cache."""
    return int(MOST_BYTES / (size + ENTRY_BYTES))


def count_of(cache, base, count):
    """Return how many keys of a range are in the cache."""
    return sum(key in cache for key in range(base, base + count))


def evicted(cache):
    stats = cache.stats()
    return stats.evicted_new + stats.evicted_kept + stats.evicted_expired + stats.evicted_block


def roomy(make_cache):
    return make_cache(**cache_options(ROOM_BYTES, key=int, value=bytes, max_entries=1 << 14))


def in_use(cache):
    return cache.handle.info()["objects"]["bytes_in_use"]


@pytest.mark.parametrize(
    ("old", "new"), [(200, 5_000), (5_000, 200), (200, 8_000), (1_000, 200), (200, 30_000)]
)
def test_values_of_a_new_size_soon_have_all_the_memory(make_cache, old, new):
    """After values of a new size for twice the cache's memory have been stored, all of the memory
    has values of the new size."""
    cache, fresh = roomy(make_cache), roomy(make_cache)
    fill(cache, old, 1.5, 0)
    full = count_of(fresh, 0, fill(fresh, new, 2, 0))
    most = in_use(fresh)

    count = fill(cache, new, 1, 1 << 40)
    assert in_use(cache) >= 0.8 * most
    assert count_of(cache, 1 << 40, count) >= 0.6 * full

    count = fill(cache, new, 1, 1 << 41)
    assert in_use(cache) >= 0.85 * most
    assert len(cache) - count_of(cache, 0, 3 * full_of(old)) >= 0.9 * full
    assert cache.stats().rejected == 0


def test_what_a_small_size_left_in_every_block_makes_room(make_cache, seed):
    """Every sixth small entry was read, and so stays in its block while its neighbours are evicted.
    Large values get the memory of whole blocks, and need not evict each other."""
    cache = roomy(make_cache)
    rng = random.Random(seed)
    for number in range(fill(cache, 200, 1.0, 0)):
        if rng.randrange(6) == 0:
            cache.get(number)
            cache.get(number)

    count = fill(cache, 5_000, 0.6, 1 << 40)

    # 0.73 to 0.99 by the seed: what stays scattered in blocks of elements goes later.
    assert count_of(cache, 1 << 40, count) >= 0.6 * count
    assert cache.stats().evicted_block > 0


def test_a_large_value_evicts_about_as_many_bytes_as_it_has(make_cache):
    """A large value evicts small values of about as many bytes, and the others stay."""
    cache = roomy(make_cache)
    fill(cache, 200, 1.5, 0)
    full = len(cache)

    for number in range(1, 4):
        cache.set(-number, bytes(100_000))

        gone = full + number - len(cache)
        assert gone <= number * 100_000 / 200 * 1.5 + 100
        assert -number in cache
    assert cache.stats().evicted_block > 0


def zipf(rng, keys, exponent=0.9):
    """Return a function that draws keys, the key of rank n with a probability in proportion to n **
    -exponent."""
    sums, total = [], 0.0
    for rank in range(1, keys + 1):
        total += rank**-exponent
        sums.append(total)
    return lambda: bisect.bisect(sums, rng.random() * total)


def hit_ratio(cache, draw, count, size, base):
    hits = 0
    for _ in range(count):
        key = base + draw()
        if cache.get(key) is not None:
            hits += 1
        else:
            cache.set(key, bytes(size))
    return hits / count


@pytest.mark.parametrize(("old", "new"), [(200, 5_000), (5_120, 200)])
def test_hit_ratio_does_not_remember_values_of_another_size(make_cache, seed, old, new):
    """Values of an old size that were read often are evicted as soon as if they had the new size.
    So after a change of keys and size the hit ratio is at least that of a cache whose old values
    had the new size, and in the end that of a new cache."""
    rng = random.Random(seed)
    turn = full_of(new)
    after = zipf(rng, 5 * turn)

    def hit_ratios(before):
        cache = roomy(make_cache)
        if before is not None:
            rng.seed(seed)
            draw = zipf(rng, 10 * full_of(before))
            hit_ratio(cache, draw, 3 * full_of(before), before, 0)
        rng.seed(seed)
        hit_ratio(cache, after, 3 * turn, new, 1 << 40)
        soon = hit_ratio(cache, after, 2 * turn + 2_000, new, 1 << 40)
        hit_ratio(cache, after, 5 * turn, new, 1 << 40)
        return soon, hit_ratio(cache, after, 2 * turn + 2_000, new, 1 << 40)

    other, same, fresh = hit_ratios(old), hit_ratios(new), hit_ratios(None)

    print("soon and late:", other, same, fresh, "(another size, the same, a new cache)")
    assert other[0] >= same[0] - 0.03
    assert other[1] >= fresh[1] - 0.03


def test_a_value_that_is_being_changed_keeps_its_block(make_cache):
    """L1: an entry in a section is not evicted, and its object keeps its memory."""
    cache = roomy(make_cache)
    fill(cache, 200, 1.5, 0)
    cache.set(-1, b"a" * 200)

    def change(value):
        fill(cache, 5_000, 2, 1 << 40)
        assert value == b"a" * 200
        return value + b"b"

    cache.update_with(-1, change)

    assert cache.get(-1) == b"a" * 200 + b"b"
    assert cache.stats().evicted_block > 0


def test_a_mapped_value_stays_while_its_block_is_wanted(make_cache):
    """R2: an array that the program uses keeps its bytes, although its entry is evicted."""
    numpy = pytest.importorskip("numpy")
    cache = make_cache(**cache_options(ROOM_BYTES, key=int, value=Array("i8"), max_entries=1 << 14))
    for key in range(9_000):
        cache.set(key, numpy.full(20, key))
    kept = {key: cache.get(key) for key in range(8_900, 9_000, 7)}

    for number in range(400):
        cache.set(-1 - number, numpy.full(600, number))

    assert cache.stats().evicted_block > 0
    for key, array in kept.items():
        assert (array == key).all()
    del kept, array


def move(gate, name, seed, rounds):
    """Store values whose size changes at random; assert that each value found is whole."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes) as cache:
        gate.wait()
        for _turn in range(rounds):
            size = rng.choice([40, 200, 1_000, 5_000, 30_000])
            for _ in range(40_000 // size + 20):
                key = rng.randrange(2_000)
                value = bytes([key % 251]) * size
                cache.set(key, value)
                for other in (key, rng.randrange(2_000)):
                    found = cache.get(other)
                    assert found is None or found == bytes([other % 251]) * len(found)
    gate.finish()


@pytest.mark.parametrize("rounds", [10, pytest.param(150, marks=pytest.mark.thorough)])
def test_values_are_whole_while_blocks_move(make_cache, seed, rounds):
    """C1, R2: three processes store values of changing sizes, and evict each other's entries."""
    cache = make_cache(**cache_options(1 << 17, key=int, value=bytes, max_entries=4_000))

    run_together("fork", *[(move, cache.name, seed + n, rounds) for n in range(3)])

    assert cache.stats().evicted_block > 0
    assert cache.stats().rejected == 0
