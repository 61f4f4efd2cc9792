"""How long a dead owner delays other processes, and what a stopped one costs its readers.

    python benchmarks/recovery.py [--deaths 200] [--reads 20000] [--json FILE]

Recovery, end to end. A small process is stopped in the middle of an update of one value (the driver
of tests/crash stops it after a given change of the segment) and then killed. The time runs from the
call of kill(2) until another process's operation on the same key has returned; it includes the
teardown of the dead process's address space:

  writes next      the killer itself updates the key, right after the kill
  waits already    another process has been waiting for the key since before the kill
  attaches         the killer opens the map, which recovers, and updates the key

Goal: below 5 ms. info()["recovery_ns_max"] is the time of recovery alone.

Reads. If a writer is stopped in the middle of replacing a value, readers take the value from the
writer's redo buffer. A loop of `m.lookup(key)` on such a key takes turns with the same loop on a
key that no process writes. Goal: at most twice the time.

A busy machine adds its scheduling to the first table; "load_before" tells how busy it was.
"""

import argparse
import contextlib
import itertools
import mmap
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from report import machine, print_facts, print_table, spread, write_json

import shmrhash
from shmrhash import RHashMap

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support import stepping

ROUNDS = 9
HELD_KEY, OTHER_KEY = 3, 5
NUMBERS = itertools.count(10)  # every update writes another value


def word(number):
    return number.to_bytes(8, "little")


def put(m, key, number):
    m.update(word(key), word(number) * (m.value_size // 8))


def stopped_owner(m):
    """A child stopped in the middle of its update of HELD_KEY, after the first half of the copy.

    An update writes the redo buffer, commits, and copies the buffer into the element. The update of
    one word uses no redo buffer: several changes are tried until one leaves the element held.
    """
    segment = stepping.Segment(os.path.join(os.environ.get("SHMRHASH_DIR", "/dev/shm"), m.name))
    middle = stepping.changes_until(
        lambda: registered(m.name),
        partial(put, key=HELD_KEY, number=next(NUMBERS)),
        segment,
        3 / 4 if m.value_size > 8 else 0,
    )
    for change in range(middle, middle + 20):
        number = next(NUMBERS)
        child = stepping.stop_at_change(
            lambda: registered(m.name), partial(put, key=HELD_KEY, number=number), segment, change
        )
        with RHashMap.open(m.name, timeout=0) as hasty:
            try:
                put(hasty, HELD_KEY, 1)
            except shmrhash.LockTimeout:
                return child
        child.kill()
    raise SystemExit("there is no state in which the element is held")


def registered(name):
    own = RHashMap.open(name)
    own.lookup(word(OTHER_KEY))
    return own


@contextlib.contextmanager
def new_map(value_size):
    name = f"bench-recovery-{os.getpid()}"
    with RHashMap.create(name, key_size=8, value_size=value_size, max_entries=1000) as m:
        try:
            for key in range(100):
                put(m, key, 1)
            yield m
        finally:
            m.check()
            m.unlink()


# ---- recovery ----


def writes_next(m, child):
    began = time.perf_counter()
    os.kill(child.pid, 9)
    put(m, HELD_KEY, 2)
    return time.perf_counter() - began


def attaches(m, child):
    began = time.perf_counter()
    os.kill(child.pid, 9)
    with RHashMap.open(m.name) as own:
        put(own, HELD_KEY, 2)
        return time.perf_counter() - began


def waits_already(m, child):
    """The waiter is a forked process; perf_counter is the same clock in both."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    times = memoryview(page).cast("d")
    ready, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            own = RHashMap.open(m.name, timeout=None)
            own.lookup(word(OTHER_KEY))
            os.write(theirs, b"r")
            put(own, HELD_KEY, 2)
            times[0] = time.perf_counter()
        finally:
            os._exit(0)
    os.read(ready, 1)
    time.sleep(0.02)  # then the waiter is in its longest sleeps
    began = time.perf_counter()
    os.kill(child.pid, 9)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(theirs)
    return times[0] - began


def measure_recovery(deaths, value_size):
    rows = []
    for meet in (writes_next, waits_already, attaches):
        with new_map(value_size) as m:
            spent = []
            for _ in range(deaths):
                with stopped_owner(m) as child:
                    spent.append(meet(m, child))
                if m[word(HELD_KEY)] != word(2) * (value_size // 8):
                    raise SystemExit("the survivor's value is not there")
            info = m.info()
        spent.sort()
        rows.append(
            {
                "who meets the dead": meet.__name__.replace("_", " "),
                "deaths": deaths,
                "median ms": round(statistics.median(spent) * 1e3, 3),
                "p90 ms": round(spent[len(spent) * 9 // 10] * 1e3, 3),
                "max ms": round(spent[-1] * 1e3, 3),
                "recovery itself, max ms": round(info["recovery_ns_max"] / 1e6, 3),
            }
        )
    return rows


# ---- reads ----


def time_reads(m, key, reads):
    lookup, name = m.lookup, word(key)
    began = time.perf_counter_ns()
    for _ in range(reads):
        lookup(name)
    return (time.perf_counter_ns() - began) / reads


def measure_reads(reads, value_sizes):
    rows = []
    for value_size in value_sizes:
        with new_map(value_size) as m, stopped_owner(m) as child:
            normal, stopped = [], []
            for _ in range(ROUNDS):
                normal.append(time_reads(m, OTHER_KEY, reads))
                stopped.append(time_reads(m, HELD_KEY, reads))
            child.wait()
        normal_ns, stopped_ns = spread(normal)["median"], spread(stopped)["median"]
        rows.append(
            {
                "value bytes": value_size,
                "normal ns": round(normal_ns, 1),
                "writer stopped ns": round(stopped_ns, 1),
                "ratio": round(stopped_ns / normal_ns, 2),
                "(max)": round(max(stopped) / min(normal), 2),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deaths", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--reads", type=int, default=20_000, help="(%(default)s)")
    parser.add_argument(
        "--value-size", type=int, default=256, help="of the first table (%(default)s)"
    )
    parser.add_argument("--value-sizes", nargs="+", type=int, default=[8, 256, 4096])
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        try:
            stepping.load(stepping.build(folder))
        except stepping.CannotStep as error:
            raise SystemExit(str(error)) from None
        reason = stepping.why_not()
        if reason is not None:
            raise SystemExit(reason)
        facts = machine() | {"rounds": ROUNDS, "value_size": options.value_size}
        print_facts(facts)
        recoveries = measure_recovery(options.deaths, options.value_size)
        print_table(recoveries)
        print()
        reads = measure_reads(options.reads, options.value_sizes)
        print_table(reads)
        write_json(options.json, facts, [*recoveries, *reads])


if __name__ == "__main__":
    main()
