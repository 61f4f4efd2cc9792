# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Packing and unpacking the words that layout.pxd draws: lock words of every kind, and what their
# payloads hold. Pure arithmetic: nothing here reads or writes the segment.
from libc.stdint cimport uint32_t, uint64_t
from segment.layout cimport (
    OWNER_SHIFT, OWNER_LIMIT, LOCK_BIT, LOCK_MASK, LEVEL_SHIFT, LEVEL_LIMIT, STATE_SHIFT,
    STATE_LIMIT, ELEMENT_VERSION_ONE, ELEMENT_LIVE, ELEMENT_RETIRED, OBJECT_ELEMENT_SHIFT,
    TARGET_LEAD_SHIFT, TARGET_LEAD_LIMIT,
)

# Lock words of every kind.
cdef inline bint word_locked(uint64_t word) noexcept nogil:
    return word & LOCK_BIT

cdef inline uint32_t word_owner(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> OWNER_SHIFT) & OWNER_LIMIT

cdef inline uint64_t word_taken(uint64_t word, uint32_t context_index) noexcept nogil:
    return (word & ~LOCK_MASK) | (<uint64_t> context_index << OWNER_SHIFT) | LOCK_BIT

cdef inline uint64_t word_released(uint64_t word) noexcept nogil:
    return word & ~LOCK_MASK

cdef inline bint word_held_by(uint64_t word, uint32_t context_index) noexcept nogil:
    return (word & LOCK_MASK) == ((<uint64_t> context_index << OWNER_SHIFT) | LOCK_BIT)

# Bucket headers.
cdef inline uint32_t bucket_level_plus1(uint64_t header) noexcept nogil:
    return <uint32_t> (header >> LEVEL_SHIFT) & <uint32_t> LEVEL_LIMIT

cdef inline uint64_t bucket_with_level(uint64_t header, uint32_t level_plus1) noexcept nogil:
    return (header & ~(LEVEL_LIMIT << LEVEL_SHIFT)) | (<uint64_t> level_plus1 << LEVEL_SHIFT)

# Element and line headers.
cdef inline uint32_t element_state(uint64_t header) noexcept nogil:
    return <uint32_t> (header >> STATE_SHIFT) & <uint32_t> STATE_LIMIT

cdef inline uint64_t element_header(
        uint64_t before, uint32_t state, uint64_t lock_bits) noexcept nogil:
    """The header that follows before: the next version, with this state and these lock bits."""
    return (((before & ~(LOCK_MASK | (STATE_LIMIT << STATE_SHIFT))) + ELEMENT_VERSION_ONE)
            | (<uint64_t> state << STATE_SHIFT) | lock_bits)

cdef inline uint64_t lock_bits(uint32_t context_index) noexcept nogil:
    return (<uint64_t> context_index << OWNER_SHIFT) | LOCK_BIT

# Headers of objects. In a cache, a LIVE one has the element that refers to it in the upper half,
# and the lower bits of its version below.
cdef inline uint64_t object_header_live(uint64_t before, uint64_t element) noexcept nogil:
    return <uint32_t> element_header(before, ELEMENT_LIVE, 0) | element << OBJECT_ELEMENT_SHIFT

cdef inline uint64_t object_header_retired(uint64_t before, uint64_t number) noexcept nogil:
    """A header of its own for each retirement, since a CAS decides which context takes the
    object."""
    return <uint32_t> element_header(before, ELEMENT_RETIRED, 0) | number << OBJECT_ELEMENT_SHIFT

cdef inline uint64_t object_element(uint64_t header) noexcept nogil:
    return header >> OBJECT_ELEMENT_SHIFT

# A context's target: the element, and of a journal's member the lead.
cdef inline uint64_t target_index(uint64_t word) noexcept nogil:
    return <uint32_t> word

cdef inline uint64_t target_lead(uint64_t word) noexcept nogil:
    """The context of the lead, plus one; 0 if the target belongs to no journal."""
    return word >> TARGET_LEAD_SHIFT & TARGET_LEAD_LIMIT

cdef inline uint64_t target_in_journal(
        uint64_t index, uint64_t lead, uint64_t flags) noexcept nogil:
    return index | (lead + 1) << TARGET_LEAD_SHIFT | flags

# Depot words.
cdef inline uint32_t depot_count(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 16) & 0xFF

cdef inline uint32_t depot_credit(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 24) & 0xFF

cdef inline uint32_t depot_head(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 32)

cdef inline uint64_t depot_word(uint32_t head, uint32_t count, uint32_t credit) noexcept nogil:
    return (<uint64_t> head << 32) | (<uint64_t> credit << 24) | (<uint64_t> count << 16)

# Block words.
cdef inline uint32_t block_state(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 16) & 3

cdef inline uint32_t block_fresh(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 28) & 0xFFF

cdef inline uint32_t block_free(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 40) & 0xFFF

cdef inline uint32_t block_head(uint64_t word) noexcept nogil:
    return <uint32_t> (word >> 52)

cdef inline uint64_t block_word(
        uint32_t state, uint32_t fresh, uint32_t free_count, uint32_t head) noexcept nogil:
    return ((<uint64_t> head << 52) | (<uint64_t> free_count << 40) | (<uint64_t> fresh << 28)
            | (<uint64_t> state << 16))
