"""Connections of a near cache to PostgreSQL, by psycopg: for questions, and for listening."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from shmrhash import _adapters
from shmrhash._errors import InvalidArgument, TrackingRefused, Unavailable

try:
    import psycopg
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import tuple_row
    from psycopg.waiting import Ready, Wait
except ImportError as _error:
    raise _adapters.needs("psycopg", "near-postgres") from _error

# What a connection has unless the caller's settings say otherwise. Without them a host that is cut
# off is noticed after hours.
_SETTINGS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_BYTEA = 17  # its number among PostgreSQL's types

_SYSTEM = "(SELECT system_identifier FROM pg_catalog.pg_control_system())"
_ADDRESS = "coalesce(host(pg_catalog.inet_server_addr()), '')"  # for whom may not ask that
_WHO = """\
SELECT {system} || '/' || extract(epoch FROM pg_catalog.pg_postmaster_start_time()) || '/'
       || (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
       pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid()"""


class Row(NamedTuple):
    """A row of an answer: key, value, and seconds to live."""

    key: str | None
    value: bytes | None
    ttl: float | None


class Session:
    """A connection for questions; one thread uses it at a time."""

    def __init__(self, connection: Any, seconds: float) -> None:
        """Ask which server this is. Raises psycopg.Error, TimeoutError."""
        self.connection = connection
        self.pid = os.getpid()
        self._seconds = seconds
        # All of psycopg's waiting goes through wait(), which a stopped server would hold for ever.
        connection.wait = self._wait_bounded
        self.server = connection.info.server_version
        connection.row_factory = tuple_row
        if connection.info.parameter_status("client_encoding") != "UTF8":
            connection.execute("SET client_encoding = 'UTF8'")
        try:
            who = connection.execute(_WHO.format(system=_SYSTEM))
        except psycopg.errors.InsufficientPrivilege:
            who = connection.execute(_WHO.format(system=_ADDRESS))
        identity, standby, backend = who.fetchone()
        self.identity = str(identity).encode()
        self.standby = bool(standby)
        # A pooler makes up the number that it gives its clients.
        self.pooled = backend != connection.info.backend_pid

    def _wait_bounded(self, steps: Generator[Any, Any, Any], *_: Any, **__: Any) -> Any:
        """In place of the connection's wait(): do the steps of a question, with an end."""
        end = time.monotonic() + self._seconds
        try:
            wanted = next(steps)
            while True:  # ends with the answer, or with the time
                waiting = select.poll()
                events = select.POLLIN * bool(wanted & Wait.R)
                waiting.register(
                    self.connection.pgconn.socket, events | select.POLLOUT * bool(wanted & Wait.W)
                )
                if not waiting.poll(max(0, math.ceil((end - time.monotonic()) * 1000))):
                    raise TimeoutError("the server does not answer")
                # Of two that it waits for one may not be ready: it tries, and does not wait.
                wanted = steps.send(Ready(int(wanted)))
        except StopIteration as ended:
            return ended.value

    @property
    def watched(self) -> bool:
        """Whether what is read here is what the tracker of this server watches."""
        return not self.standby and not self.pooled

    @property
    def usable(self) -> bool:
        """Whether it may be asked again: it is open, and between transactions."""
        if self.connection.closed:
            return False
        return bool(self.connection.info.transaction_status == pq.TransactionStatus.IDLE)

    def rows(self, query: Any, keys: Sequence[str]) -> list[Row]:
        """The answer to a query of the keys. Raises psycopg.Error, InvalidArgument."""
        cursor = self.connection.execute(query, [list(keys)])
        result = cursor.pgresult
        if result is None or result.nfields not in (2, 3):
            raise InvalidArgument(
                f"a query answers with key, value, and ttl if it has one: {query}"
            )
        found = []
        bytea = result.ftype(1) == _BYTEA
        for at in range(result.ntuples):
            key, value = result.get_value(at, 0), result.get_value(at, 1)
            if bytea and value is not None:
                value = pq.Escaping().unescape_bytea(value)
            ttl = result.get_value(at, 2) if result.nfields == 3 else None
            found.append(
                Row(
                    None if key is None else bytes(key).decode(),
                    None if value is None else bytes(value),
                    None if ttl is None else float(ttl),
                )
            )
        return found

    def close(self) -> None:
        """Close it. In a child of fork the parent's stays open."""
        if self.pid == os.getpid():
            with contextlib.suppress(psycopg.Error):
                self.connection.close()


class Connector:
    """How this program connects.

    given: a connection string, or a function without arguments that returns a new connection of
    psycopg in its normal state; name: of the function's server.
    """

    def __init__(self, given: str | Callable[[], Any], name: str | None, seconds: float) -> None:
        self._given = given
        self.seconds = seconds
        if isinstance(given, str):
            try:
                settings = conninfo_to_dict(given)
            except psycopg.Error as error:
                raise InvalidArgument(f"the connection string is wrong: {error}") from None
            self._settings = _SETTINGS | settings
            host = settings.get("host") or settings.get("service") or os.environ.get("PGHOST", "")
            port = settings.get("port") or os.environ.get("PGPORT", "5432")
            database = settings.get("dbname") or os.environ.get("PGDATABASE", "")
            user = settings.get("user") or os.environ.get("PGUSER", "")
            self.name = name or f"{host or 'local'}:{port}/{database} as {user or 'default'}"
        elif name:
            self.name = name
        else:
            raise InvalidArgument("with a function that connects, name= says to what")

    def session(self) -> Session:
        """A new connection. Raises psycopg.Error, TimeoutError, what the caller's function does."""
        if isinstance(self._given, str):
            connection: Any = psycopg.connect(**self._settings, client_encoding="utf8")
        else:
            connection = self._given()
        try:
            connection.autocommit = True
            return Session(connection, self.seconds)
        except BaseException:
            connection.close()
            raise


class Listener:
    """The tracker's connection: it listens, and notifies itself. One thread uses it.

    It speaks libpq's own, non-blocking interface, so that it is never held by the server.
    """

    def __init__(self, session: Session, channel: str) -> None:
        self.session = session
        self._channel = channel
        self._own = f"{channel}_{os.urandom(8).hex()}"
        self._pq = session.connection.pgconn
        self._asking = False
        self._sent = 0

    def refusal(self) -> str:
        """Why this connection cannot listen, and what to do; "" if it can."""
        if self.session.pooled:
            return (
                "a pooler is between this program and PostgreSQL, and notifications would be told "
                "to others: connect to the server itself, or use tracking='ttl'"
            )
        if self.session.standby:
            return (
                "the server is a standby, which tells of no changes: connect to the primary "
                "(target_session_attrs=primary), or use tracking='ttl'"
            )
        return ""

    def listen(self) -> None:
        """From the return of this on every change is told. Raises psycopg.Error, TrackingRefused,
        TimeoutError."""
        refusal = self.refusal()
        if refusal:
            raise TrackingRefused(refusal)
        execute = self.session.connection.execute
        # A proof is no data: its commit need not wait for the disk, nor for a standby.
        execute("SET synchronous_commit = off")
        execute(f"LISTEN {self._channel}")
        execute(f"LISTEN {self._own}")
        self._pq.nonblocking = 1

    def ask(self, now_ns: int) -> None:
        """Notify itself; now_ns is the moment before. Raises psycopg.Error."""
        self._sent = now_ns
        self._asking = True
        self._pq.send_query_params(
            b"SELECT pg_catalog.pg_notify($1, $2)", [self._own.encode(), b"%d" % now_ns]
        )
        self._pq.flush()

    @property
    def waits_since(self) -> int:
        """The moment of the question that has not come back; 0: there is none."""
        return self._sent

    def told(self, seconds: float) -> Iterator[bytes | int]:
        """Wait up to this time; what the server has told, in its order: payloads of the channel,
        and as a number the moment of a question that has come back. Raises psycopg.Error,
        Unavailable."""
        waiting = select.poll()
        waiting.register(self._pq.socket, select.POLLIN | select.POLLOUT * bool(self._pq.flush()))
        if not waiting.poll(math.ceil(seconds * 1000)):
            return
        self._pq.consume_input()
        while True:  # until what has been read is told
            notice = self._pq.notifies()
            if notice is None:
                break
            if notice.relname == self._channel.encode():
                yield notice.extra
            elif notice.be_pid == self._pq.backend_pid and notice.extra == b"%d" % self._sent:
                # Nobody else's: a forged proof would be one of another backend.
                sent, self._sent = self._sent, 0
                yield sent
        while self._asking and not self._pq.is_busy():  # ends with the end of the answer
            result = self._pq.get_result()
            if result is None:
                self._asking = False
            elif result.status != pq.ExecStatus.TUPLES_OK:
                raise Unavailable(f"PostgreSQL answers {pq.error_message(result)}")

    @property
    def may_ask(self) -> bool:
        """Whether the last question has come back, and its answer has, too."""
        return not self._asking and self._sent == 0

    def close(self) -> None:
        self.session.close()
