"""Primitives that are made of others: the keys of their parts, and what those of a lock share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmrhash._sync.space import Key, Sync

if TYPE_CHECKING:
    from shmrhash._sync.locks import Lock


def key_of_part(key: Key | None, part: str) -> Key | None:
    """The key of a part of the primitive with this key; of an anonymous one, None."""
    if key is None:
        return None
    if isinstance(key, bytes):
        return key + b"." + part.encode()
    return f"{key}.{part}"


class OfLockMethods:
    """The part of a primitive that is found by the key of its lock."""

    if TYPE_CHECKING:
        _lock: Lock

    @property
    def key(self) -> Key | None:
        """The key in its space; None if it is anonymous."""
        return self._lock.key

    @property
    def space(self) -> Sync:
        """The space in which it is."""
        return self._lock.space

    def __repr__(self) -> str:
        name = f"shmrhash.{type(self).__name__}"
        return f"<{name} at {id(self):#x}: key={self.key!r} in {self.space.name!r}>"
