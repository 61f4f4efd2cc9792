"""What locking costs in one process, and how long processes wait that use the same key.

    python benchmarks/bench_locks.py [--quick] [--processes 2 8 32] [--seconds 3] [--json FILE]

Alone: one process, one map of 1,000 entries with values of 8 bytes, loops of Python over all keys;
samples of the operations take turns, and each turn gives one ratio to update(). "section" is
`with m.locked(key): pass`; "section, read and write" also unpacks and packs a number.

Together: several processes, one key for all ("shared") or one for each ("own"), for some seconds:
add, or a section that adds one. A wait is the time from the call until the process is inside the
section, or until add() returns. "own" waits for no lock: it shows what the machine itself costs,
with more processes than cores mostly its scheduler, and is what "shared" is to be compared with.
fairness is the smallest number of operations of a process over the largest. At the end the numbers
stored under the keys must add up to the number of all operations.

Primitives (primitives.py): acquire and release, with, is_set and so on, of objects that nobody else
uses, beside the same types of multiprocessing and threading, and posix_ipc's where it is installed.
"""

import argparse
import array
import gc
import multiprocessing
import os
import statistics
import struct
import time

import numpy
from primitives import measure_primitives, primitive_cells
from report import machine, print_facts, print_table, spread, write_json

import shmrhash

ENTRIES = 1000
PASSES = 100
WAIT_NS_MAX = (1 << 32) - 1


def word(number):
    return number.to_bytes(8, "little")


def loop_set(m, keys, value=bytes(8)):
    for key in keys:
        m[key] = value


def loop_update(m, keys, value=bytes(8)):
    update = m.update
    for key in keys:
        update(key, value)


def loop_add(m, keys):
    add = m.add
    for key in keys:
        add(key, 1)


def loop_max(m, keys):
    raise_to = m.max
    for key in keys:
        raise_to(key, 1)


def loop_swap(m, keys, value=bytes(8)):
    swap = m.compare_and_swap
    for key in keys:
        swap(key, value, value)


def loop_exchange(m, keys, value=bytes(8)):
    exchange = m.exchange
    for key in keys:
        exchange(key, value)


def loop_section(m, keys):
    locked = m.locked
    for key in keys:
        with locked(key):
            pass


def loop_section_number(m, keys):
    locked = m.locked
    for key in keys:
        with locked(key) as value:
            (number,) = value.unpack("<q")
            value.pack("<q", number + 1)


def loop_update_with(m, keys):
    update_with = m.update_with
    for key in keys:
        update_with(key, bytes)


def loop_two_sections(m, keys):
    locked_many = m.locked_many
    for pair in zip(keys[::2], keys[1::2], strict=True):
        with locked_many(pair):
            pass


LOOPS = {
    "m[key] = value": loop_set,
    "update": loop_update,
    "add": loop_add,
    "max": loop_max,
    "compare_and_swap": loop_swap,
    "exchange": loop_exchange,
    "section": loop_section,
    "section, read and write": loop_section_number,
    "update_with": loop_update_with,
    "two keys by locked_many, each": loop_two_sections,
}


def measure_alone(rounds):
    """One row for each operation: its time, alone."""
    keys = [word(number) for number in range(ENTRIES)]
    m = shmrhash.RHashMap.create(
        f"bench-locks-{os.getpid()}", key_size=8, value_size=8, max_entries=ENTRIES
    )
    samples = {name: [] for name in LOOPS}
    try:
        for key in keys:
            m[key] = bytes(8)
        for _ in range(rounds):
            for name, loop in LOOPS.items():
                m.update_batch(keys, [bytes(8)] * ENTRIES)
                start = time.perf_counter()
                for _ in range(PASSES):
                    loop(m, keys)
                samples[name].append((time.perf_counter() - start) / PASSES / ENTRIES * 1e9)
    finally:
        m.unlink()
        m.close()
    base = samples["update"]
    return [
        {
            "operation": name,
            "ns": spread(times),
            "ratio_update": spread([one / other for one, other in zip(times, base, strict=True)]),
        }
        for name, times in samples.items()
    ]


def add_for(m, key, seconds, waits):
    clock, add, append = time.perf_counter_ns, m.add, waits.append
    end = clock() + int(seconds * 1e9)
    while (before := clock()) < end:
        add(key, 1)
        append(min(clock() - before, WAIT_NS_MAX))


def lock_for(m, key, seconds, waits):
    clock, locked, append = time.perf_counter_ns, m.locked, waits.append
    end = clock() + int(seconds * 1e9)
    while (before := clock()) < end:
        with locked(key, timeout=60) as value:
            append(min(clock() - before, WAIT_NS_MAX))
            (number,) = value.unpack("<q")
            value.pack("<q", number + 1)


def worker(loop, m, key, seconds, barrier, connection):
    waits = array.array("I")
    loop(m, key, 0, waits)
    m.lookup(key)
    gc.disable()
    barrier.wait()
    loop(m, key, seconds, waits)
    connection.send_bytes(waits)


def measure_together(what, loop, processes, seconds, shared):
    """One row: several processes at once."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    m = shmrhash.RHashMap.create(
        f"bench-locks-{os.getpid()}", key_size=8, value_size=8, max_entries=ENTRIES
    )
    try:
        keys = [word(0 if shared else number) for number in range(processes)]
        for key in keys:
            m[key] = bytes(8)
        pipes, crew = [], []
        for key in keys:
            mine, theirs = context.Pipe(duplex=False)
            crew.append(
                context.Process(target=worker, args=(loop, m, key, seconds, barrier, theirs))
            )
            crew[-1].start()
            theirs.close()
            pipes.append(mine)
        waits = [numpy.frombuffer(pipe.recv_bytes(), numpy.uint32) for pipe in pipes]
        for process in crew:
            process.join()
        counted = sum(struct.unpack("<q", m[key])[0] for key in set(keys))
        m.check()
    finally:
        m.unlink()
        m.close()
    counts = [len(one) for one in waits]
    if counted != sum(counts):
        raise SystemExit(f"{what}: {sum(counts)} operations, and {counted} counted")
    together = numpy.concatenate(waits)
    p50, p99, p999 = numpy.percentile(together, [50, 99, 99.9]) / 1e3
    return {
        "operation": what,
        "keys": "shared" if shared else "own",
        "processes": processes,
        "per_second": sum(counts) / seconds,
        "p50_us": float(p50),
        "p99_us": float(p99),
        "p99.9_us": float(p999),
        "max_ms": float(together.max() / 1e6),
        "median_process_max_ms": statistics.median(float(one.max()) / 1e6 for one in waits),
        "fairness": min(counts) / max(counts),
    }


def display_alone(rows):
    print_table(
        [
            {
                "operation": row["operation"],
                "ns": f"{row['ns']['median']:.0f}",
                "(min .. max)": f"({row['ns']['min']:.0f} .. {row['ns']['max']:.0f})",
                "/ update": f"{row['ratio_update']['median']:.2f}",
            }
            for row in rows
        ]
    )


def display_together(rows):
    print_table(
        [
            {
                "operation": row["operation"],
                "keys": row["keys"],
                "processes": row["processes"],
                "per second": f"{row['per_second']:,.0f}",
                "p50 us": f"{row['p50_us']:.2f}",
                "p99 us": f"{row['p99_us']:.1f}",
                "p99.9 us": f"{row['p99.9_us']:.0f}",
                "max ms": f"{row['max_ms']:.1f}",
                "median max ms": f"{row['median_process_max_ms']:.1f}",
                "fairness": f"{row['fairness']:.2f}",
            }
            for row in rows
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (%(default)s)")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 2 processes, 0.2 s")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.processes, options.seconds = 3, [2], 0.2

    facts = machine() | {"rounds": options.rounds, "seconds": options.seconds}
    print_facts(facts)
    gc.disable()
    alone = measure_alone(options.rounds)
    display_alone(alone)
    together = [
        measure_together(what, loop, processes, options.seconds, shared)
        for what, loop in [("section", lock_for), ("add", add_for)]
        for processes in options.processes
        for shared in (False, True)
    ]
    display_together(together)
    primitives = measure_primitives(options.rounds)
    print_table([primitive_cells(row) for row in primitives])
    write_json(options.json, facts, alone + together + primitives)


if __name__ == "__main__":
    main()
