"""Files that appear under their names when they are complete.

Until then they have random names in the same directory: another user who may write to the directory
cannot place a link under such a name, and no reader sees half a file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

STANDARD = "-"
MODE_NEW = 0o666  # less the umask


@contextlib.contextmanager
def new_file(path: str, mode: int = MODE_NEW) -> Iterator[BinaryIO]:
    """A file to write, which appears under its name when it is complete; '-' is standard output.

    mode: its permissions, less the umask; a file that is replaced keeps its permissions. A pipe, or
    any other path that is no regular file, is written directly.
    """
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    before = None
    with contextlib.suppress(OSError):
        before = os.stat(path)
    if before is not None and not stat.S_ISREG(before.st_mode):
        with open(path, "wb") as file:
            yield file
        return
    part = os.path.join(
        os.path.dirname(path), f".{os.path.basename(path)[:100]}.{secrets.token_hex(8)}"
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:  # an interrupt may come as soon as the file is there
        fd = os.open(part, flags, mode & MODE_NEW)
        with open(fd, "wb") as file:
            if before is not None:
                os.fchmod(fd, stat.S_IMODE(before.st_mode) & MODE_NEW)
            yield file
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
