# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Walking over the map: its order, reading one bucket of it, and reading ahead (I1).
#
# Entries are ordered by their hash with its bits reversed, then by the bytes of their key. A bucket
# at level L holds the hashes that agree in their low L bits, and so owns one unbroken range of that
# order. Splits cut ranges and merges join them; nothing else happens to the order. So a position in
# it is a cursor that outlives every resize and the deletion of the entry it stood at: an entry that
# stays in the map is before the position for good, or behind it for good.
#
# Reading a bucket means reading all that it held at one moment:
#   at rest     unlocked, no overflow lines, read from the start of its range: the slots are read as
#               they stand, then the header is read again. If it is unchanged and unlocked, no
#               writer changed the bucket in between. Nothing is sorted, because the position is
#               behind the whole range afterwards.
#   otherwise   locked (perhaps by a process that is stopped or dead), chained, or entered in the
#               middle: the lowest entries behind the position are collected in order, then the
#               version is read again. While a removal moves an element, a slot's tag may be that of
#               another element (chain.pxd), so hashes are computed from keys, and an element that
#               two slots name is taken once.
# An element's memory is not given back before its bucket's version was raised, so what was read by
# way of a slot is valid if the version is unchanged.
#
# In a map larger than the cache every bucket and every element is a cache miss. The walk prefetches
# twice: the bucket BUCKETS_AHEAD places on, and, when that has arrived, the elements of the bucket
# ELEMENTS_AHEAD places on. Both are guessed from the table word; a wrong guess costs a prefetch.
# The caller's context is inside an operation only for WALK_STEPS buckets at a time, so that memory
# can be given back after each (region.pxd). Only the position is kept from one to the next.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memcpy
from machine.atomics cimport (
    load_relaxed_u64, load_acquire_u64, load_relaxed_u32, load_acquire_u32, fence_acquire, prefetch,
    likely, unlikely, count_leading_zeros, count_trailing_zeros, match7, reverse_bits_u32, copy_out,
)
from machine.hashing cimport hash_key
from segment.status cimport Status, OK, ABSENT, CORRUPT, BUSY, RETRY
from segment.layout cimport (
    SLOT_COUNT, LINK_SLOT, BUCKET_COUNT_MIN, LOCK_MASK, LINK_BASE, ELEMENT_LIVE, Bucket,
)
from segment.words cimport word_locked, bucket_level_plus1, element_state
from segment.geometry cimport Map, bucket_at, element_at
from memory.operation cimport Op, op_begin, op_end
from map.chain cimport Found, chain_next, chain_moved
from map.element cimport (
    element_read, element_expired, element_is_stuck, element_spin, element_unchanged,
)
from map.table cimport table_count, table_is_cached, table_guess, table_find_seen

cdef enum:
    SORTED_MAX = 32            # entries collected in order at a time
    ENTRY_TRIES_MAX = 64       # for an element that keeps changing

cdef enum:
    ORDER_END = 0x100000000ULL

# A place in the order: before every entry whose reversed hash is order or more; but if inside,
# behind the entries with exactly this hash whose key is not above key.
cdef struct Position:
    uint64_t order
    bint inside
    uint8_t *key               # key_size bytes of private memory

# Where the entries that were read are stored, one after the other.
cdef struct EntryBuffer:
    uint8_t *keys
    uint8_t *values            # NULL: keys only
    uint64_t count
    uint64_t wanted            # the walk ends when it has this many entries, or some more
    uint64_t capacity
    Op *waiter                 # BPF_F_LOCK: the operation that waits for a held entry; or NULL
    bint expired               # store expired entries too

cdef struct Ranked:
    uint64_t order
    uint32_t index

cdef struct Ranking:
    Ranked entries[32]
    uint32_t count
    bint cut                   # there are more


cdef inline uint64_t bucket_range_last(uint64_t order, uint32_t level) noexcept nogil:
    """The last reversed hash of the level's range that contains order."""
    return order | (0xFFFFFFFFULL >> level)

cdef inline Status entry_read(Map *map, uint32_t index, EntryBuffer *sink) noexcept nogil:
    """Append a copy of one element's key and value. ABSENT if it is not a live entry; RETRY if it
    kept changing; BUSY if it is held and the sink has a waiter."""
    cdef Found found
    cdef uint8_t *key = sink.keys + sink.count * map.key_size
    cdef bint over
    cdef int _
    found.element = element_at(map, index)
    for _ in range(ENTRY_TRIES_MAX):
        # Acquire: pairs with the release stores of LIVE; key and value are of this version or
        # newer.
        found.header = load_acquire_u64(&found.element.header)
        if unlikely(element_state(found.header) - <uint32_t> ELEMENT_LIVE > 3):
            return ABSENT
        if unlikely(sink.waiter != NULL and element_state(found.header) != ELEMENT_LIVE):
            if element_spin(sink.waiter, &found) == BUSY:
                return BUSY
            continue
        over = element_expired(map, &found) and not sink.expired
        if likely(map.key_size == 8):
            (<uint64_t *> key)[0] = load_relaxed_u64(&found.element.words[0])
        elif map.key_size == 16:               # those of a SharedDict: without a call
            (<uint64_t *> key)[0] = load_relaxed_u64(&found.element.words[0])
            (<uint64_t *> key)[1] = load_relaxed_u64(&found.element.words[1])
        else:
            copy_out(key, &found.element.words[0], map.key_size)
        if sink.values == NULL:
            # The key is read before the header is loaded again; pairs with the release fences in
            # element.pxd.
            fence_acquire()
            if likely(load_relaxed_u64(&found.element.header) == found.header):
                break
        elif likely(element_read(
                map, &found, map.key_size, sink.values + sink.count * map.value_size,
                map.value_size)):
            break
        elif unlikely(element_is_stuck(&found)):
            return CORRUPT
    else:
        return RETRY
    if unlikely(over):
        return ABSENT
    sink.count += 1
    return OK

cdef inline bint words_read_at_rest(
        Map *map, Bucket *bucket, uint64_t wrong_bits, uint64_t bucket_index,
        EntryBuffer *sink) noexcept nogil:
    """The usual case of entries_read_at_rest in a map of words only: no context holds an element of
    the bucket. False: nothing is known."""
    cdef uint32_t used = match7(bucket.indices, 0) ^ ((1 << SLOT_COUNT) - 1)
    cdef uint64_t *keys = <uint64_t *> sink.keys + sink.count
    cdef uint64_t *values = <uint64_t *> sink.values + sink.count if sink.values != NULL else NULL
    cdef uint32_t index_max = <uint32_t> map.element_max - 1
    cdef uint64_t done = 0
    cdef uint32_t slot, index
    cdef Found found
    while used:                            # at most SLOT_COUNT turns
        slot = count_trailing_zeros(used)
        used &= used - 1
        # Acquire: as in entries_read_at_rest.
        index = load_acquire_u32(&bucket.indices[slot])
        if unlikely((load_relaxed_u32(&bucket.tags[slot]) ^ bucket_index) & wrong_bits):
            continue
        if unlikely(index - 1 >= index_max):
            return False
        found.element = element_at(map, index)
        # Acquire: as in entry_read.
        found.header = load_acquire_u64(&found.element.header)
        if unlikely(element_state(found.header) != ELEMENT_LIVE):
            return False
        keys[done] = load_relaxed_u64(&found.element.words[0])
        if values != NULL:
            values[done] = load_relaxed_u64(&found.element.words[1])
        if unlikely(not element_unchanged(&found)):
            return False
        done += 1
    sink.count += done
    return True

cdef inline Status entries_read_at_rest(
        Map *map, Bucket *bucket, uint64_t wrong_bits, uint64_t bucket_index,
        EntryBuffer *sink) noexcept nogil:
    """Append the entries of a bucket's slots. wrong_bits: those of a tag in which an entry of the
    bucket agrees with its index."""
    cdef uint32_t slot, index
    cdef Status one
    cdef Status status = OK
    for slot in range(SLOT_COUNT):
        # Acquire: pairs with the release store of the index in chain_append.
        index = load_acquire_u32(&bucket.indices[slot])
        if index == 0 or unlikely(index >= map.element_max) or unlikely(
                (load_relaxed_u32(&bucket.tags[slot]) ^ bucket_index) & wrong_bits):
            continue
        one = entry_read(map, index, sink)
        if unlikely(one != OK and one != ABSENT):
            status = one
    return status

cdef inline Status bucket_read_at_rest(
        Map *map, Bucket *bucket, uint64_t header, uint64_t bucket_index,
        EntryBuffer *sink) noexcept nogil:
    """Append all entries of a bucket without lines. RETRY if a writer has changed it; BUSY."""
    cdef uint64_t before = sink.count
    cdef uint64_t mask = (1ULL << (bucket_level_plus1(header) - 1)) - 1
    cdef Status status = OK
    if not map.words_only or unlikely(
            not words_read_at_rest(map, bucket, mask, bucket_index, sink)):
        status = entries_read_at_rest(map, bucket, mask, bucket_index, sink)
    # All entries are read before the header is loaded again; pairs with the release fences in
    # chain.pxd and table.pxd.
    fence_acquire()
    if unlikely(load_relaxed_u64(&bucket.header) != header):
        status = RETRY
    if unlikely(status != OK):
        sink.count = before
    return status

cdef inline int rank_compare(
        Map *map, uint64_t order, uint32_t index, const Ranked *other) noexcept nogil:
    if order != other.order:
        return -1 if order < other.order else 1
    return memcmp(
        &element_at(map, index).words[0], &element_at(map, other.index).words[0], map.key_size)

cdef inline void rank_insert(
        Map *map, Ranking *ranking, uint64_t order, uint32_t index) noexcept nogil:
    """Insert an entry at its place in the ranking, if it is among the lowest SORTED_MAX."""
    cdef uint32_t at = ranking.count
    cdef int compared = 1
    while at > 0:                          # at most SORTED_MAX turns
        compared = rank_compare(map, order, index, &ranking.entries[at - 1])
        if compared >= 0:
            break
        at -= 1
    if at > 0 and compared == 0:
        return                             # the same element, in two slots
    if ranking.count == SORTED_MAX:
        ranking.cut = True
        if at == SORTED_MAX:
            return
        ranking.count -= 1
    cdef uint32_t place = ranking.count
    while place > at:
        ranking.entries[place] = ranking.entries[place - 1]
        place -= 1
    ranking.entries[at].order = order
    ranking.entries[at].index = index
    ranking.count += 1

cdef inline Status chain_rank(
        Map *map, Bucket *bucket, const Position *position, uint64_t last, bint expired,
        Ranking *ranking) noexcept nogil:
    """Collect the lowest entries of a chain that lie behind position, up to last; of those whose
    deadline has passed none, unless expired."""
    cdef Bucket *line = bucket
    cdef const uint8_t *key
    cdef uint64_t _, order
    cdef uint32_t slot, index, link
    cdef Found found
    cdef Bucket *following
    ranking.count = 0
    ranking.cut = False
    for _ in range(map.line_max + 1):
        # Acquire: the line's slots are loaded after this link.
        link = load_acquire_u32(&line.indices[LINK_SLOT])
        for slot in range(SLOT_COUNT):
            # Acquire: pairs with the release store of the index in chain_append.
            index = load_acquire_u32(&line.indices[slot])
            if index == 0 or index >= map.element_max:
                continue
            key = <const uint8_t *> &element_at(map, index).words[0]
            order = reverse_bits_u32(hash_key(map.seeds, key, map.key_size))
            if order < position.order or order > last:
                continue
            if position.inside and order == position.order and memcmp(
                    key, position.key, map.key_size) <= 0:
                continue
            found.element = element_at(map, index)
            if not expired and element_expired(map, &found):
                continue
            rank_insert(map, ranking, order, index)
        following = chain_next(map, line)
        if following == NULL:
            return RETRY if unlikely(chain_moved(line, link)) else OK
        line = following
    return CORRUPT

cdef inline Status bucket_read_in_order(
        Map *map, Bucket *bucket, uint64_t header, Position *position,
        EntryBuffer *sink) noexcept nogil:
    """Append the next entries of a bucket and move the position. RETRY if a writer has changed the
    bucket; BUSY."""
    cdef uint64_t before = sink.count
    cdef uint64_t last = bucket_range_last(position.order, bucket_level_plus1(header) - 1)
    cdef uint64_t reached = 0              # the order of the last entry appended
    cdef Ranking ranking
    cdef uint32_t done = 0
    cdef Status one
    cdef Status status = chain_rank(
        map, bucket, position, last, sink.expired, &ranking)
    while status == OK and done < ranking.count and sink.count < sink.capacity:
        one = entry_read(map, ranking.entries[done].index, sink)
        if one == OK:
            reached = ranking.entries[done].order
        elif one != ABSENT:
            status = one
        done += 1
    # All entries are read before the header is loaded again; pairs with the release fences in
    # chain.pxd and table.pxd.
    fence_acquire()
    if (load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK:
        status = RETRY
    if status != OK:
        sink.count = before
        return status
    if done == ranking.count and not ranking.cut:
        position.order = last + 1
        position.inside = False
        return OK
    if sink.count == before:
        # One entry at a time is on its way out of a bucket; others may have expired since they were
        # ranked, and the next ranking leaves them out.
        return RETRY if map.timer_word != 0 else CORRUPT
    position.order = reached
    position.inside = True
    memcpy(position.key, sink.keys + (sink.count - 1) * map.key_size, map.key_size)
    return OK

cdef inline Status bucket_read(Map *map, Position *position, EntryBuffer *sink) noexcept nogil:
    """Append the entries that the next bucket has behind position, as far as there is room, and
    move the position: by at least one entry, or to the end of the bucket. RETRY if a writer has
    changed the bucket, BUSY if the sink waits for an entry; then nothing is appended. The sink must
    have room for one entry, and position must not be the end."""
    cdef uint64_t header = 0
    cdef uint64_t index = 0
    cdef uint64_t last
    cdef uint32_t hash = reverse_bits_u32(<uint32_t> position.order)
    cdef Bucket *bucket = table_find_seen(map, hash, &index, &header)
    cdef Status status
    if unlikely(bucket == NULL):
        return CORRUPT
    last = bucket_range_last(position.order, bucket_level_plus1(header) - 1)
    if likely(
            not word_locked(header) and not position.inside
            and sink.capacity - sink.count >= SLOT_COUNT
            and load_relaxed_u32(&bucket.indices[LINK_SLOT]) < LINK_BASE
            and (position.order & (0xFFFFFFFFULL >> (bucket_level_plus1(header) - 1))) == 0):
        status = bucket_read_at_rest(map, bucket, header, index, sink)
        if likely(status == OK):
            position.order = last + 1
        return status
    return bucket_read_in_order(map, bucket, header, position, sink)

cdef enum:
    BUCKETS_AHEAD = 16
    ELEMENTS_AHEAD = 6
    WALK_STEPS = 256           # buckets between two chances to give memory back
    STEP_TRIES_MAX = 64        # then the caller yields the processor

cdef struct Ahead:
    uint64_t order             # how far this stage has come
    uint32_t steps             # how many buckets that is ahead of the position


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
        # Without a branch: for an empty slot or a link the prefetch is wasted.
        index = load_relaxed_u32(&bucket.indices[slot])
        prefetch(element_at(map, index))
        prefetch(<uint8_t *> element_at(map, index) + map.stride - 8)
    ahead.order = order_next(ahead.order, guess, count)
    ahead.steps += 1

cdef inline void prefetch_ahead(
        Map *map, Ahead *far, Ahead *near, uint64_t count) noexcept nogil:
    while far.steps <= BUCKETS_AHEAD and far.order < ORDER_END:
        prefetch_bucket(map, far, count)
    while near.steps <= ELEMENTS_AHEAD and near.order < ORDER_END:
        prefetch_elements(map, near, count)

cdef inline Status walk_steps(
        Map *map, Position *position, EntryBuffer *sink, uint64_t steps) noexcept nogil:
    """Read at most steps buckets. OK: there is more, or the sink is full. ABSENT: the walk is at
    its end. RETRY: writers changed the same bucket too often; BUSY: the sink waits for a held
    entry. In either case the entries in the sink are valid."""
    cdef Ahead far, near
    cdef uint64_t count = table_count(map)
    cdef uint64_t tries = 0
    cdef uint64_t _
    cdef bint cached = table_is_cached(map)
    cdef Status status
    if count < BUCKET_COUNT_MIN:
        count = BUCKET_COUNT_MIN           # only in a damaged segment
    far.order = near.order = position.order
    far.steps = near.steps = 0
    for _ in range(steps):
        if position.order >= ORDER_END:
            return ABSENT
        if sink.count >= sink.wanted:
            return OK
        if not cached:
            prefetch_ahead(map, &far, &near, count)
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

cdef inline Status walk_on(Op *op, Position *position, EntryBuffer *sink) noexcept nogil:
    """walk_steps until the sink is full (OK) or the walk at its end (ABSENT). RETRY, BUSY: wait,
    then call again.

    op.context is inside an operation, or NULL if this handle is read-only."""
    cdef Status status = OK
    while status == OK and sink.count < sink.wanted:       # each turn reads WALK_STEPS buckets
        status = walk_steps(op.map, position, sink, WALK_STEPS)
        if op.context != NULL:
            op_end(op)
            op_begin(op)
    return status
