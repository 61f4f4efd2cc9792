"""Waiting in asyncio: the waits for keys of a map, or for cells of a space, in one event loop.

A C thread of the process listens for changes and makes a descriptor of the loop readable
(cython/processes/listener.pxd). The loop then looks up the waits for keys whose bells have changed,
and wakes these. It also wakes the waits for cells that have changed.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Protocol

from shmrhash import _core
from shmrhash._errors import Error, SystemFailure
from shmrhash._lifetime import living

RETRY_S = 0.1  # between two attempts to begin the thread

UNSETTLED_S_MIN, UNSETTLED_S_MAX = 0.001, 0.016  # while a writer is stopped inside a change


class _Waitable(Protocol):
    """What this module needs of a map, or of a wait at a cell."""

    def _notifier(self) -> _core.Notifier: ...
    def _notifier_key(self) -> tuple[object, ...]: ...


class Sleeper:
    """One wait: its future, while it sleeps."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the task that sleeps has been cancelled, and has not run since."""
        return self._future is not None and self._future.cancelled()

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def sleep(self, loop: asyncio.AbstractEventLoop, until_ns: int) -> None:
        """Sleep until wake() is called or the clock CLOCK_MONOTONIC reads until_ns (negative:
        without limit)."""
        self._future = loop.create_future()
        timer = None
        if until_ns >= 0:
            left = (until_ns - _core.clock_monotonic_ns()) / 1e9
            timer = loop.call_later(max(0, left), self.wake)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()


class Hub:
    """The waits of one event loop in one map."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notifier: _core.Notifier) -> None:
        self.notifier = notifier
        self._loop = weakref.ref(loop)  # the loop has this object: for its end, not the other way
        self._sleepers: dict[int, dict[Sleeper, _core.Waiter]] = {}  # by bell
        self._at_cells: dict[int, dict[_core.CellWait, Sleeper]] = {}  # by the cell's index
        loop.add_reader(notifier.fileno(), self._told)

    def _told(self) -> None:
        try:
            bells = self.notifier.moved()
        except SystemFailure:  # no new thread now, after a fork: perhaps soon
            loop = self._loop()
            if loop is not None:
                loop.call_later(RETRY_S, self._told)
            return
        for bell in bells:
            for sleeper, waiter in list(self._sleepers.get(bell, {}).items()):
                if _has_changed(waiter):
                    sleeper.wake()
        if self._at_cells:
            self._look_at_cells()

    def _look_at_cells(self) -> None:
        if self.notifier.late:  # a dead process may have left something undone
            next(iter(next(iter(self._at_cells.values())))).recover()
        for index in list(self._at_cells):
            self.look_at(index)

    def look_at(self, index: int) -> None:
        """Wake the tasks that wait at a cell, if it has changed for them."""
        for wait, sleeper in list(self._at_cells.get(index, {}).items()):
            if wait.changed():
                sleeper.wake()

    def follow(self, sleeper: Sleeper, wait: _core.CellWait) -> None:
        """Wake sleeper from now on when the cell of its wait has changed."""
        wait.attach(self.notifier)
        self._at_cells.setdefault(wait._index, {})[wait] = sleeper

    def unfollow(self, wait: _core.CellWait) -> None:
        waits = self._at_cells[wait._index]
        del waits[wait]
        if not waits:
            del self._at_cells[wait._index]

    def enter(self, sleeper: Sleeper, waiter: _core.Waiter) -> set[int]:
        """Wake sleeper from now on when a key of its waiter may have changed."""
        bells = waiter.attach(self.notifier)
        for bell in bells:
            self._sleepers.setdefault(bell, {})[sleeper] = waiter
        return bells

    def leave(self, sleeper: Sleeper, bells: set[int]) -> None:
        for bell in bells:
            del self._sleepers[bell][sleeper]
            if not self._sleepers[bell]:
                del self._sleepers[bell]

    def close(self) -> None:
        """Let go of the loop: the map is closed here, or the loop is."""
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.notifier.fileno())
        self.notifier.close()


def _has_changed(waiter: _core.Waiter) -> bool:
    """Whether a wait is to be woken: most bells that move have moved for other keys."""
    try:
        return waiter.changed()
    except Error:
        return True  # it looks by itself, and raises this


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], Hub]] = (
    weakref.WeakKeyDictionary()
)


def _forget_hubs() -> None:
    """In a child of fork: the loops, with their descriptors, are the parent's."""
    _hubs.clear()


os.register_at_fork(after_in_child=_forget_hubs)


def hub_of(loop: asyncio.AbstractEventLoop, shared: _Waitable) -> Hub:
    """The hub of a loop for this map; a new one, if need be."""
    hubs = _hubs.get(loop)
    if hubs is None:
        for closed in [each for each in living(_hubs.keyrefs()) if each.is_closed()]:
            for left in _hubs.pop(closed, {}).values():  # unless another thread was faster
                left.close()
        hubs = _hubs[loop] = {}
    key = shared._notifier_key()
    hub = hubs.get(key)
    if hub is None or not hub.notifier.alive:
        for dead in [each for each, its in hubs.items() if not its.notifier.alive]:
            hubs.pop(dead).close()
        hub = hubs[key] = Hub(loop, shared._notifier())
    return hub


def _look_here(key: tuple[object, ...], index: int) -> None:
    """A cell has been changed by this thread: the tasks of its loop need not be told by another."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # no loop runs in this thread
    hub = _hubs.get(loop, {}).get(key)
    if hub is not None:
        hub.look_at(index)


_core.set_look_here(_look_here)


class Told:
    """A coroutine's wait for changes of the keys of a waiter."""

    def __init__(
        self, shared: _Waitable, waiter: _core.Waiter, before: _core.Notifier | None = None
    ) -> None:
        """before: the notifier that the waiter has otherwise."""
        self._shared = shared
        self._waiter = waiter
        self._before = before
        self._sleeper = Sleeper()
        self._hub: Hub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bells: set[int] = set()
        self._pause_s = UNSETTLED_S_MIN

    async def pause(self, settled: bool, deadline: int) -> None:
        """Between two looks at the keys: return when they may have changed, an entry has expired or
        the deadline is over. After the first look, which did without, the loop has to be told from
        now on: return at once. settled: False if a process was in the middle of a change.

        Raises FrozenMap (nothing can change any more), SystemFailure.
        """
        loop = self._loop = asyncio.get_running_loop()
        if self._hub is None:
            self._hub = hub_of(loop, self._shared)
            self._bells = self._hub.enter(self._sleeper, self._waiter)
        elif settled:
            self._waiter.expect_hope()
            self._pause_s = UNSETTLED_S_MIN
            await self._sleeper.sleep(loop, self._waiter.until(deadline))
        else:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, UNSETTLED_S_MAX)

    def wake(self) -> None:
        """End the pause; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._sleeper.wake)

    def close(self) -> None:
        if self._hub is not None:
            self._hub.leave(self._sleeper, self._bells)
            self._waiter.attach(self._before)
