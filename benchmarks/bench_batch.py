"""Batches beside single operations of the core, and iteration beside a builtin dict, in one run.

    python benchmarks/bench_batch.py [--quick] [--rounds 15] [--entries 1000 ...] [--json FILE]

Needs NumPy, Cython and a C compiler: _bench.pyx is compiled first, with the flags of the extension.

Method. Keys and values are random numbers of 8 bytes. Each round runs every variant of an operation
once, for some milliseconds each and in another order each time, so that a disturbance of the
machine slows all variants. The table shows the median of the rates, the best in brackets, and the
median, smallest and largest of the rounds' ratios.

Arrays: the rate of the batch divided by the rate of single operations, larger is better.

- "one by one" is a loop in C over the same arrays of keys, values and marks (run_keys of
  _bench.pyx), so a batch gains only by overlapping cache misses. From Python, each single operation
  also costs a call: see bench_dict.py.
- A batch is called through the package with NumPy arrays of SAMPLED_KEYS keys in random order; a
  map of 1,000 entries has each key in them many times. "out=" reuses the arrays for the values;
  without it, each call makes and zeroes them.
- update: keys that are present. delete removes a sample of the keys, insert puts them back in
  another order; with 1,000 entries the sample is all keys, so growth and shrinking are included.
- to_arrays and lookup_batch (4,096 entries a call) deliver the whole map, and are compared with
  nothing.

Iteration: the time of the map divided by the time of the dict, smaller is better.

- The "for" loops drop each object at once. The dict only hands out references to objects that it
  has; the map makes two bytes objects for each pair, in some 40 ns. list() and dict() keep all
  objects, so both sides also pay for memory; the time includes freeing the result.
- Keys and values of the dict lie in memory in the order of the iteration, which favours the dict:
  in a program they lie where there was room.

The garbage collector is off. No other program should run: load_before tells.
"""

import argparse
import collections
import gc
import os
import random
import time

import numpy
from bench_dict import own_copy, seconds
from building import attach, build_bench
from report import machine, print_facts, print_table, spread, write_json

import shmrhash

SAMPLED_KEYS = 200_000  # some 10 ms; 1.6 MB of keys for a map of 43 MB
PAIRS_A_SAMPLE = 200_000  # for iterations
GOALS = {
    "lookup_many, out=": "1.8x and 30 M/s",
    "update_many": "15 M/s",
    "to_arrays": "40 M/s at 1,000,000",
    "list(m.items())": "3",
    "for k, v in m.items()": "3",
}


# ---- iteration ----


def for_keys(subject):
    for _key in subject.keys():  # noqa: SIM118
        pass


def for_values(subject):
    for _value in subject.values():
        pass


def for_items(subject):
    for _key, _value in subject.items():
        pass


def list_keys(subject):
    list(subject.keys())


def list_values(subject):
    list(subject.values())


def list_items(subject):
    list(subject.items())


def dict_items(subject):
    dict(subject.items())


ITERATIONS = {
    "for k in m.keys()": for_keys,
    "for v in m.values()": for_values,
    "for k, v in m.items()": for_items,
    "list(m.keys())": list_keys,
    "list(m.values())": list_values,
    "list(m.items())": list_items,
    "dict(m.items())": dict_items,
}


# ---- rounds ----


def taking_turns(variants, rounds):
    """Run all variants in each round: by name, what each returned in each round."""
    samples = {name: [] for name in variants}
    names = collections.deque(variants)
    for _ in range(rounds):
        for name in names:
            samples[name].append(variants[name]())
        names.rotate(1)
    return samples


def row(operation, entries, rates, beside, ratios):
    """One line of the result; beside: the rates of what it is compared with, or None."""
    return {
        "operation": operation,
        "entries": entries,
        "per_second": spread(rates),
        "beside_per_second": spread(beside) if beside else None,
        "ratio": spread(ratios) if ratios else None,
        "goal": GOALS.get(operation),
    }


def beside_single(operation, entries, rates, single):
    ratios = [many / one for many, one in zip(rates, single, strict=True)]
    return row(operation, entries, rates, single, ratios)


class Arrays:
    """One map, arrays for it, and a handle for single operations on it."""

    def __init__(self, m, single, keys, chooser):
        self.m = m
        self.single = single
        self.count = len(keys)
        self.chooser = chooser
        turns = max(1, SAMPLED_KEYS // len(keys))
        chosen = min(len(keys), SAMPLED_KEYS)
        self.keys = numpy.concatenate([chooser.permutation(keys)[:chosen] for _ in range(turns)])
        self.values = chooser.integers(0, 1 << 62, len(self.keys), "u8")
        self.out = numpy.zeros_like(self.values)
        self.mask = numpy.zeros(len(self.keys), "u1")
        self.some = chooser.permutation(keys)[:chosen]
        self.again = chooser.permutation(self.some)
        self.turns = turns

    def rate_single(self, task, keys, values):
        """Operations per second of single operations in C."""
        mask = self.mask[: len(keys)]
        took, done = self.single.run_keys(task, keys.view("u1"), values.view("u1"), mask)
        if done != len(keys):
            raise RuntimeError(f"{task}: {done} of {len(keys)} keys")
        return done / took * 1e9

    def rate(self, operation, keys, *arguments, **options):
        """Operations per second of a batch, which must find every key."""
        start = time.perf_counter()
        result = operation(keys, *arguments, **options)
        took = time.perf_counter() - start
        marks = result[1] if isinstance(result, tuple) else result
        if not marks.all():
            raise RuntimeError(f"{operation.__name__}: {marks.sum()} of {len(keys)} keys")
        return len(keys) / took

    def delete_and_insert(self, delete, insert):
        """The rates of deleting some keys and of inserting them in another order."""
        took = [0.0, 0.0]
        for _ in range(self.turns):
            took[0] += len(self.some) / delete(self.some)
            took[1] += len(self.again) / insert(self.again)
        total = self.turns * len(self.some)
        return total / took[0], total / took[1]

    def rows_of_keys(self, rounds):
        m, values = self.m, self.values
        fresh = values[: len(self.some)].copy()
        lookups = taking_turns(
            {
                "single": lambda: self.rate_single("lookup", self.keys, self.out),
                "lookup_many, out=": lambda: self.rate(m.lookup_many, self.keys, out=self.out),
                "lookup_many": lambda: self.rate(m.lookup_many, self.keys, dtype="u8"),
            },
            rounds,
        )
        updates = taking_turns(
            {
                "single": lambda: self.rate_single("update", self.keys, values),
                "update_many": lambda: self.rate(m.update_many, self.keys, values),
            },
            rounds,
        )
        moves = taking_turns(
            {
                "single": lambda: self.delete_and_insert(
                    lambda keys: self.rate_single("delete", keys, fresh),
                    lambda keys: self.rate_single("update", keys, fresh),
                ),
                "many": lambda: self.delete_and_insert(
                    lambda keys: self.rate(m.delete_many, keys),
                    lambda keys: self.rate(m.update_many, keys, fresh),
                ),
            },
            rounds,
        )
        moves = {
            name: dict(zip(["delete_many", "update_many, absent keys"], rates, strict=True))
            for name, rates in ((name, zip(*pairs, strict=True)) for name, pairs in moves.items())
        }
        rows = [
            beside_single(name, self.count, samples[name], samples["single"])
            for samples in (lookups, updates)
            for name in samples
            if name != "single"
        ]
        rows += [
            beside_single(name, self.count, moves["many"][name], moves["single"][name])
            for name in moves["many"]
        ]
        return rows

    def rate_of_walks(self, walk):
        """Entries per second of a walk over the whole map, repeated if the map is small."""
        passes = max(1, PAIRS_A_SAMPLE // self.count)
        start = time.perf_counter()
        for _ in range(passes):
            if walk() != self.count:
                raise RuntimeError(f"{walk.__name__} did not deliver {self.count} entries")
        return passes * self.count / (time.perf_counter() - start)

    def rows_of_walks(self, rounds):
        def to_arrays():
            return len(self.m.to_arrays(key_dtype="u8", value_dtype="u8")[0])

        def lookup_batch():
            count, cursor = 0, None
            while True:
                batch = self.m.lookup_batch(cursor, 4096, key_dtype="u8", value_dtype="u8")
                count += batch.count
                cursor = batch.cursor
                if cursor is None:
                    return count

        rates = taking_turns(
            {
                walk.__name__: lambda w=walk: self.rate_of_walks(w)
                for walk in (to_arrays, lookup_batch)
            },
            rounds,
        )
        return [row(name, self.count, rates[name], None, None) for name in rates]


def rows_of_iteration(m, pairs, rounds):
    """Rows that compare the map with a dict of the same entries."""
    rows = []
    passes = max(1, PAIRS_A_SAMPLE // len(pairs))
    for name, loop in ITERATIONS.items():
        variants = {}
        for who, subject in ("map", m), ("dict", pairs):
            own = own_copy(loop)
            variants[who] = lambda own=own, subject=subject: sum(
                seconds(own, subject) for _ in range(passes)
            )
        samples = taking_turns(variants, rounds)
        rates = {who: [passes * len(pairs) / took for took in samples[who]] for who in samples}
        ratios = [m / d for m, d in zip(samples["map"], samples["dict"], strict=True)]
        rows.append(row(name, len(pairs), rates["map"], rates["dict"], ratios))
    return rows


# ---- everything ----


def measure(bench, entries, options):
    """The rows of arrays and the rows of iteration, for a map of this many entries."""
    chooser = numpy.random.default_rng(options.seed)
    numbers = random.Random(options.seed).sample(range(1 << 62), entries)
    keys = numpy.array(numbers, "u8")
    values = chooser.integers(0, 1 << 62, entries, "u8")
    name = f"bench-batch-{os.getpid()}"
    with shmrhash.RHashMap.create(name, key_size=8, value_size=8, max_entries=entries) as m:
        try:
            m.update_many(keys, values)
            arrays = Arrays(m, attach(bench, name), keys, chooser)
            rows = arrays.rows_of_keys(options.rounds) + arrays.rows_of_walks(options.rounds)
            pairs = {bytes(bytearray(key)): bytes(bytearray(value)) for key, value in m.items()}
            iterations = rows_of_iteration(m, pairs, options.rounds)
            m.check()
        finally:
            m.unlink()
    return rows, iterations


def millions(rates):
    return f"{rates['median'] / 1e6:.1f} ({rates['max'] / 1e6:.1f})" if rates else "-"


def display(rows, beside, ratio):
    print()
    print_table(
        [
            {
                "operation": f"{r['operation']}, {r['entries']:,}",
                "M/s (best)": millions(r["per_second"]),
                beside: millions(r["beside_per_second"]),
                ratio: f"{r['ratio']['median']:.2f}" if r["ratio"] else "-",
                "(min .. max)": f"({r['ratio']['min']:.2f} .. {r['ratio']['max']:.2f})"
                if r["ratio"]
                else "",
                "goal": r["goal"] or "",
            }
            for r in rows
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--entries", nargs="+", type=int, default=[1000, 1_000_000])
    parser.add_argument("--quick", action="store_true", help="1,000 entries only, 3 rounds")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.entries = 3, [1000]

    facts = machine() | {"seed": options.seed, "rounds": options.rounds, "numpy": numpy.__version__}
    bench = build_bench()
    print_facts(facts)
    gc.disable()
    measured = [measure(bench, entries, options) for entries in options.entries]
    rows = [row for arrays, _ in measured for row in arrays]
    iterations = [row for _, iterated in measured for row in iterated]
    display(rows, "one by one", "batch/single")
    display(iterations, "dict M/s (best)", "map/dict, time")
    write_json(options.json, facts, rows + iterations)


if __name__ == "__main__":
    main()
