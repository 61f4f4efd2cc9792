"""A stopped owner is not dead: no process robs it, and writers of other keys do not wait for it.

The first tests stop a child after its n-th change of the segment, which is every state that a
SIGSTOP can leave; the last one stops, continues and kills workers at random (ledger.py).
"""

import contextlib
import dataclasses
import errno
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from support import stepping
from support.killing import not_waiting, opened, starved_s
from support.ledger import (
    GROWING,
    SHRINKING,
    VALUE_SIZE,
    Books,
    Storm,
    expect_all_at_rest,
    expect_exact_limit,
    expect_ledgers,
    value_of,
    version_in,
    word,
)
from support.words import COLLIDING, SCATTERED

import shmrhash
from shmrhash import RHashMap

TIMEOUT_S = 0.2
TIMEOUT_SLACK_S = 2.0
FAR = 1000  # an entry in another bucket than the others, if the seeds are SCATTERED
FRESH = 2000
STATES = 14  # the number of states of an operation where not all are visited


def put(m, key, version):
    m.update(word(key), value_of(key, version))


def versions(m, keys):
    """The version under each key; the lookups must not wait (R1)."""
    with not_waiting(len(keys)):
        return {key: version_in(key, m.lookup(word(key))) for key in keys}


@dataclasses.dataclass(frozen=True)
class Held:
    """An operation that is stopped, and facts about it."""

    name: str
    operate: Callable
    key: int  # the key of the operation
    after: int  # the key's version after the operation
    entries: int
    seeds: tuple = SCATTERED
    neighbour_waits: bool = False  # an insert into the same bucket meets the owner's lock

    def __str__(self):
        return self.name.replace(" ", "-")


OPERATIONS = [
    Held("update", lambda m: put(m, 3, 9), 3, 9, 5),
    Held("insert", lambda m: put(m, 6, 9), 6, 9, 5),
    Held("delete", lambda m: m.delete(word(3)), 3, 0, 5),
    Held("insert into a long chain", lambda m: put(m, 9, 9), 9, 9, 8, COLLIDING, True),
    Held("delete from a long chain", lambda m: m.delete(word(3)), 3, 0, 8, COLLIDING, True),
    Held("insert that splits", lambda m: put(m, 16, 9), 16, 9, 15),
]


@contextlib.contextmanager
def stopped_states(held, make_map, sample, seed):
    """Yield the map, and a generator of (n, child) for states of the operation.

    The segment is restored before each.
    """
    m = make_map(value_size=VALUE_SIZE, max_entries=256, _seeds=held.seeds, timeout=TIMEOUT_S)
    put(m, FAR, 1)
    for key in range(1, held.entries + 1):
        put(m, key, 1)
    segment = stepping.Segment(stepping.segment_path(m.name))
    image = segment.image()
    whole = stepping.trace(opened(m.name), held.operate, segment)

    def states():
        for n in stepping.choose(len(whole.changes), sample, seed):
            segment.restore(image)
            with stepping.stop_at_change(
                opened(m.name),
                held.operate,
                segment,
                n,
                pcs=whole.pcs,
                again=lambda: segment.restore(image),
            ) as child:
                yield n, child

    yield m, states()


def goes_on_or_times_out(operation, *arguments):
    """Whether the operation succeeds; if not, LockTimeout comes in time and says EBUSY."""
    began, starved = time.monotonic(), starved_s()
    refusals = []
    try:
        operation(*arguments)
    except shmrhash.LockTimeout as refusal:
        refusals.append(refusal.errno)
    spent_s = time.monotonic() - began
    if not refusals:
        return True
    assert refusals == [errno.EBUSY]
    assert spent_s >= TIMEOUT_S
    assert spent_s - (starved_s() - starved) < TIMEOUT_S + TIMEOUT_SLACK_S
    return False


def stop_everywhere(held, make_map, sample, seed):
    outcomes = set()
    with stopped_states(held, make_map, sample, seed) as (m, states):
        keys = [*range(held.entries + 2), held.key, FAR, FRESH]
        for n, child in states:
            before = versions(m, keys)
            seen = before[held.key]
            assert seen in (0 if held.key > held.entries else 1, held.after), f"state {n}"

            # Other keys: an update, an insertion and a deletion.
            put(m, FAR, 2 + n)
            if held.seeds == SCATTERED:
                put(m, FRESH, 1)
                m.delete(word(FRESH))
            # The owner's key: the stopped owner may hold it, or have finished with it.
            wrote = goes_on_or_times_out(put, m, held.key, 7777)
            outcomes.add(wrote)
            now = versions(m, keys)
            assert now == before | {FAR: 2 + n} | ({held.key: 7777} if wrote else {})

            child.wait()

            last = versions(m, [held.key])[held.key]
            if not wrote:
                assert held.after == last, f"state {n}"
            elif held.after and held.after == seen:
                assert last == 7777, f"state {n}: it was done already"
            else:
                assert last in (7777, held.after), f"state {n}"
            assert version_in(FAR, m[word(FAR)]) == 2 + n
            assert m.check()["exact"]
    return outcomes


every_operation = pytest.mark.parametrize("held", OPERATIONS, ids=str)


@every_operation
@pytest.mark.usefixtures("stepper")
def test_stopped_owner_delays_only_writers_of_its_key(held, make_map, seed):
    """R1, R2, C3: a stopped owner delays no reader, and only writers of the same key."""
    stop_everywhere(held, make_map, STATES, seed)


@pytest.mark.long
@every_operation
@pytest.mark.usefixtures("stepper")
def test_stopped_owner_delays_only_writers_of_its_key_in_every_state(held, make_map, seed):
    """R1, R2, C3: all states of the operation; some of them hold up a writer of the same key."""
    assert {True, False} == stop_everywhere(held, make_map, None, seed)


@pytest.fixture
def owner(stepper, make_map, seed):
    """A map, and a stopped child that is updating its key 3."""
    update = OPERATIONS[0]
    with stopped_states(update, make_map, None, seed) as (m, states):
        with RHashMap.open(m.name, timeout=0) as hasty:
            for _, child in states:
                try:
                    put(hasty, 3, 1)
                except shmrhash.LockTimeout:
                    break
                child.kill()
                put(m, 3, 1)
            else:
                pytest.fail("no state in which the element is held")
        yield m, child
        states.close()


def test_waiting_writer_can_be_interrupted(owner):
    """R1, C3: Control-C ends a wait without timeout; the operation has not happened."""
    m, child = owner
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with RHashMap.open(m.name, timeout=None) as patient:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                put(patient, 3, 5)
            seen = versions(m, [3])[3]
            assert seen in (1, 9)

            child.wait()

            assert versions(m, [3])[3] == 9
            put(patient, 3, 5)
            assert versions(m, [3])[3] == 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signal_handler_may_use_the_map_while_its_thread_waits(owner):
    """R1: a signal handler that runs during a wait reads and writes through the same handle."""
    m, child = owner
    seen = []

    def handler(*_):
        put(m, 4, 44)
        seen.append(versions(m, [1, 3, 4]))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S / 4)
        assert not goes_on_or_times_out(put, m, 3, 5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert seen[0][4] == 44
    child.wait()


def test_other_threads_run_while_one_waits(owner):
    """R1: a wait holds no GIL; other threads compute, read and write through the same handle."""
    m, child = owner
    rounds, stop = [], threading.Event()

    def others():
        while not stop.is_set():
            put(m, 4, 1 + len(rounds))
            rounds.append(versions(m, [1, 3, 4]))

    thread = threading.Thread(target=others)
    thread.start()
    try:
        while not rounds:
            pass
        count = len(rounds)
        assert not goes_on_or_times_out(put, m, 3, 5)
        assert len(rounds) > count + 20
    finally:
        stop.set()
        thread.join()
    assert {1} == {found[1] for found in rounds}
    child.wait()
    assert versions(m, [3])[3] == 9


def test_waiting_writer_goes_on_when_the_owner_goes_on(owner):
    """C3: the owner is continued while a writer waits for it; both operations happen."""
    m, child = owner
    with RHashMap.open(m.name, timeout=60) as patient:
        writer = threading.Thread(target=put, args=(patient, 3, 5))
        writer.start()
        while not any(process["waits"] for process in patient.info()["attached"]):
            pass  # until the writer waits
        child.wait()
        writer.join()

    assert versions(m, [3])[3] == 5


def test_waiting_writer_recovers_a_killed_owner(owner):
    """C2: the owner is killed while a writer waits for it; the writer finishes its operation."""
    m, child = owner
    with RHashMap.open(m.name, timeout=60) as patient:
        writer = threading.Thread(target=put, args=(patient, 3, 5))
        writer.start()
        child.kill()
        writer.join(10)
        assert not writer.is_alive()

    assert versions(m, [3])[3] == 5
    assert m.info()["operations_finished"] + m.info()["operations_undone"] >= 1


# ---- at random ----


def look_at_the_stopped(storm, slot):
    """R1, R2: a stopped worker's operation is seen as not done or as done, and stays so."""
    ledger = storm.books.ledgers[slot]
    doubt = ledger.in_doubt()
    if doubt is None:
        return
    key, version = doubt
    found = version_in(key, storm.shared_map.lookup(word(key)))
    assert found in (ledger.version(key), version)
    assert found == version_in(key, storm.shared_map.lookup(word(key)))


def stop_and_go(storm, seconds, pause_s_max):
    """Stop and continue workers at random; a few die while they are stopped."""
    rng, books = storm.rng, storm.books
    stopped = {}  # slot -> when to continue
    stops = 0
    storm.start_all()
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        books.phase = (GROWING, SHRINKING)[int((now - began) / (seconds / 6)) % 2]
        for slot in [slot for slot, until in stopped.items() if until < now]:
            del stopped[slot]
            look_at_the_stopped(storm, slot)
            if rng.random() < 0.1:
                storm.kill([slot])
                storm.start(slot)
            else:
                os.kill(storm.children[slot].pid, signal.SIGCONT)
                storm.watches[slot].note()
        running = [slot for slot in storm.at_work() if slot not in stopped]
        if running and len(stopped) < len(storm.slots) - 1:
            slot = rng.choice(running)
            pid = storm.children[slot].pid
            os.kill(pid, signal.SIGSTOP)
            _, status = os.waitpid(pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"worker {slot}: {status:#x}"
            stopped[slot] = now + rng.uniform(0, pause_s_max)
            stops += 1
            look_at_the_stopped(storm, slot)
        for slot in stopped:
            storm.watches[slot].note()
        storm.watch()
        time.sleep(rng.uniform(0, 0.003))
    for slot in stopped:
        os.kill(storm.children[slot].pid, signal.SIGCONT)
    storm.kill(storm.slots)
    return stops


def survive_stops(make_map, seed, seconds):
    slots, keys_count, timeout = 4, 400, 0.05
    m = make_map(value_size=VALUE_SIZE, max_entries=slots * keys_count * 9 // 10, timeout=timeout)
    books = Books(slots, keys_count)
    books.open_accounts(m)

    with Storm(m, books, seed, tolerated=(shmrhash.LockTimeout,), timeout=timeout) as storm:
        stops = stop_and_go(storm, seconds, 4 * timeout)
        dead = storm.kills - m.info()["recoveries"]
        expect_ledgers(m, books, storm.shared_doubts, dead)

    expect_all_at_rest(m)
    expect_ledgers(m, books, storm.shared_doubts)
    expect_exact_limit(m)
    refusals = sum(ledger.words[ledger.REFUSALS] for ledger in books.ledgers)
    print(f"seed {seed}: {stops} stops, {storm.kills} kills, {refusals} refusals")
    assert stops > 3 * seconds


@pytest.mark.thorough
def test_randomly_stopped_workers_hold_up_no_other_keys(make_map, seed):
    """R1, R2, C1, W2: workers are stopped, continued, or killed while stopped; no entry is lost."""
    survive_stops(make_map, seed, 3.0)


@pytest.mark.long
def test_randomly_stopped_workers_hold_up_no_other_keys_in_a_long_run(make_map, seed, duration):
    """R1, R2, C1, W2: the test above for thirty times --duration seconds."""
    survive_stops(make_map, seed, 30 * duration)
