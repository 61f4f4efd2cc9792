"""bpftool's argument syntax: words, keywords that may be shortened, and MAP; their completion.

    MAP := NAME | name NAME | pinned FILE | id NUMBER

A map's id is the inode number of its segment. FILE may be in any directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmrhash import _inspect
from shmrhash.cli.errors import STATUS_MISSING, Failure

if TYPE_CHECKING:
    import click

MAP_TYPE = "rhash"
DATA_KEYWORDS = ("key", "value", "any", "exist", "noexist")
MAP_KEYWORDS = ("id", "pinned", "name")
KEYWORDS = {  # of each command, for completion
    "lookup": ["key"],
    "getnext": ["key"],
    "delete": ["key"],
    "update": ["key", *DATA_KEYWORDS[1:]],
    "watch": ["key"],
    "wait": ["key", "value"],
    "create": ["type", "key", "value", "entries", "name", "flags", "extra", "mode"],
}


class Words:
    """The arguments of a command, taken from left to right."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._at = 0

    def peek(self) -> str | None:
        """The next word, or None."""
        return self._words[self._at] if self._at < len(self._words) else None

    def next(self) -> str:
        """Take the next word; there must be one."""
        self._at += 1
        return self._words[self._at - 1]

    def next_or_fail(self, message: str) -> str:
        """Take the next word; raise Failure if there is none."""
        if self.peek() is None:
            raise Failure(f"{message}, got nothing")
        return self.next()

    def word_is(self, keyword: str) -> bool:
        """Whether the next word is this keyword, or a beginning of it."""
        word = self.peek()
        return bool(word) and keyword.startswith(word or "")

    def data_word(self) -> str | None:
        """The next word if it can be data: None at the end and before a keyword."""
        word = self.peek()
        return None if word in DATA_KEYWORDS else word

    def data_left(self) -> int:
        """How many of the next words can be data: those before a keyword."""
        found = 0
        for word in self._words[self._at :]:
            if word in DATA_KEYWORDS:
                break
            found += 1
        return found

    def keyword(self, choices: Iterable[str]) -> str | None:
        """Take the next word if it is, or begins, a keyword; return the first that matches."""
        for choice in choices:
            if self.word_is(choice):
                self.next()
                return choice
        return None

    def left(self) -> int:
        """How many words are left."""
        return len(self._words) - self._at

    def end(self) -> None:
        """Raise Failure if words are left."""
        word = self.peek()
        if word is not None:
            raise Failure(f"unexpected argument: {word!r}")


@dataclass(frozen=True)
class MapName:
    """A map, as the user named it."""

    name: str
    path: str


def map_at(path: str) -> MapName:
    """The map in this file. Its directory becomes the directory of segments of this process."""
    full = os.path.abspath(path)
    folder, name = os.path.split(full)
    plain = _inspect.plain_name(name)
    if folder != _inspect.directory():
        os.environ["SHMRHASH_DIR"] = folder
    return MapName(plain, full)


def map_named(name: str) -> MapName:
    """The map of this name; a name with a slash inside is a path."""
    if "/" in name.removeprefix("/"):
        return map_at(name)
    plain = _inspect.plain_name(name)
    return MapName(plain, os.path.join(_inspect.directory(), plain))


def take_map(words: Words) -> MapName:
    """Take a MAP. The name of an existing map, or the last word, is not taken for a keyword."""
    word = words.peek()
    if word is None:
        raise Failure("expected a map: NAME, 'name NAME', 'pinned FILE' or 'id NUMBER'")
    is_name = word not in MAP_KEYWORDS and os.path.lexists(map_named(word).path)
    keyword = None if is_name or words.left() == 1 else words.keyword(MAP_KEYWORDS)
    argument = words.next()
    if keyword is None or keyword == "name":
        return map_named(argument)
    return map_at(argument) if keyword == "pinned" else map_with_id(argument)


def map_with_id(number: str) -> MapName:
    """The map whose segment has this inode number."""
    try:
        wanted = int(number, 0)
    except ValueError:
        raise Failure(f"can't parse {number} as id") from None
    with os.scandir(_inspect.directory()) as entries:
        for entry in entries:
            if entry.inode() == wanted and entry.is_file(follow_symlinks=False):
                return MapName(entry.name, entry.path)
    raise Failure(f"no map with id {wanted} in {_inspect.directory()}", STATUS_MISSING)


# ---- completion ----


def map_names() -> list[str]:
    """The files in the directory of segments that begin as maps do."""
    names = []
    try:
        found = sorted(os.scandir(_inspect.directory()), key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in found:
        try:
            if _inspect.begins_as_map(entry.path):
                names.append(entry.name)
        except OSError:  # it is no regular file, cannot be read, or was just removed
            continue
    return names


def complete_words(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """The words that may come next after a command."""
    words = list(context.params.get(parameter.name or "") or ())
    command = context.info_name or ""
    if not words:
        choices = [*map_names(), *MAP_KEYWORDS] if command != "create" else []
    elif len(words) == 1 and words[0] == "name":
        choices = map_names()
    else:
        choices = [word for word in KEYWORDS.get(command, []) if word not in words]
    return [word for word in choices if word.startswith(begun)]


def completion_script(shell: str, group: click.Command) -> str:
    """The code that a shell evaluates to complete the arguments of this command."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    return completion(group, {}, "shmrhash", "_SHMRHASH_COMPLETE").source()
