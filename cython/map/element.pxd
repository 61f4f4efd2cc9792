# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# One element: reading its value, changing it in place, and fairness among the operations that wait
# to change it.
#
# The header is a seqlock that names its owner and never makes a reader wait:
#
#   LIVE v --CAS--> UPD v+1 ----------> LIVE v+2      any value: the redo buffer holds the new one
#                                                     from before the CAS (commit) until LIVE
#   LIVE v --CAS--> ULOCK v+1 --------> LIVE v+2      one aligned word: its store is the commit
#                        \--> UPD v+2 -> LIVE v+3      read-modify-write of more than a word
#   LIVE v --CAS--> LOCKED v+1 --CAS--> UPD v+2 ...     a section (section.pxd): open for as long as
#                         \-----CAS--> LIVE v+2        its owner likes; a deletion of the element
#                                                     changes the header, and the owner's CAS fails
#
# A reader copies from the element (LIVE, ULOCK, LOCKED) or from the owner's redo buffer (UPD), then
# reads the header again: if it is unchanged, the copy is complete. In ULOCK at most one aligned
# word of the value changes, by one store, so a copy made word by word is the old value or the new
# one; in every other state a copy may be torn: then the header has changed, and tells the reader.
#
# Fairness. A free lock goes to the first operation that takes it, and a waiter that sleeps is late.
# A waiter that has waited STARVING_NS for an element stores in header.starving which element it
# waits for, and a time, some milliseconds ahead, until which other operations do not begin to take
# it. One waiter at a time can hold the word; another starving waiter gets it when it is free. The
# word is a hint and no lock: nothing depends on it. A waiter sets the word to 0 when its operation
# ends, with the element or without; the word of a process that died expires, and the next reader of
# the word sets it to 0. The time has 31 bits, so a word that no operation read would count again
# after 26 days, for 9 ms.
#
#     starving   until, in 2^20 ns : 31   element : 32   zero : 1    not a lock word: bit 0 is 0
#
# Upholds: R1, R2, L1 (exclusive, undone or done by recovery), C1.
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, store_relaxed_u64, store_release_u64, cas_acq_rel_u64, fence_acquire,
    fence_release, compiler_fence, pause, likely, unlikely, read_u64, read_tail, copy_out,
    copy_out_words, copy_in, copy_words, words_equal,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from machine.number cimport NumberField, field_mask, field_compute
from segment.status cimport Status, OK, RETRY
from segment.layout cimport ELEMENT_LIVE, ELEMENT_UPD, ELEMENT_ULOCK, Element, Header
from segment.words cimport word_locked, word_owner, element_state, element_header, lock_bits
from segment.geometry cimport Map, element_value, context_at, context_redo, contexts_usable
from segment.births cimport value_is_outdated
from segment.fields cimport fields_blank, deadline_passed
from memory.operation cimport SPIN_PAUSES_MAX, Op, lock_busy
from map.bell cimport key_changed, key_changed_in
from map.chain cimport Found

cdef enum:
    STARVING_NS = 4000000          # of waiting for one element
    STARVING_AHEAD_NS = 8388608    # a live waiter renews its word much sooner
    STARVING_UNITS_MAX = 9         # units of 2^20 ns that a word can lie ahead
    STARVING_TIME_BITS = 31

cdef inline uint64_t starving_word(uint64_t index, int64_t until_ns) noexcept nogil:
    return ((<uint64_t> until_ns >> 20) << (64 - STARVING_TIME_BITS)) | index << 1

cdef inline bint starving_is_over(uint64_t word, int64_t now_ns) noexcept nogil:
    cdef uint64_t ahead = (word >> (64 - STARVING_TIME_BITS)) - (<uint64_t> now_ns >> 20)
    return ahead & ((1ULL << STARVING_TIME_BITS) - 1) > STARVING_UNITS_MAX

cdef inline bint starving_is_another(Op *op, uint32_t index) noexcept nogil:
    """Whether another operation is starving for this element."""
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    if word == 0 or word == op.starving or <uint32_t> (word >> 1) != index:
        return False
    if not starving_is_over(word, clock_ns(CLOCK_MONOTONIC)):
        return True
    # The waiter that stored the word died: set it to 0, before its 31-bit time comes round again.
    cas_acq_rel_u64(&op.map.header.starving, word, 0)
    return False

cdef inline void starving_say(Op *op, uint64_t index) noexcept nogil:
    """Claim the word for this operation, or renew the claim, unless another operation has it."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t word = load_relaxed_u64(&op.map.header.starving)
    cdef uint64_t mine = starving_word(index, now + STARVING_AHEAD_NS)
    if word == 0 or word == op.starving or starving_is_over(word, now):
        op.starving = mine if cas_acq_rel_u64(&op.map.header.starving, word, mine) else 0

cdef inline void starving_end(Op *op) noexcept nogil:
    """The operation has the element, or gave it up: set the word to 0, unless another has it."""
    cas_acq_rel_u64(&op.map.header.starving, op.starving, 0)
    op.starving = 0

cdef inline bint element_read(
        Map *map, const Found *found, uint64_t key_size, void *value,
        uint64_t value_size) noexcept nogil:
    """element_read_whole, and take the special fields out of the copy (fields_blank)."""
    cdef bint whole = element_read_whole(map, found, key_size, value, value_size)
    if unlikely(map.field_count != 0):
        fields_blank(map, <uint64_t *> value)
    return whole

cdef inline bint element_read_whole(
        Map *map, const Found *found, uint64_t key_size, void *value,
        uint64_t value_size) noexcept nogil:
    """Copy the value of an element as it was found; False if the element changed before the copy
    was complete. In a damaged segment the header may be UPD without a possible owner: then the
    result stays False (element_is_stuck)."""
    cdef uint64_t owner
    cdef uint64_t *source = &found.element.words[0] + (key_size + 7) // 8
    if unlikely(element_state(found.header) == ELEMENT_UPD):
        owner = word_owner(found.header)
        if not word_locked(found.header) or owner >= contexts_usable(map):
            return False                       # only in a damaged segment
        source = context_redo(context_at(map, owner))
    if value_size == 8:
        (<uint64_t *> value)[0] = load_relaxed_u64(source)
    elif value_size == 16:                     # of a SharedDict, with a reference or a deadline
        (<uint64_t *> value)[0] = load_relaxed_u64(source)
        (<uint64_t *> value)[1] = load_relaxed_u64(source + 1)
    elif unlikely(element_state(found.header) == ELEMENT_ULOCK):
        copy_out_words(value, source, value_size)
    else:
        copy_out(value, source, value_size)
    # The copy is read before the header is loaded again; pairs with the release fences of the
    # writers below.
    fence_acquire()
    return load_relaxed_u64(&found.element.header) == found.header

cdef inline bint element_expired(Map *map, const Found *found) noexcept nogil:
    """Whether an element's deadline has passed, or it is outdated. Call it before the header is
    loaded again: only if the header is unchanged was the deadline this entry's."""
    cdef uint64_t *value = &found.element.words[0] + map.key_words
    if likely(map.timer_word == 0):
        return False
    return value_is_outdated(map, value) or deadline_passed(
        load_relaxed_u64(value + map.timer_word - 1))

cdef inline bint element_is_stuck(const Found *found) noexcept nogil:
    """After element_read returned False: whether it will always return False."""
    return load_relaxed_u64(&found.element.header) == found.header

cdef inline bint element_unchanged(const Found *found) noexcept nogil:
    """Whether an element is still as it was found: only then was its key in the map."""
    # The slot and the key are read before the header is loaded again; pairs with the release fences
    # of the writers.
    fence_acquire()
    return load_relaxed_u64(&found.element.header) == found.header

cdef inline Status element_spin(Op *op, const Found *found) noexcept nogil:
    """Another operation holds the element: RETRY once the header has changed, BUSY if that takes
    more than SPIN_PAUSES_MAX pauses."""
    cdef int _
    for _ in range(SPIN_PAUSES_MAX):
        if load_relaxed_u64(&found.element.header) != found.header:
            return RETRY
        pause()
    return lock_busy(op, &found.element.header, found.header)

cdef inline Status element_hold(
        Op *op, const Found *found, uint32_t state, uint64_t *held) noexcept nogil:
    """LIVE -> state, if the element is as it was found. held receives the new header."""
    if word_locked(found.header):
        return element_spin(op, found)
    if unlikely(load_relaxed_u64(&op.map.header.starving) != 0) and starving_is_another(
            op, found.index):
        return lock_busy(op, &op.map.header.starving, load_relaxed_u64(&op.map.header.starving))
    held[0] = element_header(found.header, state, lock_bits(op.self_index))
    op.context.target = found.index
    compiler_fence()
    # Release: the redo buffer, for readers that meet UPD. Acquire: the value as the last owner left
    # it.
    if not cas_acq_rel_u64(&found.element.header, found.header, held[0]):
        return RETRY
    if unlikely(op.starving != 0):
        starving_end(op)
    # The header before the value's words; pairs with the acquire fence in element_read_whole.
    fence_release()
    return OK

cdef inline void element_release(Op *op, Element *element, uint64_t held) noexcept nogil:
    """UPD or ULOCK -> LIVE."""
    # Release: the value's words; pairs with the acquire of the header in chain_find.
    store_release_u64(&element.header, element_header(held, ELEMENT_LIVE, 0))
    # LIVE before the next store to the redo buffer: readers of the buffer load the header last.
    fence_release()

cdef inline Status element_update(
        Op *op, const Found *found, const uint8_t *value) noexcept nogil:
    """Replace the value. OK, RETRY if the element changed, BUSY if another operation holds it."""
    cdef Map *map = op.map
    cdef Header *header = map.header
    cdef uint64_t *words = element_value(map, found.element)
    cdef uint64_t held = 0
    cdef Status status
    if map.value_words == 1:
        status = element_hold(op, found, ELEMENT_ULOCK, &held)
        if status == OK:
            store_relaxed_u64(words, read_u64(value) if map.value_size == 8
                              else read_tail(value, map.value_size))
            element_release(op, found.element, held)
            key_changed_in(op, header)
        return status
    copy_in(context_redo(op.context), value, map.value_size)
    status = element_hold(op, found, ELEMENT_UPD, &held)
    if status == OK:
        element_redo(op, found.element, held)
        key_changed_in(op, header)
    return status

cdef inline void element_redo(Op *op, Element *element, uint64_t held) noexcept nogil:
    """The header is UPD and the redo buffer has the new value: copy it into the element, then LIVE.
    """
    # The header before the value's words; pairs with the acquire fence in element_read_whole.
    fence_release()
    copy_words(element_value(op.map, element), context_redo(op.context), op.map.value_words)
    element_release(op, element, held)

cdef inline void element_commit(Op *op, Element *element, uint64_t held) noexcept nogil:
    """ULOCK (the header held) -> UPD -> LIVE, with the value in the redo buffer."""
    held = element_header(held, ELEMENT_UPD, lock_bits(op.self_index))
    # Release: the redo buffer; pairs with the acquire of the header in chain_find.
    store_release_u64(&element.header, held)
    element_redo(op, element, held)
    key_changed(op)

cdef inline Status element_apply(
        Op *op, const Found *found, const NumberField *field, uint64_t *after) noexcept nogil:
    """Change one field of the value by its operation; after receives the field's new bits."""
    cdef Map *map = op.map
    cdef uint64_t *words = element_value(map, found.element)
    cdef uint64_t *word = words + (field.offset >> 3)
    cdef uint32_t shift = <uint32_t> (field.offset & 7) * 8
    cdef uint64_t *redo
    cdef uint64_t held = 0
    cdef uint64_t before
    cdef Status status = element_hold(op, found, ELEMENT_ULOCK, &held)
    if status != OK:
        return status
    if likely(shift + field.size * 8 <= 64):
        before = load_relaxed_u64(word)
        after[0] = field_compute(field, (before >> shift) & field_mask(field))
        store_relaxed_u64(word, (before & ~(field_mask(field) << shift)) | after[0] << shift)
        element_release(op, found.element, held)
        key_changed(op)
        return OK
    # The field crosses words: the whole value goes through the redo buffer, UPD commits.
    redo = context_redo(op.context)
    copy_words(redo, words, map.value_words)
    redo += field.offset >> 3
    before = redo[0] >> shift | redo[1] << (64 - shift)
    after[0] = field_compute(field, before & field_mask(field))
    # Atomic stores: a reader may still be copying an earlier value out of the redo buffer.
    store_relaxed_u64(redo, (redo[0] & ~(field_mask(field) << shift)) | after[0] << shift)
    store_relaxed_u64(redo + 1, (
        redo[1] & ~(field_mask(field) >> (64 - shift))) | after[0] >> (64 - shift))
    element_commit(op, found.element, held)
    return OK

cdef inline Status element_swap(
        Op *op, const Found *found, const uint8_t *expected, const uint8_t *value,
        uint8_t *old, bint *swapped) noexcept nogil:
    """Replace the value if it equals expected, or if expected is NULL. The value from before is
    copied to old, if that is not NULL, in either case."""
    cdef Map *map = op.map
    cdef uint64_t *words = element_value(map, found.element)
    cdef uint64_t held = 0
    cdef Status status = element_hold(op, found, ELEMENT_ULOCK, &held)
    if status != OK:
        return status
    swapped[0] = expected == NULL or words_equal(words, expected, map.value_size)
    if old != NULL:
        copy_out(old, words, map.value_size)
    if not swapped[0]:
        element_release(op, found.element, held)
    elif map.value_words == 1:
        store_relaxed_u64(words, read_tail(value, map.value_size))
        element_release(op, found.element, held)
        key_changed(op)
    else:
        copy_in(context_redo(op.context), value, map.value_size)
        element_commit(op, found.element, held)
    return OK
