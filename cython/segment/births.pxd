# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Births: how one store makes entries of a cache outdated, all of them or those with a tag. An
# outdated entry is as good as an expired one: absent, and the first to be evicted or swept.
#
#   invalidations   how many invalidations of the cache have begun
#   birth           a word of each value: the invalidations that had begun when the value was stored
#                   or, if it was computed by a claimant, before its computation began
#   cleared         the number of the last invalidation of everything
#   tag word        for each of 65,536 slots: the number of the last invalidation of its tags
#   tags            a word of each value, in a cache with tags: up to four slots; 0 is none
#
# An entry is outdated if its birth is less than cleared, or than the word of one of its tags.
#
#   invalidation                                 computation, or store
#   1 takes its number: invalidations + 1        a  loads invalidations: the birth
#   2 raises cleared or the tag word to it       b  reads what the value is made of
#                                                c  stores value, birth and tags, by one commit
#
# What the caller changed before 1 is what the invalidation is for. If a comes before 1, the birth
# is less than the number, and the value outdated after 2, whenever c comes. If a comes after 1, b
# reads what was changed (the acquire of a pairs with 1). A value stored after 2 has a birth of at
# least the number, and is not outdated by it.
#
# 2 commits, and never lowers: of two invalidations that end in the other order than they began, the
# later number stays. If 2 lowered the word, a value that was born between the two would count
# again. A process that dies between 1 and 2 has invalidated nothing, and its number is not used.
#
# The birth is a word of the value, so it changes with the value, by the commit of the same update.
# What changes a value in place (incr, update_with) keeps birth and tags: the new value is made of
# the old one. A reader compares a birth that it has read with the value (the header is loaded
# again); whether it sees a concurrent invalidation is the order of the two.
#
# Two tags with one slot are invalidated together: an entry may be outdated needlessly, but none
# stays that should be.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from machine.atomics cimport (
    add_seq_cst_u64, cas_seq_cst_u64, likely, load_acquire_u64, load_relaxed_u64, unlikely,
)
from machine.hashing cimport hash_key
from segment.layout cimport CONTEXT_MAX, ENTRY_TAGS_MAX, TAG_SLOTS
from segment.geometry cimport Map

cdef inline bint tags_are_outdated(Map *map, uint64_t tags, uint64_t birth) noexcept nogil:
    """Whether one of these tags was invalidated after a birth."""
    while tags != 0:                           # at most ENTRY_TAGS_MAX turns
        if birth < load_relaxed_u64(map.tag_words + (tags & (TAG_SLOTS - 1))):
            return True
        tags >>= 16
    return False

cdef inline bint value_is_outdated(Map *map, const uint64_t *value) noexcept nogil:
    """Whether a value was invalidated: an element's, whose header is then loaded again, or a copy
    with its special fields."""
    cdef uint64_t birth
    if likely(map.birth_word == 0):
        return False
    birth = load_relaxed_u64(value + map.birth_word - 1)
    if unlikely(birth < load_relaxed_u64(&map.cache.cleared)):
        return True
    return map.tags_word != 0 and tags_are_outdated(
        map, load_relaxed_u64(value + map.tags_word - 1), birth)

cdef inline uint64_t birth_now(Map *map) noexcept nogil:
    """The birth of a value that is stored, or begins to be computed, now. For a cache."""
    # Acquire: an invalidation's number, which was taken before; pairs with the CAS in invalidate.
    cdef uint64_t cleared = load_acquire_u64(&map.cache.cleared)
    # Acquire: what was changed before an invalidation that has begun; pairs with invalidate.
    cdef uint64_t birth = load_acquire_u64(&map.cache.invalidations)
    return birth if birth >= cleared else cleared      # the latter only in a damaged segment

cdef inline void value_bear(
        Map *map, uint64_t *value, uint64_t birth, uint64_t tags) noexcept nogil:
    """Give a private value its birth and tags, if it has room for them."""
    if map.birth_word != 0:
        value[map.birth_word - 1] = birth
    if map.tags_word != 0:
        value[map.tags_word - 1] = tags

cdef inline void invalidate(Map *map, uint64_t *word) noexcept nogil:
    """Outdate every entry that was born before now, and to which the word applies. For a cache."""
    # Release: what the caller changed before; pairs with birth_now.
    cdef uint64_t number = add_seq_cst_u64(&map.cache.invalidations, 1) + 1
    cdef uint64_t seen
    cdef uint64_t _
    # Each turn but the last meets another invalidation that began before; each has a context.
    for _ in range(CONTEXT_MAX + 1):
        seen = load_relaxed_u64(word)
        if seen >= number or cas_seq_cst_u64(word, seen, number):
            return

cdef inline uint64_t tag_slot(Map *map, const uint8_t *name, uint64_t size) noexcept nogil:
    """The slot of a tag with this name."""
    return 1 + hash_key(map.seeds, name, size) % (TAG_SLOTS - 1)
