# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Point operations on arrays of keys.
#
# There are four stages, a group of keys apart: hash a key and prefetch its bucket; search the
# bucket and prefetch the element, or the line behind the bucket; search that line and prefetch the
# element; perform the ordinary operation, whose data is in the first cache now. So the cache misses
# of several groups overlap, and nothing else is gained: each operation is exactly what it is alone,
# locks are taken one at a time, and the batch as a whole is not atomic. A stage handles its whole
# group before the next stage begins: a prefetch from a page that is in no TLB stops the processor
# until the page is found, and in so short a loop many pages are looked up at once.
#
# The caller's context leaves the operation between spans, so that memory can be given back.
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy
from machine.atomics cimport prefetch, likely, unlikely, read_u64
from machine.hashing cimport hash_key
from machine.number cimport NumberField, field_compute
from segment.status cimport Status, OK, ABSENT, PRESENT, RETRY
from segment.layout cimport Bucket
from segment.geometry cimport Map, bucket_at, element_at
from memory.operation cimport Op, op_begin, op_end
from map.chain cimport chain_next
from map.table cimport table_guess, table_is_cached
from map.read cimport map_lookup, map_contains, slot_reads_word, first_slot, read_fast_at
from map.remove cimport map_delete
from map.write cimport map_update, map_apply, map_lookup_unlocked

cdef enum:
    GROUP = 32                 # keys that a stage handles at a time
    STAGES = 4
    RING = GROUP * STAGES      # a power of two
    SPAN = 1024                # keys between two chances to give memory back

cdef enum:
    BATCH_LOOKUP = 0            # values out, done_mask
    BATCH_CONTAINS = 1          # done_mask
    BATCH_UPDATE = 2            # values in, done_mask if not NULL
    BATCH_DELETE = 3            # done_mask if not NULL
    BATCH_ADD = 4               # deltas in, sums out

cdef struct Batch:
    int kind
    const uint8_t *keys
    uint8_t *values            # value_size bytes each
    uint8_t *done_mask         # one byte each: 1 found, stored or deleted
    const uint8_t *deltas      # 8 bytes each
    uint8_t *sums              # 8 bytes each
    const uint8_t *initial     # value of an absent key, for BATCH_ADD; NULL: the key is ABSENT
    uint8_t *fresh             # value_size bytes of private memory, for BATCH_ADD
    NumberField field                # for BATCH_ADD: its operand comes from deltas
    uint64_t count
    uint64_t done
    uint32_t flag
    bint strict                # ABSENT and PRESENT end the batch, instead of being marked


# The keys between the first stage and the last, in a ring by their number, and how far each stage
# has come.
cdef struct Prefetch:
    uint64_t hashed
    uint64_t looked
    uint64_t rested            # of the prefetched lines, how many were searched
    uint64_t asked             # lines that were prefetched
    uint32_t hashes[RING]
    uint64_t guesses[RING]     # the bucket that table_guess returned
    uint32_t *slots[RING]      # the first slot with the hash's tag, or NULL
    uint32_t indices[RING]     # the index that was in it
    Bucket *lines[RING]        # the prefetched lines, in a ring by their own number
    uint64_t keys[RING]        # the number of the key that needs each of them


cdef inline void lead_bucket(Map *map, Prefetch *lead, Batch *many, uint64_t i) noexcept nogil:
    """Stage 1: hash key i, and find the bucket that the caller prefetches."""
    cdef uint32_t hash = hash_key(map.seeds, many.keys + i * map.key_size, map.key_size)
    lead.hashes[i & (RING - 1)] = hash
    lead.guesses[i & (RING - 1)] = table_guess(map, hash)
    lead.slots[i & (RING - 1)] = NULL

cdef inline bint lead_line(Map *map, Prefetch *lead, Bucket *line, uint64_t at) noexcept nogil:
    """Prefetch the element that probably has key at of the ring. False: no slot has its tag."""
    cdef uint32_t index = 0
    cdef uint32_t *slot = first_slot(line, lead.hashes[at], &index)
    if unlikely(slot == NULL):
        return False
    lead.slots[at] = slot
    lead.indices[at] = index
    if likely(index < map.element_max):
        prefetch(element_at(map, index))
        prefetch(<uint8_t *> element_at(map, index) + map.stride - 8)
    return True

cdef inline void lead_element(Map *map, Prefetch *lead, uint64_t i) noexcept nogil:
    """Stage 2: search the bucket of key i; if no slot has its tag, prefetch the line behind it."""
    cdef uint64_t at = i & (RING - 1)
    cdef Bucket *line = bucket_at(map, lead.guesses[at])
    if likely(lead_line(map, lead, line, at)):
        return
    line = chain_next(map, line)
    if line != NULL:
        prefetch(line)
        lead.lines[lead.asked & (RING - 1)] = line
        lead.keys[lead.asked & (RING - 1)] = i
        lead.asked += 1

cdef inline void lead_rest(Map *map, Prefetch *lead, uint64_t upto) noexcept nogil:
    """Stage 3, for the few keys before upto that no slot of their bucket has: search the line
    behind it."""
    cdef uint64_t at
    while lead.rested < lead.asked:            # one turn for each line
        at = lead.rested & (RING - 1)
        if lead.keys[at] >= upto:
            return
        lead_line(map, lead, lead.lines[at], lead.keys[at] & (RING - 1))
        lead.rested += 1

cdef inline Status many_add_one(Op *op, Batch *many, uint64_t i) noexcept nogil:
    cdef NumberField field = many.field
    cdef uint64_t after = 0
    cdef Status status
    field.operand = read_u64(many.deltas + i * 8)
    if many.initial != NULL:
        after = field_compute(&field, read_u64(many.initial + field.offset))
        memcpy(many.fresh + field.offset, &after, 8)
    status = map_apply(op, &field, many.fresh if many.initial != NULL else NULL, &after)
    if status == OK:
        memcpy(many.sums + i * 8, &after, 8)
    return status

cdef inline Status many_one(Op *op, Batch *many, uint64_t i, uint64_t guess) noexcept nogil:
    """The ordinary operation on key i, whose hash is op.hash."""
    cdef Map *map = op.map
    cdef uint8_t *value = NULL
    cdef Status status
    op.key = many.keys + i * map.key_size
    op.element_filled = False
    if many.values != NULL:
        value = many.values + i * map.value_size
    if many.kind == BATCH_LOOKUP and op.f_lock:
        return map_lookup_unlocked(op, value)
    if many.kind <= BATCH_CONTAINS:
        status = read_fast_at(map, guess, op.hash, op.key, value)
        if likely(status != RETRY):
            return status
        if many.kind == BATCH_LOOKUP:
            return map_lookup(map, op.hash, op.key, value)
        return map_contains(map, op.hash, op.key)
    if many.kind == BATCH_UPDATE:
        return map_update(op, value, many.flag)
    if many.kind == BATCH_DELETE:
        return map_delete(op, NULL)
    return many_add_one(op, many, i)

cdef inline void many_lead(
        Map *map, Prefetch *lead, Batch *many, uint64_t upto) noexcept nogil:
    """The stages before the operation: each is a group ahead of the next, and all end at upto."""
    cdef uint64_t left = upto - many.done
    cdef uint64_t stop = many.done + (left if left < 4 * GROUP else 4 * GROUP)
    while lead.hashed < stop:
        lead_bucket(map, lead, many, lead.hashed)
        prefetch(bucket_at(map, lead.guesses[lead.hashed & (RING - 1)]))
        lead.hashed += 1
    stop = many.done + (left if left < 3 * GROUP else 3 * GROUP)
    while lead.looked < stop:
        lead_element(map, lead, lead.looked)
        lead.looked += 1
    lead_rest(map, lead, many.done + (left if left < 2 * GROUP else 2 * GROUP))

cdef inline void many_words(Map *map, Prefetch *lead, Batch *many, uint64_t stop) noexcept nogil:
    """Do the lookups before stop, in a map of words only, as long as the slots that were found
    ahead decide them."""
    cdef uint64_t *values = <uint64_t *> many.values
    cdef uint64_t i = many.done
    cdef uint64_t at
    while i < stop:
        at = i & (RING - 1)
        if unlikely(lead.slots[at] == NULL) or unlikely(not slot_reads_word(
                map, lead.slots[at], lead.indices[at], read_u64(many.keys + i * 8),
                NULL if values == NULL else values + i)):
            break
        many.done_mask[i] = True
        i += 1
    many.done = i

cdef inline Status many_span(Op *op, Batch *many, uint64_t upto) noexcept nogil:
    """Do the next keys, up to but not including upto."""
    cdef Prefetch lead
    cdef uint64_t stop
    cdef Status status
    cdef bint quick = op.map.words_only and many.kind <= BATCH_CONTAINS and not op.f_lock
    cdef bint cached = table_is_cached(op.map)
    lead.hashed = lead.looked = many.done
    lead.rested = lead.asked = 0
    while many.done < upto:                    # each turn does a group
        stop = upto if upto - many.done < GROUP else many.done + GROUP
        if not cached:
            many_lead(op.map, &lead, many, upto)
        while lead.hashed < stop:              # if the map is cached, nothing is prefetched before
            lead_bucket(op.map, &lead, many, lead.hashed)
            if quick:
                lead_line(op.map, &lead, bucket_at(op.map, lead.guesses[lead.hashed & (RING - 1)]),
                          lead.hashed & (RING - 1))
            lead.hashed += 1
        while many.done < stop:
            if quick:
                many_words(op.map, &lead, many, stop)
                if many.done == stop:
                    break
            op.hash = lead.hashes[many.done & (RING - 1)]
            status = many_one(op, many, many.done, lead.guesses[many.done & (RING - 1)])
            if unlikely(status != OK) and (
                    many.strict or (status != ABSENT and status != PRESENT)):
                return status
            if many.done_mask != NULL:
                many.done_mask[many.done] = status == OK
            many.done += 1
    return OK

cdef inline Status batch_go_on(Op *op, Batch *many, uint64_t upto) noexcept nogil:
    """Do the next keys up to upto. OK, or the status of the key at many.done; BUSY or RETRY: call
    again.

    op.context is inside an operation, or NULL if this handle is read-only."""
    cdef uint64_t begin, end
    cdef Status status = OK
    while status == OK and many.done < upto:   # each turn does a span
        begin = many.done
        end = many.done + SPAN
        status = many_span(op, many, end if end < upto else upto)
        if op.context != NULL:
            op.context.batched += many.done - begin
            op_end(op)
            op_begin(op)
    return status
