"""Claims on keys of a cache as context managers: of its value, and of its mutex."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Generic

from shmrhash import _core
from shmrhash._arguments import tag_names
from shmrhash._errors import DeadlockError, InvalidArgument, LockTimeout
from shmrhash._typing import K, V

_ABSENT: Any = object()
_TRIES_MAX = 100  # values that were evicted before they had been read


class CacheClaim(Generic[K, V]):
    """The value of a key, or the right to compute it: made by Cache.claim(), for a with statement.

    found: whether the key has a value, which is then in value. If it has none, this process
    computes it for all: set() stores it. If the block ends without set(), the next waiter gets the
    claim.
    """

    def __init__(
        self, cache: _core.CacheCore[K, V], key: K, wait: float, tags: Iterable[str] = ()
    ) -> None:
        self._cache = cache
        self._key = key
        self._wait = wait
        self._tags = tag_names(tags)
        self._claim: _core.Claim | None = None
        self._inside = False
        self._value: Any = _ABSENT

    @property
    def found(self) -> bool:
        """Whether the key has a value."""
        return self._value is not _ABSENT

    @property
    def value(self) -> V:
        """The value. Raises InvalidArgument if there is none."""
        if not self.found:
            raise InvalidArgument("the key has no value: look at found, and set() one")
        return self._value  # type: ignore[no-any-return]

    def set(self, value: V, ttl: float | None = None) -> bool:
        """Store the value, and end the claim; return whether it was stored: the key may have been
        stored or deleted during the computation, or the value does not fit. ttl: as for
        Cache.set().

        Raises InvalidArgument (outside the with block, found, a second time), and what encoding the
        value raises.
        """
        if not self._inside or self.found:
            raise InvalidArgument("set() is for a claim of a key that has no value, and once")
        self._value = value
        claim, self._claim = self._claim, None
        return claim is not None and claim.keep(value, ttl)

    def __enter__(self) -> CacheClaim[K, V]:
        if self._inside:
            raise InvalidArgument("this claim is in use; make one for each with statement")
        self._value = self._cache.get(self._key, _ABSENT)
        for _ in range(_TRIES_MAX):
            if self.found or self._claimed():
                break
            self._value = self._cache._peek(self._key, _ABSENT)
        self._inside = True
        return self

    def _claimed(self) -> bool:
        """Claim the key, or find out that it has to be computed without a claim; False: it has a
        value, or the claim that was in the way for too long is cut off."""
        claim = _core.Claim(self._cache, self._key, self._wait, tags=self._tags)
        try:
            taken = claim.wait()
            self._claim = claim if taken else None
            return taken or claim.has_to_compute
        except LockTimeout:
            claim.cut_off()
            return False
        except BaseException:  # a handler of a signal raises, perhaps when it was claimed just now
            self._claim = None
            claim.drop()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inside = False
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.drop()


class CacheMutex(Generic[K]):
    """The mutex of a key of a cache: made by Cache.mutex(), for a with statement.

    One object is for one thread at a time; each thread makes its own.
    """

    def __init__(self, cache: _core.CacheCore[K, Any], key: K) -> None:
        self._cache = cache
        self._key = key
        self._claim: _core.Claim | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the mutex; return whether this thread has it now. blocking=False does not wait;
        timeout: seconds to wait; -1 waits without limit.

        Raises DeadlockError (this thread has the mutex, or waits for it in a circle; or every entry
        of the cache is claimed), InvalidArgument (the cache's keys have fewer than 8 bytes),
        what get() raises for the key, ReadOnlyMap, MapClosed.
        """
        if not blocking:
            timeout = 0
        claim = _core.Claim(
            self._cache,
            self._key,
            math.inf if timeout == -1 else timeout,
            None,
            None,
            _core.ITS_MUTEX,
        )
        try:
            taken = self._claim is None and claim.wait()
            if taken:
                self._claim = claim
            elif blocking:
                raise DeadlockError(
                    f"cache {self._cache.handle.name!r}, mutex {self._key!r}: this thread has it, "
                    f"or would wait for itself, or no entry of the cache is free for it"
                )
            return taken
        except LockTimeout:
            return False
        except BaseException:  # a handler of a signal raises, perhaps when it was taken just now
            if self._claim is claim:
                self._claim = None
            claim.drop()
            raise

    def release(self) -> None:
        """Let the next one have it.

        Raises InvalidArgument (this object has not got it), MapClosed.
        """
        claim, self._claim = self._claim, None
        if claim is None:
            raise InvalidArgument(f"the mutex {self._key!r} is released, but not held")
        claim.drop()

    def locked(self) -> bool:
        """Whether a thread has the mutex. Costs taking and releasing it.

        Raises what acquire() raises.
        """
        if self._claim is not None or not self.acquire(blocking=False):
            return True
        self.release()
        return False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
