"""What ls, info, stat, top and metrics say of a cache: hits, evictions, computations, claims."""

import json
import os

import pytest
from support.commandline import run

from shmrhash import Cache, SharedDict


@pytest.fixture
def pages(own_directory):
    """A cache with room for 3 entries, after some hits, misses, computations and evictions."""
    cache = Cache("pages", key=int, value=int, max_entries=3)
    for key in range(5):
        cache.set(key, key)
    kept = next(key for key in range(5) if key in cache)
    assert [cache.get(key) for key in (kept, kept, kept, 99)] == [kept, kept, kept, None]
    for key in range(100, 105):
        cache.get_or_compute(key, lambda: 17)
    yield cache
    cache.check()
    cache.close()


@pytest.fixture
def stats(pages):
    """The counts that the commands have to show; checks at the end that no command changed them."""
    before = pages.stats()
    yield before
    assert pages.stats() == before


def test_ls_and_info_say_that_it_is_a_cache(pages, stats):
    """ls shows a full cache in good health, because a cache evicts; without a cache, ls has no
    column for caches."""
    ratio = f"{100 * stats.hit_ratio:.1f}%"
    (found,) = run("-j", "ls").json
    heads, row = run("ls").lines

    assert stats.entries == 3
    assert found["health"] == "ok"
    assert found["types"].startswith("a cache of int to int")
    assert found["cache"] == stats._asdict() | {"claimed": 0}
    assert "CACHE" in heads
    assert f"{ratio} hits" in row
    text = run("info", "pages").out
    assert f"{ratio} hits of {stats.hits + stats.misses}" in text
    assert f"computed {stats.computed}, waited 0" in text
    assert run("-j", "info", "pages").json["cache"]["evicted_new"] == stats.evicted_new


def test_maps_and_dicts_have_no_figures_of_caches(hits):
    SharedDict("jobs", key=str, value=int, max_entries=10).close()

    assert [found["cache"] for found in run("-j", "ls").json] == [None, None]
    assert "CACHE" not in run("ls").out
    assert "hits of" not in run("info", "jobs").out
    assert "cache" not in run("stat", "hits").out
    assert "shmrhash_cache_hits_total{" not in run("metrics").out


def test_stat_has_the_counts_of_a_cache(pages, stats):
    assert run("-j", "stat", "pages").json["cache"]["computed"] == stats.computed == 5
    assert f"evicted {stats.evicted_new} new, {stats.evicted_kept} kept" in run("stat", "pages").out


def test_a_cache_without_lookups_has_no_hit_ratio(own_directory):
    Cache("new", max_entries=3).close()

    assert "- hits of 0" in run("info", "new").out
    assert "- hits" in run("ls").out


def test_metrics_of_a_cache_follow_the_rules_of_prometheus(pages, stats):
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    families = list(parser.text_string_to_metric_families(run("metrics").out))
    types = {family.name: family.type for family in families}
    samples = {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("shmrhash_cache_")
    }

    wanted = {("shmrhash_cache_claimed", None): 0}
    for name in ("hits", "misses", "sets", "computed", "waited", "taken_over", "stolen"):
        wanted[f"shmrhash_cache_{name}_total", None] = getattr(stats, name)
    for kind in ("new", "kept", "expired", "block"):
        wanted["shmrhash_cache_evictions_total", kind] = getattr(stats, f"evicted_{kind}")
    seconds = "shmrhash_cache_computing_seconds_total", None
    assert wanted.items() <= samples.items()
    assert samples[seconds] == pytest.approx(stats.seconds_computing)
    assert len(samples) == 12 + 4 + 1
    assert types["shmrhash_cache_hits"] == "counter"
    assert types["shmrhash_cache_claimed"] == "gauge"


def claimed():
    """Return the number of claimed keys that `ls` shows."""
    (found,) = run("-j", "ls").json
    return found["cache"]["claimed"]


def test_keys_that_are_being_computed_are_counted(pages, users):
    """ls counts nested claims, and does not count a claim that ended, or whose dead owner was
    recovered.

    A section of a present value, such as update_with() has, is no claim.
    """

    def seen_inside():
        return claimed(), pages.info()["cache"]["claimed"]

    inner = []

    def outer():
        inner.append(pages.get_or_compute(201, lambda: sum(seen_inside())))
        return claimed()

    assert claimed() == 0
    assert pages.get_or_compute(200, outer) == 1
    assert inner == [4]
    assert pages.update_with(200, lambda _old: claimed()) == 0

    def hold():
        own = Cache("pages", key=int, value=int)
        claim = own.claim(300)
        claim.__enter__()
        return own, claim

    pid = users.start(hold)
    assert claimed() == 1
    users.kill(pid)
    run("repair", "pages")
    assert claimed() == 0


def test_top_shows_what_a_cache_did_between_two_frames(pages, users):
    """The column HITS shows the interval between two frames; in this one every lookup misses,
    computes and evicts."""

    def compute():
        if not compute.caches:
            compute.caches.append(Cache("pages", key=int, value=int))
        compute.number += 1
        compute.caches[0].get_or_compute(compute.number, lambda: 1)

    compute.caches = []
    compute.number = 1000
    users.start_working(compute)

    first, second = map(json.loads, run("-j", "top", "-n", 2, "-d", 0.3).lines)

    assert first["maps"][0]["hit_ratio"] is None
    (found,) = second["maps"]
    assert found["hit_ratio"] == 0
    assert found["computed_per_s"] > 0
    assert found["evicted_per_s"] > 0
    assert found["cache"]["computed"] > first["maps"][0]["cache"]["computed"]
    frame = run("top", "-n", 2, "-d", 0.3).out.split("\n\n\n")[-1]
    assert "COMPUTED/s" in frame
    assert " 0.0% " in frame


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_sees_the_counts_of_another_users_cache(pages, stats, own_directory):
    os.chmod(own_directory, 0o755)
    os.chown(f"{own_directory}/pages", 65534, 65534)

    (found,) = run("-j", "ls").json

    assert found["cache"] == stats._asdict() | {"claimed": 0}
