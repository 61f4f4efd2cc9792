"""Handles that one thread closes, or inherits from a parent, while other threads use them.

A closed handle gives its process slot, its descriptor and the thread that listens for event loops
back as soon as its last operation ends, whichever thread that is in, and not only when the handle
object is freed.
"""

import asyncio
import contextlib
import os
import signal
import threading

import pytest
from support.descriptors import descriptors_of
from support.waiting import until
from support.workers import THREADS, all_together, thread_ids

import shmrhash
from shmrhash import RHashMap, _core

ROUNDS = 6
CHILD_S = 120  # of a child that hangs


def word(number):
    return number.to_bytes(8, "little")


def holders(path):
    """(processes that live, dead ones with slots, whether a reader is announced) of a segment."""
    fd = os.open(path, os.O_RDWR)
    try:
        return _core.segment_holders(fd)[:3]
    finally:
        os.close(fd)


@pytest.fixture(params=[1, pytest.param(10, marks=pytest.mark.thorough)])
def rounds(request):
    return ROUNDS * request.param


def use_until_closed(handle, number):
    """Use a handle until another thread has closed it; returns the number of steps."""
    step = 0
    while True:
        try:
            handle.add(word(number), 1, default=0)
            handle.get(word(step % 8))
            handle._processes()
            list(handle.items())
        except shmrhash.MapClosed:
            return step
        step += 1


def test_the_last_thread_that_leaves_gives_back_what_the_handle_had(make_map, rounds):
    """C3: threads use a handle, one of them closes it; the object itself is kept."""
    made = make_map()
    name, path = made.name, made.info()["path"]
    file = os.stat(path)
    made.close()
    kept, expected = [], 0
    for _ in range(rounds):
        handle = RHashMap.open(name)
        others = RHashMap.open(name, read_only=True)
        kept += [handle, others]
        begun = threading.Barrier(THREADS)

        def work(number, handle=handle, others=others, begun=begun):
            begun.wait(60)
            if number == 0:
                while handle.get(word(1)) is None:
                    handle.add(word(0), 0, default=0)
                handle.close()
                others.close()
                return 0
            return use_until_closed(handle, number)

        expected += sum(all_together(work))

        assert descriptors_of(file) == 0
        assert holders(path) == (0, 0, False)
        with RHashMap.open(name) as again:  # a new attachment, though the closed handles exist
            counts = [int.from_bytes(again.get(word(n), word(0)), "little") for n in range(THREADS)]
            assert sum(counts) >= expected
            expected = sum(counts)  # a step that was not finished has added, too
            again.check()

    assert [handle.closed for handle in kept] == [True] * len(kept)


@pytest.mark.usefixtures("slices_off")  # otherwise the listener ends by itself
def test_a_loop_of_a_closed_handle_leaves_no_thread_behind(make_map, rounds):
    """C3: tasks of one thread wait for a key, which needs a listener; another one closes."""
    made = make_map()
    name, file = made.name, os.stat(made.info()["path"])
    made.close()
    kept = []
    for _ in range(rounds // 2):
        before = thread_ids()
        handle = RHashMap.open(name)
        kept.append(handle)
        begun = threading.Event()

        async def wait(handle=handle, begun=begun):
            waits = [asyncio.ensure_future(handle.wait_for(word(9), timeout=60)) for _ in range(3)]
            await asyncio.sleep(0)
            begun.set()
            return await asyncio.gather(*waits, return_exceptions=True)

        def work(number, handle=handle, begun=begun, wait=wait):
            if number == 0:
                return asyncio.run(wait())
            begun.wait(60)
            handle.close()
            return []

        results = all_together(work, count=2)[0]

        assert [type(result) for result in results] == [shmrhash.MapClosed] * 3
        assert descriptors_of(file) == 0
        # A thread that has been joined is in /proc for some more microseconds.
        until(lambda before=before: thread_ids() <= before)


def test_children_forked_beside_threads_that_open_and_close_can_do_both(make_map, rounds):
    """C3: what a process knows of its attachments is never half changed in a child."""
    made = make_map()
    name = made.name
    done = threading.Event()

    def child():
        signal.alarm(CHILD_S)
        with RHashMap.open(name) as own:
            own.add(word(0), 1, default=0)
        made.add(word(0), 1, default=0)
        made.close()

    def work(number):
        if number != 0:
            turns = 0
            while not done.is_set():
                for only_reads in (False, True):
                    with RHashMap.open(name, read_only=only_reads) as own:
                        own.get(word(0))
                turns += 1
            return turns
        try:
            statuses = []
            for _ in range(rounds):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    with contextlib.suppress(BaseException):
                        child()
                        status = 0
                    os._exit(status)
                statuses.append(os.waitpid(pid, 0)[1])
            return statuses
        finally:
            done.set()

    results = all_together(work, count=3)

    assert results[0] == [0] * rounds
    assert min(results[1:]) > 0
    assert int.from_bytes(made[word(0)], "little") == 2 * rounds
