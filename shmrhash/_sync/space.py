"""Sync: a space of cells, in which locks, semaphores and events have their state.

A space is a segment like a map's: its keys are names, and its values are cells (cell.pxd). A cell
is made when a name is used for the first time, and stays as long as the space.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import weakref
from typing import Any

from shmrhash import _core
from shmrhash._constants import DEFAULT_TIMEOUT, RACES_MAX
from shmrhash._errors import InvalidArgument, SegmentExists, SegmentMissing
from shmrhash._gc import anonymous_name
from shmrhash._handle import HandleMethods
from shmrhash._lifetime import ClosingMethods, living
from shmrhash._map import RHashMap
from shmrhash._refusals import restless_name
from shmrhash._segment import Identity

Key = str | bytes | int

_TEXT_BYTES_MAX = _core.CELL_KEY_SIZE - 2  # of a key that is stored as it is
_DIGEST_BYTES = 32
_LONG = 0xFF  # in the place of the length: a digest, and the beginning of the key
_ANONYMOUS = b"a"
_ANONYMOUS_MAX = 1 << 20  # anonymous cells; memory is taken as they are made
_LOOK_AFTER = 1024  # cells that a process makes before it looks again for spare ones of the dead

KIND_NAMES = {
    _core.LOCK: "Lock",
    _core.RLOCK: "RLock",
    _core.SEMAPHORE: "Semaphore",
    _core.COUNTER: "Semaphore(undo=False)",
    _core.EVENT: "Event",
    _core.RWLOCK: "RWLock",
    _core.CONDITION: "Condition",
    _core.BARRIER: "Barrier",
}


class _CellMap(RHashMap):
    """The map of a space."""

    _holds_cells = True


class Sync(HandleMethods, ClosingMethods):
    """A space of lock primitives that processes share: Lock("gpu0", space=Sync("cluster")).

    Sync(name) creates the space of this name or opens it. Sync() makes an anonymous one, which
    children of fork share, and which can be pickled, as can its locks, while a process has it open.
    A primitive that is made without a space is in the user's own space if it has a key, or else in
    an anonymous one. A primitive is shared by all processes that make an object with its key, and
    is created by the first of them. It stays as long as the space: a space does not shrink. A
    primitive without a key that was neither pickled nor present at a fork ends with its object, or
    its process: the next primitive without a key takes its place.

    At most 4,096 locks and, for each process and semaphore, permits can be held in a space at once.
    Everything that a process holds in the space is released when the process ends, even if it has
    closed the space.

    Attributes: name, max_entries, closed; handle, the RHashMap in which the primitives have their
    state, and which nothing else may write.
    """

    def __init__(
        self, name: str | None = None, max_entries: int = 4096, *, mode: int = 0o600
    ) -> None:
        """Create a space, or open the one of this name.

        max_entries: how many primitives it can have; an existing space keeps its own limit. mode:
        permissions of a new space's file: users who may write it may use its locks.

        Raises LayoutMismatch (the name is a map's), InvalidArgument, TooLarge, SegmentFull,
        LimitReached, PermissionDenied, Unsupported.
        """
        self._start(_map_of(name, max_entries, mode))

    @classmethod
    def open(cls, name: str) -> Sync:
        """Open the space of this name, which must exist.

        Raises SegmentMissing, LayoutMismatch (the name is a map's), PermissionDenied.
        """
        return cls._of(_CellMap.open(name))

    @classmethod
    def _of(cls, handle: RHashMap) -> Sync:
        self = cls.__new__(cls)
        self._start(handle)
        return self

    def _start(self, handle: RHashMap) -> None:
        self._map = handle
        self._cells = _core.Space(handle)
        self._made, self._look_at = 0, 0
        if handle.ephemeral:  # at exit _lifetime.py acts
            weakref.finalize(self, handle.close).atexit = False
        _open_spaces[handle._identity()] = self

    @property
    def handle(self) -> RHashMap:
        """The map in which the primitives have their state; nothing else may write it."""
        return self._map

    def close(self) -> None:
        """Detach. Primitives that were made with this handle raise MapClosed from now on. This
        process keeps what it holds in the space until it ends.
        """
        self.handle.close()

    def cells(self) -> list[tuple[Any, str]]:
        """(key, kind) of each primitive in the space; the key of an anonymous one is None, that of
        a key of more than 54 bytes is its beginning. O(primitives).

        Raises MapClosed.
        """
        return [(key, KIND_NAMES.get(kind, "?")) for key, kind, _ in self._entries()]

    def _entries(self) -> list[tuple[Any, int, int]]:
        return cells_in(self.handle, self._cells)

    def _find(self, raw: bytes, kind: int, limit: int, count: int) -> int:
        """The index of the primitive of this stored key, which is made if there is none."""
        index = self._cells.find(raw, kind, limit, count)
        found = self._cells.kind(index)
        if found != kind:
            raise InvalidArgument(
                f"{shown_key(raw)!r} in the space {self.name!r} is a {KIND_NAMES.get(found, '?')}, "
                f"not a {KIND_NAMES[kind]}; choose another key"
            )
        return index

    def _make_anonymous(self, kind: int, limit: int, count: int) -> tuple[bytes, int]:
        """The stored key and the index of a new primitive without a key: in a spare cell, if this
        process has one."""
        index = self._cells.use_spare(kind, limit, count)
        if not index and self._made >= self._look_at:
            self._look_at = self._made + max(_LOOK_AFTER, self._cells.find_spares())
            index = self._cells.use_spare(kind, limit, count)
        if index:
            return self._cells.key(index), index
        self._made += 1
        raw = stored_key(None)
        return raw, self._find(raw, kind, limit, count)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.handle)} of {self.max_entries} primitives"
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.handle.name, self.handle._path)


# The spaces that this process has open, so that unpickled primitives share their handles.
_open_spaces: weakref.WeakValueDictionary[Identity, Sync] = weakref.WeakValueDictionary()
_named: dict[str | None, Sync] = {}  # the user's own space and the anonymous one


def _spaces() -> list[Sync]:
    """Those that this process has open."""
    return living(_open_spaces.valuerefs())


def _begin_in_child() -> None:
    """In a child of fork: it looks for spare cells as a new process does."""
    for space in _spaces():
        space._made, space._look_at = 0, 0


os.register_at_fork(after_in_child=_begin_in_child)


def _map_of(name: str | None, max_entries: int, mode: int) -> RHashMap:
    for _ in range(RACES_MAX):  # another process may create and unlink it each time
        if name is None:
            drawn = anonymous_name()
        else:
            drawn = name
            with contextlib.suppress(SegmentMissing):
                return _CellMap.open(name)
        with contextlib.suppress(SegmentExists):
            return _CellMap.create(
                drawn,
                key_size=_core.CELL_KEY_SIZE,
                value_size=_core.CELL_VALUE_SIZE,
                max_entries=max_entries,
                mode=mode,
                ephemeral=name is None,
            )
    raise restless_name(drawn)


def _handles() -> list[RHashMap]:
    """Those of the spaces that this process has open."""
    return [space.handle for space in _spaces() if not space.closed]


_core.set_open_spaces(_handles)


def cells_in(shared_map: RHashMap, cells: _core.Space) -> list[tuple[Any, int, int]]:
    """(key, kind, index) of each cell in the map of a space that a process may use."""
    found = []
    for raw in list(shared_map):
        index = cells.find(raw, 0, 0, 0)
        kind = cells.kind(index)
        if kind != _core.SPARE:
            found.append((shown_key(raw), kind, index))
    return found


def space_for(space: Sync | None, key: Key | None) -> Sync:
    """The space of a primitive that is made with these arguments."""
    if space is not None:
        if not isinstance(space, Sync):
            raise TypeError(
                f"space must be a Sync, as Sync('cluster') is, or None, not {type(space).__name__}"
            )
        return space
    where = None if key is None else f"shmrhash-sync-{os.geteuid()}"
    found = _named.get(where)
    if found is None or found.closed:
        found = Sync(where, _ANONYMOUS_MAX)
        _named[where] = found
    return found


def _reopen(name: str, path: str) -> Sync:
    """Unpickle a space, or find the handle that this process has."""
    for space in _spaces():
        if not space.closed and space.handle._path == path:
            return space
    return Sync._of(_CellMap._open(name, path, False, DEFAULT_TIMEOUT, None))


def stored_key(key: Key | None) -> bytes:
    """The 56 bytes that stand for a key in a space: its length, its type, its text; or a digest."""
    if key is None:
        text = _ANONYMOUS + secrets.token_bytes(16)
    elif type(key) is str:
        text = b"s" + key.encode()
    elif type(key) is bytes:
        text = b"b" + key
    elif type(key) is int:
        text = b"i%d" % key
    else:
        raise TypeError(f"a key is a str, bytes, int or None, not {type(key).__name__}")
    if len(text) > _TEXT_BYTES_MAX + 1:
        digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
        return (bytes([_LONG]) + text[:1] + digest + text[1:])[: _core.CELL_KEY_SIZE]
    return (bytes([len(text)]) + text).ljust(_core.CELL_KEY_SIZE, b"\0")


def shown_key(raw: bytes) -> Key | None:
    """The key that stored_key() stored; of a long one its beginning."""
    kind = raw[1:2]
    text = raw[2 + _DIGEST_BYTES :] if raw[0] == _LONG else raw[2 : 1 + raw[0]]
    if kind == b"b":
        return text
    if kind == b"s":
        return text.decode(errors="replace")
    if kind == b"i":
        return int(text) if raw[0] != _LONG else text.decode()
    return None
