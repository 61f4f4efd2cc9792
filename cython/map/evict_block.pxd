# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Eviction by block: how memory moves from one size of objects to another.
#
# The objects of a class lie in blocks, and a block goes back to the budget when all of its objects
# are gone. So if the sizes of values change, the entries that the policy evicts (evict.pxd) leave
# blocks that are half full of the old size, and free nothing for the new one. An operation that
# found no memory after a few evictions chooses the block that costs least, evicts the entries that
# have objects in it, and gives the block back: at most one block for each that is committed.
#
#   class   the one that has most free bytes in its blocks: what it does not use. A class in use has
#           less than a block free. Where the budget counts the blocks of elements, too, their pool
#           is a class like the others, but a block of it goes only if it is half empty, if its
#           values have at most ELEMENTS_COST times its bytes, if another block's worth stays free,
#           and if the next entries do not go there.
#   block   the one with the fewest objects. Of equal ones, the next after block_hand; so full ones
#           go round in turn, which is roughly the order of insertion.
#   entry   the header of a LIVE object names the element that refers to it (object_header_live).
#           The name is stored by the store that makes the object LIVE, so there is no order to
#           keep. It is a hint: the entry is evicted only if its element refers to the object now.
#
# The walk over a block holds no lock. It names an object of the block in its context's hazard, so
# that the memory stays (hazard.pxd), and looks at everything twice: before it evicts anything, it
# makes sure that every object can be freed. If one is being inserted or removed, is pinned, or
# belongs to an entry in a section, the block stays, and another block is chosen. Each eviction is
# that of evict.pxd, so a process that is killed in a walk leaves a block with fewer objects.
from libc.stdint cimport uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, add_relaxed_u64, fence_acquire, fence_seq_cst, pause,
)
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY
from segment.layout cimport PAGE_BYTES, ELEMENT_FREE, ELEMENT_LIVE, BLOCK_READY, Element
from segment.words cimport (
    word_locked, element_state, object_element, depot_count, depot_head, block_state, block_fresh,
    block_free,
)
from segment.classes cimport (
    CLASS_BLOCKS, BLOCK_HEADER, POOL_OBJECTS, class_bytes, ref_make, ref_index, ref_class,
    ref_length, PoolView, pool_has_depots,
)
from segment.geometry cimport Map, depot_at, element_at, element_value, pool_object
from memory.operation cimport SPIN_PAUSES_MAX, Op
from memory.budget cimport budget_word, bytes_are_free
from memory.hazard cimport hazard_set, hazard_none
from memory.pool cimport (
    pool_words_usable, block_name, block_release, block_is_empty, object_memory_ready,
)
from memory.depot cimport depot_here, depot_first, depot_drain
from map.table cimport entries_taken
from map.hold cimport op_give_back
from map.sweep cimport Expired
from map.evict cimport CHOSEN_BLOCK, Reason, victim_look, victim_remove, evict_one

cdef enum:
    CLASS_LOOKS_MAX = 1024     # blocks of a class that one choice looks at: a microsecond
    BLOCK_CHOICES_MAX = 8      # blocks that are chosen, and cannot go, before others are evicted
    BLOCKS_AT_ONCE = 64        # blocks that go before the operation is tried again
    ENTRIES_AT_ONCE = 4096     # entries that the policy evicts before that
    POLICY_SHARE = 2           # 0 costs ten points of the hit ratio in mixes of sizes, 100 six
    ENTRY_TRIES_MAX = 4        # then other operations are changing the entry all the time
    ELEMENTS_COST = 4          # the bytes of a block of elements stay free, the entries come again
    ELEMENTS_LEFT = 2          # with less free, the next entries would need the block again

# A block that may go. name is 0 if there is none.
cdef struct BlockChoice:
    PoolView *pool
    uint64_t block
    uint64_t name              # block_name
    uint64_t free_bytes        # of its class, in the blocks that were looked at
    uint64_t all_bytes         # of these blocks


cdef inline uint64_t block_unused(PoolView *pool, uint64_t block, uint64_t word) noexcept nogil:
    """Objects of a READY block that are not in use, and in no depot."""
    return pool.capacity - block_fresh(word) + block_free(word) + (
        pool.reserved if block == 0 else 0)

cdef inline void tried_none(uint64_t *tried) noexcept nogil:
    cdef uint32_t at
    for at in range(BLOCK_CHOICES_MAX):
        tried[at] = 0

cdef inline bint choice_tried(const uint64_t *tried, uint64_t name) noexcept nogil:
    cdef uint32_t at
    for at in range(BLOCK_CHOICES_MAX):
        if tried[at] == name:
            return True
    return False

cdef inline uint64_t class_parked(Op *op, PoolView *pool, uint64_t *hand) noexcept nogil:
    """How many free objects the depots of a class have. hand becomes the block of the one that was
    freed last on this CPU: often by the policy, so its block has other entries of that age."""
    cdef uint64_t parked = 0
    cdef uint64_t index, word
    if not pool_has_depots(pool):
        return 0
    for index in range(op.map.depot_count):
        parked += depot_count(load_relaxed_u64(
            &depot_at(op.map, depot_first(op.map, pool) + index).word))
    word = load_relaxed_u64(&depot_at(
        op.map, depot_first(op.map, pool) + depot_here(op.map)).word)
    if depot_count(word) != 0:
        hand[0] = depot_head(word) // pool.capacity
    return parked

cdef inline void class_look(
        Op *op, PoolView *pool, uint64_t hand, uint64_t lowest, const uint64_t *tried,
        BlockChoice *choice) noexcept nogil:
    """The block of a class that has the fewest objects, of those from hand on; not below lowest."""
    cdef uint64_t limit = load_relaxed_u64(&pool.shared.frontier)
    cdef uint64_t usable = pool_words_usable(op, pool)
    cdef uint64_t most = 0
    cdef uint64_t _turn, block, word, unused
    choice.pool = pool
    choice.block = choice.name = choice.all_bytes = 0
    choice.free_bytes = class_parked(op, pool, &hand) * pool.stride
    limit = limit if limit < usable else usable
    if limit == 0:
        return
    block = hand % limit
    for _turn in range(limit if limit < CLASS_LOOKS_MAX else CLASS_LOOKS_MAX):
        word = load_relaxed_u64(pool.words + block)
        if block_state(word) == BLOCK_READY and not word_locked(word):
            unused = block_unused(pool, block, word)
            choice.free_bytes += unused * pool.stride
            choice.all_bytes += pool.block_bytes
            if (choice.name == 0 or unused > most) and block >= lowest and (
                    not choice_tried(tried, block_name(pool, block))):
                most = unused
                choice.block = block
                choice.name = block_name(pool, block)
        block = block + 1 if block + 1 < limit else 0

cdef inline uint64_t block_used(const BlockChoice *choice) noexcept nogil:
    """Objects of a chosen block that are in use; 0 if it has gone."""
    cdef PoolView *pool = choice.pool
    cdef uint64_t unused = block_unused(
        pool, choice.block, load_relaxed_u64(pool.words + choice.block))
    return pool.capacity - unused if unused < pool.capacity else 0

cdef inline uint64_t elements_cost(Op *op, const BlockChoice *choice) noexcept nogil:
    """How many bytes the values of a block of elements have, as far as one look says."""
    cdef Map *map = op.map
    cdef uint64_t index = choice.block * choice.pool.capacity
    cdef uint64_t size = 0
    cdef uint64_t _
    cdef uint32_t slot
    cdef Element *element
    if object_memory_ready(op, choice.pool, index) != OK:
        return 0
    for _ in range(choice.pool.capacity):
        element = element_at(map, index)
        if element_state(load_relaxed_u64(&element.header)) == ELEMENT_LIVE:
            for slot in range(map.ref_count):
                size += ref_length(load_relaxed_u64(
                    element_value(map, element) + map.ref_words[slot]))
        index += 1
    return size

cdef inline bint elements_may_go(Op *op, const BlockChoice *choice) noexcept nogil:
    """Whether the chosen block of elements is worth its entries, and will not be missed."""
    return block_used(choice) * 2 <= choice.pool.capacity and (
        choice.free_bytes >= ELEMENTS_LEFT * choice.pool.block_bytes
        and elements_cost(op, choice) <= ELEMENTS_COST * choice.pool.block_bytes)

cdef inline void block_choose(Op *op, const uint64_t *tried, BlockChoice *best) noexcept nogil:
    """The block that costs least; not one of those that were tried."""
    cdef uint64_t hand = add_relaxed_u64(&op.map.cache.block_hand, 1)
    cdef BlockChoice choice
    cdef uint32_t which
    best.pool = NULL
    best.name = best.block = best.free_bytes = best.all_bytes = 0
    for which in range(CLASS_BLOCKS):
        if load_relaxed_u64(&op.map.classes[which].shared.ready_count) == 0:
            continue
        class_look(op, &op.map.classes[which], hand, 0, tried, &choice)
        if choice.name != 0 and (
                best.name == 0 or choice.free_bytes > best.free_bytes
                or (choice.free_bytes == best.free_bytes and choice.all_bytes > best.all_bytes)):
            best[0] = choice
    if op.map.counts_all:
        # The next entries will lie in the block of the hint, or have just been put there.
        class_look(
            op, &op.map.element_pool, hand, load_relaxed_u64(&op.map.element_pool.shared.hint) + 1,
            tried, &choice)
        if choice.name != 0 and choice.free_bytes > best.free_bytes and (
                elements_may_go(op, &choice)):
            best[0] = choice

cdef inline bint block_stays(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Whether the memory of a block that the operation's hazard names is there, and stays. A lock
    of its word that another operation holds for longer counts as a no."""
    cdef Status status = BUSY
    cdef int _
    for _ in range(SPIN_PAUSES_MAX):
        status = object_memory_ready(op, pool, block * pool.capacity)
        if status != BUSY:
            break
        pause()
    return status == OK

cdef inline bint element_refers(
        Map *map, Element *element, PoolView *pool, uint64_t object) noexcept nogil:
    """Whether one of the references of an element is to this object."""
    cdef uint64_t *value = element_value(map, element)
    cdef uint64_t ref
    cdef uint32_t slot
    for slot in range(map.ref_count):
        ref = load_relaxed_u64(value + map.ref_words[slot])
        if ref != 0 and ref_index(ref) == object and ref_class(ref) + POOL_OBJECTS == pool.kind:
            return True
    return False

cdef inline Status object_entry(
        Op *op, PoolView *pool, uint64_t object, Expired *victim) noexcept nogil:
    """OK: the entry to which an object belongs, which can be evicted. ABSENT: the object is free.
    BUSY: neither."""
    # Acquire: pairs with the release in object_attach.
    cdef uint64_t header = load_acquire_u64(&pool_object(pool, object).header)
    cdef Reason reason = CHOSEN_BLOCK
    cdef Element *element
    if element_state(header) == ELEMENT_FREE:
        return ABSENT
    if element_state(header) != ELEMENT_LIVE or word_locked(header) or (
            victim_look(op, object_element(header), 0, victim, &reason) != OK):
        return BUSY
    element = element_at(op.map, victim.index)
    if not element_refers(op.map, element, pool, object):
        return BUSY
    # The references are read before the header is loaded again; pairs with the release fences in
    # element.pxd.
    fence_acquire()
    return OK if load_relaxed_u64(&element.header) == victim.header else BUSY

cdef inline Status element_entry(Op *op, uint64_t index, Expired *victim) noexcept nogil:
    """object_entry for an element, which is an entry itself."""
    cdef Reason reason = CHOSEN_BLOCK
    if element_state(load_relaxed_u64(&element_at(op.map, index).header)) == ELEMENT_FREE:
        return ABSENT
    return OK if victim_look(op, index, 0, victim, &reason) == OK else BUSY

cdef inline Status thing_entry(
        Op *op, PoolView *pool, uint64_t index, Expired *victim) noexcept nogil:
    """object_entry for a pool of either kind."""
    if pool.kind < POOL_OBJECTS:
        return element_entry(op, index, victim)
    return object_entry(op, pool, index, victim)

cdef inline Status thing_evict(Op *op, PoolView *pool, uint64_t object) noexcept nogil:
    """Evict the entry to which an object belongs. ABSENT: the object is free; else it stays."""
    cdef Expired victim
    cdef Status status = BUSY
    cdef int _
    for _ in range(ENTRY_TRIES_MAX):
        victim.header = victim.index = victim.tag = 0
        status = thing_entry(op, pool, object, &victim)
        if status == OK:
            status = victim_remove(op, &victim, CHOSEN_BLOCK)
        if status != RETRY:
            break
    return status

cdef inline bint block_walk(Op *op, PoolView *pool, uint64_t block, bint evict) noexcept nogil:
    """Look at every object of a block, or evict the entry of each. False: one of them cannot go."""
    cdef uint64_t first = block * pool.capacity
    cdef uint64_t limit = first + block_fresh(load_relaxed_u64(pool.words + block))
    cdef uint64_t object
    cdef Expired victim
    cdef Status status
    if limit > first + pool.capacity:          # only in a damaged segment
        limit = first + pool.capacity
    for object in range(first + (pool.reserved if block == 0 else 0), limit):
        if not block_stays(op, pool, block):
            return evict                       # the last eviction has given it back
        status = thing_evict(op, pool, object) if evict else thing_entry(
            op, pool, object, &victim)
        if status != OK and status != ABSENT:
            return False
    return True

cdef inline void depots_empty(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Put what the depots of a class hold into its blocks, until this block is empty."""
    cdef uint64_t first = depot_first(op.map, pool)
    cdef uint64_t here = depot_here(op.map)
    cdef uint64_t turn, index, word
    for turn in range(op.map.depot_count):
        word = load_relaxed_u64(pool.words + block)
        if block_state(word) != BLOCK_READY or block_is_empty(pool, block, word):
            return
        index = first + ((here + turn) & (op.map.depot_count - 1))
        if depot_count(load_relaxed_u64(&depot_at(op.map, index).word)) != 0:
            depot_drain(op, index, 0)

cdef inline void elements_gather(Op *op) noexcept nogil:
    """Where blocks of elements count: if blocks' worth of elements is free, let the next entries
    lie in the lowest blocks, and not where entries went last, so that high blocks run empty."""
    cdef Map *map = op.map
    cdef uint64_t ready = load_relaxed_u64(&map.element_pool.shared.ready_count)
    if map.counts_all and ready > ELEMENTS_LEFT and (
            (ready - ELEMENTS_LEFT) * map.element_pool.capacity > entries_taken(map)):
        depot_drain(op, depot_here(map), 0)

cdef inline uint64_t block_evict(Op *op, PoolView *pool, uint64_t block) noexcept nogil:
    """Evict the entries that have objects in a block, and give its memory back. Returns how many
    pages that were; 0: the block stays."""
    if pool.kind >= POOL_OBJECTS:              # elements stay while the operation goes on
        hazard_set(op, ref_make(
            block * pool.capacity, class_bytes(pool.kind - POOL_OBJECTS) - BLOCK_HEADER))
        fence_seq_cst()                        # pairs with the fence in looks_are_ordered
    if not block_stays(op, pool, block) or not block_walk(op, pool, block, False):
        hazard_none(op)
        return 0
    block_walk(op, pool, block, True)
    hazard_none(op)
    if pool_has_depots(pool):
        depots_empty(op, pool, block)
    if block_is_empty(pool, block, load_relaxed_u64(pool.words + block)):
        block_release(op, pool, block)
    if block_state(load_relaxed_u64(pool.words + block)) == BLOCK_READY:
        return 0
    return pool.block_bytes // PAGE_BYTES

cdef inline bint holes_gather(Op *op) noexcept nogil:
    """Let a block go that is half empty, if the class that has most free bytes has one."""
    cdef uint32_t hash = op.hash
    cdef uint64_t tried[BLOCK_CHOICES_MAX]
    cdef BlockChoice choice
    cdef bint gone
    tried_none(tried)
    block_choose(op, tried, &choice)
    if choice.name == 0 or block_used(&choice) * 2 > choice.pool.capacity:
        return False
    op.element_filled = False
    op_give_back(op)
    gone = block_evict(op, choice.pool, choice.block) != 0
    elements_gather(op)
    op.hash = hash
    return gone

cdef inline uint64_t policy_share(Op *op, uint64_t pages, const BlockChoice *choice) noexcept nogil:
    """How many entries the policy evicts before a block goes: POLICY_SHARE times as many as have so
    many pages, times the part of the chosen block that is in use. So while blocks are full, the
    policy decides which entries go; once it has left holes in them, holes are gathered."""
    cdef uint64_t committed = budget_word(&op.map.objects.budget) + 1
    cdef uint64_t share = entries_taken(op.map) * pages // committed * POLICY_SHARE
    if choice.name == 0:
        return 0
    share = share * block_used(choice) // choice.pool.capacity
    return share if share < ENTRIES_AT_ONCE else ENTRIES_AT_ONCE

cdef inline uint64_t policy_evict(Op *op, uint64_t count, uint64_t pages) noexcept nogil:
    """Let the policy evict count entries, or fewer if these pages come free. Returns how many."""
    cdef uint64_t gone = 0
    while gone < count and not (gone != 0 and bytes_are_free(op.map, pages)):
        if evict_one(op) != OK:
            break
        gone += 1
    return gone

cdef inline uint64_t blocks_evict(Op *op, uint64_t pages) noexcept nogil:
    """Evict until this many pages have come free, after giving back what the operation has taken.
    Returns how many entries and blocks went: fewer, if that takes many, or none can go."""
    cdef uint32_t hash = op.hash
    cdef uint64_t tried[BLOCK_CHOICES_MAX]
    cdef uint32_t failed = 0
    cdef uint64_t freed = 0
    cdef uint64_t gone, went
    cdef BlockChoice choice
    cdef int _
    op.element_filled = False
    tried_none(tried)
    block_choose(op, tried, &choice)
    gone = policy_evict(op, policy_share(op, pages, &choice), pages)
    for _ in range(BLOCKS_AT_ONCE):
        if freed >= pages or failed == BLOCK_CHOICES_MAX or (
                freed == 0 and bytes_are_free(op.map, pages)):
            break
        block_choose(op, tried, &choice)
        if choice.name == 0:
            break
        went = block_evict(op, choice.pool, choice.block)
        if went == 0:
            tried[failed] = choice.name
            failed += 1
        freed += went
        gone += went != 0
    elements_gather(op)
    op.hash = hash
    return gone
