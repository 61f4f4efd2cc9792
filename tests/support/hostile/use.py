"""Uses a map that may be damaged: every public operation, in an order drawn from a seed.

Every result of an operation must have the type of its results, and every exception must be a
shmrhash.Error. Anything else leaves use() as an exception.
"""

import contextlib
import itertools
import os
import pickle

import shmrhash

ENTRIES_MAX = 20_000  # more entries than any image has


class Misbehaved(Exception):
    """An operation returned an invalid result."""


def expect(condition, what):
    if not condition:
        raise Misbehaved(what)


def write_while_walking(mapping, user):
    for key in itertools.islice(mapping, 200):
        if user.rng.random() < 0.2:
            mapping[key] = user.value
        elif user.rng.random() < 0.2:
            mapping.pop(key, None)


class User:
    """One handle, and the steps that use it."""

    def __init__(self, shared_map, image, rng):
        self.map, self.image, self.rng = shared_map, image, rng

    @property
    def key(self):
        number = self.rng.choice((self.rng.randrange(12), self.rng.randrange(2000)))
        return self.image.key(number)

    @property
    def value(self):
        return self.image.value(self.rng.randrange(100))

    def keys(self):
        return b"".join(self.key for _ in range(self.rng.choice((1, 5, 30))))

    def expect_value(self, value):
        expect(value is None or (type(value) is bytes and len(value) == self.map.value_size), value)

    def lookup(self):
        for _ in range(5):
            self.expect_value(self.map.lookup(self.key))
        self.expect_value(self.map.lookup(self.key, shmrhash.BPF_F_LOCK))
        expect(type(self.key in self.map) is bool, "in")
        self.expect_value(self.map.get(self.key))

    def update(self):
        for _ in range(3):
            self.map[self.key] = self.value
        self.map.update(self.key, self.value, self.rng.choice((0, 1, 2, 4)))

    def insert(self):
        for number in range(3000, 3000 + self.rng.choice((1, 10, 80))):
            self.map[self.image.key(number)] = self.value

    def delete(self):
        for _ in range(5):
            with contextlib.suppress(shmrhash.KeyNotFound):
                del self.map[self.key]
        self.expect_value(self.map.pop(self.key, None))
        self.expect_value(self.map.lookup_and_delete(self.key, self.rng.choice((0, 4))))

    def modify(self):
        if self.map.value_size >= 8:
            offset = self.rng.choice((0, self.map.value_size - 8, (self.map.value_size - 8) // 2))
            expect(type(self.map.add(self.key, 1, default=0, offset=offset)) is int, "add")
        if self.map.value_size >= 4:
            self.map.max(self.key, 3, default=0, fmt="i")
            self.map.or_(self.key, 3, default=0, fmt="I")
        self.map.compare_and_swap(self.key, self.value, self.value)
        self.map.compare_and_swap(self.key, None, self.value)
        self.expect_value(self.map.setdefault(self.key, self.value))
        self.expect_value(self.map.exchange(self.key, self.value))

    def iterate(self):
        count = sum(1 for _ in itertools.islice(self.map.items(), ENTRIES_MAX))
        expect(count < ENTRIES_MAX, f"{count} entries")
        expect(all(len(key) == self.map.key_size for key in self.map), "keys")
        self.expect_value(next(iter(self.map.values()), None))
        self.map.get_next_key(self.key)
        self.map.get_next_key()

    def iterate_and_write(self):
        write_while_walking(self.map, self)

    def batches(self):
        cursor, count = None, self.rng.choice((1, 7, 500))
        for _ in range(20):
            batch = self.map.lookup_batch(cursor, count)
            cursor = batch.cursor
            if cursor is None:
                break
        self.map.lookup_and_delete_batch(None, self.rng.choice((1, 20)))
        self.map.update_batch(self.keys()[: self.map.key_size], self.value)
        self.map.delete_batch(self.keys()[: self.map.key_size])

    def many(self):
        keys = self.keys()
        self.map.lookup_many(keys)
        self.map.contains_many(keys)
        self.map.update_many(keys, self.value * (len(keys) // self.map.key_size))
        self.map.delete_many(self.keys())

    def sections(self):
        with self.map.locked(self.key, default=self.rng.choice((None, self.value))) as section:
            section[0:1] = b"\x01"
            self.rng.choice((section.delete, section.roll_back, lambda: None))()
        self.map.update_with(self.key, lambda value: value)
        with self.map.locked_many([self.image.key(1), self.image.key(2)]):
            self.map.lookup(self.key)
            self.map[self.key] = self.value

    def look(self):
        expect(0 <= len(self.map) <= self.map.max_entries, len(self.map))
        expect(type(repr(self.map)) is str, "repr")
        for _ in itertools.islice(self.map.walk(), 3000):
            pass
        self.map._facts()
        self.map._processes()
        self.map._check()
        expect(type(self.map.frozen) is bool, "frozen")

    def look_at_all(self):
        self.map.info()
        self.map.mem_usage()
        self.map.check()

    def read_all(self):
        self.map.to_arrays()
        self.map.for_each(lambda key, value: 0)

    def second_handle(self):
        with pickle.loads(pickle.dumps(self.map)) as other:
            other.lookup(self.key)
            other[self.key] = self.value

    def collect(self):
        shmrhash.gc()

    def clear(self):
        self.map.clear()

    def freeze(self):
        self.map.freeze()


USUAL = [User.lookup, User.update, User.insert, User.delete, User.modify, User.iterate, User.look]
USUAL += [User.batches, User.many, User.sections, User.iterate_and_write]
SELDOM = [User.look_at_all, User.read_all, User.second_handle, User.collect, User.clear]
SELDOM += [User.freeze]


def use(name, image, rng):
    """Open the map and perform steps drawn by rng; return how many ended without an exception."""
    shared_map = opened(name, rng)
    if shared_map is None:
        return 0
    with shared_map:
        user = User(shared_map, image, rng)
        steps = rng.sample(USUAL, rng.randrange(2, 7))
        if rng.random() < 0.4:
            steps.append(rng.choice(SELDOM))
        return answers(user, steps)


def opened(name, rng):
    """Return the map, or None if opening it raised a documented error."""
    mode = rng.choice(({},) * 12 + ({"read_only": True}, {"write_only": True}))
    try:
        return shmrhash.RHashMap.open(name, timeout=rng.choice((0, 0, 0.002)), **mode)
    except shmrhash.Error:
        return None


def answers(user, steps, documented=shmrhash.Error):
    """Return how many steps ended without a documented exception."""
    answered = 0
    for step in steps:
        trace(step.__name__)
        with contextlib.suppress(documented):
            step(user)
            answered += 1
    trace("close")
    return answered


def trace(what):
    """Print the next step if HOSTILE_TRACE is set, which shows the place of a crash."""
    if "HOSTILE_TRACE" in os.environ:
        print(what, flush=True)
