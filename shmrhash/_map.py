"""RHashMap: the public interface of a shared, resizable hash map.

The class has what concerns a map as a whole: creating, opening, closing, figures. Operations on
one key are in the extension module (cython/_core.pyx), batches in _batch.py, locked sections in
_locks.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, Literal

from shmrhash import _check, _core, _lifetime, _segment
from shmrhash._arguments import checked_mode
from shmrhash._batch import BatchMethods
from shmrhash._cachestats import cache_stats
from shmrhash._constants import (
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY,
    BPF_F_WRONLY,
    DEFAULT_TIMEOUT,
    PAGE_BYTES,
    RACES_MAX,
)
from shmrhash._creation import checked_sizes, make_segment
from shmrhash._errors import (
    InvalidArgument,
    LayoutMismatch,
    SegmentCorrupt,
    SegmentExists,
    SegmentMissing,
)
from shmrhash._fields import packed
from shmrhash._locks import LockMethods
from shmrhash._progress import Progress, shown
from shmrhash._refusals import refuse_creation, restless_name
from shmrhash._rows import item_size
from shmrhash._types.rowtypes import schema_of_rows, without_dtypes
from shmrhash._waiting import WaitMethods


class RHashMap(LockMethods, WaitMethods, BatchMethods, _lifetime.ClosingMethods, _core.MapCore):
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

    _holds_cells = False  # a Sync's map differs

    def __new__(cls, *args: Any, **more: Any) -> Any:
        if not args or isinstance(args[0], str):
            raise TypeError(
                f"{cls.__name__}() makes no map: use {cls.__name__}.create(name, key_size=..., "
                f"value_size=..., max_entries=...), open(name) or open_or_create(...); "
                f"SharedDict(name) makes a dict of any objects"
            )
        return super().__new__(cls, *args, **more)

    def _waiter(self, keys: list[Any]) -> _core.Waiter:
        return _core.Waiter(self, [_core.key_copy(self, key) for key in keys])

    def _ring(self) -> _core.RingReader:
        return _core.RingReader(self)

    def _entry_at(self, raw: bytes) -> tuple[bytes, bytes] | None:
        value = self.get(raw)
        return None if value is None else (raw, value)

    def _pairs(self) -> Iterable[tuple[bytes, bytes]]:
        return self.items()

    def _key_at(self, raw: bytes) -> bytes:
        return raw

    def _long_keys(self) -> dict[bytes, bytes]:
        return {}

    def _raw_if_long(self, _key: bytes) -> None:
        return None

    def _notifier(self) -> _core.Notifier:
        return _core.Notifier(self)

    def _notifier_key(self) -> tuple[object, ...]:
        return _core.notifier_key(self)

    def __init__(self, *_args: object, owner: int | None = None, **_ignored: object) -> None:
        self._owner = owner  # a user whom this handle trusts; a pickle of the handle keeps it

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
        timeout: float | None = DEFAULT_TIMEOUT,
        ephemeral: bool = False,
        fields: Iterable[Any] = (),
        max_bytes: int | None = None,
        _schema: bytes = b"",
        _seeds: tuple[int, ...] | None = None,
        _is_cache: bool = False,
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
        (of Kptr fields) may take; None is as much as the file system has, and 640 MiB at most. 99
        times as many addresses are reserved for them; memory is committed as objects are stored.

        The name appears when the map is complete: no process sees an incomplete map. Costs about
        0.2 ms.

        Raises InvalidArgument and TooLarge in the kernel's order of checks, SegmentExists,
        SegmentFull, LimitReached (ulimit), PermissionDenied, Unsupported (a system call is
        refused).
        """
        sizes = checked_sizes(key_size, value_size, max_entries, map_flags, map_extra)
        mode = checked_mode(mode)
        plain = _segment.plain_name(name)
        path = _segment.path_of(plain)
        fd = make_segment(
            plain,
            path,
            sizes,
            mode=mode,
            ephemeral=ephemeral,
            places=packed(fields, sizes.value_size),
            max_bytes=max_bytes,
            schema=_schema,
            seeds=_seeds,
            is_space=cls._holds_cells,
            is_cache=_is_cache,
        )
        try:
            kept = os.dup(fd)
        except OSError as error:
            os.close(fd)
            refuse_creation(error, plain, path)
        try:
            # Attach before linking the name: no process sees an ephemeral map without a user.
            read_only = bool(sizes.map_flags & BPF_F_RDONLY)
            handle = cls(fd, plain, os.fsencode(path), read_only, timeout)
            if sizes.map_flags & BPF_F_WRONLY:
                handle._forbid_reading()
            try:
                _segment.link_file(kept, plain, path)
            except BaseException:
                handle.close()
                raise
        finally:
            os.close(kept)
        handle._note_name()
        _lifetime.remember_name(handle)
        return handle

    @classmethod
    def open(
        cls,
        name: str,
        *,
        read_only: bool = False,
        write_only: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT,
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
        for _ in range(RACES_MAX):  # the name may go to another map each time
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
            if handle._is_space != cls._holds_cells and not more:  # _look() takes either
                handle.close()
                raise LayoutMismatch(
                    f"segment {plain!r} is a space of locks: open it with Sync(name)"
                    if handle._is_space
                    else f"segment {plain!r} is a map, not a space of locks; a Sync needs another "
                    f"name"
                )
            if _segment.wait_for_removal(handle._descriptor(), path):
                handle._note_name()
                _lifetime.remember_name(handle)
                return handle
            handle._detach()
        raise SegmentMissing(f"segment {plain!r} is created and removed again and again")

    @classmethod
    def _rejoin(
        cls, plain: str, path: str, timeout: float | None, owner: int | None
    ) -> RHashMap | None:
        """A handle for reading and writing that shares what another handle of this process has of
        the file that path names now; None if there is no such handle."""
        raw = os.fsencode(path)
        handle: RHashMap = cls.__new__(cls, _core.REJOIN, plain, raw, False, timeout, owner=owner)
        if handle.closed:
            return None
        handle.__init__(_core.REJOIN, plain, raw, False, timeout, owner=owner)  # type: ignore[misc]
        if handle._is_space != cls._holds_cells:
            handle._detach()
            return None
        if handle.ephemeral:
            _lifetime.remember_name(handle)
        return handle

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
        timeout: float | None = DEFAULT_TIMEOUT,
        ephemeral: bool = False,
        fields: Iterable[Any] = (),
        max_bytes: int | None = None,
        owner: int | None = None,
        _schema: bytes = b"",
    ) -> RHashMap:
        """Attach to the map of this name, or create it: if several processes race, one of them
        creates it.

        Arguments as for create(); owner as for open(). Raises what create() and open() raise except
        SegmentExists and SegmentMissing, and LayoutMismatch if the existing map has another
        key_size, value_size or max_entries, or other special fields.
        """
        sizes = checked_sizes(key_size, value_size, max_entries, map_flags, map_extra)
        fields = tuple(fields)
        places = packed(fields, sizes.value_size)
        for _ in range(RACES_MAX):  # another process may create and unlink it each time
            try:
                handle = cls.open(name, timeout=timeout, owner=owner)
            except SegmentMissing:
                try:
                    return cls.create(
                        name,
                        **sizes._asdict(),
                        mode=mode,
                        timeout=timeout,
                        ephemeral=ephemeral,
                        fields=fields,
                        max_bytes=max_bytes,
                        _schema=_schema,
                    )
                except SegmentExists:
                    continue
            handle._expect(*sizes[:3], places, _schema)
            return handle
        raise restless_name(name)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        keys: Any,
        values: Any,
        *,
        max_entries: int | None = None,
        progress: Progress | Literal[True] | None = None,
        **options: Any,
    ) -> RHashMap:
        """Create a map that holds these entries.

        keys and values: arrays (or memoryviews) with equally many items; the sizes of their items
        in bytes become key_size and value_size unless options name these. The dtypes of NumPy
        arrays are kept in the segment (see dtypes). If a key occurs twice, its last value counts.
        max_entries: the number of keys by default. progress(done, total) is called every 65,536
        entries and at the end; True draws a bar on a terminal (rich). options: as for create().
        Costs about an insert for each key; on an error the new map is removed again.

        Raises what create() and update_batch() raise.
        """
        for option, what, rows in (("key_size", "keys", keys), ("value_size", "values", values)):
            if option not in options:
                options[option] = item_size(what, rows)
        sizes = options["key_size"], options["value_size"]
        key_rows = _core.Rows("keys", keys, sizes[0])
        total = key_rows.count
        options.setdefault("_schema", schema_of_rows((keys, values), sizes))
        handle = cls.create(
            name, max_entries=max(total, 1) if max_entries is None else max_entries, **options
        )
        try:
            with shown(progress, "storing") as tell:
                handle._load(key_rows, values, tell)
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
        if found != (key_size, value_size, max_entries):
            self.close()
            raise LayoutMismatch(
                f"segment {self.name!r} has key_size, value_size, max_entries {found}, wanted "
                f"{(key_size, value_size, max_entries)}; open() takes it as it is, "
                f"unlink() removes it"
            )
        if places is None:
            return
        fields, here = list(self._fields()), without_dtypes(self.schema)
        if (fields, here) != (places, schema):
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
        self._detach()
        # Each process checks after it has detached. So the last one to detach finds no holder.
        if self.ephemeral:
            _lifetime.remove_if_last(self._identity(), self._path)

    def _detach(self) -> None:
        """close() that leaves the name, also of an ephemeral map."""
        super().close()

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
        return PAGE_BYTES + len(self) * int(self._facts()["element_stride"])

    def info(self) -> dict[str, Any]:
        """All figures for operators, as a dict. Sizes are in bytes, times in nanoseconds.

        Counts are read one after another while other processes go on; at rest they are exact.
        entries, like len(), includes the credits that operations under way, and dead processes not
        yet recovered, have taken. last_activity_ns is a lower bound, updated when a thread uses the
        map for the first time, at each 1,024th of its operations except single lookups, at each
        batch of 1,024 keys or more, and at close(). expired: how many of the entries are past their
        deadline, to be removed when an operation needs room; an estimate beyond 4,096 buckets.
        bytes_most: the most that bytes_committed can become, at max_entries and max_bytes; of a
        Cache, max_bytes.
        cache, of a Cache only: the counts of its stats(), and the number of keys claimed now.
        unlinked: the name is gone, or names another map, so open() no longer finds this map. Costs
        about 2 ms, because it asks the system about huge pages.

        Raises MapClosed.
        """
        facts = self._facts()
        entries = len(self)
        status = os.fstat(self._descriptor())
        committed = status.st_blocks * 512
        attached = self._processes()
        processes = [one for one in attached if not one["reads"]]
        objects = self._objects()
        counts = self._cache_counts()
        cache = counts and cache_stats(counts, entries)._asdict() | {"claimed": self._claims()}
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
            "huge_pages": _segment.has_huge_pages(status.st_ino),
            **facts,
            **({} if objects is None else {"objects": objects}),
            **({} if cache is None else {"cache": cache}),
        }

    def check(self) -> dict[str, Any]:
        """Walk every structural invariant of the map; raise SegmentCorrupt with what is wrong.

        Recovers dead processes first. Returns figures of the walk. "exact" is True if no other
        process was inside an operation during the walk. Under constant writing it is False after 20
        tries; then no problem is raised, because it may be work in progress. Costs about 0.1 us for
        each entry, and a byte of private memory for each element.
        """
        return _check.check(self.name, self._recover, self._check)


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
    handle = None if read_only else cls._rejoin(name, path, timeout, owner)
    if handle is None:
        handle = cls._open(name, path, read_only, timeout, owner)
    handle._expect(*expected)
    if write_only:
        handle._forbid_reading()
    return handle
