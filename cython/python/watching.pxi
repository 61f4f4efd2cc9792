# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: waiting until a key changes. bell.pxd is the protocol; what is waited for is
# decided in shmrhash/_waiting.py.

cdef enum:
    SLICE_NS = 250000000       # a waiter looks by itself this often: a killed writer may not ring.
    QUIET_SLICES = 10          # After so many looks that nobody rang for, half as often
    READER_SLICE_NS_MIN = 1000000      # a read-only handle cannot say that it waits,
    READER_SLICE_NS_MAX = 16000000     # so nobody rings for it: it looks after ever longer naps
    SETTLE_TURNS_MAX = 100000000       # a bound for the loop's sake: the deadline ends it sooner

cdef int64_t wait_slice_ns = SLICE_NS


def set_wait_slice(int64_t slice_ns):
    """For tests: set how long a waiter sleeps at most before it looks by itself; return how long it
    was before."""
    global wait_slice_ns
    before = wait_slice_ns
    wait_slice_ns = slice_ns
    return before


def key_copy(MapHandle handle not None, key):
    """The bytes of a key of RHashMap, any buffer of key_size bytes."""
    cdef Py_buffer view
    cdef const uint8_t *key_bytes = buffer_bytes(handle, "key", key, handle.map.key_size, &view)
    try:
        return PyBytes_FromStringAndSize(
            <const char *> key_bytes, <Py_ssize_t> handle.map.key_size)
    finally:
        if view.buf != NULL:
            PyBuffer_Release(&view)


# A key that is waited for: the bytes are in Waiter.keys.
cdef struct Awaited:
    uint32_t hash
    Sight sight


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class Waiter:
    """One thread that waits for changes of some keys of a map.

    arm(), then look at what the keys have; if that is not what is waited for, sleep(), and again;
    end() at last. Between these calls it is inside no operation, so it keeps no memory from going
    back. In a child of fork a waiter goes on as the child's own.
    """

    cdef MapHandle handle
    cdef list keys                 # bytes, as the map stores them
    cdef bytearray room            # of the Awaited
    cdef Awaited *awaited
    cdef Py_ssize_t count
    cdef Op op
    cdef bint begun
    cdef bint says                 # this process says that it waits: not with a read-only handle
    cdef uint64_t *bell
    cdef uint64_t tags             # of the keys
    cdef uint32_t seen
    cdef int64_t nap_ns            # of a read-only handle
    cdef int quiet                 # sleeps in a row that nobody's ring has ended

    def __cinit__(self, MapHandle handle not None, list keys not None):
        cdef Py_ssize_t i
        self.handle = handle
        self.keys = keys
        self.count = len(keys)
        self.room = bytearray(self.count * sizeof(Awaited))
        self.awaited = <Awaited *> PyByteArray_AS_STRING(self.room)
        self.nap_ns = READER_SLICE_NS_MIN
        for i in range(self.count):
            self.awaited[i].hash = hash_key(
                handle.map.seeds, <const uint8_t *> PyBytes_AS_STRING(keys[i]),
                handle.map.key_size)
            self.tags |= tag_of(self.awaited[i].hash)

    def __dealloc__(self):
        self._end()

    cdef int _begin(self) except -1:
        """Begin an operation, the first one or the next."""
        if not self.begun:
            enter_to_read(self.handle, &self.op)
            self.begun = True
        elif renew(self.handle, &self.op):
            self.says = False          # what the parent says is not this child's
        elif self.op.context != NULL:
            op_begin(&self.op)
        return 0

    cdef void _rest(self) noexcept:
        if self.op.context != NULL:
            op_end(&self.op)

    cdef void _say(self) noexcept:
        cdef Py_ssize_t i
        cdef Map *map = &self.handle.map
        self.bell = &map.header.key_bells[BELL_ANY]
        if self.count == 1:
            self.bell = key_bell(map.header.key_bells, self.awaited[0].hash)
        if map.read_only:
            self.seen = key_bell_value(self.bell)
            return
        for i in range(self.count):
            if not self.says:
                waiting_begin(map, self.awaited[i].hash)
            waiting_say(map, self.awaited[i].hash)
        self.says = True
        self.seen = key_bell_arm(self.bell, self.tags)

    def arm(self, int64_t deadline_ns):
        """Say that this thread waits, and see each key at a moment when no writer may be in the
        middle of changing it. What is looked up afterwards is at least as new; and a later change
        wakes sleep(), or keeps it from sleeping. Returns whether that took no longer than until
        deadline_ns (CLOCK_MONOTONIC; negative: without limit): a writer may be stopped.

        Raises MapClosed, WriteOnlyMap, SegmentCorrupt, what a signal handler raises.
        """
        cdef Status status = OK
        cdef Py_ssize_t i = 0
        cdef uint64_t turn = 0
        cdef int64_t now
        self._begin()
        try:
            expect_open(self.handle)
            self._say()
            while i < self.count and turn < SETTLE_TURNS_MAX:
                self.op.hash = self.awaited[i].hash
                self.op.key = <const uint8_t *> PyBytes_AS_STRING(self.keys[i])
                status = key_settled(&self.op, &self.awaited[i].sight)
                if status == OK or status == ABSENT:
                    i += 1
                    turn = 0
                    continue
                if status != BUSY and status != RETRY:
                    raise_status(self.handle, status, &self.op)
                now = clock_ns(CLOCK_MONOTONIC)
                if 0 <= deadline_ns < now and turn > 4:
                    return False
                self._rest()
                with nogil:
                    if status == BUSY:
                        wait_step(&self.op, turn, 0)
                    else:
                        sched_yield()
                turn += 1
                self._resume()
        finally:
            self._rest()
        return i == self.count

    cdef int _resume(self) except -1:
        """Handle signals, whose handlers may fork, and begin the operation again."""
        cdef uint64_t generation = self.op.generation
        resume(self.handle, &self.op)
        if self.op.generation != generation:
            self.says = False
            self._say()
        return 0

    def sight(self, Py_ssize_t i):
        """How arm() saw a key: (element, version), which differs after each change; None: absent.
        """
        if self.awaited[i].sight.element == 0:
            return None
        return self.awaited[i].sight.element, self.awaited[i].sight.version

    def sleep(self, int64_t deadline_ns):
        """Sleep until a key may have changed, a deadline of an entry has passed, or the clock
        CLOCK_MONOTONIC reads deadline_ns (negative: without limit).

        Raises MapClosed, FrozenMap (nothing can change any more), what a signal handler raises.
        """
        cdef Py_ssize_t i
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t until = now + wait_slice_ns * (2 if self.quiet >= QUIET_SLICES else 1)
        cdef int outcome = ETIMEDOUT
        cdef const uint32_t *bell = bell_futex(self.bell)
        cdef uint32_t seen = self.seen
        if load_relaxed_u64(&self.handle.map.header.frozen) != 0:
            raise _errors.FrozenMap(
                f"map {self.handle.name!r} is frozen: what is waited for cannot happen any more")
        if self.handle.map.read_only:
            until = now + self.nap_ns
            self.nap_ns = min(self.nap_ns * 2, <int64_t> READER_SLICE_NS_MAX)
        if 0 <= deadline_ns < until:
            until = deadline_ns
        for i in range(self.count):
            if now < <int64_t> self.awaited[i].sight.deadline < until:
                until = <int64_t> self.awaited[i].sight.deadline
        with nogil:
            # A deadline that has passed costs the kernel's timer slack.
            if now < until:
                outcome = futex_sleep(bell, seen, until)
        if outcome != ETIMEDOUT:
            self.quiet = 0
        elif self.quiet < QUIET_SLICES:
            self.quiet += 1
        PyErr_CheckSignals()                   # a handler may fork: arm() learns of it
        expect_open(self.handle)

    cdef void _end(self) noexcept:
        cdef Py_ssize_t i
        if not self.begun:
            return
        self.begun = False
        if self.op.generation != process_generation:
            leave_to_parent(self.handle)
            return
        if self.says:
            self.says = False
            for i in range(self.count):
                waiting_end(&self.handle.map, self.awaited[i].hash)
        if self.op.context != NULL:
            op_begin(&self.op)
        leave_reading(self.handle, &self.op)

    def end(self):
        """This thread waits no more."""
        self._end()
