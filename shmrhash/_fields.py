"""Special fields: places in a map's values that the map itself manages, as in a BPF map.

    RHashMap.create(name, ..., value_size=24, fields=[Kptr(0), Timer(8)])

Each takes one word of the value, 8 bytes at a multiple of 8, whatever size the kernel's type has. A
value that is copied out of the map has zeros there; a value that is copied in leaves the fields
unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import ClassVar

from shmrhash._constants import WORD_BYTES
from shmrhash._errors import InvalidArgument, TooLarge


@dataclass(frozen=True)
class Field:
    """A special field at an offset of the value, in bytes, a multiple of 8."""

    offset: int

    kind: ClassVar[int] = 0
    size: ClassVar[int] = 0  # of the kernel's type, in bytes
    limit: ClassVar[int] = 1  # of such fields in one value

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", index(self.offset))


@dataclass(frozen=True)
class SpinLock(Field):
    """A struct bpf_spin_lock, 4 bytes. Accepted because the kernel has it: every element has a lock
    anyway."""

    kind: ClassVar[int] = 1
    size: ClassVar[int] = 4


@dataclass(frozen=True)
class Timer(Field):
    """A deadline, in the place of a struct bpf_timer, 8 bytes: CLOCK_MONOTONIC ns, 0 for none.

    An entry whose deadline has passed behaves as absent; later operations remove it.
    """

    kind: ClassVar[int] = 2
    size: ClassVar[int] = 8


@dataclass(frozen=True)
class Kptr(Field):
    """A reference to an object of variable size, 8 bytes, as a referenced kptr of the kernel's.

    The element owns the object: it is freed with the element, or when another object replaces it.
    """

    kind: ClassVar[int] = 3
    size: ClassVar[int] = 8
    limit: ClassVar[int] = 3


@dataclass(frozen=True)
class Refcount(Field):
    """A struct bpf_refcount, 4 bytes: a number that is changed atomically."""

    kind: ClassVar[int] = 4
    size: ClassVar[int] = 4


@dataclass(frozen=True)
class Birth(Field):
    """In a cache: which invalidations came before the value was stored. Only Cache makes it."""

    kind: ClassVar[int] = 5
    size: ClassVar[int] = 8


@dataclass(frozen=True)
class Tags(Field):
    """In a cache with tags: those of the value. Only Cache makes it."""

    kind: ClassVar[int] = 6
    size: ClassVar[int] = 8


_KINDS: dict[int, type[Field]] = {
    kind.kind: kind for kind in (SpinLock, Timer, Kptr, Refcount, Birth, Tags)
}


def packed(fields: Iterable[Field], value_size: int) -> list[tuple[int, int]]:
    """The (kind, offset) of each field, by rising offset, as the segment keeps them.

    Raises TypeError (not a field), InvalidArgument (misaligned, beyond the value, two in one place,
    a second field of a kind that a value has once), TooLarge (more than 3 Kptr).
    """
    found: dict[int, Field] = {}
    for field in fields:
        if _KINDS.get(getattr(field, "kind", 0)) is not type(field):
            raise TypeError(
                f"fields are SpinLock, Timer, Kptr and Refcount, not {type(field).__name__}"
            )
        if field.offset < 0 or field.offset % WORD_BYTES:
            raise InvalidArgument(f"{field}: offsets are multiples of {WORD_BYTES}")
        if field.offset + WORD_BYTES > value_size:
            raise InvalidArgument(
                f"{field} takes {WORD_BYTES} bytes and ends beyond the value of {value_size}"
            )
        if field.offset in found:
            raise InvalidArgument(f"{found[field.offset]} and {field} overlap")
        found[field.offset] = field
    for kind in _KINDS.values():
        count = sum(type(field) is kind for field in found.values())
        if count > kind.limit:
            error = TooLarge if kind.limit > 1 else InvalidArgument
            raise error(f"a value has at most {kind.limit} {kind.__name__}, not {count}")
    return [(found[offset].kind, offset) for offset in sorted(found)]


def unpacked(pairs: Iterable[tuple[int, int]]) -> tuple[Field, ...]:
    """The fields that packed() made these pairs of.

    Raises InvalidArgument for a kind that no field has.
    """
    fields = []
    for kind, offset in pairs:
        if kind not in _KINDS:
            raise InvalidArgument(f"no special field has the kind {kind}")
        fields.append(_KINDS[kind](offset))
    return tuple(fields)
