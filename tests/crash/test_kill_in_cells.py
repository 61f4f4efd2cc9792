"""A process is killed at every change that it makes with a lock, semaphore or event, and the
recoverer at every change of its recovery (C1, C2).

The survivor takes every lock and every permit: nothing is stuck, permits are exact, and `orphan`
tells of the death exactly if the dead process had the lock, once.
"""

import pytest
from support import stepping
from support.killing import Tally, explained

from shmrhash import Event, Lock, RLock, RWLock, Semaphore, Sync

PERMITS = 3
LONG_S = 60
HELD = 1  # the lock bit of the words

pytestmark = pytest.mark.usefixtures("stepper")


class Cells:
    """The cells of a space, as a process sees them."""

    def __init__(self, space):
        self.space = space
        self.lock = Lock("lock", space=space)
        self.rlock = RLock("rlock", space=space)
        self.semaphore = Semaphore(PERMITS, "semaphore", space=space)
        self.counter = Semaphore(PERMITS, "counter", space=space, undo=False)
        self.event = Event("event", space=space)
        self.rwlock = RWLock("rwlock", space=space)

    def words(self, primitive):
        return self.space._cells.words(primitive._index)


def nothing(cells):
    pass


def take_lock(cells):
    cells.lock.acquire()


def take_and_release_lock(cells):
    cells.lock.acquire()
    cells.lock.release()


def take_rlock_twice(cells):
    cells.rlock.acquire()
    cells.rlock.acquire()


def release_rlock_twice(cells):
    cells.rlock.release()
    cells.rlock.release()


def take_permit(cells):
    cells.semaphore.acquire()


def take_two_permits(cells):
    cells.semaphore.acquire()
    cells.semaphore.acquire()


def give_two_permits(cells):
    cells.semaphore.release(2)


def give_new_permit(cells):
    cells.semaphore.release()


def change_counter(cells):
    cells.counter.acquire()
    cells.counter.release(2)


def set_and_clear(cells):
    cells.event.set()
    cells.event.clear()


def read(cells):
    with cells.rwlock.read_lock():
        pass


def write(cells):
    with cells.rwlock.write_lock():
        pass


def release_lock(cells):
    cells.lock.release()


def make_a_lock(cells):
    Lock("new", space=cells.space).acquire()


# (what the child does before it is traced, what it is killed in)
OPERATIONS = {
    "take a lock": (nothing, take_lock),
    "release a lock": (take_lock, release_lock),
    "take and release a lock": (nothing, take_and_release_lock),
    "take an RLock twice": (nothing, take_rlock_twice),
    "release an RLock twice": (take_rlock_twice, release_rlock_twice),
    "take two permits": (nothing, take_two_permits),
    "take another permit": (take_permit, take_permit),
    "give two permits back": (take_two_permits, give_two_permits),
    "give a new permit": (nothing, give_new_permit),
    "change a counter": (nothing, change_counter),
    "set and clear an event": (nothing, set_and_clear),
    "read under an RWLock": (nothing, read),
    "write under an RWLock": (nothing, write),
    "make a lock": (nothing, make_a_lock),
}


def opened(name, before):
    """prepare: open the space in the child, which registers the child, and call `before`."""

    def prepare():
        cells = Cells(Sync.open(name))
        before(cells)
        return cells

    return prepare


def held_locks(cells):
    """Whether each of the locks is held."""
    return [bool(cells.words(lock)["state"] & HELD) for lock in (cells.lock, cells.rlock)]


def expect_lock_to_be_free(cells, lock, was_held):
    """Assert that the next owner is told of the death, if the dead process held the lock, and that
    the owner after that is not."""
    assert lock.acquire(timeout=LONG_S)
    assert (lock.orphan is not None) == was_held
    lock.release()
    with lock:
        assert lock.orphan is None
    assert cells.words(lock)["state"] == 0


def survive(cells, held, new_permits=(0,)):
    """Take every lock and permit. held: which locks the dead process had. new_permits: how many
    permits more than at first the semaphore may have."""
    for lock, was_held in zip((cells.lock, cells.rlock), held, strict=True):
        expect_lock_to_be_free(cells, lock, was_held)
    cells.space.check()
    free = cells.semaphore.get_value()
    assert free - PERMITS in new_permits
    for _ in range(free):
        assert cells.semaphore.acquire(False)
    assert cells.semaphore.acquire(False) is False
    cells.semaphore.release(free)
    assert cells.counter.get_value() in (PERMITS - 1, PERMITS, PERMITS + 1)
    cells.counter.release()
    with cells.rwlock.write_lock(LONG_S):
        assert cells.rwlock.readers == 0
    assert not cells.rwlock.has_writer
    assert cells.rwlock.orphan is None
    cells.event.set()
    assert cells.event.wait(LONG_S)
    with Lock("new", space=cells.space):
        pass
    cells.space.check()
    assert cells.space._map.info()["contexts"] == 1, "a context of the dead is lost"


# Longer forms of other operations, which the quick tests leave out.
LONGER = {"take two permits", "give a new permit", "read under an RWLock", "take an RLock twice"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough if name in LONGER else ())
        for name in OPERATIONS
    ],
)
def test_killed_after_every_change(name, space, seed, record_property):
    before, operate = OPERATIONS[name]
    cells = Cells(space)
    segment = stepping.Segment(stepping.segment_path(space.name))
    tally = Tally()
    for crash in stepping.crash_states(opened(space.name, before), operate, segment, seed=seed):
        tally.add(crash)
        segment.restore(crash.image)
        with explained(crash, survive):
            survive(cells, held_locks(cells), (0, 1) if name == "give a new permit" else (0,))
    assert tally.crashes > 1
    tally.report(record_property, f"{name}, seed {seed}", tally.crashes)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "take and release a lock",
        "give two permits back",
        "take two permits",
        "write under an RWLock",
    ],
)
def test_killed_in_the_recovery_of_a_killed_process(name, space, seed, record_property):
    before, operate = OPERATIONS[name]
    cells = Cells(space)
    segment = stepping.Segment(stepping.segment_path(space.name))
    tally = Tally()

    def look():
        return cells

    stages = [(opened(space.name, before), operate), (look, lambda cells: cells.space.check())]
    for crash in stepping.crash_chain(stages, segment, samples=[8, 12], seed=seed):
        tally.add(crash)
        with explained(crash, survive):
            segment.restore(crash.previous.image)
            held = held_locks(cells)
            segment.restore(crash.image)
            survive(cells, held)
    tally.report(record_property, f"{name}, then the recovery, seed {seed}", tally.crashes)
