"""The commands trace, which traces the caches of a program, and simulate, which simulates other
sizes of a traced cache."""

import json
import os
import random
import sys

import pytest
from support.cache_policies import streams, zipf
from support.commandline import run

from shmrhash import Cache, CacheTrace
from shmrhash.cli.simulation import CLEAR, DELETE, HIT, MISS, STORE, SimulatedCache, hits

KEYS, LOOKUPS, SIZE = 6000, 30_000, 600
POINTS_MAX = 1.0  # largest error of a simulated hit ratio, in percent of the lookups
LOOP = "the same scan again and again"  # of as many keys as there are ghosts, so chance decides


def ask_all(keys, size):
    """Look the keys up in a cache of this size, and store those that are absent; return the hits in
    percent."""
    with Cache(key=int, value=int, max_entries=size) as cache:
        for key in keys:
            if cache.get(key) is None:
                cache.set(key, key)
        return 100 * cache.stats().hit_ratio


def trace_of(path, keys, size=SIZE, sample=1.0):
    with (
        Cache("traced", key=int, value=int, max_entries=size) as cache,
        CacheTrace(cache, path, sample=sample),
    ):
        for key in keys:
            if cache.get(key) is None:
                cache.set(key, key)
        cache.unlink()
        return 100 * cache.stats().hit_ratio


def simulated(path, *options):
    """Run `simulate`; return the hits in percent by size."""
    found = run("-j", "simulate", path, *options).json
    return {each["max_entries"]: 100 * each["hit_ratio"] for each in found["sizes"]}


# ---- simulate ----


def test_simulated_sizes_find_what_caches_of_these_sizes_find(tmp_path, seed):
    """The hit ratio that `simulate` finds for a size is that of a real cache of this size, also for
    sizes that were not traced."""
    keys = zipf(random.Random(seed), KEYS, 0.9, LOOKUPS)
    path = tmp_path / "x"
    measured = {SIZE: trace_of(path, keys)}
    measured |= {size: ask_all(keys, size) for size in (100, 3000)}

    found = simulated(path, "--sizes", "100,600,3000")

    assert found.keys() == measured.keys()
    for size, ratio in measured.items():
        assert abs(found[size] - ratio) <= POINTS_MAX, (size, found, measured)


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(streams(0, 10, 100)))
def test_simulated_streams_find_what_caches_find(tmp_path, seed, name):
    """The simulated hit ratios are those of real caches for scans, loops, keys that come once, and
    changing frequencies."""
    keys = streams(seed, KEYS, 2 * LOOKUPS)[name]
    path = tmp_path / "x"
    measured = {SIZE: trace_of(path, keys), 2000: ask_all(keys, 2000)}

    found = simulated(path, "--sizes", "600,2000")

    most = 2 * POINTS_MAX if name == LOOP else POINTS_MAX
    for size, ratio in measured.items():
        assert abs(found[size] - ratio) <= most, (size, found, measured)


def test_a_part_of_the_keys_is_like_the_whole(tmp_path, seed):
    """The hit ratio simulated from a part of the keys is near that of all keys: from a trace of a
    sample, and from a part that `simulate` takes of a long trace. Which keys belong to the part
    depends on their digests, so it is the same in each run."""
    keys = zipf(random.Random(1), 4 * KEYS, 0.8, 2 * LOOKUPS)
    measured = trace_of(tmp_path / "whole", keys, 2000)
    trace_of(tmp_path / "part", keys, 2000, sample=0.3)

    whole = simulated(tmp_path / "whole", "--sizes", "2000")[2000]
    part = simulated(tmp_path / "part", "--sizes", "2000")[2000]
    fewer = simulated(tmp_path / "whole", "--sizes", "2000", "--events", "30000")[2000]

    assert abs(whole - measured) <= POINTS_MAX
    assert abs(part - measured) <= 2 * POINTS_MAX
    assert abs(fewer - measured) <= 2 * POINTS_MAX


def test_the_simulated_cache_obeys_deletions_and_its_size(seed):
    """The simulated cache has no key that was not stored, or was deleted after it was stored, and
    never more keys than its size. A key that was just stored is there."""
    rng = random.Random(seed)
    cache, stored = SimulatedCache(50), set()
    for _ in range(20_000):
        key, what = rng.randrange(120), rng.random()
        if what < 0.5:
            assert not cache.find(key) or key in stored
        elif what < 0.8:
            cache.store(key)
            stored.add(key)
            assert cache.find(key)
        elif what < 0.999:
            cache.delete(key)
            stored.discard(key)
            assert not cache.find(key)
        else:
            cache.clear()
            stored.clear()
        assert len(cache._entries) <= 50


def test_a_simulated_miss_is_filled_as_the_program_would_have():
    """If the traced cache found a value and the simulated one finds none, the simulation stores
    one, as the program would have done; it stores none where the program, which missed too, did
    not."""
    few = [(STORE, 1), (MISS, 1), (DELETE, 1), (MISS, 1), (STORE, 2), (CLEAR, 0), (MISS, 2)]

    assert hits(few, 1) == 1
    assert hits([(HIT, 1), (HIT, 2), (HIT, 1)], 1) == 0
    assert hits([(HIT, 1), (HIT, 2), (HIT, 1)], 2) == 1
    assert hits([(MISS, 1)] * 3, 2) == 0


def test_the_table_has_the_traced_cache_and_what_was_measured(tmp_path):
    path = tmp_path / "x"
    trace_of(path, [*range(100), *range(100)], size=200)

    lines = run("simulate", path).lines

    assert lines[0].startswith("traced: 200 lookups in ")
    assert "about 100 keys; 50.00% found a value, with room for 200 entries" in lines[0]
    (here,) = (line for line in lines if line.endswith("<- the traced cache"))
    assert here.split()[:2] == ["200", "50.00%"]
    assert any(line.split()[1].startswith("~") for line in lines[2:])


@pytest.mark.thorough
def test_the_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    trace_of(tmp_path / "x", [1, 2, 1, 2])

    run("simulate", tmp_path / "x", "--plot", tmp_path / "x.svg")

    assert "<svg" in (tmp_path / "x.svg").read_text()
    run("simulate", tmp_path / "x", "--plot", tmp_path / "x.nonsense", status=2)


def test_wrong_files_and_sizes_are_refused(tmp_path):
    trace_of(tmp_path / "x", [1])
    trace_of(tmp_path / "empty", [])
    (tmp_path / "notes").write_text("notes\n")

    assert "not a trace" in run("simulate", tmp_path / "notes", status=5).err
    assert "no lookup" in run("simulate", tmp_path / "empty", status=1).err
    assert "are not numbers" in run("simulate", tmp_path / "x", "--sizes", "1,b", status=2).err
    assert "from 1 on" in run("simulate", tmp_path / "x", "--sizes", "0", status=2).err


def test_a_trace_that_was_cut_off_is_read_to_its_last_whole_record(tmp_path):
    path = tmp_path / "x"
    trace_of(path, list(range(50)))
    os.truncate(path, path.stat().st_size - 5)

    assert run("-j", "simulate", path).json["lookups"] == 50


# ---- trace ----

PROGRAM = """
import sys
from shmrhash import Cache
with Cache("pages", key=int, value=int, max_entries=20) as cache:
    for number in range(100):
        if cache.get(number % 10) is None:
            cache.set(number % 10, number)
sys.exit(7)
"""


def test_a_program_is_traced_and_its_status_kept(tmp_path):
    path = tmp_path / "pages.trace"

    run("trace", "-o", path, "pages", sys.executable, "-c", PROGRAM, status=7)

    found = run("-j", "simulate", path, "--sizes", "5,10").json
    assert (found["cache"], found["max_entries"], found["lookups"]) == ("pages", 20, 100)
    assert found["found"] == 90
    assert {each["max_entries"]: each["hit_ratio"] for each in found["sizes"]}[10] == 0.9


def test_a_trace_of_no_cache_is_said_to_be_none(tmp_path):
    path = tmp_path / "pages.trace"

    result = run("trace", "-o", path, "other", sys.executable, "-c", PROGRAM, status=7)

    assert "opened no cache" in result.err
    assert not path.exists()
    path.write_text("mine")
    assert "exists" in run("trace", "-o", path, "pages", "true", status=1).err
    assert path.read_text() == "mine"


def test_json_of_simulate_is_one_object(tmp_path):
    trace_of(tmp_path / "x", [1, 1])

    found = json.loads(run("-j", "simulate", tmp_path / "x").out)

    assert found["keys"] == 1
    assert found["sample"] == 1
