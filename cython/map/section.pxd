# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Sections: an element held LOCKED by one thread for as long as it likes (F_LOCK, L1).
#
#   open     LIVE -> LOCKED, in the name of a context that belongs to the section alone, and a copy
#            of the value. The context then rests: it is inside no operation, so the section keeps
#            no memory from going back.
#   commit   the new value is stored in the context's redo buffer; LOCKED -> UPD by a CAS, from
#            which on the new value counts; it is copied over the old one; LIVE.
#   abandon  LOCKED -> LIVE by a CAS.
#   remove   LOCKED -> DEAD, under the bucket's lock.
#
# While a section is open, readers read the value, other writers and sections wait, and a deletion
# of the element without F_LOCK cuts the section off: it changes the header, which never has the
# same value again. The element's memory may even be gone; so the end of a section begins with an
# ordinary search for the key, and touches the element only if the search finds it with that header.
#
# If the owner is killed while its section is open, the element becomes LIVE with the old value;
# after the CAS to UPD, recovery completes the new value (recover.pxd). context.target names the
# element during the whole section.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, cas_acq_rel_u64, fence_acquire, unlikely, copy_out, copy_in,
)
from segment.status cimport Status, OK, ABSENT, RETRY
from segment.layout cimport ELEMENT_LIVE, ELEMENT_UPD, ELEMENT_LOCKED
from segment.words cimport element_header, lock_bits
from segment.geometry cimport element_value, context_redo
from segment.fields cimport fields_blank
from memory.operation cimport OP_RAW_FIELDS, Op, WRITE_TRIES_MAX
from map.bell cimport element_changed, section_ended
from map.chain cimport Found
from map.element cimport element_hold, element_redo
from map.reference cimport element_replace
from map.read cimport READ_TRIES_MAX, map_find
from map.remove cimport map_delete_held
from map.write cimport map_insert, delete_if_expired

# What the owner keeps of a section, in its own memory.
cdef struct Section:
    uint64_t held              # the header as LOCKED
    uint32_t index             # of the element


cdef inline Status section_open(
        Op *op, Section *section, const uint8_t *create, uint8_t *value) noexcept nogil:
    """Lock the element of a key and copy its value. An absent key is inserted with the value
    create, if that is not NULL. OK, ABSENT, FULL, NO_MEMORY; BUSY or RETRY: call again."""
    cdef Found found
    cdef Status status = RETRY
    cdef bint any_depot = False
    cdef int _
    for _ in range(WRITE_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, &found)
        if unlikely(op.map.timer_word != 0) and status == OK:
            status = delete_if_expired(op, &found)
        if status == OK:
            status = element_hold(op, &found, ELEMENT_LOCKED, &section.held)
            if status == OK:
                section.index = found.index
                copy_out(value, element_value(op.map, found.element), op.map.value_size)
                if op.map.field_count != 0 and not op.options & OP_RAW_FIELDS:
                    fields_blank(op.map, <uint64_t *> value)
                # The copy is read before the header is loaded again: a deletion may have cut this
                # section off, and the element may have another entry's value. Pairs with the
                # release stores of headers.
                fence_acquire()
                if load_relaxed_u64(&found.element.header) != section.held:
                    status = RETRY
        elif status == ABSENT and create != NULL:
            status = map_insert(op, create, &found, &any_depot)
            if status == OK:
                op.element_filled = False  # by the entry that was inserted
                status = RETRY             # the key is present now, unless it is deleted again
        if status != RETRY:
            break
    return status

cdef inline Status section_find(Op *op, const Section *section, Found *found) noexcept nogil:
    """The section's element, if it is still there; else ABSENT. RETRY: call again."""
    cdef Status status = RETRY
    cdef int _
    for _ in range(READ_TRIES_MAX):
        status = map_find(op.map, op.hash, op.key, found)
        if status != RETRY:
            break
    if status == OK and (found.index != section.index or found.header != section.held):
        return ABSENT
    return status

cdef inline Status section_commit(
        Op *op, const Section *section, const uint8_t *value) noexcept nogil:
    """Store value and end the section. ABSENT: the key was deleted during the section; nothing is
    stored."""
    cdef Found found
    cdef uint64_t held = element_header(section.held, ELEMENT_UPD, lock_bits(op.self_index))
    cdef Status status = section_find(op, section, &found)
    if status != OK:
        return status
    if op.map.field_count != 0:
        status = element_replace(op, &found, value, section.held)
    else:
        copy_in(context_redo(op.context), value, op.map.value_size)
        # Release: the redo buffer, for readers that meet UPD; pairs with the acquire of the header
        # in chain_find.
        if not cas_acq_rel_u64(&found.element.header, section.held, held):
            return ABSENT
        element_redo(op, found.element, held)
    if status == OK:
        element_changed(op, op.key, section.index)
    return status

cdef inline Status section_abandon(Op *op, const Section *section) noexcept nogil:
    """End the section with the value as it was. ABSENT: the key was deleted during the section."""
    cdef Found found
    cdef Status status = section_find(op, section, &found)
    if status != OK:
        return status
    # Release: nothing was written; the order is that of element_release.
    if not cas_acq_rel_u64(
            &found.element.header, section.held, element_header(section.held, ELEMENT_LIVE, 0)):
        return ABSENT
    section_ended(op.map, section.index)
    return OK

cdef inline Status section_remove(Op *op, const Section *section) noexcept nogil:
    """Delete the key and end the section. ABSENT: the key was deleted during the section. BUSY or
    RETRY: call again."""
    return map_delete_held(op, section.held, NULL)
