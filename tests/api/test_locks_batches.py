"""Batches and arrays beside locked values: BPF_F_LOCK on every batch, and sections as arrays."""

import numpy as np
import pytest
from support.jobs import word
from support.locking import locked_elsewhere

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, RHashMap

SIZE = 16
OLD, NEW = bytes(SIZE), b"n" * SIZE
KEYS = [word(number) for number in range(3)]
MIDDLE = KEYS[1]  # the key that is locked in these tests
VALUES = [NEW] * 3
ONES = np.ones(3, "<i8")


@pytest.fixture
def m(make_map):
    shared_map = make_map(value_size=SIZE, timeout=0.05)
    for key in KEYS:
        shared_map[key] = OLD
    return shared_map


@pytest.fixture
def held(m):
    """Another thread holds the lock of the middle key until the test ends."""
    with locked_elsewhere(m, MIDDLE) as leave:
        yield leave


def contents(m):
    return {key: m.lookup(key) for key in KEYS}


# Each operation, and the value that it leaves under the keys before the locked one.
WAITING = {
    "lookup_many F_LOCK": (lambda m: m.lookup_many(KEYS, BPF_F_LOCK), OLD),
    "update_batch": (lambda m: m.update_batch(KEYS, VALUES), NEW),
    "update_batch F_LOCK": (lambda m: m.update_batch(KEYS, VALUES, BPF_ANY | BPF_F_LOCK), NEW),
    "replace_batch F_LOCK": (lambda m: m.update_batch(KEYS, VALUES, BPF_EXIST | BPF_F_LOCK), NEW),
    "update_many": (lambda m: m.update_many(KEYS, VALUES), NEW),
    "update_many F_LOCK": (lambda m: m.update_many(KEYS, VALUES, BPF_EXIST | BPF_F_LOCK), NEW),
    "delete_batch F_LOCK": (lambda m: m.delete_batch(KEYS, BPF_F_LOCK), None),
    "delete_many F_LOCK": (lambda m: m.delete_many(KEYS, BPF_F_LOCK), None),
    "add_many": (lambda m: m.add_many(KEYS, ONES), word(1) + word(0)),
}
PASSING = {
    "lookup_many": lambda m: m.lookup_many(KEYS),
    "contains_many": lambda m: m.contains_many(KEYS),
    "lookup_batch": lambda m: m.lookup_batch(),
    "to_arrays": lambda m: m.to_arrays(),
    "update_many NOEXIST": lambda m: m.update_many(KEYS, VALUES, BPF_NOEXIST),
    "others F_LOCK": lambda m: m.update_many([word(7)], [NEW], BPF_F_LOCK),
}
CUTTING = {
    "delete_batch": lambda m: m.delete_batch(KEYS),
    "delete_many": lambda m: m.delete_many(KEYS),
    "lookup_and_delete_batch": lambda m: m.lookup_and_delete_batch(),
}
every_waiting = pytest.mark.parametrize("how", WAITING)


@every_waiting
def test_a_batch_waits_at_the_locked_key(m, held, how):
    """L1: a batch waits at a locked key until its timeout, with only the keys before it done."""
    act, before = WAITING[how]
    with pytest.raises(shmrhash.LockTimeout) as raised:
        act(m)
    assert raised.value.count == 1
    assert contents(m) == {KEYS[0]: before, MIDDLE: OLD, KEYS[2]: OLD}


@every_waiting
def test_a_batch_goes_on_when_the_locked_key_is_released(m, held, how):
    """L1: a batch that has waited for a locked key treats each key once."""
    act, before = WAITING[how]
    with RHashMap.open(m.name, timeout=20) as patient:
        held.set()
        act(patient)
    assert contents(m) == dict.fromkeys(KEYS, before)


@every_waiting
def test_a_batch_that_meets_its_threads_own_section_is_a_deadlock_error(m, how):
    """L1: a batch that meets its thread's section is EDEADLK at once, with the keys before done."""
    act, before = WAITING[how]
    with (
        RHashMap.open(m.name, timeout=float("inf")) as patient,
        m.locked(MIDDLE),
        pytest.raises(shmrhash.DeadlockError) as raised,
    ):
        act(patient)
    assert raised.value.count == 1
    assert contents(m) == {KEYS[0]: before, MIDDLE: OLD, KEYS[2]: OLD}


@pytest.mark.parametrize("how", PASSING)
def test_a_batch_that_only_reads_does_not_wait(m, held, how):
    """R1, R2: a batch that would store nothing under the locked key does not wait for its
    section."""
    PASSING[how](m)
    assert contents(m) == dict.fromkeys(KEYS, OLD)


@pytest.mark.parametrize("how", CUTTING)
def test_a_batch_of_deletions_ends_a_section_with_key_gone(m, how):
    """L1: a batch of deletions without BPF_F_LOCK does not wait for the section of a key."""
    section = m.locked(MIDDLE)
    section.__enter__()[:] = NEW
    CUTTING[how](m)
    with pytest.raises(shmrhash.KeyGone):
        section.__exit__(None, None, None)
    assert contents(m) == dict.fromkeys(KEYS)


def test_a_taking_batch_with_f_lock_leaves_the_locked_entry(m):
    """L1: a taking batch returns its entries before a locked one, which can be taken later."""
    taken = []

    def take_all():
        cursor = None
        while True:  # each call takes at least one entry, or raises
            batch = m.lookup_and_delete_batch(cursor, flags=BPF_F_LOCK)
            taken.extend(bytes(key) for key in batch.keys)
            cursor = batch.cursor
            if cursor is None:
                return

    with locked_elsewhere(m, MIDDLE):
        with pytest.raises(shmrhash.LockTimeout):
            take_all()
        assert MIDDLE not in taken
        assert m[MIDDLE] == OLD
        assert sorted([*taken, *m]) == KEYS
    take_all()
    assert sorted(taken) == KEYS
    assert len(m) == 0


# ---- sections as arrays ----


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<u4", "<f4", "<f8", "V8", "<i4, <f8, <u4"])
def test_values_written_into_the_array_are_stored(m, dtype):
    """L1: an array of values is its section's buffer, and is not visible before the section
    ends."""
    with m.locked(MIDDLE) as value:
        array = value.as_array(dtype)
        assert array.dtype == np.dtype(dtype)
        assert array.nbytes == SIZE
        array.view("u1")[:] = np.arange(SIZE)
        assert bytes(value) == bytes(range(SIZE))
        assert m[MIDDLE] == OLD
    assert m[MIDDLE] == bytes(range(SIZE))


def test_arrays_and_slices_share_the_section_buffer(m):
    with m.locked(MIDDLE) as value:
        first, second = value.as_array("<u4"), value.as_array("<u8")
        value[0:4] = b"\x01\x02\x03\x04"
        assert first[0] == second[0] == 0x04030201
        second += 1
        assert value[0] == 2
    assert np.frombuffer(m[MIDDLE], "<u8").tolist() == [0x04030202, 1]


def test_writing_to_an_array_after_its_section_changes_nothing(m):
    """L1: after the section its array is a private copy, which is not in the map."""
    with m.locked(MIDDLE) as value:
        array = value.as_array("u1")
        array[:] = 1
    array[:] = 2
    assert m[MIDDLE] == b"\x01" * SIZE
    with m.locked(MIDDLE) as value:
        assert bytes(value) == b"\x01" * SIZE
        value.as_array("u1")[:] = 3
        value.roll_back()
    assert m[MIDDLE] == b"\x01" * SIZE


@pytest.mark.parametrize("dtype", ["<f8, <f8, <f8", "V5", "V32"])
def test_a_dtype_that_does_not_divide_the_value_is_refused(m, dtype):
    with m.locked(MIDDLE) as value, pytest.raises(shmrhash.InvalidArgument, match="16 bytes"):
        value.as_array(dtype)


def test_a_section_gives_no_array_outside_its_block(m):
    section = m.locked(MIDDLE)
    with pytest.raises(shmrhash.InvalidArgument):
        section.as_array("u1")
    with section:
        pass
    with pytest.raises(shmrhash.InvalidArgument):
        section.as_array("u1")
