"""RWLock: many readers or one writer, the order in which waiters get it, and deaths of holders."""

import os
import pickle
import random
import signal
import threading
import time

import pytest
from support.children import Child, Partner, in_child, kill, stays
from support.waiting import LONG_S, until
from support.workers import METHODS, run_together

from shmrhash import LockTimeout, MapClosed, RWLock, SharedDict, Sync


@pytest.fixture
def lock(space):
    return RWLock("rw", space=space)


def test_readers_share_and_a_writer_is_alone(lock):
    with lock.read_lock(), stays(lock.acquire_read):
        assert lock.readers == 2
        assert lock.acquire_write(False) is False
        assert lock.acquire_write(timeout=0.01) is False
    until(lambda: lock.acquire_write(timeout=1))
    assert lock.has_writer
    assert in_child(lock.acquire_read, False) is False
    assert in_child(lock.acquire_write, False) is False
    lock.release_write()
    assert (lock.readers, lock.has_writer) == (0, False)


def test_release_by_a_process_that_holds_nothing_is_refused(lock):
    for release in (lock.release_read, lock.release_write):
        with pytest.raises(RuntimeError, match="this process does not"):
            release()
    with lock.read_lock(), pytest.raises(RuntimeError):
        lock.release_write()
    with stays(lock.acquire_write), pytest.raises(RuntimeError):
        lock.release_write()


def test_with_statement_raises_when_its_timeout_ends(lock):
    with stays(lock.acquire_write):
        with pytest.raises(LockTimeout), lock.read_lock(0.01):
            pass
        with pytest.raises(LockTimeout), lock.write_lock(0):
            pass
        with pytest.raises(ValueError, match="timeout"):
            lock.acquire_read(False, 1)


def test_writer_that_waits_keeps_new_readers_out(lock):
    lock.acquire_read()

    def write(parent):
        lock.acquire_write()
        parent.say("in")
        parent.wait()

    writer = Partner(write)
    until(lambda: in_child(lock.acquire_read, False) is False)
    lock.release_read()
    assert writer.hear() == "in"
    writer.kill()


def test_readers_that_wait_come_before_the_next_writer(lock):
    """While two writers take turns without a pause, a reader gets the lock between them."""

    def write():
        while True:
            with lock.write_lock():
                pass

    with Child(write), Child(write):
        for _ in range(10):
            assert lock.acquire_read(timeout=LONG_S)
            lock.release_read()


def test_writer_that_gives_up_lets_readers_in(lock):
    lock.acquire_read()
    assert in_child(lock.acquire_write, True, 0.05) is False
    assert in_child(lock.acquire_read, True, LONG_S) is True
    lock.release_read()


def test_writer_that_is_killed_while_it_waits_keeps_readers_out_for_a_moment_only(lock):
    """A writer that is killed while it waits keeps readers out for a moment; then its reservation
    is cleared, so that later readers need not look at the clock."""
    lock.acquire_read()
    writer = Child(lock.acquire_write)
    until(lambda: lock.space._cells.words(lock._index)["reserved_until"])
    writer.kill()

    assert in_child(lock.acquire_read, True, LONG_S)
    assert lock.space._cells.words(lock._index)["reserved_until"] == 0
    lock.release_read()


def test_dead_readers_are_taken_off(lock):
    readers = [stays(lock.acquire_read) for _ in range(3)]
    assert lock.acquire_write(timeout=0.01) is False
    kill(*readers)

    assert lock.acquire_write(timeout=LONG_S)
    assert lock.orphan is None
    lock.release_write()


def test_dead_writer_is_told_until_another_writer_has_released(lock):
    child = stays(lock.acquire_write)
    child.kill()

    with lock.read_lock(LONG_S):
        assert lock.orphan.pid == child.pid
    with lock.write_lock(LONG_S):
        assert lock.orphan.pid == child.pid
    assert lock.orphan is None


def test_child_of_fork_does_not_hold_its_parents_rwlock(lock):
    def release():
        with pytest.raises(RuntimeError):
            lock.release_read()

    with lock.read_lock():
        in_child(release)
        assert lock.readers == 1


def test_pickle_of_a_lock_is_the_lock(lock):
    again = pickle.loads(pickle.dumps(lock))
    with lock.write_lock():
        assert again.has_writer
    assert again.key == "rw"


def test_closed_space_refuses_its_locks(map_name):
    with Sync(map_name) as space:
        lock = RWLock("rw", space=space)
    space.unlink()
    for use in (lock.acquire_read, lock.acquire_write, lock.release_read, lambda: lock.readers):
        with pytest.raises(MapClosed):
            use()
    assert "closed" in repr(lock)


def test_signal_handler_runs_while_a_writer_waits(lock):
    before = signal.signal(signal.SIGUSR1, lambda *_: lock.release_read())
    try:
        lock.acquire_read()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert lock.acquire_write(timeout=LONG_S)
        lock.release_write()
    finally:
        signal.signal(signal.SIGUSR1, before)


def read_and_write(gate, lock, shared, rounds, seed):
    """Read or write at random: a reader finds two equal numbers, and a writer adds one to both.
    Return how often this worker wrote."""
    gate.wait()
    rng = random.Random(seed)
    written = 0
    for _ in range(rounds):
        if rng.random() < 0.3:
            with lock.write_lock(LONG_S):
                shared["a"] = shared["a"] + 1
                shared["b"] = shared["b"] + 1
            written += 1
        else:
            with lock.read_lock(LONG_S):
                assert shared["a"] == shared["b"]
    return written


@pytest.mark.parametrize("method", METHODS)
def test_readers_see_what_writers_have_finished(lock, method, seed):
    with SharedDict(key=str, value=int) as shared:
        shared["a"] = shared["b"] = 0
        jobs = [(read_and_write, lock, shared, 200, seed + number) for number in range(4)]
        written = run_together(method, *jobs)

        assert shared["a"] == shared["b"] == sum(written)
    assert (lock.readers, lock.has_writer) == (0, False)


@pytest.mark.parametrize("rounds", [10, pytest.param(80, marks=pytest.mark.thorough)])
def test_counts_are_exact_after_a_storm_of_kills(space, lock, rounds, seed):
    """C1: while processes are killed at random, no process is stuck; after it, none of the dead
    holds the lock."""
    rng = random.Random(seed)

    def live(number):
        mine = RWLock("rw", space=Sync.open(space.name))
        rng = random.Random(number)
        while True:
            context = mine.write_lock if rng.random() < 0.5 else mine.read_lock
            with context(LONG_S):
                assert mine.readers <= 3
                assert not (mine.readers and mine.has_writer)

    children = [Child(live, number) for number in range(3)]
    for number in range(rounds):
        time.sleep(rng.random() * 0.02)
        victim = rng.randrange(len(children))
        assert children[victim].kill() == -signal.SIGKILL
        children[victim] = Child(live, 100 + number)
    kill(*children)
    assert lock.acquire_write(timeout=LONG_S)
    lock.release_write()
    assert (lock.readers, lock.has_writer, lock.orphan) == (0, False, None)
