"""Keys and values as people write them: bytes, text, 64-bit numbers, structs.

A Spec is the format that the user asked for (`--str`, `--value-u64`); Spec.fit() gives the Format
for keys or values of one size. Bytes are the default, in bpftool's notation.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shmrhash.cli.errors import Failure
from shmrhash.cli.screen import hex_array, hex_strings, json_text, printable
from shmrhash.cli.words import Words

BREAK_NAMES_SIZE = 16  # a key or value larger than this is printed on its own lines
INFINITE = (math.inf, -math.inf)  # JSON has neither these nor NaN
SINGLE_LINE_SIZE = 24  # a key and a value up to this size together share a line


@dataclass(frozen=True)
class Format:
    """How keys, or values, are written and shown. size: bytes of each; 0 means any number."""

    size: int

    @property
    def cell_is_json(self) -> bool:
        """Whether a cell of CSV has to_json() as text of JSON, and not as it is."""
        return False

    def from_words(self, words: Words, what: str) -> bytes:
        """The bytes that the next words stand for. what: "key" or "value", for messages."""
        raise NotImplementedError

    def from_json(self, value: Any, what: str) -> bytes:
        """The bytes that a JSON value stands for, such as one from to_json()."""
        raise NotImplementedError

    def to_json(self, data: bytes) -> Any:
        """data as a JSON value from which from_json() makes the same bytes."""
        raise NotImplementedError

    def to_display(self, data: bytes) -> Any:
        """data as a JSON value for people to read, which from_json() need not accept."""
        return self.to_json(data)

    def to_text(self, data: bytes) -> str:
        """data in one line."""
        raise NotImplementedError


class Raw(Format):
    """Bytes: `1 0 0x1f 017`, or `hex 01 00 1f 0f`, or `hex 01001f0f`."""

    def from_words(self, words: Words, what: str) -> bytes:
        if not self.size and words.data_word() is None:
            raise Failure(f"{what} expected bytes, such as 1 0 0x1f, or hex 01001f")
        base = 0
        if words.word_is("hex") if self.size else words.left() > 1 and words.peek() == "hex":
            words.next()
            base = 16
        found = bytearray()
        while not self.size or len(found) < self.size:
            word = words.data_word()
            if word is None:
                break
            found += _run_of_bytes(word) if base == 16 and len(word) > 2 else _one_byte(word, base)
            words.next()
        return sized(bytes(found), self.size, what)

    def from_json(self, value: Any, what: str) -> bytes:
        try:
            if isinstance(value, str):
                data = bytes.fromhex(value)
            else:  # a list, as in bpftool's JSON
                data = bytes(_to_integer(byte) for byte in value)
        except (TypeError, ValueError):
            raise Failure(f"{what} should be a string of hex digits, not {value!r}") from None
        return sized(data, self.size, what)

    def to_json(self, data: bytes) -> str:
        return data.hex()

    def to_text(self, data: bytes) -> str:
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


def sized(data: bytes, size: int, what: str) -> bytes:
    """data, if it has size bytes; a size of 0 allows any number. Raises Failure."""
    if size and len(data) != size:
        raise Failure(f"{what} expected {size} bytes got {len(data)}")
    return data


class Text(Format):
    """Text in UTF-8, padded with NUL bytes."""

    def from_words(self, words: Words, what: str) -> bytes:
        return self.from_json(words.next_or_fail(f"{what} expected text"), what)

    def from_json(self, value: Any, what: str) -> bytes:
        if not isinstance(value, str):
            raise Failure(f"{what} should be text, not {value!r}")
        data = value.encode("utf-8", "surrogateescape")
        if len(data) > self.size:
            raise Failure(f"{what} has room for {self.size} bytes, but {value!r} has {len(data)}")
        return data.ljust(self.size, b"\0")

    def to_json(self, data: bytes) -> str:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def to_text(self, data: bytes) -> str:
        return printable(self.to_json(data))


@dataclass(frozen=True)
class Record(Format):
    """Fields as Python's struct module packs them: `--struct '<IHH'`."""

    packer: struct.Struct
    converters: tuple[Callable[[Any], Any], ...]

    @property
    def cell_is_json(self) -> bool:
        return len(self.converters) > 1

    @property
    def is_integer(self) -> bool:
        """Whether it is a single whole number."""
        return self.converters == (_to_integer,)

    def from_words(self, words: Words, what: str) -> bytes:
        count = len(self.converters)
        fields = [words.next_or_fail(f"{what} expected {count} field(s)") for _ in range(count)]
        return self._pack(fields, what)

    def from_json(self, value: Any, what: str) -> bytes:
        if type(value) is int and self.is_integer:  # a faster way for the usual case
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

    def to_json(self, data: bytes) -> Any:
        fields = [
            field.rstrip(b"\0").decode("utf-8", "surrogateescape")
            if isinstance(field, bytes)
            else str(field)
            if field != field or field in INFINITE
            else field
            for field in self.packer.unpack(data)
        ]
        return fields[0] if len(fields) == 1 else fields

    def to_text(self, data: bytes) -> str:
        fields = self.to_json(data)
        return printable(" ".join(map(str, fields if isinstance(fields, list) else [fields])))


def _to_integer(field: Any) -> int:
    if isinstance(field, str):
        return int(field, 0)
    if int(field) != field:
        raise ValueError(f"{field} is not a whole number")
    return int(field)


def _to_bytes(field: Any) -> bytes:
    return str(field).encode("utf-8", "surrogateescape")


def _to_bool(field: Any) -> bool:
    return bool(_to_integer({"true": 1, "false": 0}.get(str(field).lower(), field)))


def make_record(pattern: str, size: int, what: str) -> Record:
    """The format of keys or values (what) of this size, for a format string of struct."""
    try:
        wanted = struct.calcsize(pattern)
    except (struct.error, ValueError) as error:
        raise Failure(f"--struct {pattern!r} is not a format of Python's struct: {error}") from None
    if wanted != size:
        raise Failure(f"{what} has {size} bytes, but the struct {pattern!r} has {wanted}")
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
    """The format that the user asked for, without a size. kind: raw, str, u64, struct."""

    kind: str = "raw"
    pattern: str = ""

    def fit(self, size: int, what: str) -> Format:
        """The format for keys or values of this size. Raises Failure if it does not fit."""
        if self.kind == "str":
            return Text(size)
        if self.kind == "struct":
            return make_record(self.pattern, size, what)
        if self.kind == "u64":
            if size % 8:
                raise Failure(f"{what} has {size} bytes, which is not a multiple of 8")
            return make_record(f"<{size // 8}Q", size, what)
        return Raw(size)


@dataclass(frozen=True)
class Pair:
    """The formats of a map's keys and values."""

    key: Format
    value: Format

    @cached_property
    def key_json(self) -> Callable[[bytes], str]:
        """A function that gives a key as compact JSON, for from_json()."""
        return _json_maker(self.key, self.key.to_json)

    @cached_property
    def value_json(self) -> Callable[[bytes], str]:
        """A function that gives a value as compact JSON, for from_json()."""
        return _json_maker(self.value, self.value.to_json)

    @cached_property
    def key_display(self) -> Callable[[bytes], str]:
        """A function that gives a key as compact JSON, for reading."""
        return _json_maker(self.key, self.key.to_display)

    @cached_property
    def value_display(self) -> Callable[[bytes], str]:
        """A function that gives a value as compact JSON, for reading."""
        return _json_maker(self.value, self.value.to_display)

    @cached_property
    def raw(self) -> bool:
        """Whether both formats are bytes."""
        return isinstance(self.key, Raw) and isinstance(self.value, Raw)

    def take_key(self, words: Words) -> bytes | None:
        """Take `key DATA` and nothing else; None if there are no words."""
        key = None
        while (word := words.peek()) is not None:
            if words.keyword(["key"]) is None:
                raise Failure(f"expected key or value, got: {word}")
            if key is not None:
                raise Failure("duplicate key")
            key = self.key.from_words(words, "key")
        return key

    def need_key(self, words: Words) -> bytes:
        """take_key(). Raises Failure if there is no key."""
        key = self.take_key(words)
        if key is None:
            raise Failure("did not find key")
        return key

    def key_lines(self, key: bytes) -> str:
        """A key on its own lines, as bpftool prints bytes."""
        return hex_lines(key) if self.raw else self.key.to_text(key)

    def entry_text(self, key: bytes, value: bytes) -> str:
        """An entry as bpftool prints it, or in one line if it has another format than bytes."""
        if not self.raw:
            return f"key: {self.key.to_text(key)}  value: {self.value.to_text(value)}\n"
        if len(key) > BREAK_NAMES_SIZE or len(value) > BREAK_NAMES_SIZE:
            return f"key:\n{hex_lines(key)}\nvalue:\n{hex_lines(value)}\n"
        gap = "  " if len(key) + len(value) <= SINGLE_LINE_SIZE else "\n"
        return f"key: {hex_lines(key)}{gap}value: {hex_lines(value)}\n"

    def entry_object(self, key: bytes, value: bytes) -> dict[str, Any]:
        """An entry as in bpftool's JSON, with its "formatted" for maps with types."""
        entry: dict[str, Any] = {
            "key": hex_strings(key),
            "value": hex_strings(value),
        }
        if not self.raw:
            entry["formatted"] = {
                "key": self.key.to_display(key),
                "value": self.value.to_display(value),
            }
        return entry

    def entry_json(self, key: bytes, value: bytes, pretty: bool) -> str:
        """entry_object() as the text of an element of an array."""
        if pretty:
            return json_text(self.entry_object(key, value), pretty, 1)
        text = f'{{"key":{hex_array(key)},"value":{hex_array(value)}'
        if self.raw:
            return text + "}"
        shown = f'{{"key":{self.key_display(key)},"value":{self.value_display(value)}}}'
        return f'{text},"formatted":{shown}}}'


def _json_maker(wanted: Format, to_json: Callable[[bytes], Any]) -> Callable[[bytes], str]:
    """to_json(), or to_display(), as compact JSON, with faster ways for the two usual cases."""
    if type(wanted) is Raw:
        return lambda data: f'"{data.hex()}"'
    if isinstance(wanted, Record) and wanted.is_integer:
        unpack = wanted.packer.unpack
        return lambda data: str(unpack(data)[0])
    encode = json.JSONEncoder(separators=(",", ":")).encode
    return lambda data: encode(to_json(data))


def hex_lines(data: bytes) -> str:
    """Hex bytes, sixteen to a line, a wider gap after the eighth."""
    lines = []
    for start in range(0, len(data), 16):
        left, right = data[start : start + 8], data[start + 8 : start + 16]
        lines.append(left.hex(" ") + ("  " + right.hex(" ") if right else ""))
    return "\n".join(lines)
