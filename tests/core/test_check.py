"""check() finds every kind of damage: a small live map is damaged in its file, and mended."""

import re
import resource

import pytest
from support.core import picture as layout
from support.core.picture import DEAD, HOLE, LINK_BASE, LIVE, RELEASING, UPD, held_by, state_of
from support.core.victim import victim_of

import shmrhash
from shmrhash._check import PROBLEMS

# The texts of check(); the functions below inflict the damage that each text reports.
TEXTS = {
    "BAD_LEVEL": "has a level that does not fit the number of buckets",
    "BAD_EMPTY_BUCKET": "beyond the last, is not empty",
    "BAD_CHAIN_SHAPE": "has a gap or a line that is nearly empty",
    "BAD_INDEX": "which was never allocated",
    "BAD_ELEMENT_STATE": "is named by a bucket but is not live",
    "BAD_TAG": "is not the hash of its key",
    "BAD_PLACE": "is in a bucket to which its hash does not belong",
    "DUPLICATE_KEY": "is in the map twice",
    "NAMED_TWICE": "is named twice",
    "BAD_DEPOT": "lists an element that is not free",
    "BAD_BLOCK": "has a damaged word or free list",
    "LEAKED": "nothing names it",
    "BAD_CREDITS": "the credits do not add up",
    "LOCK_HELD": "a lock is held although no process is inside an operation",
    "BAD_TABLE": "the table word is damaged",
    "BAD_JOURNAL": "names a journal of which it is no member",
    "NO_PRIVATE_MEMORY": "no private memory for the walk",
}

DAMAGES = {}


def damage(text):
    """Register a function that damages a Victim so that check() reports TEXTS[text]."""

    def register(function):
        DAMAGES[f"{text}: {function.__name__.replace('_', ' ')}"] = TEXTS[text], function
        return function

    return register


def test_victim_has_all_that_the_damages_need(victim):
    """A long chain in bucket 0, free lines, a depot with elements, room beyond the last bucket."""
    assert len(victim.live()) == 40
    assert len(victim.lines()) == 6
    assert sum(1 for index in victim.lines()[-1].indices if index) == 4
    assert layout.block_parts(victim.picture.line_words[0])[2] >= 2
    assert victim.some_depot() is not None
    assert victim.bucket_count in range(5, len(victim.buckets))
    assert victim.header.table & 0xFFFF == 0
    assert all(state_of(victim.picture.element(index)[0]) == LIVE for index in victim.live())


# ---- the table ----


@damage("BAD_LEVEL")
def level_too_high(victim):
    victim.set(victim.buckets[1], "header", victim.buckets[1].header + (1 << 16))


@damage("BAD_LEVEL")
def no_level(victim):
    victim.set(victim.buckets[2], "header", victim.buckets[2].header & ~(0x3F << 16))


@damage("BAD_LEVEL")
def a_bucket_without_the_one_it_was_split_off(victim):
    victim.set(victim.buckets[victim.bucket_count - 1], "header", 0)


@damage("BAD_LEVEL")
def a_bucket_that_is_split_beyond_the_last(victim):
    last = victim.buckets[victim.bucket_count - 1]
    victim.set(last, "header", last.header + (1 << 16))


@damage("BAD_EMPTY_BUCKET")
def a_reference_in_a_gap(victim):
    victim.set(victim.header, "table", victim.header.table + (1 << 16))
    victim.set(victim.buckets[victim.bucket_count].indices, 3, victim.live()[0])


@damage("BAD_EMPTY_BUCKET")
def table_one_bucket_too_small(victim):
    # If the number of buckets is next to a power of two, some levels are wrong, too.
    victim.set(victim.buckets[victim.bucket_count], "header", 3 << 16)


@damage("BAD_EMPTY_BUCKET")
def a_reference_beyond_the_last_bucket(victim):
    victim.set(victim.buckets[victim.bucket_count].indices, 3, victim.live()[0])


@damage("BAD_TABLE")
def too_few_buckets(victim):
    victim.set(victim.header, "table", 3 << 16)


@damage("BAD_TABLE")
def more_buckets_than_memory(victim):
    victim.set(victim.header, "table", victim.header.regions[4].usable // 64 + 1 << 16)


@damage("BAD_TABLE")
def more_buckets_than_there_can_be(victim):
    victim.set(victim.header, "table", (1 << 47) << 16)


# ---- chains ----


@damage("BAD_CHAIN_SHAPE")
def a_gap_in_a_bucket_with_lines(victim):
    victim.set(victim.buckets[0].indices, 2, 0)


@damage("BAD_CHAIN_SHAPE")
def a_gap_in_a_line_with_lines_behind_it(victim):
    victim.set(victim.lines()[1].indices, 0, 0)


@damage("BAD_CHAIN_SHAPE")
def a_gap_in_the_last_line(victim):
    # A removal takes the reference in slot "used - 1" of the last line for the last one.
    last = victim.lines()[-1]
    for array in (last.tags, last.indices):
        victim.set(array, 5, array[1])
        victim.set(array, 1, 0)


@damage("BAD_CHAIN_SHAPE")
def a_line_with_one_element(victim):
    for slot in (1, 2, 3):
        victim.set(victim.lines()[-1].indices, slot, 0)


@damage("BAD_CHAIN_SHAPE")
def a_line_that_is_not_live(victim):
    line = victim.lines()[2]
    victim.set(line, "header", line.header & ~(7 << 16) | 1 << 16)


@damage("BAD_CHAIN_SHAPE")
def a_line_that_somebody_holds(victim):
    victim.set(victim.lines()[2], "header", victim.lines()[2].header | held_by(1))


@damage("BAD_INDEX")
def a_reference_to_nothing(victim):
    capacity = victim.picture.geometry["element_pool"]["capacity"]
    limit = victim.header.element_pool.frontier * capacity
    victim.set(victim.buckets[0].indices, 0, limit)


@damage("BAD_INDEX")
def a_link_to_nothing(victim):
    capacity = victim.picture.geometry["line_pool"]["capacity"]
    limit = victim.header.line_pool.frontier * capacity
    victim.set(victim.buckets[0].indices, 6, LINK_BASE + limit)


@damage("BAD_INDEX")
def a_link_to_line_0(victim):
    victim.set(victim.buckets[0].indices, 6, LINK_BASE)


@damage("BAD_INDEX")
def a_link_beyond_all_lines(victim):
    victim.set(victim.buckets[0].indices, 6, 0xFFFFFFFF)


@damage("BAD_INDEX")
def a_link_in_an_earlier_slot(victim):
    victim.set(victim.buckets[0].indices, 3, victim.buckets[0].indices[6])


@damage("BAD_ELEMENT_STATE")
def a_dead_element_in_a_bucket(victim):
    victim.set_state(victim.live()[0], DEAD)


@damage("BAD_ELEMENT_STATE")
def an_element_that_stayed_in_an_update(victim):
    victim.set_state(victim.live()[-1], UPD)


@damage("BAD_TAG")
def another_tag(victim):
    victim.set(victim.lines()[1].tags, 3, 1 << 31)


@damage("BAD_PLACE")
def an_entry_in_another_bucket(victim):
    # The last entry of the chain, whose removal leaves no gap.
    last = victim.lines()[-1]
    victim.set(victim.buckets[1].indices, 0, last.indices[3])
    victim.set(victim.buckets[1].tags, 0, last.tags[3])
    victim.set(last.indices, 3, 0)


@damage("DUPLICATE_KEY")
def two_elements_with_one_key(victim):
    live = victim.live()
    victim.set(victim.picture.element(live[33]), 1, victim.picture.element(live[2])[1])


@damage("DUPLICATE_KEY")
def neighbours_with_one_key(victim):
    live = victim.live()
    victim.set(victim.picture.element(live[1]), 1, victim.picture.element(live[0])[1])


@damage("NAMED_TWICE")
def one_element_in_two_slots(victim):
    victim.set(victim.lines()[-1].indices, 2, victim.live()[0])


@damage("NAMED_TWICE")
def a_circle_of_lines(victim):
    last = victim.lines()[-1]
    for slot in (4, 5):
        victim.set(last.indices, slot, last.indices[3])
    victim.set(last.indices, 6, victim.buckets[0].indices[6])


# ---- depots and blocks ----


@damage("NAMED_TWICE")
def a_live_element_in_a_depot(victim):
    at = victim.some_depot()
    victim.set_depot(at, head=victim.live()[0] - victim.picture.depots[at].head, count=0)


@damage("NAMED_TWICE")
def a_depot_that_lists_an_element_twice(victim):
    first, second, *_ = victim.picture.parked(victim.some_depot())
    victim.set(victim.picture.element(second), 1, first)


@damage("BAD_DEPOT")
def a_parked_element_that_is_not_free(victim):
    victim.set_state(victim.picture.parked(victim.some_depot())[1], 1)


@damage("BAD_INDEX")
def a_depot_that_lists_nothing(victim):
    at = victim.some_depot()
    victim.set_depot(at, head=-victim.picture.depots[at].head)


@damage("BAD_BLOCK")
def a_block_in_no_state(victim):
    victim.set_block(victim.picture.element_words, 0, state=3)


@damage("BAD_BLOCK")
def a_block_that_stayed_half_released(victim):
    victim.set_block(victim.picture.line_words, 0, state=RELEASING)


@damage("BAD_BLOCK")
def a_hole_that_counts_something(victim):
    victim.set_block(victim.picture.line_words, 0, state=HOLE)


@damage("BAD_BLOCK")
def more_fresh_ones_than_there_are(victim):
    victim.set_block(victim.picture.element_words, 0, fresh=4095)


@damage("BAD_BLOCK")
def a_free_list_that_leaves_the_block(victim):
    head = layout.block_parts(victim.picture.line_words[0])[3]
    victim.set(victim.picture.lines[head].tags, 1, 1)


@damage("BAD_BLOCK")
def a_line_in_the_free_list_that_is_not_free(victim):
    line = victim.picture.lines[layout.block_parts(victim.picture.line_words[0])[3]]
    victim.set(line, "header", line.header | LIVE << 16)


@damage("LEAKED")
def a_lost_entry(victim):
    victim.set(victim.lines()[-1].indices, 3, 0)


@damage("LEAKED")
def a_lost_parked_element(victim):
    victim.set_depot(victim.some_depot(), count=-1)


@damage("LEAKED")
def a_lost_line(victim):
    free = layout.block_parts(victim.picture.line_words[0])[2]
    victim.set_block(victim.picture.line_words, 0, free=free - 1)


@damage("LEAKED")
def a_used_element_that_counts_as_fresh(victim):
    fresh = layout.block_parts(victim.picture.element_words[0])[1]
    victim.set_block(victim.picture.element_words, 0, fresh=fresh - 1)


@damage("LEAKED")
def a_fresh_element_that_counts_as_used(victim):
    fresh = layout.block_parts(victim.picture.element_words[0])[1]
    victim.set_block(victim.picture.element_words, 0, fresh=fresh + 1)


@damage("BAD_CREDITS")
def a_credit_too_many(victim):
    victim.set(victim.header, "credits", victim.header.credits + (1 << 16))


@damage("BAD_CREDITS")
def a_credit_too_few(victim):
    at = next(at for at in range(2) if victim.picture.depots[at].credit)
    victim.set_depot(at, credit=-1)


# ---- locks ----


@damage("BAD_TABLE")
def the_table(victim):
    victim.set(victim.header, "table", victim.header.table | held_by(4095))


@damage("LOCK_HELD")
def a_bucket(victim):
    victim.set(victim.buckets[3], "header", victim.buckets[3].header | held_by(4095))


@damage("LOCK_HELD")
def a_bucket_beyond_the_last(victim):
    victim.set(victim.buckets[victim.bucket_count], "header", held_by(4095))


@damage("LOCK_HELD")
def the_credits(victim):
    victim.set(victim.header, "credits", victim.header.credits | held_by(4095))


@damage("LOCK_HELD")
def a_depot(victim):
    depot = victim.picture.depots[1]
    victim.set(depot, "word", depot.word | held_by(4095))


@damage("LOCK_HELD")
def a_block_of_elements(victim):
    words = victim.picture.element_words
    victim.set(words, 0, words[0] | held_by(4095))


@damage("LOCK_HELD")
def a_block_of_lines(victim):
    words = victim.picture.line_words
    victim.set(words, 0, words[0] | held_by(4095))


@damage("LOCK_HELD")
def the_word_of_clearing_by_a_context_that_is_free(victim):
    victim.set(victim.header, "clearing", held_by(4095))


@damage("LOCK_HELD")
def a_region(victim):
    victim.set(victim.header.regions[2], "lock", held_by(4095))


# ---- journals ----


@damage("BAD_JOURNAL")
def a_lead_that_is_not_committed(victim):
    context = victim.foreign_context()
    victim.set(context, "target", victim.live()[0] | 1 << 32)


@damage("BAD_JOURNAL")
def a_committed_lead_without_an_element(victim):
    context = victim.foreign_context()  # number 3, which leads itself here
    victim.set(context, "target", victim.live()[0] | 4 << 32 | 1 << 63)


# ---- contexts ----


@damage("NAMED_TWICE")
def a_context_that_owns_a_line_of_a_chain(victim):
    line = victim.buckets[0].indices[6] - LINK_BASE
    victim.set(victim.foreign_context(), "line_stash", line)


@damage("BAD_INDEX")
def a_context_whose_lines_lead_nowhere(victim):
    victim.set(victim.foreign_context(), "line_stash", 1 << 40)


@damage("NAMED_TWICE")
def a_context_that_owns_a_parked_element(victim):
    index = victim.picture.parked(victim.some_depot())[0]
    words = victim.picture.element(index)
    victim.set(words, 0, words[0] | held_by(3))
    victim.set(victim.foreign_context(), "element", index)


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_and_named(victim, what):
    """C1, H1: check() raises SegmentCorrupt with the damage's text; mended, the map is sound."""
    text, inflict = DAMAGES[what]

    inflict(victim)

    with pytest.raises(shmrhash.SegmentCorrupt, match=re.escape(text)):
        victim.map.check()


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_report_names_the_damaged_element(victim, at):
    """The message has the index of the damaged element, wherever in the chain it is."""
    index = victim.live()[at]
    victim.set_state(index, DEAD)

    with pytest.raises(shmrhash.SegmentCorrupt, match=rf"element {index} "):
        victim.map.check()


def test_changed_key_is_found(make_map, unit):
    """H1: with random seeds, a changed key no longer has the hash that is its tag."""
    m = make_map(max_entries=2000)
    m[b"the key!"] = b"12345678"
    victim = victim_of(m, unit)
    index = next(index for bucket in victim.buckets for index in bucket.indices if index)
    victim.set(victim.picture.element(index), 1, int.from_bytes(b"the KEY!", "little"))

    with pytest.raises(shmrhash.SegmentCorrupt, match=re.escape(TEXTS["BAD_TAG"])):
        m.check()

    victim.mend()
    assert m[b"the key!"] == b"12345678"


def test_check_without_private_memory_says_so(make_map, unit):
    """check() of 2**31 elements needs 2 GiB of private memory; with less it raises an error."""
    m = make_map(max_entries=2**31)
    victim = victim_of(m, unit)
    region = victim.header.regions[2]
    victim.set(region, "usable", victim.picture.geometry["region_bytes"]["element_words"])
    blocks = victim.picture.geometry["element_pool"]["block_count"]
    victim.set(victim.header.element_pool, "frontier", blocks)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()

    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limits[1]))
    try:
        with pytest.raises(shmrhash.SegmentCorrupt, match=TEXTS["NO_PRIVATE_MEMORY"]):
            m.check()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        victim.mend()


def test_finding_beside_an_operation_under_way_is_not_raised(victim):
    """An operation of another context may look like damage: exact is False, nothing is raised."""
    victim.set(victim.picture.context(5), "activity", 1)
    victim.set(victim.header, "credits", victim.header.credits + (1 << 16))

    assert victim.map.check()["exact"] is False


def test_clear_under_way_is_no_lock_left_behind(victim):
    """C1: a clear leaves its operation from time to time, and keeps the word `clearing` held."""
    victim.foreign_context()
    victim.set(victim.header, "clearing", held_by(3))

    assert victim.map.check()["exact"] is True

    victim.mend()


def test_element_that_a_context_owns_is_not_leaked(victim):
    """W2: an element that a context has taken and not yet inserted is in flight, not leaked."""
    at = victim.some_depot()
    index = victim.picture.depots[at].head
    words = victim.picture.element(index)
    victim.set_depot(at, head=words[1] % 2**32 - index, count=-1, credit=-1)
    victim.set(words, 0, words[0] | 1 << 16 | held_by(3))
    victim.set(victim.foreign_context(), "element", index)

    figures = victim.map.check()

    assert figures["elements_in_flight"] == 1
    assert figures["entries"] == 40


def test_every_problem_has_a_damage():
    """Each text of check() has a damage above that causes it, or is of objects or caches."""
    tried = {text for text, _ in DAMAGES.values()} | {TEXTS["NO_PRIVATE_MEMORY"]}

    elsewhere = (17, 18, 20)  # tests/api/test_objects.py, tests/hostile/test_cache_damage.py
    unknown = [
        text
        for number, text in PROBLEMS.items()
        if number not in elsewhere and not any(part in text for part in tried)
    ]

    assert not unknown
    assert tried == set(TEXTS.values())
