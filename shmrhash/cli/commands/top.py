"""top: maps and processes, with rates from the difference of two readings.

Each map is open only while it is read: an open handle of this command keeps the map's memory from
being given back, and the command may run for hours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from shmrhash import _inspect
from shmrhash.cli.maps import (
    DENIED,
    NOT_A_MAP,
    PROCESS_COUNTERS,
    MapState,
    Process,
    all_states,
    health_cell,
)
from shmrhash.cli.screen import (
    EVICTIONS,
    Cell,
    age_text,
    count_text,
    keyboard,
    make_console,
    on_terminal,
    percent_text,
    plain_table,
    rich_table,
    size_text,
    time_text,
    tracker_text,
)
from shmrhash.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from rich.console import RenderableType

MAP_COLUMNS = [
    "MAP", ">ENTRIES", ">FILL", ">CHANGE/s", ">OPS/s", ">SPLITS/s", ">MERGES/s", ">WAITS/s",
    ">HITS", ">EVICTED/s", ">COMPUTED/s", ">MEMORY", ">OBJECTS", ">USERS", ">DEAD", ">RECOVERED",
    "HEALTH",
]  # fmt: skip
MAP_DROP = [
    "COMPUTED/s", "RECOVERED", "OBJECTS", "MEMORY", "MERGES/s", "WAITS/s", "FILL", "SPLITS/s",
    "DEAD", "USERS", "EVICTED/s", "HITS", "TRACKER",
]  # fmt: skip
NEAR_COLUMNS = [">AGE", "TRACKER"]  # before the last one, where a near cache is shown
PROCESS_RATES = [f">{name.upper()}/s" for name in PROCESS_COUNTERS]
PROCESS_COLUMNS = ["PROCESS", *PROCESS_RATES, ">ATTACHED", "MAP"]
PROCESS_DROP = ["ATTACHED", "WAITS/s", "ADDS/s", "INSERTS/s", "DELETES/s"]

# The figures by which rows are sorted; the first letter of each is its key on the keyboard. Names
# ascend, figures descend.
FIGURES = ("name", "entries", "fill", "change", "operations", "growth", "memory", "waits", "users")
SORTS = {figure[0]: figure for figure in FIGURES}


@dataclass
class Row:
    """A map at one moment, with rates since the previous reading; None if a rate is unknown."""

    state: MapState
    change: float | None = None
    splits: float | None = None
    merges: float | None = None
    operations: float | None = None
    waits: float | None = None
    hit_ratio: float | None = None  # of a cache, as are the next two; None: nothing was looked up
    evicted: float | None = None
    computed: float | None = None
    processes: list[tuple[Process, dict[str, float | None]]] = field(default_factory=list)

    def figure(self, sort: str) -> float:
        """The figure by which rows are sorted."""
        info = self.state.info
        figures = {
            "entries": info.get("entries"),
            "fill": self.state.fill,
            "change": abs(self.change or 0),
            "operations": self.operations,
            "growth": (self.splits or 0) + (self.merges or 0),
            "memory": info.get("bytes_committed"),
            "waits": self.waits,
            "users": len(self.state.alive),
        }
        return float(figures[sort] or 0)


class Readings:
    """The last state of each map, from which rates are computed."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._session = session
        self._names = set(names)
        self._before: dict[int, MapState] = {}

    def rows(self) -> list[Row]:
        """Read all maps again."""
        rows = []
        now: dict[int, MapState] = {}
        for state in all_states(self._session):
            wanted = not self._names or state.name in self._names
            if wanted and state.health not in (NOT_A_MAP, DENIED):
                rows.append(make_row(self._before.get(state.inode), state))
                now[state.inode] = state
        self._before = now
        return rows


def make_row(before: MapState | None, now: MapState) -> Row:
    """The figures of a map, from two readings."""
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
    if before.cache and now.cache:
        _add_cache_rates(row, before.cache, now.cache, seconds)
    return row


def _add_cache_rates(row: Row, before: dict[str, Any], now: dict[str, Any], seconds: float) -> None:
    """What a cache counted between two readings."""
    more = {name: now[name] - before[name] for name in before}
    looked_up = more["hits"] + more["misses"]
    row.hit_ratio = more["hits"] / looked_up if looked_up else None
    row.evicted = sum(more[f"evicted_{kind}"] for kind in EVICTIONS) / seconds
    row.computed = more["computed"] / seconds


def rate_text(rate: float | None, sign: bool = False) -> str:
    """A rate; "-" if it is unknown."""
    if rate is None:
        return "-"
    return ("+" if sign and rate > 0 else "-" if rate < 0 else "") + count_text(abs(rate))


def map_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The heads and the cells of the maps' table."""
    if not any(row.state.near for row in rows):
        return MAP_COLUMNS, [map_cells(row) for row in rows]
    heads = [*MAP_COLUMNS[:-1], *NEAR_COLUMNS, MAP_COLUMNS[-1]]
    cells = [map_cells(row) for row in rows]
    return heads, [
        [*each[:-1], *near_cells(row), each[-1]] for row, each in zip(rows, cells, strict=True)
    ]


def near_cells(row: Row) -> list[str]:
    """The cells of NEAR_COLUMNS."""
    near = row.state.near
    if not near or near["tracking"] == "ttl":
        return ["-", "ttl" if near else "-"]
    late = near["age"] is None or near["age"] > near["max_stale"]
    return [
        Cell(age_text(near), "bad" if late else "ok"),
        Cell(tracker_text(near), "" if near["tracker_alive"] else "bad"),
    ]


def map_cells(row: Row) -> list[str]:
    """The cells of MAP_COLUMNS."""
    state = row.state
    if not state.info:
        return [Cell(state.name, "head"), *["-"] * 15, health_cell(state)]
    return [
        Cell(state.name, "head"),
        state.entries_text,
        percent_text(state.fill),
        rate_text(row.change, sign=True),
        rate_text(row.operations),
        rate_text(row.splits),
        rate_text(row.merges),
        rate_text(row.waits),
        "-" if row.hit_ratio is None else percent_text(row.hit_ratio),
        rate_text(row.evicted),
        rate_text(row.computed),
        size_text(state.info["bytes_committed"]),
        size_text(state.objects["bytes_in_use"]) if state.objects else "-",
        str(len(state.alive)),
        Cell(len(state.dead), "bad" if state.dead else ""),
        count_text(state.info["recoveries"]),
        health_cell(state),
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
            row.state.name,
        ]


def sort_rows(rows: list[Row], sort: str) -> list[Row]:
    """Rows in the order that the user has chosen."""
    if sort == "name":
        return sorted(rows, key=lambda row: row.state.name)
    return sorted(rows, key=lambda row: (-row.figure(sort), row.state.name))


def head_text(rows: Sequence[Row], interval: float) -> str:
    """The first line: the file system of all maps."""
    status = os.statvfs(_inspect.directory())
    size = status.f_blocks * status.f_frsize
    used = size - status.f_bavail * status.f_frsize
    users = {user.pid for row in rows for user in row.state.alive}
    part = percent_text(used / size) if size else "-"
    return (
        f"{_inspect.directory()}: {size_text(used)} of {size_text(size)} used ({part})   "
        f"{len(rows)} maps   {len(users)} processes   every {interval:g} s   "
        f"{time.strftime('%H:%M:%S')}"
    )


def frame_text(rows: list[Row], interval: float) -> str:
    """One frame as plain text."""
    parts = [head_text(rows, interval), plain_table(*map_table(rows))]
    users = [cells for row in rows for cells in process_cells(row)]
    if users:
        parts.append(plain_table(PROCESS_COLUMNS, users))
    return "\n\n".join(parts)


def frame_screen(
    rows: list[Row], interval: float, sort: str, width: int, height: int
) -> RenderableType:
    """One frame for a terminal of this size; rows that do not fit are counted."""
    from rich.console import Group
    from rich.text import Text

    heads, maps = map_table(rows)
    users = [cells for row in rows for cells in process_cells(row)]
    room = max(4, height - 7)
    shown = maps[: max(2, room - min(len(users), room // 2))]
    users_shown = users[: max(1, room - len(shown))]
    hidden = len(maps) - len(shown) + len(users) - len(users_shown)
    keys = "  ".join(f"{key} {name}" for key, name in SORTS.items())
    parts: list[RenderableType] = [Text(head_text(rows, interval), style="bold"), Text()]
    parts.append(rich_table(heads, shown, width, MAP_DROP))
    if users_shown:
        parts += [Text(), rich_table(PROCESS_COLUMNS, users_shown, width, PROCESS_DROP)]
    parts.append(Text(f"... rows not shown: {hidden}" if hidden else ""))
    parts.append(Text(f"q quit   sorted by {sort}: {keys}", style="dim"))
    for part in (parts[0], parts[-1]):
        assert isinstance(part, Text)
        part.truncate(width, overflow="ellipsis")
    return Group(*parts)


def row_object(row: Row) -> dict[str, Any]:
    """A row in JSON."""
    return {
        "name": row.state.name,
        "health": row.state.health,
        "entries": row.state.info.get("entries"),
        "expired": row.state.info.get("expired"),
        "bytes": row.state.info.get("bytes_committed"),
        "objects": row.state.objects or None,
        "recoveries": row.state.info.get("recoveries"),
        "change_per_s": row.change,
        "splits_per_s": row.splits,
        "merges_per_s": row.merges,
        "operations_per_s": row.operations,
        "waits_per_s": row.waits,
        "cache": row.state.cache or None,
        "near": row.state.near or None,
        "hit_ratio": row.hit_ratio,
        "evicted_per_s": row.evicted,
        "computed_per_s": row.computed,
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


@click.command("top", cls=Command, short_help="Rates of all maps and processes, live.")
@click.argument("maps", nargs=-1, metavar="[NAME]...")
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two frames.",
)
@click.option("-n", "--frames", type=click.IntRange(1), help="Stop after this many frames.")
@click.option(
    "-s",
    "--sort",
    type=click.Choice(list(SORTS.values())),
    default="name",
    help="The order of the rows.",
)
@pass_session
def top_command(
    session: Session, maps: tuple[str, ...], delay: float, frames: int | None, sort: str
) -> None:
    """Maps and the processes that use them, with rates; live on a terminal.

    Keys: q quits; n name, e entries, f fill, c change, o operations, g growth, m memory, w waits, u
    users choose the order of the rows. In a pipe, or with -j, each frame is printed below the one
    before; -n limits their number. A rate needs two readings, so the first frame has none. HITS is
    the share of hits among a cache's lookups since the frame before. Of a near cache AGE is how old
    its values may be, and TRACKER the process that hears its server.

    \b
    Examples:
      shmrhash top
      shmrhash top hits jobs -d 0.5 --sort change
      shmrhash -j top -n 2 | tail -1 | jq '.maps[].change_per_s'
    """
    readings = Readings(session, [name.removeprefix("/") for name in maps])
    if on_terminal() and not session.json:
        _top_live(readings, delay, frames, sort)
        return
    shown = 0
    while True:
        rows = sort_rows(readings.rows(), sort)
        if session.json:
            session.emit({"time": time.time(), "maps": [row_object(row) for row in rows]})
        else:
            print(("\n\n" if shown else "") + frame_text(rows, delay))
        sys.stdout.flush()
        shown += 1
        if shown == frames:
            return
        time.sleep(delay)


def _top_live(readings: Readings, delay: float, frames: int | None, sort: str) -> None:
    """Show frames on a terminal, each in place of the previous one, until q or Ctrl-C."""
    from rich.live import Live

    console = make_console()
    rows = readings.rows()
    shown = 0

    def frame() -> Any:
        return frame_screen(sort_rows(rows, sort), delay, sort, *console.size)

    with (
        contextlib.suppress(KeyboardInterrupt),
        keyboard() as keys,
        Live(frame(), console=console, screen=True, auto_refresh=False) as live,
    ):
        while shown != frames:
            due = time.monotonic() + (delay if shown else min(delay, 0.3))
            while (left := due - time.monotonic()) > 0:
                key = keys.wait(left)
                if key == "q":
                    return
                if key in SORTS:
                    sort = SORTS[key]
                    live.update(frame(), refresh=True)
            rows = readings.rows()
            live.update(frame(), refresh=True)
            shown += 1
