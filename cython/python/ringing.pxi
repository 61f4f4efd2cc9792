# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: reading the ring, for a process that watches everything. ring.pxd describes
# the protocol; shmrhash/_changes.py decides what the program is told.

cdef enum:
    RING_TAKE_MAX = 1024       # entries that one look reads
    RING_PATIENCE_NS = 10000000        # for an entry that is not whole: its writer may be stopped
    INSIDE_NS = 100000000      # at the beginning, for the operations that are under way
    LOOK_AGAIN_NS = 50000
    YIELDS_MAX = 20            # before the first sleep of a wait


cdef Status attempt_ring_open(Op *op, void *_arguments) except? RETRY:
    return ring_open(op)


cdef bint context_moves(Map *map, uint64_t index, uint64_t seen, int64_t until) noexcept nogil:
    """Whether a context that was inside an operation, with this activity, leaves it in time."""
    cdef Context *context = context_at(map, index)
    cdef int turn = 0
    # Acquire: pairs with the release in context_end. What the operation changed is there.
    while load_acquire_u64(&context.activity) == seen:     # ends with the time
        if clock_ns(CLOCK_MONOTONIC) > until:
            return False
        turn += 1
        if turn <= YIELDS_MAX:
            sched_yield()
        else:
            sleep_ns(LOOK_AGAIN_NS)
    return True


cdef void recover_writers(Map *map) noexcept nogil:
    """Recover the processes that died inside an operation, and those that died while they waited:
    an entry of the ring may be missing on their account."""
    cdef uint64_t index
    recover_those_inside(map)
    for index in range(processes_usable(map)):         # at most PROCESS_MAX
        if load_relaxed_u64(&map.processes[index].waiting) != 0 and process_is_dead(map, index):
            process_recover(map, index)


@cython.final
@cython.auto_pickle(False)
cdef class RingReader:
    """Reads the keys of all changes of a map from the ring.

    begin(), then look() and waiter.sleep() by turns; waiter.end() at last. Attributes: waiter.
    """

    cdef MapHandle handle
    cdef readonly Waiter waiter
    cdef uint64_t place            # the number of the next entry to read
    cdef uint64_t losses           # as they were when they were told
    cdef int64_t unready_since     # when the entry at place was first seen not whole; 0: never
    cdef int64_t patrolled
    cdef list late                 # operations that did not end in time: (context, activity)

    def __cinit__(self, MapHandle handle not None):
        if handle.map.read_only:
            raise _errors.ReadOnlyMap(
                f"map {handle.name!r}: everything can be watched only by a handle that may write: "
                f"the writers have to be told")
        self.handle = handle
        self.waiter = Waiter(handle, [], 0, True)

    def begin(self):
        """From now on each change is told.

        Raises MapClosed, WriteOnlyMap, SegmentFull (no memory for the ring).
        """
        with cython.critical_section(self):
            self._open()

    cdef int _open(self) except -1:
        cdef Op op
        cdef Status status
        cdef Waiting waiting = new_waiting(self.handle)
        enter_to_read(self.handle, &op)
        try:
            status = repeat(self.handle, &op, attempt_ring_open, NULL, &waiting)
        finally:
            leave_reading(self.handle, &op)
        if status != OK:
            raise_status(self.handle, status, &op)
        self.waiter.say()
        self._begin()
        return 0

    cdef int _begin(self) except -1:
        """After say(), and after a loss: read what comes from here on, and wait for the operations
        under way. A bit of waited may have been cleared since say()."""
        cdef Map *map = &self.handle.map
        cdef uint64_t index, seen
        cdef int64_t until = clock_ns(CLOCK_MONOTONIC) + INSIDE_NS
        cdef bint ended
        self.late = []
        self.unready_since = 0
        self.patrolled = clock_ns(CLOCK_MONOTONIC)
        self.losses = ring_losses(map)
        waiting_say_all(map)                   # after the losses; see ring.pxd
        self.place = ring_next(map)
        for index in range(contexts_usable(map)):          # at most CONTEXT_MAX
            # Acquire: as in context_moves.
            seen = load_acquire_u64(&context_at(map, index).activity)
            if seen & 1:
                with nogil:
                    ended = context_moves(map, index, seen, until)
                if not ended:
                    self.late.append((index, seen))
        return 0

    cdef uint64_t _late_ends(self) except? 0xFFFF:
        """How many of the late operations have ended since the last look."""
        cdef Map *map = &self.handle.map
        if not self.late:
            return 0
        left = [(index, seen) for index, seen in self.late
                if load_acquire_u64(&context_at(map, <uint64_t> index).activity) == <uint64_t> seen]
        ended = len(self.late) - len(left)
        self.late = left
        return ended

    cdef bint _has_patience(self, bint patient) noexcept:
        """The entry at place is not whole: whether to try again. Sleeps a little, if patient."""
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        if self.unready_since == 0:
            self.unready_since = now
        if now - self.unready_since > RING_PATIENCE_NS:
            return False
        if patient:
            with nogil:
                sleep_ns(LOOK_AGAIN_NS)
        return True

    cdef int _read(self, dict found, bint patient) except? -1:
        """Read entries into found. OK. BUSY: one is not whole. ABSENT: one is gone, or has not
        become whole."""
        cdef Map *map = &self.handle.map
        cdef uint64_t end = ring_next(map)
        cdef Status status
        cdef bytes key
        if end - self.place > map.ring_entries:
            return ABSENT
        while self.place != end and len(found) < RING_TAKE_MAX:    # ends with the patience
            key = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> map.key_size)
            status = ring_read(map, self.place, <uint8_t *> PyBytes_AS_STRING(key))
            if status == RETRY and self._has_patience(patient):
                if not patient:
                    return BUSY
            elif status != OK:
                return ABSENT
            else:
                found[key] = None
                self.place += 1
                self.unready_since = 0
        return OK

    def look(self, bint patient):
        """waiter.say(), and what has changed since the last look: (keys, lost, settled). keys: the
        bytes of up to 1,024, each once. lost: how many changes, at least, may have been made of
        which no key is known; then there are no keys, and what is read in the map from now on is
        newer than all of them. settled: False if a writer is in the middle of noting a key; a
        patient look waits for it, some milliseconds at most.

        Raises MapClosed.
        """
        with cython.critical_section(self):
            return self._look(patient)

    cdef object _look(self, bint patient):
        cdef Map *map = &self.handle.map
        cdef uint64_t before, lost
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        cdef int status = OK
        cdef dict found = {}
        self.waiter.say()
        if now - self.patrolled >= wait_slice_ns:
            self.patrolled = now
            with nogil:
                recover_writers(map)
        before = self.place
        lost = ring_losses(map) - self.losses + self._late_ends()
        if self.waiter.begins:                 # a child of fork
            lost += 1
        if lost != 0:
            self._begin()
        else:
            status = self._read(found, patient)
        if status == ABSENT:
            self.place = ring_next(map)
            self.unready_since = 0
        if lost != 0 or status == ABSENT:
            return [], lost + (self.place - before), True
        return list(found), 0, status == OK
