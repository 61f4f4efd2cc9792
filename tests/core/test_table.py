"""The table: which bucket a hash belongs to, splits and merges."""

import random

import pytest
from support.core.chains import set_levels
from support.core.picture import bucket_version_of, held_by, level_of, owner_of

HASHES = [0, 1, 2**31, 2**32 - 1]


@pytest.fixture
def roomy(make_image):
    """An image with memory for 1,000 buckets and more."""
    image = make_image(max_entries=10_000)
    assert image.region_commit(0, 4, 2048 * 64) == "OK"
    return image


@pytest.mark.parametrize("count", range(4, 301))
def test_every_hash_belongs_to_exactly_one_bucket(unit, count):
    """G1: at every number of buckets their levels divide the hashes among them."""
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
    """The next to be split is the first of the lower level."""
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


def test_levels_lead_there_whatever_the_table_word_says(roomy, unit, seed):
    """W1: the table word is a hint: one that is stale, or damaged, costs steps and nothing else."""
    rng = random.Random(seed)
    for count in (4, 5, 7, 8, 9, 100, 128, 129, 300):
        set_levels(roomy, unit, count)
        hashes = [rng.getrandbits(32) for _ in range(50)]
        expected = [roomy.table_find(hash32) for hash32 in hashes]
        for hint in (0, 1, 4, 5, 64, 299, 512, 1000, 2**48 - 1):
            roomy.picture.header.table = hint << 16

            assert expected == [roomy.table_find(hash32) for hash32 in hashes]


def test_a_bucket_without_level_leads_to_its_parent(roomy, unit):
    """A split that is under way: the child is not looked into before it has a level."""
    set_levels(roomy, unit, 4)
    roomy.picture.header.table = 5 << 16

    assert roomy.table_find(4) == 0
    roomy.picture.buckets[4].header = 4 << 16  # level 3: the split's commit
    assert roomy.table_find(4) == 4
    assert roomy.table_find(0) == 0
    roomy.picture.buckets[0].header = 4 << 16
    assert roomy.table_find(4) == 4


def test_levels_that_lead_nowhere_end(roomy, unit):
    """H1: no level at all, a circle, a bucket beyond the array: no bucket, no endless search."""
    set_levels(roomy, unit, 4)
    roomy.picture.buckets[1].header = 0
    assert roomy.table_find(1) is None

    set_levels(roomy, unit, 4)
    roomy.picture.buckets[2].header = 63 << 16
    assert roomy.table_find(0xFFFFFFFE) is None

    set_levels(roomy, unit, 4)
    roomy.picture.buckets[0].header = 5 << 16  # says: deeper, where there is no level
    assert roomy.table_find(8) is None


@pytest.mark.parametrize("entries", [0, 1, 14, 15, 100, 65_535])
def test_a_presized_table_holds_the_entries_at_the_load_of_growth(unit, entries):
    """G1: 3.5 entries a bucket, four buckets at least, and never more than there is room for."""
    buckets, limit = unit.buckets_for(1_000_000, entries)

    assert 4 <= buckets <= limit
    assert buckets * 3.5 >= entries
    assert buckets == 4 or (buckets - 1) * 3.5 < entries
    assert unit.buckets_for(1, 65_535)[0] <= unit.buckets_for(1, 65_535)[1]


# ---- splits and merges ----


def keys_of(count):
    return [number.to_bytes(8, "little") for number in range(count)]


def check_entries(image, keys):
    """Every key is found, and the whole is sound."""
    for key in keys:
        assert image.find(key)[0] == "OK"
    assert image.find(b"no such!")[0] == "ABSENT"
    problem, where, figures = image.check()
    assert (problem, where) == (0, 0)
    assert figures["entries"] == len(keys)


def grow(image):
    """A split, with the memory it asks for."""
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
    """G1: 300 entries in 4 buckets; split to 150 one by one, and back; all there at every step."""
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
    """G1: FULL when the array is as large as it can be, and it is still sound."""
    image = make_image(max_entries=1, depot_count=1)
    limit = image.picture.geometry["bucket_max"]

    for _ in range(limit - 4):
        assert grow(image) == "OK"

    assert grow(image) == "FULL"
    assert image.picture.header.table == limit << 16
    assert image.check()[0] == 0


def test_a_split_without_memory_for_its_bucket_asks_for_it(image):
    """M1: nothing beyond the watermark is touched, and nothing stays held."""
    image.picture.header.regions[4].usable = 4096
    while image.picture.header.table >> 16 < 64:
        assert image.table_grow(0) == "OK"

    assert image.table_grow(0) == "NEED_BUCKETS"

    assert image.picture.header.table == 64 << 16
    assert image.check()[0] == 0


@pytest.mark.parametrize("what", ["parent", "child"])
@pytest.mark.parametrize("way", ["table_grow", "table_shrink"])
def test_a_resize_waits_for_nobody(image, what, way):
    """G1: what it takes and somebody holds puts it off; the other lock is let go."""
    for _ in range(4):
        assert grow(image) == "OK"
    buckets = image.picture.buckets
    pair = (0, 8) if way == "table_grow" else (3, 7)
    buckets[pair[what == "child"]].header |= held_by(3)
    before = image.picture.header.table, [bytes(buckets[index]) for index in range(10)]

    assert getattr(image, way)(1) == "BUSY"

    assert before == (image.picture.header.table, [bytes(buckets[index]) for index in range(10)])


def test_a_merge_waits_for_no_child(image):
    for _ in range(4):
        assert grow(image) == "OK"
    image.picture.buckets[7].header |= held_by(3)

    assert image.table_shrink(1) == "BUSY"

    assert owner_of(image.picture.buckets[3].header) is None
    assert level_of(image.picture.buckets[7].header) == 3


def test_a_split_and_a_merge_raise_the_versions(image):
    """W1: a reader that missed an entry while it moved sees that the bucket has changed."""
    before = bucket_version_of(image.picture.buckets[0].header)
    assert grow(image) == "OK"
    split = bucket_version_of(image.picture.buckets[0].header)
    child = bucket_version_of(image.picture.buckets[4].header)
    assert image.table_shrink(1) == "OK"

    assert before < split < bucket_version_of(image.picture.buckets[0].header)
    assert 0 < child < bucket_version_of(image.picture.buckets[4].header)


@pytest.mark.parametrize("way", ["table_grow", "table_shrink"])
def test_a_resize_of_damaged_levels_is_refused(image, way):
    """H1: a parent whose level does not fit is CORRUPT; nothing stays held."""
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
    """200 entries in buckets 0 to 3, of which 4 to 11 were passed while somebody held bucket 0."""
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
    """A merge, with the memory it asks for."""
    while (status := image.table_shrink(2)) == "NEED_LINES":
        assert image.block_commit(2, "line") == "OK"
    image.op_give_back(2)
    return status


def test_a_held_bucket_stops_no_split_elsewhere(gappy):
    """G1: what cannot be split is a gap; all else is, and every entry is found."""
    image, keys = gappy

    there = [level_of(image.picture.buckets[index].header) for index in range(12)]

    assert there == [2, 4, 4, 4, -1, 3, 3, 3, -1, 4, 4, 4]
    check_entries(image, keys)


def test_splits_that_were_missed_are_made_up_for(gappy):
    """G1: one by one, from the bucket that has the entries; then there is no gap."""
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


def test_a_bucket_that_is_not_behind_has_missed_nothing(image):
    """G1: there is nothing to make up for in a table without gaps."""
    for _ in range(10):
        assert grow(image) == "OK"

    assert {image.catch_up(1, index) for index in range(14)} == {None}


def test_a_merge_lowers_the_number_over_gaps(gappy):
    """G1: down to the fewest buckets, through those that are not there."""
    image, keys = gappy

    for count in range(11, 3, -1):
        assert shrink(image) == "OK"
        assert image.picture.header.table == count << 16
        check_entries(image, keys)

    assert shrink(image) == "FULL"


def test_the_number_goes_down_to_a_gap_only_if_its_entries_are_free(gappy):
    """G1: somebody who holds them may be about to put a bucket there."""
    image, keys = gappy
    for _ in range(3):
        assert shrink(image) == "OK"
    image.picture.buckets[0].header |= held_by(3)

    assert image.table_shrink(1) == "BUSY"

    assert image.picture.header.table == 9 << 16
    image.picture.buckets[0].header &= ~0xFFFF
    check_entries(image, keys)


def test_a_bucket_that_is_passed_has_memory(image):
    """M1: the number never goes beyond what readers may touch."""
    image.picture.header.regions[4].usable = 4096
    while image.picture.header.table >> 16 < 64:
        assert image.table_grow(0) == "OK"

    image.table_pass(0, 64)

    assert image.picture.header.table == 64 << 16
