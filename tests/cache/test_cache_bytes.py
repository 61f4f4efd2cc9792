"""max_bytes of a cache is the memory of its whole segment: of the file, at every moment."""

import contextlib
import os
import random
import time

import pytest
from support.cache_storms import STUCK_S, store_all_sizes
from support.caches import cache_options, least_bytes
from support.children import Child, kill
from support.workers import run_together

from shmrhash import (
    Cache,
    InvalidArgument,
    LayoutMismatch,
    SharedDict,
    TooLarge,
    TooManyProcesses,
)
from shmrhash._cachelimits import limits_if_made

MIB = 1 << 20


def taken(cache):
    """What the file system says that the segment takes."""
    return os.fstat(cache.handle._descriptor()).st_blocks * 512


def turn_over(cache, size, times, base=0):
    """Store values of this size, so often max_bytes of them; return the most that was taken."""
    most = 0
    for number in range(int(times * cache.handle.max_bytes / (size + 100)) + 10):
        cache.set(base + number, bytes(size))
        if number % 16 == 0:
            most = max(most, taken(cache))
    return max(most, taken(cache))


# ---- what a full cache takes ----


@pytest.mark.parametrize(
    ("size", "mib"), [(2_000, 12), pytest.param(100, 12, marks=pytest.mark.thorough), (200_000, 32)]
)
def test_a_full_cache_takes_nearly_all_of_its_bytes(make_cache, size, mib):
    """At least 97 in 100, and never more than all. Entries, table and values share them, so few
    large values have what many entries would need."""
    cache = make_cache(key=int, value=bytes, max_bytes=mib * MIB)

    most = turn_over(cache, size, 1.3)

    assert 0.97 * mib * MIB <= taken(cache) <= most <= mib * MIB
    assert cache.stats().rejected == 0
    assert len(cache) * (size + 110) >= 0.92 * mib * MIB


@pytest.mark.parametrize("types", [(int, int), (str, str), (bytes, object)])
def test_small_values_have_all_bytes_too(make_cache, types):
    """Entries without objects are limited by the same number, and all of them can be evicted."""
    cache = make_cache(key=types[0], value=types[1], max_bytes=2 * MIB, max_entries=1 << 15)
    make = {int: int, str: str, bytes: lambda number: b"%d" % number, object: int}

    for number in range(40_000):
        cache.set(make[types[0]](number), make[types[1]](number))
        if number % 64 == 0:
            assert taken(cache) <= 2 * MIB

    assert taken(cache) >= 0.9 * 2 * MIB
    assert 10_000 < len(cache) < 30_000
    assert cache.stats().rejected == 0


@pytest.mark.parametrize(("old", "new"), [(60, 6_000), (6_000, 60), (60, 100_000)])
def test_elements_and_values_give_each_other_memory(make_cache, old, new):
    """After a change of sizes, the elements and the table that are not needed any more become
    memory for values, and the other way round; the table keeps its load, so nothing gets slow."""
    cache = make_cache(key=int, value=bytes, max_bytes=4 * MIB)
    fresh = make_cache(key=int, value=bytes, max_bytes=4 * MIB)
    most = turn_over(cache, old, 1.5)
    turn_over(fresh, new, 1.5)

    most = max(most, turn_over(cache, new, 3, 1 << 40))

    assert most <= 4 * MIB
    in_use = [each.handle.info()["objects"]["bytes_in_use"] for each in (cache, fresh)]
    assert in_use[0] >= 0.75 * in_use[1], in_use
    assert len(cache) <= 4.5 * cache.handle.info()["buckets"] + 50
    assert cache.stats().rejected == 0


def test_what_is_not_kept_gives_its_memory_to_others(make_cache):
    """Most entries are deleted, here and there one stays in each block of elements: large values
    need the memory, so these are evicted, or their elements are taken again."""
    cache = make_cache(key=int, value=object, max_bytes=4 * MIB, max_entries=1 << 16)
    for number in range(40_000):
        cache.set(number, None)
    full = taken(cache)
    for number in range(40_000):
        if number % 97:
            cache.delete(number)

    for number in range(600):
        cache.set(1 << 40 | number, bytes(9_000))

    assert full >= 0.9 * 4 * MIB
    assert cache.handle.info()["objects"]["bytes_in_use"] >= 2.4 * MIB
    assert taken(cache) <= 4 * MIB


# ---- at every moment ----


def storm_together(gate, name, seed, rounds):
    gate.wait()
    store_all_sizes(name, seed, rounds)
    gate.finish()


def watch_bytes(gate, name, most_bytes):
    """Look at the file all the time; return how much it took at most, and how often it was seen."""
    most = looks = 0
    with Cache(name, key=int, value=bytes) as cache:
        gate.wait()
        for _ in gate.open_for(1 << 30):
            most = max(most, taken(cache))
            looks += 1
            assert most <= most_bytes
    return most, looks


@pytest.mark.parametrize("rounds", [25, pytest.param(400, marks=pytest.mark.thorough)])
def test_the_file_never_takes_more(make_cache, seed, rounds):
    """Four processes store, evict, delete and clear."""
    limit = 3 * MIB
    cache = make_cache(key=int, value=bytes, max_bytes=limit)
    turn_over(cache, 700, 1.3, 1 << 40)
    jobs = [(storm_together, cache.name, seed + number, rounds) for number in range(4)]

    *_, (most, looks) = run_together("fork", *jobs, (watch_bytes, cache.name, limit))

    print(f"at most {most / limit:.4f} of max_bytes in {looks} looks")
    assert looks > 10
    assert most > 0.9 * limit
    assert cache.stats().rejected == 0
    assert cache.stats().evicted_block > 0


@pytest.mark.parametrize(
    "kills",
    [
        12,
        pytest.param(120, marks=pytest.mark.thorough),
        pytest.param(3_000, marks=pytest.mark.long),
    ],
)
def test_kills_take_no_bytes_from_the_rest(make_cache, seed, kills):
    """C1: four processes are killed in turn. The file never takes more; no page is lost: what the
    budget counts is there (check), and a survivor fills the cache as if nothing had happened."""
    limit = 2 * MIB
    cache = make_cache(key=int, value=bytes, max_bytes=limit, timeout=STUCK_S)
    rng = random.Random(seed)
    crew = [Child(store_all_sizes, cache.name, rng.random()) for _ in range(4)]
    most = 0
    try:
        for number in range(kills):
            end = time.monotonic() + rng.uniform(0, 0.03)
            while time.monotonic() < end:
                most = max(most, taken(cache))
            assert crew[number % 4].kill() < 0, crew[number % 4].result()
            crew[number % 4] = Child(store_all_sizes, cache.name, rng.random())
    finally:
        kill(*crew)

    cache.handle._recover()
    assert cache.check()["exact"]
    most = max(most, turn_over(cache, 2_000, 2, 1 << 40))

    print(f"at most {most / limit:.4f} of max_bytes")
    assert most <= limit
    assert taken(cache) >= 0.9 * limit
    assert cache.check()["exact"]


def test_a_full_cache_can_be_watched(make_cache):
    """The ring's memory counts, and entries go for it."""
    cache = make_cache(key=str, value=bytes, max_bytes=4 * MIB)
    for number in range(3_000):
        cache.set(f"key {number}", bytes(2_000))
    before = len(cache)

    with cache.watch() as watch:
        cache.set("new", b"1")
        assert "new" in [change.key for change in watch.poll()]
        cache.set("newer", bytes(2_000))
        assert before - 200 < len(cache) < before + 2
        assert taken(cache) <= 4 * MIB


# ---- what is too little, and what is equal ----


@pytest.mark.parametrize("entries", [10, 100_000])
def test_too_few_bytes_are_refused_and_the_least_are_enough(make_cache, map_name, entries):
    least = least_bytes(key=int, value=bytes, max_entries=entries)

    with pytest.raises(InvalidArgument, match=rf"'{map_name}-small': max_bytes=.* needs {least}"):
        Cache(f"{map_name}-small", key=int, value=bytes, max_entries=entries, max_bytes=least - 1)
    cache = make_cache(
        name=f"{map_name}-small", key=int, value=bytes, max_entries=entries, max_bytes=least
    )

    assert turn_over(cache, 50, 2) <= least
    assert turn_over(cache, 20_000, 2) <= least
    assert cache.stats().rejected == 0
    assert len(cache) > 0


def test_a_small_cache_fits_on_a_machine_with_many_cpus(make_cache, map_name, monkeypatch):
    """CPUs share depots where one for each would leave a small cache no memory."""
    monkeypatch.setattr("os.cpu_count", lambda: 200)

    small = make_cache(name=f"{map_name}-small", key=int, value=bytes, max_bytes=1 << 20)
    large = make_cache(name=f"{map_name}-large", key=int, value=bytes, max_bytes=64 << 20)

    assert 2 <= small.info()["depots"] < 200 < large.info()["depots"]
    assert turn_over(small, 50, 2) <= 1 << 20
    assert small.stats().rejected == 0
    assert len(small) > 0


@pytest.mark.parametrize("bad", [0, -1, 1, 1 << 16])
def test_no_cache_has_so_few_bytes(map_name, bad):
    with pytest.raises(InvalidArgument, match=f"max_bytes={bad} is too little"):
        Cache(map_name, max_bytes=bad)


def test_the_least_that_an_error_names_is_enough(make_cache):
    """Without max_entries, more bytes have more entries, which take some of the bytes."""
    for tags in (False, True):
        with pytest.raises(InvalidArgument, match="such a cache, which needs") as caught:
            Cache("never-made", max_bytes=1, tags=tags)
        least = int(str(caught.value).split("needs ")[1].split()[0])

        cache = make_cache(key=int, value=bytes, max_bytes=least, tags=tags)

        assert turn_over(cache, 2_000, 2) <= least < 2 * MIB
        assert cache.stats().rejected == 0


def test_a_cache_is_not_replaced_by_one_that_cannot_be_made(make_cache):
    cache = make_cache(key=int, value=int, max_bytes=4 * MIB)
    cache.set(1, 2)

    for bad in ({"max_bytes": 100}, {"max_bytes": 500_000}, {"max_entries": 1 << 32}):
        with pytest.raises((InvalidArgument, TooLarge)):
            Cache(cache.name, key=int, value=int, **bad)

    with Cache(cache.name, key=int, value=int) as again:
        assert again.get(1) == 2


def test_max_bytes_of_any_machine_leave_max_entries_possible():
    assert limits_if_made(None, 300 << 30) == (1 << 31, 300 << 30)
    assert limits_if_made(None, 64 << 20) == (1 << 19, 64 << 20)


def test_a_value_larger_than_all_bytes_evicts_nothing(make_cache):
    cache = make_cache(key=int, value=bytes, max_bytes=2 * MIB, max_value_bytes=64 * MIB)
    turn_over(cache, 2_000, 1.2)
    full = len(cache)

    with pytest.raises(MemoryError, match=r"may take max_bytes=2097152 bytes; .* are needed"):
        cache.set(-1, bytes(2 * MIB))

    assert len(cache) > 0.95 * full


def test_max_bytes_is_compared_as_whole_pages(make_cache):
    """Rounded down: a cache never takes more than was said."""
    cache = make_cache(key=int, value=int, max_bytes=2 * MIB + 4095)

    assert cache.handle.max_bytes == cache.info()["bytes_most"] == 2 * MIB
    for same in (2 * MIB, 2 * MIB + 1, None):
        with Cache(cache.name, key=int, value=int, max_bytes=same, if_different="raise") as other:
            assert other.handle._identity() == cache.handle._identity()
    with pytest.raises(LayoutMismatch, match="max_bytes=2097152, but was opened with 2093056"):
        Cache(cache.name, key=int, value=int, max_bytes=2 * MIB - 4096, if_different="raise")


def test_entries_that_are_wanted_come_beside_the_bytes_of_a_default(make_cache):
    """Without max_bytes, max_entries of any number fit."""
    cache = make_cache(key=int, value=int, max_entries=3_000_000)

    assert cache.handle.max_bytes > 3_000_000 * 60
    assert make_cache(key=int, value=int, max_entries=10).handle.max_bytes > 64 * MIB


def test_a_small_cache_has_fewer_contexts_and_says_so(make_cache):
    """Contexts are for who comes, so no room is needed for them; there are 128 at least."""
    cache = make_cache(**cache_options(200_000, key=int, value=bytes, max_entries=1000))
    with SharedDict.open(cache.name) as entries, contextlib.ExitStack() as sections:

        def open_many():
            for key in range(300):
                sections.enter_context(entries.locked(key, default=b""))

        with pytest.raises(TooManyProcesses):
            open_many()

        assert 100 < len(entries) < 200
        assert taken(cache) <= cache.handle.max_bytes
