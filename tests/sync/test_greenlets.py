"""gevent's greenlets exclude each other, and a greenlet that waits does not stop the others.

Each program runs in a forked child, because a process that has imported gevent uses greenlets to
its end.
"""

import importlib.util
import os
import threading
import time

import pytest
from support.children import in_child, stays
from support.waiting import LONG_S

import shmrhash
from shmrhash import (
    Barrier,
    Condition,
    DeadlockError,
    Event,
    Lock,
    LockTimeout,
    RHashMap,
    RLock,
    RWLock,
    Semaphore,
    SharedDict,
    Sync,
    locks,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed"
)

ROUNDS = 5


def run_all(*functions):
    """Run each function in a greenlet of its own; return their results."""
    import gevent

    greenlets = [gevent.spawn(each) for each in functions]
    gevent.joinall(greenlets, timeout=LONG_S, raise_error=True)
    assert all(each.successful() for each in greenlets), "a greenlet is stuck"
    return [each.value for each in greenlets]


class Exclusion:
    """A place that asserts that only one greenlet at a time is in it."""

    def __init__(self):
        self.inside = 0
        self.rounds = 0

    def stay(self):
        import gevent

        assert self.inside == 0
        self.inside += 1
        gevent.sleep(0.001)
        self.inside -= 1
        self.rounds += 1


class Ticks:
    """A greenlet that counts how often it runs while others wait."""

    def __init__(self):
        import gevent

        self.count = 0
        self.greenlet = gevent.spawn(self.run)

    def run(self):
        import gevent

        while True:  # until end() kills the greenlet
            self.count += 1
            gevent.sleep(0)

    def end(self):
        self.greenlet.kill()
        return self.count


@pytest.mark.parametrize("patched", [False, True])
def test_greenlets_take_turns_in_sections(map_name, patched):
    """L1: each greenlet finds the value that the previous one stored, so no addition is lost."""

    def program():
        import gevent
        from gevent import monkey

        if patched:
            monkey.patch_all()

        def work():
            for _ in range(ROUNDS):
                with d.locked("n") as entry:
                    seen = entry.value
                    gevent.sleep(0.001)
                    entry.value = seen + 1

        with SharedDict(map_name, key=str, value=int) as d:
            d["n"] = 0
            run_all(*[work] * 6)
            d.check()
            return d["n"]

    with SharedDict(map_name, key=str, value=int) as keep:
        assert in_child(program) == 6 * ROUNDS == keep["n"]
        keep.unlink()


def make_locks(space):
    yield Lock("lock", space=space)
    yield RLock("rlock", space=space)
    yield Semaphore(1, "semaphore", space=space)
    yield RWLock("rwlock", space=space).write_lock()


@pytest.mark.parametrize("number", range(4), ids=["lock", "rlock", "semaphore", "rwlock"])
def test_greenlets_exclude_each_other(space, number):
    def program():
        import gevent  # noqa: F401

        with Sync(space.name) as mine:
            lock = list(make_locks(mine))[number]
            exclusion = Exclusion()

            def work():
                for _ in range(ROUNDS):
                    with lock:
                        exclusion.stay()

            run_all(*[work] * 6)
            return exclusion.rounds

    assert in_child(program) == 6 * ROUNDS


def test_an_rlock_is_a_greenlets_own(space):
    def program():
        import gevent

        lock = RLock("l", space=Sync(space.name))
        seen = []

        def twice():
            with lock, lock:
                gevent.sleep(0.005)
                seen.append(lock._recursion_count())

        def other():
            assert not lock.acquire(blocking=False)
            with pytest.raises(RuntimeError):
                lock.release()

        run_all(twice, other)
        return seen, lock.locked()

    assert in_child(program) == ([2], False)


def held_by_another(space, number):
    """Return a child that holds the lock until it is killed."""
    return stays(lambda: list(make_locks(Sync(space.name)))[number].__enter__())


@pytest.mark.parametrize("number", range(4), ids=["lock", "rlock", "semaphore", "rwlock"])
def test_the_others_run_while_a_greenlet_waits_for_another_process(space, number):
    """While one greenlet waits for a lock of another process, others run; when that process is
    killed, the greenlet gets the lock."""

    def program(parent_pid):
        import gevent

        lock = list(make_locks(Sync(space.name)))[number]
        ticks = Ticks()

        def wait():
            with lock:
                return ticks.end()

        def kill_later():
            while ticks.count < 100:
                gevent.sleep(0)
            os.kill(parent_pid, 9)

        return run_all(wait, kill_later)[0]

    with held_by_another(space, number) as holder:
        assert in_child(program, holder.pid) >= 100


def test_the_others_run_while_a_greenlet_waits_for_a_section_of_another_process(map_name):
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=100) as m:
        m[b"k" * 8] = bytes(8)

        def program(holder_pid):
            import gevent

            mine = RHashMap.open(map_name)
            ticks = Ticks()

            def wait():
                with mine.locked(b"k" * 8, timeout=LONG_S):
                    return ticks.end()

            def kill_later():
                while ticks.count < 100:
                    gevent.sleep(0)
                os.kill(holder_pid, 9)

            return run_all(wait, kill_later)[0]

        with stays(lambda: RHashMap.open(map_name).locked(b"k" * 8).__enter__()) as holder:
            assert in_child(program, holder.pid) >= 100
        m.check()
        m.unlink()


def test_a_greenlet_that_would_wait_for_itself_is_told(space):
    def program():
        import gevent  # noqa: F401

        def work():
            lock = Lock("l", space=Sync(space.name))
            with lock, pytest.raises(DeadlockError, match="greenlet"):
                lock.acquire()
            with SharedDict(key=str, value=int) as d:
                d["k"] = 1
                with d.locked("k"), pytest.raises(DeadlockError, match="greenlet"):
                    d["k"] = 2
                d.check()

        run_all(work)
        return True

    assert in_child(program)


def test_waits_of_greenlets_end_with_their_time(space):
    def program():
        import gevent

        lock = Lock("l", space=Sync(space.name))
        d = SharedDict(key=str, value=int)
        d["k"] = 1

        def hold():
            with lock, d.locked("k"):
                gevent.sleep(0.2)

        def wait():
            began = time.monotonic()
            assert not lock.acquire(timeout=0.02)
            with pytest.raises(LockTimeout), d.locked("k", timeout=0.02):
                pass
            assert time.monotonic() - began >= 0.04
            assert not Event("e", space=lock.space).wait(0.01)
            with pytest.raises(shmrhash.WaitTimeout):
                d.wait("absent", timeout=0.01)

        run_all(hold, wait)
        d.check()
        return True

    assert in_child(program)


def test_a_greenlet_that_is_killed_while_it_waits_leaves_nothing_behind(space):
    def program():
        import gevent

        lock = Lock("l", space=Sync(space.name))
        permits = Semaphore(0, "s", space=lock.space)
        d = SharedDict(key=str, value=int)
        d["k"] = 1
        waits = [
            lock.acquire,
            permits.acquire,
            d.locked("k").__enter__,
            lambda: d.wait("k", lambda value: value == 2),
        ]
        with lock, d.locked("k"):
            for wait in waits:
                waiting = gevent.spawn(wait)
                gevent.sleep(0.02)
                assert not waiting.ready()
                waiting.kill()
                assert waiting.ready()
        permits.release()
        assert lock.acquire(blocking=False)
        assert permits.acquire(blocking=False)
        with d.locked("k", timeout=0):
            pass
        lock.release()
        d.check()
        lock.space.check()
        return True

    assert in_child(program)


def test_greenlets_meet_at_events_conditions_and_barriers(space):
    def program():
        mine = Sync(space.name)
        event, barrier = Event("e", space=mine), Barrier(3, key="b", space=mine)
        condition = Condition(Lock("l", space=mine), "c", space=mine)
        stock = []

        def take():
            with condition:
                condition.wait_for(lambda: stock, timeout=LONG_S)
                stock.pop()
            assert event.wait(LONG_S)
            return barrier.wait(LONG_S)

        def give():
            for _ in range(2):
                with condition:
                    stock.append(1)
                    condition.notify()
            event.set()
            return barrier.wait(LONG_S)

        return sorted(run_all(take, take, give)), stock

    assert in_child(program) == ([0, 1, 2], [])


def test_a_greenlet_waits_for_what_another_stores(map_name):
    def program():
        import gevent

        d = SharedDict(map_name, key=str, value=int)

        def wait():
            assert d.wait("k", timeout=LONG_S) == 1
            with d.watch(["k"], timeout=LONG_S) as changes:
                return next(changes).value

        def store():
            d["k"] = 1
            gevent.sleep(0.05)
            d["k"] = 2

        return run_all(wait, store)[0]

    with SharedDict(map_name, key=str, value=int) as keep:
        assert in_child(program) == 2
        keep.check()
        keep.unlink()


def test_greenlets_compute_a_value_once(map_name):
    """One greenlet computes the value, and the others wait for it; two computations that need each
    other end."""

    def program():
        import gevent

        cache = shmrhash.Cache(map_name, max_entries=100)
        computed = []

        def compute():
            computed.append(gevent.getcurrent())
            gevent.sleep(0.02)
            return len(computed)

        values = run_all(*[lambda: cache.get_or_compute("k", compute)] * 10)

        def half_of(first, second):
            def other_half():
                gevent.sleep(0.01)
                return cache.get_or_compute(second, lambda: 1) + 1

            return lambda: cache.get_or_compute(first, other_half)

        return values, len(computed), run_all(half_of("a", "b"), half_of("b", "a"))

    with shmrhash.Cache(map_name, max_entries=100) as keep:
        values, computed, halves = in_child(program)
        assert (values, computed) == ([1] * 10, 1)
        assert all(2 <= half <= 3 for half in halves)
        keep.check()
        keep.unlink()


def test_threads_of_a_program_with_greenlets_exclude_each_other(space):
    """Threads without a hub of gevent sleep as they do in a program without greenlets."""

    def program():
        import gevent  # noqa: F401

        lock = RLock("l", space=Sync(space.name))
        exclusion = []

        def work():
            for _ in range(ROUNDS):
                with lock, lock:
                    exclusion.append(threading.get_ident())
                    time.sleep(0.001)
                    assert exclusion[-1] == threading.get_ident()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return len(exclusion)

    assert in_child(program) == 4 * ROUNDS


def test_one_greenlet_of_a_circle_is_told(space):
    def program():
        import gevent

        def take(first, second):
            with first:
                gevent.sleep(0.01)
                try:
                    with second:
                        return True
                except DeadlockError as error:
                    return str(error)

        opened = Sync.open(space.name)  # opened here, after gevent was imported
        a, b = Lock("a", space=opened), RLock("b", space=opened)
        return run_all(lambda: take(a, b), lambda: take(b, a))

    outcomes = in_child(program)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["bool", "str"]
    assert any("a circle of 2" in str(outcome) for outcome in outcomes)


def test_greenlets_that_wait_are_shown(space):
    def program():
        import gevent

        event, permits = Event("e", space=space), Semaphore(0, "s", space=space)
        waiting = [gevent.spawn(each) for each in (event.wait, event.wait, permits.acquire)]
        gevent.sleep(0.05)
        found = {info.key: len({one.thread for one in info.waiters}) for info in locks(space)}
        event.set()
        permits.release()
        gevent.joinall(waiting, timeout=LONG_S, raise_error=True)
        return found, [info.waiters for info in locks(space)]

    assert in_child(program) == ({"e": 2, "s": 1}, [[], []])
