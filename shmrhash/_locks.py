"""Locked sections: reading a value and storing a new one as one step, for one key or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument, KeyGone

if TYPE_CHECKING:
    _Map = _core.MapCore
else:
    _Map = object  # the methods are mixed into RHashMap, which has the core as its other base


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
        Costs about 0.6 microseconds if the lock is free; waiting releases the GIL. In a coroutine
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
    ) -> LockedValues:
        """Locked sections on several keys: ``with m.locked_many([a, b]) as (va, vb):``.

        The keys are locked in the order of their bytes, whatever order is given, so that two
        callers that lock the same keys cannot deadlock. At the end of the block each value is
        stored in one atomic step, one after another in that order: a reader of several keys may see
        some new and some old values, and if the process dies between two of these steps, the first
        values are stored and the others are not. If the block raises, no value is stored. timeout
        and default are for each key.

        Raises what locked() raises, InvalidArgument (a key given twice). KeyGone, at the end, is
        raised after the values of all keys that were not deleted are stored; its count is the
        number of those keys.
        """
        return LockedValues(self, keys, timeout, default)

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


class LockedValues:
    """Several locked values. Made by RHashMap.locked_many(), for a with statement."""

    def __init__(
        self, handle: LockMethods, keys: Iterable[Any], timeout: float | None, default: Any
    ) -> None:
        self._given = [memoryview(key).tobytes() for key in keys]
        if len(set(self._given)) != len(self._given):
            raise InvalidArgument("locked_many() got a key twice; give each key once")
        self._sections = {
            key: _core.LockedValue(handle, key, timeout, default) for key in sorted(self._given)
        }

    def __enter__(self) -> list[_core.LockedValue]:
        entered = []
        try:
            for section in self._sections.values():
                section.__enter__()
                entered.append(section)
        except BaseException as error:
            for section in reversed(entered):
                section.__exit__(type(error), error, error.__traceback__)
            raise
        return [self._sections[key] for key in self._given]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gone: list[BaseException] = []
        broken: BaseException | None = None
        for section in self._sections.values():
            try:
                if broken is None:
                    section.__exit__(kind, error, traceback)
                else:  # after an error of another kind the remaining sections are rolled back
                    section.__exit__(type(broken), broken, broken.__traceback__)
            except KeyGone as one:
                gone.append(one)
            except BaseException as one:
                broken = broken or one
        if broken is not None:
            raise broken
        if gone:
            first = gone[0]
            assert isinstance(first, KeyGone)
            first.count = len(self._sections) - len(gone)
            raise first
