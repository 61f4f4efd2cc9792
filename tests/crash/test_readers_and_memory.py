"""Readers keep no memory from writers: OutOfMemory is raised only when the stored values leave no
room (R1, M1).

Values of one size are replaced by values of another, which are in other blocks. So memory has to be
given back while a process reads, or while a process is stopped inside a lookup, or where membarrier
is refused. The oracle is a dict of the stored values, and the sum of their bytes.
"""

import contextlib
import ctypes
import os
import random
import signal
import struct
import time
from pathlib import Path

import pytest
from support import stepping
from support.children import Partner, in_child

import shmrhash
from shmrhash import SharedDict
from shmrhash._segment import path_of

PAGE = 4096
SIZES = (1_000, 3_000, 8_000, 20_000, 50_000, 100_000, 200_000)
MANY_BYTES, MANY_MAX = 10_000_000, 64 << 20
FEW_MAX = 1 << 20
SLACK_BYTES = 200_000  # at most a block of 64 KiB in use, a run and the objects parked in depots
PLACES = 12  # instructions of a lookup at which the reader stops
SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}


def value_of(number, size):
    """Bytes that show when two values are mixed."""
    return (struct.pack("<Q", number) * (size // 8 + 1))[:size]


def change_sizes(d, total=MANY_BYTES):
    """Store `total` bytes in values of each of the sizes in turn, three times round."""
    for size in SIZES * 3:
        d.clear()
        model = {number: value_of(number, size) for number in range(total // size)}
        for number, value in model.items():
            d[number] = value
        assert d.info()["objects"]["count"] == len(d) == len(model)
        number = len(model) // 2
        assert d[number] == model[number]
    assert dict(d.items()) == model


def fill(d, size):
    """Store values of one size until that is refused; return the bytes stored, and the error."""
    number = 0
    try:
        while True:
            d[number] = value_of(number, size)
            number += 1
    except shmrhash.OutOfMemory as error:
        return number * size, str(error)


def committed(d):
    """How many bytes of the file have memory: a read from a hole would add a page."""
    return os.fstat(d.handle._descriptor()).st_blocks * 512


@pytest.fixture
def d(map_name):
    """A dict of MANY_MAX bytes. At the end it is whole, and all its memory can be used again."""
    with SharedDict.create(map_name, key=int, value=bytes, max_bytes=MANY_MAX) as made:
        yield made
        made.check()
        made.clear()
        fill(made, 400_000)
        made.clear()
        made.check()
    shmrhash.unlink(map_name)


def read_for_ever(parent, name):
    """Read without end, as a dashboard does, and assert that each value is whole."""
    with SharedDict.open(name, read_only=True) as reader:
        turn = 0
        while True:
            turn += 1
            found = reader.get(turn % 40)
            if found is not None and found != value_of(turn % 40, len(found)):
                raise AssertionError("a mixture was read")
            if turn == 1000:
                parent.say()


@contextlib.contextmanager
def reading_beside(name, user=None):
    """A child reads during the block, as another user if one is given; only our SIGTERM ends it."""

    def read(parent):
        if user is not None:
            become(user)
        read_for_ever(parent, name)

    reader = Partner(read)
    reader.hear()
    try:
        yield
    finally:
        os.kill(reader.pid, signal.SIGTERM)
        assert reader.join() == -signal.SIGTERM


def test_read_only_handle_keeps_no_memory_from_writers(d):
    """M1: a read-only handle that is open and has read keeps no memory from going back."""
    d[1] = value_of(1, 5000)
    with SharedDict.open(d.name, read_only=True) as reader:
        assert reader[1] == d[1]
        change_sizes(d)
        assert reader[1] == d[1]
        assert reader.info()["objects"]["count"] == len(d)
        reader.check()


def test_busy_reader_keeps_no_memory_from_writers(d):
    """M1, R2: the reader reads all the time, every value is whole, and no signal ends it."""
    with reading_beside(d.name):
        change_sizes(d)


def test_read_only_handle_maps_no_entry_writable(d):
    """R1: process slots and contexts are writable in its mapping, but no page with an entry is."""
    d[1] = value_of(1, 5000)
    with SharedDict.open(d.name, read_only=True) as reader:
        assert reader[1] == d[1]
        assert reader.info()["readers"] == d.info()["readers"] == [os.getpid()]
        assert d.info()["processes"] == 1
        file = os.fstat(d.handle._descriptor())
        ours = [
            line.split()
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.split()[4] == str(file.st_ino)
        ]
        writable = [
            [int(part, 16) for part in words[0].split("-")] + [int(words[2], 16)]
            for words in ours
            if "w" in words[1]
        ]
        # d has mapped the whole file writable; the reader's writable part begins after the header.
        (_, whole), (start, end, offset) = sorted(
            [one[:2] if one[2] == 0 else one for one in writable], key=len
        )
        assert whole
        contexts = 4096 * 64 * -(-(272 + 64) // 64)
        assert offset == PAGE
        assert end - start <= 1024 * 64 + contexts
        with pytest.raises(shmrhash.ReadOnlyMap):
            reader[1] = b"another"
        with pytest.raises(shmrhash.ReadOnlyMap):
            reader.clear()
    assert d.info()["readers"] == []
    assert d[1] == value_of(1, 5000)


def test_child_of_a_reader_reads_with_a_context_of_its_own(d):
    """C1: parent and child read at the same time, each with a context of its own."""
    d[1] = value_of(1, 5000)
    with SharedDict.open(d.name, read_only=True) as reader:
        assert reader[1] == d[1]

        def run(parent):
            assert reader[1] == value_of(1, 5000)
            assert sorted(reader.info()["readers"]) == sorted([os.getppid(), os.getpid()])
            parent.say()
            parent.wait()
            assert reader[1] == b"another"

        child = Partner(run)
        assert reader[1] == d[1]
        child.hear()
        d[1] = b"another"
        child.tell()
        child.result()
        assert reader[1] == b"another"


# ---- a user without permission to write the file ----

NOBODY = 65534


def become(user):
    """Become another user, who may only read the files of this one."""
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


@pytest.fixture
def public(map_name):
    """A dict that other users may read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with SharedDict.create(map_name, key=int, value=bytes, max_bytes=MANY_MAX, mode=0o644) as made:
        yield made
        made.check()
    shmrhash.unlink(map_name)


def test_reader_that_may_not_write_the_file_keeps_no_memory(public):
    """M1, R2: the reader reads through the file all the time, and no signal ends it."""
    with reading_beside(public.name, NOBODY):
        change_sizes(public)
        assert public.info()["readers"] == []


def test_a_reader_without_a_descriptor_reads_on(public):
    """M1: the program closed the descriptor, and the name is gone: the kernel copies the values."""
    public[1] = value_of(1, 50_000)

    def run(parent):
        become(NOBODY)
        with SharedDict.open(public.name, read_only=True) as reader:
            parent.say()
            parent.wait()
            os.close(reader.handle._descriptor())
            assert reader[1] == value_of(1, 50_000)
            assert dict(reader.items()) == {1: value_of(1, 50_000)}
            assert reader.handle._facts()["liveness"] == "none (read only)"

    child = Partner(run)
    child.hear()
    path = path_of(public.name)
    os.rename(path, path + "-away")
    try:
        child.tell()
        child.result()
    finally:
        os.rename(path + "-away", path)


# ---- stopped inside a lookup ----


def look(handle):
    return handle.get(0)


def opened(name, read_only):
    """prepare: a handle of the child's own that has read the key often enough that each lookup
    takes the same steps."""

    def prepare():
        handle = SharedDict.open(name, read_only=read_only)
        for _ in range(64):
            look(handle)
        return handle

    return prepare


class Stopped:
    """A reader that can be stopped at every instruction of a lookup of key 0."""

    def __init__(self, name, read_only=False):
        self.prepare = opened(name, read_only)
        self.segment = stepping.Segment(path_of(name))
        self.trace = stepping.trace(self.prepare, look, self.segment)
        begins, ends = self.trace.steps_changed[-2:]
        self.places = range(ends - begins)

    def at(self, k):
        """A reader stopped k steps after the beginning of its lookup."""
        begins = len(self.trace.changes) - 1
        reader = stepping.stop_at_change(
            self.prepare, look, self.segment, begins, pcs=self.trace.pcs
        )
        if k:
            reader.step(steps=k)
        assert reader.run.ending == stepping.AT_TARGET, "the reader is not inside its lookup"
        return reader


@pytest.fixture
def small(stepper, map_name):
    with SharedDict.create(map_name, key=int, value=bytes, max_bytes=FEW_MAX) as made:
        yield made
        made.check()
    shmrhash.unlink(map_name)


@pytest.mark.parametrize(
    ("size", "read_only"),
    [
        (40, False),
        pytest.param(3_000, False, marks=pytest.mark.thorough),
        pytest.param(12_000, False, marks=pytest.mark.thorough),
        pytest.param(12_000, True, marks=pytest.mark.thorough),
    ],
)
def test_a_reader_stopped_inside_a_lookup_keeps_one_object(small, seed, size, read_only):
    """M1, R1, R2: all other memory is used again; the resumed reader returns a whole value."""
    fill(small, size)
    stopped = Stopped(small.name, read_only)
    print(f"{len(stopped.places)} places")
    # Places anywhere in the lookup, and places in its last fifth, where it copies the value.
    late = stopped.places[len(stopped.places) * 4 // 5 :]
    rng = random.Random(seed)
    for k in sorted({*rng.sample(stopped.places, PLACES), *rng.sample(late, PLACES)}):
        small.clear()
        fill(small, size)
        with stopped.at(k) as reader:
            for other in (200_000, 12_000, 500):
                small.clear()
                stored, error = fill(small, other)
                assert stored >= FEW_MAX * 4 // 5 - SLACK_BYTES - size, (k, other, error)
            before = committed(small)
            seen = reader.wait()
            assert committed(small) == before, (k, "it looked at memory that had gone")
        assert seen in (value_of(0, size), value_of(0, other)), k
        assert small.info()["objects"]["bytes_waiting"] == 0
    small.check()


@pytest.mark.long
def test_reader_that_keeps_memory_is_named(small):
    """M1: the object that a stopped reader is copying stays; the error and info() have its pid."""
    large = 700_000
    small[0] = value_of(0, large)
    stopped = Stopped(small.name)
    # With so large a value, most of the places are inside the copy.
    with stopped.at(stopped.places[len(stopped.places) * 3 // 4]) as reader:
        small.clear()
        with pytest.raises(shmrhash.OutOfMemory, match=rf"wait for operations.*{reader.pid}"):
            fill_one(small, 400_000)
        facts = small.info()["objects"]
        assert facts["bytes_waiting"] >= large
        assert facts["waiting_for"] == [reader.pid]
        fill_one(small, 200_000)
        small[0] = b"another"
        # Which one depends on whether its last check preceded the stop.
        assert reader.wait() in (b"another", value_of(0, large))
    small.clear()
    fill_one(small, 400_000)
    assert small.info()["objects"]["bytes_waiting"] == 0


def fill_one(d, size):
    d[1] = value_of(1, size)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.long
def test_dead_reader_keeps_no_memory(small, read_only):
    """M1, C2: a reader killed inside its lookup is recovered before memory is refused."""
    large = 700_000
    small[0] = value_of(0, large)
    stopped = Stopped(small.name, read_only)
    with stopped.at(stopped.places[-1] - 1) as reader:
        small.clear()
        reader.kill()
    fill_one(small, 400_000)
    assert len(small) == 1


# ---- no membarrier ----


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def refuse_membarrier():
    """Refuse membarrier in this process, as older seccomp profiles of containers do."""
    load, equal, give = 0x20, 0x15, 0x06
    number = SYS_MEMBARRIER[os.uname().machine]
    rules = [
        (load, 0, 0, 0),
        (equal, 0, 1, number),
        (give, 0, 0, 0x50001),
        (give, 0, 0, 0x7FFF0000),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program, libc = Program(len(rules), ctypes.addressof(code)), ctypes.CDLL(None)
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert libc.prctl(seccomp, filter_mode, ctypes.byref(program), 0, 0) == 0


def without_membarrier(work, *arguments):
    """Do the work in a child that may not call membarrier."""

    def run():
        refuse_membarrier()
        work(*arguments)

    in_child(run)


def test_memory_is_used_again_without_membarrier(d):
    """M1: without membarrier, readers of objects execute the fence themselves."""

    def work():
        with SharedDict.open(d.name) as own:
            assert not own.info()["membarrier"]
            change_sizes(own)

    without_membarrier(work)
    change_sizes(d, MANY_BYTES // 10)


def test_process_without_membarrier_gets_memory_after_an_idle_one_has_read(small):
    """M1: an idle process, which attached earlier and has read nothing since, might rely on a
    membarrier. A process without membarrier is out of memory until the idle one has read; the
    others go on."""
    small[0] = b"x"

    def read_twice(parent):
        with SharedDict.open(small.name) as own:
            own[7] = b"y"
            for _ in range(2):
                parent.say()
                parent.wait()
                assert own[7] == b"y"

    def work(parent, waited_for):
        refuse_membarrier()
        with SharedDict.open(small.name) as own:
            own[1] = value_of(1, 500_000)  # of another size class than 700,000 bytes
            del own[1]
            parent.say()
            parent.wait()
            with pytest.raises(shmrhash.OutOfMemory, match=rf"membarrier.*\[{waited_for}\]"):
                own[2] = value_of(2, 700_000)
            assert own.info()["objects"]["waiting_for"] == [waited_for]
            parent.say()
            parent.wait()
            own[2] = value_of(2, 700_000)

    idle = Partner(read_twice)
    idle.hear()
    worker = Partner(work, idle.pid)
    worker.hear()
    assert small[0] == b"x"  # this process reads, and notes that it executed a fence
    worker.tell()
    worker.hear()
    small[3] = value_of(3, 700_000)  # a process with membarrier waits for nobody
    del small[3]
    idle.tell()
    idle.hear()
    worker.tell()
    worker.result()
    idle.tell()
    idle.result()
    assert len(small[2]) == 700_000


def test_freeze_without_membarrier_says_so(d):
    """freeze() raises Error, not LockTimeout, and the map stays as it was."""

    def work():
        with SharedDict.open(d.name, timeout=60) as own:
            began = time.monotonic()
            with pytest.raises(shmrhash.Error, match="membarrier") as caught:
                own.freeze()
            assert not isinstance(caught.value, shmrhash.LockTimeout)
            assert time.monotonic() - began < 60
            own[1] = b"1"

    without_membarrier(work)
    assert d[1] == b"1"
    d.clear()


def test_writer_without_membarrier_sees_the_freezing(small):
    """A writer without membarrier, whose accesses freeze() cannot order, is refused."""

    def run(parent):
        refuse_membarrier()
        with SharedDict.open(small.name) as own:
            own[1] = b"1"
            parent.say()
            parent.wait()
            with pytest.raises(shmrhash.FrozenMap):
                own[2] = b"2"

    child = Partner(run)
    child.hear()
    small.freeze()
    child.tell()
    child.result()
    assert dict(small.items()) == {1: b"1"}
