"""The entries of any map, read and written as people see them: the Contents of a map.

Three kinds of maps have three kinds of contents. Plain: keys and values are bytes. WithFields: the
values have special fields, which are shown beside the bytes. Typed: a SharedDict, whose keys and
values are the encoded bytes of declared types (kinds.py); they may be objects, and entries expire.

What is read of an entry is of one moment: its bytes, its objects, its deadline.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import shmrhash
from shmrhash import RHashMap, _core
from shmrhash._fields import Kptr, Refcount, SpinLock, Timer, unpacked
from shmrhash.cli import jsontext
from shmrhash.cli.entries.formats import Pair, Raw
from shmrhash.cli.entries.layouts import NEVER_NS, WORD_BYTES, Extra, Types, types_of
from shmrhash.cli.entries.opaque import ITEMS_SHOWN, RawAny
from shmrhash.cli.entries.typed import chosen, kind_of
from shmrhash.cli.screen import printable, time_text
from shmrhash.cli.session import DataOptions
from shmrhash.cli.words import STATUS_DAMAGED, Failure

KEY_IS_LONG = 255  # in the last byte: the whole key is an object


Found = tuple[bytes, Extra | None]


class Plain:
    """The entries of a map whose values are bytes and nothing else."""

    def __init__(self, shared_map: RHashMap, pair: Pair, types: Types | None = None) -> None:
        self.map = shared_map
        self.pair = pair
        self.types = types

    def at(self, shared_map: RHashMap) -> Plain:
        """The same contents through another handle."""
        self.map = shared_map
        return self

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        """Every entry; one that stays throughout comes exactly once, an expired one never."""
        return ((key, value, None) for key, value in self.map.items())

    def find(self, key: bytes) -> Found | None:
        """An entry's value, and what it has besides."""
        value = self.map.lookup(key)
        return None if value is None else (value, None)

    def following(self, key: bytes | None) -> bytes | None:
        """The key behind a key, or the first one."""
        return self.map.get_next_key(key)

    def update(self, key: bytes, value: bytes, flag: int) -> None:
        self.map.update(key, value, flag)

    def delete(self, key: bytes) -> None:
        self.map.delete(key)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """Store an entry with all that it has; KeyExists if flag forbids that."""
        self.map.update(key, value, flag)

    # What is shown of an entry besides key and value.

    def notes(self, value: bytes, extra: Extra) -> str:
        return ""

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        return {}

    def entry_text(self, key: bytes, value: bytes, extra: Extra | None) -> str:
        text = self.pair.entry_text(key, value)
        return text if extra is None else f"{text[:-1]}{self.notes(value, extra)}\n"

    def entry_object(self, key: bytes, value: bytes, extra: Extra | None) -> dict[str, Any]:
        found = self.pair.entry_object(key, value)
        return found if extra is None else found | self.facts(value, extra)

    def entry_json(self, key: bytes, value: bytes, extra: Extra | None, pretty: bool) -> str:
        if pretty and extra is not None:
            return jsontext.dumps(self.entry_object(key, value, extra), pretty, 1)
        text = self.pair.entry_json(key, value, pretty)
        facts = {} if extra is None else self.facts(value, extra)
        return f"{text[:-1]},{jsontext.dumps(facts, False)[1:]}" if facts else text


class WithFields(Plain):
    """The entries of a map with special fields (shmrhash.Timer and its kin)."""

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        for key in _core.raw_keys(self.map):
            found = self.find(key)
            if found is not None:
                yield (key, *found)

    def find(self, key: bytes) -> Found | None:
        parts = self.map._parts(key)
        if parts is None:
            return None
        extra = Extra(*parts[1:])
        return None if extra.expired else (parts[0], extra)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """In steps: the value, each object, the deadline. Repeated, it is all there."""
        self.map.update(key, value, flag)
        objects = iter(extra.objects)
        for field in unpacked(self.map._fields()):
            if isinstance(field, Kptr):
                data = next(objects)
                if data is not None:
                    self.map.kptr_xchg(key, data, field.offset)
            elif isinstance(field, Refcount):
                self.map.add(key, count_in(value, field.offset) - 1, offset=field.offset)
            elif isinstance(field, Timer) and extra.deadline_ns not in (0, NEVER_NS):
                self.map.timer_set(key, extra.deadline_ns)

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        objects = iter(extra.objects)
        found: list[dict[str, Any]] = []
        for field in unpacked(self.map._fields()):
            shown: dict[str, Any] = {"kind": type(field).__name__, "offset": field.offset}
            if isinstance(field, Kptr):
                data = next(objects)
                shown["bytes"] = None if data is None else jsontext.hex_strings(data)
            elif isinstance(field, Timer):
                shown["expires_in"] = extra.expires_in
            elif isinstance(field, SpinLock):
                shown["locked"] = extra.held
            else:
                shown["count"] = count_in(value, field.offset)
            found.append(shown)
        return {"fields": found}

    def notes(self, value: bytes, extra: Extra) -> str:
        text = ""
        objects = iter(extra.objects)
        for field in unpacked(self.map._fields()):
            if isinstance(field, Kptr):
                shown = object_text(next(objects))
            elif isinstance(field, Timer):
                shown = deadline_text(extra)
            elif isinstance(field, SpinLock):
                shown = "locked" if extra.held else "free"
            else:
                shown = f"{count_in(value, field.offset):,}"
            text += f"\n\t{type(field).__name__} at {field.offset}: {shown}"
        return text


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
    """The entries of a SharedDict: keys and values are encoded bytes, wherever they stand."""

    def __init__(self, shared_map: RHashMap, types: Types, pair: Pair) -> None:
        super().__init__(shared_map, pair, types)
        self._known = types
        self._value_at = len(types.fields) * WORD_BYTES
        self.at(shared_map)

    def at(self, shared_map: RHashMap) -> Typed:
        """Through this handle: a core of the library's dicts, whose codecs are bytes."""
        self.map = shared_map
        types = self._known
        fixed = (_core.KEY_FIXED, bytes, bytes)
        long_key = (_core.KEY_BYTES, None, None)
        inline = (_core.VALUE_FIXED, bytes, bytes)
        by_reference = (_core.VALUE_BYTES, None, None)
        self._core = _core.DictCore(
            shared_map,
            long_key if types.key_by_reference else fixed,
            by_reference if types.value_by_reference else inline,
        )
        if types.ttl not in (None, float("inf")):
            self._core.default_ttl_ns = max(1, round((types.ttl or 0) * 1e9))
        return self

    def _read(self, raw: bytes) -> tuple[bytes, bytes, Extra] | None:
        """An entry, by the key as the map has it; None if it has gone or expired."""
        parts = self.map._parts(raw)
        if parts is None:
            return None
        value, _, objects, _ = parts
        extra = Extra(*parts[1:])
        if extra.expired:
            return None
        key: bytes | None = raw
        if self._known.key_by_reference:
            key = objects[0] if raw[-1] == KEY_IS_LONG else raw[: raw[-1]]
        found = objects[-1] if self._known.value_by_reference else value[self._value_at :]
        if key is None or found is None:
            raise shmrhash.SegmentCorrupt(
                f"map {self.map.name!r}: an entry refers to no object where one should be"
            )
        return key, found, extra

    def items(self) -> Iterator[tuple[bytes, bytes, Extra | None]]:
        for raw in _core.raw_keys(self.map):
            found = self._read(raw)
            if found is not None:
                yield found

    def find(self, key: bytes) -> Found | None:
        found = self._read(self._core._raw_key(key))
        return None if found is None else found[1:]

    def following(self, key: bytes | None) -> bytes | None:
        raw = None if key is None else self._core._raw_key(key)
        while (raw := self.map.get_next_key(raw)) is not None:
            found = self._read(raw)
            if found is not None:
                return found[0]
        return None

    def update(self, key: bytes, value: bytes, flag: int) -> None:
        self._store(key, value, flag, 0)

    def restore(self, key: bytes, value: bytes, extra: Extra, flag: int) -> None:
        """In one step. A deadline of 0 is the dict's own time to live."""
        self._store(key, value, flag, extra.deadline_ns)

    def _store(self, key: bytes, value: bytes, flag: int, deadline_ns: int) -> None:
        if not self._core.store(key, value, flag, deadline_ns):
            error = shmrhash.KeyExists if flag == shmrhash.BPF_NOEXIST else shmrhash.KeyNotFound
            raise error(os.strerror(error.errno or 0))

    def delete(self, key: bytes) -> None:
        del self._core[key]

    def notes(self, value: bytes, extra: Extra) -> str:
        return "" if self._known.ttl is None else f"  {deadline_text(extra)}"

    def facts(self, value: bytes, extra: Extra) -> dict[str, Any]:
        return {} if self._known.ttl is None else {"expires_in": extra.expires_in}


def contents_of(shared_map: RHashMap, wanted: DataOptions, *, strict: bool = False) -> Plain:
    """The contents of a map, in the formats that the user wants.

    A schema that cannot be read is told on the standard error, and the bytes are shown; with
    strict, for whoever would store something, it is a Failure.
    """
    types = None
    try:
        types = types_of(shared_map)
        if types is not None:
            return Typed(shared_map, types, _typed_pair(shared_map, types, wanted))
    except shmrhash.LayoutMismatch as error:
        if strict:
            raise Failure(f"{error}; nothing is stored into it", STATUS_DAMAGED) from None
        print(f"Warning: {printable(str(error))}; here are its bytes", file=sys.stderr)
    pair = wanted.fit(shared_map)
    return (WithFields if shared_map._fields() else Plain)(shared_map, pair)


def _typed_pair(shared_map: RHashMap, types: Types, wanted: DataOptions) -> Pair:
    key_size = 0 if types.key_by_reference else shared_map.key_size
    inline = shared_map.value_size - len(types.fields) * WORD_BYTES
    try:
        key = kind_of(types.key, "key", key_size, wanted.unpickle)
        value = kind_of(types.value, "value", inline, wanted.unpickle)
    except shmrhash.LayoutMismatch as error:
        raise shmrhash.LayoutMismatch(f"segment {shared_map.name!r}: {error}") from None
    if wanted.raw:
        return Pair(*(RawAny(0) if not size else Raw(size) for size in (key_size, inline)))
    return Pair(chosen(wanted.key, key, "key"), chosen(wanted.value, value, "value"))
