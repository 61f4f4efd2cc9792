"""Whatever a computation does (it may be nested, interrupted, or fail in any way), its claim ends,
and no caller waits for as long as its timeout."""

import os
import pickle
import random
import signal
import threading
import time

import pytest
from support.caches import cache_options
from support.children import Child, in_child
from support.workers import run_together

import shmrhash
from shmrhash import Cache, SharedDict

PATIENCE_S = 30
NEVER_S = 20 * PATIENCE_S  # the timeout of waits; a wait that reaches it fails the test
ENDLESS_S = 12 * NEVER_S  # for all of a test, on a busy machine


@pytest.fixture
def cache(make_cache):
    return make_cache(key=object, value=object, max_entries=3000, timeout=PATIENCE_S)


def fail():
    raise AssertionError("it was computed although a value is there")


def together(*functions, seconds=PATIENCE_S):
    """Run each function in a thread; assert that each ends within this time and without an
    exception."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[one], daemon=True) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def expect_free(cache, key="a"):
    """Assert that another process can compute the key at once."""
    cache.delete(key)
    assert in_child(lambda: cache.get_or_compute(key, lambda: 17, wait=NEVER_S)) == 17
    assert cache.get(key) == 17


# ---- nested computations ----


@pytest.mark.parametrize("entries", [1, 2, 5])
def test_more_computations_than_entries(make_cache, entries):
    """If all entries are claimed, a computation that needs one more still runs, and its result is
    not stored."""
    cache = make_cache(key=int, value=int, max_entries=entries)

    def depth(number):
        return 1 + cache.get_or_compute(number - 1, lambda: depth(number - 1)) if number else 0

    assert cache.get_or_compute(entries + 3, lambda: depth(entries + 3)) == entries + 3
    assert len(cache) == entries
    assert cache.stats().computed == entries + 4
    assert cache.get(entries + 3) == entries + 3


def test_no_bytes_for_a_claim(make_cache):
    """The blank of a long key would need an object for the key, and max_bytes has no room for one;
    the value is computed without a claim."""
    cache = make_cache(**cache_options(0, key=bytes, value=bytes, max_entries=10))
    with SharedDict.open(cache.name) as entries, entries.locked(b"k", default=bytes(8000)):
        key = b"x" * 9000

        assert cache.get_or_compute(key, lambda: b"7", wait=NEVER_S) == b"7"


@pytest.mark.parametrize("size", [2, 5, 17, 40])
def test_a_ring_of_computations_of_any_length_ends(make_cache, size):
    """Each thread's computation needs the result of the next thread's, and the last one's that of
    the first."""
    cache = make_cache(key=int, value=int, max_entries=300)
    barrier = threading.Barrier(size)

    def ask(number):
        def compute():
            barrier.wait(PATIENCE_S)
            cache.get_or_compute((number + 1) % size, lambda: 0, wait=NEVER_S)
            return number

        assert cache.get_or_compute(number, compute, wait=NEVER_S) == number

    together(*(lambda number=number: ask(number) for number in range(size)))

    assert size < cache.stats().computed <= 2 * size


def test_a_circle_through_two_caches_ends_with_the_time_to_wait(make_cache):
    caches = [make_cache(key=int, value=int, max_entries=10) for _ in range(2)]
    barrier = threading.Barrier(2)

    def ask(first, second):
        def compute():
            barrier.wait(PATIENCE_S)
            return second.get_or_compute(1, lambda: 5, wait=0.1)

        assert first.get_or_compute(1, compute, wait=NEVER_S) == 5

    together(lambda: ask(*caches), lambda: ask(*reversed(caches)))


def compute_graph(cache, rng, keys, wait):
    """Ask for a key whose computation asks for other keys, whose computations do the same, at
    random."""
    depth = 0

    def value(key):
        nonlocal depth
        depth += 1
        if depth < 5:
            for other in rng.sample(keys, rng.randrange(3)):
                assert cache.get_or_compute(other, lambda other=other: value(other), wait=wait) == (
                    other
                )
        depth -= 1
        return key

    key = rng.choice(keys)
    assert cache.get_or_compute(key, lambda: value(key), wait=wait) == key


def compute_graphs(gate, name, seed, graphs):
    """Compute graphs in two threads of this process; return the longest time that one graph
    took."""
    longest = [0.0, 0.0]
    with Cache(name, key=int, value=int, timeout=PATIENCE_S) as cache:
        gate.wait()

        def work(thread):
            rng = random.Random(f"{seed}-{thread}")
            for graph in range(graphs):
                began = time.monotonic()
                compute_graph(cache, rng, range(graph // 5 * 8, graph // 5 * 8 + 8), NEVER_S)
                longest[thread] = max(longest[thread], time.monotonic() - began)

        together(lambda: work(0), lambda: work(1), seconds=ENDLESS_S)
    return max(longest)


@pytest.mark.parametrize(
    "graphs",
    [
        30,
        pytest.param(300, marks=pytest.mark.thorough),
        pytest.param(2500, marks=[pytest.mark.long, pytest.mark.timeout(ENDLESS_S)]),
    ],
)
def test_any_graph_of_computations_ends(make_cache, seed, graphs):
    """Four threads in two processes compute random graphs of keys, and none waits as long as its
    timeout."""
    cache = make_cache(key=int, value=int, max_entries=5000, timeout=PATIENCE_S)

    longest = run_together(
        "fork",
        *[(compute_graphs, cache.name, seed + number, graphs) for number in range(2)],
        timeout_s=ENDLESS_S,
    )

    print(f"{4 * graphs} graphs; the longest took {max(longest):.3f} s")
    assert max(longest) < NEVER_S  # true on any machine, however busy


# ---- odd computations ----


def test_a_computation_may_close_the_cache(cache):
    mine = Cache(cache.name, key=object, value=object)

    def compute():
        mine.close()
        return 7

    assert mine.get_or_compute("a", compute) == 7
    assert cache.get("a") in (None, 7)
    expect_free(cache)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError]
)
def test_any_exception_ends_the_claim(cache, error):
    def compute():
        cache.set("b", 1)
        cache.delete("a")
        raise error

    with pytest.raises(error):
        cache.get_or_compute("a", compute)

    expect_free(cache)


def test_a_result_that_cannot_be_encoded_ends_the_claim(cache):
    """The claim ends if the result cannot be encoded, as for instance a generator."""
    with pytest.raises(TypeError):
        cache.get_or_compute("a", lambda: (number for number in range(3)))

    expect_free(cache)


def test_endless_recursion_ends_its_claims(cache):
    def compute(number):
        return cache.get_or_compute(number, lambda: compute(number + 1))

    with pytest.raises(RecursionError):
        compute(0)

    expect_free(cache, 0)
    expect_free(cache, 50)


def test_a_generator_that_asked_for_a_value_may_be_abandoned(cache):
    def steps():
        while True:
            yield cache.get_or_compute("a", lambda: 1)

    one = steps()
    assert next(one) == 1
    one.close()
    expect_free(cache)


def test_a_signal_handler_may_ask_for_the_same_key(cache):
    """A signal handler asks for a key while its thread computes the key, and while its thread waits
    for it."""
    asked = []

    def handle(*_):
        asked.append(cache.get_or_compute("a", lambda: "in the handler", wait=NEVER_S))

    def compute():
        os.kill(os.getpid(), signal.SIGUSR1)
        return "computed"

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert cache.get_or_compute("a", compute) == "computed"
        cache.delete("a")
        with Child(hold_until_it_is_waited_for, cache.name, os.getpid()) as other:
            while "held" not in cache:
                time.sleep(0.001)  # a poll
            assert cache.get_or_compute("a", fail, wait=NEVER_S) == "the other's"
            other.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asked == ["in the handler", "the other's"]


def hold_until_it_is_waited_for(name, waiter):
    with Cache(name, key=object, value=object) as cache:

        def compute():
            before = cache.stats().misses
            cache.set("held", 1)
            while cache.stats().misses == before:
                time.sleep(0.001)  # a poll
            os.kill(waiter, signal.SIGUSR1)
            time.sleep(0.05)  # the handler probably begins before this ends
            return "the other's"

        cache.get_or_compute("a", compute)


def test_a_process_that_exits_while_it_computes_leaves_the_claim_to_another(cache):
    child = Child(cache.get_or_compute, "a", lambda: os._exit(3))
    assert child.join() == 3

    assert cache.get_or_compute("a", lambda: 7, wait=NEVER_S) == 7


def test_a_computation_that_forks_may_go_on_in_both(cache, tmp_path):
    """A computation forks. The child returns the result and does not store it; the parent still has
    the claim."""
    told = tmp_path / "told"

    def ask():
        def compute():
            if os.fork() == 0:
                return "child"
            os.wait()
            return "parent"

        found = cache.get_or_compute("a", compute)
        if found == "child":
            told.write_text(repr(cache.get("a")))
            os._exit(0)
        return found

    assert in_child(ask) == "parent"
    assert told.read_text() == "None"
    assert cache.get("a") == "parent"


def test_a_claim_of_the_parent_is_not_stored_by_a_child(cache):
    with cache.claim("a") as claim:
        assert in_child(lambda: claim.set("child")) is False
        assert claim.set("parent")

    assert cache.get("a") == "parent"


def compute_without_memory(cache):
    cache.get_or_compute("a", list)


def claim_without_memory(cache):
    with cache.claim("a") as claim:
        claim.set(1)


def take_mutex_without_memory(cache):
    with cache.mutex("a"):
        pass


@pytest.mark.parametrize(
    "act", [compute_without_memory, claim_without_memory, take_mutex_without_memory]
)
def test_a_claim_for_which_there_is_no_memory_is_free(cache, act):
    """One allocation of Python fails, the first, the second, and so on, until a failure has no
    effect any more; no claim is left."""
    testing = pytest.importorskip("_testcapi")
    act(cache)
    failed = succeeded = number = 0
    while succeeded < 5:
        cache.delete("a")
        testing.set_nomemory(number, number + 1)
        try:
            act(cache)
            succeeded += 1
        except MemoryError:
            failed += 1
            succeeded = 0
        finally:
            testing.remove_mem_hooks()
        cache.delete("a")
        assert not cache.mutex("a").locked()
        assert cache.get_or_compute("a", lambda: 7, wait=0, when_late="raise") == 7
        assert cache.get("a") == 7
        number += 1

    assert failed > 5


class Asks:
    """A value that asks for a key when it is pickled, or when it is unpickled."""

    def __init__(self, name, when):
        self.name, self.when = name, when

    def __reduce__(self):
        if self.when == "pickled":
            return ask_for, (self.name, False, ask_for(self.name, True))
        return ask_for, (self.name, True, 0)


def ask_for(name, asks, _=None):
    if not asks:
        return 5
    with Cache(name, key=object, value=object) as cache:
        return cache.get_or_compute("a", lambda: 6, wait=NEVER_S)


def test_a_value_whose_pickling_asks_for_its_own_key(cache):
    """The thread that pickles the value has the claim, so it computes the key instead of waiting
    for itself."""
    cache.get_or_compute("a", lambda: Asks(cache.name, "pickled"), wait=NEVER_S)

    assert cache.get("a") == 5
    expect_free(cache)


def test_a_value_whose_unpickling_asks_for_another_key(cache):
    cache.get_or_compute("b", lambda: Asks(cache.name, "unpickled"), wait=NEVER_S)

    assert cache.get("b") == 6
    assert cache.get("a") == 6


def test_a_value_whose_pickling_clears_the_cache(cache):
    class Clears:
        def __reduce__(self):
            cache.clear()
            return int, (7,)

    assert type(cache.get_or_compute("a", Clears)) is Clears
    assert cache.get("a") is None
    expect_free(cache)


def test_a_value_whose_pickling_fails_half_way(cache):
    class Fails:
        def __reduce__(self):
            cache.set("a", "stored by the pickling")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute("a", lambda: [b"x" * 5000, Fails()])

    assert cache.get("a") == "stored by the pickling"
    with pytest.raises(ZeroDivisionError):
        pickle.dumps(Fails())
    expect_free(cache)


def test_a_frozen_cache_computes_nothing(cache):
    cache.get_or_compute("a", lambda: 7)
    cache.handle.freeze()

    assert cache.get_or_compute("a", fail) == 7
    with pytest.raises(shmrhash.FrozenMap):
        cache.get_or_compute("b", fail)


@pytest.mark.parametrize("turns", [30, pytest.param(600, marks=pytest.mark.thorough)])
def test_threads_forks_and_signals_while_computing(cache, seed, turns):
    """Threads compute nested keys while the process forks children that do the same, and a timer's
    signals interrupt all of them. All values are right, and no claim is left."""
    before = signal.signal(signal.SIGALRM, lambda *_: cache.get_or_compute(-1, lambda: -1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    children = []
    try:

        def work(number):
            rng = random.Random(f"{seed}-{number}")
            for turn in range(turns):
                compute_graph(cache, rng, range(turn * 4, turn * 4 + 8), NEVER_S)

        threads = [threading.Thread(target=work, args=[number]) for number in range(3)]
        for thread in threads:
            thread.start()
        rng = random.Random(seed)
        for turn in range(turns // 10):
            keys = range(turn * 40, turn * 40 + 8)
            child = Child(compute_graph, cache, random.Random(turn), keys, NEVER_S)
            children.append(child)
            if rng.random() < 0.3:
                child.kill()
        for thread in threads:
            thread.join(4 * PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
        for child in children:
            if child.exitcode is None:
                child.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    cache.handle._recover()
    assert all(cache.get(key) in (None, key) for key in range(-1, turns * 4 + 8))
    cache.clear()
    cache.expire()
    assert len(cache) == 0
