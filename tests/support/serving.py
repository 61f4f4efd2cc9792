"""A web server with real workers for a test: gunicorn or uvicorn, on a port of its own."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(port, path, **headers):
    """Return (status, headers in small letters, body) of one request, or None if the worker died
    during it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read().decode()
    except (http.client.HTTPException, ConnectionError):
        return None
    finally:
        connection.close()


@contextlib.contextmanager
def server(*command, **environment):
    """Start `python -m command...`, where PORT is a free port; give the port once it listens."""
    port = free_port()
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *(word.replace("PORT", str(port)) for word in command)],
        env=os.environ | environment | {"PYTHONPATH": paths},
        cwd=TESTS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "the server does not listen"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.communicate()
