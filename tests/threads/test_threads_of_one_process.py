"""Threads of one process share what a handle and an attachment consist of; with the GIL or without.

Each test has an oracle: sums, values that name their key, numbers that are given out once. The
threads make a fixed number of steps. On a Python with the GIL the threads change often; the same
tests find more where there is none (`tox -e py313t`).
"""

import contextlib
import os
import random
import threading
from itertools import chain

import pytest
from support.workers import THREADS, all_together

import shmrhash
from shmrhash import Barrier, Condition, Lock, RHashMap, RLock, RWLock, Semaphore, SharedDict

STEPS = 400
KEYS = 16


def word(number):
    return number.to_bytes(8, "little")


def number_of(value):
    return int.from_bytes(value, "little")


@pytest.fixture(params=[1, pytest.param(20, marks=pytest.mark.thorough)])
def steps(request):
    return STEPS * request.param


# ---- one handle ----


def test_sums_of_threads_are_exact(shm_map, steps):
    """W1: each addition counts, and no two additions return the same sum."""

    def add(number):
        return [shm_map.add(word(0), 1, default=0) for _ in range(steps)]

    sums = all_together(add)

    assert sorted(chain(*sums)) == list(range(1, THREADS * steps + 1))
    assert number_of(shm_map[word(0)]) == THREADS * steps


def test_a_value_is_always_that_of_its_key(make_map, steps, seed):
    """R2: threads store, delete and read a few keys; each value names its key and is whole."""
    shared = make_map(value_size=24)

    def work(number):
        choice = random.Random(f"{seed} {number}")
        for step in range(steps):
            key = choice.randrange(KEYS)
            what = choice.randrange(4)
            if what == 0:
                shared[word(key)] = word(key) + word(step) * 2
            elif what == 1:
                shared.pop(word(key), None)
            else:
                value = shared.get(word(key))
                if value is not None:
                    assert number_of(value[:8]) == key
                    assert value[8:16] == value[16:]

    all_together(work)


def test_each_inserted_key_is_taken_once(make_map, steps, seed):
    """W1: other threads take away the entries that some threads insert, each once; the rest is
    there at the end."""

    shm_map = make_map(max_entries=THREADS * steps)

    def work(number):
        taken = []
        choice = random.Random(f"{seed} {number}")
        for step in range(steps):
            shm_map[word(number * steps + step)] = word(step)
            other = choice.randrange(THREADS) * steps + step
            if shm_map.pop(word(other), None) is not None:
                taken.append(other)
        return taken

    taken = list(chain(*all_together(work)))

    left = [number_of(key) for key in shm_map]
    assert sorted(taken + left) == list(range(THREADS * steps))


def test_an_insertion_that_returns_has_stored_its_value(shm_map, steps, seed):
    """W1: update() with BPF_NOEXIST stores its value or raises KeyExists, while other threads of
    the handle insert and delete the same key. So each value is taken once; the last may be left."""
    key = word(0)

    def work(number):
        choice = random.Random(f"{seed} {number}")
        stored, taken = [], []
        for step in range(10 * steps):
            value = word(number << 32 | step)
            with contextlib.suppress(shmrhash.KeyExists, shmrhash.KeyNotFound):
                if choice.random() < 0.5:
                    shm_map.update(key, value, shmrhash.BPF_NOEXIST)
                    stored.append(value)
                else:
                    taken.append(shm_map.lookup_and_delete(key))
        return stored, taken

    stored, taken = (list(chain(*each)) for each in zip(*all_together(work), strict=True))

    left = [shm_map[key]] if key in shm_map else []
    assert sorted(taken + left) == sorted(stored)


def test_an_iterator_that_threads_share_delivers_each_entry_once(shm_map, steps):
    """I1: several threads call next(), and each entry goes to one of them."""
    expected = list(range(4 * STEPS))
    for key in expected:
        shm_map[word(key)] = word(key)
    found = []
    for _ in range(steps // STEPS):
        for made in (shm_map.items, shm_map.keys):
            iterator = iter(made())
            found = list(chain(*all_together(lambda number, walk=iterator: list(walk))))
            if made == shm_map.items:
                assert all(key == value for key, value in found)
                found = [key for key, _ in found]

            assert sorted(map(number_of, found)) == expected


def test_a_walk_beside_writers_delivers_what_stays(map_name, steps):
    """I1: a key that no thread changes is delivered once; a key that was deleted before next() is
    not delivered."""
    with SharedDict(map_name, key=str, value=int, max_entries=8192) as d:
        d.update({f"stays {number}": number for number in range(200)})
        done = threading.Event()

        def work(number):
            if number == 0:
                try:
                    for _ in range(max(2, steps // 200)):
                        found = [key for key in d if key.startswith("stays")]
                        assert sorted(found) == sorted(f"stays {each}" for each in range(200))
                finally:
                    done.set()
                return
            step = 0
            while not done.is_set():
                step += 1
                d[f"goes {number} {step % 50}"] = step
                d.pop(f"goes {number} {(step * 7) % 50}", None)

        all_together(work)
        d.check()
        d.unlink()


def test_a_batch_of_every_thread_is_whole(shm_map, steps):
    """W1: add_many() of several threads; each key has the sum of all."""
    keys = b"".join(word(number) for number in range(KEYS))
    deltas = word(1) * KEYS
    rounds = steps // 20

    def add(number):
        for _ in range(rounds):
            shm_map.add_many(keys, deltas, default=0)

    all_together(add)

    assert [number_of(shm_map[word(number)]) for number in range(KEYS)] == [THREADS * rounds] * KEYS


# ---- the end of a handle, and other handles ----


def test_closing_beside_use_ends_in_map_closed(make_map, map_name, steps):
    """C3: each operation is done, or raises MapClosed; what was done is counted, and the last
    handle gives the process slot back."""
    keeper = make_map()
    expected = 0
    for _ in range(max(3, steps // 40)):
        handle = RHashMap.open(map_name)
        started = threading.Barrier(THREADS)

        def work(number, handle=handle, started=started):
            done = 0
            started.wait(60)
            if number == 0:
                while handle.get(word(0)) is None:
                    handle.add(word(0), 0, default=0)
                handle.close()
                return 0
            with contextlib.suppress(shmrhash.MapClosed):
                for _ in range(20 * STEPS):
                    handle.add(word(0), 1, default=0)
                    done += 1
                    handle.get(word(1))
                    with handle.locked(word(2), default=word(0)) as value:
                        value[0] = 1
            return done

        expected += sum(all_together(work))

    assert number_of(keeper[word(0)]) == expected


def test_a_process_has_one_slot_however_many_threads_open_the_map(make_map, map_name, steps):
    """C3: handles that threads open and close at once share one attachment, and one slot."""
    keeper = make_map()
    keeper.close()

    def work(number):
        for _ in range(steps // 20):
            with RHashMap.open(map_name) as handle:
                handle.add(word(number), 1, default=0)
                mine = [each for each in handle._processes() if each["pid"] == os.getpid()]
                assert len(mine) == 1

    all_together(work)

    with RHashMap.open(map_name) as handle:
        assert [number_of(handle[word(number)]) for number in range(THREADS)] == (
            [steps // 20] * THREADS
        )
        handle.check()


def test_contexts_are_used_again(shm_map, steps):
    """A process has about as many contexts as it had threads inside operations at once."""
    for _ in range(3):
        all_together(lambda number: [shm_map.add(word(number), 1, default=0) for _ in range(99)])

    assert shm_map.info()["contexts"] <= 2 * THREADS + 2


def test_a_fork_beside_threads_leaves_a_usable_child(shm_map, steps):
    """C3: one thread forks while the others use the map; the child can use it, and both sums are
    whole."""
    forks = max(2, steps // 200)

    def work(number):
        if number != 0:
            for _ in range(steps):
                shm_map.add(word(number), 1, default=0)
            return []
        statuses = []
        for _ in range(forks):
            pid = os.fork()
            if pid == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    shm_map.add(word(0), 1, default=0)
                    status = 0
                os._exit(status)
            statuses.append(os.waitpid(pid, 0)[1])
        return statuses

    results = all_together(work)

    assert results[0] == [0] * forks
    assert number_of(shm_map[word(0)]) == forks
    assert {number_of(shm_map[word(number)]) for number in range(1, THREADS)} == {steps}


# ---- sections, views ----


def test_sections_of_threads_exclude_each_other(shm_map, steps):
    """L1: a value that threads count up in sections loses nothing; locked_many() moves whole
    amounts."""
    rounds = steps // 10
    for key in range(3):
        shm_map[word(key)] = word(1000)

    def work(number):
        for step in range(rounds):
            with shm_map.locked(word(9), default=word(0)) as value:
                value[:] = word(number_of(bytes(value)) + 1)
            giver, taker = step % 3, (step + 1 + number % 2) % 3
            with shm_map.locked_many([word(giver), word(taker)]) as (one, two):
                one[:] = word(number_of(bytes(one)) - 1)
                two[:] = word(number_of(bytes(two)) + 1)

    all_together(work)

    assert number_of(shm_map[word(9)]) == THREADS * rounds
    assert sum(number_of(shm_map[word(key)]) for key in range(3)) == 3000


def test_a_section_is_entered_and_ended_by_one_thread(shm_map, steps):
    """L1: of threads that enter one section, one succeeds; of those that end it, one stores."""
    shm_map[word(0)] = word(0)
    for step in range(steps // 20):
        section = shm_map.locked(word(0))

        def enter(number, section=section):
            try:
                section.__enter__()
            except shmrhash.InvalidArgument:
                return 0
            return 1

        def leave(number, section=section):
            try:
                section.__exit__(None, None, None)
            except shmrhash.InvalidArgument:
                return 0
            return 1

        assert sum(all_together(enter, count=2)) == 1
        section[:] = word(step + 1)
        all_together(leave, count=2)
        assert number_of(shm_map[word(0)]) == step + 1


def test_a_view_keeps_its_bytes(map_name, steps):
    """R2, M1: the bytes that a view shows stay, whatever other threads store, delete and drop."""
    with SharedDict(map_name, key=int, value=bytes, max_entries=64, max_bytes=4 << 20) as d:

        def work(number):
            kept = []
            for step in range(steps):
                key = step % 4
                if step % 3 == number % 3:
                    d[key] = bytes([step % 251]) * (100 + step % 900)
                elif step % 17 == 0:
                    d.pop(key, None)
                with contextlib.suppress(shmrhash.KeyNotFound):
                    kept.append(d.view(key))
                if len(kept) > 8:
                    kept.pop(0)
                for view in kept:
                    assert len(set(bytes(view))) == 1
                    assert len(view) >= 100

        all_together(work)
        assert d.info()["objects"]["pinned"] == 0
        d.check()
        d.unlink()


# ---- dicts, caches ----


def test_numbers_of_a_dict_are_whole(map_name, steps):
    """W1, R2: the short ways of str keys and int values."""
    with SharedDict(map_name, key=str, value=int, max_entries=64) as d:

        def work(number):
            for step in range(steps):
                d.add("sum", 1, default=0)
                d[f"key {number}"] = step
                assert d[f"key {number}"] == step
                other = d.get(f"key {(number + 1) % THREADS}")
                assert other is None or 0 <= other < steps
            del d[f"key {number}"]

        all_together(work)

        assert dict(d) == {"sum": THREADS * steps}
        d.check()
        d.unlink()


def test_a_kept_value_is_always_that_of_its_key(map_name, steps):
    """R2: a handle keeps decoded values (copy=False) of more keys than the cache has entries."""
    with shmrhash.Cache(
        map_name, key=int, value=object, max_entries=32, max_bytes=4 << 20, copy=False
    ) as cache:

        def work(number):
            hits = 0
            for step in range(steps):
                key = (step * 7 + number) % 48
                found = cache.get(key)
                if found is None:
                    cache.set(key, ("value", key, step))
                else:
                    hits += 1
                    assert found[:2] == ("value", key)
                if step % 50 == 0:
                    cache.delete(key)
            return hits

        assert sum(all_together(work)) > 0
        cache.check()
        cache.unlink()


def test_a_value_is_computed_once_for_all_threads(map_name, steps):
    """If several threads ask for an absent key at once, one of them computes its value; the same
    holds for a memoized function."""
    rounds = steps // 20
    with shmrhash.Cache(map_name, key=object, value=object, max_entries=4096) as cache:
        computed = []

        @cache.memoize()
        def twice(number):
            computed.append(("twice", number))
            return 2 * number

        def compute(step):
            computed.append(step)
            return step

        def work(number):
            for step in range(rounds):
                assert cache.get_or_compute(f"{step}", lambda step=step: compute(step)) == step
                assert twice(step) == 2 * step

        all_together(work)

        assert len(computed) == len(set(computed)) == 2 * rounds
        cache.check()
        cache.unlink()


# ---- lock primitives ----


def test_a_lock_excludes_threads(space, steps):
    """C2: a count that is read and written under a Lock and an RLock loses nothing."""
    lock, again = Lock("lock", space=space), RLock("rlock", space=space)
    count = [0, 0]

    def work(number):
        for _ in range(steps // 4):
            with lock:
                count[0] += 1
            with again, again:
                count[1] += 1

    all_together(work)

    assert count == [THREADS * (steps // 4)] * 2
    assert not lock.locked()


def test_permits_are_counted_exactly(space, steps):
    """C2: never more threads than permits, and all permits are back at the end."""
    semaphore = Semaphore(2, "two", space=space)
    rwlock = RWLock("rwlock", space=space)
    inside, writes = [], [0]

    def work(number):
        most = 0
        for step in range(steps // 8):
            with semaphore:
                inside.append(number)
                most = max(most, len(inside))
                inside.remove(number)
            if step % 4 == number:
                with rwlock.write_lock():
                    writes[0] += 1
            else:
                with rwlock.read_lock():
                    assert not rwlock.has_writer
        return most

    most = max(all_together(work))

    assert most <= 2
    assert semaphore.get_value() == 2
    assert writes[0] == sum(
        1 for number in range(THREADS) for step in range(steps // 8) if step % 4 == number
    )
    assert rwlock.readers == 0


def test_threads_meet_and_tell_each_other(space, steps):
    """A Barrier lets generations through whole; a Condition hands each item to one thread."""
    barrier = Barrier(THREADS, key="barrier", space=space)
    condition = Condition(key="condition", space=space)
    rounds = steps // 40
    items, got = [], []

    def work(number):
        for step in range(rounds):
            barrier.wait(60)
            if number == 0:
                for item in range(THREADS - 1):
                    with condition:
                        items.append((step, item))
                        condition.notify()
            else:
                with condition:
                    assert condition.wait_for(lambda: items, 60)
                    got.append(items.pop())

    all_together(work)

    assert sorted(got) == [(step, item) for step in range(rounds) for item in range(THREADS - 1)]
