"""JSON laid out as bpftool lays it out, compact and pretty: what reads the one reads the other."""

import json
from typing import Any

INDENT = "    "


def dumps(value: Any, pretty: bool, depth: int = 0) -> str:
    """value as JSON text. depth: how many objects and arrays are open around it."""
    if isinstance(value, dict):
        return _object(value, pretty, depth)
    if isinstance(value, (list, tuple)):
        items = ",".join(dumps(item, pretty, depth + 1) for item in value)
        return f"[{items}{line_break(pretty and bool(value), depth)}]"
    return json.dumps(value)


def _object(value: dict[str, Any], pretty: bool, depth: int) -> str:
    inside = line_break(pretty, depth + 1)
    colon = ": " if pretty else ":"
    items = ",".join(
        f"{inside}{json.dumps(name)}{colon}{dumps(item, pretty, depth + 1)}"
        for name, item in value.items()
    )
    return f"{{{items}{line_break(pretty and bool(value), depth)}}}"


def line_break(pretty: bool, depth: int) -> str:
    """What stands before a name, or before what closes an object or array that is not empty."""
    return "\n" + INDENT * depth if pretty else ""


def hex_array(data: bytes) -> str:
    """hex_strings() as compact JSON, without the detour."""
    joined = data.hex(",").replace(",", '","0x')
    return f'["0x{joined}"]' if data else "[]"


def hex_strings(data: bytes) -> list[str]:
    """Bytes as bpftool shows them in JSON."""
    return [f"0x{byte:02x}" for byte in data]
