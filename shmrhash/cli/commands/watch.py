"""top and watch: what happens now, on a terminal, or line by line in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import click

from shmrhash.cli.commands.show import take_key
from shmrhash.cli.commands.top import SORTS, Looks, frame_screen, frame_text, row_object, sort_rows
from shmrhash.cli.entries.contents import Found, Plain, contents_of
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.entries.layouts import Extra
from shmrhash.cli.keyboard import keyboard
from shmrhash.cli.screen import make_console
from shmrhash.cli.session import (
    DataOptions,
    Session,
    Verb,
    WordVerb,
    look_options,
    on_terminal,
    pass_session,
    words_argument,
)
from shmrhash.cli.words import STATUS_NO, Tokens, take_map


@click.command("top", cls=Verb, short_help="What happens now, in all maps.")
@click.argument("maps", nargs=-1, metavar="[NAME]...")
@click.option("-d", "--delay", type=click.FloatRange(0.05, 3600), default=1.0, show_default=True)
@click.option("-n", "--frames", type=click.IntRange(1), help="Stop after so many.")
@click.option("-s", "--sort", type=click.Choice(list(SORTS.values())), default="name")
@pass_session
def top_verb(
    session: Session, maps: tuple[str, ...], delay: float, frames: int | None, sort: str
) -> None:
    """Maps and the processes that use them, with rates; live on a terminal.

    Keys: q ends it; n name, e entries, f fill, c change, o operations, g growth, m memory, w waits,
    u users sort. In a pipe, or with -j, each frame is printed below the one before; -n says how
    many. Rates need two looks, so the first frame has none.

    \b
    Examples:
      shmrhash top
      shmrhash top hits jobs -d 0.5 --sort change
      shmrhash -j top -n 2 | tail -1 | jq '.maps[].change_per_s'
    """
    looks = Looks(session, [name.removeprefix("/") for name in maps])
    if on_terminal() and not session.json:
        _top_live(looks, delay, frames, sort)
        return
    shown = 0
    while True:
        rows = sort_rows(looks.take(), sort)
        if session.json:
            session.emit({"time": time.time(), "maps": [row_object(row) for row in rows]})
        else:
            print(("\n\n" if shown else "") + frame_text(rows, delay))
        sys.stdout.flush()
        shown += 1
        if shown == frames:
            return
        time.sleep(delay)


def _top_live(looks: Looks, delay: float, frames: int | None, sort: str) -> None:
    """On a terminal: one frame in the place of the other, until q or Ctrl-C."""
    from rich.live import Live

    console = make_console()
    rows = looks.take()
    shown = 0

    def frame() -> Any:
        return frame_screen(sort_rows(rows, sort), delay, sort, *console.size)

    with (
        contextlib.suppress(KeyboardInterrupt),
        keyboard() as keys,
        Live(frame(), console=console, screen=True, auto_refresh=False) as live,
    ):
        while shown != frames:
            due = time.monotonic() + (delay if shown else min(delay, 0.3))
            while (left := due - time.monotonic()) > 0:
                key = keys.wait(left)
                if key == "q":
                    return
                if key in SORTS:
                    sort = SORTS[key]
                    live.update(frame(), refresh=True)
            rows = looks.take()
            live.update(frame(), refresh=True)
            shown += 1


@click.command("watch", cls=WordVerb, short_help="The value of a key, each time it changes.")
@words_argument("MAP key DATA")
@look_options
@click.option("-d", "--delay", type=click.FloatRange(0.001, 3600), default=0.1, show_default=True)
@click.option("-n", "--changes", type=click.IntRange(1), help="Stop after so many.")
@click.option("--for", "seconds", type=click.FloatRange(0), help="Stop after so many seconds.")
@pass_session
def watch_verb(
    session: Session,
    words: tuple[str, ...],
    delay: float,
    changes: int | None,
    seconds: float | None,
    **options: Any,
) -> int:
    """Print a key's value now and after each change, with the time, until Ctrl-C.

    Looks every --delay seconds: what changes and changes back in between is not seen. Exit status 1
    if --for ended it before -n changes.

    \b
    Examples:
      shmrhash watch hits key alice --str --value-u64
      shmrhash watch jobs key 1 0 0 0 -n 1 --for 60 && echo it changed
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    wanted = DataOptions.take(options)
    key: bytes | None = None
    seen: Found | None = None
    count = -1  # the first line is no change
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        with session.open(name) as shared_map:  # for the moment only: see rates.py
            if key is None:
                contents = contents_of(shared_map, wanted)
                key = take_key(tokens, contents.pair)
                assert key is not None
            found = contents.at(shared_map).find(key)
            if count < 0 or found != seen:
                _print_change(session, contents, key, found, seen)
                seen = found
                count += 1
        if count == changes:
            return 0
        left = delay if end is None else min(delay, end - time.monotonic())
        if left <= 0:
            return 0 if changes is None else STATUS_NO
        time.sleep(left)


def _print_change(
    session: Session, contents: Plain, key: bytes, found: Found | None, before: Found | None
) -> None:
    now = time.time()
    pair = contents.pair
    if session.json:
        name = key.hex() if contents.types is None else pair.key.shown(key)
        entry: dict[str, Any] = {"time": now, "key": name, "value": None}
        if found is not None:
            value, extra = found
            entry["value"] = pair.value.shown(value)
            entry |= {} if extra is None else contents.facts(value, extra)
        session.emit(entry)
    else:
        moment = time.strftime("%H:%M:%S", time.localtime(now)) + f"{now % 1:.3f}"[1:]
        text = "not there" if found is None else _value_text(contents, *found)
        print(f"{moment}  {text}{_difference(pair, found, before)}")
    sys.stdout.flush()


def _value_text(contents: Plain, value: bytes, extra: Extra | None) -> str:
    notes = "" if extra is None else contents.notes(value, extra)
    return contents.pair.value.text(value) + notes


def _difference(pair: Pair, found: Found | None, before: Found | None) -> str:
    """How much a number changed."""
    if found is None or before is None:
        return ""
    now, then = pair.value.shown(found[0]), pair.value.shown(before[0])
    if isinstance(now, (int, float)) and isinstance(then, (int, float)):
        return f"  ({now - then:+g})"
    return ""
