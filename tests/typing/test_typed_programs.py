"""Programs whose types mypy and pyright judge (`tox -e lint`), and that run here.

assert_type() states the type that a checker must infer. A line that a checker must refuse says so
in a comment for each of them; if one accepts it, its comment is unused, which is an error.
"""

import inspect
import pickle
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import pytest

from shmrhash import Cache, SharedCounter, SharedDict
from shmrhash._typing import CacheOptions, CreateOptions, OpenOptions, Options

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, _declared):
        return value


T = TypeVar("T")


@dataclass
class Job:
    name: str
    tries: int = 0


def increment_all(counts: MutableMapping[str, int]) -> None:
    for key in counts:
        counts[key] += 1


def test_types_are_inferred_from_key_and_value() -> None:
    with SharedDict(key=str, value=int, max_entries=10) as d:
        assert_type(d, SharedDict[str, int])
        d["k"] = 1
        assert_type(d["k"], int)
        assert_type(d.get("k"), int | None)
        assert_type(d.get("x", 2), int)
        assert_type(d.get("x", "none"), int | str)
        assert_type(d.setdefault("k", 3), int)
        assert_type(d.add("k", 2), int)
        assert_type(d.exchange("k", 4), int)
        assert_type(d.update_with("k", lambda n: n + 1), int)
        assert_type(list(d), list[str])
        assert_type(list(d.keys()), list[str])
        assert_type(list(d.values()), list[int])
        assert_type(list(d.items()), list[tuple[str, int]])
        assert_type(d.copy(), dict[str, int])
        assert_type(d | {2: "two"}, dict[str | int, int | str])
        with d.locked("k", default=0) as entry:
            assert_type(entry.value, int)
        d.update({"a": 1}, b=2)
        d.update([("c", 3)])
        d |= {"e": 5}
        assert_type(d.pop("k"), int)
        assert_type(d.pop("k", None), int | None)
        assert_type(d.popitem(), tuple[str, int])
        assert len(d) == 3


def test_mutable_mapping_is_what_a_dict_and_a_counter_are() -> None:
    with SharedDict(key=str, value=int) as d, SharedCounter() as c:
        d["k"] = 1
        c.inc("k")

        increment_all(d)
        increment_all(c)

        assert d["k"] == c["k"] == 2
        assert isinstance(d, MutableMapping)


def test_what_key_or_value_leaves_open_is_any() -> None:
    with SharedDict() as any_to_any, SharedDict(key=str) as str_to_any:
        assert_type(any_to_any, SharedDict[Any, Any])
        assert_type(str_to_any, SharedDict[str, Any])
    with SharedDict(value=float) as any_to_float, SharedDict(key="<ii", value="<qd") as rows:
        assert_type(any_to_float, SharedDict[Any, float])
        assert_type(rows, SharedDict[Any, Any])
    with SharedDict(key=str, value="<qd") as named_rows:
        assert_type(named_rows, SharedDict[str, Any])
    with SharedDict(key="<ii", value=int) as counts_of_pairs:
        assert_type(counts_of_pairs, SharedDict[Any, int])


def test_parameters_say_more_than_a_declared_type() -> None:
    with SharedDict[str, list[int]](key=str) as lists:
        lists["primes"] = [2, 3]
        assert_type(lists["primes"], list[int])
    jobs: SharedDict[str, Job] = SharedDict(key=str)
    jobs["a"] = Job("a")
    assert_type(jobs["a"].tries, int)
    jobs.close()


def test_counters_count_in_int_or_in_float() -> None:
    with SharedCounter() as words, SharedCounter(key=int) as squares:
        assert_type(words, SharedCounter[str, int])
        assert_type(squares, SharedCounter[int, int])
        assert_type(words.inc("a"), int)
        assert_type(words["b"], int)
        words.update("abc")
        words.update({"c": 2})
        assert_type(words.most_common(1), list[tuple[str, int]])
        assert_type(words.total(), int)
        assert_type(words.copy(), Counter[str])
    with SharedCounter(value=float) as seconds:
        assert_type(seconds, SharedCounter[str, float])
        assert_type(seconds.inc("load", 0.5), float)

    def of_words(counter: SharedCounter[str]) -> None:
        assert_type(counter["a"], int)

    with SharedCounter(key=str, value=int) as words:
        of_words(words)


def test_what_does_not_fit_is_refused_before_it_runs_and_when_it_runs() -> None:
    with SharedDict(key=str, value=int) as d:
        with pytest.raises(TypeError):
            d[1] = 1  # type: ignore[index]  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError):
            d["k"] = "1"  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError):
            d.get(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError):
            d.update({"k": "1"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with SharedCounter() as c, pytest.raises(TypeError):
        c.inc(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        SharedDict(key=str, valeu=int)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_a_subclass_keeps_its_type_through_create_and_open(map_name: str) -> None:
    class Words(SharedDict[str, int]):
        def longest(self) -> str:
            return max(self, key=len)

    with Words.create(map_name, key=str, value=int) as words:
        words["ab"] = words["abc"] = 1
        assert_type(words, Words)
        assert_type(Words.open(map_name).longest(), str)
        words.unlink()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (SharedDict.__init__, Options),
        (SharedDict.create, CreateOptions),
        (SharedDict.open, OpenOptions),
        (Cache.__init__, CacheOptions),
    ],
)
def test_options_that_checkers_know_are_those_of_the_function(function: Any, options: Any) -> None:
    parameters = inspect.signature(function).parameters
    own = {
        name: str(parameter.annotation)
        for name, parameter in parameters.items()
        if name not in ("self", "name", "key", "value")
    }

    # Of its bases, too: each class has only its own from Python 3.14 on.
    bases = {Options: [CreateOptions], CacheOptions: [CreateOptions, Options]}
    known = {
        name: kind.__forward_arg__
        for each in [options, *bases.get(options, [])]
        for name, kind in each.__annotations__.items()
    }
    assert own == known


@pytest.mark.parametrize(
    ("alias", "arguments"),
    [
        (SharedDict[str, int], (str, int)),
        (SharedCounter[str], (str, int)),
        (SharedCounter[str, float], (str, float)),
    ],
)
def test_parameters_can_be_read_at_run_time(alias: Any, arguments: tuple[type, ...]) -> None:
    assert get_args(alias) == arguments
    assert isinstance(get_origin(alias), type)


def test_parameters_of_a_dict_are_not_pickled_with_it() -> None:
    class Local:
        pass

    with SharedDict[str, Local](key=str) as d:
        assert pickle.loads(pickle.dumps(d)).name == d.name


def test_a_parameter_of_a_function_is_a_parameter_of_the_dict() -> None:
    def first(shared: SharedDict[str, T], make: Callable[[], T]) -> T:
        return shared.setdefault("first", make())

    with SharedDict(key=str, value=int) as d:
        assert_type(first(d, lambda: 1), int)


def test_types_of_a_cache_are_inferred_from_key_and_value() -> None:
    with Cache(key=str, value=int, max_entries=10, max_value_bytes=1000) as cache:
        assert_type(cache, Cache[str, int])
        cache.set("k", 1)
        assert_type(cache.get("k"), int | None)
        assert_type(cache.get("x", 2), int)
        assert_type(cache.get("x", "none"), int | str)
        assert_type(cache.get_many(["k"]), dict[str, int])
        assert_type(cache.set_many({"k": 2}), list[str])
        assert_type(cache.replace("k", 3), bool)
        assert_type(cache.incr("k"), int)
        assert_type(cache.update_with("k", lambda n: n + 1), int)
        assert_type(cache.get_or_compute("c", lambda: 5), int)
        assert_type(cache.ttl("k"), float | None)
        assert_type(cache.delete_prefix("c"), int)
        assert_type(cache.pop("k"), int | None)
    with Cache(max_entries=10) as anything, Cache(key=str, value="<qd", max_entries=10) as rows:
        assert_type(anything, Cache[Any, Any])
        assert_type(rows, Cache[str, Any])
