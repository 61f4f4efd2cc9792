#!/usr/bin/env python3
"""Allow each user a fixed number of requests in each window of time, exactly, in all processes.

    python examples/rate_limiter.py
    python examples/rate_limiter.py --workers 8 --users 100 --limit 50

The workers of a web server would call allow() for each request. Here they race: every worker makes
many requests for the same few users, and at the end each user was allowed exactly the limit,
whichever worker asked, and when. Then one user uses up a short window, and waits for its end. Exit
status: 0 if all counts were exact, else 1.
"""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter

from shmrhash import SharedCounter


class RateLimiter:
    """Allows limit requests of each user in every window, which begins with the first request.

    A count is created with the window as its time to live: when that has passed the count is
    absent, and the next request begins a new one. Counting is one atomic step that returns the sum,
    so of two requests that race for the last place exactly one is allowed.
    """

    def __init__(self, limit, window):
        self.limit = limit
        self.counts = SharedCounter(key=str, ttl=window, max_entries=1_000_000)

    def allow(self, user):
        return self.counts.inc(user) <= self.limit

    def retry_after(self, user):
        """Seconds until the user's window ends."""
        try:
            return self.counts.ttl(user)
        except KeyError:
            return 0.0


def make_requests(limiter, gate, requests, seed, results):
    """Make many requests of random users, in one worker; send how many of each were allowed."""
    rng = random.Random(seed)
    allowed, asked = Counter(), Counter()
    gate.wait()
    for user in rng.choices([f"user {number}" for number in range(requests[0])], k=requests[1]):
        asked[user] += 1
        allowed[user] += limiter.allow(user)
    results.put((asked, allowed))


def race(limiter, options):
    """Run all workers at once: the requests and the allowed requests of each user."""
    context = multiprocessing.get_context(options.start_method)
    gate, results = context.Barrier(options.workers), context.Queue()
    requests = options.users, options.requests
    workers = [
        context.Process(target=make_requests, args=(limiter, gate, requests, seed, results))
        for seed in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    asked, allowed = Counter(), Counter()
    for _ in workers:
        one_asked, one_allowed = results.get(timeout=100)
        asked += one_asked
        allowed += one_allowed
    for worker in workers:
        worker.join()
    return asked, allowed


def use_up_a_short_window():
    """Whether a user with 5 requests in 0.2 seconds is then refused until the window has ended."""
    limiter = RateLimiter(limit=5, window=0.2)
    begun = time.monotonic()
    answers = [limiter.allow("somebody") for _ in range(8)]
    if time.monotonic() - begun > 0.2:
        return None  # the machine was too busy to tell
    time.sleep(limiter.retry_after("somebody") + 0.001)
    answers.append(limiter.allow("somebody"))
    return answers == [True] * 5 + [False] * 3 + [True]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--users", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="of a worker (%(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="of a user (%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)

    limiter = RateLimiter(options.limit, window=3600)
    begun = time.perf_counter()
    asked, allowed = race(limiter, options)
    seconds = time.perf_counter() - begun
    expected = {user: min(count, options.limit) for user, count in asked.items()}
    print(f"{asked.total():,} requests of {len(asked)} users in {seconds:.2f} s")
    print(f"{allowed.total():,} allowed, at most {max(allowed.values())} of one user")
    exact = dict(allowed) == expected and limiter.counts.as_dict() == dict(asked)

    windows = None
    while windows is None:
        windows = use_up_a_short_window()
    print("exact" if exact else "NOT exact", "- a new window is", "open" if windows else "NOT open")
    return 0 if exact and windows else 1


if __name__ == "__main__":
    sys.exit(main())
