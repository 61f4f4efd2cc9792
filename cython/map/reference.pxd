# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# References: an element and the objects that belong to it (C1, R2).
#
#   attach     the element is still this context's (ALLOC): store the reference, object ALLOC ->
#              LIVE
#   exchange   in place, the element UPD: the redo buffer's references count from the CAS on; new
#              objects -> LIVE, replaced ones -> ALLOC, of this context; then the element LIVE
#   drop       the element is this context's (DEAD, ALLOC): object LIVE -> ALLOC; the reference 0;
#              object freed
#
# So a reference in an element says that the object belongs to the element, except while the
# object's header still names a context; that context holds the element then. The references of an
# element that is FREE are 0.
#
# A reader copies a reference with the value, names the object in its context and checks that the
# element still has it (ref_protect), uses the object, then reads the element's header again
# (element_unchanged): an object is freed only after that header has changed.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, cas_acq_rel_u64,
    fence_release, compiler_fence, copy_in, copy_words,
)
from segment.status cimport Status, OK, ABSENT
from segment.layout cimport ELEMENT_ALLOC, ELEMENT_LIVE, ELEMENT_UPD, REF_MAX, Element
from segment.words cimport (
    word_locked, word_held_by, element_state, element_header, object_header_live, lock_bits,
    target_index,
)
from segment.classes cimport ref_index
from segment.geometry cimport Map, element_value, context_redo
from segment.fields cimport fields_begin, fields_keep
from memory.operation cimport OP_RAW_FIELDS, OP_KEEP_SHIFT, Op
from memory.hazard cimport hazard_set
from memory.pool cimport object_memory_ready
from memory.object cimport ref_pool, ref_valid, ref_object, owned_ref, object_free, owned_refs_free
from map.rest cimport rest_shorten
from map.bell cimport key_changed
from map.chain cimport Found
from map.element cimport element_unchanged, element_spin, element_hold, element_release

cdef inline void object_attach(Op *op, uint64_t ref, uint64_t element) noexcept nogil:
    """ALLOC -> LIVE, if the object is this context's. A cache notes the index of the element."""
    cdef Element *thing = ref_object(op.map, ref)
    cdef uint64_t header = load_relaxed_u64(&thing.header)
    if word_held_by(header, op.self_index) and element_state(header) == ELEMENT_ALLOC:
        # Release: the object's bytes. A reader gets them, and the reference, by the element's
        # header.
        store_release_u64(
            &thing.header, element_header(header, ELEMENT_LIVE, 0) if op.map.cache == NULL
            else object_header_live(header, element))

cdef inline void object_detach(Op *op, uint64_t ref) noexcept nogil:
    """LIVE -> ALLOC of this context, which owns the element that has the reference."""
    cdef Element *thing = ref_object(op.map, ref)
    # Acquire: the object as its writer left it.
    cdef uint64_t header = load_acquire_u64(&thing.header)
    if element_state(header) == ELEMENT_LIVE and not word_locked(header):
        store_relaxed_u64(
            &thing.header, element_header(header, ELEMENT_ALLOC, lock_bits(op.self_index)))
    compiler_fence()

cdef inline void refs_attach(Op *op, Element *element) noexcept nogil:
    """Give the new objects to an element that is ALLOC, this context's, and filled."""
    cdef uint64_t *value = element_value(op.map, element)
    cdef uint64_t ref
    cdef uint32_t slot
    for slot in range(op.map.ref_count):
        ref = owned_ref(op, slot)
        store_relaxed_u64(value + op.map.ref_words[slot], ref)
        compiler_fence()
        if ref != 0:
            object_attach(op, ref, load_relaxed_u64(&op.context.element))
            compiler_fence()

cdef inline Status refs_detach(Op *op, Element *element) noexcept nogil:
    """Take the new objects back from an element that will not be inserted."""
    cdef uint64_t *value = element_value(op.map, element)
    cdef uint64_t ref
    cdef uint32_t slot
    for slot in range(op.map.ref_count):
        ref = owned_ref(op, slot)
        if ref != 0:
            object_detach(op, ref)
        store_relaxed_u64(value + op.map.ref_words[slot], 0)
        compiler_fence()
    return OK

cdef inline void refs_blank(Map *map, uint64_t *value) noexcept nogil:
    """Take the references out of a private copy of a value."""
    cdef uint32_t slot
    for slot in range(map.ref_count):
        value[map.ref_words[slot]] = 0

cdef inline void owned_refs_forget(Op *op) noexcept nogil:
    """Forget the new objects: from here on an element has them, and any context may free them."""
    cdef uint32_t slot
    compiler_fence()
    for slot in range(op.map.ref_count):
        store_relaxed_u64(&op.context.owned_refs[slot], 0)
    compiler_fence()

cdef inline Status refs_drop(Op *op, Element *element) noexcept nogil:
    """Free the objects of an element that is this context's. BUSY, RETRY: some are left."""
    cdef uint64_t *value = element_value(op.map, element)
    cdef uint64_t ref
    cdef uint32_t slot
    cdef Status status = OK
    for slot in range(op.map.ref_count):
        ref = load_relaxed_u64(value + op.map.ref_words[slot])
        if ref == 0:
            continue
        if op.context.owned_refs[slot] != 0 and op.context.owned_refs[slot] != ref:
            status = object_free(op, slot)
            if status != OK:
                return status
        if ref_valid(op.map, ref) and object_memory_ready(
                op, ref_pool(op.map, ref), ref_index(ref)) != ABSENT:
            op.context.debt |= 1
            store_relaxed_u64(&op.context.owned_refs[slot], ref)
            compiler_fence()
            object_detach(op, ref)
        store_relaxed_u64(value + op.map.ref_words[slot], 0)
        compiler_fence()
        status = object_free(op, slot)
        if status != OK:
            return status
    return status

cdef inline void refs_prepare(
        Op *op, const uint64_t *value, uint32_t keep, uint64_t *redo) noexcept nogil:
    """Store the references that will count in the redo buffer: those of the new objects, except at
    the places in the mask keep, which stay as the element has them. Name the replaced objects."""
    cdef uint64_t ref
    cdef uint32_t slot
    op.context.debt |= 1
    for slot in range(op.map.ref_count):
        ref = load_relaxed_u64(value + op.map.ref_words[slot])
        if keep >> slot & 1:
            redo[op.map.ref_words[slot]] = ref
        else:
            redo[op.map.ref_words[slot]] = owned_ref(op, slot)
            store_relaxed_u64(&op.context.owned_refs[REF_MAX + slot], ref)
    compiler_fence()

cdef inline void refs_unprepare(Op *op) noexcept nogil:
    cdef uint32_t slot
    compiler_fence()
    for slot in range(op.map.ref_count):
        store_relaxed_u64(&op.context.owned_refs[REF_MAX + slot], 0)
    compiler_fence()

cdef inline void refs_exchange(Op *op, Element *element) noexcept nogil:
    """The element is UPD, of this context: copy the redo buffer into it, attach the new objects and
    detach the replaced ones that the context names. Doing it again changes nothing."""
    cdef uint64_t *redo = context_redo(op.context)
    cdef uint64_t ref, old
    cdef uint32_t slot
    copy_words(element_value(op.map, element), redo, op.map.value_words)
    for slot in range(op.map.ref_count):
        ref = load_relaxed_u64(redo + op.map.ref_words[slot])
        old = owned_ref(op, REF_MAX + slot)
        if ref != 0 and ref_valid(op.map, ref):
            object_attach(op, ref, target_index(op.context.target))
            compiler_fence()
            if op.context.owned_refs[slot] == ref:  # a new object that was not used stays named
                store_relaxed_u64(&op.context.owned_refs[slot], 0)
        if old != 0 and old != ref:
            object_detach(op, old)
    compiler_fence()

cdef inline void references_fill(
        Op *op, Element *element, const uint8_t *value, bint of_section) noexcept nogil:
    """Fill the redo buffer with a value that has special fields, and name the replaced objects.
    of_section: its end keeps the fields, where another update begins them anew."""
    cdef uint64_t *redo = context_redo(op.context)
    cdef uint32_t keep = op.options >> OP_KEEP_SHIFT
    copy_in(redo, value, op.map.value_size)
    if not op.options & OP_RAW_FIELDS and of_section:
        fields_keep(op.map, redo, element_value(op.map, element))
        keep = (1 << REF_MAX) - 1
    elif not op.options & OP_RAW_FIELDS:
        fields_begin(op.map, redo)
    refs_prepare(op, element_value(op.map, element), keep, redo)

cdef inline void references_apply(Op *op, Element *element, uint64_t held) noexcept nogil:
    """The element is UPD, of this context: complete the value in it, then LIVE."""
    if op.map.timer_word != 0:
        rest_shorten(op.map, load_relaxed_u64(context_redo(op.context) + op.map.timer_word - 1))
    refs_exchange(op, element)
    element_release(op, element, held)

cdef inline Status element_replace(
        Op *op, const Found *found, const uint8_t *value, uint64_t section) noexcept nogil:
    """Replace a value with special fields: LIVE -> UPD -> LIVE, or, if section is the header of a
    section that this context has open, LOCKED -> UPD -> LIVE. OK, RETRY if the element changed,
    BUSY if another operation holds it, ABSENT if the section was cut off."""
    cdef Element *element = found.element
    cdef uint64_t held = element_header(section, ELEMENT_UPD, lock_bits(op.self_index))
    cdef Status status
    if word_locked(found.header) and found.header != section:
        return element_spin(op, found)
    references_fill(op, element, value, section != 0)
    if section == 0:
        status = element_hold(op, found, ELEMENT_UPD, &held)
    else:
        # Release: the redo buffer, for readers that meet UPD; pairs with the acquire of the header
        # in chain_find.
        status = OK if cas_acq_rel_u64(&element.header, section, held) else ABSENT
        fence_release()                        # the header before the value's words
    if status != OK:
        refs_unprepare(op)
        return status
    references_apply(op, element, held)
    key_changed(op)
    owned_refs_free(op)                           # an object that is BUSY stays named
    return OK

cdef inline bint ref_protect(Op *op, const Found *found, uint64_t ref) noexcept nogil:
    """Before an object is read: whether its element still has it. If so, the object's memory stays
    until the operation ends or protects another object (hazard.pxd)."""
    hazard_set(op, ref)
    return element_unchanged(found)
