"""Operations on numbers inside values, from bits to bits: every operation in every format."""

import math
import operator
import random
import struct

import numpy as np
import pytest

ADD, MIN, MAX, OR, AND = range(5)
SIGNED, UNSIGNED, FLOAT = range(3)
FORMATS = {
    "b": (SIGNED, 1),
    "B": (UNSIGNED, 1),
    "h": (SIGNED, 2),
    "H": (UNSIGNED, 2),
    "i": (SIGNED, 4),
    "I": (UNSIGNED, 4),
    "q": (SIGNED, 8),
    "Q": (UNSIGNED, 8),
    "f": (FLOAT, 4),
    "d": (FLOAT, 8),
}
INTEGERS, FLOATS = "bBhHiIqQ", "fd"
PYTHON = {ADD: operator.add, MIN: min, MAX: max, OR: operator.or_, AND: operator.and_}
NAN_PAYLOAD = {"f": 0x7FC0_1234, "d": 0x7FF8_0000_0000_1234}
TYPES = {"f": np.float32, "d": np.float64}

integers = pytest.mark.parametrize("fmt", INTEGERS)
floats = pytest.mark.parametrize("fmt", FLOATS)


def to_bits(fmt, number):
    return int.from_bytes(struct.pack(f"<{fmt}", number), "little")


def from_bits(fmt, bits):
    """The number; bits beyond the field's size are an error."""
    return struct.unpack(f"<{fmt}", bits.to_bytes(FORMATS[fmt][1], "little"))[0]


def computed(unit, fmt, operation, before, operand):
    bits = unit.field_compute(*FORMATS[fmt], operation, to_bits(fmt, operand), to_bits(fmt, before))
    return from_bits(fmt, bits)


def wrapped(fmt, number):
    kind, size = FORMATS[fmt]
    number %= 1 << 8 * size
    return number - (1 << 8 * size) if kind == SIGNED and number >> 8 * size - 1 else number


def edges(fmt):
    """The numbers at which the format's behaviour changes."""
    bits = 8 * FORMATS[fmt][1]
    around = [0, 1, 2, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1, (1 << bits) - 1]
    return sorted({wrapped(fmt, number) for number in around})


@pytest.mark.parametrize("operation", PYTHON)
@pytest.mark.parametrize("fmt", "bB")
def test_all_pairs_of_bytes_are_computed_as_in_python(unit, fmt, operation):
    """W1: all 65,536 pairs; sums wrap around."""
    numbers = [wrapped(fmt, number) for number in range(256)]
    for before in numbers:
        for operand in numbers:
            expected = wrapped(fmt, PYTHON[operation](before, operand))
            assert computed(unit, fmt, operation, before, operand) == expected


@pytest.mark.parametrize("operation", PYTHON)
@integers
def test_integers_are_computed_as_in_python(unit, seed, fmt, operation):
    """W1: all pairs of the format's edges, and a thousand random pairs."""
    rng = random.Random(f"{seed} {fmt} {operation}")
    low, high = min(edges(fmt)), max(edges(fmt))
    pairs = [(a, b) for a in edges(fmt) for b in edges(fmt)]
    pairs += [(rng.randint(low, high), rng.randint(low, high)) for _ in range(1000)]
    for before, operand in pairs:
        expected = wrapped(fmt, PYTHON[operation](before, operand))
        assert computed(unit, fmt, operation, before, operand) == expected


def floats_to_try(fmt):
    limits = np.finfo(TYPES[fmt])
    sizes = [0.0, 0.5, 1.0, 1 / 3, 1e10, limits.max, limits.tiny, limits.smallest_subnormal]
    return [TYPES[fmt](sign * size) for size in [*sizes, math.inf] for sign in (1, -1)]


@floats
def test_floats_are_added_in_their_own_precision(unit, fmt):
    """W1: a sum is rounded once, as in NumPy; overflow is infinity, infinity less itself NaN."""
    with np.errstate(all="ignore"):
        for before in floats_to_try(fmt):
            for operand in floats_to_try(fmt):
                expected = before + operand
                assert expected.dtype == TYPES[fmt]
                found = computed(unit, fmt, ADD, before, operand)
                # repr tells 0.0 from -0.0, and nan is nan.
                assert repr(found) == repr(float(expected)), (before, operand)


@floats
def test_the_lesser_and_the_greater_float_are_found(unit, fmt):
    """W1: floats are compared by value; of two equal ones, 0.0 and -0.0, the stored one stays."""
    for before in floats_to_try(fmt):
        for operand in floats_to_try(fmt):
            lower = operand if operand < before else before
            higher = operand if operand > before else before
            assert repr(computed(unit, fmt, MIN, before, operand)) == repr(float(lower))
            assert repr(computed(unit, fmt, MAX, before, operand)) == repr(float(higher))


@pytest.mark.parametrize("operation", [MIN, MAX])
@floats
def test_nan_stays_as_it_is_and_replaces_no_number(unit, fmt, operation):
    """W1: all bits of the NaN stay, its payload included."""
    nan, one = NAN_PAYLOAD[fmt], to_bits(fmt, 1.0)
    for other in (one, to_bits(fmt, -math.inf), nan ^ 1):
        assert unit.field_compute(*FORMATS[fmt], operation, other, nan) == nan
        assert unit.field_compute(*FORMATS[fmt], operation, nan, other) == other


@floats
def test_sum_with_a_nan_is_nan(unit, fmt):
    for pair in [(NAN_PAYLOAD[fmt], to_bits(fmt, 1.0)), (to_bits(fmt, 1.0), NAN_PAYLOAD[fmt])]:
        assert math.isnan(from_bits(fmt, unit.field_compute(*FORMATS[fmt], ADD, *pair)))


@integers
def test_mask_and_sign_extension_fit_the_size(unit, fmt):
    """field_mask has all bits of the field, and the highest bit is the sign."""
    kind, size = FORMATS[fmt]
    assert unit.field_mask(size) == (1 << 8 * size) - 1
    for number in edges(fmt):
        signed = wrapped(fmt.lower(), number)
        assert unit.sign_extended(to_bits(fmt, number), size) == signed
        assert kind == UNSIGNED or signed == number


@floats
def test_floats_survive_the_conversion_to_bits(unit, fmt):
    """Bits to floats and back; a double that is too large for a float becomes infinity."""
    size = FORMATS[fmt][1]
    for number in floats_to_try(fmt):
        assert unit.bits_of(float(number), size) == to_bits(fmt, number)
        assert repr(unit.float_of(to_bits(fmt, number), size)) == repr(float(number))
    assert unit.bits_of(1e300, 4) == to_bits("f", math.inf)
