# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The extension module: Python objects, the GIL and errors on top of the core's .pxd files.

MapHandle attaches a process to a segment and offers the operations; shmrhash.RHashMap is its public
subclass. Everything that can wait releases the GIL.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyObject_GetBuffer, PyBuffer_Release, PyObject_CheckBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport uint8_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strdup, strerror

from atomics cimport (
    likely, unlikely, load_relaxed_u64, load_acquire_u64, store_release_u64, local_put_u64,
    local_take_u64, compiler_fence, read_u64,
)
from status cimport (
    Status, OK, ABSENT, PRESENT, FULL, NO_MEMORY, CORRUPT, BUSY, NO_CONTEXT, CLOSED, SYSTEM_ERROR,
    RETRY,
)
from layout cimport (
    Header, Context, ProcessSlot, Statistics, HEADER_BYTES, PAGE_BYTES, LINE_BYTES, PROCESS_MAX,
    LAYOUT_VERSION, MAGIC, PAYLOAD_SHIFT, REGION_BUCKETS, REGION_CONTEXTS, REGION_PROCESSES, REGION_COUNT,
    layout_is_pinned, depot_credit, depot_count,
)
from geometry cimport Map, Local, geometry_compute, geometry_bind, context_at
from hashing cimport hash_key
from system cimport (
    segment_open, segment_fd, is_segment, byte_lock, F_OFD_GETLK, F_WRLCK, close as close_fd, fstat, stat_t, clock_ns, mmap, munmap, madvise,
    MAP_FAILED, MAP_SHARED, PROT_READ, F_OFD_SETLK, F_RDLCK, READER_BYTE, CLOCK_MONOTONIC,
)
from lock cimport Op
from map cimport (
    op_begin, op_end, op_settle, map_lookup, map_contains, map_update, map_delete, map_add,
    map_clear_bucket, map_shrink_if_empty,
)
from table cimport table_count
from liveness cimport (
    Standing, process_register, process_leave, process_is_dead, context_claim,
)
from recovery cimport recover_all, recover_those_inside
from wait cimport wait_step, sched_yield
from segment cimport segment_examine, segment_fill, buckets_for, first_bytes
from check cimport Report, check_map

from shmrhash import _errors

cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? -1
    char *PyByteArray_AS_STRING(object buffer)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_WRITE
    enum: PROT_NONE
    enum: MAP_FIXED
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    enum: MADV_HUGEPAGE
    enum: MADV_WIPEONFORK

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset) noexcept
    long syscall(long number, ...) noexcept

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_membarrier

cdef enum:
    STACK_VALUE_MAX = 512      # larger values are copied straight into the bytes object
    HUGE_BYTES = 2097152
    MORE_MAX = 448             # idle contexts a process keeps: Local.more
    PATROL_MASK = 0xFFFF       # after so many operations of a context, look for dead processes
    READ_ROUNDS_MAX = 100000   # of READ_TRIES_MAX tries, yielding between: a damaged segment
    MEMBARRIER_REGISTER_GLOBAL_EXPEDITED = 4


MAGIC_BYTES = (<uint64_t> MAGIC).to_bytes(8, "little")


def segment_bytes(key_size, value_size, max_entries, depot_count):
    """The size in bytes of a segment with this geometry; None if no address space can hold it."""
    cdef Map map
    if geometry_compute(&map, key_size, value_size, max_entries, depot_count) != OK:
        return None
    return map.segment_bytes


def segment_prepare(int fd, *, uint32_t key_size, uint32_t value_size, uint64_t max_entries,
                    uint32_t map_flags, uint32_t map_extra, uint32_t depot_count, bint ephemeral,
                    bytes seeds not None, uint64_t created_ns, commit):
    """Fill the nameless file fd with an empty map. commit(offset, size) allocates or raises."""
    cdef Map map
    cdef Header header
    cdef uint64_t bucket_count
    cdef uint32_t region
    cdef void *base
    memset(&map, 0, sizeof(map))
    memset(&header, 0, sizeof(header))
    geometry_compute(&map, key_size, value_size, max_entries, depot_count)
    bucket_count = buckets_for(&map, map_extra)
    header.key_size = key_size
    header.value_size = value_size
    header.max_entries = max_entries
    header.map_flags = map_flags
    header.map_extra = map_extra
    header.depot_count = depot_count
    header.ephemeral = ephemeral
    header.created_ns = created_ns
    memcpy(header.seeds, PyBytes_AS_STRING(seeds), sizeof(header.seeds))
    commit(0, HEADER_BYTES)
    commit(map.depots_offset, (depot_count * LINE_BYTES + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES)
    for region in range(REGION_COUNT):
        commit(map.region_offset[region], first_bytes(&map, region, bucket_count))
    base = mmap(NULL, map.segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
    if base == MAP_FAILED:
        raise _errors.SegmentFull(f"cannot map {map.segment_bytes} bytes: {os_error()}")
    geometry_bind(&map, <uint8_t *> base)
    segment_fill(&map, &header, bucket_count)
    munmap(base, map.segment_bytes)


cdef void *map_aligned(uint64_t size, int protection, int fd) noexcept:
    """Map a file at a multiple of 2 MiB, where huge pages can be used; MAP_FAILED if it cannot be."""
    cdef uint64_t reserved
    cdef uint64_t start
    cdef void *base = mmap(
        NULL, size + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base == MAP_FAILED:
        return base
    reserved = <uint64_t> base
    start = (reserved + HUGE_BYTES - 1) // HUGE_BYTES * HUGE_BYTES
    base = mmap(<void *> start, size, protection, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0)
    if base == MAP_FAILED:
        munmap(<void *> reserved, size + HUGE_BYTES)
        return base
    if start > reserved:
        munmap(<void *> reserved, start - reserved)
    munmap(<void *> (start + size), reserved + HUGE_BYTES - start)
    return base


cdef str os_error():
    return (<bytes> strerror(errno)).decode(errors="replace")


cdef class MapHandle:
    """One process's attachment to a segment."""

    cdef Map map
    cdef Standing standing
    cdef readonly str name
    cdef bint is_closed
    cdef uint64_t in_flight        # operations that run without the GIL
    cdef uint64_t read_only_page
    cdef readonly uint32_t map_flags
    cdef readonly uint32_t map_extra
    cdef readonly bint ephemeral
    cdef readonly uint64_t recovered_at_open
    cdef object __weakref__

    def __cinit__(self, int fd, str name not None, bytes path not None, bint read_only,
                  timeout, **_ignored):
        self.is_closed = True
        self.map.fd = -1
        self.standing.lock_fd = -1
        self.name = name
        self.map.path = strdup(path)
        self.map.read_only = read_only
        self.map.fd = fd                       # owned from here on
        self._set_timeout(timeout)
        self._examine(fd)
        self._map_segment(fd)
        self.is_closed = False
        if read_only:
            self._announce_reader()
        else:
            self.map.use_membarrier = syscall(
                SYS_membarrier, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0
            with nogil:
                self.recovered_at_open = recover_all(&self.map)
            self._register()

    def __dealloc__(self):
        self._detach()
        free(self.map.path)

    cdef _set_timeout(self, timeout):
        if timeout is None:
            self.map.timeout_ns = -1
            return
        seconds = float(timeout)
        if not 0 <= seconds < 1e9:
            raise _errors.InvalidArgument(
                f"timeout must be None or seconds from 0 to 1e9, not {timeout!r}")
        self.map.timeout_ns = <int64_t> (seconds * 1e9)

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
                f"segment {self.name!r} has layout version {header.layout_version}, this build reads "
                f"{LAYOUT_VERSION}; unlink and recreate it, or use the version that wrote it")
        if status != OK:
            raise _errors.SegmentCorrupt(
                f"segment {self.name!r} has a damaged header or the wrong size "
                f"({file_status.st_size} bytes); unlink and recreate it")
        self.map_flags = header.map_flags
        self.map_extra = header.map_extra
        self.ephemeral = header.ephemeral

    cdef _map_segment(self, int fd):
        cdef int protection = PROT_READ if self.map.read_only else PROT_READ | PROT_WRITE
        cdef void *base = map_aligned(self.map.segment_bytes, protection, fd)
        cdef void *page
        if base == MAP_FAILED:
            raise _errors.SegmentFull(
                f"cannot map segment {self.name!r} of {self.map.segment_bytes} bytes: {os_error()}")
        madvise(base, self.map.segment_bytes, MADV_HUGEPAGE)
        geometry_bind(&self.map, <uint8_t *> base)
        page = mmap(NULL, sizeof(Local), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED or madvise(page, sizeof(Local), MADV_WIPEONFORK) != 0:
            munmap(base, self.map.segment_bytes)
            self.map.base = NULL
            raise _errors.Error(f"this kernel cannot wipe memory on fork: {os_error()}")
        self.map.local = <Local *> page

    cdef _announce_reader(self):
        """Hold READER_BYTE shared, by a mapping, for as long as this address space lives."""
        cdef int fd = segment_open(&self.map)
        cdef void *page = MAP_FAILED
        if fd >= 0 and byte_lock(fd, F_OFD_SETLK, F_RDLCK, READER_BYTE) == 0:
            page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)
        if fd >= 0:
            close_fd(fd)
        if page == MAP_FAILED:
            raise _errors.Error(f"cannot announce a reader of segment {self.name!r}: {os_error()}")
        self.read_only_page = <uint64_t> page

    cdef _detach(self):
        """Free this process's contexts and slot, and unmap."""
        cdef Op op
        cdef uint64_t taken
        if self.map.base == NULL:
            return
        if self.map.local.registered:
            op.map = &self.map
            while True:                        # one turn for each idle context
                taken = self._idle_context()
                if taken == 0:
                    break
                op.self_index = <uint32_t> (taken - 1)
                op.context = context_at(&self.map, op.self_index)
                op_settle(&op)
                if op.context.element == 0 and op.context.line_stash == 0:
                    # Release: everything is at rest; pairs with the CAS in context_claim.
                    store_release_u64(&op.context.owner, 0)
            process_leave(&self.map, &self.standing)
        if self.read_only_page:
            munmap(<void *> self.read_only_page, PAGE_BYTES)
        munmap(self.map.local, sizeof(Local))
        munmap(self.map.base, self.map.segment_bytes)
        self.map.base = NULL
        if is_segment(&self.map, self.map.fd):     # else the program closed it, and reused it
            close_fd(self.map.fd)
        self.map.fd = -1

    cdef uint64_t _idle_context(self) noexcept:
        cdef Local *local = self.map.local
        cdef uint64_t taken = local_take_u64(&local.idle_context)
        if taken == 0 and local.more_count > 0:
            local.more_count -= 1
            taken = local.more[local.more_count]
        return taken

    cdef uint64_t _claim_context(self) except 0:
        """An idle context, or a new one; registers this process first if it is not (fork)."""
        cdef uint64_t index = 0
        cdef uint64_t taken
        cdef Status status = OK
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        if self.map.read_only:
            raise _errors.ReadOnlyMap(
                f"map {self.name!r} is open for reading only; open it without read_only=True")
        if self.map.local.registered:
            taken = self._idle_context()
            if taken != 0:
                return taken
        self._register()
        status = context_claim(&self.map, &index)
        if status == NO_CONTEXT:
            with nogil:
                recover_all(&self.map)
            status = context_claim(&self.map, &index)
        if status != OK:
            self._raise(status, NULL)
        return index + 1

    cdef _register(self):
        """Give this process a slot, unless it has one: at attachment, and after fork."""
        cdef Status status
        if self.map.local.registered:
            return
        status = process_register(&self.map, &self.standing)
        if status == NO_CONTEXT:
            with nogil:
                recover_all(&self.map)
            status = process_register(&self.map, &self.standing)
        if status != OK:
            self._raise(status, NULL)

    cdef inline int _enter(self, Op *op) except -1:
        """Begin an operation that writes, or that looks and must not lose what it looks at."""
        cdef uint64_t taken
        if unlikely(self.is_closed):
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        taken = local_take_u64(&self.map.local.idle_context)
        if unlikely(taken == 0):
            taken = self._claim_context()
        op.map = &self.map
        op.self_index = <uint32_t> (taken - 1)
        op.context = context_at(&self.map, taken - 1)
        op.element_filled = False
        op_begin(op)
        return 0

    cdef inline void _leave(self, Op *op) noexcept:
        cdef Local *local = self.map.local
        if unlikely(op.context.element != 0 or op.context.line_stash != 0):
            op_settle(op)
        op_end(op)
        if unlikely(not local_put_u64(&local.idle_context, op.self_index + 1)):
            if local.more_count < MORE_MAX:
                local.more[local.more_count] = op.self_index + 1
                local.more_count += 1
        if unlikely(op.context.activity & PATROL_MASK == 0):
            with nogil:
                recover_all(&self.map)

    cdef int _wait(self, Op *op, Status status, uint64_t *turn, int64_t *began) except -1:
        """Between two attempts. The operation holds nothing; its context is at rest meanwhile."""
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        cdef Status result
        if turn[0] == 0:
            began[0] = now
        elif self.map.timeout_ns >= 0 and now - began[0] > self.map.timeout_ns:
            raise _errors.LockTimeout(
                f"map {self.name!r}: waited {(now - began[0]) / 1e9:.1f} s for a lock whose owner is "
                f"alive but does not go on (stopped, or swapped out?); continue or kill it")
        op_end(op)
        self.in_flight += 1
        with nogil:
            if status == BUSY:
                result = wait_step(op, turn[0])
            else:
                sched_yield()
        self.in_flight -= 1
        op_begin(op)
        turn[0] += 1
        PyErr_CheckSignals()
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} was closed while an operation waited")
        return 0

    cdef inline bint _freed(self, Status status) noexcept:
        """After FULL or NO_MEMORY: whether somebody dead had what was wanted, and has it no more."""
        if likely(status != FULL and status != NO_MEMORY):
            return False
        return recover_those_inside(&self.map) != 0

    cdef _raise(self, Status status, Op *op):
        """Turn a final status into the exception it stands for: the only place that does."""
        if status == FULL:
            raise _errors.MapFull(
                f"map {self.name!r} has all of its {self.map.max_entries} entries; delete some or "
                f"create it with a larger max_entries")
        if status == NO_MEMORY:
            raise _errors.SegmentFull(_errors.no_space_message(
                self.name, 0 if op == NULL else op.bytes_wanted, self.map.path))
        if status == PRESENT:
            raise _errors.KeyExists(f"map {self.name!r} has this key already (BPF_NOEXIST)")
        if status == ABSENT:
            raise _errors.KeyNotFound(f"map {self.name!r} has no such key")
        if status == NO_CONTEXT:
            raise _errors.TooManyProcesses(
                f"map {self.name!r}: all {PROCESS_MAX} process slots or operation contexts are in "
                f"use; close handles or use fewer processes")
        if status == BUSY:
            raise _errors.LockTimeout(f"map {self.name!r}: somebody else is extending the segment")
        if status == SYSTEM_ERROR:
            raise _errors.Error(f"map {self.name!r}: cannot reach its file again: {os_error()}")
        raise _errors.SegmentCorrupt(
            f"map {self.name!r}: the segment holds what no operation leaves (status {<int> status}); "
            f"run check(), then unlink and recreate it")

    cdef _bad_buffer(self, str what, object thing, Py_ssize_t size, uint64_t wanted):
        if size < 0:
            raise TypeError(
                f"{what} must be bytes or another buffer of {wanted} bytes, not "
                f"{type(thing).__name__}")
        raise _errors.InvalidArgument(
            f"{what} has {size} bytes, map {self.name!r} has {what}s of {wanted} bytes")

    cdef const uint8_t *_buffer(
            self, str what, object thing, uint64_t wanted, Py_buffer *view) except NULL:
        """The bytes of a key or value. view.buf is not NULL if the caller has to release it."""
        view.buf = NULL
        if likely(PyBytes_CheckExact(thing)):
            if unlikely(<uint64_t> PyBytes_GET_SIZE(thing) != wanted):
                self._bad_buffer(what, thing, PyBytes_GET_SIZE(thing), wanted)
            return <const uint8_t *> PyBytes_AS_STRING(thing)
        if not PyObject_CheckBuffer(thing):
            self._bad_buffer(what, thing, -1, wanted)
        try:
            PyObject_GetBuffer(thing, view, PyBUF_SIMPLE)
        except BufferError:
            raise _errors.InvalidArgument(f"{what} must be contiguous in memory") from None
        if <uint64_t> view.len != wanted:
            size = view.len
            PyBuffer_Release(view)
            view.buf = NULL
            self._bad_buffer(what, thing, size, wanted)
        return <const uint8_t *> view.buf

    cdef Status _read(self, const uint8_t *key, void *value) except? RETRY:
        """lookup, or contains if value is NULL; yields to writers that keep changing the key."""
        cdef Op op
        cdef uint32_t hash = hash_key(self.map.seeds, key, self.map.key_size)
        cdef Status status = RETRY
        cdef uint64_t rounds
        if unlikely(self.is_closed):
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        if not self.map.read_only:
            self._enter(&op)
        for rounds in range(READ_ROUNDS_MAX):
            if value == NULL:
                status = map_contains(&self.map, hash, key)
            else:
                status = map_lookup(&self.map, hash, key, value)
            if likely(status != RETRY):
                break
            with nogil:
                sched_yield()
        if not self.map.read_only:
            self._leave(&op)
        if unlikely(status != OK and status != ABSENT):
            self._raise(CORRUPT, NULL)
        return status

    cdef inline object _lookup(self, object key):
        """The value, or None."""
        cdef uint8_t small[STACK_VALUE_MAX]
        cdef Py_buffer view
        cdef const uint8_t *key_bytes = self._buffer("key", key, self.map.key_size, &view)
        cdef bytes value = None
        cdef Status status
        try:
            if self.map.value_size <= STACK_VALUE_MAX:
                status = self._read(key_bytes, small)
                if status == OK:
                    value = PyBytes_FromStringAndSize(
                        <const char *> small, <Py_ssize_t> self.map.value_size)
            else:
                value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
                status = self._read(key_bytes, PyBytes_AS_STRING(value))
                if status != OK:
                    value = None
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        return value

    cdef Status _update(self, object key, object value, uint32_t flag) except? RETRY:
        cdef Py_buffer key_view
        cdef Py_buffer value_view
        cdef const uint8_t *value_bytes
        cdef Op op
        cdef Status status = RETRY
        cdef uint64_t turn = 0
        cdef int64_t began = 0
        value_view.buf = NULL
        op.key = self._buffer("key", key, self.map.key_size, &key_view)
        try:
            value_bytes = self._buffer("value", value, self.map.value_size, &value_view)
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            self._enter(&op)
            try:
                while True:                    # ends with the timeout
                    status = map_update(&op, value_bytes, flag)
                    if likely(status != RETRY and status != BUSY) and not self._freed(status):
                        break
                    self._wait(&op, status, &turn, &began)
            finally:
                self._leave(&op)
            if unlikely(status != OK):
                self._raise(status, &op)
        finally:
            if key_view.buf != NULL:
                PyBuffer_Release(&key_view)
            if value_view.buf != NULL:
                PyBuffer_Release(&value_view)
        return status

    cdef Status _delete(self, object key, void *value) except? RETRY:
        """OK or ABSENT."""
        cdef Py_buffer view
        cdef Op op
        cdef Status status = RETRY
        cdef uint64_t turn = 0
        cdef int64_t began = 0
        op.key = self._buffer("key", key, self.map.key_size, &view)
        try:
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            self._enter(&op)
            try:
                while True:                    # ends with the timeout
                    status = map_delete(&op, value)
                    if likely(status != RETRY and status != BUSY):
                        break
                    self._wait(&op, status, &turn, &began)
            finally:
                self._leave(&op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        if unlikely(status != OK and status != ABSENT):
            self._raise(status, &op)
        return status

    def lookup(self, key, long long flags=0):
        if flags != 0:
            self._bad_flags(flags, "lookup takes 0")
        return self._lookup(key)

    def get(self, key, default=None):
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

    cdef _bad_flags(self, flags, str wanted):
        raise _errors.InvalidArgument(f"flags {flags} are not valid: {wanted}")

    def update(self, key, value, flags=0):
        cdef uint32_t flag = 0
        if flags != 0:
            if flags != 1 and flags != 2:
                self._bad_flags(flags, "update takes BPF_ANY, BPF_NOEXIST or BPF_EXIST")
            flag = flags
        self._update(key, value, flag)

    def __setitem__(self, key, value):
        self._update(key, value, 0)

    def delete(self, key):
        if self._delete(key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def __delitem__(self, key):
        if self._delete(key, NULL) != OK:
            raise _errors.KeyNotFound(key)

    def lookup_and_delete(self, key, long long flags=0):
        cdef bytes value
        if flags != 0:
            self._bad_flags(flags, "lookup_and_delete takes 0")
        value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> self.map.value_size)
        if self._delete(key, PyBytes_AS_STRING(value)) != OK:
            raise _errors.KeyNotFound(key)
        return value

    def add(self, key, delta, *, initial=None, Py_ssize_t offset=0):
        cdef Py_buffer view
        cdef Op op
        cdef Status status = RETRY
        cdef uint64_t delta_bits = PyLong_AsUnsignedLongLongMask(delta)
        cdef uint64_t after = 0
        cdef uint64_t turn = 0
        cdef int64_t began = 0
        cdef bytearray fresh = None
        cdef uint8_t *fresh_bytes = NULL
        if offset < 0 or offset + 8 > <Py_ssize_t> self.map.value_size:
            raise _errors.InvalidArgument(
                f"an 8-byte field at offset {offset} does not fit into values of "
                f"{self.map.value_size} bytes")
        if initial is not None:
            fresh = bytearray(self.map.value_size)
            fresh_bytes = <uint8_t *> PyByteArray_AS_STRING(fresh)
            after = PyLong_AsUnsignedLongLongMask(initial) + delta_bits
            memcpy(fresh_bytes + offset, &after, 8)
        op.key = self._buffer("key", key, self.map.key_size, &view)
        try:
            op.hash = hash_key(self.map.seeds, op.key, self.map.key_size)
            self._enter(&op)
            try:
                while True:                    # ends with the timeout
                    status = map_add(&op, <uint64_t> offset, delta_bits, fresh_bytes, &after)
                    if likely(status != RETRY and status != BUSY) and not self._freed(status):
                        break
                    self._wait(&op, status, &turn, &began)
            finally:
                self._leave(&op)
        finally:
            if view.buf != NULL:
                PyBuffer_Release(&view)
        if status == ABSENT:
            raise _errors.KeyNotFound(key)
        if unlikely(status != OK):
            self._raise(status, &op)
        return <int64_t> after

    def clear(self):
        cdef Op op
        cdef Status status
        cdef uint64_t index, count
        cdef uint64_t turn = 0
        cdef uint64_t done = 0
        cdef int64_t began = 0
        self._enter(&op)
        try:
            index = table_count(&self.map)
            while index > 0:                   # downwards: a merge moves entries to lower buckets
                status = map_clear_bucket(&op, index - 1)
                if status == ABSENT:
                    index -= 1
                elif status == OK:
                    map_shrink_if_empty(&op)
                    count = table_count(&self.map)
                    index = index if index < count else count
                    turn = 0
                elif status == BUSY or status == RETRY:
                    self._wait(&op, status, &turn, &began)
                else:
                    self._raise(status, &op)
                done += 1
                if done & 0xFFF == 0:
                    op_end(&op)
                    with nogil:
                        sched_yield()
                    op_begin(&op)
                    PyErr_CheckSignals()
        finally:
            self._leave(&op)

    def __len__(self):
        cdef uint64_t index
        cdef uint64_t credits
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        credits = load_acquire_u64(&self.map.header.credits) >> PAYLOAD_SHIFT
        for index in range(self.map.depot_count):
            credits += depot_credit(load_acquire_u64(&self.map.depots[index].word))
        return <Py_ssize_t> (self.map.max_entries - credits) if (
            credits < self.map.max_entries) else 0

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            if self.in_flight == 0:
                self._detach()

    @property
    def closed(self):
        return bool(self.is_closed)

    @property
    def key_size(self):
        return self.map.key_size

    @property
    def value_size(self):
        return self.map.value_size

    @property
    def max_entries(self):
        return self.map.max_entries

    @property
    def read_only(self):
        return bool(self.map.read_only)

    @property
    def timeout(self):
        return None if self.map.timeout_ns < 0 else self.map.timeout_ns / 1e9

    def _recover(self):
        """Recover every dead process; how many there were."""
        cdef uint64_t found
        if self.is_closed or self.map.read_only:
            return 0
        with nogil:
            found = recover_all(&self.map)
        return found

    def _forget_lock_descriptor(self):
        """In a child of fork: close the descriptor that would keep the parent's lock."""
        if self.standing.lock_fd >= 0:
            close_fd(self.standing.lock_fd)
            self.standing.lock_fd = -1

    def _processes(self):
        """(index, pid, attached_ns, alive) of each used slot."""
        cdef uint64_t index
        cdef ProcessSlot *slot
        found = []
        for index in range(self.map.header.regions[REGION_PROCESSES].usable
                           // sizeof(ProcessSlot)):
            slot = self.map.processes + index
            if load_acquire_u64(&slot.used) != 0:
                found.append((index, slot.pid, slot.attached_ns,
                              not process_is_dead(&self.map, index)))
        return found

    def _facts(self):
        """Everything info() is made of."""
        cdef Statistics *statistics
        cdef stat_t file_status
        cdef uint64_t index, contexts, parked
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        statistics = &self.map.header.statistics
        contexts = 0
        for index in range(self.map.header.regions[REGION_CONTEXTS].usable
                           // self.map.context_stride):
            contexts += context_at(&self.map, index).owner != 0
        parked = 0
        for index in range(self.map.depot_count):
            parked += depot_count(load_relaxed_u64(&self.map.depots[index].word))
        return {
            "layout_version": LAYOUT_VERSION,
            "buckets": table_count(&self.map),
            "bytes_reserved": self.map.segment_bytes,
            "element_stride": self.map.stride,
            "depots": self.map.depot_count,
            "elements_parked": parked,
            "contexts": contexts,
            "grows": statistics.grows,
            "shrinks": statistics.shrinks,
            "growth_stopped": statistics.growth_stopped,
            "blocks_released": statistics.blocks_released,
            "releases_postponed": statistics.releases_postponed,
            "recoveries": statistics.recoveries,
            "owners_found_dead": statistics.owners_found_dead,
            "operations_finished": statistics.operations_finished,
            "operations_undone": statistics.operations_undone,
            "recovery_ns_max": statistics.recovery_ns_max,
            "created_ns": self.map.header.created_ns,
            "membarrier": bool(self.map.use_membarrier),
            "liveness": ("none (read only)" if self.map.read_only else
                         "not attached yet" if not self.map.local.registered else
                         "kernel lock kept by a descriptor" if self.standing.lock_fd >= 0 else
                         "kernel lock kept by a mapping"),
        }

    def _descriptor(self):
        """The segment's descriptor, for fstat; it stays the handle's."""
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        return segment_fd(&self.map)

    def _path_bytes(self):
        return <bytes> self.map.path

    def _process_index(self):
        """This process's slot, or -1."""
        return self.map.local.process_index if (
            self.map.base != NULL and self.map.local.registered) else -1

    def _reader_attached(self):
        """Whether an attachment that may not write, other than this one, exists."""
        return not self.map.read_only and byte_lock(
            segment_fd(&self.map), F_OFD_GETLK, F_WRLCK, READER_BYTE) == 1

    def _check(self):
        """One walk over all invariants: (problem, where, exact, figures)."""
        cdef Report report
        cdef Op op
        memset(&report, 0, sizeof(report))
        if self.is_closed:
            raise _errors.MapClosed(f"map {self.name!r} is closed")
        if self.map.read_only:
            op.context = NULL
        else:
            self._enter(&op)
        self.in_flight += 1
        with nogil:
            check_map(&self.map, op.context, &report)
        self.in_flight -= 1
        if not self.map.read_only:
            self._leave(&op)
        return <int> report.problem, report.where, bool(report.exact), {
            "entries": report.entries,
            "buckets": report.buckets,
            "lines": report.lines,
            "chain_longest": report.chain_longest,
            "elements_parked": report.parked,
            "elements_free": report.free_in_blocks,
            "elements_in_flight": report.owned_by_contexts,
            "credits": report.credits,
        }
