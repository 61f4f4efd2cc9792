#!/usr/bin/env python3
"""The workers of gunicorn share one cache: each page is rendered once, even if a worker is killed.

    python examples/web_cache.py
    python examples/web_cache.py --workers 8 --pages 500 --requests 20000

Starts a real gunicorn (pip install gunicorn), loads it, and kills one of its workers while that
worker renders a page for which others wait: one of these then renders it. Prints how often each
page was rendered and the hit ratio. Exit status: 0 if each page was rendered once, and the page of
the killed worker twice (begun twice, finished once); 1 if not; 3 if gunicorn is not installed.
"""

import argparse
import contextlib
import http.client
import importlib.util
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from shmrhash import Cache, SegmentMissing, SharedCounter, unlink

NAME = os.environ.get("WEB_CACHE_NAME", "")
SLOW = "slow"  # the page whose first worker is killed
RENDER_SECONDS = 0.005
WAIT_SECONDS = 60

if NAME:  # in gunicorn, which loads this module before it forks its workers
    pages = Cache(NAME, key=str, value=str, max_entries=10_000)
    begun = SharedCounter(NAME + ".begun", key=str)
    workers = Cache(NAME + ".workers", key=str, value=int, max_entries=16)


def render(page):
    """Make a page; the first one to make the slow one hangs, until it is killed."""
    times = begun.inc(page)
    if page == SLOW and times == 1:
        workers.set("rendering", os.getpid())
        time.sleep(WAIT_SECONDS)
    time.sleep(RENDER_SECONDS)
    return f"<h1>{page}</h1>"


def application(environ, start_response):
    """The web application: a page for each path."""
    page = environ["PATH_INFO"].strip("/")
    body = pages.get_or_compute(page, lambda: render(page), wait=WAIT_SECONDS)
    start_response("200 OK", [("Content-Type", "text/html")])
    return [body.encode()]


def fetch(port, page):
    """One request; an empty body if the worker was killed in it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        connection.request("GET", "/" + page)
        return connection.getresponse().read().decode()
    except (http.client.HTTPException, ConnectionError):
        return ""
    finally:
        connection.close()


def load(port, arguments, wrong):
    """Ask for pages, some much more often than others."""
    rng = random.Random()
    for _ in range(arguments.requests // arguments.clients):
        page = f"page-{int(arguments.pages * rng.random() ** 3)}"
        if fetch(port, page) not in (f"<h1>{page}</h1>", ""):
            wrong.append(page)


def kill_in_the_middle(port, noted):
    """Kill the worker that renders the slow page while others wait for it; return the answers."""
    answers = []

    def ask():
        answers.append(fetch(port, SLOW))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    victim = wait_for(lambda: noted.get("rendering"))
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    ask()  # all three may have been requests to the worker that was killed
    return answers


def wait_for(condition):
    """What the condition returns, once that is true."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise TimeoutError("gunicorn does not do what it should")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_gunicorn(name, port, workers):
    """A gunicorn that runs the application of this file."""
    options = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers), "--threads", "4"]
    options += ["--preload", "--log-level", "error", f"{Path(__file__).stem}:application"]
    return subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options],
        cwd=Path(__file__).parent,
        env=os.environ | {"WEB_CACHE_NAME": name},
        stderr=subprocess.DEVNULL,
    )


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(arguments, name, port):
    """Load the server and kill a worker; print what happened, and return whether it is right."""
    wrong = []
    wait_for(lambda: answers(port))
    with (
        Cache(name, key=str, value=str) as cache,
        SharedCounter(name + ".begun", key=str) as begun,
        Cache(name + ".workers", key=str, value=int) as noted,
    ):
        clients = [
            threading.Thread(target=load, args=(port, arguments, wrong))
            for _ in range(arguments.clients)
        ]
        for client in clients:
            client.start()
        slow = kill_in_the_middle(port, noted)
        for client in clients:
            client.join()
        counts = dict(begun)
        killed = counts.pop(SLOW)
        often = {page for page, times in counts.items() if times > 1}
        # A worker is killed with its four threads: each may have been rendering a page.
        print(
            f"{len(counts)} pages, {sum(counts.values())} renderings; hit ratio "
            f"{cache.stats().hit_ratio:.1%}"
        )
        print(f"the page of the killed worker was begun {killed} times, finished once")
        print(f"pages rendered more than once: {len(often)}; wrong answers: {len(wrong)}")
        return not wrong and killed == 2 and len(often) <= 3 and f"<h1>{SLOW}</h1>" in slow


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--pages", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="(%(default)s)")
    arguments = parser.parse_args(arguments)
    if importlib.util.find_spec("gunicorn") is None:
        print("this example needs gunicorn: pip install gunicorn")
        return 3
    name, port = f"web-cache-{secrets.token_hex(4)}", free_port()
    server = start_gunicorn(name, port, arguments.workers)
    try:
        right = measure(arguments, name, port)
    finally:
        server.terminate()
        server.wait()
        remove(name)
    print("right" if right else "WRONG")
    return 0 if right else 1


def remove(name):
    """Remove the segments."""
    for each in (name, name + ".begun", name + ".workers"):
        with contextlib.suppress(SegmentMissing):
            unlink(each)


if __name__ == "__main__":
    sys.exit(main())
