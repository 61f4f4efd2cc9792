"""Hits of memoized functions, which the core finds under the keys that cache_key() makes."""

import asyncio
import datetime
import pickle
import traceback

import hypothesis
import hypothesis.strategies as st
import pytest
from support.children import in_child

from shmrhash import MapClosed, _core
from shmrhash._types.keys import encode_key

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@hypothesis.given(plain)
def test_plain_keys_have_the_bytes_that_encode_key_makes(key):
    assert _core.plain_bytes(key) in (None, encode_key(key))


@pytest.mark.parametrize(
    "number",
    [sign * (2**bits + step) for bits in range(66) for step in (-1, 0, 1) for sign in (-1, 1)],
)
def test_integers_at_the_edges_have_the_bytes_that_encode_key_makes(number):
    assert _core.plain_bytes(number) == (encode_key(number) if abs(number) < 2**63 else None)
    assert _core.plain_bytes(float(number)) in (None, encode_key(float(number)))


class Text(str):
    __slots__ = ()


PLAIN = [None, True, 1, -1, 1.5, -0.0, float("inf"), float("nan"), "a", "", b"b", (), (1, ("a",))]
OTHER = [
    Text("a"),
    "ä",
    2**63,
    -(2**63),
    1e300,
    "x" * 254,
    (("",) * 200),
    datetime.date(2020, 1, 1),
]


@pytest.mark.parametrize("key", PLAIN, ids=repr)
def test_what_calls_usually_have_is_plain(key):
    assert _core.plain_bytes(key) == encode_key(key)


@pytest.mark.parametrize("key", OTHER, ids=lambda key: repr(key)[:20])
def test_other_keys_are_left_to_encode_key(key):
    assert _core.plain_bytes(key) is None


@pytest.fixture
def cache(make_cache):
    return make_cache(max_entries=1000)


@pytest.mark.parametrize("copy", [True, False])
def test_a_call_finds_the_result_of_any_arguments(cache, copy):
    calls = []

    @cache.memoize(copy=copy)
    def function(*args, **kwargs):
        calls.append(args)
        return [len(args), len(kwargs)]

    for argument in PLAIN + OTHER:
        for arguments, named in [((argument,), {}), ((1, argument), {}), ((), {"one": argument})]:
            wanted = [len(arguments), len(named)]
            before = len(calls)

            assert function.refresh(*arguments, **named) == wanted
            assert function(*arguments, **named) == wanted
            assert cache.get(function.cache_key(*arguments, **named)) == wanted
            assert len(calls) == before + 1


def test_equal_arguments_are_one_call(cache):
    numbers = iter(range(100))
    function = cache.memoize()(lambda *_: next(numbers))

    assert len({function(one) for one in (1, 1.0, True)}) == 1
    assert len({function(one) for one in (0, 0.0, -0.0, False)}) == 1
    assert len({function(one) for one in ("1", b"1", (1,), 1.5, None)}) == 5
    assert len({function(), function(()), function((), ())}) == 3


def test_hits_and_misses_are_counted_once(cache):
    function = cache.memoize()(lambda one: one)
    for _ in range(5):
        function(1)

    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.computed) == (4, 1, 1)


class Shop:
    calls = 0

    def __init__(self, number):
        self.number = number


def price(shop, item):
    Shop.calls += 1
    return shop.number * item


def test_a_method_can_be_memoized(cache):
    Shop.price = cache.memoize(ignore=["shop"])(price)
    Shop.plain = cache.memoize(key=lambda shop, item: (shop.number, item))(price)
    before = Shop.calls

    assert Shop(3).price(4) == Shop(5).price(4) == 12
    assert [Shop(3).plain(4), Shop(5).plain(4), Shop(5).plain(4)] == [12, 20, 20]
    assert Shop.calls == before + 3


def test_a_memoized_function_looks_like_the_function(cache):
    def function(one, two=2):
        """What it does."""

    function.own = 1
    memoized = cache.memoize()(function)

    assert memoized.__wrapped__ is function
    assert (memoized.__name__, memoized.__doc__) == ("function", "What it does.")
    assert (memoized.__module__, memoized.own) == (function.__module__, 1)
    assert "memoized" in repr(memoized)


def doubled(number):
    return 2 * number


def test_a_memoized_function_is_pickled_by_its_name(cache, monkeypatch):
    memoized = cache.memoize()(doubled)
    monkeypatch.setitem(globals(), "doubled", memoized)

    assert pickle.loads(pickle.dumps(memoized)) is memoized
    assert in_child(memoized, 4) == 8
    assert cache.get(memoized.cache_key(4)) == 8


def test_a_kept_error_is_raised_again(cache):
    calls = []

    @cache.memoize(errors=KeyError, copy=False)
    def function(one):
        calls.append(one)
        raise KeyError(one)

    for _ in range(3):
        with pytest.raises(KeyError, match="7"):
            function(7)
    assert calls == [7]


def test_a_kept_error_is_each_callers_own(cache):
    """Each caller gets an exception object of its own; a shared one would collect tracebacks, which
    keep all callers' objects alive."""

    @cache.memoize(errors=KeyError, copy=False)
    def function(*_, **__):
        raise KeyError(7)

    async def coroutine():
        raise KeyError(7)

    calls = [lambda: function(1), lambda: function(one=1)]
    awaited = cache.memoize(errors=KeyError, copy=False)(coroutine)
    calls.append(lambda: asyncio.run(awaited()))
    for call in calls:
        caught = []
        for _ in range(4):
            with pytest.raises(KeyError) as raised:
                call()
            caught.append(raised.value)
        assert len({id(error) for error in caught}) == 4
        lengths = [len(traceback.extract_tb(error.__traceback__)) for error in caught[1:]]
        assert len(set(lengths)) == 1


def test_a_call_of_a_closed_cache_raises(cache):
    function = cache.memoize()(doubled)
    function(1)
    cache.close()

    with pytest.raises(MapClosed):
        function(1)


def test_coroutine_functions_find_their_results_too(cache):
    @cache.memoize(copy=False)
    async def function(one):
        return [one]

    async def main():
        return await function(1), await function(1), await function(1), await function(one=1)

    first, second, third, named = asyncio.run(main())
    assert first == second == named == [1]
    assert second is third
