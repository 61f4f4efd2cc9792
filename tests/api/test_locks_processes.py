"""BPF_F_LOCK with four writers and four readers in processes, as in map_lock and htab_reuse.

Each of the eight does ROUNDS rounds, and goes on until all have. With BPF_F_LOCK and without, no
reader gets a mixture of two values (R2), or a value older than one that it saw before (W1).
"""

import multiprocessing
import os
import struct

import pytest
from support.children import in_child
from support.jobs import number_in, number_of_whole, whole_value, word
from support.workers import SPAWN, WorkerFailed, run_together

from shmrhash import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, LockTimeout, RHashMap

WRITERS = READERS = 4
SIZE = 64
NUMBERS = struct.Struct("<16I")
KEYS_EACH = 2  # keys of each writer in htab_reuse
ROUNDS = 10_000
ROUNDS_MAX = 100 * ROUNDS  # an upper bound, which is reached only if a process dies
DONE = word(1 << 32)  # the key of a count: the processes that have done their rounds

processes = pytest.mark.parametrize("method", ["fork", SPAWN])
flagged = pytest.mark.parametrize("flags", [0, BPF_F_LOCK], ids=["plain", "F_LOCK"])


def rounds_together(gate, m):
    """Yield round numbers, at least ROUNDS of them, until all eight processes have done as many."""
    gate.wait()
    for number in range(ROUNDS_MAX):
        yield number
        if number + 1 == ROUNDS:
            m.add(DONE, 1, default=0)
        if number + 1 >= ROUNDS and number_in(m[DONE][:8]) == WRITERS + READERS:
            return


# ---- map_lock ----


def count_in_sections(gate, m):
    """In each section set all 16 numbers to one more than the first; return the sections done."""
    done = 0
    for _ in rounds_together(gate, m):
        with m.locked(word(0)) as value:
            (number,) = value.unpack("<I")
            for place in range(16):
                value.pack("<I", number + 1, offset=4 * place)
        done += 1
    return done


class Seen:
    """The counts that one reader saw: 16 equal numbers, which never decrease."""

    def __init__(self):
        self.number = self.changes = self.reads = 0

    def see(self, value):
        number = number_of_whole(value, SIZE)
        if number < self.number:
            raise AssertionError(f"the count went back from {self.number} to {number}")
        self.changes += number != self.number
        self.number = number
        self.reads += 1


def read_counted(gate, m, flags):
    seen = Seen()
    for _ in rounds_together(gate, m):
        seen.see(m.lookup(word(0), flags))
    return seen


@flagged
@processes
@pytest.mark.thorough
def test_values_of_sections_are_uniform(make_map, method, flags):
    """L1, R2 (map_lock): no section is lost, no reader sees a value in the middle of a section."""
    m = make_map(value_size=SIZE, max_entries=2, timeout=60)
    m[word(0)] = bytes(SIZE)

    results = run_together(
        method,
        *[(count_in_sections, m)] * WRITERS,
        *[(read_counted, m, flags)] * READERS,
    )

    sections, seen = results[:WRITERS], results[WRITERS:]
    assert NUMBERS.unpack(m[word(0)]) == (sum(sections),) * 16
    assert min(*sections, *(one.reads for one in seen)) >= ROUNDS
    assert all(one.changes > 0 for one in seen)
    print(f"{sections} sections, {[(one.reads, one.changes) for one in seen]} reads and changes")
    m.check()


def count_bare(gate, memory):
    """Do as count_in_sections, but without a lock: other writers run between any two numbers."""
    gate.wait()
    for _ in range(1_000):
        (number,) = struct.unpack_from("<I", memory)
        for place in range(16):
            struct.pack_into("<I", memory, 4 * place, number + 1)
            os.sched_yield()
    gate.finish()


def read_bare(gate, memory):
    seen = Seen()
    gate.wait()
    for _ in gate.open_for(ROUNDS_MAX):
        seen.see(bytes(memory))


def test_readers_notice_values_written_without_a_lock():
    """The readers of these tests fail for memory that several processes write to without a lock."""
    memory = multiprocessing.get_context("fork").RawArray("B", SIZE)

    with pytest.raises(WorkerFailed, match=r"a mixture of the writes|the count went back"):
        run_together("fork", *[(count_bare, memory)] * WRITERS, (read_bare, memory))


# ---- a reader that waits ----

WAITING = {
    "lookup": lambda m: m.lookup(word(0), BPF_F_LOCK),
    "lookup_many": lambda m: m.lookup_many([word(0)], BPF_F_LOCK),
    "lookup_batch": lambda m: m.lookup_batch(flags=BPF_F_LOCK),
}


def wait_in_vain(name, how):
    with (
        RHashMap.open(name, read_only=True, timeout=0.1) as reader,
        pytest.raises(LockTimeout),
    ):
        WAITING[how](reader)


@pytest.mark.parametrize("how", WAITING)
def test_a_read_only_handle_waits_without_storing_anything(make_map, how):
    """L1: a read-only handle waits without a store, also after the time to claim the next turn."""
    m = make_map(value_size=SIZE, max_entries=2)
    m[word(0)] = bytes(SIZE)
    with m.locked(word(0)):
        in_child(wait_in_vain, m.name, how)
    m.check()


# ---- htab_reuse ----


def reuse(gate, m, writer, flags):
    """Insert and delete this worker's own keys, so that workers reuse each other's elements."""
    done = 0
    for number in rounds_together(gate, m):
        for key in range(writer, KEYS_EACH * WRITERS, WRITERS):
            m.update(word(key), whole_value(key << 24 | 2 * number, SIZE), BPF_NOEXIST)
            m.update(word(key), whole_value(key << 24 | 2 * number + 1, SIZE), BPF_EXIST | flags)
            last = number_of_whole(m.lookup_and_delete(word(key), flags), SIZE)
            if last != key << 24 | 2 * number + 1:
                raise AssertionError(f"key {key} lost its write {number}")
        done += 1
    return done


def read_reused(gate, m, flags):
    """Return (reads, found). A key must be absent or have its own whole value, never an older
    one."""
    seen = dict.fromkeys(range(KEYS_EACH * WRITERS), 0)
    reads = found = 0
    for _ in rounds_together(gate, m):
        for key in seen:
            value = m.lookup(word(key), flags)
            if value is None:
                continue
            number = number_of_whole(value, SIZE)
            if number >> 24 != key:
                raise AssertionError(f"key {key} has a value of key {number >> 24}")
            if number & 0xFF_FFFF < seen[key]:
                raise AssertionError(f"key {key} went back to {number & 0xFF_FFFF}")
            seen[key] = number & 0xFF_FFFF
            found += 1
        reads += 1
    return reads, found


@flagged
@processes
@pytest.mark.thorough
def test_reused_elements_have_the_values_of_their_keys(make_map, method, flags):
    """R1, R2, L1 (htab_reuse): no reader gets another key's value, with BPF_F_LOCK or without."""
    m = make_map(value_size=SIZE, max_entries=2 * KEYS_EACH * WRITERS, timeout=60)

    results = run_together(
        method,
        *((reuse, m, writer, flags) for writer in range(WRITERS)),
        *[(read_reused, m, flags)] * READERS,
    )

    writes, seen = results[:WRITERS], results[WRITERS:]
    assert list(m) == [DONE]
    assert min(*writes, *(reads for reads, _ in seen)) >= ROUNDS
    assert all(found > 0 for _, found in seen)
    print(f"{writes} writes, {seen} reads and values found")
    m.check()
