"""Maps in use that have no name any more: removed by hand, by systemd, or replaced by a newer one.

Whoever opens the name makes or meets another map, so that one program may work on two without
knowing. Such a map is found by the descriptors that its users have of it, as far as this user may
look at these processes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from shmrhash import _core, _segment

_DELETED = " (deleted)"


@dataclass
class Nameless:
    """A map without a name. name: what it was called; "" if only its maker has it, whose
    descriptor is older than the name."""

    inode: int
    user: int
    name: str
    pids: set[int] = field(default_factory=set)


def nameless_maps() -> list[Nameless]:
    """The maps of the directory of segments that processes have open and that have no name."""
    folder = os.path.realpath(_segment.directory())
    found: dict[int, Nameless] = {}
    for process in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not process.isdigit():
            continue
        try:
            links = [entry.path for entry in os.scandir(f"/proc/{process}/fd")]
        except OSError:  # ended, or another user's
            continue
        for link in links:
            one = _looked_at(link, folder)
            if one is not None:
                first = found.setdefault(one.inode, one)
                first.pids.add(int(process))
                first.name = first.name or one.name
    return sorted(found.values(), key=lambda one: (one.name, one.inode))


def _looked_at(link: str, folder: str) -> Nameless | None:
    """The map that a descriptor is of, if it is a map's without a name."""
    try:
        path = os.readlink(link)
        if os.path.dirname(path) != folder or not path.endswith(_DELETED):
            return None
        status = os.stat(link)
        if status.st_nlink or not stat.S_ISREG(status.st_mode):
            return None
        with open(link, "rb", buffering=0) as file:
            if file.read(len(_core.MAGIC_BYTES)) != _core.MAGIC_BYTES:
                return None
    except OSError:  # closed meanwhile, or not to be read
        return None
    name = os.path.basename(path.removesuffix(_DELETED))
    if name.startswith("#"):  # as the system calls a file that is made without a name
        name = ""
    return Nameless(status.st_ino, status.st_uid, name)
