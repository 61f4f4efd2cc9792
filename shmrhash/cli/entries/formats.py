"""Keys and values as people write them: bytes, text, 64-bit numbers, structs.

A Spec is what the user asked for (`--str`, `key u64 7`); Spec.fit gives the Format for keys or
values of one size. Bytes are the default, and written and shown as bpftool does.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from shmrhash.cli import jsontext
from shmrhash.cli.screen import printable
from shmrhash.cli.words import Failure, Tokens

BREAK_NAMES_SIZE = 16  # a key or value larger than this stands on lines of its own
INFINITE = (math.inf, -math.inf)  # which JSON does not have, nor NaN
SINGLE_LINE_SIZE = 24  # key and value that are no larger together share a line


class Format(Protocol):
    """How keys, or values, of one size are written and shown."""

    @property
    def size(self) -> int:
        """Bytes of each."""

    def take(self, tokens: Tokens, what: str) -> bytes:
        """The bytes that the next words stand for."""

    def parse(self, value: Any, what: str) -> bytes:
        """The bytes that value, as plain() gives it, stands for."""

    def plain(self, data: bytes) -> Any:
        """data as a value of JSON, which parse() takes back."""

    def shown(self, data: bytes) -> Any:
        """data as a value of JSON, for reading."""

    def text(self, data: bytes) -> str:
        """data in one line."""


class Simple:
    """A format whose plain() is fit for reading."""

    def plain(self, data: bytes) -> Any:
        raise NotImplementedError

    def shown(self, data: bytes) -> Any:
        return self.plain(data)


@dataclass(frozen=True)
class Raw(Simple):
    """Bytes: `1 0 0x1f 017`, or `hex 01 00 1f 0f`, or `hex 01001f0f`."""

    size: int

    def take(self, tokens: Tokens, what: str) -> bytes:
        base = 0
        if tokens.word_is("hex"):
            tokens.next()
            base = 16
        found = bytearray()
        while len(found) < self.size:
            word = tokens.data_word()
            if word is None:
                raise Failure(f"{what} expected {self.size} bytes got {len(found)}")
            found += _run_of_bytes(word) if base == 16 and len(word) > 2 else _one_byte(word, base)
            tokens.next()
        if len(found) > self.size:
            raise Failure(f"{what} expected {self.size} bytes got {len(found)}")
        return bytes(found)

    def parse(self, value: Any, what: str) -> bytes:
        try:
            if isinstance(value, str):
                data = bytes.fromhex(value)
            else:  # a list, as bpftool's JSON has it
                data = bytes(_to_integer(byte) for byte in value)
        except (TypeError, ValueError):
            raise Failure(f"{what} should be a string of hex digits, not {value!r}") from None
        return _of_size(data, self.size, what)

    def plain(self, data: bytes) -> str:
        return data.hex()

    def text(self, data: bytes) -> str:
        return data.hex(" ")


def _one_byte(word: str, base: int) -> bytes:
    """One byte in the notations of C's strtoul(): 0x.. and octal 0.. unless base is 16."""
    digits = word
    if base == 0 and len(word) > 1 and word[0] == "0" and word[1] in "01234567":
        digits = "0o" + word[1:]
    try:
        return int(digits, base).to_bytes(1, "little")
    except (ValueError, OverflowError):
        raise Failure(f"error parsing byte: {word}") from None


def _run_of_bytes(word: str) -> bytes:
    try:
        return bytes.fromhex(word.removeprefix("0x"))
    except ValueError:
        raise Failure(f"error parsing byte: {word}") from None


def _of_size(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise Failure(f"{what} expected {size} bytes got {len(data)}")
    return data


@dataclass(frozen=True)
class Text(Simple):
    """Text in UTF-8, padded with NUL bytes."""

    size: int

    def take(self, tokens: Tokens, what: str) -> bytes:
        return self.parse(tokens.next_or_fail(f"{what} expected text"), what)

    def parse(self, value: Any, what: str) -> bytes:
        if not isinstance(value, str):
            raise Failure(f"{what} should be text, not {value!r}")
        data = value.encode("utf-8", "surrogateescape")
        if len(data) > self.size:
            raise Failure(f"{what} has room for {self.size} bytes, {value!r} has {len(data)}")
        return data.ljust(self.size, b"\0")

    def plain(self, data: bytes) -> str:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def text(self, data: bytes) -> str:
        return printable(self.plain(data))


@dataclass(frozen=True)
class Record(Simple):
    """Fields as Python's struct module packs them: `--struct '<IHH'`."""

    size: int
    packer: struct.Struct
    converters: tuple[Callable[[Any], Any], ...]

    @property
    def is_integer(self) -> bool:
        """Whether it is one whole number."""
        return self.converters == (_to_integer,)

    def take(self, tokens: Tokens, what: str) -> bytes:
        count = len(self.converters)
        fields = [tokens.next_or_fail(f"{what} expected {count} field(s)") for _ in range(count)]
        return self._pack(fields, what)

    def parse(self, value: Any, what: str) -> bytes:
        if type(value) is int and self.is_integer:  # the usual case, without the detour
            try:
                return self.packer.pack(value)
            except struct.error:
                return self._pack([value], what)
        fields = value if isinstance(value, list) else [value]
        if len(fields) != len(self.converters):
            raise Failure(f"{what} expected {len(self.converters)} fields got {len(fields)}")
        return self._pack(fields, what)

    def _pack(self, fields: list[Any], what: str) -> bytes:
        try:
            made = [convert(field) for convert, field in zip(self.converters, fields, strict=True)]
            return self.packer.pack(*made)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            shown = " ".join(map(str, fields))
            raise Failure(f"{what} {shown!r} does not fit {self.packer.format}: {error}") from None

    def plain(self, data: bytes) -> Any:
        fields = [
            field.rstrip(b"\0").decode("utf-8", "surrogateescape")
            if isinstance(field, bytes)
            else str(field)
            if field != field or field in INFINITE
            else field
            for field in self.packer.unpack(data)
        ]
        return fields[0] if len(fields) == 1 else fields

    def text(self, data: bytes) -> str:
        fields = self.plain(data)
        return printable(" ".join(map(str, fields if isinstance(fields, list) else [fields])))


def _to_integer(field: Any) -> int:
    if isinstance(field, str):
        return int(field, 0)
    if int(field) != field:
        raise ValueError(f"{field} is no whole number")
    return int(field)


def _to_bytes(field: Any) -> bytes:
    return str(field).encode("utf-8", "surrogateescape")


def _to_bool(field: Any) -> bool:
    return bool(_to_integer({"true": 1, "false": 0}.get(str(field).lower(), field)))


def make_record(pattern: str, size: int, what: str) -> Record:
    """The format of what, whose size is size, for a format string of the struct module."""
    try:
        wanted = struct.calcsize(pattern)
    except (struct.error, ValueError) as error:
        raise Failure(f"--struct {pattern!r} is no format of Python's struct: {error}") from None
    if wanted != size:
        raise Failure(f"{what} has {size} bytes, the struct {pattern!r} has {wanted}")
    packer = struct.Struct(pattern)
    sample = packer.unpack(bytes(size))
    kinds: dict[type, Callable[[Any], Any]] = {
        bool: _to_bool,
        int: _to_integer,
        float: float,
        bytes: _to_bytes,
    }
    return Record(size, packer, tuple(kinds[type(field)] for field in sample))


@dataclass(frozen=True)
class Spec:
    """What the user asked for, before the sizes are known. kind: raw, str, u64, struct."""

    kind: str = "raw"
    pattern: str = ""

    def fit(self, size: int, what: str) -> Format:
        """The format for keys or values of this size; Failure if it cannot be."""
        if self.kind == "str":
            return Text(size)
        if self.kind == "struct":
            return make_record(self.pattern, size, what)
        if self.kind == "u64":
            if size % 8:
                raise Failure(f"{what} has {size} bytes, which is no whole number of u64")
            return make_record(f"<{size // 8}Q", size, what)
        return Raw(size)


@dataclass(frozen=True)
class Pair:
    """The formats of a map's keys and values."""

    key: Format
    value: Format

    @cached_property
    def key_json(self) -> Callable[[bytes], str]:
        """A function that gives a key as compact JSON, for parse()."""
        return _json_maker(self.key, self.key.plain)

    @cached_property
    def value_json(self) -> Callable[[bytes], str]:
        """A function that gives a value as compact JSON, for parse()."""
        return _json_maker(self.value, self.value.plain)

    @cached_property
    def key_shown(self) -> Callable[[bytes], str]:
        """A function that gives a key as compact JSON, for reading."""
        return _json_maker(self.key, self.key.shown)

    @cached_property
    def value_shown(self) -> Callable[[bytes], str]:
        """A function that gives a value as compact JSON, for reading."""
        return _json_maker(self.value, self.value.shown)

    @cached_property
    def raw(self) -> bool:
        """Whether both are bytes."""
        return isinstance(self.key, Raw) and isinstance(self.value, Raw)

    def entry_text(self, key: bytes, value: bytes) -> str:
        """An entry as bpftool prints it, or in one line if something was asked for."""
        if not self.raw:
            return f"key: {self.key.text(key)}  value: {self.value.text(value)}\n"
        if len(key) > BREAK_NAMES_SIZE or len(value) > BREAK_NAMES_SIZE:
            return f"key:\n{hex_lines(key)}\nvalue:\n{hex_lines(value)}\n"
        gap = "  " if len(key) + len(value) <= SINGLE_LINE_SIZE else "\n"
        return f"key: {hex_lines(key)}{gap}value: {hex_lines(value)}\n"

    def entry_object(self, key: bytes, value: bytes) -> dict[str, Any]:
        """An entry as bpftool's JSON has it; "formatted" as it has for maps with types."""
        entry: dict[str, Any] = {
            "key": jsontext.hex_strings(key),
            "value": jsontext.hex_strings(value),
        }
        if not self.raw:
            entry["formatted"] = {"key": self.key.shown(key), "value": self.value.shown(value)}
        return entry

    def entry_json(self, key: bytes, value: bytes, pretty: bool) -> str:
        """entry_object() as the text of an element of an array."""
        if pretty:
            return jsontext.dumps(self.entry_object(key, value), pretty, 1)
        text = f'{{"key":{jsontext.hex_array(key)},"value":{jsontext.hex_array(value)}'
        if self.raw:
            return text + "}"
        shown = f'{{"key":{self.key_shown(key)},"value":{self.value_shown(value)}}}'
        return f'{text},"formatted":{shown}}}'


def _json_maker(wanted: Format, plain: Callable[[bytes], Any]) -> Callable[[bytes], str]:
    """plain() as compact JSON; the two usual cases without the detour."""
    if type(wanted) is Raw:
        return lambda data: f'"{data.hex()}"'
    if isinstance(wanted, Record) and wanted.is_integer:
        unpack = wanted.packer.unpack
        return lambda data: str(unpack(data)[0])
    encode = json.JSONEncoder(separators=(",", ":")).encode
    return lambda data: encode(plain(data))


def hex_lines(data: bytes) -> str:
    """Hex bytes, sixteen to a line, a wider gap after the eighth."""
    lines = []
    for start in range(0, len(data), 16):
        left, right = data[start : start + 8], data[start + 8 : start + 16]
        lines.append(left.hex(" ") + ("  " + right.hex(" ") if right else ""))
    return "\n".join(lines)
