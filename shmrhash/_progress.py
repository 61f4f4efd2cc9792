"""progress= of long calls: the caller's function, or a bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

Progress = Callable[[int, int], object]  # (entries done, of how many)


@contextlib.contextmanager
def shown(progress: Progress | Literal[True] | None, what: str) -> Iterator[Progress | None]:
    """What a long call is to call with its progress; None: nothing.

    True draws rich's bar, named what, if the standard error is a terminal and rich is installed.
    """
    if progress is not True:
        yield progress
        return
    bar = _bar() if sys.stderr.isatty() else None
    if bar is None:
        yield None
        return
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar() -> Any:
    """A Progress of rich; None if that is not installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ModuleNotFoundError:
        return None
    return Bar(console=Console(stderr=True), transient=True)
