"""bpftool's commands that only read: show, list, dump, lookup, getnext."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

import shmrhash
from shmrhash._inspect import count_expired
from shmrhash.cli.entries.contents import Plain, contents_of
from shmrhash.cli.entries.options import DataOptions, look_options
from shmrhash.cli.errors import STATUS_NO, Failure
from shmrhash.cli.maps import DAMAGED, VERSION, MapState, all_states, state_of
from shmrhash.cli.screen import hex_strings, json_break, printable
from shmrhash.cli.session import Session, WordCommand, map_argument, pass_session, words_argument
from shmrhash.cli.words import MAP_TYPE, MapName, Words, take_map

# ---- show, list ----


def map_object(state: MapState) -> dict[str, Any]:
    """A map as bpftool's JSON has one; its id is the inode number of its segment."""
    info = state.info
    found: dict[str, Any] = {
        "id": state.inode,
        "type": MAP_TYPE,
        "name": state.name,
        "flags": info["map_flags"],
        "bytes_key": info["key_size"],
        "bytes_value": info["value_size"],
        "max_entries": info["max_entries"],
        "bytes_memlock": state.mem_usage,
        "frozen": int(info.get("frozen", False)),
    }
    if state.alive:
        found["pids"] = [{"pid": user.pid, "comm": user.command} for user in state.alive]
    return found


def map_text(state: MapState) -> str:
    """A map as bpftool prints one."""
    info = state.info
    text = (
        f"{state.inode}: {MAP_TYPE}  name {printable(state.name)}  flags {info['map_flags']:#x}\n"
        f"\tkey {info['key_size']}B  value {info['value_size']}B  "
        f"max_entries {info['max_entries']}  memlock {state.mem_usage}B\n"
    )
    if info.get("frozen"):
        text += "\tfrozen\n"
    if state.alive:
        text += f"\tpids {printable(', '.join(map(str, state.alive)))}\n"
    return text


def _show(session: Session, words: Words) -> None:
    if words.left():
        name = take_map(words)
        words.end()
        state = state_of(name, session)
        if session.json:
            session.emit(map_object(state))
        else:
            sys.stdout.write(map_text(state))
        return
    states = list(all_states(session))
    usable = [state for state in states if state.usable]
    if session.json:
        session.emit([map_object(state) for state in usable])
    else:
        sys.stdout.write("".join(map_text(state) for state in usable))
    for state in states:
        if state.health in (DAMAGED, VERSION):
            print(f"Warning: {state.detail}", file=sys.stderr)


SHOW_HELP = """The maps of this machine, or one of them, as `bpftool map show` prints them.

    The number in front is the inode number of the map's file: 'id NUMBER' names the map. memlock is
    the memory of the entries, as the kernel counts it. 'shmrhash ls' and 'info' show all figures.

    \b
    Examples:
      shmrhash show
      shmrhash show name hits
      shmrhash -p show
      shmrhash -j show | jq '.[] | select(.frozen == 1) | .name'
    """


@click.command("show", cls=WordCommand, help=SHOW_HELP, short_help="Maps, their sizes and users.")
@words_argument("[MAP]")
@pass_session
def show_command(session: Session, words: Words) -> None:
    _show(session, words)


@click.command("list", cls=WordCommand, help=SHOW_HELP, short_help="The same as show.")
@words_argument("[MAP]")
@pass_session
def list_command(session: Session, words: Words) -> None:
    _show(session, words)


# ---- dump ----


@click.command("dump", cls=WordCommand, short_help="All entries of a map.")
@map_argument
@look_options
@pass_session
def dump_command(session: Session, name: MapName, data: DataOptions) -> None:
    """Print every entry. An entry that stays in the map throughout is printed exactly once.

    A map from NumPy's arrays is shown by their dtypes, as bpftool shows one with BTF: --raw shows
    its bytes, and JSON has both. The entries of a SharedDict are shown by its declared types.
    Expired ones are only counted, in the last line. Objects are pickles, which can run any code
    when they are read: only their size is shown, unless you say with --unpickle that you trust
    every user who may write to the dict. --unpickle has to import their classes: set PYTHONPATH=.
    for your own.

    \b
    Examples:
      shmrhash dump hits
      shmrhash dump hits --str --value-u64
      shmrhash dump points --u64 --value-struct '<dd'
      shmrhash -j dump hits --str --value-u64 | jq '.[].formatted'
    """
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, data)
        if session.json:
            _dump_json(session, contents)
            return
        count = 0
        for key, value, extra in contents.items():
            sys.stdout.write(contents.entry_text(key, value, extra))
            count += 1
        expired = count_expired(shared_map)
    gone = f"; {expired:,} more have expired" if expired else ""
    print(f"Found {count} element{'' if count == 1 else 's'}{gone}")


def _dump_json(session: Session, contents: Plain) -> None:
    """Print each entry as it is read: the map may be larger than the memory of this process."""
    write = sys.stdout.write
    separator = "["
    for key, value, extra in contents.items():
        write(separator + contents.entry_json(key, value, extra, session.pretty))
        separator = ","
    some = separator == ","
    write(("" if some else "[") + json_break(session.pretty and some, 0) + "]\n")


# ---- lookup, getnext ----


@click.command("lookup", cls=WordCommand, short_help="The value of a key.")
@words_argument("MAP key DATA")
@look_options
@pass_session
def lookup_command(session: Session, words: Words, data: DataOptions) -> int:
    """Print the entry of a key. The exit status is 1 if the key is not in the map.

    Where the map keeps the dtype of its keys, a key is its numbers and texts, or bytes as above. A
    key of a SharedDict is written according to its type: a text, a number, the fields of a
    struct. If keys are of type object, a word that is JSON means its value: 7, '"7"', null,
    '[1, "a"]' for a tuple; --str makes it a text, --u64 a number.

    \b
    Examples:
      shmrhash lookup hits key 1 0 0 0 0 0 0 0
      shmrhash lookup hits key hex 0100000000000000
      shmrhash lookup hits key alice --str --value-u64
      shmrhash lookup edges key 17 4 --struct '<II'
    """
    name = take_map(words)
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, data)
        key = contents.pair.need_key(words)
        found = contents.find(key)
        if session.json:
            session.emit(None if found is None else contents.entry_object(key, *found))
        elif found is None:
            print(f"key:\n{contents.pair.key_lines(key)}\n\nNot found")
        else:
            sys.stdout.write(contents.entry_text(key, *found))
    return STATUS_NO if found is None else 0


@click.command("getnext", cls=WordCommand, short_help="The key after a key, or the first.")
@words_argument("MAP [key DATA]")
@look_options
@pass_session
def getnext_command(session: Session, words: Words, data: DataOptions) -> None:
    """Print the key that follows a key, or the first key. The exit status is 1 after the last.

    The order stays the same while the map grows and shrinks.

    \b
    Examples:
      shmrhash getnext hits
      shmrhash getnext hits key alice --str
    """
    name = take_map(words)
    with session.open(name) as shared_map:
        contents = contents_of(shared_map, data)
        pair = contents.pair
        key = pair.take_key(words)
        following = contents.following(key)
    if following is None:
        reason = os.strerror(shmrhash.KeyNotFound.errno or 0)
        raise Failure(f"can't get next key: {reason}", STATUS_NO)
    if not session.json:
        before = "key: None" if key is None else f"key:\n{pair.key_lines(key)}"
        print(f"{before}\nnext key:\n{pair.key_lines(following)}")
        return
    found: dict[str, Any] = {
        "key": None if key is None else hex_strings(key),
        "next_key": hex_strings(following),
    }
    if not pair.raw:
        found["formatted"] = {
            "key": None if key is None else pair.key.to_display(key),
            "next_key": pair.key.to_display(following),
        }
    session.emit(found)
