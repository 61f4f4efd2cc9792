"""What all commands share: their options, JSON, the arguments MAP and DATA, and opening maps."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

import shmrhash
from shmrhash import RHashMap
from shmrhash._inspect import open_to_look
from shmrhash.cli.errors import Failure
from shmrhash.cli.screen import json_text
from shmrhash.cli.words import MapName, Words, complete_words, take_map

Function = Callable[..., Any]


@dataclass
class Session:
    """The values of the options before and after the command."""

    json: bool = False
    pretty: bool = False
    timeout: float | None = 5.0
    owner: int | None = None

    def emit(self, value: Any) -> None:
        """Print value as JSON."""
        print(json_text(value, self.pretty))

    def done(self) -> None:
        """Print what bpftool prints after a change: nothing, or with JSON null."""
        if self.json:
            self.emit(None)

    def open(self, name: MapName, *, write: bool = False) -> RHashMap:
        """Attach to a map; without write for reading only, which changes no byte of it."""
        attach = RHashMap.open if write else open_to_look
        try:
            return attach(name.name, timeout=self.timeout, owner=self.owner)
        except shmrhash.PermissionDenied as error:
            message = str(error).replace("pass owner=", "pass --owner ")
            raise shmrhash.PermissionDenied(message) from None


def pass_session(function: Function) -> Function:
    """Give the session to a command, as its first argument."""
    return click.make_pass_decorator(Session, ensure=True)(function)


def user_id(text: str) -> int:
    """The number of a user given by name or number."""
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise Failure(f"this machine has no user {text!r}") from None


# ---- options and arguments ----


def _set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        session = context.ensure_object(Session)
        session.json = True
        session.pretty = session.pretty or parameter.name == "pretty"


def json_options() -> list[click.Option]:
    """-j and -p, for the group and for each command."""
    choices = {"json": "Print JSON.", "pretty": "Print JSON with line breaks."}
    return [
        click.Option(
            [f"-{name[0]}", f"--{name}"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_json,
            help=text,
        )
        for name, text in choices.items()
    ]


class Command(click.Command):
    """A command with -j and -p."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.params += json_options()


class WordCommand(Command):
    """A command with bpftool's arguments: unknown options, such as -5, are words."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        settings = {"ignore_unknown_options": True, **more.pop("context_settings", {})}
        super().__init__(*arguments, context_settings=settings, **more)


def _words(name: str, metavar: str, made: Callable[[Words], Any]) -> Callable[[Function], Function]:
    """An argument of all words after a command; the command gets made(words)."""

    def make(context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> Any:
        return given if context.resilient_parsing else made(Words(given))

    return click.argument(
        name,
        nargs=-1,
        type=click.UNPROCESSED,
        metavar=metavar,
        callback=make,
        shell_complete=complete_words,
    )


def words_argument(metavar: str) -> Callable[[Function], Function]:
    """The words after a command, which it takes one by one."""
    return _words("words", metavar, lambda words: words)


def map_argument(function: Function) -> Function:
    """One map, by its name, path or inode number; the command gets its MapName."""

    def one_map(words: Words) -> MapName:
        name = take_map(words)
        words.end()
        return name

    return _words("name", "MAP", one_map)(function)
