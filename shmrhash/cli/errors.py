"""Errors as the user sees them: a message and an exit status."""

from __future__ import annotations

import importlib.util
import os

import shmrhash

STATUS_NO = 1
STATUS_USAGE = 2
STATUS_MISSING = 3
STATUS_DENIED = 4
STATUS_DAMAGED = 5
STATUS_NO_ROOM = 6
STATUS_BUSY = 7
STATUS_NO_PACKAGE = 8
STATUS_SYSTEM = 9

STATUS_OF_ERROR: list[tuple[type[BaseException], int]] = [
    (shmrhash.KeyNotFound, STATUS_NO),
    (shmrhash.KeyExists, STATUS_NO),
    (shmrhash.SegmentMissing, STATUS_MISSING),
    (shmrhash.SegmentExists, STATUS_NO),
    (shmrhash.SegmentFull, STATUS_NO_ROOM),
    (shmrhash.MapFull, STATUS_NO_ROOM),
    (shmrhash.TooManyProcesses, STATUS_NO_ROOM),
    (shmrhash.SegmentCorrupt, STATUS_DAMAGED),
    (shmrhash.LayoutMismatch, STATUS_DAMAGED),
    (shmrhash.LockTimeout, STATUS_BUSY),
    (shmrhash.InvalidArgument, STATUS_USAGE),
    (FileNotFoundError, STATUS_MISSING),
    (PermissionError, STATUS_DENIED),
    (FileExistsError, STATUS_NO),
]
EXTRAS = {  # for each package: the extra of shmrhash that installs it
    "click": "cli",
    "rich": "cli",
    "prometheus_client": "metrics",
    "matplotlib": "plot",
    "numpy": "numpy",
    "redis": "near",
}


class Failure(Exception):
    """An error with a message for the user and an exit status."""

    def __init__(self, message: str, status: int = STATUS_USAGE) -> None:
        super().__init__(message)
        self.status = status


def need(package: str) -> None:
    """Raise Failure, with the command that installs the package, unless it can be imported."""
    if importlib.util.find_spec(package) is None:
        raise Failure(
            f"this needs the Python package {package}, which is not installed; "
            f"to install it: pip install 'shmrhash[{EXTRAS[package]}]'",
            STATUS_NO_PACKAGE,
        )


def status_of(error: BaseException) -> int:
    """The exit status for an exception of the library or of the system."""
    for kind, status in STATUS_OF_ERROR:
        if isinstance(error, kind):
            return status
    return STATUS_SYSTEM


def message_of(error: BaseException) -> str:
    """The message of an exception, without the quotes that Python puts around a KeyError's."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, shmrhash.Error):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error.args[0]) if error.args else str(error)


def failed(action: str, error: shmrhash.Error) -> Failure:
    """The message that bpftool prints if an action fails, with the library's if it says more."""
    text = os.strerror(error.errno) if error.errno else message_of(error)
    if not isinstance(error, (shmrhash.KeyNotFound, shmrhash.KeyExists)):
        text += f" ({message_of(error)})"
    return Failure(f"{action} failed: {text}", status_of(error))
