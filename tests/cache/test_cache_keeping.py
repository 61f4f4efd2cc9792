"""With copy=False a hit returns the object that was decoded before, as long as the entry is the
same."""

import math
import pickle
import random
import threading
import time
import weakref

import pytest
from support.children import Child, in_child
from support.waiting import until
from support.workers import run_together

import shmrhash
from shmrhash import _core

KEPT_MAX = 4096
KEPT_MIB_MAX = 16
KEYS = ["short", "a key of more than fifteen bytes", 7, ("a", 1, None), 2.5]
THINGS = weakref.WeakSet()


class Thing:
    """A value that can be counted, because the set THINGS contains those that exist."""

    def __new__(cls, *_):
        self = super().__new__(cls)
        THINGS.add(self)
        return self

    def __init__(self, number):
        self.number = number
        self.text = ""


@pytest.fixture
def cache(make_cache):
    return make_cache(max_entries=500, copy=False)


def keeping(cache):
    """Return another handle of the cache, which keeps decoded values, too."""
    return shmrhash.Cache(cache.name, copy=False)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [{"a": 1}, [1], "text" * 10, b"bytes" * 10, 10**6])
def test_a_hit_returns_the_same_object(cache, key, value):
    cache.set(key, value)

    found = cache.get(key)

    assert found == value
    assert cache.get(key) is found
    assert cache.get_or_compute(key, lambda: None) is found
    assert cache.get_many([key])[key] is found
    assert cache.stats().hits == 4


def test_a_cache_with_tags_returns_the_same_object_too(make_cache):
    cache = make_cache(max_entries=100, copy=False, tags=True)
    cache.set("a", [1], tags=["one", "two"])

    assert cache.get("a") is cache.get("a") == [1]
    cache.invalidate("two")
    assert cache.get("a") is None
    cache.set("a", [2], tags=["one"])
    assert cache.get("a") is cache.get("a") == [2]
    cache.clear()
    assert cache.get("a") is None


def test_a_hit_returns_a_copy_unless_it_is_told_not_to(make_cache):
    cache = make_cache(max_entries=100)
    cache.set("key", [1])

    assert cache.get("key") is not cache.get("key")


@pytest.mark.parametrize(
    ("value", "sample"), [("<iq", (1, 2)), (str, "text" * 9), (bytes, b"bytes" * 9)]
)
def test_values_of_declared_types_are_kept(make_cache, value, sample):
    cache = make_cache(key=str, value=value, max_entries=100, copy=False)
    cache.set("key", sample)

    found = cache.get("key")

    assert found == sample
    assert cache.get("key") is found


def test_a_handle_pickled_to_another_process_keeps_values_too(cache):
    def same():
        other = keeping(cache)
        with pickle.loads(pickle.dumps(other)) as unpickled:
            return unpickled.get("key") is unpickled.get("key")

    cache.set("key", [1])

    assert in_child(same)


# ---- every change is noticed ----

CHANGES = {
    "set": (lambda cache: cache.set("key", [2]), [2]),
    "set to an equal value": (lambda cache: cache.set("key", [1]), [1]),
    "set_many": (lambda cache: cache.set_many({"key": [2]}), [2]),
    "replace": (lambda cache: cache.replace("key", [2]), [2]),
    "update_with": (lambda cache: cache.update_with("key", lambda value: [*value, 3]), [1, 3]),
    "delete": (lambda cache: cache.delete("key"), None),
    "pop": (lambda cache: cache.pop("key"), None),
    "clear": (lambda cache: cache.clear(), None),
    "touch into the past": (lambda cache: expire(cache), None),
    "eviction": (lambda cache: evict(cache), None),
    "delete and set": (lambda cache: (cache.delete("key"), cache.set("key", [2])), [2]),
    "delete and compute": (
        lambda cache: (cache.delete("key"), cache.get_or_compute("key", lambda: [2])),
        [2],
    ),
    "a value that is too large": (lambda cache: set_too_large(cache), None),
}


def expire(cache):
    cache.touch("key", 0.001)
    until(lambda: "key" not in cache)


def evict(cache):
    for number in range(20_000):  # far more than are needed
        cache.set(number, number)
        cache.get(number)  # otherwise it would be evicted first
        cache.get(number)
        if number % 100 == 0 and "key" not in cache:
            return
    raise AssertionError("the key is not evicted")


def set_too_large(cache):
    with pytest.raises(shmrhash.TooLarge):
        cache.set("key", bytes(32 << 20))


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
@pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed_at_the_next_get(cache, change, after, elsewhere):
    cache.set("key", [1], ttl=math.inf)
    before = cache.get("key")
    assert cache.get("key") is before

    if elsewhere:
        Child(change, cache).result()
    else:
        change(cache)

    found = cache.get("key")
    assert found == after
    assert found is not before


def test_an_entry_that_is_being_updated_has_its_old_value_until_the_end(cache):
    cache.set("key", [1])
    kept = cache.get("key")
    seen = []

    cache.update_with("key", lambda value: seen.append(cache.get("key")) or [2])

    assert seen == [kept]
    assert cache.get("key") == [2]


def test_a_child_of_fork_keeps_what_its_parent_kept_and_both_see_changes(cache):
    cache.set("key", [1])
    kept = cache.get("key")

    def look_and_change():
        cache.get("other")  # the child's first operation gives it a slot of its own
        same = cache.get("key") is kept
        cache.set("key", [2])
        return same, cache.get("key")

    assert in_child(look_and_change) == (True, [2])
    assert cache.get("key") == [2]


def sights(cache, keys):
    waiter = _core.Waiter(cache.handle, [cache._raw_key(key) for key in keys])
    waiter.arm(-1)
    seen = {key: waiter.sight(at) for at, key in enumerate(keys)}
    waiter.end()
    return seen


def test_no_old_value_is_found_after_its_memory_was_given_back(make_cache):
    """An element whose memory was given back begins with the same versions again, so another value
    of an entry can be stored in the same place under the same header."""
    cache = make_cache(key=int, value=object, max_entries=5000, copy=False)
    keys = range(3000)
    repeated, before = 0, {}
    for turn in range(6):
        for key in keys:
            cache.set(key, [turn, key])
        seen = sights(cache, keys)

        assert all(cache.get(key) == [turn, key] for key in keys)
        assert all(cache.get(key) == [turn, key] for key in keys)

        repeated += sum(before.get(key) == sight for key, sight in seen.items())
        before = seen
        for key in keys:
            cache.delete(key)
    assert cache.info()["blocks_released"] > 0
    assert repeated > 0, "no header came again: the test shows nothing"


# ---- bounds ----


def test_a_handle_keeps_no_more_values_than_its_limit(cache):
    for number in range(3 * KEPT_MAX):
        cache.set(number, Thing(number))
        cache.get(number)

    assert KEPT_MAX // 2 < len(THINGS) <= KEPT_MAX
    cache.close()


@pytest.mark.parametrize("length", [4, 40])
def test_a_thousand_values_that_are_read_in_turn_are_kept(make_cache, length):
    """Nearly all of the values are kept, because each group of hashes has four places; with one
    place each, most values would replace each other."""
    cache = make_cache(key=str, max_entries=2000, copy=False)
    keys = [f"{number:0{length}}" for number in range(1000)]
    for key in keys:
        cache.set(key, [key])
    first = [cache.get(key) for key in keys]

    same = sum(cache.get(key) is one for key, one in zip(keys, first, strict=True))

    assert same > 900  # on average 19 find no place, standard deviation 10


def test_a_handle_keeps_no_more_bytes_than_its_limit(make_cache):
    cache = make_cache(max_entries=100, max_bytes=256 << 20, copy=False)
    counts = []
    for number in range(3 * KEPT_MIB_MAX):
        thing = Thing(number)
        thing.text = "x" * (1 << 20)
        cache.set(number, thing)
        del thing
        cache.get(number)
        counts.append(len(THINGS))

    assert KEPT_MIB_MAX // 2 < max(counts) <= KEPT_MIB_MAX


def test_a_value_that_is_too_large_to_keep_is_a_copy(make_cache):
    cache = make_cache(max_entries=100, max_bytes=256 << 20, copy=False)
    cache.set("key", bytes(KEPT_MIB_MAX << 20))

    assert cache.get("key") is not cache.get("key")


def test_a_kept_value_may_use_the_cache_when_it_is_freed(make_cache):
    """A kept value's destructor, which runs inside get() when another value takes its place, may
    use the cache."""
    cache = make_cache(max_entries=5000, copy=False)
    numbers = []
    Talkative.said = lambda: numbers.append(cache.get("number"))
    cache.set("number", 7)
    for number in range(3 * KEPT_MAX):
        cache.set(number, Talkative())
        cache.get(number)

    assert len(numbers) >= 2 * KEPT_MAX
    assert set(numbers) == {7}
    Talkative.said = staticmethod(int)


class Talkative:
    said = staticmethod(int)

    def __del__(self):
        type(self).said()


# ---- together ----

COUNT = 40  # number of keys


def write(gate, cache, done, first, rounds, seed):
    """Store versions of some keys, and publish each version after it was stored."""
    rng = random.Random(seed)
    gate.wait()
    versions = [0] * COUNT
    for turn in range(rounds):
        key = rng.randrange(first, COUNT, 2)
        versions[key] += 1
        if rng.random() < 0.2:
            cache.delete(key)
        cache.set(key, [key, versions[key]] * 20)
        done[key] = versions[key]
        if turn % 500 == 0:  # other entries take memory and give it back
            for number in range(1000, 1400):
                cache.set(number, number)
            for number in range(1000, 1400):
                cache.delete(number)


def read(gate, cache, done, rounds, seed):
    rng = random.Random(seed)
    gate.wait()
    same = hits = 0
    kept = {}
    while hits < rounds or same < 10:  # once the writers have ended, all hits are the same
        key = rng.randrange(COUNT)
        stored = done.get(key, 0)
        found = cache.get(key)
        if found is None:
            time.sleep(0)
            continue
        assert found == [key, found[1]] * 20
        assert found[1] >= stored, f"key {key}: {found[1]} is older than {stored}"
        hits += 1
        same += kept.get(key) is found
        kept[key] = found


@pytest.mark.parametrize("method", ["thread", "fork"])  # the jobs are functions of this file
@pytest.mark.parametrize("rounds", [1500, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_no_reader_gets_a_value_older_than_one_that_was_stored(
    make_cache, map_name, method, rounds, seed
):
    """A writer publishes each version after it has stored it; a reader compares what it gets with
    the version published before."""
    cache = make_cache(key=int, max_entries=2000, copy=False)
    with shmrhash.SharedDict(map_name + "-done", key=int, value=int) as done:
        done.unlink()
        work = [(write, cache, done, first, rounds, seed + first) for first in (0, 1)]
        work += [(read, cache, done, 2 * rounds, seed + 2 + one) for one in (0, 1)]
        run_together(method, *work)


def test_threads_share_what_a_handle_keeps(cache):
    cache.set("key", {"a": [1, 2]})
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(cache.get("key") for _ in range(200)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 800
    assert len({id(one) for one in found}) <= len(threads)  # if all decoded it at once


# ---- memoize ----


def test_a_memoized_call_returns_the_same_object(make_cache):
    cache = make_cache(max_entries=100)

    @cache.memoize(copy=False)
    def pair(one, two=0):
        return [one, two]

    assert pair(1) == [1, 0]
    assert pair(1) is pair(1)
    assert pair(1, two=2) == [1, 2]
    assert pair(1, two=2) is pair(1, two=2)
    assert cache.get(pair.cache_key(1)) is not cache.get(pair.cache_key(1))
    Child(cache.set, pair.cache_key(1), "new").result()
    assert pair(1) == "new"
    pair.forget(1)
    assert pair(1) == [1, 0]
