"""Files of segments: names, creation without a half-made name, opening, unlinking.

A segment is a file in the shared-memory directory, /dev/shm unless SHMRHASH_DIR says otherwise. It
is made without a name (O_TMPFILE), filled, attached, and only then linked to its name: a creator
that dies leaves nothing, and of two that race one is told that the name exists.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import NoReturn

import posix_ipc

from shmrhash._errors import (
    REFUSALS,
    InvalidArgument,
    PermissionDenied,
    SegmentExists,
    SegmentFull,
    SegmentMissing,
    Unsupported,
    limit_reached,
    missing_message,
    no_space_message,
)

DEFAULT_DIRECTORY = "/dev/shm"
NAME_BYTES_MAX = 200


def directory() -> str:
    """The directory that holds the segments."""
    return os.environ.get("SHMRHASH_DIR") or DEFAULT_DIRECTORY


def plain_name(name: str) -> str:
    """name without its leading slash, if it can be a segment's."""
    if not isinstance(name, str):
        raise TypeError(f"a map's name must be str, not {type(name).__name__}")
    plain = name.removeprefix("/")
    size = len(os.fsencode(plain))
    if not 0 < size <= NAME_BYTES_MAX or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise InvalidArgument(
            f"a map's name has 1 to {NAME_BYTES_MAX} bytes, no slash but a leading one, no NUL, "
            f"and is not '.' or '..'; got {name[:64]!r} ({size} bytes)"
        )
    return plain


def path_of(name: str) -> str:
    """The path of the segment with this name."""
    return os.path.join(directory(), plain_name(name))


def create_file(name: str, size: int, mode: int) -> int:
    """A nameless file of size bytes in the directory of segments; its descriptor."""
    where = directory()
    try:
        fd = os.open(where, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _refuse(error, name, os.path.join(where, name))
    try:
        os.fchmod(fd, mode)
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EFBIG:
            raise limit_reached(name, size, errno.EFBIG) from None
        _refuse(error, name, os.path.join(where, name))
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
            raise

    return commit


def link_file(fd: int, name: str, path: str) -> None:
    """Give a finished segment its name. SegmentExists if it is taken."""
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(
            f"/proc/self/fd/{fd}", os.path.basename(path), dst_dir_fd=folder, follow_symlinks=True
        )
    except OSError as error:
        _refuse(error, name, path)
    finally:
        os.close(folder)


def open_file(name: str, path: str, *, read_only: bool, owner: int | None) -> int:
    """The descriptor of an existing segment that may be trusted as far as its file goes."""
    try:
        if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
            raise PermissionDenied(f"{path} is not a regular file, hence no segment")
        if os.path.dirname(path) == DEFAULT_DIRECTORY:
            fd = int(posix_ipc.SharedMemory("/" + name, read_only=read_only).fd)
        else:
            flags = os.O_RDONLY if read_only else os.O_RDWR
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except posix_ipc.ExistentialError:
        raise SegmentMissing(f"no segment {name!r} in {os.path.dirname(path)}") from None
    except posix_ipc.PermissionsError:
        raise PermissionDenied(_permission_message(name, path)) from None
    except PermissionDenied:
        raise
    except OSError as error:
        _refuse(error, name, path)
    status = os.fstat(fd)
    if os.geteuid() not in (0, status.st_uid) and status.st_uid not in (0, owner):
        os.close(fd)
        raise PermissionDenied(
            f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} or root; pass "
            f"owner={status.st_uid} to trust that user"
        )
    return fd


def unlink_file(name: str, path: str) -> None:
    """Remove a segment's name. Attached processes go on; the memory goes with the last of them."""
    try:
        if os.path.dirname(path) == DEFAULT_DIRECTORY:
            posix_ipc.unlink_shared_memory("/" + name)
        else:
            os.unlink(path)
    except posix_ipc.ExistentialError:
        raise SegmentMissing(f"no segment {name!r} in {os.path.dirname(path)}") from None
    except posix_ipc.PermissionsError:
        raise PermissionDenied(_permission_message(name, path)) from None
    except OSError as error:
        _refuse(error, name, path)


def _permission_message(name: str, path: str) -> str:
    try:
        status = os.stat(path, follow_symlinks=False)
        what = f"owner {status.st_uid}, mode {stat.filemode(status.st_mode)}"
    except OSError:
        what = "its owner and mode cannot be read"
    return f"segment {name!r} ({path}: {what}) may not be opened by user {os.geteuid()}"


def _refuse(error: OSError, name: str, path: str) -> NoReturn:
    where = os.path.dirname(path)
    if error.errno == errno.EEXIST:
        raise SegmentExists(
            f"segment {name!r} exists in {where}; open it, unlink it, or choose another name"
        ) from None
    if error.errno == errno.ENOENT:
        raise SegmentMissing(f"no segment {name!r} in {where}") from None
    if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP):
        raise PermissionDenied(_permission_message(name, path)) from None
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
        raise SegmentFull(no_space_message(name, 0, path)) from None
    raise error
