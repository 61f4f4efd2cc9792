"""stat: how entries are spread over buckets, as a picture in the terminal or a file.

Beside the buckets found with so many entries stand those expected of a good hash function. The
buckets of linear hashing have two levels at a time: one of level l gets an entry with probability
2**-l, so the expected numbers are a mixture of two Poisson distributions.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from shmrhash import RHashMap
from shmrhash.cli.commands.check import one_map
from shmrhash.cli.commands.ls import objects_text
from shmrhash.cli.screen import bar, make_console, percent_text, printable, size_text
from shmrhash.cli.session import Session, Verb, map_argument, need, on_terminal, pass_session
from shmrhash.cli.strangers import looked_at

BAR_WIDTH = 40
SLOTS = 7  # entries that a bucket holds without an overflow line
ROWS_MAX = 40


@dataclass
class Shape:
    """What a walk over all buckets found."""

    name: str
    info: dict[str, Any]
    buckets: int = 0
    entries: int = 0
    locked: int = 0
    by_entries: Counter[int] = field(default_factory=Counter)
    by_lines: Counter[int] = field(default_factory=Counter)
    by_level: Counter[int] = field(default_factory=Counter)

    @property
    def load(self) -> float:
        """Entries of a bucket, on average."""
        return self.entries / self.buckets if self.buckets else 0.0

    @property
    def overflowing(self) -> int:
        """Buckets with overflow lines."""
        return sum(count for lines, count in self.by_lines.items() if lines)

    @property
    def lookups(self) -> float:
        """Cache lines of buckets that finding a present key reads, on average."""
        if not self.entries:
            return 0.0
        lines = sum(
            buckets * sum(1 + min(place, entries - 1) // SLOTS for place in range(entries))
            for entries, buckets in self.by_entries.items()
        )
        return lines / self.entries

    def expected(self, entries: int) -> float:
        """How many buckets with so many entries a good hash function would give."""
        total = 0.0
        for level, buckets in self.by_level.items():
            mean = self.entries / 2.0**level
            if mean == 0:
                total += buckets * (entries == 0)
            else:
                power = entries * math.log(mean) - mean - math.lgamma(entries + 1)
                total += buckets * math.exp(power)
        return total


def survey(shared_map: RHashMap) -> Shape:
    """Walk over all buckets. Others may go on meanwhile; then the sums are not of one moment."""
    shape = Shape(shared_map.name, shared_map.info())
    for bucket in shared_map.walk():
        shape.buckets += 1
        shape.entries += bucket.entries
        shape.locked += bucket.locked
        shape.by_entries[bucket.entries] += 1
        shape.by_lines[bucket.lines] += 1
        shape.by_level[bucket.level] += 1
    return shape


def picture(shape: Shape) -> str:
    """The histogram as text."""
    top = max(shape.by_entries, default=0)
    rows = range(min(top, ROWS_MAX) + 1)
    most = max((max(shape.by_entries[row], shape.expected(row)) for row in rows), default=1) or 1
    lines = ["entries   buckets  expected"]
    for row in rows:
        count, expected = shape.by_entries[row], shape.expected(row)
        drawn = mark(bar(count / most, BAR_WIDTH), expected / most)
        lines.append(f"{row:7}  {count:8,}  {expected:8,.0f}  {drawn}".rstrip())
        if row == SLOTS and top > SLOTS:
            lines.append(f"{'':7}  {' overflow lines from here on ':-^{BAR_WIDTH + 20}}")
    if top > ROWS_MAX:
        more = sum(count for row, count in shape.by_entries.items() if row > ROWS_MAX)
        lines.append(f"{f'to {top}':>7}  {more:8,}")
    return "\n".join(lines)


def mark(drawn: str, place: float) -> str:
    """The bar with a stroke where it should end."""
    column = round(place * BAR_WIDTH)
    if not column or len(drawn) > column:
        return drawn
    return drawn.ljust(column) + "|"


def plot(shape: Shape, path: str) -> None:
    """The same as a file; its ending says the kind."""
    need("matplotlib")
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    rows = list(range(max(shape.by_entries, default=0) + 1))
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.bar(rows, [shape.by_entries[row] for row in rows], color="#4878a8", label="found")
    axes.plot(rows, [shape.expected(row) for row in rows], "o-", color="#c44e52", label="expected")
    axes.axvline(SLOTS + 0.5, color="grey", linestyle=":", label="overflow lines from here on")
    axes.set_xlabel("entries in a bucket")
    axes.set_ylabel("buckets")
    name = printable(shape.name).replace("$", r"\$")  # no formula
    axes.set_title(f"{name}: {shape.entries:,} entries in {shape.buckets:,} buckets")
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    finally:
        pyplot.close(figure)


@click.command("stat", cls=Verb, short_help="How entries are spread over buckets, drawn.")
@map_argument
@click.option(
    "--plot",
    "path",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also draw it into FILE: .svg, .png, .pdf.",
)
@pass_session
def stat_verb(session: Session, words: tuple[str, ...], path: str | None) -> None:
    """Buckets by their number of entries, beside what a good hash function would give.

    A stroke stands where a bar should end. A bucket is one cache line of seven entries; further
    ones stand in overflow lines, which cost a cache miss each.

    \b
    Examples:
      shmrhash stat hits
      shmrhash stat hits --plot hits.svg
      shmrhash -j stat hits | jq .lines_per_lookup
    """
    shape = looked_at(one_map(words), session, survey)
    if path:
        plot(shape, path)
    if session.json:
        session.emit(shape_object(shape))
        return
    part = shape.overflowing / shape.buckets if shape.buckets else 0
    objects = shape.info.get("objects", "")
    if objects:
        objects = f"\nobjects: {objects_text(objects)}"
    text = (
        f"{printable(shape.name)}: {shape.entries:,} of {shape.info['max_entries']:,} entries in "
        f"{shape.buckets:,} buckets, {shape.load:.2f} each; "
        f"{size_text(shape.info['bytes_committed'])}{objects}\n"
        f"{percent_text(part)} of the buckets have overflow lines; a lookup reads "
        f"{shape.lookups:.2f} lines of buckets\n"
        f"{picture(shape)}"
    )
    if on_terminal():
        make_console().print(text, markup=False)
    else:
        print(text)


def shape_object(shape: Shape) -> dict[str, Any]:
    """What JSON shows."""
    return {
        "name": shape.name,
        "entries": shape.entries,
        "buckets": shape.buckets,
        "load": shape.load,
        "locked": shape.locked,
        "overflowing": shape.overflowing,
        "lines_per_lookup": shape.lookups,
        "objects": shape.info.get("objects"),
        "levels": {str(level): shape.by_level[level] for level in sorted(shape.by_level)},
        "histogram": [
            {"entries": row, "buckets": shape.by_entries[row], "expected": shape.expected(row)}
            for row in range(max(shape.by_entries, default=0) + 1)
        ],
    }
