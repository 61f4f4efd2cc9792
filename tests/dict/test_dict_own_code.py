"""A program's own code inside a dict's operations, and its own subclasses of a dict."""

import copy
import pickle
import sys
import time
import types

import numpy as np
import pytest

import shmrhash
from shmrhash import SharedCounter, SharedDict

DICT = None  # the dict that Meddler changes
FAILING = False


class Meddler:
    """A value that stores into DICT, under the key "k", while it is unpickled."""

    def __reduce__(self):
        return _meddle, ()


def _meddle():
    if DICT is not None:
        DICT["k"] = 1
    return Meddler()


class Fragile:
    """A value that cannot be unpickled while FAILING is true."""

    def __reduce__(self):
        return _build, ()


def _build():
    if FAILING:
        raise ModuleNotFoundError("its plugin is not here")
    return Fragile()


class Tenant(SharedDict):
    def __init__(self, *args, tenant, **options):
        super().__init__(*args, **options)
        self.tenant = tenant

    def __missing__(self, key):
        return f"no {key}"


@pytest.fixture
def failing(monkeypatch):
    return lambda whether: monkeypatch.setattr(sys.modules[__name__], "FAILING", whether)


@pytest.mark.parametrize("use", ["locked", "update_with", "exchange", "create"])
def test_decoding_that_uses_its_sections_key_is_a_deadlock_error(make_dict, monkeypatch, use):
    """L1: if a value's unpickling stores under the key whose section decodes the value, it gets a
    DeadlockError at once, although the dict's timeout of None would let it wait without end."""
    d = make_dict(key=str, value=object, timeout=None)
    d["k"] = Meddler()
    monkeypatch.setattr(sys.modules[__name__], "DICT", d)

    uses = {
        "locked": lambda: d.locked("k").__enter__(),
        "update_with": lambda: d.update_with("k", lambda value: value),
        "exchange": lambda: d.exchange("k", 5),
        "create": lambda: d.locked("k", default=5).__enter__(),
    }
    with pytest.raises(shmrhash.DeadlockError):
        uses[use]()

    d["k"] = 7  # no section holds it
    assert d["k"] == 7


def test_a_value_that_cannot_be_decoded_hides_no_other_value(make_dict, failing):
    """I1: the iterator raises when it comes to such a value, and can be continued; with
    errors="skip" it leaves the entry out."""
    d = make_dict(key=int, value=object)
    expected = {number: number * 2 for number in range(200)}
    d.update(expected)
    for number in (1000, 2000, 3000):
        d[number] = Fragile()
    failing(True)

    found, failures = {}, 0
    for iterator in (iter(d.items()), d._entries(2)):
        found, failures = {}, 0
        while True:
            try:
                key, value = next(iterator)
            except ModuleNotFoundError:
                failures += 1
            except StopIteration:
                break
            else:
                found[key] = value
        assert (found, failures) == (expected, 3)
    assert dict(iter(d.items(errors="skip"))) == expected
    assert sorted(d.values(errors="skip")) == sorted(expected.values())
    assert set(d.keys(errors="skip")) == set(d)
    assert d.copy(errors="skip") == expected
    for use in (d.copy, lambda: list(d.items()), lambda: d == expected | {1000: 1}):
        with pytest.raises(ModuleNotFoundError):
            use()
    with pytest.raises(shmrhash.InvalidArgument, match="'raise' or 'skip'"):
        d.items(errors="ignore")


def test_popitem_does_not_remove_a_value_that_it_cannot_decode(make_dict, failing):
    d = make_dict(key=int, value=object)
    d[1] = Fragile()
    failing(True)

    for _ in range(3):
        with pytest.raises(ModuleNotFoundError):
            d.popitem()
    assert len(d) == 1
    failing(False)
    assert d.popitem()[0] == 1
    with pytest.raises(KeyError):
        d.popitem()
    d[2] = Fragile()
    failing(True)
    d.clear()
    assert len(d) == 0


def test_popitem_takes_other_entries_than_those_it_cannot_decode(make_dict, failing):
    """popitem() returns the other entries although one entry's class is missing, wherever that
    entry is in the table."""
    d = make_dict(key=int, value=object)
    d.update({number: -number for number in range(100)})
    d.update({number: Fragile() for number in (100, 101, 102)})
    failing(True)

    taken = dict(d.popitem() for _ in range(100))

    assert taken == {number: -number for number in range(100)}
    with pytest.raises(ModuleNotFoundError):
        d.popitem()
    assert set(d) == {100, 101, 102}


def test_skipping_undecodable_values_does_not_hide_errors_of_the_map(make_dict):
    d = make_dict(key=int, value=object)
    d.update({number: number for number in range(10)})
    iterator = iter(d.items(errors="skip"))
    next(iterator)
    d.close()

    with pytest.raises(shmrhash.MapClosed):
        list(iterator)


def test_copying_a_handle_gives_the_same_dict_and_copy_gives_a_plain_one(make_dict):
    d = make_dict(key=str, value=int)
    holder = types.SimpleNamespace(cache=d)

    for twin in (copy.copy(d), copy.deepcopy(d), copy.deepcopy(holder).cache):
        twin["a"] = 1
        assert d.pop("a") == 1
    assert type(d.copy()) is dict
    counter = make_dict(SharedCounter)
    copy.deepcopy(counter).inc("a")
    assert counter["a"] == 1


def test_a_subclass_keeps_its_attributes_when_pickled_and_its_missing_is_called():
    with Tenant(key=str, value=str, tenant="t1", ttl=5) as d, pickle.loads(pickle.dumps(d)) as twin:
        d["a"] = "b"
        assert (twin.tenant, twin["a"], twin["c"]) == ("t1", "b", "no c")
        assert twin._default_ttl_ns == d._default_ttl_ns
        assert twin.get("c") is None
        with pytest.raises(KeyError):
            twin.pop("c")
    with SharedDict(key=str, value=str) as plain, pytest.raises(KeyError):
        plain["c"]


def test_deadlines_do_not_depend_on_a_patched_clock(make_dict, monkeypatch):
    """A library that freezes time replaces time.monotonic_ns with a test's own function."""
    d = make_dict(key=str, value=int, ttl=60)
    now = {"ns": 1_700_000_000 * 10**9}
    monkeypatch.setattr(time, "monotonic_ns", lambda: now["ns"])
    monkeypatch.setattr(time, "monotonic", lambda: now["ns"] / 1e9)
    d["default"] = 1
    d.set("told", 1, ttl=60)
    d.setdefault("first", 1)
    d["changed"] = 0
    d.exchange("changed", 1, ttl=60)
    d["touched"] = 1
    d.touch("touched", 60)
    d["again"] = 1
    d.touch("again")

    for _ in range(2):
        assert sorted(d) == ["again", "changed", "default", "first", "told", "touched"]
        for key in d:
            assert 30 < d.ttl(key) <= 60
        now["ns"] = 5


SURROGATES = ["\ud800", "name-\udcff", "\udcff" * 40, "\ud83d\ude00", "a\udc80" * 9]


@pytest.mark.parametrize("key_type", [str, object])
def test_lone_surrogates_work_in_keys_and_values(make_dict, key_type):
    """Lone surrogates, which os.listdir() returns for names that are not UTF-8, work in keys and
    values."""
    d = make_dict(key=key_type, value=str)
    for text in SURROGATES:
        assert text not in d
        assert d.get(text) is None
        d[text] = text

    assert dict(d) == {text: text for text in SURROGATES}
    assert "\U0001f600" not in d  # the two lone surrogates are not this one character
    for text in SURROGATES:
        assert d.pop(text) == text


CANNOT = {
    str: [b"a", 1, None, "k" * 70_000],
    bytes: ["a", 1, b"k" * 70_000],
    int: ["1", 1.5, 2**63, -(2**64)],
    float: ["1", 10**400, None],
    bool: [1, "a"],
    object: ["k" * 70_000, (lambda: 0), (1, "k" * 70_000)],
    "<H": [70_000, "a", (1, 2)],
}


@pytest.mark.parametrize("key_type", CANNOT, ids=str)
def test_in_is_false_for_keys_that_the_key_type_cannot_hold(make_dict, key_type):
    d = make_dict(key=key_type, value=int)

    for key in CANNOT[key_type]:
        assert key not in d
        assert (key, 1) not in d.items()
        assert key not in d.keys()  # noqa: SIM118
        assert d != {key: 1}
        with pytest.raises((TypeError, OverflowError, shmrhash.TooLarge)):
            d[key] = 1
    assert len(d) == 0


def test_a_numpy_bool_is_stored_as_a_bool(make_dict):
    d = make_dict(key=bool, value=bool)

    d[np.True_] = np.False_

    assert dict(d) == {True: False}
    with pytest.raises(TypeError, match="must be bool, not float64"):
        d[True] = np.float64(1)


def test_the_error_for_a_number_out_of_range_has_the_range(make_dict):
    d = make_dict(key=int, value=int)
    for use in (lambda: d.__setitem__(2**64, 1), lambda: d.__setitem__(1, -(2**64))):
        with pytest.raises(OverflowError, match=r"from -2\*\*63 to 2\*\*63 - 1, .* 65 bits"):
            use()
