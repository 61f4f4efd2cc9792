# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pools of equal objects in blocks: elements, overflow lines, and the classes of objects.
#
# A block is a whole number of pages, 4 to 64 KiB, with one word that is its lock, its free list and
# its state (layout.pxd). Objects never used yet stand behind "fresh"; those given back form a list
# through words[0], by their place in the block. Taking and giving are committed by the one store
# that also unlocks the block.
#
# Allocation prefers the lowest block that has something free, so that high blocks run empty and
# their memory can go back (block_release). Object 0 of a pool is never given out: 0 means "none".
#
# An object is never ownerless: between two places a field of the taker's context names it and its
# header says ALLOC and who. Recovery (recovery.pxd) relies on this, for a block locked by a dead
# context whose field names object i of it:
#   i at the head of the list, or not below fresh    the take was not committed: header FREE
#   else                                             the give was not committed: header ALLOC
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport load_relaxed_u64, store_relaxed_u64, compiler_fence
from status cimport Status, OK, RETRY, BUSY, CORRUPT
from layout cimport (
    Element, BLOCK_READY, ELEMENT_FREE, ELEMENT_ALLOC, lock_bits, block_fresh, block_free,
    block_head, block_word,
)
from objects cimport POOL_OBJECTS, ref_make
from blocks cimport PoolView
from geometry cimport pool_object
from lock cimport Op, lock_try, lock_acquire, lock_release, header_set
from supply cimport block_name, block_offers, block_retire_if_empty, pool_search

cdef enum:
    POOL_TRIES_MAX = 16        # blocks somebody else took or emptied before we had them

cdef struct Chain:             # objects taken from a block, linked by index through words[0]
    uint64_t head
    uint64_t tail
    uint64_t count


cdef inline Status pool_lock_block(
        Op *op, PoolView *pool, uint64_t *block, uint64_t *held) noexcept nogil:
    """Take the word of a block that offers something."""
    cdef uint64_t hole = 0
    cdef Status status
    cdef int _
    for _ in range(POOL_TRIES_MAX):
        status = pool_search(op, pool, block, &hole)
        if status != OK:
            return status
        op.context.block = block_name(pool, block[0])
        compiler_fence()
        status = lock_try(op, pool.words + block[0], held)
        if status == OK:
            if block_offers(pool, held[0] & ~<uint64_t> 0xFFFF):
                return OK
            lock_release(pool.words + block[0], held[0])
    return BUSY if status == BUSY else RETRY

cdef inline bint pool_next_place(
        PoolView *pool, uint64_t block, uint64_t place, uint64_t *next_place) noexcept nogil:
    """The place behind place in the block's free list; False if that is none of the block's."""
    next_place[0] = load_relaxed_u64(
        &pool_object(pool, block * pool.capacity + place).words[0]) - block * pool.capacity
    return next_place[0] < pool.capacity

cdef inline Status pool_take(
        Op *op, PoolView *pool, uint64_t *name, uint64_t length) noexcept nogil:
    """Take one object into the context's field name, in state ALLOC; length is of a run."""
    cdef uint64_t block = 0
    cdef uint64_t held = 0
    cdef uint64_t next_place = 0
    cdef uint64_t place, after
    cdef Element *taken
    cdef Status status = pool_lock_block(op, pool, &block, &held)
    if status != OK:
        return status
    if block_free(held) > 0:
        place = block_head(held)
        # The last link of a list is whatever it is; the count says where the list ends.
        if place >= pool.capacity or (
                not pool_next_place(pool, block, place, &next_place) and block_free(held) > 1):
            lock_release(pool.words + block, held)
            return CORRUPT
        after = block_word(
            BLOCK_READY, block_fresh(held), block_free(held) - 1, <uint32_t> next_place & 0xFFF)
    else:
        place = block_fresh(held)
        after = block_word(BLOCK_READY, <uint32_t> place + 1, 0, 0)
    taken = pool_object(pool, block * pool.capacity + place)
    name[0] = ref_make(block, length) if pool.kind >= POOL_OBJECTS else (
        block * pool.capacity + place)
    compiler_fence()
    header_set(&taken.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()
    lock_release(pool.words + block, after)
    return OK

cdef inline Status pool_detach(
        Op *op, PoolView *pool, uint64_t wanted, Chain *chain) noexcept nogil:
    """Take up to wanted objects, state FREE, as a chain that context.chain_* names.

    The caller holds the depot they are for; its recovery hangs the chain into that depot. Until the
    block's word is stored nothing that its list consists of has changed: the chain is the front of
    the list, and only the list's meaningless last link is written.
    """
    cdef uint64_t block = 0
    cdef uint64_t held = 0
    cdef uint64_t fresh, free_count, place, index
    cdef uint64_t next_place = 0
    cdef Status status = pool_lock_block(op, pool, &block, &held)
    if status != OK:
        return status
    fresh = block_fresh(held)
    free_count = block_free(held)
    place = block_head(held)
    chain.count = 0
    while chain.count < wanted and (free_count > 0 or fresh < pool.capacity):
        if free_count > 0:
            if place >= pool.capacity or (
                    not pool_next_place(pool, block, place, &next_place) and free_count > 1):
                lock_release(pool.words + block, held)
                return CORRUPT
            index = block * pool.capacity + place
            place = next_place
            free_count -= 1
        else:
            index = block * pool.capacity + fresh
            fresh += 1
            if chain.count > 0:
                store_relaxed_u64(&pool_object(pool, chain.tail).words[0], index)
        if chain.count == 0:
            chain.head = index
        chain.tail = index
        chain.count += 1
    op.context.chain_head = chain.head
    op.context.chain_tail = chain.tail
    compiler_fence()
    op.context.chain_count = chain.count
    compiler_fence()
    lock_release(pool.words + block, block_word(
        BLOCK_READY, <uint32_t> fresh, <uint32_t> free_count, <uint32_t> place & 0xFFF))
    return OK

cdef inline void pool_put_locked(
        PoolView *pool, uint64_t block, uint64_t held, uint64_t index) noexcept nogil:
    """Put object index, owned and in state ALLOC, into its block, whose word is held: one store."""
    cdef Element *given = pool_object(pool, index)
    store_relaxed_u64(&given.words[0], block * pool.capacity + block_head(held))
    compiler_fence()
    header_set(&given.header, ELEMENT_FREE, 0)
    compiler_fence()
    lock_release(pool.words + block, block_word(
        BLOCK_READY, block_fresh(held), block_free(held) + 1,
        <uint32_t> (index - block * pool.capacity)))
    if load_relaxed_u64(&pool.shared.hint) > block:
        store_relaxed_u64(&pool.shared.hint, block)

cdef inline Status pool_give(
        Op *op, PoolView *pool, uint64_t index, uint64_t *name) noexcept nogil:
    """Give back object index, which the context's field name names, in state ALLOC; clear the
    field.

    To be called with nothing held: an empty block's memory is released.
    """
    cdef uint64_t block = index // pool.capacity
    cdef uint64_t held = 0
    cdef Status status
    if index >= pool.object_count:
        return CORRUPT
    op.context.block = block_name(pool, block)
    compiler_fence()
    status = lock_acquire(op, pool.words + block, &held)
    if status != OK:
        return status
    pool_put_locked(pool, block, held, index)
    compiler_fence()
    name[0] = 0
    block_retire_if_empty(op, pool, block)
    return OK
