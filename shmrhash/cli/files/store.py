"""Whole maps: reading all entries of a map, and storing the entries of a file into a map."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import shmrhash
from shmrhash import BPF_ANY, BPF_F_RDONLY, BPF_F_WRONLY, BPF_NOEXIST, RHashMap, _inspect
from shmrhash._inspect import (
    NEVER_NS,
    Extra,
    check_schema,
    clock_ns,
    read_chunk,
    without_dtypes,
)
from shmrhash.cli.entries.contents import Plain
from shmrhash.cli.errors import STATUS_DAMAGED, STATUS_MISSING, Failure
from shmrhash.cli.files.tables import NOT_SAID, Batch, Chunk, Geometry, batches, chunk_entries


def geometry_of(contents: Plain) -> Geometry:
    """The geometry of a map, without its schema if the schema cannot be read."""
    shared_map = contents.map
    info = shared_map.info()
    schema = shared_map.schema
    return Geometry(
        shared_map.name,
        info["key_size"],
        info["value_size"],
        info["max_entries"],
        info["map_flags"],
        info["map_extra"],
        info["created_ns"],
        info["entries"],
        shared_map.max_bytes,
        _inspect.field_pairs(shared_map),
        schema if contents.types is not None or not without_dtypes(schema) else b"",
    )


def chunks_of(contents: Plain, done: Callable[[int], Any]) -> Iterator[Chunk | Batch]:
    """All entries of a map; those that stay during the walk come exactly once."""
    shared_map = contents.map
    if _inspect.field_pairs(shared_map):
        for batch in batches(_with_wall_clock(contents)):
            yield batch
            done(batch.count)
        return
    largest = chunk_entries(shared_map.key_size, shared_map.value_size)
    step = min(largest, len(shared_map) + 64)
    cursor = None
    while True:
        keys, values, count, cursor = read_chunk(shared_map, cursor, step)
        if count:
            yield Chunk(keys, values, count)
            done(count)
        if cursor is None:
            return


def _with_wall_clock(contents: Plain) -> Iterator[tuple[bytes, bytes, Extra]]:
    """Every entry, with its deadline by the wall clock."""
    ahead_ns = time.time_ns() - clock_ns()
    for key, value, extra in contents.items():
        assert extra is not None
        timed = extra.deadline_ns not in (0, NEVER_NS)
        yield key, value, extra._replace(deadline_ns=extra.deadline_ns + ahead_ns if timed else 0)


# ---- from files into maps ----


def create_map(geometry: Geometry, name: str, timeout: float | None) -> RHashMap:
    """A new map of this geometry, with permissions for its owner only.

    Raises LayoutMismatch (the parts of the geometry do not fit together), and what create() raises.
    """
    sizes = geometry.key_size, geometry.value_size
    check_schema(geometry.schema, geometry.fields, *sizes, name)
    return _inspect.create_map(
        name,
        geometry.fields,
        geometry.schema,
        key_size=geometry.key_size,
        value_size=geometry.value_size,
        max_entries=geometry.max_entries,
        map_flags=geometry.map_flags & ~(BPF_F_RDONLY | BPF_F_WRONLY),  # these concern a handle
        map_extra=min(geometry.map_extra, geometry.max_entries),
        timeout=timeout,
        max_bytes=geometry.max_bytes or None,
    )


def expect_like(found: RHashMap, geometry: Geometry, says_how: bool) -> None:
    """Raise Failure unless the entries of a file fit into a map.

    says_how: the file gives the types and fields of its map; those of found must be the same.
    """
    same_fields = geometry.fields == _inspect.field_pairs(found)
    if says_how and not (same_fields and _record(geometry.schema) == _record(found.schema)):
        raise Failure(
            f"the file has entries of {_described(geometry.schema)}, but map {found.name!r} has "
            f"{_described(found.schema)}" + ("" if same_fields else ", with other special fields")
        )
    sizes = (geometry.key_size or found.key_size, geometry.value_size or found.value_size)
    if sizes != (found.key_size, found.value_size):
        raise Failure(
            f"the entries of the file have {sizes[0]} + {sizes[1]} bytes, but those of map "
            f"{found.name!r} have {found.key_size} + {found.value_size}"
        )


def _record(schema: bytes) -> Any:
    schema = without_dtypes(schema)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(schema)
    return schema


def _described(schema: bytes) -> str:
    record = _record(schema)
    if not isinstance(record, dict):
        return "bytes to bytes (it is no SharedDict)"
    return " to ".join(json.dumps(record.get(role)) for role in ("key", "value"))


def missing(name: str) -> Failure:
    """The Failure if there is no such map, and neither file nor options say how to make it."""
    return Failure(
        f"no map {name!r}, and the file does not give its sizes: give --entries, --key-size "
        f"and --value-size, or create it first",
        STATUS_MISSING,
    )


class Store:
    """Stores chunks into a map; counts the expired entries, which it leaves out."""

    def __init__(self, contents: Plain, keep: bool) -> None:
        self.expired = 0
        self._contents = contents
        self._keep = keep

    def put(self, chunks: Iterable[Chunk | Batch], done: Callable[[int], Any]) -> None:
        """Store all entries; with keep, only those whose keys are not in the map."""
        for chunk in chunks:
            if isinstance(chunk, Batch):
                self._put_batch(chunk, done)
                continue
            try:
                if self._keep:
                    self._contents.map.update_many(chunk.keys, chunk.values, BPF_NOEXIST)
                else:
                    self._contents.map.update_batch(chunk.keys, chunk.values)
            except shmrhash.Error as error:
                done(getattr(error, "count", 0) or 0)
                raise
            done(chunk.count)

    def _put_batch(self, batch: Batch, done: Callable[[int], Any]) -> None:
        flag = BPF_NOEXIST if self._keep else BPF_ANY
        ahead_ns = time.time_ns() - clock_ns()
        count = 0
        try:
            for key, value, extra in batch.entries:
                deadline_ns = NEVER_NS
                if extra.deadline_ns == NOT_SAID:
                    deadline_ns = 0
                elif extra.deadline_ns:
                    deadline_ns = min(extra.deadline_ns - ahead_ns, NEVER_NS)
                    if deadline_ns <= clock_ns():
                        self.expired += 1
                        continue
                own = extra._replace(deadline_ns=deadline_ns)
                with contextlib.suppress(shmrhash.KeyExists):
                    self._contents.restore(key, value, own, flag)
                count += 1
        except shmrhash.InvalidArgument as error:
            raise Failure(f"an entry of the file does not fit: {error}", STATUS_DAMAGED) from None
        finally:
            done(count)
