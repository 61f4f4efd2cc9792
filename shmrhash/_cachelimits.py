"""The limits of a new cache."""

from __future__ import annotations

from shmrhash._arguments import whole_number

_MAX_BYTES = 64 << 20  # of a cache whose maker names no limit
_ENTRY_BYTES = 256  # then there is one entry for this many bytes


def limits_if_made(max_entries: int | None, max_bytes: int | None) -> tuple[int, int]:
    """The limits of a new cache whose maker gives these."""
    most = _MAX_BYTES if max_bytes is None else whole_number("max_bytes", max_bytes)
    return (max(1, most // _ENTRY_BYTES) if max_entries is None else max_entries), most
