"""Condition: threads of all processes wait under a lock until another one notifies them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from shmrhash import _core
from shmrhash._errors import Error
from shmrhash._sync import tasks
from shmrhash._sync.locks import Lock, RLock
from shmrhash._sync.parts import key_of_part
from shmrhash._sync.primitive import Primitive, ReleasingMethods
from shmrhash._sync.space import Key, Sync, space_for


class Condition(Primitive, ReleasingMethods, _core.ConditionCore):
    """threading.Condition for all processes of a machine; a dead waiter takes no notification.

    Condition(key="jobs") is the same condition in all processes of this user; with space=, in all
    processes that open that space. Condition() is a new one, which children of fork share and which
    can be pickled. Its lock is an RLock of its own (with the key "jobs.lock"), or the lock that you
    pass: all processes have to pass the same one.

    Attributes: key, space, acquire and release (those of the lock).
    """

    def __new__(
        cls, lock: Any = None, key: Key | None = None, *, space: Sync | None = None
    ) -> Condition:
        """Make the object for the condition of this key; the condition is created if there is none.

        lock: a Lock or RLock, whose space is the condition's, too, unless space is given; any other
        object with acquire() and release() guards the threads of this process only.

        Raises TypeError (lock is not a lock, perhaps a key that was not passed as key=),
        InvalidArgument (the key is that of another primitive), MapFull (the space has max_entries),
        SegmentFull, MapClosed, and what Sync() raises.
        """
        if lock is not None and not (hasattr(lock, "acquire") and hasattr(lock, "release")):
            raise TypeError(
                f"lock must have acquire() and release(), and {type(lock).__name__} has not; if "
                f"{lock!r} is a key, name it: Condition(key={lock!r})"
            )
        if space is None and isinstance(lock, (Lock, RLock)):
            space = lock.space
        space = space_for(space, key)
        if lock is None:
            lock = RLock(key_of_part(key, "lock"), space=space)
        return cls._of_key(space, key, _core.CONDITION, lock)

    def _start(self, lock: Any) -> None:  # type: ignore[override]
        self._set_lock(lock)
        self.acquire = lock.acquire
        self.release = lock.release

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, sleep until notified, and take the lock again; False after a timeout.

        Threads are notified in the order in which they began to wait. After a death a thread may be
        woken without a notification: so check again what you wait for, or use wait_for().

        Raises RuntimeError (this thread does not have the lock), ValueError (timeout is NaN),
        MapClosed.
        """
        if not self._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        waiter = _core.ConditionWait(self)
        interrupted = True
        saved = None
        try:
            saved = self._release_save()
            waiter.sleep(timeout)
            interrupted = False
        finally:
            try:
                if saved is not None:
                    self._acquire_restore(saved)
            finally:
                told = waiter.end(interrupted)
        return told

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until predicate() is true; return its last result, also after a timeout.

        Raises what wait() and predicate() raise.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = end - time.monotonic()
            if left <= 0:
                break
            self.wait(None if timeout is None else left)
            result = predicate()
        return result

    async def wait_async(self, timeout: float | None = None) -> bool:
        """wait() for coroutines of asyncio: the loop goes on while this task waits.

        It also goes on while the task waits for the lock again, which it has at the end even if it
        is cancelled. timeout: seconds, at least 0; None waits without limit. Tasks and threads are
        notified in the order in which they began to wait. A task that is cancelled after it was
        notified passes the notification on. If a process is killed inside notify(), or after it was
        notified, the tasks of others notice within a quarter of a second.

        Raises RuntimeError (this task does not have the lock), TypeError (the lock has no
        acquire_async()), InvalidArgument (timeout), TooManyProcesses (4,096 contexts of the space
        are in use: each task that waits at a condition has one), SystemFailure (no more threads or
        descriptors), MapClosed.
        """
        deadline = _core.deadline_after(timeout)
        if not hasattr(self._lock, "acquire_async"):
            raise TypeError(f"the lock of {self!r} has no acquire_async()")
        if not self._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        waiter = _core.ConditionWait(self)
        interrupted = True
        saved = None
        try:
            saved = self._release_save()
            await tasks.until_done(waiter, deadline)
            interrupted = False
        finally:
            try:
                if saved is not None:
                    await tasks.take_again(self._lock, saved)
            except BaseException:
                interrupted = True
                raise
            finally:
                told = waiter.end(interrupted)
        return told

    async def wait_for_async(
        self, predicate: Callable[[], Any], timeout: float | None = None
    ) -> Any:
        """wait_for() for coroutines of asyncio.

        Raises what wait_async() and predicate() raise.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = end - time.monotonic()
            if left <= 0:
                break
            await self.wait_async(None if timeout is None else left)
            result = predicate()
        return result

    async def acquire_async(self, timeout: float | None = None) -> bool:
        """Take the lock: acquire_async() of the lock.

        Raises what that raises.
        """
        return bool(await self._lock.acquire_async(timeout))

    def _release_save(self) -> Any:
        """Release the lock however often it was taken; what _acquire_restore() needs."""
        if hasattr(self._lock, "_release_save"):
            return self._lock._release_save()
        self._lock.release()
        return 1

    def _acquire_restore(self, saved: Any) -> None:
        """Take the lock again, even if a signal handler raises once; its exception is raised
        afterwards."""
        restore = getattr(self._lock, "_acquire_restore", None)
        raised = None
        for _ in range(2):
            try:
                if restore is None:
                    self._lock.acquire()
                else:
                    restore(saved)
                break
            except Error:
                raise
            except BaseException as error:
                if raised is not None:
                    raise
                raised = error
        if raised is not None:
            raise raised

    def __reduce__(self) -> tuple[Any, ...]:
        return self._pickled(_core.CONDITION, self._lock)

    def __repr__(self) -> str:
        if self._space.closed:
            return f"<closed {self._type_name} at {id(self):#x}>"
        return f"<{self._type_name}({self._lock!r}, {self._waiting()}), key={self.key!r}>"
