# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Depots, one for each CPU: free elements, and credits to use them (W2). Others have free objects
# of the small classes (object.pxd), which need no credit.
#
# The shape is that of the kernel's bpf_mem_alloc: each CPU takes from its own list and gives to it,
# and at most DEPOT_BATCH_MAX elements go to or from the pool at once. The CPU is a hint only: a
# depot that another context holds is passed over for the next. A depot is one word: lock, count,
# credit, head. Taking an element and its credit, and giving both back, is committed by the one
# store that also unlocks.
#
# Credits make max_entries exact. Each entry holds one credit; header.credits counts those that are
# in no depot. A depot without credit fetches up to CREDIT_BATCH from there; the map is full only
# when neither the header nor any depot has a credit. header.credits + sum of the depots' credits +
# entries == max_entries, always, where an element that a context has taken and not yet inserted, or
# deleted and not yet given back, counts as an entry.
#
# Moving credits: with the depot and the header's word held, credit_after and then credit_moving are
# stored; the header's store commits; the depot's store completes. If the owner dies while it holds
# the depot, recovery decides by the header's word: if the dead context holds that too, nothing has
# moved; else the depot's credit becomes credit_after. A list of elements moves likewise, with
# list_head, list_tail and list_count: from a block (pool_detach), or to one (depot_push_down).
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, compiler_fence, prefetch_write, unlikely,
)
from segment.status cimport Status, OK, FULL, CORRUPT, BUSY, NEED_ELEMENTS
from segment.layout cimport (
    PAYLOAD_SHIFT, ELEMENT_FREE, ELEMENT_ALLOC, LIST_GIVEN, Element, Depot,
)
from segment.words cimport (
    word_locked, word_taken, lock_bits, block_free, block_fresh, depot_count, depot_credit,
    depot_head, depot_word,
)
from segment.classes cimport (
    POOL_OBJECTS, ref_make, ref_index, PARKED_MAX, CREDIT_BATCH, CREDIT_HIGH, PoolView,
)
from segment.geometry cimport Map, depot_at, depot_pool, element_at, pool_object, checked_index
from memory.operation cimport Op, lock_busy, lock_try, lock_acquire, lock_release, header_set
from memory.pool cimport (
    block_name, block_is_empty, block_retire_if_empty, FreeList, pool_detach, pool_put_run,
)

cdef enum:
    DEPOT_LOW = 8              # elements that a depot may park when blocks ought to run empty
    DRAIN_AT_ONCE = 16         # elements moved under one lock of a depot: half a microsecond

cdef extern from "<sched.h>" nogil:
    int sched_getcpu() noexcept

cdef inline uint64_t depot_here(Map *map) noexcept nogil:
    """The depot of this CPU: its number modulo a power of two."""
    return <uint64_t> sched_getcpu() & (map.depot_count - 1)

cdef inline void depot_store(Op *op, Depot *depot, uint64_t payload) noexcept nogil:
    """Store a new payload in a depot that stays held."""
    store_relaxed_u64(&depot.word, word_taken(payload, op.self_index))
    compiler_fence()

cdef inline Status depot_hold(Op *op, uint64_t index, uint64_t *held, bint wait) noexcept nogil:
    op.context.depot = index + 1
    compiler_fence()
    if wait:
        return lock_acquire(op, &depot_at(op.map, index).word, held)
    return lock_try(op, &depot_at(op.map, index).word, held)

cdef inline Status credits_move(
        Op *op, Depot *depot, uint64_t *held, bint fetch) noexcept nogil:
    """Fetch up to CREDIT_BATCH credits into the held depot, or return CREDIT_BATCH of them."""
    cdef uint64_t *word = &op.map.header.credits
    cdef uint64_t header_held = 0
    cdef uint64_t moving = CREDIT_BATCH
    cdef uint64_t available, after
    cdef Status status
    if fetch and load_relaxed_u64(word) >> PAYLOAD_SHIFT == 0:
        return FULL
    status = lock_acquire(op, word, &header_held)
    if status != OK:
        return status
    available = header_held >> PAYLOAD_SHIFT
    if fetch:
        if moving > available:
            moving = available
        after = depot_credit(held[0]) + moving
        available -= moving
    else:
        after = depot_credit(held[0]) - moving
        available += moving
    op.context.credit_after = after
    compiler_fence()
    op.context.credit_moving = 1
    compiler_fence()
    lock_release(word, available << PAYLOAD_SHIFT)
    held[0] = word_taken(
        depot_word(depot_head(held[0]), depot_count(held[0]), <uint32_t> after), op.self_index)
    depot_store(op, depot, held[0])
    op.context.credit_moving = 0
    compiler_fence()
    return OK if moving else FULL

cdef inline Status depot_refill(
        Op *op, Depot *depot, PoolView *pool, uint64_t batch, uint64_t *held) noexcept nogil:
    """Fetch objects from the pool into the held depot."""
    cdef FreeList chain = FreeList(0, 0, 0, 0)
    cdef Status status = pool_detach(op, pool, batch, &chain)
    if status != OK:
        return status
    store_relaxed_u64(&pool_object(pool, chain.tail).words[0], depot_head(held[0]))
    compiler_fence()
    held[0] = word_taken(
        depot_word(<uint32_t> chain.head, depot_count(held[0]) + <uint32_t> chain.count,
                   depot_credit(held[0])), op.self_index)
    depot_store(op, depot, held[0])
    op.context.list_count = 0
    compiler_fence()
    return OK

cdef inline Status depot_take(Op *op, uint64_t index) noexcept nogil:
    """Take an element and a credit from one depot into context.element."""
    cdef Map *map = op.map
    cdef Depot *depot = map.depots + index
    cdef uint64_t held = 0
    cdef uint64_t taken, next_free
    cdef Element *element
    cdef Status status = depot_hold(op, index, &held, True)
    if status != OK:
        return status
    if depot_credit(held) == 0:
        status = credits_move(op, depot, &held, True)
    if status == OK and depot_count(held) == 0:
        status = depot_refill(op, depot, &map.element_pool, map.depot_batch, &held)
    taken = depot_head(held)
    if status == OK and (taken == 0 or taken >= map.element_max):
        status = CORRUPT
    if status != OK:
        lock_release(&depot.word, held)
        return status
    element = element_at(map, taken)
    next_free = load_relaxed_u64(&element.words[0])
    store_relaxed_u64(&op.context.element, taken)
    compiler_fence()
    header_set(&element.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()
    lock_release(&depot.word, depot_word(
        <uint32_t> next_free, depot_count(held) - 1, depot_credit(held) - 1))
    if next_free < map.element_max:
        prefetch_write(element_at(map, next_free))
    return OK

cdef inline bint depot_is_spent(Map *map, uint64_t index) noexcept nogil:
    """Whether a depot and the header have no credit. Nothing is held for this.

    Credits leave the header only while a depot is held, so to a depot that is unlocked and without
    credit none is on its way.
    """
    cdef uint64_t word
    if load_relaxed_u64(&map.header.credits) >> PAYLOAD_SHIFT != 0:
        return False
    # Acquire: a later load of another depot must not be older than this one.
    word = load_acquire_u64(&map.depots[index].word)
    return not word_locked(word) and depot_credit(word) == 0

cdef inline bint credits_are_spent(Map *map) noexcept nogil:
    """Whether the header and all depots have no credit, as far as one look at each says."""
    cdef uint64_t index
    for index in range(map.depot_count):
        if not depot_is_spent(map, index):
            return False
    return True

cdef inline Status element_take(Op *op, bint any_depot) noexcept nogil:
    """Take an element and a credit, from this CPU's depot or, if that has no credit, from another.

    FULL only if neither the header nor any depot had a credit. NEED_ELEMENTS if a block has to be
    committed first; with any_depot, only if no depot has a free element either.
    """
    cdef Map *map = op.map
    cdef uint64_t here = depot_here(map)
    cdef uint64_t turn, index
    cdef Status status
    cdef Status worst = FULL
    for turn in range(map.depot_count):
        index = (here + turn) & (map.depot_count - 1)
        if depot_is_spent(map, index):
            continue
        status = depot_take(op, index)
        if status == OK or status == CORRUPT or (status == NEED_ELEMENTS and not any_depot):
            return status
        if status != FULL:
            worst = status
    return worst

cdef inline uint64_t depot_keep(Map *map) noexcept nogil:
    """How many free elements a depot may park: few when most committed elements are free, because
    each parked element may keep a whole block."""
    cdef uint64_t taken = map.max_entries - (load_relaxed_u64(&map.header.credits) >> PAYLOAD_SHIFT)
    cdef uint64_t ready = load_relaxed_u64(&map.element_pool.shared.ready_count)
    if ready > 4 and ready * map.element_pool.capacity > 4 * taken and map.depot_high > DEPOT_LOW:
        return DEPOT_LOW
    return map.depot_high

cdef inline Status element_give(Op *op) noexcept nogil:
    """Give back the element that context.element names, ALLOC or DEAD, and its credit."""
    cdef Map *map = op.map
    cdef uint64_t given = checked_index(&map.element_pool, load_relaxed_u64(&op.context.element))
    cdef Element *element = element_at(map, given)
    cdef uint64_t here = depot_here(map)
    cdef uint64_t held = 0
    cdef uint64_t index = here
    cdef uint64_t turn
    cdef Status status = BUSY
    for turn in range(map.depot_count + 1):    # the last turn waits for the first depot
        index = (here + turn) & (map.depot_count - 1)
        status = depot_hold(op, index, &held, turn == map.depot_count)
        if status == OK:
            if depot_count(held) < PARKED_MAX and depot_credit(held) < PARKED_MAX:
                break
            lock_release(&map.depots[index].word, held)
            status = lock_busy(op, &map.depots[index].word, held)
    if status != OK:
        return status
    store_relaxed_u64(&element.words[0], depot_head(held))
    compiler_fence()
    header_set(&element.header, ELEMENT_FREE, 0)
    compiler_fence()
    lock_release(&map.depots[index].word, depot_word(
        <uint32_t> given, depot_count(held) + 1, depot_credit(held) + 1))
    compiler_fence()
    store_relaxed_u64(&op.context.element, 0)
    compiler_fence()
    # Counts rise by one, so few of them need the look at how many may be parked.
    if unlikely(depot_count(held) % DEPOT_LOW == 0 or depot_count(held) >= map.depot_high or (
            depot_credit(held) >= CREDIT_HIGH)):
        depot_trim_if_over(op, index, held)
    return OK

cdef inline void depot_trim_if_over(Op *op, uint64_t index, uint64_t held) noexcept nogil:
    """depot_trim for a depot that had more than it keeps, or too many credits, when it was held."""
    cdef uint64_t keep = depot_keep(op.map)
    if depot_count(held) >= keep or depot_credit(held) >= CREDIT_HIGH:
        depot_trim(op, index, keep)

cdef inline void depot_trim(Op *op, uint64_t index, uint64_t keep) noexcept nogil:
    """Reduce a depot to half of keep, and its credits to less than CREDIT_HIGH.

    Stops early, and loses nothing, if a lock is not free.
    """
    cdef Map *map = op.map
    cdef uint64_t held = 0
    cdef uint64_t turn, other
    if depot_hold(op, index, &held, False) != OK:
        return
    if depot_credit(held) >= CREDIT_HIGH:
        credits_move(op, map.depots + index, &held, False)
    lock_release(&map.depots[index].word, held)
    depot_drain(op, index, keep // 2)
    if keep == map.depot_high:
        return
    for turn in range(1, map.depot_count):     # a depot that no CPU uses keeps blocks, too
        other = (index + turn) & (map.depot_count - 1)
        if depot_count(load_relaxed_u64(&map.depots[other].word)) > DEPOT_LOW:
            depot_drain(op, other, 0)
            return

cdef inline void depot_drain(Op *op, uint64_t index, uint64_t target) noexcept nogil:
    """Move objects from a depot into their blocks until target are left. The depot is held for a
    few objects at a time; a block that has run empty is released while nothing is held."""
    cdef Depot *depot = depot_at(op.map, index)
    cdef PoolView *pool = depot_pool(op.map, index)
    cdef uint64_t held = 0
    cdef uint64_t moved, block, count, wanted
    cdef uint64_t _turn
    cdef bint empty
    for _turn in range(PARKED_MAX):            # each turn moves at least one, or is the last
        if depot_hold(op, index, &held, False) != OK:
            return
        empty = False
        moved = block = 0
        while depot_count(held) > target and moved < DRAIN_AT_ONCE and not empty:
            wanted = depot_count(held) - target
            block = depot_head(held) // pool.capacity
            count = depot_push_down(
                op, depot, pool, block, min(wanted, DRAIN_AT_ONCE - moved), &held)
            if count == 0:
                break
            moved += count
            empty = block_is_empty(pool, block, load_relaxed_u64(pool.words + block))
        lock_release(&depot.word, held)
        if empty:
            block_retire_if_empty(op, pool, block)
        if moved == 0:
            return

cdef inline void depot_run(
        PoolView *pool, uint64_t block, uint64_t most, FreeList *run) noexcept nogil:
    """Complete a run that begins with a depot's first object: those behind it that are of the same
    block, most objects altogether, which the depot has."""
    cdef uint64_t base = block * pool.capacity
    cdef uint64_t following = load_relaxed_u64(&pool_object(pool, run.head).words[0])
    run.tail = run.head
    run.count = 1
    while run.count < most and following - base < pool.capacity and following != 0:
        run.tail = following
        run.count += 1
        following = load_relaxed_u64(&pool_object(pool, following).words[0])
    run.behind = following

cdef inline uint64_t depot_push_down(
        Op *op, Depot *depot, PoolView *pool, uint64_t block, uint64_t most, uint64_t *held
        ) noexcept nogil:
    """Move the held depot's first objects that are of this block, up to most of those it has, into
    the block, if its lock is free. Returns how many.

    They stay FREE: no other context can reach them while their depot or their block is held. If the
    process is killed, recovery finds the run in the depot, in the block, or, if the depot's head is
    another and the block is still held, in neither, and puts it into the block.
    """
    cdef FreeList run = FreeList(depot_head(held[0]), 0, 0, 0)
    cdef uint64_t block_held = 0
    if run.head == 0 or run.head >= pool.object_count:
        return 0
    op.context.block = block_name(pool, block)
    compiler_fence()
    if lock_try(op, pool.words + block, &block_held) != OK:
        return 0
    depot_run(pool, block, most, &run)
    if block_free(block_held) + run.count > block_fresh(block_held):   # only in a damaged segment
        lock_release(pool.words + block, block_held)
        return 0
    op.context.list_head = run.head
    op.context.list_tail = run.tail
    compiler_fence()
    op.context.list_count = run.count | LIST_GIVEN
    compiler_fence()
    held[0] = word_taken(
        depot_word(<uint32_t> run.behind, depot_count(held[0]) - <uint32_t> run.count,
                   depot_credit(held[0])), op.self_index)
    depot_store(op, depot, held[0])
    pool_put_run(pool, block, block_held, &run)
    compiler_fence()
    op.context.list_count = 0
    compiler_fence()
    return run.count

cdef inline uint64_t depot_first(Map *map, PoolView *pool) noexcept nogil:
    """The first of the depots of the elements, or of a small class."""
    return <uint64_t> (pool.kind - POOL_OBJECTS + 1) * map.depot_count if pool.kind != 0 else 0

cdef inline Status depot_take_object_from(
        Op *op, uint64_t index, PoolView *pool, uint64_t slot, uint64_t length) noexcept nogil:
    """Take an object out of depot index, refilled if it is empty, into owned_refs[slot]."""
    cdef Depot *depot = depot_at(op.map, index)
    cdef uint64_t held = 0
    cdef uint64_t taken
    cdef Element *thing
    cdef Status status = depot_hold(op, index, &held, True)
    if status != OK:
        return status
    if depot_count(held) == 0:
        status = depot_refill(op, depot, pool, pool.depot_high // 2, &held)
    taken = depot_head(held)
    if status == OK and (taken == 0 or taken >= pool.object_count):
        status = CORRUPT
    if status != OK:
        lock_release(&depot.word, held)
        return status
    thing = pool_object(pool, taken)
    store_relaxed_u64(&op.context.owned_refs[slot], ref_make(taken, length))
    compiler_fence()
    held = depot_word(
        <uint32_t> load_relaxed_u64(&thing.words[0]), depot_count(held) - 1, 0)
    header_set(&thing.header, ELEMENT_ALLOC, lock_bits(op.self_index))
    compiler_fence()
    lock_release(&depot.word, held)
    return OK

cdef inline Status depot_take_object(
        Op *op, PoolView *pool, uint64_t slot, uint64_t length, bint any_depot) noexcept nogil:
    """Take a small object. With any_depot, if memory cannot be had, from any depot."""
    cdef uint64_t first = depot_first(op.map, pool)
    cdef uint64_t here = depot_here(op.map)
    cdef uint64_t turn, index
    cdef Status status = depot_take_object_from(op, first + here, pool, slot, length)
    if status == OK or status == BUSY or not any_depot:
        return status
    for turn in range(1, op.map.depot_count):
        index = first + ((here + turn) & (op.map.depot_count - 1))
        if depot_count(load_relaxed_u64(&depot_at(op.map, index).word)) != 0 and (
                depot_take_object_from(op, index, pool, slot, length) == OK):
            return OK
    return status

cdef inline Status depot_give_object(
        Op *op, PoolView *pool, uint64_t slot, uint64_t ref) noexcept nogil:
    """Give back the small object ref, which owned_refs[slot] names, ALLOC; clear the name."""
    cdef uint64_t given = ref_index(ref)
    cdef uint64_t first = depot_first(op.map, pool)
    cdef uint64_t here = depot_here(op.map)
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
    store_relaxed_u64(&op.context.owned_refs[slot], 0)
    compiler_fence()
    if unlikely(depot_count(held) >= pool.depot_high):
        depot_drain(op, index, pool.depot_high // 2)
    return OK
