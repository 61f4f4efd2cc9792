"""Kills a process at any instruction, and shows the survivors what it left.

A test gives two callables that run in a forked child: ``prepare()`` makes everything ready and
returns a state, ``operate(state)`` does the one operation under test. A ``Segment`` names the
shared memory to watch. The driver (stepper.c) single-steps the child with ptrace and sees each
change of the shared memory. The states between two changes are all the states in which a SIGKILL
can leave the map, so a test need visit each of them only once:

    for crash in crash_states(prepare, operate, Segment(path), setup=build):
        ...                            # the child is dead; look at what it left

The number of steps differs a little from run to run (a dict grew, an object lay elsewhere); the
number of changes does not. So states are named by n, "right after the n-th change": 0 is before the
first change, and the last one is the finished operation followed by death. Raw steps can be used,
too: ``every=True`` and ``stop_at_step``.

The first run of an operation single-steps all of it (about 20 us a step where a hypervisor
intercepts debug exceptions). Later runs have breakpoints on the instructions that changed memory in
the first run, and look for changes made by any other instruction; if there are any, the operation
is single-stepped again.

Only the thread that forks the child may step it: keep a scenario in one thread.
"""

import contextlib
import ctypes
import ctypes.util
import dataclasses
import errno
import functools
import gc
import hashlib
import mmap
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

MACHINES = ("x86_64", "aarch64")

# How a run ended; the list in stepper.c.
AT_TARGET, DONE, EXITED, KILLED, FAULT, LIMIT, DRIFT, ERROR = range(1, 9)

# An operation takes some thousand steps; only a child that loops without end gets this far.
STEPS_MAX = 2_000_000
CHANGES_MAX = 100_000
CHILD_SECONDS = 120  # of processor time
STACK_WORDS = 48
NO_TARGET = 2**64 - 1
PUNCH_HOLE_KEEP_SIZE = 3
SYS_CACHESTAT = 451  # the same on every machine


class SteppingError(Exception):
    """The driver could not do what it was asked; the message says what was found."""


class CannotStep(SteppingError):
    """This machine does not allow stepping, or has no compiler."""


class ChildFailed(SteppingError):
    """prepare() or operate() raised in the child, or the child died by itself."""


class _Control(ctypes.Structure):
    _fields_ = [
        ("phase", ctypes.c_uint32),
        ("traced", ctypes.c_uint32),
        ("refusal", ctypes.c_int32),
    ]


class _Change(ctypes.Structure):
    _fields_ = [
        ("step", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
    ]


class _Run(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_int32),
        ("ending", ctypes.c_int32),
        ("detail", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("steps", ctypes.c_uint64),
        ("changes", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("stack", ctypes.c_uint64 * STACK_WORDS),
    ]


# ---- the library ----


class _Library:
    """stepper.c, compiled and loaded: once without the GIL held, once with it."""

    def __init__(self, path):
        self.path = path
        self.plain = ctypes.CDLL(path, use_errno=True)
        self.python = ctypes.PyDLL(path)
        pointer, number = ctypes.c_void_p, ctypes.c_uint64
        self._declare("stepper_watch_file", pointer, ctypes.c_char_p)
        self._declare("stepper_watch_memory", pointer, pointer, number)
        self._declare("stepper_watch_close", None, pointer)
        self._declare("stepper_attach", ctypes.c_int, pointer, pointer)
        self._declare("stepper_step", ctypes.c_int, *[pointer] * 4, *[number] * 4)
        self._declare("stepper_break", ctypes.c_int, *[pointer] * 4, *[number] * 2, pointer, number)
        self._declare("stepper_detach", ctypes.c_int, ctypes.c_int, pointer)
        self._declare("stepper_child_limits", None, ctypes.c_int, ctypes.c_uint)
        for name in ("count", "lock", "fill"):
            self._declare(f"stepper_example_{name}", None, pointer, number)
        self._declare("stepper_example_read", ctypes.c_int, pointer, number)
        self._declare("stepper_example_commit", ctypes.c_int, ctypes.c_int, number, number)
        self.python.stepper_run.restype = ctypes.py_object
        self.python.stepper_run.argtypes = [pointer, ctypes.py_object, ctypes.py_object]

    def _declare(self, name, result, *arguments):
        function = getattr(self.plain, name)
        function.restype = result
        function.argtypes = list(arguments)


_library = None


def build(folder):
    """Compile stepper.c into folder and return the path of the library."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stepper.c")
    target = os.path.join(folder, "stepper.so")
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        raise CannotStep(f"no C compiler: {compiler[0]} is not on the path")
    command = [*compiler, "-shared", "-fPIC", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", target, source], check=True)
    return target


def load(path):
    """Load the compiled driver; everything below needs it."""
    global _library
    if _library is None or _library.path != path:
        _library = _Library(path)


def library():
    """Return the loaded driver's plain functions (the tests of the driver call its examples)."""
    if _library is None:
        raise SteppingError("the driver is not loaded: use the fixture stepper")
    return _library.plain


def why_not():
    """Return the reason why stepping is impossible here, or None."""
    if platform.machine() not in MACHINES:
        return f"stepping is written for {' and '.join(MACHINES)}, not {platform.machine()}"
    if sys.platform != "linux":
        return "stepping needs Linux"
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        trace(lambda: None, lambda state: None, Segment.of_memory(memory))
    except SteppingError as error:
        return f"ptrace does not work here: {error}"
    finally:
        memory.close()
    return None


# ---- the memory watched ----


@dataclasses.dataclass(frozen=True)
class Image:
    """The bytes of a segment at one moment; ranges that are not listed were holes."""

    parts: tuple
    blocks: int
    digest: str


def segment_path(name):
    """Return the file of a map's segment, by the map's name."""
    return Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"), name)


class Segment:
    """The shared memory of one map: a file that may not exist yet, or a mapping.

    It is the parent's own view, which never fills a hole of the file, not even by reading.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.memory = None

    @classmethod
    def of_memory(cls, memory):
        """Watch an anonymous shared mmap.mmap instead of a file."""
        segment = cls("")
        segment.memory = memory
        return segment

    def _watch(self):
        if self.memory is None:
            return library().stepper_watch_file(os.fsencode(self.path))
        view = ctypes.c_char.from_buffer(self.memory)
        return library().stepper_watch_memory(ctypes.addressof(view), len(self.memory))

    def image(self):
        """Copy the bytes; if the file does not exist, return an image without parts."""
        if self.memory is not None:
            parts = ((0, self.memory[:]),)
            return Image(parts, 0, _digest(parts))
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return Image((), -1, _digest(()))
        try:
            parts = tuple(
                (start, os.pread(fd, end - start, start)) for start, end in allocated_ranges(fd)
            )
            return Image(parts, os.fstat(fd).st_blocks, _digest(parts))
        finally:
            os.close(fd)

    def restore(self, image):
        """Write the bytes of image back, and punch out the ranges that were holes then."""
        if self.memory is not None:
            self.memory[:] = image.parts[0][1]
            return
        if image.blocks < 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SteppingError("the segment lost its name: use setup instead") from error
        try:
            known = [(start, start + len(content)) for start, content in image.parts]
            for start, end in allocated_ranges(fd):
                for hole_start, hole_end in _subtract(start, end, known):
                    _punch_hole(fd, hole_start, hole_end - hole_start)
            for start, content in image.parts:
                os.pwrite(fd, content, start)
            blocks = os.fstat(fd).st_blocks
            if blocks != image.blocks:
                raise SteppingError(
                    f"the segment has {blocks} blocks and had {image.blocks}: this kernel does not "
                    "tell what was allocated and never touched; use setup instead"
                )
        finally:
            os.close(fd)


def data_ranges(fd):
    """Yield (start, end) of each piece of a sparse file that holds data."""
    position = 0
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


class _PageRange(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _PageCounts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cached", "b", "c", "d", "e")]


def allocated_ranges(fd):
    """Return (start, end) of each piece of a tmpfs file that has memory.

    That is more than its data: lseek takes pages that fallocate provided and no process touched for
    a hole. cachestat(2) counts them; before Linux 6.5, which lacks it, they stay unknown.
    """
    wanted, counts = _PageRange(), _PageCounts()

    def pages_in(start, end):
        wanted.offset, wanted.length = start, end - start
        arguments = (fd, ctypes.byref(wanted), ctypes.byref(counts), 0)
        return counts.cached if _system().syscall(SYS_CACHESTAT, *arguments) == 0 else None

    ranges = []

    def look(start, end):
        found = pages_in(start, end)
        if found == 0:
            return
        if found * mmap.PAGESIZE == end - start:
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
            return
        middle = start + (end - start) // mmap.PAGESIZE // 2 * mmap.PAGESIZE
        look(start, middle)
        look(middle, end)

    size = -(-os.fstat(fd).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    if size == 0:
        return []
    if pages_in(0, size) is None:
        return list(data_ranges(fd))
    look(0, size)
    return ranges


@functools.cache
def _system():
    return ctypes.CDLL(None, use_errno=True)


def _subtract(start, end, known):
    """Return the pieces of [start, end) outside the sorted ranges in known."""
    pieces = []
    for known_start, known_end in known:
        if known_end <= start or known_start >= end:
            continue
        if known_start > start:
            pieces.append((start, known_start))
        start = max(start, known_end)
    if start < end:
        pieces.append((start, end))
    return pieces


def _punch_hole(fd, offset, length):
    fallocate = _system().fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(fd, PUNCH_HOLE_KEEP_SIZE, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate could not punch a hole")


def _digest(parts):
    """Digest the bytes and their places; a page of zeros counts as a hole."""
    digest = hashlib.blake2b(digest_size=8)
    zeros = bytes(mmap.PAGESIZE)
    for start, content in parts:
        for offset in range(0, len(content), mmap.PAGESIZE):
            page = content[offset : offset + mmap.PAGESIZE]
            if page != zeros[: len(page)]:
                digest.update((start + offset).to_bytes(8, "little"))
                digest.update(page)
    return digest.hexdigest()


# ---- the child ----


class Child:
    """A forked process that stands at the start of operate(state), or was stepped into it."""

    def __init__(self, prepare, operate, cpu, seconds=CHILD_SECONDS):
        self.reaped = False
        self.running = False
        self.exit_status = None
        self._outcome = None
        self._thread = threading.get_ident()
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._control = _Control.from_buffer(self._page)
        self._control.traced = 1
        self._pipe, writer = os.pipe()
        self.run = _Run()
        with warnings.catch_warnings():
            # Other threads of the test runner hold no lock that the child needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _child_main(prepare, operate, self._control, writer, cpu, seconds)
        os.close(writer)
        self.pid = self.run.pid = pid
        with on_cpu(cpu):
            ended = library().stepper_attach(
                ctypes.byref(self.run), ctypes.addressof(self._control)
            )
        if ended:
            self._account(ended)
            if self._control.refusal:
                os.close(self._pipe)
                raise CannotStep(f"PTRACE_TRACEME: {os.strerror(self._control.refusal)}")
            self._reap_failed("prepare() failed")

    def _account(self, ending):
        if ending in (EXITED, KILLED):
            self.reaped = True
            self.exit_status = self.run.detail

    def _reap_failed(self, what):
        """Raise for a child that did not get to its target; it is dead afterwards."""
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.reaped = True
        kind, value, text = self._read_outcome()
        if kind == "error":
            raise ChildFailed(f"{what}:\n{text}") from value
        ending = {EXITED: "exit status", KILLED: "signal", FAULT: "signal"}
        ending = ending.get(self.run.ending, f"ending {self.run.ending},")
        raise ChildFailed(f"{what}; child {self.pid}: {ending} {self.run.detail}")

    def _read_outcome(self):
        if self._outcome is None and self._pipe is not None:
            pieces = []
            while piece := os.read(self._pipe, 65536):
                pieces.append(piece)
            os.close(self._pipe)
            self._pipe = None
            content = b"".join(pieces)
            self._outcome = pickle.loads(content) if content else ("none", None, "")
        return self._outcome

    def step(self, watch=None, changes=NO_TARGET, steps=NO_TARGET, room=0):
        """Single-step to the given number of changes or steps; return the changes seen."""
        table = (_Change * room)() if room else None
        ending = library().stepper_step(
            ctypes.byref(self.run),
            ctypes.addressof(self._control),
            watch,
            table,
            room,
            changes,
            steps,
            STEPS_MAX,
        )
        self._account(ending)
        return list(table[: self.run.changes]) if table else []

    def run_to_change(self, watch, target, pcs):
        """Run to the given change with breakpoints on pcs; return the changes seen."""
        room = min(target, CHANGES_MAX) + 1
        table = (_Change * room)()
        pc_table = (ctypes.c_uint64 * max(1, len(pcs)))(*pcs)
        ending = library().stepper_break(
            ctypes.byref(self.run),
            ctypes.addressof(self._control),
            watch,
            table,
            room,
            target,
            pc_table,
            len(pcs),
        )
        self._account(ending)
        return list(table[: self.run.changes])

    def check_ending(self, *expected):
        """Raise unless the run ended in one of the expected ways."""
        if self.run.ending in expected:
            return
        place = "" if self.reaped else "\n  " + "\n  ".join(where(self.run))
        if self.run.ending == LIMIT:
            what = f"operate() did not end within {self.run.steps} steps"
        elif self.run.ending == KILLED and self.run.detail in (signal.SIGALRM, signal.SIGPROF):
            what = "operate() took too long"
        else:
            what = "operate() ended wrongly"
        self._reap_failed(what + place)

    def kill(self):
        """Kill the child with SIGKILL where it stands, and reap it; it never runs again."""
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            _, self.exit_status = os.waitpid(self.pid, 0)
            self.reaped = True
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def resume(self):
        """Let the child run on without being traced; wait() waits for its end."""
        if self.reaped or self.running:
            return
        error = library().stepper_detach(self.pid, ctypes.addressof(self._control))
        if error:
            raise SteppingError(f"could not resume child {self.pid}: {os.strerror(error)}")
        self.running = True

    def wait(self):
        """Wait for a resumed child to end; return operate()'s result or raise its error."""
        self.resume()
        outcome = self._read_outcome()
        if not self.reaped:
            _, self.exit_status = os.waitpid(self.pid, 0)
            self.reaped = True
        kind, value, text = outcome
        if kind == "error":
            raise ChildFailed(f"operate() raised in the child:\n{text}") from value
        if kind == "none":
            raise ChildFailed(f"child {self.pid} ended without a result: {self.exit_status}")
        return value

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def _child_main(prepare, operate, control, writer, cpu, seconds):
    """Never return: leave by os._exit, so that no cleanup of the test runner happens here."""
    try:
        gc.disable()
        sys.settrace(None)
        sys.setprofile(None)
        if hasattr(sys, "monitoring"):
            for tool in range(6):
                if sys.monitoring.get_tool(tool):
                    sys.monitoring.set_events(tool, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        parent = os.getppid()
        _library.plain.stepper_child_limits(parent, seconds)
        os.sched_setaffinity(0, {cpu})
        state = prepare()
        value = _library.python.stepper_run(ctypes.addressof(control), operate, state)
        outcome = ("value", value, "")
    except BaseException as error:
        outcome = ("error", error, traceback.format_exc())
    try:
        content = pickle.dumps(outcome)
    except Exception:
        content = pickle.dumps((outcome[0], None, outcome[2]))
    try:
        while content:
            content = content[os.write(writer, content) :]
    finally:
        os._exit(0)


@contextlib.contextmanager
def on_cpu(cpu):
    """Keep tracer and child on one CPU: the switch between them is 3x cheaper than a wake-up."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def default_cpu():
    """Return the CPU that children run on: fixed, so that per-CPU choices repeat."""
    cpus = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    return cpus[int(worker or 0) % len(cpus)]


# ---- one run ----


@dataclasses.dataclass
class Trace:
    """One whole operation: its changes of shared memory, its steps, and what it returned."""

    changes: list
    steps: int
    result: object

    @property
    def steps_changed(self):
        """The numbers of the steps that changed shared memory."""
        return [change.step for change in self.changes]

    @property
    def pcs(self):
        """The addresses of the instructions that changed shared memory."""
        return sorted({change.pc for change in self.changes})


@dataclasses.dataclass
class Crash:
    """A child that was killed in operate(), and what it left."""

    n: int  # Changes done, or steps if the states are raw steps.
    total: int  # Changes (or steps) of the whole operation.
    finished: bool  # operate() had returned.
    digest: str  # Of the segment right after the kill.
    image: Image
    run: object  # Registers and stack of the child, for where().
    change: object = None  # The last change before the kill, if any.
    previous: object = None  # In a chain: the crash whose recovery this one interrupted.

    def where(self):
        """Return the functions that made the last change, innermost first."""
        return where(self.run)

    def __str__(self):
        place = " < ".join(self.where()[:4])
        text = f"state {self.n} of {self.total}, at {place or 'an unknown place'}"
        if self.change is not None:
            text += f", change at offset {self.change.offset:#x} length {self.change.length}"
        return text if self.previous is None else f"{text}; after [{self.previous}]"


class _Watching:
    """The parent's view of a segment during one run."""

    def __init__(self, segment):
        self.handle = segment._watch()

    def __enter__(self):
        return self.handle

    def __exit__(self, *_):
        library().stepper_watch_close(self.handle)


def trace(prepare, operate, segment, *, cpu=None):
    """Run operate once, stepping all of it; return its changes of shared memory as a Trace."""
    cpu = default_cpu() if cpu is None else cpu
    child = Child(prepare, operate, cpu)
    with child, _Watching(segment) as watch:
        with on_cpu(cpu):
            changes = child.step(watch, room=CHANGES_MAX)
        child.check_ending(DONE)
        steps = child.run.steps
        result = child.wait()
    return Trace(changes, steps, result)


def _trace_by_breaks(prepare, operate, segment, pcs, cpu):
    """Like trace, with breakpoints on pcs only; None if another instruction changed memory."""
    child = Child(prepare, operate, cpu)
    with child, _Watching(segment) as watch:
        with on_cpu(cpu):
            changes = child.run_to_change(watch, NO_TARGET, pcs)
        if child.run.ending == DRIFT:
            return None
        child.check_ending(DONE)
        steps = child.run.steps
        result = child.wait()
    return Trace(changes, steps, result)


def changes_until(prepare, operate, segment, part):
    """Return how many changes of shared memory make up this part of operate, which is undone again.

    The number of bytes that one instruction changes depends on the machine and its C library.
    """
    image = segment.image()
    count = len(trace(prepare, operate, segment).changes)
    segment.restore(image)
    return round(part * count)


def stop_at_step(prepare, operate, k, *, cpu=None, seconds=CHILD_SECONDS):
    """Return a Child that did exactly k steps of operate and stands still.

    ``kill()`` ends it there, ``resume()`` and ``wait()`` let it finish. ``child.run.ending`` is
    DONE if operate has fewer steps.
    """
    cpu = default_cpu() if cpu is None else cpu
    child = Child(prepare, operate, cpu, seconds)
    try:
        with on_cpu(cpu):
            child.step(steps=k)
        child.check_ending(AT_TARGET, DONE)
    except BaseException:
        child.kill()
        raise
    return child


def stop_at_change(
    prepare, operate, segment, n, *, pcs=(), again=None, cpu=None, seconds=CHILD_SECONDS
):
    """Return a Child that stands right after its n-th change of shared memory.

    With pcs (of an earlier Trace) it gets there by breakpoints. If another instruction writes,
    ``again()`` must restore the segment and the child is stepped instead; without ``again`` that
    is an error.
    """
    cpu = default_cpu() if cpu is None else cpu
    for by_breaks in (True, False) if pcs else (False,):
        child = Child(prepare, operate, cpu, seconds)
        try:
            with _Watching(segment) as watch, on_cpu(cpu):
                if by_breaks:
                    changes = child.run_to_change(watch, n, pcs)
                else:
                    changes = child.step(watch, changes=n, room=n + 1)
            if child.run.ending == DRIFT and again is not None:
                child.kill()
                again()
                continue
            child.check_ending(AT_TARGET, DONE)
        except BaseException:
            child.kill()
            raise
        child.last_change = changes[-1] if changes else None
        return child
    raise SteppingError("unreachable: a stepped run does not drift")


def run_to_step(prepare, operate, k, *, segment=None, cpu=None):
    """Kill a child right after k steps and return the Crash."""
    return _kill(stop_at_step(prepare, operate, k, cpu=cpu), k, k, segment)


def run_to_change(prepare, operate, segment, n, *, cpu=None):
    """Kill a child right after its n-th change of shared memory and return the Crash."""
    return _kill(stop_at_change(prepare, operate, segment, n, cpu=cpu), n, n, segment)


def _kill(child, n, total, segment):
    finished = child.run.ending == DONE
    child.kill()
    image = segment.image() if segment is not None else Image((), 0, "")
    change = getattr(child, "last_change", None)
    return Crash(n, total, finished, image.digest, image, child.run, change)


# ---- many runs ----


def choose(total, sample, seed):
    """Return the states to visit: all of 0..total, or a seeded sample with both ends in it."""
    states = range(total + 1)
    if sample is None or sample > total:
        return list(states)
    inner = random.Random(seed).sample(range(1, total), max(0, sample - 2))
    return sorted({0, total, *inner})


def crash_states(
    prepare,
    operate,
    segment,
    *,
    setup=None,
    every=False,
    sample=None,
    seed=0,
    cpu=None,
    traced=None,
    pcs=None,
):
    """Kill a child at each distinct state of operate in turn; yield each Crash.

    Before each run the segment is as at the start: by ``setup()``, which builds it anew (and may
    return the Segment to watch from then on), or else by writing back the bytes it had. A state
    is "after the n-th change of shared memory"; with ``every`` it is "after k steps". ``sample``
    visits that many states, chosen by ``seed``. ``traced(trace)`` is called with the Trace of
    the uninterrupted run, while the segment is as that run left it. ``pcs``, a set kept by the
    caller, spares the long first run of an operation that was traced before.
    """
    cpu = default_cpu() if cpu is None else cpu
    watched = [segment]

    def again():
        if setup is None:
            watched[0].restore(image)
        else:
            made = setup()
            watched[0] = watched[0] if made is None else made

    if setup is None:
        image = segment.image()
    again()
    whole = None
    if pcs and not every:
        whole = _trace_by_breaks(prepare, operate, watched[0], sorted(pcs), cpu)
        if whole is None:
            again()
    if whole is None:
        whole = trace(prepare, operate, watched[0], cpu=cpu)
    if traced is not None:
        traced(whole)
    known = set(whole.pcs) | (pcs or set())
    if pcs is not None:
        pcs |= known
    total = whole.steps if every else len(whole.changes)
    for n in choose(total, sample, seed):
        again()
        if every:
            child = stop_at_step(prepare, operate, n, cpu=cpu)
        else:
            child = stop_at_change(
                prepare, operate, watched[0], n, pcs=sorted(known), again=again, cpu=cpu
            )
        yield _kill(child, n, total, watched[0])


def crash_chain(stages, segment, *, setup=None, samples=None, seed=0, cpu=None, learned=None):
    """Kill one child after the other: the next stage starts from what the last one left.

    ``stages`` is a list of (prepare, operate): the operation, its recovery, the recovery of the
    recovery. Yields the Crash of the last stage for each combination of states (``samples``, one
    number or None per stage, thins them out); ``crash.previous`` leads back to the first.
    ``learned`` has the ``pcs`` of crash_states for each stage; a caller may keep and share them.
    """
    samples = samples or [None] * len(stages)
    learned = learned or [set() for _ in stages]

    def descend(level, previous, build, level_seed):
        prepare, operate = stages[level]
        states = crash_states(
            prepare,
            operate,
            segment,
            setup=build,
            sample=samples[level],
            seed=level_seed,
            cpu=cpu,
            pcs=learned[level],
        )
        for crash in states:
            crash.previous = previous
            if level + 1 == len(stages):
                yield crash
            else:
                yield from descend(level + 1, crash, None, level_seed + crash.n + 1)

    return descend(0, None, setup, seed)


# ---- where it was ----

_symbols = {}


def where(run):
    """Return "function (file:line)" of the last change, innermost first.

    The child was forked from this process, so its code lies where ours does. Behind the
    instruction itself come return addresses found on the child's stack that lie in an extension
    module: callers, and now and then a leftover.
    """
    maps = _code_maps()
    names = _symbolise(run.pc, maps)
    for word in run.stack:
        found = _locate(word, maps)
        if found is not None and ".so" in found[0] and not _is_system(found[0]):
            names += [name for name in _symbolise(word - 1, maps) if name not in names]
    return names


def _is_system(path):
    name = os.path.basename(path)
    return name.startswith(("libc", "libpython", "ld-", "libpthread", "_ctypes", "stepper"))


def _code_maps():
    maps, bases = [], {}
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or not fields[5].startswith("/"):
                continue
            path = fields[5].rstrip("\n")
            start, end = (int(part, 16) for part in fields[0].split("-"))
            bases.setdefault(path, start)
            if "x" in fields[1]:
                maps.append((start, end, path, bases[path]))
    return maps


def _locate(address, maps):
    for start, end, path, base in maps:
        if start <= address < end:
            return path, address - base
    return None


def _symbolise(address, maps):
    found = _locate(address, maps)
    if found is None:
        return [f"{address:#x}"] if address else []
    if found not in _symbols:
        path, offset = found
        place = f"{os.path.basename(path)}+{offset:#x}"
        _symbols[found] = _addr2line(path, offset) or [place]
    return list(_symbols[found])


def _addr2line(path, offset):
    if shutil.which("addr2line") is None:
        return []
    command = ["addr2line", "-f", "-i", "-e", path, hex(offset)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
    names = []
    for function, place in zip(lines[::2], lines[1::2], strict=False):
        if function and function != "??":
            names.append(f"{function} ({os.path.basename(place)})")
    return names
