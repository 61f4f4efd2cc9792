"""A Cache as a cachelib cache, and so as that of Flask-Caching and Flask-Session."""

from __future__ import annotations

import datetime
import math
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache

try:
    from cachelib import BaseCache
    from cachelib.serializers import BaseSerializer
except ImportError as _error:
    raise _adapters.needs("cachelib", "cachelib") from _error

Timeout = int | datetime.timedelta | None


class ShmCache(BaseCache):
    """A cachelib cache, shared by all processes of the machine.

        Cache(app, config={"CACHE_TYPE": "shmrhash.cachelib.ShmCache", "CACHE_ARGS": ["my-site"]})

    makes it Flask-Caching's; CACHE_OPTIONS are the other arguments of ShmCache(). For Flask-Session
    set SESSION_TYPE to "cachelib" and SESSION_CACHELIB to a ShmCache.

    Values are pickled; one that cannot be unpickled any more is absent. If `serializer` is set, to
    a serializer of cachelib, it makes the bytes instead. set() of a value that is too large returns
    False, and the old value is gone. add(), inc() and dec() are atomic; inc() and dec() keep the
    deadline. A timeout of 0 is without limit.

    Attributes: shm, the Cache, for example for shm.stats(); serializer.
    """

    serializer: BaseSerializer | None = None

    def __init__(
        self,
        name: str,
        default_timeout: int | datetime.timedelta = 300,
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
        key_prefix: str | None = None,
        ignore_delete_many_errors: bool = True,
    ) -> None:
        """Open the Cache of this name, or create it.

        max_entries, max_bytes, mode: as for Cache(). key_prefix: put before each key; clear() then
        deletes the keys that have it, which costs a walk over the cache.

        Raises InvalidArgument (open in this process with other limits), and what Cache() raises.
        """
        super().__init__(default_timeout, ignore_delete_many_errors=ignore_delete_many_errors)
        self.key_prefix = key_prefix or ""
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

    def _seconds(self, timeout: Timeout) -> float:
        seconds = self._normalize_timeout(timeout)
        return math.inf if seconds == 0 else float(seconds)

    def _dumped(self, value: Any) -> Any:
        return value if self.serializer is None else self.serializer.dumps(value)

    def _loaded(self, stored: Any) -> Any:
        if self.serializer is None or stored is None:
            return stored
        return self.serializer.loads(stored)

    def get(self, key: str) -> Any:
        return self._loaded(self.shm.get(self.key_prefix + key))

    def set(self, key: str, value: Any, timeout: Timeout = None) -> bool:
        seconds = self._seconds(timeout)
        return _adapters.store(self.shm, self.key_prefix + key, self._dumped(value), seconds)

    def add(self, key: str, value: Any, timeout: Timeout = None) -> bool:
        seconds = self._seconds(timeout)
        return _adapters.store_new(self.shm, self.key_prefix + key, self._dumped(value), seconds)

    def delete(self, key: str) -> bool:
        return self.shm.delete(self.key_prefix + key)

    def has(self, key: str) -> bool:
        return self.key_prefix + key in self.shm

    def clear(self) -> bool:
        _adapters.clear_prefix(self.shm, self.key_prefix)
        return True

    def inc(self, key: str, delta: int = 1) -> Any:
        changed = _adapters.change_or_store(
            self.shm,
            self.key_prefix + key,
            lambda stored: self._dumped((self._loaded(stored) or 0) + delta),
            None,
            self._seconds(None),
        )
        return self._loaded(changed)

    def dec(self, key: str, delta: int = 1) -> Any:
        return self.inc(key, -delta)
