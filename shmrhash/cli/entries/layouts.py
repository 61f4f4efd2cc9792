"""How a map's entries are laid out: what a SharedDict's segment says, and whether it is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import shmrhash
from shmrhash import RHashMap, _core
from shmrhash._fields import Kptr, Timer
from shmrhash._schema import PER_ENTRY, read_schema, ttl_of_record
from shmrhash._types import record_name
from shmrhash.cli.entries.typed import is_reference

NEVER_NS = (1 << 63) - 1  # the deadline of an entry that was told to have none
DIGEST_BYTES = 16
WORD_BYTES = 8


class Extra(NamedTuple):
    """What an entry has besides key and value. deadline_ns: CLOCK_MONOTONIC, 0 for none."""

    deadline_ns: int = 0
    objects: tuple[bytes | None, ...] = ()
    held: bool = False

    @property
    def expires_in(self) -> float | None:
        """Seconds; None: never."""
        if self.deadline_ns in (0, NEVER_NS):
            return None
        return (self.deadline_ns - _core.clock_monotonic_ns()) / 1e9

    @property
    def expired(self) -> bool:
        left = self.expires_in
        return left is not None and left <= 0


@dataclass(frozen=True)
class Types:
    """What a SharedDict's segment says of its types, and that it is true of the segment."""

    key: Any
    value: Any
    key_by_reference: bool
    value_by_reference: bool
    ttl: float | None

    @property
    def fields(self) -> list[tuple[int, int]]:
        """The special fields (kind, offset) that such a dict has."""
        kinds = [Kptr.kind] * self.key_by_reference
        kinds += [Timer.kind] * (self.ttl is not None)
        kinds += [Kptr.kind] * self.value_by_reference
        return [(kind, number * WORD_BYTES) for number, kind in enumerate(kinds)]

    def __str__(self) -> str:
        text = f"{record_name(self.key)} to {record_name(self.value)}"
        if self.ttl is not None:
            ttl = PER_ENTRY if self.ttl == float("inf") else f"{self.ttl:g} s"
            text += f", time to live {ttl}"
        return text


def read_types(schema: bytes, name: str) -> Types:
    """What a schema says.

    Raises LayoutMismatch: it is no dict's, of another version, or damaged.
    """
    record = read_schema(schema, name)
    ttl = ttl_of_record(record, name)
    try:
        types = Types(
            record["key"],
            record["value"],
            is_reference(record["key"], "key"),
            is_reference(record["value"], "value"),
            ttl,
        )
        str(types)
    except shmrhash.LayoutMismatch as error:
        raise shmrhash.LayoutMismatch(f"segment {name!r}: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        raise shmrhash.LayoutMismatch(f"segment {name!r}: its schema is damaged") from None
    return types


def fitting_types(
    schema: bytes, fields: list[tuple[int, int]], key_size: int, value_size: int, name: str
) -> Types | None:
    """What a schema says, if the map is laid out so; None without one. Raises LayoutMismatch."""
    if not schema:
        return None
    types = read_types(schema, name)
    used = len(types.fields) * WORD_BYTES
    fits = value_size == used if types.value_by_reference else value_size > used
    if types.key_by_reference:
        fits = fits and key_size == DIGEST_BYTES
    if not fits or fields != types.fields:
        raise shmrhash.LayoutMismatch(
            f"segment {name!r} says that it is a dict of {types}, and its entries are laid out "
            f"in another way"
        )
    return types


def types_of(shared_map: RHashMap) -> Types | None:
    """The types of a SharedDict; None if the map is none. Raises LayoutMismatch."""
    sizes = shared_map.key_size, shared_map.value_size
    return fitting_types(shared_map.schema, list(shared_map._fields()), *sizes, shared_map.name)
