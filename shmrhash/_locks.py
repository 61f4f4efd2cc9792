"""Locked sections: reading a value and storing a new one as one step, for one key or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmrhash import _core, _turns
from shmrhash._errors import Error, InvalidArgument, TooManyProcesses

if TYPE_CHECKING:
    _Map = _core.MapCore
else:
    _Map = object  # the methods are mixed into RHashMap, which has the core as its other base

Section = TypeVar("Section", bound="_core.LockedValue | _core.LockedEntry[Any]")


class LockMethods(_Map):
    """The part of RHashMap that locks values (F_LOCK, L1).

    Every element of every map can be locked; nothing has to be reserved in the value. Readers are
    not affected: until the section ends, a lookup without BPF_F_LOCK returns the value from before
    it. Writers, and every operation with BPF_F_LOCK, wait. delete(), pop() and clear() do not wait:
    they remove the key, and the section then stores nothing.
    """

    def locked(
        self, key: Any, *, timeout: float | None = None, default: Any = None
    ) -> _core.LockedValue:
        """A locked section on key: ``with m.locked(key) as v:`` read and write v, a buffer.

        v is a private copy of the value: a writable buffer with v[...], bytes(v), v.unpack(fmt),
        v.pack(fmt, ...), v.as_array(dtype), v.delete(), v.roll_back(). When the block ends, v is
        stored in one atomic step; if the block raises or the process dies, the value stays as it
        was, and the lock is free (C1). Inside the block no other thread or process changes the
        value (L1).

        timeout: seconds to wait for the lock; None is the handle's own timeout, inf waits without
        limit, 0 does not wait. default: a value to insert first if the key is absent, as by
        setdefault(); it stays, however the section ends. A lock belongs to the thread that took it.
        Costs about 0.6 microseconds if the lock is free; waiting releases the GIL. In a coroutine,
        use ``async with``: the tasks of a loop take turns in the order in which they came, the lock
        belongs to the task, and no wait blocks the loop.

        Raises, on entry: KeyNotFound (absent, and default is None), LockTimeout, DeadlockError
        (this thread has the key locked already), MapFull, SegmentFull, InvalidArgument, TypeError,
        ReadOnlyMap, MapClosed; at the end: KeyGone (the key was deleted; nothing is stored),
        FrozenMap (likewise). Storing never waits. v.delete() needs the key's bucket, which another
        process may hold: after the handle's timeout, not that of the section, it raises
        LockTimeout; the key is then not deleted, has the value from before the block, and is not
        locked.
        """
        return _core.LockedValue(self, key, timeout, default)

    def locked_many(
        self, keys: Iterable[Any], *, timeout: float | None = None, default: Any = None
    ) -> LockedKeys[_core.LockedValue]:
        """Locked sections on several keys: ``with m.locked_many([a, b]) as (va, vb):``.

        The keys are locked in the order of their bytes, whatever order is given, so that two
        callers that lock the same keys cannot deadlock. The end of the block is one step: all
        values are stored, and all keys deleted whose section says delete(), or nothing happens,
        even if the process is killed at any instruction (C1, L2). If the block raises, nothing is
        stored. A later locked_many() of the keys sees all of the change or none of it. A lookup
        takes no lock: one key after the other, it may find a new value and then an old one; to read
        several keys that belong together, lock them, too. timeout and default are for each key.
        Costs about 1.5 times as much for each key as locked(), and an operation context for each
        key until the block ends. In a coroutine, use ``async with``, as for locked(); a deletion at
        its end may block the loop while another process holds the key's bucket.

        Raises what locked() raises, InvalidArgument (a key given twice), TooManyProcesses (no
        context left: all processes together have 4,096); at the end KeyGone (a key was deleted:
        nothing is stored), FrozenMap (likewise), LockTimeout (the bucket of a key to be deleted
        was held by another process for the handle's timeout: nothing is stored).
        """
        given = [memoryview(key).tobytes() for key in keys]
        return LockedKeys(
            given, lambda number: _core.LockedValue(self, given[number], timeout, default)
        )

    def update_with(
        self,
        key: Any,
        function: Callable[[bytes], Any],
        default: Any = None,
        *,
        timeout: float | None = None,
    ) -> bytes:
        """Store function(value) under key, in a locked section; return what was stored.

        default: the value that function gets if the key is absent; it is inserted first, and stays
        if function raises. Without a default an absent key is an error. function runs once, and
        must not change this key by other means. timeout: as for locked().

        Raises what locked() raises, and what function raises; InvalidArgument (function returned a
        value of another size).
        """
        with self.locked(key, timeout=timeout, default=default) as value:
            value[:] = function(bytes(value))
            return bytes(value)


class LockedKeys(Generic[Section]):
    """Several locked keys. Made by locked_many(), for a with statement or an async with, which gets
    the list of their sections."""

    def __init__(self, keys: Iterable[bytes], section: Callable[[int], Section]) -> None:
        """keys: as the map stores them. section: makes the section of the key with this number."""
        self._given = list(keys)
        if len(set(self._given)) != len(self._given):
            raise InvalidArgument("locked_many() got a key twice; give each key once")
        self._sections: list[Section] = [section(number) for number in range(len(self._given))]

    def __enter__(self) -> list[Section]:
        entered: list[Section] = []
        try:
            for section in self._in_order():
                section.__enter__()
                entered.append(section)
            _expect_mine(entered)
        except BaseException as error:
            for section in reversed(entered):
                section.__exit__(type(error), error, error.__traceback__)
            self._explain(error, len(entered))
            raise
        return list(self._sections)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            _core.sections_end(self._sections)
        else:
            for section in self._sections:
                section.__exit__(kind, error, traceback)

    async def __aenter__(self) -> list[Section]:
        entered: list[Section] = []
        try:
            for section in self._in_order():
                await _turns.enter(section)
                entered.append(section)
            _expect_mine(entered)
        except BaseException as error:
            for section in reversed(entered):
                await _turns.leave(section, type(error), error, error.__traceback__)
            self._explain(error, len(entered))
            raise
        return list(self._sections)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.__exit__(kind, error, traceback)
        finally:
            for section in self._sections:
                _turns.give(section)

    def _in_order(self) -> list[Section]:
        """The sections in the order in which everybody locks their keys."""
        numbers = sorted(range(len(self._given)), key=self._given.__getitem__)
        return [self._sections[number] for number in numbers]

    def _explain(self, error: BaseException, locked: int) -> None:
        """Raise TooManyProcesses with what to do, if that was raised after so many keys."""
        if isinstance(error, TooManyProcesses):
            raise TooManyProcesses(
                f"locked_many() of {len(self._given)} keys: each locked key needs an operation "
                f"context, and no context was left after {locked}; lock fewer keys at once"
            ) from error


def _expect_mine(entered: Sequence[_core.LockedValue | _core.LockedEntry[Any]]) -> None:
    """Raise in a child of fork, which a signal handler forked while its parent waited for a key."""
    if entered and not entered[0]._is_mine:
        raise Error(
            "locked_many(): this process was forked while its parent waited for a key; "
            "the keys are the parent's, and the child has to lock them itself"
        )
