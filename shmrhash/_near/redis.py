"""RedisSource: one Valkey or Redis server as the source of a near cache.

The watch is CLIENT TRACKING in broadcast mode: the server reports to the tracker's connection every
change below the prefixes, whichever connection has read the key, or none. In this mode an answer to
PING overtakes the messages of its own cycle of the server's event loop, but not those of earlier
cycles: so an answer proves what came before the *previous* PING was sent. That is one beat before,
but for the first proof: its two questions follow one another, so that a takeover lasts no beat.

What is fetched is stored only if it was read at the server that is watched: each connection asks
once for the run id, which also changes when the server is started again.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument, TrackingRefused, Unavailable
from shmrhash._near.client import (
    as_clients,
    begin_tracking,
    checked_prefixes,
    in_words,
    probed,
    set_words,
    tell,
)
from shmrhash._near.connection import Address, AsyncConnection, Connection
from shmrhash._near.resp import Push, ServerError, command
from shmrhash._near.sentinel import Sentinels
from shmrhash._near.source import STOP_SECONDS, Fetched, Nodes, Probe, Sink

_LOST_AFTER = 4  # beats without an answer, after which a watch is made anew
_NO_ANSWER = Probe("a server that does not answer", True, "", 0.0)  # the tracker asks again
_IDLE_MAX = 16  # connections of one event loop that are kept


class RedisSource:
    """One Valkey or Redis server.

    client: a redis.Redis or valkey.Valkey, one of their asyncio clients, or a URL for
    redis.Redis.from_url(). Its settings (address, user, TLS, timeouts) are those of the connections
    that are made here; writes go through the client itself where it is of the caller's kind.
    prefixes: the keys that are watched and kept; [""] is all of them. A prefix that begins with
    another one is refused.

    Raises InvalidArgument (no prefix, overlapping prefixes, a client whose settings are not known,
    a cluster).
    """

    tracking = "bcast"
    one_server = True

    def __init__(self, client: Any, prefixes: Sequence[str | bytes]) -> None:
        if isinstance(client, str):
            import redis  # type: ignore[import-not-found]

            client = redis.Redis.from_url(client)
        self._prefixes = checked_prefixes(prefixes)
        settings = getattr(getattr(client, "connection_pool", None), "connection_kwargs", None)
        if settings is None:
            raise InvalidArgument(
                f"{type(client).__name__} is no client of one server: give a redis.Redis, a "
                f"valkey.Valkey, one of their asyncio clients, or a URL; a cluster's client is for "
                f"ClusterSource, or for NearCache itself"
            )
        kind = getattr(client.connection_pool, "connection_class", object).__name__
        self._address = Address(settings | ({"ssl": True} if "SSL" in kind else {}))
        self._sentinels = None
        place = self._address.name()
        if hasattr(client.connection_pool, "sentinel_manager"):
            self._sentinels = Sentinels(client.connection_pool)
            address = self._address
            place = f"{self._sentinels.service}/{address.database} as {address.user}, by sentinels"
        self._client = client
        self._is_async = asyncio.iscoroutinefunction(getattr(client, "execute_command", None))
        self.name = f"redis at {place}, keys {in_words(self._prefixes)}"
        self._run_id = b""  # of the server that answered last
        self._nodes: Nodes | None = None
        self._forget()

    def _forget(self) -> None:
        """In a new process: no connection is this one's. The parent's stay open, and unused."""
        self._pid = os.getpid()
        self._mine = threading.local()
        self._all: list[Connection] = []
        self._idle: dict[asyncio.AbstractEventLoop, list[AsyncConnection]] = {}

    def attach(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def nodes(self) -> int:
        return 1

    def node_of(self, key: bytes) -> int:
        return self._number(self._run_id)

    def _number(self, run_id: bytes) -> int:
        return self._nodes.number(run_id) if run_id and self._nodes is not None else -1

    def covers(self, key: bytes) -> bool:
        return key.startswith(self._prefixes)

    # Connections.

    def _primary(self) -> Address:
        """Where the server is now. Raises OSError, ServerError (no sentinel says it)."""
        if self._sentinels is not None:
            self._follow(self._sentinels.primary())
        return self._address

    async def _aprimary(self) -> Address:
        """_primary() for coroutines."""
        if self._sentinels is not None:
            self._follow(await self._sentinels.aprimary())
        return self._address

    def _follow(self, place: tuple[str, int]) -> None:
        """The primary is at this place: from now on connections are made to it."""
        host, port = place
        if self._address.host != place or "host" not in self._address.settings:
            self._address = Address(self._address.settings | {"host": host, "port": port})

    def _connection(self) -> Connection:
        """This thread's connection; a new one if it has none, or one to a former primary."""
        if self._pid != os.getpid():
            self._forget()
        found: Connection | None = getattr(self._mine, "connection", None)
        if found is not None and found.address is not self._primary():
            self._drop()
            found = None
        if found is None:
            found = self._mine.connection = self._connect()
            self._all.append(found)
        return found

    def _connect(self) -> Connection:
        made = Connection(self._primary())
        self._run_id = made.run_id
        return made

    def _drop(self) -> None:
        """After an error: the connection of this thread is of no use."""
        found: Connection | None = getattr(self._mine, "connection", None)
        self._mine.connection = None
        if found is not None:
            found.close()
            if found in self._all:
                self._all.remove(found)

    def _ask(self, data: bytes, count: int, *, again: bool) -> tuple[list[Any], Connection]:
        """Send commands to the server; their answers. again: a connection that has been idle may
        have been closed by the server, so the commands, which only read, are sent once more."""
        kept = getattr(self._mine, "connection", None) is not None and self._pid == os.getpid()
        try:
            connection = self._connection()
            connection.send(data)
            return [connection.answer() for _ in range(count)], connection
        except TimeoutError as error:
            self._drop()
            raise self._as_clients(error, "TimeoutError") from error
        except OSError as error:
            self._drop()
            if kept and again:
                return self._ask(data, count, again=False)
            raise self._as_clients(error, "ConnectionError") from error
        except BaseException:  # also KeyboardInterrupt: answers are still under way
            self._drop()
            raise

    def _as_clients(self, error: Exception, name: str) -> Exception:
        """An error as the client's library would raise it."""
        return as_clients(self._client, error, name, self._address.name())

    # Reading.

    def _questions(self, keys: Sequence[bytes]) -> bytes:
        return b"".join(command("GET", key) + command("PTTL", key) for key in keys)

    def _fetched(self, answers: Sequence[Any], node: int) -> list[Fetched]:
        found = []
        for value, ttl in zip(answers[::2], answers[1::2], strict=True):
            for answer in (value, ttl):
                if isinstance(answer, ServerError):
                    raise self._as_clients(answer, "ResponseError")
            # A key without a deadline, or absent: PTTL is negative.
            found.append(Fetched(value, ttl / 1000 if ttl >= 0 else None, node))
        return found

    def fetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        answers, connection = self._ask(self._questions(keys), 2 * len(keys), again=True)
        return self._fetched(answers, self._number(connection.run_id))

    async def afetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        answers, connection = await self._aask(self._questions(keys), 2 * len(keys), again=True)
        return self._fetched(answers, self._number(connection.run_id))

    async def _aask(
        self, data: bytes, count: int, *, again: bool
    ) -> tuple[list[Any], AsyncConnection]:
        if self._pid != os.getpid():
            self._forget()
        loop = asyncio.get_running_loop()
        for ended in [each for each in self._idle if each.is_closed()]:
            del self._idle[ended]
        try:
            address = await self._aprimary()
            idle = self._idle.setdefault(loop, [])
            for former in [each for each in idle if each.address is not address]:
                former.close()
                idle.remove(former)
            kept = bool(idle)
            connection = idle.pop() if idle else await AsyncConnection(address).open()
        except (OSError, TimeoutError) as error:
            raise self._as_clients(error, "ConnectionError") from error
        self._run_id = connection.run_id
        try:
            answers = await connection.ask(data, count)
        except BaseException as error:  # also a cancellation: answers are still under way
            connection.close()
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                raise self._as_clients(error, "TimeoutError") from error
            if isinstance(error, OSError):
                if kept and again:
                    return await self._aask(data, count, again=True)
                raise self._as_clients(error, "ConnectionError") from error
            raise
        if len(idle) < _IDLE_MAX:
            idle.append(connection)
        else:
            connection.close()
        return answers, connection

    # Writing.

    def _written(self, words: list[Any]) -> Any:
        """A command of the caller's thread, by its client or by a connection of its own."""
        if not self._is_async:
            return self._client.execute_command(*words)
        (answer,), _ = self._ask(command(*words), 1, again=False)
        if isinstance(answer, ServerError):
            raise self._as_clients(answer, "ResponseError")
        return answer

    async def _awritten(self, words: list[Any]) -> Any:
        if self._is_async:
            return await self._client.execute_command(*words)
        (answer,), _ = await self._aask(command(*words), 1, again=False)
        if isinstance(answer, ServerError):
            raise self._as_clients(answer, "ResponseError")
        return answer

    def set(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        return bool(self._written(set_words(key, value, ttl, nx, xx)))

    async def aset(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        return bool(await self._awritten(set_words(key, value, ttl, nx, xx)))

    def delete(self, keys: Sequence[bytes]) -> int:
        return int(self._written(["DEL", *keys])) if keys else 0

    async def adelete(self, keys: Sequence[bytes]) -> int:
        return int(await self._awritten(["DEL", *keys])) if keys else 0

    # Watching.

    def probe(self) -> Probe:
        try:
            connection = Connection(self._primary())
        except TrackingRefused as error:
            return Probe("a server without RESP3", False, str(error), 0.0)
        except (ConnectionError, FileNotFoundError, TimeoutError):
            return _NO_ANSWER
        except OSError as error:
            raise self._as_clients(error, "ConnectionError") from error
        except ServerError as error:
            raise self._as_clients(error, "ResponseError") from error
        self._run_id = connection.run_id
        try:
            return probed(connection, self._prefixes)
        except OSError:  # it died, or hung, since it greeted
            return _NO_ANSWER
        finally:
            connection.close()

    def watch(self, sink: Sink, stop: Callable[[], bool], beat: float) -> None:
        connection = self._connect()
        try:
            refusal = begin_tracking(connection, self._prefixes)
            if refusal:
                raise TrackingRefused(refusal)
            node = self._number(connection.run_id)
            if node < 0:
                raise Unavailable("more nodes are watched than a near cache has lines for")
            connection.pushed.clear()
            role = connection.call("ROLE")
            has_role = not isinstance(role, ServerError)  # else the user may not ask
            if has_role:
                self._expect_primary(role)
            sink.began(node)
            tell(connection.pushed, sink, node)
            try:
                question = command("ROLE" if has_role else "PING")
                self._watch_on(connection, sink, stop, node, beat, question)
            finally:
                sink.lost(node)
        finally:
            connection.close()

    def _watch_on(
        self,
        connection: Connection,
        sink: Sink,
        stop: Callable[[], bool],
        node: int,
        beat: float,
        question: bytes,
    ) -> None:
        """Tell the sink what the server says, and ask it each beat, until stop()."""
        beat_ns = int(beat * 1e9)
        previous = 0  # when the question before the one under way was sent
        sent = 0  # when the one under way was sent; 0: none is
        due = _core.clock_monotonic_ns()
        asked_at = due
        connection.settimeout(beat * _LOST_AFTER)
        ready = select.poll()  # a file's number may be too great for select()
        ready.register(connection, select.POLLIN)
        while not stop():  # asks at least each beat
            self._expect_no_other(connection)
            now = _core.clock_monotonic_ns()
            if sent == 0 and now >= due:
                sent = asked_at = now
                connection.send(question)
                due = now + beat_ns
            if sent and now - asked_at > _LOST_AFTER * beat_ns:
                raise Unavailable(f"{self._address.name()} has not answered for {beat} s")
            wait = max(0.0, (due - now) / 1e9) if sent == 0 else beat
            if not connection.pending() and not ready.poll(1000 * min(wait, STOP_SECONDS)):
                continue
            for reply in connection.receive():
                if isinstance(reply, Push):
                    tell([reply], sink, node)
                    continue
                if isinstance(reply, ServerError):
                    raise Unavailable(f"{self._address.name()} answers {reply}")
                if isinstance(reply, list):
                    self._expect_primary(reply, sink, node)
                if previous:
                    sink.proved(node, previous)
                else:
                    due = now  # the first lease needs two questions, and no beat between them
                previous, sent = sent, 0

    def _expect_no_other(self, connection: Connection) -> None:
        """Raises Unavailable: the sentinels have another primary. The watch of that one is told of
        everything, and what is cached of this one is served for max_stale at most."""
        if self._sentinels is None:
            return
        self._sentinels.ask_beside()
        if self._sentinels.known not in (None, connection.address.host):
            raise Unavailable(f"{connection.address.name()} is not the primary any more")

    def _expect_primary(self, role: Any, sink: Sink | None = None, node: int = -1) -> None:
        """Raises Unavailable: the server is a replica now. What it had is not served any more."""
        if isinstance(role, list) and role and role[0] != b"master":
            if sink is not None:
                sink.everything(node)
            raise Unavailable(f"{self._address.name()} is a replica: only a primary is watched")

    def close(self) -> None:
        if self._pid != os.getpid():
            self._forget()
        for connection in self._all:
            connection.close()
        for idle in self._idle.values():
            for each in idle:
                each.close()
        self._forget()
