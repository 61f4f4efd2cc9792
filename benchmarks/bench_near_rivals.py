"""What a hit of a near cache costs beside client-side caches, and the memory of eight workers.

    python benchmarks/bench_near_rivals.py [--quick] [--rounds 15] [--json FILE]

"us": microseconds of processor time for one read of a key that is in memory, 100 bytes, in one
process; each way reads its share of the keys in each round, and the ways take turns. "GET" is the
client's own read over a UNIX socket; "redis-py", "coredis" and "cashews" are the caches of these
libraries, those of the last two awaited in a loop of asyncio. A library that is not installed is
left out. "times" is the ratio to NearCache: the median of the rounds.

"memory": eight workers read 10,000 values of 1 KiB. Of each the memory counts that is its own
(Private of /proc/self/smaps_rollup) and was not before; and once the blocks of the segments.

redis-py's cache refuses servers other than Redis 7.4 and later; here that check is taken out, and
nothing else. It has no UNIX sockets, so it reads over TCP.

It needs a redis-server, and the client redis.
"""

import argparse
import asyncio
import gc
import importlib.metadata
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import redis
from bench_near import PATIENCE_S, start_server
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection
from report import finish, machine, print_facts, print_table, unique_name

from shmrhash import NearCache

try:
    import coredis
    from coredis.patterns.cache import LRUCache
except ImportError:
    coredis = None
try:
    import cashews
    from cashews.backends.redis.client_side import BcastClientSide
    from cashews.picklers import PicklerType
    from cashews.wrapper.backend_settings import register_backend
except ImportError:
    cashews = None

FORK = multiprocessing.get_context("fork")
PREFIX = "key:"
WORKERS = 8
CacheProxyConnection.MIN_ALLOWED_VERSION = "6.0.0"


def names_of(count):
    return [f"{PREFIX}{number}" for number in range(count)]


def fill(path, names, size):
    with redis.Redis(unix_socket_path=path) as client:
        for at in range(0, len(names), 1000):
            client.mset({name: os.urandom(size) for name in names[at : at + 1000]})


def near_of(path, name, **options):
    return NearCache(redis.Redis(unix_socket_path=path), [PREFIX], name=name, **options)


def cached_client(port, entries):
    return redis.Redis(port=port, protocol=3, cache_config=CacheConfig(max_size=entries))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ---- the cost of a hit ----


def per_read(read, names, turns):
    """Microseconds of processor time for one read."""
    began = time.process_time_ns()
    for _ in range(turns):
        for name in names:
            read(name)
    return (time.process_time_ns() - began) / 1000 / turns / len(names)


async def aper_read(read, names, turns):
    began = time.process_time_ns()
    for _ in range(turns):
        for name in names:
            await read(name)
    return (time.process_time_ns() - began) / 1000 / turns / len(names)


async def rounds_of(path, port, names, rounds):
    """{way: microseconds of each round}"""
    async_ways = {}
    near = near_of(path, unique_name("near"))
    assert await asyncio.to_thread(near.ready, PATIENCE_S)
    plain, cached = redis.Redis(unix_socket_path=path), cached_client(port, 2 * len(names))
    ways = {
        "NearCache": (near.get, 100),
        "dict": ({name: plain.get(name) for name in names}.get, 100),
        "redis-py": (cached.get, 1),
        "GET": (plain.get, 1),
    }
    async_ways["NearCache, aget"] = (near.aget, 10)
    closing = []
    if coredis:
        theirs = coredis.Redis.from_url(f"unix://{path}", cache=LRUCache(2 * len(names)))
        await theirs.__aenter__()
        closing.append(theirs)
        async_ways["coredis"] = (theirs.get, 1)
    if cashews:
        cache = cashews.Cache()
        register_backend("unix", BcastClientSide, pass_uri=True, pickler=PicklerType.DEFAULT)
        cache.setup(f"unix://{path}", client_side_prefix=PREFIX, protocol=2, socket_timeout=10)
        await cache.init()
        for name in names:
            await cache.set(name, bytes(100), expire=None)
        async_ways["cashews"] = (cache.get, 1)
    found = {way: [] for way in (*ways, *async_ways)}
    for _ in range(rounds + 1):  # the first one fills the caches
        for way, (read, turns) in ways.items():
            found[way].append(per_read(read, names, turns))
        for way, (read, turns) in async_ways.items():
            found[way].append(await aper_read(read, names, turns))
    for one in closing:
        await one.__aexit__(None, None, None)
    if cashews:
        await cache.close()
    near.close()
    return {way: times[1:] for way, times in found.items()}


def rows_of_hits(path, port, options):
    names = names_of(1000)
    fill(path, names, 100)
    found = asyncio.run(rounds_of(path, port, names, options.rounds))
    ours = found["NearCache"]
    return [
        {
            "read": way,
            "us": round(statistics.median(times), 3),
            "least": round(min(times), 3),
            "times": round(
                statistics.median(a / b for a, b in zip(times, ours, strict=True)), 2
            ),
        }
        for way, times in found.items()
    ]  # fmt: skip


# ---- memory ----


def own_bytes():
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def work(made, names, together, results, end):
    """A worker: how much its own memory grows by reading all keys twice. Pages of the segments that
    nobody else has read yet would count as its own, so it looks when all have read."""
    names = [name[:3] + name[3:] for name in names]  # else a look copies the pages of the parent's
    client = made()
    for _ in range(1000):
        client.get(names[0])
    together.wait()
    began = own_bytes()
    for _ in range(2):
        for name in names:
            assert len(client.get(name)) == 1024
    together.wait()
    results.put(own_bytes() - began)
    end.wait()


def grown(made, names):
    """The bytes by which the memory of all workers grows; they live until the event is set."""
    together, results, end = FORK.Barrier(WORKERS), FORK.Queue(), FORK.Event()
    workers = [
        FORK.Process(target=work, args=(made, names, together, results, end), daemon=True)
        for _ in range(WORKERS)
    ]
    for each in workers:
        each.start()
    sizes = [results.get(timeout=300) for _ in workers]
    return sum(sizes), workers, end


def at_the_server(path):
    """(connections that track, entries in the table of the server)"""
    with redis.Redis(unix_socket_path=path) as client:
        tracking = sum("t" in one["flags"] for one in client.client_list())
        return tracking, client.info("stats")["tracking_total_items"]


def blocks_of(name):
    return sum(
        path.stat().st_blocks * 512
        for path in Path(os.environ.get("SHMRHASH_DIR", "/dev/shm")).iterdir()
        if name in path.name
    )


def rows_of_memory(path, port, count):
    names, name = names_of(count), unique_name("near")
    fill(path, names, 1024)
    with near_of(path, name) as near:
        assert near.ready(PATIENCE_S)
        near.get(names[0])
        before = blocks_of(name)
        ways = {
            "NearCache": lambda: near_of(path, name, track=False),
            "redis-py": lambda: cached_client(port, 2 * count),
        }
        rows = []
        for way, made in ways.items():
            own, workers, end = grown(made, names)
            shared = blocks_of(name) - before
            size = own + shared
            tracking, items = at_the_server(path)
            if way != "NearCache":
                tracking -= 1  # that of the near cache, which is open
            end.set()
            for each in workers:
                each.join()
            rows.append(
                {
                    "8 workers": way,
                    "MiB": round(size / (1 << 20), 1),
                    "of it shared": round(shared / (1 << 20), 1),
                    "bytes for each entry": round(size / count),
                    "tracking connections": tracking,
                    "server's entries": items,
                }
            )
    for row in rows:
        row["times"] = round(row["MiB"] / rows[0]["MiB"], 1)
    return rows


def versions():
    found = {}
    for library in ("redis", "coredis", "cashews"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds, 1,000 values")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    facts = machine() | versions()
    print_facts(facts)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        server, path = start_server(folder, [], port)
        try:
            hits = rows_of_hits(path, port, options)
            print_table(hits)
            memory = rows_of_memory(path, port, 1000 if options.quick else 10_000)
            print_table(memory)
        finally:
            server.kill()
            server.wait()
    finish(options.json, facts, hits + memory)


if __name__ == "__main__":
    sys.exit(main())
