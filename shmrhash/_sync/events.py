"""Event: threading's, for all processes of a machine."""

from __future__ import annotations

from typing import Any

from shmrhash import _core
from shmrhash._sync.primitive import Primitive
from shmrhash._sync.space import Key, Sync, space_for


class Event(Primitive, _core.EventCore):
    """threading.Event for all processes of a machine.

    Event("ready") is the same event in all processes of this user; with space=, in all that open
    that space; Event() is a new one, which children of fork share and which can be pickled. Nothing
    is held by anybody, so nobody's death changes it; waiters of a process that is killed inside
    set() wake up within 50 ms.

    Attributes: key, space.
    """

    def __new__(cls, key: Key | None = None, *, space: Sync | None = None) -> Event:
        """Make the object for the event of this key, which is made, not set, if it is not there.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        return cls._of_key(space_for(space, key), key, _core.EVENT)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_core.EVENT)

    def __repr__(self) -> str:
        state = "closed" if self._space.closed else ("set" if self.is_set() else "unset")
        where = f"{self._type_name} at {id(self):#x}, key={self.key!r} in {self._space.name!r}"
        return f"<{where}: {state}>"
