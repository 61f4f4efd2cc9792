"""Cache.mutex(): one thread of all processes holds it at a time, and it is free after the death of
its holder's process."""

import dis
import os
import signal
import sys
import threading
import time

import pytest
from support.children import Partner, in_child
from support.workers import run_together

from shmrhash import DeadlockError, InvalidArgument

LONG_S = 60


@pytest.fixture(params=[str, int, object], ids=["str", "int", "object"])
def cache(request, make_cache):
    return make_cache(key=request.param, value=int, max_entries=100)


def key_of(cache):
    return "key" if cache._schema.key.declared is str else 7


def test_a_mutex_excludes_and_leaves_nothing(cache):
    key = key_of(cache)
    mutex = cache.mutex(key)
    with mutex:
        assert not in_child(lambda: cache.mutex(key).acquire(blocking=False))
        assert not in_child(lambda: cache.mutex(key).acquire(timeout=0.01))
        assert cache.mutex(key).locked()
        assert mutex.locked()
        cache.set(key, 1)  # the entry of the same key is independent
        assert cache.get_or_compute(key, lambda: 2) == 1
        assert mutex.locked()
    assert not cache.mutex(key).locked()
    assert in_child(lambda: cache.mutex(key).acquire(blocking=False))

    cache.delete(key)
    assert cache.mutex(key).acquire()
    assert len(cache) == 1


def test_different_keys_have_different_mutexes(make_cache):
    cache = make_cache(key=str, max_entries=100)
    with cache.mutex("a"), cache.mutex("b"), cache.claim("a") as claim:
        assert not claim.found


def test_the_holder_of_a_mutex_cannot_wait_for_it(cache):
    with cache.mutex(key_of(cache)) as taken:
        assert taken
        with pytest.raises(DeadlockError, match="this thread has it"):
            cache.mutex(key_of(cache)).acquire()
        assert not cache.mutex(key_of(cache)).acquire(blocking=False)


def test_releasing_a_mutex_that_is_not_held_is_refused(cache):
    with pytest.raises(InvalidArgument, match="not held"):
        cache.mutex(key_of(cache)).release()


def test_the_mutex_of_a_killed_process_is_free(cache):
    key = key_of(cache)

    def hold(parent):
        with cache.mutex(key):
            parent.say("has it")
            parent.wait()

    with Partner(hold) as child:
        assert child.hear() == "has it"
        assert cache.mutex(key).locked()
        os.kill(child.pid, signal.SIGKILL)
        began = time.monotonic()
        assert cache.mutex(key).acquire(timeout=LONG_S)
        assert time.monotonic() - began < LONG_S / 2


def add_one(gate, cache, key, counted, rounds):
    gate.wait()
    for _ in range(rounds):
        with cache.mutex(key):
            counted["n"] = counted["n"] + 1  # would lose additions without the mutex


@pytest.mark.parametrize("method", ["thread", "fork"])  # the jobs are functions of this file
def test_no_two_processes_have_a_mutex_at_once(make_cache, map_name, method):
    from shmrhash import SharedDict

    cache = make_cache(key=str, max_entries=100)
    with SharedDict(map_name + "-counted", key=str, value=int) as counted:
        counted.unlink()
        counted["n"] = 0
        run_together(method, *((add_one, cache, "key", counted, 60) for _ in range(3)))
        assert counted["n"] == 180
    assert not cache.mutex("key").locked()


def test_clear_takes_a_mutex_away(make_cache):
    cache = make_cache(key=str, max_entries=100)
    mutex = cache.mutex("key")
    mutex.acquire()

    cache.clear()

    taken = []
    thread = threading.Thread(target=lambda: taken.append(cache.mutex("key").acquire(timeout=60)))
    thread.start()
    thread.join()
    assert taken == [True]
    mutex.release()


class Stop(BaseException):
    """The exception that the signal handler raises."""


def interrupted(function, at):
    """Call function(), and raise Stop before the at-th instruction of acquire() or _claimed(), but
    not before a return, where Python runs no signal handler. Return whether there were so many
    instructions."""
    left = at

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_name not in ("acquire", "_claimed"):
            return None
        frame.f_trace_opcodes = True
        number = frame.f_code.co_code[frame.f_lasti]
        if event == "opcode" and not dis.opname[number].startswith("RETURN"):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


def take(cache):
    with cache.mutex(7):
        pass


def claim(cache):
    with cache.claim(7):
        pass


@pytest.mark.parametrize("act", [take, claim])
def test_a_thread_interrupted_while_it_takes_the_mutex_does_not_have_it(make_cache, act):
    """An exception interrupts the acquiring thread at each instruction in turn; after it, the mutex
    is free."""
    cache = make_cache(key=int, value=int, max_entries=100)
    at = 0
    while interrupted(lambda: act(cache), at):
        at += 1
        assert cache.mutex(7).acquire(timeout=0), at
        assert in_child(lambda: cache.get_or_compute(7, lambda: 1, wait=0, when_late="raise")) == 1
        cache.clear()

    assert at > 20


def test_a_key_so_short_that_its_mutex_could_be_another_key_has_none(make_cache):
    cache = make_cache(key=bool, value=int, max_entries=10)
    with pytest.raises(InvalidArgument, match="keys of 1 bytes"):
        cache.mutex(True).acquire()
