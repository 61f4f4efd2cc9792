"""Codec: how a declared type of keys or values becomes bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["key", "value"]


@dataclass(frozen=True)
class Codec:
    """A declared type, as the core and the schema take it.

    declared: the type as the program declared it. record: the same as JSON. kind, encode, decode:
    the core's triple. size: the bytes inline: for a key its exact size, for a value a multiple of
    8. by_reference: the bytes are an object of the segment, and the entry refers to it.
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
