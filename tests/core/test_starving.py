"""The word `starving`: a context that waited too long claims an element, for a limited time."""

import time

import pytest
from support.core.picture import ULOCK

AHEAD_UNITS = 8  # units of 2^20 ns: STARVING_AHEAD_NS
UNITS_MAX = 9  # STARVING_UNITS_MAX
TIME_SHIFT = 33  # the time is in the word's highest 31 bits
TIME_MASK = (1 << 31) - 1


def units_now():
    return (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 20) & TIME_MASK


def word_of(index, units_ahead):
    """The word of a context that starves for this element, valid for this many units from now."""
    return ((units_now() + units_ahead) & TIME_MASK) << TIME_SHIFT | index << 1


@pytest.fixture
def entry(image):
    """The index of the element of an entry."""
    assert image.insert(0, b"the key!", b"12345678") == "OK"
    return image.find(b"the key!")[1]


def starving(image):
    return image.picture.header.starving


def test_starving_word_names_the_element_and_a_deadline(image, entry):
    before = units_now()
    mine = image.starving_say(1, entry)
    ahead = (mine >> TIME_SHIFT) - before

    assert mine == starving(image)
    assert mine >> 1 & 0xFFFF_FFFF == entry
    assert mine & 1 == 0  # it is no lock word
    assert AHEAD_UNITS <= ahead & TIME_MASK <= AHEAD_UNITS + (units_now() - before & TIME_MASK)


def test_starving_word_concerns_only_others_and_only_its_element(image, entry):
    image.starving_say(1, entry)

    assert image.starving_is_another(2, entry)
    assert not image.starving_is_another(1, entry)
    assert not image.starving_is_another(2, entry + 1)


def test_others_cannot_hold_an_element_that_a_context_starves_for(image, entry):
    """L1: the starving context gets the element first, and its hold clears the word."""
    image.starving_say(1, entry)

    assert image.element_hold(2, entry, ULOCK)[0] == "BUSY"
    assert image.waits_for(2)[1] == starving(image)
    assert image.element_hold(1, entry, ULOCK)[0] == "OK"
    assert starving(image) == 0


def test_starving_word_is_renewed_by_its_context_and_not_taken_by_others(image, entry):
    first = image.starving_say(1, entry)

    assert image.starving_say(2, entry + 1) == 0
    assert starving(image) == first
    time.sleep(0.003)  # so that the deadline is a later one
    later = image.starving_say(1, entry)
    assert later == starving(image)
    assert (later - first) >> TIME_SHIFT >= 1
    assert image.starving_is_another(2, entry)


def test_starving_word_is_ended_only_by_its_context(image, entry):
    first = image.starving_say(1, entry)

    assert image.starving_end(2) == 0
    assert starving(image) == first
    assert image.starving_end(1) == 0
    assert starving(image) == 0


@pytest.mark.parametrize("ahead", [-1, -1000, UNITS_MAX + 2, 30_000, 1 << 16, 1 << 30])
def test_expired_starving_word_holds_up_no_context(image, entry, ahead):
    """L1, H1: a word left by a dead process, or written by accident, holds up no context, neither
    now nor when some bits of the clock repeat. A context that meets it clears it."""
    image.picture.header.starving = word_of(entry, ahead)

    assert not image.starving_is_another(2, entry)
    assert starving(image) == 0
    assert image.element_hold(2, entry, ULOCK)[0] == "OK"
    assert image.starving_say(3, entry) == starving(image) != 0


@pytest.mark.parametrize("ahead", [2, UNITS_MAX - 1])
def test_unexpired_starving_word_counts(image, entry, ahead):
    image.picture.header.starving = word = word_of(entry, ahead)

    assert image.starving_is_another(2, entry)
    assert image.starving_say(3, entry) == 0
    assert starving(image) == word


def test_context_that_lost_the_starving_word_waits_like_others(image, entry):
    """Its word ran out, and another context has set the word since."""
    image.starving_say(1, entry)
    image.picture.header.starving = anothers = word_of(entry, 3)

    assert image.starving_is_another(1, entry)
    image.starving_say(1, entry)
    assert starving(image) == anothers
    image.starving_end(1)
    assert starving(image) == anothers


def test_operation_that_gives_up_ends_its_starving_word(image, entry):
    """L1: an operation that ends without the element does not keep others from it."""
    image.starving_say(1, entry)
    image.op_give_back(1)
    assert starving(image) == 0
    assert not image.starving_is_another(2, entry)

    image.starving_say(1, entry)
    image.picture.header.starving = anothers = word_of(entry, 3)
    image.op_give_back(1)
    assert starving(image) == anothers
