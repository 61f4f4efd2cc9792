"""Waiting for primitives in asyncio: tasks take turns, and the loop goes on.

The tasks of one loop that want a lock, or permits of a semaphore, form a line for it. Only the
first one looks at the cell; it takes what it wants, or learns of the next change from the listener
of its process (cython/processes/listener.pxd). It also looks by itself, as a waiting thread does
(locks.pxi), since the owner may be dead. A task that leaves the line wakes the next one. Waiters
for an event, a condition or a barrier form no line: a change concerns all of them.

Changes that are made in the loop's own thread wake its tasks at once (_awaiting.py).

A task that is cancelled leaves its line and wakes the next, so it takes no wake-up with it. If
another task comes before the cancelled one has run, it ends the wait of the cancelled one: a waiter
may have reserved the lock for itself (mutex.pxd), and the lock is free for any newcomer. A lock
that a task has belongs to the process, and ends with it, as if a thread had it. A lock says which
task has it: each task that uses one gets a number, which no thread has.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections import deque
from typing import Any, Protocol

from shmrhash import _core
from shmrhash._awaiting import Hub, Sleeper, hub_of

_Place = tuple[int, int, int]  # a cell of a space
_Lines = dict[_Place, deque["_InLine"]]


class _InLine(Sleeper):
    """A task in a line. wait: at the cell, once it is the first."""

    wait: _core.LockWait | _core.SharesWait | None = None


class _Takeable(Protocol):
    """What take() needs of a primitive. what: of a lock, the number of the task."""

    @property
    def _place(self) -> _Place: ...
    def _take_now(self, what: int, deadline_ns: int, free: bool) -> bool: ...
    def _wait_to_take(
        self, what: int, deadline_ns: int, told: bool
    ) -> _core.LockWait | _core.SharesWait: ...
    def _shown_wait(self, deadline_ns: int, told: bool) -> _core.ShownWait: ...


_lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Lines] = weakref.WeakKeyDictionary()
_numbers: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
_next_number = itertools.count(_core.TASK_NUMBERS + 1)


def _forget_lines() -> None:
    """In a child of fork: the loops, and what their tasks have, are the parent's."""
    _lines.clear()


os.register_at_fork(after_in_child=_forget_lines)


def number_of_task() -> int:
    """The number of the task that runs in this thread; 0: none does."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return 0
    if task is None:
        return 0
    number = _numbers.get(task)
    if number is None:
        number = _numbers[task] = next(_next_number)
    return number


def _running_loop_has(number: int) -> bool:
    """Whether the task of this number belongs to the loop that runs in this thread."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return any(_numbers.get(task) == number for task in asyncio.all_tasks(loop))


_core.set_tasks(number_of_task, _running_loop_has)


async def until_done(wait: _core.CellWait, deadline: int, sleeper: Sleeper | None = None) -> bool:
    """Return True as soon as a wait's look() says so; False: the clock reads the deadline
    (negative: there is none). The caller ends the wait. sleeper: other code may wake it, too.

    Raises what look() raises, SystemFailure (no more threads or descriptors).
    """
    hub: Hub | None = None
    loop = asyncio.get_running_loop()
    sleeper = Sleeper() if sleeper is None else sleeper
    try:
        while not wait.look():  # ends with the deadline
            if _is_over(deadline):
                if hub is not None:
                    return False
                wait.recover()  # a caller that does not wait has not looked for the dead
                return wait.look()
            if hub is None:  # then look again: from now on the loop is told
                hub = hub_of(loop, wait)
                hub.follow(sleeper, wait)
            else:
                await sleeper.sleep(loop, _sooner(wait.until_ns, deadline))
        return True
    finally:
        if hub is not None:
            hub.unfollow(wait)


async def take(primitive: _Takeable, what: int, timeout: float | None, told: bool = True) -> bool:
    """Take a lock or a permit, as soon as it is this task's turn. False: the time is over.

    told: False if the task cannot do without the lock, so that another one must be told of a
    circle. Raises InvalidArgument (timeout), and what the primitive raises.
    """
    deadline = _core.deadline_after(timeout)
    loop = asyncio.get_running_loop()
    lines = _lines.setdefault(loop, {})
    place = primitive._place
    line = lines.get(place)
    free = line is None or all(each.is_cancelled for each in line)
    if free and line is not None and line[0].wait is not None:
        line[0].wait.end()
    if primitive._take_now(what, deadline, free):
        return True
    sleeper = _InLine()
    line = lines.setdefault(place, deque())
    line.append(sleeper)
    try:
        if not await _is_first(line, sleeper, primitive, deadline, told):
            return False
        wait = sleeper.wait = primitive._wait_to_take(what, deadline, told)
        try:
            return await until_done(wait, deadline, sleeper)
        finally:
            wait.end()
    finally:
        _leave(lines, place, sleeper)


async def _is_first(
    line: deque[_InLine], sleeper: _InLine, primitive: _Takeable, deadline: int, told: bool
) -> bool:
    """Wait in a line, and be seen there by locks() and by others that look for a circle. False: the
    time is over."""
    if line[0] is sleeper:
        return True
    loop = asyncio.get_running_loop()
    shown = primitive._shown_wait(deadline, told)
    try:
        while line[0] is not sleeper:  # ends with the deadline
            if _is_over(deadline):
                return False
            shown.expect_no_circle()
            await sleeper.sleep(loop, _sooner(shown.look_at_ns, deadline))
    finally:
        shown.end()
    return True


async def take_again(lock: Any, depth: Any) -> None:
    """Take the lock of a condition again, however often the task is cancelled; that is raised
    afterwards. depth: how often an RLock was taken."""
    cancelled = None
    while True:  # ends with the lock
        try:
            if hasattr(lock, "_acquire_async"):
                await lock._acquire_async(None, told=False)
            else:
                await lock.acquire_async()
            break
        except asyncio.CancelledError as error:
            cancelled = error
    if hasattr(lock, "_restore_depth"):
        lock._restore_depth(depth)
    if cancelled is not None:
        raise cancelled


def _leave(lines: _Lines, place: _Place, sleeper: _InLine) -> None:
    """Leave a line, and let the next one look."""
    line = lines[place]
    was_first = line[0] is sleeper
    line.remove(sleeper)
    if not line:
        del lines[place]
    elif was_first:
        line[0].wake()


def _is_over(deadline: int) -> bool:
    return 0 <= deadline <= _core.clock_monotonic_ns()


def _sooner(moment_ns: int, deadline_ns: int) -> int:
    """The earlier one; a negative one is never."""
    if moment_ns < 0 or deadline_ns < 0:
        return max(moment_ns, deadline_ns)
    return min(moment_ns, deadline_ns)
