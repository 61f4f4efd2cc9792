"""The layout of a segment: a pure function of four numbers, without overlaps."""

import itertools
import random

import pytest

PAGE = 4096
LINK_BASE = 0xF0000000
ADDRESS_SPACE = 1 << 46
PAIR_SIZE_LIMIT = (4 << 20) - 64

EXTREMES = {
    "the smallest": (1, 1, 1, 1),
    "the usual": (8, 8, 1_000_000, 4),
    "most entries": (8, 8, 2**31, 256),
    "the longest keys": (65_535, 8, 1_000_000, 256),
    "the longest values": (8, PAIR_SIZE_LIMIT - 9, 1_000_000, 256),
    "the longest of both": (65_535, PAIR_SIZE_LIMIT - 65_536, 1, 1),
    "one huge entry": (1, PAIR_SIZE_LIMIT - 2, 1, 256),
    "many large ones": (64, 4096, 2**31, 64),
}


def regions(facts):
    """Every region, as (start, size) in the order of the file."""
    offsets, sizes = facts["region_offset"], facts["region_bytes"]
    parts = [(0, PAGE)]
    parts += [(offsets[name], sizes[name]) for name in ("processes", "contexts")]
    parts.append((facts["depots_offset"], facts["depot_count"] * 64))
    parts += [(offsets[name], sizes[name]) for name in ("element_words", "line_words", "buckets")]
    for name in ("line", "element"):
        pool = facts[f"{name}_pool"]
        parts.append((facts[f"{name}s_offset"], pool["block_count"] * pool["block_bytes"]))
    parts.append((offsets["ring"], sizes["ring"]))
    return parts


def check_geometry(facts, max_entries):
    """Assert what must hold for every geometry."""
    parts = regions(facts)
    parts.append((facts["segment_bytes"], 0))
    for (start, size), (following, _) in itertools.pairwise(parts):
        assert start % PAGE == 0
        assert size > 0
        assert 0 <= following - (start + size) < PAGE, "an overlap, or a gap"
    assert facts["segment_bytes"] <= ADDRESS_SPACE

    for name in ("element", "line"):
        pool = facts[f"{name}_pool"]
        assert pool["block_bytes"] == pool["capacity"] * pool["stride"]
        assert pool["block_bytes"] % PAGE == 0
        assert 1 <= pool["capacity"] <= 4095  # 12 bits in a block word
        assert pool["object_count"] == pool["block_count"] * pool["capacity"]
        assert facts["region_bytes"][f"{name}_words"] >= pool["block_count"] * 8

    # There is an element for each entry and each place in a depot, and element 0 is never used.
    assert facts["element_max"] > max_entries + facts["depot_count"] * 255
    assert facts["element_max"] == facts["element_pool"]["object_count"] < LINK_BASE
    assert facts["line_max"] == facts["line_pool"]["object_count"]
    assert LINK_BASE + facts["line_max"] <= 2**32
    assert facts["bucket_max"] * 64 <= facts["region_bytes"]["buckets"]
    assert facts["bucket_max"] >= 4
    # The table grows up to one bucket for 3.5 entries: there is room for that many buckets.
    assert facts["bucket_max"] * 7 >= max_entries * 2
    assert facts["region_bytes"]["processes"] == 1024 * 64
    assert facts["region_bytes"]["contexts"] >= 4096 * facts["context_stride"]
    assert facts["context_stride"] % 64 == 0
    assert facts["context_stride"] >= 256 + facts["value_words"] * 8


def check_element(facts, key_size, value_size):
    """Assert that header, padded key and padded value fit into an element with little to spare."""
    packed = 8 + facts["key_words"] * 8 + facts["value_words"] * 8
    assert facts["key_words"] == -(-key_size // 8)
    assert facts["value_words"] == -(-value_size // 8)
    assert facts["stride"] % 8 == 0
    assert packed <= facts["stride"] <= packed * 17 // 16 + 8
    assert facts["element_pool"]["stride"] == facts["stride"]
    # A depot parks elements of about 24 KiB, at least three; a batch is half as many.
    assert 3 <= facts["depot_high"] <= 96
    assert facts["depot_high"] * facts["stride"] <= max(24_576, 3 * facts["stride"])
    assert 1 <= facts["depot_batch"] <= facts["depot_high"]


@pytest.mark.parametrize("numbers", EXTREMES.values(), ids=EXTREMES.keys())
def test_extreme_geometries_hold_together(unit, numbers):
    facts = unit.geometry(*numbers)

    check_geometry(facts, numbers[2])
    check_element(facts, *numbers[:2])


def test_random_geometries_hold_together(unit, seed):
    """Keys and values of 1 to 5,000 bytes, up to 2**31 entries."""
    rng = random.Random(seed)
    for _ in range(2000):
        key_size, value_size = rng.randint(1, 5000), rng.randint(1, 5000)
        max_entries, depots = rng.randint(1, 1 << rng.randint(0, 31)), 1 << rng.randint(0, 8)

        facts = unit.geometry(key_size, value_size, max_entries, depots)

        check_geometry(facts, max_entries)
        check_element(facts, key_size, value_size)


def test_every_stride_makes_good_blocks(unit):
    """For every value size up to 5,000 a block is near 64 KiB, an element's padding small."""
    for value_size in range(1, 5001):
        facts = unit.geometry(8, value_size, 1000, 2)

        check_element(facts, 8, value_size)
        assert facts["stride"] == unit.element_stride(8, value_size)
        assert facts["element_pool"]["block_bytes"] <= 2 * 65_536


def test_the_usual_element_has_no_padding(unit):
    assert unit.element_stride(8, 8) == 24
    assert unit.element_stride(1, 1) == 24
    assert unit.element_stride(16, 8) == 32
    assert unit.element_stride(8, 24) == 40


def test_the_geometry_is_a_pure_function(unit, seed):
    """H1: each attaching process computes it anew; it depends on no earlier contents of memory."""
    rng = random.Random(seed)
    for _ in range(50):
        numbers = rng.randint(1, 5000), rng.randint(1, 5000), rng.randint(1, 1 << 20), 4

        first = unit.geometry(*numbers)
        unit.geometry(8, 8, 1, 1)

        assert first == unit.geometry(*numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        (8, PAIR_SIZE_LIMIT - 9, 2**31, 256),
        (8, PAIR_SIZE_LIMIT - 9, ADDRESS_SPACE // (4 << 20), 1),
        (8, 65_536, 2**31, 1),
    ],
)
def test_geometry_larger_than_an_address_space_is_refused(unit, numbers):
    assert unit.geometry(*numbers) is None


def test_more_entries_never_need_less_memory(unit):
    """Each limit is monotonic in max_entries."""
    before = unit.geometry(8, 8, 1, 4)
    for log2 in range(32):
        facts = unit.geometry(8, 8, 1 << log2, 4)
        for name in ("element_max", "line_max", "bucket_max", "segment_bytes"):
            assert before[name] <= facts[name]
        before = facts
