"""Images of live maps, to be damaged: at rest, with an open section, and inside operations.

A copy of an image has no live process: every used process slot in it belongs to a dead one, as no
process locks the bytes of the copy.
"""

import contextlib
import dataclasses
import os
from unittest import mock

import shmrhash
from support import stepping
from support.words import COLLIDING

SCATTERED = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)


@dataclasses.dataclass(frozen=True)
class Image:
    """The contents of a segment's file at one moment: (offset, bytes) of each part with memory."""

    name: str
    key_size: int
    value_size: int
    size: int
    parts: tuple

    def key(self, number):
        return number.to_bytes(8, "little")[: self.key_size].ljust(self.key_size, b"\0")

    def value(self, number):
        return (number.to_bytes(8, "little") * (self.value_size // 8 + 1))[: self.value_size]

    def read(self, offset, size):
        """Return the bytes at offset, and zeros where there is no memory."""
        found = bytearray(size)
        for start, content in self.parts:
            low, high = max(start, offset), min(start + len(content), offset + size)
            if low < high:
                found[low - offset : high - offset] = content[low - start : high - start]
        return bytes(found)


def image_of(name, shared_map):
    """Return an Image of a map's segment as it is now."""
    with open(shared_map._path, "rb") as file:
        parts = []
        for start, end in stepping.allocated_ranges(file.fileno()):
            content = os.pread(file.fileno(), end - start, start)
            if start == 0 and end > 4096:  # damage draws a part, also the header
                parts.append((0, content[:4096]))
                start, content = 4096, content[4096:]
            parts.append((start, content))
        size = os.fstat(file.fileno()).st_size
    return Image(name, shared_map.key_size, shared_map.value_size, size, tuple(parts))


# ---- at rest ----


def fill(shared_map, upto, down_to=None):
    """Insert keys 0 to upto, then delete those from down_to on."""
    small = Image("", shared_map.key_size, shared_map.value_size, 0, ())
    for number in range(upto):
        shared_map[small.key(number)] = small.value(number)
    for number in range(upto if down_to is None else down_to, upto):
        del shared_map[small.key(number)]


STATES = {
    "empty": ({}, lambda m: None),
    "small": ({"max_entries": 64}, lambda m: fill(m, 10)),
    "full": ({"max_entries": 20}, lambda m: fill(m, 20)),
    "grown": ({}, lambda m: fill(m, 1500, 1200)),
    "shrunk": ({}, lambda m: fill(m, 1500, 40)),
    "chained": ({"max_entries": 2000, "_seeds": COLLIDING}, lambda m: fill(m, 60, 40)),
    "wide": ({"key_size": 20, "value_size": 100, "max_entries": 500}, lambda m: fill(m, 200)),
    "narrow": ({"key_size": 4, "value_size": 4, "max_entries": 500}, lambda m: fill(m, 100)),
    "large values": (
        {"key_size": 16, "value_size": 3000, "max_entries": 60},
        lambda m: fill(m, 40),
    ),
    "frozen": ({"max_entries": 64}, lambda m: (fill(m, 10), m.freeze())),
}


@contextlib.contextmanager
def live(state, name):
    """Return a map in one of STATES."""
    geometry, prepare = STATES[state]
    options = {"key_size": 8, "value_size": 8, "max_entries": 4096, "_seeds": SCATTERED}
    # The corpus expects two depots, whatever the number of this machine's CPUs.
    with mock.patch.object(shmrhash._creation, "_depot_count", return_value=2):
        shared_map = shmrhash.RHashMap.create(name, **(options | geometry))
    with shared_map:
        try:
            prepare(shared_map)
            yield shared_map
        finally:
            shared_map.unlink()


def at_rest(state, name):
    """Return the image of a map in one of STATES, with a section open or not."""
    state, _, more = state.partition(", ")
    with live(state, name) as shared_map, contextlib.ExitStack() as stack:
        if more:
            key = Image("", shared_map.key_size, shared_map.value_size, 0, ()).key(3)
            section = stack.enter_context(shared_map.locked(key))
            section[0:1] = b"\xff"
        return image_of(f"{state}, {more}" if more else state, shared_map)


AT_REST = [*STATES, "wide, a section open", "chained, a section open"]


# ---- in the middle of an operation ----


def inserts(shared_map, image):
    for number in range(1000, 1008):
        shared_map[image.key(number)] = image.value(number)


def deletes(shared_map, image):
    for number in range(8):
        del shared_map[image.key(number)]


def updates(shared_map, image):
    shared_map[image.key(5)] = image.value(99)
    shared_map.add(image.key(5), 1, offset=4 if image.value_size > 12 else 0)
    with shared_map.locked(image.key(6)) as section:
        section[0:1] = b"\xff"


OPERATIONS = {
    "small, inserting": inserts,
    "small, deleting": deletes,
    "chained, inserting": inserts,
    "chained, deleting": deletes,
    "wide, updating": updates,
    "shrunk, inserting": inserts,
    "shrunk, deleting": deletes,
}


def in_the_middle(what, name, sample, seed):
    """Return images of a map whose only writer was killed inside an operation."""
    with live(what.partition(", ")[0], name) as shared_map:
        plain = image_of(what, shared_map)

        def prepare():
            handle = shmrhash.RHashMap.open(name)
            handle.lookup(bytes(handle.key_size))
            return handle

        def operate(handle):
            OPERATIONS[what](handle, plain)

        segment = stepping.Segment(shared_map._path)
        for crash in stepping.crash_states(prepare, operate, segment, sample=sample, seed=seed):
            yield image_of(f"{what}, {crash.n} of {crash.total}", shared_map)
