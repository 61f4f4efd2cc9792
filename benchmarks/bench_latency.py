"""How long each single operation takes while a map grows to N entries and shrinks back.

    python benchmarks/bench_latency.py [--entries 1000000] [--long] [--json FILE]

Needs Cython and a C compiler. Loops in C, without Python (_latency.pxi), time every operation.
While the map grows, each new key is inserted; then come one lookup and one update of a random
present key, and one lookup of an absent key. While it shrinks, each key is deleted; then come one
lookup and one update of a random key that is left.

- "wall" is how long a caller waits, and includes all disturbances by the machine. "cpu" is the
  operation's own work: the thread's CPU time, from a second run. Both include the time of reading
  the clock, which the row "nothing" shows.
- alone: one process. oversubscribed: --processes processes at once, several to each core, on one
  map, each with its share of the keys. When the scheduler preempts a process in the middle of an
  operation, "wall" shows a time slice; so it does for a process that waits for that one.
- p50 ... max are in microseconds, from histograms with 16 buckets an octave; max is exact.

Attach: RHashMap.open(), and open() with a first lookup, which registers the process; each in a new
process that has imported everything before.
"""

import argparse
import array
import contextlib
import itertools
import multiprocessing
import os
import time

from building import attach, build_bench
from report import finish, machine, percentiles, print_facts, print_table, unique_name

import shmrhash

MARKS = (50, 99, 99.9, 99.99)
SLICES = 30
PHASES = {
    "grow": (["nothing", "insert", "lookup", "update", "lookup"],
             ["this", "this", "before", "before", "none"],
             ["nothing", "insert", "lookup", "update", "miss"]),
    "shrink": (["nothing", "delete", "lookup", "update"],
               ["this", "this", "after", "after"],
               ["nothing", "delete", "lookup", "update"]),
}  # fmt: skip


class Histograms:
    """One histogram for each operation of a phase."""

    def __init__(self, bench, count):
        self.bench, self.count = bench, count
        self.words = array.array("Q", bytes(8 * count * bench.LATENCY_WORDS))

    def view(self):
        shape = [self.count, self.bench.LATENCY_WORDS]
        return memoryview(self.words).cast("B").cast("Q", shape)

    def merge(self, words):
        last = self.bench.LATENCY_WORDS - 1
        for at, value in enumerate(words):
            if at % (last + 1) == last:
                self.words[at] = max(self.words[at], value)
            else:
                self.words[at] += value

    def summary(self, index):
        """Percentiles of one operation, in ns."""
        size = self.bench.LATENCY_WORDS
        *buckets, largest = self.words[index * size : (index + 1) * size]
        total, found = sum(buckets), {}
        for mark in MARKS:
            left = total * mark / 100
            reached = itertools.accumulate(buckets)
            bucket = next(at for at, below in enumerate(reached) if below >= left)
            found[f"p{mark}"] = min(self.bench.bucket_limit(bucket), largest)
        return found | {"max": largest, "count": total}


def run_phase(bench, name, phase, clock, entries, first, seed):
    """Run a phase in one process: the histograms of each of its slices."""
    tasks, choices, names = PHASES[phase]
    handle = attach(bench, name)
    slices = []
    for number in range(SLICES):
        histograms = Histograms(bench, len(names))
        begin, end = (entries * (number + more) // SLICES for more in (0, 1))
        done = bench.time_operations(
            handle, tasks, choices, clock, begin, end, entries, first, seed + number,
            histograms.view(),
        )  # fmt: skip
        # All succeed but the misses, "nothing", and the two that are skipped when no key is left.
        expected = (end - begin) * 3 - (2 if phase == "shrink" and end == entries else 0)
        if done != expected:
            raise RuntimeError(f"{phase}: {done} of {expected} operations succeeded")
        slices.append(histograms)
    return slices


def worker(bench, name, clock, entries, first, seed, barrier, answer):
    for phase in PHASES:
        barrier.wait(60)
        merged = Histograms(bench, len(PHASES[phase][2]))
        for histograms in run_phase(bench, name, phase, clock, entries, first, seed):
            merged.merge(histograms.words)
        answer.send(merged.words.tobytes())


def oversubscribed(bench, name, clock, options):
    """{phase: [the merged histograms of several processes]}."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options.processes)
    share = options.entries // options.processes
    answers, workers = [], []
    for number in range(options.processes):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (bench, name, clock, share, number * share, options.seed + number)
        workers.append(context.Process(target=worker, args=(*arguments, barrier, theirs)))
        workers[-1].start()
        theirs.close()
        answers.append(ours)
    found = {}
    for phase, (_, _, names) in PHASES.items():
        merged = Histograms(bench, len(names))
        for answer in answers:
            words = array.array("Q")
            words.frombytes(answer.recv())
            merged.merge(words)
        found[phase] = [merged]
    for process in workers:
        process.join()
    return found


def alone(bench, name, clock, options):
    return {
        phase: run_phase(bench, name, phase, clock, options.entries, 0, options.seed)
        for phase in PHASES
    }


def rows_of(found, mode, clock, options):
    """One row for each operation of each phase; with one process it has the slices, too."""
    rows = []
    for phase, slices in found.items():
        for index, operation in enumerate(PHASES[phase][2]):
            merged = Histograms(slices[0].bench, slices[0].count)
            for histograms in slices:
                merged.merge(histograms.words)
            row = {"mode": mode, "clock": clock, "phase": phase, "operation": operation}
            row |= {"entries": options.entries, "ns": merged.summary(index)}
            if len(slices) > 1:
                row["slices_ns"] = [histograms.summary(index) for histograms in slices]
            rows.append(row)
    return rows


def measure(bench, options):
    rows = []
    modes = [("alone", alone), (f"{options.processes} processes", oversubscribed)]
    for mode, run in modes:
        for clock in ("wall", "cpu"):
            name = unique_name("latency")
            with (
                shmrhash.RHashMap.create(
                    name, key_size=8, value_size=8, max_entries=options.entries
                ) as shared_map,
                contextlib.ExitStack() as stack,
            ):
                stack.callback(shared_map.unlink)
                rows += rows_of(run(bench, name, clock, options), mode, clock, options)
                if len(shared_map):
                    raise RuntimeError(f"{len(shared_map)} entries are left")
                shared_map.check()
    return rows


# ---- attach ----


def attach_once(name, answer):
    begun = time.perf_counter()
    with shmrhash.RHashMap.open(name) as shared_map:
        opened = time.perf_counter()
        shared_map.get(bytes(8))
        answer.send((opened - begun, time.perf_counter() - begun))


def measure_attach(options):
    context = multiprocessing.get_context("fork")
    rows = []
    for entries in sorted({1000, options.entries}):
        name = unique_name("attach")
        with shmrhash.RHashMap.create(
            name, key_size=8, value_size=8, max_entries=entries
        ) as shared_map:
            try:
                for number in range(entries):
                    shared_map[number.to_bytes(8, "little")] = bytes(8)
                spent = []
                for _ in range(options.attaches):
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=attach_once, args=(name, theirs))
                    process.start()
                    spent.append(ours.recv())
                    process.join()
            finally:
                shared_map.unlink()
        for what, times in zip(
            ("open", "open, first lookup"), zip(*spent, strict=True), strict=True
        ):
            found = percentiles([seconds * 1e6 for seconds in times])
            rows.append({"attach": what, "entries": entries} | {f"{k} us": round(v, 1)
                         for k, v in found.items()})  # fmt: skip
    return rows


def display(rows):
    for mode, clock in dict.fromkeys((row["mode"], row["clock"]) for row in rows):
        print(f"\n{mode}, {clock} time in us")
        chosen = [row for row in rows if (row["mode"], row["clock"]) == (mode, clock)]
        print_table(
            [
                {"operation": f"{row['operation']}, {row['phase']}s"}
                | {
                    name: f"{value / 1e3:.2f}"
                    for name, value in row["ns"].items()
                    if name != "count"
                }
                for row in chosen
            ]
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=4 * len(os.sched_getaffinity(0)))
    parser.add_argument("--attaches", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--long", action="store_true", help="10,000,000 entries")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.long:
        options.entries = 10_000_000

    bench = build_bench()
    facts = machine() | {"seed": options.seed, "entries": options.entries}
    print_facts(facts)
    rows = measure(bench, options)
    display(rows)
    attaching = measure_attach(options)
    print()
    print_table(attaching)
    finish(options.json, facts, rows + attaching)


if __name__ == "__main__":
    main()
