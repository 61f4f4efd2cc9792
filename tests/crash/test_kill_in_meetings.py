"""A process is killed at every change that it makes with a condition or a barrier (C1, C2).

Then the survivors use both: a notification reaches a living waiter, and after reset() as many
processes meet as the barrier has parties. A party that died in the barrier either broke it or had
not come.
"""

import contextlib
import threading
from threading import BrokenBarrierError

import pytest
from support import stepping
from support.killing import Tally, explained

from shmrhash import Barrier, Condition, Lock, Sync

LONG_S = 60
CONTEXTS = 8

pytestmark = pytest.mark.usefixtures("stepper")


class Meeting:
    """The primitives of a space, as a process sees them."""

    def __init__(self, space):
        self.space = space
        self.condition = Condition(key="condition", space=space)
        self.barrier = Barrier(2, key="barrier", space=space)


def wait_in_vain(meeting):
    with meeting.condition:
        meeting.condition.wait(0)


def notify_nobody(meeting):
    with meeting.condition:
        meeting.condition.notify()


def come_in_vain(meeting):
    with contextlib.suppress(BrokenBarrierError):
        meeting.barrier.wait(0)


def abort(meeting):
    meeting.barrier.abort()


def reset(meeting):
    meeting.barrier.reset()


def pass_alone(meeting):
    Barrier(1, key="alone", space=meeting.space).wait()


OPERATIONS = [wait_in_vain, notify_nobody, come_in_vain, abort, reset, pass_alone]


def survive(meeting):
    """Assert that no dead waiter takes a notification, and that no party waits for a dead one."""
    told, places = [], []

    def wait():
        with meeting.condition:
            told.append(meeting.condition.wait(LONG_S))

    def meet():
        places.append(meeting.barrier.wait(LONG_S))

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not told:
        with meeting.condition:
            meeting.condition.notify()
    waiter.join()
    meeting.space.check()
    meeting.barrier.reset()
    assert not meeting.barrier.broken
    parties = [threading.Thread(target=meet) for _ in range(2)]
    for party in parties:
        party.start()
    for party in parties:
        party.join()
    Barrier(1, key="alone", space=meeting.space).reset()
    meeting.space.check()

    assert told == [True]
    assert sorted(places) == [0, 1]
    assert meeting.condition._waiting() == 0


def claim_contexts(space):
    """Claim the contexts that survive() needs, so that each image has them as this process's."""
    locks = [Lock(number, space=space) for number in range(CONTEXTS)]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        lock.release()


@pytest.mark.parametrize("operate", OPERATIONS)
def test_killed_in_a_meeting_after_every_change(operate, space, seed, record_property):
    meeting = Meeting(space)
    segment = stepping.Segment(stepping.segment_path(space.name))
    tally = Tally()
    claim_contexts(space)

    def prepare():
        return Meeting(Sync.open(space.name))

    for crash in stepping.crash_states(prepare, operate, segment, seed=seed):
        tally.add(crash)
        segment.restore(crash.image)
        with explained(crash, survive):
            survive(meeting)
    assert tally.crashes > 1
    tally.report(record_property, f"{operate.__name__}, seed {seed}", tally.crashes)
