"""An iterator over a dict reads entries ahead; here: when it delivers these, and when it looks them
up again."""

import random

import pytest

import shmrhash
from shmrhash import SharedDict

TYPES = [
    (str, int, lambda number: f"key {number}", lambda number: -number),
    (str, float, lambda number: f"ключ{number}", lambda number: number / 7),
    (bytes, bool, lambda number: b"%d" % number, lambda number: number % 3 == 0),
    (int, int, lambda number: number << 40, lambda number: number - (1 << 63)),
    (float, float, lambda number: number / 3, lambda number: -number / 3),
]


@pytest.mark.parametrize(("key", "value", "key_of", "value_of"), TYPES)
def test_an_iteration_delivers_what_was_stored(make_dict, key, value, key_of, value_of):
    """I1: the keys, values and pairs made from what the walk has read have the declared types, and
    are those that were stored."""
    d = make_dict(key=key, value=value)
    expected = {key_of(number): value_of(number) for number in range(500)}
    d.update(expected)

    pairs = list(d.items())

    assert dict(pairs) == expected
    assert len(pairs) == len(expected)
    assert all(type(name) is key and type(found) is value for name, found in pairs)
    assert [name for name, _ in pairs] == list(d)
    assert [found for _, found in pairs] == list(d.values())


@pytest.mark.parametrize("length", range(18))
@pytest.mark.parametrize("letter", ["a", "\x7f", "\x80", "é", "☃"])
def test_a_text_of_any_length_is_the_same_key_again(make_dict, length, letter):
    """The iterator makes short ASCII texts without a decoder; text, kind and hash are the same as
    those that Python makes."""
    d = make_dict(key=str, value=int)
    text = "k" * (length - 1) + letter if length else ""
    d[text] = 7

    ((found, number),) = d.items()

    assert (found, number, hash(found)) == (text, 7, hash(text))
    assert found.isascii() == text.isascii()
    assert {text: 1}[found] == 1


def test_kept_pairs_do_not_change(make_dict):
    """The iterator fills a pair again only if no other code has a reference to it: never inside
    list(), and not after the caller has kept it."""
    d = make_dict(key=str, value=int)
    d.update({f"key{number}": 10**6 + number for number in range(300)})
    kept, copies = [], []

    for turn, pair in enumerate(d.items()):
        if turn % 3 == 0:
            kept.append(pair)
            copies.append((pair[0], pair[1]))

    assert kept == copies
    assert len(set(kept)) == 100


def test_an_iterator_sees_every_write_of_its_handle(make_dict, seed):
    """After a write by the same handle, the entries that were read ahead are looked up again. Some
    keys are long, and looking these up does not count as a write."""
    chooser = random.Random(seed)
    d = make_dict(key=str, value=int)
    names = [f"{number}" * chooser.choice([1, 9]) for number in range(100, 700)]
    model = dict.fromkeys(names, 0)
    d.update(model)
    seen = {}

    for name, number in d.items():
        assert model.get(name) == number, f"seed {seed}"
        assert name not in seen
        seen[name] = number
        if chooser.random() < 0.2:
            other = chooser.choice(names)
            if other in model and chooser.random() < 0.5:
                del d[other]
                del model[other]
            elif other in model:
                d[other] = model[other] = model[other] + 1

    assert set(model) <= set(seen)


def test_an_iterator_meets_the_writes_of_others_a_chunk_later(make_dict):
    """I1: writes by another handle are seen in all entries that were not read ahead, which are at
    most 128; each key is delivered once."""
    d = make_dict(key=int, value=int)
    d.update(dict.fromkeys(range(1000), 0))
    with SharedDict.open(d.name) as other:
        items = iter(d.items())
        next(items)
        other.update(dict.fromkeys(range(1000), 1))

        rest = list(items)

    assert len({name for name, _ in rest}) == len(rest) == 999
    assert sum(number for _, number in rest) >= 999 - 128


def test_a_dict_with_deadlines_delivers_nothing_that_has_expired(make_dict):
    """An entry that expires after the walk has read it, and before it is delivered, is absent."""
    d = make_dict(key=int, value=int, ttl=3600)
    d.update(dict.fromkeys(range(100), 1))
    items = iter(d.items())
    next(items)
    with SharedDict.open(d.name) as other:
        for name in range(100):
            other.touch(name, ttl=1e-9)

        assert list(items) == []
        other.expire()


def test_a_closed_dict_ends_an_iteration_with_an_error(make_dict):
    d = make_dict(key=str, value=int)
    d.update({f"{number}": number for number in range(50)})
    items = iter(d.items())
    next(items)

    d.close()

    with pytest.raises(shmrhash.MapClosed):
        next(items)
