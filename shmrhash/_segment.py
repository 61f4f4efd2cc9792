"""Files of segments: names, creation, opening, unlinking.

A segment is a file in the shared-memory directory, /dev/shm unless SHMRHASH_DIR names another. It
is created without a name (O_TMPFILE), filled, attached, and only then linked to its name. So a
creator that dies leaves no file, and the loser of a race to create learns that the name exists.
"""

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from shmrhash import _core
from shmrhash._errors import (
    REFUSALS,
    InvalidArgument,
    PermissionDenied,
    SegmentFull,
    SegmentMissing,
    Unsupported,
    limit_reached,
    missing_message,
    no_space_message,
)
from shmrhash._refusals import (
    permission_message,
    refuse,
    refuse_creation,
    unreadable_directory,
    without_proc,
)
from shmrhash._trust import is_trusted, stranger_message

# Imported here, not where it is used: a process that has given up its privileges, or has changed
# its root, may not be able to read it then. Without the GIL it is not imported: that would turn
# the GIL on.
if getattr(sys, "_is_gil_enabled", lambda: True)():
    try:
        import posix_ipc
    except ImportError:  # the same is done without it
        posix_ipc = None
else:
    posix_ipc = None

DEFAULT_DIRECTORY = "/dev/shm"
NAME_BYTES_MAX = 200
REMOVAL_TRIES_MAX = 1000  # of a millisecond

Identity = tuple[int, int]  # device and inode


def directory() -> str:
    """The directory that holds the segments."""
    return os.environ.get("SHMRHASH_DIR") or DEFAULT_DIRECTORY


def plain_name(name: str) -> str:
    """name without its leading slash, if a segment can have it."""
    if not isinstance(name, str):
        raise TypeError(f"a map's name must be str, not {type(name).__name__}")
    plain = name.removeprefix("/")
    try:
        size = len(os.fsencode(plain))
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"a map's name is a file's name, and {name[:64]!a} cannot be one in the encoding "
            f"{sys.getfilesystemencoding()}; use a UTF-8 locale, or PYTHONUTF8=1"
        ) from None
    if not 0 < size <= NAME_BYTES_MAX or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise InvalidArgument(
            f"a map's name must have 1 to {NAME_BYTES_MAX} bytes, no slash but a leading one, no "
            f"NUL, and not be '.' or '..'; got {name[:64]!r} ({size} bytes)"
        )
    return plain


def path_of(name: str) -> str:
    """The path of the segment with this name."""
    return os.path.join(directory(), plain_name(name))


def entries(name: str = "") -> list[os.DirEntry[str]]:
    """The files in the segments' directory, sorted; name is that of the map to be made, if any."""
    where = directory()
    try:
        with os.scandir(where) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if name:
            refuse_creation(error, name, path_of(name))
        raise unreadable_directory(error, where) from None


def file_system_bytes(name: str) -> int:
    """The size of the file system that holds the segments; name is that of the map to be made."""
    try:
        status = os.statvfs(directory())
    except OSError as error:
        refuse_creation(error, name, path_of(name))
    return status.f_blocks * status.f_frsize


def create_file(name: str, size: int, mode: int) -> int:
    """A nameless file of size bytes in the directory of segments; its descriptor."""
    where = directory()
    try:
        fd = os.open(where, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        refuse_creation(error, name, os.path.join(where, name))
    try:
        os.fchmod(fd, mode)
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EFBIG:
            raise limit_reached(name, size, errno.EFBIG) from None
        refuse_creation(error, name, os.path.join(where, name))
    return fd


def committer(fd: int, name: str) -> Callable[[int, int], None]:
    """A function that allocates a range of the file, or raises SegmentFull."""

    def commit(offset: int, size: int) -> None:
        try:
            os.posix_fallocate(fd, offset, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise SegmentFull(no_space_message(name, size, path_of(name))) from None
            if error.errno in REFUSALS:
                number = error.errno
                raise Unsupported(missing_message(name, "fallocate(2)", number)) from None
            refuse(error, name, path_of(name))

    return commit


def link_file(fd: int, name: str, path: str) -> None:
    """Give a finished segment its name. Raises SegmentExists if the name is taken."""
    try:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        refuse_creation(error, name, path)
    try:
        os.link(
            f"/proc/self/fd/{fd}", os.path.basename(path), dst_dir_fd=folder, follow_symlinks=True
        )
    except OSError as error:
        if not os.path.exists("/proc/self/fd"):
            raise without_proc(name) from None
        refuse(error, name, path)
    finally:
        os.close(folder)


def _is_text(name: str) -> bool:
    """Whether posix_ipc can take the name, which it encodes without surrogateescape."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _by_name(name: str, path: str, *, read_only: bool) -> int:
    """The descriptor of an existing segment in the default directory."""
    try:
        return int(posix_ipc.SharedMemory("/" + name, read_only=read_only).fd)
    except posix_ipc.ExistentialError:
        raise SegmentMissing(f"no segment {name!r} in {os.path.dirname(path)}") from None
    except posix_ipc.PermissionsError:
        raise PermissionDenied(permission_message(name, path)) from None


def open_file(name: str, path: str, *, read_only: bool, owner: int | None) -> int:
    """The descriptor of an existing segment, if it is a regular file of a trusted user."""
    try:
        if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
            raise PermissionDenied(f"{path} is not a regular file, hence no segment")
        if os.path.dirname(path) == DEFAULT_DIRECTORY and posix_ipc and _is_text(name):
            fd = _by_name(name, path, read_only=read_only)
        else:  # the same, without posix_ipc
            flags = os.O_RDONLY if read_only else os.O_RDWR
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (PermissionDenied, SegmentMissing):
        raise
    except OSError as error:
        if error.errno is None:  # posix_ipc raises it for too many open files
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        refuse(error, name, path)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):  # the name was given to another file after os.stat()
        os.close(fd)
        raise PermissionDenied(f"{path} is not a regular file, hence no segment")
    if not is_trusted(status.st_uid, owner):
        os.close(fd)
        raise PermissionDenied(stranger_message(path, status.st_uid))
    return fd


def look_at_file(path: str) -> int:
    """A descriptor for reading a segment's file, of any user; never for mapping it.

    Raises OSError, also if it is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def unlink_file(name: str, path: str, identity: Identity | None = None) -> None:
    """Remove a segment's name. Attached processes go on; the last to detach frees the memory.

    identity: remove the name only if it still names this file.
    """
    try:
        done = remove_name(path, identity)
    except OSError as error:
        refuse(error, name, path)
    if not done:
        where = os.path.dirname(path)
        raise SegmentMissing(
            f"no segment {name!r} in {where}"
            if not os.path.lexists(path)
            else f"segment {name!r} in {where} is a newer one; this one has no name any more"
        )


class Holders(NamedTuple):
    """The processes that have a segment open, as its file and the locks on it show them."""

    alive: int  # processes, except those at their end
    dead: int  # processes that ended without leaving, and were not recovered yet
    readers: bool  # whether a handle for reading is open
    ephemeral: bool

    @property
    def nobody(self) -> bool:
        """Whether no process has it open."""
        return not self.alive and not self.readers


def holders_of(fd: int) -> Holders | None:
    """The holders of the segment in this file; None if it is no map of this version.

    Raises SegmentCorrupt.
    """
    found = _core.segment_holders(fd)
    return None if found is None else Holders(*found)


def names(path: str, identity: Identity) -> bool:
    """Whether path is the name of this file."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == identity


def remove_name(path: str, identity: Identity | None = None, *, unheld: bool = False) -> bool:
    """Remove a name; return whether it was removed.

    identity: only if it names this file. unheld: only if no process holds the segment.

    Removal and attachment exclude each other (removal_begin, wait_for_removal): a process that
    attached before the removal is seen here, and one that attaches later finds the name gone.
    Without the right to write the file, its lock cannot be taken; then explicit removal goes on
    without the lock.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        if unheld or (identity is not None and not names(path, identity)):
            return False
        os.unlink(path)
        return True
    try:
        status = os.fstat(fd)
        found = status.st_dev, status.st_ino
        if identity not in (None, found):
            return False
        _wait_until(lambda: _core.removal_begin(fd))
        if not names(path, found):
            return False
        if unheld:
            holders = holders_of(fd)
            if holders is None or not holders.nobody:
                return False
        os.unlink(path)
        return True
    finally:
        os.close(fd)  # this also releases the lock


def wait_for_removal(fd: int, path: str) -> bool:
    """After attaching: wait until no process is removing the name; whether it names this file."""
    _wait_until(lambda: not _core.removal_is_under_way(fd))
    status = os.fstat(fd)
    return names(path, (status.st_dev, status.st_ino))


def _wait_until(done: Callable[[], bool]) -> None:
    """Wait for a condition that takes microseconds; if the other process is stopped in between,
    give up after REMOVAL_TRIES_MAX milliseconds."""
    for _ in range(REMOVAL_TRIES_MAX):
        if done():
            return
        time.sleep(0.001)


def has_huge_pages(inode: int) -> bool:
    """Whether the system maps any part of the file with this inode with huge pages, in this
    process."""
    inside = False
    with (
        contextlib.suppress(OSError),  # there is no /proc, or no descriptor is left
        open("/proc/self/smaps", errors="replace") as smaps,
    ):
        for line in smaps:
            words = line.split()
            if "-" in words[0]:
                inside = words[4] == str(inode)
            elif inside and words[0] == "ShmemPmdMapped:" and words[1] != "0":
                return True
    return False
