"""A map's file, to be damaged word by word; and the ending of a child that uses the map."""

import os
import signal
import struct

from support.children import Child
from support.hostile.images import image_of

TABLE, REGIONS = 256, 384  # offsets in the header
PROCESSES, CONTEXTS, _, _, BUCKETS = range(5)
USABLE, ALLOCATED = 8, 16
UPD = 3 << 16
LINK_BASE = 0xF0000000


class Segment:
    """A map's file, whose words can be read and written."""

    def __init__(self, shared_map):
        self.map, self.path = shared_map, shared_map._path

    def get(self, offset, code="<Q"):
        with open(self.path, "rb") as file:
            return struct.unpack(code, os.pread(file.fileno(), struct.calcsize(code), offset))[0]

    def set(self, offset, number, code="<Q"):
        with open(self.path, "r+b") as file:
            os.pwrite(file.fileno(), struct.pack(code, number), offset)

    def region(self, which, field):
        return REGIONS + 64 * which + field

    def whole(self):
        """Return the (offset, bytes) of each part of the file that has memory."""
        return image_of("", self.map).parts

    def pages(self):
        for start, content in self.whole():
            for at in range(0, len(content), 4096):
                yield start + at, content[at : at + 4096]

    def buckets(self):
        """Return the offsets of the buckets, of which the first four always have a level."""
        for start, content in self.pages():
            levels = [word >> 16 & 0x3F for (word,) in struct.iter_unpack("<Q56x", content[:256])]
            if start > 1 << 16 and all(1 <= level < 32 for level in levels):
                return range(start, start + 64 * (self.get(TABLE) >> 16), 64)
        raise AssertionError("no buckets found")


def ending_of(function):
    """Return how a child that calls the function ends: "done", an exception's name, or a
    signal's."""

    def act():
        signal.alarm(20)
        try:
            function()
        except BaseException as error:
            return type(error).__name__
        return "done"

    child = Child(act)
    return signal.Signals(-child.exitcode).name if child.join() < 0 else child.result()
