"""Event: threading's, for all processes of a machine."""

from __future__ import annotations

from typing import Any

from shmrhash import _core
from shmrhash._sync import tasks
from shmrhash._sync.primitive import Primitive
from shmrhash._sync.space import Key, Sync, space_for


class Event(Primitive, _core.EventCore):
    """threading.Event for all processes of a machine.

    Event("ready") is the same event in all processes of this user; with space=, in all processes
    that open that space. Event() is a new one, which children of fork share and which can be
    pickled. No process holds anything of an event, so a death does not change it; if a process is
    killed inside set(), the waiters wake up within 50 ms.

    Attributes: key, space.
    """

    def __new__(cls, key: Key | None = None, *, space: Sync | None = None) -> Event:
        """Make the object for the event of this key; the event is created, not set, if there is
        none.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        return cls._of_key(space_for(space, key), key, _core.EVENT)

    async def wait_async(self, timeout: float | None = None) -> bool:
        """wait() for coroutines of asyncio: the loop goes on while this task waits.

        timeout: seconds, at least 0; None waits without limit. Returns True, or False after the
        timeout. An event that is set and cleared while a task waits counts as set for that task. If
        a process is killed inside set(), tasks of other processes notice the event within a quarter
        of a second.

        Raises InvalidArgument (timeout), SystemFailure (no more threads or descriptors), MapClosed
        (also while it waits).
        """
        deadline = _core.deadline_after(timeout)
        if self.is_set():
            return True
        wait = _core.EventWait(self)
        try:
            return await tasks.until_done(wait, deadline)
        finally:
            wait.end()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_core.EVENT)

    def __repr__(self) -> str:
        state = "closed" if self._space.closed else ("set" if self.is_set() else "unset")
        where = f"{self._type_name} at {id(self):#x}, key={self.key!r} in {self._space.name!r}"
        return f"<{where}: {state}>"
