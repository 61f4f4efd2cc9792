"""A Condition over a lock of the user's own class calls the same methods of the lock as
threading.Condition does."""

import threading

import pytest
from support.waiting import LONG_S, until

from shmrhash import Condition, Lock, RLock


def note(calls, name, arguments=()):
    """Note the call, unless it only tries whether the lock is free. (By such a try a condition
    finds out whether a lock of an unknown class is held.)"""
    if arguments != (False,):
        calls.append(name)


def noting(base, names):
    """Return a subclass of a lock whose methods of these names append their calls to the lock's
    `calls`."""

    def override(name):
        def method(self, *arguments):
            note(self.calls, name, arguments)
            return getattr(base, name)(self, *arguments)

        return method

    return type(f"Noting{base.__name__}", (base,), {name: override(name) for name in names})


class Own:
    """A lock of the user's: one of threading's inside, and no more methods than a Condition
    needs."""

    def __init__(self, calls):
        self.calls = calls
        self.lock = threading.Lock()

    def acquire(self, *arguments):
        note(self.calls, "acquire", arguments)
        return self.lock.acquire(*arguments)

    def release(self):
        note(self.calls, "release")
        self.lock.release()


class OwnEntered(Own):
    """A lock of the user's whose __enter__() returns something else, and whose __exit__() swallows
    an exception."""

    def __enter__(self):
        note(self.calls, "__enter__")
        self.lock.acquire()
        return "entered"

    def __exit__(self, kind, error, traceback):
        note(self.calls, f"__exit__ {kind and kind.__name__}")
        self.lock.release()
        return kind is ZeroDivisionError


class Refusing(RLock):
    """A lock whose __enter__() raises."""

    def __enter__(self):
        raise PermissionError("closed on Sundays")


def lock_of(kind, space):
    if issubclass(kind, Own):
        return kind([])
    lock = kind("lock", space=space)
    lock.calls = []
    return lock


def use(condition, calls):
    """Use the condition in every way in which it uses its lock; return what was seen, and the calls
    that the lock got."""
    seen = []

    def attempt(what):
        try:
            seen.append(what())
        except Exception as error:
            seen.append((type(error), str(error)))

    def wait_in_with():
        with condition as entered:
            seen.append(entered)
            seen.append(condition.wait(0.001))
            seen.append(condition.notify())
        return "left"

    def raise_in_with():
        with condition:
            raise ZeroDivisionError
        return "swallowed"

    def take_and_give():
        condition.acquire()
        condition.notify_all()
        condition.release()

    for what in (wait_in_with, raise_in_with, take_and_give):
        attempt(what)
    return seen, calls


OWN_LOCKS = {
    "Own": Own,
    "OwnEntered": OwnEntered,
    "Refusing": Refusing,
    "plain subclass": type("Plain", (RLock,), {}),
    **{
        f"{base.__name__} with {' and '.join(names)}": noting(base, names)
        for base in (Lock, RLock)
        for names in (
            ["__enter__", "__exit__"],
            ["__enter__"],
            ["__exit__"],
            ["acquire", "release"],
        )
    },
}


@pytest.mark.parametrize("name", OWN_LOCKS)
def test_condition_calls_an_own_lock_as_threadings_does(space, name):
    kind = OWN_LOCKS[name]

    def run(condition_type, **more):
        lock = lock_of(kind, space)
        return use(condition_type(lock, **more), lock.calls)

    seen, calls = run(Condition, key="c", space=space)
    expected, expected_calls = run(threading.Condition)

    assert seen == expected
    assert calls == expected_calls


def test_condition_of_an_own_lock_wakes_its_waiter(space):
    lock = OwnEntered([])
    condition = Condition(lock, key="c", space=space)
    told = []

    def wait():
        with condition:
            told.append(condition.wait(LONG_S))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: condition._waiting() == 1)
    with condition:
        condition.notify()
    thread.join(LONG_S)

    assert told == [True]
    assert not lock.lock.locked()
