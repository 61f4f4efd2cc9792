"""How many instructions the core's operations execute, compared with a committed baseline.

    python benchmarks/instructions.py [--renew] [--json FILE]
    python benchmarks/instructions.py --table

A guard against regressions that does not depend on the load of the machine: valgrind's callgrind
counts what the native loops of _bench.pyx execute, without Python. The counts depend on the
compiler, so the baseline (instructions.json) has an entry for each compiler and Cython; without an
entry nothing is compared, and the reason is printed. They depend on little else: each map has hash
seeds of its own, which changes them by half a percent. More than TOLERANCE above the baseline is a
regression.

--renew writes the counts into the baseline and into the table of docs/performance/index.md, which
shows the baseline of DOCUMENTED. Do so in the commit that changes them. --table counts nothing and
writes the table only, for example after a merge of two baselines.
Needs valgrind, Cython and a C compiler. tests/house/test_bench.py runs it.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import building
from report import finish, machine, print_facts, print_table, unique_name

import shmrhash

BASELINE = Path(__file__).with_name("instructions.json")
PAGE = Path(__file__).parents[1] / "docs" / "performance" / "index.md"
DOCUMENTED = "x86_64, (Debian 12.2.0-14+deb12u1) 12.2.0, Cython 3.3.1"  # the baseline of the table
TABLE = re.compile(r"(?<=\n\| \| lookup \|)[^\n]*\n\|---[^\n]*\n(?:\|[^\n]*\n)+")
SHOWN = ["lookup", "contains", "miss", "update", "add", "insert", "delete"]
TOLERANCE = 0.05
ENTRIES = 1000
PASSES = 4  # a run's fixed cost, a few hundred instructions, is then 0.1 per operation
COUNTED = "__pyx_pw_6_bench_11BenchHandle_1run"  # BenchHandle.run as the C compiler knows it

# (task, passes, first), in this order. The map is filled and emptied, then filled again, used and
# emptied: insert and delete are counted the second time, when the memory is there. Their counts
# include growing and shrinking.
STEPS = [
    ("insert", 1, 0),
    ("delete", 1, 0),
    ("insert", 1, 0),
    ("lookup", PASSES, 0),
    ("contains", PASSES, 0),
    ("lookup", PASSES, ENTRIES),
    ("update", PASSES, 0),
    ("add", PASSES, 0),
    ("delete", 1, 0),
]
NAMES = [None, None, "insert", "lookup", "contains", "miss", "update", "add", "delete"]
SIZES = [(8, 8), (32, 32)]


class CannotCount(Exception):
    """The instructions cannot be counted or compared; str() says why."""


def run_steps():
    """The program that runs under valgrind."""
    bench = building.build_bench()
    for key_size, value_size in SIZES:
        name = unique_name("instructions")
        with (
            shmrhash.RHashMap.create(
                name, key_size=key_size, value_size=value_size, max_entries=ENTRIES
            ) as shared_map,
            contextlib.ExitStack() as stack,
        ):
            stack.callback(shared_map.unlink)
            handle = building.attach(bench, name)
            for task, passes, first in STEPS:
                _, done = handle.run(task, ENTRIES, passes=passes, first=first)
                if done != (0 if first else passes * ENTRIES):
                    raise RuntimeError(f"{task}: {done} operations succeeded")
            shared_map.check()


def count():
    """{"lookup 8/8": instructions for one, ...}. Raises CannotCount."""
    if shutil.which("valgrind") is None:
        raise CannotCount("valgrind is not installed")
    building.built_bench()  # not under valgrind
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
        command += [f"--toggle-collect={COUNTED}", f"--dump-after={COUNTED}"]
        done = subprocess.run(
            [*command, sys.executable, __file__, "--steps"],
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CannotCount(f"valgrind: {done.stderr[-500:]}")
        totals = []
        for number in range(1, len(SIZES) * len(STEPS) + 1):
            text = output.with_name(f"counts.{number}").read_text()
            totals.append(int(re.search(r"^totals: (\d+)", text, re.MULTILINE)[1]))
    found = {}
    for (key_size, value_size), start in zip(SIZES, range(0, len(totals), len(STEPS)), strict=True):
        for (_, passes, _), name, total in zip(STEPS, NAMES, totals[start:], strict=False):
            if name:
                found[f"{name} {key_size}/{value_size}"] = round(total / passes / ENTRIES, 1)
    return found


def compiled_by():
    """What the counts depend on: architecture, compiler, Cython, flags."""
    import Cython

    command = [*shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC")), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    flags = os.environ.get("CFLAGS", "").strip()
    _called, _, compiler = version.splitlines()[0].partition(" ")  # gcc has several names
    words = [platform.machine(), compiler, f"Cython {Cython.__version__}", flags]
    return ", ".join(filter(None, words))


def compare(counts):
    """Rows of count, baseline and their ratio. Raises CannotCount if there is no baseline."""
    baselines = json.loads(BASELINE.read_text())
    known = baselines.get(compiled_by())
    if known is None:
        raise CannotCount(f"no baseline for {compiled_by()}; there are: {'; '.join(baselines)}")
    return [
        {
            "operation": name,
            "instructions": instructions,
            "baseline": known[name],
            "ratio": round(instructions / known[name], 3),
        }
        for name, instructions in counts.items()
    ]


def renew(counts):
    baselines = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    baselines[compiled_by()] = counts
    BASELINE.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
    write_table()


def write_table():
    counts = json.loads(BASELINE.read_text())[DOCUMENTED]
    PAGE.write_text(TABLE.sub(lambda _: table_of(counts), PAGE.read_text()))


def table_of(counts):
    """The rows of the table in PAGE, from the second cell of its head on."""
    lines = [f" {' | '.join(SHOWN[1:])} |", "|---" * (len(SHOWN) + 1) + "|"]
    for key_size, value_size in SIZES:
        size = f"{key_size}/{value_size}"
        cells = [f"{counts[f'{name} {size}']:.0f}" for name in SHOWN]
        lines.append(f"| {size} bytes | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--renew", action="store_true", help="write the baseline")
    parser.add_argument("--table", action="store_true", help="write the table from the baseline")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write facts and rows here as well")
    options = parser.parse_args()
    if options.steps:
        run_steps()
        return
    if options.table:
        write_table()
        return
    facts = machine() | {"compiled_by": compiled_by(), "tolerance": TOLERANCE}
    print_facts(facts)
    try:
        counts = count()
        if options.renew:
            renew(counts)
        rows = compare(counts)
    except CannotCount as reason:
        raise SystemExit(str(reason)) from None
    print_table(rows)
    finish(options.json, facts, rows)
    worse = [row["operation"] for row in rows if row["ratio"] > 1 + TOLERANCE]
    if worse:
        raise SystemExit(f"more instructions than the baseline: {', '.join(worse)}")


if __name__ == "__main__":
    main()
