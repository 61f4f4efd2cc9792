"""Maps of bytes to bytes with objects and deadlines, as a SharedDict's are, for the kill tests."""

import contextlib
import mmap
import struct

from shmrhash import Kptr, RHashMap, Timer, _core
from support.killing import SCATTERED

SHORT, LONG = b"k3", b"a key of more than fifteen bytes"
SMALL, MIDDLE, RUN = 40, 5_000, 40_000  # in bytes: a small class, a larger one, a run of ten pages
CODECS = (3, None, None), (4, None, None)  # of a map of bytes to bytes


def value(number, size=SMALL):
    """Return bytes that would show a mixture of two values."""
    return (struct.pack("<Q", number) * (size // 8 + 1))[:size]


def create(name, **more):
    geometry = {"key_size": 16, "value_size": 24, "max_entries": 64, "_seeds": SCATTERED}
    fields = [Kptr(0), Timer(8), Kptr(16)]
    return RHashMap.create(name, fields=fields, **({"max_bytes": 1 << 20} | geometry | more))


@contextlib.contextmanager
def budget_word(handle):
    """Yield the budget's word (the first one of the segment's objects) as a list of one number,
    which is stored at the end. An equal map without objects ends where they begin."""
    sizes = handle.key_size, handle.value_size, handle.max_entries, handle.info()["depots"]
    offset = _core.segment_bytes(*sizes)
    with open(handle.info()["path"], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        word = list(struct.unpack_from("<Q", memory, offset))
        yield word
        struct.pack_into("<Q", memory, offset, *word)


def core(handle):
    return _core.DictCore(handle, *CODECS)


def five(entries):
    """Fill a map with five entries, one of which has a long key, after its memory was committed and
    given back once."""
    for number in range(5):
        entries[b"k%d" % number] = value(number)
    entries[LONG] = value(9)
    for size in (SMALL, MIDDLE, RUN):
        entries[b"gone"] = value(1, size)
        del entries[b"gone"]
