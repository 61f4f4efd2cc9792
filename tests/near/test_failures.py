"""Failures around a near cache of a real server, case by case, and what its readers see then."""

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_servers
from support.creation_jobs import in_private_tmpfs
from support.stepping import segment_path
from support.waiting import until

import shmrhash
from shmrhash._near.cache import NearCache
from shmrhash._near.redis import RedisSource

PROGRAMS = near_servers.programs()
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no server of Redis or Valkey is installed")
FORK = multiprocessing.get_context("fork")
STALE = 0.4
HANGS = 1.5  # long enough for a tracker that works on a busy machine
LONG = 240.0  # a lease that lasts as long as the test
PATIENCE_S = 60
CLOCK = Path(__file__).parents[1] / "support" / "server_clock.c"


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.thorough] if at else [])
        for at, name in enumerate(PROGRAMS)
    ]
)
def server(request, tmp_path):
    made = near_servers.Server(PROGRAMS[request.param], tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_server(tmp_path):
    """A function that starts a server with these additional options."""
    made = []

    def make(*options, program=None):
        made.append(
            near_servers.Server(program or next(iter(PROGRAMS.values())), tmp_path, *options)
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def near_of(path, name, socket_timeout=PATIENCE_S, **options):
    client = redis.Redis(unix_socket_path=path, socket_timeout=socket_timeout)
    options = {"max_stale": STALE, "max_entries": 2000, "max_bytes": 1 << 21} | options
    return NearCache(RedisSource(client, ["k"]), name=name, **options)


def client_of(server):
    return redis.Redis(unix_socket_path=server.path)


def read(near, key):
    """Return the value of the key, or "error"."""
    try:
        return near.get(key)
    except redis.exceptions.RedisError:
        return "error"


# ---- processes ----


def track(path, name, heard, talk, max_stale):
    """Be the tracker. For each byte that arrives read k1, and report it and whether this process
    tracks. After the byte "G" this process holds the GIL until the next byte arrives."""
    with near_of(path, name, max_stale=max_stale) as near:
        near.ready(PATIENCE_S)
        heard.put((near.get("k1"), near.info()["tracks_here"]))
        while (byte := os.read(talk, 1)) != b"":
            if byte == b"G":
                ctypes.PyDLL(None).read(talk, ctypes.create_string_buffer(1), 1)
            heard.put((near.get("k1"), near.info()["tracks_here"]))


class Tracking:
    """A process that is the tracker, and its reports."""

    def __init__(self, path, name, max_stale=STALE):
        self.heard = FORK.Queue()
        there, self.talk = os.pipe()
        arguments = (path, name, self.heard, there, max_stale)
        self.process = FORK.Process(target=track, args=arguments)
        self.process.start()
        os.close(there)
        self.first = self.heard.get(timeout=PATIENCE_S)

    def asked(self):
        os.write(self.talk, b".")
        return self.heard.get(timeout=PATIENCE_S)

    def end(self):
        os.close(self.talk)
        self.process.kill()
        self.process.join()


@pytest.mark.parametrize("how", ["stopped", "starved"])
def test_a_tracker_that_does_not_run_is_replaced_and_never_believed_again(
    server, client, map_name, how
):
    """N1, N5: a tracker that is stopped, or starved by a C function that holds the GIL, loses its
    lease, and another process becomes the tracker."""
    client.set("k1", "old")
    tracking = Tracking(server.path, map_name, HANGS)
    try:
        assert tracking.first == (b"old", True)
        with near_of(server.path, map_name, max_stale=HANGS) as near:
            assert near.get("k1") == b"old"
            if how == "stopped":
                os.kill(tracking.process.pid, signal.SIGSTOP)
            else:
                os.write(tracking.talk, b"G")
                until(lambda: near.age() > HANGS)
            client.set("k1", "new")
            written = time.monotonic()
            while not near.info()["tracks_here"]:  # this process takes over
                began = time.monotonic()
                assert near.get("k1") == b"new" or began < written + HANGS
            until(lambda: near.age() < HANGS)
            assert near.get("k1") == b"new"
            if how == "stopped":
                os.kill(tracking.process.pid, signal.SIGCONT)
            else:
                os.write(tracking.talk, b".")
                tracking.heard.get(timeout=PATIENCE_S)
            until(lambda: not tracking.asked()[1])
            assert tracking.asked()[0] == b"new"
            client.set("k1", "newer")
            until(lambda: near.get("k1") == b"newer")
            until(lambda: tracking.asked()[0] == b"newer")
    finally:
        tracking.end()
    shmrhash.gc()


def test_when_all_processes_were_killed_the_next_one_finds_nothing_of_theirs(
    server, client, map_name
):
    """N2: a new process does not serve values that changed while no process lived."""
    client.set("k1", "old")
    all_of_them = [Tracking(server.path, map_name, LONG) for _ in range(2)]
    assert [each.first[0] for each in all_of_them] == [b"old"] * 2
    for each in all_of_them:
        each.end()
    client.set("k1", "new")

    with near_of(server.path, map_name, max_stale=LONG) as near:
        assert near.get("k1") == b"new"
        assert near.ready(PATIENCE_S)
        assert near.get("k1") == b"new"
    shmrhash.gc()


def test_a_tracker_that_does_not_read_is_cut_off_and_discards_everything(server, client, map_name):
    """The output buffer for a stopped tracker reaches its limit, so the server ends the connection.
    The tracker misses changes and therefore discards everything, and begins a new watch."""
    client.config_set("client-output-buffer-limit", "normal 65536 0 0")
    client.set("k1", "old")
    tracking = Tracking(server.path, map_name, LONG)
    try:
        with near_of(server.path, map_name, max_stale=LONG, track=False) as near:
            assert near.get("k1") == b"old"
            watches = near.info()["nodes"][0]["watches"]
            os.kill(tracking.process.pid, signal.SIGSTOP)
            number = 0
            while any("t" in one["flags"] for one in client.client_list()):  # until it is cut off
                with client.pipeline(transaction=False) as pipe:
                    for at in range(number, number + 1000):
                        pipe.set(f"k-of-many-that-nobody-has-read:{at}", 1)
                    pipe.execute()
                number += 1000
            client.set("k1", "new")
            os.kill(tracking.process.pid, signal.SIGCONT)
            until(lambda: near.info()["nodes"][0]["watches"] > watches)
            until(lambda: near.age() < LONG)
            assert near.get("k1") == b"new"
            assert tracking.asked() == (b"new", True)
    finally:
        tracking.end()
    shmrhash.gc()


def read_own_key(near, number, begin, heard):
    begin.wait()
    key = f"k{number}"
    heard.put((number, {near.get(key) for _ in range(200)}))
    until(lambda: near.get("k1") == b"changed")
    heard.put((number, "changed"))


def test_workers_that_are_forked_read_their_own_keys_and_one_of_them_tracks(
    server, client, map_name
):
    """N4, N5: children use the near cache that their parent opened. No child gets the answer to
    another one's question, and when the parent ends, one of the children becomes the tracker."""
    client.mset({f"k{number}": f"value {number}" for number in range(5)})
    begin, heard = FORK.Event(), FORK.Queue()
    with near_of(server.path, map_name) as near:
        assert near.ready(PATIENCE_S)
        near.get("k4")
        workers = [
            FORK.Process(target=read_own_key, args=(near, number, begin, heard))
            for number in range(4)
        ]
        for worker in workers:
            worker.start()
        begin.set()
        assert {near.get("k4") for _ in range(200)} == {b"value 4"}
        found = dict(heard.get(timeout=PATIENCE_S) for _ in workers)
        assert found == {number: {b"value %d" % number} for number in range(4)}
    client.set("k1", "changed")
    assert {heard.get(timeout=PATIENCE_S)[1] for _ in workers} == {"changed"}
    for worker in workers:
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0
    shmrhash.gc()


# ---- the network ----


class Proxy:
    """A proxy of a server. While `is_hole` is true, it forwards only the tracker's connection."""

    def __init__(self, server, folder):
        self.server, self.path = server, str(Path(folder) / "door")
        self.is_hole = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.ended = False
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        while select.select([self.listener], [], [], 0.02)[0] or not self.ended:
            if not select.select([self.listener], [], [], 0)[0]:
                continue
            ours = self.listener.accept()[0]
            theirs = socket.socket(socket.AF_UNIX)
            theirs.connect(self.server.path)
            self.threads.append(threading.Thread(target=self.carry, args=(ours, theirs)))
            self.threads[-1].start()

    def carry(self, ours, theirs):
        tracks = False
        with ours, theirs:
            while not self.ended:
                for end in select.select([ours, theirs], [], [], 0.02)[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    tracks = tracks or b"TRACKING" in data
                    if tracks or not self.is_hole:
                        (theirs if end is ours else ours).sendall(data)

    def end(self):
        self.ended = True
        for thread in self.threads:
            thread.join()
        self.listener.close()


def test_hits_go_on_and_misses_end_while_only_the_tracker_reaches_the_server(
    server, client, map_name, tmp_path
):
    proxy = Proxy(server, tmp_path)
    client.mset({"k1": "one", "k2": "two"})
    try:
        with near_of(proxy.path, map_name, socket_timeout=0.5, max_stale=4.0) as near:
            assert near.ready(PATIENCE_S)
            until(lambda: read(near, "k1") == b"one")
            until(lambda: near._look(b"k1", near._node_of(b"k1"), None))
            proxy.is_hole = True
            proofs = near._state.line(0).valid_until
            until(lambda: near._state.line(0).valid_until > proofs)
            assert near.get("k1") == b"one"
            for _ in range(2):  # the second time shows that the first left no claim
                with pytest.raises(redis.exceptions.TimeoutError):
                    near.get("k2")
            client.set("k1", "changed")
            until(lambda: read(near, "k1") == "error")
            proxy.is_hole = False
            until(lambda: read(near, "k2") == b"two")
            until(lambda: read(near, "k1") == b"changed")
    finally:
        proxy.end()


# ---- the server ----


@pytest.mark.parametrize("kept", ["log", "snapshot"])
def test_a_server_that_restarts_with_what_it_kept_is_read_as_it_is(make_server, map_name, kept):
    """After a restart the near cache has the server's values, also if the server's snapshot is
    older than the values that the near cache had."""
    options = ("--appendonly", "yes", "--appendfsync", "always") if kept == "log" else ()
    server = make_server(*options)
    with client_of(server) as client, near_of(server.path, map_name) as near:
        assert near.ready(PATIENCE_S)
        client.set("k1", "one")
        if kept == "snapshot":
            client.save()
        client.set("k1", "two")
        client.set("k2", "only in the log")
        until(lambda: near.get("k1") == b"two")
        assert near.get("k2") == b"only in the log"
        server.kill()
        server.start()
        until(lambda: client.exists("k1"))  # until the server has read its snapshot or log
        time.sleep(STALE)
        until(lambda: read(near, "k1") != "error")

        found = near.get("k1"), near.get("k2")

        assert found == ((b"two", b"only in the log") if kept == "log" else (b"one", None))
        until(lambda: near.age() < STALE)
        assert (near.get("k1"), near.get("k2")) == found


def test_a_key_that_the_server_evicts_is_removed_here(server, client, map_name):
    keys = [f"k{number}" for number in range(200)]
    client.mset(dict.fromkeys(keys, "here"))
    with near_of(server.path, map_name, max_stale=LONG) as near:
        assert near.ready(PATIENCE_S)
        assert len(near.get_many(keys)) == len(keys)
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", used + (1 << 20))
        number = 0
        while client.exists(*keys) > len(keys) // 2:  # until half are evicted
            number += 1
            client.set(f"other {number}", bytes(100_000))
        client.config_set("maxmemory", 0)
        there = {key for key in keys if client.exists(key)}

        until(lambda: near.get_many(keys).keys() == there)


def test_a_server_that_is_a_replica_for_a_while_is_watched_again(server, client, map_name):
    client.set("k1", "one")
    with near_of(server.path, map_name, on_outage="raise") as near:

        def found():
            with contextlib.suppress(shmrhash.Unavailable):
                return near.get("k1")

        until(lambda: found() == b"one")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        until(lambda: near.age() > STALE)
        with pytest.raises(shmrhash.Unavailable):
            near.get("k1")
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.set("k1", "two")
        until(lambda: found() == b"two")


@pytest.fixture
def clock_jump(tmp_path, monkeypatch):
    """A file with the seconds by which the wall clock is wrong for each server started now."""
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler")
    library, path = tmp_path / "clock.so", tmp_path / "jump"
    command = [*compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", CLOCK, "-o", library]
    subprocess.run(command, check=True)
    path.write_bytes(bytes(8))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_JUMP", str(path))
    return path


@pytest.mark.skipif(
    "redis" not in PROGRAMS, reason="no redis-server: others may be linked statically"
)
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_jump_of_the_servers_clock_makes_no_value_old(
    clock_jump, make_server, map_name, monkeypatch, seconds
):
    """After a jump forward the server expires the keys and tells of it. After a jump backward it
    keeps them longer, but the near cache's deadlines are of the monotonic clock."""
    server = make_server(program=PROGRAMS["redis"])
    monkeypatch.delenv("LD_PRELOAD")
    with client_of(server) as client, near_of(server.path, map_name, max_stale=LONG) as near:
        assert near.ready(PATIENCE_S)
        client.set("k1", "long", ex=600)

        def both_are_here():  # may need several attempts: k2 lives for 1.5 s
            client.set("k2", "short", px=1500)
            return (near.get("k1"), near.get("k2")) == (b"long", b"short")

        until(both_are_here)
        before = client.time()[0]
        clock_jump.write_bytes(seconds.to_bytes(8, "little", signed=True))
        assert abs(client.time()[0] - before - seconds) < 60

        if seconds > 0:
            until(lambda: (near.get("k1"), near.get("k2")) == (None, None))
            assert near.info()["nodes"][0]["epochs"] == 1
        else:
            reads = client.info("commandstats")["cmdstat_get"]["calls"]
            until(lambda: near._look(b"k2", near._node_of(b"k2"), None) is None)
            assert near.get("k1") == b"long"
            assert client.info("commandstats")["cmdstat_get"]["calls"] == reads
            client.set("k1", "new", ex=600)
            until(lambda: near.get("k1") == b"new")


# ---- the segment ----


def test_a_near_cache_without_room_returns_what_the_server_has(server, client, map_name):
    """Values that do not fit are returned but not kept, or evict others."""
    keys = [f"k{number}" for number in range(100)]
    values = {key: key.encode() * 3_000 for key in keys} | {"k-large": bytes(1 << 20)}
    client.mset(values)
    with near_of(server.path, map_name, max_stale=LONG, max_bytes=900_000) as near:
        assert near.ready(PATIENCE_S)
        for _ in range(2):
            assert near.get_many(values) == values
        stats = near.info()["entries"]
        assert stats["entries"] < len(values)
        assert stats["evicted_new"] + stats["evicted_kept"] + stats["evicted_block"] > 0
        client.set("k-large", "small")
        until(lambda: near.get("k-large") == b"small")


def read_without_memory(heard, server, name, folder):
    """Read more values than fit into memory; report the wrong ones, the free pages, and the number
    of entries."""
    os.environ["SHMRHASH_DIR"] = folder
    with near_of(server.path, name, max_stale=LONG) as near:
        assert near.ready(PATIENCE_S)
        near.get("k0")
        ballast = os.open(os.path.join(folder, "ballast"), os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while os.write(ballast, bytes(4096)):  # until the file system is full
                pass
        keys = [f"k{number}" for number in range(70)]
        wrong = [key for key in keys[:20] if near.get(key) != key.encode() * 1000]
        wrong += [key for key, value in near.get_many(keys).items() if value != key.encode() * 1000]
        wrong += [key for key in keys[:20] if asyncio.run(near.aget(key)) != key.encode() * 1000]
        wrong += [key for key in keys[:5] if near.get_or_set(key, list) != key.encode() * 1000]
        status = os.statvfs(folder)
        near._source._client.set("k0", "new")
        until(lambda: near.get("k0") == b"new")
        heard.put((wrong, status.f_bavail, near.info()["entries"]["entries"]))


def test_a_near_cache_on_a_full_tmpfs_returns_what_the_server_has(
    server, client, map_name, tmp_path
):
    client.mset({f"k{number}": f"k{number}" * 1000 for number in range(70)})
    folder, heard = tmp_path / "tiny", FORK.Queue()
    folder.mkdir()

    def job(gate):
        read_without_memory(heard, server, map_name, str(folder))

    child = FORK.Process(
        target=lambda: heard.put(in_private_tmpfs(None, str(folder), 2 << 20, job))
    )
    child.start()
    found = heard.get(timeout=4 * PATIENCE_S)
    child.join(PATIENCE_S)
    if found == "not permitted":
        pytest.skip("mounting a tmpfs is not permitted here")
    wrong, free_pages, entries = found
    assert child.exitcode == 0
    assert wrong == []
    assert free_pages == 0
    assert entries < 70


def test_a_near_cache_whose_segments_are_unlinked_goes_on_and_so_does_a_new_one(
    server, client, map_name
):
    client.set("k1", "one")
    with near_of(server.path, map_name) as old:
        assert old.ready(PATIENCE_S)
        assert old.get("k1") == b"one"
        for handle in (old._state.entries.handle, old._state.words):
            os.unlink(handle._path)
        with near_of(server.path, map_name) as new:
            assert new.ready(PATIENCE_S)
            assert new.get("k1") == b"one"
            until(lambda: sum("t" in one["flags"] for one in client.client_list()) == 2)
            client.set("k1", "two")
            until(lambda: (old.get("k1"), new.get("k1")) == (b"two", b"two"))


def read_the_damaged(server, name, seed, damage, heard):
    """Damage a segment of a near cache, read, and report the result of each read."""
    with near_of(server.path, name) as near:
        near.ready(PATIENCE_S)
        keys = [f"k{number}" for number in range(50)]
        near.get_many(keys)
        handle = near._state.words if damage == "lines" else near._state.entries.handle
        size = min(os.stat(handle._path).st_size, 8 << 20)
        with open(handle._path, "r+b") as file:
            file.seek((64, 4096)[seed % 2])  # the header, too, or only what is behind it
            file.write(random.Random(seed).randbytes(size - file.tell()))
        for key in keys[
            :: 1 + 20 * (seed % 2)
        ]:  # fewer reads, as each may wait for an owner that does not exist
            try:
                heard.put("right" if near.get(key) == b"value of " + key.encode() else "wrong")
            except shmrhash.Error as error:
                heard.put(type(error).__name__)
    heard.put("closed")


@pytest.mark.parametrize("damage", ["entries", "lines"])
def test_reads_of_a_damaged_segment_are_right_or_raise(make_server, map_name, seed, damage):
    """N4: each read of a damaged segment returns the right value or raises, and none hangs."""
    server = make_server()
    with client_of(server) as client:
        client.mset({f"k{number}": f"value of k{number}" for number in range(50)})
    outcomes = set()
    for number in range(seed, seed + 4):
        heard, name = FORK.Queue(), f"{map_name}-{number}"
        arguments = (server, name, number, damage, heard)
        child = FORK.Process(target=read_the_damaged, args=arguments)
        child.start()
        while (what := heard.get(timeout=PATIENCE_S)) != "closed":
            outcomes.add(what)
        child.join(PATIENCE_S)
        assert child.exitcode == 0
        for path in segment_path(name).parent.glob(name + "*"):
            path.unlink()
    assert outcomes <= {"right", "SegmentCorrupt", "FrozenMap", "LayoutMismatch", "LockTimeout"}
    assert outcomes - {"right"}
