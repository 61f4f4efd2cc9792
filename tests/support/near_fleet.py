"""Fleets: many near caches around one server of Redis or Valkey, in the same few processes.

A run is the life of one near cache: it has segments, a prefix, keys, a tracker and readers of its
own, and versions of its own that judge each read (Written). Most of a run is waiting, so one fleet
runs dozens at the same time, and they share what is expensive: the server, the processes, and the
blows against these. All processes but one are killed; each of them is the tracker of some near
caches and a reader of all. What happens to one near cache alone happens in its source
(RoughSource): answers that are late, a tracker's thread that stops at a bad moment, a connection
that is lost.

max_stale is short, so that beats and takeovers, which take parts of it, are frequent.

    python -m support.near_fleet --seconds 600 --lanes 2
"""

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path

from shmrhash import gc
from shmrhash._near.cache import NearCache
from shmrhash._near.connection import Address, Connection
from shmrhash._near.resp import command
from support.children import die_with_parent
from support.near import Written
from support.near_rough import RoughSource
from support.near_servers import Server, programs

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 600  # for the beginning or end of a fleet on a busy machine
READS = 4  # keys that a reader reads without a pause
FLUSH_S = 0.1  # between two portions that a reader reports
WRITE_S = 0.005  # between two portions of writes
STACK_BYTES = 256 << 10


@dataclasses.dataclass(frozen=True)
class Plan:
    """caches: how many near caches. seconds: of the blows. hosts: processes. keys: of a near cache.
    pause: seconds from one of its writes to the next. rest: the longest time in which no thread of
    a reader reads. delay: the most seconds for which an answer is held back. near, source: classes.
    """

    caches: int = 40
    seconds: float = 1.0
    hosts: int = 2
    keys: int = 8
    max_stale: float = 0.2
    pause: float = 0.025
    rest: float = 0.016
    delay: float = 0.03
    blows: tuple = ("cut", "cut", "flush", "sleep", "stop", "stop", "restart")
    near: type = NearCache
    source: type = RoughSource


@dataclasses.dataclass
class Outcome:
    """The figures of some runs. served: in how many of them values were served from memory."""

    runs: int = 0
    served: int = 0
    reads: int = 0
    hits: int = 0
    writes: int = 0
    takeovers: int = 0
    epochs: int = 0
    blows: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    wrong: list = dataclasses.field(default_factory=list)

    def add(self, other):
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self):
        blows = ", ".join(f"{count} {kind}" for kind, count in sorted(self.blows.items()))
        return (
            f"{self.runs} runs ({self.served} served from memory), {self.reads} reads, {self.hits} "
            f"hits, {self.writes} writes, {self.takeovers} takeovers, {self.epochs} epochs; blows "
            f"to a fleet: {blows}; {len(self.wrong)} wrong"
        )


class Fleet:
    """One fleet: run() is the whole of it."""

    def __init__(self, server, folder, name, seed, plan):
        self.server, self.folder, self.name, self.seed, self.plan = server, folder, name, seed, plan
        self.chance = random.Random(seed)
        self.prefixes = [b"%d.%d:" % (seed, at) for at in range(plan.caches)]
        self.keys = [[b"%b%d" % (each, n) for n in range(plan.keys)] for each in self.prefixes]
        self.written = [Written(keys) for keys in self.keys]
        self.stop = FORK.RawValue("b", 0)
        self.ready = FORK.RawArray("b", plan.hosts)
        self.outcome = Outcome(runs=plan.caches)

    # ---- what a host does ----

    def near(self, client, host, at):
        source = self.plan.source(client, self.prefixes[at], self.plan, f"{self.seed} {host} {at}")
        return self.plan.near(
            source,
            name=f"{self.name}-{at}",
            max_stale=self.plan.max_stale,
            max_entries=100,
            max_bytes=1 << 20,
        )

    def sail(self, host):
        """Open all near caches, and read them, until this process is killed or told to stop."""
        import redis

        die_with_parent()
        threading.stack_size(STACK_BYTES)
        client = redis.Redis(unix_socket_path=self.server.path, socket_timeout=20)
        log = os.open(self.folder / f"seen.{host}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nears, readers = {}, []
        for number in range(self.plan.caches):
            # Each process opens them in another order, so that each becomes the tracker of some.
            at = (number + host * self.plan.caches // self.plan.hosts) % self.plan.caches
            nears[at] = self.near(client, host, at)
            readers.append(threading.Thread(target=self.read, args=(nears[at], host, at, log)))
            readers[-1].start()
        self.ready[host] = 1
        for reader in readers:
            reader.join()
        for at, near in nears.items():
            self.look_at_rest(near, at, log)
        for near in nears.values():
            near._tracker._ended.set()  # ends all at once; otherwise close() would wait for each
        for near in nears.values():
            near.close()

    def read(self, near, host, at, log):
        chance = random.Random(f"{self.seed} {host} {at} reads")
        seen, written_down = {}, time.monotonic()
        while not self.stop.value:
            for _ in range(READS):
                self.read_one(near, at, chance.choice(self.keys[at]), seen)
            if time.monotonic() - written_down > FLUSH_S:
                os.write(log, pickle.dumps((at, seen, None)))
                seen, written_down = {}, time.monotonic()
            time.sleep(chance.random() * self.plan.rest)
        os.write(log, pickle.dumps((at, seen, None)))

    def read_one(self, near, at, key, seen):
        import redis

        began = time.monotonic()
        with contextlib.suppress(redis.exceptions.RedisError):  # the server may be away
            found = near.get(key)
            count, _ = seen.get((key, found), (0, 0))
            seen[key, found] = count + 1, began

    def look_at_rest(self, near, at, log):
        """Read each key once more, and report this near cache's figures."""
        seen = {}
        for key in self.keys[at]:
            self.read_one(near, at, key, seen)
        info = near.info()
        near._state.entries.check()
        near._state.words.check()
        epochs = sum(node["epochs"] for node in info["nodes"].values())
        os.write(
            log, pickle.dumps((at, seen, (info["entries"]["hits"], info["takeovers"], epochs)))
        )

    # ---- what the fleet's own process does ----

    def run(self):
        hosts = [FORK.Process(target=self.sail, args=(at,)) for at in range(self.plan.hosts)]
        for each in hosts:
            each.start()
        try:
            self.rage(hosts)
            time.sleep(1.5 * self.plan.max_stale)
            self.stop.value = 1
            last = [each for each in hosts if each.exitcode is None]
            for each in last:
                each.join(PATIENCE_S)
                assert each.exitcode == 0, f"a host failed, or hangs: {each.exitcode}"
        finally:
            for each in hosts:
                each.kill()
                each.join()
        gc()  # the last user of a segment may have been killed
        self.judge()
        return self.outcome

    def rage(self, hosts):
        """Write until all blows are done. They begin when all processes have all near caches."""
        self.connection = Connection(Address({"path": self.server.path}))
        self.connection.call("FLUSHALL")
        blows, begin, limit = [], 0.0, time.monotonic() + PATIENCE_S
        while blows or not begin:
            now = time.monotonic()
            assert now < limit, "a fleet is not made"
            if not begin and all(self.ready):
                begin = now
                blows = self.schedule(hosts, now)
            while blows and blows[0][0] <= now:
                _, kind, blow = blows.pop(0)
                self.outcome.blows[kind] += kind != "end"
                blow()
            self.write()
            time.sleep(WRITE_S)
        self.connection.close()

    def schedule(self, hosts, begin):
        """Return the blows in their order, as (moment, name, function): the deaths of all hosts but
        one, and two others."""
        chance, plan = self.chance, self.plan
        made = []

        def add(moment, kind, function, *arguments):
            made.append((moment, len(made), kind, lambda: function(*arguments)))

        for dies in chance.sample(hosts, plan.hosts - 1):
            add(begin + plan.seconds * (0.2 + 0.8 * chance.random()), "kill", self.kill, dies)
        for kind in chance.sample(plan.blows, 2):
            moment = begin + plan.seconds * chance.random()
            if kind == "stop":
                victim = chance.choice(hosts)
                add(moment, "stop", self.signal, victim, signal.SIGSTOP)
                moment += 2.5 * plan.max_stale * chance.random()
                add(moment, "end", self.signal, victim, signal.SIGCONT)
            else:
                add(moment, kind, getattr(self, kind))
        add(begin + plan.seconds, "end", lambda: None)
        return [(moment, kind, blow) for moment, _, kind, blow in sorted(made)]

    def kill(self, host):
        host.kill()
        host.join()
        assert host.exitcode == -signal.SIGKILL, "a host failed"

    def signal(self, host, number):
        if host.exitcode is None:
            os.kill(host.pid, number)

    def cut(self):
        """Close all connections but this one."""
        self.connection.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def flush(self):
        self.connection.call("FLUSHALL")
        self.all_are_absent()

    def sleep(self):
        self.connection.call(
            "DEBUG", "SLEEP", str(self.chance.random() * 1.5 * self.plan.max_stale)
        )

    def restart(self):
        """Kill the server, and start it again without any key."""
        self.connection.close()
        self.server.kill()
        self.server.start()
        self.connection = Connection(Address({"path": self.server.path}))
        self.all_are_absent()

    def all_are_absent(self):
        moment = time.monotonic()
        for each in self.written:
            each.flushed(moment)

    def write(self):
        """Write for some near caches in one portion; the writes are acknowledged when all have been
        executed."""
        count = max(1, round(self.plan.caches * WRITE_S / self.plan.pause))
        words, keys = [], []
        for at in self.chance.sample(range(self.plan.caches), count):
            key = self.chance.choice(self.keys[at])
            keys.append((at, key))
            words.append(command("SET", key, self.written[at].next_value(key)))
        self.connection.send(b"".join(words))
        for _ in words:
            assert self.connection.answer() == b"OK"
        moment = time.monotonic()
        for at, key in keys:
            self.written[at].acknowledged(key, moment)
        self.outcome.writes += count

    def portions(self):
        """Yield what the hosts reported; the last portion of a killed host may be incomplete."""
        for path in self.folder.glob("seen.*"):
            with open(path, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
                while True:
                    yield pickle.load(file)

    def judge(self):
        rests = 0
        for at, seen, figures in self.portions():
            for (key, found), (count, began) in seen.items():
                self.outcome.reads += count
                reason = self.written[at].wrong(key, found, began, self.plan.max_stale)
                if reason:
                    self.outcome.wrong.append(f"seed {self.seed}: {reason}")
            if figures is not None:
                hits, takeovers, epochs = figures
                rests += 1
                self.outcome.hits += hits
                self.outcome.takeovers += takeovers
                self.outcome.epochs += epochs
                self.outcome.served += hits > 0
        assert rests == self.plan.caches, "the last host has not looked at each near cache at rest"


def fleets(program, folder, name, seed, plan, seconds, count=1 << 62):
    """Run fleets around one server, one after the other, for so many seconds; yield the outcome of
    each."""
    end = time.monotonic() + seconds
    server = Server(program, folder)
    try:
        for number in range(count):
            place = folder / str(number)
            place.mkdir()
            outcome = Fleet(server, place, f"{name}-{number}", seed + number, plan).run()
            yield outcome
            if outcome.wrong:
                return
            shutil.rmtree(place)
            if time.monotonic() > end:
                return
    finally:
        server.close()


def lane(outcomes, *arguments):
    """Run fleets() in this process, and report each outcome."""
    die_with_parent()
    try:
        for outcome in fleets(*arguments):
            outcomes.put(outcome)
        outcomes.put(None)
    except BaseException:
        outcomes.put(traceback.format_exc())


def sail_all(program, folder, name, seed, plan, seconds, lanes, say=lambda _: None):
    """Run fleets in several lanes at the same time; return their outcome. say() is called with the
    sum after each fleet."""
    outcomes, total, failed = FORK.Queue(), Outcome(), []
    processes = []
    for at in range(lanes):
        place = folder / f"lane{at}"
        place.mkdir()
        given = (outcomes, program, place, f"{name}{at}", seed + 1_000_000 * at, plan, seconds)
        processes.append(FORK.Process(target=lane, args=given))
        processes[-1].start()
    while lanes:  # until each lane has reported its end
        outcome = outcomes.get(timeout=3 * PATIENCE_S)  # ends with an error if a lane was killed
        if isinstance(outcome, Outcome):
            total.add(outcome)
            say(total)
        else:
            lanes -= 1
            failed += [outcome] if outcome else []
    for each in processes:
        each.join()
    assert not failed, "\n".join(failed)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="(%(default)s)")
    parser.add_argument("--lanes", type=int, default=1, help="fleets at once (%(default)s)")
    parser.add_argument("--caches", type=int, default=Plan.caches, help="of a fleet (%(default)s)")
    parser.add_argument("--hosts", type=int, default=Plan.hosts, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--server", default="redis", choices=programs())
    options = parser.parse_args()
    began = said = time.monotonic()

    def say(total):
        nonlocal said
        if time.monotonic() - said > 60 or total.wrong:
            said = time.monotonic()
            print(f"{said - began:.0f} s: {total}", *total.wrong[:20], sep="\n", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(caches=options.caches, hosts=options.hosts)
        total = sail_all(
            programs()[options.server], Path(folder), f"fleet-{os.getpid()}", options.seed, plan,
            options.seconds, options.lanes, say,
        )  # fmt: skip
    print(f"seed {options.seed}: {total}")
    return bool(total.wrong)


if __name__ == "__main__":
    raise SystemExit(main())
