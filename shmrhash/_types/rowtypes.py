"""The dtypes of a map's rows, kept in its segment: what RHashMap.from_arrays() stores as schema.

    {"v": 1, "kind": "arrays", "key": dtype, "value": dtype}

A dtype is as in records.py. It is left out if the rows have none, or only bytes (V<size>), or if
NumPy's own format of files could not give it back, or if there is no room for it.
"""

from __future__ import annotations

import functools
import json
from typing import Any, TypeGuard

from shmrhash import _core
from shmrhash._rows import is_ndarray, numpy_or_none
from shmrhash._types.arrays import dtype_of_record, dtype_record
from shmrhash._types.codec import Role

VERSION = 1
KIND = "arrays"
_ROLES: tuple[Role, Role] = ("key", "value")
_SCHEMAS_KNOWN = 64

# What NumPy and json raise for text that no version of this library writes.
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, SyntaxError),
    *(OverflowError, MemoryError, RecursionError),
)

Dtypes = tuple[Any, Any]  # of keys and of values; None: not kept


def schema_of_rows(rows: tuple[Any, Any], sizes: tuple[int, int]) -> bytes:
    """The schema with the dtypes of these keys and values; empty if none can be kept."""
    records = dict(zip(_ROLES, map(_record_of, rows, sizes), strict=True))
    kept = {role: record for role, record in records.items() if record is not None}
    while kept:
        record: dict[str, Any] = {"v": VERSION, "kind": KIND}
        data = json.dumps(record | kept, separators=(",", ":")).encode()
        if len(data) <= _core.SCHEMA_BYTES_MAX:
            return data
        del kept[max(kept, key=lambda role: len(json.dumps(kept[role])))]
    return b""


def _record_of(rows: Any, size: int) -> Any:
    """The dtype of each row as JSON; None if there is none to keep."""
    if not is_ndarray(rows):
        return None
    np = numpy_or_none()
    dtype = np.dtype((rows.dtype, rows.shape[1:]))
    if dtype == np.dtype(f"V{size}"):
        return None
    try:
        record = dtype_record(dtype)
        as_read = json.loads(json.dumps(record))
    except (ValueError, TypeError):  # fields that overlap, for example
        return None
    return record if _dtype(as_read, size) == dtype else None


def _dtype(record: Any, size: int) -> Any:
    """The dtype that a record names, which may be any JSON; None if it is none of this size."""
    try:
        dtype = dtype_of_record(record)
    except _UNREADABLE:
        return None
    return dtype if dtype.itemsize == size and not dtype.hasobject else None


def _is_of_rows(record: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(record, dict) and record.get("kind") == KIND


@functools.lru_cache(_SCHEMAS_KNOWN)
def dtypes_of(schema: bytes, key_size: int, value_size: int) -> Dtypes:
    """The dtypes that a schema keeps; None for each that it does not, or that cannot be read."""
    record = _read(schema)
    if not _is_of_rows(record) or record.get("v") != VERSION or numpy_or_none() is None:
        return None, None
    key, value = (
        _dtype(record[role], size) if role in record else None
        for role, size in zip(_ROLES, (key_size, value_size), strict=True)
    )
    return key, value


def records_of(schema: bytes) -> tuple[Any, Any]:
    """The records of dtypes that a schema keeps, which may be any JSON; None for each that it does
    not."""
    record = _read(schema) if schema else None
    if not _is_of_rows(record) or record.get("v") != VERSION:
        return None, None
    return record.get("key"), record.get("value")


def without_dtypes(schema: bytes) -> bytes:
    """A schema that says what the entries are; empty if it keeps nothing but dtypes."""
    return b"" if schema and _is_of_rows(_read(schema)) else schema


def _read(schema: bytes) -> Any:
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        return None
