"""A server of versioned values for the tests of near caches, in a process of its own, and a source.

The server executes one command at a time. Each write puts a message into the queue of every
watcher before it is answered; a watcher's PING is answered through the same queue, so the answer
comes after the messages of earlier writes. Answers to reads are held back for a random time after
they were made, so that invalidations overtake them.
"""

import contextlib
import math
import os
import queue
import random
import threading
import time
from multiprocessing.connection import Client, Listener

from shmrhash._near.source import Fetched, Probe


class Written:
    """The versions that a writer wrote, and when each was acknowledged: the judge of reads.

    Each key has one writer, and its versions are counted from 1; a value is b"key=version". Version
    0 is the key that is not there yet. A flush is a version of each key, without a value.
    """

    def __init__(self, keys):
        self.moments = {key: [-math.inf] for key in keys}
        self.absent = {key: [0] for key in keys}

    def next_value(self, key):
        return b"%s=%d" % (key, len(self.moments[key]))

    def acknowledged(self, key, moment):
        """Note that the next version of the key has been at the server since this moment, or
        longer."""
        self.moments[key].append(moment)

    def flushed(self, moment):
        for key, moments in self.moments.items():
            self.absent[key].append(len(moments))
            moments.append(moment)

    def wrong(self, key, found, began, max_stale):
        """Return what is wrong with a read that began at this moment, or None. It is wrong to find
        another key's value, a value that was never written, or one that was replaced longer than
        max_stale before the read began (N1, N4). If a read found nothing, the last flush counts as
        the reason, even if it came after the read."""
        moments = self.moments[key]
        if found is None:
            version = self.absent[key][-1]
        else:
            owner, _, number = found.rpartition(b"=")
            version = int(number) if number.isdigit() else -1
            if owner != key or not 0 < version <= len(moments) or version in self.absent[key]:
                return f"{key!r} has the value {found!r}, which nobody wrote"
        if version + 1 < len(moments) and moments[version + 1] < began - max_stale:
            late = began - moments[version + 1]
            return f"{key!r} has version {version}, {late:.3f} s after the next one was written"
        return None


class Server:
    """The commands of the server; serve() runs it."""

    def __init__(self, address, delay=0.0):
        self.address = address
        self.delay = delay
        self.values = {}
        self.reads = 0
        self.lock = threading.Lock()
        self.watchers = {}

    def serve(self, started):
        with Listener(self.address, "AF_UNIX", backlog=64) as listener:
            started()
            while True:  # until the process is killed
                threading.Thread(target=self.talk, args=(listener.accept(),), daemon=True).start()

    def talk(self, connection):
        with contextlib.suppress(EOFError, OSError):
            while True:  # until the client closes its connection
                command, *arguments = connection.recv()
                if command == "watch":
                    return self.tell(connection)
                answer = getattr(self, command)(*arguments)
                if command == "get" and self.delay:
                    time.sleep(random.random() * self.delay)
                connection.send(answer)

    def get(self, keys):
        with self.lock:
            self.reads += len(keys)
            return [self.values.get(key) for key in keys]

    def put(self, key, value):
        with self.lock:
            self.values[key] = value
            self.push(("changed", [key]))

    def remove(self, keys):
        with self.lock:
            gone = [key for key in keys if self.values.pop(key, None) is not None]
            self.push(("changed", gone))
            return len(gone)

    def flush(self):
        with self.lock:
            self.values.clear()
            self.push(("everything",))

    def count(self):
        return self.reads

    def cut(self):
        """Close the connections of all watchers; they miss all writes until they return."""
        with self.lock:
            for connection in self.watchers:
                connection.close()
            self.watchers.clear()

    def push(self, message):
        for waiting in self.watchers.values():
            waiting.put(message)

    def tell(self, connection):
        waiting = queue.Queue()
        with self.lock:
            self.watchers[connection] = waiting
            waiting.put(("began",))
        threading.Thread(target=self.pings, args=(connection, waiting), daemon=True).start()
        with contextlib.suppress(OSError, EOFError):
            while connection in self.watchers:  # until the connection is cut or closed
                with contextlib.suppress(queue.Empty):
                    connection.send(waiting.get(timeout=0.02))

    def pings(self, connection, waiting):
        with contextlib.suppress(EOFError, OSError, TypeError):
            while True:
                moment_ns = connection.recv()
                with self.lock:
                    waiting.put(("proved", moment_ns))


class ServedSource:
    """A source whose server is a Server in another process."""

    tracking = "pushes"

    def __init__(self, address):
        self.address = address
        self.name = address
        self.pid = os.getpid()
        self.local = threading.local()
        self.numbers = None

    def attach(self, nodes):
        self.numbers = nodes

    def nodes(self):
        return 1

    def node_of(self, key):
        return self.numbers.number(b"the only one")

    def covers(self, key):
        return not key.startswith(b"bare:")

    def ask(self, *command):
        if getattr(self.local, "pid", 0) != os.getpid():
            self.local.connection, self.local.pid = Client(self.address, "AF_UNIX"), os.getpid()
        self.local.connection.send(command)
        return self.local.connection.recv()

    def fetch(self, keys):
        node = self.node_of(b"")
        return [Fetched(value, None, node) for value in self.ask("get", list(keys))]

    async def afetch(self, keys):
        return self.fetch(keys)

    def set(self, key, value, ttl, *, nx=False, xx=False):
        self.ask("put", key, value)
        return True

    async def aset(self, key, value, ttl, *, nx=False, xx=False):
        return self.set(key, value, ttl)

    def delete(self, keys):
        return self.ask("remove", list(keys))

    async def adelete(self, keys):
        return self.delete(keys)

    def probe(self):
        return Probe("a server of the tests", True, "", 0.0)

    def watch(self, sink, stop, beat):
        node = self.node_of(b"")
        with Client(self.address, "AF_UNIX") as connection:
            connection.send(("watch",))
            asked = 0.0
            while not stop():  # until the tracker or the connection ends
                if time.monotonic() - asked > beat / 2:
                    asked = time.monotonic()
                    connection.send(time.monotonic_ns())
                if not connection.poll(beat / 4):
                    continue
                what, *arguments = connection.recv()
                getattr(sink, what)(node, *arguments)

    def close(self):
        pass


class PlainSource(ServedSource):
    """A source without a server: the values are in this process, and a hook is called while a fetch
    is under way."""

    def __init__(self):
        super().__init__("plain")
        self.server = Server("")
        self.during = lambda: None

    def ask(self, command, *arguments):
        answer = getattr(self.server, command)(*arguments)
        if command == "get":
            self.during()
        return answer

    def watch(self, sink, stop, beat):
        raise AssertionError("the test is the tracker")
