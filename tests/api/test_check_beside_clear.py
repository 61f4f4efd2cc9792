"""check() beside clear(): a section in progress is no damage (C1)."""

import contextlib
import struct
import time

import pytest
from support.children import Child, kill

import shmrhash
from shmrhash import RHashMap

ENTRIES = 60_000  # so many that a clear() now and then lets other operations go first
EXACT_LOOKS = 200  # on two quiet cores nine in ten of these met a cleaner at rest
DEADLINE_SECONDS = 60


def clear_over_and_over(name):
    with RHashMap.open(name) as m:
        while True:
            with contextlib.suppress(shmrhash.MapBusy):  # the other process clears the map
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
    """A function that starts a process, which is killed at the end of the test."""
    children = []

    def start(function, *arguments):
        children.append(Child(function, *arguments))

    yield start
    kill(*children)


@pytest.mark.thorough
def test_check_finds_no_damage_while_no_operation_is_in_progress(make_map, started):
    """C1: check() finds no damage in a map that two processes clear and two others fill. _check(),
    on which check() relies, is called again and again; a call during which no process was inside an
    operation may find no damage."""
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

    assert found, "no check found all processes at rest"
    assert set(found) == {0}
