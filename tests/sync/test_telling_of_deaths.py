"""The death of an owner is told to exactly one later owner (C2), if the owners that are told stay
alive.

tests/crash/test_kill_primitives.py kills these, too.
"""

import mmap
import os
import signal
import time

import pytest
from support.children import Child
from support.locking import TellsAgain
from support.waiting import until

from shmrhash import Lock, RLock

DEATHS = 8
TELLERS = 2
STOP, TURNS, TOLD, PIDS = range(4)  # from PIDS on: the pids of the dead of whom owners were told


class TellsNobody(Lock):
    orphan = None


class TellsOfAnother(Lock):
    """A faulty lock: it tells of the previous death instead of the last one."""

    last = None

    @property
    def orphan(self):
        found = super().orphan
        if found is not None:
            found, self.last = self.last or found, found
        return found


def take_turns(lock, words):
    while not words[STOP]:
        with lock:
            orphan = lock.orphan
            if orphan is not None:
                words[PIDS + words[TOLD]] = orphan.pid
                words[TOLD] += 1
            words[TURNS] += 1
        time.sleep(0.0005)


def die_inside(lock):
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def deaths_and_tellings(lock):
    """Return the pids of the processes that died inside, in order, and those that living owners
    were told."""
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
    tellers = [Child(take_turns, lock, words) for _ in range(TELLERS)]
    dead = []
    for _ in range(DEATHS):
        child = Child(die_inside, lock)
        assert child.join() == -signal.SIGKILL
        dead.append(child.pid)
        turns = words[TURNS]
        until(lambda turns=turns: words[TURNS] > turns + TELLERS)
    words[STOP] = 1
    for teller in tellers:
        teller.result()
    return dead, words[PIDS : PIDS + words[TOLD]].tolist()


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_each_death_is_told_to_one_of_many_owners(space, kind):
    dead, told = deaths_and_tellings(kind("it", space=space))

    assert told == dead


@pytest.mark.parametrize("kind", [TellsAgain, TellsNobody, TellsOfAnother])
def test_locks_that_tell_wrongly_are_found(space, kind):
    dead, told = deaths_and_tellings(kind("it", space=space))

    assert told != dead
