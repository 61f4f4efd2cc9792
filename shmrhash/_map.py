"""RHashMap: the public interface of a shared, resizable hash map."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from multiprocessing.util import Finalize, register_after_fork
from types import TracebackType
from typing import Any

from shmrhash import _core, _segment
from shmrhash._arguments import checked_mode, whole_number
from shmrhash._batch import BatchMethods, item_size
from shmrhash._errors import (
    Error,
    InvalidArgument,
    LayoutMismatch,
    LockTimeout,
    SegmentCorrupt,
    SegmentExists,
    SegmentMissing,
    TooLarge,
)
from shmrhash._fields import packed
from shmrhash._locks import LockMethods
from shmrhash._trust import is_trusted, user_text

BPF_ANY = 0
BPF_NOEXIST = 1
BPF_EXIST = 2
BPF_F_LOCK = 4

BPF_F_NO_PREALLOC = 1 << 0
BPF_F_NO_COMMON_LRU = 1 << 1
BPF_F_NUMA_NODE = 1 << 2
BPF_F_RDONLY = 1 << 3
BPF_F_WRONLY = 1 << 4
BPF_F_ZERO_SEED = 1 << 6
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_WRONLY_PROG = 1 << 8

_FLAGS_KNOWN = (
    BPF_F_NO_PREALLOC
    | BPF_F_NO_COMMON_LRU
    | BPF_F_NUMA_NODE
    | BPF_F_RDONLY
    | BPF_F_WRONLY
    | BPF_F_RDONLY_PROG
    | BPF_F_WRONLY_PROG
)
_PAIR_SIZE_LIMIT = (4 << 20) - 48  # KMALLOC_MAX_SIZE less the kernel's struct htab_elem
_ENTRIES_MAX = 1 << 31
_CHECK_TRIES_MAX = 20
_DEFAULT_TIMEOUT = 5.0
_SCHEMA_MAX = 1536
_KPTR = 3  # the kind of a Kptr field
_MAX_BYTES_LEAST = 64 << 20
_MAX_BYTES_USABLE = 16 << 10
_MAX_BYTES_DEFAULT = 1 << 30  # at most: it reserves 44 GiB of addresses, of some 128 TiB

_PROBLEMS = {
    1: "bucket {0} has a level that does not fit the number of buckets",
    2: "bucket {0}, beyond the last, is not empty",
    3: "the chain of bucket {0} has a gap or a line that is nearly empty",
    4: "a reference names {0}, which was never allocated",
    5: "element {0} is named by a bucket and is not live",
    6: "the tag of element {0} is not the hash of its key",
    7: "element {0} stands in a bucket that its hash does not belong to",
    8: "the key of element {0} is in the map twice",
    9: "element or line {0} is named twice",
    10: "depot {0} lists an element that is not free",
    11: "block {0} has a damaged word or free list",
    12: "element or line {0} is lost: nothing names it",
    13: "the credits do not add up: {0} besides the entries",
    14: "a lock is held although nobody is inside an operation (at {0})",
    15: "the table word is damaged: {0} buckets",
    16: "no private memory for the walk",
    17: "object {0} (index * 32 + class) is lost, or named twice",
    18: "the budget of objects counts {0} pages that are not there",
}

_ATTACH_TRIES_MAX = 100
_AFTER_CHILDREN = -100  # multiprocessing joins its children before finalizers of this priority

_handles: weakref.WeakSet[RHashMap] = weakref.WeakSet()
_ephemeral: dict[_segment.Identity, str] = {}  # the ephemeral maps of this process, and their paths


# One fork at a time, so that the pins claimed for a child belong to one child. A fork inside the
# hooks of another fork claims none.
_fork_lock = threading.RLock()
_forks_nested = 0


def _before_fork() -> None:
    global _forks_nested
    _fork_lock.acquire()
    _forks_nested += 1
    if _forks_nested == 1:
        _core.views_before_fork()
    else:
        _core.views_keep()


def _after_fork_in_parent() -> None:
    global _forks_nested
    if _forks_nested == 1:
        _core.views_after_fork_in_parent()
    _forks_nested -= 1
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock, _forks_nested
    _core.forget_sections()
    for handle in list(_handles):
        handle._forget_lock_descriptor()
    _core.views_after_fork_in_child(_forks_nested == 1)
    _fork_lock, _forks_nested = threading.RLock(), 0


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _check_creation(
    key_size: int, value_size: int, max_entries: int, map_flags: int, map_extra: int
) -> None:
    """The kernel's checks in the kernel's order (map_create, rhtab_map_alloc_check)."""
    if map_flags & BPF_F_RDONLY and map_flags & BPF_F_WRONLY:
        raise InvalidArgument("BPF_F_RDONLY and BPF_F_WRONLY exclude each other")
    if not map_flags & BPF_F_NO_PREALLOC:
        raise InvalidArgument("map_flags must contain BPF_F_NO_PREALLOC: nothing is preallocated")
    if map_flags & BPF_F_ZERO_SEED:
        raise InvalidArgument("BPF_F_ZERO_SEED is not supported: every map has its own hash seed")
    if key_size > 65535:
        raise TooLarge(f"key_size is at most 65535 bytes, not {key_size}")
    if map_extra < 0 or map_extra >> 32:
        raise InvalidArgument(f"map_extra is a number of entries below 2**32, not {map_extra}")
    if map_extra > 65535:
        raise TooLarge(f"map_extra, the presize hint, is at most 65535 entries, not {map_extra}")
    if map_extra > max_entries:
        raise InvalidArgument(f"map_extra ({map_extra}) exceeds max_entries ({max_entries})")
    if map_flags & ~_FLAGS_KNOWN or map_flags < 0:
        raise InvalidArgument(f"map_flags {map_flags:#x} has bits no map of this type knows")
    if map_flags & BPF_F_RDONLY_PROG and map_flags & BPF_F_WRONLY_PROG:
        raise InvalidArgument("BPF_F_RDONLY_PROG and BPF_F_WRONLY_PROG exclude each other")
    if map_flags & BPF_F_NO_COMMON_LRU:
        raise InvalidArgument("BPF_F_NO_COMMON_LRU is for LRU maps")
    for what, number in (
        ("max_entries", max_entries),
        ("key_size", key_size),
        ("value_size", value_size),
    ):
        if number <= 0:
            raise InvalidArgument(f"{what} must be at least 1, not {number}")
    if key_size + value_size >= _PAIR_SIZE_LIMIT:
        raise TooLarge(
            f"key_size + value_size must be below {_PAIR_SIZE_LIMIT} bytes, not "
            f"{key_size + value_size}"
        )
    if max_entries > _ENTRIES_MAX:
        raise TooLarge(f"max_entries is at most 2**31, not {max_entries}")


def _object_bytes(name: str, places: list[tuple[int, int]], max_bytes: int | None) -> int:
    """Bytes of objects that a map with these special fields may hold; 0 without Kptr fields."""
    if not any(kind == _KPTR for kind, _ in places):
        if max_bytes is not None:
            raise InvalidArgument("max_bytes is for maps with Kptr fields; this has none")
        return 0
    if max_bytes is None:
        max_bytes = max(_segment.file_system_bytes(name), _MAX_BYTES_LEAST)
        return min(max_bytes, _MAX_BYTES_DEFAULT)
    max_bytes = whole_number("max_bytes", max_bytes)
    if max_bytes < _MAX_BYTES_USABLE:
        raise InvalidArgument(
            f"max_bytes must be at least {_MAX_BYTES_USABLE}, in which some small objects find "
            f"room, not {max_bytes}"
        )
    if max_bytes >> 62:
        raise TooLarge(f"{max_bytes} bytes of objects exceed the address space")
    return -(-max_bytes // 4096) * 4096


def _depot_count() -> int:
    """The number of CPUs, rounded up to a power of two, from 2 to 256."""
    cpus = os.cpu_count() or 1
    return min(256, max(2, 1 << (cpus - 1).bit_length()))


class RHashMap(LockMethods, BatchMethods, _core.MapCore):
    """A hash map of fixed-size keys and values in shared memory, open to any number of processes.

    Made by RHashMap.create(), open() or open_or_create(). Keys and values are bytes, or any other
    contiguous buffer, of exactly key_size and value_size bytes; the map returns them as bytes.

    Each single operation is atomic and linearizable per key (W1). Readers take no lock and never
    wait (R1); they return complete values (R2). A process may be killed at any moment (C1). Threads
    may share a handle. A handle works in the children of a fork, and pickles to its name.

    Attributes: name, key_size, value_size, max_entries, map_flags and map_extra, as given to
    create(); ephemeral, whether the last process to close the map removes its name; read_only;
    write_only; frozen; timeout; closed; recovered_at_open, the number of dead processes that
    attaching recovered.
    """

    def __new__(cls, *args: Any, **more: Any) -> Any:
        if not args or isinstance(args[0], str):
            raise TypeError(
                f"{cls.__name__}() makes no map: use {cls.__name__}.create(name, key_size=..., "
                f"value_size=..., max_entries=...), open(name) or open_or_create(...); "
                f"SharedDict(name) makes a dict of any objects"
            )
        return super().__new__(cls, *args, **more)

    def __init__(self, *_args: object, owner: int | None = None, **_ignored: object) -> None:
        self._owner = owner  # a user whom this handle trusts; a pickle of the handle keeps it
        _handles.add(self)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        key_size: int,
        value_size: int,
        max_entries: int,
        map_flags: int = BPF_F_NO_PREALLOC,
        map_extra: int = 0,
        mode: int = 0o600,
        timeout: float | None = _DEFAULT_TIMEOUT,
        ephemeral: bool = False,
        fields: Iterable[Any] = (),
        max_bytes: int | None = None,
        _schema: bytes = b"",
        _seeds: tuple[int, ...] | None = None,
    ) -> RHashMap:
        """Create a map and attach to it.

        key_size: bytes, 1 to 65535. value_size: bytes; key_size + value_size is below 4 MiB - 48.
        max_entries: entries, 1 to 2**31, a hard limit and not a size to guess: memory is committed
        as the map fills. map_extra: the number of entries for which the bucket array is sized at
        first, at most 65535. mode: permissions of the segment's file; the umask does not change
        them. map_flags: BPF_F_NO_PREALLOC, with BPF_F_RDONLY or BPF_F_WRONLY if the returned handle
        is only to read or only to write. timeout: seconds an operation waits for a lock whose owner
        is alive; None waits without limit. ephemeral: the last process to close the map removes its
        name; if all are killed, the next open() without read_only, or gc(), removes it. fields:
        special fields of the value: SpinLock, Timer, Kptr, Refcount. max_bytes: bytes that objects
        (of Kptr fields) may take; None is as much as the file system has, and 1 GiB at most. 43
        times as many addresses are reserved for them; memory is committed as objects are stored.

        The name appears when the map is complete: no process sees an incomplete map. Costs about
        0.2 ms.

        Raises InvalidArgument and TooLarge in the kernel's order of checks, SegmentExists,
        SegmentFull, LimitReached (ulimit), PermissionDenied, Unsupported (a system call is
        refused).
        """
        key_size = whole_number("key_size", key_size)
        value_size = whole_number("value_size", value_size)
        max_entries = whole_number("max_entries", max_entries)
        map_flags = whole_number("map_flags", map_flags)
        map_extra = whole_number("map_extra", map_extra)
        mode = checked_mode(mode)
        _check_creation(key_size, value_size, max_entries, map_flags, map_extra)
        plain = _segment.plain_name(name)
        path = _segment.path_of(plain)
        if os.path.lexists(path):
            raise SegmentExists(
                f"segment {plain!r} exists in {os.path.dirname(path)}; open it, unlink it, or "
                f"choose another name"
            )
        places = packed(fields, value_size)
        limit = _object_bytes(plain, places, max_bytes)
        if len(_schema) > _SCHEMA_MAX:
            raise TooLarge(f"a schema has at most {_SCHEMA_MAX} bytes, not {len(_schema)}")
        depots = _depot_count()
        size = _core.segment_bytes(key_size, value_size, max_entries, depots, limit)
        if size is None:
            raise TooLarge(
                f"{max_entries} entries of {key_size} + {value_size} bytes, and {limit} bytes of "
                f"objects, exceed the address space"
            )
        fd = _segment.create_file(plain, size, mode)
        kept = os.dup(fd)
        try:
            try:
                _core.segment_prepare(
                    fd,
                    plain,
                    key_size=key_size,
                    value_size=value_size,
                    max_entries=max_entries,
                    map_flags=map_flags,
                    map_extra=map_extra,
                    depot_count=depots,
                    ephemeral=ephemeral,
                    seeds=_seed_bytes(_seeds),
                    created_ns=time.time_ns(),
                    commit=_segment.committer(fd, plain),
                    max_bytes=limit,
                    fields=tuple(places),
                    schema=_schema,
                )
            except BaseException:
                os.close(fd)
                raise
            # Attach before linking the name: no process sees an ephemeral map without a user.
            handle = cls(fd, plain, os.fsencode(path), bool(map_flags & BPF_F_RDONLY), timeout)
            if map_flags & BPF_F_WRONLY:
                handle._forbid_reading()
            try:
                _segment.link_file(kept, plain, path)
            except BaseException:
                handle.close()
                raise
        finally:
            os.close(kept)
        _remember(handle)
        return handle

    @classmethod
    def open(
        cls,
        name: str,
        *,
        read_only: bool = False,
        write_only: bool = False,
        timeout: float | None = _DEFAULT_TIMEOUT,
        owner: int | None = None,
    ) -> RHashMap:
        """Attach to the map of this name; recover processes that died in it. Costs about 0.1 ms.

        read_only: map the memory of entries for reading only; writing raises ReadOnlyMap. (A
        process that may write the file still notes in it what it reads, so that other memory can be
        given back in that time.) write_only: reading raises WriteOnlyMap, as with BPF_F_WRONLY.
        timeout: as for create(). owner: a user id to trust besides one's own and root's; root, too,
        trusts no other user. A pickle of the handle keeps it.

        Raises InvalidArgument (read_only and write_only), SegmentMissing, PermissionDenied,
        LayoutMismatch (not a map, or of another layout version), SegmentCorrupt (a damaged header).
        """
        if read_only and write_only:
            raise InvalidArgument("read_only and write_only exclude each other")
        plain = _segment.plain_name(name)
        handle = cls._open(plain, _segment.path_of(plain), read_only, timeout, owner)
        if write_only:
            handle._forbid_reading()
        return handle

    @classmethod
    def _look(cls, name: str, timeout: float | None, owner: int | None) -> RHashMap:
        """open() for reading only, which changes no byte of the segment. While the handle is open,
        no memory of the map is given back, and reading objects takes longer."""
        plain = _segment.plain_name(name)
        return cls._open(plain, _segment.path_of(plain), True, timeout, owner, without_trace=True)

    @classmethod
    def _open(
        cls,
        plain: str,
        path: str,
        read_only: bool,
        timeout: float | None,
        owner: int | None,
        **more: bool,
    ) -> RHashMap:
        for _ in range(_ATTACH_TRIES_MAX):  # the name may go to another map each time
            fd = _segment.open_file(plain, path, read_only=read_only, owner=owner)
            holders = None
            with contextlib.suppress(SegmentCorrupt):  # attaching reports the damage in detail
                holders = _segment.holders_of(fd)
            if holders is not None and holders.ephemeral and holders.nobody:
                os.close(fd)
                if read_only:  # a reader changes nothing
                    what = "shmrhash.gc() removes its name"
                elif _segment.remove_name(path, unheld=True):
                    what = "its name is removed now"
                else:  # the name is gone, or another process has attached
                    continue
                raise SegmentMissing(
                    f"segment {plain!r} was ephemeral and its last user died; {what}"
                )
            handle = cls(fd, plain, os.fsencode(path), read_only, timeout, owner=owner, **more)
            if _segment.wait_for_removal(handle._descriptor(), path):
                _remember(handle)
                return handle
            _core.MapCore.close(handle)
        raise SegmentMissing(f"segment {plain!r} is created and removed all the time")

    @classmethod
    def open_or_create(
        cls,
        name: str,
        *,
        key_size: int,
        value_size: int,
        max_entries: int,
        map_flags: int = BPF_F_NO_PREALLOC,
        map_extra: int = 0,
        mode: int = 0o600,
        timeout: float | None = _DEFAULT_TIMEOUT,
        ephemeral: bool = False,
        fields: Iterable[Any] = (),
        max_bytes: int | None = None,
        owner: int | None = None,
        _schema: bytes = b"",
    ) -> RHashMap:
        """Attach to the map of this name, or create it: if several processes race, one creates it.

        Arguments as for create(); owner as for open(). Raises what create() and open() raise except
        SegmentExists and SegmentMissing, and LayoutMismatch if the existing map has another
        key_size, value_size or max_entries, or other special fields.
        """
        for _ in range(100):  # another process may create and unlink it each time
            try:
                handle = cls.open(name, timeout=timeout, owner=owner)
            except SegmentMissing:
                try:
                    return cls.create(
                        name,
                        key_size=key_size,
                        value_size=value_size,
                        max_entries=max_entries,
                        map_flags=map_flags,
                        map_extra=map_extra,
                        mode=mode,
                        timeout=timeout,
                        ephemeral=ephemeral,
                        fields=fields,
                        max_bytes=max_bytes,
                        _schema=_schema,
                    )
                except SegmentExists:
                    continue
            _check_creation(key_size, value_size, max_entries, map_flags, map_extra)
            handle._expect(key_size, value_size, max_entries, packed(fields, value_size), _schema)
            return handle
        raise LockTimeout(f"segment {name!r} is created and removed all the time")

    @classmethod
    def from_arrays(
        cls,
        name: str,
        keys: Any,
        values: Any,
        *,
        max_entries: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Any,
    ) -> RHashMap:
        """Create a map that holds these entries.

        keys and values: arrays (or memoryviews) with equally many items; the sizes of their items
        in bytes become key_size and value_size unless options name these. If a key occurs twice,
        its last value counts. max_entries: the number of keys by default. progress(done, total) is
        called every 65,536 entries and at the end. options: as for create(). Costs about an insert
        for each key; on an error the new map is removed again.

        Raises what create() and update_batch() raise.
        """
        for option, what, rows in (("key_size", "keys", keys), ("value_size", "values", values)):
            if option not in options:
                options[option] = item_size(what, rows)
        key_rows = _core.Rows("keys", keys, options["key_size"])
        total = key_rows.count
        handle = cls.create(
            name, max_entries=max(total, 1) if max_entries is None else max_entries, **options
        )
        try:
            handle._load(key_rows, values, progress)
        except BaseException:
            handle.unlink()
            handle.close()
            raise
        return handle

    def _expect(
        self,
        key_size: int,
        value_size: int,
        max_entries: int,
        places: list[tuple[int, int]] | None = None,
        schema: bytes = b"",
    ) -> None:
        found = (self.key_size, self.value_size, self.max_entries)
        fields, here = list(self._fields()), self.schema
        if found != (key_size, value_size, max_entries):
            self.close()
            raise LayoutMismatch(
                f"segment {self.name!r} has key_size, value_size, max_entries {found}, wanted "
                f"{(key_size, value_size, max_entries)}; open() takes it as it is, "
                f"unlink() removes it"
            )
        if places is not None and (fields, here) != (places, schema):
            self.close()
            raise LayoutMismatch(
                f"segment {self.name!r} has special fields (kind, offset) {fields} and schema "
                f"{here!r}, wanted {places} and {schema!r}; open() takes it as it is"
            )

    def close(self) -> None:
        """Detach from the map. The map, and its name, stay. Idempotent.

        An ephemeral map loses its name when the last process closes it.
        """
        if self.closed:
            return
        super().close()
        # Each process checks after it has detached. So the last one to detach finds no holder.
        if self.ephemeral:
            _remove_if_last(self._identity(), self._path)

    def __enter__(self) -> RHashMap:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} of {self.max_entries} entries"
        return (
            f"<{type(self).__name__} {self.name!r}: {self.key_size}-byte keys, "
            f"{self.value_size}-byte values, {state}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        expected = (self.key_size, self.value_size, self.max_entries)
        access = (self.read_only, self.write_only)
        options = (self.timeout, self._owner)
        return _reopen, (type(self), self.name, self._path, expected, access, options)

    @property
    def _path(self) -> str:
        return os.fsdecode(self._path_bytes())

    def unlink(self) -> None:
        """Remove the map's name. Attached processes go on; the last to detach frees the memory.

        Raises SegmentMissing if the name is gone already, or names another map now.
        """
        _segment.unlink_file(self.name, self._path, self._identity())

    def mem_usage(self) -> int:
        """Bytes of the entries, as the kernel's map_mem_usage counts them: header + elements.

        The bucket array and free elements do not count; info()["bytes_committed"] counts all.

        Raises MapClosed.
        """
        return 4096 + len(self) * int(self._facts()["element_stride"])

    def info(self) -> dict[str, Any]:
        """All figures for operators, as a dict. Sizes are in bytes, times in nanoseconds.

        Counts are read one after another while other processes go on; at rest they are exact.
        entries, like len(), includes the credits that operations under way, and dead processes not
        yet recovered, have taken. last_activity_ns is a lower bound, updated when a thread uses the
        map for the first time, at each 1,024th of its operations except single lookups, at each
        batch of 1,024 keys or more, and at close(). expired: how many of the entries are past their
        deadline, to be removed when an operation needs room; an estimate beyond 4,096 buckets.
        unlinked: the name is gone, or names another map, so open() no longer finds this map. Costs
        about 2 ms, because it asks the system about huge pages.

        Raises MapClosed.
        """
        facts = self._facts()
        entries = len(self)
        committed = os.fstat(self._descriptor()).st_blocks * 512
        attached = self._processes()
        processes = [one for one in attached if not one["reads"]]
        objects = self._objects()
        return {
            "name": self.name,
            "path": self._path,
            "unlinked": not _segment.names(self._path, self._identity()),
            "key_size": self.key_size,
            "value_size": self.value_size,
            "max_entries": self.max_entries,
            "map_flags": self.map_flags,
            "map_extra": self.map_extra,
            "ephemeral": self.ephemeral,
            "entries": entries,
            "expired": _core.count_expired(self),
            "load": entries / max(1, facts["buckets"]),
            "bytes_committed": committed,
            "bytes_used": entries * facts["element_stride"] + facts["buckets"] * 64,
            "bytes_per_entry": committed / entries if entries else None,
            "processes": sum(one["alive"] for one in processes),
            "pids": [one["pid"] for one in processes if one["alive"]],
            "attached": processes,
            "readers": [one["pid"] for one in attached if one["reads"] and one["alive"]],
            "huge_pages": _huge_pages(os.fstat(self._descriptor()).st_ino),
            **facts,
            **({} if objects is None else {"objects": objects}),
        }

    def check(self) -> dict[str, Any]:
        """Walk every structural invariant of the map; raise SegmentCorrupt with what is wrong.

        Recovers dead processes first. Returns figures of the walk. "exact" is True if no other
        process was inside an operation during the walk. Under constant writing it is False after 20
        tries; then no problem is raised, because it may be work in progress. Costs about 0.1 us for
        each entry, and a byte of private memory for each element.
        """
        problem = where = 0
        exact = False
        figures: dict[str, int] = {}
        for attempt in range(_CHECK_TRIES_MAX):
            self._recover()
            time.sleep(0.001 * attempt)
            problem, where, exact, figures = self._check()
            if exact:
                break
        if problem and exact:
            raise SegmentCorrupt(
                f"map {self.name!r}: {_PROBLEMS[problem].format(where)}; entries already read are "
                f"good, but do not write to it: copy what you need, unlink and recreate it"
            )
        return {"exact": exact, **figures}


def _seed_bytes(seeds: tuple[int, ...] | None) -> bytes:
    """Four 64-bit seeds: random, or for tests the given ones, repeated."""
    if seeds is None:
        return os.urandom(32)
    four = (tuple(seeds) * 4)[:4]
    return b"".join(seed.to_bytes(8, "little") for seed in four)


def _reopen(
    cls: type[RHashMap],
    name: str,
    path: str,
    expected: tuple[int, int, int],
    access: tuple[bool, bool],
    options: tuple[float | None, int | None],
) -> RHashMap:
    """Unpickle a handle: open the map of that name, if it still has that geometry."""
    read_only, write_only = access
    timeout, owner = options
    handle = cls._open(name, path, read_only, timeout, owner)
    handle._expect(*expected)
    if write_only:
        handle._forbid_reading()
    return handle


def _huge_pages(inode: int) -> bool:
    """Whether the system maps any part of this file with huge pages."""
    inside = False
    with (
        contextlib.suppress(OSError),  # there is no /proc, or no descriptor is left
        open("/proc/self/smaps", errors="replace") as smaps,
    ):
        for line in smaps:
            words = line.split()
            if "-" in words[0]:
                inside = words[4] == str(inode)
            elif inside and words[0] == "ShmemPmdMapped:" and words[1] != "0":
                return True
    return False


def _remember(handle: RHashMap) -> None:
    """Note an ephemeral map whose name this process may have to remove."""
    if handle.ephemeral:
        _ephemeral[handle._identity()] = handle._path


def _remove_if_last(identity: _segment.Identity, path: str) -> None:
    """Remove the name of an ephemeral map, unless a process holds it or permissions forbid it."""
    with contextlib.suppress(Error, OSError):
        if _segment.remove_name(path, identity, unheld=True) or not _segment.names(path, identity):
            _ephemeral.pop(identity, None)


def _leave_names() -> None:
    """At the end of a process: mark it as ended, not killed, in all its maps, and remove the names
    of its ephemeral maps that no other process holds, even if handles of them are still open here.
    No handle is closed: other threads, and exit functions called after this one, may use them."""
    for handle in list(_handles):
        handle._leave_name()
    for identity, path in list(_ephemeral.items()):
        _remove_if_last(identity, path)


def _leave_at_exit(*_: object) -> None:
    """Register _leave_names for the end of this process, after multiprocessing has joined its
    children."""
    Finalize(None, _leave_names, exitpriority=_AFTER_CHILDREN)


_leave_at_exit()
os.register_at_fork(after_in_child=_leave_at_exit)  # a forked child ends on its own, too;
register_after_fork(_leave_at_exit, _leave_at_exit)  # multiprocessing clears it in its children


def unlink(name: str) -> None:
    """Remove the map's name. Attached processes go on; the last to detach frees the memory.

    Raises SegmentMissing, PermissionDenied, InvalidArgument (a name that no map can have).
    """
    plain = _segment.plain_name(name)
    _segment.unlink_file(plain, _segment.path_of(plain))


def gc(*, names: bool = False, owner: int | None = None) -> dict[str, Any]:
    """Recover dead processes in all maps of this user; with names, remove maps that are not held.

    Returns {"maps": how many were looked at, "recovered": dead processes, "removed": [names],
    "skipped": {name: why}}. Without names=True a map keeps its name, however long it is unused; an
    ephemeral map is removed if no process holds it. owner: a user to trust, as for open(). Root
    does not attach to the maps of users it does not trust: those that no process holds are removed
    like others, and those in which a process died are named in "skipped". gc() attaches only to
    maps in which a process died. Costs some tens of microseconds for each map.

    Raises SegmentMissing, PermissionDenied or SystemFailure if the directory of segments cannot be
    read; what cannot be opened is skipped.
    """
    report: dict[str, Any] = {"maps": 0, "recovered": 0, "removed": [], "skipped": {}}
    for entry in _segment.entries():
        try:
            if not entry.is_file(follow_symlinks=False):
                continue
            _collect(entry.name, entry.path, names, owner, report)
        except (Error, OSError) as error:  # a map that cannot be opened must not hide the others
            report["skipped"][entry.name] = str(error)
    return report


def _collect(name: str, path: str, names: bool, owner: int | None, report: dict[str, Any]) -> None:
    """gc() of one file, which need not be a map."""
    if os.geteuid() == 0 and not is_trusted(os.lstat(path).st_uid, owner):
        fd = _segment.look_at_file(path)
    else:
        fd = _segment.open_file(name, path, read_only=False, owner=owner)
    try:
        user = os.fstat(fd).st_uid  # of the open file; the path may name another file now
        holders = _segment.holders_of(fd)
        if holders is None:
            return
        report["maps"] += 1
        unused = (names or holders.ephemeral) and holders.nobody
        if holders.dead and is_trusted(user, owner):
            handle = RHashMap(os.dup(fd), name, os.fsencode(path), False, _DEFAULT_TIMEOUT)
            report["recovered"] += handle.recovered_at_open + handle._recover()
            _core.MapCore.close(handle)
        elif holders.dead and not unused:
            report["skipped"][name] = (
                f"{holders.dead} processes died in it, but it belongs to user "
                f"{user_text(user)}: whoever uses it next recovers them, or gc(owner={user})"
            )
        if unused:
            status = os.fstat(fd)
            if _segment.remove_name(path, (status.st_dev, status.st_ino), unheld=True):
                report["removed"].append(name)
    finally:
        os.close(fd)
