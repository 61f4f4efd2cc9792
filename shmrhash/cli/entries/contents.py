"""The contents of any map: its entries, read and written as people see them.

Three kinds of maps have three kinds of contents. Plain: keys and values are bytes. WithFields: the
values have special fields, which are shown beside the bytes. Typed: a SharedDict, whose keys and
values are the encoded bytes of declared types; they may be objects, and entries can expire.

The bytes, the objects and the deadline of an entry are read together, as of one moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from shmrhash import Kptr, LayoutMismatch, Refcount, RHashMap, SpinLock, Timer
from shmrhash._inspect import (
    NEVER_NS,
    WORD_BYTES,
    DictEntries,
    Extra,
    Field,
    Types,
    fields_of,
    read_entries,
    read_entry,
    types_of,
)
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.entries.options import DataOptions
from shmrhash.cli.entries.typed import ITEMS_SHOWN
from shmrhash.cli.errors import STATUS_DAMAGED, Failure
from shmrhash.cli.screen import hex_strings, json_text, printable, time_text

Found = tuple[bytes, Extra | None]


class Plain:
    """The entries of a map whose values are plain bytes."""

    def __init__(self, shared_map: RHashMap, pair: Pair, types: Types | None = None) -> None:
        self.map = shared_map
        self.pair = pair
        self.types = types

    def at(self, shared_map: RHashMap) -> Plain:
        """The same contents through another handle."""
        return type(self)(shared_map, self.pair, self.types)

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        """Every entry; one that stays during the walk comes exactly once, an expired one never."""
        return ((key, value, None) for key, value in self.map.items())

    def find(self, key: bytes) -> Found | None:
        """The value of a key, and the other parts of its entry; None if the key is absent."""
        value = self.map.lookup(key)
        return None if value is None else (value, None)

    def raw_key(self, key: bytes) -> bytes:
        """The bytes under which the map stores a key."""
        return key

    def entry_at(self, raw: bytes) -> tuple[bytes, Found] | None:
        """The key and what find() returns, by the bytes under which the map stores the key."""
        found = self.find(raw)
        return None if found is None else (raw, found)

    def key_in(self, raw: bytes) -> bytes | None:
        """The key that is stored as these bytes; None: they are not all of it."""
        return raw

    def long_keys(self) -> dict[bytes, bytes]:
        """By the bytes under which the map stores them, the present keys that are not all there."""
        return {}

    def following(self, key: bytes | None) -> bytes | None:
        """The key after this one; after None the first."""
        return self.map.get_next_key(key)

    def update(self, key: bytes, value: bytes, flag: int) -> None:
        """Store an entry. Raises KeyExists or KeyNotFound if flag forbids it."""
        self.map.update(key, value, flag)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """Store an entry with all its parts. Raises KeyExists if flag forbids it."""
        self.map.update(key, value, flag)

    def delete(self, key: bytes) -> None:
        """Remove an entry. Raises KeyNotFound."""
        self.map.delete(key)

    # The parts that are shown of an entry besides key and value.

    def notes(self, value: bytes, extra: Extra) -> str:
        """These parts as text."""
        return ""

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        """These parts as JSON."""
        return {}

    def entry_text(self, key: bytes, value: bytes, extra: Extra | None) -> str:
        text = self.pair.entry_text(key, value)
        return text if extra is None else f"{text[:-1]}{self.notes(value, extra)}\n"

    def entry_object(self, key: bytes, value: bytes, extra: Extra | None) -> dict[str, Any]:
        found = self.pair.entry_object(key, value)
        return found if extra is None else found | self.facts(value, extra)

    def entry_json(self, key: bytes, value: bytes, extra: Extra | None, pretty: bool) -> str:
        """entry_object() as the text of an element of an array."""
        if pretty and extra is not None:
            return json_text(self.entry_object(key, value, extra), pretty, 1)
        text = self.pair.entry_json(key, value, pretty)
        facts = {} if extra is None else self.facts(value, extra)
        return f"{text[:-1]},{json_text(facts, False)[1:]}" if facts else text


class WithFields(Plain):
    """The entries of a map with special fields, such as shmrhash.Timer."""

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        return read_entries(self.map)

    def find(self, key: bytes) -> Found | None:
        return read_entry(self.map, key)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """Store in steps: the value, each object, the deadline. Repeating completes the entry."""
        self.map.update(key, value, flag)
        objects = iter(extra.objects)
        for field in fields_of(self.map):
            if isinstance(field, Kptr):
                data = next(objects)
                if data is not None:
                    self.map.kptr_xchg(key, data, field.offset)
            elif isinstance(field, Refcount):
                self.map.add(key, count_in(value, field.offset) - 1, offset=field.offset)
            elif isinstance(field, Timer) and extra.deadline_ns not in (0, NEVER_NS):
                self.map.timer_set(key, extra.deadline_ns)

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        return {
            "fields": [
                {"kind": type(field).__name__, "offset": field.offset, name: fact}
                for field, name, fact, _ in self._fields(value, extra)
            ]
        }

    def notes(self, value: bytes, extra: Extra) -> str:
        return "".join(
            f"\n\t{type(field).__name__} at {field.offset}: {text}"
            for field, _, _, text in self._fields(value, extra)
        )

    def _fields(self, value: bytes, extra: Extra) -> Iterator[tuple[Field, str, Any, str]]:
        """Each special field: the name and the value of its fact in JSON, and its text."""
        objects = iter(extra.objects)
        for field in fields_of(self.map):
            if isinstance(field, Kptr):
                data = next(objects)
                yield field, "bytes", None if data is None else hex_strings(data), object_text(data)
            elif isinstance(field, Timer):
                yield field, "expires_in", extra.expires_in, deadline_text(extra)
            elif isinstance(field, SpinLock):
                yield field, "locked", extra.held, "locked" if extra.held else "free"
            else:
                count = count_in(value, field.offset)
                yield field, "count", count, f"{count:,}"


def count_in(value: bytes, offset: int) -> int:
    """The number of a Refcount."""
    return int.from_bytes(value[offset : offset + WORD_BYTES], "little", signed=True)


def object_text(data: bytes | None) -> str:
    """An object in one line."""
    if data is None:
        return "none"
    more = " ..." if len(data) > ITEMS_SHOWN else ""
    return f"{len(data):,} bytes  {data[:ITEMS_SHOWN].hex(' ')}{more}".rstrip()


def deadline_text(extra: Extra) -> str:
    left = extra.expires_in
    return "never expires" if left is None else f"expires in {time_text(left)}"


class Typed(Plain):
    """The entries of a SharedDict: keys and values are encoded bytes."""

    def __init__(self, shared_map: RHashMap, pair: Pair, types: Types | None = None) -> None:
        super().__init__(shared_map, pair, types)
        assert types is not None
        self._entries = DictEntries(shared_map, types)
        self._expire = types.ttl is not None

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        return iter(self._entries)

    def find(self, key: bytes) -> Found | None:
        return self._entries.find(key)

    def raw_key(self, key: bytes) -> bytes:
        return self._entries.raw_key(key)

    def entry_at(self, raw: bytes) -> tuple[bytes, Found] | None:
        return self._entries.entry_at(raw)

    def key_in(self, raw: bytes) -> bytes | None:
        return self._entries.key_in(raw)

    def long_keys(self) -> dict[bytes, bytes]:
        return self._entries.long_keys()

    def following(self, key: bytes | None) -> bytes | None:
        return self._entries.following(key)

    def update(self, key: bytes, value: bytes, flag: int) -> None:
        self._entries.store(key, value, flag, 0)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """Store in one step. A deadline of 0 gives the entry the dict's default time to live."""
        self._entries.store(key, value, flag, extra.deadline_ns)

    def delete(self, key: bytes) -> None:
        self._entries.delete(key)

    def notes(self, value: bytes, extra: Extra) -> str:
        return f"  {deadline_text(extra)}" if self._expire else ""

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        return {"expires_in": extra.expires_in} if self._expire else {}


def contents_of(shared_map: RHashMap, data: DataOptions, *, strict: bool = False) -> Plain:
    """The contents of a map, in the formats that the user asked for.

    If the schema cannot be read, a warning goes to the standard error, and the bytes are shown;
    with strict, for commands that store entries, Failure is raised.
    """
    try:
        types = types_of(shared_map)
        if types is not None:
            return Typed(shared_map, data.fit_types(shared_map, types), types)
    except LayoutMismatch as error:
        if strict:
            raise Failure(f"{error}; nothing was stored", STATUS_DAMAGED) from None
        print(f"Warning: {printable(str(error))}; its bytes are shown instead", file=sys.stderr)
    contents = WithFields if fields_of(shared_map) else Plain
    return contents(shared_map, data.fit(shared_map, shared_map.schema))
