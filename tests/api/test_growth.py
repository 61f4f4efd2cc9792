"""The table over time: growing without a hint, shrinking again, what an entry costs, turnover."""

import os
import random

import pytest
from support.jobs import NOEXIST, word

MIB = 1 << 20
BYTES_PER_ENTRY_MAX = 56
# How many bytes a map may keep committed after it was large.
BYTES_KEPT_MAX = 2 * MIB
# Room in the depots counts as taken when the table shrinks: up to 128 entries in each depot. There
# is one depot for each CPU, rounded up to a power of two; and shrinking stops below 1.75 entries a
# bucket.
BUCKETS_KEPT_MAX = 64 + 128 * 2 * (os.cpu_count() or 1)


@pytest.mark.thorough
def test_a_map_grows_and_shrinks_without_a_hint(make_map):
    """G1: 1,000,000 insertions, then as many deletions; the map is checked at each tenth."""
    entries = 1_000_000
    m = make_map(max_entries=entries)
    tenth = entries // 10
    at_start = m.info()

    buckets = [at_start["buckets"]]
    for number in range(entries):
        m.update(word(number), word(number * 3), NOEXIST)
        if (number + 1) % tenth == 0:
            m.check()
            buckets.append(m.info()["buckets"])
    at_top = m.info()
    for number in range(0, entries, 97):
        assert word(number * 3) == m[word(number)]
    assert sorted(buckets) == buckets
    assert buckets[-1] > 100 * buckets[0]
    assert entries == len(m) == at_top["entries"]
    assert at_top["grows"] > 0

    buckets = [at_top["buckets"]]
    for number in range(entries):
        m.delete(word(number))
        if (number + 1) % tenth == 0:
            m.check()
            buckets.append(m.info()["buckets"])
            for other in range(number + 1, entries, 997):
                assert word(other * 3) == m[word(other)]

    at_end = m.info()
    assert sorted(buckets, reverse=True) == buckets
    assert len(m) == 0
    assert at_end["shrinks"] > 0
    assert at_end["buckets"] <= BUCKETS_KEPT_MAX
    assert at_end["bytes_committed"] <= at_start["bytes_committed"] + BYTES_KEPT_MAX
    m.check()


@pytest.mark.parametrize("entries", [10_000, 31_000, 100_000])
@pytest.mark.parametrize("max_entries", ["exact", "far more"])
def test_an_entry_of_8_and_8_bytes_costs_56_bytes_at_most(make_map, entries, max_entries):
    """G1: bytes_per_entry stays within its limit, whatever number of entries the map reserves."""
    m = make_map(max_entries=entries if max_entries == "exact" else 10_000_000)

    for number in range(entries):
        m.update(word(number), word(number))

    assert m.info()["bytes_per_entry"] <= BYTES_PER_ENTRY_MAX
    m.check()


def test_the_cost_of_an_entry_stays_within_the_limit_while_the_map_grows(make_map):
    """G1: at no number of entries from 4,096 up does an entry cost more than the limit."""
    m = make_map(max_entries=60_000)

    costs = {}
    for number in range(60_000):
        m.update(word(number), word(number))
        if number >= 4_096 and number % 512 == 0:
            costs[number] = m.info()["bytes_per_entry"]

    assert max(costs.values()) <= BYTES_PER_ENTRY_MAX, costs
    m.check()


@pytest.mark.parametrize("order", ["first in, first out", "random"])
def test_turnover_at_constant_size_needs_no_more_room(seed, make_map, order):
    """G1: 5,000 entries are replaced 20 times by other keys; buckets and memory do not grow."""
    entries, turnover = 5_000, 20
    m = make_map(max_entries=50_000)
    rng = random.Random(seed)
    there = list(range(entries))
    for number in there:
        m.update(word(number), word(number))
    before = m.info()

    reports = []
    for number in range(entries, entries * (turnover + 1)):
        place = number % entries if order == "first in, first out" else rng.randrange(entries)
        m.delete(word(there[place]))
        there[place] = number
        m.update(word(number), word(number), NOEXIST)
        if number % entries == 0:
            m.check()
            reports.append(m.info())

    assert entries == len(m)
    assert all(m[word(number)] == word(number) for number in there)
    assert max(report["buckets"] for report in reports) <= before["buckets"] * 1.1
    assert min(report["buckets"] for report in reports) >= before["buckets"] * 0.9
    most = max(report["bytes_committed"] for report in reports)
    assert most <= before["bytes_committed"] + MIB // 4
    m.check()


def test_a_map_with_a_hint_starts_with_more_buckets(make_map):
    """G1: a map with a hint takes no more memory in the end than one without it."""
    plain = make_map(max_entries=40_000)
    hinted = make_map(max_entries=40_000, map_extra=20_000)
    assert hinted.info()["buckets"] > plain.info()["buckets"]

    for number in range(20_000):
        plain.update(word(number), word(number))
        hinted.update(word(number), word(number))

    assert hinted.info()["bytes_committed"] <= plain.info()["bytes_committed"] + MIB
    plain.check()
    hinted.check()


def test_a_map_is_empty_and_small_again_after_many_waves(seed, make_map):
    """G1: after random waves of insertions and deletions the map is empty and small again."""
    m = make_map(max_entries=30_000)
    rng = random.Random(seed)
    at_start = m.info()

    for _ in range(12):
        keys = rng.sample(range(1 << 40), rng.randrange(100, 10_000))
        for key in keys:
            m.update(word(key), word(key), NOEXIST)
        m.check()
        rng.shuffle(keys)
        for key in keys:
            assert word(key) == m.lookup_and_delete(word(key))
        m.check()

    at_end = m.info()
    assert len(m) == 0
    assert at_end["buckets"] <= BUCKETS_KEPT_MAX
    assert at_end["bytes_committed"] <= at_start["bytes_committed"] + BYTES_KEPT_MAX
