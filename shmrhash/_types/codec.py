"""Codec: how a declared type of keys or values becomes bytes, and where an entry has them.

Bytes of a fixed size are inline, in the entry itself. Bytes of any size are an object of the
segment to which the entry refers; for a key the entry also has a digest of KEY_DIGEST_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from shmrhash import _core
from shmrhash._constants import WORD_BYTES

KEY_DIGEST_BYTES = 16  # stands for a key of any length: up to 15 bytes of key, or a digest

Role = Literal["key", "value"]


@dataclass(frozen=True)
class Codec:
    """A declared type, as the core and the schema take it.

    declared: the type as the program declared it. record: the same as JSON (records.py). kind,
    encode, decode: the core's triple. size: the bytes inline: for a key its exact size, for a value
    a multiple of 8. by_reference: the bytes are an object of the segment, and the entry refers to
    it.
    """

    declared: Any
    record: Any
    kind: int
    size: int
    by_reference: bool
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None

    @property
    def triple(self) -> tuple[int, Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
        """kind, encode and decode, as the core takes them."""
        return self.kind, self.encode, self.decode


def inline_size(size: int, role: Role) -> int:
    """The bytes that a type of this size takes in an entry; encode() adds zeros up to them."""
    return size if role == "key" else -(-size // WORD_BYTES) * WORD_BYTES


def inline_codec(
    declared: Any,
    record: Any,
    role: Role,
    size: int,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
) -> Codec:
    """A type of a fixed size. size: that of its bytes, without the zeros of inline_size()."""
    kind = _core.KEY_FIXED if role == "key" else _core.VALUE_FIXED
    return Codec(declared, record, kind, inline_size(size, role), False, encode, decode)


def encoded_codec(
    declared: Any,
    record: Any,
    role: Role,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
) -> Codec:
    """A type whose bytes, of any size, Python functions make and read."""
    kind = _core.KEY_ENCODED if role == "key" else _core.VALUE_ENCODED
    size = KEY_DIGEST_BYTES if role == "key" else WORD_BYTES
    return Codec(declared, record, kind, size, True, encode, decode)


def wrong_instance(cls: type, role: Role, thing: Any) -> TypeError:
    """The exception if thing is not an instance of the declared class."""
    return TypeError(f"{role} must be {cls.__qualname__}, not {type(thing).__name__}")
