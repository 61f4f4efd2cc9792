"""The command doctor tries each feature that the library needs, in the file system that is in
use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commandline import FOLDER, run


def test_doctor_finds_this_machine_suitable(own_directory):
    """doctor finds no fault with this machine, where the tests run, and its trial leaves no file
    behind."""
    found = run("-j", "doctor").json

    marks = {finding["what"]: finding["mark"] for finding in found}
    assert "bad" not in marks.values()
    assert marks["trial"] == marks["kernel"] == marks["directory"] == "ok"
    assert all(finding["change"] for finding in found if finding["mark"] != "ok")
    assert os.listdir(own_directory) == []


@pytest.mark.parametrize(
    ("limit", "what", "change"),
    [("-v 4000000", "address space", "ulimit -v"), ("-f 100", "file size", "ulimit -f")],
)
def test_doctor_reports_limits_and_their_remedies(own_directory, limit, what, change):
    """If a limit is too low, doctor exits with status 1 and names the command that changes the
    limit."""
    words = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", sys.executable, "-m", "shmrhash"]

    result = run("doctor", status=1, command=words)

    line = next(line for line in result.lines if what in line)
    assert line.startswith("bad ")
    assert change in result.out


def test_doctor_of_a_directory_that_is_no_tmpfs(tmp_path):
    if "tmpfs" in subprocess.check_output(["df", "--output=fstype", tmp_path], text=True):
        pytest.skip("the tests' own files are on a tmpfs")
    found = run("-j", "--dir", tmp_path, "doctor", status=1)
    where = next(finding for finding in found.json if finding["what"] == "directory")
    assert where["mark"] == "bad"
    assert "SHMRHASH_DIR" in where["change"]
    assert "mount -t tmpfs" in run("--dir", tmp_path / "none", "doctor", status=1).out


TESTS = Path(__file__).resolve().parents[1]  # the folder with the package `support`


def doctor_refused(call, asked, status):
    """Return what doctor finds where this system call is refused."""
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support.refusing import refuse; "
        f"refuse({call!r}, {asked}); import shmrhash.cli; sys.argv[0] = 'shmrhash'; "
        "sys.exit(shmrhash.cli.main())"
    )
    words = [sys.executable, "-c", program]
    return run("-j", "doctor", status=status, command=words).json


@pytest.mark.parametrize(
    ("call", "asked", "status", "mark", "name"),
    [
        ("madvise", 23, 0, "note", "MADV_POPULATE_WRITE"),
        ("madvise", 9, 0, "note", "MADV_REMOVE"),
        ("madvise", 16, 0, "note", "MADV_DONTDUMP"),
        ("madvise", 10, 1, "bad", "MADV_DONTFORK"),
        ("madvise", 18, 1, "bad", "MADV_WIPEONFORK"),
        ("fallocate", 3, 0, "note", "PUNCH_HOLE"),
        ("fcntl", 37, 1, "bad", "F_OFD_SETLK"),
    ],
)
def test_doctor_tries_each_feature(own_directory, call, asked, status, mark, name):
    """doctor tries each feature, whatever the kernel's version: it names a refused call, and does
    not ask the user to report a fault."""
    found = doctor_refused(call, asked, status)

    (finding,) = (one for one in found if one["what"] == "system call")
    assert finding["mark"] == mark
    assert name in finding["found"]
    assert "sandbox" in finding["change"]
    assert "report" not in str(found)


def in_mount(options, *words, before=":"):
    """Return what doctor finds in a file system that is mounted for it."""
    shell = f"mount --make-rprivate / && mount -t tmpfs -o {options} tmpfs /mnt && {before}"
    command = ["unshare", "-m", "sh", "-c", f'{shell} && exec "$@"', "sh"]
    command += [sys.executable, "-m", "shmrhash", "-j", "--dir", "/mnt", "doctor"]
    # `-m` puts the working directory on sys.path, so it must not be that of the sources.
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if "permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("mounting is not permitted here")
    return {finding["what"]: finding for finding in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("huge", "mark", "change"),
    [("never", "note", "remount,huge=advise"), ("advise", "ok", ""), ("always", "note", "advise")],
)
def test_doctor_reads_the_huge_page_option_of_the_tmpfs_in_use(huge, mark, change):
    """doctor reads the huge page option of the mount in use, not the kernel's setting for memory
    without a mount."""
    found = in_mount(f"size=64m,huge={huge}")["huge pages"]

    assert (mark, True) == (found["mark"], change in found["change"])
    assert found["found"].startswith(huge)


def test_doctor_gives_right_advice_for_a_read_only_directory():
    found = in_mount("size=1m", before="mount -o remount,ro /mnt")

    assert "read-only" in found["permission"]["found"]
    assert "chmod" not in found["permission"]["change"]
    assert "report" not in str(found)


def test_doctor_never_asks_to_report_a_full_disk():
    """On a full disk doctor says that room is missing, also if its map can be made and only a store
    finds no room; it does not ask the user to report a fault."""
    for room in (0, 40, 80, 120, 160, 200, 240):
        fill = f"head -c {(400 - room) << 10} /dev/zero > /mnt/ballast"
        found = in_mount("size=400k", before=fill)

        assert "report" not in str(found)
        trial = found["trial"]
        assert trial["mark"] == "ok" or "full" in trial["found"] or "space" in trial["found"]


@pytest.mark.parametrize(
    ("limit", "used", "mark", "change"),
    [
        (64 << 20, 1 << 20, "note", "max_bytes="),
        (64 << 20, 63 << 20, "bad", "MemoryMax="),
        (1 << 40, 1 << 20, "ok", ""),
    ],
)
def test_doctor_compares_the_memory_limit_with_the_room_for_maps(limit, used, mark, change):
    """doctor warns if the maps may grow beyond the memory limit of the control group, because a
    process that fills them so far is killed."""
    folders = "/sys/fs/cgroup /sys/fs/cgroup/memory"
    group = (
        "mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory &&"
        f" for at in {folders}; do echo {limit} | tee $at/memory.max > $at/memory.limit_in_bytes;"
        f" echo {used} | tee $at/memory.current > $at/memory.usage_in_bytes; done"
    )

    found = in_mount("size=128m", before=group)["memory group"]

    assert (mark, True) == (found["mark"], change in found["change"])
    assert "limit 64 MiB" in found["found"] or limit > 64 << 20
