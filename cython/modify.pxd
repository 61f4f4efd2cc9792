# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Whole operations that read and write a value in one step, and the lookup that waits.
#
# Loops of attempts as in map.pxd. The element is held (ULOCK) between reading and writing, for the
# time of a few instructions; nothing else can change it, and a reader sees the old value or the new
# one.
#
# Linearization points (W1): a field in one word: the word's store; everything else: the header's
# UPD; a swap that does not find what it expects: between taking the element and letting it go.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport likely, read_tail, unlikely
from status cimport Status, OK, ABSENT, RETRY
from layout cimport ELEMENT_LIVE, element_state
from lock cimport Op
from chain cimport Found
from field cimport Field
from element cimport element_apply, element_await, element_is_over, element_read, element_swap
from lookup cimport map_find, map_look
from remove cimport WRITE_TRIES_MAX
from map cimport map_insert, map_met


cdef inline Status map_apply(
        Op *op, const Field *field, const uint8_t *initial, uint64_t *after) noexcept nogil:
    """Change a field; after has its bits then. An absent key is inserted with the value initial, if
    that is not NULL, in which the field has the result already. OK, ABSENT, FULL, NO_MEMORY; BUSY
    or RETRY: call again."""
    cdef Found found
    cdef bint scavenge = False
    cdef Status status = map_look(op.map, op.hash, op.key, &found)
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        if unlikely(op.map.timer_word != 0) and status == OK:
            status = map_met(op, &found)
        if status == OK:
            status = element_apply(op, &found, field, after)
        elif status == ABSENT and initial != NULL:
            status = map_insert(op, initial, &found, &scavenge)
            if status == OK:
                after[0] = read_tail(initial + field.offset, field.size)
        if status != RETRY:
            break
        status = map_find(op.map, op.hash, op.key, &found)
    return status

cdef inline Status map_swap(
        Op *op, const uint8_t *expected, const uint8_t *value, uint8_t *old,
        bint *swapped) noexcept nogil:
    """Replace a value, if it is as expected or expected is NULL; the one before is copied to old if
    that is not NULL. OK, ABSENT; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = RETRY
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        if status == OK:
            status = element_swap(op, &found, expected, value, old, swapped)
        if status != RETRY:
            break
    return status

cdef inline Status map_lookup_unlocked(Op *op, void *value) noexcept nogil:
    """Copy a value at a moment when nobody holds its element (BPF_F_LOCK). OK, ABSENT; BUSY or
    RETRY: call again. Deletes nothing that has expired: the handle may be one that only reads."""
    cdef Found found
    cdef Status status = RETRY
    cdef bint over
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        over = status == OK and element_is_over(op.map, &found)
        if status == OK:
            if element_state(found.header) != ELEMENT_LIVE:
                status = element_await(op, &found)
            elif not likely(element_read(
                    op.map, &found, op.map.key_size, value, op.map.value_size)):
                status = RETRY
            elif unlikely(over):
                status = ABSENT
        if status != RETRY:
            break
    return status
