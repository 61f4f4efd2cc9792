"""The command as people run it, and processes that use the maps it looks at."""

import fcntl
import functools
import json
import os
import select
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from support.children import Partner, kill, stays
from support.zygote import Zygote

SCRIPT = Path(sysconfig.get_path("scripts")) / "shmrhash"
# `-m` puts the working directory on sys.path, so it must not be that of the sources.
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "shmrhash"]
FOLDER = tempfile.gettempdir()
TIMEOUT_SECONDS = 60
STR = ("--str", "--value-u64")  # the keys of make()'s maps are texts, the values numbers


@dataclass(frozen=True)
class Result:
    """The exit status and output of one run of the command."""

    status: int
    raw: bytes
    err: str

    @property
    def out(self):
        """The output as text."""
        return self.raw.decode()

    @property
    def json(self):
        """The output as JSON."""
        return json.loads(self.out)

    @property
    def lines(self):
        """The lines of the output."""
        return self.out.splitlines()


@functools.cache
def zygote_of(pid):
    return Zygote()


def zygote():
    """The zygote of this process."""
    return zygote_of(os.getpid())


def run(*words, status=0, stdin="", command=None, **more):
    """Run the command; its exit status must be status, and it must not show a traceback."""
    content = stdin.encode() if isinstance(stdin, str) else stdin
    words = [str(word) for word in words]
    if command is None and not more:
        ended, output, errors = zygote().run(words, content, FOLDER, TIMEOUT_SECONDS)
    else:
        done = subprocess.run(
            [*(command or COMMAND), *words],
            cwd=FOLDER,
            input=content,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            **more,
        )
        ended, output, errors = done.returncode, done.stdout, done.stderr
    result = Result(ended, output, errors.decode())
    assert "Traceback" not in result.err, result.err
    assert status == result.status, f"{words}: {result}"
    return result


def say(line, **more):
    """Run the command; its arguments are the words of this line."""
    return run(*line.split(), **more)


def start(*words, **more):
    """Start the command; return its process without waiting for its end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*COMMAND, *map(str, words)], cwd=FOLDER, **streams | more)


def path_of(name):
    """Return the path of a map's file."""
    return Path(os.environ["SHMRHASH_DIR"], name)


def overwrite(name, offset, data):
    """Write data into a segment's file, at offset."""
    with open(path_of(name), "r+b") as file:
        file.seek(offset)
        file.write(data)


class Users:
    """Children that do something with a map and stay attached."""

    def __init__(self):
        self._children = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill(*list(self._children))

    def start(self, function, *arguments):
        """Fork a child that calls function once, keeps the result, and stays until killed."""
        return self._keep(stays(function, *arguments))

    def start_working(self, function, *arguments):
        """Fork a child that calls function again and again."""

        def work(parent):
            function(*arguments)
            parent.say()
            while True:
                function(*arguments)

        child = Partner(work)
        child.hear()
        return self._keep(child)

    def _keep(self, child):
        self._children[child.pid] = child
        return child.pid

    def kill(self, *pids):
        """Kill these children with SIGKILL, and wait until they have ended."""
        for pid in pids:
            kill(self._children.pop(pid))


class Terminal:
    """The command on a terminal with the given number of columns and lines."""

    def __init__(self, *words, columns=100, lines=30):
        self.screen, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        environment = os.environ | {"TERM": "xterm-256color"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self.process = start(*words, start_new_session=True, env=environment, **streams)
        self.theirs = theirs
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.theirs)
        os.close(self.screen)

    def press(self, keys):
        """Type these keys."""
        os.write(self.screen, keys.encode())

    def wait_for(self, text):
        """Read the terminal from here on until it shows text; return what it has shown."""
        seen = len(self.text)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self.text[seen:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text[seen:]!r}"
            ended = self.process.poll() is not None
            if not self._read() and ended:
                raise AssertionError(f"ended without {text!r}: {self.text!r}")
        return self.text[seen:]

    def finish(self):
        """Wait for the end of the command; return its exit status. All that the terminal showed is
        in text."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running: {self.text!r}"
            self._read()
        while self._read():
            pass
        return self.process.returncode

    def _read(self):
        if not select.select([self.screen], [], [], 0.05)[0]:
            return False
        self.text += os.read(self.screen, 1 << 16).decode(errors="replace")
        return True
