"""Users and what they may do to each other: root trusts as everybody else does."""

import contextlib
import os
import pickle
import shutil
import signal
import stat
import time
import traceback

import pytest

import shmrhash
from shmrhash import PermissionDenied, RHashMap, SharedCounter, SharedDict

STRANGER, OTHER = 65534, 65533
GC_TURNS = 6000
GROUP = 65532

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who may become any user")


def as_user(user, function, *arguments):
    """What function returns in a child that is another user. Its exceptions fail the test."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([GROUP])
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(user, user, user)
            os.write(theirs, pickle.dumps((True, function(*arguments))))
        except BaseException:
            os.write(theirs, pickle.dumps((False, traceback.format_exc())))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        done, found = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    assert done, found
    return found


@pytest.fixture
def folder(monkeypatch):
    """A directory of segments that every user may write to, as /dev/shm is one."""
    base = os.environ.get("SHMRHASH_DIR", "/dev/shm")
    if not os.stat(base).st_mode & stat.S_IXOTH:  # of one run of the tests
        base = "/dev/shm"
    where = f"{base}/shmrhash-trust-{os.getpid()}"
    os.mkdir(where)
    os.chmod(where, 0o1777)
    with monkeypatch.context() as patch:
        patch.setenv("SHMRHASH_DIR", where)
        yield where
    shutil.rmtree(where)


class Code:
    """Its pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def make_dict(name, code_path=None, mode=0o666):
    with SharedDict.create(name, mode=mode) as d:
        d["color"] = Code(code_path) if code_path else "red"


def make_map(name, **more):
    options = {"key_size": 8, "value_size": 8, "max_entries": 100} | more
    with RHashMap.create(name, mode=0o666, **options) as m:
        m[b"k" * 8] = b"v" * 8
        m.check()


OPENERS = {
    "open": lambda name, **owner: RHashMap.open(name, **owner),
    "open to read": lambda name, **owner: RHashMap.open(name, read_only=True, **owner),
    "SharedDict": lambda name, **owner: SharedDict(name, **owner),
    "SharedDict.open": lambda name, **owner: SharedDict.open(name, trust=True, **owner),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=list(OPENERS))
@pytest.mark.parametrize("user", [0, OTHER], ids=["root", "other"])
def test_strangers_map_is_used_if_its_owner_is_named(folder, opener, user):
    """Root, too: nothing that a stranger stored is unpickled, and the message has the remedy."""
    as_user(STRANGER, make_dict, "settings", f"{folder}/ran")

    def refused():
        with pytest.raises(PermissionDenied, match=f"user {STRANGER}.*owner={STRANGER} to trust"):
            opener("settings")

    as_user(user, refused)
    assert not os.path.exists(f"{folder}/ran")

    def trusting():
        with contextlib.closing(opener("settings", owner=STRANGER)) as opened:
            return len(opened)

    assert as_user(user, trusting) == 1


@pytest.mark.parametrize("user", [0, OTHER], ids=["root", "other"])
def test_counters_and_open_or_create_ask_whose_map_it_is(folder, user):
    sizes = {"key_size": 8, "value_size": 8, "max_entries": 100}
    as_user(STRANGER, make_map, "hits")
    as_user(STRANGER, lambda: SharedCounter.create("words", mode=0o666).close())

    def look():
        with pytest.raises(PermissionDenied, match=f"owner={STRANGER}"):
            RHashMap.open_or_create("hits", **sizes)
        with pytest.raises(PermissionDenied, match=f"owner={STRANGER}"):
            SharedCounter("words")
        with RHashMap.open_or_create("hits", owner=STRANGER, **sizes) as m:
            assert m[b"k" * 8] == b"v" * 8
            m.check()
        with SharedCounter("words", owner=STRANGER) as words:
            assert words.inc("a") == 1
            words.check()

    as_user(user, look)


def test_pickle_keeps_the_owner_it_trusts(folder):
    """A handle sent to a worker opens the map there as it did here."""
    as_user(STRANGER, make_map, "hits")
    as_user(STRANGER, make_dict, "settings")
    as_user(STRANGER, lambda: SharedCounter.create("words", mode=0o666).close())

    def send():
        with (
            RHashMap.open("hits", owner=STRANGER) as m,
            SharedDict("settings", owner=STRANGER) as d,
            SharedCounter("words", owner=STRANGER) as words,
        ):
            words.inc("a", 3)
            return [pickle.dumps(handle) for handle in (m, d, words)]

    def receive(pickles):
        with contextlib.ExitStack() as stack:
            m, d, words = [stack.enter_context(pickle.loads(one)) for one in pickles]
            again = stack.enter_context(pickle.loads(pickle.dumps(d)))
            return m[b"k" * 8], d["color"], words["a"], again["color"]

    pickles = as_user(OTHER, send)
    assert as_user(OTHER, receive, pickles) == (b"v" * 8, "red", 3, "red")
    assert receive(pickles) == (b"v" * 8, "red", 3, "red")  # root, told so by the pickle


def test_pickle_names_nobody_by_itself(folder):
    """What a user pickles of his own map is not yet trusted by another user who reads it."""

    def send():
        with RHashMap.create("own", key_size=8, value_size=8, max_entries=9, mode=0o666) as m:
            return pickle.dumps(m)

    sent = as_user(STRANGER, send)
    with pytest.raises(PermissionDenied, match=f"owner={STRANGER}"):
        pickle.loads(sent)


# ---- gc ----


def leave_dead(name, **more):
    """A map with one dead process in it."""
    make_map(name, **more)
    pid = os.fork()
    if pid == 0:
        m = RHashMap.open(name)
        m[b"k" * 8] = bytes(8)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_gc_of_root_attaches_to_no_strangers_map(folder):
    """It says whose it is; --owner, or a program of the owner's, recovers the dead."""
    as_user(STRANGER, leave_dead, "hits")

    report = shmrhash.gc()

    assert (report["maps"], report["recovered"], report["removed"]) == (1, 0, [])
    assert f"belongs to user {STRANGER}" in report["skipped"]["hits"]
    assert shmrhash.gc(owner=STRANGER)["recovered"] == 1
    assert shmrhash.gc()["skipped"] == {}


def test_gc_of_root_removes_what_strangers_abandoned(folder):
    """Ephemeral maps, and with names=True all that nobody holds; never what somebody holds."""
    as_user(STRANGER, make_map, "kept")
    as_user(STRANGER, make_map, "held")
    as_user(STRANGER, leave_dead, "dead")
    with RHashMap.open("held", owner=STRANGER, read_only=True):
        assert shmrhash.gc()["removed"] == []
        assert shmrhash.gc(names=True)["removed"] == ["dead", "kept"]
        assert os.listdir(folder) == ["held"]
    assert shmrhash.gc(names=True)["removed"] == ["held"]


def truncate_to_and_fro(name, folder):
    """For ever: the file shrinks to a page, and is then as large as before, with its header."""
    leave_dead(name, max_entries=100_000)
    with open(f"{folder}/{name}", "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = os.pread(file.fileno(), 1 << 17, 0)
        os.mkdir(f"{folder}/begun")
        while True:
            file.truncate(4096)
            file.truncate(size)
            os.pwrite(file.fileno(), head, 0)
            time.sleep(0.0005)  # for root to begin


def test_truncated_file_never_ends_roots_gc(folder):
    attacker = os.fork()
    if attacker == 0:
        os.setresuid(STRANGER, STRANGER, STRANGER)
        truncate_to_and_fro("bait", folder)
    try:
        while not os.path.exists(f"{folder}/begun"):  # ends with the attacker's death at the latest
            assert os.waitpid(attacker, os.WNOHANG) == (0, 0)
        collector = os.fork()
        if collector == 0:
            for _ in range(GC_TURNS):
                shmrhash.gc()
            os._exit(0)
        assert os.waitpid(collector, 0)[1] == 0
    finally:
        os.kill(attacker, signal.SIGKILL)
        os.waitpid(attacker, 0)


def test_link_in_the_place_of_a_map_is_no_map(folder):
    """Nobody follows a link that a stranger laid, whatever it names."""
    make_map("hits")
    elsewhere = f"{folder}/elsewhere"
    os.mkdir(elsewhere)
    os.rename(f"{folder}/hits", f"{elsewhere}/hits")
    as_user(STRANGER, os.symlink, f"{elsewhere}/hits", f"{folder}/hits")
    for use in (RHashMap.open, SharedDict):
        with pytest.raises(PermissionDenied, match="not a regular file"):
            use("hits")
    assert shmrhash.gc(names=True)["removed"] == []
    assert os.path.exists(f"{elsewhere}/hits")
