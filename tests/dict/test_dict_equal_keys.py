"""Equal keys are one key, whatever they were made of; a returned key equals the stored one."""

import dataclasses
import datetime as dt
import enum
import fractions
import ipaddress
import math
import os
import pathlib
import re
import subprocess
import sys
import uuid
import zoneinfo
from collections import namedtuple
from decimal import Decimal

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import shmrhash
from shmrhash import SharedDict
from shmrhash._types.keys import decode_key, encode_key

UTC = dt.timezone.utc
PLUS = dt.timezone(dt.timedelta(hours=5, minutes=30))
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=UTC)
Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = 1
    ROUGE = 1  # noqa: PIE796 (another name of the same member)
    BLUE = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Place:
    street: str
    numbers: frozenset


@dataclasses.dataclass(frozen=True)
class Measured:
    at: float
    length: int = dataclasses.field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class Partly:
    name: str
    note: str = dataclasses.field(compare=False, default="")


@dataclasses.dataclass(frozen=True)
class OwnEquality:
    name: str

    def __eq__(self, other):
        return self.name.lower() == other.name.lower()

    def __hash__(self):
        return hash(self.name.lower())


class Own:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


class Plain:
    pass


EQUAL = {
    "decimals": (
        Decimal("19.90"),
        Decimal("19.9"),
        Decimal("1990E-2"),
        fractions.Fraction(199, 10),
    ),
    "long decimals": (Decimal("1." + "7" * 9000), Decimal("1." + "7" * 9000 + "00")),
    "thirds": (fractions.Fraction(1, 3), fractions.Fraction(2, 6)),
    "whole numbers": (5, 5.0, Decimal("5.00"), fractions.Fraction(10, 2), 5 + 0j, np.int8(5)),
    "halves": (0.5, Decimal("0.50"), fractions.Fraction(1, 2), 0.5 + 0j, np.float32(0.5)),
    "zeros": (0, 0.0, -0.0, False, Decimal("-0.0"), Decimal("0E+5"), np.False_, complex(0, -0.0)),
    "ones": (1, True, Level.LOW, np.True_, np.uint64(1), Decimal(1)),
    "complex": (1j, complex(0.0, 1.0), complex(-0.0, 1.0), np.complex64(1j)),
    "infinity": (math.inf, Decimal("Infinity"), np.float16(np.inf)),
    "uuids": (
        uuid.UUID(int=5),
        uuid.UUID(str(uuid.UUID(int=5))),
        uuid.UUID(bytes=bytes(15) + b"\5"),
    ),
    "paths": (
        pathlib.PurePosixPath("data") / "a.csv",
        pathlib.PurePosixPath("data//./a.csv"),
        pathlib.Path("data/a.csv"),
    ),
    "windows": (pathlib.PureWindowsPath("C:\\A\\b"), pathlib.PureWindowsPath("c:/a/B")),
    "aware": (
        NOON,
        NOON.replace(tzinfo=zoneinfo.ZoneInfo("UTC")),
        NOON.astimezone(PLUS),
        NOON.astimezone(zoneinfo.ZoneInfo("America/New_York")),
    ),
    "naive": (
        dt.datetime(2026, 1, 1),
        dt.datetime(2026, 1, 1, fold=1),
        dt.datetime.fromisoformat("2026-01-01T00:00:00.000000"),
        np.datetime64("2026-01-01T00", "us"),
    ),
    "dates": (dt.date(2026, 1, 1), dt.date.fromordinal(dt.date(2026, 1, 1).toordinal())),
    "times": (dt.time(12), dt.time(12, fold=1), dt.time.fromisoformat("12:00:00.000000")),
    "times with offsets": (dt.time(12, tzinfo=UTC), dt.time(17, 30, tzinfo=PLUS)),
    "times before the day": (dt.time(1, tzinfo=PLUS), dt.time(1, tzinfo=PLUS, fold=1)),
    "spans": (
        dt.timedelta(days=1),
        dt.timedelta(hours=24),
        np.timedelta64(1, "D"),
        np.timedelta64(86_400_000, "ms"),
    ),
    "zones": (UTC, dt.timezone(dt.timedelta(0)), dt.timezone(dt.timedelta(0), "named")),
    "ranges": (range(0, 10, 3), range(0, 12, 3)),
    "empty ranges": (range(0), range(5, 5), range(9, 0, 2)),
    "ranges of one": (range(3, 4), range(3, 5, 2), range(3, 0, -7)),
    "members": (Colour.RED, Colour.ROUGE, Colour(1), Colour["RED"]),
    "flags": (Right.READ | Right.WRITE, Right(3)),
    "addresses": (ipaddress.ip_address("127.0.0.1"), ipaddress.IPv4Address(0x7F000001)),
    "networks": (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.0.0.0/255.0.0.0")),
    "tuples": ((1, "a"), Pair(1.0, "a"), Pair(True, np.str_("a"))),
    "sets": (frozenset("abc"), frozenset("cba"), frozenset(["c", "a", "b", "a"])),
    "bytes": (b"abc", np.bytes_(b"abc"), memoryview(b"abc")),
    "patterns": (re.compile("a+"), re.compile("a+", re.UNICODE)),
    "classes": (int, int),
    "functions": (os.path.join, getattr(os.path, "join")),  # noqa: B009
    "ellipses": (..., Ellipsis),
    "dataclasses": (
        Place("a", frozenset(["x", "y", Decimal("1.0")])),
        Place(np.str_("a"), frozenset([1, "y", "x"])),
    ),
    "dataclasses with a default": (Measured(1), Measured(1.0)),
    "inside": ((NOON, (Decimal("1.10"),)), (NOON.astimezone(PLUS), (Decimal("1.1"),))),
}


@pytest.mark.parametrize("keys", EQUAL.values(), ids=EQUAL)
def test_equal_keys_made_in_different_ways_are_one_key(make_dict, keys):
    """Two equal keys, made in different ways, are one key, as in a plain dict; the key that the
    SharedDict returns is equal to both, and finds the entry."""
    assert len(dict.fromkeys(keys)) == 1

    for put in keys:
        d = SharedDict(value=int)
        d[put] = 1
        for key in keys:
            assert key in d
            d[key] = 2
        assert len(d) == 1
        (found,) = d
        assert found == put
        assert hash(found) == hash(put)
        assert d[found] == 2
        d.close()


DIFFERENT = [
    (dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)),
    (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=UTC)),
    (dt.time(12), dt.time(12, tzinfo=UTC)),
    (dt.time(1, tzinfo=UTC), dt.time(1, tzinfo=PLUS)),
    (pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")),
    (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("A")),
    (pathlib.PurePosixPath("a"), "a"),
    (uuid.UUID(int=5), uuid.UUID(int=5).bytes),
    (Decimal("0.1"), 0.1),
    (Colour.RED, Colour.BLUE),
    (Colour.RED, 1),
    (range(3), (0, 1, 2)),
    (range(3), range(1, 4)),
    (ipaddress.ip_address("::1"), ipaddress.ip_address("0.0.0.1")),
    (dt.timedelta(1), dt.timedelta(2)),
    (Place("a", frozenset()), ("a", frozenset())),
    (1j, 1),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_keys_of_similar_types_are_two_keys(one, other):
    assert one != other
    assert encode_key(one) != encode_key(other)


numbers = (
    st.integers()
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.complex_numbers(allow_nan=False)
    | st.booleans()
)
zones = st.none() | st.integers(-1439, 1439).map(
    lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))
)
hashables = (
    numbers
    | st.dates()
    | st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=zones)
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.uuids()
    | st.builds(range, st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([1, 2, 3, -1, -2]))
    | st.ip_addresses()
    | st.sampled_from(Colour)
    | st.text().map(pathlib.PurePosixPath)
)
keys = st.recursive(
    hashables,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)


@hypothesis.given(keys)
def test_any_key_comes_back_equal(key):
    found = decode_key(encode_key(key))

    assert found == key
    assert hash(found) == hash(key)
    assert encode_key(found) == encode_key(key)


@hypothesis.given(keys, keys)
def test_bytes_are_equal_if_and_only_if_keys_are(one, other):
    assert (encode_key(one) == encode_key(other)) == (one == other)


@hypothesis.given(
    st.sampled_from([range(-6, 7)]).flatmap(lambda r: st.tuples(*[st.sampled_from(r)] * 6))
)
def test_ranges_are_equal_if_and_only_if_their_bytes_are(parts):
    one, other = (range(*part[:2], part[2] or 1) for part in (parts[:3], parts[3:]))

    assert (encode_key(one) == encode_key(other)) == (one == other)


@hypothesis.given(numbers, numbers)
def test_numbers_are_equal_if_and_only_if_their_bytes_are(one, other):
    assert (encode_key(one) == encode_key(other)) == (one == other)


@pytest.mark.parametrize(
    "key",
    [
        Own(),
        Plain(),
        OwnEquality("a"),
        Partly("a"),
        (1, Own()),
        frozenset([Plain()]),
        Decimal("NaN"),
        np.datetime64("NaT"),
        np.datetime64(1, "ns"),
        np.dtype("i4"),
        ValueError("a"),
        lambda: 0,
        [].append,
    ],
    ids=lambda key: type(key).__name__,
)
def test_a_key_whose_equality_is_unknown_is_refused(make_dict, key):
    d = make_dict(value=int)

    assert key not in d
    for use in (d.get, d.pop, lambda key: d.__setitem__(key, 1), lambda key: d.add(key, 1, 0)):
        with pytest.raises(TypeError, match="cannot be a key: "):
            use(key)
    assert len(d) == 0


@pytest.mark.parametrize("text", ["1E+999999999", "1E-999999999", "-3E+200000"])
def test_a_decimal_that_is_too_long_is_refused_at_once(make_dict, text):
    d = make_dict(value=int)

    assert Decimal(text) not in d
    with pytest.raises(shmrhash.TooLarge):
        d[Decimal(text)] = 1


def test_the_repeated_hour_is_two_hours(make_dict):
    """Python calls the two times equal; as keys they are different, because the moments differ."""
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    first, second = (dt.datetime(2025, 10, 26, 2, 30, tzinfo=zone, fold=fold) for fold in (0, 1))
    d = make_dict(value=int)

    d[first], d[second] = 1, 2

    assert [d[first], d[second]] == [1, 2]
    assert {key.timestamp() for key in d} == {first.timestamp(), second.timestamp()}


def test_the_function_in_the_bytes_of_a_key_keeps_its_name():
    """The function named in a key's bytes keeps its name; otherwise a new release would not find
    the keys that an earlier one stored."""
    data = encode_key(Place("a", frozenset()))

    assert b"\x8c\x12shmrhash._keykinds\x8c\x0emade_of_fields\x93" in data


def test_keys_do_not_depend_on_the_hash_seed():
    """Processes with different hash seeds make the same key of a frozen dataclass that contains a
    frozenset."""
    program = (
        "import sys, test_dict_equal_keys as t\n"
        "print(t.encode_key(t.Place('a', frozenset('abcdefgh'))).hex())\n"
    )
    here = pathlib.Path(__file__)
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=here.parent,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ
            | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": f"{here.parent}:{here.parents[1]}"},
        ).stdout
        for seed in (1, 2)
    }

    assert len(found) == 1


@dataclasses.dataclass(frozen=True)
class Spot:
    name: str
    x: float


def test_keys_of_a_declared_class_are_equal_if_the_instances_are(make_dict):
    """Instances of a declared class that are equal are one key, also if a float field holds an int
    or -0.0; an instance with a field of another type is refused, and so is a class that does not
    say when two fields are equal."""
    pytest.importorskip("msgspec")
    d = make_dict(key=Spot, value=int)

    d[Spot("a", 1)] = 1
    d[Spot("a", 1.0)] = 2
    d[Spot("b", -0.0)] = 1
    d[Spot("b", 0)] = 2

    assert dict(d) == {Spot("a", 1.0): 2, Spot("b", 0.0): 2}
    with pytest.raises(TypeError, match="does not fit Spot"):
        d[Spot(5, 1.0)] = 1
    for field in (Decimal, object, "int | float"):
        cls = dataclasses.make_dataclass("Unsure", [("a", field)], frozen=True)
        with pytest.raises(shmrhash.InvalidArgument, match="equal"):
            SharedDict(key=cls, value=int)


@pytest.mark.parametrize(
    "data",
    [
        b"r",
        b"r\1n",
        b"u123",
        b"Pp\xff\xfe\xff",
        b"R",
        b"D",
        b"Nx",
        b"A",
        b"H9",
        b"I" + b"\x7f" * 9,
        b"c",
        b"?",
    ],
)
def test_bytes_that_are_no_key_are_damage(data):
    """H1: stored bytes that no key has are reported as damage, because any process with write
    access may store anything."""
    with pytest.raises(shmrhash.SegmentCorrupt):
        decode_key(data)
