"""NumPy's types as keys and values: dtypes inline, arrays by reference.

NumPy is imported when the first of them is declared: it may be absent, and takes long.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from operator import index
from typing import Any

from shmrhash import _core
from shmrhash._constants import WORD_BYTES
from shmrhash._errors import InvalidArgument, SegmentCorrupt
from shmrhash._rows import numpy_or_none
from shmrhash._types.codec import Codec, Role, inline_codec, inline_size

_DIMENSIONS_MAX = 64


def _numpy() -> Any:
    """The module numpy. Raises ImportError."""
    numpy = numpy_or_none()
    if numpy is None:
        raise ImportError(
            "NumPy's types need NumPy, which is not installed: pip install 'shmrhash[numpy]'"
        )
    return numpy


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of values that are NumPy arrays, read where they are, without a copy.

    dtype: anything that numpy.dtype() takes, except objects. shape: that of every value; None
    allows any shape. A stored array is converted to dtype if that keeps its kind (as numpy's
    "same_kind") and is kept in C order. d[key] and get() return a read-only array on the shared
    memory; its bytes stay unchanged as long as the array, or a view of it, lives, even if the key
    is overwritten or deleted. They also stay unchanged in a child of fork that inherits the array,
    even if its parent drops the array or ends: os.fork(), and everything that uses it, pins the
    object for the child (a C library that forks by itself does not). A handle holds 1,024 such
    arrays at a time; beyond that it returns copies, counted by
    info()["objects"]["views_copied"]. values(), items() and copy() always copy.

    Raises ImportError (no NumPy), TypeError, InvalidArgument (a dtype with objects).
    """

    dtype: Any
    shape: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", plain_dtype(self.dtype))
        if self.shape is not None:
            object.__setattr__(self, "shape", plain_shape(self.shape))


def plain_dtype(dtype: Any) -> Any:
    """dtype as a numpy.dtype, if its items are plain bytes.

    Raises TypeError, InvalidArgument.
    """
    found = _numpy().dtype(dtype)
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
    return _listed(_format().dtype_to_descr(dtype))


def _format() -> Any:
    """The module numpy.lib.format. Raises ImportError."""
    _numpy()
    return importlib.import_module("numpy.lib.format")


def _listed(descr: Any) -> Any:
    return [_listed(part) for part in descr] if isinstance(descr, (list, tuple)) else descr


def dtype_of_record(record: Any) -> Any:
    """The dtype that a record names."""
    if isinstance(record, dict):
        return _numpy().dtype((dtype_of_record(record["base"]), tuple(record["shape"])))
    return _format().descr_to_dtype(_described(record))


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
    np = _numpy()
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
    np = _numpy()
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
    padding = bytes(inline_size(size, role) - size)
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

    record = {"numpy": dtype_record(dtype)}
    return inline_codec(declared, record, role, size, encode, decode)


def array_codec(declared: Array) -> Codec:
    """Arrays by reference. Stored are the data and, if the shape is not declared, a trailer.

    The trailer stands after the data, at a multiple of 8: the size of each dimension, then the
    number of dimensions, 8 bytes each. The data is at the object's start, so it is aligned as
    objects are.
    """
    np = _numpy()
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
    return Codec(declared, record, _core.VALUE_VIEW, WORD_BYTES, True, encode, decode)


def _with_trailer(array: Any) -> bytearray:
    np = _numpy()
    size = -(-array.nbytes // WORD_BYTES) * WORD_BYTES
    whole = bytearray(size + (array.ndim + 1) * WORD_BYTES)
    np.ndarray(array.shape, array.dtype, whole)[...] = array
    trailer = np.ndarray(array.ndim + 1, "<u8", whole, size)
    trailer[:-1] = array.shape
    trailer[-1] = array.ndim
    return whole


def _trailer_shape(view: memoryview, itemsize: int) -> tuple[int, ...]:
    """The shape that the trailer gives, if it agrees with the number of bytes."""
    words = view.nbytes // WORD_BYTES
    count = int.from_bytes(view[-WORD_BYTES:], "little")
    if words and not view.nbytes % WORD_BYTES and count <= min(words - 1, _DIMENSIONS_MAX):
        trailer = _numpy().ndarray(count, "<u8", view, (words - 1 - count) * WORD_BYTES)
        shape = tuple(trailer.tolist())
        if -(-math.prod(shape) * itemsize // WORD_BYTES) == words - 1 - count:
            return shape
    raise SegmentCorrupt(f"{view.nbytes} bytes are not an array followed by its shape")
