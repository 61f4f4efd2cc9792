"""Forks under AddressSanitizer wait for threads that are ending.

Thread.join() returns before the system's thread has ended. AddressSanitizer then returns that
thread's free memory under locks of its own, without the GIL, and does not handle forks (as of gcc
12). A child that is forked in that moment finds such a lock held, and stands still at its next
malloc(). Of 61 forks right after three threads ended 2 children stood still; of 106 that waited,
none did.
"""

import os
import threading
import time

from support.workers import thread_ids

WAIT_S = 0.2  # the wait for a thread without Python, such as a map's listener, is in vain


def install():
    """Before each fork of this process and its children, wait if they have the sanitizer."""
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        return
    others = len(thread_ids()) - threading.active_count()

    def settle():
        end = time.monotonic() + WAIT_S
        while len(thread_ids()) > threading.active_count() + others and time.monotonic() < end:
            time.sleep(0.0005)  # polls, because the system does not report a thread's end

    os.register_at_fork(before=settle)
