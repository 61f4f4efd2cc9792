"""Once: a function that one process runs, and no other again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from shmrhash._sync.events import Event
from shmrhash._sync.locks import Lock, Orphan
from shmrhash._sync.parts import OfLockMethods, key_of_part
from shmrhash._sync.space import Key, Sync, space_for

P = ParamSpec("P")
R = TypeVar("R")


class Once(OfLockMethods):
    """A function runs once among all processes; the others wait until it is done.

    Once("migrate") is the same in all processes of this user; with space=, in all processes that
    open that space. Once() is a new one, which children of fork share and which can be pickled.
    run(function) runs the function, and an object is a decorator, too, also of coroutine functions:

        @Once("migrate")
        def migrate(): ...

    If the process dies while it runs the function, or the function raises, the next caller runs it:
    so it must do no harm to begin the function twice. It is made of a Lock (of this key) and an
    Event (with the key "migrate.done").

    Attributes: key, space, done.
    """

    def __init__(
        self,
        key: Key | None = None,
        *,
        space: Sync | None = None,
        on_orphan: Callable[[Lock, Orphan], object] | None = None,
    ) -> None:
        """Make the object for the Once of this key.

        on_orphan: called with the lock and the Orphan, before the function, if the process that ran
        it before was killed.

        Raises what Lock() and Event() raise.
        """
        space = space_for(space, key)
        self._lock = Lock(key, space=space, on_orphan=on_orphan)
        self._done = Event(key_of_part(key, "done"), space=space)

    @property
    def done(self) -> bool:
        """Whether the function has run.

        Raises MapClosed.
        """
        return self._done.is_set()

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Call the function if it has not run yet, and return what it returns; else None.

        While another thread runs it, this one waits. Once it is done, a call costs one load.

        Raises what the function raises, DeadlockError (the function calls run() itself), MapClosed.
        """
        if self._done.is_set():
            return None
        with self._lock:
            if self._done.is_set():
                return None
            result = function(*args, **kwargs)
            self._done.set()
            return result

    async def run_async(
        self, function: Callable[P, Awaitable[R] | R], *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """run() for coroutines of asyncio: the loop goes on while this task waits.

        function may be a coroutine function: it has run when its coroutine has ended; if that
        raises, or its task is cancelled, the next caller runs it.

        Raises what the function raises, DeadlockError (the function calls run_async() itself),
        SystemFailure (no more threads or descriptors), MapClosed.
        """
        if self._done.is_set():
            return None
        async with self._lock:
            if self._done.is_set():
                return None
            result = function(*args, **kwargs)
            if isinstance(result, Awaitable):
                result = await result
            self._done.set()
            return result

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[Any, Any, R | None]]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, R | None]: ...
    def __call__(self, function: Callable[P, Any]) -> Callable[P, Any]:
        """Decorate a function: each call is run(function, ...); of a coroutine function,
        run_async()."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_it(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self.run_async(function, *args, **kwargs)

            return run_it

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            return self.run(function, *args, **kwargs)

        return run

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._lock, self._done)


def _restore(cls: type[Once], lock: Lock, done: Event) -> Once:
    """Unpickle a Once."""
    self = cls.__new__(cls)
    self._lock, self._done = lock, done
    return self
