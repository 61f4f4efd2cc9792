"""Single keys from a terminal, as they are pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator


class Keyboard:
    """The keys pressed while something is shown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str:
        """The next key within so many seconds, or nothing."""
        try:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, seconds))
        except InterruptedError:
            return ""
        if not ready:
            return ""
        typed = os.read(self._descriptor, 64)
        return typed[:1].decode("ascii", "ignore") if typed else "q"  # the terminal went away


class NoKeyboard(Keyboard):
    """Where nobody can press a key: waiting is all there is."""

    def __init__(self) -> None:
        super().__init__(-1)

    def wait(self, seconds: float) -> str:
        time.sleep(max(0.0, seconds))
        return ""


@contextlib.contextmanager
def keyboard() -> Iterator[Keyboard]:
    """The keyboard, without echo and without waiting for Enter; as it was afterwards."""
    if not sys.stdin.isatty():
        yield NoKeyboard()
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
