"""A metric of prometheus_client: with files, in shared memory, and in one process.

    python benchmarks/bench_metrics.py [--quick] [--json FILE]

Nanoseconds of processor time of one call, the least of many rounds that take turns. "files" is
prometheus_client's multiprocess mode, "shmrhash" is shmrhash.prometheus, and "one process" is its
usual way, in which other processes see nothing.
"""

import argparse
import os
import tempfile
import time

from report import finish, machine, print_facts, print_table, unique_name

CALLS = {
    "Counter.inc": lambda counter, gauge, histogram: counter.inc,
    "Gauge.set": lambda counter, gauge, histogram: lambda: gauge.set(0.5),
    "Histogram.observe": lambda counter, gauge, histogram: lambda: histogram.observe(0.3),
}


def metrics():
    from prometheus_client import Counter, Gauge, Histogram

    names = ["method", "path", "status"]
    counter = Counter("requests", "Requests of this site.", names, registry=None)
    gauge = Gauge("busy", "Requests under way.", registry=None, multiprocess_mode="livesum")
    histogram = Histogram("seconds", "Seconds of a request.", registry=None)
    return counter.labels("GET", "/users", "200"), gauge, histogram


def nanoseconds(call, count):
    began = time.process_time_ns()
    for _ in range(count):
        call()
    return (time.process_time_ns() - began) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds, count = (3, 500) if options.quick else (30, 5000)
    facts = machine()
    print_facts(facts)
    name = unique_name("metrics")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from prometheus_client import values

        import shmrhash.prometheus

        ways = {
            "files": values.MultiProcessValue(),
            "shmrhash": shmrhash.prometheus.value_class(name),
            "one process": values.MutexValue,
        }
        made = {}
        for way, values.ValueClass in ways.items():
            made[way] = metrics()
        rows = []
        for call, of in CALLS.items():
            found = {way: [] for way in ways}
            for _ in range(rounds):
                for way in ways:
                    found[way].append(nanoseconds(of(*made[way]), count))
            least = {way: round(min(times)) for way, times in found.items()}
            ratio = round(least["shmrhash"] / least["files"], 2)
            rows.append({"call": call} | least | {"shmrhash / files": ratio})
        values.close_all_multiprocess_files()
    shmrhash.unlink(name)
    print_table(rows)
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
