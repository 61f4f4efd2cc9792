"""Read-only and write-only handles, and frozen maps: how each side answers every operation.

expected("kernel", "writer", "lookup_batch", 8)    -> "EPERM"
expected("ours", "writer", "lookup_batch", 8)      -> "EINVAL"
expected("ours", "writer", "update", 0)            -> None: it is allowed
"""

from collections.abc import Callable
from typing import NamedTuple

from support.kernel.sides import ANY, EXIST, LOCK, NOEXIST

INVALID_FLAGS = [3, 7, 8, 16, 1 << 31, 1 << 32, 1 << 63, -1]
UPDATE_VALID = [ANY, NOEXIST, EXIST, LOCK | ANY, LOCK | NOEXIST, LOCK | EXIST]
LOCK_VALID = [0, LOCK]


class Call(NamedTuple):
    """One operation."""

    needs: str  # the right that it needs: "r" to read, "w" to write
    valid: list | None  # the flags that are valid; None: it has no flags
    do: Callable  # a function of a side, a key, a value and flags


CALLS = {
    "lookup": Call("r", LOCK_VALID, lambda side, key, value, flags: side.lookup(key, flags)),
    "get_next_key": Call("r", None, lambda side, key, value, flags: side.get_next_key()),
    "update": Call("w", UPDATE_VALID, lambda side, *given: side.update(*given)),
    "delete": Call("w", None, lambda side, key, value, flags: side.delete(key)),
    "lookup_and_delete": Call(
        "rw", LOCK_VALID, lambda side, key, value, flags: side.lookup_and_delete(key, flags)
    ),
    "lookup_batch": Call(
        "r", LOCK_VALID, lambda side, key, value, flags: side.lookup_batch(None, 100, flags)
    ),
    "lookup_and_delete_batch": Call(
        "rw",
        LOCK_VALID,
        lambda side, key, value, flags: side.lookup_and_delete_batch(None, 100, flags),
    ),
    # NOEXIST and EXIST are valid on our side alone: DIFFERENCES["flags of update_batch"].
    "update_batch": Call(
        "w", UPDATE_VALID, lambda side, key, value, flags: side.update_batch([key], [value], flags)
    ),
    "delete_batch": Call(
        "w", LOCK_VALID, lambda side, key, value, flags: side.delete_batch([key], flags)
    ),
}

# The permission that each kind of handle or map lacks.
LACKS = {
    "reader": "w",
    "writer": "r",
    "frozen": "w",
    "frozen reader": "w",
    "frozen writer": "rw",
}

FLAGS_FIRST_IN_THE_KERNEL = ("lookup", "lookup_and_delete")


def expected(side, kind, name, flags):
    """Return the name of the errno with which `side`, "kernel" or "ours", refuses the operation for
    lack of permission, or None if it is allowed. DIFFERENCES["flags without permission"] is where
    the two sides differ."""
    call = CALLS[name]
    if not set(call.needs) & set(LACKS[kind]):
        return None
    if side == "kernel":
        flags_first = name in FLAGS_FIRST_IN_THE_KERNEL
    else:
        flags_first = "reader" not in kind
    wrong = call.valid is not None and flags not in call.valid
    return "EINVAL" if wrong and flags_first else "EPERM"
