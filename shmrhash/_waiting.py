"""Waiting until a key changes, without polling: wait(), wait_any() and watch() of the maps.

The core (python/watching.pxi) sleeps until a key may have changed; this module decides whether the
change is the one that is waited for. A woken waiter looks at the keys again: it learns states, not
events, so of several changes in a row it may see only the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol

from shmrhash import _core
from shmrhash._awaiting import Told
from shmrhash._changes import AllChanges, Change, Changes, KeyChanges
from shmrhash._errors import InvalidArgument, WaitTimeout

_ABSENT: Any = object()


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


class _Waitable(Protocol):
    """What the methods here need of a map."""

    @property
    def name(self) -> str: ...
    def _seen(self, key: Any, default: Any) -> Any: ...
    def _waiter(self, keys: list[Any]) -> _core.Waiter: ...
    def _notifier(self) -> _core.Notifier: ...
    def _notifier_key(self) -> tuple[object, ...]: ...


class _Watchable(_Waitable, Protocol):
    """What watch() needs of a map, beside that."""

    def _ring(self) -> _core.RingReader: ...
    def _pairs(self) -> Any: ...
    def _entry_at(self, raw: bytes) -> tuple[Any, Any] | None: ...
    def _key_at(self, raw: bytes) -> Any: ...
    def _long_keys(self) -> dict[bytes, Any]: ...
    def _raw_if_long(self, key: Any) -> bytes | None: ...


class _Wish:
    """One key that is waited for, and what for."""

    def __init__(self, shared: _Waitable, key: Any, until: Until) -> None:
        self._shared = shared
        self._key = key
        self._until = until
        self._first: Any = _ABSENT  # the first sight, for CHANGED

    def look(self, sight: Any) -> tuple[bool, Any]:
        """Whether what is waited for is so, and the value: None if the key is absent."""
        value = _ABSENT if sight is None else self._shared._seen(self._key, _ABSENT)
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
    """The part of RHashMap, SharedDict and Cache that waits."""

    def _seen(self: Any, key: Any, default: Any) -> Any:
        """What a look at a key finds."""
        return self.get(key, default)

    def wait(
        self: _Waitable, key: Any, until: Until = None, *, timeout: float | None = None
    ) -> Any:
        """Sleep until a key is as wanted; return the value that it then has (None: it is absent).

        until: None waits until the key is present; a function, until it is present and until(value)
        is true; GONE, until it is absent, also by expiry, or eviction from a Cache; CHANGED, until
        it has been stored, or has become absent, since this call began (a section that ended
        without storing may count). A change between an earlier read and the call is missed: to wait
        for any value but the one that was read, use a function. timeout: seconds, at least 0; None
        waits without limit.

        Costs one lookup if the key is as wanted. Otherwise this thread sleeps in the kernel, with
        the GIL released, and is woken by the writer: in some 10 to 50 microseconds, whichever
        process it is in. If the writer is killed before it wakes the thread, its recovery or the
        next writer does; in any case a waiter looks by itself every quarter of a second, and every
        half second after some seconds without being woken. Writers pay nothing while no thread
        waits. A read-only handle cannot tell writers that it waits, so it looks every 1 to 16
        milliseconds.

        A waiter sees states, not events: a value that is replaced at once may be missed. In a
        Cache, a look by a waiter is neither a hit nor a miss, and keeps no entry from being
        evicted; a key whose value is being computed is absent. until() runs without any lock, and
        may use the map. A map without a name (unlinked) can be waited for as long as other
        processes have it.

        Raises WaitTimeout (ETIMEDOUT), MapClosed (also if the map is closed during the wait),
        FrozenMap (the map can no longer change), WriteOnlyMap, InvalidArgument (timeout, until),
        TypeError (a key that the map cannot have), and what until() raises.
        """
        wait = _Wait(self, [key], until, timeout, f", key {key!r:.60}: not")
        return wait.sleep_until_found()[1]

    async def wait_for(
        self: _Waitable, key: Any, until: Until = None, *, timeout: float | None = None
    ) -> Any:
        """wait() for coroutines of asyncio: the loop goes on while this coroutine waits.

        Costs one lookup if the key is as wanted. Otherwise the coroutine waits for a future; one
        thread of the process, which runs no Python code, listens for changes in this map and wakes
        the loop, however many waits there are. It starts with the first wait and ends with the
        last, and is stopped while the process forks. until() is called in the loop. Each map has a
        descriptor in each loop that waits for it. Cancelling ends the wait and leaves nothing
        behind. With a read-only handle, changes are seen after 1 to 16 milliseconds.

        Raises what wait() raises, SystemFailure (no more threads or descriptors).
        """
        wait = _Wait(self, [key], until, timeout, f", key {key!r:.60}: not")
        return (await wait.until_found())[1]

    def wait_any(
        self: _Waitable, keys: Iterable[Any], until: Until = None, *, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Sleep until any of these keys is as wanted, and return that key and its value.

        until and timeout: as for wait(), and for each key. If several keys are as wanted, the first
        of them is returned. Costs one lookup a key each time that a key of one of their classes (64
        for all keys of the map) changes.

        Raises what wait() raises, InvalidArgument (no keys).
        """
        names = _names_for("wait_any", keys)
        wait = _Wait(self, names, until, timeout, f": none of {len(names)} keys was")
        return wait.sleep_until_found()

    async def wait_for_any(
        self: _Waitable, keys: Iterable[Any], until: Until = None, *, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """wait_any() for coroutines of asyncio, as wait_for() is wait().

        Raises what wait_for() raises, InvalidArgument (no keys).
        """
        names = _names_for("wait_for_any", keys)
        wait = _Wait(self, names, until, timeout, f": none of {len(names)} keys was")
        return await wait.until_found()

    def watch(
        self: _Watchable,
        keys: Iterable[Any] | None = None,
        *,
        initial: bool = False,
        timeout: float | None = None,
    ) -> Watch:
        """Iterate over the changes of some keys, or without keys of every key, as they happen, from
        this call on: with for, or with async for in a coroutine.

        Yields a Change for each key that has changed since the last one: kind ("set" or "deleted"),
        key, value. Changes of one key are coalesced: the value is the newest one, and however slow
        the loop is, nothing accumulates. initial: first yield the present state of each key.
        timeout: the iteration ends after that many seconds without a change; None: never. Close it,
        or use it in a with statement: while it is open, writers of its keys look at a bell, and the
        map stays mapped.

        With keys: costs one lookup a key each time a key of one of their classes (64 for all keys
        of the map) changes, so watch hundreds of keys, not millions.

        Without keys: each writer records the keys that it changes in a ring of 4,096 places (fewer
        if keys have more than 248 bytes: the ring has at most 1 MiB). While a process watches
        everything, this costs some 15 ns for each change, and a system call if a watcher sleeps.
        The first such watch of a map gives the ring memory, 64 KiB for keys of 8 bytes. A change of
        kind "lost" reports changes whose keys are not known, at least as many as its value says:
        this loop was too slow, or a process was killed while it changed the map, or had been
        stopped when this watch began. Whatever is read from the map after a "lost" is newer than
        all of them: read the whole map again. With initial, all entries are yielded again after a
        "lost", so to keep a copy of the map, clear the copy at "lost". A state may be reported
        twice. An expired entry is reported when it is removed. In a SharedDict or Cache, keys of
        more than 15 bytes are read once at the beginning, and kept. In a Cache, a claim to compute
        a key is reported as a deletion of the key; a claim to compute a value again that is still
        served (stale=, early=) is reported as a deletion of a key that was never stored or, without
        initial, as "lost".

        Raises, when it is made and in the loop, what wait() raises but WaitTimeout; without keys
        also ReadOnlyMap (writers cannot be told) and SegmentFull (no memory for the ring).
        """
        if keys is None:
            return Watch(self, AllChanges(self, initial), timeout)
        return Watch(self, KeyChanges(self, _names_for("watch", keys), initial), timeout)


class Watch(Iterator[Change]):
    """The changes of some keys, or of all: made by watch(), for a for loop or next().

    In a coroutine: ``async for change in ...``, with or without ``async with``. In an event loop of
    another kind: fileno() and poll().
    """

    def __init__(self, shared: _Waitable, changes: Changes, timeout: float | None) -> None:
        _core.deadline_after(timeout)
        self._shared = shared
        self._changes = changes
        self._timeout = timeout
        self._pending: deque[Change] = deque()
        self._waiter: _core.Waiter | None = changes.waiter
        self._notifier: _core.Notifier | None = None  # of fileno()
        self._told: Any = None  # while a coroutine waits
        try:
            changes.begin(self._pending)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Change:
        deadline = _core.deadline_after(self._timeout)
        while not self._pending:  # ends with the timeout
            if self._waiter is None:
                raise StopIteration
            self._changes.look(deadline, self._pending)
            if not self._pending:
                if _is_over(deadline):
                    raise StopIteration
                if self._waiter is not None:  # decoding a value may have closed this Watch
                    self._waiter.sleep(deadline)
        return self._pending.popleft()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        if self._pending:
            return self._pending.popleft()
        if self._waiter is None:
            raise StopAsyncIteration
        if self._told is not None:
            raise InvalidArgument("another coroutine waits for this watch; make one for each")
        deadline = _core.deadline_after(self._timeout)
        told = self._told = Told(self._shared, self._waiter, self._notifier)
        try:
            while True:  # ends with the timeout
                settled = self._changes.look(0, self._pending)
                if self._pending:
                    return self._pending.popleft()
                if _is_over(deadline):
                    raise StopAsyncIteration
                await told.pause(settled, deadline)
                if self._waiter is None:  # close() was called
                    raise StopAsyncIteration
        finally:
            self._told = None
            told.close()

    def fileno(self) -> int:
        """A descriptor that becomes readable when keys may have changed: for selectors, trio,
        gevent, Qt. Then call poll(). It belongs to this Watch, which closes it.

        An entry that expires is noticed within a quarter of a second. In a child of fork, call it
        again: the child has a descriptor of its own. The first call begins a thread of the process
        that listens, unless there is one; it runs no Python and ends when nothing is waited for.

        Raises InvalidArgument (this Watch is closed), MapClosed, SystemFailure.
        """
        if self._waiter is None:
            raise InvalidArgument("this watch is closed")
        if self._notifier is None or not self._notifier.alive:
            self._notifier = self._shared._notifier()
            self._waiter.attach(self._notifier)
        return self._notifier.fileno()

    def poll(self) -> list[Change]:
        """The changes until now, without waiting: one for each key that has changed.

        Raises what the loop raises.
        """
        if self._notifier is not None:
            self._notifier.moved()
        if self._waiter is not None:
            self._changes.look(0, self._pending)
            if not self._pending and self._waiter is not None:
                self._waiter.expect_hope()
        found = list(self._pending)
        self._pending.clear()
        return found

    def close(self) -> None:
        """End the iteration; what is pending is still yielded."""
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None
        if self._told is not None:
            self._told.wake()
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Wait:
    """A wait for one of some keys to be as wanted."""

    def __init__(
        self,
        shared: _Waitable,
        keys: list[Any],
        until: Until,
        timeout: float | None,
        unmet: str,
    ) -> None:
        """unmet: the middle of WaitTimeout's message, between the map and "as wanted"."""
        _checked_until(until)
        self._deadline = _core.deadline_after(timeout)
        self._waiter = shared._waiter(keys)
        self._shared = shared
        self._keys = keys
        self._wishes = [_Wish(shared, key, until) for key in keys]
        self._unmet = f"{unmet} as wanted within {timeout} s"

    def _found(self, settled: bool) -> tuple[Any, Any] | None:
        """Behind arm(), which returned settled: the first key that is as wanted, and its value.
        Raises WaitTimeout."""
        for i, wish in enumerate(self._wishes if settled else ()):
            done, value = wish.look(self._waiter.sight(i))
            if done:
                return self._keys[i], value
        if _is_over(self._deadline):
            raise WaitTimeout(f"map {self._shared.name!r}{self._unmet}")
        return None

    def sleep_until_found(self) -> tuple[Any, Any]:
        """Block this thread until a key is as wanted."""
        try:
            while True:  # ends with the timeout
                found = self._found(self._waiter.arm(self._deadline))
                if found is not None:
                    return found
                self._waiter.sleep(self._deadline)
        finally:
            self._waiter.end()

    async def until_found(self) -> tuple[Any, Any]:
        """Block this coroutine until a key is as wanted."""
        told = Told(self._shared, self._waiter)
        try:
            while True:  # ends with the timeout
                settled = self._waiter.arm(0)
                found = self._found(settled)
                if found is not None:
                    return found
                await told.pause(settled, self._deadline)
        finally:
            told.close()
            self._waiter.end()


def _checked_until(until: Until) -> None:
    if until is not None and not isinstance(until, _Wanted) and not callable(until):
        raise InvalidArgument(
            f"until is None, a function of the value, GONE or CHANGED, not {until!r:.60}"
        )


def _names_for(function: str, keys: Iterable[Any]) -> list[Any]:
    names = list(keys)
    if not names:
        raise InvalidArgument(f"{function} needs at least one key")
    return names


def _is_over(deadline: int) -> bool:
    return 0 <= deadline <= _core.clock_monotonic_ns()
