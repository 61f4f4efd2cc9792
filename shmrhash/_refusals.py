"""The exceptions for what the system refuses when a segment's file is made, opened or removed."""

import errno
import os
import stat
from typing import NoReturn

from shmrhash._errors import (
    Error,
    LockTimeout,
    PermissionDenied,
    SegmentExists,
    SegmentFull,
    SegmentMissing,
    SystemFailure,
    no_space_message,
)
from shmrhash._trust import user_text

# By errno: what it means for a map, and the remedy.
_REMEDIES = {
    errno.EMFILE: "this process has all the file descriptors it may have; close some, or raise "
    "the limit (ulimit -n)",
    errno.ENFILE: "all file descriptors of the system are in use; close some, or raise fs.file-max",
    errno.EFBIG: "the file would be larger than the limit of file sizes (ulimit -f, "
    "RLIMIT_FSIZE) or than the file system allows; raise it, or create the map with a smaller "
    "max_bytes or max_entries",
    errno.EOPNOTSUPP: "the file system cannot make files without a name; use a tmpfs, and name "
    "it in SHMRHASH_DIR if it is not /dev/shm",
    errno.EISDIR: "the file system cannot make files without a name; use a tmpfs, and name it in "
    "SHMRHASH_DIR if it is not /dev/shm",
    errno.ENOTDIR: "SHMRHASH_DIR must name a directory",
    errno.ENAMETOOLONG: "the path is too long; shorten the name, or SHMRHASH_DIR",
    errno.ELOOP: "a symbolic link is not a segment",
}


def permission_message(name: str, path: str) -> str:
    """Why a segment may not be opened, its owner and mode, and the remedy."""
    try:
        status = os.stat(path, follow_symlinks=False)
        what = f"owner {user_text(status.st_uid)}, mode {stat.filemode(status.st_mode)}"
    except OSError:
        what = "its owner and mode cannot be read"
    return (
        f"segment {name!r} ({path}: {what}) may not be opened by user {user_text(os.geteuid())}; "
        f"its owner can share it with a group (mode=0o660), or choose another name"
    )


def segment_exists(name: str, path: str) -> SegmentExists:
    """The exception if the name of a map to be made is taken."""
    where = os.path.dirname(path)
    return SegmentExists(
        f"segment {name!r} exists in {where}; open it, unlink it, or choose another name"
    )


def restless_name(name: str) -> LockTimeout:
    """The exception if a name could be neither opened nor created, however often it was tried."""
    return LockTimeout(f"segment {name!r} is created and removed again and again")


def restless_key(key: object, name: str) -> LockTimeout:
    """The exception if a key could be neither changed nor added, however often it was tried."""
    return LockTimeout(
        f"cache {name!r}: other threads stored or deleted {key!r} at each attempt; try again"
    )


def missing_directory(name: str, where: str) -> SystemFailure:
    """The exception if the directory of segments does not exist."""
    return system_failure(
        errno.ENOENT,
        f"map {name!r} cannot be made: the directory {where} does not exist; mount a tmpfs there, "
        f"or name another directory, best on a tmpfs, in SHMRHASH_DIR",
    )


def unreadable_directory(error: OSError, where: str) -> Error:
    """The exception if the directory of segments cannot be listed."""
    message = f"the directory of segments, {where}, cannot be read: {error.strerror}"
    if error.errno == errno.ENOENT:
        return SegmentMissing(f"{message}; set SHMRHASH_DIR to another")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(message)
    return system_failure(error.errno, f"{message}; set SHMRHASH_DIR to another")


def without_proc(name: str) -> SystemFailure:
    """The exception if a finished segment cannot get its name."""
    return system_failure(
        errno.ENOENT, f"map {name!r} cannot be made: /proc is not mounted; mount it (procfs)"
    )


def system_failure(number: int | None, message: str) -> SystemFailure:
    """A SystemFailure with the system's errno."""
    failure = SystemFailure(message)
    failure.errno = number
    return failure


def refuse(error: OSError, name: str, path: str) -> NoReturn:
    """Raise the exception for an error that the system gave for a segment's file."""
    where = os.path.dirname(path)
    number = error.errno
    if number == errno.EEXIST:
        raise segment_exists(name, path) from None
    if number == errno.ENOENT:
        raise SegmentMissing(f"no segment {name!r} in {where}") from None
    if number in (errno.EACCES, errno.EPERM):
        raise PermissionDenied(permission_message(name, path)) from None
    raise_other(error, name, path)


def refuse_creation(error: OSError, name: str, path: str) -> NoReturn:
    """As refuse(), for making a file without a name in the directory of segments."""
    where = os.path.dirname(path)
    if error.errno == errno.ENOENT:
        raise missing_directory(name, where) from None
    if error.errno in (errno.EACCES, errno.EPERM):
        raise PermissionDenied(
            f"map {name!r} cannot be made: user {user_text(os.geteuid())} may not write to "
            f"{where}; name another directory, best on a tmpfs, in SHMRHASH_DIR"
        ) from None
    raise_other(error, name, path)


def raise_other(error: OSError, name: str, path: str) -> NoReturn:
    """Raise the exception for an error that means the same in making, opening and removing."""
    where = os.path.dirname(path)
    number = error.errno
    if number in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
        raise SegmentFull(no_space_message(name, 0, path)) from None
    if number == errno.EROFS:
        raise PermissionDenied(
            f"map {name!r} cannot be made or changed: {where} is read-only; name another "
            f"directory, best on a tmpfs, in SHMRHASH_DIR"
        ) from None
    remedy = _REMEDIES.get(number or 0, "")
    raise system_failure(
        number, f"map {name!r} ({path}): {error.strerror or error}{remedy and ': '}{remedy}"
    ) from None
