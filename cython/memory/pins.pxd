# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pins: they keep an object that a process uses in place, for as long as it likes (R2 for views,
# C1).
#
# A pin is a slot that holds a process and a reference. A process that wants to use an object finds
# an element with a reference to it, stores the pin, and loads the element's header again: if the
# header is unchanged, the object was not yet given up when the pin was stored. An operation that
# gives an object up first changes the element's header, then looks for pins. Each side stores, then
# makes a sequentially consistent fence, then looks, so one of them sees the other.
#
# An object that is found pinned becomes RETIRED and stays. After that, the context that retired it
# looks for pins once more, and each context that ends a pin looks at the object's header. The one
# that finds the object RETIRED and not pinned takes it by a CAS (retired_take) and frees it.
#
# The recovery of a dead process ends its pins. To end a pin, a context first names the object in
# owned_refs[0]; if it dies after that, its own recovery finds the name and looks at the object
# again.
from libc.stdint cimport uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, store_release_u64, add_relaxed_u64,
    cas_acq_rel_u64, fence_seq_cst, compiler_fence, likely,
)
from segment.status cimport Status, OK, FULL
from segment.layout cimport ELEMENT_ALLOC, ELEMENT_RETIRED, REGION_PINS, Element
from segment.words cimport (
    word_locked, element_state, element_header, object_header_retired, lock_bits,
)
from segment.classes cimport PIN_MAX, Pin
from segment.geometry cimport Map, region_usable
from memory.operation cimport Op
from memory.region cimport region_commit

cdef inline uint64_t pins_usable(Map *map) noexcept nogil:
    """How many pins may be touched: at most PIN_MAX."""
    return region_usable(map, REGION_PINS) // sizeof(Pin)

cdef inline bint pins_look(Op *op, uint64_t ref) noexcept nogil:
    """Whether any pin names an object. Costs a load for every pin."""
    cdef uint64_t index
    fence_seq_cst()                            # pairs with the fence in pin_set
    for index in range(pins_usable(op.map)):
        if load_acquire_u64(&op.map.pins[index].ref) == ref:
            return True
    return False

cdef inline bint pins_find(Op *op, uint64_t ref) noexcept nogil:
    """Whether an object that no element refers to any more is pinned. The caller has made a
    sequentially consistent fence after the last reference was gone (object_own); that fence pairs
    with the one in pin_set."""
    if likely(load_relaxed_u64(&op.map.objects.pins_active) == 0):
        return False
    return pins_look(op, ref)

cdef inline bint retired_take(Op *op, Element *thing, uint64_t ref) noexcept nogil:
    """RETIRED -> ALLOC of this context, unless it is pinned or another context was first."""
    # Acquire: pairs with the release in pins_hold_back.
    cdef uint64_t header = load_acquire_u64(&thing.header)
    if likely(element_state(header) != ELEMENT_RETIRED) or word_locked(header):
        return False
    if pins_look(op, ref):
        return False
    return cas_acq_rel_u64(
        &thing.header, header, element_header(header, ELEMENT_ALLOC, lock_bits(op.self_index)))

cdef inline bint pins_hold_back(Op *op, Element *thing, uint64_t ref) noexcept nogil:
    """Retire an object of this context's, ALLOC, that was found pinned. False: it is no longer
    pinned, and is this context's again."""
    # Release: the context that takes the object sees it whole; pairs with the acquire in
    # retired_take.
    store_release_u64(&thing.header, object_header_retired(
        thing.header, add_relaxed_u64(&op.map.objects.retirements, 1)))
    return not retired_take(op, thing, ref)

cdef inline Status pin_claim(Op *op, uint64_t owner, uint64_t *index) noexcept nogil:
    """Claim a free pin for owner. FULL: all PIN_MAX pins are taken; NO_MEMORY, BUSY."""
    cdef uint64_t at, turn, count
    cdef Status status
    cdef int _
    for _ in range(2):
        count = pins_usable(op.map)
        for turn in range(count):
            at = (load_relaxed_u64(&op.map.objects.pins_hint) + turn) % count
            if load_relaxed_u64(&op.map.pins[at].owner) == 0 and cas_acq_rel_u64(
                    &op.map.pins[at].owner, 0, owner):
                store_relaxed_u64(&op.map.objects.pins_hint, at + 1)
                index[0] = at
                return OK
        if count >= PIN_MAX:
            return FULL
        status = region_commit(op, REGION_PINS, (count + 1) * sizeof(Pin))
        if status != OK:
            return status
    return FULL

cdef inline void pin_set(Op *op, uint64_t index, uint64_t ref) noexcept nogil:
    """Make the claimed pin name an object. The caller then checks whether that was in time."""
    add_relaxed_u64(&op.map.objects.pins_active, 1)
    store_release_u64(&op.map.pins[index].ref, ref)
    fence_seq_cst()                            # pairs with the fences in pins_find and pins_look

cdef inline uint64_t pin_clear(Op *op, uint64_t index) noexcept nogil:
    """End a pin. owned_refs[0], which must be 0, then names its object; the caller frees that."""
    cdef Pin *pin = &op.map.pins[index]
    cdef uint64_t ref = load_relaxed_u64(&pin.ref)
    op.context.debt |= 1
    store_relaxed_u64(&op.context.owned_refs[0], ref)
    compiler_fence()
    # Release: after the last use of the object; pairs with the acquire in pins_look.
    store_release_u64(&pin.ref, 0)
    fence_seq_cst()                            # the pin is gone before the object is looked at
    if ref != 0:
        add_relaxed_u64(&op.map.objects.pins_active, <uint64_t> -1)
    store_release_u64(&pin.owner, 0)
    return ref
