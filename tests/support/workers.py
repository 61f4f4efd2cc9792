"""Worker processes and threads for the tests: started together, timed, never left behind.

    results = run_together("spawn", (jobs.add_ones, m, 100, seed), (jobs.read_stable, m, 50, seed))

Each job is a function that spawned children can import (see jobs.py), and its arguments. The
function gets a Gate as its first argument, and calls gate.wait() when it is ready to begin. The
results come back in the order of the jobs. A worker that raises, dies or does not end in time fails
the test, with its traceback or the place where it is stuck.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import wait as wait_for_connections

import pytest

# A spawned process imports everything again, which takes half a second of processor time.
SPAWN = pytest.param("spawn", marks=pytest.mark.thorough)
FORKSERVER = pytest.param("forkserver", marks=pytest.mark.thorough)
METHODS = ["thread", "fork", SPAWN]
TIMEOUT_S = 60.0
THREADS = 4  # that all_together() starts
# A stuck worker prints where it is stuck this long before it is killed.
DUMP_BEFORE_END_S = 3.0
# At this switch interval threads interleave within an operation's Python code.
SWITCH_INTERVAL_S = 1e-4
EVERY_CHANCE_S = 1e-6  # at this one they interleave at every chance


class WorkerFailed(AssertionError):
    """A worker raised, died or was stuck."""


class Died:
    """The result of a worker that died; only crews that allow deaths return it."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def __repr__(self):
        return f"Died({describe_exit(self.exitcode)})"


class Gate:
    """Lets workers begin together, and tells them when the others are done."""

    def __init__(self, barrier, done, timeout_s):
        self.barrier = barrier
        self.done = done
        self.timeout_s = timeout_s

    def wait(self):
        self.barrier.wait(self.timeout_s)

    def finish(self):
        """Say that the work which the other workers accompany is done."""
        self.done.set()

    def open_for(self, rounds_max):
        """Count rounds until a worker calls finish(): at least one, at most rounds_max."""
        for number in range(rounds_max):
            yield number
            if self.done.is_set():
                return


class Crew:
    """Jobs that begin together by one method: "thread", "fork", "spawn" or "forkserver"."""

    def __init__(self, method, parties, timeout_s=TIMEOUT_S, switch_s=SWITCH_INTERVAL_S):
        self.method = method
        self.switch_s = switch_s
        self.deadline_s = time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        self.workers = []
        self.switch_interval_before_s = sys.getswitchinterval()
        context = threading if method == "thread" else multiprocessing.get_context(method)
        self.context = context
        self.gate = Gate(context.Barrier(parties), context.Event(), timeout_s)

    def start(self, function, *arguments):
        if self.method == "thread":
            sys.setswitchinterval(self.switch_s)
            worker = ThreadWorker(self.gate, function, arguments)
        else:
            worker = ProcessWorker(self.context, self.gate, function, arguments)
        self.workers.append(worker)
        return worker

    def join(self, *, deaths_allowed=False):
        """Return the results, in the order of start()."""
        try:
            reports = [worker.report(self.deadline_s) for worker in self.workers]
        finally:
            sys.setswitchinterval(self.switch_interval_before_s)
            for worker in self.workers:
                worker.end()
        troubles = [
            f"{worker.label}: {text}"
            for worker, (kind, text) in zip(self.workers, reports, strict=True)
            if kind == "error" or (kind == "died" and not deaths_allowed)
        ]
        # One failure breaks the barrier of all other workers: report the cause, not the
        # consequences.
        causes = [text for text in troubles if "BrokenBarrierError" not in text]
        if troubles:
            raise WorkerFailed("\n".join(causes or troubles))
        return [result for _, result in reports]


class ProcessWorker:
    """A job in a process of its own."""

    def __init__(self, context, gate, function, arguments):
        self.label = f"{function.__name__} in a {context.get_start_method()} process"
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_in_process, args=(theirs, gate, function, arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def report(self, deadline_s):
        if not wait_for_connections([self.connection], max(0.0, deadline_s - time.monotonic())):
            return "error", f"stuck; its place is on stderr (pid {self.process.pid})"
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join(max(1.0, deadline_s - time.monotonic()))
            exitcode = self.process.exitcode
            if exitcode is None:
                return "error", "closed its pipe and did not end"
            return "died", Died(exitcode)

    def kill(self):
        self.process.kill()

    def end(self):
        # A worker that has reported is about to exit; one that has not is stuck.
        self.process.join(5.0)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


class ThreadWorker:
    """A job in a thread of this process."""

    def __init__(self, gate, function, arguments):
        self.label = f"{function.__name__} in a thread"
        self.message = "error", "stuck"
        self.thread = threading.Thread(
            target=self.run, args=(gate, function, arguments), daemon=True
        )
        self.thread.start()

    def run(self, gate, function, arguments):
        self.message = call(gate, function, arguments)

    def report(self, deadline_s):
        self.thread.join(max(0.0, deadline_s - time.monotonic()))
        if self.thread.is_alive():
            faulthandler.dump_traceback(file=2, all_threads=True)
        return self.message

    def end(self):
        self.thread.join(1.0)


def run_in_process(connection, gate, function, arguments):
    faulthandler.dump_traceback_later(max(1.0, gate.timeout_s - DUMP_BEFORE_END_S), file=2)
    connection.send(call(gate, function, arguments))
    connection.close()
    faulthandler.cancel_dump_traceback_later()


def call(gate, function, arguments):
    try:
        return "result", function(gate, *arguments)
    except BaseException:
        # Workers that wait for this one would otherwise wait until the timeout.
        gate.barrier.abort()
        gate.finish()
        return "error", traceback.format_exc()


def run_together(method, *jobs, timeout_s=TIMEOUT_S, switch_s=SWITCH_INTERVAL_S):
    """Run the jobs, each (function, *arguments), together; return their results in order."""
    crew = Crew(method, len(jobs), timeout_s, switch_s)
    for function, *arguments in jobs:
        crew.start(function, *arguments)
    return crew.join()


def all_together(function, *arguments, count=THREADS, switch_s=SWITCH_INTERVAL_S):
    """Run the function in this many threads, which begin together and are given their numbers;
    return the results."""

    def run(gate, number):
        gate.wait()
        return function(number, *arguments)

    jobs = [(run, number) for number in range(count)]
    return run_together("thread", *jobs, switch_s=switch_s)


def thread_ids():
    """Return the kernel's numbers of this process's threads, also of those that do not run Python.
    A joined thread is among them for some more microseconds, so compare sets, not counts."""
    return set(os.listdir("/proc/self/task"))


def describe_exit(exitcode):
    if exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"
