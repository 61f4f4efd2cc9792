"""NearCache with redis-py and with valkey-py: clients of one server, and of a cluster."""

import asyncio
import signal

import pytest
from support import near_servers
from support.waiting import until

from shmrhash import NearCache

pytest.importorskip("redis", reason="the client redis is not installed")

pytestmark = pytest.mark.skipif(
    not near_servers.programs(), reason="no server of Redis or Valkey is installed"
)
LIBRARIES = ["redis", "valkey"]
KEYS = [f"k{number}" for number in range(12)]
STALE = 0.4
PATIENCE_S = 60


@pytest.fixture(params=LIBRARIES)
def library(request):
    return pytest.importorskip(request.param, reason="this client is not installed")


def near_of(client, name):
    return NearCache(client, ["k"], name=name, max_stale=STALE, max_entries=2000, max_bytes=1 << 21)


def use(near, client):
    """Assert that reads, changes, absent keys and own writes have the right results."""
    assert near.ready(PATIENCE_S)
    for key in KEYS:
        client.set(key, "one")
    until(lambda: [near.get(key) for key in KEYS] == [b"one"] * len(KEYS))
    for key in KEYS:
        client.set(key, "two")
    until(lambda: near.get_many(KEYS) == dict.fromkeys(KEYS, b"two"))
    client.delete(KEYS[0])
    until(lambda: near.get(KEYS[0]) is None)
    assert near.set(KEYS[0], b"three", ttl=60)
    assert near.get(KEYS[0]) == client.get(KEYS[0]) == b"three"
    assert not near.set(KEYS[0], b"four", nx=True)
    assert near.delete(*KEYS) == len(KEYS)
    assert near.get_many(KEYS) == {}
    client.rpush(KEYS[1], "item")
    near.invalidate(KEYS[1])


async def use_in_a_loop(near):
    assert await asyncio.to_thread(near.ready, PATIENCE_S)
    for key in KEYS:
        assert await near.aset(key, b"one")
    assert await near.aget_many(KEYS) == dict.fromkeys(KEYS, b"one")
    assert await near.aget(KEYS[0]) == b"one"
    assert await near.adelete(*KEYS) == len(KEYS)
    assert await near.aget_many(KEYS) == {}


def test_clients_of_one_server(server, library, client, map_name):
    """The near cache works with the client of each library, and raises this library's exception if
    the server refuses a command."""
    kind = near_servers.CLIENTS[library.__name__](library)
    with (
        kind(unix_socket_path=server.path, socket_timeout=0.3) as own,
        near_of(own, map_name) as near,
    ):
        use(near, client)
        with pytest.raises(library.exceptions.ResponseError, match="WRONGTYPE"):
            near.get(KEYS[1])
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(library.exceptions.TimeoutError):
                near.get("bare")
        finally:
            server.signal(signal.SIGCONT)


def test_clients_of_one_server_in_a_loop(server, library, map_name):
    kind = near_servers.CLIENTS[library.__name__](library.asyncio)

    async def work():
        async with kind(unix_socket_path=server.path) as own:
            with near_of(own, map_name) as near:
                await use_in_a_loop(near)

    asyncio.run(work())


@pytest.mark.thorough
def test_clients_of_a_cluster(cluster, library, map_name):
    with (
        near_servers.CLUSTER_CLIENTS[library.__name__](library)(
            "127.0.0.1", cluster.nodes[0].port
        ) as own,
        near_of(own, map_name) as near,
    ):
        use(near, own)
        with pytest.raises(library.exceptions.ResponseError, match="WRONGTYPE"):
            near.get(KEYS[1])


@pytest.mark.thorough
def test_clients_of_a_cluster_in_a_loop(cluster, library, map_name):
    kind = near_servers.CLUSTER_CLIENTS[library.__name__](library.asyncio)

    async def work():
        async with kind(host="127.0.0.1", port=cluster.nodes[0].port) as own:
            with near_of(own, map_name) as near:
                await use_in_a_loop(near)

    asyncio.run(work())
