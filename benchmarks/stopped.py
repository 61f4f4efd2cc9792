"""What a process that is stopped (not killed) in a split costs the others.

    python benchmarks/stopped.py [--inserts 1000000] [--states 6] [--json FILE]

The driver of tests/crash stops a process in the middle of an insertion that splits a bucket of a
map of 1,000 entries, after one of the changes that it makes while it holds that bucket. Then
another process inserts --inserts keys, and looks up random ones of them; in turn with that, it does
the same in a map in which no process is stopped. Insertions of keys of the held bucket are refused,
and counted.

Goal: lookups take at most three times as long, whatever the change.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from report import machine, print_facts, print_table, unique_name, write_json

import shmrhash
from shmrhash import RHashMap

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support import stepping

SEEDS = (3, 5, 7, 11)
FIRST = 1 << 32
LOOKUPS = 200_000
SMALL = 1000


def word(number):
    return number.to_bytes(8, "little")


def make(inserts):
    """A map whose next insertion splits a bucket, and the key of that insertion."""
    m = RHashMap.create(
        unique_name("stopped"), key_size=8, value_size=8, max_entries=inserts + 4096, _seeds=SEEDS
    )
    for key in range(1, SMALL):
        m[word(key)] = word(key)
    segment = segment_of(m)
    while True:
        image, buckets = segment.image(), m.info()["buckets"]
        key += 1
        m[word(key)] = word(key)
        if m.info()["buckets"] > buckets:
            segment.restore(image)
            return m, key


def segment_of(m):
    return stepping.Segment(os.path.join(os.environ.get("SHMRHASH_DIR", "/dev/shm"), m.name))


def registered(name):
    handle = RHashMap.open(name)
    handle[word(1)] = word(1)
    return handle


def held_states(name, segment, key):
    """The changes after which the splitter holds a bucket and has inserted its entry."""
    image = segment.image()

    def insert(handle):
        handle[word(key)] = word(key)

    changes = len(stepping.trace(lambda: registered(name), insert, segment).changes)
    found = []
    with RHashMap.open(name) as m:
        for number in range(1, changes):
            segment.restore(image)
            with stepping.stop_at_change(lambda: registered(name), insert, segment, number):
                if word(key) in m and any(bucket.locked for bucket in m.walk()):
                    found.append(number)
    segment.restore(image)
    return found


def measure(m, inserts):
    """Nanoseconds of an insertion and of a lookup, longest chain, number of refused insertions."""
    keys = [word(FIRST + number) for number in range(inserts)]
    refused = 0
    began = time.perf_counter_ns()
    for key in keys:
        try:
            m[key] = key
        except shmrhash.LockTimeout:
            refused += 1
    inserted = time.perf_counter_ns()
    asked = random.Random(1).choices(keys, k=LOOKUPS)
    middle = time.perf_counter_ns()
    for key in asked:
        m.get(key)
    ended = time.perf_counter_ns()
    info = m.info()
    return {
        "insert, ns": round((inserted - began) / inserts),
        "lookup, ns": round((ended - middle) / LOOKUPS),
        "buckets": info["buckets"],
        "refused": refused,
        "longest chain": max(bucket.entries for bucket in m.walk()),
    }


def run(inserts, change):
    """Measure a map with a process stopped after a change; None: with no stopped process."""
    m, key = make(inserts)
    try:
        with RHashMap.open(m.name, timeout=0) as hasty:
            if change is None:
                return measure(hasty, inserts)
            with stepping.stop_at_change(
                lambda: registered(m.name),
                lambda handle: handle.update(word(key), word(key)),
                segment_of(m),
                change,
            ):
                return measure(hasty, inserts)
    finally:
        m.unlink()
        m.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inserts", type=int, default=1_000_000)
    parser.add_argument("--states", type=int, default=6)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        stepping.load(stepping.build(folder))
        m, key = make(arguments.inserts)
        states = held_states(m.name, segment_of(m), key)
        m.unlink()
        m.close()
        chosen = states[:: max(1, len(states) // arguments.states)]
        rows = []
        for change in chosen:
            rows.append({"stopped": "nobody"} | run(arguments.inserts, None))
            where = f"after change {change} of {states[0]} to {states[-1]}"
            rows.append({"stopped": where} | run(arguments.inserts, change))
    print_facts(facts)
    print_table(rows)
    write_json(arguments.json, facts, rows)


if __name__ == "__main__":
    main()
