"""The exceptions of shmrhash: one hierarchy, each also derived from a built-in exception.

Each has an ``errno``: the one that the kernel's BPF_MAP_TYPE_RHASH gives for the same condition,
where there is one.
"""

import errno
import os


class Error(Exception):
    """Base of all exceptions of shmrhash. ``errno`` is a number from the errno module, or None.

    ``count``: how many keys of a batch were done; None for other calls.
    """

    errno: int | None = None
    count: int | None = None


class KeyNotFound(Error, KeyError):
    """No element has this key. ``errno`` is ENOENT."""

    errno = errno.ENOENT


class KeyExists(Error, KeyError):
    """BPF_NOEXIST was given, and the key is in the map. ``errno`` is EEXIST."""

    errno = errno.EEXIST


class MapFull(Error, OverflowError):
    """The map has max_entries entries. ``errno`` is E2BIG."""

    errno = errno.E2BIG


class SegmentFull(Error, MemoryError):
    """The shared-memory file system has no room for the memory that one operation needed.

    Nothing changed. ``errno`` is ENOMEM.
    """

    errno = errno.ENOMEM


class InvalidArgument(Error, ValueError):
    """An argument that no map accepts. ``errno`` is EINVAL."""

    errno = errno.EINVAL


class TooLarge(InvalidArgument):
    """A size or number beyond what the format can hold. ``errno`` is E2BIG."""

    errno = errno.E2BIG


class MapClosed(Error, ValueError):
    """The handle was closed. ``errno`` is EBADF."""

    errno = errno.EBADF


class ReadOnlyMap(Error, PermissionError):
    """A handle opened for reading was asked to write. ``errno`` is EPERM."""

    errno = errno.EPERM


class FrozenMap(ReadOnlyMap):
    """The map was frozen: no handle can write to it. ``errno`` is EPERM."""


class WriteOnlyMap(Error, PermissionError):
    """A handle opened for writing was asked to read. ``errno`` is EPERM."""

    errno = errno.EPERM


class PermissionDenied(Error, PermissionError):
    """The segment's permissions or owner forbid opening it. ``errno`` is EACCES."""

    errno = errno.EACCES


class SegmentExists(Error, FileExistsError):
    """A segment of this name exists. ``errno`` is EEXIST."""

    errno = errno.EEXIST


class SegmentMissing(Error, FileNotFoundError):
    """No segment has this name. ``errno`` is ENOENT."""

    errno = errno.ENOENT


class LayoutMismatch(Error, ValueError):
    """Not a segment, another layout version, or another geometry. ``errno`` is EINVAL."""

    errno = errno.EINVAL


class SegmentCorrupt(Error, RuntimeError):
    """The segment has contents that no operation of this library writes. ``errno`` is EUCLEAN."""

    errno = errno.EUCLEAN


class LockTimeout(Error, TimeoutError):
    """A lock's owner is alive and did not release the lock within the timeout.

    The operation did nothing. ``errno`` is EBUSY.
    """

    errno = errno.EBUSY


class Unavailable(Error, ConnectionError):
    """The server of a near cache cannot be reached, and the stored value is too old to be served.

    ``errno`` is EHOSTUNREACH.
    """

    errno = errno.EHOSTUNREACH


class TrackingRefused(InvalidArgument):
    """The server of a near cache refuses to report changes. The message says what to do.

    ``errno`` is EOPNOTSUPP.
    """

    errno = errno.EOPNOTSUPP


class WaitTimeout(Error, TimeoutError):
    """The change that was waited for did not happen within the timeout. ``errno`` is ETIMEDOUT."""

    errno = errno.ETIMEDOUT


class MapBusy(LockTimeout):
    """The map is being cleared: no new key can be inserted until that ends.

    The operation did nothing. ``errno`` is EBUSY.
    """


class OutOfMemory(SegmentFull):
    """The objects of the map, or all parts of a cache, would take more than its max_bytes.

    Nothing changed. ``errno`` is ENOMEM.
    """


class LimitReached(Error, MemoryError):
    """A limit of this process forbids a segment of this size: ulimit -v, -f or -l.

    No segment was created. ``errno`` is the system's: ENOMEM, EFBIG or EAGAIN.
    """

    errno = errno.ENOMEM


class Unsupported(Error, OSError):
    """This kernel, or a filter of system calls, refuses a call for which there is no substitute.

    The operation did nothing. ``errno`` is ENOSYS.
    """

    errno = errno.ENOSYS


class Deposed(Error, RuntimeError):
    """This process is not, or no longer, the leader: see Leader.check()."""


class DeadlockError(Error, RuntimeError):
    """This thread would wait for a lock that it holds itself, or in a circle of threads that wait
    for each other's locks; the message names them. ``errno`` is EDEADLK."""

    errno = errno.EDEADLK


class KeyGone(KeyNotFound):
    """A key was deleted while a section had it locked; the section's value was not stored.

    ``errno`` is ENOENT.
    """


class SystemFailure(Error, OSError):
    """The system refused something that a map needs: for example, there is no directory.

    The message says what to do about it. ``errno`` is the system's.
    """


class TooManyProcesses(Error, RuntimeError):
    """All process slots, or all operation contexts, are in use. ``errno`` is EUSERS."""

    errno = errno.EUSERS


REFUSALS = frozenset(  # the errnos of a system call that is unknown or filtered
    (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)
)


def missing_message(name: str, what: str, number: int) -> str:
    """The message for a user whose system refuses a system call."""
    reason = f" ({os.strerror(number)})" if number else ""
    return (
        f"map {name!r}: this system refuses {what}{reason}; use a kernel that has it, or let the "
        f"sandbox permit it (the seccomp profile of a container); 'shmrhash doctor' tries each"
    )


def limit_reached(name: str, size: int, number: int) -> LimitReached:
    """The error of a segment that is too large for this process, by its errno."""
    remedy = "or create the map with a smaller max_bytes or max_entries"
    if number == errno.EFBIG:
        what = f"is a sparse file of {size} bytes, more than a file may have here"
        change = f"raise the limit (ulimit -f unlimited), {remedy}"
    elif number == errno.EAGAIN:
        what = f"reserves {size} bytes, and this process locks all memory that it maps (mlockall)"
        change = f"raise that limit (ulimit -l unlimited), {remedy}"
    else:
        what = f"reserves {size} bytes of address space, more than this process has left"
        change = (
            f"raise the limit (ulimit -v unlimited; with many maps, vm.max_map_count), {remedy}"
        )
    refusal = LimitReached(f"map {name!r} {what} ({os.strerror(number)}); {change}")
    refusal.errno = number
    return refusal


def no_space_message(name: str, wanted: int, path: bytes | str) -> str:
    """The message for a user whose shared-memory file system is full."""
    directory = os.path.dirname(os.fsdecode(path))
    try:
        status = os.statvfs(directory)
        room = (
            f"{status.f_bavail * status.f_frsize} of {status.f_blocks * status.f_frsize} bytes free"
        )
    except OSError:
        room = "its free space cannot be read"
    asked = f"{wanted} bytes more" if wanted else "more memory"
    return (
        f"map {name!r} needs {asked}, but {directory} is full ({room}), or a memory limit is "
        f"reached; remove unused segments or enlarge it (containers get 64 MB unless told "
        f"otherwise, for example by --shm-size)"
    )
