"""Adapters of bench_rivals.py: embedded databases in shared memory, and servers on UNIX sockets.

The adapters start their servers on a socket in the shared-memory folder, without persistence, and
end them. diskcache and sqlite3 keep their files in that folder.
"""

import ctypes
import multiprocessing
import shutil
import signal
import sqlite3
import subprocess
import time

from rivals import LeftOut, Rival, loop_add, loop_batch, loop_call, loop_mixed_calls, loop_store

SERVER_STARTS_SECONDS = 5
PR_SET_PDEATHSIG = 1


class Lmdb(Rival):
    name = "lmdb"
    note = "a transaction for each operation; no sync"
    module = "lmdb"

    def create(self):
        self.subject = None
        self.in_child()
        return self.subject

    def in_child(self):
        import lmdb

        if self.subject is not None:
            self.subject.close()  # the one of the parent: a process may open a file once
        self.subject = lmdb.open(
            self.place,
            map_size=(1 << 26) + self.max_entries * (self.key_size + self.value_size + 200),
            sync=False,
            metasync=False,
            writemap=True,
            max_readers=256,
        )

    def special(self, subject):
        begin = subject.begin

        def get(key):
            with begin() as transaction:
                return transaction.get(key)

        def put(key, value):
            with begin(write=True) as transaction:
                transaction.put(key, value)

        def delete(key):
            with begin(write=True) as transaction:
                transaction.delete(key)

        def get_many(keys):
            with begin() as transaction, transaction.cursor() as cursor:
                return cursor.getmulti(keys)

        return {
            "get": loop_call(get),
            "in": None,
            "set": loop_store(put),
            "mixed": loop_mixed_calls(get, put),
            "insert": loop_store(put),
            "delete": loop_call(delete),
            "batch": loop_batch(get_many),
        }

    def found(self, key):
        with self.subject.begin() as transaction:
            return transaction.get(key)

    def fill(self, keys, value):
        with self.subject.begin(write=True) as transaction:
            transaction.cursor().putmulti([(key, value) for key in keys])

    def close(self):
        self.subject.close()
        self.remove_files()


class Sqlite(Rival):
    name = "sqlite3"
    note = "WAL, synchronous off, WITHOUT ROWID"
    module = "sqlite3"
    GET = "SELECT v FROM t WHERE k = ?"
    PUT = "INSERT OR REPLACE INTO t VALUES (?, ?)"

    def create(self):
        self.in_child()
        self.subject.execute("PRAGMA journal_mode = WAL")
        self.subject.execute("CREATE TABLE t (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")
        return self.subject

    def in_child(self):
        self.subject = sqlite3.connect(self.place, timeout=60, isolation_level=None)
        self.subject.execute("PRAGMA synchronous = OFF")

    def special(self, subject):
        execute = subject.execute

        def get(key):
            return execute(self.GET, (key,)).fetchone()

        def put(key, value):
            execute(self.PUT, (key, value))

        def delete(key):
            execute("DELETE FROM t WHERE k = ?", (key,))

        def get_many(keys):
            marks = ",".join("?" * len(keys))
            return execute(f"SELECT k, v FROM t WHERE k IN ({marks})", keys).fetchall()

        return {
            "get": loop_call(get),
            "in": None,
            "set": loop_store(put),
            "mixed": loop_mixed_calls(get, put),
            "insert": loop_store(put),
            "delete": loop_call(delete),
            "batch": loop_batch(get_many),
        }

    def found(self, key):
        row = self.subject.execute(self.GET, (key,)).fetchone()
        return row and row[0]

    def fill(self, keys, value):
        self.subject.execute("BEGIN")
        self.subject.executemany(self.PUT, ((key, value) for key in keys))
        self.subject.execute("COMMIT")

    def close(self):
        self.subject.close()
        self.remove_files()


class DiskCache(Rival):
    name = "diskcache"
    note = "sqlite3 below"
    module = "diskcache"

    def create(self):
        self.in_child()
        return self.subject

    def in_child(self):
        import diskcache

        self.subject = diskcache.Cache(self.place, eviction_policy="none", timeout=60)

    def fill(self, keys, value):
        with self.subject.transact():
            super().fill(keys, value)

    def close(self):
        self.subject.close()
        self.remove_files()


class Manager(Rival):
    name = "multiprocessing.Manager"
    note = "a server process of the standard library"

    def create(self):
        self.manager = multiprocessing.get_context("fork").Manager()
        return self.manager.dict()

    def fill(self, keys, value):
        self.subject.update(dict.fromkeys(keys, value))

    def server_pids(self):
        return [self.manager._process.pid]

    def close(self):
        self.manager.shutdown()


def die_with_parent():
    """Let the server end with the benchmark, even if that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Server(Rival):
    """A rival that is a program of its own, on a UNIX socket."""

    programs = ()

    def command(self, program):
        raise NotImplementedError

    def start(self):
        program = next(filter(None, map(shutil.which, self.programs)), None)
        if program is None:
            raise LeftOut(f"none of {', '.join(self.programs)} is installed")
        self.process = subprocess.Popen(
            self.command(program),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        deadline = time.monotonic() + SERVER_STARTS_SECONDS
        while True:
            try:
                client = self.client()
                self.greet(client)
                return client
            except Exception as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.stop()
                    raise LeftOut(f"{program} did not answer: {error}") from None
                time.sleep(0.01)

    create = start

    def in_child(self):
        self.subject = self.client()

    def server_pids(self):
        return [self.process.pid]

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.remove_files()

    close = stop


class Redis(Server):
    name = "Redis or Valkey"
    note = "UNIX socket, redis-py, no persistence"
    module = "redis"
    programs = ("valkey-server", "redis-server")

    def command(self, program):
        options = {"port": "0", "unixsocket": self.place, "save": "", "appendonly": "no"}
        return [program, *(word for name, text in options.items() for word in (f"--{name}", text))]

    def client(self):
        import redis

        return redis.Redis(unix_socket_path=self.place)

    def greet(self, client):
        client.ping()

    def special(self, subject):
        return {
            "get": loop_call(subject.get),
            "in": loop_call(subject.exists),
            "set": loop_store(subject.set),
            "mixed": loop_mixed_calls(subject.get, subject.set),
            "insert": loop_store(subject.set),
            "delete": loop_call(subject.delete),
            "batch": loop_batch(subject.mget),
            "add": loop_add(lambda key, amount: subject.incr(b"counter" + key, amount)),
        }

    def found(self, key):
        return self.subject.get(key)

    def fill(self, keys, value):
        for start in range(0, len(keys), 10_000):
            self.subject.mset(dict.fromkeys(keys[start : start + 10_000], value))


class Memcached(Server):
    name = "memcached"
    note = "UNIX socket, pylibmc, binary protocol"
    module = "pylibmc"
    programs = ("memcached",)

    def command(self, program):
        megabytes = 64 + self.max_entries * (self.key_size * 2 + self.value_size + 120) // 2**20
        return [program, "-s", self.place, "-m", str(megabytes), "-u", "nobody", "-t", "2"]

    def client(self):
        import pylibmc

        return pylibmc.Client([self.place], binary=True)

    def greet(self, client):
        client.get_stats()
        if not client.set("greeting", b"1"):
            raise LeftOut("it stores nothing")

    def key(self, key):
        return key.hex()  # text without blanks

    def special(self, subject):
        return {
            "get": loop_call(subject.get),
            "in": None,
            "set": loop_store(subject.set),
            "mixed": loop_mixed_calls(subject.get, subject.set),
            "insert": loop_store(subject.set),
            "delete": loop_call(subject.delete),
            "batch": loop_batch(subject.get_multi),
        }

    def found(self, key):
        return self.subject.get(key)

    def fill(self, keys, value):
        for start in range(0, len(keys), 1000):
            self.subject.set_multi(dict.fromkeys(keys[start : start + 1000], value))


STORE_RIVALS = [Lmdb, Sqlite, DiskCache, Manager, Redis, Memcached]
