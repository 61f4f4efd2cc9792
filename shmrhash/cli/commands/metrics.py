"""metrics: the figures of maps in Prometheus' text format."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from shmrhash import _inspect
from shmrhash.cli.errors import need
from shmrhash.cli.files.newfile import new_file
from shmrhash.cli.maps import DENIED, NOT_A_MAP, PROCESS_COUNTERS, MapState, all_states
from shmrhash.cli.screen import EVICTIONS
from shmrhash.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from prometheus_client import Metric

GAUGES = {  # name: (name in info(), how many of its units make one of Prometheus's, help)
    "entries": ("entries", 1, "Entries in the map."),
    "expired_entries": (
        "expired",
        1,
        "Entries past their deadline, which make room for others (estimate).",
    ),
    "max_entries": ("max_entries", 1, "The map's limit of entries."),
    "committed_bytes": ("bytes_committed", 1, "Memory of the map."),
    "used_bytes": ("bytes_used", 1, "Memory of entries and buckets."),
    "buckets": ("buckets", 1, "Buckets of the hash table."),
    "contexts": (
        "contexts",
        1,
        "Operation contexts in use: one for each thread inside an operation.",
    ),
    "created_timestamp_seconds": ("created_ns", 1e9, "When the map was made."),
    "recovery_seconds_max": ("recovery_ns_max", 1e9, "The longest recovery."),
}
OBJECT_GAUGES = {  # of maps with objects: name: (name in info()["objects"], help)
    "objects": ("count", "Objects: values and long keys that are stored outside the entries."),
    "objects_used_bytes": ("bytes_in_use", "Memory of objects in use."),
    "objects_committed_bytes": ("bytes_committed", "Memory that objects have taken."),
    "objects_max_bytes": (
        "max_bytes",
        "The limit of memory for objects; of a cache, for all of it.",
    ),
    "objects_pinned": ("pinned", "Objects that processes read in place."),
}
CACHE_COUNTERS = {  # of caches: name: (name in info()["cache"], help)
    "hits": ("hits", "Lookups that found a value."),
    "misses": ("misses", "Lookups that found none."),
    "stale_hits": ("stale_hits", "Values returned while another call computed them again."),
    "unreadable": ("unreadable", "Values that could not be decoded."),
    "sets": ("sets", "Values stored, except computed ones."),
    "rejected": ("rejected", "Values that did not fit."),
    "computed": ("computed", "Values that get_or_compute() computed."),
    "computing_seconds": ("seconds_computing", "Time that it took to compute them."),
    "waited": ("waited", "Calls that waited for another's value."),
    "taken_over": ("taken_over", "Computations taken over from a process that died or failed."),
    "stolen": ("stolen", "Claims taken from a caller that computed for too long."),
    "not_stored": ("not_stored", "Computed values that were invalidated during their computation."),
}
COUNTERS = {
    "grows": "Splits of a bucket.",
    "shrinks": "Merges of two buckets.",
    "growth_stopped": "Splits given up for lack of memory.",
    "blocks_released": "Blocks of memory given back.",
    "releases_postponed": "Blocks that could not be given back at once.",
    "recoveries": "Dead processes recovered.",
    "owners_found_dead": "Times that the owner of a lock was found dead.",
    "operations_finished": "Operations of dead processes finished.",
    "operations_undone": "Operations of dead processes undone.",
}


class Collector:
    """A collector of prometheus_client. find: returns the states of all maps."""

    def __init__(self, find: Callable[[], list[MapState]]) -> None:
        self._find = find

    def collect(self) -> Iterator[Metric]:
        """All metrics, from one reading of all maps."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        states = [state for state in self._find() if state.health not in (NOT_A_MAP, DENIED)]
        healthy = GaugeMetricFamily(
            "shmrhash_map_usable", "Whether the map can be opened.", labels=["map", "health"]
        )
        for state in states:
            healthy.add_metric([state.name, state.health], float(state.usable))
        yield healthy
        usable = [state for state in states if state.usable]
        for name, (fact, unit, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for state in usable:
                gauge.add_metric([state.name], state.info[fact] / unit)
            yield gauge
        for name, (fact, text) in OBJECT_GAUGES.items():
            gauge = GaugeMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for state in usable:
                if state.objects:
                    gauge.add_metric([state.name], state.objects[fact])
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for state in usable:
                counter.add_metric([state.name], state.info[name])
            yield counter
        yield from _cache_metrics([state for state in usable if state.cache])
        yield from _near_metrics([state for state in usable if state.near])
        processes = GaugeMetricFamily(
            "shmrhash_processes", "Processes attached to the map.", labels=["map", "state"]
        )
        for state in usable:
            processes.add_metric([state.name, "alive"], len(state.alive))
            processes.add_metric([state.name, "dead"], len(state.dead))
        yield processes
        yield from self._operations(usable)
        yield from self._room()

    def _operations(self, states: list[MapState]) -> Iterator[Metric]:
        """The operations of each process."""
        from prometheus_client.core import CounterMetricFamily

        for name in PROCESS_COUNTERS:
            family = CounterMetricFamily(
                f"shmrhash_process_{name}",
                f"Operations of a process on the map: {name}.",
                labels=["map", "pid", "command"],
            )
            for state in states:
                for user in state.processes:
                    if name in user.counters:
                        labels = [state.name, str(user.pid), user.command]
                        family.add_metric(labels, user.counters[name])
            if family.samples:
                yield family

    def _room(self) -> Iterator[Metric]:
        """The file system of all maps."""
        from prometheus_client.core import GaugeMetricFamily

        status = os.statvfs(_inspect.directory())
        for name, blocks in (("size", status.f_blocks), ("free", status.f_bavail)):
            yield GaugeMetricFamily(
                f"shmrhash_directory_{name}_bytes",
                f"Bytes of the file system that holds the segments: {name}.",
                value=blocks * status.f_frsize,
            )


def _cache_metrics(caches: list[MapState]) -> Iterator[Metric]:
    """What the processes of each cache counted. Ratios are computed in PromQL."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, (count, text) in CACHE_COUNTERS.items():
        counter = CounterMetricFamily(f"shmrhash_cache_{name}", text, labels=["map"])
        for state in caches:
            counter.add_metric([state.name], state.cache[count])
        yield counter
    evicted = CounterMetricFamily(
        "shmrhash_cache_evictions",
        "Evicted entries: not read again (new), read before (kept), or expired.",
        labels=["map", "kind"],
    )
    for state in caches:
        for kind in EVICTIONS:
            evicted.add_metric([state.name, kind], state.cache[f"evicted_{kind}"])
    yield evicted
    claimed = GaugeMetricFamily(
        "shmrhash_cache_claimed", "Keys that are being computed now.", labels=["map"]
    )
    for state in caches:
        claimed.add_metric([state.name], state.cache["claimed"])
    yield claimed


def _near_metrics(near: list[MapState]) -> Iterator[Metric]:
    """What near caches know of their servers."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    age = GaugeMetricFamily(
        "shmrhash_near_age_seconds",
        "How old the values of a server's node may be now.",
        labels=["map", "node"],
    )
    limit = GaugeMetricFamily(
        "shmrhash_near_max_stale_seconds", "How old they may become.", labels=["map"]
    )
    alive = GaugeMetricFamily(
        "shmrhash_near_tracker_alive", "Whether a process hears the server.", labels=["map"]
    )
    takeovers = CounterMetricFamily(
        "shmrhash_near_takeovers", "Processes that began to hear the server.", labels=["map"]
    )
    epochs = CounterMetricFamily(
        "shmrhash_near_epochs", "Times that all values of a node were discarded.", labels=["map"]
    )
    for state in near:
        for node, seconds in state.near["ages"].items():
            age.add_metric([state.name, str(node)], math.inf if seconds is None else seconds)
        limit.add_metric([state.name], state.near["max_stale"])
        alive.add_metric([state.name], float(state.near["tracker_alive"]))
        takeovers.add_metric([state.name], state.near["takeovers"])
        epochs.add_metric([state.name], state.near["epochs"])
    yield from (age, limit, alive, takeovers, epochs)


@click.command("metrics", cls=Command, short_help="All figures for Prometheus.")
@click.argument("maps", nargs=-1, metavar="[NAME]...")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(dir_okay=False),
    help="Write to this file, completely or not at all, for node_exporter's textfile collector.",
)
@pass_session
def metrics_command(session: Session, maps: tuple[str, ...], path: str | None) -> None:
    """Print the figures of maps, of all unless some are named, in Prometheus' text format, or write
    them to a file.

    \b
    Examples:
      shmrhash metrics
      shmrhash metrics my-site
      shmrhash metrics -o /var/lib/node_exporter/textfile/shmrhash.prom     (from cron)
    """
    need("prometheus_client")
    from prometheus_client import CollectorRegistry, generate_latest

    names = {name.removeprefix("/") for name in maps}
    registry = CollectorRegistry()
    registry.register(
        Collector(lambda: list(all_states(session, lambda name: not names or name in names)))
    )
    if path:
        text = generate_latest(registry)
        with new_file(path) as file:
            file.write(text)
    elif session.json:
        session.emit(
            [
                {"name": sample.name, "labels": sample.labels, "value": sample.value}
                for family in registry.collect()
                for sample in family.samples
            ]
        )
    else:
        sys.stdout.write(generate_latest(registry).decode())
