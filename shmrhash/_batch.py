"""Iteration and batches: the operations of RHashMap on more than one entry."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Literal

from shmrhash import _core
from shmrhash._constants import BPF_F_LOCK
from shmrhash._errors import InvalidArgument
from shmrhash._progress import Progress, shown
from shmrhash._rows import delivered, first_rows, joined, new_mask, new_rows, new_sums
from shmrhash._types.rowtypes import dtypes_of
from shmrhash._views import ITEMS, KEYS, VALUES, SharedItems, SharedKeys, SharedValues

if TYPE_CHECKING:
    _Map = _core.MapCore
else:
    _Map = object  # the methods are mixed into RHashMap, which has the core as its other base

_CHUNK_ENTRIES = 1 << 16  # dumped or loaded between two calls of progress
_ROOM_ENTRIES = 1 << 12  # the least room for a lookup batch, even if the map has fewer entries
_WALK_BUCKETS = 1024
_KINDS = {KEYS: "keys", VALUES: "values", ITEMS: "items"}  # of EntryIterator


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of a lookup batch.

    keys, values: count items each, as NumPy arrays of the dtype that the call gave, else of that
    which the map keeps (dtypes), else V<size>; or as bytes without NumPy. cursor: for the next
    call; None if the map had no more entries.
    """

    keys: Any
    values: Any
    count: int
    cursor: bytes | None


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """Facts about one bucket.

    index: its number. level: how many low bits of the hash agree with index in all its entries.
    entries: how many. lines: overflow lines, 64 bytes each. locked: whether its lock is held.
    """

    index: int
    level: int
    entries: int
    lines: int
    locked: bool


def _locks(what: str, flags: int) -> bool:
    """Whether flags is BPF_F_LOCK."""
    if flags not in (0, BPF_F_LOCK):
        raise InvalidArgument(f"flags {index(flags)} are not valid: {what} takes 0 or BPF_F_LOCK")
    return flags == BPF_F_LOCK


class BatchMethods(_Map):
    """The part of RHashMap that handles more than one entry at a time.

    Order: entries come in the order of their hashes, bits reversed, which no resize changes. Within
    one bucket the order differs between the ways of walking, so a walk must not change from one to
    another. Every walk delivers each entry that is in the map from the walk's beginning to its end
    exactly once, and an entry that was not in the map in that time never, whatever other processes
    do during the walk (I1); no key comes twice.
    """

    def __iter__(self) -> Iterator[bytes]:
        """The keys. Reads up to 128 entries ahead of the one it yields; never waits for a writer.

        An entry that this handle deletes during the iteration is not delivered afterwards. Raises
        MapClosed.
        """
        return _core.EntryIterator(self, "keys")

    __reversed__ = None

    def _entries(self, what: int, skipping: bool = False) -> Iterator[Any]:
        """What a view iterates over. Every entry is bytes, so there is none to skip."""
        return _core.EntryIterator(self, _KINDS[what])

    def keys(self) -> KeysView[bytes]:
        """The keys, as a view: repeatedly iterable, with len() and set operations. O(1).

        Iterating raises what iter() raises.
        """
        return SharedKeys(self)

    def values(self) -> ValuesView[bytes]:
        """The values, as a view. Each is complete, and from the moment it was read (R2). O(1).

        Iterating raises what iter() raises.
        """
        return SharedValues(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """The entries as pairs (key, value), as a view; each pair belongs together (R2). O(1).

        Iterating raises what iter() raises.
        """
        return SharedItems(self)

    @property
    def dtypes(self) -> tuple[Any, Any]:
        """The dtypes of keys and values that from_arrays() kept in the segment.

        None for each that it did not keep: rows that were no NumPy array, or of dtype V<size>; a
        dtype that a .npy file could not hold, or whose description is longer than some 1,400 bytes.
        None, too, without NumPy. Arrays of entries have these dtypes, unless the call names others.

        Raises MapClosed.
        """
        schema = self.schema
        return dtypes_of(schema, self.key_size, self.value_size) if schema else (None, None)

    def get_next_key(self, key: Any = None) -> bytes | None:
        """The key after key in the map's order; the first if key is None; None after the last.

        key need not be in the map: a deleted key still has its place in the order, so a walk
        continues there (the kernel's starts again). Costs about two lookups.

        Raises InvalidArgument (key size), TypeError, MapClosed, SegmentCorrupt.
        """
        found = bytearray(self.key_size)
        cursor = None if key is None else _core.cursor_at(self, key)
        count, _ = _core.read_entries(self, cursor, found, None, 0, 1)
        return bytes(found) if count else None

    def lookup_batch(
        self,
        cursor: bytes | None = None,
        count: int = 4096,
        flags: int = 0,
        *,
        key_dtype: Any = None,
        value_dtype: Any = None,
    ) -> Batch:
        """Up to count entries, beginning at cursor. A cursor of None is the beginning of the map.

        Returns fewer than count only at the end of the map. cursor of the result is None if there
        were no more entries; otherwise any process may pass it to the next call, even if the
        entries around it have changed. Each entry is as of some moment during the call; with flags
        BPF_F_LOCK, of a moment at which no section had it locked.

        Raises InvalidArgument (count below 1, flags, a cursor of another map, a dtype of another
        size), MapClosed, SegmentCorrupt.
        """
        return self._batch(cursor, count, flags, key_dtype, value_dtype, take=False)

    def lookup_and_delete_batch(
        self,
        cursor: bytes | None = None,
        count: int = 4096,
        flags: int = 0,
        *,
        key_dtype: Any = None,
        value_dtype: Any = None,
    ) -> Batch:
        """Take up to count entries, beginning at cursor: each is deleted, and returned only once.

        Each deletion is atomic, the batch is not: if the process is killed during the call, the
        entries that it has deleted are lost. If it would have to wait for another process, or if
        the map grew during the call, it returns fewer than count, with a cursor. All else is as for
        lookup_batch().

        Raises what lookup_batch() raises, LockTimeout (nothing was deleted), ReadOnlyMap.
        """
        self._expect_writable()
        return self._batch(cursor, count, flags, key_dtype, value_dtype, take=True)

    def _batch(
        self,
        cursor: bytes | None,
        count: int,
        flags: int,
        key_dtype: Any,
        value_dtype: Any,
        *,
        take: bool,
    ) -> Batch:
        count = index(count)
        if count < 1:
            raise InvalidArgument(f"count must be at least 1, not {count}")
        locked = _locks("a lookup batch", flags)
        room = min(count, self.max_entries)
        kept = self.dtypes
        key_dtype = kept[0] if key_dtype is None else key_dtype
        value_dtype = kept[1] if value_dtype is None else value_dtype
        parts = []
        size = min(room, max(len(self) + 64, _ROOM_ENTRIES))
        done = 0
        while True:  # once, unless the map has grown since len()
            keys = new_rows(size, self.key_size, key_dtype)
            values = new_rows(size, self.value_size, value_dtype)
            if take:
                got, cursor = _core.take_entries(self, cursor, keys, values, size, locked)
            else:
                got, cursor = _core.read_entries(self, cursor, keys, values, 0, size, locked)
            parts.append(
                (first_rows(keys, got, self.key_size), first_rows(values, got, self.value_size))
            )
            done += got
            if cursor is None or done == room or got < size or take:
                break
            size = min(room - done, size * 2)
        return Batch(joined([k for k, _ in parts]), joined([v for _, v in parts]), done, cursor)

    def update_batch(self, keys: Any, values: Any, flags: int = 0) -> int:
        """Update each key with its value, in turn; return how many there were.

        keys and values: C-contiguous buffers with equally many items, of key_size and value_size
        bytes: bytes, bytearray, memoryview, a NumPy array of such items or rows, or lists of
        buffers. Each update is atomic, the batch is not. The GIL is released during the batch. The
        first update that fails ends the batch: the count of its exception is the number of updates
        done before. Expected cost: one update for each key, with the cache misses of 32 at a time
        overlapping.

        Raises what update() raises; InvalidArgument (another item size, not contiguous, different
        numbers of keys and values).
        """
        done: int = _core.update_many(self, keys, values, self._update_flag(flags), None)
        return done

    def delete_batch(self, keys: Any, flags: int = 0) -> int:
        """Delete each key, in turn; return how many there were.

        The first key that is absent ends the batch with KeyNotFound, whose count says how many were
        deleted; delete_many() goes on instead. With flags BPF_F_LOCK it waits for locked sections;
        without it, it deletes their keys too, and they end with KeyGone. All else is as for
        update_batch().

        Raises what delete() raises, InvalidArgument as update_batch().
        """
        self._expect_writable()
        locked = _locks("delete_batch", flags)
        done: int = _core.delete_many(self, keys, None, locked)
        return done

    def _load(self, keys: _core.Rows, values: Any, tell: Progress | None) -> None:
        rows = _core.Rows("values", values, self.value_size)
        done = 0
        while True:
            limit = keys.count if tell is None else done + _CHUNK_ENTRIES
            done = _core.update_many(self, keys, rows, 0, None, done, limit)
            if tell is not None:
                tell(done, keys.count)
            if done == keys.count:
                return

    def _update_flag(self, flags: int) -> int:
        self._expect_writable()  # the kernel's order: EPERM comes before EINVAL
        if flags not in (0, 1, 2, 4, 5, 6):
            raise InvalidArgument(
                f"flags {index(flags)} are not valid: update takes BPF_ANY, BPF_NOEXIST or "
                f"BPF_EXIST, each with or without BPF_F_LOCK"
            )
        return index(flags) & ~BPF_F_LOCK  # every update waits for sections anyway

    def lookup_many(
        self, keys: Any, flags: int = 0, *, out: Any = None, dtype: Any = None
    ) -> tuple[Any, Any]:
        """Look up an array of keys: (values, found).

        keys: as for update_batch(). values: out if given, a writable buffer of as many items of
        value_size bytes; else a NumPy array of dtype (that of dtypes by default, else
        V<value_size>), or bytes without NumPy. found: a NumPy array of bool, or bytes of 0 and 1.
        The values of absent keys keep their contents in out, and are zeros in a new array. Each
        lookup is atomic, as lookup() is; the batch is not. flags: 0 or BPF_F_LOCK. The GIL is
        released during the batch. Expected cost: one lookup for each key, with the cache misses of
        32 at a time overlapping.

        Raises InvalidArgument (item size, contiguity, numbers), TypeError, MapClosed,
        SegmentCorrupt.
        """
        keys = _core.Rows("keys", keys, self.key_size)
        found = new_mask(keys.count)
        values = out
        if out is None:
            dtype = self.dtypes[1] if dtype is None else dtype
            values = new_rows(keys.count, self.value_size, dtype, zeroed=True)
        elif dtype is not None:
            raise InvalidArgument("give either out or dtype, not both")
        _core.lookup_many(self, keys, values, found, _locks("lookup_many", flags))
        return (delivered(values) if out is None else out), delivered(found)

    def contains_many(self, keys: Any) -> Any:
        """Whether each of an array of keys is in the map: a NumPy array of bool, or bytes of 0, 1.

        As lookup_many(), without values; raises the same exceptions.
        """
        keys = _core.Rows("keys", keys, self.key_size)
        found = new_mask(keys.count)
        _core.contains_many(self, keys, found)
        return delivered(found)

    def update_many(self, keys: Any, values: Any, flags: int = 0) -> Any:
        """Update each key with its value; return whether each was stored, as a mask.

        A key that BPF_NOEXIST or BPF_EXIST forbids is not stored, and its place in the mask is
        False; any other error ends the batch, with the number of updates done before as its count.
        If a key occurs twice, its updates happen in turn. All else is as for update_batch().

        Raises what update() raises except KeyExists and KeyNotFound; InvalidArgument as
        update_batch().
        """
        keys = _core.Rows("keys", keys, self.key_size)
        stored = new_mask(keys.count)
        _core.update_many(self, keys, values, self._update_flag(flags), stored)
        return delivered(stored)

    def delete_many(self, keys: Any, flags: int = 0) -> Any:
        """Delete each key; return whether each was in the map, as a mask.

        flags: as for delete_batch(). All else is as for update_many().

        Raises what delete() raises except KeyNotFound; InvalidArgument as update_batch().
        """
        keys = _core.Rows("keys", keys, self.key_size)
        deleted = new_mask(keys.count)
        _core.delete_many(self, keys, deleted, _locks("delete_many", flags))
        return delivered(deleted)

    def add_many(
        self, keys: Any, deltas: Any, *, default: int | None = None, offset: int = 0
    ) -> Any:
        """Add to each key its delta; return the sums: a NumPy array of int64, or bytes without it.

        deltas: a buffer of as many signed 8-byte integers, or one integer for all keys. An absent
        key raises KeyNotFound if default is None. The first error ends the batch, with the number
        of additions done before as its count. All else is as for update_batch().
        """
        keys = _core.Rows("keys", keys, self.key_size)
        with contextlib.suppress(TypeError):
            deltas = (index(deltas) & (1 << 64) - 1).to_bytes(8, "little") * keys.count
        sums = new_sums(keys.count)
        _core.add_many(self, keys, deltas, sums, default, offset)
        return delivered(sums)

    def for_each(self, callback: Callable[[bytes, bytes], object]) -> int:
        """Call callback(key, value) for each entry; return how many entries were visited.

        A true result of the callback stops the walk. The callback may delete the entry that it is
        called for or any other, insert, and raise. An entry that it deletes through this handle
        before the entry's turn is not visited, and the walk goes on (the kernel's stops).
        O(entries).

        Raises MapClosed, SegmentCorrupt, and what callback raises.
        """
        visited = 0
        for key, value in self.items():
            visited += 1
            if callback(key, value):
                break
        return visited

    def walk(self) -> Iterator[BucketInfo]:
        """Facts about each bucket in turn: for looking into the structure, not at the entries.

        Takes no lock: while a process writes, the figures are from different moments. O(buckets).

        Raises MapClosed.
        """
        first = 0
        while True:
            facts = _core.bucket_facts(self, first, _WALK_BUCKETS)
            yield from itertools.starmap(BucketInfo, facts)
            if len(facts) < _WALK_BUCKETS:
                return
            first += len(facts)

    def to_arrays(
        self,
        *,
        key_dtype: Any = None,
        value_dtype: Any = None,
        progress: Progress | Literal[True] | None = None,
    ) -> tuple[Any, Any]:
        """All keys and all values, as two arrays of equal length.

        Each entry is as of some moment during the call. They are NumPy arrays, of key_dtype and
        value_dtype, else of the dtypes that from_arrays() kept (dtypes), else V<size>; bytes
        without NumPy. progress(done, total) is
        called every 65,536 entries and at the end; its total is an estimate; True draws a bar on a
        terminal (rich). O(entries); memory: that of the arrays.

        Raises InvalidArgument (a dtype of another size), MapClosed, SegmentCorrupt.
        """
        with shown(progress, "reading") as tell:
            return self._read_all(key_dtype, value_dtype, tell)

    def _read_all(self, key_dtype: Any, value_dtype: Any, tell: Progress | None) -> tuple[Any, Any]:
        cursor = None
        done = 0
        parts = []
        kept = self.dtypes
        key_dtype = kept[0] if key_dtype is None else key_dtype
        value_dtype = kept[1] if value_dtype is None else value_dtype
        room = len(self) + 64
        while True:
            keys = new_rows(room, self.key_size, key_dtype)
            values = new_rows(room, self.value_size, value_dtype)
            filled = 0
            while filled < room:
                limit = room if tell is None else min(room, filled + _CHUNK_ENTRIES)
                filled, cursor = _core.read_entries(self, cursor, keys, values, filled, limit)
                if tell is not None:
                    tell(done + filled, max(len(self), done + filled))
                if cursor is None:
                    break
            done += filled
            parts.append(
                (
                    first_rows(keys, filled, self.key_size),
                    first_rows(values, filled, self.value_size),
                )
            )
            if cursor is None:
                return joined([k for k, _ in parts]), joined([v for _, v in parts])
            room = max(64, room // 2)  # the map has grown since len()
