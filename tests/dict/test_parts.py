"""_parts(), which returns an entry with all its parts to code that does not know its types."""

import time

from support.workers import run_together

from shmrhash import Kptr, Refcount, RHashMap, SharedDict, SpinLock, Timer

KEY = "a key of more than 15 bytes"
STEP_S = 1000.0
ROUNDS_MAX = 20_000


def write_pairs(gate, name):
    """Store values that contain the time that they have to live; value and deadline are stored in
    one step."""
    with SharedDict.open(name) as d:
        gate.wait()
        for turn in gate.open_for(ROUNDS_MAX):
            number = turn % 50 + 1
            d.set(KEY, str(number) * (number * 100), ttl=number * STEP_S)


def read_pairs(gate, name):
    with SharedDict.open(name) as d:
        raw = d._raw_key(KEY)
    seen = set()
    with RHashMap.open(name, read_only=True) as shared_map:
        gate.wait()
        for _ in gate.open_for(ROUNDS_MAX):
            _, deadline_ns, (whole_key, text), held = shared_map._parts(raw)
            number = round((deadline_ns - time.monotonic_ns()) / 1e9 / STEP_S)
            assert whole_key.decode() == KEY
            assert text.decode() == str(number) * (number * 100)
            assert not held
            seen.add(number)
    gate.finish()
    return len(seen)


def test_parts_of_an_entry_are_of_one_moment(make_dict, map_name):
    """R2: the key, object and deadline that _parts() returns belong together while another process
    replaces them."""
    make_dict(key=str, value=str, ttl=STEP_S).set(KEY, "1" * 100, ttl=STEP_S)

    seen = run_together("fork", (write_pairs, map_name), (read_pairs, map_name))

    assert seen[1] > 1


def test_parts_of_an_entry_are_its_value_deadline_objects_and_lock(map_name):
    """_parts() returns None for an absent key, and an expired entry like a live one; the last part
    is true while a section holds the entry."""
    fields = [Kptr(0), Timer(8), Refcount(16), SpinLock(24), Kptr(32)]
    with RHashMap.create(
        map_name, key_size=4, value_size=48, max_entries=4, fields=fields, max_bytes=1 << 20
    ) as shared_map:
        shared_map[b"key1"] = bytes(40) + b"in bytes"
        shared_map.kptr_xchg(b"key1", b"object", 32)
        shared_map.kptr_xchg(b"key1", b"", 0)

        value, deadline_ns, objects, held = shared_map._parts(b"key1")
        assert value == shared_map[b"key1"]
        assert (deadline_ns, objects, held) == (0, (b"", b"object"), False)
        assert shared_map._parts(b"key2") is None
        with shared_map.locked(b"key1"):
            assert shared_map._parts(b"key1")[3]
        shared_map.timer_set(b"key1", 1)
        assert b"key1" not in shared_map
        assert shared_map._parts(b"key1")[1:] == (1, (b"", b"object"), False)
        shared_map.check()
        shared_map.unlink()


def test_raw_key_is_the_key_stored_in_the_map(make_dict):
    d = make_dict(key=str, value=int)
    d["short"] = 1
    d[KEY] = 2

    assert {d._raw_key("short"), d._raw_key(KEY)} == set(d.handle)
    assert d._raw_key("short") == b"short".ljust(15, b"\0") + b"\x05"
