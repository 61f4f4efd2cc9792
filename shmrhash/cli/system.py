"""Facts about this machine, for doctor: features of the kernel, mounts, memory limits.

Each feature is tried. The kernel's version proves nothing: a sandbox can report a version and
refuse features that this version has.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MADV_REMOVE, MADV_DONTFORK, MADV_DONTDUMP = 9, 10, 16
MADV_WIPEONFORK, MADV_POPULATE_WRITE = 18, 23
F_OFD_GETLK, F_OFD_SETLK = 36, 37
PUNCH_HOLE = 3  # with FALLOC_FL_KEEP_SIZE


@dataclass(frozen=True)
class Feature:
    """A system call, the first kernel that has it, and the consequence if it is refused."""

    call: str
    kernel: str
    without: str
    needed: bool
    attempt: Callable[[int], object]


def _advise(advice: int) -> Callable[[int], object]:
    def attempt(fd: int) -> None:
        with contextlib.closing(mmap.mmap(fd, mmap.PAGESIZE)) as page:
            page.madvise(advice)

    return attempt


def _wipe(fd: int) -> None:
    with contextlib.closing(mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)) as page:
        page.madvise(MADV_WIPEONFORK)


def _punch(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_int64(mmap.PAGESIZE)
    if libc.fallocate(fd, PUNCH_HOLE, ctypes.c_int64(0), size) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _lock(fd: int) -> None:
    for command in (F_OFD_SETLK, F_OFD_GETLK):
        fcntl.fcntl(fd, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


FEATURES = [
    Feature(
        "MADV_POPULATE_WRITE",
        "Linux 5.14",
        "fallocate allocates the memory, and pages are mapped one by one: inserts are slower",
        False,
        _advise(MADV_POPULATE_WRITE),
    ),
    Feature(
        "MADV_REMOVE",
        "Linux 2.6.16",
        "fallocate gives memory back instead",
        False,
        _advise(MADV_REMOVE),
    ),
    Feature(
        "fallocate(FALLOC_FL_PUNCH_HOLE)",
        "Linux 3.5",
        "programs that lock their memory (mlockall) never give memory of maps back",
        False,
        _punch,
    ),
    Feature(
        "MADV_DONTDUMP",
        "Linux 3.4",
        "a core dump fills the holes of each map, and so the file system: set ulimit -c 0",
        False,
        _advise(MADV_DONTDUMP),
    ),
    Feature("MADV_DONTFORK", "Linux 2.6.16", "no map can be opened", True, _advise(MADV_DONTFORK)),
    Feature("MADV_WIPEONFORK", "Linux 4.14", "no map can be opened", True, _wipe),
    Feature("fcntl(F_OFD_SETLK)", "Linux 3.15", "no map can be opened", True, _lock),
]


def refused_features(folder: str) -> Iterator[tuple[Feature, str]]:
    """The features that are refused, and why. Raises OSError if no file can be made for trials."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        for feature in FEATURES:
            try:
                feature.attempt(fd)
            except OSError as error:
                yield feature, error.strerror or str(error)
    finally:
        os.close(fd)


def mount_of(folder: str) -> tuple[str, str]:
    """Type and options of the file system of a directory, by the longest mount point above it."""
    full = os.path.realpath(folder)
    best, kind, options = "", "an unknown file system", ""
    for line in text_of("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        inside = full == point or full.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
            options = right.split()[-1]
    return kind, options


def text_of(path: str) -> str:
    """The text of a small file of the system, or ""."""
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(map(os.path.exists, marks)) or "KUBERNETES_SERVICE_HOST" in os.environ


def group_memory() -> tuple[int | None, int]:
    """The lowest memory limit of the control groups of this process, and the memory in use."""
    limit, used = None, 0
    for line in text_of("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("memory.max", "memory.current")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / path.lstrip("/")
        for level in (folder, *folder.parents):
            word = text_of(str(level / names[0])).strip()
            if word.isdigit() and int(word) < 1 << 60 and (limit is None or int(word) < limit):
                limit, used = int(word), int(text_of(str(level / names[1])) or 0)
            if level == root:
                break
    return limit, used
