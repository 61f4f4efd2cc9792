"""A process is killed at every change it makes while it computes for others, takes over the claim
of a dead process, deletes a claimed key, evicts for a claim, or invalidates (C1, C2, R2).

As test_kill_with_objects.py, on a Cache: an entry may have been evicted for another, but no value
is wrong or older than before, no claim of the dead process is left, and the limit stays exact.
"""

import contextlib
import os

import pytest
from support import stepping
from support.children import Partner
from support.killing import Scenario, Tally, explained, not_waiting, only_check

from shmrhash import Cache

pytestmark = pytest.mark.usefixtures("stepper")

KEY, LONG = b"k", b"a key of more than fifteen bytes"
NEVER_S = 600  # a wait that would end like this fails the test
ROOM = 8


def value(number, size=40):
    """Return bytes that show when two values are mixed."""
    return number.to_bytes(8, "little") * (size // 8)


OLD, NEW, LATER = value(1), value(2, 4000), value(3, 300)


LEARNED = [set(), set()]  # instructions that changed the cache in earlier tests of two deaths


# ---- how the survivor meets the dead ----


def ask_for_same_key(scenario, cache, model):
    found = cache.get_or_compute(scenario.key, lambda: LATER, wait=NEVER_S)
    assert found == model.get(scenario.key, LATER)
    model[scenario.key] = found


def store_same_key(scenario, cache, model):
    cache.set(scenario.key, LATER)
    model[scenario.key] = LATER


def delete_same_key(scenario, cache, model):
    assert cache.delete(scenario.key) == (scenario.key in model)
    model.pop(scenario.key, None)


def store_others(scenario, cache, model):
    for number in range(3 * ROOM):
        cache.set(b"other %d" % number, LATER)


def somebody_attaches(scenario, cache, model):
    Cache(cache.name, key=bytes, value=bytes).close()


# ---- the operations ----


class OnCache(Scenario):
    """One operation on a cache that begins with `count` entries."""

    key = KEY
    count = 3
    evicts = 0  # how many entries may have been evicted
    changes_min = 6
    sample = 10
    tags = False  # whether the cache has tags
    meetings = (
        ask_for_same_key,
        store_same_key,
        delete_same_key,
        store_others,
        somebody_attaches,
        only_check,
    )
    learned = set()  # noqa: RUF012 - shared by all operations of the file

    def prepare(self, name):
        child = Cache(name, key=bytes, value=bytes)
        child.get(b"nothing")
        return child

    def begin(self, cache, stack):
        """Bring the key into the state in which the child finds it; stack ends it."""

    def look(self, cache, keys):
        with not_waiting(len(keys)):
            return cache.get_many([self.key, *(b"k%d" % number for number in range(self.count))])

    def facts(self, cache):
        return cache.info()

    @contextlib.contextmanager
    def made(self, name):
        options = {"key": bytes, "value": bytes, "max_entries": ROOM, "max_bytes": 2 << 20}
        options["tags"] = self.tags
        with Cache(name, **options) as cache:
            try:
                for number in range(self.count):
                    cache.set(b"k%d" % number, OLD, tags=["kept"] if self.tags else ())
                with contextlib.ExitStack() as stack:
                    self.begin(cache, stack)
                    yield cache, self.look(cache, ())
            finally:
                os.unlink(stepping.segment_path(name))

    def judge(self, seen, models, done):
        before, after = models
        for key, found in seen.items():
            assert found in (before.get(key), after.get(key)), key
        gone = before.keys() & after.keys() - seen.keys()
        assert len(gone) <= self.evicts, gone
        if before.get(self.key) == after.get(self.key):
            return 1
        shown = int(seen.get(self.key) == after.get(self.key))
        assert shown >= done
        return shown

    def survive(self, cache, meet, seen, keys):
        model = dict(seen)
        meet(self, cache, model)
        if meet is not store_others:
            assert cache.get(self.key) == model.get(self.key)
        cache.handle._recover()
        cache.check()
        cache.delete(self.key)
        assert cache.get_or_compute(self.key, lambda: LATER, wait=NEVER_S) == LATER
        assert cache.get(self.key) == LATER
        for number in range(2 * ROOM):
            cache.set(b"after %d" % number, OLD)
        assert len(cache) == ROOM
        cache.check()
        cache.clear()
        cache.expire()
        cache.check()
        assert cache.handle.info()["objects"]["count"] == 0

    def expect_whole_operation(self, trace, cache, models, at_start):
        assert len(trace.changes) >= self.changes_min
        self.judge(self.look(cache, ()), models, 1)


class Compute(OnCache):
    """The key is absent: a blank is inserted and claimed, and the result is stored."""

    result = NEW

    def operate(self, state):
        assert state.get_or_compute(self.key, lambda: self.result, wait=NEVER_S) == self.result

    def change(self, model):
        model[self.key] = self.result


class ComputeWhereFull(Compute):
    """An entry is evicted for the blank."""

    count = ROOM
    evicts = 1


class ComputeExpired(Compute):
    """An entry that has expired is claimed as it is."""

    def begin(self, cache, stack):
        cache.set(self.key, OLD, ttl=1e-9)


class Refuse(Compute):
    """The computation fails, and the child gives up its claim."""

    def operate(self, state):
        with contextlib.suppress(ZeroDivisionError):
            state.get_or_compute(self.key, lambda: 1 // 0, wait=NEVER_S)

    def change(self, model):
        pass


class TakeOver(Compute):
    """A dead process has claimed the key: the child recovers that process, and computes."""

    def begin(self, cache, stack):
        claimant = Partner(claim, cache.name, self.key)
        claimant.hear()
        claimant.kill()


class Invalidate(OnCache):
    """A living process has claimed the key, and the child deletes it."""

    changes_min = 5

    def begin(self, cache, stack):
        claimant = Partner(claim, cache.name, self.key)
        stack.callback(claimant.kill)
        claimant.hear()

    def operate(self, state):
        assert not state.delete(self.key)

    def change(self, model):
        pass

    def survive(self, cache, meet, seen, keys):
        if meet is not ask_for_same_key:  # it would wait for the one that lives
            super().survive(cache, meet, seen, keys)


class StoreOverClaim(Invalidate):
    """A living process has claimed the key, and the child stores a value."""

    def operate(self, state):
        state.set(self.key, NEW)

    def change(self, model):
        model[self.key] = NEW


class Outdate(OnCache):
    """One store makes entries outdated: all of them are found, or none."""

    tags = True
    changes_min = 4
    evicts = 4

    def __init__(self, name, outdates, finds, **more):
        super().__init__(name, **more)
        self.outdates = outdates
        self.finds = finds

    def begin(self, cache, stack):
        cache.set(self.key, OLD, tags=["group", "kept"])

    def operate(self, state):
        self.outdates(state)

    def change(self, model):
        for key in list(model):
            if key == self.key or not self.finds:
                del model[key]

    def judge(self, seen, models, done):
        before, after = models
        assert seen in (before, after)
        assert (seen == after) >= done
        return int(seen == after)


class OutdateClaim(Outdate):
    """The same, while a living process has claimed the key."""

    def begin(self, cache, stack):
        claimant = Partner(claim, cache.name, self.key)
        stack.callback(claimant.kill)
        claimant.hear()

    def survive(self, cache, meet, seen, keys):
        if meet is not ask_for_same_key:  # it would wait for the one that lives
            super().survive(cache, meet, seen, keys)


class SetWithTags(OnCache):
    """A value with another birth and other tags replaces an outdated value."""

    tags = True

    def begin(self, cache, stack):
        cache.set(self.key, OLD, tags=["group", "kept"])
        cache.invalidate("group")

    def operate(self, state):
        state.set(self.key, NEW, tags=["group", "other"])

    def change(self, model):
        model[self.key] = NEW


class ReplaceWithTags(SetWithTags):
    """A value with other tags replaces a value that is not outdated."""

    def begin(self, cache, stack):
        cache.set(self.key, OLD, tags=["kept"])


class ComputeOutdated(Compute):
    """The child deletes an outdated entry, and computes a value for its key."""

    tags = True

    def begin(self, cache, stack):
        cache.set(self.key, OLD)
        self.others(cache)

    def others(self, cache):
        cache.clear()
        for number in range(self.count):
            cache.set(b"k%d" % number, OLD)


class ComputeForOutdatedClaim(ComputeOutdated):
    """A living process computes a value that is outdated already: its claim is cut off."""

    def begin(self, cache, stack):
        claimant = Partner(claim, cache.name, self.key)
        stack.callback(claimant.kill)
        claimant.hear()
        self.others(cache)


class Steal(Invalidate):
    """The child does not wait for the living process, but takes its claim away, and computes."""

    def operate(self, state):
        assert state.get_or_compute(self.key, lambda: NEW, wait=0) == NEW

    def change(self, model):
        model[self.key] = NEW


def claim(parent, name, key):
    with Cache(name, key=bytes, value=bytes) as cache:

        def compute():
            parent.say("claimed")
            parent.hear()

        cache.get_or_compute(key, compute)


CASES = {
    case.name: case
    for case in [
        Compute("compute"),
        Compute("compute for a long key", key=LONG),
        ComputeWhereFull("compute, and evict"),
        ComputeExpired("compute what has expired"),
        Refuse("give up"),
        TakeOver("take over"),
        TakeOver("take over a long key", key=LONG),
        Invalidate("delete a claimed key"),
        StoreOverClaim("store over a claim"),
        Steal("steal"),
        Outdate("clear", lambda cache: cache.clear(), False),
        Outdate("invalidate", lambda cache: cache.invalidate("group"), True),
        OutdateClaim("clear while it is computed", lambda cache: cache.clear(), False),
        SetWithTags("set over an outdated value"),
        ReplaceWithTags("set with tags"),
        ComputeOutdated("compute what is outdated"),
        ComputeForOutdatedClaim("compute what is being computed in vain"),
    ]
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


@every_case
@pytest.mark.thorough
def test_killed_computation_leaves_a_sound_cache(case, map_name, seed, record_property):
    """C1, C2, R2: a kill after a sample of the changes; the ways to meet take turns."""
    case.kill_and_survive(map_name, record_property, seed=seed, sample=case.sample)


@every_case
@pytest.mark.long
def test_killed_computation_leaves_a_sound_cache_to_all(case, map_name, seed, record_property):
    """C1, C2, R2: a kill after each change, and every way to meet the dead on every state."""
    case.kill_and_survive(map_name, record_property, seed=seed, every_meeting=True)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param((3, 3), marks=pytest.mark.thorough),
        pytest.param((40, 40), marks=pytest.mark.long),
    ],
    ids=["some", "many"],
)
@pytest.mark.parametrize("name", ["compute", "compute, and evict", "take over", "give up"])
def test_killed_recovery_of_a_claim_leaves_a_sound_cache(
    name, samples, map_name, seed, record_property
):
    """C1, C2: a process dies while it computes, and another while it recovers the first one."""
    case, tally = CASES[name], Tally()
    with case.filled(map_name) as (cache, before):
        (_, after) = case.models(before)

        def ask(state):
            state.get_or_compute(case.key, lambda: LATER, wait=NEVER_S)

        stages = [(lambda: case.prepare(map_name), operate) for operate in (case.operate, ask)]
        segment = stepping.Segment(stepping.segment_path(map_name))
        for crash in stepping.crash_chain(
            stages, segment, samples=list(samples), seed=seed, learned=LEARNED
        ):
            tally.add(crash)
            meet = case.meetings[tally.crashes % len(case.meetings)]
            with explained(crash, meet):
                seen = case.look(cache, ())
                assert seen.get(case.key) in (before.get(case.key), after.get(case.key), LATER)
                case.survive(cache, meet, seen, ())
    tally.report(record_property, f"{name}, then taken over", tally.crashes)
