"""export and import: a map's entries to a file and back."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import click

import shmrhash
from shmrhash import BPF_NOEXIST, RHashMap, _core
from shmrhash.cli.base import (
    DataOptions,
    Session,
    WordVerb,
    data_options,
    on_terminal,
    pass_session,
    words_argument,
)
from shmrhash.cli.files import (
    ENDINGS,
    READERS,
    WRITERS,
    Chunk,
    Geometry,
    chunk_entries,
    read_npz,
    read_snapshot,
    read_snapshot_head,
)
from shmrhash.cli.screen import count_text
from shmrhash.cli.tokens import (
    STATUS_MISSING,
    STATUS_NO_ROOM,
    Failure,
    MapName,
    Tokens,
    map_named,
    take_map,
)

STANDARD = "-"


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


def _tell(session: Session, what: str, count: int, began: float, quiet: bool) -> None:
    """What was done, to a person or as JSON; nothing in a pipe."""
    seconds = max(time.perf_counter() - began, 1e-9)
    if session.json and not quiet:
        session.emit({"entries": count, "seconds": seconds})
    elif on_terminal() and not quiet:
        print(f"{what} {count:,} entries, {count_text(count / seconds)}/s", file=sys.stderr)


FORMAT_OPTION = click.option(
    "-f",
    "--format",
    "asked",
    type=click.Choice(list(WRITERS)),
    help="The format, if the file's ending does not say it.",
)


# ---- export ----


def chunks_of(shared_map: RHashMap, done: Any) -> Iterator[Chunk]:
    """All entries of a map; those that stay throughout come exactly once."""
    key_size, value_size = shared_map.key_size, shared_map.value_size
    step = min(chunk_entries(key_size, value_size), len(shared_map) + 64)
    cursor = None
    while True:  # lookup_batch(), without its arrays: importing NumPy takes longer than this
        keys, values = bytearray(step * key_size), bytearray(step * value_size)
        count, cursor = _core.read_entries(shared_map, cursor, keys, values, 0, step)
        if count:
            del keys[count * key_size :], values[count * value_size :]
            yield Chunk(bytes(keys), bytes(values), count)
            done(count)
        if cursor is None:
            return


@contextlib.contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """A file to write, which appears under its name when it is complete."""
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = f"{path}.part-{os.getpid()}"
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


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
        pair = wanted.fit(shared_map)
        info = shared_map.info()
        geometry = Geometry(
            name.name,
            info["key_size"],
            info["value_size"],
            info["max_entries"],
            info["map_flags"],
            info["map_extra"],
            info["created_ns"],
            info["entries"],
        )
        with progress(f"export {name.name}", geometry.entries) as advance, new_file(path) as file:

            def done(more: int) -> None:
                nonlocal count
                count += more
                advance(more)

            WRITERS[kind](file, geometry, chunks_of(shared_map, done), pair)
    _tell(session, "exported", count, began, path == STANDARD)


# ---- import ----


def _target(session: Session, wanted: MapName | None, geometry: Geometry) -> RHashMap:
    """The map to import into: the one of that name, or a new one like the one exported."""
    if wanted is None and not geometry.name:
        raise Failure("into which map? expected FILE MAP")
    name = wanted or map_named(geometry.name)
    try:
        found = session.open(name, write=True)
    except shmrhash.SegmentMissing:
        if not (geometry.key_size and geometry.value_size and geometry.max_entries):
            raise Failure(
                f"no map {name.name!r}, and the file does not say how to make it: give "
                f"--entries, --key-size and --value-size, or create it first",
                STATUS_MISSING,
            ) from None
        return RHashMap.create(
            name.name,
            key_size=geometry.key_size,
            value_size=geometry.value_size,
            max_entries=geometry.max_entries,
            map_flags=geometry.map_flags,
            map_extra=min(geometry.map_extra, geometry.max_entries),
            timeout=session.timeout,
        )
    sizes = (geometry.key_size or found.key_size, geometry.value_size or found.value_size)
    if sizes != (found.key_size, found.value_size):
        found.close()
        raise Failure(
            f"the entries of the file have {sizes[0]} + {sizes[1]} bytes, those of map "
            f"{name.name!r} have {found.key_size} + {found.value_size}"
        )
    return found


def store(shared_map: RHashMap, chunks: Iterable[Chunk], keep: bool, done: Any) -> None:
    """Put chunks into a map; with keep, leave keys that are there as they are."""
    for chunk in chunks:
        try:
            if keep:
                shared_map.update_many(chunk.keys, chunk.values, BPF_NOEXIST)
            else:
                shared_map.update_batch(chunk.keys, chunk.values)
        except shmrhash.Error as error:
            done(getattr(error, "count", 0) or 0)
            raise
        done(chunk.count)


@click.command("import", cls=WordVerb, short_help="Put the entries of a file into a map.")
@words_argument("FILE [MAP]")
@FORMAT_OPTION
@click.option("--keep", is_flag=True, help="Leave the values of keys that are there.")
@click.option("--entries", type=click.IntRange(1), help="max_entries of a new map.")
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
    key_size: int | None,
    value_size: int | None,
    **options: Any,
) -> None:
    """Put the entries of a file into a map; '-' is the standard input.

    A map that does not exist is made: a snapshot and an .npz say how, for lines of text say
    --entries, --key-size and --value-size. Interrupted, it can be repeated: the same entries are
    put there again. --keep does not touch keys that are there, so that a repeated import does not
    undo what others changed since.

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
    began = time.perf_counter()
    count = 0

    def done(more: int) -> None:
        nonlocal count
        count += more
        advance(more)

    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer if path == STANDARD else stack.enter_context(open(path, "rb"))
        geometry, chunks = read_file(file, kind, given)
        shared_map = stack.enter_context(_target(session, name, geometry))
        if chunks is None:
            chunks = READERS[kind](file, wanted.fit(shared_map))
        advance = stack.enter_context(progress(f"import {shared_map.name}", geometry.entries))
        try:
            store(shared_map, chunks, keep, done)
        except KeyboardInterrupt:
            print(f"interrupted behind {count:,} entries; the same command again", file=sys.stderr)
            raise
        except shmrhash.MapFull:
            raise Failure(
                f"map {shared_map.name!r} is full, behind {count:,} entries; import "
                f"into a larger one: --entries N",
                STATUS_NO_ROOM,
            ) from None
    _tell(session, "imported", count, began, False)


def read_file(
    file: BinaryIO, kind: str, given: Geometry
) -> tuple[Geometry, Iterator[Chunk] | None]:
    """What the file, or else the user, says of the map; chunks, where they need no map first."""
    if kind not in ("snapshot", "npz"):
        return given, None
    if kind == "snapshot":
        geometry = read_snapshot_head(file)
        chunks = read_snapshot(file, geometry)
    else:
        geometry, chunks = read_npz(file)
    if given.max_entries:
        geometry = replace(geometry, max_entries=given.max_entries)
    return geometry, chunks
