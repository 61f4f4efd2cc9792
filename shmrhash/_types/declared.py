"""Declared types of keys and values: the codec of each, and the type that a record names.

A declared type is one of: bytes, str, int, float, bool, object; a struct format; a NumPy dtype;
Array(dtype, shape); a subclass of ctypes.Structure; a dataclass; a msgspec.Struct. codec_for()
makes a Codec of it, whose record, plain JSON, is kept in the segment and compared at every open.
"""

from __future__ import annotations

import ctypes
import dataclasses
import pickle
import struct
from typing import Any

from shmrhash import _core
from shmrhash._constants import WORD_BYTES
from shmrhash._errors import InvalidArgument, LayoutMismatch
from shmrhash._types.arrays import Array, array_codec, dtype_codec, dtype_of_record
from shmrhash._types.codec import (
    KEY_DIGEST_BYTES,
    Codec,
    Role,
    encoded_codec,
    inline_codec,
    inline_size,
)
from shmrhash._types.keys import PICKLE_PROTOCOL, decode_key, encode_key
from shmrhash._types.messages import is_msgspec_class, message_codec
from shmrhash._types.records import PATTERNS
from shmrhash._types.structures import ctypes_codec

_STRUCT_BYTES_MAX = 1 << 22  # keys and values in entries are smaller


def _dump(thing: Any) -> bytes:
    # By position: a keyword, or a functools.partial, makes the call half as long again.
    return pickle.dumps(thing, PICKLE_PROTOCOL)


# The types whose bytes the core makes itself, and the kinds of each as a key and as a value.
_KINDS: dict[type, tuple[int, int]] = {
    int: (_core.KEY_INT, _core.VALUE_INT),
    float: (_core.KEY_FLOAT, _core.VALUE_FLOAT),
    bool: (_core.KEY_BOOL, _core.VALUE_BOOL),
    bytes: (_core.KEY_BYTES, _core.VALUE_BYTES),
    str: (_core.KEY_STR, _core.VALUE_STR),
}
_BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (*_KINDS, object)}


def codec_for(declared: Any, role: Role) -> Codec:
    """The codec of a declared type.

    Raises TypeError (not a type that can be declared), InvalidArgument (a struct format, dtype or
    class that cannot be stored), ImportError (msgspec or NumPy is not installed).
    """
    if isinstance(declared, type) and declared in _KINDS:
        return _builtin_codec(declared, role)
    if declared is object:
        encode, decode = (encode_key, decode_key) if role == "key" else (_dump, pickle.loads)
        return encoded_codec(object, "object", role, encode, decode)
    if isinstance(declared, str):
        return _struct_codec(declared, role)
    if isinstance(declared, Array):
        if role == "key":
            raise TypeError("keys cannot be arrays, which have no hash; use their bytes")
        return array_codec(declared)
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
        return dtype_codec(declared, role)
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
    name = declared.__name__
    key_kind, value_kind = _KINDS[declared]
    by_reference = name not in PATTERNS
    if role == "value":
        return Codec(declared, name, value_kind, WORD_BYTES, by_reference)
    size = KEY_DIGEST_BYTES if by_reference else struct.calcsize(PATTERNS[name])
    return Codec(declared, name, key_kind, size, by_reference)


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
    packer = struct.Struct(f"{fmt}{inline_size(size, role) - size}x")
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

    return inline_codec(fmt, {"struct": fmt}, role, size, encode, decode)


def type_of_record(record: Any, role: Role) -> Any:
    """The declared type that a schema's record names.

    Raises LayoutMismatch for a class, which only the program can name.
    """
    if isinstance(record, str) and record in _BY_NAME:
        return _BY_NAME[record]
    if isinstance(record, dict):
        if "struct" in record:
            return record["struct"]
        if "numpy" in record:
            return dtype_of_record(record["numpy"])
        if "array" in record:
            shape = record.get("shape")
            dtype = dtype_of_record(record["array"])
            return Array(dtype, None if shape is None else tuple(shape))
        if "class" in record:
            raise LayoutMismatch(
                f"its {role} type is the class {record['class']}; open it with {role}=that class"
            )
    raise LayoutMismatch(f"this version cannot read its {role} type {record!r}")
