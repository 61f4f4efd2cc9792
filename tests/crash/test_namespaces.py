"""Processes with equal pids in different PID namespaces share one map (C3).

Each namespace is made by unshare(2) in a forked helper; its first child has pid 1 there. All of
them open the same file, as containers that share /dev/shm do.
"""

import ctypes
import errno
import mmap
import os
import select
import time

import pytest
from support import stepping
from support.ledger import (
    GROWING,
    SHRINKING,
    VALUE_SIZE,
    Books,
    Ledger,
    Storm,
    expect_all_at_rest,
    expect_exact_limit,
    expect_ledgers,
    fork,
    reap,
    word,
)

import shmrhash
from shmrhash import RHashMap

CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
TIMEOUT_S = 0.2
HELD_WORDS = 256


def enter_pid_namespace():
    """The next child is the first process of a new PID namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID) == 0:
        return
    if ctypes.get_errno() != errno.EPERM or libc.unshare(CLONE_NEWUSER | CLONE_NEWPID):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWPID): {os.strerror(number)}")


def refused():
    """Why no PID namespace can be made here, or None."""
    told, tell = os.pipe()

    def attempt():
        enter_pid_namespace()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if os.getpid() == 1 else 1)
        if reap(pid) != 0:
            raise OSError("a child of unshare has not pid 1")

    code = reap(fork(attempt, report=tell))
    os.close(tell)
    text = os.read(told, 65536).decode()
    os.close(told)
    return None if code == 0 else f"no PID namespaces here: {text.strip().splitlines()[-1]}"


@pytest.fixture(scope="module", autouse=True)
def namespaces_are_permitted():
    reason = refused()
    if reason is not None:
        pytest.skip(reason)


class Helper:
    """A process whose children live in a PID namespace of their own; it runs main(talk)."""

    def __init__(self, main):
        self.told, tell = os.pipe()
        hear, self.tell = os.pipe()

        def run():
            os.close(self.told)
            os.close(self.tell)
            enter_pid_namespace()
            main(Talk(hear, tell))

        self.pid = fork(run)
        os.close(tell)
        os.close(hear)

    def ask(self, what):
        """Send one byte and return the byte that comes back."""
        os.write(self.tell, what)
        return self.listen()

    def listen(self):
        return os.read(self.told, 1)

    def end(self):
        os.close(self.tell)  # the listener reads b"" and ends
        code = reap(self.pid)
        os.close(self.told)
        return code


class Talk:
    """The helper's end of its pipes."""

    def __init__(self, hear, tell):
        self.hear = hear
        self.tell = tell

    def say(self, what):
        os.write(self.tell, what)

    def listen(self):
        return os.read(self.hear, 1)


def put(m, key, number):
    m.update(word(key), word(number) * (m.value_size // 8))


def try_to_put(m, key, number):
    """b"y" if the update succeeds, b"n" if it waits in vain for a live owner of the element."""
    try:
        put(m, key, number)
    except shmrhash.LockTimeout:
        return b"n"
    return b"y"


def update_key_3(own):
    put(own, 3, 9)


def middle_of_update(m, segment):
    """How many changes update_key_3 makes until it is copying from the redo buffer to the element.

    Others have to wait for an owner that is stopped there.
    """
    return stepping.changes_until(lambda: RHashMap.open(m.name), update_key_3, segment, 3 / 4)


def hold_key_3(m, segment, middle, talk):
    """In a helper: stop its child, pid 1 of its namespace, in the middle of an update."""

    def prepare():
        assert os.getpid() == 1
        return RHashMap.open(m.name)

    owner = stepping.stop_at_change(prepare, update_key_3, segment, middle)
    with owner:
        talk.say(b"h")
        if talk.listen() == b"k":
            owner.kill()
            talk.say(b"k")
            talk.listen()


def write_when_asked(m, talk):
    """In a helper: its child, also pid 1, writes key 3 each time it is asked to."""

    def write():
        assert os.getpid() == 1
        with RHashMap.open(m.name, timeout=TIMEOUT_S) as own:
            talk.say(b"r")
            while talk.listen():
                talk.say(try_to_put(own, 3, 5))

    assert reap(fork(write)) == 0


@pytest.fixture
def held_map(make_map):
    m = make_map(value_size=8 * HELD_WORDS, max_entries=64, timeout=TIMEOUT_S)
    for key in range(1, 6):
        put(m, key, 1)
    return m


@pytest.mark.usefixtures("stepper")
def test_owner_with_an_equal_pid_in_another_namespace_is_not_robbed(held_map):
    """C3: a process with the owner's pid does not rob a stopped owner, and recovers a dead one."""
    segment = stepping.Segment(stepping.segment_path(held_map.name))
    writer = Helper(lambda talk: write_when_asked(held_map, talk))
    assert writer.listen() == b"r"
    middle = middle_of_update(held_map, segment)
    holder = Helper(lambda talk: hold_key_3(held_map, segment, middle, talk))
    assert holder.listen() == b"h"
    assert held_map.info()["pids"].count(1) == 2

    assert writer.ask(b"w") == b"n"
    assert try_to_put(held_map, 3, 6) == b"n"
    assert held_map[word(3)] == word(9) * HELD_WORDS
    assert held_map.info()["owners_found_dead"] == 0

    assert holder.ask(b"k") == b"k"
    assert writer.ask(b"w") == b"y"
    assert held_map[word(3)] == word(5) * HELD_WORDS
    assert held_map.info()["owners_found_dead"] == 1

    assert holder.end() == 0
    assert writer.end() == 0
    expect_all_at_rest(held_map)


@pytest.mark.usefixtures("stepper")
def test_owner_whose_pid_does_not_exist_here_is_not_robbed(held_map):
    """C3: a process in whose namespace the owner's pid does not exist does not rob the owner."""
    segment = stepping.Segment(stepping.segment_path(held_map.name))
    writer = Helper(lambda talk: write_when_asked(held_map, talk))
    assert writer.listen() == b"r"
    owner = stepping.stop_at_change(
        lambda: RHashMap.open(held_map.name),
        update_key_3,
        segment,
        middle_of_update(held_map, segment),
    )
    with owner:
        assert writer.ask(b"w") == b"n"

        owner.kill()

        assert writer.ask(b"w") == b"y"
    assert writer.end() == 0
    expect_all_at_rest(held_map)


# ---- storms ----


def storm_inside(m, books, slots, seed, kills_wanted, doubts, talk):
    """In a helper: pid 1 of its namespace kills workers and replaces them.

    `doubts` receives the storm's shared_doubts.
    """

    def rage():
        assert os.getpid() == 1
        with Storm(m, books, seed, slots=slots) as storm:
            storm.start_all()
            talk.say(b"r")
            talk.listen()
            pids = set()
            while storm.kills < kills_wanted:
                time.sleep(storm.rng.uniform(0, 0.01))
                storm.watch()
                ready = storm.at_work()
                if ready:
                    slot = storm.rng.choice(ready)
                    pids.add(books.ledgers[slot].words[Ledger.PID])
                    storm.kill([slot])
                    storm.start(slot)
            storm.kill(storm.slots)
            assert set(range(2, kills_wanted // 2)) <= pids, "pids as in any new namespace"
            for number, doubt in enumerate(storm.shared_doubts):
                doubts[number] = doubt
        talk.say(b"e")

    assert reap(fork(rage)) == 0


def survive_two_storms(make_map, seed, kills_wanted):
    """Run a storm in each of two namespaces; the workers of both have the same pids."""
    keys_count = 300
    m = make_map(value_size=VALUE_SIZE, max_entries=4 * keys_count * 9 // 10)
    books = Books(4, keys_count)
    books.open_accounts(m)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    words = memoryview(memory).cast("Q")
    doubts = [words[:64], words[64:128]]

    helpers = [
        Helper(
            lambda talk, side=side: storm_inside(
                m, books, [2 * side, 2 * side + 1], seed + side, kills_wanted, doubts[side], talk
            )
        )
        for side in (0, 1)
    ]
    for helper in helpers:
        assert helper.listen() == b"r"
    for helper in helpers:
        os.write(helper.tell, b"g")
    began = time.monotonic()
    ended = []
    while len(ended) < 2:
        books.phase = (GROWING, SHRINKING)[int(time.monotonic() - began) % 2]
        ready, _, _ = select.select([helper.told for helper in helpers], [], [], 0.2)
        ended += [helper for helper in helpers if helper.told in ready and helper not in ended]
    said = [helper.listen() for helper in helpers]
    assert [helper.end() for helper in helpers] == [0, 0]
    assert said == [b"e", b"e"]

    expect_all_at_rest(m)
    expect_ledgers(m, books, [sum(pair) for pair in zip(*doubts, strict=True)])
    expect_exact_limit(m)
    recoveries = m.info()["recoveries"]
    spent_s = time.monotonic() - began
    print(f"seed {seed}: {2 * kills_wanted} kills in {spent_s:.1f} s, {recoveries} recovered")
    assert recoveries > kills_wanted


@pytest.mark.thorough
def test_storms_in_two_namespaces_lose_nothing(make_map, seed):
    """C1, C3: workers with equal pids are killed in both; no worker is taken for its double."""
    survive_two_storms(make_map, seed, 60)


@pytest.mark.long
def test_long_storms_in_two_namespaces_lose_nothing(make_map, seed, duration):
    """C1, C3: the test above with 500 kills for each second of --duration."""
    survive_two_storms(make_map, seed, int(500 * duration))
