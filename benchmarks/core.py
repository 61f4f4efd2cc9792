"""The core in loops without Python, compared with a plain table in C, in one run.

    python benchmarks/core.py [--quick] [--sizes 8/8 32/8 256/8] [--json FILE]

Needs Cython and a C compiler: _bench.pyx is compiled first, with the flags of the extension.

Method. The keys and the "sequence" order are those of the kernel's LOOKUP benchmark (see
_bench.pyx), "random" takes the same keys in one random order. Each round measures the map and the
reference, a minimal open-addressing table without locks, limits or growth (see _reference.pxi), one
after the other; the ratio is the median of the rounds' ratios: the rate of the map divided by that
of the reference, larger is better. Misses look up keys of the same form that were never inserted.
insert fills an empty map in the order given, growth included, delete empties it; the reference has
its final size from the start and its deletions only mark, so these two ratios favour the reference.

"lookup_many; two random lines a key" compares the package's lookup_many with a loop that reads the
cache line of a bucket and that of an element, at random places of the same map that are known
beforehand: the most that the memory can give.
"""

import argparse
import array
import os
import random
import time

from building import attach, build_bench, key_of
from report import machine, print_facts, print_table, spread, write_json

import shmrhash

OPERATIONS_A_SAMPLE = 2_000_000
FLOOR_KEYS = 200_000


def compare(subjects, task, entries, orders, options, *, first=0):
    """One row for each order: the same workload on the map and on the reference."""
    rows = []
    passes = max(1, OPERATIONS_A_SAMPLE // entries)
    hits = 0 if first else passes * entries
    for order_name, order in orders.items():
        rates = {who: [] for who in subjects}
        for _ in range(options.rounds):
            for who, subject in subjects.items():
                nanoseconds, done = subject.run(
                    task, entries, passes=passes, first=first, order=order
                )
                if done != hits:
                    raise RuntimeError(f"{who}, {task}: {done} of {hits} keys found")
                rates[who].append(passes * entries / nanoseconds * 1e9)
        rows.append(row("miss" if first else task, order_name, entries, rates))
    return rows


def compare_fill(subjects, entries, orders, options):
    """Two rows for each order: filling an empty subject, and emptying it."""
    rows = []
    passes = max(1, OPERATIONS_A_SAMPLE // 2 // entries)
    for order_name, order in orders.items():
        rates = {(task, who): [] for task in ("insert", "delete") for who in subjects}
        for _ in range(options.rounds):
            for who, make in subjects.items():
                nanoseconds = {"insert": 0, "delete": 0}
                for _ in range(passes):
                    subject = make()
                    for task in nanoseconds:
                        took, done = subject.run(task, entries, order=order)
                        if done != entries:
                            raise RuntimeError(f"{who}, {task}: {done} of {entries}")
                        nanoseconds[task] += took
                for task, took in nanoseconds.items():
                    rates[task, who].append(passes * entries / took * 1e9)
        for task in ("insert", "delete"):
            rows.append(row(task, order_name, entries, {who: rates[task, who] for who in subjects}))
    return rows


def row(task, order_name, entries, rates):
    ratios = [m / r for m, r in zip(rates["map"], rates["reference"], strict=True)]
    return {
        "operation": task,
        "order": order_name,
        "entries": entries,
        "map_per_second": spread(rates["map"]),
        "reference_per_second": spread(rates["reference"]),
        "ratio": spread(ratios),
    }


def compare_floor(bench, handle, shared_map, entries, options):
    """lookup_many, compared with two independent random reads a key in the same map's memory."""
    chooser = random.Random(options.seed)
    count = min(entries, FLOOR_KEYS)
    passes = max(1, FLOOR_KEYS // count)
    bucket_count = shared_map.info()["buckets"]
    out = bytearray(count * shared_map.value_size)
    rates = {"map": [], "reference": []}
    for _ in range(options.rounds):
        numbers = chooser.sample(range(entries), count)
        keys = b"".join(key_of(n, 8) for n in numbers)
        buckets = array.array("I", (chooser.randrange(bucket_count) for _ in numbers))
        elements = array.array("I", (1 + chooser.randrange(entries) for _ in numbers))
        spent = {"map": 0, "reference": 0}
        for _ in range(passes):
            begun = time.perf_counter_ns()
            _, found = shared_map.lookup_many(keys, out=out)
            spent["map"] += time.perf_counter_ns() - begun
            spent["reference"] += bench.two_lines(handle, buckets, elements)[0]
        if sum(found) != count:
            raise RuntimeError(f"lookup_many found {sum(found)} of {count} keys")
        for who, nanoseconds in spent.items():
            rates[who].append(count * passes / nanoseconds * 1e9)
    return [row("lookup_many; two random lines a key", "random", entries, rates)]


def measure(bench, key_size, value_size, entries, options):
    order = array.array("I", range(entries))
    random.Random(options.seed).shuffle(order)
    orders = {"sequence": None, "random": order}
    seeds = random.Random(options.seed).randbytes(32)
    sizes = {"key_size": key_size, "value_size": value_size, "max_entries": entries}
    name = f"bench-core-{os.getpid()}"
    rows = []
    with (
        shmrhash.RHashMap.create(name, **sizes) as full,
        shmrhash.RHashMap.create(f"{name}-empty", **sizes) as empty,
    ):
        try:
            subjects = {
                "map": attach(bench, name),
                "reference": bench.Reference(key_size, value_size, entries, seeds),
            }
            for subject in subjects.values():
                subject.run("insert", entries)
            for task in ("lookup", "update", "add"):
                rows += compare(subjects, task, entries, orders, options)
            rows += compare(subjects, "lookup", entries, orders, options, first=entries)
            if key_size == 8 and entries >= FLOOR_KEYS:
                rows += compare_floor(bench, subjects["map"], full, entries, options)
            empty_handle = attach(bench, f"{name}-empty")
            makers = {
                "map": lambda: empty_handle,
                "reference": lambda: bench.Reference(key_size, value_size, entries, seeds),
            }
            rows += compare_fill(makers, entries, orders, options)
            full.check()
            empty.check()
        finally:
            full.unlink()
            empty.unlink()
    return [{"sizes": f"{key_size}/{value_size}"} | row for row in rows]


def display(rows):
    print_table(
        [
            {
                "operation": f"{r['operation']}, {r['entries']:,} x {r['sizes']}, {r['order']}",
                "map M/s": f"{r['map_per_second']['median'] / 1e6:.2f}",
                "reference M/s": f"{r['reference_per_second']['median'] / 1e6:.2f}",
                "map/reference": f"{r['ratio']['median']:.2f}",
                "(min .. max)": f"({r['ratio']['min']:.2f} .. {r['ratio']['max']:.2f})",
            }
            for r in rows
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="samples of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["8/8"], metavar="KEY/VALUE")
    parser.add_argument("--quick", action="store_true", help="1,000 entries only, 3 rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3

    facts = machine() | {"seed": options.seed, "rounds": options.rounds}
    bench = build_bench()
    print_facts(facts)
    rows = []
    for sizes in options.sizes:
        key_size, value_size = map(int, sizes.split("/"))
        for entries in (1000,) if options.quick else (1000, 1_000_000):
            rows += measure(bench, key_size, value_size, entries, options)
    display(rows)
    write_json(options.json, facts, rows)


if __name__ == "__main__":
    main()
