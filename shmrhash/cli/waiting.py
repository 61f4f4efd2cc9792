"""Sleeping until a key of a map changes, for the commands that wait."""

from __future__ import annotations

import os
import select
import time
from types import TracebackType

import shmrhash
from shmrhash import RHashMap, Watch
from shmrhash.cli.session import Session
from shmrhash.cli.words import MapName

LOOK_S = 0.25  # how often a waiting command checks that the name is still the map's


def inode_of(name: MapName) -> int:
    """The inode of the file that has the name now; 0: none has."""
    try:
        return os.stat(name.path).st_ino
    except OSError:
        return 0


class Alarm:
    """Sleeps until one of some keys may have changed.

    While it is set, the map is open for writing, as for a program that waits: so a process that
    changes such a key wakes this process. Where that is refused, or nothing can change any more, it
    sleeps for delay seconds.
    """

    def __init__(self, session: Session, name: MapName, delay: float) -> None:
        self._session = session
        self._name = name
        self._delay = delay
        self._inode = -1
        self._map: RHashMap | None = None
        self._watch: Watch | None = None

    def set(self, raw_keys: list[bytes]) -> bool:
        """Set it for these keys of the map that has the name now. False if it was not set: keys
        that were read before may have changed since."""
        if self._inode == inode_of(self._name):
            return True
        self.close()
        self._inode = inode_of(self._name)
        try:
            self._map = self._session.open(self._name, write=True)
            self._watch = self._map.watch(raw_keys)
            self._watch.fileno()
        except (shmrhash.Error, OSError):
            self._end()
        return False

    def sleep(self, seconds: float | None) -> None:
        """Sleep until a key may have changed, the map is another one, or this many seconds are
        over."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:  # ends as said
            left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
            if self._watch is None:
                time.sleep(max(0, self._delay if end is None else min(self._delay, left)))
                return
            if left <= 0 or self._inode != inode_of(self._name):
                return
            select.select([self._watch], [], [], left)
            try:
                if self._watch.poll():
                    return
            except shmrhash.FrozenMap:
                self._end()

    def close(self) -> None:
        self._inode = -1
        self._end()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> Alarm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
