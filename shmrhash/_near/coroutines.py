"""The methods of NearCache for coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from shmrhash import _core
from shmrhash._near.source import Fetched
from shmrhash._near.steps import BATCH, MISSING, NO_ROOM, TRIES_MAX, NearSteps, raw_of

_PAUSE_MIN, _PAUSE_MAX = 0.0005, 0.004  # of a coroutine that waits for a claim


class NearCoroutines(NearSteps):
    """The part of NearCache for coroutines. A hit awaits nothing."""

    # The fetches that tasks of a loop wait for, by the place of the key.
    _flights: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Future[None]]

    async def aget(self, key: str | bytes, default: Any = None) -> Any:
        """get() for coroutines: a hit awaits nothing, and a miss lets the loop go on.

        Raises what get() raises.
        """
        raw = raw_of(key)
        self._enter()
        pause, waited = _PAUSE_MIN, 0.0
        for _ in range(TRIES_MAX + int(self._flight / _PAUSE_MIN)):
            node = self._node_of(raw)
            found = self._look(raw, node, MISSING) if node >= 0 else MISSING
            if found is not MISSING:
                return default if found is None else found
            line = self._watched(node)
            if line is None or not self._source.covers(raw):
                break
            place = asyncio.get_running_loop(), self._place(raw, line.epoch)
            running = self._flights.get(place)
            if running is not None:
                await asyncio.wait([running], timeout=self._flight)
                waited += 0.0 if running.done() else self._flight
                if waited >= self._flight:
                    break
                continue
            claim = _core.Claim(self._entries, place[1], 0, [], asyncio.current_task())
            try:
                taken = claim.attempt()
            except NO_ROOM:
                break
            if taken:
                return self._value(await self._afilled(claim, raw, node, place), default)
            if claim.has_to_compute:
                break
            if taken is None:
                if waited >= self._flight:
                    claim.cut_off()
                await asyncio.sleep(pause)
                waited, pause = waited + pause, min(2 * pause, _PAUSE_MAX)
        self._expect_no_outage(raw)
        self._count_miss()
        (answer,) = await self._source.afetch([raw])
        self._rearm()
        return self._value(answer, default)

    async def _afilled(
        self,
        claim: _core.Claim,
        raw: bytes,
        node: int,
        place: tuple[asyncio.AbstractEventLoop, bytes],
    ) -> Fetched:
        self._count_miss()
        mine = self._flights[place] = place[0].create_future()
        sent = time.monotonic()
        try:
            (answer,) = await self._source.afetch([raw])
            self._keep(claim, answer, node, sent)
        except BaseException:
            claim.drop()
            raise
        finally:
            del self._flights[place]
            mine.set_result(None)
        self._rearm()
        return answer

    async def aget_many(self, keys: Iterable[str | bytes]) -> dict[Any, Any]:
        """get_many() for coroutines; 64 keys are asked for at the same time.

        Raises what get() raises.
        """
        wanted = list(dict.fromkeys(keys))
        values: list[Any] = []
        for at in range(0, len(wanted), BATCH):
            some = wanted[at : at + BATCH]
            values += await asyncio.gather(*(self.aget(key, MISSING) for key in some))
        return {
            key: value for key, value in zip(wanted, values, strict=True) if value is not MISSING
        }

    async def aset(
        self,
        key: str | bytes,
        value: Any,
        ttl: float | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool:
        """set() for coroutines.

        Raises what set() raises.
        """
        self._enter()
        raw = raw_of(key)
        try:
            return await self._source.aset(raw, self._encode(value), ttl, nx=nx, xx=xx)
        finally:
            self._forget([raw])

    async def adelete(self, *keys: str | bytes) -> int:
        """delete() for coroutines.

        Raises what delete() raises.
        """
        self._enter()
        raw = [raw_of(key) for key in keys]
        try:
            return await self._source.adelete(raw)
        finally:
            self._forget(raw)

    async def aget_or_set(
        self, key: str | bytes, make: Callable[[], Awaitable[Any]], ttl: float | None = None
    ) -> Any:
        """get_or_set() for coroutines; two tasks may make a value, and one is stored.

        Raises what make(), get() and set() raise.
        """
        found = await self.aget(key, MISSING)
        if found is not MISSING:
            return found
        made = await make()
        if await self.aset(key, made, ttl, nx=True):
            return made
        return await self.aget(key, made)
