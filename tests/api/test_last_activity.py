"""info()["last_activity_ns"]: when the map was last used, as precisely as costs nothing."""

import time

import numpy as np
import pytest
from support.children import Partner
from support.jobs import word

from shmrhash import RHashMap

NOTICED = 1024  # how many operations a thread performs between two times that it stores


def last(m):
    return m.info()["last_activity_ns"]


def test_last_activity_of_a_new_map_is_its_creation(make_map):
    before = time.time_ns()
    m = make_map()
    assert before <= m.info()["created_ns"] <= last(m) <= time.time_ns()


@pytest.mark.parametrize(
    "act",
    [
        lambda m: [m.update(word(1), word(2)) for _ in range(NOTICED)],
        lambda m: [m.add(word(1), 1) for _ in range(NOTICED)],
        lambda m: m.lookup_many(np.arange(NOTICED, dtype="<u8")),
    ],
    ids=["updates", "adds", "batch"],
)
def test_a_thousand_operations_renew_last_activity(make_map, act):
    m = make_map()
    m[word(1)] = word(1)
    before = time.time_ns()
    assert last(m) <= before
    act(m)
    assert before <= last(m) <= time.time_ns()


def test_the_first_use_and_the_exit_of_a_process_renew_last_activity(make_map):
    """The last activity is known also after the process that used the map has exited."""
    m = make_map()
    m[word(1)] = word(1)
    before = time.time_ns()

    def use(parent):
        with RHashMap.open(m.name) as own:
            own[word(2)] = word(2)
            parent.say()
            first = last(own)
            while time.time_ns() <= first:
                pass

    child = Partner(use)
    child.hear()
    used = last(m)
    assert before <= used
    child.result()
    assert used < last(m) <= time.time_ns()


def test_reading_and_info_do_not_renew_last_activity(make_map):
    """A read-only handle changes nothing in the segment, and info() does not count as a use."""
    m = make_map()
    m[word(1)] = word(1)
    before = last(m)
    with RHashMap.open(m.name, read_only=True) as reader:
        assert reader[word(1)] == word(1)
        assert last(reader) == before
    m.check()
    assert last(m) == before
