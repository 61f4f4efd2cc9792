"""Lock and RLock: threading's, for all processes of a machine, and free if their holder dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shmrhash import _core
from shmrhash._sync import tasks
from shmrhash._sync.primitive import Primitive, ReleasingMethods
from shmrhash._sync.space import Key, Sync, space_for


class Orphan(NamedTuple):
    """The last owner of a lock, which died holding it. since: time.monotonic() when it took it, to
    some ms."""

    pid: int
    command: str
    since: float


class Owner(NamedTuple):
    """The holder of a lock. pid: as its own PID namespace shows it. thread: threading.get_ident()
    in that process; for a task of asyncio a number beyond 2**63. since: time.monotonic() when it
    took the lock, exact to some ms."""

    pid: int
    command: str
    thread: int
    since: float


def orphan_of(primitive: Primitive) -> Orphan:
    """The process that died holding this lock, whose state says that one did."""
    pid, command, since_ns = primitive._cells.orphaned_by(primitive._index)
    return Orphan(pid, command, since_ns / 1e9)


def owner_of(found: tuple[int, str, int, int, bool] | None) -> Owner | None:
    """A process that the core names: (pid, command, thread, since in ns, whether it lives). None:
    no process, or a dead one."""
    if found is None or not found[4]:
        return None
    pid, command, thread, since_ns = found[:4]
    return Owner(pid, command, thread, since_ns / 1e9)


if TYPE_CHECKING:

    class _Mutex(Primitive, _core.MutexCore): ...
else:
    _Mutex = Primitive


class _LockMethods(_Mutex):
    """What Lock and RLock have in common on the Python side."""

    _kind: int
    _check: bool

    def _start(  # type: ignore[override]
        self, check: bool, on_orphan: Callable[..., object] | None
    ) -> None:
        self._check = check
        self._set_check(check)
        self.on_orphan = on_orphan

    @property
    def owner(self) -> Owner | None:
        """The present holder of the lock; None: the lock is free, or its holder has died.

        Raises MapClosed.
        """
        return owner_of(self._cells.owner(self._index))

    @property
    def orphan(self) -> Orphan | None:
        """While this process holds the lock: the earlier holder that died, if the lock has not been
        released since. The data that the lock protects may then be half changed. None: no holder
        died.

        Raises MapClosed.
        """
        return orphan_of(self) if self._orphaned else None

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """acquire() for coroutines of asyncio: the loop goes on while this task waits for the lock.

        timeout: seconds, at least 0; None waits without limit. The task then has the lock, and any
        code of this process may release() it; an RLock is released by the task that has it. The
        tasks of one loop get the lock in the order in which they asked for it; if the process that
        has it dies, they find it free as soon as threads do. Cancelling leaves nothing held. Costs
        some 2 microseconds if the lock is free.

        Raises DeadlockError (without limit: this task has the lock, which is no RLock, or it waits
        in a circle), InvalidArgument (timeout), TooManyProcesses (4,096 locks and permits of the
        space are held), SystemFailure (no more threads or descriptors), MapClosed (also while it
        waits).
        """
        return await self._acquire_async(timeout)

    async def _acquire_async(self, timeout: float | None, told: bool = True) -> bool:
        """acquire_async(). told: whether DeadlockError may be raised for a circle."""
        taken = await tasks.take(self, tasks.number_of_task(), timeout, told)
        if taken and self.on_orphan is not None:
            orphan = self.orphan
            if orphan is not None:
                self.on_orphan(self, orphan)
        return taken

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(self._kind, self._check, self.on_orphan)

    def __repr__(self) -> str:
        where = f"key={self.key!r} in {self._space.name!r}"
        if self._space.closed:
            return f"<closed {self._type_name} object {where} at {id(self):#x}>"
        owner = self.owner
        if owner is None:
            return f"<unlocked {self._type_name} object {where} at {id(self):#x}>"
        return f"<locked {self._type_name} object {where} by pid {owner.pid} at {id(self):#x}>"


class Lock(_LockMethods, ReleasingMethods, _core.LockCore):
    """threading.Lock for all processes of a machine; if its holder dies, it is free again.

    Lock("gpu0") is the same lock in all processes of this user; with space=, in all processes that
    open that space. Lock() is a new lock, which children of fork share and which can be pickled. A
    lock belongs to the process that took it: any thread of that process may release it, but no
    other process can. A child of fork holds none of its parent's locks.

    If the holder dies, the next acquire() takes the lock, and `orphan` names the dead process until
    the new owner releases the lock. Waiters find the lock free within 50 ms, usually 2 ms. Waiting
    threads are served in no fixed order, but a thread that has waited for 1 ms is served before
    newcomers.

    If threads wait in a circle for each other's locks, the thread without a timeout that began to
    wait last gets DeadlockError, which names them all.

    Attributes: key, space, on_orphan (called with the lock and the Orphan by an acquire() that
    takes the lock from a dead owner).
    """

    _kind = _core.LOCK

    def __new__(
        cls,
        key: Key | None = None,
        *,
        space: Sync | None = None,
        check: bool = True,
        on_orphan: Callable[[Lock, Orphan], object] | None = None,
    ) -> Lock:
        """Make the object for the lock of this key; the lock itself is made if it is not there.

        key: a str, bytes or int; None makes an anonymous lock. check: a thread that would wait for
        ever gets DeadlockError: at once if it holds the lock itself, and after 0.2 s if threads of
        any processes wait in a circle for each other's locks of this space. A lock then belongs to
        the thread that took it: with check=False, another thread may release it, and a wait is no
        part of a circle.

        Raises TypeError, InvalidArgument (the key is that of another primitive), MapFull (the space
        has max_entries), SegmentFull, MapClosed, and what Sync() raises.
        """
        return cls._of_key(space_for(space, key), key, cls._kind, check, on_orphan)


class RLock(_LockMethods, ReleasingMethods, _core.RLockCore):
    """threading.RLock for all processes of a machine: the thread that has it can take it again.

    Only the thread that took it can release it; what acquire_async() or async with takes, only the
    task that took it. Otherwise as Lock. A threading.Condition can be made of it for the threads of
    one process.

    Attributes: key, space, on_orphan, as Lock's.
    """

    _kind = _core.RLOCK

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """As Lock.acquire_async(); the task that has the lock takes it once more.

        What acquire() takes, in a coroutine, too, belongs to the thread: to no task. In a task that
        has the lock, acquire() takes it once more.

        Raises what Lock.acquire_async() raises, but DeadlockError.
        """
        return self._take_again(tasks.number_of_task()) or await super().acquire_async(timeout)

    def __new__(
        cls,
        key: Key | None = None,
        *,
        space: Sync | None = None,
        on_orphan: Callable[[RLock, Orphan], object] | None = None,
    ) -> RLock:
        """Make the object for the lock of this key; the lock itself is made if it is not there.

        Arguments and errors as Lock().
        """
        return cls._of_key(space_for(space, key), key, cls._kind, True, on_orphan)
