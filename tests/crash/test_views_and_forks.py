"""Arrays and memoryviews that were read before a fork stay as they are in the child (R2, M1, C1).

The child has pins of its own from the moment of the fork (forking.pxd): the parent may drop its
views, or end, and the bytes are not used again while the child lives.
"""

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
from support import stepping
from support.children import Child, Partner, in_child

import shmrhash
from shmrhash import Array, SharedDict, _core

numpy = pytest.importorskip("numpy")

ITEMS = 2_000  # of 8 bytes: each array is a run
ARRAYS = 8


@pytest.fixture
def arrays(map_name):
    """A named dict of arrays with hardly more room than they need, so that memory is used again."""
    made = SharedDict(
        map_name,
        key=str,
        value=Array("u8"),
        max_bytes=ARRAYS * 2 * 20_480,
        timeout=2,
        ephemeral=True,
    )
    for number in range(ARRAYS):
        made[str(number)] = array_of(number)
    with made:
        yield made
        gc.collect()
        shmrhash.gc()
        made.check()


def array_of(number):
    return numpy.full(ITEMS, number + 1, dtype="u8")


def expect(array, number):
    assert numpy.array_equal(array, array_of(number))


def overwrite(d):
    """Replace all arrays several times, so that their memory is used for other values."""
    for turn in range(4):
        for number in range(ARRAYS):
            with contextlib.suppress(shmrhash.OutOfMemory):
                d[str(number)] = array_of(1_000 * (turn + 1) + number)


class Waiting(Partner):
    """A child that waits for do(), calls the function, and stays until it is killed."""

    def __init__(self, function):
        def live(parent):
            parent.wait()
            function()
            parent.say()
            parent.wait()

        super().__init__(live)

    def do(self):
        self.tell()
        self.hear()

    def end(self):
        assert self.kill() == -signal.SIGKILL


def pinned(d):
    gc.collect()
    shmrhash.gc()
    return d.info()["objects"]["pinned"]


def test_array_read_before_a_fork_never_changes_in_the_child(arrays):
    """R2: the parent drops its views and replaces the values; the child reads the old ones."""
    views = [arrays[str(number)] for number in range(ARRAYS)]

    def look():
        for number, view in enumerate(views):
            expect(view, number)

    child = Waiting(look)
    try:
        views.clear()
        assert pinned(arrays) == ARRAYS
        overwrite(arrays)
        child.do()
    finally:
        child.end()
    assert pinned(arrays) == 0
    overwrite(arrays)


def test_view_outlives_the_process_that_read_it(arrays):
    """R2, C2: the parent ends and is recovered; its grandchild still reads the old values."""
    other = Waiting(lambda: None)  # forked before the views are read
    ready, tell = os.pipe()
    go, start = os.pipe()

    def first():
        views = [arrays[str(number)] for number in range(ARRAYS)]
        if os.fork() == 0 and os.fork() == 0:
            os.write(tell, b"r")
            os.read(go, 1)
            for number, view in enumerate(views):
                expect(view, number)
            del views, view
            os.write(tell, b"d")
            os._exit(0)

    in_child(first)
    os.close(tell)  # a child that fails is an end of file
    assert os.read(ready, 1) == b"r"
    shmrhash.gc()
    overwrite(arrays)
    assert pinned(arrays) == ARRAYS
    os.write(start, b"g")
    assert os.read(ready, 1) == b"d"
    while arrays.info()["processes"] > 1 and pinned(arrays):
        pass  # a poll: the grandchild is about to end
    assert pinned(arrays) == 0
    other.end()
    for descriptor in (ready, go, start):
        os.close(descriptor)


def test_dropping_a_view_in_the_child_keeps_the_parents(arrays):
    """C1: a view that the child drops is still pinned by the parent, and the reverse."""
    view = arrays["0"]

    def drop_and_stay():
        nonlocal view
        expect(view, 0)
        view = None
        overwrite(arrays)

    child = Waiting(drop_and_stay)
    try:
        assert pinned(arrays) == 2
        child.do()
        expect(view, 0)
        assert pinned(arrays) == 1
    finally:
        child.end()
    del view
    assert pinned(arrays) == 0


def test_child_without_a_slot_of_its_own_reads_unchanged_views(arrays):
    """R2: no descriptor is left for the child's slot; the parent keeps its pins to its end."""
    view = arrays["0"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    go, start = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        pid = os.fork()  # there is no descriptor for the pipe of a Child
        if pid == 0:
            failed = 1
            try:
                os.read(go, 1)
                expect(view, 0)
                failed = 0
            finally:
                os._exit(failed)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    del view
    overwrite(arrays)
    os.write(start, b"g")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(go)
    os.close(start)
    in_child(lambda: None)  # a pin that this process kept for one child serves all later ones
    arrays.check()


def test_threads_that_fork_at_once_have_a_slot_for_each_child(arrays):
    """C1, R2: four threads fork and read; no two children share a slot, no view changes."""
    failures = []
    rounds = 6

    def work(number):
        try:
            for _ in range(rounds):
                view = arrays[str(number)]

                def look(view=view):
                    expect(view, number)
                    own = arrays[str(number)]
                    del view
                    expect(own, number)

                child = Child(look)
                del view, look
                child.result()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pinned(arrays) == 0
    assert arrays.info()["processes"] == 1


@pytest.mark.thorough
def test_forks_keep_views_while_threads_drop_theirs(arrays):
    """R2, C1: the walk over all views meets views that are being dropped, and a closed handle's."""
    for number in range(200):
        arrays[f"small {number}"] = numpy.full(4, number, "u8")
    other = SharedDict.open(arrays.name)
    kept = [other[f"small {number}"] for number in range(200)]
    other.close()
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            mine = [arrays[f"small {number}"] for number in range(200)]
            assert [view[0] for view in mine] == list(range(200))
            del mine

    def look():
        assert [view[0] for view in kept] == list(range(200))

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):  # every 32,768th operation looks for the dead, without the GIL
            in_child(look)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert other.closed
    look()
    kept.clear()
    assert pinned(arrays) == 0


NESTED_FORK = """
import os, sys
armed, nested, views = [], [], []
ready, tell = os.pipe()
go, start = os.pipe()

def hook():
    if armed:
        armed.clear()  # before the fork, which calls this again
        nested.append(os.fork())
        if nested[0] == 0:
            os.close(start)
            os.write(tell, b"r")
            os.read(go, 1)
            os._exit(0 if [view[0] for view in views] == list(range(1, 9)) else 1)

os.register_at_fork(before=hook)  # those of the library, registered later, are called before
import numpy
from shmrhash import Array, OutOfMemory, SharedDict, gc

d = SharedDict.open(sys.argv[1])
views.extend(d[str(number)] for number in range(8))
armed.append(True)
outer = os.fork()
if outer == 0:
    os._exit(0 if [view[0] for view in views] == list(range(1, 9)) else 1)
assert os.waitpid(outer, 0)[1] == 0
assert os.read(ready, 1) == b"r"
views.clear()
gc()  # the pins of the outer child end
for turn in range(100, 132):
    try:
        d[str(turn % 8)] = numpy.full(2_000, turn, "u8")
    except OutOfMemory:
        pass
os.write(start, b"g")
assert os.waitpid(nested[0], 0)[1] == 0, "the bytes that the nested child read have changed"
"""


def test_fork_inside_the_hooks_of_a_fork_keeps_the_childs_views(arrays):
    """R2: nothing was claimed for the nested child; the parent's own pins stay instead."""
    done = subprocess.run(
        [sys.executable, "-c", NESTED_FORK, arrays.name],
        cwd=tempfile.gettempdir(),  # not where the sources are
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert pinned(arrays) == 0


@pytest.mark.parametrize("way", ["forkpty", "preexec", "forkserver", "no process left"])
def test_every_way_to_fork_leaves_views_and_slots_unchanged(arrays, way):
    """R2, C1: every way to fork, also one that fails and one whose child runs another program."""
    view = arrays["0"]
    if way == "forkpty":
        pid, terminal = os.forkpty()
        if pid == 0:
            try:
                expect(view, 0)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        os.close(terminal)
    elif way == "preexec":
        run = subprocess.run(
            [sys.executable, "-c", ""], preexec_fn=lambda: expect(view, 0), check=True
        )
        assert run.returncode == 0
    elif way == "forkserver":
        process = multiprocessing.get_context("forkserver").Process(target=int)
        process.start()
        process.join()
        assert process.exitcode == 0
    else:
        in_child(refused_fork, view)

    overwrite(arrays)
    expect(view, 0)
    assert pinned(arrays) == 1
    assert arrays.info()["processes"] == 1
    view = None
    assert pinned(arrays) == 0


def refused_fork(view):
    """Fork as a user who may have no more processes, since root is not limited."""
    if os.geteuid() == 0:
        os.setgid(65533)
        os.setuid(65533)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            os.fork()
        expect(view, 0)


@pytest.mark.thorough
def test_seventy_children_each_have_pins_of_their_own(arrays):
    """R2, C2: more children at once than one page has slots for, after 20 that have ended."""
    views = [arrays[str(number)] for number in range(ARRAYS)]
    for _ in range(20):
        in_child(lambda: None)

    def look():
        for number, view in enumerate(views):
            expect(view, number)

    children = [Waiting(look) for _ in range(70)]
    try:
        assert arrays.info()["processes"] == 71
        views.clear()
        assert pinned(arrays) == 70 * ARRAYS
        overwrite(arrays)
        for child in children:
            child.do()
    finally:
        for child in children:
            child.end()
    assert pinned(arrays) == 0


@pytest.mark.thorough
@pytest.mark.usefixtures("stepper")
def test_parent_killed_before_the_fork_leaves_no_pin(arrays, seed):
    """C1, C2: a kill at changes of the segment that claiming and pinning for a child make."""
    segment = stepping.Segment(stepping.segment_path(arrays.name))

    def prepare():
        own = SharedDict.open(arrays.name)
        return own, [own[str(number)] for number in range(3)]

    states = 0
    for crash in stepping.crash_states(
        prepare, lambda _: _core.views_before_fork(), segment, sample=16, seed=seed
    ):
        states += 1
        segment.restore(crash.image)
        assert pinned(arrays) == 0, crash
        assert arrays.info()["processes"] == 1
        arrays.check()
        for number in range(ARRAYS):
            expect(arrays[str(number)], number)
    assert states > 10


def test_child_killed_at_once_leaves_no_pin(arrays):
    """C2: children die before they run any code of their own; their pins end with them."""
    views = [arrays[str(number)] for number in range(ARRAYS)]
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert pinned(arrays) == ARRAYS
    views.clear()
    assert pinned(arrays) == 0


def test_process_without_views_claims_no_slots_for_its_children(arrays):
    before = arrays.info()["processes"]
    child = Waiting(lambda: None)
    assert arrays.info()["processes"] == before
    child.end()
