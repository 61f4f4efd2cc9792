"""Metrics of prometheus_client in shared memory: processes, kills, forks, reused pids."""

import contextlib
import itertools
import logging
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    values,
)
from support.children import Child, Partner, in_child, kill, stays
from support.serving import fetch, server

import shmrhash
from shmrhash import prometheus

WORKERS = 4
ROUNDS = 300
REQUESTS = 120
DEATHS = 6


@pytest.fixture
def site(map_name, monkeypatch):
    """A registry that collects what is counted in a segment. The test ends with check() and
    unlink() on the segment."""
    monkeypatch.setattr(values, "ValueClass", prometheus.value_class(map_name))
    registry = CollectorRegistry(support_collectors_without_names=True)
    prometheus.ShmCollector(map_name, registry)
    yield registry
    store = prometheus.store_of(map_name)
    store.shm.check()
    store.shm.close()
    with contextlib.suppress(shmrhash.SegmentMissing):
        shmrhash.unlink(map_name)


def store_of(map_name):
    return prometheus.store_of(map_name).shm


def gauge(mode, name="g"):
    return Gauge(name, "help", registry=None, multiprocess_mode=mode)


def samples(site, name="g"):
    """Return the samples of a gauge: a number for each label pid, or for "" if the sample has
    none."""
    return {
        sample.labels.get("pid", ""): sample.value
        for family in site.collect()
        for sample in family.samples
        if sample.name == name
    }


def sets(mode, number):
    """Return a child that has set a gauge of this mode, and lives until it is killed."""
    return stays(lambda: gauge(mode).set(number))


# ---- counters, histograms, summaries ----


def test_counts_of_killed_processes_are_exact(site):
    """C1, W1. All that a killed child has counted is collected once. Only of the increment during
    which it was killed is it unknown whether it counts."""
    counter = Counter("c", "help", ["kind"], registry=None)

    def count(parent):
        mine = counter.labels("kind")
        while True:
            mine.inc()
            parent.say()

    children = [Partner(count) for _ in range(WORKERS)]
    for child in children:
        child.hear()
    kill(*children)
    acknowledged = sum(1 + len(child.rest()) for child in children)

    counted = site.get_sample_value("c_total", {"kind": "kind"})
    assert acknowledged <= counted <= acknowledged + WORKERS


def test_processes_and_threads_lose_no_increment(site):
    counter = Counter("c", "help", registry=None)
    histogram = Histogram("h", "help", ["path"], registry=None, buckets=(1, 2.5))
    summary = Summary("s", "help", registry=None)

    def count():
        with ThreadPoolExecutor(2) as threads:
            for number in range(ROUNDS):
                threads.submit(counter.inc)
                threads.submit(histogram.labels("/").observe, number % 3)
                threads.submit(summary.observe, 0.5)

    for child in [Child(count) for _ in range(WORKERS)]:
        child.result()

    every, third = WORKERS * ROUNDS, WORKERS * ROUNDS / 3
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in site.collect()
        for sample in family.samples
    }
    assert found == {
        ("c_total", None): every,
        ("s_count", None): every,
        ("s_sum", None): every / 2,
        ("h_sum", None): every,
        ("h_bucket", "1.0"): 2 * third,
        ("h_bucket", "2.5"): every,
        ("h_bucket", "+Inf"): every,
        ("h_count", None): every,
    }


def test_the_numbers_outlive_all_processes(site, map_name):
    in_child(lambda: Counter("c", "help", registry=None).inc(3))
    store_of(map_name).close()
    registry = CollectorRegistry(support_collectors_without_names=True)
    prometheus.ShmCollector(map_name, registry)

    assert registry.get_sample_value("c_total") == 3


# ---- gauges ----


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("all", {"a": 5.0, "b": 7.0}, {"a": 5.0, "b": 7.0}),
        ("liveall", {"a": 5.0, "b": 7.0}, {"b": 7.0}),
        ("min", {"": 5.0}, {"": 5.0}),
        ("livemin", {"": 5.0}, {"": 7.0}),
        ("max", {"": 7.0}, {"": 7.0}),
        ("livemax", {"": 7.0}, {"": 7.0}),
        ("sum", {"": 12.0}, {"": 12.0}),
        ("livesum", {"": 12.0}, {"": 7.0}),
        ("mostrecent", {"": 7.0}, {"": 7.0}),
        ("livemostrecent", {"": 7.0}, {"": 7.0}),
    ],
)
def test_each_mode_of_a_gauge_beside_a_kill(site, mode, before, after):
    """C3. A gauge of each mode is right although no hook reports a process's death; collecting once
    more changes nothing."""
    first = sets(mode, 5)
    second = sets(mode, 7)
    named = {"": "", "a": str(first.pid), "b": str(second.pid)}

    assert samples(site) == {named[label]: number for label, number in before.items()}
    kill(first)
    for _ in range(3):
        assert samples(site) == {named[label]: number for label, number in after.items()}
    kill(second)
    if mode.startswith("live"):
        assert samples(site) == {}


def test_the_most_recent_of_the_living(site):
    first = sets("livemostrecent", 5)
    second = sets("livemostrecent", 7)

    kill(second)

    assert samples(site) == {"": 5.0}
    kill(first)


def test_a_gauge_leaves_one_number_of_all_its_dead(site, map_name):
    """The segment of the metrics does not grow with the number of processes that have ended: a
    gauge keeps one number for all of them."""
    for number in range(10):
        in_child(gauge("sum").inc, number)
        in_child(gauge("max", "m").set, number)
        in_child(gauge("livesum", "l").set, number)

    assert samples(site) == {"": 45.0}
    assert samples(site, "m") == {"": 9.0}
    # One number of each gauge's dead, three of this process, and the count of moves.
    assert len(store_of(map_name)) == 2 + 3 + 1


def test_a_reused_pid_is_another_process(site, map_name):
    """C3. A new process with the label of an earlier one, as if the kernel had reused its pid, has
    numbers of its own."""

    def use(parent, number):
        values.ValueClass = prometheus.value_class(map_name, process_identifier=lambda: 7)
        every, living = gauge("all"), gauge("liveall", "l")
        parent.say((every._value.get(), living._value.get()))
        every.set(number)
        living.set(number)
        parent.say()
        parent.wait()

    with Partner(use, 5) as first:
        assert first.hear() == (0, 0)
        first.hear()
        kill(first)
    assert samples(site) == {"7": 5.0}
    assert samples(site, "l") == {}
    with Partner(use, 6) as second:
        assert second.hear() == (0, 0)
        second.hear()
        assert samples(site) == {"7": 6.0}
        assert samples(site, "l") == {"7": 6.0}


def test_a_forked_child_has_numbers_of_its_own(site):
    """A forked child has its own numbers although the metrics were made before the fork, as with
    gunicorn's --preload."""
    every, total = gauge("all"), gauge("livesum", "t")
    every.set(1)
    total.set(1)

    def use(parent):
        before = every._value.get()
        every.set(2)
        total.inc(4)
        parent.say((before, every._value.get()))
        parent.wait()

    with Partner(use) as child:
        assert child.hear() == (0, 2)
        assert samples(site) == {str(os.getpid()): 1.0, str(child.pid): 2.0}
        assert samples(site, "t") == {"": 5.0}
    assert samples(site, "t") == {"": 1.0}


def test_a_forked_child_is_told_from_its_parent_by_more_than_the_label(site, map_name, monkeypatch):
    """C3. The numbers of a forked child are not its parent's, even if both have the same label."""
    same_label = prometheus.value_class(map_name, process_identifier=lambda: 7)
    monkeypatch.setattr(values, "ValueClass", same_label)
    total = gauge("livesum")
    total.set(1)

    child = stays(total.inc, 4)

    assert samples(site) == {"": 5.0}
    kill(child)
    assert samples(site) == {"": 1.0}


class Interrupted:
    """A dict of metrics in which another process collects in the middle of each walk."""

    def __init__(self, shm, collect):
        self._shm = shm
        self._collect = collect

    def __getattr__(self, name):
        return getattr(self._shm, name)

    def items(self):
        found = iter(list(self._shm.items()))
        yield from itertools.islice(found, len(self._shm) // 2)
        in_child(self._collect)
        for key, _ in found:  # the second half as it is after the collection
            if key in self._shm:
                yield key, self._shm[key]


def test_a_number_that_is_moved_during_a_walk_is_collected_once(site, map_name, monkeypatch):
    """L2. When this process has seen half of the numbers, another process moves those of dead
    processes; each is collected once."""
    names = [f"g{number}" for number in range(20)]

    def set_all():
        for name in names:
            gauge("sum", name).set(3)

    store = prometheus.store_of(map_name)
    plain = store.shm

    def collect():
        store.shm = plain
        list(site.collect())

    for _ in range(2):
        in_child(set_all)
        with monkeypatch.context() as patch:
            patch.setattr(store, "shm", Interrupted(plain, collect))
            found = [samples(site, name) for name in names]

    assert found == [{"": 6.0}] * len(names)


def test_a_collector_that_is_killed_while_it_moves_a_number_loses_none(site, map_name, monkeypatch):
    """C1, L2. The collector is killed after it has read both numbers and before it has added them;
    later collections find both."""
    in_child(gauge("sum").set, 3)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setitem(prometheus._COMBINE, "sum", die)
        store = prometheus.store_of(map_name)
        dead = [prometheus.Series.of_key(key) for key in store.shm if "gauge" in key]
        collector = Child(store.fold, dead)
        assert collector.join() == -signal.SIGKILL

    assert samples(site) == {"": 3.0}
    assert samples(site) == {"": 3.0}


class Deadly:
    """A dict of metrics that kills the process that deletes from it."""

    def __init__(self, shm):
        self._shm = shm

    def __getattr__(self, name):
        return getattr(self._shm, name)

    def __delitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_collector_that_is_killed_after_it_moved_a_number_moved_it_once(
    site, map_name, monkeypatch
):
    """C1. The collector is killed before it deletes the number that it has moved; later collections
    do not count that number again."""
    for mode in ("sum", "max"):
        in_child(gauge(mode, mode).set, 3)
    store = prometheus.store_of(map_name)
    dead = [prometheus.Series.of_key(key) for key in store.shm if "gauge" in key]

    for series in dead:
        with monkeypatch.context() as patch:
            patch.setattr(store, "shm", Deadly(store.shm))
            assert Child(store.fold, [series]).join() == -signal.SIGKILL

    for _ in range(2):
        assert samples(site, "sum") == samples(site, "max") == {"": 3.0}


# ---- what goes wrong ----


def test_metrics_made_too_early_are_named(map_name, caplog, monkeypatch):
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)
    early = Counter("too_early", "help")
    try:
        with caplog.at_level(logging.WARNING, "shmrhash"):
            prometheus.use(map_name)
    finally:
        REGISTRY.unregister(early)
        store_of(map_name).close()
        shmrhash.unlink(map_name)

    assert "too_early" in caplog.text
    assert "python_info" not in caplog.text


def test_an_exemplar_is_refused_in_words(site):
    counter = Counter("c", "help", registry=None)

    with pytest.warns(UserWarning, match="exemplar of c_total is not kept"):
        counter.inc(1, exemplar={"trace": "7"})

    assert site.get_sample_value("c_total") == 1


def test_no_room_is_said_where_labels_are_made(map_name, monkeypatch):
    monkeypatch.setattr(values, "ValueClass", prometheus.value_class(map_name, max_entries=11))
    counter = Counter("c", "help", ["user"], registry=None)
    try:
        for number in range(10):
            counter.labels(number).inc()
        with pytest.raises(shmrhash.MapFull):
            counter.labels(10)
        counter.labels(0).inc()
        assert counter.labels(0)._value.get() == 2
    finally:
        store_of(map_name).close()
        shmrhash.unlink(map_name)


def test_a_name_is_needed():
    with pytest.raises(shmrhash.InvalidArgument, match="name"):
        prometheus.use("")


# ---- gunicorn ----


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["each", "preload"])
def test_counts_of_a_gunicorn_are_exact_beside_kills(map_name, preload):
    """Workers of gunicorn, which serve one request at a time, are killed during requests, and the
    counts stay exact."""
    options = ["--bind", "127.0.0.1:PORT", "--workers", str(WORKERS), "--log-level", "critical"]
    application = "support.prometheus_site:application"
    paths = ["/"] * REQUESTS + ["/die"] * DEATHS
    random.Random(1).shuffle(paths)
    try:
        with server("gunicorn", *options, *preload, application, METRICS=map_name) as port:
            with ThreadPoolExecutor(WORKERS) as clients:
                answers = list(clients.map(lambda path: fetch(port, path), paths))
            found = dict(
                line.rsplit(" ", 1)
                for line in fetch(port, "/metrics")[2].splitlines()
                if not line.startswith("#")
            )
        with shmrhash.SharedDict.open(map_name) as numbers:
            numbers.check()
    finally:
        shmrhash.unlink(map_name)

    assert answers.count(None) == DEATHS
    assert float(found['requests_total{path="/"}']) == REQUESTS
    assert float(found['requests_total{path="/die"}']) == DEATHS
    assert float(found["seconds_count"]) == float(found["served"]) == REQUESTS + DEATHS
    assert float(found['seconds_bucket{le="2.0"}']) == REQUESTS + DEATHS
    assert 1 <= float(found["alive"]) <= WORKERS
