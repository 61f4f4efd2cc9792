"""The steps of a near cache, one after the other: what no fill and no tracker may leave behind."""

import asyncio
import contextlib
import copy
import os
import pickle
import threading
import time

import pytest
from support.near import PlainSource

from shmrhash import Deposed, Unavailable
from shmrhash._near.cache import NearCache
from shmrhash._near.state import TURN
from shmrhash._near.tracker import Tracker

STALE = 0.2


class Scene:
    """A near cache, its source, and a tracker whose steps the test makes."""

    def __init__(self, name, **options):
        self.source = PlainSource()
        self.near = NearCache(
            self.source,
            name=name,
            track=False,
            max_stale=STALE,
            max_entries=1000,
            max_bytes=1 << 20,
            **options,
        )
        self.tracker = self.new_tracker()
        self.node = self.source.node_of(b"")

    def new_tracker(self):
        tracker = Tracker(self.near._state, self.source, self.near, STALE)
        tracker._turn = self.near._state.begin(TURN)
        return tracker

    def watch(self):
        self.tracker.began(self.node)
        self.prove()

    def prove(self):
        self.tracker.proved(self.node, time.monotonic_ns())

    def write(self, key, value):
        """A write by another host, of which the tracker hears."""
        self.source.server.values[key] = value
        self.tracker.changed(self.node, [key])

    def reads(self):
        return self.source.server.reads


@pytest.fixture
def scene(map_name):
    made = []

    def make(**options):
        made.append(Scene(map_name, **options))
        return made[-1]

    yield make
    for one in made:
        one.near._state.entries.check()
        one.near._state.words.check()
        one.near.close()


def test_hits_ask_nobody(scene):
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


def test_an_answer_that_an_invalidation_overtook_is_not_stored(scene):
    """N1: the mutant that fills without a token stores the old answer for ever."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.source.during = lambda: it.write(b"k", b"new")

    first = it.near.get("k")
    it.source.during = lambda: None

    assert first == b"old"  # it was current during the call
    assert it.near.get("k") == b"new"


def test_the_token_of_one_fetch_is_not_that_of_another(scene):
    """N1: the first of two fetches is cut off, and must not store into the claim of the second."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    seen = []

    def overtaken():
        it.source.during = lambda: None
        it.write(b"k", b"new")
        line = it.near._state.line(it.node)
        second = it.near._claim(b"k", line, 0)
        assert second.attempt()
        seen.append(second)

    it.source.during = overtaken
    assert it.near.get("k") == b"old"
    seen[0].drop()

    assert it.near.get("k") == b"new"


def test_what_was_fetched_before_a_watch_is_not_served_after_it(scene):
    """N2: the mutant without an epoch serves what changed while nobody watched."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    assert it.near.get("k") == b"old"
    it.source.server.values[b"k"] = b"new"  # nobody hears it
    it.watch()

    assert it.near.get("k") == b"new"


def test_a_fetch_that_began_before_a_watch_stores_nothing(scene):
    """N2: the epoch changes while the answer is under way."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"

    def reconnected():
        it.source.during = lambda: None
        it.source.server.values[b"k"] = b"new"
        it.watch()

    it.source.during = reconnected
    it.near.get("k")

    assert it.near.get("k") == b"new"


def test_a_flush_discards_everything(scene):
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.near.get("k")
    it.source.server.values.clear()
    it.tracker.everything(it.node)

    assert it.near.get("k") is None


def test_no_hit_after_the_lease(scene):
    """N1: the mutant without a lease serves what the tracker cannot know."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.near.get("k")
    it.source.server.values[b"k"] = b"new"  # the connection is cut: nobody hears it
    time.sleep(STALE)

    assert it.near.get("k") == b"new"
    assert it.near.age() >= STALE


def test_old_values_during_an_outage_if_they_are_asked_for(scene):
    it = scene(on_outage=("stale", 30.0))
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.near.get("k")
    time.sleep(STALE)

    assert it.near.get("k") == b"old"
    it.tracker.began(it.node)  # a new connection: nothing of the old era
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
    """The fence: it learns so from its next proof, and from its next beginning."""
    it = scene()
    it.watch()
    old, it.tracker = it.tracker, it.new_tracker()
    it.tracker.began(it.node)

    with pytest.raises(Deposed):
        old.proved(it.node, time.monotonic_ns() + 10**12)
    with pytest.raises(Deposed):
        old.began(it.node)
    assert old._stop()
    assert it.near._watched(it.node) is None


def test_a_watch_does_not_begin_for_a_node_that_has_lost_its_number(scene, monkeypatch):
    """N1: a tracker is stopped before it begins, and another node gets the number: it would prove
    by the words of its own node what the other one has."""
    monkeypatch.setattr("shmrhash._near.state.NODES_MAX", 1)
    monkeypatch.setattr("shmrhash._near.state._IDLE_NS", 0)
    it = scene()
    passed = []
    other = threading.Thread(target=lambda: passed.append(it.near._state.number(b"another")))
    other.start()
    other.join()

    assert passed == [it.node]
    with pytest.raises(Deposed):
        it.tracker.began(it.node)
    assert it.near._watched(it.node) is None
    it.node = it.source.node_of(b"")  # the next attempt asks again
    it.watch()
    assert it.near._watched(it.node) is not None


def test_a_write_is_read_at_once_and_is_not_stored(scene):
    """N3; and the mutant that stores what it wrote serves it after a write of another host."""
    it = scene()
    it.watch()
    it.source.server.values[b"k"] = b"old"
    it.near.get("k")
    it.near.set("k", b"mine")
    it.source.server.values[b"k"] = b"theirs"  # announced before the call returned

    assert it.near.get("k") == b"theirs"
    it.near.delete("k")
    assert it.near.get("k") is None


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
