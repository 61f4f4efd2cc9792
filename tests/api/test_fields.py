"""Numbers inside values: add, min, max, or_, and_ in every format, at every place in a value."""

import operator
import random
import struct

import pytest
from support.jobs import word

import shmrhash

VALUE_SIZE = 24
INTEGERS = "bBhHiIqQ"
FLOATS = "fd"
OFFSETS = [0, 1, 3, 5, 7, 8, 13, 15, 16]  # within a word, across two, up to the end
OPERATIONS = {
    "add": operator.add,
    "min": min,
    "max": max,
    "or_": operator.or_,
    "and_": operator.and_,
}


@pytest.fixture
def m(make_map):
    return make_map(value_size=VALUE_SIZE)


def limits(fmt):
    bits = 8 * struct.calcsize(f"<{fmt}")
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if fmt.islower() else (0, (1 << bits) - 1)


def wrapped(fmt, number):
    low, high = limits(fmt)
    return (number - low) % (high - low + 1) + low


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_a_field_changes_that_field_only(m, seed, operation, fmt, offset):
    """W1: an operation's result is Python's, wrapped around; all bytes beside the field stay."""
    rng = random.Random(f"{seed} {operation} {fmt} {offset}")
    low, high = limits(fmt)
    numbers = [low, high, 0, 1, *(rng.randint(low, high) for _ in range(6))]
    value = bytearray(rng.randbytes(VALUE_SIZE))
    for number in rng.sample(numbers, len(numbers)):
        before = rng.choice(numbers)
        struct.pack_into(f"<{fmt}", value, offset, before)
        m[word(1)] = bytes(value)

        told = getattr(m, operation)(word(1), number, fmt=fmt, offset=offset)

        expected = wrapped(fmt, OPERATIONS[operation](before, number))
        struct.pack_into(f"<{fmt}", value, offset, expected)
        assert (expected, bytes(value)) == (told, m[word(1)])


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("fmt", FLOATS)
@pytest.mark.parametrize("operation", ["add", "min", "max"])
def test_an_operation_on_a_float_changes_that_float_only(m, operation, fmt, offset):
    """W1: an operation on a float is exact for halves and quarters; all bytes beside it stay."""
    for before, number in [(1.5, 2.25), (2.25, -1.5), (float("inf"), 1.0), (0.0, float("-inf"))]:
        value = bytearray(b"\xa5" * VALUE_SIZE)
        struct.pack_into(f"<{fmt}", value, offset, before)
        m[word(1)] = bytes(value)

        told = getattr(m, operation)(word(1), number, fmt=fmt, offset=offset)

        expected = OPERATIONS[operation](before, number)
        struct.pack_into(f"<{fmt}", value, offset, expected)
        assert (expected, bytes(value)) == (told, m[word(1)])


@pytest.mark.parametrize("fmt", INTEGERS + FLOATS)
@pytest.mark.parametrize("operation", ["add", "min", "max"])
def test_an_operation_on_an_absent_key_begins_with_the_default(m, operation, fmt):
    """W1: an absent key gets the default among zeros; without a default it is an error."""
    with pytest.raises(shmrhash.KeyNotFound):
        getattr(m, operation)(word(1), 5, fmt=fmt, offset=9)

    told = getattr(m, operation)(word(1), 5, default=20, fmt=fmt, offset=9)

    expected = bytearray(VALUE_SIZE)
    struct.pack_into(f"<{fmt}", expected, 9, OPERATIONS[operation](20, 5))
    assert (OPERATIONS[operation](20, 5), bytes(expected)) == (told, m[word(1)])


@pytest.mark.parametrize("fmt", INTEGERS + FLOATS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_field_that_is_not_inside_the_value_is_refused(m, operation, fmt):
    """R2: an offset before the value, or too near to its end for the field, is refused."""
    m[word(1)] = bytes(VALUE_SIZE)
    size = struct.calcsize(f"<{fmt}")
    for offset in (-1, VALUE_SIZE - size + 1, VALUE_SIZE, 1 << 62):
        with pytest.raises(shmrhash.InvalidArgument):
            getattr(m, operation)(word(1), 1, fmt=fmt, offset=offset)
    assert bytes(VALUE_SIZE) == m[word(1)]


@pytest.mark.parametrize("fmt", ["", "x", "qq", "<q", "n", None, 8])
def test_an_unknown_format_is_refused(m, fmt):
    with pytest.raises(shmrhash.InvalidArgument):
        m.add(word(1), 1, default=0, fmt=fmt)
    assert word(1) not in m


@pytest.mark.parametrize("fmt", FLOATS)
@pytest.mark.parametrize("operation", ["or_", "and_"])
def test_bits_of_a_float_are_refused(m, operation, fmt):
    m[word(1)] = bytes(VALUE_SIZE)
    with pytest.raises(shmrhash.InvalidArgument, match="integers"):
        getattr(m, operation)(word(1), 1, fmt=fmt)


@pytest.mark.parametrize("fmt", INTEGERS)
@pytest.mark.parametrize("operation", ["min", "max", "or_", "and_"])
def test_min_max_and_bit_operations_refuse_a_number_that_does_not_fit(m, operation, fmt):
    m[word(1)] = bytes(VALUE_SIZE)
    low, high = limits(fmt)
    for number in (low - 1, high + 1):
        with pytest.raises(shmrhash.InvalidArgument, match="fit"):
            getattr(m, operation)(word(1), number, fmt=fmt)
    assert bytes(VALUE_SIZE) == m[word(1)]
