"""Wait until a moment has come, for tests of deadlines."""

import time


def let_pass(seconds):
    """Return when this much time has passed by the clock of deadlines."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.0005)  # the loop polls the clock, so a longer sleep is harmless
