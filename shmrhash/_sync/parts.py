"""Primitives that are made of others: the keys of their parts."""

from __future__ import annotations

from shmrhash._sync.space import Key


def key_of_part(key: Key | None, part: str) -> Key | None:
    """The key of a part of the primitive with this key; of an anonymous one, None."""
    if key is None:
        return None
    if isinstance(key, bytes):
        return key + b"." + part.encode()
    return f"{key}.{part}"
