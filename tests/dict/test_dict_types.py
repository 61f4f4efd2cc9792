"""Declared types: stored values come back, inline or by reference; unfit ones are refused."""

import ctypes
import importlib.util
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support.dict_types import Address, Deep, Either, Gapped, Outer, Packed, Place, Sample

import shmrhash
from shmrhash import Array, SharedDict
from shmrhash._types.declared import codec_for

need_msgspec = pytest.mark.skipif(
    importlib.util.find_spec("msgspec") is None, reason="msgspec is not installed"
)

ROW = np.dtype([("id", "<u4"), ("at", "<f8"), ("name", "S6"), ("grid", "<i2", (2, 2))])


def row(number):
    return np.array((number, number / 2, b"n%d" % number, [[1, 2], [3, number]]), ROW)[()]


def outer():
    return Outer((Packed(1, 0.5, b"one"), Packed(2, 0.25, b"two")), 7)


VALUES = {
    "bytes": (bytes, [b"", b"a", b"\0" * 100, bytes(range(256)) * 4000]),
    "str": (str, ["", "a", "straße\0東京", "x" * 1_000_000]),
    "int": (int, [0, -1, 2**63 - 1, -(2**63)]),
    "float": (float, [0.0, -1.5, math.inf, 5e-324]),
    "bool": (bool, [True, False]),
    "object": (object, [None, [1, {"a": {2, 3}}], "text", (), b"\0" * 300_000, ValueError]),
    "struct": ("<qd", [(1, 2.5), (-(2**63), -0.0)]),
    "struct of one": ("<H", [0, 65535]),
    "struct, native": ("b?5sxi", [(-1, True, b"abcde", 2**31 - 1)]),
    "dtype": (np.dtype("<i4"), [np.int32(5), np.int32(-(2**31))]),
    "class of numpy": (np.float32, [np.float32(0.1)]),
    "datetime": (np.dtype("M8[s]"), [np.datetime64("2026-11-22T10:00:00")]),
    "text of numpy": (np.dtype("U3"), [np.str_("äöü"), np.str_("")]),
    "row": (ROW, [row(1), row(7)]),
}


@pytest.mark.parametrize(("declared", "values"), VALUES.values(), ids=VALUES)
def test_a_value_comes_back_as_it_was_stored(make_dict, declared, values):
    d = make_dict(key=int, value=declared)
    for number, value in enumerate(values):
        d[number] = value

    for number, value in enumerate(values):
        found = d[number]
        assert found == value
        assert type(found) is type(value)
    assert len(list(d.values())) == len(values)
    assert [d.pop(number) == value for number, value in enumerate(values)] == [True] * len(values)


KEYS = {
    "bytes": (bytes, [b"", b"a", b"k" * 15, b"k" * 16, b"k" * 65_535]),
    "str": (str, ["", "ä", "k" * 300]),
    "int": (int, [0, -1, 2**63 - 1, -(2**63)]),
    "float": (float, [0.5, math.inf, -math.inf]),
    "bool": (bool, [True, False]),
    "object": (object, [None, "a", 1, (1, "a"), frozenset("ab"), 10**40]),
    "struct": ("<Hd", [(1, 2.5), (1, -2.5)]),
    "struct of one": ("4s", [b"abcd", b"abce"]),
    "dtype": (np.dtype("<i4"), [np.int32(5), np.int32(-5)]),
    "row": (np.dtype([("x", "<i4"), ("y", "<i4")]), [np.void((1, 2), "<i4,<i4")]),
}


@pytest.mark.parametrize(("declared", "keys"), KEYS.values(), ids=KEYS)
def test_a_key_comes_back_as_it_was_stored(make_dict, declared, keys):
    d = make_dict(key=declared, value=int)
    for number, key in enumerate(keys):
        if isinstance(key, np.void):
            key = np.array((1, 2), declared)[()]
        d[key] = number

    assert sorted(d.values()) == list(range(len(keys)))
    for key, number in d.items():
        assert tuple(key) == (1, 2) if isinstance(key, np.void) else key == keys[number]
        assert d[key] == number
        assert key in d
        del d[key]
    assert len(d) == 0


@pytest.mark.parametrize("declared", [float, "<d", np.dtype("<f8"), object, "<dq"])
def test_both_zeros_are_one_key(make_dict, declared):
    d = make_dict(key=declared, value=int)
    zero, minus = ((0.0, 1), (-0.0, 1)) if declared == "<dq" else (0.0, -0.0)

    d[minus] = 1

    assert d[zero] == 1
    assert list(d) == [zero]
    assert d.setdefault(zero, 2) == 1
    assert len(d) == 1


# ctypes.


def test_structures_come_back_as_copies(make_dict):
    d = make_dict(key=Packed, value=Outer)
    key = Packed(3, 0.5, b"three")

    d[key] = outer()
    found = d[Packed(3, 0.5, b"three")]
    found.count = 8

    assert (found.inner[1].name, d[key].count) == (b"two", 7)
    assert bytes(d[key]) == bytes(outer())
    assert [bytes(one) for one in d] == [bytes(key)]


def test_unions_are_values_and_keys(make_dict):
    d = make_dict(key=Either, value=Either)

    d[Either(number=5)] = Either(number=2**64 - 1)

    assert list(d[Either(number=5)].raw) == [255] * 8


@pytest.mark.parametrize("cls", [Gapped, Outer])
def test_a_structure_with_unused_bytes_is_refused_as_a_key(make_dict, cls):
    """A ctypes structure with unused bytes is refused as a key, because equal keys could differ in
    these bytes; as a value it is accepted."""
    value = Gapped(1, 2.0) if cls is Gapped else outer()
    with make_dict(key=int, value=cls) as d:
        d[1] = value
        assert bytes(d[1]) == bytes(value)

    if cls is Outer:
        assert ctypes.sizeof(Outer) == 36
        return
    with pytest.raises(shmrhash.InvalidArgument, match="unused bytes"):
        codec_for(cls, "key")


@pytest.mark.parametrize("cls", [Address, Deep])
def test_a_structure_with_addresses_is_refused(cls):
    with pytest.raises(shmrhash.InvalidArgument, match="address"):
        codec_for(cls, "value")


# Dataclasses and msgspec.


@need_msgspec
def test_dataclasses_are_values_and_keys(make_dict):
    d = make_dict(key=Place, value=Sample)
    sample = Sample("a" * 5000, [0.5, 1.5], None)

    d[Place("High Street", 3)] = sample

    assert d[Place("High Street", 3)] == sample
    assert Place("High Street", 4) not in d
    assert list(d.items()) == [(Place("High Street", 3), sample)]
    with pytest.raises(TypeError, match="value must be Sample, not dict"):
        d[Place("x", 1)] = {"name": "a", "weights": []}


@need_msgspec
def test_msgspec_structs_are_values(make_dict):
    import msgspec

    class Event(msgspec.Struct):
        at: float
        tags: set[str]

    d = make_dict(key=str, value=Event)

    d["a"] = Event(1.5, {"x", "y"})

    assert d["a"] == Event(1.5, {"x", "y"})


def test_without_msgspec_the_error_for_a_dataclass_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)

    with pytest.raises(ImportError, match=r"pip install 'shmrhash\[msgspec\]'"):
        SharedDict(key=str, value=Sample)


def test_without_numpy_only_arrays_are_refused(tmp_path):
    """A process that cannot import NumPy can use a dict of objects; Array raises an ImportError."""
    program = """
        import sys
        sys.modules["numpy"] = None
        from shmrhash import Array, SharedDict
        with SharedDict(key=str, value=object) as d:
            d["a"] = [1]
            assert d["a"] == [1]
        try:
            Array("f8")
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,  # Python puts the working directory before the installed package
    )

    assert "pip install 'shmrhash[numpy]'" in done.stdout


# Unfit types and values.

WRONG_VALUES = [
    (int, "1", TypeError, "value must be int, not str"),
    (int, 1.0, TypeError, "value must be int, not float"),
    (int, 2**63, OverflowError, ""),
    (int, -(2**63) - 1, OverflowError, ""),
    (float, "1", TypeError, "value must be float, not str"),
    (bool, 1, TypeError, "value must be bool, not int"),
    (bytes, "a", TypeError, "bytes"),
    (str, b"a", TypeError, "value must be str, not bytes"),
    (object, lambda: 0, Exception, "pickle"),
    ("<qd", (1,), TypeError, "struct format '<qd'"),
    ("<qd", [1, 2.0], TypeError, "not list"),
    ("<qd", (1, "x"), TypeError, "struct format '<qd'"),
    ("<B", 256, OverflowError, "struct format '<B'"),
    ("<q", 2**63, OverflowError, "struct format '<q'"),
    (np.dtype("<i4"), 0.5, TypeError, "dtype int32, not float"),
    (np.dtype("<i4"), "5", TypeError, "not str"),
    (np.dtype("<i4"), 2**31, OverflowError, "does not fit"),
    (np.dtype("<i4"), [1], TypeError, "shape"),
    (np.dtype("U3"), "abcd", OverflowError, "does not fit"),
    (ROW, np.zeros((), "<i4,<i4")[()], TypeError, "must be of the dtype"),
    (Packed, (1, 2.0, b""), TypeError, "value must be Packed, not tuple"),
    (Array("f8"), "text", TypeError, "array of float64"),
    (Array("f8", (2, 2)), np.zeros(4), TypeError, r"shape \(2, 2\), not \(4,\)"),
    (Array("i4"), np.zeros(4), TypeError, "int32"),
]


@pytest.mark.parametrize(("declared", "value", "error", "complaint"), WRONG_VALUES)
def test_a_value_of_another_type_is_refused_and_nothing_stored(
    make_dict, declared, value, error, complaint
):
    d = make_dict(key=str, value=declared)

    for use in (
        lambda: d.__setitem__("a" * 40, value),
        lambda: d.setdefault("a", value),
        lambda: d.set("a", value),
        lambda: d.update({"a": value}),
    ):
        with pytest.raises(error, match=complaint):
            use()
    assert len(d) == 0
    assert d.info()["objects"]["count"] == 0


@pytest.mark.parametrize(
    ("declared", "key", "error", "complaint"),
    [
        (int, "1", TypeError, "key must be int, not str"),
        (int, None, TypeError, "key must be int, not NoneType"),
        (int, 2**63, OverflowError, ""),
        (float, "1", TypeError, "key must be float, not str"),
        (bool, 1, TypeError, "key must be bool, not int"),
        (bytes, "a", TypeError, "key must be bytes, not str"),
        (str, b"a", TypeError, "key must be str, not bytes"),
        ("<qd", 1, TypeError, "key must be a tuple for the struct format '<qd', not int"),
        (np.dtype("<i4"), "5", TypeError, "key must be of the dtype int32"),
        (Packed, b"", TypeError, "key must be Packed, not bytes"),
    ],
)
def test_a_key_of_another_type_is_refused(make_dict, declared, key, error, complaint):
    d = make_dict(key=declared, value=int)

    for use in (d.__getitem__, d.get, d.pop, d.__delitem__, lambda key: d.__setitem__(key, 1)):
        with pytest.raises(error, match=complaint):
            use(key)
    assert key not in d
    assert len(d) == 0


def test_a_value_that_cannot_be_pickled_leaves_the_old_value(make_dict):
    d = make_dict()
    d["a"] = [1]

    for value in (lambda: 0, (x for x in "a"), sys.stdout):
        with pytest.raises(Exception, match=r"pickle|local object|local class"):
            d["a"] = value
    assert d["a"] == [1]


@pytest.mark.parametrize(
    ("declared", "error", "complaint"),
    [
        (list, TypeError, "not list"),
        (dict[str, int], TypeError, "dict"),
        (5, TypeError, "not 5"),
        (None, TypeError, "not None"),
        ("<t", shmrhash.InvalidArgument, "not a struct format"),
        ("", shmrhash.InvalidArgument, "no items"),
        ("4x", shmrhash.InvalidArgument, "no items"),
        (np.dtype("O"), shmrhash.InvalidArgument, "Python objects"),
        (np.dtype("U"), shmrhash.InvalidArgument, "no size"),
    ],
)
@pytest.mark.parametrize("role", ["key", "value"])
def test_a_declared_type_that_is_no_type_is_refused(declared, error, complaint, role):
    with pytest.raises(error, match=complaint):
        SharedDict(**({"key": int, "value": int} | {role: declared}))


@pytest.mark.parametrize("declared", [Array("f8"), Array("f8", 3), np.dtype(("f8", (3,)))])
def test_arrays_are_refused_as_keys(declared):
    with pytest.raises((TypeError, shmrhash.InvalidArgument), match="hash"):
        SharedDict(key=declared, value=int)


def test_a_dtype_with_unused_bytes_is_refused_as_a_key():
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)

    with pytest.raises(shmrhash.InvalidArgument, match="unused bytes"):
        SharedDict(key=aligned, value=int)
