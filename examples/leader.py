#!/usr/bin/env python3
"""Exactly one of several workers leads: the next one takes over when the leader is killed.

    python examples/leader.py
    python examples/leader.py --workers 8 --kills 50 --lease 0.5

Each worker does its own work, and the leader also does a job for all: here it writes lines into a
log. The log takes a line only with a term that is not below the last one, as a database or a mail
service would: the term is a fencing token, so a leader that was stopped for a while, and deposed,
cannot write after its successor. Exit status: 0 if no two leaders wrote at the same time, else 1.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import time

from shmrhash import Deposed, Leader, SharedDict, Sync

PAUSE = 0.002


class Log:
    """The service that the leader uses. It refuses the terms of the past."""

    def __init__(self):
        self.state = SharedDict(key=str, value=object)
        self.state["last"] = 0, 0, 0  # term, pid, number of lines
        self.state["wrong"] = []

    def write(self, term, pid):
        """Add a line; False if the term is over. Note if a term has two leaders."""

        def add(last):
            if term < last[0]:
                return last
            if term == last[0] and pid != last[1]:
                self.state["wrong"] = [*self.state["wrong"], (term, pid, last)]
            return term, pid, last[2] + 1

        return self.state.update_with("last", add)[:2] == (term, pid)


def work(leader, log):
    """The work of each worker, without end."""
    while True:
        try:
            with leader:
                while log.write(leader.check(), os.getpid()):
                    time.sleep(PAUSE)
        except Deposed:
            continue  # it was stopped for longer than its lease: another one leads


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--lease", type=float, default=0.3, help="seconds (%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context(options.start_method)
    space, log = Sync(), Log()
    leader = Leader("scheduler", space=space, lease=options.lease)

    def start():
        worker = context.Process(target=work, args=(leader, log), daemon=True)
        worker.start()
        return worker

    workers = {}

    def replace_the_dead():
        for pid in [pid for pid, worker in workers.items() if worker.exitcode is not None]:
            del workers[pid]
        while len(workers) < options.workers:
            worker = start()
            workers[worker.pid] = worker

    def lead_since(term):
        """Wait until a leader of a later term has written. Somebody else may kill workers, too."""
        while log.state["last"][0] <= term:
            replace_the_dead()
            time.sleep(PAUSE)
        return log.state["last"]

    killed = stopped = term = 0
    for _ in range(options.kills):
        term, pid, _ = lead_since(term)
        if pid not in workers or workers[pid].exitcode is not None:
            continue  # it is dead already
        if random.random() < 0.2:  # it hangs: it is deposed, and goes on later
            stopped += 1
            os.kill(pid, signal.SIGSTOP)
            lead_since(term)
            if pid in workers:  # nobody has killed it meanwhile
                os.kill(pid, signal.SIGCONT)
        else:
            killed += 1
            workers.pop(pid).kill()
    term, _, lines = lead_since(term)
    for worker in workers.values():
        worker.kill()
        worker.join()

    wrong = log.state["wrong"]
    print(f"{lines:,} lines by {term} leaders; {killed} were killed, {stopped} stopped")
    print(f"two leaders in one term: {len(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
