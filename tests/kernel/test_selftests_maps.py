"""The cases of the kernel's test_maps.c in one process, on our map and on the kernel's own."""

import struct

import pytest
from support.jobs import word
from support.kernel import bpf
from support.kernel.kernel_jobs import (
    KEY_SIZES,
    VALUE_SIZES,
    add_one,
    fill_case,
    hashmap_case,
    hashmap_end_case,
    int_word,
    look_case,
    three_longs,
    walk_case,
)
from support.kernel.sides import EXIST, NOEXIST, OurMap, walk

import shmrhash

TWO = {"key_size": 8, "value_size": 8, "max_entries": 2}
OK = ("", None)


def large_key(number):
    """Return struct { int a; char b[4096]; long long c; } as the compiler lays it out."""
    return struct.pack("=i4096s4xq", 0, b"", number)


def test_hashmap(make_side):
    """W1, W2 (test_hashmap): a map with two entries meets every flag, at its limit and beyond
    it."""
    side = make_side(**TWO)

    hashmap_case(side)
    hashmap_end_case(side)


def test_hashmap_next_keys(make_side):
    """W1, I1 (test_hashmap): a walk gives both keys once and then ENOENT, like that of an empty
    map."""
    side = make_side(**TWO)
    hashmap_case(side)

    first = side.get_next_key().result
    assert first in (word(1), word(2))
    assert side.get_next_key() == ("", first)
    other = ({word(1), word(2)} - {first}).pop()
    assert side.get_next_key(first) == ("", other)
    assert side.get_next_key(other) == ("ENOENT", None)
    if isinstance(side, bpf.KernelMap):
        assert side.get_next_key(word(0)) == ("", first)  # not ours: test_differential.py
    hashmap_end_case(side)

    assert side.get_next_key() == ("ENOENT", None)
    assert side.get_next_key(word(0)) == ("ENOENT", None)


def sizes(keys, values):
    return [(key, value) for key in keys for value in values]


@pytest.mark.parametrize(
    ("key_size", "value_size"),
    [
        *sizes([1, 8, 512], [1, 8, 1 << 18]),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in sizes(KEY_SIZES, VALUE_SIZES)),
    ],
)
def test_hashmap_sizes(make_side, key_size, value_size):
    """K1 (test_hashmap_sizes): a map of these sizes can be made, and stores and finds a key."""
    side = make_side(key_size=key_size, value_size=value_size, max_entries=2)

    assert side.update(b"k" * key_size, b"v" * value_size, NOEXIST) == OK

    assert side.lookup(b"k" * key_size) == ("", b"v" * value_size)
    assert side.lookup(b"K" * key_size) == ("ENOENT", None)


@pytest.mark.parametrize("entries", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_fill_hashmap(make_side, entries):
    """W2, G1 (helper_fill_hashmap): exactly max_entries entries fit, each with its own value."""
    side = make_side(key_size=8, value_size=24, max_entries=entries)

    fill_case(side, entries)

    assert side.update(word(entries), three_longs(0), NOEXIST) == ("E2BIG", None)
    assert all(side.lookup(word(number)) == ("", three_longs(number)) for number in range(entries))


@pytest.mark.parametrize("entries", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_hashmap_walk(make_map, entries):
    """W1, I1 (test_hashmap_walk): a walk meets every key once, even if it updates each of them."""
    ours = OurMap(make_map(key_size=8, value_size=24, max_entries=entries))
    fill_case(ours, entries)

    walk_case(ours, entries)


@pytest.mark.parametrize("entries", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_hashmap_walk_and_update_afterwards(make_side, entries):
    """W1, I1 (test_hashmap_walk): the kernel's updates would move keys, so they follow the walk."""
    side = make_side(key_size=8, value_size=24, max_entries=entries)
    fill_case(side, entries)

    keys = walk(side, entries)
    for key in keys:
        add_one(side, key)

    assert sorted(keys) == sorted(map(word, range(entries)))
    look_case(side, entries)


def test_hashmap_zero_seed(make_map):
    """K1 (test_hashmap_zero_seed): F_ZERO_SEED is EINVAL, as with RHASH; maps have random seeds."""
    with pytest.raises(shmrhash.InvalidArgument):
        make_map(
            key_size=4,
            value_size=4,
            max_entries=3,
            map_flags=shmrhash.BPF_F_NO_PREALLOC | shmrhash.BPF_F_ZERO_SEED,
        )


large_maps = pytest.mark.parametrize(
    "entries", [1_000, pytest.param(32_768, marks=pytest.mark.long)]
)


@large_maps
def test_map_large(make_side, entries):
    """W2, G1 (test_map_large): keys of 4,112 bytes, different in the last 8, fill a map."""
    side = make_side(key_size=4112, value_size=4, max_entries=entries)

    for number in range(entries):
        assert side.update(large_key(number), int_word(number), NOEXIST) == OK

    assert side.update(large_key(-1), int_word(0), NOEXIST) == ("E2BIG", None)
    assert side.lookup(large_key(0)) == ("", int_word(0))
    assert side.lookup(b"\1" + large_key(0)[1:]) == ("ENOENT", None)
    assert side.lookup(large_key(entries - 1)) == ("", int_word(entries - 1))


@large_maps
def test_map_large_walk(make_side, entries):
    """I1 (test_map_large): a walk gives each key once, and then ENOENT."""
    side = make_side(key_size=4112, value_size=4, max_entries=entries)
    for number in range(entries):
        assert side.update(large_key(number), int_word(number), NOEXIST) == OK

    keys = walk(side, entries)

    assert {large_key(number) for number in range(entries)} == set(keys)
    assert len(keys) == entries


def test_map_rdonly(request, make_side):
    """K1 (test_map_rdonly): a read-only descriptor reads, and its writes are EPERM."""
    side = make_side(key_size=4, value_size=4, max_entries=32_768)
    if not isinstance(side, OurMap):
        request.getfixturevalue("kernel_permits_all")

    with side.reopen(bpf.F_RDONLY) as reader:
        assert reader.update(int_word(1), int_word(1234), 0) == ("EPERM", None)
        assert reader.lookup(int_word(1)) == ("ENOENT", None)
        assert side.update(int_word(1), int_word(1234), 0) == OK
        assert reader.lookup(int_word(1)) == ("", int_word(1234))
        assert reader.update(int_word(1), int_word(5), EXIST) == ("EPERM", None)
        assert reader.delete(int_word(1)) == ("EPERM", None)
        assert reader.lookup_and_delete(int_word(1)) == ("EPERM", None)

    assert side.lookup(int_word(1)) == ("", int_word(1234))


def test_map_rdonly_next_keys(request, make_side):
    """K1 (test_map_rdonly): a read-only descriptor can walk."""
    side = make_side(key_size=4, value_size=4, max_entries=32_768)
    if not isinstance(side, OurMap):
        request.getfixturevalue("kernel_permits_all")

    with side.reopen(bpf.F_RDONLY) as reader:
        assert reader.get_next_key() == ("ENOENT", None)
        assert side.update(int_word(1), int_word(1234), 0) == OK
        assert reader.get_next_key() == ("", int_word(1))
        assert reader.get_next_key(int_word(1)) == ("ENOENT", None)


def test_map_wronly(request, make_side):
    """K1 (test_map_wronly): a write-only descriptor writes, and its reads are EPERM."""
    side = make_side(key_size=4, value_size=4, max_entries=32_768)
    if not isinstance(side, OurMap):
        request.getfixturevalue("kernel_permits_all")

    with side.reopen(bpf.F_WRONLY) as writer:
        assert writer.update(int_word(1), int_word(1234), 0) == OK
        assert writer.lookup(int_word(1)) == ("EPERM", None)
        assert writer.get_next_key() == ("EPERM", None)
        assert writer.lookup_and_delete(int_word(1)) == ("EPERM", None)
        assert side.lookup(int_word(1)) == ("", int_word(1234))
        assert writer.delete(int_word(1)) == OK

    assert side.lookup(int_word(1)) == ("ENOENT", None)


@pytest.mark.parametrize("flag", [bpf.F_RDONLY, bpf.F_WRONLY], ids=["rdonly", "wronly"])
def test_map_created_read_only_or_write_only(make_side, flag):
    """K1 (test_map_rdonly, test_map_wronly): a map's creator can limit its own descriptor."""
    side = make_side(
        key_size=4, value_size=4, max_entries=32_768, map_flags=bpf.F_NO_PREALLOC | flag
    )
    wrote = side.update(int_word(1), int_word(1234), 0)
    looked = side.lookup(int_word(1))

    assert wrote == (("EPERM", None) if flag == bpf.F_RDONLY else OK)
    assert looked == (("ENOENT", None) if flag == bpf.F_RDONLY else ("EPERM", None))
    assert side.get_next_key().error == ("ENOENT" if flag == bpf.F_RDONLY else "EPERM")


def test_map_freeze(request, make_side):
    """K1: a map can be frozen once; then all writes are EPERM, and reads succeed."""
    side = make_side(key_size=4, value_size=4, max_entries=2)
    if not isinstance(side, OurMap):
        request.getfixturevalue("kernel_permits_all")
    assert side.update(int_word(1), int_word(1234), 0) == OK

    with side.reopen(bpf.F_RDONLY) as reader:
        assert reader.freeze() == ("EPERM", None)
    with side.reopen(bpf.F_WRONLY) as writer:
        assert writer.freeze() == OK
    assert side.freeze() == ("EPERM", None)

    assert side.update(int_word(2), int_word(1), 0) == ("EPERM", None)
    assert side.update(int_word(1), int_word(1), EXIST) == ("EPERM", None)
    assert side.delete(int_word(1)) == ("EPERM", None)
    assert side.delete(int_word(2)) == ("EPERM", None)
    assert side.lookup(int_word(1)) == ("", int_word(1234))
    assert walk(side, 1) == [int_word(1)]
