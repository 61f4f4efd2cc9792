# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A table whose entries stand in its buckets, beside the core's, for bench_inline.py. Not part of
# the package.
#
# An experiment (docs/performance/tried.md, "One miss instead of two"): what would an operation cost
# if an entry of two words stood in its bucket, with a lock word of its own? Inline, in
# _inline_table.pxi, is such a table.
#
# Core is a map that the package made and filled, in a mapping of its own: the core's functions,
# compiled with the same flags in the same module. No other process may use the map.
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.ref cimport PyObject
from cython cimport final
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport mmap, munmap, MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE
from machine.atomics cimport (
    cas_acq_rel_u64, count_trailing_zeros, fence_acquire, fence_release, likely, load_acquire_u64,
    load_relaxed_u64, prefetch, read_u64, store_relaxed_u64, store_release_u64, unlikely,
)
from machine.hashing cimport hash_word
from machine.system cimport clock_ns
from segment.status cimport Status, OK, ABSENT, RETRY
from segment.layout cimport (
    BUCKET_COUNT_MIN, ELEMENT_FREE, ELEMENT_LIVE, ELEMENT_RETIRED, ELEMENT_ULOCK, LEVEL_SHIFT,
    LOCK_MASK, PAYLOAD_SHIFT, Context, Header,
)
from segment.words cimport bucket_level_plus1, element_header, element_state, lock_bits
from segment.geometry cimport Map, geometry_bind, geometry_compute
from memory.operation cimport Op, op_begin, op_end
from map.batch cimport BATCH_LOOKUP, GROUP, RING, Batch, Prefetch, many_lead, many_words
from map.chain cimport Found
from map.element cimport element_update
from map.read cimport map_contains, map_find, map_lookup, read_fast, read_fast_at
from map.table cimport bucket_parent, level_covers, table_guess
from map.write cimport update_word_fast

cdef extern from "<time.h>" nogil:
    int CLOCK_THREAD_CPUTIME_ID

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *thing) noexcept

cdef enum:
    KEY_WORD_1 = 2654435761            # as in _bench.pyx

cdef enum Task:
    NOTHING                    # the loop itself
    LOOKUP
    CHASE                      # lookups one by one: which key is next depends on the value before
    CONTAINS
    UPDATE
    INSERT

TASKS = {"nothing": NOTHING, "lookup": LOOKUP, "chase": CHASE, "contains": CONTAINS,
         "update": UPDATE, "insert": INSERT}

# A workload, and the operation that performs it in a context of its own, which no map has.
cdef struct Work:
    Op op
    uint64_t context[64]
    uint64_t key
    uint64_t value             # what a lookup finds, and an update stores. All values are 0.
    uint32_t task
    uint32_t first             # added to each number: beyond the last entry, all are misses
    uint64_t count
    const uint32_t *order      # or NULL: in sequence


cdef inline void work_patch(Work *work, uint64_t index) noexcept nogil:
    work.key = <uint64_t> KEY_WORD_1 << 32 | <uint32_t> (work.first + 1 + (
        <uint32_t> index if work.order == NULL else work.order[index]))

cdef inline void work_next(Work *work, uint64_t index) noexcept nogil:
    """The next operation begins; in a chase its key is known once the value before has arrived."""
    work_patch(work, index + (work.value if work.task == CHASE else 0))
    op_end(&work.op)
    op_begin(&work.op)


cdef class Subject:
    """run(), m[key] and lookup_many() of a table. A subclass has the operations in C."""
    cdef Map map
    cdef Work work
    cdef object kept           # the last bytes object, used again as the package does

    cdef void loop(self, uint64_t passes, uint64_t *done) noexcept nogil:
        pass

    cdef Status find(self, uint64_t key, uint64_t *value) noexcept nogil:
        return ABSENT

    cdef uint64_t many(self, const uint64_t *keys, uint64_t *out, uint8_t *mask,
                       uint64_t count) noexcept nogil:
        return 0

    cdef void subject_init(self):
        memset(&self.work, 0, sizeof(self.work))
        self.work.op.map = &self.map
        self.work.op.context = <Context *> self.work.context

    def run(self, str task not None, uint64_t count, *, uint64_t passes=1, uint32_t first=0,
            const uint32_t[::1] order=None):
        """(processor time in ns, how many operations ended in OK)."""
        cdef Work *work = &self.work
        cdef uint64_t done = 0
        cdef int64_t began, ended
        if order is not None and <uint64_t> order.shape[0] < count:
            raise ValueError("order is too short")
        work.task, work.first, work.count, work.value = TASKS[task], first, count, 0
        work.order = NULL if order is None else &order[0]
        began = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        with nogil:
            self.loop(passes, &done)
        ended = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        return ended - began, done

    def __getitem__(self, key):
        """As MapCore's, for bytes of 8 bytes, with the same steps around the lookup."""
        cdef uint64_t found
        cdef Status status
        if unlikely(not PyBytes_CheckExact(key) or PyBytes_GET_SIZE(key) != 8):
            raise TypeError("8 bytes")
        op_begin(&self.work.op)
        status = self.find(read_u64(PyBytes_AS_STRING(key)), &found)
        op_end(&self.work.op)
        if unlikely(status != OK):
            raise KeyError(key)
        if self.kept is None or Py_REFCNT(<PyObject *> self.kept) != 1:
            self.kept = PyBytes_FromStringAndSize(NULL, 8)
        memcpy(PyBytes_AS_STRING(self.kept), &found, 8)
        return self.kept

    def lookup_many(self, const uint64_t[::1] keys not None, uint64_t[::1] out not None,
                    uint8_t[::1] mask not None):
        """(processor time in ns, how many keys were found). The misses of several keys overlap."""
        cdef uint64_t count = keys.shape[0]
        cdef uint64_t done
        cdef int64_t began, ended
        if count == 0 or <uint64_t> out.shape[0] < count or <uint64_t> mask.shape[0] < count:
            raise ValueError("arrays of different lengths")
        began = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        with nogil:
            op_begin(&self.work.op)
            done = self.many(&keys[0], &out[0], &mask[0], count)
            op_end(&self.work.op)
        ended = clock_ns(CLOCK_THREAD_CPUTIME_ID)
        return ended - began, done


@final
cdef class Core(Subject):
    """The core's own layout: memory is a mapping of a map's file. Its keys are those of run()."""
    cdef object memory

    def __cinit__(self, uint8_t[::1] memory not None, uint64_t entries, uint64_t depots):
        self.subject_init()
        self.memory = memory
        if geometry_compute(&self.map, 8, 8, entries, depots) != OK or (
                self.map.segment_bytes > <uint64_t> memory.shape[0]):
            raise ValueError("not the memory of this map")
        geometry_bind(&self.map, &memory[0])
        memcpy(self.map.seeds, self.map.header.seeds, sizeof(self.map.seeds))

    @property
    def seeds(self):
        return [self.map.seeds[at] for at in range(4)]

    cdef void loop(self, uint64_t passes, uint64_t *done) noexcept nogil:
        cdef Work *work = &self.work
        cdef Map *map = &self.map
        cdef uint64_t _turn, index
        cdef uint32_t hash
        cdef void *value = NULL if work.task == CONTAINS else &work.value
        cdef Status status
        for _turn in range(passes):
            for index in range(work.count):
                work_next(work, index)
                if work.task == NOTHING:
                    continue
                hash = hash_word(map.seeds, work.key)
                if work.task == UPDATE:
                    work.op.hash = hash
                    done[0] += update_word_fast(&work.op, work.key, 0, NULL, NULL) or (
                        self.update_slowly() == OK)
                    continue
                status = read_fast(map, hash, <const uint8_t *> &work.key, value)
                if unlikely(status == RETRY):
                    status = map_contains(map, hash, <const uint8_t *> &work.key) if (
                        value == NULL) else map_lookup(
                            map, hash, <const uint8_t *> &work.key, value)
                done[0] += status == OK

    cdef Status update_slowly(self) noexcept nogil:
        """Of a key that is not behind the first slot with its tag."""
        cdef Found found
        cdef uint64_t zero = 0
        cdef Status status
        self.work.op.key = <const uint8_t *> &self.work.key
        status = map_find(&self.map, self.work.op.hash, self.work.op.key, &found)
        if status == OK:
            status = element_update(&self.work.op, &found, <const uint8_t *> &zero)
        return status

    cdef Status find(self, uint64_t key, uint64_t *value) noexcept nogil:
        return read_fast(
            &self.map, hash_word(self.map.seeds, key), <const uint8_t *> &key, value)

    cdef uint64_t many(self, const uint64_t *keys, uint64_t *out, uint8_t *mask,
                       uint64_t count) noexcept nogil:
        """many_span of batch.pxd, for lookups of words only."""
        cdef Batch batch
        cdef Prefetch lead
        cdef uint64_t stop, at
        cdef uint64_t hits = 0
        memset(&batch, 0, sizeof(batch))
        batch.kind = BATCH_LOOKUP
        batch.keys, batch.values, batch.done_mask = (
            <const uint8_t *> keys, <uint8_t *> out, mask)
        lead.hashed = lead.looked = lead.rested = lead.asked = 0
        memset(mask, 0, count)
        while batch.done < count:                      # each turn does a group
            stop = min(count, batch.done + GROUP)
            many_lead(&self.map, &lead, &batch, count)
            while batch.done < stop:
                many_words(&self.map, &lead, &batch, stop)
                if batch.done < stop:
                    at = batch.done & (RING - 1)
                    mask[batch.done] = read_fast_at(
                        &self.map, lead.guesses[at], lead.hashes[at],
                        <const uint8_t *> (keys + batch.done), out + batch.done) == OK
                    batch.done += 1
        for at in range(count):
            hits += mask[at]
        return hits


include "_inline_table.pxi"
