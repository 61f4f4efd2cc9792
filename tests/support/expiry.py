"""Waiting until a time has come, for tests of deadlines."""

import time


def let_pass(seconds):
    """Return when this much time has passed by the clock of deadlines."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.0005)  # a poll: the loop waits for a time, not for a duration
