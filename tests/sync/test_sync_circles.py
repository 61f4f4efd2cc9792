"""Circles of threads that wait for each other's locks: exactly one of them gets a
DeadlockError.

A member is a process that takes one lock, waits until all have done that, and then takes another
one. DeadlockError comes after 0.2 s; a test waits for what must happen, not for the time.
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time

import pytest
from support.children import Partner
from support.waiting import LONG_S, until

from shmrhash import Barrier, DeadlockError, Lock, RLock, RWLock, Semaphore, _core, locks

ALARM_S = 0.6  # on an idle machine, an expected DeadlockError comes earlier
STEADY_S = 1.5  # in this time each waiter looks for a circle twice (after 0.2 s, then each second)
SLICE_S = 0.002
ROUNDS_MAX = 50


def take(how, lock, timeout=-1):
    """Take a lock; how is "lock", or "reader" or "writer" for an RWLock."""
    acquire = {"lock": "acquire", "reader": "acquire_read", "writer": "acquire_write"}[how]
    return getattr(lock, acquire)(True, timeout)


def give(how, lock):
    release = {"lock": "release", "reader": "release_read", "writer": "release_write"}[how]
    getattr(lock, release)()


def member(parent, has, wants, timeout=-1):
    """Take one lock, wait for another, and release both; has and wants are pairs (how, lock).
    Return the result of the wait: True, False, or the text of the error."""
    take(*has)
    parent.say()
    parent.wait()
    try:
        outcome = take(*wants, timeout)
        if outcome:
            give(*wants)
    except DeadlockError as error:
        outcome = str(error)
    give(*has)
    return outcome


def play(*members):
    """Start the members, let all take their first lock, and then let them wait in this order;
    return them."""
    partners = [Partner(member, *arguments) for arguments in members]
    for partner in partners:
        partner.hear()
    for partner in partners:
        before = waiting()
        partner.tell()
        until(lambda before=before: waiting() > before)
    return partners


def waiting():
    return sum(len(found.waiters) for found in locks(SPACE[0]))


SPACE = []


@pytest.fixture(autouse=True)
def watched(space):
    SPACE[:] = [space]
    yield
    SPACE.clear()


def ring(kinds, space):
    """Return members in a ring, with locks of these kinds: each has one and wants that of the
    next."""
    made = [kind(f"lock{at}", space=space) for at, kind in enumerate(kinds)]
    return [(("lock", lock), ("lock", made[(at + 1) % len(made)])) for at, lock in enumerate(made)]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", [Lock, RLock])
def test_one_of_a_circle_is_told_and_the_others_go_on(space, size, kind):
    """The member that waited last gets a DeadlockError that describes the whole circle."""
    partners = play(*ring([kind] * size, space))
    outcomes = [partner.result() for partner in partners]

    assert outcomes[:-1] == [True] * (size - 1)
    text = outcomes[-1]
    assert f"a circle of {size}" in text
    for at, partner in enumerate(partners):
        assert f"({partner.pid}) thread" in text
        assert f"waits for {kind.__name__} 'lock{at}' behind" in text


def test_circle_of_threads_of_one_process_is_found(space):
    a, b = Lock("a", space=space), RLock("b", space=space)
    both, outcomes = threading.Barrier(2), []

    def run(first, second):
        with first:
            both.wait()
            try:
                with second:
                    outcomes.append(True)
            except DeadlockError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=run, args=pair) for pair in ((a, b), (b, a))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)

    assert len(outcomes) == 2
    assert {type(outcome) for outcome in outcomes} == {bool, str}


@pytest.mark.parametrize(
    ("first", "second"),
    [("writer", "writer"), ("writer", "reader"), ("reader", "writer")],
)
def test_circle_over_an_rwlock_is_found(space, first, second):
    """A circle of two with an RWLock that is held in the first way and wanted in the second."""
    table, lock = RWLock("table", space=space), Lock("lock", space=space)
    one, two = play(
        ((first, table), ("lock", lock)),
        (("lock", lock), (second, table)),
    )

    assert one.result() is True
    assert "waits for RWLock 'table' behind" in two.result()


def test_reader_that_a_waiting_writer_keeps_out_is_told_of_the_circle(space):
    """A reader wants to read a second time, and has to wait because a writer waits; the writer
    waits for this reader."""
    table = RWLock("table", space=space)
    for _ in range(ROUNDS_MAX):
        reader = Partner(member, ("reader", table), ("reader", table))
        reader.hear()
        writer = Partner(lambda _parent: take("writer", table) and give("writer", table) is None)
        until(lambda: waiting() == 1)
        reader.tell()
        outcome = reader.result()
        assert writer.result() is True
        if outcome is not True:
            break
        # The writer could not renew its reservation in time, so the reader was let in. Try again.

    assert "a circle of 2" in outcome


def test_thread_that_reads_and_would_write_is_told(space):
    table = RWLock("table", space=space)
    with table.read_lock(), pytest.raises(DeadlockError, match="circle of 1"):
        table.acquire_write()
    assert table.acquire_write(timeout=LONG_S)
    table.release_write()


def test_process_with_several_readers_is_no_part_of_a_circle(space):
    """The segment does not say which thread of a process reads, so nobody is told of this circle; a
    timeout ends it."""
    table, lock = RWLock("table", space=space), Lock("lock", space=space)

    def two_readers(parent):
        thread = threading.Thread(target=table.acquire_read)
        thread.start()
        thread.join()
        outcome = member(parent, ("reader", table), ("lock", lock))
        table.release_read()
        return outcome

    one = Partner(two_readers)
    two = Partner(member, ("lock", lock), ("writer", table), STEADY_S)
    for partner in (one, two):
        partner.hear()
    for partner in (one, two):
        partner.tell()

    assert two.result() is False
    assert one.result() is True


def test_chain_is_no_circle(space):
    """Each thread waits for the next one, and the last one holds its lock for a while."""
    end = Lock("end", space=space)
    a, b = Lock("a", space=space), Lock("b", space=space)
    with end:
        partners = play((("lock", a), ("lock", b)), (("lock", b), ("lock", end)))
        time.sleep(STEADY_S)

    assert [partner.result() for partner in partners] == [True, True]


def test_waits_beside_a_circle_are_told_nothing(space):
    """Two members wait in a circle, and a third waits for a lock of the circle; the third gets its
    lock after the circle is resolved."""
    one, two = ring([Lock, Lock], space)
    third = (("lock", Lock("third", space=space)), one[1])
    partners = play(one, two, third)
    outcomes = [partner.result() for partner in partners]

    assert [outcome is True for outcome in outcomes] == [True, False, True]


def test_circle_that_ends_by_a_timeout_is_no_deadlock(space):
    """One member gives up before the circle is found, and the other one gets the lock."""
    one, two = ring([Lock, Lock], space)
    partners = play((*one, 0.1), two)

    assert [partner.result() for partner in partners] == [False, True]


def test_wait_with_a_timeout_is_a_link_but_is_not_told(space):
    """The member without a timeout is told, although the other one began to wait later."""
    one, two = ring([Lock, Lock], space)
    partners = play(one, (*two, LONG_S))
    outcomes = [partner.result() for partner in partners]

    assert "a circle of 2" in outcomes[0]
    assert outcomes[1] is True


def test_circle_of_waits_with_timeouts_ends_by_them(space):
    one, two = ring([Lock, Lock], space)
    partners = play((*one, ALARM_S), (*two, STEADY_S))

    assert [partner.result() for partner in partners] == [False, True]


def test_lock_without_check_is_no_part_of_a_circle(space):
    """Any thread may release a lock with check=False, and here another thread does."""
    a, b = Lock("a", space=space), Lock("b", space=space, check=False)

    def released_by_another(parent):
        threading.Timer(STEADY_S, a.release).start()
        take("lock", a)
        parent.say()
        parent.wait()
        return b.acquire()

    one = Partner(released_by_another)
    one.hear()
    two = Partner(member, ("lock", b), ("lock", a))
    two.hear()
    for partner in (one, two):
        partner.tell()

    assert two.result() is True
    assert one.result() is True


def test_dead_member_resolves_its_circle(space):
    """While the member that would be told is stopped, no other member is told; when the stopped one
    is killed, the others go on."""
    partners = play(*ring([Lock] * 3, space))
    os.kill(partners[2].pid, signal.SIGSTOP)
    time.sleep(ALARM_S)
    partners[2].kill()

    assert [partner.result() for partner in partners[:2]] == [True, True]


def test_two_circles_at_once_have_one_told_each(space):
    a, b, c, d = (Lock(name, space=space) for name in "abcd")
    partners = play(
        (("lock", a), ("lock", b)),
        (("lock", c), ("lock", d)),
        (("lock", b), ("lock", a)),
        (("lock", d), ("lock", c)),
    )
    told = [isinstance(partner.result(), str) for partner in partners]

    assert told == [False, False, True, True]


def test_wait_for_a_permit_is_no_link(space):
    """Any process may give a permit, so a wait for a permit is no link of a circle."""
    lock, slots = Lock("lock", space=space), Semaphore(1, "slots", space=space)

    def wait_for_a_permit(parent):
        lock.acquire()
        parent.say()
        taken = slots.acquire(timeout=LONG_S)
        lock.release()
        return taken

    slots.acquire()
    child = Partner(wait_for_a_permit)
    child.hear()
    threading.Timer(ALARM_S, slots.release).start()

    assert lock.acquire()
    assert child.result() is True


async def take_in_task(how, lock, timeout=None):
    """Take a lock in a task, as take() does in a thread."""
    acquire = {
        "lock": "acquire_async",
        "reader": "acquire_read_async",
        "writer": "acquire_write_async",
    }[how]
    return await getattr(lock, acquire)(timeout)


def lock_of(how, space):
    return (Lock if how == "lock" else RWLock)("lock", space=space)


WAYS = pytest.mark.parametrize("how", ["lock", "reader", "writer"])


@WAYS
def test_task_that_waits_is_no_link(space, how):
    """The thread of a waiting task runs on, and so do its other tasks, which may release the lock
    for which another process waits; so that process is told nothing."""
    mine, other = lock_of(how, space), Lock("other", space=space)
    behind = "writer" if how == "reader" else how
    partner = Partner(member, ("lock", other), (behind, mine))
    partner.hear()

    async def main():
        assert await take_in_task(how, mine)
        partner.tell()
        until(lambda: waiting() == 1)
        assert not await other.acquire_async(STEADY_S)
        give(how, mine)

    asyncio.run(main())
    assert partner.result() is True


@pytest.mark.parametrize("how", ["reader", "writer"])
def test_thread_that_waits_keeps_its_tasks_from_releasing(space, how):
    """A task holds a lock, and then its whole thread waits; that is a circle, because the task
    cannot continue."""
    mine, other = lock_of(how, space), Lock("other", space=space)
    partner = Partner(member, ("lock", other), ("writer", mine))
    partner.hear()

    async def main():
        assert await take_in_task(how, mine)
        partner.tell()
        until(lambda: waiting() == 1)
        with pytest.raises(DeadlockError, match="a circle of 2"):
            other.acquire()
        give(how, mine)

    asyncio.run(main())
    assert partner.result() is True


def take_in_order(made, start, seed, rounds):
    """Take some random locks in the order of their numbers, and release them, again and again;
    return how often this thread waited for longer than a slice."""
    _core.set_circle_patience(0)
    rng = random.Random(seed)
    waits = 0
    start.wait()
    for number in range(rounds):
        chosen = sorted(rng.sample(range(len(made)), rng.randint(1, 3)))
        with contextlib.ExitStack() as stack:
            for at in chosen:
                began = time.monotonic()
                stack.enter_context(made[at])
                waits += time.monotonic() - began > SLICE_S
            if number % 10 == 7:
                time.sleep(2 * SLICE_S)
    return waits


@pytest.mark.parametrize("rounds", [400, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_locks_taken_in_one_order_raise_no_deadlock_error(space, seed, rounds):
    """Waiters look for a circle at the end of each slice, and find none, because all take their
    locks in the same order."""
    made = [kind(at, space=space) for at, kind in enumerate((Lock, RLock) * 2)]
    start = Barrier(4, key="start", space=space)
    children = [
        Partner(lambda _parent, at=at: take_in_order(made, start, seed + at, rounds // 4))
        for at in range(4)
    ]

    assert sum(child.result() for child in children) > 0
