# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Special fields of a value: words that a caller's bytes are never copied into, nor out of.
#
#   SPIN_LOCK   accepted because the kernel has it: any element can be locked without it
#   TIMER       a deadline, CLOCK_MONOTONIC in ns; 0: none. The entry is absent from then on
#   KPTR        a reference to an object (classes.pxd); 0: none
#   REFCOUNT    a number; 1 at first
#   BIRTH       in a cache: when the value was stored (births.pxd); this moment, at first
#   TAGS        in a cache with tags: those of the value (births.pxd); none, at first
#
# They behave like the kernel's: an insertion initialises them, an update frees what they refer to
# and initialises them again, and a copy for the caller has zeros there (but shows a REFCOUNT).
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport unlikely
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.layout cimport (
    SPECIAL_SPIN_LOCK, SPECIAL_TIMER, SPECIAL_KPTR, SPECIAL_REFCOUNT, SPECIAL_BIRTH, SPECIAL_TAGS,
    SPECIAL_MAX, REF_MAX, SCHEMA_MAX, Header,
)
from segment.geometry cimport Map
from segment.births cimport birth_now, value_bear

cdef inline bint fields_place(Map *map, const Header *header) noexcept nogil:
    """Note in map where the special fields are. False if what the header says is impossible."""
    cdef uint32_t index, other, kind, word
    map.field_count = map.ref_count = 0
    map.timer_word = map.birth_word = map.tags_word = 0
    if header.field_count > SPECIAL_MAX or header.schema_bytes > SCHEMA_MAX:
        return False
    for index in range(header.field_count):
        kind = header.fields[index].kind
        word = header.fields[index].offset // 8
        if not SPECIAL_SPIN_LOCK <= kind <= SPECIAL_TAGS or header.fields[index].offset % 8 or (
                <uint64_t> header.fields[index].offset + 8 > map.value_size):
            return False
        for other in range(index):
            if map.field_words[other] == word:
                return False
        if kind == SPECIAL_KPTR:
            if map.ref_count == REF_MAX or map.max_bytes == 0:
                return False
            map.ref_words[map.ref_count] = word
            map.ref_count += 1
        elif kind == SPECIAL_TIMER:
            if map.timer_word != 0:
                return False
            map.timer_word = word + 1
        elif kind == SPECIAL_BIRTH:
            if map.birth_word != 0 or map.cache_offset == 0:
                return False
            map.birth_word = word + 1
        elif kind == SPECIAL_TAGS:
            if map.tags_word != 0 or map.cache_offset == 0 or not map.has_tags:
                return False
            map.tags_word = word + 1
        map.field_words[index] = word
        map.field_kinds[index] = kind
    if map.birth_word != 0 and map.timer_word == 0 or map.tags_word != 0 and map.birth_word == 0:
        return False
    map.field_count = header.field_count
    map.words_only = map.words_only and map.field_count == 0
    return True

cdef inline void fields_blank(Map *map, uint64_t *value) noexcept nogil:
    """Zero the special fields in a private copy of a value, whose words may be unaligned. A
    REFCOUNT stays."""
    cdef uint32_t index
    for index in range(map.field_count):
        if map.field_kinds[index] != SPECIAL_REFCOUNT:
            value[map.field_words[index]] = 0

cdef inline void fields_begin(Map *map, uint64_t *value) noexcept nogil:
    """Initialise the special fields of a value that the caller supplied."""
    cdef uint32_t index
    for index in range(map.field_count):
        value[map.field_words[index]] = map.field_kinds[index] == SPECIAL_REFCOUNT
    if map.birth_word != 0:
        value_bear(map, value, birth_now(map), 0)

cdef inline void fields_keep(Map *map, uint64_t *value, const uint64_t *before) noexcept nogil:
    """Copy the special fields of the value before into a new value."""
    cdef uint32_t index
    for index in range(map.field_count):
        value[map.field_words[index]] = before[map.field_words[index]]

cdef inline bint field_meets(Map *map, uint64_t offset, uint64_t size) noexcept nogil:
    """Whether size bytes at offset overlap a special field other than a REFCOUNT."""
    cdef uint32_t index
    for index in range(map.field_count):
        if map.field_kinds[index] != SPECIAL_REFCOUNT and (
                offset < map.field_words[index] * 8 + 8 and offset + size > map.field_words[
                    index] * 8):
            return True
    return False

cdef inline bint deadline_passed(uint64_t deadline) noexcept nogil:
    return unlikely(deadline != 0) and clock_ns(CLOCK_MONOTONIC) >= <int64_t> deadline
