"""Semaphore, BoundedSemaphore and Event behave as threading's, count permits exactly, and survive
the death of a process that uses them."""

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

from shmrhash import BoundedSemaphore, Event, MapClosed, Semaphore, Sync

UNDO = pytest.mark.parametrize("undo", [True, False], ids=["undo", "counter"])


def sleeps(primitive):
    """Return whether a thread sleeps on the primitive's bell, or is about to."""
    return primitive.space._cells.words(primitive._index)["bell"] & 1


# ---- semaphores ----


@UNDO
def test_permits_are_taken_and_given(space, undo):
    semaphore = Semaphore(2, "s", space=space, undo=undo)
    assert semaphore.acquire()
    with semaphore:
        assert semaphore.get_value() == 0
        assert semaphore.locked()
        assert semaphore.acquire(False) is False
        assert semaphore.acquire(timeout=0.01) is False
    semaphore.release(3)

    assert semaphore.get_value() == 4
    assert in_child(semaphore.get_value) == 4


@UNDO
def test_wrong_arguments_are_refused(space, undo):
    semaphore = Semaphore(0, "s", space=space, undo=undo)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="n must be one or more"):
            semaphore.release(wrong)
    with pytest.raises(ValueError, match="too many"):
        semaphore.release(2**47)
    with pytest.raises(ValueError, match="timeout"):
        semaphore.acquire(False, 1)
    for value in (-1, 2**47):
        with pytest.raises(ValueError, match="initial value"):
            Semaphore(value, "t", space=space)
    assert semaphore.get_value() == 0


@UNDO
def test_bounded_semaphore_refuses_one_permit_more(space, undo):
    semaphore = BoundedSemaphore(2, "b", space=space, undo=undo)
    with pytest.raises(ValueError, match="too many"):
        semaphore.release()
    semaphore.acquire()
    with pytest.raises(ValueError, match="too many"):
        semaphore.release(2)
    semaphore.release()
    assert semaphore.get_value() == 2


@UNDO
def test_waiter_is_woken_by_a_permit(space, undo):
    semaphore = Semaphore(0, "s", space=space, undo=undo)
    waiters = [Child(semaphore.acquire) for _ in range(3)]
    until(lambda: sleeps(semaphore))
    semaphore.release(3)

    assert [waiter.result() for waiter in waiters] == [True] * 3


def test_permits_of_a_dead_process_come_back(space):
    semaphore = Semaphore(3, "s", space=space)

    def take_two():
        assert semaphore.acquire()
        assert semaphore.acquire()

    semaphore.acquire()
    child = stays(take_two)
    assert semaphore.acquire(False) is False
    child.kill()

    assert semaphore.acquire(timeout=LONG_S)
    assert semaphore.get_value() == 1
    semaphore.release(2)
    assert semaphore.get_value() == 3


def test_permits_of_a_dead_process_wake_a_sleeper(space):
    semaphore = Semaphore(1, "s", space=space)
    holder = stays(semaphore.acquire)
    waiter = Child(semaphore.acquire)
    until(lambda: sleeps(semaphore))
    holder.kill()

    assert waiter.result() is True


def test_permits_of_a_counter_do_not_come_back(space):
    semaphore = Semaphore(1, "s", space=space, undo=False)
    stays(semaphore.acquire).kill()

    assert semaphore.acquire(timeout=0.2) is False


def test_process_gives_back_only_what_it_has(space):
    """release() in a process without a permit adds one; the death of a process gives back exactly
    the permits that it took."""
    semaphore = Semaphore(2, "s", space=space)
    child = stays(semaphore.acquire)
    semaphore.release()  # this process has no permit, so this adds one
    assert semaphore.get_value() == 2
    child.kill()
    until(lambda: semaphore.space.check() and semaphore.get_value() == 3)


def test_child_of_fork_has_no_permit_of_its_parent(space):
    semaphore = Semaphore(1, "s", space=space)
    semaphore.acquire()
    in_child(lambda: semaphore.get_value())
    assert space.check()
    assert semaphore.get_value() == 0


def test_pickle_of_a_semaphore_is_the_semaphore(space):
    for semaphore in (
        Semaphore(2, "s", space=space),
        BoundedSemaphore(2, space=space),
        Semaphore(2, undo=False),
    ):
        again = pickle.loads(pickle.dumps(semaphore))
        assert semaphore.acquire()
        assert again.get_value() == 1
        assert (again.undo, again.key, type(again)) == (
            semaphore.undo,
            semaphore.key,
            type(semaphore),
        )


def take_and_give(gate, semaphore, inside, rounds):
    """Take a permit in each round, and return how many processes had one at the same time, which a
    second semaphore counts."""
    gate.wait()
    most = 0
    for _ in range(rounds):
        with semaphore:
            inside.release()
            most = max(most, inside.get_value())
            inside.acquire()
    return most


@pytest.mark.parametrize("method", METHODS)
@UNDO
def test_never_more_inside_than_permits(space, undo, method):
    semaphore = Semaphore(2, "s", space=space, undo=undo)
    inside = Semaphore(0, "inside", space=space, undo=False)
    most = run_together(method, *[(take_and_give, semaphore, inside, 300)] * 4)

    assert max(most) <= 2
    assert (semaphore.get_value(), inside.get_value()) == (2, 0)


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.thorough)])
def test_permits_are_exact_after_a_storm_of_kills(space, rounds, seed):
    """C1: each permit of a killed process comes back, exactly once."""
    semaphore = Semaphore(3, "storm", space=space)
    rng = random.Random(seed)

    def live():
        mine = Semaphore(3, "storm", space=Sync.open(space.name))
        while True:
            for _ in range(2):
                mine.acquire()
            mine.release(2)

    children = [Child(live) for _ in range(2)]
    for _ in range(rounds):
        time.sleep(rng.random() * 0.02)
        victim = rng.randrange(len(children))
        assert children[victim].kill() == -signal.SIGKILL
        children[victim] = Child(live)
    kill(*children)
    until(lambda: space.check() and semaphore.get_value() == 3)
    for _ in range(3):
        assert semaphore.acquire(timeout=LONG_S)
    assert semaphore.acquire(False) is False


# ---- events ----


def test_event_is_set_and_cleared(space):
    event = Event("e", space=space)
    assert not event.is_set()
    assert event.wait(0.01) is False
    assert event.wait(-1) is False
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait()
    assert in_child(event.wait)
    event.clear()
    event.clear()
    assert not in_child(event.is_set)


@pytest.mark.parametrize("clears", [False, True], ids=["stays", "cleared at once"])
def test_event_wakes_all_waiters(space, clears):
    event = Event("e", space=space)
    waiters = [Child(event.wait) for _ in range(3)]
    threads = []
    thread = threading.Thread(target=lambda: threads.append(event.wait()))
    thread.start()
    until(lambda: sleeps(event))
    time.sleep(0.1)  # most of the waiters sleep by now
    event.set()
    if clears:
        event.clear()
        event.set()
    thread.join(LONG_S)

    assert threads == [True]
    assert [waiter.result() for waiter in waiters] == [True] * 3


def test_event_that_is_cleared_at_once_has_come_for_a_sleeper(space):
    event = Event("e", space=space)
    waiter = Partner(lambda parent: parent.say() or event.wait())
    waiter.hear()
    until(lambda: sleeps(event))
    time.sleep(0.05)  # it has read the generation by now, and sleeps
    event.set()
    event.clear()

    assert waiter.result() is True


def test_waiter_hears_signals(space):
    event = Event("e", space=space)
    before = signal.signal(signal.SIGUSR1, lambda *_: event.set())
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert event.wait(LONG_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


def ping(gate, mine, theirs, rounds):
    gate.wait()
    for _ in range(rounds):
        assert mine.wait(LONG_S)
        mine.clear()
        theirs.set()


@pytest.mark.parametrize("method", METHODS)
def test_no_set_is_lost_between_two_events(space, method):
    one, two = Event("1", space=space), Event("2", space=space)
    one.set()
    run_together(method, (ping, one, two, 300), (ping, two, one, 300))

    assert one.is_set()


def test_closed_space_refuses_its_events_and_semaphores(map_name):
    with Sync(map_name) as space:
        event, semaphore = Event("e", space=space), Semaphore(1, "s", space=space)
    space.unlink()
    uses = (event.is_set, event.set, event.clear, event.wait)
    uses += (semaphore.acquire, semaphore.release, semaphore.get_value)
    for use in uses:
        with pytest.raises(MapClosed):
            use()
    assert "closed" in repr(event)
    assert "closed" in repr(semaphore)
