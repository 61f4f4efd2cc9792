"""Columns of keys and values: an operation on columns has the results of the same operation on one
entry after another."""

import datetime
import itertools
import math
import random
import subprocess
import sys
import threading

import numpy
import pytest

import shmrhash
from shmrhash import Array, RHashMap, SharedCounter, SharedDict

ROW = numpy.dtype([("x", "<i4"), ("y", "<f4")])
PAIR = numpy.dtype(("<f8", (2,)))


def text(number):
    return f"key {number}" * (1 + number % 40)


# Key type, key of a number, value type, value of a number: one line for each way to encode columns.
TYPES = {
    "int to int": (int, int, int, lambda n: n * 3 - 5),
    "int to float": (int, int, float, lambda n: n / 4),
    "int to bool": (int, int, bool, lambda n: n % 3 == 0),
    "int to rows": (int, int, PAIR, lambda n: numpy.array([n, -n], "f8")),
    "int to records": (int, int, ROW, lambda n: numpy.array((n, n / 2), ROW)[()]),
    "int to str": (int, int, str, text),
    "float to int": (float, lambda n: n / 8, int, lambda n: n),
    "str to int": (str, text, int, lambda n: n),
    "str to float": (str, text, float, lambda n: n * 0.5),
    "str to rows": (str, text, PAIR, lambda n: numpy.array([n, 1], "f8")),
    "bytes to object": (bytes, lambda n: text(n).encode(), object, lambda n: {"n": n}),
    "object to arrays": (object, lambda n: (n, "x"), Array("i8"), lambda n: numpy.arange(n % 5)),
}


def same(one, other):
    if isinstance(one, (numpy.ndarray, numpy.void)):
        return numpy.array_equal(one, other)
    return one == other


@pytest.mark.parametrize("ttl", [None, math.inf], ids=["for ever", "with deadlines"])
@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
def test_columns_are_treated_as_one_entry_after_another(types, ttl):
    key_type, key_of, value_type, value_of = types
    rng = random.Random(1)
    numbers = [rng.randrange(300) for _ in range(400)]
    keys, values = list(map(key_of, numbers)), list(map(value_of, numbers))
    with SharedDict(key=key_type, value=value_type, max_entries=1000, ttl=ttl) as d:
        assert d.update_many(keys, values) == 400
        model = dict(zip(keys, values, strict=True))
        assert len(d) == len(model)
        assert all(same(d[key], value) for key, value in model.items())

        asked = list(map(key_of, range(0, 500, 7)))
        found_values, found = d.lookup_many(asked)
        assert found.tolist() == [key in model for key in asked] == d.contains_many(asked).tolist()
        numeric = value_type in (int, float, bool) or isinstance(value_type, numpy.dtype)
        nothing = numpy.zeros(1, value_type)[0] if numeric else None
        for key, value, here in zip(asked, found_values, found, strict=True):
            if here:
                assert same(value, model[key])
            else:
                assert same(value, nothing)

        gone = d.delete_many([*asked[:10], asked[0]])
        assert gone.tolist() == [*(key in model for key in asked[:10]), False]
        for key in asked[:10]:
            model.pop(key, None)
        all_keys, all_values = d.to_arrays()
        assert len(all_keys) == len(model)
        got = dict(zip(all_keys.tolist(), all_values, strict=True))
        assert got.keys() == model.keys()
        assert all(same(got[key], value) for key, value in model.items())
        assert d.check()["exact"]


def test_numbers_come_as_arrays_of_numbers_and_all_else_as_objects():
    with SharedDict.from_arrays("tables", [1, 2], [0.5, 1.5]) as d:
        d.unlink()
        assert [each.dtype for each in d.to_arrays()] == [numpy.dtype("i8"), numpy.dtype("f8")]
    with SharedDict.from_arrays("tables", ["a", "b"], [True, False]) as d:
        d.unlink()
        assert [each.dtype for each in d.to_arrays()] == [numpy.dtype(object), numpy.dtype(bool)]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (numpy.arange(3, dtype="u2"), int),
        (numpy.zeros(3, "f4"), float),
        (numpy.zeros(3, bool), bool),
        (numpy.array(["a", "b", "c"]), str),
        (numpy.array([b"a", b"b", b"c"]), bytes),
        (numpy.zeros((3, 2), "f8"), PAIR),
        (numpy.zeros(3, ROW), ROW),
        (["a", "b", "c"], str),
        ([1, "b", None], object),
        ([datetime.date(2026, 1, 1)] * 3, object),
    ],
)
def test_types_follow_from_the_columns(column, wanted):
    with SharedDict.from_arrays("tables", [1, 2, 3], column) as d:
        d.unlink()
        assert d.value_type == wanted
        assert same(d[2], column[1])
        assert d.max_entries == 3


@pytest.mark.parametrize(
    ("keys", "values", "error"),
    [
        ([1, 2], [1], shmrhash.InvalidArgument),
        ([1, 2**64], [1, 2], OverflowError),
        (numpy.array([1, 2**63], "u8"), [1, 2], OverflowError),
        ([1, 2.5], [1, 2], TypeError),
        ([1, 2], ["a", "b"], TypeError),
        ([1, 2], numpy.array(["1", "2"]), TypeError),
        ([1, 2], numpy.array([1.5, 2.5]), TypeError),
        ("ab", [1, 2], TypeError),
        (numpy.int64(3), [1, 2], shmrhash.InvalidArgument),
        (7, [1, 2], TypeError),
    ],
)
def test_columns_that_do_not_fit_are_refused_as_single_entries_are(keys, values, error):
    with SharedDict(key=int, value=int, max_entries=10) as d:
        with pytest.raises(error):
            d.update_many(keys, values)
        assert len(d) <= 1  # the entry before the one that does not fit may be stored
        d.check()


def test_a_dict_from_arrays_that_do_not_fit_leaves_nothing():
    with pytest.raises(TypeError):
        SharedDict.from_arrays("tables", [1, 2], ["a", "b"], value=int)
    with pytest.raises(shmrhash.MapFull):
        SharedDict.from_arrays("tables", [1, 2], [1, 2], max_entries=1)
    with pytest.raises(shmrhash.SegmentMissing):
        SharedDict.open("tables")


def test_sums_of_a_column_are_those_of_add():
    with SharedCounter(key=str, max_entries=100) as c:
        assert c.add_many(["a", "b", "a"], [1, 2, 3], default=0).tolist() == [1, 2, 4]
        assert c.add_many(numpy.array(["a", "b"]), 10).tolist() == [14, 12]
        with pytest.raises(shmrhash.KeyNotFound):
            c.add_many(["a", "none", "b"], 1)
        assert (c["a"], c["b"]) == (15, 12)
        with pytest.raises(shmrhash.InvalidArgument, match="2 keys, but 1 deltas"):
            c.add_many(["a", "b"], [1])


def test_progress_is_told_in_chunks_and_at_the_end():
    count = 150_000
    told = []
    numbers = numpy.arange(count)
    with SharedDict.from_arrays(
        "tables", numbers, numbers, progress=lambda *both: told.append(both)
    ) as d:
        d.unlink()
        assert told == [(65_536, count), (131_072, count), (count, count)]
        told.clear()
        d.to_arrays(progress=lambda *both: told.append(both))
        assert told[-1][0] == count
        assert [done for done, _ in told] == sorted(done for done, _ in told)
    with SharedDict(key=str, value=int) as d:
        told.clear()
        d.update_many(["a", "b"], [1, 2], progress=lambda *both: told.append(both))
        d.to_arrays(progress=lambda *both: told.append(both))
        assert told == [(2, 2), (2, 2)]


def test_progress_true_draws_on_a_terminal_only(capfd):
    numbers = numpy.arange(1000)
    with RHashMap.from_arrays("tables", numbers, numbers, progress=True) as m:
        m.unlink()
        m.to_arrays(progress=True)
    assert capfd.readouterr() == ("", "")


BAR = """
import os, pty, sys
import numpy, shmrhash
child, terminal = pty.fork()
if child == 0:
    numbers = numpy.arange(200_000)
    with shmrhash.SharedDict.from_arrays("bars", numbers, numbers, progress=True) as d:
        d.unlink()
    os._exit(0)
drawn = b""
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    drawn += part
assert os.waitpid(child, 0)[1] == 0
print("storing" in drawn.decode())
"""


def test_progress_true_draws_a_bar_on_a_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BAR], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_min_and_max_keep_the_less_and_the_greater():
    with SharedDict(key=str, value=int, max_entries=100) as d:
        assert d.max("a", 5, 3) == 5
        assert d.min("b", 5, 3) == 3
        assert (d.max("a", 4), d.max("a", 9), d.min("a", 10), d.min("a", -2)) == (5, 9, 9, -2)
        assert dict(d) == {"a": -2, "b": 3}
        for call in (d.min, d.max):
            with pytest.raises(shmrhash.KeyNotFound):
                call("none", 1)
            with pytest.raises(OverflowError):
                call("a", 2**63)
        long = "long " * 100
        assert d.max(long, 1, 0) == d[long] == 1
    with SharedDict(key=int, value=float, max_entries=100, ttl=60) as d:
        assert d.min(1, 0.5, 2.0) == 0.5
        assert d.ttl(1) > 50
        assert d.max(1, math.inf) == math.inf
    with SharedDict(key=int, value=str) as d, pytest.raises(TypeError, match="int or float"):
        d.max(1, 2)


def test_compare_and_swap_stores_only_over_what_was_expected():
    with SharedDict(key=str, value=object, max_entries=100, ttl=math.inf) as d:
        assert not d.compare_and_swap("a", None, 1)
        assert d.compare_and_swap("a", shmrhash.GONE, [1])
        assert not d.compare_and_swap("a", shmrhash.GONE, [2])
        assert not d.compare_and_swap("a", [2], [3])
        d.touch("a", 50)
        assert d.compare_and_swap("a", [1], None)
        assert 40 < d.ttl("a") <= 50
        assert d.compare_and_swap("a", None, "end")
        assert dict(d) == {"a": "end"}
        with d.locked("a"), pytest.raises(shmrhash.DeadlockError):
            d.compare_and_swap("a", "end", 1)

        class Touchy:
            def __eq__(self, other):
                raise ZeroDivisionError

            __hash__ = None

        with pytest.raises(ZeroDivisionError):
            d.compare_and_swap("a", Touchy(), 1)
        assert d["a"] == "end"
        d.check()


def test_of_threads_that_compare_and_swap_each_wins_once_for_each_value():
    with SharedDict(key=str, value=int, max_entries=10) as d:
        d["n"] = 0
        won = [0] * 4

        def count(me):
            while (seen := d["n"]) < 500:
                won[me] += d.compare_and_swap("n", seen, seen + 1)

        threads = [threading.Thread(target=count, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == d["n"] == 500
        d.check()


def test_a_counter_offers_what_counters_offer():
    with SharedCounter(key=str, max_entries=100) as c:
        c.update("abracadabra")
        plain = c.copy()
        assert sorted(c.elements()) == sorted("abracadabra")
        other = {"a": 2, "z": 4}
        assert c + other == other + c == plain + type(plain)(other)
        assert c - other == plain - type(plain)(other)
        assert other - c == type(plain)(other) - plain
        assert c & other == other & c == plain & type(plain)(other)
        for wrong in (3, "ab"):
            with pytest.raises(TypeError):
                c + wrong
        c["a"] = -1
        assert "a" not in set(c.elements())


def test_columns_without_numpy(monkeypatch):
    for module in ("_tables", "_rows"):
        monkeypatch.setattr(f"shmrhash.{module}.numpy_or_none", lambda: None)
    with SharedDict.from_arrays("tables", [1, 2], (4, 5)) as d:
        d.unlink()
        assert d.value_type is int
        keys, values = d.to_arrays()
        assert sorted(zip(keys, values, strict=True)) == [(1, 4), (2, 5)]
        assert d.lookup_many(iter([2, 9])) == ([5, 0], b"\1\0")
        assert d.contains_many(range(1, 4)) == b"\1\1\0" == bytes(itertools.chain([1, 1], [0]))
        assert d.delete_many([9, 1]) == b"\0\1"
        assert d.add_many([2], 1) == [6]
