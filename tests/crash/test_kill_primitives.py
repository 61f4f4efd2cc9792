"""Holders, waiters and wakers of every lock primitive are killed at random (C1, C2).

Workers change shared words by plain loads and stores, which the primitive guards, and keep accounts
that outlive them (support/turns.py). So two workers inside at once, a wake-up that is lost, a
permit that is lost or comes back twice, and a death that the next owner is not told of leave wrong
numbers, or a worker that makes no progress.
"""

import contextlib
import os
from collections import Counter
from threading import BrokenBarrierError

import pytest
from support.locking import TellsAgain
from support.turns import Books, Storm

from shmrhash import (
    Barrier,
    Condition,
    Event,
    Lock,
    Orphan,
    RLock,
    RWLock,
    Semaphore,
    Sync,
)

KILLS = 15
KILLS_LONG = 10_000
KILLS_OF_MUTANTS = 100

# Shared words.
INSIDE, TURNS, ITEMS, LOGGED, OWNER = range(5)
LEFT, RIGHT = TURNS, ITEMS  # what a writer changes one after the other
BEGUN, ENDED = TURNS, ITEMS  # how often an event was to be set; was cleared
LOG = 16  # pairs: the process that was told, and of which dead one
LOG_MAX = 60_000
LEAVES = 1  # in OWNER, beside twice the pid: from here on this owner may have released the lock
DONE = 0  # a worker's note
DEAD, LIVING = 77, 78  # pids, of which the first was killed

PERMITS = 2
ROOM = 3
PARTIES = 3


@pytest.fixture
def space(map_name):
    with Sync(map_name) as made:
        yield made
        made.check()
    made.unlink()


# ---- Lock and RLock: one inside, each turn counted, each death told once ----


def take_turns(lock, books, me, rng):
    words = books.shared
    while True:
        chance = rng.random()
        if chance < 0.1:
            taken = lock.acquire(timeout=0.001)
        elif chance < 0.2:
            taken = lock.acquire(blocking=False)
        else:
            taken = lock.acquire()
        me.step()
        if not taken:
            continue
        enter(lock.orphan, books)
        words[INSIDE] = os.getpid()
        words[TURNS] += 1
        me[DONE] += 1
        assert words[INSIDE] == os.getpid(), "another worker is inside, too"
        words[INSIDE] = 0
        words[OWNER] |= LEAVES
        lock.release()


def enter(orphan, books):
    """Inside: a death must be told to the next owner, and to no other one. orphan: what the lock
    tells this owner.

    What an owner is told is in the ledger before anything else, and outlives it.
    """
    words = books.shared
    last, leaves = divmod(words[OWNER], 2)
    if orphan is None:
        assert words[INSIDE] == 0, "its last owner died inside, and this one is not told"
        assert leaves or not last, f"{last} died holding the lock, and this owner is not told"
    else:
        assert orphan.pid in books.killed(), "told of a death that was none"
        count = words[LOGGED]
        words[LOG + 2 * count] = os.getpid()
        words[LOG + 2 * count + 1] = orphan.pid
        words[LOGGED] = count + 1
    words[OWNER] = os.getpid() * 2


def expect_turns(books, kills, deaths):
    """Every turn was counted, and no death was told twice, not even to an owner that died of its
    own before it released the lock. deaths: how many owners died, by the lock's count."""
    words = books.shared
    done = sum(account[DONE] for account in books.accounts)
    assert abs(words[TURNS] - done) <= kills
    assert words[LOGGED] < LOG_MAX
    assert words[LOGGED] <= deaths, "more deaths are told than owners died"
    told = Counter(words[LOG + 2 * number + 1] for number in range(words[LOGGED]))
    for dead, times in told.items():
        assert times <= books.times_killed(dead), f"the death of {dead} is told {times} times"


def storm_of_locks(kind, space, seed, kills):
    lock = kind("it", space=space)
    job = lambda books, me, rng: take_turns(lock, books, me, rng)  # noqa: E731
    with Storm([job] * 4, seed) as storm:
        storm.rage(kills)
        assert storm.books.shared[TURNS] > kills
    assert lock.acquire(timeout=60)
    enter(lock.orphan, storm.books)
    lock.release()
    deaths = lock.space._cells.words(lock._index)["deaths"]
    expect_turns(storm.books, kills + 4, deaths)
    print(f"{kind.__name__}: {deaths} died inside, {storm.books.shared[LOGGED]} of these were told")
    return storm


@pytest.mark.thorough
def test_a_storm_finds_a_lock_that_tells_twice(space, seed):
    with pytest.raises(AssertionError, match=r"told \d times|more deaths are told"):
        storm_of_locks(TellsAgain, space, seed, KILLS_OF_MUTANTS)


# What owners are told, one after another: the pid of a dead process, or None; and whether the owner
# gets as far as its release.
WRONG_TELLINGS = {
    "twice": [(None, False), (DEAD, True), (DEAD, True)],
    "to an owner that dies, and to another": [(None, False), (DEAD, False), (DEAD, True)],
    "to the third owner again": [(None, False), (DEAD, True), (None, True), (DEAD, True)],
    "to nobody": [(None, False), (None, True)],
    "to nobody, after another death": [(None, False), (DEAD, False), (None, True)],
    "of a process that lives": [(None, True), (LIVING, True)],
}


@pytest.mark.parametrize("tellings", WRONG_TELLINGS.values(), ids=WRONG_TELLINGS)
def test_the_ledger_finds_deaths_that_are_told_wrongly(tellings):
    books = Books(1)
    books.note_killed(DEAD)

    def tell():
        for pid, leaves in tellings:
            enter(pid and Orphan(pid, "", 0.0), books)
            books.shared[OWNER] |= LEAVES * leaves
        expect_turns(books, 1, deaths=len(tellings))

    with pytest.raises(AssertionError, match="told"):
        tell()


def test_the_ledger_accepts_a_pid_that_is_used_again():
    books = Books(1)
    for _ in range(2):
        books.note_killed(DEAD)
        enter(Orphan(DEAD, "", 0.0), books)

    expect_turns(books, 1, deaths=2)


# ---- Semaphore: at most so many have a permit, and none is lost ----


def holders(books):
    """How many workers had a permit at one moment, if nothing changed while this looked; else 0."""

    def look():
        return [
            account.words[account.PROGRESS : account.HAS + 1].tolist() for account in books.accounts
        ]

    # Each worker counts a step between two permits: one that looks the same twice had its permit
    # all the time between.
    before, after = look(), look()
    if before != after:
        return 0
    return sum(words[-1] for words in after if not words[-2])


def use_permits(semaphore, books, me, rng):
    while True:
        taken = semaphore.acquire(timeout=0.001 if rng.random() < 0.2 else None)
        me.step()
        if not taken:
            continue
        me.words[me.HAS] = 1
        holding = holders(books)
        assert holding <= PERMITS, f"{holding} have one of {PERMITS} permits"
        me.words[me.HAS] = 0
        semaphore.release()


def storm_of_semaphores(space, seed, kills):
    semaphore = Semaphore(PERMITS, "it", space=space)
    job = lambda books, me, rng: use_permits(semaphore, books, me, rng)  # noqa: E731
    with Storm([job] * 4, seed) as storm:
        storm.rage(kills)
    space.check()
    for _ in range(PERMITS):
        assert semaphore.acquire(timeout=60), "a permit is lost"
    assert semaphore.get_value() == 0, "there are more permits than before"
    semaphore.release(PERMITS)
    return storm


# ---- RWLock: a writer alone, readers together; a dead writer is told of until it is mended ----


def read_or_write(table, books, me, rng):
    while True:
        writes = rng.random() < 0.3
        acquire = table.acquire_write if writes else table.acquire_read
        taken = acquire(timeout=0.001) if rng.random() < 0.2 else acquire()
        me.step()
        if taken and writes:
            write(table, books)
            me[DONE] += 1
            table.release_write()
        elif taken:
            read(table, books)
            table.release_read()


def expect_whole(table, books):
    """What the lock protects is half done only if a writer died, and this one is told of it."""
    words, orphan = books.shared, table.orphan
    if orphan is None:
        assert words[LEFT] == words[RIGHT], "half done, and nobody is told to have died"
        assert words[INSIDE] == 0, "a writer is inside"
    else:
        assert orphan.pid in books.killed(), "told of a death that was none"


def write(table, books):
    words = books.shared
    expect_whole(table, books)
    words[INSIDE] = os.getpid()
    words[LEFT] += 1
    words[RIGHT] = words[LEFT]
    assert words[INSIDE] == os.getpid(), "another writer is inside, too"
    words[INSIDE] = 0


def read(table, books):
    words = books.shared
    expect_whole(table, books)
    before = words[LEFT], words[RIGHT], words[INSIDE]
    expect_whole(table, books)
    assert before == (words[LEFT], words[RIGHT], words[INSIDE]), "a writer came in beside a reader"


def storm_of_rwlocks(space, seed, kills):
    table = RWLock("it", space=space)
    job = lambda books, me, rng: read_or_write(table, books, me, rng)  # noqa: E731
    with Storm([job] * 4, seed) as storm:
        storm.rage(kills)
    done = sum(account[DONE] for account in storm.books.accounts)
    assert done > 0
    assert abs(storm.books.shared[LEFT] - done) <= kills + 4
    assert table.acquire_write(timeout=60), "a dead reader or writer is never taken off"
    assert table.readers == 0
    table.release_write()
    return storm


# ---- Event: no waiter sleeps through a set(), and none is woken without one ----


def ring(event, books, me, _rng):
    words = books.shared
    while True:
        words[BEGUN] += 1
        event.set()
        event.clear()
        words[ENDED] = words[BEGUN]
        me.step()


def listen(event, books, me, rng):
    words = books.shared
    while True:
        ended = words[ENDED]
        if event.wait(0.001 if rng.random() < 0.2 else None):
            assert words[BEGUN] > ended, "woken, though the event has not been set since"
            me[DONE] += 1
        me.step()


def storm_of_events(space, seed, kills):
    event = Event("it", space=space)
    ringing = lambda books, me, rng: ring(event, books, me, rng)  # noqa: E731
    listening = lambda books, me, rng: listen(event, books, me, rng)  # noqa: E731
    with Storm([ringing, listening, listening, listening], seed) as storm:
        storm.rage(kills)
    assert all(account[DONE] > 0 for account in storm.books.accounts[1:])
    return storm


# ---- Condition: items are put in and taken out; no notification is lost ----


def put_items(full, empty, books, me, rng):
    words = books.shared
    while True:
        with full:
            while words[ITEMS] >= ROOM:
                empty.wait(0.001 if rng.random() < 0.1 else None)
                me.step()
            words[ITEMS] += 1
            full.notify()
        me[DONE] += 1
        me.step()


def take_items(full, empty, books, me, rng):
    words = books.shared
    while True:
        with full:
            while words[ITEMS] == 0:
                full.wait(0.001 if rng.random() < 0.1 else None)
                me.step()
            assert 0 < words[ITEMS] <= ROOM
            words[ITEMS] -= 1
            empty.notify()
        me[DONE] += 1
        me.step()


def storm_of_conditions(space, seed, kills):
    lock = Lock("lock", space=space)
    full, empty = Condition(lock, "full"), Condition(lock, "empty")
    putting = lambda books, me, rng: put_items(full, empty, books, me, rng)  # noqa: E731
    taking = lambda books, me, rng: take_items(full, empty, books, me, rng)  # noqa: E731
    with Storm([putting, putting, taking, taking], seed) as storm:
        storm.rage(kills)
        put, taken = (
            sum(account[DONE] for account in accounts)
            for accounts in (storm.books.accounts[:2], storm.books.accounts[2:])
        )
    assert abs(put - taken) <= ROOM + kills + 4
    return storm


# ---- Barrier: a death breaks it; then it is reset, and all meet again ----


def meet(space, books, me, _rng):
    words = books.shared

    def note_turn():
        words[TURNS] += 1

    barrier = Barrier(PARTIES, note_turn, key="it", space=space)
    while True:
        me.step()
        before = words[TURNS]
        with contextlib.suppress(BrokenBarrierError):
            barrier.wait()
            assert words[TURNS] > before, "passed a barrier before all had come"
            me[DONE] += 1
            continue
        if barrier.broken:
            barrier.reset()


def storm_of_barriers(space, seed, kills):
    job = lambda books, me, rng: meet(space, books, me, rng)  # noqa: E731
    with Storm([job] * PARTIES, seed) as storm:
        storm.rage(kills)
    passed = sum(account[DONE] for account in storm.books.accounts)
    assert 0 < passed <= PARTIES * storm.books.shared[TURNS]
    return storm


STORMS = {
    "Lock": lambda *arguments: storm_of_locks(Lock, *arguments),
    "RLock": lambda *arguments: storm_of_locks(RLock, *arguments),
    "RWLock": storm_of_rwlocks,
    "Semaphore": storm_of_semaphores,
    "Event": storm_of_events,
    "Condition": storm_of_conditions,
    "Barrier": storm_of_barriers,
}
BRIEF = {"Lock", "RWLock", "Condition"}  # the quick tests kill the users of these


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in BRIEF else pytest.mark.thorough) for kind in STORMS],
)
def test_kills_leave_no_process_stuck_and_nothing_wrong(space, seed, kind):
    storm = STORMS[kind](space, seed, KILLS)

    assert storm.kills == KILLS


@pytest.mark.long
@pytest.mark.parametrize("kind", STORMS)
def test_ten_thousand_kills_leave_no_process_stuck_and_nothing_wrong(space, seed, kind):
    storm = STORMS[kind](space, seed, KILLS_LONG)

    went_on = sorted(storm.went_on_s)
    print(
        f"{kind}: after {storm.kills} kills another went on within "
        f"{went_on[len(went_on) // 2] * 1e3:.1f} ms (half), "
        f"{went_on[len(went_on) * 99 // 100] * 1e3:.1f} ms (99 %), {went_on[-1] * 1e3:.1f} ms; "
        f"the longest stand was {storm.stood_s_max:.3f} s of the storm's clock"
    )
    assert storm.kills == KILLS_LONG
