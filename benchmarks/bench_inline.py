"""Entries inside the buckets, compared with the core's layout, for keys and values of 8 bytes.

    python benchmarks/bench_inline.py [--quick] [--entries N] [--loads 35 45] [--json FILE]

Needs Cython and a C compiler: _inline.pyx is compiled first, with the flags of the extension. It
has both tables: "core" is a map that the package made and filled, "inline" an experiment with
buckets of 128 bytes that hold five entries each (docs/performance/tried.md). Both do the same
operations on the same keys in turn. The ratio is the median of the rounds' ratios, the core's time
divided by that of the experiment: larger is better. Times are processor time of the thread; the
nanoseconds are the least of all rounds.

The load is the mean number of entries in a bucket above which an insertion splits one, in tenths;
the core's is 3.5 of 7. With linear hashing, buckets that are not split yet hold twice as many
entries as those that are. So the share of buckets with overflow lines depends on the phase: how far
the number of buckets is beyond a power of two. --phases chooses the number of entries so that the
core's table is in that phase.

In series: lookups in C, independent of each other. One by one: the next key depends on the value
before. m[key]: from Python, in random order, the loop included. Bytes are of an entry: buckets,
lines and elements, without what a segment has besides.
"""

import argparse
import array
import mmap
import os
import random
import time

from building import build_bench, segment_path
from report import finish, machine, print_facts, print_table, spread, unique_name

import shmrhash

KEY_WORD_1 = 2654435761  # as in _inline.pyx
CHUNK = 200_000
PYTHON_KEYS = 200_000
TASKS = {
    "hit, in series": ("lookup", False),
    "hit, one by one": ("chase", False),
    "miss, in series": ("lookup", True),
    "update": ("update", False),
}


def keys_of(numbers):
    return array.array("Q", [KEY_WORD_1 << 32 | (n + 1) & 0xFFFFFFFF for n in numbers])


def filled_map(name, entries):
    shared_map = shmrhash.RHashMap.create(name, key_size=8, value_size=8, max_entries=entries)
    zeros = bytes(8 * CHUNK)
    for first in range(0, entries, CHUNK):
        keys = keys_of(range(first, min(first + CHUNK, entries)))
        shared_map.update_many(keys.tobytes(), zeros[: 8 * len(keys)])
    return shared_map


def map_memory(name):
    with open(segment_path(name), "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def compare(subjects, label, entries, order, options):
    """One row: the same operations on both tables, in turn."""
    task, misses = TASKS[label]
    count = min(entries, len(order))
    times = {who: [] for who in subjects}
    for _ in range(options.rounds):
        for who, subject in subjects.items():
            ns, done = subject.run(task, count, first=entries if misses else 0, order=order)
            if done != (0 if misses else count):
                raise RuntimeError(f"{who}, {label}: {done} of {count}")
            times[who].append(ns / count)
    return row(label, times)


def compare_python(subjects, entries, options):
    """m[key] in a loop, in random order; and lookup_many."""
    chooser = random.Random(options.seed)
    keys = keys_of(chooser.choices(range(entries), k=PYTHON_KEYS))
    objects = [key.to_bytes(8, "little") for key in keys]
    out, mask = array.array("Q", bytes(8 * len(keys))), array.array("B", bytes(len(keys)))
    times = {label: {who: [] for who in subjects} for label in ("m[key]", "lookup_many")}
    for _ in range(options.rounds):
        for who, subject in subjects.items():
            begun = time.thread_time_ns()
            for key in objects:
                subject[key]
            times["m[key]"][who].append((time.thread_time_ns() - begun) / len(keys))
            ns, done = subject.lookup_many(keys, out, mask)
            if done != len(keys):
                raise RuntimeError(f"{who}, lookup_many: {done} of {len(keys)}")
            times["lookup_many"][who].append(ns / len(keys))
    return [row(label, of) for label, of in times.items()]


def row(label, times):
    ratios = [c / i for c, i in zip(times["core"], times["inline"], strict=True)]
    least = {f"{who}_ns": min(found) for who, found in times.items()}
    return {"operation": label, "ratio": spread(ratios), **least}


def measure(bench, entries, load, options):
    name = unique_name("inline")
    chooser = random.Random(options.seed)
    sample = min(entries, options.operations)
    order = array.array("I", chooser.sample(range(entries), sample))
    rows = []
    with filled_map(name, entries) as shared_map:
        try:
            info = shared_map.info()
            core = bench.Core(map_memory(name), entries, info["depots"])
            inline = bench.Inline(core.seeds, entries, load, not options.one_line_first)
            _, done = inline.run("insert", entries)
            if done != entries:
                raise RuntimeError(f"{done} of {entries} inserted")
            buckets, linked, lines = inline.figures()
            memory = {
                "buckets": buckets,
                "with_lines": linked / buckets,
                "inline_bytes": (buckets + lines) * 128 / entries,
                "core_bytes": info["bytes_per_entry"],
                "core_buckets": info["buckets"],
            }
            subjects = {"core": core, "inline": inline}
            for label in TASKS:
                rows.append(compare(subjects, label, entries, order, options))
            rows += compare_python(subjects, entries, options)
        finally:
            shared_map.unlink()
    return [{"entries": entries, "load": load} | memory | found for found in rows]


def entries_in_phase(around, phase):
    """The number of entries, near around, with which the core's table has 2^n * phase buckets."""
    buckets = 4
    while buckets * 2 * 3.5 <= around:
        buckets *= 2
    return int(buckets * phase * 3.5)


def display(rows):
    print_table(
        [
            {
                "operation": f"{r['operation']}, {r['entries']:,}, load {r['load'] / 10}",
                "core/inline": f"{r['ratio']['median']:.2f}",
                "(min .. max)": f"({r['ratio']['min']:.2f} .. {r['ratio']['max']:.2f})",
                "core ns": f"{r['core_ns']:.1f}",
                "inline ns": f"{r['inline_ns']:.1f}",
                "bytes core": f"{r['core_bytes']:.1f}",
                "bytes inline": f"{r['inline_bytes']:.1f}",
                "with lines": f"{100 * r['with_lines']:.1f} %",
            }
            for r in rows
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--phases", type=float, nargs="+", default=[], help="1 to 2: see above")
    parser.add_argument("--loads", type=int, nargs="+", default=[35], help="in tenths")
    parser.add_argument(
        "--one-line-first",
        action="store_true",
        help="ask for the second cache line of a bucket once the key has been found in the first",
    )
    parser.add_argument("--operations", type=int, default=500_000, help="a sample (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261130, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="1,000 entries only, 3 rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.entries, options.rounds, options.operations = [1000], 3, 1000

    facts = machine() | {"seed": options.seed, "rounds": options.rounds, "pid": os.getpid()}
    bench = build_bench("_inline")
    print_facts(facts)
    rows = []
    for around in options.entries:
        phased = [entries_in_phase(around, phase) for phase in options.phases]
        for entries in phased or [around]:
            for load in options.loads:
                found = measure(bench, entries, load, options)
                display(found)
                rows += found
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
