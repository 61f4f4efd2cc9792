# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Hazards: which objects an operation may be looking at (M1).
#
# An operation that looks at an object of somebody else's names it first, in its context: hazard, a
# reader's; owned_refs and in_transit, a writer's (object.pxd, depot.pxd). Memory of objects goes
# back while no operation under way names anything in it. So a process that stops inside an
# operation keeps one block or run for each of these, and no more; one that has ended its operation,
# or looks elsewhere, keeps nothing.
#
#   reader     hazard := reference; [fence]; the element still has it (ref_protect)? then look
#   writer     names[i] := reference; fence; the block's word is free and READY (object_own)? look
#   releaser   the object given up by its element; the block's word held; membarrier; who names it?
#
# Each side stores, then a sequentially consistent fence, then looks, so one of them sees the other
# (Dekker, as in pins.pxd). A reader's fence is made for it by the releaser's membarrier, in every
# process that registered for that. A process that is refused either sets header.fences when it
# attaches, before it has a context. From there on readers make the fence themselves, those of other
# processes too, and say in their contexts that they do; so who may not call membarrier knows whom
# it can trust to have made one. Where a context is in use whose owner has not yet seen the word (it
# has not looked at an object since), such a releaser gives nothing back.
#
# A hazard is never cleared: it counts while its context is inside an operation, and an old one
# keeps too much, never too little.
#
# Handles without a context name nothing: they read objects through a descriptor (peek.pxd), which
# a hole does not hurt.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_release_u64, add_relaxed_u64, fence_seq_cst,
    compiler_fence, pause, unlikely,
)
from segment.layout cimport NAME_MAX, TRANSIT_SHIFT, Context
from segment.classes cimport POOL_OBJECTS, ref_index, ref_class, PoolView
from segment.geometry cimport Map, context_at, contexts_usable
from memory.operation cimport Op
from memory.region cimport QUIET_PAUSES_MAX, context_fences, looks_are_ordered

cdef enum:
    HAZARD_ANY = 0xFFFFFFFFFFFFFFFFULL         # all objects: no reference is so long


cdef inline void hazard_fence(Op *op) noexcept nogil:
    if load_relaxed_u64(&op.context.fences) == 0:
        context_fences(op.context)
    fence_seq_cst()                            # pairs with the fence in looks_are_ordered

cdef inline void hazard_set(Op *op, uint64_t ref) noexcept nogil:
    """From here on the operation may look at this object, and not any more at the one before."""
    # Release: the last look at the one before; pairs with the acquire in context_names.
    store_release_u64(&op.context.hazard, ref)
    compiler_fence()                           # the processor's is looks_are_ordered's membarrier
    if unlikely(load_relaxed_u64(&op.map.header.fences) != 0):
        hazard_fence(op)

cdef inline void hazard_any(Op *op) noexcept nogil:
    """From here on the operation may look at every object. Without a context: see peek.pxd."""
    if op.context != NULL:
        hazard_set(op, HAZARD_ANY)

cdef inline void hazard_none(Op *op) noexcept nogil:
    """That is over. One object may go on being named, but all of them would be too many."""
    if op.context != NULL:
        # Release: as in hazard_set.
        store_release_u64(&op.context.hazard, 0)

cdef inline bint ref_within(PoolView *pool, uint64_t block, uint64_t ref) noexcept nogil:
    """Whether a reference is to an object in this block, or to all."""
    return ref != 0 and (ref == HAZARD_ANY or (
        ref_class(ref) + POOL_OBJECTS == pool.kind and ref_index(ref) // pool.capacity == block))

cdef inline bint context_names(Context *context, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether a context is inside an operation that names something in a block of objects."""
    cdef uint64_t spare
    cdef uint32_t slot
    # Acquire: pairs with the release in context_end; what was read inside has been read.
    if not load_acquire_u64(&context.activity) & 1:
        return False
    # Acquire: pairs with the release in hazard_set.
    if ref_within(pool, block, load_acquire_u64(&context.hazard)):
        return True
    for slot in range(NAME_MAX):
        if ref_within(pool, block, load_acquire_u64(&context.owned_refs[slot])):
            return True
    spare = load_relaxed_u64(&context.in_transit)
    return spare >> TRANSIT_SHIFT == pool.kind and (
        (spare & ((1ULL << TRANSIT_SHIFT) - 1)) // pool.capacity == block)

cdef inline bint block_is_watched(
        Map *map, const Context *own, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether an operation of a context but own names something in a block, whose word is held and
    in which nothing is in use. Those that look away within a few pauses are waited for."""
    cdef uint64_t count = contexts_usable(map)
    cdef uint64_t index
    cdef Context *context
    cdef int turn
    if not looks_are_ordered(map, own):
        add_relaxed_u64(&map.header.statistics.releases_postponed, 1)
        return True
    for index in range(count):                 # at most CONTEXT_MAX
        context = context_at(map, index)
        if context == own:
            continue
        turn = 0
        while context_names(context, pool, block):
            turn += 1
            if turn > QUIET_PAUSES_MAX:
                add_relaxed_u64(&map.header.statistics.releases_postponed, 1)
                return True
            pause()
    return False
