"""RESP3, the protocol of Valkey and Redis: commands to bytes, bytes to replies.

A Reader takes bytes as they come from a socket and makes replies of them, without looking at any
byte twice. It makes: bytes of strings, int of integers, float of doubles, bool, None, list of
arrays and sets, dict of maps, ServerError of errors, Push of what the server tells unasked.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from shmrhash._errors import Error

LINE_BYTES_MAX = 1 << 16  # a line without its end; the longest is an error's text
STRING_BYTES_MAX = 1 << 29  # what the servers accept as a value
ITEMS_MAX = 1 << 24  # of an array
DEPTH_MAX = 8  # arrays in arrays

_STRING_HEAD = re.compile(rb"\$([0-9]{1,9})\r\n")
_Parsing = Generator[None, None, Any]


class ProtocolError(Error, ConnectionError):
    """The server sent what is not RESP3."""


class ServerError(Exception):
    """An error that the server answered with. code: its first word."""

    @property
    def code(self) -> str:
        return str(self).split(" ", 1)[0]


class Push(list[Any]):
    """What the server tells unasked."""


def command(*arguments: bytes | str | int) -> bytes:
    """A command as the server reads it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Reader:
    """Bytes in, replies out."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0
        self._looked = 0  # so many bytes behind _at have no end of a line
        self._parsing = self._reply(0)

    def feed(self, data: bytes) -> list[Any]:
        """The replies that are whole with these bytes, in their order.

        Raises ProtocolError; after that the connection is of no use.
        """
        del self._bytes[: self._at]
        self._at = 0
        self._bytes += data
        whole: list[Any] = []
        while True:  # each turn uses up at least a byte, or is the last
            try:
                next(self._parsing)
                return whole
            except StopIteration as done:
                whole.append(done.value)
                self._parsing = self._reply(0)
            if self._at == len(self._bytes):
                return whole

    def _line(self) -> bytes | None:
        """The line that comes next, or None: it is not whole yet."""
        end = self._bytes.find(b"\r\n", self._at + self._looked)
        if end < 0:
            whole = len(self._bytes) - self._at
            if whole > LINE_BYTES_MAX:
                raise ProtocolError(f"a line of more than {LINE_BYTES_MAX} bytes")
            self._looked = max(0, whole - 1)  # its last byte may be the \r
            return None
        line = bytes(self._bytes[self._at : end])
        self._at = end + 2
        self._looked = 0
        return line

    def _strings(self, most: int) -> list[bytes | None]:
        """The strings that come next and are whole, up to so many; whatever else comes is left to
        _reply(). It would make the same of them in three times the time, and nearly all that the
        server tells is arrays of keys."""
        found: list[bytes | None] = []
        while len(found) < most:  # each turn uses up a string
            head = _STRING_HEAD.match(self._bytes, self._at)
            if head is None:
                break
            begin = head.end()
            end = begin + int(head[1])
            if self._bytes[end : end + 2] != b"\r\n":
                break
            found.append(bytes(self._bytes[begin:end]))
            self._at = end + 2
        return found

    def _count(self, text: bytes, most: int) -> int:
        try:
            count = int(text)
        except ValueError:
            raise ProtocolError(f"not a length: {text[:40]!r}") from None
        if not -1 <= count <= most:
            raise ProtocolError(f"a length of {count}, at most {most} are possible")
        return count

    def _string(self, text: bytes) -> _Parsing:
        size = self._count(text, STRING_BYTES_MAX)
        if size < 0:
            return None
        while len(self._bytes) - self._at < size + 2:
            yield
        data = bytes(self._bytes[self._at : self._at + size])
        if self._bytes[self._at + size : self._at + size + 2] != b"\r\n":
            raise ProtocolError("a string has no end where its length says")
        self._at += size + 2
        return data

    def _items(self, text: bytes, depth: int, each: int) -> _Parsing:
        count = self._count(text, ITEMS_MAX)
        if count < 0:
            return None
        if depth == DEPTH_MAX:
            raise ProtocolError(f"arrays in arrays, more than {DEPTH_MAX} deep")
        items: list[Any] = self._strings(count * each)
        while len(items) < count * each:  # each turn adds an item
            items.append((yield from self._reply(depth + 1)))
            items += self._strings(count * each - len(items))
        return items

    def _reply(self, depth: int) -> _Parsing:
        while (line := self._line()) is None:
            yield
        kind, text = line[:1], line[1:]
        try:
            if kind == b"+":
                return text
            if kind == b"-":
                return ServerError(text.decode("utf-8", "replace"))
            if kind in (b":", b"("):
                return int(text)
            if kind == b",":
                return float(text)
        except ValueError:
            raise ProtocolError(f"not a number: {text[:40]!r}") from None
        if kind == b"#":
            return text == b"t"
        if kind == b"_":
            return None
        if kind in (b"$", b"="):
            return (yield from self._string(text))
        if kind == b"!":
            said = (yield from self._string(text)) or b""
            return ServerError(said.decode("utf-8", "replace"))
        if kind in (b"*", b"~"):
            return (yield from self._items(text, depth, 1))
        if kind == b">":
            return Push((yield from self._items(text, depth, 1)) or ())
        if kind in (b"%", b"|"):
            flat = (yield from self._items(text, depth, 2)) or []
            try:
                table = dict(zip(flat[::2], flat[1::2], strict=True))
            except TypeError:
                raise ProtocolError("a map has an array as a key") from None
            return table if kind == b"%" else (yield from self._reply(depth))  # | is an attribute
        raise ProtocolError(f"an unknown kind of reply: {line[:40]!r}")
