"""A process is killed at every change that it makes to the cell of a primitive without a key: while
it makes the cell, gives it back, uses it again, takes it over from a dead process, or shares it by
a pickle or a fork (C1, C2).

A cell is private while it names its keeper. The survivor reads in the image which cells are
private, and makes new primitives without a key. It must get each cell whose keeper is dead, and
find it as new; it must get no cell that another process may know. A process that got a primitive by
a pickle or a fork can go on using it, and is told if the dead process held it.
"""

import ctypes
import gc
import mmap
import os
import pickle
import struct
from pathlib import Path

import pytest
from support import stepping
from support.children import Child, in_child
from support.killing import Tally, explained

from shmrhash import Event, Lock, RWLock, Semaphore, Sync

PERMITS = 2
LONG_S = 60
CHANGES_MAX = 1000  # more than a fork makes
NEW = 40  # primitives that a survivor makes: more than there are cells to be had
KEEPER = struct.Struct("<104xQ")  # of a cell's 128 bytes
PR_SET_CHILD_SUBREAPER = 36
QUICK_STATES = 4
THOROUGH_STATES = 40

pytestmark = pytest.mark.usefixtures("stepper")


class Notes:
    """What the killed process leaves for the test, in memory that is not watched."""

    SIZE = 64 * 1024

    def __init__(self):
        self._memory = mmap.mmap(-1, self.SIZE)

    def put(self, thing):
        """Replace the note; the store of its size, after its bytes, makes it valid."""
        stored = pickle.dumps(thing)
        self._memory[:8] = bytes(8)
        self._memory[8 : 8 + len(stored)] = stored
        self._memory[:8] = len(stored).to_bytes(8, "little")

    def get(self):
        size = int.from_bytes(self._memory[:8], "little")
        return pickle.loads(self._memory[8 : 8 + size]) if size else None


class Owner:
    """A process with primitives that no other process knows. It holds `lock`, a permit of
    `semaphore`, and `table` for writing."""

    def __init__(self, space, notes, mail):
        self.space, self.mail = space, mail
        self.lock = Lock(space=space)
        self.free = Lock(space=space)
        self.semaphore = Semaphore(PERMITS, space=space)
        self.event = Event(space=space)
        self.table = RWLock(space=space)
        self.sent = Event("sent", space=space)
        self.lock.acquire()
        self.semaphore.acquire()
        self.table.acquire_write()
        self.event.set()
        notes.put([each._index for each in self.private()])
        mail.put(None)
        gc.collect()

    def private(self):
        return [self.lock, self.free, self.semaphore, self.event, self.table]

    def say_sent(self):
        """Change the segment once more, so that a kill may come between the operation and this."""
        self.sent.set()


def make_one(owner):
    Lock(space=owner.space).acquire()


def drop_the_lock(owner):
    del owner.lock
    owner.say_sent()


def drop_all(owner):
    del owner.free, owner.semaphore, owner.event, owner.table
    owner.say_sent()


def drop_and_use_again(owner):
    del owner.table
    Semaphore(PERMITS, space=owner.space).acquire()
    owner.say_sent()


def pickle_the_held_lock(owner):
    owner.mail.put(pickle.dumps(owner.lock))
    owner.say_sent()


def pickle_the_free_lock(owner):
    owner.mail.put(pickle.dumps(owner.free))
    owner.say_sent()


OPERATIONS = [
    make_one,
    drop_the_lock,
    drop_all,
    drop_and_use_again,
    pickle_the_held_lock,
    pickle_the_free_lock,
]
BRIEF = {pickle_the_held_lock, drop_and_use_again}  # the quick tests kill a few times in these


@pytest.fixture
def watched(space):
    """A space in which this process has its slot and context in every image."""
    Event("sent", space=space).clear()
    keepers(space)
    return space


def keepers(space):
    """Which cells name a keeper, by their index."""
    raws = list(space.handle)
    return {
        space._cells.find(raw, 0, 0, 0): KEEPER.unpack_from(space.handle.lookup(raw))[0] != 0
        for raw in raws
    }


def expect_new(primitive):
    """Assert that nothing of the cell's earlier use is left."""
    if isinstance(primitive, Lock):
        assert primitive.token == 0
        assert primitive.acquire(timeout=0)
        assert primitive.orphan is None
    elif isinstance(primitive, Semaphore):
        assert primitive.get_value() == PERMITS
        assert primitive.acquire(timeout=0)
    elif isinstance(primitive, RWLock):
        assert primitive.acquire_write(timeout=0)
        assert primitive.orphan is None
    else:
        assert not primitive.is_set()
        primitive.set()


def make_new(space):
    """Make new primitives of each kind, see that they are new, and keep them in use."""
    kinds = [Lock, RWLock, Event]
    made = [kinds[number % 3](space=space) for number in range(NEW)]
    made.insert(0, Semaphore(PERMITS, space=space))
    for primitive in made:
        expect_new(primitive)
    return made


def survive(space, known, killed_pid):
    """Run in a process of its own. known: a pickle that had reached another process, or None.
    Returns the cells that this process got, the cell of the pickle, and whether its owner died."""
    lock = pickle.loads(known) if known else None
    made = make_new(space)
    got = {each._index for each in made}
    assert len(got) == len(made)
    if lock is not None:
        assert lock.acquire(timeout=LONG_S)
        orphan = lock.orphan
        assert orphan is None or orphan.pid == killed_pid
        lock.release()
        with lock:
            assert lock.orphan is None, "a death is told twice"
        return got, lock._index, orphan is not None
    space.check()
    return got, 0, False


def judge(space, indices, known, killed_pid):
    """Assert what must hold after every kill. Returns whether the lock of a pickle was held."""
    has_keeper = keepers(space)
    got, index, was_held = in_child(survive, space, known, killed_pid)
    for each in indices:
        if has_keeper[each]:
            assert each in got, f"cell {each} is lost: its keeper is dead"
        else:
            assert each not in got, f"cell {each} is used again, and others may know of it"
    assert index not in got
    assert known is None or not has_keeper[index], "it was pickled, and still says it is private"
    return was_held


def states_of(operate, space, notes, mail, *, sample, seed, tally):
    """Yield each Crash of the operation, with its image in place."""
    segment = stepping.Segment(stepping.segment_path(space.name))

    def prepare():
        return Owner(Sync.open(space.name), notes, mail)

    for crash in stepping.crash_states(prepare, operate, segment, sample=sample, seed=seed):
        tally.add(crash)
        segment.restore(crash.image)
        yield crash


def cases(operations):
    for operate in operations:
        if operate in BRIEF:
            yield pytest.param(operate, QUICK_STATES, id=f"{operate.__name__}-few")
        yield pytest.param(
            operate, THOROUGH_STATES, id=operate.__name__, marks=pytest.mark.thorough
        )


@pytest.mark.parametrize(("operate", "sample"), [*cases(OPERATIONS)])
def test_killed_while_a_private_cell_changes_hands(operate, sample, watched, seed, record_property):
    """C1, C2; and no pickle exists while the cell still names its keeper."""
    notes, mail, tally = Notes(), Notes(), Tally()
    pickled = 0
    for crash in states_of(operate, watched, notes, mail, sample=sample, seed=seed, tally=tally):
        with explained(crash, judge):
            known = mail.get()
            held = judge(watched, notes.get(), known, crash.run.pid)
            assert held == (known is not None and operate is pickle_the_held_lock)
            pickled += known is not None
    assert tally.crashes > 1
    assert (pickled > 0) == operate.__name__.startswith("pickle")
    tally.report(record_property, f"{operate.__name__}, seed {seed}", tally.crashes)


@pytest.mark.parametrize(
    "sample", [QUICK_STATES, pytest.param(THOROUGH_STATES, marks=pytest.mark.thorough)]
)
def test_killed_while_it_takes_over_the_cells_of_the_dead(sample, watched, seed, record_property):
    """C1, C2: the next process gets all of the cells, each once."""
    dead_notes, notes, mail, tally = Notes(), Notes(), Notes(), Tally()

    def leave():
        Owner(Sync.open(watched.name), dead_notes, mail)
        os._exit(0)

    dead = Child(leave)
    assert dead.join() == 0
    segment = stepping.Segment(stepping.segment_path(watched.name))

    def prepare():
        return Sync.open(watched.name)

    def take_over(opened):
        Lock(space=opened).acquire()

    for crash in stepping.crash_states(prepare, take_over, segment, sample=sample, seed=seed):
        tally.add(crash)
        segment.restore(crash.image)
        with explained(crash, judge):
            judge(watched, dead_notes.get(), None, crash.run.pid)
    assert tally.crashes > 1
    assert notes.get() is None
    tally.report(record_property, f"take over, seed {seed}", tally.crashes)


# ---- fork ----


class Forker(Owner):
    """A process that forks; its child waits for a signal, then uses the inherited primitives."""

    def __init__(self, space, notes, mail, pipe):
        super().__init__(space, notes, mail)
        self.told, self.tells = pipe

    def fork(self):
        if os.fork() == 0:
            try:
                os.close(self.tells)  # so that it does not outlive a test that failed
                os.read(self.told, 1)
                self.mail.put(self.go_on())
            except BaseException as error:
                self.mail.put(repr(error))
            finally:
                os._exit(0)
        self.say_sent()

    def go_on(self):
        """In the child: use the inherited primitives; the locks say that their owner died."""
        assert self.lock.acquire(timeout=LONG_S)
        assert self.lock.orphan is not None
        assert self.semaphore.acquire(timeout=LONG_S)
        assert self.semaphore.acquire(timeout=LONG_S)
        assert self.event.is_set()
        assert self.table.acquire_write(timeout=LONG_S)
        assert self.table.orphan is not None
        made = make_new(self.space)
        return {each._index for each in made}


@pytest.fixture
def orphans_are_ours():
    """The children of a killed child become children of this process."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def children():
    return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}


@pytest.mark.parametrize("sample", [2, pytest.param(None, marks=pytest.mark.thorough)])
def test_killed_while_it_forks(sample, watched, seed, orphans_are_ours, pipe):
    """C1, C2. The parent is single-stepped, since its child would run into breakpoints."""
    notes, mail = Notes(), Notes()
    segment = stepping.Segment(stepping.segment_path(watched.name))
    image = segment.image()

    def prepare():
        return Forker(Sync.open(watched.name), notes, mail, pipe)

    def forget_child(before):
        for pid in children() - before:
            os.write(pipe[1], b"x")
            os.waitpid(pid, 0)

    before = children()
    whole = stepping.run_to_change(prepare, Forker.fork, segment, CHANGES_MAX)
    assert whole.finished
    total = whole.run.changes
    forget_child(before)
    forked = 0
    for n in stepping.choose(total, sample, seed):
        segment.restore(image)
        before = children()
        process = stepping.stop_at_change(prepare, Forker.fork, segment, n)
        process.kill()
        heirs = children() - before
        indices = notes.get()
        has_keeper = keepers(watched)
        assert not heirs or not any(has_keeper[each] for each in indices)
        judge(watched, indices, None, process.pid)
        for pid in heirs:
            forked += 1
            os.write(pipe[1], b"x")
            os.waitpid(pid, 0)
            got = mail.get()
            assert isinstance(got, set), got
            assert not got & set(indices)
            watched.check()
    assert forked > 0
