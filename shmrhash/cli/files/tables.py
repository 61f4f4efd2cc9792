"""The contents that all files of export and import share, and two formats, CSV and NumPy's .npz.

Entries are read and written in chunks: the keys of some thousand entries, joined, and their values,
joined; or, if entries have objects or deadlines, in batches of whole entries. A deadline in a file
is by the wall clock, so entries also expire while they are in a file.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from shmrhash import Kptr, Timer
from shmrhash._inspect import Extra, without_dtypes
from shmrhash.cli.entries.formats import Format, Pair
from shmrhash.cli.errors import STATUS_DAMAGED, Failure, need

CHUNK_ENTRIES = 1 << 16
CHUNK_BYTES_MAX = 64 << 20
ENTRY_BYTES = 64  # the memory of an entry in a batch besides its bytes
NOT_SAID = -1  # the deadline of an entry for which the file gives none, not even "never"

ENDINGS = {
    ".snap": "snapshot",
    ".snapshot": "snapshot",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".npz": "npz",
}


@dataclass(frozen=True)
class Geometry:
    """The sizes, limits and types of the map that the entries of a file are from.

    schema: as in the segment; of a SharedDict, or with the dtypes of rows, or empty.
    """

    name: str
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int = 1
    map_extra: int = 0
    created_ns: int = 0
    entries: int = 0
    max_bytes: int = 0
    fields: tuple[tuple[int, int], ...] = ()
    schema: bytes = b""

    @property
    def special(self) -> bool:
        """Whether entries are more than keys and values of bytes."""
        return bool(self.fields) or self.typed

    @property
    def typed(self) -> bool:
        """Whether the map is a SharedDict."""
        return bool(without_dtypes(self.schema))

    @property
    def timed(self) -> bool:
        """Whether entries have deadlines."""
        return any(kind == Timer.kind for kind, _ in self.fields)

    @property
    def kptrs(self) -> int:
        """How many objects an entry has besides key and value; for a SharedDict none."""
        return 0 if self.typed else sum(kind == Kptr.kind for kind, _ in self.fields)


@dataclass(frozen=True)
class Chunk:
    """Some entries: their keys, joined, and their values, joined."""

    keys: bytes
    values: bytes
    count: int

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        if self.count:
            key_size, value_size = len(self.keys) // self.count, len(self.values) // self.count
            for number in range(self.count):
                yield (
                    self.keys[number * key_size : (number + 1) * key_size],
                    self.values[number * value_size : (number + 1) * value_size],
                )


@dataclass(frozen=True)
class Batch:
    """Some entries with all their parts. Deadlines: nanoseconds since the epoch, 0 for none."""

    entries: list[tuple[bytes, bytes, Extra]]

    @property
    def count(self) -> int:
        return len(self.entries)


Chunks = Iterable[Chunk | Batch]


def chunk_entries(key_size: int, value_size: int) -> int:
    """How many entries a chunk has: at most CHUNK_ENTRIES, and CHUNK_BYTES_MAX bytes."""
    return max(1, min(CHUNK_ENTRIES, CHUNK_BYTES_MAX // (key_size + value_size)))


def batches(entries: Iterable[tuple[bytes, bytes, Extra]]) -> Iterator[Batch]:
    """Entries in batches of at most CHUNK_ENTRIES, and about CHUNK_BYTES_MAX."""
    gathered: list[tuple[bytes, bytes, Extra]] = []
    size = 0
    for entry in entries:
        key, value, extra = entry
        size += ENTRY_BYTES + len(key) + len(value) + sum(map(len, filter(None, extra.objects)))
        gathered.append(entry)
        if size >= CHUNK_BYTES_MAX or len(gathered) == CHUNK_ENTRIES:
            yield Batch(gathered)
            gathered, size = [], 0
    if gathered:
        yield Batch(gathered)


# ---- CSV ----


def write_csv(file: BinaryIO, geometry: Geometry, chunks: Iterable[Chunk], pair: Pair) -> None:
    """Comma-separated lines under the heading key,value."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "value"])
    key_cell, value_cell = _cell_maker(pair.key), _cell_maker(pair.value)
    for chunk in chunks:
        writer.writerows((key_cell(key), value_cell(value)) for key, value in chunk)
    text.detach()


def _cell_maker(wanted: Format) -> Callable[[bytes], Any]:
    """to_json(), or the text of it: several fields become that of a list."""
    if wanted.cell_is_json:
        return lambda data: json.dumps(wanted.to_json(data))
    return wanted.to_json


def read_csv(file: BinaryIO, pair: Pair) -> Iterator[Chunk]:
    """Chunks from comma-separated lines; the first may be the heading."""
    lists = [side.cell_is_json for side in (pair.key, pair.value)]

    def entries() -> Iterator[tuple[int, Any, Any]]:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:  # a cell that is too long
                message = f"line {reader.line_num} is not CSV: {error}"
                raise Failure(message, STATUS_DAMAGED) from None
            if row is None:
                return
            if not row or (reader.line_num == 1 and row == ["key", "value"]):
                continue
            try:
                key, value = (
                    json.loads(cell) if is_list else cell
                    for cell, is_list in zip(row, lists, strict=True)
                )
            except (ValueError, RecursionError):
                message = f"line {reader.line_num} does not have two cells, key and value"
                raise Failure(message, STATUS_DAMAGED) from None
            yield reader.line_num, key, value

    return gathered(entries(), pair)


def gathered(entries: Iterable[tuple[int, Any, Any]], pair: Pair) -> Iterator[Chunk]:
    """Chunks of entries as people write them. Raises Failure, with the line of a wrong entry."""
    largest = chunk_entries(pair.key.size, pair.value.size)
    keys, values = bytearray(), bytearray()
    count = 0
    for number, key, value in entries:
        try:
            keys += pair.key.from_json(key, "key")
            values += pair.value.from_json(value, "value")
        except Failure as error:
            raise Failure(f"line {number}: {error}", STATUS_DAMAGED) from None
        count += 1
        if count == largest:
            yield Chunk(bytes(keys), bytes(values), count)
            keys, values = bytearray(), bytearray()
            count = 0
    if count:
        yield Chunk(bytes(keys), bytes(values), count)


# ---- npz ----

NPZ_NUMBERS = {"max_entries": 0, "map_flags": 1, "map_extra": 0}
NPZ_ERRORS = (
    *(ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, MemoryError),
    *(NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile),
)


def write_npz(file: BinaryIO, geometry: Geometry, chunks: Iterable[Chunk], pair: Pair) -> None:
    """Two arrays, keys and values, and the limits of the map."""
    need("numpy")
    import numpy as np

    keys, values = bytearray(), bytearray()
    for chunk in chunks:
        keys += chunk.keys
        values += chunk.values
    np.savez(
        file,
        keys=np.frombuffer(keys, dtype=f"V{geometry.key_size}"),
        values=np.frombuffer(values, dtype=f"V{geometry.value_size}"),
        max_entries=np.uint64(geometry.max_entries),
        map_flags=np.uint32(geometry.map_flags),
        map_extra=np.uint32(geometry.map_extra),
        name=np.array(geometry.name),
    )


def read_npz(file: BinaryIO) -> tuple[Geometry, Iterator[Chunk]]:
    """The entries of an .npz, and the limits of the map if the file has them."""
    need("numpy")
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            keys = np.ascontiguousarray(arrays["keys"])
            values = np.ascontiguousarray(arrays["values"])
            rest = {name: arrays[name] for name in arrays.files if name not in ("keys", "values")}
        numbers = {name: int(rest.get(name, said)) for name, said in NPZ_NUMBERS.items()}
    except NPZ_ERRORS as error:
        raise Failure(
            f"this is not an .npz with arrays keys and values: {error}", STATUS_DAMAGED
        ) from None
    count = len(keys) if keys.ndim else 0
    if not count or values.ndim == 0 or len(values) != count:
        key_size, value_size = keys.itemsize, values.itemsize
        if count or (values.ndim and len(values)):
            raise Failure("the numbers of keys and values differ", STATUS_DAMAGED)
    else:
        key_size, value_size = keys.nbytes // count, values.nbytes // count
    if count and not (key_size and value_size):
        raise Failure("keys or values have 0 bytes", STATUS_DAMAGED)
    geometry = Geometry(
        str(rest.get("name", "")),
        key_size,
        value_size,
        numbers["max_entries"],
        numbers["map_flags"],
        numbers["map_extra"],
        entries=count,
    )

    def chunks() -> Iterator[Chunk]:
        step = chunk_entries(key_size, value_size)
        for start in range(0, count, step):
            part = slice(start, start + step)
            yield Chunk(keys[part].tobytes(), values[part].tobytes(), len(keys[part]))

    return geometry, chunks()
