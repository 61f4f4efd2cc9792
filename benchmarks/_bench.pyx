# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The core's operations in loops without Python, for the benchmarks. Not part of the package.
#
# The whole extension is compiled in, so that the loops call the same code, optimised in the same
# way. A loop leaves out what _core.pyx adds for Python: buffers, bytes objects, exceptions, the
# claim of a context. It includes op_begin and op_end of each operation.
#
# The keys are those of the kernel's LOOKUP benchmark (bench bpf-hashmap-lookup): 32-bit words, word
# 0 is the number of the entry plus one, word j is 2654435761 * j; there is one key buffer, patched
# for each operation. A run takes the entries in sequence or in the order of an array. run_keys
# takes keys and values from arrays instead, for bench_batch.py: it does one by one what a batch
# does.
#
# Included files: _reference.pxi, a table as simple as possible; _fixed.pxi, the core's own table
# with a fixed number of buckets; _rounds.pxi, the loops of the kernel's MEMORY benchmark;
# _latency.pxi, the time of each single operation.
include "_core.pyx"

# Everything used below, so that this file does not depend on what _core.pyx happens to cimport.
from cpython.bytes cimport PyBytes_AS_STRING
from cython cimport final
from libc.stdint cimport uint8_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from machine.atomics cimport compiler_fence, likely, unlikely
from machine.system cimport clock_ns, CLOCK_MONOTONIC
from machine.hashing cimport hash_key
from machine.number cimport NumberField, FIELD_ADD, FIELD_SIGNED
from segment.status cimport Status, OK, ABSENT, BUSY, FULL, RETRY
from memory.operation cimport Op, op_begin, op_end
from map.read cimport read_fast, map_lookup, map_contains
from map.hold cimport op_give_back
from map.remove cimport map_delete
from map.write cimport map_apply, UPDATE_ANY, UPDATE_NOEXIST, map_update

cdef enum:
    KEY_BYTES_MAX = 1024
    VALUE_BYTES_MAX = 4096
    KEY_WORD_1 = 2654435761ULL  # 32 bits: widen it before it is shifted

cdef enum Task:
    NOTHING                    # the loop itself
    LOOKUP
    CONTAINS
    UPDATE
    ADD
    INSERT
    DELETE

TASKS = {"nothing": NOTHING, "lookup": LOOKUP, "contains": CONTAINS, "update": UPDATE, "add": ADD,
         "insert": INSERT, "delete": DELETE}


cdef struct Workload:
    uint32_t task
    uint32_t first             # added to each number: beyond the last entry, all are misses
    uint64_t count             # entries a pass
    uint64_t passes
    const uint32_t *order      # or NULL: in sequence
    uint64_t key[128]          # KEY_BYTES_MAX
    uint64_t value[512]        # VALUE_BYTES_MAX


cdef void workload_init(Workload *work, str task, uint32_t first, uint64_t count, uint64_t passes,
                        const uint32_t[::1] order):
    cdef uint32_t word
    memset(work, 0, sizeof(Workload))
    work.task = TASKS[task]
    work.first = first
    work.count = count
    work.passes = passes
    if order is not None:
        if <uint64_t> order.shape[0] < count:
            raise ValueError("order is too short")
        work.order = &order[0]
    for word in range(KEY_BYTES_MAX // 4):
        (<uint32_t *> work.key)[word] = <uint32_t> (<uint64_t> KEY_WORD_1 * word)


cdef inline void workload_patch(Workload *work, uint64_t index) noexcept nogil:
    # One store of 8 bytes, because the key is loaded so: two of 4 would defeat store forwarding.
    work.key[0] = <uint64_t> KEY_WORD_1 << 32 | (work.first + 1 + (
        <uint32_t> index if work.order == NULL else work.order[index]))


@final
cdef class BenchHandle(MapCore):
    """A handle that runs a whole workload in one call."""

    # Not on the stack: some processors predict that a load from a stack slot takes the value of the
    # last turn's store to it, and a wrong prediction costs half of a lookup.
    cdef Workload work

    def run(self, str task not None, uint64_t count, *, uint64_t passes=1, uint32_t first=0,
            const uint32_t[::1] order=None):
        """(nanoseconds, how many operations ended in OK). ABSENT and FULL are allowed, too."""
        cdef Op op
        cdef Workload *work = &self.work
        cdef int64_t began, ended
        cdef uint64_t done = 0
        cdef Status status
        if self.map.key_size > KEY_BYTES_MAX or self.map.value_size > VALUE_BYTES_MAX:
            raise ValueError("keys or values too large for this benchmark")
        workload_init(work, task, first, count, passes, order)
        enter(self, &op)
        began = clock_ns(CLOCK_MONOTONIC)
        with nogil:
            if work.task == NOTHING:
                status = loop_alone(work)
            elif work.task == LOOKUP:
                status = map_read(&op, work, work.value, &done)
            elif work.task == CONTAINS:
                status = map_read(&op, work, NULL, &done)
            else:
                status = map_run(&op, work, &done)
        ended = clock_ns(CLOCK_MONOTONIC)
        leave(self, &op)
        if status != OK:
            raise RuntimeError(f"{task} ended with status {<int> status} after {done} operations")
        return ended - began, done

    def run_keys(self, str task not None, const uint8_t[::1] keys not None,
                 uint8_t[::1] values not None, uint8_t[::1] mask not None):
        """Look up, update or delete each key: (nanoseconds, how many operations ended in OK)."""
        cdef Op op
        cdef int64_t began, ended
        cdef uint64_t done = 0
        cdef uint64_t count = mask.shape[0]
        cdef uint32_t kind = TASKS[task]
        cdef Status status
        if (<uint64_t> keys.shape[0] < count * self.map.key_size
                or <uint64_t> values.shape[0] < count * self.map.value_size):
            raise ValueError("arrays of different lengths")
        if count == 0 or kind not in (LOOKUP, UPDATE, DELETE):
            raise ValueError("nothing to do, or not known here")
        enter(self, &op)
        began = clock_ns(CLOCK_MONOTONIC)
        with nogil:
            status = keys_run(&op, kind, &keys[0], &values[0], &mask[0], count, &done)
        ended = clock_ns(CLOCK_MONOTONIC)
        leave(self, &op)
        if status != OK:
            raise RuntimeError(f"{task} ended with status {<int> status} after {done} operations")
        return ended - began, done


cdef inline Status keys_step(Op *op, uint32_t task, uint8_t *value) noexcept nogil:
    cdef Status status
    op.hash = hash_key(op.map.seeds, op.key, op.map.key_size)
    op.element_filled = False
    if task == LOOKUP:
        status = read_fast(op.map, op.hash, op.key, value)
        if unlikely(status == RETRY):
            return map_lookup(op.map, op.hash, op.key, value)
        return status
    if task == UPDATE:
        return map_update(op, value, UPDATE_ANY)
    return map_delete(op, NULL)


cdef Status keys_run(
        Op *op, uint32_t task, const uint8_t *keys, uint8_t *values, uint8_t *mask,
        uint64_t count, uint64_t *done) noexcept nogil:
    cdef uint64_t index
    cdef Status status
    for index in range(count):
        op.key = keys + index * op.map.key_size
        while True:                            # RETRY and BUSY pass: no process is stopped
            status = keys_step(op, task, values + index * op.map.value_size)
            if unlikely(op.context.element != 0 or op.context.line_stash != 0):
                op_give_back(op)
            op_end(op)
            op_begin(op)
            if likely(status != RETRY and status != BUSY):
                break
        if unlikely(status != OK and status != ABSENT):
            return status
        mask[index] = status == OK
        done[0] += status == OK
    return OK


cdef inline Status map_read(
        Op *op, Workload *work, void *value, uint64_t *done) noexcept nogil:
    """What read_value does, except for the GIL; tests for presence if value is NULL."""
    cdef Map *map = op.map
    cdef const uint8_t *key = <const uint8_t *> work.key
    cdef uint64_t _turn, index
    cdef uint64_t hits = 0
    cdef uint32_t hash
    cdef Status status
    for _turn in range(work.passes):
        for index in range(work.count):
            workload_patch(work, index)
            op_end(op)
            op_begin(op)
            hash = hash_key(map.seeds, key, map.key_size)
            status = read_fast(map, hash, key, value)
            while unlikely(status == RETRY):   # ends: no process is stopped
                if value == NULL:
                    status = map_contains(map, hash, key)
                else:
                    status = map_lookup(map, hash, key, value)
            hits += status == OK
            if unlikely(status != OK and status != ABSENT):
                return status
    done[0] = hits
    return OK


cdef inline Status map_step(Op *op, Workload *work) noexcept nogil:
    cdef NumberField field
    cdef uint64_t sum = 0
    op.key = <const uint8_t *> work.key
    op.hash = hash_key(op.map.seeds, op.key, op.map.key_size)
    op.element_filled = False
    if work.task == UPDATE:
        return map_update(op, <const uint8_t *> work.value, UPDATE_ANY)
    if work.task == ADD:
        field.offset, field.operand, field.size = 0, 1, 8
        field.kind, field.operation = FIELD_SIGNED, FIELD_ADD
        return map_apply(op, &field, NULL, &sum)
    if work.task == INSERT:
        return map_update(op, <const uint8_t *> work.value, UPDATE_NOEXIST)
    return map_delete(op, NULL)


cdef Status map_run(Op *op, Workload *work, uint64_t *done) noexcept nogil:
    cdef uint64_t _turn, index
    cdef Status status
    for _turn in range(work.passes):
        for index in range(work.count):
            workload_patch(work, index)
            while True:                        # RETRY and BUSY pass: no process is stopped
                status = map_step(op, work)
                if unlikely(op.context.element != 0 or op.context.line_stash != 0):
                    op_give_back(op)
                op_end(op)
                op_begin(op)
                if likely(status != RETRY and status != BUSY):
                    break
            if status == OK:
                done[0] += 1
            elif status != ABSENT and status != FULL:
                return status
    return OK


cdef Status loop_alone(Workload *work) noexcept nogil:
    """The loops without an operation in them."""
    cdef uint64_t _turn, index
    for _turn in range(work.passes):
        for index in range(work.count):
            workload_patch(work, index)
            compiler_fence()                   # keeps the store of the key
    return OK


include "_reference.pxi"
include "_fixed.pxi"
include "_rounds.pxi"
include "_latency.pxi"
