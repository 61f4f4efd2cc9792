"""The word of who waited too long: who has it, who minds it, and that it runs out."""

import time

import pytest
from support.core.picture import ULOCK

AHEAD_UNITS = 8  # of 2^20 ns: STARVING_AHEAD_NS
UNITS_MAX = 9  # STARVING_UNITS_MAX
TIME_SHIFT = 33  # the time has the word's highest 31 bits
TIME_MASK = (1 << 31) - 1


def units_now():
    return (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 20) & TIME_MASK


def word_of(index, units_ahead):
    """The word as somebody left it who starves for this element, until so many units from now."""
    return ((units_now() + units_ahead) & TIME_MASK) << TIME_SHIFT | index << 1


@pytest.fixture
def entry(image):
    """The index of the element of an entry."""
    assert image.insert(0, b"the key!", b"12345678") == "OK"
    return image.find(b"the key!")[1]


def starving(image):
    return image.picture.header.starving


def test_the_word_names_the_element_and_a_time_to_come(image, entry):
    before = units_now()
    mine = image.starving_say(1, entry)
    ahead = (mine >> TIME_SHIFT) - before

    assert mine == starving(image)
    assert mine >> 1 & 0xFFFF_FFFF == entry
    assert mine & 1 == 0  # no lock word
    assert AHEAD_UNITS <= ahead & TIME_MASK <= AHEAD_UNITS + (units_now() - before & TIME_MASK)


def test_only_others_and_only_for_that_element_mind_it(image, entry):
    image.starving_say(1, entry)

    assert image.starving_is_another(2, entry)
    assert not image.starving_is_another(1, entry)
    assert not image.starving_is_another(2, entry + 1)


def test_others_do_not_begin_to_take_the_element(image, entry):
    """L1: whoever starves is let in first, and the word is gone then."""
    image.starving_say(1, entry)

    assert image.element_hold(2, entry, ULOCK)[0] == "BUSY"
    assert image.waits_for(2)[1] == starving(image)
    assert image.element_hold(1, entry, ULOCK)[0] == "OK"
    assert starving(image) == 0


def test_who_has_it_keeps_it_and_others_do_not_get_it(image, entry):
    first = image.starving_say(1, entry)

    assert image.starving_say(2, entry + 1) == 0
    assert starving(image) == first
    time.sleep(0.003)  # so that the time to come is another
    later = image.starving_say(1, entry)
    assert later == starving(image)
    assert (later - first) >> TIME_SHIFT >= 1
    assert image.starving_is_another(2, entry)


def test_nobody_else_ends_it(image, entry):
    first = image.starving_say(1, entry)

    assert image.starving_end(2) == 0
    assert starving(image) == first
    assert image.starving_end(1) == 0
    assert starving(image) == 0


@pytest.mark.parametrize("ahead", [-1, -1000, UNITS_MAX + 2, 30_000, 1 << 16, 1 << 30])
def test_a_word_that_has_run_out_is_nobodys(image, entry, ahead):
    """L1, H1: left by the dead, or written by an accident: it holds up nobody, neither now nor when
    some bits of the clock are again as they were. Who meets it takes it away."""
    image.picture.header.starving = word_of(entry, ahead)

    assert not image.starving_is_another(2, entry)
    assert starving(image) == 0
    assert image.element_hold(2, entry, ULOCK)[0] == "OK"
    assert image.starving_say(3, entry) == starving(image) != 0


@pytest.mark.parametrize("ahead", [2, UNITS_MAX - 1])
def test_a_word_that_has_not_run_out_counts(image, entry, ahead):
    image.picture.header.starving = word = word_of(entry, ahead)

    assert image.starving_is_another(2, entry)
    assert image.starving_say(3, entry) == 0
    assert starving(image) == word


def test_whoever_lost_the_word_waits_like_everybody_else(image, entry):
    """It ran out and another took it."""
    image.starving_say(1, entry)
    image.picture.header.starving = anothers = word_of(entry, 3)

    assert image.starving_is_another(1, entry)
    image.starving_say(1, entry)
    assert starving(image) == anothers
    image.starving_end(1)
    assert starving(image) == anothers


def test_whoever_gives_up_gives_up_the_word(image, entry):
    """L1: an operation that ends without the element does not keep others from it."""
    image.starving_say(1, entry)
    image.op_give_back(1)
    assert starving(image) == 0
    assert not image.starving_is_another(2, entry)

    image.starving_say(1, entry)
    image.picture.header.starving = anothers = word_of(entry, 3)
    image.op_give_back(1)
    assert starving(image) == anothers
