"""Groups of keys of a cache: deleting those that begin alike."""

from __future__ import annotations

from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument

_KEYS_EVEN_EXPIRED = 3  # of CacheCore._entries()


def delete_prefix(cache: _core.CacheCore[Any, Any], declared: object, prefix: Any) -> int:
    """Cache.delete_prefix(), of a cache with this declared type of keys.

    A computation has an expired entry under its key, so the walk passes those as well: deleting one
    keeps the result from being stored. A walk reaches every key that is there all the time.
    """
    if declared is not str and declared is not bytes:
        raise InvalidArgument(
            "delete_prefix() is for caches that are declared with key=str or key=bytes"
        )
    if not isinstance(prefix, declared):
        raise TypeError(
            f"prefix must be {declared.__name__}, as the keys are, not {type(prefix).__name__}"
        )
    keys = cache._entries(_KEYS_EVEN_EXPIRED, True)
    return sum(cache.delete(key) for key in keys if key.startswith(prefix))
