# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The core's own table without growth, as the kernel's htab is its rhtab without. In _bench.pyx.
#
# It keeps the hash, the buckets of one cache line with tags, the overflow lines, the elements with
# their headers, chain_find, and the validation of what a reader copied. It leaves out everything
# that resizing and recovery need: levels and the table word, contexts and their fields, depots,
# credits, recovery. The number of buckets is the smallest power of two with a mean load of at most
# 3.5 at max_entries, all memory is there from the beginning (htab's default), and one thread
# writes. The memory is shared and anonymous, in pages like those of a segment.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.mman cimport mmap, munmap, MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE
from machine.atomics cimport (
    cas_acq_rel_u64, fence_acquire, fence_release, load_acquire_u64, load_relaxed_u64,
    store_relaxed_u64,
)
from segment.layout cimport (
    Bucket, Element, ELEMENT_LIVE, ELEMENT_ULOCK, LINK_BASE, LINK_SLOT, LOCK_MASK, SLOT_COUNT,
)
from segment.words cimport element_header, lock_bits
from segment.classes cimport element_stride, power_of_two_at_least
from segment.geometry cimport Map, bucket_at, element_at, element_value, line_at
from map.chain cimport Found, chain_find
from map.element cimport element_read, element_release


cdef inline Status fixed_look(
        Map *map, uint64_t mask, uint32_t hash, const uint8_t *key, uint64_t key_size, void *value,
        uint64_t value_size, Found *found) noexcept nogil:
    cdef Bucket *bucket = bucket_at(map, hash & mask)
    cdef uint64_t header = load_acquire_u64(&bucket.header)
    cdef Status status = chain_find(map, bucket, hash, key, key_size, found)
    if likely(status == OK):
        if value == NULL or likely(element_read(map, found, key_size, value, value_size)):
            return OK
        return RETRY
    # Load all slots before the header again, as in read.pxd.
    fence_acquire()
    if unlikely((load_relaxed_u64(&bucket.header) ^ header) & ~LOCK_MASK):
        return RETRY
    return status


@final
cdef class Fixed:
    """run() is like BenchHandle's, for nothing, lookup, update and insert; values have 8 bytes."""
    cdef Map map
    cdef Workload work
    cdef uint8_t *memory
    cdef uint64_t memory_bytes
    cdef uint64_t mask
    cdef uint64_t entries
    cdef uint64_t lines_used

    def __cinit__(self, uint64_t key_size, uint64_t value_size, uint64_t max_entries,
                  bytes seeds not None):
        cdef Map *map = &self.map
        cdef uint64_t count = power_of_two_at_least((max_entries * 2 + 6) // 7)
        cdef void *memory
        if value_size != 8 or key_size > KEY_BYTES_MAX:
            raise ValueError("sizes that this benchmark does not have")
        map.key_size, map.value_size = key_size, value_size
        map.key_words, map.value_words = (key_size + 7) // 8, 1
        map.max_entries = max_entries
        map.stride = element_stride(key_size, value_size)
        map.element_max = max_entries + 1
        map.line_max = max_entries // 6 + 64
        memcpy(map.seeds, PyBytes_AS_STRING(seeds), sizeof(map.seeds))
        self.mask = count - 1
        self.memory_bytes = (count + map.line_max) * 64 + map.element_max * map.stride
        memory = mmap(NULL, self.memory_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        self.memory = <uint8_t *> memory
        memset(self.memory, 0, self.memory_bytes)
        map.buckets = self.memory
        map.lines = map.buckets + count * 64
        map.elements = map.lines + map.line_max * 64

    def __dealloc__(self):
        if self.memory != NULL:
            munmap(self.memory, self.memory_bytes)

    def run(self, str task not None, uint64_t count, *, uint64_t passes=1, uint32_t first=0,
            const uint32_t[::1] order=None):
        """As BenchHandle.run."""
        cdef int64_t began, ended
        cdef uint64_t done = 0
        workload_init(&self.work, task, first, count, passes, order)
        if self.work.task not in (NOTHING, LOOKUP, UPDATE, INSERT):
            raise ValueError(f"{task} is not known here")
        began = clock_ns(CLOCK_MONOTONIC)
        with nogil:
            if self.work.task == NOTHING:
                loop_alone(&self.work)
            elif self.work.task == LOOKUP:
                self.read(&done)
            else:
                self.write(&done)
        ended = clock_ns(CLOCK_MONOTONIC)
        return ended - began, done

    cdef void read(self, uint64_t *done) noexcept nogil:
        cdef uint64_t _turn, index
        cdef uint64_t hits = 0
        cdef Map *map = &self.map
        cdef Workload *work = &self.work
        cdef const uint8_t *key = <const uint8_t *> work.key
        cdef uint32_t hash
        cdef Found found
        for _turn in range(work.passes):
            for index in range(work.count):
                workload_patch(work, index)
                hash = hash_key(map.seeds, key, map.key_size)
                if likely(map.key_size == 8):
                    hits += fixed_look(
                        map, self.mask, hash, key, 8, work.value, 8, &found) == OK
                else:
                    hits += fixed_look(
                        map, self.mask, hash, key, map.key_size, work.value, 8, &found) == OK
        done[0] = hits

    cdef void write(self, uint64_t *done) noexcept nogil:
        cdef uint64_t _turn, index
        cdef Map *map = &self.map
        cdef Workload *work = &self.work
        cdef uint32_t hash
        cdef Found found
        cdef Status status
        for _turn in range(work.passes):
            for index in range(work.count):
                workload_patch(work, index)
                hash = hash_key(map.seeds, <const uint8_t *> work.key, map.key_size)
                status = fixed_look(map, self.mask, hash, <const uint8_t *> work.key,
                                    map.key_size, NULL, 8, &found)
                if status == OK and work.task == UPDATE:
                    done[0] += self.replace(&found)
                elif status == ABSENT and self.entries < map.max_entries:
                    done[0] += self.append(hash)

    cdef inline bint replace(self, Found *found) noexcept nogil:
        """As element_update for one word, but no context names the element."""
        cdef uint64_t held = element_header(found.header, ELEMENT_ULOCK, lock_bits(1))
        if unlikely(not cas_acq_rel_u64(&found.element.header, found.header, held)):
            return False
        fence_release()
        store_relaxed_u64(element_value(&self.map, found.element), self.work.value[0])
        element_release(NULL, found.element, held)
        return True

    cdef bint append(self, uint32_t hash) noexcept nogil:
        """Add an entry at the end of its chain. There is one thread and no reader: plain stores."""
        cdef Map *map = &self.map
        cdef Bucket *line = bucket_at(map, hash & self.mask)
        cdef Bucket *fresh
        cdef Element *element
        cdef uint32_t slot
        while line.indices[LINK_SLOT] >= LINK_BASE:    # ends: chains are finite
            line = line_at(map, line.indices[LINK_SLOT] - LINK_BASE)
        for slot in range(SLOT_COUNT):
            if line.indices[slot] == 0:
                break
        else:
            if self.lines_used + 1 >= map.line_max:
                return False
            self.lines_used += 1
            fresh = line_at(map, self.lines_used)
            fresh.tags[0], fresh.indices[0] = line.tags[LINK_SLOT], line.indices[LINK_SLOT]
            line.indices[LINK_SLOT] = <uint32_t> (LINK_BASE + self.lines_used)
            line, slot = fresh, 1
        self.entries += 1
        element = element_at(map, self.entries)
        memcpy(&element.words[0], self.work.key, map.key_size)
        element_value(map, element)[0] = self.work.value[0]
        element.header = element_header(0, ELEMENT_LIVE, 0)
        line.tags[slot] = hash
        line.indices[slot] = <uint32_t> self.entries
        return True
