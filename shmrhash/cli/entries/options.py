"""The formats of keys and values: from the user's options, or from their declared types."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click

from shmrhash import LayoutMismatch, RHashMap
from shmrhash._inspect import (
    PATTERNS,
    WORD_BYTES,
    Role,
    Types,
    array_codec,
    record_name,
    records_of,
)
from shmrhash.cli.entries.formats import Format, Pair, Raw, Spec, make_record
from shmrhash.cli.entries.rows import row_format
from shmrhash.cli.entries.typed import (
    Array,
    Inline,
    Message,
    Number,
    ObjectKey,
    Octets,
    Opaque,
    Pickle,
    Unpickled,
    Utf8,
)
from shmrhash.cli.errors import Failure

NUMPY_LETTERS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
}  # fmt: skip
RAW = Spec()

Function = Callable[..., Any]


@dataclass(frozen=True)
class DataOptions:
    """The formats that options ask for; by default bytes, the dtypes of rows, or a SharedDict's
    declared types."""

    key: Spec = RAW
    value: Spec = RAW
    raw: bool = False
    unpickle: bool = False

    def fit(self, shared_map: RHashMap, schema: bytes = b"") -> Pair:
        """The formats for a map's keys and values. schema: with the dtypes of its rows, if it keeps
        them; by default they are the formats."""
        key, value = records_of(b"" if self.raw else schema)
        return Pair(
            _fitted(self.key, key, shared_map.key_size, "key"),
            _fitted(self.value, value, shared_map.value_size, "value"),
        )

    def fit_types(self, shared_map: RHashMap, types: Types) -> Pair:
        """The formats for the encoded keys and values of a SharedDict.

        Raises LayoutMismatch for types of other sizes than the dict's; Failure: see chosen().
        """
        key_size = 0 if types.key_by_reference else shared_map.key_size
        value_size = shared_map.value_size - types.value_offset
        try:
            key = format_of(types.key, "key", key_size, self.unpickle)
            value = format_of(types.value, "value", value_size, self.unpickle)
        except LayoutMismatch as error:
            raise LayoutMismatch(f"segment {shared_map.name!r}: {error}") from None
        if self.raw:
            return Pair(Raw(key_size), Raw(value_size))
        return Pair(chosen(self.key, key, "key"), chosen(self.value, value, "value"))


def _fitted(spec: Spec, record: Any, size: int, role: Role) -> Format:
    return row_format(record, size) if record and spec == RAW else spec.fit(size, role)


def _take(options: dict[str, Any]) -> DataOptions:
    """Take the DataOptions out of a command's keyword arguments."""
    specs = []
    for side in ("key", "value"):
        given = {kind: options.pop(f"{side}_{kind}") for kind in ("str", "u64", "struct")}
        chosen = [kind for kind, value in given.items() if value]
        if len(chosen) > 1:
            raise Failure(f"{side}s cannot be both {chosen[0]} and {chosen[1]}")
        specs.append(Spec(chosen[0], given["struct"] or "") if chosen else RAW)
    raw, unpickle = options.pop("raw", False), options.pop("unpickle", False)
    if raw and (unpickle or specs != [RAW, RAW]):
        raise Failure("--raw shows bytes: give no other option for the format of data")
    return DataOptions(specs[0], specs[1], raw, unpickle)


def data_options(function: Function) -> Function:
    """Options for the formats of keys and values; the command gets them as its argument data."""

    @functools.wraps(function)
    def command(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, data=_take(options), **options)

    for side, prefix in (("value", "--value-"), ("key", "--")):
        things = f"{side.capitalize()}s"
        packed = f"{things} are fields as Python's struct packs them, such as '<IHH'."
        text = f"{things} are text, padded with NUL."
        numbers = f"{things} are 64-bit numbers."
        for option in (
            click.option(f"{prefix}struct", f"{side}_struct", metavar="FORMAT", help=packed),
            click.option(f"{prefix}u64", f"{side}_u64", is_flag=True, help=numbers),
            click.option(f"{prefix}str", f"{side}_str", is_flag=True, help=text),
        ):
            command = option(command)
    return command


def file_options(function: Function) -> Function:
    """data_options, and --raw for the bytes of what has types or dtypes."""
    text = "Keys and values are bytes in hex, even if their types or dtypes are known."
    return data_options(click.option("--raw", is_flag=True, help=text)(function))


def look_options(function: Function) -> Function:
    """data_options, and --raw and --unpickle for the types of a SharedDict."""
    for option in (
        click.option("--raw", is_flag=True, help="Show bytes, even if types or dtypes are known."),
        click.option(
            "--unpickle",
            is_flag=True,
            help="Unpickle the objects of a SharedDict. This runs code that any user who may write "
            "to it can store: use it only if you trust all of them.",
        ),
    ):
        function = option(function)
    return data_options(function)


# ---- the format of a type ----


def format_of(record: Any, role: Role, size: int, unpickle: bool = False) -> Format:
    """The format of a declared type. size: its bytes in the entry; 0 for an object.

    Raises LayoutMismatch for a type of another size.
    """
    is_key = role == "key"
    if record == "object" and is_key:
        return ObjectKey(0, "object", pickle.loads if unpickle else Pickle)
    if record == "object":
        return (Unpickled if unpickle else Opaque)(0, "pickle")
    if record in ("str", "bytes"):
        return Utf8(0, "str") if record == "str" else Octets(0, "bytes")
    name = record_name(record)
    if isinstance(record, str):
        return _number(PATTERNS[record], is_key, size, name)
    if "struct" in record:
        return _number(record["struct"], is_key, size, name)
    dtype = record.get("numpy")
    if isinstance(dtype, str) and dtype[1:] in NUMPY_LETTERS:  # a number does not need NumPy
        pattern = dtype[0].replace("|", "<") + NUMPY_LETTERS[dtype[1:]]
        return _number(pattern, is_key, size, name)
    if "numpy" in record or "array" in record:
        if importlib.util.find_spec("numpy") is None:
            return Inline(size, name) if size else Opaque(0, name)
        return Array(size, name.removeprefix("the "), array_codec(record, role, size))
    if record["of"] == "ctypes structure":
        return Inline(size, f"ctypes structure {record.get('class')}")
    return Message(0, f"{record['of']} {record.get('class')}", is_key)


def _number(pattern: Any, is_key: bool, size: int, name: str) -> Format:
    try:
        used = struct.calcsize(pattern)
        if used > size or (used != size if is_key else size - used >= WORD_BYTES):
            raise LayoutMismatch(f"{name} has {used} bytes, but the entry has {size}")
        made = make_record(f"{pattern}{size - used}x", size, "")
    except (struct.error, TypeError, ValueError, Failure) as error:
        raise LayoutMismatch(f"{name} cannot be read: {error}") from None
    return Number(made.size, made.packer, made.converters, is_key)


def chosen(spec: Spec, declared: Format, role: Role) -> Format:
    """The format that the user asked for. Raises Failure if it does not fit the declared type."""
    if spec.kind == "raw":
        return declared
    if isinstance(declared, ObjectKey) and spec.kind in ("str", "u64"):
        return replace(declared, written="str" if spec.kind == "str" else "int")
    if declared.size:
        return spec.fit(declared.size, role)
    if spec.kind == "str" and isinstance(declared, (Utf8, Octets)):
        return Utf8(0, "str")
    name = getattr(declared, "name", "")
    raise Failure(f"the {role}s of this dict have the type {name}, not {spec.kind}")
