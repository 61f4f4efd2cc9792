"""Names that are removed: unlink(), gc(), and the names of anonymous dicts that no process
holds."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import Any

from shmrhash import _segment
from shmrhash._constants import DEFAULT_TIMEOUT
from shmrhash._errors import Error
from shmrhash._map import RHashMap
from shmrhash._trust import is_trusted, user_text

ANONYMOUS_PREFIX = "shmrhash-anonymous-"  # of the names of dicts and spaces that were given none
_SWEEP_PAUSE = 100  # _remove_abandoned() takes at most about a hundredth of the time

_next_sweep: dict[str, float] = {}  # for each directory: when _remove_abandoned() is due again


def unlink(name: str) -> None:
    """Remove the map's name. Attached processes go on; the last to detach frees the memory.

    Raises SegmentMissing, PermissionDenied, InvalidArgument (a name that no map can have).
    """
    plain = _segment.plain_name(name)
    _segment.unlink_file(plain, _segment.path_of(plain))


def gc(*, names: bool = False, owner: int | None = None) -> dict[str, Any]:
    """Recover dead processes in all maps of this user; with names, remove maps that are not held.

    Returns {"maps": how many were looked at, "recovered": dead processes, "removed": [names],
    "skipped": {name: why}}. Without names=True only ephemeral maps that no process holds are
    removed; other maps keep their names, however long they are unused. owner: a user to trust, as
    for open(). Root does not attach to the maps of users it does not trust: those that no process
    holds are removed like others, and those in which a process died are named in "skipped". gc()
    attaches only to maps in which a process died. Costs some tens of microseconds for each map.

    Raises SegmentMissing, PermissionDenied or SystemFailure if the directory of segments cannot be
    read; what cannot be opened is skipped.
    """
    report: dict[str, Any] = {"maps": 0, "recovered": 0, "removed": [], "skipped": {}}
    for entry in _segment.entries():
        try:
            if not entry.is_file(follow_symlinks=False):
                continue
            _collect(entry.name, entry.path, names, owner, report)
        except (Error, OSError) as error:  # a map that cannot be opened must not hide the others
            report["skipped"][entry.name] = str(error)
    return report


def _collect(name: str, path: str, names: bool, owner: int | None, report: dict[str, Any]) -> None:
    """gc() of one file, which need not be a map."""
    if os.geteuid() == 0 and not is_trusted(os.lstat(path).st_uid, owner):
        fd = _segment.look_at_file(path)
    else:
        fd = _segment.open_file(name, path, read_only=False, owner=owner)
    try:
        user = os.fstat(fd).st_uid  # of the open file; the path may name another file now
        holders = _segment.holders_of(fd)
        if holders is None:
            return
        report["maps"] += 1
        trusted = is_trusted(user, owner)
        if holders.dead and trusted:
            handle = RHashMap(os.dup(fd), name, os.fsencode(path), False, DEFAULT_TIMEOUT)
            report["recovered"] += handle.recovered_at_open + handle._recover()
            handle._detach()
            # The last process may have ended meanwhile. It saw this one, and left the name.
            holders = _segment.holders_of(fd) or holders
        unused = (names or holders.ephemeral) and holders.nobody
        if holders.dead and not trusted and not unused:
            report["skipped"][name] = (
                f"{holders.dead} processes died in it, but it belongs to user {user_text(user)}: "
                f"the next process that uses it recovers them, or gc(owner={user})"
            )
        if unused:
            status = os.fstat(fd)
            if _segment.remove_name(path, (status.st_dev, status.st_ino), unheld=True):
                report["removed"].append(name)
    finally:
        os.close(fd)


def anonymous_name() -> str:
    """A name that no map has. Now and then, those of dead processes are removed first."""
    name = f"{ANONYMOUS_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    _remove_abandoned(name)
    return name


def _remove_abandoned(name: str) -> None:
    """Now and then, remove the names of anonymous maps all of whose processes were killed.

    name: that of the map to be made, for the messages of exceptions.
    """
    where, began = _segment.directory(), time.monotonic()
    if began < _next_sweep.get(where, 0.0):
        return
    for entry in _segment.entries(name):
        if entry.name.startswith(ANONYMOUS_PREFIX):
            with contextlib.suppress(Error, OSError):  # it is another user's, or was just removed
                os.close(_segment.open_file(entry.name, entry.path, read_only=False, owner=None))
                _segment.remove_name(entry.path, unheld=True)
    spent = time.monotonic() - began
    _next_sweep[where] = began + spent * _SWEEP_PAUSE
