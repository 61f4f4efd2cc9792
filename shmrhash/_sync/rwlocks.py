"""RWLock: many readers or one writer, of all processes of a machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shmrhash import _core
from shmrhash._errors import LockTimeout
from shmrhash._sync.locks import Orphan
from shmrhash._sync.space import Key, Sync, shown_key, space_for


class RWLock(_core.RWLockCore):
    """A lock that many readers have at once, or one writer, of all processes of a machine.

        with table_lock.read_lock(): ...
        with table_lock.write_lock(): ...

    RWLock("table") is the same lock in all processes of this user; with space=, in all that open
    that space; RWLock() is a new one, which children of fork share and which can be pickled. What a
    process has of the lock is taken off it when it dies, whether it read or wrote. A child of fork
    has nothing of its parent's.

    A writer that waits keeps new readers out; after a writer, the readers that wait come first. It
    is not reentrant, and a reader cannot become the writer.

    Attributes: key, space, undo (always true).
    """

    _space: Sync
    _raw: bytes

    def __new__(cls, key: Key | None = None, *, space: Sync | None = None) -> RWLock:
        """Make the object for the lock of this key; the lock itself is made if it is not there.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        space = space_for(space, key)
        index, raw = space._find(key, _core.RWLOCK, 0, 0)
        self = super().__new__(cls, space._cells, index)
        self._space, self._raw = space, raw
        return self

    @contextlib.contextmanager
    def read_lock(self, timeout: float | None = -1) -> Iterator[RWLock]:
        """A context manager that reads: it comes in at the beginning and goes out at the end.

        timeout: seconds; -1 or None waits without limit. Raises LockTimeout, and what
        acquire_read() raises.
        """
        if not self.acquire_read(True, timeout):
            raise LockTimeout(f"{self!r}: no reader could come in for {timeout} s")
        try:
            yield self
        finally:
            self.release_read()

    @contextlib.contextmanager
    def write_lock(self, timeout: float | None = -1) -> Iterator[RWLock]:
        """A context manager that writes: it comes in at the beginning and goes out at the end.

        timeout: seconds; -1 or None waits without limit. Raises LockTimeout, and what
        acquire_write() raises.
        """
        if not self.acquire_write(True, timeout):
            raise LockTimeout(f"{self!r}: no writer could come in for {timeout} s")
        try:
            yield self
        finally:
            self.release_write()

    @property
    def key(self) -> Key | None:
        """The key in its space; None if the lock is anonymous."""
        return shown_key(self._raw)

    @property
    def space(self) -> Sync:
        """The space in which the lock is."""
        return self._space

    @property
    def orphan(self) -> Orphan | None:
        """Which writer died in the lock, if no writer has gone out since: what the lock protects
        may be half done. Its `since` is 0. None: none died.

        Raises MapClosed.
        """
        if not self._orphaned:
            return None
        pid, command, since_ns = self._space._cells.orphaned_by(self._index)
        return Orphan(pid, command, since_ns / 1e9)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._space, self._raw)

    def __repr__(self) -> str:
        name = f"{type(self).__module__.partition('.')[0]}.{type(self).__qualname__}"
        state = "closed"
        if not self._space.closed:
            state = "a writer" if self.has_writer else f"{self.readers} readers"
        return f"<{name} at {id(self):#x}: {state}, key={self.key!r} in {self._space.name!r}>"


def _restore(cls: type[Any], space: Sync, raw: bytes) -> Any:
    """Unpickle a lock."""
    index = space._find_stored(raw, _core.RWLOCK, 0, 0)
    self = _core.RWLockCore.__new__(cls, space._cells, index)
    self._space, self._raw = space, raw
    return self
