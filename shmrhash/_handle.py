"""What SharedDict, Cache and Sync have in common: each is a class over a map, its handle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmrhash import _core
from shmrhash._map import RHashMap
from shmrhash._types.records import record_name
from shmrhash._types.schema import Schema
from shmrhash._views import ITEMS

if TYPE_CHECKING:
    from typing_extensions import Self


class HandleMethods:
    """The part of a class over a map that concerns the map as a whole."""

    if TYPE_CHECKING:

        @property
        def handle(self) -> RHashMap: ...

    @property
    def name(self) -> str:
        """The segment's name, also of an anonymous one."""
        return self.handle.name

    @property
    def max_entries(self) -> int:
        """The number of entries that fit."""
        return self.handle.max_entries

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self.handle.closed

    def close(self) -> None:
        """Detach. The segment and its name stay, unless it is ephemeral and no process has it open.
        Idempotent.
        """
        self.handle.close()

    def unlink(self) -> None:
        """Remove the name. Attached processes go on; the last of them to detach frees the memory.

        Raises SegmentMissing if the name is gone already.
        """
        self.handle.unlink()

    def check(self) -> dict[str, Any]:
        """Walk every structural invariant; raise SegmentCorrupt with what is wrong.

        Works as RHashMap.check() does: it recovers dead processes first, and includes the objects.

        Raises SegmentCorrupt, MapClosed.
        """
        return self.handle.check()


class TypedMethods:
    """The part of SharedDict and Cache that knows the declared types, and which key is waited for.

    Copies are the same object: copy.copy() makes no second dict or cache.
    """

    if TYPE_CHECKING:
        _schema: Schema

        @property
        def handle(self) -> RHashMap: ...
        def _raw_key(self, key: Any) -> bytes: ...
        def _entries(self, what: int, skipping: bool = False) -> Iterator[Any]: ...

    def info(self) -> dict[str, Any]:
        """RHashMap.info(), with the types and the ttl.

        key_type and value_type are JSON. "objects" counts keys and values stored beside entries.
        "cache", of a Cache only, has the counts of stats(), and claimed: how many keys are being
        computed now.

        Raises MapClosed.
        """
        types = {"key_type": self._schema.key.record, "value_type": self._schema.value.record}
        return self.handle.info() | types | {"ttl": self._schema.ttl}

    def _shown(self, what: str) -> str:
        """What repr() shows, with what is in it in these words."""
        key, value = record_name(self._schema.key.record), record_name(self._schema.value.record)
        what = "closed" if self.handle.closed else what
        return f"<{type(self).__name__} {self.handle.name!r} of {key} to {value}: {what}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    # For WaitMethods.

    def _waiter(self, keys: list[Any]) -> _core.Waiter:
        return _core.Waiter(self.handle, [self._raw_key(key) for key in keys])

    def _entry_at(self: Any, raw: bytes) -> tuple[Any, Any] | None:
        return _core.entry_at(self, raw)

    def _key_at(self: Any, raw: bytes) -> Any:
        return _core.key_at(self, raw)

    def _long_keys(self: Any) -> dict[bytes, Any]:
        return _core.long_keys(self)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        return self._entries(ITEMS, self.handle._is_cache)

    def _ring(self) -> _core.RingReader:
        return _core.RingReader(self.handle)

    def _raw_if_long(self, key: Any) -> bytes | None:
        raw = self._raw_key(key)
        return raw if self._key_at(raw) is None else None

    def _notifier(self) -> _core.Notifier:
        return _core.Notifier(self.handle)

    def _notifier_key(self) -> tuple[object, ...]:
        return _core.notifier_key(self.handle)
