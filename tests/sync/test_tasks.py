"""Lock primitives in asyncio: tasks exclude each other, take turns, and never stop their loop."""

import asyncio
import contextlib
import os
import random
import threading
import time

import pytest
from support.children import Child, Partner, stays
from support.waiting import LONG_S, Waiting
from support.workers import run_together

import shmrhash
from shmrhash import (
    Barrier,
    BoundedSemaphore,
    Condition,
    DeadlockError,
    Event,
    Leader,
    Lock,
    LockTimeout,
    MapClosed,
    Once,
    RLock,
    RWLock,
    Semaphore,
    Sync,
)
from shmrhash._sync import tasks

LOCKS = pytest.mark.parametrize("kind", [Lock, RLock])


@pytest.fixture
def only_told(monkeypatch):
    """Keep waiting tasks from looking by themselves, so that only a change of the cell can wake
    them."""
    monkeypatch.setattr(tasks, "_sooner", lambda _moment, deadline: deadline)


async def turns(times=1):
    for _ in range(times):
        await asyncio.sleep(0)


def in_time(coroutine):
    """Run a coroutine in a loop of its own; a wait that never ends fails the test."""

    async def main():
        return await asyncio.wait_for(coroutine, LONG_S)

    return asyncio.run(main())


# ---- exclusion and turns ----


@LOCKS
def test_tasks_of_one_thread_exclude_each_other_in_the_order_in_which_they_came(space, kind):
    lock = kind("a", space=space)
    order = []

    async def work(number):
        for _ in range(4):
            async with lock:
                order.append(number)
                await turns(3)
                assert order[-1] == number

    async def main():
        await asyncio.gather(*(work(number) for number in range(5)))

    in_time(main())
    assert order == list(range(5)) * 4
    assert not lock.locked()


def test_a_task_has_an_rlock_and_not_its_thread(space):
    lock = RLock("r", space=space)

    async def another():
        assert not await lock.acquire_async(timeout=0)
        assert not lock.acquire(False)
        with pytest.raises(RuntimeError):
            lock.release()
        with pytest.raises(DeadlockError, match="the loop would stand still"):
            lock.acquire()

    async def main():
        async with lock:
            assert await lock.acquire_async()
            with lock:  # a block without async in the same task has the same owner
                assert lock._recursion_count() == 3
            lock.release()
            await asyncio.create_task(another())
            assert lock._recursion_count() == 1
        assert not lock.locked()
        lock.acquire()  # now the thread is the owner, and no task is
        assert not await asyncio.create_task(lock.acquire_async(0.01))
        lock.release()

    in_time(main())


def test_a_task_that_would_wait_for_itself_is_told(space):
    lock = Lock("a", space=space)

    async def main():
        async with lock:
            with pytest.raises(DeadlockError, match="this task"):
                await lock.acquire_async()
            waiting = asyncio.create_task(lock.acquire_async())
            await turns(2)
            with pytest.raises(DeadlockError):  # also if another task is before it in the line
                await lock.acquire_async()
            with pytest.raises(DeadlockError):  # waiting in the thread would stop the loop
                await asyncio.create_task(asyncio.sleep(0, lock.acquire()))
            assert not await lock.acquire_async(timeout=0.01)
        assert await waiting
        lock.release()

    in_time(main())


def test_readers_come_in_together_and_a_writer_alone(space):
    lock = RWLock("rw", space=space)
    inside = []

    async def read():
        async with lock.read_lock() as entered:
            assert entered is lock
            inside.append("r")
            assert "w" not in inside
            await turns(3)
            inside.remove("r")

    async def write():
        async with lock.write_lock():
            assert not inside
            inside.append("w")
            await turns(3)
            inside.remove("w")

    async def main():
        await asyncio.gather(*(each() for each in [read, read, write, read, write, write, read]))
        async with lock.read_lock(), lock.read_lock():
            assert lock.readers == 2
            with pytest.raises(LockTimeout):
                async with lock.write_lock(timeout=0.01):
                    pass
            assert not await lock.acquire_write_async(timeout=0)

    in_time(main())
    with lock.write_lock(timeout=0):
        pass


@pytest.mark.parametrize("kind", [Semaphore, BoundedSemaphore])
def test_permits_are_counted(space, kind):
    permits = kind(3, "s", space=space)
    inside = 0

    async def work():
        nonlocal inside
        for _ in range(3):
            async with permits:
                inside += 1
                assert inside <= 3
                await turns(2)
                inside -= 1

    async def main():
        await asyncio.gather(*(work() for _ in range(8)))
        assert not await kind(0, "none", space=space).acquire_async(timeout=0.01)

    in_time(main())
    assert permits.get_value() == 3


def test_once_and_leader(space):
    once, leader = Once("o", space=space), Leader("l", space=space, lease=LONG_S)
    ran = []

    @once
    async def work(number):
        await turns(2)
        ran.append(number)
        return number

    async def lead():
        async with leader:
            await turns()
            return leader.check()

    async def main():
        with pytest.raises(ZeroDivisionError):
            await once.run_async(lambda: 1 / 0)
        found = await asyncio.gather(*(work(number) for number in range(3)))
        assert found == [0, None, None]
        assert await lead() == 1
        assert await Leader("l", space=space).acquire_async(timeout=0)
        assert not await leader.acquire_async(timeout=0.01)

    in_time(main())
    assert ran == [0]


# ---- told by others ----


def test_task_wakes_when_another_thread_changes_the_cell(space, only_told):
    lock, permits = Lock("l", space=space), Semaphore(0, "s", space=space)
    rw, event = RWLock("rw", space=space), Event("e", space=space)
    condition, barrier = Condition(Lock("c", space=space), "cc"), Barrier(2, key="b", space=space)

    async def notified():
        async with condition:
            return await condition.wait_async()

    def notify():
        with condition:
            condition.notify()

    async def one(start, change):
        waiting = asyncio.create_task(start())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        changing = Waiting(change)
        await waiting
        assert not isinstance(changing.result(), Exception)

    async def main():
        lock.acquire()
        await one(lock.acquire_async, lock.release)
        rw.acquire_read()
        await one(rw.acquire_write_async, rw.release_read)
        await one(rw.acquire_read_async, rw.release_write)
        await one(permits.acquire_async, permits.release)
        await one(event.wait_async, event.set)
        await one(notified, notify)
        await one(barrier.wait_async, barrier.wait)

    in_time(main())


def test_task_wakes_when_another_process_changes_the_cell(space, only_told):
    lock = Lock("l", space=space)
    before = shmrhash._core.set_wait_slice(10**9 * LONG_S * 2)

    def hold(parent):
        with lock:
            parent.say("held")
            parent.wait()
        parent.wait()

    async def main(child):
        waiting = asyncio.create_task(lock.acquire_async())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        child.tell()
        assert await waiting
        lock.release()

    try:
        with Partner(hold) as child:
            assert child.hear() == "held"
            in_time(main(child))
    finally:
        shmrhash._core.set_wait_slice(before)


@LOCKS
def test_the_lock_of_a_killed_process_is_taken_and_its_death_told_once(space, kind):
    lock = kind("l", space=space)
    told = []
    mine = kind("l", space=space, on_orphan=lambda *what: told.append(what))

    async def main(child):
        waiting = [asyncio.create_task(mine.acquire_async()) for _ in range(2)]
        await asyncio.sleep(0.02)
        child.kill()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert mine.orphan.pid == child.pid
        assert [orphan.pid for _, orphan in told] == [child.pid]
        waiting[1].cancel()
        await asyncio.wait(waiting)

    with stays(lock.acquire) as child:
        in_time(main(child))
    assert len(told) == 1


def test_task_gets_a_killed_processs_permit_and_learns_of_a_broken_barrier(space):
    permits, barrier = Semaphore(1, "s", space=space), Barrier(3, key="b", space=space)

    async def main(children):
        waiting = asyncio.create_task(permits.acquire_async())
        party = asyncio.create_task(barrier.wait_async())
        while barrier.n_waiting < 2:
            await asyncio.sleep(0.001)
        for child in children:
            child.kill()
        assert await waiting
        with pytest.raises(threading.BrokenBarrierError):
            await party

    with stays(permits.acquire) as first, Child(barrier.wait) as second:
        in_time(main([first, second]))


# ---- cancelling ----


def test_a_cancelled_waiter_passes_its_wake_up_on(space, only_told):
    lock, permits = Lock("l", space=space), Semaphore(0, "s", space=space)

    async def main():
        await lock.acquire_async()
        waiting = [asyncio.create_task(lock.acquire_async()) for _ in range(3)]
        await turns(2)
        lock.release()
        waiting[0].cancel()  # the release has woken it, but it has not run
        assert await waiting[1]
        lock.release()
        assert await waiting[2]
        waiting = [asyncio.create_task(permits.acquire_async()) for _ in range(3)]
        await turns(2)
        permits.release()
        waiting[0].cancel()
        waiting[1].cancel()
        assert await waiting[2]

    in_time(main())


@LOCKS
def test_a_cancelled_waiter_does_not_reserve_the_lock_any_more(space, kind):
    lock = kind("l", space=space)

    async def main():
        await lock.acquire_async()
        waiting = asyncio.create_task(lock.acquire_async())
        # Until the waiter has waited so long that it reserves the lock.
        while not space._cells.words(lock._index)["reserved_until"]:
            await asyncio.sleep(0.001)
        later = asyncio.create_task(lock.acquire_async())
        waiting.cancel()
        lock.release()
        await turns()
        assert later.done()
        assert await later
        assert waiting.cancelled()

    in_time(main())


def test_a_cancelled_waiter_of_a_condition_passes_its_notification_on(space, only_told):
    condition = Condition(key="c", space=space)

    async def wait():
        async with condition:
            return await condition.wait_async()

    async def main():
        waiting = [asyncio.create_task(wait()) for _ in range(2)]
        await turns(2)
        async with condition:
            condition.notify()
            await turns(3)  # the notified task now waits for the lock
            waiting[0].cancel()
            await turns(3)
        assert await waiting[1]
        assert waiting[0].cancelled()
        assert not condition._lock.locked()

    in_time(main())


def test_waits_that_are_cancelled_at_random_leave_nothing_held(space, seed):
    """Holders count themselves, which would show two at the same time. At the end nothing is held,
    and no task is in a line."""
    rng = random.Random(seed)
    lock, again = Lock("l", space=space), RLock("r", space=space)
    permits, rw = Semaphore(2, "s", space=space), RWLock("rw", space=space)
    condition = Condition(Lock("c", space=space), "cc")
    inside = dict.fromkeys("lrsw", 0)
    done = 0

    @contextlib.contextmanager
    def counted(what, most):
        inside[what] += 1
        assert inside[what] <= most
        try:
            yield
        finally:
            inside[what] -= 1

    async def work():
        nonlocal done
        async with lock:
            with counted("l", 1):
                await turns(rng.randrange(3))
        async with again, again:
            with counted("r", 1):
                await turns(rng.randrange(3))
        async with permits:
            with counted("s", 2):
                await turns(rng.randrange(3))
        async with rw.write_lock() if rng.random() < 0.5 else rw.read_lock():
            await turns(rng.randrange(3))
        async with condition:
            await condition.wait_async(timeout=rng.random() / 200)
            condition.notify()
        done += 1

    async def guarded():
        task = asyncio.create_task(work())
        if rng.random() < 0.7:
            await turns(rng.randrange(40))
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def main():
        for _ in range(12):
            await asyncio.gather(*(guarded() for _ in range(12)))

    in_time(main())
    assert done > 0
    assert not lock.locked()
    assert not again.locked()
    assert permits.get_value() == 2
    assert (rw.readers, rw.has_writer, condition._waiting()) == (0, False, 0)
    assert not tasks._lines or all(not lines for lines in tasks._lines.values())


# ---- the loop ----


def test_nothing_blocks_the_loop(space):
    """Tasks wait for primitives of all kinds, which another process holds or does not set, and a
    ticker in the same loop runs on."""
    lock, rw, permits = Lock("l", space=space), RWLock("rw", space=space), Semaphore(1, "s")
    event, condition = Event("e", space=space), Condition(key="c", space=space)
    barrier, leader = Barrier(2, key="b", space=space), Leader("leader", space=space)

    def hold():
        return lock.acquire(), rw.acquire_write(), permits.acquire(), leader.acquire()

    async def notified():
        async with condition:
            await condition.wait_async()

    async def main():
        kinds = [
            *(lock.acquire_async, rw.acquire_read_async, rw.acquire_write_async),
            *(permits.acquire_async, event.wait_async, notified, barrier.wait_async),
            leader.acquire_async,
        ]
        waiting = [asyncio.create_task(each()) for each in kinds * 3 if each != barrier.wait_async]
        waiting.append(asyncio.create_task(barrier.wait_async()))
        await turns(5)
        spent = time.process_time()
        for _ in range(100):
            await asyncio.sleep(0.002)
        assert time.process_time() - spent < 0.15, "the tasks sleep"
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    with stays(hold):
        in_time(main())


def test_closing_the_space_ends_the_waits(map_name):
    space = Sync(map_name)
    other = Sync.open(map_name)
    lock, event = Lock("l", space=other), Event("e", space=other)

    async def main():
        waiting = [asyncio.create_task(each()) for each in (lock.acquire_async, event.wait_async)]
        await asyncio.sleep(0.02)
        other.close()
        for task in waiting:
            with pytest.raises(MapClosed):
                await task

    with Lock("l", space=space):
        in_time(main())
    space.unlink()
    space.close()


def test_a_child_of_fork_holds_nothing_of_its_parents_tasks(space):
    lock, event = Lock("l", space=space), Event("e", space=space)

    async def take():
        async with lock:
            return await event.wait_async(timeout=LONG_S)

    async def main():
        async with lock:
            waiting = asyncio.create_task(take())
            await asyncio.sleep(0.01)
            pid = os.fork()
            if pid == 0:
                asyncio.events._set_running_loop(None)
                thread = threading.Thread(target=lambda: in_time(take()))
                thread.start()
                thread.join()
                os._exit(0)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        event.set()
        assert await waiting
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_time(main()) == 0


# ---- storms ----


def add_in_tasks(gate, space, counter, number, rounds):
    lock, permits = Lock("l", space=space), Semaphore(1, "s", space=space)

    async def one():
        for _ in range(rounds):
            async with lock:
                before = counter[0]
                await asyncio.sleep(0)
                counter[0] = before + 1
            async with permits:
                before = counter[1]
                await asyncio.sleep(0)
                counter[1] = before + 1

    async def main():
        await asyncio.gather(*(one() for _ in range(number)))

    gate.wait()
    in_time(main())


def add_in_a_thread(gate, space, counter, rounds):
    lock, permits = Lock("l", space=space), Semaphore(1, "s", space=space)
    gate.wait()
    for _ in range(rounds):
        with lock:
            counter[0] += 1
        with permits:
            counter[1] += 1


@pytest.mark.parametrize("method", [pytest.param("thread", marks=pytest.mark.thorough), "fork"])
def test_tasks_of_two_loops_and_threads_take_turns(space, method):
    """Tasks and threads add to numbers in shared memory by plain loads and stores, and no addition
    is lost."""
    import mmap

    counter = memoryview(mmap.mmap(-1, 4096)).cast("q")
    run_together(
        method,
        (add_in_tasks, space, counter, 4, 30),
        (add_in_tasks, space, counter, 4, 30),
        (add_in_a_thread, space, counter, 100),
    )

    assert list(counter[:2]) == [2 * 4 * 30 + 100] * 2


def test_killed_loops_delay_no_other(space):
    """Processes whose tasks take turns are killed, one after another; a loop in this process
    continues."""
    lock, permits = Lock("l", space=space), Semaphore(2, "s", space=space)

    async def use():
        async with lock:
            await asyncio.sleep(0)
        async with permits:
            await asyncio.sleep(0)

    async def work():
        while True:
            await asyncio.gather(*(use() for _ in range(4)))

    async def main(children):
        while children:
            await asyncio.gather(*(use() for _ in range(4)))
            children.pop().kill()

    for _ in range(4):
        in_time(main([Child(lambda: asyncio.run(work())) for _ in range(3)]))
    space.check()
    assert permits.get_value() == 2
    assert not lock.locked()
