"""Records: the JSON by which a schema names a type, read without the class that it names.

    "int"  "float"  "bool"                              inline
    "str"  "bytes"  "object"                            by reference
    {"struct": format}                                  inline
    {"numpy": dtype}                                    inline
    {"array": dtype, "shape": sizes or null}            by reference
    {"class": name, "of": "ctypes structure",           inline
     "fields": text}
    {"class": name, "of": "dataclass"                   by reference
     or "msgspec.Struct", "stored": description}

The module of each type makes its records. A record that is read may be any JSON: the segment may be
damaged, or of another version.
"""

from __future__ import annotations

from typing import Any

from shmrhash._errors import LayoutMismatch
from shmrhash._types.codec import Role
from shmrhash._types.descriptions import compatible, text_of

# The bytes of these types in an entry, as struct formats.
PATTERNS = {"int": "<q", "float": "<d", "bool": "<?"}
STRUCTURE, DATACLASS, STRUCT = "ctypes structure", "dataclass", "msgspec.Struct"  # as "of"


def by_reference(record: Any, role: Role) -> bool:
    """Whether the bytes of a type are an object that the entry refers to.

    Raises LayoutMismatch for a type that this version does not know.
    """
    if record in ("str", "bytes", "object"):
        return True
    if isinstance(record, str) and record in PATTERNS:
        return False
    if isinstance(record, dict):
        of = record.get("of")
        if "struct" in record or "numpy" in record or of == STRUCTURE:
            return False
        if of in (DATACLASS, STRUCT) or ("array" in record and role == "value"):
            return True
    raise LayoutMismatch(f"this version cannot read its {role} type {record!r:.200}")


def same_stored(one: Any, other: Any, role: Role) -> bool:
    """Whether two records stand for types that can read each other's entries."""
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


def record_name(record: Any) -> str:
    """A record as text for people."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return f"an unknown type, {record!r:.60}"
    if "struct" in record:
        return f"the struct format {record['struct']!r}"
    if "numpy" in record:
        return f"the dtype {record['numpy']}"
    if "array" in record:
        return f"Array({record['array']!r}, shape={record.get('shape')})"
    fields = text_of(record["stored"]) if "stored" in record else record.get("fields")
    return f"the {record.get('of', 'class')} {record.get('class')} with {fields}"


def class_name(cls: type) -> str:
    """The module and name of a class, the same in a program and in the children it spawns."""
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}.{cls.__qualname__}"
