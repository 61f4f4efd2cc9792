# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A segment in a memfd, and the core's functions on it one by one, for the tests in this folder.
# Not part of the package.
#
# Four contexts belong to process slot 0, which never registers, so that no context finds it dead.
# The argument `who` of a method is the index of the acting context. Statuses are returned as their
# names.
import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cimport memory.operation as core_operation
cimport memory.region as core_region
cimport memory.pool as core_pool
cimport memory.depot as core_depot
cimport map.chain as core_chain
cimport map.element as core_element
cimport map.table as core_table
cimport map.resize as core_resize
cimport map.read as core_read
cimport map.hold as core_hold
cimport map.remove as core_remove
cimport map.write as core_write
cimport map.walk as core_walk
from machine.system cimport MAP_FAILED, MAP_SHARED, PROT_READ, fstat, mmap, munmap, stat_t
from machine.hashing cimport hash_key
from machine.number cimport NumberField, FIELD_ADD, FIELD_SIGNED
from segment.status cimport Status, OK
from segment.layout cimport Bucket, Header, PAGE_BYTES, REGION_CONTEXTS
from segment.classes cimport PoolView, round_up
from segment.geometry cimport (
    Map, bucket_at, context_at, element_at, geometry_bind, geometry_compute,
)
from segment.header cimport segment_examine, segment_fill
from memory.operation cimport Op, op_begin, op_end
from map.chain cimport Found
from map.walk cimport Position, EntryBuffer, bucket_read
from processes.check cimport Report, check_map

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_WRITE
    enum: MAP_NORESERVE

cdef enum:
    WHO_COUNT = 4
    GUARDED = 2                # guard entries before and after the room of a sink

STATUSES = [
    "OK", "ABSENT", "PRESENT", "FULL", "NO_MEMORY", "CORRUPT", "BUSY", "NO_CONTEXT", "CLOSED",
    "OUT_OF_BYTES", "SYSTEM_ERROR", "RETRY", "NEED_BUCKETS", "NEED_ELEMENTS", "NEED_LINES",
    "NEED_OBJECTS",
]


cdef named(Status status):
    return STATUSES[<int> status]


cdef class Image:
    cdef Map map
    cdef Op[4] ops
    cdef readonly int fd

    def __cinit__(self, *, key_size=8, value_size=8, max_entries=4096, depot_count=2, buckets=4,
                  seeds=(0x0123456789ABCDEF, 0x9E3779B97F4A7C15, 3, 4)):
        cdef Header header
        cdef stat_t file_status
        cdef uint64_t index
        self.fd = self.map.fd = -1
        if geometry_compute(&self.map, key_size, value_size, max_entries, depot_count) != OK:
            raise ValueError("no address space holds it")
        self.fd = self.map.fd = os.memfd_create("image")
        os.ftruncate(self.fd, self.map.segment_bytes)
        fstat(self.fd, &file_status)
        self.map.device = file_status.st_dev
        self.map.inode = file_status.st_ino
        self.map.use_membarrier = True
        cdef void *base = mmap(NULL, self.map.segment_bytes, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_NORESERVE, self.fd, 0)
        if base == MAP_FAILED:
            raise MemoryError
        geometry_bind(&self.map, <uint8_t *> base)
        memset(&header, 0, sizeof(header))
        header.key_size = key_size
        header.value_size = value_size
        header.max_entries = max_entries
        header.depot_count = depot_count
        for index in range(4):
            header.seeds[index] = self.map.seeds[index] = seeds[index]
        segment_fill(&self.map, &header, buckets)
        self.map.header.regions[REGION_CONTEXTS].usable = round_up(
            WHO_COUNT * self.map.context_stride, PAGE_BYTES)
        for index in range(WHO_COUNT):
            self.ops[index].map = &self.map
            self.ops[index].self_index = index
            self.ops[index].context = context_at(&self.map, index)
            self.ops[index].context.owner = 1

    def __dealloc__(self):
        if self.map.base != NULL:
            munmap(self.map.base, self.map.segment_bytes)
        if self.fd >= 0:
            os.close(self.fd)

    cdef Op *op(self, uint64_t who) except NULL:
        if who >= WHO_COUNT:
            raise IndexError(who)
        return &self.ops[who]

    cdef uint64_t *word(self, uint64_t offset) except NULL:
        if offset & 7 or offset + 8 > self.map.segment_bytes:
            raise IndexError(offset)
        return <uint64_t *> (self.map.base + offset)

    cdef PoolView *view(self, str kind) except NULL:
        if kind not in ("element", "line"):
            raise KeyError(kind)
        return &self.map.line_pool if kind == "line" else &self.map.element_pool

    # ---- segment and check ----

    def examine(self, bytes header_bytes not None, uint64_t file_bytes):
        """segment_examine on this header."""
        cdef Map map
        cdef Header header
        if len(header_bytes) != sizeof(Header):
            raise ValueError("not a header")
        memcpy(&header, <char *> header_bytes, sizeof(Header))
        memset(&map, 0, sizeof(Map))
        return named(segment_examine(&map, &header, file_bytes))

    def check(self):
        """The problem that check_map finds, its place, and check_map's figures."""
        cdef Report report
        memset(&report, 0, sizeof(report))
        check_map(&self.map, NULL, &report)
        return <int> report.problem, report.where, {
            "exact": bool(report.exact), "entries": report.entries, "lines": report.lines,
            "parked": report.parked, "free": report.free_in_blocks,
            "owned": report.owned_by_contexts, "credits": report.credits,
            "longest": report.chain_longest,
        }

    # ---- lock ----

    def lock_try(self, uint64_t who, uint64_t offset):
        """The status, and the word as held."""
        cdef uint64_t held = 0
        status = named(core_operation.lock_try(self.op(who), self.word(offset), &held))
        return status, held

    def lock_acquire(self, uint64_t who, uint64_t offset):
        cdef uint64_t held = 0
        status = named(core_operation.lock_acquire(self.op(who), self.word(offset), &held))
        return status, held

    def lock_release(self, uint64_t offset, uint64_t payload):
        core_operation.lock_release(self.word(offset), payload)

    def waits_for(self, uint64_t who):
        """The offset of the word that the context waits for, and the value it had."""
        cdef Op *op = self.op(who)
        return <uint64_t> (<uint8_t *> op.wait_word - self.map.base), op.wait_seen

    # ---- commit ----

    def region_commit(self, uint64_t who, uint32_t which, uint64_t needed):
        return named(core_region.region_commit(self.op(who), which, needed))

    def region_release(self, uint64_t who, uint32_t which, uint64_t keep):
        return named(core_region.region_release(self.op(who), which, keep))

    def memory_is_quiet(self, uint64_t who):
        return bool(core_region.memory_is_quiet(self.op(who)))

    # ---- pool ----

    cdef uint64_t *name(self, uint64_t who, PoolView *view) except NULL:
        """The context's field that names an object of this pool between two places."""
        cdef Op *op = self.op(who)
        return &op.context.line if view.kind else &op.context.element

    def block_commit(self, uint64_t who, str kind not None):
        return named(core_pool.block_commit(self.op(who), self.view(kind)))

    def block_release(self, uint64_t who, str kind not None, uint64_t block):
        return named(core_pool.block_release(self.op(who), self.view(kind), block))

    def block_retire_if_empty(self, uint64_t who, str kind not None, uint64_t block):
        core_pool.block_retire_if_empty(self.op(who), self.view(kind), block)

    def block_is_empty(self, str kind not None, uint64_t block):
        cdef PoolView *view = self.view(kind)
        return bool(core_pool.block_is_empty(view, block, view.words[block]))

    def pool_take(self, uint64_t who, str kind not None):
        """Take an object into the context's field, and clear the field for the next one."""
        cdef PoolView *view = self.view(kind)
        cdef uint64_t *name = self.name(who, view)
        status = named(core_pool.pool_take(self.op(who), view, name, 0))
        taken = name[0]
        name[0] = 0
        return status, taken

    def pool_give(self, uint64_t who, str kind not None, uint64_t index):
        cdef PoolView *view = self.view(kind)
        cdef uint64_t *name = self.name(who, view)
        name[0] = index
        return named(core_pool.pool_give(self.op(who), view, index, name))

    def pool_detach(self, uint64_t who, uint64_t wanted):
        """The status, and the elements of the chain that was detached."""
        cdef core_pool.FreeList detached = core_pool.FreeList(0, 0, 0, 0)
        cdef uint64_t at
        status = named(core_pool.pool_detach(
            self.op(who), &self.map.element_pool, wanted, &detached))
        found = []
        at = detached.head
        while len(found) < detached.count:
            found.append(at)
            at = element_at(&self.map, at).words[0]
        if found and found[len(found) - 1] != detached.tail:
            raise ValueError("the chain's tail is not its last element")
        return status, found

    # ---- depot ----

    def depot_take(self, uint64_t who, uint64_t index):
        return named(core_depot.depot_take(self.op(who), index))

    def element_take(self, uint64_t who, bint any_depot=False):
        return named(core_depot.element_take(self.op(who), any_depot))

    def element_give(self, uint64_t who):
        return named(core_depot.element_give(self.op(who)))

    def depot_trim(self, uint64_t who, uint64_t index, uint64_t keep):
        core_depot.depot_trim(self.op(who), index, keep)

    def credits_move(self, uint64_t who, uint64_t index, bint fetch):
        """credits_move, with the depot held around it."""
        cdef uint64_t held = 0
        cdef Status status = core_depot.depot_hold(self.op(who), index, &held, False)
        if status == OK:
            status = core_depot.credits_move(self.op(who), self.map.depots + index, &held, fetch)
            core_operation.lock_release(&self.map.depots[index].word, held)
        return named(status)

    # ---- chain ----

    cdef Bucket *bucket(self, uint64_t index) except NULL:
        if index >= self.map.bucket_max:
            raise IndexError(index)
        return bucket_at(&self.map, index)

    def chain_append(self, uint64_t who, uint64_t bucket, uint32_t index, uint32_t tag,
                     bint publish=False):
        return named(core_chain.chain_append(
            self.op(who), self.bucket(bucket), index, tag,
            element_at(&self.map, index) if publish else NULL))

    def chain_remove(self, uint64_t who, uint64_t bucket, uint32_t index):
        """Remove the first reference to the element; return whether there was one."""
        cdef Found found
        if not core_chain.chain_names(&self.map, self.bucket(bucket), index, NULL, 0, &found):
            return False
        core_chain.chain_remove(self.op(who), self.bucket(bucket), found.line, found.slot)
        return True

    def chain_repair(self, uint64_t who, uint64_t bucket):
        core_chain.chain_repair(self.op(who), self.bucket(bucket))

    def chain_clear(self, uint64_t who, uint64_t bucket):
        core_chain.chain_clear(self.op(who), self.bucket(bucket))

    def chain_links(self, uint64_t bucket, uint64_t line):
        return bool(core_chain.chain_links(&self.map, self.bucket(bucket), line))

    def chain_find(self, uint64_t bucket, uint32_t hash, bytes key not None):
        """The status, and the index of the element found."""
        cdef Found found
        found.index = 0
        status = named(core_chain.chain_find(
            &self.map, self.bucket(bucket), hash, <const uint8_t *> <char *> key,
            self.map.key_size, &found))
        return status, found.index

    def op_give_back(self, uint64_t who):
        core_hold.op_give_back(self.op(who))

    # ---- element ----

    cdef Found found_at(self, uint32_t index, header):
        """A Found as of the time when the element had this header; as of now if it is None."""
        cdef Found found
        memset(&found, 0, sizeof(found))
        found.index = index
        found.element = element_at(&self.map, index)
        found.header = found.element.header if header is None else header
        return found

    def element_read(self, uint32_t index, header=None):
        """The value; None if the element's header is no longer the expected one."""
        cdef Found found = self.found_at(index, header)
        value = bytearray(self.map.value_size)
        if not core_element.element_read(
                &self.map, &found, self.map.key_size, <char *> value, self.map.value_size):
            return None
        return bytes(value)

    def element_hold(self, uint64_t who, uint32_t index, uint32_t state, header=None):
        cdef Found found = self.found_at(index, header)
        cdef uint64_t held = 0
        status = named(core_element.element_hold(self.op(who), &found, state, &held))
        return status, held

    def starving_say(self, uint64_t who, uint32_t index):
        core_element.starving_say(self.op(who), index)
        return self.ops[who].starving

    def starving_is_another(self, uint64_t who, uint32_t index):
        return bool(core_element.starving_is_another(self.op(who), index))

    def starving_end(self, uint64_t who):
        core_element.starving_end(self.op(who))
        return self.ops[who].starving

    def element_release(self, uint64_t who, uint32_t index, uint64_t held):
        core_element.element_release(self.op(who), element_at(&self.map, index), held)

    def element_update(self, uint64_t who, uint32_t index, bytes value not None, header=None):
        cdef Found found = self.found_at(index, header)
        if <uint64_t> len(value) != self.map.value_size:
            raise ValueError("not a value")
        return named(core_element.element_update(
            self.op(who), &found, <const uint8_t *> <char *> value))

    def element_add(self, uint64_t who, uint32_t index, uint64_t offset, uint64_t delta,
                    header=None):
        """The status, and the sum."""
        cdef Found found = self.found_at(index, header)
        cdef NumberField field
        cdef uint64_t after = 0
        if offset + 8 > self.map.value_size:
            raise IndexError(offset)
        field.offset, field.operand, field.size = offset, delta, 8
        field.kind, field.operation = FIELD_SIGNED, FIELD_ADD
        status = named(core_element.element_apply(self.op(who), &found, &field, &after))
        return status, after

    # ---- table ----

    def hash_key(self, bytes key not None):
        return hash_key(self.map.seeds, <const uint8_t *> <char *> key, self.map.key_size)

    def table_guess(self, uint32_t hash):
        return core_table.table_guess(&self.map, hash)

    def table_find(self, uint32_t hash):
        """The index of the hash's bucket; None if the levels lead nowhere."""
        cdef uint64_t index = 0
        if core_table.table_find(&self.map, hash, &index) == NULL:
            return None
        return index

    def table_grow(self, uint64_t who):
        return named(core_resize.table_grow(self.op(who)))

    def table_shrink(self, uint64_t who):
        return named(core_resize.table_shrink(self.op(who)))

    def table_pass(self, uint64_t who, uint64_t child):
        core_resize.table_pass(self.op(who), child)

    def catch_up(self, uint64_t who, uint64_t index):
        """Make up for a split that the bucket has missed; None if it has missed none."""
        cdef uint64_t child = core_table.bucket_missed(&self.map, index)
        return named(core_resize.table_split(self.op(who), child)) if child else None

    # ---- order and walk ----

    cdef read(self, str way, tuple place, uint64_t room, uint64_t steps, bint with_values, who):
        """One read into a sink that has entries already, with guard entries at both ends."""
        cdef uint64_t total = room + 2 * GUARDED
        cdef uint64_t size = self.map.key_size
        cdef uint64_t value_size = self.map.value_size
        cdef bytearray keys = bytearray(b"\xEE") * (total * size)
        cdef bytearray values = bytearray(b"\xEE") * (total * value_size)
        cdef bytearray inside = bytearray(size if place[1] is None else place[1])
        cdef Position position
        cdef EntryBuffer sink
        cdef Op reader
        cdef Op *op = &reader
        cdef Status status
        memset(&reader, 0, sizeof(Op))
        reader.map = &self.map
        position.order = place[0]
        position.inside = place[1] is not None
        position.key = <uint8_t *> <char *> inside
        sink.keys = <uint8_t *> <char *> keys
        sink.values = NULL
        sink.waiter = NULL
        sink.expired = False
        sink.count = GUARDED
        sink.wanted = sink.capacity = GUARDED + room
        if with_values:
            sink.values = <uint8_t *> <char *> values
        if who is not None:
            op = self.op(who)
        if <uint64_t> len(inside) != size:
            raise ValueError("not a key")
        if way != "on" and who is not None:
            sink.waiter = op
        if way == "bucket":
            status = bucket_read(&self.map, &position, &sink)
        elif way == "steps":
            status = core_walk.walk_steps(&self.map, &position, &sink, steps)
        else:
            if op.context != NULL:
                op_begin(op)
            status = core_walk.walk_on(op, &position, &sink)
            if op.context != NULL:
                op_end(op)
        if sink.count > sink.capacity:
            raise ValueError("the sink is fuller than it can be")
        for text, width in (keys, size), (values, value_size):
            if text[:GUARDED * width] + text[(GUARDED + room) * width:] != (
                    b"\xEE" * (2 * GUARDED * width)):
                raise ValueError("written outside of the sink")
        pairs = [
            (bytes(keys[at * size:(at + 1) * size]),
             bytes(values[at * value_size:(at + 1) * value_size]) if with_values else None)
            for at in range(GUARDED, sink.count)]
        return named(status), pairs, (
            position.order, bytes(inside) if position.inside else None)

    def bucket_read(self, tuple place not None, uint64_t room=1000, with_values=True, waiter=None):
        """The status, the (key, value) pairs appended, and the new place: (order, key or None)."""
        return self.read("bucket", place, room, 0, with_values, waiter)

    def walk_steps(self, tuple place not None, uint64_t room, uint64_t steps, waiter=None):
        """As bucket_read."""
        return self.read("steps", place, room, steps, True, waiter)

    def walk_on(self, tuple place not None, uint64_t room, who=None):
        """As bucket_read; who=None reads as a read-only handle without a context."""
        return self.read("on", place, room, 0, True, who)

    def bucket_figures(self, uint64_t index):
        """(level, entries, lines, locked); None if there is no such bucket."""
        cdef core_table.BucketFacts facts
        if not core_table.bucket_figures(&self.map, index, &facts):
            return None
        return facts.level, facts.entries, facts.lines, bool(facts.locked)

    # ---- map ----

    cdef Op *op_of(self, uint64_t who, bytes key) except NULL:
        cdef Op *op = self.op(who)
        if <uint64_t> len(key) != self.map.key_size:
            raise ValueError("not a key")
        op.key = <const uint8_t *> <char *> key
        op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
        op.element_filled = False
        return op

    def insert(self, uint64_t who, bytes key not None, bytes value not None):
        """One insertion, which commits the memory that it needs and never grows the table."""
        cdef Op *op = self.op_of(who, key)
        cdef Found miss
        cdef Status status
        miss.index = 1                         # no usable miss: insert_try searches itself
        while True:
            status = core_write.insert_try(op, <const uint8_t *> <char *> value, &miss, False)
            if named(status)[:5] != "NEED_" or core_write.map_memory(op, status) != OK:
                break
        core_hold.op_give_back(op)
        return named(status)

    def delete(self, uint64_t who, bytes key not None):
        """One deletion, and the merge that may follow."""
        return named(core_remove.map_delete(self.op_of(who, key), NULL))

    def find(self, bytes key not None):
        """The status, and the index of the key's element."""
        cdef Found found
        cdef Op *op = self.op_of(0, key)
        found.index = 0
        status = named(core_read.map_find(&self.map, op.hash, op.key, &found))
        return status, found.index
