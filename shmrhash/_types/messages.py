"""Dataclasses and msgspec.Structs as keys and values: MessagePack, made and read by msgspec."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import weakref
from typing import Any

from shmrhash._errors import InvalidArgument, SegmentCorrupt
from shmrhash._types.codec import Codec, Role, encoded_codec, wrong_instance
from shmrhash._types.descriptions import Describer, ambiguous, packed
from shmrhash._types.records import DATACLASS, STRUCT, class_name


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
    """The description of cls: see descriptions.py. Raises what msgspec raises."""
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
            raise wrong_instance(self._cls, self._role, thing)
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

    of = DATACLASS if dataclasses.is_dataclass(cls) else STRUCT
    record = {"class": class_name(cls), "of": of, "stored": packed(description)}
    return encoded_codec(cls, record, role, _Encoder(cls, role, description, decoder), decode)
