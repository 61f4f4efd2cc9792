"""Schema: the description of a dict's types in its segment, and the layout of its entries.

A value is [reference to the whole key] [deadline] [value, or a reference to it], each at a multiple
of 8 bytes. The first is present if keys are of any length, the second if entries can expire.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from typing import Any

from shmrhash._arguments import checked_ttl, ttl_ns
from shmrhash._classes import same_stored
from shmrhash._codec import Codec, Role
from shmrhash._errors import InvalidArgument, LayoutMismatch, TooLarge
from shmrhash._fields import Field, Kptr, Timer, packed
from shmrhash._types import WORD_BYTES, codec_for, record_name, type_of_record

VERSION = 1
KIND = "SharedDict"
BYTES_MAX = 1536
PER_ENTRY = "per entry"  # entries can expire; only those with a ttl of their own do
REMEDY = (
    "if_different='replace' replaces it, open() uses it as it is; or choose another name, or "
    "unlink it"
)
_TIME_NAMESPACE = "/proc/self/timens_offsets"


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
    made, here = record.get("clock", 0), clock_ahead_ns()
    if record["ttl"] is not None and here not in (None, made):
        raise LayoutMismatch(
            f"segment {name!r} has deadlines by the clock of another time namespace, which is "
            f"{made} ns ahead of the machine's; this one is {here} ns ahead, and would take "
            f"living entries for expired; open it in that namespace, or make it without ttl"
        )


@dataclass(frozen=True)
class Schema:
    """The types of a dict's keys and values, and its ttl.

    ttl: None if entries have no deadlines; inf if only entries with a ttl of their own expire;
    otherwise the default in seconds.
    """

    key: Codec
    value: Codec
    ttl: float | None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The special fields of the map's values."""
        fields: list[Field] = []
        if self.key.by_reference:
            fields.append(Kptr(0))
        if self.ttl is not None:
            fields.append(Timer(len(fields) * WORD_BYTES))
        if self.value.by_reference:
            fields.append(Kptr(len(fields) * WORD_BYTES))
        return tuple(fields)

    @property
    def value_size(self) -> int:
        """Bytes of the map's values."""
        inline = 0 if self.value.by_reference else self.value.size
        return len(self.fields) * WORD_BYTES + inline

    @property
    def has_objects(self) -> bool:
        """Whether keys or values are objects, which max_bytes limits."""
        return self.key.by_reference or self.value.by_reference

    @property
    def default_ttl_ns(self) -> int:
        """The default ttl in nanoseconds; 0 for none."""
        return ttl_ns(self.ttl)

    def to_bytes(self) -> bytes:
        """The JSON that is stored in the segment. Raises TooLarge."""
        record = {
            "v": VERSION,
            "kind": KIND,
            "key": self.key.record,
            "value": self.value.record,
            "ttl": PER_ENTRY if self.ttl == math.inf else self.ttl,
        }
        if self.ttl is not None and (ahead_ns := clock_ahead_ns()):
            record["clock"] = ahead_ns
        data = json.dumps(record, separators=(",", ":")).encode()
        if len(data) > BYTES_MAX:
            raise TooLarge(
                f"the types {record_name(self.key.record):.60} and "
                f"{record_name(self.value.record):.60} take {len(data)} bytes to describe, but "
                f"there is room for {BYTES_MAX}"
            )
        return data


def make_schema(key: Any, value: Any, ttl: float | None) -> Schema:
    """The schema of these declared types.

    Raises TypeError, InvalidArgument, ImportError.
    """
    checked = None if ttl is None else checked_ttl(ttl)
    return Schema(codec_for(key, "key"), codec_for(value, "value"), checked)


def read_schema(data: bytes, name: str) -> dict[str, Any]:
    """The schema in a segment, as a dict. Raises LayoutMismatch: not a SharedDict's, or of another
    version."""
    if not data:
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
    needed = schema.key.size, schema.value_size, packed(schema.fields, schema.value_size)
    found = handle.key_size, handle.value_size, list(handle._fields())
    if needed != found:
        raise LayoutMismatch(
            f"segment {handle.name!r} has keys and values of {found[0]} and {found[1]} bytes with "
            f"the fields {found[2]}; its types need {needed[0]}, {needed[1]} and {needed[2]}"
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
            f"but it was opened with ttl={ttl}; open it without ttl, or {REMEDY}"
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
                f"with {record_name(codec.record)}; SharedDict(..., if_different='replace') "
                f"replaces it; or choose another name, or unlink it"
            )
        codecs.append(codec)
    return Schema(codecs[0], codecs[1], ttl_of_record(record, name))
