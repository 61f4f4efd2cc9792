"""Print the results that the benchmarks wrote with --json as the documents' Markdown tables.

python benchmarks/tables.py FILE.json ...
"""

import argparse
import json
from pathlib import Path

RIVAL_OPERATIONS = ("get", "set", "insert", "delete", "batch", "2 processes", "8 processes")


def table(head, rows):
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print()


def median(row, name, scale=1.0, digits=2):
    return f"{row[name]['median'] * scale:.{digits}f}" if name in row else "-"


def ratio(row):
    if row is None:
        return "-"
    value = row["ratio"]["median"]
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def kernel_tables(rows):
    lookups = [row for row in rows if row["benchmark"] == "LOOKUP"]
    points = list(dict.fromkeys((row["max_entries"], row["entries"]) for row in lookups))
    head = [f"{most:,}, {fill * 100 // most} %" for most, fill in points]
    sizes = list(dict.fromkeys(row["key_size"] for row in lookups))

    def lines(text):
        return [
            [f"{size}-byte keys", *(text(row) for row in lookups if row["key_size"] == size)]
            for size in sizes
        ]

    print("LOOKUP: rate over the kernel's htab; in brackets the series' RHASH over htab\n")
    table(["", *head], lines(lambda r: f"{median(r, 'core_ratio')} ({r['published_ratio']:.2f})"))
    print(
        "LOOKUP, millions a second: htab / shmrhash / by lookup_many / its table without growth\n"
    )
    names = [f"{who}_per_second" for who in ("htab", "core", "batched", "fixed")]
    table(["", *head], lines(lambda r: " / ".join(median(r, name, 1e-6, 1) for name in names)))
    others = [row for row in rows if row["benchmark"] != "LOOKUP"]
    print("FULL UPDATE and MEMORY, for each producer\n")
    lines = []
    for row in others:
        scale, unit = (1e-6, "M/s") if row["benchmark"] == "FULL UPDATE" else (1e-3, "k/s")
        rates = " / ".join(median(row, f"{who}_per_second", scale, 1) for who in ("htab", "core"))
        used = " / ".join(median(row, f"{who}_bytes", 2**-20) for who in ("htab", "core"))
        lines.append([row["what"], median(row, "core_ratio"), row["published_ratio"] or "-",
                      f"{rates} {unit}", used])  # fmt: skip
    table(["", "over htab", "series", "htab / shmrhash", "MiB, htab / shmrhash"], lines)


def rival_tables(rows):
    for entries, sizes in dict.fromkeys((row["entries"], row["sizes"]) for row in rows):
        chosen = [row for row in rows if (row["entries"], row["sizes"]) == (entries, sizes)]
        found = {(row["rival"], row["operation"]): row for row in chosen}
        operations = [each for each in RIVAL_OPERATIONS if ("shmrhash", each) in found]
        print(f"{entries:,} entries of {sizes} bytes: rate of shmrhash over that of the rival\n")
        names = [name for name in dict.fromkeys(r["rival"] for r in chosen) if name != "shmrhash"]
        table(
            ["", *operations],
            [[name, *(ratio(found.get((name, each))) for each in operations)] for name in names],
        )


def latency_tables(rows):
    print("Microseconds of one operation while a map grows and shrinks\n")
    rows = [row for row in rows if "ns" in row and row["operation"] != "nothing"]
    marks = [mark for mark in rows[0]["ns"] if mark != "count"]
    table(
        ["", "time", "", *marks],
        [
            [row["mode"], row["clock"], f"{row['operation']}, {row['phase']}s"]
            + [f"{row['ns'][mark] / 1e3:.2f}" for mark in marks]
            for row in rows
        ],
    )


def flat_table(rows):
    """All rows with the same names as the first, as they are; of a spread its median."""
    names = list(rows[0])

    def text(value):
        if isinstance(value, dict):
            value = value.get("median", value)
        return f"{value:,.2f}" if isinstance(value, float) else value

    table(names, [[text(row[name]) for name in names] for row in rows if list(row) == names])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.json", type=Path)
    for path in parser.parse_args().files:
        found = json.loads(path.read_text())
        facts, rows = found["facts"], found["rows"]
        print(f"<!-- {facts['command']}; {facts['date']}; load {facts['load_before']} -->\n")
        first = rows[0]
        if "benchmark" in first:
            kernel_tables(rows)
        elif "rival" in first:
            rival_tables(rows)
        elif "slices_ns" in first:
            latency_tables(rows)
        else:
            flat_table(rows)


if __name__ == "__main__":
    main()
