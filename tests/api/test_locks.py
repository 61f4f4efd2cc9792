"""Sections of one process and its threads. Those of several processes are tested in other files."""

import signal
import struct
import threading
import time

import pytest
from support.jobs import word
from support.locking import PATIENCE_SECONDS, locked_elsewhere

import shmrhash
from shmrhash import BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, RHashMap

SIZE = 16
OLD, NEW, OTHER = bytes(SIZE), b"n" * SIZE, b"o" * SIZE


@pytest.fixture
def m(make_map):
    shared_map = make_map(value_size=SIZE, timeout=0.05)
    for number in range(5):
        shared_map[word(number)] = OLD
    return shared_map


@pytest.fixture
def held(m):
    """Key 1 is locked by another thread until the test ends."""
    with locked_elsewhere(m, word(1)) as leave:
        yield leave


# ---- the value ----


def test_the_buffer_of_a_section_is_stored_at_its_end(m):
    """L1: a section's buffer is stored at its end; readers see the old value until then."""
    with m.locked(word(1)) as value:
        assert (len(value), bytes(value), value[0]) == (SIZE, OLD, 0)
        value[0] = 7
        value.pack("<I", 9, offset=4)
        memoryview(value)[8:10] = b"ab"
        assert value.unpack("<I", 4) == (9,)
        assert value[8:10] == b"ab"
        assert m[word(1)] == OLD

    assert m[word(1)] == struct.pack("<B3xI2s6x", 7, 9, b"ab")


@pytest.mark.parametrize("how", ["raise", "roll back"])
def test_nothing_is_stored_if_the_block_fails(m, how):
    """L1, C1: after an exception in the block the value is unchanged, and the lock is free."""
    try:
        with m.locked(word(1)) as value:
            value[:] = NEW
            if how == "raise":
                raise ZeroDivisionError
            value.roll_back()
    except ZeroDivisionError:
        assert how == "raise"
    m.update(word(1), m[word(1)], BPF_F_LOCK)
    assert m[word(1)] == OLD


def test_a_section_deletes_its_key(m):
    with m.locked(word(1)) as value:
        value.delete()
        assert word(1) in m
    assert word(1) not in m


def test_a_section_creates_its_key(m):
    """L1: a section creates its key with the default, which stays even if nothing is stored."""
    with pytest.raises(shmrhash.KeyNotFound):
        m.locked(word(9)).__enter__()
    section = m.locked(word(9), default=OTHER)
    section.__enter__()[:] = NEW
    section.__exit__(ZeroDivisionError, None, None)
    assert m[word(9)] == OTHER


def test_a_section_can_be_used_only_once_and_inside_its_block(m):
    section = m.locked(word(1))
    with pytest.raises(shmrhash.InvalidArgument):
        section[:] = NEW
    with section:
        pass
    for use in (section.__enter__, section.delete, section.roll_back, lambda: bytes(section)):
        with pytest.raises(shmrhash.InvalidArgument):
            use()
    with pytest.raises(BufferError):
        memoryview(section)


def test_wrong_arguments_are_refused_and_nothing_is_locked(m):
    for act in (
        lambda: m.locked(b"short"),
        lambda: m.locked(word(1), default=b"short"),
        lambda: m.locked_many([word(1), word(2), word(1)]),
        lambda: m.update_with(word(1), lambda value: value + b"x"),
    ):
        with pytest.raises(shmrhash.InvalidArgument):
            act()
    for act in (lambda: m.locked("text"), lambda: m.locked(word(1), default=5)):
        with pytest.raises(TypeError):
            act()
    m.update(word(1), NEW, BPF_F_LOCK)


def test_keys_and_values_of_sections_may_be_any_buffers(m):
    with m.locked(bytearray(word(1)), default=memoryview(NEW)) as section:
        section[:] = memoryview(NEW)
    with m.locked(memoryview(word(9)), default=bytearray(OTHER)):
        pass

    assert m.compare_and_swap(bytearray(word(1)), bytearray(NEW), memoryview(OLD))
    assert [m[word(1)], m[word(9)]] == [OLD, OTHER]


def test_repr_of_a_section_names_its_key_and_state(m):
    section = m.locked(word(1))
    assert repr(section).endswith(f" in {m.name!r}: not entered>")
    with section:
        assert repr(section).endswith(": open>")
    assert repr(section).startswith(f"<LockedValue of {word(1)!r}")
    assert repr(section).endswith(": ended>")


# ---- several keys ----


def test_values_of_locked_many_come_in_the_order_of_its_keys(m):
    for number in range(5):
        m[word(number)] = bytes([number]) * SIZE
    with m.locked_many([word(3), word(0), word(2)]) as values:
        assert [value[0] for value in values] == [3, 0, 2]
        for value in values:
            value[:] = NEW
    assert [m[word(number)] for number in range(4)] == [NEW, b"\1" * SIZE, NEW, NEW]


def test_locked_many_locks_nothing_if_one_key_is_absent(m):
    with pytest.raises(shmrhash.KeyNotFound):
        m.locked_many([word(1), word(2), word(9)]).__enter__()
    for number in (1, 2):
        m.update(word(number), NEW, BPF_F_LOCK)


def test_locked_many_stores_nothing_when_one_key_is_gone(m):
    """L2: if one of the keys was deleted, locked_many() stores no value at all."""
    several = m.locked_many(map(word, range(3)))
    for value in several.__enter__():
        value[:] = NEW
    m.delete(word(1))
    with pytest.raises(shmrhash.KeyGone):
        several.__exit__(None, None, None)
    assert [m.lookup(word(number)) for number in range(3)] == [OLD, None, OLD]
    m.update(word(0), NEW, BPF_F_LOCK)


# ---- steps on a value ----


def test_update_with_stores_what_the_function_returns(m):
    assert m.update_with(word(1), lambda value: value[:-1] + b"x") == OLD[:-1] + b"x"
    assert m.update_with(word(9), bytes.upper, NEW) == NEW.upper() == m[word(9)]
    with pytest.raises(shmrhash.KeyNotFound):
        m.update_with(word(8), bytes.upper)
    with pytest.raises(ZeroDivisionError):
        m.update_with(word(8), lambda value: 1 // 0, OTHER)
    assert m[word(8)] == OTHER


def test_compare_and_swap_stores_only_over_the_expected_value(m):
    assert not m.compare_and_swap(word(1), NEW, OTHER)
    assert m.compare_and_swap(word(1), OLD, NEW)
    assert not m.compare_and_swap(word(1), None, OTHER)
    assert m[word(1)] == NEW
    assert not m.compare_and_swap(word(9), OLD, NEW)
    assert m.compare_and_swap(word(9), None, NEW)
    for expected, new in ((b"", NEW), (NEW, b"")):
        with pytest.raises(shmrhash.InvalidArgument):
            m.compare_and_swap(word(1), expected, new)


def test_exchange_setdefault_and_pop_return_the_previous_value(m):
    assert m.exchange(word(1), NEW) == OLD
    assert m.setdefault(word(1), OTHER) == NEW
    assert m.setdefault(word(9), OTHER) == OTHER == m.pop(word(9))
    assert m.pop(word(9), "none") == "none"
    for act in (lambda: m.pop(word(9)), lambda: m.exchange(word(9), NEW)):
        with pytest.raises(shmrhash.KeyNotFound):
            act()
    with pytest.raises(TypeError):
        m.pop(word(9), 1, 2)


# ---- waiting ----

WAITING = {
    "lock": lambda m: m.locked(word(1)).__enter__(),
    "lock many": lambda m: m.locked_many([word(0), word(1)]).__enter__(),
    "update with": lambda m: m.update_with(word(1), bytes.upper),
    "update": lambda m: m.update(word(1), NEW),
    "update f-lock": lambda m: m.update(word(1), NEW, BPF_ANY | BPF_F_LOCK),
    "replace f-lock": lambda m: m.update(word(1), NEW, BPF_EXIST | BPF_F_LOCK),
    "lookup f-lock": lambda m: m.lookup(word(1), BPF_F_LOCK),
    "take f-lock": lambda m: m.lookup_and_delete(word(1), BPF_F_LOCK),
    "lookup batch f-lock": lambda m: m.lookup_batch(None, 100, BPF_F_LOCK),
    "swap": lambda m: m.compare_and_swap(word(1), OLD, NEW),
    "exchange": lambda m: m.exchange(word(1), NEW),
    "add": lambda m: m.add(word(1), 1),
    "or": lambda m: m.or_(word(1), 1),
}
PASSING = {
    "lookup": lambda m: m.lookup(word(1)),
    "setdefault": lambda m: m.setdefault(word(1), NEW),
    "swap for absent": lambda m: m.compare_and_swap(word(1), None, NEW),
    "lookup batch": lambda m: m.lookup_batch(None, 100),
    "another key": lambda m: m.update(word(2), NEW, BPF_F_LOCK),
}
CUTTING = {
    "delete": lambda m: m.delete(word(1)),
    "pop": lambda m: m.pop(word(1)),
    "take": lambda m: m.lookup_and_delete(word(1)),
    "clear": lambda m: m.clear(),
}


@pytest.mark.parametrize("how", WAITING)
def test_an_operation_that_would_change_a_locked_value_waits(m, held, how):
    """L1: a change waits until the handle's timeout; then nothing is changed or left locked."""
    with pytest.raises(shmrhash.LockTimeout):
        WAITING[how](m)
    assert m[word(1)] == OLD
    m.update(word(0), NEW, BPF_F_LOCK)


@pytest.mark.parametrize("how", WAITING)
def test_waiting_for_a_section_of_the_same_thread_is_a_deadlock_error(m, how):
    """L1: waiting for an own section is EDEADLK at once, even if the handle's timeout is
    infinite."""
    with RHashMap.open(m.name, timeout=float("inf")) as patient:
        with patient.locked(word(1)), pytest.raises(shmrhash.DeadlockError):
            WAITING[how](patient)
        with m.locked(word(1)), pytest.raises(shmrhash.DeadlockError):
            WAITING[how](patient)
    m.update(word(0), NEW, BPF_F_LOCK)


@pytest.mark.parametrize("how", PASSING)
def test_an_operation_that_only_reads_does_not_wait(m, held, how):
    """R1, R2: an operation that would not change the locked value does not wait for its section."""
    PASSING[how](m)
    assert m[word(1)] == OLD


def test_an_insertion_with_f_lock_is_refused_or_waits(m, held):
    """L1: a NOEXIST insertion with BPF_F_LOCK stores nothing over a locked value."""
    with pytest.raises((shmrhash.KeyExists, shmrhash.LockTimeout)):
        m.update(word(1), NEW, BPF_NOEXIST | BPF_F_LOCK)
    assert m[word(1)] == OLD


@pytest.mark.parametrize("how", CUTTING)
@pytest.mark.parametrize("again", [False, True], ids=["gone", "inserted-again"])
def test_deleting_a_locked_key_ends_its_section_with_key_gone(m, how, again):
    """L1: a section whose key was deleted writes nothing, even if its element is in use again."""
    section = m.locked(word(1))
    section.__enter__()[:] = NEW
    CUTTING[how](m)
    if again:
        for number in range(1, 200):
            m[word(number)] = OTHER
    with pytest.raises(shmrhash.KeyGone):
        section.__exit__(None, None, None)
    assert m.lookup(word(1)) == (OTHER if again else None)
    if again:
        assert {OTHER} == {m[word(number)] for number in range(1, 200)}


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_lock_is_waited_for_until_the_timeout(m, held, timeout):
    """L1: a wait lasts at least the timeout; how much longer depends on the machine."""
    began = time.monotonic()
    with pytest.raises(shmrhash.LockTimeout):
        m.locked(word(1), timeout=timeout).__enter__()
    assert timeout <= time.monotonic() - began < timeout + PATIENCE_SECONDS


def test_a_wait_without_timeout_ends_when_the_lock_is_released(m, held):
    threading.Timer(0.1, held.set).start()
    with m.locked(word(1), timeout=float("inf")) as value:
        value[:] = NEW
    assert m[word(1)] == NEW


def test_a_signal_ends_a_wait(m, held):
    """L1: a signal ends a wait with KeyboardInterrupt, and the lock stays with its owner."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            m.locked(word(1), timeout=float("inf")).__enter__()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(shmrhash.LockTimeout):
        m.update(word(1), NEW)


# ---- changes of the map during a section ----


def test_a_section_stores_its_value_after_the_map_grew_and_shrank(m):
    """L1, G1: a section finds its element again in the bucket to which its key has moved."""
    with m.locked(word(1)) as value:
        value[:] = NEW
        for number in range(100, 3000):
            m[word(number)] = OTHER
        for number in range(100, 3000):
            del m[word(number)]
        assert m.info()["shrinks"] > 0
    assert m[word(1)] == NEW


def test_a_section_is_stored_although_its_handle_was_closed(m):
    """L1: close() waits for the end of a section, as for the end of any operation."""
    with RHashMap.open(m.name) as other:
        with m.locked(word(1)) as value:
            value[:] = NEW
            m.close()
        assert other.lookup(word(1), BPF_F_LOCK) == NEW


def test_a_section_stores_nothing_if_the_map_was_frozen_during_it(m):
    """L1: a section raises FrozenMap at its end if the map was frozen; its lock is free."""
    section = m.locked(word(1))
    section.__enter__()[:] = NEW
    m.freeze()
    with pytest.raises(shmrhash.FrozenMap):
        section.__exit__(None, None, None)
    assert m[word(1)] == OLD
    with RHashMap.open(m.name, read_only=True) as reader:
        assert reader[word(1)] == OLD


def test_a_read_only_handle_locks_nothing(m):
    with RHashMap.open(m.name, read_only=True) as reader, pytest.raises(shmrhash.ReadOnlyMap):
        reader.locked(word(1)).__enter__()


def test_memory_is_released_during_open_sections(make_map):
    """M1, L1: a section keeps no memory; sections whose keys were deleted raise KeyGone."""
    m = make_map(value_size=4096, max_entries=1000)
    for number in range(500):
        m[word(number)] = bytes(4096)
    sections = [m.locked(word(number)) for number in range(0, 500, 25)]
    for section in sections:
        section.__enter__()[:] = b"x" * 4096
    m.clear()
    assert m.info()["blocks_released"] > 0
    for section in sections:
        with pytest.raises(shmrhash.KeyGone):
            section.__exit__(None, None, None)
    assert m.check()["exact"]
    assert not len(m)
