"""Jobs of the workers of test_create.py; jobs.py says what a job is."""

import collections
import ctypes
import os
from pathlib import Path

import shmrhash
from shmrhash import RHashMap
from support.jobs import word

NOBODY = 65534
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18
ERROR_TIMEOUT_S = 0.005


def segment_folder():
    return Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"))


def try_to_open(gate, name, read_only):
    """Open the map; return the name of the error, or "opened"."""
    try:
        RHashMap.open(name, read_only=read_only).close()
    except shmrhash.Error as refused:
        return type(refused).__name__
    return "opened"


def try_to_open_as_nobody(gate, name, read_only):
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        RHashMap.open(name, read_only=read_only).close()
    except shmrhash.Error as refused:
        return type(refused).__name__, isinstance(refused, PermissionError), refused.errno
    return "opened"


def damaged(header, offset):
    """Yield headers whose byte at offset has its lowest, its highest, or all bits flipped."""
    byte = header[offset]
    for other in {byte ^ 1, byte ^ 0xFF, byte ^ 0x80} - {byte}:
        yield header[:offset] + bytes([other]) + header[offset + 1 :]


def open_with_damage(gate, name, header, offsets):
    """Open the map with each of these header bytes damaged; return the names of the errors."""
    found = set()
    with (segment_folder() / name).open("r+b", buffering=0) as file:
        for offset in offsets:
            for content in damaged(header, offset):
                os.pwrite(file.fileno(), content, 0)
                found.add(try_to_open(gate, name, False))
                found.add(try_to_open(gate, name, True))
        os.pwrite(file.fileno(), header, 0)
    return found


def use_with_damage(gate, name, damages, entries, progress):
    """Use the map with each of these bytes damaged; count the uses that finished, and those that
    were refused.

    damages are pairs: an offset into the file, and the number with which the byte there is xored.
    The damage is written to the file progress before each use, so that it is known if this worker
    dies.
    """
    endings = collections.Counter()
    path = segment_folder() / name
    whole = read_segment(path)
    for offset, change in damages:
        progress.write_text(f"byte {offset} xor {change:#x}")
        with path.open("r+b", buffering=0) as file:
            (byte,) = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte ^ change]), offset)
        endings[use(name, entries)] += 1
        # Memory that growth has committed stays in the file, unknown to the restored map.
        write_segment(path, whole)
    return endings


def read_segment(path):
    """Return the parts of the file that have memory: (offset, bytes) of each."""
    parts = []
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append((start, os.pread(file.fileno(), at - start, start)))
    return parts


def write_segment(path, parts):
    with path.open("r+b", buffering=0) as file:
        for offset, content in parts:
            os.pwrite(file.fileno(), content, offset)


def use(name, entries):
    """Run operations that succeed on a sound map; return "finished", or "refused" if one failed."""
    try:
        m = RHashMap.open(name, timeout=ERROR_TIMEOUT_S)
    except shmrhash.Error:
        return "refused"
    ending = "finished"
    for operate in (
        lambda: [m.lookup(word(key)) for key in range(entries)],
        lambda: m.update(word(1), word(1)),
        lambda: m.update(word(entries), word(1)),
        lambda: m.delete(word(2)),
        lambda: m.add(word(3), 1),
        lambda: m.info(),
        lambda: len(m),
        lambda: m.check(),
        lambda: m.clear(),
    ):
        try:
            operate()
        except shmrhash.Error:
            ending = "refused"
    m.close()
    return ending


def create_names(gate, name, rounds, geometry):
    """Race to create each name; return this worker's result for each."""
    outcomes = []
    for number in range(rounds):
        gate.wait()
        try:
            RHashMap.create(f"{name}-{number}", **geometry).close()
            outcomes.append("created")
        except shmrhash.SegmentExists:
            outcomes.append("SegmentExists")
    return outcomes


def count_in_names(gate, name, rounds, geometry):
    for number in range(rounds):
        gate.wait()
        with RHashMap.open_or_create(f"{name}-{number}", **geometry) as m:
            m.add(word(0), 1, default=0)


def create_and_wait(gate, name, geometry):
    """Create a map; this worker is killed during the creation or after it."""
    gate.wait()
    RHashMap.create(name, **geometry)
    gate.wait()


# ---- in a private file system ----


def in_private_tmpfs(gate, folder, size, job, *arguments):
    """Run job where folder is a tmpfs of size bytes that only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tiny", folder.encode(), b"tmpfs", 0, f"size={size}".encode()),
    )
    for step in steps:
        if step():
            return "not permitted"
    return job(gate, *arguments)


def create_without_room(gate):
    """Create and use a map in a file system with hardly any room.

    Return the name of the error or "created", its errno, the files that are left, and the message.
    """
    try:
        m = RHashMap.create("large", key_size=8, value_size=4096, max_entries=100)
    except shmrhash.Error as refused:
        left = os.listdir(segment_folder())
        return type(refused).__name__, refused.errno, left, str(refused)
    with m:
        insert_until_full(m, 0, 4096)
        m.check()
    return "created", 0, os.listdir(segment_folder()), ""


def value_of(key, value_size):
    return (word(key) * (value_size // 8 + 1))[:value_size]


def insert_until_full(m, first, value_size):
    """Insert until there is no room; return the error and the next key to insert."""
    key = first
    try:
        while True:
            m.update(word(key), value_of(key, value_size), 1)
            key += 1
    except (shmrhash.SegmentFull, shmrhash.MapFull) as refused:
        return refused, key


def fill_and_free(gate, value_size):
    """Fill the file system by insertions, use the full map, free memory, and insert again."""
    ballast = segment_folder() / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    with RHashMap.create("tiny", key_size=8, value_size=value_size, max_entries=1 << 24) as m:
        full, count = insert_until_full(m, 0, value_size)
        m.check()
        # Without free memory every operation but insertion succeeds, and so does an insertion into
        # the room that a deletion made.
        for key in range(0, count, 7):
            m.update(word(key), value_of(key, value_size), 2)
        for key in range(0, count, 5):
            m.delete(word(key))
        for key in range(0, count, 5):
            m.update(word(key), value_of(key, value_size), 1)
        with RHashMap.open("tiny") as other:
            other.check()
        ballast.unlink()
        _, count_after = insert_until_full(m, count, value_size)
        m.check()
        missing = [
            key for key in range(count_after) if m.lookup(word(key)) != value_of(key, value_size)
        ]
        m.unlink()
    return {
        "full": (type(full).__name__, full.errno, isinstance(full, MemoryError)),
        "message": str(full),
        "inserted_before": count,
        "inserted_after": count_after - count,
        "missing": missing,
    }


def fill_beside_ballast(gate):
    """Repeatedly take all free memory away, insert until refused, and give memory back."""
    ballast = segment_folder() / "ballast"
    refusals = key = 0
    with RHashMap.create("tiny", key_size=8, value_size=8, max_entries=1 << 24) as m:
        for _ in range(40):
            take_everything(ballast)
            for _ in range(6000):
                try:
                    m.update(word(key), word(key), 1)
                    key += 1
                except shmrhash.SegmentFull:
                    refusals += 1
                    break
            m.check()
            ballast.unlink()
            for _ in range(1000):
                m.update(word(key), word(key), 1)
                key += 1
            m.check()
        missing = [number for number in range(key) if m.lookup(word(number)) != word(number)]
        m.unlink()
    return {"refusals": refusals, "missing": missing}


def take_everything(path):
    """Fill the file system with one file, to the last page."""
    with path.open("wb", buffering=0) as file:
        page = bytes(4096)
        try:
            while True:
                file.write(page)
        except OSError:
            pass
