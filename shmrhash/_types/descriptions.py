"""Descriptions of what msgspec stores of a class: kept in a segment, and compared at each open.

A description is JSON: the name of a simple type; or a list, its first item the kind, the rest the
types inside; or for a class a dict, "f": [name, type, whether it is required] of each field, and
options that change the bytes: "a": by position; "t": its tag; "x": unknown fields are refused; "o":
defaults are left out. A class that was described before is ["ref", its number], so classes may be
recursive.

Two descriptions are compatible if each side can read what the other wrote. So the names of classes,
their modules and the spelling of types do not matter; a field may be added or removed if it has a
default. Keys are found by their bytes, so descriptions of keys must be equal.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any

_PLAIN_MAX = 320  # bytes of a description as it is; a longer one is compressed
_PACKED_MAX = 560  # of a compressed one: two fit into a schema; a digest replaces a longer one
_UNPACKED_MAX = 1 << 20
_LISTS = {"ListType": "list", "VarTupleType": "list", "CollectionType": "list"}
_SETS = {"SetType": "set", "FrozenSetType": "set"}
_CLASSES = ("StructType", "DataclassType", "TypedDictType", "NamedTupleType")
_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")


class Describer:
    """Makes the description of a class. classes: those that it describes, in order."""

    def __init__(self) -> None:
        self.classes: list[Any] = []
        self._described: list[Any] = []

    def describe(self, kind: Any) -> Any:
        """The description of kind, a type of msgspec.inspect."""
        name = type(kind).__name__
        if name in _CLASSES:
            return self._class(kind, name)
        limits = {
            limit: value for limit in _LIMITS if (value := getattr(kind, limit, None)) is not None
        }
        found = self._simple(kind, name)
        return ["limited", found, limits] if limits else found

    def _simple(self, kind: Any, name: str) -> Any:
        if name in _LISTS or name in _SETS:
            return [_LISTS.get(name) or _SETS[name], self.describe(kind.item_type)]
        if name == "TupleType":
            return ["tuple", *map(self.describe, kind.item_types)]
        if name == "DictType":
            return ["dict", self.describe(kind.key_type), self.describe(kind.value_type)]
        if name == "UnionType":
            return ["union", *sorted(map(self.describe, kind.types), key=_place)]
        if name == "LiteralType":
            return ["literal", *sorted(kind.values, key=repr)]
        if name == "EnumType":
            self.classes.append(kind.cls)
            return ["enum", *sorted((member.value for member in kind.cls), key=repr)]
        if name in ("CustomType", "ExtType", "RawType"):
            return ["other", str(getattr(kind, "cls", name))]
        return name.removesuffix("Type").lower()

    def _class(self, kind: Any, name: str) -> Any:
        if kind.cls in self._described:
            return ["ref", self._described.index(kind.cls)]
        self.classes.append(kind.cls)
        self._described.append(kind.cls)
        found: dict[str, Any] = {}
        found["f"] = [
            [
                getattr(field, "encode_name", field.name),
                self.describe(field.type),
                int(field.required),
            ]
            for field in kind.fields
        ]
        if name == "NamedTupleType" or getattr(kind, "array_like", False):
            found["a"] = "tuple" if name == "NamedTupleType" else "array"
        if getattr(kind, "tag", None) is not None:
            found["t"] = [kind.tag_field, kind.tag]
        if getattr(kind, "forbid_unknown_fields", False):
            found["x"] = 1
        config = getattr(kind.cls, "__struct_config__", None)
        if config is not None and config.omit_defaults:
            found["o"] = [repr(field.default) for field in kind.fields if not field.required]
        if name == "TypedDictType" and not all(field.required for field in kind.fields):
            found["o"] = "absent"
        return found


def _place(description: Any) -> str:
    """The sort key of a union's member: msgspec tells members apart by kind, and classes by tag."""
    if isinstance(description, dict):
        return "class " + str(description.get("t"))
    return description if isinstance(description, str) else "list " + str(description[0])


def packed(description: Any) -> Any:
    """The description in a form that fits into a schema: as it is, compressed, or a digest."""
    text = json.dumps(description, separators=(",", ":")).encode()
    if len(text) <= _PLAIN_MAX:
        return json.loads(text)
    small = base64.b85encode(zlib.compress(text, 9)).decode()
    if len(small) <= _PACKED_MAX:
        return ["z", small]
    return ["digest", hashlib.sha256(text).hexdigest(), len(description["f"])]


def unpacked(record: Any) -> Any:
    """The description that packed() was given, or the digest. Raises ValueError."""
    if not isinstance(record, list) or record[:1] != ["z"]:
        return record
    try:
        return json.loads(
            zlib.decompressobj().decompress(base64.b85decode(record[1]), _UNPACKED_MAX)
        )
    except (zlib.error, TypeError, IndexError) as error:
        raise ValueError(f"not a description: {error}") from None


def compatible(one: Any, other: Any) -> bool:
    """Whether programs with these packed descriptions can read each other's values."""
    if one == other:
        return True
    try:
        return _Comparison(unpacked(one), unpacked(other)).agree()
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return False  # no version of this library writes such a description


class _Comparison:
    """A comparison of two descriptions, one of which may be any JSON."""

    def __init__(self, one: Any, other: Any) -> None:
        self._sides = one, other
        self._classes: tuple[list[Any], list[Any]] = [], []
        self._seen: set[tuple[int, int]] = set()
        for description, classes in zip(self._sides, self._classes, strict=True):
            _collect(description, classes)

    def agree(self) -> bool:
        return self._agree(*self._sides)

    def _agree(self, one: Any, other: Any) -> bool:
        one, other = self._resolved(one, 0), self._resolved(other, 1)
        if isinstance(one, dict) and isinstance(other, dict):
            pair = id(one), id(other)
            if pair in self._seen:
                return True  # this pair is being compared, or was compared
            self._seen.add(pair)
            return self._classes_agree(one, other)
        if type(one) is not type(other) or not isinstance(one, list):
            return bool(one == other)
        if one[0] != other[0] or len(one) != len(other):
            return False
        if one[0] in ("literal", "enum", "other", "digest"):
            return bool(one == other)
        return all(map(self._agree, one[1:], other[1:]))

    def _resolved(self, description: Any, side: int) -> Any:
        if isinstance(description, list) and description[0] == "ref":
            return self._classes[side][description[1]]
        return description

    def _classes_agree(self, one: Any, other: Any) -> bool:
        if any(one.get(part) != other.get(part) for part in ("a", "t", "o")):
            return False
        if "a" in one:
            common = min(len(one["f"]), len(other["f"]))
            pairs = list(zip(one["f"], other["f"], strict=False))
            extra = [(one["f"][common:], other), (other["f"][common:], one)]
        else:
            names = [{field[0]: field for field in side["f"]} for side in (one, other)]
            pairs = [(field, names[1][field[0]]) for field in one["f"] if field[0] in names[1]]
            extra = [
                ([field for field in one["f"] if field[0] not in names[1]], other),
                ([field for field in other["f"] if field[0] not in names[0]], one),
            ]
        for fields, reader in extra:
            # A side with the field reads messages without it, and the other side messages with it.
            if any(field[2] for field in fields) or (fields and "x" in reader):
                return False
            if fields and one.get("a") == "tuple":
                return False  # msgspec refuses a named tuple with too many items
        for first, second in pairs:
            if first[0] != second[0] or ("o" in one and first[2] != second[2]):
                return False
            if not self._agree(first[1], second[1]):
                return False
        return True


def _collect(description: Any, classes: list[Any]) -> None:
    """Append the classes of a description to classes, in the order of their numbers."""
    if isinstance(description, dict):
        classes.append(description)
        for field in description["f"]:
            _collect(field[1], classes)
    elif isinstance(description, list) and description[0] not in ("literal", "enum", "other"):
        for inner in description[1:]:
            _collect(inner, classes)


def text_of(record: Any) -> str:
    """The fields of a packed description, as text for people."""
    try:
        description = unpacked(record)
        if description[0:1] == ["digest"] if isinstance(description, list) else False:
            return f"{description[2]} fields, digest {description[1]}"
        text = ", ".join(f"{name}: {_name(kind)}" for name, kind, _ in description["f"])
        flags = [
            word
            for part, word in (
                ("a", "by position"),
                ("x", "unknown fields are refused"),
                ("o", "defaults are left out"),
            )
            if part in description
        ]
        if "t" in description:
            flags.append("tag {}={!r}".format(*description["t"]))
        return f"{text} ({', '.join(flags)})" if flags else text
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return f"an unknown type, {record!r:.60}"


def _name(description: Any) -> str:
    if isinstance(description, dict):
        return "{" + text_of(description) + "}"
    if not isinstance(description, list):
        return str(description)
    kind, *inner = description
    if kind == "limited":
        return f"{_name(inner[0])} with {inner[1]}"
    if kind in ("literal", "enum", "other", "ref"):
        return f"{kind} " + ", ".join(map(repr, inner))
    if kind == "union":
        return " | ".join(map(_name, inner))
    return f"{kind}[{', '.join(map(_name, inner))}]"


def ambiguous(description: Any) -> str | None:
    """Why equal keys of a class could be stored as different bytes; None if they cannot."""
    numbers = {"bool", "int", "float"}
    if isinstance(description, dict):
        inner = [field[1] for field in description["f"]]
    elif isinstance(description, list) and description[0] == "other":
        return "a field of a type that msgspec does not look into"
    elif isinstance(description, list) and description[0] not in ("literal", "enum"):
        inner = [part for part in description[1:] if not isinstance(part, int)]
        if description[0] == "union" and len(numbers.intersection(map(str, inner))) > 1:
            return f"{_name(description)}, where 1 and 1.0 are equal"
        if description[0] == "limited":
            inner = inner[:1]
    else:
        unsure = {"decimal": "decimal, where 1.0 and 1.00 are equal", "any": "a field of any type"}
        return unsure.get(description) if isinstance(description, str) else None
    return next((why for why in map(ambiguous, inner) if why), None)
