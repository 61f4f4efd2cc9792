"""Uses a dict, or a map with special fields, that may be damaged; see use.py.

Nothing is unpickled: a damaged pickle may do anything, and a program that unpickles has decided to
trust the other writers. The pickle's bytes are returned instead. msgspec.ValidationError, for a
field of a message with another type than its class says, is documented, and is no failure.
"""

import contextlib
import io
import itertools
import pickle
import types
from unittest import mock

import msgspec
import numpy as np

import shmrhash
from shmrhash import SharedDict
from shmrhash.cli import app
from support.hostile.object_images import DICTS, Pair, Sample, key_of, value_of
from support.hostile.use import (
    ENTRIES_MAX,
    SELDOM,
    USUAL,
    User,
    answers,
    expect,
    opened,
    trace,
    write_while_walking,
)

NOT_UNPICKLED = types.SimpleNamespace(**(vars(pickle) | {"loads": bytes}))
PLAIN = (str, bytes, int, float, bool, object)
DOCUMENTED = (shmrhash.Error, msgspec.ValidationError)
NEVER = object()


class DictUser:
    """One handle of a dict, and the steps that use it."""

    def __init__(self, d, image, rng):
        self.dict, self.image, self.rng = d, image, rng
        self.kind = image.kind
        self.value_type = DICTS[self.kind][1]
        self.kept = []

    @property
    def key(self):
        return key_of(self.kind, self.rng.choice((self.rng.randrange(60), self.rng.randrange(500))))

    @property
    def value(self):
        return value_of(self.kind, self.rng.randrange(40))

    def expect_value(self, value):
        wanted = self.value_type
        if value is NEVER or wanted is object:
            return
        if isinstance(wanted, type):
            expect(type(value) is wanted, f"{value!r:.80} is no {wanted.__name__}")
        elif isinstance(wanted, str):
            expect(isinstance(value, tuple) and len(value) == 2, f"{value!r:.80}")
        elif isinstance(wanted, shmrhash.Array):
            expect(isinstance(value, np.ndarray) and value.dtype == wanted.dtype, f"{value!r:.80}")
            value.sum()  # this reads every byte of the array
        else:
            expect(value.dtype == wanted, f"{value!r:.80}")

    def lookup(self):
        for _ in range(5):
            self.expect_value(self.dict.get(self.key, NEVER))
        expect(type(self.key in self.dict) is bool, "in")
        with contextlib.suppress(shmrhash.KeyNotFound):
            self.expect_value(self.dict[self.key])
        with contextlib.suppress(shmrhash.KeyNotFound):
            left = self.dict.ttl(self.key)
            expect(left is None or left >= 0, left)

    def store(self):
        for _ in range(4):
            self.dict[self.key] = self.value
        self.expect_value(self.dict.setdefault(self.key, self.value))
        expect(type(self.dict._put(self.key, self.value, self.rng.randrange(3))) is bool, "store")

    def grow(self):
        for number in range(100, 100 + self.rng.choice((5, 40, 400))):
            self.dict[key_of(self.kind, number)] = value_of(self.kind, number)

    def delete(self):
        for _ in range(5):
            with contextlib.suppress(shmrhash.KeyNotFound):
                del self.dict[self.key]
        for _ in range(3):
            self.expect_value(self.dict.pop(self.key, NEVER))

    def pop_items(self):
        with contextlib.suppress(shmrhash.KeyNotFound):
            for _ in range(self.rng.choice((1, 3, 100))):
                _, value = self.dict.popitem()
                self.expect_value(value)

    def walk(self):
        for _, value in itertools.islice(self.dict.items(), ENTRIES_MAX):
            self.expect_value(value)
        count = sum(1 for _ in itertools.islice(self.dict, ENTRIES_MAX))
        expect(count < ENTRIES_MAX, f"{count} entries")
        for value in self.dict.values():
            self.expect_value(value)

    def walk_and_write(self):
        write_while_walking(self.dict, self)

    def sections(self):
        with self.dict.locked(self.key, default=self.value) as entry:
            self.expect_value(entry.value)
            self.rng.choice((entry.delete, entry.roll_back, lambda: None))()
        with contextlib.suppress(shmrhash.KeyNotFound):
            self.dict.update_with(self.key, lambda value: value)
        with contextlib.suppress(shmrhash.KeyNotFound):
            self.expect_value(self.dict.exchange(self.key, self.value))
        with self.dict.locked(self.key, default=self.value) as entry:
            entry.value = self.value
            self.dict.get(self.key)
            self.dict[self.key + "x" if isinstance(self.key, str) else self.key] = self.value

    def views(self):
        """Hold views while their keys are updated or deleted."""
        if self.value_type in (bytes, str) or isinstance(self.value_type, shmrhash.Array):
            for _ in range(self.rng.choice((1, 5, 30))):
                with contextlib.suppress(shmrhash.KeyNotFound):
                    key = self.key
                    self.kept.append(self.dict.view(key))
                    bytes(self.kept[-1])
                    if self.rng.random() < 0.5:
                        self.dict[key] = self.value
                    elif self.rng.random() < 0.5:
                        self.dict.pop(key, None)
            del self.kept[: self.rng.randrange(len(self.kept) + 1)]

    def add(self):
        if self.value_type in (int, float):
            expect(type(self.dict.add(self.key, 1, default=0)) is self.value_type, "add")

    def expire(self):
        expect(self.dict.expire() >= 0, "expire")
        if DICTS[self.kind][2] is not None:
            expect(type(self.dict.touch(self.key, ttl=5)) is bool, "touch")
            self.dict.set(self.key, self.value, ttl=1e-6)
            self.dict.set(self.key, self.value, ttl=1e-6)

    def look(self):
        expect(0 <= len(self.dict) <= self.dict.max_entries, len(self.dict))
        self.dict.handle._facts()
        self.dict.handle._objects()
        self.dict.handle._check()
        expect(type(self.dict.handle.schema) is bytes, "schema")

    def look_at_all(self):
        expect(type(repr(self.dict)) is str, "repr")
        self.dict.info()
        self.dict.check()

    def second_handle(self):
        with pickle.loads(pickle.dumps(self.dict)) as other:
            other.get(self.key)
            other[self.key] = self.value

    def compare(self):
        if isinstance(self.value_type, shmrhash.Array):
            return  # as with a dict, == of arrays is neither true nor false
        expect(type(self.dict == self.dict.copy()) is bool, "==")

    def clear(self):
        self.dict.clear()

    def freeze(self):
        self.dict.freeze()


DICT_USUAL = [DictUser.lookup, DictUser.store, DictUser.grow, DictUser.delete, DictUser.walk]
DICT_USUAL += [DictUser.sections, DictUser.views, DictUser.add, DictUser.expire, DictUser.look]
DICT_USUAL += [DictUser.walk_and_write, DictUser.pop_items]
DICT_SELDOM = [DictUser.look_at_all, DictUser.second_handle, DictUser.compare, DictUser.clear]
DICT_SELDOM += [DictUser.clear, DictUser.freeze]


class FieldUser(User):
    """A handle of a map with special fields."""

    offset = property(lambda self: self.rng.choice((8, 24)))

    def exchange_kptrs(self):
        for _ in range(4):
            data = self.rng.choice((None, bytes(self.rng.choice((0, 7, 100, 5000, 30_000)))))
            with contextlib.suppress(shmrhash.KeyNotFound):
                before = self.map.kptr_xchg(self.key, data, self.offset)
                expect(before is None or type(before) is bytes, "kptr_xchg")

    def get_kptrs(self):
        for _ in range(8):
            with contextlib.suppress(shmrhash.KeyNotFound):
                before = self.map.kptr_get(self.key, self.offset)
                expect(before is None or type(before) is bytes, "kptr_get")

    def expire(self):
        self.map.timer_set(self.key, self.rng.choice((0, 1, 1 << 62)))
        expect(self.map.expire() >= 0, "expire")

    def count(self):
        with contextlib.suppress(shmrhash.KeyNotFound):
            self.map.add(self.key, 1, offset=32, fmt="I")


FIELD_STEPS = [FieldUser.exchange_kptrs, FieldUser.get_kptrs, FieldUser.expire, FieldUser.count]


def export(name, rng):
    """Run a command on the map; accept any exit status below 128, and no exception."""
    verb = rng.choice(
        (["export", name, "-", "--format", "snapshot"], ["dump", name], ["show", name])
    )
    out = io.TextIOWrapper(io.BytesIO())
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO())),
    ):
        status = app.run(verb)
    expect(0 <= status < 128, f"status {status}")


def use_object(name, image, rng):
    """Do with an ObjectImage what use.use() does with an Image."""
    with (
        mock.patch.multiple("shmrhash._types.declared", pickle=NOT_UNPICKLED),
        mock.patch.multiple("shmrhash._types.keys", pickle=NOT_UNPICKLED),
    ):
        if rng.random() < 0.03:
            trace("export")
            export(name, rng)
        if image.kind == "map" or rng.random() < 0.1:
            return use_fields(name, image, rng)
        return use_dict(name, image, rng)


def use_fields(name, image, rng):
    shared_map = opened(name, rng)
    if shared_map is None:
        return 0
    with shared_map:
        user = FieldUser(shared_map, image, rng)
        steps = rng.sample(USUAL, 3) + (rng.sample(FIELD_STEPS, 3) if image.kind == "map" else [])
        rng.shuffle(steps)
        if rng.random() < 0.4:
            steps.append(rng.choice(SELDOM))
        return answers(user, steps)


def opened_dict(name, image, rng):
    """Return the dict, or None if opening it raised a documented error."""
    key, value, *_ = DICTS[image.kind]
    declared = {"key": key, "value": value}
    if rng.random() < 0.3 and value not in (Pair, Sample):
        declared = {"trust": True}
    try:
        return SharedDict.open(
            name,
            timeout=rng.choice((0, 0, 0.002)),
            read_only=rng.random() < 0.1,
            **declared,
        )
    except shmrhash.Error:
        return None


def use_dict(name, image, rng):
    d = opened_dict(name, image, rng)
    if d is None:
        return 0
    user = DictUser(d, image, rng)
    if (d.key_type, d.value_type) != DICTS[image.kind][:2]:
        d.close()  # it was opened with the valid schema of another dict
        return 1
    try:
        steps = rng.sample(DICT_USUAL, rng.randrange(2, 8))
        if rng.random() < 0.4:
            steps.append(rng.choice(DICT_SELDOM))
        return answers(user, steps, DOCUMENTED)
    finally:
        d.close()
        user.kept.clear()
