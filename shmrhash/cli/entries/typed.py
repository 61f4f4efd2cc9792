"""The declared types of SharedDicts: a Format for the encoded bytes of each.

No code here imports the classes that a segment names. Only Unpickled unpickles, and an ObjectKey
whose load is pickle.loads. Bytes that cannot be shown as values are shown as their type and size;
to_json() gives them in base64, so that every exported entry can be imported.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib.util
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmrhash import Error
from shmrhash._inspect import decode_key, encode_key
from shmrhash.cli.entries.formats import Format, Raw, Record, sized
from shmrhash.cli.errors import Failure
from shmrhash.cli.screen import printable
from shmrhash.cli.words import Words

INT_BITS_MAX = 4096  # Python refuses to print numbers of more than 4300 digits
DEPTH_MAX = 50
ITEMS_SHOWN = 64  # items of an array, or bytes, in a line


def jsonable(thing: Any, depth: int = 0) -> Any:
    """thing as a value of JSON. Raises ValueError if JSON has no such value."""
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
    raise ValueError(f"JSON has no {kind.__name__}")


def repr_of(thing: Any) -> str:
    """repr(), or a text with the error that it raises."""
    try:
        return repr(thing)
    except Exception as error:  # a number too long to print, or a class with a bad __repr__
        return f"<{type(thing).__name__}: {error}>"


# ---- bytes whose type is known ----


@dataclass(frozen=True)
class Opaque(Format):
    """Bytes of which only the type and the size are shown."""

    name: str

    def from_words(self, words: Words, what: str) -> bytes:
        raise Failure(f"the {what} has the type {self.name}, which only a program can make")

    def from_json(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict) and isinstance(value.get("base64"), str):
            try:
                data = base64.b64decode(value["base64"], validate=True)
            except (binascii.Error, ValueError):
                raise Failure(f"{what} is not valid base64") from None
            return sized(data, self.size, what)
        raise Failure(f'{what} should be {{"base64": ...}}, for the type {self.name}')

    def to_json(self, data: bytes) -> Any:
        return {"base64": base64.b64encode(data).decode(), "type": self.name}

    def to_display(self, data: bytes) -> Any:
        return {"type": self.name, "bytes": len(data)}

    def to_text(self, data: bytes) -> str:
        return f"<{printable(self.name)}, {len(data):,} bytes>"

    def displayed(self, data: bytes, thing: Any) -> Any:
        """The thing that data was decoded to, as JSON or as repr()."""
        try:
            return jsonable(thing)
        except ValueError:
            return Opaque.to_display(self, data) | {"text": repr_of(thing)}


class Utf8(Opaque):
    """str."""

    def from_words(self, words: Words, what: str) -> bytes:
        return self.from_json(words.next_or_fail(f"{what} expected text"), what)

    def from_json(self, value: Any, what: str) -> bytes:
        if not isinstance(value, str):
            return super().from_json(value, what)
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Failure(f"{what} {value!r} is not UTF-8 text") from None

    def to_json(self, data: bytes) -> Any:
        try:
            return data.decode()
        except UnicodeDecodeError:  # damaged
            return super().to_json(data)

    def to_display(self, data: bytes) -> Any:
        return self.to_json(data)

    def to_text(self, data: bytes) -> str:
        return printable(data.decode(errors="backslashreplace"))


class Octets(Opaque):
    """bytes."""

    def from_words(self, words: Words, what: str) -> bytes:
        return Raw(0).from_words(words, what)

    def to_display(self, data: bytes) -> Any:
        return data.hex()

    def to_text(self, data: bytes) -> str:
        more = f"... ({len(data):,} bytes)" if len(data) > ITEMS_SHOWN else ""
        return repr(data[:ITEMS_SHOWN]) + more


class Inline(Opaque):
    """The bytes of ctypes structures, and of dtypes if NumPy is not installed."""

    def from_words(self, words: Words, what: str) -> bytes:
        return Raw(self.size).from_words(words, what)

    def to_display(self, data: bytes) -> Any:
        return super().to_display(data) | {"hex": data.hex()}

    def to_text(self, data: bytes) -> str:
        more = " ..." if len(data) > ITEMS_SHOWN else ""
        return f"<{printable(self.name)}: {data[:ITEMS_SHOWN].hex(' ')}{more}>"


@dataclass(frozen=True)
class Number(Record):
    """int, float, bool and struct formats."""

    is_key: bool = False

    def from_json(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict):
            return Opaque(self.size, "bytes").from_json(value, what)
        return super().from_json(value, what)

    def _pack(self, fields: list[Any], what: str) -> bytes:
        data = super()._pack(fields, what)
        if not self.is_key or float not in self.converters:
            return data
        items = [item + 0.0 if type(item) is float else item for item in self.packer.unpack(data)]
        return self.packer.pack(*items)  # -0.0 and 0.0 are one key

    def to_json(self, data: bytes) -> Any:
        found = super().to_json(data)
        if self.is_integer:
            return found
        with contextlib.suppress(Failure):
            if super().from_json(found, "") == data:
                return found
        return Opaque(self.size, "struct").to_json(data) | {"fields": found}

    def to_display(self, data: bytes) -> Any:
        return super().to_json(data)


# ---- bytes that are decoded ----


class Pickle:
    """A stand-in that is shown for a pickle that must not be unpickled."""

    def __init__(self, data: bytes) -> None:
        self._size = len(data)

    def __repr__(self) -> str:
        return f"<pickle, {self._size:,} bytes>"


@dataclass(frozen=True)
class ObjectKey(Opaque):
    """Keys of type object. written: "str", "int", or "" to go by the look of the word."""

    load: Callable[[bytes], Any] = Pickle
    written: str = ""

    def _thing(self, data: bytes) -> Any:
        try:
            return decode_key(data, self.load)
        except Exception as error:  # it is damaged or too deep, or unpickling raised it
            return f"<key, {len(data):,} bytes: {error}>"

    def from_words(self, words: Words, what: str) -> bytes:
        word = words.next_or_fail(f"{what} expected a text or a number")
        if self.written == "str":
            return self._encoded(word, what)
        try:
            thing = int(word, 0) if self.written == "int" else json.loads(word)
        except (ValueError, RecursionError):
            if self.written == "int":
                raise Failure(f"{what} {word!r} is not a number") from None
            thing = word
        return self._encoded(thing, what)

    def from_json(self, value: Any, what: str) -> bytes:
        if isinstance(value, dict):
            return super().from_json(value, what)
        return self._encoded(value, what)

    def _encoded(self, thing: Any, what: str) -> bytes:
        thing = _with_tuples(thing)
        try:
            return encode_key(thing)
        except (TypeError, ValueError, OverflowError) as error:
            raise Failure(f"{what} cannot be {printable(repr_of(thing))}: {error}") from None

    def to_json(self, data: bytes) -> Any:
        thing = self._thing(data)
        with contextlib.suppress(ValueError, Failure):
            found = jsonable(thing)
            if type(found) is not float and self.from_json(found, "") == data:
                return found
        return super().to_json(data) | {"text": repr_of(thing)}

    def to_display(self, data: bytes) -> Any:
        return self.displayed(data, self._thing(data))

    def to_text(self, data: bytes) -> str:
        thing = self._thing(data)
        if type(thing) is not str:
            return printable(repr_of(thing))
        try:
            json.loads(thing)
        except (ValueError, RecursionError):
            return printable(thing)
        return json.dumps(thing)  # the text "7", which is not the number


def _with_tuples(thing: Any) -> Any:
    """Lists from JSON as tuples, which can be keys."""
    return tuple(map(_with_tuples, thing)) if isinstance(thing, list) else thing


class Unpickled(Opaque):
    """Pickles to unpickle, which runs any code in them: used only if the user asked for it."""

    def _thing(self, data: bytes) -> tuple[bool, Any]:
        try:
            return True, pickle.loads(data)
        except Exception as error:  # a class that cannot be imported, or anything else
            return False, f"{type(error).__name__}: {error}"

    def to_display(self, data: bytes) -> Any:
        done, thing = self._thing(data)
        if not done:
            return super().to_display(data) | {"problem": thing}
        return self.displayed(data, thing)

    def to_text(self, data: bytes) -> str:
        done, thing = self._thing(data)
        return printable(repr_of(thing) if done else f"<{self.name}, {len(data):,} bytes: {thing}>")


@dataclass(frozen=True)
class Message(Opaque):
    """Dataclasses and msgspec.Structs: their fields, if msgspec is installed."""

    is_key: bool = False

    def from_words(self, words: Words, what: str) -> bytes:
        read = Raw(0).from_words if self.is_key else super().from_words
        return read(words, what)

    def _fields(self, data: bytes) -> Any:
        if importlib.util.find_spec("msgspec") is None:
            return None
        import msgspec

        try:
            return jsonable(msgspec.msgpack.decode(data))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def to_json(self, data: bytes) -> Any:
        fields = self._fields(data)
        return super().to_json(data) | ({} if fields is None else {"fields": fields})

    def to_display(self, data: bytes) -> Any:
        fields = self._fields(data)
        return super().to_display(data) if fields is None else fields

    def to_text(self, data: bytes) -> str:
        fields = self._fields(data)
        return super().to_text(data) if fields is None else printable(json.dumps(fields))


@dataclass(frozen=True)
class Array(Opaque):
    """NumPy's arrays and dtypes. decode: the decoder of the codec, which accepts no pickles."""

    decode: Callable[[Any], Any] = bytes

    def from_words(self, words: Words, what: str) -> bytes:
        read = Raw(self.size).from_words if self.size else super().from_words
        return read(words, what)

    def _array(self, data: bytes) -> Any:
        import numpy as np

        try:
            return np.asarray(self.decode(memoryview(data)))
        except (Error, ValueError, TypeError):
            return None

    def to_display(self, data: bytes) -> Any:
        array = self._array(data)
        if array is None:
            return super().to_display(data)
        found = {"type": self.name, "shape": list(array.shape)}
        if array.size > ITEMS_SHOWN:
            return found | {"bytes": array.nbytes}
        try:
            values = jsonable(array.tolist())
        except ValueError:
            return found | {"text": str(array)}
        return found | {"values": values} if array.shape else values

    def to_text(self, data: bytes) -> str:
        array = self._array(data)
        if array is None:
            return super().to_text(data)
        if not array.shape:
            return printable(str(array[()]))
        if array.size > ITEMS_SHOWN:
            return f"<{self.name} {array.shape}, {array.nbytes:,} bytes>"
        return f"{array.dtype} {array.shape}: {' '.join(str(array.tolist()).split())}"
