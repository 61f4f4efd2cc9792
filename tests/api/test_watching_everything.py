"""watch() without keys: a program that follows it keeps a copy of the map, or learns of a loss."""

import asyncio
import os
import random
import select
import threading

import pytest
from support.children import Child
from support.jobs import insert_and_delete_at_random
from support.stepping import segment_path
from support.waiting import LONG_S, Waiting, until, words_of
from support.watching import Copy
from support.words import word
from support.workers import METHODS, run_together

import shmrhash
from shmrhash import Change, RHashMap, SharedCounter, SharedDict, _core

pytestmark = pytest.mark.usefixtures("slices_off")
LONG_KEY = "a key of more than fifteen bytes"


def clear_by_section(m, key):
    with m.locked(key) as entry:
        entry.delete()


def end_several(m, keys, number):
    with m.locked_many(keys) as entries:
        for entry in entries:
            entry[:8] = word(number)


# ---- every change is told ----

KINDS = {
    "update": lambda m, k, n: m.update(k, word(n)),
    "m[key] = value": lambda m, k, n: m.__setitem__(k, word(n)),
    "add": lambda m, k, n: m.add(k, n, default=0),
    "compare_and_swap": lambda m, k, n: m.compare_and_swap(k, m.get(k), word(n)),
    "setdefault": lambda m, k, n: m.setdefault(k, word(n)),
    "delete": lambda m, k, n: m.pop(k, None),
    "update_many": lambda m, k, n: m.update_many([k, word(n)], [word(n), word(n)]),
    "delete_many": lambda m, k, n: m.delete_many([k, word(n)]),
    "pop_batch": lambda m, k, n: m.lookup_and_delete_batch(None, 2),
    "sections": lambda m, k, n: end_several(m, sorted(key for key in {k, word(3)} if key in m), n),
    "deletion by a section": lambda m, k, n: clear_by_section(m, k) if k in m else None,
    "clear": lambda m, k, n: m.clear() if n % 5 == 0 else None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_follows_every_kind_of_change(shm_map, kind, seed):
    """A copy equals the map after each of random changes, of which half are of one kind."""
    rng = random.Random(seed)
    with Copy(shm_map) as copy:
        for number in range(12):
            KINDS["update"](shm_map, word(rng.randrange(8)), number)
            KINDS[kind](shm_map, word(rng.randrange(8)), number)
            for change in copy.watch.poll():
                copy.take(change)

            assert dict(shm_map.items()) == copy.entries
        assert copy.lost == []


def test_without_initial_only_changes_are_told(shm_map):
    shm_map[word(1)] = word(1)

    with shm_map.watch() as changes:
        before = changes.poll()
        shm_map[word(2)] = word(2)
        del shm_map[word(1)]
        after = changes.poll()

    assert before == []
    assert sorted(after) == [
        Change("deleted", word(1), None),
        Change("set", word(2), word(2)),
    ]


def test_changes_of_one_key_are_coalesced(shm_map):
    with shm_map.watch() as changes:
        for number in range(100):
            shm_map[word(1)] = word(number)

        assert changes.poll() == [Change("set", word(1), word(99))]


def test_a_sleeping_watcher_is_woken(shm_map):
    with shm_map.watch(timeout=LONG_S) as changes:
        waiting = Waiting(next, changes)
        waiting.until_asleep()
        shm_map[word(1)] = word(5)

        assert waiting.result() == Change("set", word(1), word(5))


def test_a_timeout_ends_the_loop(shm_map):
    with shm_map.watch(timeout=0) as changes:
        assert list(changes) == []


# ---- many writers ----


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_equals_the_map_after_many_writers(shm_map, method, seed):
    """A thread follows two writers that insert and delete at random; at rest its copy is equal."""
    with Copy(shm_map) as copy:
        done = threading.Event()

        def follow():
            while not done.is_set():
                select.select([copy.watch], [], [], 0.05)
                for change in copy.watch.poll():
                    copy.take(change)

        copy.watch.fileno()
        following = Waiting(follow)
        run_together(
            method, *((insert_and_delete_at_random, shm_map, 50, 1500, seed + n) for n in range(2))
        )
        done.set()
        following.result()

        copy.expect_equal()


def test_an_overrun_is_told(shm_map):
    """After more changes than the ring has entries, watch() tells how many were lost, and the copy
    becomes whole again."""
    with Copy(shm_map) as copy:
        copy.catch_up()
        for number in range(5000):
            shm_map[word(number % 50)] = word(number)

        copy.expect_equal()
        assert copy.lost == [5000]


def test_two_watchers_do_not_disturb_each_other(shm_map):
    with Copy(shm_map) as copy:
        with Copy(shm_map) as other:
            shm_map[word(1)] = word(1)
            other.expect_equal()
        shm_map[word(2)] = word(2)

        copy.expect_equal()
        assert copy.lost == []


# ---- no process watches ----


def kib_of(m):
    return os.stat(segment_path(m.name)).st_blocks // 2


def test_a_map_without_watchers_has_no_ring_and_records_nothing(shm_map):
    """The ring gets memory at the first watch. The word that sends writers to the ring is 0 again
    after the last watch."""
    shm_map[word(1)] = word(1)
    before = kib_of(shm_map)
    with shm_map.watch(), shm_map.watch():
        pass
    with shm_map.watch():
        during = words_of(shm_map)[0]
    after = words_of(shm_map)[0]

    assert (during, after) == (2**64 - 1, 0)
    assert 64 <= kib_of(shm_map) - before <= 76


# ---- handles that may watch, and calls that are refused ----


def test_a_read_only_handle_cannot_watch_everything(shm_map):
    with (
        RHashMap.open(shm_map.name, read_only=True) as reader,
        pytest.raises(shmrhash.ReadOnlyMap, match="may write"),
    ):
        reader.watch()


def test_a_write_only_handle_cannot_watch_everything(make_map):
    m = make_map(map_flags=shmrhash.BPF_F_NO_PREALLOC | shmrhash.BPF_F_WRONLY)

    with pytest.raises(shmrhash.WriteOnlyMap):
        m.watch()


def test_no_keys_are_not_everything(shm_map):
    with pytest.raises(shmrhash.InvalidArgument):
        shm_map.watch([])


def test_closing_and_freezing_end_a_watch(make_map):
    closed, frozen = make_map(), make_map()
    watches = closed.watch(), frozen.watch(timeout=LONG_S)

    frozen.freeze()
    with pytest.raises(shmrhash.FrozenMap):
        next(watches[1])
    closed.close()
    with pytest.raises(shmrhash.MapClosed):
        next(watches[0])
    for watch in watches:
        watch.close()


# ---- dicts ----


@pytest.mark.parametrize("key", ["short", LONG_KEY])
def test_a_dict_tells_keys_of_any_length(map_name, key):
    with SharedDict(map_name, key=str, value=object) as d:
        d[key] = [1]
        with Copy(d) as copy, d.watch() as changes:
            copy.expect_equal()
            del d[key]
            copy.expect_equal()
            d[key + "!"] = [2]

            assert changes.poll() == [Change("deleted", key, None), Change("set", key + "!", [2])]
            copy.expect_equal()
            d.clear()
            copy.expect_equal()
            assert changes.poll() == [Change("deleted", key + "!", None)]
            assert copy.lost == []
        d.handle.check()
        d.unlink()


def test_a_long_key_that_came_and_went_unseen_is_a_loss(map_name):
    """A ring entry has only a part of a long key, so its insertion and deletion are reported as a
    loss. A copy does not need the entry."""
    with SharedDict(map_name, key=str, value=int) as d:
        with Copy(d) as copy, d.watch() as changes:
            d[LONG_KEY] = 1
            del d[LONG_KEY]

            assert changes.poll() == [Change("lost", None, 1)]
            copy.expect_equal()
            assert copy.lost == []
        d.unlink()


def test_an_expired_entry_is_told_when_it_is_removed(map_name):
    with SharedDict(map_name, key=int, value=int, ttl=0.01) as d:
        with Copy(d) as copy:
            d[1] = 1
            copy.catch_up()
            until(lambda: 1 not in d)
            d.expire()

            copy.expect_equal()
            assert copy.entries == {}
        d.unlink()


def test_a_counter_can_be_followed(map_name):
    with SharedCounter(map_name, key=str) as counter:
        with Copy(counter) as copy:
            counter.add("hits", 3, default=0)
            counter.add("hits", 4)

            assert copy.catch_up() == {"hits": 7}
        counter.unlink()


# ---- event loops ----


async def first_of(changes):
    async for change in changes:
        yield change
        break


def test_a_coroutine_follows_everything(shm_map):
    async def follow():
        async with shm_map.watch(timeout=LONG_S) as changes:
            threading.Timer(0.02, shm_map.update, (word(4), word(9))).start()
            return [change async for change in first_of(changes)]

    assert asyncio.run(follow()) == [Change("set", word(4), word(9))]


def test_a_descriptor_is_readable_after_any_change(shm_map):
    with shm_map.watch() as changes:
        fd = changes.fileno()
        changes.poll()
        for number in range(5):
            shm_map[word(number)] = word(7)

            assert select.select([fd], [], [], LONG_S)[0] == [fd]
            assert changes.poll() == [Change("set", word(number), word(7))]


# ---- forks and kills ----


def test_a_child_of_fork_is_told_of_a_loss_and_goes_on(shm_map):
    with Copy(shm_map) as copy:
        shm_map[word(1)] = word(1)

        def child():
            copy.expect_equal()
            assert len(copy.lost) == 1
            shm_map[word(2)] = word(2)
            copy.expect_equal()
            assert len(copy.lost) == 1

        Child(child).result()
        copy.expect_equal()
        assert copy.lost == []


def write_for_ever(m, seed):
    rng = random.Random(seed)
    while True:
        key = word(rng.randrange(30))
        if rng.randrange(3):
            m.update(key, word(rng.randrange(1000)))
        else:
            m.pop(key, None)


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.thorough)])
def test_killed_writers_hide_no_change(shm_map, seed, kills):
    """A copy follows two writers that are killed repeatedly; after each kill it equals the map."""
    rng = random.Random(seed)
    _core.set_wait_slice(0)
    with Copy(shm_map) as copy:
        for turn in range(kills):
            writers = [Child(write_for_ever, shm_map, seed + 2 * turn + n) for n in range(2)]
            steps = rng.randrange(1, 20)
            while steps:
                changes = copy.watch.poll()
                steps -= bool(changes)
                for change in changes:
                    copy.take(change)
            for writer in writers:
                writer.kill()
            copy.expect_equal()
