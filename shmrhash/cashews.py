"""A Cache as a backend of cashews: cache.setup("shmrhash://?name=my-site")."""

from __future__ import annotations

import asyncio
import copy
import math
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache
from shmrhash._errors import KeyNotFound

try:
    from cashews.backends.interface import NOT_EXIST, UNLIMITED, Backend
    from cashews.utils import Bitarray
    from cashews.wrapper.backend_settings import register_backend
except ImportError as _error:
    raise _adapters.needs("cashews", "cashews") from _error


class ShmBackend(Backend):
    """A backend of cashews, shared by all processes of the machine.

        import shmrhash.cashews
        cache.setup("shmrhash://?name=my-site&max_entries=10000")

    The parameters are name, and max_entries and max_bytes as of Cache(). Operations call straight
    through, since each takes microseconds; scan(), get_match() and delete_match() walk over the
    cache. Values are pickled by the cache, and one that cannot be unpickled any more is absent.
    Counters, bits, sets and slices change in one step, whatever other processes do. A lock of
    cashews is a value with a lifetime, so one whose owner was killed is held until it expires.

    Attributes: shm, the Cache, for example for shm.stats().
    """

    def __init__(
        self,
        name: str,
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
        **options: Any,
    ) -> None:
        """Called by cashews; the cache is opened by init(), or at the first use."""
        super().__init__(**options)
        self._name = name
        self._limits: dict[str, Any] = {
            "max_entries": max_entries,
            "max_bytes": max_bytes,
            "mode": mode,
        }
        self._started = False

    @property
    def shm(self) -> Cache:
        """The Cache in which the values are. Raises what Cache() raises."""
        return _adapters.cache_of(self._name, **self._limits)

    @property
    def is_init(self) -> bool:
        return self._started

    async def init(self) -> None:
        _ = self.shm
        self._started = True

    async def close(self) -> None:
        self._started = False

    async def ping(self, message: bytes | None = None) -> bytes:
        return b"PONG" if message in (None, b"PING") else message

    async def clear(self) -> None:
        self.shm.clear()

    # Values.

    async def _encoded(self, key: str, value: Any, expire: float | None) -> Any:
        if not self._serializer:
            return value
        return await self._serializer.encode(self, key=key, value=value, expire=expire)

    async def _decoded(self, key: str, stored: Any, default: Any) -> Any:
        if stored is _adapters.MISSING:
            return default
        if not self._serializer or isinstance(stored, Bitarray):
            return stored
        return await self._serializer.decode(self, key=key, value=stored, default=default)

    def _store(self, key: str, stored: Any, expire: float | None, exist: bool | None) -> bool:
        """Store a value; without expire that of an existing key keeps its deadline."""
        cache, seconds = self.shm, expire or math.inf
        if exist is False:
            return _adapters.store_new(cache, key, stored, seconds)
        if not exist and expire:
            return _adapters.store(cache, key, stored, seconds)
        try:
            if not exist:
                _adapters.change_or_store(cache, key, lambda _: stored, None, seconds)
                return True
            _adapters.change(cache, key, lambda _: stored)
        except KeyNotFound:
            return False
        except _adapters.NO_ROOM:
            return _adapters.store(cache, key, stored, seconds)
        if expire:
            cache.touch(key, expire)
        return True

    async def set(
        self, key: str, value: Any, expire: float | None = None, exist: bool | None = None
    ) -> bool:
        return self._store(key, await self._encoded(key, value, expire), expire, exist)

    async def set_many(self, pairs: Mapping[str, Any], expire: float | None = None) -> None:
        for key, value in pairs.items():
            await self.set(key, value, expire)

    async def set_raw(self, key: str, value: Any, **kwargs: Any) -> None:
        _adapters.store(self.shm, key, value, math.inf)

    async def get(self, key: str, default: Any = None) -> Any:
        return await self._decoded(key, self.shm.get(key, _adapters.MISSING), default)

    async def get_raw(self, key: str) -> Any:
        return self.shm.get(key)

    async def get_many(self, *keys: str, default: Any = None) -> tuple[Any, ...]:
        found = [(key, self.shm.get(key, _adapters.MISSING)) for key in keys]
        return tuple(
            [
                await self._decoded(key, stored, default)
                for key, stored in found
                if not isinstance(stored, Bitarray)
            ]
        )

    async def exists(self, key: str) -> bool:
        return key in self.shm

    async def delete(self, key: str) -> bool:
        if not self.shm.delete(key):
            return False
        await self._call_on_remove_callbacks(key)
        return True

    async def delete_many(self, *keys: str) -> None:
        for key in keys:
            await self.delete(key)

    async def expire(self, key: str, timeout: float) -> None:
        self.shm.touch(key, timeout)

    async def get_expire(self, key: str) -> int:
        try:
            left = self.shm.ttl(key)
        except KeyNotFound:
            return int(NOT_EXIST)
        return int(UNLIMITED) if left is None else round(left)

    async def get_size(self, key: str) -> int:
        stored = self.shm.get(key, _adapters.MISSING)
        return 0 if stored is _adapters.MISSING else sys.getsizeof(stored)

    # Many keys: walks.

    async def scan(self, pattern: str, batch_size: int = 100) -> AsyncIterator[str]:
        fits = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL).fullmatch
        for number, key in enumerate(_adapters.keys_with(self.shm, pattern.partition("*")[0])):
            if number % batch_size == batch_size - 1:
                await asyncio.sleep(0)  # others may run
            if fits(key):
                yield key

    async def get_match(
        self, pattern: str, batch_size: int = 100
    ) -> AsyncIterator[tuple[str, Any]]:
        async for key in self.scan(pattern, batch_size):
            stored = self.shm.get(key, _adapters.MISSING)
            if stored is not _adapters.MISSING and not isinstance(stored, Bitarray):
                yield key, await self._decoded(key, stored, None)

    async def delete_match(self, pattern: str) -> None:
        async for key in self.scan(pattern):
            await self.delete(key)

    async def get_keys_count(self) -> int:
        return sum(1 for _ in _adapters.keys_with(self.shm, ""))  # len() counts what has expired

    # Values that change in one step.

    def _change(
        self, key: str, function: Callable[[Any], Any], initial: Any, expire: float | None
    ) -> Any:
        return _adapters.change_or_store(self.shm, key, function, initial, expire or math.inf)

    async def incr(self, key: str, value: int = 1, expire: float | None = None) -> int:
        seconds = expire if value == 1 else None
        total: int = self._change(key, lambda found: int(found) + value, 0, seconds)
        return total

    async def get_bits(self, key: str, *indexes: int, size: int = 1) -> tuple[int, ...]:
        array = self.shm.get(key) or Bitarray("0")
        return tuple(array.get(index, size) for index in indexes)

    async def incr_bits(
        self, key: str, *indexes: int, size: int = 1, by: int = 1
    ) -> tuple[int, ...]:
        def increase(found: Any) -> Any:
            array = copy.deepcopy(found)
            for index in indexes:
                array.incr(index, size, by)
            return array

        array = self._change(key, increase, Bitarray("0"), None)
        return tuple(array.get(index, size) for index in indexes)

    async def slice_incr(
        self, key: str, start: float, end: float, maxvalue: int, expire: float | None = None
    ) -> int:
        count = 0

        def append(moments: Any) -> list[float]:
            nonlocal count
            inside = [moment for moment in moments if start <= moment < end]
            if len(inside) < maxvalue:
                inside.append(end)
            count = len(inside)
            return inside

        self._change(key, append, [], expire)
        if expire:
            self.shm.touch(key, expire)
        return count

    async def set_add(self, key: str, *values: str, expire: float | None = None) -> None:
        self._change(key, lambda found: found | set(values), set(), expire)
        if expire:
            self.shm.touch(key, expire)

    async def set_remove(self, key: str, *values: str) -> None:
        self._change(key, lambda found: found - set(values), set(), None)

    async def set_pop(self, key: str, count: int = 100) -> Iterable[str]:
        taken: list[str] = []

        def take(found: Any) -> set[str]:
            taken[:] = list(found)[:count]
            return set(found) - set(taken)

        self._change(key, take, set(), None)
        return taken

    # Locks: values with a lifetime.

    async def is_locked(self, key: str, wait: float | None = None, step: float = 0.1) -> bool:
        while wait is not None and wait > 0:
            if key not in self.shm:
                return False
            wait -= step
            await asyncio.sleep(step)
        return key in self.shm

    async def unlock(self, key: str, value: Any) -> bool:
        stored = await self._encoded(key, value, None)
        mine = False

        def remove(found: Any) -> Any:
            nonlocal mine
            mine = bool(found == stored)
            return _adapters.MISSING if mine else found

        try:
            _adapters.change(self.shm, key, remove)
        except KeyNotFound:
            return False
        return mine


register_backend("shmrhash", ShmBackend)
