"""The kernel's htab_update.c, htab_reuse.c and map_lock.c: processes on one or two keys."""

import os
import random

import pytest
from support.jobs import number_in, number_of_whole, whole_value
from support.kernel import kernel_jobs
from support.kernel.kernel_jobs import int_word
from support.kernel.sides import ANY, EXIST, LOCK, NOEXIST
from support.workers import METHODS, SPAWN, run_together

LOCK_FLAGS = [0, LOCK]

methods = pytest.mark.parametrize("method", METHODS)
flagged = pytest.mark.parametrize("flags", LOCK_FLAGS, ids=["plain", "F_LOCK"])


@pytest.mark.parametrize("method", ["fork", SPAWN])  # a thread would pin the runner
def test_concurrent_update(make_map, method):
    """W1 (concurrent_update): four workers on one CPU update one key 1,000 times without an
    error."""
    m = make_map(key_size=4, value_size=8, max_entries=1)
    cpu = min(os.sched_getaffinity(0))

    run_together(method, *((kernel_jobs.update_pinned, m, cpu, 1_000, i) for i in range(4)))

    last = number_of_whole(m[int_word(0)], 8)
    assert last >> 24 in range(4)
    assert last & 0xFF_FFFF == 999
    assert len(m) == 1
    m.check()


@flagged
@methods
@pytest.mark.parametrize("loops", [500, pytest.param(200_000, marks=pytest.mark.long)])
@pytest.mark.thorough
def test_htab_reuse(make_map, method, flags, loops):
    """R1, R2 (htab_reuse): four readers beside a writer never hang, nor read another key's
    value."""
    m = make_map(key_size=4, value_size=8, max_entries=64)

    results = run_together(
        method,
        (kernel_jobs.reuse_write, m, loops, flags),
        *((kernel_jobs.reuse_read, m, loops, flags) for _ in range(4)),
        timeout_s=280,
    )

    assert len(results) == 5
    assert len(m) == 0
    m.check()


@flagged
@methods
@pytest.mark.parametrize("write", [kernel_jobs.lock_update, kernel_jobs.lock_section])
@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.thorough
def test_map_lock(seed, make_map, method, flags, write, number):
    """R2, L1 (map_lock): four writers of 16 equal numbers, one reader; it never reads a mixture.

    A writer updates, or, like the kernel's program, locks the value and stores one number after
    another. The sections count their changes in the value, and none is lost.
    """
    m = make_map(key_size=4, value_size=68, max_entries=1)
    m.update(int_word(0), bytes(68), ANY | flags)

    *_, changes = run_together(
        method,
        *((write, m, number, flags, seed + i) for i in range(4)),
        (kernel_jobs.lock_read, m, number, flags),
    )

    assert changes >= 1, "the reader saw no write"
    value = m[int_word(0)]
    assert bytes(4) + value[4:8] * 16 == value
    if write is kernel_jobs.lock_section:
        assert number_in(value[4:8]) == 4 * number
    m.check()


def test_reinserted_key_has_no_value_of_an_earlier_insertion(seed, make_map):
    """W1 (the special fields' delete and insert cycles): a reinserted key has its new value."""
    m = make_map(key_size=4, value_size=40, max_entries=16)
    rng = random.Random(seed)
    there = {}

    for number in range(5_000):
        key = int_word(rng.randrange(24))
        value = whole_value(0x5248_4142 ^ number, 40)
        if key in there and rng.random() < 0.5:
            assert there.pop(key) == m.lookup_and_delete(key)
        elif key in there or len(there) < 16:
            m.update(key, value, EXIST if key in there else NOEXIST)
            there[key] = value
        assert there.get(key) == m.lookup(key)

    assert all(m[key] == value for key, value in there.items())
    assert len(there) == len(m)
    m.check()
