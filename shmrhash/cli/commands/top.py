"""What top shows: maps and processes, with rates from the difference between two looks.

Each map is open for the moment of the look only, so that top keeps nothing from being given back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shmrhash import _segment
from shmrhash.cli.commands.ls import health_cell
from shmrhash.cli.maps import DENIED, PROCESS_COUNTERS, STRANGER, Process, Sight, look_around
from shmrhash.cli.screen import (
    Cell,
    count_text,
    percent_text,
    plain_table,
    rich_table,
    size_text,
    time_text,
)
from shmrhash.cli.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType

MAP_COLUMNS = [
    "MAP", ">ENTRIES", ">FILL", ">CHANGE/s", ">OPS/s", ">SPLITS/s", ">MERGES/s", ">WAITS/s",
    ">MEMORY", ">OBJECTS", ">USERS", ">DEAD", ">RECOVERED", "HEALTH",
]  # fmt: skip
MAP_DROP = [
    "RECOVERED",
    "OBJECTS",
    "MEMORY",
    "MERGES/s",
    "WAITS/s",
    "FILL",
    "SPLITS/s",
    "DEAD",
    "USERS",
]
PROCESS_COLUMNS = [
    "PROCESS",
    *(f">{name.upper()}/s" for name in PROCESS_COUNTERS),
    ">ATTACHED",
    "MAP",
]

PROCESS_DROP = ["ATTACHED", "WAITS/s", "ADDS/s", "INSERTS/s", "DELETES/s"]

# Key, what it sorts by, and which row figure that is. Names ascend, figures descend.
SORTS = {
    "n": "name",
    "e": "entries",
    "f": "fill",
    "c": "change",
    "o": "operations",
    "g": "growth",
    "m": "memory",
    "w": "waits",
    "u": "users",
}


@dataclass
class Row:
    """A map at one look, with rates since the look before. None: not known."""

    sight: Sight
    change: float | None = None
    splits: float | None = None
    merges: float | None = None
    operations: float | None = None
    waits: float | None = None
    processes: list[tuple[Process, dict[str, float | None]]] = field(default_factory=list)

    def figure(self, sort: str) -> float:
        """What this row is sorted by."""
        info = self.sight.info
        figures = {
            "entries": info.get("entries"),
            "fill": self.sight.fill,
            "change": abs(self.change or 0),
            "operations": self.operations,
            "growth": (self.splits or 0) + (self.merges or 0),
            "memory": info.get("bytes_committed"),
            "waits": self.waits,
            "users": len(self.sight.alive),
        }
        return float(figures[sort] or 0)


class Looks:
    """The last look at each map, to tell rates from."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._session = session
        self._names = set(names)
        self._before: dict[int, Sight] = {}

    def take(self) -> list[Row]:
        """Look at all maps."""
        rows = []
        now: dict[int, Sight] = {}
        for sight in look_around(self._session):
            wanted = not self._names or sight.name in self._names
            if wanted and sight.health not in (STRANGER, DENIED):
                rows.append(make_row(self._before.get(sight.inode), sight))
                now[sight.inode] = sight
        self._before = now
        return rows


def make_row(before: Sight | None, now: Sight) -> Row:
    """The figures of a map, from two looks at it."""
    row = Row(now)
    seconds = now.taken - before.taken if before else 0.0
    usable = before is not None and seconds > 0 and bool(before.info and now.info)
    earlier = {(user.pid, user.attached_ns): user for user in before.processes} if before else {}
    total: float | None = None
    for user in now.processes:
        then = earlier.get((user.pid, user.attached_ns))
        rates: dict[str, float | None] = {}
        for name, count in user.counters.items():
            known = then.counters.get(name, 0) if then else 0
            rates[name] = (count - known) / seconds if usable else None
        row.processes.append((user, rates))
        if rates.get("operations") is not None:
            total = (total or 0.0) + (rates["operations"] or 0.0)
        if rates.get("waits") is not None:
            row.waits = (row.waits or 0.0) + (rates["waits"] or 0.0)
    if not usable or before is None:
        return row
    row.change = (now.info["entries"] - before.info["entries"]) / seconds
    row.splits = (now.info["grows"] - before.info["grows"]) / seconds
    row.merges = (now.info["shrinks"] - before.info["shrinks"]) / seconds
    row.operations = total
    return row


def rate_text(rate: float | None, sign: bool = False) -> str:
    """A rate, or what stands for one that is not known."""
    if rate is None:
        return "-"
    return ("+" if sign and rate > 0 else "-" if rate < 0 else "") + count_text(abs(rate))


def map_cells(row: Row) -> list[str]:
    """The cells of MAP_COLUMNS."""
    sight = row.sight
    if not sight.info:
        return [Cell(sight.name, "head"), *["-"] * 12, health_cell(sight)]
    return [
        Cell(sight.name, "head"),
        count_text(sight.info["entries"]),
        percent_text(sight.fill),
        rate_text(row.change, sign=True),
        rate_text(row.operations),
        rate_text(row.splits),
        rate_text(row.merges),
        rate_text(row.waits),
        size_text(sight.info["bytes_committed"]),
        size_text(sight.objects["bytes_in_use"]) if sight.objects else "-",
        str(len(sight.alive)),
        Cell(len(sight.dead), "bad" if sight.dead else ""),
        count_text(sight.info["recoveries"]),
        health_cell(sight),
    ]


def process_cells(row: Row) -> Iterator[list[str]]:
    """The cells of PROCESS_COLUMNS for each process of a map."""
    for user, rates in row.processes:
        name = Cell(str(user), "" if user.alive else "bad")
        since = time_text(time.time() - user.attached_ns / 1e9) if user.alive else "dead"
        yield [
            name,
            *(rate_text(rates.get(name)) for name in PROCESS_COUNTERS),
            since,
            row.sight.name,
        ]


def sort_rows(rows: list[Row], sort: str) -> list[Row]:
    """Rows in the order the user chose."""
    if sort == "name":
        return sorted(rows, key=lambda row: row.sight.name)
    return sorted(rows, key=lambda row: (-row.figure(sort), row.sight.name))


def head_text(rows: Sequence[Row], interval: float) -> str:
    """The first line: the file system that all maps share."""
    status = os.statvfs(_segment.directory())
    size = status.f_blocks * status.f_frsize
    used = size - status.f_bavail * status.f_frsize
    users = {user.pid for row in rows for user in row.sight.alive}
    part = percent_text(used / size) if size else "-"
    return (
        f"{_segment.directory()}: {size_text(used)} of {size_text(size)} used ({part})   "
        f"{len(rows)} maps   {len(users)} processes   every {interval:g} s   "
        f"{time.strftime('%H:%M:%S')}"
    )


def frame_text(rows: list[Row], interval: float) -> str:
    """One frame as plain text."""
    parts = [head_text(rows, interval), plain_table(MAP_COLUMNS, [map_cells(row) for row in rows])]
    users = [cells for row in rows for cells in process_cells(row)]
    if users:
        parts.append(plain_table(PROCESS_COLUMNS, users))
    return "\n\n".join(parts)


def frame_screen(
    rows: list[Row], interval: float, sort: str, width: int, height: int
) -> RenderableType:
    """One frame for a terminal of this size: what does not fit is counted, not scrolled."""
    from rich.console import Group
    from rich.text import Text

    maps = [map_cells(row) for row in rows]
    users = [cells for row in rows for cells in process_cells(row)]
    room = max(4, height - 7)
    shown = maps[: max(2, room - min(len(users), room // 2))]
    users_shown = users[: max(1, room - len(shown))]
    hidden = len(maps) - len(shown) + len(users) - len(users_shown)
    keys = "  ".join(f"{key} {name}" for key, name in SORTS.items())
    parts: list[RenderableType] = [Text(head_text(rows, interval), style="bold"), Text()]
    parts.append(rich_table(MAP_COLUMNS, shown, width, MAP_DROP))
    if users_shown:
        parts += [Text(), rich_table(PROCESS_COLUMNS, users_shown, width, PROCESS_DROP)]
    parts.append(Text(f"... rows not shown: {hidden}" if hidden else ""))
    parts.append(Text(f"q quit   sorted by {sort}: {keys}", style="dim"))
    for part in (parts[0], parts[-1]):
        assert isinstance(part, Text)
        part.truncate(width, overflow="ellipsis")
    return Group(*parts)


def row_object(row: Row) -> dict[str, Any]:
    """A row as JSON shows it."""
    return {
        "name": row.sight.name,
        "health": row.sight.health,
        "entries": row.sight.info.get("entries"),
        "bytes": row.sight.info.get("bytes_committed"),
        "objects": row.sight.objects or None,
        "recoveries": row.sight.info.get("recoveries"),
        "change_per_s": row.change,
        "splits_per_s": row.splits,
        "merges_per_s": row.merges,
        "operations_per_s": row.operations,
        "waits_per_s": row.waits,
        "processes": [
            {
                "pid": user.pid,
                "command": user.command,
                "alive": user.alive,
                **{f"{name}_per_s": rate for name, rate in rates.items()},
            }
            for user, rates in row.processes
        ],
    }
