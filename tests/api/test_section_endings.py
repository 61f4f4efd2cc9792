"""Events during sections: garbage collection, fork, a thousand sections at once, waiting."""

import contextlib
import gc
import math
import os
import struct
import threading

import pytest
from support.children import Partner, in_child
from support.jobs import word

import shmrhash
from shmrhash import BPF_F_LOCK, RHashMap

VALUE_SIZE = 16
OLD, NEW = bytes(VALUE_SIZE), b"n" * VALUE_SIZE
CONTEXTS_MAX = 4096  # how many contexts a map has


@pytest.fixture
def m(make_map):
    shared_map = make_map(value_size=VALUE_SIZE, timeout=1)
    for number in range(5):
        shared_map[word(number)] = OLD
    return shared_map


def ending(function):
    """Return what the function returns, or the class of the exception that it raises."""
    try:
        return function()
    except BaseException as error:
        return type(error)


def expect_free(m, key=1):
    """L1: assert that no section holds the key."""
    m.update(word(key), NEW, BPF_F_LOCK)
    assert m.lookup(word(key), BPF_F_LOCK) == NEW


# ---- collected ----


def test_a_section_in_a_garbage_cycle_is_rolled_back(m):
    """L1, C1: in whatever order the collector takes a cycle apart, the lock is free afterwards."""

    class Holder:
        pass

    def leave_cycles():
        for number in range(4):
            before, section, after = Holder(), m.locked(word(number)), Holder()
            section.__enter__()[:] = NEW
            before.itself, before.section = before, section
            after.itself, after.section = after, section

    def collect():
        leave_cycles()
        gc.collect()
        for number in range(4):
            assert m[word(number)] == OLD
            expect_free(m, number)
        return "sound"

    assert in_child(collect) == "sound"


# ---- fork ----


def test_a_child_of_fork_waits_for_its_parents_section(m):
    """L1: a child waits for its parent's section, which its own thread does not hold: no
    deadlock."""
    with m.locked(word(1)) as value:
        told = in_child(ending, lambda: m.update(word(1), NEW))
        value[:] = NEW

    assert told is shmrhash.LockTimeout
    assert m[word(1)] == NEW


def test_a_forked_child_that_closed_the_map_may_leave_the_block(m):
    """C1: the child's copy of the parent's section is only a Python object; leaving it is
    harmless."""
    section = m.locked(word(1))
    section.__enter__()[:] = NEW

    def close_and_leave():
        m.add(word(2), 1)
        m.close()
        section.__exit__(None, None, None)

    told = in_child(ending, close_and_leave)
    section.__exit__(None, None, None)

    assert told is shmrhash.Error
    assert m[word(1)] == NEW
    expect_free(m)


def test_an_inherited_section_has_no_part_in_a_context_that_the_child_takes(m):
    """L1, C1: a child that takes its parent's former context cannot end the inherited section, and
    leaves no lock when it is killed."""
    inherited = m.locked(word(0))
    inherited.__enter__()

    def take_over_and_die(parent):
        parent.wait()
        sections = [m.locked(word(number), default=OLD) for number in range(10, 18)]
        for section in sections[:4]:
            section.__enter__()
        with pytest.raises(shmrhash.Error, match="parent"):
            inherited.__exit__(None, None, None)
        for section in sections[4:]:
            section.__enter__()
        parent.say("inside")
        os._exit(9)

    with RHashMap.open(m.name, timeout=1) as other:
        child = Partner(take_over_and_die)
        inherited.__exit__(None, None, None)
        m.close()
        child.tell()
        assert child.hear() == "inside"
        assert child.join() == 9
        for number in range(10, 18):
            expect_free(other, number)
        assert other.check()["exact"]


# ---- many ----


def test_a_thousand_locks_taken_repeatedly_use_up_no_contexts(make_map):
    """L1: the contexts of ended sections are free again, for this process and for others."""
    m = make_map(value_size=VALUE_SIZE, timeout=1)
    keys = [word(number) for number in range(1000)]
    for key in keys:
        m[key] = OLD

    for _ in range(8):
        with m.locked_many(keys) as values:
            assert len(values) == len(keys)

    in_child(lambda: m.update(word(1), NEW))
    assert m.info()["contexts"] < CONTEXTS_MAX // 2


def test_processes_that_had_many_sections_leave_contexts_to_others(make_map):
    """L1: a process keeps only a few contexts of sections that have ended."""
    m = make_map(value_size=VALUE_SIZE, max_entries=20_000, timeout=1)
    keys = [word(number) for number in range(6_000)]
    for key in keys:
        m[key] = OLD

    def have_many(parent, first):
        with m.locked_many(keys[first : first + 500]) as values:
            assert len(values) == 500
        parent.say("ended")
        parent.wait()

    with contextlib.ExitStack() as crew:
        for first in range(0, 6_000, 500):
            child = crew.enter_context(Partner(have_many, first))
            assert child.hear() == "ended"
        in_child(lambda: m.update(word(1), NEW))
        assert m.info()["contexts"] < m.info()["contexts_max"] // 4


# ---- waiting for a section of the same thread ----


def test_a_batch_that_waits_for_another_section_and_then_its_own_is_a_deadlock(make_map):
    """L1: a batch that meets its own thread's section raises at once, also after another wait."""
    m = make_map(value_size=VALUE_SIZE, timeout=10)
    for number in range(60):
        m[word(number)] = OLD
    first, *_, last = list(m)
    held, walking = threading.Event(), threading.Event()

    def hold():
        with m.locked(first):
            held.set()
            walking.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.2, walking.set).start()
    with m.locked(last), pytest.raises(shmrhash.DeadlockError):
        m.lookup_batch(None, 100, BPF_F_LOCK)
    thread.join()


# ---- numbers ----


@pytest.mark.parametrize("fmt", ["f", "d"])
@pytest.mark.parametrize(
    ("operation", "before", "number", "after"),
    [
        ("max", math.nan, 5.0, math.nan),
        ("min", math.nan, 5.0, math.nan),
        ("max", 1.0, math.nan, 1.0),
        ("min", 1.0, math.nan, 1.0),
        ("max", 1.0, 5.0, 5.0),
        ("min", 5.0, -math.inf, -math.inf),
    ],
)
def test_a_nan_is_neither_less_nor_greater_than_a_number(m, fmt, operation, before, number, after):
    """W1: min() and max() neither replace a NaN by a number nor a number by a NaN."""
    m[word(1)] = struct.pack(f"<{fmt}", before).ljust(VALUE_SIZE, b"\0")

    told = getattr(m, operation)(word(1), number, fmt=fmt)

    (found,) = struct.unpack_from(f"<{fmt}", m[word(1)])
    assert repr((after, after)) == repr((told, found))
