"""metrics: the figures of all maps in Prometheus' text format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from shmrhash import _segment
from shmrhash.cli.files.newfile import new_file
from shmrhash.cli.maps import DENIED, PROCESS_COUNTERS, STRANGER, Sight, look_around
from shmrhash.cli.session import Session, Verb, need, pass_session

if TYPE_CHECKING:
    from prometheus_client import Metric

GAUGES = {  # name: (of info(), how many of its units make one of Prometheus', what it is)
    "entries": ("entries", 1, "Entries in the map."),
    "expired_entries": ("expired", 1, "Of these, past their deadline: they make room (estimate)."),
    "max_entries": ("max_entries", 1, "The map's limit of entries."),
    "committed_bytes": ("bytes_committed", 1, "Memory the map has."),
    "used_bytes": ("bytes_used", 1, "Memory of entries and buckets."),
    "buckets": ("buckets", 1, "Buckets of the hash table."),
    "contexts": ("contexts", 1, "Operation contexts in use, one for each thread at work."),
    "created_timestamp_seconds": ("created_ns", 1e9, "When the map was made."),
    "recovery_seconds_max": ("recovery_ns_max", 1e9, "The longest recovery."),
}
OBJECT_GAUGES = {  # of maps with objects: name: (of info()["objects"], what it is)
    "objects": ("count", "Objects: values, and long keys, beside the entries."),
    "objects_used_bytes": ("bytes_in_use", "Memory of objects in use."),
    "objects_committed_bytes": ("bytes_committed", "Memory that objects have taken."),
    "objects_max_bytes": ("max_bytes", "The limit of memory for objects."),
    "objects_pinned": ("pinned", "Objects that processes look at in place."),
}
COUNTERS = {
    "grows": "Splits of a bucket.",
    "shrinks": "Merges of two buckets.",
    "growth_stopped": "Splits given up for want of memory.",
    "blocks_released": "Blocks of memory given back.",
    "releases_postponed": "Blocks that could not be given back at once.",
    "recoveries": "Dead processes recovered.",
    "owners_found_dead": "Owners of a lock found dead.",
    "operations_finished": "Operations of dead processes finished.",
    "operations_undone": "Operations of dead processes undone.",
}


class Collector:
    """What prometheus_client asks for its metrics."""

    def __init__(self, find: Callable[[], list[Sight]]) -> None:
        self._find = find

    def collect(self) -> Iterator[Metric]:
        """All metrics, from one look at all maps."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sights = [sight for sight in self._find() if sight.health not in (STRANGER, DENIED)]
        healthy = GaugeMetricFamily(
            "shmrhash_map_usable", "Whether the map can be opened.", labels=["map", "health"]
        )
        for sight in sights:
            healthy.add_metric([sight.name, sight.health], float(sight.usable))
        yield healthy
        usable = [sight for sight in sights if sight.usable]
        for name, (fact, unit, text) in GAUGES.items():
            gauge = GaugeMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for sight in usable:
                gauge.add_metric([sight.name], sight.info[fact] / unit)
            yield gauge
        for name, (fact, text) in OBJECT_GAUGES.items():
            gauge = GaugeMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for sight in usable:
                if sight.objects:
                    gauge.add_metric([sight.name], sight.objects[fact])
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"shmrhash_{name}", text, labels=["map"])
            for sight in usable:
                counter.add_metric([sight.name], sight.info[name])
            yield counter
        processes = GaugeMetricFamily(
            "shmrhash_processes", "Processes attached to the map.", labels=["map", "state"]
        )
        for sight in usable:
            processes.add_metric([sight.name, "alive"], len(sight.alive))
            processes.add_metric([sight.name, "dead"], len(sight.dead))
        yield processes
        yield from self._operations(usable)
        yield from self._room()

    def _operations(self, sights: list[Sight]) -> Iterator[Metric]:
        """What each process did, as far as it counts."""
        from prometheus_client.core import CounterMetricFamily

        for name in PROCESS_COUNTERS:
            family = CounterMetricFamily(
                f"shmrhash_process_{name}",
                f"What a process did with the map: {name}.",
                labels=["map", "pid", "command"],
            )
            for sight in sights:
                for user in sight.processes:
                    if name in user.counters:
                        labels = [sight.name, str(user.pid), user.command]
                        family.add_metric(labels, user.counters[name])
            if family.samples:
                yield family

    def _room(self) -> Iterator[Metric]:
        """The file system that all maps share."""
        from prometheus_client.core import GaugeMetricFamily

        status = os.statvfs(_segment.directory())
        for name, blocks in (("size", status.f_blocks), ("free", status.f_bavail)):
            yield GaugeMetricFamily(
                f"shmrhash_directory_{name}_bytes",
                f"Bytes of the file system of segments: {name}.",
                value=blocks * status.f_frsize,
            )


@click.command("metrics", cls=Verb, short_help="All figures for Prometheus.")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(dir_okay=False),
    help="Write to this file, at once or not at all, for node_exporter's textfile collector.",
)
@pass_session
def metrics_verb(session: Session, path: str | None) -> None:
    """The figures of all maps as Prometheus' text format, to the standard output or a file.

    \b
    Examples:
      shmrhash metrics
      shmrhash metrics -o /var/lib/node_exporter/textfile/shmrhash.prom     (from cron)
    """
    need("prometheus_client")
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(lambda: list(look_around(session))))
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
