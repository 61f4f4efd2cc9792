"""Where the primary of a service is, by asking the sentinels that watch it.

A client of redis.sentinel.Sentinel.master_for() knows the sentinels. redis.py asks here before it
makes a connection, and again when the last answer is older than a second: a primary that was
replaced while it was stopped goes on as one for seconds after it wakes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument
from shmrhash._near.connection import Address, AsyncConnection, Connection
from shmrhash._near.resp import ProtocolError, ServerError, command

_FRESH_NS = 1_000_000_000


class SentinelAddress(Address):
    """Where a sentinel is. It has no databases, and an old one speaks RESP2 only."""

    def hello(self) -> bytes:
        password, user = self.settings.get("password"), self.settings.get("username")
        words = (user, password) if user else (password,)
        return (command("AUTH", *words) if password else command("PING")) + 2 * command("PING")

    def greeted(self, answers: Sequence[Any]) -> tuple[str, bytes]:
        for answer in answers:
            if isinstance(answer, ServerError):
                raise answer
        return "", b""


class Sentinels:
    """The sentinels of a service, for one process."""

    def __init__(self, pool: Any) -> None:
        """From the connection pool of a client. Raises InvalidArgument."""
        if not getattr(pool, "is_master", True):
            raise InvalidArgument("a near cache reads the primary: give Sentinel.master_for()")
        self.service: str = pool.service_name
        manager = pool.sentinel_manager
        self._forced = getattr(manager, "_force_master_ip", None)
        self._addresses = [
            SentinelAddress(dict(each.connection_pool.connection_kwargs))
            for each in manager.sentinels
        ]
        self._question = command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        self.known: tuple[str, int] | None = None  # the last answer
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._known_ns = 0
        self._lock = threading.Lock()  # of the thread that asks beside the others

    def _is_fresh(self) -> bool:
        if self._pid != os.getpid():
            self._forget()
        return _core.clock_monotonic_ns() - self._known_ns < _FRESH_NS and self.known is not None

    def primary(self) -> tuple[str, int]:
        """The address of the primary, as it was a second ago or later; if no sentinel answers, the
        one that was known before.

        Raises what connecting to the last sentinel raises; ConnectionError (none knows).
        """
        if self._is_fresh():
            assert self.known is not None
            return self.known
        error: Exception = ConnectionError(f"no sentinel knows the service {self.service!r}")
        for address in list(self._addresses):
            try:
                connection = Connection(address)
                try:
                    connection.send(self._question)
                    answer = connection.answer()
                finally:
                    connection.close()
                if self._learn(answer, address):
                    assert self.known is not None
                    return self.known
            except (OSError, ServerError) as one:
                error = one
        return self._old(error)

    async def aprimary(self) -> tuple[str, int]:
        """primary() for coroutines."""
        if self._is_fresh():
            assert self.known is not None
            return self.known
        error: Exception = ConnectionError(f"no sentinel knows the service {self.service!r}")
        for address in list(self._addresses):
            try:
                connection = await AsyncConnection(address).open()
                try:
                    (answer,) = await connection.ask(self._question, 1)
                finally:
                    connection.close()
                if self._learn(answer, address):
                    assert self.known is not None
                    return self.known
            except (OSError, TimeoutError, ServerError) as one:
                error = one
        return self._old(error)

    def _old(self, error: Exception) -> tuple[str, int]:
        """What was known, since no sentinel has answered; they are asked again after a while."""
        if self.known is None:
            raise error
        self._known_ns = _core.clock_monotonic_ns()
        return self.known

    def _learn(self, answer: Any, address: SentinelAddress) -> bool:
        """Whether the answer is one; the sentinel that gave it is asked first the next time."""
        if answer is None or isinstance(answer, ServerError):
            return False  # it does not know the service
        try:
            host, port = bytes(answer[0]).decode(), int(answer[1])
        except (TypeError, IndexError, ValueError) as error:
            raise ProtocolError(f"not the address of a primary: {answer!r}") from error
        self.known, self._known_ns = (self._forced or host, port), _core.clock_monotonic_ns()
        self._addresses.sort(key=lambda each: each is not address)
        return True

    def ask_beside(self) -> None:
        """Ask in a thread of its own, if the last answer is old: a dead sentinel takes seconds."""
        if not self._is_fresh() and self._lock.acquire(blocking=False):
            threading.Thread(target=self._beside, daemon=True, name="shmrhash sentinel").start()

    def _beside(self) -> None:
        try:
            with contextlib.suppress(OSError, ServerError):  # asked again later
                self.primary()
        finally:
            self._lock.release()
