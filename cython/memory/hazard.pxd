# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Hazards: the objects that an operation may be looking at (M1).
#
# Before an operation looks at an object that it does not own, it names the object in its context: a
# reader in hazard, a writer in owned_refs (object.pxd). A block of objects is given back only while
# no operation under way names anything in it. So a process that stops
# inside an operation keeps one block or run for each of these fields, and no more; a process that
# has ended its operation, or looks at other objects, keeps nothing.
#
#   reader     hazard := reference; [fence]; if the element still has it (ref_protect), look
#   writer     owned_refs[i] := reference; fence; if the block's word is free and READY
#              (object_own), look
#   releaser   the element has given the object up; hold the block's word; membarrier; look for a
#              context that names something in the block
#
# Each side stores, then makes a sequentially consistent fence, then looks, so one of them sees the
# other (Dekker, as in pins.pxd). The releaser's membarrier makes a reader's fence for it, in every
# process that registered for that. A process that may not register, or not call membarrier, sets
# header.fences: when it attaches, before it has a context, or at the first refusal. From then on
# all readers, also those of other processes, make the fence themselves and store in their contexts
# that they do; so a releaser that may not call membarrier knows which contexts make fences. While
# there is a context whose owner has not seen the word yet (it has looked at no object since the
# word was set), such a releaser gives nothing back.
#
# An operation does not clear its hazard at its end: a hazard counts only while its context is
# inside an operation, and an old one keeps too much, never too little.
#
# A handle without a context names nothing: it reads objects through a descriptor (peek.pxd), for
# which a hole is no danger.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_release_u64, add_relaxed_u64, fence_seq_cst,
    compiler_fence, pause, unlikely,
)
from segment.layout cimport NAME_MAX, Context
from segment.classes cimport POOL_OBJECTS, ref_index, ref_class, PoolView
from segment.geometry cimport Map, context_at, contexts_usable
from memory.operation cimport Op
from memory.region cimport QUIET_PAUSES_MAX, context_fences, looks_are_ordered

cdef enum:
    HAZARD_ANY = 0xFFFFFFFFFFFFFFFFULL         # all objects: no reference has such a length


cdef inline void hazard_fence(Op *op) noexcept nogil:
    if load_relaxed_u64(&op.context.fences) == 0:
        context_fences(op.context)
    fence_seq_cst()                            # pairs with the fence in looks_are_ordered

cdef inline void hazard_set(Op *op, uint64_t ref) noexcept nogil:
    """From here on the operation may look at this object, and no longer at the previous one."""
    # Release: after the last look at the previous one; pairs with the acquire in context_names.
    store_release_u64(&op.context.hazard, ref)
    compiler_fence()                           # the membarrier in looks_are_ordered does the rest
    if unlikely(load_relaxed_u64(&op.map.header.fences) != 0):
        hazard_fence(op)

cdef inline void hazard_any(Op *op) noexcept nogil:
    """From here on the operation may look at every object. (Without a context: see peek.pxd.)"""
    if op.context != NULL:
        hazard_set(op, HAZARD_ANY)

cdef inline void hazard_none(Op *op) noexcept nogil:
    """End what hazard_any began. The name of one object may stay, but not that of all objects."""
    if op.context != NULL:
        # Release: as in hazard_set.
        store_release_u64(&op.context.hazard, 0)

cdef inline bint ref_within(PoolView *pool, uint64_t block, uint64_t ref) noexcept nogil:
    """Whether a reference is to an object in this block, or is HAZARD_ANY."""
    return ref != 0 and (ref == HAZARD_ANY or (
        ref_class(ref) + POOL_OBJECTS == pool.kind and ref_index(ref) // pool.capacity == block))

cdef inline bint context_names(Context *context, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether a context is inside an operation that names something in a block of objects."""
    cdef uint32_t slot
    # Acquire: pairs with the release in context_end; all reads of the operation are done.
    if not load_acquire_u64(&context.activity) & 1:
        return False
    # Acquire: pairs with the release in hazard_set.
    if ref_within(pool, block, load_acquire_u64(&context.hazard)):
        return True
    for slot in range(NAME_MAX):
        if ref_within(pool, block, load_acquire_u64(&context.owned_refs[slot])):
            return True
    return False

cdef inline bint block_is_watched(
        Map *map, const Context *own, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether an operation of another context than own names something in a block, whose word is
    held and in which nothing is in use. A context that stops naming it within a few pauses does not
    count."""
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
