"""Damage of an image: a list of mutations, each of which is a tuple that JSON can hold.

("set", offset, hex)               store these bytes at the offset
("copy", image, from, to, size)    copy bytes of another image, or of the same
("size", bytes)                    truncate or extend the file
"""

import os
import struct

FOLD_START, FOLD_FACTOR = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
MASK = (1 << 64) - 1
LENGTH_BITS = 30  # the bits of the length in a reference, below the index
LENGTHS = (0, 1, 8, 9, 56, 57, 248, 4088, 4089, 8128, 8129, 70_000, 0xFFFFFC0, 0xFFFFFC1, 1 << 29)
FIRST_CONTEXT = 4096 + 65536
CONTEXT_WORDS, CONTEXT_NAMES = 32, range(22, 28)
CHECKED_BYTES = 88
HEADER_SIZES = {"key_size": (16, "<I"), "value_size": (20, "<I"), "max_entries": (24, "<Q")}
INTERESTING = [
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 64, 96, 255, 256, 4095, 4096),
    *(0xF0000000, 0xF0000001, 0xF0004000, 0xF00041FF, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000),
    *(1 << 32, 1 << 40, (1 << 48) - 1, 1 << 58, (1 << 58) - 1, 1 << 63, MASK, MASK - 1),
]


def checksum(part):
    """The checksum of header.pxd, of a part of the header."""
    total = FOLD_START
    for offset in range(0, len(part), 8):
        word = int.from_bytes(part[offset : offset + 8], "little")
        product = (total ^ word) * FOLD_FACTOR
        total = (((product & MASK) ^ (product >> 64)) + offset) & MASK
    return total


class Damage:
    """Draws mutations of an image."""

    def __init__(self, image, images, rng, segment_bytes):
        self.image, self.images, self.rng, self.segment_bytes = image, images, rng, segment_bytes

    def draw(self):
        """A few mutations, of one kind or several."""
        kinds = [self.flip, self.byte, self.word, self.half, self.lock, self.swap, self.splice]
        if hasattr(self.image, "max_bytes"):
            kinds += [self.reference, self.reference, self.name, self.pin]
        if self.rng.random() < 0.03:
            return self.rng.choice([self.size, self.geometry])()
        drawn = []
        if self.rng.random() < 0.2:
            drawn += self.death()
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 5, 8, 20))):
            drawn += self.rng.choice(kinds)()
        return drawn

    def place(self, size=8):
        """A random offset, more often of non-zero bytes than of zeros."""
        start, content = self.rng.choice(self.image.parts)
        at = self.rng.randrange(0, len(content), size)
        for _ in range(8):
            if any(content[at : at + size]):
                break
            at = self.rng.randrange(0, len(content), size)
        if self.rng.random() < 0.2:  # the fields beside it
            at = max(0, min(len(content) - size, at + size * self.rng.randrange(-8, 24)))
        if start == 0 and at < 112 and self.rng.random() < 0.9:  # has a checksum: found at once
            at = self.rng.randrange(256, 832, size)
        return start + at

    def number(self):
        kind = self.rng.random()
        if kind < 0.5:
            return self.rng.choice(INTERESTING)
        if kind < 0.75:
            return self.rng.randrange(256)
        return self.rng.getrandbits(64)

    def flip(self):
        at = self.place(1)
        return [("set", at, f"{self.image.read(at, 1)[0] ^ 1 << self.rng.randrange(8):02x}")]

    def byte(self):
        return [("set", self.place(1), f"{self.rng.getrandbits(8):02x}")]

    def half(self):
        return [("set", self.place(4), struct.pack("<I", self.number() & 0xFFFFFFFF).hex())]

    def word(self):
        at = self.place()
        number = self.number()
        if self.rng.random() < 0.3:
            (old,) = struct.unpack("<Q", self.image.read(at, 8))
            number = self.rng.choice(
                (old + 1, old - 1, old ^ number << 16, old << 16, old >> 16, old | number)
            )
        return [("set", at, struct.pack("<Q", number & MASK).hex())]

    def any_reference(self):
        """A plausible reference, or an impossible one."""
        length = self.rng.choice((self.rng.choice(LENGTHS), self.rng.randrange(5000)))
        index = self.rng.choice(
            (0, 1, 2, self.rng.randrange(300), self.rng.randrange(1 << 17), (1 << 34) - 1)
        )
        return index << LENGTH_BITS | length

    def reference(self):
        """Replace a word, a reference if one is found, by one with another length or index."""
        at = self.place()
        for _ in range(30):
            (old,) = struct.unpack("<Q", self.image.read(at, 8))
            if 0 < old & (1 << LENGTH_BITS) - 1 < 1 << 20 and 0 < old >> LENGTH_BITS < 1 << 20:
                break
            at = self.place()
        index, length = old >> LENGTH_BITS, old & (1 << LENGTH_BITS) - 1
        new = self.rng.choice(
            (
                self.any_reference(),
                self.rng.choice((index - 1, index + 1, 0)) << LENGTH_BITS | length,
                index << LENGTH_BITS | self.rng.choice(LENGTHS),
                index << LENGTH_BITS | length + self.rng.choice((-1, 1)),
            )
        )
        return [("set", at, struct.pack("<Q", new & MASK).hex())]

    def name(self):
        """Let a context name an object, owe pages, or be charged for some."""
        at = self.context(self.rng.randrange(3)) + 8 * self.rng.randrange(21, 31)
        number = self.rng.choice((self.any_reference(), self.number(), self.rng.randrange(64)))
        return [("set", at, struct.pack("<Q", number & MASK).hex())]

    def pin(self):
        """Let an owner, which need not exist, pin an object, in a part of one page, as pins are."""
        parts = [start for start, content in self.image.parts if len(content) == 4096]
        at = self.rng.choice(parts) + 16 * self.rng.randrange(4)
        words = struct.pack("<QQ", self.rng.randrange(4), self.any_reference())
        return [("set", at, words.hex())]

    def context(self, index):
        """The offset of a context."""
        stride = (256 + (self.image.value_size + 7) // 8 * 8 + 63) // 64 * 64
        return FIRST_CONTEXT + index * stride

    def lock(self):
        """Let a context, which may be dead, hold some lock word."""
        at = self.place()
        (old,) = struct.unpack("<Q", self.image.read(at, 8))
        owner = self.rng.choice((0, 0, 1, 2, 3, 4095, 4096, 0x7FFF))
        state = self.rng.choice((0, 0, 0, self.rng.randrange(8) << 16))
        return [("set", at, struct.pack("<Q", (old & ~0xFFFF) ^ state | owner << 1 | 1).hex())]

    def swap(self):
        size = self.rng.choice((1, 4, 8, 24, 64, 256))
        a, b = self.place(), self.place()
        return [("copy", self.image.name, a, b, size), ("copy", self.image.name, b, a, size)]

    def splice(self):
        other = self.rng.choice(self.images)
        start, content = self.rng.choice(other.parts)
        size = min(len(content), self.rng.choice((64, 256, 4096, 16384)))
        at = self.rng.randrange(0, len(content) - size + 1, 8)
        to = self.rng.choice((start + at, self.place()))
        return [("copy", other.name, start + at, to, size)] if to + size <= self.image.size else []

    def death(self):
        """Let a context of a dead process be inside some operation, and hold some words."""
        index = self.rng.randrange(3)
        slot = self.rng.choice((0, 0, 1, 2))
        base = self.context(index)
        fields = [slot + 1, 2 * self.rng.randrange(20) + self.rng.choice((1, 1, 0))]
        fields += [self.rng.randrange(5)]  # operation
        fields += [self.rng.choice((self.rng.randrange(12), self.number())) for _ in range(17)]
        for field in range(4, 20):
            if self.rng.random() < 0.4:
                fields[field] = 0
        if hasattr(self.image, "max_bytes"):
            fields += [
                self.rng.choice((0, 1, 1, 8, self.number())) for _ in range(CONTEXT_WORDS - 20)
            ]
            for field in CONTEXT_NAMES:
                fields[field] = self.rng.choice((0, 0, self.any_reference()))
        words = struct.pack(f"<{len(fields)}Q", *(field & MASK for field in fields))
        drawn = [("set", 4096 + 64 * slot, struct.pack("<Q", 1).hex()), ("set", base, words.hex())]
        for _ in range(self.rng.randrange(4)):
            at = self.place()
            (old,) = struct.unpack("<Q", self.image.read(at, 8))
            drawn.append(("set", at, struct.pack("<Q", old & ~0xFFFF | index << 1 | 1).hex()))
        if self.rng.random() < 0.5:
            at = self.rng.choice((256, 320, 384, 448, 512, 576, 640))
            (old,) = struct.unpack("<Q", self.image.read(at, 8))
            drawn.append(("set", at, struct.pack("<Q", old & ~0xFFFF | index << 1 | 1).hex()))
        return drawn

    def size(self):
        new = self.rng.choice((0, 1, 4095, 4096, self.image.size - 4096, self.image.size + 4096))
        return [("size", self.rng.choice((new, self.rng.randrange(self.image.size * 2))))]

    def geometry(self):
        """Change sizes in the header, with a right checksum, and the file's size with them."""
        header = bytearray(self.image.read(0, 4096))
        for at, code in self.rng.sample(list(HEADER_SIZES.values()), 1):
            old = struct.unpack_from(code, header, at)[0]
            new = self.rng.choice(
                (1, 7, 8, 9, old + 1, old * 2, old // 2, self.rng.getrandbits(16))
            )
            struct.pack_into(code, header, at, new)
        if self.rng.random() < 0.3:
            struct.pack_into("<I", header, 40, self.rng.choice((1, 2, 4, 256, 3, 0)))
        key_size, value_size, entries = struct.unpack_from("<IIQ", header, 16)
        (depots,) = struct.unpack_from("<I", header, 40)
        max_bytes = getattr(self.image, "max_bytes", 0)
        size = None
        if entries and depots:
            size = self.segment_bytes(key_size, value_size, entries, depots, max_bytes)
        if size is None or size > 1 << 34:
            size = self.image.size
        struct.pack_into("<Q", header, 80, size)
        struct.pack_into("<Q", header, CHECKED_BYTES, checksum(header[:CHECKED_BYTES]))
        return [("set", 16, header[16 : CHECKED_BYTES + 8].hex()), ("size", size)]


def write(fd, image, mutations, images):
    """Write the image and its mutations into the empty file fd."""
    size = image.size
    for start, content in image.parts:
        os.pwrite(fd, content, start)
    for mutation in mutations:
        if mutation[0] == "set":
            os.pwrite(fd, bytes.fromhex(mutation[2]), mutation[1])
        elif mutation[0] == "copy":
            _, name, start, to, length = mutation
            os.pwrite(fd, images[name].read(start, length), to)
        else:
            size = mutation[1]
    os.ftruncate(fd, size)
