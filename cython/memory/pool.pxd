# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pools of equal objects in blocks: elements, overflow lines, and the classes of objects (M1).
#
# A block is a whole number of pages, 4 to 64 KiB, with one word that is its lock, its free list and
# its state (layout.pxd). Objects never used yet lie from "fresh" on; those given back form a list
# through words[0], by their place in the block. Taking and giving are committed by the one store
# that also unlocks the block. So are getting a block's memory and giving it back.
#
# A search prefers the lowest block that has something free, so that high blocks run empty and their
# memory can go back. Releasing a block waits for nobody: while a reader may hold an index into it,
# it stays (region.pxd). Object 0 of a pool is never given out: 0 means "none".
#
# Blocks of objects are charged to the budget before their memory is committed, and refunded after
# it has gone. A run is a block of one object: only its first page is committed with its block; the
# run's owner commits the rest (object.pxd).
#
# An object is never ownerless: between two places a field of the taker's context names it and its
# header says ALLOC and whose. Recovery (recover.pxd) relies on this, for a block locked by a dead
# context whose field names object i of it:
#   i at the head of the list, or not below fresh    the take was not committed: header FREE
#   else                                             the give was not committed: header ALLOC
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, add_relaxed_u64, cas_acq_rel_u64,
    compiler_fence,
)
from segment.status cimport (
    Status, OK, ABSENT, CORRUPT, BUSY, RETRY, NEED_ELEMENTS, NEED_LINES, NEED_OBJECTS,
)
from segment.layout cimport (
    PAGE_BYTES, ELEMENT_FREE, ELEMENT_ALLOC, BLOCK_HOLE, BLOCK_READY, BLOCK_RELEASING, Element,
)
from segment.words cimport (
    word_locked, word_taken, lock_bits, block_state, block_fresh, block_free, block_head,
    block_word,
)
from segment.classes cimport POOL_LINES, POOL_OBJECTS, POOL_KINDS, ref_make, run_pages, PoolView
from segment.geometry cimport pool_object, region_usable
from memory.operation cimport Op, lock_busy, lock_try, lock_acquire, lock_release, header_set
from memory.region cimport (
    budget_charge, budget_used, debt_add, pages_owed, budget_owe_none, budget_refund, memory_remove,
    memory_populate, memory_prefer_huge, memory_is_quiet, region_commit,
)
from memory.hazard cimport block_is_watched

cdef inline uint64_t pool_words_usable(Op *op, PoolView *pool) noexcept nogil:
    """How many block words may be touched."""
    cdef uint64_t count = region_usable(op.map, pool.words_region) // 8
    return count if count < pool.block_count else pool.block_count

cdef inline uint64_t block_name(PoolView *pool, uint64_t block) noexcept nogil:
    """What context.block says of a block."""
    return block * POOL_KINDS + pool.kind + 1

cdef inline bint block_offers(PoolView *pool, uint64_t word) noexcept nogil:
    return (not word_locked(word) and block_state(word) == BLOCK_READY
            and (block_free(word) > 0 or block_fresh(word) < pool.capacity))

cdef inline Status pool_search(
        Op *op, PoolView *pool, uint64_t *block, uint64_t *hole) noexcept nogil:
    """The lowest block with something free; else NEED_*, and the lowest hole, held or not.

    The last held block met is noted in op, for who finds that there is nothing else.
    """
    cdef uint64_t limit = load_relaxed_u64(&pool.shared.frontier)
    cdef uint64_t usable = pool_words_usable(op, pool)
    cdef uint64_t start = load_relaxed_u64(&pool.shared.hint)
    cdef uint64_t index, word
    cdef int _
    if limit > usable:
        limit = usable
    hole[0] = limit
    for _ in range(2):                  # from the hint on, then everything
        for index in range(start, limit):  # at most block_count
            word = load_relaxed_u64(pool.words + index)
            if block_offers(pool, word):
                block[0] = index
                store_relaxed_u64(&pool.shared.hint, index)
                return OK
            if block_state(word) == BLOCK_HOLE and index < hole[0]:
                hole[0] = index
            if word_locked(word):
                lock_busy(op, pool.words + index, word)
        if start == 0:
            break
        start = 0
    if pool.kind >= POOL_OBJECTS:
        return NEED_OBJECTS
    return NEED_LINES if pool.kind == POOL_LINES else NEED_ELEMENTS

cdef inline Status block_fill(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Memory for a held hole, charged. What was charged and not had is owed."""
    cdef Status status
    if pool.kind >= POOL_OBJECTS:
        status = budget_refund(op)
        if status == OK:
            status = budget_charge(op, pool.first_bytes // PAGE_BYTES)
        if status != OK:
            return status
    if pool.kind == 0:                         # of objects each page counts
        memory_prefer_huge(
            op.map, op.map.elements_offset, pool.block_count * pool.block_bytes,
            block * pool.block_bytes, pool.block_bytes)
    status = memory_populate(op, pool.base + block * pool.block_bytes, pool.first_bytes)
    if status != OK and pool.kind >= POOL_OBJECTS:
        debt_add(op, op.context.charged)
        budget_used(op)
    return status

cdef inline uint64_t block_empty(PoolView *pool, uint64_t block) noexcept nogil:
    """The word of a block that is READY and has never given anything out."""
    return block_word(BLOCK_READY, <uint32_t> pool.reserved if block == 0 else 0, 0, 0)

cdef inline Status block_commit(Op *op, PoolView *pool) noexcept nogil:
    """Get memory for one more block: the lowest hole."""
    cdef uint64_t block = 0
    cdef uint64_t hole = 0
    cdef uint64_t held = 0
    cdef Status status
    op.wait_word = NULL
    status = pool_search(op, pool, &block, &hole)
    if status == OK:
        return OK                          # somebody gave something back meanwhile
    if hole >= pool.block_count:           # there is enough for all: some block is held
        return BUSY if op.wait_word != NULL else CORRUPT
    status = region_commit(op, pool.words_region, (hole + 1) * 8)
    if status != OK:
        return status
    # The frontier first: a block that is READY and beyond it would be found by nobody.
    while True:                            # ends: the frontier only rises
        block = load_relaxed_u64(&pool.shared.frontier)
        if block > hole or cas_acq_rel_u64(&pool.shared.frontier, block, hole + 1):
            break
    op.context.block = block_name(pool, hole)
    compiler_fence()
    status = lock_acquire(op, pool.words + hole, &held)
    if status != OK:
        return status
    if block_state(held) != BLOCK_HOLE:
        lock_release(pool.words + hole, held)
        return OK
    status = block_fill(op, pool, hole)
    if status != OK:
        lock_release(pool.words + hole, block_word(BLOCK_HOLE, 0, 0, 0))
        if pool.kind >= POOL_OBJECTS:
            budget_refund(op)
        return status
    lock_release(pool.words + hole, block_empty(pool, hole))
    budget_used(op)
    add_relaxed_u64(&pool.shared.ready_count, 1)
    if load_relaxed_u64(&pool.shared.hint) > hole:
        store_relaxed_u64(&pool.shared.hint, hole)
    return OK

cdef inline uint64_t block_pages(PoolView *pool, uint64_t block) noexcept nogil:
    """Pages that are charged for a block that is READY."""
    if pool.capacity == 1:
        return run_pages(pool_object(pool, block))
    return pool.block_bytes // PAGE_BYTES

cdef inline Status block_vacate(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Give back the memory of a held block that is RELEASING, or a HOLE, and unlock it: a HOLE.

    BUSY: the kernel does not take it, so the block stays, READY and empty, with the pages that the
    context owes for it charged as before. Recovery may begin with this again after each store.
    """
    cdef uint64_t *word = pool.words + block
    cdef uint8_t *memory = pool.base + block * pool.block_bytes
    cdef uint64_t size = pool.block_bytes if pool.capacity > 1 else (
        pages_owed(op.context) * PAGE_BYTES)
    if memory_remove(op, memory, pool.block_bytes):
        compiler_fence()
        lock_release(word, block_word(BLOCK_HOLE, 0, 0, 0))
        return OK
    # A hole for which nothing was charged never had memory. Else all of it must be there; if that
    # fails too, what is left of it belongs to a hole, and is found when that is filled.
    if size == 0 or (pool.kind >= POOL_OBJECTS and pages_owed(op.context) == 0) or (
            memory_populate(op, memory, size) != OK):
        lock_release(word, block_word(BLOCK_HOLE, 0, 0, 0))
        return OK
    if pool.capacity == 1:
        pool_object(pool, block).words[1] = pages_owed(op.context)
        compiler_fence()
    store_relaxed_u64(word, word_taken(block_empty(pool, block), op.self_index))
    compiler_fence()
    if pool.kind >= POOL_OBJECTS:
        budget_owe_none(op)
    lock_release(word, block_empty(pool, block))
    return BUSY

cdef inline bint block_is_used(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether somebody may be looking at what stood in a held block, which is empty."""
    if pool.kind >= POOL_OBJECTS:
        return block_is_watched(op.map, op.context, pool, block)
    return not memory_is_quiet(op)

cdef inline Status block_release(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Give back the memory of a block in which nothing is in use. RETRY if something is."""
    cdef uint64_t held = 0
    cdef Status status
    op.context.block = block_name(pool, block)
    compiler_fence()
    status = lock_try(op, pool.words + block, &held)
    if status != OK:
        return status
    if not block_is_empty(pool, block, held):
        lock_release(pool.words + block, held)
        return RETRY
    # Nobody can reach an object of this block any more; whoever may have looked earlier must end.
    if block_is_used(op, pool, block) or pages_owed(op.context) != 0:
        lock_release(pool.words + block, held)
        return BUSY
    if pool.kind >= POOL_OBJECTS:              # counts once the word says RELEASING
        debt_add(op, block_pages(pool, block))
    if pool.capacity == 1:                     # what is owed says it from here on
        pool_object(pool, block).words[1] = 0
        compiler_fence()
    store_relaxed_u64(
        pool.words + block, word_taken(block_word(BLOCK_RELEASING, 0, 0, 0), op.self_index))
    compiler_fence()
    if block_vacate(op, pool, block) != OK:
        add_relaxed_u64(&op.map.header.statistics.releases_postponed, 1)
        return BUSY
    if pool.kind >= POOL_OBJECTS:
        budget_refund(op)
    add_relaxed_u64(&pool.shared.ready_count, <uint64_t> -1)
    add_relaxed_u64(&op.map.header.statistics.blocks_released, 1)
    return OK

cdef inline Status object_memory_ready(Op *op, PoolView *pool, uint64_t index) noexcept nogil:
    """Whether an object that this context does not own may be touched: ABSENT if its memory has
    gone, BUSY if it may be going. OK holds until the context's operation ends.

    The context is inside an operation. Either this load sees the block held by block_release, or
    that, after its membarrier, sees the activity stored before; of an object of the heap, after its
    fence, the name stored before (hazard.pxd), if there is a fence in between here too."""
    cdef uint64_t block = index // pool.capacity
    cdef uint64_t word
    if block >= pool_words_usable(op, pool):
        return ABSENT
    # Acquire: pairs with the release of a block word; the memory is there.
    word = load_acquire_u64(pool.words + block)
    if word_locked(word):
        return lock_busy(op, pool.words + block, word)
    return OK if block_state(word) == BLOCK_READY else ABSENT

cdef inline bint block_is_empty(PoolView *pool, uint64_t block, uint64_t word) noexcept nogil:
    cdef uint64_t unused = block_free(word) + (pool.capacity - block_fresh(word))
    return block_state(word) == BLOCK_READY and unused == pool.capacity - (
        pool.reserved if block == 0 else 0)

cdef inline void block_retire_if_empty(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Release an empty block, but for one that is kept for the next refill."""
    cdef uint64_t spare
    if pool.capacity == 1:
        block_release(op, pool, block)
        return
    if not block_is_empty(pool, block, load_relaxed_u64(pool.words + block)):
        return
    spare = load_relaxed_u64(&pool.shared.kept_block)
    if spare != 0 and spare - 1 != block and spare - 1 < pool_words_usable(op, pool) and (
            block_is_empty(pool, spare - 1, load_relaxed_u64(pool.words + spare - 1))):
        # Keep the lower of the two, so that the high one goes.
        if spare - 1 > block:
            store_relaxed_u64(&pool.shared.kept_block, block + 1)
            block = spare - 1
        block_release(op, pool, block)
    else:
        store_relaxed_u64(&pool.shared.kept_block, block + 1)

cdef enum:
    POOL_TRIES_MAX = 16        # blocks somebody else took or emptied before we had them

cdef struct FreeList:             # objects taken from a block, linked by index through words[0]
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
        Op *op, PoolView *pool, uint64_t wanted, FreeList *chain) noexcept nogil:
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
    op.context.list_head = chain.head
    op.context.list_tail = chain.tail
    compiler_fence()
    op.context.list_count = chain.count
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
