"""What every benchmark reports of its run, and how it summarises repeated measurements."""

import json
import os
import platform
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path

import shmrhash


def machine():
    """The machine and the software of a run; the load tells whether something disturbed it."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "shmrhash": getattr(shmrhash, "__version__", "unknown"),
        "command": " ".join(sys.argv),
    }


def spread(values):
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def median_row(name, values):
    """One entry of a row: a name and the spread of its values."""
    return {name: spread(values)}


def percentiles(values, marks=(50, 90, 99)):
    """Percentiles of a list of numbers, by rank, and the largest as "max"."""
    ordered = sorted(values)
    found = {
        f"p{mark}": ordered[min(len(ordered) - 1, int(len(ordered) * mark / 100))] for mark in marks
    }
    return found | {"max": ordered[-1]}


def unique_name(purpose):
    """A name for a map that no other run uses."""
    return f"bench-{purpose}-{os.getpid()}"


def print_facts(facts):
    for name, value in facts.items():
        print(f"# {name}: {value}")


def print_table(rows):
    """Rows are dicts with the same keys; the first row's keys are the headings."""
    if not rows:
        return
    columns = [[str(name), *(str(row[name]) for row in rows)] for name in rows[0]]
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        texts = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        print("  ".join(texts))


def finish(path, facts, rows):
    """Report the load at the end; write everything as JSON if a path is given."""
    facts["load_after"] = round(os.getloadavg()[0], 2)
    print(f"# load_after: {facts['load_after']}")
    write_json(path, facts, rows)


def write_json(path, facts, rows):
    if path:
        Path(path).write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
