"""A process is killed at changes that it makes in a cache that is full of bytes (C1, M1).

Entries, table and values share max_bytes there, so a store reserves pages, evicts for them, and
gives blocks of another kind back. After each kill: the budget is exact (check), the file takes no
more than max_bytes, what is found is whole, and a survivor fills the cache again, with values of
another size, as if nothing had happened.
"""

import os

import pytest
from support import stepping
from support.caches import cache_options
from support.killing import Tally, explained

import shmrhash
from shmrhash import Cache

pytestmark = pytest.mark.usefixtures("stepper")

ROOM = 300_000  # beyond the least
NEW = 1 << 40
SMALL, MIDDLE, LARGE = 150, 2_000, 40_000
LEFT_PAGES = 8  # a full cache takes so many more or less, by the blocks that it has


def value(key, size):
    return (key % 2**63).to_bytes(8, "little") * (size // 8)


def fill(cache, size, base):
    """Store values of one size until some are evicted; return the most that the file took."""
    most = 0
    for number in range(count_of(cache, size)):
        cache.set(base + number, value(base + number, size))
        if number % 16 == 0:
            most = max(most, taken(cache))
    return max(most, taken(cache))


def count_of(cache, size):
    """How many values fill() stores."""
    return 2 * cache.handle.max_bytes // (size + 100)


def taken(cache):
    return os.fstat(cache.handle._descriptor()).st_blocks * 512


def store_same(cache):
    cache.set(NEW, value(NEW, SMALL))


def store_middle(cache):
    cache.set(NEW, value(NEW, MIDDLE))


def store_large(cache):
    """Blocks go for it."""
    cache.set(NEW, value(NEW, LARGE))


def replace_large(cache):
    cache.set(0, value(0, SMALL))


def clear(cache):
    cache.clear()


def delete_some(cache):
    last = count_of(cache, MIDDLE)
    for key in range(last - 40, last):
        cache.delete(key)


CASES = {
    "small values, and one more": (SMALL, store_same),
    "small values, and one of a middle size": (SMALL, store_middle),
    "small values, and a large one": (SMALL, store_large),
    "middle values, and a large one": (MIDDLE, store_large),
    "large values, and a small one": (LARGE, store_same),
    "small values, and a clear": (SMALL, clear),
    "middle values, and deletions": (MIDDLE, delete_some),
}


def other_than(size):
    return MIDDLE if size != MIDDLE else SMALL


def usually_taken(size, options):
    """What the file takes without a kill, once a cache is full of values of another size."""
    with Cache(None, **options) as cache:
        fill(cache, size, 0)
        fill(cache, other_than(size), NEW + 1)
        return taken(cache)


def kill_and_survive(name, size, operate, sample, seed, record_property):
    options = cache_options(ROOM, key=int, value=bytes, max_entries=3_000)
    limit = options["max_bytes"]
    tally = Tally()
    with stepping.on_cpu(stepping.default_cpu()):
        usual = usually_taken(size, options)
    with stepping.on_cpu(stepping.default_cpu()), Cache(name, **options) as cache:
        try:
            assert fill(cache, size, 0) <= limit
            assert cache.stats().evicted_new + cache.stats().evicted_kept > 0
            segment = stepping.Segment(stepping.segment_path(name))

            def prepare():
                child = Cache(name, key=int, value=bytes)
                child.get(-1)
                return child

            for crash in stepping.crash_states(prepare, operate, segment, sample=sample, seed=seed):
                tally.add(crash)
                with explained(crash, survive):
                    survive(cache, limit, size, usual)
            assert tally.crashes > 5
        finally:
            shmrhash.unlink(name)
    tally.report(record_property, f"{operate.__name__}, seed {seed}", crash.total)


def survive(cache, limit, size, usual):
    assert taken(cache) <= limit
    cache.handle._recover()
    cache.check()
    for key in (*range(count_of(cache, size)), NEW):
        found = cache.get(key)
        assert found is None or found == value(key, len(found))
    assert fill(cache, other_than(size), NEW + 1) <= limit
    assert taken(cache) >= usual - LEFT_PAGES * 4096
    cache.check()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.long
def test_a_kill_in_a_full_cache_loses_no_page(case, map_name, seed, record_property):
    kill_and_survive(map_name, *CASES[case], 24, seed, record_property)
