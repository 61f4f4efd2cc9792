"""Keys of any type as bytes: equal keys have equal bytes, different keys have different bytes.

A key is a tag and a content:

    n            None
    i INT        a number equal to an integer: the integer in little-endian two's complement, in
                 bit_length() // 8 + 1 bytes
    f FLOAT      any other number equal to a float: its 8 bytes, little-endian
    s TEXT       str, in UTF-8 (lone surrogates as three bytes)
    b BYTES      bytes
    t ITEMS      tuple: for each item its length, then its bytes
    z ITEMS      frozenset: the same, sorted
    p            a pickle that this module writes: classes and functions by name, enum members by
                 name, addresses by text, frozen dataclasses and Structs by their fields
    and the tags of key_kinds.py: numbers equal to no float, times, paths, ...

So 1, 1.0 and True are one key, as in a dict; it comes back as 1. A NaN is the key of its 8 bytes.
Any other key is refused, because nothing is known of when two of them are equal.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import numbers
import pickle
import re
import struct
import types
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from shmrhash._errors import SegmentCorrupt
from shmrhash._types.key_kinds import DIGITS_MAX, refusal, special_bytes, special_key

_LENGTH_LONG = 255  # a byte of this value says that four bytes of length follow
_FLOAT = struct.Struct("<d")
PICKLE_PROTOCOL = 5
_BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType, type(...), type(NotImplemented))
_BY_REDUCE = (re.Pattern,)  # equal ones have equal pickles, and contain no other keys


def encode_key(key: Any) -> bytes:
    """The bytes of a key.

    Raises TypeError (no hash; an equality that bytes cannot represent), TooLarge.
    """
    kind = type(key)
    content: bytes
    if kind is str:
        content = key.encode("utf-8", "surrogatepass")
        return b"s" + content
    if kind is int:
        content = key.to_bytes(key.bit_length() // 8 + 1, "little", signed=True)
        return b"i" + content
    if kind is bytes:
        content = key
        return b"b" + content
    if kind is tuple:
        return _encode_items(b"t", map(encode_key, key))
    if key is None:
        return b"n"
    return _encode_other(key)


def _encode_items(tag: bytes, items: Any) -> bytes:
    parts = [tag]
    for item in items:
        size = len(item)
        if size < _LENGTH_LONG:
            parts.append(size.to_bytes(1, "little"))
        else:
            parts.append(b"\xff" + size.to_bytes(4, "little"))
        parts.append(item)
    return b"".join(parts)


def _encode_other(key: Any) -> bytes:
    """Subclasses, numbers of other types, frozensets, keys of key_kinds.py, and pickles."""
    hashed = hash(key)  # as in a dict, a key without a hash is a TypeError
    kinds: tuple[Any, ...] = (str, bytes, tuple, frozenset)
    for kind in kinds:
        if isinstance(key, kind):
            plain = str.__str__(key) if kind is str else kind(key)
            if hash(plain) != hashed or plain != key:
                raise refusal(key, f"it is a {kind.__name__} with an equality of its own")
            if kind is frozenset:
                return _encode_items(b"z", sorted(map(encode_key, plain)))
            return encode_key(plain)
    # A timedelta64 is an integer to NumPy, but no number here.
    span = getattr(getattr(key, "dtype", None), "kind", "") == "m"
    if isinstance(key, (numbers.Number, Decimal)) and not span:
        number = _plain_number(key)
        if number is not None:
            return encode_key(number) if isinstance(number, int) else b"f" + _FLOAT.pack(number)
    special = special_bytes(key, encode_key)
    return b"p" + _pickled(key) if special is None else special


def _plain_number(key: Any) -> int | float | None:
    """The int, or else the float, that equals this number; None if there is none."""
    if isinstance(key, float) and key != key:
        return float(key)
    real: Any = key.real if isinstance(key, numbers.Complex) else key
    if isinstance(real, Decimal) and abs(real.adjusted()) > DIGITS_MAX:
        return None  # too long for a key, and very slow to convert
    for kind in (int, float):
        try:
            number = kind(real)
        except (OverflowError, ValueError):  # infinite, not a number, beyond a float
            continue
        if number == key:
            return number
    return None


def decode_key(data: bytes, load: Callable[[bytes], Any] = pickle.loads) -> Any:
    """The key of these bytes; load() unpickles a key that is a pickle. Raises SegmentCorrupt, and
    what load raises."""
    try:
        return _decoded(data, load)
    except (UnicodeDecodeError, RecursionError) as error:
        raise SegmentCorrupt(f"{len(data)} bytes are not a key: {error}") from None


def _decoded(data: bytes, load: Callable[[bytes], Any]) -> Any:
    tag, content = data[:1], data[1:]
    if tag == b"s":
        return content.decode("utf-8", "surrogatepass")
    if tag == b"i":
        return int.from_bytes(content, "little", signed=True)
    if tag == b"b":
        return content
    if tag == b"t":
        return tuple(_decode_items(content, load))
    if tag == b"n":
        return None
    if tag == b"f" and len(content) == 8:
        return _FLOAT.unpack(content)[0]
    if tag == b"z":
        return frozenset(_decode_items(content, load))
    if tag == b"p":
        return load(content)
    return special_key(tag, content, lambda inner: _decoded(inner, load))


def _decode_items(content: bytes, load: Callable[[bytes], Any]) -> list[Any]:
    items = []
    at = 0
    while at < len(content):
        size = content[at]
        at += 1
        if size == _LENGTH_LONG:
            size = int.from_bytes(content[at : at + 4], "little")
            at += 4
        if at + size > len(content):
            raise SegmentCorrupt("a key's items are longer than the key")
        items.append(_decoded(content[at : at + size], load))
        at += size
    return items


# ---- keys that are pickles ----


class _Parts:
    """An object that pickles as a call that makes the key."""

    def __init__(self, make: Any, *parts: Any) -> None:
        self._call = make, parts

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def _pickled(key: Any) -> bytes:
    """A pickle without memo, so that identities do not change its bytes. Raises TypeError."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, PICKLE_PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(_parts_of(key))
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"{type(key).__qualname__} cannot be a key: {error}") from None
    return out.getvalue()


def _parts_of(key: Any) -> Any:
    cls: Any = type(key)
    if isinstance(key, _BY_NAME):
        owner = getattr(key, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return key
    if cls in _BY_REDUCE or cls.__module__ == "zoneinfo":
        return key
    if isinstance(key, enum.Enum) and cls.__eq__ in (object.__eq__, enum.Enum.__eq__):
        if isinstance(key, enum.Flag) or not isinstance(key.name, str):
            return _Parts(cls, key.value)
        return _Parts(getattr, cls, key.name)
    if cls.__module__ == "ipaddress":
        return _Parts(cls, str(key))
    if _is_frozen_dataclass(cls):
        fields = dataclasses.fields(cls)
        if all(field.compare for field in fields):
            return _Parts(
                made_of_fields, cls, encode_key(tuple(getattr(key, field.name) for field in fields))
            )
        raise refusal(key, "some of its fields do not take part in its equality")
    config = getattr(cls, "__struct_config__", None)
    if config is not None and config.frozen and config.eq and "__eq__" not in vars(cls):
        parts = tuple(getattr(key, name) for name in cls.__struct_fields__)
        return _Parts(made_of_fields, cls, encode_key(parts))
    raise refusal(key, "it is not known when two of them are equal")


def _is_frozen_dataclass(cls: Any) -> bool:
    """Whether cls is a frozen dataclass, with the __eq__ that dataclass() generated."""
    if "__dataclass_params__" not in vars(cls):
        return False
    made = getattr(cls.__eq__, "__code__", None)
    generated = made is not None and made.co_filename == "<string>" and made.co_argcount == 2
    return cls.__dataclass_params__.frozen and cls.__dataclass_params__.eq and generated


def made_of_fields(cls: Any, data: bytes) -> Any:
    """Make a frozen dataclass or Struct of its encoded fields. Its pickle calls this function."""
    values = decode_key(data)
    names = getattr(cls, "__struct_fields__", None)
    if names is not None:
        return cls(**dict(zip(names, values, strict=True)))
    fields = list(zip(dataclasses.fields(cls), values, strict=True))
    made = cls(**{field.name: value for field, value in fields if field.init})
    for field, value in fields:
        if not field.init:
            object.__setattr__(made, field.name, value)
    return made


# Pickles in segments call the function by this name, which is a part of the bytes of a key.
made_of_fields.__module__ = "shmrhash._keykinds"
