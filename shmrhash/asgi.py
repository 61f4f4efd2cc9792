"""Whole responses of an ASGI application, such as one of Starlette or FastAPI, in a Cache.

app.add_middleware(CacheMiddleware, name="my-site", ttl=60) is all that an application needs. It
keeps what HTTP lets a shared cache keep (RFC 9111), and only one worker at a time makes a page.

Under the key of an address the cache has one of three things. A Page. Varied: the headers that
choose among the pages of the address, each of which has a key of its own. Passed: the response
cannot be kept, so the next requests need not wait for each other to learn this.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from shmrhash import _adapters
from shmrhash._cache import Cache

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

KEPT = frozenset((200, 203, 301, 308, 404, 410))  # those beside 200 with a lifetime of their own
OF_CONNECTION = (b"connection", b"keep-alive", b"transfer-encoding")
CONDITIONS = (b"if-none-match", b"if-modified-since")  # the application answers in full
HELD_S = 5.0  # an answer that takes longer from its beginning to its end is a stream
PASSED_S = 60  # how long no request waits for a response that could not be kept
VARIED_S = 3600
LONGEST_S = float(1 << 31)  # what a longer max-age means (RFC 9111, 1.2.2)
LOOKS_MAX = 4  # at an address whose application changes its mind about Vary


class Page(NamedTuple):
    """A response that was kept. made: seconds since 1970. shared: also for users who are logged
    in."""

    status: int
    headers: Headers
    body: bytes
    made: float
    ttl: float
    shared: bool


class Varied(NamedTuple):
    """The names of the headers by which the pages of an address differ."""

    names: tuple[bytes, ...]


class Passed(NamedTuple):
    """The response of this address could not be kept."""


def values_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """The values of a header, with commas between them; "" if there is none."""
    return ",".join(value.decode("latin-1") for each, value in headers if each.lower() == name)


def directives(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """What Cache-Control says: {"max-age": "60", "public": ""}."""
    parts = (part.partition("=") for part in values_of(headers, b"cache-control").split(","))
    return {name.strip().lower(): value.strip(' "') for name, _, value in parts}


def default_key(scope: Scope) -> str:
    """The address of a request: scheme, host, path and query."""
    path = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"").decode("latin-1")
    host = values_of(scope["headers"], b"host")
    return f"{scope.get('scheme', 'http')}://{host}{path.decode('latin-1')}?{query}"


def varied_key(key: str, names: Iterable[bytes], scope: Scope) -> str:
    """The key of the page that these headers of a request choose."""
    lines = (f"{name.decode()}: {values_of(scope['headers'], name)}" for name in names)
    return "\n".join((key, *lines))  # neither an address nor a header has such an end of a line


def lifetime(status: int, headers: Any, said: dict[str, str], default: float | None) -> float:
    """For how many seconds a shared cache may keep a response; 0: not at all."""
    for name in ("s-maxage", "max-age"):
        if name in said:
            return min(float(said[name]), LONGEST_S) if said[name].isdecimal() else 0.0
    expires = values_of(headers, b"expires")
    if expires:
        try:
            return min(parsedate_to_datetime(expires).timestamp() - time.time(), LONGEST_S)
        except (ValueError, OverflowError):  # it is no date
            return 0.0
    return min(default, LONGEST_S) if default is not None and status == 200 else 0.0


class Run:
    """The application answers a request, and what it sends is held back until it is known whether
    the answer is kept.

    Attributes: page, the answer, once it is complete and may be kept; task, which has begun.
    """

    def __init__(self, cache: CacheMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.page: Page | None = None
        self.task: asyncio.Future[None] | None = None
        self._cache, self._scope, self._receive, self._send = cache, scope, receive, send
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held: list[Message] = []
        self._bytes = 0
        self._began = time.monotonic()
        self._holds = False  # it sends at once
        self._collects = True

    async def answer(self) -> Page | None:
        """Start the application; return its response if that may be kept. Otherwise it is being
        sent: wait for the task."""
        self._holds = True
        headers = [each for each in self._scope["headers"] if each[0] not in CONDITIONS]
        scope = {**self._scope, "headers": headers}
        self.task = asyncio.ensure_future(self._cache.app(scope, self._hear, self._say))
        try:
            await asyncio.wait((self.task, self._decided), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.task.cancel()
            raise
        if not self._decided.done():
            self.task.result()  # raises what the application raised
            await self._let_go()  # it did not end its answer
        return self.page

    async def pass_on(self) -> None:
        """The application responds, and its response is sent at once."""
        await self._cache.app(self._scope, self._receive, self._say)

    async def _hear(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._holds:
            # Others wait for the page; but a client that waits to be told so sends nothing else.
            await asyncio.wait((self._decided,), timeout=self._cache.wait)
        return message

    async def _say(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.lower(), bytes(value)) for name, value in message.get("headers", ())]
            message = {**message, "headers": headers}
            self._began = time.monotonic()
        if self._collects:
            self._held.append(message)
            self._bytes += len(message.get("body", b""))
            late = time.monotonic() - self._began > HELD_S
            if late or not self._may_be_kept(message) or self._bytes > self._cache.max_body:
                self._collects = False
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                self._complete()
        if not self._holds:
            await self._send(message)
        elif not self._collects and self.page is None:
            await self._let_go()

    def _may_be_kept(self, message: Message) -> bool:
        if message["type"] == "http.response.start":
            return not message.get("trailers") and self._ttl(message) > 0
        return bool(message["type"] == "http.response.body")

    def _ttl(self, start: Message) -> float:
        headers = start["headers"]
        said = directives(headers)
        self._shared = "public" in said or "s-maxage" in said
        if (
            start["status"] not in KEPT
            or said.keys() & {"no-store", "private", "no-cache"}
            or values_of(headers, b"set-cookie")
            or "*" in values_of(headers, b"vary")
            or values_of(headers, b"content-type").startswith("text/event-stream")
            or (is_personal(self._scope) and not self._shared)
        ):
            return 0.0
        return lifetime(start["status"], headers, said, self._cache.ttl)

    def _complete(self) -> None:
        start = self._held[0]
        body = b"".join(message.get("body", b"") for message in self._held[1:])
        headers = [each for each in start["headers"] if each[0] not in OF_CONNECTION]
        if not values_of(headers, b"etag") and start["status"] == 200:
            digest = hashlib.blake2b(body, digest_size=16).hexdigest()
            headers.append((b"etag", f'"{digest}"'.encode()))
        if not values_of(headers, b"content-length"):
            headers.append((b"content-length", str(len(body)).encode()))
        ttl = self._ttl(start)
        self._collects = False
        if ttl <= 0:  # it has expired since it began
            return
        self.page = Page(start["status"], tuple(headers), body, time.time(), ttl, self._shared)
        if not self._decided.done():
            self._decided.set_result(None)

    async def _let_go(self) -> None:
        """Send what was held back; from now on everything is sent at once."""
        self._holds = self._collects = False
        self._decided.set_result(None)
        for message in self._held:
            await self._send(message)
        self._held.clear()


def is_personal(scope: Scope) -> bool:
    """Whether a request names its user: it then gets, and makes, only pages that say that they are
    for all users (public, s-maxage)."""
    return any(name in (b"authorization", b"cookie") for name, _ in scope["headers"])


class CacheMiddleware:
    """Keeps responses of an ASGI application for all workers of the machine.

        app.add_middleware(CacheMiddleware, name="my-site", ttl=60)

    Kept are answers to GET that a shared cache may keep, for as long as their s-maxage, max-age or
    Expires says, and those of status 200 that say nothing for ttl seconds; also for HEAD. Not kept
    are answers with Set-Cookie, Cache-Control private, no-store or no-cache, Vary *, and those to
    requests with Authorization or Cookie, unless they are public or have s-maxage. Vary is
    followed. What cannot be kept, is longer than max_body, takes more than five seconds from its
    first to its last piece, or is a stream of events, goes out as the application sends it.

    While a page is absent, only one request, of all processes, makes it, and the others wait; if
    its process dies, another makes it. Pages get an ETag, If-None-Match is answered with 304, and
    X-Cache says hit or miss. Needs asyncio. Put it outside of what changes answers for each user.

    Attributes: app, ttl, max_body, wait; shm, the Cache: shm.stats(), shm.clear().
    """

    def __init__(
        self,
        app: Application,
        name: str,
        *,
        ttl: float | None = None,
        key: Callable[[Scope], str | None] = default_key,
        max_body: int = 1 << 20,
        wait: float = 10.0,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        mode: int = 0o600,
    ) -> None:
        """Open the Cache of this name, or create it.

        ttl: None keeps only answers that say for how long. key: a function of the scope that
        returns the key of a request, or None if its answer is not to be kept; unless given, it is
        the address with its query. max_body: bytes. wait: after this many seconds another request
        makes the page, too. max_entries, max_bytes, mode: as for Cache().

        Raises InvalidArgument (open in this process with other limits), and what Cache() raises.
        """
        self.app, self.ttl, self.max_body = app, ttl, max_body
        self.wait, self._key, self._name = wait, key, name
        self._limits: dict[str, Any] = {
            "max_entries": max_entries,
            "max_bytes": max_bytes,
            "mode": mode,
        }
        _ = self.shm

    @property
    def shm(self) -> Cache[str, Any]:
        """The Cache in which the pages are."""
        return _adapters.cache_of(self._name, **self._limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = None
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            asked = directives(scope["headers"])
            if "no-store" not in asked and not values_of(scope["headers"], b"range"):
                key = self._key(scope)
        if key is None:
            await self.app(scope, receive, send)
            return
        run = Run(self, scope, receive, send)
        try:
            page = await self._page(key, scope, run)
            if page is not None:
                await reply(page, scope, send, page is run.page)
            if run.task is not None:
                await run.task
        finally:
            if run.task is not None:
                run.task.cancel()

    async def _page(self, key: str, scope: Scope, run: Run) -> Page | None:
        """The page of a request, from the cache or made now; None: its answer was or is sent."""
        found, _, _ = self._look(key, scope)
        if is_personal(scope) and not (isinstance(found, Page) and found.shared):
            key = f"personal {key}"
        for _ in range(LOOKS_MAX):
            found, place, names = self._look(key, scope)
            if found is None and scope["method"] == "GET":
                made = functools.partial(self._make, key, names, scope, run)
                found = await self.shm.aget_or_compute(place, made, _ttl_of, wait=self.wait)
            if isinstance(found, Page):
                return found
            if not isinstance(found, Varied):
                break
            if run.page is not None:
                return run.page
        if run.task is None:
            await run.pass_on()
            if run.page is not None and scope["method"] == "GET":
                self._keep(key, run.page, scope)
        return None

    def _look(self, key: str, scope: Scope) -> tuple[Any, str, tuple[bytes, ...]]:
        """What the cache has for a request, under which key, and the headers that chose it."""
        found = self.shm.get(key)
        if not isinstance(found, Varied):
            return found, key, ()
        place = varied_key(key, found.names, scope)
        return self.shm.get(place), place, found.names

    async def _make(self, key: str, names: tuple[bytes, ...], scope: Scope, run: Run) -> Any:
        """What the cache gets where the page of a request was looked for."""
        page = await run.answer()
        if page is None:
            return Passed()
        if varies_by(page) == names:
            return page
        self._keep(key, page, scope)
        return Varied(varies_by(page))

    def _keep(self, key: str, page: Page, scope: Scope) -> None:
        """Store a page where it will be looked for."""
        names = varies_by(page)
        if names:
            _adapters.store(self.shm, key, Varied(names), VARIED_S)
            key = varied_key(key, names, scope)
        _adapters.store(self.shm, key, page, page.ttl)


def varies_by(page: Page) -> tuple[bytes, ...]:
    names = values_of(page.headers, b"vary").lower().split(",")
    return tuple(sorted({name.strip().encode() for name in names if name.strip()}))


def _ttl_of(made: Page | Varied | Passed) -> float:
    if isinstance(made, Page):
        return made.ttl
    return VARIED_S if isinstance(made, Varied) else PASSED_S


async def reply(page: Page, scope: Scope, send: Send, is_new: bool) -> None:
    """Send a page, or 304 to a client that has it."""
    status, headers, body = page.status, list(page.headers), page.body
    tags = {
        tag.strip().removeprefix("W/")
        for tag in values_of(scope["headers"], b"if-none-match").split(",")
    }
    if status == 200 and ("*" in tags or values_of(headers, b"etag").removeprefix("W/") in tags):
        status, body = 304, b""
        headers = [each for each in headers if not each[0].startswith(b"content-")]
    if not is_new:
        headers.append((b"age", str(max(0, int(time.time() - page.made))).encode()))
    headers.append((b"x-cache", b"miss" if is_new else b"hit"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.body", "body": body})
