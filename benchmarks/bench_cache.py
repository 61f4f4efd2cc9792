"""One hit of a Cache, and of memoized functions, beside other caches, in one run; and insertions.

    python benchmarks/bench_cache.py [--quick] [--rounds 400] [--json FILE]

Method. Every cache holds the same 1,000 entries under str keys, with values of three kinds: an int,
bytes of length 100, and a dict of an int, a str and a list. A round looks each key up once, in a
for loop of its own; the table has the least time of all rounds, less that of an empty loop, in ns
for one lookup. Rounds of the different caches alternate, so that a disturbance of the machine
concerns all. A cache that takes more than 5 us for a lookup looks up 50 keys in a twentieth of the
rounds.

- "typed" caches of shmrhash are declared with the type of the value, `object` for the dict.
- memoized functions have one str argument. cachetools' one has a lock, as threads need it.
- Caches in a server's or a file's memory are asked over UNIX sockets, or have their files in shared
  memory. Values other than bytes are pickled for them.
- "shared" says whether several processes can use the cache.

- "insert" stores 1,000 new keys with set(), in a Cache with room for them, and in one that is full
  and has to evict an entry for each.

What is not installed is left out, and the reason is printed.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import os
import pickle
import tempfile
import threading
import time

from report import finish, machine, print_facts, print_table, unique_name
from rivals import LeftOut, loop_call, own_code
from rivals_stores import Memcached, Redis

import shmrhash

KEYS = [f"user:{number}:profile" for number in range(1000)]
VALUES = {
    "int": 1234,
    "bytes": bytes(range(100)),
    "dict": {"id": 1, "name": "Ann", "tags": ["a", "b"]},
}
TYPES = {"int": int, "bytes": bytes, "dict": object}
SLOW_NS = 5000
SLOW_KEYS = 50
ROOM = 4096
MOST_BYTES = 64 << 20


def needed(module):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LeftOut(f"{module} is not installed") from None


def filled(cache, store, value):
    for key in KEYS:
        store(key, value)
    return cache


def memoized(decorate, value):
    """A memoized function that returns the value, with all results there."""

    def profile(key):
        return value

    # warp_cache finds its memory by this name.
    profile.__qualname__ = profile.__name__ = unique_name(type(value).__name__)
    function = decorate(profile)
    for key in KEYS:
        function(key)
    return function


# ---- the caches: each returns the function that is timed ----


def built_in(stack, kind, value):
    return dict.fromkeys(KEYS, value).get


def lru_cache(stack, kind, value):
    return memoized(functools.lru_cache(ROOM), value)


def cachetools_lru(stack, kind, value):
    cache = needed("cachetools").LRUCache(ROOM)
    return filled(cache, cache.__setitem__, value).get


def cachetools_memoized(stack, kind, value):
    cachetools = needed("cachetools")
    decorate = cachetools.cached(cachetools.LRUCache(ROOM), lock=threading.Lock())
    return memoized(decorate, value)


def ours(stack, kind, value, **options):
    cache = shmrhash.Cache(key=str, value=TYPES[kind], max_entries=ROOM, **options)
    stack.callback(cache.close)
    return filled(cache, cache.set, value).get


def ours_kept(stack, kind, value):
    return ours(stack, kind, value, copy=False)


def ours_dict(stack, kind, value):
    shared = shmrhash.SharedDict(key=str, value=TYPES[kind], max_entries=ROOM)
    stack.callback(shared.close)
    return filled(shared, shared.__setitem__, value).get


def ours_memoized(stack, kind, value, **options):
    cache = shmrhash.Cache(key=object, value=TYPES[kind], max_entries=ROOM)
    stack.callback(cache.close)
    return memoized(cache.memoize(**options), value)


def ours_memoized_kept(stack, kind, value):
    return ours_memoized(stack, kind, value, copy=False)


def warp_cache(stack, kind, value):
    warp = needed("warp_cache")
    return memoized(warp.cache(max_size=ROOM, backend="shared"), value)


def django_locmem(stack, kind, value):
    locmem = needed("django.core.cache.backends.locmem")
    cache = locmem.LocMemCache(unique_name(kind), {"OPTIONS": {"MAX_ENTRIES": ROOM}})
    return filled(cache, cache.set, value).get


def django_ours(stack, kind, value):
    needed("django")
    from shmrhash.django import ShmCache

    cache = ShmCache(unique_name(f"django-{kind}"), {"OPTIONS": {"MAX_BYTES": MOST_BYTES}})
    stack.callback(cache.shm.unlink)
    return filled(cache, cache.set, value).get


def diskcache(stack, kind, value):
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
    cache = needed("diskcache").Cache(folder)
    stack.callback(cache.close)
    return filled(cache, cache.set, value).get


def served(rival, stack, value):
    """The client of a server that holds the values, pickled unless they are bytes."""
    needed(rival.module)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
    os.chmod(folder, 0o777)  # memcached runs as another user
    server = rival(f"{folder}/socket", 32, 200, ROOM)
    stack.callback(server.close)
    plain = isinstance(value, bytes)
    filled(server.subject, server.subject.set, value if plain else pickle.dumps(value))
    get = server.subject.get
    return get if plain else lambda key: pickle.loads(get(key))


def redis(stack, kind, value):
    return served(Redis, stack, value)


def memcached(stack, kind, value):
    return served(Memcached, stack, value)


CACHES = {  # name: (function, shared)
    "dict.get": (built_in, False),
    "functools.lru_cache": (lru_cache, False),
    "cachetools LRUCache.get": (cachetools_lru, False),
    "cachetools.cached, with a lock": (cachetools_memoized, False),
    "Django locmem": (django_locmem, False),
    "Cache.get": (ours, True),
    "Cache.get, copy=False": (ours_kept, True),
    "memoized": (ours_memoized, True),
    "memoized, copy=False": (ours_memoized_kept, True),
    "SharedDict.get": (ours_dict, True),
    "Django, shmrhash": (django_ours, True),
    "warp_cache, shared": (warp_cache, True),
    "diskcache": (diskcache, True),
    "memcached": (memcached, True),
    "Redis or Valkey": (redis, True),
}


class Timed:
    """A function under test, and the least time of a call in all rounds so far."""

    def __init__(self, get, value):
        self.loop = own_code(loop_call(get))
        self.least_ns = float("inf")
        for key in KEYS[:SLOW_KEYS]:
            if get is not None and get(key) != value:
                raise RuntimeError(f"{get}: a wrong value")
        self.keys = KEYS[:SLOW_KEYS]
        self.round()
        self.is_slow = self.least_ns > SLOW_NS
        if not self.is_slow:
            self.keys, self.least_ns = KEYS, float("inf")

    def round(self):
        began = time.perf_counter_ns()
        self.loop(self.keys, None)
        spent = (time.perf_counter_ns() - began) / len(self.keys)
        self.least_ns = min(self.least_ns, spent)


def empty_loop(rounds):
    """The least time of an empty loop over the keys, for one key."""
    least = float("inf")
    for _ in range(rounds):
        began = time.perf_counter_ns()
        for _key in KEYS:
            pass
        least = min(least, (time.perf_counter_ns() - began) / len(KEYS))
    return least


def measure(kind, rounds, left_out):
    """{name of a cache: ns for a hit}. left_out: receives the reasons."""
    with contextlib.ExitStack() as stack:
        timed = {}
        for name, (make, _) in CACHES.items():
            try:
                timed[name] = Timed(make(stack, kind, VALUES[kind]), VALUES[kind])
            except LeftOut as reason:
                left_out[name] = str(reason)
        gc.disable()
        stack.callback(gc.enable)
        for number in range(rounds):
            for one in timed.values():
                if not one.is_slow or number % 20 == 0:
                    one.round()
        idle = empty_loop(rounds)
        return {name: one.least_ns - idle for name, one in timed.items()}


def measure_inserts(kind, rounds):
    """ns for a set() of a new key: with room for it, and in a full cache."""
    value, least = VALUES[kind], {"room": float("inf"), "full": float("inf")}
    options = {"key": str, "value": TYPES[kind], "max_bytes": MOST_BYTES}
    for number in range(rounds):
        keys = [f"key:{number}:{one}" for one in range(len(KEYS))]
        for where, entries in (("room", 8 * len(KEYS)), ("full", len(KEYS))):
            with shmrhash.Cache(max_entries=entries, **options) as cache:
                filled(cache, cache.set, value)
                began = time.perf_counter_ns()
                for key in keys:
                    cache.set(key, value)
                spent = (time.perf_counter_ns() - began) / len(keys)
            least[where] = min(least[where], spent)
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 rounds")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    facts = machine()
    print_facts(facts)
    left_out = {}
    rounds = 20 if options.quick else options.rounds
    found = {kind: measure(kind, rounds, left_out) for kind in VALUES}
    for name, reason in left_out.items():
        print(f"# left out: {name}: {reason}")
    rows = [
        {"cache": name, "shared": "yes" if shared else "no"}
        | {f"{kind}_ns": round(found[kind][name], 1) for kind in VALUES}
        for name, (_, shared) in CACHES.items()
        if name not in left_out
    ]
    print_table(rows)
    inserts = {kind: measure_inserts(kind, max(5, rounds // 20)) for kind in VALUES}
    rows += [
        {"cache": f"Cache: insert, {where}", "shared": "yes"}
        | {f"{kind}_ns": round(inserts[kind][where], 1) for kind in VALUES}
        for where in ("room", "full")
    ]
    print()
    print_table(rows[-2:])
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
