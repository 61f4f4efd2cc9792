"""export and import: a map's entries into a file and back."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import click

import shmrhash
from shmrhash import RHashMap, _inspect
from shmrhash.cli.entries.contents import Plain, contents_of
from shmrhash.cli.entries.options import DataOptions, file_options
from shmrhash.cli.errors import STATUS_DAMAGED, STATUS_NO_ROOM, Failure
from shmrhash.cli.files.ndjson import read_ndjson, read_ndjson_head, write_ndjson
from shmrhash.cli.files.newfile import STANDARD, new_file
from shmrhash.cli.files.snapshot import read_snapshot, read_snapshot_head, write_snapshot
from shmrhash.cli.files.store import (
    Store,
    chunks_of,
    create_map,
    expect_like,
    geometry_of,
    missing,
)
from shmrhash.cli.files.tables import (
    ENDINGS,
    Batch,
    Chunk,
    Geometry,
    read_csv,
    read_npz,
    write_csv,
    write_npz,
)
from shmrhash.cli.screen import count_text, on_terminal, progress
from shmrhash.cli.session import Session, WordCommand, pass_session, words_argument
from shmrhash.cli.words import MapName, Words, take_map

WRITERS: dict[str, Callable[..., None]] = {
    "snapshot": write_snapshot,
    "ndjson": write_ndjson,
    "csv": write_csv,
    "npz": write_npz,
}


def file_kind(path: str, asked: str | None) -> str:
    """The format of a file: as asked, or by the name's ending; NDJSON in a pipe."""
    kind = asked or ENDINGS.get(os.path.splitext(path)[1])
    if kind is None and path == STANDARD:
        kind = "ndjson"
    if kind is None:
        raise Failure(f"{path!r} has none of the endings {', '.join(ENDINGS)}; give --format")
    if kind == "npz" and path == STANDARD:
        raise Failure("an .npz cannot be written to a pipe, or read from one")
    return kind


def _tell(
    session: Session, what: str, count: int, began: float, quiet: bool, expired: int = 0
) -> None:
    """Print how many entries were done, as text on a terminal or as JSON, unless quiet."""
    seconds = max(time.perf_counter() - began, 1e-9)
    if session.json and not quiet:
        session.emit({"entries": count, "seconds": seconds, "expired": expired})
        return
    if expired:
        print(f"{expired:,} entries have expired and were left out", file=sys.stderr)
    if on_terminal() and not quiet:
        print(f"{what} {count:,} entries, {count_text(count / seconds)}/s", file=sys.stderr)


FORMAT_OPTION = click.option(
    "-f",
    "--format",
    "asked",
    type=click.Choice(list(WRITERS)),
    help="The format, if the file's name does not say it.",
)


# ---- export ----


@click.command("export", cls=WordCommand, short_help="Write a map's entries into a file.")
@words_argument("MAP FILE")
@FORMAT_OPTION
@file_options
@pass_session
def export_command(session: Session, words: Words, data: DataOptions, asked: str | None) -> None:
    """Write all entries into a file; '-' is the standard output.

    The file's ending says the format: .snap (a snapshot: fast, with the map's sizes and a
    checksum), .npz (arrays for NumPy), .ndjson and .csv (for everything else). The map can be
    changed during the export: entries that stay in it are written exactly once.

    SharedDicts, and maps with special fields, go into .snap and .ndjson, with types, limits,
    objects and deadlines. Lines of .ndjson have the values that JSON has, and the bytes of all
    others in base64: nothing is unpickled. Import leaves out entries that have expired by then.
    Keys and values whose dtypes the map keeps are written as numbers and texts, unless you give
    --raw, or another format.

    \b
    Examples:
      shmrhash export hits hits.snap
      shmrhash export hits hits.csv --str --value-u64
      shmrhash export hits - --str --value-u64 | jq -s 'max_by(.value)'
    """
    name = take_map(words)
    path = words.next_or_fail("expected a FILE")
    words.end()
    kind = file_kind(path, asked)
    began = time.perf_counter()
    count = 0

    with session.open(name) as shared_map:
        contents = contents_of(shared_map, data)
        geometry = geometry_of(contents)
        if geometry.special and kind not in ("snapshot", "ndjson"):
            raise Failure(f"a {kind} file cannot hold {what_is(contents)}; .snap and .ndjson can")
        if kind == "snapshot" and name.name.encode("utf-8", "surrogateescape")[200:]:
            geometry = replace(geometry, name="")
        mode = _inspect.file_status(shared_map).st_mode  # who may read the map may read the file
        with (
            progress(f"export {name.name}", geometry.entries) as advance,
            new_file(path, mode) as file,
        ):

            def done(more: int) -> None:
                nonlocal count
                count += more
                advance(more)

            WRITERS[kind](file, geometry, chunks_of(contents, done), contents.pair)
    _tell(session, "exported", count, began, path == STANDARD)


# ---- import ----


def what_is(contents: Plain) -> str:
    """The part of a map that some formats cannot hold, for a message."""
    if contents.types is not None:
        return f"the types of a SharedDict ({contents.types})"
    return "the special fields of this map"


def _own_name(name: str) -> MapName:
    """The map that a file names. Any name is looked up in the directory of segments."""
    if not name:
        raise Failure("the file names no map: give FILE MAP")
    try:
        plain = _inspect.plain_name(name)
    except (shmrhash.InvalidArgument, ValueError):
        raise Failure(
            f"the file names its map {name!r:.80}, which is not a map's name; give FILE MAP",
            STATUS_DAMAGED,
        ) from None
    return MapName(plain, _inspect.path_of(plain))


def _target(
    session: Session, wanted: MapName | None, geometry: Geometry, says_how: bool
) -> RHashMap:
    """The map to import into: the one of that name, or a new map like the exported one."""
    name = wanted or _own_name(geometry.name)
    try:
        found = session.open(name, write=True)
    except shmrhash.SegmentMissing:
        if not (geometry.key_size and geometry.value_size and geometry.max_entries):
            raise missing(name.name) from None
        return create_map(geometry, name.name, session.timeout)
    try:
        expect_like(found, geometry, says_how)
    except Failure:
        found.close()
        raise
    return found


@click.command("import", cls=WordCommand, short_help="Put the entries of a file into a map.")
@words_argument("FILE [MAP]")
@FORMAT_OPTION
@click.option("--keep", is_flag=True, help="Keep the values of keys that are in the map already.")
@click.option("--entries", type=click.IntRange(1), help="max_entries of a new map.")
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    help="max_bytes of a new map: of its objects; of a cache, of all of it.",
)
@click.option(
    "--key-size",
    type=click.IntRange(1),
    help="The key size of a new map, if the file does not say it.",
)
@click.option("--value-size", type=click.IntRange(1), help="The value size, likewise.")
@file_options
@pass_session
def import_command(
    session: Session,
    words: Words,
    data: DataOptions,
    asked: str | None,
    keep: bool,
    entries: int | None,
    max_bytes: int | None,
    key_size: int | None,
    value_size: int | None,
) -> None:
    """Put the entries of a file into a map; '-' is the standard input.

    A map that does not exist is created: a snapshot, an .npz and the .ndjson of a SharedDict give
    its sizes; for other files give --entries, --key-size and --value-size. An interrupted import
    can be repeated, and stores the same entries again. --keep keeps the values of keys that are in
    the map already, so that a repeated import does not undo later changes.

    \b
    Examples:
      shmrhash import hits.snap
      shmrhash import hits.snap larger --entries 10000000
      shmrhash import hits.csv hits --str --value-u64 --keep
      bpftool -j map dump name hits | jq -c '.[]' | shmrhash import - hits
    """
    path = words.next_or_fail("expected a FILE")
    name = take_map(words) if words.left() else None
    words.end()
    kind = file_kind(path, asked)
    given = Geometry(name.name if name else "", key_size or 0, value_size or 0, entries or 0)
    given = replace(given, max_bytes=max_bytes or 0)
    began = time.perf_counter()
    count = 0

    def done(more: int) -> None:
        nonlocal count
        count += more
        advance(more)

    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if path == STANDARD else stack.enter_context(open(path, "rb"))
        source = read_file(file, kind, given, data)
        shared_map = stack.enter_context(_target(session, name, source.geometry, source.says_how))
        contents = contents_of(shared_map, data, strict=True)
        chunks = source.chunks(contents)
        advance = stack.enter_context(
            progress(f"import {shared_map.name}", source.geometry.entries)
        )
        store = Store(contents, keep)
        try:
            store.put(chunks, done)
        except KeyboardInterrupt:
            print(f"interrupted after {count:,} entries; repeat the command", file=sys.stderr)
            raise
        except shmrhash.MapFull:
            raise Failure(
                f"map {shared_map.name!r} is full, after {count:,} entries; import "
                f"into a larger one: --entries N",
                STATUS_NO_ROOM,
            ) from None
        except shmrhash.SegmentFull as error:
            raise Failure(f"{error}; {count:,} entries were imported", STATUS_NO_ROOM) from None
    _tell(session, "imported", count, began, False, store.expired)


@dataclass(frozen=True)
class Source:
    """A file to import. says_how: whether it gives the types and fields of its map."""

    geometry: Geometry
    says_how: bool
    chunks: Callable[[Plain], Iterator[Chunk | Batch]]


def read_file(file: BinaryIO, kind: str, given: Geometry, data: DataOptions) -> Source:
    """The geometry of the map, from the file or else from the user, and the entries."""
    if kind == "csv":
        return Source(given, True, lambda contents: read_csv(file, contents.pair))
    if kind == "ndjson":
        said, lines = read_ndjson_head(file)
        geometry = given if said is None else _as_given(said, given)

        def of_lines(contents: Plain) -> Iterator[Chunk | Batch]:
            whole = bool(_inspect.field_pairs(contents.map))
            kptrs = geometry_of(contents).kptrs
            pair = contents.pair
            if said is not None and contents.types is None:  # as written, whatever the map keeps
                pair = data.fit(contents.map, said.schema)
            return read_ndjson(lines, pair, whole, kptrs)

        return Source(geometry, said is not None, of_lines)
    if kind == "snapshot":
        geometry = read_snapshot_head(file)
        found: Iterator[Chunk | Batch] = read_snapshot(file, geometry)
    else:
        geometry, found = read_npz(file)
    return Source(_as_given(geometry, given), True, lambda _contents: found)


def _as_given(geometry: Geometry, given: Geometry) -> Geometry:
    """The geometry from the file, with the limits that the user gave."""
    changes = {
        name: getattr(given, name) for name in ("max_entries", "max_bytes") if getattr(given, name)
    }
    return replace(geometry, **changes)
