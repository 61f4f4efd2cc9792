"""What each operation of a cache promises to its caller."""

import math
import pickle

import pytest
from support.children import in_child
from support.expiry import let_pass
from support.workers import run_together

import shmrhash
from shmrhash import Cache, KeyNotFound, LayoutMismatch, SharedDict, TooLarge

SHORT_S = 0.02


class Unloadable:
    """An object whose pickle cannot be loaded, as after a deploy without its class."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise AttributeError("no such class any more")


@pytest.fixture(params=[(str, int), (int, int), (str, object), (bytes, bytes), (object, object)])
def cache(request, make_cache):
    key, value = request.param
    return make_cache(key=key, value=value, max_entries=100)


def names(cache):
    """Return two keys and two values of the cache's types."""
    key, value = cache._schema.key.declared, cache._schema.value.declared
    keys = {int: (1, 2), bytes: (b"a", b"b" * 40)}.get(key, ("a", "b" * 40))
    return *keys, *{int: (7, 8), bytes: (b"", b"x" * 9000)}.get(value, ([1], {"x": "y" * 900}))


def test_a_stored_value_is_returned_until_it_is_deleted(cache):
    a, b, first, second = names(cache)

    cache.set(a, first)
    cache.set(b, second)

    assert (cache.get(a), cache.get(b), len(cache)) == (first, second, 2)
    assert a in cache
    cache.set(a, second)
    assert cache.get(a) == second
    assert cache.delete(a)
    assert not cache.delete(a)
    assert a not in cache
    assert cache.get(a) is None
    assert cache.get(a, b) == b
    assert cache.pop(b) == second
    assert cache.pop(b) is None
    assert cache.pop(b, 5) == 5
    assert len(cache) == 0


def test_add_stores_only_under_an_absent_key(cache):
    a, _, first, second = names(cache)

    assert cache.add(a, first)
    assert not cache.add(a, second)
    assert cache.get(a) == first
    cache.set(a, first, ttl=SHORT_S)
    let_pass(SHORT_S)
    assert cache.add(a, second)
    assert cache.get(a) == second


def test_replace_stores_only_over_a_present_key(cache):
    a, b, first, second = names(cache)

    assert not cache.replace(a, first)
    assert len(cache) == 0
    cache.set(a, first, ttl=100)
    assert cache.replace(a, second)
    assert cache.get(a) == second
    assert cache.ttl(a) is None
    cache.set(b, first, ttl=SHORT_S)
    let_pass(SHORT_S)
    assert not cache.replace(b, second)


def test_replace_leaves_a_claim_alone_and_evicts_nothing(make_cache):
    """A key whose value is being computed counts as absent, so replace() stores nothing; the result
    of the computation is stored."""
    cache = make_cache(key=int, value=int, max_entries=3)
    cache.set_many({1: 1, 2: 2})

    def compute():
        assert not cache.replace(7, 8)
        assert not cache.replace(9, 9)
        return 70

    assert cache.get_or_compute(7, compute) == 70
    assert cache.get_many([1, 2, 7]) == {1: 1, 2: 2, 7: 70}


def test_replace_by_a_value_that_is_too_large_deletes_the_old_one(make_cache):
    cache = make_cache(key=str, value=bytes, max_entries=10, max_bytes=1 << 20)
    cache.set("a", b"old")

    with pytest.raises(TooLarge):
        cache.replace("a", bytes(1 << 20))

    assert "a" not in cache


def test_ttl_is_the_time_that_is_left(make_cache):
    cache = make_cache(key=str, value=int, max_entries=10)
    cache.set("a", 1, ttl=100)
    cache.set("b", 1)

    assert 90 < cache.ttl("a") <= 100
    assert cache.ttl("b") is None
    cache.touch("a", 1000)
    assert 900 < cache.ttl("a") <= 1000
    cache.set("b", 1, ttl=SHORT_S)
    let_pass(SHORT_S)
    for key in "bc":
        with pytest.raises(shmrhash.KeyNotFound):
            cache.ttl(key)


def test_update_with_changes_a_value_in_one_step(make_cache):
    cache = make_cache(key=str, value=object, max_entries=10)

    assert cache.update_with("a", lambda value: [*value, 1], []) == [1]
    assert cache.update_with("a", lambda value: [*value, 2], []) == [1, 2]
    assert cache.get("a") == [1, 2]
    with pytest.raises(shmrhash.KeyNotFound):
        cache.update_with("b", lambda value: value)
    with pytest.raises(shmrhash.InvalidArgument):
        cache.update_with("a", lambda value: value.append(3))
    with pytest.raises(TypeError):
        cache.update_with("a", lambda value: value, 1, 2)
    with pytest.raises(TooLarge):
        cache.update_with("a", lambda value: value * 10_000_000)
    assert cache.get("a") == [1, 2]


def add_one_often(gate, name, times):
    with Cache(name, key=int, value=object) as cache:
        gate.wait()
        for _ in range(times):
            cache.update_with(0, lambda value: (value[0] + 1,), (0,))
    gate.finish()


def test_update_with_loses_no_update_of_another_process(make_cache):
    cache = make_cache(key=int, value=object, max_entries=5)

    run_together("fork", *[(add_one_often, cache.name, 100) for _ in range(3)])

    assert cache.get(0) == (300,)


def test_many_keys_in_one_call(cache):
    a, b, first, second = names(cache)

    assert cache.set_many({a: first, b: second}) == []
    assert cache.get_many([b, a]) == {a: first, b: second}
    cache.delete(a)
    assert cache.set_many([(b, first)], ttl=100) == []
    assert cache.get_many([a, b]) == {b: first}


def test_clear_removes_everything(cache):
    a, b, first, second = names(cache)
    cache.set_many({a: first, b: second})

    cache.clear()

    assert cache.get(a) is None
    assert cache.expire() == 1
    assert len(cache) == 0


def test_an_entry_is_absent_once_it_has_expired(make_cache):
    cache = make_cache(key=str, value=str, ttl=SHORT_S, max_entries=10)
    cache.set("default", "x")
    cache.set("never", "x", ttl=math.inf)
    cache.set("longer", "x", ttl=100)
    touched = False
    while not touched:  # again only if the machine stood still for SHORT_S
        cache.set("touched", "x")
        touched = cache.touch("touched", 100)

    let_pass(SHORT_S)

    assert [key for key in ("default", "never", "longer", "touched") if key in cache] == [
        "never",
        "longer",
        "touched",
    ]
    assert cache.get("default") is None
    assert not cache.touch("default", 100)
    assert cache.touch("never")
    let_pass(SHORT_S)
    assert cache.expire() == 1
    assert len(cache) == 2


def test_ttl_is_none_without_limit_and_raises_for_an_absent_key(make_cache):
    cache = make_cache(key=str, value=str, max_entries=10, ttl=100)
    cache.set("default", "x")
    cache.set("never", "x", ttl=math.inf)
    cache.set("past", "x", ttl=1e-9)

    assert 90 < cache.ttl("default") <= 100
    assert cache.ttl("never") is None
    for key in ("past", "absent"):
        with pytest.raises(KeyNotFound):
            cache.ttl(key)
    assert cache.stats()[:2] == (0, 0)


def test_without_a_default_each_value_can_have_its_own_ttl(make_cache):
    cache = make_cache(key=int, value=int, max_entries=10)
    cache.set(1, 1)
    cache.set(2, 2, ttl=SHORT_S)

    let_pass(SHORT_S)

    assert (cache.get(1), cache.get(2)) == (1, None)


def test_incr_adds_and_keeps_the_deadline(make_cache):
    cache = make_cache(key=str, value=int, max_entries=10)
    cache.set("n", 5, ttl=1000)

    assert cache.incr("n") == 6
    assert cache.incr("n", -2) == 4
    assert 0 < cache.ttl("n") <= 1000
    cache.touch("n", SHORT_S)
    with pytest.raises(shmrhash.KeyNotFound):
        cache.incr("m")
    assert cache.incr("m", 3, default=10) == 13
    let_pass(SHORT_S)
    assert cache.get("n") is None
    assert cache.incr("n", 1, 0) == 1


def test_incr_of_many_keys_evicts(make_cache):
    cache = make_cache(key=int, value=float, max_entries=8)

    sums = [cache.incr(key, 0.5, 1.0) for key in range(50)]

    assert sums == [1.5] * 50
    assert len(cache) == 8


def test_set_of_a_value_that_is_too_large_deletes_the_old_one(make_cache):
    """set() refuses the value and deletes the key, because the old value is no longer the right
    one."""
    cache = make_cache(key=str, value=bytes, max_entries=10, max_bytes=1 << 20)
    limit = (1 << 20) // 8
    cache.set("a", b"old")
    cache.set("b", b"old")

    with pytest.raises(TooLarge, match=str(limit)):
        cache.set("a", bytes(limit + 1))
    assert cache.set_many({"b": bytes(limit + 1), "c": b"new"}) == ["b"]
    cache.set("d", bytes(limit))

    assert cache.get_many("abcd") == {"c": b"new", "d": bytes(limit)}


def test_a_refused_add_changes_nothing(make_cache):
    cache = make_cache(key=str, value=bytes, max_entries=10, max_bytes=1 << 20)
    cache.set("a", b"old")

    with pytest.raises(TooLarge):
        cache.add("a", bytes(1 << 20))

    assert cache.get("a") == b"old"


def test_what_cannot_be_decoded_is_a_miss_and_is_deleted(make_cache):
    cache = make_cache(key=str, value=object, max_entries=10)
    cache.set_many({"a": Unloadable(), "b": Unloadable()})

    assert cache.get("a", 1) == 1
    assert cache.pop("b", 2) == 2

    assert len(cache) == 0
    assert cache.stats()[:6] == (0, 1, 0, 0, 0, 1)


def test_lookups_of_all_processes_are_counted(make_cache):
    cache = make_cache(key=str, value=int, max_entries=10)
    cache.set("a", 1)

    def look(times):
        with Cache(cache.name, key=str, value=int) as mine:
            for _ in range(times):
                assert mine.get("a") == 1
                assert mine.get("b") is None

    for times in (1, 20, 300):
        in_child(look, times)
    assert cache.get("a") == 1
    "a" in cache  # noqa: B015 - which is not counted

    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.entries) == (322, 321, 1)
    assert stats.hit_ratio == 322 / 643
    assert cache.info()["cache"] == stats._asdict() | {"claimed": 0}


def test_a_cache_is_opened_with_its_limits_and_its_ttl(make_cache):
    first = make_cache(key=str, value=str, max_entries=77, max_bytes=1 << 20, ttl=100)
    first.set("a", "b")

    with Cache(first.name, key=str, value=str) as second:
        second.set("c", "d")
        assert second.get("a") == "b"
        assert second.max_entries == 77
        assert second.handle.max_bytes == 1 << 20
        assert second.info()["ttl"] == 100
        assert "77 entries" in repr(second)
    assert "closed" in repr(second)
    assert pickle.loads(pickle.dumps(first)).get("c") == "d"
    assert in_child(first.get, "c") == "d"


@pytest.mark.parametrize(
    "other",
    [{"max_entries": 5}, {"max_bytes": 1 << 21}, {"value": bytes}],
    ids=["max_entries", "max_bytes", "value"],
)
def test_another_cache_of_this_name_is_replaced_unless_refused(make_cache, other):
    first = make_cache(key=str, value=str, max_entries=77, max_bytes=1 << 20)
    first.set("a", "b")

    remedy = r"; if_different='replace' replaces it; or choose another name, or unlink it$"
    with pytest.raises(LayoutMismatch, match=remedy):  # not open()
        Cache(first.name, **({"key": str, "value": str} | other), if_different="raise")
    second = make_cache(name=first.name, **({"key": str, "value": str} | other))

    assert len(second) == 0
    assert first.get("a") == "b"


def test_a_dict_does_not_become_a_cache_nor_the_other_way_round(make_cache):
    cache = make_cache(key=str, value=str, max_entries=77, max_bytes=1 << 20)
    cache.set("a", "b")

    for option in ("raise", "replace"):
        with pytest.raises(LayoutMismatch, match="is a Cache"):
            SharedDict(cache.name, key=str, value=str, if_different=option)
    with SharedDict.open(cache.name) as entries:
        assert dict(entries) == {"a": "b"}
    name = f"{cache.name}-dict"
    with SharedDict.create(name, key=str, value=str):
        for option in ("raise", "replace"):
            with pytest.raises(LayoutMismatch, match="not a Cache"):
                Cache(name, key=str, value=str, if_different=option)
    shmrhash.unlink(name)


def test_an_anonymous_cache_is_shared_with_children():
    with Cache(key=str, value=str, max_entries=10) as cache:
        in_child(cache.set, "a", "b")

        assert cache.get("a") == "b"
        cache.check()


def test_limits_are_chosen_from_the_bytes(make_cache):
    assert make_cache().max_entries == (64 << 20) // 128
    assert make_cache().handle.max_bytes == 64 << 20
    assert make_cache(max_bytes=1 << 20).max_entries == 8192
    with pytest.raises(TypeError):
        make_cache(max_bytes="64M")
