"""On a full file system, an operation that needs memory raises an error; never SIGBUS (M1).

The file system has 2 MiB. A worker that dies by any signal but our kill fails the test
(Storm.watch, reap).
"""

import contextlib
import faulthandler
import itertools
import os
import signal
import subprocess
import time

import pytest
from support.children import Child, Partner, in_child
from support.ledger import (
    GROWING,
    NOEXIST,
    SHRINKING,
    VALUE_SIZE,
    Books,
    Ledger,
    Storm,
    expect_all_at_rest,
    expect_ledgers,
    value_of,
    version_in,
    word,
)

import shmrhash
from shmrhash import RHashMap

SIZE_BYTES = 2 << 20
ENTRIES_MAX = 100_000  # far more than there is memory for
FULL_WORKERS = 3


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tmpfs of 2 MiB as the directory of segments."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=1777", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is refused: {done.stderr.strip()}")
    with monkeypatch.context() as patch:
        patch.setenv("SHMRHASH_DIR", str(folder))
        yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def m(small, map_name):
    with RHashMap.create(
        map_name, key_size=8, value_size=VALUE_SIZE, max_entries=ENTRIES_MAX
    ) as shared_map:
        yield shared_map
        shared_map.check()
        shared_map.unlink()


def free_bytes(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


def fill_the_rest(folder):
    """Make a file that takes every free page."""
    path = folder / "ballast"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert free_bytes(folder) == 0
    return path


def fill(m, first):
    """Insert keys from `first` on until memory is refused; return how many were inserted."""
    for key in itertools.count(first):
        try:
            m.update(word(key), value_of(key, 1), NOEXIST)
        except shmrhash.SegmentFull:
            return key - first
    raise AssertionError("memory without end")


def fill_and_report(m, first, count_at):
    count_at[0] = fill(m, first)


def test_processes_that_fill_the_file_system_are_refused_and_go_on(m, small):
    """M1: several processes fill the file system; all are refused, all can read and delete."""
    books = Books(FULL_WORKERS, 1)
    first = [number << 20 for number in range(FULL_WORKERS)]
    children = [
        Child(fill_and_report, m, first[number], books.ledgers[number].words)
        for number in range(FULL_WORKERS)
    ]
    for child in children:
        child.result()

    counts = [ledger.words[0] for ledger in books.ledgers]
    assert sum(counts) == len(m) > 1000
    keys = [
        key
        for start, count in zip(first, counts, strict=True)
        for key in range(start, start + count)
    ]
    assert free_bytes(small) < 128 << 10

    # This process and a new one read and update in place, and find the right values.
    def use():
        for key in keys:
            assert version_in(key, m[word(key)]) == 1
            m.update(word(key), value_of(key, 1))
        with RHashMap.open(m.name, read_only=True) as reader:
            assert version_in(keys[0], reader[word(keys[0])]) == 1

    use()
    in_child(use)
    with pytest.raises(shmrhash.SegmentFull, match="free"):
        m.update(word(1 << 40), value_of(1 << 40, 1))
    m.check()

    # Deletions make room again, also for other keys.
    for key in keys[: len(keys) // 2]:
        m.delete(word(key))
    taken = fill(m, 1 << 30)
    assert taken >= len(keys) // 2 - 200  # some elements stay parked in depots
    m.check()
    m.clear()
    assert fill(m, 1 << 31) >= len(keys) - 200


def test_operations_that_need_no_memory_go_on_without_a_free_page(m, small):
    """M1: a foreign file takes the last page; operations that need no memory go on."""
    for key in range(100):
        m.update(word(key), value_of(key, 1))
    ballast = fill_the_rest(small)

    def use():
        for key in range(100):
            assert version_in(key, m[word(key)]) == 1
            m.update(word(key), value_of(key, 1))
        assert m.lookup(word(5000)) is None

    use()
    in_child(use)
    taken = fill(m, 1 << 20)
    with pytest.raises(shmrhash.SegmentFull):
        RHashMap.create(m.name + "-2", key_size=8, value_size=8, max_entries=10)
    m.check()
    for key in range(100):
        m.delete(word(key))
    m.check()

    ballast.unlink()
    assert fill(m, 1 << 21) > taken + 1000
    assert len(m) > 1000


@pytest.mark.thorough
def test_new_processes_without_a_free_page_get_an_error_or_work(m, small):
    """M1: a process whose slot or context needs memory gets an error, no signal; others go on."""
    m.update(word(1), value_of(1, 1))
    fill_the_rest(small)

    def come(parent):
        try:
            m.lookup(word(1))
            parent.say("worked")
        except shmrhash.SegmentFull:
            parent.say("refused")
        parent.wait()  # stay attached until all have come

    children = [Partner(come) for _ in range(100)]
    answers = [child.hear() for child in children]
    for child in children:
        child.tell()
    for child in children:
        child.result()

    assert "worked" in answers
    assert version_in(1, m[word(1)]) == 1
    (small / "ballast").unlink()
    expect_all_at_rest(m)


def survive_while_full(m, small, seed, kills_wanted):
    """Kill workers that are refused memory most of the time."""
    slots, keys_count = 3, 4000  # in sum twice as many keys as fit
    books = Books(slots, keys_count)
    books.open_accounts(m)
    with Storm(m, books, seed, tolerated=(shmrhash.SegmentFull,)) as storm:
        storm.start_all()
        began = time.monotonic()
        while storm.kills < kills_wanted:
            books.phase = SHRINKING if (time.monotonic() - began) % 3 > 2.5 else GROWING
            time.sleep(storm.rng.uniform(0, 0.02))
            storm.watch()
            ready = storm.at_work()
            if ready:
                slot = storm.rng.choice(ready)
                storm.kill([slot])
                storm.start(slot)
        storm.kill(storm.slots)
        doubts = storm.shared_doubts
    refusals = sum(ledger.words[Ledger.REFUSALS] for ledger in books.ledgers)
    print(f"seed {seed}: {kills_wanted} kills, {refusals} refusals, {len(m)} entries")

    expect_all_at_rest(m)
    expect_ledgers(m, books, doubts)
    assert refusals > 100
    taken = fill(m, 1 << 42)
    assert free_bytes(small) < 128 << 10
    for key in range(1 << 42, (1 << 42) + taken):
        m.delete(word(key))
    expect_ledgers(m, books, doubts)
    before = len(m)
    m.clear()
    expect_all_at_rest(m)
    again = fill(m, 1 << 42)
    assert again >= before + taken - 200, "memory is lost"


@pytest.mark.thorough
def test_kills_while_memory_is_refused_lose_nothing(m, small, seed):
    """M1, C1: workers are killed; the ledgers are right, and all memory can be used afterwards."""
    survive_while_full(m, small, seed, 60)


@pytest.mark.long
def test_many_kills_while_memory_is_refused_lose_nothing(m, small, seed, duration):
    """M1, C1: the test above with 1,000 kills for each second of --duration."""
    survive_while_full(m, small, seed, int(1000 * duration))


def test_death_of_a_worker_by_sigbus_is_noticed():
    """M1: the check for SIGBUS that these tests use finds one."""

    def die():
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGBUS)

    assert Child(die).join() == -signal.SIGBUS


# ---- newcomers ----


def read_and_stay(parent, name):
    """In a new process: read, report the result, and stay until told to leave."""
    with RHashMap.open(name) as shared_map:
        parent.say(shared_map.lookup(word(1)))
        parent.wait()


def test_a_full_file_system_has_room_for_new_processes(small, map_name):
    """M1: restarted workers can read as those before them could: slots and contexts are committed
    ahead, before the last page is taken."""
    newcomers = 16
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=100) as m:
        m.update(word(1), word(7))
        fill_the_rest(small)
        children = [Partner(read_and_stay, map_name) for _ in range(newcomers)]

        answers = [child.hear() for child in children]
        for child in children:
            child.tell()
        for child in children:
            child.result()

        assert answers == [word(7)] * newcomers
        m.check()
        m.unlink()
