"""watch: the value of a key, or every entry, each time it changes."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from shmrhash._inspect import Extra
from shmrhash.cli.entries.contents import Found, Plain, contents_of
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.entries.options import DataOptions, look_options
from shmrhash.cli.errors import STATUS_NO
from shmrhash.cli.following import News, follow
from shmrhash.cli.session import Session, WordCommand, pass_session, words_argument
from shmrhash.cli.waiting import Alarm
from shmrhash.cli.words import MapName, Words, take_map


@click.command("watch", cls=WordCommand, short_help="The value of a key, each time it changes.")
@words_argument("MAP [key DATA]")
@look_options
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.001, 3600),
    default=0.1,
    show_default=True,
    help="Seconds between two reads, where the map may only be read.",
)
@click.option("-n", "--changes", type=click.IntRange(1), help="Stop after this many changes.")
@click.option("--for", "seconds", type=click.FloatRange(0), help="Stop after this many seconds.")
@pass_session
def watch_command(
    session: Session,
    words: Words,
    data: DataOptions,
    delay: float,
    changes: int | None,
    seconds: float | None,
) -> int:
    """Print a key's value now and after each change, with the time, until Ctrl-C.

    The process that changes the value wakes this command, if you may write to the map; else the
    value is read every --delay seconds. A change that is undone at once may be missed. The exit
    status is 1 if --for ended the command before -n changes.

    Without a key, each change of any key is printed, from now on; you must be allowed to write to
    the map. "lost" reports changes whose keys are not known, and how many there were at least: this
    command was too slow, a process was killed while it changed the map, or another map got the
    name.

    \b
    Examples:
      shmrhash watch hits key alice --str --value-u64
      shmrhash watch hits --str --value-u64
      shmrhash watch jobs key 1 0 0 0 -n 1 --for 60 && echo it changed
    """
    name = take_map(words)
    if words.peek() is None:
        return _watch_all(session, name, data, changes, seconds)
    key: bytes | None = None
    seen: Found | None = None
    count = -1  # the first line that is printed is no change
    end = None if seconds is None else time.monotonic() + seconds
    with Alarm(session, name, delay) as alarm:
        while True:
            with session.open(name) as shared_map:
                if key is None:
                    contents = contents_of(shared_map, data)
                    key = contents.pair.need_key(words)
                present = contents.at(shared_map)
                found = present.find(key)
                raw_key = present.raw_key(key)
                if count < 0 or found != seen:
                    _print_change(session, contents, key, found, seen)
                    seen = found
                    count += 1
            if count == changes:
                return 0
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return 0 if changes is None else STATUS_NO
            if alarm.set([raw_key]):
                alarm.sleep(left)


def _watch_all(
    session: Session, name: MapName, data: DataOptions, changes: int | None, seconds: float | None
) -> int:
    end = None if seconds is None else time.monotonic() + seconds
    for count, news in enumerate(follow(session, name, data, end), 1):
        _print_news(session, news)
        if count == changes:
            return 0
    return 0 if changes is None else STATUS_NO


def _print_news(session: Session, news: News) -> None:
    now = time.time()
    contents, pair = news.contents, news.contents.pair
    if session.json:
        entry: dict[str, Any] = {"time": now, "kind": news.kind}
        if news.kind == "lost":
            entry["lost"] = news.lost
        else:
            entry |= _entry_object(contents, news.key, news.found)
        session.emit(entry)
    else:
        text = f"lost {news.lost} changes, or more"
        if news.found is not None:
            text = f"{pair.key.to_text(news.key)}  {_value_text(contents, *news.found)}"
        elif news.kind == "deleted":
            text = f"{pair.key.to_text(news.key)}  deleted"
        print(f"{_moment(now)}  {text}")
    sys.stdout.flush()


def _moment(now: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(now)) + f"{now % 1:.3f}"[1:]


def _print_change(
    session: Session, contents: Plain, key: bytes, found: Found | None, before: Found | None
) -> None:
    now = time.time()
    pair = contents.pair
    if session.json:
        session.emit({"time": now} | _entry_object(contents, key, found))
    else:
        text = "no such key" if found is None else _value_text(contents, *found)
        print(f"{_moment(now)}  {text}{_difference(pair, found, before)}")
    sys.stdout.flush()


def _entry_object(contents: Plain, key: bytes, found: Found | None) -> dict[str, Any]:
    """An entry as it is now, for JSON; its value is None if the key is absent."""
    pair = contents.pair
    name = key.hex() if contents.types is None else pair.key.to_display(key)
    entry: dict[str, Any] = {"key": name, "value": None}
    if found is not None:
        value, extra = found
        entry["value"] = pair.value.to_display(value)
        entry |= {} if extra is None else contents.facts(value, extra)
    return entry


def _value_text(contents: Plain, value: bytes, extra: Extra | None) -> str:
    notes = "" if extra is None else contents.notes(value, extra)
    return contents.pair.value.to_text(value) + notes


def _difference(pair: Pair, found: Found | None, before: Found | None) -> str:
    """The difference between two numbers, as text; "" for other values."""
    if found is None or before is None:
        return ""
    now, then = pair.value.to_display(found[0]), pair.value.to_display(before[0])
    if isinstance(now, (int, float)) and isinstance(then, (int, float)):
        return f"  ({now - then:+g})"
    return ""
