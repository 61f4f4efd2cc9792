"""Storms: processes read while others write and die; acknowledged versions are the oracle."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import random
import signal
import time

import pytest
from support.near import ServedSource, Server

from shmrhash import gc
from shmrhash._near.cache import NearCache
from shmrhash._near.state import NODES_MAX, State

STALE = 0.3
KEYS = [b"key:%d" % number for number in range(64)]  # each is written about twice a second
DELAY = 0.03
STORMS_MAX = 20  # that a mutant may survive by chance: one storm in three, or more, finds it
FORK = multiprocessing.get_context("fork")


def start(function, *arguments):
    process = FORK.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def serve(address, ready):
    Server(address, DELAY).serve(ready.set)


def near_of(address, name, *, max_stale=STALE, **options):
    return NearCache(
        ServedSource(address),
        name=name,
        max_stale=max_stale,
        max_entries=1000,
        max_bytes=1 << 20,
        **options,
    )


def write(address, times, seconds, seed):
    """Write versions of random keys; note in times when each was acknowledged."""
    chance, source, end = random.Random(seed), ServedSource(address), time.monotonic() + seconds
    versions = dict.fromkeys(KEYS, 0)
    while time.monotonic() < end:
        key = chance.choice(KEYS)
        versions[key] += 1
        source.set(key, b"%s=%d" % (key, versions[key]), None)
        times.put((key, versions[key], time.monotonic()))
        time.sleep(chance.random() * 0.015)
    times.put(None)


def read(address, name, folder, stop, options):
    """Read random keys; write what was read, and when its last read began, to a file."""
    near, chance = near_of(address, name, **options), random.Random(os.getpid())
    with open(folder / f"{os.getpid()}", "wb", buffering=0) as file:
        while not stop.is_set():
            portion = {}
            for _ in range(50):
                key, began = chance.choice(KEYS), time.monotonic()
                owner, _, version = (near.get(key) or key + b"=0").rpartition(b"=")
                portion[key, owner, int(version)] = began
            file.write(pickle.dumps(portion))
            time.sleep(0.002)


def portions_in(folder):
    """What all readers wrote; the last portion of one that was killed may be cut."""
    for path in folder.iterdir():
        with open(path, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                yield pickle.load(file)


def judge(acknowledged, seen):
    """The reads that are too old: (key, version, seconds beyond max_stale)."""
    wrong = []
    for key, owner, version, began in seen:
        if owner != key:
            wrong.append((key, owner, began))
            continue
        later = [moment for number, moment in acknowledged[key].items() if number > version]
        if later and min(later) < began - STALE:
            wrong.append((key, version, began - STALE - min(later)))
    return wrong


def storm(tmp_path, name, seconds, seed, *, kill=True, options=None):
    """Return the number of reads, the wrong ones, and info() at the end."""
    chance, address = random.Random(seed), str(tmp_path / "server")
    ready, stop = FORK.Event(), FORK.Event()
    folder = tmp_path / "seen"
    folder.mkdir()
    others = [start(serve, address, ready)]
    assert ready.wait(10)
    times = FORK.Queue()
    others.append(start(write, address, times, seconds, seed))
    readers = [start(read, address, name, folder, stop, options or {}) for _ in range(3)]
    acknowledged, writing = {key: {} for key in KEYS}, True
    admin, next_blow = ServedSource(address), time.monotonic() + 0.4
    while writing:
        with contextlib.suppress(queue.Empty):
            while True:  # until there are no more
                said = times.get(timeout=0.005)
                if said is None:
                    writing = False
                    break
                acknowledged[said[0]][said[1]] = said[2]
        if kill and time.monotonic() > next_blow:
            next_blow = time.monotonic() + 0.25 + chance.random() * 0.3
            blow = chance.choice(["reader", "cut", "stop"])
            at = chance.randrange(len(readers))
            if blow == "cut":
                admin.ask("cut")
            elif blow == "reader":
                os.kill(readers[at].pid, signal.SIGKILL)
                readers[at].join()
                readers[at] = start(read, address, name, folder, stop, options or {})
            else:
                os.kill(readers[at].pid, signal.SIGSTOP)
                time.sleep(chance.random() * 2 * STALE)
                os.kill(readers[at].pid, signal.SIGCONT)
    time.sleep(2 * STALE)
    with near_of(address, name) as near:
        near.ready(5)
        info = near.info()
        at_rest = {key: near.get(key) for key in KEYS} == dict(
            zip(KEYS, admin.ask("get", KEYS), strict=True)
        )
        near._state.entries.check()
    stop.set()
    for process in (*readers, *others):
        process.kill()
        process.join()
    gc()  # the last users of the segments were killed
    seen = [(*place, began) for portion in portions_in(folder) for place, began in portion.items()]
    return len(seen), judge(acknowledged, seen), at_rest, info


@pytest.mark.thorough
def test_no_read_is_older_than_max_stale(tmp_path, map_name, seed):
    """N1, N2, N5: readers, one of which tracks, are killed and stopped, and connections are cut."""
    reads, wrong, at_rest, info = storm(tmp_path, map_name, 6.0, seed)

    assert wrong == []
    assert at_rest
    assert reads > 1000
    assert info["takeovers"] > 0


def hold(address, name, stop):
    with near_of(address, name) as near:
        near.get(b"key:0")
        stop.wait()


def test_another_process_tracks_when_the_tracker_is_killed(tmp_path, map_name):
    """N5: and what nobody heard in between is not served."""
    address, ready, stop = str(tmp_path / "server"), FORK.Event(), FORK.Event()
    others = [start(serve, address, ready)]
    assert ready.wait(10)
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
    """N6: three processes ask for the same keys in the same order, and each answer is late."""
    address, ready, begin = str(tmp_path / "server"), FORK.Event(), FORK.Event()
    server = start(serve, address, ready)
    assert ready.wait(10)
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


class _NoEpoch(State):
    def begin(self, number):
        before = self.line(number)
        term = super().begin(number)
        if before is not None and number < NODES_MAX:
            with self.words.locked(number.to_bytes(8, "little")) as value:
                value[:16] = before.epoch
        return term


class _NoLease(State):
    def extend(self, number, term, valid_until):
        super().extend(number, term, valid_until + (1 << 50) * (number < NODES_MAX))


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", ["epoch", "lease"])
def test_the_oracle_finds_a_near_cache_without(tmp_path, map_name, seed, mutant, monkeypatch):
    """Each mutant is found in a few storms, where the near cache itself is not."""
    wrong_state = {"epoch": _NoEpoch, "lease": _NoLease}[mutant]
    monkeypatch.setattr("shmrhash._near.cache.State", wrong_state)

    for number in range(STORMS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, wrong, at_rest, _ = storm(folder, map_name, 4.0, seed + number)
        if wrong or not at_rest:
            return
    pytest.fail(f"not found in {STORMS_MAX} storms")
