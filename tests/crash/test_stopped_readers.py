"""A reader is stopped at every instruction of a lookup while the map changes under it (R1, R2, W1).

Each test stops a reader inside its lookup, lets a writer go to some store of an operation that
moves or deletes the entry that the reader is looking for, lets the reader finish, and judges what
it returned. These windows are a few instructions wide; by chance they are hardly ever met.
"""

import random

import pytest
from support import stepping
from support.words import COLLIDING, SCATTERED, word

import shmrhash
from shmrhash import RHashMap

pytestmark = pytest.mark.usefixtures("stepper")

LINK_OFFSET = 60  # of the last index in a bucket
KEYS = (3, 14)  # two of the keys that the three inserts move
WARM = 64  # after this many calls the interpreter takes the same steps for each call
SAMPLE, LONG_SAMPLE = 40, 600  # of some ten thousand pairs of a reader's and a writer's place


def opened(name):
    """prepare: a handle of the child's own, on which most lazy work is done."""

    def prepare():
        handle = RHashMap.open(name)
        handle.lookup(word(1 << 40))
        return handle

    return prepare


def having_read(name, read):
    """prepare: as opened(), and the read has been performed once."""

    def prepare():
        handle = opened(name)()
        read(handle)
        return handle

    return prepare


class Stage:
    """A map at the beginning of a scene, and the places where reader and writer can stop."""

    def __init__(self, name, keys, read, write, **geometry):
        self.read, self.write, self.name = read, write, name
        self.map = RHashMap.create(name, key_size=8, value_size=8, max_entries=64, **geometry)
        for key in keys:
            self.map[word(key)] = word(key)
        for _ in range(WARM):
            read(self.map)
        self.segment = stepping.Segment(shmrhash._segment.path_of(name))
        self.image = self.segment.image()
        # A lookup changes its context's activity at its beginning and at its end. Places count from
        # the first of these changes: before it, the number of steps differs between children.
        self.reader = having_read(name, read)
        self.reader_trace = stepping.trace(self.reader, read, self.segment)
        first, last = self.reader_trace.steps_changed[-2:]
        self.reader_places = range(last - first)
        self.segment.restore(self.image)
        self.writer_trace = stepping.trace(opened(name), write, self.segment)
        self.segment.restore(self.image)
        self.writer_places = range(1, len(self.writer_trace.changes) + 1)

    def places(self, seed, many):
        every = [(k, n) for k in self.reader_places for n in self.writer_places]
        size = LONG_SAMPLE if many else SAMPLE
        return random.Random(seed).sample(every, min(size, len(every)))

    def reader_at(self, k):
        """A reader stopped k steps after the beginning of its lookup."""
        begins = len(self.reader_trace.changes) - 1
        reader = stepping.stop_at_change(
            self.reader, self.read, self.segment, begins, pcs=self.reader_trace.pcs
        )
        if k:
            reader.step(steps=k)
        assert reader.run.ending == stepping.AT_TARGET, "the reader is not inside its lookup"
        return reader

    def play(self, k, n, before=lambda _: None):
        """Stop the reader after k steps and the writer after n changes, and let the reader finish.

        Return what the reader returned, and what a lookup finds after the writer was killed.
        """
        self.segment.restore(self.image)
        with self.reader_at(k) as reader:
            before(self.map)
            with stepping.stop_at_change(opened(self.name), self.write, self.segment, n) as writer:
                seen = reader.wait()
                writer.kill()
        with RHashMap.open(self.name) as survivor:
            return seen, self.read(survivor)

    def close(self):
        self.segment.restore(self.image)
        self.map.check()
        self.map.unlink()
        self.map.close()


def insert_three(own):
    """The first insert takes another block of credits, so that each insert splits two buckets."""
    for number in range(3):
        own.update(word(100 + number), word(0))


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "many"])
def many(request):
    return request.param


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.thorough
def test_key_is_found_while_a_split_moves_it(map_name, seed, many, key):
    """W1, R1: a lookup returns a miss only if the bucket has not changed since it was read."""
    stage = Stage(
        map_name,
        range(1, 33),
        read=lambda own: own.lookup(word(key)),
        write=insert_three,
        _seeds=SCATTERED,
    )
    try:
        for k, n in stage.places(seed, many):
            seen, after = stage.play(k, n)

            assert (seen, after) == (word(key), word(key)), (k, n)
    finally:
        stage.close()


@pytest.mark.thorough
def test_key_is_found_while_a_removal_moves_it(map_name, seed, many):
    """W1, R1: the last entry of a chain moves into a gap; a lookup finds it in either place."""
    stage = Stage(
        map_name,
        range(1, 12),
        read=lambda own: own.lookup(word(11)),
        write=lambda own: own.delete(word(2)),
        _seeds=COLLIDING,
    )
    try:
        for k, n in stage.places(seed, many):
            seen, after = stage.play(k, n)

            assert (seen, after) == (word(11), word(11)), (k, n)
    finally:
        stage.close()


class Reinsertion(Stage):
    """A key is deleted, and inserted again in the same element, while a reader is in its lookup."""

    def __init__(self, name):
        super().__init__(
            name,
            [1],
            read=lambda own: own.lookup(word(1)),
            write=lambda own: own.update(word(1), word(2)),
        )
        self.map.delete(word(1))  # the writer's places are those of an insert, so the key is absent
        self.map[word(1)] = word(1)
        self.image = self.segment.image()
        self.map.delete(word(1))
        without = self.segment.image()
        insert = stepping.trace(opened(name), self.write, self.segment)
        self.segment.restore(without)
        self.writer_places = range(1, len(insert.changes) + 1)

    def judge(self, k, n):
        """Judge what the reader returned; return the value after the inserter was killed."""
        seen, after = self.play(k, n, before=lambda own: own.delete(word(1)))
        assert seen in (None, word(1), word(2)), (k, n)
        assert seen != word(2) or after == word(2), (k, n)
        return after


@pytest.mark.thorough
def test_value_that_was_read_does_not_vanish(map_name, seed, many):
    """W1, C1: no reader sees an insertion that a kill undoes, not even through a stale slot.

    The reader read the slot before the key was deleted; the inserter takes the same element.
    """
    stage = Reinsertion(map_name)
    try:
        with stepping.on_cpu(stepping.default_cpu()):  # so that the depot is the same
            for k, n in stage.places(seed, many):
                stage.judge(k, n)
    finally:
        stage.close()


@pytest.mark.thorough
def test_uncommitted_insertion_is_not_seen_through_a_stale_slot(map_name):
    """W1, C1: the inserter stops just before its commit: the element is live, but no slot names it.

    The reader stops at every instruction; one of them is between the two loads of the slot.
    """
    stage = Reinsertion(map_name)
    try:
        with stepping.on_cpu(stepping.default_cpu()):
            start = stage.reader_places[0]
            commit = next(n for n in stage.writer_places if stage.judge(start, n) == word(2))
            for k in stage.reader_places:
                assert stage.judge(k, commit - 1) is None
    finally:
        stage.close()


class Dissolution(Stage):
    """One of the two entries of a line is deleted, and the line's other element moves to the place
    of the link. The remover is killed there, before it raises the version, and recovery empties
    the line."""

    def __init__(self, name):
        super().__init__(
            name,
            range(1, 9),
            read=lambda own: own.lookup(word(7)),  # the line's other element
            write=lambda own: own.delete(word(8)),
            _seeds=COLLIDING,
        )
        offsets = [change.offset for change in self.writer_trace.changes]
        self.killed = 1 + next(n for n, at in enumerate(offsets) if at % 64 == LINK_OFFSET)
        with self.killed_remover():
            pass
        recovery = stepping.trace(lambda: None, self.recover, self.segment)
        self.recovery_pcs = recovery.pcs
        self.recovery_places = range(len(recovery.changes) + 1)
        self.segment.restore(self.image)

    def killed_remover(self):
        """A context manager whose block begins when the remover is dead."""
        child = stepping.stop_at_change(
            opened(self.name), self.write, self.segment, self.killed, pcs=self.writer_trace.pcs
        )
        child.kill()
        return child

    def recover(self, _):
        RHashMap.open(self.name)

    def seen_during_recovery(self, k, n):
        """Stop the reader after k steps, recovery after n changes; return the reader's result."""
        self.segment.restore(self.image)
        with (
            self.reader_at(k) as reader,
            self.killed_remover(),
            stepping.stop_at_change(
                lambda: None, self.recover, self.segment, n, pcs=self.recovery_pcs
            ) as survivor,
        ):
            seen = reader.wait()
            survivor.kill()
        RHashMap.open(self.name).close()
        return seen


@pytest.mark.thorough
def test_recovery_that_empties_a_line_gives_no_reader_a_false_miss(map_name, seed, many):
    """W1, R1, C1: recovery raises the version before it empties the line: the reader retries."""
    stage = Dissolution(map_name)
    try:
        # Up to the release of the bucket's lock, which changes the version.
        places = [(k, n) for n in (1, 2, 3, 4) for k in stage.reader_places]
        if not many:
            half = len(stage.reader_places) // 2  # the reader comes to the line in the second half
            places = [(k, 3) for k in stage.reader_places[half::3]]
        for k, n in places:
            assert stage.seen_during_recovery(k, n) == word(7), (k, n)
    finally:
        stage.close()
