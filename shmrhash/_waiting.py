"""Waiting until a key changes, without polling: wait(), wait_any() and watch() of the maps.

The core (python/bells.pxi) sleeps until a key may have changed; here it is decided what is waited
for. Whoever is woken looks at the keys again: it is told states, not events, so of several changes
in a row only the last may be seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol

from shmrhash import _core
from shmrhash._errors import InvalidArgument, WaitTimeout

_ABSENT: Any = object()
_DEADLINE_MAX = 1 << 62  # ns; a later one is none


class _Wanted:
    """What wait() may be asked for beside a value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"shmrhash.{self._name}"

    def __reduce__(self) -> str:
        return self._name


CHANGED = _Wanted("CHANGED")
GONE = _Wanted("GONE")

Until = Callable[[Any], object] | _Wanted | None


class Change(NamedTuple):
    """What watch() tells of a key: "set" with the value it has, or "deleted" with None."""

    kind: Literal["set", "deleted"]
    key: Any
    value: Any


class _Waitable(Protocol):
    """What the methods here need of a map."""

    @property
    def name(self) -> str: ...
    def get(self, key: Any, default: Any = ..., /) -> Any: ...
    def _waiter(self, keys: list[Any]) -> _core.Waiter: ...


class _Wish:
    """One key that is waited for, and what for."""

    def __init__(self, shared: _Waitable, key: Any, until: Until) -> None:
        self._shared = shared
        self._key = key
        self._until = until
        self._first: Any = _ABSENT  # the first sight, for CHANGED

    def look(self, sight: Any) -> tuple[bool, Any]:
        """Whether what is waited for is so, and the value: None if the key is absent."""
        value = self._shared.get(self._key, _ABSENT)
        absent = value is _ABSENT
        found = None if absent else value
        if self._until is None:
            return not absent, found
        if self._until is GONE:
            return absent, found
        if self._until is CHANGED:
            state = None if absent else sight
            if self._first is _ABSENT:
                self._first = state
            return state != self._first, found
        return not absent and bool(self._until(value)), found  # type: ignore[operator]


class WaitMethods:
    """The part of RHashMap and SharedDict that waits."""

    def wait(
        self: _Waitable, key: Any, until: Until = None, *, timeout: float | None = None
    ) -> Any:
        """Sleep until a key is as wanted, and return its value then (None: it is absent).

        until: None waits until the key is there; a function, until it is there and until(value) is
        true; GONE, until it is absent, also by expiry; CHANGED, until it has been stored, deleted
        or expired since this call began (a section that ended without storing may count). What was
        read before the call may have changed before it: to wait for another value than one in
        hand, use a function. timeout: seconds, at least 0; None waits without limit.

        Costs one lookup if the key is as wanted. Otherwise this thread sleeps in the kernel, with
        the GIL released, and is woken by the writer: in some 10 to 50 microseconds, whichever
        process it is in. A writer that is killed wakes nobody; then its recovery does, the next
        writer, or a look that a waiter takes each quarter of a second, and each half second once
        nobody has woken it for some seconds. Writers pay nothing while
        nobody waits. A read-only handle cannot say that it waits, so it looks every 1 to 16
        milliseconds.

        Only states are seen, not events: a value that is replaced again at once may be missed.
        until() runs without any lock, and may use the map. A map without a name (unlinked) can be
        waited for as long as other processes have it.

        Raises WaitTimeout (ETIMEDOUT), MapClosed (also if the map is closed meanwhile), FrozenMap
        (it cannot happen any more), WriteOnlyMap, InvalidArgument (timeout, until), TypeError (a
        key that cannot be), and what until() raises.
        """
        return _wait(self, [key], until, timeout, f", key {key!r:.60}: not")[1]

    def wait_any(
        self: _Waitable, keys: Iterable[Any], until: Until = None, *, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Sleep until any of these keys is as wanted, and return that key and its value.

        until and timeout: as for wait(), and for each key. Of several keys that are as wanted, the
        first is returned. Costs one lookup a key each time that a key of one of their classes (64
        for all keys of the map) changes.

        Raises what wait() raises, InvalidArgument (no keys).
        """
        names = list(keys)
        if not names:
            raise InvalidArgument("wait_any needs at least one key")
        return _wait(self, names, until, timeout, f": none of {len(names)} keys was")

    def watch(
        self: _Waitable,
        keys: Iterable[Any],
        *,
        initial: bool = False,
        timeout: float | None = None,
    ) -> Watch:
        """Iterate over the changes of some keys, as they happen, from this call on.

        Yields a Change for each key that has changed since the last one: kind ("set" or
        "deleted"), key, value. Changes of one key are coalesced: the value is the newest one, and
        however slow the loop is, nothing accumulates. initial: first yield the present state of
        each key. timeout: the iteration ends after so many seconds without a change; None: never.
        Close it, or use it in a with statement: while it is open, writers of its keys look at a
        bell, and the map stays mapped.

        Costs one lookup a key each time a key of one of their classes (64 for all keys of the map)
        changes, so watch hundreds of keys, not millions.

        Raises, when it is made and in the loop, what wait() raises but WaitTimeout.
        """
        return Watch(self, list(keys), initial, timeout)


class Watch(Iterator[Change]):
    """The changes of some keys: made by watch(), for a for loop or next()."""

    def __init__(
        self, shared: _Waitable, keys: list[Any], initial: bool, timeout: float | None
    ) -> None:
        _deadline_after(timeout)
        if not keys:
            raise InvalidArgument("watch needs at least one key")
        self._shared = shared
        self._keys = keys
        self._timeout = timeout
        self._pending: deque[Change] = deque()
        self._states: list[Any] = [_ABSENT if initial else None] * len(keys)
        self._waiter: _core.Waiter | None = shared._waiter(keys)
        try:
            self._look(-1)
        except BaseException:
            self.close()
            raise
        if not initial:
            self._pending.clear()

    def _look(self, deadline: int) -> None:
        """Queue a change for each key whose state is not the one seen last."""
        assert self._waiter is not None
        if not self._waiter.arm(deadline):
            return
        for i, key in enumerate(self._keys):
            sight = self._waiter.sight(i)
            if sight is None and self._states[i] is None:
                continue
            value = self._shared.get(key, _ABSENT)
            state = None if value is _ABSENT else sight
            if state != self._states[i]:
                self._states[i] = state
                self._pending.append(
                    Change("deleted", key, None) if state is None else Change("set", key, value)
                )

    def __next__(self) -> Change:
        deadline = _deadline_after(self._timeout)
        while not self._pending:  # ends with the timeout
            if self._waiter is None:
                raise StopIteration
            self._look(deadline)
            if not self._pending:
                if _is_over(deadline):
                    raise StopIteration
                self._waiter.sleep(deadline)
        return self._pending.popleft()

    def close(self) -> None:
        """End the iteration; what is pending is still yielded."""
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _wait(
    shared: _Waitable, keys: list[Any], until: Until, timeout: float | None, unmet: str
) -> tuple[Any, Any]:
    """Sleep until one of the keys is as wanted, and return it and its value. unmet: the middle of
    WaitTimeout's message, between the map and "as wanted"."""
    _checked_until(until)
    deadline = _deadline_after(timeout)
    wishes = [_Wish(shared, key, until) for key in keys]
    waiter = shared._waiter(keys)
    try:
        while True:  # ends with the timeout
            if waiter.arm(deadline):
                for i, wish in enumerate(wishes):
                    done, value = wish.look(waiter.sight(i))
                    if done:
                        return keys[i], value
            if _is_over(deadline):
                raise WaitTimeout(f"map {shared.name!r}{unmet} as wanted within {timeout} s")
            waiter.sleep(deadline)
    finally:
        waiter.end()


def _checked_until(until: Until) -> None:
    if until is not None and not isinstance(until, _Wanted) and not callable(until):
        raise InvalidArgument(
            f"until is None, a function of the value, GONE or CHANGED, not {until!r:.60}"
        )


def _deadline_after(timeout: float | None) -> int:
    """The deadline of a wait that begins now, in ns; -1: none."""
    if timeout is None or timeout == math.inf:
        return -1
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise InvalidArgument(f"timeout is None or a number of seconds from 0 on, not {timeout!r}")
    now = _core.clock_monotonic_ns()
    return now + round(timeout * 1e9) if timeout * 1e9 < _DEADLINE_MAX else -1


def _is_over(deadline: int) -> bool:
    return 0 <= deadline <= _core.clock_monotonic_ns()
