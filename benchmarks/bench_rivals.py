"""RHashMap from Python beside everything else that processes can share a dict with, in one run.

    python benchmarks/bench_rivals.py [--quick] [--long] [--sizes 8/8 32/256] [--json FILE]

Every rival that is installed is measured (`pip install --group rivals`; servers from the packages
of the system); the others, and those that do not work here, are named with the reason. Before a
rival is timed it must find stored keys, miss absent keys, replace, delete, and show the changes of
another process.

Method. All rivals hold the same entries at once. A sample is one loop over random keys for about
--budget seconds, so a slow rival performs fewer operations; in each round every rival takes its
turn, and each round gives one ratio: the rate of shmrhash over the rate of the rival, larger is
better. The table shows the medians. The times include the Python loops, which call the rival's own
interface.

- get: a present key, the value as bytes. in: whether a key is there. set: a present key.
- mixed: of ten operations nine get and one sets. insert and delete: absent keys, deleted again.
- batch: 1,000 keys in one call, as a list, from which shmrhash has to make one bytes object first.
- add: an atomic addition to a number, for rivals that have one. The dict's is `d[k] += 1`.
- "N processes": mixed, the sum of N processes at once on all keys, after each has passed over the
  keys once; with more processes than cores the machine is oversubscribed. Each process has a dict
  of its own, and shares nothing.

A rival that cannot be filled in --fill-seconds, or that would take more than half of the machine's
memory, is left out at that size.
"""

import argparse
import gc
import multiprocessing
import os
import random
import time
from pathlib import Path

import rivals
from report import finish, machine, median_row, print_facts, print_table, unique_name
from rivals import OPERATIONS, Dict, KernelHash, LeftOut, Ours, limit_memory, time_limit
from rivals_memory import MEMORY_RIVALS
from rivals_stores import STORE_RIVALS

ALL = [Ours, Dict, *MEMORY_RIVALS, *STORE_RIVALS, KernelHash]
SAMPLED_KEYS = 200_000
TRIAL_KEYS = 20
CHUNK_KEYS = 200  # between two readings of the clock, with several processes
START_SECONDS_MAX = 60
OPENING_SECONDS_MAX = 10
WARM_SECONDS_MAX = 0.8


class Load:
    """The entries, and keys that are absent."""

    def __init__(self, entries, key_size, value_size, seed):
        chooser = random.Random(seed)
        fresh_count = max(100, min(entries // 10, 20_000))
        numbers = chooser.sample(range(1, 1 << 62), entries + fresh_count)
        keys = [number.to_bytes(8, "little").rjust(key_size, b"k") for number in numbers]
        self.keys, self.fresh = keys[:entries], keys[entries:]
        self.sampled = chooser.sample(self.keys, min(entries, SAMPLED_KEYS))
        self.value, self.other = (chooser.randbytes(value_size) for _ in range(2))
        self.entries, self.key_size, self.value_size = entries, key_size, value_size


class Subject:
    """A rival with its keys, and the place among them where its next sample begins."""

    def __init__(self, kind, load, number, fill_seconds):
        if kind.module:
            try:
                __import__(kind.module)
            except ImportError as error:
                raise LeftOut(f"not installed ({error})") from None
        folder = os.environ.get("SHMRHASH_DIR", "/dev/shm")
        place = str(Path(folder) / f"{unique_name('rival')}-{number}-{load.entries}")
        room = load.entries + len(load.fresh)
        self.rival = kind(place, load.key_size, load.value_size, room)
        try:
            self.prepare(load, fill_seconds)
        except BaseException:
            with time_limit(fill_seconds, "closing"):
                self.rival.close()
            raise

    def prepare(self, load, fill_seconds):
        rival = self.rival
        self.fresh = [rival.key(key) for key in load.fresh]
        self.keys = [rival.key(key) for key in load.sampled]
        self.value, self.other = rival.value(load.value), rival.value(load.other)
        with time_limit(fill_seconds, f"filling with {load.entries:,} entries"):
            rival.fill([rival.key(key) for key in load.keys], self.value)
        self.loops = rival.loops()
        self.check()
        self.at = 0

    def expect(self, what, key, wanted):
        found = self.rival.found(key)
        if found != wanted:
            raise LeftOut(f"does not work here: {what}: {found!r} instead of {wanted!r}")

    def check(self):
        """Check that the rival works, before it is timed."""
        key, fresh = self.keys[0], self.fresh[0]
        for each in self.keys[:50]:
            self.expect("a key that was stored", each, self.value)
        self.expect("a key that was not stored", fresh, None)
        self.loops["set"]([key], self.other)
        self.expect("a replaced value", key, self.other)
        self.loops["set"]([key], self.value)
        if "delete" in self.loops:
            self.loops["insert"]([fresh], self.other)
            self.expect("an inserted key", fresh, self.other)
            self.loops["delete"]([fresh], None)
            self.expect("a deleted key", fresh, None)
        if self.rival.shared and not isinstance(self.rival, Dict):
            child = multiprocessing.get_context("fork").Process(target=self.set_in_child)
            child.start()
            child.join(START_SECONDS_MAX)
            if child.exitcode != 0:
                raise LeftOut("another process cannot open it")
            self.expect("another process's change", key, self.other)
            self.loops["set"]([key], self.value)

    def set_in_child(self):
        self.rival.in_child()
        self.rival.loops()["set"](self.keys[:1], self.other)
        os._exit(0)  # without cleaning up what belongs to the parent

    def some(self, count):
        """The next count keys, from where the last sample ended."""
        if self.at + count > len(self.keys):
            self.at = 0
        self.at += count
        return self.keys[self.at - count : self.at]

    def sample(self, operation, budget):
        """Operations a second, in a loop of about budget seconds."""
        loop = self.loops[operation]
        trial = self.some(min(TRIAL_KEYS, len(self.keys)))
        rate = len(trial) / self.seconds(loop, trial)
        count = int(min(len(self.keys), max(TRIAL_KEYS, rate * budget)))
        done, spent = 0, 0.0
        while spent < budget:
            keys = self.some(count)
            spent += self.seconds(loop, keys)
            done += count
        return done / spent

    def sample_fresh(self, budget):
        """Operations a second of inserting and of deleting."""
        inserting = deleting = done = 0
        count = TRIAL_KEYS
        while inserting + deleting < budget:
            keys = self.fresh[:count]
            inserting += self.seconds(self.loops["insert"], keys)
            deleting += self.seconds(self.loops["delete"], keys)
            done += len(keys)
            count = min(len(self.fresh), count * 4) if inserting + deleting < budget / 4 else count
        return done / inserting, done / deleting

    def seconds(self, loop, keys):
        begun = time.perf_counter()
        loop(keys, self.value)
        return time.perf_counter() - begun

    def work(self, seconds, barrier, answer, number):
        """Run "mixed" in one of several processes, on all keys, from a place of its own."""
        self.rival.in_child()
        loop = self.rival.loops()["mixed"]
        self.at = number * len(self.keys) // 16
        warm = time.perf_counter() + WARM_SECONDS_MAX
        for _ in range(0, len(self.keys), CHUNK_KEYS):  # a new process has no pages mapped yet
            loop(self.some(CHUNK_KEYS), self.value)
            if time.perf_counter() > warm:
                break
        barrier.wait(START_SECONDS_MAX)
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            loop(self.some(CHUNK_KEYS), self.value)
            done += CHUNK_KEYS
        answer.send(done / (time.perf_counter() - begun))
        answer.close()
        os._exit(0)

    def together(self, count, seconds):
        """Operations a second of count processes together."""
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(count)
        workers, answers = [], []
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (seconds, barrier, theirs, number)
            workers.append(context.Process(target=self.work, args=arguments))
            workers[-1].start()
            theirs.close()
            answers.append(ours)
        try:
            with time_limit(OPENING_SECONDS_MAX + seconds, f"opening it in {count} processes"):
                return sum(answer.recv() for answer in answers)
        except (EOFError, LeftOut) as reason:
            for worker in workers:
                worker.kill()  # those that did not fail still wait at the barrier
            if isinstance(reason, EOFError):
                raise LeftOut(f"one of {count} processes failed") from None
            raise
        finally:
            for worker in workers:
                worker.join()


def prepare(load, options, left_out):
    """The subjects that work; the reasons of the others go to left_out."""
    subjects = {}
    for number, kind in enumerate(ALL):
        if options.only and kind.name not in (*options.only, Ours.name):
            continue
        try:
            subjects[kind.name] = Subject(kind, load, number, options.fill_seconds)
        except LeftOut as reason:
            left_out[kind.name] = str(reason)
        except Exception as error:
            if kind is Ours:
                raise
            left_out[kind.name] = f"failed: {type(error).__name__}: {error}"[:160]
    return subjects


def sample_all(subjects, options):
    """rates[operation][rival]: a list with the rate of each round."""
    rates = {operation: {} for operation in OPERATIONS}
    for operation in ("get", "in", "set", "mixed", "batch", "insert", "add"):
        for _ in range(options.rounds):
            for name, subject in subjects.items():
                if operation == "insert" and "delete" in subject.loops:
                    for what, rate in zip(
                        ("insert", "delete"), subject.sample_fresh(options.budget), strict=True
                    ):
                        rates[what].setdefault(name, []).append(rate)
                elif operation in subject.loops and operation != "insert":
                    rate = subject.sample(operation, options.budget)
                    rates[operation].setdefault(name, []).append(rate)
    for count in options.processes:
        found = rates[f"{count} processes"] = {}
        for _ in range(options.rounds):
            for name, subject in subjects.items():
                if subject.rival.shared and name not in options.failed:
                    try:
                        rate = subject.together(count, options.seconds)
                    except LeftOut as reason:
                        options.failed[name] = str(reason)
                        found.pop(name, None)
                    else:
                        found.setdefault(name, []).append(rate)
    return rates


def measure(entries, key_size, value_size, options, left_out):
    load = Load(entries, key_size, value_size, options.seed)
    options.failed = left_out
    subjects = prepare(load, options, left_out)
    rows = []
    try:
        for operation, rates in sample_all(subjects, options).items():
            for name, samples in rates.items():
                ours = rates[Ours.name]
                row = {
                    "entries": entries,
                    "sizes": f"{key_size}/{value_size}",
                    "operation": operation,
                    "rival": name,
                }
                row |= median_row("per_second", samples)
                pairs = zip(ours, samples, strict=True)
                rows.append(row | median_row("ratio", [mine / theirs for mine, theirs in pairs]))
    finally:
        for subject in subjects.values():
            subject.rival.close()
    return rows


def display(rows, left_out, options):
    operations = [*OPERATIONS, *(f"{count} processes" for count in options.processes)]
    names = [kind.name for kind in ALL if any(row["rival"] == kind.name for row in rows)]
    found = {(row["rival"], row["operation"]): row for row in rows}
    title = f"{rows[0]['entries']:,} entries of {rows[0]['sizes']} bytes"

    def table(text, heading):
        print(f"\n{title}: {heading}")
        lines = []
        for name in names:
            cells = {each: found.get((name, each)) for each in operations}
            lines.append({"": name} | {e: text(row) if row else "-" for e, row in cells.items()})
        print_table(lines)

    table(lambda row: f"{row['ratio']['median']:.2f}", "rate of shmrhash over rate of the rival")
    table(
        lambda row: f"{row['per_second']['median'] / 1e3:,.0f}", "thousands of operations a second"
    )
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["8/8", "32/256"], metavar="KEY/VALUE")
    parser.add_argument("--entries", nargs="+", type=int, default=[1000, 1_000_000])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rivals only")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each (%(default)s)")
    parser.add_argument("--budget", type=float, default=0.03, help="s of a sample (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.25, help="of several processes at once")
    parser.add_argument("--fill-seconds", type=float, default=12)
    parser.add_argument("--seed", type=int, default=20261122, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="1,000 entries only, short samples")
    parser.add_argument("--long", action="store_true", help="10,000,000 entries as well")
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.quick:
        options.entries, options.budget, options.seconds = [1000], 0.005, 0.05
    if options.long:
        options.entries, options.fill_seconds = [*options.entries, 10_000_000], 120
    return options


def main():
    options = parse()
    facts = machine() | {"seed": options.seed, "rounds": options.rounds}
    facts["rivals"] = rivals.versions(ALL)
    print_facts(facts)
    gc.disable()
    limit_memory()
    rows, reasons = [], []
    for entries in options.entries:
        for sizes in options.sizes:
            left_out = {}
            found = measure(entries, *map(int, sizes.split("/")), options, left_out)
            display(found, left_out, options)
            rows += found
            reasons += [{"entries": entries, "sizes": sizes, "left_out": left_out}]
    facts["left_out"] = reasons
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
