"""export and import: a map's entries to a file and back."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import click

import shmrhash
from shmrhash import RHashMap, _segment
from shmrhash.cli.entries.contents import Plain, contents_of
from shmrhash.cli.files.ndjson import read_ndjson, read_ndjson_head, write_ndjson
from shmrhash.cli.files.newfile import STANDARD, new_file
from shmrhash.cli.files.snapshot import read_snapshot, read_snapshot_head, write_snapshot
from shmrhash.cli.files.store import Store, chunks_of, create_map, expect_like, geometry_of, missing
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
from shmrhash.cli.screen import count_text
from shmrhash.cli.session import (
    DataOptions,
    Session,
    WordVerb,
    data_options,
    on_terminal,
    pass_session,
    words_argument,
)
from shmrhash.cli.words import (
    STATUS_DAMAGED,
    STATUS_NO_ROOM,
    Failure,
    MapName,
    Tokens,
    take_map,
)

WRITERS: dict[str, Callable[..., None]] = {
    "snapshot": write_snapshot,
    "ndjson": write_ndjson,
    "csv": write_csv,
    "npz": write_npz,
}


def kind_of(path: str, asked: str | None) -> str:
    """The format of a file: as asked, or by its ending; lines of JSON in a pipe."""
    kind = asked or ENDINGS.get(os.path.splitext(path)[1])
    if kind is None and path == STANDARD:
        kind = "ndjson"
    if kind is None:
        raise Failure(f"what is {path!r}? name it {', '.join(ENDINGS)}, or say --format")
    if kind == "npz" and path == STANDARD:
        raise Failure("an .npz needs a file")
    return kind


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Any]:
    """A function to be told how many entries more are done: a bar if a person is looking."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda count: bar.advance(task, count)


def _tell(
    session: Session, what: str, count: int, began: float, quiet: bool, expired: int = 0
) -> None:
    """What was done, to a person or as JSON; nothing in a pipe."""
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
    help="The format, if the file's ending does not say it.",
)


# ---- export ----


@click.command("export", cls=WordVerb, short_help="Write a map's entries into a file.")
@words_argument("MAP FILE")
@FORMAT_OPTION
@data_options
@pass_session
def export_verb(
    session: Session, words: tuple[str, ...], asked: str | None, **options: Any
) -> None:
    """Write all entries into a file; '-' is the standard output.

    The file's ending says the format: .snap (a snapshot: fast, with the map's sizes and a
    checksum), .npz (arrays for NumPy), .ndjson and .csv (for everything else). Others may go on
    changing the map: each entry is one that was there, those that stay come exactly once.

    SharedDicts, and maps with special fields, go into .snap and .ndjson, with types, limits,
    objects and deadlines. In lines what JSON has is readable, all else is bytes in base64: nothing
    is unpickled. Time goes on in the file: what expires meanwhile is left out by import.

    \b
    Examples:
      shmrhash export hits hits.snap
      shmrhash export hits hits.csv --str --value-u64
      shmrhash export hits - --str --value-u64 | jq -s 'max_by(.value)'
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    path = tokens.next_or_fail("expected a FILE")
    tokens.end()
    kind = kind_of(path, asked)
    wanted = DataOptions.take(options)
    began = time.perf_counter()
    count = 0

    with session.open(name) as shared_map:
        contents = contents_of(shared_map, wanted)
        geometry = geometry_of(contents)
        if geometry.special and kind not in ("snapshot", "ndjson"):
            raise Failure(f"a {kind} file cannot hold {what_is(contents)}; .snap and .ndjson can")
        if kind == "snapshot" and name.name.encode("utf-8", "surrogateescape")[200:]:
            geometry = replace(geometry, name="")
        mode = os.fstat(shared_map._descriptor()).st_mode  # who may read the map may read the file
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
    """What is special about a map, for a refusal."""
    if contents.types is not None:
        return f"the types of a SharedDict ({contents.types})"
    return "the special fields of this map"


def _own_name(name: str) -> MapName:
    """The map that a file names: one in the directory of segments, whatever the file says."""
    if not name:
        raise Failure("into which map? expected FILE MAP")
    try:
        plain = _segment.plain_name(name)
    except (shmrhash.InvalidArgument, ValueError):
        raise Failure(
            f"the file names its map {name!r:.80}, which is no map's name; say FILE MAP",
            STATUS_DAMAGED,
        ) from None
    return MapName(plain, _segment.path_of(plain))


def _target(
    session: Session, wanted: MapName | None, geometry: Geometry, says_how: bool
) -> RHashMap:
    """The map to import into: the one of that name, or a new one like the one exported."""
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


@click.command("import", cls=WordVerb, short_help="Put the entries of a file into a map.")
@words_argument("FILE [MAP]")
@FORMAT_OPTION
@click.option("--keep", is_flag=True, help="Leave the values of keys that are there.")
@click.option("--entries", type=click.IntRange(1), help="max_entries of a new map.")
@click.option("--max-bytes", type=click.IntRange(1), help="Of objects in a new map.")
@click.option("--key-size", type=click.IntRange(1), help="Of a new map, if the file is lines.")
@click.option("--value-size", type=click.IntRange(1), help="The same.")
@data_options
@pass_session
def import_verb(
    session: Session,
    words: tuple[str, ...],
    asked: str | None,
    keep: bool,
    entries: int | None,
    max_bytes: int | None,
    key_size: int | None,
    value_size: int | None,
    **options: Any,
) -> None:
    """Put the entries of a file into a map; '-' is the standard input.

    A map that does not exist is made: a snapshot and an .npz say how, and so does the first of a
    SharedDict's lines; for other lines of text say --entries, --key-size and --value-size.
    Interrupted, it can be repeated: the same entries are put there again. --keep does not touch
    keys that are there, so that a repeated import does not undo what others changed since.

    \b
    Examples:
      shmrhash import hits.snap
      shmrhash import hits.snap larger --entries 10000000
      shmrhash import hits.csv hits --str --value-u64 --keep
      bpftool -j map dump name hits | jq -c '.[]' | shmrhash import - hits
    """
    tokens = Tokens(words)
    path = tokens.next_or_fail("expected a FILE")
    name = take_map(tokens) if tokens.left() else None
    tokens.end()
    kind = kind_of(path, asked)
    wanted = DataOptions.take(options)
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
        source = read_file(file, kind, given)
        shared_map = stack.enter_context(_target(session, name, source.geometry, source.says_how))
        contents = contents_of(shared_map, wanted, strict=True)
        chunks = source.chunks(contents)
        advance = stack.enter_context(
            progress(f"import {shared_map.name}", source.geometry.entries)
        )
        store = Store(contents, keep)
        try:
            store.put(chunks, done)
        except KeyboardInterrupt:
            print(f"interrupted behind {count:,} entries; the same command again", file=sys.stderr)
            raise
        except shmrhash.MapFull:
            raise Failure(
                f"map {shared_map.name!r} is full, behind {count:,} entries; import "
                f"into a larger one: --entries N",
                STATUS_NO_ROOM,
            ) from None
        except shmrhash.SegmentFull as error:
            raise Failure(f"{error}; behind {count:,} entries", STATUS_NO_ROOM) from None
    _tell(session, "imported", count, began, False, store.expired)


@dataclass(frozen=True)
class Source:
    """A file to import. says_how: it says how the map was, and of which types its entries are."""

    geometry: Geometry
    says_how: bool
    chunks: Callable[[Plain], Iterator[Chunk | Batch]]


def read_file(file: BinaryIO, kind: str, given: Geometry) -> Source:
    """What the file, or else the user, says of the map; and its entries."""
    if kind == "csv":
        return Source(given, True, lambda contents: read_csv(file, contents.pair))
    if kind == "ndjson":
        said, lines = read_ndjson_head(file)
        geometry = given if said is None else _as_given(said, given)

        def of_lines(contents: Plain) -> Iterator[Chunk | Batch]:
            whole = bool(contents.map._fields())
            kptrs = geometry_of(contents).kptrs
            return read_ndjson(lines, contents.pair, whole, kptrs)

        return Source(geometry, said is not None, of_lines)
    if kind == "snapshot":
        geometry = read_snapshot_head(file)
        found: Iterator[Chunk | Batch] = read_snapshot(file, geometry)
    else:
        geometry, found = read_npz(file)
    return Source(_as_given(geometry, given), True, lambda _contents: found)


def _as_given(geometry: Geometry, given: Geometry) -> Geometry:
    """What the file says, but for what the user says."""
    changes = {
        name: getattr(given, name) for name in ("max_entries", "max_bytes") if getattr(given, name)
    }
    return replace(geometry, **changes)
