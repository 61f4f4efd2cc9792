"""A map on which an operation is killed, and what the survivor of that must find.

tests/crash/test_kill_every_instruction.py says how: a Scenario is one operation on one map, and
survive() is what a process that was attached all along does with each state that a death leaves.
"""

import contextlib
import dataclasses
import os
import struct
import time
from collections.abc import Callable

import pytest

import shmrhash
from shmrhash import RHashMap
from support import stepping
from support.words import COLLIDING, SCATTERED, word

READ_SECONDS_MAX = 0.5
FRESH = 1 << 32  # keys from here on are used by the survivor only


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One operation on one map."""

    name: str
    operate: Callable  # in the child, with its handle
    outcome: Callable  # does the same to a dict
    fill: Callable  # brings a new map to where the operation is interesting
    key: int = 1  # the key the survivor writes to meet the dead
    atomic: bool = True  # all or nothing; else every key for itself
    goes_on: bool = False  # whoever recovers the dead finishes what it was about
    changes_min: int = 3  # fewer, and the scenario no longer does what its name says
    proof: Callable = lambda before, after: True  # of facts(): likewise
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
        """A value that shows when two of them are mixed: the number in each of its words."""
        return (word(number) * (self.value_size // 8 + 1))[: self.value_size]


def insert(scenario, target, keys):
    for key in keys:
        target[word(key)] = scenario.value(key)


def remove(target, keys):
    for key in keys:
        del target[word(key)]


def entries(count):
    """fill: so many entries, keys 1 and up, after memory was committed and given back."""

    def fill(scenario, shared_map):
        insert(scenario, shared_map, [0])
        remove(shared_map, [0])
        insert(scenario, shared_map, range(1, count + 1))

    return fill


def untouched(scenario, shared_map):
    """fill: nothing was ever inserted."""


def facts(shared_map):
    """What a moment is recognised by."""
    return shared_map.info() | {"lines": shared_map.check()["lines"]}


def before_moment(act, happened, prepare, stride=1, coarse=None):
    """fill: prepare, then act(scenario, map, i) for i up to the one that makes happened() true.

    Maps beside it with the same seeds are asked when that is: one by one, and before that by
    strides, until one makes coarse() true. Both look at two facts().
    """

    def moment(scenario, name, start, step, happened):
        """The first i whose step makes it happen."""
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
    """add(), done to a dict."""

    def outcome(model):
        value = bytearray(model.get(word(key), bytes(len(next(iter(model.values()))))))
        (old,) = struct.unpack_from("<Q", value, offset)
        struct.pack_into("<Q", value, offset, (default if word(key) not in model else old) + delta)
        model[word(key)] = bytes(value)

    return outcome


COLLISIONS = {"_seeds": COLLIDING}


def contents(shared_map, keys):
    """What the map says about these keys, and that it says so at once (R1)."""
    began = time.perf_counter()
    found = {key: shared_map.lookup(key) for key in keys}
    spent = time.perf_counter() - began
    assert spent < READ_SECONDS_MAX + len(keys) * 1e-4, f"reading took {spent:.2f} s"
    return {key: value for key, value in found.items() if value is not None}


def expect_before_or_after(scenario, seen, before, after):
    """R2, W1: each key has its old value or its new one; all of them the same, if atomic."""
    if scenario.atomic:
        assert seen in (before, after)
        return
    for key in before.keys() | after.keys():
        assert seen.get(key) in (before.get(key), after.get(key))


def write_same_key(scenario, survivor, model):
    survivor.update(word(scenario.key), scenario.value(77))
    model[word(scenario.key)] = scenario.value(77)


def write_a_neighbour(scenario, survivor, model):
    """A key of the same bucket, if all keys collide; else some other key."""
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
    """check(), undisturbed, finds as many entries as there should be.

    len() is no witness here: it counts the right to an entry that a dead process holds, until
    somebody has recovered it.
    """
    report = survivor.check()
    assert report["exact"]
    if model is not None:
        assert report["entries"] == len(model)


def expect_exact_limit(scenario, survivor, model):
    """W2: exactly max_entries fit, whatever the dead one had in its hands."""
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
    """Everything the survivor must be able to do after a crash."""
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
        # Whoever attaches recovers all the dead: nothing of theirs is kept for ever.
        attach(scenario, survivor, model)
        assert survivor.info()["contexts"] == 1


@contextlib.contextmanager
def filled(scenario, name):
    """A map at the scenario's start, held by the survivor, and its contents."""
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
    """prepare: an own handle, registered."""

    def prepare():
        handle = RHashMap.open(name)
        handle.lookup(bytes(handle.key_size))
        return handle

    return prepare


def shm_path(name):
    """The file of the segment."""
    return os.path.join(os.environ.get("SHMRHASH_DIR", "/dev/shm"), name)


class Tally:
    """How much a test has covered."""

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
    """Say in a failure where the child was killed, and how the survivor met it."""
    try:
        yield
    except Exception as error:
        note = f"killed in {crash}; survivor: {meet.__name__}"
        if hasattr(error, "add_note"):
            error.add_note(note)
        print(note)
        raise


def fill_up_to_a_split(name):
    """A map that splits a bucket at its next insertion, the key of that, and its file."""
    m = RHashMap.create(name, key_size=8, value_size=8, max_entries=4096, _seeds=SCATTERED)
    segment = stepping.Segment(shm_path(name))
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
