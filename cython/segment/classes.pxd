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
#   objects header 12 KiB | depots 64 B each, for each small class | pins 16 B each
#     | for each class: block words, then blocks
#
# Every class is a pool in a range of addresses of its own, so an object never changes its class,
# and its index says where it is. The ranges are reserved, not committed; the budget limits what
# all of them together may commit (region.pxd).
#
#   small classes   16 to 4096 bytes, in blocks, with a depot for each CPU. An object: header 8 B
#                   | bytes
#   middle classes  to 32 KiB, in blocks, without depots: a few would park as much as many small
#                   ones. An object: as in a small class
#   runs            64 KiB to 256 MiB, powers of two. Each is a block of its own, of which only the
#                   pages in use are committed. An object: header 8 B | link 8 B | pages 8 B
#                   | 40 B unused | bytes
#
# An object has at most 12.5 % and 16 bytes more than it needs. Sizes are multiples of 16 up to 256;
# above, there are 8 classes from each power of two to the next; a run has less than a page too
# much, of at least nine. A block has the fewest pages, from a start that grows with max_bytes, that
# hold two objects or more and leave at most a 64th over. So blocks are small in a small map, where
# many classes share few pages.
#
# A reference is one word: index : 34, length : 30. The length decides the class. 0 refers to
# nothing: object 0 of a small class is never used, and other classes have no length 0.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport count_leading_zeros, static_assert
from segment.layout cimport (
    PAGE_BYTES, REGION_ELEMENT_WORDS, REGION_LINE_WORDS, REGION_OBJECT_WORDS, REGION_MAX, Region,
    Pool, Element,
)

cdef enum:
    CLASS_SMALL = 48           # how many classes have depots;
    CLASS_BLOCKS = 72          # how many have several objects in a block: small and middle ones
    CLASS_COUNT = 85
    BLOCK_OBJECT_MAX = 32768   # bytes of an object of the largest of these
    EVEN_BYTES_MAX = 256       # classes up to here are 16 bytes apart
    EVEN_COUNT = 16
    BLOCK_HEADER = 8           # before the bytes of an object in a block
    RUN_HEADER = 64
    RUN_BYTES_MIN = 65536
    LENGTH_BITS = 30
    POOL_LINES = 1             # kinds of pools: 0 elements, 1 lines, then the classes of objects
    POOL_OBJECTS = 2
    POOL_KINDS = 128
    PIN_MAX = 65536
    OBJECTS_HEADER_BYTES = 12288

cdef enum:
    LENGTH_MASK = 0x3FFFFFFFULL
    LENGTH_MAX = 0xFFFFFC0ULL  # 256 MiB less the header of a run
    OBJECT_INDEX_MAX = 0xFFFFFFFFULL          # 32 bits in a depot's word

cdef struct ObjectClass:
    Region words
    Pool pool

cdef struct Objects:
    uint64_t budget            # lock word: pages committed for what it counts (region.pxd)
    uint64_t _reserved_a[7]
    uint64_t pins_active       # how many pins are set, or more, never fewer; 0 means none
    uint64_t pins_hint         # where to look for a free pin first
    uint64_t retirements       # how many objects became RETIRED: each has a header of its own
    uint64_t _reserved_b[5]
    Region pins
    ObjectClass classes[85]

# A process uses an object in place. A pin begins with the store of owner, then of ref; it ends with
# the same two stores in the reverse order.
cdef struct Pin:
    uint64_t owner             # 0: free; process slot + 1. Taken by CAS.
    uint64_t ref

cdef inline void objects_are_pinned() noexcept nogil:
    static_assert(sizeof(Pin) == 16)
    static_assert(sizeof(ObjectClass) == 128)
    static_assert(sizeof(Objects) == 192 + CLASS_COUNT * 128)
    static_assert(sizeof(Objects) <= OBJECTS_HEADER_BYTES)
    static_assert(POOL_OBJECTS + CLASS_COUNT <= POOL_KINDS)
    static_assert(REGION_OBJECT_WORDS + CLASS_COUNT == REGION_MAX)

cdef inline uint64_t class_bytes(uint32_t which) noexcept nogil:
    """Bytes from one object of a class to the next."""
    if which < EVEN_COUNT:
        return 16ULL * (which + 1)
    if which < CLASS_BLOCKS:                   # 9 to 16 times 32, then 9 to 16 times 64, and so on
        return (9ULL + (which - EVEN_COUNT) % 8) << (5 + (which - EVEN_COUNT) // 8)
    return <uint64_t> RUN_BYTES_MIN << (which - CLASS_BLOCKS)

cdef inline uint32_t class_of(uint64_t length) noexcept nogil:
    """The class for objects of length bytes, at most LENGTH_MAX."""
    cdef uint64_t last = length + BLOCK_HEADER - 1             # from 0 on, the last byte needed
    cdef uint32_t power
    if last < EVEN_BYTES_MAX:
        return <uint32_t> (last >> 4)
    if last < BLOCK_OBJECT_MAX:
        power = 63 - count_leading_zeros(last)                 # 256 to 511: 8
        return EVEN_COUNT + (power - 8) * 8 + (<uint32_t> (last >> (power - 3)) - 8)
    last = length + RUN_HEADER - 1
    if last < RUN_BYTES_MIN:
        return CLASS_BLOCKS
    return CLASS_BLOCKS + 48 - count_leading_zeros(last)       # 65536 to 131071: the second

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
    BLOCK_SHARE = 2048         # a block of objects has this part of max_bytes, or up to 64 KiB,
    REST_SHARE = 64            # and more to leave at most this part of itself over
    BLOCK_CAPACITY_MAX = 4095  # 12 bits in a block word
    PARKED_MAX = 255           # free elements, and credits, that one depot can hold
    LINE_SPARE_COUNT = 16384   # lines beyond one for every six entries: in no chain, or for a split
    DEPOT_HIGH_MAX = 96        # bpf_mem_alloc's watermarks for elements up to 256 bytes
    DEPOT_BYTES_MAX = 24576    # and what one depot parks of larger ones
    DEPOT_SHARE = 16           # all depots of objects together park a sixteenth of max_bytes
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
    uint64_t rest              # bytes of a block behind its last object
    uint64_t inverse           # of classes in blocks: 2 ** 64 / capacity, rounded up
    uint64_t reserved          # objects of block 0 that are never given out
    uint64_t depot_high        # of objects: a depot with more than this gives some back
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
        PoolView *pool, uint64_t stride, uint64_t object_count, uint32_t kind,
        bint small_blocks) noexcept nogil:
    cdef uint64_t unit = PAGE_BYTES
    cdef uint64_t rest = stride
    while rest % 2 == 0 and unit > 1:      # objects that together fill whole pages
        rest //= 2
        unit //= 2
    cdef uint64_t groups
    if kind == POOL_LINES:
        groups = 1                         # lines are few: a page of them at a time
    elif small_blocks or object_count * stride <= POOL_BYTES_SMALL:
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
    pool.depot_high = pool.rest = pool.inverse = 0
    pool.words_region = REGION_LINE_WORDS if kind else REGION_ELEMENT_WORDS

cdef inline uint64_t class_block_bytes(uint64_t bytes, uint64_t max_bytes) noexcept nogil:
    """Bytes of a block of objects of a small or middle class."""
    cdef uint64_t block = max_bytes // BLOCK_SHARE // PAGE_BYTES * PAGE_BYTES
    block = PAGE_BYTES if block < PAGE_BYTES else block
    block = BLOCK_BYTES_LARGE if block > BLOCK_BYTES_LARGE else block
    while block < 2 * bytes or block % bytes * REST_SHARE > block:     # at most 30 turns
        block += PAGE_BYTES
    return block if block // bytes <= BLOCK_CAPACITY_MAX else (
        BLOCK_CAPACITY_MAX * bytes // PAGE_BYTES * PAGE_BYTES)

cdef inline void class_view_init(
        PoolView *pool, uint32_t which, uint64_t max_bytes, uint64_t depot_count) noexcept nogil:
    """The pool of a small or middle class: max_bytes of objects all of this class."""
    cdef uint64_t bytes = class_bytes(which)
    cdef uint64_t count = max_bytes // bytes + 1
    cdef uint64_t parked = max_bytes // (DEPOT_SHARE * CLASS_SMALL * depot_count)
    if count > OBJECT_INDEX_MAX - BLOCK_CAPACITY_MAX:
        count = OBJECT_INDEX_MAX - BLOCK_CAPACITY_MAX
    pool.stride = bytes
    pool.block_bytes = pool.first_bytes = class_block_bytes(bytes, max_bytes)
    pool.capacity = pool.block_bytes // bytes
    pool.rest = pool.block_bytes - pool.capacity * bytes
    pool.inverse = 0xFFFFFFFFFFFFFFFFULL // pool.capacity + 1
    pool.block_count = (count + pool.capacity - 1) // pool.capacity
    pool.object_count = pool.block_count * pool.capacity
    pool.kind = POOL_OBJECTS + which
    pool.words_region = REGION_OBJECT_WORDS + which
    pool.reserved = which < CLASS_SMALL
    pool.depot_high = 0
    if which >= CLASS_SMALL:
        return
    parked = (parked if parked < DEPOT_BYTES_MAX else DEPOT_BYTES_MAX) // bytes
    pool.depot_high = 2 if parked < 2 else parked if parked < DEPOT_HIGH_MAX else DEPOT_HIGH_MAX

cdef inline bint pool_is_runs(PoolView *pool) noexcept nogil:
    """Whether each object of a pool is a run."""
    return pool.kind >= POOL_OBJECTS + CLASS_BLOCKS

cdef inline bint pool_has_depots(PoolView *pool) noexcept nogil:
    """Whether the objects of a class pass through depots."""
    return pool.kind < POOL_OBJECTS + CLASS_SMALL

cdef inline void run_view_init(
        PoolView *pool, uint64_t bytes, uint64_t count, uint32_t kind) noexcept nogil:
    """A pool of runs: each object is a block, of which one page is committed at first."""
    pool.stride = pool.block_bytes = bytes
    pool.first_bytes = PAGE_BYTES
    pool.capacity = 1
    pool.reserved = pool.depot_high = pool.rest = pool.inverse = 0
    pool.block_count = pool.object_count = count
    pool.kind = kind
    pool.words_region = REGION_OBJECT_WORDS + kind - POOL_OBJECTS
