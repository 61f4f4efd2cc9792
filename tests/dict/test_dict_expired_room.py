"""X1: expired entries take no room: an insertion is refused only if live entries fill the map."""

import contextlib
import math
import random
import time

import pytest
from support.workers import run_together

import shmrhash
from shmrhash import BPF_NOEXIST, MapFull, RHashMap, SharedCounter, SharedDict, Timer

ENTRIES = 500
LONG_S = 3600.0
KEY = "a key of more than 15 bytes, {}".format


def wait_past(deadline_ns):
    """Wait until the monotonic clock, which deadlines use, has passed this time."""
    while time.monotonic_ns() <= deadline_ns:
        time.sleep(0.0005)  # the loop polls the clock, so a longer sleep is harmless


def expire_now(d, keys):
    """Let these entries expire without an insertion, because that would remove some of them."""
    for key in keys:
        assert d.touch(key, 0.001)
    wait_past(time.monotonic_ns() + 2_000_000)


def store_until_full(d, size, name):
    """Store values of this size until the dict is full; return how many were stored."""
    count = 0
    try:
        while True:
            d[name(count)] = bytes(size)
            count += 1
    except shmrhash.OutOfMemory:
        return count


INSERTIONS = {
    "update": lambda d, key: d.__setitem__(key, 1),
    "setdefault": lambda d, key: d.setdefault(key, 1),
    "store": lambda d, key: d._put(key, 1, BPF_NOEXIST),
    "add": lambda d, key: d.add(key, 1, 0),
    "update_with": lambda d, key: d.update_with(key, lambda value: value, 1),
    "update many": lambda d, key: d.update({key: 1}),
}


def locked_and_created(d, key):
    with d.locked(key, default=1):
        pass


@pytest.mark.parametrize(
    "insert", [*INSERTIONS.values(), locked_and_created], ids=[*INSERTIONS, "locked"]
)
def test_every_kind_of_insertion_uses_the_room_of_expired_entries(make_dict, insert):
    """X1: after all entries of a full dict have expired, as many new keys can be inserted."""
    d = make_dict(key=str, value=int, ttl=LONG_S, max_entries=ENTRIES)
    for number in range(ENTRIES):
        d[KEY(number)] = 0
    expire_now(d, map(KEY, range(ENTRIES)))

    for number in range(ENTRIES):
        insert(d, KEY(f"new {number}"))

    assert set(d) == {KEY(f"new {number}") for number in range(ENTRIES)}


@pytest.mark.parametrize("living", [0, 1, 250, 499])
def test_max_entries_counts_only_live_entries(make_dict, living):
    """X1: each expired entry makes room for one new key; the next new key is refused, and the live
    entries stay."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=ENTRIES)
    d.update({number: number for number in range(ENTRIES)})
    expire_now(d, range(living, ENTRIES))
    new = range(ENTRIES, 2 * ENTRIES - living)

    for number in new:
        d[number] = number
    with pytest.raises(MapFull):
        d[-1] = -1

    assert dict(d) == {number: number for number in (*range(living), *new)}


@pytest.mark.parametrize("size", [100, 5_000, 60_000])
def test_max_bytes_counts_only_live_entries(make_dict, size):
    """X1: max_bytes counts the objects of live entries only, also if the expired objects are of
    another size."""
    d = make_dict(key=str, value=bytes, ttl=LONG_S, max_bytes=2 << 20)
    d["kept"] = b"lives"
    count = store_until_full(d, size, KEY)
    expire_now(d, map(KEY, range(count)))

    d["new"] = bytes(1 << 20)

    assert dict(d) == {"kept": b"lives", "new": bytes(1 << 20)}


def test_a_replacing_value_uses_the_room_of_expired_entries(make_dict):
    """X1: a larger value for a present key takes the bytes of expired entries, whether an
    assignment or the end of a section stores it."""
    d = make_dict(key=int, value=bytes, ttl=LONG_S, max_bytes=2 << 20)
    d[-1] = d[-2] = b""
    count = store_until_full(d, 60_000, int)
    half = count // 2
    expire_now(d, range(half))

    d[-1] = bytes(60_000 * (half - 1))
    del d[-1]
    with d.locked(-2) as section:
        section.value = bytes(60_000 * (half - 1))
    d.expire()

    assert len(d[-2]) == 60_000 * (half - 1)
    assert len(d) == 1 + count - half


def test_entries_of_a_plain_map_with_a_timer_expire(map_name):
    """X1: in a plain map with a Timer field, update() and batches find the room of expired
    entries."""
    with RHashMap.create(
        map_name, key_size=8, value_size=16, max_entries=256, fields=[Timer(8)]
    ) as m:
        keys = [number.to_bytes(8, "little") for number in range(768)]
        for key in keys[:256]:
            m[key] = bytes(16)
        for key in keys[:256]:
            assert m.timer_set(key, 1)

        for key in keys[256:512]:
            m[key] = bytes(16)
        for key in keys[256:512]:
            assert m.timer_set(key, 1)
        m.update_many(keys[512:], [bytes(16)] * 256)

        assert sorted(m) == sorted(keys[512:])
        m.check()
        m.unlink()


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000, 20_000])
@pytest.mark.parametrize("living", [0, 1])
def test_expire_removes_all_expired_entries(make_dict, count, living):
    """One call of expire() removes all expired entries, also if no live entry comes after them."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=32_768)
    d.update({number: number for number in range(count + living)})
    expire_now(d, range(living, count + living))
    there = len(d)

    assert d.expire() == there - living

    assert len(d) == living
    assert d.expire() == 0


def test_info_counts_expired_entries_separately(make_dict):
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=1 << 16)
    d.update({number: number for number in range(2000)})
    expire_now(d, range(700))
    assert d.info()["entries"] - d.info()["expired"] == 1300
    d.expire()
    assert d.info()["expired"] == 0

    d.update({number: number for number in range(50_000)})
    expire_now(d, range(25_000))

    assert 23_000 < d.info()["expired"] < 27_000


def test_walks_over_raw_keys_and_popitem_meet_all_expired_entries(make_dict):
    """Code that shows or removes expired entries meets all of them, also if none is alive."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=2048)
    d.update({number: number for number in range(1000)})
    expire_now(d, range(1000))

    assert len(list(shmrhash._core.EntryIterator(d.handle, "keys", expired=True))) == len(d)
    with pytest.raises(KeyError):
        d.popitem()
    assert len(d) == 0


def test_insertions_remove_expired_entries_while_there_is_room(make_dict):
    """A dict of short-lived entries stays small, although it has room for all entries ever
    inserted."""
    d = make_dict(key=int, value=int, ttl=math.inf, max_entries=1 << 17)

    for number in range(50_000):
        d.set(number, number, ttl=1e-6)

    assert len(d) < 5_000


def test_a_locked_expired_entry_is_skipped(make_dict):
    """X1, L1: an expired entry that a section holds stays; the other expired entries make room."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=8)
    d.update({number: number for number in range(8)})
    expire_now(d, range(1, 8))
    d.touch(0, 0.05)
    deadline_ns = d._deadline_ns(0)
    with d.locked(0):
        wait_past(deadline_ns)
        for number in range(10, 17):
            d[number] = number
        with pytest.raises(MapFull):
            d[17] = 17
    d[17] = 17

    assert set(d) == set(range(10, 18))


@pytest.mark.parametrize("entries", [50, 40_000])
@pytest.mark.parametrize("how", ["touch", "replace", "section", "insert"])
def test_an_entry_that_expires_after_a_refusal_makes_room(make_dict, entries, how):
    """X1: after a sweep that found nothing, an insertion is refused without another sweep until the
    next deadline, and that may be one set after the sweep."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update({number: number for number in range(entries)})
    for _ in range(3):
        with pytest.raises(MapFull):
            d[-1] = -1

    set_deadline(d, how, 0.01)
    deadline_ns = d._deadline_ns(0)
    with contextlib.suppress(MapFull):  # refused if the entry has not expired yet
        d[-1] = -1
    wait_past(deadline_ns or 0)
    d[-1] = -1

    assert 0 not in d
    assert d[-1] == -1


def set_deadline(d, how, seconds):
    """Let key 0 expire after this time."""
    if how == "touch":
        d.touch(0, seconds)
    elif how == "replace":
        d.set(0, 1, ttl=seconds)
    elif how == "section":
        with d.locked(0) as section:
            section.value = 1
        d.touch(0, seconds)
    else:
        del d[0]
        d.set(0, 1, ttl=seconds)


def test_no_expired_entry_is_left_when_an_insertion_is_refused(make_dict, seed):
    """X1: whenever an insertion is refused, expire() removes no entry that had expired before the
    insertion began. Deadlines are between 10 us and 10 ms ahead."""
    entries = 16_000  # more buckets than one step of a sweep covers
    rng = random.Random(seed)
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update(dict.fromkeys(range(entries), 0))
    deadlines = {}  # of each short-lived entry, in ns
    refused = 0
    for number in range(entries, entries + 600):
        key = rng.randrange(entries)
        if rng.random() < 0.3 and d.touch(key, ttl := 10 ** rng.uniform(-5, -2)):
            deadlines[key] = time.monotonic_ns() + int(ttl * 1e9)  # at the latest
        began_ns = time.monotonic_ns()
        try:
            d.set(number, 0, ttl=LONG_S)
        except MapFull:
            refused += 1
            if rng.random() < 0.2:
                removed = d.expire()
                since = [when for when in deadlines.values() if when >= began_ns]
                assert removed <= sum(when <= time.monotonic_ns() for when in since)
                deadlines = {key: when for key, when in deadlines.items() if when >= began_ns}
    assert refused > 30


def test_repeated_refusals_do_not_search_the_map_each_time(make_dict):
    """X1: a thousand refused insertions take less processor time than a hundred searches of the
    whole map."""
    d, search_s = full_dict_and_search_s(make_dict)

    began = time.process_time()
    for _ in range(1_000):
        with pytest.raises(MapFull):
            d[-1] = -1

    assert time.process_time() - began < 100 * search_s


def test_storing_ever_earlier_deadlines_does_not_make_each_refusal_search_the_map(make_dict):
    """X1: before each refused insertion an entry gets a deadline that is earlier than all others;
    only about every tenth refusal may search the map."""
    d, search_s = full_dict_and_search_s(make_dict)
    began_s, began = time.process_time(), time.monotonic()
    refused = 0

    while time.monotonic() < began + 2 and refused < 2_000:
        ttl = began + 2.5 - refused / 10_000 - time.monotonic()
        d.set(refused, 0, ttl=max(ttl, 1e-6))
        try:
            d[-1] = -1
        except MapFull:
            refused += 1

    assert time.process_time() - began_s < (4 + refused / 10) * search_s


def full_dict_and_search_s(make_dict):
    """A dict with as many entries as it may have, and the processor time of a search through it."""
    entries = 200_000
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update({number: number for number in range(entries)})
    began = time.process_time()
    for _ in range(5):
        d.expire()
    return d, (time.process_time() - began) / 5


def insert_short_lived(gate, d, first, count):
    """Insert keys that live for a millisecond into a dict with few entries; return how many were
    refused."""
    refused = 0
    gate.wait()
    for number in range(first, first + count):
        while True:
            try:
                d.set(number, number, ttl=0.001)
                break
            except MapFull:  # at this moment all entries are alive
                refused += 1
                time.sleep(0.0005)
    return refused


def test_racing_inserters_all_get_the_room_of_expired_entries(make_dict):
    """X1: several workers sweep at the same time, and each expired entry is removed once: check()
    compares the credits with the entries."""
    d = make_dict(key=int, value=int, ttl=math.inf, max_entries=64)

    run_together("fork", *((insert_short_lived, d, n * 10_000, 1_000) for n in range(3)))
    wait_past(time.monotonic_ns() + 2_000_000)
    d.update({number: number for number in range(64)})

    assert set(d) == set(range(64))


def test_a_counter_with_more_keys_than_its_limit_uses_the_room_of_expired_ones():
    """X1: a rate limiter can count more clients than it has entries, one after another."""
    with SharedCounter(key=str, ttl=LONG_S, max_entries=100) as hits:
        for number in range(1_000):
            assert hits.inc(f"user {number}") == 1
            hits.touch(f"user {number}", 1e-9)

        hits.check()


def test_a_full_dict_without_deadlines_is_refused_and_loses_nothing():
    """W2: nothing is removed from a map whose entries do not expire."""
    with SharedDict(key=int, value=int, max_entries=16) as d:
        d.update({number: number for number in range(16)})

        with pytest.raises(MapFull):
            d[16] = 16

        assert len(d) == 16
