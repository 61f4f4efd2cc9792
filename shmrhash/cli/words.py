"""bpftool's argument syntax: words, keywords that may be shortened, and MAP.

    MAP := NAME | name NAME | pinned FILE | id NUMBER

A map's id is the inode number of its segment. FILE may be in any directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shmrhash import _segment

DATA_KEYWORDS = ("key", "value", "any", "exist", "noexist")
MAP_KEYWORDS = ("id", "pinned", "name")

STATUS_NO = 1
STATUS_USAGE = 2
STATUS_MISSING = 3
STATUS_DENIED = 4
STATUS_DAMAGED = 5
STATUS_NO_ROOM = 6
STATUS_BUSY = 7
STATUS_SYSTEM = 9


class Failure(Exception):
    """What the user is told, and the exit status."""

    def __init__(self, message: str, status: int = STATUS_USAGE) -> None:
        super().__init__(message)
        self.status = status


class Tokens:
    """The words of a command, taken from left to right."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._at = 0

    def peek(self) -> str | None:
        """The next word, or None."""
        return self._words[self._at] if self._at < len(self._words) else None

    def next(self) -> str:
        """Take the next word, which is there."""
        self._at += 1
        return self._words[self._at - 1]

    def next_or_fail(self, message: str) -> str:
        """Take the next word; Failure if there is none."""
        if self.peek() is None:
            raise Failure(f"{message}, got nothing")
        return self.next()

    def word_is(self, keyword: str) -> bool:
        """Whether the next word is keyword or its beginning."""
        word = self.peek()
        return bool(word) and keyword.startswith(word or "")

    def data_word(self) -> str | None:
        """The next word if it can be data: None at the end and before a keyword."""
        word = self.peek()
        return None if word in DATA_KEYWORDS else word

    def keyword(self, choices: Iterable[str]) -> str | None:
        """Take the next word if it is, or begins, one of choices; the first such choice."""
        for choice in choices:
            if self.word_is(choice):
                self.next()
                return choice
        return None

    def left(self) -> int:
        """How many words are left."""
        return len(self._words) - self._at

    def end(self) -> None:
        """Failure if words are left."""
        word = self.peek()
        if word is not None:
            raise Failure(f"did not expect {word!r} there")


@dataclass(frozen=True)
class MapName:
    """A map, as the user named it."""

    name: str
    path: str

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)


def map_at(path: str) -> MapName:
    """The map in this file. Its directory is where this command looks from now on."""
    full = os.path.abspath(path)
    name = MapName(_segment.plain_name(os.path.basename(full)), full)
    if name.directory != _segment.directory():
        os.environ["SHMRHASH_DIR"] = name.directory
    return name


def map_named(name: str) -> MapName:
    """The map of this name; a name with a slash inside is a path."""
    if "/" in name.removeprefix("/"):
        return map_at(name)
    plain = _segment.plain_name(name)
    return MapName(plain, os.path.join(_segment.directory(), plain))


def take_map(tokens: Tokens) -> MapName:
    """Take a MAP. A word that is a map's name is no shortened keyword, nor is the last word."""
    word = tokens.peek()
    if word is None:
        raise Failure("which map? expected NAME, 'name NAME', 'pinned FILE' or 'id NUMBER'")
    is_name = word not in MAP_KEYWORDS and os.path.lexists(map_named(word).path)
    keyword = None if is_name or tokens.left() == 1 else tokens.keyword(MAP_KEYWORDS)
    argument = tokens.next()
    if keyword is None or keyword == "name":
        return map_named(argument)
    return map_at(argument) if keyword == "pinned" else map_with_id(argument)


def map_with_id(number: str) -> MapName:
    """The map whose segment has this inode number."""
    try:
        wanted = int(number, 0)
    except ValueError:
        raise Failure(f"can't parse {number} as id") from None
    with os.scandir(_segment.directory()) as entries:
        for entry in entries:
            if entry.inode() == wanted and entry.is_file(follow_symlinks=False):
                return MapName(entry.name, entry.path)
    raise Failure(f"no map with id {wanted} in {_segment.directory()}", STATUS_MISSING)
