"""Processes that work at the same time, some of which an alarm kills in the middle."""

import mmap
import os
import signal
import time

from support.children import Child


class Round:
    """Workers that note in shared words what they do. A subclass has work(slot).

    Attributes: words (the first one is the signal to begin), ended (when each worker was gone, by
    time.monotonic_ns()), killed (how many an alarm killed).
    """

    def work_together(self, words, deaths):
        """Run a worker for each of the deaths: after so many seconds its alarm goes off, or never
        for 0. words: how many words the workers need, beside the first."""
        self.words = memoryview(mmap.mmap(-1, 8 * (1 + words))).cast("q")
        self.ended = [0] * len(deaths)
        self.killed = 0
        children = [Child(self.wait_and_work, slot, death) for slot, death in enumerate(deaths)]
        self.words[0] = 1  # all workers begin
        for slot, child in enumerate(children):
            code = child.join()
            self.ended[slot] = time.monotonic_ns()
            self.killed += code == -signal.SIGALRM
            if not (code == -signal.SIGALRM and deaths[slot]):
                child.result()

    def wait_and_work(self, slot, death_s):
        """Work. An alarm, which no handler delays, kills this process somewhere in the work, or
        after it."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        while not self.words[0]:
            os.sched_yield()
        signal.setitimer(signal.ITIMER_REAL, death_s)
        self.work(slot)
