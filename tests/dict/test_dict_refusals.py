"""Calls that a dict's core, or the handle below it, refuses without storing anything."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.children import in_child

import shmrhash
from shmrhash import Kptr, RHashMap, SharedDict, Timer, _core


class Index:
    """An object that is an integer only because of its __index__."""

    def __index__(self):
        return 7


def test_arguments_that_no_operation_takes_are_refused(make_dict):
    """K1: too many defaults, unknown flags, and values of another type raise an error that names
    them; the stored value stays."""
    d = make_dict(key=str, value=str)
    d["k"] = "v"
    with pytest.raises(shmrhash.InvalidArgument, match="flags 7"):
        d._put("k", "w", 7)
    with pytest.raises(TypeError, match="pop takes"):
        d.pop("k", 1, 2)
    with pytest.raises(TypeError, match="int or float"):
        d.add("k", 1)
    with pytest.raises(TypeError, match="update_with takes"):
        d.update_with("k", str, "a", "b")
    assert d["k"] == "v"


def test_an_exchange_with_a_value_of_another_type_stores_nothing(make_dict):
    d = make_dict(key=str, value=str)
    d["k"] = "v"
    with pytest.raises(TypeError):
        d.exchange("k", 5)
    assert d["k"] == "v"


def test_a_section_can_be_used_only_once_and_inside_its_block(make_dict):
    """L1: a section refuses assignments outside its block, and to be entered again; if the dict is
    frozen during the block, the section stores nothing."""
    d = make_dict(key=str, value=int)
    d["k"] = 1
    section = d.locked("k", timeout=1.0)
    with section:
        section.value += 1
    with pytest.raises(shmrhash.InvalidArgument, match="inside its with block"):
        section.value = 5
    with pytest.raises(shmrhash.InvalidArgument, match="entered only once"), section:
        pass

    def freeze_inside():
        with d.locked("k") as entry:
            entry.value = 9
            d.freeze()

    with pytest.raises(shmrhash.FrozenMap, match="frozen while"):
        freeze_inside()
    assert d["k"] == 2


def test_a_section_that_is_garbage_collected_is_rolled_back(make_dict):
    """L1: a section that is entered and never left is rolled back when its object is destroyed."""
    d = make_dict(key=str, value=int)
    d["k"] = 1
    section = d.locked("k")
    section.__enter__()
    section.value = 5
    del section

    d["k"] += 1  # does not wait: no section holds the key
    assert d["k"] == 2


def test_a_section_of_the_parent_is_not_ended_by_a_child(make_dict):
    """L1: a forked child that leaves its parent's section gets an error, and the parent's section
    continues."""

    def leave(entry):
        with pytest.raises(shmrhash.Error, match="parent"):
            entry.__exit__(None, None, None)

    d = make_dict(key=str, value=int)
    d["k"] = 1
    with d.locked("k") as entry:
        entry.value = 2
        in_child(leave, entry)
    assert d["k"] == 2


def test_inline_values_have_no_views(make_dict):
    """R2: only values that are objects have views."""
    d = make_dict(key=str, value=int)
    d["k"] = 1
    with pytest.raises(shmrhash.InvalidArgument, match="views are"):
        d.view("k")


def test_numbers_may_be_of_any_class_with_an_index(make_dict):
    """An int key may be any object with __index__, a float value any with __float__, and bytes any
    contiguous buffer."""
    d = make_dict(key=int, value=float)
    d[Index()] = np.float32(0.5)
    assert d[7] == 0.5
    with pytest.raises(TypeError, match="must be float"):
        d[7] = object()
    raw = make_dict(key=bytes, value=bytes)
    raw[bytearray(b"k")] = memoryview(b"v")
    assert raw[b"k"] == b"v"
    with pytest.raises(shmrhash.InvalidArgument, match="contiguous"):
        raw[b"k"] = memoryview(b"abcdef")[::2]
    assert raw.copy() == {b"k": b"v"}


def test_keys_that_the_short_path_does_not_take_work_like_others(make_dict):
    """In a dict of int to int, bools and NumPy's integers find the entry of the equal int; ints of
    more than 64 bits and texts are refused."""
    d = make_dict(key=int, value=int)
    d[1] = 5
    assert (d[True], d[np.int64(1)], d[Index()] if 7 in d else 0) == (5, 5, 0)
    for key in (1 << 70, -(1 << 70)):
        with pytest.raises(OverflowError):
            d[key]
        assert key not in d
    with pytest.raises(TypeError):
        d["1"]


def test_an_expired_entry_of_a_frozen_dict_is_absent_and_stays(make_dict):
    """R1: an expired entry of a frozen dict is absent, but it is not deleted: len() still counts
    it."""
    d = make_dict(key=str, value=int, ttl=math.inf)
    deadline_ns = _core.clock_monotonic_ns() + 50_000_000  # not before the insertion's sweep
    d._put("k", 1, 0, deadline_ns)
    d.freeze()
    while _core.clock_monotonic_ns() < deadline_ns:
        time.sleep(0.01)

    assert d.get("k") is None
    assert len(d) == 1


def test_changing_a_deadline_waits_for_a_section_of_the_entry(make_dict):
    """L1: touch() and timer_set() are writes: they wait for the section that holds the entry, until
    their timeout."""
    d = make_dict(key=str, value=int, ttl=5)
    d["k"] = 1
    with SharedDict.open(d.name, timeout=0.02) as other, d.locked("k"):
        with ThreadPoolExecutor(1) as pool, pytest.raises(shmrhash.LockTimeout):
            pool.submit(other.touch, "k", 9).result()
        with ThreadPoolExecutor(1) as pool, pytest.raises(shmrhash.LockTimeout):
            pool.submit(other.handle.timer_set, d._raw_key("k"), 9).result()
    assert d.ttl("k") <= 5


def test_values_of_many_words_are_copied_whole(make_dict):
    """R2: values that are larger than the buffer on the core's stack are copied whole."""
    d = make_dict(key=int, value="<200q")
    d[1] = tuple(range(200))
    assert d[1] == tuple(range(200))
    assert 1 in d
    assert d.pop(1) == tuple(range(200))


def test_encoded_keys_and_values_of_wrong_sizes_are_refused(map_name):
    """H1: a codec is the program's own code and may return any number of bytes; a key or value of
    another size than the map's is refused."""
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as handle:
        handle.unlink()
        core = _core.DictCore(
            handle, (_core.KEY_FIXED, bytes, bytes), (_core.VALUE_FIXED, bytes, bytes)
        )
        core[b"k" * 8] = b"v" * 8
        assert core[b"k" * 8] == b"v" * 8
        with pytest.raises(shmrhash.InvalidArgument, match="encoded as 3 bytes"):
            core[b"k" * 8] = b"abc"
        with pytest.raises(shmrhash.InvalidArgument, match="encoded as 3 bytes"):
            core[b"abc"]


def test_operations_on_fields_that_a_map_does_not_have_are_refused(map_name):
    """K1: a map refuses to set a deadline without a Timer, and to store an object larger than any
    size class; operations on fields accept keys in any buffer."""
    with RHashMap.create(
        map_name, key_size=8, value_size=8, max_entries=10, fields=[Kptr(0)], max_bytes=1 << 20
    ) as m:
        m.unlink()
        m[bytes(8)] = bytes(8)
        with pytest.raises(shmrhash.InvalidArgument, match="no Timer"):
            m.timer_set(bytes(8), 5)
        with pytest.raises(shmrhash.TooLarge):
            m.kptr_xchg(bytes(8), memoryview(np.zeros(1 << 28, np.uint8)), 0)
        assert m.kptr_xchg(bytearray(8), b"object", 0) is None
        assert m.kptr_get(bytearray(8), 0) == b"object"
        m.check()
    with RHashMap.create(
        map_name, key_size=8, value_size=8, max_entries=10, fields=[Timer(0)]
    ) as m:
        m.unlink()
        m[bytes(8)] = bytes(8)
        assert m.timer_set(bytearray(8), 1)
        assert bytes(8) not in m


def test_a_map_whose_value_is_only_a_deadline_is_no_dict(map_name):
    """H1: a map whose value is only a deadline has no room for a dict's value, and is refused."""
    with RHashMap.create(
        map_name, key_size=8, value_size=8, max_entries=10, fields=[Timer(0)]
    ) as m:
        m.unlink()
        with pytest.raises(shmrhash.LayoutMismatch):
            _core.DictCore(m, (_core.KEY_FIXED, bytes, bytes), (_core.VALUE_FIXED, bytes, bytes))


def test_reading_entries_into_too_small_a_buffer_is_refused(make_map):
    m = make_map()
    with pytest.raises(shmrhash.InvalidArgument, match="no room for entries 0 to 5"):
        _core.read_entries(m, None, bytearray(8 * 4), None, 0, 5)


def test_a_negative_or_nan_timeout_is_refused(make_dict):
    """K1: a timeout is a number of seconds from 0 up."""
    d = make_dict(key=str, value=int)
    for timeout in (-1, float("nan")):
        with pytest.raises(shmrhash.InvalidArgument, match="timeout must be"):
            SharedDict.open(d.name, timeout=timeout)


def test_freezing_a_frozen_dict_is_refused(make_dict):
    """K1: the second freeze() raises FrozenMap."""
    d = make_dict(key=str, value=int)
    d.freeze()
    with pytest.raises(shmrhash.FrozenMap):
        d.freeze()
