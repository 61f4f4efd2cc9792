"""Output and keys: tables, bars, JSON, a keyboard; sizes and times for people.

Tables are drawn by rich on a terminal, and are plain text in a pipe. JSON has bpftool's layout.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES = {"ok": "green", "note": "yellow", "bad": "bold red", "dim": "dim", "head": "bold"}
EIGHTHS = " ▏▎▍▌▋▊▉█"
PIPE_WIDTH = 10_000  # so that lines in a pipe are not cut
INDENT = "    "  # of pretty JSON


# ---- text, tables, bars ----


def on_terminal() -> bool:
    """Whether the standard output is a terminal."""
    return sys.stdout.isatty()


def make_console() -> Console:
    """A console on the standard output, of its width, with colours unless NO_COLOR is set."""
    from rich.console import Console

    terminal = on_terminal()
    return Console(highlight=False, width=None if terminal else PIPE_WIDTH, soft_wrap=not terminal)


def printable(text: str) -> str:
    """text with control characters escaped: names of files and processes may contain any."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class Cell(str):
    """A text with a style, one of STYLES, which is used where colours are shown."""

    style: str = ""

    def __new__(cls, text: object, style: str = "") -> Cell:
        cell = super().__new__(cls, printable(str(text)))
        cell.style = STYLES.get(style, style)
        return cell


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[str] = ()
) -> None:
    """Print rows under columns; a column whose name begins with '>' is aligned to the right.

    drop: the columns that a narrow terminal does not show, in the order in which they are left out.
    """
    if not on_terminal():
        print(plain_table(columns, rows))
        return
    console = make_console()
    console.print(rich_table(columns, rows, console.width, drop))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text: two spaces between columns, none at the ends of lines."""
    heads = [column.lstrip(">") for column in columns]
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in [heads, *rows]:
        cells = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, drop: Sequence[str]
) -> list[int]:
    """The numbers of the columns that a terminal of this width shows.

    Columns with only "-" are left out first; then those named in drop, in order, until the rest
    fits.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    kept = [
        number
        for number in range(len(columns))
        if number == 0 or not rows or any(row[number] != "-" for row in rows)
    ]
    for name in drop:
        if sum(widths[number] + 2 for number in kept) - 2 <= width:
            break
        kept = [number for number in kept if columns[number].lstrip(">") != name]
    return kept


def rich_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    drop: Sequence[str] = (),
) -> RenderableType:
    """The table for a terminal; if a width is given, only the columns that fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    kept = range(len(columns)) if width is None else fitting(columns, rows, width, drop)
    for number in kept:
        column = columns[number]
        own = max([len(column.lstrip(">")), *(len(row[number]) for row in rows)])
        # The first and the last column are cut when the window is narrow.
        may_be_cut = number in (0, len(columns) - 1)
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=min(own, 8) if may_be_cut else own,
        )
    for row in rows:
        cells = [row[number] for number in kept]
        texts = [Text(printable(cell), style=getattr(cell, "style", "")) for cell in cells]
        table.add_row(*texts)
    return table


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and their texts, one to a line."""
    width = max(len(name) for name, _ in facts)
    console = make_console() if on_terminal() else None
    for name, text in facts:
        if console is None:
            print(f"{name.ljust(width)}  {printable(text)}".rstrip())
        else:
            from rich.text import Text

            line = Text(f"{name.ljust(width)}  ", style="dim")
            line.append(printable(text), style=getattr(text, "style", ""))
            console.print(line)


def bar(part: float, width: int) -> str:
    """A bar that is width letters wide if part is 1; part is from 0 to 1."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    if not can_draw():
        return "#" * round(eighths / 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def can_draw() -> bool:
    """Whether the standard output can show block letters."""
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A function to call with the number of entries done since its last call; it moves a bar.

    Nothing is drawn unless the standard error is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total or None)
        yield lambda count: shown.advance(task, count)


# ---- sizes, counts, times ----


def size_text(size: float) -> str:
    """Bytes for people: 40 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or (unit == "GiB" and size < 10_240):
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def count_text(number: float) -> str:
    """A count, or a rate, for people: 12,345 or 3.4M."""
    if number < 100_000:
        return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"
    for unit in "kMGT":
        number /= 1000
        if number < 999.5:
            return f"{number:.3g}{unit}"
    return f"{number:.3g}P"


def percent_text(part: float) -> str:
    """A share for people; a small one is "<0.1%", not "0.0%"."""
    if 0 < part < 0.001:
        return "<0.1%"
    return f"{part:.1%}" if part < 0.9995 or part == 1 else "99.9%"


def time_text(seconds: float) -> str:
    """A span of time for people: 5 s, 3 min, 2 h, 4 d."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def objects_text(objects: dict[str, int]) -> str:
    """The objects of a map in one line."""
    return (
        f"{objects['count']:,}, {size_text(objects['bytes_in_use'])} in use, "
        f"{size_text(objects['bytes_committed'])} committed of {size_text(objects['max_bytes'])}, "
        f"{objects['pinned']:,} pinned"
    )


EVICTIONS = ("new", "kept", "expired", "block")  # what a cache counts: evicted_new and so on


def ratio_text(cache: dict[str, Any]) -> str:
    """The hit ratio of a cache; "-" if nothing was looked up."""
    looked_up = cache["hits"] + cache["misses"]
    return percent_text(cache["hits"] / looked_up) if looked_up else "-"


def cache_text(cache: dict[str, Any]) -> str:
    """The counts of a cache in two lines."""
    evicted = ", ".join(f"{cache[f'evicted_{kind}']:,} {kind}" for kind in EVICTIONS)
    return (
        f"{ratio_text(cache)} hits of {cache['hits'] + cache['misses']:,}, {cache['sets']:,} sets; "
        f"evicted {evicted}\n"
        f"computed {cache['computed']:,}, waited {cache['waited']:,}, "
        f"taken over {cache['taken_over']:,}, claimed now {cache['claimed']:,}"
    )


def near_text(near: dict[str, Any]) -> str:
    """What a near cache knows of its server, in one line."""
    if near["tracking"] == "ttl":
        return "values live for their ttl: the server tells of no changes"
    return (
        f"{age_text(near)} old at most, {near['max_stale']:g} s allowed; tracked by "
        f"{tracker_text(near)}, {near['takeovers']:,} takeovers, {near['epochs']:,} epochs"
    )


def age_text(near: dict[str, Any]) -> str:
    """How old a near cache's values may be now; "?" if no process has heard its server."""
    return "?" if near.get("age") is None else f"{near['age']:.2f} s"


def tracker_text(near: dict[str, Any]) -> str:
    """The process that tracks a near cache's server; "none" if it is dead."""
    return str(near["tracker_pid"]) if near["tracker_alive"] else "none"


# ---- JSON, in the layout of bpftool: a program that reads bpftool's output reads this too ----


def json_text(value: Any, pretty: bool, depth: int = 0) -> str:
    """value as JSON. depth: how many objects and arrays are open around it."""
    if isinstance(value, dict):
        inside = json_break(pretty, depth + 1)
        colon = ": " if pretty else ":"
        items = ",".join(
            f"{inside}{json.dumps(name)}{colon}{json_text(item, pretty, depth + 1)}"
            for name, item in value.items()
        )
        return f"{{{items}{json_break(pretty and bool(value), depth)}}}"
    if isinstance(value, (list, tuple)):
        items = ",".join(json_text(item, pretty, depth + 1) for item in value)
        return f"[{items}{json_break(pretty and bool(value), depth)}]"
    return json.dumps(value)


def json_break(pretty: bool, depth: int) -> str:
    """The line break before a name, or before the end of an object or array that is not empty."""
    return "\n" + INDENT * depth if pretty else ""


def hex_strings(data: bytes) -> list[str]:
    """Bytes as bpftool's JSON has them."""
    return [f"0x{byte:02x}" for byte in data]


def hex_array(data: bytes) -> str:
    """The compact JSON of hex_strings(), by a faster way."""
    joined = data.hex(",").replace(",", '","0x')
    return f'["0x{joined}"]' if data else "[]"


# ---- the keyboard ----


class Keyboard:
    """Keys as they are pressed. descriptor: a terminal's, or None if there is no keyboard."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str:
        """The next key that is pressed within this many seconds, or ""."""
        if self._descriptor is None:
            time.sleep(max(0.0, seconds))
            return ""
        try:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, seconds))
        except InterruptedError:
            return ""
        if not ready:
            return ""
        typed = os.read(self._descriptor, 64)
        return typed[:1].decode("ascii", "ignore") if typed else "q"  # the terminal has gone


@contextlib.contextmanager
def keyboard() -> Iterator[Keyboard]:
    """The keyboard, without echo and without waiting for Enter; restored afterwards."""
    if not sys.stdin.isatty():
        yield Keyboard(None)
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
