"""Codec: how a declared type of keys or values becomes bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["key", "value"]


@dataclass(frozen=True)
class Codec:
    """A declared type, as the core and the schema take it.

    declared: what the program said. record: the same as JSON. kind, encode, decode: the core's
    triple. size: bytes inline: of a key all of them, of a value a multiple of 8. by_reference:
    the bytes are an object of the segment, and the entry refers to it.
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
        """What the core takes."""
        return self.kind, self.encode, self.decode
