"""CPython's `test.test_asyncio.test_locks`, with the types under test in the place of asyncio's.

The tests find the types in the module's global `asyncio`. Here it has ours, whose methods for
coroutines get the names that they have there; and what the tests look at beside them: the state of
a lock and of a barrier in the words of asyncio's repr, `_value` of a semaphore, and `_waiters`, the
futures of the tasks of the loop that wait.

Of the 70 tests of Python 3.11, 57 run and pass. The other 13 are None below, each with the reason.
"""

import asyncio
import threading
from types import SimpleNamespace

from test.test_asyncio import test_locks as cpython

import shmrhash
from shmrhash import _awaiting
from shmrhash._sync import tasks


class Waiters:
    @property
    def _waiters(self):
        loop = asyncio.get_running_loop()
        sleepers = list(tasks._lines.get(loop, {}).get(self._place, ()))
        for hub in _awaiting._hubs.get(loop, {}).values():
            sleepers += hub._at_cells.get(self._index, {}).values()
        return [each._future for each in dict.fromkeys(sleepers) if each._future is not None]


def in_words(primitive, state):
    """Return the repr that asyncio's type would have."""
    return f"<{object.__repr__(primitive)[1:-1]} [{state}]>"


class Lock(Waiters, shmrhash.Lock):
    acquire = shmrhash.Lock.acquire_async

    def __repr__(self):
        return in_words(self, "locked" if self.locked() else "unlocked")


class Event(Waiters, shmrhash.Event):
    wait = shmrhash.Event.wait_async


class Condition(Waiters, shmrhash.Condition):
    wait = shmrhash.Condition.wait_async
    wait_for = shmrhash.Condition.wait_for_async

    def __new__(cls, lock=None):
        """asyncio's has a Lock, not an RLock: any task may release it for another."""
        return super().__new__(cls, Lock() if lock is None else lock)

    def _start(self, lock):
        super()._start(lock)
        self.acquire, self.locked = lock.acquire_async, lock.locked


class Semaphore(Waiters, shmrhash.Semaphore):
    acquire = shmrhash.Semaphore.acquire_async
    _value = property(shmrhash.Semaphore.get_value)


class BoundedSemaphore(Waiters, shmrhash.BoundedSemaphore):
    acquire = shmrhash.BoundedSemaphore.acquire_async


class Barrier(shmrhash.Barrier):
    wait = shmrhash.Barrier.wait_async

    async def reset(self):
        super().reset()

    async def abort(self):
        super().abort()

    def __repr__(self):
        state = "broken" if self.broken else "filling"
        return in_words(self, f"{state}, waiters:{self.n_waiting}/{self.parties}")


TYPES = [Lock, Event, Condition, Semaphore, BoundedSemaphore, Barrier]
NAMES = {each.__name__: each for each in TYPES}
NAMES["BrokenBarrierError"] = threading.BrokenBarrierError  # the class that our Barrier raises
cpython.asyncio = SimpleNamespace(**(vars(asyncio) | NAMES))


class LockTests(cpython.LockTests):
    # This test expects the message of the TypeError of asyncio's __init__.
    test_lock_doesnt_accept_loop_parameter = None


class EventTests(cpython.EventTests):
    # This test puts a mock into the list of waiters for the repr to count; ours have no list.
    test_repr = None


class ConditionTests(cpython.ConditionTests):
    # As in EventTests.
    test_repr = None

    # This test expects a lock to refuse a second loop; ours are for all loops of all processes.
    test_ambiguous_loops = None


class SemaphoreTests(cpython.SemaphoreTests):
    # As in EventTests.
    test_repr = None

    # This test expects release() to take the permit for the waiting task, which takes ours itself.
    test_acquire = None


class BarrierTests(getattr(cpython, "BarrierTests", object)):
    # This test expects a cancelled task to leave the barrier as if it had not come. Ours breaks, as
    # threading's does when a party gives up.
    test_filling_tasks_cancel_one = None

    # These expect a barrier that all have reached to stay closed until each of the parties has run
    # again, and reset() or abort() to break it for those that have not. Ours opens for all at once.
    test_repr = None
    test_draining_state = None
    test_reset_barrier_when_tasks_half_draining = None
    test_reset_barrier_when_tasks_half_draining_half_blocking = None
    test_reset_barrier_while_tasks_draining = None
    test_abort_barrier_when_tasks_half_draining_half_blocking = None
