"""Memory of a map at several fills, per entry.

    python tests/bench/memory.py [--sizes 8/8 32/256] [--entries 4096 10000 ...] [--json FILE]

One map for 1,000,000 entries is filled step by step. "file" is what the segment's file occupies
according to the file system (st_blocks), the fixed part included; "net" is without the fixed part,
which is what the empty map occupies. "info" is bytes_per_entry as RHashMap.info() has it.
"""

import argparse
import os
import random
from pathlib import Path

from report import machine, print_facts, print_table, write_json

import shmrhash

FILLS = [1, 4096, 10_000, 100_000, 1_000_000]


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["8/8"], metavar="KEY/VALUE")
    parser.add_argument("--entries", nargs="+", type=int, default=FILLS)
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()

    facts = machine() | {"seed": options.seed}
    print_facts(facts)
    rows = []
    for sizes in options.sizes:
        key_size, value_size = map(int, sizes.split("/"))
        rows += measure(key_size, value_size, options.entries, options.seed)
    print_table(rows)
    write_json(options.json, facts, rows)


if __name__ == "__main__":
    main()
