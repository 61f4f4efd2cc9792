"""Memory for the keys, values and answers of a batch: NumPy arrays, or bytes without NumPy.

Rows that the core is to fill are NumPy arrays or bytearrays; delivered() makes of them what the
caller gets.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

from shmrhash._errors import InvalidArgument


@functools.cache  # a failed import searches the whole path
def numpy_or_none() -> Any:
    """The module numpy; None if it is not installed."""
    try:
        return importlib.import_module("numpy")
    except ModuleNotFoundError:
        return None


def new_rows(count: int, size: int, dtype: Any = None, *, zeroed: bool = False) -> Any:
    """Memory for count items of size bytes each.

    Raises InvalidArgument: dtype is given without NumPy, has objects, or has another size.
    """
    numpy = numpy_or_none()
    if numpy is None:
        if dtype is not None:
            raise InvalidArgument("a dtype needs NumPy: pip install 'shmrhash[numpy]'")
        return bytearray(count * size)
    wanted = numpy.dtype(f"V{size}" if dtype is None else dtype)
    if wanted.hasobject:
        raise InvalidArgument(f"dtype {wanted} has references to Python objects, not bytes")
    if wanted.itemsize != size:
        raise InvalidArgument(f"dtype {wanted} has {wanted.itemsize} bytes, but the map has {size}")
    return numpy.zeros(count, wanted) if zeroed else numpy.empty(count, wanted)


def new_mask(count: int) -> Any:
    """Memory for count answers, all False."""
    numpy = numpy_or_none()
    return bytearray(count) if numpy is None else numpy.zeros(count, bool)


def new_sums(count: int) -> Any:
    """Memory for count signed 8-byte integers."""
    return new_rows(count, 8, None if numpy_or_none() is None else "<i8")


def delivered(rows: Any) -> Any:
    """Rows as the caller gets them: the array itself, or bytes."""
    return bytes(rows) if isinstance(rows, bytearray) else rows


def first_rows(rows: Any, count: int, size: int) -> Any:
    """The first count rows, as the caller gets them; a copy if most of the memory is unused."""
    if isinstance(rows, bytearray):
        return bytes(memoryview(rows)[: count * size])
    if count == len(rows):
        return rows
    return rows[:count].copy() if count * 2 < len(rows) else rows[:count]


def joined(parts: list[Any]) -> Any:
    """Delivered rows, one after another."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], bytes):
        return b"".join(parts)
    return numpy_or_none().concatenate(parts)


def is_ndarray(rows: Any) -> bool:
    """Whether rows are a NumPy array."""
    numpy = numpy_or_none() if hasattr(rows, "dtype") else None
    return numpy is not None and isinstance(rows, numpy.ndarray)


def item_size(what: str, rows: Any) -> int:
    """Bytes of each item, or row, of an array that the caller gave as what.

    Raises TypeError (not an array), InvalidArgument (plain bytes, whose items could have any size).
    """
    if is_ndarray(rows) and rows.dtype != "u1":  # memoryview() refuses those with times
        size: int = rows.dtype.itemsize * math.prod(rows.shape[1:])
        return size
    try:
        with memoryview(rows) as view:
            shape = view.shape or ()
            if view.format == "B" and len(shape) < 2:
                raise InvalidArgument(f"{what} are plain bytes: give key_size and value_size")
            return view.itemsize * math.prod(shape[1:])
    except TypeError:
        raise TypeError(f"{what} must be an array, not {type(rows).__name__}") from None
