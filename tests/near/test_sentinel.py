"""NearCache with a client of redis.sentinel: the tracker and the readers follow the primary."""

import asyncio
import contextlib
import signal
import time

import pytest

redis = pytest.importorskip("redis", reason="the client redis is not installed")

# ruff: noqa: E402 (after the skip)
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel
from support import near_servers
from support.near_cluster import Process, free_ports
from support.near_cluster import until as until_well
from support.waiting import until

from shmrhash import InvalidArgument, NearCache

PROGRAMS = near_servers.programs()
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not PROGRAMS, reason="no server of Redis or Valkey is installed"),
]
STALE = 0.4
FRESH = 1.1  # seconds after which a near cache has asked the sentinels again
PATIENCE_S = 60
SERVICE = "service"


class Service:
    """A primary, its replica, and a sentinel."""

    def __init__(self, program, folder):
        self.folder = folder
        ports = free_ports(3)
        plain = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
        self.servers = [Process(program, folder, "--port", str(port), *plain) for port in ports[:2]]
        self.servers[1].ask("REPLICAOF", "127.0.0.1", ports[0])
        until_well(lambda: self.servers[1].ask("ROLE")[3] == b"connected", "no replica")
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        self.sentinel = Process(
            program, folder, str(folder / "sentinel.conf"), "--sentinel", "--port", str(ports[2]),
            "--bind", "127.0.0.1",
        )  # fmt: skip
        self.at = [("127.0.0.1", ports[2])]
        until_well(self.sees_replica, "the sentinel does not see the replica")

    def sees_replica(self):
        found = self.sentinel.ask("SENTINEL", "REPLICAS", SERVICE)
        return len(found) == 1 and b"s_down" not in str(found).encode()

    def primary(self):
        _, port = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        (found,) = [server for server in self.servers if server.port == int(port)]
        return found

    def begins_a_failover(self):
        """Ask for a failover; return whether one begins, which it does only if the sentinel knows a
        good replica."""
        with contextlib.suppress(redis.exceptions.ResponseError):
            return self.sentinel.ask("SENTINEL", "FAILOVER", SERVICE) is not None
        return False

    def until_replaced(self, primary):
        until_well(lambda: self.primary() is not primary, "the sentinel does nothing")
        until_well(self.primary().is_primary, "the replica does not take over")

    def close(self):
        for server in (*self.servers, self.sentinel):
            server.close()


@pytest.fixture
def service(tmp_path):
    made = Service(next(iter(PROGRAMS.values())), tmp_path)
    yield made
    made.close()


def read(near, key):
    """Return the present value of a key, or "error" if no server answers for it."""
    with contextlib.suppress(redis.exceptions.RedisError):
        return near.get(key)
    return "error"


def write(near, key, value):
    """Write a key through the near cache; return whether that succeeded."""
    with contextlib.suppress(redis.exceptions.RedisError):
        return near.set(key, value)
    return False


def test_the_tracker_and_the_readers_follow_the_primary(service, map_name):
    """N1, N2: the primary is replaced by an agreed failover, after it was stopped, and after it was
    killed."""
    client = Sentinel(service.at, socket_timeout=0.5).master_for(SERVICE)
    with client, NearCache(client, ["k"], name=map_name, max_stale=STALE) as near:
        assert near.ready(PATIENCE_S)
        assert SERVICE in near.info()["source"]
        for blow in ("agreed", "freeze", "kill"):
            primary = service.primary()
            primary.ask("SET", "k1", f"before {blow}")
            until(lambda: read(near, "k1") == f"before {blow}".encode())  # noqa: B023
            until_well(lambda: primary.ask("WAIT", 1, 100) == 1, "no replica")  # noqa: B023
            if blow == "agreed":
                until_well(service.begins_a_failover, "the sentinel finds no good replica")
            elif blow == "freeze":
                primary.signal(signal.SIGSTOP)
            else:
                primary.kill()
            service.until_replaced(primary)
            service.primary().ask("SET", "k1", f"after {blow}")
            time.sleep(
                max(STALE, 1.1),
            )
            if blow == "freeze":
                primary.signal(signal.SIGCONT)
                for _ in range(50):
                    assert read(near, "k1") in (f"after {blow}".encode(), "error")
                    near.invalidate("k1")
            until(lambda: read(near, "k1") == f"after {blow}".encode())  # noqa: B023
            until(lambda: near.age() < STALE)
            if blow != "kill":
                until_well(service.sees_replica, "the former primary is no replica")
                until_well(lambda: primary.ask("ROLE")[0] == b"slave", "no replica")  # noqa: B023
                until_well(lambda: primary.ask("ROLE")[3] == b"connected", "not well")  # noqa: B023
            until(
                lambda: write(near, "k1", b"own")
            )  # written by the client, which finds the primary
            assert read(near, "k1") == b"own"


def test_coroutines_follow_as_well(service, map_name):
    async def work():
        sentinel = AsyncSentinel(service.at, socket_timeout=0.5)
        async with sentinel.sentinels[0], sentinel.master_for(SERVICE) as client:
            with NearCache(client, ["k"], name=map_name, max_stale=STALE) as near:
                assert await asyncio.to_thread(near.ready, PATIENCE_S)
                await near.aset("k1", b"one")
                assert await near.aget("k1") == b"one"
                primary = service.primary()
                until_well(lambda: primary.ask("WAIT", 1, 100) == 1, "no replica")
                primary.kill()
                await asyncio.to_thread(service.until_replaced, primary)
                service.primary().ask("SET", "k1", "two")
                await asyncio.sleep(FRESH)
                assert await near.aget("k1") == b"two"
                await asyncio.to_thread(until, lambda: near.age() < STALE)
                assert await near.aget("k1") == b"two"

    asyncio.run(work())


def test_a_replica_is_no_source(service):
    with pytest.raises(InvalidArgument, match="master_for"):
        NearCache(Sentinel(service.at).slave_for(SERVICE), ["k"])
