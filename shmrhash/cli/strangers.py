"""Looking at maps of users whom this one does not trust.

Root may read every map, and whoever owns one may truncate its file at any moment: who has it mapped
then dies of SIGBUS. So a child process maps it, looks, and tells what it saw.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn, TypeVar, cast

import shmrhash
from shmrhash import RHashMap
from shmrhash._trust import is_trusted, user_name
from shmrhash.cli.session import Session
from shmrhash.cli.words import Failure, MapName

Found = TypeVar("Found")


def stranger_of(name: MapName, session: Session) -> int | None:
    """The owner of a map that root looks at but does not trust; None: look at it as usual."""
    if os.geteuid() != 0:
        return None
    try:
        user = os.lstat(name.path).st_uid
    except OSError:
        return None
    return None if is_trusted(user, session.owner) else user


def looked_at(
    name: MapName,
    session: Session,
    look: Callable[[RHashMap], Found],
    seconds: float | None = None,
) -> Found:
    """What look(map) returns; of a stranger's map it is asked in a child process.

    seconds: how long the child may take; None: as long as it wants. Raises what open() and look
    raise, and SegmentCorrupt if the child died of what it looked at, or took too long.
    """
    stranger = stranger_of(name, session)
    if stranger is None:
        with session.open(name) as shared_map:
            return look(shared_map)

    def trusting() -> Found:
        with replace(session, owner=stranger).open(name) as shared_map:
            return look(shared_map)

    return _in_child(trusting, name, stranger, seconds)


def _in_child(
    function: Callable[[], Found], name: MapName, stranger: int, seconds: float | None
) -> Found:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _tell(function, theirs)
    os.close(theirs)
    try:
        told = _hear(ours, seconds)
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has told, or takes too long
        status = os.waitpid(pid, 0)[1]
    whose = f"map {name.name!r} of user {user_name(stranger)}"
    if told is None:
        raise shmrhash.SegmentCorrupt(f"{whose}: looking at it took more than {seconds} s")
    if not told:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        what = signal.strsignal(number) if number else f"exit status {status >> 8}"
        raise shmrhash.SegmentCorrupt(
            f"{whose}: whoever looks at it dies ({what}); its owner changes the file's size"
        )
    raised, found = pickle.loads(told)  # our own child's words
    if raised:
        raise found
    return cast(Found, found)


def _tell(function: Callable[[], Any], theirs: int) -> NoReturn:
    """In the child: write what function returns or raises, and end."""
    try:
        try:
            told = False, function()
        except (shmrhash.Error, OSError, Failure) as error:
            told = True, error
        with open(theirs, "wb") as pipe:
            pipe.write(pickle.dumps(told))
    finally:
        os._exit(0)


def _hear(ours: int, seconds: float | None) -> bytes | None:
    """All that the child writes; None if it takes longer than so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([ours], [], [], left)[0]:
            return None
        part = os.read(ours, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
