"""For every primitive locks() shows which threads and tasks wait, and since when."""

import asyncio
import contextlib
import threading
import time

import pytest
from support.children import Partner
from support.waiting import LONG_S, Waiting, until

from shmrhash import Barrier, Condition, Event, Lock, RLock, RWLock, Semaphore, _core, locks

PRIMITIVES = ["Lock", "RLock", "reader", "writer", "Semaphore", "Event", "Condition", "Barrier"]
each_primitive = pytest.mark.parametrize("name", PRIMITIVES)


class Scene:
    """A primitive for which each thread and task has to wait, with methods to wait for it, and to
    end all of the waits."""

    def __init__(self, name, space):
        self.name = name
        if name in ("reader", "writer"):
            self.it = RWLock("it", space=space)
            self.it.acquire_write()
        elif name == "Condition":
            self.it = Condition(Lock("lock", space=space), "it")
        elif name == "Semaphore":
            self.it = Semaphore(0, "it", space=space)
        elif name == "Barrier":
            self.it = Barrier(9, key="it", space=space)
        elif name == "Event":
            self.it = Event("it", space=space)
        else:
            self.it = {"Lock": Lock, "RLock": RLock}[name]("it", space=space)
            self.it.acquire()

    def wait(self):
        it = self.it
        if self.name == "Condition":
            with it:
                it.wait()
        elif self.name in ("Event", "Barrier"):
            with contextlib.suppress(threading.BrokenBarrierError):
                it.wait()
        else:
            take = {"reader": "acquire_read", "writer": "acquire_write"}.get(self.name, "acquire")
            getattr(it, take)()
            self.give()

    async def wait_async(self):
        it = self.it
        if self.name == "Condition":
            async with it:
                await it.wait_async()
        elif self.name in ("Event", "Barrier"):
            with contextlib.suppress(threading.BrokenBarrierError):
                await it.wait_async()
        else:
            take = {"reader": "acquire_read", "writer": "acquire_write"}.get(self.name, "acquire")
            await getattr(it, f"{take}_async")()
            self.give()

    def give(self):
        give = {"reader": "release_read", "writer": "release_write"}.get(self.name, "release")
        getattr(self.it, give)()

    def let_go(self):
        if self.name == "Condition":
            with self.it:
                self.it.notify_all()
        elif self.name in ("Event", "Barrier"):
            getattr(self.it, "set" if self.name == "Event" else "abort")()
        elif self.name == "reader":
            self.it.release_write()
        else:
            self.give()


def waiters_of(space):
    (found,) = [info for info in locks(space) if info.key == "it"]
    return found.waiters


@each_primitive
def test_tasks_that_wait_are_shown_with_their_numbers(space, name):
    """Waiting tasks of this loop, and of a loop in another process, are shown until they have what
    they wait for, or are cancelled."""
    scene = Scene(name, space)
    before = time.monotonic()

    def wait_in_loop(parent):
        async def main():
            task = asyncio.create_task(scene.wait_async())
            parent.say()
            await task

        asyncio.run(main())

    async def main():
        tasks = [asyncio.create_task(scene.wait_async()) for _ in range(3)]
        while len(waiters_of(space)) < 4:
            await asyncio.sleep(0.001)
        waiters = waiters_of(space)
        tasks[1].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[1]
        while len(waiters_of(space)) == 4:
            await asyncio.sleep(0.001)
        after_one = len(waiters_of(space))
        scene.let_go()
        await asyncio.gather(tasks[0], tasks[2])
        return waiters, after_one

    with Partner(wait_in_loop) as child:
        child.hear()
        waiters, after_one = asyncio.run(asyncio.wait_for(main(), LONG_S))
        child.result()

    assert {waiter.pid for waiter in waiters} > {child.pid}
    assert len({(waiter.pid, waiter.thread) for waiter in waiters}) == 4
    assert all(waiter.thread > _core.TASK_NUMBERS for waiter in waiters)
    assert all(before - 0.01 <= waiter.since <= time.monotonic() for waiter in waiters)
    assert after_one == (0 if name == "Barrier" else 3)  # a cancelled party breaks the barrier
    until(lambda: not waiters_of(space))


@each_primitive
def test_threads_that_wait_are_shown_since_they_began(space, name):
    """The time since which a thread waits stays the same although the wait consists of many
    slices."""
    scene = Scene(name, space)
    before = time.monotonic()
    waiting = [Waiting(scene.wait) for _ in range(2)]
    until(lambda: len(waiters_of(space)) == 2)
    first = waiters_of(space)
    time.sleep(0.12)
    until(lambda: len(waiters_of(space)) == 2)
    later = waiters_of(space)
    if name == "Semaphore":
        scene.let_go()
    scene.let_go()
    for each in waiting:
        assert not isinstance(each.result(), Exception)

    assert {waiter.thread for waiter in first} == {each.thread.ident for each in waiting}
    assert sorted(first) == sorted(later)
    assert all(before - 0.01 <= waiter.since <= time.monotonic() for waiter in first)
    assert waiters_of(space) == []


def test_more_tasks_than_a_space_shows_leave_room_for_holders(space):
    """While 5,000 tasks wait, a process still gets the contexts for 1,000 locks."""
    event, permits = Event("it", space=space), Semaphore(0, "s", space=space)

    async def main():
        tasks = [asyncio.create_task(event.wait_async()) for _ in range(4_900)]
        tasks += [asyncio.create_task(permits.acquire_async()) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        shown = len(waiters_of(space))
        held = [Lock(number, space=space) for number in range(1_000)]
        assert all(lock.acquire(timeout=0) for lock in held)
        event.set()
        permits.release(100)
        await asyncio.gather(*tasks)
        return shown

    assert asyncio.run(asyncio.wait_for(main(), LONG_S)) == 64
    assert all(info.waiters == [] for info in locks(space))
