"""The standard library's own tests of mappings, run on SharedDict.

Tests that cannot apply are listed in CANNOT_APPLY, with the reason, and a test checks that no other
is left out. The dicts are anonymous, with keys and values of type object.
"""

import collections.abc

import pytest
from test import mapping_tests

from shmrhash import SharedDict

COPIES = "values are copies of what was stored; what the test changes is not in the dict"
PLAIN_COPY = "copy() makes a plain dict, not another SharedDict"
PICKLES = "keys and values that are no plain data must pickle; classes local to a test do not"
WRITING_WHILE_ITERATING = "writing while iterating is allowed"
REPR = "the repr names the segment, and shows a few entries"

CANNOT_APPLY = {
    "test_copy": PLAIN_COPY,
    "test_setdefault": COPIES,
    "test_getitem": PICKLES,
    "test_pop": PICKLES,
    "test_eq": PICKLES,
    "test_mutatingiteration": WRITING_WHILE_ITERATING,
    "test_repr": REPR,
    "test_repr_deep": REPR,
}


class DictOf(SharedDict):
    """An anonymous SharedDict with the constructor of dict, which takes the entries."""

    def __init__(self, *args, **kwargs):
        super().__init__(max_entries=4096)
        self.update(*args, **kwargs)


class SmallPopitem:
    """Replaces the test of popitem in the larger dicts: the standard library's makes 24 dicts of up
    to 2,048 entries, and wants equal dicts to return their entries in the same order."""

    def test_popitem(self):
        mapping_tests.BasicTestMappingProtocol.test_popitem(self)
        for size in (1, 2, 64, 2048):
            d = self._full_mapping({repr(i): i for i in range(size)})
            popped = dict(d.popitem() for _ in range(size))
            assert popped == {repr(i): i for i in range(size)}
            assert not d


class TestBasicProtocolOfSharedDict(mapping_tests.BasicTestMappingProtocol):
    """The standard library's tests of the basic mapping protocol, all of which apply."""

    type2test = DictOf


class TestProtocolOfSharedDict(SmallPopitem, mapping_tests.TestMappingProtocol):
    type2test = DictOf

    test_copy = None
    test_setdefault = mapping_tests.BasicTestMappingProtocol.test_setdefault


class TestHashProtocolOfSharedDict(SmallPopitem, mapping_tests.TestHashMappingProtocol):
    type2test = DictOf

    test_copy = None
    test_setdefault = mapping_tests.BasicTestMappingProtocol.test_setdefault
    test_getitem = mapping_tests.TestMappingProtocol.test_getitem
    test_pop = mapping_tests.TestMappingProtocol.test_pop
    test_eq = None
    test_mutatingiteration = None
    test_repr = None
    test_repr_deep = None


for _case in (
    TestBasicProtocolOfSharedDict,
    TestProtocolOfSharedDict,
    TestHashProtocolOfSharedDict,
):
    _case.__test__ = True


@pytest.mark.parametrize(
    "case",
    [TestBasicProtocolOfSharedDict, TestProtocolOfSharedDict, TestHashProtocolOfSharedDict],
)
def test_only_tests_that_cannot_apply_are_left_out(case):
    """Each test of the standard library that a class here leaves out or replaces is listed in
    CANNOT_APPLY, except test_popitem, and all that are listed are left out of the last class."""
    standard = case.__bases__[-1]
    names = [name for name in dir(standard) if name.startswith("test")]

    assert len(names) > 10
    replaced = {name for name in names if getattr(case, name) is not getattr(standard, name)}
    assert replaced <= CANNOT_APPLY.keys() | {"test_popitem"}
    assert replaced >= CANNOT_APPLY.keys() or case is not TestHashProtocolOfSharedDict


class Loud:
    """An object that raises when it is compared or shown, and when it is hashed while `fail` is
    true."""

    fail = False

    def __eq__(self, other):
        raise ZeroDivisionError

    def __hash__(self):
        if self.fail:
            raise ZeroDivisionError
        return 42

    def __repr__(self):
        raise ZeroDivisionError


class LoudText(str):
    """A str whose hash raises while `fail` is true."""

    fail = False
    __eq__ = str.__eq__

    def __hash__(self):
        if self.fail:
            raise ZeroDivisionError
        return str.__hash__(self)


@pytest.mark.parametrize("operation", ["__getitem__", "pop", "setdefault", "get", "__contains__"])
def test_an_exception_of_a_keys_hash_is_passed_on(operation):
    """The dict passes on what a key's hash raises, as test_getitem, test_pop and test_setdefault
    require; here the class may be a key."""
    with SharedDict() as d:
        key = LoudText("a")
        d[key] = 1
        assert d["a"] == 1
        key.fail = True

        with pytest.raises(ZeroDivisionError):
            getattr(d, operation)(key)


def test_an_exception_of_comparing_values_is_passed_on():
    """The dict passes on what a comparison of values raises, as test_eq and test_repr require."""
    with SharedDict() as d:
        d[1] = Loud()

        with pytest.raises(ZeroDivisionError):
            assert d == {1: 1}
        assert "Loud instance" in repr(d)  # as reprlib does, a repr that raises is replaced


def test_setdefault_returns_a_copy_of_the_stored_value():
    """What setdefault() returns is a copy of the stored value, so changing it changes nothing in
    the dict. The standard library's test_setdefault, which expects the stored object, is left out.
    """
    with SharedDict() as d:
        d.setdefault("key", []).append(3)

        assert d["key"] == []
        assert d.setdefault("key", [1]) == []


def test_a_dict_is_a_mutable_mapping_and_matches_patterns():
    with SharedDict() as d:
        d.update(kind="circle", radius=2)

        assert isinstance(d, collections.abc.MutableMapping)
        match d:
            case {"kind": "circle", "radius": radius}:
                assert radius == 2
            case _:
                pytest.fail("a mapping pattern does not match")
