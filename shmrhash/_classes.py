"""Instances of classes as keys and values: ctypes structures, dataclasses, msgspec structs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import sys
import weakref
from typing import Any

from shmrhash import _core
from shmrhash._codec import Codec, Role
from shmrhash._errors import InvalidArgument, SegmentCorrupt
from shmrhash._stored import Describer, ambiguous, compatible, packed

_WORD_BYTES = 8
_DIGEST_BYTES = 16
_FIELDS_BYTES_MAX = 480  # of a class's fields as text in a schema; a digest replaces a longer text


def class_name(cls: type) -> str:
    """The module and name of a class, the same in a program and in the children it spawns."""
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"


def class_record(cls: type, of: str, fields: list[str]) -> dict[str, str]:
    """The record of a class in a schema: its name and the names and types of its fields."""
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
    room = size if role == "key" else -(-size // _WORD_BYTES) * _WORD_BYTES
    padding = bytes(room - size)
    kind = _core.KEY_FIXED if role == "key" else _core.VALUE_FIXED

    def encode(thing: Any) -> bytes:
        if not isinstance(thing, cls) and not _is_twin_structure(type(thing), cls):
            _expect_instance(cls, role, thing)
        return bytes(thing) + padding

    def decode(data: bytes) -> Any:
        return cls.from_buffer_copy(data)

    record = class_record(cls, "ctypes structure", _ctypes_texts(cls))
    return Codec(cls, record, kind, room, False, encode, decode)


# Dataclasses and msgspec.


def is_msgspec_class(cls: type) -> bool:
    """Whether cls is a msgspec.Struct; does not import msgspec if the program has not."""
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and issubclass(cls, msgspec.Struct)


def _forget_msgspec(classes: list[Any]) -> None:
    """Remove msgspec's cache from a program's classes: it cannot be pickled by value, as the
    classes of notebooks are. The decoder that was made does not need it."""
    for cls in classes:
        plain = getattr(cls, "__origin__", cls)
        if isinstance(plain, type) and "__msgspec_cache__" in vars(plain):
            with contextlib.suppress(AttributeError, TypeError):  # another thread removed it
                type.__delattr__(plain, "__msgspec_cache__")


def _described(cls: Any) -> Any:
    """The description of cls: see _stored.py. Raises what msgspec raises."""
    import msgspec.inspect

    describer = Describer()
    description = describer.describe(msgspec.inspect.type_info(cls))
    _forget_msgspec(describer.classes)
    return description


def _without_signs_of_zero(thing: Any) -> Any:
    """A decoded message with -0.0 replaced by 0.0, which equals it."""
    if isinstance(thing, float):
        return thing + 0.0
    if isinstance(thing, list):
        return [_without_signs_of_zero(item) for item in thing]
    if isinstance(thing, dict):
        return {_without_signs_of_zero(key): _without_signs_of_zero(thing[key]) for key in thing}
    return thing


class _Encoder:
    """Instances of a class as MessagePack."""

    def __init__(self, cls: Any, role: Role, description: Any, decoder: Any) -> None:
        import msgspec

        self._cls = cls
        self._role = role
        self._description = description
        self._decode = decoder.decode
        self._error = msgspec.ValidationError
        self._plain = msgspec.msgpack.decode
        encoder = msgspec.msgpack.Encoder(order="deterministic" if role == "key" else None)
        self._encode = encoder.encode
        self._twins: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    def __call__(self, thing: Any) -> bytes:
        if not isinstance(thing, self._cls) and not self._is_twin(type(thing)):
            _expect_instance(self._cls, self._role, thing)
        data = bytes(self._encode(thing))
        return self._canonical(data) if self._role == "key" else data

    def _is_twin(self, cls: type) -> bool:
        """Whether cls is the class defined once more: its notebook cell was run again, or its
        module runs as the program and was imported too."""
        if cls.__qualname__ != self._cls.__qualname__:
            return False
        if cls not in self._twins:
            try:
                self._twins[cls] = _described(cls) == self._description
            except (TypeError, NameError):  # msgspec cannot store cls
                self._twins[cls] = False
        return self._twins[cls]

    def _canonical(self, data: bytes) -> bytes:
        """The bytes that all equal keys have, even if a float field was given an int."""
        try:
            again = bytes(self._encode(self._decode(data)))
        except self._error as error:
            raise TypeError(f"key does not fit {self._cls.__qualname__}: {error}") from None
        if b"\xcb\x80\0\0\0\0\0\0\0" in again:
            again = bytes(self._encode(_without_signs_of_zero(self._plain(again))))
        return again


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
        description = _described(cls)
    except (TypeError, NameError) as error:
        raise InvalidArgument(f"msgspec cannot store {cls.__qualname__}: {error}") from None
    if role == "key" and (why := ambiguous(description)):
        raise InvalidArgument(
            f"{cls.__qualname__} has {why}, so equal keys could be stored as different ones; "
            f"declare the field as str or int, or the key as object"
        )

    def decode(data: bytes) -> Any:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError:  # a field does not have its declared type
            raise
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SegmentCorrupt(f"{len(data)} bytes are not MessagePack: {error}") from None

    of = "dataclass" if dataclasses.is_dataclass(cls) else "msgspec.Struct"
    record = {"class": class_name(cls), "of": of, "stored": packed(description)}
    kind = _core.KEY_ENCODED if role == "key" else _core.VALUE_ENCODED
    size = _DIGEST_BYTES if role == "key" else _WORD_BYTES
    encode = _Encoder(cls, role, description, decoder)
    return Codec(cls, record, kind, size, True, encode, decode)


def same_stored(one: Any, other: Any, role: Role) -> bool:
    """Whether two records, as JSON, stand for types that can read each other's entries."""
    if one == other:
        return True
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    if "stored" in one and "stored" in other:
        if role == "key":  # keys are found by their bytes
            return bool(one["stored"] == other["stored"])
        return compatible(one["stored"], other["stored"])
    parts = ("of", "fields")
    return "fields" in one and all(one.get(part) == other.get(part) for part in parts)
