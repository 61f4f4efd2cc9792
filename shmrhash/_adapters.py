"""What the adapters for other caching libraries have in common: each stores in a Cache with keys of
str and values of object, which the process opens once for all objects of the adapters."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

from shmrhash._cache import Cache
from shmrhash._constants import RACES_MAX
from shmrhash._errors import (
    Error,
    InvalidArgument,
    KeyGone,
    KeyNotFound,
    OutOfMemory,
    SegmentFull,
    TooLarge,
)
from shmrhash._refusals import restless_key

NO_ROOM = TooLarge, OutOfMemory, SegmentFull
MISSING: Any = object()  # a default that no value equals

log = logging.getLogger("shmrhash")

# The caches that this process has open, by name, with the limits that were asked for. Threads may
# open one at the same time: setdefault() lets one of them win. No lock, which a fork could catch.
_open: dict[str, tuple[Cache, dict[str, Any]]] = {}


def needs(package: str, extra: str) -> ImportError:
    """The error for an adapter whose library is not installed."""
    return ImportError(
        f"this adapter needs {package}, which is not installed: pip install 'shmrhash[{extra}]'"
    )


def cache_of(
    name: str,
    *,
    max_entries: int | None = None,
    max_bytes: int | None = None,
    mode: int = 0o600,
) -> Cache[str, Any]:
    """The cache of this name, opened or created; the same object in the whole process.

    Raises InvalidArgument (no name; open in this process with other limits), and what Cache()
    raises.
    """
    if not isinstance(name, str) or not name:
        raise InvalidArgument("the cache needs a name, which its processes share: a str")
    limits: dict[str, Any] = {"max_entries": max_entries, "max_bytes": max_bytes, "mode": mode}
    found = _open.get(name)
    if found is not None and found[0].closed:
        del _open[name]
        found = None
    if found is None:
        made = Cache(name, key=str, value=object, ttl=math.inf, **limits)
        found = _open.setdefault(name, (made, limits))
        if found[0] is not made:
            made.close()
    if found[1] != limits:
        raise InvalidArgument(
            f"cache {name!r} is open in this process with {found[1]}, and now asked for with "
            f"{limits}: give both the same limits, or each a name of its own"
        )
    return found[0]


def store(cache: Cache, key: str, value: Any, ttl: float) -> bool:
    """cache.set(), for ttl seconds; a ttl of 0 or less deletes. False: the value does not fit, and
    the key is absent now."""
    if ttl <= 0:
        cache.delete(key)
        return True
    try:
        cache.set(key, value, ttl)
    except NO_ROOM as error:
        log.warning("the value of %r was not cached: %s", key, error)
        return False
    return True


def store_new(cache: Cache, key: str, value: Any, ttl: float) -> bool:
    """cache.add(), for ttl seconds. With a ttl of 0 or less nothing is stored."""
    if ttl <= 0:
        return key not in cache
    try:
        return cache.add(key, value, ttl)
    except NO_ROOM as error:
        log.warning("the value of %r was not cached: %s", key, error)
        return False


def change(cache: Cache, key: str, function: Callable[[Any], Any]) -> Any:
    """Store function(value) in the place of the value, in one step; return it. The deadline stays.
    If function returns MISSING, the key is deleted.

    Raises KeyNotFound (absent, or unreadable), LockTimeout, NO_ROOM, and what function() raises.
    """
    section = cache._section(key, None)
    try:
        entry = section.__enter__()
    except (Error, MemoryError):
        raise
    except Exception:
        cache.get(key)  # deletes and counts what cannot be decoded
        raise KeyNotFound(key) from None
    with contextlib.ExitStack() as block, contextlib.suppress(KeyGone):
        # Gone: another process deleted the entry, or it expired, after this change.
        block.push(section)
        changed = function(entry.value)
        if changed is MISSING:
            entry.delete()
        else:
            entry.value = changed
    return changed


def change_or_store(
    cache: Cache, key: str, function: Callable[[Any], Any], initial: Any, ttl: float
) -> Any:
    """change(); an absent key gets function(initial), which lives ttl seconds.

    Raises what change() raises, but KeyNotFound.
    """
    for _ in range(RACES_MAX):  # others may delete and store the key each time
        try:
            return change(cache, key, function)
        except KeyNotFound:
            fresh = function(initial)
            if cache.add(key, fresh, ttl):
                return fresh
    raise restless_key(key, cache.name)


def keys_with(cache: Cache, prefix: str) -> Iterator[str]:
    """The keys that begin with a prefix. Costs a walk over the cache."""
    return (key for key in cache._entries(0, True) if key.startswith(prefix))


def clear_prefix(cache: Cache, prefix: str) -> None:
    """Delete the keys that begin with a prefix; without one, all."""
    if not prefix:
        cache.clear()
        return
    for key in keys_with(cache, prefix):
        cache.delete(key)
