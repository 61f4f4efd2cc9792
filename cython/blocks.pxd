# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# How the equal objects of a pool lie in blocks (pool.pxd), computed.
#
#   element   8 B header | key, padded to 8 | value, padded to 8 | padding to the stride
#
# The stride is a multiple of a power of two near a thirty-second of it, so that a block, a whole
# number of pages and of elements, stays near 16 or 64 KiB.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from layout cimport (
    Pool, PAGE_BYTES, REGION_ELEMENT_WORDS, REGION_LINE_WORDS, REGION_OBJECT_WORDS,
)
from objects cimport POOL_LINES, POOL_OBJECTS

cdef enum:
    BLOCK_BYTES_SMALL = 16384  # blocks of pools up to POOL_BYTES_SMALL: little memory is half used
    BLOCK_BYTES_LARGE = 65536  # of larger ones: a commit costs about 11 us for 2700 elements
    POOL_BYTES_SMALL = 67108864
    BLOCK_CAPACITY_MAX = 4095  # 12 bits in a block word
    PARKED_MAX = 255           # free elements, and credits, that one depot can hold
    LINE_SPARE_COUNT = 16384   # lines beyond one for every six entries: in flight, or of a split
    DEPOT_HIGH_MAX = 96        # bpf_mem_alloc's watermarks for elements up to 256 bytes
    DEPOT_BATCH_MAX = 48
    CREDIT_BATCH = 32
    CREDIT_HIGH = 128

# The private description of a pool of equal objects, in blocks (pool.pxd).
cdef struct PoolView:
    Pool *shared
    uint64_t *words            # one word a block
    uint8_t *base
    uint64_t stride
    uint64_t capacity          # objects in a block
    uint64_t block_bytes
    uint64_t block_count
    uint64_t object_count      # index limit
    uint64_t first_bytes       # of a block, committed with it: all, but of a run one page
    uint64_t reserved          # objects of block 0 that are never given out
    uint32_t kind              # 0 elements, 1 lines, POOL_OBJECTS + class
    uint32_t words_region

cdef inline uint64_t round_up(uint64_t value, uint64_t multiple) noexcept nogil:
    return (value + multiple - 1) // multiple * multiple

cdef inline uint64_t power_of_two_at_least(uint64_t value) noexcept nogil:
    cdef uint64_t power = 1
    while power < value:           # at most 64 turns
        power <<= 1
    return power

cdef inline uint64_t element_stride(uint64_t key_size, uint64_t value_size) noexcept nogil:
    """Bytes from one element to the next: 24 for keys and values of 8 bytes."""
    cdef uint64_t packed = 8 + round_up(key_size, 8) + round_up(value_size, 8)
    cdef uint64_t unit = power_of_two_at_least(packed) // 32
    if unit < 8:
        unit = 8
    if unit > PAGE_BYTES:
        unit = PAGE_BYTES
    return round_up(packed, unit)

cdef inline void pool_view_init(
        PoolView *pool, uint64_t stride, uint64_t object_count, uint32_t kind) noexcept nogil:
    cdef uint64_t unit = PAGE_BYTES
    cdef uint64_t rest = stride
    while rest % 2 == 0 and unit > 1:      # objects that together fill whole pages
        rest //= 2
        unit //= 2
    cdef uint64_t groups
    if kind == POOL_LINES:
        groups = 1                         # lines are few: a page of them at a time
    elif object_count * stride <= POOL_BYTES_SMALL:
        groups = BLOCK_BYTES_SMALL // (unit * stride)
    else:
        groups = BLOCK_BYTES_LARGE // (unit * stride)
    if groups == 0:
        groups = 1
    while unit * groups > BLOCK_CAPACITY_MAX:          # one turn: 16-byte objects in 64 KiB
        groups -= 1
    pool.stride = stride
    pool.capacity = unit * groups
    pool.block_bytes = pool.first_bytes = pool.capacity * stride
    pool.reserved = 1
    pool.block_count = (object_count + pool.capacity - 1) // pool.capacity
    pool.object_count = pool.block_count * pool.capacity
    pool.kind = kind
    if kind >= POOL_OBJECTS:
        pool.words_region = REGION_OBJECT_WORDS + kind - POOL_OBJECTS
    else:
        pool.words_region = REGION_LINE_WORDS if kind else REGION_ELEMENT_WORDS

cdef inline void run_view_init(
        PoolView *pool, uint64_t bytes, uint64_t count, uint32_t kind) noexcept nogil:
    """A pool of runs: each object a block, of which at first one page is committed."""
    pool.stride = pool.block_bytes = bytes
    pool.first_bytes = PAGE_BYTES
    pool.capacity = 1
    pool.reserved = 0
    pool.block_count = pool.object_count = count
    pool.kind = kind
    pool.words_region = REGION_OBJECT_WORDS + kind - POOL_OBJECTS
