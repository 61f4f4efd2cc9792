"""locks(): which processes hold the primitives of a space, and which wait for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from shmrhash import _core
from shmrhash._map import RHashMap
from shmrhash._sync.locks import Lock, Owner, RLock, owner_of
from shmrhash._sync.space import KIND_NAMES, Key, Sync, cells_in, space_for

_LOCKS = (_core.LOCK, _core.RLOCK)
_SEMAPHORES = (_core.SEMAPHORE, _core.COUNTER)


class LockInfo(NamedTuple):
    """The state of one primitive.

    kind: "Lock", "RLock", "RWLock", "Semaphore", "Semaphore(undo=False)", "Event", "Condition",
    "Barrier". owners: its holders: for an RWLock, each process that reads or writes; for a
    Semaphore, each process with permits, once for each permit; their `since` is 0. waiters: the
    threads, tasks of asyncio and greenlets that wait for it, with the time since when; a waiter
    that has not yet slept, or for which the space has no context left (4,096), is missing. Of the
    tasks and greenlets of one process that wait in a space, 64 are shown, besides the first in the
    queue for each lock, and all that wait for a Condition or a Barrier. value: the free permits of
    a Semaphore, 1 or 0 for an Event, the parties that a Barrier needs; None for others. token: how
    often a Lock or RLock has been taken.
    """

    key: Key | None
    kind: str
    owners: list[Owner]
    waiters: list[Owner]
    value: int | None
    token: int | None


def locks(space: Sync | None = None) -> list[LockInfo]:
    """The primitives of a space at this moment, with their holders and waiters.

    space: None is the user's own, in which Lock("gpu0") is. Each primitive is read by itself, while
    others may change. O(primitives x (1 + threads that hold something or wait)).

    Raises MapClosed, and what Sync() raises.
    """
    return locks_in(space_for(space, "").handle)


def locks_in(shared_map: RHashMap) -> list[LockInfo]:
    """locks() of the map of a space, which may be open for reading only."""
    cells = _core.Space(shared_map)
    return [_info(cells, index, key) for key, _, index in cells_in(shared_map, cells)]


def _info(cells: _core.Space, index: int, key: Key | None) -> LockInfo:
    kind, words = cells.kind(index), cells.words(index)
    owners: list[Owner] = []
    value, token = None, None
    if kind in _LOCKS:
        token = words["grants"]
        owners = _living([cells.owner(index)])
    elif kind == _core.RWLOCK:
        owners = _living(holder for holder, _ in _core.permit_holders(cells, index))
    elif kind in _SEMAPHORES:
        value = words["count"]
        for holder, permits in _core.permit_holders(cells, index):
            owners += _living([holder]) * permits
    elif kind == _core.EVENT:
        value = words["count"] & 1
    elif kind == _core.BARRIER:
        value = words["limit"]
    waiters = _living(_core.cell_waiters(cells, index))
    return LockInfo(key, KIND_NAMES.get(kind, "?"), owners, waiters, value, token)


def _living(found: Iterable[Any]) -> list[Owner]:
    """Those of some processes, as the core names them, that live."""
    return [owner for owner in map(owner_of, found) if owner is not None]


def lock_of(space: Sync, key: Key) -> Lock | RLock | None:
    """The Lock or RLock that has this key; None if the primitive is another one. KeyError: there is
    none."""
    for known, kind, _ in space._entries():
        if known == key and type(known) is type(key):
            if kind == _core.LOCK:
                return Lock(key, space=space)
            return RLock(key, space=space) if kind == _core.RLOCK else None
    raise KeyError(key)


def take_away(lock: Lock | RLock) -> bool:
    """Free a lock whose owner is alive. The owner gets RuntimeError when it releases the lock. The
    next owner is told as after a death. False: the lock is free, or has just passed to another
    owner."""
    return _core.depose(lock, 0)
