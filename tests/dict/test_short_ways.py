"""The short ways of a dict, for keys inside the entry and values of one word, find and store the
same as the general ways."""

import functools
import random
import types

import pytest
from support.words import COLLIDING

import shmrhash
from shmrhash import _typed_maps

TEXT_MAX = 15  # characters of the longest ASCII key that is stored in the entry
DIGIT = 1 << 30  # the base of the digits of Python's ints; a short way exists for ints of one digit
EDGES = sorted(
    {
        sign * number + near
        for number in (0, 1, DIGIT, DIGIT**2, 2**62, 2**63 - 2)
        for sign in (1, -1)
        for near in (-1, 0, 1)
    }
)
CHARACTERS = [chr(code) for code in range(128)]


class Renamed(str):
    """A subclass of str: every short way leaves its instances to the general way."""


class Renumbered(int):
    """A subclass of int: every short way leaves its instances to the general way."""


def texts(rng):
    yield from ("", "\0", "\0" * TEXT_MAX, "\x7f" * TEXT_MAX)
    for length in range(1, TEXT_MAX + 3):
        for _ in range(8):
            yield "".join(rng.choices(CHARACTERS, k=length))


def checked_by_both_ways(shared, keys, values, slow_key):
    """Check that one way finds, changes and deletes what the other way stores, in both
    directions."""
    for key, value in zip(keys, values, strict=True):
        shared[slow_key(key)] = Renumbered(value)
        assert shared[key] == shared.get(key) == value
        assert key in shared

        shared[key] = value // 2
        assert shared[slow_key(key)] == shared.get(slow_key(key)) == value // 2

        assert shared.add(key, 1) == value // 2 + 1
        assert shared.add(slow_key(key), Renumbered(-1)) == value // 2
    for key in keys:
        del shared[key]
        assert slow_key(key) not in shared
    assert len(shared) == 0


def test_short_texts_are_one_key_by_every_way(make_dict, seed):
    """Texts of every short length and of every kind of character are the same key by every way.
    (The short ways load whole words, which begin before the characters.)"""
    rng = random.Random(seed)
    keys = sorted(set(texts(rng)))
    shared = make_dict(key=str, value=int, max_entries=1000)

    checked_by_both_ways(shared, keys, [rng.choice(EDGES) for _ in keys], Renamed)


def test_ints_of_every_size_are_one_key_by_every_way(make_dict):
    shared = make_dict(key=int, value=int, max_entries=1000)

    checked_by_both_ways(shared, EDGES, EDGES, Renumbered)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 2**200])
def test_an_int_of_more_than_64_bits_is_refused_by_every_way(make_dict, number):
    shared = make_dict(shmrhash.SharedCounter, key=int, max_entries=1000)
    shared[1] = 1
    shared[1] = 2

    with pytest.raises(OverflowError):
        shared[number]
    with pytest.raises(OverflowError):
        shared[1] = number
    with pytest.raises(OverflowError):
        shared.inc(1, number)
    assert shared[1] == 2


@pytest.mark.parametrize("key_type", [str, int])
def test_keys_behind_the_first_slot_are_found_and_changed(make_dict, monkeypatch, key_type):
    """All keys have one hash, so the first slot with the hash's tag leads to only one of them; the
    others are found, too."""
    create = functools.partial(shmrhash.RHashMap.create, _seeds=COLLIDING)
    monkeypatch.setattr(_typed_maps, "RHashMap", types.SimpleNamespace(create=create))
    shared = make_dict(shmrhash.SharedCounter, key=key_type, max_entries=1000)
    monkeypatch.undo()
    keys = [key_type(number) for number in range(40)]
    for number, key in enumerate(keys):
        shared[key] = number
    for key in keys:
        shared[key] = 5
        assert shared.inc(key) == 6
        assert shared.inc(key, -4) == 2

    assert [shared[key] for key in keys] == [2] * 40
    assert shared.get(key_type(40)) is None
    assert dict(shared.items()) == dict.fromkeys(keys, 2)
