"""Following every change of a map, for watch without a key."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

from shmrhash.cli.entries.contents import Found, Plain, contents_of
from shmrhash.cli.entries.options import DataOptions
from shmrhash.cli.session import Session
from shmrhash.cli.waiting import LOOK_S, inode_of
from shmrhash.cli.words import MapName


class News(NamedTuple):
    """A change of a key, in the map's contents; or "lost": how many changes of no known key."""

    contents: Plain
    kind: Literal["set", "deleted", "lost"]
    key: bytes = b""
    found: Found | None = None
    lost: int = 0


def follow(session: Session, name: MapName, data: DataOptions, end: float | None) -> Iterator[News]:
    """Yield each change until the clock reads end. If another map gets the name, that may have
    changed everything: one loss, and then its changes."""
    first = True
    while end is None or time.monotonic() < end:
        inode = inode_of(name)
        with session.open(name, write=True) as shared_map, shared_map.watch() as watch:
            contents = contents_of(shared_map, data)
            known = contents.long_keys()
            if not first:
                yield News(contents, "lost", lost=1)
            first = False
            while inode == inode_of(name):
                left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
                if left <= 0:
                    return
                select.select([watch], [], [], left)
                for change in watch.poll():
                    yield _news(contents, known, change.key, change.value)


def _news(contents: Plain, known: dict[bytes, bytes], raw: bytes | None, lost: object) -> News:
    """The present state of a key, by the bytes under which the map stores it; None: a loss."""
    if raw is None:
        known.update(contents.long_keys())
        return News(contents, "lost", lost=lost if isinstance(lost, int) else 1)
    entry = contents.entry_at(raw)
    if entry is not None:
        key, found = entry
        if contents.key_in(raw) is None:
            known[raw] = key
        return News(contents, "set", key, found)
    gone = known.pop(raw, None) or contents.key_in(raw)
    return News(contents, "lost", lost=1) if gone is None else News(contents, "deleted", gone)
