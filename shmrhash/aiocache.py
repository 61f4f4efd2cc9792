"""A Cache as a cache of aiocache: ShmCache("my-site"), or "cache": "shmrhash.aiocache.ShmCache"."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache
from shmrhash._errors import KeyNotFound

try:
    from aiocache.base import BaseCache
    from aiocache.serializers import NullSerializer
except ImportError as _error:
    raise _adapters.needs("aiocache", "aiocache") from _error


class ShmCache(BaseCache):
    """A cache of aiocache, shared by all processes of the machine.

        cache = ShmCache("my-site", ttl=60)

    Operations call straight through, since each takes microseconds; a clear() walks over the cache.
    Values are pickled unless a serializer of aiocache makes str or bytes of them; one that cannot
    be unpickled any more is absent. One that is too large is not stored, and set() returns False.
    increment() is atomic and keeps the deadline; so are the compare-and-swap of OptimisticLock and
    the release of RedLock.

    Attributes: shm, the Cache, for example for shm.stats().
    """

    NAME = "shmrhash"

    def __init__(
        self,
        name: str,
        serializer: Any = None,
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
        **options: Any,
    ) -> None:
        """Open the Cache of this name, or create it.

        max_entries, max_bytes, mode: as for Cache(). serializer and the other options are those of
        aiocache's BaseCache: plugins, namespace, key_builder, timeout, ttl.

        Raises InvalidArgument (open in this process with other limits), and what Cache() raises.
        """
        super().__init__(serializer=serializer or NullSerializer(), **options)
        self._name = name
        self._limits: dict[str, Any] = {
            "max_entries": max_entries,
            "max_bytes": max_bytes,
            "mode": mode,
        }
        _ = self.shm

    @property
    def shm(self) -> Cache:
        """The Cache in which the values are."""
        return _adapters.cache_of(self._name, **self._limits)

    async def _get(self, key: str, encoding: str = "utf-8", _conn: Any = None) -> Any:
        return self.shm.get(key)

    _gets = _get

    async def _multi_get(
        self, keys: Iterable[str], encoding: str = "utf-8", _conn: Any = None
    ) -> list[Any]:
        return [self.shm.get(key) for key in keys]

    async def _set(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        _cas_token: Any = None,
        _conn: Any = None,
    ) -> Any:
        if _cas_token is None:
            return _adapters.store(self.shm, key, value, ttl or math.inf)
        try:
            if not self._swap(key, _cas_token, value):
                return 0
        except KeyNotFound:
            return 0
        if ttl:
            self.shm.touch(key, ttl)
        return True

    def _swap(self, key: str, expected: Any, value: Any) -> bool:
        """Store a value, or with MISSING delete the key, if its value is the expected one."""
        swapped = False

        def swap(found: Any) -> Any:
            nonlocal swapped
            swapped = bool(found == expected)
            return value if swapped else found

        _adapters.change(self.shm, key, swap)
        return swapped

    async def _multi_set(
        self, pairs: Iterable[tuple[str, Any]], ttl: float | None = None, _conn: Any = None
    ) -> bool:
        stored = [_adapters.store(self.shm, key, value, ttl or math.inf) for key, value in pairs]
        return all(stored)

    async def _add(self, key: str, value: Any, ttl: float | None = None, _conn: Any = None) -> bool:
        if not _adapters.store_new(self.shm, key, value, ttl or math.inf):
            raise ValueError(f"Key {key} already exists, use .set to update the value")
        return True

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return key in self.shm

    async def _increment(self, key: str, delta: int, _conn: Any = None) -> int:
        def increase(value: Any) -> int:
            try:
                return int(value) + delta
            except ValueError:
                raise TypeError("Value is not an integer") from None

        changed: int = _adapters.change_or_store(self.shm, key, increase, 0, math.inf)
        return changed

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        return self.shm.touch(key, ttl or math.inf)

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return int(self.shm.delete(key))

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        _adapters.clear_prefix(self.shm, namespace or "")
        return True

    async def _raw(
        self, command: str, *args: Any, encoding: str = "utf-8", _conn: Any = None, **kwargs: Any
    ) -> Any:
        return getattr(self.shm, command)(*args, **kwargs)

    async def _redlock_release(self, key: str, value: Any) -> int:
        try:
            return int(self._swap(key, value, _adapters.MISSING))
        except KeyNotFound:
            return 0

    @classmethod
    def parse_uri_path(cls, path: str) -> dict[str, str]:
        return {"name": path.strip("/")}
