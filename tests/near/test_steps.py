"""The steps of a near cache, one after the other: no order of the steps of readers and trackers
leaves an old value behind."""

import asyncio
import contextlib
import copy
import math
import os
import pickle
import signal
import threading
import time

import pytest
from support.near_schedules import CONVERSATIONS, SCHEDULES, STALE, Conversation, Scene

from shmrhash import Deposed, InvalidArgument, LockTimeout, Unavailable, gc
from shmrhash._near.state import TURN
from shmrhash._near.tracker import Tracker

PATIENCE_S = 60
LONG = 30.0  # a lease that lasts as long as the test, however busy the machine is


@pytest.fixture
def scene(map_name):
    made = []

    def make(max_stale=LONG, **options):
        made.append(Scene(map_name, max_stale=max_stale, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_nothing_old_is_read_when(scene, schedule):
    schedule(scene(max_stale=STALE))


@pytest.mark.parametrize("schedule", CONVERSATIONS, ids=lambda schedule: schedule.__name__)
def test_a_proof_covers_what_it_says_when(schedule):
    schedule(Conversation())


def test_hits_ask_no_server(scene):
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"one"

    values = [it.near.get("k") for _ in range(5)]

    assert values == [b"one"] * 5
    assert it.reads() == 1


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\xc1more", b"plain", bytes(5000)])
def test_values_come_back_as_they_are(scene, value):
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = value

    assert [it.near.get(b"k"), it.near.get(b"k")] == [value, value]
    assert it.reads() == 1


def test_absence_is_kept_and_ends_with_the_key(scene):
    it = scene()
    it.watch()

    assert [it.near.get("k", 7), it.near.get("k", 8)] == [7, 8]
    assert it.reads() == 1
    it.write(b"k", b"here")
    assert it.near.get("k") == b"here"


def test_old_values_during_an_outage_if_they_are_asked_for(scene):
    it = scene(max_stale=STALE, on_outage=("stale", 30.0))
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.near.get("k")
    time.sleep(STALE)

    assert it.near.get("k") == b"old"
    it.tracker.began(it.node)  # a new watch, which serves nothing of the previous one
    it.source.server.values[b"k"] = b"new"
    assert it.near.get("k") == b"new"


def test_raise_asks_no_server_during_an_outage(scene, monkeypatch):
    monkeypatch.setattr("shmrhash._near.cache._READY_WAIT", 0.0)
    it = scene(on_outage="raise")

    with pytest.raises(Unavailable):
        it.near.get("k")
    assert it.reads() == 0
    it.watch()
    assert it.near.get("k") is None


def test_a_tracker_that_was_replaced_extends_nothing(scene):
    """A tracker that was replaced learns it from the term in the node's line, at its next proof and
    at its next beginning of a watch."""
    it = scene()
    it.watch()
    old, it.tracker = it.tracker, it.new_tracker()
    it.tracker.began(it.node)

    with pytest.raises(Deposed):
        old.proved(it.node, time.monotonic_ns() + 10**12)
    with pytest.raises(Deposed):
        old.began(it.node)
    assert old._has_to_end()
    assert it.near._watched(it.node) is None


def test_a_tracker_overrides_no_method_of_threads_but_run():
    """A method of Tracker once had the name of a private method of Thread, so join() called it, and
    so did each forked child."""
    own = {name for name in vars(Tracker) if not name.startswith("__")}

    assert own & set(dir(threading.Thread())) == {"run"}


def test_a_tracker_that_has_ended_is_not_alive(scene):
    it = scene()
    tracker = it.new_tracker()
    tracker.start()
    assert tracker.is_alive()
    tracker.end()
    tracker.join(PATIENCE_S)
    assert not tracker.is_alive()


def test_an_attempt_to_reach_the_server_is_no_takeover(scene):
    """Only if the new tracker hears the server, and another tracker heard it before, does info()
    count a takeover."""
    it = scene(max_stale=STALE)
    attempts = it.new_tracker()  # a tracker whose source refuses to be watched
    term = it.near._state.line(TURN).term
    attempts.start()
    while it.near._state.line(TURN).term < term + 3:  # it makes attempts until it is ended
        time.sleep(0.001)
    attempts.end()
    assert it.near.info()["takeovers"] == 0

    it.tracker = it.new_tracker()
    it.watch()
    it.watch()
    assert it.near.info()["takeovers"] == 1
    it.new_tracker()
    assert it.near.info()["takeovers"] == 1
    it.tracker = it.new_tracker()
    it.watch()
    assert it.near.info()["takeovers"] == 2


def test_a_takeover_that_cannot_be_noted_is_counted_with_the_next_beginning(scene, monkeypatch):
    def refuse(*_):
        raise LockTimeout("a stopped process holds the line")

    it = scene()
    with monkeypatch.context() as patched:
        patched.setattr(it.near._state, "heard_by", refuse)
        it.watch()
    assert it.near._watched(it.node) is not None
    assert it.near.info()["takeovers"] == 0
    it.watch()
    assert it.near.info()["takeovers"] == 1


def test_a_lease_is_never_longer_than_another_process_believes(scene, map_name):
    """N1: the tracker extends the lease for all processes by its own max_stale, so a process with
    another max_stale is refused."""
    it = scene(max_stale=STALE)
    it.watch()

    with pytest.raises(InvalidArgument, match=f"in use with max_stale={STALE:g}, not 0.01: give"):
        Scene(map_name, max_stale=0.01)
    Scene(map_name).near.close()


def test_max_stale_of_killed_processes_counts_no_more(map_name):
    """A process with a longer max_stale is killed after it has extended the lease; neither its
    max_stale nor its lease counts for the next process."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            it = Scene(map_name, max_stale=100.0)
            it.tracker.began(it.node)
            it.tracker.proved(it.node, time.monotonic_ns() + 10**12)
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL

    near = Scene(map_name, max_stale=0.01).near

    assert near.age() == math.inf
    assert near._state.line(TURN).max_stale_ns == 10_000_000
    near.close()
    gc()


def test_clear_and_invalidate_forget(scene):
    it = scene()
    it.watch()
    it.near.get_many(["a", "b"])
    it.near.invalidate("a")
    it.near.get_many(["a", "b"])
    assert it.reads() == 3
    it.near.clear()
    it.near.get_many(["a", "b"])
    assert it.reads() == 5


def test_more_keys_than_there_are_contexts_are_fetched_and_kept(scene):
    it = scene(max_entries=20_000, max_bytes=1 << 24)
    it.watch()
    it.tracker.proved(it.node, time.monotonic_ns() + 10**12)
    keys = [b"%d" % number for number in range(3000)]
    it.source.server.values.update(zip(keys, keys, strict=True))

    assert it.near.get_many(keys) == dict(zip(keys, keys, strict=True))
    assert it.near.get_many(keys) == dict(zip(keys, keys, strict=True))
    assert it.reads() == len(keys)


def test_more_tasks_than_there_are_contexts_read(scene):
    it = scene(max_entries=20_000, max_bytes=1 << 24)
    it.watch()
    it.tracker.proved(it.node, time.monotonic_ns() + 10**12)
    answer, begun = it.source.afetch, asyncio.Event()
    tasks = it.near._entries.handle.info()["contexts_max"] + 200

    async def when_all_have_asked(keys):
        if it.near.info()["entries"]["misses"] == tasks:
            begun.set()
        await begun.wait()
        return await answer(keys)

    it.source.afetch = when_all_have_asked

    async def all_of_them():
        return await asyncio.gather(*(it.near.aget(b"%d" % number, 7) for number in range(tasks)))

    assert asyncio.run(all_of_them()) == [7] * tasks


def test_warming_fetches_each_missing_key_once(scene):
    it = scene()
    assert it.near.warm([b"k1"], timeout=0.01) == 0
    assert it.reads() == 0
    it.watch()
    it.tracker.proved(it.node, time.monotonic_ns() + 10**12)
    keys = [b"k%d" % number for number in range(150)]
    it.source.server.values.update((key, key) for key in keys[10:])
    it.near.get("k20")

    assert it.near.warm(iter([*keys, "bare:k"])) == 149
    assert it.reads() == 150
    assert it.near.get_many(keys) == {key: key for key in keys[10:]}
    assert it.near.warm(keys) == 0
    assert it.reads() == 150


def test_a_key_that_is_not_watched_is_not_stored(scene):
    it = scene()
    it.watch()
    it.near.get("bare:k")
    it.near.get("bare:k")

    assert it.reads() == 2


def test_get_or_set_makes_one_value(scene):
    it = scene(value=str)
    it.watch()

    assert it.near.get_or_set("k", lambda: "made") == "made"
    assert it.near.get_or_set("k", lambda: "again") == "made"
    assert it.near.get_many(["k", "none"]) == {"k": "made"}


def test_a_child_of_fork_hits_and_fills(scene):
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"one"
    it.near.get("k")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if it.near.get("k") == b"one" and it.reads() == 1 else 1)
        os._exit(2)

    assert os.waitpid(child, 0)[1] == 0


def test_tasks_of_a_loop_ask_once(scene):
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"one"
    answer = it.source.afetch

    async def slowly(keys):
        await asyncio.sleep(0.01)
        return await answer(keys)

    it.source.afetch = slowly

    async def all_of_them():
        return await asyncio.gather(*(it.near.aget("k") for _ in range(20)))

    assert asyncio.run(all_of_them()) == [b"one"] * 20
    assert it.reads() == 1
    asyncio.run(it.near.aset("k", b"two"))
    assert asyncio.run(it.near.aget_many(["k", "none"])) == {"k": b"two"}


def test_a_near_cache_is_neither_pickled_nor_copied(scene):
    near = scene().near
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="make one in each process"):
            take(near)
