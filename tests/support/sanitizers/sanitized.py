"""Run a command and its children with a sanitizer loaded: python sanitized.py address pytest...

Extensions that the tests compile are compiled with the sanitizer, too (CFLAGS).
"""

import os
import shutil
import sys

from support.sanitizers import sanitizing


def main(kind, command, *arguments):
    environment = sanitizing.environment(kind)
    if not sanitizing.libraries(kind):
        sys.exit(f"{sanitizing.compiler()} has no {sanitizing.LIBRARIES[kind][0]}")
    environment["CFLAGS"] = environment["LDFLAGS"] = " ".join(sanitizing.FLAGS[kind])
    # Run the interpreter itself, because a script's first line might start a shell.
    sanitizing.fix_addresses()
    os.execve(
        sys.executable, [sys.executable, shutil.which(command) or command, *arguments], environment
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
