"""wait: until one of some keys is there, or has a value."""

from __future__ import annotations

import sys
import time

import click

from shmrhash.cli.entries.contents import contents_of
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.entries.options import DataOptions, look_options
from shmrhash.cli.errors import STATUS_NO, Failure
from shmrhash.cli.session import Session, WordCommand, pass_session, words_argument
from shmrhash.cli.waiting import Alarm
from shmrhash.cli.words import Words, take_map

DELAY_S = 0.1  # between two looks, where the map may only be read


@click.command("wait", cls=WordCommand, short_help="Wait until a key is present, or has a value.")
@words_argument("MAP key DATA [value DATA] [key DATA [value DATA] ...]")
@look_options
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait at most.")
@pass_session
def wait_command(session: Session, words: Words, data: DataOptions, timeout: float | None) -> int:
    """Wait until a key is in the map, or has this value, and print the entry. With several keys,
    the first one for which this is true ends the wait.

    The process that stores it wakes this command, if you may write to the map; else it looks ten
    times a second. The map must exist. The exit status is 1 if --timeout is over.

    \b
    Examples:
      shmrhash wait jobs key report value done --timeout 60 && echo ready
      shmrhash wait jobs key report value done key report value failed
      shmrhash wait hits key alice --str --value-u64
    """
    name = take_map(words)
    wanted: list[tuple[bytes, bytes | None]] = []
    end = None if timeout is None else time.monotonic() + timeout
    with Alarm(session, name, DELAY_S) as alarm:
        while True:  # ends with the timeout
            with session.open(name) as shared_map:
                contents = contents_of(shared_map, data)
                wanted = wanted or _take_wanted(words, contents.pair)
                for key, value in wanted:
                    found = contents.find(key)
                    if found is not None and value in (None, found[0]):
                        if session.json:
                            session.emit(contents.entry_object(key, *found))
                        else:
                            sys.stdout.write(contents.entry_text(key, *found))
                        return 0
                raw_keys = [contents.raw_key(key) for key, _ in wanted]
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return STATUS_NO
            if alarm.set(raw_keys):
                alarm.sleep(left)


def _take_wanted(words: Words, pair: Pair) -> list[tuple[bytes, bytes | None]]:
    """Each key DATA, with the value DATA that follows it, if there is one."""
    wanted: list[tuple[bytes, bytes | None]] = []
    while (word := words.peek()) is not None:
        keyword = words.keyword(["key", "value"])
        if keyword == "key":
            wanted.append((pair.key.from_words(words, keyword), None))
        elif keyword is None or not wanted:
            raise Failure(f"expected key{' or value' if wanted else ''}, got: {word}")
        elif wanted[-1][1] is not None:
            raise Failure("duplicate value")
        else:
            wanted[-1] = wanted[-1][0], pair.value.from_words(words, keyword)
    if not wanted:
        raise Failure("did not find key")
    return wanted
