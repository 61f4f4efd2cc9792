"""Workers that use one lock primitive in a loop, and a storm that kills them.

A worker's account lies in anonymous shared memory and outlives it. The shared words beside the
accounts are what the primitive guards: they are changed by plain loads and stores, so a primitive
that lets two workers in at once, or forgets one, leaves wrong numbers. A job is a function
job(space, books, me, rng) that runs without end; every exception in it fails the test.
"""

import mmap
import os
import random
import signal
import time

from support.children import Child
from support.ledger import STUCK_S, schedule_of

SHARED_WORDS = 1 << 17
ACCOUNT_WORDS = 16
KILLED_MAX = 20_000
START_S = 20.0  # a fork may take this long on a busy machine
TICK_S = 0.001
LOOK_S = 0.01  # more than a tick of the kernel, behind which a process that runs has run longer
NICE = 5  # the workers' niceness; the process that kills them has priority
POLL_S = 0.0002


class PacedClock:
    """A clock that advances as fast as the workers get to run, and stands still while one of them
    does not.

    A child with the workers' priority sleeps for a millisecond, again and again, and counts. So a
    second of this clock is a thousand times in which such a process has woken up and run: on an
    idle machine that is a second, and on a busy one as much longer as a worker's wake-ups take
    there.

    A process that sleeps so often gets a processor sooner than one that is busy. A worker that was
    busy inside the lock may be kept waiting for a second while the child counts, and all workers
    that wait for the lock stand still with it. So the clock leaves out the time in which any worker
    was ready while others had the processors (schedstat). What is left is time in which each worker
    ran, or slept although it could have continued: a worker that is stuck stays so, however busy
    the machine.
    """

    def __init__(self):
        self._ticks = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._child = Child(self._count)
        self._left_out_s = 0.0
        self._looked = 0.0, 0.0  # when look() was last called, by the wall clock and by the ticks
        self._ran = {}  # by pid, what schedstat said then

    def _count(self):
        os.nice(NICE)
        while True:
            time.sleep(TICK_S)
            self._ticks[0] += 1

    @property
    def now_s(self):
        assert not self._child.has_ended()
        return self._ticks[0] * TICK_S - self._left_out_s

    def look(self, pids):
        """Leave out the part of the time since the last look in which one of these workers was kept
        from running. It is to be called often; it looks every LOOK_S."""
        wall_s, ticks_s = time.monotonic(), self._ticks[0] * TICK_S
        passed_s = wall_s - self._looked[0]
        if passed_s < LOOK_S:
            return
        before, self._ran = self._ran, {pid: schedule_of(pid) for pid in pids}
        kept_s = sum(
            self._kept_s(before[pid], now, passed_s)
            for pid, now in self._ran.items()
            if pid in before
        )
        self._left_out_s += (ticks_s - self._looked[1]) * min(1.0, kept_s / passed_s)
        self._looked = wall_s, ticks_s

    def leave_out(self):
        """Leave out the time since the last look."""
        ticks_s = self._ticks[0] * TICK_S
        self._left_out_s += ticks_s - self._looked[1]
        self._looked, self._ran = (time.monotonic(), ticks_s), {}

    @staticmethod
    def _kept_s(before, now, passed_s):
        """How long a worker was ready without running; a wait that goes on is not counted yet in
        its schedstat, but is known by a turn that has neither ended nor taken any time."""
        if now == before and now.is_ready and now.turns:
            return passed_s
        return now.waited_s - before.waited_s

    def end(self):
        self._child.kill()


class Account:
    """The words of one worker: its progress, and what it notes."""

    PROGRESS, PID, PROC_PID, CONDEMNED, HAS, NOTES = range(6)

    def __init__(self, words):
        self.words = words

    def step(self):
        self.words[self.PROGRESS] += 1

    def __getitem__(self, index):
        return self.words[self.NOTES + index]

    def __setitem__(self, index, value):
        self.words[self.NOTES + index] = value


class Books:
    """The shared words, the pids of the killed workers, and the accounts of all workers."""

    def __init__(self, slots):
        total = SHARED_WORDS + 1 + KILLED_MAX + slots * ACCOUNT_WORDS
        self._memory = mmap.mmap(-1, total * 8)
        words = memoryview(self._memory).cast("q")
        self.shared = words[:SHARED_WORDS]
        self._killed = words[SHARED_WORDS : SHARED_WORDS + 1 + KILLED_MAX]
        first = SHARED_WORDS + 1 + KILLED_MAX
        self.accounts = [
            Account(words[first + slot * ACCOUNT_WORDS : first + (slot + 1) * ACCOUNT_WORDS])
            for slot in range(slots)
        ]

    def note_killed(self, pid):
        self._killed[1 + self._killed[0]] = pid
        self._killed[0] += 1

    def killed(self):
        """Return the pids of all workers that have been killed, or are about to be."""
        return set(self._killed[1 : 1 + self._killed[0]])

    def times_killed(self, pid):
        """Return how many workers with this pid have been killed; the kernel uses pids again."""
        return self._killed[1 : 1 + self._killed[0]].tolist().count(pid)


class Storm:
    """The workers of some jobs, one for each slot; a killed worker is replaced."""

    def __init__(self, jobs, seed, *, stuck_s=STUCK_S):
        self.jobs = jobs
        self.books = Books(len(jobs))
        self.rng = random.Random(seed)
        self.clock = None  # while the storm is entered
        self.stuck_s = stuck_s
        self.kills = 0
        self.stood_s_max = 0.0
        self.went_on_s = []  # after each kill, the time until another worker made a step
        self._children = {}
        self._seen = {}  # by slot: progress, and the clock when that was first seen

    def start(self, slot):
        account = self.books.accounts[slot]
        for word in (Account.PROC_PID, Account.HAS, Account.CONDEMNED):
            account.words[word] = 0
        self._seen[slot] = account.words[Account.PROGRESS], self.clock.now_s + START_S
        self._children[slot] = Child(self._run, slot, self.rng.getrandbits(64))

    def _run(self, slot, seed):
        os.nice(NICE)
        account = self.books.accounts[slot]
        account.words[Account.PID] = os.getpid()
        account.words[Account.PROC_PID] = int(os.readlink("/proc/self"))
        self.jobs[slot](self.books, account, random.Random(seed))

    def kill(self, slot):
        """Kill a worker wherever it is, and start another one in its place."""
        account, child = self.books.accounts[slot], self._children.pop(slot)
        account.words[Account.CONDEMNED] = 1
        self.books.note_killed(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        if child.join() != -signal.SIGKILL:
            child.result()  # raises what the worker raised
            raise AssertionError(f"worker {slot} ended by itself")
        self.clock.leave_out()  # it had to get a processor to die; until then it seemed alive
        self.kills += 1
        self.start(slot)
        self.wait_for_others(slot)

    def wait_for_others(self, slot):
        """After a kill, wait until another worker makes a step, and note how long that takes."""
        others = [account for at, account in enumerate(self.books.accounts) if at != slot]
        before = [account.words[Account.PROGRESS] for account in others]
        begun = time.monotonic()
        while before == [account.words[Account.PROGRESS] for account in others]:
            time.sleep(POLL_S)
            self.watch()
        self.went_on_s.append(time.monotonic() - begun)

    def watch(self):
        """Fail if a worker ended by itself, or has made no progress for too long."""
        accounts = self.books.accounts
        self.clock.look([child.pid for child in self._children.values()])
        for slot, child in self._children.items():
            if child.has_ended():
                child.result()
                raise AssertionError(f"worker {slot} ended by itself")
            progress, since = self._seen[slot]
            if progress != accounts[slot].words[Account.PROGRESS]:
                self._seen[slot] = accounts[slot].words[Account.PROGRESS], self.clock.now_s
                continue
            stood_s = self.clock.now_s - since
            self.stood_s_max = max(self.stood_s_max, stood_s)
            if stood_s > self.stuck_s:
                raise AssertionError(f"worker {slot} has stood still for {stood_s:.2f} s")

    def rage(self, kills, pause_s=0.002):
        """Kill random workers, one after another; each after a random time."""
        for slot in range(len(self.jobs)):
            self.start(slot)
        while self.kills < kills:
            time.sleep(self.rng.random() * 2 * pause_s)
            self.watch()
            slot = self.rng.randrange(len(self.jobs))
            if self.books.accounts[slot].words[Account.PROC_PID]:  # this worker has begun
                self.kill(slot)
        self.calm()

    def calm(self):
        """Let all workers make some more steps, which shows that none is stuck."""
        before = [account.words[Account.PROGRESS] for account in self.books.accounts]
        while any(
            account.words[Account.PROGRESS] < steps + 3
            for account, steps in zip(self.books.accounts, before, strict=True)
        ):
            time.sleep(0.001)
            self.watch()

    def __enter__(self):
        self.clock = PacedClock()
        return self

    def __exit__(self, *_):
        self.clock.end()
        for child in self._children.values():
            self.books.note_killed(child.pid)
            child.kill()
        self._children.clear()
