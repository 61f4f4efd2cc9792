"""The size classes of objects: what each takes, as pure functions of the length (M1)."""

import itertools

import pytest

PAGE = 4096
LENGTH_MAX = (256 << 20) - 64
SMALL_MAX, BLOCK_MAX = 4096, 32_768  # bytes of the largest object with a depot, and in a block
BLOCK_HEADER, RUN_HEADER = 8, 64
INDEX_MAX = 0xFFFF_FFFF - 4095  # objects of one class, less a block
ENTRY_BYTES = 85  # of an entry without its object: place in the table, element, in a cache hints
LIMITS = [64 << 10, 1 << 20, 64 << 20, 1 << 30, 1 << 38]


def object_bytes(unit, facts, length):
    """What an object of length bytes takes in a full pool."""
    pool = facts[unit.class_of(length)]
    if pool["capacity"] == 1:
        return unit.run_pages_of(length) * PAGE
    return pool["block_bytes"] / pool["capacity"]


def edges(facts):
    """The lengths at both sides of each boundary between two classes, and between two pages."""
    for pool in facts:
        header = BLOCK_HEADER if pool["capacity"] > 1 else RUN_HEADER
        yield from (pool["bytes"] - header, pool["bytes"] - header + 1)
    for pages in (*range(9, 80), *(1 << power for power in range(7, 16))):
        yield from (pages * PAGE - RUN_HEADER, pages * PAGE - RUN_HEADER + 1)


@pytest.mark.parametrize("max_bytes", LIMITS)
def test_the_largest_object_of_a_class_is_what_its_size_says(unit, max_bytes):
    facts = unit.class_facts(max_bytes, 2)
    for which, pool in enumerate(facts):
        header = BLOCK_HEADER if pool["bytes"] <= BLOCK_MAX else RUN_HEADER
        assert pool["stride"] == pool["bytes"]
        assert unit.class_of(pool["bytes"] - header) == which
        if which + 1 < len(facts):
            assert unit.class_of(pool["bytes"] - header + 1) == which + 1
            assert pool["bytes"] < facts[which + 1]["bytes"]
    assert unit.class_of(0) == 0
    assert unit.class_of(LENGTH_MAX) == len(facts) - 1


def test_every_length_fits_the_class_that_it_gets(unit):
    """Each length up to 100,000, and the edges above: never too small, never a smaller one free."""
    facts = unit.class_facts(1 << 30, 2)
    sizes = [pool["bytes"] for pool in facts]
    for length in itertools.chain(range(70_000), edges(facts)):
        if length > LENGTH_MAX:
            continue
        which = unit.class_of(length)
        header = BLOCK_HEADER if length + BLOCK_HEADER <= BLOCK_MAX else RUN_HEADER
        assert length + header <= sizes[which]
        assert which == 0 or length + header > sizes[which - 1] or sizes[which - 1] == BLOCK_MAX


@pytest.mark.parametrize("max_bytes", LIMITS)
def test_an_entry_takes_at_most_its_value_and_a_sixth(unit, max_bytes):
    """From 64 bytes on at most 1.15 times the value and 100 bytes, everything counted."""
    facts = unit.class_facts(max_bytes, 2)
    for length in itertools.chain(range(64, 3000), edges(facts)):
        if 64 <= length <= LENGTH_MAX:
            taken = object_bytes(unit, facts, length) + ENTRY_BYTES
            assert taken <= 1.15 * length + 100, length


@pytest.mark.parametrize("max_bytes", LIMITS)
def test_blocks_are_whole_pages_with_little_rest_and_small(unit, max_bytes):
    for pool in unit.class_facts(max_bytes, 4):
        if pool["bytes"] > BLOCK_MAX:
            assert pool["capacity"] == 1
            continue
        rest = pool["block_bytes"] - pool["capacity"] * pool["stride"]
        assert 0 <= rest <= pool["block_bytes"] / 64
        assert pool["block_bytes"] % PAGE == 0
        begin = min(max(max_bytes // 2048 // PAGE, 1), 16)  # pages; 15 more do for any class
        assert pool["block_bytes"] <= (begin + 15) * PAGE
        assert 2 <= pool["capacity"] <= 4095  # 12 bits in a block word; one object is a run's mark
        # max_bytes of objects all of this class have room; object 0 is used unless depots name it.
        count = pool["object_count"]
        assert (count - pool["reserved"]) * pool["stride"] >= max_bytes or count >= INDEX_MAX
        assert count <= 0xFFFF_FFFF  # 32 bits in a depot's word
        assert pool["reserved"] == pool["has_depots"] == (pool["bytes"] <= SMALL_MAX)


@pytest.mark.parametrize("max_bytes", LIMITS)
def test_objects_lie_one_after_the_other_in_their_block(unit, max_bytes):
    """No object reaches beyond its block: the place of an index, computed without a division."""
    for which, pool in enumerate(unit.class_facts(max_bytes, 2)):
        per_block = pool["capacity"]
        for block in {0, 1, pool["block_count"] // 2, pool["block_count"] - 1}:
            for at in {0, 1, per_block // 2, per_block - 1} - {per_block}:
                place = block * pool["block_bytes"] + at * pool["stride"]
                assert unit.object_place(max_bytes, which, block * per_block + at) == place


@pytest.mark.parametrize("depot_count", [1, 2, 16, 256])
@pytest.mark.parametrize("max_bytes", LIMITS)
def test_depots_park_little_of_max_bytes(unit, max_bytes, depot_count):
    """All depots together a sixteenth of max_bytes, or two objects each if that is more."""
    parked = 0
    for pool in unit.class_facts(max_bytes, depot_count):
        if not pool["has_depots"]:
            continue
        assert 2 <= pool["depot_high"] <= 96
        assert pool["depot_high"] * pool["bytes"] <= 24_576 or pool["depot_high"] == 2
        if pool["depot_high"] > 2:
            parked += pool["depot_high"] * pool["bytes"] * depot_count
    assert parked <= max_bytes / 16
