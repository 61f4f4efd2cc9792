"""Conditions on which processes wait, some of which die. That Condition otherwise behaves like
threading's is what CPython's tests check (tests/conformance)."""

import os
import pickle
import signal
import threading
import time

import pytest
from support.children import Child, Partner, in_child
from support.waiting import LONG_S, until
from support.workers import METHODS, run_together

from shmrhash import Condition, InvalidArgument, Lock, MapClosed, RLock, Sync


def until_waiting(condition, count):
    """Return when this many threads wait and have not been notified."""
    until(
        lambda: condition._waiting() == count, lambda: f"{condition._waiting()} wait, not {count}"
    )


def wait_in_child(condition, timeout=LONG_S):
    with condition:
        return condition.wait(timeout)


def waiting_child(condition):
    """Return a child that waits on the condition."""
    before = condition._waiting()
    child = Child(wait_in_child, condition)
    until_waiting(condition, before + 1)
    return child


def test_waiters_are_notified_in_the_order_in_which_they_came(space):
    condition = Condition(key="c", space=space)
    order = []

    def wait(number):
        with condition:
            assert condition.wait(LONG_S)
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    for count, thread in enumerate(threads, 1):
        thread.start()
        until_waiting(condition, count)
    for count in range(4):
        with condition:
            condition.notify()
        while len(order) <= count:
            time.sleep(0.001)
    for thread in threads:
        thread.join()

    assert order == [0, 1, 2, 3]


def test_as_many_processes_wake_as_are_notified(space):
    condition = Condition(key="c", space=space)
    children = [waiting_child(condition) for _ in range(3)]

    with condition:
        condition.notify(2)
    first, second = children[:2]
    assert first.result()
    assert second.result()
    assert condition._waiting() == 1
    assert not children[2].has_ended()
    with condition:
        condition.notify_all()
    assert children[2].result()


def test_dead_waiter_takes_no_notification(space):
    """C2: the notification goes to the next waiter, although the dead one has waited longer."""
    condition = Condition(key="c", space=space)
    dead, living = waiting_child(condition), waiting_child(condition)
    dead.kill()

    with condition:
        condition.notify()

    assert living.result() is True
    assert condition._waiting() == 0


def test_waiter_that_dies_after_it_was_notified_passes_the_notification_on(space):
    """C2: a notified waiter dies before it has the lock back; the other waiter notices that itself,
    and takes the notification."""
    condition = Condition(key="c", space=space)
    first, second = waiting_child(condition), waiting_child(condition)

    with condition:
        os.kill(first.pid, signal.SIGSTOP)
        condition.notify()
        assert condition._waiting() == 1
        first.kill()

    assert second.result() is True


def test_waiter_that_dies_before_a_notification_wakes_no_other(space):
    condition = Condition(key="c", space=space)
    dead = waiting_child(condition)
    dead.kill()
    with condition:
        assert condition.wait(0.2) is False
        condition.notify()

    assert condition._waiting() == 0


def test_notification_of_a_wait_whose_timeout_ends_is_not_lost(space):
    """A wait with a short timeout either returns true, or leaves the notification to the other
    waiter."""
    condition = Condition(key="c", space=space)
    told = []

    def wait(timeout):
        with condition:
            told.append(condition.wait(timeout))

    for delay in range(20):
        told.clear()
        threads = [
            threading.Thread(target=wait, args=(0.01,)),
            threading.Thread(target=wait, args=(LONG_S,)),
        ]
        for thread in threads:
            thread.start()
        # Either both wait, or the timeout of the first is already over.
        until(lambda: condition._waiting() + len(told) == 2)
        time.sleep(0.001 * delay)
        with condition:
            condition.notify()
        threads[0].join()
        if told == [True]:
            with condition:
                condition.notify()
        threads[1].join()
        assert True in told


def test_lock_is_released_as_often_as_it_was_taken(space):
    condition = Condition(key="c", space=space)
    with condition, condition:
        assert condition.wait(0.01) is False
        assert condition._lock._recursion_count() == 2
    assert not condition._lock.locked()


def test_condition_uses_the_lock_that_it_is_given(space):
    for lock in (Lock("l", space=space), RLock("r", space=space)):
        full, empty = Condition(lock), Condition(lock)
        assert full.space is space
        with full:
            assert lock.locked()
            empty.notify()
            assert empty.wait(0.01) is False
        assert not lock.locked()
        with pytest.raises(RuntimeError, match="un-acquired"):
            full.notify()
        with pytest.raises(RuntimeError, match="un-acquired"):
            full.wait()


def test_condition_is_refused_while_another_process_holds_its_lock(space):
    condition = Condition(Lock("l", space=space), "c")

    def hold(parent):
        with condition:
            parent.say("held")
            parent.wait()

    with Partner(hold) as child:
        assert child.hear() == "held"
        with pytest.raises(RuntimeError, match="un-acquired"):
            condition.notify()
        child.tell()


def test_signal_handler_that_raises_ends_the_wait_with_the_lock_taken(space):
    condition = Condition(key="c", space=space)

    def interrupt(parent):
        until_waiting(condition, 1)
        os.kill(os.getppid(), signal.SIGINT)

    with Partner(interrupt), condition:
        with pytest.raises(KeyboardInterrupt):
            condition.wait(LONG_S)
        assert condition._lock._recursion_count() == 1
    assert condition._waiting() == 0


def test_close_ends_a_wait(map_name):
    space = Sync(map_name)
    condition = Condition(key="c", space=space)
    raised = []

    def wait():
        try:
            with condition:
                condition.wait(LONG_S)
        except MapClosed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until_waiting(condition, 1)
    space.close()
    thread.join(LONG_S)

    assert len(raised) == 1
    with pytest.raises(MapClosed):
        condition._waiting()
    assert "closed" in repr(condition)
    space.unlink()


def test_other_primitive_of_the_key_is_refused(space):
    Lock("c", space=space)
    with pytest.raises(InvalidArgument, match="is a Lock, not a Condition"):
        Condition(key="c", space=space)


def notify(_gate, condition):
    until_waiting(condition, 1)
    with condition:
        condition.notify()


def be_notified(_gate, condition):
    return wait_in_child(condition)


def test_a_key_in_the_place_of_the_lock_is_refused_with_the_remedy(space):
    with pytest.raises(TypeError, match=r"name it: Condition\(key='jobs'\)"):
        Condition("jobs", space=space)


@pytest.mark.parametrize("method", METHODS)
def test_pickle_of_a_condition_is_the_condition(space, method):
    condition = Condition(key="c", space=space)
    assert pickle.loads(pickle.dumps(condition)).key == "c"

    _, told = run_together(method, (notify, condition), (be_notified, condition))

    assert told is True


def test_unnamed_condition_is_shared_by_fork():
    condition = Condition()
    child = waiting_child(condition)
    with condition:
        condition.notify()

    assert child.result() is True
    assert condition.key is None
    assert in_child(condition._waiting) == 0
