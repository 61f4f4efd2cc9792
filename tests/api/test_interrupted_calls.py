"""Signal handlers that run while a call waits, and use the object that waits, or fork (L1, L2, C1).

A section, or a block of several, deletes a key whose bucket is held, so its end waits, and the
handler runs in that wait. Other calls that wait are interrupted in the same way.
"""

import contextlib
import os
import signal
import threading
import traceback

import pytest
from support.hostile.segment import Segment
from support.locking import locked_elsewhere

import shmrhash
from shmrhash import Barrier, SharedDict, Sync

MOMENT_S = 0.02
LOCKED_BY_FIRST = 1  # the content of a lock word that the first context of the map holds
LOCK_MASK = 0xFFFF


def word(number):
    return number.to_bytes(8, "little")


class Held:
    """A dict whose buckets appear locked by the context of another thread's section."""

    def __init__(self, shared):
        self.shared = shared
        self._segment = Segment(shared.handle)
        self._buckets = {at: self._segment.get(at) for at in self._segment.buckets()}
        for at, header in self._buckets.items():
            assert header & LOCK_MASK == 0
            self._segment.set(at, header | LOCKED_BY_FIRST)

    def let_go(self):
        for at, header in self._buckets.items():
            self._segment.set(at, header)
        self._buckets = {}


@pytest.fixture
def shared(map_name):
    with SharedDict.create(map_name, key=int, value=object, timeout=60) as d:
        for key in (1, 2, 3):
            d[key] = key
        yield d
        assert d.check()["exact"]
        d.unlink()


@pytest.fixture
def held(shared):
    with locked_elsewhere(shared, 3):
        found = Held(shared)
        yield found
        found.let_go()


class Slow:
    """A value whose decoding, inside the operation that found it, lasts until an event is set."""

    begun, go_on = threading.Event(), threading.Event()

    def __setstate__(self, state):
        Slow.begun.set()
        assert Slow.go_on.wait(60)

    def __getstate__(self):
        return "slow"


@contextlib.contextmanager
def interrupting(handler):
    """Call handler once, after the thread has waited for MOMENT_S."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    try:
        signal.setitimer(signal.ITIMER_REAL, MOMENT_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def told(function):
    """Return the class of the exception that the function raises, or None if it returns."""
    try:
        function()
    except BaseException as error:
        return type(error)
    return None


def parent_and_child(act, go_on=lambda: None):
    """Interrupt act() by a handler that forks. Return what act() raised in the child and in the
    parent. The parent's handler calls go_on() and waits until the child has ended."""
    read, write = os.pipe()
    pids = []

    def fork():
        pids.append(os.fork())
        if pids[0] != 0:
            go_on()
            os.waitpid(pids[0], 0)

    me = os.getpid()
    try:
        with interrupting(fork):
            raised = told(act)
    except BaseException:
        if os.getpid() == me:
            raise
        traceback.print_exc()
    if os.getpid() != me:
        os.write(write, (raised.__name__ if raised else "nothing").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as outcome:
        return outcome.read(), raised


def deleting(d, keys=(1,)):
    """Return an entered block whose end will delete its keys, and what entering it returned."""
    block = d.locked_many(keys) if len(keys) > 1 else d.locked(keys[0])
    inside = block.__enter__()
    for section in inside if len(keys) > 1 else [inside]:
        section.delete()
    return block, inside


def leave(block):
    block.__exit__(None, None, None)


@pytest.mark.parametrize("use", ["roll_back", "delete", "value", "__exit__"])
def test_handler_cannot_use_a_section_whose_end_waits(held, use):
    """L1: a handler that uses the waiting section gets an exception; the section ends as usual."""
    d = held.shared
    block, section = deleting(d)
    refused = []

    def handler():
        if use == "value":
            refused.append(told(lambda: setattr(section, "value", 5)))
        elif use == "__exit__":
            refused.append(told(lambda: leave(block)))
        else:
            refused.append(told(getattr(section, use)))
        held.let_go()

    with interrupting(handler):
        leave(block)

    assert refused == [shmrhash.InvalidArgument]
    assert 1 not in d


def test_handler_that_closes_the_map_does_not_stop_an_end(held):
    """L1: a handle that is closed by a signal handler stays attached until its section has
    ended."""
    d = held.shared
    with SharedDict.open(d.name, value=object, timeout=60) as own:
        block, _ = deleting(own)

        def handler():
            own.close()
            held.let_go()

        with interrupting(handler):
            leave(block)

    assert 1 not in d


@pytest.mark.parametrize("keys", [(1,), (1, 2)], ids=["one", "several"])
def test_child_forked_while_an_end_waits_leaves_the_end_to_its_parent(held, keys):
    """L1, L2, C1: the child gets an exception, and changes neither the map nor a context."""
    d = held.shared
    block, _ = deleting(d, keys)

    theirs, ours = parent_and_child(lambda: leave(block), held.let_go)

    assert (theirs, ours) == ("Error", None)
    assert sorted(d) == [key for key in (1, 2, 3) if key not in keys]


def test_child_forked_while_a_block_waits_for_its_second_key_has_no_part_in_it(make_map):
    """L2: the child cannot enter the block, because the block's first lock is the parent's."""
    m = make_map(timeout=60)
    for number in (1, 2):
        m[word(number)] = word(number)
    block = m.locked_many([word(1), word(2)])
    with locked_elsewhere(m, word(2)) as let_go:
        theirs, ours = parent_and_child(block.__enter__, let_go.set)

    assert (theirs, ours) == ("Error", None)
    leave(block)
    assert m.check()["exact"]


def test_handler_cannot_enter_a_section_that_is_being_entered(make_map):
    """L1: a handler cannot enter a section that its thread is entering; the lock is free later."""
    m = make_map(timeout=60)
    m[word(1)] = word(1)
    section = m.locked(word(1))
    refused = []
    with locked_elsewhere(m, word(1)) as let_go:

        def handler():
            refused.append(told(section.__enter__))
            let_go.set()

        with interrupting(handler):
            section.__enter__()
    leave(section)

    assert refused == [shmrhash.InvalidArgument]
    m[word(1)] = word(2)
    assert m.check()["exact"]


def test_child_that_gives_up_its_parents_freeze_does_not_thaw_the_map(shared):
    """The parent's freeze() succeeds although a child forked during it gives the call up."""
    shared[4] = Slow()
    reader = threading.Thread(target=shared.get, args=(4,))
    reader.start()
    assert Slow.begun.wait(60)
    me = os.getpid()

    def fork():
        forked = os.fork()
        if forked == 0:
            raise SystemExit
        os.waitpid(forked, 0)
        frozen.append(shared.handle.frozen)
        Slow.go_on.set()

    frozen = []
    with interrupting(fork):
        raised = told(shared.handle.freeze)
    if os.getpid() != me:
        os._exit(0)
    reader.join()

    assert (raised, frozen) == (None, [True])
    assert shared.handle.frozen


def test_child_forked_inside_clear_leaves_the_rest_to_its_parent(make_map):
    """A child forked inside clear() gets an exception and leaves its parent's context alone."""
    m = make_map(max_entries=200_000, key_size=8, value_size=8)
    for number in range(150_000):
        m[word(number)] = word(number)
    forked = []

    def fork():
        forked.append(os.fork())

    me = os.getpid()
    before = signal.signal(signal.SIGALRM, lambda *_: fork())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        raised = told(m.clear)
    finally:
        signal.signal(signal.SIGALRM, before)
    if os.getpid() != me:
        os._exit(0 if raised is shmrhash.MapBusy else 1)

    assert os.waitpid(forked[0], 0)[1] == 0
    assert len(m) == 0
    assert m.check()["exact"]


def test_child_forked_by_the_action_of_a_barrier_does_not_open_it(map_name):
    """The parent opens the barrier, once; the child that its action forks gets
    BrokenBarrierError."""
    pids = []

    def fork():
        pids.append(os.fork())

    with Sync(map_name) as space:
        barrier = Barrier(1, fork, key="b", space=space)
        me = os.getpid()
        raised = told(barrier.wait)
        if os.getpid() != me:
            os._exit(0 if raised is threading.BrokenBarrierError else 1)

        assert os.waitpid(pids.pop(), 0)[1] == 0
        assert (raised, barrier.broken) == (None, False)
        assert space.check()["exact"]
        space.unlink()
