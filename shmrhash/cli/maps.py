"""What maps there are, how they are, and who uses them: found without changing anything.

Each map is opened for reading, looked at and closed again; a stranger's in a child (looking.py).
A handle for reading keeps memory from being given back while it is there (DESIGN.md, section 8), so
none is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import shmrhash
from shmrhash import RHashMap, _core, _segment
from shmrhash._fields import Field, unpacked
from shmrhash._trust import user_name
from shmrhash.cli.entries.layouts import types_of
from shmrhash.cli.session import Session
from shmrhash.cli.strangers import looked_at
from shmrhash.cli.words import MapName

OK = "ok"
DEAD = "dead owners"
FULL = "full"
FROZEN = "frozen"
ORPHAN = "left behind"
DAMAGED = "damaged"
VERSION = "other version"
DENIED = "no permission"
STRANGER = "no map"
GONE = "gone"

LOOK_SECONDS_MAX = 10.0  # at a stranger's map, among others

# What a process counts in the segment, as far as it does.
PROCESS_COUNTERS = ("operations", "lookups", "updates", "inserts", "deletes", "adds", "waits")
USABLE = (OK, DEAD, FULL, FROZEN)
ADVICE = {
    DEAD: "shmrhash repair {name}",
    FULL: "delete entries, or move them to a larger map (shmrhash export, import)",
    ORPHAN: "shmrhash gc",
    DAMAGED: "shmrhash unlink {name}, and create it again",
    VERSION: "use the version of shmrhash that made it, or shmrhash unlink {name}",
    DENIED: "ask as its owner, as root, or with --owner",
}


@dataclass(frozen=True)
class Process:
    """A process attached to a map for writing."""

    pid: int
    command: str
    attached_ns: int
    alive: bool
    counters: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.command}({self.pid})"


@dataclass(frozen=True)
class Sight:
    """A map at one moment. info is empty if it could not be opened; detail says why."""

    name: str
    path: str
    inode: int
    health: str
    detail: str = ""
    taken: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    mem_usage: int = 0
    types: str = ""
    fields: tuple[Field, ...] = ()
    user: int = -1  # whose file it is

    @property
    def owner(self) -> str:
        """The name of the user whose map it is."""
        return user_name(self.user) if self.user >= 0 else "?"

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    @property
    def dead(self) -> list[Process]:
        return [process for process in self.processes if not process.alive]

    @property
    def usable(self) -> bool:
        return self.health in USABLE

    @property
    def fill(self) -> float:
        """The share of its entries that live; what has expired makes room."""
        return float(_living(self.info) / self.info["max_entries"]) if self.info else 0.0

    @property
    def objects(self) -> dict[str, int]:
        """What info() says of objects; empty if the map has none."""
        return dict(self.info.get("objects", {}))

    @property
    def advice(self) -> str:
        """What to do about its health, or nothing."""
        return ADVICE.get(self.health, "").format(name=self.name)


def _living(info: dict[str, Any]) -> int:
    return max(0, int(info["entries"]) - int(info.get("expired", 0)))


def look(name: MapName, session: Session, seconds: float | None = None) -> Sight:
    """The map of this name; seconds: as for looked_at(), which says what is raised."""
    return looked_at(name, session, partial(_sight_of, name.name), seconds)


def _sight_of(name: str, shared_map: RHashMap) -> Sight:
    status = os.fstat(shared_map._descriptor())
    info = shared_map.info()
    processes = tuple(make_process(found) for found in info["attached"])
    health = OK
    if any(not process.alive for process in processes):
        health = DEAD
    elif info.get("frozen"):
        health = FROZEN
    elif _living(info) >= info["max_entries"]:
        health = FULL
    return Sight(
        name,
        info["path"],
        status.st_ino,
        health,
        taken=time.monotonic(),
        info=info,
        processes=processes,
        mem_usage=shared_map.mem_usage(),
        types=_types_text(shared_map),
        fields=unpacked(shared_map._fields()),
        user=status.st_uid,
    )


def _types_text(shared_map: RHashMap) -> str:
    """What a SharedDict's keys and values are; nothing for other maps."""
    try:
        types = types_of(shared_map)
    except shmrhash.LayoutMismatch as error:
        return f"not to be read: {error}"
    return "" if types is None else str(types)


def make_process(found: dict[str, Any]) -> Process:
    """A process, from one of info()["attached"]."""
    counters = {name: found[name] for name in PROCESS_COUNTERS if name in found}
    pid, alive = found["pid"], found["alive"]
    command = found["command"] or (command_of(pid) if alive else "?")
    return Process(pid, command, found["attached_ns"], alive, counters)


def look_around(
    session: Session, wanted: Callable[[str], bool] = lambda _name: True
) -> Iterator[Sight]:
    """Every file in the directory of segments, sick and strange ones too, by name.

    wanted: whether to look at a file of that name.

    Raises what _segment.entries() raises.
    """
    for entry in _segment.entries():
        try:
            if not (wanted(entry.name) and entry.is_file(follow_symlinks=False)):
                continue
            inode, user = entry.inode(), entry.stat(follow_symlinks=False).st_uid
        except OSError:
            continue
        health, detail = examine(entry.path)
        if health == OK:
            try:
                yield look(MapName(entry.name, entry.path), session, LOOK_SECONDS_MAX)
                continue
            except (shmrhash.Error, OSError) as error:
                health, detail = _diagnosis(error, entry.path), str(error)
        if health != GONE:
            yield Sight(entry.name, entry.path, inode, health, detail, user=user)


def examine(path: str) -> tuple[str, str]:
    """OK if the file begins as a map does; else STRANGER, DENIED or GONE, and why."""
    try:
        with open(_segment.look_at_file(path), "rb", buffering=0) as file:
            if file.read(len(_core.MAGIC_BYTES)) == _core.MAGIC_BYTES:
                return OK, ""
            return STRANGER, "it does not begin as a map does"
    except FileNotFoundError as error:
        return GONE, str(error)
    except OSError as error:
        return DENIED, str(error)


def _diagnosis(error: Exception, path: str) -> str:
    """The health of a map that cannot be opened."""
    if isinstance(error, shmrhash.SegmentMissing):
        # Ephemeral, and its last user was killed: it counts as missing although it is there.
        return ORPHAN if os.path.exists(path) else GONE
    if isinstance(error, shmrhash.LayoutMismatch):
        return VERSION
    return DENIED if isinstance(error, PermissionError) else DAMAGED


def command_of(pid: int) -> str:
    """The name of a process of this PID namespace, or '?'."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def others_mapping(inode: int, path: str) -> list[tuple[int, str]]:
    """Processes, as far as this user may look, that have the file mapped: readers as well."""
    wanted = os.stat(path, follow_symlinks=False)
    device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}"
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/maps", errors="replace") as maps:
                words = (line.split(None, 5) for line in maps)
                if any(word[3] == device and word[4] == str(inode) for word in words):
                    found.append((pid, command_of(pid)))
        except OSError:  # ended, or another user's
            continue
    return found


def open_by_name(name: str, session: Session, *, write: bool = False) -> RHashMap:
    """Attach to the map of this plain name."""
    return session.open(MapName(name, _segment.path_of(name)), write=write)
