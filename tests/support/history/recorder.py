"""Processes that operate on a few keys concurrently, and the histories of their operations.

A Recorder forks workers that live through many batches of short histories. In each history every
worker performs a few random operations on the same few keys; all workers wait for each other before
it. When a batch is over the recorder reads every key, and returns a history of each key for
checker.py.

    with Recorder(shared_map, setting, seed) as recorder:
        recorder.judge()    # runs a batch; raises NotLinearizable

The operations of a worker follow from the seed, so they need not be logged. The worker logs, in
shared memory that outlives it, the start of each operation, its result and its end. A worker that
is killed leaves an operation that began and never returned. All times are CLOCK_MONOTONIC.
"""

import contextlib
import gc
import itertools
import mmap
import os
import random
import select
import signal
import time
import traceback
from functools import partial
from typing import NamedTuple

import shmrhash
from support.children import Child
from support.history.checker import (
    ABSENT,
    EXISTS,
    MISSING,
    OK,
    Operation,
    essence,
    is_linearizable,
    rendered,
)

ANY, NOEXIST, EXIST = 0, 1, 2

STOP, KILL = "stop", "kill"

HISTORIES_MAX = 64  # in one batch
STEPS_MAX = 64  # by one worker in one history
KEYS_MAX = 5
FILLER_BASE = 1 << 24  # keys that are inserted and deleted beside those of the histories
FILLERS_MAX = 1 << 10  # by one worker
FILLERS_AT_ONCE = 20

PATIENCE_S = 30.0  # the longest time of one batch on a busy machine
STOPPED_S_MAX = 0.002  # how long other workers wait for a stopped worker's locks
GONE = (1 << 62) - 1  # the place of a dead worker, for which the others do not wait
PR_SET_PDEATHSIG = 1


class Setting(NamedTuple):
    """The properties of the histories of one test."""

    workers: int = 2
    histories: int = 8  # in a batch
    steps: int = 8  # of each worker in each history
    key_size: int = 8
    value_size: int = 24
    counter_at: int | None = None  # the offset of the counter in each value; None: no counters
    colliding: bool = False  # all keys have one hash
    fillers: int = 0  # keys that each worker inserts and deletes between its operations
    signals: str | None = None  # STOP or KILL for workers at random moments

    def geometry(self):
        """Return arguments for create(). There is always room, also for elements that dead
        processes hold."""
        geometry = {
            "key_size": self.key_size,
            "value_size": self.value_size,
            "max_entries": self.histories * KEYS_MAX + self.workers * (self.fillers + 2) + 100,
        }
        return geometry | {"_seeds": (0, 0)} if self.colliding else geometry

    def codec(self):
        if self.counter_at is None:
            return Repeated(self.value_size)
        return Counter(self.value_size, self.counter_at)


class Record(NamedTuple):
    """The operations on one key in one history."""

    history: int
    key: int
    initial: int | None
    operations: list


class NotLinearizable(AssertionError):
    """No order of the operations on some key explains their results."""


class Torn(Exception):
    """A value that is not the encoding of any number."""

    def __init__(self, value):
        words = [value[at : at + 8] for at in range(0, len(value), 8)]
        runs = [(word.hex(), len(list(same))) for word, same in itertools.groupby(words)]
        super().__init__(", ".join(f"{count} x {word}" for word, count in runs))


class Repeated:
    """A value is one 8-byte number, repeated, so that a mixture of two values shows."""

    def __init__(self, size):
        self.times = size // 8
        if size % 8:
            raise ValueError(f"{size} bytes are not a multiple of 8")

    def encode(self, number):
        return number.to_bytes(8, "little") * self.times

    def decode(self, value):
        if value != value[:8] * self.times:
            raise Torn(value)
        return int.from_bytes(value[:8], "little")


class Counter:
    """A value is one signed 8-byte number among bytes that never change."""

    FILL = b"\xab"

    def __init__(self, size, offset):
        self.before = self.FILL * offset
        self.after = self.FILL * (size - offset - 8)
        self.offset = offset

    def encode(self, number):
        return self.before + number.to_bytes(8, "little", signed=True) + self.after

    def decode(self, value):
        number = int.from_bytes(value[self.offset : self.offset + 8], "little", signed=True)
        if value != self.encode(number):
            raise Torn(value)
        return number


# ---- the operations ----


class Step(NamedTuple):
    """One operation of a worker: its name in checker.py, its key and its arguments."""

    name: str
    key: int
    arguments: tuple


class Signal(NamedTuple):
    """One worker stops or kills another, before one of its own steps."""

    sender: int
    receiver: int
    step: int


# The operations of every map, and those of some maps; each step has a method's name.
BASIC = ("lookup", "contains", "update", "insert", "replace", "delete", "lookup_and_delete")
OPTIONAL = ("compare_and_swap", "exchange", "setdefault", "pop", "locked")
# An expected value that no key ever has, for a compare_and_swap that must not swap.
NEVER = (1 << 61) - 1


class Calls:
    """The operations of one handle as calls on encoded keys and values."""

    def __init__(self, handle, setting, codec):
        self.handle = handle
        self.key_size = setting.key_size
        self.codec = codec

    def prepared(self, step):
        """Return a call without arguments or, for compare_and_swap, with the expected number."""
        handle, encode = self.handle, self.codec.encode
        key = step.key.to_bytes(self.key_size, "little")
        match step.name:
            case "lookup" | "delete" | "lookup_and_delete" | "pop":
                return partial(getattr(handle, step.name), key)
            case "contains":
                return partial(handle.__contains__, key)
            case "update":
                return partial(handle.update, key, encode(*step.arguments))
            case "insert":
                return partial(handle.update, key, encode(*step.arguments), NOEXIST)
            case "replace":
                return partial(handle.update, key, encode(*step.arguments), EXIST)
            case "exchange" | "setdefault":
                return partial(getattr(handle, step.name), key, encode(*step.arguments))
            case "add":
                return self.prepared_add(key, *step.arguments)
            case "compare_and_swap":
                new = encode(*step.arguments)
                return lambda expected: handle.compare_and_swap(key, encode(expected), new)
            case "locked":
                return partial(replace_locked, handle, key, encode(*step.arguments))
        raise ValueError(step.name)

    def prepared_add(self, key, delta, default=None):
        return partial(
            self.handle.add, key, delta, default=default, offset=getattr(self.codec, "offset", 0)
        )


def replace_locked(handle, key, new):
    """Read the whole value and write another in one section; return the value before."""
    with handle.locked(key) as value:
        before = bytes(value)
        value[:] = new
    return before


class Planner:
    """Derives each worker's operations from the seed; the same in every process."""

    def __init__(self, shared_map, setting, seed):
        self.setting = setting
        self.seed = seed
        self.names = [*BASIC, *(name for name in OPTIONAL if hasattr(shared_map, name))]
        if setting.counter_at is not None:
            # With counters, additions are the most frequent operation. A new counter's value is
            # zero except for its number, so add can insert only if the value is all counter.
            self.names += ["add"] * 4
        self.adds_initial = setting.counter_at is not None and setting.value_size == 8

    def random(self, *path):
        return random.Random(repr((self.seed, *path)))

    def keys_of(self, history):
        """No two histories of a batch share a key; the next batch uses the same keys again."""
        count = 2 + history % (KEYS_MAX - 1)
        return range(history * KEYS_MAX, history * KEYS_MAX + count)

    def initial(self, batch, history):
        """Return the initial value of each key: a number, or ABSENT."""
        rng = self.random(batch, history)
        return {
            key: ABSENT if rng.random() < 0.4 else self.number(batch, history, 0, key % KEYS_MAX)
            for key in self.keys_of(history)
        }

    def number(self, batch, history, worker, step):
        """Return a number that no other write of the whole test stores; worker 0 is the
        recorder."""
        parts = (batch * HISTORIES_MAX + history) * 16 + worker
        return (parts * STEPS_MAX + step) * 2 + 1

    def steps(self, batch, history, slot):
        """Return the steps of the worker in this slot in this history."""
        rng = self.random(batch, history, slot)
        # Histories of a few kinds of operations have more interactions than those of all kinds.
        names = rng.sample(self.names, min(len(self.names), rng.choice((2, 3, 4, 20))))
        keys = self.keys_of(history)
        favourite_chance = rng.choice((0.0, 0.6, 0.9))
        steps = []
        while len(steps) < self.setting.steps:
            name = rng.choice(names)
            key = keys[0] if rng.random() < favourite_chance else rng.choice(keys)
            if name == "compare_and_swap":  # expects the value of the lookup before
                steps.append(Step("lookup", key, ()))
            number = self.number(batch, history, slot + 1, len(steps))
            steps.append(Step(name, key, self.arguments(name, number, rng)))
        return steps[: self.setting.steps]

    def signals(self, batch):
        """Return the Signal of each history. No worker is killed twice in a batch."""
        rng = self.random(batch, "signals")
        slots, histories = range(self.setting.workers), range(self.setting.histories)
        if self.setting.signals == KILL:
            receivers = rng.sample(slots, rng.randrange(1, len(slots)))
            chosen = rng.sample(histories, min(len(receivers), len(histories)))
            pairs = list(zip(chosen, receivers, strict=False))
        elif self.setting.signals == STOP:
            pairs = [(history, rng.choice(slots)) for history in histories]
        else:
            pairs = []
        return {
            history: Signal(
                rng.choice([slot for slot in slots if slot != receiver]),
                receiver,
                rng.randrange(self.setting.steps),
            )
            for history, receiver in pairs
        }

    def victims(self, batch):
        """Return the workers that others kill in this batch, if the senders get so far."""
        if self.setting.signals != KILL:
            return set()
        return {sent.receiver for sent in self.signals(batch).values()}

    def arguments(self, name, number, rng):
        if name in ("lookup", "contains", "delete", "lookup_and_delete", "pop"):
            return ()
        if name != "add":
            return (number,)
        delta = rng.randrange(-(1 << 20), 1 << 20)
        return (delta, number) if self.adds_initial and rng.random() < 0.5 else (delta,)


# ---- the log of a worker ----

# The words of one step: its start and end, the kind of its result, and the result's number.
START, END, KIND, NUMBER = range(4)
STEP_WORDS = 4
NUMBER_RESULT, ABSENT_RESULT, TRUE_RESULT, FALSE_RESULT, OK_RESULT = 1, 2, 3, 4, 5
EXISTS_RESULT, MISSING_RESULT, TORN_RESULT = 6, 7, 8
PLAIN_RESULTS = {
    ABSENT_RESULT: ABSENT,
    TRUE_RESULT: True,
    FALSE_RESULT: False,
    OK_RESULT: OK,
    EXISTS_RESULT: EXISTS,
    MISSING_RESULT: MISSING,
    TORN_RESULT: "a mixture of values",
}
SIGNAL = "signal"  # a step that is not logged
RETURNS_NOTHING = ("update", "insert", "replace", "delete")
LINE_WORDS = 8  # the places of two workers share no cache line


def place_of(batch, history):
    """Return the place of a worker that has come to a history, a number that only rises."""
    return batch * HISTORIES_MAX + history + 1


class Log:
    """Shared memory with the place and the pid of each worker, and the words of each step."""

    def __init__(self, setting):
        self.setting = setting
        self.history_words = setting.steps * STEP_WORDS
        self.slot_words = setting.histories * self.history_words
        words = setting.workers * (LINE_WORDS + self.slot_words)
        self.memory = mmap.mmap(-1, 8 * words)
        self.words = memoryview(self.memory).cast("q")
        self.places = self.words[: setting.workers * LINE_WORDS : LINE_WORDS]
        self.pids = self.words[1 : setting.workers * LINE_WORDS : LINE_WORDS]
        self.steps = self.words[setting.workers * LINE_WORDS :]
        self.nothing = bytes(8 * len(self.steps))

    def clear(self):
        self.steps[:] = memoryview(self.nothing).cast("q")

    def at(self, slot, history):
        """Return the index of the first word of this worker's steps in this history."""
        return slot * self.slot_words + history * self.history_words

    def close(self):
        for words in (self.steps, self.pids, self.places, self.words):
            words.release()
        self.memory.close()


class Worker:
    """The life of a forked worker: batch after batch, until told to leave."""

    def __init__(self, handle, recorder, slot):
        self.handle = handle
        self.setting = recorder.setting
        self.planner = recorder.planner
        self.codec = recorder.codec
        self.log = recorder.log
        self.slot = slot
        self.report_fd = recorder.report_fd
        self.calls = Calls(handle, self.setting, self.codec)
        # If there are more workers than processors they yield after each operation, or each would
        # finish its history in one go; not with signals, which should meet running operations.
        crowded = self.setting.workers > len(recorder.processors)
        self.takes_turns = crowded and self.setting.signals is None
        self.filled = 0  # the number of the next step of fill_or_empty()
        first = FILLER_BASE + slot * FILLERS_MAX
        self.fillers = [
            (first + number).to_bytes(self.setting.key_size, "little")
            for number in range(self.setting.fillers)
        ]
        self.filling = self.codec.encode(0)

    def live(self, commands, answers):
        while batch := int.from_bytes(os.read(commands, 8), "little"):
            plans = self.plans(batch)
            for history, plan in enumerate(plans):
                self.meet(place_of(batch, history))
                self.perform(plan, self.log.at(self.slot, history))
            os.write(answers, b"!")

    def plans(self, batch):
        """For each history, the names of the steps and the calls that perform them."""
        plans = [
            [
                (step.name, self.calls.prepared(step))
                for step in self.planner.steps(batch, history, self.slot)
            ]
            for history in range(self.setting.histories)
        ]
        for history, sent in self.planner.signals(batch).items():
            if sent.sender == self.slot:
                first = signal.SIGKILL if self.setting.signals == KILL else signal.SIGSTOP
                steps = plans[history]
                steps.insert(sent.step, (SIGNAL, partial(self.send, sent.receiver, first)))
                if first == signal.SIGSTOP:
                    steps.append((SIGNAL, partial(self.send, sent.receiver, signal.SIGCONT)))
        return plans

    def send(self, slot, number):
        pid = self.log.pids[slot]
        if pid:  # a child that ended by itself is reported later
            os.kill(pid, number)

    def meet(self, place):
        """Wait until all workers are at this place; yield, as others may need this processor."""
        places = self.log.places
        places[self.slot] = place
        while min(places) < place:
            os.sched_yield()

    def perform(self, plan, at):
        words, now = self.log.steps, time.monotonic_ns
        seen = ABSENT
        for name, call in plan:
            if name == SIGNAL:
                call()
                continue
            if name == "compare_and_swap":
                call = partial(call, NEVER if seen is ABSENT else seen)
            words[at + START] = now()
            try:
                result = call()
            except shmrhash.KeyExists:
                result = EXISTS
            except shmrhash.KeyNotFound:
                result = MISSING
            end = now()
            words[at + KIND], words[at + NUMBER], seen = self.coded(name, result)
            words[at + END] = end
            at += STEP_WORDS
            if self.fillers:
                self.fill_or_empty()
            if self.takes_turns:
                os.sched_yield()

    def coded(self, name, result):
        """Return the kind of the result, the number in it, and the number seen, or ABSENT."""
        if result is EXISTS:
            return EXISTS_RESULT, 0, ABSENT
        if result is MISSING:
            return MISSING_RESULT, 0, ABSENT
        if result is None:
            return OK_RESULT if name in RETURNS_NOTHING else ABSENT_RESULT, 0, ABSENT
        if isinstance(result, bool):
            return TRUE_RESULT if result else FALSE_RESULT, 0, ABSENT
        if name != "add":
            try:
                result = self.codec.decode(result)
            except Torn as torn:
                os.write(self.report_fd, f"worker {self.slot}, {name}: {torn}\n".encode())
                return TORN_RESULT, 0, ABSENT
        return NUMBER_RESULT, result, result

    def fill_or_empty(self):
        """Some steps of a cycle that fills the map with fillers and empties it again.

        So buckets split and merge beside the operations of the histories.
        """
        for _ in range(FILLERS_AT_ONCE):
            if self.filled < len(self.fillers):
                self.handle.update(self.fillers[self.filled], self.filling)
            else:
                with contextlib.suppress(shmrhash.KeyNotFound):  # if a killed worker left others
                    self.handle.delete(self.fillers[self.filled - len(self.fillers)])
            self.filled = (self.filled + 1) % (2 * len(self.fillers))


class WorkerFailed(AssertionError):
    """A worker raised, died or was stuck, which no history shows."""


class Process:
    """A forked worker, from the recorder's side."""

    def __init__(self, recorder, slot):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        self.slot = slot
        self.child = Child(self.run, recorder, commands, answers)
        os.close(commands)
        os.close(answers)
        recorder.log.places[slot] = 0
        recorder.log.pids[slot] = self.child.pid

    def run(self, recorder, commands, answers):
        """In the child: obey the commands. The end of the child closes its end of answers."""
        gc.disable()  # a collection would copy all of the parent's pages
        processors = recorder.processors
        os.sched_setaffinity(0, {processors[self.slot % len(processors)]})
        try:
            with recorder.handle_for(self.slot) as handle:
                Worker(handle, recorder, self.slot).live(commands, answers)
        except BaseException:
            os.write(recorder.report_fd, traceback.format_exc().encode())
            raise

    def tell(self, batch):
        """Tell the worker to begin this batch, or, if it is 0, to leave."""
        os.write(self.commands, batch.to_bytes(8, "little"))

    def signal(self, number):
        os.kill(self.child.pid, number)

    def reap(self):
        """Wait for the worker's end; return its exit code, or minus its signal."""
        os.close(self.commands)
        os.close(self.answers)
        return self.child.join()


class Recorder:
    """Runs batches on a map and returns the histories."""

    def __init__(self, shared_map, setting, seed):
        self.shared_map = shared_map
        self.setting = setting
        self.seed = seed
        self.planner = Planner(shared_map, setting, seed)
        self.codec = setting.codec()
        # Workers that wait for each other would otherwise gather on one processor. The choice of
        # processors does not follow from the seed, or parallel tests would all use the same ones.
        self.processors = list(os.sched_getaffinity(0))
        random.SystemRandom().shuffle(self.processors)
        self.log = Log(setting)
        self.report_fd = os.memfd_create("report", 0)
        self.number = 0  # the number of the batch
        self.histories = self.operations = self.overlapping = self.pending = self.kills = 0
        self.processes = {}
        for slot in range(setting.workers):
            self.processes[slot] = Process(self, slot)

    def handle_for(self, slot):
        """Return the recorder's handle for half of the workers; the others open one of their
        own."""
        if slot % 2 == 0:
            return self.shared_map
        return type(self.shared_map).open(self.shared_map.name)

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        """Let the workers leave; kill them if anything failed."""
        try:
            for process in self.processes.values():
                if failure is None:
                    process.tell(0)
                else:
                    process.signal(signal.SIGKILL)
            if failure is None:
                self.wait_for(self.processes, ending=True)
        finally:
            for process in self.processes.values():
                process.signal(signal.SIGKILL)  # a worker that has ended may not be reaped yet
                process.reap()
            self.log.close()
            os.close(self.report_fd)

    # ---- one batch ----

    def batch(self):
        """Run the next batch; return the Record of every key of every history."""
        self.number += 1
        histories = range(self.setting.histories)
        initial = {}
        for history in histories:
            initial |= self.planner.initial(self.number, history)
        for key, number in initial.items():
            self.set(key, number)
        self.log.clear()
        for process in self.processes.values():
            process.tell(self.number)
        victims = self.planner.victims(self.number)
        self.wait_for(self.processes, victims)
        for slot in victims & set(self.processes):
            self.processes[slot].signal(signal.SIGKILL)  # also if no sender got so far
            self.bury(slot)
        endings = self.endings(initial)
        for slot in victims:
            self.processes[slot] = Process(self, slot)
        self.histories += len(histories)
        return [
            Record(history, key, initial[key], [*operations, *endings[key]])
            for history in histories
            for key, operations in self.operations_of(history).items()
        ]

    def set(self, key, number):
        name = key.to_bytes(self.setting.key_size, "little")
        if number is not ABSENT:
            self.shared_map.update(name, self.codec.encode(number))
        else:
            with contextlib.suppress(shmrhash.KeyNotFound):
                self.shared_map.delete(name)

    def endings(self, keys):
        """Return lookups of the keys at the end, two of each if a worker was killed.

        Before the second lookup the dead are recovered: a pending operation that has not happened
        by then never will.
        """
        found = {key: [self.final_lookup(key)] for key in keys}
        if len(self.processes) < self.setting.workers:
            self.shared_map.check()
            for key in keys:
                found[key].append(self.final_lookup(key))
        return found

    def final_lookup(self, key):
        start = time.monotonic_ns()
        value = self.shared_map.lookup(key.to_bytes(self.setting.key_size, "little"))
        end = time.monotonic_ns()
        try:
            number = ABSENT if value is None else self.codec.decode(value)
        except Torn as torn:
            os.write(self.report_fd, f"recorder, key {key}: {torn}\n".encode())
            number = PLAIN_RESULTS[TORN_RESULT]
        return Operation("recorder", "lookup", (), number, start, end)

    def wait_for(self, processes, victims=(), *, ending=False):
        """Wait until all of them have done the batch or were killed; or have ended, if `ending`."""
        poll = select.poll()
        waiting = {process.answers: process for process in processes.values()}
        for answers in waiting:
            poll.register(answers, select.POLLIN)
        wait_s = STOPPED_S_MAX if self.setting.signals == STOP else PATIENCE_S
        deadline_s = time.monotonic() + PATIENCE_S
        while waiting:
            ready = poll.poll(1000 * wait_s)
            if not ready and time.monotonic() > deadline_s:
                slots = sorted(process.slot for process in waiting.values())
                raise WorkerFailed(f"workers {slots} are stuck; {self.whence()}\n{self.report()}")
            if not ready:
                for process in waiting.values():  # a worker may wait for a lock of a stopped one
                    process.signal(signal.SIGCONT)
            for answers, _ in ready:
                poll.unregister(answers)
                slot = waiting.pop(answers).slot
                ended = not os.read(answers, 1)
                if ended and slot in victims:
                    self.bury(slot)
                elif ended != ending:
                    raise WorkerFailed(
                        f"worker {slot} ended by itself; {self.whence()}\n{self.report()}"
                    )

    def bury(self, slot):
        """Reap a killed worker, and let the others no longer wait for it."""
        self.log.pids[slot] = 0
        code = self.processes.pop(slot).reap()
        if code != -signal.SIGKILL:
            raise WorkerFailed(f"worker {slot} ended with {code}; {self.whence()}\n{self.report()}")
        self.log.places[slot] = GONE
        self.kills += 1

    # ---- the histories ----

    def operations_of(self, history):
        """Return the operations of one history that began, by key."""
        found = {key: [] for key in self.planner.keys_of(history)}
        words = self.log.steps
        for slot in range(self.setting.workers):
            at = self.log.at(slot, history)
            seen = ABSENT
            for step in self.planner.steps(self.number, history, slot):
                start, end, kind, number = words[at : at + STEP_WORDS]
                if not start:
                    break
                arguments = step.arguments
                if step.name == "compare_and_swap":
                    arguments = (NEVER if seen is ABSENT else seen, *arguments)
                result = number if kind == NUMBER_RESULT else PLAIN_RESULTS.get(kind)
                seen = number if kind == NUMBER_RESULT else ABSENT
                found[step.key].append(
                    Operation(slot, step.name, arguments, result, start, end or None)
                )
                self.pending += not end
                at += STEP_WORDS
        for operations in found.values():
            self.operations += len(operations)
            self.overlapping += overlap(operations)
        return found

    def judge(self):
        """Run a batch; raise NotLinearizable, with the shortest of the wrong histories."""
        wrong = [
            record
            for record in self.batch()
            if not is_linearizable(record.operations, record.initial)
        ]
        if wrong:
            raise NotLinearizable(self.describe(wrong))

    def describe(self, records):
        """The report of a failure: the shortest wrong history, and how to repeat the run."""
        shortest, record = min(
            ((essence(record.operations, record.initial), record) for record in records),
            key=lambda pair: len(pair[0]),
        )
        return (
            f"key {record.key} in history {record.history} of batch {self.number} is not "
            f"linearizable; {self.whence()}\n{rendered(shortest, record.initial)}\n{self.report()}"
        )

    def whence(self):
        return f"seed {self.seed}, {self.setting}"

    def report(self):
        """Return the reports of failed workers, and the values that were mixtures."""
        return os.pread(self.report_fd, 1 << 16, 0).decode()

    def summary(self):
        return (
            f"{self.whence()}: {self.histories} histories, {self.operations} operations, "
            f"{self.overlapping} keys with operations at once; {self.kills} kills, "
            f"{self.pending} operations never returned"
        )


def overlap(operations):
    """Return whether two of the operations overlap."""
    in_order = sorted(operations, key=lambda operation: operation.start)
    return any(
        one.end is None or one.end > other.start for one, other in itertools.pairwise(in_order)
    )
