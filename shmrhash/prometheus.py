"""The metrics of prometheus_client, in one SharedDict for all processes of a site.

use("my-site") comes before the first metric is made; ShmCollector("my-site", registry) collects.

Counters, histograms and summaries have one number for all processes: an increment adds to it in one
step, so what a process counted stays when it is killed, and is counted once. A gauge has a number
for each process. The kernel says which processes are alive (C3), so a reused pid is another
process, and no hook has to report a death.

The dict has a number for each key, and a key is a JSON list, a Series with the process that the
number belongs to. A gauge of mode sum, min or max keeps what dead processes said in one number of
EVERYONE: fold() moves a dead process's number there in one step (L2), and counts the moves, so that
a collector notices if a number was moved while it walked over the dict.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from shmrhash import _adapters
from shmrhash._constants import RACES_MAX
from shmrhash._dict import SharedDict
from shmrhash._errors import InvalidArgument, KeyNotFound, LockTimeout

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, values
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample
except ImportError as _error:
    raise _adapters.needs("prometheus_client", "prometheus") from _error

_FOLDS = "folds"  # the key of the number of moves
_NEUTRAL = {"sum": 0.0, "min": float("inf"), "max": float("-inf")}  # by mode
_COMBINE: dict[str, Callable[[float, float], float]] = {
    "sum": lambda one, other: one + other,
    "min": min,
    "max": max,
}
_LATEST, _TIMES = "livemostrecent", "times"  # a gauge of that mode has a second number, its time
_OF_PYTHON = ("python_", "process_")  # families that prometheus_client makes by itself

log = logging.getLogger("shmrhash")


Labels = tuple[tuple[str, str], ...]  # sorted pairs


class Process(NamedTuple):
    """A process that uses the dict: its slot, since when (which tells reused slots apart), and its
    pid, or what process_identifier() returns, as text."""

    slot: int
    attached_ns: int
    label: str


EVERYONE = Process(-1, 0, "")  # of numbers that are not one process's


class Series(NamedTuple):
    """What the number of a key is. mode: of a gauge, else ""."""

    kind: str
    mode: str
    process: Process
    metric: str
    name: str
    labels: Labels
    text: str

    def key(self) -> str:
        """The key in the dict."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def of_key(cls, key: str) -> Series:
        kind, mode, process, metric, name, labels, text = json.loads(key)
        pairs = tuple((label, value) for label, value in labels)
        return cls(kind, mode, Process(*process), metric, name, pairs, text)


class Store:
    """The numbers of a site.

    Attributes: shm, the SharedDict.
    """

    def __init__(self, name: str, max_entries: int | None, mode: int) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidArgument("the metrics need a name, which their processes share: a str")
        self.shm = SharedDict(name, key=str, value=float, max_entries=max_entries, mode=mode)
        self.shm.setdefault(_FOLDS, 0.0)

    def _folds(self) -> float:
        """The number of moves, when all of them are made: a lookup would not wait for a fold() that
        has changed some of its numbers and not yet this one."""
        with self.shm.locked(_FOLDS, default=0.0) as folds:
            return folds.value

    def living(self) -> set[tuple[int, int]]:
        """The slots of processes that live now, with the time since when."""
        attached = self.shm.handle._processes()
        return {(one["index"], one["attached_ns"]) for one in attached if one["alive"]}

    def snapshot(self) -> list[tuple[str, float]]:
        """Every key with its number, none of them moved by a fold() during the walk.

        Raises LockTimeout: others folded during each of many walks.
        """
        for _ in range(RACES_MAX):  # a fold() ends when the dead processes are done
            folds = self._folds()
            found = list(self.shm.items())
            if folds == self._folds():
                return [item for item in found if item[0] != _FOLDS]
        raise LockTimeout(f"metrics {self.shm.name!r}: others moved numbers during each walk")

    def fold(self, dead: Iterable[Series]) -> None:
        """Remove the numbers of dead processes; what EVERYONE's number has to keep is moved there,
        once, even if other processes fold, too, and any of them is killed."""
        for series in dead:
            if series.mode not in _NEUTRAL:
                self.shm.pop(series.key(), None)
                continue
            neutral = _NEUTRAL[series.mode]
            kept = series._replace(process=EVERYONE).key()
            self.shm.setdefault(kept, neutral)
            try:
                # The number of moves is last: it is locked until the others have their new values.
                with self.shm.locked_many([series.key(), kept, _FOLDS]) as (theirs, ours, folds):
                    ours.value = _COMBINE[series.mode](ours.value, theirs.value)
                    theirs.value = neutral
                    folds.value += 1
                del self.shm[series.key()]
            except KeyNotFound:
                pass  # another process has moved it


_stores: dict[str, Store] = {}  # those that this process has open


def store_of(name: str, max_entries: int | None = None, mode: int = 0o600) -> Store:
    """The store of this name, opened or created; the same object in the whole process.

    Raises InvalidArgument (no name), and what SharedDict() raises.
    """
    found = _stores.get(name)
    if found is None or found.shm.closed:
        _stores.pop(name, None)
        made = Store(name, max_entries, mode)
        found = _stores.setdefault(name, made)
        if found is not made:
            made.shm.close()
    return found


class Member:
    """This process among those that have numbers in a store.

    Attributes: store.
    """

    def __init__(self, store: Store, identifier: Callable[[], Any]) -> None:
        self.store = store
        self._identifier = identifier
        self._known: tuple[Any, Process] | None = None
        _members.append(self)

    def process(self) -> Process:
        """This process: another one after a fork, or when process_identifier() says so."""
        label = self._identifier()
        known = self._known
        if known is None or known[0] != label:
            handle = self.store.shm.handle
            handle._recover()  # by this a child of fork gets a slot
            (here,) = (one for one in handle._processes() if one["here"])
            known = self._known = label, Process(here["index"], here["attached_ns"], str(label))
        return known[1]

    def forget(self) -> None:
        """In a child of fork: it is another process."""
        self._known = None


_members: list[Member] = []


def _forget_processes() -> None:
    for member in _members:
        member.forget()


os.register_at_fork(after_in_child=_forget_processes)


class ShmValue:
    """A number of a metric, as prometheus_client wants one. inc(), set() and get() are one atomic
    step each."""

    _multiprocess = True
    _member: Member

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Iterable[str],
        labelvalues: Iterable[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        labels = tuple(sorted(zip(labelnames, map(str, labelvalues), strict=True)))
        mode = multiprocess_mode if typ == "gauge" else ""
        self._shm = self._member.store.shm
        self._series = Series(typ, mode, EVERYONE, metric_name, name, labels, help_text)
        self._key = self._series.key()
        self._time_key = ""
        self._is_everyones = mode in ("", "mostrecent")
        if not self._is_everyones:
            self._own_key()
        elif not mode:
            self._shm.setdefault(self._key, 0.0)

    def _own_key(self) -> str:
        """The key of this process's number, which is made if the process is new."""
        process = self._member.process()
        if self._series.process is not process:
            self._series = self._series._replace(process=process)
            self._key = self._series.key()
            if self._series.mode == _LATEST:
                self._time_key = self._series._replace(kind=_TIMES).key()
            self._shm.setdefault(self._key, 0.0)
        return self._key

    def inc(self, amount: float) -> None:
        self._shm.add(self._key if self._is_everyones else self._own_key(), float(amount), 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._shm[self._key if self._is_everyones else self._own_key()] = float(value)
        if self._time_key:
            # After the number: a process that reads the time, and then the number, gets one that is
            # not older than the time says.
            self._shm.max(self._time_key, float(timestamp or 0.0), 0.0)

    def get(self) -> float:
        """What all processes counted, or, of a gauge, what this process set."""
        return self._shm.get(self._key if self._is_everyones else self._own_key(), 0.0)

    def set_exemplar(self, exemplar: Any) -> None:
        warnings.warn(
            f"the exemplar of {self._series.name} is not kept: metrics that processes share have "
            f"none",
            stacklevel=3,
        )

    def get_exemplar(self) -> None:
        return None


def value_class(
    name: str,
    *,
    max_entries: int | None = None,
    mode: int = 0o600,
    process_identifier: Callable[[], Any] = os.getpid,
) -> type[ShmValue]:
    """The class for prometheus_client.values.ValueClass. Arguments, errors: those of use()."""
    member = Member(store_of(name, max_entries, mode), process_identifier)
    return type("ShmValue", (ShmValue,), {"_member": member})


def use(
    name: str,
    *,
    max_entries: int | None = None,
    mode: int = 0o600,
    process_identifier: Callable[[], Any] = os.getpid,
) -> None:
    """Keep the numbers of all metrics that are made from now on in the SharedDict of this name.

    Call it before anything makes a metric: those that were made before stay with their process, and
    the log of shmrhash names them. max_entries: how many numbers fit; a histogram has one for each
    bucket, and a gauge one for each process. None is that of the dict, or 2**20; memory is taken
    when it is used. mode: permissions of the segment's file. process_identifier: makes the label
    pid of a gauge.

    The numbers outlive the processes; shmrhash.unlink(name), before the first of them starts,
    begins at 0. Making a metric, or labels of one, for which there is no room raises MapFull.

    Raises InvalidArgument (no name), and what SharedDict() raises.
    """
    made: Any = value_class(
        name, max_entries=max_entries, mode=mode, process_identifier=process_identifier
    )
    values.ValueClass = made
    families = sorted(family.name for family in REGISTRY.collect())
    early = [family for family in families if not family.startswith(_OF_PYTHON)]
    if early:
        log.warning(
            "metrics that were made before shmrhash.prometheus.use(%r) count for one process only: "
            "%s; call use() before the modules that make them are imported",
            name,
            ", ".join(early),
        )


def mark_process_dead(pid: Any, name: str) -> None:
    """Take a process for dead whose gauges have this label pid, though it may live.

    Need not be called: the kernel says which processes are dead. It is here for programs that call
    prometheus_client's function of this name, and for labels that a process_identifier made.

    Raises what use() raises.
    """
    store = store_of(name)
    found = [Series.of_key(key) for key, _ in store.snapshot()]
    store.fold(
        series
        for series in found
        if series.process != EVERYONE and series.process.label == str(pid) and series.mode != "all"
    )


class ShmCollector(Collector):
    """Collects what all processes have counted.

        registry = CollectorRegistry()
        ShmCollector("my-site", registry)

    A gauge of mode all has a sample for each pid, of living and of dead processes; of two processes
    with one pid, the later one counts. Gauges whose mode begins with live leave out the dead. A
    gauge of mode mostrecent has one number, which set() of any process replaces.
    """

    def __init__(self, name: str, registry: CollectorRegistry | None = None) -> None:
        """Raises what use() raises, and ValueError (the registry has these metrics already)."""
        self._store = store_of(name)
        self._known: dict[str, Series] = {}  # keys that were decoded before
        if registry is not None:
            registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics of all processes. Removes what dead processes left. Costs a walk over the
        numbers.

        Raises LockTimeout, MapClosed.
        """
        known, found = self._known, self._store.snapshot()
        self._known = {key: known.get(key) or Series.of_key(key) for key, _ in found}
        numbers = {self._known[key]: number for key, number in found}
        # After the walk: each process whose numbers it found is alive, or dead for ever.
        living = self._store.living()
        replaced = _replaced(series for series in numbers if series.mode == "all")
        gone = {
            series
            for series in numbers
            if (series.process != EVERYONE and series.process[:2] not in living)
            and (series.mode != "all" or series in replaced)
        }
        families = self._families(
            {
                series: number
                for series, number in numbers.items()
                if series not in gone or series.mode in _NEUTRAL
            }
        )
        self._store.fold(gone)
        return iter(families)

    def _families(self, numbers: dict[Series, float]) -> list[Metric]:
        by_metric: dict[str, dict[Series, float]] = defaultdict(dict)
        for series in sorted(numbers):  # by the kind first: of a gauge the times come last
            by_metric[series.metric][series] = numbers[series]
        families = []
        for name, group in sorted(by_metric.items()):
            first = next(iter(group))
            kind = "gauge" if first.kind == _TIMES else first.kind
            family = Metric(name, first.text, kind)
            if kind == "gauge":
                family.samples = [Sample(*each) for each in self._gauges(group)]
            else:
                family.samples = [Sample(*each) for each in _sums(group, kind == "histogram")]
            families.append(family)
        return families

    def _gauges(self, group: dict[Series, float]) -> Iterator[tuple[str, dict[str, str], float]]:
        """The samples of a gauge: name, labels, number."""
        found: dict[tuple[str, Labels], float] = {}
        latest: dict[tuple[str, Labels], float] = {}
        for series, number in group.items():
            place = series.name, series.labels
            combine = _COMBINE.get(series.mode.removeprefix("live"))
            if series.kind == _TIMES:
                if number > latest.get(place, 0.0):
                    latest[place] = number
                    mine = series._replace(kind="gauge")
                    # Read again, after the time.
                    found[place] = self._store.shm.get(mine.key(), group.get(mine, 0.0))
            elif combine is not None:
                found[place] = combine(found[place], number) if place in found else number
            elif series.mode in ("all", "liveall"):
                found[series.name, (*series.labels, ("pid", series.process.label))] = number
            elif series.mode == "mostrecent":
                found[place] = number
        return ((name, dict(labels), number) for (name, labels), number in found.items())


def _replaced(found: Iterable[Series]) -> set[Series]:
    """Those of which a later process with the same pid has one, too."""
    by_place: dict[Series, list[Series]] = defaultdict(list)
    for series in found:
        by_place[series._replace(process=Process(-1, 0, series.process.label))].append(series)
    replaced: set[Series] = set()
    for group in by_place.values():
        newest = max(group, key=lambda series: series.process.attached_ns)
        replaced.update(series for series in group if series is not newest)
    return replaced


def _sums(
    group: dict[Series, float], is_histogram: bool
) -> Iterator[tuple[str, dict[str, str], float]]:
    """The samples of another metric: name, labels, number. Buckets are added up, as Prometheus
    wants them, and make the count."""
    plain: dict[Labels, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    buckets: dict[Labels, dict[tuple[float, str], float]] = defaultdict(lambda: defaultdict(float))
    metric = ""
    for series, number in group.items():
        metric, bounds = series.metric, dict(series.labels)
        if is_histogram and "le" in bounds:
            labels = tuple(label for label in series.labels if label[0] != "le")
            buckets[labels][float(bounds["le"]), bounds["le"]] += number
        else:
            plain[series.labels][series.name] += number
    for labels in sorted(plain.keys() | buckets.keys()):
        for name, number in plain[labels].items():
            yield name, dict(labels), number
        count = 0.0
        for (_, bound), number in sorted(buckets[labels].items()):
            count += number
            yield f"{metric}_bucket", dict(labels) | {"le": bound}, count
        if buckets[labels]:
            yield f"{metric}_count", dict(labels), count
