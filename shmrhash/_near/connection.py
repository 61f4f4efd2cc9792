"""Connections of a near cache to one server: for a thread, or for coroutines.

They are made from the settings of the program's own client: address, user, database, TLS, timeouts.
Each speaks RESP3, and knows which server it has reached (its run id).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shmrhash._errors import TrackingRefused
from shmrhash._near.resp import Push, Reader, ServerError, command

_CONNECT_SECONDS = 5.0  # unless the client's settings have a timeout
_ANSWER_SECONDS = 5.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Address:
    """Where a server is, and as which user to connect. From a client's settings."""

    settings: dict[str, Any]

    @property
    def path(self) -> str | None:
        """The UNIX socket, if it is one."""
        return self.settings.get("path")

    @property
    def host(self) -> tuple[str, int]:
        return self.settings.get("host") or "localhost", int(self.settings.get("port") or 6379)

    @property
    def database(self) -> int:
        return int(self.settings.get("db") or 0)

    @property
    def user(self) -> str:
        return self.settings.get("username") or "default"

    def name(self) -> str:
        """It in words, without secrets."""
        place = f"unix:{self.path}" if self.path else "{}:{}".format(*self.host)
        return f"{place}/{self.database} as {self.user}"

    def seconds(self, which: str, otherwise: float) -> float:
        """A timeout of the settings."""
        given = self.settings.get(which)
        return otherwise if given is None else float(given)

    def hello(self) -> bytes:
        """The commands with which a connection begins."""
        provider = self.settings.get("credential_provider")
        password = self.settings.get("password")
        user = self.settings.get("username")
        if provider is not None:
            given = provider.get_credentials()
            user, password = given if len(given) == 2 else (None, given[0])
        login = ("AUTH", user or "default", password) if password else ()
        first = command("HELLO", 3, *login)
        return first + command("SELECT", self.database) + command("INFO", "server")

    def greeted(self, answers: Sequence[Any]) -> tuple[str, bytes]:
        """The name and version of a server, and its run id, by its answers to hello().

        Raises TrackingRefused, ServerError.
        """
        hello, select, info = answers
        if isinstance(hello, ServerError):
            if hello.code in ("ERR", "NOPROTO"):
                raise TrackingRefused(
                    f"the server at {self.name()} does not speak RESP3 ({hello}): it takes "
                    f"Redis 6 or Valkey; use tracking='ttl'"
                )
            raise hello
        if isinstance(select, ServerError):
            raise select
        words = {key: value for key, value in hello.items() if isinstance(value, bytes)}
        server = f"{words.get(b'server', b'?').decode()} {words.get(b'version', b'').decode()}"
        if not isinstance(info, bytes):
            return server, b""  # the user may not ask: nothing is kept
        lines = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
        return server, lines.get(b"run_id", b"")

    def tls(self) -> ssl.SSLContext | None:
        """The context for TLS, if the client uses it."""
        get = self.settings.get
        if not get("ssl") and not any(key.startswith("ssl_") for key in self.settings):
            return None
        context = ssl.create_default_context(
            cafile=get("ssl_ca_certs"), capath=get("ssl_ca_path"), cadata=get("ssl_ca_data")
        )
        wanted = get("ssl_cert_reqs", "required")
        context.check_hostname = bool(get("ssl_check_hostname", wanted != "none"))
        if wanted in ("none", None, ssl.CERT_NONE):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate = get("ssl_certfile")
        if certificate:
            context.load_cert_chain(certificate, get("ssl_keyfile"), get("ssl_password"))
        return context


class Connection:
    """A connection of one thread."""

    def __init__(self, address: Address) -> None:
        """Connect, log in, choose the database. Raises OSError, ServerError, TrackingRefused."""
        self.pid = os.getpid()
        self.address = address
        self.server, self.run_id = "", b""
        self.pushed: list[Push] = []
        self._reader = Reader()
        self._answers: list[Any] = []
        seconds = address.seconds("socket_connect_timeout", _CONNECT_SECONDS)
        if address.path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self._socket = socket.create_connection(address.host, seconds)
        try:
            self._socket.settimeout(seconds)
            if address.path:
                self._socket.connect(address.path)
            else:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = address.tls()
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=address.host[0])
            self._socket.settimeout(address.seconds("socket_timeout", _ANSWER_SECONDS))
            self.send(address.hello())
            self.server, self.run_id = address.greeted([self.answer() for _ in range(3)])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it. A child of fork closes its own copy only."""
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Send commands. Raises OSError."""
        self._socket.sendall(data)

    def receive(self) -> list[Any]:
        """Wait for bytes, up to the timeout; the whole replies that they make.

        Raises OSError (TimeoutError), ConnectionError (the server has closed), ProtocolError.
        """
        data = self._socket.recv(_CHUNK)
        if not data:
            raise ConnectionError("the server has closed the connection")
        return self._reader.feed(data)

    def pending(self) -> bool:
        """Whether bytes are here that select() does not see: TLS has read them already."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def settimeout(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def answer(self) -> Any:
        """The next answer; what the server tells unasked goes to pushed. Raises as receive()."""
        while not self._answers:  # ends with the timeout of a silent server
            for reply in self.receive():
                (self.pushed if isinstance(reply, Push) else self._answers).append(reply)
        return self._answers.pop(0)

    def call(self, *arguments: bytes | str | int) -> Any:
        """One command and its answer; an error is returned. Raises as receive()."""
        self.send(command(*arguments))
        return self.answer()


class AsyncConnection:
    """A connection of one event loop; one coroutine uses it at a time."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.server, self.run_id = "", b""
        self._reader = Reader()
        self._answers: list[Any] = []
        self._seconds = address.seconds("socket_timeout", _ANSWER_SECONDS)

    async def open(self) -> AsyncConnection:
        """Connect, log in, choose the database. Raises OSError, ServerError, TrackingRefused."""
        address = self.address
        context = address.tls()
        if address.path:
            opening: Any = asyncio.open_unix_connection(address.path)
        elif context is not None:
            host, port = address.host
            opening = asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        else:
            opening = asyncio.open_connection(*address.host)
        seconds = address.seconds("socket_connect_timeout", _CONNECT_SECONDS)
        self._in, self._out = await asyncio.wait_for(opening, seconds)
        try:
            self.server, self.run_id = address.greeted(await self.ask(address.hello(), 3))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        with contextlib.suppress(Exception):  # its loop may be closed
            self._out.close()

    async def ask(self, data: bytes, count: int) -> list[Any]:
        """Send commands; their answers. Raises OSError, ConnectionError, ProtocolError."""
        self._out.write(data)
        return await asyncio.wait_for(self._take(count), self._seconds)

    async def _take(self, count: int) -> list[Any]:
        while len(self._answers) < count:  # ends with the timeout of ask()
            data = await self._in.read(_CHUNK)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._answers += [one for one in self._reader.feed(data) if not isinstance(one, Push)]
        taken, self._answers = self._answers[:count], self._answers[count:]
        return taken
