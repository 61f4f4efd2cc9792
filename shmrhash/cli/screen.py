"""What people look at: tables, bars, sizes, times. On a terminal by rich; in a pipe plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES = {"ok": "green", "note": "yellow", "bad": "bold red", "dim": "dim", "head": "bold"}
EIGHTHS = " ▏▎▍▌▋▊▉█"
PIPE_WIDTH = 10_000  # nothing is cut where nobody looks


def make_console() -> Console:
    """A console on the standard output: colours, unless NO_COLOR says otherwise, and its width."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(highlight=False, width=None if terminal else PIPE_WIDTH, soft_wrap=not terminal)


def printable(text: str) -> str:
    """text without what would move a terminal's cursor: names of files and processes may."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class Cell(str):
    """A text with a style, one of STYLES; just a text where there are no colours."""

    style: str = ""

    def __new__(cls, text: object, style: str = "") -> Cell:
        cell = super().__new__(cls, printable(str(text)))
        cell.style = STYLES.get(style, style)
        return cell


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[str] = ()
) -> None:
    """Print rows under columns; a column whose name begins with '>' is aligned to the right.

    drop: which columns a narrow terminal goes without, first to last.
    """
    if not sys.stdout.isatty():
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
    """The numbers of the columns to show in so many letters.

    A column of nothing but "-" says nothing and goes first; then those named in drop, in order,
    until the rest fits.
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
    """The table for a terminal; with a width, of the columns that fit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    kept = range(len(columns)) if width is None else fitting(columns, rows, width, drop)
    for number in kept:
        column = columns[number]
        own = max([len(column.lstrip(">")), *(len(row[number]) for row in rows)])
        # The name, and what is said last, give way when the window is narrow.
        gives_way = number in (0, len(columns) - 1)
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=min(own, 8) if gives_way else own,
        )
    for row in rows:
        cells = [row[number] for number in kept]
        texts = [Text(printable(cell), style=getattr(cell, "style", "")) for cell in cells]
        table.add_row(*texts)
    return table


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what they are, one to a line."""
    width = max(len(name) for name, _ in facts)
    console = make_console() if sys.stdout.isatty() else None
    for name, text in facts:
        if console is None:
            print(f"{name.ljust(width)}  {printable(text)}".rstrip())
        else:
            from rich.text import Text

            line = Text(f"{name.ljust(width)}  ", style="dim")
            line.append(printable(text), style=getattr(text, "style", ""))
            console.print(line)


def bar(part: float, width: int) -> str:
    """A bar of width letters, part (0 to 1) of it filled."""
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
    """A share for people; what is not nothing is not shown as nothing."""
    if 0 < part < 0.001:
        return "<0.1%"
    return f"{part:.1%}" if part < 0.9995 or part == 1 else "99.9%"


def time_text(seconds: float) -> str:
    """A span of time for people: 5 s, 3 min, 2 h, 4 d."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
