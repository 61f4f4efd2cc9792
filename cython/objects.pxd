# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Objects of any size: what a reference is, and where objects lie.
#
#   objects header 4 KiB | depots 64 B each, for each small class | pins 16 B each
#     | for each class: block words, then blocks
#
# Every class is a pool (pool.pxd) in a range of addresses of its own, so an object never changes
# its class and its index says where it is. The ranges are reserved, not committed; what all of them
# may commit together is the budget (budget.pxd).
#
#   small classes   16 to 4096 bytes as bpf_mem_alloc's, in blocks, with a depot for each CPU.
#                   An object: header 8 B | bytes
#   runs            8 KiB to 256 MiB, powers of two, each a block of its own of which only the pages
#                   in use are committed.     An object: header 8 B | link 8 B | pages 8 B | 40 B
#                   unused | bytes
#
# A reference is one word: index : 34, length : 30. The length decides the class. 0 refers to
# nothing: object 0 of a small class is never used, and runs have no length 0.
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport count_leading_zeros, static_assert
from layout cimport Region, Pool, Element, PAGE_BYTES

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
    uint64_t pins_active       # pins, rather too many than too few: 0 means none
    uint64_t pins_hint         # where a free pin was; a hint
    uint64_t _reserved_b[6]
    Region pins
    ObjectClass classes[27]

# Somebody uses an object directly. owner first, then ref; backwards when it ends.
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
    """The class of objects with so many bytes, at most LENGTH_MAX."""
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
    """The class of an object; CLASS_COUNT or more if there is none of that length."""
    return class_of(ref_length(ref)) if ref_length(ref) <= LENGTH_MAX else CLASS_COUNT

cdef inline uint64_t pages_of(uint64_t length) noexcept nogil:
    """Pages of a run that holds so many bytes."""
    return (length + RUN_HEADER + PAGE_BYTES - 1) // PAGE_BYTES

cdef inline uint64_t run_pages(Element *run) noexcept nogil:
    """Pages that are charged for a run: its word says 0 before it ever grew."""
    cdef uint64_t pages = run.words[1]
    return pages if pages != 0 else 1
