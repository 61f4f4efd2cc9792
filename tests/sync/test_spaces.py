"""Spaces with a name and without one, their keys of all types, and names that belong to other kinds
of segments."""

import pickle

import pytest
from support.children import in_child
from support.workers import METHODS, run_together

from shmrhash import (
    Event,
    InvalidArgument,
    LayoutMismatch,
    Lock,
    MapClosed,
    MapFull,
    RHashMap,
    RLock,
    SegmentMissing,
    Semaphore,
    SharedDict,
    Sync,
    unlink,
)
from shmrhash._sync import space as spaces


@pytest.fixture
def space(map_name):
    made = Sync(map_name, 64)
    yield made
    if not made.closed:
        made.check()
    made.close()
    made.unlink()


def test_space_is_found_by_its_name(space):
    again = Sync(space.name, 10)
    assert again.max_entries == 64
    Lock("a", space=space).acquire()
    assert Lock("a", space=again).locked()
    assert Lock("a", space=Sync.open(space.name)).locked()
    with pytest.raises(SegmentMissing):
        Sync.open(space.name + "-not")


def test_space_is_neither_a_map_nor_a_dict(space, map_name):
    for use in (
        lambda: RHashMap.open(space.name),
        lambda: SharedDict.open(space.name),
        lambda: SharedDict(space.name, key=str, value=int),
        lambda: RHashMap.open_or_create(space.name, key_size=56, value_size=128, max_entries=64),
    ):
        with pytest.raises(LayoutMismatch, match="space of locks"):
            use()
    for make in (
        lambda name: RHashMap.create(name, key_size=56, value_size=128, max_entries=64),
        lambda name: SharedDict.create(name, key=str, value=int),
    ):
        other = make(map_name + "-map")
        with pytest.raises(LayoutMismatch, match="not a space of locks"):
            Sync(other.name)
        other.close()
        unlink(other.name)


KEYS = ["gpu0", "", "é" * 27, "é" * 28, "x" * 54, "x" * 55, b"gpu0", b"\0", 0, -1, 2**200, "0"]


def test_different_keys_are_different_primitives(space):
    locks = [Lock(key, space=space) for key in KEYS]
    assert len({lock._index for lock in locks}) == len(KEYS)
    assert [Lock(key, space=space)._index for key in KEYS] == [lock._index for lock in locks]


@pytest.mark.parametrize("key", KEYS)
def test_stored_key_has_the_size_and_shows_the_key(key):
    raw = spaces.stored_key(key)
    shown = spaces.shown_key(raw)

    assert len(raw) == 56
    assert shown == key or str(key).startswith(str(shown)[:20])


@pytest.mark.parametrize("key", [1.5, ("a", 1), True, object()])
def test_key_of_another_type_is_refused(space, key):
    with pytest.raises(TypeError, match="a key is"):
        Lock(key, space=space)


def test_space_must_be_a_space():
    with pytest.raises(TypeError, match="space must be"):
        Lock("a", space="name")


def test_key_of_another_kind_is_refused(space):
    makers = {
        "Lock": lambda: Lock("k", space=space),
        "RLock": lambda: RLock("k", space=space),
        "Event": lambda: Event("k", space=space),
        "Semaphore": lambda: Semaphore(1, "k", space=space),
        "Semaphore(undo=False)": lambda: Semaphore(1, "k", space=space, undo=False),
    }
    makers["Lock"]()
    for kind, make in makers.items():
        if kind != "Lock":
            with pytest.raises(InvalidArgument, match="is a Lock, not a"):
                make()
    assert space.cells() == [("k", "Lock")]


def test_space_has_a_limit(space):
    locks = [Lock(number, space=space) for number in range(64)]
    with pytest.raises(MapFull):
        Event("one more", space=space)
    assert Lock(0, space=space)._index == locks[0]._index
    assert len(space.cells()) == 64


def test_closed_space_makes_nothing(map_name):
    space = Sync(map_name)
    space.close()
    space.close()
    with pytest.raises(MapClosed):
        Lock("a", space=space)
    assert "closed" in repr(space)
    space.unlink()


def test_locks_without_a_space_are_in_the_users_default_space():
    lock = Lock("own")
    try:
        assert lock.space is Lock("other").space
        assert in_child(lambda: Lock("own")._index) == lock._index
        lock.acquire()
        assert in_child(lambda: Lock("own").acquire(False)) is False
        lock.release()
    finally:
        lock.space.unlink()
        lock.space.close()


def hold_and_say(gate, lock, event):
    with lock:
        gate.wait()
        event.set()
        return lock.space.name


@pytest.mark.parametrize("method", METHODS)
def test_child_processes_share_anonymous_primitives(method):
    lock, event, other = Lock(), Event(), Lock()
    names = run_together(method, (hold_and_say, lock, event))

    assert names == [lock.space.name]
    assert lock.key is None
    assert lock._index != other._index
    assert event.is_set()
    assert not lock.locked()


def test_pickled_space_is_the_same_handle(space):
    assert pickle.loads(pickle.dumps(space)) is space
    with Sync() as anonymous:
        assert pickle.loads(pickle.dumps(anonymous)) is anonymous


def make_many(gate, name):
    gate.wait()
    space = Sync.open(name)
    return [Semaphore(3, number, space=space)._index for number in range(50)]


@pytest.mark.parametrize("method", METHODS)
def test_racing_makers_find_one_cell(space, method):
    found = run_together(method, *[(make_many, space.name)] * 3)

    assert found[0] == found[1] == found[2]
    assert all(Semaphore(0, number, space=space).get_value() == 3 for number in range(50))
