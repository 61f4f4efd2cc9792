"""A splitter or merger is stopped after each of its changes, and the table grows on (G1, R1).

A stopped process is not recovered. Insertions into the bucket that it holds have to wait; all other
operations go on: other buckets are split as the load requires, chains stay short, lookups and walks
are exact. Then the process goes on, or is killed; the splits that it missed, and those that the
other processes passed over, are made up for.
"""

import pytest
from support import stepping
from support.killing import FRESH, SCATTERED, fill_up_to_a_split, opened, word

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

INSERTED = 1500  # beside the stopped process; five times the entries before
LONGEST = 20  # entries of one bucket: of 500 with 3.5 on the average, one in a million has more
LOAD_MAX = 4.6  # entries for each bucket: above 4.5 each insertion splits two
SHARE = 40  # the stopped process holds one bucket of more than this many
EMPTY_BUCKETS_MAX = 100  # one depot keeps credits, which count as entries


def fill_up_to_a_merge(name):
    """A map that merges a bucket at its next deletion, the key to delete, and the segment."""
    m = RHashMap.create(name, key_size=8, value_size=8, max_entries=4096, _seeds=SCATTERED)
    segment = stepping.Segment(stepping.segment_path(name))
    for key in range(1, 700):
        m[word(key)] = word(key)
    while m.info()["buckets"] > 2 * SHARE:
        image, buckets = segment.image(), m.info()["buckets"]
        m.delete(word(key))
        if m.info()["buckets"] < buckets <= 2 * SHARE + 8:
            break
        key -= 1
    segment.restore(image)
    return m, key, segment


def insert(handle, key):
    handle[word(key)] = word(key)


def refused_of(handle, keys):
    """Insert the keys; return those whose bucket is held."""
    refused = []
    for key in keys:
        try:
            insert(handle, key)
        except shmrhash.LockTimeout:
            refused.append(key)
    return refused


def longest(m):
    return max(bucket.entries for bucket in m.walk() if not bucket.locked)


def expect_exact(m, keys):
    """Every key is found by a lookup, and by a walk once."""
    assert all(m[word(key)] == word(key) for key in keys)
    assert sorted(m.keys()) == sorted(word(key) for key in keys)


def expect_growth_beside(m, keys):
    """Insert beside the stopped process; return the keys in the map and those refused."""
    fresh = range(FRESH, FRESH + INSERTED)
    with RHashMap.open(m.name, timeout=0) as hasty:
        refused = refused_of(hasty, fresh)
    keys = {*keys, *fresh} - {*refused}
    assert len(refused) <= 2 * INSERTED / SHARE
    assert len(m) <= LOAD_MAX * m.info()["buckets"]
    assert longest(m) <= LONGEST
    expect_exact(m, keys)
    return keys, refused


def expect_all_made_up_for(m, keys, refused):
    """At rest the map is sound; insertions close the gaps, and deleting everything removes them."""
    assert m.check()["exact"]
    expect_exact(m, keys)
    more = [*refused, *range(2 * FRESH, 2 * FRESH + INSERTED)]
    for key in more:
        insert(m, key)
    assert longest(m) <= LONGEST
    expect_exact(m, {*keys, *more})
    assert m.check()["exact"]
    for key in {*keys, *more}:
        m.delete(word(key))
    assert m.info()["buckets"] <= EMPTY_BUCKETS_MAX
    assert m.check()["exact"]


WAYS = {
    "a split": (fill_up_to_a_split, insert),
    "a merge": (fill_up_to_a_merge, lambda handle, key: handle.delete(word(key))),
}


def stopped(name, operate, key, segment, trace):
    """Yield a child for each change of an operation but the last, stopped after that change."""
    image = segment.image()
    for number in range(1, len(trace.changes)):
        segment.restore(image)
        with stepping.stop_at_change(
            opened(name), lambda handle: operate(handle, key), segment, number
        ) as child:
            yield child


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(False, id="goes on"),
        pytest.param(True, id="is killed after all", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("way", ["a split", pytest.param("a merge", marks=pytest.mark.thorough)])
def test_table_grows_beside_a_process_stopped_in_a_resize(map_name, way, killed):
    """G1, R1, I1, C1: a process is stopped after each of its changes while it holds a bucket."""
    fill, operate = WAYS[way]
    held = 0
    with stepping.on_cpu(stepping.default_cpu()):  # one depot for all
        m, key, segment = fill(map_name)
        image = segment.image()
        trace = stepping.trace(opened(m.name), lambda handle: operate(handle, key), segment)
        segment.restore(image)
        for child in stopped(m.name, operate, key, segment, trace):
            there = word(key) in m
            resizes = there == (way == "a split")  # its entry is already inserted or deleted
            if not resizes or not any(bucket.locked for bucket in m.walk()):
                continue
            held += 1
            keys = {*range(1, key + there)}
            keys, refused = expect_growth_beside(m, keys)
            if killed:
                child.kill()
            else:
                child.resume()
                child.wait()
            expect_all_made_up_for(m, keys, refused)
        assert held > 10, "no state had a bucket held"
    segment.restore(image)
    m.unlink()
    m.close()
