"""The cost of a lock primitive without waiters: shmrhash beside multiprocessing and threading.

bench_locks.py measures it. Each operation is a loop of Python over one object; the libraries take
turns, so that a ratio compares samples of the same moment.
"""

import importlib
import multiprocessing
import os
import statistics
import threading
import time

from report import spread

import shmrhash

CALLS = 20_000


def loop_pair(lock):
    acquire, release = lock.acquire, lock.release
    for _ in range(CALLS):
        acquire()
        release()


def loop_with(lock):
    for _ in range(CALLS):
        with lock:
            pass


def loop_is_set(event):
    is_set = event.is_set
    for _ in range(CALLS):
        is_set()


def loop_set(event):
    set_event = event.set
    for _ in range(CALLS):
        set_event()


def loop_set_clear(event):
    set_event, clear = event.set, event.clear
    for _ in range(CALLS):
        set_event()
        clear()


def loop_notify(condition):
    notify = condition.notify
    for _ in range(CALLS):
        with condition:
            notify()


OPERATIONS = {
    "Lock, acquire and release": ("Lock", loop_pair),
    "Lock, with": ("Lock", loop_with),
    "RLock, acquire and release": ("RLock", loop_pair),
    "RLock, with": ("RLock", loop_with),
    "Semaphore, acquire and release": ("Semaphore", loop_pair),
    "Semaphore, with": ("Semaphore", loop_with),
    "Event.is_set": ("Event", loop_is_set),
    "Event.set, again": ("Event", loop_set),
    "Event.set and clear": ("Event", loop_set_clear),
    "Condition, with and notify": ("Condition", loop_notify),
}


class PosixSemaphore:
    """A named semaphore of posix_ipc, as a lock."""

    def __init__(self):
        posix_ipc = importlib.import_module("posix_ipc")
        name = f"/bench-locks-{os.getpid()}"
        self._semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=1)
        self._semaphore.unlink()
        self.acquire = self._semaphore.acquire
        self.release = self._semaphore.release

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_error):
        self.release()


def posix_types():
    """Return posix_ipc's types by their names in threading, none where it is not installed."""
    try:
        importlib.import_module("posix_ipc")
    except ImportError:
        return {}
    return {"Lock": PosixSemaphore, "Semaphore": PosixSemaphore}


def measure_primitives(rounds):
    """One row for each operation and library that has it; the ratio is to multiprocessing."""
    libraries = {
        "shmrhash": vars(shmrhash),
        "multiprocessing": {
            kind: getattr(multiprocessing, kind) for kind, _ in OPERATIONS.values()
        },
        "threading": vars(threading),
        "posix_ipc": posix_types(),
    }
    subjects = {
        (name, library): (loop, types[kind]())
        for name, (kind, loop) in OPERATIONS.items()
        for library, types in libraries.items()
        if kind in types
    }
    samples = {subject: [] for subject in subjects}
    for _ in range(rounds):
        for subject, (loop, thing) in subjects.items():
            start = time.perf_counter()
            loop(thing)
            samples[subject].append((time.perf_counter() - start) / CALLS * 1e9)
    return [
        {
            "operation": name,
            "library": library,
            "ns": spread(times),
            "ratio_multiprocessing": statistics.median(
                one / other
                for one, other in zip(times, samples[name, "multiprocessing"], strict=True)
            ),
        }
        for (name, library), times in samples.items()
    ]


def primitive_cells(row):
    """A row as text, for a table."""
    return {
        "operation": row["operation"],
        "library": row["library"],
        "ns": f"{row['ns']['median']:.0f}",
        "(min .. max)": f"({row['ns']['min']:.0f} .. {row['ns']['max']:.0f})",
        "/ multiprocessing": f"{row['ratio_multiprocessing']:.2f}",
    }
