"""ctypes.Structure and Union as keys and values: their bytes, inline."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from typing import Any

from shmrhash._errors import InvalidArgument
from shmrhash._types.codec import Codec, Role, inline_codec, inline_size, wrong_instance
from shmrhash._types.records import STRUCTURE, class_name

_FIELDS_BYTES_MAX = 480  # of a class's fields as text in a schema; a digest replaces a longer text


def class_record(cls: type, of: str, fields: list[str]) -> dict[str, str]:
    """The record of a class in a schema: its name and the names and types of its fields."""
    text = ", ".join(fields)
    if len(text.encode()) > _FIELDS_BYTES_MAX:
        text = f"{len(fields)} fields, digest {hashlib.sha256(text.encode()).hexdigest()}"
    return {"class": class_name(cls), "of": of, "fields": text}


def _ctypes_fields(cls: Any) -> list[tuple[str, Any, int, int]]:
    """(name, type, offset, size) of each field, those of base classes first."""
    found: list[tuple[str, Any, int, int]] = []
    for base in reversed(cls.__mro__):
        for name, kind, *bits in vars(base).get("_fields_", ()):
            place = getattr(cls, name)
            size = ctypes.sizeof(kind) if bits else place.size
            found.append((name, kind, place.offset, size))
    return found


def _expect_no_address(cls: Any, kind: Any) -> None:
    """Raise InvalidArgument for a type with an address, which means nothing in another process."""
    if issubclass(kind, ctypes.Array):
        _expect_no_address(cls, kind._type_)
    elif issubclass(kind, (ctypes.Structure, ctypes.Union)):
        for _, inner, _, _ in _ctypes_fields(kind):
            _expect_no_address(cls, inner)
    elif issubclass(kind, ctypes._SimpleCData):
        if kind._type_ in "PzZOX":
            raise InvalidArgument(f"{cls.__qualname__} has a field that is an address or an object")
    else:  # a pointer or a function
        raise InvalidArgument(f"{cls.__qualname__} has a field that is an address")


def _has_padding(kind: Any) -> bool:
    """Whether some byte belongs to no field, so that equal structures may differ there."""
    if issubclass(kind, ctypes.Array):
        return _has_padding(kind._type_)
    if not issubclass(kind, (ctypes.Structure, ctypes.Union)):
        return False
    used: set[int] = set()
    for _, inner, offset, size in _ctypes_fields(kind):
        if _has_padding(inner):
            return True
        used.update(range(offset, offset + size))
    return len(used) < ctypes.sizeof(kind)


def _ctypes_texts(cls: Any) -> list[str]:
    """The description of a structure in a schema: each field, and its size."""
    fields = [
        f"{name}: {_ctypes_text(kind)} at {offset}" for name, kind, offset, _ in _ctypes_fields(cls)
    ]
    bits = [
        f"{name} has {width[0]} bits"
        for base in reversed(cls.__mro__)
        for name, _, *width in vars(base).get("_fields_", ())
        if width
    ]
    return [*fields, *bits, f"{ctypes.sizeof(cls)} bytes"]


def _ctypes_text(kind: Any) -> str:
    if issubclass(kind, ctypes.Array):
        return f"{_ctypes_text(kind._type_)}[{kind._length_}]"
    if issubclass(kind, (ctypes.Structure, ctypes.Union)):
        return "{" + ", ".join(_ctypes_texts(kind)) + "}"
    swapped = kind is not getattr(kind, f"__ctype_{sys.byteorder[0]}e__", kind)
    return f"{kind.__name__}{', other byte order' if swapped else ''}"


def _is_twin_structure(kind: Any, cls: Any) -> bool:
    """Whether kind is the class defined once more, as by a notebook cell that was run again."""
    return (
        issubclass(kind, (ctypes.Structure, ctypes.Union))
        and kind.__qualname__ == cls.__qualname__
        and _ctypes_texts(kind) == _ctypes_texts(cls)
    )


def ctypes_codec(cls: Any, role: Role) -> Codec:
    """A ctypes.Structure or Union, inline. Decoding gives a copy that may be changed."""
    size = ctypes.sizeof(cls)
    if not size:
        raise InvalidArgument(f"{cls.__qualname__} has no fields")
    for _, kind, _, _ in _ctypes_fields(cls):
        _expect_no_address(cls, kind)
    if role == "key" and _has_padding(cls):
        raise InvalidArgument(
            f"{cls.__qualname__} has unused bytes between or after its fields, so equal keys "
            f"could differ; set _pack_ = 1, or fill them with fields"
        )
    padding = bytes(inline_size(size, role) - size)

    def encode(thing: Any) -> bytes:
        if not isinstance(thing, cls) and not _is_twin_structure(type(thing), cls):
            raise wrong_instance(cls, role, thing)
        return bytes(thing) + padding

    def decode(data: bytes) -> Any:
        return cls.from_buffer_copy(data)

    record = class_record(cls, STRUCTURE, _ctypes_texts(cls))
    return inline_codec(cls, record, role, size, encode, decode)
