# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Objects of any size: taking one, giving it back (C1, M1).
#
# An object is never ownerless. Either its header says ALLOC and names a context that has a
# reference to it among its names; or it is LIVE, and one element has the reference; or RETIRED:
# pins alone keep it (pins.pxd). Small ones pass through a depot of this CPU, as elements do; runs
# come from their pool and grow to the pages they need while they are the context's own.
#
# context.names has a place for each reference of a value, twice: 0 to REF_MAX - 1 for objects that
# are new, from REF_MAX on for those replaced or dropped. A name says "look there"; the header says
# whether the object is this context's. It is cleared before the context touches a depot again after
# the object has become somebody else's.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport (
    load_acquire_u64, load_relaxed_u64, store_relaxed_u64, compiler_fence, fence_seq_cst, unlikely,
)
from status cimport Status, OK, BUSY, CORRUPT, ABSENT
from layout cimport (
    BLOCK_READY, Depot, Element, PAGE_BYTES, NAME_MAX, ELEMENT_ALLOC, ELEMENT_FREE, block_state,
    element_state, lock_bits, word_held_by, depot_count, depot_head, depot_word,
)
from objects cimport (
    CLASS_COUNT, CLASS_SMALL, RUN_HEADER, SMALL_HEADER, class_of, pages_of, ref_class, ref_index,
    ref_length, ref_make, run_pages,
)
from blocks cimport DEPOT_HIGH_MAX, PARKED_MAX, PoolView
from geometry cimport Map, depot_at, pool_object, region_usable
from lock cimport Op, lock_busy, lock_release, header_set
from budget cimport budget_charge, budget_refund, budget_used
from commit cimport memory_populate
from supply cimport block_is_empty, block_release, object_there
from pool cimport pool_give, pool_take
from depot cimport depot_drain, depot_here, depot_hold, depot_refill
from pins cimport pins_find, pins_hold_back, retired_take


cdef inline PoolView *ref_pool(Map *map, uint64_t ref) noexcept nogil:
    """The pool of an object; some pool, if the reference is none."""
    cdef uint32_t which = ref_class(ref)
    return &map.classes[which if which < CLASS_COUNT else 0]

cdef inline bint ref_sound(Map *map, uint64_t ref) noexcept nogil:
    """Whether a reference names an object there could be."""
    return ref_class(ref) < CLASS_COUNT and (
        ref_index(ref) < ref_pool(map, ref).object_count)

cdef inline Element *ref_object(Map *map, uint64_t ref) noexcept nogil:
    return pool_object(ref_pool(map, ref), ref_index(ref))

cdef inline uint8_t *ref_bytes(Map *map, uint64_t ref) noexcept nogil:
    """The bytes of an object, ref_length(ref) of them."""
    return <uint8_t *> ref_object(map, ref) + (
        SMALL_HEADER if ref_class(ref) < CLASS_SMALL else RUN_HEADER)

cdef inline uint64_t name_read(Op *op, uint64_t slot) noexcept nogil:
    """What names[slot] names; 0 if that is nothing there could be. Read once, and checked as read:
    in a damaged segment somebody may be writing there."""
    cdef uint64_t ref = load_relaxed_u64(&op.context.names[slot])
    return ref if ref_sound(op.map, ref) else 0

cdef inline bint object_stands(Map *map, uint64_t ref) noexcept nogil:
    """Whether the memory of a sound reference's object is there, as the words say that are in
    charge of it. It stays while the caller's hazard names it (reference.pxd, ref_protect)."""
    cdef PoolView *pool = ref_pool(map, ref)
    cdef uint64_t block = ref_index(ref) // pool.capacity
    if block >= region_usable(map, pool.words_region) // 8:
        return False
    # Acquire: pairs with the release of a block word; the memory is there.
    if block_state(load_acquire_u64(pool.words + block)) != BLOCK_READY:
        return False
    return pool.capacity > 1 or pages_of(ref_length(ref)) <= run_pages(ref_object(map, ref))

cdef inline uint64_t stock_high(uint64_t bytes) noexcept nogil:
    """Free objects of a small class that a depot may hold: bpf_mem_alloc's, about 24 KiB."""
    return DEPOT_HIGH_MAX if bytes <= 256 else 24576 // bytes

cdef inline Status stock_take_from(
        Op *op, uint64_t index, PoolView *pool, uint64_t slot, uint64_t length) noexcept nogil:
    """Take an object out of depot index, refilled if it is empty, into names[slot]."""
    cdef Depot *depot = depot_at(op.map, index)
    cdef uint64_t held = 0
    cdef uint64_t batch = stock_high(pool.stride) // 2
    cdef uint64_t taken
    cdef Element *thing
    cdef Status status = depot_hold(op, index, &held, True)
    if status != OK:
        return status
    if depot_count(held) == 0:
        status = depot_refill(op, depot, pool, batch, &held)
    taken = depot_head(held)
    if status == OK and (taken == 0 or taken >= pool.object_count):
        status = CORRUPT
    if status != OK:
        lock_release(&depot.word, held)
        return status
    thing = pool_object(pool, taken)
    store_relaxed_u64(&op.context.names[slot], ref_make(taken, length))
    compiler_fence()
    held = depot_word(
        <uint32_t> load_relaxed_u64(&thing.words[0]), depot_count(held) - 1, 0)
    header_set(&thing.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()
    lock_release(&depot.word, held)
    return OK

cdef inline Status stock_take(
        Op *op, PoolView *pool, uint64_t slot, uint64_t length, bint scavenge) noexcept nogil:
    """Take a small object. With scavenge, where memory cannot be had, out of any depot."""
    cdef uint64_t first = (class_of(length) + 1) * op.map.depot_count
    cdef uint64_t here = depot_here(op.map)
    cdef uint64_t turn, index
    cdef Status status = stock_take_from(op, first + here, pool, slot, length)
    if status == OK or status == BUSY or not scavenge:
        return status
    for turn in range(1, op.map.depot_count):
        index = first + ((here + turn) & (op.map.depot_count - 1))
        if depot_count(load_relaxed_u64(&depot_at(op.map, index).word)) != 0 and (
                stock_take_from(op, index, pool, slot, length) == OK):
            return OK
    return status

cdef inline Status stock_give(
        Op *op, PoolView *pool, uint64_t slot, uint64_t ref) noexcept nogil:
    """Give back the small object ref, which names[slot] names, ALLOC; clear the name."""
    cdef uint64_t given = ref_index(ref)
    cdef uint64_t first = (ref_class(ref) + 1) * op.map.depot_count
    cdef uint64_t here = depot_here(op.map)
    cdef uint64_t keep = stock_high(pool.stride)
    cdef Element *thing = pool_object(pool, given)
    cdef uint64_t held = 0
    cdef uint64_t index = first
    cdef uint64_t turn
    cdef Status status = BUSY
    for turn in range(op.map.depot_count + 1):  # the last turn waits for the first depot
        index = first + ((here + turn) & (op.map.depot_count - 1))
        status = depot_hold(op, index, &held, turn == op.map.depot_count)
        if status == OK:
            if depot_count(held) < PARKED_MAX:
                break
            lock_release(&depot_at(op.map, index).word, held)
            status = lock_busy(op, &depot_at(op.map, index).word, held)
    if status != OK:
        return status
    store_relaxed_u64(&thing.words[0], depot_head(held))
    compiler_fence()
    header_set(&thing.header, ELEMENT_FREE, 0)
    compiler_fence()
    lock_release(&depot_at(op.map, index).word, depot_word(
        <uint32_t> given, depot_count(held) + 1, 0))
    compiler_fence()
    store_relaxed_u64(&op.context.names[slot], 0)
    compiler_fence()
    if unlikely(depot_count(held) >= keep):
        depot_drain(op, index, keep // 2)
    return OK

cdef inline Status run_grow(Op *op, PoolView *pool, uint64_t slot) noexcept nogil:
    """Have all pages of the run that names[slot] names, which is this context's."""
    cdef uint64_t ref = name_read(op, slot)
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
        status = budget_charge(op, wanted - pages)
        if status == OK:
            store_relaxed_u64(&run.words[1], wanted)
        compiler_fence()
        op.context.pages_wanted = 0
        budget_used(op)
    if status == OK and wanted > 1:
        # What an earlier object had is there, and populating it costs little; the first page is.
        status = memory_populate(
            op, <uint8_t *> run + PAGE_BYTES, (wanted - 1) * PAGE_BYTES)
    return status

cdef inline Status heap_take(
        Op *op, uint64_t slot, uint64_t length, bint scavenge) noexcept nogil:
    """An object of length bytes, at most LENGTH_MAX, into names[slot], which must be 0; ALLOC, of
    this context. NEED_OBJECTS, NO_MEMORY, OUT_OF_BYTES, BUSY, RETRY, CORRUPT: nothing taken."""
    cdef PoolView *pool = &op.map.classes[class_of(length)]
    cdef Status status
    op.context.owing |= 1
    compiler_fence()
    if pool.capacity > 1:
        return stock_take(op, pool, slot, length, scavenge)
    status = pool_take(op, pool, &op.context.names[slot], length)
    if status == OK:
        status = run_grow(op, pool, slot)
        if status != OK:
            object_free(op, slot)
    return status

cdef inline Status object_own(Op *op, uint64_t slot, uint64_t ref) noexcept nogil:
    """Whether ref, which names[slot] names, is an object of this context's: OK. ABSENT: it is not,
    and the name is cleared. BUSY: its block is held. A retired object that nothing pins any more
    becomes it."""
    cdef Element *thing
    cdef Status status = ABSENT
    if ref != 0:
        fence_seq_cst()                        # pairs with those in looks_are_ordered, pin_set
        thing = ref_object(op.map, ref)
        status = object_there(op, ref_pool(op.map, ref), ref_index(ref))
        if status == OK and not retired_take(op, thing, ref) and not (
                word_held_by(load_acquire_u64(&thing.header), op.self_index)
                and element_state(thing.header) == ELEMENT_ALLOC):
            status = ABSENT
    if status == ABSENT:
        store_relaxed_u64(&op.context.names[slot], 0)
        compiler_fence()
    return status

cdef inline Status object_free(Op *op, uint64_t slot) noexcept nogil:
    """Give back the object that names[slot] names, if it is this context's and not pinned, and
    clear the name. BUSY, RETRY: it stays named."""
    cdef uint64_t ref = name_read(op, slot)
    cdef PoolView *pool = ref_pool(op.map, ref)
    cdef Status status = object_own(op, slot, ref)
    if status != OK:
        return OK if status == ABSENT else status
    if unlikely(pins_find(op, ref)) and pins_hold_back(op, ref_object(op.map, ref), ref):
        store_relaxed_u64(&op.context.names[slot], 0)
        compiler_fence()
        return OK
    if pool.capacity > 1:
        return stock_give(op, pool, slot, ref)
    return pool_give(op, pool, ref_index(ref), &op.context.names[slot])

cdef inline Status names_settle(Op *op) noexcept nogil:
    """Give back every object of this context's, and pages it owes. BUSY, RETRY: some are left."""
    cdef uint64_t slot
    cdef Status status = OK
    cdef Status one
    if op.map.objects == NULL:                 # there is nothing to owe
        op.context.owing = 0
        return OK
    for slot in range(NAME_MAX):
        if op.context.names[slot] != 0:
            one = object_free(op, slot)
            if one != OK:
                status = one
    one = budget_refund(op)
    if one != OK:
        status = one
    if status == OK:
        op.context.owing = 0
    return status

cdef inline void heap_reclaim(Op *op) noexcept nogil:
    """Give back the memory of every block of objects that is empty: for who finds none. Costs a
    look at every block's word."""
    cdef uint64_t index, block, limit
    cdef uint32_t which
    cdef PoolView *pool
    for which in range(CLASS_COUNT):
        pool = &op.map.classes[which]
        if pool.capacity > 1:
            for index in range(op.map.depot_count):
                depot_drain(op, (which + 1) * op.map.depot_count + index, 0)
        limit = load_relaxed_u64(&pool.shared.frontier)
        for block in range(limit if limit < pool.block_count else pool.block_count):
            if object_there(op, pool, block * pool.capacity) == OK and block_is_empty(
                    pool, block, load_relaxed_u64(pool.words + block)):
                block_release(op, pool, block)
