"""How the core scales with processes: measured up to the number of cores, and modelled beyond.

    python benchmarks/bench_scaling.py [--processes 1 2 ...] [--entries 1000 1000000] [--json FILE]

Needs Cython and a C compiler. Each process is pinned to a core of its own and runs the same loop
in C on one map, for --seconds; all begin at a barrier. Every workload also runs with one map for
each process ("private"), so that no cache line is shared: that is what the machine itself gives to
as many processes. "efficiency" is the rate of N processes over N times the rate of one; "of
private" is the rate of a shared map over that of private ones, and shows what sharing costs.

- lookup: random keys of all. update, own: the process's own keys. update, all: random keys of all.
- update, one: all processes the same key. insert and delete: a batch of 64 own keys, in turn.

The model. An operation takes `work` ns, and `miss` ns more for each cache line that another core
wrote last. For a line picked at random among many, the probability of that is (N - 1) / N. A line
that every operation writes is a queue: one operation at a time, each `miss` + `work`. `work` is
measured here with one process; `miss` with two processes that pass one line to and fro: the fastest
sample counts, because every disturbance makes a sample slower. docs/performance/index.md says which
lines are meant.
"""

import argparse
import array
import mmap
import multiprocessing
import os
import random

from building import attach, build_bench
from report import finish, machine, median_row, print_facts, print_table, spread, unique_name

import shmrhash

MODEL_CORES = (2, 8, 16, 64)
BATCH = 64
SAMPLED_KEYS = 50_000
HAND_OVERS = 2000
HAND_OVER_SAMPLES = 50
# (tasks, whose keys, lines an operation that others wrote last: picked at random, written by all)
WORKLOADS = {
    "lookup": (["lookup"], "all", 0, 0),
    "update, own": (["update"], "own", 0, 0),
    "update, all": (["update"], "all", 1, 0),
    "update, one": (["update"], "one", 0, 1),
    "insert and delete": (["insert", "delete"], "batch", 1, 0),
}


def order_of(whose, number, count, entries, seed):
    """The numbers of the keys over which one process loops."""
    chooser = random.Random(seed + number)
    if whose == "one":
        return array.array("I", [0] * 1000)
    if whose == "batch":
        return array.array("I", range(entries + number * BATCH, entries + (number + 1) * BATCH))
    start, end = (0, entries) if whose == "all" else (
        entries * number // count, entries * (number + 1) // count)  # fmt: skip
    return array.array("I", chooser.sample(range(start, end), min(end - start, SAMPLED_KEYS)))


def worker(bench, name, tasks, order, seconds, core, barrier, answer):
    os.sched_setaffinity(0, {core})
    handle = attach(bench, name)
    bench.rounds_of_map(handle, tasks, order, 1)  # warm: one round
    barrier.wait(60)
    nanoseconds, rounds, done = bench.rounds_of_map(handle, tasks, order, int(seconds * 1e9))
    if done != rounds * len(order) * len(tasks):
        raise RuntimeError(f"{tasks}: {done} of {rounds * len(order) * len(tasks)} succeeded")
    answer.send(done / nanoseconds * 1e9)


def together(bench, names, workload, count, entries, options):
    """Operations a second of count processes together; names: the map of each."""
    tasks, whose, _, _ = WORKLOADS[workload]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)
    cores = sorted(os.sched_getaffinity(0))
    answers, processes = [], []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        order = order_of(whose, number, count, entries, options.seed)
        arguments = (bench, names[number], tasks, order, options.seconds)
        arguments = (*arguments, cores[number % len(cores)], barrier, theirs)
        processes.append(context.Process(target=worker, args=arguments))
        processes[-1].start()
        theirs.close()
        answers.append(ours)
    found = [answer.recv() for answer in answers]
    for process in processes:
        process.join()
    return sum(found)


def hand_over_half(bench, shared, parity, core):
    os.sched_setaffinity(0, {core})
    return bench.hand_over(shared, parity, HAND_OVERS)


def hand_over_ns(bench):
    """The time of getting a cache line that another core has written."""
    first, second, *_ = sorted(os.sched_getaffinity(0)) * 2
    shared = memoryview(mmap.mmap(-1, 4096))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    other = context.Process(target=lambda: theirs.send(hand_over_half(bench, shared, 1, second)))
    before = os.sched_getaffinity(0)
    other.start()
    try:
        mine = hand_over_half(bench, shared, 0, first)
    finally:
        os.sched_setaffinity(0, before)
    other.join()
    return max(mine, ours.recv())


def model(work_ns, miss_ns, workload, cores):
    """Operations a second that the model expects of this many cores."""
    _, _, random_lines, common_lines = WORKLOADS[workload]
    each = work_ns + miss_ns * random_lines * (cores - 1) / cores
    rate = cores / each * 1e9
    if common_lines and cores > 1:
        rate = 1e9 / (miss_ns * common_lines + work_ns)
    return rate


def measure(bench, entries, miss_ns, options):
    names = [f"{unique_name('scaling')}-{number}" for number in range(max(options.processes))]
    room = entries + BATCH * len(names)
    maps, rows = [], []
    try:
        for name in names:
            maps.append(shmrhash.RHashMap.create(name, key_size=8, value_size=8, max_entries=room))
            attach(bench, name).run("insert", entries)
        for workload in WORKLOADS:
            rates = {}
            for _ in range(options.rounds):
                for count in options.processes:
                    for kind, used in (("shared", [names[0]] * count), ("private", names)):
                        rate = together(bench, used, workload, count, entries, options)
                        rates.setdefault((kind, count), []).append(rate)
            one = spread(rates["shared", options.processes[0]])["median"]
            work_ns = 1e9 / one * options.processes[0]
            for count in options.processes:
                pairs = zip(rates["shared", count], rates["private", count], strict=True)
                row = {"workload": workload, "entries": entries, "processes": count}
                row |= median_row("per_second", rates["shared", count])
                row["efficiency"] = row["per_second"]["median"] / one / count
                row |= median_row("of_private", [mine / own for mine, own in pairs])
                for cores in MODEL_CORES:
                    expected = model(work_ns, miss_ns, workload, cores)
                    row[f"model {cores}, M/s"] = round(expected / 1e6, 1)
                rows.append(row)
        for each in maps:
            each.check()
    finally:
        for each in maps:
            each.unlink()
            each.close()
    return rows


def main():
    cores = len(os.sched_getaffinity(0))
    doubling = sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", nargs="+", type=int, default=doubling)
    parser.add_argument("--entries", nargs="+", type=int, default=[1000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a sample (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if max(options.processes) > cores:
        parser.error("more processes than cores")

    bench = build_bench()
    miss_ns = min(hand_over_ns(bench) for _ in range(HAND_OVER_SAMPLES))
    facts = machine() | {"seed": options.seed, "rounds": options.rounds}
    facts["line handed to another core, ns"] = round(miss_ns, 1)
    print_facts(facts)
    rows = []
    for entries in options.entries:
        rows += measure(bench, entries, miss_ns, options)
    print_table(
        [
            {
                "workload": f"{row['workload']}, {row['entries']:,}",
                "processes": row["processes"],
                "M/s": f"{row['per_second']['median'] / 1e6:.1f}",
                "efficiency": f"{row['efficiency']:.2f}",
                "of private": f"{row['of_private']['median']:.2f}",
                **{name: value for name, value in row.items() if name.startswith("model")},
            }
            for row in rows
        ]
    )
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
