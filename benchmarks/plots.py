"""Draw the results that the benchmarks wrote with --json, as small SVGs for the documents.

    python benchmarks/plots.py FILE.json ... [--out benchmarks/plots]

The rows of a file tell which benchmark wrote it: bench_kernel.py (LOOKUP), bench_rivals.py with two
or more --entries (throughput by size), bench_latency.py (over growth), memory.py --rivals (over
fill).
Needs matplotlib (`pip install 'shmrhash[plot]'`).
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

BYTES_MAX = 60_000
WIDTH, HEIGHT = 7.0, 3.6
OURS = {"color": "#b3261e", "linewidth": 2.4, "zorder": 3}
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and in the reader's own font
    "svg.hashsalt": "shmrhash",  # the same picture gives the same file
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7,
}


def source(facts):
    return f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel'].partition('-')[0]}"


def style_of(rival):
    """The line style of a rival, the same in every picture."""
    if rival == "shmrhash":
        return OURS | {"marker": "o", "markersize": 3}
    place = sum(rival.encode())
    colors = pyplot.get_cmap("tab20").colors
    dashes = ("-", "--", ":", "-.")[place % 4]
    color = colors[place % 19]
    return {"color": color, "linestyle": dashes, "marker": "o", "markersize": 3, "linewidth": 1.1}


def legend_beside(axis):
    """Put the legend right of the axes, in the order of the lines' right ends on this axis."""
    handles, labels = axis.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda p: -p[0].get_ydata()[-1])
    axis.figure.legend(*zip(*pairs, strict=True), loc="center right")


def draw_throughput(facts, rows, axes):
    """Throughput by number of entries, one line for each rival."""
    left, right = axes
    sizes = next(row["sizes"] for row in rows)
    for axis, operation, title in (
        (left, "get", "one process, get"),
        (right, "2 processes", "two processes, 90 % get, 10 % set"),
    ):
        chosen = [r for r in rows if r["operation"] == operation and r["sizes"] == sizes]
        for rival in dict.fromkeys(row["rival"] for row in chosen):
            points = [
                (r["entries"], r["per_second"]["median"]) for r in chosen if r["rival"] == rival
            ]
            if len(points) > 1:
                axis.plot(*zip(*points, strict=True), label=rival, **style_of(rival))
        axis.set(xscale="log", yscale="log", xlabel="entries", title=title)
    left.set_ylabel(f"operations a second, {sizes} bytes")
    legend_beside(left)


def draw_latency(facts, rows, axes):
    """Percentiles of insert, delete and lookup over the life of a map."""
    for axis, clock in zip(axes, ("wall", "cpu"), strict=True):
        for operation, names in (
            ("insert and delete", ("insert", "delete")),
            ("lookup", ("lookup",)),
        ):
            slices = []
            for phase in ("grow", "shrink"):
                slices += next(
                    row["slices_ns"]
                    for row in rows
                    if row.get("phase") == phase
                    and row["operation"] in names
                    and (row["mode"], row["clock"]) == ("alone", clock)
                )
            for mark, style in (("p50", "-"), ("p99", "--"), ("p99.9", ":")):
                values = [each[mark] / 1e3 for each in slices]
                color = OURS["color"] if operation != "lookup" else "#1f5aa6"
                axis.plot(values, style, color=color, linewidth=1.2, label=f"{operation}, {mark}")
        half = len(slices) // 2
        entries = facts["entries"]
        axis.set_xticks([0, half, 2 * half], ["0", f"{entries:,}", "0"])
        axis.set(yscale="log", xlabel="entries in the map", title=f"{clock} time")
    axes[0].set_ylabel("microseconds")
    axes[0].legend(ncols=2)


def draw_memory(facts, rows, axes):
    """Bytes per entry by fill."""
    sizes = list(dict.fromkeys(row["sizes"] for row in rows))
    for axis, size in zip(axes, sizes, strict=True):
        for row in (row for row in rows if row["sizes"] == size):
            points = [
                (int(fill.replace(",", "")), value)
                for fill, value in row.items()
                if fill.replace(",", "").isdigit() and value != "-" and value > 0
            ]
            if len(points) < 2:
                continue
            rival = row["bytes per entry"]
            axis.plot(*zip(*points, strict=True), label=rival, **style_of(rival))
        axis.set(xscale="log", yscale="log", xlabel="entries", title=f"{size} bytes")
    axes[0].set_ylabel("bytes per entry")
    legend_beside(axes[0])


def draw_kernel(facts, rows, axes):
    """LOOKUP: rate over the kernel's hash map, beside what the series reports for RHASH."""
    rows = [row for row in rows if row.get("benchmark") == "LOOKUP" and "core_ratio" in row]
    for axis, most in zip(axes, (1000, 1_000_000), strict=True):
        chosen = [row for row in rows if row["max_entries"] == most]
        labels = [f"{r['key_size']} B\n{r['entries'] * 100 // r['max_entries']} %" for r in chosen]
        places = range(len(chosen))
        ours = [row["core_ratio"]["median"] for row in chosen]
        published = [row["published_ratio"] for row in chosen]
        axis.bar([p - 0.2 for p in places], ours, 0.4, color=OURS["color"],
                 label="shmrhash, this machine")  # fmt: skip
        axis.bar([p + 0.2 for p in places], published, 0.4, color="#8a8a8a",
                 label="kernel RHASH, as published")  # fmt: skip
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(list(places), labels)
        axis.set_title(f"max_entries {most:,}")
    axes[0].set_ylabel("rate over BPF_MAP_TYPE_HASH")
    axes[0].legend()


def kind_of(rows):
    """(name of the picture, function that draws it), told from the rows."""
    first = rows[0]
    if first.get("benchmark") == "LOOKUP":
        return "kernel", draw_kernel
    if "rival" in first:
        return "throughput", draw_throughput
    if "slices_ns" in first:
        return "latency", draw_latency
    if "bytes per entry" in first:
        return "memory", draw_memory
    return None, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("plots"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    pyplot.rcParams.update(STYLE)
    for path in options.files:
        found = json.loads(Path(path).read_text())
        name, draw = kind_of(found["rows"])
        if name is None:
            raise SystemExit(f"{path}: not of a benchmark that is drawn here")
        columns = len({row["sizes"] for row in found["rows"]}) if name == "memory" else 2
        figure, axes = pyplot.subplots(
            1, columns, figsize=(WIDTH, HEIGHT), sharey=name != "kernel", squeeze=False
        )
        axes = axes[0]
        draw(found["facts"], found["rows"], axes)
        for axis in axes:
            axis.minorticks_off()
        figure.text(0.99, 0.005, source(found["facts"]), ha="right", fontsize=6, alpha=0.6)
        figure.tight_layout(rect=(0, 0.02, 0.76 if figure.legends else 1, 1))
        target = options.out / f"{name}.svg"
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)
        if target.stat().st_size > BYTES_MAX:
            raise SystemExit(f"{target} has {target.stat().st_size} bytes, more than {BYTES_MAX}")
        print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
