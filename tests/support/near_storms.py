"""Storms around near caches of the server of near.py: processes read while another one writes, and
are killed, stopped and cut off.

The reads are judged by the acknowledgements that the writer got (Written). All seeds of a storm are
made from one.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import queue
import random
import signal
import time

from shmrhash import gc
from shmrhash._near.cache import NearCache
from support.near import ServedSource, Server, Written

KEYS = [b"key:%d" % number for number in range(64)]
PATIENCE_S = 20
LONG_S = 120  # for the end of a process on a busy machine
FORK = multiprocessing.get_context("fork")


@dataclasses.dataclass(frozen=True)
class Weather:
    """The parameters of a storm. pause: the most seconds between two writes. delay: the most
    seconds for which the server holds an answer back. flushes: how many of a thousand writes are
    flushes. stopped: for how many times max_stale a process is stopped at most. near: the class of
    the near caches; server: that of the server."""

    max_stale: float = 0.3
    pause: float = 0.015
    delay: float = 0.03
    keys: int = len(KEYS)
    readers: int = 3
    blows: tuple = ("reader", "cut", "stop")
    flushes: int = 5
    stopped: float = 2.0
    options: tuple = ()
    near: type = NearCache
    server: type = Server


@dataclasses.dataclass
class Outcome:
    """reads: their number. wrong: descriptions of wrong reads. at_rest: whether the near cache and
    the server agree at the end. info: info() of a near cache at the end."""

    reads: int
    wrong: list
    at_rest: bool
    info: dict

    @property
    def is_right(self):
        return not self.wrong and self.at_rest


def start(function, *arguments):
    process = FORK.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def serve(address, ready, delay=Weather.delay, kind=Server):
    kind(address, delay).serve(ready.set)


def served(address, delay=Weather.delay, kind=Server):
    """Start a server in a process of its own; return the process once the server answers."""
    ready = FORK.Event()
    process = start(serve, address, ready, delay, kind)
    assert ready.wait(PATIENCE_S)
    return process


def near_of(address, name, kind=NearCache, **options):
    given = {"max_stale": Weather.max_stale, "max_entries": 1000, "max_bytes": 1 << 20}
    return kind(ServedSource(address), name=name, **(given | options))


class Storm:
    """One storm: run() is the whole of it."""

    def __init__(self, folder, name, seconds, seed, weather=None):
        self.folder = folder
        self.name = name
        self.seconds = seconds
        self.seed = seed
        self.weather = Weather() if weather is None else weather
        self.keys = KEYS[: self.weather.keys]
        self.address = str(folder / "server")
        self.stop = FORK.RawValue("b", 0)  # no lock: a reader may be killed
        self.tracker = FORK.RawValue("i", 0)  # the pid of the process that last said that it tracks
        self.times = FORK.Queue()
        self.chance = random.Random(seed)

    def near(self):
        options = dict(self.weather.options)
        options["max_stale"] = self.weather.max_stale
        return near_of(self.address, self.name, self.weather.near, **options)

    # ---- what the processes do ----

    def write(self):
        """Write versions of random keys, and record when each was acknowledged."""
        chance, source = random.Random(self.seed + 1), ServedSource(self.address)
        written, limit = Written(self.keys), time.monotonic() + PATIENCE_S
        # On a busy machine the first watch may come late. Half of all storms are not over by then.
        while self.seed % 2 and not self.tracker.value and time.monotonic() < limit:
            time.sleep(0.001)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if chance.random() * 1000 < self.weather.flushes:
                source.ask("flush")
                said = None, time.monotonic()
                written.flushed(said[1])
            else:
                key = chance.choice(self.keys)
                source.set(key, written.next_value(key), None)
                said = key, time.monotonic()
                written.acknowledged(*said)
            self.times.put(said)
            time.sleep(chance.random() * self.weather.pause)
        self.times.put(None)

    def read(self):
        """Read random keys; write into a file the values, and when the last read of each value
        began."""
        chance = random.Random(self.seed + os.getpid())
        with self.near() as near, open(self.folder / f"seen.{os.getpid()}", "wb", 0) as file:
            while not self.stop.value:
                if near.info()["tracks_here"]:
                    self.tracker.value = os.getpid()
                portion = {}
                for _ in range(50):
                    key, began = chance.choice(self.keys), time.monotonic()
                    portion[key, near.get(key)] = began
                file.write(pickle.dumps(portion))
                time.sleep(0.002)

    # ---- what the test's process does ----

    def run(self):
        weather = self.weather
        others = [served(self.address, weather.delay, weather.server), start(self.write)]
        readers = [start(self.read) for _ in range(weather.readers)]
        try:
            written = self.strike_on(readers)
            time.sleep(2 * weather.max_stale)
            info, at_rest = self.look_at_rest()
            self.stop.value = 1
            for reader in readers:
                reader.join(LONG_S)
                assert reader.exitcode == 0, f"a reader failed, or hangs: {reader.exitcode}"
        finally:
            for process in (*readers, *others):
                process.kill()
                process.join()
        gc()  # the last users of the segments may have been killed
        reads, wrong = 0, []
        for portion in self.portions():
            for (key, found), began in portion.items():
                reads += 1
                reason = written.wrong(key, found, began, weather.max_stale)
                wrong += [reason] if reason else []
        return Outcome(reads, wrong, at_rest, info)

    def strike_on(self, readers):
        """Strike until the writer has ended; return what it wrote."""
        written, stale = Written(self.keys), self.weather.max_stale
        next_blow = time.monotonic() + 1.3 * stale
        while True:  # until the writer has ended
            try:
                said = self.times.get(timeout=0.005)
            except queue.Empty:
                said = ()
            if said is None:
                return written
            if said and said[0] is None:
                written.flushed(said[1])
            elif said:
                written.acknowledged(*said)
            if self.weather.blows and time.monotonic() > next_blow:
                next_blow = time.monotonic() + stale * (0.8 + self.chance.random())
                self.strike(readers)

    def strike(self, readers):
        """Strike once. Half of the blows against readers are against the one that tracks."""
        blow, at = self.chance.choice(self.weather.blows), self.chance.randrange(len(readers))
        pids = [reader.pid for reader in readers]
        if self.chance.random() < 0.5 and self.tracker.value in pids:
            at = pids.index(self.tracker.value)
        if blow == "cut":
            ServedSource(self.address).ask("cut")
        elif blow == "reader":
            readers[at].kill()
            readers[at].join()
            assert readers[at].exitcode == -signal.SIGKILL, "a reader failed"
            readers[at] = start(self.read)
        else:
            os.kill(readers[at].pid, signal.SIGSTOP)
            time.sleep(self.chance.random() * self.weather.stopped * self.weather.max_stale)
            os.kill(readers[at].pid, signal.SIGCONT)

    def look_at_rest(self):
        with self.near() as near:
            near.ready(PATIENCE_S)
            info = near.info()
            found = {key: near.get(key) for key in self.keys}
            near._state.entries.check()
            near._state.words.check()
        there = ServedSource(self.address).ask("get", self.keys)
        return info, found == dict(zip(self.keys, there, strict=True))

    def portions(self):
        """Yield what all readers wrote; the last portion of a killed reader may be incomplete."""
        for path in self.folder.glob("seen.*"):
            with open(path, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
                while True:
                    yield pickle.load(file)
