"""Barrier: a number of threads, of any processes, wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from operator import index as as_index
from threading import BrokenBarrierError
from types import TracebackType
from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument
from shmrhash._sync import tasks
from shmrhash._sync.primitive import Primitive
from shmrhash._sync.space import Key, Sync, space_for


class Barrier(Primitive, _core.BarrierCore):
    """threading.Barrier for all processes of a machine; a party that dies waiting breaks it.

    Barrier(4, key="start") is the same barrier in all processes of this user; with space=, in all
    processes that open that space. Barrier(4) is a new one, which children of fork share and which
    can be pickled, with its action. A barrier that was broken by a death behaves as after abort().

    Attributes: key, space, parties, n_waiting, broken.
    """

    def __new__(
        cls,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        key: Key | None = None,
        *,
        space: Sync | None = None,
    ) -> Barrier:
        """Make the object for the barrier of this key; the barrier is created if there is none.

        action: a function that one of the threads calls before all of them go on. timeout: seconds
        for wait(), unless that is given its own.

        Raises ValueError (parties is not from 1 to 65,535), TypeError (action is not a function,
        perhaps a key that was not passed as key=), InvalidArgument (the key is that of another
        primitive, or of a barrier of another number of parties), MapFull (the space has
        max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        parties = as_index(parties)
        if not 1 <= parties <= _core.PARTIES_MAX:
            raise ValueError(f"parties must be from 1 to {_core.PARTIES_MAX}, not {parties}")
        if action is not None and not callable(action):
            raise TypeError(
                f"action must be a function, not {type(action).__name__}; if {action!r} is a key, "
                f"name it: Barrier({parties}, key={action!r})"
            )
        space = space_for(space, key)
        self = cls._of_key(space, key, _core.BARRIER, action, timeout, limit=parties)
        if self.parties != parties:
            raise InvalidArgument(
                f"the barrier {key!r} in the space {space.name!r} has {self.parties} parties, not "
                f"{parties}"
            )
        return self

    def _start(  # type: ignore[override]
        self, action: Callable[[], object] | None, timeout: float | None
    ) -> None:
        self._action, self._timeout = action, timeout

    def wait(self, timeout: float | None = None) -> int:
        """Wait until as many threads have come as there are parties; return this thread's number.

        The number is from 0 to parties - 1, and different for each thread. timeout: seconds; None
        takes the barrier's own. If it runs out, if a signal handler or the action raises, or if a
        party is killed while it waits, the barrier is broken for all parties.

        Raises threading.BrokenBarrierError (the barrier is broken, or was reset while this thread
        waited), ValueError (timeout is NaN), MapClosed, what the action raises.
        """
        waiter = _core.BarrierWait(self, self._timeout if timeout is None else timeout)
        try:
            how = self._meet(waiter)
        except BaseException:
            waiter.give_up()
            raise
        finally:
            waiter.end()
        if how == _core.BARRIER_BROKE:
            raise BrokenBarrierError
        return waiter.place

    def _meet(self, waiter: _core.BarrierWait) -> int:
        how = waiter.come()
        if how == _core.BARRIER_LAST:
            if self._action is not None:
                self._action()
            return waiter.open()
        if how == _core.BARRIER_PASSED:
            how = waiter.wait()
        return waiter.give_up() if how == _core.BARRIER_LATE else how

    async def wait_async(self, timeout: float | None = None) -> int:
        """wait() for coroutines of asyncio: the loop goes on while this task, a party of its own,
        waits.

        The action is called in the loop. A task that is cancelled breaks the barrier, unless all
        have come. If a party is killed, the tasks of others notice within a quarter of a second.

        Raises what wait() raises, TooManyProcesses (4,096 contexts of the space are in use: each
        waiting party has one), SystemFailure (no more threads or descriptors).
        """
        waiter = _core.BarrierWait(self, self._timeout if timeout is None else timeout)
        try:
            how = await self._meet_async(waiter)
        except BaseException:
            waiter.give_up()
            raise
        finally:
            waiter.end()
        if how == _core.BARRIER_BROKE:
            raise BrokenBarrierError
        return waiter.place

    async def _meet_async(self, waiter: _core.BarrierWait) -> int:
        await tasks.until_done(waiter, -1)
        if waiter.how == _core.BARRIER_LAST:
            if self._action is not None:
                self._action()
            return waiter.open()
        if waiter.how == _core.BARRIER_PASSED and not await tasks.until_done(
            waiter, waiter.deadline_ns
        ):
            return waiter.give_up()
        return waiter.how

    async def __aenter__(self) -> int:
        return await self.wait_async()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is held."""

    def reset(self) -> None:
        """Reset the barrier to its first state: waiting threads get BrokenBarrierError.

        Raises MapClosed.
        """
        self._end_generation(False)

    def abort(self) -> None:
        """Break the barrier: waiting threads, and those that come later, get BrokenBarrierError.

        Raises MapClosed.
        """
        self._end_generation(True)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_core.BARRIER, self._action, self._timeout)

    def __repr__(self) -> str:
        if self._space.closed:
            state = "closed"
        elif self.broken:
            state = "broken"
        else:
            state = f"waiters={self.n_waiting}/{self.parties}"
        return f"<{self._type_name} at {id(self):#x}: {state}>"
