"""The snapshot: a map's entries as bytes, fast, with checksums.

A snapshot has a head of 256 bytes, chunks, each with a checksum, and an end with the number of
entries, so that a reader notices a file that ends early.

    head   "SHMRSNP1"  key_size u32  value_size u32  map_flags u32  map_extra u32
           max_entries u64  created_ns u64  entries u64 (about)  name 200 bytes  0 u32  crc32 u32
    chunk  "CHNK"  crc32 u32  count u64  keys  values
    end    "DONE"  0 u32      total u64

For a map with special fields or dtypes, or a SharedDict, the head begins with "SHMRSNP2". After it
comes a note, JSON of {"max_bytes", "fields", "schema" in base64}; with fields, batches replace the
chunks:

    note   length u32  crc32 u32  JSON
    batch  "BTCH"  crc32 u32  count u64  length u64  entries, of length bytes in all
    entry  deadline u64 (ns since the epoch, 0: none)  length u32 of each part  parts

The parts of an entry are its key, its value and, unless the map is a SharedDict, the objects of its
Kptr fields; a length of 2**32 - 1 means no object. Keys and values of a SharedDict are encoded
bytes.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from shmrhash._inspect import Extra
from shmrhash.cli.entries.formats import Pair
from shmrhash.cli.errors import STATUS_DAMAGED, Failure
from shmrhash.cli.files.tables import Batch, Chunk, Chunks, Geometry, chunk_entries

HEAD = struct.Struct("<8sIIIIQQQ200s4xI")
CHUNK = struct.Struct("<4sIQ")
NOTE = struct.Struct("<II")
LENGTH = struct.Struct("<Q")
MAGIC = b"SHMRSNP1"
MAGIC_SPECIAL = b"SHMRSNP2"
CHUNK_TAG = b"CHNK"
BATCH_TAG = b"BTCH"
END_TAG = b"DONE"
NOTE_BYTES_MAX = 1 << 14
BATCH_BYTES_MAX = 1 << 30  # the largest objects of one entry, and the rest of the batch
NO_OBJECT = (1 << 32) - 1


def write_snapshot(file: BinaryIO, geometry: Geometry, chunks: Chunks, pair: Pair) -> None:
    """Write a snapshot."""
    name = geometry.name.encode("utf-8", "surrogateescape")
    has_note = geometry.special or bool(geometry.schema)
    fields = (
        MAGIC_SPECIAL if has_note else MAGIC,
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
    if has_note:
        note = {"max_bytes": geometry.max_bytes, "fields": geometry.fields}
        data = json.dumps(note | {"schema": base64.b64encode(geometry.schema).decode()}).encode()
        file.write(NOTE.pack(len(data), zlib.crc32(data)) + data)
    total = 0
    for chunk in chunks:
        if isinstance(chunk, Chunk):
            crc = zlib.crc32(chunk.values, zlib.crc32(chunk.keys))
            file.write(CHUNK.pack(CHUNK_TAG, crc, chunk.count))
            file.write(chunk.keys)
            file.write(chunk.values)
        else:
            data = _packed(chunk, geometry)
            file.write(CHUNK.pack(BATCH_TAG, zlib.crc32(data), chunk.count))
            file.write(LENGTH.pack(len(data)))
            file.write(data)
        total += chunk.count
    file.write(CHUNK.pack(END_TAG, 0, total))


def _entry_head(geometry: Geometry) -> struct.Struct:
    """The head of an entry: a deadline, and the length of each part."""
    return struct.Struct(f"<Q{2 + geometry.kptrs}I")


def _packed(batch: Batch, geometry: Geometry) -> bytes:
    head = _entry_head(geometry)
    parts: list[bytes] = []
    for key, value, extra in batch.entries:
        objects = extra.objects if geometry.kptrs else ()
        lengths = [NO_OBJECT if data is None else len(data) for data in objects]
        parts.append(head.pack(extra.deadline_ns, len(key), len(value), *lengths))
        parts += [key, value, *filter(None, objects)]
    return b"".join(parts)


def read_snapshot_head(file: BinaryIO) -> Geometry:
    """The map that the head of a snapshot describes."""
    data = file.read(HEAD.size)
    if len(data) < HEAD.size or not data.startswith((MAGIC, MAGIC_SPECIAL)):
        raise Failure("this is not a snapshot of shmrhash", STATUS_DAMAGED)
    magic, key_size, value_size, flags, extra, limit, created, entries, name, crc = HEAD.unpack(
        data
    )
    if zlib.crc32(data[:-4]) != crc:
        raise Failure("the head of the snapshot is damaged", STATUS_DAMAGED)
    text = name.rstrip(b"\0").decode("utf-8", "surrogateescape")
    found = Geometry(text, key_size, value_size, limit, flags, extra, created, entries)
    return found if magic == MAGIC else _with_note(file, found)


def _with_note(file: BinaryIO, geometry: Geometry) -> Geometry:
    head = file.read(NOTE.size)
    length, crc = NOTE.unpack(head) if len(head) == NOTE.size else (NOTE_BYTES_MAX + 1, 0)
    data = file.read(length) if length <= NOTE_BYTES_MAX else b""
    try:
        if len(data) != length or zlib.crc32(data) != crc:
            raise ValueError("checksum")
        note = json.loads(data)
        fields = tuple((int(kind), int(offset)) for kind, offset in note["fields"])
        schema = base64.b64decode(note["schema"])
        return replace(geometry, max_bytes=int(note["max_bytes"]), fields=fields, schema=schema)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Failure("the head of the snapshot is damaged", STATUS_DAMAGED) from None


def read_snapshot(file: BinaryIO, geometry: Geometry) -> Iterator[Chunk | Batch]:
    """The chunks after the head. Raises Failure where the file is damaged or ends early."""
    total = 0
    while True:
        head = file.read(CHUNK.size)
        tag, crc, count = CHUNK.unpack(head) if len(head) == CHUNK.size else (b"", 0, 0)
        if tag == END_TAG and count == total:
            return
        read = _read_batch if geometry.fields else _read_chunk
        wanted = BATCH_TAG if geometry.fields else CHUNK_TAG
        chunk = read(file, geometry, crc, count) if tag == wanted else None
        if chunk is None:
            raise Failure(
                f"the snapshot is damaged or ends early, after {total:,} good entries",
                STATUS_DAMAGED,
            )
        total += count
        yield chunk


def _read_chunk(file: BinaryIO, geometry: Geometry, crc: int, count: int) -> Chunk | None:
    if not 0 < count <= chunk_entries(geometry.key_size, geometry.value_size):
        return None
    keys = file.read(count * geometry.key_size)
    values = file.read(count * geometry.value_size)
    whole = len(values) == count * geometry.value_size
    if not whole or zlib.crc32(values, zlib.crc32(keys)) != crc:
        return None
    return Chunk(keys, values, count)


def _read_batch(file: BinaryIO, geometry: Geometry, crc: int, count: int) -> Batch | None:
    head = file.read(LENGTH.size)
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else BATCH_BYTES_MAX + 1
    data = file.read(length) if length <= BATCH_BYTES_MAX else b""
    if len(data) != length or zlib.crc32(data) != crc:
        return None
    entry_head = _entry_head(geometry)
    entries: list[tuple[bytes, bytes, Extra]] = []
    at = 0
    while at + entry_head.size <= length:
        deadline_ns, *lengths = entry_head.unpack_from(data, at)
        at += entry_head.size
        parts: list[bytes | None] = []
        for size in lengths:
            parts.append(None if size == NO_OBJECT else data[at : at + size])
            at += 0 if size == NO_OBJECT else size
        key, value, *objects = parts
        if key is None or value is None:
            return None
        entries.append((key, value, Extra(deadline_ns, tuple(objects))))
    return Batch(entries) if at == length and len(entries) == count else None
