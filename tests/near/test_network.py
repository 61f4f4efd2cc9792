"""Hosts that are network namespaces: while the network swallows packets, no value is too old."""

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import near_postgres, near_servers
from support.near_oracle import Oracle
from support.waiting import until

redis = pytest.importorskip("redis", reason="the client redis is not installed")
ERRORS = [OSError, redis.exceptions.RedisError]
with contextlib.suppress(ImportError):
    import psycopg

    ERRORS.append(psycopg.Error)

# ruff: noqa: E402 (after the skip)
from shmrhash import NearCache
from shmrhash._near import state
from shmrhash._near.triggers import triggers

EXAMPLE = Path(__file__).parents[2] / "examples" / "near_cache.py"
FORK = multiprocessing.get_context("fork")
STALE = 0.4
OPTIONS = {"max_stale": STALE, "value": str, "max_entries": 1000, "max_bytes": 1 << 20}
KEYS = [f"item:{number}" for number in range(20)]
CLONE_NEWNET = 0x40000000
TIMEOUT_SECONDS = 120


def missing():
    """Return why namespaces with a server cannot be made here, or "" if they can."""
    if not near_servers.programs():
        return "no server of Redis or Valkey is installed"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces take root and the program ip"
    name = f"near-probe-{os.getpid()}"
    probe = f"ip netns add {name} && ip -n {name} link add switch type bridge"
    done = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def _possible():
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("near_cache_example", EXAMPLE)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def network(example):
    """The network of the example, with one host besides the server's."""
    made = example.Network("a")
    made.address = example.SERVER, example.PORT
    yield made
    made.close()


@pytest.fixture
def server(network, tmp_path):
    """A server in a namespace of its own; processes in all namespaces can use its UNIX socket."""
    program = tmp_path / "program"
    inside = f"ip netns exec {network.prefix}-server {next(iter(near_servers.programs().values()))}"
    program.write_text(f'#!/bin/sh\nexec {inside} "$@"\n')
    program.chmod(0o755)
    host, port = network.address
    options = "--bind", host, "--port", str(port), "--protected-mode", "no"
    made = near_servers.Server(str(program), tmp_path, *options)
    yield made
    made.close()


def enter(network, host):
    """Move this process into that host's namespace."""
    file = os.open(f"/run/netns/{network.prefix}-{host}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(file, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    os.close(file)


def redis_near(network, name, on_outage):
    host, port = network.address
    client = redis.Redis(host, port, socket_timeout=0.3, socket_connect_timeout=0.3)
    return NearCache(client, ["item:"], name=name, on_outage=on_outage, **OPTIONS)


def postgres_near(network, name, on_outage):
    from shmrhash.postgres import PostgresSource

    address = f"host={network.address[0]} user=tester dbname=postgres connect_timeout=2"
    source = PostgresSource(address, {"item:": near_postgres.QUERY}, timeout=0.3)
    return NearCache(source, name=name, on_outage=on_outage, **OPTIONS)


def read(network, make, name, on_outage, over, told):
    """Read keys on host a until `over` is set; report the values, and how many reads failed."""
    enter(network, "a")
    with make(network, name, on_outage) as near:
        assert near.ready(30)
        while not over.is_set():
            found, errors = {}, 0
            for key in KEYS:
                began = time.monotonic()
                try:
                    found[key, near.get(key)] = began
                except tuple(ERRORS):
                    errors += 1
            told.put((time.monotonic(), found, errors, near.age()))
            time.sleep(0.002)
        near._state.entries.check()
    told.put(None)


class Play:
    """A writer beside the server, a reader on host a, and a cut of the network between them."""

    def __init__(self, network, make, put, name, on_outage="fetch"):
        """The function make() returns the reader's near cache; put() writes a key at the server."""
        self.network = network
        self.oracle = Oracle(KEYS, STALE)
        self.put = put
        self.over, self.told = FORK.Event(), FORK.Queue()
        arguments = network, make, name, on_outage, self.over, self.told
        self.reader = FORK.Process(target=read, args=arguments, daemon=True)
        self.reader.start()
        self.seen = []

    def write(self, until_then):
        """Write versions of the keys, one key after the other, until the condition holds."""

        def one_of_each():
            for key in KEYS:
                self.put(key, self.oracle.next_value(key))
                self.oracle.acknowledge(key)
                time.sleep(0.005)
            self.hear()
            return until_then()

        until(one_of_each)

    def hear(self):
        """Take over the reports that the reader has sent."""
        while not self.told.empty():
            self.seen.append(self.told.get())

    def reads_after(self, moment, *, failed=False):
        """Return whether a round that ended STALE after this moment had reads or, if asked for,
        failures."""
        return any(
            ended > moment + STALE and (errors if failed else found and age < STALE)
            for ended, found, errors, age in self.seen
        )

    def rounds_since(self, moment):
        """Return how many rounds without a failure began after this moment."""
        self.hear()
        whole = (found for _, found, errors, _ in self.seen if found and not errors)
        return sum(min(found.values()) > moment for found in whole)

    def play(self, seconds):
        """Let both run undisturbed, cut the network for some seconds, mend it, and judge all reads;
        return the moments of the cut and the mending."""
        self.write(lambda: self.reads_after(0))
        calm = time.monotonic()
        until(lambda: self.rounds_since(calm) >= 3)  # by now the host has all keys in memory
        self.network.cut("a")
        cut = time.monotonic()
        self.write(lambda: time.monotonic() > cut + seconds)
        self.network.mend("a")
        mended = time.monotonic()
        self.write(lambda: self.reads_after(mended))
        self.over.set()
        while (said := self.told.get(timeout=30)) is not None:
            self.seen.append(said)
        self.reader.join()
        for _, found, _, _ in self.seen:
            for (key, value), began in found.items():
                self.oracle.judge(key, value, began)
        return cut, mended


@pytest.fixture
def put(server):
    with redis.Redis(unix_socket_path=server.path) as client:
        yield client.set


def assert_cut_and_mended(play):
    __tracebackhide__ = True
    cut, mended = play.play(3 * STALE)

    assert play.oracle.wrong == []
    assert play.oracle.reads >= 2 * len(KEYS)
    assert play.reads_after(cut, failed=True)
    last = max(began for _, found, _, _ in play.seen for began in found.values())
    assert last > mended


@pytest.mark.parametrize("on_outage", ["fetch", "raise"])
def test_a_host_that_is_cut_off_serves_nothing_old_and_recovers(network, put, map_name, on_outage):
    """N1: packets vanish in both directions, while no connection is closed. The reader serves no
    old value, and recovers."""
    assert_cut_and_mended(Play(network, redis_near, put, map_name, on_outage))


def test_the_judge_finds_a_near_cache_without_a_lease(network, put, map_name, monkeypatch):
    def extend(self, number, term, valid_until, well=state.State.extend):
        well(self, number, term, valid_until + (1 << 50) * (number < state.NODES_MAX))

    monkeypatch.setattr(state.State, "extend", extend)
    play = Play(network, redis_near, put, map_name)

    with contextlib.suppress(AssertionError):  # the mutant's age() is wrong, too
        play.play(3 * STALE)

    assert play.oracle.wrong


@pytest.mark.thorough
@pytest.mark.skipif(bool(near_postgres.missing()), reason=near_postgres.missing())
def test_a_host_that_is_cut_off_from_postgres_serves_nothing_old(network, map_name):
    """N1: the same as the test above, with a server of PostgreSQL."""
    host, _ = network.address
    server = near_postgres.Server(host, lambda: enter(network, "server"))
    try:
        near_postgres.make_table(server)
        with server.connect() as sql:
            sql.execute(triggers("items", "id", "item:"))

            def put(key, value):
                near_postgres.put(sql, key.removeprefix("item:"), value)

            assert_cut_and_mended(Play(network, postgres_near, put, map_name))
    finally:
        server.close()


@pytest.mark.thorough
def test_the_example_of_two_hosts_ends_well(tmp_path):
    server = next(iter(near_servers.programs().values()))
    options = "--workers", "2", "--kills", "4", "--seconds", "1", "--cut", "1.5"

    done = subprocess.run(
        [sys.executable, EXAMPLE, "--server", server, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("right\n")
    assert "4 workers were killed" in done.stdout
    assert "it tells 2 connections of changes" in done.stdout
    (reads,) = re.findall(r"([\d,]+) reads of 100 keys", done.stdout)
    assert int(reads.replace(",", "")) > 10_000


def test_the_example_says_what_it_needs(example, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert example.main(["--server", "/bin/true"]) == 2
    assert "iproute2" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert example.main([]) == 2
    assert "run it as root" in capsys.readouterr().err
