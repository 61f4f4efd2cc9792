# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Removing expired entries whose keys no operation asks for (X1).
#
# A sweep goes through the map in its order (walk.pxd: hashes with their bits reversed), so it
# meets every entry that stays in the map during the sweep, through every resize. header.sweep holds
# the place where the next sweep begins, and whether the last one found something. It is a hint: any
# value is a place in the order, and a caller that has to see the whole map counts its own progress.
#
# The expired entries of a bucket are collected without its lock, each with its element's header.
# The removal is that of remove.pxd, and its CAS to DEAD expects this header: an operation that
# renewed the deadline, or opened a section, has changed the header, and the entry stays. If the
# process is killed, recovery treats the removal as any other deletion.
#
# One insertion in 8 or 64 into a map with deadlines sweeps a few buckets (sweep_some). An insertion
# that finds no room sweeps until there is some, or until a whole turn has found nothing
# (sweeping.pxi). That turn has seen when the next entry expires, and until then no other is needed
# (rest.pxd): of a series of refusals, sweeping takes a hundredth of the time at most.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, store_relaxed_u64, load_relaxed_u32, load_acquire_u32,
    fence_acquire, likely, reverse_bits_u32,
)
from machine.system cimport CLOCK_MONOTONIC, clock_ns
from segment.status cimport Status, OK, BUSY, RETRY
from segment.layout cimport SLOT_COUNT, LOCK_MASK, ELEMENT_LIVE, OPERATION_DELETE, Bucket, Element
from segment.words cimport word_locked, bucket_level_plus1, element_state
from segment.geometry cimport Map, element_at, element_value
from segment.births cimport value_is_outdated
from memory.operation cimport Op, lock_release
from map.chain cimport Found, chain_next
from map.table cimport table_count, level_covers, table_find
from map.hold cimport op_give_back, bucket_hold
from map.remove cimport map_shrink_if_empty, delete_found

cdef enum:
    SWEEP_TURN = 0x100000000ULL    # all of the order
    SWEEP_STEP = 1024          # buckets between two chances to give memory back
    SWEEP_WANTED = 256         # entries to remove before the insertion is tried again
    SWEEP_FOUND = 0x100000000ULL   # in header.sweep: the last sweep found something
    SWEEP_MASK = 7             # then one insertion in 8 sweeps this number of
    SWEEP_PLACES = 4           # buckets: a turn takes two insertions for each bucket;
    SWEEP_MASK_IDLE = 63       # else one insertion in 64 does
    REST_NS = 100000           # at most, for each bucket, which takes 0.1 to 0.5 us to sweep
    SWEEP_TRIES_MAX = 16       # then other operations are changing the bucket all the time
    EXPIRED_MAX = 16           # entries collected at a time

# When the next entry expires, as far as a turn has seen: a time, or
cdef enum:
    NEXT_UNKNOWN = 0           # some entry or bucket was held
    NEXT_HELD = 1              # some entry has expired, and its bucket is held

cdef struct Expired:
    uint64_t header
    uint32_t index
    uint32_t tag


cdef inline void next_unknown(uint64_t *next) noexcept nogil:
    if next[0] != NEXT_HELD:
        next[0] = NEXT_UNKNOWN

cdef inline uint32_t chain_expired(
        Map *map, Bucket *bucket, int64_t now, Expired *found, uint64_t *next) noexcept nogil:
    """Collect the expired and outdated entries of a bucket that no operation holds. Returns how
    many."""
    cdef Bucket *line = bucket
    cdef Element *element
    cdef uint64_t _, header, deadline
    cdef uint32_t slot, index
    cdef uint32_t count = 0
    cdef bint outdated
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            # Acquire: pairs with the release of the slot in chain_append; the element is filled.
            index = load_acquire_u32(&line.indices[slot])
            if index == 0 or index >= map.element_max:
                continue
            element = element_at(map, index)
            # Acquire: pairs with the release stores of LIVE; the deadline is of this version or
            # newer.
            header = load_acquire_u64(&element.header)
            deadline = load_relaxed_u64(element_value(map, element) + map.timer_word - 1)
            outdated = value_is_outdated(map, element_value(map, element))
            # The deadline is read before the header is loaded again; pairs with the release fences
            # in element.pxd.
            fence_acquire()
            if element_state(header) != ELEMENT_LIVE or (
                    load_relaxed_u64(&element.header) != header):
                next_unknown(next)             # changing, or held by a section
                continue
            if not outdated and (deadline == 0 or now < <int64_t> deadline):
                if deadline != 0 and deadline < next[0]:
                    next[0] = deadline
                continue
            found[count].header = header
            found[count].index = index
            found[count].tag = load_relaxed_u32(&line.tags[slot])
            count += 1
            if count == EXPIRED_MAX:
                return count
        line = chain_next(map, line)
        if line == NULL:
            break
    return count

cdef inline bint chain_find_element(
        Map *map, Bucket *bucket, const Expired *gone, Found *found) noexcept nogil:
    """The slot of an element in a held chain."""
    cdef Bucket *line = bucket
    cdef uint64_t _
    cdef uint32_t slot
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            if line.indices[slot] == gone.index:
                found.line = line
                found.slot = slot
                found.index = gone.index
                found.element = element_at(map, gone.index)
                found.header = gone.header
                return True
        line = chain_next(map, line)
        if line == NULL:
            break
    return False

cdef inline Status expired_remove(Op *op, const Expired *gone) noexcept nogil:
    """Delete a collected entry. RETRY: the entry has changed since; BUSY: a lock is held that the
    deletion takes."""
    cdef Bucket *bucket = NULL
    cdef uint64_t held = 0
    cdef Found found
    cdef Status status = RETRY
    cdef int _
    if op.context.element != 0 or op.context.debt != 0 or op.context.line_stash != 0:
        op_give_back(op)
    if op.context.element != 0 or op.context.debt != 0:
        return BUSY
    op.hash = gone.tag
    for _ in range(SWEEP_TRIES_MAX):
        status = bucket_hold(op, OPERATION_DELETE, &bucket, &held)
        if status != RETRY:
            break
    if status != OK:
        return status
    if not chain_find_element(op.map, bucket, gone, &found):
        lock_release(&bucket.header, held)
        return RETRY
    status = delete_found(op, bucket, &found, 0, NULL)
    if status == OK:
        map_shrink_if_empty(op)
    return status

cdef inline uint32_t bucket_expired(
        Map *map, uint64_t *order, int64_t now, Expired *found, uint32_t *count,
        uint64_t *next) noexcept nogil:
    """Collect the expired entries of the bucket that order is in. Returns the bucket's level plus
    1; 0: there is none. A bucket that changes all the time is taken as it was read last."""
    cdef uint32_t hash = reverse_bits_u32(<uint32_t> order[0])
    cdef Bucket *bucket
    cdef uint64_t index = 0
    cdef uint64_t header
    cdef uint32_t level_plus1 = 0
    cdef int _
    count[0] = 0
    for _ in range(SWEEP_TRIES_MAX):
        bucket = table_find(map, hash, &index)
        if bucket == NULL:
            return 0
        # Acquire: pairs with the release stores of levels; the slots read next are at least as new.
        header = load_acquire_u64(&bucket.header)
        if not level_covers(bucket_level_plus1(header), index, hash):
            continue
        level_plus1 = bucket_level_plus1(header)
        count[0] = chain_expired(map, bucket, now, found, next)
        if word_locked(header):                # an entry may be on its way into it
            next_unknown(next)
        # All slots are read before the header is loaded again; pairs with the release fences in
        # chain.pxd and table.pxd.
        fence_acquire()
        if (load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK == 0:
            return level_plus1
    next_unknown(next)
    return level_plus1

cdef inline uint64_t bucket_sweep(
        Op *op, uint64_t *order, int64_t now, uint64_t *next) noexcept nogil:
    """Remove the expired entries of the bucket that order is in, and move order behind the bucket
    unless more may be left. Returns how many were removed."""
    cdef Expired found[16]
    cdef uint32_t count = 0
    cdef uint32_t level_plus1 = 0
    cdef uint32_t at
    cdef uint64_t removed = 0
    cdef bint changed = False
    cdef Status status
    cdef int _
    for _ in range(SWEEP_TRIES_MAX):           # again, if an entry changed after it was collected
        level_plus1 = bucket_expired(op.map, order, now, found, &count, next)
        changed = False
        for at in range(count):
            status = expired_remove(op, &found[at])
            removed += status == OK
            changed = changed or status == RETRY
            if status != OK and status != RETRY:
                next[0] = NEXT_HELD
        if removed != 0 or not changed:
            break
    if level_plus1 == 0:                       # only in a damaged segment
        order[0] = (order[0] | (SWEEP_TURN - 1)) + 1
    elif count < EXPIRED_MAX or removed == 0:  # else there may be more
        order[0] = (order[0] | ((SWEEP_TURN - 1) >> (level_plus1 - 1))) + 1
    return removed

cdef inline uint64_t sweep_on(
        Op *op, uint64_t *order, uint64_t places, uint64_t wanted, uint64_t *next) noexcept nogil:
    """Remove the expired entries of at most places buckets, from order on, until wanted are gone.
    Returns how many were removed."""
    cdef uint32_t hash = op.hash
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t end = order[0] + SWEEP_TURN
    cdef uint64_t removed = 0
    cdef uint64_t _
    for _ in range(places):
        removed += bucket_sweep(op, order, now, next)
        if removed >= wanted or order[0] >= end:
            break
    op.hash = hash
    return removed

cdef inline uint64_t sweep_begin(Map *map) noexcept nogil:
    """Where in the order the next sweep begins."""
    return load_relaxed_u64(&map.header.sweep) & (SWEEP_TURN - 1)

cdef inline void sweep_some(Op *op) noexcept nogil:
    """After an insertion into a map with deadlines: sweep a few buckets, now and then."""
    cdef uint64_t next = NEXT_UNKNOWN
    cdef uint64_t order
    cdef uint64_t found = load_relaxed_u64(&op.map.header.sweep) & SWEEP_FOUND
    if likely(op.hash & (SWEEP_MASK if found else SWEEP_MASK_IDLE)):
        return
    order = sweep_begin(op.map)
    found = SWEEP_FOUND if sweep_on(
        op, &order, SWEEP_PLACES, SWEEP_WANTED, &next) != 0 else 0
    store_relaxed_u64(&op.map.header.sweep, (order & (SWEEP_TURN - 1)) | found)

cdef inline uint64_t sweep_rest_max(Map *map) noexcept nogil:
    """How long a rest lasts at most, in ns."""
    return table_count(map) * REST_NS

cdef inline uint64_t sweep_count(Map *map, uint64_t places, uint64_t *seen) noexcept nogil:
    """How many entries of the first places buckets have expired and were not removed; seen receives
    how far in the order these buckets reach. The caller is inside an operation, or has a handle
    that is read-only."""
    cdef Expired found[16]
    cdef uint64_t next = NEXT_UNKNOWN
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t order = 0
    cdef uint64_t expired = 0
    cdef uint32_t count = 0
    cdef uint32_t level_plus1
    cdef uint64_t _
    for _ in range(places):
        level_plus1 = bucket_expired(map, &order, now, found, &count, &next)
        if level_plus1 == 0:                   # only in a damaged segment
            break
        expired += count
        order = (order | ((SWEEP_TURN - 1) >> (level_plus1 - 1))) + 1
        if order >= SWEEP_TURN:
            break
    seen[0] = order
    return expired
