"""Event: threading's, for all processes of a machine."""

from __future__ import annotations

from typing import Any

from shmrhash import _core
from shmrhash._sync.space import Key, Sync, shown_key, space_for


class Event(_core.EventCore):
    """threading.Event for all processes of a machine.

    Event("ready") is the same event in all processes of this user; with space=, in all that open
    that space; Event() is a new one, which children of fork share and which can be pickled. Nothing
    is held by anybody, so nobody's death changes it; waiters of a process that is killed inside
    set() wake up within 50 ms.

    Attributes: key, space.
    """

    _space: Sync
    _raw: bytes

    def __new__(cls, key: Key | None = None, *, space: Sync | None = None) -> Event:
        """Make the object for the event of this key, which is made, not set, if it is not there.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        space = space_for(space, key)
        index, raw = space._find(key, _core.EVENT, 0, 0)
        self = super().__new__(cls, space._cells, index)
        self._space, self._raw = space, raw
        return self

    @property
    def key(self) -> Key | None:
        """The key in its space; None if the event is anonymous."""
        return shown_key(self._raw)

    @property
    def space(self) -> Sync:
        """The space in which the event is."""
        return self._space

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._space, self._raw)

    def __repr__(self) -> str:
        name = f"{type(self).__module__.partition('.')[0]}.{type(self).__qualname__}"
        state = "closed" if self._space.closed else ("set" if self.is_set() else "unset")
        return f"<{name} at {id(self):#x}, key={self.key!r} in {self._space.name!r}: {state}>"


def _restore(cls: type[Any], space: Sync, raw: bytes) -> Any:
    """Unpickle an event."""
    index = space._find_stored(raw, _core.EVENT, 0, 0)
    self = _core.EventCore.__new__(cls, space._cells, index)
    self._space, self._raw = space, raw
    return self
