"""delete_prefix() deletes the keys that begin alike, and the results of computations that are under
way for such keys are not stored. Also here: the limit of the size of one value."""

import asyncio
import mmap
import pickle
import time

import pytest
from support.expiry import let_pass
from support.workers import run_together

from shmrhash import Cache, InvalidArgument, TooLarge

SHORT_S = 0.02
ENDLESS_S = 7200  # a busy machine needs long for 100,000 times
ROUNDS_MAX = 10_000_000  # a bound of asking, which ends with the invalidations
POLLS = 2000  # how often a computation looks for its invalidation
KEYS = ("user:1", "user:2", "user:" + "long" * 20)


@pytest.fixture(params=[str, bytes])
def cache(request, make_cache):
    return make_cache(key=request.param, value=int, max_entries=1000)


def of_type(cache, *texts):
    """Return these keys in the cache's type, str or bytes."""
    return [text.encode() if cache._schema.key.declared is bytes else text for text in texts]


def test_keys_that_begin_alike_are_deleted_and_counted(cache):
    prefix, *gone = of_type(cache, "user:", *KEYS, "user:", "user:" + "é" * 40)
    kept = of_type(cache, "", "user", "User:1", "x user:1", "page:" + "long" * 20)
    cache.set_many(dict.fromkeys(gone + kept, 1))

    assert cache.delete_prefix(prefix) == len(gone)

    assert cache.get_many(gone + kept) == dict.fromkeys(kept, 1)
    assert len(cache) == len(kept)
    assert cache.delete_prefix(prefix) == 0
    assert cache.delete_prefix(prefix[:0]) == len(kept)
    assert len(cache) == 0


def test_what_has_expired_is_not_counted(cache):
    prefix, short, other = of_type(cache, "user:", *KEYS[:2])
    cache.set(short, 1, ttl=SHORT_S)
    cache.set(other, 1)
    let_pass(SHORT_S)

    assert cache.delete_prefix(prefix) == 1


@pytest.mark.parametrize("text", KEYS)
def test_a_result_computed_during_delete_prefix_is_not_stored(cache, text):
    prefix, other, key, neighbour = of_type(cache, "user:", "page:", text, "page:1")

    def compute():
        assert cache.delete_prefix(other) == 0
        assert cache.delete_prefix(prefix) == 0
        return 1

    assert cache.get_or_compute(key, compute) == 1
    assert key not in cache
    assert cache.get_or_compute(key, lambda: 2) == 2
    assert cache.get(key) == 2
    assert cache.get_or_compute(neighbour, lambda: cache.delete_prefix(prefix)) == 1
    assert cache.get(neighbour) == 1
    assert cache.stats().not_stored == 1


@pytest.mark.parametrize("text", KEYS)
def test_a_coroutine_and_a_claim_store_no_result_either(cache, text):
    prefix, key = of_type(cache, "user:", text)

    async def compute():
        cache.delete_prefix(prefix)
        return 1

    assert asyncio.run(cache.aget_or_compute(key, compute)) == 1
    assert key not in cache
    with cache.claim(key) as claim:
        cache.delete_prefix(prefix)
        assert not claim.set(2)
    assert key not in cache


@pytest.mark.parametrize("text", KEYS)
def test_a_refresh_stores_no_result_either(cache, text):
    """A call that computes a present value again, under the claim of the shadow, does not store its
    result."""
    prefix, key = of_type(cache, "user:", text)
    cache.get_or_compute(key, lambda: 1, ttl=SHORT_S, stale=100)
    let_pass(SHORT_S)

    def compute():
        assert cache.delete_prefix(prefix) == 1
        return 2

    assert cache.get_or_compute(key, compute, ttl=SHORT_S, stale=100) == 2
    assert key not in cache


def test_delete_prefix_is_for_keys_that_have_a_beginning(make_cache, cache):
    wrong = 5 if cache._schema.key.declared is bytes else b"user:"
    with pytest.raises(TypeError, match="prefix must be"):
        cache.delete_prefix(wrong)
    for key in (int, object):
        with pytest.raises(InvalidArgument, match="key=str or key=bytes"):
            make_cache(key=key, value=int, max_entries=10).delete_prefix("a")


WAYS = {
    "prefix": lambda cache: cache.delete_prefix("user:"),
    "clear": lambda cache: cache.clear(),
    "tag": lambda cache: cache.invalidate("user"),
}


def invalidate(gate, name, shared, times, way):
    """Repeatedly increase the true number, invalidate the values computed from the old one, and
    then acknowledge the new one; before each time wait a little for a computation to be under way.
    """
    with Cache(name, key=str, value=int) as cache:
        gate.wait()
        for number in range(1, times + 1):
            for _ in range(POLLS):
                if any(shared[2:4]):
                    break
                time.sleep(0)
            shared[0] = number
            WAYS[way](cache)
            shared[1] = number
            time.sleep(0)
    gate.finish()


def ask(gate, name, shared, number):
    """Ask for values, and assert that none is smaller than the number acknowledged before; return
    how many values were compared."""
    asked = 0
    with Cache(name, key=str, value=int) as cache:

        def compute():
            truth = shared[0]
            shared[2 + number] = 1
            for _ in range(POLLS):
                if shared[0] != truth:
                    break
                time.sleep(0)
            shared[2 + number] = 0
            return truth

        gate.wait()
        for _ in gate.open_for(ROUNDS_MAX):
            key = KEYS[(asked + number) % len(KEYS)]
            least = shared[1]
            assert cache.get_or_compute(key, compute, tags=("other", "user")) >= least
            asked += 1
    return asked


@pytest.mark.parametrize(
    "times",
    [
        2_000,
        pytest.param(100_000, marks=[pytest.mark.thorough, pytest.mark.timeout(ENDLESS_S)]),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_no_value_from_before_an_invalidation_is_found_after_it(make_cache, times, way):
    cache = make_cache(key=str, value=int, max_entries=1000, tags=True)
    shared = memoryview(mmap.mmap(-1, 4096)).cast("q")  # stores of single words

    _, *asked = run_together(
        "fork",
        (invalidate, cache.name, shared, times, way),
        *[(ask, cache.name, shared, number) for number in range(2)],
        timeout_s=ENDLESS_S,
    )

    print(f"{sum(asked)} values compared, {cache.stats().not_stored} not stored")
    assert all(asked)
    assert cache.stats().not_stored > 0


def test_max_value_bytes_is_the_limit_of_this_handle(make_cache, map_name):
    size = {"max_entries": 100, "max_bytes": 1 << 20}
    small = make_cache(name=map_name, key=str, value=bytes, max_value_bytes=500, **size)
    usual = make_cache(name=map_name, key=str, value=bytes, **size)
    large = make_cache(name=map_name, key=str, value=bytes, max_value_bytes=1 << 19, **size)
    small.set("a", bytes(500))

    for cache in (small, pickle.loads(pickle.dumps(small))):
        usual.set("b", b"old")
        with pytest.raises(TooLarge, match="at most 500 bytes, not 501"):
            cache.set("b", bytes(501))
        assert "b" not in cache
        assert cache.get_or_compute("b", lambda: bytes(501)) == bytes(501)
        assert "b" not in cache
    usual.set("b", bytes(1 << 17))
    with pytest.raises(TooLarge):
        usual.set("b", bytes((1 << 17) + 1))
    large.set("b", bytes(1 << 19))
    assert small.get("b") == bytes(1 << 19)


@pytest.mark.parametrize(
    ("given", "error"), [(0, InvalidArgument), (-1, InvalidArgument), ("1", TypeError)]
)
def test_max_value_bytes_is_a_positive_number(given, error):
    with pytest.raises(error, match="max_value_bytes"):
        Cache(key=str, value=bytes, max_value_bytes=given)
