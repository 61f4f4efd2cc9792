"""NearCache over servers of Redis and Valkey: whatever dies, stops or is cut off, no read is too
old."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_servers, refusing
from support.near import Written
from support.waiting import until

import shmrhash
from shmrhash._near.cache import NearCache
from shmrhash._near.redis import RedisSource
from shmrhash._near.tracker import Tracker

pytestmark = pytest.mark.skipif(
    not near_servers.programs(), reason="no server of Redis or Valkey is installed"
)
GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "near_cache.md"
FORK = multiprocessing.get_context("fork")
STALE = 0.4
PATIENCE_S = 30
READS_MIN = 1000  # the fewest in a storm


def near_of(server, name, **options):
    # This client tries once, and soon gives up waiting for a stopped server.
    client = redis.Redis(unix_socket_path=server.path, socket_timeout=0.5)
    options = {"max_stale": STALE, "max_entries": 2000, "max_bytes": 1 << 21} | options
    return NearCache(RedisSource(client, ["k"]), name=name, **options)


@pytest.fixture
def near(server, map_name):
    with near_of(server, map_name) as made:
        assert made.ready(PATIENCE_S)
        yield made


def gets_of(client):
    """Return how many GETs the server has executed."""
    return client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]


def test_a_worker_starts_while_the_server_is_away(server, client, map_name):
    client.set("k1", "one")
    server.kill()
    with near_of(server, map_name) as near:
        with pytest.raises(redis.exceptions.ConnectionError):
            near.get("k1")
        server.start()
        client.set("k1", "two")
        assert near.ready(PATIENCE_S)
        assert near.get("k1") == b"two"
        assert (near.info()["tracking"], near.info()["refusal"]) == ("bcast", "")


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
def test_a_worker_starts_while_the_server_dies_or_hangs(
    server, client, map_name, error, monkeypatch
):
    """The server greets the worker, and does not answer the next question, that of the probe; the
    worker starts all the same."""
    client.set("k1", "one")

    def fails(connection, prefixes):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("shmrhash._near.redis.probed", fails)
        near = near_of(server, map_name)
    with near:
        assert near.ready(PATIENCE_S)
        assert near.get("k1") == b"one"


def test_a_value_is_fetched_once_and_again_after_each_change(client, near):
    client.set("k1", "one")

    def asks_nobody():
        before = gets_of(client)
        return [near.get("k1") for _ in range(100)] == [b"one"] * 100 and gets_of(client) == before

    until(asks_nobody)  # the change by set() may be told after the first read
    for number in range(50):
        client.set("k1", number)
        until(lambda: near.get("k1") == b"%d" % number)  # noqa: B023 (called at once)
    client.delete("k1")
    until(lambda: near.get("k1") is None)


def ends_without_a_call(function):
    """Return whether a forked child can call this function 10,000 times without any system call."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            gc.disable()
            for _ in range(100):
                assert function() is not None  # Python allocates here
            refusing.die_of_any_call()
            for _ in range(10_000):
                function()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGSYS
    return status == 0


def test_a_hit_makes_no_system_call(server, client, map_name):
    if not ends_without_a_call(time.monotonic):
        pytest.skip("the clock of this machine is a system call")
    client.set("k1", bytes(100))
    with near_of(server, map_name, max_stale=8 * PATIENCE_S) as near:
        assert near.ready(PATIENCE_S)
        near.get("k1")
        with near_of(server, map_name, max_stale=8 * PATIENCE_S, track=False) as reader:
            assert ends_without_a_call(lambda: reader.get("k1"))
            assert not ends_without_a_call(lambda: client.get("k1"))


def test_own_writes_are_read_at_once(client, near):
    for number in range(200):
        assert near.set("k1", b"%d" % number)
        assert near.get("k1") == b"%d" % number
    assert near.delete("k1") == 1
    assert near.get("k1", "none") == "none"
    assert near.get_or_set("k1", lambda: b"made") == b"made"
    assert client.get("k1") == b"made"
    assert near.get_many(["k1", "k2"]) == {"k1": b"made"}


def test_a_deadline_of_the_server_holds_here(client, near):
    client.set("k1", "soon", px=150)
    until(lambda: near.get("k1") is None)
    assert client.exists("k1") == 0 or client.pttl("k1") <= 1


def test_coroutines_see_the_same(server, map_name, client):
    async def work():
        async with redis.asyncio.Redis(unix_socket_path=server.path) as theirs:
            source = RedisSource(theirs, ["k"])
            with NearCache(source, name=map_name, max_stale=STALE) as near:
                await asyncio.to_thread(near.ready, PATIENCE_S)
                await near.aset("k1", b"one")
                before = gets_of(client)
                found = await asyncio.gather(*(near.aget("k1") for _ in range(50)))
                assert found == [b"one"] * 50
                # One GET; or two, if the server tells of the write after the first.
                assert gets_of(client) - before in (1, 2)
                assert await near.aget_many(["k1", "k2"]) == {"k1": b"one"}
                assert await near.adelete("k1") == 1
                assert await near.aget("k1") is None

    asyncio.run(work())


def test_nothing_from_before_a_flush_a_restart_or_a_cut_is_served(server, client, near):
    def read():
        with contextlib.suppress(redis.exceptions.RedisError):
            return near.get("k1")
        return "error"

    for number, blow in enumerate(["flush", "cut", "restart", "cut", "flush", "restart"]):
        value = b"before %d" % number
        client.set("k1", value)
        until(lambda: read() == value)  # noqa: B023 (called at once)
        if blow == "flush":
            client.flushall()
        elif blow == "cut":
            client.client_kill_filter(_type="normal", skipme=True)
            client.delete("k1")
        else:
            server.kill()
            server.start()
        time.sleep(STALE)  # N1: after this, nothing from before the blow is served
        until(lambda: read() != "error")
        assert read() is None


def test_reads_of_a_stopped_server_end_as_on_outage_says(server, map_name, client):
    client.set("k1", "one")
    with (
        near_of(server, map_name) as fetching,
        near_of(server, map_name, on_outage="raise") as raising,
        near_of(server, map_name, on_outage=("stale", 60)) as serving,
    ):
        for near in (fetching, raising, serving):
            assert near.ready(PATIENCE_S)
            assert near.get("k1") == b"one"
        server.signal(signal.SIGSTOP)
        try:
            until(lambda: serving.age() > STALE)
            with pytest.raises(redis.exceptions.TimeoutError):
                fetching.get("k1")
            with pytest.raises(ConnectionError, match="does not answer"):
                raising.get("k1")
            assert serving.get("k1") == b"one"
        finally:
            server.signal(signal.SIGCONT)
        client.set("k1", "two")
        for near in (fetching, raising, serving):

            def read(near=near):
                with contextlib.suppress(ConnectionError, redis.exceptions.RedisError):
                    return near.get("k1")

            until(lambda: read() == b"two")


def hold(server, name, max_stale=STALE):
    """Keep a near cache open until this process is killed, or told to end (SIGTERM)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with near_of(server, name, max_stale=max_stale) as near:
        near.ready(PATIENCE_S)
        while True:  # until a signal ends this process
            signal.pause()


def test_one_process_tracks_for_all_and_another_one_when_it_is_killed(server, map_name, client):
    processes = [FORK.Process(target=hold, args=(server, map_name)) for _ in range(3)]
    for process in processes:
        process.start()
    with near_of(server, map_name, track=False) as near:
        assert near.ready(PATIENCE_S)
        for round_number in range(2):
            tracker = near.info()["tracker_pid"]
            client.set("k1", f"old {round_number}")
            until(lambda: near.get("k1") == b"old %d" % round_number)  # noqa: B023
            assert sum("t" in one["flags"] for one in client.client_list()) == 1
            assert client.info("stats")["tracking_total_items"] == 0
            (killed,) = [process for process in processes if process.pid == tracker]
            os.kill(tracker, signal.SIGKILL)
            killed.join()
            client.set("k1", f"new {round_number}")
            until(lambda: near.info()["tracker_pid"] != tracker)  # noqa: B023
            until(lambda: near.age() < STALE and near.get("k1") == b"new %d" % round_number)  # noqa: B023
    for process in processes:
        process.kill()
        process.join()
    shmrhash.gc()


def test_a_successor_takes_over_at_once_and_waits_for_no_beat(server, map_name, monkeypatch):
    """N5: at its next look a standby process finds the claim of the dead tracker free, and two
    successive questions give the first lease. The looks come after one slice of waiting each; with
    a wait for a beat the test would fail by its timeout."""
    looks = []
    look = Tracker._stand_by
    monkeypatch.setattr(Tracker, "_stand_by", lambda self: (looks.append(self.pid), look(self)))
    tracker = FORK.Process(target=hold, args=(server, map_name, 8 * PATIENCE_S))
    tracker.start()
    with near_of(server, map_name, track=False, max_stale=8 * PATIENCE_S) as near:
        assert near.ready(PATIENCE_S)
        node = near._node_of(b"k")
        before = near._state.line(node)
        assert before.pid == tracker.pid
        with near_of(server, map_name, max_stale=8 * PATIENCE_S):
            until(lambda: looks)
            tracker.kill()
            tracker.join()
            looks.clear()
            until(lambda: near._state.line(node).term != before.term)
            until(lambda: near._state.line(node).valid_until)
            assert len(looks) <= 2
            assert near._state.line(node).pid == os.getpid()
    shmrhash.gc()


def ask_all(server, name, begin, keys):
    with near_of(server, name, track=False, max_stale=PATIENCE_S, flight=PATIENCE_S) as near:
        begin.wait()
        for key in keys:
            near.get(key)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.thorough)])
def test_processes_that_miss_the_same_keys_ask_once_for_each(server, map_name, client, count):
    """N6: eight processes miss the same keys, and the server is asked once for each. (The lease is
    long because the tracker of a busy machine may be late.)"""
    keys = [f"k{number}" for number in range(count)]
    begin = FORK.Event()
    with near_of(server, map_name, max_stale=PATIENCE_S) as near:
        assert near.ready(PATIENCE_S)
        before = gets_of(client)
        askers = [
            FORK.Process(target=ask_all, args=(server, map_name, begin, keys)) for _ in "12345678"
        ]
        for each in askers:
            each.start()
        begin.set()
        for each in askers:
            each.join()
            assert each.exitcode == 0
        assert gets_of(client) == before + len(keys)


def test_the_program_of_the_guide_does_what_its_comments_say(server, client):
    if not GUIDE.exists():
        pytest.skip("the documents are not here")
    text, _ = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    text = text.replace('host="cache"', f"unix_socket_path={server.path!r}")
    done = {}
    exec(text, done)
    try:
        assert done["near"].get("user:7") == client.get("user:7") == b"new"
        assert client.get("user:8") == b"made"
        assert 0 < client.ttl("user:8") <= 60
    finally:
        done["near"].close()


class Storm:
    """A writer that never pauses, readers, and blows (kills, stops, cuts); reads are judged by
    acknowledged versions."""

    keys = tuple(b"k%d" % number for number in range(24))

    def __init__(self, server, name, seed):
        self.server, self.name, self.random = server, name, random.Random(seed)
        self.written = Written(self.keys)
        self.over = threading.Event()
        self.reads = 0
        self.wrong = []

    def write(self):
        with redis.Redis(unix_socket_path=self.server.path, socket_timeout=20) as client:
            chance = random.Random(1)
            while not self.over.is_set():
                key = chance.choice(self.keys)
                client.set(key, self.written.next_value(key))
                self.written.acknowledged(key, time.monotonic())
                time.sleep(chance.random() * 0.004)

    def blow(self, holders):
        kind = self.random.choice(["kill", "leave", "cut", "stop", "sleep"])
        with redis.Redis(unix_socket_path=self.server.path) as client:
            if kind == "cut":
                for one in client.client_list():
                    if "t" in one["flags"]:
                        client.client_kill_filter(_id=one["id"])
            elif kind == "sleep":
                client.execute_command("DEBUG", "SLEEP", self.random.random() * 2 * STALE)
            elif kind == "stop":
                self.server.signal(signal.SIGSTOP)
                time.sleep(self.random.random() * 2 * STALE)
                self.server.signal(signal.SIGCONT)
            else:
                at = self.random.randrange(len(holders))
                if kind == "kill":
                    holders[at].kill()
                else:  # ends by itself, as a worker that is recycled does
                    holders[at].terminate()
                holders[at].join()
                holders[at] = self.holder()

    def holder(self):
        made = FORK.Process(target=hold, args=(self.server, self.name), daemon=True)
        made.start()
        return made

    def run(self, blows):
        holders = [self.holder() for _ in range(3)]  # forked before this process has other threads
        writer = threading.Thread(target=self.write)
        writer.start()
        with near_of(self.server, self.name, track=False) as near:
            near.ready(PATIENCE_S)
            strikes = threading.Thread(target=self.strike, args=(holders, blows))
            strikes.start()
            while strikes.is_alive():
                key, began = self.random.choice(self.keys), time.monotonic()
                with contextlib.suppress(redis.exceptions.RedisError):
                    wrong = self.written.wrong(key, near.get(key), began, STALE)
                    self.reads += 1
                    self.wrong += [wrong] if wrong else []
            strikes.join()
            self.over.set()
            writer.join()
            time.sleep(STALE)
            with redis.Redis(unix_socket_path=self.server.path) as client:
                rest = {key: client.get(key) for key in self.keys}
            until(lambda: near.age() < STALE)
            assert {key: near.get(key) for key in self.keys} == rest
            near._state.entries.check()
        for holder in holders:
            holder.kill()
            holder.join()
        shmrhash.gc()

    def strike(self, holders, blows):
        """Strike this many blows, and more if there were few reads, because reads wait while the
        server is stopped."""
        done = 0
        while done < blows or (self.reads <= READS_MIN and done < 10 * blows):
            time.sleep(self.random.random() * STALE)
            self.blow(holders)
            done += 1


@pytest.mark.thorough
def test_no_read_is_older_than_max_stale(server, map_name, seed):
    """N1, N2, N5: trackers are killed, end, lose their connection or get late answers, and the
    server is stopped; no read is older than max_stale."""
    storm = Storm(server, map_name, seed)
    storm.run(blows=12)
    print(f"seed {seed}: {storm.reads} reads")
    assert storm.wrong == []
    assert storm.reads > READS_MIN
