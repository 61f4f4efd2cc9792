"""doctor: whether this machine is fit for maps, and what to change if it is not.

Each finding has a mark: ok; note, for what works but could be better; bad, for what will fail.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import click

import shmrhash
from shmrhash import RHashMap, _inspect
from shmrhash.cli.errors import STATUS_NO, message_of
from shmrhash.cli.screen import Cell, make_console, on_terminal, size_text
from shmrhash.cli.session import Command, Session, pass_session
from shmrhash.cli.system import (
    group_memory,
    in_container,
    mount_of,
    refused_features,
    text_of,
)

OK = "ok"
NOTE = "note"
BAD = "bad"

SIZE_SMALL = 256 << 20  # containers get 64 MB unless told otherwise
ADDRESS_SPACE_MIN = 64 << 30  # creating a map reserves the addresses for all max_entries
MEMORY_PART_MAX = 0.9
SYSTEM_USER_MAX = 999  # logind does not remove the segments of users up to this id


@dataclass(frozen=True)
class Finding:
    """The result of one check. change: the command that improves it."""

    mark: str
    what: str
    found: str
    change: str = ""


def kernel() -> Iterator[Finding]:
    """The kernel's version, the features that it refuses, and the machine's word size."""
    found = f"Linux {platform.release()}"
    try:
        refused = list(refused_features(_inspect.directory()))
    except OSError as error:  # directory() reports the reason
        yield Finding(OK, "kernel", f"{found}; its features could not be tried: {error.strerror}")
        refused = []
    else:
        yield Finding(OK, "kernel", found)
    for feature, reason in refused:
        change = f"use {feature.kernel} or later, or let the sandbox permit {feature.call}"
        mark = BAD if feature.needed else NOTE
        yield Finding(mark, "system call", f"{feature.call}: {reason}: {feature.without}", change)
    bits = struct.calcsize("P") * 8
    if bits != 64:
        yield Finding(BAD, "addresses", f"{bits} bits", "use a 64-bit Python")


def directory() -> Iterator[Finding]:
    """The directory of segments: its file system, size, free room and permissions."""
    folder = _inspect.directory()
    try:
        status = os.statvfs(folder)
    except OSError as error:
        change = f"sudo mkdir -p {folder} && sudo mount -t tmpfs -o mode=1777 tmpfs {folder}"
        yield Finding(BAD, "directory", f"{folder}: {error.strerror}", change)
        return
    kind, _ = mount_of(folder)
    mount = f"sudo mount -t tmpfs -o mode=1777 tmpfs {folder}"
    if kind == "tmpfs":
        yield Finding(OK, "directory", f"{folder} is a tmpfs")
    else:
        found = f"{folder} is on {kind}: maps would be written to a disk, or could not be made"
        yield Finding(BAD, "directory", found, f"unset SHMRHASH_DIR, or {mount}")
    if not os.access(folder, os.W_OK | os.X_OK):
        found = f"user {os.geteuid()} may not write to {folder}"
        change = f"sudo chmod 1777 {folder}"
        if status.f_flag & os.ST_RDONLY:
            found = f"{folder} is mounted read-only"
            change = f"sudo mount -o remount,rw {folder}, or set SHMRHASH_DIR to another tmpfs"
            if in_container():
                change = f"docker run --tmpfs {folder}:rw,mode=1777,size=1g ..."
        yield Finding(BAD, "permission", found, change)
    size, room = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    if not size:
        yield Finding(OK, "size", "unlimited")
        return
    found = f"{size_text(size)}, {size_text(room)} free"
    change = f"sudo mount -o remount,size=50% {folder}"
    if in_container():
        change = "docker run --shm-size=1g ... (Kubernetes: an emptyDir with medium: Memory)"
    if room < size // 20:
        yield Finding(
            BAD, "size", found, f"remove maps that are not needed (shmrhash ls), or {change}"
        )
    else:
        small = size < SIZE_SMALL
        yield Finding(NOTE if small else OK, "size", found, change if small else "")


def memory() -> Iterator[Finding]:
    """The memory of the machine, and of the control group."""
    lines = (line.split() for line in text_of("/proc/meminfo").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    if "MemTotal" in sizes:
        found = f"{size_text(sizes['MemTotal'])}, {size_text(sizes['MemAvailable'])} available"
        yield Finding(OK, "memory", found)
    limit, used = group_memory()
    if limit is None:
        return
    found = f"limit {size_text(limit)}, {size_text(used)} used, maps included"
    change = "docker run --memory=..., or systemctl set-property UNIT MemoryMax=..."
    if used > limit * MEMORY_PART_MAX:
        yield Finding(
            BAD, "memory group", f"{found}: the kernel may kill a process that needs more", change
        )
    elif limit < _directory_bytes():
        found += "; maps may grow beyond it, and a process that reaches the limit is killed"
        change = f"create maps with max_bytes= well below {size_text(limit)}"
        yield Finding(NOTE, "memory group", found, change)
    else:
        yield Finding(OK, "memory group", found)


def _directory_bytes() -> int:
    """The size of the directory's file system; 0 if it is unknown."""
    try:
        status = os.statvfs(_inspect.directory())
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def limits() -> Iterator[Finding]:
    """Limits of this process, and policies of the kernel, that forbid large sparse maps."""
    for number, what, flag, least in (
        (resource.RLIMIT_AS, "address space", "v", ADDRESS_SPACE_MIN),
        (resource.RLIMIT_FSIZE, "file size", "f", ADDRESS_SPACE_MIN),
    ):
        soft, hard = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and soft < least:
            change = f"ulimit -{flag} unlimited"
            if hard != resource.RLIM_INFINITY and hard < least:
                change += "   (root must raise the hard limit in /etc/security/limits.conf)"
            yield Finding(BAD, what, f"limited to {size_text(soft)}: creating maps fails", change)
    if text_of("/proc/sys/vm/overcommit_memory").strip() == "2":
        found = "vm.overcommit_memory is 2: addresses that a map reserves count as used memory"
        yield Finding(NOTE, "overcommit", found, "sudo sysctl vm.overcommit_memory=0")
    found = "mlockall() fills the holes of open maps, unless its flags include MCL_ONFAULT"
    yield Finding(OK, "locked memory", found)
    maps_max = int(text_of("/proc/sys/vm/max_map_count") or 1 << 30)
    if maps_max < 65_530:
        found = f"vm.max_map_count is {maps_max}: each open map takes three mappings"
        yield Finding(NOTE, "mappings", found, "sudo sysctl vm.max_map_count=65530")


def huge_pages() -> Iterator[Finding]:
    """Whether large maps may use huge pages."""
    folder = _inspect.directory()
    kind, options = mount_of(folder)
    path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    forced = text_of(path).partition("[")[2].partition("]")[0]
    if kind != "tmpfs" or not forced:
        return
    # Other values of shmem_enabled apply only to memory that has no mount.
    chosen = forced if forced in ("deny", "force") else "never"
    if chosen == "never":
        words = (word.partition("=") for word in options.split(","))
        chosen = next((value for name, _, value in words if name == "huge"), chosen)
    if chosen == "advise":
        yield Finding(OK, "huge pages", "advise: large maps use them")
    elif chosen in ("always", "within_size", "force"):
        found = f"{chosen}: a small map takes 2 MiB for each of its parts"
        change = f"sudo mount -o remount,huge=advise {folder}"
        if chosen == "force":
            change = f"echo advise | sudo tee {path}"
        yield Finding(NOTE, "huge pages", found, change)
    else:
        found = f"{chosen}: with huge pages, random reads of maps over 100 MB are about 8 % faster"
        change = f"sudo mount -o remount,huge=advise {folder}"
        if chosen == "deny":
            change = f"echo never | sudo tee {path}; {change}"
        yield Finding(NOTE, "huge pages", found, change)


def session_end() -> Iterator[Finding]:
    """Whether systemd removes this user's maps when the last login session ends."""
    user = os.geteuid()
    if user <= SYSTEM_USER_MAX or not os.path.isdir("/run/systemd/users"):
        return
    if os.path.exists(f"/var/lib/systemd/linger/{_inspect.user_name(user)}"):
        return
    configured = text_of("/etc/systemd/logind.conf")
    if not any(line.strip() == "RemoveIPC=no" for line in configured.splitlines()):
        found = "systemd removes this user's maps when the last session ends (RemoveIPC)"
        yield Finding(
            NOTE, "logging out", found, f"sudo loginctl enable-linger {_inspect.user_name(user)}"
        )


def trial() -> Iterator[Finding]:
    """Make a map, kill a process that writes to it, recover it, and check it."""
    name = f"shmrhash-doctor-{os.getpid()}"
    try:
        with RHashMap.create(name, key_size=8, value_size=8, max_entries=10_000) as shared_map:
            try:
                yield from _try(shared_map)
            finally:
                with contextlib.suppress(shmrhash.SegmentMissing):
                    shared_map.unlink()
    except (shmrhash.Error, OSError) as error:
        yield Finding(BAD, "trial", message_of(error))


def _try(shared_map: RHashMap) -> Iterator[Finding]:
    ready, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for number in range(1 << 40):
                shared_map.update(
                    (number % 100).to_bytes(8, "little"), number.to_bytes(8, "little")
                )
                if number == 1000:
                    os.write(theirs, b"r")
        except (shmrhash.Error, OSError) as error:
            os.write(theirs, b"e" + message_of(error).encode(errors="replace")[:4000])
        finally:
            os._exit(1)
    os.close(theirs)
    said = os.read(ready, 4001)
    os.close(ready)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not said.startswith(b"r"):  # a limit was reached, or the file system is full
        reason = said[1:].decode(errors="replace") or "the process that writes ended too early"
        yield Finding(
            BAD, "trial", reason, "free what the message names, or raise the limit; then try again"
        )
        return
    shared_map.check()
    info = shared_map.info()
    if info["entries"] == 100 and info["recoveries"] == 1:
        yield Finding(OK, "trial", "made a map, killed a writer, recovered it, lost nothing")
    else:
        found = f"{info['entries']} entries, {info['recoveries']} recoveries; expected 100 and 1"
        yield Finding(BAD, "trial", found, "please report this")
    yield Finding(OK, "liveness", info["liveness"])
    if info["membarrier"]:
        yield Finding(OK, "membarrier", "permitted")
    else:
        found = "refused: memory of emptied maps is not given back"
        change = "allow membarrier(2) in the container's seccomp profile"
        yield Finding(NOTE, "membarrier", found, change)


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    kernel,
    directory,
    memory,
    limits,
    huge_pages,
    session_end,
    trial,
]


@click.command(
    "doctor", cls=Command, short_help="Is this machine fit for maps? If not, what to change."
)
@pass_session
def doctor_command(session: Session) -> int:
    """Check the kernel, the shared-memory directory, limits and containers, and try a map.

    Below each finding that could be better is the command that changes it. The exit status is 1 if
    maps would fail on this machine.

    \b
    Examples:
      shmrhash doctor
      shmrhash -j doctor | jq '.[] | select(.mark == "bad")'
    """
    findings = [finding for check in CHECKS for finding in check()]
    python = f"{platform.python_version()}, shmrhash {shmrhash.__version__}"
    findings.append(Finding(OK, "python", python))
    status = STATUS_NO if any(finding.mark == BAD for finding in findings) else 0
    if session.json:
        session.emit([asdict(finding) for finding in findings])
        return status
    console = make_console() if on_terminal() else None
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = Cell(finding.mark.ljust(4), finding.mark)
        line = f"  {finding.what.ljust(width)}  {finding.found}"
        if console is None:
            sys.stdout.write(f"{mark}{line}\n")
        else:
            from rich.text import Text

            console.print(Text(mark, style=mark.style).append(line, style=""))
        if finding.change:
            sys.stdout.write(f"{'':{width + 6}}  -> {finding.change}\n")
    return status
