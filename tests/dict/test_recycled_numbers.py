"""Ints and texts that a dict or its iterator fills again: no program sees one change that it has.

A dict keeps a reference to the last ints that it returned, an iterator to the last keys and values,
and each fills one again when its reference is the only one. tests/api/test_recycled_objects.py has
the same for bytes, and says in which ways a program may hold an object.
"""

import random
import sys

import pytest
from support.workers import EVERY_CHANCE_S, all_together

from shmrhash import SharedCounter

# Around the small numbers that are one object, the limits of an int's digits, and of a word.
EDGES = [0, 255, 256, 257, 258, 1023, 1024, 1025, 2**15, 2**30, 2**31, 2**60, 2**62]
NUMBERS = sorted(
    {sign * (edge + step) for edge in EDGES for step in (-1, 0, 1) for sign in (1, -1)}
)


@pytest.fixture
def plain():
    """A dict with several texts of each short length."""
    rng = random.Random(17)
    names = {"".join(rng.choices("abc xyz", k=length % 18)) for length in range(180)}
    return {name: 1000 + number for number, name in enumerate(sorted(names))}


@pytest.fixture
def d(make_dict, plain):
    shared = make_dict(key=str, value=int, max_entries=400)
    shared.update(plain)
    return shared


def test_each_number_is_right_after_any_other(make_dict, seed):
    """A returned int is right whatever number was returned before, in the same object or in
    another."""
    rng = random.Random(seed)
    d = make_dict(key=int, value=int)
    for number in NUMBERS:
        d[number] = number
    for _ in range(20):
        order = rng.sample(NUMBERS, len(NUMBERS))

        assert [d[number] == number for number in order] == [True] * len(order)
        assert [d.get(number) for number in order] == order
    assert sorted(d.items()) == [(number, number) for number in NUMBERS]
    assert sum(key == value for key, value in d.items()) == len(NUMBERS)


def test_a_small_number_is_the_object_that_python_has(make_dict):
    d = make_dict(key=int, value=int)
    d.update({number: number for number in range(300)})

    assert all(d[int(str(number))] is int(str(number)) for number in range(-1, 257) if number >= 0)
    assert all(key is value for key, value in d.items() if key < 257)


def test_numbers_that_are_kept_do_not_change(d, plain):
    kept = [(d[name], d.get(name), name) for name in plain]
    sums = {d[name]: name for name in plain}

    assert kept == [(number, number, name) for name, number in plain.items()]
    assert sums == {number: name for name, number in plain.items()}


def test_sums_that_are_kept_do_not_change(make_dict):
    counter = make_dict(SharedCounter, key=str)
    kept = [counter.inc("hits", 100) for _ in range(200)]

    assert kept == [100 * turn for turn in range(1, 201)]


def test_texts_that_are_kept_do_not_change(d, plain):
    """A returned text does not change while the program keeps it. The program keeps every text,
    every third, or each only as a key, inside a pair, or with its hash."""
    pairs = list(d.items())
    thirds = [name for turn, name in enumerate(d) if turn % 3 == 0]
    hashes = [(hash(name), number) for name, number in d.items()]
    names = [name for name, _ in pairs]

    assert dict(pairs) == plain
    assert thirds == names[::3]
    assert hashes == [(hash("".join(list(name))), plain[name]) for name in names]
    assert {name: plain[name] for name in d} == plain


def test_a_text_is_hashed_anew(d, plain):
    """The hash that Python keeps in a text is that of its present characters, not that of the text
    returned before."""
    for name, number in d.items():
        assert hash(name) == hash("".join(list(name)))
        assert plain[name] == number


def test_interned_texts_do_not_change(d, plain):
    """Interned texts do not change, although Python's table of them has references that are not
    counted."""

    class Named:
        pass

    thing = Named()
    for name, number in d.items():
        setattr(thing, name, number)  # interns the name
        sys.intern(name)
    for name, number in plain.items():
        copy = "".join(list(name))

        assert sys.intern(copy) == name
        assert getattr(thing, copy) == number
    assert vars(thing) == plain
    for name in d:
        sys.intern(name)  # and forgets it
    for name in plain:
        assert sys.intern("".join(list(name))) == name


def test_threads_that_share_an_iterator_see_no_object_change(d, plain):
    """Each thread keeps the objects it got from a shared iterator, and none changes while other
    threads continue the iteration."""
    wrong, found = [], []
    walks = [iter(d.items()) for _ in range(40)]

    def walk(_):
        for one in walks:
            for name, number in one:
                again = d[name]
                if plain[name] != number or again != number:
                    wrong.append((name, number, again))
                found.append(name)

    all_together(walk, switch_s=EVERY_CHANCE_S)

    assert wrong == []
    assert sorted(found) == sorted(list(plain) * len(walks))
