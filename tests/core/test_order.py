"""The order of the map, reads of one bucket, and walks, compared with sorted lists (I1)."""

import bisect
import itertools
import random

import pytest
from support.core.chains import BUCKET, WHO, set_levels, stores_of_removal
from support.core.picture import (
    ALLOC,
    DEAD,
    FREE,
    LINK_BASE,
    LINK_SLOT,
    LIVE,
    LOCKED,
    SLOTS,
    ULOCK,
    UPD,
    Bucket,
    held_by,
    level_of,
)
from support.words import COLLIDING

END = 1 << 32
START = 0, None
SORTED_MAX = 32
WALK_STEPS = 256
HELD_STATES = [UPD, ULOCK, LOCKED]
OTHER = 3  # a context that holds something


def reversed_bits(word):
    return int(f"{word:032b}"[::-1], 2)


def rank(image, key):
    """An entry's place in the order."""
    return reversed_bits(image.hash_key(key)), key


def key_of(image, number):
    size = image.picture.header.key_size
    return (number.to_bytes(8, "little") * (size // 8 + 1))[:size]


def value_of(image, key):
    """A checksum of the key in each word of its value."""
    size = image.picture.header.value_size
    word = (int.from_bytes(key, "little") * 31 & (1 << 64) - 1).to_bytes(8, "little")
    return (word * (size // 8 + 1))[:size]


def fill(image, keys):
    for key in keys:
        assert image.insert(0, key, value_of(image, key)) == "OK"


def colliding(make_image, count):
    """An image with `count` keys, all of bucket 0 and of one hash; and the keys."""
    image = make_image(seeds=COLLIDING)
    keys = sorted(key_of(image, number) for number in range(count))
    fill(image, random.Random(count).sample(keys, count))
    return image, keys


def in_bucket(image, bucket, count):
    """Insert `count` keys of one of four buckets; return the keys."""
    keys = (key_of(image, number) for number in itertools.count())
    keys = list(itertools.islice((k for k in keys if image.hash_key(k) & 3 == bucket), count))
    fill(image, keys)
    return keys


def element_of(image, key):
    status, index = image.find(key)
    assert status == "OK"
    return image.picture.element(index)


def set_state(image, key, state, owner=None):
    element = element_of(image, key)
    element[0] = element[0] & ~0x7FFFF | state << 16 | (0 if owner is None else held_by(owner))


def range_of(image, order):
    """The last reversed hash in the range of the bucket that owns `order`."""
    header = image.picture.buckets[image.table_find(reversed_bits(order))].header
    return order | (END - 1) >> level_of(header)


def behind(image, keys, place):
    """The keys of the bucket at a place that come after the place, in order."""
    order, inside = place
    last = range_of(image, order)
    ranked = sorted(rank(image, key) for key in keys)
    after = (order, b"") if inside is None else place
    at = bisect.bisect_right(ranked, after)
    return [key for found, key in ranked[at:] if found <= last]


def check_in_order(image, keys, place, room):
    """Check one read in order against the list: what it delivers, and where it ends."""
    expected = behind(image, keys, place)
    read = expected[: min(room, SORTED_MAX)]
    end = range_of(image, place[0]) + 1, None

    status, pairs, after = image.bucket_read(place, room)

    assert status == "OK"
    assert pairs == [(key, value_of(image, key)) for key in read]
    assert after == (end if read == expected else rank(image, read[-1]))
    return after


def whole_bucket(image, place, room):
    """The keys of one bucket from a place on, by as many reads as are needed."""
    found = []
    end = range_of(image, place[0]) + 1
    while place[0] < end:
        status, pairs, place = image.bucket_read(place, room)
        assert status == "OK"
        assert len(pairs) <= room
        found += [key for key, _ in pairs]
    assert place == (end, None)
    return found


# ---- ranges ----


def test_reversed_bits_are_those_of_python(unit, seed):
    rng = random.Random(seed)
    words = [0, END - 1, *(1 << bit for bit in range(32))]
    for word in [*words, *(rng.getrandbits(32) for _ in range(2000))]:
        assert reversed_bits(word) == unit.reverse_bits_u32(word)


@pytest.mark.parametrize("level", range(33))
def test_range_has_the_hashes_that_agree_in_the_low_bits(unit, seed, level):
    """I1: the reversed hashes of a range are contiguous, and no other hash is between them."""
    rng = random.Random(seed)
    for _ in range(100):
        hash32 = rng.getrandbits(32)
        first = reversed_bits(hash32 & (1 << level) - 1)
        order = reversed_bits(hash32)

        last = unit.bucket_range_last(order, level)

        assert first <= order <= last
        assert last - first + 1 == END >> level
        assert last == unit.bucket_range_last(first, level)
        for other in (first, last, rng.randint(first, last)):
            assert (reversed_bits(other) ^ hash32) & (1 << level) - 1 == 0


def test_guesses_lead_through_every_bucket_once(make_image, unit, seed):
    """I1: for each number of buckets from 4 to 300, from the start of a range or from inside it."""
    rng = random.Random(seed)
    image = make_image(max_entries=10_000)
    assert image.region_commit(0, 4, 2048 * 64) == "OK"
    for count in range(4, 301):
        set_levels(image, unit, count)
        order, visited = 0, []
        while order < END:
            bucket = image.table_guess(reversed_bits(order))
            last = unit.bucket_range_last(order, unit.bucket_level(count, bucket))
            visited.append(bucket)

            assert bucket == image.table_find(reversed_bits(order))
            assert last + 1 == unit.order_next(order, bucket, count)
            assert last + 1 == unit.order_next(rng.randint(order, last), bucket, count)
            order = last + 1
        assert order == END
        assert sorted(visited) == [*range(count)]
        assert image.walk_steps(START, 9, count) == ("OK", [], (END, None))
        assert image.walk_steps(START, 9, count - 1)[2][0] < END


@pytest.mark.parametrize("count", [2**k + d for k in range(3, 31) for d in (-1, 0, 1)])
def test_guesses_are_right_in_large_tables(unit, seed, count):
    rng = random.Random(seed)
    for index in (0, count - 1, *(rng.randrange(count) for _ in range(50))):
        level = unit.bucket_level(count, index)
        order = reversed_bits(index)

        assert unit.bucket_range_last(order, level) + 1 == unit.order_next(order, index, count)


# ---- one bucket ----


@pytest.mark.parametrize("count", range(SLOTS + 1))
def test_bucket_at_rest_is_read_whole(image, count):
    """I1: with room for a bucket, no lines and no lock, one read delivers all, in any order."""
    keys = in_bucket(image, BUCKET, count)
    first = reversed_bits(BUCKET)

    status, pairs, after = image.bucket_read((first, None), SLOTS)

    assert status == "OK"
    assert sorted(pairs) == sorted((key, value_of(image, key)) for key in keys)
    assert after == (first + (END >> 2), None)


@pytest.mark.parametrize("sizes", [(8, 8), (3, 17), (20, 264), (64, 1)])
@pytest.mark.parametrize("room", [1, 6, 1000])
def test_locked_bucket_is_read_in_order(make_image, sizes, room):
    """I1: with a lock held or too little room, a read delivers the lowest entries first."""
    image = make_image(key_size=sizes[0], value_size=sizes[1])
    keys = in_bucket(image, BUCKET, 6)
    image.picture.buckets[BUCKET].header |= held_by(OTHER)
    place = reversed_bits(BUCKET), None

    while place[0] < reversed_bits(BUCKET) + (END >> 2):
        place = check_in_order(image, keys, place, room)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("count", [*range(42), 100])
def test_a_chain_is_read_in_order(image, count, locked):
    """I1: reads deliver the entries of all lines, whatever the room of each read."""
    keys = in_bucket(image, BUCKET, count)
    image.picture.buckets[BUCKET].header |= held_by(OTHER) if locked else 0
    start = reversed_bits(BUCKET), None

    for room in (1, 3, 32, 33, 1000):
        assert sorted(keys) == sorted(whole_bucket(image, start, room))
        if locked or count > SLOTS or room < SLOTS:
            check_in_order(image, keys, start, room)


@pytest.mark.parametrize("count", [3, 7, 20, 50])
def test_read_of_a_bucket_begins_at_any_place(image, seed, count):
    """I1: a read begins at an order or after a key, which may be absent, with nothing before it."""
    rng = random.Random(seed)
    keys = in_bucket(image, BUCKET, count)
    first = reversed_bits(BUCKET)
    places = [rank(image, key) for key in keys]
    places += [(order, None) for order, _ in places if order != first]
    places += [(order + 1, None) for order, _ in places]
    places += [(order, bytes(8)) for order, _ in places]
    places += [(order, b"\xff" * 8) for order, _ in places]
    places += [(rng.randint(first + 1, first + (END >> 2) - 1), None) for _ in range(50)]
    for place in places:
        check_in_order(image, keys, place, rng.choice([1, 2, 7, 1000]))


def test_keys_alone_are_read_without_values(image):
    """A read without values delivers the same keys, and touches no memory for values."""
    keys = in_bucket(image, BUCKET, 20)

    status, pairs, _ = image.bucket_read((reversed_bits(BUCKET), None), 20, with_values=False)

    assert status == "OK"
    assert pairs == [(key, None) for key in sorted(keys, key=lambda key: rank(image, key))]


@pytest.mark.parametrize("count", [8, 9, 13, 14, 15, 20, 40])
def test_half_done_removal_hides_and_repeats_no_entry(image, count):
    """I1, C1: the bucket is read after each store of each possible removal.

    In some of these states the last entry is named twice, once perhaps with the victim's tag.
    """
    keys = in_bucket(image, BUCKET, count)
    picture = image.picture
    picture.buckets[BUCKET].header |= held_by(WHO)
    bucket, lines = bytes(picture.buckets[BUCKET]), [bytes(picture.lines[at]) for at in range(16)]
    start = reversed_bits(BUCKET), None
    twice = 0
    for victim in keys:
        _, index = image.find(victim)
        header = picture.element(index)[0]
        others = sorted((key for key in keys if key != victim), key=lambda key: rank(image, key))
        for stage in itertools.count():
            stores = stores_of_removal(image, index)
            if stage > len(stores):
                break
            picture.element(index)[0] = header & ~0x7FFFF | DEAD << 16 | held_by(WHO)
            for store in stores[:stage]:
                store()
            named = [found for _, found in picture.chain(BUCKET)[0]]
            twice += len(named) > len(set(named))

            for room in (1, 1000):
                assert others == whole_bucket(image, start, room)

            picture.element(index)[0] = header
            picture.buckets[BUCKET] = Bucket.from_buffer_copy(bucket)
            for at, line in enumerate(lines):
                picture.lines[at] = Bucket.from_buffer_copy(line)
    assert twice >= count - 1


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("other", [2, 3], ids=["before", "behind"])
def test_references_of_another_range_are_passed_over(image, other, locked):
    """I1: during a split or merge a bucket may name entries that are read in another bucket."""
    own, foreign = in_bucket(image, 1, 3), in_bucket(image, other, 3)
    bucket = image.picture.buckets[1]
    for slot, key in enumerate(foreign, start=3):
        bucket.tags[slot] = image.hash_key(key)
        bucket.indices[slot] = image.find(key)[1]
    bucket.header |= held_by(OTHER) if locked else 0

    assert sorted(own) == sorted(whole_bucket(image, (reversed_bits(1), None), 1000))
    assert sorted(foreign) == sorted(whole_bucket(image, (reversed_bits(other), None), 1000))


# ---- entries that an operation is changing ----


@pytest.fixture(params=["at rest", "locked", "chained"])
def busy_bucket(request, image):
    """A bucket that is at rest, locked or chained, and its keys in order."""
    keys = in_bucket(image, BUCKET, 12 if request.param == "chained" else 5)
    if request.param == "locked":
        image.picture.buckets[BUCKET].header |= held_by(OTHER)
    return image, sorted(keys, key=lambda key: rank(image, key))


def read_all(image, **options):
    status, pairs, after = image.bucket_read((reversed_bits(BUCKET), None), **options)
    return status, dict(pairs), after[0] == reversed_bits(BUCKET) + (END >> 2)


@pytest.mark.parametrize("state", [FREE, ALLOC, DEAD])
def test_element_that_is_no_entry_is_passed_over(busy_bucket, state):
    """I1: a slot may name an element that is being inserted or deleted."""
    image, keys = busy_bucket
    set_state(image, keys[2], state, OTHER if state != FREE else None)

    status, found, ended = read_all(image)

    assert (status, ended) == ("OK", True)
    assert found.keys() == {*keys} - {keys[2]}


@pytest.mark.parametrize("state", [LIVE, ULOCK, LOCKED])
def test_held_entry_is_read_without_waiting(busy_bucket, state):
    """R1: a read does not wait for the owner, which may be stopped."""
    image, keys = busy_bucket
    set_state(image, keys[2], state, OTHER if state != LIVE else None)

    assert read_all(image) == ("OK", {key: value_of(image, key) for key in keys}, True)


def test_update_under_way_is_read_as_done(busy_bucket):
    """R2: the new value is read from the owner's redo buffer."""
    image, keys = busy_bucket
    set_state(image, keys[2], UPD, OTHER)
    image.picture.redo(OTHER)[0] = 0x0102030405060708

    _, found, _ = read_all(image)

    assert found[keys[2]] == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert found.keys() == {*keys}
    assert read_all(image, with_values=False) == ("OK", dict.fromkeys(keys), True)


@pytest.mark.parametrize("state", HELD_STATES)
@pytest.mark.parametrize("room", [3, 1000])
def test_read_that_respects_locks_returns_busy_at_a_held_entry(busy_bucket, state, room):
    """L1: with BPF_F_LOCK a read returns BUSY and the word to wait for; the place stays."""
    image, keys = busy_bucket
    set_state(image, keys[2], state, OTHER)
    start = reversed_bits(BUCKET), None

    assert image.bucket_read(start, room, waiter=1) == ("BUSY", [], start)

    index = image.find(keys[2])[1]
    geometry = image.picture.geometry
    offset = geometry["elements_offset"] + index * geometry["stride"]
    assert image.waits_for(1) == (offset, element_of(image, keys[2])[0])
    status, pairs, after = image.bucket_read(start, 2, waiter=1)
    assert (status, after) == ("OK", rank(image, keys[1]))
    assert [key for key, _ in pairs] == keys[:2]
    set_state(image, keys[2], LIVE)
    assert image.bucket_read(start, room, waiter=1)[0] == "OK"


def test_read_that_respects_locks_passes_over_a_deleted_entry(busy_bucket):
    image, keys = busy_bucket
    set_state(image, keys[2], DEAD, OTHER)

    status, found, _ = read_all(image, waiter=1)

    assert (status, found.keys()) == ("OK", {*keys} - {keys[2]})


# ---- more than fit into a ranking ----


@pytest.mark.parametrize("count", [31, 32, 33, 34, 63, 64, 65, 100])
def test_equal_hashes_are_told_apart_by_their_keys(make_image, count):
    """I1: reads deliver 32 keys at a time, from the start or from any key on."""
    image, keys = colliding(make_image, count)
    place, reads = START, 0
    while place[0] < END >> 2:
        place = check_in_order(image, keys, place, 1000)
        reads += 1

    assert reads == max(1, -(-count // SORTED_MAX))
    for room in (1, 5, 31, 32, 33):
        assert keys == whole_bucket(image, START, room)
        for key in keys[:: count // 8]:
            check_in_order(image, keys, (0, key), room)


def test_changes_between_reads_skip_and_repeat_no_entry(make_image, seed):
    """I1: even among equal hashes, where the key at which a read begins may have been deleted."""
    rng = random.Random(seed)
    image, keys = colliding(make_image, 70)
    staying, going = keys[::2], keys[1::2]
    place, found = START, []
    while place[0] < END >> 2:
        _, pairs, place = image.bucket_read(place, rng.choice([1, 2, 40]))
        found += [key for key, _ in pairs]
        for key in rng.sample(going, 10):
            if image.find(key)[0] == "OK":
                assert image.delete(1, key) == "OK"
            else:
                fill(image, [key])

    assert found == sorted(set(found))
    assert set(staying) <= set(found)


@pytest.mark.parametrize("count", [33, 40, 100])
def test_read_that_cannot_advance_is_corrupt(make_image, count):
    """H1: at most one of the lowest 32 can be in deletion; a read that finds none is CORRUPT."""
    image, keys = colliding(make_image, count)
    for key in keys[:31]:
        set_state(image, key, DEAD)
    status, pairs, place = image.bucket_read(START)
    assert (status, place) == ("OK", (0, keys[31]))
    assert [key for key, _ in pairs] == [keys[31]]
    set_state(image, keys[31], DEAD)

    assert image.bucket_read(START) == ("CORRUPT", [], START)
    assert image.walk_steps(START, 1000, 1000) == ("CORRUPT", [], START)
    assert image.walk_on(START, 1000, who=1) == ("CORRUPT", [], START)
    assert keys[32:] == whole_bucket(image, (0, keys[31]), 1000)


def test_bucket_of_32_dead_references_is_read_to_its_end(make_image):
    """H1: if the bucket has only these 32 references, the read ends at the bucket's end."""
    image, keys = colliding(make_image, 32)
    for key in keys:
        set_state(image, key, DEAD)

    assert image.bucket_read(START) == ("OK", [], (END >> 2, None))


# ---- damage ----


def test_a_circle_of_lines_is_damage(make_image):
    """H1: a read of a chain whose lines form a circle ends with CORRUPT."""
    image, _ = colliding(make_image, 20)
    lines = image.picture.chain(0)[1]
    image.picture.lines[lines[-1]].indices[LINK_SLOT] = LINK_BASE + lines[0]

    assert image.bucket_read(START) == ("CORRUPT", [], START)


@pytest.mark.parametrize("locked", [False, True])
def test_indices_beyond_the_elements_are_passed_over(image, locked):
    """H1: no memory beyond the elements is read."""
    keys = in_bucket(image, BUCKET, 4)
    bucket = image.picture.buckets[BUCKET]
    bucket.header |= held_by(OTHER) if locked else 0
    for slot, index in (4, image.picture.geometry["element_max"]), (5, LINK_BASE - 1):
        bucket.tags[slot], bucket.indices[slot] = BUCKET, index
    bucket.indices[LINK_SLOT] = 0xFFFFFFFF

    assert sorted(keys) == sorted(whole_bucket(image, (reversed_bits(BUCKET), None), 1000))


@pytest.mark.parametrize("locked", [False, True])
def test_an_owner_beyond_the_contexts_is_not_looked_up(image, locked):
    """H1: if the owner's index is not that of a context, the read is CORRUPT and no redo buffer is
    read."""
    keys = in_bucket(image, BUCKET, 3)
    image.picture.buckets[BUCKET].header |= held_by(OTHER) if locked else 0
    set_state(image, keys[1], UPD, 0x7FFF)
    start = reversed_bits(BUCKET), None

    assert image.bucket_read(start) == ("CORRUPT", [], start)
    status, pairs, place = image.walk_steps(START, 1000, 1000)
    assert (status, pairs, place) == ("CORRUPT", [], start)


def test_levels_that_lead_nowhere_end_a_walk(image):
    """H1: the walk ends with CORRUPT; the entries that it read before are right."""
    keys = in_bucket(image, 0, 4)
    image.picture.buckets[2].header = 0
    second = END >> 2, None

    assert image.bucket_read(second) == ("CORRUPT", [], second)
    status, pairs, place = image.walk_steps(START, 1000, 1000)
    assert (status, place) == ("CORRUPT", second)
    assert sorted(key for key, _ in pairs) == sorted(keys)


# ---- walks ----


def grown(make_image, entries, buckets, **options):
    """An image of `entries` entries and `buckets` buckets, and its keys in order."""
    image = make_image(max_entries=10_000, **options)
    keys = [key_of(image, number) for number in range(entries)]
    fill(image, keys)
    while image.picture.header.table >> 16 < buckets:
        status = image.table_grow(0)
        assert status in ("OK", "NEED_BUCKETS")
        if status == "NEED_BUCKETS":
            assert image.region_commit(0, 4, buckets * 64 + 4096) == "OK"
    return image, sorted(keys, key=lambda key: rank(image, key))


@pytest.mark.parametrize("buckets", [4, 5, 7, 100, 129, 700])
@pytest.mark.parametrize("room", [1, 6, 7, 50, 1000])
def test_walks_deliver_every_entry_once(make_image, buckets, room):
    """I1: buckets are read one after another in the order, by as many calls as are needed."""
    image, keys = grown(make_image, 600, buckets)
    for walk in (
        lambda place: image.walk_steps(place, room, 5),
        lambda place: image.walk_on(place, room),
        lambda place: image.walk_on(place, room, who=1),
    ):
        place, found, status = START, [], "OK"
        while status == "OK":
            before = place
            status, pairs, place = walk(place)
            assert (place[0], place[1] or b"") >= (before[0], before[1] or b"")
            assert all(value == value_of(image, key) for key, value in pairs)
            found += [key for key, _ in pairs]
        assert (status, place) == ("ABSENT", (END, None))
        assert sorted(found) == sorted(keys)
        if room < SLOTS:
            assert found == keys


def test_places_outlive_splits_and_merges(make_image, seed):
    """I1: between any two reads the table grows or shrinks, and entries come and go."""
    rng = random.Random(seed)
    for seeds in ((0x0123456789ABCDEF, 0x9E3779B97F4A7C15, 3, 4), COLLIDING, (7, 1 << 32, 3, 4)):
        image, keys = grown(make_image, 120, 4, seeds=seeds)
        assert image.region_commit(0, 4, 600 * 64) == "OK"
        staying, going = keys[::2], keys[1::2]
        sizes = set()
        for _ in range(20):
            place, found = START, []
            while place[0] < END:
                sizes.add(image.picture.header.table >> 16)
                way = rng.choice([image.table_grow, image.table_grow, image.table_shrink])
                for _ in range(rng.choice([0, 1, 30])):
                    if way == image.table_shrink or image.picture.header.table >> 16 < 600:
                        assert way(0) in ("OK", "FULL")
                for key in rng.sample(going, rng.choice([0, 3])):
                    if image.delete(1, key) == "ABSENT":
                        fill(image, [key])
                status, pairs, place = image.bucket_read(place, rng.choice([1, 2, 7, 40]))
                assert status == "OK"
                found += [key for key, _ in pairs]
            assert len(found) == len(set(found))
            assert set(staying) <= set(found) <= set(keys)
        assert len(sizes) > 20
        assert image.check()[0] == 0


def test_walk_reads_at_most_the_given_number_of_buckets(make_image):
    """G1: a walk ends after `steps` buckets, so that its caller can leave the operation."""
    image, _ = grown(make_image, 300, 64)
    for steps in (1, 2, 63):
        status, _, place = image.walk_steps(START, 1000, steps)

        assert (status, place) == ("OK", (steps * (END >> 6), None))


def test_walk_leaves_its_operation_every_256_buckets(make_image):
    """G1: every 256 buckets the context leaves its operation, so that memory can be released."""
    image, keys = grown(make_image, 600, 3 * WALK_STEPS)
    context = image.picture.context(1)
    before = context.activity

    _, pairs, _ = image.walk_on(START, 1000, who=1)

    assert len(pairs) == len(keys)
    assert context.activity == before + 2 * (1 + 4)
    assert context.activity % 2 == 0


@pytest.mark.parametrize("hint", [0, 1, 3, 5, 1 << 20, 2**48 - 1])
def test_wrong_table_word_costs_a_walk_only_time(make_image, hint):
    """I1, H1: walks use the table word only to prefetch; levels decide where to read."""
    image, keys = grown(make_image, 300, 100)
    image.picture.header.table = hint << 16

    status, pairs, _ = image.walk_steps(START, 1000, 1000)

    assert status == "ABSENT"
    assert sorted(key for key, _ in pairs) == sorted(keys)


def test_walk_that_respects_locks_keeps_its_entries_when_busy(make_image):
    """L1: with BPF_F_LOCK the sink has all entries before the bucket with the held entry."""
    image, keys = grown(make_image, 300, 100)
    held = keys[200]
    set_state(image, held, LOCKED, OTHER)
    first = rank(image, held)[0]
    bucket = image.table_find(reversed_bits(first))
    first = reversed_bits(bucket)

    status, pairs, place = image.walk_steps(START, 1000, 1000, waiter=1)

    assert status == "BUSY"
    found = [key for key, _ in pairs]
    assert {key for key in keys if rank(image, key)[0] < first} <= set(found)
    assert set(found) <= set(keys[:200])
    assert first <= place[0] <= rank(image, held)[0]
    set_state(image, held, LIVE)
    status, pairs, _ = image.walk_steps(place, 1000, 1000, waiter=1)
    assert status == "ABSENT"
    assert sorted(found + [key for key, _ in pairs]) == sorted(keys)


# ---- facts of a bucket ----


def test_figures_of_a_bucket_are_its_level_entries_lines_and_lock(make_image):
    image, _ = grown(make_image, 600, 37)
    picture = image.picture
    picture.buckets[5].header |= held_by(OTHER)
    for index in range(37):
        chained, lines = picture.chain(index)

        assert image.bucket_figures(index) == (
            level_of(picture.buckets[index].header),
            len(chained),
            len(lines),
            index == 5,
        )
    assert image.bucket_figures(37) is None
    assert image.bucket_figures(1 << 40) is None


def test_figures_of_a_damaged_bucket_end_without_a_crash(image):
    """M1, H1: bucket_figures reads nothing beyond the watermark, and ends in a circle of lines."""
    in_bucket(image, 0, 20)
    lines = image.picture.chain(0)[1]
    image.picture.lines[lines[-1]].indices[LINK_SLOT] = LINK_BASE + lines[0]
    image.picture.header.table = 2**40 << 16
    image.picture.header.regions[4].usable = 3 * 64

    assert image.bucket_figures(0)[3] is False
    assert image.bucket_figures(2) is not None
    assert image.bucket_figures(3) is None
