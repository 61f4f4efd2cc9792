"""Reading maps of users that this one does not trust.

Root may read every map, but the owner of a map can truncate its file at any moment, and a process
that has the map mapped then dies of SIGBUS. So a child process maps it, and sends the result.
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
from shmrhash._inspect import is_trusted, user_name
from shmrhash.cli.errors import Failure
from shmrhash.cli.session import Session
from shmrhash.cli.words import MapName

Found = TypeVar("Found")


def stranger_of(name: MapName, session: Session) -> int | None:
    """The owner of a map, if this process is root and does not trust that user; else None."""
    if os.geteuid() != 0:
        return None
    try:
        user = os.lstat(name.path).st_uid
    except OSError:
        return None
    return None if is_trusted(user, session.owner) else user


def read_map(
    name: MapName,
    session: Session,
    read: Callable[[RHashMap], Found],
    seconds: float | None = None,
) -> Found:
    """The result of read(map); a child process calls read if the map's owner is not trusted.

    seconds: how long the child may take; None sets no limit. Raises what open() and read raise, and
    SegmentCorrupt if the child died while it read the map, or took too long.
    """
    stranger = stranger_of(name, session)
    if stranger is None:
        with session.open(name) as shared_map:
            return read(shared_map)

    def trusting() -> Found:
        with replace(session, owner=stranger).open(name) as shared_map:
            return read(shared_map)

    return _in_child(trusting, name, stranger, seconds)


def _in_child(
    function: Callable[[], Found], name: MapName, stranger: int, seconds: float | None
) -> Found:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _send(function, theirs)
    os.close(theirs)
    try:
        answer = _receive(ours, seconds)
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has answered, or took too long
        status = os.waitpid(pid, 0)[1]
    whose = f"map {name.name!r} of user {user_name(stranger)}"
    if answer is None:
        raise shmrhash.SegmentCorrupt(f"{whose}: reading it took more than {seconds} s")
    if not answer:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        what = signal.strsignal(number) if number else f"exit status {status >> 8}"
        raise shmrhash.SegmentCorrupt(
            f"{whose}: the process that read it died ({what}); has its owner truncated the file?"
        )
    raised, found = pickle.loads(answer)  # written by this process's own child
    if raised:
        raise found
    return cast(Found, found)


def _send(function: Callable[[], Any], theirs: int) -> NoReturn:
    """In the child: write the result or the exception of function, and exit."""
    try:
        try:
            answer = False, function()
        except (shmrhash.Error, OSError, Failure) as error:
            answer = True, error
        with open(theirs, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)


def _receive(ours: int, seconds: float | None) -> bytes | None:
    """All bytes that the child writes; None if it takes longer than this many seconds."""
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
