"""Memory per entry of a map at several fills.

    python benchmarks/memory.py [--sizes 8/8 32/256] [--entries 4096 10000 ...] [--json FILE]
    python benchmarks/memory.py --values                    # of SharedDict and Cache, by value size
    python benchmarks/memory.py --rivals                    # the same for every rival

One map for 1,000,000 entries is filled step by step. "file" is what the segment's file occupies
according to the file system (st_blocks), the fixed part included; "net" is without the fixed part,
which is what the empty map occupies. "info" is bytes_per_entry of RHashMap.info().

--values fills a SharedDict and a Cache, of text to bytes, with values of one size at a time until
no more fit into max_bytes; "file" is by entry then, without what the empty map occupies. "allowed"
is what an entry may take: 1.15 times the value and 100 bytes.

--rivals fills each rival of bench_rivals.py, created for the largest fill, in a process of its own.
Its memory is what has been added since before its creation: anonymous memory of that process and of
the rival's server, the space of its files in the shared-memory folder, and memory that only the
kernel knows of. Keys and values are objects made for a call and dropped after it, so that a dict
alone keeps its own. Memory that a rival takes at its start for all entries is in the figures of
small fills.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import random
from pathlib import Path

from bench_rivals import ALL
from report import finish, machine, print_facts, print_table, unique_name
from rivals import LeftOut, limit_memory, time_limit

import shmrhash

FILLS = [1, 4096, 10_000, 100_000, 1_000_000]
CHUNK = 1000
VALUES = [64, 121, 185, 249, 505, 600, 1017, 1024, 2041, 5000, 9210, 32_761, 100_000, 1 << 20]
VALUES_BYTES = 16 << 20  # max_bytes, or 32 values
VALUES_ENTRIES = 400_000


def occupied_bytes(name):
    folder = Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"))
    return (folder / name).stat().st_blocks * 512


def measure(key_size, value_size, fills, seed):
    chooser = random.Random(seed)
    name = f"bench-memory-{os.getpid()}"
    rows = []
    with shmrhash.RHashMap.create(
        name, key_size=key_size, value_size=value_size, max_entries=max(fills)
    ) as shared_map:
        try:
            fixed = occupied_bytes(name)
            for fill in sorted(fills):
                while len(shared_map) < fill:
                    shared_map[chooser.randbytes(key_size)] = bytes(value_size)
                info = shared_map.info()
                occupied = occupied_bytes(name)
                rows.append(
                    {
                        "sizes": f"{key_size}/{value_size}",
                        "entries": len(shared_map),
                        "file bytes": occupied,
                        "file per entry": round(occupied / fill, 1),
                        "net per entry": round((occupied - fixed) / fill, 1),
                        "info per entry": round(info["bytes_per_entry"], 1),
                        "reserved": info["bytes_reserved"],
                        "committed": info["bytes_committed"],
                        "used": info["bytes_used"],
                        "buckets": info["buckets"],
                        "load": round(info["load"], 2),
                    }
                )
        finally:
            shared_map.unlink()
    return rows


# ---- values of one size ----


def fill_with_values(kind, size):
    """Fill a map with values of size bytes; return its entries and the bytes of its file, as added
    since it was made."""
    most = max(VALUES_BYTES, 32 * size)
    limits = {"max_bytes": most, "max_entries": VALUES_ENTRIES}
    with kind(unique_name("memory-values"), key=str, value=bytes, **limits) as made:
        try:
            fixed = occupied_bytes(made.name)
            with contextlib.suppress(shmrhash.OutOfMemory):
                for number in range(VALUES_ENTRIES):
                    made.set(f"k{number}", bytes(size))
                    if len(made) <= number:  # a cache has evicted one
                        break
            return len(made), occupied_bytes(made.name) - fixed
        finally:
            made.unlink()


def measure_values(sizes):
    rows = []
    for size in sizes:
        row = {"value": size}
        for kind in (shmrhash.SharedDict, shmrhash.Cache):
            count, used = fill_with_values(kind, size)
            row |= {
                f"{kind.__name__} entries": count,
                f"{kind.__name__} file per entry": round(used / count, 1),
            }
        rows.append(row | {"allowed": round(1.15 * size + 100, 1)})
    return rows


# ---- rivals ----


def anonymous_bytes(pid):
    """Anonymous memory of a process; 0 if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return sum(int(row.split()[1]) * 1024 for row in status.splitlines() if "RssAnon" in row)


def rival_bytes(rival, folder, prefix):
    """The memory of a rival: of its processes, its files, and in the kernel."""
    pids = [os.getpid(), *rival.server_pids()] if rival else [os.getpid()]
    files = (
        path
        for name in (f"{prefix}*", f"fg_{prefix.replace('-', '_')}*")
        for found in folder.glob(name)
        for path in (found, *found.glob("*"))
    )
    occupied = sum(path.stat().st_blocks * 512 for path in files)
    return occupied + sum(map(anonymous_bytes, pids)) + (rival.kernel_bytes() if rival else 0)


def fill_rival(kind, sizes, fills, seconds, answer):
    """Runs in its own process: sends (fill, bytes) at each fill, and why it ended early."""
    key_size, value_size = sizes
    folder = Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"))
    prefix = unique_name("memory-rival")
    rival, filled = None, 0
    limit_memory()
    try:
        if kind.module:
            __import__(kind.module)
        gc.collect()
        before = rival_bytes(None, folder, prefix)
        rival = kind(str(folder / prefix), key_size, value_size, max(fills))
        with time_limit(seconds, "filling"):
            for fill in fills:
                while filled < fill:
                    step = min(CHUNK, fill - filled)
                    numbers = range(filled + 1, filled + step + 1)
                    keys = [rival.key(n.to_bytes(key_size, "little")) for n in numbers]
                    rival.fill(keys, rival.value(b"v" * value_size))
                    filled += step
                answer.send((fill, rival_bytes(rival, folder, prefix) - before))
    except ImportError as error:
        answer.send(f"not installed ({error})")
    except (Exception, LeftOut) as error:
        answer.send(f"{filled:,} entries: {str(error)[:160] or type(error).__name__}")
    try:
        if rival:
            with time_limit(seconds, "closing"):
                rival.close()
    finally:
        answer.send(None)


def measure_rivals(sizes, fills, seconds):
    """Bytes per entry of each rival at each fill, and why some ended early."""
    rows, reasons = [], {}
    for kind in ALL:
        ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=fill_rival, args=(kind, sizes, fills, seconds, theirs)
        )
        process.start()
        theirs.close()
        each = {}
        while (said := ours.recv()) is not None:
            if isinstance(said, str):
                reasons[kind.name] = said
            else:
                fill, used = said
                each[fill] = round(used / fill, 1)
        process.join()
        if each:
            rows.append(
                {"bytes per entry": kind.name, "sizes": "/".join(map(str, sizes))}
                | {f"{fill:,}": each.get(fill, "-") for fill in fills}
            )
    return rows, reasons


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["8/8"], metavar="KEY/VALUE")
    parser.add_argument("--entries", nargs="+", type=int, default=FILLS)
    parser.add_argument("--values", action="store_true", help="of SharedDict and Cache")
    parser.add_argument("--value-bytes", nargs="+", type=int, default=VALUES)
    parser.add_argument("--rivals", action="store_true", help="of others as well")
    parser.add_argument("--fill-seconds", type=float, default=15, help="of a rival (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()

    facts = machine() | {"seed": options.seed}
    print_facts(facts)
    every = []
    if options.values:
        every = measure_values(options.value_bytes)
        print_table(every)
        options.sizes = []
    for sizes in options.sizes:
        key_size, value_size = map(int, sizes.split("/"))
        if options.rivals:
            fills = [fill for fill in sorted(options.entries) if fill > 1]
            rows, reasons = measure_rivals((key_size, value_size), fills, options.fill_seconds)
            facts[f"left out at {sizes}"] = reasons
        else:
            rows, reasons = measure(key_size, value_size, options.entries, options.seed), {}
        print_table(rows)
        for name, reason in reasons.items():
            print(f"left out: {name}: {reason}")
        every += rows
    finish(options.json, facts, every)


if __name__ == "__main__":
    main()
