"""Locked sections in asyncio: coroutines take turns, and the loop goes on (L1)."""

import asyncio
import os
import random
import threading
import time

import pytest
from support.children import Child, Partner
from support.jobs import number_in, word
from support.waiting import LONG_S, Waiting, words_of
from support.workers import run_together

import shmrhash
from shmrhash import RHashMap, SharedDict

KEY = word(1)
OTHER = word(2)


@pytest.fixture
def shared(map_name):
    with SharedDict(map_name, key=str, value=int) as made:
        made["a"] = 0
        yield made
        made.check()
        made.unlink()


async def turns(times=1):
    for _ in range(times):
        await asyncio.sleep(0)


def test_coroutines_take_turns_in_the_order_in_which_they_came(shared):
    order = []

    async def add_one(number):
        for _ in range(4):
            async with shared.locked("a") as entry:
                order.append(number)
                before = entry.value
                await turns(3)
                entry.value = before + 1

    async def main():
        await asyncio.gather(*(add_one(number) for number in range(5)))

    asyncio.run(main())

    assert shared["a"] == 20
    assert order == list(range(5)) * 4
    assert words_of(shared.handle)[0] == 0


def test_a_locked_value_of_a_map_takes_turns_too(shm_map):
    shm_map[KEY] = word(0)

    async def add_one():
        async with shm_map.locked(KEY) as value:
            before = number_in(bytes(value))
            await turns(2)
            value[:] = word(before + 1)

    async def main():
        await asyncio.gather(*(add_one() for _ in range(20)))
        async with shm_map.locked(OTHER, default=word(5)) as value:
            assert bytes(value) == word(5)
            value.delete()
        with pytest.raises(shmrhash.KeyNotFound):
            async with shm_map.locked(OTHER):
                pass

    asyncio.run(main())
    assert number_in(shm_map[KEY]) == 20
    assert OTHER not in shm_map
    shm_map.check()


def test_a_task_that_asks_again_gets_a_deadlock_error(shared):
    async def again():
        async with shared.locked("a"):
            with pytest.raises(shmrhash.DeadlockError):
                await shared.locked("a").__aenter__()
            waiting = asyncio.ensure_future(shared.locked("a").__aenter__())
            await turns(5)
            with pytest.raises(shmrhash.DeadlockError):  # also with another waiter in the queue
                await shared.locked("a").__aenter__()
            with pytest.raises(shmrhash.DeadlockError):  # a wait in the thread would stop the loop
                shared.locked("a").__enter__()
        await (await waiting).__aexit__(None, None, None)

    asyncio.run(again())
    with shared.locked("a"), pytest.raises(shmrhash.DeadlockError):
        asyncio.run(shared.locked("a").__aenter__())


def test_a_section_can_be_entered_only_once(shared):
    async def main():
        section = shared.locked("a")
        async with section:
            pass
        with pytest.raises(shmrhash.InvalidArgument):
            async with section:
                pass

    asyncio.run(main())


def test_a_cancelled_waiter_leaves_nothing_behind(shared):
    async def main():
        first = shared.locked("a")
        await first.__aenter__()
        tasks = [asyncio.ensure_future(shared.locked("a").__aenter__()) for _ in range(3)]
        await turns(5)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.wait(tasks[:2])
        assert all(task.cancelled() for task in tasks[:2])
        await first.__aexit__(None, None, None)
        await (await tasks[2]).__aexit__(None, None, None)
        # A task is woken, and cancelled before it runs: the next task is woken in its place.
        await (again := shared.locked("a")).__aenter__()
        tasks = [asyncio.ensure_future(shared.locked("a").__aenter__()) for _ in range(2)]
        await turns(5)
        await again.__aexit__(None, None, None)
        tasks[0].cancel()
        await (await tasks[1]).__aexit__(None, None, None)

    asyncio.run(main())
    with shared.locked("a", timeout=0):
        pass
    assert words_of(shared.handle)[0] == 0


def test_a_cancelled_block_stores_nothing(shared):
    async def block():
        async with shared.locked("a") as entry:
            entry.value = 7
            await asyncio.sleep(LONG_S)

    async def main():
        task = asyncio.ensure_future(block())
        await turns(3)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert shared["a"] == 0
    with shared.locked("a", timeout=0):
        pass


def test_a_timeout_names_the_owner(shared):
    def hold(parent):
        with shared.locked("a"):
            parent.say("held")
            parent.wait()

    async def main():
        ticks = 0
        task = asyncio.ensure_future(shared.locked("a", timeout=0.5).__aenter__())
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert ticks > 1, "the loop went on"
        with pytest.raises(shmrhash.LockTimeout, match=r"waited 0\.[1-9].*locked section"):
            await task
        with pytest.raises(shmrhash.LockTimeout):
            await shared.locked("a", timeout=0).__aenter__()

    with Partner(hold) as child:
        assert child.hear() == "held"
        asyncio.run(main())
    assert shared.handle.check()


def test_a_section_of_a_killed_process_is_entered(shared):
    def hold(parent):
        with shared.locked("a") as entry:
            entry.value = 9
            parent.say("held")
            parent.wait()

    async def main(child):
        task = asyncio.ensure_future(shared.locked("a", timeout=LONG_S).__aenter__())
        await asyncio.sleep(0.05)
        assert not task.done()
        child.kill()
        section = await task
        assert section.value == 0
        await section.__aexit__(None, None, None)

    with Partner(hold) as child:
        assert child.hear() == "held"
        asyncio.run(main(child))


def add_in_tasks(gate, shared, tasks, rounds):
    """Add 1 in `rounds` locked sections of each of `tasks` tasks, which run in one event loop."""

    async def one():
        for _ in range(rounds):
            async with shared.locked("a", timeout=LONG_S) as entry:
                before = entry.value
                await asyncio.sleep(0)
                entry.value = before + 1

    async def main():
        await asyncio.gather(*(one() for _ in range(tasks)))

    gate.wait()
    asyncio.run(main())


def add_in_a_thread(gate, shared, rounds):
    gate.wait()
    for _ in range(rounds):
        with shared.locked("a", timeout=LONG_S) as entry:
            entry.value += 1


@pytest.mark.parametrize("method", ["thread", "fork"])
def test_tasks_and_threads_and_processes_take_turns(shared, method):
    run_together(
        method,
        (add_in_tasks, shared, 4, 50),
        (add_in_tasks, shared, 4, 50),
        (add_in_a_thread, shared, 200),
    )

    assert shared["a"] == 2 * 4 * 50 + 200
    assert words_of(shared.handle)[0] == 0


def test_the_end_of_another_process_s_section_is_told(shared):
    """The bell of the other process wakes the task: the loop's timers are too long to do it."""
    from shmrhash import _turns

    before = _turns.slice_ns, _turns.PATIENCE_NS
    _turns.slice_ns, _turns.PATIENCE_NS = (lambda _waited: 10**9 * LONG_S), 10**9 * LONG_S

    def hold(parent):
        with shared.locked("a") as entry:
            parent.say("held")
            parent.wait()
            entry.value = 3
        parent.wait()

    async def main(child):
        task = asyncio.ensure_future(shared.locked("a", timeout=LONG_S).__aenter__())
        while words_of(shared.handle)[0] == 0:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        began = time.monotonic()
        child.tell()
        section = await task
        assert time.monotonic() - began < LONG_S / 2
        assert section.value == 3
        await section.__aexit__(None, None, None)

    try:
        with Partner(hold) as child:
            assert child.hear() == "held"
            asyncio.run(main(child))
    finally:
        _turns.slice_ns, _turns.PATIENCE_NS = before


def test_a_child_of_fork_takes_turns_of_its_own(shared):
    async def enter():
        async with shared.locked("a", timeout=LONG_S) as entry:
            entry.value += 1

    async def main():
        async with shared.locked("a"):
            waiting = asyncio.ensure_future(enter())
            await turns(5)
            pid = os.fork()
            if pid == 0:
                asyncio.events._set_running_loop(None)
                thread = threading.Thread(target=lambda: asyncio.run(enter()))
                thread.start()
                thread.join()
                os._exit(0)
            await asyncio.sleep(0.02)
        await waiting
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert asyncio.run(main()) == 0
    assert shared["a"] == 2


def test_closing_the_map_ends_the_wait_for_a_section(make_map):
    m = make_map()
    m[KEY] = word(0)
    name = m.name

    async def main(other):
        task = asyncio.ensure_future(other.locked(KEY, timeout=LONG_S).__aenter__())
        await asyncio.sleep(0.02)
        other.close()
        with pytest.raises(shmrhash.MapClosed):
            await task

    with m.locked(KEY):
        outcome = Waiting(lambda: asyncio.run(main(RHashMap.open(name)))).result()
    assert outcome is None


def test_a_forgotten_section_delays_no_task(shared):
    """A section that a task entered by hand and dropped ends when its object is freed."""

    async def forget():
        await shared.locked("a").__aenter__()

    async def main():
        await asyncio.ensure_future(forget())
        async with shared.locked("a", timeout=LONG_S) as entry:
            entry.value += 1

    asyncio.run(main())
    assert shared["a"] == 1


def test_killed_loops_leave_no_section_held(shared):
    """C1: processes whose tasks take turns are killed at random; no section or count is lost."""

    def work():
        class Open:
            def wait(self):
                pass

        add_in_tasks(Open(), shared, 4, 10**9)

    for _ in range(10):
        children = [Child(work) for _ in range(2)]
        time.sleep(0.03)
        for child in children:
            child.kill()
        before = shared["a"]
        with shared.locked("a", timeout=LONG_S) as entry:
            assert entry.value >= before
            entry.value += 1
    with RHashMap.open(shared.handle.name):
        pass  # opening the map recovers the dead processes
    assert words_of(shared.handle)[0] == 0


def test_tasks_lock_several_keys_and_change_them_in_one_step(shared, seed):
    """L2: tasks of several processes, some of which are killed, move money among eight accounts; a
    task that locks all accounts sees the whole sum."""
    names = [str(number) for number in range(8)]
    for name in names:
        shared[name] = 100

    async def move(number):
        dice = random.Random(number)
        for _ in range(10):
            async with shared.locked_many(dice.sample(names, 3), timeout=LONG_S) as entries:
                amounts = [dice.randrange(-9, 9) for _ in entries[1:]]
                before = [entry.value for entry in entries]
                await turns(2)
                for entry, old, amount in zip(
                    entries, before, [-sum(amounts), *amounts], strict=True
                ):
                    entry.value = old + amount

    async def audit():
        async with shared.locked_many(names, timeout=LONG_S) as entries:
            return sum(entry.value for entry in entries)

    async def work(number):
        tasks = [asyncio.create_task(move(number + at)) for at in range(4)]
        sums = [await audit() for _ in range(4)]
        await asyncio.gather(*tasks)
        return sums

    def work_for_ever():
        while True:
            shared.update_with("a", lambda count: count + 1)
            asyncio.run(work(seed + os.getpid()))

    sums = []
    for turn in range(3):
        begun = shared["a"]
        children = [Child(work_for_ever) for _ in range(2)]
        shared.wait("a", lambda count, begun=begun: count > begun, timeout=LONG_S)
        sums += asyncio.run(work(seed + turn))
        for child in children:
            child.kill()

    assert sums == [800] * 12
    assert asyncio.run(audit()) == 800


def test_a_task_that_gives_up_several_keys_leaves_none_locked(shared):
    """A timeout, a cancellation or an exception in the block leaves nothing stored or locked."""
    shared["b"] = 1

    async def lock(*keys, **options):
        async with shared.locked_many(keys, **options) as entries:
            for entry in entries:
                entry.value = 7
            await asyncio.sleep(LONG_S)

    async def main():
        async with shared.locked("b"):
            with pytest.raises(shmrhash.LockTimeout):
                await asyncio.create_task(lock("b", "a", timeout=0.01))
            waiter = asyncio.create_task(lock("a", "b"))
            await turns(3)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        with pytest.raises(shmrhash.DeadlockError):
            async with shared.locked_many(["b", "a"]), shared.locked("a"):
                pass
        holder = asyncio.create_task(lock("a", "b"))
        await turns(3)
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder
        async with shared.locked_many(["a", "b"], timeout=0) as entries:
            assert [entry.value for entry in entries] == [0, 1]
            entries[0].delete()
        with pytest.raises(shmrhash.InvalidArgument, match="once"):
            await lock("a", "a")

    asyncio.run(main())

    assert dict(shared) == {"b": 1}
    assert words_of(shared.handle)[0] == 0
