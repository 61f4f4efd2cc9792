# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Threads without the GIL on one segment, for ThreadSanitizer. Not part of the package.
#
# The segment is a memfd, mapped once. To the core each thread is a process of its own: it has its
# own process slot, locked in the kernel, and its own contexts. So every thread meets every other
# one as it would meet another process, but at the same addresses. A victim dies in the middle of an
# operation by giving up its slot's lock; the next thread that meets its locks recovers it.
#
# A value names its key: the low 16 bits of its first word are the key's number. In a long value the
# second word equals the first, and the low 16 bits of a number at byte 20, across two words, are
# the key's number, too. A reader that finds anything else has read what no thread wrote (R2).
import os

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from machine.atomics cimport (
    cas_acq_rel_u64, compiler_fence, copy_in, load_relaxed_u64, read_u64, store_relaxed_u64,
)
from machine.system cimport (
    CLOCK_MONOTONIC, MAP_FAILED, MAP_SHARED, PROT_READ, clock_ns, close, fstat, mmap, munmap,
    stat_t,
)
from machine.hashing cimport hash_key
from machine.number cimport FIELD_ADD, FIELD_SIGNED, NumberField
from segment.status cimport ABSENT, BUSY, CORRUPT, FULL, NEED_ELEMENTS, NO_MEMORY, OK, RETRY, Status
from segment.layout cimport (
    ELEMENT_DEAD, ELEMENT_LIVE, ELEMENT_UPD, ELEMENT_ULOCK, OPERATION_DELETE, OPERATION_INSERT,
    OPERATION_SPLIT, PAGE_BYTES, Bucket, Element, Header,
)
from segment.words cimport element_header, element_state, lock_bits, word_locked
from segment.geometry cimport (
    Local, Map, buckets_usable, context_at, context_redo, element_at, element_value, geometry_bind,
    geometry_compute,
)
from segment.header cimport segment_fill
from memory.operation cimport Op, op_begin, op_end
from memory.depot cimport depot_hold, depot_here, element_take
from map.chain cimport Found, chain_append, chain_find
from map.element cimport element_hold
from map.table cimport BucketFacts, bucket_figures, table_count
from map.resize cimport pair_hold
from map.read cimport map_contains, read_fast, map_lookup, map_find
from map.hold cimport bucket_hold, op_give_back
from map.remove cimport map_delete
from map.write cimport (
    UPDATE_ANY, UPDATE_EXIST, UPDATE_NOEXIST, map_memory, update_word_fast, map_update, map_apply,
    map_lookup_unlocked, map_swap,
)
from map.section cimport Section, section_abandon, section_commit, section_open
from map.walk cimport Position, EntryBuffer, walk_on
from map.batch cimport BATCH_DELETE, BATCH_LOOKUP, BATCH_UPDATE, Batch, batch_go_on
from processes.liveness cimport Standing, process_leave
from processes.recover cimport recover_all, recover_those_inside
from processes.wait cimport sleep_ns, wait_step
from processes.attach cimport attach_claim, attach_register
from processes.check cimport Report, check_map

cdef extern from "kernel_locks.h" nogil:
    void race_die(uint64_t process) noexcept

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(
        pthread_t *thread, void *attributes, void *(*start)(void *) noexcept nogil,
        void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...) noexcept

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_membarrier

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_WRITE
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    enum: MAP_PRIVATE

cdef enum:
    THREADS_MAX = 16
    MEMBARRIER_REGISTER_GLOBAL_EXPEDITED = 4
    LONG_VALUE = 32
    NUMBER_OFFSET = 20
    BATCH = 64
    PATROL = 255               # operations between two searches for dead threads
    PHASE_SHIFT = 28           # a quarter of a second of filling, then one of emptying

cdef enum:
    WAIT_NS_MAX = 60000000000ULL
    SECTION = 1000             # a value of Thread.choice

cdef enum Problem:
    NOTHING = 0
    WRONG_VALUE = 1
    WRONG_STATUS = 2
    STUCK = 3
    NO_THREAD = 4

ROLES = ["points", "walker", "batches", "victim", "seeded"]

cdef struct Thread:
    Map map
    Local *local
    Standing standing
    Op op
    Op section
    uint64_t random
    uint64_t *stop
    uint64_t keys
    uint64_t done              # operations
    uint64_t deaths
    int64_t waiting_since
    int role
    Problem problem
    uint64_t where             # the key, or the status
    uint64_t choice            # the operation, and the value that it saw
    uint64_t seen
    uint8_t *keys_buffer       # each has BATCH places
    uint8_t *values_buffer
    uint8_t *mask_buffer


cdef inline uint64_t roll(Thread *me) noexcept nogil:
    """xorshift64*"""
    me.random ^= me.random >> 12
    me.random ^= me.random << 25
    me.random ^= me.random >> 27
    return (me.random * 0x2545F4914F6CDD1DULL) >> 20

cdef inline void complain(Thread *me, Problem problem, uint64_t where) noexcept nogil:
    if me.problem == NOTHING:
        me.problem = problem
        me.where = where

cdef inline void value_make(Thread *me, uint64_t key, uint64_t *value) noexcept nogil:
    cdef uint64_t stamp = (roll(me) << 16) | (key & 0xFFFF)
    cdef uint64_t number = (roll(me) << 16) | (key & 0xFFFF)
    value[0] = stamp
    if me.map.value_size == LONG_VALUE:
        value[1] = stamp
        value[2] = value[3] = 0
        memcpy(<uint8_t *> value + NUMBER_OFFSET, &number, 8)

cdef inline void value_look(Thread *me, uint64_t key, const uint8_t *value) noexcept nogil:
    cdef uint64_t stamp = read_u64(value)
    if stamp & 0xFFFF != key & 0xFFFF or (me.map.value_size == LONG_VALUE and (
            read_u64(value + 8) != stamp
            or read_u64(value + NUMBER_OFFSET) & 0xFFFF != key & 0xFFFF)):
        me.seen = stamp if me.problem == NOTHING else me.seen
        complain(me, WRONG_VALUE, key)

cdef inline void op_for(Thread *me, Op *op, const uint64_t *key) noexcept nogil:
    op.key = <const uint8_t *> key
    op.hash = hash_key(me.map.seeds, op.key, 8)
    op.element_filled = False
    op.wait_seen = 0
    op.wait_word = NULL
    op.starving = 0

cdef inline bint again(Thread *me, Op *op, Status status, uint64_t *turn) noexcept nogil:
    """Whether an attempt has to be repeated; if so this has waited, as the package does."""
    cdef int64_t waited_ns
    if status == FULL or status == NO_MEMORY:
        recover_those_inside(&me.map)
        return False
    if status != BUSY and status != RETRY:
        if status == CORRUPT or status > BUSY:
            complain(me, WRONG_STATUS, <uint64_t> status)
        return False
    turn[0] += 1
    if turn[0] == 1:
        me.waiting_since = clock_ns(CLOCK_MONOTONIC)
    waited_ns = clock_ns(CLOCK_MONOTONIC) - me.waiting_since
    if waited_ns > WAIT_NS_MAX:
        complain(me, STUCK, <uint64_t> status)
        return False
    op_end(op)
    wait_step(op, turn[0] - 1, waited_ns)
    op_begin(op)
    return True

cdef inline void leave(Op *op) noexcept nogil:
    if op.context.element != 0 or op.context.line_stash != 0:
        op_give_back(op)
    op_end(op)


# ---- what threads do ----

cdef inline Status one_point(
        Thread *me, uint64_t choice, uint64_t key, uint64_t *value, bint *has) noexcept nogil:
    """One attempt. has: whether value is then a value that was in the map."""
    cdef NumberField field
    cdef uint64_t after = 0
    cdef bint swapped = False
    cdef Status status
    cdef Op *op = &me.op
    has[0] = False
    if choice < 30:
        has[0] = True
        return map_lookup(op.map, op.hash, op.key, value)
    if choice < 36:
        has[0] = True
        status = read_fast(op.map, op.hash, op.key, value)
        # As in the package: a fast read that meets a gap of the table has no result.
        return status if status != RETRY else map_lookup(op.map, op.hash, op.key, value)
    if choice < 40:
        return map_contains(op.map, op.hash, op.key)
    if choice < 44:
        has[0] = True
        return map_lookup_unlocked(op, value)
    value_make(me, key, value)
    if choice < 48 and op.map.words_only and update_word_fast(op, key, value[0], NULL, NULL):
        return OK
    if choice < 52:
        return map_update(op, <uint8_t *> value, UPDATE_EXIST)
    if choice < 58:
        field.offset = NUMBER_OFFSET if me.map.value_size == LONG_VALUE else 0
        field.operand = 1 << 16
        field.size, field.kind, field.operation = 8, FIELD_SIGNED, FIELD_ADD
        return map_apply(op, &field, NULL, &after)
    if choice < 62:
        return map_swap(op, NULL, <uint8_t *> value, NULL, &swapped)
    if (clock_ns(CLOCK_MONOTONIC) >> PHASE_SHIFT) & 1 and choice < 92 or choice < 68:
        has[0] = choice & 1
        return map_delete(op, value if choice & 1 else NULL)
    return map_update(
        op, <uint8_t *> value, UPDATE_NOEXIST if choice & 1 else UPDATE_ANY)

cdef inline void do_point(Thread *me) noexcept nogil:
    cdef uint64_t key = roll(me) % me.keys
    cdef uint64_t choice = roll(me) % 100
    cdef uint64_t turn = 0
    cdef uint64_t[4] value
    cdef bint has = False
    cdef Status status
    me.choice = choice if me.problem == NOTHING else me.choice
    op_for(me, &me.op, &key)
    op_begin(&me.op)
    while True:                            # ends with STUCK
        status = one_point(me, choice, key, value, &has)
        if not again(me, &me.op, status, &turn):
            break
    if status == OK and has:
        value_look(me, key, <uint8_t *> value)
    leave(&me.op)
    me.done += 1

cdef inline void do_section(Thread *me) noexcept nogil:
    """Open a section and end it."""
    cdef uint64_t key = roll(me) % me.keys
    cdef uint64_t turn = 0
    cdef uint64_t[4] value
    cdef Section section
    cdef Status status
    op_for(me, &me.section, &key)
    op_begin(&me.section)
    while True:                            # ends with STUCK
        status = section_open(&me.section, &section, NULL, <uint8_t *> value)
        if not again(me, &me.section, status, &turn):
            break
    leave(&me.section)
    if status != OK:
        return
    me.choice = SECTION
    value_look(me, key, <uint8_t *> value)
    op_begin(&me.section)
    turn = 0
    value_make(me, key, value)
    while True:
        if key & 1:
            status = section_commit(&me.section, &section, <uint8_t *> value)
        else:
            status = section_abandon(&me.section, &section)
        if not again(me, &me.section, status, &turn):
            break
    leave(&me.section)
    me.done += 1

cdef inline void do_walk(Thread *me) noexcept nogil:
    cdef uint64_t key_found = 0
    cdef uint64_t turn = 0
    cdef uint64_t at
    cdef uint64_t place_key = 0
    cdef Position position
    cdef EntryBuffer sink
    cdef BucketFacts facts
    cdef Status status = OK
    position.order = 0
    position.inside = False
    position.key = <uint8_t *> &place_key
    sink.keys = me.keys_buffer
    sink.values = me.values_buffer if roll(me) & 3 else NULL
    sink.expired = False
    sink.waiter = &me.op if roll(me) & 3 == 0 else NULL
    sink.wanted = sink.capacity = BATCH
    op_for(me, &me.op, &place_key)
    op_begin(&me.op)
    while status != ABSENT and load_relaxed_u64(me.stop) == 0:
        sink.count = 0
        status = walk_on(&me.op, &position, &sink)
        for at in range(sink.count):
            memcpy(&key_found, me.keys_buffer + at * 8, 8)
            if key_found >= me.keys:
                complain(me, WRONG_VALUE, key_found)
            if sink.values != NULL:
                value_look(me, key_found, me.values_buffer + at * me.map.value_size)
        me.done += sink.count
        turn = 0 if sink.count else turn
        if status != ABSENT and status != OK and not again(me, &me.op, status, &turn):
            break
    leave(&me.op)
    bucket_figures(&me.map, roll(me) % table_count(&me.map), &facts)

cdef inline void do_batch(Thread *me) noexcept nogil:
    cdef Batch many
    cdef uint64_t[BATCH] keys
    cdef uint64_t[4] value
    cdef uint64_t turn = 0
    cdef uint64_t at
    cdef Status status
    cdef uint64_t choice = roll(me) % 3
    memset(&many, 0, sizeof(Batch))
    many.kind = BATCH_LOOKUP
    if choice:
        many.kind = BATCH_UPDATE
        if (clock_ns(CLOCK_MONOTONIC) >> PHASE_SHIFT) & 1:
            many.kind = BATCH_DELETE
    for at in range(BATCH):
        keys[at] = roll(me) % me.keys
        value_make(me, keys[at], value)
        memcpy(me.values_buffer + at * me.map.value_size, value, me.map.value_size)
    many.keys = <uint8_t *> keys
    many.values = me.values_buffer
    many.done_mask = me.mask_buffer
    many.count = BATCH
    many.flag = UPDATE_ANY
    op_for(me, &me.op, keys)
    op_begin(&me.op)
    while many.done < BATCH:
        status = batch_go_on(&me.op, &many, BATCH)
        if status == FULL or status == NO_MEMORY:
            me.mask_buffer[many.done] = 0
            many.done += 1
        elif status != OK and not again(me, &me.op, status, &turn):
            break
    leave(&me.op)
    for at in range(many.done):
        if me.mask_buffer[at] and many.kind != BATCH_UPDATE:
            value_look(me, keys[at], me.values_buffer + at * me.map.value_size)
    me.done += many.done

cdef inline Status die_with_element(Thread *me, uint64_t key, uint64_t *value) noexcept nogil:
    """Take and fill an element, as insert_try does."""
    cdef Op *op = &me.op
    cdef Element *element
    cdef Status status = element_take(op, False)
    if status == NEED_ELEMENTS:
        map_memory(op, status)
        status = element_take(op, True)
    if status == OK:
        element = element_at(op.map, op.context.element)
        copy_in(&element.words[0], <uint8_t *> &key, 8)
        copy_in(element_value(op.map, element), <uint8_t *> value, op.map.value_size)
    return status

cdef inline void die_in_chain(Thread *me, uint64_t *value, uint64_t how) noexcept nogil:
    """Die inside an insertion or a deletion, with the bucket locked."""
    cdef Op *op = &me.op
    cdef Bucket *bucket = NULL
    cdef uint64_t held = 0
    cdef Found found
    cdef Status status
    if how < 3 and die_with_element(me, read_u64(op.key), value) != OK:
        return
    if bucket_hold(op, OPERATION_INSERT if how < 3 else OPERATION_DELETE, &bucket, &held) != OK:
        return
    status = chain_find(op.map, bucket, op.hash, op.key, 8, &found)
    if how == 1 and status == ABSENT:      # the slot names the element: the insertion is done
        chain_append(op, bucket, <uint32_t> op.context.element, op.hash,
                     element_at(op.map, op.context.element))
    if how == 4 and status == OK and not word_locked(found.header):
        store_relaxed_u64(&op.context.element, found.index)
        compiler_fence()
        cas_acq_rel_u64(&found.element.header, found.header, element_header(
            found.header, ELEMENT_DEAD, lock_bits(op.self_index)))

cdef inline void die_in_value(Thread *me, uint64_t *value, uint64_t how) noexcept nogil:
    """Die inside an update, or in a section."""
    cdef Op *op = &me.op
    cdef Found found
    cdef Section section
    cdef uint64_t held = 0
    cdef uint64_t[4] old
    if how == 7:
        section_open(op, &section, NULL, <uint8_t *> old)
        return
    if map_find(op.map, op.hash, op.key, &found) != OK:
        return
    if element_state(found.header) != ELEMENT_LIVE:
        return
    copy_in(context_redo(op.context), <uint8_t *> value, op.map.value_size)
    element_hold(op, &found, ELEMENT_UPD if how == 5 else ELEMENT_ULOCK, &held)

cdef inline void leave_life(Thread *me) noexcept nogil:
    """Give up the lock by which this thread's process counts as alive."""
    race_die(me.map.local.process_index)
    if me.standing.lock_page != NULL:
        munmap(me.standing.lock_page, PAGE_BYTES)
    if me.standing.lock_fd >= 0:
        close(me.standing.lock_fd)
    me.deaths += 1

cdef inline void die(Thread *me) noexcept nogil:
    """Begin an operation and die inside it."""
    cdef uint64_t key = roll(me) % me.keys
    cdef uint64_t how = roll(me) % 11
    cdef uint64_t held = 0
    cdef uint64_t child
    cdef uint64_t child_held = 0
    cdef uint64_t[4] value
    cdef Op *op = &me.op
    op_for(me, op, &key)
    value_make(me, key, value)
    op_begin(op)
    op_give_back(op)
    if op.context.element != 0:
        how = 10                           # it dies with the element that its last operation left
    if how == 0:
        die_with_element(me, key, value)
    elif how < 5:
        die_in_chain(me, value, how)
    elif how < 8:
        die_in_value(me, value, how)
    elif how == 8:
        depot_hold(op, depot_here(op.map), &held, True)
    elif how == 9:
        child = table_count(op.map)
        if child < op.map.bucket_max and child < buckets_usable(op.map):
            pair_hold(op, child, OPERATION_SPLIT, &held, &child_held)
    leave_life(me)

cdef inline void seeded(Thread *me) noexcept nogil:
    """A mistake for the sanitizer to find: a plain store to a value whose element is not owned."""
    cdef uint64_t key = roll(me) % me.keys
    cdef Found found
    op_for(me, &me.op, &key)
    op_begin(&me.op)
    if map_find(me.op.map, me.op.hash, me.op.key, &found) == OK:
        element_value(me.op.map, found.element)[0] = (roll(me) << 16) | key
    op_end(&me.op)
    me.done += 1


# ---- threads ----

cdef inline bint claim(Thread *me, Op *op) noexcept nogil:
    cdef uint64_t taken = 0
    memset(op, 0, sizeof(Op))
    if attach_claim(&me.map, &me.standing, &taken) != OK:
        complain(me, NO_THREAD, 0)
        return False
    op.map = &me.map
    op.self_index = <uint32_t> (taken - 1)
    op.context = context_at(&me.map, taken - 1)
    return True

cdef inline bint born(Thread *me) noexcept nogil:
    memset(me.local, 0, sizeof(Local))
    me.map.local = me.local
    me.standing.lock_page = NULL
    me.standing.lock_fd = -1
    return claim(me, &me.op) and claim(me, &me.section)

cdef void work(Thread *me) noexcept nogil:
    cdef uint64_t lives = 0
    while load_relaxed_u64(me.stop) == 0 and me.problem == NOTHING:
        if me.role == 1:
            do_walk(me)
        elif me.role == 2:
            do_batch(me)
        elif me.role == 4:
            seeded(me)
        elif roll(me) & 15 == 0:
            do_section(me)
        else:
            do_point(me)
        lives += 1
        if me.role == 3 and lives & 31 == 0:
            die(me)
            if not born(me):
                return
        if lives & PATROL == 0:
            recover_all(&me.map)

cdef void *thread_main(void *argument) noexcept nogil:
    cdef Thread *me = <Thread *> argument
    if born(me):
        work(me)
        leave_life(me)                     # at rest; Race.check() recovers all threads
    return NULL


cdef Local *local_page() except NULL:
    cdef void *page = mmap(NULL, sizeof(Local), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if page == MAP_FAILED:
        raise MemoryError
    return <Local *> page


cdef class Race:
    """A map in a memfd, on which threads race."""

    cdef Map map
    cdef Thread *threads
    cdef readonly uint64_t keys

    def __cinit__(self, *, value_size=8, max_entries=4096, keys=4096, depot_count=2, buckets=4,
                  seeds=(0x0123456789ABCDEF, 0x9E3779B97F4A7C15, 3, 4)):
        cdef Header header
        cdef stat_t status
        cdef uint64_t index
        if value_size not in (8, LONG_VALUE) or not 0 < keys < 0x10000:
            raise ValueError("no such values or keys")
        self.keys = keys
        self.map.fd = -1
        if geometry_compute(&self.map, 8, value_size, max_entries, depot_count) != OK:
            raise ValueError("no address space holds it")
        self.map.fd = os.memfd_create("race")
        os.ftruncate(self.map.fd, self.map.segment_bytes)
        fstat(self.map.fd, &status)
        self.map.device, self.map.inode = status.st_dev, status.st_ino
        self.map.use_membarrier = syscall(
            SYS_membarrier, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0
        cdef void *base = mmap(NULL, self.map.segment_bytes, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_NORESERVE, self.map.fd, 0)
        if base == MAP_FAILED:
            raise MemoryError
        geometry_bind(&self.map, <uint8_t *> base)
        memset(&header, 0, sizeof(header))
        header.key_size = 8
        header.value_size = value_size
        header.max_entries = max_entries
        header.depot_count = depot_count
        for index in range(4):
            header.seeds[index] = self.map.seeds[index] = seeds[index]
        segment_fill(&self.map, &header, buckets)
        self.threads = <Thread *> calloc(THREADS_MAX, sizeof(Thread))
        if self.threads == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.map.base != NULL:
            munmap(self.map.base, self.map.segment_bytes)
        if self.map.fd >= 0:
            os.close(self.map.fd)
        free(self.threads)

    cdef int prepare(self, uint64_t number, int role, uint64_t seed, uint64_t *stop) except -1:
        cdef Thread *thread = self.threads + number
        memset(thread, 0, sizeof(Thread))
        thread.map = self.map
        thread.role = role
        thread.keys = self.keys
        thread.stop = stop
        thread.random = seed * THREADS_MAX + number + 1
        thread.local = local_page()
        thread.keys_buffer = <uint8_t *> calloc(BATCH, 8)
        thread.values_buffer = <uint8_t *> calloc(BATCH, self.map.value_size)
        thread.mask_buffer = <uint8_t *> calloc(BATCH, 1)
        return 0

    def run(self, roles, double seconds, uint64_t seed):
        """Let threads of these roles race; return the facts of each, with its first problem."""
        cdef pthread_t[THREADS_MAX] started
        cdef uint64_t stop = 0
        cdef uint64_t count = len(roles)
        cdef uint64_t number
        cdef int64_t wait = <int64_t> (seconds * 1e9)
        if not 0 < count <= THREADS_MAX:
            raise ValueError("too many threads, or none")
        for number in range(count):
            self.prepare(number, ROLES.index(roles[number]), seed, &stop)
        with nogil:
            for number in range(count):
                if pthread_create(&started[number], NULL, thread_main, self.threads + number):
                    complain(self.threads + number, NO_THREAD, 1)
            sleep_ns(wait)
            store_relaxed_u64(&stop, 1)
            for number in range(count):
                if self.threads[number].problem != NO_THREAD:
                    pthread_join(started[number], NULL)
        return [self.ended(number) for number in range(count)]

    cdef ended(self, uint64_t number):
        """Free the buffers of a thread, and return its facts."""
        cdef Thread *thread = self.threads + number
        munmap(thread.local, sizeof(Local))
        free(thread.keys_buffer)
        free(thread.values_buffer)
        free(thread.mask_buffer)
        return {"done": thread.done, "deaths": thread.deaths, "problem": <int> thread.problem,
                "where": thread.where, "choice": thread.choice, "seen": thread.seen}

    def check(self):
        """Recover all threads and check every invariant; return findings and statistics."""
        cdef Report report
        cdef Local *local = local_page()
        cdef Standing standing
        self.map.local = local
        with nogil:
            if attach_register(&self.map, &standing) == OK:
                recover_all(&self.map)
                process_leave(&self.map, &standing)
        memset(&report, 0, sizeof(report))
        check_map(&self.map, NULL, &report)
        munmap(local, sizeof(Local))
        statistics = self.map.header.statistics
        return {"problem": <int> report.problem, "where": report.where,
                "exact": bool(report.exact), "entries": report.entries,
                "statistics": statistics}
