"""Every operation against a plain dict, in random orders that hypothesis generates."""

import contextlib
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import shmrhash
from shmrhash import SharedDict

HANDLES_MAX = 4
CHECK_EVERY_STEPS = 7
ROOM = 12

texts = st.sampled_from(["", "a", "b", "k" * 15, "k" * 16, "k" * 17, "ä" * 8, "long " * 100])
plain = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, True, "1", b"1", 2**80])
objects = plain | st.tuples(plain, plain) | st.frozensets(plain, max_size=2)
blobs = st.sampled_from([0, 1, 8, 15, 16, 90, 1000, 5000, 70_000]).flatmap(
    lambda size: st.integers(0, 255).map(lambda byte: bytes([byte]) * size)
)

# Declared types, with strategies for their keys and values.
TYPES = {
    "str to int": (str, int, texts, st.integers(-(2**63), 2**63 - 1)),
    "str to bytes": (str, bytes, texts, blobs),
    "int to str": (int, str, st.integers(-5, 20), texts),
    "object to object": (object, object, objects, st.lists(plain, max_size=3)),
    "bytes to struct": (
        bytes,
        "<qd",
        blobs.map(lambda b: b[:5000]),
        st.tuples(st.integers(-5, 5), st.floats(allow_nan=False)),
    ),
    "struct to object": ("<HH", object, st.tuples(st.integers(0, 3), st.integers(0, 3)), blobs),
}


def outcome(action):
    """Return the result of an operation, or KeyError if it raised one."""
    try:
        return action()
    except KeyError:
        return KeyError


class DictAgainstDict(RuleBasedStateMachine):
    """One SharedDict through several handles, and the dict to which it must be equal."""

    name = None
    types = None
    ttl = None

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.handles = []

    @initialize()
    def create(self):
        key, value, self.key_strategy, self.value_strategy = self.types
        # max_bytes is small because AddressSanitizer needs tenths of a second to unmap a terabyte.
        limits = {"max_entries": ROOM, "max_bytes": 1 << 24}
        options = {"key": key, "value": value, "ttl": self.ttl, **limits}
        self.options = options
        self.model = {}
        self.handles = [SharedDict.create(self.name, **options)]

    def teardown(self):
        for d in self.handles:
            d.close()
        with contextlib.suppress(shmrhash.SegmentMissing):
            shmrhash.unlink(self.name)

    def draw(self, data):
        handle = self.handles[data.draw(st.integers(0, len(self.handles) - 1), label="handle")]
        return handle, data.draw(self.key_strategy, label="key")

    def store(self, data, write, key, value):
        """Store the entry in the dict and in the model; the model, too, refuses a new key if the
        dict is full."""
        if key not in self.model and len(self.model) == ROOM:
            with pytest.raises(shmrhash.MapFull):
                write()
        else:
            write()
            self.model[key] = value

    @rule(data=st.data())
    def set_item(self, data):
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        self.store(data, lambda: d.__setitem__(key, value), key, value)

    @rule(data=st.data())
    def set_with_ttl(self, data):
        if self.ttl is None:
            return
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        self.store(data, lambda: d.set(key, value, ttl=1000), key, value)

    @rule(data=st.data())
    def read(self, data):
        d, key = self.draw(data)
        assert outcome(lambda: d[key]) == outcome(lambda: self.model[key])
        assert d.get(key) == self.model.get(key)
        assert d.get(key, "default") == self.model.get(key, "default")
        assert (key in d) == (key in self.model)

    @rule(data=st.data())
    def delete(self, data):
        d, key = self.draw(data)
        assert outcome(lambda: d.__delitem__(key)) == outcome(lambda: self.model.__delitem__(key))

    @rule(data=st.data(), with_default=st.booleans())
    def pop(self, data, with_default):
        d, key = self.draw(data)
        default = ["default"] if with_default else []
        found = outcome(lambda: d.pop(key, *default))
        assert found == outcome(lambda: self.model.pop(key, *default))

    @rule(data=st.data())
    def setdefault(self, data):
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        if key not in self.model and len(self.model) == ROOM:
            with pytest.raises(shmrhash.MapFull):
                d.setdefault(key, value)
        else:
            assert d.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(data=st.data())
    def exchange(self, data):
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        assert outcome(lambda: d.exchange(key, value)) == self.model.get(key, KeyError)
        if key in self.model:
            self.model[key] = value

    @rule(data=st.data(), raises=st.booleans())
    def change_in_section(self, data, raises):
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        seen = []

        def change(old):
            seen.append(old)
            if raises:
                raise ZeroDivisionError
            return value

        if key not in self.model:
            assert outcome(lambda: d.update_with(key, change)) is KeyError
        elif raises:
            with pytest.raises(ZeroDivisionError):
                d.update_with(key, change)
            assert seen == [self.model[key]]
        else:
            assert d.update_with(key, change) == value
            assert seen == [self.model[key]]
            self.model[key] = value

    @rule(data=st.data())
    def delete_in_section(self, data):
        d, key = self.draw(data)
        try:
            with d.locked(key) as entry:
                entry.delete()
        except KeyError:
            assert key not in self.model
        else:
            del self.model[key]

    @rule(data=st.data())
    def conditional_store(self, data):
        d, key = self.draw(data)
        value = data.draw(self.value_strategy, label="value")
        there = key in self.model
        assert d._put(key, value, shmrhash.BPF_EXIST) == there
        if there:
            self.model[key] = value
            assert not d._put(key, value, shmrhash.BPF_NOEXIST)

    @rule(data=st.data())
    def popitem(self, data):
        d, _ = self.draw(data)
        if not self.model:
            assert outcome(d.popitem) is KeyError
        else:
            key, value = d.popitem()
            assert self.model.pop(key) == value

    @rule(data=st.data())
    def update(self, data):
        d, _ = self.draw(data)
        pairs = data.draw(
            st.dictionaries(self.key_strategy, self.value_strategy, max_size=3), label="pairs"
        )
        if len(self.model.keys() | pairs.keys()) <= ROOM:
            d.update(pairs)
            self.model.update(pairs)

    @rule(data=st.data())
    def clear(self, data):
        if data.draw(st.integers(0, 4), label="seldom") == 0:
            self.handles[0].clear()
            self.model.clear()

    @rule(how=st.sampled_from(["open", "pickle", "again"]))
    def another_handle(self, how):
        if len(self.handles) == HANDLES_MAX:
            self.handles.pop(1).close()
        if how == "open":
            self.handles.append(SharedDict.open(self.name, trust=True))
        elif how == "pickle":
            self.handles.append(pickle.loads(pickle.dumps(self.handles[0])))
        else:
            self.handles.append(SharedDict(self.name, **self.options))

    @invariant()
    def both_are_the_same(self):
        if not self.handles:
            return
        d = self.handles[-1]
        assert len(d) == len(self.model)
        assert d == self.model
        assert self.model == d
        assert d.copy() == self.model
        assert set(d) == set(self.model)
        self.steps += 1
        if self.steps % CHECK_EVERY_STEPS == 0:
            d.check()
        if not self.model and self.options["value"] is not int:
            assert d.info()["objects"]["bytes_in_use"] == 0


@pytest.mark.parametrize("examples", [3, pytest.param(15, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("ttl", [pytest.param(None, marks=pytest.mark.thorough), 3600.0])
@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
def test_any_sequence_of_operations_has_the_results_of_a_dict(map_name, types, ttl, examples):
    """W1, W2, C1: random sequences of all operations, through several handles and with all kinds of
    types, have the results of a plain dict, and leak nothing."""
    machine = type("Machine", (DictAgainstDict,), {"name": map_name, "types": types, "ttl": ttl})
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=settings)
