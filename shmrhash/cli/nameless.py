"""Maps that are in use and have no name: removed by hand, by systemd, or replaced by a newer one.

A program that opens the name creates or opens another map, so that processes which should share a
map use two. Maps without names are found by the descriptors of their processes, as far as this user
may see those.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from shmrhash import _inspect

_DELETED = " (deleted)"


@dataclass
class NamelessMap:
    """A map without a name. name: its last name; "" if only the process that made it has it open,
    because that process's descriptor is older than the name."""

    inode: int
    user: int
    name: str
    pids: set[int] = field(default_factory=set)


def nameless_maps() -> list[NamelessMap]:
    """The maps of the directory of segments that processes have open and that have no name."""
    folder = os.path.realpath(_inspect.directory())
    found: dict[int, NamelessMap] = {}
    for process in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not process.isdigit():
            continue
        try:
            links = [entry.path for entry in os.scandir(f"/proc/{process}/fd")]
        except OSError:  # the process has ended, or is another user's
            continue
        for link in links:
            lost = _map_of(link, folder)
            if lost is not None:
                first = found.setdefault(lost.inode, lost)
                first.pids.add(int(process))
                first.name = first.name or lost.name
    return sorted(found.values(), key=lambda lost: (lost.name, lost.inode))


def _map_of(link: str, folder: str) -> NamelessMap | None:
    """The map that a descriptor refers to, if it is a map without a name."""
    try:
        path = os.readlink(link)
        if os.path.dirname(path) != folder or not path.endswith(_DELETED):
            return None
        status = os.stat(link)
        if status.st_nlink or not stat.S_ISREG(status.st_mode):
            return None
        with open(link, "rb", buffering=0) as file:
            if not _inspect.is_map(file):
                return None
    except OSError:  # the descriptor was closed, or cannot be read
        return None
    name = os.path.basename(path.removesuffix(_DELETED))
    if name.startswith("#"):  # the kernel names a file without a name so
        name = ""
    return NamelessMap(status.st_ino, status.st_uid, name)
