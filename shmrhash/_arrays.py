"""NumPy's types as keys and values. Imported only when one is declared: NumPy may be absent."""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING, Any

from shmrhash import _core
from shmrhash._codec import Codec, Role
from shmrhash._errors import InvalidArgument, SegmentCorrupt

try:
    import numpy as np
    from numpy.lib.format import descr_to_dtype, dtype_to_descr
except ImportError:
    raise ImportError(
        "NumPy's types need NumPy, which is not installed: pip install 'shmrhash[numpy]'"
    ) from None

if TYPE_CHECKING:
    from shmrhash._types import Array

_WORD_BYTES = 8
_DIMENSIONS_MAX = 64


def plain_dtype(dtype: Any) -> Any:
    """dtype as a numpy.dtype, if its items are plain bytes.

    Raises TypeError, InvalidArgument.
    """
    found = np.dtype(dtype)
    if found.hasobject:
        raise InvalidArgument(f"the dtype {found} has Python objects, which cannot be shared")
    if not found.itemsize:
        raise InvalidArgument(f"the dtype {found} has no size; give one, as in 'U10'")
    return found


def plain_shape(shape: Any) -> tuple[int, ...]:
    """The sizes of all dimensions, from a tuple, or from a number for one dimension."""
    sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
    return tuple(index(size) for size in sizes)


def dtype_record(dtype: Any) -> Any:
    """A dtype as JSON: its name with the byte order, or its fields."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": dtype_record(base), "shape": list(shape)}
    return _listed(dtype_to_descr(dtype))


def _listed(descr: Any) -> Any:
    return [_listed(part) for part in descr] if isinstance(descr, (list, tuple)) else descr


def dtype_of_record(record: Any) -> Any:
    """The dtype that a record names."""
    if isinstance(record, dict):
        return np.dtype((dtype_of_record(record["base"]), tuple(record["shape"])))
    return descr_to_dtype(_described(record))


def _described(record: Any) -> Any:
    """Lists from JSON as the lists and tuples that NumPy takes."""
    if isinstance(record, str):
        return record
    fields = []
    for title, kind, *shape in record:
        name = tuple(title) if isinstance(title, list) else title
        fields.append((name, _described(kind), *(tuple(sizes) for sizes in shape)))
    return fields


def _converted(thing: Any, dtype: Any, what: str) -> Any:
    """thing as an array of that dtype, if NumPy allows the conversion as "same_kind"."""
    given = np.asarray(thing)
    if given.dtype == dtype:
        return given
    if dtype.names is not None:
        if given.dtype.names is None and isinstance(thing, (tuple, list)):
            return np.array(thing, dtype)
        raise TypeError(f"{what}, not {given.dtype if given.dtype.names else type(thing).__name__}")
    if given.dtype.names is not None or not np.can_cast(given.dtype, dtype, "same_kind"):
        raise TypeError(f"{what}, not {type(thing).__name__} of the dtype {given.dtype}")
    fresh = given.astype(dtype)
    if dtype.kind in "iuSU" and not np.array_equal(fresh, given):
        raise OverflowError(f"{what}: {thing!r:.80} does not fit")
    return fresh


def _padded(dtype: Any) -> bool:
    """Whether some byte of an item belongs to no field."""
    if dtype.subdtype is not None:
        return _padded(dtype.subdtype[0])
    if dtype.names is None:
        return False
    parts = [dtype.fields[name][0] for name in dtype.names]
    return sum(part.itemsize for part in parts) < dtype.itemsize or any(map(_padded, parts))


def dtype_codec(declared: Any, role: Role) -> Codec:
    """A dtype, inline: a NumPy number, a record, or an array if the dtype has a subarray's shape.

    Decoded things are copies; decoded records and arrays may be changed.
    """
    dtype = plain_dtype(declared)
    if role == "key" and _padded(dtype):
        raise InvalidArgument(
            f"the dtype {dtype} has unused bytes, so equal keys could differ; "
            f"numpy.lib.recfunctions.repack_fields removes them"
        )
    item, shape = dtype.subdtype or (dtype, ())
    if role == "key" and shape:
        raise InvalidArgument(f"the dtype {dtype} is an array, which has no hash")
    size = dtype.itemsize
    room = size if role == "key" else -(-size // _WORD_BYTES) * _WORD_BYTES
    padding = bytes(room - size)
    kind = _core.KEY_FIXED if role == "key" else _core.VALUE_FIXED
    what = f"{role} must be of the dtype {dtype}"
    signed_zero = role == "key" and item.kind in "fc"

    def encode(thing: Any) -> bytes:
        array = _converted(thing, item, what)
        if array.shape != shape:
            raise TypeError(f"{what}, not of the shape {array.shape}")
        if signed_zero:  # -0.0 and 0.0 are one key
            array = array + item.type(0)
        return bytes(array.tobytes() + padding)

    def decode(data: bytes) -> Any:
        if role == "key":  # a scalar that cannot be changed, so it has a hash
            return np.ndarray((), item, data)[()]
        array = np.ndarray(shape, item, bytearray(data))
        return array if shape else array[()]

    return Codec(declared, {"numpy": dtype_record(dtype)}, kind, room, False, encode, decode)


def array_codec(declared: Array) -> Codec:
    """Arrays by reference. Stored are the data and, if the shape is not declared, a trailer.

    The trailer stands after the data, at a multiple of 8: the size of each dimension, then the
    number of dimensions, 8 bytes each. The data is at the object's start, so it is aligned as
    objects are.
    """
    dtype = declared.dtype
    wanted = declared.shape
    what = f"value must be an array of {dtype}"

    def encode(thing: Any) -> Any:
        array = _converted(thing, dtype, what)
        if wanted is None:
            return _with_trailer(array)
        if array.shape != wanted:
            raise TypeError(f"{what} of the shape {wanted}, not {array.shape}")
        flat: Any = np.ascontiguousarray(array).reshape(-1)
        return memoryview(flat.view(np.uint8))

    def decode(view: memoryview) -> Any:
        shape = _trailer_shape(view, dtype.itemsize) if wanted is None else wanted
        if math.prod(shape) * dtype.itemsize > view.nbytes:
            raise SegmentCorrupt(f"an array of {view.nbytes} bytes claims the shape {shape}")
        return np.ndarray(shape, dtype, view)

    record = {
        "array": dtype_record(dtype),
        "shape": None if wanted is None else list(wanted),
    }
    return Codec(declared, record, _core.VALUE_VIEW, _WORD_BYTES, True, encode, decode)


def _with_trailer(array: Any) -> bytearray:
    size = -(-array.nbytes // _WORD_BYTES) * _WORD_BYTES
    whole = bytearray(size + (array.ndim + 1) * _WORD_BYTES)
    np.ndarray(array.shape, array.dtype, whole)[...] = array
    trailer = np.ndarray(array.ndim + 1, "<u8", whole, size)
    trailer[:-1] = array.shape
    trailer[-1] = array.ndim
    return whole


def _trailer_shape(view: memoryview, itemsize: int) -> tuple[int, ...]:
    """The shape that the trailer gives, if it agrees with the number of bytes."""
    words = view.nbytes // _WORD_BYTES
    count = int.from_bytes(view[-_WORD_BYTES:], "little")
    if words and not view.nbytes % _WORD_BYTES and count <= min(words - 1, _DIMENSIONS_MAX):
        trailer = np.ndarray(count, "<u8", view, (words - 1 - count) * _WORD_BYTES)
        shape = tuple(trailer.tolist())
        if -(-math.prod(shape) * itemsize // _WORD_BYTES) == words - 1 - count:
            return shape
    raise SegmentCorrupt(f"{view.nbytes} bytes are not an array followed by its shape")
