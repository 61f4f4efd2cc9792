# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Where each object lies, computed: objects of one size in blocks, objects of any size in classes.
#
# A pool (pool.pxd) has objects of one size, in blocks. An element is such an object:
#
#   element   8 B header | key, padded to 8 | value, padded to 8 | padding to the stride
#
# The stride is a multiple of a power of two near a thirty-second of it, so that a block, a whole
# number of pages and of elements, stays near 16 or 64 KiB.
#
# Objects of any size, in a map that has objects:
#
#   objects header 4 KiB | depots 64 B each, for each small class | pins 16 B each
#     | for each class: block words, then blocks
#
# Every class is a pool in a range of addresses of its own, so an object never changes its class,
# and its index says where it is. The ranges are reserved, not committed; the budget limits what
# all of them together may commit (region.pxd).
#
#   small classes   16 to 4096 bytes, the sizes of bpf_mem_alloc, in blocks, with a depot for each
#                   CPU. An object: header 8 B | bytes
#   runs            8 KiB to 256 MiB, powers of two. Each is a block of its own, of which only the
#                   pages in use are committed. An object: header 8 B | link 8 B | pages 8 B
#                   | 40 B unused | bytes
#
# A reference is one word: index : 34, length : 30. The length decides the class. 0 refers to
# nothing: object 0 of a small class is never used, and runs have no length 0.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport count_leading_zeros, static_assert
from segment.layout cimport (
    PAGE_BYTES, REGION_ELEMENT_WORDS, REGION_LINE_WORDS, REGION_OBJECT_WORDS, Region, Pool, Element,
)

cdef enum:
    CLASS_SMALL = 11
    CLASS_COUNT = 27
    SMALL_BYTES_MAX = 4096
    SMALL_HEADER = 8
    RUN_HEADER = 64
    RUN_BYTES_MIN = 8192
    LENGTH_BITS = 30
    POOL_LINES = 1             # kinds of pools: 0 elements, 1 lines, then the classes of objects
    POOL_OBJECTS = 2
    POOL_KINDS = 32
    PIN_MAX = 65536
    OBJECTS_HEADER_BYTES = 4096

cdef enum:
    LENGTH_MASK = 0x3FFFFFFFULL
    LENGTH_MAX = 0xFFFFFC0ULL  # 256 MiB less the header of a run
    OBJECT_INDEX_MAX = 0xFFFFFFFFULL          # 32 bits in a depot's word

cdef struct ObjectClass:
    Region words
    Pool pool

cdef struct Objects:
    uint64_t budget            # lock word: pages committed for objects
    uint64_t _reserved_a[7]
    uint64_t pins_active       # how many pins are set, or more, never fewer; 0 means none
    uint64_t pins_hint         # where to look for a free pin first
    uint64_t _reserved_b[6]
    Region pins
    ObjectClass classes[27]

# A process uses an object in place. A pin begins with the store of owner, then of ref; it ends with
# the same two stores in the reverse order.
cdef struct Pin:
    uint64_t owner             # 0: free; process slot + 1. Taken by CAS.
    uint64_t ref

cdef inline void objects_are_pinned() noexcept nogil:
    static_assert(sizeof(Pin) == 16)
    static_assert(sizeof(ObjectClass) == 128)
    static_assert(sizeof(Objects) <= 4096)

cdef inline uint64_t class_bytes(uint32_t which) noexcept nogil:
    """Bytes from one object of a class to the next."""
    if which >= CLASS_SMALL:
        return <uint64_t> RUN_BYTES_MIN << (which - CLASS_SMALL)
    if which >= 6:
        return 256ULL << (which - 6)
    if which == 3:
        return 96
    if which == 5:
        return 192
    return 16ULL << (which if which < 3 else which - 1)

cdef inline uint32_t class_of(uint64_t length) noexcept nogil:
    """The class for objects of length bytes, at most LENGTH_MAX."""
    cdef uint64_t needed = length + SMALL_HEADER
    if needed <= 64:
        return 0 if needed <= 16 else 1 if needed <= 32 else 2
    if needed <= 256:
        return 3 if needed <= 96 else 4 if needed <= 128 else 5 if needed <= 192 else 6
    if needed <= SMALL_BYTES_MAX:
        return 62 - count_leading_zeros(needed - 1)            # 257 to 512: 7
    needed = length + RUN_HEADER
    if needed <= RUN_BYTES_MIN:
        return CLASS_SMALL
    return 62 - count_leading_zeros(needed - 1)                # 8193 to 16384: 12

cdef inline uint64_t ref_make(uint64_t index, uint64_t length) noexcept nogil:
    return index << LENGTH_BITS | length

cdef inline uint64_t ref_index(uint64_t ref) noexcept nogil:
    return ref >> LENGTH_BITS

cdef inline uint64_t ref_length(uint64_t ref) noexcept nogil:
    return ref & LENGTH_MASK

cdef inline uint32_t ref_class(uint64_t ref) noexcept nogil:
    """The class of an object; CLASS_COUNT if no class has objects of that length."""
    return class_of(ref_length(ref)) if ref_length(ref) <= LENGTH_MAX else CLASS_COUNT

cdef inline uint64_t pages_of(uint64_t length) noexcept nogil:
    """Pages of a run that holds length bytes."""
    return (length + RUN_HEADER + PAGE_BYTES - 1) // PAGE_BYTES

cdef inline uint64_t run_pages(Element *run) noexcept nogil:
    """Pages that are charged for a run: one if its word is 0, because it has never grown."""
    cdef uint64_t pages = run.words[1]
    return pages if pages != 0 else 1

cdef enum:
    BLOCK_BYTES_SMALL = 16384  # in pools up to POOL_BYTES_SMALL, to have little in half-used blocks
    BLOCK_BYTES_LARGE = 65536  # in larger pools: a commit costs about 11 us for 2700 elements
    POOL_BYTES_SMALL = 67108864
    BLOCK_CAPACITY_MAX = 4095  # 12 bits in a block word
    PARKED_MAX = 255           # free elements, and credits, that one depot can hold
    LINE_SPARE_COUNT = 16384   # lines beyond one for every six entries: in no chain, or for a split
    DEPOT_HIGH_MAX = 96        # bpf_mem_alloc's watermarks for elements up to 256 bytes
    DEPOT_BATCH_MAX = 48
    CREDIT_BATCH = 32
    CREDIT_HIGH = 128

# The private description of a pool of equal objects, in blocks (pool.pxd).
cdef struct PoolView:
    Pool *shared
    uint64_t *words            # one word for each block
    uint8_t *base
    uint64_t stride
    uint64_t capacity          # objects in a block
    uint64_t block_bytes
    uint64_t block_count
    uint64_t object_count      # index limit
    uint64_t first_bytes       # committed with a block: all of the block, but of a run one page
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
    """A pool of runs: each object is a block, of which one page is committed at first."""
    pool.stride = pool.block_bytes = bytes
    pool.first_bytes = PAGE_BYTES
    pool.capacity = 1
    pool.reserved = 0
    pool.block_count = pool.object_count = count
    pool.kind = kind
    pool.words_region = REGION_OBJECT_WORDS + kind - POOL_OBJECTS
