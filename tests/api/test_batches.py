"""Batches of entries: cursors, counts, taking, differences from the kernel, bulk load."""

import itertools
import random

import numpy
import pytest
from support import walks
from support.jobs import NOEXIST, number_in, word
from support.walks import pairs_of, rows_of, value_of
from support.words import COLLIDING
from support.workers import METHODS, run_together

import shmrhash
from shmrhash import RHashMap, _batch, _core, _rows

BATCHES = ["lookup_batch", "lookup_and_delete_batch"]

each_batch = pytest.mark.parametrize("batch", BATCHES)


@pytest.fixture(params=[None, COLLIDING], ids=["spread", "colliding"])
def any_map(request, make_map):
    """A map whose keys either spread over its buckets or all collide."""
    return make_map(_seeds=request.param)


@pytest.fixture
def without_numpy(monkeypatch):
    monkeypatch.setattr(_rows, "numpy_or_none", lambda: None)


def fill(m, count, first=0):
    """Insert count entries; return them."""
    keys = list(map(word, range(first, first + count)))
    pairs = {key: value_of(key, m.value_size) for key in keys}
    assert m.update_batch(keys, list(pairs.values())) == count
    return pairs


def batches(m, count, cursor=None, batch="lookup_batch"):
    """Return the entries of each batch, ending with the batch whose cursor is None."""
    found = []
    while True:
        result = getattr(m, batch)(cursor, count)
        found.append(pairs_of(m, result.keys, result.values))
        assert result.count == len(found[-1])
        assert result.count == count or result.cursor is None
        cursor = result.cursor
        if cursor is None:
            return found


def entries(found):
    """Return the entries of all batches; no key may come twice."""
    pairs = list(itertools.chain.from_iterable(found))
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


# ---- the contract ----


@each_batch
@pytest.mark.parametrize("count", range(1, 82))
def test_batches_of_every_count_deliver_everything_once(any_map, batch, count):
    """I1: all batches but the last are full; a full batch at the end of the map has no cursor."""
    pairs = fill(any_map, 80)

    found = batches(any_map, count, batch=batch)

    assert entries(found) == pairs
    assert len(found) == -(-80 // count)
    assert dict(any_map.items()) == ({} if batch == "lookup_and_delete_batch" else pairs)


@each_batch
def test_a_batch_of_an_empty_map_is_empty(shm_map, batch):
    """A batch of an empty map is no error, like any batch at a map's end (kernel: ENOENT)."""
    result = getattr(shm_map, batch)(None, 10)

    assert (result.count, result.cursor, len(result.keys), len(result.values)) == (0, None, 0, 0)


@each_batch
@pytest.mark.parametrize("count", [81, 1 << 20, 1 << 70])
def test_a_count_above_the_number_of_entries_delivers_all(any_map, batch, count):
    pairs = fill(any_map, 80)

    assert entries(batches_of_one(any_map, batch, count)) == pairs


def batches_of_one(m, batch, count, cursor=None):
    result = getattr(m, batch)(cursor, count)
    assert result.cursor is None
    return [pairs_of(m, result.keys, result.values)]


@pytest.mark.parametrize("sizes", [(1, 1), (3, 9), (7, 130), (64, 8), (8, 65536)])
def test_batches_work_for_keys_and_values_of_all_sizes(make_map, sizes):
    m = make_map(key_size=sizes[0], value_size=sizes[1])
    keys = [bytes([number]) * sizes[0] for number in range(100)]
    pairs = {key: value_of(key, sizes[1]) for key in keys}
    m.update_many(keys, list(pairs.values()))

    for count in (1, 6, 50, 100):
        assert entries(batches(m, count)) == pairs
    assert dict(pairs_of(m, *m.to_arrays())) == pairs
    assert entries(batches(m, 9, batch="lookup_and_delete_batch")) == pairs
    assert len(m) == 0


@pytest.mark.parametrize("seeds", [None, COLLIDING])
def test_a_cursor_works_with_any_handle_and_any_count(make_map, map_name, seed, seeds):
    """I1: a cursor is plain bytes, valid for any handle, and inside a group of equal hashes."""
    m = make_map(_seeds=seeds)
    pairs = fill(m, 200)
    rng = random.Random(seed)
    found, cursor = [], None
    with RHashMap.open(map_name) as second, RHashMap.open(map_name, read_only=True) as third:
        while True:
            handle = rng.choice([m, second, third])
            result = handle.lookup_batch(cursor, rng.choice([1, 2, 7, 20]))
            found.append(pairs_of(m, result.keys, result.values))
            assert result.cursor is None or isinstance(result.cursor, bytes)
            cursor = result.cursor and bytes(bytearray(result.cursor))
            if cursor is None:
                break

    assert entries(found) == pairs


def test_a_cursor_keeps_its_place(any_map):
    """I1: the same cursor gives the same entries again, and then entries inserted after it."""
    fill(any_map, 60)
    cursor = any_map.lookup_batch(None, 20).cursor

    behind = entries(batches(any_map, 5, cursor))
    assert entries(batches(any_map, 7, cursor)) == behind
    assert len(behind) == 40
    fill(any_map, 400, first=1000)

    after = entries(batches(any_map, 9, cursor))
    assert behind.items() <= after.items()
    assert len(set(after) & set(map(word, range(60)))) == 40


@each_batch
@pytest.mark.parametrize("count", [0, -1, -(1 << 70)])
def test_a_batch_with_a_count_below_one_is_refused(shm_map, batch, count):
    """K1: a count below 1 is EINVAL, and a count that is no number is a TypeError."""
    shm_map[word(1)] = word(2)

    with pytest.raises(shmrhash.InvalidArgument, match="count"):
        getattr(shm_map, batch)(None, count)
    for no_count in (1.5, "3", None):
        with pytest.raises(TypeError):
            getattr(shm_map, batch)(None, no_count)
    assert len(shm_map) == 1


@each_batch
def test_foreign_cursors_are_refused(make_map, map_name, batch):
    """K1: a cursor of another map or of an earlier map of that name, or other bytes, is refused."""
    m, other = make_map(), make_map()
    fill(m, 100)
    fill(other, 100)
    mine = m.lookup_batch(None, 3).cursor
    cursors = [other.lookup_batch(None, 3).cursor]
    for _ in range(2):
        name = f"{map_name}-again"
        with RHashMap.create(name, key_size=8, value_size=8, max_entries=200) as again:
            fill(again, 100)
            for old in cursors:
                with pytest.raises(shmrhash.InvalidArgument, match="cursor"):
                    getattr(again, batch)(old, 5)
            cursors.append(again.lookup_batch(None, 3).cursor)
            again.unlink()
    cursors += [b"", bytes(8), bytes(12), mine[:-1], mine + b"x", bytearray(mine), mine.hex(), 3]

    for cursor in cursors:
        with pytest.raises(shmrhash.InvalidArgument, match="cursor"):
            getattr(m, batch)(cursor, 5)
    assert len(m) == 100


@pytest.mark.parametrize("place", range(0, 2**32, 0x0FFF_FFFF))
def test_a_cursor_with_any_order_delivers_only_entries_of_the_map(any_map, place):
    """H1: a cursor with an arbitrary order in it delivers entries of the map, or none."""
    pairs = fill(any_map, 50)
    name = any_map.lookup_batch(None, 3).cursor[:8]
    order = place.to_bytes(4, "little")

    for cursor in (name + order, name + order + word(20), name + order + b"\xff" * 8):
        assert entries(batches(any_map, 4, cursor)).items() <= pairs.items()


# ---- stronger than the kernel ----


def test_a_cursor_goes_on_after_its_key_was_deleted(any_map, seed):
    """I1: a cursor whose key was deleted goes on; the kernel says EAGAIN and starts again."""
    pairs = fill(any_map, 120)
    rng = random.Random(seed)
    delivered, cursor, deleted = {}, None, set()
    while True:
        result = any_map.lookup_batch(cursor, rng.choice([1, 2, 3, 7]))
        delivered |= entries([pairs_of(any_map, result.keys, result.values)])
        cursor = result.cursor
        if cursor is None:
            break
        # The keys that the cursor may stand at or before: the last ones delivered, and the next
        # ones.
        upcoming = any_map.lookup_batch(cursor, 2)
        doomed = set(rows_of(result.keys, 8)[-2:] + rows_of(upcoming.keys, 8))
        any_map.delete_batch(list(doomed))
        deleted |= doomed

    assert pairs.keys() - deleted <= delivered.keys()
    assert delivered.items() <= pairs.items()
    assert len(deleted) > 20


@each_batch
def test_deleting_delivered_entries_does_not_end_a_walk(any_map, batch):
    """I1: a walk goes on when its entries are deleted; the kernel's batch ends there with
    ENOENT."""
    pairs = fill(any_map, 100)
    delivered, cursor = {}, None
    while True:
        result = getattr(any_map, batch)(cursor, 3)
        delivered |= entries([pairs_of(any_map, result.keys, result.values)])
        any_map.delete_many(result.keys)
        cursor = result.cursor
        if cursor is None:
            break

    assert delivered == pairs
    assert len(any_map) == 0


def test_two_takers_never_get_the_same_entry(any_map, map_name):
    """W1, I1: two takers by turns never get one entry, which the kernel may deliver to both."""
    pairs = fill(any_map, 100)
    with RHashMap.open(map_name) as other:
        found, cursors = [], {any_map: None, other: None}
        while cursors:
            for handle, cursor in list(cursors.items()):
                result = handle.lookup_and_delete_batch(cursor, 4)
                found.append(pairs_of(handle, result.keys, result.values))
                cursors[handle] = result.cursor
                if result.cursor is None:
                    del cursors[handle]

    assert entries(found) == pairs
    assert len(any_map) == 0


@pytest.mark.parametrize("count", [1, 4, 5, 10, 20])
def test_a_batch_filled_by_the_last_entry_has_no_cursor(any_map, count):
    """I1: a batch that the last entry fills has the cursor None, and no empty batch follows."""
    fill(any_map, 20)

    assert [len(pairs) for pairs in batches(any_map, count)] == [count] * (20 // count)


# ---- taking ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fed", [False, True], ids=["full", "fed"])
@pytest.mark.thorough
def test_every_entry_is_taken_exactly_once(make_map, seed, method, fed):
    """W1, I1: four workers take from a full map, or three while one inserts; no entry is lost."""
    m = make_map(max_entries=30_000)
    count = 20_000
    numbers = range(count)
    if not fed:
        fill(m, count)
    take = walks.take_batches

    results = run_together(
        method,
        *((take, m, random.Random(seed + i), fed) for i in range(3 if fed else 4)),
        *[(walks.feed, m, numbers)] * fed,
    )

    taken = list(itertools.chain.from_iterable(results[: 3 if fed else 4])) + list(m)
    assert sorted(map(number_in, taken)) == list(numbers)
    m.check()


@pytest.mark.long
def test_every_entry_is_taken_exactly_once_for_long(make_map, seed):
    """W1, I1: two workers insert a million entries while three take them."""
    m = make_map(max_entries=1 << 20)
    numbers = [range(i * 500_000, (i + 1) * 500_000) for i in range(2)]

    *results, _, _ = run_together(
        "fork",
        *((walks.take_batches, m, random.Random(seed + i), True) for i in range(3)),
        *((walks.feed, m, mine) for mine in numbers),
        timeout_s=300,
    )

    taken = list(itertools.chain.from_iterable(results)) + list(m)
    assert sorted(map(number_in, taken)) == list(range(1_000_000))
    m.check()


def test_taken_entries_are_delivered_although_a_later_bucket_fails(make_map, monkeypatch):
    """W1: entries already deleted are delivered, although a later bucket's lock is not free."""
    m = make_map()
    pairs = fill(m, 50)
    take = _core.take_entries
    calls = []

    def grow_then_fail(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            pairs.update(fill(m, 300, first=1000))
        if len(calls) == 2:
            raise shmrhash.LockTimeout("somebody is stopped in the next bucket")
        return take(*arguments)

    monkeypatch.setattr(_core, "take_entries", grow_then_fail)
    monkeypatch.setattr(_batch, "_ROOM_ENTRIES", 1)
    found = [m.lookup_and_delete_batch(None, 1000)]
    with pytest.raises(shmrhash.LockTimeout):
        m.lookup_and_delete_batch(found[-1].cursor, 1000)
    while found[-1].cursor is not None:
        found.append(m.lookup_and_delete_batch(found[-1].cursor, 1000))

    assert len(calls) > 2
    assert entries(pairs_of(m, batch.keys, batch.values) for batch in found) == pairs


# ---- bulk load and dump ----


@pytest.mark.parametrize(
    "options", [{}, {"max_entries": 5000}, {"key_size": 8, "value_size": 8, "map_extra": 100}]
)
def test_arrays_become_a_map_and_come_back(map_name, options):
    keys = numpy.arange(1000, dtype="u8")
    with RHashMap.from_arrays(map_name, keys, keys * 3, **options) as m:
        try:
            assert m.max_entries == options.get("max_entries", 1000)
            found_keys, found_values = m.to_arrays(key_dtype="u8", value_dtype="u8")
            m.check()
        finally:
            m.unlink()

    assert sorted(found_keys) == list(range(1000))
    assert (found_keys * 3 == found_values).all()


@pytest.mark.parametrize("shape", [lambda rows: b"".join(rows), bytearray().join, list, tuple])
def test_bytes_become_a_map_if_both_sizes_are_given(map_name, shape):
    pairs = {bytes([number]) * 5: bytes([number]) * 3 for number in range(50)}
    keys, values = shape(list(pairs)), shape(list(pairs.values()))

    with RHashMap.from_arrays(map_name, keys, values, key_size=5, value_size=3) as m:
        m.unlink()
        assert dict(m.items()) == pairs


def test_sizes_are_taken_from_rows_and_structures(map_name):
    keys = numpy.arange(60, dtype="u1").reshape(20, 3)
    values = numpy.zeros(20, [("a", "u4"), ("b", "u1")])

    with RHashMap.from_arrays(map_name, keys, values, mode=0o600) as m:
        m.unlink()
        assert (m.key_size, m.value_size, len(m)) == (3, 5, 20)


@pytest.mark.parametrize(
    ("keys", "values", "options", "error"),
    [
        (b"12345678", numpy.arange(1), {}, shmrhash.InvalidArgument),
        (numpy.arange(3), numpy.arange(2), {}, shmrhash.InvalidArgument),
        (numpy.arange(6)[::2], numpy.arange(3), {}, shmrhash.InvalidArgument),
        (numpy.arange(3), numpy.arange(3), {"key_size": 7}, shmrhash.InvalidArgument),
        (numpy.arange(3), numpy.arange(3), {"max_entries": 2}, shmrhash.MapFull),
        (None, numpy.arange(3), {}, TypeError),
        (numpy.arange(3), "text", {}, TypeError),
    ],
)
def test_arrays_that_cannot_be_loaded_leave_no_map(map_name, keys, values, options, error):
    with pytest.raises(error):
        RHashMap.from_arrays(map_name, keys, values, **options)

    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)


def test_bulk_load_keeps_the_last_value_of_a_duplicate_key(map_name):
    keys = numpy.array([1, 2, 1, 3, 1])

    with RHashMap.from_arrays(map_name, keys, numpy.arange(5)) as m:
        m.unlink()
        assert dict(m.items()) == {word(1): word(4), word(2): word(1), word(3): word(3)}


def test_progress_function_is_called_and_may_raise(map_name, monkeypatch):
    """from_arrays() and to_arrays() call the progress function after every _CHUNK_ENTRIES entries
    and at the end. If it raises an exception, from_arrays() removes the new map."""
    monkeypatch.setattr(_batch, "_CHUNK_ENTRIES", 30)
    numbers = numpy.arange(100)
    loaded, dumped = [], []

    with RHashMap.from_arrays(
        map_name, numbers, numbers, progress=lambda *told: loaded.append(told)
    ) as m:
        m.to_arrays(progress=lambda *told: dumped.append(told))
        m.unlink()

    assert loaded == [(30, 100), (60, 100), (90, 100), (100, 100)]
    assert [done for done, _ in dumped] == [30, 60, 90, 100]
    assert all(done <= total for done, total in dumped)
    with pytest.raises(ZeroDivisionError):
        RHashMap.from_arrays(map_name, numbers, numbers, progress=lambda *_: 1 / 0)
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)


@pytest.mark.parametrize("batch", ["to_arrays", *BATCHES])
def test_a_map_that_grows_during_the_walk_is_delivered_whole(make_map, monkeypatch, batch):
    """I1: a map is delivered whole although it has outgrown the arrays allocated for it."""
    m = make_map()
    pairs = fill(m, 70)
    monkeypatch.setattr(_batch, "_CHUNK_ENTRIES", 10)
    name = "take_entries" if batch == "lookup_and_delete_batch" else "read_entries"
    read = getattr(_core, name)
    first = True

    def grow_first(*arguments):
        nonlocal first
        if first:
            first = False
            pairs.update(fill(m, 1500, first=5000))
        return read(*arguments)

    monkeypatch.setattr(_core, name, grow_first)
    monkeypatch.setattr(_batch, "_ROOM_ENTRIES", 1)
    if batch == "lookup_and_delete_batch":  # the batch returns early, with a cursor
        first_batch = m.lookup_and_delete_batch(None, 4000)
        (rest,) = batches_of_one(m, batch, 4000, first_batch.cursor)
        found = pairs_of(m, first_batch.keys, first_batch.values) + rest
    elif batch == "to_arrays":
        found = pairs_of(m, *m.to_arrays())
    else:
        (found,) = batches_of_one(m, batch, 4000)

    assert entries([found]) == pairs


# ---- without NumPy ----


def test_without_numpy_results_are_bytes(shm_map, without_numpy):
    """Without NumPy the operations give the same results, with masks as bytes of 0 and 1."""
    keys, values = b"".join(map(word, range(40))), b"".join(map(word, range(100, 140)))

    assert shm_map.update_many(keys[:240], values[:240]) == b"\1" * 30
    assert shm_map.update_many(keys, values, NOEXIST) == bytes(30) + b"\1" * 10
    assert shm_map.lookup_many(keys + word(99)) == (values + bytes(8), b"\1" * 40 + b"\0")
    assert shm_map.contains_many([word(3), word(50)]) == b"\1\0"
    out = bytearray(16)
    assert shm_map.lookup_many(keys[:16], out=out) == (values[:16], b"\1\1")
    assert out == values[:16]
    assert shm_map.add_many(keys[:16], -100) == word(0) + word(1)
    assert shm_map.add_many(keys[:16], word(100) * 2) == word(100) + word(101)
    assert shm_map.delete_many(word(39) * 2) == b"\1\0"
    for count in (1, 7, 39, 100):
        assert len(entries(batches(shm_map, count))) == 39
    found_keys, found_values = shm_map.to_arrays()
    assert isinstance(found_keys, bytes)
    assert isinstance(found_values, bytes)
    assert dict(pairs_of(shm_map, found_keys, found_values)) == dict(shm_map.items())
    assert len(entries(batches(shm_map, 10, batch="lookup_and_delete_batch"))) == 39


def test_without_numpy_a_dtype_is_refused(shm_map, without_numpy):
    for operation in (
        lambda: shm_map.lookup_many(word(1), dtype="u8"),
        lambda: shm_map.lookup_batch(None, 1, key_dtype="u8"),
        lambda: shm_map.to_arrays(value_dtype="u8"),
    ):
        with pytest.raises(shmrhash.InvalidArgument, match="NumPy"):
            operation()


def test_without_numpy_the_size_of_typed_memory_is_known(map_name, without_numpy):
    keys = memoryview(bytes(range(160))).cast("Q")

    with RHashMap.from_arrays(map_name, keys, keys) as m:
        m.unlink()
        assert (m.key_size, m.value_size, len(m)) == (8, 8, 20)
