"""With stale= and early= values are computed again while callers still get the old value."""

import asyncio
import os

import pytest
from support.children import Child
from support.expiry import let_pass

from shmrhash import Cache, InvalidArgument

PATIENCE_S = 30
SHORT_S = 0.02
LONG_S = 1000


@pytest.fixture(params=[(object, object), (int, int), (str, bytes), (bytes, float)])
def cache(request, make_cache):
    key, value = request.param
    return make_cache(key=key, value=value, max_entries=50, timeout=PATIENCE_S)


def example(cache):
    """Return a key of the cache's type and three values."""
    key, value = cache._schema.key.declared, cache._schema.value.declared
    return {int: 7, bytes: b"k" * 30}.get(key, "k"), *{
        bytes: (b"1", b"2" * 5000, b"3"),
        object: ([1], [2], [3]),
    }.get(value, (1, 2, 3))


def fail():
    raise AssertionError("it was computed")


def test_a_stale_value_is_computed_again_by_one(cache):
    """One caller computes a stale value again; callers that ask during the computation get the old
    value at once."""
    key, old, new, _ = example(cache)
    assert cache.get_or_compute(key, lambda: old, ttl=SHORT_S, stale=LONG_S) == old
    assert cache.get_or_compute(key, fail, ttl=SHORT_S, stale=LONG_S) == old
    let_pass(SHORT_S)

    def compute():
        assert cache.get_or_compute(key, fail, ttl=SHORT_S, stale=LONG_S) == old
        assert cache.get(key) == old
        return new

    assert cache.get_or_compute(key, compute, ttl=LONG_S, stale=LONG_S) == new
    assert cache.get(key) == new
    assert LONG_S < cache.ttl(key) <= 2 * LONG_S
    assert cache.get_or_compute(key, fail, ttl=LONG_S, stale=LONG_S) == new
    assert len(cache) == 1
    assert cache.stats().stale_hits == 1


def test_an_entry_that_changed_during_the_computation_stays(cache):
    """If the entry is stored, deleted or touched during the computation, that counts, and the
    result is not stored."""
    key, old, new, newest = example(cache)
    for change, left in (
        (lambda: cache.set(key, newest), newest),
        (lambda: cache.delete(key), None),
        (lambda: cache.touch(key, LONG_S), old),
        (lambda: cache.delete(key) and cache.set(key, old), old),
    ):
        cache.set(key, old, ttl=LONG_S)

        def compute(change=change):
            change()
            return new

        assert cache.get_or_compute(key, compute, ttl=1, stale=2 * LONG_S) == new
        assert cache.get(key) == left
    assert cache.stats().not_stored == 4


def test_an_exception_is_the_callers_and_the_old_value_stays(cache):
    key, old, new, _ = example(cache)
    cache.set(key, old, ttl=LONG_S)

    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute(key, lambda: 1 // 0, ttl=1, stale=2 * LONG_S)

    assert cache.get(key) == old
    assert cache.get_or_compute(key, lambda: new, ttl=1, stale=2 * LONG_S) == new
    assert cache.get(key) == new


def test_a_value_is_gone_when_its_stale_time_is_over(cache):
    key, old, new, _ = example(cache)
    assert cache.get_or_compute(key, lambda: old, ttl=SHORT_S, stale=SHORT_S) == old
    let_pass(2 * SHORT_S)

    assert cache.get(key) is None
    assert cache.get_or_compute(key, lambda: new, ttl=SHORT_S, stale=SHORT_S) == new


def test_a_value_without_an_end_is_never_stale(cache):
    key, old, _, _ = example(cache)
    cache.set(key, old)

    assert cache.get_or_compute(key, fail, stale=LONG_S, early=1e6) == old


def test_a_refresher_that_dies_leaves_its_place_to_the_next(make_cache):
    cache = make_cache(key=str, value=int, max_entries=50, timeout=PATIENCE_S)
    cache.set("k", 1, ttl=LONG_S)
    started, _ = pipe = os.pipe()

    def ask():
        def compute():
            os.write(pipe[1], b".")
            os.read(os.pipe()[0], 1)

        with Cache(cache.name, key=str, value=int) as mine:
            mine.get_or_compute("k", compute, ttl=1, stale=2 * LONG_S)

    child = Child(ask)
    os.read(started, 1)
    assert cache.get_or_compute("k", fail, ttl=1, stale=2 * LONG_S) == 1
    child.kill()
    cache.handle._recover()

    assert cache.get_or_compute("k", lambda: 2, ttl=LONG_S, stale=2 * LONG_S) == 2
    assert cache.get("k") == 2
    cache.handle._recover()
    cache.check()
    assert len(cache) == 1


def test_early_computes_again_before_the_end(make_cache):
    """The probability of an early computation rises with the time that the last one took, and
    towards the deadline. The test chooses factors with which it is nearly 0 and nearly 1."""
    cache = make_cache(key=str, value=int, max_entries=50)

    assert cache.get_or_compute("k", lambda: let_pass(SHORT_S) or 1, ttl=LONG_S, early=1.0) == 1
    for _ in range(20):
        assert cache.get_or_compute("k", fail, ttl=LONG_S, early=0.001) == 1
    numbers = iter(range(2, 1000))
    computed = {
        cache.get_or_compute("k", lambda: let_pass(SHORT_S) or next(numbers), LONG_S, early=1e6)
        for _ in range(20)
    }

    assert len(computed) > 10  # each call computes with a probability above 0.95
    cache.set("stored", 1, ttl=LONG_S)  # a value that took no time to compute
    assert cache.get_or_compute("stored", fail, ttl=LONG_S, early=1e6) == 1


def test_coroutines_compute_stale_values_again(make_cache):
    cache = make_cache(key=str, value=object, max_entries=50)
    cache.set("k", "old", ttl=LONG_S)
    calls = []

    @cache.memoize(ttl=1, stale=2 * LONG_S, key=lambda: "k")
    async def compute():
        calls.append(await compute())
        return "new"

    async def main():
        assert await compute() == "new"
        with pytest.raises(ZeroDivisionError):
            await cache.aget_or_compute("k", divide, ttl=1, stale=3 * LONG_S)

    async def divide():
        return 1 // 0

    asyncio.run(main())
    assert calls == ["old"]
    assert cache.get("k") == "new"
    assert len(cache) == 1


def test_refresh_stores_for_the_stale_time_too(make_cache):
    cache = make_cache(key=str, value=int, max_entries=50)
    three = cache.memoize(ttl=LONG_S, stale=LONG_S, key=lambda: "k")(lambda: 3)

    assert three.refresh() == 3

    assert LONG_S < cache.ttl("k") <= 2 * LONG_S


def test_the_longest_times_keep_a_value(make_cache):
    """A value is kept although the sum of its ttl and stale time exceeds the largest deadline."""
    cache = make_cache(key=str, value=int, max_entries=50)
    longest = 1 << 33

    assert cache.get_or_compute("k", lambda: 1, longest, stale=longest) == 1

    assert cache.get_or_compute("k", fail, longest, stale=1) == 1
    assert cache.ttl("k") > longest


@pytest.mark.parametrize("options", [{"stale": -1}, {"early": -0.5}, {"stale": "a"}])
def test_numbers_that_make_no_sense_are_refused(make_cache, options):
    cache = make_cache(key=str, value=int, max_entries=50)

    with pytest.raises(InvalidArgument):
        cache.get_or_compute("k", fail, **options)
    with pytest.raises(InvalidArgument):
        cache.memoize(key=str, **options)


def refresh_often(gate, name, rounds):
    """Ask for a value that is soon stale; assert that none is older than an earlier one."""
    with Cache(name, key=str, value=int) as cache:
        gate.wait()
        last = 0
        for _ in range(rounds):
            found = cache.get_or_compute("k", lambda: cache.incr("n"), ttl=0.001, stale=LONG_S)
            assert found >= last
            last = found
    gate.finish()


def test_no_older_value_is_returned_while_several_processes_refresh(make_cache):
    from support.workers import run_together

    cache = make_cache(key=str, value=int, max_entries=50)
    cache.set("n", 0)

    run_together("fork", *[(refresh_often, cache.name, 300) for _ in range(3)])

    stats = cache.stats()
    assert cache.get("n") == stats.computed
