"""File locks of readers that block no writer, recovery without the file, removal of names."""

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import pytest
from support import stepping
from support.children import Child, Partner, in_child, kill, stays
from support.killing import not_waiting
from support.words import word

import shmrhash
from shmrhash import RHashMap, SharedDict

F_OFD_SETLK = 37
NOBODY = 65534
ATTACHMENTS = 1000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")


def in_section(m):
    section = m.locked(word(1))
    section.__enter__()
    return section


def told(function, *arguments):
    """What the function returns or raises in a child, as text."""

    def tell():
        try:
            return str(function(*arguments))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return in_child(tell)


def become_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def lock_all_shared(path, process_index):
    """Take shared locks on all free bytes of the file, as a user with read permission only."""
    become_nobody()
    fd = os.open(path, os.O_RDONLY)

    def lock(start, size):
        shared = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, start, size, 0)
        fcntl.fcntl(fd, F_OFD_SETLK, shared)

    for start in range(process_index):
        with contextlib.suppress(OSError):
            lock(start, 1)
    lock(process_index + 1, 0)
    return fd, lock


@as_root
def test_shared_file_locks_of_a_reader_stop_no_attachment_and_no_recovery(make_map):
    """C2, C3: an owner dies while a reader has shared locks on every byte of the file."""
    m = make_map(mode=0o644)
    m[word(1)] = word(0)
    owner = stays(in_section, m)
    reader = stays(lock_all_shared, stepping.segment_path(m.name), 1)

    with not_waiting(1), RHashMap.open(m.name) as other:
        other[word(2)] = word(2)
    assert told(lambda: RHashMap.open(m.name).info()["liveness"]) == "process id"
    with RHashMap.open(m.name) as other:
        kill(owner)
        with not_waiting(2):
            other[word(1)] = word(3)
            m[word(1)] = word(4)

    kill(reader)
    assert m[word(1)] == word(4)


def recover_after(m, owner, prepare):
    prepare(lambda: os.kill(owner.pid, signal.SIGKILL))
    m[word(1)] = word(9)
    m[word(7)] = word(7)
    return m[word(1)] == word(9)


def no_descriptors():
    held = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, held + 1))


def no_address_space():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))


def no_files():
    os.mkdir(f"/tmp/shmrhash-empty-{os.getpid()}")
    os.chroot(f"/tmp/shmrhash-empty-{os.getpid()}")


WITHOUT = {
    "user": become_nobody,
    "descriptors": no_descriptors,
    "address space": no_address_space,
    "files": no_files,
}


@as_root
@pytest.mark.parametrize("what", WITHOUT)
@pytest.mark.parametrize("used_before", [True, False])
def test_process_that_gave_up_a_resource_goes_on_and_recovers(make_map, what, used_before):
    """C2: an owner dies; the process gives up its user, descriptors, memory or files."""
    if what == "files" and not used_before:
        pytest.skip("neither file nor /proc is left to register by: DESIGN 9")
    m = make_map(timeout=3)
    m[word(1)] = word(0)
    owner = stays(in_section, m)

    def prepare(kill_owner):
        if used_before:
            m[word(5)] = word(5)
        kill_owner()
        WITHOUT[what]()

    assert told(recover_after, m, owner, prepare) == "True"
    assert owner.join() == -signal.SIGKILL
    assert m[word(1)] == word(9)


def test_lock_timeout_names_the_owner(make_map):
    """C3: the message has the pid of the living owner."""
    m = make_map(timeout=0.1)
    m[word(1)] = word(0)
    owner = stays(in_section, m)

    with pytest.raises(shmrhash.LockTimeout, match=f"process {owner.pid} .*is alive"):
        m[word(1)] = word(1)

    kill(owner)


def test_unlink_of_a_handle_removes_only_its_own_file(make_map, map_name):
    """B1: a newer map has taken the name and keeps it; the old handle's info() says `unlinked`."""
    old = make_map()
    assert not old.info()["unlinked"]
    os.unlink(stepping.segment_path(map_name))
    assert old.info()["unlinked"]
    with RHashMap.create(map_name, key_size=8, value_size=8, max_entries=8) as newer:
        assert old.info()["unlinked"]
        with pytest.raises(shmrhash.SegmentMissing, match="a newer one"):
            old.unlink()
        assert not newer.info()["unlinked"]
        newer.unlink()


def collect_for_ever():
    while True:
        shmrhash.gc(names=True)


def test_attached_map_never_loses_its_name_to_gc(request, monkeypatch):
    """While processes make, open and close maps, others run gc(names=True): a map keeps its name as
    long as a process is attached."""
    folder = stepping.segment_path(f"shmrhash-life-{os.getpid()}")
    os.mkdir(folder)
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    monkeypatch.setenv("SHMRHASH_DIR", str(folder))
    collectors = [Child(collect_for_ever) for _ in range(2)]
    inodes = set()
    nameless = 0
    for _ in range(ATTACHMENTS):
        with RHashMap.open_or_create("m", key_size=8, value_size=8, max_entries=8) as m:
            inodes.add(m._identity())
            for _ in range(3):
                nameless += not os.path.exists(os.path.join(folder, "m"))

    kill(*collectors)
    shmrhash.gc(names=True)
    assert os.listdir(folder) == []
    assert len(inodes) > 1, "nobody removed a name"
    assert nameless == 0, f"{nameless} looks in {ATTACHMENTS} attachments"


# A daemon that goes on when its parents have ended: one that ends by _exit() removes no name. A
# child has another parent only when the kernel has closed all files of its own and unmapped them;
# the end of a pipe would say less.
DAEMONIZE = """
import time
for _ in range(2):
    parent = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == parent:
        time.sleep(0.001)
"""
ENDINGS = {
    "not closed": "m = RHashMap.create(NAME, **SIZES, ephemeral=True)",
    "forgotten": "RHashMap.create(NAME, **SIZES, ephemeral=True)",
    "dict": "m = SharedDict(NAME, key=str, value=int, ephemeral=True); m['a'] = 1",
    "array": "m = SharedDict(NAME, key=str, value=Array('f8'), ephemeral=True); "
    "m['a'] = [1.0] * 9000; a = m['a']",
    "section": "m = RHashMap.create(NAME, **SIZES, ephemeral=True); m[b'k' * 8] = bytes(8); "
    "s = m.locked(b'k' * 8); s.__enter__()",
    "dict section": "m = SharedDict(NAME, key=str, value=int, ephemeral=True); m['a'] = 1; "
    "s = m.locked('a'); s.__enter__()",
    "daemon": "m = RHashMap.create(NAME, **SIZES, ephemeral=True)\n"
    f"{DAEMONIZE}\nm[b'k' * 8] = bytes(8)",
    "daemon that never uses it": f"m = RHashMap.create(NAME, **SIZES, ephemeral=True)\n{DAEMONIZE}",
    "workers that end at once": "m = RHashMap.create(NAME, **SIZES, ephemeral=True)\n"
    "if os.fork() == 0:\n    m[b'k' * 8] = bytes(8); os._exit(0)\nos.wait()",
}


@pytest.fixture
def own_folder(monkeypatch, map_name):
    """A directory of segments in which no test that runs at the same time collects maps."""
    folder = stepping.segment_path(f"{map_name}-folder")
    folder.mkdir()
    monkeypatch.setenv("SHMRHASH_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", ENDINGS)
def test_ephemeral_map_leaves_no_name_after_a_normal_end(own_folder, map_name, how):
    """Life: whatever the program looks like, the last process that ends removes the name."""
    program = (
        "import os\nfrom shmrhash import Array, RHashMap, SharedDict\n"
        f"NAME = {map_name!r}\nSIZES = dict(key_size=8, value_size=8, max_entries=9)\n"
        f"{ENDINGS[how]}\n"
        "print('made' if os.path.exists(m._path if hasattr(m, '_path') else m.handle._path) "
        "else 'not made') if 'm' in globals() else print('made')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tempfile.gettempdir(),  # not where the sources are
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stdout == "made\n", done.stderr
    assert list(own_folder.iterdir()) == []


def test_last_process_that_ends_during_a_recovery_by_gc_leaves_no_name(own_folder, monkeypatch):
    """Life: gc() is attached while it recovers a dead process, so the last process that ends just
    then leaves the name to it."""

    def hold(parent):
        m = RHashMap.open_or_create("m", key_size=8, value_size=8, max_entries=8, ephemeral=True)
        m[word(1)] = word(1)
        parent.say("attached")
        parent.wait()
        m.close()

    recover = RHashMap._recover

    def recover_and_see_the_last_end(handle):
        found = recover(handle)
        last.tell()
        last.result()
        return found

    with Partner(hold) as last:
        assert last.hear() == "attached"
        with Partner(hold) as dead:
            assert dead.hear() == "attached"
        monkeypatch.setattr(RHashMap, "_recover", recover_and_see_the_last_end)
        report = shmrhash.gc()

    assert report["recovered"] == 1, report
    assert report["removed"] == ["m"], report
    assert list(own_folder.iterdir()) == []


def test_time_to_make_anonymous_dicts_is_linear_in_their_number():
    """Life: after 800 dicts, 200 more take less than eight times as long as the first 100.

    They are default ones: the addresses of a process suffice for a thousand."""
    dicts = []

    def make(count):
        began = time.process_time()
        dicts.extend(SharedDict() for _ in range(count))
        return time.process_time() - began

    try:
        first = make(100)
        make(700)
        assert make(200) < 8 * first
    finally:
        for one in dicts:
            one.close()
