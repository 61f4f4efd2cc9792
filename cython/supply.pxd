# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Blocks of a pool as memory: which of them has something free, getting one more, giving one back
# (M1).
#
# A block's word (layout.pxd) is held for all of these; pool.pxd says what else it is for. A search
# prefers the lowest block, so that high ones run empty. Releasing a block waits for nobody: while
# somebody may hold an index into it, it stays (commit.pxd; objects: hazard.pxd).
#
# Blocks of objects are charged to the budget, before their memory is had and until it has gone. A
# run is a block of one object: of a hole one page is committed, the owner of the object adds what
# it needs (heap.pxd).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, compiler_fence, add_relaxed_u64,
    cas_acq_rel_u64,
)
from status cimport (
    Status, OK, ABSENT, RETRY, BUSY, CORRUPT, NEED_ELEMENTS, NEED_LINES, NEED_OBJECTS,
)
from layout cimport (
    PAGE_BYTES, BLOCK_HOLE, BLOCK_READY, BLOCK_RELEASING, word_locked, word_taken, block_state,
    block_fresh, block_free, block_word,
)
from objects cimport POOL_KINDS, POOL_LINES, POOL_OBJECTS, run_pages
from blocks cimport PoolView
from geometry cimport pool_object, region_usable
from lock cimport Op, lock_busy, lock_try, lock_acquire, lock_release
from budget cimport (
    budget_charge, budget_owe, budget_owe_none, budget_refund, budget_used, pages_owed,
)
from commit cimport (
    memory_populate, memory_prefer_huge, memory_remove, memory_is_quiet, region_commit,
)
from hazard cimport block_is_watched


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
        budget_owe(op, op.context.charged)
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
        budget_owe(op, block_pages(pool, block))
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

cdef inline Status object_there(Op *op, PoolView *pool, uint64_t index) noexcept nogil:
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
    spare = load_relaxed_u64(&pool.shared.spare)
    if spare != 0 and spare - 1 != block and spare - 1 < pool_words_usable(op, pool) and (
            block_is_empty(pool, spare - 1, load_relaxed_u64(pool.words + spare - 1))):
        # Keep the lower of the two, so that the high one goes.
        if spare - 1 > block:
            store_relaxed_u64(&pool.shared.spare, block + 1)
            block = spare - 1
        block_release(op, pool, block)
    else:
        store_relaxed_u64(&pool.shared.spare, block + 1)
