"""A segment's memory as ctypes structures: a second definition of the layout.

An assignment to a field changes the segment, so that a test can build states, or damage them.
"""

import ctypes
import mmap
from ctypes import c_char, c_uint32, c_uint64

LINK_BASE = 0xF0000000
SLOTS = 7
LINK_SLOT = 6

FREE, ALLOC, LIVE, UPD, ULOCK, LOCKED, DEAD = range(7)
HOLE, READY, RELEASING = range(3)
REGIONS = ["processes", "contexts", "element_words", "line_words", "buckets", "ring"]


class Region(ctypes.Structure):
    _fields_ = [
        ("lock", c_uint64),
        ("usable", c_uint64),
        ("allocated", c_uint64),
        ("_reserved", c_uint64 * 5),
    ]


class Pool(ctypes.Structure):
    _fields_ = [
        ("frontier", c_uint64),
        ("hint", c_uint64),
        ("kept_block", c_uint64),
        ("ready_count", c_uint64),
        ("releases", c_uint64),
        ("_reserved", c_uint64 * 3),
    ]


class Statistics(ctypes.Structure):
    _fields_ = [
        ("grows", c_uint64),
        ("shrinks", c_uint64),
        ("growth_stopped", c_uint64),
        ("recoveries", c_uint64),
        ("owners_found_dead", c_uint64),
        ("operations_finished", c_uint64),
        ("operations_undone", c_uint64),
        ("recovery_ns_max", c_uint64),
        ("blocks_released", c_uint64),
        ("releases_postponed", c_uint64),
        ("_reserved", c_uint64 * 6),
    ]


class Header(ctypes.Structure):
    _fields_ = [
        ("magic", c_uint64),
        ("layout_version", c_uint32),
        ("header_bytes", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint64),
        ("map_flags", c_uint32),
        ("map_extra", c_uint32),
        ("depot_count", c_uint32),
        ("ephemeral", c_uint32),
        ("seeds", c_uint64 * 4),
        ("segment_bytes", c_uint64),
        ("checksum", c_uint64),
        ("frozen", c_uint64),
        ("starving", c_uint64),
        ("clearing", c_uint64),
        ("waited", c_uint64),
        ("_reserved_a", c_uint64 * 16),
        ("table", c_uint64),
        ("_reserved_b", c_uint64 * 7),
        ("credits", c_uint64),
        ("_reserved_c", c_uint64 * 7),
        ("regions", Region * 6),
        ("element_pool", Pool),
        ("line_pool", Pool),
        ("statistics", Statistics),
        ("key_bells", c_uint64 * 65),
        ("lock_bells", c_uint32 * 126),
    ]


class ProcessSlot(ctypes.Structure):
    _fields_ = [
        ("used", c_uint64),
        ("pid", c_uint64),
        ("attached_ns", c_uint64),
        ("namespace_inode", c_uint64),
        ("command", c_char * 16),
        ("recoverer", c_uint64),
        ("waiting", c_uint64),
    ]


class Context(ctypes.Structure):
    _fields_ = [
        ("owner", c_uint64),
        ("activity", c_uint64),
        ("operation", c_uint64),
        ("bucket", c_uint64),
        ("element", c_uint64),
        ("target", c_uint64),
        ("line", c_uint64),
        ("line_stash", c_uint64),
        ("_reserved", c_uint64),
        ("child", c_uint64),
        ("depot", c_uint64),
        ("block", c_uint64),
        ("list_head", c_uint64),
        ("list_tail", c_uint64),
        ("list_count", c_uint64),
        ("credit_moving", c_uint64),
        ("credit_after", c_uint64),
        ("region", c_uint64),
        ("activity_before", c_uint64),
        ("batched", c_uint64),
        ("waits", c_uint64),
        ("debt", c_uint64),
        ("owned_refs", c_uint64 * 6),
        ("charged", c_uint64),
        ("budget_after", c_uint64),
        ("pages_wanted", c_uint64),
        ("active_ns", c_uint64),
        ("hazard", c_uint64),
        ("fences", c_uint64),
    ]


class Bucket(ctypes.Structure):
    _fields_ = [("header", c_uint64), ("tags", c_uint32 * SLOTS), ("indices", c_uint32 * SLOTS)]


class Depot(ctypes.Structure):
    _fields_ = [("word", c_uint64), ("_reserved", c_uint64 * 7)]

    count = property(lambda self: self.word >> 16 & 0xFF)
    credit = property(lambda self: self.word >> 24 & 0xFF)
    head = property(lambda self: self.word >> 32)


class Picture:
    """All parts of the segment of a descriptor; geometry is the result of _unit.geometry()."""

    def __init__(self, fd, geometry):
        self.geometry = geometry
        self.memory = mmap.mmap(fd, geometry["segment_bytes"])
        offsets = geometry["region_offset"]
        self.header = Header.from_buffer(self.memory)
        self.processes = self._array(ProcessSlot, 1024, offsets["processes"])
        self.element_words = self._array(
            c_uint64, geometry["element_pool"]["block_count"], offsets["element_words"]
        )
        self.line_words = self._array(
            c_uint64, geometry["line_pool"]["block_count"], offsets["line_words"]
        )
        self.buckets = self._array(Bucket, geometry["bucket_max"], offsets["buckets"])
        self.lines = self._array(Bucket, geometry["line_max"], geometry["lines_offset"])
        self.depots = self._array(Depot, geometry["depot_count"], geometry["depots_offset"])

    def _array(self, kind, count, offset):
        return (kind * count).from_buffer(self.memory, offset)

    def context(self, index):
        offset = self.geometry["region_offset"]["contexts"]
        return Context.from_buffer(self.memory, offset + index * self.geometry["context_stride"])

    def redo(self, index):
        """Return the words of a context's redo buffer."""
        offset = self.geometry["region_offset"]["contexts"]
        offset += index * self.geometry["context_stride"] + ctypes.sizeof(Context)
        return self._array(c_uint64, self.geometry["value_words"], offset)

    def element(self, index):
        """Return the words of an element: header, key, value."""
        stride = self.geometry["stride"]
        return self._array(c_uint64, stride // 8, self.geometry["elements_offset"] + index * stride)

    def value(self, index):
        """Return the words of an element's value."""
        start = 1 + self.geometry["key_words"]
        return self.element(index)[start : start + self.geometry["value_words"]]

    def chain(self, bucket):
        """Return the (tag, index) of each element in a bucket's chain, and the lines of the
        chain."""
        line = self.buckets[bucket]
        entries, lines = [], []
        while True:
            link = line.indices[LINK_SLOT]
            linked = link >= LINK_BASE
            for slot in range(SLOTS - linked):
                if line.indices[slot]:
                    entries.append((line.tags[slot], line.indices[slot]))
            if not linked:
                return entries, lines
            lines.append(link - LINK_BASE)
            assert len(lines) == len(set(lines)), "the chain is a circle"
            line = self.lines[lines[-1]]

    def parked(self, depot):
        """Return the elements that a depot lists."""
        found = []
        at = self.depots[depot].head
        for _ in range(self.depots[depot].count):
            found.append(at)
            at = self.element(at)[1]
        return found


def state_of(header):
    """Return the state in the header of an element or a line."""
    return header >> 16 & 7


def version_of(header):
    """Return the version in the header of an element or a line."""
    return header >> 19


def bucket_version_of(header):
    """Return the version in the header of a bucket."""
    return header >> 24


def level_of(header):
    """Return the level of a bucket, or -1."""
    return (header >> 16 & 0x3F) - 1


def owner_of(word):
    """Return the context that holds a lock word, or None."""
    return (word & 0xFFFF) >> 1 if word & 1 else None


def held_by(context):
    """Return the lock bits of a word that a context holds."""
    return context << 1 | 1


def block_parts(word):
    """The state, fresh count, free count and head of a block word."""
    return word >> 16 & 3, word >> 28 & 0xFFF, word >> 40 & 0xFFF, word >> 52


def block_word(state, fresh, free, head):
    return state << 16 | fresh << 28 | free << 40 | head << 52


def depot_word(head, count, credit):
    return count << 16 | credit << 24 | head << 32
