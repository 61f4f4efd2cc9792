"""Helpers for tests of waiting: the words that say that processes wait, and a thread that waits."""

import struct
import threading
import time
from pathlib import Path

from support.stepping import segment_path

LONG_S = 60
HOURS_NS = 10 * 3600 * 10**9


def words_of(m):
    """Return the header's words `waited` and the bells, as they are in the file."""
    with open(segment_path(m.name), "rb") as file:
        page = file.read(4096)
    (waited,) = struct.unpack_from("<Q", page, 120)
    return waited, struct.unpack_from("<65Q126I", page, 1024)


def until(condition, unmet=lambda: "it does not come"):
    """Check the condition again and again; return when it holds. unmet() is the message if it never
    does."""
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, unmet()
        time.sleep(0.001)


def until_somebody_sleeps(m, sleepers=1):
    """Return when this many bells say that a thread sleeps on them, or is about to."""
    until(lambda: sum(bell & 1 for bell in words_of(m)[1]) >= sleepers, lambda: "nobody waits")


class Waiting:
    """A thread that calls a function; its result, or what it raised."""

    def __init__(self, function, *arguments, **more):
        self.outcome = []
        self.thread = threading.Thread(target=self.run, args=(function, arguments, more))
        self.thread.start()

    def run(self, function, arguments, more):
        try:
            self.outcome.append(function(*arguments, **more))
        except Exception as error:
            self.outcome.append(error)

    def until_asleep(self):
        """Return when the thread sleeps, and not because it waits for the GIL, which this thread
        gives up often."""
        deadline, naps = time.monotonic() + LONG_S, 0
        while naps < 10:
            stat = Path(f"/proc/self/task/{self.thread.native_id}/stat").read_text()
            naps = naps + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0
            assert time.monotonic() < deadline, "the thread does not sleep"
            time.sleep(0.001)

    def result(self):
        self.thread.join(LONG_S)
        assert not self.thread.is_alive(), "a wake-up was lost"
        return self.outcome[0]
