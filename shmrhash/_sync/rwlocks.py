"""RWLock: many readers or one writer, of all processes of a machine."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from shmrhash import _core
from shmrhash._errors import LockTimeout
from shmrhash._sync import tasks
from shmrhash._sync.locks import Orphan, orphan_of
from shmrhash._sync.primitive import Primitive
from shmrhash._sync.space import Key, Sync, space_for


class RWLock(Primitive, _core.RWLockCore):
    """A lock that many readers have at once, or one writer, of all processes of a machine.

        with table_lock.read_lock(): ...
        with table_lock.write_lock(): ...

    RWLock("table") is the same lock in all processes of this user; with space=, in all processes
    that open that space. RWLock() is a new one, which children of fork share and which can be
    pickled. When a process dies, its part of the lock is free, whether it was reading or writing. A
    child of fork holds none of its parent's locks.

    A waiting writer keeps new readers out; after a writer, the waiting readers come first. The lock
    is not reentrant, and a reader cannot become the writer. A thread that would wait for itself, or
    in a circle with others, gets DeadlockError, as with a Lock.

    Attributes: key, space, undo (always true).
    """

    _check: bool

    def __new__(
        cls, key: Key | None = None, *, space: Sync | None = None, check: bool = True
    ) -> RWLock:
        """Make the object for the lock of this key; the lock is created if there is none.

        check: a thread that waits without limit in a circle gets DeadlockError, as with a Lock. A
        circle through a process whose threads read at the same time is not found.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        return cls._of_key(space_for(space, key), key, _core.RWLOCK, check)

    def _start(self, check: bool) -> None:  # type: ignore[override]
        self._check = check
        self._set_check(check)

    def read_lock(self, timeout: float | None = -1) -> Holding:
        """For a with or async with statement, which holds the lock for reading.

        timeout: seconds; -1 or None waits without limit. The statement raises LockTimeout, and what
        acquire_read() or acquire_read_async() raises.
        """
        return Holding(self, False, timeout)

    def write_lock(self, timeout: float | None = -1) -> Holding:
        """For a with or async with statement, which holds the lock for writing.

        timeout: seconds; -1 or None waits without limit. The statement raises LockTimeout, and what
        acquire_write() or acquire_write_async() raises.
        """
        return Holding(self, True, timeout)

    async def acquire_read_async(self, timeout: float | None = None) -> bool:
        """acquire_read() for coroutines of asyncio: the loop goes on while this task waits.

        timeout: seconds, at least 0; None waits without limit. The tasks of one loop, readers and
        writers, get the lock in the order in which they asked for it. Cancelling leaves nothing
        held.

        Raises InvalidArgument (timeout), TooManyProcesses, SystemFailure (no more threads or
        descriptors), MapClosed (also while it waits).
        """
        return await tasks.take(self, False, timeout)

    async def acquire_write_async(self, timeout: float | None = None) -> bool:
        """acquire_write() for coroutines of asyncio, as acquire_read_async() is acquire_read().

        Raises what acquire_read_async() raises.
        """
        return await tasks.take(self, True, timeout)

    @property
    def orphan(self) -> Orphan | None:
        """The writer that died holding the lock, if no writer has released it since: the data that
        the lock protects may be half changed. Its `since` is 0. None: no writer died.

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


class Holding(contextlib.ContextDecorator):
    """What read_lock() and write_lock() return, for with and async with; it can be used again and
    again."""

    def __init__(self, lock: RWLock, writes: bool, timeout: float | None) -> None:
        self._lock, self._writes, self._timeout = lock, writes, timeout

    def __enter__(self) -> RWLock:
        acquire = self._lock.acquire_write if self._writes else self._lock.acquire_read
        return self._lock_if(acquire(True, self._timeout))

    async def __aenter__(self) -> RWLock:
        lock = self._lock
        acquire = lock.acquire_write_async if self._writes else lock.acquire_read_async
        return self._lock_if(await acquire(None if self._timeout == -1 else self._timeout))

    def _lock_if(self, taken: bool) -> RWLock:
        if not taken:
            who = "writer" if self._writes else "reader"
            raise LockTimeout(f"{self._lock!r}: no {who} could come in for {self._timeout} s")
        return self._lock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writes:
            self._lock.release_write()
        else:
            self._lock.release_read()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)
