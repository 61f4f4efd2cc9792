"""NearCache over a cluster of Redis or Valkey: routing, invalidation by each primary, and moves of
slots."""

import asyncio
import contextlib
import multiprocessing
import re
import signal
import time
from pathlib import Path

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from support import near_cluster, near_servers
from support.near_cluster import until as until_well
from support.waiting import until

from shmrhash import NearCache, Unavailable, gc
from shmrhash._near.cluster import ClusterSource
from shmrhash._near.clusterwatch import Watch
from shmrhash._near.state import State
from shmrhash._near.topology import slot_of

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not near_servers.programs(), reason="no server of Redis or Valkey is installed"
    ),
]
GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "near_cache.md"
FORK = multiprocessing.get_context("fork")
KEYS = [f"k{number}" for number in range(30)]  # in slots of all primaries
STALE = 0.4
CLUSTERS_MAX = 5
PATIENCE_S = 60


def near_of(cluster, name, **options):
    client = cluster.client(socket_timeout=0.5)
    options = {"max_stale": STALE, "max_entries": 2000, "max_bytes": 1 << 21} | options
    return NearCache(client, ["k"], name=name, **options)


@pytest.fixture
def near(cluster, map_name):
    with near_of(cluster, map_name) as made:
        assert made.ready(PATIENCE_S)
        yield made


@pytest.fixture
def make_cluster(tmp_path):
    """A function that makes clusters, one at a time, which a test may leave in any state."""
    made = []

    def make():
        for one in made:
            one.close()
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(near_cluster.Cluster(next(iter(near_servers.programs().values())), folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def own_cluster(make_cluster):
    return make_cluster()


@pytest.fixture
def client(cluster):
    with cluster.client() as made:
        yield made


def gets_of(cluster):
    """Return how many GETs the servers have executed."""
    texts = [node.ask("INFO", "commandstats").decode() for node in cluster.living()]
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for text in texts
        for line in text.splitlines()
        if line.startswith("cmdstat_get:")
    )


def trackers_of(node):
    return sum("flags=tB" in line for line in node.ask("CLIENT", "LIST").decode().splitlines())


def values_of(near, keys=KEYS):
    return [near.get(key) for key in keys]


def read(near, key):
    """Return the present value of a key, or "error" if no server answers for it."""
    with contextlib.suppress(redis.exceptions.RedisError, Unavailable):
        return near.get(key)
    return "error"


def key_at(cluster, node):
    """Return one of the keys whose slot this node owns."""
    slots = node.owners()[node.id].split()
    spans = [(int(one.partition("-")[0]), int(one.partition("-")[2] or one)) for one in slots]
    return next(key for key in KEYS if any(a <= slot_of(key.encode()) <= b for a, b in spans))


def test_each_primary_tells_its_changes_and_a_value_is_fetched_once(cluster, client, near):
    """N1, N3, N6: the tracker has one connection to each primary and none to a replica, each value
    is fetched once, and each change is seen."""
    for key in KEYS:
        client.set(key, "one")
    until(lambda: values_of(near) == [b"one"] * len(KEYS))
    until(lambda: near.info()["entries"]["entries"] > len(KEYS))
    before = gets_of(cluster)
    for _ in range(5):
        assert values_of(near) == [b"one"] * len(KEYS)
        assert near.get_many(KEYS) == dict.fromkeys(KEYS, b"one")
    assert gets_of(cluster) == before
    for key in KEYS:
        client.set(key, "two")
    until(lambda: values_of(near) == [b"two"] * len(KEYS))
    for key in KEYS[:10]:
        assert near.set(key, b"three")
        assert near.get(key) == b"three"
    assert near.delete(*KEYS) == len(KEYS)
    assert near.get_many(KEYS) == {}
    assert near.get_or_set("k1", lambda: b"made") == b"made" == client.get("k1")
    until(lambda: all(trackers_of(node) == node.is_primary() for node in cluster.nodes))
    nodes = near.info()["nodes"].values()
    assert sorted(each["server"] for each in nodes if each["age"] < STALE) == sorted(
        f"127.0.0.1:{node.port}" for node in cluster.primaries()
    )


def test_coroutines_see_the_same(cluster, map_name):
    async def work():
        port = cluster.nodes[0].port
        async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port) as theirs:
            with NearCache(theirs, ["k"], name=map_name, max_stale=STALE) as near:
                assert await asyncio.to_thread(near.ready, PATIENCE_S)
                for key in KEYS:
                    await near.aset(key, b"one")
                await near.aget_many(KEYS)
                before = gets_of(cluster)
                found = await asyncio.gather(*(near.aget(key) for key in KEYS * 3))
                assert found == [b"one"] * len(KEYS) * 3
                assert gets_of(cluster) <= before + len(KEYS)
                assert near.set("k1", b"without await")
                assert await near.aget("k1") == b"without await"
                assert await near.adelete(*KEYS) == len(KEYS)
                assert await near.aget_many(KEYS) == {}

    asyncio.run(work())


def hold(cluster, name):
    """Keep a near cache open until this process is killed."""
    with near_of(cluster, name) as near:
        near.ready(PATIENCE_S)
        while True:  # until this process is killed
            signal.pause()


def test_the_processes_of_a_host_have_one_connection_to_each_primary(cluster, map_name, client):
    """N5, N6: three processes have one connection to each primary; when the tracker is killed,
    another process becomes the tracker."""
    holders = [FORK.Process(target=hold, args=(cluster, map_name)) for _ in range(3)]
    for each in holders:
        each.start()
    with near_of(cluster, map_name, track=False) as near:
        assert near.ready(PATIENCE_S)
        for key in KEYS:
            client.set(key, "old")
        until(lambda: values_of(near) == [b"old"] * len(KEYS))
        assert [trackers_of(node) for node in cluster.primaries()] == [1, 1, 1]
        tracker = near.info()["tracker_pid"]
        (killed,) = [each for each in holders if each.pid == tracker]
        killed.kill()
        killed.join()
        for key in KEYS:
            client.set(key, "new")
        time.sleep(STALE)
        assert values_of(near) == [b"new"] * len(KEYS)
        until(lambda: near.info()["tracker_pid"] != tracker)
        until(lambda: near.age() < STALE)
        assert [trackers_of(node) for node in cluster.primaries()] == [1, 1, 1]
    for each in holders:
        each.kill()
        each.join()
    gc()


def test_nothing_from_before_an_agreed_failover_is_served(cluster, client, near):
    """N2: after the failover no value from before it is served, and the watches of the other
    primaries continue."""
    for key in KEYS:
        client.set(key, "one")
    until(lambda: values_of(near) == [b"one"] * len(KEYS))
    old = cluster.primaries()[0]
    kept = key_at(cluster, cluster.primaries()[1])
    lines = near.info()["nodes"]
    other = next(
        number
        for number, line in lines.items()
        if str(cluster.primaries()[1].port) in line["server"]
    )
    cluster.fail_over(old)
    for key in KEYS:
        client.set(key, "two")
    time.sleep(STALE)
    assert values_of(near) == [b"two"] * len(KEYS)
    until(lambda: near.age() < STALE)
    until(lambda: trackers_of(old) == 0)
    assert near.get(kept) == b"two"
    after = near.info()["nodes"]
    assert after[other]["watches"] == lines[other]["watches"], "its watch went on"
    until(lambda: sum(line["age"] < STALE for line in near.info()["nodes"].values()) == 3)


def test_keys_of_other_primaries_are_hits_while_one_is_dead(cluster, client, near):
    """N2, N5: until a replica has taken over from the dead primary, keys of the others are hits;
    after that, its keys have the new values."""
    for key in KEYS:
        client.set(key, "one")
    until(lambda: values_of(near) == [b"one"] * len(KEYS))
    dead, living = cluster.primaries()[:2]
    lost, kept = key_at(cluster, dead), key_at(cluster, living)
    for node in cluster.nodes:
        node.ask("WAIT", 1, 1000) if node.is_primary() else None
    replica = cluster.replica(dead)
    dead.kill()
    before = gets_of(cluster)
    while not replica.is_primary():
        assert near.get(kept) == b"one"
        time.sleep(0.005)
    assert gets_of(cluster) <= before + 3, "hits went on"
    cluster.wait()
    with cluster.client() as another:
        another.set(lost, "two")
    time.sleep(STALE)
    until(lambda: read(near, lost) != "error")
    assert near.get(lost) == b"two"
    until(lambda: near.age() < STALE)


def test_a_primary_that_is_not_heard_is_out_after_max_stale_and_the_others_are_not(
    cluster, map_name, client
):
    for key in KEYS:
        client.set(key, "one")
    with (
        near_of(cluster, map_name, on_outage="raise") as raising,
        near_of(cluster, map_name, on_outage=("stale", 60)) as serving,
    ):
        until(lambda: [read(raising, key) for key in KEYS] == [b"one"] * len(KEYS))
        until(lambda: values_of(serving) == [b"one"] * len(KEYS))
        stopped, other = cluster.primaries()[:2]
        out, kept = key_at(cluster, stopped), key_at(cluster, other)
        stopped.signal(signal.SIGSTOP)
        try:
            until(lambda: raising.age() > STALE)
            with pytest.raises(ConnectionError, match="does not answer"):
                raising.get(out)
            assert serving.get(out) == b"one"
            assert raising.get(kept) == b"one"
        finally:
            stopped.signal(signal.SIGCONT)
        cluster.wait()
        until(lambda: raising.age() < STALE)
        until(lambda: raising.get(out) == b"one")


def test_a_primary_that_wakes_after_its_failover_is_not_believed(cluster, client, near):
    """N1: a primary that was stopped and replaced still takes itself for the owner of its slots for
    a while, answers questions, and tells of changes. The test reads hits only."""
    stopped = cluster.primaries()[0]
    key = key_at(cluster, stopped)
    client.set(key, "old")
    until(lambda: near.get(key) == b"old")
    source, number = near._source, near._source.node_of(key.encode())
    replica = cluster.replica(stopped)
    for _ in range(2):
        stopped.signal(signal.SIGSTOP)
        until(replica.is_primary)
        another = next(node for node in cluster.nodes if node not in (stopped, replica))
        until(lambda: replica.id in another.owners())  # noqa: B023 (called at once)
        replica.ask("SET", key, "new")
        time.sleep(STALE)
        stopped.signal(signal.SIGCONT)
        end = time.monotonic() + 3 * STALE
        while time.monotonic() < end:
            assert near._look(key, number, None) != b"old"
            assert near._look(key, source.node_of(key.encode()), None) != b"old"
        cluster.wait()
        until(lambda: read(near, key) == b"new")
        replica.ask("SET", key, "old")
        until(lambda: near.get(key) == b"old")
        number = source.node_of(key.encode())
        stopped, replica = replica, stopped


def left_behind(near, cluster, client):
    """Let a primary receive no more messages of the other nodes, though they receive its own, and
    replace it. Return what a hit finds after a change at the new primary and max_stale."""
    assert near.ready(PATIENCE_S)
    alone = cluster.primaries()[2]
    # The primary gets the greatest epoch, so that its claim to its slots does not change when it
    # forgets the others. All have to hear of that epoch, because the replica needs a greater one.
    alone.ask("CLUSTER", "BUMPEPOCH")
    until_well(lambda: cluster.agrees_on_epoch(alone), "the new epoch is not known")
    time.sleep(STALE)  # by now the near cache has heard of it, too
    replica, key = cluster.replica(alone), key_at(cluster, alone)
    client.set(key, "old")
    until(lambda: near.get(key) == b"old" and near.age() < STALE)
    number = near._node_of(key.encode())
    for node in cluster.nodes:
        if node is not alone:
            alone.ask("CLUSTER", "FORGET", node.id)
    replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
    until_well(replica.is_primary, "the replica does not take over")
    replica.ask("SET", key, "new")
    time.sleep(2 * STALE)
    assert alone.id in alone.owners(), "it has not heard of it"
    return near._look(key, number, None)


def test_a_primary_that_others_contradict_is_not_believed(own_cluster, map_name):
    """N1: a primary that others say is replaced is not believed, whatever it says of itself."""
    with near_of(own_cluster, map_name) as near, own_cluster.client() as client:
        assert left_behind(near, own_cluster, client) is None
        until(lambda: read(near, key_at(own_cluster, own_cluster.nodes[5])) == b"new")


def test_the_law_above_finds_a_watch_that_asks_each_for_itself_only(
    make_cluster, map_name, monkeypatch
):
    """The test above finds a mutant that believes each node about itself. It may take several
    clusters, because a lease that lapses on a busy machine hides the mutant."""
    monkeypatch.setattr(Watch, "_is_believed", lambda self, primary: True)
    found = []
    while b"old" not in found and len(found) < CLUSTERS_MAX:
        made = make_cluster()
        with near_of(made, f"{map_name}-{len(found)}") as near, made.client() as client:
            found.append(left_behind(near, made, client))
    assert found[-1] == b"old"


def moved_to_and_fro(cluster, near, key):
    """Read an absent key, move its slot to another node, create the key there, and read it
    max_stale later. Then do the same with the two nodes exchanged; return what was read."""
    slot = slot_of(key.encode())
    found = []
    for _ in range(2):
        source = cluster.owner(slot)
        target = next(node for node in cluster.primaries() if node is not source)
        until(
            lambda: (
                near.get(key) is None and near._look(key, near._node_of(key.encode()), "") is None
            )
        )
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        target.ask("ASKING")
        target.ask("SET", key, "made")
        time.sleep(1.2 * STALE)
        found.append(near.get(key))
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        time.sleep(1.2 * STALE)
        found.append(near.get(key))
        target.ask("DEL", key)
        cluster.wait()
        time.sleep(1.2 * STALE)
    return found


def test_an_absent_key_is_not_absent_after_its_slot_has_moved(cluster, near):
    """N1: a key is created at the new owner of its slot, of which the former owner tells nothing;
    the near cache finds it all the same."""
    assert moved_to_and_fro(cluster, near, "k1") == [b"made"] * 4


def test_the_law_above_finds_a_watch_that_reads_the_topology_once(cluster, map_name, monkeypatch):
    near_cluster.read_the_topology_once(monkeypatch)
    with near_of(cluster, map_name, ttl_absent=60.0) as near:
        assert near.ready(PATIENCE_S)
        assert None in moved_to_and_fro(cluster, near, "k1")


def test_a_slot_moves_with_its_keys_and_a_node_joins(cluster, client, near):
    """While a slot moves and a node joins, ASK and MOVED lead to each value, and the values that
    are kept are right."""
    keys = [f"k{{1}}{number}" for number in range(20)]
    slot = slot_of(keys[0].encode())
    for key in keys:
        client.set(key, "one")
    until(lambda: values_of(near, keys) == [b"one"] * len(keys))
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    near.invalidate(*keys[:10])
    source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[5:])
    assert values_of(near, keys) == [b"one"] * len(keys)
    assert near.get_many(keys) == dict.fromkeys(keys, b"one")
    assert near.set(keys[-1], b"two")
    assert near.get(keys[-1]) == b"two"
    cluster.move_keys(slot, source, target)
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    for key in keys:
        client.set(key, "three")
    time.sleep(STALE)
    assert values_of(near, keys) == [b"three"] * len(keys)
    until(lambda: near.age() < STALE)
    cluster.wait()
    cluster.move_slot(slot, source)


def test_a_source_of_a_cluster_raises_what_its_client_would(cluster, map_name, client):
    source, another = ClusterSource(client, ["k"]), ClusterSource(client, ["k"])
    state = State(map_name, 10, 1 << 20, 0o600)
    try:
        source.attach(state)
        probe = source.probe()
        assert probe.tracking
        assert probe.server.startswith(("redis ", "valkey "))
        assert source.nodes() == 3
        assert source.name == another.name
        for node in cluster.primaries():
            key = key_at(cluster, node)
            node.ask("RPUSH", key, "item")
            with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
                source.fetch([key.encode()])
        assert source.fetch([b"kx"])[0].value is None
    finally:
        source.close()
        another.close()
        state.close()


def test_the_program_of_the_guide_for_clusters_runs(cluster, client, map_name):
    if not GUIDE.exists():
        pytest.skip("the documents are not here")
    _, text = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    text = text.replace('host="node"', f'host="127.0.0.1", port={cluster.nodes[0].port}')
    text = text.replace('name="users"', f"name={map_name!r}")
    done = {"NearCache": NearCache}
    exec(text, done)
    try:
        assert done["near"].ready(PATIENCE_S)
        client.set("user:7", "one")
        assert done["near"].get("user:7") == b"one"
    finally:
        done["near"].close()
