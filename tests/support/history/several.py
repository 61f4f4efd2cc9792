"""Processes that change several keys in one step, and histories of all keys together.

checker.py judges a register. Here the register holds the values of all keys, as a tuple. A step
that locks all keys (by locked_many()), or one key, reads and writes the register. Lookups take no
lock; they are judged key by key, with each change of all keys as one of each key (each_key).
"""

import random
import time
from typing import NamedTuple

from support.history import rounds
from support.history.checker import Operation
from support.words import word

START, END, KIND, RESULT = 0, 1, 2, 3  # the words of one step; the results follow
DONE = 1
MARK = 1 << 20  # a value is MARK times the worker's number, and the number of the step


class Step(NamedTuple):
    """A step of a worker: all keys or the key `at` get values that no other step stores."""

    name: str
    at: int
    new: int


def plan(seed, slot, steps, keys):
    rng = random.Random(repr((seed, slot)))
    names = rng.choices(
        ("exchange_all", "look_at_all", "exchange_one", "lookup"), (4, 2, 1, 2), k=steps
    )
    return [
        Step(name, rng.randrange(keys), (slot + 1) * MARK + number * 16)
        for number, name in enumerate(names)
    ]


class Values:
    """The keys of a map, locked in different orders; each value is one number, repeated."""

    def __init__(self, handle, keys, size):
        self.handle = handle
        self.keys = [word(key) for key in range(keys)]
        self.size = size

    def encode(self, number):
        return word(number) * (self.size // 8)

    def decode(self, value):
        assert value == value[:8] * (self.size // 8), "a mixture of values"
        return int.from_bytes(value[:8], "little")

    def perform(self, step):
        """Return the numbers that were found, of all keys or of one."""
        if step.name == "lookup":
            return [self.decode(self.handle.lookup(self.keys[step.at]))]
        if step.name == "exchange_one":
            new = self.encode(step.new)
            return [self.decode(self.handle.exchange(self.keys[step.at], new))]
        order = self.keys[step.at :] + self.keys[: step.at]
        with self.handle.locked_many(order) as values:
            found = dict(zip(order, map(bytes, values), strict=True))
            for key, value in zip(order, values, strict=True):
                if step.name == "look_at_all":
                    value.roll_back()
                else:
                    value[:] = self.encode(step.new + self.keys.index(key))
        return [self.decode(found[key]) for key in self.keys]


class Round(rounds.Round):
    """A few processes, each with a few steps on the same keys; some are killed in the middle."""

    def __init__(self, values, seed, *, workers=3, steps=10, kills=True):
        count = len(values.keys)
        self.values = values
        self.words_of_step = RESULT + count
        self.plans = [plan(seed, slot, steps, count) for slot in range(workers)]
        for at, key in enumerate(values.keys):
            values.handle[key] = values.encode(at + 1)
        self.initial = tuple(at + 1 for at in range(count))
        rng = random.Random(repr(seed))
        deaths = [rng.uniform(0.0002, 0.002) if kills and slot else 0 for slot in range(workers)]
        self.work_together(workers * steps * self.words_of_step, deaths)

    def work(self, slot):
        at = self.first(slot)
        for step in self.plans[slot]:
            self.words[at + START] = time.monotonic_ns()
            for number, result in enumerate(self.values.perform(step)):
                self.words[at + RESULT + number] = result
            self.words[at + END] = time.monotonic_ns()
            self.words[at + KIND] = DONE
            at += self.words_of_step

    def first(self, slot):
        return 1 + slot * len(self.plans[slot]) * self.words_of_step

    def history(self):
        """All operations, and at the end a look at all keys, which recovers the dead."""
        found = []
        for slot, steps in enumerate(self.plans):
            at = self.first(slot)
            for step in steps:
                if self.words[at + START]:
                    found.append(self.operation(slot, step, at))
                at += self.words_of_step
        begin = time.monotonic_ns()
        last = self.values.perform(Step("look_at_all", 0, 0))
        found.append(Operation("end", "look_at_all", (), tuple(last), begin, time.monotonic_ns()))
        return found

    def operation(self, slot, step, at):
        count = len(self.values.keys)
        done = self.words[at + KIND] == DONE
        results = tuple(self.words[at + RESULT + number] for number in range(count))
        arguments = {
            "exchange_all": (tuple(step.new + number for number in range(count)),),
            "look_at_all": (),
            "exchange_one": (step.at, step.new),
            "lookup": (step.at,),
        }[step.name]
        result = results if step.name in ("exchange_all", "look_at_all") else results[0]
        end = self.words[at + END] if done else None
        return Operation(slot, step.name, arguments, result if done else None, self.words[at], end)


def of_all_keys(history):
    """Return the operations that lock: a history of the register that holds all values."""
    return [operation for operation in history if operation.name != "lookup"]


def of_one_key(history, key):
    """Return what the operations do to one key: a history of its register, lookups included."""
    found = []
    for operation in history:
        result = operation.result
        if operation.name == "exchange_all":
            new = operation.arguments[0][key]
            old = None if operation.pending else result[key]
            found.append(operation._replace(name="exchange", arguments=(new,), result=old))
        elif operation.name == "look_at_all":
            old = None if operation.pending else result[key]
            found.append(operation._replace(name="lookup", arguments=(), result=old))
        elif operation.arguments[0] == key:
            name = "lookup" if operation.name == "lookup" else "exchange"
            found.append(operation._replace(name=name, arguments=operation.arguments[1:]))
    return found
