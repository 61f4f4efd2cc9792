"""A Cache as a backend of requests-cache: CachedSession(backend=ShmCache("my-site"))."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache

try:
    from requests_cache.backends import BaseCache, BaseStorage
    from requests_cache.serializers import pickle_serializer
except ImportError as _error:
    raise _adapters.needs("requests-cache", "requests-cache") from _error

_TTL_OFFSET = 3600  # seconds after its expiry in which a response may be revalidated


class ShmCache(BaseCache):
    """A backend of requests-cache, shared by all processes of the machine.

        session = CachedSession(backend=ShmCache("my-site"), expire_after=60)

    A response leaves the cache ttl_offset seconds after it has expired: until then it can be
    revalidated, or used if its site does not answer. One that is too large, of more than an eighth
    of max_bytes, is not stored, and the log of "shmrhash" has a warning.

    Attributes: responses, redirects: the mappings, two ranges of keys of one Cache, which is
    responses.shm.
    """

    def __init__(
        self,
        cache_name: str,
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
        ttl_offset: float = _TTL_OFFSET,
        serializer: Any = None,
        **options: Any,
    ) -> None:
        """Open the Cache of this name, or create it.

        max_entries, max_bytes, mode: as for Cache(). serializer and the other options are those of
        requests-cache's BaseCache.

        Raises InvalidArgument (open in this process with other limits), and what Cache() raises.
        """
        super().__init__(cache_name=cache_name, **options)
        limits: dict[str, Any] = {"max_entries": max_entries, "max_bytes": max_bytes, "mode": mode}
        self.responses = ShmDict(
            cache_name,
            "responses",
            ttl_offset=ttl_offset,
            serializer=serializer or pickle_serializer,
            **limits,
            **options,
        )
        self.redirects = ShmDict(cache_name, "redirects", serializer=None, **limits, **options)


class ShmDict(BaseStorage):
    """The keys of a Cache that begin with the name of a collection, as a mapping.

    Iterating, len() and clear() cost a walk over the cache.

    Attributes: shm, the Cache.
    """

    def __init__(
        self,
        cache_name: str,
        collection_name: str = "responses",
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
        ttl_offset: float = _TTL_OFFSET,
        serializer: Any = pickle_serializer,
        **options: Any,
    ) -> None:
        super().__init__(serializer=serializer, **options)
        self._name = cache_name
        self._limits: dict[str, Any] = {
            "max_entries": max_entries,
            "max_bytes": max_bytes,
            "mode": mode,
        }
        self._prefix = collection_name + ":"
        self._ttl_offset = ttl_offset
        _ = self.shm

    @property
    def shm(self) -> Cache:
        """The Cache in which the values are."""
        return _adapters.cache_of(self._name, **self._limits)

    def __getitem__(self, key: str) -> Any:
        stored = self.shm.get(self._prefix + key, _adapters.MISSING)
        if stored is _adapters.MISSING:
            raise KeyError(key)
        return self.deserialize(key, stored)

    def __setitem__(self, key: str, value: Any) -> None:
        """Store a value; a response lives ttl_offset seconds longer than until it expires."""
        left = getattr(value, "expires_delta", None)
        seconds = math.inf if left is None else left + self._ttl_offset
        if seconds <= 0:
            seconds = math.inf  # it has expired long ago, and may still be revalidated
        _adapters.store(self.shm, self._prefix + key, self.serialize(value), seconds)

    def __delitem__(self, key: str) -> None:
        if not self.shm.delete(self._prefix + key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._prefix + key in self.shm

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (key[start:] for key in _adapters.keys_with(self.shm, self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        _adapters.clear_prefix(self.shm, self._prefix)
