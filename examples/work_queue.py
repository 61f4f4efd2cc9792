#!/usr/bin/env python3
"""A queue of jobs: each is claimed by one worker, and claimed again if that worker is killed.

    python examples/work_queue.py
    python examples/work_queue.py --jobs 500 --workers 8 --kills 50

A job is an entry of a SharedDict. A worker claims it by its Lock, works, stores the result and
deletes the job. If the worker is killed, its lock is free, and the next worker finds the job still
there. Workers without a job sleep until a new one is added, or a claimed one is given up. A job
that needs a device takes one of two permits of a Semaphore while it runs; a killed worker's permit
is given back. Exit status: 0 if each job has its result at the end and both permits are free, else
1.
"""

import argparse
import contextlib
import multiprocessing
import random
import sys
import time

from shmrhash import Lock, Semaphore, SharedDict, Sync, WaitTimeout

DEVICES = 2
LOCKS = 64  # a space keeps each lock that was ever made; jobs share these
LOOK_S = 0.05  # a worker looks for jobs of killed workers this often


class Queue:
    """Jobs by number, their results, and the locks by which they are claimed."""

    def __init__(self):
        self.space = Sync()
        self.jobs = SharedDict(key=int, value=object)
        self.results = SharedDict(key=int, value=object)
        self.news = SharedDict(key=str, value=int)
        self.news["put"] = 0
        self.devices = Semaphore(DEVICES, "devices", space=self.space)

    def put(self, number, job):
        self.jobs[number] = job
        self.news.update_with("put", lambda count: count + 1)

    def claim(self):
        """A job that nobody works on, with its lock taken: (number, job, lock). None: no job."""
        for number in list(self.jobs):
            lock = Lock(number % LOCKS, space=self.space)
            if not lock.acquire(blocking=False):
                continue
            if number in self.jobs:
                return number, self.jobs[number], lock
            lock.release()  # it was done since
        return None

    def finish(self, number, result, lock):
        self.results[number] = result
        del self.jobs[number]
        lock.release()


def work(queue):
    """The work of each worker, without end."""
    while True:
        seen = queue.news["put"]
        claimed = queue.claim()
        if claimed is None:
            with contextlib.suppress(WaitTimeout):
                queue.news.wait("put", lambda count, seen=seen: count != seen, timeout=LOOK_S)
            continue
        number, job, lock = claimed
        with queue.devices:
            time.sleep(random.random() * 0.004)
            result = job * job
        queue.finish(number, result, lock)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context(options.start_method)
    queue = Queue()

    def start():
        worker = context.Process(target=work, args=(queue,), daemon=True)
        worker.start()
        return worker

    workers = [start() for _ in range(options.workers)]

    def replace_the_dead():
        """Somebody else may kill workers, too: the system, if memory is short, for example."""
        for worker in [worker for worker in workers if worker.exitcode is not None]:
            workers.remove(worker)
            workers.append(start())

    for number in range(options.jobs):
        queue.put(number, number)
        if number % max(1, options.jobs // max(1, options.kills)) == 0 and options.kills:
            time.sleep(0.01 * random.random())
            victim = random.choice(workers)
            victim.kill()
            victim.join()
            replace_the_dead()
    while queue.jobs:
        replace_the_dead()
        time.sleep(0.001)
    for worker in workers:
        worker.kill()
        worker.join()

    right = sum(queue.results.get(number) == number**2 for number in range(options.jobs))
    free = sum(queue.devices.acquire(timeout=10) for _ in range(DEVICES))
    print(f"{right} of {options.jobs} jobs done, {free} of {DEVICES} devices free")
    return 0 if right == options.jobs and free == DEVICES else 1


if __name__ == "__main__":
    sys.exit(main())
