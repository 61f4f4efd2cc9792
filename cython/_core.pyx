# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The extension module: Python objects, the GIL and errors on top of the core's .pxd files.

MapHandle attaches a process to a segment and offers the operations; shmrhash.RHashMap is its public
subclass. Every operation that has to wait releases the GIL while it does.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo,
    PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport errno
from libc.stdint cimport uint8_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset, strdup, strerror

from machine.atomics cimport (
    cas_acq_rel_u64, store_relaxed_u64, store_release_u64, likely, unlikely, load_relaxed_u64,
    load_acquire_u64, fence_seq_cst, local_put_u64, local_take_u64, read_u32, read_u64,
    reverse_bits_u32,
)
from machine.system cimport (
    close as close_fd, fstat, stat_t, clock_ns, mmap, munmap, F_OFD_GETLK, F_WRLCK, MAP_FAILED,
    MAP_SHARED, PROT_READ, F_OFD_SETLK, F_RDLCK, CLOCK_MONOTONIC, PROT_WRITE,
)
from machine.hashing cimport hash_key, hash_word, KEY_INLINE_MAX, KEY_IS_LONG, key_digest
from machine.number cimport (
    NumberField, FIELD_ADD, FIELD_AND, FIELD_FLOAT, FIELD_MAX, FIELD_MIN, FIELD_OR, FIELD_SIGNED,
    FIELD_UNSIGNED, bits_of, field_compute, field_mask, float_of, sign_extended,
)
from segment.status cimport (
    Status, OK, ABSENT, PRESENT, FULL, NO_MEMORY, CORRUPT, BUSY, NO_CONTEXT, SYSTEM_ERROR,
    OUT_OF_BYTES, RETRY,
)
from segment.layout cimport (
    Header, Context, ProcessSlot, Statistics, HEADER_BYTES, PAGE_BYTES, LINE_BYTES, PROCESS_MAX,
    LAYOUT_VERSION, MAGIC, PAYLOAD_SHIFT, REGION_PROCESSES, REGION_COUNT, REGION_PINS, SCHEMA_MAX,
    SCHEMA_OFFSET, ELEMENT_LIVE, ELEMENT_LOCKED,
)
from segment.words cimport (
    element_state, depot_credit, depot_count as depot_parked, word_locked, word_owner,
)
from segment.classes cimport round_up, LENGTH_MAX, ref_length
from segment.geometry cimport (
    Map, element_at, element_value, geometry_add_objects, geometry_compute, geometry_bind,
    context_at, contexts_usable, processes_usable,
)
from segment.fields cimport deadline_passed, field_meets, fields_blank
from segment.header cimport segment_examine, segment_fill, buckets_for, first_bytes
from segment.file cimport (
    segment_open, segment_fd, is_segment, byte_lock, READER_BYTE, REMOVAL_BYTE, byte_is_shared,
)
from memory.operation cimport (
    Op, OP_KEEP_ELEMENT, OP_KEEP_SHIFT, OP_RAW_FIELDS, context_begin, context_cancel, context_end,
    lock_busy, lock_release, lock_try, op_begin, op_end, op_holds,
)
from memory.region cimport (
    budget_word, contexts_are_quiet, fences_demand, membarrier_all, membarrier_register,
)
from memory.pins cimport pin_claim, pin_clear, pin_set
from memory.object cimport object_make
from map.chain cimport Found
from map.element cimport element_unchanged
from map.reference cimport element_replace, ref_protect
from map.table cimport table_count, table_guess
from map.read cimport (
    read_word_fast, map_find, read_fast, map_lookup, map_contains, entry_bytes, entry_deadline,
    entry_expired, entry_find, entry_read_fast,
)
from map.hold cimport op_give_back
from map.remove cimport map_delete, map_delete_held, Clearing, clear_step, entry_expire
from map.write cimport (
    update_word_fast, map_update, UPDATE_ANY, UPDATE_EXIST, UPDATE_NOEXIST, map_apply,
    map_lookup_unlocked, map_swap, entry_touch,
)
from map.section cimport Section, section_abandon, section_commit, section_open, section_remove
from map.walk cimport Position, EntryBuffer, ORDER_END, BucketFacts, bucket_figures, walk_on
from map.batch cimport (
    Batch, BATCH_LOOKUP, BATCH_CONTAINS, BATCH_UPDATE, BATCH_DELETE, BATCH_ADD, batch_go_on,
)
from processes.claim cimport CLAIM_LEAVING, CLAIM_READS, claim_is_dead
from processes.liveness cimport Standing, context_note_time, process_can_be_judged, process_is_dead
from processes.recover cimport recover_all, recover_those_inside
from processes.forking cimport Unborn, unborn_adopt, unborn_claim, unborn_release
from processes.wait cimport wait_step, sched_yield
from processes.attach cimport (
    map_aligned, attach_map, attach_register, attach_claim, attach_rest, attach_end, attach_leave,
)
from processes.check_objects cimport ObjectFacts, context_keeps_any, objects_count
from processes.check cimport Report, check_map

import struct
from operator import index as as_index

from shmrhash import _errors

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? -1
    char *PyByteArray_AS_STRING(object buffer)

cdef extern from "machine/recycle.h":
    ctypedef struct Recycler:
        uint64_t made
    void recycler_begin(Recycler *recycler)
    void recycler_end(Recycler *recycler)
    object recycled_bytes(Recycler *recycler, const void *content, Py_ssize_t size)
    object recycled_pair(PyObject **kept, object key, object value)

cdef extern from "machine/generation.h":
    uint64_t process_generation
    int generation_install()
cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset) noexcept

cdef enum:
    STACK_VALUE_MAX = 512      # larger values are copied straight into the bytes object
    NOTICE_MASK = 0x7FF        # of activity: each 1,024th operation of a context notes the time,
    PATROL_MASK = 0xFFFF       # and each 32,768th recovers dead processes
    F_LOCK = 4                 # BPF_F_LOCK
    READ_ROUNDS_MAX = 100000   # of READ_TRIES_MAX tries each: more only in a damaged segment


include "python/segments.pxi"

# Sections that threads of this process have open: (device, inode, context) -> thread.
cdef dict sections_open = {}

# One try of an operation, for MapHandle._attempt.
ctypedef Status (*Attempt)(Op *op, void *arguments) noexcept nogil

# How long an operation has waited, and how long it may.
cdef struct Waiting:
    uint64_t turn
    uint64_t retries           # in a row, none of them BUSY
    uint64_t swept, sweep_at, sweep_next       # of a sweep for room (sweeping.pxi)
    int64_t began
    int64_t limit_ns           # negative: no limit


cdef int64_t timeout_ns(timeout) except? -2:
    """Seconds as nanoseconds; -1 for more than 30 years."""
    seconds = float(timeout)
    if not seconds >= 0:
        raise _errors.InvalidArgument(
            f"timeout must be None or a number of seconds from 0 on, not {timeout!r}")
    return -1 if seconds > 1e9 else <int64_t> (seconds * 1e9)


cdef enum Reads:               # what a handle may read
    READS_NONE                 # nothing: it is closed or write-only
    READS_ANY
    READS_WORDS                # anything, and the map is words_only


@cython.auto_pickle(False)
cdef class MapHandle:
    """A handle: the object through which a process uses a map.

    Attributes: name (of the segment), map_flags and map_extra (as given at creation), ephemeral
    (whether the last process to close the map removes its name), recovered_at_open (how many dead
    processes were recovered when this handle was opened).
    """

    cdef Map map
    cdef PyObject *attachment      # a counted reference, untyped: so this class needs no cyclic GC
    cdef Standing *standing        # the attachment's
    cdef bint is_user              # counted in attachment.users
    cdef readonly str name
    cdef bint is_closed
    cdef readonly bint write_only
    cdef Reads reads
    cdef bint writes_oddly         # it may not write, or membarrier is refused (_enter_oddly)
    cdef bint overwrites           # the last update found its key: the next tries store_word
    cdef Recycler recycler
    cdef uint64_t in_flight        # operations of this generation under way: the mapping stays
    cdef uint64_t generation       # the generation that in_flight counts
    cdef uint64_t inherited        # operations of earlier generations: some may still return here
    cdef uint64_t views            # objects that point into the mapping
    cdef uint64_t writes           # operations begun that may have written; iterators compare it
    cdef readonly uint32_t map_flags
    cdef readonly uint32_t map_extra
    cdef readonly bint ephemeral
    cdef readonly uint64_t recovered_at_open
    cdef object __weakref__

    def __cinit__(self, int fd, str name not None, bytes path not None, bint read_only,
                  timeout, bint without_trace=False, **_ignored):
        recycler_begin(&self.recycler)
        self.is_closed = True
        self.map.fd = -1
        self.name = name
        self.map.path = strdup(path)
        self.map.read_only = self.map.file_read_only = read_only
        self.map.peeks = without_trace
        self.map.fd = fd                       # owned from here on
        self.map.timeout_ns = -1 if timeout is None else timeout_ns(timeout)
        self._examine(fd)
        attach(self)
        self.is_closed = False
        self.reads = READS_WORDS if self.map.words_only else READS_ANY
        self.writes_oddly = read_only or not self.map.use_membarrier
        if self.writes_oddly and not read_only:
            self.reads = READS_ANY             # keeps off store_word, which does not ask
        if not read_only:
            expect_registered(self)
            with nogil:
                self.recovered_at_open = recover_all(&self.map)
        else:
            reader_has_context(self)

    def __dealloc__(self):
        detach(self)
        if self.map.fd >= 0:                   # it was never attached
            close_fd(self.map.fd)
        free(self.map.path)
        recycler_end(&self.recycler)

    cdef _examine(self, int fd):
        cdef Header header
        cdef stat_t file_status
        cdef Status status = ABSENT
        cdef ssize_t got
        memset(&header, 0, sizeof(header))
        if fstat(fd, &file_status) != 0:
            raise _errors.SegmentMissing(f"segment {self.name!r}: {os_error()}")
        self.map.device = file_status.st_dev
        self.map.inode = file_status.st_ino
        got = pread(fd, &header, sizeof(header), 0)
        if got == sizeof(header):
            status = segment_examine(&self.map, &header, <uint64_t> file_status.st_size)
        if status == ABSENT:
            raise _errors.LayoutMismatch(
                f"{self.name!r} is not a shmrhash segment ({file_status.st_size} bytes, no magic "
                f"number); choose another name or remove the file")
        if status == PRESENT:
            raise _errors.LayoutMismatch(
                f"segment {self.name!r} has layout version {header.layout_version}, this build "
                f"reads {LAYOUT_VERSION}; unlink and recreate it, or use the version that wrote it")
        if status != OK:
            raise _errors.SegmentCorrupt(
                f"segment {self.name!r} has a damaged header or the wrong size "
                f"({file_status.st_size} bytes); unlink and recreate it")
        self.map_flags = header.map_flags
        self.map_extra = header.map_extra
        self.ephemeral = header.ephemeral

    cdef int _expect_open(self) except -1:
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        return 0

    def _expect_writable(self):
        """Raise ReadOnlyMap if the handle may only read."""
        if self.map.read_only:
            raise _errors.ReadOnlyMap(
                f"map {self.name!r} is open for reading only; open it without read_only=True")

    cdef uint64_t _claim_context(self) except 0:
        """Take an idle context or claim a new one; returns its index plus one. Registers this
        process first if it has no slot (a child of fork)."""
        cdef uint64_t taken = 0
        cdef Status status
        self._expect_open()
        status = attach_claim(&self.map, self.standing, &taken)
        if status != OK:
            raise_status(self, status, NULL)
        return taken

    cdef inline int _enter(self, Op *op) except -1:
        """Begin a write, or a read that must keep memory from being given back."""
        cdef uint64_t taken
        if unlikely(self.is_closed):
            self._expect_open()
        taken = local_take_u64(&self.map.local.idle_context)
        if unlikely(taken == 0):
            taken = self._claim_context()
        op.map = &self.map
        op.self_index = <uint32_t> (taken - 1)
        op.context = context_at(&self.map, taken - 1)
        op.element_filled = False
        op.f_lock = False
        op.options = 0
        op.wait_word = NULL
        op.wait_seen = 0
        op.starving = 0
        self._begin_use(op)
        self.writes += 1
        op_begin(op)
        return 0

    cdef inline void _leave(self, Op *op) noexcept:
        if unlikely(op.generation != process_generation):
            self._leave_to_parent()
            return
        if unlikely(op.context.element != 0 or op.context.line_stash != 0
                    or op.context.debt != 0 or op.starving != 0) and not self.map.read_only:
            op_give_back(op)                   # a reader owes nothing, whatever its context says
        op_end(op)
        if unlikely(not local_put_u64(&self.map.local.idle_context, op.self_index + 1)):
            attach_rest(&self.map, op.self_index + 1)
        if unlikely(op.context.activity & NOTICE_MASK == 0):
            self._notice(op.context)
        self._end_use()

    cdef void _notice(self, Context *context) noexcept:
        """After each 1,024th operation of a context: note that it is in use. After each 32,768th:
        recover dead processes."""
        context_note_time(&self.map, context)
        if context.activity & PATROL_MASK == 0:
            with nogil:
                recover_all(&self.map)

    cdef inline void _begin_use(self, Op *op) noexcept:
        op.generation = process_generation
        if unlikely(self.generation != process_generation):
            self._forked()
        self.in_flight += 1

    cdef void _forked(self) noexcept:
        """In a child of fork, before this handle counts an operation there: what was under way in
        the parent is inherited."""
        self.inherited += self.in_flight
        self.in_flight = 0
        self.generation = process_generation
        if self.is_user:
            become_user(self)

    cdef inline void _end_use(self) noexcept:
        self.in_flight -= 1
        self._detach_if_idle()

    cdef inline void _detach_if_idle(self) noexcept:
        """Detach after close(), once no operation and no view uses the mapping any more.

        Of the operations under way at a fork, those of the forking thread return in the child and
        those of other threads do not; the handle cannot tell the two apart. So while it has
        inherited operations the mapping stays, but slot and contexts are given back."""
        if unlikely(self.is_closed and self.views == 0 and self.in_flight == 0):
            if self.inherited == 0:
                detach(self)
            elif self.attachment != NULL:
                leave(self)

    cdef void _leave_to_parent(self) noexcept:
        """In a child of fork, at the end of an operation that the parent began: the parent ends
        it, the child only stops counting it."""
        if self.generation != process_generation:
            self._forked()
        self.inherited -= 1
        self._detach_if_idle()

    cdef inline Waiting _patience(self) noexcept:
        cdef Waiting patience
        patience.turn = patience.retries = patience.swept = patience.began = 0
        patience.sweep_at = patience.sweep_next = 0
        patience.limit_ns = self.map.timeout_ns
        return patience

    cdef int _wait(self, Op *op, Status status, Waiting *patience) except -1:
        """Wait between two attempts of an operation. It holds nothing, and its context is outside
        any operation until the next attempt."""
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        if patience.turn == 0:
            patience.began = now
            if op.context != NULL and status == BUSY:
                op.context.waits += 1
        if status == BUSY:
            self._expect_no_deadlock(op)
            if op.wait_word == &self.map.header.clearing and patience.turn > 8 and not (
                    op.options & OP_RAW_FIELDS):
                raise _errors.MapBusy(
                    f"map {self.name!r} is being cleared: no key can be inserted until that ends")
        if status == BUSY and patience.limit_ns >= 0 and (
                now - patience.began >= patience.limit_ns) and patience.turn > 4:
            raise_timeout(self, op, now - patience.began)
        patience.retries = 0 if status == BUSY else patience.retries + 1
        if patience.retries > READ_ROUNDS_MAX:         # only if the segment is being damaged
            raise_status(self, CORRUPT, op)
        if op.context != NULL:
            op_end(op)
        with nogil:
            if status == BUSY:
                wait_step(op, patience.turn, now - patience.began)
            else:
                sched_yield()
        patience.turn += 1
        self._resume(op)
        return 0

    cdef int _expect_no_deadlock(self, Op *op) except -1:
        """Raise DeadlockError if this thread waits for a section that it has open itself."""
        if word_locked(op.wait_seen) and sections_open.get(
                (self.map.device, self.map.inode, word_owner(op.wait_seen))
                ) == PyThread_get_thread_ident():
            raise _errors.DeadlockError(
                f"map {self.name!r}: this thread has already locked the key (a coroutine or "
                f"greenlet is not a thread of its own); use the section that is open")
        return 0

    cdef int _renew(self, Op *op) except -1:
        """After Python code ran inside an operation: True if that code forked and this is the
        child. The operation then goes on in a context of the child's own; what it held remains the
        parent's."""
        cdef uint64_t taken
        if likely(op.generation == process_generation):
            return False
        if op.context != NULL and self.map.read_only and not reader_has_context(self):
            op.context = NULL
        if op.context != NULL:
            taken = self._claim_context()
            op.self_index = <uint32_t> (taken - 1)
            op.context = context_at(&self.map, taken - 1)
            op.element_filled = False
            op.starving = 0
        self._begin_use(op)
        self.inherited -= 1
        if op.context != NULL:
            op_begin(op)
        return True

    cdef int _resume(self, Op *op) except -1:
        """Handle signals, then begin again the operation that the caller ended for that."""
        try:
            PyErr_CheckSignals()
        finally:
            if not self._renew(op) and op.context != NULL:
                op_begin(op)
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} was closed while an operation waited")
        return 0

    cdef inline int _enter_to_write(self, Op *op) except -1:
        """_enter for a write. freeze() waits for writes that began before it."""
        if unlikely(self.writes_oddly):
            self._enter_oddly(op)
        else:
            self._enter(op)
        if unlikely(load_relaxed_u64(&self.map.header.frozen) != 0):
            self._leave(op)
            raise _errors.FrozenMap(f"map {self.name!r} is frozen: it cannot be changed any more")
        return 0

    cdef int _enter_oddly(self, Op *op) except -1:
        """_enter for a write by a handle that may not write, or where membarrier is refused."""
        self._expect_open()
        self._expect_writable()
        self._enter(op)
        fence_seq_cst()                        # in place of the membarrier in freeze()
        return 0

    cdef inline int _enter_to_modify(self, Op *op) except -1:
        """_enter_to_write for an operation that also tells the caller what was stored before."""
        if unlikely(self.reads == READS_NONE):
            self._refuse_reading()
        return self._enter_to_write(op)

    cdef int _enter_to_read(self, Op *op) except -1:
        """_enter for a read; op.context is NULL if the handle has no context (peek.pxd)."""
        if self.reads == READS_NONE:
            self._refuse_reading()
        return self._enter_to_look(op)

    cdef int _enter_to_look(self, Op *op) except -1:
        """_enter_to_read for figures rather than entries: a write-only handle may read these."""
        if not self.map.read_only:
            return self._enter(op)
        self._expect_open()
        if self.map.local.idle_context != 0 or reader_has_context(self):
            return self._enter(op)
        op.map = &self.map
        op.context = NULL
        op.f_lock = False
        op.options = 0
        op.wait_word = NULL
        op.wait_seen = 0
        op.starving = 0
        self._begin_use(op)
        return 0

    cdef void _leave_reading(self, Op *op) noexcept:
        if op.context != NULL:
            self._leave(op)
        elif op.generation == process_generation:
            self._end_use()
        else:
            self._leave_to_parent()

    cdef inline bint _recovered_room(self, Status status, Op *op, Waiting *patience) noexcept:
        """After FULL, NO_MEMORY or OUT_OF_BYTES: recover the dead, or sweep some expired entries.
        Returns whether to try again."""
        if likely(status != FULL and status != NO_MEMORY and status != OUT_OF_BYTES):
            return False
        return recover_those_inside(&self.map) != 0 or sweep_for_room(self, op, patience)

    cdef inline const uint8_t *_buffer(
            self, str what, object thing, uint64_t wanted, Py_buffer *view) except NULL:
        """The bytes of a key or value. view.buf is not NULL if the caller has to release it."""
        view.buf = NULL
        if likely(PyBytes_CheckExact(thing) and <uint64_t> PyBytes_GET_SIZE(thing) == wanted):
            return <const uint8_t *> PyBytes_AS_STRING(thing)
        return self._any_buffer(what, thing, wanted, view)

    cdef const uint8_t *_any_buffer(
            self, str what, object thing, uint64_t wanted, Py_buffer *view) except NULL:
        if not PyObject_CheckBuffer(thing):
            refuse_buffer(self, what, thing, -1, wanted)
        try:
            PyObject_GetBuffer(thing, view, PyBUF_SIMPLE)
        except BufferError:
            raise _errors.InvalidArgument(f"{what} must be contiguous in memory") from None
        if <uint64_t> view.len != wanted:
            size = view.len
            PyBuffer_Release(view)
            view.buf = NULL
            refuse_buffer(self, what, thing, size, wanted)
        return <const uint8_t *> view.buf

    cdef int _refuse_reading(self) except -1:
        self._expect_open()
        raise _errors.WriteOnlyMap(f"map {self.name!r} is open for writing only")

    def _forbid_reading(self):
        """Make this handle write-only from now on."""
        self.write_only = True
        self.reads = READS_NONE

    cdef inline Status _read(self, const uint8_t *key, void *value) except? RETRY:
        """Copy the value of key to value; if value is NULL, only find out whether key is there."""
        cdef Context *context
        cdef uint32_t hash
        cdef uint64_t word
        cdef uint64_t idle
        if unlikely(self.reads != READS_WORDS) or unlikely(self.map.local.idle_context == 0):
            return self._read_any(key, value)
        idle = self.map.local.idle_context     # local is mapped while reads is not READS_NONE
        # The GIL is kept, so the idle context need not be taken, only marked.
        context = context_at(&self.map, idle - 1)
        context_begin(context)
        word = read_u64(key)
        hash = hash_word(self.map.seeds, word)
        if unlikely(not read_word_fast(
                &self.map, table_guess(&self.map, hash), hash, word, <uint64_t *> value)):
            return self._read_on(context, key, hash, value)
        context_end(context)
        return OK

    cdef Status _read_any(self, const uint8_t *key, void *value) except? RETRY:
        cdef uint32_t hash = hash_key(self.map.seeds, key, self.map.key_size)
        cdef uint64_t idle
        if unlikely(self.reads == READS_NONE):
            self._refuse_reading()
        idle = self.map.local.idle_context
        if unlikely(idle == 0):
            return self._read_slowly(key, hash, value)
        context_begin(context_at(&self.map, idle - 1))
        return self._read_on(context_at(&self.map, idle - 1), key, hash, value)

    cdef Status _read_on(
            self, Context *context, const uint8_t *key, uint32_t hash, void *value) except? RETRY:
        """_read, in a context in which the operation has begun."""
        cdef Status status = read_fast(&self.map, hash, key, value)
        context_end(context)
        if unlikely(status != OK and status != ABSENT):
            return self._read_slowly(key, hash, value)
        return status

    cdef Status _read_slowly(
            self, const uint8_t *key, uint32_t hash, void *value) except? RETRY:
        """_read when no idle context is at hand, by a handle without contexts, or when writers keep
        changing the key: it yields to them between its rounds."""
        cdef Op op
        cdef Status status = RETRY
        cdef uint64_t _rounds
        self._enter_to_read(&op)
        for _rounds in range(READ_ROUNDS_MAX):
            if value == NULL:
                status = map_contains(&self.map, hash, key)
            else:
                status = map_lookup(&self.map, hash, key, value)
            if status != RETRY:
                break
            with nogil:
                sched_yield()
        self._leave_reading(&op)
        if status != OK and status != ABSENT:
            raise_status(self, CORRUPT, NULL)
        return status

    cdef inline object _lookup(self, object key):
        """The value, or None."""
        cdef uint64_t word
        if unlikely(not PyBytes_CheckExact(key) or self.map.value_size != 8
                    or <uint64_t> PyBytes_GET_SIZE(key) != self.map.key_size):
            return self._lookup_any(key)
        if self._read(<const uint8_t *> PyBytes_AS_STRING(key), &word) != OK:
            return None
        return recycled_bytes(&self.recycler, &word, 8)

    cdef object _lookup_any(self, object key):
        """_lookup with any buffer as key, and values of any size."""
        cdef Py_buffer view
        cdef uint8_t small[STACK_VALUE_MAX]
        cdef Py_ssize_t size = <Py_ssize_t> self.map.value_size
        cdef const uint8_t *key_bytes = self._buffer("key", key, self.map.key_size, &view)
        cdef bytes value = None
        try:
            if size <= STACK_VALUE_MAX:
                if self._read(key_bytes, small) == OK:
                    value = recycled_bytes(&self.recycler, small, size)
            else:
                value = PyBytes_FromStringAndSize(NULL, size)
                if self._read(key_bytes, PyBytes_AS_STRING(value)) != OK:
                    value = None
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        return value

    cdef inline Status _update(self, object key, object value, uint32_t flag) except? RETRY:
        if self.overwrites and self.reads == READS_WORDS and likely(
                flag != UPDATE_NOEXIST and is_word(key) and is_word(value)
                ) and likely(store_word(self, key, value)):
            return OK
        return self._update_any(key, value, flag)

    cdef Status _update_any(self, object key, object value, uint32_t flag) except? RETRY:
        cdef Py_buffer key_view
        cdef Py_buffer value_view
        cdef const uint8_t *value_bytes
        cdef Op op
        cdef Status status = RETRY
        cdef Waiting patience = self._patience()
        value_view.buf = NULL
        op.key = self._buffer("key", key, self.map.key_size, &key_view)
        try:
            value_bytes = self._buffer("value", value, self.map.value_size, &value_view)
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            self._enter_to_write(&op)
            try:
                while True:                    # ends with the timeout
                    status = map_update(&op, value_bytes, flag)
                    if likely(is_final(status)) and not self._recovered_room(
                            status, &op, &patience):
                        break
                    self._wait(&op, status, &patience)
            finally:
                self._leave(&op)
            self.overwrites = not op.element_filled
            if unlikely(status != OK):
                raise_status(self, status, &op)
        finally:
            if key_view.buf != NULL:
                PyBuffer_Release(&key_view)
            if value_view.buf != NULL:
                PyBuffer_Release(&value_view)
        return status

    cdef Status _delete(self, object key, void *value, bint f_lock=False) except? RETRY:
        """OK or ABSENT."""
        cdef Py_buffer view
        cdef Op op
        cdef Status status = RETRY
        cdef Waiting patience = self._patience()
        op.key = self._buffer("key", key, self.map.key_size, &view)
        try:
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            if value != NULL and self.reads == READS_NONE:
                self._refuse_reading()
            self._enter_to_write(&op)
            op.f_lock = f_lock
            try:
                while True:                    # ends with the timeout
                    status = map_delete(&op, value)
                    if likely(status != RETRY and status != BUSY):
                        break
                    self._wait(&op, status, &patience)
            finally:
                self._leave(&op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        if unlikely(status != OK and status != ABSENT):
            raise_status(self, status, &op)
        return status

    def lookup(self, key, flags=0):
        """Return the value of key as bytes, or None if the key is absent.

        Takes no lock and never waits for a writer (R1); the value is complete, as one write stored
        it (R2). Expected O(1): two cache lines for a present key, one for an absent key. With flags
        BPF_F_LOCK it waits until no section and no write holds the element (L1).

        Raises InvalidArgument (flags, or a key of another size), TypeError (not a buffer),
        MapClosed, SegmentCorrupt; with BPF_F_LOCK LockTimeout, DeadlockError.
        """
        if flags != 0:
            if flags != F_LOCK:
                self._bad_flags(flags, "lookup takes 0 or BPF_F_LOCK")
            return self._lookup_unlocked(key)
        return self._lookup(key)

    cdef object _lookup_unlocked(self, object key):
        """_lookup that waits for a moment when no context holds the element (BPF_F_LOCK)."""
        cdef Op op
        cdef bytes value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        cdef Status status = self._attempt(
            key, map_lookup_unlocked, PyBytes_AS_STRING(value), &op, True)
        if status != OK and status != ABSENT:
            raise_status(self, status, &op)
        return value if status == OK else None

    cdef Status _attempt(
            self, object key, Attempt attempt, void *arguments, Op *op,
            bint reading) except? RETRY:
        """Repeat an attempt until its status is final, and return that; the caller raises. (_update
        and _delete have loops of their own, so that the compiler sees the whole of them.)"""
        cdef Py_buffer view
        cdef Status status = RETRY
        cdef Waiting patience = self._patience()
        op.key = self._buffer("key", key, self.map.key_size, &view)
        try:
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            if reading:
                self._enter_to_read(op)
            else:
                self._enter_to_modify(op)
            try:
                while True:                    # ends with the timeout
                    status = attempt(op, arguments)
                    if likely(is_final(status)) and not self._recovered_room(status, op, &patience):
                        break
                    self._wait(op, status, &patience)
            finally:
                self._leave_reading(op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        return status

    def get(self, key, default=None):
        """Return the value of key as bytes, or default if the key is absent; else as lookup().

        Raises InvalidArgument, TypeError, MapClosed, SegmentCorrupt.
        """
        value = self._lookup(key)
        return default if value is None else value

    def __getitem__(self, key):
        value = self._lookup(key)
        if value is None:
            raise _errors.KeyNotFound(key)
        return value

    def __contains__(self, key):
        cdef Py_buffer view
        cdef const uint8_t *key_bytes = self._buffer("key", key, self.map.key_size, &view)
        try:
            return self._read(key_bytes, NULL) == OK
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)

    cdef _bad_flags(self, flags, str wanted, bint writing=False):
        if writing and self.map.read_only:     # the kernel's order: EPERM, EINVAL
            self._expect_open()
            self._expect_writable()
        raise _errors.InvalidArgument(f"flags {as_index(flags)} are not valid: {wanted}")

    def update(self, key, value, flags=0):
        """Store value (value_size bytes) under key.

        flags: BPF_ANY inserts or replaces, BPF_NOEXIST only inserts, BPF_EXIST only replaces.
        Atomic: a concurrent lookup returns the old value or the new one (R2), and so does every
        lookup after the writer was killed during the update (C1). Replacing a value never fails for
        lack of room (W2). Expected O(1); an insert may commit up to 256 KiB of memory and split two
        buckets (G1). Waits, without the GIL, for a process that is changing the same element or
        bucket.

        Raises KeyExists (BPF_NOEXIST), KeyNotFound (BPF_EXIST), MapFull (E2BIG), SegmentFull
        (ENOMEM), LockTimeout (EBUSY), InvalidArgument, TypeError, ReadOnlyMap, MapClosed.
        """
        cdef uint32_t flag = 0
        if flags != 0:
            if flags not in (1, 2, F_LOCK, F_LOCK | 1, F_LOCK | 2):
                self._bad_flags(flags, "update takes BPF_ANY, BPF_NOEXIST or BPF_EXIST, each with "
                                       "or without BPF_F_LOCK", True)
            flag = <uint32_t> flags & ~<uint32_t> F_LOCK    # every update waits for sections
        self._update(key, value, flag)

    def __setitem__(self, key, value):
        self._update(key, value, 0)

    def delete(self, key):
        """Remove key and its value.

        Atomic (W1). Expected O(1); may merge two buckets and give memory back. Waits, without the
        GIL, for a process that is changing the same element or bucket. It does not wait for a
        locked section on the key: that is cut off, and learns so at its end.

        Raises KeyNotFound (ENOENT), LockTimeout (EBUSY), InvalidArgument, TypeError, ReadOnlyMap,
        MapClosed.
        """
        if self._delete(key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def __delitem__(self, key):
        if self._delete(key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def lookup_and_delete(self, key, flags=0):
        """Remove key and return its last value as bytes; no other caller gets the same value.

        Atomic (W1). Cost and waiting are those of delete(), but with flags BPF_F_LOCK it waits for
        a locked section on the key to end instead of cutting it off.

        Raises KeyNotFound (ENOENT), LockTimeout (EBUSY), DeadlockError, InvalidArgument,
        TypeError, ReadOnlyMap, MapClosed.
        """
        cdef bytes value
        if flags != 0 and flags != F_LOCK:
            self._bad_flags(flags, "lookup_and_delete takes 0 or BPF_F_LOCK", True)
        value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if self._delete(key, PyBytes_AS_STRING(value), flags != 0) != OK:
            raise _errors.KeyNotFound(key)
        return value

    def __len__(self):
        cdef uint64_t index
        cdef uint64_t credits
        self._expect_open()
        credits = load_acquire_u64(&self.map.header.credits) >> PAYLOAD_SHIFT
        for index in range(self.map.depot_count):
            credits += depot_credit(load_acquire_u64(&self.map.depots[index].word))
        return <Py_ssize_t> (self.map.max_entries - credits) if (
            credits < self.map.max_entries) else 0

    def close(self):
        """Close the handle. It detaches once other threads' operations and all views have ended."""
        if not self.is_closed:
            self.is_closed = True
            self.reads = READS_NONE
            if self.generation != process_generation:
                self._forked()
            self._detach_if_idle()

    @property
    def closed(self):
        """Whether close() was called."""
        return bool(self.is_closed)

    @property
    def key_size(self):
        """Bytes of each key."""
        return self.map.key_size

    @property
    def value_size(self):
        """Bytes of each value."""
        return self.map.value_size

    @property
    def max_entries(self):
        """The hard limit on the number of entries."""
        return self.map.max_entries

    @property
    def read_only(self):
        """Whether the handle may only read."""
        return bool(self.map.read_only)

    @property
    def timeout(self):
        """Seconds to wait for a lock whose owner is alive; None means without limit."""
        return None if self.map.timeout_ns < 0 else self.map.timeout_ns / 1e9


include "python/raising.pxi"
include "python/attachment.pxi"
include "python/sweeping.pxi"
include "python/facts.pxi"
include "python/modify.pxi"
include "python/sections.pxi"
include "python/bulk.pxi"
include "python/entries.pxi"
include "python/iterator.pxi"
include "python/fields.pxi"
include "python/views.pxi"
include "python/forking.pxi"
include "python/codec.pxi"
include "python/dict.pxi"
include "python/dictkeys.pxi"
include "python/dictsection.pxi"
include "python/dictwalk.pxi"
