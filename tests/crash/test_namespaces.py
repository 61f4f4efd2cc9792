"""Processes with equal pids in different PID namespaces share one map (C3).

Each namespace is made by unshare(2) in a forked helper; its first child has pid 1 there. All of
them open the same file, as containers that share /dev/shm do.
"""

import ctypes
import errno
import mmap
import os
import time

import pytest
from support import stepping
from support.children import Partner, in_child
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

    def attempt():
        try:
            enter_pid_namespace()
        except OSError as error:
            return str(error)
        return None if in_child(os.getpid) == 1 else "a child of unshare has not pid 1"

    reason = in_child(attempt)
    return None if reason is None else f"no PID namespaces here: {reason}"


@pytest.fixture(scope="module", autouse=True)
def namespaces_are_permitted():
    reason = refused()
    if reason is not None:
        pytest.skip(reason)


class Helper(Partner):
    """A process whose children live in a PID namespace of their own; it runs main(parent)."""

    def __init__(self, main):
        def run(parent):
            enter_pid_namespace()
            main(parent)

        super().__init__(run)

    def ask(self, what):
        """Send a word and return the answer."""
        self.tell(what)
        return self.hear()

    def end(self):
        self.tell(None)
        self.result()


def put(m, key, number):
    m.update(word(key), word(number) * (m.value_size // 8))


def try_to_put(m, key, number):
    """Whether the update succeeds; it fails if a live owner holds the element until the timeout."""
    try:
        put(m, key, number)
    except shmrhash.LockTimeout:
        return False
    return True


def update_key_3(own):
    put(own, 3, 9)


def middle_of_update(m, segment):
    """How many changes update_key_3 makes until it is copying from the redo buffer to the element.

    Others have to wait for an owner that is stopped there.
    """
    return stepping.changes_until(lambda: RHashMap.open(m.name), update_key_3, segment, 3 / 4)


def hold_key_3(parent, m, segment, middle):
    """In a helper: stop its child, pid 1 of its namespace, in the middle of an update."""

    def prepare():
        assert os.getpid() == 1
        return RHashMap.open(m.name)

    owner = stepping.stop_at_change(prepare, update_key_3, segment, middle)
    with owner:
        parent.say("stopped")
        if parent.wait() == "kill":
            owner.kill()
            parent.say("killed")
            parent.wait()


def write_when_asked(parent, m):
    """In a helper: its child, also pid 1, writes key 3 each time it is asked to."""

    def write():
        assert os.getpid() == 1
        with RHashMap.open(m.name, timeout=TIMEOUT_S) as own:
            parent.say("ready")
            while parent.wait():
                parent.say(try_to_put(own, 3, 5))

    in_child(write)


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
    writer = Helper(lambda parent: write_when_asked(parent, held_map))
    assert writer.hear() == "ready"
    middle = middle_of_update(held_map, segment)
    holder = Helper(lambda parent: hold_key_3(parent, held_map, segment, middle))
    assert holder.hear() == "stopped"
    assert held_map.info()["pids"].count(1) == 2

    assert not writer.ask("write")
    assert not try_to_put(held_map, 3, 6)
    assert held_map[word(3)] == word(9) * HELD_WORDS
    assert held_map.info()["owners_found_dead"] == 0

    assert holder.ask("kill") == "killed"
    assert writer.ask("write")
    assert held_map[word(3)] == word(5) * HELD_WORDS
    assert held_map.info()["owners_found_dead"] == 1

    holder.end()
    writer.end()
    expect_all_at_rest(held_map)


@pytest.mark.usefixtures("stepper")
def test_owner_whose_pid_does_not_exist_here_is_not_robbed(held_map):
    """C3: a process in whose namespace the owner's pid does not exist does not rob the owner."""
    segment = stepping.Segment(stepping.segment_path(held_map.name))
    writer = Helper(lambda parent: write_when_asked(parent, held_map))
    assert writer.hear() == "ready"
    owner = stepping.stop_at_change(
        lambda: RHashMap.open(held_map.name),
        update_key_3,
        segment,
        middle_of_update(held_map, segment),
    )
    with owner:
        assert not writer.ask("write")

        owner.kill()

        assert writer.ask("write")
    writer.end()
    expect_all_at_rest(held_map)


# ---- storms ----


def storm_inside(parent, m, books, slots, seed, kills_wanted, doubts):
    """In a helper: pid 1 of its namespace kills workers and replaces them.

    `doubts` receives the storm's shared_doubts.
    """

    def rage():
        assert os.getpid() == 1
        with Storm(m, books, seed, slots=slots) as storm:
            storm.start_all()
            parent.say("begun")
            parent.wait()
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

    in_child(rage)


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
            lambda parent, side=side: storm_inside(
                parent, m, books, [2 * side, 2 * side + 1], seed + side, kills_wanted, doubts[side]
            )
        )
        for side in (0, 1)
    ]
    for helper in helpers:
        assert helper.hear() == "begun"
    for helper in helpers:
        helper.tell()
    began = time.monotonic()
    while any(not helper.has_ended() for helper in helpers):
        books.phase = (GROWING, SHRINKING)[int(time.monotonic() - began) % 2]
        time.sleep(0.1)
    for helper in helpers:
        helper.result()

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
