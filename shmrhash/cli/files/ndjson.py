"""NDJSON: a JSON object for each entry, each on its own line.

If the map has special fields, or is a SharedDict, the first line describes the map:

    {"shmrhash": "map", "name": ..., "key_size": ..., "fields": ..., "schema": {...}, ...}
    {"key": "alice", "value": {"base64": ..., "type": "pickle"}, "expires": 1763861000.5}

expires: seconds since the epoch, null for never; an entry without it gets the dict's default time
to live. objects: those of Kptr fields, in base64, or null.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from shmrhash._inspect import Extra
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.errors import STATUS_DAMAGED, Failure
from shmrhash.cli.files.tables import NOT_SAID, Batch, Chunk, Chunks, Geometry, batches, gathered

HEAD_WORD = "shmrhash"
HEAD_KIND = "map"
SECOND_NS = 1_000_000_000
NUMBERS = ("key_size", "value_size", "max_entries", "map_flags", "map_extra", "max_bytes")

Lines = Iterable[tuple[int, bytes]]


def write_ndjson(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """Write the lines of a map."""
    key_json, value_json = pair.key_json, pair.value_json
    if geometry.special or geometry.schema:
        file.write(json.dumps(_head(geometry)).encode() + b"\n")
    for chunk in chunks:
        if isinstance(chunk, Chunk):
            text = "".join(
                f'{{"key":{key_json(key)},"value":{value_json(value)}}}\n' for key, value in chunk
            )
        else:
            text = "".join(
                f'{{"key":{key_json(key)},"value":{value_json(value)}{_rest(geometry, extra)}}}\n'
                for key, value, extra in chunk.entries
            )
        file.write(text.encode())


def _head(geometry: Geometry) -> dict[str, Any]:
    head: dict[str, Any] = {HEAD_WORD: HEAD_KIND, "name": geometry.name}
    head |= {name: getattr(geometry, name) for name in NUMBERS}
    head["fields"] = [list(field) for field in geometry.fields]
    if geometry.schema:
        head["schema"] = json.loads(geometry.schema)
    return head


def _rest(geometry: Geometry, extra: Extra) -> str:
    """The parts of an entry besides key and value."""
    text = ""
    if geometry.timed:
        seconds = extra.deadline_ns / SECOND_NS if extra.deadline_ns else None
        text += f',"expires":{json.dumps(seconds)}'
    if not geometry.typed and extra.objects:
        objects = [
            data if data is None else base64.b64encode(data).decode() for data in extra.objects
        ]
        text += f',"objects":{json.dumps(objects)}'
    return text


def read_ndjson_head(file: BinaryIO) -> tuple[Geometry | None, Lines]:
    """The map that the first line describes, or None, and the numbered lines of entries."""
    first = file.readline()
    rest = enumerate(file, 2)
    try:
        head = json.loads(first)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or HEAD_WORD not in head:
        return None, itertools.chain([(1, first)], rest)
    try:
        if head[HEAD_WORD] != HEAD_KIND:
            raise ValueError(head[HEAD_WORD])
        numbers = {name: head[name] for name in NUMBERS}
        fields = tuple((kind, offset) for kind, offset in head["fields"])
        if not all(type(number) is int for number in (*numbers.values(), *sum(fields, ()))):
            raise ValueError("numbers")
        schema = b""
        if "schema" in head:
            schema = json.dumps(head["schema"], separators=(",", ":")).encode()
        return Geometry(str(head["name"]), **numbers, fields=fields, schema=schema), rest
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise Failure(f"line 1 does not describe the map: {error}", STATUS_DAMAGED) from None


def read_ndjson(lines: Lines, pair: Pair, whole: bool, kptrs: int) -> Iterator[Chunk | Batch]:
    """The entries in lines. whole: with objects and deadlines. kptrs: how many objects each has."""

    def entries() -> Iterator[tuple[int, Any, Any, Any]]:
        for number, line in lines:
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                yield number, entry["key"], entry["value"], entry
            except (ValueError, KeyError, TypeError, RecursionError):
                raise Failure(
                    f'line {number} is not a JSON object with "key" and "value"', STATUS_DAMAGED
                ) from None

    if not whole:
        return gathered((entry[:3] for entry in entries()), pair)
    return batches(_wholes(entries(), pair, kptrs))


def _wholes(
    entries: Iterable[tuple[int, Any, Any, Any]], pair: Pair, kptrs: int
) -> Iterator[tuple[bytes, bytes, Extra]]:
    for number, key, value, entry in entries:
        try:
            extra = Extra(_deadline(entry), _objects(entry, kptrs))
            yield pair.key.from_json(key, "key"), pair.value.from_json(value, "value"), extra
        except Failure as error:
            raise Failure(f"line {number}: {error}", STATUS_DAMAGED) from None


def _deadline(entry: dict[str, Any]) -> int:
    seconds = entry.get("expires", NOT_SAID)
    if seconds is None:
        return 0
    if seconds == NOT_SAID:
        return NOT_SAID
    try:
        return max(1, round(float(seconds) * SECOND_NS))
    except (TypeError, ValueError, OverflowError):
        raise Failure(f"expires should be seconds or null, not {seconds!r}") from None


def _objects(entry: dict[str, Any], kptrs: int) -> tuple[bytes | None, ...]:
    found = entry.get("objects", [None] * kptrs) if kptrs else []
    try:
        objects = tuple(None if text is None else base64.b64decode(text) for text in found)
    except (TypeError, ValueError):
        raise Failure("objects should be a list, each base64 or null") from None
    if len(objects) != kptrs:
        raise Failure(f"an entry of this map has {kptrs} objects, not {len(objects)}")
    return objects
