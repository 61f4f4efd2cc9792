"""The kernel's map_tests/htab_map_batch_ops.c on our map and on the kernel's own.

On our map every step size succeeds; on the kernel's hash map, though not on RHASH, a batch is
ENOSPC if a bucket holds more entries than the step.
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


def test_take_from_an_empty_map_is_enoent(side):
    """W1 (case 1): a batch of an empty map is empty, and ENOENT says that nothing follows."""
    assert side.lookup_and_delete_batch(None, MAX) == ("ENOENT", ([], None))


def test_batch_of_no_keys_succeeds(side):
    """W1 (case 2): a batch of no keys succeeds and changes nothing, in an empty or full map."""
    for _ in range(2):
        assert side.update_batch([], []) == ("", 0)
        assert side.delete_batch([]) == ("", 0)
        fill(side)

    assert take_pairs(side.lookup_batch, MAX, MAX) == PAIRS


def test_one_batch_takes_all_pairs(side):
    """W1 (case 3): one batch takes all pairs, each key with its value; then the map is empty."""
    fill(side)

    said = side.lookup_and_delete_batch(None, MAX)

    assert said.error in ("", "ENOENT")
    assert sorted(said.result.pairs) == PAIRS
    assert is_empty(side)


@steps
def test_lookups_in_steps_meet_every_pair_once(side, step):
    """W1, I1 (case 4): batches of `step` pairs meet every pair once, and change nothing."""
    fill(side)

    for _ in range(2):
        assert take_pairs(side.lookup_batch, step, MAX) == PAIRS


@steps
def test_deletes_in_steps_empty_the_map(side, step):
    """W1 (case 4): each batch deletes all of its keys; the last batch has fewer."""
    fill(side)

    chunks = [KEYS[at : at + step] for at in range(0, MAX, step)]
    assert [("", len(chunk)) for chunk in chunks] == [side.delete_batch(chunk) for chunk in chunks]

    assert is_empty(side)


@steps
def test_takes_in_steps_meet_every_pair_once(side, step):
    """W1, I1 (case 4): batches that delete the pairs they return meet every pair once."""
    fill(side)

    assert take_pairs(side.lookup_and_delete_batch, step, MAX) == PAIRS

    assert is_empty(side)


def test_map_is_filled_and_emptied_repeatedly(side):
    """W1, W2 (case 4): the steps of the kernel's test run in its order on one map."""
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
    """W2: a full map's E2BIG comes with the number of keys stored, all of which are in the map."""
    more = [int_word(number) for number in range(100, 100 + MAX)]
    assert side.update_batch(KEYS[:4], VALUES[:4]) == ("", 4)

    assert side.update_batch(more, VALUES) == ("E2BIG", 6)

    assert [side.lookup(key).error for key in more] == [""] * 6 + ["ENOENT"] * 4
    assert side.update_batch(KEYS[:4], VALUES[4:8]) == ("", 4)
    assert [side.lookup(key).result for key in KEYS[:4]] == VALUES[4:8]


def test_later_value_of_a_repeated_key_stays(side):
    """W1: of a key that is twice in a batch, the later value stays."""
    assert side.update_batch([KEYS[0], KEYS[1], KEYS[0]], VALUES[:3]) == ("", 3)

    assert side.lookup(KEYS[0]) == ("", VALUES[2])


def test_delete_stops_at_an_absent_key(side):
    """W1: ENOENT comes with the number of keys deleted; keys after the absent one stay."""
    fill(side)

    assert side.delete_batch([KEYS[3], KEYS[4], int_word(99), KEYS[5]]) == ("ENOENT", 2)
    assert side.delete_batch([KEYS[6], KEYS[6]]) == ("ENOENT", 1)

    there = [key for key in KEYS if not side.lookup(key).error]
    assert there == [key for key in KEYS if key not in (KEYS[3], KEYS[4], KEYS[6])]


@pytest.mark.parametrize("flags", [1, 2, 3, 7, 8, 1 << 40, -1])
def test_batches_refuse_other_flags(side, flags):
    """K1: other flags are EINVAL before a key is changed; batches of lookups take F_LOCK only."""
    fill(side)

    assert side.lookup_batch(None, MAX, flags).error == "EINVAL"
    assert side.lookup_and_delete_batch(None, MAX, flags).error == "EINVAL"
    assert side.delete_batch(KEYS, flags).error == "EINVAL"
    if flags not in (1, 2):
        assert side.update_batch(KEYS, VALUES, flags).error == "EINVAL"

    assert take_pairs(side.lookup_batch, MAX, MAX) == PAIRS


# Behaviour that RHASH has and HASH does not, and what our map does beyond it.


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
    """I1: if the key at a cursor is deleted, RHASH returns EAGAIN; our batch goes on after it."""
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
    """W1: update_batch takes NOEXIST and EXIST, which the kernel refuses, and treats each key by
    it."""
    fill(ours)
    assert ours.delete(KEYS[5]) == ("", None)

    assert ours.update_batch(KEYS[5:8], VALUES[:3], NOEXIST) == ("EEXIST", 1)
    assert ours.lookup(KEYS[5]) == ("", VALUES[0])
    assert ours.lookup(KEYS[6]) == ("", VALUES[6])


def test_failed_batch_says_how_many_were_done(ours):
    """W2: a failed batch raises the single operation's exception, with the number as `count`."""
    keys = [int_word(number) for number in range(MAX + 3)]

    with pytest.raises(shmrhash.MapFull) as refused:
        ours.m.update_batch(b"".join(keys), b"".join(keys))
    assert refused.value.count == MAX
    with pytest.raises(shmrhash.KeyNotFound) as missing:
        ours.m.delete_batch(b"".join(keys))
    assert missing.value.count == MAX
    assert len(ours.m) == 0
