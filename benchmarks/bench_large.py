"""What size costs: lookups in large maps, second handles of one, entries of a SharedDict.

    python benchmarks/bench_large.py [--quick] [--rounds 7] [--json FILE]

"lookup" is the core's in a loop of C, for keys in random order, one by one; maps of one size of key
and value take turns in each round; "ratio" is over 1,000,000 entries within a round.
"unpickle" makes a second handle of a process (bench_latency.py has the first one of a process).
"file" is the memory of the segment, by entry.
"""

import argparse
import array
import os
import pickle
import random
import statistics
import time

from building import attach, build_bench, segment_path
from report import finish, machine, percentiles, print_facts, print_table, unique_name

import shmrhash

LOOKUPS = 1_000_000  # of each round, at most
SIZES = [("8/8", [1000, 100_000, 1_000_000, 10_000_000]), ("32/256", [1000, 100_000, 1_000_000])]
MIDDLE = 1_000_000
DICTS = [("int to int", int, int), ("str to int", str, int)]


def new_map(key_size, value_size, entries):
    name = unique_name(f"large-{key_size}-{value_size}-{entries}")
    return shmrhash.RHashMap.create(
        name, key_size=key_size, value_size=value_size, max_entries=entries
    )


def filled(bench, sizes, entries):
    shared_map = new_map(*map(int, sizes.split("/")), entries)
    handle = attach(bench, shared_map.name)
    _, done = handle.run("insert", entries)
    if done != entries:
        raise RuntimeError(f"{done} insertions succeeded")
    return shared_map, handle


def measure_lookups(bench, options, chooser):
    rows = []
    for sizes, counts in SIZES:
        counts = [count for count in counts if count <= options.most]
        maps = {count: filled(bench, sizes, count) for count in counts}
        orders = {
            count: array.array("I", chooser.choices(range(count), k=min(LOOKUPS, options.most)))
            for count in counts
        }
        times = {count: [] for count in counts}
        for _ in range(options.rounds):
            for count, (_, handle) in maps.items():
                took, done = handle.run("lookup", len(orders[count]), order=orders[count])
                if done != len(orders[count]):
                    raise RuntimeError(f"{done} lookups succeeded")
                times[count].append(took / done)
        beside = times[min(MIDDLE, max(counts))]
        for count, taken in times.items():
            ratios = [one / other for one, other in zip(taken, beside, strict=True)]
            rows.append({"lookup": sizes, "entries": f"{count:,}",
                         "ns": round(statistics.median(taken), 1),
                         "ratio": round(statistics.median(ratios), 2),
                         "from": round(min(ratios), 2), "to": round(max(ratios), 2)})  # fmt: skip
        for shared_map, _ in maps.values():
            shared_map.unlink()
            shared_map.close()
    return rows


def measure_unpickling(bench, options):
    shared_map, _ = filled(bench, "8/8", min(MIDDLE, options.most))
    unpickled = []
    try:
        text = pickle.dumps(shared_map)
        for _ in range(options.handles):
            begun = time.perf_counter()
            second = pickle.loads(text)
            unpickled.append(time.perf_counter() - begun)
            second.close()
    finally:
        shared_map.unlink()
        shared_map.close()
    found = percentiles([seconds * 1e6 for seconds in unpickled])
    return [
        {"what": "unpickle", "entries": f"{min(MIDDLE, options.most):,}"}
        | {f"{mark} us": round(us, 1) for mark, us in found.items()}
    ]


def measure_dicts(options):
    rows = []
    count = min(MIDDLE, options.most)
    for what, key, value in DICTS:
        name = unique_name("large-dict")
        with shmrhash.SharedDict.create(name, key=key, value=value, max_entries=count) as shared:
            try:
                empty = os.stat(segment_path(name)).st_blocks * 512
                shared.update((key(number), number) for number in range(count))
                file = os.stat(segment_path(name)).st_blocks * 512
            finally:
                shared.unlink()
        rows.append(
            {"dict": what, "entries": f"{count:,}", "file": round((file - empty) / count, 1)}
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--handles", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="at most 1,000 entries, 2 rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    options.most = 1000 if options.quick else 10_000_000
    if options.quick:
        options.rounds, options.handles = 2, 50
    bench = build_bench()
    facts = machine() | {"seed": options.seed, "rounds": options.rounds}
    print_facts(facts)
    tables = [
        measure_lookups(bench, options, random.Random(options.seed)),
        measure_unpickling(bench, options),
        measure_dicts(options),
    ]
    for rows in tables:
        print()
        print_table(rows)
    finish(options.json, facts, [row for rows in tables for row in rows])


if __name__ == "__main__":
    main()
