"""Flags, limits and defaults that several modules share: each number stands once.

A number that one module uses alone stands at the head of that module. The numbers of the format are
the core's: _core.SCHEMA_BYTES_MAX, _core.LONG_KEY_MARK.
"""

# For update() and the batches.
BPF_ANY = 0
BPF_NOEXIST = 1
BPF_EXIST = 2
BPF_F_LOCK = 4

# For create(): map_flags.
BPF_F_NO_PREALLOC = 1 << 0
BPF_F_NO_COMMON_LRU = 1 << 1
BPF_F_NUMA_NODE = 1 << 2
BPF_F_RDONLY = 1 << 3
BPF_F_WRONLY = 1 << 4
BPF_F_ZERO_SEED = 1 << 6
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_WRONLY_PROG = 1 << 8

DEFAULT_TIMEOUT = 5.0  # seconds to wait for a lock whose owner is alive

WORD_BYTES = 8  # of each special field, and the unit of a SharedDict's inline values
PAGE_BYTES = 4096  # max_bytes are whole pages
ENTRIES_MAX = 1 << 31  # of any map
CACHE_BYTES = 64 << 20  # max_bytes of a cache whose maker names no limit
# For how many of these bytes a cache has an entry whose maker does not say. An entry takes some 110
# bytes without what is outside of it, so only caches of tiny values are full of entries before they
# are full of bytes. One that could be takes 5 bytes of the fixed part: 4 in 100 of max_bytes. With
# 256 instead, a cache of values of 100 bytes uses four fifths of it.
CACHE_ENTRY_BYTES = 128
RACES_MAX = 100  # how often a name may vanish or appear between two looks at it
