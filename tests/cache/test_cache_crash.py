"""Processes die while they store in a full cache, compute, invalidate and recover others (C1,
C2).

The stepped kills are in tests/crash/test_kill_with_objects.py and test_kill_in_claims.py.
"""

import mmap
import os
import random
import signal
import struct
import time

import pytest
from support.caches import cache_options
from support.children import Partner, kill
from support.core.picture import Header, ProcessSlot
from support.killing import starved_s

from shmrhash import Cache

KEYS = 300
MOST = 100
TAGS = 7
ROOM_BYTES = 30_000  # beyond the least: for some ten of the larger values
STUCK_S = 20  # processor time of a child that goes on after a death is some milliseconds
STEPS = 20  # of the test after each kill
INSIDE_S = 0.0001  # two recoveries take some 40 microseconds, a timer and a call some 40
SLOT_MASK = 0xFFFF  # of the word `recoverer`


def value_of(key):
    """Return a value that shows to which key it belongs, and whether it is complete."""
    return struct.pack("<Q", key) * (1 + key * 7919 % 700)


def tag_of(key):
    return f"tag {key % TAGS}"


def work(parent, name, seed):
    """Look up, compute, store, delete and invalidate until this process is killed; assert that what
    is found is right."""
    rng = random.Random(seed)
    with Cache(name, key=int, value=bytes, timeout=STUCK_S) as cache:
        cache.get(0)  # from now on it has a process slot
        parent.say()
        while True:
            step(cache, rng, rng.randrange(KEYS))


def step(cache, rng, key):
    assert cache.get(key) in (None, value_of(key))
    choice = rng.randrange(100)
    if choice < 30:
        found = cache.get_or_compute(key, lambda: value_of(key), tags=(tag_of(key),), wait=STUCK_S)
        assert found == value_of(key)
    elif choice < 80:
        cache.set(key, value_of(key), ttl=rng.choice([None, 0.001, 10]), tags=(tag_of(key),))
    elif choice < 88:
        cache.add(key, value_of(key))
    elif choice < 94:
        cache.delete(key)
    elif choice < 97:
        cache.invalidate(tag_of(key))
    elif choice < 99:
        cache.handle._recover()
    else:
        cache.clear()


def recover_until_killed(parent, name, seconds):
    """When told to, recover all dead processes. A timer kills this process so many seconds after
    that."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with Cache(name, key=int, value=bytes) as cache:
        cache.get(0)  # from now on it has a process slot
        parent.say()
        parent.wait()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        cache.handle._recover()
        while True:
            signal.pause()


class Watch:
    """A view of the segment's file that shows which recoveries are under way."""

    def __init__(self, cache):
        with open(cache.handle.info()["path"], "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.header = Header.from_buffer(self.memory)
        cache.set(0, value_of(0))  # gives this process a slot, the first one
        assert self._slot(0).pid == os.getpid()

    def _slot(self, number):
        return ProcessSlot.from_buffer(self.memory, self.header.header_bytes + 64 * number)

    def left_by(self, pid):
        """Return whether the process was recovering another one when it died."""
        slots = [self._slot(number) for number in range(8)]
        (mine,) = [number for number in range(8) if slots[number].used and slots[number].pid == pid]
        return any(slot.recoverer & SLOT_MASK == mine + 1 for slot in slots if slot.used)


class Storm:
    """Two processes at work. One or the other is killed and replaced, again and again."""

    def __init__(self, cache, seed):
        self.cache = cache
        self.rng = random.Random(seed)
        self.watch = Watch(cache)
        self.steps_s = []  # times of the steps of this process
        self.kills = 0
        self.in_recovery = 0  # kills of a process that was recovering another one
        self.crew = [self._worker() for _ in range(2)]

    def _worker(self):
        return Partner(work, self.cache.name, self.rng.random())

    def kill(self, number):
        assert self.crew[number].kill() < 0, self.crew[number].result()
        self.kills += 1

    def kill_one(self):
        number = self.rng.randrange(2)
        self.kill(number)
        self.crew[number] = self._worker()

    def kill_in_recovery(self):
        """Kill both workers, and let a third process die while it recovers them, or soon after."""
        third = Partner(recover_until_killed, self.cache.name, self.rng.uniform(1e-6, INSIDE_S))
        for child in (third, *self.crew):
            child.hear()
        kill(*self.crew)
        third.tell()
        assert third.join() == -signal.SIGALRM, third.result()
        self.kills += 3
        self.in_recovery += self.watch.left_by(third.pid)
        self.crew = [self._worker() for _ in range(2)]

    def step(self):
        """Execute one operation in this process, and note how long it took, without the time for
        which this thread was ready to run and had no processor."""
        began, starved = time.monotonic(), starved_s()
        step(self.cache, self.rng, self.rng.randrange(KEYS))
        self.steps_s.append(time.monotonic() - began - (starved_s() - starved))

    def rage(self, kills):
        try:
            while self.kills < kills:
                time.sleep(self.rng.uniform(0, 0.02))
                if self.rng.randrange(8) == 0:
                    self.kill_in_recovery()
                else:
                    self.kill_one()
                for _ in range(STEPS):
                    self.step()
                assert len(self.cache) <= MOST
        finally:
            kill(*[child for child in self.crew if child.exitcode is None])


def expect_whole(cache):
    """Assert that the dead processes left nothing locked, lost or wrong, and that the limit is
    exact. check() finds objects that nothing names, and pages that the budget counts but no block
    has."""
    cache.handle._recover()
    cache.check()
    for key in range(KEYS):
        assert cache.get(key) in (None, value_of(key))
    cache.clear()
    cache.expire()
    assert cache.handle.info()["objects"]["count"] == 0
    assert cache.handle.info()["objects"]["bytes_in_use"] == 0
    for key in range(3 * MOST):
        cache.set(key, b"small")
    assert len(cache) == MOST
    cache.check()


@pytest.mark.parametrize(
    "kills",
    [
        20,
        pytest.param(150, marks=pytest.mark.thorough),
        pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_killed_processes_leave_a_whole_cache(make_cache, seed, kills):
    """C1, C2: processes are killed at random, some of them while they recover others."""
    cache = make_cache(
        timeout=STUCK_S,
        **cache_options(ROOM_BYTES, key=int, value=bytes, max_entries=MOST, tags=True),
    )
    storm = Storm(cache, seed)

    storm.rage(kills)

    took = sorted(storm.steps_s)
    print(
        f"seed {seed}: {storm.kills} kills, {storm.in_recovery} inside a recovery; "
        f"{len(took)} steps beside them: median {took[len(took) // 2] * 1e6:.0f} us, 99 % within "
        f"{took[len(took) * 99 // 100] * 1e3:.2f} ms, longest {took[-1] * 1e3:.1f} ms, "
        f"{sum(one > 0.1 for one in took)} above 100 ms"
    )
    assert took[-1] < STUCK_S / 10
    expect_whole(cache)
    stats = cache.stats()
    assert sum(stats[2:5]) > 0
    assert stats.evicted_block > 0
    assert storm.in_recovery > 0 or kills < 1000
