"""Where SharedDict behaves like dict, where it does not, and its promises to concurrent users."""

import itertools
import operator
import types

import pytest
from support import dict_jobs as jobs
from support.workers import METHODS, run_together

import shmrhash
from shmrhash import SharedCounter, SharedDict

WORKERS = 4
methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def d(make_dict):
    """A dict with two entries."""
    d = make_dict(key=str, value=object)
    d.update(a=1, b=[2])
    return d


# Like dict.


def test_update_accepts_the_arguments_of_dict_update(make_dict):
    class Keyed:
        def keys(self):
            return ["k"]

        def __getitem__(self, key):
            return key * 2

    for arguments, more in [
        ((), {}),
        (({"a": 1},), {"b": 2}),
        (([("a", 1), ["b", 2]],), {"a": 3}),
        ((iter([("x", None)]),), {}),
        ((Keyed(),), {}),
        (({}.items(),), {"self": 1, "other": 2}),
    ]:
        expected = {}
        expected.update(*arguments, **more)
        with SharedDict(key=str) as d:
            again = [iter([("x", None)])] if arguments and hasattr(arguments[0], "send") else None
            d.update(*(again or arguments), **more)
            if not (arguments and hasattr(arguments[0], "__next__")):
                assert d == expected
    with pytest.raises(ValueError, match="unpack"):
        make_dict().update([(1, 2, 3)])
    with pytest.raises(TypeError):
        make_dict().update(5)
    with pytest.raises(TypeError):
        make_dict().update({}, {})


def test_a_failing_update_keeps_the_items_stored_before(d):
    with pytest.raises(TypeError, match="key must be str, not int"):
        d.update([("c", 3), (4, 4), ("e", 5)])

    assert d == {"a": 1, "b": [2], "c": 3}


def test_merging_makes_a_plain_dict(d):
    assert d | {"a": 5, "c": 6} == {"a": 5, "b": [2], "c": 6}
    assert {"a": 5, "c": 6} | d == {"a": 1, "b": [2], "c": 6}
    assert type(d | {}) is type({} | d) is dict
    with SharedDict() as other:
        other["z"] = 0
        assert d | other == {"a": 1, "b": [2], "z": 0}
    before = d
    d |= {"c": 3}
    d |= [("e", 4)]
    assert d is before
    assert d == {"a": 1, "b": [2], "c": 3, "e": 4}
    for wrong in (5, [("a", 1)], None):
        with pytest.raises(TypeError):
            operator.or_(d, wrong)
        with pytest.raises(TypeError):
            operator.or_(wrong, d)


def test_equality_is_that_of_mappings(d):
    assert d == {"a": 1, "b": [2]}
    assert d == {"a": 1, "b": [2]}
    assert d != {"a": 1}
    assert d != {"a": 1, "b": [2], "c": 3}
    assert d != {"a": 1, "b": [3]}
    assert d != [("a", 1), ("b", [2])]
    assert d != None  # noqa: E711
    with SharedDict(key=str) as same, SharedDict(key=int) as other:
        same.update(d)
        assert d == same
        same["a"] = 2
        assert d != same
        other[1] = 1
        other[2] = [2]
        assert d != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(d)


def test_copies_are_plain_dicts(d):
    for made in (d.copy(), dict(d), {**d}):
        assert type(made) is dict
        assert made == {"a": 1, "b": [2]}


def test_views_are_sets_and_show_changes_of_the_dict(d):
    keys, items, values = d.keys(), d.items(), d.values()

    assert keys & {"a", "z"} == {"a"}
    assert keys | {"z"} == {"a", "b", "z"}
    assert {"a", "b", "c"} - keys == {"c"}
    assert keys ^ {"a"} == {"b"}
    assert keys == {"a", "b"}
    assert keys <= {"a", "b", "c"}
    assert keys.isdisjoint({"z"})
    assert type(keys & {"a"}) is set
    d["c"] = 3
    assert (len(keys), len(items), len(values)) == (3, 3, 3)
    assert set(keys) == {"a", "b", "c"}
    assert sorted(values, key=str) == [1, 3, [2]]
    assert ("b", [2]) in items
    assert ("b", [3]) not in items
    assert ("z", 1) not in items
    assert (5, 1) not in items
    assert "b" not in items
    assert [2] in values
    assert [3] not in values
    with SharedDict(key=str, value=int) as numbers:
        numbers.update(x=1, y=2)
        assert numbers.items() & {("x", 1), ("y", 3)} == {("x", 1)}
        assert numbers.items() == {("x", 1), ("y", 2)}
    with pytest.raises(TypeError):
        ([], 1) in items  # noqa: B015


def test_fromkeys_makes_a_dict_with_options(map_name):
    with SharedDict.fromkeys("abc", [], name=map_name, key=str) as d:
        assert d == {"a": [], "b": [], "c": []}
        assert d.key_type is str
        d.unlink()


def test_the_order_cannot_be_reversed(d):
    with pytest.raises(TypeError):
        reversed(d)


def test_repr_is_short(make_dict, map_name):
    d = make_dict(key=str, value=object)
    assert repr(d) == f"<SharedDict {map_name!r} of str to object: {{}}>"

    d["a"] = "x" * 1_000_000
    for number in range(1000):
        d[f"key {number}"] = list(range(1000))

    assert len(repr(d)) < 1500
    assert repr(d).endswith(", ...}>")
    assert "SharedKeys(['" in repr(d.keys())
    assert len(repr(d.items())) < 1500
    assert len(repr(d.values())) < 1500
    d.close()
    assert repr(d) == f"<SharedDict {map_name!r} of str to object: closed>"


def test_subscripts_are_executed_by_the_core_directly():
    """No Python frame is made for d[key], key in d, d[key] = value, del d[key] or get."""
    for name in ("__getitem__", "__setitem__", "__delitem__", "__contains__", "get", "pop"):
        assert not any(
            isinstance(vars(owner).get(name), types.FunctionType) for owner in SharedDict.__mro__
        )


def test_using_a_dict_without_init_raises():
    """Using a dict whose __init__ was not called raises an error, and does not crash the
    interpreter."""
    empty = SharedDict.__new__(SharedDict)

    for use in (len, lambda d: d["a"], lambda d: d.get("a"), lambda d: d.close(), list):
        with pytest.raises((TypeError, AttributeError, ValueError)):
            use(empty)


# Unlike dict.


def test_a_value_is_a_copy(d):
    """d[k].append(x) changes only a copy; the three other ways here change the stored value."""
    d["b"].append(3)
    assert d["b"] == [2]

    d["b"] = [*d["b"], 3]
    d.update_with("b", lambda value: [*value, 4])
    with d.locked("b") as entry:
        entry.value.append(5)
    assert d["b"] == [2, 3, 4, 5]


def test_writing_while_iterating_is_allowed(make_dict):
    """I1: every entry that is in the dict throughout is delivered once."""
    d = make_dict(key=int, value=int)
    d.update((number, 0) for number in range(1000))

    seen = []
    for key in d:
        seen.append(key)
        if key < 1000:
            d[1000 + key] = 1
            d[key] = 2

    assert sorted(key for key in seen if key < 1000) == list(range(1000))
    assert len(seen) == len(set(seen))


def test_iterating_over_a_closed_dict_raises_map_closed(make_dict):
    d = make_dict(key=int, value=int, max_entries=10_000)
    d.update((number, 0) for number in range(2000))
    walk = iter(d.items())
    next(walk)

    d.close()

    with pytest.raises(shmrhash.MapClosed):
        list(walk)


# Sections.


def test_a_section_stores_an_assigned_or_changed_value(d):
    with d.locked("b") as entry:
        entry.value.append(3)
    with d.locked("a") as entry:
        entry.value = "text"
    with d.locked("c", default=0) as entry:
        entry.value += 1

    assert d == {"a": "text", "b": [2, 3], "c": 1}


def test_a_section_that_raises_stores_nothing(d):
    """L1: a section whose block raises stores nothing."""
    with pytest.raises(ZeroDivisionError), d.locked("b") as entry:
        entry.value.append(1 / 0)
    with pytest.raises(ZeroDivisionError):
        d.update_with("a", lambda value: value / 0)
    with d.locked("b") as entry:
        entry.value = "other"
        entry.roll_back()

    assert d == {"a": 1, "b": [2]}


def test_shells_get_keys_to_complete_but_not_millions(make_dict):
    numbers = make_dict(key=int, value=int)
    for number in range(1500):
        numbers[number] = number

    offered = numbers._ipython_key_completions_()

    assert len(set(offered)) == len(offered) == 1000
    assert set(offered) <= set(numbers)


def test_a_section_can_delete_its_key(d):
    with d.locked("a") as entry:
        entry.delete()

    assert d == {"b": [2]}


def test_a_section_whose_value_cannot_be_stored_leaves_the_old_value(d):
    """L1: if the section finds only at its end that the new value cannot be stored, the old value
    stays, and the lock is released."""
    with pytest.raises(Exception, match=r"pickle|local object"), d.locked("a") as entry:
        entry.value = lambda: 0

    d["a"] = 2
    assert d["a"] == 2


def test_a_section_of_an_absent_key_is_a_key_error(d):
    with pytest.raises(KeyError), d.locked("z"):
        pytest.fail("the section was entered")
    with pytest.raises(KeyError):
        d.update_with("z", lambda value: value)
    assert d.update_with("z", lambda value: value + 1, 1) == 2
    with pytest.raises(TypeError):
        d.update_with("z", lambda value: value, 1, 2)


def test_a_key_deleted_during_its_section_stays_deleted(d):
    """L1: update_with(), whose function deleted the key, raises KeyGone."""

    def delete_and_store(value):
        del d["a"]
        return value + 1

    with pytest.raises(shmrhash.KeyGone):
        d.update_with("a", delete_and_store)

    assert "a" not in d


def test_locking_a_key_twice_is_a_deadlock_error(d):
    with d.locked("a"), pytest.raises(shmrhash.DeadlockError), d.locked("a"):
        pytest.fail("the section was entered")


def test_readers_see_the_old_value_until_a_section_ends(d):
    with d.locked("b") as entry:
        entry.value.append(3)
        assert d["b"] == [2]
        assert list(d.items()) == list(d.copy().items())
    assert d["b"] == [2, 3]


@methods
def test_no_append_in_a_section_is_lost(make_dict, method):
    """L1, W1: all workers append to one list in sections, and no item is lost; appending to a copy,
    outside a section, changes nothing."""
    d = make_dict(value=object)
    rounds = 150
    d["list"] = []

    run_together(
        method,
        *((jobs.append_to_one_list, d, "list", rounds, mark) for mark in range(WORKERS)),
        (jobs.append_without_lock, d, "list", rounds, "nobody"),
    )

    found = d["list"]
    assert sorted(found) == sorted(itertools.product(range(WORKERS), range(rounds)))
    for mark in range(WORKERS):
        mine = [number for owner, number in found if owner == mark]
        assert mine == sorted(mine), "in the order in which each appended"


@methods
def test_of_racing_workers_one_stores_and_one_takes_each_key(make_dict, method):
    """W1: several workers call setdefault() and pop() for the same keys; for each key one of them
    stores and one of them takes the value."""
    d = make_dict(value=object)
    rounds = 200

    results = run_together(
        method, *((jobs.set_default_and_pop, d, rounds, mark) for mark in range(WORKERS))
    )

    winners = sorted(
        (number, mark) for mark, (stored, _) in enumerate(results) for number in stored
    )
    taken = sorted((number, mark) for _, found in results for mark, number in found)
    assert [number for number, _ in winners] == list(range(rounds))
    assert taken == winners
    assert len(d) == 0


@methods
def test_each_item_is_popped_once(make_dict, method):
    """W1: several workers call popitem() until the dict is empty; each entry is returned to one of
    them."""
    d = make_dict(value=object, max_entries=4096)
    expected = {("key", number): "v" * (number % 50) for number in range(2000)}
    d.update(expected)

    results = run_together(method, *((jobs.pop_items, d) for _ in range(WORKERS)))

    taken = list(itertools.chain.from_iterable(results))
    assert len(taken) == len(expected)
    assert dict(taken) == expected
    assert len(d) == 0
    assert d.info()["objects"]["bytes_in_use"] == 0


@methods
def test_exchange_neither_loses_nor_duplicates_a_token(make_dict, method):
    """W1: each value that was stored is returned by one exchange(), or is in the dict at the
    end."""
    d = make_dict(value=object)
    rounds = 1000
    d["token"] = "first"

    results = run_together(
        method, *((jobs.exchange_tokens, d, "token", rounds, mark) for mark in range(WORKERS))
    )

    out = [*itertools.chain.from_iterable(results), d["token"]]
    put_in = ["first", *itertools.product(range(WORKERS), range(rounds))]
    assert sorted(map(str, out)) == sorted(map(str, put_in))


@methods
def test_iteration_delivers_stable_entries_exactly_once(make_dict, method):
    """I1: entries with keys of every length are delivered once each while two workers insert and
    delete others, and the table resizes."""
    d = make_dict(key=str, value=str, max_entries=20_000)
    stable_count = 500
    for number in range(stable_count):
        d[jobs.stable_key(number)] = str(number)

    results = run_together(
        method,
        (jobs.churn_long_keys, d, 0, 2000, 4),
        (jobs.churn_long_keys, d, 10_000, 2000, 4),
        (jobs.walk_all, d, stable_count),
        (jobs.walk_all, d, stable_count),
    )

    assert all(results[2:]), "no process walked"
    assert d == {jobs.stable_key(number): str(number) for number in range(stable_count)}
    info = d.info()
    assert info["grows"] > 0 < info["shrinks"]


# Counters.


@methods
def test_no_count_is_lost(make_dict, method, seed):
    """W1: several workers call inc(), update() and subtract() for the same words, and the sums are
    right."""
    counter = make_dict(SharedCounter)
    words = [f"word {number}" + "d" * (number % 30) for number in range(40)]

    results = run_together(
        method, *((jobs.count_words, counter, words, 3000, seed + i) for i in range(WORKERS))
    )

    expected = {word: sum(counted[word] for counted, _ in results) for word in words}
    assert counter.as_dict() == expected
    assert counter.total() == sum(expected.values())


@pytest.mark.parametrize("value", [int, float])
def test_no_two_increments_return_the_same_sum(make_dict, seed, value):
    """W1: eight processes increment one counter, and each increment returns a different sum."""
    counter = make_dict(SharedCounter, key=int, value=value)

    results = run_together(
        "fork", *((jobs.count_only, counter, range(5), 4000, seed + i) for i in range(8))
    )

    sums = sorted(itertools.chain.from_iterable(results))
    assert sums == sorted((word, i + 1) for word in range(5) for i in range(int(counter[word])))
    assert counter.total() == 8 * 4000
