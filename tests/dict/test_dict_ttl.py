"""Expiry: an expired entry behaves as absent, from the millisecond of its deadline on."""

import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.expiry import let_pass
from support.workers import run_together

import shmrhash
from shmrhash import SharedCounter, SharedDict
from shmrhash._types import schema

SHORT_S = 0.03
LONG_S = 3600.0
LONG_NS = 3600 * 10**9
VALUE_TYPES = [(str, int), (str, str), (int, float), (object, object)]


def wait_past(deadline_ns):
    """Wait until the monotonic clock, which deadlines use, has passed this time."""
    while time.monotonic_ns() <= deadline_ns:
        time.sleep(0.0005)  # the loop polls the clock, so a longer sleep is harmless


def example(declared, number):
    """Return a value of this type."""
    return declared(number) if declared is not object else [number]


@pytest.mark.parametrize(("key_type", "value_type"), VALUE_TYPES)
def test_an_expired_entry_is_absent_for_every_operation(make_dict, key_type, value_type):
    """Each operation meets an expired entry of its own, and treats it as absent."""
    d = make_dict(key=key_type, value=value_type, ttl=SHORT_S, max_entries=64)
    keys = [example(key_type, number) for number in range(20)]
    keys = [tuple(key) if isinstance(key, list) else key for key in keys]
    old, new = example(value_type, 1), example(value_type, 2)
    for key in keys:
        d[key] = old
    wait_past(
        max(d._deadline_ns(key) for key in keys if key in d) if any(k in d for k in keys) else 0
    )
    d = SharedDict(d.name, key=key_type, value=value_type, ttl=math.inf)

    with pytest.raises(KeyError):
        d[keys[0]]
    assert d.get(keys[1]) is None
    assert keys[2] not in d
    with pytest.raises(KeyError):
        del d[keys[3]]
    with pytest.raises(KeyError):
        d.pop(keys[4])
    assert d.pop(keys[5], "gone") == "gone"
    assert d.setdefault(keys[6], new) == new
    with pytest.raises(KeyError):
        d.exchange(keys[7], new)
    with pytest.raises(KeyError):
        d.ttl(keys[8])
    assert not d.touch(keys[9], LONG_S)
    with pytest.raises(KeyError), d.locked(keys[10]):
        pytest.fail("an expired entry was locked")
    with pytest.raises(KeyError):
        d.update_with(keys[11], lambda value: value)
    assert d.update_with(keys[12], lambda value: value, new) == new
    assert not d._put(keys[13], new, shmrhash.BPF_EXIST)
    assert d._put(keys[14], new, shmrhash.BPF_NOEXIST)
    d[keys[15]] = new
    if value_type is int:
        with pytest.raises(KeyError):
            d.add(keys[16], 1)
        assert d.add(keys[17], 5, 0) == 5
        del d[keys[17]]
    there = {keys[number]: new for number in (6, 12, 14, 15)}
    assert dict(d.items()) == there
    assert set(d) == set(there)
    assert d == there
    assert sorted(map(repr, d.values())) == [repr(new)] * 4
    d.close()


def test_popitem_takes_only_live_entries(make_dict):
    d = make_dict(key=int, value=int, ttl=math.inf)
    for number in range(50):
        d.set(number, number, ttl=0.001 if number % 5 else None)
    wait_past(time.monotonic_ns() + 2_000_000)

    taken = dict(d.popitem() for _ in range(10))

    assert taken == {number: number for number in range(0, 50, 5)}
    with pytest.raises(KeyError):
        d.popitem()
    assert len(d) == 0


def test_expire_frees_the_objects_of_all_expired_entries(make_dict):
    """C1: expire() frees the objects of expired entries, and no others."""
    d = make_dict(key=str, value=bytes, ttl=LONG_S)
    for number in range(300):
        d[f"a key of more than 15 bytes, {number}"] = bytes(1000)
    for number in range(300):
        if number % 3:  # not at once, because insertions remove expired entries
            d.touch(f"a key of more than 15 bytes, {number}", 0.001)
    wait_past(time.monotonic_ns() + 2_000_000)
    assert len(d) == 300

    assert d.expire() == 200

    assert len(d) == 100
    assert d.info()["objects"]["count"] == 200
    assert d.expire() == 0


def test_an_entry_lives_exactly_until_its_deadline(make_dict):
    """An entry expires in the millisecond of its deadline: each result is compared with the clock
    before and after the operation."""
    d = make_dict(key=str, value=int, ttl=math.inf)
    for number in range(5):
        begun_ns = time.monotonic_ns()
        d.set("a", number, ttl=0.02)
        ended_ns = time.monotonic_ns()
        while True:
            before_ns = time.monotonic_ns()
            found = d.get("a")
            after_ns = time.monotonic_ns()
            if found is None:
                assert after_ns >= begun_ns + 20_000_000
                break
            assert before_ns <= ended_ns + 20_000_000
        assert "a" not in d


def test_ttl_and_touch(make_dict):
    d = make_dict(key=str, value=str, ttl=LONG_S)
    d["default"] = "a"
    d.set("short", "a", ttl=10)
    d.set("ever", "a", ttl=math.inf)

    assert LONG_S - 5 < d.ttl("default") <= LONG_S
    assert 5 < d.ttl("short") <= 10
    assert d.ttl("ever") is None
    assert d.touch("short", 100)
    assert 95 < d.ttl("short") <= 100
    assert d.touch("short")
    assert LONG_S - 5 < d.ttl("short") <= LONG_S
    assert d.touch("short", math.inf)
    assert d.ttl("short") is None
    assert not d.touch("absent", 5)
    with pytest.raises(KeyError):
        d.ttl("absent")
    assert dict(d) == dict.fromkeys(["default", "short", "ever"], "a")


def test_a_new_value_gets_a_new_deadline(make_dict):
    d = make_dict(key=str, value=int, ttl=LONG_S)
    for write in (
        lambda: d.__setitem__("a", 1),
        lambda: d.update(a=1),
        lambda: d.exchange("a", 1),
    ):
        d.set("a", 0, ttl=5)
        write()
        assert d.ttl("a") > LONG_S - 5
    d.exchange("a", 2, ttl=7)
    assert d.ttl("a") <= 7


def test_a_change_in_place_keeps_the_deadline(make_dict):
    """An entry changed by add, a section or update_with expires when it would have expired without
    the change."""
    d = make_dict(key=str, value=int, ttl=LONG_S)
    d.set("a", 0, ttl=5)

    d.add("a", 1)
    d.update_with("a", lambda value: value + 1)
    with d.locked("a") as entry:
        entry.value += 1

    assert d["a"] == 3
    assert d.ttl("a") <= 5


def test_a_dict_without_ttl_refuses_deadlines(make_dict):
    d = make_dict(key=str, value=int)
    d.set("a", 1)

    for use in (
        lambda: d.set("a", 2, ttl=5),
        lambda: d.touch("a", 5),
        lambda: d.touch("a"),
        lambda: d.exchange("a", 2, ttl=5),
    ):
        with pytest.raises(shmrhash.InvalidArgument, match=r"deadline|Timer"):
            use()
    assert d["a"] == 1
    assert d.ttl("a") is None
    assert d.expire() == 0


@pytest.mark.parametrize("ttl", [0, -1, math.nan, -math.inf, 1e10])
def test_a_ttl_out_of_range_is_refused(make_dict, ttl):
    d = make_dict(key=str, value=int, ttl=math.inf)

    with pytest.raises(shmrhash.InvalidArgument, match="ttl"):
        d.set("a", 1, ttl=ttl)
    with pytest.raises(shmrhash.InvalidArgument, match="ttl"):
        SharedDict(key=str, value=int, ttl=ttl)
    assert len(d) == 0


@pytest.mark.parametrize("ttl", ["5", True, 5j])
def test_a_ttl_that_is_no_number_is_refused(make_dict, ttl):
    with pytest.raises(TypeError, match="ttl"):
        make_dict(key=str, value=int, ttl=ttl)


def test_a_counter_starts_at_zero_after_expiry(make_dict):
    c = make_dict(SharedCounter, ttl=LONG_S)

    assert c.inc("user") == 1
    deadline_ns = c._deadline_ns("user")
    assert c.inc("user") == 2
    assert c._deadline_ns("user") == deadline_ns
    c.touch("user", SHORT_S)
    let_pass(SHORT_S)

    assert c["user"] == 0
    assert c.inc("user") == 1


def take_expired(gate, d, rounds, prepares):
    """Race in each round to store under a key that has just expired; one of the workers prepares
    the key."""
    won = 0
    for number in range(rounds):
        if prepares:
            deadline_ns = time.monotonic_ns() + 1_000_000
            d._put("key", number, shmrhash.BPF_ANY, deadline_ns)
            wait_past(deadline_ns)
        gate.wait()
        won += d._put("key", number, shmrhash.BPF_NOEXIST, time.monotonic_ns() + LONG_NS)
        gate.wait()
    return won


@pytest.mark.parametrize("method", ["thread", "fork"])
def test_one_of_several_racing_stores_gets_an_expired_key(make_dict, method):
    """W1: of three threads or processes that store under an expired key at the same time, one
    succeeds in each round, as if the key were absent."""
    d = make_dict(key=str, value=int, ttl=math.inf)
    rounds = 50

    results = run_together(method, *((take_expired, d, rounds, at == 0) for at in range(3)))

    assert sum(results) == rounds


@contextlib.contextmanager
def locked_until_it_expires(d):
    """Lock a key that expires soon, but not before it is locked, however busy the machine is."""
    ttl_s = SHORT_S
    while True:
        d.set("k", 1, ttl=ttl_s)
        section = d.locked("k")
        try:
            section.__enter__()
        except shmrhash.KeyNotFound:
            ttl_s *= 2
            continue
        with contextlib.ExitStack() as stack:
            stack.push(section)
            yield
        return


@pytest.mark.parametrize(
    "operation",
    [
        lambda d: d.setdefault("k", 2),
        lambda d: d._put("k", 2, shmrhash.BPF_NOEXIST),
        lambda d: d.add("k", 1, 0),
    ],
    ids=["setdefault", "store", "add"],
)
def test_storing_over_a_locked_expired_entry_waits_until_the_timeout(make_dict, operation):
    """W1: an expired entry that a section holds is absent, but keeps its place, so a store waits
    for the section. (setdefault() once retried without end.)"""
    d = make_dict(key=str, value=int, ttl=math.inf, max_entries=64)
    with SharedDict.open(d.name, timeout=0.05) as other, locked_until_it_expires(d):
        wait_past(d._deadline_ns("k") if "k" in d else 0)
        with pytest.raises(shmrhash.Error) as raised:
            run_alone(lambda: operation(other))
        assert raised.type in (shmrhash.LockTimeout, shmrhash.DeadlockError)
    d.pop("k", None)


def test_a_section_whose_entry_expired_stores_nothing_and_raises(make_dict):
    """L1: a section whose entry has expired raises KeyGone: a value that it stored would be absent
    at once."""
    d = make_dict(key=str, value=int, ttl=LONG_S)
    d["k"] = 1

    def slowly(value):
        wait_past(deadline_ns)
        return value + 1

    d.touch("k", 0.1)
    deadline_ns = d._deadline_ns("k")
    with pytest.raises(shmrhash.KeyGone, match="expired"):
        d.update_with("k", slowly)
    assert "k" not in d
    d.update_with("k", lambda value: value + 1, 5)
    assert d["k"] == 6


def run_alone(function):
    """Call the function in another thread, which has no section of its own; raise what it
    raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_popitem_of_a_dict_with_only_a_locked_expired_entry_raises_key_error(make_dict):
    """W1: a dict whose only entry has expired counts as empty, also while a section holds that
    entry."""
    d = make_dict(key=str, value=int, ttl=math.inf, max_entries=64)
    with locked_until_it_expires(d):
        wait_past(d._deadline_ns("k") if "k" in d else 0)
        with pytest.raises(KeyError):
            run_alone(d.popitem)
    d.pop("k", None)


def test_a_dict_with_ttl_is_not_opened_in_another_time_namespace(make_dict, monkeypatch, tmp_path):
    """A dict with a ttl is refused in a time namespace whose clock has another offset, which the
    kernel tells; dicts without a ttl can be opened."""
    offsets = tmp_path / "offsets"
    offsets.write_text("monotonic           0         0\nboottime            0         0\n")
    monkeypatch.setattr(schema, "_TIME_NAMESPACE", str(offsets))
    d = make_dict(key=str, value=int, ttl=60)
    plain = make_dict(key=str, value=int)
    d["a"] = 1

    offsets.write_text("monotonic       86400         0\nboottime        86400         0\n")
    for use in (SharedDict, SharedDict.open):
        with pytest.raises(shmrhash.LayoutMismatch, match=r"time namespace.*86400000000000 ns"):
            use(d.name, key=str, value=int)
        with use(plain.name, key=str, value=int):
            pass
    there = make_dict(key=str, value=int, ttl=60)
    with SharedDict.open(there.name):
        pass
    offsets.write_text("monotonic           0         0\n")
    with pytest.raises(shmrhash.LayoutMismatch, match="time namespace"):
        SharedDict.open(there.name)
    offsets.unlink()  # as on a kernel without time namespaces
    with SharedDict.open(d.name) as opened:
        assert opened["a"] == 1


def test_update_with_refuses_none_unless_allowed(make_dict):
    """A function that changes its argument and returns None is a mistake: update_with() refuses to
    store None unless it is told to."""
    d = make_dict(key=str, value=object)
    d["k"] = [1]

    with pytest.raises(shmrhash.InvalidArgument, match="allow_none"):
        d.update_with("k", lambda value: value.append(2))

    assert d["k"] == [1]
    assert d.update_with("k", lambda value: None, allow_none=True) is None
    assert d["k"] is None
    assert d.update_with("k", lambda value: value) is None
