# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Pools of objects of one size, in blocks: elements, overflow lines, classes of objects (M1).
#
# A block is a whole number of pages, 4 to 64 KiB, with one word that is its lock, its free list and
# its state (layout.pxd). Objects that have never been used lie from "fresh" on; objects that were
# given back form a list through words[0], by their place in the block. Taking and giving are
# committed by the one store that also unlocks the block, as are commits and releases of its memory.
#
# A search prefers the lowest block with a free object, so that high blocks run empty and their
# memory can go back. A release does not wait for readers: while one may hold an index into the
# block, the block stays (region.pxd). Object 0 of a pool is never given out, because 0 means
# "none"; only runs need no such rule (classes.pxd).
#
# Blocks of objects, or all (budget.pxd), are charged before their memory is committed, and refunded
# after it has been given back. A run is a block of one object: only its first page is committed
# with its block; the run's owner commits the rest (object.pxd).
#
# An object always has an owner: while it is in neither a block, a depot nor the map, a field of a
# context names it, and its header says ALLOC and names that context. Recovery relies on this
# (recover_memory.pxd) for a block that a dead context has locked, if a field of that context names
# object i of the block:
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
from segment.classes cimport (
    POOL_LINES, POOL_OBJECTS, POOL_KINDS, ref_make, run_pages, PoolView, pool_is_runs,
)
from segment.geometry cimport pool_object, region_usable
from memory.operation cimport Op, lock_busy, lock_try, lock_acquire, lock_release, header_set
from memory.budget cimport (
    budget_charge, budget_used, debt_add, pages_owed, budget_refund, pool_is_charged,
)
from memory.region cimport (
    memory_remove, memory_populate, memory_prefer_huge, memory_is_quiet, region_commit,
)
from memory.hazard cimport block_is_watched

cdef inline uint64_t pool_words_usable(Op *op, PoolView *pool) noexcept nogil:
    """How many block words may be touched."""
    cdef uint64_t count = region_usable(op.map, pool.words_region) // 8
    return count if count < pool.block_count else pool.block_count

cdef inline uint64_t block_name(PoolView *pool, uint64_t block) noexcept nogil:
    """The value of context.block that names a block."""
    return block * POOL_KINDS + pool.kind + 1

cdef inline bint block_offers(PoolView *pool, uint64_t word) noexcept nogil:
    return (not word_locked(word) and block_state(word) == BLOCK_READY
            and (block_free(word) > 0 or block_fresh(word) < pool.capacity))

cdef inline Status pool_search(
        Op *op, PoolView *pool, uint64_t *block, uint64_t *hole) noexcept nogil:
    """The lowest block with a free object; else NEED_*, and the lowest hole, locked or not.

    op notes the last locked block that was seen, for a caller that finds neither.
    """
    cdef uint64_t limit = load_relaxed_u64(&pool.shared.frontier)
    cdef uint64_t usable = pool_words_usable(op, pool)
    cdef uint64_t start = load_relaxed_u64(&pool.shared.hint)
    cdef uint64_t index, word
    cdef int _
    if limit > usable:
        limit = usable
    hole[0] = limit
    for _ in range(2):                  # from the hint on, then from the start
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
    """Charge and commit memory for a held hole. Pages that are only charged become a debt."""
    cdef Status status
    if pool_is_charged(op.map, pool):
        status = budget_refund(op)
        if status == OK:
            status = budget_charge(op, pool.first_bytes // PAGE_BYTES, (
                0 if pool.kind == POOL_LINES else op.map.pages_spare))
        if status != OK:
            return status
    if pool.kind == 0:                         # not for objects, where each page counts
        memory_prefer_huge(
            op.map, op.map.elements_offset, pool.block_count * pool.block_bytes,
            block * pool.block_bytes, pool.block_bytes)
    status = memory_populate(op, pool.base + block * pool.block_bytes, pool.first_bytes)
    if status != OK and pool_is_charged(op.map, pool):
        debt_add(op, op.context.charged)
    return status

cdef inline uint64_t block_empty(PoolView *pool, uint64_t block) noexcept nogil:
    """The word of a block that is READY and has never given anything out."""
    return block_word(BLOCK_READY, <uint32_t> pool.reserved if block == 0 else 0, 0, 0)

cdef inline Status block_commit(Op *op, PoolView *pool) noexcept nogil:
    """Commit memory for one more block, the lowest hole."""
    cdef uint64_t block = 0
    cdef uint64_t hole = 0
    cdef uint64_t held = 0
    cdef Status status
    op.wait_word = NULL
    status = pool_search(op, pool, &block, &hole)
    if status == OK:
        return OK                          # a free object has come since the last search
    if hole >= pool.block_count:           # blocks suffice for all objects, so one is locked
        return BUSY if op.wait_word != NULL else CORRUPT
    status = region_commit(op, pool.words_region, (hole + 1) * 8)
    if status != OK:
        return status
    # Raise the frontier first: no search would find a READY block beyond it.
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
        budget_used(op)
        if pool_is_charged(op.map, pool):
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
    if pool_is_runs(pool):
        return run_pages(pool_object(pool, block))
    return pool.block_bytes // PAGE_BYTES

cdef inline Status block_vacate(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Give back the memory of a held block that is RELEASING or a HOLE, and unlock it as a HOLE.
    The pages of context.charged become a debt.
    BUSY: the kernel refuses, so the block stays, READY and empty, and its pages stay charged. If
    the process is killed after any store here, recovery calls this function again."""
    cdef uint64_t *word = pool.words + block
    cdef uint8_t *memory = pool.base + block * pool.block_bytes
    cdef uint64_t size = pool.block_bytes
    cdef uint64_t charged = 0
    if pool_is_charged(op.map, pool):
        if pages_owed(op.context) == 0:        # else the memory had gone before the death
            charged = op.context.charged
        if charged < size // PAGE_BYTES:       # of a run, which has less memory than addresses
            size = charged * PAGE_BYTES
    # A hole for which nothing was charged never had memory. Any other block is READY only with all
    # of its memory; if populating it fails too, the hole keeps what there is until it is filled.
    if not memory_remove(op, memory, pool.block_bytes) and size != 0 and (
            memory_populate(op, memory, size) == OK):
        if pool_is_runs(pool):
            pool_object(pool, block).words[1] = charged
            compiler_fence()
        lock_release(word, block_empty(pool, block))
        budget_used(op)
        return BUSY
    compiler_fence()
    if charged != 0:
        debt_add(op, charged)
    lock_release(word, block_word(BLOCK_HOLE, 0, 0, 0))
    budget_used(op)
    return OK

cdef inline bint block_is_used(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether an operation may be looking at what stood in a held block, which is empty."""
    if pool.kind >= POOL_OBJECTS:
        return block_is_watched(op.map, op.context, pool, block)
    return not memory_is_quiet(op)

cdef inline Status block_release(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Give back the memory of a block in which no object is in use. RETRY if one is."""
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
    # No object of this block can be reached any more, but operations that began earlier may still
    # be looking at one. While there are any, the block stays.
    if block_is_used(op, pool, block) or pages_owed(op.context) != 0:
        lock_release(pool.words + block, held)
        return BUSY
    if pool_is_charged(op.map, pool):
        op.context.charged = block_pages(pool, block)
        compiler_fence()
    if pool_is_runs(pool):                     # from here on charged has the run's pages
        pool_object(pool, block).words[1] = 0
        compiler_fence()
    # Before the memory may go: a process that finds a header in it later has to see that versions
    # may have begun again (keeping.pxi). The release of the block's word carries it, as it does the
    # memory.
    add_relaxed_u64(&pool.shared.releases, 1)
    store_relaxed_u64(
        pool.words + block, word_taken(block_word(BLOCK_RELEASING, 0, 0, 0), op.self_index))
    compiler_fence()
    if block_vacate(op, pool, block) != OK:
        add_relaxed_u64(&op.map.header.statistics.releases_postponed, 1)
        return BUSY
    if pool_is_charged(op.map, pool):
        budget_refund(op)
    add_relaxed_u64(&pool.shared.ready_count, <uint64_t> -1)
    add_relaxed_u64(&op.map.header.statistics.blocks_released, 1)
    return OK

cdef inline Status object_memory_ready(Op *op, PoolView *pool, uint64_t index) noexcept nogil:
    """Whether an object that this context does not own may be touched: ABSENT if its memory has
    been given back, BUSY if that may be under way. OK holds until the context's operation ends.

    The context is inside an operation. Either this load sees that block_release holds the block; or
    block_release sees, after its membarrier, the activity that this context stored before the load.
    For blocks of objects it looks, after its fence, for names instead (hazard.pxd): it sees a name
    that this context stored before, if this context made a fence between that and the load."""
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
    """Release an empty block, unless it is kept for the next refill."""
    cdef uint64_t spare
    if pool.capacity == 1:
        block_release(op, pool, block)
        return
    if not block_is_empty(pool, block, load_relaxed_u64(pool.words + block)):
        return
    spare = load_relaxed_u64(&pool.shared.kept_block)
    if spare != 0 and spare - 1 != block and spare - 1 < pool_words_usable(op, pool) and (
            block_is_empty(pool, spare - 1, load_relaxed_u64(pool.words + spare - 1))):
        # Keep the lower of the two empty blocks, and release the higher.
        if spare - 1 > block:
            store_relaxed_u64(&pool.shared.kept_block, block + 1)
            block = spare - 1
        block_release(op, pool, block)
    else:
        store_relaxed_u64(&pool.shared.kept_block, block + 1)

cdef enum:
    POOL_TRIES_MAX = 16        # blocks that others locked or used up after the search found them

cdef struct FreeList:          # objects taken from a block, linked by index through words[0]
    uint64_t head
    uint64_t tail
    uint64_t count
    uint64_t behind            # of a run: the object after the tail in the depot's list


cdef inline Status pool_lock_block(
        Op *op, PoolView *pool, uint64_t *block, uint64_t *held) noexcept nogil:
    """Lock the word of a block that has a free object."""
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
    """The place after place in the block's free list; False if it is not within the block."""
    next_place[0] = load_relaxed_u64(
        &pool_object(pool, block * pool.capacity + place).words[0]) - block * pool.capacity
    return next_place[0] < pool.capacity

cdef inline Status pool_take(
        Op *op, PoolView *pool, uint64_t *name, uint64_t length) noexcept nogil:
    """Take one object, in state ALLOC, into the context's field name. length: that of an object of
    a class; other pools need none."""
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
        # The last link of a list has no meaning; the count says where the list ends.
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
    place += block * pool.capacity
    name[0] = ref_make(place, length) if pool.kind >= POOL_OBJECTS else place
    compiler_fence()
    header_set(&taken.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()
    lock_release(pool.words + block, after)
    return OK

cdef inline Status pool_detach(
        Op *op, PoolView *pool, uint64_t wanted, FreeList *chain) noexcept nogil:
    """Take up to wanted objects, state FREE, as a list that context.list_head, list_tail and
    list_count name.

    The caller holds the depot that they are for; if it dies, recovery puts the list into that
    depot. Until the block's word is stored, the block's own list is unchanged: the new list is the
    front of it, and only the last link, which has no meaning, is written.
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
    """Put object index, owned and ALLOC, into its held block. One store commits and unlocks."""
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

cdef inline void pool_put_run(
        PoolView *pool, uint64_t block, uint64_t held, const FreeList *run) noexcept nogil:
    """Put a list of FREE objects of a held block before the block's own list. One store commits and
    unlocks."""
    store_relaxed_u64(
        &pool_object(pool, run.tail).words[0], block * pool.capacity + block_head(held))
    compiler_fence()
    lock_release(pool.words + block, block_word(
        BLOCK_READY, block_fresh(held), block_free(held) + <uint32_t> run.count,
        <uint32_t> (run.head - block * pool.capacity)))
    if load_relaxed_u64(&pool.shared.hint) > block:
        store_relaxed_u64(&pool.shared.hint, block)

cdef inline Status pool_give(
        Op *op, PoolView *pool, uint64_t index, uint64_t *name) noexcept nogil:
    """Give back object index, in state ALLOC, which the context's field name names; clear the
    field.

    The caller must hold no lock, because this may release the block's memory.
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
