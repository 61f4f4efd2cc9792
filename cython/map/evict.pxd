# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Eviction: which entry a cache gives up when it has no credit or no memory left.
#
# The policy is S3-FIFO, in place. Elements never move, and the element that a deletion frees is the
# next to be filled, so the order of the elements is roughly the order of insertion: a hand that
# goes round the element array is a queue without links.
#
#   new     A new entry is noted in the ring, and the entry's mark has the place. While the ring is
#           longer than a tenth of the entries, evictions take from its head: an entry that was read
#           since its insertion is kept, any other is evicted, and leaves a ghost.
#   kept    Otherwise the hand looks at elements in turn. It passes the new ones. A kept one that
#           was read loses one of its counted reads; the first that has none left is evicted, or
#           after HAND_CHOICE_MAX elements the one that had least.
#   ghosts  A key that comes back while its ghost is there is inserted as kept. A ghost is 16 bits
#           of a hash, in a line that is chosen by the hash; a line drops its oldest.
#   reads   A reader adds one to the mark, up to USES_MAX: one byte is stored at most, in the cache
#           line that the lookup has read, and none once the mark is full.
#
# An entry whose deadline has passed, or that is outdated (births.pxd), is evicted by the ring or
# the hand, whichever comes across it.
#
# All of these are hints: whatever the marks, the ring, its words, the hand and the ghosts contain,
# an eviction finds some entry that is in the map, or none. So none of it is locked, ordered or
# recovered. A reader or evictor that is killed between two stores leaves an entry in no place of
# the ring, or a place that names an element which says another place. The first is taken for kept
# by the hand, since its place is behind the head; the second is passed over. Concurrent changes of
# a mark may be lost.
#
# An evicted entry is deleted like an expired one (sweep.pxd): the CAS to DEAD expects the header
# with which the entry was chosen, under the lock of its bucket. So a section, a writer, a walk and
# a waiter see an ordinary deletion, and recovery completes it. An entry that is held, by a section
# or a writer, is passed over.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u8, store_relaxed_u8, load_relaxed_u16, store_relaxed_u16, load_relaxed_u32,
    store_relaxed_u32, load_relaxed_u64, load_acquire_u64, add_relaxed_u64, cas_acq_rel_u64,
    fence_acquire,
)
from machine.hashing cimport hash_key
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.status cimport Status, OK, ABSENT, BUSY, RETRY
from segment.layout cimport (
    GHOST_PRINTS, ELEMENT_LIVE, Element, Mark, CacheCounts,
)
from segment.words cimport word_locked, element_state
from segment.geometry cimport Map, element_at, element_value
from segment.births cimport value_is_outdated
from memory.operation cimport Op, lock_busy
from memory.depot cimport credits_are_spent
from memory.pool cimport object_memory_ready
from map.chain cimport Found
from map.table cimport entries_taken
from map.read cimport map_find
from map.sweep cimport Expired, expired_remove

cdef enum:
    USES_MAX = 3               # 1 bit instead of 2 costs half a point of the hit ratio
    NEW_SHARE = 10             # new entries are evicted while they are more than a tenth
    HAND_CHOICE_MAX = 16       # 64 gain nothing, and no limit a hundredth of a point
    HAND_IDLE_MAX = 64         # then the ring is asked, however short it is
    EVICT_LOOKS_MAX = 4096     # places and elements that one eviction looks at
    COST_BITS = 11             # a cost is right to a thousandth, and at most 73 minutes
    COST_MANTISSA = 0x7FF
    EVICT_TRIES_MAX = 16       # chosen entries that changed before they were deleted

# Why an entry was chosen.
cdef enum Reason:
    CHOSEN_NEW
    CHOSEN_KEPT
    CHOSEN_EXPIRED
    CHOSEN_BLOCK               # with the block that it lies in (evict_block.pxd)


cdef inline Mark *element_mark(Map *map, Element *element) noexcept nogil:
    return <Mark *> (<uint8_t *> element + map.mark_offset)

cdef inline void entry_used(Map *map, Element *element) noexcept nogil:
    """Count a read. Call it inside the operation that found the entry: until that ends, the memory
    stays, though the element may have another entry by now."""
    cdef Mark *mark = element_mark(map, element)
    cdef uint8_t uses = load_relaxed_u8(&mark.uses)
    if uses < USES_MAX:
        store_relaxed_u8(&mark.uses, uses + 1)

# What a value cost: exponent : 5   mantissa : 11, of nanoseconds.

cdef inline uint16_t cost_of(uint64_t ns) noexcept nogil:
    cdef uint32_t shift = 0
    while ns >> shift > COST_MANTISSA and shift < 31:      # at most 31 turns
        shift += 1
    if ns >> shift > COST_MANTISSA:
        return <uint16_t> 0xFFFF
    return <uint16_t> (shift << COST_BITS | ns >> shift)

cdef inline uint64_t cost_ns(uint16_t cost) noexcept nogil:
    return <uint64_t> (cost & COST_MANTISSA) << (cost >> COST_BITS)

cdef inline CacheCounts *counts_of(Map *map) noexcept nogil:
    """Where this process counts. It has a slot: the caller is inside an operation."""
    return map.cache_counts + map.local.process_index

# Ghosts.

cdef inline uint16_t *ghost_line(Map *map, uint32_t hash) noexcept nogil:
    return map.ghosts + ((<uint64_t> hash * map.ghost_lines) >> 32) * (GHOST_PRINTS + 1)

cdef inline uint16_t ghost_print(uint32_t hash) noexcept nogil:
    """The fingerprint of a hash: bits that the choice of the line has not used. 0 is none."""
    cdef uint16_t bits = <uint16_t> ((hash * <uint32_t> 0x9E3779B1) >> 16)
    return bits if bits != 0 else 1

cdef inline void ghost_leave(Map *map, uint32_t hash) noexcept nogil:
    cdef uint16_t *line = ghost_line(map, hash)
    cdef uint32_t oldest = load_relaxed_u16(line + GHOST_PRINTS) % GHOST_PRINTS
    store_relaxed_u16(line + oldest, ghost_print(hash))
    store_relaxed_u16(line + GHOST_PRINTS, <uint16_t> (oldest + 1))

cdef inline bint ghost_take(Map *map, uint32_t hash) noexcept nogil:
    """Whether a key with this hash left a ghost; the ghost is gone then."""
    cdef uint16_t *line = ghost_line(map, hash)
    cdef uint16_t wanted = ghost_print(hash)
    cdef uint32_t at
    for at in range(GHOST_PRINTS):
        if load_relaxed_u16(line + at) == wanted:
            store_relaxed_u16(line + at, 0)
            return True
    return False

cdef inline void entry_begin(Op *op, Element *element) noexcept nogil:
    """Before the insertion of context.element, this element, under the operation's hash: mark it as
    new and note it in the ring, or as kept."""
    cdef Map *map = op.map
    cdef Mark *mark = element_mark(map, element)
    cdef bint known = ghost_take(map, op.hash)
    cdef uint64_t place
    store_relaxed_u8(&mark.uses, 0)
    store_relaxed_u8(&mark.kept, known)
    store_relaxed_u16(&mark.cost, 0)
    if not known:
        place = add_relaxed_u64(&map.cache.tail, 1)
        store_relaxed_u32(&mark.place, <uint32_t> place)
        store_relaxed_u32(
            map.cache_ring + (place & (map.cache_ring_places - 1)),
            <uint32_t> load_relaxed_u64(&op.context.element))

# Choosing.

cdef inline uint64_t new_count(Map *map, uint64_t *head) noexcept nogil:
    """How many places are in use; head receives the first. Places that were overwritten before they
    were taken are used up."""
    cdef uint64_t tail = load_relaxed_u64(&map.cache.tail)
    cdef uint64_t length
    head[0] = load_relaxed_u64(&map.cache.head)
    length = tail - head[0]
    if length > map.cache_ring_places:
        cas_acq_rel_u64(&map.cache.head, head[0], tail - map.cache_ring_places)
        head[0] = tail - map.cache_ring_places
        length = map.cache_ring_places
    return length

cdef inline Status victim_look(
        Op *op, uint64_t index, int64_t now, Expired *victim, Reason *reason) noexcept nogil:
    """Look at an element as a candidate. OK: it is an entry that is not held. ABSENT, BUSY: it is
    not. reason changes only if the entry has expired or is outdated."""
    cdef Map *map = op.map
    cdef Element *element
    cdef uint64_t deadline = 0
    if index - 1 >= map.element_max - 1 or (
            object_memory_ready(op, &map.element_pool, index) != OK):
        return ABSENT
    element = element_at(map, index)
    # Acquire: pairs with the release stores of LIVE; the deadline is of this version or newer.
    victim.header = load_acquire_u64(&element.header)
    victim.index = <uint32_t> index
    if element_state(victim.header) != ELEMENT_LIVE:
        if element_state(victim.header) > ELEMENT_LIVE and word_locked(victim.header):
            return lock_busy(op, &element.header, victim.header)
        return ABSENT
    if map.timer_word != 0:
        deadline = load_relaxed_u64(element_value(map, element) + map.timer_word - 1)
    if deadline != 0 and <int64_t> deadline <= now or value_is_outdated(
            map, element_value(map, element)):
        reason[0] = CHOSEN_EXPIRED
    return OK

cdef inline bint new_choose(Op *op, int64_t now, Expired *victim, Reason *reason) noexcept nogil:
    """Take the next place of the ring. True: its entry is chosen."""
    cdef Map *map = op.map
    cdef uint64_t head = 0
    cdef Mark *mark
    if new_count(map, &head) == 0 or not cas_acq_rel_u64(&map.cache.head, head, head + 1):
        return False
    reason[0] = CHOSEN_NEW
    if victim_look(
            op, load_relaxed_u32(map.cache_ring + (head & (map.cache_ring_places - 1))), now,
            victim, reason) != OK:
        return False
    mark = element_mark(map, element_at(map, victim.index))
    if load_relaxed_u8(&mark.kept) != 0 or load_relaxed_u32(&mark.place) != <uint32_t> head:
        return False
    if load_relaxed_u8(&mark.uses) == 0 or reason[0] == CHOSEN_EXPIRED:
        return True
    store_relaxed_u8(&mark.kept, 1)
    store_relaxed_u8(&mark.uses, 0)
    return False

cdef inline uint64_t hand_move(Op *op) noexcept nogil:
    """The element that the hand looks at, which it leaves behind; of a block without memory, the
    hand leaves all of them behind."""
    cdef Map *map = op.map
    cdef uint64_t capacity = map.element_pool.capacity
    cdef uint64_t limit = load_relaxed_u64(&map.element_pool.shared.frontier)
    cdef uint64_t index
    if limit - 1 >= map.element_pool.block_count:      # 0, or more only in a damaged segment
        limit = 1
    index = add_relaxed_u64(&map.cache.hand, 1) % (limit * capacity)
    if object_memory_ready(op, &map.element_pool, index) == ABSENT:
        add_relaxed_u64(&map.cache.hand, capacity - index % capacity - 1)
        return 0
    return index

cdef inline Status hand_choose(
        Op *op, int64_t now, Expired *victim, uint8_t *least, Reason *reason) noexcept nogil:
    """Let the hand look at one element. OK: its entry is chosen. RETRY: its entry can be chosen;
    victim has the one that was read least, least often. ABSENT: it has no such entry."""
    cdef Map *map = op.map
    cdef Expired found
    cdef Mark *mark
    cdef uint64_t head = 0
    cdef uint64_t length = new_count(map, &head)
    cdef uint8_t uses
    cdef Reason why = CHOSEN_KEPT
    if victim_look(op, hand_move(op), now, &found, &why) != OK:
        return ABSENT
    mark = element_mark(map, element_at(map, found.index))
    if load_relaxed_u8(&mark.kept) == 0 and why != CHOSEN_EXPIRED:
        if <uint32_t> (load_relaxed_u32(&mark.place) - <uint32_t> head) < length:
            return ABSENT                      # new: the ring decides
        store_relaxed_u8(&mark.kept, 1)
    uses = load_relaxed_u8(&mark.uses)
    if uses > USES_MAX:                        # only in a damaged segment
        uses = USES_MAX
    if uses < least[0] or why == CHOSEN_EXPIRED:
        least[0] = uses
        victim[0] = found
        reason[0] = why
    if uses == 0 or why == CHOSEN_EXPIRED:
        return OK
    store_relaxed_u8(&mark.uses, uses - 1)
    return RETRY

cdef inline Status victim_choose(Op *op, Expired *victim, Reason *reason) noexcept nogil:
    """Choose an entry. ABSENT: none was found; BUSY: those that were found are held."""
    cdef Map *map = op.map
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC) if map.timer_word != 0 else 0
    cdef uint64_t taken = entries_taken(map)
    cdef uint64_t head = 0
    cdef uint64_t length
    cdef uint32_t candidates = 0
    cdef uint32_t idle = 0                     # moves of the hand that met no candidate
    cdef uint8_t least = USES_MAX + 1
    cdef Status status
    cdef int _
    op.wait_word = NULL
    for _ in range(EVICT_LOOKS_MAX):
        length = new_count(map, &head)
        if length != 0 and candidates == 0 and (
                length * NEW_SHARE >= taken or idle > HAND_IDLE_MAX):
            if new_choose(op, now, victim, reason):
                return OK
            continue
        status = hand_choose(op, now, victim, &least, reason)
        if status == OK:
            return OK
        candidates += status == RETRY
        idle += status == ABSENT
        if candidates == HAND_CHOICE_MAX:
            break
    if candidates != 0:
        return OK
    return BUSY if op.wait_word != NULL else ABSENT

cdef inline void eviction_count(Map *map, Reason reason) noexcept nogil:
    """Threads of a process may evict at the same time, without the GIL."""
    cdef CacheCounts *counts = counts_of(map)
    add_relaxed_u64(
        &counts.evicted_new if reason == CHOSEN_NEW else
        &counts.evicted_kept if reason == CHOSEN_KEPT else
        &counts.evicted_block if reason == CHOSEN_BLOCK else &counts.evicted_expired, 1)

cdef inline Status victim_remove(Op *op, Expired *victim, Reason reason) noexcept nogil:
    """Delete a chosen entry. RETRY: it has changed since; BUSY: a lock is held that the deletion
    takes. op.hash becomes the entry's."""
    cdef Map *map = op.map
    cdef Element *element = element_at(map, victim.index)
    cdef Status status
    victim.tag = hash_key(map.seeds, <const uint8_t *> &element.words[0], map.key_size)
    # The key is read before the header is loaded again; pairs with the release fences in
    # element.pxd.
    fence_acquire()
    if load_relaxed_u64(&element.header) != victim.header:
        return RETRY
    status = expired_remove(op, victim)
    if status == OK:
        eviction_count(map, reason)
        if reason == CHOSEN_NEW:
            ghost_leave(map, victim.tag)
    return status

cdef inline Status evict_one(Op *op) noexcept nogil:
    """Delete the entry that is worth least, after giving back what the operation has taken. OK;
    ABSENT: there is none; BUSY, RETRY: those that were chosen are held, or changed each time."""
    cdef uint32_t hash = op.hash
    cdef Expired victim
    cdef Reason reason = CHOSEN_NEW
    cdef Status status = RETRY
    cdef int _
    op.element_filled = False
    victim.header = victim.index = 0           # the compiler cannot see that OK sets them
    for _ in range(EVICT_TRIES_MAX):
        status = victim_choose(op, &victim, &reason)
        if status != OK:
            break
        status = victim_remove(op, &victim, reason)
        if status != RETRY:
            break
    op.hash = hash
    return status

cdef inline Status room_reserve(Op *op) noexcept nogil:
    """Before a store in a cache: if the key is absent and no credit is left, evict an entry, so
    that its credit lies in this CPU's depot. OK: go on, whether that was needed or not, and whether
    an entry was found or not: if the credit is missing, the store finds out. BUSY: call again."""
    cdef Found found
    cdef Status status
    if op.context.element != 0 or not credits_are_spent(op.map) or (
            map_find(op.map, op.hash, op.key, &found) != ABSENT):
        return OK
    status = evict_one(op)
    return status if status == BUSY else OK
