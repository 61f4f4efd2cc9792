"""System calls that a kernel or a sandbox refuses: the library replaces them by others, or raises
an error that names them (M1).

Each test refuses one call in a child; the parent also checks the map that the child leaves.
"""

import contextlib
import errno
import os
import random
import re
import resource
import time

import pytest
from support import creation_jobs, refusing
from support.children import Child, kill
from support.dict_jobs import SIZES, body, change_sizes
from support.refusing import (
    F_OFD_GETLK,
    F_OFD_SETLK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WIPEONFORK,
    PUNCH_HOLE,
    refuse,
)
from support.workers import run_together

import shmrhash
from shmrhash import RHashMap, SharedDict

LIMIT = 4 << 20

NO_SANITIZER = pytest.mark.skipif(
    os.environ.get("SHMRHASH_SANITIZER") == "address",
    reason="AddressSanitizer has reserved 16 TiB of addresses: any limit is passed already",
)


@pytest.fixture
def in_child():
    """A function that runs a job in a child, and returns the job's result."""

    def run(job, *arguments):
        (result,) = run_together("fork", (job, *arguments))
        return result

    return run


def store_for_ever(d):
    while True:
        for number in range(400):
            d[number] = body(number, SIZES[number % 5])


def use_all(gate, name, refused):
    """Make and use a map and a dict, and kill a child inside an operation; return what is wrong."""
    refuse(*refused)
    left = []
    with (
        RHashMap.create(name, key_size=8, value_size=8, max_entries=100_000) as m,
        SharedDict.create(name + "-dict", key=int, value=bytes, max_bytes=64 << 20) as d,
    ):
        for number in range(20_000):
            m.update(number.to_bytes(8, "little"), number.to_bytes(8, "little"))
        for number in range(400):
            d[number] = body(number, SIZES[number % 5])
        with Child(store_for_ever, d):
            time.sleep(0.05)
        left.append(sum(m[n.to_bytes(8, "little")] != n.to_bytes(8, "little") for n in range(9000)))
        left.append(sum(d[n][:8] != n.to_bytes(8, "little") for n in range(400)))
        before = taken(name)
        m.clear()
        d.clear()
        m.check()
        d.check()
        left.append(taken(name) < before // 2)
    return left


def taken(name):
    """Return how many bytes of memory a map's file has."""
    return (creation_jobs.segment_folder() / name).stat().st_blocks * 512


@pytest.mark.parametrize(
    "number",
    [
        errno.EPERM,
        pytest.param(errno.EINVAL, marks=pytest.mark.thorough),
        pytest.param(errno.ENOSYS, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize(
    ("call", "asked", "gives_back"),
    [
        ("madvise", MADV_POPULATE_WRITE, True),
        ("madvise", MADV_REMOVE, True),
        ("madvise", MADV_DONTDUMP, True),
        ("munlock", None, True),
        ("fallocate", PUNCH_HOLE, True),
        ("membarrier", None, False),
    ],
)
def test_refused_calls_with_an_alternative_are_replaced(
    in_child, map_name, call, asked, gives_back, number
):
    """M1, C1: everything works without the refused call; only without membarrier() may memory stay
    in use that was to be given back."""
    try:
        wrong, wrong_objects, less = in_child(use_all, map_name, (call, asked, number))

        assert (wrong, wrong_objects) == (0, 0)
        assert less or not gives_back
        for name in (map_name, map_name + "-dict"):
            with RHashMap.open(name) as m:
                m.check()
    finally:
        shmrhash.unlink(map_name)
        shmrhash.unlink(map_name + "-dict")


def create_refused(gate, name, refused):
    refuse(*refused)
    try:
        RHashMap.create(name, key_size=8, value_size=8, max_entries=100)
    except shmrhash.Error as error:
        return type(error).__name__, str(error), isinstance(error, OSError)
    return "created"


@pytest.mark.parametrize(
    ("call", "asked", "named"),
    [
        ("madvise", MADV_WIPEONFORK, r"MADV_WIPEONFORK\) \(Linux 4.14"),
        ("madvise", MADV_DONTFORK, r"MADV_DONTFORK"),
        ("fcntl", F_OFD_SETLK, r"F_OFD_SETLK.*Linux 3.15"),
        ("fcntl", F_OFD_GETLK, r"F_OFD_GETLK.*Linux 3.15"),
        ("fallocate", None, r"fallocate\(2\)"),
    ],
)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_refused_calls_without_an_alternative_are_named_in_the_error(
    in_child, map_name, call, asked, named, number
):
    """M1: no map is made; the error names the refused call and the version of Linux that introduced
    it."""
    kind, message, is_os_error = in_child(create_refused, map_name, (call, asked, number))

    assert (kind, is_os_error) == ("Unsupported", True)
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)
    assert repr(map_name) in message
    assert re.search(named, message)


def insert_until_refused(gate, m):
    refuse("madvise", MADV_POPULATE_WRITE)
    refuse("fallocate")
    for number in range(1 << 20):
        try:
            m.update(number.to_bytes(8, "little"), number.to_bytes(8, "little"))
        except shmrhash.Error as error:
            return number, type(error).__name__, str(error)
    return "memory without end"


def test_memory_that_cannot_be_requested_is_not_reported_as_a_full_disk(in_child, make_map):
    """M1: if both calls that commit memory are refused, the error names both; stored entries
    stay."""
    m = make_map(max_entries=1 << 20)

    count, kind, message = in_child(insert_until_refused, m)

    assert kind == "Unsupported"
    assert "MADV_POPULATE_WRITE" in message
    assert "fallocate" in message
    assert "Linux 5.14" in message
    assert count == len(m)


def fill_small(gate):
    """Fill a map on a tmpfs without MADV_POPULATE_WRITE, delete half of the entries, and fill it
    again; return how many entries were inserted each time."""
    refuse("madvise", MADV_POPULATE_WRITE)
    with RHashMap.create("small", key_size=8, value_size=1000, max_entries=1 << 20) as m:
        counts = []
        for first in (0, 1 << 30):
            number = first
            with contextlib.suppress(shmrhash.SegmentFull):
                while True:
                    m.update(number.to_bytes(8, "little"), bytes(1000))
                    number += 1
            counts.append(number - first)
            m.check()
            for key in range(counts[0] // 2):
                if first == 0:
                    m.delete(key.to_bytes(8, "little"))
        m.unlink()
    return counts


def test_a_full_file_system_without_populate_raises_and_causes_no_signal(
    in_child, tmp_path, monkeypatch
):
    """M1: fallocate() commits memory instead of MADV_POPULATE_WRITE: a full file system raises
    SegmentFull, and freed memory is used again."""
    monkeypatch.setenv("SHMRHASH_DIR", str(tmp_path))
    counts = in_child(creation_jobs.in_private_tmpfs, str(tmp_path), 4 << 20, fill_small)
    if counts == "not permitted":
        pytest.skip("mounting a tmpfs is not permitted here")

    assert counts[0] > 1500
    assert counts[0] // 2 - 200 < counts[1] <= counts[0]


def keep_the_memory(gate, d, seed, rounds):
    refuse("madvise", MADV_REMOVE)
    refuse("fallocate", PUNCH_HOLE)
    result = change_sizes(d, random.Random(seed), rounds, lambda: taken(d.name), every=100)
    d.check()
    return result


def test_max_bytes_holds_where_memory_cannot_be_released(in_child, make_dict, seed):
    """M1: a block whose memory could not be released is not counted as a hole, but stays charged,
    and check() agrees."""
    d = make_dict(key=int, value=bytes, max_bytes=LIMIT, max_entries=1000)
    before = taken(d.name)

    _, most = in_child(keep_the_memory, d, seed, 3000)

    assert most - before < LIMIT + (1 << 20)  # up to 1 MiB is not of objects
    assert d.info()["objects"]["bytes_committed"] <= LIMIT
    assert all(d[key][:8] == key.to_bytes(8, "little") for key in d)


def keep_the_memory_for_ever(d, seed):
    refuse("madvise", MADV_REMOVE)
    refuse("fallocate", PUNCH_HOLE)
    rng = random.Random(seed)
    while True:
        change_sizes(d, rng, 1000, lambda: taken(d.name), every=100)


def recover_refused(gate, d):
    refuse("madvise", MADV_REMOVE)
    refuse("fallocate", PUNCH_HOLE)
    d.check()


@pytest.mark.parametrize("recoverer_is_refused", [False, True])
@pytest.mark.thorough
def test_a_killed_process_that_could_not_release_memory_leaves_the_budget_right(
    in_child, make_dict, seed, recoverer_is_refused
):
    """C1, M1: a process that cannot release memory is killed at a random moment. The process that
    recovers its operation can release memory, or cannot."""
    d = make_dict(key=int, value=bytes, max_bytes=LIMIT, max_entries=1000)
    rng = random.Random(seed)
    for turn in range(40):
        child = Child(keep_the_memory_for_ever, d, seed + turn)
        time.sleep(rng.uniform(0.01, 0.05))
        kill(child)
        if recoverer_is_refused:
            in_child(recover_refused, d)

        d.check()
        assert d.info()["objects"]["bytes_committed"] <= LIMIT
        assert all(d[key][:8] == key.to_bytes(8, "little") for key in d)


def freeze_refused(gate, name, refused):
    refuse(*refused)
    with SharedDict.open(name, timeout=0.2) as d:
        with pytest.raises(shmrhash.Unsupported, match="membarrier") as caught:
            d.freeze()
        d[2] = 2
        return str(caught.value)


def test_freeze_without_membarrier_does_not_wait_for_living_processes(in_child, make_dict):
    """freeze() raises an error that names membarrier, and does not blame a lock's owner; the dict
    is not frozen."""
    d = make_dict(key=int, value=int)

    message = in_child(freeze_refused, d.name, ("membarrier", None, errno.EPERM))

    assert "owner" not in message
    d[3] = 3
    assert dict(d) == {2: 2, 3: 3}


def make_limited(gate, name, limit, size, how):
    """Create or open a dict in a process with a limit that forbids it; return the error."""
    resource.setrlimit(getattr(resource, limit), (size, size))
    try:
        if how == "open":
            SharedDict.open(name)
        else:
            SharedDict.create(name, key=str, value=bytes)
    except shmrhash.Error as error:
        is_memory_error = isinstance(error, MemoryError)
        return type(error).__name__, str(error), is_memory_error, error.errno
    return "made"


@pytest.mark.parametrize(
    ("limit", "size", "option", "number"),
    [
        pytest.param("RLIMIT_AS", 4 << 30, "ulimit -v", errno.ENOMEM, marks=NO_SANITIZER),
        ("RLIMIT_FSIZE", 1 << 30, "ulimit -f", errno.EFBIG),
    ],
)
def test_the_error_at_a_limit_of_the_process_names_the_limit(
    in_child, map_name, limit, size, option, number
):
    """M1: the error is not SegmentFull, since the file system has room; it names the limit and what
    to do."""
    kind, message, is_memory_error, found = in_child(make_limited, map_name, limit, size, "create")

    assert (kind, is_memory_error, found) == ("LimitReached", True, number)
    for part in (repr(map_name), option, "max_bytes"):
        assert part in message
    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(map_name)


@NO_SANITIZER
def test_the_error_for_opening_at_the_limit_of_addresses_names_it(in_child, map_name):
    """M1: opening a map that does not fit into the process's address space raises LimitReached;
    other processes can still open the map."""
    # The handle is dropped, because the child would use the mapping that it inherits.
    SharedDict.create(map_name, key=str, value=bytes).close()

    kind, message, _, _ = in_child(make_limited, map_name, "RLIMIT_AS", 4 << 30, "open")

    assert kind == "LimitReached"
    assert "address space" in message
    with SharedDict.open(map_name) as again:
        again["k"] = b"v"
        again.check()
        again.unlink()


def test_a_dict_without_max_bytes_reserves_at_most_64_gib(make_dict):
    """A dict without max_bytes reserves at most 64 GiB, whatever the file system's size; with
    max_bytes it can reserve more."""
    default = make_dict(key=str, value=bytes)
    larger = make_dict(key=str, value=bytes, max_bytes=8 << 30)

    def reserved(d):
        return (creation_jobs.segment_folder() / d.name).stat().st_size

    assert reserved(default) <= 64 << 30
    assert reserved(larger) > 64 << 30


def test_the_filter_of_these_tests_refuses_the_named_call(in_child):
    """The tests' filter refuses fallocate() that punches a hole, and allows fallocate() that
    allocates."""

    def ask(gate):
        refusing.refuse("fallocate", PUNCH_HOLE, errno.ENOSYS)
        fd = os.memfd_create("shmrhash-test")
        os.posix_fallocate(fd, 0, 4096)
        libc = refusing.ctypes.CDLL(None, use_errno=True)
        libc.fallocate(fd, PUNCH_HOLE, refusing.ctypes.c_long(0), refusing.ctypes.c_long(4096))
        return refusing.ctypes.get_errno()

    assert in_child(ask) == errno.ENOSYS
