"""How soon a near cache forgets a key that another client has changed, and on what that depends;
and how soon another process tracks when the tracker is killed.

    python benchmarks/bench_near.py [--quick] [--rounds 300] [--realtime] [--json FILE]

One process has the tracker; another one changes a key at the server and looks into the near cache
until the key is gone. "from the change": since the SET was sent; "from its answer": since its OK
was here, which may come after the key is gone: then it is the time of one look. The rows differ in
what else the tracker's process does: nothing, or a thread that never lets go of the GIL by itself,
with these switch intervals (sys.setswitchinterval).

"killed": from the SIGKILL of the tracker, beside which three processes stand by, until one of these
has discarded what was stored ("its successor"), and until it has the first lease, from which on
values are kept again ("its lease"). A tenth of the rounds.

--realtime: the processes of the benchmark run before all others (SCHED_FIFO, which needs root), so
that the figures are those of a quiet machine: the thread that is busy on one core, and the tracker,
the server and the client on another.

It needs a redis-server, and the client redis.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import redis
from report import finish, machine, percentiles, print_facts, print_table, unique_name

from shmrhash import NearCache

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 20
LOOK_S = 10e-6  # between two looks
LONG_LOOK_S = 200e-6  # where milliseconds are measured
SETTLE_S = 0.003  # so that the tracker sleeps before the next change
STAND_BY = 3
KEY = "k"
SITUATIONS = {  # (a busy thread beside the tracker, switch interval in seconds)
    "alone": (False, 0.005),
    "busy, 5 ms": (True, 0.005),
    "busy, 0.5 ms": (True, 0.0005),
    "busy, 0.1 ms": (True, 0.0001),
}


def prefer(thread, priority, core):
    """Run a thread before all others, on this core."""
    os.sched_setaffinity(thread, {core})
    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))


def near_of(path, name, **options):
    client = redis.Redis(unix_socket_path=path)
    return NearCache(client, [KEY], name=name, max_entries=1000, max_bytes=1 << 20, **options)


def track(path, name, situation, cores, ready):
    """The process that tracks."""
    busy, interval = SITUATIONS[situation]
    sys.setswitchinterval(interval)
    near = near_of(path, name)
    assert near.ready(PATIENCE_S)
    if cores:
        prefer(near._tracker.native_id, 20, cores[0])
        prefer(threading.get_native_id(), 10, cores[-1])
    ready.set()
    while busy:
        pass
    time.sleep(3600)


def times_until_forgotten(path, name, rounds):
    """(seconds from the change, seconds from its answer) of each round."""
    found = []
    client = redis.Redis(unix_socket_path=path)
    with near_of(path, name, track=False) as near:
        assert near.ready(PATIENCE_S)
        for number in range(rounds):
            value = b"before %d" % number
            client.set(KEY, value)
            while near.get(KEY) != value:  # until the tracker has heard it
                time.sleep(LOOK_S)
            near.get(KEY)
            time.sleep(SETTLE_S)
            node = near._node_of(KEY.encode())
            sent = time.perf_counter()
            client.set(KEY, b"after")
            answered = time.perf_counter()
            while near._look(KEY, node, None) is not None:
                time.sleep(LOOK_S)
            gone = time.perf_counter()
            found.append((gone - sent, gone - answered))
    return found


def measure(path, situation, rounds, cores):
    name = unique_name("near")
    ready = FORK.Event()
    tracker = FORK.Process(target=track, args=(path, name, situation, cores, ready), daemon=True)
    tracker.start()
    assert ready.wait(PATIENCE_S)
    try:
        found = times_until_forgotten(path, name, rounds)
    finally:
        tracker.kill()
        tracker.join()
    return rows_of(situation, ("from the change", "from its answer"), found)


def stand_by(path, name, cores, ready):
    """A process that may track."""
    near = near_of(path, name)
    assert near.info()["name"] == name
    if cores:
        for thread in os.listdir("/proc/self/task"):
            prefer(int(thread), 20, cores[0])
    ready.set()
    time.sleep(3600)


def candidate(path, name, cores):
    ready = FORK.Event()
    made = FORK.Process(target=stand_by, args=(path, name, cores, ready), daemon=True)
    made.start()
    assert ready.wait(PATIENCE_S)
    return made


def until(condition):
    end = time.perf_counter() + PATIENCE_S
    while not condition():
        assert time.perf_counter() < end, "nothing happens"
        time.sleep(LONG_LOOK_S)
    return time.perf_counter()


def takeovers(path, rounds, cores):
    """Rows: from the kill of the tracker to its successor, and to the first lease of that one."""
    name = unique_name("near")
    candidates = [candidate(path, name, cores) for _ in range(STAND_BY + 1)]
    found = []
    with near_of(path, name, track=False) as near:
        assert near.ready(PATIENCE_S)
        node = near._node_of(KEY.encode())

        def line():
            return near._state.line(node)

        for _ in range(rounds):
            before = line()
            (tracker,) = [each for each in candidates if each.pid == before.pid]
            killed = time.perf_counter()
            tracker.kill()
            began = until(lambda before=before: line().term != before.term)
            leased = until(lambda: line().valid_until)
            found.append((began - killed, leased - killed))
            tracker.join()
            candidates[candidates.index(tracker)] = candidate(path, name, cores)
            time.sleep(SETTLE_S)
    for each in candidates:
        each.kill()
        each.join()
    return rows_of("killed", ("its successor", "its lease"), found)


def rows_of(situation, marks, found):
    rows = []
    for at, mark in enumerate(marks):
        times = percentiles([each[at] * 1000 for each in found])
        row = {"the tracker's process": situation, "ms": mark}
        rows.append(row | {name: round(value, 3) for name, value in times.items()})
    return rows


def start_server(folder, cores, port=0):
    path = f"{folder}/socket"
    command = ["redis-server", "--port", str(port), "--unixsocket", path, "--save", ""]
    command += ["--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not os.path.exists(path):
        assert server.poll() is None, "redis-server did not start"
        time.sleep(0.01)
    for thread in os.listdir(f"/proc/{server.pid}/task") if cores else ():
        prefer(int(thread), 20, cores[0])
    return server, path


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 rounds")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--realtime", action="store_true", help="before all others; needs root")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        sys.exit("bench_near.py needs a redis-server")

    facts, rows = machine(), []
    rounds = 20 if options.quick else options.rounds
    cores = sorted(os.sched_getaffinity(0)) if options.realtime else []
    print_facts(facts)
    with tempfile.TemporaryDirectory() as folder:
        server, path = start_server(folder, cores)
        try:
            for situation in SITUATIONS:
                if cores:
                    prefer(0, 20, cores[0])
                rows += measure(path, situation, rounds, cores)
            rows += takeovers(path, max(3, rounds // 10), cores)
        finally:
            server.kill()
            server.wait()
    print_table(rows)
    finish(options.json, facts, rows)


if __name__ == "__main__":
    main()
