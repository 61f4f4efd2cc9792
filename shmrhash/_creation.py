"""How a map is made: its arguments, checked as the kernel checks them, and its segment.

make_segment() fills a file that has no name yet. RHashMap.create() attaches to it and then gives it
its name.
"""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from shmrhash import _core
from shmrhash._arguments import whole_number
from shmrhash._constants import (
    BPF_F_NO_COMMON_LRU,
    BPF_F_NO_PREALLOC,
    BPF_F_NUMA_NODE,
    BPF_F_RDONLY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY,
    BPF_F_WRONLY_PROG,
    BPF_F_ZERO_SEED,
    CACHE_BYTES,
    CACHE_ENTRY_BYTES,
    ENTRIES_MAX,
    PAGE_BYTES,
)
from shmrhash._errors import InvalidArgument, TooLarge
from shmrhash._fields import Birth, Kptr, Tags
from shmrhash._refusals import segment_exists
from shmrhash._segment import committer, create_file, file_system_bytes

_FLAGS_KNOWN = (
    BPF_F_NO_PREALLOC
    | BPF_F_NO_COMMON_LRU
    | BPF_F_NUMA_NODE
    | BPF_F_RDONLY
    | BPF_F_WRONLY
    | BPF_F_RDONLY_PROG
    | BPF_F_WRONLY_PROG
)
_KEY_BYTES_MAX = 65535
_PAIR_SIZE_LIMIT = (4 << 20) - 48  # KMALLOC_MAX_SIZE less the kernel's struct htab_elem
_PRESIZE_MAX = 65535
_MAX_BYTES_LEAST = 64 << 20
_MAX_BYTES_USABLE = 64 << 10
_MAX_BYTES_DEFAULT = 640 << 20  # at most: it reserves 62 GiB of addresses, of some 128 TiB
_DEPOTS_MIN = 2
_LEAST_TURNS = 8  # each adds a fifteenth of what the one before has added
_DEPOTS_MAX = 256


class Sizes(NamedTuple):
    """The numbers that create() takes, checked."""

    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    map_extra: int


def checked_sizes(
    key_size: Any, value_size: Any, max_entries: Any, map_flags: Any, map_extra: Any
) -> Sizes:
    """These numbers, checked in the kernel's order (map_create, rhtab_map_alloc_check).

    Raises TypeError, InvalidArgument, TooLarge.
    """
    sizes = Sizes(
        whole_number("key_size", key_size),
        whole_number("value_size", value_size),
        whole_number("max_entries", max_entries),
        whole_number("map_flags", map_flags),
        whole_number("map_extra", map_extra),
    )
    flags, presize = sizes.map_flags, sizes.map_extra
    if flags & BPF_F_RDONLY and flags & BPF_F_WRONLY:
        raise InvalidArgument("BPF_F_RDONLY and BPF_F_WRONLY exclude each other")
    if not flags & BPF_F_NO_PREALLOC:
        raise InvalidArgument("map_flags must contain BPF_F_NO_PREALLOC: nothing is preallocated")
    if flags & BPF_F_ZERO_SEED:
        raise InvalidArgument("BPF_F_ZERO_SEED is not supported: every map has its own hash seed")
    if sizes.key_size > _KEY_BYTES_MAX:
        raise TooLarge(f"key_size is at most {_KEY_BYTES_MAX} bytes, not {sizes.key_size}")
    if presize < 0 or presize >> 32:
        raise InvalidArgument(f"map_extra is a number of entries below 2**32, not {presize}")
    if presize > _PRESIZE_MAX:
        raise TooLarge(
            f"map_extra, the presize hint, is at most {_PRESIZE_MAX} entries, not {presize}"
        )
    if presize > sizes.max_entries:
        raise InvalidArgument(f"map_extra ({presize}) exceeds max_entries ({sizes.max_entries})")
    if flags & ~_FLAGS_KNOWN or flags < 0:
        raise InvalidArgument(f"map_flags {flags:#x} has bits that no map of this type has")
    if flags & BPF_F_RDONLY_PROG and flags & BPF_F_WRONLY_PROG:
        raise InvalidArgument("BPF_F_RDONLY_PROG and BPF_F_WRONLY_PROG exclude each other")
    if flags & BPF_F_NO_COMMON_LRU:
        raise InvalidArgument("BPF_F_NO_COMMON_LRU is for LRU maps")
    for what in ("max_entries", "key_size", "value_size"):
        number = getattr(sizes, what)
        if number <= 0:
            raise InvalidArgument(f"{what} must be at least 1, not {number}")
    pair = sizes.key_size + sizes.value_size
    if pair >= _PAIR_SIZE_LIMIT:
        raise TooLarge(f"key_size + value_size must be below {_PAIR_SIZE_LIMIT} bytes, not {pair}")
    if sizes.max_entries > ENTRIES_MAX:
        raise TooLarge(f"max_entries is at most 2**31, not {sizes.max_entries}")
    return sizes


def make_segment(
    name: str,
    path: str,
    sizes: Sizes,
    *,
    mode: int,
    ephemeral: bool,
    places: list[tuple[int, int]],
    max_bytes: int | None,
    schema: bytes,
    seeds: tuple[int, ...] | None,
    is_space: bool = False,
    is_cache: bool = False,
) -> int:
    """The descriptor of a new file without a name that holds an empty map.

    name, path: those that the file is to get. places: (kind, offset) of the special fields. The
    rest is as for RHashMap.create(). is_space: whether its values are cells.

    Raises SegmentExists, InvalidArgument, TooLarge, SegmentFull, LimitReached, PermissionDenied,
    Unsupported, SystemFailure.
    """
    if os.path.lexists(path):
        raise segment_exists(name, path)
    kinds = {kind for kind, _ in places}
    is_cache = is_cache or Birth.kind in kinds
    has_tags = Tags.kind in kinds
    if len(schema) > _core.SCHEMA_BYTES_MAX:
        raise TooLarge(f"a schema has at most {_core.SCHEMA_BYTES_MAX} bytes, not {len(schema)}")
    size, limit, depots = _bytes_of(name, sizes, places, max_bytes, is_cache, has_tags)
    fd = create_file(name, size, mode)
    try:
        _core.segment_prepare(
            fd,
            name,
            **sizes._asdict(),
            depot_count=depots,
            ephemeral=ephemeral,
            seeds=_seed_bytes(seeds),
            created_ns=time.time_ns(),
            commit=committer(fd, name),
            max_bytes=limit,
            fields=tuple(places),
            schema=schema,
            is_space=is_space,
            is_cache=is_cache,
            has_tags=has_tags,
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def expect_possible(
    name: str,
    key_size: int,
    value_size: int,
    places: list[tuple[int, int]],
    max_entries: int,
    max_bytes: int | None,
) -> None:
    """Raise what make_segment() would raise for these numbers, before anything is made or removed.
    The rest is as for make_segment()."""
    sizes = checked_sizes(key_size, value_size, max_entries, BPF_F_NO_PREALLOC, 0)
    kinds = {kind for kind, _ in places}
    _bytes_of(name, sizes, places, max_bytes, Birth.kind in kinds, Tags.kind in kinds)


def _bytes_of(
    name: str,
    sizes: Sizes,
    places: list[tuple[int, int]],
    max_bytes: int | None,
    is_cache: bool,
    has_tags: bool,
) -> tuple[int, int, int]:
    """The size of a segment's file, its max_bytes (0: no objects), and its depots. Raises
    InvalidArgument, TooLarge."""
    depots = _depot_count()
    if is_cache:
        limit, depots = _cache_bytes(name, sizes, depots, max_bytes, has_tags)
    else:
        limit = _object_bytes(name, places, max_bytes)
    size = _core.segment_bytes(
        sizes.key_size, sizes.value_size, sizes.max_entries, depots, limit, is_cache, has_tags
    )
    if size is None:
        raise TooLarge(
            f"{sizes.max_entries} entries of {sizes.key_size} + {sizes.value_size} bytes, and "
            f"{limit} bytes of objects, exceed the address space"
        )
    return size, limit, depots


def _object_bytes(name: str, places: list[tuple[int, int]], max_bytes: int | None) -> int:
    """Bytes of objects that a map with these special fields may hold; 0 without Kptr fields."""
    if not any(kind == Kptr.kind for kind, _ in places):
        if max_bytes is not None:
            raise InvalidArgument("max_bytes is for maps with Kptr fields; this map has none")
        return 0
    if max_bytes is None:
        return min(max(file_system_bytes(name), _MAX_BYTES_LEAST), _MAX_BYTES_DEFAULT)
    max_bytes = _addressable(max_bytes)
    if max_bytes < _MAX_BYTES_USABLE:
        raise InvalidArgument(
            f"max_bytes must be at least {_MAX_BYTES_USABLE}, which objects take at a time, "
            f"not {max_bytes}"
        )
    return whole_pages(max_bytes)


def _cache_bytes(
    name: str, sizes: Sizes, depots: int, max_bytes: int | None, has_tags: bool
) -> tuple[int, int]:
    """Bytes that the whole segment of a cache may take, and its depots.

    Depots take 3 KiB for each CPU. Where that leaves a small cache little else, CPUs share them.
    """
    limit = CACHE_BYTES if max_bytes is None else max(0, _addressable(max_bytes))
    limit -= limit % PAGE_BYTES
    derived = sizes.max_entries == max(1, limit // CACHE_ENTRY_BYTES)

    def bytes_with(depots: int, entries: int = sizes.max_entries) -> tuple[int, int]:
        # PAGE_BYTES: with 0 bytes a map would have no objects
        return _core.cache_bytes(
            sizes.key_size, sizes.value_size, entries, depots, max(limit, PAGE_BYTES), has_tags
        )

    least, entries = bytes_with(depots)
    if max_bytes is None:  # beside all entries that the maker wants
        return limit + entries, depots
    while limit - limit // 8 < least and depots > _DEPOTS_MIN:  # at most 7 turns
        depots //= 2
        least, _ = bytes_with(depots)
    if limit >= least:
        return limit, depots
    if not derived:
        raise InvalidArgument(
            f"cache {name!r}: max_bytes={max_bytes} is too little for a cache of max_entries="
            f"{sizes.max_entries}, which needs {least} at least: give more, or fewer entries"
        )
    for _ in range(_LEAST_TURNS):  # more bytes have more entries, which take some of them
        least, _ = bytes_with(_DEPOTS_MIN, least // CACHE_ENTRY_BYTES)
    raise InvalidArgument(
        f"cache {name!r}: max_bytes={max_bytes} is too little for such a cache, which needs "
        f"{least} at least"
    )


def _addressable(max_bytes: object) -> int:
    count = whole_number("max_bytes", max_bytes)
    if count >> 62 > 0:
        raise TooLarge(f"max_bytes={count} exceeds the address space")
    return count


def whole_pages(count: int) -> int:
    """count bytes, rounded up to whole pages, as max_bytes of objects are."""
    return -(-count // PAGE_BYTES) * PAGE_BYTES


def _depot_count() -> int:
    """The number of CPUs, rounded up to a power of two, from 2 to 256."""
    cpus = os.cpu_count() or 1
    return min(_DEPOTS_MAX, max(_DEPOTS_MIN, 1 << (cpus - 1).bit_length()))


def _seed_bytes(seeds: tuple[int, ...] | None) -> bytes:
    """Four 64-bit seeds: random, or for tests the given ones, repeated."""
    if seeds is None:
        return os.urandom(32)
    four = (tuple(seeds) * 4)[:4]
    return b"".join(seed.to_bytes(8, "little") for seed in four)
