"""X1: what has expired takes no room. An insertion is refused only if live entries leave none."""

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
    """Wait until the monotonic clock, which deadlines are of, has passed this time."""
    while time.monotonic_ns() <= deadline_ns:
        time.sleep(0.0005)  # until a time, not for one


def expire_now(d, keys):
    """Let these entries expire, without an insertion that would remove them."""
    for key in keys:
        assert d.touch(key, 0.001)
    wait_past(time.monotonic_ns() + 2_000_000)


def store_until_full(d, size, name):
    """Store values of that size until there is no room; how many."""
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
def test_every_insertion_finds_the_room_of_what_has_expired(make_dict, insert):
    """X1: a full dict in which nothing lives takes as many new keys again, whatever stores them."""
    d = make_dict(key=str, value=int, ttl=LONG_S, max_entries=ENTRIES)
    for number in range(ENTRIES):
        d[KEY(number)] = 0
    expire_now(d, map(KEY, range(ENTRIES)))

    for number in range(ENTRIES):
        insert(d, KEY(f"new {number}"))

    assert set(d) == {KEY(f"new {number}") for number in range(ENTRIES)}


@pytest.mark.parametrize("living", [0, 1, 250, 499])
def test_max_entries_counts_only_what_lives(make_dict, living):
    """X1: exactly as many fit as do not live; the next is refused, and nothing that lives goes."""
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
def test_max_bytes_counts_only_what_lives(make_dict, size):
    """X1: for objects as for entries; also where those that expired are of another size."""
    d = make_dict(key=str, value=bytes, ttl=LONG_S, max_bytes=2 << 20)
    d["kept"] = b"lives"
    count = store_until_full(d, size, KEY)
    expire_now(d, map(KEY, range(count)))

    d["new"] = bytes(1 << 20)

    assert dict(d) == {"kept": b"lives", "new": bytes(1 << 20)}


def test_a_replaced_value_finds_the_room_of_what_has_expired(make_dict):
    """X1: updates of present keys want bytes too, and sections when they end."""
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


def test_special_fields_of_a_plain_map_expire_as_well(map_name):
    """X1: a map with a Timer field, its updates and batches."""
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
def test_expire_removes_everything_that_has_expired(make_dict, count, living):
    """In one call, also if nothing that lives stands behind it."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=32_768)
    d.update({number: number for number in range(count + living)})
    expire_now(d, range(living, count + living))
    there = len(d)

    assert d.expire() == there - living

    assert len(d) == living
    assert d.expire() == 0


def test_info_tells_the_living_from_the_expired(make_dict):
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=1 << 16)
    d.update({number: number for number in range(2000)})
    expire_now(d, range(700))
    assert d.info()["entries"] - d.info()["expired"] == 1300
    d.expire()
    assert d.info()["expired"] == 0

    d.update({number: number for number in range(50_000)})
    expire_now(d, range(25_000))

    assert 23_000 < d.info()["expired"] < 27_000


def test_a_walk_over_raw_keys_has_all_that_expired(make_dict):
    """What shows or removes expired entries sees each of them, with nothing alive behind them."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=2048)
    d.update({number: number for number in range(1000)})
    expire_now(d, range(1000))

    assert len(list(shmrhash._core.raw_keys(d.handle))) == len(d)
    with pytest.raises(KeyError):
        d.popitem()
    assert len(d) == 0


def test_insertions_remove_what_has_expired_unasked(make_dict):
    """A dict whose entries live shortly stays small, though it has room for all and nobody asks."""
    d = make_dict(key=int, value=int, ttl=math.inf, max_entries=1 << 17)

    for number in range(50_000):
        d.set(number, number, ttl=1e-6)

    assert len(d) < 5_000


def test_a_locked_entry_that_has_expired_is_passed_by(make_dict):
    """X1, L1: it is somebody's; the others make room."""
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
def test_a_refusal_is_no_excuse_for_the_next_one(make_dict, entries, how):
    """X1: a turn that found nothing is believed until a deadline comes, also one set afterwards."""
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update({number: number for number in range(entries)})
    for _ in range(3):
        with pytest.raises(MapFull):
            d[-1] = -1

    set_deadline(d, how, 0.01)
    deadline_ns = d._deadline_ns(0)
    with contextlib.suppress(MapFull):  # if refused, then a new rest: to the deadline, no further
        d[-1] = -1
    wait_past(deadline_ns or 0)
    d[-1] = -1

    assert 0 not in d
    assert d[-1] == -1


def set_deadline(d, how, seconds):
    """Let key 0 expire soon."""
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


def test_nothing_that_had_expired_is_left_when_an_insertion_is_refused(make_dict, seed):
    """X1: entries come and go by the microsecond; before each refusal the clock is asked."""
    entries = 16_000  # more buckets than one step of a sweep
    rng = random.Random(seed)
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update(dict.fromkeys(range(entries), 0))
    deadlines = {}  # of those that do not live long
    refused = 0
    for number in range(entries, entries + 600):
        key = rng.randrange(entries)
        if rng.random() < 0.3 and d.touch(key, ttl := 10 ** rng.uniform(-5, -2)):
            deadlines[key] = time.monotonic_ns() + int(ttl * 1e9)  # or a little earlier
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


def test_refusals_one_after_another_cost_little(make_dict):
    """X1: a full map is not searched for each of them. Processor time, for a busy machine."""
    entries = 200_000
    d = make_dict(key=int, value=int, ttl=LONG_S, max_entries=entries)
    d.update({number: number for number in range(entries)})
    began = time.process_time()
    for _ in range(5):
        d.expire()
    search_s = (time.process_time() - began) / 5

    began = time.process_time()
    for _ in range(1_000):
        with pytest.raises(MapFull):
            d[-1] = -1

    assert time.process_time() - began < 300 * search_s


def insert_short_lived(gate, d, first, count):
    """Insert keys that live for a millisecond, into a dict with room for few; how often refused."""
    refused = 0
    gate.wait()
    for number in range(first, first + count):
        while True:
            try:
                d.set(number, number, ttl=0.001)
                break
            except MapFull:  # all that is there lives
                refused += 1
                time.sleep(0.0005)
    return refused


def test_inserters_that_race_for_the_room_of_the_expired_all_end(make_dict):
    """X1: several sweep at once, and each entry is removed once (check() counts credits)."""
    d = make_dict(key=int, value=int, ttl=math.inf, max_entries=64)

    run_together("fork", *((insert_short_lived, d, n * 10_000, 1_000) for n in range(3)))
    wait_past(time.monotonic_ns() + 2_000_000)
    d.update({number: number for number in range(64)})

    assert set(d) == set(range(64))


def test_a_counter_goes_on_when_its_users_have_gone():
    """X1: a rate limiter with more clients than its limit of entries."""
    with SharedCounter(key=str, ttl=LONG_S, max_entries=100) as hits:
        for number in range(1_000):
            assert hits.inc(f"user {number}") == 1
            hits.touch(f"user {number}", 1e-9)

        hits.check()


def test_a_dict_without_deadlines_is_refused_as_before():
    """W2: nothing is removed from a map whose entries do not expire."""
    with SharedDict(key=int, value=int, max_entries=16) as d:
        d.update({number: number for number in range(16)})

        with pytest.raises(MapFull):
            d[16] = 16

        assert len(d) == 16
