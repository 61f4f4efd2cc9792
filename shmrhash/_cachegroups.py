"""Groups of keys of a cache: whether it has tags, deleting keys that begin alike."""

from __future__ import annotations

from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument, LayoutMismatch
from shmrhash._types.schema import BIRTHS, BIRTHS_AND_TAGS, REMEDY

_KEYS_EVEN_EXPIRED = 3  # of CacheCore._entries()


def births_of(tags: bool | None) -> int:
    """What the entries of a new cache have, by the argument tags of Cache(). Raises TypeError."""
    if tags is not None and not isinstance(tags, bool):
        raise TypeError(f"tags must be True, False or None, not {type(tags).__name__}")
    return BIRTHS_AND_TAGS if tags else BIRTHS


def expect_tags(births: int, tags: bool | None, name: str) -> None:
    """Raises LayoutMismatch if a cache with these births has no tags, and was opened with them; or
    the other way round."""
    if tags is not None and births != births_of(tags):
        raise LayoutMismatch(
            f"segment {name!r} is a Cache with{'out' * tags} tags, but was opened with "
            f"tags={tags}; {REMEDY}"
        )


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
