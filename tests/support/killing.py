"""Kills an operation at each change that it makes to a map, and says what a survivor must find.

tests/crash/test_kill_every_instruction.py explains the method. A Scenario is one operation on one
map; its subclasses, which stand beside the tests, override what their operations do differently:

    fill, prepare, operate      the map, and what the child does
    models, judge               what a survivor may see, from dicts to which the same is done
    survive, meetings           what the survivor does then, and how it meets the dead
    expect_whole_operation      what an operation that is not killed does
"""

import contextlib
import resource
import struct
import time

import pytest

import shmrhash
from shmrhash import RHashMap
from support import stepping
from support.words import COLLIDING, SCATTERED, word

READ_SECONDS_MAX = 0.5  # of processor time; and sleeps, of which a wait has hundreds
READ_SLEEPS_MAX = 20
FRESH = 1 << 32  # only the survivor inserts keys from here on
COLLISIONS = {"_seeds": COLLIDING}


# ---- how the survivor meets the dead ----


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


MEETINGS = (write_same_key, attach, write_a_neighbour, only_check, delete_same_key)


# ---- the scenario ----


class Scenario:
    """One operation on one map."""

    key = 1  # the survivor writes it, and so meets the dead process's locks
    entry_count = 5  # entries at the start, keys from 1; None: the map never had any
    max_entries = 64
    atomic = True  # all keys change or none does; otherwise each by itself
    goes_on = False  # recovery finishes the operation of the dead process
    changes_min = 3  # with fewer changes the scenario no longer does what its name says
    rising, falling, not_rising = (), (), ()  # facts() that the operation must change, or must not
    sample = None  # how many states are visited, unless the test is long; None: all
    meetings = MEETINGS
    learned = None  # set of instructions that changed the map in earlier scenarios

    def __init__(self, name, geometry=None, **attributes):
        self.name = name
        self.geometry = geometry or {}
        for attribute, value in attributes.items():
            getattr(self, attribute)  # raises if the attribute is misspelt
            setattr(self, attribute, value)

    def __str__(self):
        return self.name.replace(" ", "-")

    # What the operation is.

    def create(self, name):
        geometry = {"key_size": 8, "value_size": 8, "max_entries": self.max_entries}
        return RHashMap.create(name, **(geometry | {"_seeds": SCATTERED} | self.geometry))

    def fill(self, shared_map):
        """Fill a new map, after its memory was committed and given back once."""
        if self.entry_count is not None:
            self.insert(shared_map, [0])
            remove(shared_map, [0])
            self.insert(shared_map, range(1, self.entry_count + 1))

    def prepare(self, name):
        """Return what operate() takes. This is called in the child before it is traced, and
        registers it."""
        handle = RHashMap.open(name)
        handle.lookup(bytes(handle.key_size))
        return handle

    def operate(self, state):
        """Do the operation; called in the child, which is killed in here."""
        raise NotImplementedError

    def change(self, model):
        """Do to a dict what operate() does to the map."""
        raise NotImplementedError

    def happened(self, before, after):
        """Return whether the operation between these two facts() did what the name of the scenario
        says."""
        return (
            all(after[counter] > before[counter] for counter in self.rising)
            and all(after[counter] < before[counter] for counter in self.falling)
            and not any(after[counter] > before[counter] for counter in self.not_rising)
        )

    @property
    def value_size(self):
        return self.geometry.get("value_size", 8)

    def value(self, number):
        """Return a value with the number in each of its words, which shows a mixture of two."""
        return (word(number) * (self.value_size // 8 + 1))[: self.value_size]

    def insert(self, target, keys):
        for key in keys:
            target[word(key)] = self.value(key)

    # What a survivor must find.

    def models(self, before):
        """Return what the map may show, in the order of time: first `before`, and last what is
        stored."""
        after = dict(before)
        self.change(after)
        return [before, after]

    def look(self, survivor, keys):
        """Return what a reader sees."""
        return contents(survivor, keys)

    def judge(self, seen, models, done):
        """R2, W1: return the number of the model that was seen; it must not be earlier than number
        `done`, which was seen before."""
        if not self.atomic:
            for key in models[0].keys() | models[-1].keys():
                assert seen.get(key) in (models[0].get(key), models[-1].get(key))
            return done
        fitting = [n for n, model in enumerate(models) if model == seen and n >= done]
        assert fitting, f"what was seen is none of the models from {done} on"
        return fitting[0]

    def survive(self, survivor, meet, seen, keys):
        """Do everything that a survivor must be able to do after a crash, and check the results."""
        keys = keys | {word(0), word(FRESH)}
        model = dict(seen)
        if meet is write_same_key and len(model) == survivor.max_entries:
            model_has_room = word(self.key) in model
            meet = write_same_key if model_has_room else delete_same_key
        meet(self, survivor, model)
        if self.goes_on:
            survivor._recover()
            left = contents(survivor, keys | model.keys())
            assert left.items() <= model.items()
            assert left == model or not left.keys() & seen.keys() - {word(1), word(2)}
            model = left
        expect_whole(survivor, model)
        assert contents(survivor, keys | model.keys()) == model
        self.expect_exact_limit(survivor, model)
        expect_whole(survivor, model)
        assert contents(survivor, keys | model.keys()) == model
        if meet is only_check:
            # Attaching recovers all dead processes, so they keep nothing.
            attach(self, survivor, model)
            assert survivor.info()["contexts"] == 1

    def expect_exact_limit(self, survivor, model):
        """W2: assert that exactly max_entries fit, whatever the dead process held."""
        fresh = FRESH
        while True:
            try:
                survivor.update(word(fresh), self.value(fresh))
            except shmrhash.MapFull:
                break
            model[word(fresh)] = self.value(fresh)
            fresh += 1
            assert len(model) <= survivor.max_entries
        assert len(model) == len(survivor) == survivor.max_entries

    def expect_whole_operation(self, trace, survivor, models, at_start):
        """Check what an operation that was not killed did."""
        assert len(trace.changes) >= self.changes_min
        assert self.happened(at_start, self.facts(survivor))
        assert self.look(survivor, all_keys(models)) == models[-1]

    def facts(self, survivor):
        """Return the figures by which a moment of an operation is recognised."""
        return survivor.info() | {"lines": survivor.check()["lines"]}

    def expect_all_seen(self, visited, models, sample):
        """Assert that the kills have shown all models, or if only a sample was visited, at least
        the last one."""
        if self.atomic:
            shown = [models[number] for number in visited]
            assert models[max(visited)] == models[-1]
            assert sample is not None or all(model in shown for model in models)

    # The test.

    @contextlib.contextmanager
    def filled(self, name):
        """Yield what self.made(name) yields. All is done on one CPU, because the contents of the
        depots of two CPUs decide which steps an operation has, for instance whether an insertion
        splits."""
        with stepping.on_cpu(stepping.default_cpu()), self.made(name) as found:
            yield found

    @contextlib.contextmanager
    def made(self, name):
        """Yield a map at the scenario's start, held by the survivor, and its contents."""
        with self.create(name) as survivor:
            try:
                self.fill(survivor)
                survivor.lookup(word(0))
                expect_whole(survivor)
                candidates = [word(key) for key in range(survivor.max_entries + 1)]
                yield survivor, contents(survivor, candidates)
            finally:
                survivor.unlink()

    def killed_twice(self, name, survivor, again, *, samples, seed, learned):
        """Kill one child in the operation, and another one in again(handle) on what that left;
        yield each crash of the second. The second has the survivor's handle, because opening one
        would recover the dead at once."""

        def inherit():
            survivor.lookup(word(1))
            return survivor

        stages = [(lambda: self.prepare(name), self.operate), (inherit, again)]
        segment = stepping.Segment(stepping.segment_path(name))
        return stepping.crash_chain(stages, segment, samples=samples, seed=seed, learned=learned)

    def kill_and_survive(self, name, record_property, *, seed, sample=None, every_meeting=False):
        """Kill a child in each state of the operation, in the order of time. After each, the
        survivor meets the dead process in one of the ways, by turns, or in every way, and checks
        the map."""
        tally = Tally()
        with self.filled(name) as (survivor, before):
            models = self.models(before)
            keys = all_keys(models)
            segment = stepping.Segment(stepping.segment_path(name))
            at_start = self.facts(survivor)
            done, visited = 0, set()
            for crash in stepping.crash_states(
                lambda: self.prepare(name),
                self.operate,
                segment,
                sample=sample,
                seed=seed,
                traced=lambda trace: self.expect_whole_operation(trace, survivor, models, at_start),
                pcs=self.learned,
            ):
                tally.add(crash)
                by_turns = [self.meetings[crash.n % len(self.meetings)]]
                for meet in self.meetings if every_meeting else by_turns:
                    segment.restore(crash.image)
                    with explained(crash, meet):
                        seen = self.look(survivor, keys)
                        done = self.judge(seen, models, done)
                        self.survive(survivor, meet, seen, keys)
                visited.add(done)
            self.expect_all_seen(visited, models, sample)
        tally.report(record_property, f"{self.name}, seed {seed}", crash.total)


class Same(Scenario):
    """A Scenario whose operation is the same code for a map and for a dict."""

    def act(self, target):
        raise NotImplementedError

    def operate(self, state):
        self.act(state)

    def change(self, model):
        self.act(model)


class AtMoment(Same):
    """A Scenario whose operation is repeated until it makes something happen, and killed that
    time.

    The number of repetitions is found with probe maps that have the same seeds: one by one, and
    before that in strides, up to the first stride in which the counters in `coarse` rise.
    """

    entry_count = 0
    stride = 1
    coarse = ()

    def fill(self, shared_map):
        probe = shared_map.name + "-probe"
        start = self.count_until(probe, 0, self.stride, self.coarse) if self.stride > 1 else 0
        count = self.count_until(probe, start, 1, ())
        super().fill(shared_map)
        for _ in range(count):
            self.act(shared_map)

    def count_until(self, name, start, step, coarse):
        """Return how many operations precede the one in which it happens."""
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(self.create(name))
            stack.callback(probe.unlink)
            super().fill(probe)
            for _ in range(start):
                self.act(probe)
            before = self.facts(probe)
            for count in range(start, probe.max_entries, step):
                for _ in range(step):
                    self.act(probe)
                after = self.facts(probe)
                rose = coarse and all(after[counter] > before[counter] for counter in coarse)
                if rose or (not coarse and self.happened(before, after)):
                    return count
                before = after
        return pytest.fail("the map never does what this scenario is about")


def remove(target, keys):
    for key in keys:
        del target[word(key)]


def add_to(model, key, delta, offset=0, default=None):
    """Do to a dict what add() does to a map."""
    value = bytearray(model.get(word(key), bytes(len(next(iter(model.values()))))))
    (old,) = struct.unpack_from("<Q", value, offset)
    struct.pack_into("<Q", value, offset, (default if word(key) not in model else old) + delta)
    model[word(key)] = bytes(value)


def all_keys(models):
    return {key for model in models for key in model}


def contents(shared_map, keys):
    """Look these keys up; return the entries that were found. Reading must not wait (R1)."""
    with not_waiting(len(keys)):
        found = {key: shared_map.lookup(key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def starved_s(pid="thread-self"):
    """Return for how long this thread, or the first one of a process, has been ready to run in
    total while other threads had the processors."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9


@contextlib.contextmanager
def not_waiting(lookups):
    """R1: assert that this thread neither sleeps nor spins while it reads."""
    began, before = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD)
    yield
    spent = time.thread_time() - began
    sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before.ru_nvcsw
    assert spent < READ_SECONDS_MAX + lookups * 1e-4, f"reading took {spent:.2f} s"
    assert sleeps < READ_SLEEPS_MAX, f"the reader slept {sleeps} times"


def expect_whole(survivor, model=None):
    """Assert that check() counts exactly as many entries as the model has.

    len() would prove nothing here: it also counts the credit that a dead process holds, until that
    process has been recovered.
    """
    report = survivor.check()
    assert report["exact"]
    if model is not None:
        assert report["entries"] == len(model)


def opened(name):
    """Open a handle of the child's own, and register the child, as prepare() has to."""

    def prepare():
        handle = RHashMap.open(name)
        handle.lookup(bytes(handle.key_size))
        return handle

    return prepare


class Tally:
    """A count of how much a test has covered."""

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
    """Return a map whose next insertion splits a bucket, the key for that, and the map's file."""
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
