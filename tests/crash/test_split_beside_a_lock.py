"""The bucket that a writer was about to lock is merged away (G1, C1).

A writer finds a bucket and is stopped before it locks the bucket; the bucket is merged away; the
writer goes on. It must not lock the memory of a bucket that no longer exists: a split would need
that lock, and the writer may be stopped again.
"""

import contextlib
import struct
import time

import pytest
from support import stepping
from support.children import Child
from support.killing import SCATTERED, opened, word

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

BUCKETS_MIN = 100  # the map has at least this many when the scene begins
ABSENT = 10**6  # keys from here on are not in the map
DEADLINE_SECONDS = 20
STEPS = 300  # more than enough to take the lock, which needs some ten
LOCKED = 1  # the bit of a taken lock word


def delete_absent(key):
    def operate(handle):
        with contextlib.suppress(shmrhash.KeyNotFound):
            handle.delete(word(key))

    return operate


class Scene:
    """A map whose next deletion merges its last bucket away."""

    def __init__(self, shared_map):
        self.m = shared_map
        self.segment = stepping.Segment(stepping.segment_path(shared_map.name))
        self.keys = list(range(1, 701))
        for key in self.keys:
            shared_map[word(key)] = word(key)
        while self.buckets() >= 2 * BUCKETS_MIN:
            shared_map.delete(word(self.keys.pop()))
        buckets = self.buckets()
        while self.buckets() == buckets:  # ends, as an empty map has four buckets
            image = self.segment.image()
            key = self.keys.pop()
            shared_map.delete(word(key))
        self.keys.append(key)
        self.segment.restore(image)
        self.image = image
        self.last = buckets - 1
        assert self.last >= BUCKETS_MIN

    def buckets(self):
        return self.m.info()["buckets"]

    def entries_of_last(self):
        return list(self.m.walk())[self.last].entries

    def absent_key_of_last(self):
        """An absent key that belongs to the last bucket."""
        before = self.entries_of_last()
        for key in range(ABSENT, ABSENT + 100 * self.last):
            self.m[word(key)] = word(0)
            stands_there = self.entries_of_last() > before
            if stands_there or key % BUCKETS_MIN == 0:  # before the insertions cause a split
                self.segment.restore(self.image)
            if stands_there:
                return key
        raise AssertionError("no key hashes to the last bucket")

    def lock_of(self, operate):
        """Which change of a deletion of an absent key locks the bucket, and where its header is."""
        trace = stepping.trace(opened(self.m.name), operate, self.segment)
        self.segment.restore(self.image)
        context = trace.changes[0].offset  # its activity; the rest of it is beside
        away = [
            (number, change.offset)
            for number, change in enumerate(trace.changes, 1)
            if abs(change.offset - context) >= 4096
        ]
        (number, offset), (_, unlocked) = away
        assert offset & ~63 == unlocked & ~63
        return number, offset & ~63

    def header(self, offset):
        with open(self.segment.path, "rb") as file:
            file.seek(offset)
            return struct.unpack("<Q", file.read(8))[0]


def insert_beyond_a_split(name, first, buckets):
    """Insert until the load asks for more than `buckets` buckets, and some entries more."""
    with RHashMap.open(name) as m:
        while len(m) * 2 <= buckets * 7 + 100:
            m[word(first)] = word(first)
            first += 1


@pytest.mark.thorough
def test_late_writer_never_locks_a_bucket_that_was_merged_away(make_map):
    """G1, C1: the lock stays free after each step of the writer, which stops no splitter."""
    scene = Scene(make_map(max_entries=2048, _seeds=SCATTERED))
    m = scene.m
    operate = delete_absent(scene.absent_key_of_last())
    number, offset = scene.lock_of(operate)
    with stepping.stop_at_change(opened(m.name), operate, scene.segment, number - 1) as writer:
        m.delete(word(scene.keys.pop()))
        assert scene.buckets() == scene.last, "the bucket is still there"
        for _ in range(STEPS):
            writer.step(steps=1)
            assert not scene.header(offset) & LOCKED, "the lock of no bucket is taken"

        with Child(insert_beyond_a_split, m.name, 2 * ABSENT, scene.last) as inserter:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not inserter.has_ended() and time.monotonic() < deadline:
                time.sleep(0.001)
        grown = scene.buckets()
        writer.resume()
        writer.wait()

    assert inserter.exitcode == 0, "an insertion waits for who came late"
    assert grown > scene.last, "nothing was split beside him"
    assert scene.entries_of_last() > 0
    assert all(m[word(key)] == word(key) for key in scene.keys)
    assert m.check()["exact"]
