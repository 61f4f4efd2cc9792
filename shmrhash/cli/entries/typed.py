"""The declared types of SharedDicts: their encoded bytes as people read and write them.

Nothing here imports what a segment names, and nothing unpickles but Unpickled and an ObjectKey that
was told to.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shmrhash._codec import Role
from shmrhash._errors import Error, LayoutMismatch
from shmrhash._keys import decode_key, encode_key
from shmrhash._types import record_name
from shmrhash.cli.entries.formats import Format, Raw, Spec, make_record
from shmrhash.cli.entries.opaque import (
    ITEMS_SHOWN,
    Inline,
    Number,
    Octets,
    Opaque,
    Utf8,
    take_bytes,
)
from shmrhash.cli.screen import printable
from shmrhash.cli.words import Failure, Tokens

WORD_BYTES = 8
PATTERNS = {"int": "<q", "float": "<d", "bool": "<?"}
NUMPY_LETTERS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
}  # fmt: skip
INT_BITS_MAX = 4096  # Python refuses to print numbers of more than 4300 digits
DEPTH_MAX = 50


def jsonable(thing: Any, depth: int = 0) -> Any:
    """thing made of what JSON has. Raises ValueError if it is something else."""
    kind = type(thing)
    if thing is None or kind in (bool, str):
        return thing
    if kind is int and thing.bit_length() <= INT_BITS_MAX:
        return thing
    if kind is float:
        return thing if math.isfinite(thing) else str(thing)
    if depth < DEPTH_MAX:
        if kind in (list, tuple):
            return [jsonable(item, depth + 1) for item in thing]
        if kind is dict and all(type(name) is str for name in thing):
            return {name: jsonable(item, depth + 1) for name, item in thing.items()}
    raise ValueError(f"{kind.__name__} is not of JSON")


def repr_of(thing: Any) -> str:
    """repr(), whatever it raises: for a person."""
    try:
        return repr(thing)
    except Exception as error:  # a number too long to print, or a class of anybody's
        return f"<{type(thing).__name__}: {error}>"


class Pickle:
    """What stands for a pickle that nobody may unpickle."""

    def __init__(self, data: bytes) -> None:
        self._size = len(data)

    def __repr__(self) -> str:
        return f"<pickle, {self._size:,} bytes>"


@dataclass(frozen=True)
class ObjectKey(Opaque):
    """Keys of type object (_keys.py). written: str, int, or "" for what the word looks like."""

    load: Callable[[bytes], Any] = Pickle
    written: str = ""

    def _thing(self, data: bytes) -> Any:
        try:
            return decode_key(data, self.load)
        except Exception as error:  # damaged, too deep, or what unpickling raises
            return f"<key, {len(data):,} bytes: {error}>"

    def take(self, tokens: Tokens, what: str) -> bytes:
        word = tokens.next_or_fail(f"{what} expected a text or a number")
        if self.written != "str":
            try:
                thing = int(word, 0) if self.written == "int" else json.loads(word)
            except (ValueError, RecursionError):
                if self.written == "int":
                    raise Failure(f"{what} {word!r} is no number") from None
                thing = word
            word = _with_tuples(thing)
        return self._encoded(word, what)

    def parse(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict):
            return super().parse(value, what)
        return self._encoded(_with_tuples(value), what)

    def _encoded(self, thing: Any, what: str) -> bytes:
        try:
            return encode_key(thing)
        except (TypeError, ValueError, OverflowError) as error:
            raise Failure(f"{what} cannot be {printable(repr_of(thing))}: {error}") from None

    def plain(self, data: bytes) -> Any:
        thing = self._thing(data)
        with contextlib.suppress(ValueError, Failure):
            found = jsonable(thing)
            if type(found) is not float and self.parse(found, "") == data:
                return found
        return super().plain(data) | {"text": repr_of(thing)}

    def shown(self, data: bytes) -> Any:
        thing = self._thing(data)
        try:
            return jsonable(thing)
        except ValueError:
            return {"type": self.name, "bytes": len(data), "text": repr_of(thing)}

    def text(self, data: bytes) -> str:
        thing = self._thing(data)
        if type(thing) is not str:
            return printable(repr_of(thing))
        try:
            json.loads(thing)
        except (ValueError, RecursionError):
            return printable(thing)
        return json.dumps(thing)  # the text "7", which is not the number


def _with_tuples(thing: Any) -> Any:
    """Lists of JSON as tuples, which can be keys."""
    return tuple(map(_with_tuples, thing)) if isinstance(thing, list) else thing


class Unpickled(Opaque):
    """Pickles that are unpickled, which runs what is in them: only if the user said so."""

    def _thing(self, data: bytes) -> tuple[bool, Any]:
        try:
            return True, pickle.loads(data)
        except Exception as error:  # a class that cannot be imported, or whatever it raises
            return False, f"{type(error).__name__}: {error}"

    def shown(self, data: bytes) -> Any:
        done, thing = self._thing(data)
        if not done:
            return super().shown(data) | {"problem": thing}
        try:
            return jsonable(thing)
        except ValueError:
            return super().shown(data) | {"text": repr_of(thing)}

    def text(self, data: bytes) -> str:
        done, thing = self._thing(data)
        return printable(repr_of(thing) if done else f"<{self.name}, {len(data):,} bytes: {thing}>")


@dataclass(frozen=True)
class Message(Opaque):
    """Dataclasses and msgspec.Structs: their fields, if msgspec is here."""

    is_key: bool = False

    def take(self, tokens: Tokens, what: str) -> bytes:
        return take_bytes(tokens, what) if self.is_key else super().take(tokens, what)

    def _fields(self, data: bytes) -> Any:
        if importlib.util.find_spec("msgspec") is None:
            return None
        import msgspec

        try:
            return jsonable(msgspec.msgpack.decode(data))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def plain(self, data: bytes) -> Any:
        fields = self._fields(data)
        return super().plain(data) | ({} if fields is None else {"fields": fields})

    def shown(self, data: bytes) -> Any:
        fields = self._fields(data)
        return super().shown(data) if fields is None else fields

    def text(self, data: bytes) -> str:
        fields = self._fields(data)
        return super().text(data) if fields is None else printable(json.dumps(fields))


@dataclass(frozen=True)
class Array(Opaque):
    """NumPy's arrays and dtypes. decode: the codec's, which takes no pickles."""

    decode: Callable[[Any], Any] = bytes

    def take(self, tokens: Tokens, what: str) -> bytes:
        return Raw(self.size).take(tokens, what) if self.size else super().take(tokens, what)

    def _array(self, data: bytes) -> Any:
        import numpy as np

        try:
            return np.asarray(self.decode(memoryview(data)))
        except (Error, ValueError, TypeError):
            return None

    def shown(self, data: bytes) -> Any:
        array = self._array(data)
        if array is None:
            return super().shown(data)
        found = {"type": self.name, "shape": list(array.shape)}
        if array.size > ITEMS_SHOWN:
            return found | {"bytes": array.nbytes}
        try:
            values = jsonable(array.tolist())
        except ValueError:
            return found | {"text": str(array)}
        return found | {"values": values} if array.shape else values

    def text(self, data: bytes) -> str:
        array = self._array(data)
        if array is None:
            return super().text(data)
        if not array.shape:
            return printable(str(array[()]))
        if array.size > ITEMS_SHOWN:
            return f"<{self.name} {array.shape}, {array.nbytes:,} bytes>"
        return f"{array.dtype} {array.shape}: {' '.join(str(array.tolist()).split())}"


def is_reference(record: Any, role: Role) -> bool:
    """Whether a type's bytes are an object that the entry refers to.

    Raises LayoutMismatch for a type that this version does not know.
    """
    if record in ("bytes", "str", "object"):
        return True
    if record in ("int", "float", "bool"):
        return False
    if isinstance(record, dict):
        if "struct" in record or "numpy" in record or record.get("of") == "ctypes structure":
            return False
        if record.get("of") in ("dataclass", "msgspec.Struct") or (
            "array" in record and role == "value"
        ):
            return True
    raise LayoutMismatch(f"this version cannot read its {role} type {record!r:.200}")


def kind_of(record: Any, role: Role, size: int, unpickle: bool = False) -> Format:
    """The format of a declared type. size: the bytes of each in the entry; 0 for references.

    Raises LayoutMismatch for a type whose size is another.
    """
    is_key = role == "key"
    if record == "object":
        if is_key:
            load = pickle.loads if unpickle else Pickle
            return ObjectKey(0, "object", load)
        return Unpickled(0, "pickle") if unpickle else Opaque(0, "pickle")
    if record in ("str", "bytes"):
        return Utf8(0, "str") if record == "str" else Octets(0, "bytes")
    name = record_name(record)
    if isinstance(record, str):
        return _number(PATTERNS[record], is_key, size, name)
    if "struct" in record:
        return _number(record["struct"], is_key, size, name)
    dtype = record.get("numpy")
    if isinstance(dtype, str) and dtype[1:] in NUMPY_LETTERS:  # NumPy is not needed for a number
        pattern = dtype[0].replace("|", "<") + NUMPY_LETTERS[dtype[1:]]
        return _number(pattern, is_key, size, name)
    if "numpy" in record or "array" in record:
        return _array(record, role, size, name)
    if record["of"] == "ctypes structure":
        return Inline(size, f"ctypes structure {record.get('class')}")
    return Message(0, f"{record['of']} {record.get('class')}", is_key)


def _number(pattern: Any, is_key: bool, size: int, name: str) -> Format:
    try:
        used = struct.calcsize(pattern)
        if used > size or (used != size if is_key else size - used >= WORD_BYTES):
            raise LayoutMismatch(f"{name} has {used} bytes, and there are {size}")
        made = make_record(f"{pattern}{size - used}x", size, "")
    except (struct.error, TypeError, ValueError, Failure) as error:
        raise LayoutMismatch(f"{name} cannot be read: {error}") from None
    return Number(made.size, made.packer, made.converters, is_key)


def _array(record: Any, role: Role, size: int, name: str) -> Format:
    if importlib.util.find_spec("numpy") is None:
        return Inline(size, name) if size else Opaque(0, name)
    from shmrhash._types import codec_for, type_of_record

    try:
        codec = codec_for(type_of_record(record, role), role)
    except (Error, TypeError, ValueError, KeyError, SyntaxError, RecursionError) as error:
        raise LayoutMismatch(f"{name:.200} cannot be read: {error}") from None
    if not codec.by_reference and codec.size != size:
        raise LayoutMismatch(f"{name:.200} has {codec.size} bytes, and there are {size}")
    assert codec.decode is not None
    short = name.removeprefix("the ")
    return Array(size, short, codec.decode)


def chosen(spec: Spec, kind: Format, role: Role) -> Format:
    """The format that the user asked for; Failure if the dict's type is another."""
    if spec.kind == "raw":
        return kind
    if isinstance(kind, ObjectKey) and spec.kind in ("str", "u64"):
        return replace(kind, written="str" if spec.kind == "str" else "int")
    if kind.size:
        return spec.fit(kind.size, role)
    if spec.kind == "str" and isinstance(kind, (Utf8, Octets)):
        return Utf8(0, "str")
    name = getattr(kind, "name", "")
    raise Failure(f"the {role}s of this dict are of the type {name}, not {spec.kind}")
