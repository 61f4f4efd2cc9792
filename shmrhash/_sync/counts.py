"""Semaphore and BoundedSemaphore: threading's, for all processes of a machine."""

from __future__ import annotations

from operator import index as as_index
from typing import Any

from shmrhash import _core
from shmrhash._sync import tasks
from shmrhash._sync.primitive import Primitive, ReleasingMethods
from shmrhash._sync.space import Key, Sync, space_for


def _kind(undo: bool) -> int:
    return _core.SEMAPHORE if undo else _core.COUNTER


class Semaphore(Primitive, ReleasingMethods, _core.SemaphoreCore):
    """threading.Semaphore for all processes of a machine; the permits of a dead process come back.

    Semaphore(3, "gpus") is the same semaphore in all processes of this user; with space=, in all
    processes that open that space. Semaphore(3) is a new one, which children of fork share and
    which can be pickled. The value takes effect when the semaphore is made; later values are
    ignored.

    undo: when a process ends or dies, the permits that it took and did not release are given back.
    So the process that takes a permit should release it, too. With undo=False the semaphore is a
    plain counter, for signals: one process may release permits that another one acquired.

    Attributes: key, space, undo.
    """

    _bounded = False

    def __new__(
        cls,
        value: int = 1,
        key: Key | None = None,
        *,
        space: Sync | None = None,
        undo: bool = True,
    ) -> Semaphore:
        """Make the object for the semaphore of this key; the semaphore is created if there is none.

        Raises ValueError (value is below 0 or beyond 2**47 - 1), TypeError, InvalidArgument (the
        key is that of another primitive), MapFull (the space has max_entries), SegmentFull,
        MapClosed, and what Sync() raises.
        """
        value = as_index(value)
        if not 0 <= value <= _core.LIMIT_MAX:
            raise ValueError("semaphore initial value must be >= 0 and below 2**47")
        limit = value if cls._bounded else _core.LIMIT_MAX
        return cls._of_key(space_for(space, key), key, _kind(undo), undo, limit=limit, count=value)

    def _start(self, undo: bool) -> None:  # type: ignore[override]
        self._set_undo(undo)

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """acquire() for coroutines of asyncio: the loop goes on while this task waits for a permit.

        timeout: seconds, at least 0; None waits without limit. The process then has the permit. The
        tasks of one loop get permits in the order in which they asked for them. A cancelled task
        takes none. Costs some 2 microseconds if a permit is free.

        Raises InvalidArgument (timeout), TooManyProcesses (4,096 locks and permits of the space are
        held), SystemFailure (no more threads or descriptors), MapClosed (also while it waits).
        """
        return await tasks.take(self, 1, timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_kind(self.undo), self.undo)

    def __repr__(self) -> str:
        where = f"{self._type_name} at {id(self):#x}, key={self.key!r} in {self._space.name!r}"
        if self._space.closed:
            return f"<{where}: closed>"
        limit = f"/{self._cells.words(self._index)['limit']}" if self._bounded else ""
        return f"<{where}: value={self.get_value()}{limit}>"


class BoundedSemaphore(Semaphore):
    """A Semaphore that refuses, with ValueError, to have more permits than it was made with.

    Attributes: key, space, undo.
    """

    _bounded = True
