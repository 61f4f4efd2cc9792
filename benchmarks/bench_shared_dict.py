"""What SharedDict costs, compared with a dict and with pickle.

    python benchmarks/bench_shared_dict.py [--quick] [--rounds 15] [--json FILE]

One process, 1,000 entries, loops of Python; the loops take turns in each round, and each round
gives one ratio. "dict" holds the same key objects, with cached hashes. "loads" is pickle.loads of
the bytes that the shared dict holds for the same value; "plus 500 ns" is the goal: 1.3 times that
and 500 ns. "array" reads a NumPy array of 1 MiB without a copy; "its copy" copies the same bytes.
"ttl" is a SharedDict with room for deadlines, of which none is set.
"""

import argparse
import math
import pickle
import statistics
import time

import numpy
from report import finish, machine, print_facts, print_table

from shmrhash import Array, SharedCounter, SharedDict

ENTRIES = 1000


def lookups(m, keys):
    for key in keys:
        m[key]


def stores(m, keys):
    for key in keys:
        m[key] = 7


def counts(m, keys):
    for key in keys:
        m.inc(key)


def counts_of_dict(m, keys):
    for key in keys:
        m[key] += 1


def pairs(m):
    for _key, _value in m.items():
        pass


def deletions(m, keys):
    for key in keys:
        del m[key]


def per_call(function, *arguments, passes, calls):
    began = time.perf_counter_ns()
    for _ in range(passes):
        function(*arguments)
    return (time.perf_counter_ns() - began) / passes / calls


def record(number):
    return {"id": number, "name": f"user{number}", "tags": ["a", "b"], "score": number / 7}


def sampled(pairs, rounds, passes):
    """{name: ns per call in each round} of (name, function, arguments, calls), taking turns."""
    found = {name: [] for name, *_ in pairs}
    for _ in range(rounds):
        for name, function, arguments, calls in pairs:
            found[name].append(per_call(function, *arguments, passes=passes, calls=calls))
    return found


def ratio_row(name, found, over, under):
    ratios = [a / b for a, b in zip(found[over], found[under], strict=True)]
    return {
        "what": name,
        "ratio": round(statistics.median(ratios), 2),
        "from": round(min(ratios), 2),
        "to": round(max(ratios), 2),
        "ns": round(statistics.median(found[over]), 1),
        "beside ns": round(statistics.median(found[under]), 1),
    }


def numbers(keys, rounds, passes):
    plain = dict.fromkeys(keys, 7)
    with (
        SharedDict(key=str, value=int, max_entries=ENTRIES * 2) as shared,
        SharedDict(key=str, value=int, max_entries=ENTRIES * 2, ttl=math.inf) as timed,
        SharedCounter(max_entries=ENTRIES * 2) as counter,
    ):
        for target in (shared, timed):
            target.update(plain)
        counter.update(keys)
        found = sampled(
            [
                ("dict", lookups, (plain, keys), len(keys)),
                ("shared", lookups, (shared, keys), len(keys)),
                ("timed", lookups, (timed, keys), len(keys)),
                ("dict set", stores, (plain, keys), len(keys)),
                ("shared set", stores, (shared, keys), len(keys)),
                ("dict +=", counts_of_dict, (plain, keys), len(keys)),
                ("inc", counts, (counter, keys), len(keys)),
            ],
            rounds,
            passes,
        )
    return [
        ratio_row("d[k], str to int, over dict", found, "shared", "dict"),
        ratio_row("the same with ttl, over without", found, "timed", "shared"),
        ratio_row("d[k] = number, over dict", found, "shared set", "dict set"),
        ratio_row("counter.inc(k), over dict's d[k] += 1", found, "inc", "dict +="),
    ]


def changing_sizes(keys, rounds, passes):
    """Filling a dict and emptying it again, and a loop over all of it in between."""
    found = {}
    with SharedDict(key=str, value=int, max_entries=ENTRIES * 2) as shared:
        for _ in range(rounds):
            for name, target in (("dict", {}), ("shared", shared)):
                times = {}
                for _ in range(passes):
                    for what, function, arguments in (
                        ("insert", stores, (target, keys)),
                        ("items", pairs, (target,)),
                        ("delete", deletions, (target, keys)),
                    ):
                        took = per_call(function, *arguments, passes=1, calls=len(keys))
                        times[what] = times.get(what, 0) + took / passes
                for what, took in times.items():
                    found.setdefault(f"{name} {what}", []).append(took)
    return [
        ratio_row(
            "for k, v in d.items(), str to int, over dict", found, "shared items", "dict items"
        ),
        ratio_row("d[k] = number, a new key, over dict", found, "shared insert", "dict insert"),
        ratio_row("del d[k], over dict", found, "shared delete", "dict delete"),
    ]


def pickles(keys, rounds, passes):
    with SharedDict(key=str, value=object, max_entries=ENTRIES * 2) as shared:
        stored = []
        for number, key in enumerate(keys):
            shared[key] = record(number)
            stored.append(pickle.dumps(record(number), 5))
        found = sampled(
            [
                ("loads", lambda: [pickle.loads(one) for one in stored], (), len(keys)),
                ("object", lookups, (shared, keys), len(keys)),
            ],
            rounds,
            passes,
        )
    found["goal"] = [1.3 * ns + 500 for ns in found["loads"]]
    return [
        ratio_row("d[k], str to object, over pickle.loads", found, "object", "loads"),
        ratio_row("the same over 1.3 loads plus 500 ns", found, "object", "goal"),
    ]


def arrays(rounds, passes):
    kind = Array("u1", (1 << 20,))
    with SharedDict(key=int, value=kind, max_entries=10) as shared:
        shared[1] = numpy.arange(1 << 20, dtype="u8").astype("u1")
        found = sampled(
            [
                ("array", lookups, (shared, [1]), 1),
                ("copy", lambda: shared[1].copy(), (), 1),
            ],
            rounds,
            passes * 10,
        )
    return [ratio_row("an array of 1 MiB, over its copy", found, "array", "copy")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    options = parser.parse_args()
    rounds, passes = (2, 1) if options.quick else (options.rounds, 50)
    keys = [f"key{number}" for number in range(ENTRIES)]
    facts = machine() | {"method": f"{rounds} rounds of {passes} passes over {ENTRIES} entries"}
    print_facts(facts)
    rows = [
        *numbers(keys, rounds, passes),
        *changing_sizes(keys, rounds, passes),
        *pickles(keys, rounds, max(1, passes // 5)),
        *arrays(rounds, passes),
    ]
    print_table(rows)
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
