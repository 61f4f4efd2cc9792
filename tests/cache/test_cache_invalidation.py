"""clear() and invalidate() each commit by one store. After it no operation of any process finds,
computes or stores a value from before; outdated entries are the first to make room."""

import asyncio
import pickle
import random
import threading

import pytest
from support.children import in_child
from support.expiry import let_pass

from shmrhash import Cache, InvalidArgument, KeyGone, KeyNotFound, LayoutMismatch

SHORT_S = 0.02
NEVER_S = 600
LONG = "a key of more than fifteen bytes"
WAYS = {
    "clear": lambda cache: cache.clear(),
    "tag": lambda cache: cache.invalidate("group"),
    "one of two tags": lambda cache: cache.invalidate("unknown", "both"),
}
TYPES = [(str, int), (int, float), (str, object), (bytes, bytes), (object, object)]


@pytest.fixture(params=WAYS)
def outdate(request):
    """A function that invalidates the values stored with the tags "group" and "both"."""
    return WAYS[request.param]


@pytest.fixture
def cache(make_cache):
    return make_cache(key=str, value=int, max_entries=100, tags=True)


TAGS = ("group", "both")


@pytest.mark.parametrize(
    "types", TYPES, ids=lambda types: f"{types[0].__name__} {types[1].__name__}"
)
def test_no_operation_finds_an_outdated_entry(make_cache, outdate, types):
    key, value = types
    names = {str: ["a", LONG], bytes: [b"a", LONG.encode()], int: [1, 2], object: [(1,), LONG]}[key]
    first, second = {bytes: (b"1", b"2"), object: ([1], [2])}.get(value, (1, 2))
    cache = make_cache(key=key, value=value, max_entries=100, tags=True)
    cache.set_many(dict.fromkeys(names, first), tags=TAGS)

    outdate(cache)

    for name in names:
        assert cache.get(name) is None
        assert name not in cache
        assert not cache.replace(name, second)
        assert not cache.touch(name, 10)
        with pytest.raises(KeyNotFound):
            cache.ttl(name)
        assert cache.pop(name) is None
    cache.set_many(dict.fromkeys(names, first), tags=TAGS)
    outdate(cache)
    assert cache.get_many(names) == {}
    assert list(cache._entries(0)) == []
    assert not any(cache.delete(name) for name in names)
    cache.set_many(dict.fromkeys(names, first), tags=TAGS)
    outdate(cache)
    assert in_child(lambda: Cache(cache.name, key=key, value=value).get(names[0])) is None
    assert cache.add(names[0], second)
    assert cache.get(names[0]) == second
    assert cache.get_or_compute(names[1], lambda: second) == second
    assert cache.get(names[1]) == second


def test_a_number_and_an_update_begin_anew(cache, outdate):
    cache.set("a", 5, tags=TAGS)
    cache.set("b", 5, tags=TAGS)
    outdate(cache)

    assert cache.incr("a", 1, 10) == 11
    assert cache.update_with("b", lambda value: value + 1, 20) == 21
    with pytest.raises(KeyNotFound):
        cache.update_with("c", lambda value: value)


def test_a_changed_value_keeps_birth_and_tags(cache, outdate):
    """A value that was changed in place is outdated by the invalidations that outdate the value it
    was made from."""
    for key in ("incr", "update", "touch", "inside"):
        cache.set(key, 5, tags=TAGS)
    cache.incr("incr")
    cache.update_with("update", lambda value: value + 1)
    cache.touch("touch", 100)
    assert cache.get_many(["incr", "update", "touch"]) == {"incr": 6, "update": 6, "touch": 5}

    outdate(cache)

    assert cache.get_many(["incr", "update", "touch", "inside"]) == {}


def test_a_value_invalidated_while_it_is_updated_is_not_stored(cache, outdate):
    cache.set("a", 5, tags=TAGS)

    def function(value):
        outdate(cache)
        return value + 1

    with pytest.raises(KeyNotFound):
        cache.update_with("a", function)
    assert "a" not in cache


def test_only_what_has_the_tag_is_outdated(cache):
    cache.set("none", 1)
    cache.set("one", 1, tags=["a"])
    cache.set("four", 1, tags=("a", "b", "c", "d"))
    cache.set("other", 1, tags=iter(["e"]))

    cache.invalidate("d")
    assert sorted(cache.get_many(["none", "one", "four", "other"])) == ["none", "one", "other"]
    cache.invalidate("a", "unknown")
    assert sorted(cache.get_many(["none", "one", "four", "other"])) == ["none", "other"]
    cache.invalidate()
    assert sorted(cache.get_many(["none", "other"])) == ["none", "other"]
    cache.set("one", 2, tags=["a"])
    assert cache.get("one") == 2
    cache.set("one", 3)
    cache.invalidate("a")
    assert cache.get("one") == 3


def test_tags_that_share_a_slot_outdate_too_much_and_never_too_little(make_cache, seed):
    """With 65,535 slots, some of 300 tags share a slot with one of 3,000 others, and are
    invalidated with it; the rest of the 300 is not."""
    rng = random.Random(seed)
    cache = make_cache(key=int, value=int, max_entries=1000, tags=True)
    names = [f"{rng.random()}é" for _ in range(300)]
    for key, name in enumerate(names):
        cache.set(key, key, tags=[name])

    cache.invalidate(*[f"other {number}" for number in range(3000)])

    left = cache.get_many(range(300))
    assert 240 < len(left) < 300
    for key in left:
        if key in cache:
            cache.invalidate(names[key])
        assert key not in cache
    assert cache.get_many(range(300)) == {}


@pytest.mark.parametrize("operation", ["set", "add", "replace"])
def test_tags_that_cannot_be_are_refused(make_cache, cache, operation):
    cache.set("a", 1)
    with pytest.raises(InvalidArgument, match="at most 4 tags"):
        getattr(cache, operation)("a", 2, tags=list("abcde"))
    for wrong in ("user", [1], [b"user"], [None]):
        with pytest.raises(TypeError, match="str"):
            getattr(cache, operation)("a", 2, tags=wrong)
    assert cache.get("a") == 1
    with pytest.raises(TypeError, match="a tag is a str"):
        cache.invalidate(7)
    plain = make_cache(key=str, value=int, max_entries=10)
    for refused in (
        lambda: plain.set("a", 1, tags=["user"]),
        lambda: plain.get_or_compute("a", lambda: 1, tags=["user"]),
        lambda: plain.invalidate("user"),
    ):
        with pytest.raises(InvalidArgument, match="tags=True"):
            refused()
    plain.set("a", 1, tags=())
    plain.clear()
    assert "a" not in plain


class Encoded(str):
    """A str whose str() is another text."""

    def encode(self, *_):
        return 5


def test_a_tag_is_the_text_of_a_str_whatever_its_class_says(cache):
    cache.set("a", 1, tags=[Encoded("user")])

    cache.invalidate("user")

    assert "a" not in cache


def test_a_str_is_not_taken_for_the_tags_of_its_letters(cache):
    async def compute():
        return 1

    for operation in (
        lambda: cache.get_or_compute("a", lambda: 1, tags="user"),
        lambda: asyncio.run(cache.aget_or_compute("a", compute, tags="user")),
        lambda: cache.claim("a", tags="user"),
        lambda: cache.memoize(key=str, tags="user"),
    ):
        with pytest.raises(TypeError, match="not a str"):
            operation()


# ---- room ----


def test_outdated_entries_make_room_for_others(make_cache, outdate):
    """Nearly all outdated entries are removed before others; a newer entry may be examined before
    some of them."""
    cache = make_cache(key=int, value=int, max_entries=100, tags=True)
    for key in range(100):
        cache.set(key, key, tags=TAGS)
        assert [cache.get(key) for _ in range(5)] == [key] * 5  # as often as the cache counts
    outdate(cache)

    for key in range(100, 200):
        cache.set(key, key)

    found = cache.get_many(range(200))
    assert min(found) >= 100
    assert 85 <= len(found) <= len(cache) <= 100  # a sweep may have made room for more


def test_expire_gives_the_memory_back(make_cache, outdate):
    cache = make_cache(key=int, value=bytes, max_entries=1000, max_bytes=1 << 22, tags=True)
    for key in range(1000):
        cache.set(key, bytes(1000), tags=TAGS if key % 10 else ())
    assert cache.expire() == 0

    outdate(cache)

    gone = cache.info()["expired"]
    assert gone in (900, 1000)
    assert len(cache) == 1000
    assert cache.expire() == gone
    assert len(cache) == cache.info()["objects"]["count"] == 1000 - gone


def test_insertions_sweep_outdated_entries(make_cache, outdate):
    cache = make_cache(key=int, value=int, max_entries=3000, tags=True)
    for key in range(1000):
        cache.set(key, key, tags=TAGS)

    outdate(cache)

    for key in range(1000, 2500):
        cache.set(key, key)
    assert len(cache) < 1600


# ---- computations ----


@pytest.mark.parametrize("key", ["a", LONG])
def test_a_result_outdated_during_its_computation_is_not_stored(cache, outdate, key):
    def compute():
        outdate(cache)
        return 1

    assert cache.get_or_compute(key, compute, tags=TAGS) == 1
    assert key not in cache
    assert cache.stats().not_stored == 1
    assert cache.get_or_compute(key, lambda: 2, tags=TAGS) == 2
    assert cache.get(key) == 2


def test_coroutines_claims_and_memoized_functions_store_no_result_either(make_cache, outdate):
    cache = make_cache(max_entries=100, tags=True)

    async def compute():
        outdate(cache)
        return 1

    assert asyncio.run(cache.aget_or_compute("a", compute, tags=TAGS)) == 1
    with cache.claim("b", tags=TAGS) as claim:
        outdate(cache)
        assert not claim.set(1)

    @cache.memoize(tags=lambda number: [*TAGS, f"{number}"])
    def square(number):
        calls.append(number)
        if len(calls) == 1:
            outdate(cache)
        return number * number

    @cache.memoize(tags=TAGS)
    async def cube(number):
        return number**3

    calls = []
    assert [square(3), square(3), square(3)] == [9, 9, 9]
    assert calls == [3, 3]
    assert square.cache_key(3) in cache
    cache.invalidate("3")
    assert square.cache_key(3) not in cache
    assert square.refresh(3) == 9
    assert square.cache_key(3) in cache
    assert asyncio.run(cube(3)) == 27
    assert cube.cache_key(3) in cache
    outdate(cache)
    assert cache.get_many(["a", "b", square.cache_key(3), cube.cache_key(3)]) == {}


def test_a_refresh_stores_no_result_either(cache, outdate):
    cache.get_or_compute("a", lambda: 1, ttl=SHORT_S, stale=100, tags=TAGS)
    let_pass(SHORT_S)

    def compute():
        outdate(cache)
        return 2

    assert cache.get_or_compute("a", compute, ttl=SHORT_S, stale=100, tags=TAGS) == 2
    assert "a" not in cache


def test_no_caller_waits_for_a_result_that_will_not_count(cache, outdate):
    """A computation that hangs was outdated; of the callers that ask after that, one computes for
    all."""
    began, go_on, computed = threading.Event(), threading.Event(), []

    def hang():
        began.set()
        assert go_on.wait(NEVER_S)
        return 1

    def compute():
        computed.append(1)
        assert inside.wait(NEVER_S)
        return 2

    def ask():
        return cache.get_or_compute("a", compute, wait=NEVER_S, tags=TAGS)

    inside, found = threading.Event(), []
    late = threading.Thread(
        target=lambda: found.append(cache.get_or_compute("a", hang, wait=NEVER_S, tags=TAGS))
    )
    late.start()
    assert began.wait(NEVER_S)
    outdate(cache)
    askers = [threading.Thread(target=lambda: found.append(ask())) for _ in range(3)]
    for asker in askers:
        asker.start()
    let_pass(SHORT_S)
    inside.set()
    for asker in askers:
        asker.join()
    assert found == [2, 2, 2]
    assert len(computed) == 1
    go_on.set()
    late.join()
    assert found == [2, 2, 2, 1]
    assert cache.get("a") == 2


# ---- namespaces ----


@pytest.fixture(params=[str, bytes, object])
def two(request, make_cache):
    """Two namespaces of one cache, and two keys."""
    cache = make_cache(key=request.param, value=int, max_entries=100, tags=True)
    keys = {str: ("a", LONG), bytes: (b"a", LONG.encode()), object: ((1,), "a")}[request.param]
    return cache.namespace("one"), cache.namespace("öther"), keys


def test_a_namespace_has_keys_of_its_own(two):
    one, other, (a, b) = two
    one.set(a, 1, ttl=100)
    assert one.set_many({b: 2}) == []

    assert (one.get(a), other.get(a, 0), a in one, a in other) == (1, 0, True, False)
    assert one.get_many([b, a]) == {a: 1, b: 2}
    assert one.ttl(a) > 90
    assert not one.add(a, 5)
    assert other.add(a, 5)
    assert not other.replace(b, 5)
    assert one.replace(b, 3)
    assert one.incr(b) == 4
    assert one.incr(b, 2, 100) == 6
    with pytest.raises(KeyNotFound):
        other.incr(b)
    assert other.incr(b, 2, 100) == 102
    assert one.touch(a, 1000)
    assert one.pop(b) == 6
    assert not one.delete(b)
    assert len(one.cache) == 3


def test_clear_of_a_namespace_leaves_the_others(two):
    one, other, (a, b) = two

    def fill(space):
        space.set(a, 1, tags=["x", "y", "z"])
        space.incr(b, 1, 0)

    fill(one)
    fill(other)
    other.cache.set(a, 7)

    one.clear()

    assert one.get_many([a, b]) == {}
    assert other.get_many([a, b]) == {a: 1, b: 1}
    assert other.cache.get(a) == 7
    with pytest.raises(InvalidArgument, match="at most 4"):
        one.set(a, 1, tags=["w", "x", "y", "z"])
    other.cache.invalidate("y")
    assert other.get_many([a, b]) == {b: 1}


def test_a_result_computed_in_a_namespace_that_is_cleared_is_not_stored(two):
    one, other, (a, b) = two

    def compute():
        one.clear()
        return 1

    async def compute_too():
        return compute()

    assert one.get_or_compute(a, compute) == 1
    assert asyncio.run(one.aget_or_compute(a, compute_too, wait=NEVER_S)) == 1
    with one.claim(a) as claim:
        one.clear()
        assert not claim.set(1)
    assert a not in one
    assert other.get_or_compute(b, compute) == 1
    assert b in other
    assert one.get_or_compute(a, lambda: 2) == one.get(a) == 2


def test_update_with_in_a_namespace_computes_an_absent_key_once_for_all(two):
    """Threads add to one number, which is absent at first, and no addition is lost; after clear()
    the number is absent again."""
    one, other, (a, _) = two
    with pytest.raises(KeyNotFound):
        one.update_with(a, int)
    with pytest.raises(TypeError, match="a default"):
        one.update_with(a, int, 1, 2)
    with pytest.raises(InvalidArgument, match="allow_none"):
        one.update_with(a, lambda before: None, 1)
    assert a not in one

    def add():
        for _ in range(50):
            one.update_with(a, lambda before: before + 1, 0, timeout=NEVER_S)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert one.get(a) == 200
    assert a not in other
    one.clear()
    assert one.update_with(a, lambda before: before + 1, 41) == one.get(a) == 42


def test_what_the_function_of_update_with_raises_in_a_namespace_is_not_taken_for_an_absent_key(two):
    """The function runs once, both if it raises a KeyNotFound of its own and if the entry is
    deleted during the call."""
    one, _, (a, _) = two
    one.set(a, 1)
    calls = []

    def fail(before):
        calls.append(before)
        raise KeyNotFound("another key")

    for default in ((), (0,)):
        with pytest.raises(KeyNotFound, match="another key"):
            one.update_with(a, fail, *default)
    assert calls == [1, 1]
    assert one.get(a) == 1

    def gone(before):
        calls.append(before)
        in_child(lambda: one.delete(a))
        return before + 1

    with pytest.raises(KeyGone):
        one.update_with(a, gone, 0)
    assert calls == [1, 1, 1]
    assert a not in one


def test_update_with_in_a_namespace_stores_although_it_was_invalidated_during_the_call(two):
    """In contrast to a computed result the new value is stored, because it is made from an absent
    key and stored after the clear()."""
    one, _, (a, _) = two

    def change(before):
        one.clear()
        return before + 1

    assert one.update_with(a, change, 0) == 1
    assert one.get(a) == 1


def test_a_function_memoized_in_a_namespace_is_forgotten_by_its_clear(make_cache):
    cache = make_cache(key=object, value=object, max_entries=100, tags=True)
    calls = []

    def square(number):
        calls.append(number)
        return number * number

    spaces = [cache.namespace("one"), cache.namespace("two")]
    one, two = (space.memoize(ttl=100, tags=["x"])(square) for space in spaces)
    assert [one(2), one(2), two(2), two(2), one(3)] == [4, 4, 4, 4, 9]
    assert calls == [2, 2, 3]
    spaces[0].clear()
    assert [one(2), two(2)] == [4, 4]
    assert calls == [2, 2, 3, 2]
    assert one.forget(2)
    assert one.refresh(2) == cache.get(one.cache_key(2)) == 4
    cache.invalidate("x")
    assert two(2) == 4
    assert calls == [2, 2, 3, 2, 2, 2]


def test_a_memoized_function_of_a_namespace_has_tags_and_keys_of_its_calls(make_cache):
    cache = make_cache(key=str, value=int, max_entries=100, tags=True)
    users = cache.namespace("users")
    calls = []

    @users.memoize(key=str, tags=lambda number: [f"user:{number}"], version=2)
    def square(number):
        calls.append(number)
        return number * number

    @users.memoize(key=str)
    async def double(number):
        calls.append(number)
        return number * 2

    assert [square(2), square(2), square(3)] == [4, 4, 9]
    assert users.get("2") == 4
    cache.invalidate("user:2")
    assert [square(2), square(3)] == [4, 9]
    assert calls == [2, 3, 2]
    users.clear()
    assert [asyncio.run(double(7)), asyncio.run(double(7)), square(3)] == [14, 14, 9]
    assert calls == [2, 3, 2, 7, 3]
    with pytest.raises(InvalidArgument, match="give memoize a key"):
        users.memoize()(str)


def test_keys_of_a_namespace_that_begin_alike_are_deleted(two):
    one, other, (a, b) = two
    for space in (one, other):
        space.set(a, 1)
        space.set(b, 2)
    if isinstance(a, tuple):
        with pytest.raises(InvalidArgument, match="key=str or key=bytes"):
            one.delete_prefix(a)
    else:
        assert one.delete_prefix(a[:0]) == 2
        assert one.get_many([a, b]) == {}
        assert other.delete_prefix(b[:2]) == 1
        assert other.get_many([a, b]) == {a: 1}


def test_a_mutex_of_a_namespace_is_another_than_that_of_the_cache(two):
    one, other, (a, _) = two
    with one.mutex(a) as mutex:
        one.clear()
        taken = []

        def take():
            for space in (one, other, one.cache):
                again = space.mutex(a)
                taken.append(again.acquire(blocking=False))
                if taken[-1]:
                    again.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert mutex is not None
    assert taken == [False, True, True]


def test_what_cannot_be_a_namespace_is_refused(make_cache, cache):
    for wrong in ("", "a:b"):
        with pytest.raises(InvalidArgument, match="name of a namespace"):
            cache.namespace(wrong)
    with pytest.raises(TypeError, match="name of a namespace"):
        cache.namespace(b"a")
    with pytest.raises(TypeError, match="a key is str"):
        cache.namespace("a").get(1)
    with pytest.raises(InvalidArgument, match="str, bytes or objects"):
        make_cache(key=int, value=int, max_entries=10, tags=True).namespace("a")
    with pytest.raises(InvalidArgument, match="tags=True"):
        make_cache(key=str, value=int, max_entries=10).namespace("a")
    with pytest.raises(TypeError, match="not a str"):
        cache.namespace("a").set("a", 1, tags="user")


# ---- segments ----


def test_a_cache_has_tags_or_has_none(make_cache, map_name):
    with make_cache(name=map_name, key=str, value=int, max_entries=10, tags=True) as cache:
        cache.set("a", 1, tags=["t"])
        for same in (None, True):
            with Cache(map_name, key=str, value=int, tags=same) as other:
                assert other.get("a") == 1
        with pickle.loads(pickle.dumps(cache)) as copy:
            copy.invalidate("t")
            assert "a" not in cache
        with pytest.raises(LayoutMismatch, match="with tags, but was opened with tags=False"):
            Cache(map_name, key=str, value=int, tags=False, if_different="raise")
        with pytest.raises(TypeError, match="tags must be"):
            Cache(map_name, key=str, value=int, tags=1)
        with Cache(map_name, key=str, value=int, tags=False) as replaced:
            with pytest.raises(InvalidArgument):
                replaced.set("a", 1, tags=["t"])
            with pytest.raises(LayoutMismatch, match="without tags"):
                Cache(map_name, key=str, value=int, tags=True, if_different="raise")


def test_a_reader_of_a_frozen_cache_knows_outdated_entries(cache):
    cache.set("a", 1)
    cache.set("b", 1, tags=["t"])
    cache.clear()
    cache.set("c", 1)
    cache.handle.freeze()

    assert cache.get_many("abc") == {"c": 1}
    with pytest.raises(Exception, match="frozen"):
        cache.clear()
