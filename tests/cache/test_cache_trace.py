"""CacheTrace notes the operations of a cache while the trace runs; a cache without a trace has the
methods of its class."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections import Counter

import pytest
from support.children import Child, Partner, in_child, kill

from shmrhash import CacheTrace, InvalidArgument
from shmrhash import _tracing as tracing

KINDS = {
    tracing.HIT: "hit",
    tracing.MISS: "miss",
    tracing.SET: "set",
    tracing.DELETE: "delete",
    tracing.CLEAR: "clear",
}
ROUNDS = 3000  # more records than wait to be written
WORKERS = 3


@pytest.fixture
def cache(make_cache):
    return make_cache(key=str, value=object, max_entries=1000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "asked.trace"


def records(path):
    """Return (digest, nanoseconds, kind) of each record in the order of time; assert that all
    records are whole."""
    content = path.read_bytes()[tracing.HEAD_BYTES :]
    assert len(content) % tracing.RECORD.size == 0
    found = [
        (key, *divmod(word, tracing.KINDS)) for key, word in tracing.RECORD.iter_unpack(content)
    ]
    return sorted(found, key=lambda record: record[1])


def events(path):
    """Return (kind in words, number of the key by its first appearance) in the order of time."""
    numbers = {}
    return [
        (KINDS[kind], None if kind == tracing.CLEAR else numbers.setdefault(key, len(numbers)))
        for key, _, kind in records(path)
        if kind in KINDS
    ]


def total(path, kind):
    return sum(number for number, _, its in records(path) if its == kind)


async def acompute(cache, key):
    async def function():
        return 1

    return await cache.aget_or_compute(key, function)


def claim(cache, key):
    with cache.claim(key) as claimed:
        if not claimed.found:
            claimed.set(1)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda c: c.get("a"), ["miss 0"]),
        (lambda c: c.get("there"), ["hit 0"]),
        (lambda c: c.get_many(["there", "a", "there"]), ["hit 0", "miss 1", "hit 0"]),
        (lambda c: c.get_or_compute("there", list), ["hit 0"]),
        (lambda c: c.get_or_compute("a", list), ["miss 0", "set 0"]),
        (lambda c: asyncio.run(acompute(c, "a")), ["miss 0", "set 0"]),
        (lambda c: c.memoize(key=str)(abs)(-5), ["miss 0", "set 0"]),
        (lambda c: c.set_many([("a", 1), ("b", 2)]), ["set 0", "set 1"]),
        (lambda c: claim(c, "there"), ["hit 0"]),
        (lambda c: claim(c, "a"), ["miss 0", "set 0"]),
        (lambda c: c.set("a", 1), ["set 0"]),
        (lambda c: c.set_many({"a": 1, "b": 2}), ["set 0", "set 1"]),
        (lambda c: c.set_many(iter([("a", 1), ("b", 2)])), ["set 0", "set 1"]),
        (lambda c: c.add("a", 1), ["set 0"]),
        (lambda c: c.replace("there", 2), ["set 0"]),
        (lambda c: c.update_with("there", lambda value: value), ["set 0"]),
        (lambda c: c.delete("there"), ["delete 0"]),
        (lambda c: c.pop("there"), ["delete 0"]),
        (lambda c: c.clear(), ["clear None"]),
    ],
)
def test_each_operation_is_noted(cache, path, act, expected):
    cache.set("there", 1)

    with CacheTrace(cache, path):
        act(cache)

    assert [f"{kind} {number}" for kind, number in events(path)] == expected
    asked = [word for word in expected if word[0] in "hm"]
    assert total(path, tracing.ASKED) == len(asked)
    assert total(path, tracing.FOUND) == sum(word[0] == "h" for word in asked)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("stale", [None, 30])
def test_hits_of_memoized_functions_are_noted(make_cache, path, copy, stale):
    """Hits of memoized functions, which without a trace only the core sees, are noted, also with
    keyword arguments and of coroutines."""
    cache = make_cache(max_entries=1000)
    options = {"copy": copy, "ttl": 60} | ({} if stale is None else {"stale": stale})

    @cache.memoize(**options)
    def half(number):
        return [number / 2]

    @cache.memoize(**options)
    async def third(number):
        return [number / 3]

    def ask():
        for number in range(6):
            half(number % 2)
            half(number=number % 2)
            asyncio.run(third(number % 2))

    with CacheTrace(cache, path):
        ask()
    counted = cache.stats()
    ask()

    kinds = Counter(kind for kind, _ in events(path))
    assert kinds == {"hit": 3 * 4, "miss": 3 * 2, "set": 3 * 2}
    assert (total(path, tracing.ASKED), total(path, tracing.FOUND)) == (18, 12)
    assert (counted.hits, counted.misses) == (12, 6)


def test_a_namespace_of_a_traced_cache_works_as_ever(make_cache, path):
    cache = make_cache(key=str, value=int, max_entries=100, tags=True)
    shop = cache.namespace("shop")

    with CacheTrace(cache, path):
        assert shop.set_many({"a": 1, "b": 2}) == []
        assert shop.get_many(["a", "c"]) == {"a": 1}

    assert [kind for kind, _ in events(path)] == ["set", "set", "hit", "miss"]


def test_operations_do_what_they_do_without_a_trace(cache, path):
    """The results, defaults and exceptions of a traced cache are those of one without a trace."""
    with CacheTrace(cache, path):
        assert cache.get("a") is None
        assert cache.get("a", 5) == 5
        assert cache.get_or_compute("a", lambda: None) is None
        assert cache.get("a", 5) is None
        assert cache.set_many({"b": 1}) == []
        assert cache.pop("b", 7) == 1
        assert cache.add("a", 1) is False
        with pytest.raises(TypeError):
            cache.get(5)
        with pytest.raises(ZeroDivisionError):
            cache.get_or_compute("c", lambda: 1 // 0)

    assert ("miss", 2) in events(path)


def test_a_trace_that_is_stopped_twice_leaves_the_next_one(cache, path, tmp_path):
    first = CacheTrace(cache, path)
    first.stop()

    with CacheTrace(cache, tmp_path / "second") as second:
        first.stop()
        cache.get("a")
        assert second.running

    assert events(tmp_path / "second") == [("miss", 0)]


def test_a_cache_that_is_not_traced_has_the_methods_of_its_class(cache, path):
    before = dict(vars(cache))

    trace = CacheTrace(cache, path)
    assert "get" in vars(cache)
    trace.stop()
    trace.stop()

    assert vars(cache) == before
    assert not trace.running


def test_a_sample_has_all_lookups_of_some_keys(cache, path, tmp_path):
    """Each process traces the same sample of keys, all lookups of these, and no others."""

    def ask():
        for key in range(400):
            for _ in range(3):
                cache.get(str(key))

    with CacheTrace(cache, path, sample=0.25):
        ask()
    in_child(lambda: CacheTrace(cache, path, sample=0.25) and ask())
    with CacheTrace(cache, tmp_path / "whole"):
        ask()

    sampled = [key for key, _, kind in records(path) if kind == tracing.MISS]
    whole = {key for key, _, kind in records(tmp_path / "whole") if kind == tracing.MISS}
    assert set(sampled) == {key for key in whole if key < 0.25 * tracing.DIGEST_MAX}
    assert 50 < len(set(sampled)) < 150
    assert total(path, tracing.ASKED) == 1200  # the child ended by os._exit(), so it wrote no count


def test_processes_share_a_file_of_whole_records(cache, path):
    """C1: all records in the file are whole although one of the processes is killed, and a forked
    child does not write its parent's records a second time."""
    trace = CacheTrace(cache, path)
    cache.get("of the parent")

    def ask():
        for number in range(ROUNDS):
            cache.get(str(number))
        trace.stop()

    def ask_on(parent):
        for number in range(2 * ROUNDS):
            cache.get(str(number))
        parent.say()
        parent.wait()

    children = [Child(ask) for _ in range(WORKERS)]
    with Partner(ask_on) as victim:
        victim.hear()
        kill(victim)
    for child in children:
        child.result()
    trace.stop()

    asked = [key for key, _, kind in records(path) if kind == tracing.MISS]
    counts = Counter(asked)
    assert counts[asked[0]] == 1  # the first record is of the parent, and is there once
    assert sum(count >= WORKERS for count in counts.values()) == ROUNDS
    assert len(asked) > WORKERS * ROUNDS + 1  # some records are the victim's
    assert total(path, tracing.ASKED) >= WORKERS * ROUNDS + 1


def test_a_trace_ends_by_itself(cache, path, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "_PENDING_NS", 0)  # write, and look at the limits, each time
    small = CacheTrace(cache, path, max_bytes=tracing.HEAD_BYTES + 200)
    for number in range(20):
        cache.get(str(number))
    assert not small.running
    assert path.stat().st_size < tracing.HEAD_BYTES + 400

    short = CacheTrace(cache, tmp_path / "short", seconds=0)
    cache.get("a")
    assert not short.running
    assert "get" not in vars(cache)


def test_a_trace_that_cannot_be_written_does_no_harm(cache, path, monkeypatch, caplog):
    monkeypatch.setattr(tracing, "_PENDING_NS", 0)
    trace = CacheTrace(cache, path)
    os.dup2(os.open(os.devnull, os.O_RDONLY), trace._fd)
    cache.set("a", 1)

    with caplog.at_level(logging.WARNING, "shmrhash"):
        assert cache.get("a") == 1

    assert not trace.running
    assert cache.get("a") == 1
    assert "the trace of cache" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}", b"notes\n" * 200])
def test_another_file_is_refused(cache, path, content):
    path.write_bytes(content)

    with pytest.raises(InvalidArgument, match="is not a trace of cache"):
        CacheTrace(cache, path)

    assert path.read_bytes() == content
    assert "get" not in vars(cache)


def test_wrong_arguments_are_refused(cache, path, tmp_path):
    for sample in (0, -1, 1.5):
        with pytest.raises(InvalidArgument, match="sample"):
            CacheTrace(cache, path, sample=sample)
    with CacheTrace(cache, path), pytest.raises(InvalidArgument, match="already"):
        CacheTrace(cache, path)
    with pytest.raises(InvalidArgument, match="not a trace of cache"):
        CacheTrace(cache, path, sample=0.5)
    with pytest.raises(OSError, match="No such file"):
        CacheTrace(cache, tmp_path / "none" / "x")


def test_the_environment_asks_for_a_trace(cache, path):
    """The environment variable names one cache, which each process that opens it traces."""
    program = f"""
from shmrhash import Cache, CacheTrace
with Cache({cache.name!r}, key=str, value=object) as cache, Cache(key=int) as other:
    cache.get("a"), other.get(1), print("get" in vars(other))
"""
    settings = os.environ | tracing.variables(cache.name, str(path), 1.0, None)

    def run(**more):
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd="/", env=settings | more, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    assert run() == "False\n"
    assert events(path) == [("miss", 0)]
    assert "no cache is traced" in run(SHMRHASH_TRACE="nonsense")
    late = json.dumps(json.loads(settings["SHMRHASH_TRACE"]) | {"until_ns": 1})
    assert run(SHMRHASH_TRACE=late) == "False\n"
    assert len(events(path)) == 1
