"""Once, whose function runs in one process, and Leader, of which one process holds the office; if
that process dies, another one takes its place."""

import os
import pickle
import signal
import time

import pytest
from support.children import Child, Partner, in_child, kill, stays
from support.waiting import LONG_S
from support.workers import METHODS, run_together

from shmrhash import DeadlockError, Deposed, InvalidArgument, Leader, MapClosed, Once, Sync

# ---- Once ----


def append(path, line):
    with open(path, "a") as file:
        file.write(line)
    return line


def run_once(_gate, once, path):
    return once.run(append, path, "x")


@pytest.mark.parametrize("method", METHODS)
def test_function_runs_once(space, tmp_path, method):
    once = Once("o", space=space)

    results = run_together(method, *[(run_once, once, tmp_path / "log")] * 4)

    assert sorted(results, key=str) == [None, None, None, "x"]
    assert (tmp_path / "log").read_text() == "x"
    assert once.done


def test_next_caller_runs_what_a_dead_one_began(space):
    """C2: a process dies while it runs the function; the next caller runs it, and is told which
    process died."""
    told = []
    once = Once("o", space=space, on_orphan=lambda lock, orphan: told.append(orphan.pid))
    child = Partner(lambda parent: once.run(lambda: (parent.say("begun"), parent.wait())))
    assert child.hear() == "begun"
    kill(child)

    assert not once.done
    assert once.run(lambda: 7) == 7
    assert told == [child.pid]
    assert once.run(lambda: 8) is None


def test_function_that_raises_has_not_run(space):
    once = Once("o", space=space)

    @once
    def fail_or_succeed(fails):
        """Documented."""
        return 1 / (0 if fails else 1)

    with pytest.raises(ZeroDivisionError):
        fail_or_succeed(True)
    assert fail_or_succeed(False) == 1
    assert fail_or_succeed(True) is None
    assert fail_or_succeed.__doc__ == "Documented."


def test_function_that_runs_itself_is_refused(space):
    once = Once("o", space=space)

    with pytest.raises(DeadlockError):
        once.run(lambda: once.run(int))


def test_once_is_found_by_key_and_by_pickle(space):
    once = Once("o", space=space)
    assert pickle.loads(pickle.dumps(once)).run(int) == 0
    assert once.run(int) is None
    assert Once("o", space=space).done
    assert once.key == "o"
    assert once.space is space
    assert "key='o'" in repr(once)
    assert Once().run(int) == 0
    assert Once(b"o", space=space).run(int) == 0
    assert Once(5, space=space).run(int) == 0


# ---- Leader ----


def test_terms_grow_with_each_leader(space):
    leader = Leader("l", space=space)
    with pytest.raises(Deposed, match="has not been the leader"):
        leader.check()
    terms = []
    for _ in range(3):
        with leader:
            terms.append(leader.check())
            assert leader.leader.pid == os.getpid()
    assert in_child(lambda: Leader("l", space=space).acquire(False))

    assert terms == [1, 2, 3]
    assert leader.acquire()
    assert leader.term == 5
    assert leader.orphan is not None  # the child ended while it was the leader
    leader.release()
    assert leader.leader is None
    with pytest.raises(Deposed, match="term 5 any more"):
        leader.release()


def test_another_process_leads_if_the_leader_is_killed(space):
    told = []
    leader = Leader("l", space=space, on_orphan=lambda lock, orphan: told.append(orphan.pid))
    child = stays(leader.acquire)
    assert leader.acquire(False) is False
    assert leader.acquire(timeout=0.01) is False
    child.kill()

    assert leader.acquire(timeout=LONG_S)
    assert leader.check() == leader.term == 2
    assert told == [child.pid]
    leader.release()


def lead(parent, leader):
    """Become the leader; call check() when the parent asks for it, and report the result."""
    leader.acquire()
    parent.say(leader.term)
    parent.wait()
    try:
        parent.say(leader.check())
    except Deposed as error:
        parent.say(str(error))
    with pytest.raises(Deposed):
        leader.release()


def test_leader_that_is_stopped_beyond_its_lease_is_deposed(space):
    """A leader that was stopped beyond its lease learns that it is deposed when it continues; the
    next leader has a higher term, and is told of the previous one."""
    leader = Leader("l", space=space, lease=0.2)
    with Partner(lead, leader) as child:
        assert child.hear() == 1
        os.kill(child.pid, signal.SIGSTOP)
        assert leader.acquire(timeout=LONG_S)
        assert leader.check() == 2
        assert leader.orphan.pid == child.pid
        os.kill(child.pid, signal.SIGCONT)
        child.tell()
        assert "term 1 any more" in child.hear()
        child.join()
        assert leader.check() == 2
        leader.release()
        assert leader.acquire(False)
        assert leader.orphan is None
        leader.release()


def test_leader_that_checks_in_time_keeps_its_office(space):
    leader = Leader("l", space=space, lease=0.5)
    leader.acquire()
    child = Child(leader.acquire, True, 2)
    deadline = time.monotonic() + LONG_S
    while not child.has_ended():
        assert leader.check() == 1
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert child.result() is False
    assert leader.acquire(False) is False
    leader.release()


def test_block_of_a_deposed_leader_raises_deposed(space):
    leader = Leader("l", space=space, lease=0.01)

    def lead():
        with leader:
            time.sleep(0.05)
            assert in_child(leader.acquire, True, LONG_S)
            leader.check()

    with pytest.raises(Deposed):
        lead()


def test_leaders_arguments_are_checked(space, map_name):
    for lease in (0, -1):
        with pytest.raises(InvalidArgument):
            Leader("l", space=space, lease=lease)
    leader = Leader("l", space=space, lease=5)
    again = pickle.loads(pickle.dumps(leader))
    assert (again.key, again.lease, again.term) == ("l", 5, 0)
    assert leader.space is space
    assert "key='l'" in repr(leader)
    with pytest.raises(ValueError, match="timeout"):
        leader.acquire(False, 1)
    with Sync(map_name + "-2") as other:
        closed = Leader("l", space=other)
        other.unlink()
    with pytest.raises(MapClosed):
        closed.acquire()
