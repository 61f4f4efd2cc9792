"""What ls, info, stat, top and metrics say of a near cache, which they read from its segments
alone."""

import json
import os
import time

import pytest
from support.commandline import run
from support.near import PlainSource

from shmrhash import Cache, RHashMap
from shmrhash._near.cache import NearCache
from shmrhash._near.tracker import Tracker

STALE = 0.5


class Scene:
    """A near cache of this process; the test itself takes the steps of the tracker."""

    def __init__(self):
        self.source = PlainSource()
        sizes = {"max_entries": 100, "max_bytes": 1 << 20}
        self.near = NearCache(self.source, name="near", track=False, max_stale=STALE, **sizes)

    def take_office(self):
        self.tracker = Tracker(self.near._state, self.source, self.near, STALE)
        self.tracker._turn = self.near._state.take_office()

    def watch(self):
        self.take_office()
        node = self.source.node_of(b"")
        self.tracker.began(node)
        self.tracker.proved(node, time.monotonic_ns())

    def close(self):
        for handle in (self.near._state.entries, self.near._state.words):
            handle.check()
        self.near.close()


@pytest.fixture
def scene(own_directory):
    made = Scene()
    yield made
    made.close()


def near_of(name="near"):
    (found,) = [found for found in run("-j", "ls").json if found["name"] == name]
    return found["near"]


def test_ls_info_and_stat_show_the_tracker_and_the_age_of_values(scene):
    scene.watch()
    assert [scene.near.get("k") for _ in range(4)] == [None] * 4
    age = scene.near.age()

    found = near_of()

    assert age < found["age"] < STALE + 60
    assert found["ages"].keys() == {"0"}
    assert (found["tracker_pid"], found["tracker_alive"]) == (os.getpid(), True)
    assert (found["takeovers"], found["epochs"], found["max_stale"]) == (1, 1, STALE)
    assert found["tracking"] == scene.near.info()["tracking"] == "pushes"
    for command in ("info", "stat"):
        text = run(command, "near").out
        assert f"s old at most, 0.5 s allowed; tracked by {os.getpid()}, 1 takeovers" in text
    assert run("-j", "stat", "near").json["near"]["epochs"] == 1
    assert run("-j", "info", "near").json["cache"]["hits"] == 3


def test_a_dead_tracker_and_a_line_without_lease_are_said(scene, users):
    def track():
        scene.watch()
        scene.near.get("k")  # attaches this process, as a real tracker's is
        return scene

    scene.take_office()
    assert (near_of()["age"], near_of()["takeovers"]) == (None, 0)
    assert "? old at most" in run("info", "near").out
    pid = users.start(track)
    assert (near_of()["tracker_pid"], near_of()["tracker_alive"]) == (pid, True)
    users.kill(pid)

    found = near_of()

    assert (found["tracker_pid"], found["tracker_alive"]) == (pid, False)
    assert found["takeovers"] == 1
    assert "tracked by none" in run("info", "near").out


def test_a_node_of_the_past_is_not_shown_beside_one_of_now(scene):
    """A server that is started again has a new identity; once the line of the old identity is long
    out of use, it is not shown."""
    scene.watch()
    old = scene.near._state.number(b"another")
    scene.tracker.began(old)
    scene.tracker.proved(old, time.monotonic_ns())
    assert near_of()["ages"].keys() == {"0", "1"}
    key = old.to_bytes(8, "little")
    with scene.near._state.words.locked(key) as value:
        minutes_ago = time.monotonic_ns() - 120 * 10**9
        value[16:24] = max(1, minutes_ago).to_bytes(8, "little")
        value[56:64] = bytes(8)
    assert near_of()["ages"].keys() == {"0"}
    assert near_of()["age"] is not None


def test_a_new_server_replaces_the_old_one_at_once(own_directory, monkeypatch):
    """If the source asks only one server at a time, a new server's line replaces the old one's at
    once, so that the old one's age causes no alarm."""
    monkeypatch.setattr(PlainSource, "one_server", True, raising=False)
    scene = Scene()
    scene.watch()
    assert near_of()["ages"].keys() == {"0"}
    new = scene.near._state.number(b"another")
    scene.tracker.began(new)
    scene.tracker.proved(new, time.monotonic_ns() + 1)

    found = near_of()
    scene.close()

    assert found["ages"].keys() == {str(new)}
    assert found["tracking"] == "pushes"


def test_top_has_columns_for_near_caches_only_where_one_is(scene, hits):
    scene.watch()

    frame = run("top", "-n", 1).out
    (heads, *rows) = frame.split("\n\n")[1].splitlines()

    assert heads.split()[-3:] == ["AGE", "TRACKER", "HEALTH"]
    (row,) = [row for row in rows if row.startswith("near ")]
    assert row.split()[-2:] == [str(os.getpid()), "ok"]
    (row,) = [row for row in rows if row.startswith("hits ")]
    assert row.split()[-3:] == ["-", "-", "ok"]
    (frame,) = map(json.loads, run("-j", "top", "-n", 1, "near").lines)
    assert frame["maps"][0]["near"]["tracker_pid"] == os.getpid()
    assert "AGE" not in run("top", "-n", 1, "hits").out


def test_metrics_of_a_near_cache_follow_the_rules_of_prometheus(scene):
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    scene.watch()
    families = list(parser.text_string_to_metric_families(run("metrics").out))
    samples = {
        sample.name: (sample.value, sample.labels)
        for family in families
        for sample in family.samples
        if sample.name.startswith("shmrhash_near_")
    }

    age, labels = samples.pop("shmrhash_near_age_seconds")

    assert labels == {"map": "near", "node": "0"}
    assert 0 < age < STALE + 60
    assert {name: value for name, (value, _) in samples.items()} == {
        "shmrhash_near_max_stale_seconds": STALE,
        "shmrhash_near_tracker_alive": 1,
        "shmrhash_near_takeovers_total": 1,
        "shmrhash_near_epochs_total": 1,
    }


def test_a_near_cache_without_tracking_says_that_values_live_for_their_ttl(own_directory):
    with NearCache(PlainSource(), name="near", tracking="ttl", max_entries=100, max_bytes=1 << 20):
        assert near_of()["tracking"] == "ttl"
        assert "values live for their ttl" in run("info", "near").out
        (row,) = [line for line in run("top", "-n", 1).lines if line.startswith("near ")]
        assert row.split()[-2:] == ["ttl", "ok"]


def test_other_caches_and_strange_lines_have_no_figures_of_near_caches(own_directory):
    cache = Cache("near", max_entries=10)
    assert near_of() is None
    device, inode = cache.handle._identity()
    with RHashMap.create(
        f"near.{device:x}-{inode:x}", key_size=8, value_size=8, max_entries=9
    ) as other:
        assert near_of() is None
        assert run("info", "near").status == 0
        other.unlink()
    assert "shmrhash_near_age_seconds{" not in run("metrics").out
    cache.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_sees_the_figures_of_another_users_near_cache(scene, own_directory):
    scene.watch()
    os.chmod(own_directory, 0o755)
    for name in os.listdir(own_directory):
        os.chown(f"{own_directory}/{name}", 65534, 65534)
    assert near_of()["tracker_pid"] == os.getpid()
