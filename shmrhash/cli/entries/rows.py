"""The dtypes that a map keeps of its rows: a Format for what RHashMap.from_arrays() stored.

A row is read by its record (shmrhash/_types/rowtypes.py), which may be any JSON, and without NumPy,
whose import takes longer than most commands. Numbers are shown as numbers, texts ('S', 'U') as
texts, dates and times as the numbers that they are stored as, a row of several numbers as a list,
and one with fields by their names. What is of no such type is shown as bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shmrhash.cli.entries.formats import Format, Raw, make_record
from shmrhash.cli.entries.typed import DEPTH_MAX, ITEMS_SHOWN, Opaque
from shmrhash.cli.errors import Failure
from shmrhash.cli.screen import printable
from shmrhash.cli.words import Words

LETTERS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "b1": "?", "M8": "q", "m8": "q",
}  # fmt: skip
NOT_FINITE = ("nan", "inf", "-inf")  # as JSON has them
SHAPE_MAX = 64  # dimensions, as NumPy has at most
ENCODINGS = {"<": "utf-32-le", ">": "utf-32-be"}


class Strange(ValueError):
    """A record that is no dtype, or one of a kind that is not known here."""


@dataclass(frozen=True)
class Leaf:
    """A number or a text. show: from its bytes to a value of JSON; read: the reverse."""

    size: int
    is_text: bool
    show: Callable[[bytes], Any]
    read: Callable[[Any], bytes]


@dataclass(frozen=True)
class Items:
    """A number of equal parts, of a shape."""

    part: Part
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.part.size * math.prod(self.shape)


@dataclass(frozen=True)
class Fields:
    """Parts with names; "" is what is between them."""

    parts: tuple[tuple[str, Part | int], ...]

    @property
    def size(self) -> int:
        return sum(part if isinstance(part, int) else part.size for _, part in self.parts)

    @property
    def named(self) -> list[tuple[str, Part]]:
        return [(name, part) for name, part in self.parts if not isinstance(part, int)]


Part = Leaf | Items | Fields


# ---- from a record ----


def part_of(record: Any, depth: int = 0) -> Part:
    """The parts of a row. Raises ValueError, TypeError and LookupError: it is no dtype."""
    if depth > DEPTH_MAX:
        raise Strange("too deep")
    if isinstance(record, str):
        return _leaf(record)
    if isinstance(record, dict):
        return _items(part_of(record["base"], depth + 1), record["shape"])
    parts: list[tuple[str, Part | int]] = []
    for title, kind, *shape in record:
        name = title[1] if isinstance(title, list) else title
        if name == "" and isinstance(kind, str) and kind.startswith("|V"):
            parts.append(("", _size_in(kind)))
            continue
        part = part_of(kind, depth + 1)
        parts.append((str(name), _items(part, shape[0]) if shape else part))
    return Fields(tuple(parts))


def _items(part: Part, shape: Any) -> Items:
    if len(shape) > SHAPE_MAX or not all(type(length) is int and length >= 0 for length in shape):
        raise Strange(f"{shape!r} is no shape")
    return Items(part, tuple(shape))


def _size_in(kind: str) -> int:
    """The number of bytes or letters in "|V4", "<U10"."""
    if not kind[2:].isdecimal():
        raise Strange(kind)
    return int(kind[2:])


def _leaf(record: str) -> Leaf:
    order, kind = record[:1].replace("|", "<").replace("=", "<"), record[1:].partition("[")[0]
    if order not in ENCODINGS:
        raise Strange(record)
    if kind in LETTERS:
        packer = make_record(order + LETTERS[kind], int(kind[1:]), "a row")
        return Leaf(packer.size, False, packer.to_json, lambda thing: packer.from_json(thing, ""))
    size = _size_in(order + kind)
    if kind[0] == "S":
        return Leaf(size, True, _show_bytes, lambda text: _padded(_encoded(text, "utf-8"), size))
    if kind[0] == "U":
        name = ENCODINGS[order]
        return Leaf(
            4 * size,
            True,
            lambda data: data.decode(name).rstrip("\0"),
            lambda text: _padded(_encoded(text, name), 4 * size),
        )
    raise Strange(record)


def _show_bytes(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _encoded(text: Any, encoding: str) -> bytes:
    if not isinstance(text, str):
        raise Failure(f"{text!r} is no text")
    return text.encode(encoding, "surrogateescape")


def _padded(data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise Failure(f"there is room for {size} bytes, not for {len(data)}")
    return data.ljust(size, b"\0")


# ---- values ----


def shown(part: Part, data: bytes) -> Any:
    """A row as a value of JSON."""
    if isinstance(part, Leaf):
        return part.show(data)
    if isinstance(part, Fields):
        found, at = {}, 0
        for name, inner in part.parts:
            end = at + (inner if isinstance(inner, int) else inner.size)
            if not isinstance(inner, int):
                found[name] = shown(inner, data[at:end])
            at = end
        return found
    return _listed(part.part, part.shape, data)


def _listed(part: Part, shape: tuple[int, ...], data: bytes) -> Any:
    if not shape:
        return shown(part, data)
    step = len(data) // shape[0] if shape[0] else 0
    return [_listed(part, shape[1:], data[at * step : (at + 1) * step]) for at in range(shape[0])]


def read(part: Part, thing: Any) -> bytes:
    """The bytes of a value that shown() gave. Raises Failure."""
    if isinstance(part, Leaf):
        if not part.is_text and isinstance(thing, str) and thing not in NOT_FINITE:
            raise Failure(f"{thing!r} is no number; --raw is for bytes")
        return part.read(thing)
    if isinstance(part, Fields):
        names = [name for name, _ in part.named]
        if not isinstance(thing, dict) or sorted(thing) != sorted(names):
            raise Failure(f"expected the fields {', '.join(names)}, got {thing!r:.80}")
        return b"".join(
            bytes(inner) if isinstance(inner, int) else read(inner, thing[name])
            for name, inner in part.parts
        )
    return _unlisted(part.part, part.shape, thing)


def _unlisted(part: Part, shape: tuple[int, ...], thing: Any) -> bytes:
    if not shape:
        return read(part, thing)
    if not isinstance(thing, list) or len(thing) != shape[0]:
        raise Failure(f"expected a list of {shape[0]} items, got {thing!r:.80}")
    return b"".join(_unlisted(part, shape[1:], item) for item in thing)


def leaves(part: Part) -> int:
    """How many numbers and texts a row has."""
    if isinstance(part, Leaf):
        return 1
    if isinstance(part, Fields):
        return sum(leaves(inner) for _, inner in part.named)
    return leaves(part.part) * math.prod(part.shape)


def of_words(part: Part, words: Iterator[str]) -> bytes:
    """A row whose numbers and texts are these words, in their order. Raises Failure."""
    if isinstance(part, Leaf):
        return part.read(next(words))
    if isinstance(part, Fields):
        return b"".join(
            bytes(inner) if isinstance(inner, int) else of_words(inner, words)
            for _, inner in part.parts
        )
    return b"".join(of_words(part.part, words) for _ in range(math.prod(part.shape)))


# ---- the format ----


@dataclass(frozen=True)
class Row(Format):
    """Rows of a dtype. Words may be bytes, too, as bpftool wants them: `hex ...`, or as many."""

    part: Part
    name: str

    @property
    def _opaque(self) -> Opaque:
        """For a row that cannot be shown, or is too long to be."""
        return Opaque(self.size, self.name)

    @property
    def _is_long(self) -> bool:
        return leaves(self.part) > ITEMS_SHOWN

    @property
    def cell_is_json(self) -> bool:
        return not (isinstance(self.part, Leaf) and self.part.is_text)

    def from_words(self, words: Words, what: str) -> bytes:
        count, wanted = words.data_left(), leaves(self.part)
        if (words.peek() == "hex" and count > 1) or (count == self.size and count != wanted):
            return Raw(self.size).from_words(words, what)
        if count != wanted:
            raise Failure(f"{what} expected {wanted} field(s), or {self.size} bytes, got {count}")
        taken = iter([words.next() for _ in range(wanted)])
        return self._made(lambda: of_words(self.part, taken), what)

    def from_json(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict) and value.keys() == {"base64", "type"}:
            return self._opaque.from_json(value, what)
        if self._is_of_bytes(value):
            return Raw(self.size).from_json(value, what)
        return self._made(lambda: read(self.part, value), what)

    def _is_of_bytes(self, value: Any) -> bool:
        """Whether a value is a list of bytes as in bpftool's JSON, which are texts."""
        if not isinstance(value, list) or len(value) != self.size:
            return False
        return all(isinstance(item, str) and item.startswith("0x") for item in value)

    def _made(self, make: Callable[[], bytes], what: str) -> bytes:
        try:
            return make()
        except (Failure, UnicodeError) as error:
            raise Failure(f"{what} does not fit {self.name}: {error}") from None

    def to_json(self, data: bytes) -> Any:
        if not self._is_long:
            try:
                found = shown(self.part, data)
                if read(self.part, found) == data:
                    return found
            except (Failure, UnicodeError):
                pass
        return self._opaque.to_json(data)

    def to_display(self, data: bytes) -> Any:
        if self._is_long:
            return self._opaque.to_display(data)
        try:
            return shown(self.part, data)
        except UnicodeError:
            return self._opaque.to_display(data)

    def to_text(self, data: bytes) -> str:
        if self._is_long:
            return self._opaque.to_text(data)
        found = self.to_display(data)
        return printable(found if isinstance(found, str) else json.dumps(found))


def row_format(record: Any, size: int) -> Format:
    """The format of the rows that a record names; bytes if it is none that is known here."""
    try:
        part = part_of(record)
        if part.size == size and leaves(part):
            return Row(size, part, f"the dtype {json.dumps(record)}")
    except (ValueError, TypeError, LookupError, Failure):
        pass
    return Raw(size)
