"""Circles of tasks, of tasks and threads, and through several spaces: as in test_sync_circles.py,
one member gets a DeadlockError.

A circle is found after 0.2 s; a test waits for what must happen, not for the time.
"""

import asyncio
import os
import signal
import time

import pytest
from support.children import Partner
from support.waiting import LONG_S, until

from shmrhash import Condition, DeadlockError, Lock, RLock, Sync, locks, unlink

STEADY_S = 1.5  # each waiter looks twice in this time (after 0.2 s, then each second)


async def take_both(first, second, ready, timeout=None):
    """Take both locks; return the result for the second: True, False, or the text of the error."""
    async with first:
        await ready.wait()
        try:
            taken = await second.acquire_async(timeout)
        except DeadlockError as error:
            return str(error)
        if taken:
            second.release()
        return taken


def in_time(coroutine):
    async def main():
        return await asyncio.wait_for(coroutine, LONG_S)

    return asyncio.run(main())


async def play_tasks(pairs, *timeouts):
    """Start tasks that each take the first lock of a pair, and wait for the second in this order;
    return their results."""
    ready = [asyncio.Event() for _ in pairs]
    tasks = [
        asyncio.create_task(take_both(*pair, each, *timeout))
        for pair, each, timeout in zip(pairs, ready, timeouts or [()] * len(pairs), strict=True)
    ]
    await asyncio.sleep(0.01)
    for each in ready:
        each.set()
        await asyncio.sleep(0.01)
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", [Lock, RLock])
def test_one_task_of_a_circle_is_told_and_the_others_go_on(space, size, kind):
    made = [kind(f"lock{at}", space=space) for at in range(size)]
    pairs = [(made[at], made[(at + 1) % size]) for at in range(size)]

    outcomes = in_time(play_tasks(pairs))

    assert outcomes[:-1] == [True] * (size - 1)
    assert f"a circle of {size}" in outcomes[-1]
    assert f"({os.getpid()}) task 92" in outcomes[-1]
    assert all(info.waiters == [] and info.owners == [] for info in locks(space))


def test_a_task_behind_another_in_the_line_is_told(space):
    """A task of the circle waits for its lock behind a task that is not in the circle, and the
    circle is found all the same."""
    a, b = Lock("a", space=space), Lock("b", space=space)

    async def wait_behind():
        await asyncio.sleep(0.005)
        async with b:
            return True

    async def main():
        ready = asyncio.Event()
        first = asyncio.create_task(take_both(b, a, ready))
        second = asyncio.create_task(take_both(a, b, ready))
        line = asyncio.create_task(wait_behind())
        await asyncio.sleep(0.02)  # by now `line` is the first in the line for b
        ready.set()
        return await asyncio.gather(first, second, line)

    outcomes = in_time(main())
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["bool", "bool", "str"]
    assert outcomes[2] is True


def test_tasks_with_a_time_limit_are_told_nothing(space):
    """A task with a timeout is no link of a circle: its wait ends by itself, and until then other
    tasks of its thread run."""
    a, b = Lock("a", space=space), Lock("b", space=space)
    outcomes = in_time(play_tasks([(a, b), (b, a)], (STEADY_S,), ()))
    assert outcomes == [False, True]


def test_locks_without_check_make_no_circle_of_tasks(space):
    """Any task may release locks with check=False, and here another task does."""
    a, b = Lock("a", space=space, check=False), Lock("b", space=space, check=False)

    async def main():
        await a.acquire_async()
        await b.acquire_async()
        tasks = [asyncio.create_task(lock.acquire_async()) for lock in (a, b)]
        await asyncio.sleep(STEADY_S)
        a.release()
        b.release()
        return await asyncio.gather(*tasks)

    assert in_time(main()) == [True, True]


def test_a_circle_of_a_task_and_a_thread_of_another_process_is_found(space):
    a, b = Lock("a", space=space), Lock("b", space=space)

    def take_crosswise(parent):
        with b:
            parent.say()
            parent.wait()
            with a:
                return True

    async def main(child):
        async with a:
            child.tell()
            until(lambda: any(info.waiters for info in locks(space)))
            with pytest.raises(DeadlockError, match="a circle of 2") as caught:
                await b.acquire_async()
            return str(caught.value)

    with Partner(take_crosswise) as child:
        child.hear()
        text = in_time(main(child))
        assert child.result() is True
    assert f"({os.getpid()}) task" in text
    assert f"({child.pid}) thread" in text


def test_a_waiter_that_wants_the_lock_of_a_condition_again_gets_no_deadlock_error(space):
    """A wait() has to end with the lock held, so the other member of the circle is told, although
    it began to wait first."""
    lock, other = Lock("lock", space=space), Lock("other", space=space)
    condition = Condition(lock, "c")

    async def waiter():
        async with other, condition:
            return await condition.wait_async()

    async def taker():
        async with lock:
            condition.notify()
            await asyncio.sleep(0.05)
            with pytest.raises(DeadlockError):
                await other.acquire_async()
        return True

    async def main():
        first = asyncio.create_task(waiter())
        await asyncio.sleep(0.02)
        return await asyncio.gather(first, taker())

    assert in_time(main()) == [True, True]


# ---- through several spaces ----


@pytest.fixture
def spaces(map_name):
    made = [Sync(f"{map_name}-{name}") for name in "abc"]
    yield made
    for space in made:
        space.check()
        space.close()
        unlink(space.name)


def crosswise(parent, has, wants, timeout=-1):
    has.acquire()
    parent.say()
    parent.wait()
    try:
        outcome = wants.acquire(timeout=timeout)
        if outcome:
            wants.release()
    except DeadlockError as error:
        outcome = str(error)
    has.release()
    return outcome


def play(spaces, *members):
    """Let all members take one lock, and then wait for another in this order, as in
    test_sync_circles.py; return them."""
    partners = [Partner(crosswise, *arguments) for arguments in members]
    for partner in partners:
        partner.hear()
    for partner in partners:
        before = waiting(spaces)
        partner.tell()
        until(lambda before=before: waiting(spaces) > before)
    return partners


def waiting(spaces):
    return sum(len(info.waiters) for space in spaces for info in locks(space))


@pytest.mark.parametrize("size", [2, 3])
def test_a_circle_through_several_spaces_is_found_and_named(spaces, size):
    made = [Lock("lock", space=space) for space in spaces[:size]]
    partners = play(spaces, *((made[at], made[(at + 1) % size]) for at in range(size)))
    outcomes = [partner.result() for partner in partners]

    assert outcomes[:-1] == [True] * (size - 1)
    assert f"a circle of {size}" in outcomes[-1]
    for at, partner in enumerate(partners):
        assert f"({partner.pid}) thread" in outcomes[-1]
        here = at + 1 == size  # this lock is in the same space as the waiter's own
        where = "" if here else f" in {spaces[(at + 1) % size].name!r}"
        assert f"waits for Lock 'lock'{where} behind" in outcomes[-1]


def test_a_circle_of_tasks_through_two_spaces_is_found(spaces):
    a, b = Lock("a", space=spaces[0]), Lock("b", space=spaces[1])
    outcomes = in_time(play_tasks([(a, b), (b, a)]))
    assert outcomes[0] is True
    assert "a circle of 2" in outcomes[1]


def test_a_chain_through_several_spaces_is_no_circle(spaces):
    a, b, end = (Lock("lock", space=space) for space in spaces)
    with end:
        partners = play(spaces, (a, b), (b, end))
        time.sleep(STEADY_S)
    assert [partner.result() for partner in partners] == [True, True]


def test_a_dead_member_resolves_a_circle_through_spaces(spaces):
    """While the member that would be told is stopped, no other member is told; when the stopped one
    is killed, the others go on."""
    made = [Lock("lock", space=space) for space in spaces]
    partners = play(spaces, *((made[at], made[(at + 1) % 3]) for at in range(3)))
    os.kill(partners[2].pid, signal.SIGSTOP)
    time.sleep(0.6)
    partners[2].kill()

    assert [partner.result() for partner in partners[:2]] == [True, True]
