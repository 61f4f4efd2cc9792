# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The table of _inline.pyx whose entries stand in its buckets.
#
#     bucket   header | keys[5] | words[5] | values[5]         128 bytes, and so has a line
#
# The keys stand together, so that a miss reads one cache line; a hit reads two adjacent ones. If
# the header has LINKED, the last key is the number of an overflow line, and the last lock word is
# in state LINK (RETIRED here), which no reader takes for an entry.
#
# The order of its stores is that of the model in tests/support/protocol/moving.py. The hash, the
# table word, the levels, the rule for splits, the states of a word and the announcement of an
# operation are the core's. One thread writes, so that no bucket's lock is taken, and nothing is
# noted for recovery. The memory is shared and anonymous, in pages like those of a segment.

cdef enum:
    INLINE_SLOTS = 5
    INLINE_LINK = 4
    INLINE_BYTES = 128
    INLINE_LINKED = 0x400000           # one of the reserved bits of a bucket's header
    INLINE_LEVEL = 0x3F0000            # the level in it
    CHAIN_MAX = 64                     # lines of one chain
    MOVED_MAX = 320                    # entries of one chain: all of CHAIN_MAX lines
    AHEAD = 32                         # keys that a stage of lookup_many handles at a time

cdef struct InlineBucket:
    uint64_t header
    uint64_t keys[5]
    uint64_t words[5]
    uint64_t values[5]


cdef inline InlineBucket *inline_bucket(Map *map, uint64_t index) noexcept nogil:
    return <InlineBucket *> (map.buckets + index * INLINE_BYTES)

cdef inline InlineBucket *inline_line(Map *map, uint64_t index) noexcept nogil:
    return <InlineBucket *> (map.lines + index * INLINE_BYTES)

cdef inline uint32_t match5(const uint64_t *keys, uint64_t key) noexcept nogil:
    """Which of five keys are this one."""
    return (<uint32_t> (load_relaxed_u64(keys) == key)
            | <uint32_t> (load_relaxed_u64(keys + 1) == key) << 1
            | <uint32_t> (load_relaxed_u64(keys + 2) == key) << 2
            | <uint32_t> (load_relaxed_u64(keys + 3) == key) << 3
            | <uint32_t> (load_relaxed_u64(keys + 4) == key) << 4)

cdef inline bint slot_reads(
        InlineBucket *line, uint32_t slot, uint64_t key, uint64_t *value) noexcept nogil:
    """Copy the entry of a slot. False: it is not this key's, or changed before it was copied."""
    # Acquire: the key and the value are of this version or newer.
    cdef uint64_t word = load_acquire_u64(&line.words[slot])
    if unlikely(element_state(word) != ELEMENT_LIVE) or unlikely(
            load_relaxed_u64(&line.keys[slot]) != key):
        return False
    if value != NULL:
        value[0] = load_relaxed_u64(&line.values[slot])
    # The copy is read before the word is loaded again.
    fence_acquire()
    return load_relaxed_u64(&line.words[slot]) == word

cdef inline bint inline_read_fast(
        Map *map, uint64_t at, uint64_t key, uint64_t *value) noexcept nogil:
    """The usual hit, as read_word_fast. False: nothing is known yet."""
    cdef InlineBucket *bucket = inline_bucket(map, at)
    cdef uint32_t mask
    prefetch(<uint8_t *> bucket + 64)      # which of its words will be read is not known yet
    mask = match5(bucket.keys, key)
    return likely(mask != 0) and slot_reads(bucket, count_trailing_zeros(mask), key, value)

cdef inline Status inline_read_at(
        Map *map, uint64_t at, uint32_t hash, uint64_t key, uint64_t *value) noexcept nogil:
    """Search one chain. ABSENT: validated. RETRY: it changed, or the levels lead elsewhere."""
    cdef InlineBucket *bucket = inline_bucket(map, at)
    cdef InlineBucket *line = bucket
    cdef uint64_t header = load_acquire_u64(&bucket.header)
    cdef bint linked = header & INLINE_LINKED
    cdef uint32_t mask, slot
    cdef int _
    for _ in range(CHAIN_MAX):
        mask = match5(line.keys, key)
        while mask:
            slot = count_trailing_zeros(mask)
            mask &= mask - 1
            if slot_reads(line, slot, key, value):
                return OK
        if likely(not linked):
            break
        line = inline_line(map, load_relaxed_u64(&line.keys[INLINE_LINK]) % map.line_max)
        linked = element_state(load_acquire_u64(&line.words[INLINE_LINK])) == ELEMENT_RETIRED
    if unlikely(not level_covers(bucket_level_plus1(header), at, hash)):
        return RETRY
    fence_acquire()
    if unlikely((load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK):
        return RETRY
    return ABSENT

cdef inline Status inline_read(
        Map *map, uint32_t hash, uint64_t key, uint64_t *value, bint ahead) noexcept nogil:
    """The usual hit and the usual miss as straight code. ahead: ask for both cache lines of the
    bucket at once, which a hit needs and a miss does not."""
    cdef uint64_t at = table_guess(map, hash)
    cdef InlineBucket *bucket = inline_bucket(map, at)
    cdef uint64_t header
    cdef uint32_t mask
    if ahead:
        prefetch(<uint8_t *> bucket + 64)  # which of its words will be read is not known yet
    header = load_acquire_u64(&bucket.header)
    mask = match5(bucket.keys, key)
    if likely(mask != 0):
        if likely(slot_reads(bucket, count_trailing_zeros(mask), key, value)):
            return OK
    elif not header & INLINE_LINKED and level_covers(bucket_level_plus1(header), at, hash):
        fence_acquire()
        if likely((load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK == 0):
            return ABSENT
    return inline_read_at(map, at, hash, key, value)

cdef inline void inline_fill(
        InlineBucket *line, uint32_t slot, uint64_t key, uint64_t value) noexcept nogil:
    line.keys[slot], line.values[slot] = key, value
    line.words[slot] = element_header(line.words[slot], ELEMENT_LIVE, 0)


@final
cdef class Inline(Subject):
    """Entries in the buckets. load: the mean number of entries of a bucket above which an insertion
    splits one, in tenths. ahead: see inline_read."""
    cdef Header header
    cdef uint64_t memory_bytes
    cdef uint64_t entries
    cdef uint64_t load
    cdef bint ahead
    cdef uint64_t lines_used
    cdef uint64_t line_free            # first of a list, through keys[0]

    def __cinit__(self, seeds, uint64_t max_entries, uint64_t load, bint ahead):
        cdef Map *map = &self.map
        cdef uint64_t index
        cdef void *memory
        self.subject_init()
        for index in range(4):
            map.seeds[index] = seeds[index]
        self.load = load
        self.ahead = ahead
        map.header = &self.header
        map.max_entries = max_entries
        map.bucket_max = max_entries * 10 // load + 64
        map.line_max = max_entries // 2 + 64
        self.memory_bytes = (map.bucket_max + map.line_max) * INLINE_BYTES
        memory = mmap(NULL, self.memory_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        map.buckets = <uint8_t *> memory
        map.lines = map.buckets + map.bucket_max * INLINE_BYTES
        self.header.table = <uint64_t> BUCKET_COUNT_MIN << PAYLOAD_SHIFT
        self.lines_used = 1                            # line 0 is never used
        for index in range(BUCKET_COUNT_MIN):
            inline_bucket(map, index).header = 3 << LEVEL_SHIFT

    def __dealloc__(self):
        if self.map.buckets != NULL:
            munmap(self.map.buckets, self.memory_bytes)

    def figures(self):
        """(buckets, buckets with overflow lines, lines, lines of 128 bytes that a hit reads)."""
        cdef uint64_t at, free_count = 0
        cdef uint64_t linked = 0
        cdef uint64_t count = self.header.table >> PAYLOAD_SHIFT
        at = self.line_free
        while at != 0:
            free_count += 1
            at = inline_line(&self.map, at).keys[0]
        for at in range(count):
            linked += inline_bucket(&self.map, at).header & INLINE_LINKED != 0
        return count, linked, self.lines_used - 1 - free_count

    cdef void loop(self, uint64_t passes, uint64_t *done) noexcept nogil:
        cdef Work *work = &self.work
        cdef uint64_t _turn, index
        cdef uint32_t hash
        cdef uint64_t *value = NULL if work.task == CONTAINS else &work.value
        for _turn in range(passes):
            for index in range(work.count):
                work_next(work, index)
                if work.task == NOTHING:
                    continue
                hash = hash_word(self.map.seeds, work.key)
                if work.task == UPDATE:
                    done[0] += self.replace(table_guess(&self.map, hash))
                elif work.task == INSERT:
                    done[0] += inline_read(&self.map, hash, work.key, NULL, False) == ABSENT and (
                        self.insert(hash, work.key))
                else:
                    done[0] += inline_read(
                        &self.map, hash, work.key, value, self.ahead) == OK

    cdef Status find(self, uint64_t key, uint64_t *value) noexcept nogil:
        return inline_read(
            &self.map, hash_word(self.map.seeds, key), key, value, self.ahead)

    cdef uint64_t many(self, const uint64_t *keys, uint64_t *out, uint8_t *mask,
                       uint64_t count) noexcept nogil:
        cdef uint64_t guesses[64]                      # two groups
        cdef uint32_t hashes[64]
        cdef uint64_t i, at, stop
        cdef uint64_t hashed = 0
        cdef uint64_t done = 0
        cdef uint64_t hits = 0
        while done < count:                            # each turn does a group
            stop = min(count, done + 2 * AHEAD)
            while hashed < stop:
                at = hashed % (2 * AHEAD)
                hashes[at] = hash_word(self.map.seeds, keys[hashed])
                guesses[at] = table_guess(&self.map, hashes[at])
                prefetch(inline_bucket(&self.map, guesses[at]))
                prefetch(<uint8_t *> inline_bucket(&self.map, guesses[at]) + 64)
                hashed += 1
            stop = min(count, done + AHEAD)
            for i in range(done, stop):
                at = i % (2 * AHEAD)
                mask[i] = inline_read_fast(&self.map, guesses[at], keys[i], out + i) or (
                    inline_read_at(&self.map, guesses[at], hashes[at], keys[i], out + i) == OK)
                hits += mask[i]
            done = stop
        return hits

    cdef inline bint replace(self, uint64_t at) noexcept nogil:
        """Update a present key: take its word, store the value, release the word."""
        cdef InlineBucket *line = inline_bucket(&self.map, at)
        cdef bint linked = line.header & INLINE_LINKED
        cdef uint64_t word, held
        cdef uint32_t mask, slot
        cdef int _
        prefetch(<uint8_t *> line + 64)
        for _ in range(CHAIN_MAX):
            mask = match5(line.keys, self.work.key)
            if likely(mask != 0):
                slot = count_trailing_zeros(mask)
                word = load_acquire_u64(&line.words[slot])
                if unlikely(element_state(word) != ELEMENT_LIVE):
                    return False
                held = element_header(word, ELEMENT_ULOCK, lock_bits(self.work.op.self_index))
                self.work.op.context.target = at
                if unlikely(not cas_acq_rel_u64(&line.words[slot], word, held)):
                    return False
                fence_release()
                store_relaxed_u64(&line.values[slot], 0)
                store_release_u64(&line.words[slot], element_header(held, ELEMENT_LIVE, 0))
                return True
            if not linked:
                return False
            line = inline_line(&self.map, line.keys[INLINE_LINK])
            linked = element_state(line.words[INLINE_LINK]) == ELEMENT_RETIRED
        return False

    cdef bint insert(self, uint32_t hash, uint64_t key) noexcept nogil:
        cdef uint64_t at = table_guess(&self.map, hash)
        cdef uint64_t count = self.header.table >> PAYLOAD_SHIFT
        if self.entries == self.map.max_entries or not self.append(
                inline_bucket(&self.map, at), key, 0):
            return False
        self.entries += 1
        if self.entries * 10 > count * self.load and count < self.map.bucket_max:
            return self.split(count)
        return True

    cdef bint append(self, InlineBucket *bucket, uint64_t key, uint64_t value) noexcept nogil:
        """Add an entry to a chain. There is one thread and no reader: plain stores."""
        cdef InlineBucket *line = bucket
        cdef InlineBucket *fresh
        cdef bint linked = bucket.header & INLINE_LINKED
        cdef uint64_t index
        cdef uint32_t slot
        while linked:                                  # ends: chains are finite
            line = inline_line(&self.map, line.keys[INLINE_LINK])
            linked = element_state(line.words[INLINE_LINK]) == ELEMENT_RETIRED
        for slot in range(INLINE_SLOTS):
            if element_state(line.words[slot]) == ELEMENT_FREE:
                inline_fill(line, slot, key, value)
                return True
        index = self.line_free
        if index != 0:
            self.line_free = inline_line(&self.map, index).keys[0]
        elif self.lines_used < self.map.line_max:
            index = self.lines_used
            self.lines_used += 1
        else:
            return False
        fresh = inline_line(&self.map, index)
        inline_fill(fresh, 0, line.keys[INLINE_LINK], line.values[INLINE_LINK])
        inline_fill(fresh, 1, key, value)
        line.words[INLINE_LINK] = element_header(line.words[INLINE_LINK], ELEMENT_RETIRED, 0)
        line.keys[INLINE_LINK] = index
        if line == bucket:
            bucket.header |= INLINE_LINKED
        return True

    cdef bint split(self, uint64_t child) noexcept nogil:
        """Split bucket child off: the chain is taken apart, and its entries are appended again."""
        cdef InlineBucket *parent = inline_bucket(&self.map, bucket_parent(child))
        cdef uint64_t level_plus1 = bucket_level_plus1(parent.header) + 1
        cdef uint64_t keys[320]
        cdef uint32_t count = 0
        cdef uint32_t at
        if not self.collect(parent, keys, &count):
            return False
        parent.header = level_plus1 << LEVEL_SHIFT
        inline_bucket(&self.map, child).header = level_plus1 << LEVEL_SHIFT
        self.header.table = (child + 1) << PAYLOAD_SHIFT
        for at in range(count):
            if not self.append(
                    inline_bucket(&self.map, table_guess(
                        &self.map, hash_word(self.map.seeds, keys[at]))), keys[at], 0):
                return False
        return True

    cdef bint collect(self, InlineBucket *bucket, uint64_t *keys, uint32_t *count) noexcept nogil:
        """Empty a chain into keys; its lines go to the free list."""
        cdef InlineBucket *line = bucket
        cdef uint64_t index = 0
        cdef uint64_t following
        cdef uint32_t slot
        cdef bint linked = bucket.header & INLINE_LINKED
        while True:                                    # ends: chains are finite
            following = line.keys[INLINE_LINK] if linked else 0
            for slot in range(INLINE_SLOTS):
                if element_state(line.words[slot]) == ELEMENT_LIVE:
                    if count[0] == MOVED_MAX:
                        return False
                    keys[count[0]] = line.keys[slot]
                    count[0] += 1
                line.words[slot] = element_header(line.words[slot], ELEMENT_FREE, 0)
                line.keys[slot] = 0
            if index != 0:
                line.keys[0] = self.line_free
                self.line_free = index
            if following == 0:
                return True
            index = following
            line = inline_line(&self.map, index)
            linked = element_state(line.words[INLINE_LINK]) == ELEMENT_RETIRED
