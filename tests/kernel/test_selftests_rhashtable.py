"""The kernel's lib/test_rhashtable.c on our map: many entries, duplicates, threads, next keys."""

import random

import pytest
from support.jobs import number_in, word
from support.kernel import kernel_jobs
from support.kernel.sides import NOEXIST, OurMap, walk
from support.workers import METHODS, run_together

import shmrhash

ENTRIES = [pytest.param(4_000, 2), pytest.param(50_000, 4, marks=pytest.mark.long)]
ALL_COLLIDE = {"_seeds": (0, 0)}


@pytest.mark.parametrize(("entries", "runs"), ENTRIES)
def test_rhashtable(make_map, entries, runs):
    """W1, G1 (test_rhashtable): insert even ids, look up every id, delete all; several times."""
    m = make_map(max_entries=1_000_000, map_extra=8)

    for _ in range(runs):
        for number in range(0, 2 * entries, 2):
            m.update(word(number), word(~number % (1 << 64)), NOEXIST)
        assert entries == len(m) == m.info()["entries"]
        for number in range(entries):
            expected = None if number % 2 else word(~number % (1 << 64))
            assert expected == m.lookup(word(number))
        m.check()
        for number in range(0, 2 * entries, 2):
            m.delete(word(number))
        assert len(m) == 0
        m.check()


@pytest.mark.parametrize(("entries", "runs"), ENTRIES)
def test_rhashtable_walks(make_map, entries, runs):
    """I1 (test_bucket_stats): two walks in each run meet the same keys, each once."""
    m = make_map(max_entries=1_000_000, map_extra=8)
    expected = [word(number) for number in range(0, 2 * entries, 2)]

    for _ in range(runs):
        for key in expected:
            m.update(key, key, NOEXIST)
        first, second = walk(OurMap(m), entries), walk(OurMap(m), entries)
        assert first == second
        assert sorted(expected) == sorted(first)
        m.clear()
    m.check()


@pytest.mark.parametrize("limit", [2_048, pytest.param(16_384, marks=pytest.mark.long)])
def test_rhashtable_max(make_map, limit):
    """W2 (test_rhashtable_max): max_entries entries fit, and the next one is E2BIG."""
    m = make_map(max_entries=limit)
    for number in range(limit):
        m.update(word(number), word(number), NOEXIST)

    with pytest.raises(shmrhash.MapFull):
        m.update(word(limit), word(limit), NOEXIST)

    assert limit == len(m)
    m.check()


@pytest.mark.parametrize("seeds", [{}, ALL_COLLIDE], ids=["spread", "one chain"])
def test_insert_duplicates(make_map, seeds):
    """W1 (test_insert_duplicates_run): keys 1, 21 and 1 make two entries here, even in one chain.

    The kernel's rhltable keeps both entries with key 1; a map has no duplicates.
    """
    m = make_map(max_entries=128, map_extra=128, **seeds)

    m.update(word(1), word(100), NOEXIST)
    m.update(word(21), word(200), NOEXIST)
    with pytest.raises(shmrhash.KeyExists):
        m.update(word(1), word(300), NOEXIST)

    assert len(m) == 2
    assert [word(100), word(200)] == [m[word(1)], m[word(21)]]
    m.check()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seeds", [{}, ALL_COLLIDE], ids=["spread", "one chain"])
def test_one_of_racing_inserters_succeeds(make_map, method, seeds):
    """W1 (test_insert_duplicates_run): of the workers that race to insert a key, one succeeds."""
    m = make_map(max_entries=400, **seeds)

    results = run_together(
        method, *((kernel_jobs.insert_duplicates, m, range(300), mark) for mark in range(4))
    )

    winners = {key: mark for mark, inserted in enumerate(results) for key in inserted}
    assert len(winners) == sum(map(len, results)) == 300 == len(m)
    assert {key: number_in(m[word(key)]) for key in range(300)} == winners
    m.check()


@pytest.mark.parametrize(
    ("workers", "entries"), [(4, 1_000), pytest.param(10, 50_000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("method", METHODS)
def test_threads_insert_and_remove_their_own_keys(make_map, method, workers, entries):
    """W1, R1, G1 (threadfunc): workers insert keys of their own and remove them in ten waves."""
    m = make_map(max_entries=workers * entries)

    run_together(
        method,
        *((kernel_jobs.thread_case, m, number, entries) for number in range(workers)),
        timeout_s=580,
    )

    assert len(m) == 0
    m.check()


@pytest.mark.parametrize("entries", [400, pytest.param(3_125, marks=pytest.mark.long)])
@pytest.mark.parametrize("seeds", [{}, ALL_COLLIDE], ids=["spread", "one chain"])
def test_add_and_delete_at_random(seed, make_map, entries, seeds):
    """W1 (test_rhltable): entries come and go, later at random; a second delete is ENOENT."""
    m = make_map(max_entries=entries, **seeds)
    rng = random.Random(seed)
    for number in range(entries):
        m.update(word(number), word(number), NOEXIST)
        assert word(number) == m[word(number)]
    for number in range(entries):
        m.delete(word(number))
        with pytest.raises(shmrhash.KeyNotFound):
            m.delete(word(number))
        assert word(number) not in m

    there = set()
    for _ in range(entries):
        number = rng.randrange(entries)
        if number in there:
            m.delete(word(number))
            with pytest.raises(shmrhash.KeyNotFound):
                m.delete(word(number))
        else:
            m.update(word(number), word(number), NOEXIST)
            with pytest.raises(shmrhash.KeyExists):
                m.update(word(number), word(0), NOEXIST)
        there ^= {number}

    assert there == {number for number in range(entries) if word(number) in m}
    assert len(there) == len(m)
    m.check()


# rhashtable_next_key()


def test_next_key_of_four_keys(make_map):
    """I1 (next_key): no key follows itself, and the walks from the four keys have 1 to 4 keys."""
    m = make_map(map_extra=64)
    for number in (0, 2, 4, 6):
        m.update(word(number), word(number), NOEXIST)

    tails = []
    for number in (0, 2, 4, 6):
        assert m.get_next_key(word(number)) != word(number)
        tail = [word(number)]
        while tail[-1] is not None:
            tail.append(m.get_next_key(tail[-1]))
            assert len(tail) <= 5
        tails.append(len(tail) - 1)

    assert sorted(tails) == [1, 2, 3, 4]
    m.check()


@pytest.mark.parametrize("seeds", [{}, ALL_COLLIDE], ids=["spread", "one chain"])
def test_next_key_of_an_absent_key_is_that_of_a_present_one(make_map, seeds):
    """I1 (next_key of a missing key): the next key is the same whether the key is there or not."""
    m = make_map(**seeds)
    for number in range(0, 200, 2):
        m.update(word(number), word(number), NOEXIST)

    for number in range(1, 200, 2):
        absent = m.get_next_key(word(number))
        m.update(word(number), word(number), NOEXIST)
        assert m.get_next_key(word(number)) == absent
        m.delete(word(number))

    m.check()


@pytest.mark.parametrize("seeds", [{}, ALL_COLLIDE], ids=["spread", "one chain"])
def test_walk_may_delete_each_key_that_it_meets(make_map, seeds):
    """I1, G1: a walk that deletes each key before it asks for the next meets all of them."""
    m = make_map(max_entries=3_000, **seeds)
    count = 300 if seeds else 3_000
    for number in range(count):
        m.update(word(number), word(number), NOEXIST)

    met = []
    key = m.get_next_key()
    while key is not None and len(met) <= count:
        m.delete(key)
        met.append(number_in(key))
        key = m.get_next_key(key)

    assert sorted(met) == list(range(count))
    assert len(m) == 0
    m.check()
