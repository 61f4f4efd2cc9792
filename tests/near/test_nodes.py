"""The steps of a near cache whose source has several nodes, which own the slots as in a cluster."""

import math
import time

import pytest
from support.near import PlainSource

from shmrhash import Deposed, InvalidArgument, Unavailable
from shmrhash._near.cache import NearCache
from shmrhash._near.source import Fetched
from shmrhash._near.topology import SLOTS, slot_of
from shmrhash._near.tracker import Tracker

STALE = 0.2
LONG = 600.0
KEYS = [b"", b"a", b"key:1", b"{tag}1", b"{tag}2", b"{}x", b"x{y", b"x}y{z}", "k\xe4y".encode()]
KEYS += [b"%d" % number for number in range(40)]
NODES = 3


class SlotSource(PlainSource):
    """A source with three nodes, each of which owns every third slot."""

    def nodes(self):
        return NODES

    def owner(self, slot):
        return self.numbers.number(b"node %d" % (slot % NODES))

    def node_of(self, key):
        return self.owner(slot_of(key))

    def slots(self):
        return bytes(self.owner(slot) for slot in range(NODES)) * (SLOTS // NODES) + b"\xff"

    def fetch(self, keys):
        return [
            Fetched(value, None, self.node_of(key))
            for key, value in zip(keys, self.ask("get", list(keys)), strict=True)
        ]


class Scene:
    """A near cache, its source, and a tracker whose steps the test performs."""

    def __init__(self, name, **options):
        self.source = SlotSource()
        self.near = NearCache(
            self.source, name=name, track=False, max_entries=1000, max_bytes=1 << 20, **options
        )
        self.tracker = Tracker(self.near._state, self.source, self.near, self.near._max_stale)
        self.tracker._turn = self.near._state.take_office()
        self.nodes = [self.source.owner(slot) for slot in range(NODES)]
        self.source.server.values.update((key, b"value of " + key) for key in KEYS)

    def watch(self, *nodes):
        for node in nodes or self.nodes:
            self.tracker.began(node)
            self.prove(node)

    def prove(self, node):
        self.tracker.proved(node, time.monotonic_ns())

    def key_of(self, node):
        return next(key for key in KEYS if self.source.node_of(key) == node)


@pytest.fixture
def scene(map_name):
    made = []

    def make(**options):
        made.append(Scene(map_name, **({"max_stale": LONG} | options)))
        return made[-1]

    yield make
    for one in made:
        one.near._state.entries.check()
        one.near._state.words.check()
        one.near.close()


def test_a_hit_is_found_by_its_slot_in_the_core(scene, monkeypatch):
    it = scene()
    it.watch()
    assert [it.near.get(key) for key in KEYS] == [b"value of " + key for key in KEYS]
    reads = it.source.server.reads
    assert reads == len(KEYS)
    assert {it.source.node_of(key) for key in KEYS} == set(it.nodes)
    monkeypatch.setattr(NearCache, "_get_slowly", lambda *_: pytest.fail("not by the core"))

    for key in KEYS:
        if slot_of(key) != SLOTS - 1:
            assert it.near.get(key) == it.near.get(key.decode()) == b"value of " + key
    assert it.source.server.reads == reads


def test_a_wrong_table_costs_time_and_no_value(scene):
    it = scene()
    it.watch()
    for key in KEYS:
        it.near.get(key)
    reads = it.source.server.reads
    for table in (b"\xff" * SLOTS, bytes(reversed(it.source.slots())), b"\x09" * SLOTS):
        it.near._arm_slots(table)
        for key in KEYS:
            assert it.near.get(key) == b"value of " + key
            it.near._arm_slots(table)
    assert it.source.server.reads == reads
    with pytest.raises(InvalidArgument, match="16384"):
        it.near._arm_slots(b"\xff")
    with pytest.raises(TypeError, match="str or bytes"):
        it.near.get(7)


def test_a_change_is_forgotten_at_the_node_that_tells_it(scene):
    it = scene()
    it.watch()
    key = KEYS[1]
    assert it.near.get(key) == b"value of a"
    it.source.server.values[key] = b"new"
    other = next(node for node in it.nodes if node != it.source.node_of(key))
    it.tracker.changed(other, [key])
    assert it.near.get(key) == b"value of a"
    it.tracker.changed(it.source.node_of(key), [key])
    assert it.near.get(key) == b"new"
    it.near.set(key, b"own")
    assert it.near.get(key) == b"own"


def test_discarding_all_keys_of_one_node_keeps_those_of_the_others(scene):
    it = scene()
    it.watch()
    for key in KEYS:
        it.near.get(key)
    reads = it.source.server.reads
    it.tracker.everything(it.nodes[0])
    for key in KEYS:
        it.near.get(key)
    gone = [key for key in KEYS if it.source.node_of(key) == it.nodes[0]]
    assert it.source.server.reads == reads + len(gone)


def test_what_was_read_at_another_node_is_not_kept(scene):
    """A slot moves after the reader has looked it up in the table and before the answer comes; the
    value is returned, and not kept."""
    it = scene()
    it.watch()
    right, it.source.owner = it.source.owner, lambda slot: it.nodes[0]
    key = it.key_of(it.nodes[0])
    it.source.during = lambda: setattr(it.source, "owner", lambda slot: it.nodes[1])
    assert it.near.get(key) == b"value of " + key
    it.source.during = lambda: None
    for node in it.nodes:
        assert it.near._look(key, node, "nothing") == "nothing"
    it.source.owner = right


def test_age_is_that_of_the_node_that_was_heard_longest_ago(scene):
    it = scene(max_stale=STALE)
    assert it.near.age() == math.inf
    it.watch(it.nodes[0], it.nodes[1])
    assert it.near.age() == math.inf, "one of three has never been heard"
    it.watch(it.nodes[2])
    assert it.near.age() < STALE
    time.sleep(1.5 * STALE)
    it.prove(it.nodes[0])
    it.prove(it.nodes[1])
    assert it.near.age() > STALE


def test_a_node_that_has_left_counts_no_more(scene):
    """N2: the lease of a node that has left the cluster ends, so that no process serves values of
    it."""
    it = scene(on_outage=("stale", 60))
    former = it.source.numbers.number(b"former")
    it.watch()
    it.watch(former)
    assert it.near.info()["nodes"][former]["age"] < LONG
    it.tracker.only(it.nodes)
    assert it.near.info()["nodes"][former]["age"] == math.inf
    assert it.near._state.line(former).valid_until == 0
    assert all(it.near._state.line(node).valid_until for node in it.nodes)
    assert it.near.age() < LONG


def test_only_the_tracker_says_which_nodes_are_left(scene):
    it = scene()
    it.watch()
    it.near._state.take_office()
    with pytest.raises(Deposed):
        it.tracker.only([])
    assert all(it.near._state.line(node).valid_until for node in it.nodes)


def test_an_outage_of_one_node_leaves_the_keys_of_the_others(scene):
    it = scene(max_stale=STALE, on_outage="fetch")
    it.near._outage = "raise"
    it.watch()
    time.sleep(1.2 * STALE)
    it.prove(it.nodes[0])
    key = it.key_of(it.nodes[0])
    assert it.near.get(key) == b"value of " + key
    with pytest.raises(Unavailable, match="does not answer"):
        it.near.get(it.key_of(it.nodes[1]))
