"""Eight processes store and read objects of 1 byte to 1 MiB, and are killed (C1, C2, R2, W1, L1).

Each worker owns some keys of the dict. Before it writes one it notes the key and the new version in
a ledger in anonymous shared memory, and after the write that it is done. So a killed worker leaves
one key in doubt, and when its ledger is settled the old or the new version must be in the dict. All
workers read the keys of all; every value names its key and has a checksum. At the end the dict must
hold what the ledgers say, and after clear() no more bytes than at the start.
"""

import mmap
import os
import random
import time
import zlib

import pytest
from support.children import Child, kill

import shmrhash

SLOTS = 8
KEYS_PER_SLOT = 12
SIZE_MAX = 1 << 20
# Smaller than all values together, so that some stores are refused.
MAX_BYTES = SLOTS * KEYS_PER_SLOT * SIZE_MAX // 24
START_S = 20.0
FAILED_EXIT = 3
SHORT_S = 3.0
LONG_S = 60.0
DEFAULT_DURATION_S = 2.0  # the default of the option --duration
PR_SET_PDEATHSIG = 1
NEVER = (1 << 63) - 1

DOUBT, DOUBT_VERSION, OPERATIONS, REFUSALS, READS, VERSIONS = range(6)


def key_of(number):
    """Return a short key, which is stored inline, or a long one, which is stored as an object."""
    return ("k", number) if number % 3 else f"key {number} " + "k" * (number * 7 % 300)


def value_of(number, version, size):
    body = os.urandom(size)
    return (number, version, zlib.crc32(body), body)


def version_in(number, value):
    """Return the version in a value of this key, 0 for None. Raise if the value was never stored
    under this key."""
    if value is None:
        return 0
    owner, version, checksum, body = value
    if owner != number or zlib.crc32(body) != checksum:
        raise AssertionError(f"key {number}: a torn or foreign value, of {owner} v{version}")
    return version


class Worker:
    """The work of one slot, in a process that may be killed at any moment; its ledger outlives
    it."""

    def __init__(self, d, ledger, slot, seed):
        self.d, self.ledger = d, ledger
        self.rng = random.Random(seed)
        self.keys = range(slot * KEYS_PER_SLOT, (slot + 1) * KEYS_PER_SLOT)

    def run(self):
        operations = [self.store, self.store, self.exchange, self.change, self.delete]
        while True:
            for _ in range(3):
                self.read(self.rng.randrange(SLOTS * KEYS_PER_SLOT))
            number = self.rng.choice(self.keys)
            before = self.ledger[VERSIONS + number % KEYS_PER_SLOT]
            self.rng.choice(operations)(number, before)
            self.ledger[OPERATIONS] += 1

    def read(self, number):
        found = self.d.get(key_of(number))
        version = version_in(number, found)
        self.ledger[READS] += 1
        if number in self.keys and version != self.ledger[VERSIONS + number % KEYS_PER_SLOT]:
            raise AssertionError(f"own key {number} is of version {version}")

    def write(self, number, before, after, action):
        """Run action, which replaces version `before` by `after`; note before it that the key is in
        doubt, and after it which version the key has."""
        self.ledger[DOUBT_VERSION] = after
        self.ledger[DOUBT] = number + 1
        try:
            action()
        except shmrhash.OutOfMemory:
            self.ledger[REFUSALS] += 1
        else:
            self.ledger[VERSIONS + number % KEYS_PER_SLOT] = after
        self.ledger[DOUBT] = 0

    def fresh(self, number, version):
        return value_of(number, version, int(2 ** self.rng.uniform(0, 20)))

    def next_version(self):
        """Return a version above all earlier ones. The ledger's last version plus one may not be:
        it may have been stored by a killed worker, and undone when the ledger was settled."""
        return time.monotonic_ns() % NEVER

    def store(self, number, before):
        after = self.next_version()
        value = self.fresh(number, after)
        self.write(number, before, after, lambda: self.d.__setitem__(key_of(number), value))

    def exchange(self, number, before):
        if not before:
            return
        after = self.next_version()
        value = self.fresh(number, after)

        def swap():
            if version_in(number, self.d.exchange(key_of(number), value)) != before:
                raise AssertionError(f"key {number}: another value came out than was there")

        self.write(number, before, after, swap)

    def change(self, number, before):
        if not before:
            return
        after = self.next_version()
        value = self.fresh(number, after)

        def in_section(old):
            if version_in(number, old) != before:
                raise AssertionError(f"key {number}: another value was locked than was there")
            return value

        self.write(number, before, after, lambda: self.d.update_with(key_of(number), in_section))

    def delete(self, number, before):
        if before:
            self.write(number, before, 0, lambda: self.d.__delitem__(key_of(number)))


class Storm:
    """Workers that are killed and replaced."""

    def __init__(self, d, seed):
        self.d, self.seed = d, seed
        self.rng = random.Random(seed)
        words = VERSIONS + KEYS_PER_SLOT
        self.memory = mmap.mmap(-1, SLOTS * words * 8)
        view = memoryview(self.memory).cast("Q")
        self.ledgers = [view[slot * words : (slot + 1) * words] for slot in range(SLOTS)]
        self.children = {}
        self.kills = self.new = self.old = 0

    def start(self, slot):
        ledger = self.ledgers[slot]
        begun = ledger[OPERATIONS]
        seed = self.rng.getrandbits(32)
        self.children[slot] = Child(Worker(self.d, ledger, slot, seed).run)
        return begun

    def wait_at_work(self, slot, begun):
        """Return when the worker has completed an operation; fail if that takes longer than
        START_S."""
        deadline = time.monotonic() + START_S
        while self.ledgers[slot][OPERATIONS] == begun:
            self.expect_alive()
            assert time.monotonic() < deadline, f"worker {slot} performs no operation"
            time.sleep(0.001)  # the loop polls the worker's count

    def expect_alive(self):
        for slot, child in self.children.items():
            if child.has_ended():
                child.result()  # raises what the worker raised
                raise AssertionError(f"worker {slot} ended by itself")

    def kill(self, slots):
        kill(*[self.children.pop(slot) for slot in slots])
        self.kills += len(slots)
        for slot in slots:
            self.settle(slot)

    def settle(self, slot):
        """Check that the key that a killed worker was writing has its old or its new version, and
        note which."""
        ledger = self.ledgers[slot]
        if not ledger[DOUBT]:
            return
        number = ledger[DOUBT] - 1
        before, after = ledger[VERSIONS + number % KEYS_PER_SLOT], ledger[DOUBT_VERSION]
        found = version_in(number, self.d.get(key_of(number)))
        assert found in (before, after), f"key {number}: neither {before} nor {after}, but {found}"
        self.new += found == after
        self.old += found == before
        ledger[VERSIONS + number % KEYS_PER_SLOT] = found
        ledger[DOUBT] = 0

    def end(self):
        for child in self.children.values():
            child.kill()

    def expect_ledgers(self):
        expected = {
            key_of(slot * KEYS_PER_SLOT + place): ledger[VERSIONS + place]
            for slot, ledger in enumerate(self.ledgers)
            for place in range(KEYS_PER_SLOT)
            if ledger[VERSIONS + place]
        }
        assert {key: version_in(value[0], value) for key, value in self.d.items()} == expected
        assert len(self.d) == len(expected)
        for number in range(SLOTS * KEYS_PER_SLOT):
            version = version_in(number, self.d.get(key_of(number)))
            assert version == expected.get(key_of(number), 0)

    def total(self, word):
        return sum(ledger[word] for ledger in self.ledgers)


def survive_a_storm(d, seed, seconds):
    start = d.info()["objects"]
    storm = Storm(d, seed)
    try:
        begun = [storm.start(slot) for slot in range(SLOTS)]
        for slot in range(SLOTS):
            storm.wait_at_work(slot, begun[slot])
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(storm.rng.uniform(0, 0.1))
            storm.expect_alive()
            victims = storm.rng.sample(range(SLOTS), storm.rng.choice((1, 1, 1, 2, 3)))
            storm.kill(victims)
            begun = {slot: storm.start(slot) for slot in victims}
            for slot in victims:
                storm.wait_at_work(slot, begun[slot])
        storm.kill(range(SLOTS))
    finally:
        storm.end()

    d.check()
    storm.expect_ledgers()
    info = d.info()
    print(
        f"seed {seed}: {storm.kills} kills, {storm.old} times the old and {storm.new} times the "
        f"new version; {storm.total(OPERATIONS)} writes, {storm.total(REFUSALS)} refused, "
        f"{storm.total(READS)} reads; {info['recoveries']} recoveries; {info['objects']}"
    )
    d.clear()
    d.check()
    after = d.info()["objects"]
    assert after["count"] == start["count"] == 0
    assert after["bytes_in_use"] == start["bytes_in_use"] == 0
    assert after["pinned"] == 0
    assert storm.total(REFUSALS) > 0
    assert storm.kills > seconds


def expect_room_for_all(d):
    """Assert that no memory has been lost: the dict can store as many bytes as when it was new."""
    filled = 0
    try:
        while True:
            d[filled] = bytes(SIZE_MAX)
            filled += 1
    except shmrhash.OutOfMemory:
        pass
    assert filled >= MAX_BYTES // SIZE_MAX * 3 // 4
    d.clear()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_no_object_is_lost_torn_or_leaked_when_workers_are_killed(make_dict, seed):
    """C1, C2, R2, L1: the storm lasts DEFAULT_DURATION_S."""
    d = make_dict(max_entries=1000, max_bytes=MAX_BYTES)

    survive_a_storm(d, seed, SHORT_S)
    expect_room_for_all(d)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_object_is_lost_torn_or_leaked_in_a_minute_of_kills(make_dict, seed, duration):
    """C1, C2, R2, L1: the storm lasts a minute, or --duration seconds."""
    d = make_dict(max_entries=1000, max_bytes=MAX_BYTES)

    survive_a_storm(d, seed, LONG_S if duration == DEFAULT_DURATION_S else duration)
    expect_room_for_all(d)
