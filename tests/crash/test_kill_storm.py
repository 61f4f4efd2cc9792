"""Workers are killed at random, thousands of times, while others go on (C1, C2, R1, R2, W2).

ledger.py has the workers and the oracle: each operation that a worker had completed when it was
killed counts, the one it was inside is done or not done, and nothing is torn, lost or leaked.
"""

import os
import signal
import time

import pytest
from support.ledger import (
    GROWING,
    SHRINKING,
    Books,
    Storm,
    expect_all_at_rest,
    expect_exact_limit,
    expect_ledgers,
)

SLOTS = 4
KEYS_COUNT = 800
ROOM = SLOTS * KEYS_COUNT * 9 // 10  # so that the map is sometimes full
LONG_DURATION_S = 600.0
DEFAULT_DURATION_S = 2.0
SHORT_DURATION_S = 6.0


def rage(storm, kills_wanted, seconds, pause_s_max):
    """Kill one or two workers at a time, and sometimes all of them, until both limits are reached.

    The limits are the number of kills and the seconds.
    """
    books, rng = storm.books, storm.rng
    phase_s = min(2.0, seconds / 6)
    storm.start_all()
    began = time.monotonic()
    while storm.kills < kills_wanted or time.monotonic() - began < seconds:
        books.phase = (GROWING, SHRINKING)[int((time.monotonic() - began) / phase_s) % 2]
        time.sleep(rng.uniform(0, pause_s_max))
        storm.watch()
        ready = storm.at_work()
        count = len(ready) if rng.random() < 0.02 else rng.choice((1, 1, 1, 2))
        victims = rng.sample(ready, min(count, len(ready)))
        storm.kill(victims)
        for slot in victims:
            storm.start(slot)
    storm.kill(storm.slots)
    return time.monotonic() - began


def survive_a_storm(make_map, seed, kills_wanted, seconds, pause_s_max):
    m = make_map(key_size=8, value_size=264, max_entries=ROOM)
    books = Books(SLOTS, KEYS_COUNT)
    books.open_accounts(m)

    with Storm(m, books, seed) as storm:
        spent_s = rage(storm, kills_wanted, seconds, pause_s_max)
        dead = storm.kills - m.info()["recoveries"]
        expect_ledgers(m, books, storm.shared_doubts, dead)

    expect_all_at_rest(m)
    expect_ledgers(m, books, storm.shared_doubts)
    expect_exact_limit(m)
    expect_ledgers(m, books, storm.shared_doubts)
    info = m.info()
    done = sum(ledger.words[ledger.OPERATIONS] for ledger in books.ledgers)
    print(
        f"seed {seed}: {storm.kills} kills in {spent_s:.1f} s, {done} operations, {storm.doubts} "
        f"in doubt; recovered {info['recoveries']} processes, finished "
        f"{info['operations_finished']} operations and undid {info['operations_undone']}, longest "
        f"recovery {info['recovery_ns_max'] / 1e6:.2f} ms; {info['grows']} splits, "
        f"{info['shrinks']} merges, {info['blocks_released']} blocks released; longest standstill "
        f"of a worker {storm.standing_still_s_max:.2f} s"
    )
    m.clear()
    assert not len(m)
    assert info["recoveries"] > kills_wanted * 9 // 10
    assert info["grows"] > 0 < info["shrinks"]


@pytest.mark.parametrize("kills", [40, pytest.param(300, marks=pytest.mark.thorough)])
def test_killed_workers_neither_lose_nor_tear_entries(make_map, seed, kills):
    """C1, C2, R2, W2: the map is what the ledgers say, and no worker is held up."""
    survive_a_storm(make_map, seed, kills, SHORT_DURATION_S * kills / 300, 0.02)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_ten_thousand_killed_workers_neither_lose_nor_tear_entries(make_map, seed, duration):
    """C1, C2, R2, W2: 10,000 kills in at least ten minutes, or fewer in --duration seconds."""
    seconds = LONG_DURATION_S if duration == DEFAULT_DURATION_S else duration
    survive_a_storm(make_map, seed, int(10_000 * seconds / LONG_DURATION_S), seconds, 0.03)


def watch_for_ever(storm):
    while True:
        storm.watch()
        time.sleep(0.01)


def test_stopped_worker_is_noticed(make_map, seed):
    """A test of the storm's oracle: a stopped worker counts as stuck beside one that goes on."""
    m = make_map(key_size=8, value_size=264, max_entries=ROOM)
    books = Books(2, KEYS_COUNT)
    books.open_accounts(m)

    with Storm(m, books, seed) as storm:
        storm.start_all()
        while len(storm.at_work()) < 2:
            storm.watch()
        os.kill(storm.children[0].pid, signal.SIGSTOP)
        with pytest.raises(AssertionError, match="worker 0 is stuck"):
            watch_for_ever(storm)
