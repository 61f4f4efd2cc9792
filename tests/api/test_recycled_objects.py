"""Bytes and pairs that a handle fills again: no program sees an object change that it still has.

A handle and an iterator keep a reference to the last objects that they returned, and fill one again
when theirs is the only one. Since Python 3.14 the stack of a frame holds references that are not
counted, as long as a local variable holds a counted one; so the programs here put variables on the
stack, look up other keys before the stack is used, and assign, delete or overwrite the variables in
between.
"""

import functools
import itertools
import random
import re
import sys

import pytest
from support.jobs import word
from support.workers import EVERY_CHANCE_S, all_together

from shmrhash import SharedDict

KEYS = [word(number) for number in range(24)]
VALUES = [bytes([number + 1]) * 40 for number in range(24)]  # the value of each key
NAMES = [f"name {number}" for number in range(24)]
NUMBERS = [1000 + number for number in range(24)]  # the value of each name


@pytest.fixture
def m(make_map):
    shared = make_map(max_entries=64, value_size=40)
    shared.update_batch(KEYS, VALUES)
    return shared


@pytest.fixture
def numbers(map_name):
    with SharedDict.create(map_name, key=str, value=int, max_entries=64) as shared:
        try:
            shared.update(zip(NAMES, NUMBERS, strict=True))
            yield shared
            shared.check()
        finally:
            shared.unlink()


def others(m, first=8, count=6):
    """Look up `count` keys, which are more than the objects that a handle keeps."""
    for key in (NAMES if isinstance(m, SharedDict) else KEYS)[first : first + count]:
        assert m[key]


def overwrite(m, name):
    """Overwrite a local variable of the caller, as a debugger does, and look up other keys."""
    sys._getframe(1).f_locals[name] = None
    others(m)


def on_the_stack(m):
    a = m[KEYS[0]]
    return [a, others(m), a, m[KEYS[1]], others(m), a][::2], [VALUES[0], VALUES[0], None]


def assigned_while_on_the_stack(m):
    a = m[KEYS[0]]
    return [a, (a := m[KEYS[1]]), others(m), a], [VALUES[0], VALUES[1], None, VALUES[1]]


def overwritten_by_a_debugger(m):
    a = m[KEYS[0]]
    return [a, overwrite(m, "a"), others(m)], [VALUES[0], None, None]


def deleted_in_a_call(m):
    a = m[KEYS[0]]

    def forget():
        nonlocal a
        del a
        others(m)

    return [a, forget(), others(m)], [VALUES[0], None, None]


def argument_whose_variable_ends(m):
    def keep(value, _):
        others(m)
        return value

    a = m[KEYS[0]]
    found = keep(a, (a := None))
    return [found, a], [VALUES[0], None]


def temporary_as_argument(m):
    def keep(value):
        others(m)
        return value

    return [keep(m[KEYS[0]]), keep(value=m[KEYS[1]])], VALUES[:2]


def suspended_generator(m):
    def suspended():
        a = m[KEYS[0]]
        yield [a, (yield None), a]

    made = suspended()
    next(made)
    others(m)
    return made.send(None), [VALUES[0], None, VALUES[0]]


def frame_that_an_exception_keeps(m):
    def fail():
        a = m[KEYS[0]]
        return a, others(m), 1 // 0

    try:
        fail()
    except ZeroDivisionError as error:
        others(m)
        return [error.__traceback__.tb_next.tb_frame.f_locals["a"]], VALUES[:1]


def functions_of_c(m):
    first = max([m[KEYS[0]]], key=lambda _: others(m))
    joined = b"".join(itertools.chain([m[KEYS[1]]], (m[key] for key in KEYS[2:6])))
    added = functools.reduce(lambda one, more: (others(m), one + more)[1], map(m.get, KEYS[:4]))
    return [first, joined, added], [VALUES[0], b"".join(VALUES[1:6]), b"".join(VALUES[:4])]


def memoryview_of_a_value(m):
    view = memoryview(m[KEYS[0]])
    others(m)
    return [view.tobytes()], VALUES[:1]


def hashes(m):
    found = {m[KEYS[0]]: 0}
    others(m)
    found[m[KEYS[1]]] = 1
    others(m)
    return [found, hash(m[KEYS[2]])], [{VALUES[0]: 0, VALUES[1]: 1}, hash(VALUES[2])]


def pairs_kept_now_and_then(m):
    kept, copies = [], []
    for number, pair in enumerate(m.items()):
        if number % 3 == 0:
            kept.append(pair)
        elif number % 3 == 1:
            kept.append(pair[1])
        copies += [(bytes(bytearray(part)) for part in pair)] if number % 3 == 0 else []
        copies += [bytes(bytearray(pair[1]))] if number % 3 == 1 else []
    return kept, [one if type(one) is bytes else tuple(one) for one in copies]


def pairs_that_only_a_list_has(m):
    return sorted(m.items()), sorted(zip(KEYS, VALUES, strict=True))


def hashes_of_pairs(m):
    found = sorted(map(hash, m.items()))
    return found, sorted(map(hash, zip(KEYS, VALUES, strict=True)))


def pairs_unpacked_into_calls(m):
    def keep(key, value):
        others(m)
        return key, value

    found = [keep(*pair) for pair in m.items()]
    return sorted(found), sorted(zip(KEYS, VALUES, strict=True))


def iterator_inside_a_walk(m):
    found = [(key, value, next(iter(m.items()))) for key, value in m.items()]
    first = found[0][:2]
    pairs = zip(KEYS, VALUES, strict=True)
    return sorted(found), sorted((*pair, first) for pair in pairs)


SCENES = [
    on_the_stack,
    assigned_while_on_the_stack,
    overwritten_by_a_debugger,
    deleted_in_a_call,
    argument_whose_variable_ends,
    temporary_as_argument,
    suspended_generator,
    frame_that_an_exception_keeps,
    functions_of_c,
    memoryview_of_a_value,
    hashes,
    pairs_kept_now_and_then,
    pairs_that_only_a_list_has,
    hashes_of_pairs,
    pairs_unpacked_into_calls,
    iterator_inside_a_walk,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_no_program_sees_an_object_change(m, scene):
    """Each scene runs often enough for the interpreter to specialize its code."""
    for _ in range(60):
        found, expected = scene(m)
        assert found == expected


def program(rng, size):
    """Return the text of a function that compares its objects with the expected values.

    It has three variables, whose contents are known when it is made. Each statement builds a list
    of variables and lookups, among them assignments, and compares it with the values.
    """
    holds = dict.fromkeys("abc")
    lines = ["def run(m, K, V, same, others, overwrite):", "    a = b = c = None"]
    for _ in range(size):
        parts, expected = [], []
        for _ in range(rng.randrange(2, 9)):
            name, number = rng.choice("abc"), rng.randrange(len(KEYS))
            kind = rng.randrange(8)
            if kind < 3:
                part, value = name, holds[name]
            elif kind < 5:
                part, value = f"({name} := m[K[{number}]])", number
                holds[name] = number
            elif kind == 5:
                part, value = f"m[K[{number}]]", number
            elif kind == 6:
                part, value = "others(m)", None
            elif rng.randrange(3):
                part, value = f"({name} := None)", None
                holds[name] = None
            else:
                part, value = f"overwrite(m, {name!r})", None
                holds[name] = None
            parts.append(part)
            expected.append("None" if value is None else f"V[{value}]")
        lines.append(f"    same([{', '.join(parts)}], [{', '.join(expected)}])")
    return "\n".join(lines)


def same(found, expected):
    assert found == expected


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("kind", "keys", "values"), [("m", KEYS, VALUES), ("numbers", NAMES, NUMBERS)]
)
def test_no_generated_program_sees_an_object_change(request, seed, kind, keys, values, count):
    m = request.getfixturevalue(kind)
    rng = random.Random(seed)
    for _ in range(count):
        space = {}
        text = program(rng, 8)
        if sys.version_info < (3, 13):  # where a store into f_locals changes no variable
            text = re.sub(r"overwrite\(m, '(.)'\)", r"(\1 := others(m))", text)
        exec(text, space)
        for _ in range(3):
            space["run"](m, keys, values, same, others, overwrite)


def test_threads_that_share_a_handle_see_no_object_change(m):
    """Each thread keeps the objects it found while the others look up keys and switch often."""
    wrong = []

    def look(number):
        for turn in range(300):
            place = (number * 7 + turn) % len(KEYS)
            value, copy = m[KEYS[place]], VALUES[place]
            pairs = [(pair, tuple(map(bytearray, pair))) for pair in m.items()] if turn < 3 else []
            others(m, turn % 16)
            if value != copy or any(tuple(pair) != copied for pair, copied in pairs):
                wrong.append((number, turn, place))

    all_together(look, switch_s=EVERY_CHANCE_S)

    assert wrong == []
