# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The table that the map is compared with, as simple as possible: open addressing, linear probing,
# half full at most, never resized, in private memory, with the map's hash; no locks, no versions,
# no limit, nothing shared. A deletion only marks its slot.
#
#   slot   hash | 1 << 32, or 0: empty, or DELETED_SLOT | key, padded to 8 | value, padded to 8

cdef enum:
    DELETED_SLOT = 0x200000000ULL


@final
cdef class Reference:
    cdef uint8_t *slots
    cdef uint64_t mask
    cdef uint64_t stride
    cdef uint64_t value_offset
    cdef uint64_t key_size
    cdef uint64_t value_size
    cdef uint64_t seeds[4]
    cdef Workload work         # not on the stack: see BenchHandle

    def __cinit__(self, uint64_t key_size, uint64_t value_size, uint64_t entries,
                  bytes seeds not None):
        cdef uint64_t count = 8
        while count < 2 * entries:
            count *= 2
        self.key_size = key_size
        self.value_size = value_size
        self.value_offset = 8 + (key_size + 7) // 8 * 8
        self.stride = self.value_offset + (value_size + 7) // 8 * 8
        self.mask = count - 1
        memcpy(self.seeds, PyBytes_AS_STRING(seeds), sizeof(self.seeds))
        self.slots = <uint8_t *> calloc(count, self.stride)
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)

    def run(self, str task not None, uint64_t count, *, uint64_t passes=1, uint32_t first=0,
            const uint32_t[::1] order=None):
        """As BenchHandle.run."""
        cdef int64_t began, ended
        cdef uint64_t done = 0
        workload_init(&self.work, task, first, count, passes, order)
        began = clock_ns(CLOCK_MONOTONIC)
        with nogil:
            self.loop(&self.work, &done)
        ended = clock_ns(CLOCK_MONOTONIC)
        return ended - began, done

    cdef void loop(self, Workload *work, uint64_t *done) noexcept nogil:
        cdef uint64_t _turn, index
        for _turn in range(work.passes):
            for index in range(work.count):
                workload_patch(work, index)
                done[0] += self.step(work)

    cdef inline uint8_t *find(self, const void *key, uint64_t mark) noexcept nogil:
        """The slot of a key, or the empty slot where the key would go."""
        cdef uint64_t at = mark & self.mask
        cdef uint8_t *slot
        cdef uint64_t found
        while True:                            # ends: at least half of the slots are empty
            slot = self.slots + at * self.stride
            found = (<uint64_t *> slot)[0]
            if found == 0:
                return slot
            if found == mark and (
                    (<uint64_t *> slot)[1] == (<const uint64_t *> key)[0] if self.key_size == 8
                    else memcmp(slot + 8, key, self.key_size) == 0):
                return slot
            at = (at + 1) & self.mask

    cdef inline bint step(self, Workload *work) noexcept nogil:
        cdef uint64_t mark = 1ULL << 32 | hash_key(
            self.seeds, <const uint8_t *> work.key, self.key_size)
        cdef uint8_t *slot = self.find(work.key, mark)
        cdef bint present = (<uint64_t *> slot)[0] != 0
        cdef uint8_t *value = slot + self.value_offset
        if work.task == LOOKUP:
            if present:
                self.copy(work.value, value)
        elif work.task == UPDATE:
            if present:
                self.copy(value, work.value)
        elif work.task == ADD:
            if present:
                (<uint64_t *> value)[0] += 1
        elif work.task == INSERT:
            (<uint64_t *> slot)[0] = mark
            memcpy(slot + 8, work.key, self.key_size)
            self.copy(value, work.value)
            return not present
        elif work.task == DELETE:
            if present:
                (<uint64_t *> slot)[0] = DELETED_SLOT
        return present

    cdef inline void copy(self, void *target, const void *source) noexcept nogil:
        if self.value_size == 8:
            (<uint64_t *> target)[0] = (<const uint64_t *> source)[0]
        else:
            memcpy(target, source, self.value_size)
