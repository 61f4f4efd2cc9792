"""The limits of a new cache."""

from __future__ import annotations

from shmrhash._arguments import whole_number
from shmrhash._constants import CACHE_BYTES, CACHE_ENTRY_BYTES, ENTRIES_MAX


def limits_if_made(max_entries: int | None, max_bytes: int | None) -> tuple[int, int | None]:
    """The limits of a new cache whose maker gives these."""
    if max_entries is not None:
        return max_entries, max_bytes
    most = CACHE_BYTES if max_bytes is None else whole_number("max_bytes", max_bytes)
    return min(ENTRIES_MAX, max(1, most // CACHE_ENTRY_BYTES)), most
