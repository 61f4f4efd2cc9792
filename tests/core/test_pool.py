"""Pools: objects in blocks, each object handed out once; blocks are committed and released."""

import os
import random

import pytest
from support.core.picture import (
    ALLOC,
    FREE,
    HOLE,
    READY,
    block_parts,
    block_word,
    held_by,
    owner_of,
    state_of,
)

KINDS = ["element", "line"]

both_kinds = pytest.mark.parametrize("kind", KINDS)


def words(image, kind):
    return getattr(image.picture, f"{kind}_words")


def shared(image, kind):
    return getattr(image.picture.header, f"{kind}_pool")


def capacity(image, kind):
    return image.picture.geometry[f"{kind}_pool"]["capacity"]


def header(image, kind, index):
    if kind == "line":
        return image.picture.lines[index].header
    return image.picture.element(index)[0]


def link(image, kind, index):
    """The next object of the free list that a free object is in."""
    if kind == "line":
        return image.picture.lines[index].tags[0] | image.picture.lines[index].tags[1] << 32
    return image.picture.element(index)[1]


def listed(image, kind, block):
    """The objects in a block's free list."""
    _, _, free, head = block_parts(words(image, kind)[block])
    found = []
    at = block * capacity(image, kind) + head
    for _ in range(free):
        found.append(at)
        at = link(image, kind, at)
    return found


def take_all(image, kind, who=0):
    """Take every object of the committed blocks."""
    taken = []
    while True:
        status, index = image.pool_take(who, kind)
        if status != "OK":
            assert status == f"NEED_{kind.upper()}S"
            return taken
        taken.append(index)


@both_kinds
def test_each_object_but_0_is_handed_out_once(image, kind):
    """All objects of two blocks except object 0, whose index means "none"; each header names the
    context that took it."""
    assert image.block_commit(0, kind) == "OK"  # a block with free objects exists: nothing to do
    assert shared(image, kind).frontier == 1
    first = take_all(image, kind, who=1)
    assert image.block_commit(0, kind) == "OK"
    second = take_all(image, kind, who=2)

    size = capacity(image, kind)
    assert list(range(1, size)) == sorted(first)
    assert list(range(size, 2 * size)) == sorted(second)
    assert shared(image, kind).frontier == 2 == shared(image, kind).ready_count
    for index in (*first, *second):
        assert state_of(header(image, kind, index)) == ALLOC
        assert owner_of(header(image, kind, index)) == (1 if index < size else 2)


@both_kinds
def test_blocks_count_randomly_taken_and_given_objects(image, seed, kind):
    """A set is the model: fresh and free fit it after each step, and the free list every 250."""
    rng = random.Random(seed)
    size = capacity(image, kind)
    held = set()
    for step in range(6000):
        if held and rng.random() < (0.35 if step % 2000 < 1000 else 0.65):
            index = rng.choice(tuple(held)) if len(held) < 40 else held.pop()
            held.discard(index)
            assert image.pool_give(step % 4, kind, index) == "OK"
            assert state_of(header(image, kind, index)) == FREE
            assert owner_of(header(image, kind, index)) is None
        else:
            status, index = image.pool_take(step % 4, kind)
            if len(held) == size - 1:
                assert status == f"NEED_{kind.upper()}S"
                continue
            assert status == "OK"
            assert index not in held
            assert 0 < index < size
            held.add(index)
        state, fresh, free, _ = block_parts(words(image, kind)[0])
        assert state == READY
        assert fresh - 1 - free == len(held)
        assert (not held) == image.block_is_empty(kind, 0)
        if step % 250 == 0:
            free_ones = listed(image, kind, 0)
            assert len(set(free_ones)) == free
            assert set(free_ones) | held == set(range(1, fresh))


@both_kinds
def test_pool_without_a_block_says_what_it_needs(make_image, kind):
    image = make_image()

    assert image.pool_take(0, kind) == (f"NEED_{kind.upper()}S", 0)
    assert image.block_commit(0, kind) == "OK"
    assert image.pool_take(0, kind) == ("OK", 1)


@both_kinds
def test_lowest_block_with_a_free_object_is_used_first(image, kind):
    """An object given to a low block is taken next, so that high blocks run empty."""
    size = capacity(image, kind)
    take_all(image, kind)
    image.block_commit(0, kind)
    high = image.pool_take(0, kind)[1]
    assert high == size
    assert shared(image, kind).hint == 1

    assert image.pool_give(0, kind, 17) == "OK"

    assert shared(image, kind).hint == 0
    assert image.pool_take(0, kind) == ("OK", 17)
    assert image.pool_take(0, kind) == ("OK", size + 1)


@both_kinds
@pytest.mark.parametrize("hint", [1, 2, 1000, 2**64 - 1])
def test_wrong_hint_costs_only_a_search(image, kind, hint):
    shared(image, kind).hint = hint

    assert image.pool_take(0, kind) == ("OK", 1)
    assert shared(image, kind).hint == 0


@both_kinds
def test_a_held_block_is_passed_over(image, kind):
    """An object comes from another block, without waiting; a give to the held block is BUSY."""
    size = capacity(image, kind)
    take_all(image, kind)
    image.block_commit(0, kind)
    image.pool_give(0, kind, 5)
    words(image, kind)[0] |= held_by(3)

    assert image.pool_take(0, kind) == ("OK", size)
    assert image.pool_give(0, kind, 6) == "BUSY"
    assert owner_of(image.waits_for(0)[1]) == 3
    assert listed(image, kind, 0) == [5]


@both_kinds
def test_a_commit_without_memory_leaves_a_hole(make_image, kind):
    """M1: a file that ends early stands for a full file system."""
    image = make_image()
    os.ftruncate(image.fd, image.picture.geometry[f"{kind}s_offset"])

    assert image.block_commit(0, kind) == "NO_MEMORY"

    assert words(image, kind)[0] == 0
    assert shared(image, kind).ready_count == 0
    os.ftruncate(image.fd, image.picture.geometry["segment_bytes"])
    assert image.block_commit(0, kind) == "OK"
    assert image.pool_take(0, kind) == ("OK", 1)


@both_kinds
def test_only_an_empty_block_is_released(image, kind):
    """An object in use keeps a block; a held word and a busy context postpone its release."""
    take_all(image, kind)
    image.block_commit(0, kind)
    index = image.pool_take(0, kind)[1]
    assert not image.block_is_empty(kind, 1)
    assert image.block_release(1, kind, 1) == "RETRY"
    image.pool_give(0, kind, index)
    assert image.block_is_empty(kind, 1)
    before = words(image, kind)[1]

    image.picture.context(2).activity = 1
    assert image.block_release(1, kind, 1) == "BUSY"
    assert before == words(image, kind)[1]
    image.picture.context(2).activity = 2
    words(image, kind)[1] |= held_by(3)
    assert image.block_release(1, kind, 1) == "BUSY"
    assert before | held_by(3) == words(image, kind)[1]
    words(image, kind)[1] = before
    assert shared(image, kind).releases == 0

    used = os.fstat(image.fd).st_blocks * 512
    assert image.block_release(1, kind, 1) == "OK"
    assert words(image, kind)[1] == 0
    assert shared(image, kind).ready_count == 1
    assert shared(image, kind).releases == 1
    assert image.picture.header.statistics.blocks_released == 1
    freed = used - os.fstat(image.fd).st_blocks * 512
    assert freed == image.picture.geometry[f"{kind}_pool"]["block_bytes"]


@both_kinds
def test_a_hole_is_filled_before_the_frontier_moves(image, kind):
    """Of three blocks the middle one is released: it is the next to be committed."""
    everything = take_all(image, kind)
    for _ in range(2):
        image.block_commit(0, kind)
        everything += take_all(image, kind)
    size = capacity(image, kind)
    for index in range(size, 2 * size):
        assert image.pool_give(0, kind, index) == "OK"
    assert image.block_release(0, kind, 1) == "OK"
    assert block_parts(words(image, kind)[1])[0] == HOLE

    assert image.pool_take(0, kind)[0] == f"NEED_{kind.upper()}S"
    assert image.block_commit(0, kind) == "OK"

    assert shared(image, kind).frontier == 3
    assert image.pool_take(0, kind) == ("OK", size)


@both_kinds
def test_lowest_empty_block_is_kept_and_others_are_released(image, kind):
    """The kept block serves a later refill; the memory of other empty blocks is given back."""
    everything = take_all(image, kind)
    for _ in range(2):
        image.block_commit(0, kind)
        everything += take_all(image, kind)
    size = capacity(image, kind)

    for index in range(size, 2 * size):
        image.pool_give(0, kind, index)
    assert block_parts(words(image, kind)[1])[0] == READY
    assert shared(image, kind).kept_block == 2
    for index in range(2 * size, 3 * size):
        image.pool_give(0, kind, index)
    assert block_parts(words(image, kind)[1])[0] == READY
    assert words(image, kind)[2] == 0
    for index in range(1, size):
        image.pool_give(0, kind, index)
    assert block_parts(words(image, kind)[0])[0] == READY
    assert words(image, kind)[1] == 0
    assert shared(image, kind).kept_block == 1
    assert shared(image, kind).ready_count == 1


# ---- chains of elements, for a depot ----


def test_detached_chain_has_listed_objects_then_fresh_ones(image):
    """Listed objects come first, in the list's order; no object of it is handed out again."""
    taken = [image.pool_take(0, "element")[1] for _ in range(5)]
    for index in taken:
        image.pool_give(0, "element", index)

    status, chain = image.pool_detach(1, 8)

    assert status == "OK"
    assert [*reversed(taken), 6, 7, 8] == chain
    context = image.picture.context(1)
    assert (chain[0], chain[-1], 8) == (
        context.list_head,
        context.list_tail,
        context.list_count,
    )
    assert all(state_of(header(image, "element", index)) == FREE for index in chain)
    assert not set(take_all(image, "element")) & set(chain)


def test_a_detached_chain_ends_with_the_block(image):
    """A chain is shorter than wanted rather than from two blocks."""
    size = capacity(image, "element")
    for _ in range(size - 4):
        image.pool_take(0, "element")

    assert image.pool_detach(1, 48) == ("OK", [size - 3, size - 2, size - 1])
    assert image.pool_detach(1, 48) == ("NEED_ELEMENTS", [])


def test_random_detaching_hands_out_each_element_once(image, seed):
    """Chains of random lengths from three blocks, with objects given back in between."""
    rng = random.Random(seed)
    held = set()
    for _ in range(3000):
        if held and rng.random() < 0.45:
            for index in rng.sample(sorted(held), min(len(held), rng.randint(1, 60))):
                held.remove(index)
                assert image.pool_give(0, "element", index) == "OK"
        else:
            status, chain = image.pool_detach(1, rng.randint(1, 60))
            if status == "NEED_ELEMENTS":
                if shared(image, "element").ready_count == 3:
                    break
                assert image.block_commit(2, "element") == "OK"
            else:
                assert status == "OK"
                assert chain
                assert len(set(chain)) == len(chain)
                assert not held & set(chain)
                held |= set(chain)
                for index in chain:  # as the taker of the chain would
                    image.picture.element(index)[0] = ALLOC << 16 | held_by(0)
    assert len(held) > 0


# ---- damage ----


TAKES = {
    "an element": ("element", lambda image: image.pool_take(0, "element")),
    "a line": ("line", lambda image: image.pool_take(0, "line")),
    "a chain": ("element", lambda image: image.pool_detach(0, 5)),
}


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize("count", [1, 2])
def test_head_outside_the_block_is_noticed(image, take, count):
    """H1: a head outside the block is CORRUPT, last of the list or not; its word is unlocked."""
    kind, pool_take = TAKES[take]
    size = capacity(image, kind)
    damaged = block_word(READY, size, count, size)
    words(image, kind)[0] = damaged

    status, found = pool_take(image)

    assert status == "CORRUPT", f"handed out {found}, but the block ends at {size}"
    assert damaged == words(image, kind)[0]


@both_kinds
def test_link_outside_the_block_is_noticed(image, kind):
    """H1: the link to the second object of a free list is checked before it is used."""
    indices = [image.pool_take(0, kind)[1] for _ in range(3)]
    for index in indices:
        image.pool_give(0, kind, index)
    before = words(image, kind)[0]
    if kind == "line":
        image.picture.lines[indices[-1]].tags[1] = 1
    else:
        image.picture.element(indices[-1])[1] = 1 << 40

    assert image.pool_take(0, kind)[0] == "CORRUPT"
    assert before == words(image, kind)[0]
