"""The cache of answers for ASGI applications: which answers are kept, for which clients, and how
often they are made."""

import asyncio
import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate, parsedate_to_datetime

import fastapi
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support.children import in_child
from support.serving import fetch, server

import shmrhash
from shmrhash import asgi
from shmrhash.asgi import CacheMiddleware

WORKERS = 4
PAGES = 20
PATIENCE_S = 60


class Site:
    """An application that gives the answer a test chooses, and counts how often it is asked."""

    def __init__(self, name, **options):
        self.name = name
        self.calls = 0
        self.headers = {}
        self.status = 200
        self.make = self.plain
        application = Starlette(routes=[Route("/{path:path}", self.answer)])
        self.middleware = CacheMiddleware(application, name, **{"ttl": 60, **options})
        self.shm = self.middleware.shm

    async def answer(self, request):
        self.calls += 1
        return await self.make(request)

    async def plain(self, request):
        return PlainTextResponse(f"answer {self.calls}", self.status, self.headers)

    def client(self):
        transport = httpx.ASGITransport(app=self.middleware)
        return httpx.AsyncClient(transport=transport, base_url="http://site")

    def ask(self, path="/", method="GET", **headers):
        """Send one request; in the names of headers _ stands for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def ask():
            async with self.client() as client:
                client.headers.pop("accept-encoding")
                return await client.request(method, path, headers=named)

        return asyncio.run(ask())

    def gather(self, *coroutines):
        async def together():
            return await asyncio.gather(*(one() for one in coroutines))

        return asyncio.run(together())


def scope_of(path):
    """Return the scope of a GET request, as httpx makes it."""
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"host", b"site")],
        "query_string": b"",
        "http_version": "1.1",
        "root_path": "",
        "scheme": "http",
    }


@pytest.fixture
def make_site(map_name):
    sites = []

    def make(**options):
        sites.append(Site(map_name, **options))
        return sites[-1]

    yield make
    for site in sites:
        site.shm.check()
        site.shm.close()
    with contextlib.suppress(shmrhash.SegmentMissing):
        shmrhash.unlink(map_name)


@pytest.fixture
def site(make_site):
    return make_site()


def is_kept(site, **request):
    """Return whether the second of two equal requests is answered from the cache."""
    before = site.calls
    first, second = site.ask(**request), site.ask(**request)
    assert first.status_code == second.status_code
    if site.calls == before + 1:
        assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
        assert second.content == first.content
        return True
    assert site.calls == before + 2
    assert "x-cache" not in second.headers
    return False


# ---- what is kept ----


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({}, True),
        ({"cache-control": "max-age=60"}, True),
        ({"cache-control": "public, max-age=60"}, True),
        ({"cache-control": "max-age=0, s-maxage=60"}, True),
        ({"cache-control": "max-age=60, s-maxage=0"}, False),
        ({"cache-control": "max-age=0"}, False),
        ({"cache-control": "max-age=nonsense"}, False),
        ({"cache-control": "no-store"}, False),
        ({"cache-control": "no-cache"}, False),
        ({"cache-control": "Private, max-age=60"}, False),
        ({"cache-control": 'private="x-user", max-age=60'}, False),
        ({"set-cookie": "a=b"}, False),
        ({"vary": "*"}, False),
        ({"vary": "accept, *"}, False),
        ({"expires": "in 600 seconds"}, True),
        ({"expires": "in -600 seconds"}, False),
        ({"expires": "0"}, False),
        ({"expires": "Fri, 31 Dec 9999 23:59:59 GMT"}, True),
        ({"expires": "Fri, 01 Jan 2100 00:00:00 +9999999999"}, False),
        ({"cache-control": "max-age=31536000000"}, True),
        ({"cache-control": "s-maxage=" + "9" * 400}, True),
        ({"expires": "0", "cache-control": "max-age=60"}, True),
    ],
    ids=str,
)
def test_what_an_answer_says_of_itself_is_obeyed(site, said, kept):
    if " seconds" in said.get("expires", ""):
        moment = time.time() + int(said["expires"].split()[1])
        said = {"expires": formatdate(moment, usegmt=True)}
    site.headers = said

    assert is_kept(site) is kept


def test_an_answer_that_expires_before_its_end_goes_out_and_is_not_kept(site):
    async def expire(request):
        site.headers = {"expires": formatdate(time.time() + 1, usegmt=True)}

        async def body():
            yield b"one"
            while parsedate_to_datetime(site.headers["expires"]).timestamp() > time.time():
                await asyncio.sleep(0.05)
            yield b"two"

        return StreamingResponse(body(), headers=site.headers)

    site.make = expire

    assert site.ask().content == b"onetwo"
    assert len(site.shm) <= 1  # at most a note that the answer is not kept
    assert site.ask().content == b"onetwo"
    assert site.calls == 2


@pytest.mark.parametrize(
    ("status", "said", "kept"),
    [
        (200, "", True),
        (404, "", False),
        (404, "max-age=60", True),
        (301, "max-age=60", True),
        (302, "max-age=60", False),
        (206, "max-age=60", False),
        (500, "max-age=60", False),
    ],
)
def test_which_status_is_kept(site, status, said, kept):
    site.status, site.headers = status, {"cache-control": said}

    assert is_kept(site) is kept


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "POST"},
        {"range": "bytes=0-1"},
        {"cache_control": "no-store"},
        {"authorization": "Basic eA=="},
        {"cookie": "session=1"},
    ],
    ids=str,
)
def test_which_requests_pass(make_site, request_):
    site = make_site()
    site.middleware.app.routes[0].methods.update({"POST"})

    assert not is_kept(site, **request_)
    assert is_kept(site)  # their answer was not kept for other requests
    assert not is_kept(site, **request_)  # and they do not get the kept answer of others


@pytest.mark.parametrize("said", ["public, max-age=60", "s-maxage=60"])
def test_public_responses_are_for_logged_in_users_too(site, said):
    site.headers = {"cache-control": said}

    for first in ({"cookie": "a=1"}, {"authorization": "x"}, {}):
        site.shm.clear()
        assert is_kept(site, **first)
        assert site.ask(cookie="c=3", authorization="y").headers["x-cache"] == "hit"


def test_an_answer_for_one_user_reaches_no_other(site):
    """A user never gets the answer for another user, whichever of the two asks first."""

    async def greet(request):
        return PlainTextResponse(request.headers.get("cookie", "nobody"))

    site.make = greet
    for cookie in ("anna", None, "bert", "anna", None):
        asked = {} if cookie is None else {"cookie": cookie}
        assert site.ask(**asked).text == (cookie or "nobody")


def test_without_a_ttl_only_answers_that_say_so_are_kept(make_site):
    site = make_site(ttl=None)

    assert not is_kept(site)
    site.shm.clear()
    site.headers = {"cache-control": "max-age=60"}
    assert is_kept(site)


def test_an_answer_that_could_not_be_kept_may_be_later(site):
    """After an error, the next complete answer is kept, although no request waited for it."""
    site.status = 503
    assert not is_kept(site)

    site.status = 200

    assert "x-cache" not in site.ask().headers
    assert site.ask().headers["x-cache"] == "hit"


def test_a_page_expires(site):
    site.headers = {"cache-control": "max-age=1"}
    assert is_kept(site)
    first = site.ask()
    assert int(first.headers["age"]) <= 1

    end = time.monotonic() + PATIENCE_S
    while site.ask().text == first.text:
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- keys ----


def test_addresses_have_pages_of_their_own(site):
    texts = [site.ask(path).text for path in ("/a", "/b", "/a?x=1", "/a?x=2", "/a%2Fb", "/a/b")]

    assert len(set(texts)) == 6
    assert site.ask("/a", host="other").text not in texts


def test_a_path_cannot_name_the_page_of_another(site):
    """A line end in a path does not end a line of the key, so that a path cannot contain another
    request's header."""
    site.headers = {"vary": "accept"}
    first = site.ask("/a", accept="x")

    assert site.ask("/a%3F%0Aaccept: x").text != first.text


def test_the_key_function_chooses(make_site):
    site = make_site(key=lambda scope: None if scope["path"] == "/no" else scope["path"])

    assert site.ask("/a?x=1").text == site.ask("/a?x=2").text
    assert site.ask("/no").text != site.ask("/no").text


def test_vary_is_followed(site):
    """The cache distinguishes requests by the headers that Vary names, also if the application
    names others later."""
    site.headers = {"vary": "Accept-Language"}
    german, english = site.ask(accept_language="de"), site.ask(accept_language="en")

    assert german.text != english.text
    assert site.ask(accept_language="de").text == german.text
    assert site.ask(accept_language="en").text == english.text

    site.headers = {"vary": "Accept-Language, Accept"}
    first = site.ask(accept_language="fr", accept="a")
    assert site.ask(accept_language="fr", accept="a").text == first.text
    assert site.ask(accept_language="fr", accept="b").text != first.text

    site.headers = {}
    site.shm.clear()
    assert site.ask(accept="a").text == site.ask(accept="b").text


def test_compressed_responses_are_for_clients_that_accept_them(site):
    async def long(request):
        return PlainTextResponse("text " * 1000)

    site.make = long
    site.middleware.app = GZipMiddleware(site.middleware.app)

    assert "content-encoding" not in site.ask().headers
    assert site.ask(accept_encoding="gzip").headers["content-encoding"] == "gzip"
    for _ in range(2):
        packed, plain = site.ask(accept_encoding="gzip"), site.ask()
        assert (packed.headers["x-cache"], plain.headers["x-cache"]) == ("hit", "hit")
        assert "content-encoding" not in plain.headers
        assert packed.text == plain.text == "text " * 1000


# ---- answers ----


def test_a_client_that_has_the_page_gets_304(site):
    etag = site.ask().headers["etag"]

    for asked in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = site.ask(if_none_match=asked)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert "content-length" not in answer.headers
    assert site.ask(if_none_match='"other"').status_code == 200
    assert site.calls == 1


def test_a_client_with_an_old_page_does_not_keep_others_from_a_new_one(site):
    """The application does not see the condition of a request (If-None-Match), because its answer
    goes to all clients."""

    async def conditional(request):
        if "if-none-match" in request.headers:
            return Response(status_code=304)
        return PlainTextResponse("whole", headers={"etag": '"new"'})

    site.make = conditional

    assert site.ask(if_none_match='"old"').text == "whole"
    assert site.ask(if_none_match='"new"').status_code == 304
    assert site.calls == 1


def test_head_is_answered_from_the_page_of_get(site):
    assert "x-cache" not in site.ask(method="HEAD").headers
    page = site.ask()
    head = site.ask(method="HEAD")

    assert head.headers["x-cache"] == "hit"
    assert head.content == b""
    assert head.headers["content-length"] == str(len(page.content))


def test_long_answers_go_out_as_they_come(make_site):
    """The first pieces of an answer that is too long to be kept reach the client before the last is
    made."""
    site = make_site(max_body=1000)
    go_on = None

    async def pieces():
        for number in range(4):
            if number == 3:
                await asyncio.wait_for(go_on.wait(), PATIENCE_S)
            yield b"x" * 400

    async def stream(request):
        return StreamingResponse(pieces())

    async def take():
        nonlocal go_on
        go_on = asyncio.Event()
        arrived = []

        async def send(message):
            arrived.append(message)
            if sum(len(each.get("body", b"")) for each in arrived) == 1200:
                go_on.set()

        received = asyncio.Queue()
        received.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await site.middleware(scope_of("/"), received.get, send)
        return b"".join(each.get("body", b"") for each in arrived)

    site.make = stream

    assert asyncio.run(take()) == b"x" * 1600
    assert asyncio.run(take()) == b"x" * 1600
    assert site.calls == 2


def test_events_and_slow_streams_are_not_held_back(site, monkeypatch):
    """A later piece of a stream is made only after the client has received the earlier ones."""
    arrived = None

    async def pieces():
        yield b"first "
        yield b"second "
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        yield b"third"

    async def use():
        nonlocal arrived
        arrived = asyncio.Event()
        text = b""

        async def send(message):
            nonlocal text
            text += message.get("body", b"")
            if b"second" in text:
                arrived.set()

        requests = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": b""})
        await site.middleware(scope_of("/"), requests.get, send)
        return text

    kind = "text/event-stream"

    async def stream(request):
        return StreamingResponse(pieces(), media_type=kind)

    site.make = stream

    assert asyncio.run(use()) == b"first second third"
    kind = "text/plain"
    monkeypatch.setattr(asgi, "HELD_S", -1)
    site.shm.clear()
    assert asyncio.run(use()) == b"first second third"
    assert site.calls == 2


def test_an_application_that_waits_for_the_end_of_its_client_is_told(make_site):
    """An application that has sent nothing gets the message that its client has disconnected,
    although other requests may wait for its answer."""
    site = make_site(wait=0.05)

    async def wait(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def use():
        messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            pytest.fail("nothing was sent")

        site.middleware.app = wait
        await asyncio.wait_for(site.middleware(scope_of("/"), receive, send), PATIENCE_S)

    asyncio.run(use())


def test_short_streams_are_kept(site):
    async def stream(request):
        return StreamingResponse(iter([b"a", b"b"]))

    site.make = stream

    assert is_kept(site)
    assert site.ask().text == "ab"


def test_background_tasks_run_once_and_delay_no_request(site):
    ran = []

    async def answer(request):
        return PlainTextResponse("done", background=BackgroundTask(ran.append, 1))

    site.make = answer

    assert site.ask().text == site.ask().text == "done"
    assert ran == [1]


def test_what_the_application_raises_reaches_its_request_only(site):
    async def fail(scope, receive, send):
        raise RuntimeError("broken")

    application, site.middleware.app = site.middleware.app, fail
    with pytest.raises(RuntimeError, match="broken"):
        site.ask()
    site.middleware.app = application

    assert is_kept(site)


# ---- one computation for all ----


def test_requests_of_one_loop_have_one_computation(site):
    async def slow(request):
        await asyncio.sleep(0.05)
        return PlainTextResponse(f"answer {site.calls}")

    site.make = slow

    async def crowd():
        async with site.client() as client:
            return await asyncio.gather(*(client.get("/") for _ in range(30)))

    answers = asyncio.run(crowd())

    assert {answer.text for answer in answers} == {"answer 1"}
    assert sorted(answer.headers["x-cache"] for answer in answers) == ["hit"] * 29 + ["miss"]


def test_answers_that_cannot_be_kept_are_made_side_by_side(site):
    """Requests wait only until the first answer turns out to be private, not until it is
    complete."""
    together, most = 0, 0

    async def private(request):
        nonlocal together, most
        together += 1
        most = max(most, together)

        async def body():
            nonlocal together
            await asyncio.sleep(0.05)
            yield request.headers["x-user"].encode()
            together -= 1

        return StreamingResponse(body(), headers={"cache-control": "private"})

    site.make = private

    async def crowd():
        async with site.client() as client:
            asked = (client.get("/", headers={"x-user": str(user)}) for user in range(20))
            return await asyncio.gather(*asked)

    assert [answer.text for answer in asyncio.run(crowd())] == [str(user) for user in range(20)]
    assert most > 10


def test_a_client_that_leaves_does_not_take_the_page_from_others(site):
    """A client disconnects while its answer, a stream, is made; the stream continues, because
    others wait for it."""
    asked = None

    async def body():
        asked.set()
        await asyncio.sleep(0.1)
        yield b"whole"

    async def stream(request):
        return StreamingResponse(body())

    async def use():
        nonlocal asked
        asked = asyncio.Event()
        messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

        async def receive():
            if len(messages) == 1:
                await asked.wait()
            return messages.pop(0)

        async def send(message):
            pass

        first = asyncio.create_task(site.middleware(scope_of("/"), receive, send))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        async with site.client() as client:
            answer = await client.get("/")
        await first
        return answer

    site.make = stream

    assert asyncio.run(use()).text == "whole"
    assert site.calls == 1


def test_a_cancelled_request_leaves_the_page_to_the_next(site):
    asked = None

    async def slow(request):
        asked.set()
        if site.calls == 1:
            await asyncio.sleep(PATIENCE_S * 10)
        return PlainTextResponse("whole")

    async def use():
        nonlocal asked
        asked = asyncio.Event()
        async with site.client() as client:
            first = asyncio.create_task(client.get("/"))
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
            second = asyncio.create_task(client.get("/"))
            await asyncio.sleep(0)
            first.cancel()
            return await asyncio.wait_for(second, PATIENCE_S)

    site.make = slow

    assert asyncio.run(use()).text == "whole"
    assert site.calls == 2


def test_processes_share_pages(site):
    assert in_child(lambda: site.ask().text) == site.ask().text


def test_fastapi_is_one_line(map_name):
    app = fastapi.FastAPI()
    app.add_middleware(CacheMiddleware, name=map_name, ttl=60)
    calls = []

    @app.get("/items/{number}")
    def item(number: int):
        calls.append(number)
        return {"number": number}

    async def use():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
            return [(await client.get("/items/7")).json() for _ in range(3)]

    try:
        assert asyncio.run(use()) == [{"number": 7}] * 3
        assert calls == [7]
    finally:
        shmrhash.unlink(map_name)


def test_workers_of_uvicorn_make_each_page_once_beside_a_kill(map_name):
    """C2. A worker is killed while it makes a page for which others wait; then one of the others
    makes it."""
    names = (map_name, f"{map_name}.begun", f"{map_name}.workers")
    command = [
        "uvicorn",
        "support.asgi_site:application",
        "--port",
        "PORT",
        "--log-level",
        "critical",
    ]
    paths = [f"/{number % PAGES}" for number in range(PAGES * 6)]
    try:
        with (
            server(*command, "--workers", str(WORKERS), PAGES=map_name) as port,
            shmrhash.SharedDict(names[2], key=str, value=int) as workers,
            shmrhash.SharedCounter(names[1], key=str) as begun,
            ThreadPoolExecutor(3 * WORKERS) as clients,
        ):
            answers = list(clients.map(lambda path: fetch(port, path), paths))
            slow = [clients.submit(fetch, port, "/slow") for _ in range(2 * WORKERS)]
            os.kill(workers.wait("rendering", timeout=PATIENCE_S), signal.SIGKILL)
            ended = [one.result() for one in slow]
            ended.append(fetch(port, "/slow"))
            counts = dict(begun)
        with shmrhash.Cache(map_name, key=str, value=object) as cache:
            cache.check()
    finally:
        for name in names:
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(name)

    assert counts.pop("/slow") == 2
    assert counts == {f"/{number}": 1 for number in range(PAGES)}
    assert [answer[2] for answer in answers] == [f"{path} 1" for path in paths]
    assert {answer[2] for answer in ended if answer is not None} == {"/slow 2"}
