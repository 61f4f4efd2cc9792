"""The three benchmarks of the kernel's rhashtable map series, beside the kernel's own hash map.

    python benchmarks/bench_kernel.py [--quick] [--only lookup update memory] [--json FILE]

Needs Cython and a C compiler; the kernel's side needs root or CAP_BPF with CAP_PERFMON. Where
bpf(2) is refused its columns are empty and the facts say why.

Sides. "htab" is BPF_MAP_TYPE_HASH, driven by a program inside the kernel (programs.py), with the
loops of the series around the same helpers. "core" is this library's map in shared memory, driven
by a loop in C (_bench.pyx). "fixed" is the core's table without growth and without crash safety
(_fixed.pxi), as htab is the series' RHASH without growth. All sides are in one run and take turns
in each round; the ratios are the medians of the rounds' ratios: rate over htab's rate, larger is
better. The series' published RHASH/HASH, from another machine, stands beside them.

LOOKUP. Keys of 8, 32, 256 bytes, values of 8; max_entries 1,000 and 1,000,000, 75 % and 100 %
full; keys in sequence, every lookup hits. One lookup is one event; the series credits 1,000,000
events for 750,000 lookups at 75 % of 1M. htab is preallocated, as in the series. A lookup of htab
gives a pointer; core and fixed also copy the value and check that the copy is complete. "net"
leaves out the loop: the time of a loop without lookup ("loop ns"), measured in the same round on
each side, is subtracted. "batched" is the core's lookup_many of the same keys from an array,
BATCH_KEYS a call, which overlaps the cache misses. The kernel has no equivalent.

FULL UPDATE. Keys of 4 bytes, values of 8, 1,000 of 1,000 entries; one producer for each core, each
with one key of its own. "absent" is the series' program: the key is absent and every update is
refused (E2BIG). "present" is what the series' cover letter describes: the value is replaced. The
elements of keys inserted one after another lie 24 bytes apart, so "neighbours" share a cache line,
for which the producers compete; "apart" do not. htab's elements have lines of their own.

MEMORY. Keys of 4 bytes, values of 32 and 4096, max_entries 8192, one batch is 64 keys:
overwrite updates them, batch_add_batch_del updates and deletes them, add_del_on_diff_cpu has pairs
of producers of which one adds (NOEXIST) and the other deletes. Each batch of updates or deletes is
one operation; rates are thousands a second and producer. htab is not preallocated. In the first two
cases one start of htab's program performs ROUNDS_A_START rounds, so its rate includes no system
calls, which favours it; in the third each batch is one start. Memory is the largest seen: for htab
what its fdinfo says (buckets and elements, without free lists), for the core all pages of its file.
"""

import argparse
import random
import time

import kernel_producers
import programs
from building import attach, build_bench, key_of
from programs import bpf
from report import finish, machine, median_row, print_facts, print_table, unique_name

import shmrhash

LOOKUPS_A_SAMPLE = 1_000_000
BATCH_KEYS = 4096
POINTS = [(1000, 750), (1000, 1000), (1_000_000, 750_000), (1_000_000, 1_000_000)]
PUBLISHED = {  # RHASH over HASH, in the order of POINTS
    8: [0.82, 0.80, 3.08, 4.01],
    32: [0.83, 0.90, 1.36, 1.19],
    256: [1.04, 1.05, 1.16, 1.20],
}


class Kernel:
    """The kernel's side of LOOKUP; run() is like BenchHandle's."""

    def __init__(self, key_size, max_entries):
        self.map = bpf.KernelMap.create(
            key_size=key_size, value_size=8, max_entries=max_entries, map_flags=0
        )
        self.programs = {}

    def run(self, task, count, *, passes=1):
        if task not in self.programs:
            self.programs[task] = programs.LoopProgram(self.map, [task])
        return self.programs[task].run(turns=count, passes=passes)

    def close(self):
        for program in self.programs.values():
            program.close()
        self.map.close()


class Batched:
    """lookup_many on the map; run() is like BenchHandle's, with the loops' keys."""

    def __init__(self, shared_map, entries):
        self.map = shared_map
        every = [key_of(index, shared_map.key_size) for index in range(entries)]
        self.keys = [
            b"".join(every[first : first + BATCH_KEYS]) for first in range(0, entries, BATCH_KEYS)
        ]
        self.values = bytearray(BATCH_KEYS * shared_map.value_size)

    def run(self, task, _count, *, passes=1):
        if task == "nothing":
            return 0, 0
        done = 0
        start = time.perf_counter_ns()
        for _ in range(passes):
            for keys in self.keys:
                some = len(keys) // self.map.key_size * self.map.value_size
                _, found = self.map.lookup_many(keys, out=memoryview(self.values)[:some])
                done += len(found) if 0 not in bytes(found) else 0
        return time.perf_counter_ns() - start, done


def check_contents(kernel, shared_map, entries, chooser):
    """Check by single lookups that both maps have the keys of the loops."""
    for index in [0, entries - 1, *chooser.sample(range(entries), 10)]:
        key = key_of(index, shared_map.key_size)
        if key not in shared_map:
            raise RuntimeError(f"key {index} is not in the map")
        if kernel and kernel.map.lookup(key).error:
            raise RuntimeError(f"key {index} is not in the kernel's map")


def sample(side, entries):
    """Nanoseconds of one lookup with its loop, and of the loop alone."""
    passes = max(1, LOOKUPS_A_SAMPLE // entries)
    alone, _ = side.run("nothing", entries, passes=passes)
    nanoseconds, done = side.run("lookup", entries, passes=passes)
    if done != passes * entries:
        raise RuntimeError(f"{type(side).__name__}: {done} of {passes * entries} lookups hit")
    return nanoseconds / done, alone / done


def measure_lookup(bench, key_size, point, options):
    max_entries, entries = POINTS[point]
    chooser = random.Random(options.seed)
    sizes = {"key_size": key_size, "value_size": 8, "max_entries": max_entries}
    name = unique_name("lookup")
    kernel = Kernel(key_size, max_entries) if options.kernel else None
    try:
        with shmrhash.RHashMap.create(name, **sizes) as shared_map:
            try:
                sides = {"htab": kernel} if kernel else {}
                sides["core"] = attach(bench, name)
                sides["batched"] = Batched(shared_map, entries)
                sides["fixed"] = bench.Fixed(key_size, 8, max_entries, chooser.randbytes(32))
                for who, side in sides.items():
                    if who != "batched" and side.run("insert", entries)[1] != entries:
                        raise RuntimeError("not all keys were inserted")
                check_contents(kernel, shared_map, entries, chooser)
                samples = {who: [] for who in sides}
                for _ in range(options.rounds):
                    for who, side in sides.items():
                        samples[who].append(sample(side, entries))
                shared_map.check()
            finally:
                shared_map.unlink()
    finally:
        if kernel:
            kernel.close()
    return lookup_row(key_size, point, samples)


def lookup_row(key_size, point, samples):
    max_entries, entries = POINTS[point]
    row = {
        "benchmark": "LOOKUP",
        "key_size": key_size,
        "max_entries": max_entries,
        "entries": entries,
        "published_ratio": PUBLISHED[key_size][point],
    }
    for who, pairs in samples.items():
        row |= median_row(f"{who}_per_second", [1e9 / gross for gross, _ in pairs])
        row |= median_row(f"{who}_loop_ns", [loop for _, loop in pairs])
        row |= median_row(f"{who}_net_ns", [gross - loop for gross, loop in pairs])
    for who in [who for who in ("core", "batched", "fixed") if "htab" in samples]:
        pairs = list(zip(samples["htab"], samples[who], strict=True))
        row |= median_row(f"{who}_ratio", [theirs[0] / ours[0] for theirs, ours in pairs])
        net = [(theirs[0] - theirs[1]) / (ours[0] - ours[1]) for theirs, ours in pairs]
        row |= median_row(f"{who}_ratio_net", net)
    fixed, core = samples["fixed"], samples["core"]
    growing = [f[0] / c[0] for f, c in zip(fixed, core, strict=True)]
    return row | median_row("core_over_fixed", growing)


def show(row, name, digits=2, scale=1.0):
    return f"{row[name]['median'] * scale:.{digits}f}" if name in row else "-"


def display_lookup(rows):
    print("\nLOOKUP, millions of events a second; ratios are to htab")
    print_table(
        [
            {
                "key, max_entries, fill": f"{r['key_size']} B, {r['max_entries']:,}, "
                f"{r['entries'] * 100 // r['max_entries']} %",
                "core/htab": show(r, "core_ratio"),
                "(min .. max)": f"({r['core_ratio']['min']:.2f} .. {r['core_ratio']['max']:.2f})"
                if "core_ratio" in r
                else "-",
                "series RHASH/HASH": f"{r['published_ratio']:.2f}",
                "core/htab, net": show(r, "core_ratio_net"),
                "batched/htab": show(r, "batched_ratio"),
                "fixed/htab": show(r, "fixed_ratio"),
                "core/fixed": show(r, "core_over_fixed"),
                "htab M/s": show(r, "htab_per_second", scale=1e-6),
                "core M/s": show(r, "core_per_second", scale=1e-6),
                "batched M/s": show(r, "batched_per_second", scale=1e-6),
                "fixed M/s": show(r, "fixed_per_second", scale=1e-6),
                "loop ns htab, core": f"{show(r, 'htab_loop_ns', 1)}, {show(r, 'core_loop_ns', 1)}",
            }
            for r in rows
        ]
    )


def display_producers(title, rows, unit, scale):
    print(f"\n{title}, {unit} and producer; ratios are to htab")
    print_table(
        [
            {
                "what": r["what"],
                "core/htab": show(r, "core_ratio"),
                "(min .. max)": f"({r['core_ratio']['min']:.2f} .. {r['core_ratio']['max']:.2f})"
                if "core_ratio" in r
                else "-",
                "series RHASH/HASH": r["published_ratio"] or "-",
                f"htab {unit}": show(r, "htab_per_second", scale=scale),
                f"core {unit}": show(r, "core_per_second", scale=scale),
                "htab MiB": show(r, "htab_bytes", scale=2**-20),
                "core MiB": show(r, "core_bytes", scale=2**-20),
                "htab refused": show(r, "htab_refused", 3),
            }
            for r in rows
        ]
    )


def kernel_refuses():
    """Why the kernel's side cannot be measured; "" if it can."""
    try:
        kernel = Kernel(8, 4)
        try:
            kernel.run("nothing", 4)
        finally:
            kernel.close()
    except (bpf.Refused, OSError) as refused:
        return str(refused)
    return ""


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=["lookup", "update", "memory"])
    parser.add_argument("--key-sizes", nargs="+", type=int, default=list(PUBLISHED))
    parser.add_argument("--producers", type=int, help="of UPDATE and MEMORY (one for each core)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="a sample of UPDATE and MEMORY")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="maps of 1,000 only, 3 short rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 3, 0.02
    return options


def main():
    options = parse()
    bench = build_bench()
    refusal = kernel_refuses()
    options.kernel = not refusal
    facts = machine() | {"seed": options.seed, "rounds": options.rounds}
    facts["kernel_side"] = refusal or "BPF_MAP_TYPE_HASH, program inside the kernel"
    print_facts(facts)
    rows = []
    if "lookup" in options.only:
        points = range(2) if options.quick else range(4)
        for key_size in options.key_sizes:
            rows += [measure_lookup(bench, key_size, point, options) for point in points]
        display_lookup(rows)
    for title, unit, scale, run in (
        ("FULL UPDATE", "M/s", 1e-6, kernel_producers.measure_update),
        ("MEMORY", "k/s", 1e-3, kernel_producers.measure_memory),
    ):
        if title.split()[-1].lower() in options.only:
            found = run(bench, options)
            display_producers(title, found, unit, scale)
            rows += found
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
