"""Chains: a bucket and its overflow lines, compared with a list; and half-done removals."""

import random

import pytest
from support.core.chains import BUCKET, WHO, stores_of_removal
from support.core.picture import (
    ALLOC,
    LINK_BASE,
    LINK_SLOT,
    LIVE,
    SLOTS,
    block_parts,
    bucket_version_of,
    held_by,
    owner_of,
    state_of,
)


def tag_of(index):
    return index * 2654435761 & 0xFFFFFFFF


@pytest.fixture
def held(image):
    """An image whose bucket 1 is held by context 2."""
    image.picture.buckets[BUCKET].header |= held_by(WHO)
    return image


def fill(image, count, first=100):
    """Append count references to the chain."""
    for index in range(first, first + count):
        assert image.chain_append(WHO, BUCKET, index, tag_of(index)) == "OK"


def stash(image):
    """The lines in the context's stash."""
    found = []
    at = image.picture.context(WHO).line_stash
    while at:
        found.append(at)
        line = image.picture.lines[at]
        assert state_of(line.header) == ALLOC
        assert owner_of(line.header) == WHO
        at = line.tags[0] | line.tags[1] << 32
    return found


def lines_taken(image):
    """How many lines are out of their blocks."""
    count = 0
    for block in range(image.picture.header.line_pool.frontier):
        _, fresh, free, _ = block_parts(image.picture.line_words[block])
        count += fresh - free - (block == 0)
    return count


def check_chain(image, expected):
    """Assert that the chain is sound, has exactly these references, and that no line is lost."""
    entries, lines = image.picture.chain(BUCKET)
    assert sorted(expected) == sorted(index for _, index in entries)
    assert all(tag == tag_of(index) for tag, index in entries)
    for place, at in enumerate(lines):
        line = image.picture.lines[at]
        assert state_of(line.header) == LIVE
        assert owner_of(line.header) is None
        assert image.chain_links(BUCKET, at)
        used = [slot for slot in range(SLOTS) if line.indices[slot]]
        if place + 1 < len(lines):
            assert used == [*range(SLOTS)]
        else:
            assert used == [*range(len(used))]
            assert len(used) >= 2
    if lines:
        assert all(image.picture.buckets[BUCKET].indices)
    assert not any(
        image.picture.buckets[BUCKET].indices[slot] >= LINK_BASE for slot in range(LINK_SLOT)
    )
    assert len(lines) + len(stash(image)) == lines_taken(image)
    assert image.picture.context(WHO).line == 0
    assert owner_of(image.picture.buckets[BUCKET].header) == WHO


@pytest.mark.parametrize("count", range(41))
@pytest.mark.thorough
def test_chain_has_exactly_the_appended_references(held, count):
    """A line is added only when every slot is taken; each line adds 6 references."""
    fill(held, count)

    check_chain(held, range(100, 100 + count))
    assert len(held.picture.chain(BUCKET)[1]) == max(0, (count - 2) // 6)


@pytest.mark.thorough
def test_chain_equals_a_list_under_random_appends_and_removals(held, seed):
    """W1: up to 40 entries, with lines that are added and dissolved; a list is the model."""
    rng = random.Random(seed)
    model = []
    following = 1
    limit = 40
    for step in range(4000):
        if step % 200 == 0:
            limit = rng.choice([3, 8, 14, 40])
        if model and (len(model) >= limit or rng.random() < 0.48):
            index = model.pop(rng.randrange(len(model)))
            assert held.chain_remove(WHO, BUCKET, index)
        else:
            model.append(following)
            assert held.chain_append(WHO, BUCKET, following, tag_of(following)) == "OK"
            following += 1
        check_chain(held, model)
    assert not held.chain_remove(WHO, BUCKET, following)

    held.op_give_back(WHO)
    assert stash(held) == []
    check_chain(held, model)


def test_stashed_line_is_used_before_the_pool(held):
    """The next overflow uses a dissolved line; the pool's word does not change."""
    fill(held, 8)
    (line,) = held.picture.chain(BUCKET)[1]
    word = held.picture.line_words[0]

    held.chain_remove(WHO, BUCKET, 100)
    assert stash(held) == [line]
    fill(held, 1, first=200)

    assert held.picture.chain(BUCKET)[1] == [line]
    assert stash(held) == []
    assert word == held.picture.line_words[0]


def test_removal_that_moves_an_entry_raises_the_version(held):
    """W1: each removal that moves an entry or unlinks a line raises the bucket's version."""
    fill(held, 40)
    for victim in range(100, 140):
        before = held.picture.chain(BUCKET)
        version = bucket_version_of(held.picture.buckets[BUCKET].header)

        held.chain_remove(WHO, BUCKET, victim)

        after = held.picture.chain(BUCKET)
        moved = before[0][: len(after[0])] != after[0] or before[1] != after[1]
        raised = bucket_version_of(held.picture.buckets[BUCKET].header) > version
        assert raised or not moved or not before[1]


def test_append_without_a_line_changes_nothing(make_image):
    """The chain stays as it was, and the status is NEED_LINES."""
    image = make_image()
    image.picture.buckets[BUCKET].header |= held_by(WHO)
    fill(image, 7)

    assert image.chain_append(WHO, BUCKET, 107, tag_of(107)) == "NEED_LINES"

    check_chain(image, range(100, 107))
    assert image.block_commit(WHO, "line") == "OK"
    fill(image, 1, first=107)
    check_chain(image, range(100, 108))


@pytest.mark.parametrize("count", range(41))
def test_clear_leaves_no_reference_and_no_line(held, count):
    """Every line is stashed, and op_give_back gives the stash back to the pool."""
    fill(held, count)

    held.chain_clear(WHO, BUCKET)

    check_chain(held, [])
    assert not any(held.picture.buckets[BUCKET].indices)
    held.op_give_back(WHO)
    assert lines_taken(held) == 0


def test_appended_element_becomes_live_with_its_slot(image):
    """W1: the element is published just before the slot names it; a search then finds it."""
    for number in range(20):
        key = number.to_bytes(8, "little")
        assert image.element_take(WHO) == "OK"
        index = image.picture.context(WHO).element
        image.picture.context(WHO).element = 0
        image.picture.element(index)[1] = number
        assert image.chain_find(BUCKET, 7, key)[0] == "ABSENT"

        assert image.chain_append(WHO, BUCKET, index, 7, True) == "OK"

        assert state_of(image.picture.element(index)[0]) == LIVE
        assert owner_of(image.picture.element(index)[0]) is None
        assert image.chain_find(BUCKET, 7, key) == ("OK", index)
        assert image.chain_find(BUCKET, 8, key)[0] == "ABSENT"


# ---- half-done removals ----


def snapshot(image):
    """Everything that a repair may change."""
    picture = image.picture
    lines = [bytes(picture.lines[at]) for at in range(16)]
    return bytes(picture.buckets[BUCKET]), lines, stash(image)


@pytest.mark.parametrize("count", [8, 9, 13, 14, 15, 20])
def test_repair_finishes_a_removal_from_any_store(make_image, count):
    """C1: the first stores of each possible removal are done, then the chain is repaired.

    Only the victim is missing, no reference is there twice, and no line is lost. A second repair,
    as after the death of the first recovering process, changes nothing.
    """
    image = make_image()
    for kind in "element", "line":
        image.block_commit(0, kind)
    image.picture.buckets[BUCKET].header |= held_by(WHO)
    for victim in range(100, 100 + count):
        stage = 0
        while True:
            fill(image, count)
            stores = stores_of_removal(image, victim)
            if stage > len(stores):
                break
            for store in stores[:stage]:
                store()

            image.chain_repair(WHO, BUCKET)

            once = snapshot(image)
            image.chain_repair(WHO, BUCKET)
            assert once == snapshot(image)
            finish_recovery(image)
            names = [index for _, index in image.picture.chain(BUCKET)[0]]
            expected = {*range(100, 100 + count)} - {victim}
            assert expected == {*names} - {victim}
            assert len(names) == len(set(names))
            # The next step of recover_delete: a victim that is still named is removed again.
            image.chain_remove(WHO, BUCKET, victim)
            check_chain(image, expected)
            image.chain_clear(WHO, BUCKET)
            stage += 1
        image.chain_clear(WHO, BUCKET)


def finish_recovery(image):
    """Stash a line that was unlinked and not yet stashed, as recover_give_back does."""
    context = image.picture.context(WHO)
    if context.line and not image.chain_links(BUCKET, context.line):
        line = image.picture.lines[context.line]
        line.tags[0], line.tags[1] = context.line_stash & 0xFFFFFFFF, 0
        context.line_stash = context.line
        context.line = 0


@pytest.mark.parametrize("count", range(41))
def test_repair_leaves_a_sound_chain_unchanged(held, count):
    """C1: recovery repairs every chain that the dead context holds, and most of them are sound."""
    fill(held, count)
    before = snapshot(held)

    held.chain_repair(WHO, BUCKET)

    assert before == snapshot(held)


# ---- damage ----


def test_search_in_a_circle_of_lines_ends(held):
    """H1: a search visits at most as many lines as the map has, and then returns CORRUPT."""
    fill(held, 20)
    first, *_, last = held.picture.chain(BUCKET)[1]
    held.picture.lines[last].indices[LINK_SLOT] = LINK_BASE + first

    assert held.chain_find(BUCKET, 1, b"12345678")[0] == "CORRUPT"


@pytest.mark.parametrize("link", [0xFFFFFFFF, 0xEFFFFFFF])
def test_link_beyond_the_lines_ends_the_chain(held, link):
    """H1: a link with an index beyond the lines ends the chain, and is not followed."""
    held.picture.buckets[BUCKET].indices[LINK_SLOT] = link
    for slot in range(SLOTS):
        held.picture.buckets[BUCKET].tags[slot] = 1

    assert held.chain_find(BUCKET, 1, b"12345678")[0] == "ABSENT"
    assert not held.chain_links(BUCKET, 1)


def test_index_beyond_the_elements_is_passed_over(held):
    """H1: no element is read at such an index, even if the tag matches."""
    for slot in range(SLOTS):
        held.picture.buckets[BUCKET].tags[slot] = 1
        held.picture.buckets[BUCKET].indices[slot] = held.picture.geometry["element_max"] + slot

    assert held.chain_find(BUCKET, 1, b"12345678")[0] == "ABSENT"
