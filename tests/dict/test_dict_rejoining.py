"""A second dict, counter or cache that a process unpickles shares what the first one has."""

import dataclasses
import math
import pickle

import pytest

import shmrhash
from shmrhash import Cache, SharedCounter, SharedDict, _segment
from shmrhash._types import schema


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Labelled(SharedDict):
    pass


@pytest.fixture
def no_file(monkeypatch):
    """A function after whose call no segment's file can be opened."""

    def forbid():
        def refuse(name, *_arguments, **_options):
            raise AssertionError(f"the file of {name} was opened")

        monkeypatch.setattr(_segment, "open_file", refuse)

    return forbid


def again(shared):
    return pickle.loads(pickle.dumps(shared))


@pytest.mark.parametrize("ttl", [None, math.inf, 100])
def test_a_second_dict_of_a_process_opens_no_file(make_dict, no_file, ttl):
    d = make_dict(key=str, value=int, ttl=ttl)
    d["a"] = 1
    no_file()

    second, third = again(d), again(d)

    assert (second["a"], third["a"]) == (1, 1)
    assert (second.key_type, second.value_type, second._schema.ttl) == (str, int, ttl)
    assert second._schema is third._schema
    second.close()
    third["b"] = 2
    assert dict(d) == {"a": 1, "b": 2}
    third.close()


def test_counters_and_caches_share_likewise(make_dict, no_file, map_name):
    counter = make_dict(SharedCounter, key=str)
    cache = Cache(f"{map_name}-cache", key=str, value=Point, max_entries=100, ttl=100)
    counter.inc("a")
    cache.set("a", Point(1, 2))
    no_file()

    with again(counter) as same_counter, again(cache) as same_cache:
        assert same_counter["a"] == 1
        assert same_cache.get("a") == Point(1, 2)
    cache.unlink()
    cache.close()


def test_attributes_of_a_subclass_are_its_own(make_dict, no_file):
    d = make_dict(Labelled, key=str, value=int)
    d.label = "first"
    no_file()

    with again(d) as second:
        second.label += " copy"
        assert (type(second), d.label, second.label) == (Labelled, "first", "first copy")
        with again(second) as third:
            assert third.label == "first copy"


def test_each_handle_has_the_ttl_that_its_pickle_names(make_dict, no_file):
    d = make_dict(key=str, value=int, ttl=100)
    no_file()
    function, (cls, _, *types, _) = d.__reduce__()[:2]

    for ttl in (100, 50, 50, None):
        with function(cls, again(d.handle), *types, ttl) as second:
            assert second._schema.ttl == (ttl or 100)


def test_types_are_compared_with_those_of_the_map(make_dict):
    """Types that were shared before do not hide that a map has others."""
    d = make_dict(key=str, value=int)
    again(d).close()
    with pytest.raises(shmrhash.LayoutMismatch, match="opened with float"):
        schema.restored(d.handle, str, float, None)
    with pytest.raises(shmrhash.LayoutMismatch, match="opened with int"):
        schema.restored(d.handle, int, int, None)
    with pytest.raises(shmrhash.LayoutMismatch, match="without ttl"):
        schema.restored(d.handle, str, int, 5.0)
    assert schema.restored(d.handle, str, int, None).key.declared is str


def test_a_type_without_a_hash_is_read_each_time(make_dict):
    d = make_dict(key=str, value=int)
    with pytest.raises(TypeError):
        schema.restored(d.handle, str, [int], None)


def test_the_clock_is_asked_for_each_handle(make_dict, monkeypatch):
    """Deadlines are of one time namespace, and a process may enter another one."""
    d, plain = make_dict(key=str, value=int, ttl=100), make_dict(key=str, value=int)
    again(d).close()
    monkeypatch.setattr(schema, "clock_ahead_ns", lambda: 10**9)
    with pytest.raises(shmrhash.LayoutMismatch, match="another time namespace"):
        again(d)
    again(plain).close()


def test_shared_types_are_few(make_dict, monkeypatch):
    monkeypatch.setattr(schema, "_known", known := {})
    d = make_dict(key=str, value=int, ttl=100)
    for ttl in range(1, 200):
        assert schema.restored(d.handle, str, int, ttl).ttl == ttl
        assert 1 <= len(known) <= schema._RESTORED_MAX


def test_types_that_are_equal_and_differ_are_not_shared(map_name):
    """NumPy's dtype of records equals the one without their class."""
    numpy = pytest.importorskip("numpy")
    plain = numpy.dtype([("a", "<i4"), ("b", "<i4")])
    records = numpy.dtype((numpy.record, plain))
    assert plain == records

    with SharedDict(map_name, key=int, value=plain, max_entries=8) as first:
        with SharedDict(map_name, key=int, value=records) as second:
            first[1] = numpy.array((3, 4), plain)[()]
            assert type(first[1]) is type(again(first)[1]) is numpy.void
            assert type(second[1]) is type(again(second)[1]) is numpy.record
        first.unlink()
