"""The kernel's own hash map by bpf(2), for tests that compare ours with it.

    with KernelMap.create(key_size=4, value_size=8, max_entries=2) as kernel:
        kernel.update(b"key.", b"a value.")    -> Answer(error="", result=None)
        kernel.lookup(b"none")                 -> Answer(error="ENOENT", result=None)

Each operation is one system call and returns an Answer. Refused is raised only where a map cannot
be made or reopened at all: conftest.py turns that into a skip, or into a failure.
"""

import ctypes
import errno
import os
import platform
import struct
from typing import Any, NamedTuple

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_GET_NEXT_KEY = range(5)
MAP_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, BTF_LOAD = 14, 15, 18
MAP_LOOKUP_AND_DELETE, MAP_FREEZE = 21, 22
MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = range(24, 28)

MAP_TYPE_HASH = 1
F_NO_PREALLOC, F_RDONLY, F_WRONLY = 1 << 0, 1 << 3, 1 << 4

SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
ATTR_BYTES = 128
LOCK_BYTES = 4
CURSOR_BYTES_MIN = 4  # the cursor of this map type is a bucket's number
# An element comes from a per-CPU list that an interrupt refills, possibly too late.
NO_MEMORY_TRIES_MAX = 1000

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The system permits no map; str() says which call failed, and why."""

    def __init__(self, call, number):
        super().__init__(f"{call}: {errno.errorcode.get(number, number)} ({os.strerror(number)})")
        self.errno = number


class Answer(NamedTuple):
    """The answer of one operation: "" or the name of its errno, and its result."""

    error: str
    result: Any = None


class Chunk(NamedTuple):
    """The result of a batch of lookups: pairs, and the cursor for the next batch, if any."""

    pairs: list
    cursor: bytes | None


def bpf(command, attr):
    """Make one system call; return its result, or minus its errno. The kernel may write to attr."""
    number = SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        return -errno.ENOSYS
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), attr, ctypes.c_ulong(len(attr))
    )
    return result if result >= 0 else -ctypes.get_errno()


def attributes(layout, *fields):
    """Return a union bpf_attr with these fields at its start and zeros after them."""
    return ctypes.create_string_buffer(struct.pack(f"={layout}", *fields), ATTR_BYTES)


def address(buffer):
    """Return the address of a ctypes buffer; 0, a null pointer, for None."""
    return 0 if buffer is None else ctypes.addressof(buffer)


def buffer_of(contents):
    return None if contents is None else ctypes.create_string_buffer(contents, len(contents) or 1)


def error_name(result):
    return "" if result >= 0 else errno.errorcode.get(-result, str(-result))


def create(*, key_size, value_size, max_entries, map_flags=F_NO_PREALLOC, map_extra=0, types=None):
    """BPF_MAP_CREATE of a hash map: a descriptor, or minus the errno.

    types: a descriptor of BTF types, and the numbers of the key's type and the value's.
    """
    # After map_flags: inner_map_fd, numa_node, name, ifindex, types, one more type, map_extra.
    attr = attributes(
        "5I2I16s5IQ",
        *(MAP_TYPE_HASH, key_size, value_size, max_entries, map_flags),
        *(0, 0, b"shmrhash_test", 0, *(types or (0, 0, 0)), 0, map_extra),
    )
    return bpf(MAP_CREATE, attr)


def locked_types(key_size, value_size):
    """Load the BTF types of struct { struct bpf_spin_lock lock; char data[]; }; return the types
    for create()."""
    names = b"\0int\0char\0bpf_spin_lock\0val\0lock\0data\0value\0"

    def named(name):
        return names.index(b"\0" + name + b"\0") + 1

    def head(name, kind, members, size):
        return struct.pack("=3I", named(name) if name else 0, kind << 24 | members, size)

    integer, array, structure = 1, 3, 4
    types = b"".join(
        [
            head(b"int", integer, 0, 4) + struct.pack("=I", 32),  # number 1
            head(b"bpf_spin_lock", structure, 1, 4) + struct.pack("=3I", named(b"val"), 1, 0),
            head(b"char", integer, 0, 1) + struct.pack("=I", 8),  # number 3
            head(None, array, 0, 0) + struct.pack("=3I", 3, 1, value_size - LOCK_BYTES),
            head(b"value", structure, 2, value_size)  # number 5
            + struct.pack("=6I", named(b"lock"), 2, 0, named(b"data"), 4, 8 * LOCK_BYTES),
            head(None, array, 0, 0) + struct.pack("=3I", 3, 1, key_size),  # number 6
        ]
    )
    header = struct.pack("=HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    contents = buffer_of(header + types + names)
    fd = bpf(BTF_LOAD, attributes("2Q3I", address(contents), 0, len(contents), 0, 0))
    if fd < 0:
        raise Refused("bpf(BPF_BTF_LOAD)", -fd)
    return fd, 6, 5


class KernelMap:
    """One descriptor of a BPF_MAP_TYPE_HASH."""

    def __init__(self, fd, key_size, value_size, lock=False):
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self.lock = lock

    @classmethod
    def create(cls, *, key_size, value_size, lock=False, **geometry):
        """With lock, the first LOCK_BYTES of each value are a lock, which reads as zeros."""
        sizes = {"key_size": key_size, "value_size": value_size}
        types = locked_types(key_size, value_size) if lock else None
        try:
            fd = create(**sizes, **geometry, types=types)
        finally:
            if types:
                os.close(types[0])
        if fd < 0:
            raise Refused("bpf(BPF_MAP_CREATE)", -fd)
        return cls(fd, key_size, value_size, lock)

    def info(self):
        """Return the id of the map, and its flags, as the kernel reports them."""
        info = ctypes.create_string_buffer(256)
        result = bpf(OBJ_GET_INFO_BY_FD, attributes("2IQ", self.fd, len(info), address(info)))
        if result < 0:
            raise Refused("bpf(BPF_OBJ_GET_INFO_BY_FD)", -result)
        _, map_id, _, _, _, map_flags = struct.unpack_from("=6I", info)
        return {"id": map_id, "map_flags": map_flags}

    def reopen(self, flags):
        """Return another descriptor of the same map, with F_RDONLY or F_WRONLY."""
        fd = bpf(MAP_GET_FD_BY_ID, attributes("3I", self.info()["id"], 0, flags))
        if fd < 0:
            raise Refused("bpf(BPF_MAP_GET_FD_BY_ID)", -fd)
        return KernelMap(fd, self.key_size, self.value_size, self.lock)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def element(self, command, key, value=None, flags=0):
        """Execute a command on one key; value is a buffer that the kernel reads or writes."""
        key = buffer_of(key)
        fields = self.fd, 0, address(key), address(value), flags % (1 << 64)
        return bpf(command, attributes("2I3Q", *fields))

    def lookup(self, key, flags=0):
        value = ctypes.create_string_buffer(self.value_size)
        error = error_name(self.element(MAP_LOOKUP, key, value, flags))
        return Answer(error, None if error else value.raw)

    def update(self, key, value, flags=0):
        for _ in range(NO_MEMORY_TRIES_MAX):
            error = error_name(self.element(MAP_UPDATE, key, buffer_of(value), flags))
            if error != "ENOMEM":
                break
        return Answer(error)

    def delete(self, key):
        return Answer(error_name(self.element(MAP_DELETE, key)))

    def lookup_and_delete(self, key, flags=0):
        value = ctypes.create_string_buffer(self.value_size)
        error = error_name(self.element(MAP_LOOKUP_AND_DELETE, key, value, flags))
        return Answer(error, None if error else value.raw)

    def get_next_key(self, key=None):
        following = ctypes.create_string_buffer(self.key_size)
        error = error_name(self.element(MAP_GET_NEXT_KEY, key, following))
        return Answer(error, None if error else following.raw)

    def freeze(self):
        return Answer(error_name(bpf(MAP_FREEZE, attributes("I", self.fd))))

    def batch(self, command, count, flags, *, keys, values=None, cursor=None, following=None):
        """Execute a batch command; return the name of its errno, and the count that it wrote."""
        attr = attributes(
            "4Q2I2Q",
            *(address(cursor), address(following), address(keys), address(values)),
            *(count, self.fd, flags % (1 << 64), 0),
        )
        error = error_name(bpf(command, attr))
        return error, struct.unpack_from("=I", attr, 32)[0]

    def take_batch(self, command, cursor, count, flags):
        keys = ctypes.create_string_buffer(max(1, count * self.key_size))
        values = ctypes.create_string_buffer(max(1, count * self.value_size))
        following = ctypes.create_string_buffer(max(CURSOR_BYTES_MIN, self.key_size))
        error, done = self.batch(
            command,
            count,
            flags,
            keys=keys,
            values=values,
            cursor=buffer_of(cursor),
            following=following,
        )
        if error not in ("", "ENOENT"):
            return Answer(error, Chunk([], None))
        pairs = zip(
            pieces(keys.raw, self.key_size, done),
            pieces(values.raw, self.value_size, done),
            strict=True,
        )
        return Answer(error, Chunk(list(pairs), None if error else following.raw))

    def lookup_batch(self, cursor=None, count=1, flags=0):
        """Look up a batch. ENOENT says that nothing follows; the answer has the last pairs all the
        same."""
        return self.take_batch(MAP_LOOKUP_BATCH, cursor, count, flags)

    def lookup_and_delete_batch(self, cursor=None, count=1, flags=0):
        return self.take_batch(MAP_LOOKUP_AND_DELETE_BATCH, cursor, count, flags)

    def update_batch(self, keys, values, flags=0):
        """Store a batch. The result is the number of keys stored, also with an error."""
        done = 0
        for _ in range(NO_MEMORY_TRIES_MAX):
            left = len(keys) - done
            key_bytes = buffer_of(b"".join(keys[done:]))
            value_bytes = buffer_of(b"".join(values[done:]))
            error, count = self.batch(
                MAP_UPDATE_BATCH, left, flags, keys=key_bytes, values=value_bytes
            )
            done += count if error in ("", "ENOMEM", "ENOENT", "EEXIST", "E2BIG") else 0
            if error != "ENOMEM":
                break
        return Answer(error, done)

    def delete_batch(self, keys, flags=0):
        error, count = self.batch(
            MAP_DELETE_BATCH, len(keys), flags, keys=buffer_of(b"".join(keys))
        )
        return Answer(error, count if error in ("", "ENOENT") else 0)


def pieces(contents, size, count):
    return [contents[at : at + size] for at in range(0, count * size, size)]
