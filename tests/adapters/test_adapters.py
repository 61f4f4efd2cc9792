"""Properties of the adapters that the other libraries' own tests leave out: several processes,
kills, limits, deploys."""

import asyncio
import contextlib
import logging
import math
import os
import time

import flask
import flask_caching
import flask_session
import pytest
import requests_mock
from django.conf import settings
from dogpile.cache import make_region
from requests_cache import CachedSession
from support.children import Child, Partner, in_child, kill

import shmrhash
import shmrhash.aiocache
import shmrhash.cachelib
import shmrhash.cashews
import shmrhash.django
import shmrhash.dogpile
import shmrhash.requests_cache
from shmrhash import Cache, InvalidArgument

PATIENCE_S = 30
WORKERS = 3
ROUNDS = 200

if not settings.configured:
    settings.configure()


class Django:
    """Django's cache, with the methods that all adapters have in these tests."""

    def __init__(self, name, **limits):
        options = {limit.upper(): value for limit, value in limits.items()}
        self.cache = shmrhash.django.ShmCache(name, {"OPTIONS": options})

    def get(self, key):
        return self.cache.get(key)

    def set(self, key, value, timeout=60):
        self.cache.set(key, value, timeout)

    def incr(self, key):
        return self.cache.incr(key)


class Cachelib:
    def __init__(self, name, **limits):
        self.cache = shmrhash.cachelib.ShmCache(name, **limits)

    def get(self, key):
        return self.cache.get(key)

    def set(self, key, value, timeout=60):
        self.cache.set(key, value, timeout)

    def incr(self, key):
        return self.cache.inc(key)


class Aiocache:
    def __init__(self, name, **limits):
        self.cache = shmrhash.aiocache.ShmCache(name, **limits)

    def get(self, key):
        return asyncio.run(self.cache.get(key))

    def set(self, key, value, timeout=60):
        asyncio.run(self.cache.set(key, value, ttl=timeout))

    def incr(self, key):
        return asyncio.run(self.cache.increment(key))


class Cashews:
    def __init__(self, name, **limits):
        self.cache = shmrhash.cashews.ShmBackend(name, **limits)

    def get(self, key):
        return asyncio.run(self.cache.get(key))

    def set(self, key, value, timeout=60):
        asyncio.run(self.cache.set(key, value, expire=timeout))

    def incr(self, key):
        return asyncio.run(self.cache.incr(key))


class Dogpile:
    def __init__(self, name, **limits):
        self.region = make_region().configure("shmrhash", arguments={"name": name, **limits})
        self.cache = self.region.backend

    def get(self, key):
        found = self.region.get(key)
        return found if found else None

    def set(self, key, value):
        self.region.set(key, value)


class RequestsCache:
    def __init__(self, name, **limits):
        self.mapping = shmrhash.requests_cache.ShmDict(name, serializer=None, **limits)
        self.cache = self.mapping

    def get(self, key):
        return self.mapping.get(key)

    def set(self, key, value):
        self.mapping[key] = value


COUNTING = [Django, Cachelib, Aiocache, Cashews]
ALL = [*COUNTING, Dogpile, RequestsCache]


class Unpicklable:
    """A value whose class no longer exists when it is read, as after a deploy."""

    def __reduce__(self):
        return vanish, ()


def vanish():
    raise AttributeError("the class was renamed")


@pytest.fixture
def make(map_name):
    """A function that makes adapters of one cache. The test ends with check() and unlink() on the
    cache."""

    def make_one(kind, **limits):
        return kind(map_name, **limits)

    yield make_one
    with Cache(map_name, key=str, value=object) as cache:
        cache.check()
    for name in (map_name, f"{map_name}.mutexes"):
        with contextlib.suppress(shmrhash.SegmentMissing):
            shmrhash.unlink(name)


@pytest.fixture(params=ALL, ids=lambda kind: kind.__name__)
def adapter(request, make):
    return make(request.param, max_entries=1000, max_bytes=4 << 20)


@pytest.fixture(params=COUNTING, ids=lambda kind: kind.__name__)
def counter(request, make):
    return make(request.param)


def test_processes_see_each_others_values(adapter):
    value = {"name": ["nested", None, 1.5]}

    in_child(adapter.set, "theirs", value)
    adapter.set("ours", value)

    assert value == adapter.get("theirs")
    assert value == in_child(adapter.get, "ours")


def test_a_value_too_large_is_absent_and_so_is_the_old_one(adapter, caplog):
    adapter.set("key", "old")

    with caplog.at_level(logging.WARNING, "shmrhash"):
        adapter.set("key", os.urandom(1 << 20))

    assert adapter.get("key") is None
    assert "was not cached" in caplog.text


def test_a_value_that_cannot_be_read_any_more_is_absent(adapter):
    adapter.set("key", Unpicklable())

    assert adapter.get("key") is None
    assert adapter.cache.shm.stats().unreadable >= 1


def test_counting_is_exact_for_processes(counter):
    counter.set("visits", 0)

    def count():
        for _ in range(ROUNDS):
            counter.incr("visits")

    children = [Child(count) for _ in range(WORKERS)]
    for child in children:
        child.result()

    assert counter.get("visits") == WORKERS * ROUNDS


def test_counting_keeps_the_deadline(counter):
    counter.set("visits", 1, timeout=1000)

    counter.incr("visits")

    (key,) = counter.cache.shm._entries(0)
    assert 900 < counter.cache.shm.ttl(key) <= 1000


def test_counting_works_in_a_full_cache(make, map_name):
    cache = make(Cachelib, max_entries=100, max_bytes=4 << 20)
    for number in range(300):
        cache.set(f"key-{number}", os.urandom(2000))

    for _ in range(300):
        assert cache.incr("visits") >= 1
        cache.set("more", os.urandom(3000))

    assert cache.get("visits") >= 1


def test_killed_writers_leave_nothing_locked(counter, seed):
    counter.set("visits", 0)

    def count():
        while True:
            counter.incr("visits")

    for _ in range(5):
        child = Child(count)
        before = counter.get("visits")
        end = time.monotonic() + PATIENCE_S
        while counter.get("visits") < before + 5:
            assert time.monotonic() < end
        assert child.kill() < 0
        counter.incr("visits")


def test_django_computes_once_and_takes_over_from_the_dead(make):
    cache = make(Django).cache

    def compute(parent):
        def hang():
            parent.say("computing")
            time.sleep(PATIENCE_S * 10)

        cache.get_or_set("page", hang)

    with Partner(compute) as child:
        assert child.hear() == "computing"
        assert cache.get("page") is None
        waiter = Child(cache.get_or_set, "page", lambda: "theirs")
        kill(child)
    assert waiter.result() == "theirs"
    assert cache.get_or_set("page", lambda: pytest.fail("it is there")) == "theirs"


def test_django_times_out_as_django_says(make):
    cache = make(Django).cache
    cache.set("never", 1, None)
    cache.set("default", 1)
    cache.set("zero", 1, 0)
    cache.set("before", 1, -1)

    assert cache.shm.ttl(cache.make_key("never")) is None
    assert 290 < cache.shm.ttl(cache.make_key("default")) <= 300
    assert cache.get_many(["zero", "before"]) == {}
    assert cache.get_or_set("none", lambda: None) is None
    assert cache.has_key("none")


def test_django_says_which_values_did_not_fit(make):
    cache = make(Django, max_bytes=4 << 20).cache

    assert cache.set_many({"small": 1, "large": os.urandom(1 << 20)}) == ["large"]
    assert not cache.add("large", os.urandom(1 << 20))


def test_django_coroutines_call_straight_through(make):
    cache = make(Django).cache

    async def use():
        await cache.aset("a", 1)
        await cache.aset_many({"b": 2})
        assert await cache.aadd("a", 3) is False
        assert await cache.aincr("a", 4) == 5
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 5, "b": 2}
        assert await cache.aget_or_set("d", lambda: 6) == 6
        assert await cache.aget_or_set("d", lambda: 7) == 6
        assert await cache.ahas_key("d")
        assert await cache.atouch("d", 0)
        assert not await cache.adelete("d")
        await cache.aclear()
        assert await cache.aget("a") is None

    asyncio.run(use())


def test_django_refuses_wrong_settings():
    with pytest.raises(Exception, match="LOCATION"):
        shmrhash.django.ShmCache("", {})
    with pytest.raises(Exception, match="MAX_BYTES, MODE"):
        shmrhash.django.ShmCache("name", {"OPTIONS": {"MAX_BYTE": 1}})


def test_one_name_has_one_pair_of_limits_in_a_process(make, map_name):
    make(Cachelib, max_entries=1000)

    with pytest.raises(InvalidArgument, match="limits"):
        make(Aiocache, max_entries=2000)


def test_dogpile_creates_once_and_the_mutex_of_the_dead_is_free(make):
    region = make(Dogpile).region

    def create(parent):
        def hang():
            parent.say("creating")
            time.sleep(PATIENCE_S * 10)

        region.get_or_create("page", hang)

    with Partner(create) as child:
        assert child.hear() == "creating"
        assert not region.backend.get_mutex("page").acquire(wait=False)
        assert region.backend.get_mutex("other").acquire(wait=False)
        kill(child)
    assert region.get_or_create("page", lambda: "ours") == "ours"


def test_dogpile_mutexes_leave_no_keys(make, map_name):
    backend = make(Dogpile).region.backend
    for number in range(100):
        mutex = backend.get_mutex(f"key-{number}")
        assert mutex.acquire()
        mutex.release()

    assert len(backend._mutexes) == 0


@pytest.mark.parametrize("kind", [Cachelib, Aiocache])
def test_clear_with_a_prefix_leaves_the_others(make, map_name, kind):
    whole = make(kind)
    whole.set("other", 1)
    if kind is Cachelib:
        part = shmrhash.cachelib.ShmCache(map_name, key_prefix="part:")
        part.set("key", 2)
        part.clear()
    else:
        part = shmrhash.aiocache.ShmCache(map_name, namespace="part:")
        asyncio.run(part.set("key", 2))
        asyncio.run(part.clear(namespace="part:"))

    assert len(whole.cache.shm) == 1
    assert whole.get("other") == 1


def test_flask_caching_is_one_line(make, map_name):
    app = flask.Flask("one_line")
    cache = flask_caching.Cache(
        app, config={"CACHE_TYPE": "shmrhash.cachelib.ShmCache", "CACHE_ARGS": [map_name]}
    )
    calls = []

    @app.route("/")
    @cache.cached(timeout=60)
    def page():
        calls.append(1)
        return "page"

    assert app.test_client().get("/").text == "page"
    assert in_child(lambda: app.test_client().get("/").text) == "page"
    assert app.test_client().get("/").text == "page"
    assert calls == [1]


def test_flask_session_is_shared(make, map_name):
    app = flask.Flask("sessions")
    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = shmrhash.cachelib.ShmCache(map_name)
    flask_session.Session(app)

    @app.route("/")
    def visit():
        flask.session["visits"] = flask.session.get("visits", 0) + 1
        return str(flask.session["visits"])

    client = app.test_client()
    assert client.get("/").text == "1"
    assert in_child(lambda: client.get("/").text) == "2"
    assert client.get("/").text == "3"


def test_cashews_unlocks_its_own_lock_only(make):
    backend = make(Cashews).cache

    async def use():
        assert await backend.set_lock("key", "mine", 60)
        assert not await backend.set_lock("key", "theirs", 60)
        assert not await backend.unlock("key", "theirs")
        assert await backend.is_locked("key")
        assert await backend.unlock("key", "mine")
        assert not await backend.is_locked("key")

    asyncio.run(use())


def test_requests_cache_serves_another_process(make, map_name):
    """The site answers the first process, and returns an error to the second, which gets the kept
    page."""
    make(RequestsCache)

    def fetch(status):
        session = CachedSession(backend=shmrhash.requests_cache.ShmCache(map_name))
        site = requests_mock.Adapter()
        site.register_uri("GET", "mock://site/", text="page", status_code=status)
        session.mount("mock://", site)
        answer = session.get("mock://site/")
        return answer.text, answer.from_cache

    assert in_child(fetch, 200) == ("page", False)
    assert fetch(503) == ("page", True)


def test_limits_are_the_caches(make):
    adapter = make(Django, max_entries=50, max_bytes=4 << 20)
    for number in range(200):
        adapter.set(f"key-{number}", number, timeout=None)

    assert len(adapter.cache.shm) == 50
    assert math.isinf(adapter.cache._seconds(None))
