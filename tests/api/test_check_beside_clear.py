"""check() beside clear(): a section in progress is no damage (C1)."""

import multiprocessing
import struct
import time

import pytest

import shmrhash
from shmrhash import RHashMap

ENTRIES = 60_000  # so many that a clear() lets others go first now and then
EXACT_LOOKS = 200  # of them nine in ten met a cleaner at rest on two quiet cores
DEADLINE_SECONDS = 60


def clear_over_and_over(name):
    with RHashMap.open(name) as m:
        while True:
            m.clear()


def insert_over_and_over(name, first):
    with RHashMap.open(name) as m:
        while True:
            for key in range(first, first + ENTRIES // 3):
                try:
                    m[struct.pack("<Q", key)] = bytes(8)
                except shmrhash.MapBusy:
                    continue


@pytest.fixture
def started():
    """A function that starts a process, which is killed in the end."""
    processes = []

    def start(target, *arguments):
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        processes.append(process)
        process.start()

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_look_that_met_nobody_inside_finds_no_damage(make_map, started):
    """C1: two cleaners in each other's way, and two writers. What check() goes by, again and again:
    of the looks during which nobody was inside an operation none finds fault."""
    m = make_map(max_entries=ENTRIES)
    for number in range(2):
        started(clear_over_and_over, m.name)
        started(insert_over_and_over, m.name, number * ENTRIES)
    deadline = time.monotonic() + DEADLINE_SECONDS
    found = []
    while len(found) < EXACT_LOOKS and time.monotonic() < deadline:
        problem, _, exact, _ = m._check()
        if exact:
            found.append(problem)

    assert found, "no look met everybody at rest"
    assert set(found) == {0}
