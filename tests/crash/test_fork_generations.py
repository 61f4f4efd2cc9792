"""A child of fork inherits Python objects of its parent, but owns nothing in the map (C1, L1, W1).

Sections, views, operations under way and iterators belong to the process that began them. In each
test a child ends, uses or drops such an object, and then the parent goes on with it.
"""

import contextlib
import os
import threading

import pytest
from support.children import Child, in_child

import shmrhash
from shmrhash import Array, SharedDict

ROUNDS = 5


@pytest.fixture
def make_dict():
    """A function that makes anonymous dicts; the test ends with check() on each."""
    with contextlib.ExitStack() as stack:
        made = []

        def make(**options):
            made.append(stack.enter_context(SharedDict(**{"timeout": 0.5} | options)))
            return made[-1]

        yield make
        for d in made:
            if not d.closed:
                d.check()


class Forks:
    """A value that forks when it is decoded, or encoded, if armed. The child goes on from there."""

    armed = None
    pid = None

    def __init__(self, when="decoding"):
        self.when = when

    def __getstate__(self):
        Forks.fork_if(self.when == "encoding")
        return self.when

    def __setstate__(self, when):
        self.when = when
        Forks.fork_if(when == "decoding")

    @staticmethod
    def fork_if(wanted):
        if wanted and Forks.armed == os.getpid():
            Forks.armed = None
            Forks.pid = os.fork()


@contextlib.contextmanager
def forking():
    """The first Forks decoded or encoded in this block forks. The child ends with the block."""
    parent = os.getpid()
    Forks.armed, Forks.pid = parent, None
    failed = 1
    try:
        yield
        failed = 0
    finally:
        if os.getpid() != parent:
            if failed:
                import traceback

                traceback.print_exc()
            os._exit(failed)
    assert Forks.pid, "nothing was forked"
    assert os.waitpid(Forks.pid, 0)[1] == 0


def count_up(d, key):
    for number in range(2_000):
        d[key] = number


@pytest.mark.parametrize("ending", ["roll_back", "exit", "raise", "drop", "close"])
def test_child_never_ends_its_parents_section_on_a_dict(make_dict, ending):
    """L1: whatever the child does with the section, the key stays locked, and the parent's section
    stores its value."""
    d = make_dict(key=str, value=object)
    d["k"] = 1
    section = d.locked("k")

    def end():
        nonlocal section
        if ending == "roll_back":
            with pytest.raises(shmrhash.Error, match="parent process's"):
                section.roll_back()
        elif ending == "exit":
            with pytest.raises(shmrhash.Error, match="parent process's"):
                section.__exit__(None, None, None)
        elif ending == "raise":
            with pytest.raises(shmrhash.Error, match="parent process's"):
                section.__exit__(ValueError, ValueError(), None)
        elif ending == "drop":
            del section
        elif ending == "close":
            d.close()
            return
        count_up(d, "mine")
        with pytest.raises(shmrhash.LockTimeout):
            d["k"] = 7

    with section:
        section.value = 2
        in_child(end)
        assert d["k"] == 1
    assert d["k"] == 2


@pytest.mark.parametrize("ending", ["exit", "drop", "close"])
def test_child_never_ends_its_parents_section_on_a_map(make_map, ending):
    """L1: the test above with the section of an RHashMap."""
    m = make_map(timeout=0.5)
    m[b"12345678"] = bytes(8)
    section = m.locked(b"12345678")

    def end():
        nonlocal section
        if ending == "exit":
            with pytest.raises(shmrhash.Error, match="parent process's"):
                section.__exit__(None, None, None)
        elif ending == "drop":
            del section
        else:
            m.close()
            return
        for number in range(2_000):
            m[b"abcdefgh"] = number.to_bytes(8, "little")
        with pytest.raises(shmrhash.LockTimeout):
            m[b"12345678"] = bytes(8)

    with section:
        section[:] = b"\1" * 8
        in_child(end)
        assert m[b"12345678"] == bytes(8)
    assert m[b"12345678"] == b"\1" * 8


def read(d):
    assert isinstance(d["x"], Forks)


def pop(d):
    assert isinstance(d.pop("x"), Forks)


def walk(d):
    assert len(d.items()) == len(list(d.items()))


@pytest.mark.parametrize("operate", [read, pop, walk])
def test_a_child_forked_inside_decoding_leaves_the_operation_to_its_parent(make_dict, operate):
    """C1, W1: parent and child both return from the operation; each then uses its own context."""
    for _ in range(ROUNDS):
        d = make_dict(key=str, value=object)
        d["x"], d["y"] = Forks(), 1
        with forking():
            operate(d)
            count_up(d, "child" if Forks.pid == 0 else "parent")
        assert d["child"] == d["parent"] == 1_999
        assert d.info()["processes"] == 1
        d.check()


@pytest.mark.parametrize("when", ["decoding", "encoding"])
def test_section_that_forks_while_it_begins_or_ends_belongs_to_the_parent(make_dict, when):
    """L1, W1: the section raises in a child that is forked during pickling, and stores nothing."""
    d = make_dict(key=str, value=object)
    d["x"] = Forks(when) if when == "decoding" else 0
    with forking():
        begun = os.getpid()
        with contextlib.ExitStack() as stack:
            stack.push(
                lambda _, error, __: begun != os.getpid() and "parent process's" in str(error)
            )
            section = stack.enter_context(d.locked("x"))
            section.value = Forks(when) if when == "encoding" else 5
            assert begun == os.getpid(), "the child is inside a section of its parent's"
        count_up(d, "child" if begun != os.getpid() else "parent")
    assert d["child"] == d["parent"] == 1_999
    assert d["x"] == 5 if when == "decoding" else isinstance(d["x"], Forks)


def test_a_child_may_close_the_map_inside_its_parents_operation(make_dict):
    """C1: the operation returns to a closed handle, not to unmapped memory."""

    class Closes(Forks):
        def __setstate__(self, when):
            super().__setstate__(when)
            if Forks.pid == 0:
                open_dict.close()

    globals()["Closes"] = Closes
    Closes.__qualname__ = "Closes"
    open_dict = make_dict(key=str, value=object)
    open_dict["x"], open_dict["n"] = Closes(), 0
    with forking():
        with contextlib.suppress(shmrhash.MapClosed):
            open_dict["x"]
        if Forks.pid == 0:
            with pytest.raises(shmrhash.MapClosed):
                open_dict["n"]
        else:
            count_up(open_dict, "n")
    assert open_dict["n"] == 1_999


def test_views_of_the_parent_and_of_the_child_each_keep_the_mapping(make_dict):
    """M1: a child drops its parent's view and closes the dict; its own view can still be read."""
    d = make_dict(key=str, value=Array("u8"))
    numpy = pytest.importorskip("numpy")
    d["a"] = numpy.arange(100, dtype="u8")
    inherited = d["a"]

    def use():
        nonlocal inherited
        own = d["a"]
        del inherited
        d.close()
        assert own.sum() == 4950
        del own

    def keep():
        d.close()
        assert inherited.sum() == 4950

    in_child(use)
    in_child(keep)
    assert inherited.sum() == 4950
    assert d["a"].sum() == 4950


def test_iterator_gives_parent_and_child_each_the_remaining_entries(make_map):
    """I1: parent and child each get the remaining entries once, while another thread reads."""
    m = make_map()
    keys = [number.to_bytes(8, "little") for number in range(2_000)]
    for key in keys:
        m[key] = key
    iterator = iter(m.items())
    stop = threading.Event()
    halves = [next(iterator) for _ in range(700)]

    def others_read():
        while not stop.is_set():
            assert len(list(m)) == len(keys)

    reader = threading.Thread(target=others_read)
    reader.start()
    try:

        def rest():
            found = sorted(key for key, _ in [*halves, *iterator])
            assert found == sorted(keys)
            m[keys[0]] = keys[0]

        in_child(rest)
        rest()
    finally:
        stop.set()
        reader.join()


def test_value_that_uses_the_key_of_its_own_section_raises_deadlock_error(make_dict):
    """L1: code that decodes or encodes a section's value would wait for itself: DeadlockError."""

    told = []

    class UsesItself:
        def __init__(self, when):
            self.when = when

        def store(self, when):
            if when == self.when:
                try:
                    d["k"] = 3
                except shmrhash.DeadlockError as error:
                    told.append(type(error))

        def __getstate__(self):
            self.store("encoding")
            return self.when

        def __setstate__(self, when):
            self.when = when
            self.store("decoding")

    globals()["UsesItself"] = UsesItself
    UsesItself.__qualname__ = "UsesItself"
    d = make_dict(key=str, value=object, timeout=60)
    d["k"] = UsesItself("decoding")
    with d.locked("k") as section:
        assert isinstance(section.value, UsesItself)
        assert told == [shmrhash.DeadlockError]
    d["k"] = 1
    d.update_with("k", lambda _: UsesItself("encoding"))
    assert len(told) >= 2
    assert set(told) == {shmrhash.DeadlockError}


def test_children_forked_while_threads_operate_have_their_own_contexts(make_map):
    """W1: children forked while threads operate work beside their parent; the sum is exact."""
    m = make_map()
    key = b"counter!"
    m[key] = bytes(8)
    stop = threading.Event()

    def add():
        while not stop.is_set():
            m.add(key, 1)
            added[0] += 1

    added = [0]
    thread = threading.Thread(target=add)
    thread.start()
    children = [Child(lambda: [m.add(key, 1) for _ in range(1_000)]) for _ in range(10)]
    for child in children:
        child.result()
    stop.set()
    thread.join()
    assert int.from_bytes(m[key], "little") == added[0] + 10_000
