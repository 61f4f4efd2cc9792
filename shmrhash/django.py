"""A Cache as Django's cache: "BACKEND": "shmrhash.django.ShmCache", "LOCATION": a name.

And Django's cache in Redis, kept near: "BACKEND": "shmrhash.django.NearRedisCache".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache
from shmrhash._errors import InvalidArgument, KeyNotFound
from shmrhash._near.cache import NearCache
from shmrhash._near.shared import hit, near_of

try:
    from asgiref.sync import sync_to_async
    from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache, default_key_func
    from django.core.cache.backends.redis import RedisCache, RedisCacheClient
    from django.core.exceptions import ImproperlyConfigured
except ImportError as _error:
    raise _adapters.needs("Django", "django") from _error

_OPTIONS = {"MAX_ENTRIES": "max_entries", "MAX_BYTES": "max_bytes", "MODE": "mode"}


class ShmCache(BaseCache):
    """A cache backend of Django, shared by all processes of the machine.

        CACHES = {"default": {"BACKEND": "shmrhash.django.ShmCache", "LOCATION": "my-site"}}

    LOCATION is the name of the Cache; OPTIONS are MAX_ENTRIES (an entry for every 128 bytes of
    MAX_BYTES), MAX_BYTES (64 MiB) and MODE (0o600), as max_entries, max_bytes and mode of Cache().
    TIMEOUT, KEY_PREFIX, VERSION and KEY_FUNCTION are Django's. A process opens the cache once, at
    the first use, before or after a fork. It is evicted from entry by entry, so there is no
    CULL_FREQUENCY.

    Values are pickled; one that cannot be unpickled any more is absent. One that is too large is
    not stored: the old value is gone, and the log of "shmrhash" has a warning; set_many() returns
    its key. incr() and decr() are atomic and keep the deadline. get_or_set() with a callable calls
    it in one process at a time for each key, and the others get its result. clear() deletes what
    all applications stored under this LOCATION, whatever their KEY_PREFIX.

    The methods for coroutines call straight through: an operation takes microseconds, a change of
    threads more. aclear(), and aget_or_set() of an absent key, run in a thread.

    Attributes: shm, the Cache, for example for shm.stats().
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        """Called by Django. Raises ImproperlyConfigured (no LOCATION, an unknown option)."""
        super().__init__(params)
        options = params.get("OPTIONS", {})
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ImproperlyConfigured(
                f"shmrhash.django.ShmCache has the OPTIONS {', '.join(_OPTIONS)}, not "
                f"{', '.join(unknown)}"
            )
        if not location:
            raise ImproperlyConfigured(
                "shmrhash.django.ShmCache needs a LOCATION: the name of the cache, the same in all "
                "processes of the site"
            )
        self._name = location
        self._limits = {_OPTIONS[name]: value for name, value in options.items()}

    @property
    def shm(self) -> Cache:
        """The Cache in which this backend stores. Raises what Cache() raises."""
        return _adapters.cache_of(self._name, **self._limits)

    def _seconds(self, timeout: Any) -> float:
        """A timeout as a ttl of Cache; 0 or less: expired at once."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return math.inf if timeout is None else float(timeout)

    def add(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        key = self.make_and_validate_key(key, version=version)
        return _adapters.store_new(self.shm, key, value, self._seconds(timeout))

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        key = self.make_and_validate_key(key, version=version)
        return self.shm.get(key, default)

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        key = self.make_and_validate_key(key, version=version)
        _adapters.store(self.shm, key, value, self._seconds(timeout))

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        key = self.make_and_validate_key(key, version=version)
        seconds = self._seconds(timeout)
        return self.shm.touch(key, seconds) if seconds > 0 else self.shm.delete(key)

    def delete(self, key: str, version: int | None = None) -> bool:
        key = self.make_and_validate_key(key, version=version)
        return self.shm.delete(key)

    def has_key(self, key: str, version: int | None = None) -> bool:
        key = self.make_and_validate_key(key, version=version)
        return key in self.shm

    def incr(self, key: str, delta: Any = 1, version: int | None = None) -> Any:
        made = self.make_and_validate_key(key, version=version)
        try:
            return _adapters.change(self.shm, made, lambda value: value + delta)
        except KeyNotFound:
            raise ValueError(f"Key '{key}' not found") from None

    def get_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        made = {self.make_and_validate_key(key, version=version): key for key in keys}
        return {made[key]: value for key, value in self.shm.get_many(made).items()}

    def set_many(
        self,
        data: Mapping[str, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[str]:
        made = {self.make_and_validate_key(key, version=version): key for key in data}
        cache, seconds = self.shm, self._seconds(timeout)
        return [
            key
            for name, key in made.items()
            if not _adapters.store(cache, name, data[key], seconds)
        ]

    def get_or_set(
        self, key: str, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        seconds = self._seconds(timeout)
        if not callable(default) or seconds <= 0:
            return super().get_or_set(key, default, timeout, version)
        made = self.make_and_validate_key(key, version=version)
        return self.shm.get_or_compute(made, default, seconds)

    def clear(self) -> None:
        self.shm.clear()

    async def aadd(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        return self.add(key, value, timeout, version)

    async def aget(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self.get(key, default, version)

    async def aset(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self.set(key, value, timeout, version)

    async def atouch(
        self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        return self.touch(key, timeout, version)

    async def adelete(self, key: str, version: int | None = None) -> bool:
        return self.delete(key, version)

    async def ahas_key(self, key: str, version: int | None = None) -> bool:
        return self.has_key(key, version)

    async def aincr(self, key: str, delta: Any = 1, version: int | None = None) -> Any:
        return self.incr(key, delta, version)

    async def aget_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        return self.get_many(keys, version)

    async def aset_many(
        self,
        data: Mapping[str, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[str]:
        return self.set_many(data, timeout, version)

    async def aget_or_set(
        self, key: str, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        found = self.get(key, _adapters.MISSING, version)
        if found is not _adapters.MISSING:
            return found
        in_thread: Callable[..., Any] = sync_to_async(self.get_or_set, thread_sensitive=True)
        return await in_thread(key, default, timeout, version)


class _NearClient(RedisCacheClient):
    """Django's client, which reads near. Keys are whole, as the server has them."""

    def __init__(
        self, servers: Any, *, near: dict[str, Any], prefixes: list[str], **options: Any
    ) -> None:
        super().__init__(servers, **options)
        self._options = near
        self._prefixes = prefixes
        self._near: NearCache | None = None

    @property
    def near(self) -> NearCache:
        if self._near is None:
            try:
                client = self.get_client(write=True)
                self._near = near_of(client, self._prefixes, self._options)
            except InvalidArgument as error:
                raise ImproperlyConfigured(f"shmrhash.django.NearRedisCache: {error}") from error
        return self._near

    @contextlib.contextmanager
    def _forgetting(self, *keys: str) -> Iterator[None]:
        """Around a write: after it, also if it fails, the keys are asked for again."""
        near = self.near
        try:
            yield
        finally:
            near.invalidate(*keys)

    def loaded(self, stored: Any, default: Any = None) -> Any:
        """The value from the server's bytes."""
        return default if stored is None else self._serializer.loads(stored)

    def get(self, key: str, default: Any) -> Any:
        return self.loaded(self.near.get(key), default)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        found = self.near.get_many(keys)
        return {key: self.loaded(stored) for key, stored in found.items()}

    def has_key(self, key: str) -> bool:
        return self.near.get(key) is not None

    def add(self, key: str, value: Any, timeout: Any) -> bool:
        with self._forgetting(key):
            return bool(super().add(key, value, timeout))

    def set(self, key: str, value: Any, timeout: Any) -> None:
        with self._forgetting(key):
            super().set(key, value, timeout)

    def touch(self, key: str, timeout: Any) -> bool:
        with self._forgetting(key):
            return bool(super().touch(key, timeout))

    def delete(self, key: str) -> bool:
        with self._forgetting(key):
            return bool(super().delete(key))

    def incr(self, key: str, delta: Any) -> Any:
        with self._forgetting(key):
            return super().incr(key, delta)

    def set_many(self, data: Mapping[str, Any], timeout: Any) -> None:
        with self._forgetting(*data):
            super().set_many(data, timeout)

    def delete_many(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        with self._forgetting(*keys):
            super().delete_many(keys)

    def clear(self) -> bool:
        near = self.near
        try:
            return bool(super().clear())
        finally:
            near.clear()


class NearRedisCache(RedisCache):
    """Django's RedisCache, whose hot keys are in the memory of this machine.

        CACHES = {
            "default": {
                "BACKEND": "shmrhash.django.NearRedisCache",
                "LOCATION": "redis://cache:6379/1",
                "OPTIONS": {"near": {"max_stale": 0.5}},
            }
        }

    OPTIONS["near"] may have options of NearCache(); the others are those of RedisCache. get(),
    get_many() and has_key() read what a NearCache reads, from the first server of LOCATION; a write
    is done when the server has it and this machine has forgotten the old value. The server tells of
    changes below KEY_PREFIX; with a KEY_FUNCTION of all, or below OPTIONS["near"]["prefixes"].

    Keys and values are those of RedisCache: servers that are not changed yet may share them. aget()
    and aget_many() wait for nothing if the value is here.

    Attributes: near, the NearCache, for example for near.age().
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        """Called by Django."""
        options = dict(params.get("OPTIONS", {}))
        near = dict(options.pop("near", {}))
        super().__init__(server, params | {"OPTIONS": options})
        by_prefix = [f"{self.key_prefix}:"] if self.key_func is default_key_func else [""]
        self._class = _NearClient
        self._options = options | {"near": near, "prefixes": near.pop("prefixes", by_prefix)}

    @property
    def near(self) -> NearCache:
        """The NearCache, opened at the first use. Raises ImproperlyConfigured, and what the client
        raises."""
        near: NearCache = self._cache.near
        return near

    async def aget(self, key: str, default: Any = None, version: int | None = None) -> Any:
        name = self.make_and_validate_key(key, version=version)
        found = hit(self.near, name, _adapters.MISSING)
        if found is _adapters.MISSING:
            in_thread: Callable[..., Any] = sync_to_async(self.get, thread_sensitive=True)
            return await in_thread(key, default, version)
        return self._cache.loaded(found, default)

    async def ahas_key(self, key: str, version: int | None = None) -> bool:
        return await self.aget(key, _adapters.MISSING, version) is not _adapters.MISSING

    async def aget_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        later = []
        for key in keys:
            name = self.make_and_validate_key(key, version=version)
            stored = hit(self.near, name, _adapters.MISSING)
            if stored is _adapters.MISSING:
                later.append(key)
            elif stored is not None:
                found[key] = self._cache.loaded(stored)
        if later:
            in_thread: Callable[..., Any] = sync_to_async(self.get_many, thread_sensitive=True)
            found |= await in_thread(later, version)
        return found
