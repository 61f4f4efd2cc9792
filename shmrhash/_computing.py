"""get_or_compute() for coroutines: the event loop goes on while a coroutine waits or computes.

The coroutines of a loop that ask a cache for the same key share one computation: the first is its
leader, the others wait for the leader's result, and if the leader fails or is cancelled, one of
them becomes the leader. The leader claims the key for the process (cython/python/claiming.pxi).
While another process has the claim, the leader looks every 1 to 16 milliseconds, since the owner
may be dead.

Computations may ask for other keys. Each knows the computations for which it waits, so a coroutine
that would wait for itself, by way of other coroutines of its loop, computes instead. A circle
through other processes is found as threads find it, by the word of each claim that names the
element for which its owner waits: the claims of a coroutine are those of the computations in which
it runs.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeVar

from shmrhash import _core
from shmrhash._arguments import tag_names
from shmrhash._errors import LockTimeout

_PAUSE_S_MIN, _PAUSE_S_MAX = 0.001, 0.016  # between two looks at the claim of another process
_ABSENT: Any = object()
_T = TypeVar("_T")
_Place = tuple[tuple[object, ...], bytes]  # a key of a cache


class _Computation:
    """What the coroutines of one loop that ask for one key have in common."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.result: asyncio.Future[Any] = loop.create_future()  # _ABSENT: another has to lead
        self.claim: _core.Claim | None = None  # once the leader has claimed the key
        self.waits_for: dict[_Computation, int] = {}  # with the number of coroutines that do
        self.asking: list[tuple[_Computation, ...]] = []  # the computations that wait for this one

    def leads_to(self, ends: tuple[_Computation, ...]) -> bool:
        """Whether this computation waits for one of these, or is one of them."""
        seen: set[_Computation] = set()
        left = [self]
        while left:  # ends when each computation of the loop has been seen
            one = left.pop()
            if one in ends:
                return True
            if one not in seen:
                seen.add(one)
                left.extend(one.waits_for)
        return False

    def say(self, element: int) -> None:
        """Tell other processes that the computation of this key waits for an element."""
        for outer in self.asking:
            for one in outer:
                if one.claim is not None:
                    one.claim.waits_for(element)

    def end(self, result: Any) -> None:
        if not self.result.done():
            self.result.set_result(result)


# Those of each loop; and, for a coroutine, the ones inside which it runs.
_computations: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Place, _Computation]] = (
    weakref.WeakKeyDictionary()
)
_outer: ContextVar[tuple[_Computation, ...]] = ContextVar("shmrhash computations", default=())

os.register_at_fork(after_in_child=_computations.clear)  # the loops are the parent's


async def refreshed(
    cache: _core.CacheCore[Any, Any],
    key: Any,
    function: Callable[[], Awaitable[Any]],
    ttl: Any,
    stale: float,
    early: float,
    found: Any,
    tags: Iterable[str],
) -> Any:
    """The value found, or another one, if this coroutine is to compute it again."""
    others = [one.claim for one in _outer.get() if one.claim is not None]
    claim = cache._begin_refresh(key, stale, early, others, asyncio.current_task(), tags)
    if claim is None:
        return found
    try:
        value = await function()
    except BaseException:
        claim.drop()
        raise
    claim.keep(value, ttl, stale)
    return value


class Question:
    """One coroutine's wish for the value of a key."""

    def __init__(
        self,
        cache: _core.CacheCore[Any, Any],
        key: Any,
        function: Callable[[], Awaitable[Any]],
        ttl: Any,
        stale: float,
        wait: float,
        when_late: str,
        tags: Iterable[str],
    ) -> None:
        self._cache = cache
        self._key = key
        self._function = function
        self._ttl = ttl
        self._stale = stale
        self._when_late = when_late
        self._tags = tag_names(tags)
        self._deadline = _core.deadline_after(wait)
        self._place = _core.notifier_key(cache.handle), cache._raw_key(key)
        self._loop = asyncio.get_running_loop()
        self._table = _computations.setdefault(self._loop, {})
        self._outer = tuple(one for one in _outer.get() if not one.result.done())

    async def answer(self) -> Any:
        """The value, which is absent: from another computation, or computed."""
        while True:  # ends with a value or an exception, or as the leader
            running = self._table.get(self._place)
            if running is None:
                return await self._lead()
            if running.leads_to(self._outer):
                return await self._function()
            found = await self._follow(running)
            if found is not _ABSENT:
                return found

    def _seconds_left(self) -> float | None:
        if self._deadline < 0:
            return None
        return max(0.0, (self._deadline - _core.clock_monotonic_ns()) / 1e9)

    async def _follow(self, running: _Computation) -> Any:
        """Wait for a computation; return its result, or _ABSENT if this coroutine has to look
        again. Raises LockTimeout."""
        for one in self._outer:
            one.waits_for[running] = one.waits_for.get(running, 0) + 1
        running.asking.append(self._outer)
        if running.claim is not None:
            running.say(running.claim.element)
        try:
            await asyncio.wait([running.result], timeout=self._seconds_left())
        finally:
            running.asking.remove(self._outer)
            for one in self._outer:
                one.waits_for[running] -= 1
                if not one.waits_for[running]:
                    del one.waits_for[running]
                if one.claim is not None:
                    one.claim.waits_for(0)
        if running.result.done():
            result = running.result.result()
            # A copy of its own, if it was stored.
            return result if result is _ABSENT else self._cache._peek(self._key, result)
        if self._when_late == "raise":
            raise LockTimeout(f"cache {self._cache.handle.name!r}: the value is not computed yet")
        if self._table.get(self._place) is running:
            del self._table[self._place]  # this coroutine leads, and cuts the claim off
        return _ABSENT

    async def _lead(self) -> Any:
        mine = self._table[self._place] = _Computation(self._loop)
        mine.asking.append(self._outer)
        result = _ABSENT
        try:
            claim = await self._claimed(mine)
            if claim is None:
                result = self._cache._peek(self._key, _ABSENT)
            if claim is not None or result is _ABSENT:
                result = await self._compute(mine, claim)
            return result
        finally:
            mine.say(0)
            if self._table.get(self._place) is mine:
                del self._table[self._place]
            mine.end(result)

    async def _claimed(self, mine: _Computation) -> _core.Claim | None:
        """Claim the key; None: it has a value now, or has to be computed without a claim. Raises
        LockTimeout."""
        others = [one.claim for one in self._outer if one.claim is not None]
        pause_s = _PAUSE_S_MIN
        while True:  # ends with the deadline
            claim = _core.Claim(
                self._cache, self._key, 0, others, asyncio.current_task(), tags=self._tags
            )
            taken = claim.attempt()
            if taken is not None:
                return claim if taken else None
            if self._seconds_left() == 0.0:
                if self._when_late == "raise":
                    raise LockTimeout(
                        f"cache {self._cache.handle.name!r}: the value is not computed yet"
                    )
                claim.cut_off()
                await asyncio.sleep(0)
                continue
            mine.say(claim.element)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _compute(self, mine: _Computation, claim: _core.Claim | None) -> Any:
        mine.claim = claim
        if claim is not None:
            mine.say(claim.element)
        token = _outer.set((*self._outer, mine))
        try:
            value = await self._function()
        except BaseException:
            if claim is not None:
                claim.drop()
            raise
        finally:
            _outer.reset(token)
        if claim is not None:
            claim.keep(value, self._ttl, self._stale)
        return value
