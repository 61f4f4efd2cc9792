"""Leader: exactly one of several processes does something, and another one if it dies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import Any

from shmrhash import _core
from shmrhash._errors import Deposed, InvalidArgument
from shmrhash._sync.locks import Lock, Orphan, Owner
from shmrhash._sync.parts import OfLockMethods
from shmrhash._sync.space import Key, Sync

_SLICES = 4  # looks at the leader's lease within one lease


class Leader(OfLockMethods):
    """One of several processes leads; if it dies, another one does, with a higher term.

    Leader("scheduler") is the same office in all processes of this user; with space=, in all
    processes that open that space. acquire(), or a with or async with statement, waits until this
    process leads. While it leads, `term` is a number that grows with each leader: a service that
    gets it with each request can refuse a leader that has been replaced (a fencing token).

    lease: a leader that is stopped, or hangs, keeps the office as long as it lives. With a lease,
    in seconds, another process may depose a leader that has not called check() for that long. The
    deposed leader gets Deposed from its next check(). All candidates should have the same lease.

    It is a Lock (of this key) whose grants are the terms.

    Attributes: key, space, lease.
    """

    def __init__(
        self,
        key: Key | None = None,
        *,
        space: Sync | None = None,
        lease: float | None = None,
        on_orphan: Callable[[Lock, Orphan], object] | None = None,
    ) -> None:
        """Make the object for the office of this key.

        on_orphan: called with the lock and the Orphan by an acquire() that follows a leader that
        was killed, or deposed.

        Raises InvalidArgument (lease is not above 0), and what Lock() raises.
        """
        if lease is not None and not lease > 0:
            raise InvalidArgument(f"lease is a number of seconds above 0 or None, not {lease!r}")
        self.lease = lease
        self._lock = Lock(key, space=space, on_orphan=on_orphan)
        self._term = 0

    @property
    def term(self) -> int:
        """The number of this object's present or last term of office; 0 before the first."""
        return self._term

    @property
    def leader(self) -> Owner | None:
        """The present leader.

        Raises MapClosed.
        """
        return self._lock.owner

    @property
    def orphan(self) -> Orphan | None:
        """While this process leads: the previous leader, if it was killed or deposed."""
        return self._lock.orphan

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Become the leader; return whether this process is. Arguments as Lock.acquire().

        Raises what Lock.acquire() raises.
        """
        if self.lease is None:
            taken = self._lock.acquire(blocking, timeout)
        else:
            taken = self._acquire_by_lease(blocking, timeout)
        if taken:
            self._term = self._lock.token
        return taken

    def _acquire_by_lease(self, blocking: bool, timeout: float | None) -> bool:
        """Wait for the lock, and look now and then whether the leader's lease has run out."""
        assert self.lease is not None
        unlimited = timeout is None or timeout == -1
        if not (timeout is None or unlimited or 0 <= timeout <= TIMEOUT_MAX):
            return self._lock.acquire(blocking, timeout)  # raises
        if self._lock.acquire(False, -1 if blocking else timeout):
            return True
        end = time.monotonic() + (math.inf if timeout is None or unlimited else timeout)
        while True:  # ends with the timeout
            _core.depose(self._lock, int(self.lease * 1e9))
            left = end - time.monotonic() if blocking else 0
            if left <= 0:
                return self._lock.acquire(False)
            if self._lock.acquire(timeout=min(left, self.lease / _SLICES)):
                return True

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """acquire() for coroutines of asyncio: the loop goes on while this task waits.

        timeout: seconds, at least 0; None waits without limit.

        Raises what Lock.acquire_async() raises.
        """
        deadline = _core.deadline_after(timeout)
        if self.lease is None:
            taken = await self._lock.acquire_async(timeout)
        else:
            taken = await self._lock.acquire_async(0)
            while not taken:  # ends with the timeout
                _core.depose(self._lock, int(self.lease * 1e9))
                left = math.inf
                if deadline >= 0:
                    left = (deadline - _core.clock_monotonic_ns()) / 1e9
                taken = await self._lock.acquire_async(max(0, min(left, self.lease / _SLICES)))
                if left <= 0:
                    break
        if taken:
            self._term = self._lock.token
        return taken

    def check(self) -> int:
        """Return the term if this process still leads in it, and renew its lease.

        Raises Deposed, MapClosed.
        """
        if not self._leads() or not _core.renew_lock(self._lock):
            raise Deposed(
                f"{self!r}: this process does not lead in term {self._term} any more"
                if self._term
                else f"{self!r}: this process has not been the leader"
            )
        return self._term

    def _leads(self) -> bool:
        return _core.holds_lock(self._lock) and self._lock.token == self._term

    def release(self) -> None:
        """Step down.

        Raises Deposed (this process does not lead any more), MapClosed.
        """
        self.check()
        self._lock.release()

    def __enter__(self) -> Leader:
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None and issubclass(exc_type, Deposed):
            return  # there is nothing to release
        self.release()

    async def __aenter__(self) -> Leader:
        await self.acquire_async()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._lock, self.lease)


def _restore(cls: type[Leader], lock: Lock, lease: float | None) -> Leader:
    """Unpickle a Leader: another candidate."""
    self = cls.__new__(cls)
    self._lock, self.lease, self._term = lock, lease, 0
    return self
