#!/usr/bin/env python3
"""Two hosts keep the hot keys of a server near; workers are killed, and a host is cut off.

    sudo python examples/near_cache.py
    sudo python examples/near_cache.py --seconds 60 --kills 40

The hosts are network namespaces of this machine, with four workers and a folder of segments each;
the server, a Redis or Valkey, is in a third one. A writer on host a counts up versions of keys; the
workers of both hosts read them from NearCaches. Trackers and other workers are killed with SIGKILL,
and host b is cut off for a while: its packets vanish without an error. Each read is judged: it is
wrong if a newer version was acknowledged more than max_stale before it began.

Exit status: 0 if no read was wrong and host b reads again after the cut, else 1; 2 if it cannot run
here. It needs root, for the namespaces, the program ip, and the package redis.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAX_STALE = 0.5
KEYS = [f"item:{number}" for number in range(100)]
SERVER, PORT = "10.77.0.254", 6379


class Network:
    """A namespace with a switch and the server's address, and one for each host."""

    def __init__(self, hosts):
        self.prefix = f"near-{os.getpid()}"
        self.made = []
        try:
            self._add("server")
            self._in("server", "link add switch type bridge")
            self._in("server", f"addr add {SERVER}/24 dev switch")
            self._in("server", "link set switch up")
            for number, host in enumerate(hosts, 1):
                self._add(host)
                peer = f"peer name eth0 netns {self.prefix}-{host}"
                self._in("server", f"link add to-{host} type veth {peer}")
                self._in("server", f"link set to-{host} master switch up")
                self._in(host, f"addr add 10.77.0.{number}/24 dev eth0")
                self._in(host, "link set eth0 up")
        except BaseException:
            self.close()
            raise

    def _add(self, name):
        subprocess.run(["ip", "netns", "add", f"{self.prefix}-{name}"], check=True)
        self.made.append(name)
        self._in(name, "link set lo up")

    def _in(self, name, command):
        subprocess.run(["ip", "-n", f"{self.prefix}-{name}", *command.split()], check=True)

    def cut(self, host):
        """From now on packets from and to the host vanish, and no connection is closed."""
        self._in("server", f"link set to-{host} nomaster")

    def mend(self, host):
        self._in("server", f"link set to-{host} master switch")

    def start(self, name, *command, **options):
        """Start a program in a namespace."""
        inside = ["ip", "netns", "exec", f"{self.prefix}-{name}"]
        return subprocess.Popen([*inside, *command], **options)

    def close(self):
        for name in self.made:
            subprocess.run(["ip", "netns", "del", f"{self.prefix}-{name}"], check=False)


# ---- in the processes of the hosts ----


def near_cache(**options):
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from shmrhash import NearCache

    client = redis.Redis(
        SERVER,
        PORT,
        socket_timeout=MAX_STALE,
        socket_connect_timeout=MAX_STALE,
        retry=Retry(NoBackoff(), 0),
    )
    return NearCache(client, ["item:"], name="example", max_stale=MAX_STALE, value=str, **options)


def read(log):
    """Read keys until killed; write to a file which version of each was found, and when last."""
    near, reads, errors = near_cache(), 0, 0
    with open(log, "a", buffering=1) as file:
        while True:
            found = {}
            for _ in range(200):
                key, began = random.choice(KEYS), time.monotonic()
                try:
                    found[key, near.get(key) or "0"] = began
                    reads += 1
                except Exception as error:  # of redis, which has classes of its own
                    if "redis" not in type(error).__module__:
                        raise
                    errors += 1
                    break  # and write it down: the next read may wait as long
            lines = [f"{key} {version} {began}\n" for (key, version), began in found.items()]
            lines += [f"reads {reads} 0\n", f"errors {errors} 0\n"]
            if near.info()["tracks_here"]:
                lines.append(f"tracker {os.getpid()} {time.monotonic()}\n")
            file.write("".join(lines))
            time.sleep(0.005)


def write(log):
    """Count up versions until killed; write to a file when each was acknowledged."""
    near, versions = near_cache(track=False), dict.fromkeys(KEYS, 0)  # the readers track
    with open(log, "a", buffering=1) as file:
        while True:
            key = random.choice(KEYS)
            versions[key] += 1
            near.set(key, str(versions[key]))
            file.write(f"{key} {versions[key]} {time.monotonic()}\n")
            time.sleep(0.002)


def figures(_):
    """Print what figures_of() returns."""
    import redis

    with redis.Redis(SERVER, PORT) as client:
        told = sum("t" in one["flags"] for one in client.client_list())
        print(client.info("commandstats")["cmdstat_get"]["calls"], told)


# ---- in the program itself ----


class Host:
    """A namespace, a folder of segments, and workers."""

    def __init__(self, network, name, folder, workers):
        self.network, self.name, self.folder = network, name, folder
        self.segments = tempfile.mkdtemp(prefix="near-example-", dir="/dev/shm")
        self.workers = [self.start("read") for _ in range(workers)]
        self.writers = []

    def start(self, role):
        return self.network.start(
            self.name,
            *(sys.executable, __file__, "--role", role),
            *("--log", self.folder / f"{role}-{self.name}-{random.getrandbits(40)}"),
            env=os.environ | {"SHMRHASH_DIR": self.segments},
        )

    def lines(self):
        return whole_lines(self.folder.glob(f"read-{self.name}-*"))

    def tracker(self):
        """The worker that has said last that it tracks the server; None: none that lives."""
        said = [(moment, int(pid)) for word, pid, moment in self.lines() if word == "tracker"]
        last = max(said, default=(0, 0))[1]
        return next((worker for worker in self.workers if worker.pid == last), None)

    def is_ready(self):
        """Whether there is a tracker, and each worker has read."""
        logs = [path.read_text() for path in self.folder.glob(f"read-{self.name}-*")]
        ready = sum("\nreads " in log for log in logs)
        return self.tracker() is not None and ready >= len(self.workers)

    def reads_since(self, moment):
        """Whether a read that began after this moment has been answered."""
        return any(word in KEYS and began > moment for word, _, began in self.lines())

    def kill(self, worker):
        worker.kill()
        worker.wait()
        self.workers[self.workers.index(worker)] = self.start("read")

    def close(self):
        for process in (*self.workers, *self.writers):
            process.kill()
            process.wait()
        shutil.rmtree(self.segments, ignore_errors=True)


def whole_lines(paths):
    """The lines of files as (word, word, number); the last of a killed process may be cut."""
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                word, number, moment = line.split()
                yield word, number, float(moment)


def judge(folder):
    """How many writes, reads, failed reads and wrong reads there were, and the oldest's age."""
    acknowledged = {}
    for key, version, moment in whole_lines(folder.glob("write-*")):
        acknowledged[key, int(version)] = moment
    reads, errors, wrong, oldest = 0, 0, 0, 0.0
    for path in folder.glob("read-*"):
        counted = {}
        for key, number, began in whole_lines([path]):
            if key in KEYS:
                age = began - acknowledged.get((key, int(number) + 1), began)
                oldest = max(oldest, age)
                wrong += age > MAX_STALE
            else:
                counted[key] = int(number)
        reads += counted.get("reads", 0)
        errors += counted.get("errors", 0)
    return len(acknowledged), reads, errors, wrong, oldest


def figures_of(network):
    """How many GETs the server has executed, and how many connections it tells of changes."""
    command = sys.executable, __file__, "--role", "figures"
    asking = network.start("server", *command, stdout=subprocess.PIPE, text=True)
    return map(int, asking.communicate()[0].split())


def wait(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"near_cache: {what} did not happen within {seconds} s")
        time.sleep(0.05)


def run(network, folder, server, options):
    """The whole play. Return whether all went well."""
    settings = ["--bind", SERVER, "--save", "", "--protected-mode", "no", "--dir", folder]
    with open(folder / "server", "wb") as log:
        process = network.start("server", server, *settings, stdout=log)
    hosts = []
    try:
        wait(
            lambda: b"eady to accept" in (folder / "server").read_bytes(), 20, "the server's start"
        )
        hosts += [Host(network, name, folder, options.workers) for name in "ab"]
        here, there = hosts
        here.writers.append(here.start("write"))
        for host in hosts:
            wait(host.is_ready, 60, f"a read by each worker of host {host.name}")
        killed = trackers = 0
        for _ in range(options.kills):
            time.sleep(random.random() * options.seconds / options.kills)
            host = random.choice(hosts)
            tracker = host.tracker()
            victim = tracker if random.random() < 0.5 else None
            victim = victim or random.choice(host.workers)
            killed, trackers = killed + 1, trackers + (victim is tracker)
            host.kill(victim)
        network.cut("b")
        time.sleep(options.cut)
        network.mend("b")
        mended = time.monotonic()
        wait(lambda: there.reads_since(mended), 60, "a read on host b after the cut")
        time.sleep(2 * MAX_STALE)
        asked, told = figures_of(network)
    finally:
        for host in hosts:
            host.close()
        process.kill()
        process.wait()
    writes, reads, errors, wrong, oldest = judge(folder)
    print(
        f"{killed} workers were killed, {trackers} of them trackers; b was cut off {options.cut} s"
    )
    print(f"{reads:,} reads of {len(KEYS)} keys, and {writes:,} writes")
    print(f"the server was asked {asked:,} times; it tells {told} connections of changes")
    print(f"{errors:,} reads failed, as b had no server; the others went on")
    print(f"wrong reads: {wrong}; the oldest value was {oldest:.3f} s old, of {MAX_STALE} allowed")
    return not wrong


def cannot_run(server):
    """Why it cannot run here; "" if it can."""
    if os.geteuid() != 0:
        return "it makes network namespaces: run it as root"
    if shutil.which("ip") is None:
        return "the program ip (package iproute2) is not installed"
    if server is None:
        return "no redis-server or valkey-server is installed; or give --server"
    return ""


ROLES = {"read": read, "write": write, "figures": figures}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="of each host (%(default)s)")
    parser.add_argument("--kills", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the kills (%(default)s)")
    parser.add_argument("--cut", type=float, default=2.0, help="seconds (%(default)s)")
    parser.add_argument("--server", help="the program of a Redis or Valkey")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        return ROLES[options.role](options.log)
    server = options.server or shutil.which("redis-server") or shutil.which("valkey-server")
    reason = cannot_run(server)
    if reason:
        print(f"near_cache: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        network = Network("ab")
        try:
            right = run(network, Path(folder), server, options)
        finally:
            network.close()
    print("right" if right else "WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the namespaces go, too
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
