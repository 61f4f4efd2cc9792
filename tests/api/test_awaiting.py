"""Waiting in event loops: wait_for(), wait_for_any(), async for over watch(), fileno().

As in test_waiting.py, waiters do not look by themselves (slices are off): a wake-up that is lost
ends the test by its timeout.
"""

import asyncio
import os
import selectors
import subprocess
import sys
import threading
import time

import pytest
from support import stepping
from support.children import Child, in_child
from support.jobs import number_in, word
from support.waiting import HOURS_NS, LONG_S, Waiting, until_somebody_sleeps, words_of
from support.workers import run_together, thread_ids

import shmrhash
from shmrhash import CHANGED, GONE, Change, RHashMap, SharedCounter, SharedDict, _core

KEY = word(1)
OTHER = word(2)
pytestmark = pytest.mark.usefixtures("slices_off")


@pytest.fixture
def shared(map_name):
    with SharedDict(map_name, key=str, value=int, ttl=3600) as made:
        yield made
        made.check()
        made.unlink()


async def until(condition, what):
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.001)


async def pending(coroutine, m, waits=1):
    """Start a task, and return it as soon as it sleeps."""
    task = asyncio.ensure_future(coroutine)
    await until(lambda: sum(bell & 1 for bell in words_of(m)[1]) > waits, "nobody sleeps")
    return task


# ---- what is waited for ----


def test_a_coroutine_is_woken_by_a_change(shm_map):
    async def main():
        task = await pending(shm_map.wait_for(KEY, timeout=LONG_S), shm_map)
        in_child(shm_map.update, KEY, word(7))
        return await task

    assert asyncio.run(main()) == word(7)
    assert words_of(shm_map)[0] == 0


@pytest.mark.parametrize("kind", [SharedDict, SharedCounter])
def test_dicts_and_counters_can_be_awaited(map_name, kind):
    async def main(d):
        task = asyncio.ensure_future(d.wait_for_any(["a", "b"], lambda n: n == 3, timeout=LONG_S))
        await asyncio.sleep(0)
        d["b"] = 3
        assert await d.wait_for("b", timeout=0) == 3
        return await task

    with kind(map_name, key=str, value=int) as d:
        assert asyncio.run(main(d)) == ("b", 3)
        d.check()
        d.unlink()


def test_an_entry_that_expires_ends_a_wait(shared):
    """The deadline of an entry wakes the waiters for its key; with slices off nothing else can."""

    async def main():
        shared.set("a", 1, ttl=0.03)
        assert await shared.wait_for("a", GONE, timeout=LONG_S) is None

    asyncio.run(main())
    shared.set("a", 1, ttl=0.03)
    assert shared.wait("a", GONE, timeout=LONG_S) is None
    with shared.watch(["a"], initial=True, timeout=LONG_S) as changes:
        shared.set("a", 2)
        assert [next(changes).kind for _ in range(2)] == ["deleted", "set"]
        shared.set("a", 3, ttl=0.03)
        kinds = [next(changes).kind]
        if kinds == ["set"]:  # unless the entry expired before the watch looked
            kinds.append(next(changes).kind)
        assert kinds[-1] == "deleted"


def test_an_entry_that_expires_between_look_and_sleep_ends_the_wait(shared):
    def slowly(_value):
        time.sleep(0.03)
        return False

    shared.set("a", 1, ttl=0.01)
    with pytest.raises(shmrhash.WaitTimeout):
        shared.wait("a", slowly, timeout=0.1)
    shared.set("a", 1, ttl=0.02)
    waiter = shared._waiter(["a"])
    assert waiter.arm(-1)
    time.sleep(0.03)
    waiter.sleep(-1)  # returns at the deadline, although no bell rings
    assert waiter.arm(-1)
    assert waiter.sight(0) is None
    waiter.end()


def test_a_timeout_and_a_cancellation_leave_nothing_behind(shm_map):
    async def main():
        with pytest.raises(shmrhash.WaitTimeout, match=shm_map.name):
            await shm_map.wait_for(KEY, timeout=0.02)
        tasks = [asyncio.ensure_future(shm_map.wait_for(KEY)) for _ in range(10)]
        await pending(asyncio.sleep(0), shm_map)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(shm_map.wait_for(KEY, CHANGED), 0.02)

    asyncio.run(main())
    assert words_of(shm_map)[0] == 0
    shm_map.check()


@pytest.mark.parametrize("timeout", ["1", b"1", True, [1]], ids=repr)
def test_a_timeout_that_is_no_number_is_refused_everywhere(shm_map, timeout):
    shm_map[KEY] = word(1)
    for call in (
        lambda: shm_map.wait(KEY, timeout=timeout),
        lambda: shm_map.watch([KEY], timeout=timeout),
        lambda: shm_map.locked(KEY, timeout=timeout).__enter__(),
        lambda: RHashMap.open(shm_map.name, timeout=timeout),
        lambda: asyncio.run(shm_map.wait_for(KEY, timeout=timeout)),
    ):
        with pytest.raises(TypeError, match="timeout is seconds or None"):
            call()


@pytest.mark.parametrize("end", ["close", "freeze"])
def test_closing_or_freezing_a_map_ends_its_awaits(make_map, end):
    m = make_map()

    async def main():
        task = await pending(m.wait_for(KEY), m)
        getattr(m, end)()
        with pytest.raises((shmrhash.MapClosed, shmrhash.FrozenMap)):
            await task

    asyncio.run(main())


def test_a_closed_map_is_not_kept_mapped_by_a_loop(make_map):
    """The last close() ends the map's thread and its mapping while the event loop goes on."""
    m = make_map()

    async def main():
        task = await pending(m.wait_for(KEY, timeout=LONG_S), m)
        m[KEY] = word(1)
        await task
        path = str(stepping.segment_path(m.name))
        m.close()
        with open("/proc/self/maps") as maps:
            assert path not in maps.read()
        assert thread_ids() <= before

    before = thread_ids()
    asyncio.run(main())


def test_a_read_only_handle_is_awaited_by_looking(shm_map):
    async def main(reader):
        task = asyncio.ensure_future(reader.wait_for(KEY, timeout=LONG_S))
        await asyncio.sleep(0.05)
        assert words_of(shm_map)[0] == 0
        shm_map[KEY] = word(7)
        return await task

    with RHashMap.open(shm_map.name, read_only=True) as reader:
        assert asyncio.run(main(reader)) == word(7)


def test_a_map_without_a_name_can_be_awaited(make_map):
    m = make_map()

    async def main():
        task = await pending(m.wait_for(KEY, timeout=LONG_S), m)
        m.unlink()
        m[KEY] = word(7)
        return await task

    assert asyncio.run(main()) == word(7)


# ---- many waits, many loops ----


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_many_waits_need_one_thread(shm_map, count):
    before = thread_ids()

    async def main():
        async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else Group() as group:
            tasks = [
                group.create_task(shm_map.wait_for(word(number % 200), timeout=LONG_S))
                for number in range(count)
            ]
            await until(lambda: words_of(shm_map)[0] != 0, "nobody waits")
            while len(asyncio.all_tasks()) < count:
                await asyncio.sleep(0)
            assert len(thread_ids() - before) == 1
            for number in range(200):
                shm_map[word(number)] = word(number)
        assert [task.result() for task in tasks] == [word(n % 200) for n in range(count)]

    asyncio.run(main())
    assert words_of(shm_map)[0] == 0


class Group:
    """The part of asyncio.TaskGroup that these tests need; Python 3.10 has no such class."""

    async def __aenter__(self):
        self._tasks = []
        return self

    def create_task(self, coroutine):
        self._tasks.append(asyncio.ensure_future(coroutine))
        return self._tasks[-1]

    async def __aexit__(self, *_error):
        await asyncio.gather(*self._tasks)


def take_turns(gate, m, mine, other, rounds):
    """Store each number and await the other task's number; return the last one seen."""
    _core.set_wait_slice(HOURS_NS)

    async def main():
        for number in range(1, rounds + 1):
            m[mine] = word(number)
            await m.wait_for(other, lambda v, n=number: number_in(v) >= n, timeout=LONG_S)
        return number

    gate.wait()
    return asyncio.run(main())


@pytest.mark.parametrize("method", ["thread", "fork"])
def test_no_wake_up_is_lost_between_two_loops(shm_map, method):
    rounds = 500
    outcome = run_together(
        method,
        (take_turns, shm_map, KEY, OTHER, rounds),
        (take_turns, shm_map, OTHER, KEY, rounds),
    )
    assert list(outcome) == [rounds, rounds]
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_no_wake_up_is_lost_among_many_tasks(shm_map):
    """A ring of tasks, each waiting for its neighbour, in two loops of two threads."""
    size, rounds = 20, 20

    async def runner(number):
        for turn in range(1, rounds + 1):
            await shm_map.wait_for(
                word(number), lambda v, t=turn: number_in(v) >= t, timeout=LONG_S
            )
            following = (number + 1) % size
            shm_map[word(following)] = word(turn + (following == 0))

    async def main(part):
        await asyncio.gather(*(runner(number) for number in range(size) if number % 2 == part))

    odd = Waiting(lambda: asyncio.run(main(1)))
    even = Waiting(lambda: asyncio.run(main(0)))
    shm_map[word(0)] = word(1)
    assert odd.result() is None
    assert even.result() is None
    assert number_in(shm_map[word(0)]) == rounds + 1
    assert words_of(shm_map)[0] == 0


def test_a_loop_that_is_closed_with_waits_pending_harms_no_other(shm_map):
    loop = asyncio.new_event_loop()
    task = loop.create_task(pending(shm_map.wait_for(KEY), shm_map))
    left = loop.run_until_complete(task)
    loop.close()

    async def main():
        task = await pending(shm_map.wait_for(KEY, timeout=LONG_S), shm_map)
        shm_map[KEY] = word(7)
        return await task

    assert asyncio.run(main()) == word(7)
    left.get_coro().close()
    left._log_destroy_pending = False
    del left, task
    assert words_of(shm_map)[0] == 0


def test_the_listener_ends_after_the_last_wait(shm_map):
    _core.set_wait_slice(20 * 10**6)
    before = thread_ids()

    async def main():
        with pytest.raises(shmrhash.WaitTimeout):
            await shm_map.wait_for(KEY, timeout=0.05)
        await until(lambda: thread_ids() <= before, "the thread goes on")
        task = asyncio.ensure_future(shm_map.wait_for(KEY, timeout=LONG_S))
        await asyncio.sleep(0.01)
        shm_map[KEY] = word(1)
        assert await task == word(1)

    asyncio.run(main())


# ---- watch ----


def test_a_watch_is_followed_by_a_coroutine(shm_map):
    async def main():
        async with shm_map.watch([KEY, OTHER], timeout=LONG_S) as changes:
            Child(shm_map.update, KEY, word(1)).result()
            assert await changes.__anext__() == Change("set", KEY, word(1))
            task = asyncio.ensure_future(changes.__anext__())
            await asyncio.sleep(0.01)
            shm_map[OTHER] = word(2)
            assert await task == Change("set", OTHER, word(2))
        assert [each async for each in changes] == []
        return [each async for each in shm_map.watch([KEY], initial=True, timeout=0.01)]

    assert asyncio.run(main()) == [Change("set", KEY, word(1))]
    assert words_of(shm_map)[0] == 0


def test_a_descriptor_is_readable_when_a_watched_key_changes(shm_map):
    with shm_map.watch([KEY, OTHER]) as changes, selectors.DefaultSelector() as selector:
        selector.register(changes, selectors.EVENT_READ)
        while selector.select(0.02):  # the start of the thread may make the descriptor readable
            assert changes.poll() == []
        for number in range(1, 200):
            Child(shm_map.update, KEY, word(number)).result() if number % 50 == 0 else (
                shm_map.update(KEY, word(number))
            )
            assert selector.select(LONG_S), "a change was not told"
            assert changes.poll() == [Change("set", KEY, word(number))]
            assert changes.poll() == []
    assert words_of(shm_map)[0] == 0
    with pytest.raises(shmrhash.InvalidArgument):
        changes.fileno()


def test_a_watch_with_a_descriptor_can_be_awaited_too(shm_map):
    async def main(changes):
        task = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0.01)
        shm_map[KEY] = word(1)
        return await task

    with shm_map.watch([KEY], timeout=LONG_S) as changes, selectors.DefaultSelector() as selector:
        selector.register(changes.fileno(), selectors.EVENT_READ)
        assert asyncio.run(main(changes)) == Change("set", KEY, word(1))
        shm_map[KEY] = word(2)
        assert selector.select(LONG_S)
        assert changes.poll() == [Change("set", KEY, word(2))]


def test_a_watch_is_awaited_by_one_coroutine_and_its_end_wakes_that(shm_map):
    async def main():
        changes = shm_map.watch([KEY])
        task = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0.01)
        with pytest.raises(shmrhash.InvalidArgument):
            await changes.__anext__()
        changes.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(task, LONG_S)

    asyncio.run(main())
    assert words_of(shm_map)[0] == 0


def test_a_watch_with_a_descriptor_sleeps_in_a_thread_too(shm_map):
    with shm_map.watch([KEY], timeout=LONG_S) as changes:
        changes.fileno()
        began = time.process_time()
        waiting = Waiting(next, changes)
        time.sleep(0.2)
        assert time.process_time() - began < 0.1, "it sleeps"
        shm_map[KEY] = word(1)
        assert waiting.result() == Change("set", KEY, word(1))


def test_a_descriptor_of_a_closed_map_can_be_emptied(make_map):
    """After close() the descriptor can be emptied, so a loop that watches it does not spin."""
    m = make_map()
    notifier = _core.Notifier(m)
    os.write(notifier.fileno(), (1).to_bytes(8, sys.byteorder))
    m.close()

    assert not notifier.alive
    assert notifier.moved() == []
    with selectors.DefaultSelector() as selector:
        selector.register(notifier, selectors.EVENT_READ)
        assert selector.select(0) == []


# ---- forks ----

FORK = """
import os
before = []
os.register_at_fork(before=lambda: before.append(len(os.listdir("/proc/self/task"))))
import asyncio, sys
from shmrhash import SharedDict, _core
_core.set_wait_slice(10 * 3600 * 10**9)
LONG_S = 60

async def child(d):
    task = asyncio.create_task(d.wait_for("c", timeout=LONG_S))
    await asyncio.sleep(0.01)
    d["c"] = 5
    return await task

async def main(d):
    waits = [asyncio.create_task(d.wait_for(key, timeout=LONG_S)) for key in "ab" * 5]
    watch = d.watch(["a"], timeout=LONG_S)
    watch.fileno()
    await asyncio.sleep(0.02)
    assert len(os.listdir("/proc/self/task")) == 2
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            assert asyncio.run(child(d)) == 5
            watch.fileno()
            d["a"] = 1
            assert [each.value for each in watch.poll()] == [1]
            code = 0
        finally:
            os._exit(code)
    await asyncio.sleep(0.01)
    d["b"] = 2
    values = await asyncio.gather(*waits)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return values, status

with SharedDict(key=str, value=int) as d:
    values, status = asyncio.run(main(d))
    d.check()
assert status == 0, status
assert values == [1, 2] * 5, values
assert before == [1], before
"""


def test_a_fork_finds_no_thread_and_the_waits_go_on(tmp_path):
    """After a fork the parent's waits go on, and the child, which must not use its parent's loop,
    waits in a loop of its own. No thread runs at the fork; otherwise Python 3.12 and later would
    warn, which is an error here."""
    command = [sys.executable, "-W", "error", "-c", FORK]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=5 * LONG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_forks_beside_a_waiting_loop_lose_no_wake_up(shm_map):
    """One thread forks again and again while the loop of another awaits change after change."""
    rounds = 30
    over = threading.Event()

    def fork_on():
        forks = 0
        while not over.is_set():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            forks += 1
        return forks

    async def main():
        for number in range(1, rounds + 1):
            task = asyncio.ensure_future(
                shm_map.wait_for(KEY, lambda v, n=number: number_in(v) == n, timeout=LONG_S)
            )
            await asyncio.sleep(0.002)
            shm_map[KEY] = word(number)
            await task

    forking = Waiting(fork_on)
    try:
        asyncio.run(main())
    finally:
        over.set()
    assert forking.result() > 0
    shm_map.check()


def test_a_killed_process_with_waits_leaves_nothing_behind_once_it_is_recovered(shm_map):
    async def waits():
        await asyncio.gather(*(shm_map.wait_for(word(number)) for number in range(50)))

    child = Child(lambda: asyncio.run(waits()))
    until_somebody_sleeps(shm_map, 10)
    child.kill()
    assert words_of(shm_map)[0] != 0

    with RHashMap.open(shm_map.name) as another:
        assert another.recovered_at_open == 1
    assert words_of(shm_map)[0] == 0
    shm_map.check()
