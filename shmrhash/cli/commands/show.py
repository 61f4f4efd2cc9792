"""bpftool's verbs that look: show, list, dump, lookup, getnext."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

import shmrhash
from shmrhash.cli import jsontext
from shmrhash.cli.entries.contents import Plain, contents_of
from shmrhash.cli.entries.formats import Pair, hex_lines
from shmrhash.cli.maps import DAMAGED, VERSION, Sight, look, look_around
from shmrhash.cli.screen import printable
from shmrhash.cli.session import (
    DataOptions,
    Session,
    WordVerb,
    look_options,
    map_argument,
    pass_session,
    words_argument,
)
from shmrhash.cli.words import STATUS_NO, Failure, Tokens, take_map

TYPE = "rhash"


# ---- show, list ----


def map_object(sight: Sight) -> dict[str, Any]:
    """A map as bpftool's JSON shows one; its id is the inode number of its segment."""
    info = sight.info
    found: dict[str, Any] = {
        "id": sight.inode,
        "type": TYPE,
        "name": sight.name,
        "flags": info["map_flags"],
        "bytes_key": info["key_size"],
        "bytes_value": info["value_size"],
        "max_entries": info["max_entries"],
        "bytes_memlock": sight.mem_usage,
        "frozen": int(info.get("frozen", False)),
    }
    if sight.alive:
        found["pids"] = [{"pid": user.pid, "comm": user.command} for user in sight.alive]
    return found


def map_text(sight: Sight) -> str:
    """A map as bpftool shows one."""
    info = sight.info
    text = (
        f"{sight.inode}: {TYPE}  name {printable(sight.name)}  flags {info['map_flags']:#x}\n"
        f"\tkey {info['key_size']}B  value {info['value_size']}B  "
        f"max_entries {info['max_entries']}  memlock {sight.mem_usage}B\n"
    )
    if info.get("frozen"):
        text += "\tfrozen\n"
    if sight.alive:
        text += f"\tpids {printable(', '.join(map(str, sight.alive)))}\n"
    return text


def _show(session: Session, words: tuple[str, ...]) -> int:
    tokens = Tokens(words)
    if words:
        name = take_map(tokens)
        tokens.end()
        sight = look(name, session)
        if session.json:
            session.emit(map_object(sight))
        else:
            sys.stdout.write(map_text(sight))
        return 0
    sights = list(look_around(session))
    usable = [sight for sight in sights if sight.usable]
    if session.json:
        session.emit([map_object(sight) for sight in usable])
    else:
        sys.stdout.write("".join(map_text(sight) for sight in usable))
    for sight in sights:
        if sight.health in (DAMAGED, VERSION):
            print(f"Warning: {sight.detail}", file=sys.stderr)
    return 0


SHOW_HELP = """The maps of this machine, or one of them, as `bpftool map show` shows them.

    The number in front is the inode number of the map's file; 'id NUMBER' names the map. memlock is
    what the kernel would count: the entries. 'shmrhash ls' and 'info' have all figures.

    \b
    Examples:
      shmrhash show
      shmrhash show name hits
      shmrhash -p show
      shmrhash -j show | jq '.[] | select(.frozen == 1) | .name'
    """


@click.command("show", cls=WordVerb, help=SHOW_HELP, short_help="Maps, their sizes and users.")
@words_argument("[MAP]")
@pass_session
def show_verb(session: Session, words: tuple[str, ...]) -> int:
    return _show(session, words)


@click.command("list", cls=WordVerb, help=SHOW_HELP, short_help="The same as show.")
@words_argument("[MAP]")
@pass_session
def list_verb(session: Session, words: tuple[str, ...]) -> int:
    return _show(session, words)


# ---- dump ----


@click.command("dump", cls=WordVerb, short_help="All entries of a map.")
@map_argument
@look_options
@pass_session
def dump_verb(session: Session, words: tuple[str, ...], **options: Any) -> None:
    """Print every entry. What stays in the map throughout is printed exactly once.

    The entries of a SharedDict are shown by its declared types, those that have expired are not.
    Objects are pickles, which can run any code when they are read: they are shown as their size
    unless --unpickle says that you trust everybody who may write to the dict. Classes are found
    as Python finds them: PYTHONPATH=. if they are your own.

    \b
    Examples:
      shmrhash dump hits
      shmrhash dump hits --str --value-u64
      shmrhash dump points --u64 --value-struct '<dd'
      shmrhash -j dump hits --str --value-u64 | jq '.[].formatted'
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    tokens.end()
    wanted = DataOptions.take(options)
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, wanted)
        if session.json:
            _dump_json(session, contents)
            return
        count = 0
        for key, value, extra in contents.items():
            sys.stdout.write(contents.entry_text(key, value, extra))
            count += 1
    print(f"Found {count} element{'' if count == 1 else 's'}")


def _dump_json(session: Session, contents: Plain) -> None:
    """One entry after another: the map may be larger than this process's memory."""
    write = sys.stdout.write
    separator = "["
    for key, value, extra in contents.items():
        write(separator + contents.entry_json(key, value, extra, session.pretty))
        separator = ","
    some = separator == ","
    write(("" if some else "[") + jsontext.line_break(session.pretty and some, 0) + "]\n")


# ---- lookup, getnext ----


def take_key(tokens: Tokens, pair: Pair, required: bool = True) -> bytes | None:
    """Take `key DATA`, and nothing else."""
    key = None
    while (word := tokens.peek()) is not None:
        if tokens.keyword(["key"]) is None:
            raise Failure(f"expected key or value, got: {word}")
        if key is not None:
            raise Failure("duplicate key")
        key = pair.key.take(tokens, "key")
    if key is None and required:
        raise Failure("did not find key")
    return key


@click.command("lookup", cls=WordVerb, short_help="The value of a key.")
@words_argument("MAP key DATA")
@look_options
@pass_session
def lookup_verb(session: Session, words: tuple[str, ...], **options: Any) -> int:
    """Print the entry of a key. Exit status 1 if there is none.

    A SharedDict takes a key as its type is written: a text, a number, the fields of a struct. Among
    keys of type object a word that is JSON stands for that: 7, '"7"', null, '[1, "a"]' for a tuple;
    --str and --u64 say which is meant.

    \b
    Examples:
      shmrhash lookup hits key 1 0 0 0 0 0 0 0
      shmrhash lookup hits key hex 0100000000000000
      shmrhash lookup hits key alice --str --value-u64
      shmrhash lookup edges key 17 4 --struct '<II'
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    wanted = DataOptions.take(options)
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, wanted)
        key = take_key(tokens, contents.pair)
        assert key is not None
        found = contents.find(key)
        if session.json:
            session.emit(None if found is None else contents.entry_object(key, *found))
        elif found is None:
            print(f"key:\n{_key_lines(key, contents.pair)}\n\nNot found")
        else:
            sys.stdout.write(contents.entry_text(key, *found))
    return STATUS_NO if found is None else 0


def _key_lines(key: bytes, pair: Pair) -> str:
    return hex_lines(key) if pair.raw else pair.key.text(key)


@click.command("getnext", cls=WordVerb, short_help="The key after a key, or the first.")
@words_argument("MAP [key DATA]")
@look_options
@pass_session
def getnext_verb(session: Session, words: tuple[str, ...], **options: Any) -> None:
    """Print the key that follows, or the first one. Exit status 1 after the last.

    The order stays the same while the map grows and shrinks.

    \b
    Examples:
      shmrhash getnext hits
      shmrhash getnext hits key alice --str
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    wanted = DataOptions.take(options)
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, wanted)
        pair = contents.pair
        key = take_key(tokens, pair, required=False)
        following = contents.following(key)
    if following is None:
        reason = os.strerror(shmrhash.KeyNotFound.errno or 0)
        raise Failure(f"can't get next key: {reason}", STATUS_NO)
    if not session.json:
        before = "key: None" if key is None else f"key:\n{_key_lines(key, pair)}"
        print(f"{before}\nnext key:\n{_key_lines(following, pair)}")
        return
    found: dict[str, Any] = {
        "key": None if key is None else jsontext.hex_strings(key),
        "next_key": jsontext.hex_strings(following),
    }
    if not pair.raw:
        found["formatted"] = {
            "key": None if key is None else pair.key.shown(key),
            "next_key": pair.key.shown(following),
        }
    session.emit(found)
