"""Histories of entries that expire: their operations, and processes that make them.

An entry is stored or touched with a time to live; its deadline is a time on the clock of the
histories, known to within the call that set it. So each history also has operations of the clock
itself, one for each deadline: between the earliest and the latest time of the deadline, an entry
that has it goes. Then W1 covers expiry: an entry is gone only after its deadline, and for all reads
after that; if renewed in time, it stays.

A refusal for lack of room (X1) concerns all keys at once: refused_wrongly() counts the entries that
can have been in the dict and alive.
"""

import os
import random
import time
from typing import NamedTuple

import shmrhash
from shmrhash import BPF_NOEXIST
from support.history import rounds
from support.history.checker import ABSENT, EXISTS, FULL, MISSING, OK, Operation, is_linearizable

START, END, CODE, NUMBER = range(4)
WORDS = 4
CODES = (None, OK, EXISTS, MISSING, FULL, ABSENT, "number")
TTLS_S = (0.00003, 0.0002, 0.001, 0.005, 3600.0)
STORES = ("store", "store_new", "touch")
MARK = 1 << 32


class Step(NamedTuple):
    name: str
    key: int
    number: int  # the number of the stored value, or of a touch's deadline
    ttl_s: float


class Timed(NamedTuple):
    """One call: a checker.Operation, the key, and the time to live that the call set."""

    operation: Operation
    key: int
    ttl_ns: int
    ended_ns: int  # when it had returned, or its process was found dead


class Entries:
    """The correct operations on a dict; the wrong dicts of the tests inherit from this."""

    def __init__(self, shared_dict):
        self.d = shared_dict

    def get(self, key):
        return self.d.get(key, ABSENT)

    def store(self, key, number, ttl_s):
        self.d.set(key, number, ttl=ttl_s)
        return OK

    def store_new(self, key, number, ttl_s):
        deadline_ns = time.monotonic_ns() + int(ttl_s * 1e9)
        return OK if self.d._put(key, number, BPF_NOEXIST, deadline_ns) else EXISTS

    def touch(self, key, ttl_s):
        return OK if self.d.touch(key, ttl_s) else MISSING

    def remove(self, key):
        try:
            del self.d[key]
        except KeyError:
            return MISSING
        return OK


def perform(entries, step):
    """Perform a step; its result is a number, or a word of checker.py."""
    try:
        if step.name in ("get", "remove"):
            return getattr(entries, step.name)(step.key)
        if step.name == "touch":
            return entries.touch(step.key, step.ttl_s)
        return getattr(entries, step.name)(step.key, step.number, step.ttl_s)
    except shmrhash.MapFull:
        return FULL


def plan(seed, slot, steps, keys):
    """The steps of a worker."""
    rng = random.Random(repr((seed, slot)))
    names = rng.choices(("get", "store", "store_new", "touch", "remove"), (4, 4, 2, 2, 1), k=steps)
    return [
        Step(name, rng.randrange(keys), (slot + 1) * MARK + at, rng.choice(TTLS_S))
        for at, name in enumerate(names)
    ]


class Round(rounds.Round):
    """A few concurrent processes, each with a few steps on the same keys; one may be killed."""

    def __init__(self, entries, seed, *, workers=3, steps=12, keys=8, kills=False):
        self.plans = [plan(seed, slot, steps, keys) for slot in range(workers)]
        self.entries = entries
        self.keys = keys
        rng = random.Random(repr(seed))
        deaths = [rng.uniform(0, 0.002) if kills and slot == 0 else 0 for slot in range(workers)]
        self.work_together(workers * steps * WORDS, deaths)

    def work(self, slot):
        at = 1 + slot * len(self.plans[slot]) * WORDS
        for step in self.plans[slot]:
            self.words[at + START] = time.monotonic_ns()
            result = perform(self.entries, step)
            end = time.monotonic_ns()
            number = result if isinstance(result, int) else 0
            self.words[at + CODE] = CODES.index("number" if number else result) if result else 5
            self.words[at + NUMBER] = number
            self.words[at + END] = end
            at += WORDS
            os.sched_yield()

    def history(self):
        """Return every call that began, and a final get of each key."""
        calls = []
        for slot, steps in enumerate(self.plans):
            at = 1 + slot * len(steps) * WORDS
            for step in steps:
                start, end, code, number = self.words[at : at + WORDS]
                at += WORDS
                if not start:
                    break
                result = number or CODES[code]
                ended = end or self.ended[slot]
                calls.append(timed(slot, step, result, start, end or None, ended))
        start = time.monotonic_ns()
        for key in range(self.keys):
            step = Step("get", key, 0, 0.0)
            result = perform(self.entries, step)
            end = time.monotonic_ns()
            calls.append(timed("recorder", step, result, start, end, end))
            start = end
        return calls


def timed(process, step, result, start, end, ended):
    arguments = {
        "get": (),
        "remove": (),
        "touch": (step.number,),
        "store": (step.number,),
        "store_new": (step.number,),
    }[step.name]
    name = step.name
    if result == FULL:
        name, arguments = "refused", ()
    ttl_ns = int(step.ttl_s * 1e9) if name in STORES else 0
    return Timed(Operation(process, name, arguments, result, start, end), step.key, ttl_ns, ended)


def is_right(calls, key):
    """Return whether an order explains the history of one key, with the operations of the
    clock.

    A pending call happened before its process was dead, or never; each key has one at most.
    """
    calls = [call for call in calls if call.key == key]
    done = [call for call in calls if not call.operation.pending]
    pending = [call for call in calls if call.operation.pending]
    happened = [
        call._replace(operation=call.operation._replace(result=OK, end=call.ended_ns))
        for call in pending
    ]
    return is_linearizable(with_clock(done)) or is_linearizable(with_clock(done + happened))


def with_clock(calls):
    """Return the operations, and the operations of the clock for the deadlines that they set."""
    found = [call.operation for call in calls]
    for at, call in enumerate(calls):
        if call.operation.name in STORES:
            start = call.operation.start + call.ttl_ns
            end = call.ended_ns + call.ttl_ns
            found.append(
                Operation(f"clock {at}", "expire", call.operation.arguments, OK, start, end)
            )
    return found


def refused_wrongly(calls, max_entries):
    """Return the refusals (X1) at which too few entries can have been in the dict and not yet
    expired.

    Each process with an operation during the refusal, or that died in one, can hold one more.
    """
    return [
        call
        for call in calls
        if call.operation.name == "refused"
        and most_alive(calls, call) + at_work(calls, call) < max_entries
    ]


def at_work(calls, refusal):
    start, end = refusal.operation.start, refusal.operation.end
    return len(
        {
            call.operation.process
            for call in calls
            if call.operation.process != refusal.operation.process
            and call.operation.start <= end
            and (call.operation.end is None or call.operation.end >= start)
        }
    )


def most_alive(calls, refusal):
    """Return how many keys can have had an entry during the refusal that was alive when it
    began."""
    start, end = refusal.operation.start, refusal.operation.end
    keys = {
        call.key
        for call in calls
        if call.operation.name in STORES
        and call.operation.result in (OK, None)
        and call.operation.start <= end
        and call.ended_ns + call.ttl_ns >= start
        and not was_gone(calls, call, start)
    }
    return len(keys)


def was_gone(calls, stored, before):
    """Return whether a call after `stored` and before that time found that the entry was gone."""
    return any(
        call.key == stored.key
        and call.operation.start > stored.ended_ns
        and call.ended_ns < before
        and not call.operation.pending
        and says_gone(call.operation)
        for call in calls
    )


def says_gone(operation):
    if operation.name == "remove":
        return True
    return (operation.name, operation.result) in (("touch", MISSING), ("get", ABSENT))
