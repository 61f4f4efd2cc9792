"""SharedCounter in one process: it behaves like collections.Counter."""

from collections import Counter

import pytest

import shmrhash
from shmrhash import SharedCounter, SharedDict


@pytest.fixture
def c(make_dict):
    return make_dict(SharedCounter)


def test_counter_counts_like_a_counter_of_the_standard_library(c):
    expected = Counter()
    for counter in (c, expected):
        counter.update("abracadabra")
        counter.update({"a": 10, "z": -3}, b=5)
        counter.subtract("aab")
        counter.subtract({"r": 7}, c=1)
        counter["set"] = 4
        counter.update()

    assert c == expected
    assert c.as_dict() == dict(expected)
    assert c.copy() == expected
    assert type(c.copy()) is Counter
    assert c.total() == sum(expected.values())
    assert [count for _, count in c.most_common()] == [n for _, n in expected.most_common()]
    assert dict(c.most_common()) == expected
    assert c.most_common(1) == [("a", 13)]
    assert c.most_common(0) == []


def test_absent_key_counts_zero_and_stays_absent(c):
    assert c["nothing"] == 0
    assert "nothing" not in c
    assert c.get("nothing") is None
    assert len(c) == 0
    assert c.total() == 0
    assert c.most_common() == []


def test_inc_returns_the_sum(c):
    assert [c.inc("a"), c.inc("a", 5), c.inc("a", by=-7)] == [1, 6, -1]
    assert c.pop("a") == -1
    assert c.inc("a") == 1


def test_counter_adds_and_subtracts_in_place(c):
    before = c
    c += "aab"
    c += {"b": 2}
    c -= ["a"]

    assert c is before
    assert c.as_dict() == {"a": 1, "b": 3}


def test_floats_and_other_keys(make_dict):
    times = make_dict(SharedCounter, key=(int), value=float)
    times.inc(5, 0.25)
    times.inc(5, 2)

    assert times[5] == 2.25
    assert times.total() == 2.25
    tuples = make_dict(SharedCounter, key=object)
    tuples.inc(("GET", 200))
    assert tuples[("GET", 200)] == 1


def test_counters_cannot_be_merged_by_the_or_operator(c):
    with pytest.raises(TypeError):
        c | {"a": 1}
    with pytest.raises(TypeError):
        {"a": 1} | c
    with pytest.raises(TypeError):
        c |= {"a": 1}
    with pytest.raises(NotImplementedError):
        SharedCounter.fromkeys("ab")


def test_counter_can_be_opened_as_a_counter_and_as_a_dict(c, map_name):
    c.update("aab")

    with SharedCounter.open(map_name) as again, SharedCounter(map_name) as third:
        again.inc("a")
        third.inc("b")
    with SharedDict.open(map_name) as plain:
        assert plain == {"a": 3, "b": 2}
        with pytest.raises(KeyError):
            plain["z"]


def test_a_dict_whose_values_are_no_numbers_is_no_counter(make_dict, map_name):
    make_dict(key=str, value=str)

    with pytest.raises(shmrhash.Error):
        SharedCounter.open(map_name)
    with pytest.raises(shmrhash.InvalidArgument, match="int or float"):
        SharedCounter(value=str)


def test_wrong_keys_and_numbers_are_type_errors(c):
    for use in (
        lambda: c.inc(5),
        lambda: c.inc("a", "b"),
        lambda: c.inc("a", 0.5),
        lambda: c.update([1]),
        lambda: c.update({"a": None}),
    ):
        with pytest.raises(TypeError):
            use()
    assert len(c) == 0


def test_a_full_counter_refuses_new_keys_and_counts_present_ones(make_dict):
    """W2: a full counter refuses a new key, and still counts the present ones."""
    c = make_dict(SharedCounter, max_entries=3)
    c.update("abc")

    with pytest.raises(shmrhash.MapFull):
        c.inc("d")
    assert c.inc("a") == 2
    assert c["d"] == 0
