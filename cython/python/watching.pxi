# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: waiting until a key changes. bell.pxd describes the protocol;
# shmrhash/_waiting.py decides whether the key's present state ends a wait.

cdef enum:
    QUIET_SLICES = 10          # in a row that no ring ended: then a waiter looks half as often
    READER_SLICE_NS_MIN = 1000000      # a read-only handle cannot say that it waits,
    READER_SLICE_NS_MAX = 16000000     # so no writer rings for it: it looks after ever longer naps
    SETTLE_TURNS_MAX = 100000000       # a bound for the loop's sake: the deadline ends it sooner
    EVERY_TAG = 0xFFFFFFFF00000000ULL  # the tags of all keys


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
    uint32_t bell              # its number
    uint64_t tag
    Sight sight


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear                # __dealloc__ needs the handle
cdef class Waiter:
    """The wait for changes of some keys of a map; or of any key; or, with an element, for the end
    of a section on it, which a notifier has to tell.

    arm(), then look at what the keys have; if that is not what is waited for, sleep(), and again;
    end() at last. A waiter that waits in an event loop is told by a Notifier, and does not sleep.
    Between these calls it is inside no operation and has no context, so it keeps no memory from
    going back; but the map stays mapped. In a child of fork a waiter goes on as the child's own.
    """

    cdef MapHandle handle
    cdef list keys                 # bytes, as the map stores them
    cdef bytearray room            # of the Awaited
    cdef Awaited *awaited
    cdef Py_ssize_t count
    cdef Op stay                   # only its generation: the map is in use until the end
    cdef bint stays
    cdef bint says                 # this process says that it waits: not with a read-only handle
    cdef bint everything           # of any key
    cdef bint begins               # by say(): this process had not said that it waits
    cdef Notifier notifier
    cdef uint32_t bell             # on which it sleeps
    cdef uint64_t tags             # of the keys
    cdef uint32_t seen
    cdef int64_t nap_ns            # of a read-only handle
    cdef int quiet                 # sleeps in a row that no ring has ended

    def __cinit__(self, MapHandle handle not None, list keys not None, uint32_t element=0,
                  bint everything=False):
        cdef Py_ssize_t i
        self.handle = handle
        self.keys = keys
        self.everything = everything
        self.count = WAIT_CLASSES if everything else len(keys) or 1
        self.room = bytearray(self.count * sizeof(Awaited))
        self.awaited = <Awaited *> PyByteArray_AS_STRING(self.room)
        self.nap_ns = READER_SLICE_NS_MIN
        if everything:
            for i in range(self.count):        # one for each class, with all tags
                self.awaited[i].hash = self.awaited[i].bell = <uint32_t> i
                self.awaited[i].tag = self.tags = EVERY_TAG
        elif not keys:
            self.awaited[0].hash = element     # as far as classes are concerned
            self.awaited[0].bell = bell_of_section(element)
        for i in range(len(keys)):
            self.awaited[i].hash = hash_key(
                handle.map.seeds, <const uint8_t *> PyBytes_AS_STRING(keys[i]),
                handle.map.key_size)
            self.awaited[i].bell = bell_of_key(self.awaited[i].hash)
            self.awaited[i].tag = tag_of(self.awaited[i].hash)
            self.tags |= self.awaited[i].tag

    def __dealloc__(self):
        self._end()

    cdef bint _stay(self) noexcept:
        """Keep the map mapped. Returns whether this is a child of fork that begins to do so: what
        the parent says is not this child's."""
        cdef bint inherited = self.stays and self.stay.generation != process_generation
        if self.stays and not inherited:
            return False
        begin_use(self.handle, &self.stay)
        self.stays = True
        if inherited:
            count_add(&self.handle.inherited, ONE_LESS)
            self.says = False
            self.notifier = None
        return inherited

    cdef void _say(self) noexcept:
        cdef Py_ssize_t i
        cdef Map *map = &self.handle.map
        self.bell = BELL_ANY
        if self.count == 1:
            self.bell = self.awaited[0].bell
        if map.read_only:
            self.seen = bell_value(map.header, self.bell)
            return
        for i in range(self.count):
            if not self.says:
                waiting_begin(map, self.awaited[i].hash)
            if not self.everything:
                waiting_say(map, self.awaited[i].hash)
            if self.notifier is not None:
                state_lock()
                if self.notifier._alive():
                    ear_arm(&self.notifier.ear, self.awaited[i].bell, self.awaited[i].tag)
                state_unlock()
        if self.everything:
            waiting_say_all(map)
        self.begins = not self.says
        self.says = True
        self.seen = bell_arm(map.header, self.bell, self.tags)

    @cython.critical_section
    def say(self):
        """arm() without a look at keys, for an element or for everything."""
        self._stay()
        expect_open(self.handle)
        expect_registered(self.handle)
        self._say()

    @cython.critical_section
    def arm(self, int64_t deadline_ns):
        """Say that this thread waits, and see each key at a moment when no writer may be in the
        middle of changing it. What is looked up afterwards is at least as new; and a later change
        wakes sleep(), or keeps it from sleeping, or is told by the notifier. Returns whether that
        took no longer than until deadline_ns (CLOCK_MONOTONIC; negative: without limit; 0: at most
        five tries): a writer may be stopped.

        Raises MapClosed, WriteOnlyMap, SegmentCorrupt, what a signal handler raises.
        """
        cdef Op op
        cdef Py_ssize_t i = 0
        self._stay()
        enter_to_read(self.handle, &op)
        try:
            self._say()
            while i < self.count and self._settle(&op, i, deadline_ns):
                i += 1
        finally:
            leave_reading(self.handle, &op)
        return i == self.count

    @cython.critical_section
    def changed(self):
        """arm(0), and whether that saw a key differently than the look before, or could not see it;
        or nothing can change any more. Not for an element or everything: True.

        Raises what arm() raises.
        """
        cdef Op op
        cdef Sight before
        cdef Py_ssize_t i
        if not self.keys or load_relaxed_u64(&self.handle.map.header.frozen) != 0:
            return True
        self._stay()
        enter_to_read(self.handle, &op)
        try:
            self._say()
            for i in range(self.count):
                before = self.awaited[i].sight
                if not self._settle(&op, i, 0) or memcmp(
                        &before, &self.awaited[i].sight, sizeof(Sight)) != 0:
                    return True
        finally:
            leave_reading(self.handle, &op)
        return False

    cdef bint _settle(self, Op *op, Py_ssize_t i, int64_t deadline_ns) except -1:
        """See one key; False: the deadline is over."""
        cdef Status status
        cdef uint64_t turn
        cdef int64_t now
        op.hash = self.awaited[i].hash
        op.key = <const uint8_t *> PyBytes_AS_STRING(self.keys[i])
        for turn in range(SETTLE_TURNS_MAX):
            status = key_settled(op, &self.awaited[i].sight)
            if status == OK or status == ABSENT:
                return True
            if status != BUSY and status != RETRY:
                raise_status(self.handle, status, op)
            now = clock_ns(CLOCK_MONOTONIC)
            if 0 <= deadline_ns < now and turn > 4:
                break
            if op.context != NULL:
                op_end(op)
            with nogil:
                if status == BUSY:
                    wait_step(op, turn, 0)
                else:
                    sched_yield()
            resume(self.handle, op)            # a signal handler may fork
            if self._stay():
                self._say()
        return False

    def sight(self, Py_ssize_t i):
        """How arm() saw a key: (element, version), which differs after each change; None: absent.
        """
        if self.awaited[i].sight.element == 0:
            return None
        return self.awaited[i].sight.element, self.awaited[i].sight.version

    def until(self, int64_t deadline_ns):
        """deadline_ns, or when the first of the entries that arm() saw expires, if that is sooner;
        negative: never. A waiter for everything looks after each slice: see RingReader."""
        cdef Py_ssize_t i
        if self.everything:
            return sooner_ns(clock_ns(CLOCK_MONOTONIC) + wait_slice_ns, deadline_ns)
        cdef uint64_t first = <uint64_t> deadline_ns   # a negative one is later than any
        for i in range(self.count):
            if self.awaited[i].sight.deadline != 0 and self.awaited[i].sight.deadline < first:
                first = self.awaited[i].sight.deadline
        return <int64_t> first

    def expect_hope(self):
        """Raise FrozenMap if nothing can change any more."""
        if load_relaxed_u64(&self.handle.map.header.frozen) != 0:
            raise _errors.FrozenMap(
                f"map {self.handle.name!r} is frozen: what is waited for cannot happen any more")

    def sleep(self, int64_t deadline_ns):
        """Sleep until a key may have changed, a deadline of an entry has passed, or the clock
        CLOCK_MONOTONIC reads deadline_ns (negative: without limit).

        Raises MapClosed, FrozenMap (nothing can change any more), what a signal handler raises.
        """
        cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t until = now + wait_slice_ns * (2 if self.quiet >= QUIET_SLICES else 1)
        cdef int outcome = ETIMEDOUT
        cdef const uint32_t *bell = bell_word(self.handle.map.header, self.bell)
        cdef uint32_t seen = self.seen
        self.expect_hope()
        if self.handle.map.read_only:
            until = now + self.nap_ns
            self.nap_ns = min(self.nap_ns * 2, <int64_t> READER_SLICE_NS_MAX)
        until = sooner_ns(until, self.until(deadline_ns))
        if others_can_run():
            outcome = self._let_others_run(bell, until)
        else:
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

    cdef int _let_others_run(self, const uint32_t *bell, int64_t until) except -1:
        """For a greenlet: sleep(). Returns 0 if the bell has moved, ETIMEDOUT."""
        cdef uint64_t turn = 0
        while clock_ns(CLOCK_MONOTONIC) < until:
            # Relaxed, as futex_sleep looks: what has changed is read by arm().
            if load_relaxed_u32(bell) != self.seen:
                return 0
            others_ran(&turn, until)
            expect_open(self.handle)
        return ETIMEDOUT

    @cython.critical_section
    def attach(self, Notifier notifier):
        """From now on, a change is told by this notifier, once arm() has been called; None: by
        none. Returns the numbers of the bells of the keys.

        Raises SystemFailure (the process may make no more threads).
        """
        cdef Py_ssize_t i
        self._detach()
        bells = {self.awaited[i].bell for i in range(self.count)}
        if notifier is not None and notifier._alive():
            self._stay()
            self.notifier = notifier
            for i in range(self.count):
                state_lock()
                if notifier._alive():
                    ear_add(&notifier.ear, self.awaited[i].bell, self.awaited[i].tag)
                state_unlock()
            notifier._go_on()
        return bells

    cdef void _detach(self) noexcept:
        cdef Py_ssize_t i
        if self.notifier is not None:
            state_lock()
            if self.notifier._alive():
                for i in range(self.count):
                    ear_drop(&self.notifier.ear, self.awaited[i].bell)
            state_unlock()
        self.notifier = None

    cdef void _says_no_more(self) noexcept:
        """waiting_end for each key, inside an operation."""
        cdef Py_ssize_t i
        cdef Map *map = &self.handle.map
        cdef uint64_t taken = local_take_u64(&map.local.idle_context)
        if taken == 0:
            try:
                taken = claim_context(self.handle)
            except _errors.Error:
                pass                           # the map is closed here, or full of contexts
        if taken != 0:
            context_begin(context_at(map, taken - 1))
        self.says = False
        for i in range(self.count):
            waiting_end(map, self.awaited[i].hash)
        if taken != 0:
            context_end(context_at(map, taken - 1))
            context_rest(self.handle, taken)

    cdef void _end(self) noexcept:
        if not self.stays:
            return
        self.stays = False
        if self.stay.generation != process_generation:
            leave_to_parent(self.handle)
            return
        self._detach()
        if self.says:
            self._says_no_more()
        end_use(self.handle)

    @cython.critical_section
    def end(self):
        """This thread waits no more."""
        self._end()
