# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Looking a key up: what readers do, and how every write begins.
#
# A search begins in the bucket that the table word suggests, and goes on to the buckets to which
# the levels lead. A hit counts in whichever bucket it is found. If a slot names an element after
# the element's header was read, the element is in the map (chain.pxd). That holds for the second
# reference that a split or merge makes too: deleting the element takes the lock of the bucket that
# its hash belongs to, which the splitter, or the process that recovers it, holds until one of the
# two references is gone. Only a miss has to be found in the bucket that covers the hash, and is
# validated there.
#
# read_fast makes the first step of a search only, as straight code without a loop around it: nearly
# every lookup ends there. If it cannot decide, the caller calls map_lookup or map_contains.
# read_word_fast is its shortest path. Its length counts: a processor looks some 350 to 450
# instructions ahead, and only the cache misses within that distance overlap (DESIGN.md, section
# 17).
#
# An entry with objects, as SharedDict uses them, is looked up with its special fields (entry_find).
# A reader that needs the object too copies or pins it (pins.pxd), and then calls element_unchanged.
#
# Upholds: R1, R2, W1 (a miss is validated by the bucket's version).
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, load_acquire_u32, fence_acquire, likely, unlikely,
    count_trailing_zeros, match7, read_u64,
)
from segment.status cimport Status, OK, ABSENT, CORRUPT, RETRY
from segment.layout cimport (
    LOCK_MASK, ELEMENT_LIVE, ELEMENT_LOCKED, ELEMENT_UPD, ELEMENT_VERSION_ONE,
    Bucket,
)
from segment.words cimport bucket_level_plus1, element_state, word_locked
from segment.classes cimport ref_length
from segment.geometry cimport Map, bucket_at, element_at, element_value
from segment.births cimport value_is_outdated
from segment.fields cimport deadline_passed
from memory.operation cimport Op, lock_busy
from memory.object cimport ref_valid, ref_bytes, object_memory_covers
from map.chain cimport Found, chain_find, key_matches
from map.element cimport (
    element_read, element_read_whole, element_expired, element_is_stuck, element_unchanged,
)
from map.table cimport FOLLOW_MAX, NOWHERE, level_covers, table_guess, table_follow

cdef enum:
    READ_TRIES_MAX = 64        # then the caller yields the processor and reads again

cdef inline Status bucket_find(
        Map *map, uint64_t *at, uint32_t hash, const uint8_t *key, uint64_t key_size,
        Found *found) noexcept nogil:
    """Search bucket at. OK: found is filled. ABSENT: validated, and found has the bucket and its
    header. RETRY: search bucket at again, which may be another one now."""
    cdef Bucket *bucket = bucket_at(map, at[0])
    # Acquire: pairs with the release stores of levels; the slots read next are at least as new.
    cdef uint64_t header = load_acquire_u64(&bucket.header)
    cdef Status status = chain_find(map, bucket, hash, key, key_size, found)
    if status != ABSENT:
        return status
    if unlikely(not level_covers(bucket_level_plus1(header), at[0], hash)):
        at[0] = table_follow(map, hash, at[0], bucket_level_plus1(header))
        return RETRY
    # All slots are read before the header is loaded again; pairs with the release fences in
    # chain.pxd and table.pxd.
    fence_acquire()
    if unlikely((load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK):
        return RETRY
    found.header = header
    found.bucket = at[0]
    return ABSENT

cdef inline Status map_find(
        Map *map, uint32_t hash, const uint8_t *key, Found *found) noexcept nogil:
    """Search the map for key. OK: found is filled. ABSENT: validated. RETRY; CORRUPT."""
    cdef uint64_t at = table_guess(map, hash)
    cdef uint64_t before
    cdef Status status
    cdef int led = 0                       # moves to another bucket: at most two for each level
    cdef int _
    for _ in range(FOLLOW_MAX):
        before = at
        status = bucket_find(map, &at, hash, key, map.key_size, found)
        if status != RETRY:
            return status
        if unlikely(at == NOWHERE):
            return CORRUPT
        led += at != before
    return CORRUPT if led == FOLLOW_MAX else RETRY     # one search never meets that many resizes

cdef inline Status map_lookup(
        Map *map, uint32_t hash, const uint8_t *key, void *value) noexcept nogil:
    """Copy the value of key. OK, ABSENT, CORRUPT; RETRY if the map changed during each of
    READ_TRIES_MAX attempts."""
    cdef Found found
    cdef Status status
    cdef bint over
    cdef int _
    for _ in range(READ_TRIES_MAX):
        status = map_find(map, hash, key, &found)
        over = status == OK and element_expired(map, &found)
        if status == OK and likely(
                element_read(map, &found, map.key_size, value, map.value_size)):
            return ABSENT if unlikely(over) else OK
        if status == OK and unlikely(element_is_stuck(&found)):
            return CORRUPT
        if status == ABSENT or status == CORRUPT:
            return status
    return RETRY

cdef inline Status map_contains(Map *map, uint32_t hash, const uint8_t *key) noexcept nogil:
    cdef Found found
    cdef Status status = RETRY
    cdef bint over
    cdef int _
    for _ in range(READ_TRIES_MAX):
        status = map_find(map, hash, key, &found)
        over = status == OK and element_expired(map, &found)
        if status == OK and unlikely(not element_unchanged(&found)):
            status = RETRY
        elif unlikely(over):
            status = ABSENT
        if status != RETRY:
            break
    return status

cdef inline Status find_once(
        Map *map, uint32_t hash, const uint8_t *key, Found *found) noexcept nogil:
    """The first step of map_find as straight code, for keys of 8 bytes, and of 16, as a SharedDict
    has for texts. RETRY: call map_find."""
    cdef uint64_t at = table_guess(map, hash)
    if likely(map.key_size == 8):
        return bucket_find(map, &at, hash, key, 8, found)
    if likely(map.key_size == 16):
        return bucket_find(map, &at, hash, key, 16, found)
    return RETRY

cdef inline bint slot_holds_key(
        Map *map, uint32_t *slot, uint32_t index, const uint8_t *key, uint64_t key_size,
        Found *found) noexcept nogil:
    """Whether slot, from which index was read, leads to key in an element that nobody holds. Fills
    found.element, header and index. False: nothing is known."""
    if unlikely(index - 1 >= map.element_max - 1):
        return False
    found.index = index
    found.element = element_at(map, index)
    # Acquire: pairs with the release stores of LIVE; key and value are of this version or newer.
    found.header = load_acquire_u64(&found.element.header)
    if unlikely(element_state(found.header) != ELEMENT_LIVE):
        return False
    if unlikely(not key_matches(found.element, key, key_size)):
        return False
    # An element's header counts for the map only while a slot names the element (chain_find).
    return load_acquire_u32(slot) == index

cdef inline bint slot_reads_word(
        Map *map, uint32_t *slot, uint32_t index, uint64_t key, uint64_t *value) noexcept nogil:
    """slot_holds_key in a map of words only, and copy the element's value if value is not NULL."""
    cdef Found found
    if unlikely(not slot_holds_key(map, slot, index, <const uint8_t *> &key, 8, &found)):
        return False
    if value != NULL:
        value[0] = load_relaxed_u64(&found.element.words[1])
    return element_unchanged(&found)

cdef inline uint32_t *first_slot(Bucket *line, uint32_t hash, uint32_t *index) noexcept nogil:
    """The first slot of a line that has the hash's tag, and the index in it; NULL if none has."""
    cdef uint32_t mask = match7(line.tags, hash)
    cdef uint32_t *slot
    if unlikely(mask == 0):
        return NULL
    slot = &line.indices[count_trailing_zeros(mask)]
    # Acquire: pairs with the release store of the index in chain_append.
    index[0] = load_acquire_u32(slot)
    return slot

cdef inline bint read_word_fast(
        Map *map, uint64_t at, uint32_t hash, uint64_t key, uint64_t *value) noexcept nogil:
    """The usual hit of read_fast_at in a map of words only: the first slot with the hash's tag
    leads to the key, and the element is not held. False: nothing is known yet."""
    cdef uint32_t index = 0
    cdef uint32_t *slot = first_slot(bucket_at(map, at), hash, &index)
    return likely(slot != NULL) and slot_reads_word(map, slot, index, key, value)

cdef inline Status read_sized_fast(
        Map *map, uint64_t at, uint32_t hash, const uint8_t *key, uint64_t key_size, void *value,
        uint64_t value_size) noexcept nogil:
    cdef Found found
    cdef Status status = bucket_find(map, &at, hash, key, key_size, &found)
    if likely(status == OK):
        if unlikely(map.field_count != 0):
            return RETRY                       # map_lookup handles special fields
        if value == NULL:
            return OK if likely(element_unchanged(&found)) else RETRY
        if unlikely(not element_read_whole(map, &found, key_size, value, value_size)):
            return RETRY
    return status

cdef inline Status read_fast_at(
        Map *map, uint64_t at, uint32_t hash, const uint8_t *key, void *value) noexcept nogil:
    """read_fast in bucket at, which an earlier call of table_guess returned."""
    if likely(map.words_only):
        if likely(read_word_fast(map, at, hash, read_u64(key), <uint64_t *> value)):
            return OK
        return read_sized_fast(map, at, hash, key, 8, value, 8)
    return read_sized_fast(map, at, hash, key, map.key_size, value, map.value_size)

cdef inline Status read_fast(
        Map *map, uint32_t hash, const uint8_t *key, void *value) noexcept nogil:
    """The first step of map_lookup, or of map_contains if value is NULL, as straight code. RETRY:
    it could not decide."""
    return read_fast_at(map, table_guess(map, hash), hash, key, value)

cdef inline uint64_t entry_deadline(Map *map, const uint64_t *value) noexcept nogil:
    """When an entry expires, CLOCK_MONOTONIC in ns; 0: never."""
    return value[map.timer_word - 1] if map.timer_word != 0 else 0

cdef inline Status entry_find(
        Map *map, uint32_t hash, const uint8_t *key, Found *found, uint64_t *value) noexcept nogil:
    """Copy the value of key with its special fields. OK, ABSENT, CORRUPT; RETRY if the map changed
    during each of READ_TRIES_MAX attempts. An expired entry counts as present."""
    cdef Status status
    cdef int _
    for _ in range(READ_TRIES_MAX):
        status = map_find(map, hash, key, found)
        if likely(status == OK):
            if likely(element_read_whole(map, found, map.key_size, value, map.value_size)):
                return OK
            if unlikely(element_is_stuck(found)):
                return CORRUPT
        elif status != RETRY:
            return status
    return RETRY

cdef inline bint entry_first(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size,
        Found *found) noexcept nogil:
    """The usual hit of bucket_find: the first slot with the hash's tag leads to the key, and nobody
    holds the element. Fills what slot_holds_key fills. False: nothing is known yet."""
    cdef uint32_t index = 0
    cdef uint32_t *slot = first_slot(bucket_at(map, table_guess(map, hash)), hash, &index)
    return likely(slot != NULL) and slot_holds_key(map, slot, index, key, key_size, found)

cdef inline bint entry_number(
        Map *map, const Found *found, uint64_t word, uint64_t *number,
        uint64_t *deadline) noexcept nogil:
    """Copy one word of the value, and the deadline, from an element that is not UPD. False: the
    element has changed since it was found."""
    cdef uint64_t *value = element_value(map, found.element)
    number[0] = load_relaxed_u64(value + word)
    deadline[0] = load_relaxed_u64(value + map.timer_word - 1) if map.timer_word != 0 else 0
    return element_unchanged(found)

cdef inline bint entry_read_fast(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size, uint64_t word,
        uint64_t *number, uint64_t *deadline) noexcept nogil:
    """The first step of entry_find, for one word of the value and the deadline. False: the key is
    absent, or this path could not decide."""
    cdef Found found
    cdef uint64_t at = table_guess(map, hash)
    if bucket_find(map, &at, hash, key, key_size, &found) != OK or unlikely(
            element_state(found.header) == ELEMENT_UPD):
        return False
    return entry_number(map, &found, word, number, deadline)

cdef inline bint entry_read_first(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size, uint64_t word,
        uint64_t *number, uint64_t *deadline) noexcept nogil:
    """The usual hit of entry_read_fast, as straight code. False: nothing is known yet."""
    cdef Found found
    return likely(entry_first(map, hash, key, key_size, &found)) and (
        entry_number(map, &found, word, number, deadline))

cdef inline bint cached_number(
        Map *map, const Found *found, uint64_t word, uint64_t *number,
        uint64_t *deadline) noexcept nogil:
    """entry_number for a cache without tags, where the birth is behind the deadline. False also if
    the entry is outdated."""
    cdef uint64_t *value = element_value(map, found.element)
    cdef uint64_t birth = load_relaxed_u64(value + map.timer_word)
    number[0] = load_relaxed_u64(value + word)
    deadline[0] = load_relaxed_u64(value + map.timer_word - 1)
    return likely(birth >= load_relaxed_u64(&map.cache.cleared)) and element_unchanged(found)

cdef inline bint cached_find_fast(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size, uint64_t word,
        Found *found, uint64_t *number, uint64_t *deadline) noexcept nogil:
    """entry_read_fast for a cache without tags."""
    cdef uint64_t at = table_guess(map, hash)
    if bucket_find(map, &at, hash, key, key_size, found) != OK or unlikely(
            element_state(found.header) == ELEMENT_UPD):
        return False
    return cached_number(map, found, word, number, deadline)

cdef inline bint cached_find_first(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size, uint64_t word,
        Found *found, uint64_t *number, uint64_t *deadline) noexcept nogil:
    """The usual hit of cached_find_fast, as straight code. False: nothing is known yet."""
    return likely(entry_first(map, hash, key, key_size, found)) and (
        cached_number(map, found, word, number, deadline))

cdef inline bint entry_expired(Map *map, const uint64_t *value) noexcept nogil:
    return map.timer_word != 0 and (
        value_is_outdated(map, value) or deadline_passed(value[map.timer_word - 1]))

cdef inline const uint8_t *entry_bytes(
        Map *map, uint64_t ref, uint64_t *length) noexcept nogil:
    """The address of an object's bytes; NULL if ref is 0, or the object is gone, or, in a damaged
    segment, never existed. Call it inside an operation."""
    if unlikely(ref == 0 or not ref_valid(map, ref) or not object_memory_covers(map, ref)):
        return NULL
    length[0] = ref_length(ref)
    return ref_bytes(map, ref)

# How a key was found: an absent one with zeros.
cdef struct Sight:
    uint64_t element
    uint64_t version           # of its header. While a section is open: the one before it began
    uint64_t deadline          # 0: none

cdef inline Status key_settled(Op *op, Sight *sight) noexcept nogil:
    """Look at op's key at a moment when no writer may be in the middle of changing it. OK; ABSENT,
    also if it has expired; BUSY: one may; RETRY, CORRUPT. What a look at the value finds afterwards
    is at least as new."""
    cdef Map *map = op.map
    cdef Found found
    cdef uint32_t state
    cdef bint outdated
    cdef Status status = map_find(map, op.hash, op.key, &found)
    sight.element = sight.version = sight.deadline = 0
    if status == ABSENT and word_locked(found.header):
        return lock_busy(op, &bucket_at(map, found.bucket).header, found.header)
    if status != OK:
        return status
    state = element_state(found.header)
    if state != ELEMENT_LIVE and state != ELEMENT_LOCKED:
        return lock_busy(op, &found.element.header, found.header)
    if map.timer_word != 0:
        sight.deadline = load_relaxed_u64(
            element_value(map, found.element) + map.timer_word - 1)
    outdated = value_is_outdated(map, element_value(map, found.element))
    if not element_unchanged(&found):
        return RETRY
    if outdated or deadline_passed(sight.deadline):
        sight.deadline = 0
        return ABSENT
    sight.element = found.index
    sight.version = found.header // ELEMENT_VERSION_ONE - (state == ELEMENT_LOCKED)
    return OK
