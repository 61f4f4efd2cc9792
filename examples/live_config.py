#!/usr/bin/env python3
"""Settings that all workers see change at once: threads, processes and event loops.

    python examples/live_config.py
    python examples/live_config.py --workers 8 --changes 500 --kills 50

Half of the workers follow the settings in a thread, which sleeps until they change; the others in
asyncio, in a coroutine beside other coroutines. A publisher changes the settings again and again,
and waits each time until every worker has them. With --kills, workers and publishers are killed
while they do that, and replaced. Each worker checks that the settings that it sees belong together
and never go back. Exit status: 0 if all workers had the last settings at the end, else 1.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import statistics
import sys
import threading
import time

from shmrhash import SharedDict

PATIENCE_S = 60


def settings_of(version):
    """What belongs together: a torn or mixed value would show."""
    return {"version": version, "limit": version * 10, "routes": [f"host-{version}"] * 3}


class Worker:
    """Has the newest settings, and says under its number which ones these are."""

    def __init__(self, number, settings, seen):
        self.number = number
        self.settings = settings
        self.seen = seen
        self.version = -1
        self.current = None

    def use(self, new):
        if new != settings_of(new["version"]) or new["version"] < self.version:
            self.seen[self.number] = -2
            raise SystemExit(f"worker {self.number} saw {new} after {self.version}")
        self.current, self.version = new, new["version"]
        self.seen[self.number] = self.version

    def follow(self):
        for change in self.settings.watch(["live"], initial=True):
            self.use(change.value)

    async def follow_in_a_loop(self):
        async with self.settings.watch(["live"], initial=True) as changes:
            async for change in changes:
                self.use(change.value)


def work_with_threads(number, settings, seen):
    worker = Worker(number, settings, seen)
    follower = threading.Thread(target=worker.follow, daemon=True)
    follower.start()
    follower.join()  # the work of this process would go here: it reads worker.current


def work_in_asyncio(number, settings, seen):
    worker = Worker(number, settings, seen)
    asyncio.run(worker.follow_in_a_loop())


def publish(settings, seen, last, workers, times):
    """Change the settings up to this version; each time wait until all workers have seen it."""
    while settings["live"]["version"] < last:
        begun = time.perf_counter()
        new = settings.update_with("live", lambda old: settings_of(old["version"] + 1))
        wait_for_all(seen, workers, new["version"])
        times[new["version"]] = time.perf_counter() - begun


def wait_for_all(seen, workers, version):
    for number in range(workers):
        seen.wait(number, lambda has: has == -2 or has >= version, timeout=PATIENCE_S)


class Crew:
    """The workers. One that is killed, by whomever, is replaced."""

    def __init__(self, context, settings, seen, count):
        self.context = context
        self.shared = settings, seen
        self.workers = [self.start(number) for number in range(count)]

    def start(self, number):
        work = work_in_asyncio if number % 2 else work_with_threads
        process = self.context.Process(target=work, args=(number, *self.shared), daemon=True)
        process.start()
        return process

    def replace_the_dead(self):
        for number, worker in enumerate(self.workers):
            if worker.exitcode is not None and worker.exitcode < 0:
                self.workers[number] = self.start(number)

    def work_until(self, done):
        while not done():
            self.replace_the_dead()
            time.sleep(0.002)

    def have(self, version):
        _, seen = self.shared
        return all(seen.get(number, -1) >= version for number in range(len(self.workers)))

    def has_failed(self):
        return any(worker.exitcode is not None and worker.exitcode >= 0 for worker in self.workers)

    def kill_one(self):
        random.choice(self.workers).kill()

    def end(self):
        for worker in self.workers:
            worker.kill()
            worker.join()


def run(context, options, settings, seen, times):
    """Publish versions beside kills, and then some without. Returns the last one, and whether all
    workers had it."""

    def start_publisher(last):
        publisher = context.Process(
            target=publish, args=(settings, seen, last, options.workers, times), daemon=True
        )
        publisher.start()
        return publisher

    crew = Crew(context, settings, seen, options.workers)
    crew.work_until(lambda: crew.have(0))
    for _ in range(options.kills):
        times.clear()
        publisher = start_publisher(10**9)
        crew.work_until(lambda publisher=publisher: times or publisher.exitcode is not None)
        time.sleep(random.uniform(0, 0.02))
        crew.kill_one()
        publisher.kill()
        publisher.join()
    times.clear()
    last = settings["live"]["version"] + max(1, options.changes // (options.kills + 1))
    while settings["live"]["version"] < last:
        publisher = start_publisher(last)
        crew.work_until(lambda publisher=publisher: publisher.exitcode is not None)
        publisher.join()
    crew.work_until(lambda: crew.have(last) or crew.has_failed())
    whole = all(seen[number] == last for number in range(options.workers))
    crew.end()
    return last, whole


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--changes", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="(%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context(options.start_method)
    with contextlib.ExitStack() as stack:
        settings = stack.enter_context(SharedDict(key=str, value=object))
        seen = stack.enter_context(SharedDict(key=int, value=int))
        times = stack.enter_context(SharedDict(key=int, value=float))
        settings["live"] = settings_of(0)
        version, whole = run(context, options, settings, seen, times)
        seconds = statistics.median(times.values())
        settings.handle.check()
        seen.handle.check()
    print(f"{version} versions, {options.kills} workers and publishers killed")
    print(f"until all {options.workers} had it: median {seconds * 1000:.1f} ms")
    print("all workers have the last one" if whole else "NOT all workers have the last one")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
