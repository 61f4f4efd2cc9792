"""near: a process that tracks a server for the near caches of this machine, and fetches keys."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from shmrhash import NearCache
from shmrhash.cli.errors import STATUS_NO, STATUS_SYSTEM, Failure, need
from shmrhash.cli.session import Command, Session, pass_session

VALUES = {"bytes": bytes, "str": str, "object": object}
LOOK_S = 0.5  # between two looks at the signals, while no server answers


@click.command(
    "near", cls=Command, short_help="Track a server for the near caches of this machine."
)
@click.argument("url")
@click.option("--prefix", "prefixes", multiple=True, required=True, help="Keys to watch; '': all.")
@click.option("--name", help="The segment; else made of URL, prefixes and value.")
@click.option("--value", type=click.Choice(list(VALUES)), default="bytes", help="As the workers'.")
@click.option(
    "--max-stale", type=click.FloatRange(0, min_open=True), default=1.0, metavar="SECONDS"
)
@click.option("--max-entries", type=click.IntRange(1), default=1 << 20)
@click.option("--max-bytes", type=click.IntRange(1), default=256 << 20)
@click.option("--cluster", is_flag=True, help="URL is of one node of a cluster.")
@click.option("--warm", type=click.File("rb"), help="Fetch the keys of this file, one a line.")
@pass_session
def near_command(
    session: Session,
    url: str,
    value: str,
    cluster: bool,
    warm: BinaryIO | None,
    **options: Any,
) -> int:
    """Track the Redis or Valkey at URL in this process, so that no busy worker has to.

    The workers' near caches of the same server, prefixes, value and max_stale share its segment. If
    another process tracks already, this one stands by. It prints a line when values can be kept,
    and runs until it is interrupted or terminated; then a worker that may track takes over. The
    exit status is 1 if the server refuses to report changes.

    \b
    Examples:
      shmrhash near redis://cache/0 --prefix user: --prefix item:
      shmrhash near unix:///run/redis/socket --prefix user: --warm hot-keys.txt
      shmrhash near redis://node --cluster --prefix user: --name users
    """
    need("redis")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with _opened(url, cluster, value=VALUES[value], **options) as near:
        while not near.ready(LOOK_S):  # ends with a server that answers, or a signal
            if over.is_set():
                return 0
        is_tracked = _say(session, near)
        if not is_tracked:
            return STATUS_NO
        if warm is not None:
            fetched = near.warm(_lines_of(warm, over))
            if session.json:
                session.emit({"fetched": fetched})
            else:
                click.echo(f"{fetched:,} keys fetched")
            sys.stdout.flush()
        over.wait()
    return 0


def _opened(url: str, cluster: bool, **options: Any) -> NearCache:
    """The near cache. Raises Failure."""
    import redis  # type: ignore[import-not-found]

    try:
        client: Any = url
        if cluster:
            client = redis.cluster.RedisCluster.from_url(url)
        return NearCache(client, **options)
    except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException) as error:
        raise Failure(f"{url}: {error}", STATUS_SYSTEM) from None
    except ValueError as error:  # of redis-py: what is no URL
        raise Failure(str(error)) from None


def _lines_of(file: BinaryIO, over: threading.Event) -> Iterator[bytes]:
    """The keys of a file, until a signal comes."""
    for line in file:
        if over.is_set():
            return
        if key := line.rstrip(b"\r\n"):
            yield key


def _say(session: Session, near: NearCache) -> bool:
    """What is tracked, and by whom. Whether it is."""
    info = near.info()
    if session.json:
        shown = ("name", "source", "tracking", "refusal", "tracker_pid", "tracks_here")
        session.emit({name: info[name] for name in shown})
    elif info["tracking"] == "ttl":
        click.echo(f"{info['name']}: {info['source']}: not tracked: {info['refusal']}")
    else:
        whose = "this process" if info["tracks_here"] else f"process {info['tracker_pid']}"
        click.echo(f"{info['name']}: {info['source']}: {whose} tracks")
    sys.stdout.flush()  # it goes on for long
    return bool(info["tracking"] != "ttl")
