"""The commands locks, which shows the holders and waiters of the primitives of all spaces, and
unlock, which takes a lock away."""

import os
import threading

import pytest
from support.children import Partner, stays
from support.commandline import run
from support.waiting import LONG_S, until

from shmrhash import Barrier, Condition, Event, Lock, RLock, RWLock, Semaphore, Sync, locks


@pytest.fixture
def space(own_directory):
    made = Sync("cluster")
    yield made
    if not made.closed:
        made.check()
        made.close()


def listed(*arguments):
    return {found["key"]: found for found in run("-j", "locks", *arguments).json}


def test_locks_shows_the_holder_of_each_lock(space, hits):
    """The command locks shows the holder of each lock and permit; it skips a map that is no
    space."""
    Lock("free", space=space)
    child = stays(Lock("gpu0", space=space).acquire)
    Semaphore(3, "slots", space=space).acquire()
    Event("done", space=space).set()

    found = listed()
    lines = run("locks").lines
    everything = listed("cluster", "-a")
    child.kill()

    assert list(found) == ["gpu0", "slots"]
    assert found["gpu0"]["space"] == "cluster"
    assert found["gpu0"]["kind"] == "Lock"
    assert found["gpu0"]["token"] == 1
    assert [owner["pid"] for owner in found["gpu0"]["owners"]] == [child.pid]
    assert 0 <= found["gpu0"]["owners"][0]["seconds"] < LONG_S
    assert found["slots"]["value"] == 2
    assert [owner["pid"] for owner in found["slots"]["owners"]] == [os.getpid()]
    assert lines[0].split() == ["SPACE", "KEY", "KIND", "VALUE", "HELD", "BY", "WAITING"]
    assert f"({child.pid})" in lines[1]
    assert set(everything) == {"free", "gpu0", "slots", "done"}
    assert everything["done"]["value"] == 1


def test_locks_shows_the_waiters(space):
    lock, condition = Lock("gpu0", space=space), Condition(key="jobs", space=space)
    barrier, event = Barrier(2, key="start", space=space), Event("done", space=space)
    slots, table = Semaphore(0, "slots", space=space), RWLock("table", space=space)
    counter = Semaphore(0, "counter", space=space, undo=False)

    def wait(parent, function):
        parent.say()
        function()

    def wait_under_lock():
        with condition:
            condition.wait(LONG_S)

    lock.acquire()
    table.acquire_write()
    waits = {
        "gpu0": lock.acquire,
        "jobs": wait_under_lock,
        "start": barrier.wait,
        "done": event.wait,
        "slots": slots.acquire,
        "counter": counter.acquire,
        "table": table.acquire_read,
    }
    waiters = {key: Partner(wait, function) for key, function in waits.items()}
    until(lambda: sum(bool(one.waiters) for one in locks(space)) == len(waits))
    found = listed()
    for waiter in waiters.values():
        waiter.kill()
    lock.release()
    table.release_write()

    assert {key: [one["pid"] for one in found[key]["waiters"]] for key in waits} == {
        key: [waiter.pid] for key, waiter in waiters.items()
    }
    assert found["start"]["value"] == 2


def test_dead_waiter_is_not_shown(space):
    """A dead waiter is not shown, and another process that takes its context is not shown as
    waiting."""
    slots = Semaphore(0, "slots", space=space)
    waiter = Partner(lambda parent: parent.say() or slots.acquire())
    waiter.hear()
    until(lambda: locks(space)[0].waiters)
    waiter.kill()
    space.check()
    with stays(Lock("gpu0", space=space).acquire):
        assert [found.waiters for found in locks(space)] == [[], []]


def test_locks_of_one_key(space):
    Lock("gpu0", space=space)
    Lock(7, space=space)

    assert [found["key"] for found in run("-j", "locks", "cluster", "7").json] == [7]
    assert len(run("locks", "cluster", "gpu0").lines) == 2
    run("locks", "cluster", "gpu1", status=1)
    run("locks", "nothing", status=3)


def test_locks_of_a_map_are_refused(space, hits):
    result = run("locks", hits, status=2)

    assert "not a space of locks" in result.err


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_unlock_takes_a_lock_away_only_by_force(space, kind):
    """After a forced unlock the next owner is told that the previous one died, and the previous
    owner gets an error when it releases the lock."""
    lock = kind("gpu0", space=space)

    def hold(parent):
        lock.acquire()
        parent.say()
        parent.wait()
        with pytest.raises(RuntimeError):
            lock.release()

    with Partner(hold) as child:
        child.hear()
        asked = run("unlock", "cluster", "gpu0", status=1)
        assert f"({child.pid}) holds 'gpu0' and lives" in asked.err
        assert f"({child.pid})" in run("unlock", "cluster", "gpu0", "--force").out
        assert lock.acquire(timeout=LONG_S)
        assert lock.orphan.pid == child.pid
        child.tell()
        child.join()
        lock.release()


def test_unlock_wakes_a_waiter(space):
    lock = Lock("gpu0", space=space)
    lock.acquire()
    waiter = Partner(lambda parent: (parent.say(), lock.acquire(timeout=LONG_S))[1])
    waiter.hear()
    thread = threading.Thread(target=run, args=("unlock", "cluster", "gpu0", "--force"))
    thread.start()
    thread.join()

    assert waiter.result() is True


def test_unlock_of_a_free_lock(space):
    Lock("gpu0", space=space)
    Semaphore(1, "slots", space=space)

    assert run("unlock", "cluster", "gpu0").out == "nobody holds it\n"
    assert run("-j", "unlock", "cluster", "gpu0").json["free"]
    run("unlock", "cluster", "gpu1", status=3)
    run("unlock", "cluster", "slots", "--force", status=2)
    run("unlock", "nothing", "gpu0", status=3)
