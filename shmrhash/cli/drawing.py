"""Files with a drawing, by matplotlib."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from shmrhash.cli.errors import need
from shmrhash.cli.screen import printable


@contextlib.contextmanager
def drawing(path: str, name: str, subject: str) -> Iterator[Any]:
    """The axes of a drawing, which the end of the block saves, in the format that the ending of
    path tells. name, subject: its title; the name is a map's."""
    need("matplotlib")
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        yield axes
        no_formula = printable(name).replace("$", r"\$")
        axes.set_title(f"{no_formula}: {subject}")
        axes.legend()
        try:
            figure.savefig(path)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    finally:
        pyplot.close(figure)
