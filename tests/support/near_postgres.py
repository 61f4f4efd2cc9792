"""A server of PostgreSQL for tests, on a UNIX socket in a folder of its own, if it is installed."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from support.waiting import until

START_SECONDS = 30
STALE = 0.4
PATIENCE_S = 30
QUERY = "SELECT id, value FROM items WHERE id = ANY(%s)"
# The server's processes for trackers.
TRACKERS = """
SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_notify($1%' AND pid <> pg_backend_pid()
"""
# The server need not survive a crash of the machine, and does not use /dev/shm.
SETTINGS = """
listen_addresses = ''
fsync = off
full_page_writes = off
autovacuum = off
shared_buffers = 4MB
max_connections = 40
dynamic_shared_memory_type = mmap
"""


def programs():
    """Return the folder with the newest version of the programs, or None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    if found:
        return found[-1].parent
    here = shutil.which("postgres")
    return Path(here).parent if here and shutil.which("initdb") else None


def _version(path):
    return int(path.parents[1].name) if path.parents[1].name.isdigit() else 0


def missing():
    """Return why no server can run here, or "" if one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "the client psycopg is not installed"
    if programs() is None:
        return "PostgreSQL is not installed"
    if os.getuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def _user():
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return None


class Server:
    """A server that a test may stop, kill and start again."""

    def __init__(self, listen="", enter=None):
        """listen: an address for TCP, in a network that enter() enters in the server's process."""
        self.enter = enter
        # The folder must not be below one that only root may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="near-postgres-", dir="/tmp"))
        self.data = self.folder / "data"
        self.as_user = {}
        if os.getuid() == 0:
            user = _user()
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.address = f"host={self.folder} user=tester dbname=postgres"
        self.process = None
        self._run(
            "initdb", "-D", self.data, "-U", "tester", "--no-sync", "-E", "UTF8", "-A", "trust"
        )
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(SETTINGS + f"unix_socket_directories = '{self.folder}'\n")
            file.write(f"listen_addresses = '{listen}'\n" if listen else "")
        with open(self.data / "pg_hba.conf", "a") as file:
            file.write(f"host all all {listen}/24 trust\n" if listen else "")
        self.start()

    def _run(self, name, *arguments):
        done = subprocess.run(
            [programs() / name, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self.as_user,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self):
        """Start the server, and wait until it answers."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [programs() / "postgres", "-D", self.data],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **(self.as_user if self.enter is None else {"preexec_fn": self._enter}),
            )
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except _psycopg().OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.02)

    def _enter(self):
        self.enter()  # takes root
        if self.as_user:
            os.setgroups([])
            os.setgid(self.as_user["group"])
            os.setuid(self.as_user["user"])

    def connect(self, **options):
        """Return a connection in autocommit."""
        return _psycopg().connect(self.address, autocommit=True, connect_timeout=5, **options)

    def processes(self):
        """Return the pids of all the server's processes."""
        first = self.process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def signal(self, number):
        """Send a signal to all the server's processes."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self):
        """End the server at once, as a crash does; the memory that its processes shared is lost."""
        self.signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def restart(self):
        self.kill()
        self.start()

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _psycopg():
    import psycopg

    return psycopg


def source_of(server, query=QUERY, **options):
    """Return a source for the table items, whose keys are k and an id."""
    from shmrhash.postgres import PostgresSource

    return PostgresSource(server.address, {"k": query}, **({"timeout": 1.0} | options))


def near_of(server, name, source=None, **options):
    """Return a near cache of source_of()."""
    from shmrhash import NearCache

    sizes = {"max_entries": 2000, "max_bytes": 1 << 21}
    options = {"max_stale": STALE, "value": str} | sizes | options
    return NearCache(source or source_of(server), name=name, **options)


def make_table(server):
    """Make an empty table items, and its triggers."""
    from shmrhash.postgres import triggers

    with server.connect() as admin:
        admin.execute("DROP TABLE IF EXISTS items; CREATE TABLE items (id text, value text)")
        admin.execute(triggers("items", "id", "k"))
        admin.execute("CREATE UNIQUE INDEX ON items (id)")


def put(sql, key, value):
    """Write a row."""
    sql.execute(
        "INSERT INTO items VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET value = excluded.value",
        [key, value],
    )


def wait_for_tracker(sql):
    """Wait for the server's process for the tracker's connection, and return its pid."""
    until(lambda: sql.execute(TRACKERS).rowcount == 1)
    return sql.execute(TRACKERS).fetchone()[0]
