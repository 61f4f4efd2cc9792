"""Near caches in Django, Flask-Caching and FastAPI: a line of settings turns them on, and the
values are the same as without."""

import asyncio
import re
import time
from pathlib import Path

import pytest
from support import near_servers
from support.waiting import until

redis = pytest.importorskip("redis", reason="the client redis is not installed")
pytest.importorskip("django", reason="Django is not installed")
flask = pytest.importorskip("flask", reason="Flask is not installed")
flask_caching = pytest.importorskip("flask_caching", reason="Flask-Caching is not installed")
pytest.importorskip("fastapi", reason="FastAPI is not installed")
testclient = pytest.importorskip("fastapi.testclient", reason="httpx is not installed")

# ruff: noqa: E402 (after the skips)
from django.conf import settings
from django.core.cache import CacheHandler
from django.core.cache.backends.redis import RedisCache
from django.core.exceptions import ImproperlyConfigured

from shmrhash import InvalidArgument
from shmrhash._near import shared

pytestmark = pytest.mark.skipif(
    not near_servers.programs(), reason="no server of Redis or Valkey is installed"
)
GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "near_web.md"
PATIENCE_S = 30

if not settings.configured:
    settings.configure()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    program = next(iter(near_servers.programs().values()))
    made = near_servers.Server(program, tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture
def client(server):
    with redis.Redis(unix_socket_path=server.path) as made:
        made.flushall()
        yield made


@pytest.fixture(autouse=True)
def _closed():
    """Close the near caches of this process when the test ends, so that no other test has them."""
    yield
    for near, _ in shared._open.values():
        near.close()
    shared._open.clear()


def django_of(server, name, **more):
    near = {"name": name, "max_entries": 1000, "max_bytes": 1 << 20}
    entry = {
        "BACKEND": "shmrhash.django.NearRedisCache",
        "LOCATION": server.url,
        "KEY_PREFIX": "site",
        "OPTIONS": {"near": near | more},
    }
    return CacheHandler({"default": entry})["default"]


@pytest.fixture
def django(server, client, map_name):
    made = django_of(server, map_name)
    assert made.near.ready(PATIENCE_S)
    return made


def gets_of(client):
    """Return how many values the server was asked for."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "mget"))


def asks_nobody(client, read, expected):
    """Return whether a hundred reads find the value without asking the server."""
    before = gets_of(client)
    return [read() for _ in range(100)] == [expected] * 100 and gets_of(client) == before


def test_django_reads_its_own_writes_from_memory(client, django):
    """N3: each write is read by the next get, and from memory as soon as the change has been
    told."""
    for value in ({"a": [1, 2]}, 7, None, "text", b"bytes"):
        django.set("key", value, 60)
        assert django.get("key", "none") == value
        assert django.has_key("key")
        until(lambda: asks_nobody(client, lambda: django.get("key", "none"), value))  # noqa: B023
    assert django.get("absent", "none") == "none"
    assert not django.add("key", 1)
    assert django.add("number", 1)
    assert django.incr("number", 5) == 6
    assert django.get("number") == 6
    assert django.decr("number") == 5
    assert django.set_many({"number": 8, "other": 9}, 60) == []
    assert django.get_many(["number", "other", "absent"]) == {"number": 8, "other": 9}
    django.touch("other", 0)
    assert django.get("other") is None
    django.delete_many(["number", "absent"])
    assert django.get("number") is None
    assert django.delete("key")
    assert django.get("key") is None
    assert django.get_or_set("made", lambda: "once", 60) == "once"
    assert django.get("made") == "once"
    django.clear()
    assert django.get("made") is None


def test_django_sees_what_its_own_backend_writes_elsewhere(server, client, django):
    elsewhere = RedisCache(server.url, {"KEY_PREFIX": "site"})
    for number in range(20):
        elsewhere.set("key", number, 60)
        until(lambda: django.get("key") == number)  # noqa: B023 (called at once)
        django.set("back", number)
        assert elsewhere.get("back") == number
    elsewhere.set("key", "soon", 1)
    until(lambda: django.get("key") == "soon")
    until(lambda: django.get("key") is None)
    assert client.ttl("site:1:back") > 0


def test_django_awaits_nothing_for_a_value_in_memory(client, django):
    async def work():
        await django.aset("key", "value")
        assert await django.aget("key") == "value"
        assert await django.ahas_key("key")
        assert await django.aget_many(["key", "absent"]) == {"key": "value"}
        assert await django.aget("absent", 3) == 3
        for _ in range(PATIENCE_S * 100):
            reading = asyncio.ensure_future(django.aget("key"))
            await asyncio.sleep(0)  # let the task take one step
            if reading.done():
                assert await reading == "value"
                return
            await reading
        pytest.fail("each read awaits something")

    asyncio.run(work())


def test_django_refuses_what_near_caches_do_not_have(server, client, map_name, django):
    with pytest.raises(ImproperlyConfigured, match="unheard_of"):
        django_of(server, map_name, unheard_of=1, prefixes=["x"]).get("key")
    with pytest.raises(ImproperlyConfigured, match="other prefixes"):
        django_of(server, map_name, max_stale=2.0).get("key")
    assert django_of(server, map_name).near is django.near


def flask_of(server, name, **config):
    near = {"name": name, "max_entries": 1000, "max_bytes": 1 << 20}
    app = flask.Flask("site")
    config = {
        "CACHE_TYPE": "shmrhash.flask_caching.NearRedisCache",
        "CACHE_REDIS_URL": server.url,
        "CACHE_KEY_PREFIX": "site:",
        "CACHE_NEAR": near,
    } | config
    return app, flask_caching.Cache(app, config=config)


def test_flask_caching_reads_its_own_writes_from_memory(server, client, map_name):
    """N3: each write is read by the next get, and from memory as soon as the change has been
    told."""
    app, cache = flask_of(server, map_name)
    with app.app_context():
        assert cache.cache.near.ready(PATIENCE_S)
        for value in ({"a": [1, 2]}, 7, "text"):
            cache.set("key", value)
            assert cache.get("key") == value
            assert cache.has("key")
            until(lambda: asks_nobody(client, lambda: cache.get("key"), value))  # noqa: B023
        assert client.exists("site:key")
        assert not cache.add("key", 1)
        assert cache.get_many("key", "absent") == ["text", None]
        cache.set_many({"a": 1, "b": 2})
        assert cache.get_many("a", "b") == [1, 2]
        assert cache.cache.inc("number", 3) == 3
        assert cache.cache.dec("number") == 2
        assert cache.delete_many("a", "b") == ["a", "b"]
        assert cache.get("a") is None
        assert cache.unlink("number")
        assert cache.delete("key")
        assert cache.get_many("key", "number") == [None, None]
        cache.set("key", 1)
        cache.clear()
        assert cache.get("key") is None


def test_flask_caching_memoizes_and_sees_changes_from_elsewhere(server, client, map_name):
    app, cache = flask_of(server, map_name)
    calls = []

    @app.route("/")
    @cache.cached(timeout=60)
    def page():
        calls.append(time.monotonic())
        return f"page {len(calls)}"

    with app.test_client() as asking:
        assert [asking.get("/").text for _ in range(5)] == ["page 1"] * 5
        client.delete(*client.keys("site:*"))
        until(lambda: asking.get("/").text == "page 2")


def test_adapters_of_one_process_share_a_near_cache(server, client, map_name):
    with redis.Redis(unix_socket_path=server.path) as theirs:
        one = shared.near_of(theirs, ["a"], {"name": map_name})
        assert shared.near_of(theirs, ["a"], {"name": map_name}) is one
        with pytest.raises(InvalidArgument, match="same options"):
            shared.near_of(theirs, ["a"], {"name": map_name, "max_stale": 2})
        one.close()
        two = shared.near_of(theirs, ["a"], {"name": map_name, "max_stale": 2})
        assert two is not one


def blocks():
    if not GUIDE.exists():
        pytest.skip("the documents are not here")
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_programs_of_the_guide_do_what_it_says(server, client):
    for_django, for_flask, for_fastapi = [
        text.replace("redis://cache:6379/0", server.url) for text in blocks()
    ]
    done = {}
    exec(for_django, done)
    django = CacheHandler(done["CACHES"])["default"]
    django.set("key", 1)
    assert django.get("key") == 1
    assert client.exists("site:1:key")

    exec(for_flask, done)
    app = flask.Flask("site")
    cache = flask_caching.Cache(app, config=done["config"])
    cache.set("key", 2)
    assert cache.get("key") == 2
    assert client.exists("site:key")

    exec(for_fastapi, done)
    with testclient.TestClient(done["app"]) as asking:
        assert asking.get("/user/7").json() == {"user": None}
        assert asking.put("/user/7?name=seven").json() == {"stored": True}
        assert [asking.get("/user/7").json() for _ in range(3)] == [{"user": "seven"}] * 3
        client.set("user:7", "other")
        until(lambda: asking.get("/user/7").json() == {"user": "other"})
