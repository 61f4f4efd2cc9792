"""Bytes of declared types: what a person sees of them, if it is not all; and texts and numbers.

Each class is a Format (formats.py) of encoded bytes. What a type cannot be shown as stands as its
name and size; plain() has its bytes in base64, so that what is exported can be imported.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from dataclasses import dataclass
from typing import Any

from shmrhash.cli.entries.formats import Raw, Record
from shmrhash.cli.screen import printable
from shmrhash.cli.words import Failure, Tokens

ITEMS_SHOWN = 64  # of arrays and bytes in a line


@dataclass(frozen=True)
class Opaque:
    """Bytes of which only the type and the size are shown. size: bytes of each, 0: any number."""

    size: int
    name: str

    def take(self, tokens: Tokens, what: str) -> bytes:
        raise Failure(f"the {what} is of the type {self.name}, which only a program can make")

    def parse(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict) and isinstance(value.get("base64"), str):
            try:
                data = base64.b64decode(value["base64"], validate=True)
            except (binascii.Error, ValueError):
                raise Failure(f"{what} has a base64 that is none") from None
            if self.size and len(data) != self.size:
                raise Failure(f"{what} expected {self.size} bytes got {len(data)}")
            return data
        raise Failure(f'{what} should be {{"base64": ...}}, for the type {self.name}')

    def plain(self, data: bytes) -> Any:
        return {"base64": base64.b64encode(data).decode(), "type": self.name}

    def shown(self, data: bytes) -> Any:
        return {"type": self.name, "bytes": len(data)}

    def text(self, data: bytes) -> str:
        return f"<{printable(self.name)}, {len(data):,} bytes>"


class Utf8(Opaque):
    """str."""

    def take(self, tokens: Tokens, what: str) -> bytes:
        return self.parse(tokens.next_or_fail(f"{what} expected text"), what)

    def parse(self, value: Any, what: str) -> bytes:
        if not isinstance(value, str):
            return super().parse(value, what)
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Failure(f"{what} {value!r} is no text in UTF-8") from None

    def plain(self, data: bytes) -> Any:
        try:
            return data.decode()
        except UnicodeDecodeError:  # somebody damaged it
            return super().plain(data)

    def shown(self, data: bytes) -> Any:
        return self.plain(data)

    def text(self, data: bytes) -> str:
        return printable(data.decode(errors="backslashreplace"))


class Octets(Opaque):
    """bytes: in words as formats.Raw has them, of any number."""

    def take(self, tokens: Tokens, what: str) -> bytes:
        return take_bytes(tokens, what)

    def shown(self, data: bytes) -> Any:
        return data.hex()

    def text(self, data: bytes) -> str:
        more = f"... ({len(data):,} bytes)" if len(data) > ITEMS_SHOWN else ""
        return repr(data[:ITEMS_SHOWN]) + more


def take_bytes(tokens: Tokens, what: str) -> bytes:
    """All words up to the next keyword, as bytes."""
    if tokens.data_word() is None:
        raise Failure(f"{what} expected bytes, such as 1 0 0x1f, or hex 01001f")
    hexadecimal = tokens.left() > 1 and tokens.peek() == "hex"
    prefix = [tokens.next()] if hexadecimal else []
    found = bytearray()
    while (word := tokens.data_word()) is not None:
        run = len(word.removeprefix("0x")) // 2 if hexadecimal and len(word) > 2 else 1
        found += Raw(max(1, run)).take(Tokens([*prefix, word]), what)
        tokens.next()
    return bytes(found)


class RawAny(Raw):
    """Bytes in hex, of any number: with --raw."""

    def take(self, tokens: Tokens, what: str) -> bytes:
        return take_bytes(tokens, what)

    def parse(self, value: Any, what: str) -> bytes:
        raise Failure("lines are read by the dict's types: leave --raw out")


@dataclass(frozen=True)
class Number(Record):
    """int, float, bool and struct formats, which stand in the entry."""

    is_key: bool = False

    def parse(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict):
            return Opaque(self.size, "bytes").parse(value, what)
        return super().parse(value, what)

    def _pack(self, fields: list[Any], what: str) -> bytes:
        data = super()._pack(fields, what)
        if not self.is_key or float not in self.converters:
            return data
        items = [item + 0.0 if type(item) is float else item for item in self.packer.unpack(data)]
        return self.packer.pack(*items)  # -0.0 and 0.0 are one key

    def plain(self, data: bytes) -> Any:
        found = super().plain(data)
        if self.is_integer:
            return found
        with contextlib.suppress(Failure):
            if super().parse(found, "") == data:
                return found
        return Opaque(self.size, "struct").plain(data) | {"fields": found}

    def shown(self, data: bytes) -> Any:
        return super().plain(data)

    def text(self, data: bytes) -> str:
        fields = self.shown(data)
        return printable(" ".join(map(str, fields if isinstance(fields, list) else [fields])))


class Inline(Opaque):
    """ctypes structures, and dtypes where NumPy is not here: their bytes."""

    def take(self, tokens: Tokens, what: str) -> bytes:
        return Raw(self.size).take(tokens, what)

    def shown(self, data: bytes) -> Any:
        return super().shown(data) | {"hex": data.hex()}

    def text(self, data: bytes) -> str:
        more = " ..." if len(data) > ITEMS_SHOWN else ""
        return f"<{printable(self.name)}: {data[:ITEMS_SHOWN].hex(' ')}{more}>"
