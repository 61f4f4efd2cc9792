"""Writers are killed at each change of the segment while a process watches everything (C1)."""

import contextlib

import pytest
from support import stepping
from support.killing import opened
from support.watching import Copy
from support.words import word

import shmrhash
from shmrhash import RHashMap, _core


def end_several(m):
    with m.locked_many([word(1), word(2)]) as (one, two):
        one[:8] = word(9)
        two.delete()


def end_a_section(m):
    with m.locked(word(1)) as entry:
        entry[:8] = word(9)


OPERATIONS = {
    "update": lambda m: m.update(word(1), word(9)),
    "m[key] = value": lambda m: m.__setitem__(word(1), word(9)),
    "insert": lambda m: m.update(word(7), word(9)),
    "delete": lambda m: m.delete(word(1)),
    "add": lambda m: m.add(word(1), 5),
    "the end of a section": end_a_section,
    "the end of several sections": end_several,
    "clear": lambda m: m.clear(),
    "another watcher comes and goes": lambda m: m.watch().close(),
}


SAMPLE = 7  # states that the quick test visits
STEPS_MANY = (
    "the end of several sections",
    "another watcher comes and goes",
)  # so it takes seconds


class Followed:
    """A map of three entries and a copy of it, made anew for each kill."""

    def __init__(self, name):
        self.name = name
        self.map = self.copy = None

    def make(self):
        self.close()
        self.map = RHashMap.create(self.name, key_size=8, value_size=8, max_entries=20)
        for key in range(3):
            self.map[word(key)] = word(key)
        self.copy = Copy(self.map)
        self.copy.catch_up()
        return stepping.Segment(stepping.segment_path(self.name))

    def close(self):
        if self.map is not None:
            self.copy.watch.close()
            self.map.close()
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(self.name)


@pytest.fixture
def followed(map_name):
    before = _core.set_wait_slice(0)  # a watcher looks for the dead each time
    made = Followed(map_name)
    yield made
    made.close()
    _core.set_wait_slice(before)


@pytest.mark.parametrize("states", [SAMPLE, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough) if name in STEPS_MANY else name
        for name in OPERATIONS
    ],
)
def test_a_killed_writer_hides_nothing_from_a_watcher(stepper, followed, name, states, seed):
    """C1: the watcher is told of the change, or of a loss; only of the change if the writer was
    killed after its operation."""
    visited = 0

    for crash in stepping.crash_states(
        opened(followed.name),
        OPERATIONS[name],
        followed.make(),
        setup=followed.make,
        sample=states,
        seed=seed,
    ):
        entries = followed.copy.catch_up()

        assert dict(followed.map.items()) == entries, crash
        if crash.finished:
            assert followed.copy.lost == []
        followed.map.check()
        visited += 1
    assert visited >= SAMPLE
