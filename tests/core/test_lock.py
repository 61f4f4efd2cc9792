"""Taking and releasing lock words: two contexts compete, and the loser learns which context to wait
for."""

import pytest
from support.core.picture import held_by, owner_of

CREDITS = 320  # the offset of header.credits


@pytest.fixture(params=["lock_try", "lock_acquire"])
def take(request, image):
    """Both ways to take a word: in one try, or spinning."""
    return getattr(image, request.param)


def test_a_free_word_is_taken_in_one_step(image, take):
    """The taken word names its owner and keeps its payload."""
    before = image.picture.header.credits

    status, held = take(3, CREDITS)

    assert status == "OK"
    assert held == image.picture.header.credits == before | held_by(3)


def test_loser_learns_the_word_and_its_value(image, take):
    """C2: the loser has the word's offset and value, and so its owner; the word stays as it is."""
    _, held = image.lock_try(1, CREDITS)

    status, _ = take(2, CREDITS)

    assert status == "BUSY"
    assert image.waits_for(2) == (CREDITS, held)
    assert owner_of(image.waits_for(2)[1]) == 1
    assert held == image.picture.header.credits


def test_held_word_is_not_taken_again_by_its_owner(image, take):
    """A lock is not recursive: even its owner gets BUSY."""
    image.lock_try(1, CREDITS)

    assert take(1, CREDITS)[0] == "BUSY"
    assert owner_of(image.picture.header.credits) == 1


def test_a_release_commits_the_payload(image, take):
    """One store writes the payload and unlocks; lock bits in the payload are dropped."""
    for who, payload in enumerate([0, 7 << 16, (1 << 48) - 1 << 16]):
        assert take(who, CREDITS)[0] == "OK"

        image.lock_release(CREDITS, payload | held_by(who))

        assert payload == image.picture.header.credits


def test_two_contexts_take_a_word_in_turn(image, take):
    """After one context has released the word the other can take it, a hundred times."""
    for turn in range(100):
        winner, loser = turn % 2, 1 - turn % 2
        status, held = take(winner, CREDITS)
        assert status == "OK"
        assert image.lock_try(loser, CREDITS)[0] == "BUSY"

        image.lock_release(CREDITS, held + (1 << 16))

    assert image.picture.header.credits >> 16 == 4096 + 100
