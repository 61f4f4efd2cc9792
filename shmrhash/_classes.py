"""Instances of classes as keys and values: ctypes structures, dataclasses, msgspec structs."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import sys
from typing import Any

from shmrhash import _core
from shmrhash._codec import Codec, Role
from shmrhash._errors import InvalidArgument, SegmentCorrupt

_WORD_BYTES = 8
_DIGEST_BYTES = 16
_FIELDS_BYTES_MAX = 480  # of the text of a class's fields in a schema; a digest stands for more


def class_name(cls: type) -> str:
    """The module and name of a class, the same in a program and in the children it spawns."""
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"


def class_record(cls: type, of: str, fields: list[str]) -> dict[str, str]:
    """What a schema says of a class: its name and the names and types of its fields."""
    text = ", ".join(fields)
    if len(text.encode()) > _FIELDS_BYTES_MAX:
        text = f"{len(fields)} fields, digest {hashlib.sha256(text.encode()).hexdigest()}"
    return {"class": class_name(cls), "of": of, "fields": text}


def _expect_instance(cls: type, role: Role, thing: Any) -> None:
    if not isinstance(thing, cls):
        raise TypeError(f"{role} must be {cls.__qualname__}, not {type(thing).__name__}")


# ctypes.


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
    """Addresses of one process mean nothing in another."""
    if issubclass(kind, ctypes.Array):
        _expect_no_address(cls, kind._type_)
    elif issubclass(kind, (ctypes.Structure, ctypes.Union)):
        for _, inner, _, _ in _ctypes_fields(kind):
            _expect_no_address(cls, inner)
    elif issubclass(kind, ctypes._SimpleCData):
        if kind._type_ in "PzZOX":
            raise InvalidArgument(f"{cls.__qualname__} has a field that is an address or an object")
    else:  # a pointer, a function
        raise InvalidArgument(f"{cls.__qualname__} has a field that is an address")


def _has_padding(kind: Any) -> bool:
    """Whether some byte belongs to no field: equal structures might differ there."""
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


def ctypes_codec(cls: Any, role: Role) -> Codec:
    """A ctypes.Structure or Union, inline. What comes out is a copy that may be changed."""
    size = ctypes.sizeof(cls)
    if not size:
        raise InvalidArgument(f"{cls.__qualname__} has no fields")
    for _, kind, _, _ in _ctypes_fields(cls):
        _expect_no_address(cls, kind)
    if role == "key" and _has_padding(cls):
        raise InvalidArgument(
            f"{cls.__qualname__} has unused bytes between or behind its fields, so equal keys "
            f"could differ; set _pack_ = 1, or fill them with fields"
        )
    room = size if role == "key" else -(-size // _WORD_BYTES) * _WORD_BYTES
    padding = bytes(room - size)
    kind = _core.KEY_FIXED if role == "key" else _core.VALUE_FIXED

    def encode(thing: Any) -> bytes:
        _expect_instance(cls, role, thing)
        return bytes(thing) + padding

    def decode(data: bytes) -> Any:
        return cls.from_buffer_copy(data)

    fields = [
        f"{name}: {inner.__name__} at {offset}" for name, inner, offset, _ in _ctypes_fields(cls)
    ]
    record = class_record(cls, "ctypes structure", [*fields, f"{size} bytes"])
    return Codec(cls, record, kind, room, False, encode, decode)


# Dataclasses and msgspec.


def is_msgspec_class(cls: type) -> bool:
    """Whether cls is a msgspec.Struct; without importing msgspec if nobody has."""
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and issubclass(cls, msgspec.Struct)


def _annotation(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    return kind.__qualname__ if type(kind) is type else str(kind)


def message_codec(cls: Any, role: Role) -> Codec:
    """A dataclass or a msgspec.Struct, by reference, in MessagePack."""
    try:
        import msgspec
    except ImportError:
        raise ImportError(
            f"{role}={cls.__qualname__}: dataclasses are stored by msgspec, which is not "
            f"installed: pip install 'shmrhash[msgspec]'"
        ) from None
    try:
        decoder = msgspec.msgpack.Decoder(cls)
    except (TypeError, NameError) as error:
        raise InvalidArgument(f"msgspec cannot store {cls.__qualname__}: {error}") from None
    encoder = msgspec.msgpack.Encoder(order="deterministic" if role == "key" else None)

    def encode(thing: Any) -> bytes:
        _expect_instance(cls, role, thing)
        return bytes(encoder.encode(thing))

    if dataclasses.is_dataclass(cls):
        of = "dataclass"
        fields = [f"{field.name}: {_annotation(field.type)}" for field in dataclasses.fields(cls)]
    else:
        of = "msgspec.Struct"
        fields = [
            f"{field.encode_name}: {_annotation(field.type)}"
            for field in msgspec.structs.fields(cls)
        ]

    def decode(data: bytes) -> Any:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError:  # a field of another type than it was declared with
            raise
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SegmentCorrupt(f"{len(data)} bytes are not MessagePack: {error}") from None

    kind = _core.KEY_ENCODED if role == "key" else _core.VALUE_ENCODED
    size = _DIGEST_BYTES if role == "key" else _WORD_BYTES
    return Codec(cls, class_record(cls, of, fields), kind, size, True, encode, decode)
