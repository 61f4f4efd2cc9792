"""Declared types of keys and values: how each becomes bytes, and how a schema writes it down.

A declared type is one of: bytes, str, int, float, bool, object; a struct format; a NumPy dtype;
Array(dtype, shape); a subclass of ctypes.Structure; a dataclass; a msgspec.Struct. codec_for()
makes a Codec of it, whose record, plain JSON, is kept in the segment and compared at every open.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import pickle
import struct
from collections.abc import Callable
from typing import Any

from shmrhash import _core
from shmrhash._classes import ctypes_codec, is_msgspec_class, message_codec
from shmrhash._codec import Codec, Role
from shmrhash._errors import InvalidArgument, LayoutMismatch
from shmrhash._keys import decode_key, encode_key
from shmrhash._stored import text_of

KEY_DIGEST_BYTES = 16  # stands for a key of any length: up to 15 bytes of key, or a digest
WORD_BYTES = 8

_PICKLE_PROTOCOL = 5
_STRUCT_BYTES_MAX = 1 << 22  # keys and values in entries are smaller
_dump = functools.partial(pickle.dumps, protocol=_PICKLE_PROTOCOL)

# By declared type: its name in a schema, the kinds as a key and as a value, the bytes as a key.
_BUILTINS: dict[type, tuple[str, int, int, int]] = {
    int: ("int", _core.KEY_INT, _core.VALUE_INT, 8),
    float: ("float", _core.KEY_FLOAT, _core.VALUE_FLOAT, 8),
    bool: ("bool", _core.KEY_BOOL, _core.VALUE_BOOL, 1),
    bytes: ("bytes", _core.KEY_BYTES, _core.VALUE_BYTES, KEY_DIGEST_BYTES),
    str: ("str", _core.KEY_STR, _core.VALUE_STR, KEY_DIGEST_BYTES),
    object: ("object", _core.KEY_ENCODED, _core.VALUE_ENCODED, KEY_DIGEST_BYTES),
}
_BY_NAME = {name: declared for declared, (name, *_) in _BUILTINS.items()}


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
        from shmrhash import _arrays

        object.__setattr__(self, "dtype", _arrays.plain_dtype(self.dtype))
        if self.shape is not None:
            object.__setattr__(self, "shape", _arrays.plain_shape(self.shape))


def codec_for(declared: Any, role: Role) -> Codec:
    """The codec of a declared type.

    Raises TypeError (not a type that can be declared), InvalidArgument (a struct format, dtype or
    class that cannot be stored), ImportError (msgspec or NumPy is not installed).
    """
    if isinstance(declared, type) and declared in _BUILTINS:
        return _builtin_codec(declared, role)
    if isinstance(declared, str):
        return _struct_codec(declared, role)
    if isinstance(declared, Array):
        if role == "key":
            raise TypeError("keys cannot be arrays, which have no hash; use their bytes")
        from shmrhash import _arrays

        return _arrays.array_codec(declared)
    if isinstance(declared, type) and declared is not Array:
        if issubclass(declared, (ctypes.Structure, ctypes.Union)):
            return ctypes_codec(declared, role)
        if dataclasses.is_dataclass(declared) or is_msgspec_class(declared):
            return message_codec(declared, role)
    if declared is Array or _is_array_class(declared):
        raise TypeError(
            f"a {role}'s type {declared.__name__} needs the dtype of its items: Array('f8') for "
            f"arrays of any shape, Array('f8', shape=(3,)) for one; or object, which pickles them"
        )
    if _is_dtype(declared):
        from shmrhash import _arrays

        return _arrays.dtype_codec(declared, role)
    name = declared.__qualname__ if isinstance(declared, type) else repr(declared)
    raise TypeError(
        f"a {role}'s type is bytes, str, int, float, bool, object, a struct format, a NumPy dtype, "
        f"Array, a ctypes.Structure, a dataclass or a msgspec.Struct, not {name}; object takes "
        f"lists, dicts and whatever else can be pickled"
    )


def _is_array_class(declared: Any) -> bool:
    """Whether declared is numpy.ndarray or a subclass, which does not name its items' type."""
    bases = declared.__mro__ if isinstance(declared, type) else ()
    return any((base.__module__, base.__name__) == ("numpy", "ndarray") for base in bases)


def _is_dtype(declared: Any) -> bool:
    """Whether declared is a numpy.dtype, or a class of NumPy's numbers.

    False for anything else that numpy.dtype() would take.
    """
    kind = declared if isinstance(declared, type) else type(declared)
    return any(base.__module__.partition(".")[0] == "numpy" for base in kind.__mro__)


def _builtin_codec(declared: type, role: Role) -> Codec:
    name, key_kind, value_kind, key_size = _BUILTINS[declared]
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    if declared is object:
        encode, decode = (encode_key, decode_key) if role == "key" else (_dump, pickle.loads)
    if role == "key":
        by_reference = key_size == KEY_DIGEST_BYTES
        return Codec(declared, name, key_kind, key_size, by_reference, encode, decode)
    by_reference = value_kind >= _core.VALUE_BYTES
    return Codec(declared, name, value_kind, WORD_BYTES, by_reference, encode, decode)


def _struct_codec(fmt: str, role: Role) -> Codec:
    """The codec of a struct format: for tuples, or for single items if the format has one."""
    try:
        size = struct.calcsize(fmt)
    except struct.error as error:
        raise InvalidArgument(f"{fmt!r} is not a struct format: {error}") from None
    if size > _STRUCT_BYTES_MAX:
        raise InvalidArgument(f"the struct format {fmt!r:.60} has {size} bytes, too many")
    count = len(struct.unpack(fmt, bytes(size)))
    if not count:
        raise InvalidArgument(f"the struct format {fmt!r} has no items")
    room = size if role == "key" else -(-size // WORD_BYTES) * WORD_BYTES
    packer = struct.Struct(f"{fmt}{room - size}x")
    kind = _core.KEY_FIXED if role == "key" else _core.VALUE_FIXED
    what = f"{role} must be {'a tuple' if count > 1 else 'an item'} for the struct format {fmt!r}"

    def encode(thing: Any) -> bytes:
        items = (thing,) if count == 1 else thing
        if not isinstance(items, tuple):
            raise TypeError(f"{what}, not {type(thing).__name__}")
        if role == "key":  # -0.0 and 0.0 are one key
            items = tuple([item + 0.0 if type(item) is float else item for item in items])
        try:
            return packer.pack(*items)
        except struct.error as error:
            text = str(error)
            fits = not any(word in text for word in ("requires", "range", "too large"))
            raise (TypeError if fits else OverflowError)(f"{what}: {text}") from None

    def decode(data: bytes) -> Any:
        items = packer.unpack(data)
        return items[0] if count == 1 else items

    return Codec(fmt, {"struct": fmt}, kind, room, False, encode, decode)


def type_of_record(record: Any, role: Role) -> Any:
    """The declared type that a schema's record names.

    Raises LayoutMismatch for a class, which only the program can name.
    """
    if isinstance(record, str) and record in _BY_NAME:
        return _BY_NAME[record]
    if isinstance(record, dict):
        if "struct" in record:
            return record["struct"]
        if "numpy" in record or "array" in record:
            from shmrhash import _arrays

            if "numpy" in record:
                return _arrays.dtype_of_record(record["numpy"])
            shape = record.get("shape")
            dtype = _arrays.dtype_of_record(record["array"])
            return Array(dtype, None if shape is None else tuple(shape))
        if "class" in record:
            raise LayoutMismatch(
                f"its {role} type is the class {record['class']}; open it with {role}=that class"
            )
    raise LayoutMismatch(f"this version cannot read its {role} type {record!r}")


def record_name(record: Any) -> str:
    """A record as text for people."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return f"an unknown type, {record!r:.60}"
    if "struct" in record:
        return f"the struct format {record['struct']!r}"
    if "numpy" in record:
        return f"the dtype {record['numpy']}"
    if "array" in record:
        return f"Array({record['array']!r}, shape={record.get('shape')})"
    fields = text_of(record["stored"]) if "stored" in record else record.get("fields")
    return f"the {record.get('of', 'class')} {record.get('class')} with {fields}"
