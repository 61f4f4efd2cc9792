"""The files of export and import: snapshot, NDJSON, CSV, NumPy's .npz.

Entries travel in chunks: keys and values of some thousand entries, each run together. Only the
snapshot and .npz say of which sizes the map was.

A snapshot is a head of 256 bytes and chunks, each with a checksum, and a last chunk of no entries
that says how many there were: a file that ends early is known for what it is.

    head   "SHMRSNP1"  key_size u32  value_size u32  map_flags u32  map_extra u32
           max_entries u64  created_ns u64  entries u64 (about)  name 200 bytes  0 u32  crc32 u32
    chunk  "CHNK"  crc32 u32  count u64  keys  values
    end    "DONE"  0 u32      total u64
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from shmrhash.cli.base import need
from shmrhash.cli.formats import Format, Pair, Record
from shmrhash.cli.tokens import STATUS_DAMAGED, Failure

CHUNK_ENTRIES = 1 << 16
CHUNK_BYTES_MAX = 64 << 20
HEAD = struct.Struct("<8sIIIIQQQ200s4xI")
CHUNK = struct.Struct("<4sIQ")
MAGIC = b"SHMRSNP1"
CHUNK_TAG = b"CHNK"
END_TAG = b"DONE"

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
    """What a map was like."""

    name: str
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int = 1
    map_extra: int = 0
    created_ns: int = 0
    entries: int = 0


@dataclass(frozen=True)
class Chunk:
    """Some entries: keys run together, values run together."""

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


Chunks = Iterable[Chunk]


def chunk_entries(key_size: int, value_size: int) -> int:
    """How many entries make a chunk that is worth its head and not too large."""
    return max(1, min(CHUNK_ENTRIES, CHUNK_BYTES_MAX // (key_size + value_size)))


# ---- snapshot ----


def write_snapshot(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """Write a snapshot."""
    name = geometry.name.encode("utf-8", "surrogateescape")
    fields = (
        MAGIC,
        geometry.key_size,
        geometry.value_size,
        geometry.map_flags,
        geometry.map_extra,
        geometry.max_entries,
        geometry.created_ns,
        geometry.entries,
        name,
    )
    head = HEAD.pack(*fields, 0)[:-4]
    file.write(head + struct.pack("<I", zlib.crc32(head)))
    total = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk.values, zlib.crc32(chunk.keys))
        file.write(CHUNK.pack(CHUNK_TAG, crc, chunk.count))
        file.write(chunk.keys)
        file.write(chunk.values)
        total += chunk.count
    file.write(CHUNK.pack(END_TAG, 0, total))


def read_snapshot_head(file: BinaryIO) -> Geometry:
    """What the map of a snapshot was like."""
    data = file.read(HEAD.size)
    if len(data) < HEAD.size or not data.startswith(MAGIC):
        raise Failure("this is no snapshot of shmrhash", STATUS_DAMAGED)
    _, key_size, value_size, flags, extra, limit, created, entries, name, crc = HEAD.unpack(data)
    if zlib.crc32(data[:-4]) != crc:
        raise Failure("the head of the snapshot is damaged", STATUS_DAMAGED)
    text = name.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return Geometry(text, key_size, value_size, limit, flags, extra, created, entries)


def read_snapshot(file: BinaryIO, geometry: Geometry) -> Iterator[Chunk]:
    """The chunks behind the head. Failure where the file is damaged or ends early."""
    total = 0
    largest = chunk_entries(geometry.key_size, geometry.value_size)
    while True:
        head = file.read(CHUNK.size)
        tag, crc, count = CHUNK.unpack(head) if len(head) == CHUNK.size else (b"", 0, 0)
        if tag == END_TAG and count == total:
            return
        if tag != CHUNK_TAG or not 0 < count <= largest:
            break
        keys = file.read(count * geometry.key_size)
        values = file.read(count * geometry.value_size)
        whole = len(values) == count * geometry.value_size
        if not whole or zlib.crc32(values, zlib.crc32(keys)) != crc:
            break
        total += count
        yield Chunk(keys, values, count)
    raise Failure(
        f"the snapshot is damaged or ends early, behind {total:,} entries that are good",
        STATUS_DAMAGED,
    )


# ---- lines ----


def write_ndjson(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """One JSON object for each entry, on a line of its own."""
    key_json, value_json = pair.key_json, pair.value_json
    for chunk in chunks:
        lines = (f'{{"key":{key_json(key)},"value":{value_json(value)}}}\n' for key, value in chunk)
        file.write("".join(lines).encode())


def read_ndjson(file: BinaryIO, pair: Pair) -> Iterator[Chunk]:
    """Chunks from lines of JSON objects with "key" and "value"."""

    def entries() -> Iterator[tuple[int, Any, Any]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                yield number, entry["key"], entry["value"]
            except (ValueError, KeyError, TypeError):
                raise Failure(
                    f'line {number} is no JSON object with "key" and "value"', STATUS_DAMAGED
                ) from None

    return _gathered(entries(), pair)


def write_csv(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """Comma-separated lines under the heading key,value."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "value"])
    key_cell, value_cell = _cell_maker(pair.key), _cell_maker(pair.value)
    for chunk in chunks:
        writer.writerows((key_cell(key), value_cell(value)) for key, value in chunk)
    text.detach()


def _cell_maker(wanted: Format) -> Callable[[bytes], Any]:
    """plain(), but several fields as a list in JSON."""
    if isinstance(wanted, Record) and len(wanted.converters) > 1:
        return lambda data: json.dumps(wanted.plain(data))
    return wanted.plain


def read_csv(file: BinaryIO, pair: Pair) -> Iterator[Chunk]:
    """Chunks from comma-separated lines; the first may be the heading."""
    lists = [
        isinstance(side, Record) and len(side.converters) > 1 for side in (pair.key, pair.value)
    ]

    def entries() -> Iterator[tuple[int, Any, Any]]:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
        for row in reader:
            if not row or (reader.line_num == 1 and row == ["key", "value"]):
                continue
            try:
                key, value = (
                    json.loads(cell) if is_list else cell
                    for cell, is_list in zip(row, lists, strict=True)
                )
            except ValueError:
                message = f"line {reader.line_num} is not two cells, key and value"
                raise Failure(message, STATUS_DAMAGED) from None
            yield reader.line_num, key, value

    return _gathered(entries(), pair)


def _gathered(entries: Iterable[tuple[int, Any, Any]], pair: Pair) -> Iterator[Chunk]:
    """Entries as people write them, run together into chunks."""
    largest = chunk_entries(pair.key.size, pair.value.size)
    keys, values = bytearray(), bytearray()
    count = 0
    for number, key, value in entries:
        try:
            keys += pair.key.parse(key, "key")
            values += pair.value.parse(value, "value")
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


def write_npz(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """Two arrays, keys and values, and what the map was like."""
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
    """The arrays of an .npz; what the map was like, if they say so."""
    need("numpy")
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            keys = np.ascontiguousarray(arrays["keys"])
            values = np.ascontiguousarray(arrays["values"])
            rest = {name: arrays[name] for name in arrays.files if name not in ("keys", "values")}
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise Failure(
            f"this is no .npz with arrays keys and values: {error}", STATUS_DAMAGED
        ) from None
    count = len(keys) if keys.ndim else 0
    if not count or values.ndim == 0 or len(values) != count:
        key_size, value_size = keys.itemsize, values.itemsize
        if count or (values.ndim and len(values)):
            raise Failure("keys and values are not equally many", STATUS_DAMAGED)
    else:
        key_size, value_size = keys.nbytes // count, values.nbytes // count
    geometry = Geometry(
        str(rest.get("name", "")),
        key_size,
        value_size,
        int(rest.get("max_entries", 0)),
        int(rest.get("map_flags", 1)),
        int(rest.get("map_extra", 0)),
        entries=count,
    )

    def chunks() -> Iterator[Chunk]:
        step = chunk_entries(key_size, value_size)
        for start in range(0, count, step):
            part = slice(start, start + step)
            yield Chunk(keys[part].tobytes(), values[part].tobytes(), len(keys[part]))

    return geometry, chunks()


WRITERS: dict[str, Callable[[BinaryIO, Geometry, Chunks, Pair], None]] = {
    "snapshot": write_snapshot,
    "ndjson": write_ndjson,
    "csv": write_csv,
    "npz": write_npz,
}
READERS: dict[str, Callable[[BinaryIO, Pair], Iterator[Chunk]]] = {
    "ndjson": read_ndjson,
    "csv": read_csv,
}
