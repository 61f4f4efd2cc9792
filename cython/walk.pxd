# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Walking over the map: bucket after bucket in the order of order.pxd, with the memory of the next
# ones on its way.
#
# In a map larger than the cache every bucket and every element is a miss. The walk runs ahead of
# itself twice: it asks for the bucket BUCKETS_AHEAD places on, and, when that has arrived, for the
# elements of the bucket ELEMENTS_AHEAD places on. Both are guesses by the table word; a wrong one
# costs a prefetch.
#
# The caller's context is inside an operation only for WALK_STEPS buckets at a time, so that memory
# can be given back meanwhile (commit.pxd). Nothing is kept across the gap but the position.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from atomics cimport (
    load_relaxed_u32, load_acquire_u64, count_leading_zeros, prefetch, likely, reverse_bits_u32,
)
from status cimport Status, OK, ABSENT, RETRY
from layout cimport Bucket, BUCKET_COUNT_MIN, SLOT_COUNT, LINK_BASE, LOCK_BIT, bucket_level_plus1
from geometry cimport Map, bucket_at, element_at, buckets_usable
from lock cimport Op, op_begin, op_end
from chain cimport chain_next
from table cimport table_count, table_guess
from order cimport Position, Sink, ORDER_END, bucket_read

cdef enum:
    BUCKETS_AHEAD = 16
    ELEMENTS_AHEAD = 6
    WALK_STEPS = 256           # buckets between two chances to give memory back
    STEP_TRIES_MAX = 64        # then the caller yields the processor

cdef struct Ahead:
    uint64_t order             # how far this stage has come
    uint32_t steps             # how many buckets that is ahead of the position

# What an operator sees of one bucket.
cdef struct BucketFacts:
    uint32_t level
    uint32_t entries
    uint32_t lines
    bint locked


cdef inline uint64_t order_next(uint64_t order, uint64_t bucket, uint64_t count) noexcept nogil:
    """Where the bucket's range, which contains order, probably ends."""
    cdef uint32_t level = 63 - count_leading_zeros(count)
    if (bucket | 1ULL << level) < count:   # it has been split at this level already
        level += 1
    return (order | (0xFFFFFFFFULL >> level)) + 1

cdef inline void prefetch_bucket(Map *map, Ahead *ahead, uint64_t count) noexcept nogil:
    cdef uint64_t bucket = table_guess(map, reverse_bits_u32(<uint32_t> ahead.order))
    prefetch(bucket_at(map, bucket))
    ahead.order = order_next(ahead.order, bucket, count)
    ahead.steps += 1

cdef inline void prefetch_elements(Map *map, Ahead *ahead, uint64_t count) noexcept nogil:
    cdef uint64_t guess = table_guess(map, reverse_bits_u32(<uint32_t> ahead.order))
    cdef Bucket *bucket = bucket_at(map, guess)
    cdef uint32_t slot, index
    for slot in range(SLOT_COUNT):
        # Without a branch: what an empty slot or a link leads to is asked for in vain.
        index = load_relaxed_u32(&bucket.indices[slot])
        prefetch(element_at(map, index))
        prefetch(<uint8_t *> element_at(map, index) + map.stride - 8)
    ahead.order = order_next(ahead.order, guess, count)
    ahead.steps += 1

cdef inline Status walk_steps(
        Map *map, Position *position, Sink *sink, uint64_t steps) noexcept nogil:
    """Read at most so many buckets. OK: there is more, or the sink is full. ABSENT: the walk is at
    its end. RETRY: writers were faster too often; BUSY: an entry is held that the sink waits for;
    what stands in the sink is good."""
    cdef Ahead far, near
    cdef uint64_t count = table_count(map)
    cdef uint64_t tries = 0
    cdef uint64_t _
    cdef Status status
    if count < BUCKET_COUNT_MIN:
        count = BUCKET_COUNT_MIN           # only in a damaged segment
    far.order = near.order = position.order
    far.steps = near.steps = 0
    for _ in range(steps):
        if position.order >= ORDER_END:
            return ABSENT
        if sink.count == sink.capacity:
            return OK
        while far.steps <= BUCKETS_AHEAD and far.order < ORDER_END:
            prefetch_bucket(map, &far, count)
        while near.steps <= ELEMENTS_AHEAD and near.order < ORDER_END:
            prefetch_elements(map, &near, count)
        status = bucket_read(map, position, sink)
        if likely(status == OK):
            tries = 0
            far.steps -= far.steps != 0
            near.steps -= near.steps != 0
        elif status != RETRY:
            return status
        else:
            tries += 1
            if tries > STEP_TRIES_MAX:
                return RETRY
    return OK

cdef inline Status walk_on(Op *op, Position *position, Sink *sink) noexcept nogil:
    """walk_steps until the sink is full (OK) or the walk at its end (ABSENT); RETRY, BUSY: wait.

    op.context is inside an operation, or NULL if this handle may only read."""
    cdef Status status = OK
    while status == OK and sink.count < sink.capacity:     # each turn reads WALK_STEPS buckets
        status = walk_steps(op.map, position, sink, WALK_STEPS)
        if op.context != NULL:
            op_end(op)
            op_begin(op)
    return status

cdef inline bint bucket_look(Map *map, uint64_t index, BucketFacts *facts) noexcept nogil:
    """What bucket index looks like now; False if there is none. Nobody is kept from changing it:
    the figures of one bucket fit together only if nobody did."""
    cdef Bucket *bucket = bucket_at(map, index)
    cdef Bucket *line = bucket
    cdef uint64_t _, header
    cdef uint32_t slot, found
    if index >= table_count(map) or index >= buckets_usable(map):
        return False
    header = load_acquire_u64(&bucket.header)
    facts.level = bucket_level_plus1(header) - 1 if bucket_level_plus1(header) else 0
    facts.locked = header & LOCK_BIT
    facts.entries = facts.lines = 0
    for _ in range(map.line_max + 1):
        for slot in range(SLOT_COUNT):
            found = load_relaxed_u32(&line.indices[slot])
            facts.entries += found != 0 and found < LINK_BASE
        line = chain_next(map, line)
        if line == NULL:
            break
        facts.lines += 1
    return True
