"""Threads of one process share lock primitives: their cells, the waits that are shown, circles.

As in test_threads_of_one_process.py: each test has an oracle, the threads make a fixed number of
steps, and a Python without the GIL finds more.
"""

import asyncio
import contextlib
import os
import pickle
import threading
from collections import deque
from itertools import chain

import pytest
from support.waiting import LONG_S
from support.workers import THREADS, all_together

from shmrhash import (
    Condition,
    DeadlockError,
    Event,
    Lock,
    MapClosed,
    RLock,
    Semaphore,
    Sync,
    _core,
    locks,
)

STEPS = 200
SHOWN_MAX = 64


@pytest.fixture(params=[1, pytest.param(15, marks=pytest.mark.thorough)])
def steps(request):
    return STEPS * request.param


# ---- primitives without a key ----


class Living:
    """Which cells the primitives without a key of all threads are in: a cell has one of them."""

    def __init__(self, space):
        self.space = space
        self.names = {}

    def make_and_drop(self, number, steps, kept=3):
        """One thread's primitives, of which it has a few at a time; some are dropped while they
        are held."""
        made = deque()
        for step in range(steps):
            name = number, step
            one = Semaphore(2, space=self.space) if step % 3 == 0 else Lock(space=self.space)
            assert self.names.setdefault(one._index, name) == name
            assert one.acquire(False)
            made.append(one)
            if len(made) > kept:
                oldest = made.popleft()
                if step % 2:
                    oldest.release()
                assert self.names.pop(oldest._index) == (number, step - kept)
        for one in made:
            del self.names[one._index]


def test_each_primitive_without_a_key_has_a_cell_of_its_own(space, steps):
    """C2: each cell that a thread gives back is used again by one thread; the contexts of
    primitives that were held when they ended come back, too."""
    living = Living(space)

    all_together(lambda number: living.make_and_drop(number, steps))

    assert living.names == {}
    assert space.cells() == []
    assert len(space.handle) <= THREADS * 5
    assert space.handle.info()["contexts"] <= THREADS * 6


def test_a_fork_beside_primitives_without_a_key(space, steps):
    """C2, C3: the child uses no cell that a thread of its parent has, and these threads go on."""
    living = Living(space)
    forks = max(2, steps // 100)

    def work(number):
        if number != 0:
            living.make_and_drop(number, steps // 2)
            return []
        statuses = []
        for _ in range(forks):
            pid = os.fork()
            if pid == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    one = Lock(space=space)
                    status = 2 if one._index in living.names else 0 if one.acquire(False) else 3
                os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return statuses

    assert all_together(work)[0] == [0] * forks
    assert living.names == {}


# ---- the end of a space ----


def test_closing_a_space_beside_its_use_ends_in_map_closed(space, steps):
    """C2, C3: each wait and operation of the other threads returns, or raises MapClosed. Each grant
    of the lock went to a thread, and at the end lock and permits are free."""
    lock, permits = Lock("lock", space=space), Semaphore(2, "two", space=space)
    taken = 0
    for round_number in range(max(3, steps // 60)):
        handle = Sync.open(space.name)
        started = threading.Barrier(THREADS + 1)
        work = [close_it, take_lock, take_permit, wait_in_vain, make_without_key]
        arguments = handle, started, round_number, lock, permits
        taken += sum(all_together(lambda number: work[number](*arguments), count=THREADS + 1))  # noqa: B023
        assert handle.closed

    assert lock.token == taken
    assert not lock.locked()
    assert permits.get_value() == 2


def close_it(handle, started, round_number, lock, permits):
    started.wait(LONG_S)
    for _ in range(20 * round_number):
        permits.get_value()
    handle.close()
    return 0


def take_lock(handle, started, _round_number, lock, _permits):
    mine, taken = Lock("lock", space=handle), 0
    started.wait(LONG_S)
    with contextlib.suppress(MapClosed):
        for _ in range(20 * STEPS):
            if mine.acquire(timeout=0.1):
                taken += 1
                try:
                    mine.release()
                except MapClosed:
                    lock.release()
                    raise
    return taken


def take_permit(handle, started, _round_number, _lock, permits):
    mine = Semaphore(2, "two", space=handle)
    started.wait(LONG_S)
    with contextlib.suppress(MapClosed):
        for _ in range(20 * STEPS):
            assert mine.acquire()
            try:
                mine.release()
            except MapClosed:
                permits.release()
                raise
    return 0


def wait_in_vain(handle, started, _round_number, _lock, _permits):
    event, condition = Event("never", space=handle), Condition(key="never told", space=handle)
    none = Semaphore(0, "none", space=handle)
    started.wait(LONG_S)
    with contextlib.suppress(MapClosed):
        for _ in range(20 * STEPS):
            assert not event.wait(0.001)
            assert not none.acquire(timeout=0.001)
            with condition:
                assert not condition.wait(0.001)
    return 0


def make_without_key(handle, started, _round_number, _lock, _permits):
    started.wait(LONG_S)
    with contextlib.suppress(MapClosed):
        for step in range(20 * STEPS):
            one = Lock(space=handle)
            assert one.acquire(False)
            if step % 50 == 0:
                pickle.dumps(one)
    return 0


# ---- threads and tasks at one object ----


def test_an_rlock_is_released_by_its_thread_alone(space, steps):
    """C2: while threads take one RLock several times, a release by a thread that does not hold it
    is refused, and the depth is right."""
    again = RLock("again", space=space)
    count = [0]

    def work(number):
        for step in range(steps // 2):
            if number % 2:
                with pytest.raises(RuntimeError, match="cannot release"):
                    again.release()
                assert not again._is_owned()
            depth = 1 + step % 3
            for _ in range(depth):
                assert again.acquire()
            assert again._recursion_count() == depth
            count[0] += 1
            for _ in range(depth):
                again.release()

    all_together(work)

    assert count == [THREADS * (steps // 2)]
    assert not again.locked()
    assert again.token == count[0]


def test_tasks_of_several_loops_take_one_lock(space, steps):
    """C2: each thread has one loop after the other; no task of any of them loses an addition."""
    lock, again = Lock("lock", space=space), RLock("again", space=space)
    permits = Semaphore(1, "one", space=space)
    counts = [0, 0, 0]
    rounds = max(1, steps // 100)

    async def add(at, primitive):
        for _ in range(rounds):
            async with primitive:
                before = counts[at]
                await asyncio.sleep(0)
                counts[at] = before + 1

    async def main():
        each = (add(at, one) for at, one in enumerate((lock, again, permits)) for _ in range(2))
        await asyncio.wait_for(asyncio.gather(*each), LONG_S)

    def work(number):
        for _ in range(3):
            asyncio.run(main())

    all_together(work)

    assert counts == [THREADS * 3 * 2 * rounds] * 3
    assert all(info.waiters == [] and info.owners == [] for info in locks(space))


def test_waits_that_are_shown_are_counted_exactly(space, steps):
    """After threads have begun and ended any waits, the space can show as many waits as before."""
    lock, event = Lock("lock", space=space), Event("event", space=space)

    def work(number):
        for _ in range(3 * steps):
            lock._shown_wait(-1, True).end()

    async def main():
        tasks = [asyncio.create_task(event.wait_async()) for _ in range(SHOWN_MAX + 10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        shown = sum(len(info.waiters) for info in locks(space))
        event.set()
        await asyncio.gather(*tasks)
        return shown

    all_together(work)

    assert asyncio.run(asyncio.wait_for(main(), LONG_S)) == SHOWN_MAX
    assert all(info.waiters == [] for info in locks(space))


def test_a_circle_is_told_once_while_spaces_come_and_go(space, map_name, steps):
    """Two threads wait for each other's locks in two spaces; others open and close a third one, and
    list what they see."""
    with Sync(f"{map_name}-other") as other:
        one, two = Lock("one", space=space), Lock("two", space=other)
        patience_ns = _core.set_circle_patience(2_000_000)
        rounds = max(2, steps // 100)
        both, done = threading.Barrier(2), threading.Event()

        def take_both(first, second):
            told = []
            for _ in range(rounds):
                with first:
                    both.wait(LONG_S)
                    try:
                        with second:
                            pass
                    except DeadlockError as error:
                        told.append(str(error))
                both.wait(LONG_S)
            done.set()
            return told

        def open_and_close():
            while not done.is_set():
                with Sync(f"{map_name}-third") as third, Lock("three", space=third):
                    assert len(locks(third)) == 1
            return []

        work = [lambda: take_both(one, two), lambda: take_both(two, one), open_and_close]
        try:
            told = list(chain(*all_together(lambda number: work[number](), count=3)))
        finally:
            _core.set_circle_patience(patience_ns)

        assert len(told) == rounds
        assert all("a circle of 2" in text for text in told)
        other.check()
        other.unlink()
    Sync.open(f"{map_name}-third").unlink()
