"""Maps with one mistake each, which the histories must show, and one that is right.

A wrong map performs as several operations of the real map what must be one, or caches or delays a
value. In a window() no other operation may come between; a wrong map lets other processes run
there.

The right map performs each operation under one lock that all processes share. It also has the
optional operations, so that they are recorded and checked; each of those can be left unguarded.
"""

import contextlib
import multiprocessing
import os
import time

import shmrhash
from shmrhash import RHashMap
from support.history.recorder import KILL, Setting

ANY, NOEXIST, EXIST = 0, 1, 2
CACHED_NS = 20_000  # for how long a stale value is returned


def window():
    os.sched_yield()


def opened_as(kind, name):
    """Open the map of that name as one of this kind, with a lock of its own."""
    lock = multiprocessing.get_context("fork").Lock()
    return type(kind.__name__, (kind,), {"lock": lock}).open(name)


# ---- right: one operation at a time ----


class OneAtATime(RHashMap):
    """Every operation, however composed, is atomic. The lock's holder must not be killed."""

    lock = None
    unguarded = None  # the name of the operation that does not take the lock

    def guard(self, name):
        return contextlib.nullcontext() if name == self.unguarded else self.lock

    def lookup(self, key, flags=0):
        with self.lock:
            return super().lookup(key, flags)

    def __contains__(self, key):
        with self.lock:
            return super().__contains__(key)

    def update(self, key, value, flags=ANY):
        with self.lock:
            super().update(key, value, flags)

    def delete(self, key):
        with self.lock:
            super().delete(key)

    def lookup_and_delete(self, key, flags=0):
        with self.lock:
            return super().lookup_and_delete(key, flags)

    def add(self, key, delta, *, default=None, offset=0):
        with self.lock:
            return super().add(key, delta, default=default, offset=offset)

    def compare_and_swap(self, key, expected, new):
        with self.guard("compare_and_swap"):
            swaps = super().lookup(key) == expected
            window()
            if swaps:
                super().update(key, new)
            return swaps

    def exchange(self, key, new):
        with self.guard("exchange"):
            before = super().__getitem__(key)
            window()
            super().update(key, new)
            return before

    def setdefault(self, key, default):
        with self.guard("setdefault"):
            found = super().lookup(key)
            window()
            if found is None:
                super().update(key, default)
            return default if found is None else found

    def pop(self, key):
        with self.guard("pop"):
            found = super().__getitem__(key)
            window()
            with contextlib.suppress(shmrhash.KeyNotFound):
                super().delete(key)
            return found

    @contextlib.contextmanager
    def locked(self, key):
        with self.guard("locked"):
            value = bytearray(super().__getitem__(key))
            window()
            yield value
            super().update(key, value)


class SwapsUnguarded(OneAtATime):
    unguarded = "compare_and_swap"


class ExchangesUnguarded(OneAtATime):
    unguarded = "exchange"


class DefaultsUnguarded(OneAtATime):
    unguarded = "setdefault"


class PopsUnguarded(OneAtATime):
    unguarded = "pop"


class LocksNothing(OneAtATime):
    unguarded = "locked"


# ---- wrong ----


class InsertsAfterALook(RHashMap):
    """NOEXIST: two processes that both find the key absent both insert it."""

    def update(self, key, value, flags=ANY):
        if flags == NOEXIST:
            if super().__contains__(key):
                raise shmrhash.KeyExists(repr(key))
            window()
            flags = ANY
        super().update(key, value, flags)


class ReplacesAfterALook(RHashMap):
    """EXIST: a key that is deleted between the check and the store is there again."""

    def update(self, key, value, flags=ANY):
        if flags == EXIST:
            if not super().__contains__(key):
                raise shmrhash.KeyNotFound(repr(key))
            window()
            flags = ANY
        super().update(key, value, flags)


class TriesAndTakesBack(RHashMap):
    """NOEXIST: the value of an insertion that fails is visible until it is taken back."""

    def update(self, key, value, flags=ANY):
        if flags == NOEXIST and (before := super().lookup(key)) is not None:
            super().update(key, value)
            window()
            super().update(key, before)
            raise shmrhash.KeyExists(repr(key))
        super().update(key, value, flags)


class WritesHalves(RHashMap):
    """An update is visible half done before it is complete."""

    def update(self, key, value, flags=ANY):
        before = super().lookup(key)
        if before is not None and flags != NOEXIST:
            half = self.value_size // 16 * 8
            super().update(key, value[:half] + before[half:])
            window()
        super().update(key, value, flags)


class DeletesAndInserts(RHashMap):
    """An update of a present key: the key is absent between its deletion and its insertion."""

    def update(self, key, value, flags=ANY):
        if flags == ANY:
            with contextlib.suppress(shmrhash.KeyNotFound):
                super().delete(key)
                window()
        super().update(key, value, flags)


class LooksAndDeletes(RHashMap):
    """lookup_and_delete: two processes take the same value."""

    def lookup_and_delete(self, key, flags=0):
        value = super().__getitem__(key)
        window()
        with contextlib.suppress(shmrhash.KeyNotFound):
            super().delete(key)
        return value


class AddsAfterALook(RHashMap):
    """add: one of two additions is lost."""

    def add(self, key, delta, *, default=None, offset=0):
        before = super().add(key, 0, default=default, offset=offset)
        window()
        field = (before + delta).to_bytes(8, "little", signed=True)
        value = super().lookup(key)
        if value is not None:
            super().update(key, value[:offset] + field + value[offset + 8 :])
        return before + delta


class RemembersWhatItRead(RHashMap):
    """lookup: returns a value that this process read lately, although others have changed it."""

    def __init__(self, *_, **__):
        super().__init__()
        self.cache = {}

    def lookup(self, key, flags=0):
        value, read_ns = self.cache.pop(key, (None, 0))
        if time.monotonic_ns() - read_ns < CACHED_NS:
            return value
        value = super().lookup(key, flags)
        self.cache[key] = value, time.monotonic_ns()
        return value

    def update(self, key, value, flags=ANY):
        self.cache.pop(key, None)
        super().update(key, value, flags)

    def delete(self, key):
        self.cache.pop(key, None)
        super().delete(key)

    def lookup_and_delete(self, key, flags=0):
        self.cache.pop(key, None)
        return super().lookup_and_delete(key, flags)


class WritesLater(RHashMap):
    """update: returns at once, and is performed before the next operation of the same process."""

    def __init__(self, *_, **__):
        super().__init__()
        self.unwritten = None

    def write(self):
        if self.unwritten is not None:
            super().update(*self.unwritten)
            self.unwritten = None

    def update(self, key, value, flags=ANY):
        self.write()
        if flags == ANY:
            self.unwritten = key, value
        else:
            super().update(key, value, flags)

    def lookup(self, key, flags=0):
        self.write()
        return super().lookup(key, flags)

    def __contains__(self, key):
        self.write()
        return super().__contains__(key)

    def delete(self, key):
        self.write()
        super().delete(key)

    def lookup_and_delete(self, key, flags=0):
        self.write()
        return super().lookup_and_delete(key, flags)


class UndoesTheLiving(RHashMap):
    """check(), and with it recovery, undoes more than the operations of the dead."""

    def __init__(self, *_, **__):
        super().__init__()
        self.known = {}

    def update(self, key, value, flags=ANY):
        super().update(key, value, flags)
        self.known[key] = value

    def check(self):
        facts = super().check()
        for key, value in self.known.items():
            with contextlib.suppress(shmrhash.KeyNotFound):
                super().update(key, value, EXIST)
        return facts


WRONG = [
    (SwapsUnguarded, Setting()),
    (ExchangesUnguarded, Setting()),
    (DefaultsUnguarded, Setting()),
    (PopsUnguarded, Setting()),
    (LocksNothing, Setting()),
    (InsertsAfterALook, Setting()),
    (ReplacesAfterALook, Setting()),
    (TriesAndTakesBack, Setting()),
    (WritesHalves, Setting(value_size=264)),
    (DeletesAndInserts, Setting()),
    (LooksAndDeletes, Setting()),
    (AddsAfterALook, Setting(value_size=8, counter_at=0)),
    (RemembersWhatItRead, Setting()),
    (WritesLater, Setting()),
    (UndoesTheLiving, Setting(histories=4, signals=KILL)),
]
