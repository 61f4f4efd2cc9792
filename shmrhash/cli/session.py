"""What the verbs share: options, output, opening maps, and what an error's exit status is."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

import shmrhash
from shmrhash import RHashMap
from shmrhash.cli import MISSING_STATUS, jsontext, missing_message
from shmrhash.cli.completion import complete_words
from shmrhash.cli.entries.formats import Pair, Spec
from shmrhash.cli.words import (
    STATUS_BUSY,
    STATUS_DAMAGED,
    STATUS_DENIED,
    STATUS_MISSING,
    STATUS_NO,
    STATUS_NO_ROOM,
    STATUS_SYSTEM,
    STATUS_USAGE,
    Failure,
    MapName,
)

STATUS_OF_ERROR: list[tuple[type[BaseException], int]] = [
    (shmrhash.KeyNotFound, STATUS_NO),
    (shmrhash.KeyExists, STATUS_NO),
    (shmrhash.SegmentMissing, STATUS_MISSING),
    (shmrhash.SegmentExists, STATUS_NO),
    (shmrhash.SegmentFull, STATUS_NO_ROOM),
    (shmrhash.MapFull, STATUS_NO_ROOM),
    (shmrhash.TooManyProcesses, STATUS_NO_ROOM),
    (shmrhash.SegmentCorrupt, STATUS_DAMAGED),
    (shmrhash.LayoutMismatch, STATUS_DAMAGED),
    (shmrhash.LockTimeout, STATUS_BUSY),
    (shmrhash.InvalidArgument, STATUS_USAGE),
    (FileNotFoundError, STATUS_MISSING),
    (PermissionError, STATUS_DENIED),
    (FileExistsError, STATUS_NO),
]


def status_of(error: BaseException) -> int:
    """The exit status for an exception of the library or of the system."""
    for kind, status in STATUS_OF_ERROR:
        if isinstance(error, kind):
            return status
    return STATUS_SYSTEM


Function = Callable[..., Any]


@dataclass
class Session:
    """What the options before and behind the verb say."""

    json: bool = False
    pretty: bool = False
    timeout: float | None = 5.0
    owner: int | None = None

    def emit(self, value: Any) -> None:
        """Print value as JSON."""
        print(jsontext.dumps(value, self.pretty))

    def done(self) -> None:
        """What bpftool prints for a change: nothing, or null."""
        if self.json:
            self.emit(None)

    def open(self, name: MapName, *, write: bool = False) -> RHashMap:
        """Attach to a map, for reading only unless told otherwise: so nobody is disturbed."""
        try:
            return RHashMap.open(
                name.name, read_only=not write, timeout=self.timeout, owner=self.owner
            )
        except shmrhash.PermissionDenied as error:
            message = str(error).replace("pass owner=", "pass --owner ")
            raise shmrhash.PermissionDenied(message) from None


def pass_session(function: Function) -> Function:
    """Give the session to a verb, as its first argument."""
    return click.make_pass_decorator(Session, ensure=True)(function)


def _set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        session = context.ensure_object(Session)
        session.json = True
        session.pretty = session.pretty or parameter.name == "pretty"


def json_options() -> list[click.Option]:
    """-j and -p, for the group and for each verb."""
    return [
        click.Option(
            ["-j", "--json"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_json,
            help="Print JSON.",
        ),
        click.Option(
            ["-p", "--pretty"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_json,
            help="Print JSON for people.",
        ),
    ]


class Verb(click.Command):
    """A command with -j and -p, whose help keeps the lines of its examples."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.params += json_options()


class WordVerb(Verb):
    """A verb with bpftool's arguments: what is no option of its own is a word, such as -5."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        settings = {"ignore_unknown_options": True, **more.pop("context_settings", {})}
        super().__init__(*arguments, context_settings=settings, **more)


def words_argument(
    metavar: str, complete: Function | None = None
) -> Callable[[Function], Function]:
    """The words behind a verb."""
    return click.argument(
        "words",
        nargs=-1,
        type=click.UNPROCESSED,
        metavar=metavar,
        shell_complete=complete or complete_words,
    )


def map_argument(function: Function) -> Function:
    """One map, by its name, path or inode number."""
    return words_argument("MAP")(function)


def data_options(function: Function) -> Function:
    """How keys and values are written and shown."""
    for side in ("value", "key"):
        prefix = "--value-" if side == "value" else "--"
        packed = f"{side.capitalize()}s are fields as Python's struct packs them, such as '<IHH'."
        options = [
            click.option(
                f"{prefix}str",
                f"{side}_str",
                is_flag=True,
                help=f"{side.capitalize()}s are text, padded with NUL.",
            ),
            click.option(
                f"{prefix}u64",
                f"{side}_u64",
                is_flag=True,
                help=f"{side.capitalize()}s are 64-bit numbers.",
            ),
            click.option(f"{prefix}struct", f"{side}_struct", metavar="FORMAT", help=packed),
        ]
        for option in reversed(options):
            function = option(function)
    return function


def look_options(function: Function) -> Function:
    """data_options, and how far to go with a SharedDict's types."""
    function = click.option("--raw", is_flag=True, help="Bytes, also where types are known.")(
        function
    )
    function = click.option(
        "--unpickle",
        is_flag=True,
        help="Unpickle objects of a SharedDict. This runs whatever code anybody stored who may "
        "write to it: only if you trust all of them.",
    )(function)
    return data_options(function)


@dataclass(frozen=True)
class DataOptions:
    """The specs for keys and values, from the options."""

    key: Spec
    value: Spec
    raw: bool = False
    unpickle: bool = False

    @classmethod
    def take(cls, options: dict[str, Any]) -> DataOptions:
        """Take them out of a verb's keyword arguments."""
        specs = []
        for side in ("key", "value"):
            given = {kind: options.pop(f"{side}_{kind}") for kind in ("str", "u64", "struct")}
            chosen = [kind for kind, value in given.items() if value]
            if len(chosen) > 1:
                raise Failure(f"{side}s cannot be both {chosen[0]} and {chosen[1]}")
            specs.append(Spec(chosen[0], given["struct"] or "") if chosen else Spec())
        raw, unpickle = options.pop("raw", False), options.pop("unpickle", False)
        if raw and (unpickle or specs != [Spec(), Spec()]):
            raise Failure("--raw is for bytes: it goes with no other option about data")
        return cls(specs[0], specs[1], raw, unpickle)

    def fit(self, shared_map: RHashMap) -> Pair:
        """The formats for a map's keys and values."""
        return Pair(
            self.key.fit(shared_map.key_size, "key"),
            self.value.fit(shared_map.value_size, "value"),
        )


def user_id(text: str) -> int:
    """The number of a user given by name or number."""
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise Failure(f"no user {text!r} here") from None


def need(module: str) -> None:
    """Failure, with the command that helps, unless this module can be imported."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise Failure(missing_message(module), MISSING_STATUS)


def message_of(error: BaseException) -> str:
    """What an exception says, without Python's quotes around a KeyError's."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, shmrhash.Error):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error.args[0]) if error.args else str(error)


def why(error: shmrhash.Error) -> str:
    """strerror() of the kernel's number, and the library's words where they say more."""
    text = os.strerror(error.errno) if error.errno else message_of(error)
    if isinstance(error, (shmrhash.KeyNotFound, shmrhash.KeyExists)):
        return text
    return f"{text} ({message_of(error)})"


def on_terminal() -> bool:
    """Whether a person is looking at the standard output."""
    return sys.stdout.isatty()
