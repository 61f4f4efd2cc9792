"""Hosts that are network namespaces: a network that swallows packets makes no value stale."""

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
from support import near_servers
from support.near_oracle import Oracle
from support.waiting import until

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from shmrhash import NearCache, Unavailable
from shmrhash._near import state

EXAMPLE = Path(__file__).parents[2] / "examples" / "near_cache.py"
FORK = multiprocessing.get_context("fork")
STALE = 0.4
KEYS = [f"item:{number}" for number in range(20)]
CLONE_NEWNET = 0x40000000
TIMEOUT_SECONDS = 120


def missing():
    """Why there can be no namespaces with a server here; "" if there can."""
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
    """The network of the example, with one host."""
    made = example.Network("a")
    made.address = example.SERVER, example.PORT
    yield made
    made.close()


@pytest.fixture
def server(network, tmp_path):
    """A server in the namespace of the server. Its UNIX socket is for everybody."""
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
    """This process is on that host from now on."""
    file = os.open(f"/run/netns/{network.prefix}-{host}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(file, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    os.close(file)


def read(network, name, on_outage, over, told):
    """On host a: read keys until over is set; tell what was found, of each second-to-last read."""
    enter(network, "a")
    host, port = network.address
    client = redis.Redis(host, port, socket_timeout=0.3, socket_connect_timeout=0.3)
    sizes = {"max_entries": 1000, "max_bytes": 1 << 20}
    with NearCache(
        client, ["item:"], name=name, max_stale=STALE, on_outage=on_outage, value=str, **sizes
    ) as near:
        assert near.ready(30)
        while not over.is_set():
            found, errors = {}, 0
            for key in KEYS:
                began = time.monotonic()
                try:
                    found[key, near.get(key)] = began
                except (redis.exceptions.RedisError, Unavailable):
                    errors += 1
            told.put((time.monotonic(), found, errors, near.age()))
            time.sleep(0.002)
        near._state.entries.check()
    told.put(None)


class Play:
    """A writer beside the server, a reader on host a, and a cut between them."""

    def __init__(self, network, server, name, on_outage="fetch"):
        self.network = network
        self.oracle = Oracle(KEYS, STALE)
        self.client = redis.Redis(unix_socket_path=server.path)
        self.over, self.told = FORK.Event(), FORK.Queue()
        arguments = network, name, on_outage, self.over, self.told
        self.reader = FORK.Process(target=read, args=arguments, daemon=True)
        self.reader.start()
        self.seen = []

    def write(self, until_then):
        """Write versions of the keys, one after the other, until the condition holds."""

        def one_of_each():
            for key in KEYS:
                self.client.set(key, self.oracle.next_value(key))
                self.oracle.acknowledge(key)
                time.sleep(0.005)
            self.hear()
            return until_then()

        until(one_of_each)

    def hear(self):
        """Take what the reader has told."""
        while not self.told.empty():
            self.seen.append(self.told.get())

    def reads_after(self, moment, *, failed=False):
        """Whether a round that ended later had reads; or failures."""
        return any(
            ended > moment + STALE and (errors if failed else found and age < STALE)
            for ended, found, errors, age in self.seen
        )

    def play(self, seconds):
        """Undisturbed, cut off for some seconds, and mended; then judge what was read."""
        self.write(lambda: self.reads_after(0))
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
        self.client.close()
        for _, found, _, _ in self.seen:
            for (key, value), began in found.items():
                self.oracle.judge(key, value, began)
        return cut, mended


@pytest.mark.parametrize("on_outage", ["fetch", "raise"])
def test_a_host_that_is_cut_off_serves_nothing_old_and_recovers(
    network, server, map_name, on_outage
):
    """N1: packets vanish in both directions, and no connection is closed."""
    play = Play(network, server, map_name, on_outage)

    cut, mended = play.play(3 * STALE)

    assert play.oracle.wrong == []
    assert play.oracle.reads > 500
    assert play.reads_after(cut, failed=True)
    last = max(began for _, found, _, _ in play.seen for began in found.values())
    assert last > mended


def test_the_judge_finds_a_near_cache_without_lease(network, server, map_name, monkeypatch):
    def extend(self, number, term, valid_until, well=state.State.extend):
        well(self, number, term, valid_until + (1 << 50) * (number < state.NODES_MAX))

    monkeypatch.setattr(state.State, "extend", extend)
    play = Play(network, server, map_name)

    with contextlib.suppress(AssertionError):  # its age() is wrong, too
        play.play(3 * STALE)

    assert play.oracle.wrong


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
