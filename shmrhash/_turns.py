"""Locked sections in asyncio: coroutines that want one key take turns, and the loop goes on.

The coroutines of one loop that want a key form a line. The first one tries to enter its section; a
coroutine that leaves a section wakes the first in the line, so they enter in the order in which
they came. If the section in the way belongs to another loop, thread or process, the bell of the
section tells the first one of its end (cython/processes/listener.pxd). It also looks by itself,
like a thread that waits for a section (waiting.pxi), since the owner may be dead.

A section that a coroutine has entered is like any other: it also ends by the death of its process.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from types import TracebackType
from typing import Any, TypeVar

from shmrhash import _core
from shmrhash._awaiting import Hub, Sleeper, hub_of

slice_ns = _core.section_slice_ns  # how long the first in the line sleeps before it looks itself
PATIENCE_NS = 50_000_000  # after which a task may have forgotten its section
REMOVAL_PAUSE_S = 0.001  # between two attempts to delete a key whose bucket is held

_Section = TypeVar("_Section", bound="_core.LockedValue | _core.LockedEntry[Any]")
_AnySection = _core.LockedValue | _core.LockedEntry
_Place = tuple[int, int, bytes]  # a key of a map


class _Turns:
    """The tasks of one loop that have or want sections."""

    def __init__(self) -> None:
        self.holders: dict[_Place, asyncio.Task[Any] | None] = {}
        self.lines: dict[_Place, deque[Sleeper]] = {}

    def join(self, place: _Place) -> Sleeper:
        sleeper = Sleeper()
        self.lines.setdefault(place, deque()).append(sleeper)
        return sleeper

    def quit(self, place: _Place, sleeper: Sleeper) -> None:
        """Leave the line: its owner has entered its section, or gives up."""
        line = self.lines[place]
        line.remove(sleeper)
        if not line:
            del self.lines[place]
        elif place not in self.holders:
            line[0].wake()

    def give(self, place: _Place) -> None:
        """A section has ended: it is the first one's turn."""
        self.holders.pop(place, None)
        if place in self.lines:
            self.lines[place][0].wake()


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = weakref.WeakKeyDictionary()


def _forget_turns() -> None:
    """In a child of fork: the loops, and the sections, are the parent's."""
    _turns.clear()


os.register_at_fork(after_in_child=_forget_turns)


async def enter(section: _Section) -> _Section:
    """Enter a section as soon as it is this task's turn.

    Raises what __enter__ raises.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    turns = _turns.setdefault(loop, _Turns())
    place = section._place
    free = place not in turns.lines or turns.holders.get(place) is task  # then DeadlockError
    if free and section._attempt(task):
        turns.holders[place] = task
        return section
    sleeper = turns.join(place)
    try:
        await _until_entered(section, turns, sleeper, loop, task)
        turns.holders[place] = task
    finally:
        turns.quit(place, sleeper)
    return section


async def leave(
    section: _AnySection,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool:
    """End a section.

    Raises what __exit__ raises.
    """
    began = _core.clock_monotonic_ns()
    try:
        if kind is None:
            while not section._attempt_removal(_core.clock_monotonic_ns() - began):
                await asyncio.sleep(REMOVAL_PAUSE_S)  # ends with the handle's timeout
        return section.__exit__(kind, error, traceback)
    except asyncio.CancelledError as cancelled:
        section.__exit__(type(cancelled), cancelled, None)
        raise
    finally:
        give(section)


def give(section: _AnySection) -> None:
    """A section has ended that a coroutine of this loop entered: the next one may try."""
    turns = _turns.get(asyncio.get_running_loop())
    if turns is not None:
        turns.give(section._place)


class _Outside:
    """Listens for the end of a section that belongs to another loop, thread or process."""

    def __init__(self, section: _AnySection, sleeper: Sleeper) -> None:
        self._section = section
        self._sleeper = sleeper
        self._element = -1
        self._waiter: _core.Waiter | None = None
        self._hub: Hub | None = None
        self._bells: set[int] = set()

    def arm(self) -> None:
        """Before each attempt to enter the section."""
        if self._waiter is not None:
            self._waiter.say()

    def listens(self, loop: asyncio.AbstractEventLoop) -> bool:
        """After an attempt that failed: whether the loop is told when the section ends that was in
        the way. If not, it will be, and the attempt has to be made again."""
        element = self._section._element
        if element < 0 or (element == self._element and self._waiter is not None):
            return True  # what is no section is released soon
        self.close()
        self._element = element
        self._waiter = _core.Waiter(self._section._owner, [], element)
        self._hub = hub_of(loop, self)
        self._bells = self._hub.enter(self._sleeper, self._waiter)
        return False

    def close(self) -> None:
        if self._hub is not None:
            self._hub.leave(self._sleeper, self._bells)
            self._hub = None
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None

    def _notifier(self) -> _core.Notifier:
        return _core.Notifier(self._section._owner)

    def _notifier_key(self) -> tuple[object, ...]:
        return _core.notifier_key(self._section._owner)


async def _until_entered(
    section: _AnySection,
    turns: _Turns,
    sleeper: Sleeper,
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[Any] | None,
) -> None:
    """Wait in the line, and then for the section in the way, until this one is entered."""
    place = section._place
    began = _core.clock_monotonic_ns()
    outside = _Outside(section, sleeper)
    patient = True  # as long as the section in the way can be a task's of this loop
    try:
        while True:  # ends with the deadline
            now = _core.clock_monotonic_ns()
            deadline = section._deadline_ns
            over = 0 <= deadline <= now
            if turns.lines[place][0] is not sleeper and not over:
                await sleeper.sleep(loop, deadline)
                continue
            if place in turns.holders and patient and not over:
                patient = False  # that task may have forgotten its section
                await sleeper.sleep(loop, _sooner(now + PATIENCE_NS, deadline))
                continue
            patient = True
            outside.arm()
            if section._attempt(task):
                return
            if over:
                raise section._refused
            if outside.listens(loop):
                moment = now + slice_ns(now - began)
                await sleeper.sleep(loop, _sooner(moment, deadline))
            else:
                await asyncio.sleep(0)
    finally:
        outside.close()


def _sooner(moment_ns: int, deadline_ns: int) -> int:
    return moment_ns if deadline_ns < 0 else min(moment_ns, deadline_ns)
