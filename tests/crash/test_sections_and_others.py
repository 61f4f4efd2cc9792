"""A section beside a process that is stopped in the middle of an operation, at every change of it.

The stopped process is a child that stands after its n-th change of the segment, for every n. Then
the section's own thread, or a second process, performs its operation.
"""

import contextlib
import signal
import threading

import pytest
from support import stepping
from support.children import kill, stays
from support.killing import COLLIDING, SCATTERED, opened, word

import shmrhash
from shmrhash import BPF_F_LOCK, BPF_NOEXIST, RHashMap

pytestmark = pytest.mark.usefixtures("stepper")


@pytest.fixture
def m(make_map, request):
    """A map of five entries. This process has claimed all its contexts: images have their owner."""
    seeds = getattr(request, "param", SCATTERED)
    shared_map = make_map(max_entries=64, timeout=1, _seeds=seeds)
    for number in range(1, 6):
        shared_map[word(number)] = word(number)
    with shared_map.locked(word(1)), shared_map.locked(word(2)):
        shared_map.add(word(3), 0)
    return shared_map


colliding = pytest.mark.parametrize("m", [COLLIDING], indirect=True)


def stopped_at_each_change(m, prepare, operate):
    """Yield (n, child) for each n; the child goes on, and ends, when the loop's body is done."""
    segment = stepping.Segment(stepping.segment_path(m.name))
    image = segment.image()
    whole = stepping.trace(prepare, operate, segment)
    for n in range(len(whole.changes) + 1):
        segment.restore(image)
        with stepping.stop_at_change(
            prepare, operate, segment, n, pcs=whole.pcs, again=lambda: segment.restore(image)
        ) as child:
            yield n, child


@contextlib.contextmanager
def dead_inside_a_section(m, key):
    """A child locks the key and is killed; no process has recovered it yet."""

    def enter():
        section = m.locked(word(key))
        section.__enter__()
        return section

    kill(stays(enter))
    yield


def insert_unless_there(handle):
    with contextlib.suppress(shmrhash.KeyExists):
        handle.update(word(1000), word(1), BPF_NOEXIST)


def hold(handle, inside, leave):
    with handle.locked(word(1000), default=word(2)):
        inside.set()
        leave.wait(10)


@pytest.mark.thorough
def test_element_of_a_dead_owner_may_be_deleted_at_any_step_of_recovery(m):
    """C1, L1: a deletion does not wait for the dead owner, and recovery leaves the map sound."""
    kept = []
    with dead_inside_a_section(m, 3):
        for n, child in stopped_at_each_change(
            m, lambda: None, lambda _: kept.append(RHashMap.open(m.name))
        ):
            m.delete(word(3))
            child.wait()

            assert m.lookup(word(3)) is None, f"state {n}"
            assert m.check()["exact"], f"state {n}"
            m.update(word(3), word(7))
            assert m.check()["exact"], f"state {n}"


def test_section_that_loses_the_race_to_insert_holds_no_second_entry(m):
    """W2, L1: a section that loses the race for the insertion gives back its element at once."""
    for key in range(6, 63):
        m[word(key)] = word(key)  # room for two more
    with RHashMap.open(m.name, timeout=10) as other:
        with other.locked(word(1)), other.locked(word(2)):
            other.add(word(3), 0)
        for n, child in stopped_at_each_change(m, opened(m.name), insert_unless_there):
            inside, leave = threading.Event(), threading.Event()
            thread = threading.Thread(target=hold, args=(other, inside, leave))
            thread.start()
            inside.wait(0.05)  # the thread has its section, or waits for the child
            child.wait()
            assert inside.wait(10)

            try:
                assert len(m) == 63, f"state {n}"
                m.update(word(1001), word(3))
                assert m.check()["elements_in_flight"] == 0
            finally:
                leave.set()
                thread.join()


@colliding
@pytest.mark.parametrize("how", ["signal", "close"])
def test_interrupted_end_of_a_section_leaves_no_lock(m, how):
    """L1, C1: a signal handler raises while the end waits for a stopped process's bucket."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for n, child in stopped_at_each_change(
            m, opened(m.name), lambda handle: handle.update(word(9), word(9))
        ):
            with RHashMap.open(m.name, timeout=1) as own:
                try:
                    with own.locked(word(3)) as value:
                        value.delete()
                        if how == "close":
                            own.close()
                        signal.setitimer(signal.ITIMER_REAL, 0.1)
                except (KeyboardInterrupt, shmrhash.MapClosed):
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                child.wait()
            m.update(word(3), word(77), BPF_F_LOCK)
            assert m[word(3)] == word(77), f"state {n}"
            assert m.check()["exact"], f"state {n}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted or how == "close"


@colliding
@pytest.mark.thorough
def test_a_section_that_cannot_delete_its_key_in_time_is_rolled_back(m):
    """L1, C1: a deletion needs the bucket, which a stopped process holds: LockTimeout after the
    handle's timeout; the value is as it was before the section, and the lock is free."""
    timed_out = 0
    for n, child in stopped_at_each_change(
        m, opened(m.name), lambda handle: handle.update(word(9), word(9))
    ):
        with RHashMap.open(m.name, timeout=0.05) as own:
            section = own.locked(word(3))
            section.__enter__()[:] = word(55)
            section.delete()
            try:
                section.__exit__(None, None, None)
                gone = True
            except shmrhash.LockTimeout:
                gone = False
                timed_out += 1
            assert own.lookup(word(3)) == (None if gone else word(3)), f"state {n}"
            with own.locked(word(3), default=word(66)) as value:
                assert bytes(value) == (word(66) if gone else word(3)), f"state {n}"
        child.wait()
        m.update(word(3), word(3), BPF_F_LOCK)
        assert m.check()["exact"], f"state {n}"
    assert timed_out > 0
