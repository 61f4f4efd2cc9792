"""Primitives without a key: their cells are used again once no process can use the primitive, and
never before that."""

import copy
import ctypes
import gc
import os
import pickle

import pytest
from support.children import Child, Partner, in_child

from shmrhash import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Leader,
    Lock,
    Once,
    RLock,
    RWLock,
    Semaphore,
    Sync,
    locks,
)


def make_each(space):
    """Return one primitive of each kind."""
    return [
        *(kind(space=space) for kind in (Lock, RLock, RWLock, Event, Condition, Once, Leader)),
        *(kind(3, space=space) for kind in (Semaphore, BoundedSemaphore)),
        Semaphore(3, space=space, undo=False),
        Barrier(2, space=space),
    ]


def cells_of(space):
    return len(space.handle)


@pytest.mark.parametrize("count", [2_500, pytest.param(100_000, marks=pytest.mark.thorough)])
def test_primitives_that_are_made_and_dropped_need_the_room_of_a_few(map_name, count):
    """Dropping a primitive frees its cell, and also the hold of a thread that has not released it;
    otherwise the 4,096 holds that a space can have would be used up."""
    with Sync(map_name, 64) as space:
        for number in range(count):
            kept = Lock(space=space)
            held = Semaphore(2, space=space) if number % 2 else RLock(space=space)
            assert kept.acquire(False)
            assert held.acquire(False)
        assert cells_of(space) <= 4
        assert kept.locked()
        del kept, held
        space.check()
        assert space.cells() == []
    space.unlink()


def test_a_cell_that_is_used_again_is_new(space):
    """A primitive in a cell that was used before is like new, whatever the kind and the state of
    the earlier primitive."""
    for before in range(11):
        for after in range(11):
            made = make_each(space)
            old = made[before]
            disturb(old)
            made = old = None
            new = make_each(space)[after]
            expect_new(new)
            del new
    assert cells_of(space) <= 24
    assert locks(space) == []


def disturb(old):
    if isinstance(old, Event):
        old.set()
    elif isinstance(old, RWLock):
        old.acquire_write()
    elif isinstance(old, Barrier):
        old.abort()
    elif isinstance(old, Once):
        old.run(int)
    else:
        old.acquire()


def expect_new(new):
    if isinstance(new, Event):
        assert not new.is_set()
        assert not new.wait(0)
    elif isinstance(new, RWLock):
        assert not new.has_writer
        assert new.readers == 0
        with new.write_lock(timeout=0):
            assert new.orphan is None
    elif isinstance(new, Barrier):
        assert (new.parties, new.n_waiting, new.broken) == (2, 0, False)
    elif isinstance(new, Semaphore):
        assert new.get_value() == 3
        assert new.acquire(timeout=0)
    elif isinstance(new, Once):
        assert not new.done
        assert new.run(int) == 0
    elif isinstance(new, Leader):
        with new:
            assert (new.term, new.orphan) == (1, None)
    elif isinstance(new, Condition):
        with new:
            assert not new.wait(0)
            new.notify()
    else:
        assert (new.token, new.locked()) == (0, False)
        assert new.acquire(timeout=0)
        assert new.orphan is None


@pytest.mark.parametrize("share", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_was_pickled_or_copied_keeps_its_cell(space, share):
    """A primitive that was pickled keeps its cell as long as the space exists, because the pickle
    leads to it; a copy keeps it, too."""
    lock = Lock(space=space)
    index = lock._index
    shared = share(lock)
    del lock
    others = [Lock(space=space) for _ in range(10)]

    assert index not in [other._index for other in others]
    again = pickle.loads(shared) if isinstance(shared, bytes) else shared
    assert again._index == index


def test_what_a_child_of_fork_has_keeps_its_cell(space):
    """The parent drops its primitive and makes others; none of these gets the cell, which the child
    still uses."""
    mine_alone = [Lock(space=space)]
    spare = Lock(space=space)
    del spare  # dropped before the fork, because later the child would have it, too

    def hold(parent):
        mine = [Lock(space=space) for _ in range(5)]
        (lock,) = mine_alone
        assert lock.acquire(timeout=0)
        parent.say(sorted([lock._index, *(each._index for each in mine)]))
        parent.wait()
        assert lock.locked()
        lock.release()

    child = Partner(hold)
    theirs = child.hear()
    mine_alone.clear()
    gc.collect()
    mine = [Lock(space=space) for _ in range(5)]
    taken = [each.acquire(timeout=0) for each in mine]

    assert all(taken)
    assert not set(theirs) & {each._index for each in mine}
    child.tell()
    child.result()


def test_a_fork_that_calls_no_hook_of_python_counts(space):
    """A fork by a C library, which runs no hook of Python, is noticed by the handlers of
    pthread_atfork."""
    lock = Lock(space=space)
    index = lock._index
    libc = ctypes.CDLL(None)
    pid = libc.fork()
    if pid == 0:
        libc._exit(0)
    os.waitpid(pid, 0)
    del lock

    assert Lock(space=space)._index != index


def test_the_cells_of_a_process_that_ended_are_used_again(map_name):
    """The cells of a process are used again after it was killed, with or without locks that it
    held, or has ended by itself."""
    with Sync(map_name, 4096) as space:
        Lock(space=space)

        def make_many(parent=None):
            made = [kind(space=space) for _ in range(50) for kind in (Lock, RWLock, Event)]
            for lock in made[::3]:
                lock.acquire()
            del made[::5]
            if parent is None:
                return cells_of(space)
            parent.say(cells_of(space))
            parent.wait()
            return None

        for _ in range(3):
            child = Partner(make_many)
            assert child.hear() <= 154
            child.kill()
            assert in_child(make_many) <= 154

        kept = [Lock(space=space) for _ in range(2 * 1024)]
        assert len({lock._index for lock in kept}) == 2 * 1024
        assert all(lock.acquire(timeout=0) for lock in kept)
        assert cells_of(space) <= 2 * 1024 + 160
        space.check()
    space.unlink()


def test_two_processes_that_look_for_spare_cells_share_them(map_name):
    """Two processes look for the cells of a dead process at the same time, and each cell goes to
    one of them."""
    with Sync(map_name, 4096) as space:
        Event(space=space).set()

        def leave_many():
            return len([Lock(space=space) for _ in range(300)])

        def take_them(parent):
            first = Lock(space=space)
            parent.say()
            parent.wait()
            made = [first, *(Lock(space=space) for _ in range(200))]
            parent.say([lock._index for lock in made])
            parent.wait()

        assert in_child(leave_many) == 300
        children = [Partner(take_them) for _ in range(2)]
        for child in children:
            child.hear()
        for child in children:
            child.tell()
        found = [child.hear() for child in children]

        assert not set(found[0]) & set(found[1])
        for child in children:
            child.tell()
            child.result()
        space.check()
    space.unlink()


def test_a_closed_space_ends_what_was_in_it(map_name):
    """A primitive may be dropped after its space's handle was closed, and after the space was
    removed; no other primitive is disturbed."""
    space = Sync(map_name, 64)
    made = make_each(space)
    space.close()
    del made[::2]
    again = Sync(map_name)
    more = make_each(again)
    del made
    gc.collect()
    for primitive in more:
        expect_new(primitive)
    again.unlink()
    again.close()
    del more


def test_an_object_without_a_key_in_a_dead_child_frees_nothing_of_the_parents(space):
    lock = Lock(space=space)
    assert lock.acquire(timeout=0)

    def drop():
        nonlocal lock
        del lock
        gc.collect()
        return Lock(space=space)._index

    index = lock._index
    assert Child(drop).result() != index
    assert lock.locked()
    lock.release()
