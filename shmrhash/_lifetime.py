"""The handles of this process: what happens to them when it forks and when it ends.

A child of fork uses the handles of its parent; the hooks below keep the locks and the pinned
objects of the two apart. A process that ends notes so in its maps, and removes the names of its
ephemeral maps that no other process has open.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterable
from multiprocessing.util import Finalize, register_after_fork
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from shmrhash import _core
from shmrhash._errors import Error
from shmrhash._segment import Identity, names, remove_name

if TYPE_CHECKING:
    from typing_extensions import Self

_AFTER_CHILDREN = -100  # multiprocessing joins its children before finalizers of this priority


class ClosingMethods:
    """The part of a class with close() that makes it a context manager: the block's end closes."""

    if TYPE_CHECKING:

        def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_T = TypeVar("_T")


class Handle(Protocol):
    """What this module needs of an RHashMap."""

    @property
    def ephemeral(self) -> bool: ...
    @property
    def _path(self) -> str: ...
    def _identity(self) -> Identity: ...


_ephemeral: dict[Identity, str] = {}  # the ephemeral maps of this process, and their paths


def living(references: Iterable[weakref.ref[_T]]) -> list[_T]:
    """The objects that exist of a weak table's keyrefs() or valuerefs(). Such a list is a copy made
    in one step, so other threads may change the table during the calls, which a loop forbids."""
    found = [reference() for reference in references]
    return [thing for thing in found if thing is not None]


# ---- fork ----

# One fork at a time, so that the pins claimed for a child belong to one child. A fork inside the
# hooks of another fork claims none.
_fork_lock = threading.RLock()
_forks_nested = 0


def _before_fork() -> None:
    global _forks_nested
    _fork_lock.acquire()
    _core.listeners_stop()
    _forks_nested += 1
    if _forks_nested == 1:
        _core.views_before_fork()
    else:
        _core.views_keep()


def _after_fork_in_parent() -> None:
    global _forks_nested
    if _forks_nested == 1:
        _core.views_after_fork_in_parent()
    _core.listeners_go_on()
    _forks_nested -= 1
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock, _forks_nested
    _core.forget_sections()
    _core.locks_after_fork_in_child()
    _core.views_after_fork_in_child(_forks_nested == 1)
    _fork_lock, _forks_nested = threading.RLock(), 0


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


# ---- the names of ephemeral maps ----


def remember_name(handle: Handle) -> None:
    """If the map is ephemeral, this process may be the one that has to remove its name."""
    if handle.ephemeral:
        _ephemeral[handle._identity()] = handle._path


def remove_if_last(identity: Identity, path: str) -> None:
    """Remove the name of an ephemeral map, unless a process holds it or permissions forbid it."""
    with contextlib.suppress(Error, OSError):
        if remove_name(path, identity, unheld=True) or not names(path, identity):
            _ephemeral.pop(identity, None)


def _leave_names() -> None:
    """At the end of a process: mark it as ended, not killed, in all its maps, and remove the names
    of its ephemeral maps that no other process holds, even if handles of them are still open here.
    No handle is closed: other threads, and exit functions called after this one, may use them."""
    _core.process_leaves()
    for identity, path in list(_ephemeral.items()):
        remove_if_last(identity, path)


def _leave_at_exit(*_: object) -> None:
    """Register _leave_names for the end of this process, after multiprocessing has joined its
    children."""
    Finalize(None, _leave_names, exitpriority=_AFTER_CHILDREN)


_leave_at_exit()
os.register_at_fork(after_in_child=_leave_at_exit)  # a forked child ends on its own, too;
register_after_fork(_leave_at_exit, _leave_at_exit)  # multiprocessing clears it in its children
