"""The maps of this machine: their figures, their health, and the processes that use them.

Each map is opened for reading, read and closed again, and no map is changed; the map of an
untrusted user is read in a child process (strangers.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import shmrhash
from shmrhash import RHashMap, _inspect
from shmrhash.cli.nameless import nameless_maps
from shmrhash.cli.screen import Cell, count_text
from shmrhash.cli.session import Session
from shmrhash.cli.strangers import read_map
from shmrhash.cli.words import MapName

OK = "ok"
DEAD = "dead owners"
FULL = "full"
FROZEN = "frozen"
ORPHAN = "left behind"
DAMAGED = "damaged"
VERSION = "other version"
DENIED = "no permission"
NOT_A_MAP = "not a map"
GONE = "gone"
NAMELESS = "no name"

READ_SECONDS_MAX = 10.0  # for each of several maps, if it belongs to an untrusted user

# The counters of a process in the segment; a version of the library may lack some of them.
PROCESS_COUNTERS = ("operations", "lookups", "updates", "inserts", "deletes", "adds", "waits")
USABLE = (OK, DEAD, FULL, FROZEN)
ADVICE = {
    DEAD: "shmrhash repair {name}",
    FULL: "delete entries, or move all of them to a larger map (shmrhash export, import)",
    ORPHAN: "shmrhash gc",
    DAMAGED: "shmrhash unlink {name}, then create it again",
    VERSION: "use the version of shmrhash that made it, or remove it: shmrhash unlink {name}",
    DENIED: "run this as the owner, as root, or with --owner USER",
    NAMELESS: "a program that opens its name gets another map: restart this map's processes",
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
class MapState:
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
    fields: tuple[_inspect.Field, ...] = ()
    user: int = -1  # the owner of the file
    near: dict[str, Any] = field(default_factory=dict)  # of a near cache; else empty

    @property
    def owner(self) -> str:
        """The name of the user that owns the map."""
        return _inspect.user_name(self.user) if self.user >= 0 else "?"

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
    def entries_text(self) -> str:
        """How many entries there are, and how many of them have expired."""
        expired = self.info.get("expired", 0)
        return count_text(self.info["entries"]) + (
            f" ({count_text(expired)} expired)" if expired else ""
        )

    @property
    def fill(self) -> float:
        """Unexpired entries as a share of max_entries: expired ones make room for others."""
        return float(_living(self.info) / self.info["max_entries"]) if self.info else 0.0

    @property
    def objects(self) -> dict[str, int]:
        """The figures of info() about objects; empty if the map has none."""
        return dict(self.info.get("objects", {}))

    @property
    def cache(self) -> dict[str, Any]:
        """The figures of info() about a cache; empty if the map is none."""
        return dict(self.info.get("cache", {}))

    @property
    def advice(self) -> str:
        """What to do about its health, or ""."""
        return ADVICE.get(self.health, "").format(name=self.name)


def _living(info: dict[str, Any]) -> int:
    return max(0, int(info["entries"]) - int(info.get("expired", 0)))


def state_of(name: MapName, session: Session, seconds: float | None = None) -> MapState:
    """The state of a map. seconds and exceptions: as for read_map()."""
    return read_map(name, session, partial(_read_state, name.name), seconds)


def _read_state(name: str, shared_map: RHashMap) -> MapState:
    status = _inspect.file_status(shared_map)
    info = shared_map.info()
    processes = tuple(make_process(found) for found in info["attached"])
    health = OK
    if any(not process.alive for process in processes):
        health = DEAD
    elif info.get("frozen"):
        health = FROZEN
    elif "cache" not in info and _living(info) >= info["max_entries"]:  # a full cache evicts
        health = FULL
    return MapState(
        name,
        info["path"],
        status.st_ino,
        health,
        taken=time.monotonic(),
        info=info,
        processes=processes,
        mem_usage=shared_map.mem_usage(),
        types=("a cache of " if "cache" in info else "") + _types_text(shared_map),
        fields=_inspect.fields_of(shared_map),
        user=status.st_uid,
        near=near_figures(shared_map, processes) if "cache" in info else {},
    )


def near_figures(shared_map: RHashMap, processes: Iterable[Process]) -> dict[str, Any]:
    """The figures of a near cache, and whether its tracker lives; empty for other caches."""
    near = _inspect.near_of(shared_map)
    if near:
        near["tracker_alive"] = any(
            process.alive for process in processes if process.pid == near["tracker_pid"]
        )
    return near


def _types_text(shared_map: RHashMap) -> str:
    """The types of a SharedDict; "" for other maps."""
    try:
        types = _inspect.types_of(shared_map)
    except shmrhash.LayoutMismatch as error:
        return f"cannot be read: {error}"
    return "" if types is None else str(types)


def make_process(found: dict[str, Any]) -> Process:
    """A process, from one of info()["attached"]."""
    counters = {name: found[name] for name in PROCESS_COUNTERS if name in found}
    pid, alive = found["pid"], found["alive"]
    command = found["command"] or (command_of(pid) if alive else "?")
    return Process(pid, command, found["attached_ns"], alive, counters)


def all_states(
    session: Session, wanted: Callable[[str], bool] = lambda _name: True
) -> Iterator[MapState]:
    """The state of every file in the directory of segments, by name, maps or not.

    wanted: whether to read a file of that name. Raises Error if the directory cannot be read.
    """
    for entry in _inspect.entries():
        try:
            if not (wanted(entry.name) and entry.is_file(follow_symlinks=False)):
                continue
            inode, user = entry.inode(), entry.stat(follow_symlinks=False).st_uid
        except OSError:
            continue
        health, detail = examine(entry.path)
        if health == OK:
            try:
                yield state_of(MapName(entry.name, entry.path), session, READ_SECONDS_MAX)
                continue
            except (shmrhash.Error, OSError) as error:
                health, detail = _diagnosis(error, entry.path), str(error)
        if health != GONE:
            yield MapState(entry.name, entry.path, inode, health, detail, user=user)


def examine(path: str) -> tuple[str, str]:
    """OK if the file begins as a map does; else NOT_A_MAP, DENIED or GONE, and the reason."""
    try:
        if _inspect.begins_as_map(path):
            return OK, ""
    except FileNotFoundError as error:
        return GONE, str(error)
    except OSError as error:
        return DENIED, str(error)
    return NOT_A_MAP, "it does not begin with the header of a map"


def _diagnosis(error: Exception, path: str) -> str:
    """The health of a map that cannot be opened."""
    if isinstance(error, shmrhash.SegmentMissing):
        # The library also raises SegmentMissing for an ephemeral map whose last process was killed.
        return ORPHAN if os.path.exists(path) else GONE
    if isinstance(error, shmrhash.LayoutMismatch):
        return VERSION
    return DENIED if isinstance(error, PermissionError) else DAMAGED


def nameless_states(wanted: Callable[[str], bool]) -> list[MapState]:
    """The states of maps in use that have no name. wanted: as for all_states()."""
    found = []
    for lost in nameless_maps():
        if wanted(lost.name):
            users = ", ".join(f"{command_of(pid)}({pid})" for pid in sorted(lost.pids))
            name = lost.name or f"#{lost.inode}"
            found.append(MapState(name, "", lost.inode, NAMELESS, users, user=lost.user))
    return found


def command_of(pid: int) -> str:
    """The name of a process of this PID namespace, or '?'."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def health_cell(state: MapState) -> Cell:
    """The health of a map, in its colour."""
    style = "ok" if state.health == OK else "note" if state.health in (FULL, FROZEN) else "bad"
    text = f"{len(state.dead)} dead" if state.dead else state.health
    return Cell(text, "dim" if state.health in (NOT_A_MAP, DENIED) else style)


def others_mapping(inode: int, path: str) -> list[tuple[int, str]]:
    """Processes that have the file mapped, readers too, as far as this user may see them."""
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
        except OSError:  # the process has ended, or is another user's
            continue
    return found
