"""Whole maps between memory and files: how a map was, all that is in it, and putting it back."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import shmrhash
from shmrhash import BPF_ANY, BPF_F_RDONLY, BPF_F_WRONLY, BPF_NOEXIST, RHashMap, _core
from shmrhash._fields import unpacked
from shmrhash.cli.entries.contents import Plain
from shmrhash.cli.entries.layouts import NEVER_NS, Extra, fitting_types
from shmrhash.cli.files.tables import NOT_SAID, Batch, Chunk, Geometry, batches, chunk_entries
from shmrhash.cli.words import STATUS_DAMAGED, STATUS_MISSING, Failure


def geometry_of(contents: Plain) -> Geometry:
    """How a map is. A schema that cannot be read is left out: nothing could be made of it."""
    shared_map = contents.map
    info = shared_map.info()
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
        shared_map._fields(),
        b"" if contents.types is None else shared_map.schema,
    )


def chunks_of(contents: Plain, done: Callable[[int], Any]) -> Iterator[Chunk | Batch]:
    """All entries of a map; those that stay throughout come exactly once."""
    if contents.map._fields():
        for batch in batches(_on_the_wall(contents)):
            yield batch
            done(batch.count)
        return
    shared_map = contents.map
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


def _on_the_wall(contents: Plain) -> Iterator[tuple[bytes, bytes, Extra]]:
    """Every entry, its deadline by the clock on the wall."""
    ahead_ns = time.time_ns() - _core.clock_monotonic_ns()
    for key, value, extra in contents.items():
        assert extra is not None
        timed = extra.deadline_ns not in (0, NEVER_NS)
        yield key, value, extra._replace(deadline_ns=extra.deadline_ns + ahead_ns if timed else 0)


# ---- putting it back ----


def create_map(geometry: Geometry, name: str, timeout: float | None) -> RHashMap:
    """A new map like that one, its owner's alone.

    Raises LayoutMismatch (what the file says does not fit together), and what create() raises.
    """
    sizes = geometry.key_size, geometry.value_size
    fitting_types(geometry.schema, list(geometry.fields), *sizes, name)
    return RHashMap.create(
        name,
        key_size=geometry.key_size,
        value_size=geometry.value_size,
        max_entries=geometry.max_entries,
        map_flags=geometry.map_flags & ~(BPF_F_RDONLY | BPF_F_WRONLY),  # of its creator's handle
        map_extra=min(geometry.map_extra, geometry.max_entries),
        timeout=timeout,
        fields=unpacked(geometry.fields),
        _schema=geometry.schema,
        max_bytes=geometry.max_bytes or None,
    )


def expect_like(found: RHashMap, geometry: Geometry, says_how: bool) -> None:
    """Failure unless the entries of a file fit into a map. says_how: the file says how its was."""
    same_fields = geometry.fields == found._fields()
    if says_how and not (same_fields and _record(geometry.schema) == _record(found.schema)):
        raise Failure(
            f"the file has entries of {_described(geometry.schema)}, map {found.name!r} is of "
            f"{_described(found.schema)}" + ("" if same_fields else ", with other special fields")
        )
    sizes = (geometry.key_size or found.key_size, geometry.value_size or found.value_size)
    if sizes != (found.key_size, found.value_size):
        raise Failure(
            f"the entries of the file have {sizes[0]} + {sizes[1]} bytes, those of map "
            f"{found.name!r} have {found.key_size} + {found.value_size}"
        )


def _record(schema: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(schema)
    return schema


def _described(schema: bytes) -> str:
    record = _record(schema)
    if not isinstance(record, dict):
        return "bytes to bytes, no SharedDict"
    return " to ".join(json.dumps(record.get(role)) for role in ("key", "value"))


def missing(name: str) -> Failure:
    """There is no such map, and nobody said how to make it."""
    return Failure(
        f"no map {name!r}, and the file does not say how to make it: give --entries, --key-size "
        f"and --value-size, or create it first",
        STATUS_MISSING,
    )


class Store:
    """Puts chunks into a map; counts what it leaves out because its time is over."""

    def __init__(self, contents: Plain, keep: bool) -> None:
        self.expired = 0
        self._contents = contents
        self._keep = keep

    def put(self, chunks: Iterable[Chunk | Batch], done: Callable[[int], Any]) -> None:
        """Store all; with keep, leave keys that are there as they are."""
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
        ahead_ns = time.time_ns() - _core.clock_monotonic_ns()
        count = 0
        try:
            for key, value, extra in batch.entries:
                deadline_ns = NEVER_NS
                if extra.deadline_ns == NOT_SAID:
                    deadline_ns = 0
                elif extra.deadline_ns:
                    deadline_ns = min(extra.deadline_ns - ahead_ns, NEVER_NS)
                    if deadline_ns <= _core.clock_monotonic_ns():
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
