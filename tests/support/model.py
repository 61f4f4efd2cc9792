"""The slow, obvious model of RHashMap: a dict, the limits, and the kernel's errnos in its order.

The tests run every operation on the map and on the model and compare the two outcomes. An
operation of the model returns what the map's returns, or raises Refused with the errno that the
map's exception must carry.

    outcome(lambda: model.update(key, value, flags)) == outcome(lambda: m.update(key, value, flags))
"""

import errno

import shmrhash

ANY, NOEXIST, EXIST, LOCK = 0, 1, 2, 4

NO_PREALLOC, NO_COMMON_LRU, NUMA_NODE = 1, 2, 4
RDONLY, WRONLY = 8, 16
ZERO_SEED = 64
RDONLY_PROG, WRONLY_PROG = 128, 256

CREATE_FLAGS = (
    NO_PREALLOC
    | NO_COMMON_LRU
    | NUMA_NODE
    | RDONLY
    | WRONLY
    | RDONLY_PROG
    | WRONLY_PROG
    | ZERO_SEED
)

KEY_SIZE_MAX = 65535
MAP_EXTRA_MAX = 65535
MAX_ENTRIES_MAX = 1 << 31
# The kernel's KMALLOC_MAX_SIZE less its struct htab_elem.
ELEMENT_SIZE_LIMIT = (4 << 20) - 48


class Refused(Exception):
    """The operation must fail with this errno."""

    def __init__(self, number):
        super().__init__(errno.errorcode[number])
        self.errno = number


def outcome(operation):
    """Return how an operation ended: ("returned", value) or ("refused", name of the errno)."""
    try:
        return "returned", operation()
    except (Refused, shmrhash.Error) as refusal:
        return "refused", errno.errorcode[refusal.errno]


def creation_errno(*, key_size, value_size, max_entries, map_flags=NO_PREALLOC, map_extra=0):
    """Return the errno of creating such a map, or 0. The order of the checks is the kernel's."""
    checks = [
        (map_flags & RDONLY and map_flags & WRONLY, errno.EINVAL),
        (not map_flags & NO_PREALLOC, errno.EINVAL),
        (map_flags & ZERO_SEED, errno.EINVAL),
        (key_size > KEY_SIZE_MAX, errno.E2BIG),
        (map_extra >> 32, errno.EINVAL),
        (map_extra > MAP_EXTRA_MAX, errno.E2BIG),
        (map_extra > max_entries, errno.EINVAL),
        (map_flags & ~CREATE_FLAGS, errno.EINVAL),
        (map_flags & RDONLY_PROG and map_flags & WRONLY_PROG, errno.EINVAL),
        (map_flags & NO_COMMON_LRU, errno.EINVAL),
        (max_entries == 0 or key_size == 0 or value_size == 0, errno.EINVAL),
        (key_size + value_size >= ELEMENT_SIZE_LIMIT, errno.E2BIG),
        (max_entries > MAX_ENTRIES_MAX, errno.E2BIG),
    ]
    return next((number for failed, number in checks if failed), 0)


def element_size(key_size, value_size):
    """Return the bytes of an element: an 8-byte head, key and value, each rounded up to 8."""
    return 8 + -(-key_size // 8) * 8 + -(-value_size // 8) * 8


class ModelMap:
    """What an RHashMap of this geometry must do when one thread uses it."""

    def __init__(self, *, key_size, value_size, max_entries):
        self.key_size = key_size
        self.value_size = value_size
        self.max_entries = max_entries
        self.pairs = {}

    def lookup(self, key, flags=0):
        # Every value can be locked (the kernel wants a lock declared in it); no other flag exists.
        if flags not in (0, LOCK):
            raise Refused(errno.EINVAL)
        return self.pairs.get(key)

    def update(self, key, value, flags=ANY):
        if flags not in (ANY, NOEXIST, EXIST, ANY | LOCK, NOEXIST | LOCK, EXIST | LOCK):
            raise Refused(errno.EINVAL)
        flags &= ~LOCK
        if key in self.pairs and flags == NOEXIST:
            raise Refused(errno.EEXIST)
        if key not in self.pairs and flags == EXIST:
            raise Refused(errno.ENOENT)
        if key not in self.pairs and len(self.pairs) >= self.max_entries:
            raise Refused(errno.E2BIG)
        self.pairs[key] = value

    def delete(self, key):
        if key not in self.pairs:
            raise Refused(errno.ENOENT)
        del self.pairs[key]

    def lookup_and_delete(self, key, flags=0):
        if flags not in (0, LOCK):
            raise Refused(errno.EINVAL)
        if key not in self.pairs:
            raise Refused(errno.ENOENT)
        return self.pairs.pop(key)

    def getitem(self, key):
        if key not in self.pairs:
            raise Refused(errno.ENOENT)
        return self.pairs[key]

    def add(self, key, delta, *, default=None, offset=0):
        if offset < 0 or offset + 8 > self.value_size:
            raise Refused(errno.EINVAL)
        if key not in self.pairs:
            if default is None:
                raise Refused(errno.ENOENT)
            if len(self.pairs) >= self.max_entries:
                raise Refused(errno.E2BIG)
            value, before = bytes(self.value_size), default
        else:
            value = self.pairs[key]
            before = int.from_bytes(value[offset : offset + 8], "little", signed=True)
        after = wrap_around(before + delta)
        field = after.to_bytes(8, "little", signed=True)
        self.pairs[key] = value[:offset] + field + value[offset + 8 :]
        return after

    def compare_and_swap(self, key, expected, new):
        if expected is None:
            if key in self.pairs:
                return False
            self.update(key, new)
            return True
        if self.pairs.get(key) != expected:
            return False
        self.pairs[key] = new
        return True

    def exchange(self, key, new):
        old = self.getitem(key)
        self.pairs[key] = new
        return old

    def setdefault(self, key, default):
        if key not in self.pairs:
            self.update(key, default)
        return self.pairs[key]

    def update_with(self, key, function, default=None):
        if key not in self.pairs and default is not None:
            self.update(key, default)
        self.pairs[key] = function(self.getitem(key))
        return self.pairs[key]

    def clear(self):
        self.pairs.clear()


def wrap_around(number):
    """Return number as a signed 64-bit integer, as the processor's addition leaves it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
