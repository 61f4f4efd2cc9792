"""The storm among users of lock primitives finds a worker that is stuck, and no other."""

import os
import time

import pytest
from support.turns import Storm

STUCK_S = 0.2
CPU = min(os.sched_getaffinity(0))


def spin(_books, _account, _rng):
    os.sched_setaffinity(0, {CPU})
    while True:
        pass


def sleep(_books, account, _rng):
    account.step()
    while True:
        time.sleep(0.05)


def run_seldom(_books, account, _rng):
    """A worker that is always ready to run, on a processor that another worker uses."""
    os.sched_setaffinity(0, {CPU})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    account.step()
    while True:
        pass


def watch_for_ever(storm):
    while True:
        time.sleep(0.001)
        storm.watch()


def test_a_worker_that_sleeps_for_ever_is_stuck(seed):
    with Storm([sleep], seed, stuck_s=STUCK_S) as storm:
        storm.start(0)
        with pytest.raises(AssertionError, match="has stood still"):
            watch_for_ever(storm)


@pytest.mark.thorough
def test_a_worker_that_others_keep_from_running_is_not_stuck(seed):
    """Even if it gets no processor for three times as long as a sleeping worker may be still."""
    with Storm([run_seldom, spin], seed, stuck_s=STUCK_S) as storm:
        storm.start(0)
        storm.start(1)
        while not storm.books.accounts[0].words[storm.books.accounts[0].PROGRESS]:
            time.sleep(0.001)
        began = storm.clock._ticks[0]
        while storm.clock._ticks[0] < began + 3 * STUCK_S * 1000:
            time.sleep(0.001)
            storm.watch()
