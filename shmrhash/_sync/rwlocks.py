"""RWLock: many readers or one writer, of all processes of a machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shmrhash import _core
from shmrhash._errors import LockTimeout
from shmrhash._sync.locks import Orphan, orphan_of
from shmrhash._sync.primitive import Primitive
from shmrhash._sync.space import Key, Sync, space_for


class RWLock(Primitive, _core.RWLockCore):
    """A lock that many readers have at once, or one writer, of all processes of a machine.

        with table_lock.read_lock(): ...
        with table_lock.write_lock(): ...

    RWLock("table") is the same lock in all processes of this user; with space=, in all that open
    that space; RWLock() is a new one, which children of fork share and which can be pickled. What a
    process has of the lock is taken off it when it dies, whether it read or wrote. A child of fork
    has nothing of its parent's.

    A writer that waits keeps new readers out; after a writer, the readers that wait come first. It
    is not reentrant, and a reader cannot become the writer. A thread that would wait for itself, or
    in a circle with others, gets DeadlockError, as of a Lock.

    Attributes: key, space, undo (always true).
    """

    _check: bool

    def __new__(
        cls, key: Key | None = None, *, space: Sync | None = None, check: bool = True
    ) -> RWLock:
        """Make the object for the lock of this key; the lock itself is made if it is not there.

        check: a thread that waits without limit in a circle gets DeadlockError, as of a Lock. A
        process of which several threads read at once is no part of a circle.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        return cls._of_key(space_for(space, key), key, _core.RWLOCK, check)

    def _start(self, check: bool) -> None:  # type: ignore[override]
        self._check = check
        self._set_check(check)

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
    def orphan(self) -> Orphan | None:
        """Which writer died in the lock, if no writer has gone out since: what the lock protects
        may be half done. Its `since` is 0. None: none died.

        Raises MapClosed.
        """
        return orphan_of(self) if self._orphaned else None

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_core.RWLOCK, self._check)

    def __repr__(self) -> str:
        state = "closed"
        if not self._space.closed:
            state = "a writer" if self.has_writer else f"{self.readers} readers"
        where = f"key={self.key!r} in {self._space.name!r}"
        return f"<{self._type_name} at {id(self):#x}: {state}, {where}>"
