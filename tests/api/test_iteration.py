"""Iterators, views, get_next_key, for_each and walk: the contract of each."""

import errno
import pickle
import random
import sys
import threading

import numpy
import pytest
from support import walks
from support.jobs import word
from support.walks import WAYS, expect_exactly_once, value_of
from support.words import COLLIDING

import shmrhash
from shmrhash import RHashMap, Timer

each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def fill(m, count, first=0):
    """Insert count keys, each with the value that belongs to it; return the keys."""
    keys = [number.to_bytes(8, "little")[: m.key_size] for number in range(first, first + count)]
    for key in keys:
        m[key] = value_of(key, m.value_size)
    return keys


def walked(way, m, seed=0):
    pairs = []
    way(m, random.Random(seed), lambda key, value: pairs.append((key, value)))
    return pairs


@pytest.fixture(params=[None, COLLIDING], ids=["spread", "colliding"])
def any_map(request, make_map):
    """A map whose keys either spread over its buckets or all collide."""
    return make_map(_seeds=request.param)


# ---- the contract ----


@each_way
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 14, 32, 33, 65, 300])
def test_a_walk_of_an_unchanged_map_delivers_every_entry_once(any_map, way, count):
    """I1: walks are exact in short and long chains, also beyond the equal hashes sorted at a
    time."""
    keys = fill(any_map, count)

    pairs = walked(way, any_map)

    expect_exactly_once(pairs, set(keys), set(keys), 8)
    assert len(pairs) == count


@each_way
@pytest.mark.parametrize("expired", [1, 31, 32, 33, 200])
def test_a_walk_passes_expired_entries_of_a_long_chain(make_map, way, expired):
    """I1, H1: a walk passes any number of expired entries in front of live ones; they are no
    damage."""
    m = make_map(value_size=16, fields=[Timer(0)], _seeds=COLLIDING)
    live = set(fill(m, 3, first=1_000_000)) | set(fill(m, 1))
    for key in fill(m, expired, first=1):
        m.timer_set(key, 1)

    keys = [key for key, _ in walked(way, m)]

    assert set(keys) == live
    assert len(keys) == len(live)


KEEPERS = {
    "the pair": lambda pair: (pair, pair),
    "the key": lambda pair: (pair[0], pair),
    "the value": lambda pair: (pair[1], pair),
    "a view of the value": lambda pair: (memoryview(pair[1]), pair),
    "the pair as a key": lambda pair: (next(iter({pair: None})), pair),
}


@pytest.mark.parametrize("value_size", [1, 8, 20, 600])
def test_objects_of_a_walk_that_the_caller_keeps_never_change(make_map, seed, value_size):
    """I1: an iterator fills a pair, key or value again only if the caller has dropped it."""
    m = make_map(max_entries=400, value_size=value_size)
    expected = {key: value_of(key, value_size) for key in fill(m, 400)}
    rng = random.Random(seed)
    kept = []
    for pair in m.items():
        assert hash(pair) == hash((bytes(bytearray(pair[0])), bytes(bytearray(pair[1]))))
        if rng.random() < 0.3:
            what = rng.choice(list(KEEPERS))
            copies = tuple(bytes(bytearray(part)) for part in pair)
            kept.append((KEEPERS[what](pair)[0], KEEPERS[what](copies)[0]))
        assert expected.pop(pair[0]) == pair[1]
        del pair

    assert not expected
    assert kept == [(was, was) for _, was in kept]


@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_a_walk_leaves_no_objects_behind(make_map, view):
    m = make_map(max_entries=400)
    fill(m, 400)
    before = sys.getallocatedblocks()
    for found in getattr(m, view)():
        del found
    list(getattr(m, view)())

    assert sys.getallocatedblocks() - before < 100


@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_the_iterator_keeps_no_reference_to_its_last_object(make_map, view):
    m = make_map(max_entries=100)
    fill(m, 100)
    for found in getattr(m, view)():  # noqa: B007
        pass

    other = {"keys": word(500), "values": word(600), "items": (word(700), word(800))}.pop(view)
    # In a list, since from Python 3.14 on a local variable may pass an argument without a count.
    mine, usual = (sys.getrefcount(one) for one in [found, other])
    assert mine == usual


@each_way
@pytest.mark.parametrize(
    ("key_size", "value_size"),
    [(1, 1), (2, 7), (3, 9), (4, 4), (5, 8), (7, 130), (8, 600), (8, 65536), (8, 70001)],
)
def test_a_walk_works_for_keys_and_values_of_all_sizes(make_map, way, key_size, value_size):
    """I1, R2: walks work for odd sizes, and for entries so large that only one is read ahead."""
    m = make_map(key_size=key_size, value_size=value_size)
    keys = fill(m, 50)

    expect_exactly_once(walked(way, m), set(keys), set(keys), value_size)


def test_long_keys_are_ordered_by_all_their_bytes(make_map):
    """I1: a walk delivers all of the long keys that differ in their last byte only."""
    m = make_map(key_size=64)
    keys = [bytes(63) + bytes([number]) for number in range(200)]
    for key in keys:
        m[key] = word(7)

    assert sorted(keys) == sorted(m)
    assert sorted(keys) == sorted(key for key, _ in walked(walks.by_next_key, m))


def next_keys(m):
    """Return the keys in the order of the map, by following get_next_key."""
    chain = []
    while (key := m.get_next_key(chain[-1] if chain else None)) is not None:
        chain.append(key)
    return chain


def test_the_order_outlives_growth_and_shrinkage(any_map, map_name):
    """I1: entries that stay in the map keep their order for every handle."""
    keys = fill(any_map, 100)
    order = next_keys(any_map)
    with RHashMap.open(map_name, read_only=True) as other:
        assert order == next_keys(other)
    resizes = any_map.info()["grows"] + any_map.info()["shrinks"]

    more = fill(any_map, 300, first=1000)
    assert [key for key in next_keys(any_map) if key in set(keys)] == order
    any_map.delete_batch(more)

    assert next_keys(any_map) == order
    assert any_map.info()["grows"] + any_map.info()["shrinks"] > resizes


def test_ways_to_walk_differ_only_in_the_order_within_a_bucket(make_map):
    """I1: batches and iterators deliver whole buckets, in the same order of buckets."""
    m = make_map()
    fill(m, 500)
    order = next_keys(m)

    for way in WAYS:
        places = [order.index(key) for key, _ in walked(way, m)]
        assert max(abs(place - number) for number, place in enumerate(places)) < 7


def test_views_behave_like_those_of_a_dict(any_map):
    """I1: views support repeated walks, len(), in, the set operations and equality."""
    keys = fill(any_map, 40)
    pairs = {key: value_of(key, 8) for key in keys}
    views = any_map.keys(), any_map.values(), any_map.items()

    for _ in range(2):
        assert sorted(pairs) == sorted(any_map) == sorted(views[0])
        assert sorted(pairs.values()) == sorted(views[1])
        assert pairs == dict(views[2])
    assert [len(view) for view in views] == [40] * 3
    assert views[0] == pairs.keys()
    assert views[2] == pairs.items()
    assert {keys[3]} == views[0] & {keys[3], word(1 << 40)}
    assert views[0] - set(keys[1:]) == {keys[0]}
    assert keys[5] in views[0]
    assert word(1 << 40) not in views[0]
    assert value_of(keys[5], 8) in views[1]
    assert word(1) not in views[1]
    assert (keys[5], value_of(keys[5], 8)) in views[2]
    assert (keys[5], word(1)) not in views[2]
    del any_map[keys[0]]
    assert [len(view) for view in views] == [39] * 3
    assert keys[0] not in set(views[0])


def test_maps_and_views_cannot_be_reversed(shm_map):
    for thing in (shm_map, shm_map.keys(), shm_map.values(), shm_map.items()):
        with pytest.raises(TypeError):
            reversed(thing)


def test_an_exhausted_iterator_stays_at_its_end(shm_map):
    fill(shm_map, 3)
    iterator = iter(shm_map.items())

    assert iter(iterator) is iterator
    assert len(list(iterator)) == 3
    fill(shm_map, 3, first=10)
    assert list(iterator) == []
    with pytest.raises(TypeError):
        pickle.dumps(iterator)


def test_pairs_kept_by_the_caller_stay_as_they_were(any_map):
    """An iterator fills a pair again only if the caller has no reference to the pair."""
    keys = fill(any_map, 300)

    kept = list(any_map.items())
    for pair in any_map.items():
        del pair
    firsts = [pair[0] for pair in any_map.items()]
    two_at_once = [
        pair for both in zip(any_map.items(), any_map.items(), strict=True) for pair in both
    ]

    assert {key: value_of(key, 8) for key in keys} == dict(kept)
    assert firsts == [key for key, _ in kept]
    assert two_at_once == [pair for pair in kept for _ in range(2)]


def test_a_closed_map_ends_its_iterators(make_map):
    """H1: after close() an iterator raises MapClosed, however many entries it has read ahead."""
    m = make_map()
    fill(m, 30)
    iterators = [iter(m), iter(m.values()), iter(m.items())]
    for iterator in iterators:
        next(iterator)
    m.close()

    for iterator in iterators:
        with pytest.raises(shmrhash.MapClosed) as refused:
            next(iterator)
        assert refused.value.errno == errno.EBADF
    for operation in (
        lambda: iter(m),
        lambda: list(m.keys()),
        lambda: list(m.values()),
        lambda: list(m.items()),
        lambda: m.get_next_key(),
        lambda: m.get_next_key(word(1)),
        lambda: m.for_each(print),
        lambda: list(m.walk()),
        lambda: m.to_arrays(),
    ):
        with pytest.raises(shmrhash.MapClosed):
            operation()


def test_walk_shows_every_bucket(make_map):
    """G1: the buckets hold all entries, their levels partition the hashes, and chains have
    lines."""
    m = make_map()
    colliding = make_map(_seeds=COLLIDING)
    fill(m, 1000)
    fill(colliding, 20)

    buckets = list(m.walk())

    assert [bucket.index for bucket in buckets] == list(range(m.info()["buckets"]))
    assert sum(bucket.entries for bucket in buckets) == 1000
    assert sum(2**32 >> bucket.level for bucket in buckets) == 2**32
    assert not any(bucket.locked for bucket in buckets)
    assert sum(bucket.lines for bucket in buckets) == m.check()["lines"]
    first, *rest = colliding.walk()
    assert (first.entries, first.lines) == (20, 3)
    assert not any(bucket.entries for bucket in rest)


def test_walk_shows_more_buckets_than_one_call_reads(make_map):
    """The buckets of a large map are read by several calls of the core."""
    m = make_map(max_entries=20_000, map_extra=10_000)

    assert len(list(m.walk())) == m.info()["buckets"] > 2048


# ---- get_next_key ----


def test_next_key_of_none_is_the_first_and_of_the_last_is_none(any_map):
    """I1: get_next_key() begins at None and ends with None (kernel: NULL, and ENOENT)."""
    assert any_map.get_next_key() is None
    assert any_map.get_next_key(word(5)) is None
    keys = fill(any_map, 50)

    chain = next_keys(any_map)

    assert sorted(keys) == sorted(chain)
    assert any_map.get_next_key() == chain[0]
    assert any_map.get_next_key(chain[-1]) is None


def test_next_key_of_an_absent_key_continues(any_map):
    """I1: get_next_key() continues after a deleted key; the kernel starts again at the first
    key."""
    fill(any_map, 60)
    order = next_keys(any_map)
    deleted = order[10:40:3]
    any_map.delete_batch(deleted)
    left = set(order) - set(deleted)

    for place, key in enumerate(order):
        following = next((other for other in order[place + 1 :] if other in left), None)
        assert following == any_map.get_next_key(key)


@pytest.mark.parametrize("buffer", [bytearray, memoryview, lambda key: numpy.frombuffer(key, "u8")])
def test_next_key_takes_any_buffer(any_map, buffer):
    fill(any_map, 5)
    first, second, *_ = next_keys(any_map)

    assert any_map.get_next_key(buffer(first)) == second


@pytest.mark.parametrize("key", [b"", b"1234567", b"123456789", b"x" * 16])
def test_next_key_refuses_keys_of_another_size(shm_map, key):
    with pytest.raises(shmrhash.InvalidArgument) as refused:
        shm_map.get_next_key(key)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("key", [5, "12345678", object()])
def test_next_key_refuses_an_argument_that_is_no_buffer(shm_map, key):
    with pytest.raises(TypeError):
        shm_map.get_next_key(key)


# ---- for_each ----


def test_a_callback_that_returns_true_ends_for_each(any_map):
    """for_each() counts the entry whose callback ended it, like the kernel's helper."""
    fill(any_map, 30)
    visited = []

    def third(key, value):
        visited.append(key)
        return len(visited) == 3

    assert any_map.for_each(third) == 3
    assert visited == list(any_map)[:3]
    assert any_map.for_each(lambda key, value: 0) == 30
    assert any_map.for_each(lambda key, value: []) == 30


def test_a_callback_may_delete_the_entry_it_is_called_for(any_map):
    """I1: for_each() visits each entry although its callback deletes it; the kernel stops."""
    keys = fill(any_map, 300)
    visited = []

    def take(key, value):
        visited.append(key)
        del any_map[key]

    assert any_map.for_each(take) == 300
    assert sorted(keys) == sorted(visited)
    assert len(any_map) == 0


def test_a_callback_may_delete_other_entries(any_map):
    """I1: for_each() visits every entry once, except those deleted before their turn. (A deletion
    may let entries of its bucket change places, so they need not come in the order of before.)"""
    fill(any_map, 300)
    order = list(any_map)
    visited, gone = [], set()

    def delete_the_next_one_and_one_behind(key, value):
        assert key not in gone
        visited.append(key)
        place = order.index(key)
        for other in order[place + 1 : place + 2] + order[place - 1 : place]:
            any_map.delete_many(other)
            gone.add(other)

    any_map.for_each(delete_the_next_one_and_one_behind)

    assert len(visited) == len(set(visited))
    assert set(visited) | gone == set(order)
    assert 140 < len(visited) < 160


def test_a_callback_may_insert(make_map):
    """I1: for_each() ends although its callback makes the map grow."""
    m = make_map(max_entries=100_000)
    keys = fill(m, 500)
    visited = []

    def insert(key, value):
        visited.append(key)
        new = word((1 << 40) + len(visited))
        m[new] = value_of(new, 8)

    m.for_each(insert)

    assert len(visited) == len(set(visited))
    assert set(keys) <= set(visited)
    assert m.info()["grows"] > 200


def test_a_callback_may_raise_or_close_the_map(make_map):
    """for_each() passes on its callback's exception, and raises MapClosed if the callback
    closes."""
    m = make_map()
    fill(m, 30)

    with pytest.raises(ZeroDivisionError):
        m.for_each(lambda key, value: 1 / 0)
    assert m.for_each(lambda key, value: None) == 30
    m.check()
    with pytest.raises(shmrhash.MapClosed):
        m.for_each(lambda key, value: m.close())


def test_a_callback_may_start_another_walk(any_map):
    """Walks of one handle do not affect each other, also when one runs in a callback of another."""
    fill(any_map, 20)
    inner = []

    any_map.for_each(lambda key, value: inner.append(any_map.for_each(lambda *_: None)) or None)

    assert inner == [20] * 20


def test_threads_may_share_an_iterator(make_map):
    """I1: an iterator that threads share delivers each entry to exactly one of them."""
    m = make_map(max_entries=100_000)
    m.update_many(numpy.arange(50_000), numpy.arange(50_000))
    got = []

    def collect(iterator):
        found = list(iterator)
        got.extend(found)

    for _ in range(10):
        got.clear()
        iterator = iter(m)
        threads = [threading.Thread(target=collect, args=(iterator,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(got) == len(set(got)) == 50_000
