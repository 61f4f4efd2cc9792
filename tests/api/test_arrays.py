"""Operations on arrays of keys: kinds of buffers, bad input, batches that stop, duplicates."""

import array
import ctypes
import errno
import mmap
import random
import signal
import threading

import numpy
import pytest
from support.jobs import EXIST, NOEXIST, number_in, word
from support.model import ModelMap, wrap_around
from support.walks import refuse_references, rows_of
from support.words import COLLIDING
from support.workers import run_together

import shmrhash
from shmrhash import RHashMap

SIZES = [(8, 8), (1, 1), (1, 40), (2, 3), (4, 4), (5, 12), (8, 1), (12, 5), (33, 7), (64, 100)]


def numbered(size, count, first=0):
    """Return count different rows of size bytes, up to 256 of them."""
    return [
        bytes((number + 37 * place) % 256 for place in range(size))
        for number in range(first, first + count)
    ]


def mapped(raw):
    memory = mmap.mmap(-1, max(1, len(raw)))
    memory[: len(raw)] = raw
    return memory


# Kinds of buffers for keys and values: functions of the bytes, and of the size of one row.
FORMS = {
    "bytes": lambda raw, size: raw,
    "bytearray": lambda raw, size: bytearray(raw),
    "memoryview": lambda raw, size: memoryview(raw),
    "memoryview of rows": lambda raw, size: memoryview(raw).cast("B", (len(raw) // size, size)),
    "list": rows_of,
    "tuple of buffers": lambda raw, size: tuple(map(bytearray, rows_of(raw, size))),
    "list of scalars": lambda raw, size: list(numpy.frombuffer(raw, f"V{size}")),
    "NumPy items": lambda raw, size: numpy.frombuffer(raw, f"V{size}"),
    "NumPy strings": lambda raw, size: numpy.frombuffer(raw, f"S{size}"),
    "NumPy rows": lambda raw, size: numpy.frombuffer(raw, "u1").reshape(-1, size),
    "NumPy structures": lambda raw, size: numpy.frombuffer(
        raw, [("head", "u1"), ("rest", "u1", (size - 1,))]
    ),
    "ctypes": lambda raw, size: (ctypes.c_char * size * (len(raw) // size)).from_buffer_copy(raw),
    "mmap": lambda raw, size: mapped(raw),
}
WORDS = {
    "uint64": lambda raw: numpy.frombuffer(raw, "u8"),
    "big-endian": lambda raw: numpy.frombuffer(raw, ">i8"),
    "float64": lambda raw: numpy.frombuffer(raw, "f8"),
    "complex64": lambda raw: numpy.frombuffer(raw, "c8"),
    "datetime64": lambda raw: numpy.frombuffer(raw, "M8[ns]"),
    "rows of uint16": lambda raw: numpy.frombuffer(raw, "u2").reshape(-1, 4),
    "planes": lambda raw: numpy.frombuffer(raw, "u1").reshape(-1, 2, 4),
    "array.array": lambda raw: array.array("Q", raw),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_arrays_may_be_any_contiguous_buffer(make_map, form, sizes):
    """W1: an operation on an array does to each key what the operation on one key does."""
    m = make_map(key_size=sizes[0], value_size=sizes[1])
    keys, values = numbered(sizes[0], 60), numbered(sizes[1], 60, first=90)
    shape = FORMS[form]
    all_keys, all_values = shape(b"".join(keys), sizes[0]), shape(b"".join(values), sizes[1])
    half = shape(b"".join(keys[:30]), sizes[0])

    assert m.update_batch(all_keys, all_values) == 60
    assert dict(m.items()) == dict(zip(keys, values, strict=True))
    assert m.delete_batch(half) == 30
    assert m.update_many(all_keys, all_values, NOEXIST).tolist() == [True] * 30 + [False] * 30
    assert m.delete_many(half).tolist() == [True] * 30
    found_values, found = m.lookup_many(all_keys)
    assert found.tolist() == m.contains_many(all_keys).tolist() == [False] * 30 + [True] * 30
    assert rows_of(found_values, sizes[1]) == [bytes(sizes[1])] * 30 + values[30:]
    if sizes[1] >= 8:
        assert m.add_many(all_keys, 1, default=5).tolist()[:30] == [6] * 30


@pytest.mark.parametrize("form", WORDS)
def test_arrays_may_have_any_item_type_of_the_right_size(shm_map, form):
    """W1: operations on arrays use the bytes of the items, not the numbers that they represent."""
    raw = b"".join(map(word, range(100, 120)))
    rows = WORDS[form](raw)

    assert shm_map.update_many(rows, rows).all()
    values, found = shm_map.lookup_many(rows)

    assert found.all()
    assert values.tobytes() == raw
    assert {key: key for key in rows_of(raw, 8)} == dict(shm_map.items())


@pytest.mark.parametrize("dtype", ["u8", "<f8", "M8[ns]", "S8", [("a", "u4"), ("b", "i4")]])
def test_results_have_the_requested_dtype(shm_map, dtype):
    numbers = numpy.arange(20)
    shm_map.update_many(numbers, numbers)

    values, _ = shm_map.lookup_many(numbers, dtype=dtype)
    keys, all_values = shm_map.to_arrays(key_dtype=dtype, value_dtype=dtype)
    batch = shm_map.lookup_batch(None, 20, key_dtype=dtype, value_dtype=dtype)

    for rows in (values, keys, all_values, batch.keys, batch.values):
        assert rows.dtype == numpy.dtype(dtype)
        assert sorted(rows_of(rows, 8)) == sorted(rows_of(numbers, 8))
    assert shm_map.lookup_many(numbers)[0].dtype == "V8"
    assert shm_map.to_arrays()[0].dtype == "V8"


@pytest.mark.parametrize("make", [bytearray, lambda size: numpy.full(size // 8, -1), mapped])
def test_lookup_many_fills_the_given_out_buffer(shm_map, make):
    """out is filled in the rows whose keys were found, and unchanged in the others."""
    shm_map.update_many(numpy.arange(0, 10, 2), numpy.arange(100, 105))
    out = make(80 if make is not mapped else b"\xff" * 80)
    before = bytes(out)

    values, found = shm_map.lookup_many(numpy.arange(10), out=out)

    assert values is out
    assert found.tolist() == [True, False] * 5
    expected = [word(100 + number // 2) if number % 2 == 0 else before[:8] for number in range(10)]
    assert rows_of(bytes(out), 8) == expected


def test_empty_arrays_change_nothing(shm_map):
    shm_map[word(1)] = word(2)
    for none in (b"", [], (), numpy.empty(0, "u8"), numpy.empty((0, 8), "u1")):
        assert shm_map.update_batch(none, none) == 0
        assert shm_map.delete_batch(none) == 0
        assert [len(shm_map.update_many(none, none)), len(shm_map.delete_many(none))] == [0, 0]
        assert [len(rows) for rows in shm_map.lookup_many(none)] == [0, 0]
        assert len(shm_map.contains_many(none)) == len(shm_map.add_many(none, 1)) == 0
    assert dict(shm_map.items()) == {word(1): word(2)}


# ---- bad input ----

TAKE_KEYS = {
    "lookup_many": lambda m, keys: m.lookup_many(keys),
    "contains_many": lambda m, keys: m.contains_many(keys),
    "update_many": lambda m, keys: m.update_many(keys, bytes(24)),
    "update_batch": lambda m, keys: m.update_batch(keys, bytes(24)),
    "values of update_many": lambda m, keys: m.update_many(bytes(24), keys),
    "values of update_batch": lambda m, keys: m.update_batch(bytes(24), keys),
    "delete_many": lambda m, keys: m.delete_many(keys),
    "delete_batch": lambda m, keys: m.delete_batch(keys),
    "add_many": lambda m, keys: m.add_many(keys, 1, default=0),
    "deltas of add_many": lambda m, keys: m.add_many(bytes(24), keys, default=0),
}
UNFIT = {
    "ragged bytes": b"x" * 20,
    "ragged bytearray": bytearray(23),
    "one byte too many": bytes(25),
    "smaller items": numpy.zeros(3, "u4"),
    "larger items": numpy.zeros(3, "c16"),
    "shorter rows": numpy.zeros((3, 7), "u1"),
    "longer rows": numpy.zeros((3, 3), "u4"),
    "every other item": numpy.zeros(6, "u8")[::2],
    "backwards": numpy.zeros(3, "u8")[::-1],
    "columns first": numpy.zeros((3, 8), "u1", order="F"),
    "a column": numpy.zeros((3, 2), "u8")[:, 0],
    "a strided memoryview": memoryview(bytes(48))[::2],
    "a ragged list": [bytes(8), bytes(7), bytes(9)],
}
NO_BUFFERS = [
    None,
    3.5,
    "24 characters, but of text",
    {},
    object(),
    [1, 2, 3],
    ["12345678"] * 3,
    iter([bytes(8)] * 3),
    [bytes(8), None, bytes(8)],
]

each_taker = pytest.mark.parametrize("taker", TAKE_KEYS)


@each_taker
@pytest.mark.parametrize("unfit", UNFIT)
def test_arrays_of_unfit_shape_or_size_are_refused(shm_map, taker, unfit):
    """K1: an array of the wrong shape or item size is EINVAL, and nothing changes."""
    shm_map[bytes(8)] = word(7)

    with pytest.raises(shmrhash.InvalidArgument) as refused:
        TAKE_KEYS[taker](shm_map, UNFIT[unfit])

    assert refused.value.errno == errno.EINVAL
    assert not refused.value.count
    assert dict(shm_map.items()) == {bytes(8): word(7)}


@each_taker
@pytest.mark.parametrize("thing", NO_BUFFERS, ids=lambda thing: type(thing).__name__)
def test_argument_that_is_not_a_buffer_is_a_type_error(shm_map, taker, thing):
    with pytest.raises(TypeError):
        TAKE_KEYS[taker](shm_map, thing)

    assert len(shm_map) == 0


@pytest.mark.parametrize("items", [[memoryview(bytes(16))[::2]], [numpy.zeros(16, "u1")[::2]]])
def test_list_with_an_unfit_item_is_refused(shm_map, items):
    with pytest.raises(shmrhash.InvalidArgument):
        shm_map.contains_many(items)


def test_arrays_of_different_lengths_are_refused(shm_map):
    """K1: arrays of different lengths are EINVAL; the message has both, and nothing changes."""
    keys = numpy.arange(5)
    for operation in (
        lambda: shm_map.update_many(keys, keys[:4]),
        lambda: shm_map.update_batch(keys, b"x" * 32),
        lambda: shm_map.add_many(keys, keys[:4], default=0),
        lambda: shm_map.lookup_many(keys, out=bytearray(32)),
    ):
        with pytest.raises(shmrhash.InvalidArgument, match=r"4 .*5 "):
            operation()
    assert len(shm_map) == 0


@pytest.mark.parametrize(
    "out",
    [bytes(24), numpy.zeros(3, "u4"), numpy.zeros(6, "u8")[::2], bytearray(23), bytearray(32)],
    ids=lambda out: f"{type(out).__name__} {len(out)}",
)
def test_unfit_out_buffer_is_refused(shm_map, out):
    shm_map.update_many(numpy.arange(3), numpy.arange(3))

    with pytest.raises(shmrhash.InvalidArgument):
        shm_map.lookup_many(numpy.arange(3), out=out)
    with pytest.raises(shmrhash.InvalidArgument):
        shm_map.lookup_many(numpy.arange(3), out=bytearray(24), dtype="u8")


@pytest.mark.parametrize("dtype", ["u4", "V9", "S7"])
def test_dtype_of_another_size_is_refused(shm_map, dtype):
    shm_map[word(1)] = word(2)
    for operation in (
        lambda: shm_map.lookup_many(word(1), dtype=dtype),
        lambda: shm_map.lookup_batch(None, 1, key_dtype=dtype),
        lambda: shm_map.lookup_and_delete_batch(None, 1, value_dtype=dtype),
        lambda: shm_map.to_arrays(key_dtype=dtype),
    ):
        with pytest.raises(shmrhash.InvalidArgument):
            operation()
    assert len(shm_map) == 1


def test_arrays_of_python_objects_are_refused(shm_map):
    """H1: arrays of NumPy's pointers are refused. A child tries them, since they might crash it."""
    shm_map.update_many(numpy.arange(50), numpy.arange(50))

    assert run_together("fork", (refuse_references, shm_map, numpy)) == [6]


@pytest.mark.parametrize("flags", [3, 7, 8, 1 << 32, -1])
def test_unknown_flags_are_refused(shm_map, flags):
    """K1: update_many refuses unknown flags; the other batches refuse all flags but BPF_F_LOCK."""
    key = word(1)
    for operation in (
        lambda: shm_map.update_many(key, key, flags),
        lambda: shm_map.update_batch(key, key, flags),
        lambda: shm_map.delete_batch(key, flags),
        lambda: shm_map.lookup_batch(None, 1, flags),
        lambda: shm_map.lookup_and_delete_batch(None, 1, flags),
    ):
        with pytest.raises(shmrhash.InvalidArgument) as refused:
            operation()
        assert refused.value.errno == errno.EINVAL
    assert len(shm_map) == 0


def test_read_only_handle_reads_arrays_and_refuses_to_write(make_map, map_name):
    """A read-only handle reads arrays; a write raises ReadOnlyMap and changes nothing."""
    m = make_map()
    keys = numpy.arange(40)
    m.update_many(keys, keys)
    with RHashMap.open(map_name, read_only=True) as reader:
        values, found = reader.lookup_many(keys, dtype="i8")
        assert found.all()
        assert (values == keys).all()
        assert reader.contains_many(keys).all()
        assert reader.lookup_batch(None, 40).count == 40
        assert sorted(reader.to_arrays(key_dtype="i8")[0]) == list(keys)
        for operation in (
            lambda: reader.update_many(keys, keys),
            lambda: reader.update_batch(keys, keys),
            lambda: reader.delete_many(keys),
            lambda: reader.delete_batch(keys),
            lambda: reader.add_many(keys, 1),
            lambda: reader.lookup_and_delete_batch(),
        ):
            with pytest.raises(shmrhash.ReadOnlyMap) as refused:
                operation()
            assert refused.value.errno == errno.EPERM
    assert dict(m.items()) == {word(number): word(number) for number in range(40)}


def test_array_operations_of_a_closed_handle_raise_map_closed(make_map):
    m = make_map()
    keys = numpy.arange(4)
    m.close()
    for operation in (
        lambda: m.update_many(keys, keys),
        lambda: m.update_batch(keys, keys),
        lambda: m.delete_many(keys),
        lambda: m.delete_batch(keys),
        lambda: m.add_many(keys, 1),
        lambda: m.lookup_many(keys),
        lambda: m.contains_many(keys),
        lambda: m.lookup_batch(),
        lambda: m.lookup_and_delete_batch(),
    ):
        with pytest.raises(shmrhash.MapClosed):
            operation()


# ---- errors that stop a batch, and the count that they report ----


def test_update_batch_stops_at_the_first_refusal(shm_map):
    """W1: KeyExists and KeyNotFound report how many keys were done: all before the refused one."""
    keys = numpy.arange(10)
    shm_map[word(6)] = word(99)

    with pytest.raises(shmrhash.KeyExists) as refused:
        shm_map.update_batch(keys, keys, NOEXIST)
    assert refused.value.count == 6
    assert sorted(shm_map) == [word(number) for number in range(7)]
    assert shm_map[word(6)] == word(99)

    with pytest.raises(shmrhash.KeyNotFound) as refused:
        shm_map.update_batch(keys, keys + 100, EXIST)
    assert refused.value.count == 7
    assert sorted(shm_map.values()) == [word(100 + number) for number in range(7)]


@pytest.mark.parametrize("name", ["update_batch", "update_many", "add_many"])
def test_a_full_map_stops_a_batch(make_map, name):
    """W2: MapFull reports how many keys the batch has done; keys that are present need no room."""
    m = make_map(max_entries=10)
    keys = numpy.array([1, 2, 3, 1, 2, *range(20, 40)])

    with pytest.raises(shmrhash.MapFull) as refused:
        getattr(m, name)(keys, keys, **({"default": 0} if name == "add_many" else {}))

    assert refused.value.errno == errno.E2BIG
    assert refused.value.count == 12
    assert sorted(m) == sorted(map(word, {*keys[:12].tolist()}))


def test_delete_batch_stops_at_the_first_absent_key(shm_map):
    """W1: delete_batch stops at an absent key (kernel: ENOENT and a count); delete_many does
    not."""
    keys = numpy.arange(10)
    shm_map.update_many(keys, keys)
    del shm_map[word(4)]

    with pytest.raises(shmrhash.KeyNotFound) as refused:
        shm_map.delete_batch(keys)

    assert refused.value.count == 4
    assert len(shm_map) == 5
    assert shm_map.delete_many(keys).tolist() == [False] * 5 + [True] * 5


def test_add_many_stops_at_the_first_absent_key(shm_map):
    shm_map.update_many(numpy.arange(5), numpy.zeros(5, "i8"))

    with pytest.raises(shmrhash.KeyNotFound) as refused:
        shm_map.add_many(numpy.array([0, 1, 1, 9, 2]), 3)

    assert refused.value.count == 3
    assert [number_in(shm_map[word(key)]) for key in range(5)] == [3, 6, 0, 0, 0]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, shmrhash.MapClosed])
def test_a_long_batch_is_ended_by_a_signal_or_by_close(make_map, map_name, ending):
    """W1: the exception reports how many keys the batch has done; it has done each of them once."""
    m = make_map()
    keys = numpy.tile(numpy.arange(64), 100_000)
    ones = numpy.ones(len(keys), "i8")
    main_thread = threading.get_ident()

    def end_it():
        while word(63) not in m:
            pass
        if ending is KeyboardInterrupt:
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            m.close()

    thread = threading.Thread(target=end_it)
    thread.start()
    with pytest.raises(ending) as ended:
        m.add_many(keys, ones, default=0)
    thread.join()

    assert 0 < ended.value.count < len(keys)
    with RHashMap.open(map_name) as same:
        assert sum(map(number_in, same.values())) == ended.value.count
        same.check()


def test_changing_the_keys_during_a_batch_leaves_the_map_sound(make_map, seed):
    """H1: if a thread writes into a batch's keys, entries may be wrong, but the map is sound."""
    m = make_map(max_entries=4_000_000)
    keys = numpy.arange(200_000)
    ends = threading.Event()

    def scribble():
        number = seed
        while not ends.is_set():
            number += 1
            keys[:] = numpy.arange(number % 15 * 200_000, (number % 15 + 1) * 200_000)

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(20):
            m.update_many(keys, keys)
            m.delete_many(keys[::1])
    finally:
        ends.set()
        thread.join()

    m.check()


# ---- duplicates, and the model ----


def test_duplicate_keys_are_done_in_the_order_of_the_array(shm_map):
    """W1: a batch treats equal keys one after another, like single operations."""
    keys = numpy.array([5, 7, 5, 5, 7, 9])
    values = numpy.arange(6)

    assert shm_map.update_many(keys, values, NOEXIST).tolist() == [1, 1, 0, 0, 0, 1]
    assert [number_in(shm_map[word(key)]) for key in (5, 7, 9)] == [0, 1, 5]
    assert shm_map.update_many(keys, values).all()
    assert [number_in(shm_map[word(key)]) for key in (5, 7, 9)] == [3, 4, 5]
    assert shm_map.add_many(keys, 10).tolist() == [13, 14, 23, 33, 24, 15]
    assert shm_map.delete_many(keys).tolist() == [1, 1, 0, 0, 0, 1]
    assert shm_map.add_many(keys, keys, default=100).tolist() == [105, 107, 110, 115, 114, 109]


@pytest.mark.parametrize("delta", [1, -1, 1 << 63, -(1 << 63), (1 << 64) + 3, numpy.int64(5)])
def test_add_many_with_one_delta_adds_it_to_each_key(shm_map, delta):
    """W1: add_many() with one delta adds it to each key like add(), and wraps around."""
    expected = [wrap_around(number + int(delta)) for number in range(30)]

    assert shm_map.add_many(numpy.arange(30), delta, default=0).tolist() == [expected[0]] * 30
    shm_map.update_many(numpy.arange(30), numpy.arange(30))
    assert shm_map.add_many(numpy.arange(30), delta).tolist() == expected


@pytest.mark.parametrize("offset", [0, 3, 8, 16])
def test_add_many_adds_at_the_given_offset(make_map, offset):
    m = make_map(value_size=24)

    sums = m.add_many(numpy.arange(40), numpy.arange(40), default=1, offset=offset)

    assert sums.tolist() == list(range(1, 41))
    expected = [bytes(offset) + word(1 + key) + bytes(16 - offset) for key in range(40)]
    assert [m[word(key)] for key in range(40)] == expected
    for wrong in (-1, 17):
        with pytest.raises(shmrhash.InvalidArgument):
            m.add_many(numpy.arange(3), 1, default=0, offset=wrong)


@pytest.mark.parametrize("seeds", [None, COLLIDING, (7, 1 << 32)])
def test_random_arrays_agree_with_the_model(make_map, seed, seeds):
    """W1: arrays with equal keys, longer than the pipeline, agree with a dict while the map
    grows."""
    m = make_map(max_entries=1000, _seeds=seeds)
    model = ModelMap(key_size=8, value_size=8, max_entries=1000)
    rng = random.Random(seed)
    keys_max = 60 if seeds == COLLIDING else 900

    for _ in range(200):
        numbers = [rng.randrange(keys_max) for _ in range(rng.choice([1, 5, 25, 40, 300]))]
        keys, values = list(map(word, numbers)), [word(rng.getrandbits(64)) for _ in numbers]
        there = [key in model.pairs for key in keys]
        kind = rng.randrange(4)
        if kind == 0:
            assert m.update_many(keys, values).all()
            model.pairs.update(zip(keys, values, strict=True))
        elif kind == 1:
            deleted = [model.pairs.pop(key, None) is not None for key in keys]
            assert m.delete_many(keys).tolist() == deleted
        elif kind == 2:
            sums = [model.add(key, 3, default=1) for key in keys]
            assert m.add_many(keys, 3, default=1).tolist() == sums
        found_values, found = m.lookup_many(keys)
        if kind == 3:
            assert found.tolist() == there
        expected = [model.pairs.get(key, bytes(8)) for key in keys]
        assert rows_of(found_values, 8) == expected
        assert len(m) == len(model.pairs)
    assert dict(m.items()) == model.pairs
