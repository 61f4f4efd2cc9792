"""A map on which an operation is killed, and the state that the survivor must find.

tests/crash/test_kill_every_instruction.py explains the method: a Scenario is one operation on one
map, and survive() is what a process that stayed attached does with each state that the killed
process may have left.
"""

import contextlib
import dataclasses
import struct
import time
from collections.abc import Callable

import pytest

import shmrhash
from shmrhash import RHashMap
from support import stepping
from support.words import COLLIDING, SCATTERED, word

READ_SECONDS_MAX = 0.5
FRESH = 1 << 32  # keys from here on are inserted by the survivor only


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One operation on one map."""

    name: str
    operate: Callable  # runs in the child, with the child's handle
    outcome: Callable  # makes the same change to a dict
    fill: Callable  # brings a new map to the state in which the operation is interesting
    key: int = 1  # the key that the survivor writes, and so meets the dead process's locks
    atomic: bool = True  # all keys change or none; otherwise each key for itself
    goes_on: bool = False  # recovery finishes the operation of the dead process
    changes_min: int = 3  # with fewer changes the scenario no longer does what its name says
    proof: Callable = lambda before, after: True  # of two facts(): false if it no longer does
    geometry: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name.replace(" ", "-")

    def create(self, name):
        geometry = {"key_size": 8, "value_size": 8, "max_entries": 64, "_seeds": SCATTERED}
        return RHashMap.create(name, **(geometry | self.geometry))

    @property
    def value_size(self):
        return self.geometry.get("value_size", 8)

    def value(self, number):
        """Return a value with the number in each of its words, which shows a mixture of two."""
        return (word(number) * (self.value_size // 8 + 1))[: self.value_size]


def insert(scenario, target, keys):
    for key in keys:
        target[word(key)] = scenario.value(key)


def remove(target, keys):
    for key in keys:
        del target[word(key)]


def entries(count):
    """fill: this many entries, with keys from 1 up, after memory was committed and given back."""

    def fill(scenario, shared_map):
        insert(scenario, shared_map, [0])
        remove(shared_map, [0])
        insert(scenario, shared_map, range(1, count + 1))

    return fill


def untouched(scenario, shared_map):
    """fill: nothing; the map never had an entry."""


def facts(shared_map):
    """Return the figures by which a moment is recognised."""
    return shared_map.info() | {"lines": shared_map.check()["lines"]}


def before_moment(act, happened, prepare, stride=1, coarse=None):
    """fill: prepare, then act(scenario, map, i) for each i before the one that makes happened()
    true.

    That i is found with probe maps that have the same seeds: one step at a time, and before that in
    strides, up to the first stride that makes coarse() true. Both functions compare two facts().
    """

    def moment(scenario, name, start, step, happened):
        """Return the first i whose step makes it happen."""
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(scenario.create(name))
            stack.callback(probe.unlink)
            prepare(scenario, probe)
            for i in range(start):
                act(scenario, probe, i)
            before = facts(probe)
            for i in range(start, probe.max_entries, step):
                for j in range(i, i + step):
                    act(scenario, probe, j)
                after = facts(probe)
                if happened(before, after):
                    return i
                before = after
        return pytest.fail("the map never does what this scenario is about")

    def fill(scenario, shared_map):
        probe = shared_map.name + "-probe"
        start = moment(scenario, probe, 0, stride, coarse or happened) if stride > 1 else 0
        count = moment(scenario, probe, start, 1, happened)
        prepare(scenario, shared_map)
        for i in range(count):
            act(scenario, shared_map, i)

    return fill


def rose(*counters):
    return lambda before, after: all(after[counter] > before[counter] for counter in counters)


def fell(*counters):
    return lambda before, after: all(after[counter] < before[counter] for counter in counters)


def added(key, delta, offset=0, default=None):
    """Return the outcome of add() as a function that changes a dict."""

    def outcome(model):
        value = bytearray(model.get(word(key), bytes(len(next(iter(model.values()))))))
        (old,) = struct.unpack_from("<Q", value, offset)
        struct.pack_into("<Q", value, offset, (default if word(key) not in model else old) + delta)
        model[word(key)] = bytes(value)

    return outcome


COLLISIONS = {"_seeds": COLLIDING}


def contents(shared_map, keys):
    """Look these keys up; return the entries found. Reading must not take long (R1)."""
    began = time.perf_counter()
    found = {key: shared_map.lookup(key) for key in keys}
    spent = time.perf_counter() - began
    assert spent < READ_SECONDS_MAX + len(keys) * 1e-4, f"reading took {spent:.2f} s"
    return {key: value for key, value in found.items() if value is not None}


def expect_before_or_after(scenario, seen, before, after):
    """R2, W1: each key has its old or its new value; if atomic, all have the old or the new."""
    if scenario.atomic:
        assert seen in (before, after)
        return
    for key in before.keys() | after.keys():
        assert seen.get(key) in (before.get(key), after.get(key))


def write_same_key(scenario, survivor, model):
    survivor.update(word(scenario.key), scenario.value(77))
    model[word(scenario.key)] = scenario.value(77)


def write_a_neighbour(scenario, survivor, model):
    """Write a key of the same bucket if all keys collide, otherwise some other key."""
    key = word(2 if scenario.key == 1 else 1)
    if len(model) < survivor.max_entries or key in model:
        survivor.update(key, scenario.value(78))
        model[key] = scenario.value(78)


def delete_same_key(scenario, survivor, model):
    with contextlib.suppress(shmrhash.KeyNotFound):
        survivor.delete(word(scenario.key))
    model.pop(word(scenario.key), None)


def attach(scenario, survivor, model):
    RHashMap.open(survivor.name).close()


def only_check(scenario, survivor, model):
    pass


MEETINGS = [write_same_key, attach, write_a_neighbour, only_check, delete_same_key]


def expect_whole(survivor, model=None):
    """check() counts exactly as many entries as the model has.

    len() proves nothing here: it also counts the right to an entry that a dead process holds, until
    that process has been recovered.
    """
    report = survivor.check()
    assert report["exact"]
    if model is not None:
        assert report["entries"] == len(model)


def expect_exact_limit(scenario, survivor, model):
    """W2: exactly max_entries fit, whatever the dead process held."""
    fresh = FRESH
    while True:
        try:
            survivor.update(word(fresh), scenario.value(fresh))
        except shmrhash.MapFull:
            break
        model[word(fresh)] = scenario.value(fresh)
        fresh += 1
        assert len(model) <= survivor.max_entries
    assert len(model) == len(survivor) == survivor.max_entries


def survive(scenario, survivor, meet, before, after):
    """Do everything that a survivor must be able to do after a crash, and check the results."""
    keys = before.keys() | after.keys() | {word(0), word(FRESH)}
    seen = contents(survivor, keys)
    expect_before_or_after(scenario, seen, before, after)
    model = dict(seen)
    if meet is write_same_key and len(model) == survivor.max_entries:
        model_has_room = word(scenario.key) in model
        meet = write_same_key if model_has_room else delete_same_key
    meet(scenario, survivor, model)
    if scenario.goes_on:
        survivor._recover()
        left = contents(survivor, keys | model.keys())
        assert left.items() <= model.items()
        assert left == model or not left.keys() & before.keys() - {word(1), word(2)}
        model = left
    expect_whole(survivor, model)
    assert contents(survivor, keys | model.keys()) == model
    expect_exact_limit(scenario, survivor, model)
    expect_whole(survivor, model)
    assert contents(survivor, keys | model.keys()) == model
    if meet is only_check:
        # Attaching recovers all dead processes, so nothing of theirs is kept.
        attach(scenario, survivor, model)
        assert survivor.info()["contexts"] == 1


@contextlib.contextmanager
def filled(scenario, name):
    """Yield a map at the scenario's start, held by the survivor, and its contents."""
    with stepping.on_cpu(stepping.default_cpu()), scenario.create(name) as survivor:
        try:
            scenario.fill(scenario, survivor)
            survivor.lookup(word(0))
            expect_whole(survivor)
            candidates = [word(key) for key in range(survivor.max_entries + 1)]
            yield survivor, contents(survivor, candidates)
        finally:
            survivor.unlink()


def opened(name):
    """prepare: open a handle of the child's own, and register the child."""

    def prepare():
        handle = RHashMap.open(name)
        handle.lookup(bytes(handle.key_size))
        return handle

    return prepare


class Tally:
    """Counts how much a test has covered."""

    def __init__(self):
        self.crashes = 0
        self.digests = set()

    def add(self, crash):
        self.crashes += 1
        self.digests.add(crash.digest)

    def report(self, record_property, scenario, total):
        record_property("crashes", self.crashes)
        record_property("distinct_states", len(self.digests))
        print(
            f"{scenario}: {self.crashes} crashes in {len(self.digests)} distinct states "
            f"of an operation of {total} changes"
        )


@contextlib.contextmanager
def explained(crash, meet):
    """Add to a failure where the child was killed, and how the survivor met it."""
    try:
        yield
    except Exception as error:
        note = f"killed in {crash}; survivor: {meet.__name__}"
        if hasattr(error, "add_note"):
            error.add_note(note)
        print(note)
        raise


def fill_up_to_a_split(name):
    """Return a map that splits a bucket at its next insertion, the key of that, and its file."""
    m = RHashMap.create(name, key_size=8, value_size=8, max_entries=4096, _seeds=SCATTERED)
    segment = stepping.Segment(stepping.segment_path(name))
    for key in range(1, 300):
        m[word(key)] = word(key)
    while True:
        image = segment.image()
        buckets = m.info()["buckets"]
        key += 1
        m[word(key)] = word(key)
        if m.info()["buckets"] > buckets:
            segment.restore(image)
            return m, key, segment
