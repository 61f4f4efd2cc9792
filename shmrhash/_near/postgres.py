"""PostgresSource: queries of a PostgreSQL database as the source of a near cache.

The watch is LISTEN: triggers of the tables (triggers.py) notify the key of each changed row. Why
the three things that source.py asks for hold:

(a) PostgreSQL puts a transaction's notifications into one queue for the whole server before the
    transaction's changes are visible, and delivers them after that. So a question whose answer is
    older than a change was put before the change was visible, and before its notification came.
    LISTEN is committed before the watch begins: every transaction that becomes visible after that
    is told.
(b) The tracker notifies itself, in a channel of its own. The queue is in the order of the commits,
    whatever the channels, and a listener gets it in that order. What was committed before the
    notification was sent is before it in the queue; so when it comes back, everything of before has
    been told. A transaction that is stopped on its way to the commit holds the lock of the queue,
    and the proof with it. The answer to any other question proves nothing: a backend that has
    committed, and is stopped before it wakes the listeners, would be missed.
(c) Each connection asks once which server it has reached, and which life of it; and whether a
    pooler is in between, which could answer for any server. What a standby says is not stored.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from shmrhash import _core
from shmrhash._errors import InvalidArgument, Unavailable, Unsupported
from shmrhash._near.pgconnection import Connector, Listener, Session
from shmrhash._near.source import STOP_SECONDS, Fetched, Nodes, Probe, Sink
from shmrhash._near.triggers import CHANNEL, ONE_KEY, checked_channel

_LOST_AFTER = 4  # beats without a proof, after which a watch is made anew
_PROBES = 3

Query = str | Callable[[Any, Sequence[str]], Iterable[Sequence[Any]]]


class PostgresSource:
    """Queries of one PostgreSQL database, told by triggers of what changes.

    server: a connection string of libpq, or a function without arguments that returns a new
    connection of psycopg; name: then says to what, without secrets, the same in all processes.

    queries: for each prefix of keys the question that answers for them: SQL with one parameter, the
    list of what follows the prefix in each key, as text; it returns rows (key, value) or (key,
    value, seconds to live), each key as its text. A value is the column's text as PostgreSQL writes
    it, or the bytes of a bytea; a key without a row, or with NULL, is absent. Or a function of a
    connection and that list, which returns such rows, with values of bytes or str. What a query
    reads must be of its own snapshot, and of tables that tell of their changes (triggers()).

    channel: of LISTEN, the same as in the triggers. connections: the most that a process opens for
    questions. timeout: seconds after which a server that does not answer is given up.

    The tables are the program's to write: set() and delete() of the near cache raise Unsupported.
    After a commit, invalidate() forgets a key in all processes of the machine at once.

    Raises InvalidArgument.
    """

    tracking = "notify"
    one_server = True

    def __init__(
        self,
        server: str | Callable[[], Any],
        queries: Mapping[str, Query],
        *,
        name: str | None = None,
        channel: str = CHANNEL,
        connections: int = 4,
        timeout: float = 5.0,
    ) -> None:
        if not isinstance(queries, Mapping) or not queries:
            raise InvalidArgument("queries is a dict: for each prefix of keys its query")
        for one in queries:
            if not isinstance(one, str) or any(o != one and o.startswith(one) for o in queries):
                raise InvalidArgument(f"prefix {one!r} is no str, or the beginning of another one")
        if connections < 1 or not timeout > 0:
            raise InvalidArgument("connections is at least 1, and timeout above 0")
        self._channel = checked_channel(channel)
        self._connector = Connector(server, name, timeout)
        self._queries = {prefix.encode(): query for prefix, query in queries.items()}
        self._prefixes = tuple(self._queries)
        self._connections = connections
        below = ",".join(sorted(queries))
        self.name = f"postgres at {self._connector.name}, channel {channel}, keys {below}"
        self._identity = b""  # of the server that answered last
        self._nodes: Nodes | None = None
        self._inherited: list[Any] = []  # kept, so that no child of fork ends its parent's
        self._forget()

    def _forget(self) -> None:
        """In a new process: no connection is this one's. The parent's stay open, and unused."""
        self._pid = os.getpid()
        self._idle: deque[Session] = deque()
        self._free = threading.BoundedSemaphore(self._connections)
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def _here(self) -> None:
        if self._pid != os.getpid():
            self._inherited += [self._idle, self._threads]
            self._forget()

    def attach(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def nodes(self) -> int:
        return 1

    def node_of(self, key: bytes) -> int:
        return self._number(self._identity)

    def _number(self, identity: bytes) -> int:
        return self._nodes.number(identity) if identity and self._nodes is not None else -1

    def covers(self, key: bytes) -> bool:
        return key.startswith(self._prefixes)

    # Reading.

    def _session(self) -> Session:
        """An unused connection, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            made = self._connector.session()
            self._identity = made.identity if made.watched else b""
            return made

    def _query_of(self, key: bytes) -> tuple[bytes, Query]:
        for prefix, query in self._queries.items():
            if key.startswith(prefix):
                return prefix, query
        raise InvalidArgument(
            f"no query answers for key {key!r}: prefixes are {', '.join(map(repr, self._prefixes))}"
        )

    def fetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        self._here()
        asked: dict[bytes, list[bytes]] = {}
        for key in keys:
            asked.setdefault(self._query_of(key)[0], []).append(key)
        with self._free:
            kept = len(self._idle)
            for _ in range(kept + 1):  # those that were idle may all have been closed
                session = self._session()
                try:
                    found: dict[bytes, Fetched] = {}
                    for prefix, some in asked.items():
                        found |= self._answers(session, prefix, some)
                    break
                except psycopg.OperationalError:
                    if not kept or not session.connection.closed:
                        raise
                    kept -= 1
                finally:
                    if session.usable and session.watched:
                        self._idle.append(session)
                    else:  # what is not watched now may be later: a standby becomes the primary
                        session.close()
        node = self._number(session.identity) if session.watched else -1
        absent = Fetched(None, None, node)
        return [found.get(key, absent)._replace(node=node) for key in keys]

    def _answers(
        self, session: Session, prefix: bytes, keys: Sequence[bytes]
    ) -> dict[bytes, Fetched]:
        query = self._queries[prefix]
        texts = [key[len(prefix) :].decode() for key in keys]
        if isinstance(query, str):
            rows: Iterable[Sequence[Any]] = session.rows(query, texts)
        else:
            rows = query(session.connection, texts)
        found = {}
        for key, value, *ttl in rows:
            if key is not None and value is not None:
                raw = value.encode() if isinstance(value, str) else bytes(value)
                left = float(ttl[0]) if ttl and ttl[0] is not None else None
                found[prefix + str(key).encode()] = Fetched(raw, left, -1)
        return found

    async def afetch(self, keys: Sequence[bytes]) -> Sequence[Fetched]:
        self._here()
        with self._starting:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._connections, "shmrhash near cache")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.fetch, keys)

    # Writing.

    def set(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        raise Unsupported(
            "a PostgresSource reads: write the table, and call invalidate() after the commit"
        )

    async def aset(
        self, key: bytes, value: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False
    ) -> bool:
        return self.set(key, value, ttl)

    def delete(self, keys: Sequence[bytes]) -> int:
        raise Unsupported(
            "a PostgresSource reads: delete the row, and call invalidate() after the commit"
        )

    async def adelete(self, keys: Sequence[bytes]) -> int:
        return self.delete(keys)

    # Watching.

    def probe(self) -> Probe:
        session = self._connector.session()
        listener = Listener(session, self._channel)
        try:
            server = f"PostgreSQL {session.server // 10000}.{session.server % 10000}"
            refusal = listener.refusal()
            if refusal:
                return Probe(server, False, refusal, 0.0)
            listener.listen()
            took = []
            for _ in range(_PROBES):
                began = _core.clock_monotonic_ns()
                listener.ask(began)
                while not listener.may_ask:  # ends with the time
                    if _core.clock_monotonic_ns() - began > self._connector.seconds * 1e9:
                        raise TimeoutError(f"{self._connector.name} does not answer")
                    for _ in listener.told(self._connector.seconds):
                        pass
                took.append(_core.clock_monotonic_ns() - began)
            self._identity = session.identity
            return Probe(server, True, "", min(took) / 1e9)
        finally:
            listener.close()

    def watch(self, sink: Sink, stop: Callable[[], bool], beat: float) -> None:
        listener = Listener(self._connector.session(), self._channel)
        try:
            node = self._number(listener.session.identity)
            if node < 0:
                raise Unavailable("more nodes are watched than a near cache has lines for")
            self._begin(listener, sink, node)
            try:
                self._watch_on(listener, sink, stop, node, beat)
            finally:
                sink.lost(node)
        finally:
            listener.close()

    def _begin(self, listener: Listener, sink: Sink, node: int) -> None:
        """Listen first: what is fetched after began() is older than no change that is missed."""
        listener.listen()
        sink.began(node)

    def _watch_on(
        self,
        listener: Listener,
        sink: Sink,
        stop: Callable[[], bool],
        node: int,
        beat: float,
    ) -> None:
        """Tell the sink what the server says, and prove it each beat, until stop()."""
        beat_ns = int(beat * 1e9)
        due = _core.clock_monotonic_ns()
        while not stop():  # asks at least each beat
            now = _core.clock_monotonic_ns()
            since = listener.waits_since
            if since and now - since > _LOST_AFTER * beat_ns:
                raise Unavailable(f"{self._connector.name} has not answered for {beat} s")
            if listener.may_ask and now >= due:
                listener.ask(now)
                due = now + beat_ns
            wait = max(0.0, (due - now) / 1e9) if listener.may_ask else beat
            self._tell(listener.told(min(wait, STOP_SECONDS)), sink, node)

    def _tell(self, told: Iterable[bytes | int], sink: Sink, node: int) -> None:
        """Tell the sink what the server has told: the changes before a proof before the proof."""
        changed: list[bytes] = []
        for one in told:
            if isinstance(one, int):
                if changed:
                    sink.changed(node, changed)
                    changed = []
                sink.proved(node, one)
            elif one.startswith(ONE_KEY.encode()):
                key = one[len(ONE_KEY) :]
                if self.covers(key):
                    changed.append(key)
            else:
                sink.everything(node)
        if changed:
            sink.changed(node, changed)

    def close(self) -> None:
        self._here()
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        for _ in range(len(self._idle)):
            self._idle.pop().close()
        self._forget()
