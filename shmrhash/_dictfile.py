"""Segments of dicts: creation with a schema, comparison with declared types, removal of names."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import Any

from shmrhash import _segment
from shmrhash._errors import Error, LayoutMismatch, PermissionDenied
from shmrhash._map import RHashMap
from shmrhash._schema import REMEDY, Schema, read_schema, restore_schema, with_ttl

MAX_ENTRIES = 1 << 20
PAGE_BYTES = 4096  # max_bytes are whole pages
ANONYMOUS_PREFIX = "shmrhash-anonymous-"
SWEEP_PAUSE = 100  # remove_abandoned takes at most about a hundredth of the time

next_sweep: dict[str, float] = {}  # for each directory: when remove_abandoned is due again

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
    name = f"{ANONYMOUS_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    began = time.monotonic()
    if began >= next_sweep.get(_segment.directory(), 0.0):
        remove_abandoned(name)
        spent = time.monotonic() - began
        next_sweep[_segment.directory()] = began + spent * SWEEP_PAUSE
    return create_segment(name, schema, limits, ephemeral=True, **options)


def remove_abandoned(name: str) -> None:
    """Remove the names of anonymous dicts all of whose processes were killed.

    name: that of the dict to be made, for the messages of exceptions.
    """
    for entry in _segment.entries(name):
        if entry.name.startswith(ANONYMOUS_PREFIX):
            with contextlib.suppress(Error, OSError):  # it is another user's, or was just removed
                os.close(_segment.open_file(entry.name, entry.path, read_only=False, owner=None))
                _segment.remove_name(entry.path, unheld=True)


def expect_types(handle: RHashMap, schema: Schema, limits: Limits) -> Schema:
    """Compare the types and limits of a map with the declared ones; return the handle's schema.

    Raises LayoutMismatch: they differ, or the map is no dict.
    """
    record = read_schema(handle.schema, handle.name)
    found = restore_schema(record, handle.name, schema.key.declared, schema.value.declared)
    found = with_ttl(found, handle.name, schema.ttl)
    if limits[0] not in (None, handle.max_entries):
        raise LayoutMismatch(
            f"segment {handle.name!r} has max_entries={handle.max_entries}, but was opened with "
            f"{limits[0]}; {REMEDY}"
        )
    if schema.has_objects and limits[1] is not None:
        wanted = -(-limits[1] // PAGE_BYTES) * PAGE_BYTES
        if handle.max_bytes != wanted:
            raise LayoutMismatch(
                f"segment {handle.name!r} has max_bytes={handle.max_bytes}, but was opened with "
                f"{limits[1]}; {REMEDY}"
            )
    return found


def remove_replaced(handle: RHashMap) -> bool:
    """Remove the name of a dict that is to be replaced; False: it is no dict, and keeps its name.

    Processes that found the same dict do this one after another, under a lock of its file. So none
    of them takes the name from the new dict that the first of them makes.

    Raises PermissionDenied: the directory does not let this user remove it.
    """
    try:
        read_schema(handle.schema, handle.name)
    except LayoutMismatch:
        return False
    status = os.fstat(handle._descriptor())
    try:
        _segment.remove_name(handle._path, (status.st_dev, status.st_ino))
    except PermissionError as error:
        raise PermissionDenied(f"segment {handle.name!r} cannot be replaced: {error}") from None
    return True
