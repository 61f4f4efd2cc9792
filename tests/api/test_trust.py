"""Users' access to each other's maps: root trusts other users no more than any user does."""

import contextlib
import os
import pickle
import shutil
import signal
import stat
import time

import pytest
from support.children import Child, Partner, in_child

import shmrhash
from shmrhash import PermissionDenied, RHashMap, SharedCounter, SharedDict

STRANGER, OTHER = 65534, 65533
GC_TURNS = 6000
GROUP = 65532

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which can become any user")


def as_user(user, function, *arguments):
    """Return what function returns in another user's child; its exceptions fail the test."""

    def act():
        os.setgroups([GROUP])
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(user, user, user)
        return function(*arguments)

    return in_child(act)


@pytest.fixture
def folder(monkeypatch):
    """A directory of segments that every user may write to, like /dev/shm."""
    base = os.environ.get("SHMRHASH_DIR", "/dev/shm")
    if not os.stat(base).st_mode & stat.S_IXOTH:  # this test run's directory, closed to other users
        base = "/dev/shm"
    where = f"{base}/shmrhash-trust-{os.getpid()}"
    os.mkdir(where)
    os.chmod(where, 0o1777)
    with monkeypatch.context() as patch:
        patch.setenv("SHMRHASH_DIR", where)
        yield where
    shutil.rmtree(where)


class Code:
    """An object whose pickle creates a directory when it is loaded."""

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
def test_map_of_a_stranger_is_opened_only_if_its_owner_is_named(folder, opener, user):
    """Root and other users unpickle what a user stored only if they name that user, as the error
    says."""
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
def test_counters_and_open_or_create_check_the_owner(folder, user):
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


def test_pickle_keeps_the_trusted_owner(folder):
    """A worker that unpickles a handle opens the map with the trust of the pickled handle."""
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
    assert receive(pickles) == (b"v" * 8, "red", 3, "red")  # root: the pickle has the owner


def test_reading_a_pickle_does_not_make_a_user_trust_its_writer(folder):
    """A user who loads another user's pickle of a handle must still name the map's owner."""

    def send():
        with RHashMap.create("own", key_size=8, value_size=8, max_entries=9, mode=0o666) as m:
            return pickle.dumps(m)

    sent = as_user(STRANGER, send)
    with pytest.raises(PermissionDenied, match=f"owner={STRANGER}"):
        pickle.loads(sent)


# ---- gc ----


def leave_dead(name, **more):
    """Make a map in which a killed process is still attached."""
    make_map(name, **more)

    def use():
        m = RHashMap.open(name)
        m[b"k" * 8] = bytes(8)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Child(use).join() == -signal.SIGKILL


def test_gc_of_root_does_not_attach_to_a_strangers_map(folder):
    """gc() reports the map's owner; gc(owner=...) and the owner's programs recover dead
    processes."""
    as_user(STRANGER, leave_dead, "hits")

    report = shmrhash.gc()

    assert (report["maps"], report["recovered"], report["removed"]) == (1, 0, [])
    assert f"belongs to user {STRANGER}" in report["skipped"]["hits"]
    assert shmrhash.gc(owner=STRANGER)["recovered"] == 1
    assert shmrhash.gc()["skipped"] == {}


def test_gc_of_root_removes_maps_that_strangers_abandoned(folder):
    """gc() removes ephemeral maps, and with names=True every map that no process holds."""
    as_user(STRANGER, make_map, "kept")
    as_user(STRANGER, make_map, "held")
    as_user(STRANGER, leave_dead, "dead")
    with RHashMap.open("held", owner=STRANGER, read_only=True):
        assert shmrhash.gc()["removed"] == []
        assert shmrhash.gc(names=True)["removed"] == ["dead", "kept"]
        assert os.listdir(folder) == ["held"]
    assert shmrhash.gc(names=True)["removed"] == ["held"]


def truncate_to_and_fro(parent, name, folder):
    """Truncate the file to a page and restore its size and its header, again and again."""
    leave_dead(name, max_entries=100_000)
    with open(f"{folder}/{name}", "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = os.pread(file.fileno(), 1 << 17, 0)
        parent.say()
        while True:
            file.truncate(4096)
            file.truncate(size)
            os.pwrite(file.fileno(), head, 0)
            time.sleep(0.0005)  # gives root's gc() time to begin


def test_truncating_a_file_never_ends_the_gc_of_root(folder):
    def attack(parent):
        os.setresuid(STRANGER, STRANGER, STRANGER)
        truncate_to_and_fro(parent, "bait", folder)

    def collect():
        for _ in range(GC_TURNS):
            shmrhash.gc()

    with Partner(attack) as attacker:
        attacker.hear()
        in_child(collect)
        assert not attacker.has_ended()


def test_link_in_the_place_of_a_map_is_refused(folder):
    """No operation follows a link that another user made, whatever the link points to."""
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
