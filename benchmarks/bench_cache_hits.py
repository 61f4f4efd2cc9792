"""The hit ratio of a Cache: in one process, in eight, and beside other policies.

    python benchmarks/bench_cache_hits.py [--quick] [--seed 1] [--json FILE]

Percent of hits. Each stream of keys is looked up in order, and what is absent is stored. In the
column "8 processes" each looks up every eighth key of the stream, all at the same time. "LRU",
"S3-FIFO" and "ARC" are those of libcachesim, if that is installed; else they are left out. Streams
are made anew from the seed: frequencies as 1 / rank ** exponent; the same with scans of keys that
never come again between; and with frequencies that change. Of "scanned" only the lookups that are
not of a scan count: a scan may cost at most 0.2 points.
"""

import argparse
import multiprocessing
import os
import random
import sys
from pathlib import Path

from report import finish, machine, print_facts, print_table

import shmrhash

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.cache_policies import zipf

try:
    import libcachesim
except ImportError:
    libcachesim = None

PROCESSES = 8
SIZES = (0.01, 0.1, 0.25)  # of the number of keys
POLICIES = {"LRU": "LRU", "S3-FIFO": "S3FIFO", "ARC": "ARC"}


def make_streams(seed, keys, count):
    """{name: (keys in order, the first key that is of a scan)}"""
    rng = random.Random(seed)
    usual = zipf(rng, keys, 0.9, count)
    piece = count // 4
    scanned = []
    for part in range(4):
        first = keys * (10 + 5 * part)
        scanned += [*usual[part * piece : (part + 1) * piece], *range(first, first + 2 * keys)]
    drifting = [
        (key + piece * (at // piece)) % keys if key % 5 == 0 else key
        for at, key in enumerate(usual)
    ]
    return {
        "zipf 0.7": zipf(rng, keys, 0.7, count),
        "zipf 0.9": usual,
        "scanned": scanned,
        "frequencies that change": drifting,
    }


def percent(hits, stream, scan_from):
    """hits: for each key of the stream whether it was there."""
    usual = [hit for hit, key in zip(hits, stream, strict=True) if key < scan_from]
    return 100 * sum(usual) / len(usual)


def ask_all(cache, stream):
    """Look each key up, and store what is absent; return for each whether it was there."""
    hits = bytearray(len(stream))
    for at, key in enumerate(stream):
        if cache.get(key) is None:
            cache.set(key, key)
        else:
            hits[at] = 1
    return hits


def ask_alone(stream, entries):
    with shmrhash.Cache(key=int, value=int, max_entries=entries) as cache:
        hits = ask_all(cache, stream)
        cache.check()
    return hits


def ask_share(name, number, stream, barrier, results):
    with shmrhash.Cache(name, key=int, value=int) as cache:
        barrier.wait()
        results[number::PROCESSES] = bytes(ask_all(cache, stream[number::PROCESSES]))


def ask_together(stream, entries):
    """As ask_alone(), by PROCESSES processes at once."""
    name = f"bench-cache-hits-{os.getpid()}"
    fork = multiprocessing.get_context("fork")
    results, barrier = fork.RawArray("b", len(stream)), fork.Barrier(PROCESSES)
    with shmrhash.Cache(name, key=int, value=int, max_entries=entries) as cache:
        workers = [
            fork.Process(target=ask_share, args=(name, number, stream, barrier, results))
            for number in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        cache.check()
        cache.unlink()
    return list(results)


def ask_policy(policy, stream, entries):
    simulated = getattr(libcachesim, POLICIES[policy])(cache_size=entries)
    hits = bytearray(len(stream))
    for at, key in enumerate(stream):
        request = libcachesim.Request(obj_id=key + 1, obj_size=1)
        hits[at] = bool(simulated.get(request))
    return hits


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short streams")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    keys, count = (2_000, 20_000) if options.quick else (20_000, 300_000)
    facts = machine() | {"libcachesim": getattr(libcachesim, "__version__", "not installed")}
    print_facts(facts)
    columns = ["Cache", f"{PROCESSES} processes", *(POLICIES if libcachesim else ())]
    rows = []
    for name, stream in make_streams(options.seed, keys, count).items():
        for share in SIZES:
            entries = int(keys * share)
            ways = [ask_alone, ask_together]
            if libcachesim:
                ways += [
                    lambda stream, entries, policy=policy: ask_policy(policy, stream, entries)
                    for policy in POLICIES
                ]
            ratios = [percent(way(stream, entries), stream, 10 * keys) for way in ways]
            found = {column: round(ratio, 2) for column, ratio in zip(columns, ratios, strict=True)}
            rows.append({"stream": name, "entries": entries} | found)
    print_table(rows)
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
