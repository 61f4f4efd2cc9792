# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Objects of any size: taking an object, and giving it back (C1, M1).
#
# An object always has an owner. Either its header says ALLOC and names a context, and that context
# has a reference to it in owned_refs; or it is LIVE, and one element has the reference; or it is
# RETIRED, and only pins keep it (pins.pxd). Small objects pass through a depot of this CPU, as
# elements do; others come from their pool, and runs grow to the pages they need while a context
# owns them.
#
# context.owned_refs has two slots for each reference of a value: 0 to REF_MAX - 1 are for new
# objects, those from REF_MAX on for replaced or dropped ones. A reference there is a hint for
# recovery; only the object's header says whether this context owns it. Once the object has another
# owner, the slot is cleared before the context touches a depot or a pool again.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, fence_seq_cst, compiler_fence, likely,
    unlikely,
)
from segment.status cimport (
    Status, OK, ABSENT, BUSY, NO_MEMORY, CORRUPT, OUT_OF_BYTES, RETRY, NEED_OBJECTS,
)
from segment.layout cimport PAGE_BYTES, ELEMENT_ALLOC, BLOCK_READY, NAME_MAX, Element
from segment.words cimport word_held_by, element_state, block_state
from segment.classes cimport (
    CLASS_BLOCKS, CLASS_COUNT, BLOCK_HEADER, RUN_HEADER, class_of, ref_index, ref_length, ref_class,
    pages_of, run_pages, PoolView, pool_has_depots,
)
from segment.geometry cimport Map, pool_object, region_usable
from memory.operation cimport Op, WRITE_TRIES_MAX
from memory.budget cimport budget_charge, budget_used, budget_refund
from memory.region cimport memory_populate
from memory.pool cimport (
    block_commit, block_release, object_memory_ready, block_is_empty, pool_take, pool_give,
)
from memory.depot cimport depot_first, depot_drain, depot_take_object, depot_give_object
from memory.pins cimport pins_find, retired_take, pins_hold_back

cdef inline PoolView *ref_pool(Map *map, uint64_t ref) noexcept nogil:
    """The pool of an object; an arbitrary pool if ref is no valid reference."""
    cdef uint32_t which = ref_class(ref)
    return &map.classes[which if which < CLASS_COUNT else 0]

cdef inline bint ref_valid(Map *map, uint64_t ref) noexcept nogil:
    """Whether a reference names an object that can exist."""
    return ref_class(ref) < CLASS_COUNT and (
        ref_index(ref) < ref_pool(map, ref).object_count)

cdef inline Element *ref_object(Map *map, uint64_t ref) noexcept nogil:
    return pool_object(ref_pool(map, ref), ref_index(ref))

cdef inline uint8_t *ref_bytes(Map *map, uint64_t ref) noexcept nogil:
    """The bytes of an object, ref_length(ref) of them."""
    return <uint8_t *> ref_object(map, ref) + (
        BLOCK_HEADER if ref_class(ref) < CLASS_BLOCKS else RUN_HEADER)

cdef inline uint64_t owned_ref(Op *op, uint64_t slot) noexcept nogil:
    """owned_refs[slot]; 0 if that is no valid reference. It is read once, and what was read is
    checked: in a damaged segment another process may be writing there."""
    cdef uint64_t ref = load_relaxed_u64(&op.context.owned_refs[slot])
    return ref if ref_valid(op.map, ref) else 0

cdef inline bint object_memory_covers(Map *map, uint64_t ref) noexcept nogil:
    """Whether the memory of the object of a valid reference is committed, according to its block's
    word and, of a run, its pages. It stays while the caller's hazard names the object (ref_protect
    in reference.pxd)."""
    cdef PoolView *pool = ref_pool(map, ref)
    cdef uint64_t block = ref_index(ref) // pool.capacity
    if block >= region_usable(map, pool.words_region) // 8:
        return False
    # Acquire: pairs with the release of a block word; the memory is there.
    if block_state(load_acquire_u64(pool.words + block)) != BLOCK_READY:
        return False
    return pool.capacity > 1 or pages_of(ref_length(ref)) <= run_pages(ref_object(map, ref))

cdef inline Status run_grow(Op *op, PoolView *pool, uint64_t slot) noexcept nogil:
    """Commit all pages of the run that owned_refs[slot] names, which is this context's."""
    cdef uint64_t ref = owned_ref(op, slot)
    cdef Element *run = pool_object(pool, ref_index(ref))
    cdef uint64_t wanted = pages_of(ref_length(ref))
    cdef uint64_t pages
    cdef Status status
    if ref_pool(op.map, ref) != pool:          # only in a damaged segment
        return CORRUPT
    pages = run_pages(run)
    status = budget_refund(op)
    if status == OK and wanted > pages:
        op.context.pages_wanted = wanted * 8 + slot
        compiler_fence()
        status = budget_charge(op, wanted - pages, op.map.pages_spare)
        if status == OK:
            store_relaxed_u64(&run.words[1], wanted)
        compiler_fence()
        op.context.pages_wanted = 0
        budget_used(op)
    if status == OK and wanted > 1:
        # The first page is committed already. So may be pages that an earlier object had:
        # populating them again costs little.
        status = memory_populate(
            op, <uint8_t *> run + PAGE_BYTES, (wanted - 1) * PAGE_BYTES)
    return status

cdef inline Status object_take(
        Op *op, uint64_t slot, uint64_t length, bint any_depot) noexcept nogil:
    """Take an object of length bytes, at most LENGTH_MAX, into owned_refs[slot], which is 0. It is
    ALLOC and this context's. NEED_OBJECTS, NO_MEMORY, OUT_OF_BYTES, RETRY, CORRUPT: nothing is
    taken. BUSY: as these, or a run that could not grow is still named, to be given back later."""
    cdef PoolView *pool = &op.map.classes[class_of(length)]
    cdef Status status
    op.context.debt |= 1
    compiler_fence()
    if pool_has_depots(pool):
        return depot_take_object(op, pool, slot, length, any_depot)
    status = pool_take(op, pool, &op.context.owned_refs[slot], length)
    if status == OK and pool.capacity == 1:
        status = run_grow(op, pool, slot)
        if status != OK and object_free(op, slot) != OK:
            status = BUSY
    return status

cdef inline Status object_own(Op *op, uint64_t slot, uint64_t ref) noexcept nogil:
    """OK if the object of ref, which is in owned_refs[slot], is this context's. ABSENT: it is not,
    and the slot is cleared. BUSY: its block is held. A retired object that is no longer pinned
    becomes this context's."""
    cdef Element *thing
    cdef Status status = ABSENT
    if ref != 0:
        fence_seq_cst()                        # pairs with those in looks_are_ordered, pin_set
        thing = ref_object(op.map, ref)
        status = object_memory_ready(op, ref_pool(op.map, ref), ref_index(ref))
        if status == OK and not retired_take(op, thing, ref) and not (
                word_held_by(load_acquire_u64(&thing.header), op.self_index)
                and element_state(thing.header) == ELEMENT_ALLOC):
            status = ABSENT
    if status == ABSENT:
        store_relaxed_u64(&op.context.owned_refs[slot], 0)
        compiler_fence()
    return status

cdef inline Status object_free(Op *op, uint64_t slot) noexcept nogil:
    """Give back the object that owned_refs[slot] names, if it is this context's and not pinned, and
    clear the slot. BUSY, RETRY: the slot still names it."""
    cdef uint64_t ref = owned_ref(op, slot)
    cdef PoolView *pool = ref_pool(op.map, ref)
    cdef Status status = object_own(op, slot, ref)
    if status != OK:
        return OK if status == ABSENT else status
    if unlikely(pins_find(op, ref)) and pins_hold_back(op, ref_object(op.map, ref), ref):
        store_relaxed_u64(&op.context.owned_refs[slot], 0)
        compiler_fence()
        return OK
    if pool_has_depots(pool):
        return depot_give_object(op, pool, slot, ref)
    return pool_give(op, pool, ref_index(ref), &op.context.owned_refs[slot])

cdef inline Status owned_refs_free(Op *op) noexcept nogil:
    """Give back every object of this context's, and the pages it owes. BUSY, RETRY: some remain."""
    cdef uint64_t slot
    cdef Status status = OK
    cdef Status one
    if op.map.objects == NULL:                 # there is nothing to owe
        op.context.debt = 0
        return OK
    for slot in range(NAME_MAX):
        if op.context.owned_refs[slot] != 0:
            one = object_free(op, slot)
            if one != OK:
                status = one
    one = budget_refund(op)
    if one != OK:
        status = one
    if status == OK:
        op.context.debt = 0
    return status

cdef inline void objects_reclaim(Op *op) noexcept nogil:
    """Give back the memory of every empty block of objects, for a caller that found no memory. It
    loads the word of every block."""
    cdef uint64_t index, block, limit
    cdef uint32_t which
    cdef PoolView *pool
    for which in range(CLASS_COUNT):
        pool = &op.map.classes[which]
        if pool_has_depots(pool):
            for index in range(op.map.depot_count):
                depot_drain(op, depot_first(op.map, pool) + index, 0)
        limit = load_relaxed_u64(&pool.shared.frontier)
        for block in range(limit if limit < pool.block_count else pool.block_count):
            if object_memory_ready(op, pool, block * pool.capacity) == OK and block_is_empty(
                    pool, block, load_relaxed_u64(pool.words + block)):
                block_release(op, pool, block)

cdef inline Status leftovers_free(Op *op) noexcept nogil:
    """Before an operation stores references: give back the objects that a deletion in the same
    operation could not. They lie where its own new objects will. BUSY, RETRY: call again."""
    if likely(op.made != 0 or op.context.debt == 0):
        return OK
    return owned_refs_free(op)

cdef inline Status object_make(
        Op *op, uint64_t slot, const uint8_t *source, uint64_t length) noexcept nogil:
    """Make a new object with these bytes in owned_refs[slot], unless this operation has done so.
    OK, NO_MEMORY, OUT_OF_BYTES, CORRUPT; BUSY or RETRY: call again."""
    cdef Status status = OK
    cdef bint any_depot = False
    cdef uint64_t ref = owned_ref(op, slot)
    cdef int _
    if op.made >> slot & 1 and ref != 0:
        return OK if ref_length(ref) == length else CORRUPT
    status = leftovers_free(op)
    if status == OK and unlikely(owned_ref(op, slot) != 0):
        status = object_free(op, slot)         # a run that was left, beside an object that is made
    if status != OK:
        return status
    for _ in range(WRITE_TRIES_MAX):
        status = object_take(op, slot, length, any_depot)
        if status == NEED_OBJECTS:
            status = block_commit(op, &op.map.classes[class_of(length)])
            if status == OK:
                status = RETRY
        if (status == NO_MEMORY or status == OUT_OF_BYTES) and not any_depot:
            if op.map.cache == NULL:           # a cache evicts first (evict_for_room)
                objects_reclaim(op)
            any_depot = True
            status = RETRY
        if status != RETRY:
            break
    op.made |= <uint32_t> (status == OK) << slot
    if status != OK or length == 0:
        return status
    ref = owned_ref(op, slot)
    if unlikely(ref == 0 or ref_length(ref) != length):    # only in a damaged segment
        return CORRUPT
    memcpy(ref_bytes(op.map, ref), source, length)
    return OK
