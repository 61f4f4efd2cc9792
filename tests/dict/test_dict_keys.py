"""Keys of every type and length: equal keys are one key, different ones are not."""

import dataclasses
import decimal
import enum
import fractions
import math
import uuid
from collections import namedtuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import shmrhash
from shmrhash._types.keys import decode_key, encode_key

LENGTHS = [*range(40), 254, 255, 256, 257, 4095, 4096, 65533, 65534, 65535]
EDGE = 15  # bytes of the longest key that is stored in the element

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Number(enum.IntEnum):
    ONE = 1


class Name(str):
    pass


class Odd(str):
    """A str that equals every str of the same length."""

    def __eq__(self, other):
        return len(self) == len(other)

    def __hash__(self):
        return len(self)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(alphabet=st.characters())
    | st.binary()
)
plain_keys = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=12,
)


@hypothesis.given(plain_keys)
def test_a_key_comes_back_equal(key):
    assert decode_key(encode_key(key)) == key


@hypothesis.given(plain_keys, plain_keys)
def test_keys_have_equal_bytes_if_and_only_if_they_are_equal(one, other):
    """Two keys have equal bytes exactly if they are equal, also if their types differ: the strategy
    makes numbers of several types, alone and inside tuples."""
    assert (encode_key(one) == encode_key(other)) == (one == other)


@hypothesis.given(st.integers(-(2**70), 2**70))
def test_equal_numbers_of_any_type_are_one_key(number):
    bytes_of = encode_key(number)

    assert encode_key(fractions.Fraction(number)) == bytes_of
    assert encode_key(decimal.Decimal(number)) == bytes_of
    if float(number) == number:
        assert encode_key(float(number)) == bytes_of
        assert encode_key(complex(number)) == bytes_of
    if -(2**63) <= number < 2**63:
        assert encode_key(np.int64(number)) == bytes_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1),
        (False, 0.0),
        (-0.0, 0),
        (1e300, int(1e300)),
        (Number.ONE, 1),
        (Name("a"), "a"),
        (np.str_("a"), "a"),
        (Point(1, 2), (1, 2)),
        (np.float32(0.5), 0.5),
        (fractions.Fraction(1, 4), 0.25),
        (math.inf, decimal.Decimal("inf")),
        ((1, (2.0, None)), (True, (2, None))),
        (frozenset([1, 2, 3]), frozenset([3.0, 2.0, 1.0])),
    ],
)
def test_equal_keys_of_different_types_are_one_key(one, other):
    assert one == other
    assert encode_key(one) == encode_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", 1),
        ("a", b"a"),
        ("", ()),
        (None, "None"),
        ((), frozenset()),
        (("a", "b"), ("ab",)),
        (("a", ("b",)), ("a", "b")),
        ((b"a" * 254,), (b"a" * 255,)),
        (0.1, decimal.Decimal("0.1")),
        (0.1, np.float32(0.1)),
        (2**53, 2**53 + 1),
        (1e300, 10**300),
        (255, -1),
        (Colour.RED, Colour.GREEN),
        (int, float),
    ],
)
def test_unequal_keys_are_two_keys(one, other):
    assert encode_key(one) != encode_key(other)


def test_a_nan_is_found_again(make_dict):
    """A NaN is found by its bytes, and a NaN with other bytes is another key. A plain dict finds a
    NaN only by the same object."""
    for key_type in (object, float):
        d = make_dict(key=key_type, value=int)
        d[math.nan] = 1
        d[float("nan")] = 2
        d[math.copysign(math.nan, -1)] = 3

        assert (len(d), d[math.nan], d[-math.nan]) == (2, 2, 3)


def test_objects_are_keys_if_their_equality_is_known(make_dict):
    """Equal objects made separately are one key, whether or not they share their parts."""
    d = make_dict(value=int)
    text = "".join(["sh", "ared"])
    d[uuid.UUID(int=5)] = 1
    d[Colour.RED] = 2
    d[(Colour.GREEN, fractions.Fraction(1, 3))] = 3
    d[slice_like := range(3)] = 4

    assert d[uuid.UUID(int=5)] == 1
    assert d[Colour.RED] == 2
    assert d[(Colour.GREEN, fractions.Fraction(2, 6))] == 3
    assert d[range(3)] == 4
    assert encode_key(Twice(text, text)) == encode_key(Twice("shared", "".join("shared")))
    with pytest.raises(TypeError, match="equality of its own"):
        encode_key(Odd("ab"))
    assert set(d) == {
        uuid.UUID(int=5),
        Colour.RED,
        (Colour.GREEN, fractions.Fraction(1, 3)),
        slice_like,
    }


@dataclasses.dataclass(frozen=True)
class Twice:
    one: str
    other: str


@pytest.mark.parametrize("key", [[], {}, set(), bytearray(b"a"), ([],), (1, {2: 3})])
def test_an_unhashable_key_is_a_type_error(make_dict, key):
    d = make_dict()

    for use in (d.__getitem__, d.get, d.pop, d.__contains__, lambda key: d.__setitem__(key, 1)):
        with pytest.raises(TypeError):
            use(key)
    assert len(d) == 0


@pytest.mark.parametrize("key_type", [bytes, str, object])
def test_keys_of_every_length_are_kept_apart(make_dict, key_type):
    """Keys of lengths around the 15 bytes that fit into the element are different keys, also if
    they differ only at the end."""
    d = make_dict(key=key_type, value=int)
    extra = 1 if key_type is object else 0  # the tag that precedes an encoded object
    keys = {}
    for length in LENGTHS:
        data = b"k" * max(0, length - extra)
        for last in (b"a", b"b"):
            key = data[:-1] + last if data else data
            keys[key if key_type is bytes else key.decode()] = length
    for key, length in keys.items():
        d[key] = length

    assert len(d) == len(keys)
    assert d == keys
    assert all(d[key] == length for key, length in keys.items())
    assert set(d.keys()) == set(keys)
    for key in list(keys)[::2]:
        assert d.pop(key) == keys.pop(key)
    assert d == keys


@pytest.mark.parametrize("size", [EDGE - 1, EDGE, EDGE + 1, 16, 17])
def test_keys_with_every_last_byte_are_kept_apart(make_dict, size):
    """Keys that differ in the last byte are different, also if that byte looks like a length or
    like the mark of a digest."""
    d = make_dict(key=bytes, value=int)
    for last in range(256):
        d[bytes(size - 1) + bytes([last])] = last
        d[bytes([last]) * size] = -last

    assert len(d) == 511
    assert all(d[bytes(size - 1) + bytes([last])] == last for last in range(1, 256))


@pytest.mark.parametrize("key_type", [bytes, str, object])
def test_a_key_that_is_too_long_is_refused(make_dict, key_type):
    d = make_dict(key=key_type, value=int)
    key = b"k" * 65_536 if key_type is bytes else "k" * 65_536

    for use in (d.get, d.pop, lambda key: d.__setitem__(key, 1)):
        with pytest.raises(shmrhash.TooLarge, match=r"65,?535"):
            use(key)
    assert len(d) == 0
