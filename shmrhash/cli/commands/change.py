"""bpftool's commands that change something: create, update, delete, freeze."""

from __future__ import annotations

import click

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_NO_PREALLOC, BPF_NOEXIST, RHashMap
from shmrhash.cli.entries.contents import contents_of
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.entries.options import DataOptions, data_options
from shmrhash.cli.errors import Failure, failed
from shmrhash.cli.session import Session, WordCommand, map_argument, pass_session, words_argument
from shmrhash.cli.words import MAP_TYPE, MapName, Words, map_named, take_map

UPDATE_FLAGS = {"any": BPF_ANY, "exist": BPF_EXIST, "noexist": BPF_NOEXIST}


def _number(word: str, what: str) -> int:
    try:
        return int(word, 0)
    except ValueError:
        raise Failure(f"can't parse {word} as {what}") from None


@click.command("create", cls=WordCommand, short_help="Make a map.")
@words_argument(
    "FILE|NAME key KEY_SIZE value VALUE_SIZE entries MAX_ENTRIES "
    "[type rhash] [name NAME] [flags FLAGS] [extra PRESIZE] [mode MODE]"
)
@pass_session
def create_command(session: Session, words: Words) -> None:
    """Make an empty map. entries is its limit: the map takes memory only as it fills.

    bpftool's arguments are accepted: a FILE in the directory of segments, 'type rhash', 'name'.
    The default of flags is 1 (BPF_F_NO_PREALLOC), that of mode, which is octal, is 600.

    \b
    Examples:
      shmrhash create hits key 8 value 8 entries 1000000
      shmrhash create shared key 16 value 64 entries 5000 mode 660
      shmrhash create /dev/shm/jobs type rhash key 4 value 8 entries 100 name jobs flags 1
    """
    first = words.next_or_fail("expected a NAME or FILE")
    name = map_named(words.next_or_fail("expected a NAME") if first == "name" else first)
    sizes = {"key": "key size", "value": "value size", "entries": "max entries"}
    numbers = {**sizes, "flags": "flags", "extra": "extra", "mode": "mode"}
    given: dict[str, int] = {}
    while (word := words.peek()) is not None:
        keyword = words.keyword(["type", "name", *numbers])
        if keyword is None:
            raise Failure(f"unknown arg {word}")
        argument = words.next_or_fail(f"expected an argument after {word!r}")
        if keyword == "type" and not MAP_TYPE.startswith(argument):
            raise Failure(f"type must be {MAP_TYPE}, not {argument!r}")
        if keyword == "name" and map_named(argument).name != name.name:
            raise Failure(f"a map has the name of its file, {name.name!r}, not {argument!r}")
        if keyword in numbers:
            if keyword in given:
                raise Failure(f"{numbers[keyword]} already specified")
            number = f"0o{argument.removeprefix('0o')}" if keyword == "mode" else argument
            given[keyword] = _number(number, numbers[keyword])
    for keyword, what in sizes.items():
        if keyword not in given:
            raise Failure(f"{what} not specified")
    try:
        RHashMap.create(
            name.name,
            key_size=given["key"],
            value_size=given["value"],
            max_entries=given["entries"],
            map_flags=given.get("flags", BPF_F_NO_PREALLOC),
            map_extra=given.get("extra", 0),
            mode=given.get("mode", 0o600),
        ).close()
    except shmrhash.Error as error:
        raise failed("map create", error) from None
    session.done()


@click.command("update", cls=WordCommand, short_help="Store a value under a key.")
@words_argument("MAP key DATA value DATA [any|exist|noexist]")
@data_options
@pass_session
def update_command(session: Session, words: Words, data: DataOptions) -> None:
    """Store a value. exist: only if the key is in the map; noexist: only if it is not.

    Keys and values of a SharedDict are written according to their types; the entry gets the dict's
    time to live. Objects and arrays cannot be stored here: only a program can make them.

    \b
    Examples:
      shmrhash update hits key 1 0 0 0 0 0 0 0 value 5 0 0 0 0 0 0 0
      shmrhash update hits key alice value 7 --str --value-u64
      shmrhash update hits key alice value 7 noexist --str --value-u64
    """
    name = take_map(words)
    with session.open(name, write=True) as shared_map:
        contents = contents_of(shared_map, data, strict=True)
        key, value, flag = _take_entry(words, contents.pair)
        try:
            contents.update(key, value, UPDATE_FLAGS[flag])
        except shmrhash.Error as error:
            raise failed("update", error) from None
    session.done()


def _take_entry(words: Words, pair: Pair) -> tuple[bytes, bytes, str]:
    """key DATA, value DATA and a flag, in any order."""
    found: dict[str, bytes] = {}
    flag = None
    while (word := words.peek()) is not None:
        keyword = words.keyword(["key", "value", *UPDATE_FLAGS])
        if keyword is None:
            raise Failure(f"expected key or value, got: {word}")
        if keyword in UPDATE_FLAGS:
            if flag is not None:
                raise Failure(f"flags specified multiple times: {word}")
            flag = keyword
            continue
        if keyword in found:
            raise Failure(f"duplicate {keyword}")
        found[keyword] = (pair.key if keyword == "key" else pair.value).from_words(words, keyword)
    for keyword in ("key", "value"):
        if keyword not in found:
            raise Failure(f"did not find {keyword}")
    return found["key"], found["value"], flag or "any"


@click.command("delete", cls=WordCommand, short_help="Remove a key and its value.")
@words_argument("MAP key DATA")
@data_options
@pass_session
def delete_command(session: Session, words: Words, data: DataOptions) -> None:
    """Remove an entry. The exit status is 1 if the key is not in the map.

    \b
    Examples:
      shmrhash delete hits key 1 0 0 0 0 0 0 0
      shmrhash delete hits key alice --str
    """
    name = take_map(words)
    with session.open(name, write=True) as shared_map:
        contents = contents_of(shared_map, data)
        key = contents.pair.need_key(words)
        try:
            contents.delete(key)
        except shmrhash.Error as error:
            raise failed("delete", error) from None
    session.done()


@click.command("freeze", cls=WordCommand, short_help="Forbid all changes to a map.")
@map_argument
@pass_session
def freeze_command(session: Session, name: MapName) -> None:
    """Forbid all changes to a map, in every process. This cannot be undone.

    \b
    Examples:
      shmrhash freeze settings
    """
    with session.open(name, write=True) as shared_map:
        shared_map.freeze()
    session.done()
