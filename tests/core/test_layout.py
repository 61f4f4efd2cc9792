"""The words of the segment: packed parts are unpacked unchanged, at their extreme values too."""

import ctypes
import itertools
import random

import pytest
from support.core import picture

CONTEXT_INDICES = [0, 1, 2, 4095, 0x7FFF]
PAYLOADS = [0, 1, 0xA5A5_A5A5_A5A5, (1 << 48) - 1]
ALL_ONES = 2**64 - 1


def test_structures_of_the_tests_have_the_sizes_of_the_core(unit):
    """The structures of the tests are as large as the core's, which asserts its offsets itself."""
    for name, size in unit.sizes().items():
        assert size == ctypes.sizeof(getattr(picture, name)), name


# ---- lock words of every kind ----


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("context", CONTEXT_INDICES)
def test_a_taken_word_names_its_owner_and_keeps_its_payload(unit, payload, context):
    word = payload << 16

    taken = unit.word_taken(word, context)

    assert taken == word | context << 1 | 1
    assert unit.word_locked(taken)
    assert unit.word_owner(taken) == context == picture.owner_of(taken)
    assert word == unit.word_released(taken)
    assert not unit.word_locked(word)
    assert unit.word_owner(word) == 0


@pytest.mark.parametrize("other", CONTEXT_INDICES)
@pytest.mark.parametrize("context", CONTEXT_INDICES)
def test_a_word_is_held_by_its_owner_alone(unit, context, other):
    """C1: recovery resumes only operations whose words the dead context holds; an unlocked word
    is held by no context."""
    for payload in PAYLOADS:
        taken = unit.word_taken(payload << 16, context)

        assert (context == other) == unit.word_held_by(taken, other)
        assert not unit.word_held_by(payload << 16, other)
        assert not unit.word_held_by(taken & ~1, other)


def test_taking_a_word_again_replaces_the_owner(unit):
    """word_taken may be applied to a taken word: a depot that stays held is stored in this way."""
    taken = unit.word_taken(unit.word_taken(0xABC0000, 0x7FFF), 1)

    assert unit.word_held_by(taken, 1)
    assert unit.word_released(taken) == 0xABC0000


# ---- buckets ----


@pytest.mark.parametrize("before", [0, 1, 0x7FFF << 1 | 1, 0xFFFFFFFF_FF00FFFF, ALL_ONES])
@pytest.mark.parametrize("level_plus1", [0, 1, 2, 33, 63])
def test_setting_the_level_leaves_the_rest_of_the_header(unit, before, level_plus1):
    after = unit.bucket_with_level(before, level_plus1)

    assert level_plus1 == unit.bucket_level_plus1(after) == picture.level_of(after) + 1
    assert before & ~(0x3F << 16) == after & ~(0x3F << 16)


def test_version_of_a_bucket_wraps_around_without_a_carry(unit):
    """The last version is followed by the first, with the same level and the same owner."""
    last = (2**40 - 1) << 24 | 5 << 16 | 0x2A << 1 | 1

    following = unit.bucket_next_version(last)

    assert picture.bucket_version_of(last) == 2**40 - 1
    assert picture.bucket_version_of(following) == 0
    assert last & 0xFFFFFF == following & 0xFFFFFF


# ---- elements and lines ----


@pytest.mark.parametrize("version", [0, 1, 2**44, 2**45 - 2, 2**45 - 1])
@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(6), repeat=2)))
def test_every_change_of_state_raises_the_version(unit, version, before, after):
    """R2: an unchanged header means an unchanged element, even where the version wraps around."""
    for old_lock, new_lock in itertools.product([0, unit.lock_bits(0x7FFF)], repeat=2):
        header = version << 19 | before << 16 | old_lock

        changed = unit.element_header(header, after, new_lock)

        assert after == unit.element_state(changed) == picture.state_of(changed)
        assert (version + 1) % 2**45 == picture.version_of(changed)
        assert new_lock == changed & 0xFFFF


@pytest.mark.parametrize("context", CONTEXT_INDICES)
def test_lock_bits_are_those_of_a_taken_word(unit, context):
    assert unit.word_taken(0, context) == unit.lock_bits(context) == picture.held_by(context)


# ---- depots and blocks ----


@pytest.mark.parametrize("head", [0, 1, 0xEFFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("count", [0, 1, 255])
@pytest.mark.parametrize("credit", [0, 1, 255])
def test_a_depot_word_holds_its_parts(unit, head, count, credit):
    word = unit.depot_word(head, count, credit)

    assert (head, count, credit) == unit.depot_parts(word)
    assert (head, count, credit) == unit.depot_parts(unit.word_taken(word, 0x7FFF))
    assert word == picture.depot_word(head, count, credit) == unit.word_released(word)


@pytest.mark.parametrize("parts", list(itertools.product([0, 1, 2], *[[0, 1, 4095]] * 3)))
def test_a_block_word_holds_its_parts(unit, parts):
    word = unit.block_word(*parts)

    assert parts == unit.block_parts(word) == picture.block_parts(word)
    assert parts == unit.block_parts(unit.word_taken(word, 0x7FFF))
    assert word == picture.block_word(*parts) == unit.word_released(word)


def test_random_words_are_unpacked_as_packed(unit, seed):
    rng = random.Random(seed)
    for _ in range(2000):
        depot = rng.getrandbits(32), rng.getrandbits(8), rng.getrandbits(8)
        block = rng.randrange(3), *(rng.randrange(4096) for _ in range(3))

        assert depot == unit.depot_parts(unit.depot_word(*depot))
        assert block == unit.block_parts(unit.block_word(*block))
