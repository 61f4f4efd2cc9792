"""What else fills the holes of a segment: core dumps, and programs that lock their memory (M1).

Reading or locking a whole mapping makes the kernel fill its holes. The tests run in a small file
system that only their child sees.
"""

import ctypes
import gc
import os
import random
import re
import resource
import signal
from pathlib import Path

import pytest
from support import creation_jobs
from support.dict_jobs import change_sizes
from support.workers import run_together

from shmrhash import RHashMap, SharedDict

LIMIT = 4 << 20
CURRENT, FUTURE, ON_FAULT = 1, 2, 4


@pytest.fixture
def in_small(tmp_path, monkeypatch):
    """A function that runs a job with the directory of segments on a tmpfs of 32 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    monkeypatch.setenv("SHMRHASH_DIR", str(folder))

    def run(job, *arguments):
        # A child inherits the mappings of closed handles that are garbage, and would fill them.
        gc.collect()
        (result,) = run_together(
            "fork", (creation_jobs.in_private_tmpfs, str(folder), 32 << 20, job, *arguments)
        )
        if result == "not permitted":
            pytest.skip("mounting a tmpfs is not permitted here")
        return result

    return run


def taken():
    """Return how many bytes of the small file system are in use."""
    status = os.statvfs(creation_jobs.segment_folder())
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def lock_memory(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(flags) != 0:
        raise OSError(ctypes.get_errno(), "mlockall")


def most_taken(d, seed, rounds):
    """Store and delete values of many sizes; return the most bytes in use during that."""
    _, most = change_sizes(d, random.Random(seed), rounds, taken, every=50)
    assert all(d[key][:8] == key.to_bytes(8, "little") for key in d)
    d.check()
    return most


# ---- core dumps ----


def flags_of_mappings(inode):
    """Return (bytes, flags) of each mapping that this process has of a file."""
    found = []
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        addresses, _, _, _, mapped, *_ = part.splitlines()[0].split()
        if int(mapped) == inode:
            low, high = (int(text, 16) for text in addresses.split("-"))
            flags = re.search(r"^VmFlags: (.*)$", part, re.MULTILINE)[1].split()
            found.append((high - low, flags))
    return found


@pytest.mark.parametrize("read_only", [False, True])
def test_segments_are_excluded_from_core_dumps(make_dict, read_only):
    """M1: the kernel is told to leave every mapping that has holes out of core dumps."""
    d = make_dict(key=str, value=bytes)
    inode = (creation_jobs.segment_folder() / d.name).stat().st_ino

    with SharedDict.open(d.name, value=bytes, read_only=read_only):
        found = [flags for size, flags in flags_of_mappings(inode) if size > 4096]

    # Handles with the same access share a mapping; a read-only handle's also has a writable part.
    assert len(found) == (3 if read_only else 1)
    assert all("dd" in flags for flags in found)


def dump_core(gate, folder):
    """Return the memory in use before and after a core dump, and whether the core was written."""
    with RHashMap.create("m", key_size=8, value_size=1000, max_entries=1_000_000) as m:
        m.update(bytes(8), bytes(1000))
        m.unlink()
        before = taken()
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            Path("/proc/self/coredump_filter").write_text("0xff")
            resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGABRT)
        status = os.waitpid(pid, 0)[1]
        after = taken()
        m.update(b"1" * 8, bytes(1000))
        m.check()
    return before, after, os.WCOREDUMP(status)


def test_a_core_dump_takes_no_memory_of_the_tmpfs(in_small, tmp_path):
    """M1: a core dump fills no holes of a map without a name, which the kernel treats as anonymous
    memory."""
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("core dumps go elsewhere here")

    before, after, dumped = in_small(dump_core, str(tmp_path))

    if not dumped:
        pytest.skip("no core dump was written")
    assert list(tmp_path.glob("core*"))
    assert before == after


# ---- locked memory ----


def use_locked(gate, flags, when, seed):
    """Return how much memory a dict takes when the program locks its memory before it creates the
    dict, before it opens the dict, or later."""
    if when == "first":
        lock_memory(flags)
    made = SharedDict.create("d", key=int, value=bytes, max_bytes=LIMIT, max_entries=1000)
    empty = taken()
    if when == "between":
        made.close()
        del made  # without a GIL, the mapping lives as long as the object
        lock_memory(flags)
    with SharedDict.open("d", key=int, value=bytes) as d:
        if when == "last":
            lock_memory(flags)
        opened = taken()
        most = most_taken(d, seed, 2000)
        committed = d.info()["objects"]["bytes_committed"]
        d.clear()
        d.check()
        d.unlink()
        left = taken()
    return {
        "empty": empty,
        "opened": opened - empty,
        "most": most - empty,
        "committed": committed,
        "left": left - empty,
    }


@pytest.mark.parametrize(
    ("flags", "when"),
    [
        (CURRENT | FUTURE, "first"),
        (CURRENT | FUTURE, "between"),
        (FUTURE, "first"),
        (CURRENT | FUTURE | ON_FAULT, "first"),
        (CURRENT | ON_FAULT, "last"),
        (CURRENT | FUTURE | ON_FAULT, "last"),
    ],
)
def test_locked_memory_fills_no_holes_and_is_released(in_small, seed, flags, when):
    """M1: max_bytes is a hard limit there, too. (MCL_CURRENT with a map open fills it: README.)"""
    found = in_small(use_locked, flags, when, seed)

    assert found["empty"] < 1 << 20
    assert found["opened"] < 1 << 20
    assert found["most"] < LIMIT + (1 << 20)
    assert found["committed"] <= LIMIT
    assert found["left"] < 1 << 20


def use_locked_without_file(gate, seed):
    """Lock the memory of a process that has no descriptor and no name to release memory with."""
    d = SharedDict.create("d", key=int, value=bytes, max_bytes=LIMIT, max_entries=1000)
    empty = taken()
    d.unlink()
    for entry in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{entry}").startswith(os.environ["SHMRHASH_DIR"]):
            os.close(int(entry))
    lock_memory(CURRENT | ON_FAULT)
    return most_taken(d, seed, 2000) - empty


def test_locked_memory_without_a_descriptor_stays_within_max_bytes(in_small, seed):
    """M1: memory that a process cannot release stays charged to max_bytes, so the dict takes no
    more than that."""
    most = in_small(use_locked_without_file, seed)

    assert LIMIT < most + (1 << 20) < LIMIT + (2 << 20)
