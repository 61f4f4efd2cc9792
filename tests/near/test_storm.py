"""Storms: processes read while others write and die; the reads are judged by acknowledged
versions."""

import dataclasses
import os
import signal
import time

import pytest
from support import near_mutants
from support.near import ServedSource
from support.near_storms import FORK, KEYS, Storm, Weather, near_of, served, start

from shmrhash import gc
from shmrhash._near.state import State

STORMS_MAX = 30  # at least one storm in three finds a mutant


@pytest.mark.thorough
def test_no_read_is_older_than_max_stale(tmp_path, map_name, seed):
    """N1, N2, N5: readers, one of which is the tracker, are killed and stopped, and connections are
    cut; no read is older than max_stale."""
    outcome = Storm(tmp_path, map_name, 6.0, seed).run()

    assert outcome.wrong == []
    assert outcome.at_rest
    assert outcome.reads > 1000
    assert outcome.info["takeovers"] > 0


def hold(address, name, stop):
    with near_of(address, name) as near:
        near.get(b"key:0")
        stop.wait()


def test_another_process_tracks_when_the_tracker_is_killed(tmp_path, map_name):
    """N5: when the tracker is killed, another process becomes the tracker, and a value that changed
    between is not served."""
    address, stop = str(tmp_path / "server"), FORK.Event()
    others = [served(address)]
    first = start(hold, address, map_name, stop)
    source = ServedSource(address)
    source.set(KEYS[0], b"old", None)
    with near_of(address, map_name, track=False) as near:
        assert near.ready(10)
        assert near.info()["tracker_pid"] == first.pid
        assert near.get(KEYS[0]) == b"old"
    others.append(start(hold, address, map_name, stop))
    with near_of(address, map_name, track=False) as near:
        epochs = near.info()["nodes"][0]["epochs"]
        os.kill(first.pid, signal.SIGKILL)
        source.set(KEYS[0], b"new", None)
        deadline = time.monotonic() + 10
        while near.info()["nodes"][0]["epochs"] == epochs:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert near.info()["tracker_pid"] == others[1].pid
        assert near.get(KEYS[0]) == b"new"
    for process in (first, *others):
        process.kill()
        process.join()
    gc()


def ask_all(address, name, begin, keys):
    with near_of(address, name, track=False, flight=30.0, max_stale=30.0) as near:
        begin.wait()
        for key in keys:
            near.get(key)


def test_processes_that_miss_a_key_ask_once(tmp_path, map_name):
    """N6: three processes ask for the same keys in the same order while each answer is late; the
    server is asked once for each key."""
    address, begin = str(tmp_path / "server"), FORK.Event()
    server = served(address)
    with near_of(address, map_name, max_stale=30.0) as near:
        assert near.ready(10)
        askers = [start(ask_all, address, map_name, begin, KEYS) for _ in range(3)]
        begin.set()
        for asker in askers:
            asker.join()
            assert asker.exitcode == 0
        assert ServedSource(address).ask("count") == len(KEYS)
    server.kill()
    server.join()


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", near_mutants.FOUND_BY_STORMS, ids=lambda mutant: mutant.__name__)
def test_a_storm_finds(tmp_path, map_name, seed, mutant, monkeypatch):
    """One of a few storms finds the mutant. (The near cache itself passes such storms.)"""
    weather = Weather(**near_mutants.FOUND_BY_STORMS[mutant])
    if issubclass(mutant, State):
        monkeypatch.setattr("shmrhash._near.cache.State", mutant)
    else:
        weather = dataclasses.replace(weather, near=mutant)

    for number in range(STORMS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        if not Storm(folder, f"{map_name}-{number}", 1.0, seed + number, weather).run().is_right:
            return
    pytest.fail(f"not found in {STORMS_MAX} storms")
