"""A process with the command imported, which forks for each run of it: python -m support.zygote FD.

Starting Python and importing what the command needs takes 0.3 s of processor time, a run of it some
milliseconds. The zygote has opened no map, so a child is like a new process in all that tests look
at, except its command line in /proc. Each run has its own environment, folder and streams.
"""

import atexit
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

REQUEST_BYTES_MAX = 1 << 17
TESTS = Path(__file__).resolve().parents[1]


class Zygote:
    """The zygote as seen by the process that asks it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "support.zygote", str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=TESTS, pass_fds=[theirs.fileno()])
        theirs.close()
        self.owner = os.getpid()
        atexit.register(self.end)

    def run(self, words, content, folder, timeout_s):
        """Run the command in this process's environment; return (status, output, errors)."""
        request = json.dumps([words, folder, dict(os.environ), timeout_s]).encode()
        assert len(request) <= REQUEST_BYTES_MAX
        with (
            self.lock,
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
        ):
            given.write(content)
            given.seek(0)
            streams = [given.fileno(), output.fileno(), errors.fileno()]
            socket.send_fds(self.socket, [request], streams)
            status = int(self.socket.recv(64))
            output.seek(0)
            errors.seek(0)
            return status, output.read(), errors.read()

    def end(self):
        """Close the socket, which ends the zygote."""
        if self.owner == os.getpid():
            self.socket.close()
            self.process.wait()


def live(request, streams):
    """Run the command as the child, and leave with its status."""
    words, folder, environment, timeout_s = json.loads(request)
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(timeout_s)
        sys.stdin = io.TextIOWrapper(io.FileIO(0), encoding="utf-8")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w"), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        sys.argv = ["shmrhash", *words]
        import shmrhash.cli

        try:
            status = shmrhash.cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status or 0)


def main(descriptor):
    """Fork for each request until the other side closes."""
    from shmrhash.cli import app

    for module in set(app.MODULE_OF.values()):
        importlib.import_module(f"shmrhash.cli.{module}")
    with socket.socket(fileno=descriptor) as requests:
        while True:
            request, streams, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, 3)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                live(request, streams)
            for stream in streams:
                os.close(stream)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            requests.send(str(status).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
