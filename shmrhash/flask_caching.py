"""Flask-Caching's cache in Redis, kept near: its CACHE_TYPE is
"shmrhash.flask_caching.NearRedisCache"."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

from shmrhash import _adapters
from shmrhash._near.cache import NearCache
from shmrhash._near.shared import near_of

try:
    from flask_caching.backends.rediscache import RedisCache
except ImportError as _error:
    raise _adapters.needs("Flask-Caching", "flask-caching") from _error

Timeout = int | datetime.timedelta | None


class NearRedisCache(RedisCache):
    """Flask-Caching's RedisCache, whose hot keys are in the memory of this machine.

    The settings are those of RedisCache (CACHE_REDIS_URL, CACHE_KEY_PREFIX and so on); CACHE_NEAR
    may have options of NearCache(): {"max_stale": 0.5, "max_bytes": 64 << 20}. With a
    CACHE_KEY_PREFIX the server tells of changes below it, else of all. get(), get_many() and has()
    read what a NearCache reads; a write is done when the server has it and this machine has
    forgotten the old value.

    Attributes: near, the NearCache.
    """

    _options: dict[str, Any] = {}  # noqa: RUF012 (replaced by factory())
    _near: NearCache | None = None

    @classmethod
    def factory(
        cls, app: Any, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
    ) -> NearRedisCache:
        """Called by Flask-Caching."""
        made: NearRedisCache = super().factory(app, config, args, kwargs)
        made._options = dict(config.get("CACHE_NEAR") or {})
        return made

    @property
    def near(self) -> NearCache:
        """The NearCache, opened at the first use. Raises what NearCache() raises."""
        if self._near is None:
            prefix = self.key_prefix if isinstance(self.key_prefix, str) else ""
            self._near = near_of(self._write_client, [prefix], self._options)
        return self._near

    def _names(self, *keys: str) -> list[str]:
        prefix = self._get_prefix()
        return [f"{prefix}{key}" for key in keys]

    @contextlib.contextmanager
    def _forgetting(self, *keys: str) -> Iterator[None]:
        """Around a write: after it, also if it fails, the keys are asked for again."""
        near = self.near
        try:
            yield
        finally:
            near.invalidate(*self._names(*keys))

    def get(self, key: str) -> Any:
        return self.serializer.loads(self.near.get(*self._names(key)))

    def get_many(self, *keys: str) -> list[Any]:
        names = self._names(*keys)
        found = self.near.get_many(names)
        return [self.serializer.loads(found.get(name)) for name in names]

    def has(self, key: str) -> bool:
        return self.near.get(*self._names(key)) is not None

    def set(self, key: str, value: Any, timeout: Timeout = None) -> Any:
        with self._forgetting(key):
            return super().set(key, value, timeout)

    def add(self, key: str, value: Any, timeout: Timeout = None) -> Any:
        with self._forgetting(key):
            return super().add(key, value, timeout)

    def set_many(self, mapping: dict[str, Any], timeout: Timeout = None) -> Any:
        with self._forgetting(*mapping):
            return super().set_many(mapping, timeout)

    def delete(self, key: str) -> bool:
        with self._forgetting(key):
            return bool(super().delete(key))

    def delete_many(self, *keys: str) -> list[str]:
        if keys:
            with self._forgetting(*keys):
                self._write_client.delete(*self._names(*keys))
        return list(keys)

    def unlink(self, *keys: str) -> Any:
        with self._forgetting(*keys):
            return super().unlink(*keys)

    def inc(self, key: str, delta: int = 1) -> Any:
        with self._forgetting(key):
            return super().inc(key, delta)

    def dec(self, key: str, delta: int = 1) -> Any:
        with self._forgetting(key):
            return super().dec(key, delta)

    def clear(self) -> bool:
        near = self.near
        try:
            return bool(super().clear())
        finally:
            near.clear()
