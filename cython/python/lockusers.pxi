# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# Part of _core.pyx: the users of the cells of a space, tasks that queue for one, and taking a lock
# away from its owner.


def cell_waiters(Space cells not None, uint64_t index):
    """The waiters for a lock, a condition or a barrier: the tuples of context_user."""
    cdef Map *map = &cells.handle.map
    cdef uint64_t at
    found = []
    expect_open(cells.handle)
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        if waits_for(wait_word(context_at(map, at)), index, WAITING):
            user = context_user(map, context_at(map, at))
            if user is not None:
                found.append(user)
    return found


def permit_holders(Space cells not None, uint64_t index):
    """The holders of permits of a semaphore: the tuples of context_user, each with its number."""
    cdef Map *map = &cells.handle.map
    cdef uint64_t at
    cdef Context *context
    found = []
    expect_open(cells.handle)
    for at in range(contexts_usable(map)):     # at most CONTEXT_MAX
        context = context_at(map, at)
        if load_relaxed_u64(&context.target) == index and held_word(context, HELD_SHARES) != 0:
            user = context_user(map, context)
            if user is not None:
                found.append((user, held_word(context, HELD_SHARES)))
    return found


def holds_lock(MutexCore lock not None):
    """Whether this process holds the lock."""
    expect_open(lock.handle)
    return lock._mine() != NULL


def renew_lock(MutexCore lock not None):
    """Say that the owner, this process, has the lock since now. False: it is not the owner."""
    cdef Context *mine
    expect_open(lock.handle)
    mine = lock._mine()
    if mine == NULL:
        return False
    held_set(mine, HELD_SINCE, <uint64_t> clock_ns(CLOCK_MONOTONIC))
    return lock._mine() == mine


def depose(MutexCore lock not None, int64_t age_ns):
    """Take the lock away from its owner, if that has had it for so long, or renewed it so long ago;
    returns whether it was taken away. The next owner is told as of a death."""
    cdef Map *map = &lock.handle.map
    cdef Context *owner
    cdef uint64_t process
    cdef uint32_t seen
    expect_open(lock.handle)
    seen = load_acquire_u32(&lock.cell.state)
    if not word_locked(seen) or word_owner(seen) >= contexts_usable(map):
        return False
    owner = context_at(map, word_owner(seen))
    process = load_acquire_u64(&owner.owner) - 1
    if process >= processes_usable(map) or (
            clock_ns(CLOCK_MONOTONIC) - <int64_t> held_word(owner, HELD_SINCE) < age_ns):
        return False
    return mutex_take_away(map, lock.cell, seen, owner, map.processes + process)


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class ShownWait:
    """For a task that stands in a line for a lock, a permit or to come in: what others are to know
    of it, until end(). look_at_ns: when expect_no_circle() is to be called; negative: never."""

    cdef CellCore core
    cdef Op op
    cdef Shown shown
    cdef bint waits                # the space is kept mapped
    cdef uint64_t how
    cdef int64_t began
    cdef readonly int64_t look_at_ns

    def __cinit__(self, CellCore core not None, int64_t deadline_ns, bint told):
        self.core = core
        self.began = clock_ns(CLOCK_MONOTONIC)
        self.look_at_ns = -1
        if isinstance(core, MutexCore):
            self.how = task_links(core, deadline_ns, told)
            if self.how & WAIT_ENDLESS:
                self.look_at_ns = self.began + circle_patience_ns
        begin_use_of_space(core.handle, &self.op)
        self.waits = True
        show_here(core, &self.shown, self.how, self.began)

    def __dealloc__(self):
        self.end()

    def expect_no_circle(self):
        """Raise DeadlockError if it is time to look, and the wait is in a circle and is the one to
        be told."""
        if self.shown.context != 0 and self.op.generation == process_generation and (
                not is_closed(self.core.handle)):
            expect_no_circle(self.core, self.how, waiter_number(), self.began, &self.look_at_ns)

    def end(self):
        """It waits no more, or in another way."""
        if self.waits:
            self.waits = False
            hide_here(self.core, &self.shown, self.op.generation)
            end_waiting(self.core.handle, &self.op)
