"""Schema: the description of a dict's types in its segment, and the layout of its entries.

A value is [reference to the whole key] [deadline] [birth] [tags] [value, or a reference to it],
each at a multiple of 8 bytes. The first is present if keys are of any length, the second if entries
can expire; a cache has the third, and the fourth if its entries can have tags (births.pxd).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shmrhash import _core
from shmrhash._arguments import checked_ttl, ttl_ns
from shmrhash._constants import WORD_BYTES
from shmrhash._errors import InvalidArgument, LayoutMismatch, TooLarge
from shmrhash._fields import Birth, Field, Kptr, Tags, Timer, unpacked
from shmrhash._types.codec import KEY_DIGEST_BYTES, Codec, Role
from shmrhash._types.declared import codec_for, type_of_record
from shmrhash._types.records import by_reference, record_name, same_stored
from shmrhash._types.rowtypes import without_dtypes

VERSION = 1
KIND = "SharedDict"
NO_BIRTHS, BIRTHS, BIRTHS_AND_TAGS = range(3)  # of a dict; a cache; a cache with tags
PER_ENTRY = "per entry"  # entries can expire; only those with a ttl of their own do
REMEDY = "if_different='replace' replaces it; or choose another name, or unlink it"
REMEDY_OF_DICT = (
    "if_different='replace' replaces it, and open() uses it as it is; or choose another name, or "
    "unlink it"
)
_TIME_NAMESPACE = "/proc/self/timens_offsets"
_RESTORED_MAX = 64  # some kilobytes each; a program has few types


def clock_ahead_ns() -> int | None:
    """How far this time namespace's CLOCK_MONOTONIC is ahead of the machine's; None: unknown."""
    try:
        with open(_TIME_NAMESPACE) as lines:
            for line in lines:
                name, seconds, ns = line.split()
                if name == "monotonic":
                    return int(seconds) * 10**9 + int(ns)
    except FileNotFoundError:
        # The kernel has no time namespaces, or there is no /proc.
        return 0 if os.path.exists("/proc/self/ns") else None
    except (OSError, ValueError):
        return None
    return 0


def _expect_clock(record: dict[str, Any], name: str) -> None:
    """Refuse to judge deadlines by another clock than theirs. Raises LayoutMismatch."""
    if record["ttl"] is None:
        return
    made, here = record.get("clock", 0), clock_ahead_ns()
    if here not in (None, made):
        raise LayoutMismatch(
            f"segment {name!r} has deadlines by the clock of another time namespace, which is "
            f"{made} ns ahead of the machine's; this one is {here} ns ahead, and would take "
            f"living entries for expired; open it in that namespace, or make it without ttl"
        )


@dataclass(frozen=True)
class Layout:
    """Where the parts of an entry's value lie: see the head of this file.

    ttl: None if entries have no deadlines; inf if only entries with a ttl of their own expire;
    otherwise the default in seconds. births: NO_BIRTHS, BIRTHS or BIRTHS_AND_TAGS.
    """

    key_by_reference: bool
    value_by_reference: bool
    ttl: float | None
    births: int

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(kind, offset) of each special field."""
        kinds = [Kptr.kind] * self.key_by_reference
        kinds += [Timer.kind] * (self.ttl is not None)
        kinds += [Birth.kind, Tags.kind][: self.births]
        kinds += [Kptr.kind] * self.value_by_reference
        return tuple((kind, number * WORD_BYTES) for number, kind in enumerate(kinds))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The special fields."""
        return unpacked(self.places)

    @property
    def value_offset(self) -> int:
        """The offset of an inline value: after the special fields."""
        return len(self.places) * WORD_BYTES

    @property
    def has_objects(self) -> bool:
        """Whether keys or values are objects, which max_bytes limits."""
        return self.key_by_reference or self.value_by_reference

    @property
    def default_ttl_ns(self) -> int:
        """The default ttl in nanoseconds; 0 for none."""
        return ttl_ns(self.ttl)


@dataclass(frozen=True)
class Schema(Layout):
    """The types of a dict's keys and values as codecs: what a SharedDict works with."""

    key: Codec
    value: Codec

    @property
    def value_size(self) -> int:
        """Bytes of the map's values."""
        return self.value_offset + (0 if self.value_by_reference else self.value.size)

    def to_bytes(self) -> bytes:
        """The JSON that is stored in the segment. Raises TooLarge."""
        record = {
            "v": VERSION,
            "kind": KIND,
            "key": self.key.record,
            "value": self.value.record,
            "ttl": PER_ENTRY if self.ttl == math.inf else self.ttl,
        }
        if self.births:
            record["births"] = self.births
        if self.ttl is not None and (ahead_ns := clock_ahead_ns()):
            record["clock"] = ahead_ns
        data = json.dumps(record, separators=(",", ":")).encode()
        if len(data) > _core.SCHEMA_BYTES_MAX:
            raise TooLarge(
                f"the types {record_name(self.key.record):.60} and "
                f"{record_name(self.value.record):.60} take {len(data)} bytes to describe, but "
                f"there is room for {_core.SCHEMA_BYTES_MAX}"
            )
        return data


def make_schema(key: Any, value: Any, ttl: float | None, births: int = NO_BIRTHS) -> Schema:
    """The schema of these declared types.

    Raises TypeError, InvalidArgument, ImportError.
    """
    checked = None if ttl is None else checked_ttl(ttl)
    return _schema_of(codec_for(key, "key"), codec_for(value, "value"), checked, births)


def _schema_of(key: Codec, value: Codec, ttl: float | None, births: int) -> Schema:
    return Schema(key.by_reference, value.by_reference, ttl, births, key, value)


def read_schema(data: bytes, name: str) -> dict[str, Any]:
    """The schema in a segment, as a dict. Raises LayoutMismatch: not a SharedDict's, or of another
    version."""
    if not without_dtypes(data):
        raise LayoutMismatch(f"segment {name!r} is a map, but not a SharedDict")
    try:
        record = json.loads(data)
        version, kind = record["v"], record["kind"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LayoutMismatch(f"segment {name!r} has a schema that is not a SharedDict's") from None
    if (version, kind) != (VERSION, KIND) or not {"key", "value", "ttl"} <= record.keys():
        raise LayoutMismatch(
            f"segment {name!r} is a {kind} of version {version}, not {KIND}, version {VERSION}"
        )
    return dict(record)


def ttl_of_record(record: dict[str, Any], name: str) -> float | None:
    """The ttl that a schema gives. Raises LayoutMismatch."""
    ttl = record["ttl"]
    if ttl is None:
        return None
    try:
        return checked_ttl(math.inf if ttl == PER_ENTRY else ttl)
    except (TypeError, InvalidArgument) as error:
        raise LayoutMismatch(f"segment {name!r}: {error}") from None


def births_of_record(record: dict[str, Any], name: str) -> int:
    """The births that a schema gives. Raises LayoutMismatch."""
    births = record.get("births", NO_BIRTHS)
    if births not in (NO_BIRTHS, BIRTHS, BIRTHS_AND_TAGS):
        raise LayoutMismatch(f"segment {name!r}: its schema is damaged")
    return int(births)


def _restored(record: Any, role: Role, name: str) -> Codec:
    """The codec of the type that a segment names, which may be any JSON. Raises LayoutMismatch."""
    try:
        return codec_for(type_of_record(record, role), role)
    except LayoutMismatch as error:
        raise LayoutMismatch(f"segment {name!r}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise LayoutMismatch(
            f"segment {name!r}: its {role} type {record!r:.200} cannot be read: {error}"
        ) from None


def expect_geometry(schema: Schema, handle: Any) -> None:
    """Compare the sizes and fields that the types need with the map's.

    Raises LayoutMismatch: they differ, which happens only in a damaged segment.
    """
    needed = schema.key.size, schema.value_size, schema.places
    found = handle.key_size, handle.value_size, handle._fields()
    if needed != found:
        raise LayoutMismatch(
            f"segment {handle.name!r} has keys and values of {found[0]} and {found[1]} bytes with "
            f"the fields {list(found[2])}; its types need {needed[0]}, {needed[1]} and "
            f"{list(needed[2])}"
        )


def with_ttl(schema: Schema, name: str, ttl: float | None) -> Schema:
    """The schema for a handle with this default ttl; None takes the segment's ttl.

    Raises LayoutMismatch: entries have no room for a deadline.
    """
    if ttl is None:
        return schema
    if schema.ttl is None:
        raise LayoutMismatch(
            f"segment {name!r} was made without ttl, so its entries have no room for a deadline, "
            f"but it was opened with ttl={ttl}; open it without ttl; {REMEDY_OF_DICT}"
        )
    return replace(schema, ttl=ttl)


def restore_schema(record: dict[str, Any], name: str, key: Any, value: Any) -> Schema:
    """The schema of a segment. key and value, unless None, must fit the types that it has.

    Raises LayoutMismatch, naming both types, and what codec_for() raises.
    """
    _expect_clock(record, name)
    codecs = []
    roles: tuple[tuple[Role, Any], ...] = (("key", key), ("value", value))
    for role, declared in roles:
        if declared is None:
            codec = _restored(record[role], role, name)
        else:
            codec = codec_for(declared, role)
        # Compare it as JSON returns it: a tuple, for example, becomes a list.
        if not same_stored(json.loads(json.dumps(codec.record)), record[role], role):
            raise LayoutMismatch(
                f"segment {name!r} has the {role} type {record_name(record[role])}, but was opened "
                f"with {record_name(codec.record)}; {REMEDY}"
            )
        codecs.append(codec)
    births = births_of_record(record, name)
    return _schema_of(codecs[0], codecs[1], ttl_of_record(record, name), births)


# What restored() made, by all that it depends on but the clock.
_known: dict[tuple[Any, ...], tuple[Schema, dict[str, Any]]] = {}


def restored(handle: Any, key: Any, value: Any, ttl: float | None) -> Schema:
    """The schema for an unpickled handle of declared types, which must fit those of its segment.
    Handles with the same types and the same ttl share it, so unpickling another one reads no JSON.

    Raises what restore_schema() and with_ttl() raise.
    """
    # Other declared types may be equal and different: NumPy's with and without a class for records.
    shared = all(one is None or isinstance(one, type) for one in (key, value))
    place = handle.schema, key, value, ttl
    known = _known.get(place) if shared else None
    if known is not None:
        schema, record = known
        _expect_clock(record, handle.name)
        return schema
    record = read_schema(handle.schema, handle.name)
    schema = with_ttl(restore_schema(record, handle.name, key, value), handle.name, ttl)
    if shared:
        if len(_known) >= _RESTORED_MAX:
            _known.clear()
        _known[place] = schema, record
    return schema


@dataclass(frozen=True)
class Types(Layout):
    """The types that a schema names, as records: what can be said without importing classes."""

    key: Any
    value: Any

    def __str__(self) -> str:
        text = f"{record_name(self.key)} to {record_name(self.value)}"
        if self.ttl is not None:
            ttl = PER_ENTRY if self.ttl == math.inf else f"{self.ttl:g} s"
            text += f", time to live {ttl}"
        return text


def check_schema(
    schema: bytes, fields: tuple[tuple[int, int], ...], key_size: int, value_size: int, name: str
) -> Types | None:
    """The types that a schema names, compared with the layout of the entries; None if there are
    none.

    Raises LayoutMismatch: the schema is no SharedDict's, of another version, damaged, or does not
    fit the layout.
    """
    if not without_dtypes(schema):
        return None
    types = _read_types(schema, name)
    used = types.value_offset
    fits = value_size == used if types.value_by_reference else value_size > used
    if types.key_by_reference:
        fits = fits and key_size == KEY_DIGEST_BYTES
    if not fits or tuple(fields) != types.places:
        raise LayoutMismatch(
            f"segment {name!r} says that it is a dict of {types}, but its entries have another "
            f"layout"
        )
    return types


def _read_types(schema: bytes, name: str) -> Types:
    record = read_schema(schema, name)
    ttl = ttl_of_record(record, name)
    try:
        key, value = record["key"], record["value"]
        births = births_of_record(record, name)
        references = by_reference(key, "key"), by_reference(value, "value")
        types = Types(*references, ttl, births, key, value)
        str(types)
    except LayoutMismatch as error:
        raise LayoutMismatch(f"segment {name!r}: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        raise LayoutMismatch(f"segment {name!r}: its schema is damaged") from None
    return types
