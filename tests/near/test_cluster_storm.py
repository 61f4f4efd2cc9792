"""Storms over a cluster: failovers, moves of slots, kills and stops; acknowledged versions judge.

What the servers themselves lose in a failover is found out by the writers, and no one else
(support/near_ledger.py).
"""

import contextlib
import multiprocessing
import random
import signal
import threading
import time
import traceback

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import near_servers
from support.near_cluster import until as until_well
from support.near_ledger import Ledger
from support.waiting import until

from shmrhash import NearCache, gc
from shmrhash._near.clusterwatch import Watch
from shmrhash._near.topology import slot_of

pytestmark = pytest.mark.skipif(
    not near_servers.programs(), reason="no server of Redis or Valkey is installed"
)
FORK = multiprocessing.get_context("fork")
KEYS = tuple(f"k{number}" for number in range(24))
WRITERS = 3
STALE = 0.4
READS = 100  # between two blows, at least
PATIENCE_S = 60
BLOWS = ("agreed failover", "kill", "freeze", "stop", "cut", "holder", "move", "move", "move")


def near_of(cluster, name, **options):
    client = cluster.client(socket_timeout=0.5)
    options = {"max_stale": STALE, "max_entries": 2000, "max_bytes": 1 << 21} | options
    return NearCache(client, ["k"], name=name, **options)


def hold(cluster, name):
    """Have a near cache until this process is killed."""
    with near_of(cluster, name) as near:
        near.ready(PATIENCE_S)
        while True:  # until it is killed
            signal.pause()


class Storm:
    """Writers that never pause, a reader, and blows."""

    def __init__(self, cluster, name, seed):
        self.cluster, self.name, self.random = cluster, name, random.Random(seed)
        self.ledger = Ledger(KEYS, STALE)
        self.over = threading.Event()
        self.blows = []
        self.trouble = []
        self.errors = 0

    def write(self, keys, seed):
        """Write versions of these keys, each once: what ended in an error is not tried again."""
        chance = random.Random(seed)
        with self.cluster.client(socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            while not self.over.is_set():
                key = chance.choice(keys)
                try:
                    self.ledger.write(client, key, chance.random() < 0.3)
                except redis.exceptions.RedisError:
                    self.errors += 1
                    time.sleep(0.02)
                time.sleep(chance.random() * 0.01)

    def read(self, near):
        while not self.over.is_set():
            key, began = self.random.choice(KEYS), time.monotonic()
            try:
                self.ledger.read(key, near.get(key), began)
            except redis.exceptions.RedisError:
                self.errors += 1
            time.sleep(0.0003)

    def holder(self):
        made = FORK.Process(target=hold, args=(self.cluster, self.name), daemon=True)
        made.start()
        return made

    def blow(self, kind, holders, near):
        chance, cluster = self.random, self.cluster
        primary = chance.choice(cluster.primaries())
        if kind == "agreed failover":
            cluster.fail_over(primary)
        elif kind == "kill":
            replica = cluster.replica(primary)
            primary.kill()
            until_well(replica.is_primary, "the replica does not take over")
            primary.start()
        elif kind == "freeze":
            self.freeze(primary, near)
        elif kind == "stop":
            primary.signal(signal.SIGSTOP)
            time.sleep(chance.random() * 2 * STALE)
            primary.signal(signal.SIGCONT)
        elif kind == "cut":
            for line in primary.ask("CLIENT", "LIST").decode().splitlines():
                words = dict(word.partition("=")[::2] for word in line.split())
                if "t" in words["flags"]:
                    primary.ask("CLIENT", "KILL", "ID", words["id"])
        elif kind == "holder":
            at = chance.randrange(len(holders))
            holders[at].kill()
            holders[at].join()
            holders[at] = self.holder()
        else:
            slot = slot_of(chance.choice(KEYS).encode())
            source = cluster.owner(slot)
            others = [node for node in cluster.primaries() if node is not source]
            cluster.move_slot(slot, chance.choice(others))
        cluster.wait()

    def freeze(self, primary, near):
        """A primary stops until it has been replaced, and wakes. Its own clients, the reader among
        them, know by then: what it would answer before it learns is its own fault, not ours."""
        replica = self.cluster.replica(primary)
        primary.signal(signal.SIGSTOP)
        until_well(replica.is_primary, "the replica does not take over")
        until(lambda: self.has_left(near, primary))
        primary.signal(signal.SIGCONT)

    def has_left(self, near, primary):
        return ("127.0.0.1", primary.port) not in near._source._router.table

    def strike(self, kinds, holders, near):
        for kind in kinds:
            time.sleep(self.random.random() * STALE)
            wanted = self.ledger.reads + READS
            until(lambda: self.ledger.reads >= wanted or self.trouble)  # noqa: B023
            self.blows.append(kind)
            self.blow(kind, holders, near)

    def thread(self, function, *arguments):
        """A thread whose failure is the storm's."""

        def run():
            try:
                function(*arguments)
            except Exception:
                self.trouble.append(traceback.format_exc())

        return threading.Thread(target=run)

    def run(self, kinds):
        holders = [self.holder() for _ in range(2)]  # before any thread of this process
        try:
            with near_of(self.cluster, self.name, track=False) as near:
                assert near.ready(PATIENCE_S)
                self.rage(kinds, holders, near)
                self.settle(near)
        finally:
            for each in holders:
                each.kill()
                each.join()
            gc()

    def rage(self, kinds, holders, near):
        """Write, read and strike until all blows are done."""
        threads = [
            self.thread(self.write, KEYS[number::WRITERS], number) for number in range(WRITERS)
        ]
        threads.append(self.thread(self.read, near))
        strikes = self.thread(self.strike, kinds, holders, near)
        for thread in (*threads, strikes):
            thread.start()
        strikes.join()
        self.over.set()
        for thread in threads:
            thread.join()
        print(*self.trouble, sep="\n")
        assert not self.trouble, self.blows

    def settle(self, near):
        """One more write finds out what was lost; then every read equals the servers'."""
        with self.cluster.client() as client:
            for key in KEYS:
                self.ledger.write(client, key, self.random.random() < 0.3)
            time.sleep(STALE)
            until(lambda: near.age() < STALE)
            rest = {key: client.get(key) for key in KEYS}
        assert {key: near.get(key) for key in KEYS} == rest
        near._state.entries.check()


def judged(cluster, name, seed, kinds):
    storm = Storm(cluster, name, seed)
    storm.run(kinds)
    ledger = storm.ledger
    print(
        f"seed {seed}: {ledger.reads} reads, {len(ledger.wrong())} wrong, {storm.errors} errors, "
        f"{ledger.lost()} writes lost by the servers, blows {storm.blows}"
    )
    return ledger


@pytest.mark.thorough
@pytest.mark.parametrize("shared_cluster", near_servers.cluster_programs()[:1], indirect=True)
def test_no_read_is_older_than_max_stale(cluster, map_name, seed):
    """N1, N2, N5."""
    kinds = [*BLOWS, "stop"]
    random.Random(seed).shuffle(kinds)
    ledger = judged(cluster, map_name, seed, kinds)

    assert ledger.wrong() == []
    assert ledger.reads >= READS * len(kinds)


@pytest.mark.long
def test_no_read_is_older_than_max_stale_in_a_long_storm(cluster, map_name, seed):
    chance = random.Random(seed)
    ledger = judged(cluster, map_name, seed, [chance.choice(BLOWS) for _ in range(100)])

    assert ledger.wrong() == []


def begins_only(right):
    """The topology is read when the watch of a node begins, and never again."""

    def compare(self, primary, view):
        if primary.right is None:
            right(self, primary, view)

    return compare


@pytest.mark.long
def test_the_oracle_finds_a_watch_that_reads_the_topology_once(
    cluster, map_name, seed, monkeypatch
):
    """In a few storms of moves. test_cluster.py finds it by a schedule of its own."""
    monkeypatch.setattr(Watch, "_compare", begins_only(Watch._compare))
    monkeypatch.setattr(Watch, "_is_believed", lambda self, primary: True)
    for number in range(10):
        with contextlib.suppress(AssertionError):  # at rest it may be wrong as well
            if judged(cluster, f"{map_name}{number}", seed + number, ["move"] * 60).wrong():
                return
    pytest.fail("not found in 10 storms")
