# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The inner part of recovery: what a dead context was moving between blocks, depots and the header.
#
# Called by recovery.pxd, which says what recovery is and by which right it acts as the dead
# context. Each case is decided by which lock words still name the context: moves are committed by
# the store that unlocks the inner one (pool.pxd, depot.pxd). Whatever was not committed is put back
# where it was, whatever was is completed; what the context owns after that is given back by
# recovery.pxd.
from libc.stdint cimport uint32_t, uint64_t
from atomics cimport load_relaxed_u64, store_relaxed_u64, compiler_fence
from layout cimport (
    Context, Depot, Element, REGION_COUNT, BLOCK_HOLE, BLOCK_READY, ELEMENT_FREE, ELEMENT_ALLOC,
    lock_bits, element_state, block_state, block_fresh, block_free,
    block_head, block_word, depot_word, depot_count, depot_credit, depot_head,
)
from geometry cimport PoolView, element_at, pool_object, region_usable, name_of
from lock cimport Op, header_set, lock_release, op_holds
from commit cimport memory_remove
from depot cimport depot_store


cdef inline void recover_regions(Op *op) noexcept nogil:
    cdef uint64_t which = load_relaxed_u64(&op.context.region) - 1
    if which < REGION_COUNT:
        if op_holds(op, &op.map.header.regions[which].lock):
            lock_release(&op.map.header.regions[which].lock, 0)

cdef inline uint64_t *block_named(Op *op, PoolView **pool) noexcept nogil:
    """The word of the block that the context names, if it holds it."""
    cdef uint64_t name = load_relaxed_u64(&op.context.block) - 1
    cdef uint64_t *word
    if name + 1 == 0:
        return NULL
    pool[0] = &op.map.line_pool if name & 1 else &op.map.element_pool
    if name >> 1 >= pool[0].block_count or name >> 1 >= region_usable(
            op.map, pool[0].words_region) // 8:
        return NULL
    word = pool[0].words + (name >> 1)
    return word if op_holds(op, word) else NULL

cdef inline void recover_chain(Op *op, Depot *depot, bint block_held) noexcept nogil:
    """Elements on their way from a block to the held depot."""
    cdef Context *context = op.context
    cdef uint64_t word = load_relaxed_u64(&depot.word)
    if context.chain_count != 0 and not block_held and depot_head(word) != context.chain_head:
        store_relaxed_u64(
            &element_at(op.map, name_of(
                &op.map.element_pool, context.chain_tail)).words[0], depot_head(word))
        compiler_fence()
        depot_store(op, depot, depot_word(
            <uint32_t> context.chain_head, depot_count(word) + <uint32_t> context.chain_count,
            depot_credit(word)))
    context.chain_count = 0
    compiler_fence()

cdef inline void recover_credits(Op *op, Depot *depot) noexcept nogil:
    """Credits on their way between the header and the held depot."""
    cdef uint64_t *credits = &op.map.header.credits
    cdef uint64_t word
    if op_holds(op, credits):
        op.context.credit_moving = 0           # the header's store did not happen
        compiler_fence()
        lock_release(credits, load_relaxed_u64(credits))
    elif op.context.credit_moving:
        word = load_relaxed_u64(&depot.word)
        depot_store(op, depot, depot_word(
            depot_head(word), depot_count(word), <uint32_t> op.context.credit_after))
        op.context.credit_moving = 0
        compiler_fence()

cdef inline void recover_taken(Op *op, Depot *depot) noexcept nogil:
    """An element between the held depot and the context, and a spare between it and a block."""
    cdef Context *context = op.context
    cdef uint64_t head = depot_head(load_relaxed_u64(&depot.word))
    cdef Element *element
    if context.spare != 0 and context.spare == head:
        element = element_at(op.map, name_of(&op.map.element_pool, head))
        header_set(&element.header, ELEMENT_FREE, 0)
        compiler_fence()
        context.spare = 0
    if context.element == 0:
        return
    element = element_at(op.map, name_of(&op.map.element_pool, context.element))
    if context.element == head:                # not taken yet
        header_set(&element.header, ELEMENT_FREE, 0)
        compiler_fence()
        store_relaxed_u64(&context.element, 0)
    elif element_state(load_relaxed_u64(&element.header)) == ELEMENT_FREE:  # not given yet
        header_set(&element.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()

cdef inline void recover_block(Op *op) noexcept nogil:
    cdef PoolView *pool = NULL
    cdef uint64_t *word = block_named(op, &pool)
    cdef uint64_t *name
    cdef uint64_t block, index, place
    cdef Element *thing
    if word == NULL:
        return
    block = <uint64_t> (word - pool.words)
    if block_state(word[0]) != BLOCK_READY:
        memory_remove(pool.base + block * pool.block_bytes, pool.block_bytes)
        lock_release(word, block_word(BLOCK_HOLE, 0, 0, 0))
        return
    name = &op.context.line if pool.kind else &op.context.spare
    index = load_relaxed_u64(name)
    if index != 0 and index // pool.capacity == block:
        place = index - block * pool.capacity
        thing = pool_object(pool, index)
        if (block_free(word[0]) > 0 and place == block_head(word[0])) or (
                place >= block_fresh(word[0])):
            header_set(&thing.header, ELEMENT_FREE, 0)
            compiler_fence()
            name[0] = 0
        elif element_state(load_relaxed_u64(&thing.header)) == ELEMENT_FREE:
            header_set(&thing.header, ELEMENT_ALLOC, lock_bits(op.self_index))
        compiler_fence()
    lock_release(word, word[0])

cdef inline void recover_depot(Op *op) noexcept nogil:
    cdef PoolView *pool = NULL
    cdef uint64_t index = load_relaxed_u64(&op.context.depot) - 1
    cdef Depot *depot
    if index >= op.map.depot_count:
        recover_block(op)
        return
    depot = op.map.depots + index
    if not op_holds(op, &depot.word):
        recover_block(op)
        return
    recover_chain(op, depot, block_named(op, &pool) != NULL)
    recover_credits(op, depot)
    recover_taken(op, depot)
    recover_block(op)
    lock_release(&depot.word, load_relaxed_u64(&depot.word))
