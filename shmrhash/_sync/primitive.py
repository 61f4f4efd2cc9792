"""What the primitives have in common on the Python side: a key, a space, a pickle."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmrhash import _core
from shmrhash._sync.space import KIND_NAMES, Key, Sync, shown_key, stored_key

if TYPE_CHECKING:
    from typing_extensions import Self

    _Cell = _core.CellCore
else:
    _Cell = object  # mixed into the classes of primitives, which have the core as their other base


class Primitive(_Cell):
    """The part of a primitive of one cell that does not depend on its kind."""

    _space: Sync
    _raw: bytes

    @classmethod
    def _of_key(
        cls, space: Sync, key: Key | None, kind: int, *own: Any, limit: int = 0, count: int = 0
    ) -> Self:
        """The object for the primitive of this key, which is made if there is none. own: what
        _start() takes."""
        if key is None:
            raw, index = space._make_anonymous(kind, limit, count)
            made = cls._of_cell(space, raw, index, *own)
            made._keep()
            return made
        raw = stored_key(key)
        return cls._of_cell(space, raw, space._find(raw, kind, limit, count), *own)

    @classmethod
    def _of_cell(cls, space: Sync, raw: bytes, index: int, *own: Any) -> Self:
        self = super().__new__(cls, space._cells, index)
        self._space, self._raw = space, raw
        self._start(*own)
        return self

    def _start(self) -> None:
        """Keep what the object has of its own, beside the cell."""

    def _pickled(self, kind: int, *own: Any) -> tuple[Any, ...]:
        """What __reduce__() returns. own: as for _of_key()."""
        self._share()
        return _restore, (type(self), self._space, self._raw, kind, *own)

    def _shown_wait(self, deadline_ns: int, told: bool) -> _core.ShownWait:
        return _core.ShownWait(self, deadline_ns, told)

    @property
    def key(self) -> Key | None:
        """The key in its space; None if the primitive is anonymous."""
        return shown_key(self._raw)

    @property
    def space(self) -> Sync:
        """The space in which the primitive is."""
        return self._space

    def _circle_text(self, waits: list[tuple[int, str, int, str | None, int, bytes]]) -> str:
        """A circle in words. waits: of each thread (pid, command, thread; and of the cell for which
        it waits, the space, if that is another one than here, the kind and the stored key), which
        the next one has; this thread is the first."""
        people = [
            f"{command}({pid}) {'task' if thread >= _core.TASK_NUMBERS else 'thread'} {thread}"
            for pid, command, thread, *_ in waits
        ]
        parts = []
        for at, (_, _, _, space, kind, raw) in enumerate(waits):
            what = f"{KIND_NAMES.get(kind, '?')} {shown_key(raw)!r}"
            where = "" if space is None else f" in {space!r}"
            behind = people[(at + 1) % len(people)]
            parts.append(f"{people[at]} waits for {what}{where} behind {behind}")
        return f"{self!r}: the wait would never end, in a circle of {len(waits)}: " + "; ".join(
            parts
        )

    @property
    def _type_name(self) -> str:
        """As repr() shows it, without the modules in which the package keeps it."""
        return f"{type(self).__module__.partition('.')[0]}.{type(self).__qualname__}"


class ReleasingMethods:
    """The part of a primitive that tasks take by acquire_async(): an async with statement does."""

    if TYPE_CHECKING:
        acquire_async: Any
        release: Any

    async def __aenter__(self) -> bool:
        return await self.acquire_async()  # type: ignore[no-any-return]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _restore(cls: type[Primitive], space: Sync, raw: bytes, kind: int, *own: Any) -> Primitive:
    """Unpickle a primitive."""
    return cls._of_cell(space, raw, space._find(raw, kind, 0, 0), *own)
