"""The rivals of bench_rivals.py: a small adapter for each, and the loops that are timed.

A loop calls the rival's own interface directly: `subject[key]` if it has that, else its method.
Each loop has a code object of its own, because CPython specialises byte code in place. A loop that
is None stands for an operation that the rival does not have.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import types
from importlib import metadata
from pathlib import Path

import shmrhash

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

OPERATIONS = ("get", "in", "set", "mixed", "insert", "delete", "batch", "add")
BATCH_KEYS = 1000


class LeftOut(BaseException):
    """The rival cannot be measured here; str() says why.

    Not an Exception: it is also raised inside a rival's code that has run too long, which may have
    handlers for every Exception.
    """


@contextlib.contextmanager
def time_limit(seconds, what):
    """Raise LeftOut after this many seconds, even in the middle of a rival's call."""

    def too_long(_signal, _frame):
        raise LeftOut(f"{what}: not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def loop_item(subject):
    def loop(keys, value):
        for key in keys:
            subject[key]

    return loop


def loop_in(subject):
    def loop(keys, value):
        for key in keys:
            key in subject  # noqa: B015

    return loop


def loop_assign(subject):
    def loop(keys, value):
        for key in keys:
            subject[key] = value

    return loop


def loop_del(subject):
    def loop(keys, value):
        for key in keys:
            del subject[key]

    return loop


def loop_call(function):
    def loop(keys, value):
        for key in keys:
            function(key)

    return loop


def loop_store(function):
    def loop(keys, value):
        for key in keys:
            function(key, value)

    return loop


def loop_mixed(subject):
    """Of every ten keys one is stored and nine are read."""

    def loop(keys, value):
        for start in range(0, len(keys), 10):
            first, *others = keys[start : start + 10]
            subject[first] = value
            for key in others:
                subject[key]

    return loop


def loop_mixed_calls(read, write):
    def loop(keys, value):
        for start in range(0, len(keys), 10):
            first, *others = keys[start : start + 10]
            write(first, value)
            for key in others:
                read(key)

    return loop


def loop_batch(function):
    """Call function with lists of BATCH_KEYS keys."""

    def loop(keys, value):
        for start in range(0, len(keys), BATCH_KEYS):
            function(keys[start : start + BATCH_KEYS])

    return loop


def loop_add(add):
    def loop(keys, value):
        for key in keys:
            add(key, 1)

    return loop


def own_code(loop):
    return types.FunctionType(
        loop.__code__.replace(), loop.__globals__, loop.__name__, None, loop.__closure__
    )


def limit_memory():
    """Let allocations fail beyond half of the machine's memory: no rival may take it down."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (total // 2, total // 2))


class Rival:
    """One rival, with a map. Subclasses define create(), and what else differs from a dict."""

    name = ""
    note = ""
    module = ""  # the module that has to be installed
    shared = True  # several processes can use it
    slots_per_entry = 1  # the room that a table of fixed size needs for each entry

    def __init__(self, place, key_size, value_size, max_entries):
        """place: a path in shared memory with which the names of all files of the rival begin."""
        self.place, self.key_size, self.value_size = place, key_size, value_size
        self.max_entries = max_entries
        self.subject = self.create()

    def create(self):
        raise NotImplementedError

    def key(self, key):
        """Convert a key of bytes to what this rival takes."""
        return key

    def value(self, value):
        return value

    def found(self, key):
        """The value that the rival has for a key, or None."""
        return self.subject[key] if key in self.subject else None  # noqa: SIM401 (not all have get)

    def fill(self, keys, value):
        """Insert all keys, in the fastest way that the rival has."""
        self.loops()["insert"](keys, value)

    def loops(self):
        subject = self.subject
        made = {
            "get": loop_item(subject),
            "in": loop_in(subject),
            "set": loop_assign(subject),
            "mixed": loop_mixed(subject),
            "insert": loop_assign(subject),
            "delete": loop_del(subject),
            **self.special(subject),
        }
        return {name: own_code(loop) for name, loop in made.items() if loop}

    def special(self, subject):
        """Loops that differ from a dict's."""
        return {}

    def in_child(self):
        """Called in a forked process before it uses the map, to open anew what it must."""

    def server_pids(self):
        """The processes that hold the entries."""
        return []

    def kernel_bytes(self):
        """Memory that belongs to no process and no file."""
        return 0

    def close(self):
        """Remove everything."""

    def remove_files(self):
        for path in Path(self.place).parent.glob(Path(self.place).name + "*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


class Ours(Rival):
    name = "shmrhash"

    def create(self):
        return shmrhash.RHashMap.create(
            Path(self.place).name,
            key_size=self.key_size,
            value_size=self.value_size,
            max_entries=self.max_entries,
        )

    def special(self, subject):
        lookup_many = subject.lookup_many
        return {
            "batch": loop_batch(lambda keys: lookup_many(b"".join(keys))),
            "add": loop_add(subject.add),
        }

    def close(self):
        self.subject.check()
        self.subject.unlink()
        self.subject.close()


class Dict(Rival):
    name = "dict"
    note = "the ceiling; in each process its own, sharing nothing"

    def create(self):
        return {}

    def special(self, subject):
        def add(keys, value):
            for key in keys:
                counters[key] += 1

        counters = dict.fromkeys(self.key_list, 1000) if hasattr(self, "key_list") else None
        return {
            "batch": loop_batch(lambda keys: [subject[key] for key in keys]),
            "add": add if counters else None,
        }

    def fill(self, keys, value):
        self.key_list = keys
        for key in keys:
            self.subject[key] = bytes(bytearray(value))  # an object for each, as in a program


class KernelHash(Rival):
    name = "kernel htab"
    note = "BPF_MAP_TYPE_HASH by bpf(2) through ctypes: a system call for each operation"

    def create(self):
        from support.kernel import bpf

        try:
            return bpf.KernelMap.create(
                key_size=self.key_size, value_size=self.value_size, max_entries=self.max_entries
            )
        except bpf.Refused as refused:
            raise LeftOut(str(refused)) from None

    def special(self, subject):
        return {
            "get": loop_call(subject.lookup),
            "in": None,
            "set": loop_store(subject.update),
            "mixed": loop_mixed_calls(subject.lookup, subject.update),
            "insert": loop_store(subject.update),
            "delete": loop_call(subject.delete),
        }

    def found(self, key):
        return self.subject.lookup(key).result

    def fill(self, keys, value):
        for start in range(0, len(keys), BATCH_KEYS):
            some = keys[start : start + BATCH_KEYS]
            self.subject.update_batch(some, [value] * len(some))

    def kernel_bytes(self):
        with open(f"/proc/self/fdinfo/{self.subject.fd}") as fdinfo:
            return next(int(line.split()[1]) for line in fdinfo if line.startswith("memlock"))

    def close(self):
        self.subject.close()


def versions(kinds):
    """{package: version} of the rivals that are installed."""
    found = {}
    for kind in kinds:
        if kind.module:
            names = metadata.packages_distributions().get(kind.module, [])
            found |= {name: metadata.version(name) for name in names}
    return found
