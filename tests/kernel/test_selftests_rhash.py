"""The kernel's prog_tests/rhash.c, lookup_and_delete.c and for_each.c, on our map and on its own.

More thorough versions of the cases of rhash.c, on our map alone, are in
tests/api/test_operations.py.
"""

import struct

import pytest
from support.jobs import number_in, word
from support.kernel.sides import ANY, EXIST, NOEXIST, take_pairs, walk

import shmrhash

# An int, and a struct of char[128] and int.
RHASH = {"key_size": 4, "value_size": 132, "max_entries": 128}
SMALL = {"key_size": 4, "value_size": 8, "max_entries": 64}

OK = ("", None)


def int_key(number):
    return struct.pack("<i", number)


def rhash_value(number):
    return bytes(128) + struct.pack("<i", number)


def test_lookup_update(make_side):
    """W1 (lookup_update): a key is absent, is inserted, and is found."""
    side = make_side(**RHASH)
    assert side.lookup(int_key(5)) == ("ENOENT", None)

    assert side.update(int_key(5), rhash_value(3), NOEXIST) == OK

    assert side.lookup(int_key(5)) == ("", rhash_value(3))


def test_update_delete(make_side):
    """W1 (update_delete): a key is absent, is inserted and deleted, and is absent again."""
    side = make_side(**RHASH)
    assert side.lookup(int_key(6)) == ("ENOENT", None)

    assert side.update(int_key(6), rhash_value(6), NOEXIST) == OK
    assert side.delete(int_key(6)) == OK

    assert side.lookup(int_key(6)) == ("ENOENT", None)


def test_update_elements(make_side):
    """W1, W2, G1 (update_elements): a map is filled to its limit, while it grows, and emptied."""
    side = make_side(**RHASH)

    for number in range(128):
        assert side.lookup(int_key(number)) == ("ENOENT", None)
        assert side.update(int_key(number), rhash_value(number), NOEXIST) == OK
        assert side.lookup(int_key(number)) == ("", rhash_value(number))
    assert side.update(int_key(128), rhash_value(128), NOEXIST) == ("E2BIG", None)
    for number in range(128):
        assert side.delete(int_key(number)) == OK
        assert side.lookup(int_key(number)) == ("ENOENT", None)

    assert side.update(int_key(128), rhash_value(128), NOEXIST) == OK


def test_update_exist(make_side):
    """W1 (update_exist): EXIST is ENOENT for an absent key, and overwrites a present one."""
    side = make_side(**RHASH)
    assert side.update(int_key(10), rhash_value(1), EXIST) == ("ENOENT", None)

    assert side.update(int_key(10), rhash_value(100), NOEXIST) == OK
    assert side.lookup(int_key(10)) == ("", rhash_value(100))
    assert side.update(int_key(10), rhash_value(200), EXIST) == OK

    assert side.lookup(int_key(10)) == ("", rhash_value(200))
    assert side.delete(int_key(10)) == OK


def test_update_any(make_side):
    """W1 (update_any): ANY inserts an absent key, and overwrites the value of a present key."""
    side = make_side(**RHASH)

    assert side.update(int_key(11), rhash_value(111), ANY) == OK
    assert side.lookup(int_key(11)) == ("", rhash_value(111))
    assert side.update(int_key(11), rhash_value(222), ANY) == OK

    assert side.lookup(int_key(11)) == ("", rhash_value(222))


def test_noexist_duplicate(make_side):
    """W1 (noexist_duplicate): a second update with NOEXIST is EEXIST and changes nothing."""
    side = make_side(**RHASH)

    assert side.update(int_key(12), rhash_value(1), NOEXIST) == OK
    assert side.update(int_key(12), rhash_value(2), NOEXIST) == ("EEXIST", None)

    assert side.lookup(int_key(12)) == ("", rhash_value(1))


def test_delete_nonexistent(make_side):
    """W1 (delete_nonexistent): deletion of an absent key is ENOENT."""
    side = make_side(**RHASH)

    assert side.delete(int_key(99999)) == ("ENOENT", None)


def test_map_extra_presize(make_map):
    """K1 (map_extra_presize): info has the hint, and 256 insertions succeed."""
    m = make_map(key_size=4, value_size=8, max_entries=1024, map_extra=256)

    assert m.info()["map_extra"] == 256
    for number in range(256):
        m.update(int_key(number), word(number), NOEXIST)

    assert len(m) == 256
    m.check()


def test_map_extra_too_big(make_map):
    """K1 (map_extra_too_big): a hint of 65536 is E2BIG, and no map is made."""
    with pytest.raises(shmrhash.TooLarge):
        make_map(key_size=4, value_size=8, max_entries=1 << 20, map_extra=0x10000)


def test_iter(make_side):
    """I1 (iter): an iterator meets each of 64 keys once; they add up to 2080."""
    side = make_side(**SMALL)
    for number in range(1, 65):
        assert side.update(int_key(number), word(0), NOEXIST) == OK

    keys = walk(side, 64)

    assert len(keys) == 64
    assert sum(number_in(key) for key in keys) == 2080


def test_iter_in_small_batches(make_side):
    """I1 (iter): batches of five pairs, as many as the kernel's 64 bytes hold, meet each key
    once."""
    side = make_side(**SMALL)
    for number in range(1, 65):
        assert side.update(int_key(number), word(0), NOEXIST) == OK

    pairs = take_pairs(side.lookup_batch, 5, 64)

    assert len(pairs) == 64
    assert sum(number_in(key) for key, _ in pairs) == 2080


def test_lookup_and_delete(make_side):
    """W1 (lookup_and_delete.c): the value is returned once, and the other key stays."""
    side = make_side(key_size=8, value_size=8, max_entries=2)
    for key in (1, 2):
        assert side.update(word(key), word(1234), NOEXIST) == OK

    assert side.lookup_and_delete(word(1)) == ("", word(1234))

    assert side.lookup(word(1)) == ("ENOENT", None)
    assert side.lookup_and_delete(word(1)) == ("ENOENT", None)
    assert side.lookup(word(2)) == ("", word(1234))


# for_each.c: three elements, with the values 1 to 3 of the keys 0 to 2. There is no system call
# with a callback, so these tests run on our map only.


@pytest.fixture
def three(make_map):
    m = make_map(key_size=4, value_size=8, max_entries=3)
    for number in range(3):
        m.update(int_key(number), word(number + 1), ANY)
    return m


def test_for_each_visits_every_element(three):
    """I1 (for_each hash_map): for_each visits each of three elements once and returns their
    number."""
    seen = {}

    visited = three.for_each(lambda key, value: seen.__setitem__(bytes(key), bytes(value)))

    assert visited == 3
    assert {int_key(number): word(number + 1) for number in range(3)} == seen


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_for_each_stops_when_the_callback_returns_true(three, stop_at):
    """W1 (for_each): a true result of the callback ends the walk; that element is counted."""
    seen = []

    def stop(key, _value):
        seen.append(bytes(key))
        return len(seen) == stop_at

    assert stop_at == three.for_each(stop)
    assert len(seen) == len(set(seen)) == stop_at


def test_nested_for_each_deletes_each_element(three):
    """W1, I1 (for_each hash_map): a walk inside a walk deletes every element that it visits.

    RHASH would stop after the first deletion; HASH goes on, and so does this map.
    """
    nested_visits = []

    def delete(key, _value):
        three.delete(key)

    def outer(_key, _value):
        nested_visits.append(three.for_each(delete))

    assert three.for_each(outer) == 1
    assert nested_visits == [3]
    assert three.lookup(int_key(1)) is None
    assert len(three) == 0


def test_callback_of_for_each_may_update_its_element(three):
    """W1 (reenter_update of htab_update.c): a callback of for_each updates without a deadlock."""

    def double(key, value):
        three.update(key, word(2 * number_in(value)), EXIST)

    assert three.for_each(double) == 3
    assert [three[int_key(number)] for number in range(3)] == [word(2), word(4), word(6)]
