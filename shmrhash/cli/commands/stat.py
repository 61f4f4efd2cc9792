"""stat: how entries are spread over buckets, drawn in the terminal or into a file.

Each number of buckets is shown beside the number that a good hash function would give. Buckets of
linear hashing have two levels at a time: a bucket of level l gets an entry with probability 2**-l,
so the expected numbers are a mixture of two Poisson distributions.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from shmrhash import RHashMap
from shmrhash.cli.drawing import drawing
from shmrhash.cli.maps import make_process, near_figures
from shmrhash.cli.screen import (
    bar,
    cache_text,
    make_console,
    near_text,
    objects_text,
    on_terminal,
    percent_text,
    printable,
    size_text,
)
from shmrhash.cli.session import Command, Session, map_argument, pass_session
from shmrhash.cli.strangers import read_map
from shmrhash.cli.words import MapName

BAR_WIDTH = 40
SLOTS = 7  # entries that a bucket holds without an overflow line
ROWS_MAX = 40


@dataclass
class BucketCounts:
    """The buckets of a map, counted by their entries, overflow lines and levels."""

    name: str
    info: dict[str, Any]
    buckets: int = 0
    entries: int = 0
    locked: int = 0
    near: dict[str, Any] = field(default_factory=dict)  # of a near cache; else empty
    by_entries: Counter[int] = field(default_factory=Counter)
    by_lines: Counter[int] = field(default_factory=Counter)
    by_level: Counter[int] = field(default_factory=Counter)

    @property
    def load(self) -> float:
        """Average entries of a bucket."""
        return self.entries / self.buckets if self.buckets else 0.0

    @property
    def overflowing(self) -> int:
        """Buckets with overflow lines."""
        return sum(count for lines, count in self.by_lines.items() if lines)

    @property
    def lookups(self) -> float:
        """Average cache lines of buckets that a lookup of a present key reads."""
        if not self.entries:
            return 0.0
        lines = sum(
            buckets * sum(1 + min(place, entries - 1) // SLOTS for place in range(entries))
            for entries, buckets in self.by_entries.items()
        )
        return lines / self.entries

    def expected(self, entries: int) -> float:
        """How many buckets a good hash function would give this many entries."""
        total = 0.0
        for level, buckets in self.by_level.items():
            mean = self.entries / 2.0**level
            if mean == 0:
                total += buckets * (entries == 0)
            else:
                power = entries * math.log(mean) - mean - math.lgamma(entries + 1)
                total += buckets * math.exp(power)
        return total


def count_buckets(shared_map: RHashMap) -> BucketCounts:
    """Walk over all buckets. If the map changes during the walk, sums are not exact."""
    info = shared_map.info()
    counts = BucketCounts(shared_map.name, info)
    if "cache" in info:
        counts.near = near_figures(shared_map, map(make_process, info["attached"]))
    for bucket in shared_map.walk():
        counts.buckets += 1
        counts.entries += bucket.entries
        counts.locked += bucket.locked
        counts.by_entries[bucket.entries] += 1
        counts.by_lines[bucket.lines] += 1
        counts.by_level[bucket.level] += 1
    return counts


def picture(counts: BucketCounts) -> str:
    """The histogram as text."""
    top = max(counts.by_entries, default=0)
    rows = range(min(top, ROWS_MAX) + 1)
    most = max((max(counts.by_entries[row], counts.expected(row)) for row in rows), default=1) or 1
    lines = ["entries   buckets  expected"]
    for row in rows:
        count, expected = counts.by_entries[row], counts.expected(row)
        drawn = mark(bar(count / most, BAR_WIDTH), expected / most)
        lines.append(f"{row:7}  {count:8,}  {expected:8,.0f}  {drawn}".rstrip())
        if row == SLOTS and top > SLOTS:
            lines.append(f"{'':7}  {' overflow lines from here on ':-^{BAR_WIDTH + 20}}")
    if top > ROWS_MAX:
        more = sum(count for row, count in counts.by_entries.items() if row > ROWS_MAX)
        lines.append(f"{f'to {top}':>7}  {more:8,}")
    return "\n".join(lines)


def mark(drawn: str, place: float) -> str:
    """The bar with a stroke at its expected end."""
    column = round(place * BAR_WIDTH)
    if not column or len(drawn) > column:
        return drawn
    return drawn.ljust(column) + "|"


def plot(counts: BucketCounts, path: str) -> None:
    """The histogram as a file, of the kind that the name's ending tells."""
    rows = list(range(max(counts.by_entries, default=0) + 1))
    title = f"{counts.entries:,} entries in {counts.buckets:,} buckets"
    with drawing(path, counts.name, title) as axes:
        axes.bar(rows, [counts.by_entries[row] for row in rows], color="#4878a8", label="found")
        expected = [counts.expected(row) for row in rows]
        axes.plot(rows, expected, "o-", color="#c44e52", label="expected")
        axes.axvline(SLOTS + 0.5, color="grey", linestyle=":", label="overflow lines from here on")
        axes.set_xlabel("entries in a bucket")
        axes.set_ylabel("buckets")


@click.command("stat", cls=Command, short_help="Draw how entries are spread over buckets.")
@map_argument
@click.option(
    "--plot",
    "path",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also draw the histogram into FILE: .svg, .png, .pdf.",
)
@pass_session
def stat_command(session: Session, name: MapName, path: str | None) -> None:
    """Buckets by their number of entries, and the numbers that a good hash function would give.

    The stroke in or after a bar marks the expected number. A bucket is one cache line of seven
    entries; further entries are in overflow lines, each of which costs a lookup one more cache
    miss. Of a cache, also what all processes counted: hits, evictions, computations.

    \b
    Examples:
      shmrhash stat hits
      shmrhash stat hits --plot hits.svg
      shmrhash -j stat hits | jq .lines_per_lookup
    """
    counts = read_map(name, session, count_buckets)
    if path:
        plot(counts, path)
    if session.json:
        session.emit(counts_object(counts))
        return
    part = counts.overflowing / counts.buckets if counts.buckets else 0
    objects = counts.info.get("objects", "")
    if objects:
        objects = f"\nobjects: {objects_text(objects)}"
    cache = counts.info.get("cache", "")
    if cache:
        cache = f"\ncache: {cache_text(cache)}"
    if counts.near:
        cache += f"\nnear: {near_text(counts.near)}"
    text = (
        f"{printable(counts.name)}: {counts.entries:,} of {counts.info['max_entries']:,} entries "
        f"in {counts.buckets:,} buckets, {counts.load:.2f} each; "
        f"{size_text(counts.info['bytes_committed'])}{objects}{cache}\n"
        f"{percent_text(part)} of the buckets have overflow lines; a lookup reads "
        f"{counts.lookups:.2f} bucket lines\n"
        f"{picture(counts)}"
    )
    if on_terminal():
        make_console().print(text, markup=False)
    else:
        print(text)


def counts_object(counts: BucketCounts) -> dict[str, Any]:
    """The counts in JSON."""
    return {
        "name": counts.name,
        "entries": counts.entries,
        "buckets": counts.buckets,
        "load": counts.load,
        "locked": counts.locked,
        "overflowing": counts.overflowing,
        "lines_per_lookup": counts.lookups,
        "objects": counts.info.get("objects"),
        "cache": counts.info.get("cache"),
        "near": counts.near or None,
        "levels": {str(level): counts.by_level[level] for level in sorted(counts.by_level)},
        "histogram": [
            {"entries": row, "buckets": counts.by_entries[row], "expected": counts.expected(row)}
            for row in range(max(counts.by_entries, default=0) + 1)
        ],
    }
