"""What atomics.h adds to Cython: the match of seven tags, the fold, the copies of words."""

import random

import pytest


@pytest.mark.parametrize("shift", range(5))
@pytest.mark.thorough
def test_match_finds_exactly_the_equal_tags(unit, seed, shift):
    """match7 agrees with the obvious loop, on tags from a small set so that matches are common.

    The seven tags lie at every distance from a 16-byte boundary.
    """
    rng = random.Random(seed)
    for _ in range(500):
        few = [rng.getrandbits(32) for _ in range(3)]
        tags = [rng.choice(few) for _ in range(7)]
        tag = rng.choice(few)

        expected = sum(1 << index for index in range(7) if tags[index] == tag)

        assert expected == unit.match7(tags, tag, shift)


@pytest.mark.parametrize("position", range(7))
@pytest.mark.parametrize("bit", range(32))
def test_match_compares_every_bit_at_every_position(unit, position, bit):
    """A tag that differs in one bit does not match, and its neighbours do."""
    tags = [0x5A5A5A5A] * 7
    tags[position] ^= 1 << bit

    assert 0x7F & ~(1 << position) == unit.match7(tags, 0x5A5A5A5A)
    assert 1 << position == unit.match7(tags, tags[position])


def test_multiply_fold_mixes_both_halves_of_the_product(unit, seed):
    """The result equals one computed with Python's integers, which do not overflow."""
    rng = random.Random(seed)
    extremes = [(0, 0), (1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (2**63, 2)]
    for a, b in extremes + [(rng.getrandbits(64), rng.getrandbits(64)) for _ in range(2000)]:
        product = a * b
        expected = (product >> 64) ^ (product & (2**64 - 1))

        assert expected == unit.multiply_fold(a, b)


@pytest.mark.parametrize("size", range(41))
def test_bytes_survive_the_copy_into_words_and_the_padding_is_zero(unit, size):
    """Copies from and to every alignment keep the value and touch no byte beside it.

    The rest of the last word becomes zero; the word after it stays as it was.
    """
    value = bytes(range(1, size + 1))
    padded = value.ljust((size + 7) // 8 * 8, b"\0")
    for offset in range(8):
        words, copy = unit.copy_in_and_out(value, offset)

        assert padded + b"\xff" * 8 == words
        assert b"\xee" * 8 + value + b"\xee" * 8 == copy


@pytest.mark.parametrize("size", range(41))
def test_words_equal_exactly_the_bytes_they_were_made_of(unit, size):
    """A changed byte at any place and alignment makes words and bytes different."""
    value = bytes(range(1, size + 1))
    words = value.ljust((size + 7) // 8 * 8, b"\0")
    for offset in range(8):
        assert unit.words_equal(words, value, offset)
    for place in range(size):
        for bit in (0x01, 0x80):
            other = value[:place] + bytes([value[place] ^ bit]) + value[place + 1 :]

            assert not unit.words_equal(words, other, place % 8)


def test_words_with_dirty_padding_are_not_equal(unit):
    """A key's padding is always zero, so that comparing whole words is comparing keys."""
    assert unit.words_equal(b"abc\0\0\0\0\0", b"abc")
    assert not unit.words_equal(b"abc\0\0\0\0\x01", b"abc")
