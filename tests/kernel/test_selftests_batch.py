"""The kernel's map_tests/htab_map_batch_ops.c on our map and on the kernel's own.

Ours does it with every step size; the kernel's hash map, not RHASH, says ENOSPC where a bucket
holds more than a step.
"""

import pytest
from support.kernel.kernel_jobs import int_word
from support.kernel.sides import NOEXIST, OurMap, take_all, take_pairs

import shmrhash

MAX = 10
KEYS = [int_word(number + 1) for number in range(MAX)]
VALUES = [int_word(number + 2) for number in range(MAX)]
PAIRS = list(zip(KEYS, VALUES, strict=True))

steps = pytest.mark.parametrize("step", range(1, MAX))


@pytest.fixture
def side(make_side):
    return make_side(key_size=4, value_size=4, max_entries=MAX)


@pytest.fixture
def ours(make_map):
    return OurMap(make_map(key_size=4, value_size=4, max_entries=MAX))


def fill(side):
    assert side.update_batch(KEYS, VALUES) == ("", MAX)


def is_empty(side):
    said = side.lookup_batch(None, MAX)
    return said == ("ENOENT", ([], None)) and side.get_next_key() == ("ENOENT", None)


def test_take_from_an_empty_map(side):
    """W1 (case 1): nothing, and nothing follows."""
    assert side.lookup_and_delete_batch(None, MAX) == ("ENOENT", ([], None))


def test_a_batch_of_none(side):
    """W1 (case 2): a success that does nothing, on an empty map and on a full one."""
    for _ in range(2):
        assert side.update_batch([], []) == ("", 0)
        assert side.delete_batch([]) == ("", 0)
        fill(side)

    assert take_pairs(side.lookup_batch, MAX, MAX) == PAIRS


def test_take_all_at_once(side):
    """W1 (case 3): all pairs in one batch, each a whole one; then the map is empty."""
    fill(side)

    said = side.lookup_and_delete_batch(None, MAX)

    assert said.error in ("", "ENOENT")
    assert sorted(said.result.pairs) == PAIRS
    assert is_empty(side)


@steps
def test_look_up_in_steps(side, step):
    """W1, I1 (case 4): batches of a step each meet every pair once, and leave the map as it was."""
    fill(side)

    for _ in range(2):
        assert take_pairs(side.lookup_batch, step, MAX) == PAIRS


@steps
def test_delete_in_steps(side, step):
    """W1 (case 4): as many as asked for are deleted each time, and the last are fewer."""
    fill(side)

    chunks = [KEYS[at : at + step] for at in range(0, MAX, step)]
    assert [("", len(chunk)) for chunk in chunks] == [side.delete_batch(chunk) for chunk in chunks]

    assert is_empty(side)


@steps
def test_take_in_steps(side, step):
    """W1, I1 (case 4): batches that delete what they give meet every pair once."""
    fill(side)

    assert take_pairs(side.lookup_and_delete_batch, step, MAX) == PAIRS

    assert is_empty(side)


def test_fill_and_empty_again_and_again(side):
    """W1, W2 (case 4): the steps of the kernel's test in its order, on one map."""
    for step in range(1, MAX):
        fill(side)
        assert take_pairs(side.lookup_batch, step, MAX) == PAIRS
        deleted = [side.delete_batch(KEYS[at : at + step]) for at in range(0, MAX, step)]
        assert sum(said.result for said in deleted) == MAX
        assert side.get_next_key() == ("ENOENT", None)
        fill(side)
        taken = take_pairs(side.lookup_and_delete_batch, step, MAX)
        assert taken == PAIRS
        assert is_empty(side)


def test_update_stops_at_the_limit(side):
    """W2: E2BIG with the number done before, and these are in the map."""
    more = [int_word(number) for number in range(100, 100 + MAX)]
    assert side.update_batch(KEYS[:4], VALUES[:4]) == ("", 4)

    assert side.update_batch(more, VALUES) == ("E2BIG", 6)

    assert [side.lookup(key).error for key in more] == [""] * 6 + ["ENOENT"] * 4
    assert side.update_batch(KEYS[:4], VALUES[4:8]) == ("", 4)
    assert [side.lookup(key).result for key in KEYS[:4]] == VALUES[4:8]


def test_update_the_same_key_twice(side):
    """W1: the later one in the batch counts."""
    assert side.update_batch([KEYS[0], KEYS[1], KEYS[0]], VALUES[:3]) == ("", 3)

    assert side.lookup(KEYS[0]) == ("", VALUES[2])


def test_delete_stops_at_an_absent_key(side):
    """W1: ENOENT with the number done before; what comes after the absent key stays."""
    fill(side)

    assert side.delete_batch([KEYS[3], KEYS[4], int_word(99), KEYS[5]]) == ("ENOENT", 2)
    assert side.delete_batch([KEYS[6], KEYS[6]]) == ("ENOENT", 1)

    there = [key for key in KEYS if not side.lookup(key).error]
    assert there == [key for key in KEYS if key not in (KEYS[3], KEYS[4], KEYS[6])]


@pytest.mark.parametrize("flags", [1, 2, 3, 7, 8, 1 << 40, -1])
def test_batches_refuse_other_flags(side, flags):
    """K1: EINVAL before anything is done; a batch of lookups takes F_LOCK only."""
    fill(side)

    assert side.lookup_batch(None, MAX, flags).error == "EINVAL"
    assert side.lookup_and_delete_batch(None, MAX, flags).error == "EINVAL"
    assert side.delete_batch(KEYS, flags).error == "EINVAL"
    if flags not in (1, 2):
        assert side.update_batch(KEYS, VALUES, flags).error == "EINVAL"

    assert take_pairs(side.lookup_batch, MAX, MAX) == PAIRS


# What RHASH, unlike the kernel's other hash map, has to do, and what ours does beyond it.


@steps
def test_every_batch_but_the_last_is_full(ours, step):
    """I1 (htab_map_batch_ops for RHASH): every step size succeeds, and each batch is full."""
    fill(ours)

    for method in (ours.lookup_batch, ours.lookup_and_delete_batch):
        chunks = take_all(method, step, MAX)
        while not chunks[-1]:
            chunks.pop()
        assert all(len(chunk) == step for chunk in chunks[:-1])
        assert sum(map(len, chunks)) == MAX


@steps
def test_a_deleted_cursor_does_no_harm(ours, step):
    """I1: what a cursor stands at may be deleted; RHASH says EAGAIN, ours goes on behind it."""
    fill(ours)
    first = ours.lookup_batch(None, step)
    seen = [key for key, _ in first.result.pairs]
    rest = [key for key in KEYS if key not in seen]

    for key in (rest[0], seen[-1]):
        assert ours.delete(key) == ("", None)
    found = []
    said = first
    while not said.error:
        said = ours.lookup_batch(said.result.cursor, step)
        found += [key for key, _ in said.result.pairs]

    assert sorted(found) == sorted(rest[1:])


def test_update_batch_takes_noexist_and_exist(ours):
    """W1: the kernel refuses these in a batch; here each element is treated as by update()."""
    fill(ours)
    assert ours.delete(KEYS[5]) == ("", None)

    assert ours.update_batch(KEYS[5:8], VALUES[:3], NOEXIST) == ("EEXIST", 1)
    assert ours.lookup(KEYS[5]) == ("", VALUES[0])
    assert ours.lookup(KEYS[6]) == ("", VALUES[6])


def test_a_failed_batch_says_how_many_were_done(ours):
    """W2: the exception is the operation's own, with the number as its count."""
    keys = [int_word(number) for number in range(MAX + 3)]

    with pytest.raises(shmrhash.MapFull) as refused:
        ours.m.update_batch(b"".join(keys), b"".join(keys))
    assert refused.value.count == MAX
    with pytest.raises(shmrhash.KeyNotFound) as missing:
        ours.m.delete_batch(b"".join(keys))
    assert missing.value.count == MAX
    assert len(ours.m) == 0
