"""trace and simulate: what is asked of a cache, and what caches of other sizes would have found.

A trace may have a part of the keys only (SHARDS: "Efficient MRC construction with SHARDS", FAST
2015): a cache of a tenth of the size is asked for the tenth of the keys. Which of the keys that are
asked for most belong to a part is chance; how many lookups too many or too few it has is known, and
these are taken for hits, as those of such keys nearly always are.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

import click

from shmrhash._inspect import tracing
from shmrhash.cli.drawing import drawing
from shmrhash.cli.errors import STATUS_NO, Failure
from shmrhash.cli.files.traces import Trace, read_trace
from shmrhash.cli.screen import bar, printable
from shmrhash.cli.session import Command, Session, pass_session
from shmrhash.cli.simulation import hits

EVENTS_MAX = 300_000  # more say little more, and each size takes a second for a million
SIZES = 10  # each twice the one before, up to all keys
ROUGH = 50  # entries of a simulated cache below which chance shows
BAR_WIDTH = 40


@click.command(
    "trace",
    cls=Command,
    short_help="Run a program, and record what it asks a cache for.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The file of the trace, which must not exist.",
)
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="The part of the keys that are noted, with all lookups of each.",
)
@click.option("--for", "seconds", type=click.FloatRange(0), help="Trace for this many seconds.")
@click.argument("name", metavar="CACHE")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM...")
@pass_session
def trace_command(
    session: Session,
    path: str,
    sample: float,
    seconds: float | None,
    name: str,
    program: tuple[str, ...],
) -> int:
    """Run PROGRAM; until it ends, it and its children record which keys they ask a Cache for.

    A lookup costs some microseconds more while it is traced. The file contains digests of the keys,
    16 bytes for each lookup, and has at most 1 GiB. A program can trace itself with
    shmrhash.CacheTrace. The exit status is the program's.

    \b
    Examples:
      shmrhash trace -o site.trace --for 600 my-site gunicorn app:app
      shmrhash trace -o site.trace --sample 0.05 my-site celery -A tasks worker
      shmrhash simulate site.trace
    """
    if os.path.lexists(path):
        raise Failure(f"{path} exists: remove it, or name another file", STATUS_NO)
    environment = os.environ | tracing.variables(name, path, sample, seconds)
    try:
        return subprocess.run(program, env=environment, check=False).returncode
    except KeyboardInterrupt:
        raise
    finally:
        if not os.path.exists(path):
            click.echo(f"the program opened no cache {printable(name)!r}: no trace", err=True)


@click.command("simulate", cls=Command, short_help="Hit ratios of a traced cache over sizes.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False), metavar="FILE")
@click.option("--sizes", metavar="N,N...", help="max_entries to try, instead of ten sizes.")
@click.option(
    "--events",
    "most",
    type=click.IntRange(1000),
    default=EVENTS_MAX,
    show_default=True,
    help="If the trace is longer, simulate a part of the keys with about this many events.",
)
@click.option(
    "--plot",
    "path",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also draw the curve into FILE: .svg, .png, .pdf.",
)
@pass_session
def simulate_command(
    session: Session, file: str, sizes: str | None, most: int, path: str | None
) -> None:
    """The share of the lookups in a trace that would have been hits in a Cache, for several
    max_entries.

    Eviction is simulated as in a Cache, but times to live are not: every value lives until it is
    evicted or deleted. The size of the traced cache is marked, and the hit ratio that was measured
    is printed, too. A ~ marks sizes that are small for the part of the keys in the trace: their
    ratios are rough.

    \b
    Examples:
      shmrhash simulate site.trace
      shmrhash simulate site.trace --sizes 1000,20000 --plot site.svg
      shmrhash -j simulate site.trace | jq .sizes
    """
    trace = read_trace(file, most)
    if not trace.lookups or not trace.asked:
        raise Failure(f"{file}: no lookup was traced", STATUS_NO)
    ratios = {size: hit_ratio(trace, size) for size in sizes_of(trace, sizes)}
    if path:
        plot(trace, ratios, path)
    if session.json:
        session.emit(ratios_object(trace, ratios))
        return
    print(
        f"{printable(trace.cache)}: {trace.asked:,} lookups in {trace.seconds:,.0f} s, of about "
        f"{trace.keys / trace.sample:,.0f} keys; {trace.found / trace.asked:.2%} found a value, "
        f"with room for {trace.max_entries:,} entries"
    )
    if trace.sample < 1:
        print(f"simulated with {trace.sample:.2%} of the keys")
    print("max_entries     hits")
    for size, ratio in ratios.items():
        rough = "~" if size * trace.sample < ROUGH else " "
        here = "  <- the traced cache" if size == trace.max_entries else ""
        print(f"{size:11,}  {rough}{ratio:6.2%}  {bar(ratio, BAR_WIDTH)}{here}")


def sizes_of(trace: Trace, asked: str | None) -> list[int]:
    """The sizes to simulate. Raises Failure."""
    if asked is not None:
        try:
            sizes = {int(size.replace("_", "")) for size in asked.split(",")}
        except ValueError:
            raise Failure(f"--sizes {asked!r} are not numbers with commas between them") from None
        if min(sizes) < 1:
            raise Failure("--sizes are numbers of entries, from 1 on")
        return sorted(sizes)
    every = max(1, round(trace.keys / trace.sample))
    doubled = {max(1, every >> halvings) for halvings in range(SIZES)}
    return sorted(doubled | {trace.max_entries})


def hit_ratio(trace: Trace, size: int) -> float:
    """The part of all lookups that a cache of this size would have answered."""
    found = hits(trace.events, max(1, round(size * trace.sample)))
    expected = trace.asked * trace.sample  # lookups of a part that is like the whole
    return min(1.0, max(0.0, (found + expected - trace.lookups) / expected))


def ratios_object(trace: Trace, ratios: dict[int, float]) -> dict[str, Any]:
    """The ratios in JSON."""
    return {
        "cache": trace.cache,
        "max_entries": trace.max_entries,
        "sample": trace.sample,
        "lookups": trace.asked,
        "found": trace.found,
        "keys": round(trace.keys / trace.sample),
        "seconds": trace.seconds,
        "sizes": [{"max_entries": size, "hit_ratio": ratio} for size, ratio in ratios.items()],
    }


def plot(trace: Trace, ratios: dict[int, float], path: str) -> None:
    """The curve as a file, of the kind that the name's ending tells."""
    with drawing(path, trace.cache, f"{trace.asked:,} lookups") as axes:
        percents = [100 * ratio for ratio in ratios.values()]
        axes.semilogx(list(ratios), percents, "o-", color="#4878a8", label="simulated")
        measured = 100 * trace.found / trace.asked
        axes.plot([trace.max_entries], [measured], "s", color="#c44e52", label="measured")
        axes.set_xlabel("max_entries")
        axes.set_ylabel("percent of lookups that find a value")
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
