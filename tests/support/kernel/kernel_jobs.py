"""Cases of the kernel's selftests that run both by themselves and in many processes at once.

A case takes a side (sides.py). A job, as in support/jobs.py, takes its Gate first; it raises for a
mistake that it can see, and returns the facts that only all jobs together can judge.
"""

import os
import random

import shmrhash
from shmrhash import RHashMap
from support.jobs import ROUNDS_MAX, number_in, whole_value, word
from support.kernel.sides import ANY, EXIST, NOEXIST, OurMap, walk

OK = ("", None)

# test_hashmap_sizes: 1, 2, 4 and so on, up to and with the last.
KEY_SIZES = [1 << power for power in range(10)]
VALUE_SIZES = [1 << power for power in range(19)]


def int_word(number):
    """Return an int of the kernel's tests as bytes."""
    return number.to_bytes(4, "little", signed=True)


def three_longs(number):
    return b"".join(word((number + place) % (1 << 64)) for place in range(3))


# test_maps.c


def hashmap_case(side):
    """test_hashmap without its walk, on an empty map for two entries; leaves the keys 1 and 2."""
    assert side.update(word(1), word(1234), ANY) == OK
    assert side.update(word(1), word(0), NOEXIST) == ("EEXIST", None)
    assert side.update(word(1), word(0), -1) == ("EINVAL", None)
    assert side.lookup(word(1)) == ("", word(1234))
    assert side.update(word(2), word(1234), ANY) == OK
    assert side.lookup_and_delete(word(2)) == ("", word(1234))
    assert side.lookup(word(2)) == ("ENOENT", None)
    assert side.update(word(2), word(1234), EXIST) == ("ENOENT", None)
    assert side.update(word(2), word(1234), NOEXIST) == OK
    assert side.update(word(0), word(1234), NOEXIST) == ("E2BIG", None)
    assert side.update(word(1), word(1234), EXIST) == OK
    assert side.update(word(2), word(1234), ANY) == OK
    assert side.update(word(3), word(1234), NOEXIST) == ("E2BIG", None)
    assert side.delete(word(0)) == ("ENOENT", None)


def hashmap_end_case(side):
    """The end of test_hashmap: both keys are deleted, and a third deletion is ENOENT."""
    assert side.delete(word(1)) == OK
    assert side.delete(word(2)) == OK
    assert side.delete(word(2)) == ("ENOENT", None)
    assert side.lookup(word(1)) == ("ENOENT", None)


def fill_case(side, entries):
    """helper_fill_hashmap: keys from 0 on, each with a value of three long longs."""
    for number in range(entries):
        assert side.update(word(number), three_longs(number), NOEXIST) == OK


def walk_case(side, entries):
    """test_hashmap_walk on a filled map: a walk that reads, one that updates, one that checks."""
    keys = walk(side, entries)
    assert sorted(map(number_in, keys)) == list(range(entries))
    assert all(side.lookup(key) == ("", three_longs(number_in(key))) for key in keys)

    visited = []
    said = side.get_next_key()
    while not said.error:
        visited.append(said.result)
        assert len(visited) <= entries
        add_one(side, said.result)
        said = side.get_next_key(said.result)
    assert sorted(visited) == sorted(keys)

    look_case(side, entries)


def add_one(side, key):
    value = side.lookup(key).result
    assert side.update(key, word(number_in(value[:8]) + 1) + value[8:], EXIST) == OK


def look_case(side, entries):
    """The last walk of test_hashmap_walk: every value is one more than its key."""
    for key in walk(side, entries):
        value = side.lookup(key).result
        assert number_in(value[:8]) - 1 == number_in(key)
        assert value[8:] == three_longs(number_in(key))[8:]


def make_and_remove(name, **geometry):
    """A map that is closed and removed at the end, for cases in processes of their own."""
    return RemovedAtEnd(RHashMap.create(name, **geometry))


class RemovedAtEnd(OurMap):
    def __exit__(self, *_):
        try:
            self.m.check()
        finally:
            self.m.close()
            shmrhash.unlink(self.m.name)


def stress_walk(gate, name, entries):
    """test_hashmap_walk on a map of the job's own."""
    gate.wait()
    with make_and_remove(name, key_size=8, value_size=24, max_entries=entries) as side:
        fill_case(side, entries)
        walk_case(side, entries)


def stress_hashmap(gate, name, rounds):
    """test_hashmap on maps of the job's own."""
    gate.wait()
    for _ in range(rounds):
        with make_and_remove(name, key_size=8, value_size=8, max_entries=2) as side:
            hashmap_case(side)
            hashmap_end_case(side)


def stress_sizes(gate, name, key_sizes, value_sizes):
    """test_hashmap_sizes on maps of the job's own."""
    gate.wait()
    for key_size in key_sizes:
        for value_size in value_sizes:
            with make_and_remove(
                name, key_size=key_size, value_size=value_size, max_entries=2
            ) as side:
                assert side.lookup(bytes(key_size)) == ("ENOENT", None)


def parallel_insert(gate, m, task, tasks, entries, walk_entries):
    """test_update_delete, updating: insert every tasks-th key, then store its number."""
    gate.wait()
    if task % 2:
        stress_walk(gate_of_nobody, f"{m.name}-walk-{task}", walk_entries)
    for number in range(task, entries, tasks):
        m.update(int_word(number), int_word(~number), NOEXIST)
        m.update(int_word(number), int_word(number), EXIST)


def parallel_delete(gate, m, task, tasks, entries):
    """test_update_delete, deleting: delete the job's keys, each of which still has its value."""
    gate.wait()
    for number in range(task, entries, tasks):
        if m[int_word(number)] != int_word(number):
            raise AssertionError(f"key {number} has the value {m[int_word(number)].hex()}")
        m.delete(int_word(number))


class GateOfNobody:
    def wait(self):
        """Return at once: the job that calls this case has passed its gate already."""


gate_of_nobody = GateOfNobody()


# htab_update.c, htab_reuse.c, map_lock.c


def update_pinned(gate, m, cpu, updates, writer):
    """concurrent_update: all writers on one CPU update the same key."""
    os.sched_setaffinity(0, {cpu})
    gate.wait()
    for number in range(updates):
        m.update(int_word(0), whole_value(writer << 24 | number, m.value_size), ANY)


def reuse_write(gate, m, loops, flags):
    """htab_reuse, the writer: insert and delete two keys in turn, in the same element."""
    gate.wait()
    for number in range(loops):
        for key in (7, 24):
            m.update(int_word(key), whole_value(key << 24 | number, m.value_size), ANY | flags)
            m.delete(int_word(key))
    gate.finish()


def reuse_read(gate, m, loops, flags):
    """htab_reuse, a reader: key 7 is absent or has a value of its own; return how often it had."""
    found = last = 0
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(64):
            value = m.lookup(int_word(7), flags)
            if value is None:
                continue
            number = int.from_bytes(value[:4], "little")
            if value != whole_value(number, m.value_size) or number >> 24 != 7:
                raise AssertionError(f"key 7 has the value {value.hex()}")
            if not last <= number & 0xFF_FFFF < loops:
                raise AssertionError(f"write {number & 0xFFFFFF} seen after {last}")
            last = number & 0xFF_FFFF
            found += 1
    return found


def lock_update(gate, m, writes, flags, seed):
    """map_lock by updates: every number of the value is the same random one."""
    rng = random.Random(seed)
    gate.wait()
    for _ in range(writes):
        value = bytes(4) + rng.randbytes(4) * 16
        m.update(int_word(0), value, EXIST | flags)
    gate.finish()


def lock_section(gate, m, writes, flags, seed):
    """map_lock, the program: under the lock, set all numbers to the first one plus one."""
    gate.wait()
    for _ in range(writes):
        with m.locked(int_word(0)) as value:
            number = int_word(number_in(value[4:8]) + 1)
            for at in range(4, 68, 4):
                value[at : at + 4] = number
    gate.finish()


def lock_read(gate, m, reads, flags):
    """map_lock, the reader: the lock's word is 0, all numbers are equal; return their changes."""
    changes, last = 0, m.lookup(int_word(0), flags)
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        for _ in range(reads):
            value = m.lookup(int_word(0), flags)
            if value != bytes(4) + value[4:8] * 16:
                raise AssertionError(f"a mixture: {value.hex()}")
            changes += value != last
            last = value
    return changes + (m.lookup(int_word(0), flags) != last)


# test_rhashtable.c


def thread_case(gate, m, thread, entries):
    """threadfunc: insert all keys {id, thread}, look all up, remove them in ten waves of steps."""

    def name(number):
        return int_word(number) + int_word(thread)

    there = dict.fromkeys(range(entries), True)
    gate.wait()
    for number in there:
        m.update(name(number), word(number << 8 | thread), NOEXIST)
    look_up_all(m, there, name, thread)
    for step in range(10, 0, -1):
        for number in range(0, entries, step):
            if there[number]:
                m.delete(name(number))
                there[number] = False
        look_up_all(m, there, name, thread)


def look_up_all(m, there, name, thread):
    """thread_lookup_test: each present key has its own value, the others are absent."""
    for number, is_there in there.items():
        expected = word(number << 8 | thread) if is_there else None
        if m.lookup(name(number)) != expected:
            raise AssertionError(f"key {number} of {thread}: {m.lookup(name(number))}")


def insert_duplicates(gate, m, keys, mark):
    """Race to insert the keys; return those that this job inserted."""
    inserted = []
    gate.wait()
    for key in keys:
        try:
            m.update(word(key), word(mark), NOEXIST)
            inserted.append(key)
        except shmrhash.KeyExists:
            pass
    return inserted
