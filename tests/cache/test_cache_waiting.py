"""Waiting for keys of a Cache works as for those of a dict, and also tells of evictions, claims and
expiry."""

import asyncio

import pytest
from support.children import Child
from support.waiting import LONG_S, Waiting, until, until_somebody_sleeps
from support.watching import Copy

import shmrhash
from shmrhash import CHANGED, GONE, Change

pytestmark = pytest.mark.usefixtures("slices_off")
LONG_KEY = "a key of more than fifteen bytes"


@pytest.fixture
def cache(make_cache):
    return make_cache(key=str, value=object, max_entries=100)


def woken_by(cache, change, *until):
    """Wait for "key" in a thread, and call change() when it sleeps; return the result of the
    wait."""
    waiting = Waiting(cache.wait, "key", *until, timeout=LONG_S)
    until_somebody_sleeps(cache)
    change()
    return waiting.result()


STORES = {
    "set": lambda cache: cache.set("key", 7),
    "set_many": lambda cache: cache.set_many({"other": 1, "key": 7}),
    "add": lambda cache: cache.add("key", 7),
    "get_or_compute": lambda cache: cache.get_or_compute("key", lambda: 7),
    "update_with": lambda cache: cache.update_with("key", lambda value: value, 7),
}
DELETIONS = {
    "delete": lambda cache: cache.delete("key"),
    "pop": lambda cache: cache.pop("key"),
    "clear": lambda cache: cache.clear(),
    "delete_prefix": lambda cache: cache.delete_prefix("k"),
    "a value that is too large": lambda cache: set_too_large(cache),
}


def set_too_large(cache):
    with pytest.raises(shmrhash.TooLarge):
        cache.set("key", b"x" * (32 << 20))


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_every_store_wakes_a_waiter(cache, store):
    assert woken_by(cache, lambda: store(cache)) == 7


@pytest.mark.parametrize("deletion", DELETIONS.values(), ids=DELETIONS)
def test_every_deletion_wakes_a_waiter(cache, deletion):
    cache.set("key", 7)

    assert woken_by(cache, lambda: deletion(cache), GONE) is None


def test_an_evicted_entry_is_gone(cache):
    """A scan through the cache evicts the key that a waiter waits for, because the waiter's own
    looks do not count as reads."""
    cache.set("key", 7)

    def scan():
        for number in range(1000):
            cache.set(f"other {number}", number)

    assert woken_by(cache, scan, GONE) is None
    assert "key" not in cache


def test_an_expired_entry_is_gone(cache):
    cache.set("key", 7, ttl=0.05)

    assert cache.wait("key", GONE, timeout=LONG_S) is None


def test_a_claim_is_no_value_and_no_change(cache):
    """Waiters sleep while another process computes. They wake when it stores a value, and sleep on
    if it stores none."""
    waiting = Waiting(cache.wait, "key", CHANGED, timeout=LONG_S)
    until_somebody_sleeps(cache)
    with cache.claim("key"):
        waiting.until_asleep()
        assert not waiting.outcome
    waiting.until_asleep()
    assert not waiting.outcome
    with cache.claim("key") as claim:
        claim.set(7)

    assert waiting.result() == 7


def test_a_store_by_another_process_wakes_a_waiter(cache):
    waiting = Waiting(cache.wait_any, ["other", "key"], timeout=LONG_S)
    until_somebody_sleeps(cache)
    Child(cache.set, "key", [7]).result()

    assert waiting.result() == ("key", [7])


def test_a_look_is_no_hit_and_no_miss_and_no_use(cache):
    """A waiter's look does not count as a read; otherwise a thread that waits for an eviction would
    prevent it."""
    cache.set("key", 7)
    with cache.watch(["key", "other"], initial=True) as changes:
        assert next(changes) == Change("set", "key", 7)
        cache.wait("key")
        with pytest.raises(shmrhash.WaitTimeout):
            cache.wait("key", GONE, timeout=0.001)

    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.waited) == (0, 0, 0)


def test_what_cannot_be_decoded_is_absent(cache):
    with cache.watch() as changes:
        cache.set("key", Child)  # a class, which is pickled by its name
        assert changes.poll() == [Change("set", "key", Child)]
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr("support.children.Child")
            cache.touch("key", 60)
            assert changes.poll() == [Change("deleted", "key", None)]
            assert cache.wait("key", GONE, timeout=LONG_S) is None


@pytest.mark.parametrize("key", ["short", LONG_KEY])
def test_a_copy_follows_stores_evictions_and_deletions(make_cache, key):
    cache = make_cache(key=str, value=object, max_entries=20)
    with Copy(cache) as copy:
        for number in range(100):
            cache.set(f"{key} {number}", number)
        entries = copy.catch_up()

        assert entries == cache.get_many(f"{key} {number}" for number in range(100))
        assert len(entries) == 20
        assert copy.lost == []
        cache.clear()  # clear() is one store, which names no key
        assert copy.catch_up() == {}
        assert copy.lost == [1]


def test_watch_reports_no_value_while_a_key_is_computed(cache):
    """A watch does not report a claim, nor the shadow under which a stale value is computed again,
    as an entry."""
    cache.set("key", 1, ttl=0.01)
    until(lambda: "key" not in cache)
    cache.get_or_compute("key", lambda: 2, ttl=0.01, stale=60)
    with Copy(cache) as copy:
        until(lambda: cache.get_or_compute("key", lambda: 3, stale=60) == 3)

        assert copy.catch_up() == {"key": 3}
        cache.delete("key")
        cache.get_or_compute("key", lambda: 4)
        assert copy.catch_up() == {"key": 4}
        assert copy.lost == []


def test_coroutines_wait_too(cache):
    async def main():
        waits = [cache.wait_for("key"), cache.wait_for_any(["other", "key"])]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.sleep(0)
        value = await cache.aget_or_compute("key", seven)
        return value, await asyncio.gather(*tasks)

    async def seven():
        return 7

    assert asyncio.run(main()) == (7, [7, ("key", 7)])
