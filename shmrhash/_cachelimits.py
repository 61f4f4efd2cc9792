"""The limits of a new cache."""

from __future__ import annotations

from shmrhash._arguments import whole_number
from shmrhash._constants import CACHE_BYTES

# An entry takes some 110 bytes without what is outside of it, so only caches of tiny values are
# full of entries before they are full of bytes. One that could be takes 5 bytes of the fixed part:
# 4 in 100 of max_bytes. With 256 instead, a cache of values of 100 bytes uses four fifths of it.
_ENTRY_BYTES = 128


def limits_if_made(max_entries: int | None, max_bytes: int | None) -> tuple[int, int | None]:
    """The limits of a new cache whose maker gives these."""
    if max_entries is not None:
        return max_entries, max_bytes
    most = CACHE_BYTES if max_bytes is None else whole_number("max_bytes", max_bytes)
    return max(1, most // _ENTRY_BYTES), most
