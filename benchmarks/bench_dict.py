"""RHashMap from Python beside the builtin dict, in one run.

    python benchmarks/bench_dict.py [--quick] [--sizes 8/8 32/256] [--json FILE]

Method. Both hold the same entries. One sample runs one loop over a list of key objects; samples
alternate dict, map, dict, map, ... and each pair gives one ratio, so that a disturbance of the
machine slows both. The table shows the median of the samples and the median, smallest and largest
of the pairs' ratios: the time of the map divided by the time of the dict, smaller is better.

- "loop" is the ratio as a program sees it, the for loop included; "net" is the ratio of medians
  after subtracting an empty loop over the same keys, measured in the same rounds.
- Each subject's loop has a code object of its own: CPython specialises byte code in place, so a
  loop shared by a dict and a map would be specialised for neither.
- The key objects are those with which the dict was filled (--keys same): their hashes are cached
  and an identity check settles the comparison, which favours the dict. --keys copies looks up equal
  objects made for each sample, like keys from a file or a socket. A sample of 1,000 entries passes
  over them many times, so the hashes are cached from the second pass on.
- 1,000 entries: all keys again and again, in order of insertion or in one shuffled order.
  1,000,000 entries: a sample of SAMPLED_KEYS keys in random order, so that key objects, dict
  entries and map entries all miss the caches; the empty loop has the key objects' misses, too.
- insert fills an empty map or a new dict with all keys, delete empties it again: both times include
  growth, and the map's include shrinking (a dict never shrinks by deletions).
- The dict holds a value object for each key, as it would in a program; get touches it. set and
  insert store the same object for all keys, and the dict only keeps a reference to it.
- get drops each value at once; keep puts all values in a list, and the time includes freeing it. A
  map makes a bytes object for each value, and can reuse one that was dropped.
- add is `map.add(key, 1)` for the map and `d[key] += 1` on ints for the dict.

The garbage collector is off. No other program should run: load_before tells.
"""

import argparse
import gc
import os
import random
import statistics
import time
import types

from report import machine, print_facts, print_table, spread, write_json

import shmrhash

SAMPLED_KEYS = 250_000  # with 8-byte keys 10 MB of key objects for 24 MB or more of entries
OPERATIONS_A_SAMPLE = 250_000  # some 10 ms: long for the timer, short for a disturbance
COUNTER_START = 1000  # beyond the small ints that CPython preallocates


def empty(subject, keys, value):
    for _key in keys:
        pass


def get(subject, keys, value):
    for key in keys:
        subject[key]


def keep(subject, keys, value):
    return [subject[key] for key in keys]


def contains(subject, keys, value):
    for key in keys:
        key in subject  # noqa: B015


def set_present(subject, keys, value):
    for key in keys:
        subject[key] = value


def add_dict(subject, keys, value):
    for key in keys:
        subject[key] += 1


def add_map(subject, keys, value):
    add = subject.add
    for key in keys:
        add(key, 1)


def delete(subject, keys, value):
    for key in keys:
        del subject[key]


def own_copy(function):
    """The same function with a code object of its own (see the head comment)."""
    return types.FunctionType(function.__code__.replace(), function.__globals__)


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def key_objects(keys, how):
    """The list itself, or a list of equal objects that were never hashed."""
    return [bytes(bytearray(key)) for key in keys] if how == "copies" else keys


class Subject:
    """The dict or the map, with its own loops."""

    def __init__(self, full, make_empty, counters, add):
        self.full = full
        self.make_empty = make_empty
        self.counters = counters
        loops = {
            "get": get,
            "keep": keep,
            "in": contains,
            "set": set_present,
            "insert": set_present,
        }
        self.loops = {name: own_copy(loop) for name, loop in loops.items()}
        self.loops |= {"add": own_copy(add), "delete": own_copy(delete)}

    def sample(self, operation, keys, value, passes):
        """Seconds of passes loops over all keys."""
        subject = self.counters if operation == "add" else self.full
        return sum(seconds(self.loops[operation], subject, keys, value) for _ in range(passes))

    def sample_fill(self, keys, value, passes):
        """Seconds of inserting all keys into an empty subject, and of deleting them."""
        inserting = deleting = 0.0
        for _ in range(passes):
            subject = self.make_empty()
            inserting += seconds(self.loops["insert"], subject, keys, value)
            deleting += seconds(self.loops["delete"], subject, keys, value)
        return inserting, deleting


def row(name, operations, dict_samples, map_samples, empty_samples):
    """One line of the result; times in ns per operation."""
    scale = 1e9 / operations
    pairs = [m / d for m, d in zip(map_samples, dict_samples, strict=True)]
    idle = statistics.median(empty_samples)
    net_dict = statistics.median(dict_samples) - idle
    net_map = statistics.median(map_samples) - idle
    return {
        "operation": name,
        "dict_ns": spread([d * scale for d in dict_samples]),
        "map_ns": spread([m * scale for m in map_samples]),
        "empty_loop_ns": idle * scale,
        "ratio_loop": spread(pairs),
        "ratio_net": net_map / net_dict,
    }


def measure(entries, key_size, value_size, orders, options):
    """All operations on maps of one size; return rows."""
    chooser = random.Random(options.seed)
    numbers = chooser.sample(range(1 << 62), entries)
    keys = [number.to_bytes(8, "little").rjust(key_size, b"k") for number in numbers]
    value = chooser.randbytes(value_size)
    name = f"bench-dict-{os.getpid()}"
    maps = {}
    rows = []
    try:
        for role in ("full", "empty", "counters"):
            maps[role] = shmrhash.RHashMap.create(
                f"{name}-{role}",
                key_size=key_size,
                value_size=8 if role == "counters" else value_size,
                max_entries=entries,
            )
        for key in keys:
            maps["full"][key] = value
            maps["counters"].add(key, COUNTER_START, default=0)
        subjects = {
            "dict": Subject({}, dict, {}, add_dict),
            "map": Subject(maps["full"], lambda: maps["empty"], maps["counters"], add_map),
        }
        empty_loop = own_copy(empty)
        for order in orders:
            for key in keys:  # every value and count an object of its own, also after `set`
                subjects["dict"].full[key] = bytes(bytearray(value))
                subjects["dict"].counters[key] = COUNTER_START + len(subjects["dict"].counters)
            if order == "in order":
                chosen = list(keys)
            else:
                chosen = chooser.sample(keys, min(entries, SAMPLED_KEYS))
            passes = max(1, OPERATIONS_A_SAMPLE // len(chosen))
            for operation in ("get", "keep", "in", "set", "add"):
                samples = {"dict": [], "map": [], "empty": []}
                for _ in range(options.rounds):
                    for who, subject in subjects.items():
                        looked_up = key_objects(chosen, options.keys)
                        samples[who].append(subject.sample(operation, looked_up, value, passes))
                    looked_up = key_objects(chosen, options.keys)
                    idle = sum(seconds(empty_loop, None, looked_up, value) for _ in range(passes))
                    samples["empty"].append(idle)
                what = f"{operation}, {entries:,} x {key_size}/{value_size}, {order}"
                rows.append(row(what, passes * len(chosen), *samples.values()))
        passes = max(1, OPERATIONS_A_SAMPLE // entries)
        samples = {"dict": [], "map": [], "empty": []}
        for _ in range(options.rounds):
            for who, subject in subjects.items():
                samples[who].append(subject.sample_fill(keys, value, passes))
            idle = sum(seconds(empty_loop, None, keys, value) for _ in range(passes))
            samples["empty"].append(idle)
        for index, operation in enumerate(("insert", "delete")):
            what = f"{operation}, {entries:,} x {key_size}/{value_size}, in order"
            times = [[pair[index] for pair in samples[who]] for who in subjects]
            rows.append(row(what, passes * entries, *times, samples["empty"]))
    finally:
        for shared_map in maps.values():
            shared_map.unlink()
            shared_map.close()
    return rows


def display(rows):
    print_table(
        [
            {
                "operation": r["operation"],
                "dict ns": f"{r['dict_ns']['median']:.1f}",
                "map ns": f"{r['map_ns']['median']:.1f}",
                "empty loop ns": f"{r['empty_loop_ns']:.1f}",
                "map/dict, loop": f"{r['ratio_loop']['median']:.2f}",
                "(min .. max)": f"({r['ratio_loop']['min']:.2f} .. {r['ratio_loop']['max']:.2f})",
                "map/dict, net": f"{r['ratio_net']:.2f}",
            }
            for r in rows
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["8/8"], metavar="KEY/VALUE")
    parser.add_argument("--keys", choices=["same", "copies"], default="same")
    parser.add_argument("--quick", action="store_true", help="1,000 entries only, 3 rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3

    facts = machine() | {"seed": options.seed, "rounds": options.rounds, "keys": options.keys}
    print_facts(facts)
    gc.disable()
    rows = []
    for sizes in options.sizes:
        key_size, value_size = map(int, sizes.split("/"))
        rows += measure(1000, key_size, value_size, ["in order", "shuffled"], options)
        if not options.quick:
            rows += measure(1_000_000, key_size, value_size, ["random"], options)
    display(rows)
    write_json(options.json, facts, rows)


if __name__ == "__main__":
    main()
