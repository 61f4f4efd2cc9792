"""What watch() reports: the changes of some keys, or of all, since the last look.

The core (python/watching.pxi, python/ringing.pxi) says which keys may have changed; here their
states are looked up, and become the Changes that a Watch yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

from shmrhash import _core

ABSENT: Any = object()
CHUNK = 128  # entries that one look takes of a walk


class Change(NamedTuple):
    """What watch() tells of a key: "set" with the value it has, or "deleted" with None.

    Or, of watch() without keys, "lost": value says how many changes, at least, there may have been
    of which no key is known; key is None.
    """

    kind: Literal["set", "deleted", "lost"]
    key: Any
    value: Any


def _change(key: Any, value: Any) -> Change:
    return Change("deleted", key, None) if value is ABSENT else Change("set", key, value)


class _OfKeys(Protocol):
    """What KeyChanges needs of a map."""

    def _seen(self, key: Any, default: Any) -> Any: ...
    def _waiter(self, keys: list[Any]) -> _core.Waiter: ...


class _OfAll(Protocol):
    """What AllChanges needs of a map."""

    def _ring(self) -> _core.RingReader: ...
    def _pairs(self) -> Iterable[tuple[Any, Any]]: ...
    def _entry_at(self, raw: bytes) -> tuple[Any, Any] | None: ...
    def _key_at(self, raw: bytes) -> Any: ...
    def _long_keys(self) -> dict[bytes, Any]: ...
    def _raw_if_long(self, key: Any) -> bytes | None: ...


class Changes(Protocol):
    """Where a Watch has its Changes from."""

    waiter: _core.Waiter

    def begin(self, pending: deque[Change]) -> None:
        """From now on, changes are told; add what the program is to be told first."""

    def look(self, deadline: int, pending: deque[Change]) -> bool:
        """Add what has changed since the last look. deadline: 0, in an event loop, does not wait
        for writers. False: a process is in the middle of a change, and the deadline is over."""


class KeyChanges:
    """The changes of some keys."""

    def __init__(self, shared: _OfKeys, keys: list[Any], initial: bool) -> None:
        self._shared = shared
        self._keys = keys
        self._states: list[Any] = [ABSENT if initial else None] * len(keys)
        self._initial = initial
        self.waiter = shared._waiter(keys)

    def begin(self, pending: deque[Change]) -> None:
        self.look(-1, pending)
        if not self._initial:
            pending.clear()

    def look(self, deadline: int, pending: deque[Change]) -> bool:
        if not self.waiter.arm(deadline):
            return False
        for i, key in enumerate(self._keys):
            sight = self.waiter.sight(i)
            if sight == self._states[i]:
                continue
            value = ABSENT if sight is None else self._shared._seen(key, ABSENT)
            state = None if value is ABSENT else sight
            if state != self._states[i]:
                self._states[i] = state
                pending.append(_change(key, value))
        return True


class AllChanges:
    """The changes of every key.

    The ring has the bytes of keys as the map stores them, which of a long key are not all. So the
    long keys of present entries are kept here, for the day that they are deleted.

    With initial, the program has been told each entry, and after a loss is told them again: so it
    knows no key that is not kept here. Without, it may know others: the deletion of a long key that
    is not kept is a loss.
    """

    def __init__(self, shared: _OfAll, initial: bool) -> None:
        self._shared = shared
        self._initial = initial
        self._walk: Iterator[tuple[Any, Any]] = iter(())
        self._long: dict[bytes, Any] = {}
        self._reader = shared._ring()
        self.waiter = self._reader.waiter

    def begin(self, _pending: deque[Change]) -> None:
        self._reader.begin()
        self._begin_again()

    def _begin_again(self) -> None:
        """The program is to know the map as it is from now on."""
        self._long = {} if self._initial else self._shared._long_keys()
        if self._initial:
            self._walk = iter(self._shared._pairs())

    def look(self, deadline: int, pending: deque[Change]) -> bool:
        # First the walk: it reads ahead, so what it tells may be older than what the ring tells.
        for key, value in islice(self._walk, CHUNK):
            raw = self._shared._raw_if_long(key)
            if raw is not None:
                self._long[raw] = key
            pending.append(Change("set", key, value))
        if pending:
            return True
        raws, lost, settled = self._reader.look(deadline != 0)
        if lost:
            self._begin_again()
            pending.append(Change("lost", None, lost))
        for raw in raws:
            self._tell(raw, pending)
        return settled

    def _tell(self, raw: bytes, pending: deque[Change]) -> None:
        """Look up a key that has changed."""
        entry = self._shared._entry_at(raw)
        key = self._shared._key_at(raw)
        if entry is not None:
            if key is None:
                self._long[raw] = entry[0]
            pending.append(Change("set", *entry))
        elif key is not None or raw in self._long:
            pending.append(Change("deleted", self._long.pop(raw) if key is None else key, None))
        elif not self._initial:
            pending.append(Change("lost", None, 1))
