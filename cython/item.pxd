# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Entries with objects, as SharedDict uses them: whole operations beside those of map.pxd.
#
# An entry is looked up with its special fields (item_find). Who wants the object it refers to
# copies that too, and then asks element_stands; or pins it first (pins.pxd) and then asks. To store
# one, the context gets its objects (item_object), fills them, and calls map_update: the objects are
# the context's until the element has them.
from libc.stdint cimport uint8_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from atomics cimport likely, unlikely, load_relaxed_u64
from status cimport Status, OK, ABSENT, CORRUPT, NO_MEMORY, OUT_OF_BYTES, RETRY, NEED_OBJECTS
from layout cimport ELEMENT_LOCKED, element_state, ELEMENT_UPD
from objects cimport class_of, ref_length
from geometry cimport Map, element_value
from special cimport deadline_is_over
from lock cimport Op, OP_KEEP_SHIFT
from supply cimport block_commit
from heap cimport heap_reclaim, heap_take, name_read, object_stands, ref_bytes, ref_sound
from chain cimport Found
from element cimport element_is_lost, element_read_whole
from reference cimport element_replace, element_stands
from table cimport table_guess
from lookup cimport READ_TRIES_MAX, map_find, bucket_find
from remove cimport WRITE_TRIES_MAX, map_delete_held

cdef inline uint64_t item_deadline(Map *map, const uint64_t *value) noexcept nogil:
    """When an entry expires, CLOCK_MONOTONIC in ns; 0: never."""
    return value[map.timer_word - 1] if map.timer_word != 0 else 0

cdef inline Status item_find(
        Map *map, uint32_t hash, const uint8_t *key, Found *found, uint64_t *value) noexcept nogil:
    """Copy the value of key, special fields and all. OK, ABSENT, CORRUPT; RETRY after
    READ_TRIES_MAX changes under our eyes. An expired entry is found."""
    cdef Status status
    cdef int _
    for _ in range(READ_TRIES_MAX):
        status = map_find(map, hash, key, found)
        if likely(status == OK):
            if likely(element_read_whole(map, found, map.key_size, value, map.value_size)):
                return OK
            if unlikely(element_is_lost(found)):
                return CORRUPT
        elif status != RETRY:
            return status
    return RETRY

cdef inline bint item_glance(
        Map *map, uint32_t hash, const uint8_t *key, uint64_t key_size, uint64_t word,
        uint64_t *number, uint64_t *deadline) noexcept nogil:
    """The first look of item_find, for one word of the value and the deadline, as straight code.
    False: not there, or not to be settled so."""
    cdef Found found
    cdef uint64_t at = table_guess(map, hash)
    cdef uint64_t *value
    if bucket_find(map, &at, hash, key, key_size, &found) != OK or unlikely(
            element_state(found.header) == ELEMENT_UPD):
        return False
    value = element_value(map, found.element)
    number[0] = load_relaxed_u64(value + word)
    deadline[0] = load_relaxed_u64(value + map.timer_word - 1) if map.timer_word != 0 else 0
    return element_stands(&found)

cdef inline Status item_object(
        Op *op, uint64_t slot, const uint8_t *source, uint64_t length) noexcept nogil:
    """A new object with these bytes, into names[slot], unless there is one. OK, NO_MEMORY,
    OUT_OF_BYTES, CORRUPT; BUSY or RETRY: call again."""
    cdef Status status = OK
    cdef bint scavenge = False
    cdef uint64_t ref = name_read(op, slot)
    cdef int _
    if ref != 0:
        return OK if ref_length(ref) == length else CORRUPT
    for _ in range(WRITE_TRIES_MAX):
        status = heap_take(op, slot, length, scavenge)
        if status == NEED_OBJECTS:
            status = block_commit(op, &op.map.classes[class_of(length)])
            if status == OK:
                status = RETRY
        if (status == NO_MEMORY or status == OUT_OF_BYTES) and not scavenge:
            heap_reclaim(op)
            scavenge = True
            status = RETRY
        if status != RETRY:
            break
    if status != OK or length == 0:
        return status
    ref = name_read(op, slot)
    if unlikely(ref == 0 or ref_length(ref) != length):    # only in a damaged segment
        return CORRUPT
    memcpy(ref_bytes(op.map, ref), source, length)
    return OK

cdef inline bint item_expired(Map *map, const uint64_t *value) noexcept nogil:
    return map.timer_word != 0 and deadline_is_over(value[map.timer_word - 1])

cdef inline Status item_expire(Op *op, uint64_t *value) noexcept nogil:
    """Delete the entry of op's key if it has expired. OK: it was; ABSENT: it is not there, or has
    not. BUSY or RETRY: call again. An entry that a section holds is left alone."""
    cdef Found found
    cdef Status status = item_find(op.map, op.hash, op.key, &found, value)
    if status != OK:
        return status
    if not item_expired(op.map, value) or element_state(found.header) == ELEMENT_LOCKED:
        return ABSENT
    return map_delete_held(op, found.header, NULL)

cdef inline Status item_touch(Op *op, uint64_t deadline, uint64_t *value) noexcept nogil:
    """Set the deadline of an entry that has not expired. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = item_find(op.map, op.hash, op.key, &found, value)
    if status != OK:
        return status
    if item_expired(op.map, value):
        return ABSENT
    value[op.map.timer_word - 1] = deadline
    op.options |= 7 << OP_KEEP_SHIFT           # its references stay
    return element_replace(op, &found, <const uint8_t *> value, 0)

cdef inline const uint8_t *item_bytes(
        Map *map, uint64_t ref, uint64_t *length) noexcept nogil:
    """Where an object's bytes are; NULL if ref is 0, or there is no such object any more, or, in a
    damaged segment, never was. To be asked inside an operation."""
    if unlikely(ref == 0 or not ref_sound(map, ref) or not object_stands(map, ref)):
        return NULL
    length[0] = ref_length(ref)
    return ref_bytes(map, ref)
