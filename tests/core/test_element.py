"""One element: its states, its versions, and values that are read and changed in place."""

import random

import pytest
from support.core.picture import (
    DEAD,
    LIVE,
    ULOCK,
    UPD,
    held_by,
    owner_of,
    state_of,
    version_of,
)

KEY = b"the key!"


def with_entry(make_image, value):
    """An image with one entry, and the entry's index."""
    image = make_image(value_size=len(value))
    assert image.insert(0, KEY, value) == "OK"
    status, index = image.find(KEY)
    assert status == "OK"
    return image, index


@pytest.mark.parametrize("state", [UPD, ULOCK])
def test_hold_and_release_each_raise_the_version(make_image, state):
    """Each of the two steps raises the version by one; the owner's context names the element."""
    image, index = with_entry(make_image, b"12345678")
    before = image.picture.element(index)[0]

    status, held = image.element_hold(3, index, state)

    assert status == "OK"
    assert held == image.picture.element(index)[0]
    assert (state, 3) == (state_of(held), owner_of(held))
    assert version_of(before) + 1 == version_of(held)
    assert image.picture.context(3).target == index
    image.element_release(3, index, held)
    settled = image.picture.element(index)[0]
    assert (state_of(settled), owner_of(settled)) == (LIVE, None)
    assert version_of(before) + 2 == version_of(settled)


@pytest.mark.parametrize("state", [UPD, ULOCK])
def test_owned_element_is_busy_for_other_writers(make_image, state):
    """W1: other writers get BUSY and the header to wait for; value and header stay."""
    image, index = with_entry(make_image, b"12345678")
    _, held = image.element_hold(3, index, state)

    assert image.element_hold(1, index, state)[0] == "BUSY"
    assert image.waits_for(1)[1] == held
    assert image.element_update(1, index, b"abcdefgh") == "BUSY"
    assert image.element_add(1, index, 0, 1)[0] == "BUSY"

    assert held == image.picture.element(index)[0]
    assert int.from_bytes(b"12345678", "little") == image.picture.value(index)[0]


@pytest.mark.parametrize("size", [8, 12, 24])
def test_stale_header_changes_nothing(make_image, size):
    """W1: a writer or reader that found the element before it changed has to search again."""
    image, index = with_entry(make_image, b"a" * size)
    stale = image.picture.element(index)[0]
    assert image.element_update(1, index, b"b" * size) == "OK"
    now = image.picture.element(index)[0]

    assert image.element_update(2, index, b"c" * size, stale) == "RETRY"
    assert image.element_add(2, index, 0, 1, stale)[0] == "RETRY"
    assert image.element_hold(2, index, ULOCK, stale)[0] == "RETRY"
    assert image.element_read(index, stale) is None

    assert now == image.picture.element(index)[0]
    assert image.element_read(index) == b"b" * size


def test_header_seen_locked_and_now_free_is_retried(make_image):
    """The owner has released the element since the header was read: RETRY, not BUSY."""
    image, index = with_entry(make_image, b"12345678")
    _, held = image.element_hold(3, index, ULOCK)
    image.element_release(3, index, held)

    assert image.element_update(1, index, b"abcdefgh", held) == "RETRY"


@pytest.mark.parametrize("size", range(1, 41))
def test_update_replaces_the_whole_value(make_image, size):
    """R2, W1: a value of any size is read as stored, padded with zeros, two versions later."""
    image, index = with_entry(make_image, b"\xff" * size)
    for number in range(3):
        value = bytes((number * 50 + place) % 256 for place in range(size))
        before = version_of(image.picture.element(index)[0])

        assert image.element_update(1, index, value) == "OK"

        words = image.picture.value(index)
        together = b"".join(word.to_bytes(8, "little") for word in words)
        assert value.ljust(len(together), b"\0") == together
        assert value == image.element_read(index)
        assert version_of(image.picture.element(index)[0]) == before + 2
        assert image.find(KEY) == ("OK", index)


@pytest.mark.parametrize("size", [9, 16, 24, 40])
def test_reader_of_an_element_in_update_gets_the_new_value(make_image, size):
    """R1, R2: in UPD the owner's redo buffer has the value, however much of it was copied."""
    image, index = with_entry(make_image, b"o" * size)
    new = b"n" * size
    redo = image.picture.redo(3)
    for place in range(len(redo)):
        redo[place] = int.from_bytes(new[8 * place : 8 * place + 8], "little")
    _, held = image.element_hold(3, index, UPD)

    for place in range(len(redo)):
        assert image.element_read(index) == new
        image.picture.element(index)[2 + place] = redo[place]
    image.element_release(3, index, held)

    assert image.element_read(index) == new


def test_reader_of_a_locked_element_gets_the_old_value(make_image):
    """R1, R2: in ULOCK the element's own words have the value."""
    image, index = with_entry(make_image, b"o" * 24)
    image.picture.redo(3)[0] = 12345
    image.element_hold(3, index, ULOCK)

    assert image.element_read(index) == b"o" * 24


@pytest.mark.parametrize("owner", [4096, 0x7FFF])
def test_owner_beyond_the_contexts_is_not_followed(make_image, owner):
    """H1: a header whose owner is not a context does not lead to a redo buffer."""
    image, index = with_entry(make_image, b"o" * 24)
    image.picture.element(index)[0] = 9 << 19 | UPD << 16 | held_by(owner)

    assert image.element_read(index) is None


@pytest.mark.parametrize("offset", range(17))
def test_additions_wrap_around_at_any_offset(make_image, seed, offset):
    """W1: the sum is modulo 2**64; bytes beside the field stay as they are."""
    rng = random.Random(seed)
    value = rng.randbytes(24)
    image, index = with_entry(make_image, value)
    for _ in range(30):
        delta = rng.choice([1, 2**64 - 1, 2**63, rng.getrandbits(64)])
        before = version_of(image.picture.element(index)[0])
        sum_after = int.from_bytes(value[offset : offset + 8], "little") + delta & 2**64 - 1
        value = value[:offset] + sum_after.to_bytes(8, "little") + value[offset + 8 :]

        assert image.element_add(1, index, offset, delta) == ("OK", sum_after)

        assert value == image.element_read(index)
        raised = version_of(image.picture.element(index)[0]) - before
        assert raised == (2 if offset % 8 == 0 else 3)


def test_the_version_wraps_around(make_image):
    """R2: the last version is followed by the first, and nothing else changes."""
    image, index = with_entry(make_image, b"12345678")
    image.picture.element(index)[0] = 2**45 - 1 << 19 | LIVE << 16

    assert image.element_update(1, index, b"abcdefgh") == "OK"

    assert image.picture.element(index)[0] == 1 << 19 | LIVE << 16
    assert image.find(KEY) == ("OK", index)


@pytest.mark.parametrize("state", [0, 1, DEAD, 6, 7])
def test_element_in_no_readable_state_is_not_found(make_image, state):
    """W1: FREE, ALLOC and DEAD elements are absent, and so are states that do not exist."""
    image, index = with_entry(make_image, b"12345678")
    image.picture.element(index)[0] = 9 << 19 | state << 16

    assert image.find(KEY)[0] == "ABSENT"
