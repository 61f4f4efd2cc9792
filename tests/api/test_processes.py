"""Many processes or threads use one map; each test has an oracle that counts or compares.

The workers get the handle itself: threads share it, forked children inherit it, and spawned
children get it pickled.
"""

import contextlib
import itertools
import os

import pytest
from support import jobs
from support.children import in_child
from support.jobs import number_in, stable_value, word
from support.workers import METHODS, Crew, Died, run_together

import shmrhash
from shmrhash import RHashMap

WORKERS = 4

# A forked worker, or one that shares the handle, starts at once; a spawned one must import first.
methods = pytest.mark.parametrize("method", METHODS)


@methods
def test_no_addition_is_lost(seed, make_map, method):
    """W1: workers add to the same few keys; the sums are exact, and no sum was returned twice."""
    m = make_map()
    keys_count, adds = 5, 40_000

    results = run_together(
        method, *((jobs.add_ones, m, keys_count, adds, seed + i) for i in range(WORKERS))
    )

    for key in range(keys_count):
        returned = sorted(itertools.chain.from_iterable(seen[key] for seen in results))
        assert list(range(1, len(returned) + 1)) == returned
        assert len(returned) == number_in(m[word(key)])
    assert WORKERS * adds == sum(number_in(m[word(key)]) for key in range(keys_count))
    m.check()


@methods
def test_one_inserter_wins_each_key_and_one_taker_gets_it(make_map, method):
    """W1: workers race to insert the same keys with NOEXIST, and then to take them."""
    m = make_map(max_entries=500)
    rounds, keys_per_round = 20, 300

    results = run_together(
        method,
        *(
            (jobs.insert_and_take_the_same, m, rounds, keys_per_round, mark)
            for mark in range(WORKERS)
        ),
    )

    winners = [(key, mark) for mark, (inserted, _) in enumerate(results) for key in inserted]
    taken = [pair for _, pairs in results for pair in pairs]
    assert list(range(rounds * keys_per_round)) == sorted(key for key, _ in winners)
    assert sorted(winners) == sorted(taken)
    assert len(m) == 0
    m.check()


@methods
def test_successful_insertions_less_deletions_are_the_entries_left(seed, make_map, method):
    """W1: workers insert and delete a few keys; the successes for each key add up to 0 or 1."""
    m = make_map(max_entries=16)
    keys_count = 6

    results = run_together(
        method,
        *(
            (jobs.insert_and_delete_at_random, m, keys_count, 40_000, seed + i)
            for i in range(WORKERS)
        ),
    )

    for key in range(keys_count):
        assert sum(balance[key] for balance in results) == int(word(key) in m)
    m.check()


@methods
@pytest.mark.parametrize("max_entries", [1, 50, 1000, 3001])
def test_racing_inserters_fill_the_map_exactly(make_map, method, max_entries):
    """W2: of twice as many insertions as fit, max_entries succeed, and all others raise MapFull."""
    m = make_map(max_entries=max_entries)
    each = max_entries // 2 + 1

    results = run_together(
        method,
        *((jobs.insert_until_refused, m, i * each, each) for i in range(WORKERS)),
    )

    taken = list(itertools.chain.from_iterable(results))
    assert max_entries == len(taken) == len(m)
    assert all(m[word(key)] == word(key) for key in taken)
    with pytest.raises(shmrhash.MapFull):
        m.update(word(1 << 40), word(0))
    m.check()


@methods
def test_the_limit_holds_while_keys_come_and_go(seed, make_map, method):
    """W2: insertions and deletions near the limit never exceed it, and leave room for the rest."""
    m = make_map(max_entries=100)

    results = run_together(
        method,
        *((jobs.churn_at_the_limit, m, i * 1000, 60, 20_000, seed + i) for i in range(WORKERS)),
    )

    there = set().union(*results)
    assert len(there) == len(m)
    assert all(word(key) in m for key in there)
    for key in range(m.max_entries - len(there)):
        m.update(word((1 << 40) + key), word(0), jobs.NOEXIST)
    with pytest.raises(shmrhash.MapFull):
        m.update(word(1 << 41), word(0), jobs.NOEXIST)
    m.check()


@methods
def test_readers_find_stable_keys_while_the_map_grows_and_shrinks(seed, make_map, method):
    """R1, G1: readers find exactly the 2,000 keys that stay, while 20,000 are inserted and
    deleted."""
    stable_count, churned = 2_000, 10_000
    m = make_map(max_entries=100_000)
    for key in range(stable_count):
        m.update(word(key), stable_value(key))

    results = run_together(
        method,
        (jobs.churn, m, 1_000_000, churned, 10),
        (jobs.churn, m, 2_000_000, churned, 10),
        (jobs.read_stable, m, stable_count, seed),
        (jobs.read_stable, m, stable_count, seed + 1),
    )

    assert all(results[2:]), "the readers read nothing"
    assert stable_count == len(m)
    assert all(m[word(key)] == stable_value(key) for key in range(stable_count))
    info = m.info()
    assert info["grows"] > 0
    assert info["shrinks"] > 0
    m.check()


@methods
@pytest.mark.thorough
def test_keys_that_move_all_the_time_are_always_found(seed, make_map, method):
    """R1, G1: readers find keys of a small map while its buckets are split and merged."""
    stable_count = 12
    m = make_map(max_entries=1_000)
    for key in range(stable_count):
        m.update(word(key), stable_value(key))

    results = run_together(
        method,
        (jobs.churn, m, 1_000, 400, 600),
        (jobs.read_stable, m, stable_count, seed),
        (jobs.read_stable, m, stable_count, seed + 1),
    )

    assert all(results[1:]), "the readers read nothing"
    assert len(m) == stable_count
    info = m.info()
    assert info["grows"] > 1_000
    assert info["shrinks"] > 1_000
    m.check()


@methods
def test_no_reader_sees_an_older_value_again(seed, make_map, method):
    """W1: writers store rising versions and read them back; no reader sees an older one again."""
    m = make_map()
    for key in range(8):
        m.update(word(key), word(0))

    results = run_together(
        method,
        (jobs.write_versions, m, range(4), 20_000),
        (jobs.write_versions, m, range(4, 8), 20_000),
        (jobs.read_versions, m, range(8), seed),
        (jobs.read_versions, m, range(8), seed + 1),
    )

    assert all(results[2:]), "the readers read nothing"
    assert [number_in(m[word(key)]) for key in range(8)] == [20_000] * 8
    m.check()


@methods
@pytest.mark.parametrize("value_size", [8, 64, 256, 1000])
@pytest.mark.thorough
def test_every_value_read_is_from_one_write(make_map, method, value_size):
    """R2: two writers and two readers use one key; all words of a value are from one write."""
    m = make_map(value_size=value_size)
    writes = 200_000
    m.update(word(7), jobs.whole_value(0, value_size))

    results = run_together(
        method,
        (jobs.write_whole, m, 7, value_size, 0, writes),
        (jobs.write_whole, m, 7, value_size, 1, writes),
        (jobs.read_whole, m, 7, value_size, {0, 1}, writes),
        (jobs.read_whole, m, 7, value_size, {0, 1}, writes),
    )

    assert sum(results[2:]) > 1, "no writer wrote while the readers read"
    last = jobs.number_of_whole(m[word(7)], value_size)
    assert last & 0xFF_FFFF == writes - 1
    m.check()


@methods
@pytest.mark.parametrize("value_size", [8, 64, 1000])
@pytest.mark.thorough
def test_a_value_is_never_read_under_another_key(make_map, method, value_size):
    """R2: keys that are inserted and deleted share elements; a reader finds its key's value or
    none."""
    m = make_map(value_size=value_size, max_entries=2)

    results = run_together(
        method,
        (jobs.reinsert_whole, m, 1, value_size, 50_000),
        (jobs.reinsert_whole, m, 2, value_size, 50_000),
        (jobs.read_reinserted, m, [1, 2], value_size),
        (jobs.read_reinserted, m, [2, 1], value_size),
    )

    # The interpreter may switch away from a reading thread at the same place every time.
    assert method == "thread" or sum(results[2:]) > 0
    assert len(m) == 0
    m.check()


@methods
def test_colliding_keys_of_many_writers_stay_apart(seed, make_map, method):
    """W1, W2: counts and limits are exact although all hashes are equal and share one chain."""
    m = make_map(max_entries=200, _seeds=(0, 0))
    m.update(word(0), stable_value(0))

    results = run_together(
        method,
        (jobs.churn, m, 1_000, 90, 300),
        (jobs.churn, m, 2_000, 90, 300),
        (jobs.read_stable, m, 1, seed),
        (jobs.read_stable, m, 1, seed + 1),
    )

    assert all(results[2:]), "the readers read nothing"
    assert len(m) == 1
    m.check()


@pytest.mark.parametrize("method", [*METHODS, "forkserver"])
def test_processes_that_come_and_go_lose_no_addition(make_map, map_name, method):
    """C3: workers open and close the map repeatedly; no addition is lost, and none stays
    attached."""
    m = make_map()
    m.update(word(0), word(0))
    rounds = 25

    run_together(method, *((jobs.add_one_each_time_attached, map_name, rounds) for _ in range(8)))

    assert 8 * rounds == number_in(m[word(0)])
    assert m.info()["processes"] == 1
    m.check()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_uses_the_handle_after_its_parent_closed_it(make_map, map_name, method):
    """C3: a child can use the inherited handle before and after its parent closes the parent's."""
    m = make_map()
    crew = Crew(method, parties=2)
    crew.start(jobs.use_before_and_after, m, 3)

    crew.gate.wait()
    assert word(1) == m[word(3)]
    m.close()
    crew.gate.wait()

    assert crew.join() == [(1, 2)]
    with RHashMap.open(map_name) as reopened:
        assert word(2) == reopened[word(3)]
        reopened.check()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_exits_without_closing_leaves_nothing(make_map, method):
    """C1, C3: children end by os._exit() with the handle open; the map has what they wrote."""
    m = make_map()
    crew = Crew(method, parties=1)
    for key in range(4):
        crew.start(jobs.exit_without_closing, m, key)

    deaths = crew.join(deaths_allowed=True)

    assert [death.exitcode for death in deaths if isinstance(death, Died)] == [0] * 4
    assert all(m[word(key)] == word(key) for key in range(4))
    shmrhash.gc()
    assert m.info()["processes"] == 1
    m.check()


@pytest.mark.thorough
def test_process_slots_of_exited_processes_are_used_again(make_map):
    """C2, C3: more children exit without closing than there are process slots."""
    m = make_map()
    children = 540  # and as many grandchildren; at most 1,024 may attach

    # A spawned process is small, and forks faster than the test runner.
    run_together("spawn", (jobs.fork_children_who_use, m, 0, children))

    assert len(m) == 2 * children
    assert m.info()["processes"] == 1
    m.check()


def test_children_and_grandchildren_use_the_inherited_handle(make_map):
    """C3: two generations of forked children write through the handle of the first process."""
    m = make_map()
    m.update(word(1 << 20), word(1))

    run_together("fork", (jobs.fork_children_who_use, m, 0, 10))

    assert all(m[word(key)] == word(key) for key in range(20))
    assert m[word(1 << 20)] == word(1)
    m.check()


def test_a_child_that_cannot_reach_the_file_by_name_uses_the_map_it_inherited(map_name):
    """C3: a child uses its map after the descriptor was closed and the name given to another
    map."""
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as m:
        m[word(1)] = word(2)
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.samefile(f"/proc/self/fd/{fd}", m._path):
                    os.close(int(fd))
        m.unlink()
        with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=10) as other:
            in_child(m.__setitem__, word(1), word(3))
            assert len(other) == 0
            other.unlink()
        assert m[word(1)] == word(3)


@pytest.mark.thorough
def test_children_forked_while_threads_operate_can_use_the_handle(make_map):
    """C3: locks that threads of the parent held at the fork do not stop the child."""
    m = make_map()

    (ends,) = run_together("fork", (jobs.fork_under_threads, m, 10, 3))

    assert ends == ["closed"] * 3
    assert all(m[word(1000 + key)] == word(1000 + key) for key in range(20))
    m.check()


def test_closing_a_handle_ends_the_operations_of_threads_with_map_closed(make_map, map_name):
    """H1: close() ends other threads' operations with MapClosed; the map itself stays usable."""
    m = make_map()

    (told,) = run_together("fork", (jobs.close_under_threads, map_name, 20, 3))

    assert told == ["closed"] * 60
    assert [word(key) for key in range(3)] == [m[word(key)] for key in range(3)]
    m.check()


def test_handles_of_one_process_see_each_other_and_close_alone(make_map, map_name):
    """W1: handles of one process read each other's values; closing one does not affect the
    others."""
    m = make_map()
    handles = [RHashMap.open(map_name) for _ in range(10)]

    for number, handle in enumerate(handles):
        handle.update(word(number), word(number))
        assert all(other[word(number)] == word(number) for other in [m, *handles])
    for number, handle in enumerate(handles[:-1]):
        handle.close()
        handles[-1].update(word(number), word(number + 1), jobs.EXIST)
        with pytest.raises(shmrhash.MapClosed):
            handle.lookup(word(number))

    assert [word(number + 1) for number in range(9)] == [m[word(number)] for number in range(9)]
    handles[-1].check()
    handles[-1].close()
    m.check()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_everything_at_once_for_long(seed, make_map, method):
    """W1, R1, G1: counters, versions and stable keys are correct together, through many resizes."""
    m = make_map(max_entries=400_000)
    for key in range(2_000):
        m.update(word(key), stable_value(key))
    versioned = range(1 << 30, (1 << 30) + 8)
    for key in versioned:
        m.update(word(key), word(0))

    results = run_together(
        method,
        (jobs.churn, m, 1_000_000, 100_000, 20),
        (jobs.churn, m, 2_000_000, 100_000, 20),
        (jobs.read_stable, m, 2_000, seed),
        (jobs.write_versions, m, versioned, 100_000),
        (jobs.read_versions, m, versioned, seed + 1),
        timeout_s=280,
    )

    assert all([results[2], results[4]]), "the readers read nothing"
    assert 2_000 + len(versioned) == len(m)
    m.check()
