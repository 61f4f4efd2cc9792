"""Segments of dicts: made with a schema, compared with what was wanted, removed if forgotten."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import Any

from shmrhash import _segment
from shmrhash._errors import Error, LayoutMismatch
from shmrhash._map import RHashMap
from shmrhash._schema import Schema, read_schema, restore_schema

MAX_ENTRIES = 1 << 20
ANONYMOUS_PREFIX = "shmrhash-anonymous-"

SWEEP_PAUSE = 100  # looking at what others left takes a hundredth of the time at the most

next_sweep: dict[str, float] = {}  # when remove_abandoned is due again, for each directory

Limits = tuple[int | None, int | None]  # max_entries, max_bytes; None: not given


def create_segment(name: str, schema: Schema, limits: Limits, **options: Any) -> RHashMap:
    max_entries, max_bytes = limits
    if schema.has_objects:
        options["max_bytes"] = max_bytes
    return RHashMap.create(
        name,
        key_size=schema.key.size,
        value_size=schema.value_size,
        max_entries=MAX_ENTRIES if max_entries is None else max_entries,
        fields=schema.fields,
        _schema=schema.to_bytes(),
        **options,
    )


def create_anonymous(schema: Schema, limits: Limits, **options: Any) -> RHashMap:
    began = time.monotonic()
    if began >= next_sweep.get(_segment.directory(), 0.0):
        remove_abandoned()
        spent = time.monotonic() - began
        next_sweep[_segment.directory()] = began + spent * SWEEP_PAUSE
    name = f"{ANONYMOUS_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    return create_segment(name, schema, limits, ephemeral=True, **options)


def remove_abandoned() -> None:
    """Remove the names of anonymous dicts all of whose processes were killed."""
    for entry in os.scandir(_segment.directory()):
        if entry.name.startswith(ANONYMOUS_PREFIX):
            with contextlib.suppress(Error, OSError):  # another user's, or just removed
                os.close(_segment.open_file(entry.name, entry.path, read_only=False, owner=None))
                _segment.remove_name(entry.path, unheld=True)


def expect_types(handle: RHashMap, schema: Schema, limits: Limits) -> None:
    """Compare what was found with what was wanted; close the handle if it is something else."""
    try:
        record = read_schema(handle.schema, handle.name)
        found = restore_schema(record, handle.name, schema.key.declared, schema.value.declared)
        if found.ttl != schema.ttl:
            raise LayoutMismatch(
                f"segment {handle.name!r} has ttl={found.ttl}, opened with ttl={schema.ttl}"
            )
        if limits[0] not in (None, handle.max_entries):
            raise LayoutMismatch(
                f"segment {handle.name!r} has max_entries={handle.max_entries}, opened with "
                f"{limits[0]}; open() takes it as it is"
            )
    except BaseException:
        handle.close()
        raise
