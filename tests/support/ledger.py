"""Workers that write down what they are about to do, and a storm that stops or kills them.

Each worker slot owns some keys and one counter; all slots share some counters. Its ledger lies in
anonymous shared memory and outlives the worker: before an operation the worker notes the key and
the new version there, and after it that the operation is done. So a killed worker leaves one key,
or one sum, in doubt, and the process that settles its ledger must find the old or the new version
in the map (C1). At the end the map must hold what the ledgers say, no more and no less.

Versions are numbers from 1 up; 0 says that the key is absent. A value shows its key and version in
every 16 bytes, with a checksum behind them, so a mixture of two values and the value of another key
are both noticed (R2).
"""

import contextlib
import mmap
import os
import random
import signal
import struct
import time
import zlib
from typing import NamedTuple

import shmrhash
from shmrhash import RHashMap
from support.children import Child, die_with_parent
from support.words import word

KEY_SIZE = 8
VALUE_SIZE = 264
ANY, NOEXIST, EXIST = 0, 1, 2

COUNTER_BASE = 1 << 40  # keys of counters
FRESH_BASE = 1 << 41  # keys that are inserted at the end to fill the map
SHARED_COUNTERS = 2
COUNTER_OFFSETS = (16, 45)  # one counter inside a word, and one across two
COUNTER_FILL = b"\xab"

GROWING, SHRINKING = 0, 1

STUCK_S = 1.0
STARVED_S = 0.1  # ten times what is usual on an idle machine
START_S = 10.0  # a fork may take this long on a busy machine


def value_of(key, version):
    """Return the value of that key and version."""
    body = struct.pack("<QQ", key, version) * 16
    return body + struct.pack("<Q", zlib.crc32(body))


def version_in(key, value):
    """Return the version in a value of that key, 0 for None; raise if it was never stored."""
    if value is None:
        return 0
    version = struct.unpack_from("<Q", value, 8)[0]
    if value != value_of(key, version):
        raise AssertionError(f"key {key}: torn or foreign value {value.hex()}")
    return version


def counter_value(value, offset):
    """Return a field of a counter; the bytes beside its fields must be unchanged."""
    expected = bytearray(COUNTER_FILL * VALUE_SIZE)
    for place in COUNTER_OFFSETS:
        expected[place : place + 8] = value[place : place + 8]
    if value != expected:
        raise AssertionError(f"a counter's other bytes changed: {value.hex()}")
    return struct.unpack_from("<Q", value, offset)[0]


class Ledger:
    """What one worker slot has done: a window of shared memory that is written word by word."""

    PROGRESS, OPERATIONS, REFUSALS, PID, PROC_PID = range(5)
    DOUBT, DOUBT_VERSION, DOUBT_COUNTER, DOUBT_DELTA, SUMS = range(5, 10)
    SUM_COUNT = (SHARED_COUNTERS + 1) * len(COUNTER_OFFSETS)

    def __init__(self, words, slot, keys_count):
        self.words = words
        self.slot = slot
        self.versions_at = self.SUMS + self.SUM_COUNT
        self.keys = range(slot * keys_count, (slot + 1) * keys_count)

    @classmethod
    def size(cls, keys_count):
        return cls.SUMS + cls.SUM_COUNT + keys_count

    def version(self, key):
        return self.words[self.versions_at + key - self.keys.start]

    def about_to_store(self, key, version):
        self.words[self.DOUBT_VERSION] = version
        self.words[self.DOUBT] = key + 1

    def stored(self, key, version):
        self.words[self.versions_at + key - self.keys.start] = version
        self.words[self.DOUBT] = 0

    def in_doubt(self):
        """Return (key, version) of the operation in doubt, or None."""
        doubt = self.words[self.DOUBT]
        return (doubt - 1, self.words[self.DOUBT_VERSION]) if doubt else None

    def about_to_add(self, number, delta):
        self.words[self.DOUBT_DELTA] = delta
        self.words[self.DOUBT_COUNTER] = number + 1

    def added(self, number, delta):
        self.words[self.SUMS + number] += delta
        self.words[self.DOUBT_COUNTER] = 0

    def nothing_added(self):
        self.words[self.DOUBT_COUNTER] = 0

    def addition_in_doubt(self):
        doubt = self.words[self.DOUBT_COUNTER]
        return (doubt - 1, self.words[self.DOUBT_DELTA]) if doubt else None

    def sum(self, number):
        return self.words[self.SUMS + number]

    def counter_of(self, number):
        """Return (key, offset) of the number-th sum: first the shared counters, then our own."""
        counter, field = divmod(number, len(COUNTER_OFFSETS))
        own = SHARED_COUNTERS + self.slot
        key = COUNTER_BASE + (counter if counter < SHARED_COUNTERS else own)
        return key, COUNTER_OFFSETS[field]

    def is_shared(self, number):
        return number < SHARED_COUNTERS * len(COUNTER_OFFSETS)

    def step(self):
        self.words[self.PROGRESS] += 1


class Books:
    """The ledgers of all slots, and the phase they are in."""

    def __init__(self, slots, keys_count, path=None):
        """Keep the ledgers in anonymous memory, for forked children; or in a file."""
        self.slots = slots
        self.keys_count = keys_count
        size = Ledger.size(keys_count)
        size_bytes = 8 * (1 + size * slots)
        if path is None:
            self.memory = mmap.mmap(-1, size_bytes)
        else:
            with open(path, "a+b") as file:
                file.truncate(size_bytes)
                self.memory = mmap.mmap(file.fileno(), size_bytes)
        self.words = memoryview(self.memory).cast("Q")
        self.ledgers = [
            Ledger(self.words[1 + slot * size : 1 + (slot + 1) * size], slot, keys_count)
            for slot in range(slots)
        ]

    @property
    def phase(self):
        return self.words[0]

    @phase.setter
    def phase(self, phase):
        self.words[0] = phase

    def open_accounts(self, shared_map):
        """Store the counters, all zero."""
        for number in range(SHARED_COUNTERS + self.slots):
            value = bytearray(COUNTER_FILL * VALUE_SIZE)
            for offset in COUNTER_OFFSETS:
                value[offset : offset + 8] = bytes(8)
            shared_map.update(word(COUNTER_BASE + number), value, NOEXIST)


# ---- what a worker does ----

BURST_MAX = 20  # so many that a worker is inside the map for most of its time


def work(shared_map, books, ledger, rng, tolerated=()):
    """Operate on the map without end. Every exception but MapFull and those in tolerated is an
    error."""
    refusals = (shmrhash.MapFull, *tolerated)
    while True:
        ledger.step()
        chance = rng.random()
        if chance < 0.15:
            add_something(shared_map, ledger, rng, refusals)
        elif chance < 0.3:
            read_something(shared_map, books, ledger, rng)
        else:
            store_something(shared_map, books, ledger, rng, refusals)


def add_something(shared_map, ledger, rng, refusals):
    number = rng.randrange(Ledger.SUM_COUNT)
    times = rng.randrange(1, BURST_MAX)
    key, offset = ledger.counter_of(number)
    after = done = 0
    ledger.about_to_add(number, times)
    try:
        for _ in range(times):
            after = shared_map.add(word(key), 1, offset=offset)
            done += 1
    except refusals:
        ledger.words[Ledger.REFUSALS] += 1
    expected = ledger.sum(number) + done
    if done and (after < expected or (after > expected and not ledger.is_shared(number))):
        raise AssertionError(f"add to counter {key:#x} gave {after}, wanted {expected}")
    ledger.added(number, done)
    ledger.words[Ledger.OPERATIONS] += done


def read_something(shared_map, books, ledger, rng):
    """Read a key of this slot, whose version is known, and any key, which has some version."""
    key = rng.choice(ledger.keys)
    version = version_in(key, shared_map.lookup(word(key)))
    if version != ledger.version(key):
        raise AssertionError(f"key {key}: version {version}, wrote {ledger.version(key)}")
    key = rng.randrange(books.slots * books.keys_count)
    version_in(key, shared_map.lookup(word(key)))
    ledger.words[Ledger.OPERATIONS] += 2


def store_something(shared_map, books, ledger, rng, refusals):
    """Bring a key of this slot to a new version, or remove it; first alternate some times."""
    key = rng.choice(ledger.keys)
    now = before = ledger.version(key)
    removes = rng.random() < (0.05 if books.phase == GROWING else 0.98)
    if removes and not before:
        return
    after = 0 if removes else ledger.words[Ledger.OPERATIONS] + 1
    values = {version: value_of(key, version) for version in (before, after)}
    way = (after,) if before and after else (after, before)
    name = word(key)
    ledger.about_to_store(key, after)
    done = 0
    checks_flags = rng.random() < 0.5
    try:
        for version in (*way * rng.randrange(BURST_MAX), after):
            if version:
                flags = (EXIST if now else NOEXIST) if checks_flags else ANY
                shared_map.update(name, values[version], flags)
            elif done & 1:
                shared_map.delete(name)
            elif shared_map.lookup_and_delete(name) != values[now]:
                raise AssertionError(f"took another value of key {key} than was there")
            now = version
            done += 1
    except refusals as refusal:
        if now and isinstance(refusal, shmrhash.MapFull):
            raise AssertionError("MapFull for a key that is there") from refusal
        ledger.words[Ledger.REFUSALS] += 1
    ledger.stored(key, now)
    ledger.words[Ledger.OPERATIONS] += done


# ---- processes ----


def work_on_files(shared_map, path, slots, keys_count, slot, seed):
    """Run work() in a spawned process: the map was pickled, and the books are in a file."""
    die_with_parent()
    books = Books(slots, keys_count, path)
    work(shared_map, books, books.ledgers[slot], random.Random(seed))


class Schedule(NamedTuple):
    """What the kernel says of a process's first thread."""

    ran_s: float
    waited_s: float  # time ready without a processor, except the present wait
    turns: int
    is_ready: bool  # to run, or it runs


def schedule_of(pid):
    """Return the Schedule of a process, or an empty one if it has ended."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            ran_ns, waited_ns, turns = map(int, file.read().split())
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return Schedule(0.0, 0.0, 0, False)
    return Schedule(ran_ns / 1e9, waited_ns / 1e9, turns, state == "R")


class FairClock:
    """A clock that stands still while a worker is refused a processor.

    On a busy machine a worker that holds a lock may be ready to run, and not run, for seconds, and
    the workers that wait for the lock make no progress through no fault of the map. The clock stops
    while a worker has been ready for STARVED_S without having run.
    """

    def __init__(self):
        self.now_s = 0.0
        self._looked = time.monotonic()
        self._last_ran = {}  # pid -> (its processor time, when that time was last seen to change)

    def look(self, pids):
        """Add the time since the last call, unless one of the workers starves."""
        now = time.monotonic()
        seen, starving = {}, False
        for pid in pids:
            schedule = schedule_of(pid)
            before, since = self._last_ran.get(pid, (None, now))
            if not schedule.is_ready or schedule.ran_s != before:
                since = now
            starving = starving or now - since > STARVED_S
            seen[pid] = schedule.ran_s, since
        self._last_ran = seen
        if not starving:
            self.now_s += now - self._looked
        self._looked = now


class Watch:
    """A record of when a worker last made progress, by the FairClock."""

    def __init__(self, ledger, clock):
        self.ledger = ledger
        self.clock = clock
        ledger.words[Ledger.PROC_PID] = 0  # the worker stores its pid, which may differ in /proc
        self.note()

    def proc_pid(self):
        return self.ledger.words[Ledger.PROC_PID]

    def note(self):
        self.progress = self.ledger.words[Ledger.PROGRESS]
        self.since = self.clock.now_s

    def standing_still_s(self):
        if self.progress != self.ledger.words[Ledger.PROGRESS]:
            self.note()
            return 0.0
        still = self.clock.now_s - self.since
        if self.proc_pid() == 0:  # the worker has not begun to run Python
            return still - START_S
        return still


class Storm:
    """Workers on a map, for some of the slots of some books: their children and what these did."""

    def __init__(self, shared_map, books, seed, slots=None, tolerated=(), timeout=5.0):
        self.shared_map = shared_map
        self.books = books
        self.rng = random.Random(seed)
        self.slots = list(range(books.slots)) if slots is None else list(slots)
        self.tolerated = tolerated
        self.timeout = timeout
        self.children = {}
        self.clock = FairClock()
        self.watches = {}
        self.steps_before = {}
        self.kills = 0
        self.doubts = 0
        self.standing_still_s_max = 0.0
        self.shared_doubts = [0] * Ledger.SUM_COUNT

    def start(self, slot):
        seed = self.rng.getrandbits(64)
        self.steps_before[slot] = self.books.ledgers[slot].words[Ledger.PROGRESS]
        self.watches[slot] = Watch(self.books.ledgers[slot], self.clock)
        self.children[slot] = Child(self._run, slot, seed)

    def _run(self, slot, seed):
        """Operate in the child, through the parent's handle or a handle of the child's own."""
        os.nice(5)  # the process that kills the workers has priority
        rng = random.Random(seed)
        ledger = self.books.ledgers[slot]
        ledger.words[Ledger.PID] = os.getpid()
        ledger.words[Ledger.PROC_PID] = int(os.readlink("/proc/self"))
        name = self.shared_map.name
        if rng.random() < 0.5:
            work(self.shared_map, self.books, ledger, rng, self.tolerated)
        else:
            with RHashMap.open(name, timeout=self.timeout) as own:
                work(own, self.books, ledger, rng, self.tolerated)

    def start_all(self):
        for slot in self.slots:
            self.start(slot)

    def at_work(self):
        """Return the slots whose workers have begun to operate."""
        words = {slot: self.books.ledgers[slot].words for slot in self.children}
        return [
            slot for slot in words if words[slot][Ledger.PROGRESS] > self.steps_before[slot] + 1
        ]

    def kill(self, slots):
        """Kill these workers at once, and settle their ledgers before others take their slots."""
        for slot in slots:
            os.kill(self.children[slot].pid, signal.SIGKILL)
        for slot in slots:
            child = self.children.pop(slot)
            if child.join() != -signal.SIGKILL:
                child.result()  # raises what the worker raised
                raise AssertionError(f"worker {slot} ended by itself")
            self.kills += 1
        for slot in slots:
            self.settle(self.books.ledgers[slot])

    def settle(self, ledger):
        """Look up how the operation in doubt ended, and note that in the ledger (C1)."""
        doubt = ledger.in_doubt()
        if doubt is not None:
            key, version = doubt
            found = version_in(key, self.shared_map.lookup(word(key)))
            if found not in (ledger.version(key), version):
                raise AssertionError(
                    f"key {key}: version {found}, neither {ledger.version(key)} nor {version}"
                )
            self.doubts += 1
            ledger.stored(key, found)
        addition = ledger.addition_in_doubt()
        if addition is not None:
            number, delta = addition
            self.doubts += 1
            if ledger.is_shared(number):
                self.shared_doubts[number] += delta
            else:
                key, offset = ledger.counter_of(number)
                found = counter_value(self.shared_map.lookup(word(key)), offset)
                least = ledger.sum(number)
                if not least <= found <= least + delta:
                    raise AssertionError(f"counter {key:#x}: {found}, not {least} + 0 to {delta}")
                ledger.words[Ledger.SUMS + number] = found
            ledger.nothing_added()

    def watch(self):
        """Fail if a worker ended by itself, or has made no progress for more than STUCK_S."""
        self.clock.look([self.watches[slot].proc_pid() for slot in self.children])
        for slot, child in self.children.items():
            if child.has_ended():
                del self.children[slot]
                child.result()  # raises what the worker raised
                raise AssertionError(f"worker {slot} ended by itself")
            still = self.watches[slot].standing_still_s()
            self.standing_still_s_max = max(self.standing_still_s_max, still)
            if still > STUCK_S:
                where = self.describe(slot)
                raise AssertionError(f"worker {slot} is stuck for {still:.2f} s; {where}")

    def describe(self, slot):
        """Return what a worker is doing, for messages."""
        ledger = self.books.ledgers[slot]
        try:
            with open(f"/proc/{ledger.words[Ledger.PROC_PID]}/status") as file:
                state = (
                    next(line for line in file if line.startswith("State")).split(":")[1].strip()
                )
        except OSError as error:
            state = str(error)
        return f"state {state}, key in doubt {ledger.in_doubt()}, sum {ledger.addition_in_doubt()}"

    def end(self):
        """Kill the remaining workers without checking them. This must be called in any case."""
        for child in self.children.values():
            child.kill()
        self.children.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


# ---- what must be true at the end ----


def expect_ledgers(shared_map, books, shared_doubts, dead=0):
    """C1, R2: assert that the map holds what the ledgers say. All workers must have ended and been
    settled.

    shared_doubts: by sum of a shared counter, how much killed workers may have added to it. dead:
    the largest number of dead workers not yet recovered; each may hold one element, which len()
    counts until it is recovered.
    """
    present = 0
    for ledger in books.ledgers:
        for key in ledger.keys:
            found = version_in(key, shared_map.lookup(word(key)))
            assert ledger.version(key) == found, f"key {key}"
            present += found != 0
    for number in range(Ledger.SUM_COUNT):
        for ledger in books.ledgers:
            key, offset = ledger.counter_of(number)
            found = counter_value(shared_map.lookup(word(key)), offset)
            if ledger.is_shared(number):
                done = sum(other.sum(number) for other in books.ledgers)
                assert done <= found <= done + shared_doubts[number], f"counter {key:#x}"
            else:
                assert ledger.sum(number) == found, f"counter {key:#x}"
    expected = present + SHARED_COUNTERS + books.slots
    assert expected <= len(shared_map) <= expected + dead


def expect_exact_limit(shared_map):
    """W2: assert that exactly max_entries fit, so that dead processes have kept no room."""
    number = FRESH_BASE
    with contextlib.suppress(shmrhash.MapFull):
        while len(shared_map) <= shared_map.max_entries:
            shared_map.update(word(number), value_of(number, 1), NOEXIST)
            number += 1
    assert shared_map.max_entries == len(shared_map)
    assert shared_map.check()["exact"]
    for fresh in range(FRESH_BASE, number):
        assert version_in(fresh, shared_map.lookup_and_delete(word(fresh))) == 1


def expect_all_at_rest(shared_map):
    """C2: assert that, once a process has attached, nothing is left of the dead ones."""
    with RHashMap.open(shared_map.name):
        pass
    info = shared_map.info()
    assert info["processes"] == 1
    assert shared_map.check()["exact"]
