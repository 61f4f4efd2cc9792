"""Barriers whose parties are processes, some of which die. That Barrier otherwise behaves like
threading's is what CPython's tests check (tests/conformance)."""

import os
import pickle
import signal
import threading
import time
from threading import BrokenBarrierError

import pytest
from support.children import Child, in_child
from support.waiting import LONG_S, until
from support.workers import METHODS, run_together

from shmrhash import Barrier, InvalidArgument, MapClosed, Sync


def until_waiting(barrier, count):
    until(lambda: barrier.n_waiting == count, lambda: f"{barrier.n_waiting} wait, not {count}")


def outcome(barrier, timeout=LONG_S):
    """Wait as a party; return its place, or "broken"."""
    try:
        return barrier.wait(timeout)
    except BrokenBarrierError:
        return "broken"


def waiting_child(barrier):
    """Return a child that waits as a party."""
    before = barrier.n_waiting
    child = Child(outcome, barrier)
    until_waiting(barrier, before + 1)
    return child


def together(method, barrier, parties):
    """Return the sorted outcomes of this many parties."""
    return sorted(run_together(method, *[(one_outcome, barrier)] * parties))


def one_outcome(_gate, barrier):
    return outcome(barrier)


def passes(_gate, barrier, times):
    return [barrier.wait(LONG_S) for _ in range(times)]


@pytest.mark.parametrize("method", METHODS)
def test_parties_meet_again_and_again(space, method):
    barrier = Barrier(3, timeout=LONG_S, key="b", space=space)

    rounds = zip(*run_together(method, *[(passes, barrier, 20)] * 3), strict=True)

    assert all(sorted(places) == [0, 1, 2] for places in rounds)
    assert barrier.n_waiting == 0


def test_party_that_dies_while_it_waits_breaks_the_barrier(space):
    """C2: the barrier breaks for the parties that wait, which notice the death themselves, and for
    parties that come later."""
    barrier = Barrier(3, key="b", space=space)
    living, dead = waiting_child(barrier), waiting_child(barrier)

    dead.kill()

    assert living.result() == "broken"
    assert barrier.broken
    assert outcome(barrier) == "broken"
    barrier.reset()
    assert not barrier.broken
    assert together("fork", barrier, 3) == [0, 1, 2]


def test_party_that_died_alone_is_noticed_by_later_parties(space):
    barrier = Barrier(3, key="b", space=space)
    waiting_child(barrier).kill()

    assert outcome(barrier) == "broken"


def test_party_that_dies_before_it_comes_is_only_missed(space):
    barrier = Barrier(2, key="b", space=space)
    assert in_child(lambda: barrier.n_waiting) == 0

    assert outcome(barrier, 0.1) == "broken"


def test_last_party_that_dies_in_the_action_breaks_the_barrier(space):
    barrier = Barrier(2, action=lambda: os._exit(9), key="b", space=space)
    living = waiting_child(barrier)
    last = Child(outcome, barrier)

    assert last.join() == 9
    assert living.result() == "broken"


def test_action_that_raises_breaks_the_barrier(space):
    def fail():
        raise ZeroDivisionError

    barrier = Barrier(2, fail, key="b", space=space)
    other = waiting_child(barrier)

    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    assert other.result() == "broken"


def test_party_comes_while_the_action_of_the_others_runs(space):
    """A party that comes while the action runs belongs to the next generation, and waits until that
    begins."""
    goes_on = threading.Event()
    barrier = Barrier(2, lambda: goes_on.wait(LONG_S), key="b", space=space)
    places = []
    threads = [threading.Thread(target=lambda: places.append(outcome(barrier))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert places == []
    goes_on.set()
    for thread in threads:
        thread.join()

    assert sorted(places) == [0, 0, 1, 1]


def test_waiters_of_a_reset_barrier_learn_it_however_late(space):
    """A waiter is stopped while the barrier is reset and used again; when it continues, it learns
    that it has not passed the barrier."""
    barrier = Barrier(2, key="b", space=space)
    late = waiting_child(barrier)
    os.kill(late.pid, signal.SIGSTOP)
    barrier.reset()
    assert together("thread", barrier, 2) == [0, 1]
    os.kill(late.pid, signal.SIGCONT)

    assert late.result() == "broken"
    assert not barrier.broken


def test_abort_and_timeouts_break_the_barrier(space):
    barrier = Barrier(2, key="b", space=space)
    other = waiting_child(barrier)
    barrier.abort()
    assert other.result() == "broken"
    barrier.reset()
    assert outcome(barrier, 0.01) == "broken"
    assert barrier.broken


def test_arguments_are_checked(space, map_name):
    for parties, error in ((0, ValueError), (1 << 16, ValueError), ("2", TypeError)):
        with pytest.raises(error):
            Barrier(parties, space=space)
    with pytest.raises(TypeError, match=r"name it: Barrier\(2, key='start'\)"):
        Barrier(2, "start", space=space)  # without a key no other process shares it
    barrier = Barrier(2, key="b", space=space)
    assert Barrier(2, key="b", space=space).parties == 2
    with pytest.raises(InvalidArgument, match="has 2 parties, not 3"):
        Barrier(3, key="b", space=space)
    assert pickle.loads(pickle.dumps(barrier)).key == "b"
    assert barrier.space is space
    assert repr(barrier).endswith(": waiters=0/2>")
    barrier.abort()
    assert repr(barrier).endswith(": broken>")
    with Sync(map_name + "-2") as other:
        closed = Barrier(2, key="b", space=other)
        other.unlink()
    with pytest.raises(MapClosed):
        closed.wait()
    assert "closed" in repr(closed)
