"""A Cache as a backend of dogpile.cache: make_region().configure("shmrhash", arguments=...)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from shmrhash import _adapters
from shmrhash._cache import Cache
from shmrhash._dict import SharedDict
from shmrhash._errors import DeadlockError, LockTimeout

try:
    from dogpile.cache import register_backend
    from dogpile.cache.api import NO_VALUE, CacheBackend
except ImportError as _error:
    raise _adapters.needs("dogpile.cache", "dogpile") from _error

_LIMITS = ("max_entries", "max_bytes", "mode")


class Mutex:
    """The mutex of one key: a section on it in a SharedDict beside the cache. If the process dies,
    the mutex is free at once. Any thread of the process may release it."""

    def __init__(self, mutexes: SharedDict[str, int], key: str) -> None:
        self._mutexes = mutexes
        self._key = key
        self._section: Any = None

    def acquire(self, wait: bool = True) -> bool:
        """Take the mutex and return True; without wait, return False if it is taken.

        Raises DeadlockError (this thread has it already).
        """
        section = self._mutexes.locked(self._key, timeout=math.inf if wait else 0.0, default=0)
        try:
            section.__enter__()
        except LockTimeout:
            return False
        except DeadlockError:
            if wait:
                raise
            return False
        self._section = section
        return True

    def release(self) -> None:
        """Let the next one have it. The key is deleted, so that keys do not add up."""
        section, self._section = self._section, None
        section.delete()
        section.__exit__(None, None, None)

    def locked(self) -> bool:
        """Whether the mutex is taken."""
        if self._section is not None:
            return True
        if not self.acquire(wait=False):
            return True
        self.release()
        return False


class ShmBackend(CacheBackend):
    """A backend of dogpile.cache, shared by all processes of the machine.

        region = make_region().configure("shmrhash", arguments={"name": "my-site"})

    after `import shmrhash.dogpile`. The arguments: name; max_entries, max_bytes and mode, as for
    Cache(); ttl, the seconds after which an entry is removed (without one it stays until it is
    evicted; give more than the region's expiration_time); distributed_lock (True): one process of
    the machine creates a value, and not one thread of each process. The mutexes are in a SharedDict
    of the cache's name with ".mutexes" appended.

    Values are pickled by the cache, and one that cannot be unpickled any more is absent. One that
    is too large is not stored: the old value is gone, and the log of "shmrhash" has a warning.

    Attributes: shm, the Cache, for example for shm.stats().
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Called by dogpile.cache. Arguments of other names are for others.

        Raises InvalidArgument (no name; open in this process with other limits), and what Cache()
        raises.
        """
        self._name = arguments.get("name", "")
        self._limits = {name: arguments[name] for name in _LIMITS if name in arguments}
        self._ttl = float(arguments.get("ttl", math.inf))
        self._mutexes: SharedDict[str, int] | None = None
        _ = self.shm
        if arguments.get("distributed_lock", True):
            self._mutexes = SharedDict(
                self._name + ".mutexes", key=str, value=int, mode=arguments.get("mode", 0o600)
            )

    @property
    def shm(self) -> Cache:
        """The Cache in which the values are."""
        return _adapters.cache_of(self._name, **self._limits)

    def get_mutex(self, key: str) -> Mutex | None:
        return None if self._mutexes is None else Mutex(self._mutexes, key)

    def get(self, key: str) -> Any:
        return self.shm.get(key, NO_VALUE)

    def get_multi(self, keys: Iterable[str]) -> list[Any]:
        cache = self.shm
        return [cache.get(key, NO_VALUE) for key in keys]

    def set(self, key: str, value: Any) -> None:
        _adapters.store(self.shm, key, value, self._ttl)

    def set_multi(self, mapping: Mapping[str, Any]) -> None:
        for key, value in mapping.items():
            self.set(key, value)

    def delete(self, key: str) -> None:
        self.shm.delete(key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)


register_backend("shmrhash", "shmrhash.dogpile", "ShmBackend")
