"""wait(), wait_any() and watch() of RHashMap: every change wakes the threads that wait for it.

Unless a test says otherwise, waiters do not look by themselves (slices are off), so a lost wake-up
fails the test by its timeout.
"""

import os
import signal
import threading
import time

import numpy
import pytest
from support.children import Child
from support.jobs import number_in, word
from support.waiting import HOURS_NS, LONG_S, Waiting, until_somebody_sleeps, words_of
from support.workers import METHODS, run_together

import shmrhash
from shmrhash import CHANGED, GONE, Change, Kptr, RHashMap, _core

KEY = word(1)
OTHER = word(2)
ROUNDS_LONG = 5_000
pytestmark = pytest.mark.usefixtures("slices_off")


@pytest.fixture
def wide_map(make_map):
    return make_map(value_size=24)


def woken_by(m, change, *until):
    """Wait for KEY in a thread, call change(m) when it sleeps, and return the result of the
    wait."""
    waiting = Waiting(m.wait, KEY, *until, timeout=LONG_S)
    until_somebody_sleeps(m)
    change(m)
    return waiting.result()


# ---- every change wakes ----

CHANGES = {
    "update": lambda m: m.update(KEY, word(7)),
    "the second update": lambda m: (m.update(OTHER, word(7)), m.update(KEY, word(7))),
    "m[key] = value": lambda m: m.__setitem__(KEY, word(7)),
    "add": lambda m: m.add(KEY, 7),
    "max": lambda m: m.max(KEY, 7),
    "compare_and_swap": lambda m: m.compare_and_swap(KEY, word(0), word(7)),
    "exchange": lambda m: m.exchange(KEY, word(7)),
    "update_many": lambda m: m.update_many([OTHER, KEY], [word(7), word(7)]),
    "add_many": lambda m: m.add_many(KEY, numpy.array([7])),
    "the end of a section": lambda m: with_section(m),
}
INSERTIONS = {
    "update": lambda m: m.update(KEY, word(7)),
    "setdefault": lambda m: m.setdefault(KEY, word(7)),
    "add": lambda m: m.add(KEY, 7, default=0),
    "compare_and_swap": lambda m: m.compare_and_swap(KEY, None, word(7)),
    "update_many": lambda m: m.update_many([OTHER, KEY], [word(7), word(7)]),
    "a section with a default": lambda m: with_section(m, default=word(7)),
}
DELETIONS = {
    "delete": lambda m: m.delete(KEY),
    "pop": lambda m: m.pop(KEY),
    "lookup_and_delete": lambda m: m.lookup_and_delete(KEY),
    "delete_many": lambda m: m.delete_many([OTHER, KEY]),
    "clear": lambda m: m.clear(),
    "lookup_and_delete_batch": lambda m: m.lookup_and_delete_batch(None, 100),
    "the end of a section": lambda m: with_section(m, delete=True),
}


def with_section(m, delete=False, default=None):
    with m.locked(KEY, default=default) as value:
        if delete:
            value.delete()
        else:
            value[:8] = word(7)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_value_wakes_a_waiter(shm_map, change):
    m = shm_map
    m[KEY] = m[OTHER] = word(0)
    assert woken_by(m, change, lambda value: value == word(7)) == word(7)
    m.check()


@pytest.mark.parametrize("insertion", INSERTIONS.values(), ids=INSERTIONS)
def test_every_insertion_wakes_a_waiter(shm_map, insertion):
    m = shm_map
    assert woken_by(m, insertion) == word(7)
    m.check()


@pytest.mark.parametrize("deletion", DELETIONS.values(), ids=DELETIONS)
def test_every_deletion_wakes_a_waiter(shm_map, deletion):
    m = shm_map
    for number in range(20):
        m[word(number)] = word(number)
    assert woken_by(m, deletion, GONE) is None
    m.check()


def test_a_wide_value_wakes_a_waiter_and_is_whole(wide_map):
    m = wide_map
    m[KEY] = bytes(24)
    waiting = Waiting(m.wait, KEY, CHANGED, timeout=LONG_S)
    until_somebody_sleeps(m)

    m[KEY] = b"abc" * 8

    assert waiting.result() == b"abc" * 8


def test_an_exchanged_object_wakes_a_waiter(make_map):
    m = make_map(value_size=16, fields=[Kptr(0)])
    m[KEY] = bytes(16)
    waiting = Waiting(m.wait, KEY, CHANGED, timeout=LONG_S)
    until_somebody_sleeps(m)

    m.kptr_xchg(KEY, b"new", offset=0)

    assert waiting.result() is not None


def test_a_change_by_another_process_wakes_a_waiter(shm_map):
    m = shm_map
    waiting = Waiting(m.wait, KEY, timeout=LONG_S)
    until_somebody_sleeps(m)
    child = Child(m.update, KEY, word(7))

    assert waiting.result() == word(7)
    child.result()


def alternate(gate, m, mine, other, rounds):
    """Wait for each number of the other process, then store the next; return the last number
    seen."""
    _core.set_wait_slice(HOURS_NS)
    gate.wait()
    for number in range(1, rounds + 1):
        m[mine] = word(number)
        m.wait(other, lambda value, least=number: number_in(value) >= least, timeout=LONG_S)
    return number


@pytest.mark.parametrize("method", METHODS)
def test_no_wake_up_is_lost_between_two_threads_that_take_turns(shm_map, method):
    first, second = run_together(
        method,
        (alternate, shm_map, KEY, OTHER, 2_000),
        (alternate, shm_map, OTHER, KEY, 2_000),
    )

    assert (first, second) == (2_000, 2_000)
    assert words_of(shm_map)[0] == 0, "nobody waits any more"
    shm_map.check()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_wake_up_is_lost_in_a_long_run(shm_map, duration):
    """Two processes alternate for ten times --duration seconds; the test prints how often each of
    them has waited."""
    rounds, end = 0, time.monotonic() + 10 * duration
    while time.monotonic() < end:
        shm_map[KEY] = shm_map[OTHER] = word(0)
        run_together(
            "fork",
            (alternate, shm_map, KEY, OTHER, ROUNDS_LONG),
            (alternate, shm_map, OTHER, KEY, ROUNDS_LONG),
        )
        rounds += ROUNDS_LONG
    print(f"{rounds:,} rounds of two processes that wait for each other")

    assert words_of(shm_map)[0] == 0, "nobody waits any more"
    shm_map.check()


def appear_and_go(gate, m, key, answer, rounds):
    """Delete a key and insert it again, each time after the other process has seen the change."""
    _core.set_wait_slice(HOURS_NS)
    gate.wait()
    for number in range(1, rounds + 1):
        m[key] = word(number)
        m.wait(answer, lambda value, number=number: value == word(2 * number - 1), timeout=LONG_S)
        del m[key]
        m.wait(answer, lambda value, number=number: value == word(2 * number), timeout=LONG_S)


def answer_each(gate, m, key, answer, rounds):
    _core.set_wait_slice(HOURS_NS)
    gate.wait()
    for number in range(1, rounds + 1):
        m.wait(key, timeout=LONG_S)
        m[answer] = word(2 * number - 1)
        m.wait(key, GONE, timeout=LONG_S)
        m[answer] = word(2 * number)


@pytest.mark.parametrize("method", METHODS)
def test_no_wake_up_is_lost_when_a_key_comes_and_goes(shm_map, method):
    """No wake-up is lost when the key is deleted and inserted while the table grows and shrinks."""

    def churn(gate, m):
        gate.wait()
        for turn in range(20):
            for number in range(100, 400):
                m[word(number)] = word(turn)
            for number in range(100, 400):
                del m[word(number)]

    jobs = [
        (appear_and_go, shm_map, KEY, OTHER, 1_000),
        (answer_each, shm_map, KEY, OTHER, 1_000),
    ]
    if method != "spawn":
        jobs.append((churn, shm_map))

    run_together(method, *jobs)

    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_all_waiters_for_a_key_are_woken(shm_map):
    waiting = [Waiting(shm_map.wait, KEY, timeout=LONG_S) for _ in range(8)]
    for each in waiting:
        each.until_asleep()

    shm_map[KEY] = word(7)

    assert [each.result() for each in waiting] == [word(7)] * 8


@pytest.mark.parametrize("keys", [(KEY,), (KEY, OTHER)], ids=["wait", "wait_any"])
def test_writers_of_other_keys_hardly_ever_ring(make_map, keys):
    """Of 64 other keys one has the class of an awaited key, but hardly one its tag as well. Of
    1,280 changes 0.01 ring on average, or 0.3 with two keys; without tags it would be 20 or 40."""
    m = make_map(max_entries=2000)
    waiting = Waiting(m.wait_any, keys, timeout=LONG_S)
    until_somebody_sleeps(m)
    for number in range(100, 1380):
        m.update(word(number), word(0))
        until_somebody_sleeps(m)
    rung = sum((bell & 0xFFFFFFFF) >> 1 for bell in words_of(m)[1])
    m.update(KEY, word(7))
    assert waiting.result() == (KEY, word(7))
    assert rung <= 4
    m.check()


# ---- what is waited for ----


def test_a_key_that_is_as_wanted_is_returned_at_once(shm_map):
    shm_map[KEY] = word(7)

    assert shm_map.wait(KEY, timeout=0) == word(7)
    assert shm_map.wait(KEY, lambda value: value == word(7), timeout=0) == word(7)
    assert shm_map.wait(OTHER, GONE, timeout=0) is None
    assert shm_map.wait_any([OTHER, KEY], timeout=0) == (KEY, word(7))
    assert words_of(shm_map)[0] == 0


def test_a_timeout_raises_and_says_what_was_waited_for(shm_map):
    with pytest.raises(shmrhash.WaitTimeout, match=shm_map.name) as raised:
        shm_map.wait(KEY, timeout=0.02)
    assert isinstance(raised.value, TimeoutError)
    with pytest.raises(shmrhash.WaitTimeout):
        shm_map.wait_any([KEY, OTHER], CHANGED, timeout=0.02)
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_changed_counts_from_the_call_on(shm_map):
    shm_map[KEY] = word(1)
    with pytest.raises(shmrhash.WaitTimeout):
        shm_map.wait(KEY, CHANGED, timeout=0.02)
    waiting = Waiting(shm_map.wait, KEY, CHANGED, timeout=LONG_S)
    until_somebody_sleeps(shm_map)

    shm_map[KEY] = word(1)  # the same value, stored again

    assert waiting.result() == word(1)
    waiting = Waiting(shm_map.wait, KEY, CHANGED, timeout=LONG_S)
    until_somebody_sleeps(shm_map)
    del shm_map[KEY]
    assert waiting.result() is None


def test_an_open_section_is_not_a_change(shm_map):
    shm_map[KEY] = word(1)
    with shm_map.locked(KEY):
        with pytest.raises(shmrhash.WaitTimeout):
            shm_map.wait(KEY, CHANGED, timeout=0.05)
        assert shm_map.wait(KEY, timeout=0) == word(1)
    shm_map.check()


def test_of_several_keys_the_one_that_comes_is_returned(shm_map):
    keys = [word(number) for number in range(100)]
    waiting = Waiting(shm_map.wait_any, keys, timeout=LONG_S)
    until_somebody_sleeps(shm_map)

    shm_map[keys[42]] = word(7)

    assert waiting.result() == (keys[42], word(7))


def test_an_exception_of_until_is_raised_and_leaves_nothing_behind(shm_map):
    shm_map[KEY] = word(1)
    with pytest.raises(ZeroDivisionError):
        shm_map.wait(KEY, lambda value: 1 / 0)
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_until_may_use_the_map(shm_map):
    shm_map[KEY] = word(0)

    def raise_it(value):
        shm_map.add(KEY, 1)
        return value >= word(5)

    assert shm_map.wait(KEY, raise_it, timeout=LONG_S) == word(5)
    shm_map.check()


# ---- what cannot be waited for ----

REFUSED = {
    "a negative timeout": (lambda m: m.wait(KEY, timeout=-1), shmrhash.InvalidArgument),
    "a timeout that is no number": (lambda m: m.wait(KEY, timeout=float("nan")), ValueError),
    "a timeout that is a text": (lambda m: m.wait(KEY, timeout="1"), TypeError),
    "a key of another size": (lambda m: m.wait(b"short"), shmrhash.InvalidArgument),
    "a key that is no buffer": (lambda m: m.wait(1), TypeError),
    "no keys": (lambda m: m.wait_any([]), shmrhash.InvalidArgument),
    "nothing to watch": (lambda m: m.watch([]), shmrhash.InvalidArgument),
    "a condition that is none": (lambda m: m.wait(KEY, until=3), shmrhash.InvalidArgument),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_waited_for_is_refused(shm_map, call, error):
    with pytest.raises(error):
        call(shm_map)
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_a_huge_timeout_is_none(shm_map):
    shm_map[KEY] = word(1)
    assert shm_map.wait(KEY, timeout=1e300) == word(1)
    assert shm_map.wait(KEY, timeout=float("inf")) == word(1)


def test_a_closed_map_cannot_be_waited_for(make_map):
    m = make_map()
    m.close()
    with pytest.raises(shmrhash.MapClosed):
        m.wait(KEY, timeout=1)


def test_closing_a_map_wakes_its_waiters(make_map):
    m = make_map()
    waiting = Waiting(m.wait, KEY, timeout=LONG_S)
    until_somebody_sleeps(m)

    m.close()

    assert isinstance(waiting.result(), shmrhash.MapClosed)


def test_freezing_a_map_wakes_its_waiters(shm_map):
    waiting = Waiting(shm_map.wait, KEY, timeout=LONG_S)
    until_somebody_sleeps(shm_map)

    shm_map.freeze()

    assert isinstance(waiting.result(), shmrhash.FrozenMap)


def test_a_write_only_handle_cannot_wait(make_map):
    m = make_map(map_flags=shmrhash.BPF_F_NO_PREALLOC | shmrhash.BPF_F_WRONLY)
    with pytest.raises(shmrhash.WriteOnlyMap):
        m.wait(KEY, timeout=1)


def test_a_read_only_handle_waits_by_looking(shm_map):
    with RHashMap.open(shm_map.name, read_only=True) as reader:
        waiting = Waiting(reader.wait, KEY, timeout=LONG_S)
        time.sleep(0.1)
        assert words_of(shm_map)[0] == 0

        shm_map[KEY] = word(7)

        assert waiting.result() == word(7)


def test_a_map_without_a_name_can_be_waited_for(make_map):
    m = make_map()
    m.unlink()
    waiting = Waiting(m.wait, KEY, timeout=LONG_S)
    waiting.until_asleep()
    m[KEY] = word(7)
    assert waiting.result() == word(7)


# ---- signals, forks, deaths ----


def test_a_signal_handler_runs_while_a_thread_waits(shm_map):
    def handler(_signal, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            shm_map.wait(KEY, timeout=LONG_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_a_fork_inside_until_goes_on_waiting_in_both(shm_map):
    """A child forked inside `until` is a waiter of its own; when it ends, its parent still
    waits."""
    shm_map[KEY] = word(1)
    children = []

    def fork_once(value):
        if value == word(1) and not children:
            children.append(os.fork())
        return value == word(7)

    parent = os.getpid()
    changer = threading.Timer(0.2, lambda: shm_map.update(KEY, word(7)))
    changer.start()
    value = shm_map.wait(KEY, fork_once, timeout=LONG_S)
    if os.getpid() != parent:
        os._exit(0 if value == word(7) else 1)
    changer.join()

    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert value == word(7)
    shm_map.check()
    assert words_of(shm_map)[0] == 0


def test_a_killed_waiter_leaves_nothing_behind_once_it_is_recovered(shm_map):
    child = Child(shm_map.wait, KEY)
    until_somebody_sleeps(shm_map)
    child.kill()
    assert words_of(shm_map)[0] != 0

    with RHashMap.open(shm_map.name) as another:
        assert another.recovered_at_open == 1
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_a_dead_waiter_does_not_silence_a_living_one(shm_map):
    child = Child(shm_map.wait, KEY)
    until_somebody_sleeps(shm_map)
    waiting = Waiting(shm_map.wait, KEY, timeout=LONG_S)
    waiting.until_asleep()
    child.kill()
    with RHashMap.open(shm_map.name) as another:
        assert another.recovered_at_open == 1
    assert words_of(shm_map)[0] != 0

    shm_map[KEY] = word(7)

    assert waiting.result() == word(7)
    assert words_of(shm_map)[0] == 0


def test_the_recovery_of_a_dead_writer_rings_in_its_place(shm_map):
    """A writer may die between its store and its ring. The process that recovers it rings every
    bell on which a thread sleeps."""
    shm_map[KEY] = word(1)

    def store_and_die():
        shm_map[OTHER] = word(1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Child(store_and_die).join() == -signal.SIGKILL
    waiting = Waiting(shm_map.wait, KEY, CHANGED, timeout=LONG_S)
    until_somebody_sleeps(shm_map)
    numbers = words_of(shm_map)[1]

    with RHashMap.open(shm_map.name) as another:
        assert another.recovered_at_open == 1

    assert words_of(shm_map)[1] != numbers, "a recovery rings the bells on which somebody sleeps"
    shm_map[KEY] = word(2)
    assert waiting.result() == word(2)


# ---- watch ----


def test_watch_yields_each_change_of_its_keys(shm_map):
    with shm_map.watch([KEY, OTHER], timeout=LONG_S) as changes:
        shm_map[KEY] = word(1)
        assert next(changes) == Change("set", KEY, word(1))
        del shm_map[KEY]
        shm_map[OTHER] = word(2)
        assert [next(changes) for _ in range(2)] == [
            Change("deleted", KEY, None),
            Change("set", OTHER, word(2)),
        ]
        shm_map[word(3)] = word(3)  # a key that is not watched


def test_watch_coalesces_changes_of_one_key(shm_map):
    with shm_map.watch([KEY], timeout=0.02) as changes:
        for number in range(1_000):
            shm_map[KEY] = word(number)
        assert list(changes) == [Change("set", KEY, word(999))]


def test_watch_sees_no_change_where_there_was_none(shm_map):
    shm_map[KEY] = word(1)
    with shm_map.watch([KEY, OTHER], timeout=0.02) as changes:
        assert list(changes) == []
    assert words_of(shm_map)[0] == 0


def test_watch_begins_with_the_present_state_if_asked(shm_map):
    shm_map[KEY] = word(1)
    with shm_map.watch([KEY, OTHER], initial=True, timeout=0.02) as changes:
        assert list(changes) == [Change("set", KEY, word(1)), Change("deleted", OTHER, None)]


def follow(gate, m, keys, last):
    """Watch keys until all have the value `last`; return how many changes were seen."""
    _core.set_wait_slice(HOURS_NS)
    seen = {}
    count = 0
    with m.watch(keys, initial=True, timeout=LONG_S) as changes:
        gate.wait()
        for change in changes:
            count += 1
            if change.kind == "set":
                assert seen.get(change.key, word(0)) <= change.value, "a change went back"
                seen[change.key] = change.value
            if len(seen) == len(keys) and set(seen.values()) == {last}:
                return count
    raise AssertionError(f"a change was lost: {seen}")


def store_up_to(gate, m, keys, rounds):
    gate.wait()
    for number in range(1, rounds + 1):
        for key in keys:
            m[key] = number.to_bytes(8, "big")


@pytest.mark.parametrize("method", METHODS)
def test_a_watcher_sees_the_last_value_of_every_key(shm_map, method):
    keys = [word(number) for number in range(10)]
    last = (2_000).to_bytes(8, "big")

    counts = run_together(
        method,
        (follow, shm_map, keys, last),
        (follow, shm_map, keys, last),
        (store_up_to, shm_map, keys, 2_000),
    )

    assert counts[0] >= 10
    assert words_of(shm_map)[0] == 0
    shm_map.check()


def test_closing_the_map_ends_a_watch(make_map):
    m = make_map()
    changes = m.watch([KEY])
    waiting = Waiting(next, changes)
    until_somebody_sleeps(m)
    m.close()
    assert isinstance(waiting.result(), shmrhash.MapClosed)
    changes.close()
    with pytest.raises(StopIteration):
        next(changes)
