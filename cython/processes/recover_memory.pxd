# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The inner part of recovery: the objects and credits that a dead context was moving between blocks,
# depots and the header.
#
# Called by recover.pxd, which says what recovery is and why it may act as the dead context. Each
# case is decided by which lock words still name the context, since the store that unlocks the inner
# word commits a move (pool.pxd, depot.pxd). A move that was not committed is undone, a committed
# one is completed; recover.pxd gives back what the context owns after that.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport load_relaxed_u64, load_acquire_u64, store_relaxed_u64, compiler_fence
from segment.status cimport Status, OK, ABSENT, BUSY
from segment.layout cimport (
    ELEMENT_FREE, ELEMENT_ALLOC, BLOCK_READY, REGION_BUCKETS, NAME_MAX, LIST_GIVEN, Context,
    Element, Depot,
)
from segment.words cimport (
    element_state, lock_bits, depot_count, depot_credit, depot_head, depot_word, block_state,
    block_fresh, block_free, block_head,
)
from segment.classes cimport (
    POOL_LINES, POOL_OBJECTS, POOL_KINDS, ref_index, ref_class, PoolView, pool_has_depots,
    pool_is_runs,
)
from segment.geometry cimport (
    region_at, pool_of_kind, depot_at, depot_pool, depots_of_all, pool_object, region_usable,
    buckets_usable,
)
from memory.operation cimport Op, lock_try, lock_release, op_holds, header_set
from memory.budget cimport budget_used, pool_is_charged
from memory.pool cimport FreeList, block_vacate, pool_put_run
from memory.depot cimport depot_store
from memory.pins cimport pins_usable, pin_clear
from memory.object cimport ref_object, owned_ref, owned_refs_free

cdef inline void recover_regions(Op *op) noexcept nogil:
    cdef uint64_t which = load_relaxed_u64(&op.context.region) - 1
    if which < op.map.region_count:
        if op_holds(op, &region_at(op.map, <uint32_t> which).lock):
            lock_release(&region_at(op.map, <uint32_t> which).lock, 0)

cdef inline Status bucket_there(Op *op, uint64_t index) noexcept nogil:
    """Whether a bucket that the context names has memory: OK, ABSENT. BUSY: another context holds
    the region; if its release has lowered the watermark, it will find that a bucket that this
    context holds has to stay (region.pxd)."""
    cdef uint64_t *lock = &region_at(op.map, REGION_BUCKETS).lock
    cdef uint64_t held = 0
    cdef Status status
    if index < buckets_usable(op.map):
        return OK
    op.context.region = REGION_BUCKETS + 1
    compiler_fence()
    if lock_try(op, lock, &held) != OK:
        return BUSY
    status = OK if index < buckets_usable(op.map) else ABSENT
    lock_release(lock, held)
    return status

cdef inline uint64_t *block_named(Op *op, PoolView **pool) noexcept nogil:
    """The word of the block that the context names, if the context holds that word; else NULL."""
    cdef uint64_t name = load_relaxed_u64(&op.context.block) - 1
    cdef uint64_t block = name // POOL_KINDS
    cdef uint64_t *word
    if name + 1 == 0:
        return NULL
    pool[0] = pool_of_kind(op.map, <uint32_t> (name % POOL_KINDS))
    if pool[0] == NULL or block >= pool[0].block_count or block >= region_usable(
            op.map, pool[0].words_region) // 8:
        return NULL
    word = pool[0].words + block
    return word if op_holds(op, word) else NULL

cdef inline void recover_run(
        Op *op, PoolView *pool, uint64_t head, uint64_t tail, uint64_t count) noexcept nogil:
    """Put a run that has left its depot into the held block, and unlock the block."""
    cdef FreeList run = FreeList(head, tail, count, 0)
    cdef uint64_t block = head // pool.capacity
    cdef uint64_t held
    if head == 0 or head >= pool.object_count or tail // pool.capacity != block:
        return                                 # only in a damaged segment
    held = load_relaxed_u64(pool.words + block)
    if op_holds(op, pool.words + block) and block_free(held) + count <= block_fresh(held):
        pool_put_run(pool, block, held, &run)
        compiler_fence()

cdef inline void recover_list(
        Op *op, Depot *depot, PoolView *pool, bint block_held) noexcept nogil:
    """Settle a list of objects on its way between a block and the held depot. While the depot's
    head is the list's, the depot has the list; a list that is in neither goes on where it was
    going. block_held: the context holds the block that it names."""
    cdef Context *context = op.context
    cdef uint64_t word = load_relaxed_u64(&depot.word)
    cdef uint64_t head = load_relaxed_u64(&context.list_head)
    cdef uint64_t tail = load_relaxed_u64(&context.list_tail)
    if context.list_count & LIST_GIVEN:
        if block_held and depot_head(word) != head:
            recover_run(op, pool, head, tail, context.list_count & ~<uint64_t> LIST_GIVEN)
    elif context.list_count != 0 and not block_held and depot_head(word) != head:
        if head < pool.object_count and tail < pool.object_count:
            store_relaxed_u64(&pool_object(pool, tail).words[0], depot_head(word))
            compiler_fence()
            depot_store(op, depot, depot_word(
                <uint32_t> head, depot_count(word) + <uint32_t> context.list_count,
                depot_credit(word)))
    context.list_count = 0
    compiler_fence()

cdef inline void recover_credits(Op *op, Depot *depot) noexcept nogil:
    """Settle credits on their way between the header and the held depot."""
    cdef uint64_t *credits = &op.map.header.credits
    cdef uint64_t word
    if op_holds(op, credits):
        op.context.credit_moving = 0           # the store to the header did not happen
        compiler_fence()
        lock_release(credits, load_relaxed_u64(credits))
    elif op.context.credit_moving:
        word = load_relaxed_u64(&depot.word)
        depot_store(op, depot, depot_word(
            depot_head(word), depot_count(word), <uint32_t> op.context.credit_after))
        op.context.credit_moving = 0
        compiler_fence()

cdef inline void recover_depot_object(
        Op *op, PoolView *pool, uint64_t head, uint64_t index, uint64_t *name) noexcept nogil:
    """Settle an object between the held depot and the context, whose field `name` names it."""
    cdef Element *thing
    if index == 0 or index >= pool.object_count:
        return
    thing = pool_object(pool, index)
    if index == head:                          # the depot has it still
        header_set(&thing.header, ELEMENT_FREE, 0)
        compiler_fence()
        name[0] = 0
    elif element_state(load_relaxed_u64(&thing.header)) == ELEMENT_FREE:      # not in the depot yet
        header_set(&thing.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()

cdef inline void recover_in_depot(Op *op, Depot *depot, PoolView *pool) noexcept nogil:
    """Settle an object between the held depot and the context."""
    cdef Context *context = op.context
    cdef uint64_t head = depot_head(load_relaxed_u64(&depot.word))
    cdef uint32_t slot
    if pool.kind < POOL_OBJECTS:
        recover_depot_object(op, pool, head, context.element, &context.element)
        return
    for slot in range(NAME_MAX):
        if context.owned_refs[slot] != 0 and (
                ref_class(context.owned_refs[slot]) + POOL_OBJECTS == pool.kind):
            recover_depot_object(
                op, pool, head, ref_index(context.owned_refs[slot]), &context.owned_refs[slot])

cdef inline void recover_block_object(
        Op *op, PoolView *pool, uint64_t *word, uint64_t index, uint64_t *name) noexcept nogil:
    """Settle an object between the held block and the context, whose field `name` names it."""
    cdef uint64_t block = <uint64_t> (word - pool.words)
    cdef uint64_t place = index - block * pool.capacity
    cdef uint64_t seen = load_relaxed_u64(word)
    cdef Element *thing
    if index // pool.capacity != block:
        return
    thing = pool_object(pool, index)
    if (block_free(seen) > 0 and place == block_head(seen)) or place >= block_fresh(seen):
        header_set(&thing.header, ELEMENT_FREE, 0)
        compiler_fence()
        name[0] = 0
    elif element_state(load_relaxed_u64(&thing.header)) == ELEMENT_FREE:
        header_set(&thing.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()

cdef inline void recover_charge(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Settle what context.charged says of a held block that stays READY: the pages are still its
    own. What the context owes is for other blocks."""
    if pool_is_runs(pool) and op.context.charged != 0:
        pool_object(pool, block).words[1] = op.context.charged
        compiler_fence()
    budget_used(op)

cdef inline void recover_block(Op *op) noexcept nogil:
    cdef PoolView *pool = NULL
    cdef uint64_t *word = block_named(op, &pool)
    cdef uint64_t block
    cdef uint32_t slot
    if word == NULL:
        return
    block = <uint64_t> (word - pool.words)
    if block_state(load_relaxed_u64(word)) != BLOCK_READY:
        block_vacate(op, pool, block)
        return
    if pool_is_charged(op.map, pool):
        recover_charge(op, pool, block)
    if pool.kind == POOL_LINES:
        if op.context.line != 0:
            recover_block_object(op, pool, word, op.context.line, &op.context.line)
    elif pool.kind >= POOL_OBJECTS and not pool_has_depots(pool):
        for slot in range(NAME_MAX):
            if op.context.owned_refs[slot] != 0 and (
                    ref_class(op.context.owned_refs[slot]) + POOL_OBJECTS == pool.kind):
                recover_block_object(
                    op, pool, word, ref_index(op.context.owned_refs[slot]),
                    &op.context.owned_refs[slot])
    lock_release(word, load_relaxed_u64(word))

cdef inline void recover_depot(Op *op) noexcept nogil:
    cdef PoolView *pool = NULL
    cdef PoolView *of_block = NULL
    cdef uint64_t index = load_relaxed_u64(&op.context.depot) - 1
    cdef Depot *depot
    if index >= depots_of_all(op.map) or not op_holds(
            op, &depot_at(op.map, index).word):
        recover_block(op)
        return
    depot = depot_at(op.map, index)
    pool = depot_pool(op.map, index)
    recover_list(op, depot, pool, block_named(op, &of_block) != NULL)
    if pool.kind == 0:
        recover_credits(op, depot)
    recover_in_depot(op, depot, pool)
    recover_block(op)
    lock_release(&depot.word, load_relaxed_u64(&depot.word))

cdef inline void recover_growth(Op *op) noexcept nogil:
    """Note the pages that were charged for a run of this context's that was growing. Charges for
    blocks are settled already (recover_charge)."""
    cdef Context *context = op.context
    cdef uint64_t wanted = load_relaxed_u64(&context.pages_wanted)
    cdef uint64_t ref
    if context.charged != 0 and wanted != 0 and wanted & 7 < NAME_MAX:
        ref = owned_ref(op, wanted & 7)
        if ref != 0 and op_holds(op, &ref_object(op.map, ref).header):
            ref_object(op.map, ref).words[1] = wanted >> 3
            compiler_fence()
    context.charged = 0
    compiler_fence()
    context.pages_wanted = 0

cdef inline Status recover_pins(Op *op, uint64_t owner) noexcept nogil:
    """End every pin of the dead process, in the name of one of its contexts."""
    cdef uint64_t index
    cdef Status status
    for index in range(pins_usable(op.map)):   # at most PIN_MAX
        if load_acquire_u64(&op.map.pins[index].owner) == owner:
            pin_clear(op, index)
            status = owned_refs_free(op)
            if status != OK:
                return status
    return OK
