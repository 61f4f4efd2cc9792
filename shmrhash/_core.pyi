"""Types of the extension module (cython/_core.pyx)."""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from typing_extensions import Buffer

_T = TypeVar("_T")

MAGIC_BYTES: bytes

def segment_bytes(
    key_size: int, value_size: int, max_entries: int, depot_count: int
) -> int | None: ...
def segment_prepare(
    fd: int,
    *,
    key_size: int,
    value_size: int,
    max_entries: int,
    map_flags: int,
    map_extra: int,
    depot_count: int,
    ephemeral: bool,
    seeds: bytes,
    created_ns: int,
    commit: Callable[[int, int], None],
) -> None: ...

class MapHandle:
    name: str
    map_flags: int
    map_extra: int
    ephemeral: bool
    recovered_at_open: int
    def __new__(
        cls, fd: int, name: str, path: bytes, read_only: bool, timeout: float | None
    ) -> MapHandle: ...
