"""NearCache over PostgreSQL: whatever dies, stops or is cut off, no value is too old."""

import contextlib
import multiprocessing
import os
import random
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from support import near_postgres

psycopg = pytest.importorskip("psycopg", reason="the client psycopg is not installed")

# ruff: noqa: E402 (after the skip)
from support.near_oracle import Oracle
from support.near_postgres import (
    PATIENCE_S,
    QUERY,
    STALE,
    TRACKERS,
    near_of,
    put,
    source_of,
    wait_for_tracker,
)
from support.waiting import until

from shmrhash import gc
from shmrhash._near import state
from shmrhash._near.tracker import Tracker
from shmrhash.postgres import PostgresSource

pytestmark = pytest.mark.skipif(bool(near_postgres.missing()), reason=near_postgres.missing())
FORK = multiprocessing.get_context("fork")


def test_nothing_from_before_a_cut_or_a_restart_is_served(postgres, map_name):
    def read():
        with contextlib.suppress(psycopg.Error):
            return near.get("k1")
        return "error"

    with near_of(postgres, map_name) as near:
        for number, blow in enumerate(["cut", "restart", "cut"]):
            with postgres.connect() as sql:
                put(sql, "1", f"before {number}")
                until(lambda: read() == f"before {number}")  # noqa: B023 (called at once)
                tracker = wait_for_tracker(sql)
                if blow == "cut":
                    sql.execute("SELECT pg_terminate_backend(%s)", [tracker])
                    sql.execute("DELETE FROM items")
            if blow == "restart":
                postgres.kill()
                postgres.start()
                with postgres.connect() as sql:
                    sql.execute("DELETE FROM items")
            time.sleep(STALE)  # N1: after this, nothing from before the blow is served
            until(lambda: read() != "error")
            assert read() is None


def test_reads_of_a_stopped_server_end_as_on_outage_says(postgres, map_name, sql):
    put(sql, "1", "one")
    kinds = ["fetch", "raise", ("stale", 60)]
    with contextlib.ExitStack() as stack:
        nears = [
            stack.enter_context(near_of(postgres, map_name, on_outage=kind, track=kind == "fetch"))
            for kind in kinds
        ]
        for near in nears:
            assert near.ready(PATIENCE_S)
            assert near.get("k1") == "one"
        postgres.signal(signal.SIGSTOP)
        try:
            until(lambda: nears[0].age() > STALE)
            with pytest.raises(TimeoutError):
                nears[0].get("k1")
            with pytest.raises(ConnectionError, match="does not answer"):
                nears[1].get("k1")
            assert nears[2].get("k1") == "one"
        finally:
            postgres.signal(signal.SIGCONT)
        put(sql, "1", "two")
        for near in nears:

            def read(near=near):
                with contextlib.suppress(ConnectionError, TimeoutError, psycopg.Error):
                    return near.get("k1")

            until(lambda: read() == "two")


def test_a_stopped_listener_ends_the_lease(postgres, sql, pg_near):
    """N1: a change is committed while its notification cannot arrive; after max_stale the new value
    is read."""
    put(sql, "1", "one")
    until(lambda: pg_near.get("k1") == "one")
    backend = wait_for_tracker(sql)
    os.kill(backend, signal.SIGSTOP)
    try:
        put(sql, "1", "two")
        time.sleep(STALE)
        assert pg_near.get("k1") == "two"
        put(sql, "1", "three")
        assert pg_near.get("k1") == "three"
    finally:
        os.kill(backend, signal.SIGCONT)
    until(lambda: pg_near.age() < STALE)


def test_the_test_of_the_lease_finds_a_near_cache_without_one(postgres, sql, map_name, monkeypatch):
    def extend(self, number, term, valid_until, well=state.State.extend):
        well(self, number, term, valid_until + (1 << 50) * (number < state.NODES_MAX))

    monkeypatch.setattr(state.State, "extend", extend)
    with near_of(postgres, map_name) as near:
        until(lambda: near._state.line(0) is not None and near._state.line(0).valid_until)
        with pytest.raises(AssertionError):
            test_a_stopped_listener_ends_the_lease(postgres, sql, near)


class SlowToBegin(PostgresSource):
    """A source that calls `between` twice while it begins a watch."""

    between = staticmethod(lambda: None)

    def _begin(self, listener, sink, node):
        listener.listen()
        self.between()
        sink.began(node)
        self.between()


class ListensLate(SlowToBegin):
    """A mutant: it begins the watch and extends the lease before it listens."""

    def _begin(self, listener, sink, node):
        sink.began(node)
        sink.proved(node, time.monotonic_ns())
        self.between()
        listener.listen()


@pytest.mark.parametrize("kind", [SlowToBegin, ListensLate])
def test_what_changes_while_a_watch_begins_is_not_served(postgres, map_name, sql, kind):
    """N2: a value that changes while a watch begins is not served later; the mutant that listens
    too late serves it."""
    put(sql, "1", "0")
    source = kind(postgres.address, {"k": QUERY})
    done = threading.Event()
    numbers = iter(range(1, 100))

    def between():
        near.get("k1")
        put(sql, "1", str(next(numbers)))

    with near_of(postgres, map_name, source, track=False) as near:
        source.between = between
        watcher = threading.Thread(
            target=source.watch, args=(_sink_of(near), done.is_set, STALE / 4), daemon=True
        )
        watcher.start()
        until(lambda: near.age() < STALE)
        wait_for_tracker(sql)
        until(lambda: near.info()["nodes"][0]["age"] < STALE / 4)
        last = sql.execute("SELECT value FROM items").fetchone()[0]
        found = near.get("k1")
        done.set()
        watcher.join()
        assert (found == last) == (kind is SlowToBegin)


def _sink_of(near):
    tracker = Tracker(near._state, near._source, near, STALE)
    tracker._turn = near._state.take_office()
    return tracker


@pytest.mark.thorough
def test_a_commit_that_waits_holds_the_proof(postgres, map_name, sql):
    """A transaction waits inside its commit; its notifications are already in the queue, but
    readers still see the old rows. The lease is not extended before the transaction has committed.
    """
    put(sql, "1", "one")
    with near_of(postgres, map_name) as near, postgres.connect() as other:
        assert near.ready(PATIENCE_S)
        until(lambda: near.get("k1") == "one")
        sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        sql.execute("SELECT pg_reload_conf()")
        sql.execute("SET synchronous_commit = local")
        try:
            until(lambda: other.execute("SHOW synchronous_standby_names").fetchone()[0] == "nobody")
            waiting = threading.Thread(target=put, args=(other, "1", "two"))
            waiting.start()
            until(lambda: near.age() > STALE)
            assert near.get("k1") == "one"
        finally:
            sql.execute("ALTER SYSTEM RESET synchronous_standby_names")
            sql.execute("SELECT pg_reload_conf()")
        waiting.join()
        until(lambda: near.get("k1") == "two" and near.age() < STALE)


class Pooler(threading.Thread):
    """A pooler that tells its clients another process number than the server's."""

    def __init__(self, folder, path):
        super().__init__(daemon=True)
        self.path, self.listener = path, socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.clients = []

    def run(self):
        with contextlib.suppress(OSError):
            while True:  # until close()
                client, _ = self.listener.accept()
                self.clients.append(threading.Thread(target=self.serve, args=(client,)))
                self.clients[-1].start()

    def serve(self, client):
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self.path)
            while True:  # until one of the two closes its connection
                for one in select.select([client, server], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    at = data.find(b"K\0\0\0\x0c") if one is server else -1
                    if at >= 0:
                        data = data[: at + 5] + b"\0\0\0\1" + data[at + 9 :]
                    (server if one is client else client).sendall(data)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()
        for each in self.clients:
            each.join()


def test_a_pooler_is_noticed_and_nothing_is_watched_through_it(postgres, map_name, tmp_path, sql):
    pooler = Pooler(tmp_path, str(postgres.folder / ".s.PGSQL.5432"))
    pooler.start()
    put(sql, "1", "one")
    address = f"host={tmp_path} user=tester dbname=postgres"
    source = PostgresSource(address, {"k": QUERY})
    with near_of(postgres, map_name, source, max_stale=0.1) as near:
        assert near.info()["tracking"] == "ttl"
        assert "pooler" in near.info()["refusal"]
        assert near.get("k1") == "one"
        put(sql, "1", "two")
        until(lambda: near.get("k1") == "two")
        assert [one.node for one in source.fetch([b"k1"])] == [-1]
    pooler.close()


@pytest.mark.thorough
def test_a_standby_is_read_and_not_kept_until_it_is_promoted(postgres, map_name, sql):
    put(sql, "1", "one")
    sql.close()
    postgres.kill()
    signal_file = Path(postgres.data) / "standby.signal"
    signal_file.touch()
    os.chmod(signal_file, 0o666)
    postgres.start()
    source = source_of(postgres)
    with near_of(postgres, map_name) as near:
        assert "standby" in near.info()["refusal"]
        assert near.get("k1") == "one"
        source.attach(near._state)
        assert [one.node for one in source.fetch([b"k1"])] == [-1]
        with postgres.connect() as admin:
            admin.execute("SELECT pg_promote()")
        assert [one.node >= 0 for one in source.fetch([b"k1"])] == [True]
    source.close()


def read_in_a_child(near, told):
    told.put(near.get("k1"))
    near.close()


def test_a_child_of_fork_has_connections_of_its_own(sql, pg_near):
    put(sql, "1", "one")
    until(lambda: pg_near.get("k1") == "one")
    backend = wait_for_tracker(sql)
    for _ in range(2):
        told = FORK.Queue()
        pg_near.invalidate("k1")
        child = FORK.Process(target=read_in_a_child, args=(pg_near, told))
        child.start()
        assert told.get(timeout=PATIENCE_S) == "one"
        child.join()
        assert child.exitcode == 0
    assert wait_for_tracker(sql) == backend
    pg_near.invalidate("k1")
    assert pg_near.get("k1") == "one"


def hold(server, name):
    """Keep a near cache open until this process is killed."""
    with near_of(server, name) as near:
        near.ready(PATIENCE_S)
        while True:  # until this process is killed
            signal.pause()


class Storm:
    """A writer that never pauses, a reader, processes that track, and blows against them: kills and
    stops."""

    def __init__(self, server, name, seed):
        self.server, self.name, self.random = server, name, random.Random(seed)
        self.oracle = Oracle([f"k{number}" for number in range(24)], STALE)
        self.over = threading.Event()
        self.blows = []

    def write(self):
        chance, sql = random.Random(1), None
        while not self.over.is_set():
            key = chance.choice(self.oracle.keys)
            value = self.oracle.next_value(key)
            try:
                sql = sql or self.server.connect()
                put(sql, key[1:], value)
                self.oracle.acknowledge(key)
            except psycopg.Error:
                sql = None
            time.sleep(chance.random() * 0.004)
        if sql is not None:
            sql.close()

    def holder(self):
        made = FORK.Process(target=hold, args=(self.server, self.name), daemon=True)
        made.start()
        return made

    def blow(self, holders):
        kind = self.random.choice(["kill", "pause", "cut", "stop", "listener", "restart"])
        self.blows.append(kind)
        at = self.random.randrange(len(holders))
        if kind == "kill":
            holders[at].kill()
            holders[at].join()
            holders[at] = self.holder()
        elif kind == "pause":
            self.pause(holders[at].pid)
        elif kind == "restart":
            self.server.restart()
        elif kind == "stop":
            self.server.signal(signal.SIGSTOP)
            time.sleep(self.random.random() * 2 * STALE)
            self.server.signal(signal.SIGCONT)
        else:
            with contextlib.suppress(psycopg.Error), self.server.connect() as sql:
                for (backend,) in sql.execute(TRACKERS).fetchall():
                    if kind == "cut":
                        sql.execute("SELECT pg_terminate_backend(%s)", [backend])
                    else:
                        self.pause(backend)

    def pause(self, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.random() * 2 * STALE)
            os.kill(pid, signal.SIGCONT)

    def strike(self, holders, count):
        for _ in range(count):
            time.sleep(self.random.random() * STALE)
            self.blow(holders)

    def run(self, count):
        holders = [self.holder() for _ in range(3)]  # forked before this process has other threads
        writer = threading.Thread(target=self.write)
        writer.start()
        with near_of(self.server, self.name, track=False) as near:
            near.ready(PATIENCE_S)
            strikes = threading.Thread(target=self.strike, args=(holders, count))
            strikes.start()
            while strikes.is_alive():
                key, began = self.random.choice(self.oracle.keys), time.monotonic()
                with contextlib.suppress(psycopg.Error, TimeoutError):
                    self.oracle.judge(key, near.get(key), began)
            strikes.join()
            self.over.set()
            writer.join()
            time.sleep(STALE)
            until(lambda: near.age() < STALE)
            with self.server.connect() as sql:
                rest = {f"k{key}": value for key, value in sql.execute("TABLE items")}
            assert near.get_many(self.oracle.keys) == rest
            near._state.entries.check()
        for holder in holders:
            holder.kill()
            holder.join()
        gc()


@pytest.mark.thorough
def test_no_read_is_older_than_max_stale(postgres, map_name, seed):
    """N1, N2, N5: trackers, their backends and the server are killed, stopped and started again."""
    storm = Storm(postgres, map_name, seed)
    storm.run(12)
    print(f"seed {seed}: {storm.oracle.reads} reads, {storm.blows}")
    assert storm.oracle.wrong == []
    assert storm.oracle.reads >= len(storm.oracle.keys)  # there may be few on a busy machine
