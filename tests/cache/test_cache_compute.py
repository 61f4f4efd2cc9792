"""One computation for all callers: get_or_compute() and memoize()."""

import os
import random
import signal
import threading
import time

import pytest
from support.children import Child, in_child, kill
from support.workers import run_together

import shmrhash
from shmrhash import Cache, InvalidArgument

PATIENCE_S = 30


class Journal:
    """A file to which processes append a byte for each computation."""

    def __init__(self, path):
        self.path = path

    def note(self):
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)

    def count(self):
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "computations")


@pytest.fixture
def cache(make_cache):
    return make_cache(key=object, value=object, max_entries=5000, timeout=PATIENCE_S)


def refuse():
    raise ValueError("it cannot be computed")


def fail():
    raise AssertionError("it was computed although a value is there")


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)  # a poll


def reopened(name):
    return Cache(name, key=object, value=object, timeout=PATIENCE_S)


# ---- one caller ----


def test_an_absent_value_is_computed_and_stored(cache):
    assert cache.get_or_compute("a", lambda: [1]) == [1]
    assert cache.get_or_compute("a", fail) == [1]
    assert cache.get("a") == [1]
    assert cache.get_or_compute("none", lambda: None) is None
    assert cache.get_or_compute("none", fail) is None
    assert cache.get_or_compute("a key of more than fifteen bytes", lambda: 2) == 2
    assert cache.get_or_compute("a key of more than fifteen bytes", fail) == 2
    assert cache.stats().computed == 3


@pytest.mark.parametrize(("key", "value"), [(int, int), (str, float), (bytes, bytes), (str, str)])
def test_any_type_can_be_computed(make_cache, key, value):
    cache = make_cache(key=key, value=value, max_entries=3)
    keys = [key(number) if key is not str else str(number) for number in range(1, 20)]

    for one in keys:
        wanted = value(7) if value is not str else "7"
        assert cache.get_or_compute(one, lambda wanted=wanted: wanted) == wanted
        assert cache.get(one) == wanted

    assert len(cache) == 3


def test_the_time_to_live_counts_from_the_end_of_the_computation(cache):
    assert cache.get_or_compute("a", lambda: 1, ttl=0.001) == 1
    wait_until(lambda: "a" not in cache)
    assert cache.get_or_compute("a", lambda: 2, ttl=1000) == 2
    assert cache.get_or_compute("a", fail) == 2
    with pytest.raises(InvalidArgument):
        cache.get_or_compute("b", fail, ttl=-1)


def test_an_exception_is_the_callers_and_nothing_is_stored(cache):
    with pytest.raises(ValueError, match="cannot be computed"):
        cache.get_or_compute("a", refuse)

    assert "a" not in cache
    assert cache.get_or_compute("a", lambda: 1) == 1


def test_a_lock_timeout_of_the_function_is_the_callers(cache):
    def time_out():
        raise shmrhash.LockTimeout("its own")

    with pytest.raises(shmrhash.LockTimeout, match="its own"):
        cache.get_or_compute("a", time_out)


def test_a_result_that_does_not_fit_is_returned(make_cache):
    cache = make_cache(key=str, value=bytes, max_bytes=1 << 20, max_entries=10)

    assert len(cache.get_or_compute("a", lambda: bytes(1 << 20))) == 1 << 20

    assert "a" not in cache
    assert cache.get_or_compute("a", lambda: b"1") == b"1"


@pytest.mark.parametrize(
    ("invalidate", "left"),
    [
        (lambda cache: cache.delete("a"), None),
        (lambda cache: cache.pop("a"), None),
        (lambda cache: cache.clear(), None),
        (lambda cache: cache.set("a", "newer"), "newer"),
        (lambda cache: cache.add("a", "newer"), "newer"),
    ],
    ids=["delete", "pop", "clear", "set", "add"],
)
def test_a_result_invalidated_during_its_computation_is_not_stored(cache, invalidate, left):
    """If the key is deleted or stored during its computation, the result is not stored; the
    invalidating call does not wait for the computation."""

    def compute():
        invalidate(cache)
        return "old"

    assert cache.get_or_compute("a", compute) == "old"
    assert cache.get("a") == left


def test_a_computation_may_ask_for_its_own_key(cache):
    """The thread computes the key once more instead of waiting for itself."""
    inner = lambda: cache.get_or_compute("a", lambda: 1)  # noqa: E731

    assert cache.get_or_compute("a", lambda: inner() + 1) == 2
    assert cache.get("a") == 2


def test_a_computation_may_ask_for_other_keys(cache):
    def depth(number):
        if number == 0:
            return 0
        return 1 + cache.get_or_compute(number - 1, lambda: depth(number - 1))

    assert cache.get_or_compute(40, lambda: depth(40)) == 40
    assert len(cache) == 41


def test_a_computation_that_forks_is_the_parents(cache):
    def compute():
        assert in_child(cache.get, "a") is None
        assert in_child(cache.get_or_compute, "b", lambda: 5) == 5
        return 1

    assert cache.get_or_compute("a", compute) == 1
    assert (cache.get("a"), cache.get("b")) == (1, 5)


# ---- many callers ----


def ask_for_all(gate, name, journal, seed, keys):
    """Ask for all keys, in a random order."""
    order = list(range(keys))
    random.Random(seed).shuffle(order)
    with reopened(name) as cache:
        gate.wait()
        for key in order:

            def compute(key=key):
                journal.note()
                time.sleep(0.0001)
                return key * 2

            assert cache.get_or_compute(key, compute, wait=PATIENCE_S) == key * 2


@pytest.mark.parametrize("keys", [100, pytest.param(1000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("method", ["fork", "thread"])
def test_each_key_is_computed_once(cache, journal, seed, method, keys):
    jobs = [(ask_for_all, cache.name, journal, seed + number, keys) for number in range(6)]

    run_together(method, *jobs)

    assert journal.count() == keys
    assert cache.stats().computed == keys


def test_waiters_for_a_dead_process_go_on(cache, journal):
    """If a computing process is killed, one waiter computes the value: five kills cause five more
    computations."""
    kills = 5

    def compute_long(number):
        journal.note()
        while True:
            time.sleep(0.01)

    def ask_for(number):
        with reopened(cache.name) as mine:
            mine.get_or_compute(number, lambda: compute_long(number), wait=PATIENCE_S)

    for number in range(kills):
        with Child(ask_for, number) as dying:
            wait_until(lambda number=number: journal.count() == 2 * number + 1)
            waiting = Child(in_other, cache.name, number, journal)
            wait_until(lambda number=number: cache.stats().misses == 2 * number + 2)
            dying.kill()
            assert waiting.result() == number

    assert journal.count() == 2 * kills
    assert cache.get_many(range(kills)) == {number: number for number in range(kills)}


def in_other(name, number, journal):
    def compute():
        journal.note()
        return number

    with reopened(name) as cache:
        return cache.get_or_compute(number, compute, wait=PATIENCE_S)


def test_an_exception_lets_the_next_one_compute(cache, journal):
    def ask_first():
        def compute():
            journal.note()
            wait_until(lambda: cache.stats().misses == 2)
            refuse()

        with reopened(cache.name) as mine, pytest.raises(ValueError, match="cannot"):
            mine.get_or_compute("a", compute)

    first = Child(ask_first)
    wait_until(lambda: journal.count() == 1)
    second = Child(in_other, cache.name, "a", journal)
    first.result()

    assert second.result() == "a"
    assert journal.count() == 2


def test_a_late_computation_is_not_waited_for_nor_stored(cache, journal):
    """A computation that takes longer than `wait`, here because its process is stopped, is late:
    others compute, and its result is not stored."""

    def ask_first():
        def compute():
            journal.note()
            os.kill(os.getpid(), signal.SIGSTOP)
            return "late"

        with reopened(cache.name) as mine:
            return mine.get_or_compute("a", compute)

    first = Child(ask_first)
    wait_until(lambda: journal.count() == 1)
    assert cache.get_or_compute("a", lambda: "in time", wait=0.05) == "in time"
    os.kill(first.pid, signal.SIGCONT)

    assert first.result() == "late"
    assert cache.get("a") == "in time"


def test_circles_of_computations_end(cache, seed):
    """The computations of several processes need each other's results; each call ends."""
    keys = 8

    def follow(gate, number):
        rng = random.Random(seed + number)
        with reopened(cache.name) as mine:
            gate.wait()
            for turn in range(20):
                path = rng.sample(range(keys), keys)

                def compute(at, path=path, turn=turn):
                    if at + 1 < len(path):
                        key = turn, path[at + 1]
                        mine.get_or_compute(key, lambda: compute(at + 1), wait=10 * PATIENCE_S)
                    return path[at]

                key = turn, path[0]
                assert mine.get_or_compute(key, lambda: compute(0), wait=10 * PATIENCE_S) == path[0]

    run_together("fork", *[(follow, number) for number in range(3)])

    assert all(cache.get((turn, key)) == key for turn in range(20) for key in range(keys))


def test_threads_that_need_each_other_do_not_wait_for_ever(cache):
    both = threading.Barrier(2)
    results = {}

    def ask(mine, other):
        def compute():
            both.wait(PATIENCE_S)
            cache.get_or_compute(other, lambda: other, wait=10 * PATIENCE_S)
            return mine

        results[mine] = cache.get_or_compute(mine, compute, wait=10 * PATIENCE_S)

    threads = [threading.Thread(target=ask, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert results == {"a": "a", "b": "b"}


def test_a_claimed_key_is_not_evicted(make_cache):
    cache = make_cache(key=int, value=int, max_entries=3)

    def compute():
        for key in range(50):
            cache.set(key, key)
        return 7

    assert cache.get_or_compute(-1, compute) == 7
    assert cache.get(-1) == 7


def compute_until_killed(name, seed):
    rng = random.Random(seed)
    with reopened(name) as cache:
        while True:
            key = rng.randrange(30)
            if rng.random() < 0.3:
                cache.delete(key)
            assert cache.get_or_compute(key, lambda key=key: key * 2, wait=PATIENCE_S) == key * 2


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.thorough)])
def test_killed_claimants_leave_nothing(make_cache, seed, kills):
    """C1: processes are killed while they compute. No claim is left, and the living processes
    compute what they ask for."""
    cache = make_cache(key=object, value=object, max_entries=20, timeout=PATIENCE_S)
    rng = random.Random(seed)
    crew = [Child(compute_until_killed, cache.name, rng.random()) for _ in range(2)]
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0, 0.02))
            which = rng.randrange(2)
            assert crew[which].kill() < 0, crew[which].result()
            crew[which] = Child(compute_until_killed, cache.name, rng.random())
            key = rng.randrange(30)
            assert cache.get_or_compute(key, lambda key=key: key * 2, wait=PATIENCE_S) == key * 2
    finally:
        kill(*crew)

    cache.handle._recover()
    cache.check()
    cache.clear()
    assert [cache.get_or_compute(key, lambda key=key: key) for key in range(30)] == list(range(30))


# ---- memoize ----


def test_a_memoized_function_is_called_once_for_each_arguments(cache):
    calls = []

    @cache.memoize(ttl=100)
    def add(first, second=1):
        """Add two numbers."""
        calls.append((first, second))
        return first + second

    assert [add(1), add(1), add(1, 2), add(1, second=2), add(1, second=2)] == [2, 2, 3, 3, 3]
    assert calls == [(1, 1), (1, 2), (1, 2)]
    assert (add.__name__, add.__doc__) == ("add", "Add two numbers.")
    assert cache.get(add.cache_key(1)) == 2
    assert add.forget(1)
    assert not add.forget(1)
    assert add(1) == 2
    assert len(calls) == 4
    assert add.__wrapped__(5) == 6


def test_the_key_of_a_memoized_call_can_be_made(make_cache):
    cache = make_cache(key=str, value=int, max_entries=10)
    with pytest.raises(InvalidArgument, match="key="):
        cache.memoize()

    @cache.memoize(key=lambda number: f"square:{number}")
    def square(number):
        return number * number

    assert square(4) == 16
    assert cache.get("square:4") == 16
    assert square.forget(4)


def test_two_functions_do_not_share_results_unless_named_alike(cache):
    def make(factor, **options):
        @cache.memoize(**options)
        def scale(number):
            return number * factor

        scale.__wrapped__.__qualname__ = f"scale by {factor}"
        return scale

    twice = make(2, name="by two")
    assert (twice(1), make(3, name="by three")(1), make(4, name="by two")(1)) == (2, 3, 2)


def test_results_to_be_kept_can_be_chosen(cache):
    calls = []

    @cache.memoize(cache_if=lambda result: result is not None)
    def find(name):
        calls.append(name)
        return None if name == "missing" else name

    assert [find("a"), find("a"), find("missing"), find("missing")] == ["a", "a", None, None]
    assert calls == ["a", "missing", "missing"]
    assert find.refresh("a") == "a"
    assert calls[3:] == ["a"]
    assert find.cache_info() == cache.stats()


def test_errors_that_are_named_are_kept_and_raised_again(cache):
    calls = []

    @cache.memoize(ttl=0.001, errors=(KeyError, OSError), error_ttl=100)
    def find(name):
        calls.append(name)
        if name == "odd":
            raise OSError(lambda: "an exception that cannot be pickled")
        raise (KeyError if name == "k" else ValueError)(name)

    for _ in range(2):
        for name, error in (("k", KeyError), ("v", ValueError), ("odd", OSError)):
            with pytest.raises(error):
                find(name)

    assert calls == ["k", "v", "odd", "v", "odd"]
    with pytest.raises(KeyError):
        find.refresh("k")
    assert calls[5:] == ["k"]


def test_errors_need_values_that_are_objects(make_cache):
    cache = make_cache(key=object, value=int, max_entries=10)

    with pytest.raises(InvalidArgument, match="errors="):
        cache.memoize(errors=KeyError)


def test_keys_of_memoized_calls_know_types_versions_and_what_to_ignore(cache):
    def area(self, width, height=1):
        return [width * height]

    typed = cache.memoize(typed=True)(area)
    old = cache.memoize(version=1)(area)
    new = cache.memoize(version=2)(area)
    bound = cache.memoize(ignore=("self",), name="bound")(area)

    assert typed.cache_key(None, 1) != typed.cache_key(None, 1.0)
    assert typed.cache_key(None, width=1) != typed.cache_key(None, width=True)
    assert old.cache_key(None, 1) != new.cache_key(None, 1)
    assert bound.cache_key(1, 2, 3) == bound.cache_key(2, 2, height=3)
    assert (bound(object(), 2, 3), bound(object(), 2, height=3)) == ([6], [6])
    assert cache.stats().computed == 1
    with pytest.raises(InvalidArgument, match="nobody"):
        cache.memoize(ignore=["nobody"])(area)


def test_the_ttl_may_depend_on_the_result(cache):
    assert cache.get_or_compute("short", lambda: 1, ttl=lambda result: 0.001 * result) == 1
    wait_until(lambda: "short" not in cache)
    assert cache.get_or_compute("never", lambda: 1, ttl=lambda result: False) == 1
    assert "never" not in cache
    assert cache.get_or_compute("long", lambda: 1, ttl=lambda result: 100) == 1
    assert cache.ttl("long") > 90
    with pytest.raises(InvalidArgument):
        cache.get_or_compute("bad", lambda: 1, ttl=lambda result: -1)
    assert cache.get_or_compute("bad", lambda: 2) == 2


def test_waiters_may_choose_a_timeout_error_for_a_late_result(cache, journal):
    def ask_first():
        def compute():
            journal.note()
            wait_until(lambda: journal.count() == 2)
            return "late, and stored"

        with reopened(cache.name) as mine:
            return mine.get_or_compute("a", compute)

    first = Child(ask_first)
    wait_until(lambda: journal.count() == 1)
    with pytest.raises(shmrhash.LockTimeout):
        cache.get_or_compute("a", fail, wait=0.01, when_late="raise")
    with pytest.raises(InvalidArgument):
        cache.get_or_compute("a", fail, when_late="never")
    journal.note()

    assert first.result() == cache.get("a") == "late, and stored"


def test_computations_are_counted_and_timed(cache):
    cache.get_or_compute("a", lambda: time.sleep(0.01))
    cache.set("b", 1)
    assert not cache.add("b", 2)
    cache.get_or_compute("c", lambda: cache.delete("c"))

    stats = cache.stats()
    assert (stats.computed, stats.sets, stats.not_stored, stats.stolen) == (2, 1, 1, 0)
    assert 0.01 <= stats.seconds_computing < PATIENCE_S


# ---- claim ----


def test_a_claim_has_the_value_or_computes_it(cache):
    with cache.claim("a") as claim:
        assert not claim.found
        with pytest.raises(InvalidArgument):
            _ = claim.value
        assert claim.set([1], ttl=100)
        with pytest.raises(InvalidArgument):
            claim.set([2])
    assert claim.value == [1]
    assert cache.ttl("a") > 90
    with cache.claim("a") as claim:
        assert (claim.found, claim.value) == (True, [1])
        with pytest.raises(InvalidArgument):
            claim.set([2])
    with pytest.raises(InvalidArgument):
        cache.claim("b").set(1)
    assert cache.get("a") == [1]


def test_a_claim_that_sets_nothing_is_left_to_the_next(cache):
    with cache.claim("a"):
        pass
    with pytest.raises(ZeroDivisionError), cache.claim("a"):
        _ = 1 // 0

    assert "a" not in cache
    assert cache.get_or_compute("a", lambda: 1) == 1


def test_a_claim_keeps_others_waiting_and_ends_with_its_process(cache, journal):
    def claim_and_hang():
        with reopened(cache.name) as mine, mine.claim("a") as claim:
            assert not claim.found
            journal.note()
            time.sleep(10 * PATIENCE_S)

    child = Child(claim_and_hang)
    wait_until(lambda: journal.count() == 1)
    with cache.claim("a", wait=0.01) as claim:  # after this time the child's claim is late
        assert not claim.found
        with cache.claim("a") as inner:  # the same thread does not wait for itself
            assert not inner.found
            assert not inner.set("inner")
    other = Child(in_other, cache.name, "a", journal)
    assert other.result() == "a"
    child.kill()

    with cache.claim("a") as claim:
        assert claim.value == "a"


def test_a_claim_whose_key_was_stored_before_its_end_stores_nothing(cache):
    with cache.claim("a") as claim:
        cache.set("a", "newer")
        assert not claim.set("older")

    assert cache.get("a") == "newer"
