"""All coroutines and processes that ask for a value share one computation, with aget_or_compute()
and memoize()."""

import asyncio
import os
import signal
import time

import pytest
from support.caches import cache_options
from support.children import Child, in_child

from shmrhash import Cache, InvalidArgument, LockTimeout

PATIENCE_S = 30


@pytest.fixture
def cache(make_cache):
    return make_cache(key=object, value=object, max_entries=500, timeout=PATIENCE_S)


def reopened(name):
    return Cache(name, key=object, value=object, timeout=PATIENCE_S)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 4 * PATIENCE_S))


async def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


class Slow:
    """A computation that counts its calls, and continues when it is told to."""

    def __init__(self, value):
        self.value = value
        self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self):
        self.calls += 1
        await self.go.wait()
        return self.value


async def fail():
    raise AssertionError("it was computed although a value is there")


def claimed_elsewhere(cache, key, *, dying=False):
    """Return a child that computes the value of the key until it is told to end, and a function
    that tells it."""
    started, go = os.pipe(), os.pipe()

    def compute():
        os.write(started[1], b".")
        os.read(go[0], 1)
        return "theirs"

    def ask():
        with reopened(cache.name) as mine:
            return mine.get_or_compute(key, compute, wait=PATIENCE_S)

    child = Child(ask)
    os.read(started[0], 1)
    return child, lambda: os.write(go[1], b".")


# ---- one loop ----


def test_an_absent_value_is_awaited_and_stored(cache):
    async def main():
        assert await cache.aget_or_compute("a", lambda: asyncio.sleep(0, [1])) == [1]
        assert await cache.aget_or_compute("a", fail) == [1]
        assert await cache.aget_or_compute("none", lambda: asyncio.sleep(0)) is None
        assert await cache.aget_or_compute("none", fail) is None
        assert await cache.aget_or_compute("short", lambda: asyncio.sleep(0, 2), ttl=0.001) == 2
        await until(lambda: "short" not in cache)
        with pytest.raises(InvalidArgument):
            await cache.aget_or_compute("b", fail, ttl=-1)
        with pytest.raises(InvalidArgument):
            await cache.aget_or_compute("b", fail, when_late="never")

    run(main())
    assert cache.get("a") == [1]
    assert cache.stats().computed == 3


def test_the_tasks_of_a_loop_share_one_computation(cache):
    """One task computes the value and the others wait, while the loop runs on; each task gets an
    object of its own."""

    async def main():
        slow = Slow([7])
        tasks = [asyncio.ensure_future(cache.aget_or_compute("a", slow)) for _ in range(20)]
        await until(lambda: slow.calls == 1)
        slow.go.set()
        found = await asyncio.gather(*tasks)

        assert found == [[7]] * 20
        assert len({id(each) for each in found}) == 20
        assert slow.calls == 1

    run(main())
    assert (cache.stats().computed, cache.stats().waited) == (1, 19)


def test_a_cancelled_leader_hands_the_claim_on(cache):
    async def main():
        slow = Slow(7)
        first, second = (asyncio.ensure_future(cache.aget_or_compute("a", slow)) for _ in range(2))
        await until(lambda: slow.calls == 1)
        first.cancel()
        await until(lambda: slow.calls == 2)
        slow.go.set()

        assert await second == 7
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main())
    assert cache.get("a") == 7


def test_an_exception_is_the_leaders_and_the_next_one_computes(cache):
    async def main():
        calls = []

        async def compute():
            calls.append(None)
            await asyncio.sleep(0)
            if len(calls) == 1:
                raise ValueError("the first")
            return 5

        asked = [cache.aget_or_compute("a", compute) for _ in range(3)]
        first, *rest = await asyncio.gather(*asked, return_exceptions=True)

        assert isinstance(first, ValueError)
        assert (rest, len(calls)) == ([5, 5], 2)

    run(main())


def test_a_result_invalidated_during_its_coroutine_is_not_stored(cache):
    async def main():
        slow = Slow("old")
        asked = asyncio.ensure_future(cache.aget_or_compute("a", slow))
        await until(lambda: slow.calls == 1)
        cache.set("a", "newer")
        slow.go.set()
        assert await asked == "old"

    run(main())
    assert cache.get("a") == "newer"
    assert cache.stats().not_stored == 1


def test_coroutines_that_need_each_other_end(cache):
    """Two computations that need each other's values end, also if the need arises in a task that
    they begin, or if a computation needs its own key."""

    async def main():
        inside = 0

        async def compute(mine, other):
            nonlocal inside
            inside += 1
            await until(lambda: inside >= 2)
            needed = cache.aget_or_compute(
                other, lambda: asyncio.sleep(0, other), wait=10 * PATIENCE_S
            )
            assert await asyncio.ensure_future(needed) == other
            return mine

        assert await asyncio.gather(
            cache.aget_or_compute("a", lambda: compute("a", "b"), wait=10 * PATIENCE_S),
            cache.aget_or_compute("b", lambda: compute("b", "a"), wait=10 * PATIENCE_S),
        ) == ["a", "b"]

        async def itself():
            return 1 + await cache.aget_or_compute("self", lambda: asyncio.sleep(0, 1))

        assert await cache.aget_or_compute("self", itself) == 2

    run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_call_that_blocks_the_loop_does_not_wait_for_its_own_coroutine(cache):
    async def main():
        slow = Slow(1)
        asked = asyncio.ensure_future(cache.aget_or_compute("a", slow))
        await until(lambda: slow.calls == 1)
        assert cache.get_or_compute("a", lambda: 2, wait=10 * PATIENCE_S) == 2
        slow.go.set()
        assert await asked == 1

    run(main())


def test_a_late_coroutine_is_not_waited_for(cache):
    async def main():
        slow = Slow("late")
        first = asyncio.ensure_future(cache.aget_or_compute("a", slow))
        await until(lambda: slow.calls == 1)
        with pytest.raises(LockTimeout):
            await cache.aget_or_compute("a", fail, wait=0.01, when_late="raise")
        in_time = await cache.aget_or_compute("a", lambda: asyncio.sleep(0, "in time"), wait=0.01)
        slow.go.set()
        assert (in_time, await first) == ("in time", "late")

    run(main())
    assert cache.get("a") == "in time"
    assert (cache.stats().stolen, cache.stats().not_stored) == (1, 1)


# ---- several processes ----


def test_the_loop_goes_on_while_another_process_computes(cache):
    child, go = claimed_elsewhere(cache, "a")

    async def main():
        asked = [asyncio.ensure_future(cache.aget_or_compute("a", fail)) for _ in range(5)]
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not any(each.done() for each in asked)
        go()
        assert await asyncio.gather(*asked) == ["theirs"] * 5

    run(main())
    assert child.result() == "theirs"
    assert cache.stats().computed == 1


def test_a_dead_process_is_taken_over(cache):
    child, _ = claimed_elsewhere(cache, "a")

    async def main():
        asked = asyncio.ensure_future(
            cache.aget_or_compute("a", lambda: asyncio.sleep(0, "mine"), wait=10 * PATIENCE_S)
        )
        await asyncio.sleep(0.01)
        child.kill()
        assert await asyncio.wait_for(asked, PATIENCE_S) == "mine"

    run(main())
    assert cache.get("a") == "mine"


def test_a_stopped_process_is_late(cache):
    child, go = claimed_elsewhere(cache, "a")
    os.kill(child.pid, signal.SIGSTOP)

    async def main():
        with pytest.raises(LockTimeout):
            await cache.aget_or_compute("a", fail, wait=0.01, when_late="raise")
        return await cache.aget_or_compute("a", lambda: asyncio.sleep(0, "mine"), wait=0.01)

    assert run(main()) == "mine"
    os.kill(child.pid, signal.SIGCONT)
    go()
    assert child.result() == "theirs"
    assert cache.get("a") == "mine"


def test_a_circle_through_another_process_ends(cache):
    """This loop computes a, which needs c, which needs b; another process computes b, which needs
    a. Both calls end."""
    started, go = os.pipe(), os.pipe()

    def ask():
        def compute():
            os.write(started[1], b".")
            os.read(go[0], 1)
            return mine.get_or_compute("a", lambda: "a of child", wait=10 * PATIENCE_S)

        with reopened(cache.name) as mine:
            return mine.get_or_compute("b", compute, wait=10 * PATIENCE_S)

    child = Child(ask)
    os.read(started[0], 1)

    async def needs(key):
        return await cache.aget_or_compute(
            key, lambda: asyncio.sleep(0, "b of parent"), wait=10 * PATIENCE_S
        )

    async def compute():
        os.write(go[1], b".")
        inner = cache.aget_or_compute("c", lambda: needs("b"), wait=10 * PATIENCE_S)
        return await asyncio.ensure_future(inner)

    run(asyncio.wait_for(cache.aget_or_compute("a", compute, wait=10 * PATIENCE_S), PATIENCE_S))

    child.result()


def test_a_child_of_fork_computes_in_a_loop_of_its_own(cache):
    async def main():
        slow = Slow(1)
        asked = asyncio.ensure_future(cache.aget_or_compute("a", slow))
        await until(lambda: slow.calls == 1)
        assert in_child(in_own_loop, cache) == 5
        slow.go.set()
        assert await asked == 1

    run(main())


def in_own_loop(cache):
    asyncio._set_running_loop(None)
    return run(cache.aget_or_compute("b", lambda: asyncio.sleep(0, 5)))


# ---- memoize ----


def test_a_memoized_coroutine_function_is_called_once(cache):
    calls = []

    @cache.memoize(ttl=100)
    async def double(number):
        """Twice the number."""
        calls.append(number)
        await asyncio.sleep(0)
        return 2 * number

    async def main():
        assert await asyncio.gather(double(1), double(1), double(2)) == [2, 2, 4]
        assert await double.refresh(1) == 2
        assert double.forget(2)
        assert await double(2) == 4
        assert await double.__wrapped__(5) == 10

    run(main())
    assert sorted(calls) == [1, 1, 2, 2, 5]
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert cache.get(double.cache_key(1)) == 2


def test_errors_of_a_coroutine_function_are_kept(cache):
    calls = []

    @cache.memoize(errors=KeyError, error_ttl=100)
    async def find(name):
        calls.append(name)
        raise KeyError(name)

    async def main():
        for _ in range(3):
            with pytest.raises(KeyError, match="x"):
                await find("x")

    run(main())
    assert calls == ["x"]


def test_more_computations_than_contexts_leave_some_for_other_operations(make_cache):
    """Beyond seven eighths of the contexts, keys are computed without a claim, and not stored."""
    cache = make_cache(**cache_options(1 << 20, key=int, value=object, max_entries=5_000))
    most = cache.handle.info()["contexts_max"]
    slow = Slow("value")

    async def all_of_them():
        tasks = [asyncio.create_task(cache.aget_or_compute(key, slow)) for key in range(2 * most)]
        await until(lambda: slow.calls == 2 * most)
        cache.set(-1, "stored")
        assert in_child(read_and_compute, cache.name) == ("stored", "computed")
        with cache.mutex(-2):
            slow.go.set()
            return await asyncio.gather(*tasks)

    assert run(all_of_them()) == ["value"] * (2 * most)
    stored = sum(cache.get(key) == "value" for key in range(2 * most))
    print(f"{stored} results are stored, of {most} contexts")
    assert 0.8 * most < stored <= 0.875 * most

    assert [cache.get_or_compute(key, lambda: 7) for key in range(-9, -3)] == [7] * 6
    assert [cache.get(key) for key in range(-9, -3)] == [7] * 6
    assert cache.handle.info()["contexts"] < most // 2
    cache.check()


def read_and_compute(name):
    with Cache(name, key=int, value=object) as cache:
        return cache.get(-1), cache.get_or_compute(-3, lambda: "computed")
