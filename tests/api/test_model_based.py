"""Every operation against the model, in random orders that hypothesis generates."""

import contextlib
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    get_state_machine_test,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.model import EXIST, LOCK, NOEXIST, ModelMap, outcome

import shmrhash
from shmrhash import RHashMap

CHECK_EVERY_STEPS = 7
HANDLES_MAX = 4

# Key size, value size, max_entries. 8/8 has its own code in the core; sizes that are no multiple of
# 8 leave padding, and a value of less than 8 bytes has no room for add().
GEOMETRIES = [
    (8, 8, 1),
    (8, 8, 2),
    (8, 8, 16),
    (8, 8, 64),
    (1, 1, 3),
    (1, 40, 64),
    (2, 7, 5),
    (3, 9, 33),
    (4, 132, 20),
    (7, 16, 8),
    (9, 8, 17),
    (12, 24, 64),
    (40, 3, 64),
    (40, 40, 9),
]

# With 0 as the second seed every key of 8 bytes has the same hash; with 1 and 2**32 small keys
# share most of their hash bits.
FORCED_SEEDS = [(0, 0), (0x1234_5678_9ABC_DEF0, 0), (0, 1), (7, 1 << 32)]

FLAGS = st.sampled_from([0, 0, 0, 0, NOEXIST, NOEXIST, EXIST, EXIST, 3, LOCK, 5, 6, 7, 8, 1 << 40])
LOOKUP_FLAGS = st.sampled_from([0, 0, 0, 0, 0, 1, LOCK, 8])


def key_number(index, key_size):
    """Return the index-th key: distinct below 256, and different in more than one byte."""
    return bytes((index + 37 * place) % 256 for place in range(key_size))


class MapAgainstModel(RuleBasedStateMachine):
    """One map and its model; subclasses made by machine_for() name the map and its geometry."""

    name = None
    key_size = value_size = max_entries = None
    forced_seeds = None

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.handles = []

    @initialize(data=st.data())
    def create(self, data):
        geometry = {
            "key_size": self.key_size,
            "value_size": self.value_size,
            "max_entries": self.max_entries,
        }
        options = {} if self.forced_seeds is None else {"_seeds": self.forced_seeds}
        self.model = ModelMap(**geometry)
        self.handles = [RHashMap.create(self.name, **geometry, **options)]
        # Half as many keys again as fit, so that the map is often full.
        self.keys = [
            key_number(index, self.key_size)
            for index in range(min(250, self.max_entries + self.max_entries // 2 + 2))
        ]

    def teardown(self):
        for m in self.handles:
            m.close()
        with contextlib.suppress(shmrhash.SegmentMissing):
            shmrhash.unlink(self.name)

    def any_key(self, data):
        return self.keys[data.draw(st.integers(0, len(self.keys) - 1), label="key index")]

    def any_value(self, data):
        return data.draw(
            st.binary(min_size=self.value_size, max_size=self.value_size), label="value"
        )

    def any_handle(self, data):
        return self.handles[data.draw(st.integers(0, len(self.handles) - 1), label="handle")]

    def compare(self, on_model, on_map):
        assert outcome(on_model) == outcome(on_map)

    @rule(data=st.data(), flags=LOOKUP_FLAGS)
    def lookup(self, data, flags):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(lambda: self.model.lookup(key, flags), lambda: m.lookup(key, flags))

    @rule(data=st.data(), flags=FLAGS)
    def update(self, data, flags):
        m, key, value = self.any_handle(data), self.any_key(data), self.any_value(data)

        self.compare(
            lambda: self.model.update(key, value, flags), lambda: m.update(key, value, flags)
        )

    @rule(data=st.data())
    def delete(self, data):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(lambda: self.model.delete(key), lambda: m.delete(key))

    @rule(data=st.data(), flags=LOOKUP_FLAGS)
    def lookup_and_delete(self, data, flags):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(
            lambda: self.model.lookup_and_delete(key, flags),
            lambda: m.lookup_and_delete(key, flags),
        )

    @rule(
        data=st.data(),
        delta=st.integers(-(1 << 63), (1 << 63) - 1),
        default=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        offset=st.sampled_from([0, 0, 0, 8, 16, 24, 32]) | st.integers(0, 33),
    )
    def add(self, data, delta, default, offset):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(
            lambda: self.model.add(key, delta, default=default, offset=offset),
            lambda: m.add(key, delta, default=default, offset=offset),
        )

    @rule(data=st.data(), guess=st.sampled_from(["right", "wrong", "absent"]))
    def compare_and_swap(self, data, guess):
        m, key, new = self.any_handle(data), self.any_key(data), self.any_value(data)
        expected = None
        if guess == "wrong":
            expected = self.any_value(data)
        elif guess == "right":
            expected = self.model.pairs.get(key)

        self.compare(
            lambda: self.model.compare_and_swap(key, expected, new),
            lambda: m.compare_and_swap(key, expected, new),
        )

    @rule(data=st.data())
    def exchange(self, data):
        m, key, new = self.any_handle(data), self.any_key(data), self.any_value(data)

        self.compare(lambda: self.model.exchange(key, new), lambda: m.exchange(key, new))

    @rule(data=st.data())
    def setdefault(self, data):
        m, key, default = self.any_handle(data), self.any_key(data), self.any_value(data)

        self.compare(
            lambda: self.model.setdefault(key, default), lambda: m.setdefault(key, default)
        )

    @rule(data=st.data())
    def pop(self, data):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(lambda: self.model.lookup_and_delete(key), lambda: m.pop(key))

    @rule(data=st.data(), with_default=st.booleans())
    def update_with(self, data, with_default):
        m, key = self.any_handle(data), self.any_key(data)
        default = self.any_value(data) if with_default else None

        def turn_around(value):
            return bytes(byte ^ 0xFF for byte in reversed(value))

        self.compare(
            lambda: self.model.update_with(key, turn_around, default),
            lambda: m.update_with(key, turn_around, default),
        )

    @rule(data=st.data())
    def locked_many(self, data):
        """Swap the values of two keys; absent keys are refused."""
        m, keys = self.any_handle(data), sorted({self.any_key(data), self.any_key(data)})

        def on_model():
            values = [self.model.getitem(key) for key in keys]
            self.model.pairs.update(zip(keys, reversed(values), strict=True))

        def on_map():
            with m.locked_many(keys) as values:
                old = [bytes(value) for value in values]
                for value, new in zip(values, reversed(old), strict=True):
                    value[:] = new

        self.compare(on_model, on_map)

    @rule(data=st.data())
    def item_get(self, data):
        m, key, default = self.any_handle(data), self.any_key(data), object()

        self.compare(lambda: self.model.getitem(key), lambda: m[key])
        assert self.model.pairs.get(key, default) == m.get(key, default)

    @rule(data=st.data())
    def item_set(self, data):
        m, key, value = self.any_handle(data), self.any_key(data), self.any_value(data)

        self.compare(lambda: self.model.update(key, value), lambda: m.__setitem__(key, value))

    @rule(data=st.data())
    def item_delete(self, data):
        m, key = self.any_handle(data), self.any_key(data)

        self.compare(lambda: self.model.delete(key), lambda: m.__delitem__(key))

    @rule(data=st.data())
    def insert_many(self, data):
        m, value = self.any_handle(data), self.any_value(data)

        for key in self.keys:
            self.compare(
                lambda key=key: self.model.update(key, value, NOEXIST),
                lambda key=key: m.update(key, value, NOEXIST),
            )

    @rule(data=st.data())
    def delete_many(self, data):
        m, kept = self.any_handle(data), data.draw(st.integers(1, 5), label="every which is kept")

        for index, key in enumerate(self.keys):
            if index % kept or kept == 1:
                self.compare(lambda key=key: self.model.delete(key), lambda key=key: m.delete(key))

    @rule(data=st.data())
    def clear(self, data):
        self.model.clear()
        self.any_handle(data).clear()

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(read_only=st.booleans())
    def open_another(self, read_only):
        if read_only:
            with RHashMap.open(self.name, read_only=True) as m:
                self.compare_contents(m)
        else:
            self.handles.append(RHashMap.open(self.name))

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(data=st.data())
    def pickle_one(self, data):
        self.handles.append(pickle.loads(pickle.dumps(self.any_handle(data))))

    @rule(data=st.data())
    def close_one_and_reopen(self, data):
        m = self.any_handle(data)

        m.close()

        assert m.closed
        self.handles.remove(m)
        if not self.handles:
            self.handles.append(
                RHashMap.open_or_create(
                    self.name,
                    key_size=self.key_size,
                    value_size=self.value_size,
                    max_entries=self.max_entries,
                )
            )

    def compare_contents(self, m):
        assert len(self.model.pairs) == len(m)
        assert bool(self.model.pairs) == bool(m)
        for key in self.keys:
            assert self.model.pairs.get(key) == m.lookup(key)
            assert (key in self.model.pairs) == (key in m)

    @invariant()
    def same_contents_and_sound(self):
        self.steps += 1
        if self.handles and self.steps % CHECK_EVERY_STEPS == 0:
            m = self.handles[self.steps % len(self.handles)]
            self.compare_contents(m)
            m.check()


def run_machine(seed, name, geometry, examples, forced_seeds=None):
    key_size, value_size, max_entries = geometry
    attributes = {
        "name": name,
        "key_size": key_size,
        "value_size": value_size,
        "max_entries": max_entries,
        "forced_seeds": forced_seeds,
    }
    machine = type("MapAgainstModel", (MapAgainstModel,), attributes)
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    print(f"seed {seed}, geometry {geometry}, forced seeds {forced_seeds}")
    hypothesis.seed(seed)(get_state_machine_test(machine, settings=settings))()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g)))
def test_every_operation_agrees_with_the_model(seed, map_name, geometry):
    """W1, W2: random operations through several handles give the model's results and errnos."""
    run_machine(seed, map_name, geometry, examples=8)


@pytest.mark.parametrize("max_entries", [1, 7, 20, 64])
@pytest.mark.parametrize("forced_seeds", FORCED_SEEDS, ids=lambda s: f"{s[0]:x}-{s[1]:x}")
def test_colliding_keys_agree_with_the_model(seed, map_name, forced_seeds, max_entries):
    """W1, W2: maps whose seeds make all hashes equal, or nearly so, agree with the model."""
    run_machine(seed, map_name, (8, 8, max_entries), examples=4, forced_seeds=forced_seeds)


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g)))
def test_every_operation_agrees_with_the_model_for_long(seed, map_name, geometry):
    """W1, W2: many more random orders of operations give the model's results and errnos."""
    run_machine(seed, map_name, geometry, examples=300)
    if geometry[:2] == (8, 8):
        for forced_seeds in FORCED_SEEDS:
            run_machine(seed, map_name, geometry, examples=100, forced_seeds=forced_seeds)
