"""The private interface of the library to the command line, beyond the public names.

It reads segments as files, without attaching to them; the schema of a SharedDict, without importing
the classes that it names; and entries as encoded bytes, with their objects and deadlines. The code
in shmrhash/cli uses no other private name of the library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any, NamedTuple

from shmrhash import _core
from shmrhash import _tracing as tracing
from shmrhash._arguments import NEVER_NS
from shmrhash._constants import BPF_NOEXIST, WORD_BYTES
from shmrhash._errors import Error, KeyExists, KeyNotFound, LayoutMismatch, SegmentCorrupt
from shmrhash._fields import Field, unpacked
from shmrhash._gc import ANONYMOUS_PREFIX
from shmrhash._map import RHashMap
from shmrhash._near.figures import figures_of
from shmrhash._segment import directory, entries, holders_of, look_at_file, path_of, plain_name
from shmrhash._sync.listing import lock_of, locks_in, take_away
from shmrhash._trust import is_trusted, user_name
from shmrhash._types.codec import Role
from shmrhash._types.declared import codec_for, type_of_record
from shmrhash._types.keys import decode_key, encode_key
from shmrhash._types.records import PATTERNS, record_name
from shmrhash._types.rowtypes import records_of, without_dtypes
from shmrhash._types.schema import Types, check_schema

__all__ = [
    "ANONYMOUS_PREFIX", "NEVER_NS", "PATTERNS", "WORD_BYTES", "DictEntries", "Extra", "Field",
    "Role", "Types", "array_codec", "begins_as_map", "check_schema", "clock_ns",
    "count_expired", "create_map", "decode_key", "directory", "encode_key", "entries",
    "field_pairs", "fields_of", "file_status", "is_map", "is_space", "is_trusted", "is_unheld",
    "lock_of", "locks_in", "near_of",
    "open_to_look", "path_of", "plain_name", "read_chunk", "read_entries", "read_entry",
    "record_name", "records_of", "take_away", "tracing", "types_of", "user_name",
    "without_dtypes",
]  # fmt: skip

_NEAR_SECONDS = 1.0  # to wait for a holder of the lock of a near cache's lines

clock_ns = _core.clock_monotonic_ns  # the clock of all deadlines
count_expired = _core.count_expired  # of a map's entries


# ---- segments as files ----


def is_map(file: FileIO) -> bool:
    """Whether an open file begins with a map's magic bytes. Raises OSError."""
    return file.read(len(_core.MAGIC_BYTES)) == _core.MAGIC_BYTES


def begins_as_map(path: str) -> bool:
    """is_map() of the file at path, which must not be a link. Raises OSError."""
    with open(look_at_file(path), "rb", buffering=0) as file:
        return is_map(file)


def is_unheld(path: str) -> bool:
    """Whether no process holds a segment. False if that cannot be determined."""
    try:
        fd = look_at_file(path)
    except OSError:
        return False
    try:
        holders = holders_of(fd)
    except Error:
        return False
    finally:
        os.close(fd)
    return holders is not None and holders.nobody


def file_status(shared_map: RHashMap) -> os.stat_result:
    """The status of the file behind a handle, even if its name names another file now."""
    return os.fstat(shared_map._descriptor())


def open_to_look(name: str, *, timeout: float | None, owner: int | None) -> RHashMap:
    """A handle for reading only that changes no byte of the segment. Raises what open() raises.

    While the handle is open, no memory of the map is given back.
    """
    return RHashMap._look(name, timeout, owner)


def is_space(shared_map: RHashMap) -> bool:
    """Whether a segment is a space of lock primitives, and not a map."""
    return shared_map._is_space


def near_of(shared_map: RHashMap) -> dict[str, Any]:
    """What a near cache knows of its server, if this is a handle of its entries; see figures_of().
    Empty otherwise."""
    return figures_of(shared_map, file_status(shared_map).st_uid, _NEAR_SECONDS)


def create_map(
    name: str, fields: tuple[tuple[int, int], ...], schema: bytes, **more: Any
) -> RHashMap:
    """A new map with these special fields and this schema, which need not be valid.

    Raises what RHashMap.create() raises.
    """
    return RHashMap.create(name, fields=unpacked(fields), _schema=schema, **more)


# ---- the types of a SharedDict ----


def types_of(shared_map: RHashMap) -> Types | None:
    """The types of a SharedDict; None if the map is not a SharedDict.

    Raises LayoutMismatch: see check_schema().
    """
    sizes = shared_map.key_size, shared_map.value_size
    return check_schema(shared_map.schema, shared_map._fields(), *sizes, shared_map.name)


def array_codec(record: Any, role: Role, size: int) -> Callable[[Any], Any]:
    """The decoder of a NumPy dtype or an Array; size: its bytes in the entry, 0 for an object.

    Raises LayoutMismatch: the record cannot be read, or the type has another size.
    """
    name = record_name(record)
    try:
        codec = codec_for(type_of_record(record, role), role)
    except (Error, TypeError, ValueError, KeyError, SyntaxError, RecursionError) as error:
        raise LayoutMismatch(f"{name:.200} cannot be read: {error}") from None
    if not codec.by_reference and codec.size != size:
        raise LayoutMismatch(f"{name:.200} has {codec.size} bytes, but the entry has {size}")
    assert codec.decode is not None
    return codec.decode


# ---- entries as bytes ----


class Extra(NamedTuple):
    """The parts of an entry besides key and value. deadline_ns: by clock_ns(), 0 for none."""

    deadline_ns: int = 0
    objects: tuple[bytes | None, ...] = ()
    held: bool = False

    @property
    def expires_in(self) -> float | None:
        """Seconds until the deadline; None if the entry never expires."""
        if self.deadline_ns in (0, NEVER_NS):
            return None
        return (self.deadline_ns - clock_ns()) / 1e9

    @property
    def expired(self) -> bool:
        left = self.expires_in
        return left is not None and left <= 0


def field_pairs(shared_map: RHashMap) -> tuple[tuple[int, int], ...]:
    """(kind, offset) of each special field of a map's values; also those a SharedDict uses."""
    return shared_map._fields()


def fields_of(shared_map: RHashMap) -> tuple[Field, ...]:
    """The special fields of a map's values."""
    return unpacked(shared_map._fields())


def read_chunk(
    shared_map: RHashMap, cursor: bytes | None, limit: int
) -> tuple[bytes, bytes, int, bytes | None]:
    """The next entries of a map: keys, values, how many, and the next cursor, None at the end.

    RHashMap.lookup_batch() without NumPy, whose import takes longer than a small export.
    """
    keys, values = bytearray(limit * shared_map.key_size), bytearray(limit * shared_map.value_size)
    count, cursor = _core.read_entries(shared_map, cursor, keys, values, 0, limit)
    del keys[count * shared_map.key_size :], values[count * shared_map.value_size :]
    return bytes(keys), bytes(values), count, cursor


def read_entry(shared_map: RHashMap, key: bytes) -> tuple[bytes, Extra] | None:
    """The value of a key with its objects and deadline, all of one moment; None if it is absent."""
    parts = shared_map._parts(key)
    if parts is None:
        return None
    extra = Extra(*parts[1:])
    return None if extra.expired else (parts[0], extra)


def read_entries(shared_map: RHashMap) -> Iterator[tuple[bytes, bytes, Extra]]:
    """Every entry; one that stays during the walk comes exactly once, an expired one never."""
    for key in _core.EntryIterator(shared_map, "keys", expired=True):
        found = read_entry(shared_map, key)
        if found is not None:
            yield (key, *found)


class DictEntries:
    """The entries of a SharedDict as encoded bytes, from the entry itself or from its objects."""

    def __init__(self, shared_map: RHashMap, types: Types) -> None:
        self._map = shared_map
        self._types = types
        key = (_core.KEY_BYTES, None, None)
        value = (_core.VALUE_BYTES, None, None)
        self._core: _core.DictCore[bytes, bytes] = _core.DictCore(
            shared_map,
            key if types.key_by_reference else (_core.KEY_FIXED, bytes, bytes),
            value if types.value_by_reference else (_core.VALUE_FIXED, bytes, bytes),
            types.default_ttl_ns,
        )

    def __iter__(self) -> Iterator[tuple[bytes, bytes, Extra]]:
        return (self._whole(*found) for found in read_entries(self._map))

    def find(self, key: bytes) -> tuple[bytes, Extra] | None:
        """The encoded value of an encoded key, and the other parts of the entry."""
        raw = self._core._raw_key(key)
        found = read_entry(self._map, raw)
        return None if found is None else self._whole(raw, *found)[1:]

    def raw_key(self, key: bytes) -> bytes:
        """The bytes under which the map stores an encoded key."""
        return self._core._raw_key(key)

    def entry_at(self, raw: bytes) -> tuple[bytes, tuple[bytes, Extra]] | None:
        """The encoded key and what find() returns, by the bytes under which the map stores it."""
        found = read_entry(self._map, raw)
        if found is None:
            return None
        key, value, extra = self._whole(raw, *found)
        return key, (value, extra)

    def key_in(self, raw: bytes) -> bytes | None:
        """The encoded key that is stored as these bytes; None: they are not all of it."""
        if not self._types.key_by_reference:
            return raw
        return None if raw[-1] == _core.LONG_KEY_MARK else raw[: raw[-1]]

    def long_keys(self) -> dict[bytes, bytes]:
        """By the bytes under which the map stores them, the present keys that are not all there."""
        if not self._types.key_by_reference:
            return {}
        return {
            raw: self._whole(raw, stored, extra)[0]
            for raw, stored, extra in read_entries(self._map)
            if self.key_in(raw) is None
        }

    def following(self, key: bytes | None) -> bytes | None:
        """The encoded key after this one in the order of the map; after None the first."""
        raw = None if key is None else self._core._raw_key(key)
        while (raw := self._map.get_next_key(raw)) is not None:
            found = read_entry(self._map, raw)
            if found is not None:
                return self._whole(raw, *found)[0]
        return None

    def store(self, key: bytes, value: bytes, flag: int, deadline_ns: int) -> None:
        """Store an entry; with a deadline of 0 it gets the dict's default time to live.

        Raises KeyExists, KeyNotFound (forbidden by flag), and what a SharedDict raises.
        """
        if not self._core._put(key, value, flag, deadline_ns):
            error = KeyExists if flag == BPF_NOEXIST else KeyNotFound
            raise error(os.strerror(error.errno or 0))

    def delete(self, key: bytes) -> None:
        """Remove an entry. Raises KeyNotFound."""
        del self._core[key]

    def _whole(self, raw: bytes, stored: bytes, extra: Extra) -> tuple[bytes, bytes, Extra]:
        """Key, value and other parts, with key and value taken from the entry or its objects."""
        key: bytes | None = raw
        if self._types.key_by_reference:
            key = extra.objects[0] if raw[-1] == _core.LONG_KEY_MARK else raw[: raw[-1]]
        by_reference = self._types.value_by_reference
        value = extra.objects[-1] if by_reference else stored[self._types.value_offset :]
        if key is None or value is None:
            raise SegmentCorrupt(
                f"map {self._map.name!r}: an entry refers to no object where one should be"
            )
        return key, value, extra
