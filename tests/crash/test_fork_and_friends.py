"""Fork, spawn, daemons, exits during operations: liveness belongs to the address space (C3).

Where an owner has to be in the middle of an operation, stepping.py stops it there; where many
processes have to die, ledger.py knows what each had done.
"""

import ctypes
import fcntl
import multiprocessing
import os
import random
import signal
import struct
import sys
import threading
import time

import pytest
from support import stepping
from support.children import in_child, kill, stays
from support.ledger import (
    VALUE_SIZE,
    Books,
    Ledger,
    Storm,
    expect_all_at_rest,
    expect_exact_limit,
    expect_ledgers,
    word,
    work,
    work_on_files,
)
from support.workers import FORKSERVER, SPAWN

import shmrhash
from shmrhash import RHashMap

TIMEOUT_S = 0.2
HELD_WORDS = 256
PATIENCE_S = 20.0
PROCESS_MAX = 1024
DESCRIPTORS_MAX = 1024
F_OFD_GETLK = 36
SYS_PIDFD_GETFD = 438  # the same on every machine


def put(m, key, number):
    """Store a value that has the number in each of its words."""
    m.update(word(key), word(number) * (m.value_size // 8))


def number_of(m, key):
    value = m[word(key)]
    assert value == value[:8] * (m.value_size // 8)
    return int.from_bytes(value[:8], "little")


def until(condition):
    """Wait until the condition, which a child brings about, is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- owners in the middle of an update of key 3, in all kinds of processes ----


def plainly(m):
    """A handle of the child's own, which has been used."""
    own = RHashMap.open(m.name)
    put(own, 1, 1)
    return own


def inherited(m):
    """The parent's handle; the child registers itself at its first operation."""
    return m


def with_all_descriptors_closed(m):
    """Close all descriptors, as daemons do, after the handle has registered."""
    own = RHashMap.open(m.name)
    put(own, 1, 1)
    os.closerange(3, DESCRIPTORS_MAX)
    return own


def with_all_descriptors_reused(m):
    """As above, and then the numbers of the closed descriptors are those of other files."""
    own = with_all_descriptors_closed(m)
    for _ in range(50):
        os.open("/dev/null", os.O_RDWR)
    return own


def as_a_daemon_that_registers_late(m):
    """An inherited handle whose descriptor is gone before its first operation."""
    os.closerange(3, DESCRIPTORS_MAX)
    os.setsid()
    os.chdir("/")
    for _ in range(50):
        os.open("/dev/zero", os.O_RDWR)
    return m


def with_a_second_handle_closed(m):
    """Two attachments of one process; the first is closed."""
    first, second = RHashMap.open(m.name), RHashMap.open(m.name)
    put(first, 1, 1)
    put(second, 2, 1)
    first.close()
    return second


def with_a_second_handle_open(m):
    """Two attachments of one process; the first performs the operation."""
    first, second = RHashMap.open(m.name), RHashMap.open(m.name)
    put(second, 2, 1)
    return first, second


def with_a_child_that_lives_on(m):
    """The owner has forked; its child has every mapping and descriptor that fork hands down."""
    own = RHashMap.open(m.name)
    put(own, 1, 1)
    if os.fork() == 0:
        signal.pause()
        os._exit(0)
    return own


def with_a_child_of_another_program(m):
    """The owner has forked; its child runs another program, with all inheritable descriptors."""
    own = RHashMap.open(m.name)
    put(own, 1, 1)
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])
    return own


OWNERS = [
    plainly,
    inherited,
    with_all_descriptors_closed,
    with_all_descriptors_reused,
    as_a_daemon_that_registers_late,
    with_a_second_handle_closed,
    with_a_second_handle_open,
    with_a_child_that_lives_on,
    with_a_child_of_another_program,
]


def update_key_3(state):
    put(state[0] if isinstance(state, tuple) else state, 3, 9)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture
def held_map(make_map):
    m = make_map(value_size=8 * HELD_WORDS, max_entries=64, timeout=TIMEOUT_S)
    for key in range(1, 6):
        put(m, key, 1)
    return m


def stopped_in_the_middle(m, prepare_owner):
    """A child stopped in the middle of its update of key 3, so that other writers have to wait.

    An update writes the redo buffer, commits, and copies the buffer into the element.
    """
    segment = stepping.Segment(stepping.segment_path(m.name))
    middle = stepping.changes_until(lambda: plainly(m), update_key_3, segment, 3 / 4)
    return stepping.stop_at_change(lambda: prepare_owner(m), update_key_3, segment, middle)


@pytest.mark.parametrize("prepare_owner", OWNERS)
@pytest.mark.usefixtures("stepper")
def test_live_owner_is_not_robbed_and_a_dead_one_is_recovered(held_map, prepare_owner):
    """C3: the same owner is stopped and then killed; its children, if any, live on."""
    left = []
    with stopped_in_the_middle(held_map, prepare_owner) as child:
        left += children_of(child.pid)
        with pytest.raises(shmrhash.LockTimeout):
            put(held_map, 3, 5)
        assert number_of(held_map, 3) == 9

        child.kill()

    try:
        put(held_map, 3, 5)
        assert number_of(held_map, 3) == 5
        expect_all_at_rest(held_map)
        assert held_map.info()["contexts"] == 1
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("stepper")
@pytest.mark.parametrize("prepare_owner", OWNERS[2:5])
def test_process_without_descriptors_recovers_others(held_map, prepare_owner):
    """C2, C3: a daemon that closed, or closed and reused, every descriptor meets a dead owner."""
    with stopped_in_the_middle(held_map, plainly) as child:
        child.kill()

    def meet():
        m = prepare_owner(held_map)
        put(m, 3, 5)
        m.check()

    in_child(meet)
    assert number_of(held_map, 3) == 5


@pytest.mark.usefixtures("stepper")
def test_child_of_a_killed_parent_recovers_it(held_map):
    """C2, C3: a child that the dead owner forked finishes the owner's update."""
    told, tell = os.pipe()

    def prepare():
        own = RHashMap.open(held_map.name)
        put(own, 1, 1)
        if os.fork() == 0:
            if os.read(told, 1) == b"g":
                put(own, 3, 5)
            os._exit(0)
        return own

    with stopped_in_the_middle(held_map, lambda _: prepare()) as child:
        (left,) = children_of(child.pid)
        child.kill()
    os.write(tell, b"g")

    until(lambda: number_of(held_map, 3) == 5)
    until(lambda: not os.path.exists(f"/proc/{left}"))
    os.close(told)
    os.close(tell)
    expect_all_at_rest(held_map)


# ---- many processes ----


@pytest.fixture
def storm_map(make_map):
    return make_map(value_size=VALUE_SIZE, max_entries=1200)


def settle_all(m, books, deaths, seed):
    """Settle processes that the Storm did not start, as it does after a kill."""
    with Storm(m, books, seed) as storm:
        for slot in deaths:
            storm.settle(books.ledgers[slot])
        return storm.shared_doubts


@pytest.mark.parametrize("method", [SPAWN, FORKSERVER])
def test_killed_multiprocessing_workers_lose_nothing(method, storm_map, tmp_path, seed):
    """C1, C3: workers that received the map by pickling are killed in the middle of their work."""
    m, path, slots, keys_count = storm_map, tmp_path / "books", 2, 300
    books = Books(slots, keys_count, path)
    books.open_accounts(m)
    context = multiprocessing.get_context(method)
    doubts = [0] * Ledger.SUM_COUNT

    for turn in range(2):
        before = [ledger.words[Ledger.PROGRESS] for ledger in books.ledgers]
        workers = [
            context.Process(
                target=work_on_files,
                args=(m, path, slots, keys_count, slot, seed + 10 * turn + slot),
                daemon=True,
            )
            for slot in range(slots)
        ]
        for worker in workers:
            worker.start()
        until(
            lambda before=before: all(
                ledger.words[Ledger.PROGRESS] > then + 200
                for ledger, then in zip(books.ledgers, before, strict=True)
            )
        )
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
            assert worker.exitcode == -signal.SIGKILL
            worker.close()
        found = settle_all(m, books, range(slots), seed)
        doubts = [old + new for old, new in zip(doubts, found, strict=True)]

    expect_all_at_rest(m)
    expect_ledgers(m, books, doubts)
    expect_exact_limit(m)


def test_children_forked_while_threads_work_lose_nothing(storm_map, seed):
    """C3: children forked during the operations of other threads work, and are killed at work."""
    m, books = storm_map, Books(4, 200)
    books.open_accounts(m)
    rng = random.Random(seed)
    stop = threading.Event()
    troubles = []

    class Stopped(Exception):
        pass

    class LedgerOfThread(Ledger):
        def step(self):
            if stop.is_set():
                raise Stopped
            super().step()

    def thread_work(slot):
        ledger = LedgerOfThread(books.ledgers[slot].words, slot, books.keys_count)
        try:
            work(m, books, ledger, random.Random(seed + slot))
        except Stopped:
            pass
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=thread_work, args=(slot,)) for slot in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        with Storm(m, books, seed, slots=[2, 3]) as storm:
            for _ in range(10):
                # PR_SET_PDEATHSIG concerns the thread that forked: it has to outlive its children.
                begun = threading.Event()
                over = threading.Event()

                def fork_and_stay(begun=begun, over=over):
                    storm.start_all()
                    begun.set()
                    over.wait()

                forker = threading.Thread(target=fork_and_stay)
                forker.start()
                begun.wait()
                wanted = rng.randrange(1, 30)
                until(
                    lambda wanted=wanted: all(
                        books.ledgers[slot].words[Ledger.PROGRESS]
                        > storm.steps_before[slot] + wanted
                        for slot in (2, 3)
                    )
                )
                storm.watch()
                storm.kill([2, 3])
                over.set()
                forker.join()
            doubts = storm.shared_doubts
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert not troubles
    expect_all_at_rest(m)
    expect_ledgers(m, books, doubts)
    expect_exact_limit(m)


def test_exit_during_operations_of_other_threads_loses_nothing(storm_map, seed):
    """C1, C3: os._exit ends the process while its threads are anywhere, as a kill would."""
    m, books = storm_map, Books(2, 300)
    books.open_accounts(m)
    rng = random.Random(seed)
    doubts = [0] * Ledger.SUM_COUNT

    def exit_after(steps, until_slot_0):
        def thread_work(slot):
            work(m, books, books.ledgers[slot], random.Random(seed + slot + steps))

        for slot in (0, 1):
            threading.Thread(target=thread_work, args=(slot,), daemon=True).start()
        while books.ledgers[0].words[Ledger.PROGRESS] < until_slot_0:
            pass
        os._exit(0)

    for _ in range(20):
        steps = rng.randrange(1, 100)
        in_child(exit_after, steps, books.ledgers[0].words[Ledger.PROGRESS] + steps)
        found = settle_all(m, books, (0, 1), seed)
        doubts = [old + new for old, new in zip(doubts, found, strict=True)]

    expect_all_at_rest(m)
    expect_ledgers(m, books, doubts)
    expect_exact_limit(m)


# ---- slots ----


def attach_and_die(m, count, at_once=20):
    """Fork `count` children and kill each after its first operation."""
    children = []
    for number in range(count):
        children.append(stays(put, m, number % 50, number + 1))
        if len(children) == at_once or number + 1 == count:
            kill(*children)
            children.clear()


def reuse_slots(make_map, count):
    m = make_map(value_size=VALUE_SIZE, max_entries=64)
    put(m, 0, 1)

    attach_and_die(m, count)

    for key in range(50):
        last = max(number for number in range(key, count, 50)) + 1
        assert number_of(m, key) == last
    expect_all_at_rest(m)
    info = m.info()
    assert info["contexts"] == 1
    assert info["recoveries"] >= count
    with RHashMap.open(m.name) as other:
        assert max(one["index"] for one in other.info()["attached"]) < 2, (
            "the dead's slots are free again"
        )


@pytest.mark.thorough
def test_slots_of_killed_processes_are_used_again(make_map):
    """C2, C3: 100 processes attach and are killed; their slots are free again."""
    reuse_slots(make_map, 100)


@pytest.mark.long
def test_more_processes_may_be_killed_than_there_are_slots(make_map):
    """C2, C3: 1,100 processes attach and are killed, where 1,024 may be attached at once."""
    reuse_slots(make_map, 1100)


def locked_bytes(path, first, count):
    """The bytes of a file on which a process holds an open-file-description lock."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        found = []
        for byte in range(first, first + count):
            wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            kind = struct.unpack_from("h", fcntl.fcntl(fd, F_OFD_GETLK, wanted))[0]
            if kind != fcntl.F_UNLCK:
                found.append(byte)
        return found
    finally:
        os.close(fd)


def descriptors_of(pid, path):
    """Copy the descriptors that a process has of a file, as fork would."""
    pidfd = os.pidfd_open(pid)
    try:
        copies = []
        for number in os.listdir(f"/proc/{pid}/fd"):
            if os.path.samefile(f"/proc/{pid}/fd/{number}", path):
                copy = ctypes.CDLL(None).syscall(SYS_PIDFD_GETFD, pidfd, int(number), 0)
                if copy < 0:
                    pytest.skip("pidfd_getfd is not permitted here")
                copies.append(copy)
        return copies
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("stepper")
def test_child_forked_during_a_recovery_does_not_keep_its_lock(held_map):
    """C2, C3: one thread recovers while another forks; the child lives on and stops no recovery.

    The test copies the descriptors of the recovering process, as a forked child would have them.
    """
    path = stepping.segment_path(held_map.name)
    with stopped_in_the_middle(held_map, plainly) as child:
        child.kill()
    recoverer = stepping.stop_at_change(
        lambda: held_map, lambda m: m._recover(), stepping.Segment(path), 1
    )
    with recoverer:
        copies = descriptors_of(recoverer.pid, path)
        assert copies
        assert not locked_bytes(path, PROCESS_MAX, PROCESS_MAX), "a recovery locks no byte"

        assert recoverer.wait() == 1

    try:
        for _ in range(2):
            with stopped_in_the_middle(held_map, plainly) as child:
                child.kill()
            put(held_map, 3, 5)
    finally:
        for copy in copies:
            os.close(copy)


@pytest.mark.usefixtures("stepper")
def test_child_forked_during_a_wait_detaches_when_it_closes(held_map):
    """C3: a child that is forked while a thread waits is detached when it has closed the map."""

    def use_and_close(patient):
        put(patient, 4, 2)
        patient.close()

    with (
        stopped_in_the_middle(held_map, plainly) as child,
        RHashMap.open(held_map.name, timeout=60) as patient,
    ):
        writer = threading.Thread(target=put, args=(patient, 3, 5))
        writer.start()
        try:
            with stays(use_and_close, patient) as closer:
                assert closer.pid not in held_map.info()["pids"]
        finally:
            child.kill()
            writer.join()
    assert [number_of(held_map, key) for key in (3, 4)] == [5, 2]


@pytest.mark.usefixtures("stepper")
def test_child_forked_by_a_signal_handler_leaves_the_parents_wait_alone(held_map):
    """C3: a signal handler forks in the middle of a wait, and the child unwinds from there.

    The operation, and the context it uses, are the parent's: the child must not touch them.
    """
    children = []
    waiting = RHashMap.open(held_map.name, timeout=TIMEOUT_S)
    put(waiting, 1, 1)

    def handler(*_):
        children.append(os.fork())
        if children[0] == 0:
            raise SystemExit

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with stopped_in_the_middle(held_map, plainly) as child:
            signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S / 2)
            try:
                put(waiting, 3, 5)
            except shmrhash.LockTimeout:
                pass
            except SystemExit:  # in the child
                try:
                    put(waiting, 4, 2)
                    waiting.close()
                finally:
                    os._exit(0)
            (forked,) = children
            assert os.waitpid(forked, 0)[1] == 0
            child.kill()
    finally:
        signal.signal(signal.SIGALRM, before)

    assert number_of(held_map, 4) == 2
    put(waiting, 3, 5)
    # check() would not be exact if the other handle's context looked as if it were in an operation.
    expect_all_at_rest(held_map)  # both handles of this process have one slot
    waiting.close()
    expect_all_at_rest(held_map)
