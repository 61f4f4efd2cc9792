# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: Space, what a space of lock primitives knows of its segment, and CellCore, the
# base class of the primitives, whose objects know a cell of a space.

LOCK, RLOCK, SEMAPHORE, COUNTER, EVENT = (
    CELL_LOCK, CELL_RLOCK, CELL_SEMAPHORE, CELL_COUNTER, CELL_EVENT)
RWLOCK = CELL_RWLOCK
LIMIT_MAX = <uint64_t> COUNT_MAX
SPARE = CELL_SPARE
CELL_KEY_SIZE, CELL_VALUE_SIZE = CELL_KEY_BYTES, CELL_BYTES

cdef enum:
    MAX_NS = 0x7FFFFFFFFFFFFFFF
    STEP_PAUSES = 128              # as SPIN_PAUSES_MAX, before the owner is looked at
    STEP_TURNS_MAX = 100000        # some 0.1 s of yielding
    MISSING_MAX = 8192             # elements without a cell, after which a search expects no more

cdef object FOR_EVER = -1
cdef double TIMEOUT_MAX = 9223372036.0         # as threading.TIMEOUT_MAX


cdef tuple context_user(Map *map, Context *context):
    """The process of a context: (pid, command, thread, since_ns, is_alive); None: it is free."""
    cdef uint64_t process = load_acquire_u64(&context.owner) - 1
    if process >= processes_usable(map):
        return None
    return (map.processes[process].pid, command_text(map.processes[process].command),
            held_word(context, HELD_THREAD), held_word(context, HELD_SINCE),
            not process_is_dead(map, process))


cdef Status attempt_find_cell(Op *op, void *arguments) noexcept:
    cdef Found found
    cdef Status status = map_find(op.map, op.hash, op.key, &found)
    if status == OK:
        (<uint64_t *> arguments)[0] = found.index
    return status


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear                # the objects of cells need the handle to the end
cdef class Space:
    """The cells of a space, as one handle of it reaches them."""

    cdef MapHandle handle
    cdef uint32_t *shares          # for each cell: the context that has this process's permits, + 1
    cdef uint64_t generation       # in which these contexts were taken
    cdef uint64_t shown_count      # waits of tasks and greenlets that are shown (circles.pxi)
    cdef uint64_t shown_generation
    cdef uint32_t *spares          # private cells without a user (privates.pxi)
    cdef uint64_t spare_count, spare_room, spare_generation

    def __cinit__(self, MapHandle handle not None):
        if not handle.map.is_space:
            raise _errors.LayoutMismatch(f"segment {handle.name!r} is not a space")
        self.handle = handle

    def __dealloc__(self):
        free(self.shares)
        free(self.spares)

    cdef uint64_t _find(self, bytes key) except? 0:
        """The index of the cell of this key; 0 if there is none."""
        cdef Op op
        cdef uint64_t index = 0
        cdef Status status = attempt_on_key(
            self.handle, key, attempt_find_cell, &index, &op, TO_READ)
        if status != OK and status != ABSENT:
            raise_status(self.handle, status, &op)
        return index

    def find(self, bytes key not None, uint32_t kind, uint64_t limit, uint64_t word):
        """The index of the cell of this key, which is made if there is none. Raises InvalidArgument
        if it is of another kind, and what an insertion raises."""
        cdef Cell fresh
        cdef uint64_t index = self._find(key)
        memset(&fresh, 0, sizeof(fresh))
        fresh.kind = kind
        fresh.limit = limit
        fresh.word = word << PAYLOAD_SHIFT
        if index == 0:
            try:
                self._make(key, &fresh)
            except _errors.KeyExists:          # another thread has made it since the search
                pass
            index = self._find(key)
        return index

    cdef int _make(self, bytes key, const Cell *fresh) except -1:
        """Insert a cell: the only change of a space that is made as one of a map (enter_oddly)."""
        cdef Op op
        op.key = <const uint8_t *> PyBytes_AS_STRING(key)
        op.hash = hash_key(self.handle.map.seeds, op.key, CELL_KEY_BYTES)
        enter(self.handle, &op)
        update_entered(self.handle, &op, <const uint8_t *> fresh, UPDATE_NOEXIST)
        return 0

    cdef void put_spare(self, uint64_t index) noexcept:
        """From now on a private cell is spare. Without memory for that, it is never used again."""
        state_lock()
        if self._has_room_for_spare():
            self.spares[self.spare_count] = <uint32_t> index
            self.spare_count += 1
        state_unlock()

    cdef bint _has_room_for_spare(self) noexcept:
        """Make room for one more. The caller has the state lock."""
        cdef uint32_t *more
        if self.spare_generation != process_generation:
            self.spare_generation = process_generation
            self.spare_count = 0               # the parent's
        if self.spare_count == self.spare_room:
            more = <uint32_t *> realloc(self.spares, (2 * self.spare_room + 64) * sizeof(uint32_t))
            if more == NULL:
                return False
            self.spares = more
            self.spare_room = 2 * self.spare_room + 64
        return True

    cdef uint64_t _take_spare(self) noexcept:
        """One of the spare cells, which no other thread gets; 0: there is none."""
        cdef uint64_t index = 0
        state_lock()
        if self.spare_generation == process_generation and self.spare_count != 0:
            self.spare_count -= 1
            index = self.spares[self.spare_count]
        state_unlock()
        return index

    def use_spare(self, uint32_t kind, uint64_t limit, uint64_t word):
        """The index of a spare cell, which is now of this kind; 0: this process has none."""
        cdef Op use
        cdef uint64_t index
        begin_use_of_space(self.handle, &use)  # so it keeps its slot, which the cell names
        index = self._take_spare()
        if index != 0:
            cell_make(cell_at(&self.handle.map, index), kind, limit, word)
        end_use(self.handle)
        return index

    def find_spares(self):
        """Look through all cells for private ones whose process has ended; these are spare now.
        Returns how many cells there are. Costs some ns for each. Raises TooManyProcesses."""
        cdef Op op
        begin_use_of_space(self.handle, &op)
        try:
            begin_with_context(self.handle, &op)       # so this process has a slot
            put_context(self.handle, op.self_index)
            recover_all(&self.handle.map)
            return self._find_spares(&op)
        finally:
            end_use(self.handle)

    cdef uint64_t _find_spares(self, Op *op) noexcept:
        cdef Map *map = &self.handle.map
        cdef Cell *cell
        cdef uint64_t index, seen
        cdef uint64_t count = 0
        cdef uint64_t missing = 0
        for index in range(1, map.element_max):
            if missing > MISSING_MAX:
                break
            missing += 1
            if object_memory_ready(op, &map.element_pool, index) != OK or element_state(
                    load_acquire_u64(&element_at(map, index).header)) != ELEMENT_LIVE:
                continue
            count += 1
            missing = 0
            cell = cell_at(map, index)
            seen = load_acquire_u64(&cell.keeper)
            # The CAS: of two that look, one keeps the cell.
            if seen != 0 and keeper_has_ended(map, seen) and cas_acq_rel_u64(
                    &cell.keeper, seen, keeper_word(map, map.local.process_index)):
                cell.kind = CELL_SPARE
                self.put_spare(index)
        return count

    def kind(self, uint64_t index):
        """The kind of a cell."""
        expect_open(self.handle)
        return cell_at(&self.handle.map, index).kind

    def key(self, uint64_t index):
        """The key of a cell, as it is stored."""
        expect_open(self.handle)
        return cell_key(&self.handle.map, index)

    cdef uint32_t *_share(self, uint64_t index) except NULL:
        """Where the context is noted that has this process's permits of a cell. The caller keeps
        other threads out, but those that end private cells."""
        if unlikely(self.shares == NULL or self.generation != process_generation):
            self._make_shares()
        return self.shares + index

    cdef int _make_shares(self) except -1:
        cdef uint32_t *made = <uint32_t *> calloc(self.handle.map.element_max, sizeof(uint32_t))
        cdef uint32_t *before
        if made == NULL:
            raise MemoryError()
        state_lock()                           # for end_share
        before = self.shares                   # a parent's permits are not its child's
        self.shares = made
        self.generation = process_generation
        state_unlock()
        free(before)
        return 0

    cdef uint32_t end_share(self, uint64_t index) noexcept:
        """Forget the context that has this process's permits of a cell; returns its number, plus 1,
        or 0."""
        cdef uint32_t share = 0
        state_lock()
        if self.shares != NULL and self.generation == process_generation:
            share = self.shares[index]
            self.shares[index] = 0
        state_unlock()
        return share

    def owner(self, uint64_t index):
        """The holder of the lock in a cell: the tuple of context_user; None if it is free."""
        cdef Map *map = &self.handle.map
        cdef uint32_t seen
        expect_open(self.handle)
        seen = load_acquire_u32(&cell_at(map, index).state)
        if not word_locked(seen) or word_owner(seen) >= contexts_usable(map):
            return None
        found = context_user(map, context_at(map, word_owner(seen)))
        if load_acquire_u32(&cell_at(map, index).state) & LOCK_MASK != seen & LOCK_MASK:
            return None                        # the context may be another thread's by now
        return found

    def orphaned_by(self, uint64_t index):
        """The process that died with the lock in a cell: (pid, command, since_ns)."""
        cdef Cell *cell
        expect_open(self.handle)
        cell = cell_at(&self.handle.map, index)
        return cell.orphan_pid, command_text(cell.orphan_command), cell.orphan_since

    def words(self, uint64_t index):
        """The words of a cell, for people and tests: a dict."""
        cdef Cell *cell
        expect_open(self.handle)
        cell = cell_at(&self.handle.map, index)
        return {
            "state": load_acquire_u32(&cell.state), "bell": cell.bell,
            "count": load_acquire_u64(&cell.word) >> PAYLOAD_SHIFT, "kind": cell.kind,
            "limit": cell.limit, "grants": cell.grants, "deaths": cell.deaths,
            "reserved_until": cell.reserved_until,
        }


cdef bytes cell_key(Map *map, uint64_t index):
    return PyBytes_FromStringAndSize(
        <const char *> element_at(map, index).words, CELL_KEY_BYTES)


cdef str command_text(const char *command):
    return (<bytes> command[:15]).split(b"\0")[0].decode(errors="replace")


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class CellCore:
    """An object that stands for a cell: it keeps the cell's place, and nothing of its state."""

    cdef readonly Space _cells
    cdef MapHandle handle
    cdef Cell *cell
    cdef readonly uint64_t _index
    cdef uint64_t private_place    # not 0: the cell is private, and this is its only object

    def __cinit__(self, Space cells not None, uint64_t index, *_ignored, **_named):
        expect_open(cells.handle)
        if not 0 < index < cells.handle.map.element_max:
            raise _errors.InvalidArgument(f"there is no cell {index}")
        self._cells = cells
        self.handle = cells.handle
        self._index = index
        self.cell = cell_at(&self.handle.map, index)

    def __dealloc__(self):
        cdef Op use
        if unlikely(self.private_place != 0) and private_drop(&self.private_place):
            begin_use(self.handle, &use)       # so it keeps its slot, which the cell names
            if not is_closed(self.handle):
                self._leave_cell()
            end_use(self.handle)

    cdef void _leave_cell(self) noexcept:
        cdef uint64_t idle = cell_leave(
            self.handle, self.cell, self._cells.end_share(self._index))
        if idle != 0:
            put_context(self.handle, <uint32_t> (idle - 1))
        self._cells.put_spare(self._index)

    def _keep(self):
        """The primitive was made just now, without a key: nobody else knows of it yet. Raises
        MapClosed."""
        cdef Op use
        cdef Map *map = &self.handle.map
        begin_use_of_space(self.handle, &use)  # another thread may close it
        if map.local.registered:
            private_add(&self.cell.keeper, keeper_word(map, map.local.process_index),
                        &self.private_place)
        end_use(self.handle)

    def _share(self):
        """Others may get to know of it: its cell stays. It is so for every thread that returns."""
        cdef Op use
        begin_use(self.handle, &use)
        if is_closed(self.handle):             # perhaps it has no slot any more
            private_drop(&self.private_place)
        else:
            private_share(&self.cell.keeper, &self.private_place)
        end_use(self.handle)

    @property
    def _place(self):
        """Equal for the objects of one cell."""
        return self.handle.map.device, self.handle.map.inode, self._index


cdef int begin_with_context(MapHandle handle, Op *op) except -1:
    """Take an idle context of this process, or claim one."""
    cdef uint64_t taken
    if unlikely(is_closed(handle)):
        refuse_closed(handle)
    taken = local_take_u64(&handle.map.local.idle_context)
    if unlikely(taken == 0):
        taken = claim_context(handle)
    op.map = &handle.map
    op.self_index = <uint32_t> (taken - 1)
    op.context = context_at(&handle.map, taken - 1)
    op.wait_word = NULL
    op.wait_seen = 0
    op.starving = 0
    return 0


cdef inline void put_context(MapHandle handle, uint32_t index) noexcept:
    """Put a context back that holds nothing."""
    context_rest(handle, index + 1)


cdef refuse_closed(MapHandle handle):
    raise _errors.MapClosed(f"space {handle.name!r} is closed")


cdef int begin_use_of_space(MapHandle handle, Op *op) except -1:
    """begin_use, or MapClosed: also if another thread closes the space just now."""
    begin_use(handle, op)
    if unlikely(is_closed(handle)):
        end_use(handle)
        refuse_closed(handle)
    return 0


cdef void end_waiting(MapHandle handle, Op *op) noexcept:
    """The end of begin_use, perhaps in a child that was forked since."""
    if op.generation == process_generation:
        end_use(handle)
    else:
        leave_to_parent(handle)


cdef int64_t acquire_limit(blocking, timeout) except? -2:
    """How long an acquire() may wait, with the errors of threading's; -1: without limit."""
    if timeout is FOR_EVER or timeout is None:
        return -1 if blocking else 0
    seconds = float(timeout)
    if not blocking:
        if seconds == -1:
            return 0
        raise ValueError("can't specify a timeout for a non-blocking call")
    if seconds == -1:
        return -1
    if not seconds >= 0:
        raise ValueError("timeout value must be a non-negative number")
    if seconds > TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return <int64_t> (seconds * 1e9)


cdef int64_t until_ns(int64_t limit_ns) noexcept:
    """Until when a wait lasts that begins now, by CLOCK_MONOTONIC; a negative limit: -1, for ever.
    """
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    return -1 if limit_ns < 0 or limit_ns > MAX_NS - now else now + limit_ns


cdef int64_t wait_end_ns(timeout) except? -2:
    """The same for a timeout in seconds; None: for ever."""
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    if timeout is None:
        return -1
    seconds = float(timeout)
    if seconds != seconds:
        raise ValueError(f"timeout must be None or a number of seconds, not {timeout!r}")
    seconds = max(seconds, 0.0)
    return -1 if seconds * 1e9 > <double> (MAX_NS - now) else now + <int64_t> (seconds * 1e9)


cdef int stopped_in_a_step(what) except -1:
    raise _errors.LockTimeout(f"{what!r}: another process was stopped in the middle of a step")


cdef int between_slices(MapHandle handle, int64_t until_ns) except -1:
    """Between two slices of a wait: handle signals. Returns whether the wait goes on."""
    PyErr_CheckSignals()
    if unlikely(is_closed(handle)):
        refuse_closed(handle)
    return until_ns < 0 or clock_ns(CLOCK_MONOTONIC) < until_ns
