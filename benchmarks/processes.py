"""How fast one and two processes read and update one map, each process with its own keys.

    python benchmarks/processes.py [--processes 1 2] [--entries 1000] [--json FILE]

Method. Each process is pinned to a core of its own and runs the same Python loop over its own
share of the keys: get (m[key]), set (m[key] = value) or add. All start at one barrier; the rate is
the number of all operations over the time from the first start to the last end. Rounds alternate
between the numbers of processes. "scaling" is the median rate of N processes over that of one.

The same rounds measure a builtin dict in each process, with nothing shared: it shows what the
machine itself gives to two processes, since two cores of a virtual machine are often less than two.
--processes beyond the number of cores is refused: that would measure the scheduler.
"""

import argparse
import multiprocessing
import os
import random
import time

from report import machine, print_facts, print_table, spread, write_json

import shmrhash

OPERATIONS = 1_000_000  # of one process in one round: 50 ms or more, long compared with the barrier


def loop_get(subject, keys):
    for key in keys:
        subject[key]


def loop_set(subject, keys, value=bytes(8)):
    for key in keys:
        subject[key] = value


def loop_add(subject, keys):
    add = subject.add
    for key in keys:
        add(key, 1)


LOOPS = {"get": loop_get, "set": loop_set, "add": loop_add}


def worker(subject, keys, loop_name, core, barrier, results):
    os.sched_setaffinity(0, {core})
    loop = LOOPS[loop_name]
    passes = max(1, OPERATIONS // len(keys))
    loop(subject, keys)  # warms up page tables, registration, byte code
    barrier.wait()
    start = time.monotonic()  # one clock for all processes
    for _ in range(passes):
        loop(subject, keys)
    results.put((start, time.monotonic(), passes * len(keys)))


def rate(subject, shares, loop_name):
    """Operations per second of all processes together, one process for each share of keys."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(shares))
    results = context.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0))
    processes = [
        context.Process(target=worker, args=(subject, keys, loop_name, core, barrier, results))
        for keys, core in zip(shares, cores, strict=False)
    ]
    for process in processes:
        process.start()
    starts, ends, operations = zip(*(results.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    return sum(operations) / (max(ends) - min(starts))


def measure(options):
    chooser = random.Random(options.seed)
    most = max(options.processes)
    numbers = chooser.sample(range(1 << 62), options.entries)
    keys = [number.to_bytes(8, "little") for number in numbers]
    shares = [keys[index::most] for index in range(most)]
    rows = []
    with shmrhash.RHashMap.create(
        f"bench-processes-{os.getpid()}", key_size=8, value_size=8, max_entries=options.entries
    ) as shared_map:
        try:
            for key in keys:
                shared_map[key] = bytes(8)
            own_dict = {key: bytes(bytearray(8)) for key in keys}
            subjects = {
                "dict, each its own": (own_dict, ["get", "set"]),
                "map, shared": (shared_map, ["get", "set", "add"]),
            }
            rates = {}
            for _ in range(options.rounds):
                for who, (subject, loop_names) in subjects.items():
                    for loop_name in loop_names:
                        for count in options.processes:
                            found = rate(subject, shares[:count], loop_name)
                            rates.setdefault((who, loop_name, count), []).append(found)
        finally:
            shared_map.check()
            shared_map.unlink()
    for (who, loop_name, count), values in rates.items():
        one = spread(rates[who, loop_name, options.processes[0]])["median"]
        summary = spread(values)
        rows.append(
            {
                "subject": who,
                "operation": loop_name,
                "processes": count,
                "M/s": round(summary["median"] / 1e6, 2),
                "(min .. max)": f"({summary['min'] / 1e6:.2f} .. {summary['max'] / 1e6:.2f})",
                "scaling": round(summary["median"] / one, 2),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--entries", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if max(options.processes) > len(os.sched_getaffinity(0)):
        parser.error("more processes than cores")

    facts = machine() | {"seed": options.seed, "rounds": options.rounds, "entries": options.entries}
    print_facts(facts)
    rows = measure(options)
    print_table(rows)
    write_json(options.json, facts, rows)


if __name__ == "__main__":
    main()
