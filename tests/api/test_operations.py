"""Single operations in one process: the kernel's selftest cases, buffers, sizes, add(), reports."""

import array
import ctypes
import errno
import mmap
import pickle
import random
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
from support.jobs import word
from support.model import ANY, EXIST, NOEXIST, element_size, wrap_around

import shmrhash
from shmrhash import RHashMap

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

# The map of the kernel's prog_tests/rhash.c: an int, and a struct of char[128] and int.
RHASH = {"key_size": 4, "value_size": 132, "max_entries": 128}


def int_key(number):
    return struct.pack("<i", number)


def rhash_value(number):
    return bytes(128) + struct.pack("<i", number)


def long_long(number):
    return struct.pack("<q", number)


def refuses(error, number, operation):
    """Assert that the operation raises the given error with the errno number."""
    with pytest.raises(error) as refused:
        operation()
    assert number == refused.value.errno
    return refused.value


# prog_tests/rhash.c


def test_lookup_update(make_map):
    """W1 (kernel case lookup_update): a key is absent, then inserted, then found."""
    m = make_map(**RHASH)
    assert m.lookup(int_key(5)) is None

    m.update(int_key(5), rhash_value(3), NOEXIST)

    assert rhash_value(3) == m.lookup(int_key(5))
    m.check()


def test_update_delete(make_map):
    """W1 (kernel case update_delete): a key is inserted, then deleted, then absent."""
    m = make_map(**RHASH)
    assert m.lookup(int_key(6)) is None

    m.update(int_key(6), rhash_value(6), NOEXIST)
    m.delete(int_key(6))

    assert m.lookup(int_key(6)) is None
    m.check()


def test_update_elements(make_map):
    """W1, W2 (kernel case update_elements): a map is filled to its last entry and emptied again."""
    m = make_map(**RHASH)

    for number in range(128):
        assert m.lookup(int_key(number)) is None
        m.update(int_key(number), rhash_value(number), NOEXIST)
        assert rhash_value(number) == m.lookup(int_key(number))
        m.check()
    assert len(m) == 128
    for number in range(128):
        m.delete(int_key(number))
        assert m.lookup(int_key(number)) is None
        m.check()

    assert len(m) == 0


def test_update_exist(make_map):
    """W1 (kernel case update_exist): an update with EXIST needs the key, and overwrites its
    value."""
    m = make_map(**RHASH)
    refuses(
        shmrhash.KeyNotFound, errno.ENOENT, lambda: m.update(int_key(10), rhash_value(1), EXIST)
    )
    assert len(m) == 0

    m.update(int_key(10), rhash_value(100), NOEXIST)
    assert rhash_value(100) == m.lookup(int_key(10))
    m.update(int_key(10), rhash_value(200), EXIST)

    assert rhash_value(200) == m.lookup(int_key(10))
    m.delete(int_key(10))
    m.check()


def test_update_any(make_map):
    """W1 (kernel case update_any): an update with ANY inserts a key, and then overwrites its
    value."""
    m = make_map(**RHASH)

    m.update(int_key(11), rhash_value(111), ANY)
    assert rhash_value(111) == m.lookup(int_key(11))
    m.update(int_key(11), rhash_value(222), ANY)

    assert rhash_value(222) == m.lookup(int_key(11))
    assert len(m) == 1
    m.check()


def test_noexist_duplicate(make_map):
    """W1 (kernel case noexist_duplicate): the second NOEXIST insertion is EEXIST; nothing
    changes."""
    m = make_map(**RHASH)

    m.update(int_key(12), rhash_value(1), NOEXIST)
    refused = refuses(
        shmrhash.KeyExists, errno.EEXIST, lambda: m.update(int_key(12), rhash_value(2), NOEXIST)
    )

    assert isinstance(refused, KeyError)
    assert rhash_value(1) == m.lookup(int_key(12))
    m.check()


def test_delete_nonexistent(make_map):
    """W1 (kernel case delete_nonexistent): deleting an absent key is ENOENT, a KeyError."""
    m = make_map(**RHASH)

    refused = refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.delete(int_key(99999)))

    assert isinstance(refused, KeyError)
    m.check()


def test_map_extra_presize(make_map):
    """K1 (kernel case map_extra_presize): info() has the hint, and that many insertions succeed."""
    m = make_map(key_size=4, value_size=8, max_entries=1024, map_extra=256)

    assert m.info()["map_extra"] == 256
    for number in range(256):
        m.update(int_key(number), word(number), NOEXIST)

    assert len(m) == 256
    m.check()


def test_map_extra_too_big(map_name):
    """K1 (kernel case map_extra_too_big): a hint of 65536 is E2BIG."""
    refuses(
        shmrhash.TooLarge,
        errno.E2BIG,
        lambda: RHashMap.create(
            map_name, key_size=4, value_size=8, max_entries=1 << 20, map_extra=0x10000
        ),
    )


# test_maps.c


def test_hashmap(make_map):
    """W1, W2 (kernel case test_hashmap): a map with room for two entries meets every flag."""
    m = make_map(key_size=8, value_size=8, max_entries=2)

    m.update(long_long(1), long_long(1234), ANY)
    refuses(shmrhash.KeyExists, errno.EEXIST, lambda: m.update(long_long(1), long_long(0), NOEXIST))
    refuses(
        shmrhash.InvalidArgument, errno.EINVAL, lambda: m.update(long_long(1), long_long(0), -1)
    )
    assert long_long(1234) == m.lookup(long_long(1))
    m.update(long_long(2), long_long(1234), ANY)
    assert long_long(1234) == m.lookup_and_delete(long_long(2))
    assert m.lookup(long_long(2)) is None
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.update(long_long(2), long_long(0), EXIST))
    m.update(long_long(2), long_long(1234), NOEXIST)
    refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.update(long_long(0), long_long(0), NOEXIST))
    m.update(long_long(1), long_long(5), EXIST)
    m.update(long_long(2), long_long(6), ANY)
    full = refuses(
        shmrhash.MapFull, errno.E2BIG, lambda: m.update(long_long(3), long_long(0), NOEXIST)
    )
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.delete(long_long(0)))
    m.check()
    m.delete(long_long(1))
    m.delete(long_long(2))
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.delete(long_long(2)))

    assert isinstance(full, OverflowError)
    assert len(m) == 0
    m.check()


@pytest.mark.parametrize("value_size", [1, 2, 4, 8, 16, 100, 1000, 1 << 12, 1 << 15, 1 << 18])
@pytest.mark.parametrize("key_size", [1, 2, 4, 8, 16, 64, 512])
def test_hashmap_sizes(make_map, key_size, value_size):
    """K1 (kernel case test_hashmap_sizes): maps of all sizes are filled, read and deleted from."""
    m = make_map(key_size=key_size, value_size=value_size, max_entries=2)
    keys = [bytes([number]) * key_size for number in range(3)]
    values = [bytes([number + 100]) * value_size for number in range(3)]

    m.update(keys[0], values[2])
    m.update(keys[1], values[1])
    m.update(keys[0], values[0])
    refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.update(keys[2], values[2]))

    assert [values[0], values[1], None] == [m.lookup(key) for key in keys]
    m.check()
    assert values[0] == m.lookup_and_delete(keys[0])
    m.update(keys[2], values[2], NOEXIST)
    assert [None, values[1], values[2]] == [m.lookup(key) for key in keys]
    m.check()


def test_keys_of_65535_bytes(make_map):
    """K1: keys may have 65,535 bytes, and those that differ in their last byte only are
    different."""
    m = make_map(key_size=65535, value_size=1, max_entries=3)
    keys = [bytes(65534) + bytes([number]) for number in range(4)]

    for number in range(3):
        m.update(keys[number], bytes([number]))

    refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.update(keys[3], b"x"))
    assert [m.lookup(key) for key in keys] == [b"\0", b"\1", b"\2", None]
    m.check()


# Flags.


@pytest.mark.parametrize("flags", [3, 7, 8, 16, 1 << 32, 1 << 63, -1])
@pytest.mark.parametrize("present", [False, True])
def test_update_refuses_other_flags(make_map, flags, present):
    """K1: update() refuses unknown or contradictory flags with EINVAL, before any other check."""
    m = make_map(max_entries=1)
    if present:
        m.update(word(1), word(2))

    refuses(shmrhash.InvalidArgument, errno.EINVAL, lambda: m.update(word(1), word(3), flags))

    assert (word(2) if present else None) == m.lookup(word(1))
    m.check()


@pytest.mark.parametrize("flags", [1, 2, 3, 5, 8, 1 << 63, -1])
def test_lookups_refuse_other_flags(make_map, flags):
    """K1: lookup and lookup_and_delete accept no flag but BPF_F_LOCK."""
    m = make_map()
    m.update(word(1), word(2))

    for key in (word(1), word(9)):
        refuses(shmrhash.InvalidArgument, errno.EINVAL, lambda key=key: m.lookup(key, flags))
        refuses(
            shmrhash.InvalidArgument, errno.EINVAL, lambda key=key: m.lookup_and_delete(key, flags)
        )

    assert word(2) == m.lookup(word(1))
    m.check()


def test_the_order_of_refusals_is_the_kernels(make_map):
    """K1: EINVAL comes before EEXIST and ENOENT; EXIST's ENOENT before the full map's E2BIG."""
    m = make_map(max_entries=1)
    m.update(word(1), word(1))

    refuses(shmrhash.InvalidArgument, errno.EINVAL, lambda: m.update(word(1), word(1), 3))
    refuses(shmrhash.InvalidArgument, errno.EINVAL, lambda: m.update(word(2), word(1), 7))
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.update(word(2), word(1), EXIST))
    refuses(shmrhash.KeyExists, errno.EEXIST, lambda: m.update(word(1), word(1), NOEXIST))
    refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.update(word(2), word(1), NOEXIST))
    m.check()


# The limit.


@pytest.mark.parametrize("max_entries", [1, 2, 3, 31, 32, 33, 97, 1000, 4097])
def test_the_limit_is_exact(make_map, max_entries):
    """W2: a map takes max_entries keys; one more is E2BIG, but a present key can be updated."""
    m = make_map(max_entries=max_entries)

    for turn in range(3):
        for number in range(max_entries):
            m.update(word(number), word(turn), NOEXIST)
        for flags in (ANY, NOEXIST):
            refuses(
                shmrhash.MapFull,
                errno.E2BIG,
                lambda flags=flags: m.update(word(1 << 40), word(0), flags),
            )
        refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.add(word(1 << 40), 1, default=0))
        for number in range(max_entries):
            m.update(word(number), word(turn + 1), ANY if number % 2 else EXIST)
        assert max_entries == len(m)
        assert all(m[word(number)] == word(turn + 1) for number in range(max_entries))
        m.check()
        m.delete(word(0))
        m.update(word(1 << 40), word(0))
        refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.update(word(0), word(0)))
        m.update(word(1 << 40), word(1))
        m.delete(word(1 << 40))
        for number in range(1, max_entries):
            m.delete(word(number))
        assert len(m) == 0
        m.check()


# Buffers.


class Pair(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint32), ("second", ctypes.c_uint32)]


def mapped(content):
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


# Eight bytes each, in buffers of every kind: one or more dimensions, formats, read-only or not.
BUFFERS = {
    "bytes": lambda content: content,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of bytearray": lambda content: memoryview(bytearray(content)),
    "part of a memoryview": lambda content: memoryview(b"xx" + content + b"yyy")[2:10],
    "memoryview of words": lambda content: memoryview(content).cast("I"),
    "memoryview of a table": lambda content: memoryview(content).cast("B", (2, 4)),
    "array": lambda content: array.array("H", content),
    "mmap": mapped,
    "numpy bytes": lambda content: numpy.frombuffer(content, numpy.uint8),
    "numpy number": lambda content: numpy.frombuffer(content, numpy.uint64)[0],
    "numpy numbers": lambda content: numpy.frombuffer(content, numpy.float64).copy(),
    "numpy table": lambda content: numpy.frombuffer(content, numpy.int16).reshape(2, 2),
    "numpy row": lambda content: numpy.array([list(content), [0] * 8], dtype=numpy.uint8)[0],
    "numpy record": lambda content: numpy.frombuffer(content, "i4,f4"),
    "ctypes number": lambda content: ctypes.c_uint64.from_buffer_copy(content),
    "ctypes array": lambda content: (ctypes.c_char * 8).from_buffer_copy(content),
    "ctypes struct": Pair.from_buffer_copy,
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_any_contiguous_buffer_of_the_right_size_is_a_key_and_a_value(make_map, kind):
    """W1: the bytes of a buffer count, whatever its kind; results are bytes."""
    m = make_map()
    key, value = b"key\0\xff\x80k8", b"value\0\xfe8"
    like = BUFFERS[kind]

    m.update(like(key), like(value), NOEXIST)
    assert value == m.lookup(key)
    assert isinstance(m.lookup(like(key)), bytes)
    assert value == m.lookup(like(key)) == m[like(key)] == m.get(like(key))
    assert like(key) in m
    m[like(key)] = like(key)
    assert key == m[key]
    m.add(like(key), 0)
    assert key == m.lookup_and_delete(like(key))
    m[like(key)] = like(value)
    del m[like(key)]
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.delete(like(key)))

    assert len(m) == 0
    m.check()


def test_buffers_are_released_after_each_operation(make_map):
    """W1: after an operation, successful or refused, its buffers can be resized again."""
    m = make_map()
    key, value = bytearray(word(1)), bytearray(word(2))

    m.update(key, value)
    m.lookup(key)
    for refused in (lambda: m.update(key, value, NOEXIST), lambda: m.update(key, bytearray(3))):
        with pytest.raises((shmrhash.Error, ValueError)):
            refused()
    key.extend(b"x")
    value.extend(b"x")
    with pytest.raises(ValueError):
        m.update(key, value)
    key.extend(b"x")
    value.extend(b"x")

    assert word(2) == m[word(1)]
    m.check()


@pytest.mark.parametrize("size", [0, 1, 7, 9, 16, 100_000])
def test_the_error_for_a_wrong_size_has_both_sizes(make_map, size):
    """H1: keys and values of another size are ValueError, with the given and the wanted size."""
    m = make_map(key_size=8, value_size=11)
    m.update(word(1), bytes(11))
    wrong_key, right_key, wrong_value = bytes(size), word(1), bytes(size)

    for operation, wanted in (
        (lambda: m.lookup(wrong_key), 8),
        (lambda: m[wrong_key], 8),
        (lambda: m.get(wrong_key), 8),
        (lambda: wrong_key in m, 8),
        (lambda: m.update(wrong_key, bytes(11)), 8),
        (lambda: m.delete(wrong_key), 8),
        (lambda: m.lookup_and_delete(wrong_key), 8),
        (lambda: m.add(wrong_key, 1), 8),
        (lambda: m.__setitem__(wrong_key, bytes(11)), 8),
        (lambda: m.__delitem__(wrong_key), 8),
        (lambda: m.update(right_key, wrong_value), 11),
        (lambda: m.__setitem__(right_key, wrong_value), 11),
    ):
        with pytest.raises(ValueError) as refused:
            operation()
        numbers = [int(part) for part in str(refused.value).split() if part.isdigit()]
        assert size in numbers
        assert wanted in numbers

    assert bytes(11) == m[word(1)]
    assert len(m) == 1
    m.check()


@pytest.mark.parametrize("wrong", ["8 chars!", 8, 8.0, None, [1] * 8, {}], ids=repr)
def test_argument_that_is_no_buffer_is_a_type_error_that_names_its_type(make_map, wrong):
    """H1: a str, number or list as key or value is a TypeError whose message names its type."""
    m = make_map()

    for operation in (
        lambda: m.lookup(wrong),
        lambda: m[wrong],
        lambda: m.get(wrong),
        lambda: wrong in m,
        lambda: m.update(wrong, word(1)),
        lambda: m.update(word(1), wrong),
        lambda: m.delete(wrong),
        lambda: m.lookup_and_delete(wrong),
        lambda: m.add(wrong, 1),
    ):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            operation()

    assert len(m) == 0
    m.check()


def test_buffers_with_gaps_are_refused(make_map):
    """H1: a buffer that is not C-contiguous is an error, not its bytes in some order."""
    m = make_map()
    gaps = [
        numpy.zeros(16, numpy.uint8)[::2],
        numpy.zeros((2, 4), numpy.uint8).T,
        memoryview(bytes(16))[::2],
    ]

    for wrong in gaps:
        for operation in (
            lambda wrong=wrong: m.lookup(wrong),
            lambda wrong=wrong: m.update(wrong, word(1)),
            lambda wrong=wrong: m.update(word(1), wrong),
        ):
            with pytest.raises((ValueError, BufferError, TypeError)):
                operation()

    assert len(m) == 0
    m.check()


# add().


def test_add_returns_the_new_value(make_map):
    """W1: add() changes the field by delta and returns its new number."""
    m = make_map()
    m.update(word(1), long_long(40))

    assert m.add(word(1), 2) == 42
    assert m.add(word(1), -50) == -8
    assert m.add(word(1), 0) == -8

    assert long_long(-8) == m[word(1)]
    m.check()


def test_add_to_an_absent_key(make_map):
    """W1: add() to an absent key is KeyNotFound, or inserts default + delta among zeros."""
    m = make_map(value_size=24)
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.add(word(1), 5))
    assert word(1) not in m

    assert m.add(word(1), 5, default=100, offset=8) == 105
    assert long_long(0) + long_long(105) + long_long(0) == m[word(1)]
    assert m.add(word(1), 5, default=100, offset=8) == 110

    assert long_long(0) + long_long(110) + long_long(0) == m[word(1)]
    m.check()


@pytest.mark.parametrize(
    ("before", "delta"),
    [
        (INT64_MAX, 1),
        (INT64_MIN, -1),
        (INT64_MAX, INT64_MAX),
        (INT64_MIN, INT64_MIN),
        (-1, INT64_MIN),
        (INT64_MAX, INT64_MIN),
    ],
)
def test_add_wraps_around(make_map, before, delta):
    """W1: add() wraps sums beyond 64 bits around as the kernel does, for present and absent
    keys."""
    m = make_map()
    m.update(word(1), long_long(before))
    expected = wrap_around(before + delta)

    assert expected == m.add(word(1), delta)
    assert expected == m.add(word(2), delta, default=before)

    assert long_long(expected) == m[word(1)] == m[word(2)]
    m.check()


@pytest.mark.parametrize("value_size", [8, 16, 20, 256])
def test_add_changes_its_field_only(make_map, value_size):
    """W1: add() changes eight bytes anywhere in a larger value, aligned or not, and no others."""
    m = make_map(value_size=value_size)
    before = bytes(range(1, 256)) * 2
    m.update(word(1), before[:value_size])

    for offset in range(value_size - 7):
        expected = bytearray(m[word(1)])
        (field,) = struct.unpack_from("<q", expected, offset)
        struct.pack_into("<q", expected, offset, wrap_around(field + 12345))
        assert wrap_around(field + 12345) == m.add(word(1), 12345, offset=offset)
        assert expected == m[word(1)]

    m.check()


@pytest.mark.parametrize(
    ("value_size", "offset"),
    [(8, 8), (8, 1), (8, -8), (16, 16), (20, 16), (7, 0), (4, 0), (8, 1 << 40)],
)
def test_add_beyond_the_value_is_refused(make_map, value_size, offset):
    """H1: add() to a field not wholly inside the value is EINVAL, whether the key exists or not."""
    m = make_map(value_size=value_size)
    m.update(word(1), bytes(value_size))

    for key in (word(1), word(2)):
        refuses(
            shmrhash.InvalidArgument, errno.EINVAL, lambda key=key: m.add(key, 1, offset=offset)
        )
        refuses(
            shmrhash.InvalidArgument,
            errno.EINVAL,
            lambda key=key: m.add(key, 1, default=0, offset=offset),
        )

    assert bytes(value_size) == m[word(1)]
    assert len(m) == 1
    m.check()


@pytest.mark.parametrize("delta", [INT64_MAX + 1, INT64_MIN - 1, (1 << 64) - 1, (1 << 100) + 7])
def test_add_takes_numbers_modulo_64_bits(make_map, delta):
    """W1: a delta or a default beyond 64 bits wraps around as the sum does."""
    m = make_map()
    m.update(word(1), word(1))

    assert wrap_around(delta + 1) == m.add(word(1), delta)
    assert wrap_around(delta + 1) == m.add(word(2), 1, default=delta)
    before = m[word(1)]
    for wrong in (1.5, "1", None):
        with pytest.raises(TypeError):
            m.add(word(1), wrong)

    assert before == m[word(1)]
    assert len(m) == 2
    m.check()


# Python's forms of these operations.


def test_item_forms(make_map):
    """W1: m[k], m[k] = v, del m[k], k in m and m.get() are lookup, update and delete."""
    m = make_map(max_entries=2)

    m[word(1)] = word(10)
    m[word(1)] = word(11)
    assert word(11) == m[word(1)] == m.get(word(1)) == m.get(word(1), b"default")
    assert word(1) in m
    assert word(2) not in m
    assert m.get(word(2)) is None
    assert m.get(word(2), b"default") == b"default"
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m[word(2)])
    refuses(shmrhash.KeyNotFound, errno.ENOENT, lambda: m.__delitem__(word(2)))
    m[word(2)] = word(20)
    refuses(shmrhash.MapFull, errno.E2BIG, lambda: m.__setitem__(word(3), word(30)))
    del m[word(1)]

    assert word(1) not in m
    assert len(m) == 1
    m.check()


def sized(number, size):
    return word(number)[:size].ljust(size, b"v")


def values_kept_at_random(m, rng, rounds):
    """Look up random numbers and keep some of the bytes, in all ways in which a program can keep
    them. At the end all kept values and their hashes must be unchanged."""
    kept = []
    for _ in range(rounds):
        number = rng.randrange(len(m))
        value = rng.choice([m.lookup, m.get, m.__getitem__])(word(number))
        assert value == sized(number, m.value_size)
        assert hash(value) == hash(bytes(bytearray(value)))
        keep = rng.randrange(6)
        if keep == 0:
            kept.append((number, value))
        elif keep == 1:
            kept.append((number, memoryview(value)))
        elif keep == 2:
            kept.append((number, next(iter({value: None}))))
        elif kept and keep == 3:
            kept.pop(rng.randrange(len(kept)))
        del value
    assert [sized(number, m.value_size) for number, _ in kept] == [bytes(v) for _, v in kept]


@pytest.mark.parametrize("value_size", [1, 8, 20, 600])
def test_values_that_the_caller_keeps_never_change(make_map, seed, value_size):
    """R2: a handle fills a bytes object again only if the caller has dropped it."""
    m = make_map(max_entries=250, value_size=value_size)
    for number in range(250):
        m[word(number)] = sized(number, value_size)

    values_kept_at_random(m, random.Random(seed), 10_000)


def test_values_that_threads_keep_never_change(make_map, seed):
    """R2: bytes that a handle shared by threads has returned never change while a thread has
    them."""
    m = make_map(max_entries=1000)
    for number in range(1000):
        m[word(number)] = word(number)

    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(values_kept_at_random, m, random.Random(seed + thread), 20_000)
            for thread in range(4)
        ]
        for job in jobs:
            job.result()
    m.check()


def test_a_deleted_map_has_no_reference_to_the_values_it_returned(map_name):
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as m:
        m.unlink()
        m[word(1)] = word(2)
        values = [m[word(1)] for _ in range(5)]
    del m

    others = [word(2) for _ in range(5)]
    held, usual = ([sys.getrefcount(value) for value in some] for some in (values, others))
    assert held == usual


def test_each_operation_is_counted_once(make_map):
    """A hit in a map with keys and values of one word takes the short path, all else the usual
    one."""
    m = make_map(max_entries=100)

    m[word(0)] = word(0)  # from now on operations mark the context, taking none

    def counted(operation, *arguments):
        before = m.info()["attached"][0]["operations"]
        operation(*arguments)
        return m.info()["attached"][0]["operations"] - before

    assert [
        counted(m.update, word(1), word(1)),  # inserted
        counted(m.update, word(1), word(2)),
        counted(m.lookup, word(1)),
        counted(m.lookup, word(2)),  # absent
        counted(m.delete, word(1)),
    ] == [1] * 5


def test_length_and_truth(make_map):
    """W2: len() counts the entries, and an empty map is false."""
    m = make_map()
    assert not m

    for number in range(200):
        m.update(word(number), word(number))
        assert number + 1 == len(m)
        assert m
    for number in range(200):
        m.update(word(number), word(0))
    assert len(m) == 200
    m.clear()

    assert len(m) == 0
    assert not m
    m.check()


@pytest.mark.parametrize("entries", [0, 1, 500, 20_000])
def test_clear_empties_the_map(make_map, entries):
    """W1, W2: clear() leaves an empty map with room for max_entries."""
    m = make_map(max_entries=max(1, entries))
    for number in range(entries):
        m.update(word(number), word(number))

    m.clear()

    assert len(m) == 0
    assert all(word(number) not in m for number in range(entries))
    m.check()
    for number in range(entries):
        m.update(word(number), word(number + 1), NOEXIST)
    assert entries == len(m)
    m.check()


def test_context_manager_closes_the_handle_and_keeps_the_map(map_name):
    """C2: a with block closes the handle, also after an exception, and unlinks nothing."""
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as m:
        assert not m.closed
        m.update(word(1), word(2))
    assert m.closed
    with pytest.raises(ZeroDivisionError), RHashMap.open(map_name) as m:
        raise ZeroDivisionError
    assert m.closed

    with RHashMap.open(map_name) as m:
        assert word(2) == m[word(1)]
        m.check()
        m.unlink()


def test_repr_has_name_geometry_and_state(make_map, map_name):
    """H1: repr() has the map's name, geometry and fill; for a closed map it says "closed"."""
    m = make_map(key_size=8, value_size=24, max_entries=777)
    m.update(word(1), bytes(24))

    text = repr(m)

    assert map_name in text
    assert "777" in text
    assert "24" in text
    m.check()
    m.close()
    assert "closed" in repr(m)


def test_pickled_handles_are_handles_of_the_same_map(make_map, map_name):
    """C3: a handle is pickled as the map's name and geometry, and unpickled by opening the map."""
    m = make_map()
    m.update(word(1), word(2))

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        with pickle.loads(pickle.dumps(m, protocol)) as copy:
            assert type(copy) is RHashMap
            assert (m.name, m.key_size, m.value_size) == (copy.name, copy.key_size, copy.value_size)
            copy.update(word(protocol + 10), word(protocol))
            assert word(protocol) == m[word(protocol + 10)]
            assert word(2) == copy[word(1)]

    m.check()


def test_unpickling_a_handle_of_a_missing_or_different_map_is_refused(make_map, map_name):
    """H1: unpickling opens the map: it raises SegmentMissing or, for another map,
    LayoutMismatch."""
    m = make_map()
    pickled = pickle.dumps(m)
    m.check()
    m.close()
    shmrhash.unlink(map_name)
    with pytest.raises(shmrhash.SegmentMissing):
        pickle.loads(pickled)

    other = make_map(map_name, key_size=4)
    with pytest.raises(shmrhash.LayoutMismatch):
        pickle.loads(pickled)
    other.check()


# Reports.

INFO_KEYS = {
    "name",
    "key_size",
    "value_size",
    "max_entries",
    "entries",
    "map_flags",
    "map_extra",
    "buckets",
    "load",
    "bytes_most",
    "bytes_reserved",
    "bytes_committed",
    "bytes_used",
    "bytes_per_entry",
    "processes",
    "contexts",
    "contexts_max",
    "grows",
    "shrinks",
    "recoveries",
    "owners_found_dead",
    "operations_finished",
    "operations_undone",
    "recovery_ns_max",
    "huge_pages",
    "liveness",
    "layout_version",
}


@pytest.mark.parametrize("entries", [0, 1, 5000])
def test_info_reports_geometry_counts_and_sizes(make_map, map_name, entries):
    """G1: info() has all keys and the right counts; its sizes descend from reserved to used."""
    m = make_map(max_entries=10_000)
    for number in range(entries):
        m.update(word(number), word(number))

    info = m.info()

    assert info.keys() >= INFO_KEYS
    assert map_name == info["name"] == m.name
    assert entries == info["entries"]
    assert (info["key_size"], info["value_size"], info["max_entries"]) == (8, 8, 10_000)
    assert info["processes"] == 1
    assert info["contexts"] >= (1 if entries else 0)
    assert info["bytes_reserved"] >= info["bytes_most"] >= info["bytes_committed"]
    assert info["bytes_committed"] >= info["bytes_used"] >= entries * 24
    assert info["load"] == pytest.approx(entries / info["buckets"], rel=0.02)
    assert info["recoveries"] == info["owners_found_dead"] == 0
    assert info["layout_version"] == 6
    assert info["name"] == map_name
    m.check()


@pytest.mark.parametrize(("key_size", "value_size"), [(8, 8), (1, 1), (12, 132), (5, 1000)])
def test_memory_usage_counts_elements_as_the_kernel_does(make_map, key_size, value_size):
    """K1: mem_usage() grows by one element with each entry, and shrinks likewise."""
    m = make_map(key_size=key_size, value_size=value_size, max_entries=100)
    empty = m.mem_usage()
    # An element may be padded by a sixteenth, so that whole numbers of them fill whole pages.
    smallest = element_size(key_size, value_size)
    element = m.info()["element_stride"]
    assert smallest <= element <= smallest * 17 // 16

    assert empty > 0
    for number in range(100):
        m.update(bytes([number]) * key_size, bytes(value_size))
        assert (number + 1) * element == m.mem_usage() - empty
    m.clear()

    assert empty == m.mem_usage()
    m.check()
