"""Depots: free elements for each CPU, and credits that make max_entries exact."""

import random

import pytest
from support.core.picture import (
    ALLOC,
    FREE,
    READY,
    block_parts,
    block_word,
    depot_word,
    held_by,
    owner_of,
    state_of,
)

DEPOTS = 4


def credits_somewhere(image):
    """The credits in the header and in the depots."""
    return (image.picture.header.credits >> 16) + sum(
        depot.credit for depot in image.picture.depots
    )


def take(image, who, depot=None):
    """Take an element, and commit the memory for it; None if the map is full."""
    while True:
        status = image.element_take(who) if depot is None else image.depot_take(who, depot)
        if status == "NEED_ELEMENTS":
            assert image.block_commit(who, "element") == "OK"
            continue
        if status == "FULL":
            return None
        assert status == "OK"
        context = image.picture.context(who)
        index, context.element = context.element, 0
        header = image.picture.element(index)[0]
        assert state_of(header) == ALLOC
        assert owner_of(header) == who
        return index


def give(image, who, index):
    context = image.picture.context(who)
    context.element = index
    assert image.element_give(who) == "OK"
    assert context.element == 0
    assert state_of(image.picture.element(index)[0]) == FREE


def check_parked(image, held):
    """Assert that each parked element is FREE, parked once, and not held."""
    parked = [index for depot in range(DEPOTS) for index in image.picture.parked(depot)]
    assert len(set(parked)) == len(parked)
    assert not set(parked) & set(held)
    assert all(state_of(image.picture.element(index)[0]) == FREE for index in parked)


@pytest.mark.parametrize("entries", [1, 2, 31, 32, 33, 100, 1000])
def test_max_entries_is_exact_whatever_depots_are_used(make_image, seed, entries):
    """W2: exactly max_entries elements can be taken, by any contexts, through any depots."""
    image = make_image(max_entries=entries, depot_count=DEPOTS)
    rng = random.Random(seed)
    held = []
    while True:
        index = take(image, rng.randrange(4), rng.choice([None, *range(DEPOTS)]))
        if index is None:
            # This depot and the header have no credit; other depots may have some.
            index = take(image, 0)
            if index is None:
                break
        held.append(index)
        assert credits_somewhere(image) + len(held) == entries

    assert entries == len(held) == len(set(held))
    assert image.element_take(0) == "FULL"
    assert image.element_take(1, True) == "FULL"
    give(image, 0, held.pop())
    assert take(image, 3) is not None
    assert image.element_take(0) == "FULL"


@pytest.mark.parametrize("value_size", [8, 200, 1000, 9000])
def test_credits_are_conserved_by_random_takers_and_givers(make_image, seed, value_size):
    """W2: header + depots + taken == max_entries after every step; nothing is in two places."""
    image = make_image(max_entries=700, depot_count=DEPOTS, value_size=value_size)
    rng = random.Random(seed)
    held = []
    for step in range(4000):
        filling = step % 1600 < 900
        if held and rng.random() < (0.3 if filling else 0.7):
            place = rng.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            give(image, rng.randrange(4), held.pop())
        else:
            index = take(image, rng.randrange(4), rng.choice([None, *range(DEPOTS)]))
            if index is not None:
                assert index not in held
                held.append(index)
        assert credits_somewhere(image) + len(held) == 700
        if step % 100 == 0:
            check_parked(image, held)
            assert max(depot.credit for depot in image.picture.depots) < 255
    for index in held:
        give(image, 0, index)

    problem, where, figures = image.check()
    assert (problem, where) == (0, 0)
    assert figures["credits"] == 700


def test_refill_brings_a_batch_and_credits(image):
    """One trip to the pool and one to the header serve several dozen insertions."""
    batch = image.picture.geometry["depot_batch"]

    assert image.depot_take(0, 1) == "OK"

    depot = image.picture.depots[1]
    assert (batch - 1, 31) == (depot.count, depot.credit)
    assert image.picture.header.credits >> 16 == 4096 - 32
    assert batch - 1 == len(set(image.picture.parked(1)))
    assert image.picture.context(0).list_count == 0
    assert image.picture.context(0).credit_moving == 0


def test_full_depot_returns_elements_and_credits(make_image):
    """A full depot gives elements to their blocks and credits to the header: it never overflows."""
    image = make_image(max_entries=3000, depot_count=1)
    held = [take(image, 0) for _ in range(3000)]
    high = image.picture.geometry["depot_high"]

    for index in held:
        give(image, 0, index)
        assert image.picture.depots[0].count <= high
        assert image.picture.depots[0].credit <= 128

    assert image.picture.header.credits >> 16 > 3000 - 128
    assert image.check()[0] == 0


def test_trimming_leaves_the_target_and_loses_nothing(image):
    """Half of `keep` stays parked; the other elements are free in their blocks again."""
    image.depot_take(0, 0)
    image.element_give(0)
    before = sum(image.picture.depots[at].count for at in range(2))
    fullest = max(range(2), key=lambda at: image.picture.depots[at].count)

    image.depot_trim(1, fullest, 20)

    assert image.picture.depots[fullest].count == 10
    problem, _, figures = image.check()
    assert problem == 0
    assert figures["parked"] + figures["free"] == before


def listed(image, block):
    """The elements in a block's free list."""
    capacity = image.picture.geometry["element_pool"]["capacity"]
    _, _, free, head = block_parts(image.picture.element_words[block])
    found = [block * capacity + head]
    while len(found) < free:
        found.append(image.picture.element(found[-1])[1])
    return found[:free]


@pytest.mark.parametrize("run", [1, 2, 5, 16, 17, 40])
def test_parked_elements_go_back_to_their_blocks_in_runs(make_image, run):
    """C1: runs of two blocks take turns in a depot's list. A drained element is in its own block's
    list, and stays FREE in the version that it had; the others stay parked, in their order."""
    image = make_image(depot_count=1)
    capacity = image.picture.geometry["element_pool"]["capacity"]
    held = [take(image, 0) for _ in range(2 * capacity - 1)]
    both = [sorted(held)[: 2 * run], [index for index in held if index >= capacity][: 2 * run]]
    order = [index for at in (0, run) for block in both for index in block[at : at + run]]
    order = order[: image.picture.geometry["depot_high"] - 1]
    image.depot_trim(0, 0, 0)
    assert image.picture.depots[0].count == 0
    for index in order:
        give(image, 0, index)
    parked = image.picture.parked(0)
    versions = [image.picture.element(index)[0] for index in parked]
    assert parked == order[::-1]

    image.depot_trim(1, 0, 2 * (len(parked) // 4))

    given, left = parked[: -(len(parked) // 4)], parked[-(len(parked) // 4) :]
    assert left == image.picture.parked(0)
    assert versions == [image.picture.element(index)[0] for index in parked]
    found = [index for block in (0, 1) for index in listed(image, block)]
    assert len(set(found)) == len(found)
    assert set(given) == set(found) & set(order)
    assert image.picture.context(1).list_count == 0


def test_a_run_is_not_given_to_a_block_that_is_held(image):
    """W2: a depot whose first element's block is held stays as it is, and loses nothing."""
    for index in [take(image, 0, 0) for _ in range(20)]:
        give(image, 0, index)
    at = max(range(2), key=lambda depot: image.picture.depots[depot].count)
    before = image.picture.depots[at].word, image.picture.parked(at)
    image.picture.element_words[0] |= held_by(3)

    image.depot_trim(1, at, 0)

    assert before == (image.picture.depots[at].word, image.picture.parked(at))
    assert image.picture.context(1).list_count == 0


def test_a_run_that_does_not_fit_into_its_block_stays_parked(image):
    """H1: a block's word that has room for no more free elements is damaged, and stays as it is."""
    index = take(image, 0, 0)
    give(image, 0, index)
    at = next(depot for depot in range(2) if index in image.picture.parked(depot))
    damaged = block_word(READY, 5, 5, 1)
    image.picture.element_words[0] = damaged
    parked = image.picture.parked(at)

    image.depot_trim(1, at, 0)

    assert parked == image.picture.parked(at)
    assert damaged == image.picture.element_words[0]


def test_credits_move_32_at_a_time_until_none_is_left(make_image):
    """W2: the last credits of the header move, too; then the header has none: FULL."""
    image = make_image(max_entries=40, depot_count=2)
    depots, header = image.picture.depots, image.picture.header

    assert image.credits_move(0, 0, True) == "OK"
    assert (depots[0].credit, header.credits >> 16) == (32, 8)
    assert image.credits_move(0, 1, True) == "OK"
    assert (depots[1].credit, header.credits >> 16) == (8, 0)
    assert image.credits_move(0, 1, True) == "FULL"
    assert image.credits_move(0, 0, False) == "OK"
    assert (depots[0].credit, header.credits >> 16) == (0, 32)


def test_credits_do_not_move_while_their_word_is_held(image):
    """BUSY while the word of the credits is held; no credit is lost, the depot is released."""
    image.depot_take(0, 0)
    image.element_give(0)
    total = credits_somewhere(image)
    image.picture.header.credits |= held_by(3)

    for fetch in (True, False):
        assert image.credits_move(1, 0, fetch) == "BUSY"
        assert owner_of(image.waits_for(1)[1]) == 3
        assert owner_of(image.picture.depots[0].word) is None
        assert total == credits_somewhere(image)


def test_held_depot_is_passed_over(image):
    """W2: any other depot serves to take and to give; if all are held, the status is BUSY."""
    taken = [take(image, 0, depot) for depot in (0, 1)]
    image.picture.depots[0].word |= held_by(3)
    before = image.picture.depots[0].word

    assert image.depot_take(1, 0) == "BUSY"
    taken += [take(image, 1) for _ in range(3)]
    give(image, 1, taken.pop())

    assert before == image.picture.depots[0].word
    image.picture.depots[1].word |= held_by(2)
    assert image.element_take(1) == "BUSY"
    assert owner_of(image.waits_for(1)[1]) in (2, 3)
    image.picture.context(1).element = taken.pop()
    assert image.element_give(1) == "BUSY"
    assert image.picture.context(1).element != 0


def test_map_is_not_full_while_any_depot_may_have_a_credit(make_image):
    """W2: FULL is returned only after every depot was examined; a held one may have credits."""
    image = make_image(max_entries=2, depot_count=DEPOTS)
    assert take(image, 0, 3) is not None
    assert image.picture.depots[3].credit == 1
    assert image.depot_take(0, 0) == "FULL"

    word = image.picture.depots[3].word
    image.picture.depots[3].word |= held_by(2)
    assert image.element_take(0) == "BUSY"
    image.picture.depots[3].word = word & ~(0xFF << 24) | held_by(2)  # a credit may be moving
    assert image.element_take(0) == "BUSY"
    image.picture.depots[3].word = word
    assert take(image, 0) is not None
    assert image.element_take(0) == "FULL"


@pytest.mark.parametrize("head", [0, 0xF0000000, 0xFFFFFFFF])
def test_damaged_head_of_a_depot_is_noticed(image, head):
    """H1: a head that is not the index of an element is CORRUPT; the depot is released
    unchanged."""
    damaged = depot_word(head, 3, 3)
    image.picture.depots[0].word = damaged

    assert image.depot_take(0, 0) == "CORRUPT"
    assert damaged == image.picture.depots[0].word


def test_head_one_past_the_last_element_is_noticed(image):
    """H1: the number of elements is not itself the index of an element."""
    image.picture.depots[0].word = depot_word(image.picture.geometry["element_max"], 1, 1)

    assert image.depot_take(0, 0) == "CORRUPT"
