"""Lock and RLock behave as threading's among threads and processes, also if their holder dies,
forks or is stopped."""

import os
import pickle
import random
import signal
import struct
import threading
import time

import pytest
from support.children import Child, Partner, in_child, kill, stays
from support.waiting import LONG_S, until
from support.workers import METHODS, run_together

from shmrhash import (
    DeadlockError,
    Lock,
    MapClosed,
    Orphan,
    RLock,
    SharedDict,
    Sync,
    TooManyProcesses,
)

KINDS = pytest.mark.parametrize("kind", [Lock, RLock])


@pytest.fixture
def lock(space):
    return Lock("lock", space=space)


def words_of(lock):
    return lock.space._cells.words(lock._index)


def in_thread(function, *arguments):
    """Call the function in a thread; return its result, or what it raised."""
    outcome = []

    def run():
        try:
            outcome.append(function(*arguments))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LONG_S)
    return outcome[0]


# ---- as threading's ----


@KINDS
def test_lock_is_held_until_it_is_released(space, kind):
    lock = kind("a", space=space)

    assert lock.acquire() is True
    assert lock.locked()
    assert in_thread(lock.acquire, False) is False
    assert in_thread(kind("a", space=space).acquire, True, 0.01) is False
    lock.release()

    assert not lock.locked()
    assert in_thread(lock.acquire) is True


@KINDS
def test_with_takes_and_releases(space, kind):
    lock = kind("a", space=space)
    with lock as entered:
        assert entered is True
        assert lock.locked()
    assert not lock.locked()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert not lock.locked()


@KINDS
def test_arguments_are_refused_as_by_threading(space, kind):
    lock = kind("a", space=space)
    for arguments in ((False, 1), (False, 0), (True, -2), (True, -0.5)):
        with pytest.raises(ValueError, match="timeout"):
            lock.acquire(*arguments)
    with pytest.raises(OverflowError):
        lock.acquire(timeout=threading.TIMEOUT_MAX * 2)
    assert lock.acquire(timeout=threading.TIMEOUT_MAX - 1)
    lock.release()
    assert lock.acquire(timeout=None)
    lock.release()


@KINDS
def test_release_by_a_process_that_does_not_hold_is_refused(space, kind):
    lock = kind("a", space=space)
    with pytest.raises(RuntimeError, match="nobody holds it"):
        lock.release()
    with stays(lock.acquire):
        with pytest.raises(RuntimeError, match="another process holds it"):
            lock.release()
        assert lock.locked()


def test_lock_may_be_released_by_another_thread(lock):
    lock.acquire()
    in_thread(lock.release)

    assert not lock.locked()


def test_rlock_is_taken_again_by_its_thread_only(space):
    lock = RLock("r", space=space)
    lock.acquire()
    assert lock.acquire(False)
    assert lock._recursion_count() == 2
    assert in_thread(lock.acquire, False) is False
    assert isinstance(in_thread(lock.release), RuntimeError)
    lock.release()
    assert in_thread(lock.acquire, False) is False
    lock.release()

    assert in_thread(lock.acquire, False) is True


def test_condition_of_threading_takes_an_rlock(space):
    condition = threading.Condition(RLock("r", space=space))
    came = []

    def wait():
        with condition, condition:
            came.append(condition.wait(LONG_S))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: condition._waiters)
    with condition:
        condition.notify()
    thread.join(LONG_S)

    assert came == [True]
    assert not condition._lock.locked()


def test_thread_that_would_wait_for_itself_is_told(lock):
    lock.acquire()
    with pytest.raises(DeadlockError):
        lock.acquire()
    assert lock.acquire(timeout=0.01) is False
    patient = Lock("lock", space=lock.space, check=False)
    threading.Timer(0.05, lock.release).start()

    assert patient.acquire()


def test_two_objects_of_one_key_are_one_lock(space):
    one, two = Lock(7, space=space), Lock(7, space=space)
    one.acquire()
    assert two.locked()
    two.release()
    assert not one.locked()
    assert Lock(b"7", space=space).acquire(False) is not False


@KINDS
def test_pickle_of_a_lock_is_the_lock(space, kind):
    lock = kind("p" * 100, space=space)
    again = pickle.loads(pickle.dumps(lock))
    lock.acquire()

    assert again.locked()
    assert again.space is space
    assert again.key == lock.key


def test_token_grows_with_each_owner(lock):
    with lock:
        first = lock.token
    in_child(lambda: lock.acquire() and lock.release())
    with lock:
        assert lock.token == first + 2


def test_owner_is_the_process_and_thread_that_holds_it(lock):
    assert lock.owner is None
    before = time.monotonic()
    with lock:
        owner = lock.owner
        assert (owner.pid, owner.thread) == (os.getpid(), threading.get_ident())
        assert before - 0.1 < owner.since <= time.monotonic()
    with stays(lock.acquire) as child:
        assert lock.owner.pid == child.pid


def test_closed_space_refuses_its_locks(map_name):
    with Sync(map_name) as space:
        lock = Lock("a", space=space)
        lock.acquire()
    space.unlink()
    for use in (lock.acquire, lock.release, lock.locked, lambda: lock.acquire(False)):
        with pytest.raises(MapClosed):
            use()
    assert "closed" in repr(lock)


def test_lock_that_is_held_when_its_space_is_closed_is_free_when_the_process_ends(space):
    def close_holding():
        mine = Sync(space.name)
        Lock("a", space=mine).acquire()
        mine.close()

    child = stays(close_holding)
    lock = Lock("a", space=space)
    assert lock.acquire(False) is False
    child.kill()

    assert lock.acquire(timeout=LONG_S)
    assert lock.orphan.pid == child.pid


def test_waiter_learns_that_its_space_is_closed(space):
    with stays(Lock("a", space=space).acquire):
        mine = Sync.open(space.name)
        lock = Lock("a", space=mine)
        threading.Timer(0.05, mine.close).start()
        with pytest.raises(MapClosed):
            lock.acquire()


# ---- processes ----


def count_under(gate, lock, shared, rounds):
    gate.wait()
    for _ in range(rounds):
        with lock:
            shared["n"] = shared["n"] + 1


@pytest.mark.parametrize("method", METHODS)
@KINDS
def test_no_two_are_inside_at_once(space, kind, method):
    """No addition to a counter is lost if it is read and written while the lock is held."""
    lock = kind("c", space=space)
    with SharedDict(key=str, value=int) as shared:
        shared["n"] = 0
        run_together(method, *[(count_under, lock, shared, 500)] * 4)

        assert shared["n"] == 2000
    assert words_of(lock)["grants"] == 2000
    assert words_of(lock)["state"] == 0
    assert words_of(lock)["reserved_until"] == 0


def test_child_of_fork_holds_nothing_of_its_parents(space):
    locks = [Lock("l", space=space), RLock("r", space=space)]

    def look():
        refused = 0
        for lock in locks:
            assert lock.locked()
            assert not lock.acquire(False)
            try:
                lock.release()
            except RuntimeError:
                refused += 1
        return refused, locks[1]._is_owned()

    for lock in locks:
        lock.acquire()
    assert in_child(look) == (2, False)
    for lock in locks:
        lock.release()


def test_signal_handler_runs_while_a_thread_waits(lock):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1) or lock.release())
    try:
        lock.acquire()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert Lock("lock", space=lock.space, check=False).acquire()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


def test_waiter_that_a_signal_handler_ends_leaves_the_lock_alone(lock):
    def interrupt(*_):
        raise ZeroDivisionError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with stays(lock.acquire) as child:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(ZeroDivisionError):
                lock.acquire()
            assert lock.owner.pid == child.pid
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert lock.acquire(timeout=LONG_S)


def test_waiter_forked_by_a_signal_handler_waits_in_both_processes(lock):
    """A signal handler forks in the middle of a wait, and the wait continues in the parent and in
    the child."""
    reader, writer = os.pipe()

    def fork(*_):
        child.append(os.fork())

    child = []
    holder = stays(lock.acquire)
    before = signal.signal(signal.SIGUSR1, fork)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        threading.Timer(0.3, holder.kill).start()
        taken = lock.acquire(timeout=LONG_S)
        lock.release()
        if child[0] == 0:
            os.write(writer, b"y" if taken else b"n")
            os._exit(0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken
    assert os.read(reader, 1) == b"y"
    os.waitpid(child[0], 0)


def test_4096_locks_at_once_and_no_more():
    with Sync(None, 5000) as space:
        locks = [Lock(number, space=space) for number in range(4096)]
        for lock in locks:
            assert lock.acquire(False)
        with pytest.raises(TooManyProcesses):
            Lock("one more", space=space).acquire()
        for lock in locks:
            lock.release()
        with Lock("one more", space=space):
            assert space.check()


# ---- deaths ----


@KINDS
def test_dead_owner_is_told_once(space, kind):
    lock = kind("a", space=space)
    told = []
    lock.on_orphan = lambda which, orphan: told.append((which, orphan))
    child = stays(lock.acquire)
    assert lock.acquire(timeout=0.01) is False
    child.kill()

    assert lock.acquire(timeout=LONG_S)
    assert lock.orphan.pid == child.pid
    assert isinstance(lock.orphan, Orphan)
    assert told == [(lock, lock.orphan)]
    lock.release()
    assert lock.orphan is None
    with lock:
        assert lock.orphan is None
    assert len(told) == 1


@KINDS
def test_dead_owner_is_found_without_waiting(space, kind):
    lock = kind("a", space=space)
    stays(lock.acquire).kill()

    assert not lock.locked()
    assert lock.acquire(False)
    assert lock.orphan


def test_owner_that_dies_before_it_releases_an_orphan_is_told_of_in_turn(lock):
    first = stays(lock.acquire)
    first.kill()
    second = stays(lock.acquire)
    second.kill()

    assert lock.acquire(timeout=LONG_S)
    assert lock.orphan.pid == second.pid
    lock.release()
    assert words_of(lock)["deaths"] == 2


def test_waiters_take_turns_after_the_owner_has_died(lock):
    """Each of several sleeping waiters gets the lock, although the dead owner's missing release
    woke none of them."""

    def take(parent):
        parent.say("waits")
        assert lock.acquire()
        lock.release()

    holder = stays(lock.acquire)
    waiters = [Partner(take) for _ in range(5)]
    for waiter in waiters:
        waiter.hear()
    until(lambda: words_of(lock)["state"] & 0x10000)
    began = time.monotonic()
    holder.kill()
    for waiter in waiters:
        waiter.result()
    assert time.monotonic() - began < LONG_S / 2


def test_killed_waiters_do_not_stop_the_others(lock):
    def take(parent):
        parent.say()
        lock.acquire()
        parent.wait()

    lock.acquire()
    doomed = [Partner(take) for _ in range(4)]
    survivor = Partner(take)
    for one in (*doomed, survivor):
        one.hear()
    until(lambda: words_of(lock)["state"] & 0x10000)
    kill(*doomed)
    lock.release()
    until(lambda: lock.owner is not None and lock.owner.pid == survivor.pid)
    survivor.kill()
    assert lock.acquire(timeout=LONG_S)
    lock.release()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_waiter_that_is_stopped_or_killed_reserves_the_lock_for_a_moment_only(lock, number):
    """A stopped or killed waiter keeps others out of the lock for a moment; then its reservation is
    cleared, and the lock is as fast as before."""
    lock.acquire()
    waiter = Partner(lambda parent: parent.say() or lock.acquire())
    waiter.hear()
    until(lambda: words_of(lock)["reserved_until"])
    os.kill(waiter.pid, number)
    lock.release()

    until(lambda: lock.acquire(False))  # tries only: a waiter would reserve the lock, too
    assert words_of(lock)["reserved_until"] == 0
    lock.release()
    waiter.kill()


def enter_and_leave(lock, file, pid):
    """Take one turn in the ledger of a storm, a file with three numbers (pid inside, sum, copy of
    the sum) that only the lock protects."""
    inside, count, copy = struct.unpack("<QQQ", os.pread(file, 24, 0))
    orphaned = lock.orphan is not None
    assert inside == 0 or orphaned, f"{inside} is inside, and its death is not told"
    assert count == copy or orphaned
    os.pwrite(file, struct.pack("<QQQ", pid, count + 1, copy), 0)
    os.pwrite(file, struct.pack("<Q", count + 1), 16)
    os.pwrite(file, struct.pack("<Q", 0), 0)
    return inside


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.thorough)])
@KINDS
def test_storm_of_kills(space, kind, rounds, seed, tmp_path):
    """C1: while processes are killed at random, no two hold the lock at the same time, none is
    stuck, and a process that finds the ledger half written has been told of a death."""
    lock = kind("storm", space=space)
    path = tmp_path / "ledger"
    path.write_bytes(bytes(24))
    rng = random.Random(seed)

    def live():
        file = os.open(path, os.O_RDWR)
        mine = kind("storm", space=Sync.open(space.name))
        while True:
            with mine:
                enter_and_leave(mine, file, os.getpid())

    children = [Child(live) for _ in range(3)]
    for _ in range(rounds):
        time.sleep(rng.random() * 0.02)
        victim = rng.randrange(len(children))
        assert children[victim].kill() == -signal.SIGKILL
        children[victim] = Child(live)
        count = words_of(lock)["grants"]
        until(lambda count=count: words_of(lock)["grants"] > count)
    for child in children:
        if child.kill() != -signal.SIGKILL:
            child.result()
    assert lock.acquire(timeout=LONG_S)
    lock.release()
    assert words_of(lock)["state"] == 0
