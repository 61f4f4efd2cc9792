"""The table: which bucket a hash belongs to, splits and merges."""

import random

import pytest
from support.core.chains import set_levels
from support.core.picture import bucket_version_of, held_by, level_of, owner_of

HASHES = [0, 1, 2**31, 2**32 - 1]


@pytest.fixture
def roomy(make_image):
    """An image with memory for 2,048 buckets."""
    image = make_image(max_entries=10_000)
    assert image.region_commit(0, 4, 2048 * 64) == "OK"
    return image


@pytest.mark.parametrize("count", range(4, 301))
def test_every_hash_belongs_to_exactly_one_bucket(unit, count):
    """G1: for every number of buckets, the levels divide all hashes among the buckets."""
    levels = [unit.bucket_level(count, index) for index in range(count)]

    shares = sum(2**9 >> level for level in levels)

    assert shares == 2**9
    owners = [
        [index for index in range(count) if (low ^ index) & (1 << levels[index]) - 1 == 0]
        for low in range(2**9)
    ]
    assert all(len(found) == 1 for found in owners)


@pytest.mark.parametrize(
    "count", [2**k + d for k in range(2, 31) for d in (-1, 0, 1) if 2**k + d > 3]
)
def test_levels_differ_by_one_and_fit_the_index(unit, count):
    """The next bucket to be split is the first of the lower level."""
    high = (count - 1).bit_length()
    for index in {0, 1, count // 3, count // 2, count - 2, count - 1}:
        level = unit.bucket_level(count, index)

        assert high - 1 <= level <= high
        assert index < 1 << level
        assert index + (1 << level) >= count


def test_a_hash_is_found_at_every_size(roomy, unit, seed):
    """W1: for every number of buckets up to 300, the bucket found covers the hash."""
    rng = random.Random(seed)
    for count in range(4, 301):
        set_levels(roomy, unit, count)
        for hash32 in [*HASHES, *(rng.getrandbits(32) for _ in range(40))]:
            expected = next(
                hash32 & (1 << bits) - 1
                for bits in (count.bit_length(), count.bit_length() - 1)
                if hash32 & (1 << bits) - 1 < count
            )

            assert expected == roomy.table_find(hash32)
            assert expected == roomy.table_guess(hash32)


def test_levels_lead_to_the_bucket_whatever_the_table_word_says(roomy, unit, seed):
    """W1: the table word is a hint: a stale or damaged one costs only steps."""
    rng = random.Random(seed)
    for count in (4, 5, 7, 8, 9, 100, 128, 129, 300):
        set_levels(roomy, unit, count)
        hashes = [rng.getrandbits(32) for _ in range(50)]
        expected = [roomy.table_find(hash32) for hash32 in hashes]
        for hint in (0, 1, 4, 5, 64, 299, 512, 1000, 2**48 - 1):
            roomy.picture.header.table = hint << 16

            assert expected == [roomy.table_find(hash32) for hash32 in hashes]


def test_a_bucket_without_level_leads_to_its_parent(roomy, unit):
    """During a split a search does not go to the child before the child has a level."""
    set_levels(roomy, unit, 4)
    roomy.picture.header.table = 5 << 16

    assert roomy.table_find(4) == 0
    roomy.picture.buckets[4].header = 4 << 16  # level 3: the split's commit
    assert roomy.table_find(4) == 4
    assert roomy.table_find(0) == 0
    roomy.picture.buckets[0].header = 4 << 16
    assert roomy.table_find(4) == 4


def test_search_by_damaged_levels_ends(roomy, unit):
    """H1: without a level, in a circle or beyond the array, a search ends without a bucket."""
    set_levels(roomy, unit, 4)
    roomy.picture.buckets[1].header = 0
    assert roomy.table_find(1) is None

    set_levels(roomy, unit, 4)
    roomy.picture.buckets[2].header = 63 << 16
    assert roomy.table_find(0xFFFFFFFE) is None

    set_levels(roomy, unit, 4)
    roomy.picture.buckets[0].header = 5 << 16  # leads to deeper buckets, which have no level
    assert roomy.table_find(8) is None


@pytest.mark.parametrize("entries", [0, 1, 14, 15, 100, 65_535])
def test_presized_table_needs_no_split_for_its_entries(unit, entries):
    """G1: one bucket for 3.5 entries, at least four, and never more than bucket_max."""
    buckets, limit = unit.buckets_for(1_000_000, entries)

    assert 4 <= buckets <= limit
    assert buckets * 3.5 >= entries
    assert buckets == 4 or (buckets - 1) * 3.5 < entries
    assert unit.buckets_for(1, 65_535)[0] <= unit.buckets_for(1, 65_535)[1]


# ---- splits and merges ----


def keys_of(count):
    return [number.to_bytes(8, "little") for number in range(count)]


def check_entries(image, keys):
    """Assert that every key is found, and that the map is sound."""
    for key in keys:
        assert image.find(key)[0] == "OK"
    assert image.find(b"no such!")[0] == "ABSENT"
    problem, where, figures = image.check()
    assert (problem, where) == (0, 0)
    assert figures["entries"] == len(keys)


def grow(image):
    """One split, and the commits of memory that it needs."""
    while True:
        status = image.table_grow(1)
        if status == "NEED_LINES":
            assert image.block_commit(1, "line") == "OK"
        elif status == "NEED_BUCKETS":
            assert image.region_commit(1, 4, (image.picture.header.table >> 16) * 64 + 64) == "OK"
        else:
            break
    image.op_give_back(1)
    return status


def test_entries_survive_every_split_and_merge(make_image):
    """G1: 300 entries in 4 buckets, split one by one to 150, and back; none is lost at any step."""
    image = make_image(max_entries=10_000)
    keys = keys_of(300)
    for key in keys:
        assert image.insert(0, key, key) == "OK"
    check_entries(image, keys)

    for count in range(5, 151):
        assert grow(image) == "OK"
        assert image.picture.header.table == count << 16
        check_entries(image, keys)
    assert image.picture.header.statistics.grows == 146
    for count in range(149, 3, -1):
        status = image.table_shrink(2)
        while status == "NEED_LINES":
            assert image.block_commit(2, "line") == "OK"
            status = image.table_shrink(2)
        assert status == "OK"
        image.op_give_back(2)
        assert image.picture.header.table == count << 16
        check_entries(image, keys)

    assert image.table_shrink(2) == "FULL"
    assert image.picture.header.statistics.shrinks == 146


def test_equal_hashes_stay_together(make_image):
    """G1: with colliding keys a split moves all of a chain or none of it."""
    image = make_image(seeds=(1, 0, 0, 0))
    keys = keys_of(30)
    for key in keys:
        assert image.insert(0, key, key) == "OK"

    for _ in range(20):
        assert grow(image) == "OK"
        check_entries(image, keys)

    assert image.check()[2]["longest"] == 30


def test_growth_ends_at_the_limit(make_image):
    """G1: FULL when the table has bucket_max buckets; the map stays sound."""
    image = make_image(max_entries=1, depot_count=1)
    limit = image.picture.geometry["bucket_max"]

    for _ in range(limit - 4):
        assert grow(image) == "OK"

    assert grow(image) == "FULL"
    assert image.picture.header.table == limit << 16
    assert image.check()[0] == 0


def test_split_without_memory_for_its_bucket_asks_for_memory(image):
    """M1: no memory beyond the watermark is touched, and no lock stays held."""
    image.picture.header.regions[4].usable = 4096
    while image.picture.header.table >> 16 < 64:
        assert image.table_grow(0) == "OK"

    assert image.table_grow(0) == "NEED_BUCKETS"

    assert image.picture.header.table == 64 << 16
    assert image.check()[0] == 0


@pytest.mark.parametrize("what", ["parent", "child"])
@pytest.mark.parametrize("way", ["table_grow", "table_shrink"])
def test_resize_of_a_held_bucket_is_busy(image, what, way):
    """G1: if parent or child is held, the resize is BUSY; it releases the lock that it took."""
    for _ in range(4):
        assert grow(image) == "OK"
    buckets = image.picture.buckets
    pair = (0, 8) if way == "table_grow" else (3, 7)
    buckets[pair[what == "child"]].header |= held_by(3)
    before = image.picture.header.table, [bytes(buckets[index]) for index in range(10)]

    assert getattr(image, way)(1) == "BUSY"

    assert before == (image.picture.header.table, [bytes(buckets[index]) for index in range(10)])


def test_merge_of_a_held_child_is_busy(image):
    for _ in range(4):
        assert grow(image) == "OK"
    image.picture.buckets[7].header |= held_by(3)

    assert image.table_shrink(1) == "BUSY"

    assert owner_of(image.picture.buckets[3].header) is None
    assert level_of(image.picture.buckets[7].header) == 3


def test_split_and_merge_raise_the_versions(image):
    """W1: a reader that missed an entry while it moved sees that the version changed."""
    before = bucket_version_of(image.picture.buckets[0].header)
    assert grow(image) == "OK"
    split = bucket_version_of(image.picture.buckets[0].header)
    child = bucket_version_of(image.picture.buckets[4].header)
    assert image.table_shrink(1) == "OK"

    assert before < split < bucket_version_of(image.picture.buckets[0].header)
    assert 0 < child < bucket_version_of(image.picture.buckets[4].header)


@pytest.mark.parametrize("way", ["table_grow", "table_shrink"])
def test_a_resize_of_damaged_levels_is_refused(image, way):
    """H1: a parent whose level does not fit is CORRUPT; no lock stays held."""
    for _ in range(4):
        assert grow(image) == "OK"
    parent = image.picture.buckets[0 if way == "table_grow" else 3]
    parent.header = 9 << 16

    assert getattr(image, way)(1) == "CORRUPT"

    assert owner_of(parent.header) is None
    assert image.picture.header.table == 8 << 16


# ---- gaps ----


@pytest.fixture
def gappy(make_image):
    """200 entries; buckets 4 to 11 were split off or passed while context 3 held bucket 0."""
    image = make_image(max_entries=10_000)
    keys = keys_of(200)
    for key in keys:
        assert image.insert(0, key, key) == "OK"
    image.picture.buckets[0].header |= held_by(3)
    for count in range(4, 12):
        if grow(image) == "BUSY":
            image.table_pass(1, count)
    image.picture.buckets[0].header &= ~0xFFFF
    assert image.picture.header.table == 12 << 16
    return image, keys


def shrink(image):
    """One merge, and the commits of memory that it needs."""
    while (status := image.table_shrink(2)) == "NEED_LINES":
        assert image.block_commit(2, "line") == "OK"
    image.op_give_back(2)
    return status


def test_a_held_bucket_stops_no_split_elsewhere(gappy):
    """G1: a bucket that cannot be split off becomes a gap; the other buckets are split off, and
    every entry is found."""
    image, keys = gappy

    there = [level_of(image.picture.buckets[index].header) for index in range(12)]

    assert there == [2, 4, 4, 4, -1, 3, 3, 3, -1, 4, 4, 4]
    check_entries(image, keys)


def test_missed_splits_are_made_up_for(gappy):
    """G1: splits of the bucket that has the entries close the gaps one by one."""
    image, keys = gappy

    while (status := image.catch_up(1, 0)) is not None:
        while status == "NEED_LINES":
            assert image.block_commit(1, "line") == "OK"
            status = image.catch_up(1, 0)
        assert status == "OK"
        image.op_give_back(1)
        check_entries(image, keys)

    assert image.picture.header.table == 12 << 16
    assert {level_of(image.picture.buckets[index].header) for index in (0, 4, 8)} == {3, 4}


def test_bucket_without_gaps_has_missed_no_split(image):
    """G1: in a table without gaps no bucket has missed a split."""
    for _ in range(10):
        assert grow(image) == "OK"

    assert {image.catch_up(1, index) for index in range(14)} == {None}


def test_merge_lowers_the_number_of_buckets_past_gaps(gappy):
    """G1: the number goes down to the fewest buckets, past gaps too."""
    image, keys = gappy

    for count in range(11, 3, -1):
        assert shrink(image) == "OK"
        assert image.picture.header.table == count << 16
        check_entries(image, keys)

    assert shrink(image) == "FULL"


def test_merge_down_to_a_gap_is_busy_while_its_entries_are_held(gappy):
    """G1: a context that holds the gap's entries may be about to split them into a bucket there."""
    image, keys = gappy
    for _ in range(3):
        assert shrink(image) == "OK"
    image.picture.buckets[0].header |= held_by(3)

    assert image.table_shrink(1) == "BUSY"

    assert image.picture.header.table == 9 << 16
    image.picture.buckets[0].header &= ~0xFFFF
    check_entries(image, keys)


def test_passed_bucket_has_memory(image):
    """M1: the number of buckets never goes beyond the memory that readers may touch."""
    image.picture.header.regions[4].usable = 4096
    while image.picture.header.table >> 16 < 64:
        assert image.table_grow(0) == "OK"

    image.table_pass(0, 64)

    assert image.picture.header.table == 64 << 16
