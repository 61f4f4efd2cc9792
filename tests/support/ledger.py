"""Workers that write down what they are about to do, and a storm that stops or kills them.

Each worker slot owns some keys and one counter; all slots share some counters. Its ledger lies in
anonymous shared memory and outlives it: before an operation the worker notes key and new version
there, after it that it is done. So a killed worker leaves one key, or one sum, in doubt, and
whoever settles its ledger finds the old or the new version in the map, nothing else (C1). At the
end the map must hold what the ledgers say, no more and no less.

Versions are numbers from 1 up, 0 says that the key is absent. A value shows its key and version
in every 16 bytes, with a checksum behind them: neither mixtures nor another key's value pass (R2).
"""

import contextlib
import ctypes
import mmap
import os
import random
import signal
import struct
import time
import traceback
import zlib

import shmrhash
from shmrhash import RHashMap
from support.words import word

KEY_SIZE = 8
VALUE_SIZE = 264
ANY, NOEXIST, EXIST = 0, 1, 2

COUNTER_BASE = 1 << 40  # keys of counters
FRESH_BASE = 1 << 41  # keys used when the map is filled at the end
SHARED_COUNTERS = 2
COUNTER_OFFSETS = (16, 45)  # one word; and across two words
COUNTER_FILL = b"\xab"

GROWING, SHRINKING = 0, 1

STUCK_S = 1.0
STARVED_S = 0.1  # on an idle machine eight workers on two processors wait a tenth of it for a turn
START_S = 10.0  # for a fork, on a busy machine
PR_SET_PDEATHSIG = 1
FAILED_EXIT = 3


def value_of(key, version):
    """The value of that key and version."""
    body = struct.pack("<QQ", key, version) * 16
    return body + struct.pack("<Q", zlib.crc32(body))


def version_in(key, value):
    """The version in a value of that key, 0 for None; raises for what nobody ever stored."""
    if value is None:
        return 0
    version = struct.unpack_from("<Q", value, 8)[0]
    if value != value_of(key, version):
        raise AssertionError(f"key {key}: torn or foreign value {value.hex()}")
    return version


def counter_value(value, offset):
    """The field of a counter; the bytes beside its fields must be as they were."""
    expected = bytearray(COUNTER_FILL * VALUE_SIZE)
    for place in COUNTER_OFFSETS:
        expected[place : place + 8] = value[place : place + 8]
    if value != expected:
        raise AssertionError(f"a counter's other bytes changed: {value.hex()}")
    return struct.unpack_from("<Q", value, offset)[0]


class Ledger:
    """What one worker slot has done: a window of shared memory, written word by word."""

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
        """(key, version) of the operation in doubt, or None."""
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
        """(key, offset) of the number-th sum: the shared counters' fields, then one's own."""
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
        """In anonymous memory, for children of fork; or in a file, for anybody."""
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

BURST_MAX = 20  # one operation is done so many times over: a worker is in the map most of the time


def work(shared_map, books, ledger, rng, tolerated=()):
    """Operate on the map for ever. What is raised is an error, but for MapFull and tolerated."""
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
    """One's own keys are exactly as written; those of others, some version of theirs."""
    key = rng.choice(ledger.keys)
    version = version_in(key, shared_map.lookup(word(key)))
    if version != ledger.version(key):
        raise AssertionError(f"key {key}: version {version}, wrote {ledger.version(key)}")
    key = rng.randrange(books.slots * books.keys_count)
    version_in(key, shared_map.lookup(word(key)))
    ledger.words[Ledger.OPERATIONS] += 2


def store_something(shared_map, books, ledger, rng, refusals):
    """Bring a key of one's own to a new version, or remove it; there and back some times first."""
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
    """work(), for spawned processes: the map was pickled, the books are in a file."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    books = Books(slots, keys_count, path)
    work(shared_map, books, books.ledgers[slot], random.Random(seed))


def fork(function, *arguments, report=2):
    """Fork a child that calls function and leaves by os._exit; it dies with its parent's thread.

    A traceback goes to the descriptor report.
    """
    pid = os.fork()
    if pid:
        return pid
    code = FAILED_EXIT
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        function(*arguments)
        code = 0
    except BaseException:
        os.write(report, traceback.format_exc().encode())
    finally:
        os._exit(code)


def reap(pid):
    """Wait for a child; its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stays(function, *arguments):
    """A child that did function and stays until it is killed; its pid."""
    ready, theirs = os.pipe()

    def live():
        kept = function(*arguments)
        os.write(theirs, b"r")
        signal.pause()
        return kept

    pid = fork(live)
    os.close(theirs)
    assert os.read(ready, 1) == b"r"
    os.close(ready)
    return pid


def kill(*pids):
    """SIGKILL children, and see that this is how they ended."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        assert reap(pid) == -signal.SIGKILL


def processor_time_and_state(pid):
    """How many ns a process has run, and whether it is running or ready to; (None, False): gone."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            ran_ns = int(file.read().split()[0])
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None, False
    return ran_ns, state == "R"


class FairClock:
    """Time in which no worker was refused a processor.

    On a busy machine a worker that holds a lock may be ready to run, and not run, for seconds, and
    whoever waits for the lock stands still without any fault of the map. The clock does not go on
    while a worker has been ready for STARVED_S without having run.
    """

    def __init__(self):
        self.now_s = 0.0
        self._looked = time.monotonic()
        self._last_ran = {}  # pid -> (its processor time, when that was last seen to change)

    def look(self, pids):
        """Add the time since the last look, unless one of the workers starves."""
        now = time.monotonic()
        seen, starving = {}, False
        for pid in pids:
            ran_ns, ready = processor_time_and_state(pid)
            before, since = self._last_ran.get(pid, (None, now))
            if not ready or ran_ns != before:
                since = now
            starving = starving or now - since > STARVED_S
            seen[pid] = ran_ns, since
        self._last_ran = seen
        if not starving:
            self.now_s += now - self._looked
        self._looked = now


class Watch:
    """When a worker last got on, by the FairClock."""

    def __init__(self, ledger, clock):
        self.ledger = ledger
        self.clock = clock
        ledger.words[Ledger.PROC_PID] = 0  # it will say so itself: /proc may know it by another pid
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
        if self.proc_pid() == 0:  # it has not begun to run Python yet
            return still - START_S
        return still


class Storm:
    """Workers on a map, some of the slots of some books; who they are and what they have done."""

    def __init__(self, shared_map, books, seed, slots=None, tolerated=(), timeout=5.0):
        self.shared_map = shared_map
        self.books = books
        self.rng = random.Random(seed)
        self.slots = list(range(books.slots)) if slots is None else list(slots)
        self.tolerated = tolerated
        self.timeout = timeout
        self.pids = {}
        self.clock = FairClock()
        self.watches = {}
        self.steps_before = {}
        self.kills = 0
        self.doubts = 0
        self.standing_still_s_max = 0.0
        self.shared_doubts = [0] * Ledger.SUM_COUNT
        self.report_fd = os.memfd_create("report", 0)

    def start(self, slot):
        seed = self.rng.getrandbits(64)
        self.steps_before[slot] = self.books.ledgers[slot].words[Ledger.PROGRESS]
        self.watches[slot] = Watch(self.books.ledgers[slot], self.clock)
        self.pids[slot] = fork(self._run, slot, seed, report=self.report_fd)

    def _run(self, slot, seed):
        """In the child: through the handle of the parent, or one of its own."""
        os.nice(5)  # who kills them comes first
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
        """The slots whose workers have begun."""
        words = {slot: self.books.ledgers[slot].words for slot in self.pids}
        return [
            slot for slot in words if words[slot][Ledger.PROGRESS] > self.steps_before[slot] + 1
        ]

    def kill(self, slots):
        """SIGKILL these at once, and settle their ledgers before anybody takes their places."""
        for slot in slots:
            os.kill(self.pids[slot], signal.SIGKILL)
        for slot in slots:
            code = reap(self.pids.pop(slot))
            if code != -signal.SIGKILL:
                raise AssertionError(f"worker {slot} ended with {code}:\n{self.report()}")
            self.kills += 1
        for slot in slots:
            self.settle(self.books.ledgers[slot])

    def settle(self, ledger):
        """Look up what became of the operation in doubt; from now on it is what was found (C1)."""
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
        """Fail if a worker ended by itself, or has stood still for more than a second."""
        self.clock.look([self.watches[slot].proc_pid() for slot in self.pids])
        for slot, pid in self.pids.items():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.pids[slot]
                code = os.waitstatus_to_exitcode(status)
                raise AssertionError(f"worker {slot} ended with {code}:\n{self.report()}")
            still = self.watches[slot].standing_still_s()
            self.standing_still_s_max = max(self.standing_still_s_max, still)
            if still > STUCK_S:
                where = self.describe(slot)
                raise AssertionError(f"worker {slot} is stuck for {still:.2f} s; {where}")

    def describe(self, slot):
        """What a worker is doing, for messages."""
        ledger = self.books.ledgers[slot]
        try:
            with open(f"/proc/{ledger.words[Ledger.PROC_PID]}/status") as file:
                state = (
                    next(line for line in file if line.startswith("State")).split(":")[1].strip()
                )
        except OSError as error:
            state = str(error)
        return f"state {state}, key in doubt {ledger.in_doubt()}, sum {ledger.addition_in_doubt()}"

    def report(self):
        """What failed workers wrote."""
        os.lseek(self.report_fd, 0, os.SEEK_SET)
        return os.read(self.report_fd, 1 << 20).decode()

    def end(self):
        """Kill whoever is left, without looking. To be called in any case."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            reap(pid)
        self.pids.clear()
        os.close(self.report_fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


# ---- what must be true at the end ----


def expect_ledgers(shared_map, books, shared_doubts, dead=0):
    """C1, R2: the map holds what the ledgers say. All workers are gone and settled.

    shared_doubts: per sum of a shared counter, what killed workers may or may not have added.
    dead: how many workers at most have not been recovered; each may hold one element, which len()
    counts until then.
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
    """W2: exactly max_entries fit; nothing of the dead is missing."""
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
    """C2: once somebody has looked, nothing is left of the dead."""
    with RHashMap.open(shared_map.name):
        pass
    info = shared_map.info()
    assert info["processes"] == 1
    assert shared_map.check()["exact"]
